"""Nothing foreign is looked at for longer than its length deserves: ``re`` holds the interpreter's lock meanwhile."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import socket
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

import hooks
import jumpserver
import k8s_exec
import recorder
from tests.hostile import SIZE, slow
from tests.support import RunningServer

MODULES: list[types.ModuleType] = [jumpserver, hooks, k8s_exec, recorder]
LIMIT_SECONDS = 2  # of processor time; what is tried here takes some milliseconds, or it would take minutes
MAKER, MADE = "_text_pattern", {"_whole", "_rare"}  # of patterns that depend on what is asked for: who, and their names
METHODS = {"match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}


# ---- the patterns of the product


def held(value: object) -> Iterator[re.Pattern[Any]]:
    """The patterns in a value of a module or a class, however it holds them."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from held(item)
    elif isinstance(value, (tuple, list, set, frozenset)):
        for item in value:
            yield from held(item)


def patterns() -> dict[str, list[re.Pattern[Any]]]:
    """By the name that holds them, of modules and of the classes in them."""
    found: dict[str, list[re.Pattern[Any]]] = {}
    for module in MODULES:
        classes = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        for owner in (module, *(value for value in classes if isinstance(value, type))):
            for name, value in vars(owner).items():
                found.setdefault(name, []).extend(held(value))
    return {name: values for name, values in found.items() if values}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for module in MODULES:
        yield module.__name__, ast.parse(Path(str(module.__file__)).read_text())


def methods() -> dict[str, set[str]]:
    """Which methods are called on which names."""
    found: dict[str, set[str]] = {}
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                owner = node.func.value
                if isinstance(owner, ast.Subscript):
                    owner = owner.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                found.setdefault(name, set()).add(node.func.attr)
    return found


# ---- the tests


def test_every_pattern_of_the_product_takes_linear_time() -> None:
    used = methods()
    work = [
        (name, pattern, method)
        for name, found in sorted(patterns().items())
        for pattern in found
        for method in sorted(used.get(name, {"match"}))  # those that are handed around are matched, see below
    ]
    assert len(work) > 30
    assert slow(work) == []


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (re.compile(r"gzip\s*(;\s*q=(1(\.0*)?|0?\.\d*[1-9]\d*))?", re.I), "fullmatch"),
        (re.compile(r"[-+]?(?:0x[0-9]*|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][0-9]+)?)"), "fullmatch"),
        (re.compile(r"choose one of: \[([^\]]*)\]"), "search"),
        (re.compile(rb".*PATH|.*(OPTS|CONFIG.*)", re.I), "fullmatch"),
        (re.compile(r"[ \t]+$"), "sub"),
        (re.compile(r"(?:[a-z]+-?)+"), "fullmatch"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.pattern,
)
def test_a_pattern_that_is_not_linear_is_found(pattern: re.Pattern[Any], method: str) -> None:
    good = re.compile("a*b")
    assert slow([("good", good, "match"), ("bad", pattern, method), ("good", good, "fullmatch")]) == [f"bad.{method}"]


def test_every_pattern_is_compiled_where_it_is_found() -> None:
    """Not inside of a function, not by a call that takes the pattern as text, not under a name of another import."""
    for module, tree in trees():
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name != MAKER]
        inner = [node for function in functions for node in ast.walk(function)]
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ImportFrom) and node.module == "re"), module
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "re":
                where = f"{module}.py:{node.lineno}: re.{node.attr}"
                assert node.attr in ("compile", "escape", "Pattern", "Match") or isinstance(
                    getattr(re, node.attr), int
                ), where
                assert not (node.attr == "compile" and node in inner), where


def test_patterns_that_are_handed_around_are_only_matched() -> None:
    names = {*patterns(), *MADE, ""}  # "": methods of literals, which are str's
    for name, used in methods().items():
        if name not in names:
            assert not used & {"fullmatch", "search", "sub", "subn", "findall", "finditer"}, name


