"""The YAML subset against PyYAML: an equal result or KubeconfigError, never another result or exception.

`Reference` is PyYAML's SafeLoader with three resolvers taken away, each because kubectl reads these plain
scalars as text (sigs.k8s.io/yaml, a port of libyaml by way of go-yaml v2; test_kubectl.py asks it itself):

- timestamps (`2024-01-02`): go-yaml decodes them to the string that stands in the file;
- sexagesimal numbers (`12:30`): go-yaml has none, nor has YAML 1.2;
- `=` as a value of its own: in no YAML but 1.1, and PyYAML itself cannot construct it.

All else is PyYAML as it is. Where it and kubectl differ (`yes`, `0o17`, `1e3`, ...) we refuse, so no rule for
such scalars is needed here.

Tabs between tokens are the one thing that we accept and PyYAML does not (YAML 1.2, 6.2): there the reference
is the same text with blanks in place of tabs.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from k8s_exec import KubeconfigError, parse_yaml

CORPUS = Path(__file__).parent / "kubeconfigs"
ACCEPTED = sorted(CORPUS.glob("*.yaml"))
REFUSED = sorted((CORPUS / "refused").glob("*.yaml"))
MIB = 1024 * 1024

# YAML_EXAMPLES=50000 searches on, with a new seed each time; without it a run can be repeated.
EXAMPLES = int(os.environ.get("YAML_EXAMPLES", "0"))
searching = settings(max_examples=EXAMPLES or 300, derandomize=not EXAMPLES, deadline=None)


class Reference(yaml.SafeLoader):
    pass


Reference.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":bool", ":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Reference.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
Reference.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


class Refusal:
    """What `reference` gives for a document that PyYAML does not read."""


def reference(text: str) -> object:
    try:
        return yaml.load(text, Reference)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError):  # it leaks all of these
        return Refusal


def same(ours: object, theirs: object) -> bool:
    """Equality that tells 1, 1.0 and True apart."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def without_tabs(value: object) -> object:
    if isinstance(value, dict):
        return {without_tabs(key): without_tabs(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_tabs(item) for item in value]
    return value.replace("\t", " ") if isinstance(value, str) else value


def agrees(text: str) -> bool:
    """Assert that we and the reference agree on `text`; True when we accept it."""
    try:
        ours = parse_yaml(text)
    except KubeconfigError as exc:
        assert exc.line is None or (exc.line >= 1 and exc.column is not None and exc.column >= 1)
        return False
    theirs = reference(text)
    if theirs is Refusal and "\t" in text:
        if "|" in text or ">" in text:  # tabs may be the text of a block scalar, where they are not blanks
            return True
        ours, theirs = without_tabs(ours), reference(text.replace("\t", " "))
    assert theirs is not Refusal, "we accept what PyYAML refuses"
    assert same(ours, theirs), f"ours: {ours!r}\ntheirs: {theirs!r}"
    return True


def refusal(text: str | bytes) -> KubeconfigError:
    with pytest.raises(KubeconfigError) as caught:
        parse_yaml(text)
    return caught.value


# ---- the corpus


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def test_corpus_is_large_enough() -> None:
    assert len(ACCEPTED) >= 60
    assert len(REFUSED) >= 40


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.name)
def test_corpus_is_read_as_pyyaml_reads_it(path: Path) -> None:
    assert agrees(read(path)), "refused"
    assert same(parse_yaml(path.read_bytes()), parse_yaml(read(path)))


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.name)
def test_refused_corpus_is_refused_with_its_place(path: Path) -> None:
    error = refusal(path.read_bytes())
    assert error.line is not None and error.column is not None
    assert str(error) == f"line {error.line}, column {error.column}: {error.message}"


def test_line_ends_do_not_matter() -> None:
    unix = parse_yaml((CORPUS / "comments-everywhere.yaml").read_bytes())
    assert same(parse_yaml((CORPUS / "crlf.yaml").read_bytes()), unix)


def test_byte_order_mark_does_not_matter() -> None:
    plain = parse_yaml((CORPUS / "kind.yaml").read_bytes())
    assert same(parse_yaml((CORPUS / "bom.yaml").read_bytes()), plain)


# ---- tables

