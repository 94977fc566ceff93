"""What docs/configure.md says of YAML is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from k8s_exec import YAML_MAX_DEPTH, YAML_MAX_INPUT_BYTES, YAML_MAX_NODES, KubeconfigError, parse_yaml

PAGE = (Path(__file__).parent.parent / "docs" / "configure.md").read_text()
PARAGRAPH = " ".join(re.findall(r"^Of YAML.*?\n\n", PAGE, re.M | re.S)[0].split())

# What the page says, and a document that shows it.
READ: dict[str, tuple[str, object]] = {
    "block and flow style": ("a:\n- b\nc: [d, {e: f}]\n", {"a": ["b"], "c": ["d", {"e": "f"}]}),
    "`kubectl -o kyaml`": ('---\n{\n  a: "b",\n  c: [{\n    d: "e",\n  }],\n}\n', {"a": "b", "c": [{"d": "e"}]}),
    "block scalars": ("a: |\n  b\n  c\nd: >-\n  e\n  f\n", {"a": "b\nc\n", "d": "e f"}),
    "anchors": ("a: &x b\nc: *x\n", {"a": "b", "c": "b"}),
    "merge keys (`<<`)": ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    "JSON": ('{"a": ["b\\/c", 1, true, null]}', {"a": ["b/c", 1, True, None]}),
    "`1:20`": ("a: 1:20", {"a": "1:20"}),
    "`2024-01-02`": ("a: 2024-01-02", {"a": "2024-01-02"}),
    "(put them in quotes)": ("a: ['yes', \"0o7\", '1e3', '1_000']", {"a": ["yes", "0o7", "1e3", "1_000"]}),
}
REFUSED: dict[str, str | bytes] = {
    "duplicate keys": "a: 1\na: 2",
    "keys that are not text": "1: a",
    "a `<<` that brings a key which stands before it": "a: &x {b: 1}\nc: {b: 2, <<: *x}",
    "`yes`": "a: yes",
    "`0o7`": "a: 0o7",
    "`1e3`": "a: 1e3",
    "`1_000`": "a: 1_000",
    "tags": "a: !!str b",
    "`? ` keys": "? a\n: b",
    "directives": "%YAML 1.1\n---\na: b",
    "several documents": "a: b\n---\nc: d",
    "an anchor defined twice": "a: &x b\nc: &x d",
    "an encoding other than UTF-8": "a: b".encode("utf-16"),
    "more than 1 MiB": "#" * (YAML_MAX_INPUT_BYTES + 1),
    "nesting beyond 50": "[" * 51 + "]" * 51,
    "more than 50,000 values": "- a\n" * 50_000,
    "aliases counted in full": "- &x [a, a, a, a, a, a, a, a, a, a]\n" + "- *x\n" * 5_000,
}


@pytest.mark.parametrize("words", READ)
def test_what_the_page_says_is_read_is_read(words: str) -> None:
    text, value = READ[words]
    assert words in PARAGRAPH
    assert parse_yaml(text) == value


@pytest.mark.parametrize("words", REFUSED)
def test_what_the_page_says_is_refused_is_refused(words: str) -> None:
    assert words in PARAGRAPH.partition("Refused")[2]
    with pytest.raises(KubeconfigError):
        parse_yaml(REFUSED[words])


def test_every_example_and_limit_of_the_page_is_shown_here() -> None:
    told = " ".join((*READ, *REFUSED))
    for example in re.findall(r"`[^`]+`", PARAGRAPH):
        assert example in told, example
    assert (YAML_MAX_INPUT_BYTES, YAML_MAX_DEPTH, YAML_MAX_NODES) == (1 << 20, 50, 50_000)
