"""A slow link: forwards connections with a rate towards the client and a delay each way. Knows no protocol.

Its sockets have the buffers that the kernel gives them, as a router's queue has: what the server sends without asking
whether it has arrived waits in there.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections import deque

from bench.source import leave_with_parent

_PIECE_BYTES = 4096
_LATE_SECONDS = 0.02  # that a thread may wake too late and make up for


class Direction:
    """One way of a connection: a thread reads as fast as the rate allows, another hands on after the delay."""

    def __init__(self, source: socket.socket, target: socket.socket, rate: float, delay: float) -> None:
        self._source, self._target, self._rate, self._delay = source, target, rate, delay
        self._changed = threading.Condition()  # guards _on_the_way
        self._on_the_way: deque[tuple[float, bytes]] = deque()  # bounded by rate and delay
        for run in (self._read, self._write):
            threading.Thread(target=run, daemon=True).start()

    def _read(self) -> None:
        free_at = time.monotonic()
        data = b"-"
        while data:
            try:
                data = self._source.recv(_PIECE_BYTES)
            except OSError:
                data = b""
            now = time.monotonic()
            late = max(free_at, now - _LATE_SECONDS)
            free_at = late + (len(data) / self._rate if self._rate else 0)
            time.sleep(max(0.0, free_at - now))
            with self._changed:
                self._on_the_way.append((time.monotonic() + self._delay, data))
                self._changed.notify()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._on_the_way)
                due, data = self._on_the_way.popleft()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not data:
                    self._target.shutdown(socket.SHUT_WR)
                    return
                self._target.sendall(data)
            except OSError:
                with contextlib.suppress(OSError):
                    self._source.shutdown(socket.SHUT_RDWR)
                return


def main() -> None:
    """Forward to the port that is named, at so many bytes a second and seconds each way; prints its own port."""
    leave_with_parent()
    port, rate, delay = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    while True:
        client, _ = listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", port))
        except OSError:
            client.close()
            continue
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Direction(client, server, 0, delay)
        Direction(server, client, rate, delay)


if __name__ == "__main__":
    main()
