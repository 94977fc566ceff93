"""Requests: heads, addresses behind proxies, origins, handshakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import websocket

from demo.cluster import StandIn
from tests.support import (
    KEY,
    UPGRADE,
    RunningServer,
    Terminal,
    another_server,
    connected,
    end_shell,
    exchange,
    last_row,
    read_until,
    refuse,
    request_head,
    wait_until,
)


@pytest.mark.parametrize(
    ("trusted", "address"),
    [("", "127.0.0.1"), ('"::1", "10.0.0.0/8"', "127.0.0.1"), ('"10.0.0.0/8", "127.0.0.0/8"', "203.0.113.9")],
)
def test_a_trusted_proxy_has_the_last_word_on_the_browsers_address(
    tmp_path: Path, cluster: StandIn, trusted: str, address: str
) -> None:
    forwarded = ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 7.7.7.7, 203.0.113.9"]
    with another_server(tmp_path, cluster, server_lines=f"trusted_proxies = [{trusted}]") as server:
        with Terminal(websocket.create_connection(server.terminal_socket(), 10, header=forwarded)) as terminal:
            end_shell(terminal)
        wait_until(lambda: last_row(server)["logout_at"])
        assert last_row(server)["remote_addr"] == address


def test_a_handshake_may_have_its_lists_on_several_lines(server: RunningServer) -> None:
    upgrade = (
        "Connection: keep-alive",
        *UPGRADE,
        "Sec-WebSocket-Protocol: other",
        "Sec-WebSocket-Protocol: jumpserver.v1",
    )
    head = request_head(f"/ssh?ssh_token={server.token()}&cols=80&rows=24", *upgrade)
    with connected(server.port) as sock:
        sock.sendall(head)
        answer = read_until(sock, b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101 ") and b"jumpserver.v1" in answer


def test_only_pages_of_allowed_origins_open_terminals(tmp_path: Path, cluster: StandIn) -> None:
    with another_server(tmp_path, cluster, server_lines='allowed_origins = ["https://good.example"]') as server:
        assert refuse(server, server.token(), origin="https://evil.example")[:2] == (4403, 403)
        assert refuse(server, server.token(), suppress_origin=True)[:2] == (4403, 403)
        with server.connect_with(server.token(), origin="https://good.example") as terminal:
            terminal.wait_for_event("session")


@pytest.mark.parametrize(
    "lines",
    [
        (),
        UPGRADE[:-1],
        (*UPGRADE[:-1], "Sec-WebSocket-Key: c2hvcnQ="),
        (*UPGRADE[:-1], "Sec-WebSocket-Key: ünsinn"),
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 8", KEY),
        ("Connection: close", *UPGRADE[1:]),
        ("Connection: Upgrade", "Upgrade: h2c", *UPGRADE[2:]),
    ],
)
def test_a_bad_handshake_is_answered_with_400(
    server: RunningServer, caplog: pytest.LogCaptureFixture, lines: tuple[str, ...]
) -> None:
    answer = exchange(server.port, request_head(f"/ssh?ssh_token={server.token()}", *lines))
    assert answer.startswith(b"HTTP/1.1 400 ") and b"\r\nContent-Type: text/plain" in answer
    assert server.cluster.execs == [] and "Traceback" not in caplog.text


@pytest.mark.parametrize("target", ["/ssh?" + "a=1&" * 100, "http://[", "//[", "/\xff\xfe?%ff%00"])
def test_a_strange_request_target_is_answered_without_a_traceback(
    server: RunningServer, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    answer = exchange(server.port, request_head(target, *UPGRADE))
    assert re.match(rb"HTTP/1\.1 40[04] ", answer), answer
    assert "Traceback" not in caplog.text


def test_no_text_of_the_client_comes_back_in_a_head(server: RunningServer) -> None:
    lines = (*UPGRADE, "Sec-WebSocket-Protocol: marker", "Origin: marker", "Sec-WebSocket-Extensions: marker")
    targets = ("/ssh?ssh_token=marker", "/marker", "/records/play?filename=marker&token=marker", "/?a=%0d%0amarker:x")
    for request in [request_head(target, *lines) for target in targets] + [
        b"GET / marker HTTP/1.1\r\n\r\n",
        b"MARKER / HTTP/1.1\r\n\r\n",
    ]:
        head, _, _ = exchange(server.port, request).partition(b"\r\n\r\n")
        assert b"marker" not in head.lower(), head


def test_the_liveness_probe_is_answered(server: RunningServer) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(server.port) as sock:
        sock.sendall(head)
        assert read_until(sock).startswith(b"HTTP/1.1 200 ")