VALID: list[tuple[str, object]] = [
    ("", None),
    ("# only\n  # comments\n", None),
    ("---", None),
    ("---\n...\n", None),
    ("a", "a"),
    ("--- a", "a"),
    ("---\ta", "a"),
    ("a: 1\n...\n# end", {"a": 1}),
    ("a: b", {"a": "b"}),
    ("a:b", "a:b"),
    ("a:\nb:", {"a": None, "b": None}),
    ("a : b", {"a": "b"}),
    ("a:   b   # c", {"a": "b"}),
    ("a: b#c", {"a": "b#c"}),
    ("a:\tb", {"a": "b"}),
    ("a: b\t# c", {"a": "b"}),
    ("-\ta", ["a"]),
    ("a: b\n\t\nc: d", {"a": "b", "c": "d"}),
    ("- a\n-\n- b", ["a", None, "b"]),
    ("- - a\n  - b\n- c", [["a", "b"], "c"]),
    ("- a: 1\n  b: 2\n- c: 3", [{"a": 1, "b": 2}, {"c": 3}]),
    ("a:\n- b\n- c\nd: e", {"a": ["b", "c"], "d": "e"}),
    ("a:\n  - b\n  - c\nd: e", {"a": ["b", "c"], "d": "e"}),
    ("- a:\n  - b\n  c: d", [{"a": ["b"], "c": "d"}]),
    ("a:\n    b:\n     c: d\ne: f", {"a": {"b": {"c": "d"}}, "e": "f"}),
    ("{}", {}),
    ("[]", []),
    ("[a, b, ]", ["a", "b"]),
    ("{a: , b: }", {"a": None, "b": None}),
    ('{"a":1,"b":[true,null]}', {"a": 1, "b": [True, None]}),
    ("[\n a, # b\n c\n]", ["a", "c"]),
    ("a: {\n}", {"a": {}}),
    ("[a\n b]", ["a b"]),
    ("a b\n c\n\n d", "a b c\nd"),
    ("a: b\n  - c", {"a": "b - c"}),
    ("a: b\n  #c", {"a": "b"}),
    ("'it''s'", "it's"),
    ("'a\n\n  b'", "a\nb"),
    ('"a \\\n  b"', "a b"),
    ('"\\x41\\u0042\\U00000043\\t\\e\\/\\_"', "ABC\t\x1b/\xa0"),
    ("'a': b", {"a": "b"}),
    ('"a b" : c', {"a b": "c"}),
    ('"a: b": c', {"a: b": "c"}),
    ("|\n a\n  b\n", "a\n b\n"),
    ("|-\n a\n\n", "a"),
    ("|+\n a\n\n", "a\n\n"),
    (">\n a\n b\n\n c\n  d\n e\n", "a b\nc\n d\ne\n"),
    (">-\n\n a", "\na"),
    ("|1-\n  a", " a"),
    ("|-2\n   a", " a"),
    ("|\n a", "a"),
    ("a: |\n\nb: c", {"a": "", "b": "c"}),
    ("- |\n a\n- b", ["a\n", "b"]),
    ("a: |  # c\n  b", {"a": "b"}),
    ("a: &x b\nc: *x", {"a": "b", "c": "b"}),
    ("a: &x\n- b\nc: *x", {"a": ["b"], "c": ["b"]}),
    ("a: &x\nc: *x", {"a": None, "c": None}),
    ("[&x a, *x]", ["a", "a"]),
    ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ("a: &x {b: 1}\nc: {<<: *x, b: 2}", {"a": {"b": 1}, "c": {"b": 2}}),
    ("a: &x {b: 1}\nc: {d: 2, <<: *x}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ("<<: [{a: 1}, {a: 2, b: 3}]", {"a": 1, "b": 3}),
    ("'<<'", "<<"),
    ("---a", "---a"),
    ("a: ---", {"a": "---"}),
    ("-a", "-a"),
    ("?a", "?a"),
    (":a", ":a"),
    ("[-a, a:b, 'x']", ["-a", "a:b", "x"]),
    ("https://192.0.2.1:6443/a?b#c", "https://192.0.2.1:6443/a?b#c"),
]
SCALARS: list[tuple[str, object]] = [
    *((text, None) for text in ("~", "null", "Null", "NULL")),
    *((text, True) for text in ("true", "True", "TRUE")),
    *((text, False) for text in ("false", "False", "FALSE")),
    ("0", 0),
    ("-12", -12),
    ("+7", 7),
    ("999999999999999999", 999999999999999999),
    ("1.5", 1.5),
    ("-0.25", -0.25),
    ("1.0e+3", 1000.0),
    ("nULL", "nULL"),
    ("tRUE", "tRUE"),
    ("1.2.3", "1.2.3"),
    ("1:20", "1:20"),
    ("190:20:30.15", "190:20:30.15"),
    ("2024-01-02", "2024-01-02"),
    ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z"),
    ("=", "="),
    ("0a", "0a"),
    ("1a2b", "1a2b"),
    ("_1", "_1"),
    ("1-2", "1-2"),
    ("v1", "v1"),
    ("e3", "e3"),
]
AMBIGUOUS = re.findall(r"\S+", """
y Y yes Yes YES n N no No NO on On ON off Off OFF
00 01 017 09 0o17 0O17 0b1 0B1 0x1F -0x1f +0b1 1_000 1__0 1_ 0_ 0b_ 0x_ 1_0.5
1e3 1E3 1e+3 1e-3 1.0e3 1. 01.5 .5 -.5 +.5 .5e+3 1.0e+999 .inf -.inf +.Inf .INF .nan .NaN .NAN
1000000000000000000 123456789012345678901234567890 0.1234567890123456789
""")  # fmt: skip


@pytest.mark.parametrize(("text", "value"), VALID)
def test_valid_documents(text: str, value: object) -> None:
    assert same(parse_yaml(text), value)
    assert agrees(text)


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_plain_scalars_resolve_as_kubectl_resolves_them(text: str, value: object) -> None:
    for document in (text, f"a: {text}", f"[{text}]"):
        assert agrees(document)
    assert same(parse_yaml(text), value)


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_plain_scalars_that_readers_take_differently_are_refused(text: str) -> None:
    assert "quotes" in refusal(f"a: {text}").message
    assert "quotes" in refusal(f"{text}: a").message
    assert parse_yaml(f"a: '{text}'") == {"a": text}


# The place is that of the first character that cannot be right, or of the opening that is never closed.
PLACES: list[tuple[str | bytes, int, int]] = [
    ("a: b: c", 1, 5),
    ("a: - b", 1, 4),
    ("a: b\n  c: d", 2, 4),
    ("a: b\nc\nd: e", 2, 1),
    ("a:\n  b: c\n d: e", 3, 2),
    ("a:\n - b\n  - c: d", 3, 6),
    ("- a\n b: c", 2, 3),
    ("- a\nb: c", 2, 1),
    ("a: 1\n\n\nb: 1\na: 2", 5, 1),
    ("{a: 1, b: 2, a: 3}", 1, 14),
    ("{a: 1,\n  'a': 3}", 2, 3),
    ("a: !!str b", 1, 4),
    ("a: *b", 1, 4),
    ("a: [*b]", 1, 5),
    ("a: &b *b", 1, 7),
    ("a: &b c\nd: &b e", 2, 4),
    ("a: &b &c d", 1, 7),
    ("a: & b", 1, 4),
    ("*a : b", 1, 1),
    ("? a", 1, 1),
    ("- ? a", 1, 3),
    ("%YAML 1.2\n---\na", 1, 1),
    ("a\n---\nb", 2, 1),
    ("---\n---\n", 2, 1),
    ("a: 1\n...\nb: 1", 3, 1),
    ("...\n", 1, 1),
    ("--- a: b", 1, 6),
    ("a: 'b", 1, 4),
    ('a:\n  "b\n  c', 2, 3),
    ('a: "\\q"', 1, 5),
    ('a: "\n\n  \\xg0"', 3, 3),
    ('a: "b" c', 1, 8),
    ("a: [b] c", 1, 8),
    ("a: [b", 1, 6),
    ("a: [b\n\n", 3, 1),
    ("a: [b}", 1, 6),
    ("a: {b: c]", 1, 9),
    ("[a,,b]", 1, 4),
    ("[,]", 1, 2),
    ("[a: b]", 1, 3),
    ("{a}", 1, 2),
    ("{a:b}", 1, 2),
    ("{a\n: b}", 1, 2),
    ("{[a]: b}", 1, 2),
    ("[a]: b", 1, 4),
    ("[a,#b\n]", 1, 4),
    ("[a\n---\n]", 2, 1),
    ("'a\n b': c", 2, 4),
    ("a: @b", 1, 4),
    ("a: `b`", 1, 4),
    ("a: |b\n c", 1, 4),
    ("a: |10\n c", 1, 4),
    ("a: | b\n c", 1, 6),
    ("a: |\n   \n  b", 2, 1),
    ("a: |\n  b\n\tc", 3, 1),
    ("\ta: b", 1, 1),
    ("a:\n\tb: c", 2, 1),
    ("a:\n  \tb: c", 2, 3),
    ("-\ta: b", 1, 4),
    ("1: a", 1, 1),
    ("a:\n  true: b", 2, 3),
    ("a: yes", 1, 4),
    ("a: 017", 1, 4),
    ("a: <<", 1, 4),
    ("a: &x {b: 1}\nc: {b: 2, <<: *x}", 2, 18),
    ("é: ö: ü", 1, 5),
    ("a: b\r\nc: d: e", 2, 5),
    ("a: b\rc: d: e", 2, 5),
    ("\ufeffa: b: c", 1, 5),
    ("a: b\ufeff", 1, 5),
    ("a: \0", 1, 4),
    ("a: \x85", 1, 4),
    ("a: b\nc: \u2028", 2, 4),
    ("a: \ud800", 1, 4),
    (b"a: b\nc: \xff", 2, 4),
    ("é: \xff".encode("latin-1"), 1, 1),
    ("a: b".encode("utf-16"), 1, 1),
    ("a: b".encode("utf-16-le"), 1, 2),
]


@pytest.mark.parametrize(("text", "line", "column"), PLACES)
def test_error_names_the_place(text: str | bytes, line: int, column: int) -> None:
    error = refusal(text)
    assert (error.line, error.column) == (line, column), error.message


@pytest.mark.parametrize(
    "text",
    [
        "token: !hunter2",
        "token: hunter2: x",
        "token: 'hunter2' x",
        "token: 'hunter2",
        "token: [hunter2}",
        "token: *hunter2",
        "token: {hunter2}",
        "hunter2: 1\nhunter2: 2",
        "token: hunter2\n x: y",
        "token: |hunter2",
        'token: "hunter2\\q"',
        "token: &hunter2 a\nb: &hunter2 c",
        "token: hunter2\n\tx: y",
        "a: hunter2\nhunter2",
    ],
)
def test_error_never_repeats_the_document(text: str) -> None:
    error = refusal(text)
    assert "hunter" not in str(error) and "hunter" not in repr(error)


# ---- limits


def test_document_of_one_mebibyte_is_read_and_a_larger_one_is_not() -> None:
    head = "a: b\n#"
    document = head + "c" * (MIB - len(head))
    assert parse_yaml(document) == {"a": "b"}
    assert parse_yaml(document.encode()) == {"a": "b"}
    assert "1 MiB" in str(refusal(document + "c"))
    assert "1 MiB" in str(refusal(document.encode() + b"c"))


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}"), ("- ", ""), ("- - ", "")])
def test_depth_is_limited(opening: str, closing: str) -> None:
    levels = opening.count("-") or 1
    fits, over = 50 // levels, 50 // levels + 1
    assert parse_yaml(opening * fits + "x" + closing * fits) is not None
    assert "nesting" in refusal(opening * over + "x" + closing * over).message


