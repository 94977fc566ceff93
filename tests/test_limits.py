"""Nobody can stop the others: connections that say nothing, heads, sizes and tokens without end."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import resource
import select
import socket
import socketserver
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import jumpserver
from demo.cluster import StandIn
from tests.support import (
    UPGRADE,
    Program,
    RunningServer,
    another_server,
    connected,
    end_shell,
    exchange,
    newest,
    read_until,
    refuse,
    request_head,
    wait_until,
)

MIB = 1 << 20


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


# -- connections that say nothing -------------------------------------------------------------------------------------


def is_open(sock: socket.socket) -> bool:
    """Whether the other end has said and closed nothing yet."""
    return not select.select([sock], [], [], 0)[0]


def is_alive(port: int) -> bool:
    return exchange(port, request_head("/healthz")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("said", [b"", b"GET /"])
def test_1300_silent_connections_keep_nobody_out(tmp_path: Path, cluster: StandIn, said: bytes) -> None:
    count = min(1300, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200)
    with Program(tmp_path, cluster) as program, contextlib.ExitStack() as stack:
        for _ in range(count):
            with contextlib.suppress(ConnectionError):  # some have had to give way already
                stack.enter_context(connected(program.port)).sendall(said)
        began = time.monotonic()
        assert is_alive(program.port)
        with program.connect() as terminal:
            end_shell(terminal)
        assert time.monotonic() - began < jumpserver.HEAD_SECONDS / 2
        status = Path(f"/proc/{program.process.pid}/status").read_text()
        assert int(re.findall(r"Threads:\s+(\d+)", status)[0]) < jumpserver._HEADS + 20


def test_the_oldest_silent_connection_gives_way(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumpserver, "_HEADS", 3)
    with connected(server.port) as first, connected(server.port) as second, connected(server.port) as third:
        wait_until(lambda: len(server.server._heads) == 3)
        assert is_alive(server.port)
        assert read_until(first) == b""
        assert is_open(second) and is_open(third)


def test_a_rush_of_requests_is_answered_to_the_last_one(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumpserver, "_HEADS", 2)
    with contextlib.ExitStack() as stack:
        with server.server._changed:  # nothing is accepted before all have spoken
            rush = [stack.enter_context(connected(server.port)) for _ in range(40)]
            for sock in rush:
                sock.sendall(request_head("/nothing"))
        assert [sock for sock in rush if not read_until(sock).startswith(b"HTTP/1.1 404 ")] == []


@contextlib.contextmanager
def connected_from(server: RunningServer, address: str) -> Iterator[socket.socket]:
    """A connection that the server takes for one from this address."""
    with socket.create_server(("127.0.0.1", 0)) as listener, connected(listener.getsockname()[1]) as near:
        server.server.process_request(listener.accept()[0], (address, 50000))
        yield near


@pytest.mark.parametrize(
    "addresses",
    [
        ("203.0.113.7", "203.0.113.7", "203.0.113.7"),
        ("203.0.113.7", "::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2::1", "2001:db8:1:2::2", "2001:db8:1:2:ffff::3"),
    ],
)
def test_silent_connections_of_one_address_give_way_to_their_own(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, str, str]
) -> None:
    monkeypatch.setattr(jumpserver, "_HEADS_EACH", 2)
    with connected_from(server, "203.0.113.8") as other, connected_from(server, "2001:db8:1:3::1") as neighbour:
        first, second, third = map(functools.partial(connected_from, server), addresses)
        with first as oldest, second as old, third as new:
            assert read_until(oldest) == b""
            assert all(map(is_open, (other, neighbour, old, new)))
            new.sendall(request_head("/healthz"))
            assert read_until(new).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("address", "crowd"),
    [
        *(("203.0.113.7", "203.0.113.7"), ("::ffff:203.0.113.7", "203.0.113.7"), ("2001:db8::1", "2001:db8::/64")),
        *(("127.0.0.9", ""), ("::1", ""), ("::ffff:127.0.0.1", ""), ("10.1.2.3", ""), ("fe80::1%eth0", "fe80::/64")),
    ],
)
def test_trusted_proxies_and_this_host_stand_for_many_browsers(address: str, crowd: str) -> None:
    config = jumpserver.ServerConfig(trusted_proxies=("10.0.0.0/8",))
    assert config.crowd(jumpserver.parse_address(address)) == crowd


def test_a_thread_that_cannot_start_costs_one_connection_and_one_line(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumpserver")

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(socketserver.ThreadingMixIn, "process_request", fail)
        assert exchange(server.port, request_head("/healthz")) == b""
    assert is_alive(server.port)
    assert "no thread can be started" in caplog.text and "Traceback" not in caplog.text


# -- answers that are not taken ---------------------------------------------------------------------------------------

PLAYER = "/node_modules/asciinema-player/dist/bundle/asciinema-player.min.js"


@contextlib.contextmanager
def stuck_download(port: int, *lines: str) -> Iterator[None]:
    """A page that is asked for and not taken."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        sock.sendall(request_head(PLAYER, *lines))
        sock.recv(1)
        yield


