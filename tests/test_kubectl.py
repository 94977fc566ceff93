"""YAML and kubeconfigs against the real kubectl: what it prints of a document is what we read, or we refuse.

`kubectl config view --raw` decodes a kubeconfig into its own types and prints those. What stands under ``extension``
is printed as it was read, whatever it is: that shows the value of any document, many in one run.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from yaml import safe_dump

from k8s_exec import ExecError, KubeconfigError, Trust, load_kubeconfig, parse_yaml
from tests.support import need_program
from tests.test_yaml import ACCEPTED, EXAMPLES, REFUSED, SCALARS, VALID, dump_options, mutated, read, structures

# The keys of a kubeconfig that kubectl knows; it drops all others.
KNOWN = {
    "cluster": "server tls-server-name insecure-skip-tls-verify certificate-authority certificate-authority-data"
    " proxy-url disable-compression extensions",
    "context": "cluster user namespace extensions",
    "user": "client-certificate client-certificate-data client-key client-key-data token tokenFile as as-uid as-groups"
    " as-user-extra username password auth-provider exec extensions",
}

# Files that kubectl does not open and whose YAML we read.
ONLY_OURS = {
    "ansible-template.yaml": "base64",  # not valid: load_kubeconfig says so, too
    "root-list.yaml": "unmarshal array",  # no kubeconfig: load_kubeconfig says so, too
    "tabs.yaml": "unmarshal string",  # clusters that are none: the same
    # JSON's `\/` (RFC 8259, section 7), which YAML 1.1 does not have: it can mean one thing only.
    **dict.fromkeys(("bom-crlf-json.yaml", "json-pretty.yaml", "quoted-escapes.yaml"), "unknown escape character"),
}

# Files that kubectl opens and we refuse, by the reason; docs/configure.md names each kind.
ONLY_KUBECTLS = {
    "key": ["alias-as-key", "anchor-on-key", "explicit-key", "flow-key-alone", "key-not-text"],
    "anchor": ["anchor-twice"],
    "twice": ["duplicate-key", "duplicate-key-flow", "duplicate-key-nested", "merge-twice"],
    "stands before it": ["merge-after-key"],
    "tags": ["tag", "tag-python"],
    "document": ["two-documents", "two-documents-after-end"],
    "number": ["value-exponent", "value-hex", "value-long-number", "value-octal", "value-underscore"],
    "boolean": ["key-bool", "value-yes"],
    "U+FEFF": ["bom-inside"],
    "UTF-8": ["utf-16"],
    "'#'": ["comment-without-blank"],
}


@pytest.fixture(scope="module")
def kubectl() -> str:
    return need_program("kubectl")


def view(program: str, file: Path) -> dict[str, Any] | str:
    """What kubectl prints of a kubeconfig, or its refusal."""
    command = [program, "config", "view", "--raw", "--kubeconfig", str(file), "-o", "json"]
    environment = {"HOME": str(file.parent), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    return done.stderr if done.returncode else dict(json.loads(done.stdout))


def filled(value: Any) -> Any:
    """Without what is empty, which kubectl leaves out, and with its one spelling of a number."""
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items() if filled(item) not in (None, "", False, {}, [])}
    if isinstance(value, list):
        return [filled(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def read_as_kubectl(document: Any) -> dict[str, Any]:
    """The part of a kubeconfig that kubectl prints, with its defaults, by name."""
    found: dict[str, Any] = {"current-context": (document or {}).get("current-context")}
    for section, kind in (("clusters", "cluster"), ("contexts", "context"), ("users", "user")):
        for entry in (document or {}).get(section) or []:
            values = {key: value for key, value in (entry.get(kind) or {}).items() if key in KNOWN[kind].split()}
            for key in values:
                if key.endswith("-data"):  # kubectl prints it in one line
                    values[key] = base64.b64encode(base64.b64decode(values[key])).decode()
            if values.get("exec"):
                values["exec"] = {"interactiveMode": "IfAvailable", **values["exec"]}
            found[f"{kind} {entry['name']}"] = filled(values) or "empty"
    return filled(found)  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.name)
def test_corpus_is_read_as_kubectl_reads_it(kubectl: str, path: Path) -> None:
    theirs = view(kubectl, path)
    if path.name not in ONLY_OURS:
        assert isinstance(theirs, dict), theirs
        assert read_as_kubectl(parse_yaml(path.read_bytes())) == read_as_kubectl(theirs)
        return
    assert ONLY_OURS[path.name] in theirs
    if "escape" not in theirs:
        with pytest.raises(ExecError):
            load_kubeconfig(path.read_bytes(), "ansible", Trust(folder=path.parent))


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.name)
def test_what_kubectl_opens_and_we_do_not_is_known_with_its_reason(kubectl: str, path: Path) -> None:
    reasons = [reason for reason, names in ONLY_KUBECTLS.items() if path.stem in names]
    assert isinstance(view(kubectl, path), dict) == bool(reasons)
    for reason in reasons:
        with pytest.raises(KubeconfigError, match=re.escape(reason)):
            parse_yaml(path.read_bytes())


# ---- any document


def fits(text: str) -> bool:
    """Whether a document means the same as a part of another one.

    Not so: markers, tabs, carriage returns, a `|` or `>` at the root or with a width of its own. Nor may it have what
    ONLY_OURS explains.
    """
    own_width = re.search(r"[|>][-+]?[0-9]", text) or re.match(r"(\s*(#.*)?\n)*\s*[|>]", text)
    return bool(text.strip()) and not own_width and not re.search(r"---|\.\.\.|[\r\t\ufeff]|\\/", text)


def kubectls_values(program: str, texts: list[str], folder: Path) -> list[object]:
    """What kubectl reads of each document; its refusal as a string in a tuple."""
    lines = ["extensions:"]
    for number, text in enumerate(texts):
        lines += [f"- name: '{number:06d}'", "  extension:", "    value:"]
        lines += [f"     {line}" if line else "" for line in f"{text}\n".split("\n")]
    file = folder / "documents.yaml"
    file.write_bytes("\n".join(lines).encode())
    seen = view(program, file)
    if isinstance(seen, dict):
        return [item["extension"]["value"] for item in seen["extensions"]]
    if len(texts) == 1:
        return [(seen,)]
    half = len(texts) // 2
    return kubectls_values(program, texts[:half], folder) + kubectls_values(program, texts[half:], folder)


def equal(ours: object, theirs: object) -> bool:
    """Equal as JSON: 1 is 1.0, and neither is true."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)):
        return isinstance(ours, bool) == isinstance(theirs, bool) and float(ours) == float(theirs)
    return type(ours) is type(theirs) and ours == theirs


