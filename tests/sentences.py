"""What the program can say: all sentences in the four modules and in the pages.

Not a list of who says something, which would miss the next one, but all texts there are, less those that a rule leaves
out. A text of two words or more is taken for a sentence, or for a part of one; ``…`` stands for what is filled in.
"""

from __future__ import annotations

import ast
import functools
import html
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = ("jumpserver.py", "hooks.py", "k8s_exec.py", "recorder.py")

# Whose arguments are no sentences: patterns, SQL, and what --help prints.
_CALLS = {"compile", "execute", "ArgumentParser", "add_argument", "add_parser", "_add_command", "_add_since"}
# Names of texts that are none, or stand elsewhere: the numbers in operate.md, the rest nowhere.
_NAMES = {"COUNTERS", "HISTOGRAMS", "GAUGES", "summary", "meaning", "forms"}
_NAMES |= {"_UNFINISHED", "_CONTENT_SECURITY_POLICY", "_CORS_EXPOSED", "_CORS_PREFLIGHT", "_NEWER_COLUMNS"}
_NAMES |= {"_CONTROL_SEQUENCE"}
_FUNCTIONS = {"_head"}
_FORMS = re.compile(
    r".*\n.*"  # scripts, tables, what init and demo print
    r"|.*(?:SELECT|INSERT|DELETE|UPDATE|ALTER|PRAGMA|IS (?:NOT )?NULL| ON | = \?|FROM ).*"
    r"|[A-Z][A-Za-z-]+: ?.*"  # headers
    r"|\w+/[\w+-]+; .*|.*%\(\w+\)s.*|[^a-z]*"
    r"|.*(?:\[jumpserver\]|JUMPSERVER_SESSION).*",
    re.S,
)
# Single texts that are left out, by the reason.
LEFT_OUT = {
    "caught where it is raised": {
        *(
            "a zone",
            "another form",
            "no such port",
            "beyond all calendars",
            "too long",
            "not signed by us",
            "not base64url",
            "no zone",
        ),
        *("not a message of this protocol", "not …", "no such bytes", "no argument of a program can hold it"),
        *("'%' in a host name", "columns and rows are whole numbers from 1 to 65535", "timed out", "no HTTP answer"),
    },
    "fills a … in another": {
        *("platform_url in [Server]", "… in [Platform]", "… in […]", "… minutes", "… seconds", "the ledger"),
        *("cluster …", "… of session …", "the recording of session …, …,", "'key: value'", "a value", "no user"),
        *("… in [Clusters]", "program by that name", "program …", "the kubeconfig", "…, env", "…, exec", "… faults"),
    },
    "goes before another": {"jumpserver: …", "jumpserver: …: …", "jumpserver: …: warning: …", "line …, column …: …"},
    "the cluster's words": {"container not found", "is not valid for pod", "choose one of: [", "is not running"},
    "beside a bar that moves": {"MB searched", "recordings retired"},
    "for systemd": {"STATUS=… sessions"},
    "replaced in a file": {
        *('secret = ""', 'secret = "…"', 'name="platform-url" content="…"'),
        "/opt/jumpserver/.venv/bin/python /opt/jumpserver/jumpserver.py",
    },
    "no sentence": {
        *("private, no-cache", "bytes */…", "bytes …-…/…", "Upgrade, close", "tuple[int | None, bool]"),
        *("words …", "text …", "(login_at, session_id) < (…)", "session_id IN (… UNION ALL …)"),
        *("content = commands, content_rowid = number, tokenize = trigram", '0abt\tnvfre "/\\N_LP'),
    },
    "the meaning of a number": {"The version that runs."},
}


def of_module(name: str) -> set[str]:
    """The sentences of a module."""
    return texts_of_module(name) - set().union(*LEFT_OUT.values())


@functools.cache
def texts_of_module(name: str) -> set[str]:
    """The same, with those in LEFT_OUT."""
    tree = ast.parse((ROOT / name).read_text("utf-8"))
    return {text for text in map(plain, _texts(tree)) if " " in text and not _FORMS.fullmatch(text)}


def plain(text: str) -> str:
    """As it stands in the page: one … for what is filled in, none where it begins, as with the name of a file."""
    return re.sub(r"…+", "…", text.strip()).removeprefix("…: ").strip()


def _texts(node: ast.AST) -> Iterator[str]:
    """All texts below a node that no rule about their place leaves out."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
        node.body = node.body[1:]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                yield from _texts(part.value)
        return
    if not _is_left_out(node):
        for child in ast.iter_child_nodes(node):
            yield from _texts(child)


def _is_left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).rpartition(".")[2] in _CALLS
    if isinstance(node, ast.FunctionDef):
        return node.name in _FUNCTIONS
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(ast.unparse(target) in _NAMES for target in targets)


@functools.cache
def of_pages() -> set[str]:
    """The sentences of the pages: texts of three words or more that end with a full stop."""
    found: list[str] = []
    for script in (ROOT / "static").glob("*.js"):
        code = re.sub(r"(?m)^\s*//.*$", "", script.read_text("utf-8"))
        code = re.sub(r'"\s*\+\s*"', "", code)
        quoted = re.findall(r'"((?:[^"\\\n]|\\.)*)"|`((?:[^`\\]|\\.)*)`', code)
        found += [re.sub(r"\$?\{[^}]*\}", "…", double or back) for double, back in quoted]
    for page in (ROOT / "static").glob("*.html"):
        found += map(html.unescape, re.findall(r">\s*([^<>]+?)\s*<", page.read_text("utf-8")))
    texts = {text.encode().decode("unicode_escape") if "\\u" in text else text for text in found}
    return {text for text in map(plain, texts) if re.fullmatch(r".*[a-z].* .* .*\.", text)}