FOREIGN: dict[str, tuple[Callable[[str], object], list[tuple[str, str, str]]]] = {
    "explain_refusal": (
        lambda text: k8s_exec.explain_refusal(400, text.encode()),
        [("", "choose one of: [", ""), ("", "container not found", ""), ('{"message":"', 'exec: \\"', '"}')],
    ),
    "decode_status": (
        lambda text: k8s_exec.decode_status(text.encode()),
        [("", "[", ""), ('{"status":"', "\\u0000", '"}'), ('{"message":"', 'exec: \\"a', '","status":""}')],
    ),
    "explain_pod": (lambda text: k8s_exec.explain_pod(200, text.encode(), "", 0.0), [("", '{"status":', "")]),
    "printable": (k8s_exec.printable, [("", "\0", ""), ("", "a\0", "")]),
    "parse_message": (jumpserver.parse_message, [("", "[", ""), ("", "1", ""), ("0.", "1", ""), ("1e", "9", "")]),
    "parse_range": (lambda text: jumpserver.parse_range(text, 9), [("bytes=", "1", ""), ("bytes=", "1-", "")]),
    "verify_token": (lambda text: hooks.verify_token(text, "s" * 32), [("", "a.", ""), ("", "W1tb", ".a.b")]),
    "search": (
        lambda text: list(recorder.search(io.BytesIO(text.encode()), recorder.Wanted("secret"), lambda _: None)),
        [
            *(
                ('[1, "o", "', repeated, '"]\n')
                for repeated in ("s\\u001bPAs", "s\\u001b[0m", "\\u001b[0s", "s\\\\", "\\n")
            ),
            *(('[1, "o", "', repeated, 'secret"]') for repeated in ("\\", "\\n", "\\u001b]s", 'x"]\n[1, "o", "')),
            *(
                ("", repeated, "")
                for repeated in ('[1, "m", "s"]\n', '[1, "o", "s"]\n', 's"]\n[1, "o", "', 's"]\n["x"')
            ),
        ],
    ),
    "transcript": (
        lambda text: list(recorder.transcript(io.BytesIO(b'{"version": 2}\n' + text.encode()))),
        [
            *(
                ('[1, "o", "', repeated, '"]\n')
                for repeated in ("\\u001b]", "\\u001b[", "\\u001b[@", "\\t", "a\\b\\u001b[K")
            ),
            *(("", repeated, "") for repeated in ('[1, "o", "\\u001b]"]\n', '[1, "o", "\\u001b["]\n', "[", "[1")),
        ],
    ),
    "ShellMarks": (
        lambda text: recorder.ShellMarks().find(text.encode()),
        [
            ("", "\x1b]633;E;", ""),
            ("", "\x1b]633;E;a", "\x07"),
            ("\x1b]633;E;", "a\x1b", "\\"),
            ("", "\x1b]0;\x07", ""),
        ],
    ),
    "asks_for_secret": (
        lambda text: recorder.asks_for_secret(text.encode()),
        [("", "password", ""), ("", "\x1b[", ""), ("", "\x1b]", ""), ("", " ", ":")],
    ),
    "escape": (lambda text: recorder.escape(text.encode()), [("", "\0\n\\", "")]),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_bytes_cost_what_their_length_deserves(name: str) -> None:
    function, texts = FOREIGN[name]
    for start, repeated, end in texts:
        text = start + repeated * (SIZE // len(repeated)) + end
        before = time.thread_time()
        with contextlib.suppress(hooks.Denied, ValueError):
            function(text)
        assert time.thread_time() - before < LIMIT_SECONDS, repeated


def test_no_header_about_codings_stops_the_others(server: RunningServer) -> None:
    for coding in ("gzip;q=.", "gzip;q=0.", "gzip;q=1.", "gzip", "gzip;", "gzip;q="):
        for repeated in "10 ,;\t":
            before = time.process_time()
            with socket.create_connection(("127.0.0.1", server.port)) as sock, sock.makefile("rb") as answer:
                head = f"GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}{repeated * 30_000}x\r\n\r\n"
                sock.sendall(head.encode())
                assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
            assert time.process_time() - before < LIMIT_SECONDS, (coding, repeated)