def test_depth_by_way_of_aliases_is_limited() -> None:
    lines = ["a0: &a0 [x]", *(f"a{level}: &a{level} [*a{level - 1}]" for level in range(1, 60))]
    assert parse_yaml("\n".join(lines[:49])) is not None
    error = refusal("\n".join(lines))
    assert "nesting" in error.message and error.line == 50


def test_values_are_limited_with_aliases_counted_in_full() -> None:
    assert parse_yaml("- x\n" * 49_000) == ["x"] * 49_000
    assert "values" in refusal("- x\n" * 51_000).message
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
    )
    assert "values" in refusal(bomb).message


def test_key_length_is_limited() -> None:
    assert parse_yaml("k" * 1023 + ": x") == {"k" * 1023: "x"}
    for text in ("k" * 1024 + ": x", "'" + "k" * 1024 + "': x", "{" + "k" * 1024 + ": x}"):
        assert "1024" in refusal(text).message


def test_caller_deep_in_its_stack_gets_a_kubeconfig_error() -> None:
    def descend(levels: int) -> object:
        return parse_yaml("[" * 40 + "]" * 40) if levels == 0 else descend(levels - 1)

    with pytest.raises(KubeconfigError, match="nested too deeply"):
        descend(sys.getrecursionlimit() - len(inspect.stack(0)) - 30)


