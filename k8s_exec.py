"""How is a pod reached? Kubeconfig documents, TLS, and the Kubernetes exec protocol.

Owns the YAML subset of kubeconfig files, the credentials in them, and the WebSocket to the kube-apiserver's
exec endpoint (subprotocol ``v4.channel.k8s.io``). Knows nothing of browsers, recordings or HTTP serving.

A kubeconfig arrives from the network, so it is untrusted: it is parsed within limits, and whatever would make
this host run a program or read a file of its own is refused. No secret of it appears in an error or a ``repr``.

Where is what: errors; YAML; the kubeconfig; the exec protocol as pure functions; WebSocket frames; TLS; credentials;
the network: addresses, proxies, requests; ``PodExec``; a shell, from its start to its hang-up.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import errno
import functools
import http.client
import ipaddress
import itertools
import json
import math
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, NoReturn

import websocket

__all__ = [
    "KEEP_ALIVE_SECONDS",
    "Cluster",
    "ExecError",
    "ExecRefused",
    "ExitStatus",
    "HangUp",
    "KubeconfigError",
    "PodExec",
    "PodLost",
    "Shell",
    "Target",
    "Trust",
    "hang_up",
    "in_cluster",
    "load_kubeconfig",
    "open_shell",
    "parse_yaml",
    "why_lost",
]

# -- errors ----------------------------------------------------------------------------------------------------------


class ExecError(Exception):
    """Base of everything that this module raises on purpose. ``str()`` holds no secret."""


class KubeconfigError(ExecError):
    """A kubeconfig is not usable. `line` and `column` count from 1; they are None when no place is to blame.

    The message never holds a value from the document: kubeconfigs hold keys and tokens.
    """

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message, line, column)
        self.message = message
        self.line = line
        self.column = column

    def __str__(self) -> str:
        if self.line is None:
            return self.message
        return f"line {self.line}, column {self.column}: {self.message}"


class ExecRefused(ExecError):
    """The cluster cannot be reached or says no. ``str()`` is a sentence for the user; ``status`` HTTP's, or 0."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class SeveralContainers(ExecRefused):
    """The pod has several containers, and nothing says which is meant. ``names`` are those that may be chosen."""

    def __init__(self, refused: ExecRefused, names: tuple[str, ...]) -> None:
        super().__init__(refused.status, str(refused))
        self.names = names


class PodLost(ExecError):
    """The connection to the pod ended without an exit status. ``str()`` is a sentence for the user."""


# -- YAML ------------------------------------------------------------------------------------------------------------

YAML_MAX_INPUT_BYTES = 1024 * 1024  # characters, when the document comes as str
YAML_MAX_DEPTH = 50  # collections inside of collections, also by way of aliases
YAML_MAX_NODES = 50_000  # an alias counts as all that it stands for
YAML_MAX_KEY_CHARS = 1024  # with its colon (7.4.2)

_BLANK = frozenset(" \t")
_END = frozenset(("", "\n"))  # "" is what _peek() says at the end of the text
_SPACE = _BLANK | _END
_QUOTES = frozenset("\"'")
_FLOW_INDICATORS = frozenset(",[]{}")
_NEVER_FIRST = _FLOW_INDICATORS | _QUOTES | _SPACE | frozenset("#&*!|>%@`")  # of a plain scalar (5.3, 7.3.3)
_FIRST_BEFORE_TEXT = frozenset("-?:")
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_ESCAPES = dict(zip('0abt\tnvfre "/\\N_LP', '\0\a\b\t\t\n\v\f\r\x1b "/\\\x85\xa0\u2028\u2029'))
_REFUSED_INDICATORS = {
    "!": "tags are not supported",
    "?": "'? ' keys are not supported",
    "%": "directives are not supported, and no plain text begins with '%'",
    "-": "a list is not allowed here",
}

_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# Booleans in YAML 1.1 and so to kubectl (`name: no` is "false" to it), text in YAML 1.2.
_OLD_BOOLS = frozenset(
    form for word in ("y", "n", "yes", "no", "on", "off") for form in (word, word.capitalize(), word.upper())
)
# Numbers on which YAML 1.1, YAML 1.2 and kubectl agree; whatever else is one to any of them is refused.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,18}(?:[eE][-+][0-9]{1,2})?")
_NUMBER_LIKE = re.compile(
    r"[-+]?(?:0[bB][01]*|0[oO][0-7]*|0[xX][0-9a-fA-F]*|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF|nan|NaN|NAN))"
)

