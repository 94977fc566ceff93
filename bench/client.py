"""The browser of the benchmark: a process that counts bytes and looks at nothing but the opening head.

Takes jobs, one JSON object a line, and answers each with one line. A ``target`` is {"port", "path", "ca"}: TLS where
a CA file is named.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from typing import Any

from bench.page import Page
from bench.source import END, PROMPT

_READ_BYTES = 1 << 20
_TAIL_BYTES = 128
_open: list[socket.socket] = []


def connect(target: dict[str, Any]) -> socket.socket:
    """A connection to the target's port."""
    sock = socket.create_connection(("127.0.0.1", target["port"]), 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if target.get("ca"):
        return ssl.create_default_context(cafile=target["ca"]).wrap_socket(sock, server_hostname="127.0.0.1")
    return sock


def request(sock: socket.socket, target: dict[str, Any], headers: str, status: bytes) -> bytes:
    """Send a GET; returns what came behind the answer's head. Raises ConnectionError for another status."""
    head = f"GET {target['path']} HTTP/1.1\r\nHost: 127.0.0.1:{target['port']}\r\n{headers}\r\n"
    sock.sendall(head.encode())
    answer = read_until(sock, b"", b"\r\n\r\n")
    if answer.split(b" ", 2)[1] != status:
        raise ConnectionError(f"refused: {answer!r}")
    return answer.partition(b"\r\n\r\n")[2]


def open_terminal(target: dict[str, Any]) -> tuple[socket.socket, bytes]:
    """Open a WebSocket; returns it and what came behind the head."""
    sock = connect(target)
    headers = (
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    if target.get("ca") or target.get("v4"):
        headers += "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n"
    return sock, request(sock, target, headers, b"101")


def read_until(sock: socket.socket, received: bytes, wanted: bytes) -> bytes:
    """Receive until the wanted bytes are there; returns all that came."""
    while wanted not in received:
        chunk = sock.recv(65536)
        if not chunk:
            raise ConnectionError(f"ended after {received!r}")
        received += chunk
    return received


def open_prompt(target: dict[str, Any]) -> tuple[socket.socket, float]:
    """Open a terminal up to its first prompt; returns it and the milliseconds that took."""
    start = time.perf_counter()
    sock, received = open_terminal(target)
    read_until(sock, received, PROMPT)
    return sock, (time.perf_counter() - start) * 1000


def drain(sock: socket.socket) -> float:
    """Read to the end mark; returns the seconds since the first byte."""
    view = memoryview(bytearray(_READ_BYTES))
    tail = b""
    start = 0.0
    while count := sock.recv_into(view):
        start = start or time.perf_counter()
        tail = (tail + bytes(view[max(0, count - _TAIL_BYTES) : count]))[-_TAIL_BYTES:]
        if END in tail:
            return time.perf_counter() - start
    raise ConnectionError("ended before the end mark")


def drain_page(page: Page) -> float:
    """The same for a page, which acknowledges what it has drawn."""
    tail = page.receive()
    while not tail:
        tail = page.receive()
    start = time.perf_counter()
    while END not in tail:
        tail = (tail + page.receive()[-_TAIL_BYTES:])[-_TAIL_BYTES:]
    page.drop()
    return time.perf_counter() - start


def job_flood(job: dict[str, Any]) -> dict[str, Any]:
    """Take a flood."""
    if job["target"].get("v1"):
        return {"seconds": drain_page(open_page(job["target"]))}
    sock, _ = open_terminal(job["target"])
    with sock:
        return {"seconds": drain(sock)}


def job_drain(job: dict[str, Any]) -> dict[str, Any]:
    """Take a flood beside other jobs, from its first bytes until the terminals are closed."""
    sock, _ = open_terminal(job["target"])
    sock.recv(1)
    _open.append(sock)
    threading.Thread(target=discard, args=(sock,), daemon=True).start()
    return {}


def discard(sock: socket.socket) -> None:
    """Read until the end."""
    view = memoryview(bytearray(_READ_BYTES))
    with contextlib.suppress(OSError):
        while sock.recv_into(view):
            pass


def key_frame(text: str, v4: bool) -> bytes:
    """A masked frame with typed text: as the exec protocol has it, or as the page sends it."""
    message = b"\x00" + text.encode() if v4 else json.dumps({"type": "input", "input": text}).encode()
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(message))
    return struct.pack("!BB", 0x82 if v4 else 0x81, 0x80 | len(message)) + mask + masked


def job_echo(job: dict[str, Any]) -> dict[str, Any]:
    """Type one word after the other, each when the last has come back."""
    sock, _ = open_prompt(job["target"])
    milliseconds = []
    with sock:
        for i in range(job["count"]):
            word = f"{i:06d}"
            message = key_frame(word, bool(job["target"].get("ca")))
            start = time.perf_counter()
            sock.sendall(message)
            read_until(sock, b"", word.encode())
            milliseconds.append((time.perf_counter() - start) * 1000)
    return {"milliseconds": milliseconds}


def job_open(job: dict[str, Any]) -> dict[str, Any]:
    """Open a terminal for every target, ``workers`` at a time; they stay open."""
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(job["workers"]) as pool:
        opened = list(pool.map(open_prompt, job["targets"]))
    seconds = time.perf_counter() - start
    _open.extend(sock for sock, _ in opened)
    return {"seconds": seconds, "milliseconds": [milliseconds for _, milliseconds in opened]}


def job_close(job: dict[str, Any]) -> dict[str, Any]:
    """Drop the terminals that are open."""
    for sock in _open:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
    _open.clear()
    return {}


# Pages before real shells: what the terminal page feels.

READY = "<ready> "  # the prompt, so that nothing else can be taken for it
FLOOD = "yes 'request 7f3a of cart-7d9f handled in 12 ms, 1042 bytes, status 200'\r"  # short lines slow a terminal down


def open_page(target: dict[str, Any]) -> Page:
    """Open a terminal as a page does, or as a client of the original."""
    page = Page(target["port"], v1=target["v1"], prefix=target.get("prefix", ""))
    page.open(target["path"])
    return page


def open_ready(target: dict[str, Any]) -> Page:
    """Open a terminal with a shell, up to its prompt."""
    page = open_page(target)
    page.type(f"PS1='{READY[:3]}''{READY[3:]}'\r")
    page.wait_for(READY.encode())
    return page


def job_interrupt(job: dict[str, Any]) -> dict[str, Any]:
    """Let a flood run for some seconds, type Ctrl-C, and wait for the prompt."""
    page = open_ready(job["target"])
    page.type(FLOOD)
    until = time.monotonic() + job["seconds"]
    while time.monotonic() < until:
        page.receive(until - time.monotonic())
    position, start = page.position, time.perf_counter()
    page.type("\x03")
    page.wait_for(READY.encode(), 120)
    seconds = time.perf_counter() - start
    drawn = page.position - position - page.skipped_bytes
    page.close(1000)
    return {"seconds": seconds, "drawn": drawn, "skipped": page.skipped_bytes}


_pages: list[Page] = []


def job_open_pages(job: dict[str, Any]) -> dict[str, Any]:
    """Open a terminal for every target; says whether they can come back after a drop."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        _pages.extend(pool.map(open_ready, job["targets"]))
    return {"can_resume": all(page.can_resume for page in _pages)}


def job_come_back(job: dict[str, Any]) -> dict[str, Any]:
    """Drop the connections of all pages at the same time, and come back: each until Enter brings a prompt."""
    start = time.perf_counter()
    for page in _pages:
        page.drop(reset=True)

    def come_back(page: Page) -> float:
        began = time.perf_counter()
        page.resume()
        page.type("\r")
        page.wait_for(READY.encode())
        return (time.perf_counter() - began) * 1000

    with concurrent.futures.ThreadPoolExecutor(len(_pages)) as pool:
        milliseconds = list(pool.map(come_back, _pages))
    return {"milliseconds": milliseconds, "seconds": time.perf_counter() - start}


def job_close_pages(job: dict[str, Any]) -> dict[str, Any]:
    """End the sessions of all pages."""
    for page in _pages:
        page.close(1000)
    _pages.clear()
    return {}


def job_fetch(job: dict[str, Any]) -> dict[str, Any]:
    """Download a file, as it is or with ``gzip``."""
    headers = "Connection: close\r\n" + ("Accept-Encoding: gzip\r\n" if job["gzip"] else "")
    with connect(job["target"]) as sock:
        start = time.perf_counter()
        total = len(request(sock, job["target"], headers, b"200"))
        view = memoryview(bytearray(_READ_BYTES))
        while count := sock.recv_into(view):
            total += count
        return {"seconds": time.perf_counter() - start, "bytes": total}


_JOBS = {
    "flood": job_flood,
    "drain": job_drain,
    "echo": job_echo,
    "open": job_open,
    "close": job_close,
    "fetch": job_fetch,
    "interrupt": job_interrupt,
    "open_pages": job_open_pages,
    "come_back": job_come_back,
    "close_pages": job_close_pages,
}


def main() -> None:
    """Do jobs until there are no more."""
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = _JOBS[job["job"]](job)
        except (OSError, ValueError) as exc:
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
