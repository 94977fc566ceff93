"""Nobody can stop the others: connections that say nothing, heads, sizes and tokens without end."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

import jumpserver
from demo.cluster import StandIn
from tests.support import (
    RunningServer,
    another_server,
    connected,
    exchange,
    read_until,
    request_head,
    wait_until,
)


def test_a_head_that_trickles_in_is_cut(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumpserver, "HEAD_SECONDS", 0.4)
    began = time.monotonic()
    with connected(server.port) as sock:
        sock.settimeout(0.1)  # a byte each time that this runs out
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 5:
                sock.sendall(b"x")
                with contextlib.suppress(TimeoutError, socket.timeout):
                    if not sock.recv(1):
                        break
    assert time.monotonic() - began < 3


def test_connections_over_the_cap_are_answered_with_503(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumpserver, "_SPARE_CONNECTIONS", 2)
    with another_server(tmp_path, cluster, server_lines="max_sessions = 1") as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(server.port)) for _ in range(3)]
        with connected(server.port) as sock:
            assert read_until(sock).startswith(b"HTTP/1.1 503 ")
        held[0].close()

        def answered() -> bool:
            return exchange(server.port, request_head("/nothing")).startswith(b"HTTP/1.1 404 ")

        wait_until(answered, "room for a connection")
