"""A page without a screen: speaks ``jumpserver.v1`` as the terminal page does, and counts instead of drawing.

It draws a message as soon as all of it is there, and says so as the page does. Also a client of the original, which
says nothing. Shares no code with the server. One thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from typing import Any

ACK_BYTES = 32 << 10  # drawn since the last acknowledgement, until the server says otherwise
ACK_SECONDS = 0.5  # after something was drawn
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
NORMAL, GOING_AWAY = 1000, 1001
_READ_BYTES = 1 << 18


class Refused(ConnectionError):
    """The server does not upgrade; ``status`` is that of its answer."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(answer[:200].decode("latin-1"))
        self.status = int([*answer.split(), b"0", b"0"][1])


class Ended(ConnectionError):
    """The connection is closed: with this code (1006: without a word) and the ``end`` message, if one came."""

    def __init__(self, code: int, end: dict[str, Any]) -> None:
        super().__init__(f"closed with {code}: {end.get('reason', '')}")
        self.code, self.end = code, end


def masked_frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame (RFC 6455, section 5.2) of less than 64 KiB."""
    mask = os.urandom(4)
    whole = int.from_bytes(payload, "big") ^ int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)], "big")
    size = len(payload)
    head = (
        struct.pack("!BB", 0x80 | opcode, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x80 | opcode, 254, size)
    )
    return head + mask + whole.to_bytes(size, "big")


class Page:
    """A terminal through the server at ``port``. Attributes are what it knows; None or empty where nothing was said."""

    def __init__(self, port: int, *, v1: bool = True, prefix: str = "", timeout: float = 30.0) -> None:
        self.port, self.v1, self.prefix, self.timeout = port, v1, prefix, timeout
        self.session: dict[str, Any] = {}  # the last ``session`` message
        self.position = 0  # in the pod's output: all before it was drawn, or is counted as drawn
        self.skipped_bytes = 0
        self.end: dict[str, Any] = {}
        self._sock: socket.socket | None = None
        self._buffer = b""
        self._acknowledged = 0
        self._every = ACK_BYTES
        self._ack_at = 0.0  # monotonic; 0: nothing to say

    @property
    def can_resume(self) -> bool:
        """Whether the server keeps the shell for a page that lost its connection."""
        return bool(self.session.get("resume"))

    def open(self, path: str) -> None:
        """Open a terminal at a path with a token. Raises Refused, Ended, OSError."""
        self._sock = sock = socket.create_connection(("127.0.0.1", self.port), self.timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer, self._ack_at = b"", 0.0
        protocol = "Sec-WebSocket-Protocol: jumpserver.v1\r\n" if self.v1 else ""
        sock.sendall(
            f"GET {self.prefix}{path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"{protocol}\r\n".encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        answer, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 101 "):
            self.drop()
            raise Refused(answer)

    def resume(self, cols: int = 120, rows: int = 40) -> None:
        """Come back after a drop, and wait for the server's answer. Raises Ended, Refused, OSError."""
        before = self.session  # whose secret is good until the next one has come
        resume = before["resume"]
        self.open(f"/{resume['url']}")
        self.send(type="resume", secret=resume["secret"], drawn=self.position, cols=cols, rows=rows)
        while self.session is before:
            if self.receive():
                raise ConnectionError("output came before the session message")

    def drop(self, *, reset: bool = False) -> None:
        """Lose the connection: without a close frame, as a network does."""
        if self._sock is not None:
            if reset:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._sock.close()
            self._sock = None

    def close(self, code: int) -> None:
        """Close as the page does (1000), or the browser (1001), and do not wait."""
        with contextlib.suppress(OSError):
            self._send(CLOSE, struct.pack("!H", code))
        self.drop()

    def send(self, **message: Any) -> None:
        """Send a text message."""
        self._send(TEXT, json.dumps(message).encode())

    def type(self, text: str) -> None:
        """Send keys."""
        self.send(type="input", input=text)

    def _send(self, opcode: int, payload: bytes) -> None:
        if self._sock is None:
            raise Ended(1006, self.end)
        self._sock.settimeout(self.timeout)
        self._sock.sendall(masked_frame(opcode, payload))

    def receive(self, timeout: float | None = None) -> bytes:
        """The output that was drawn next; empty after another message, and when nothing came in that time.

        Raises Ended, OSError.
        """
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        frame = self._take_frame(until)
        while frame is not None and frame[0] == PING:  # no sign of the shell's life
            self._send(PONG, frame[1])
            frame = self._take_frame(until)
        if frame is None:
            if timeout is None:
                raise TimeoutError(f"nothing came for {self.timeout:g} s")
            return b""
        opcode, payload = frame
        if opcode == BINARY:
            self.position += len(payload)
            self._drew()
            return payload
        if opcode == TEXT:
            self._hear(json.loads(payload))
        elif opcode == CLOSE:
            self.drop()
            raise Ended(int.from_bytes(payload[:2], "big"), self.end)
        return b""

    def wait_for(self, text: bytes, seconds: float | None = None) -> bytes:
        """Receive until the output holds the text; returns all that came. Raises TimeoutError, Ended, OSError."""
        until = time.monotonic() + (self.timeout if seconds is None else seconds)
        pieces, tail = [], b""
        while text not in tail:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{text!r} did not come; the last was {tail[-300:]!r}")
            piece = self.receive(left)
            pieces.append(piece)
            tail = (tail if len(tail) < 4096 else tail[-4096:]) + piece
        return b"".join(pieces)

    def _hear(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "session":
            self.session = message
            self.position = self._acknowledged = message.get("position", self.position)
            self._every = ACK_BYTES
            if "position" in message:
                self._acknowledge()
        elif kind == "skipped":
            self.skipped_bytes += message["bytes"]
            self.position += message["bytes"]
            self._drew()
        elif kind == "ack":
            self._every = message["every"]
        elif kind == "taken":
            self.session["resume"]["secret"] = message["secret"]
        elif kind == "end":
            self.end = message

    def _drew(self) -> None:
        if "position" not in self.session:
            return  # the original's, or a server of before: it takes no acknowledgements
        if self.position - self._acknowledged >= self._every:
            self._acknowledge()
        elif not self._ack_at:
            self._ack_at = time.monotonic() + ACK_SECONDS

    def _acknowledge(self) -> None:
        self._ack_at = 0.0
        self._acknowledged = self.position
        with contextlib.suppress(OSError):  # the next receive tells why
            self.send(type="ack", drawn=self.position)

    def _take_frame(self, until: float) -> tuple[int, bytes] | None:
        """The next frame, or None when it is not there in time."""
        while True:
            head = self._buffer[:10]
            size = head[1] & 0x7F if len(head) > 1 else 127
            start = {126: 4, 127: 10}.get(size, 2)
            if len(head) >= start:
                size = int.from_bytes(head[2:start], "big") if start > 2 else size
                if not self._fill_to(start + size, until):
                    return None
                payload = self._buffer[start : start + size]
                self._buffer = self._buffer[start + size :]
                return head[0] & 0x0F, payload
            if not self._fill_to(len(head) + 1, until):
                return None

    def _fill_to(self, size: int, until: float) -> bool:
        pieces, have = [self._buffer], len(self._buffer)
        try:
            while have < size:
                wait = (min(until, self._ack_at) if self._ack_at else until) - time.monotonic()
                data = self._recv(max(0.0, wait))
                if data:
                    pieces.append(data)
                    have += len(data)
                elif self._ack_at and time.monotonic() >= self._ack_at:
                    self._acknowledge()
                elif time.monotonic() >= until:
                    return False
            return True
        finally:
            self._buffer = pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _fill(self) -> None:
        if not self._fill_to(len(self._buffer) + 1, time.monotonic() + self.timeout):
            raise TimeoutError("no answer")

    def _recv(self, timeout: float) -> bytes:
        """What is there within the time; empty when nothing is. Raises Ended at the end."""
        if self._sock is None:
            raise Ended(1006, self.end)
        self._sock.settimeout(max(timeout, 0.0005))
        try:
            data = self._sock.recv(_READ_BYTES)
        except socket.timeout:
            return b""
        except ConnectionError:
            data = b""
        if not data:
            self.drop()
            raise Ended(1006, self.end)
        return data
