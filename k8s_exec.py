"""How is a pod reached? Kubeconfig documents, TLS, and the Kubernetes exec protocol.

Owns the YAML subset of kubeconfig files, the credentials in them, and the WebSocket to the kube-apiserver's
exec endpoint (subprotocol ``v4.channel.k8s.io``). Knows nothing of browsers, recordings or HTTP serving.

A kubeconfig arrives from the network, so it is untrusted: it is parsed within limits, and whatever would make
this host run a program or read a file of its own is refused. No secret of it appears in an error or a ``repr``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import socket
import ssl
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, NoReturn

import websocket

__all__ = [
    "SHELL",
    "Cluster",
    "ExecError",
    "ExecRefused",
    "ExitStatus",
    "KubeconfigError",
    "PodExec",
    "PodLost",
    "load_kubeconfig",
    "parse_yaml",
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


class PodLost(ExecError):
    """The connection to the pod ended without an exit status. ``str()`` is a sentence for the user."""


# -- YAML ------------------------------------------------------------------------------------------------------------

YAML_MAX_INPUT_BYTES = 1024 * 1024  # characters, when the document comes as str
YAML_MAX_DEPTH = 50  # collections inside collections, aliases counted in
YAML_MAX_ALIAS_NODES = 100_000  # nodes that all aliases together stand for
YAML_MAX_KEY_CHARS = 1024  # YAML 1.2, 7.4.2

_BLANK = frozenset(" \t")
_SPACE_OR_END = frozenset(" \t\n") | {""}  # "" is what _peek() says at the end of the text
_FLOW_INDICATORS = frozenset(",[]{}")
_NEVER_PLAIN = frozenset(",[]{}#&*!|>'\"%@`")  # 5.3: these cannot start a plain scalar
_PLAIN_BEFORE_TEXT = frozenset("-?:")  # 7.3.3: these can, when text follows at once
_ANCHOR_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# Booleans in YAML 1.1 and so to kubectl ("name: no" is "false" to it), text in YAML 1.2.
_YAML11_BOOLS = frozenset(
    form for word in ("y", "n", "yes", "no", "on", "off") for form in (word, word.capitalize(), word.upper())
)
_ESCAPES = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "\t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r",
    "e": "\x1b", " ": " ", '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")

# 5.1, less the characters that are line breaks in YAML 1.1 only, and a BOM that is not the first character.
_FORBIDDEN = re.compile("[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_BLANKS = re.compile(r"[ \t]*")
_TO_LINE_END = re.compile(r"[^\n]*")
_BREAKS = re.compile(r"[ \t]*\n(?:[ \t]*\n)*( *)[ \t]*")  # group 1: the indentation of the next line with text
# One line of a plain scalar (7.3.3): ends before ": ", " #" and, in a flow collection, its indicators.
_PLAIN_LINE = re.compile(r"(?:[^ \t\n:#]|:(?=[^ \t\n])|(?<=[^ \t\n])#|[ \t]+(?=[^ \t\n:#]|:[^ \t\n]))+")
_PLAIN_FLOW = re.compile(
    r"(?:[^ \t\n:#,?\[\]{}]|:(?=[^ \t\n,\[\]{}])|(?<=[^ \t\n])#|[ \t]+(?=[^ \t\n:#,?\[\]{}]|:[^ \t\n,\[\]{}]))+"
)
_QUOTED_LINE = re.compile(r""""(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\n]|'')*'""")
_KEY_END = re.compile(r"[ \t]*:(?=[ \t\n]|\Z)")
_DOUBLE_TEXT = re.compile(r'[^"\\\n \t]+|[ \t]+(?=[^\n \t])')
_SINGLE_TEXT = re.compile(r"[^'\n \t]+|[ \t]+(?=[^\n \t])")
_BLOCK_HEADER = re.compile(r"[|>](?:([1-9])([+-]?)|([+-])([1-9]?))?(?=[ \t\n]|\Z)")

# Numbers on which YAML 1.1, YAML 1.2 and kubectl agree; what else looks like one to any of them is refused.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,18}(?:[eE][-+][0-9]{1,2})?")
_NUMBER_LIKE = re.compile(
    r"[-+]?(?:0[bB][01]*|0[oO][0-7]*|0[xX][0-9a-fA-F]*|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF|nan|NaN|NAN))"
)


def parse_yaml(text: str | bytes) -> object:
    """The one document in `text` as dict, list, str, int, float, bool or None; an empty one is None.

    Reads what kubectl and the tools around it write: block and flow collections, JSON, all five scalar styles,
    comments, anchors, aliases and `<<`. Keys are text and occur once. Aliases share the object they stand for.
    Raises KubeconfigError, with the place, for everything else, and nothing but KubeconfigError.
    """
    if len(text) > YAML_MAX_INPUT_BYTES:
        raise KubeconfigError("the document is larger than 1 MiB")
    if isinstance(text, bytes):
        text = _decode_utf8(text)
    if text.startswith("\ufeff"):
        text = text[1:]
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parser = _YamlParser(text)
    bad = _FORBIDDEN.search(text)
    if bad:
        parser.fail(f"the character U+{ord(bad.group()):04X} is not allowed", bad.start())
    try:
        return parser.document()
    except RecursionError:
        raise KubeconfigError("the document is nested too deeply") from None


def _decode_utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    line = before.count("\n") + 1
    raise KubeconfigError("the document is not UTF-8", line, len(before) - before.rfind("\n"))


class _MergeKey:
    """The type of the key `<<`."""


_MERGE = _MergeKey()