GROWING: dict[str, Callable[[int], str]] = {
    "brackets": lambda n: "[" * n,
    "braces": lambda n: "{a: " * (n // 4),
    "dashes": lambda n: "- " * (n // 2),
    "spaces": lambda n: " " * n,
    "tabs": lambda n: "\t" * n,
    "line breaks": lambda n: "\n" * n,
    "blank lines": lambda n: " \n" * (n // 2),
    "comment lines": lambda n: "# c\n" * (n // 4),
    "comment signs": lambda n: "#\n" * (n // 2),
    "keys on one line": lambda n: "a: " * (n // 3),
    "keys on lines": lambda n: "".join(f"a{i}:\n" for i in range(n // 8)),
    "list items": lambda n: "- a\n" * (n // 4),
    "flow items": lambda n: "[" + "a," * (n // 2),
    "flow pairs": lambda n: "{" + "".join(f'"a{i}":1,' for i in range(n // 11)) + "}",
    "plain words": lambda n: "a " * (n // 2),
    "plain colons": lambda n: "- " + "a:" * (n // 2),
    "plain number signs": lambda n: "a#" * (n // 2),
    "plain spaces and number signs": lambda n: "a  #" * (n // 4),
    "plain lines": lambda n: "k:\n" + " a\n" * (n // 3),
    "plain after blank lines": lambda n: "k: a" + "\n" * n + " b",
    "digits": lambda n: "1" * n,
    "digits and a letter": lambda n: "1" * n + "x",
    "digits, underscores and a letter": lambda n: "1_" * (n // 2) + "x",
    "digits, a point and a letter": lambda n: "1" * (n // 2) + "." + "1" * (n // 2) + "x",
    "quotes": lambda n: '"' * n,
    "apostrophes": lambda n: "'" * n,
    "open quote": lambda n: '"' + "a " * (n // 2),
    "open quote over lines": lambda n: '"' + " \n" * (n // 2),
    "open quote in every line": lambda n: "- 'a''\n" * (n // 7),
    "backslashes": lambda n: '"' + "\\" * n,
    "escaped breaks": lambda n: '"' + "a\\\n" * (n // 3) + '"',
    "quoted lines": lambda n: "'" + "a\n" * (n // 2) + "'",
    "literal lines": lambda n: "|\n" + " a\n" * (n // 3),
    "folded lines": lambda n: ">\n" + " a\n" * (n // 3),
    "literal blank lines": lambda n: "|+\n" + "\n" * n,
    "literals": lambda n: "- |\n  a\n" * (n // 8),
    "anchors": lambda n: "".join(f"- &a{i} x\n" for i in range(n // 11)),
    "anchor name": lambda n: "&" + "a" * n,
    "aliases": lambda n: "- &a x\n" + "- *a\n" * (n // 5),
    "merges": lambda n: "a: &a {" + "".join(f"k{i}: 1," for i in range(n // 40)) + "}\n"
    + "".join(f"m{i}: {{<<: *a}}\n" for i in range(n // 40)),
    "merged list": lambda n: "<<: [" + "".join(f"{{k{i}: 1}}," for i in range(n // 12)) + "]",
    "indicators": lambda n: "&*!|>%@" * (n // 7),
}  # fmt: skip


def seconds(text: str) -> float:
    start = time.process_time()
    with contextlib.suppress(KubeconfigError):
        parse_yaml(text)
    return time.process_time() - start


@pytest.mark.parametrize("shape", GROWING)
def test_time_grows_with_the_size_of_the_document_and_no_faster(shape: str) -> None:
    """Sixteen times the text in less than forty times the time; quadratic would be 256 times."""
    make = GROWING[shape]
    small, large = make(MIB // 16), make(MIB - 16)[:MIB]
    few = min(seconds(small) for _ in range(3))
    assert seconds(large) < 40 * few + 0.5


# ---- made-up documents

keys = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["name", "server", "<<", "yes", "1", "a: b", "- a", "#", "a b", "'", '"', "?", "~", "", "k" * 130]
)
texts = (
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
    | st.text("ab \n\t:#-'\"\\[]{},&*!|>%@?~.0e_=", max_size=30)
    | st.from_regex(r"[-+]?[0-9._:xobe+-]{1,8}", fullmatch=True)
    | st.sampled_from(["yes", "null", "=", "<<", "2024-01-02", "a\n\n b\n", " a", "a ", "long text " * 12])
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
structures = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
dump_options = st.fixed_dictionaries(
    {},
    optional={
        "default_flow_style": st.sampled_from([True, False, None]),
        "default_style": st.sampled_from(["'", '"', "|", ">"]),
        "indent": st.integers(2, 9),
        "width": st.sampled_from([10, 40, 10**6]),
        "allow_unicode": st.booleans(),
        "explicit_start": st.booleans(),
        "explicit_end": st.booleans(),
        "line_break": st.sampled_from(["\r", "\r\n", "\n"]),
        "sort_keys": st.booleans(),
    },
)


@searching
@given(structures, dump_options)
def test_what_pyyaml_dumps_is_read_the_same_or_refused(value: object, options: dict[str, Any]) -> None:
    agrees(yaml.safe_dump(value, **options))


safe_texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Cn", "Co", "Zl", "Zp"]))
json_texts = safe_texts.filter(lambda text: "\ufeff" not in text)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18) + 1, 10**18 - 1) | json_texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(json_texts.filter(lambda key: key != "<<"), inner, max_size=4)
    ),
    max_leaves=12,
)


@searching
@given(json_values, st.sampled_from([None, 0, 2, 7, "\t"]))
def test_json_is_accepted(value: object, indent: int | str | None) -> None:
    assert same(parse_yaml(json.dumps(value, ensure_ascii=False, indent=indent)), value)


plain_names = st.from_regex(r"[a-z][a-z-]{2,12}[a-z]", fullmatch=True).filter(
    lambda name: name not in ("null", "true", "false")
)
config_values = st.recursive(
    st.none() | st.booleans() | plain_names | st.text("abc \n'\"#:-{}[]", min_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_names, inner, max_size=4),
    max_leaves=15,
)


@searching
@given(config_values, st.sampled_from([True, False, None]), st.integers(2, 6))
def test_dumped_configurations_are_accepted(value: object, flow: bool | None, indent: int) -> None:
    text = yaml.safe_dump(value, default_flow_style=flow, indent=indent, sort_keys=False)
    assert same(parse_yaml(text), value)
    assert same(parse_yaml(text.replace("\n", "\r\n")), value)


SOURCES = [read(path).replace("\r\n", "\n") for path in ACCEPTED]
FRAGMENTS = [
    "", " ", "  ", "    ", "\t", "\n", "\n\n", "\n  ", "- ", "-", ": ", ":", ",", "[", "]", "{", "}", "#",
    " # c", "'", '"', "\\", "|", ">", "|-\n", ">+\n", "|2\n", "&x ", "*x", "<<: ", "!", "? ", "%", "@", "---",
    "\n---\n", "\n...\n", "...", "~", "null", "yes", "012", "1e3", "1:20", "2024-01-02", "=", "\r", "\0",
    "\x85", "\ufeff", "\u2028", "\ud800", "a: b", "- a\n", "k: v\n", "[a, b]", "{a: b}", '"a":',
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A document of the corpus after a few edits of lines or characters."""
    lines = draw(st.sampled_from(SOURCES)).split("\n")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        other = draw(st.integers(0, len(lines) - 1))
        edit = draw(st.sampled_from(["drop", "copy", "swap", "join", "indent", "cut", "insert", "append"]))
        if edit == "drop" and len(lines) > 1:
            del lines[at]
        elif edit == "copy":
            lines.insert(at, lines[other])
        elif edit == "swap":
            lines[at], lines[other] = lines[other], lines[at]
        elif edit == "join" and at + 1 < len(lines):
            lines[at] += " " + lines.pop(at + 1).lstrip()
        elif edit == "indent":
            lines[at] = " " * draw(st.integers(0, 6)) + lines[at].lstrip(" ")
        elif edit == "cut":
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
        else:
            place = draw(st.integers(0, len(lines[at]))) if edit == "insert" else len(lines[at])
            lines[at] = lines[at][:place] + draw(st.sampled_from(FRAGMENTS)) + lines[at][place:]
    return "\n".join(lines)


@searching
@given(mutated())
def test_mutated_documents_are_read_the_same_or_refused(text: str) -> None:
    agrees(text)


@searching
@given(st.lists(st.sampled_from([*FRAGMENTS, "a", "b", "a b"]), max_size=20).map("".join))
@example("-\n>1-")
@example("a: |\n \n\n   b")
@example("\t|2")
def test_documents_of_fragments_are_read_the_same_or_refused(text: str) -> None:
    agrees(text)


@searching
@given(st.text(st.characters()))
def test_text_of_any_kind_is_read_the_same_or_refused(text: str) -> None:
    agrees(text)


@searching
@given(st.binary() | st.sampled_from(SOURCES).map(lambda text: text[:60].encode("utf-16")))
def test_bytes_of_any_kind_are_read_or_refused(data: bytes) -> None:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        assert refusal(data).line is not None
    else:
        agrees(text)