def hold(program: str, texts: list[str], folder: Path) -> int:
    """Assert that kubectl reads each document that we accept as we do; returns how many those are."""
    accepted = []
    for text in filter(fits, texts):
        with contextlib.suppress(KubeconfigError):
            # With a last line break, which the document has as a part of another one.
            accepted.append((text, parse_yaml(f"{text}\n")))
    for (text, ours), theirs in zip(accepted, kubectls_values(program, [text for text, _ in accepted], folder)):
        assert equal(ours, theirs), f"{text!r}\nours: {ours!r}\ntheirs: {theirs!r}"
    return len(accepted)


def test_documents_of_the_tables_and_the_corpus_are_read_as_kubectl_reads_them(kubectl: str, tmp_path: Path) -> None:
    scalars = [form for text, _ in SCALARS for form in (text, f"a: {text}", f"[{text}]")]
    texts = [*scalars, *(text for text, _ in VALID), *(read(path).replace("\r\n", "\n") for path in ACCEPTED)]
    assert hold(kubectl, texts, tmp_path) > 180


def made_up(count: int) -> list[str]:
    """Documents of the corpus after a few edits, and what PyYAML dumps."""
    found: list[str] = []

    @settings(max_examples=count, derandomize=not EXAMPLES, deadline=None, phases=[Phase.generate])
    @given(mutated() | st.builds(lambda value, options: safe_dump(value, **options), structures, dump_options))
    def collect(text: str) -> None:
        found.append(text)

    collect()
    return found


def test_made_up_documents_are_read_as_kubectl_reads_them_or_refused(kubectl: str, tmp_path: Path) -> None:
    texts = made_up(EXAMPLES or 300)
    assert sum(hold(kubectl, texts[start : start + 200], tmp_path) for start in range(0, len(texts), 200)) > 50
