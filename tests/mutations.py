"""Mutated WebSocket conversations against a server of its own, to see whether anything accumulates in it.

By hand: ``python -m tests.mutations [COUNT] [SEED]`` prints, after each tenth, what the server's process holds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from demo.cluster import StandIn
from tests.support import Installation, Program, wait_until

KEY = "AAAAAAAAAAAAAAAAAAAAAA=="
WAIT_SECONDS = 0.05
MESSAGES = (
    b'{"type":"input","input":"echo x\\n"}',
    b'{"type":"resize","rows":24,"cols":80}',
    b'{"type":"flow","paused":true}',
    b'{"type":"input","input":"exit\\n"}',
    b"{}",
    b"",
    b"\xff",
    b"[" * 5000,
)


def frame(random: random.Random) -> bytes:
    """A client's frame, most often a good one."""
    data = random.choice(MESSAGES) if random.random() < 0.8 else random.randbytes(random.choice((0, 1, 125, 126, 3000)))
    length = len(data) if random.random() < 0.95 else random.choice((0, 125, 65535))
    first = random.choice((0x81, 0x81, 0x81, 0x82, 0x01, 0x80, 0x88, 0x89, 0x8A, 0xC1, 0x83))
    size = struct.pack("!B", 0x80 | length) if length < 126 else struct.pack("!BH", 0x80 | 126, length)
    mask = random.randbytes(4)
    return bytes([first]) + size + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))


def conversation(random: random.Random, token: str) -> bytes:
    """A handshake and some frames, with a few bytes changed, left out or put in."""
    lines = [
        f"GET /ssh?ssh_token={token}&cols=80&rows=24 HTTP/1.1",
        *("Host: x", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        f"Sec-WebSocket-Key: {KEY}",
        *(["Sec-WebSocket-Protocol: jumpserver.v1"] if random.random() < 0.5 else []),
    ]
    head = bytearray("\r\n".join([*lines, "", ""]).encode())
    body = bytearray(b"".join(frame(random) for _ in range(random.randrange(6))))
    for part, chance in ((head, 0.3), (body, 0.5)):
        while part and random.random() < chance:
            place = random.randrange(len(part))
            part[place : place + random.randrange(3)] = random.randbytes(random.randrange(3))
    return bytes(head + body)


def talk(port: int, data: bytes, random: random.Random) -> None:
    """Say it, listen for a moment, and leave, now and then with a reset."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock, contextlib.suppress(OSError):
        sock.sendall(data)
        sock.settimeout(WAIT_SECONDS)
        while sock.recv(65536):
            pass
        if random.random() < 0.2:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Run:
    """Conversations with one server, several at a time."""

    def __init__(self, server: Installation, seed: int, threads: int = 8) -> None:
        self._server = server
        self._random = random.Random(seed)
        self._threads = threads

    def more(self, count: int) -> None:
        """Hold so many, and wait until the sessions that came of them have ended."""
        threads = [
            threading.Thread(target=self._some, args=(count // self._threads, self._random.randrange(1 << 30)))
            for _ in range(self._threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: not self._server.cluster.shells(), "the end of all shells", 60)
        wait_until(lambda: all(row["logout_at"] for row in self._server.rows()), "the end of all sessions", 60)
        self._server.cluster.execs.clear()

    def _some(self, count: int, seed: int) -> None:
        own = random.Random(seed)
        for _ in range(count):
            token = self._server.token() if own.random() < 0.3 else "x"
            talk(self._server.port, conversation(own, token), own)


def held(pid: int) -> Iterator[str]:
    """What a process holds, in words."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    yield from (" ".join(line.split()) for line in status if line.startswith(("RssAnon", "Threads")))
    yield f"descriptors: {len(os.listdir(f'/proc/{pid}/fd'))}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=40_000)
    parser.add_argument("seed", nargs="?", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, StandIn() as cluster, Program(Path(folder), cluster) as program:
        run = Run(program, options.seed)
        for part in range(11):
            print(f"{part * options.count // 10} conversations", *held(program.process.pid), sep="  ", flush=True)
            run.more(options.count // 10 if part < 10 else 0)


if __name__ == "__main__":
    main()