@pytest.fixture
def small_buffers(server: RunningServer) -> None:
    server.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # accepted sockets inherit it


@pytest.mark.usefixtures("small_buffers")
def test_downloads_that_nobody_takes_keep_terminals_and_the_probe_going(server: RunningServer) -> None:
    server.server.places = jumpserver.Places(1, 1)
    with stuck_download(server.port):
        answer = exchange(server.port, request_head("/"))
        assert answer.startswith(b"HTTP/1.1 503 ") and answer.endswith(b"try again later\n")
        assert is_alive(server.port)
        with server.connect() as terminal:
            end_shell(terminal)
        refused = exchange(server.port, request_head("/ssh?ssh_token=x", *UPGRADE, V1))
        assert refused.startswith(b"HTTP/1.1 403 ")  # at once, without a thread that waits for a close frame
    wait_until(lambda: exchange(server.port, request_head("/")).startswith(b"HTTP/1.1 200 "), "a free place")


@pytest.mark.usefixtures("small_buffers")
def test_a_download_that_nobody_takes_is_cut(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumpserver, "SEND_TIMEOUT_SECONDS", 1)
    with stuck_download(server.port):
        wait_until(lambda: not server.server._connections, seconds=jumpserver.HEAD_SECONDS / 2)


def test_the_end_of_the_server_drops_connections_that_are_no_terminals(tmp_path: Path, cluster: StandIn) -> None:
    with another_server(tmp_path, cluster) as server, connected(server.port) as sock:
        wait_until(lambda: server.server._connections)
        begin = time.monotonic()
        server.stop()
        assert not server.server._connections
        assert read_until(sock) == b"" and time.monotonic() - begin < jumpserver.HEAD_SECONDS / 2


V1 = "Sec-WebSocket-Protocol: jumpserver.v1"


def test_downloads_of_one_address_take_no_place_of_another(tmp_path: Path, cluster: StandIn) -> None:
    with another_server(tmp_path, cluster, server_lines='trusted_proxies = ["127.0.0.1"]') as server:
        server.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        server.server.places = jumpserver.Places(10, 1)
        with stuck_download(server.port, "X-Forwarded-For: 203.0.113.7"):
            same = exchange(server.port, request_head("/", "X-Forwarded-For: 203.0.113.7"))
            other = exchange(server.port, request_head("/", "X-Forwarded-For: 203.0.113.8"))
        assert (same[:13], other[:13]) == (b"HTTP/1.1 503 ", b"HTTP/1.1 200 ")


def test_places_come_back_and_are_forgotten() -> None:
    places = jumpserver.Places(3, 2)
    with places.hold("a") as first, places.hold("a") as second, places.hold("a") as third:
        with places.hold("b") as fourth, places.hold("") as fifth:
            assert (first, second, third, fourth, fifth) == (True, True, False, True, False)
    assert not places._taken
    with places.hold("") as first, places.hold("") as second, places.hold("") as third:
        assert first and second and third


# -- heads ------------------------------------------------------------------------------------------------------------

LINE, HEAD = jumpserver.LINE_LIMIT_BYTES, jumpserver.HEAD_LIMIT_BYTES
TOO_LONG = "this address is longer than 32 KiB"
TOO_MUCH = "the headers are longer than 32 KiB, or 64 KiB together, or more than 99"


