"""The cluster of the benchmark: a small TLS exec endpoint that sends prepared frames. Shares no code with the server.

The words after ``bench`` in the command choose what the "program" does: ``flood SIZE FRAMES``, ``records SIZE FRAMES``,
``echo`` or ``idle``.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import socket
import ssl
import struct
import sys
import threading
import urllib.parse

PROMPT = b"$ "
END = b"<end of the flood>"
_BUFFER_BYTES = 4 << 20
_STDOUT, _STATUS = b"\x01", b"\x03"
_FAREWELL = b'{"status":"Success"}'
_CLOSE_FRAME = b"\x88\x02\x03\xe8"
_LINES = (
    "\x1b[32m2024-05-17T09:31:04.113Z\x1b[0m \x1b[1;34mINFO\x1b[0m  cart-7d9f  request 7f3a handled in 12 ms",
    "\x1b[33m警告\x1b[0m 容器 \x1b[1mcart-7d9f\x1b[0m 的内存使用率已达到百分之八十五 请检查日志",
    'drwxr-xr-x  2 root root  4096 May 17 09:31 \x1b[01;34mnode_modules\x1b[0m "quoted" C:\\path\\to\ttab',
    "\x1b[38;5;208m日志\x1b[0m 設定を読み込みました /etc/app/config.yaml  한국어 메시지 ✓ 🚀",
)

_parked: list[ssl.SSLSocket] = []  # idle sessions cost the source no thread


def frame(payload: bytes) -> bytes:
    """An unmasked binary WebSocket frame (RFC 6455, section 5.2)."""
    if len(payload) < 126:
        return struct.pack("!BB", 0x82, len(payload)) + payload
    if len(payload) < 65536:
        return struct.pack("!BBH", 0x82, 126, len(payload)) + payload
    return struct.pack("!BBQ", 0x82, 127, len(payload)) + payload


@functools.lru_cache
def prepared(size: int) -> tuple[bytes, int, int]:
    """Frames with ``size`` bytes of output each: the bytes, how many frames, bytes a frame on the wire.

    Frames end anywhere in a character or an escape sequence, as those of a terminal do.
    """
    text = "\r\n".join(_LINES[i % len(_LINES)] + f" {i}" for i in range(20_000)).encode()
    count = max(1, _BUFFER_BYTES // size)
    endless = text * (count * size // len(text) + 1)
    frames = [frame(_STDOUT + endless[i * size : (i + 1) * size]) for i in range(count)]
    return b"".join(frames), count, len(frames[0])


def flood(tls: ssl.SSLSocket, size: int, frames: int) -> None:
    """Send so many frames, the mark of the end and an exit status."""
    data, count, frame_bytes = prepared(size)
    for _ in range(frames // count):
        tls.sendall(data)
    tls.sendall(memoryview(data)[: frames % count * frame_bytes])
    finish(tls, END)


def flood_in_records(tls: ssl.SSLSocket, size: int, frames: int) -> None:
    """The same with each frame in a TLS record of its own, as a real API server sends it."""
    data, count, frame_bytes = prepared(size)
    view = memoryview(data)
    for i in range(frames):
        start = i % count * frame_bytes
        tls.sendall(view[start : start + frame_bytes])
    finish(tls, END)


def finish(tls: ssl.SSLSocket, output: bytes) -> None:
    """Send the last output, exit status 0 and a close frame."""
    tls.sendall(frame(_STDOUT + output) + frame(_STATUS + _FAREWELL) + _CLOSE_FRAME)


def echo(tls: ssl.SSLSocket) -> None:
    """Send back what comes on stdin until the peer leaves."""
    buffer = b""
    while chunk := tls.recv(65536):
        buffer += chunk
        while len(buffer) >= 6 and len(buffer) >= 6 + (buffer[1] & 0x7F):  # small masked frames only
            end = 6 + (buffer[1] & 0x7F)
            mask, masked = buffer[2:6], buffer[6:end]
            message = bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked))
            buffer = buffer[end:]
            if message[:1] == b"\x00" and message[1:]:
                tls.sendall(frame(_STDOUT + message[1:]))


_FLOODS = {"flood": flood, "records": flood_in_records}


def leave_with_parent() -> None:
    """End this process when the one that started it has closed the pipe to it, however that ended."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def read_head(sock: socket.socket) -> str:
    """The request up to its empty line."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        chunk = sock.recv(1)
        if not chunk:
            raise EOFError
        head += chunk
    return head.decode("latin-1")


def accept_upgrade(tls: ssl.SSLSocket) -> list[str]:
    """Answer an exec request; returns the words of the command."""
    head = read_head(tls)
    target, *lines = head.split("\r\n")
    url = urllib.parse.urlsplit(target.split(" ")[1])
    if not url.path.endswith("/exec"):
        tls.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        raise EOFError
    headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
    key = next(line.split(": ", 1)[1] for line in lines if line.lower().startswith("sec-websocket-key: "))
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode(), usedforsecurity=False).digest()
    answer = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}\r\n"
        f"Sec-WebSocket-Protocol: {headers['sec-websocket-protocol']}\r\n\r\n"
    )
    tls.sendall(answer.encode() + frame(_STDOUT))
    return urllib.parse.parse_qs(url.query)["command"]


def serve(sock: socket.socket, context: ssl.SSLContext) -> None:
    """Live one connection."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        tls = context.wrap_socket(sock, server_side=True)
        words = accept_upgrade(tls)
        if "bench" not in words:  # the server's hang-up after a session that was dropped
            finish(tls, b"hung up 0\n")
            tls.recv(1)
            return
        if words[1] == "-c":  # the server's start script, which first says that it runs
            tls.sendall(frame(_STDOUT + words[3].encode() + b"\r\n"))
        mode, *numbers = words[words.index("bench") + 1 :]
        if mode in _FLOODS:
            _FLOODS[mode](tls, *map(int, numbers))
            tls.recv(1 << 16)
            return
        tls.sendall(frame(_STDOUT + PROMPT))
        if mode == "echo":
            echo(tls)
        else:
            _parked.append(tls)
    except (OSError, EOFError):
        pass  # the peer left, as it may at any time


def main() -> None:
    """Serve with the certificate file that is named; prints the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    threading.stack_size(256 << 10)
    leave_with_parent()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock, context), daemon=True).start()


if __name__ == "__main__":
    main()