class _YamlParser:
    """Recursive descent over `text`. `pos` is where it reads, `line_start` where the line of `pos` begins.

    `indent` is always the column (from 0) of the collection around a node, -1 for none: what belongs to the
    node on further lines stands to the right of it (YAML 1.2, 6.1).
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.line_start = 0
        self.depth = 0
        self.deepest = 0  # since the anchor that is being read began
        self.nodes = 0  # read so far, aliases counted with all they stand for
        self.alias_nodes = 0
        self.anchors: dict[str, tuple[object, int, int]] = {}  # name: value, nodes, levels

    # -- position and errors

    def fail(self, message: str, pos: int | None = None) -> NoReturn:
        pos = self.pos if pos is None else pos
        line = self.text.count("\n", 0, pos) + 1
        raise KubeconfigError(message, line, pos - self.text.rfind("\n", 0, pos))

    def _peek(self, ahead: int = 0) -> str:
        return self.text[self.pos + ahead : self.pos + ahead + 1]

    def _move(self, pos: int) -> None:
        """Move on to `pos`; every step over a line break goes through here."""
        line_start = self.text.rfind("\n", self.pos, pos) + 1
        if line_start:
            self.line_start = line_start
        self.pos = pos

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.pos)
        if match:
            self._move(match.end())

    def _skip_gap(self) -> bool:
        """Go to the next token, over blanks, comments and line breaks (6.6, 6.7). True if on another line."""
        line_start = self.line_start
        while True:
            self._skip(_BLANKS)
            if self._at_comment():
                self._skip(_TO_LINE_END)
            if self._peek() != "\n":
                return self.line_start != line_start
            self._skip(_BREAKS)

    def _at_comment(self) -> bool:
        return self._peek() == "#" and (self.pos == self.line_start or self.text[self.pos - 1] in _BLANK)

    def _at_marker(self, pos: int | None = None) -> bool:
        """Is this `---` or `...` at the start of a line (9.1.1, 9.1.2)?"""
        pos = self.pos if pos is None else pos
        if not self.text.startswith(("---", "..."), pos) or self.text[pos + 3 : pos + 4] not in _SPACE_OR_END:
            return False
        return pos == 0 or self.text[pos - 1] == "\n"

    def _at_dash(self) -> bool:
        return self._peek() == "-" and self._peek(1) in _SPACE_OR_END

    def _tab_before(self) -> int:
        """Where a tab stands between the start of the line and here; -1 if nowhere."""
        return self.text.find("\t", self.line_start, self.pos)

    def _end_line(self) -> None:
        """Only blanks and a comment may stand between here and the end of the line."""
        self._skip(_BLANKS)
        if self._peek() in ("", "\n") or self._at_comment():
            return
        if self._peek() == ":":
            self.fail("a 'key: value' is not allowed here")
        self.fail(f"unexpected {self._peek()!r} after a value")

    def _enter(self) -> None:
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        if self.depth > YAML_MAX_DEPTH:
            self.fail(f"more than {YAML_MAX_DEPTH} levels of nesting")

    # -- document

    def document(self) -> object:
        """The only document of the stream (9.2)."""
        self._skip_gap()
        own_line = True
        if self._at_marker():
            if self._peek() == ".":
                self.fail("'...' before a document")
            self.pos += 3
            own_line = False
        value = self._block_node(-1, own_line=own_line)
        self._skip_gap()
        if self._at_marker() and self._peek() == ".":
            self.pos += 3
            self._end_line()
            self._skip_gap()
        if self._at_marker():
            self.fail("more than one document")
        if self.pos < len(self.text):
            self.fail("unexpected text after the document")
        return value

    # -- block style (chapter 8)

    def _block_node(
        self, indent: int, *, own_line: bool = False, after_key: bool = False, anchored: bool = False
    ) -> object:
        """The node after `key:`, after `- ` or at the start; None for one that is left empty.

        `own_line`: a block collection may begin on this very line (8.2.1, compact forms).
        """
        self.nodes += 1
        if self._skip_gap() or indent < 0 and own_line:
            own_line = True
            self._refuse_tab_indent()
            at_key_column = after_key and self._column() == indent and self._at_dash()
            if self._column() <= indent and not at_key_column:
                return None
        elif self._tab_before() >= 0:
            own_line = False  # a tab separates, but gives a compact collection no column
        if self._peek() == "" or self._at_marker():
            return None
        char = self._peek()
        if char in ("&", "*") and anchored:
            self.fail("a second anchor or alias for one node")
        if char == "&":
            return self._anchored(lambda: self._block_node(indent, after_key=after_key, anchored=True))
        if own_line:
            if self._at_dash():
                return self._block_list()
            column, start = self._column(), self.pos
            key = self._block_key()
            if key is not None:
                return self._block_map(column, start, key)
        if char in ("|", ">"):
            return self._block_scalar(indent)
        value = self._flow_node_at(char, indent)
        self._end_line()
        return value

    def _column(self) -> int:
        return self.pos - self.line_start

    def _refuse_tab_indent(self) -> None:
        """On a new line with text: tabs do not indent (6.1)."""
        tab = self._tab_before()
        if tab >= 0 and self._peek() != "":
            self.fail("a tab is used as indentation", tab)

    def _next_entry(self, column: int) -> bool:
        """Go to the next entry of the block collection at `column`; False when it has ended."""
        self._skip_gap()
        if self._peek() == "" or self._at_marker():
            return False
        self._refuse_tab_indent()
        if self._column() > column:
            self.fail("the indentation fits nothing above")
        return self._column() == column

    def _block_list(self) -> list[object]:
        """8.2.1; `pos` is at the first dash."""
        self._enter()
        column = self._column()
        items: list[object] = []
        while True:
            self.pos += 1
            items.append(self._block_node(column, own_line=True))
            if not self._next_entry(column) or not self._at_dash():
                break
        self.depth -= 1
        return items

    def _block_map(self, column: int, start: int, key: str | _MergeKey) -> dict[str, object]:
        """8.2.2; the first key, which began at `start`, has been read."""
        self._enter()
        entries = _Entries(self)
        while True:
            entries.check(key, start)
            entries.add(key, self._block_node(column, after_key=True), start)
            if not self._next_entry(column):
                break
            start = self.pos
            next_key = self._block_key()
            if next_key is None:
                self.fail("expected 'key: value'")
            key = next_key
        self.depth -= 1
        return entries.result()

    def _block_key(self) -> str | _MergeKey | None:
        """Read an implicit key and its colon (7.4.2); None, and `pos` unmoved, if this line begins with none."""
        start = self.pos
        quoted = self._peek() in ("'", '"')
        if not quoted and not self._plain_starts(in_flow=False):
            return None
        match = (_QUOTED_LINE if quoted else _PLAIN_LINE).match(self.text, start)
        colon = _KEY_END.match(self.text, match.end()) if match else None
        if not match or not colon:
            return None
        key = self._quoted() if quoted else self._plain_key(match.group(), start)
        self._check_key_length(start, colon.end())
        self.pos = colon.end()
        return key

    def _check_key_length(self, start: int, end: int) -> None:
        if end - start > YAML_MAX_KEY_CHARS:
            self.fail(f"a key of more than {YAML_MAX_KEY_CHARS} characters", start)

    def _plain_key(self, text: str, start: int) -> str | _MergeKey:
        if text == "<<":
            return _MERGE
        key = self._resolve(text, start)
        if not isinstance(key, str):
            self.fail("a key must be text; put it in quotes", start)
        return key

    def _block_scalar(self, indent: int) -> str:
        """`|` and `>` with indentation and chomping indicators (8.1)."""
        header = _BLOCK_HEADER.match(self.text, self.pos)
        if not header:
            self.fail("not the header of a block scalar")
        digit, chomp = header.group(1) or header.group(4), header.group(2) or header.group(3)
        folded = self._peek() == ">"
        self.pos = header.end()
        self._end_line()
        self._skip(_TO_LINE_END)
        self._move(min(self.pos + 1, len(self.text)))
        least = max(indent + 1, 1)
        width = least + int(digit) - 1 if digit else self._detect_indent(least)
        lines, ended = self._block_lines(width)
        blank = 0
        while lines and not lines[-1]:
            lines.pop()
            blank += 1
        body = _fold_block(lines) if folded else "\n".join(lines)
        if chomp == "-" or not (lines or blank):
            return body
        final = "\n" if lines and (blank or ended) else ""
        if chomp == "+":
            return body + final + "\n" * (blank if ended or not lines else blank - 1)
        return body + final

    def _detect_indent(self, least: int) -> int:
        """The column of the first line with text (8.1.1.1)."""
        pos, widest = self.pos, 0
        while True:
            end = pos
            while self.text[end : end + 1] == " ":
                end += 1
            if self.text[end : end + 1] != "\n":
                break
            widest = max(widest, end - pos)
            pos = end + 1
        width = max(end - pos, least)
        if widest > width:
            self.fail("a blank line is indented more than the text of its block scalar", pos)
        return width

    def _block_lines(self, width: int) -> tuple[list[str], bool]:
        """Lines of a block scalar without their indentation, and whether the last one had a line break."""
        lines: list[str] = []
        ended = True
        text = self.text
        while self.pos < len(text):
            end = text.find("\n", self.pos)
            ended = end >= 0
            end = end if ended else len(text)
            stripped = self.pos
            while stripped < end and stripped - self.pos < width and text[stripped] == " ":
                stripped += 1
            if stripped < end and stripped - self.pos < width:
                if text[stripped] == "\t":
                    self.fail("a tab is used as indentation", stripped)
                return lines, True
            if stripped == end and not ended:
                self._move(end)
                return lines, True
            lines.append(text[stripped:end])
            self._move(min(end + 1, len(text)))
        return lines, ended

    # -- flow style (chapter 7)

    def _flow_node_at(self, char: str, indent: int | None) -> object:
        """A scalar, alias or flow collection that begins with `char`; `indent` is None inside of a collection."""
        if char == "*":
            return self._alias()
        if char in ("'", '"'):
            return self._quoted()
        if char == "[":
            return self._flow_list()
        if char == "{":
            return self._flow_map()
        return self._plain(indent)

    def _flow_node(self, *, anchored: bool = False) -> object:
        """A node inside of a flow collection; None for one that is left empty."""
        self.nodes += 1
        self._skip_flow_gap()
        char = self._peek()
        if char in ("&", "*") and anchored:
            self.fail("a second anchor or alias for one node")
        if char == "&":
            return self._anchored(lambda: self._flow_node(anchored=True))
        if char in (",", "]", "}"):
            return None
        return self._flow_node_at(char, None)

    def _skip_flow_gap(self) -> None:
        self._skip_gap()
        if self._peek() == "":
            self.fail("a '[' or '{' is not closed")
        if self._at_marker():
            self.fail("a document marker inside of '[' or '{'")

    def _next_flow_entry(self, close: str, first: bool) -> bool:
        """Go to the next entry of the flow collection that ends with `close`; False, and past it, at the end."""
        self._skip_flow_gap()
        if not first and self._peek() == ",":
            self.pos += 1
            self._skip_flow_gap()
        elif not first and self._peek() != close:
            self.fail(f"expected ',' or {close!r}")
        if self._peek() == close:
            self.pos += 1
            return False
        if self._peek() == ",":
            self.fail("expected a value before ','")
        return True

    def _flow_list(self) -> list[object]:
        """7.4.1, without the `[key: value]` form."""
        self._enter()
        self.pos += 1
        items: list[object] = []
        while self._next_flow_entry("]", not items):
            items.append(self._flow_node())
        self.depth -= 1
        return items

    def _flow_map(self) -> dict[str, object]:
        """7.4.2; every key has its colon."""
        self._enter()
        self.pos += 1
        entries = _Entries(self)
        first = True
        while self._next_flow_entry("}", first):
            first = False
            start = self.pos
            key = self._flow_key()
            entries.check(key, start)
            entries.add(key, self._flow_node(), start)
        self.depth -= 1
        return entries.result()

    def _flow_key(self) -> str | _MergeKey:
        """Read a key and its colon, which stand on one line."""
        start = self.pos
        key: str | _MergeKey
        quoted = self._peek() in ("'", '"')
        if quoted:
            line_start = self.line_start
            key = self._quoted()
            if self.line_start != line_start:
                self.fail("a key of more than one line", start)
        else:
            match = _PLAIN_FLOW.match(self.text, start) if self._plain_starts(in_flow=True) else None
            if not match:
                self._refuse_indicator("a key")
            key = self._plain_key(match.group(), start)
            self.pos = match.end()
        self._skip(_BLANKS)
        # JSON-like keys need no space after the colon (7.4.2).
        if self._peek() != ":" or not (quoted or self._peek(1) in _SPACE_OR_END):
            self.fail("expected ': ' after a key")
        self.pos += 1
        self._check_key_length(start, self.pos)
        return key

    # -- anchors and aliases (6.9.2, 7.1)

    def _anchor_name(self) -> str:
        """The name after `&` or `*`."""
        end = self.pos + 1
        while self.text[end : end + 1] in _ANCHOR_CHARS:
            end += 1
        name = self.text[self.pos + 1 : end]
        if not name or self.text[end : end + 1] not in _SPACE_OR_END | _FLOW_INDICATORS:
            self.fail("not an anchor name of letters, digits, '-' and '_'")
        self.pos = end
        return name

    def _anchored(self, read: Callable[[], object]) -> object:
        """A node with an anchor. The name is known only after the node, so no alias can hold itself."""
        start = self.pos
        name = self._anchor_name()
        if name in self.anchors:
            self.fail("an anchor is defined twice", start)
        nodes_before, deepest_before = self.nodes, self.deepest
        self.deepest = self.depth
        value = read()
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
        self.nodes += nodes
        self.alias_nodes += nodes
        self.deepest = max(self.deepest, self.depth + levels)
        if self.alias_nodes > YAML_MAX_ALIAS_NODES:
            self.fail("the aliases stand for too much", start)
        if self.depth + levels > YAML_MAX_DEPTH:
            self.fail(f"more than {YAML_MAX_DEPTH} levels of nesting", start)
        return value

    # -- scalars

    def _quoted(self) -> str:
        """A single- or double-quoted scalar, folded over lines (7.3.1, 7.3.2)."""
        start, quote = self.pos, self._peek()
        plain_text = _DOUBLE_TEXT if quote == '"' else _SINGLE_TEXT
        parts: list[str] = []
        self.pos += 1
        while True:
            match = plain_text.match(self.text, self.pos)
            if match:
                parts.append(match.group())
                self.pos = match.end()
                continue
            char = self._peek()
            if char == quote:
                self.pos += 1
                if quote == '"' or self._peek() != "'":
                    return "".join(parts)
                parts.append("'")
                self.pos += 1
            elif char == "\\":
                parts.append(self._escape())
            else:
                parts.append(self._fold_quoted(start))

    def _fold_quoted(self, start: int) -> str:
        """Blanks and line breaks of a quoted scalar as a space or line breaks (6.5)."""
        breaks = _BREAKS.match(self.text, self.pos)
        if not breaks or breaks.end() == len(self.text):
            self.fail("a quote is not closed", start)
        self._move(breaks.end())
        if self._at_marker():
            self.fail("a document marker inside of quotes")
        return _folded(breaks.group().count("\n"))

    def _escape(self) -> str:
        """One escape sequence of a double-quoted scalar (5.7); `pos` is at the backslash."""
        code = self._peek(1)
        if code == "\n":  # the line break is escaped: no space comes of it
            self._move(self.pos + 1)
            folded = self._fold_quoted(self.pos)
            return "" if folded == " " else folded
        if code in _HEX_ESCAPES:
            return self._hex_escape(_HEX_ESCAPES[code])
        if code not in _ESCAPES:
            self.fail("not a YAML escape sequence")
        self.pos += 2
        return _ESCAPES[code]

    def _hex_escape(self, length: int) -> str:
        digits = self.text[self.pos + 2 : self.pos + 2 + length]
        if len(digits) < length or not _HEX_DIGITS.issuperset(digits):
            self.fail(f"expected {length} hexadecimal digits")
        number = int(digits, 16)
        if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
            self.fail("an escape sequence that is not a character")
        self.pos += 2 + length
        return chr(number)

    def _plain_starts(self, *, in_flow: bool) -> bool:
        """May a plain scalar begin here (7.3.3)?"""
        char, after = self._peek(), self._peek(1)
        if char in _PLAIN_BEFORE_TEXT:
            if in_flow:
                return char == "-" and after not in _SPACE_OR_END and after not in _FLOW_INDICATORS
            return after not in _SPACE_OR_END
        return char not in _NEVER_PLAIN and char not in _SPACE_OR_END

    def _refuse_indicator(self, expected: str) -> NoReturn:
        reasons = {
            "!": "tags are not supported",
            "?": "'? ' keys are not supported",
            "%": "directives are not supported",
            "-": "a list is not allowed here",
        }
        self.fail(reasons.get(self._peek(), f"expected {expected}, not {self._peek()!r}"))

    def _plain(self, indent: int | None) -> object:
        """A plain scalar, folded over lines (7.3.3); `indent` is None inside of a flow collection."""
        start = self.pos
        pattern = _PLAIN_FLOW if indent is None else _PLAIN_LINE
        match = pattern.match(self.text, start) if self._plain_starts(in_flow=indent is None) else None
        if not match:
            self._refuse_indicator("a value")
        parts: list[str] = []
        while match:
            parts.append(match.group())
            self._move(match.end())
            breaks = _BREAKS.match(self.text, self.pos)
            if not breaks or (indent is not None and len(breaks.group(1)) <= indent):
                break
            if self._at_marker(breaks.end()) or self.text[breaks.end() : breaks.end() + 1] == "#":
                break
            parts.append(_folded(breaks.group().count("\n")))
            match = pattern.match(self.text, breaks.end())
        else:
            parts.pop()  # the fold before a line that does not go on with the scalar
        return self._resolve("".join(parts), start)

    def _resolve(self, text: str, start: int) -> object:
        """The value of a plain scalar: the core schema (10.3.2) where YAML 1.1 and kubectl read the same."""
        if text in _NULLS:
            return None
        if text in _BOOLS:
            return _BOOLS[text]
        if text in _YAML11_BOOLS:
            self.fail("a boolean to some readers and text to others; use quotes, true or false", start)
        if text == "<<":
            self.fail("'<<' is a key only; put it in quotes", start)
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _NUMBER_LIKE.fullmatch(text[0] + text[1:].replace("_", "")):
            self.fail("a number that readers take differently; put it in quotes", start)
        return text


class _Entries:
    """A map while it is read: refuses a second key of one name, merges `<<`."""

    def __init__(self, parser: _YamlParser) -> None:
        self._parser = parser
        self._own: dict[str, object] = {}
        self._merged: dict[str, object] | None = None

    def check(self, key: str | _MergeKey, start: int) -> None:
        if self._merged is not None if isinstance(key, _MergeKey) else key in self._own:
            self._parser.fail("a key occurs twice", start)

    def add(self, key: str | _MergeKey, value: object, start: int) -> None:
        if not isinstance(key, _MergeKey):
            self._own[key] = value
            return
        self._merged = {}
        for source in value if isinstance(value, list) else [value]:
            if not isinstance(source, dict):
                self._parser.fail("'<<' takes a map or a list of maps", start)
            for name, item in source.items():
                self._merged.setdefault(name, item)  # the first of several wins

    def result(self) -> dict[str, object]:
        """The map; its own keys win over merged ones."""
        return {**self._merged, **self._own} if self._merged else self._own


def _folded(breaks: int) -> str:
    """What line breaks between two lines of a flow scalar stand for (6.5)."""
    return " " if breaks == 1 else "\n" * (breaks - 1)


def _fold_block(lines: list[str]) -> str:
    """The lines of a `>` scalar; lines that begin with a blank keep their breaks (8.1.3)."""
    parts: list[str] = []
    previous = ""  # the last line with text
    blank = 0
    for line in lines:
        if not line:
            blank += 1
            continue
        if previous and (previous[0] in _BLANK or line[0] in _BLANK):
            parts.append("\n" * (blank + 1))
        elif previous:
            parts.append("\n" * blank if blank else " ")
        else:
            parts.append("\n" * blank)
        parts.append(line)
        previous, blank = line, 0
    return "".join(parts)


# -- kubeconfig ------------------------------------------------------------------------------------------------

_TOKEN_CHARACTERS = re.compile(r"[\x21-\x7e]+")
_USER_KEYS_REFUSED = {
    "exec": "running a credential plugin from a kubeconfig is not allowed here; use a token or a client certificate",
    "auth-provider": "kubectl removed auth providers in 1.26; use a token or a client certificate",
    "tokenFile": "files of this host may not be named by a kubeconfig; put the token itself under token",
    "client-certificate": "files of this host may not be named by a kubeconfig; use client-certificate-data",
    "client-key": "files of this host may not be named by a kubeconfig; use client-key-data",
    "username": "basic authentication was removed from Kubernetes in 1.19; use a token or a client certificate",
    "password": "basic authentication was removed from Kubernetes in 1.19; use a token or a client certificate",
    "as": "impersonation is not supported",
    "as-uid": "impersonation is not supported",
    "as-groups": "impersonation is not supported",
    "as-user-extra": "impersonation is not supported",
}
_CLUSTER_KEYS_REFUSED = {
    "certificate-authority": "files of this host may not be named by a kubeconfig; use certificate-authority-data",
    "proxy-url": "a proxy to the cluster is not supported",
}


@dataclass(frozen=True)
class Cluster:
    """Where a cluster is and who we are there. PEM texts and the token never show in ``repr``."""

    host: str
    port: int
    path_prefix: str = ""
    namespace: str = "default"
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    ca_pem: str = field(default="", repr=False)
    client_certificate_pem: bytes = field(default=b"", repr=False)
    client_key_pem: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)


def load_kubeconfig(text: str | bytes, context: str | None = None) -> Cluster:
    """Read the named context, or the current one, of a kubeconfig in YAML or JSON.

    Raises KubeconfigError for what cannot be read, what is missing, and what would have to be guessed.
    """
    document = parse_yaml(text)
    if not isinstance(document, dict):
        raise KubeconfigError("a kubeconfig is a map with clusters, users and contexts")
    name = context or _text(document, "current-context", "the kubeconfig")
    if not name:
        raise KubeconfigError("the kubeconfig has no current-context")
    chosen = _named(document, "contexts", "context", name)
    where = f"context {name!r}"
    cluster_name = _text(chosen, "cluster", where)
    cluster = _named(document, "clusters", "cluster", cluster_name)
    user_name = _text(chosen, "user", where)
    user = _named(document, "users", "user", user_name) if user_name else {}
    return _cluster(cluster, f"cluster {cluster_name!r}", user, f"user {user_name!r}", _text(chosen, "namespace", where))


def _named(document: dict[str, Any], section: str, key: str, name: str) -> dict[str, Any]:
    """The map under ``key`` of the entry of that name, in a list of ``{name: …, key: {…}}``; the first one counts."""
    entries = document.get(section)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name:
            value = entry.get(key)
            if value is None:
                return {}
            if isinstance(value, dict):
                return value
            break
    raise KubeconfigError(f"the kubeconfig has no {key} named {name!r} under {section}")


def _cluster(cluster: dict[str, Any], cluster_at: str, user: dict[str, Any], user_at: str, namespace: str) -> Cluster:
    _refuse(cluster, cluster_at, _CLUSTER_KEYS_REFUSED)
    _refuse(user, user_at, _USER_KEYS_REFUSED)
    host, port, path_prefix = _server(_text(cluster, "server", cluster_at), cluster_at)
    certificate = _base64(user, "client-certificate-data", user_at)
    key = _base64(user, "client-key-data", user_at)
    if bool(certificate) != bool(key):
        raise KubeconfigError(f"{user_at}: client-certificate-data and client-key-data go together")
    token = _text(user, "token", user_at).strip()
    if token and not _TOKEN_CHARACTERS.fullmatch(token):
        raise KubeconfigError(f"{user_at}: the token has characters that cannot stand in a header")
    ca = _base64(cluster, "certificate-authority-data", cluster_at)
    insecure = _boolean(cluster, "insecure-skip-tls-verify", cluster_at)
    if ca and insecure:
        raise KubeconfigError(f"{cluster_at}: certificate-authority-data and insecure-skip-tls-verify exclude each other")
    return Cluster(
        host=host,
        port=port,
        path_prefix=path_prefix,
        namespace=namespace or "default",
        tls_server_name=_text(cluster, "tls-server-name", cluster_at),
        insecure_skip_tls_verify=insecure,
        ca_pem=_ascii(ca, "certificate-authority-data", cluster_at),
        client_certificate_pem=certificate,
        client_key_pem=key,
        token=token,
    )


def _refuse(entry: dict[str, Any], where: str, refused: dict[str, str]) -> None:
    for key, why in refused.items():
        if entry.get(key) not in (None, "", [], {}):
            raise KubeconfigError(f"{where}: {key} is refused: {why}")


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise KubeconfigError(f"{where}: {key} must be text")
    return value


def _boolean(entry: dict[str, Any], key: str, where: str) -> bool:
    value = entry.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise KubeconfigError(f"{where}: {key} must be true or false")
    return value


def _base64(entry: dict[str, Any], key: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(_text(entry, key, where).split()), validate=True)
    except ValueError:
        raise KubeconfigError(f"{where}: {key} is not base64") from None


def _ascii(data: bytes, key: str, where: str) -> str:
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise KubeconfigError(f"{where}: {key} holds no PEM certificate") from None


def _server(url: str, where: str) -> tuple[str, int, str]:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise KubeconfigError(f"{where}: server is not a URL") from None
    if parts.scheme != "https":
        raise KubeconfigError(f"{where}: server must be an https:// URL; credentials are not sent in the clear")
    if not host or parts.username is not None or parts.query or parts.fragment or not _URL_CHARACTERS.fullmatch(url):
        raise KubeconfigError(f"{where}: server must be https://host[:port][/path] and nothing more")
    return host, port or 443, parts.path.rstrip("/")


_URL_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/\[\]%@!$&'()*+,;=-]+")


# -- the exec protocol: pure functions ---------------------------------------------------------------------------

SUBPROTOCOL = "v4.channel.k8s.io"
STDIN, STDOUT, STDERR, STATUS, RESIZE = range(5)
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_MESSAGE_CHARACTERS = 500
_CHOOSE_ONE_OF = re.compile(r"choose one of: \[([^\]]*)\]")
_NO_PROGRAM = re.compile(r'exec: "([^"]*)": (executable file not found|stat |permission denied|no such file)|'
                         r'exec: \\"([^"\\]*)\\": (executable file not found|stat |permission denied|no such file)')

# Shells in the order of preference. `sh` runs this, so only an image without any `sh` has no shell here.
SHELL = (
    "sh",
    "-c",
    "TERM=xterm-256color; export TERM; for shell in bash ash sh; do "
    'command -v "$shell" >/dev/null 2>&1 && exec "$shell"; done; exec sh',
)


@dataclass(frozen=True)
class ExitStatus:
    """How the program in the pod ended: its exit code, or None and the reason why it never ran."""

    code: int | None
    message: str = ""


def exec_path(cluster: Cluster, namespace: str, pod: str, container: str, command: Sequence[str]) -> str:
    """The request target of an exec with a terminal. Raises ExecRefused for names that Kubernetes does not allow."""
    for kind, name in (("namespace", namespace), ("pod", pod), ("container", container)):
        if not _NAME.fullmatch(name) and (name or kind != "container"):
            raise ExecRefused(400, f"this is not a valid {kind} name: {printable(name)!r}")
    query = [("container", container)] if container else []
    query += [("stdin", "true"), ("stdout", "true"), ("tty", "true")]
    query += [("command", argument) for argument in command]
    return f"{cluster.path_prefix}/api/v1/namespaces/{namespace}/pods/{pod}/exec?{urllib.parse.urlencode(query)}"


def encode_stdin(data: bytes) -> bytes:
    """A stdin message; an empty one keeps the stream alive and the program sees nothing of it."""
    return bytes((STDIN,)) + data


def encode_resize(cols: int, rows: int) -> bytes:
    """A resize message. Raises ValueError outside 1..65535: a malformed one makes the server deaf for good."""
    for value in (cols, rows):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
            raise ValueError("columns and rows are whole numbers from 1 to 65535")
    return bytes((RESIZE,)) + b'{"Width":%d,"Height":%d}' % (cols, rows)


def decode_status(data: bytes) -> ExitStatus:
    """Read a Status object from the status channel: exit 0, an exit code, or why the program did not start."""
    try:
        status = json.loads(data)
        if status["status"] == "Success":
            return ExitStatus(0)
        if status.get("reason") == "NonZeroExitCode":
            causes = status["details"]["causes"]
            return ExitStatus(next(int(cause["message"]) for cause in causes if cause["reason"] == "ExitCode"))
        return ExitStatus(None, explain_failure(str(status.get("message", ""))))
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        return ExitStatus(None, "the cluster reported an end that is not understood")


def explain_failure(message: str) -> str:
    """A sentence for a program that the container runtime could not start."""
    missing = _NO_PROGRAM.search(message)
    if missing:
        program, why = (missing[1] or missing[3], missing[2] or missing[4])
        if why == "permission denied":
            return f"the container may not run the program {printable(program)!r}: permission denied"
        return f"the container has no program {printable(program)!r}"
    return f"the cluster could not start the program: {printable(message)}"


def explain_refusal(status: int, body: bytes) -> str:
    """A sentence for an exec request that was answered with an HTTP error instead of 101."""
    message = _status_message(body)
    choice = _CHOOSE_ONE_OF.search(message)
    if choice:
        return f"the pod has several containers, choose one of: {printable(choice[1])}"
    if status == 401:
        return "the cluster does not accept the credentials of this kubeconfig"
    if status == 403:
        return f"the cluster forbids it: {printable(message) or 'it gave no reason (is exec over WebSocket allowed?)'}"
    if status == 404:
        return f"the cluster does not know it: {printable(message) or 'not found'}"
    if "container not found" in message:
        return f"the container is not running: {printable(message)}"
    if "is not valid for pod" in message:
        return f"the pod has no such container: {printable(message)}"
    return f"the cluster refused with HTTP status {status}: {printable(message) or 'no reason given'}"


def printable(text: str) -> str:
    """Foreign text made safe to print in a terminal and a log line: one line, no control characters, bounded."""
    return _UNPRINTABLE.sub(" ", text)[:_MESSAGE_CHARACTERS].strip()


def _status_message(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    try:
        status = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return str(status.get("message", "")) if isinstance(status, dict) else ""


# -- WebSocket frames (RFC 6455, section 5.2) ----------------------------------------------------------------------

_CONTINUATION, _BINARY, _CLOSE, _PING = 0x0, 0x2, 0x8, 0x9
_FIN = 0x80
FRAME_LIMIT_BYTES = 1 << 20  # the largest frame accepted; a kubelet sends at most 32 KiB


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

_READ_BYTES = 1 << 18  # what one fill takes at most, so that a flood is relayed in pieces of bounded size
_HANDSHAKE_LIMIT_BYTES = 1 << 18  # headers and body of the answer to the upgrade request
_TIMEOUTS = (TimeoutError, socket.timeout)  # one class from Python 3.10 on
_USER_TIMEOUT_MS = 60_000  # unacknowledged data for so long means that the peer is gone (RFC 5482)


class TlsStream:
    """A TLS connection that one thread reads while others write.

    OpenSSL allows one call at a time on a connection. So the socket does not block, each ``recv`` and ``send`` of
    it holds the lock, and waiting happens outside the lock. It has the methods that websocket-client calls.
    """

    def __init__(self, tls: ssl.SSLSocket, deadline: float) -> None:
        tls.setblocking(False)
        self._tls = tls
        self._lock = threading.Lock()  # guards the calls into OpenSSL
        self._handshake_deadline = deadline
        self._handshake_bytes = 0
        self.buffer = bytearray()  # received and not yet taken; reader thread only

    def fill(self, timeout: float | None) -> bool:
        """Append to ``buffer`` what has arrived; wait up to ``timeout`` seconds for it. Reader thread only.

        Returns False when nothing came in time. Raises EOFError at the end, OSError when the connection broke.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            wanted = self._receive()
            if not wanted:
                return True
            if not self._wait(wanted, deadline):
                return False

    def _receive(self) -> int:
        """Take everything that is there. Returns 0, or the poll event to wait for when there was nothing."""
        size = len(self.buffer)
        try:
            while len(self.buffer) - size < _READ_BYTES:
                with self._lock:
                    chunk = self._tls.recv(_READ_BYTES)
                if not chunk:
                    if len(self.buffer) > size:
                        return 0
                    raise EOFError
                self.buffer += chunk
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as exc:
            if len(self.buffer) == size:
                return select.POLLIN if isinstance(exc, ssl.SSLWantReadError) else select.POLLOUT
        return 0

    def recv(self, size: int) -> bytes:
        """For websocket-client, which calls this while it reads the answer to the upgrade request."""
        self._handshake_bytes += size
        if self._handshake_bytes > _HANDSHAKE_LIMIT_BYTES:
            raise ExecRefused(0, "the cluster's answer to the exec request is too long")
        while not self.buffer:
            if not self.fill(self._handshake_deadline - time.monotonic()):
                raise TimeoutError("timed out")
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def send(self, data: bytes) -> int:
        """Send all of it, blocking while the peer takes nothing. One writer at a time. Raises OSError."""
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
            self._wait(wanted, None)
        return len(data)

    def writable(self) -> bool:
        """Whether a small frame can be sent without blocking."""
        return self._wait(select.POLLOUT, time.monotonic())

    def _wait(self, event: int, deadline: float | None) -> bool:
        poller = select.poll()
        poller.register(self._tls.fileno(), event)
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        return bool(poller.poll(remaining))

    def gettimeout(self) -> float | None:
        return None

    def settimeout(self, timeout: float | None) -> None:
        """For websocket-client. Time limits are this class's own."""

    def abort(self) -> None:
        """Drop the TCP connection, any thread: every blocked call wakes. The descriptor stays until close()."""
        with contextlib.suppress(OSError):
            # SSLSocket.shutdown() would take the TLS state away from under the other thread.
            socket.socket.shutdown(self._tls, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back, when no thread is inside any more."""
        self.abort()
        self._tls.close()


def dial(cluster: Cluster, timeout: float) -> TlsStream:
    """Open a TLS connection to the kube-apiserver within ``timeout`` seconds.

    Blocks. Raises ExecRefused with a sentence for an unknown host, a closed port and each fault of the certificate.
    """
    deadline = time.monotonic() + timeout
    at = f"{cluster.host}:{cluster.port}"
    context = _tls_context(cluster)
    try:
        raw = socket.create_connection((cluster.host, cluster.port), timeout)
    except socket.gaierror:
        raise ExecRefused(0, f"the cluster's host name is unknown: {cluster.host}") from None
    except UnicodeError:
        raise ExecRefused(0, "the cluster's host name is not valid") from None
    except OSError as exc:
        why = f"no answer within {timeout:g} s" if isinstance(exc, _TIMEOUTS) else os.strerror(exc.errno or 0)
        raise ExecRefused(0, f"the cluster at {at} cannot be reached: {why}") from None
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
        raw.settimeout(max(0.001, deadline - time.monotonic()))
        return TlsStream(context.wrap_socket(raw, server_hostname=cluster.tls_server_name or cluster.host), deadline)
    except (OSError, ValueError) as exc:
        raw.close()
        raise ExecRefused(0, f"no TLS connection to the cluster at {at}: {_tls_fault(exc)}") from None


def _tls_context(cluster: Cluster) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if cluster.insecure_skip_tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif cluster.ca_pem:
            context.load_verify_locations(cadata=cluster.ca_pem)
        else:
            context.load_default_certs()
    except (ssl.SSLError, ValueError):
        raise KubeconfigError("certificate-authority-data holds no PEM certificate") from None
    if cluster.client_certificate_pem:
        _load_client_certificate(context, cluster)
    return context


def _load_client_certificate(context: ssl.SSLContext, cluster: Cluster) -> None:
    # The ssl module takes the key from a file only. A memfd never reaches a disk; elsewhere a private file must do.
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create"):
            file: Any = stack.enter_context(open(os.memfd_create("client-key"), "wb"))
            path = f"/proc/self/fd/{file.fileno()}"
        else:
            file = stack.enter_context(tempfile.NamedTemporaryFile("wb"))
            path = file.name
        file.write(cluster.client_certificate_pem + b"\n" + cluster.client_key_pem)
        file.flush()
        try:
            # A password function that fails: without one OpenSSL would ask on this process's terminal.
            context.load_cert_chain(path, password=_no_password)
        except (ssl.SSLError, ValueError, OSError):
            raise KubeconfigError("client-certificate-data and client-key-data are no matching PEM pair") from None


def _no_password() -> str:
    raise ValueError("encrypted keys are not supported")


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
    if isinstance(exc, ssl.SSLError):
        return f"the handshake failed ({printable(exc.reason or 'protocol error')})"
    return "the connection was closed during the handshake"


# -- exec ------------------------------------------------------------------------------------------------------------

KEEP_ALIVE_SECONDS = 25.0


class _NoCookies:
    """websocket-client keeps one cookie jar for the whole process; clusters must not see each other's cookies."""

    def add(self, set_cookie: str | None) -> None:
        pass

    def get(self, host: str | None) -> str:
        return ""


websocket._handshake.CookieJar = _NoCookies()  # type: ignore[assignment]


class PodExec:
    """A program with a terminal in a container.

    One thread reads; any thread writes, resizes or aborts. ``exit`` is set when ``read`` has returned ``b""``.
    """

    def __init__(self, stream: TlsStream, sock: websocket.WebSocket) -> None:
        self._stream = stream
        self._websocket = sock
        self._send_lock = threading.Lock()  # keeps frames whole and in order
        self._last_sent = time.monotonic()
        self._aborted = False
        self.exit: ExitStatus | None = None

    @classmethod
    def open(
        cls, cluster: Cluster, namespace: str, pod: str, container: str, command: Sequence[str], *, timeout: float
    ) -> PodExec:
        """Start ``command`` in the container. Blocks for ``timeout`` seconds at most.

        An empty namespace is the kubeconfig's. Returns once the cluster has accepted the request; whether the program
        exists shows in ``exit``. Raises ExecRefused or KubeconfigError.
        """
        path = exec_path(cluster, namespace or cluster.namespace, pod, container, command)
        stream = dial(cluster, timeout)
        try:
            return cls(stream, _upgrade(stream, cluster, path))
        except BaseException:
            stream.close()
            raise

    def read(self) -> bytes:
        """Block for output; all that has already arrived is joined. ``b""`` at the end. Reader thread only.

        Raises PodLost when the connection ended without an exit status.
        """
        while True:
            output = self._take_output()
            if output or self.exit is not None or self._aborted:
                return output
            self._keep_alive()
            try:
                self._stream.fill(KEEP_ALIVE_SECONDS)
            except (EOFError, OSError, ValueError):
                if self._aborted:
                    return b""
                raise PodLost("the connection to the cluster was lost") from None

    def _take_output(self) -> bytes:
        """Handle the whole frames in the buffer; return what they printed."""
        buffer, position = self._stream.buffer, 0
        output: list[bytes] = []
        while self.exit is None:
            frame = parse_frame(buffer, position)
            if frame is None:
                break
            first, start, end = frame
            opcode = first & 0x0F
            if opcode == _BINARY and first & _FIN and start < end:
                self._take_message(buffer[start], bytes(buffer[start + 1 : end]), output)
            elif opcode == _PING:
                self._send_if_idle(bytes(buffer[start:end]), websocket.ABNF.OPCODE_PONG)
            elif opcode == _CLOSE:
                if output:
                    break  # hand out the output first; the next call meets the close frame again
                raise PodLost("the cluster closed the connection without an exit status")
            elif opcode in (_CONTINUATION, _BINARY) and not first & _FIN:
                raise PodLost("the cluster sent a fragmented message, which the exec protocol does not use")
            position = end
        del buffer[:position]
        return b"".join(output)

    def _take_message(self, channel: int, data: bytes, output: list[bytes]) -> None:
        if channel in (STDOUT, STDERR):
            output.append(data)
        elif channel == STATUS:
            self.exit = decode_status(data)

    def write(self, data: bytes) -> None:
        """Send input. Any thread. Blocks while the program does not read; abort() wakes it. Raises PodLost."""
        self._send(encode_stdin(data))

    def resize(self, cols: int, rows: int) -> None:
        """Tell the terminal's size. Any thread; blocks as write does. Raises ValueError outside 1..65535, PodLost."""
        self._send(encode_resize(cols, rows))

    def _send(self, message: bytes, opcode: int = websocket.ABNF.OPCODE_BINARY) -> None:
        try:
            with self._send_lock:
                self._websocket.send(message, opcode)
                self._last_sent = time.monotonic()
        except (OSError, ValueError, websocket.WebSocketException):
            raise PodLost("the connection to the cluster was lost") from None

    def _keep_alive(self) -> None:
        # Load balancers and the kubelet cut streams without messages; WebSocket pings do not count for the kubelet.
        if time.monotonic() - self._last_sent >= KEEP_ALIVE_SECONDS:
            self._send_if_idle(encode_stdin(b""), websocket.ABNF.OPCODE_BINARY)

    def _send_if_idle(self, message: bytes, opcode: int) -> None:
        """Send a small frame from the reader thread, unless that could block it behind input the pod does not read."""
        if self._send_lock.acquire(blocking=False):
            try:
                if self._stream.writable():
                    self._websocket.send(message, opcode)
                    self._last_sent = time.monotonic()
            except (OSError, ValueError, websocket.WebSocketException):
                pass  # the read that follows meets the same end, and reports it
            finally:
                self._send_lock.release()

    def abort(self) -> None:
        """Drop the connection, any thread: read returns ``b""``, write raises PodLost.

        Never a close frame: the runtime would keep the program running on it.
        """
        self._aborted = True
        self._stream.abort()

    def close(self) -> None:
        """Drop the connection and free it, when no thread is inside any more."""
        self._aborted = True
        self._stream.close()


def _upgrade(stream: TlsStream, cluster: Cluster, path: str) -> websocket.WebSocket:
    """Ask for the exec. Raises ExecRefused with a sentence."""
    host = f"[{cluster.host}]" if ":" in cluster.host else cluster.host
    try:
        sock: websocket.WebSocket = websocket.create_connection(
            f"wss://{host}:{cluster.port}{path}",
            socket=stream,
            subprotocols=[SUBPROTOCOL],
            suppress_origin=True,
            redirect_limit=0,  # a redirect would carry the bearer token to another host
            header=[f"Authorization: Bearer {cluster.token}"] if cluster.token else [],
        )
    except websocket.WebSocketBadStatusException as exc:
        # The exception's own text holds headers and body; only status and message may be told.
        raise ExecRefused(exc.status_code, explain_refusal(exc.status_code, exc.resp_body or b"")) from None
    except (websocket.WebSocketTimeoutException, *_TIMEOUTS):
        raise ExecRefused(0, "the cluster did not answer the exec request in time") from None
    except (websocket.WebSocketException, OSError, EOFError, ValueError):
        raise ExecRefused(0, "the cluster's answer to the exec request is not a WebSocket's") from None
    status = sock.getstatus()  # type: ignore[no-untyped-call]
    if status != 101:
        raise ExecRefused(status or 0, "the cluster answered the exec request with a redirect, which is refused")
    return sock
