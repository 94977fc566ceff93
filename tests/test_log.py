"""What the log says: a line an event, of a length that nobody outside chooses, at a level that can be filtered by."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from demo.cluster import StandIn
from hooks import Denied, Hooks, HooksSettings, log_event
from tests.support import Listener, Program, exchange, read_until, request_head


def test_what_went_wrong_can_be_told_from_what_happens_every_day(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "jumpserver")
    for event in ("error", "trouble", "warning", "login", "logout", "ready"):
        log_event(event, session="x")
    levels = [(record.levelname, record.getMessage().split()[0]) for record in caplog.records]
    assert levels == [
        ("ERROR", "error"),
        ("ERROR", "trouble"),
        ("WARNING", "warning"),
        ("INFO", "login"),
        ("INFO", "logout"),
        ("INFO", "ready"),
    ]


def test_a_stranger_cannot_write_long_lines_into_it(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster) as server:
        exchange(server.port, request_head(f"/records/play?filename={'a' * 30_000}&token=a.b.c"))
        server.end()
        (line,) = (line for line in server.log().splitlines() if " refusal " in line)
        assert line.endswith('reason="this link is not valid; open it again from the platform"')
        assert len(line) < 5000


def test_nor_can_a_platform_that_refuses(tmp_path: Path) -> None:
    body = json.dumps({"message": "no" * 100_000}).encode()
    head = f"HTTP/1.1 403 No\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    def refuse(sock: socket.socket) -> None:
        read_until(sock, b"}")
        sock.sendall(head + body)

    platform = Listener(refuse)
    try:
        own = Hooks(HooksSettings(db=tmp_path / "db", validate_url=f"http://127.0.0.1:{platform.port}"))
        with pytest.raises(Denied) as caught:
            own.validate_ssh_token("T")
    finally:
        platform.close()
    assert str(caught.value) == "no" * 2048


def test_an_ipv6_address_and_its_port_can_be_told_apart(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster, config='[Server]\nlisten = "[::1]:0"\n') as server:
        server.end()
        assert f" listen=[::1]:{server.port} " in server.log()