# 5.1, less the line breaks of YAML 1.1 only (U+0085, U+2028, U+2029) and a BOM that does not come first.
_FORBIDDEN = re.compile("[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_BLANKS = re.compile(r"[ \t]*")
_REST_OF_LINE = re.compile(r"[^\n]*")
_BREAKS = re.compile(r"[ \t]*\n(?:[ \t]*\n)*( *)[ \t]*")  # group 1 indents the next line that is not blank
_COLON = re.compile(r"[ \t]*:(?=[ \t\n]|\Z)")
_COLON_AFTER_QUOTE = re.compile(r"[ \t]*:")  # in a flow map, as JSON has it (7.4.2)
_QUOTED_LINE = re.compile(r""""(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\n]|'')*'""")
_QUOTED_TEXT = {
    "'": re.compile(r"[^'\n \t]+|[ \t]+(?=[^\n \t])"),
    '"': re.compile(r'[^"\\\n \t]+|[ \t]+(?=[^\n \t])'),
}
# What a line can hold of a plain scalar (7.3.3): up to ": " or " #", in a flow collection up to an indicator.
_PLAIN = re.compile(r"(?:[^ \t\n:#]+|:(?=[^ \t\n])|(?<=[^ \t\n])#|[ \t]+(?=[^ \t\n:#]|:[^ \t\n]))+")
_PLAIN_IN_FLOW = re.compile(
    r"(?:[^ \t\n:#,?\[\]{}]+|:(?=[^ \t\n,\[\]{}])|(?<=[^ \t\n])#"
    r"|[ \t]+(?=[^ \t\n:#,?\[\]{}]|:[^ \t\n,\[\]{}]))+"
)
_PLAIN_ENDS = re.compile(r"#|(?<![^\n])(?:---|\.\.\.)(?:[ \t\n]|\Z)")  # at the first text of a further line
_ANCHOR_NAME = re.compile(r"[A-Za-z0-9_-]+(?=[ \t\n,\[\]{}]|\Z)")
_BLOCK_HEADER = re.compile(r"[|>](?:([1-9])([+-]?)|([+-])([1-9]?))?(?=[ \t\n]|\Z)")
_BLOCK_START = re.compile(r"(?: *\n)* *")


def parse_yaml(text: str | bytes) -> object:
    """The one document in `text` as dict, list, str, int, float, bool or None; an empty one is None.

    Reads what kubectl and the tools around it write: block and flow collections, JSON, all five scalar
    styles, comments, anchors, aliases (they share the object) and `<<`. Keys are text and occur once.
    Raises KubeconfigError, with the place, for everything else, and nothing but KubeconfigError.
    """
    if len(text) > YAML_MAX_INPUT_BYTES:
        raise KubeconfigError("the document is larger than 1 MiB")
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")  # what is not UTF-8 becomes forbidden characters
    if text.startswith("\ufeff"):
        text = text[1:]
    parser = _YamlParser(text.replace("\r\n", "\n").replace("\r", "\n"))
    try:
        return parser.document()
    except RecursionError:
        raise KubeconfigError("the document is nested too deeply") from None


class _YamlParser:
    """Recursive descent over `text`. `pos` is where it reads, `line_start` where the line of `pos` begins.

    `indent` is always the column (from 0) of the block collection around a node, -1 for none: further lines
    of the node stand to the right of it (6.1).
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.line_start = 0
        self.depth = 0
        self.deepest = 0  # since the anchored node that is being read began
        self.nodes = 0
        self.anchors: dict[str, tuple[object, int, int]] = {}  # name: value, nodes, levels

    def fail(self, message: str, pos: int | None = None) -> NoReturn:
        pos = self.pos if pos is None else pos
        line = self.text.count("\n", 0, pos) + 1
        raise KubeconfigError(message, line, pos - self.text.rfind("\n", 0, pos))

    def document(self) -> object:
        """The only document of the stream (9.2)."""
        bad = _FORBIDDEN.search(self.text)
        if bad:
            surrogate = "\ud800" <= bad.group() <= "\udfff"
            reason = "not UTF-8" if surrogate else f"the character U+{ord(bad.group()):04X} is not allowed"
            self.fail(reason, bad.start())
        self._skip_gap()
        if self._at_marker("..."):
            self.fail("'...' before a document")
        marked = self._at_marker("---")
        self.pos += 3 if marked else 0
        value = self._block_node(-1, own_line=not marked)
        self._skip_gap()
        if self._at_marker("..."):
            self.pos += 3
            self._end_line()
            self._skip_gap()
        if self._at_marker("---"):
            self.fail("more than one document")
        if self._peek():
            self.fail("unexpected text after the document")
        return value

    # Moving on

    def _peek(self, ahead: int = 0) -> str:
        return self.text[self.pos + ahead : self.pos + ahead + 1]

    def _move(self, pos: int) -> None:
        """Move on to `pos`; every step over a line break goes through here."""
        self.line_start = self.text.rfind("\n", self.pos, pos) + 1 or self.line_start
        self.pos = pos

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.pos)
        self._move(match.end() if match else self.pos)

    def _skip_gap(self) -> bool:
        """Go to the next token, over blanks, comments and line breaks (6.7). True if on another line."""
        line_start = self.line_start
        self._skip(_BLANKS)
        while self._at_comment() or self._peek() == "\n":
            self._skip(_REST_OF_LINE)
            self._skip(_BREAKS)
        return self.line_start != line_start

    def _at_comment(self) -> bool:
        return self._peek() == "#" and (self.pos == self.line_start or self.text[self.pos - 1] in _BLANK)

    def _at_marker(self, *markers: str) -> bool:
        """Is this the line of a document marker, by default of either (9.1.2)?"""
        if self.pos != self.line_start or self._peek(3) not in _SPACE:
            return False
        return self.text.startswith(markers or ("---", "..."), self.pos)

    def _at_dash(self) -> bool:
        return self._peek() == "-" and self._peek(1) in _SPACE

    def _column(self) -> int:
        return self.pos - self.line_start

    def _end_line(self) -> None:
        """Only blanks and a comment may stand between here and the end of the line."""
        self._skip(_BLANKS)
        if self._peek() == ":":
            self.fail("a 'key: value' is not allowed here")
        if self._peek() not in _END and not self._at_comment():
            self.fail(f"unexpected {self._peek()!r} after a value")

    def _refuse(self, expected: str) -> NoReturn:
        self.fail(_REFUSED_INDICATORS.get(self._peek(), f"expected {expected}, not {self._peek()!r}"))

    def _count(self, nodes: int, levels: int) -> None:
        """Account for a node with so many nodes and levels of collections in it."""
        self.nodes += nodes
        self.deepest = max(self.deepest, self.depth + levels)
        if self.nodes > YAML_MAX_NODES:
            self.fail(f"more than {YAML_MAX_NODES} values, aliases counted in full")
        if self.depth + levels > YAML_MAX_DEPTH:
            self.fail(f"more than {YAML_MAX_DEPTH} levels of nesting")

    # Block style (chapter 8)

    def _block_node(
        self, indent: int, *, own_line: bool = False, after_key: bool = False, anchored: bool = False
    ) -> object:
        """The node after `key:`, after `- ` or at the start; None for one that is left empty.

        `own_line`: a block collection may begin on this very line (8.2.1, compact forms).
        """
        self._count(1, 0)
        new_line = self._skip_gap()
        if not self._peek() or self._at_marker():
            return None
        if new_line or (indent < 0 and own_line):
            self._refuse_tab_indent()
        beside_key = after_key and self._column() == indent and self._at_dash()
        if new_line and self._column() <= indent and not beside_key:
            return None
        if self._peek() in ("&", "*") and anchored:
            self.fail("a second anchor or alias for one node")
        if self._peek() == "&":
            return self._anchored(lambda: self._block_node(indent, after_key=after_key, anchored=True))
        # A tab after `- ` separates, but gives a compact collection no column.
        if new_line or (own_line and "\t" not in self.text[self.line_start : self.pos]):
            if self._at_dash():
                return self._block_list()
            column = self._column()
            key = self._key({}, _PLAIN)
            if key is not None:
                return self._block_map(column, key)
        if self._peek() in ("|", ">"):
            return self._block_scalar(indent)
        value = self._inline_node(indent)
        self._end_line()
        return value

    def _refuse_tab_indent(self) -> None:
        """At the first token of a line (6.1)."""
        tab = self.text.find("\t", self.line_start, self.pos)
        if tab >= 0:
            self.fail("a tab is used as indentation", tab)

    def _next_entry(self, column: int) -> bool:
        """Go to the next entry of the block collection at `column`; False when it has ended."""
        self._skip_gap()
        if not self._peek() or self._at_marker():
            return False
        self._refuse_tab_indent()
        if self._column() > column:
            self.fail("the indentation fits nothing above")
        return self._column() == column

    def _block_list(self) -> list[object]:
        """8.2.1; `pos` is at the first dash."""
        self.depth += 1
        self._count(0, 0)
        column = self._column()
        items: list[object] = []
        while not items or (self._next_entry(column) and self._at_dash()):
            self.pos += 1
            items.append(self._block_node(column, own_line=True))
        self.depth -= 1
        return items

    def _block_map(self, column: int, key: str | None) -> dict[str, object]:
        """8.2.2; the first key and its colon have been read."""
        self.depth += 1
        self._count(0, 0)
        entries: dict[str, object] = {}
        while key is not None:
            entries[key] = self._block_node(column, after_key=True)
            if not self._next_entry(column):
                self.depth -= 1
                return self._merged(entries)
            key = self._key(entries, _PLAIN)
        self._refuse("'key: value'")

    def _key(self, entries: dict[str, object], plain: re.Pattern[str]) -> str | None:
        """Read a key that is not in `entries` and its colon, on one line (7.4.2, 8.2.2).

        None, and `pos` unmoved, if there is none here.
        """
        start, in_quotes = self.pos, self._peek() in _QUOTES
        match = _QUOTED_LINE.match(self.text, start) if in_quotes else self._plain_line(plain)
        in_json = in_quotes and plain is _PLAIN_IN_FLOW
        colon = match and (_COLON_AFTER_QUOTE if in_json else _COLON).match(self.text, match.end())
        if not match or not colon:
            return None
        if colon.end() - start > YAML_MAX_KEY_CHARS:
            self.fail(f"a key of more than {YAML_MAX_KEY_CHARS} characters")
        text = match.group()
        key = self._quoted() if in_quotes else text if text == "<<" else self._resolve(text, start)
        if not isinstance(key, str) or (in_quotes and key == "<<"):
            self.fail("a key must be text, in quotes if need be, and not '<<' in quotes", start)
        if key in entries:
            self.fail("a key occurs twice", start)
        self.pos = colon.end()
        return key

    def _merged(self, entries: dict[str, object]) -> dict[str, object]:
        """The entries that `<<` names join those of the map itself, which win; then the first one wins.

        Refused where `<<` brings a key that stands before it: kubectl lets what comes last win, others the map.
        """
        if "<<" in entries:
            before = frozenset(itertools.takewhile(lambda key: key != "<<", entries))
            value = entries.pop("<<")
            for source in value if isinstance(value, list) else [value]:
                if not isinstance(source, dict):
                    self.fail("'<<' in the map before this takes a map or a list of maps")
                if not before.isdisjoint(source):
                    self.fail("'<<' in the map before this brings a key that stands before it; put '<<' first")
                for key, item in source.items():
                    entries.setdefault(key, item)
        return entries

    def _block_scalar(self, indent: int) -> str:
        """`|` and `>` with their indicators of indentation and chomping (8.1)."""
        header = _BLOCK_HEADER.match(self.text, self.pos)
        if not header:
            self.fail("not the header of a block scalar")
        digit, chomp = header.group(1) or header.group(4), header.group(2) or header.group(3)
        self.pos = header.end()
        self._end_line()
        self._skip(_REST_OF_LINE)
        self._move(min(self.pos + 1, len(self.text)))
        lines = self._block_lines(max(indent, 0) + int(digit) if digit else self._detect_width(indent))
        blank_lines = 0
        while lines and lines[-1] in _END:
            blank_lines += len(lines.pop())
        text = "".join(lines) if header.group()[0] == "|" else _fold_block(lines)
        if chomp == "-" and text[-1:] == "\n":
            return text[:-1]
        return text + "\n" * blank_lines if chomp == "+" else text

    def _detect_width(self, indent: int) -> int:
        """The column of the first line that is not blank (8.1.1.1)."""
        match = _BLOCK_START.match(self.text, self.pos)
        *blank, first = (match.group() if match else "").split("\n")
        width = max(len(first), indent + 1, 1)
        if any(len(line) > width for line in blank):
            self.fail("a blank line reaches further than the indentation of its block scalar")
        return width

    def _block_lines(self, width: int) -> list[str]:
        """The lines of a block scalar with their breaks, without their indentation."""
        lines: list[str] = []
        pos = self.pos
        while pos < len(self.text):
            end = self.text.find("\n", pos) + 1 or len(self.text)
            line = self.text[pos:end]
            indentation = len(line) - len(line.lstrip(" "))
            if indentation < width and line[indentation:] not in _END:
                if line[indentation] == "\t":
                    self.fail("a tab is used as indentation", pos + indentation)
                break
            lines.append(line[min(indentation, width) :])
            pos = end
        self._move(pos)
        return lines

    # Flow style (chapter 7)

    def _inline_node(self, indent: int | None) -> object:
        """An alias, a flow collection or a flow scalar; `indent` is None inside of a flow collection."""
        char = self._peek()
        if char == "*":
            return self._alias()
        if char in _QUOTES:
            return self._quoted()
        if char == "[":
            return self._flow_list()
        if char == "{":
            return self._flow_map()
        return self._plain(indent)

    def _flow_node(self, *, anchored: bool = False) -> object:
        """A node inside of a flow collection; None for one that is left empty."""
        self._count(1, 0)
        self._skip_flow_gap()
        if self._peek() in ("&", "*") and anchored:
            self.fail("a second anchor or alias for one node")
        if self._peek() == "&":
            return self._anchored(lambda: self._flow_node(anchored=True))
        return None if self._peek() in (",", "]", "}") else self._inline_node(None)

    def _skip_flow_gap(self) -> None:
        self._skip_gap()
        if not self._peek() or self._at_marker():
            self.fail("a '[' or '{' is not closed")

    def _next_flow_entry(self, close: str, *, first: bool) -> bool:
        """Go to the next entry of a flow collection; False, and past `close`, at its end."""
        self._skip_flow_gap()
        if not first and self._peek() == ",":
            self.pos += 1
            self._skip_flow_gap()
        elif not first and self._peek() != close:
            self.fail(f"expected ',' or {close!r}")
        if self._peek() == ",":
            self.fail("expected a value before ','")
        if self._peek() != close:
            return True
        self.pos += 1
        return False

    def _flow_list(self) -> list[object]:
        """7.4.1, without the form `[key: value]`."""
        self.depth += 1
        self._count(0, 0)
        self.pos += 1
        items: list[object] = []
        while self._next_flow_entry("]", first=not items):
            items.append(self._flow_node())
        self.depth -= 1
        return items

    def _flow_map(self) -> dict[str, object]:
        """7.4.2, without keys that have no colon."""
        self.depth += 1
        self._count(0, 0)
        self.pos += 1
        entries: dict[str, object] = {}
        while self._next_flow_entry("}", first=not entries):
            key = self._key(entries, _PLAIN_IN_FLOW)
            if key is None:
                self._refuse("'key: value'")
            entries[key] = self._flow_node()
        self.depth -= 1
        return self._merged(entries)

    # Anchors and aliases (6.9.2, 7.1)

    def _anchor_name(self) -> str:
        """The name after `&` or `*`."""
        match = _ANCHOR_NAME.match(self.text, self.pos + 1)
        if not match:
            self.fail("not an anchor name of letters, digits, '-' and '_'")
        self.pos = match.end()
        return match.group()

    def _anchored(self, read_node: Callable[[], object]) -> object:
        """A node with an anchor. The name is known only after the node, so nothing can hold itself."""
        start, nodes_before, deepest_before = self.pos, self.nodes, self.deepest
        name = self._anchor_name()
        self.deepest = self.depth
        value = read_node()
        if name in self.anchors:
            self.fail("an anchor is defined twice", start)
        self.anchors[name] = value, self.nodes - nodes_before, self.deepest - self.depth
        self.deepest = max(self.deepest, deepest_before)
        return value

    def _alias(self) -> object:
        start = self.pos
        name = self._anchor_name()
        if name not in self.anchors:
            self.fail("an alias without an anchor before it", start)
        value, nodes, levels = self.anchors[name]
        self._count(nodes, levels)
        return value

    # Flow scalars (7.3)

    def _quoted(self) -> str:
        """A single- or double-quoted scalar, folded over lines (7.3.1, 7.3.2)."""
        start, quote = self.pos, self._peek()
        text = _QUOTED_TEXT[quote]
        parts: list[str] = []
        self.pos += 1
        while True:
            match = text.match(self.text, self.pos)
            if match:
                parts.append(match.group())
                self.pos = match.end()
            elif self._peek() == "\\":
                parts.append(self._escape(start))
            elif self._peek() != quote:
                parts.append(self._fold_quoted(start))
            elif quote == "'" and self._peek(1) == "'":
                parts.append("'")
                self.pos += 2
            else:
                self.pos += 1
                return "".join(parts)

    def _fold_quoted(self, start: int) -> str:
        """Blanks and line breaks of the scalar that began at `start` as a space or line breaks (6.5)."""
        breaks = _BREAKS.match(self.text, self.pos)
        if not breaks or breaks.end() == len(self.text):
            self.fail("a quote is not closed", start)
        self._move(breaks.end())
        if self._at_marker():
            self.fail("a document marker inside of quotes")
        return _folded(breaks.group().count("\n"))

    def _escape(self, start: int) -> str:
        """One escape sequence of the double-quoted scalar that began at `start` (5.7)."""
        code = self._peek(1)
        if code == "\n":  # an escaped line break leaves no space
            self.pos += 1
            return self._fold_quoted(start).lstrip(" ")
        digits = self.text[self.pos + 2 : self.pos + 2 + _HEX_ESCAPES.get(code, 0)]
        if code in _HEX_ESCAPES:
            if len(digits) < _HEX_ESCAPES[code] or not _HEX_DIGITS.issuperset(digits):
                self.fail(f"expected {_HEX_ESCAPES[code]} hexadecimal digits")
            number = int(digits, 16)
            if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
                self.fail("an escape sequence that is not a character")
        elif code not in _ESCAPES:
            self.fail("not a YAML escape sequence")
        self.pos += 2 + len(digits)
        return chr(number) if digits else _ESCAPES[code]

    def _plain_line(self, plain: re.Pattern[str]) -> re.Match[str] | None:
        """The first line of a plain scalar, if one may begin here (7.3.3)."""
        char, after = self._peek(), self._peek(1)
        if char in _FIRST_BEFORE_TEXT:
            in_flow = plain is _PLAIN_IN_FLOW
            if after in _SPACE or (in_flow and (char != "-" or after in _FLOW_INDICATORS)):
                return None
        return None if char in _NEVER_FIRST else plain.match(self.text, self.pos)

    def _plain(self, indent: int | None) -> object:
        """A plain scalar, folded over lines (7.3.3); `indent` is None inside of a flow collection."""
        start, plain = self.pos, _PLAIN_IN_FLOW if indent is None else _PLAIN
        match = self._plain_line(plain)
        if not match:
            self._refuse("a value")
        text = [match.group()]
        while match:
            self._move(match.end())
            breaks = _BREAKS.match(self.text, self.pos)
            if not breaks or (indent is not None and len(breaks.group(1)) <= indent):
                break
            end = breaks.end()
            match = None if _PLAIN_ENDS.match(self.text, end) else plain.match(self.text, end)
            if match:
                text += _folded(breaks.group().count("\n")), match.group()
        return self._resolve("".join(text), start)

    def _resolve(self, text: str, start: int) -> object:
        """The value of a plain scalar: the core schema (10.3.2) where YAML 1.1 and kubectl read the same."""
        if text in _NULLS:
            return None
        if text in _BOOLS:
            return _BOOLS[text]
        if text in _OLD_BOOLS:
            self.fail("a boolean to some readers and text to others; use quotes, true or false", start)
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _NUMBER_LIKE.fullmatch(text[0] + text[1:].replace("_", "")):
            self.fail("a number that readers take differently; put it in quotes", start)
        if text == "<<":
            self.fail("'<<' is a key only; put it in quotes", start)
        return text


def _folded(breaks: int) -> str:
    """What line breaks between two lines of text stand for (6.5)."""
    return " " if breaks == 1 else "\n" * (breaks - 1)


def _fold_block(lines: list[str]) -> str:
    """The lines of a `>` scalar; lines that begin with a blank keep the breaks around them (8.1.3)."""
    parts: list[str] = []
    previous, breaks = " ", 0
    for line in lines:
        if line != "\n":
            keep = previous[0] in _BLANK or line[0] in _BLANK
            parts += "\n" * breaks if keep else _folded(breaks), line.rstrip("\n")
            previous, breaks = line, 0
        breaks += 1
    return "".join(parts) + ("\n" if lines and lines[-1][-1] == "\n" else "")


# -- kubeconfig ------------------------------------------------------------------------------------------------------

FILE_LIMIT_BYTES = 1 << 20
SERVICE_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_HEADER_TEXT = re.compile(r"[\x20-\x7e]*")
_URL_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/\[\]%@!$&'()*+,;=-]+")
_HOST_CHARACTERS = re.compile(r"[A-Za-z0-9._:\[\]-]{0,255}")
_ZONE = re.compile(r"[A-Za-z0-9._~-]+")
_AUTH_API = "client.authentication.k8s.io/"
_NO_FILE = "files of this host may not be named by this kubeconfig (see allow_files)"
_NO_PLUGIN = "this kubeconfig may not run this program (see allow_exec)"


@dataclass(frozen=True)
class Trust:
    """What a kubeconfig may make this host do. By default nothing but open connections to other hosts."""

    folder: Path | None = None  # of a file of the operator's: all is allowed, relative paths start here
    allow_exec: tuple[str, ...] = ()  # commands of credential plugins
    allow_env: tuple[str, ...] = ()  # variables that may be set for them
    allow_files: tuple[Path, ...] = ()  # folders whose files may be read
    allow_servers: tuple[str, ...] = ()  # host names, *.domains, addresses, networks; empty: all but local addresses


@dataclass(frozen=True)
class Plugin:
    """A program that makes credentials (client-go's ``exec``). ``info`` is what KUBERNETES_EXEC_INFO tells it."""

    command: str
    args: tuple[str, ...] = field(default=(), repr=False)
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    info: str = field(default="", repr=False)
    install_hint: str = ""


@dataclass(frozen=True)
class User:
    """Who we are in a cluster. Nothing of it shows in ``repr``."""

    certificate_pem: bytes = field(default=b"", repr=False)
    key_pem: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)
    token_file: Path | None = field(default=None, repr=False)
    basic: str = field(default="", repr=False)  # user:password
    impersonation: tuple[str, ...] = field(default=(), repr=False)  # header lines
    plugin: Plugin | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Cluster:
    """Where a cluster is and who we are there."""

    host: str
    port: int
    path_prefix: str = ""
    namespace: str = "default"
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    ca_pem: str = field(default="", repr=False)
    proxy_url: str = field(default="", repr=False)
    allow_servers: tuple[str, ...] | None = None  # as in Trust; None: any, it is the operator's own
    user: User = User()


# The same few documents come again and again. Measured: a tenth of the processor time of a login.
_CACHED_CHARACTERS = 1 << 14
_parse_again = functools.lru_cache(maxsize=32)(parse_yaml)


def load_kubeconfig(text: str | bytes, context: str | None = None, trust: Trust = Trust()) -> Cluster:
    """Read the named context, or the current one, of a kubeconfig in YAML or JSON.

    Reads the files that it names, where ``trust`` allows them. Raises KubeconfigError for what cannot be read, what
    is missing, what is not allowed, and what would have to be guessed.
    """
    document = _parse_again(text) if len(text) <= _CACHED_CHARACTERS else parse_yaml(text)
    if not isinstance(document, dict):
        raise KubeconfigError("a kubeconfig is a map with clusters, users and contexts")
    name = context or _Entry(document, "the kubeconfig", trust).text("current-context")
    if not name:
        raise KubeconfigError("the kubeconfig has no current-context")
    chosen = _Entry.named(document, "contexts", "context", name, trust)
    user_name = chosen.text("user")
    user = _Entry.named(document, "users", "user", user_name, trust) if user_name else _Entry({}, "no user", trust)
    cluster = _Entry.named(document, "clusters", "cluster", chosen.text("cluster"), trust)
    return _cluster(cluster, user, chosen.text("namespace"))


def in_cluster() -> Cluster:
    """The cluster that this server itself runs in, as its service account. Raises KubeconfigError outside of one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not port.isdigit():
        raise KubeconfigError("no kubeconfig was given, and this server does not run in a cluster")
    folder = SERVICE_ACCOUNT_FOLDER
    try:
        ca, namespace = (folder / "ca.crt").read_text("latin-1"), (folder / "namespace").read_text("ascii").strip()
    except (OSError, ValueError):
        raise KubeconfigError("no kubeconfig was given, and the pod of this server has no service account") from None
    return Cluster(host, int(port), namespace=namespace, ca_pem=ca, user=User(token_file=folder / "token"))


class _Entry:
    """One map of a kubeconfig; its values are taken by type, and errors name the key but no value."""

    def __init__(self, values: dict[str, Any], where: str, trust: Trust) -> None:
        self.values = values
        self.where = where
        self.trust = trust

    @classmethod
    def named(cls, document: dict[str, Any], section: str, key: str, name: str, trust: Trust) -> _Entry:
        """The map under ``key`` of the first entry of that name in a list of ``{name: …, key: {…}}``."""
        entries = document.get(section)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and entry.get("name") == name:
                value = {} if entry.get(key) is None else entry[key]
                if isinstance(value, dict):
                    return cls(value, f"{key} {printable(name)!r}", trust)
        raise KubeconfigError(f"the kubeconfig has no {key} named {printable(name)!r} under {section}")

    def fail(self, key: str, why: str) -> NoReturn:
        raise KubeconfigError(f"{self.where}: {key}: {why}")

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self.fail(key, "must be text")
        return value or ""

    def header_text(self, key: str) -> str:
        text = self.text(key).strip()
        if not _HEADER_TEXT.fullmatch(text):
            self.fail(key, "has characters that cannot stand in a header")
        return text

    def boolean(self, key: str) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            self.fail(key, "must be true or false")
        return bool(value)

    def list_of(self, key: str, kind: type) -> list[Any]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            self.fail(key, f"must be a list of {'texts' if kind is str else 'maps'}")
        return value

    def map(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(key, "must be a map")
        return value or {}

    def path(self, key: str) -> Path | None:
        """The file that is named, if it may be read."""
        name = self.text(key)
        if not name:
            return None
        if self.trust.folder is not None:
            return self.trust.folder / name
        try:
            path = Path(name).resolve(strict=True)
            if any(folder.resolve() in path.parents for folder in self.trust.allow_files):
                return path
        except (OSError, ValueError, RuntimeError):
            pass
        self.fail(key, _NO_FILE)

    def pem(self, key: str) -> bytes:
        """What stands as base64 under ``key``-data, else what the file under ``key`` holds."""
        data = self.text(f"{key}-data")
        if data:
            try:
                return base64.b64decode("".join(data.split()), validate=True)
            except ValueError:
                self.fail(f"{key}-data", "is not base64")
        path = self.path(key)
        try:
            return read_file(path) if path else b""
        except OSError as exc:
            self.fail(key, f"the file cannot be read: {exc.strerror}")


def read_file(path: Path) -> bytes:
    """A small file. Raises OSError, also for one of more than 1 MiB."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    with path.open("rb") as file:
        data = file.read(FILE_LIMIT_BYTES + 1)
    if len(data) > FILE_LIMIT_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return data


def _cluster(cluster: _Entry, user: _Entry, namespace: str) -> Cluster:
    host, port, path_prefix = _server(cluster)
    ca, insecure = cluster.pem("certificate-authority"), cluster.boolean("insecure-skip-tls-verify")
    if ca and insecure:
        cluster.fail("insecure-skip-tls-verify", "cannot be set together with a certificate authority")
    if ca and b"-----BEGIN CERTIFICATE-----" not in ca:
        cluster.fail("certificate-authority", "holds no PEM certificate")
    tls_server_name = cluster.text("tls-server-name")
    if not _HOST_CHARACTERS.fullmatch(tls_server_name):
        cluster.fail("tls-server-name", "is not a host name")
    return Cluster(
        host=host,
        port=port,
        path_prefix=path_prefix,
        namespace=namespace or "default",
        tls_server_name=tls_server_name,
        insecure_skip_tls_verify=insecure,
        ca_pem=ca.decode("latin-1"),  # text round the blocks may be in any encoding
        proxy_url=_proxy_url(cluster),
        allow_servers=None if cluster.trust.folder is not None else cluster.trust.allow_servers,
        user=_user(user, cluster),
    )


def _server(cluster: _Entry) -> tuple[str, int, str]:
    url = cluster.text("server")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = _url_host(parts), parts.port
    except ValueError:
        cluster.fail("server", "is not a URL")
    if parts.scheme != "https":
        cluster.fail("server", "must be an https:// URL; credentials are not sent in the clear")
    if not host or parts.username is not None or parts.query or parts.fragment or not _URL_CHARACTERS.fullmatch(url):
        cluster.fail("server", "must be https://host[:port][/path] and nothing more")
    return host, port or 443, parts.path.rstrip("/")


def _url_host(parts: urllib.parse.SplitResult) -> str:
    """The host, with the zone of an IPv6 address decoded (RFC 6874). Raises ValueError for any other '%'."""
    host, percent, zone = (parts.hostname or "").partition("%")
    zone = urllib.parse.unquote(zone[2:]) if zone.startswith("25") else ""
    if percent and not (":" in host and _ZONE.fullmatch(zone)):
        raise ValueError("'%' in a host name")
    return host + percent + zone


def _proxy_url(cluster: _Entry) -> str:
    url = cluster.text("proxy-url")
    if url.startswith(("socks5:", "socks5h:")):
        cluster.fail("proxy-url", "SOCKS proxies are not supported; use an http:// or https:// proxy")
    if url and not (_URL_CHARACTERS.fullmatch(url) and parse_proxy(url)):
        cluster.fail("proxy-url", "must be http://[user:password@]host[:port], or https://")
    return url


def _user(user: _Entry, cluster: _Entry) -> User:
    if user.map("auth-provider"):
        user.fail("auth-provider", "kubectl removed auth providers in 1.26; use exec, a token or a client certificate")
    certificate, key = user.pem("client-certificate"), user.pem("client-key")
    if bool(certificate) != bool(key):
        user.fail("client-certificate", "certificate and key go together")
    name, password, token = user.text("username"), user.text("password"), user.header_text("token")
    if " " in token:
        user.fail("token", "has blanks inside")
    token_file = user.path("tokenFile")
    if (name or password) and (token or token_file):
        user.fail("username", "basic authentication and a token exclude each other")
    return User(
        certificate_pem=certificate,
        key_pem=key,
        token=token,
        token_file=token_file,
        basic=f"{name}:{password}" if name or password else "",
        impersonation=_impersonation(user),
        plugin=_plugin(user, cluster),
    )


def _impersonation(user: _Entry) -> tuple[str, ...]:
    """Header lines as client-go sends them."""
    name, uid = user.header_text("as"), user.header_text("as-uid")
    lines = [f"Impersonate-Group: {group}" for group in user.list_of("as-groups", str)]
    extra = _Entry(user.map("as-user-extra"), f"{user.where}: as-user-extra", user.trust)
    for key in extra.values:
        name_of_header = f"Impersonate-Extra-{urllib.parse.quote(str(key).lower(), safe='')}"
        lines += [f"{name_of_header}: {value}" for value in extra.list_of(key, str)]
    if uid:
        lines.append(f"Impersonate-Uid: {uid}")
    if lines and not name:
        user.fail("as", "as-uid, as-groups and as-user-extra need it")
    if not all(_HEADER_TEXT.fullmatch(line) for line in lines):
        user.fail("as-groups", "has characters that cannot stand in a header")
    return (f"Impersonate-User: {name}", *lines) if name else ()


def _plugin(user: _Entry, cluster: _Entry) -> Plugin | None:
    if not user.map("exec"):
        return None
    entry = _Entry(user.map("exec"), f"{user.where}, exec", user.trust)
    api, command = entry.text("apiVersion"), entry.text("command")
    if api not in (f"{_AUTH_API}v1", f"{_AUTH_API}v1beta1"):
        entry.fail("apiVersion", f"must be {_AUTH_API}v1 or {_AUTH_API}v1beta1")
    if not command:
        entry.fail("command", "is missing")
    if entry.text("interactiveMode") == "Always":
        entry.fail("interactiveMode", "Always is refused: there is nobody to answer the program's questions")
    folder = user.trust.folder
    if folder is None and command not in user.trust.allow_exec:
        entry.fail("command", _NO_PLUGIN)
    if folder is not None and os.sep in command:
        command = str(folder / command)
    variables = [_Entry(item, f"{entry.where}, env", user.trust) for item in entry.list_of("env", dict)]
    env = tuple((variable.text("name"), variable.text("value")) for variable in variables)
    for name, _ in env:
        if folder is None and name not in user.trust.allow_env:
            entry.fail("env", f"this kubeconfig may not set the variable {printable(name)!r} (see allow_env)")
    spec: dict[str, Any] = {"interactive": False}
    if entry.boolean("provideClusterInfo"):
        spec["cluster"] = _cluster_info(cluster)
    info = json.dumps({"kind": "ExecCredential", "apiVersion": api, "spec": spec})
    return Plugin(command, tuple(entry.list_of("args", str)), env, info, entry.text("installHint"))


def _cluster_info(cluster: _Entry) -> dict[str, Any]:
    """What a plugin is told of the cluster (client-authentication v1, type Cluster)."""
    ca = cluster.pem("certificate-authority")
    known: dict[str, Any] = {key: cluster.text(key) for key in ("server", "tls-server-name", "proxy-url")}
    known["insecure-skip-tls-verify"] = cluster.boolean("insecure-skip-tls-verify")
    known["certificate-authority-data"] = base64.b64encode(ca).decode()
    for extension in cluster.list_of("extensions", dict):
        if extension.get("name") == f"{_AUTH_API}exec":
            known["config"] = extension.get("extension")
    return {key: value for key, value in known.items() if value}


# -- the exec protocol: pure functions ---------------------------------------------------------------------------

SUBPROTOCOL = "v4.channel.k8s.io"
STDIN, STDOUT, STDERR, STATUS, RESIZE = range(5)
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
# Control characters, line and direction marks, and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
_MESSAGE_CHARACTERS = 500
_CHOOSE_ONE_OF = "choose one of: ["
_SEVERAL = "the pod has several containers, choose one of: "
_CHOICES_LIMIT = 100
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_EXIT_CODE = re.compile(r"-?[0-9]{1,10}")
_EXIT_CODES = range(-(1 << 31), 1 << 32)  # Windows has 32 bits, which some read as signed
# What container runtimes say of a program that the image has not; group 1 or 2 is its name where they tell it.
_NO_PROGRAM = re.compile(
    r"""exec: \\?"([^"\\]*)\\?": (?:executable file not found|no such file|stat |is a directory)"""
    r"""|executable file `([^`]*)` not found|ENOENT: No such file|The system cannot find the file specified"""
)
_NOT_ALLOWED = re.compile(r"""exec: \\?"([^"\\]*)\\?": permission denied""")

# Programs that can run the scripts below, in the order in which they are tried. PATH may lack /bin.
SHELLS = ("sh", "bash", "/bin/sh", "/bin/bash", "/bin/ash", "/usr/bin/bash", "/busybox/sh")
WINDOWS_SHELLS = ("powershell.exe", "cmd.exe")

# Runs the next one, $2, in the same process, but with a variable that tells the hang-up which processes are the
# session's: its second half is the process id of the shell, and so their session's. /proc shows it from the exec on.
_TAG = 'JUMPSERVER_SESSION=$0:$$; export JUMPSERVER_SESSION; exec "$1" -c "$2" "$0" "$@"'

# $0 session id, $1 the shell that runs this, $3 folder, $4 columns, $5 rows, $6 what bash is to read or nothing, then
# the command if there is one. The size is set here, since the message that tells it may come after the first prompt;
# without stty it must do. The line after that is never shown: it says that the script runs, whatever comes then.
#
# Bash reads $6 from a pipe, which needs no file. A small here-document is a pipe without a process, but in older bash a
# file, so there a process fills the pipe, and has ended before the prompt. In its POSIX mode bash would read nothing.
_START = """
stty cols "$4" rows "$5" 2>/dev/null
echo "$0"
TERM=xterm-256color
export TERM
[ -n "$LC_ALL$LC_CTYPE$LANG" ] || export LANG=C.UTF-8
[ -z "$3" ] || cd "$3" || exit 1
fallback=$1
reports=$6
shift 6
[ $# -eq 0 ] || exec "$@"
pipe() {
    [ -n "$reports" ] || return
    [ -z "${POSIXLY_CORRECT+x}" ] || case $(export -p) in *POSIXLY_CORRECT*) return 1;; esac
    if [ -n "$BASH_VERSION" ]; then
        eval 'set +o posix; exec 3< <(builtin printf %s "$reports"); wait "$!"'
    else
        command exec 3<<END
$reports
END
    fi
    [ -r /proc/self/fd/3 ]
}
start() {
    case $1 in *bash) ! { pipe; } 2>/dev/null || exec "$1" --rcfile /proc/self/fd/3;; esac
    exec "$1" 3<&-
}
for shell in bash ash sh; do command -v "$shell" >/dev/null 2>&1 && start "$shell"; done
start "$fallback"
"""

# What bash reads in place of ~/.bashrc. From 4.4 on it tells each command line as it begins, and its exit code before
# the next prompt, in the sequences of VS Code's shell integration: OSC 633 ; E ; <line> and OSC 633 ; D ; <code>.
#
# The command line is the last entry of the history, as text of at most 1,024 characters; it is empty where this is not
# sure: where the history has no new entry, and HISTCONTROL or HISTIGNORE may be why. PS0 makes no process but for
# history. A prompt makes none: its function comes first in PROMPT_COMMAND, keeps $? for the rest and, before "&&",
# triggers neither ERR nor errexit. Where it is not there (one that is exported or readonly is left alone, and so is one
# beside a DEBUG trap, which would see the function), PS0 tells the code of the command before. An array is never
# exported, not even by "set -a". The redirections are for "set -x".
_REPORTS = r"""exec 3<&-
__jumpserver_begin() {
    local code=$? text= stamp=
    [[ ${PROMPT_COMMAND[*]-} == *__jumpserver_end* ]] || builtin printf '\e]633;D;%s\a' "$code"
    if [[ ${__jumpserver-$HISTCMD} != "$HISTCMD" ||
        -o history && ${HISTCONTROL-}${HISTIGNORE:+ignorespace} != *ignore[sb]* ]]; then
        text=$(builtin history 1)
        text=${text#*[0-9][* ] }
        [[ -z ${HISTTIMEFORMAT-} ]] || builtin printf -v stamp "%($HISTTIMEFORMAT)T" -1
        text=${text:${#stamp}:1024}
        text=${text//'\'/'\\'}
        text=${text//;/'\x3b'}
        text=${text//$'\n'/'\x0a'}
    fi
    builtin printf '\e]633;E;%s\a' "${text//[[:cntrl:]]/ }"
}
__jumpserver_end() {
    local code=$?
    [[ -z ${__jumpserver-} ]] || builtin printf '\e]633;D;%s\a' "$code" >/dev/tty
    __jumpserver=("$HISTCMD")
    return "$code"
}
__jumpserver_install() {
    local code=$1
    unset -f __jumpserver_install
    ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || return "$code"
    local -
    set +au
    if [[ $- != *T* && ${PS0[*]@a} != *[!a\ ]* ]] && shopt -q promptvars; then
        PS0=${PS0-}'$({ __jumpserver_begin; } 2>/dev/null)'
        [[ -n $2 || ${PROMPT_COMMAND[*]@a} == *[!a\ ]* ]] ||
            PROMPT_COMMAND='{ __jumpserver_end && :; } 2>/dev/null'${PROMPT_COMMAND:+$'\n'$PROMPT_COMMAND}
    fi
    return "$code"
}
export -nf __jumpserver_begin __jumpserver_end __jumpserver_install
[[ ! -e ~/.bashrc ]] || . ~/.bashrc
{ __jumpserver_install "$?" "$(trap -p DEBUG)"; } >/dev/null 2>&1
"""

# $0 session id, $1 the shell that runs this. Does what a terminal does that goes away: HUP to all processes of the
# session, and CONT so that stopped ones notice. What was started with nohup ignores it, what was started with setsid is
# of another session. A process that has the variable and is of the session that it names proves that nobody else has
# that number by now. The node may have thousands of processes (hostPID), so none of them costs a fork. Says nothing
# where /proc does not show at least this script itself.
_HANG_UP = """
case $1 in */*) PATH=$PATH:${1%/*};; esac
ulimit -t 5
read -r pid rest </proc/self/stat && [ "$pid" = $$ ] && grep -qs . /proc/$$/environ || exit 1
shell=
count=0
for tag in $(grep -aHos "JUMPSERVER_SESSION=$0:[0-9]*" /proc/[0-9]*/environ); do
    pid=${tag#/proc/}
    read -r stat <"/proc/${pid%%/*}/stat" || continue
    set -- ${stat##*) }
    [ "$4" != "${tag##*:}" ] || shell=$4
done
if [ -n "$shell" ]; then
    for stat in $(grep -ls ") [^XZ] [0-9]* [0-9]* $shell " /proc/[0-9]*/stat); do
        pid=${stat#/proc/}
        kill -HUP "${pid%/*}" && count=$((count + 1))
        kill -CONT "${pid%/*}"
    done
    for pause in 0.05 0.15 0.3 0.5; do
        grep -qs ") [^XZ] [0-9]* [0-9]* $shell " "/proc/$shell/stat" || shell=
        [ -n "$shell" ] || break
        sleep $pause || sleep 1
    done
    [ -z "$shell" ] || kill -KILL "$shell"
fi
echo "hung up $count"
"""
_HUNG_UP = re.compile(rb"hung up ([0-9]{1,7})")  # the script's last line


@dataclass(frozen=True)
class ExitStatus:
    """How the program in the pod ended: its exit code, or None and the reason why it never ran."""

    code: int | None
    message: str = ""
    not_found: bool = False  # the image has no such program


_NOT_UNDERSTOOD = ExitStatus(None, "the cluster reported an end that is not understood")


@dataclass(frozen=True)
class Target:
    """A container, and the cluster that it is in. An empty container is the pod's only one."""

    cluster: Cluster
    namespace: str
    pod: str
    container: str = ""

    def __post_init__(self) -> None:
        """Raises ExecRefused for names that Kubernetes does not allow."""
        for kind, name in (("namespace", self.namespace), ("pod", self.pod), ("container", self.container)):
            if not _NAME.fullmatch(name) and (name or kind != "container"):
                raise ExecRefused(400, f"this is not a valid {kind} name: {printable(name)!r}")

    @property
    def path(self) -> str:
        """The pod's own."""
        return f"{self.cluster.path_prefix}/api/v1/namespaces/{self.namespace}/pods/{self.pod}"


def exec_path(target: Target, command: Sequence[str], *, tty: bool = True) -> str:
    """The request target of an exec. Output without a terminal is that of stdout alone.

    Raises ExecRefused for NUL and for halves of surrogate pairs.
    """
    query = [("container", target.container)] if target.container else []
    query += [("stdin", "true"), ("stdout", "true"), *([("tty", "true")] if tty else [])]
    query += [("command", argument) for argument in command]
    try:
        if "\0" in "".join(command):
            raise ValueError("no argument of a program can hold it")
        return f"{target.path}/exec?{urllib.parse.urlencode(query)}"
    except ValueError:
        raise ExecRefused(400, "the command or its directory holds a character that no program can be given") from None


def encode_stdin(data: bytes) -> bytes:
    """A stdin message; an empty one keeps the stream alive and the program sees nothing of it."""
    return bytes((STDIN,)) + data


def encode_resize(cols: int, rows: int) -> bytes:
    """A resize message. Raises ValueError outside 1..65535: a malformed one makes the server deaf for good."""
    for value in (cols, rows):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
            raise ValueError("columns and rows are whole numbers from 1 to 65535")
    return bytes((RESIZE,)) + b'{"Width":%d,"Height":%d}' % (cols, rows)


def decode_status(data: bytes | bytearray) -> ExitStatus:
    """Read a Status object from the status channel: exit 0, an exit code, or why the program did not start."""
    try:
        status = json.loads(data)
        if status["status"] == "Success":
            return ExitStatus(0)
        if status.get("reason") == "NonZeroExitCode":
            causes = status["details"]["causes"]
            text = next(cause["message"] for cause in causes if cause["reason"] == "ExitCode")
            if not _EXIT_CODE.fullmatch(text) or int(text) not in _EXIT_CODES:
                return _NOT_UNDERSTOOD
            return ExitStatus(int(text))
        return failed_start(str(status.get("message", "")))
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        return _NOT_UNDERSTOOD


def failed_start(message: str) -> ExitStatus:
    """What a container runtime's message says of a program that it could not start."""
    match = _NO_PROGRAM.search(message)
    if match:
        name = printable(match[1] or match[2] or "")
        which = f"program {name!r}" if name else "program by that name"
        return ExitStatus(None, f"the container has no {which}", not_found=True)
    match = _NOT_ALLOWED.search(message)
    if match:
        return ExitStatus(None, f"the container may not run the program {printable(match[1])!r}: permission denied")
    return ExitStatus(None, f"the cluster could not start the program: {printable(message) or 'no reason given'}")


def explain_refusal(status: int, body: bytes) -> str:
    """A sentence for an exec request that was answered with an HTTP error instead of 101."""
    told = _status_object(body)
    message = _shown(body) if told is None else printable(str(told.get("message") or ""))
    if "container not found" in message:
        return f"the container is not running: {message}"
    gateway = explain_gateway(status, body)
    if gateway:
        return gateway
    _, found, names = message.partition(_CHOOSE_ONE_OF)
    if found:
        return _SEVERAL + names.partition("]")[0]
    if status == 401:
        return "the cluster does not accept the credentials of this kubeconfig"
    if status == 403 and message.endswith("forbidden:"):
        return f"the cluster forbids it: {message} the user needs get and create on pods/exec"
    if status == 403:
        return f"the cluster forbids it: {message or 'it gave no reason (is exec over WebSocket allowed?)'}"
    if status == 404:
        return f"the cluster does not know it: {message or 'not found'}"
    if "is not valid for pod" in message:
        return f"the pod has no such container: {message}"
    return f"the cluster refused with HTTP status {status}: {message or 'no reason given'}"


def explain_gateway(status: int, body: bytes) -> str:
    """A sentence for an answer of something before the API server, which alone sends Status objects; else ""."""
    text = _shown(body)
    if _status_object(body) is not None or not (status in (401, 404, 502, 503, 504) or text.startswith("<")):
        return ""
    more = "" if text.startswith("<") or not text else f": {text}"
    return f"a gateway before the cluster refused with HTTP status {status}{more}"


def printable(text: str) -> str:
    """Foreign text made safe to print in a terminal and a log line: one line, no control characters, bounded."""
    return _UNPRINTABLE.sub(" ", text[:_MESSAGE_CHARACTERS]).strip()


def _shown(body: bytes) -> str:
    return printable(body[:_MESSAGE_CHARACTERS].decode("utf-8", "replace"))


def _status_object(body: bytes) -> dict[str, Any] | None:
    """The Kubernetes Status object that an answer is; None for what is none."""
    try:
        status = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return status if isinstance(status, dict) and status.get("kind") == "Status" else None


# -- WebSocket frames (RFC 6455, section 5.2) ----------------------------------------------------------------------

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING = 0x0, 0x1, 0x2, 0x8, 0x9
_FIN = 0x80
FRAME_LIMIT_BYTES = 1 << 20  # the largest frame or message accepted; a kubelet sends at most 32 KiB


def parse_frame(buffer: bytearray, start: int) -> tuple[int, int, int] | None:
    """Find one frame at ``start``: (first byte, payload start, payload end), or None while it is incomplete.

    websocket-client reads a frame with several calls of recv and without a limit. Reading from one buffer lets a
    single recv feed many frames. Raises PodLost for a masked or an oversized frame.
    """
    have = len(buffer) - start
    if have < 2:
        return None
    length = buffer[start + 1]
    payload = start + 2
    if length == 126:
        if have < 4:
            return None
        length = int.from_bytes(buffer[payload : payload + 2], "big")
        payload += 2
    elif length == 127:
        if have < 10:
            return None
        length = int.from_bytes(buffer[payload : payload + 8], "big")
        payload += 8
    elif length > 127:
        raise PodLost("the cluster sent a masked frame, which a WebSocket server may not do")
    if length > FRAME_LIMIT_BYTES:
        raise PodLost("the cluster sent a frame over the limit of 1 MiB")
    end = payload + length
    return (buffer[start], payload, end) if end <= len(buffer) else None


# -- TLS -----------------------------------------------------------------------------------------------------------

# What one fill takes at most. Measured, beside 64 KiB: 1.18 times the throughput; an echo beside two floods takes 4 ms
# instead of 3 (p99).
_READ_BYTES = 1 << 18
_TLS_RECORD_BYTES = 1 << 14  # what OpenSSL hands out at most (RFC 8446, section 5.1)
_HANDSHAKE_LIMIT_BYTES = 1 << 18  # headers and body of the answer to the upgrade request


def _drop(tls: ssl.SSLSocket) -> None:
    """Drop the TCP connection, any thread: every blocked call wakes."""
    with contextlib.suppress(OSError):
        # SSLSocket.shutdown() would take the TLS state away from under the other thread.
        socket.socket.shutdown(tls, socket.SHUT_RDWR)


@contextlib.contextmanager
def _limited(deadline: float, cut: Callable[[], None]) -> Iterator[None]:
    """Call ``cut`` on another thread if the block is not done by the monotonic time ``deadline``."""
    limit = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    with _own_faults():
        limit.start()
    try:
        yield
    finally:
        limit.cancel()
        limit.join()


class TlsStream:
    """A TLS connection that one thread reads while others write.

    OpenSSL allows one call at a time on a connection. So the socket does not block, each ``recv`` and ``send`` of
    it holds the lock, and only the reader thread waits, outside the lock, for what can be received or sent. It has the
    methods that websocket-client calls during the handshake.
    """

    def __init__(self, tls: ssl.SSLSocket, deadline: float | None) -> None:
        """``deadline`` (monotonic) is for the upgrade request and its answer; None: there is none."""
        tls.setblocking(False)
        self._tls = tls
        self._lock = threading.Lock()  # guards the calls into OpenSSL, and what is not sent
        self._room = threading.Condition(self._lock)
        self._unsent = bytearray()
        self._wakes = 0  # of those who wait for room
        self._send_event = 0  # the poll event to wait for before the next send
        self._handshake_deadline = deadline
        self._request_deadline = deadline  # None once an answer has begun
        self._handshake_bytes = 0
        self.buffer = bytearray()  # received and not yet taken; reader thread only

    def fill(self, timeout: float | None, waker: socket.socket | None = None, *, receive: bool = True) -> bool:
        """Append to ``buffer`` what has arrived; wait up to ``timeout`` seconds for it. Reader thread only.

        Meanwhile sends what ``put`` could not; without ``receive`` does nothing else. Returns False when nothing came
        in time, or ``waker`` can be read. Raises EOFError at the end, OSError when the connection broke.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            wanted = self._receive() if receive else 0
            if receive and not wanted:
                return True
            if not self._wait(wanted | self._send_event, deadline, waker):
                return False
            if self._send_event:
                with self._lock, contextlib.suppress(OSError):  # what still comes says why
                    self._send_unsent()

    def _receive(self) -> int:
        """Take everything that is there. Returns 0, or the poll event to wait for when there was nothing."""
        size = len(self.buffer)
        try:
            while len(self.buffer) - size < _READ_BYTES:
                with self._lock:
                    chunk = self._tls.recv(_TLS_RECORD_BYTES)
                if not chunk:
                    if len(self.buffer) > size:
                        return 0
                    raise EOFError
                self.buffer += chunk
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as exc:
            if len(self.buffer) == size:
                return select.POLLIN if isinstance(exc, ssl.SSLWantReadError) else select.POLLOUT
        except OSError:
            if len(self.buffer) == size:
                raise  # else what came before the error is handed out first; the next call meets it again
        return 0

    def recv(self, size: int) -> bytes:
        """For websocket-client, which calls this while it reads the answer to the upgrade request."""
        if self._handshake_bytes > _HANDSHAKE_LIMIT_BYTES:
            raise ExecRefused(0, "the cluster's answer to the exec request is too long")
        while not self.buffer:
            deadline = self._handshake_deadline
            if not self.fill(None if deadline is None else deadline - time.monotonic()):
                raise TimeoutError("timed out")
        self._request_deadline = None
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        self._handshake_bytes += len(data)
        return data

    def send(self, data: bytes) -> int:
        """For websocket-client: send the upgrade request, blocking until the deadline. Raises OSError, EOFError."""
        try:
            self.send_all(data)
        except TimeoutError:
            raise
        except OSError:
            # Who refuses a request before it is whole says why, and may be gone when the rest is sent.
            if self._receive():
                raise
        return len(data)

    def send_all(self, data: bytes) -> None:
        """Send it, blocking; one thread at a time, beside the reader thread. Raises OSError."""
        view = memoryview(data)
        while view:
            wanted = select.POLLOUT
            try:
                with self._lock:
                    view = view[self._tls.send(view) :]
                continue
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                pass
            if not self._wait(wanted, self._request_deadline):
                raise TimeoutError("timed out")

    def put(self, data: bytes) -> bool:
        """Send it after all that was put before, any thread. Does not block. Raises OSError.

        False: not all could be sent; ``fill`` sends the rest.
        """
        with self._lock:
            self._unsent += data
            return self._send_unsent()

    def _send_unsent(self) -> bool:
        """Send what goes without waiting; returns whether that is all. Needs the lock."""
        self._send_event = 0
        try:
            while self._unsent:  # a retry may be longer than what was refused, never shorter (SSL_write)
                del self._unsent[: self._tls.send(bytes(self._unsent[:_TLS_RECORD_BYTES]))]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as exc:
            self._send_event = select.POLLIN if isinstance(exc, ssl.SSLWantReadError) else select.POLLOUT
        except OSError:
            self._unsent.clear()
            raise
        finally:
            self._room.notify_all()
        return not self._unsent

    @property
    def unsent(self) -> int:
        """Bytes that were put and not sent yet. Any thread."""
        return len(self._unsent)

    def wait_for_room(self, limit: int, timeout: float) -> bool:
        """Block while more than ``limit`` bytes are unsent, for ``timeout`` seconds at most, or until woken."""
        with self._room:
            before = self._wakes
            self._room.wait_for(lambda: len(self._unsent) <= limit or self._wakes != before, timeout)
            return len(self._unsent) <= limit

    def wake_writers(self) -> None:
        """Make wait_for_room return, any thread."""
        with self._room:
            self._wakes += 1
            self._room.notify_all()

    def _wait(self, event: int, deadline: float | None, waker: socket.socket | None = None) -> bool:
        poller, fd = select.poll(), self._tls.fileno()
        if event:  # else an end of the connection would be told again and again
            poller.register(fd, event)
        if waker is not None:
            poller.register(waker, select.POLLIN)
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        return any(ready == fd for ready, _ in poller.poll(remaining))

    def gettimeout(self) -> float | None:
        return None

    def settimeout(self, timeout: float | None) -> None:
        """For websocket-client. Time limits are this class's own."""

    def abort(self) -> None:
        """Drop the TCP connection, any thread: every blocked call wakes. The descriptor stays until close()."""
        _drop(self._tls)

    def close(self) -> None:
        """Give the descriptor back, when no thread is inside any more."""
        self.abort()
        self._tls.close()


# -- credentials -----------------------------------------------------------------------------------------------------

PLUGIN_TIMEOUT_SECONDS = 15.0
_PLUGIN_RUNS_KEPT = 256
_PLUGIN_FAILURE_SECONDS = 3.0  # for so long a failure is the answer to all who ask
_EXPIRY_MARGIN_SECONDS = 10.0
_TIME_CHARACTERS = 64
_FRACTION = re.compile(r"\.[0-9]+")  # of a second


@dataclass(frozen=True)
class Credential:
    """What to show the cluster now: header lines, and a client certificate."""

    headers: tuple[str, ...] = field(default=(), repr=False)
    certificate_pem: bytes = field(default=b"", repr=False)
    key_pem: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class _PluginAnswer:
    token: str = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    expires_at: float  # Unix seconds; infinity when it did not say


class _PluginRun:
    """One run of a plugin, on a thread of its own. Who asks meanwhile waits for it and shares its answer or failure."""

    def __init__(self, plugin: Plugin) -> None:
        self.begun = time.monotonic()
        self.ended = threading.Event()
        self.answer: _PluginAnswer | None = None
        self.failure = f"the credential plugin {printable(plugin.command)} cannot be run"
        self._fails_until = math.inf
        with _own_faults():
            threading.Thread(target=self._run, args=(plugin,), name="credential-plugin", daemon=True).start()

    def _run(self, plugin: Plugin) -> None:
        try:
            self.answer = _read_plugin_answer(plugin, _run_plugin(plugin))
        except KubeconfigError as exc:
            self.failure = str(exc)
        finally:
            self._fails_until = time.monotonic() + _PLUGIN_FAILURE_SECONDS
            self.ended.set()

    def serves(self, not_before: float) -> bool:
        """Whether another run is needless for who wants one that began at that monotonic time or later."""
        if self.answer is None:
            good = time.monotonic() < self._fails_until
        else:
            good = time.time() <= self.answer.expires_at - _EXPIRY_MARGIN_SECONDS
        return good and self.begun >= not_before


_plugin_lock = threading.Lock()  # guards the dictionary, not the programs
_plugin_runs: dict[Plugin, _PluginRun] = {}


def credential(user: User, deadline: float, *, not_before: float = -math.inf) -> Credential:
    """What to show the cluster now. Reads a token file each time; runs a plugin when its last answer has expired.

    Blocks for the plugin, until the monotonic time ``deadline`` and 15 s at most. A run that began before the monotonic
    time ``not_before`` does not count. Raises KubeconfigError.
    """
    certificate, key, token = user.certificate_pem, user.key_pem, _token(user)
    if user.plugin and not token and not user.basic:
        answer = _ask_plugin(user.plugin, not_before, deadline)
        token = answer.token
        certificate, key = answer.certificate_pem or certificate, answer.key_pem or key
    headers: tuple[str, ...] = ()
    if token:
        headers = (f"Authorization: Bearer {token}",)
    elif user.basic:
        headers = (f"Authorization: Basic {base64.b64encode(user.basic.encode()).decode()}",)
    return Credential(headers + user.impersonation, certificate, key)


def _token(user: User) -> str:
    """The token; a token file is read again each time, and the last good token serves where it cannot be read."""
    if user.token_file is None:
        return user.token
    token, why = "", "holds no token"
    try:
        token = read_file(user.token_file).decode("ascii").strip()
    except OSError as exc:
        why = f"cannot be read: {exc.strerror}"
    except UnicodeDecodeError:
        pass
    if not _HEADER_TEXT.fullmatch(token):
        token = ""
    if not (token or user.token):
        raise KubeconfigError(f"the kubeconfig's tokenFile {why}")
    return token or user.token


def _ask_plugin(plugin: Plugin, not_before: float, deadline: float) -> _PluginAnswer:
    with _plugin_lock:
        run = _plugin_runs.get(plugin)
        if run is None or not run.serves(not_before):
            run = _PluginRun(plugin)
            _plugin_runs.pop(plugin, None)
            _plugin_runs[plugin] = run
            while len(_plugin_runs) > _PLUGIN_RUNS_KEPT:
                del _plugin_runs[next(iter(_plugin_runs))]
    if not run.ended.wait(max(0.0, deadline - time.monotonic())):
        raise KubeconfigError(f"the credential plugin {printable(plugin.command)} did not answer in time")
    if run.answer is None:
        raise KubeconfigError(run.failure)
    return run.answer


def _run_plugin(plugin: Plugin) -> bytes:
    """Run the program, for 15 s at most; what it says on stderr goes to this server's. Raises KubeconfigError."""
    name = printable(plugin.command)
    hint = f"; {printable(plugin.install_hint)}" if plugin.install_hint else ""
    path = shutil.which(plugin.command)
    if path is None:
        raise KubeconfigError(f"the credential plugin {name} is not installed on the jumpserver{hint}")
    environ = {**os.environ, **dict(plugin.env), "KUBERNETES_EXEC_INFO": plugin.info}
    try:
        # In a session of its own, so that a limit ends its children too.
        process = subprocess.Popen(  # noqa: S603
            [path, *plugin.args],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as exc:
        raise KubeconfigError(f"the credential plugin {name} cannot be run: {exc.strerror}{hint}") from None
    except ValueError:  # NUL, or a variable without a name
        raise KubeconfigError(f"the credential plugin {name} cannot be run with these args and env{hint}") from None
    with process:
        try:
            output, _ = process.communicate(timeout=PLUGIN_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise KubeconfigError(f"the credential plugin {name} did not answer in time") from None
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise KubeconfigError(f"the credential plugin {name} failed with exit code {process.returncode}{hint}")
    return output


def _read_plugin_answer(plugin: Plugin, output: bytes) -> _PluginAnswer:
    name = printable(plugin.command)
    try:
        answer = json.loads(output)
        version, status = answer["apiVersion"], answer["status"]
        texts = [status.get(key) or "" for key in ("token", "clientCertificateData", "clientKeyData")]
        token, certificate, key = (text.encode("ascii").decode() for text in texts)
        expires = status.get("expirationTimestamp")
        expires_at = _rfc3339(expires) if expires else math.inf
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KubeconfigError(f"the credential plugin {name} printed no ExecCredential") from None
    if version != json.loads(plugin.info)["apiVersion"]:
        raise KubeconfigError(f"the credential plugin {name} answered in another apiVersion than it was asked in")
    if bool(certificate) != bool(key) or not (token or key) or not _HEADER_TEXT.fullmatch(token):
        raise KubeconfigError(f"the credential plugin {name} gave neither a token nor a certificate with its key")
    return _PluginAnswer(token, certificate.encode(), key.encode(), expires_at)


def _rfc3339(text: str) -> float:
    """Unix seconds; ValueError for what is no time with a zone."""
    moment = datetime.datetime.fromisoformat(_FRACTION.sub("", text[:_TIME_CHARACTERS]).replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError("no zone")
    return moment.timestamp()


# -- network ---------------------------------------------------------------------------------------------------------

_TIMEOUTS = (TimeoutError, socket.timeout)  # one class from Python 3.10 on
# Unacknowledged data for so long means that the peer is gone (RFC 5482). Linux counts a closed window, too: a program
# that does not read a large paste may take its time.
_USER_TIMEOUT_MS = 180_000
_PROXY_ANSWER_BYTES = 1 << 14
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_NEAR_END_SECONDS = 1.0  # how soon a connection through an https proxy is dropped when its writer is blocked


def parse_proxy(url: str) -> urllib.parse.SplitResult | None:
    """An HTTP proxy's URL, as client-go reads it (a bare host:port is http); None for anything else."""
    try:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        good = parts.scheme in ("http", "https") and _url_host(parts) and (parts.port is None or parts.port > 0)
    except ValueError:
        return None
    return parts if good else None


def proxy_for(cluster: Cluster) -> urllib.parse.SplitResult | None:
    """The kubeconfig's proxy, else that of HTTPS_PROXY unless NO_PROXY or loopback exempts the host."""
    if cluster.proxy_url:
        return parse_proxy(cluster.proxy_url)
    url = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    if not url or cluster.host == "localhost" or _is_loopback(cluster.host):
        return None
    exempt = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    if any(_no_proxy_matches(entry.strip().lower(), cluster.host, cluster.port) for entry in exempt.split(",")):
        return None
    proxy = parse_proxy(url)
    if proxy is None:
        raise ExecRefused(0, "the jumpserver's HTTPS_PROXY is not the URL of an HTTP proxy")
    return proxy


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """A network in CIDR notation, or of the one address."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _in_network(network: str, host: str) -> bool:
    """Whether ``host`` is an address in a network or equal to an address, in CIDR notation."""
    address, found = _address(host), _network(network)
    return address is not None and found is not None and address in found


def _in_domain(domain: str, host: str) -> bool:
    """Whether ``*.example.com`` or ``.example.com`` holds the host name."""
    return domain.startswith((".", "*.")) and host.endswith(domain.lstrip("*"))


def _no_proxy_matches(entry: str, host: str, port: int) -> bool:
    """One entry of NO_PROXY, by the rules of Go's httpproxy."""
    name, colon, wanted_port = entry.rpartition(":")
    if colon and wanted_port.isdigit() and (":" not in name or name.endswith("]")):
        if int(wanted_port) != port:
            return False
        entry = name.strip("[]")
    if not entry:
        return False
    return entry in ("*", host) or host.endswith(f".{entry}") or _in_domain(entry, host) or _in_network(entry, host)


def _reached(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host stands for without a look-up, however it is spelled; None for a name."""
    host = host.partition("%")[0].rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3
        return ipaddress.IPv4Address("127.0.0.1")
    address = _address(host)
    if address is None:
        with contextlib.suppress(OSError, ValueError):  # decimal, octal, hexadecimal, short: as getaddrinfo takes them
            return ipaddress.IPv4Address(socket.inet_aton(host))
    return getattr(address, "ipv4_mapped", None) or address


_WRAPPERS = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))  # NAT64, IPv4-compatible
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")


def _is_local(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address means this host or its link, and so something that only who is here may reach."""
    if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
        return True
    if isinstance(address, ipaddress.IPv4Address):
        return address in _THIS_NETWORK
    if any(address in network for network in _WRAPPERS):
        return _is_local(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address.sixtofour is not None and _is_local(address.sixtofour)


def _may_reach(allowed: tuple[str, ...] | None, host: str, at: str) -> bool:
    """Whether a kubeconfig may name a host that is found at that address, or (``at`` is a name) not looked up.

    A local address must be allowed as an address: who may choose a name may choose what it resolves to.
    """
    if allowed is None:
        return True
    address, name = _reached(at), host.rstrip(".")
    if address and any(_in_network(pattern, str(address)) for pattern in allowed):
        return True
    named = not allowed or any(pattern == name or _in_domain(pattern, name) for pattern in allowed)
    return named and not (address and _is_local(address))


def _refuse_server(host: str) -> NoReturn:
    raise ExecRefused(0, f"this server may not connect to {printable(host)} (see allow_servers)")


def _connect(host: str, port: int, allowed: tuple[str, ...] | None, deadline: float) -> socket.socket:
    """A TCP connection to one of the host's addresses, tried in turn. Raises ExecRefused with a sentence."""
    at = printable(_authority(host, port))
    by_address = any(_network(pattern) for pattern in allowed or ())
    if not by_address and not _may_reach(allowed, host, host):
        _refuse_server(at)  # and look nothing up
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, ValueError):
        raise ExecRefused(0, f"the host name is unknown: {printable(host)}") from None
    found = [item for item in found if _may_reach(allowed, host, str(item[4][0]))]
    if not found:
        _refuse_server(at)
    why = ""
    for left, (family, kind, protocol, _, address) in zip(range(len(found), 0, -1), found):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as exc:  # IPv6 on a host that has none
            why = os.strerror(exc.errno or 0)
            continue
        try:
            sock.settimeout(max(0.001, (deadline - time.monotonic()) / left))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
            return sock
        except OSError as exc:
            sock.close()
            why = "no answer in time" if isinstance(exc, _TIMEOUTS) else os.strerror(exc.errno or 0)
    raise ExecRefused(0, f"{at} cannot be reached: {why}")


def _connect_through(proxy: urllib.parse.SplitResult, cluster: Cluster, deadline: float) -> socket.socket:
    """A connection to the cluster through an HTTP proxy (RFC 9110, section 9.3.6). Raises ExecRefused."""
    if not _may_reach(cluster.allow_servers, cluster.host, cluster.host):
        _refuse_server(cluster.host)
    secure, host = proxy.scheme == "https", _url_host(proxy)
    name = _tls_name(host)
    allowed = cluster.allow_servers if cluster.proxy_url else None  # the environment's proxy is the operator's own
    sock = _connect(host, proxy.port or (443 if secure else 80), allowed, deadline)
    try:
        if secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=name)
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.sendall(_connect_request(proxy, cluster))
        status = _proxy_status(sock, deadline)
    except (OSError, ValueError) as exc:
        sock.close()
        raise ExecRefused(0, f"no connection through the proxy {printable(host)}: {_tls_fault(exc)}") from None
    if status != 200:
        sock.close()
        why = f"refused the connection with HTTP status {status}"
        if status == 407:
            why = "does not accept the name and password of proxy-url (407)"
        raise ExecRefused(0, f"the proxy {printable(host)} {why}")
    if not isinstance(sock, ssl.SSLSocket):
        return sock
    try:
        return _unwrapped(sock)
    except (OSError, RuntimeError):
        sock.close()
        raise


def _connect_request(proxy: urllib.parse.SplitResult, cluster: Cluster) -> bytes:
    target = _authority(cluster.host, cluster.port)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username is not None:
        pair = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
    return "\r\n".join((*lines, "", "")).encode("ascii")


def _proxy_status(sock: socket.socket, deadline: float) -> int:
    """Read the head of the proxy's answer, and not a byte more: what follows is the cluster's."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        byte = sock.recv(1)
        if not byte or len(head) > _PROXY_ANSWER_BYTES:
            raise ConnectionError("no HTTP answer")
        head += byte
    status = _STATUS_LINE.match(head)
    if not status:
        raise ConnectionError("no HTTP answer")
    return int(status[1])


def _unwrapped(outer: ssl.SSLSocket) -> socket.socket:
    """A plain socket for what goes through a TLS connection to a proxy: TLS inside TLS needs one.

    Two threads pass the bytes; both end when either side does.
    """
    stream = TlsStream(outer, None)
    near, far = socket.socketpair()

    def outward() -> None:
        try:
            while data := far.recv(_TLS_RECORD_BYTES):
                stream.send_all(data)
        except OSError:
            pass
        finally:
            stream.abort()

    def inward() -> None:
        near_end = select.poll()
        near_end.register(far, select.POLLHUP)
        writer = threading.Thread(target=outward, name="proxy-out", daemon=True)
        try:
            writer.start()
            while not near_end.poll(0):  # the writer may be blocked, and so not see it
                if stream.fill(_NEAR_END_SECONDS):
                    far.sendall(stream.buffer)
                    stream.buffer.clear()
        except (OSError, EOFError, ValueError, RuntimeError):
            pass
        finally:
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)
            stream.abort()
            if writer.ident is not None:  # it could be started
                writer.join()
            stream.close()
            far.close()

    try:
        threading.Thread(target=inward, name="proxy-in", daemon=True).start()
    except RuntimeError:
        near.close()
        far.close()
        raise
    return near


def _authority(host: str, port: int, default_port: int = 0) -> str:
    """Host and port for a request line or a Host header (RFC 9110, section 7.2), without a zone (RFC 6874)."""
    host = host.partition("%")[0]
    host = f"[{host}]" if ":" in host else host
    return host if port == default_port else f"{host}:{port}"


def _tls_name(host: str) -> str:
    """The name that a certificate must have, and that SNI tells: without zone and final dot (RFC 6066, section 3).

    Raises ExecRefused for what cannot be one: the ssl module would leave the socket open.
    """
    name = host.strip("[]").partition("%")[0].rstrip(".")
    if len(name) > 253 or not all(0 < len(label) < 64 for label in name.split(".")):
        raise ExecRefused(0, f"this is not a host name that TLS can verify: {printable(host)}")
    return str(getattr(_address(name), "ipv4_mapped", None) or name)


@contextlib.contextmanager
def _own_faults() -> Iterator[None]:
    """Raise ExecRefused with a sentence when this host has no descriptors, threads or memory left."""
    try:
        yield
    except (OSError, RuntimeError) as exc:
        why = "no thread can be started" if isinstance(exc, RuntimeError) else os.strerror(exc.errno or 0)
        raise ExecRefused(0, f"the jumpserver cannot open another connection now: {why}") from None


def dial(cluster: Cluster, shown: Credential, deadline: float) -> ssl.SSLSocket:
    """A TLS connection to the kube-apiserver, by the monotonic time ``deadline``.

    Blocks. Raises ExecRefused with a sentence for an unknown host, a closed port and each fault of the certificate.
    """
    name = _tls_name(cluster.tls_server_name or cluster.host)
    with _own_faults():
        context = _tls_context(cluster.insecure_skip_tls_verify, cluster.ca_pem, shown.certificate_pem, shown.key_pem)
        proxy = proxy_for(cluster)
        if proxy is None:
            raw = _connect(cluster.host, cluster.port, cluster.allow_servers, deadline)
        else:
            raw = _connect_through(proxy, cluster, deadline)
    try:
        raw.settimeout(max(0.001, deadline - time.monotonic()))
        return context.wrap_socket(raw, server_hostname=name)
    except (OSError, ValueError) as exc:
        raw.close()
        raise _no_tls(cluster, exc) from None


def _no_tls(cluster: Cluster, exc: Exception) -> ExecRefused:
    at = printable(_authority(cluster.host, cluster.port))
    return ExecRefused(0, f"no TLS connection to the cluster at {at}: {_tls_fault(exc)}")


_PEM_BLOCK = re.compile(r"^-----BEGIN ([A-Z0-9 ]+)-----[ \t\r]*\n([^-]*)^-----END \1-----[ \t\r]*$", re.M)
_PARTIAL_CHAIN = 0x80000  # ssl.VERIFY_X509_PARTIAL_CHAIN, from Python 3.10 on


def _pem_blocks(pem: str) -> Iterator[tuple[str, bytes]]:
    """Kind and content of the blocks of a PEM text. What is between them or cannot be read is passed over, as by Go."""
    for block in _PEM_BLOCK.finditer(pem):
        with contextlib.suppress(ValueError):
            yield block[1], base64.b64decode("".join(block[2].split()), validate=True)


def _certificates(pem: str) -> list[bytes]:
    """The certificates in a PEM text that can be read."""
    reader, found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), []
    for kind, der in _pem_blocks(pem):
        if kind == "CERTIFICATE":
            with contextlib.suppress(ssl.SSLError, ValueError):
                reader.load_verify_locations(cadata=der)
                found.append(der)
    return found


@functools.lru_cache(maxsize=64)  # loading CAs and keys takes 0.6 ms and 24 KB a session
def _tls_context(insecure: bool, ca_pem: str, certificate_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= _PARTIAL_CHAIN  # as Go: each certificate of the pool is trusted, not roots alone
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_pem:
        authorities = _certificates(ca_pem)
        if not authorities:
            raise KubeconfigError("the certificate authority holds no PEM certificate")
        context.load_verify_locations(cadata=b"".join(authorities))
    else:
        context.load_default_certs()
    if certificate_pem:
        chain = [("CERTIFICATE", der) for der in _certificates(certificate_pem.decode("latin-1"))]
        keys = [block for block in _pem_blocks(key_pem.decode("latin-1")) if block[0].endswith("PRIVATE KEY")]
        _load_client_certificate(context, b"".join(_pem(*block) for block in chain + keys))
    return context


def _pem(kind: str, der: bytes) -> bytes:
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (kind.encode(), base64.encodebytes(der), kind.encode())


def _load_client_certificate(context: ssl.SSLContext, pem: bytes) -> None:
    # The ssl module takes the key from a file only. A memfd never reaches a disk; elsewhere a private file must do.
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create"):
            file: Any = stack.enter_context(open(os.memfd_create("client-key"), "wb"))
            path = f"/proc/self/fd/{file.fileno()}"
        else:
            file = stack.enter_context(tempfile.NamedTemporaryFile("wb"))
            path = file.name
        file.write(pem)
        file.flush()
        try:
            # A password function that fails: without one OpenSSL would ask on this process's terminal.
            context.load_cert_chain(path, password=_no_password)
        except (ValueError, OSError) as exc:
            if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise KubeconfigError("client certificate and key are no matching PEM pair") from None


def _no_password() -> str:
    raise ValueError("encrypted keys are not supported")


_ALERT = re.compile(r"(?:SSLV3|TLSV1|TLSV13)_(?:ALERT_)?([A-Z0-9_]+)")  # as OpenSSL names what the other side has sent
_BAD_CERTIFICATE = "it does not accept the client certificate, or wants one (see client-certificate-data)"
_ALERTS = {  # RFC 8446, section 6.2
    "CERTIFICATE_REQUIRED": "it wants a client certificate (see client-certificate-data)",
    "HANDSHAKE_FAILURE": "it wants a client certificate, or other ciphers than this server has",
    "BAD_CERTIFICATE": _BAD_CERTIFICATE,
    "UNSUPPORTED_CERTIFICATE": _BAD_CERTIFICATE,
    "CERTIFICATE_UNKNOWN": _BAD_CERTIFICATE,
    "CERTIFICATE_REVOKED": "the client certificate was revoked",
    "CERTIFICATE_EXPIRED": "the client certificate has expired",
    "UNKNOWN_CA": "the client certificate comes from a CA that it does not know",
    "ACCESS_DENIED": "it does not let this client certificate in",
    "PROTOCOL_VERSION": "it speaks neither TLS 1.2 nor 1.3",
    "UNRECOGNIZED_NAME": "it does not know itself by this name (see tls-server-name)",
}


def _alert(exc: Exception) -> str:
    """The name of the TLS alert with which the other side ended the connection; "" when it sent none."""
    match = _ALERT.fullmatch(str(getattr(exc, "reason", "")))
    return match[1] if match else ""


def _tls_fault(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return {
            10: "its certificate has expired",
            9: "its certificate is not valid yet",
            18: "its certificate is self-signed and not the CA of the kubeconfig",
            19: "its certificate comes from a CA that the kubeconfig does not name",
            20: "its certificate comes from a CA that the kubeconfig does not name",
            62: "its certificate is for another host name (see tls-server-name)",
            64: "its certificate is for another IP address (see tls-server-name)",
        }.get(exc.verify_code, f"its certificate is not accepted: {printable(exc.verify_message)}")
    if isinstance(exc, _TIMEOUTS):
        return "the handshake took too long"
    if _alert(exc):
        return _ALERTS.get(_alert(exc), f"it sent the TLS alert {_alert(exc).lower()}")
    if isinstance(exc, ssl.SSLError):
        return f"the handshake failed ({printable(exc.reason or 'protocol error')})"
    return "the connection was closed during the handshake"


# -- exec ------------------------------------------------------------------------------------------------------------

KEEP_ALIVE_SECONDS = 25.0
_NEVER_RAN = (126, 127, 128)  # how runtimes that cannot say it otherwise end a program that did not start
_MARK_LIMIT_BYTES = 1 << 16
_ALARM_BYTES = 1 << 12  # of alarms, read at once
# Ctrl-Z first: what runs in the foreground stops, and has HUP from the kernel when its shell has gone (no Ctrl-C, which
# would end what nohup protects). Then, at the prompt, Ctrl-E and Ctrl-U for a half-typed line, and Ctrl-D, which is
# wanted twice where jobs are stopped, and more often for shells in shells. Escape is for an editor's insert mode; by
# then no shell has anything on its line.
_LEAVING_KEYS = (b"\x1a", *[b"\x05\x15\x04"] * 8, b"\x1b\x1a", *[b"\x05\x15\x04"] * 50)
_TYPING_SECONDS = 0.04  # between two of them


class _NoCookies:
    """websocket-client keeps one cookie jar for the whole process; clusters must not see each other's cookies."""

    def add(self, set_cookie: str | None) -> None:
        pass

    def get(self, host: str | None) -> str:
        return ""


websocket._handshake.CookieJar = _NoCookies()  # type: ignore[assignment]


class PodExec:
    """A program with a terminal in a container.

    One thread reads; any thread writes, resizes, wakes or aborts. Nothing but ``read``, ``wait_for_room`` and what
    opens and ends it blocks: what the cluster does not take at once waits here, and the reader thread sends it.
    """

    def __init__(self, stream: TlsStream) -> None:
        self._stream = stream
        self._last_sent = time.monotonic()
        self._aborted = False
        self._early = b""  # printed before the first read
        self._fragments: bytearray | None = None  # of a message that is not whole yet
        self._woken = False
        try:
            self._waker, self._alarm = socket.socketpair()
            self._waker.setblocking(False)
            self._alarm.setblocking(False)
        except OSError as exc:  # the program may run by now
            stream.close()
            raise PodLost(f"the jumpserver cannot open another connection now: {exc.strerror}") from None
        self.exit: ExitStatus | None = None

    @classmethod
    def open(cls, target: Target, command: Sequence[str], *, timeout: float, tty: bool = True) -> PodExec:
        """Start ``command`` in the container. Blocks for ``timeout`` seconds at most, a credential plugin included.

        Returns once the cluster has accepted the request; whether the program exists shows in ``exit``. Raises
        ExecRefused, KubeconfigError, or PodLost when it is not known whether the program runs.
        """
        begun = time.monotonic()
        deadline, user = begun + timeout, target.cluster.user
        path = exec_path(target, command, tty=tty)
        try:
            return cls(_upgrade(target.cluster, credential(user, deadline), path, deadline))
        except ExecRefused as exc:
            if exc.status != 401 or user.plugin is None:
                raise
        shown = credential(user, deadline, not_before=begun)  # the plugin's answer was revoked before its time
        return cls(_upgrade(target.cluster, shown, path, deadline))

    def started(self, mark: bytes, timeout: float) -> ExitStatus | None:
        """Wait until the program runs; returns None then, else how it ended instead. Reader thread, before read.

        With a ``mark`` it runs once it has printed that line, which ``read`` leaves out; PodLost when it has not in
        ``timeout`` seconds. Without one it runs once it has printed something, or been silent for so long.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._early += self._take_output()
            before, found, after = self._early.partition(mark or b"\n")
            if mark and found and b"\n" in after:
                self._early = before + after.partition(b"\n")[2]
                return None
            if self.exit is not None and self.exit.code is None:
                return self.exit
            if self.exit is not None and mark and self.exit.code in _NEVER_RAN:  # the output is the runtime's own
                return replace(failed_start(self._early.decode("utf-8", "replace")), code=self.exit.code)
            if self.exit is not None or self._aborted or len(self._early) > (_MARK_LIMIT_BYTES if mark else 0):
                return None
            if time.monotonic() >= deadline:
                if mark:
                    raise PodLost("the shell in the container did not start in time")
                return None
            self._receive(max(0.0, deadline - time.monotonic()))

    @property
    def over(self) -> bool:
        """Whether nothing more can be read: the program has ended (see ``exit``), or abort was called."""
        return self.exit is not None or self._aborted

    def read(self, timeout: float | None = None, *, output: bool = True) -> bytes:
        """Block for output, ``timeout`` seconds at most; all that has already arrived is joined. Reader thread only.

        Returns ``b""`` when there was none in time, after ``wake``, and at the end (see ``over``). Without ``output``
        it leaves that to the cluster to keep, and only sends input and keeps the connection alive. Raises PodLost when
        the connection ended without an exit status.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            if output:
                read, self._early = self._early or self._take_output(), b""
                if read or self.over:
                    return read
            self.keep_alive()
            left = deadline - time.monotonic()
            if left <= 0 or self._receive(min(left, KEEP_ALIVE_SECONDS), output):
                return self._take_output() if output else b""

    def wake(self) -> None:
        """Make the next read that would wait, and any wait for room, return. Any thread; does not block."""
        self._woken = True
        self._ring()
        self._stream.wake_writers()

    def _ring(self) -> None:
        """Make the reader thread look at what there is to do."""
        with contextlib.suppress(OSError):  # full: it is rung already
            self._alarm.send(b"!")

    def leave(self, timeout: float) -> bool:
        """Type what makes a shell go, with what runs in its foreground. Reader thread, once read has returned.

        For where a hang-up is not allowed any more. Discards output. Returns whether the shell has ended in
        ``timeout`` seconds; not all programs can be left so, and jobs in the background stay.
        """
        deadline = time.monotonic() + timeout
        with contextlib.suppress(PodLost):
            self._take_output()
            for keys in _LEAVING_KEYS:
                if self.over or self._stream.unsent or time.monotonic() >= deadline:
                    break
                self.write(keys)
                until = min(deadline, time.monotonic() + _TYPING_SECONDS)
                while self.exit is None and time.monotonic() < until:
                    self._receive(until - time.monotonic())
                    self._take_output()
        return self.exit is not None

    def _receive(self, timeout: float, output: bool = True) -> bool:
        """Wait for something to arrive; returns whether it was woken. Raises PodLost at the end, unless it is ours."""
        try:
            self._stream.fill(timeout, self._waker, receive=output)
            with contextlib.suppress(BlockingIOError):
                self._waker.recv(_ALARM_BYTES)
        except (EOFError, OSError, ValueError) as exc:
            if not self._aborted:
                why = f": {_tls_fault(exc)}" if _alert(exc) else ""
                raise PodLost(f"the connection to the cluster was lost{why}") from None
            return True
        if not self._woken:
            return False
        self._woken = False  # whoever sets it between these two lines is heard, too
        return True

    def _take_output(self) -> bytes:
        """Handle the whole frames in the buffer; return what they printed. Raises PodLost, but output comes first."""
        output: list[bytearray] = []
        try:
            self._take_frames(output)
        except PodLost:
            if not any(output):
                raise  # else the next call meets the same frame again
        return b"".join(output)

    def _take_frames(self, output: list[bytearray]) -> None:
        buffer, position = self._stream.buffer, 0
        try:
            while self.exit is None:
                frame = parse_frame(buffer, position)
                if frame is None:
                    break
                first, start, end = frame
                opcode = first & 0x0F
                if opcode == _CLOSE:
                    raise PodLost("the cluster closed the connection without an exit status")
                if first == _FIN | _BINARY and self._fragments is None:
                    if start < end:
                        self._take_message(buffer[start], buffer[start + 1 : end], output)
                elif opcode in (_CONTINUATION, _TEXT, _BINARY):
                    self._take_fragment(first, buffer[start:end], output)
                elif opcode == _PING:
                    self._send_if_idle(bytes(buffer[start:end]), websocket.ABNF.OPCODE_PONG)
                position = end
        finally:
            del buffer[:position]

    def _take_fragment(self, first: int, data: bytearray, output: list[bytearray]) -> None:
        """RFC 6455, section 5.4. Text is not of this protocol, and ignored as an unknown channel is."""
        if (first & 0x0F == _CONTINUATION) == (self._fragments is None):
            raise PodLost("the cluster sent the fragments of a message out of order")
        if self._fragments is None:
            self._fragments = bytearray() if first & 0x0F == _BINARY else bytearray(b"\xff")
        if len(self._fragments) + len(data) > FRAME_LIMIT_BYTES:
            raise PodLost("the cluster sent a message over the limit of 1 MiB")
        self._fragments += data
        if first & _FIN:
            message, self._fragments = self._fragments, None
            if message:
                self._take_message(message[0], message[1:], output)

    def _take_message(self, channel: int, data: bytearray, output: list[bytearray]) -> None:
        if channel in (STDOUT, STDERR):
            output.append(data)
        elif channel == STATUS:
            self.exit = decode_status(data)

    def write(self, data: bytes) -> None:
        """Send input. Any thread; does not block: wait_for_room says when there is too much. Raises PodLost."""
        self._send(encode_stdin(data))

    def resize(self, cols: int, rows: int) -> None:
        """Tell the terminal's size. Any thread; does not block. Raises ValueError outside 1..65535, PodLost."""
        self._send(encode_resize(cols, rows))

    def wait_for_room(self, limit: int, timeout: float) -> bool:
        """Block while more than ``limit`` bytes wait for a program that does not read; any thread but the reader's.

        Returns whether there is room: False after ``timeout`` seconds, or ``wake``.
        """
        return self._aborted or self._stream.wait_for_room(limit, timeout)

    def _send(self, message: bytes, opcode: int = websocket.ABNF.OPCODE_BINARY) -> None:
        frame = websocket.ABNF.create_frame(message, opcode).format()
        try:
            sent = self._stream.put(frame)
        except (OSError, ValueError):
            raise PodLost("the connection to the cluster was lost") from None
        self._last_sent = time.monotonic()
        if not sent:
            self._ring()

    def keep_alive(self) -> None:
        """Send an empty stdin message if nothing was sent for 25 s. Reader thread only; read does it by itself."""
        # Load balancers and the kubelet cut streams without messages; WebSocket pings do not count for the kubelet.
        if time.monotonic() - self._last_sent >= KEEP_ALIVE_SECONDS:
            self._send_if_idle(encode_stdin(b""), websocket.ABNF.OPCODE_BINARY)

    def _send_if_idle(self, message: bytes, opcode: int) -> None:
        """Send a small frame, unless input waits before it, which keeps the connection alive as well."""
        if not self._stream.unsent:
            with contextlib.suppress(PodLost):  # the read that follows meets the same end, and reports it
                self._send(message, opcode)

    def abort(self) -> None:
        """Drop the connection, any thread: read returns ``b""``, write raises PodLost, wait_for_room returns.

        Never a close frame: the runtime would keep the program running on it.
        """
        self._aborted = True
        self._stream.abort()
        self._stream.wake_writers()

    def close(self) -> None:
        """Drop the connection and free it, when no thread is inside any more."""
        self._aborted = True
        self._stream.close()
        self._waker.close()
        self._alarm.close()


def _upgrade(cluster: Cluster, shown: Credential, path: str, deadline: float) -> TlsStream:
    """Ask for the exec. Raises ExecRefused with a sentence."""
    stream = TlsStream(dial(cluster, shown, deadline), deadline)
    try:
        _handshake(stream, cluster, shown, path)
        return stream
    except BaseException:
        stream.close()
        raise


def _handshake(stream: TlsStream, cluster: Cluster, shown: Credential, path: str) -> None:
    """Raises ExecRefused for a refusal, PodLost for an answer that does not say whether the program runs."""
    try:
        sock: websocket.WebSocket = websocket.create_connection(
            f"wss://{_authority(cluster.host, cluster.port)}{path}",
            host=_authority(cluster.host, cluster.port, 443),
            socket=stream,
            subprotocols=[SUBPROTOCOL],
            suppress_origin=True,
            enable_multithread=False,  # PodExec has a lock of its own
            redirect_limit=0,  # a redirect would carry the bearer token to another host
            header=list(shown.headers),
        )
    except websocket.WebSocketBadStatusException as exc:
        # The exception's own text holds headers and body; only status and message may be told.
        # A server may echo the request, credentials included.
        body = exc.resp_body or b""
        for line in shown.headers:
            if line.startswith("Authorization: "):
                body = body.replace(line.split(" ", 2)[2].encode(), b"[hidden]")
        raise ExecRefused(exc.status_code, explain_refusal(exc.status_code, body)) from None
    except (websocket.WebSocketTimeoutException, *_TIMEOUTS):
        raise PodLost("the cluster did not answer the exec request in time") from None  # the program may run
    except (websocket.WebSocketException, OSError, EOFError, ValueError, LookupError) as exc:
        if _alert(exc) in _ALERTS:  # TLS 1.3 tells them after the handshake; the request was not read
            raise _no_tls(cluster, exc) from None
        raise PodLost("the cluster's answer to the exec request is not a WebSocket's") from None
    status = sock.getstatus()  # type: ignore[no-untyped-call]
    if status != 101:
        raise ExecRefused(status or 0, "the cluster answered the exec request with a redirect, which is refused")


# -- a shell, from its start to its hang-up --------------------------------------------------------------------------

_ASK_AGAIN_SECONDS = 0.4
_ANSWER_SECONDS = 3.0  # for one question after a pod
_UNSURE_SECONDS = 5.0  # for ending a shell of which only the start was heard
_SILENT_SECONDS = 2.0  # a program without the start script that has printed nothing for so long is a silent one


@dataclass(frozen=True)
class Shell:
    """A shell that runs in a container, and the program there that can hang it up (empty: there is none).

    ``target`` names the container that was chosen.
    """

    pod: PodExec
    program: str
    target: Target


@dataclass(frozen=True)
class HangUp:
    """How many processes were told, None when it could not be checked; ``again``: another try later may do it."""

    count: int | None
    again: bool = False


def open_shell(
    target: Target,
    session_id: str,
    command: Sequence[str],
    directory: str,
    size: tuple[int, int],
    *,
    timeout: float,
    reports: bool = False,
) -> Shell:
    """Open the best shell of the container, or ``command``, in ``directory`` if it is not empty.

    The terminal has its ``size`` (columns, rows) before the first prompt. Where several containers could be meant, the
    pod's annotation chooses, as for kubectl; without one SeveralContainers is raised. With ``reports`` a bash tells its
    command lines and exit codes (OSC 633). Blocks for ``timeout`` seconds at most, 2 s more for a silent program, and
    3 s for asking about a pod that is not running. Raises ExecError with a sentence.
    """
    deadline = time.monotonic() + timeout
    try:
        return _open_best(target, session_id, command, directory, size, deadline, reports)
    except ExecRefused as exc:
        if exc.status == 500 and "is not running" in str(exc):
            why = explain_not_running(_ask_pod(target)[1], target.container)
            raise ExecRefused(500, f"the container is not running: {why}") if why else exc from None
        if exc.status != 400 or target.container:
            raise
        body = _ask_pod(target)[1]
        container = default_container(body)
        if not container:
            names = running_containers(body) or _listed_containers(str(exc))
            raise SeveralContainers(exc, names) if names else exc from None
    target = replace(target, container=container)
    return _open_best(target, session_id, command, directory, size, deadline, reports)


def _open_best(
    target: Target,
    session_id: str,
    command: Sequence[str],
    directory: str,
    size: tuple[int, int],
    deadline: float,
    reports: bool,
) -> Shell:
    """Try one program after the other. What happened decides, since each runtime has its own words for it."""
    failures: list[ExitStatus] = []
    for program in SHELLS:
        arguments = [directory, *map(str, size), _REPORTS if reports else "", *command]
        script = [program, "-c", _TAG, session_id, program, _START, *arguments]
        try:
            tried = _try_program(target, script, size, deadline, session_id.encode())
        except PodLost:  # it may run all the same
            hang_up(target, session_id, program, timeout=_UNSURE_SECONDS)
            raise
        if isinstance(tried, PodExec):
            return Shell(tried, program, target)
        failures.append(tried)
    bare = [command] if command else [[name] for name in WINDOWS_SHELLS if all(end.code is None for end in failures)]
    for words in bare if not directory else ():
        tried = _try_program(target, words, size, deadline, b"")
        if isinstance(tried, PodExec):
            return Shell(tried, "", target)
        failures.append(tried)
    for failure in failures:
        if not failure.not_found:
            raise ExecRefused(0, failure.message)
    names = printable(command[0]) if command else ", ".join((*SHELLS, *(words[0] for words in bare)))
    raise ExecRefused(0, f"the container's image has no shell and nothing else that could be run (tried: {names})")


def _try_program(
    target: Target, command: Sequence[str], size: tuple[int, int], deadline: float, mark: bytes
) -> PodExec | ExitStatus:
    """The program once it runs, or how it ended instead."""
    pod = PodExec.open(target, command, timeout=max(0.1, deadline - time.monotonic()))
    try:
        with contextlib.suppress(PodLost):  # the end, if it is one, is read below, with its status
            pod.resize(*size)
        failure = pod.started(mark, max(0.1, deadline - time.monotonic()) if mark else _SILENT_SECONDS)
        if failure is None:
            return pod
    except BaseException:
        pod.close()
        raise
    pod.close()
    return failure


def hang_up(target: Target, session_id: str, program: str, *, timeout: float) -> HangUp:
    """End what a session without an exit status left in the container. Blocks for ``timeout`` seconds at most.

    Older container runtimes leave everything running when a connection goes away, the newest the background jobs.
    It cannot be done when the container is gone, has no ``grep`` or shell, or the cluster does not allow it any more;
    trying again is of use when the cluster could not be reached, or did not answer in time.
    """
    if not program:
        return HangUp(None)
    deadline = time.monotonic() + timeout
    try:
        return _told(
            PodExec.open(target, [program, "-c", _HANG_UP, session_id, program], timeout=timeout, tty=False), deadline
        )
    except ExecRefused as exc:
        gone = 400 <= exc.status < 500 and exc.status != 429
        return HangUp(None, not gone and "is not running" not in str(exc))
    except ExecError:
        return HangUp(None, True)


def _told(pod: PodExec, deadline: float) -> HangUp:
    """Read to its end what the hang-up prints. Raises PodLost."""
    output = b""
    try:
        with _limited(deadline, pod.abort):
            while chunk := pod.read():
                output = (output + chunk)[-_MESSAGE_CHARACTERS:]
    finally:
        pod.close()
    if pod.exit is None:
        return HangUp(None, True)
    told = _HUNG_UP.fullmatch(output.rstrip().rpartition(b"\n")[2])
    return HangUp(int(told[1]) if told and pod.exit.code == 0 else None)


def why_lost(target: Target, since: float, *, timeout: float) -> str:
    """Ask the cluster what became of the pod since then (Unix seconds). A sentence, or "" when nothing is known.

    Asks again while the pod looks well: the API server learns of an end a second or so after it. Needs ``get`` on
    ``pods``. Blocks for ``timeout`` seconds, and 3 s more when the last answer is slow.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            status, body = _ask_pod(target)
            said = explain_pod(status, body, target.container, since)
            final = bool(said) or status in (0, 403)
        except PodLost as exc:
            return str(exc)
        except ExecRefused:
            return "the cluster's API server cannot be reached any more"
        if final or time.monotonic() + _ASK_AGAIN_SECONDS > deadline:
            return said or explain_gateway(status, body)
        time.sleep(_ASK_AGAIN_SECONDS)


def _ask_pod(target: Target) -> tuple[int, bytes]:
    """The pod's object, as HTTP status and body; (0, b"") when there is no answer.

    Raises ExecRefused when no connection can be made, PodLost when the API server ends it with a TLS alert.
    """
    deadline = time.monotonic() + _ANSWER_SECONDS
    try:
        shown = credential(target.cluster.user, deadline)
        with dial(target.cluster, shown, deadline) as tls, _limited(deadline, functools.partial(_drop, tls)):
            host = _authority(target.cluster.host, target.cluster.port, 443)
            lines = (f"GET {target.path} HTTP/1.1", f"Host: {host}", "Connection: close", *shown.headers, "", "")
            with contextlib.suppress(OSError):  # who refuses before it has read all says why
                tls.sendall("\r\n".join(lines).encode("ascii"))
            response = http.client.HTTPResponse(tls)
            response.begin()
            return response.status, response.read(FILE_LIMIT_BYTES)
    except ExecRefused:
        raise
    except (OSError, ExecError, ValueError, http.client.HTTPException) as exc:
        if _alert(exc):
            raise PodLost(f"the cluster no longer lets this server in: {_tls_fault(exc)}") from None
        return 0, b""


_ODD_OBJECT = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def explain_pod(status: int, body: bytes, container: str, since: float) -> str:
    """What the answer to a question for a pod says of its end; "" when the pod looks well, or it does not say."""
    try:
        pod = json.loads(body)
        if status != 200:
            if pod["kind"] != "Status" or pod["code"] != status:  # a gateway's answer says nothing of the pod
                return ""
            if status == 401:
                return "the cluster no longer accepts the credentials (a token that has expired?)"
            return "the pod was deleted" if status == 404 and pod["details"]["kind"] == "pods" else ""
        state = pod["status"]
        message = printable(str(state.get("message") or ""))
        if state.get("reason") == "Evicted":
            return f"the pod was evicted: {message}" if message else "the pod was evicted"
        if state.get("reason") == "NodeLost" or _node_silent(state):
            return "the pod's node was lost"
        for item in _statuses(state, container):
            ended = _ended_since(item, since)
            if ended:
                return ended
        return "the pod is being deleted" if pod["metadata"].get("deletionTimestamp") else ""
    except _ODD_OBJECT:
        return ""


def explain_not_running(body: bytes, container: str) -> str:
    """What a pod's object says of why the container does not run; "" when it does not say."""
    try:
        state = json.loads(body)["status"]
        for item in _statuses(state, container):
            waiting, ended = (item["state"].get(key) for key in ("waiting", "terminated"))
            if waiting:
                return _reason(waiting)
            if ended:
                return f"{_reason(ended)}, exit code {printable(str(ended.get('exitCode')))}"
        return next(_reason(item) for item in state["conditions"] if item["status"] == "False" and item.get("message"))
    except (*_ODD_OBJECT, StopIteration):
        return ""


def _reason(item: dict[str, Any]) -> str:
    message = printable(str(item.get("message") or ""))
    return printable(str(item.get("reason"))) + (f" ({message})" if message else "")


def default_container(body: bytes) -> str:
    """The container of a pod's object that its annotation names for those who name none, as kubectl has it; else ""."""
    try:
        pod = json.loads(body)
        names = [container["name"] for container in pod["spec"]["containers"]]
        name = pod["metadata"]["annotations"][_DEFAULT_CONTAINER]
        return str(name) if name in names and _NAME.fullmatch(name) else ""
    except _ODD_OBJECT:
        return ""


def running_containers(body: bytes) -> tuple[str, ...]:
    """The containers of a pod's object in which a program can be started now, 100 at most.

    Init containers that go on running (sidecars) and ephemeral ones come last.
    """
    try:
        state = json.loads(body)["status"]
        found = [item["name"] for kind in _STATUSES for item in state.get(kind) or () if "running" in item["state"]]
        return tuple(filter(_NAME.fullmatch, found))[:_CHOICES_LIMIT]
    except _ODD_OBJECT:
        return ()


def _listed_containers(sentence: str) -> tuple[str, ...]:
    """Those that the cluster's refusal names, where the pod itself may not be looked at."""
    names = sentence.partition(_SEVERAL)[2].split()
    return tuple(filter(_NAME.fullmatch, names))[:_CHOICES_LIMIT]


_STATUSES = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")


def _statuses(state: dict[str, Any], container: str) -> list[dict[str, Any]]:
    """Of the named container, which may be an init container that goes on running, or an ephemeral one."""
    found = [item for kind in _STATUSES[: 3 if container else 1] for item in state.get(kind) or ()]
    return [item for item in found if container in ("", item["name"])]


def _node_silent(state: dict[str, Any]) -> bool:
    """Whether the control plane has taken Ready away while all that the kubelet last said is well.

    That is all it does when a node falls silent. A failing probe or a readiness gate comes with a reason.
    """
    ready = [item for item in state.get("conditions") or () if item["type"] == "Ready"]
    well = all(item.get("ready") for item in state.get("containerStatuses") or ())
    return any(
        item["status"] == "Unknown" or (item["status"] == "False" and well and not item.get("reason")) for item in ready
    )


def _ended_since(container: dict[str, Any], since: float) -> str:
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        ended = state.get("terminated")
        if ended and _rfc3339(ended["finishedAt"]) >= since - 1.0:  # whole seconds only
            if ended.get("reason") == "OOMKilled":
                return "the container was killed because it used too much memory (OOMKilled)"
            code = printable(str(ended.get("exitCode")))
            return f"the container has ended ({printable(str(ended.get('reason')))}, exit code {code})"
    return ""