def padded(size: int) -> bytes:
    """A head of exactly that many bytes."""
    half = "X: " + "x" * (LINE // 2)
    rest = size - len(request_head("/healthz", half, half, half, "Y: "))
    return request_head("/healthz", half, half, half, "Y: " + "y" * rest)


HEADS = {
    "the longest line": (request_head("/healthz?" + "x" * (LINE - len("GET /healthz? HTTP/1.1"))), 200, "alive"),
    "a longer line": (request_head("/healthz?" + "x" * (LINE - len("GET /healthz? HTTP/1.1") + 1)), 414, TOO_LONG),
    "a line without end": (b"GET /" + b"x" * MIB, 414, TOO_LONG),
    "no line at all": (b"x" * MIB, 414, TOO_LONG),
    "the longest header": (request_head("/healthz", "X: " + "x" * (LINE - 3)), 200, "alive"),
    "a longer header": (request_head("/healthz", "X: " + "x" * (LINE - 2)), 431, TOO_MUCH),
    "99 headers": (request_head("/healthz", *["X: x"] * 98), 200, "alive"),
    "100 headers": (request_head("/healthz", *["X: x"] * 99), 431, TOO_MUCH),
    "10,000 headers": (request_head("/healthz", *["X: x"] * 10_000), 431, TOO_MUCH),
    "the longest head": (padded(HEAD), 200, "alive"),
    "a longer head": (padded(HEAD + 1), 431, TOO_MUCH),
    "99 headers of 65 KB": (request_head("/healthz", *["X: " + "x" * 65_000] * 98), 431, TOO_MUCH),
}


@pytest.mark.parametrize(("head", "status", "words"), HEADS.values(), ids=list(HEADS))
def test_a_head_has_one_limit_and_what_is_over_it_is_refused_in_words(
    server: RunningServer, head: bytes, status: int, words: str
) -> None:
    answer = exchange(server.port, head)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert answer.endswith(f"\r\n\r\n{words}\n".encode())


def test_a_connection_that_had_to_give_way_is_not_answered() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(request_head("/ssh?ssh_token=x"))  # a token would be spent for nobody
        assert jumpserver.read_head(near, 5, lambda: False) == b""


@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
def test_a_head_that_comes_a_byte_at_a_time_is_read_to_its_last_byte(line_end: str) -> None:
    head = f"GET / HTTP/1.1{line_end}Host: x{line_end}{line_end}".encode()
    near, far = socket.socketpair()
    with near, far, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(jumpserver.read_head, near, 10, lambda: True)
        for byte in head[:-1]:
            far.sendall(bytes([byte]))
            wait_until(lambda: is_open(near), "the byte being read")
        far.sendall(head[-1:] + b"what follows")
        assert reading.result() == head
        assert near.recv(100) == b"what follows"


def test_60_heads_of_6_mb_cost_little_memory(server: RunningServer) -> None:
    head = HEADS["99 headers of 65 KB"][0]
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(60) as pool:
            answers = list(pool.map(lambda _: exchange(server.port, head)[:13], range(60)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answers == [b"HTTP/1.1 431 "] * 60
    assert peak < 60 * MIB


def test_a_refused_request_that_is_still_being_sent_gets_its_answer_and_its_end(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumpserver, "_DRAIN_SECONDS", 60)
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {8 * MIB}\r\n\r\n".encode()
    assert exchange(server.port, head + bytes(8 * MIB)).startswith(b"HTTP/1.1 413 ")


def test_a_refused_client_that_keeps_sending_is_cut(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumpserver, "_DRAIN_SECONDS", 0.2)
    with connected(server.port) as sock, pytest.raises(ConnectionError):
        sock.sendall(b"POST / HTTP/1.1\r\n\r\n")
        while True:
            sock.sendall(bytes(65536))


# -- tokens and sizes -------------------------------------------------------------------------------------------------


def test_the_longest_token_opens_a_terminal_and_a_longer_one_is_refused_in_words(server: RunningServer) -> None:
    limit = jumpserver.TOKEN_LIMIT_CHARACTERS
    token = server.token(filler="x" * (limit * 3 // 4 - 300))
    assert limit - 400 < len(token) <= limit
    with server.connect_with(token, size="&cols=80&rows=24") as terminal:
        end_shell(terminal)
    server.cluster.execs.clear()
    for longer in ("x" * (limit + 1), server.token(filler="x" * limit)):
        assert refuse(server, longer) == (4403, 403, jumpserver.TOKEN_TOO_LONG.reason)


def test_a_long_token_plays_nothing_and_is_refused_in_words(server: RunningServer) -> None:
    token = server.link_token(filler="x" * jumpserver.TOKEN_LIMIT_CHARACTERS)
    for request in (
        request_head(f"/records/play?filename=a.cast&token={token}"),
        request_head("/records/play?filename=a.cast", f"Authorization: Bearer {token}"),
    ):
        answer = exchange(server.port, request)
        assert answer.startswith(b"HTTP/1.1 403 ") and answer.endswith(b"more than this server takes\n")


def sizes_in(recording: Path) -> list[str]:
    header, *events = map(json.loads, recording.read_text().splitlines())
    return [f"{header['width']}x{header['height']}"] + [event[2] for event in events if event[1] == "r"]


@pytest.mark.parametrize("query", ["&cols=65535&rows=65535", ""], ids=["query", "message"])
def test_pod_and_recording_get_the_same_bounded_size(server: RunningServer, query: str) -> None:
    with server.connect(size=query) as terminal:
        if not query:
            terminal.resize(65535, 65535)
        terminal.wait_for_event("session")
        for size in ((10_000, 10_000), (1001, 500), (1000, 501), (80, 24)):
            terminal.resize(*size)
        terminal.type("stty size\n")
        terminal.wait_for("24 80")
        end_shell(terminal)
    largest = (jumpserver.COLS_LIMIT, jumpserver.ROWS_LIMIT)
    assert server.cluster.execs[-1].sizes == [largest] * 4 + [(80, 24)]
    assert sizes_in(newest(server)) == ["1000x500"] * 4 + ["80x24"]
