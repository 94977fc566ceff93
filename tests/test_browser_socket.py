"""The browser's socket: what simple-websocket must not do to it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import queue
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, cast

import pytest
import websocket
from wsproto.events import CloseConnection

import jumpserver
from tests.support import (
    RunningServer,
    connected,
    drop,
    end_shell,
    exchange,
    frame,
    last_row,
    read_until,
    ssh_head,
    wait_until,
)

KIB, MIB = 1 << 10, 1 << 20


class Owner:
    """What a browser's socket needs of its session."""

    def __init__(self, take: Callable[[str | bytes], None], ended: threading.Event) -> None:
        self.take = take
        self.ended = ended
        self.room = threading.Event()
        self.room.set()

    def on_message(self, browser: jumpserver.BrowserSocket, message: str | bytes) -> None:
        self.take(message)

    def left(self, browser: jumpserver.BrowserSocket) -> None:
        self.end = browser.why_ended()
        self.ended.set()
        self.room.set()

    def wait_for_room(self, timeout: float) -> bool:
        return self.room.wait(timeout)


@contextlib.contextmanager
def browser_socket(
    on_message: Callable[[str | bytes], None], **options: Any
) -> Iterator[tuple[jumpserver.BrowserSocket, websocket.WebSocket, threading.Event]]:
    """Both ends of one WebSocket, and the event that the server's end calls on_end."""
    ended = threading.Event()
    owner = Owner(on_message, ended)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        connecting = pool.submit(websocket.create_connection, url, 10, **options)
        sock, _ = listener.accept()
        with sock:
            key = re.search(rb"Sec-WebSocket-Key: (\S+)", read_until(sock, b"\r\n\r\n"))
            assert key
            sock.settimeout(0.3)  # as the handler leaves it, only shorter
            near = jumpserver.BrowserSocket(sock, key[1].decode(), "", "")
            near.session = cast(jumpserver.Session, owner)
            thread = threading.Thread(target=near.run)
            thread.start()
            far = connecting.result()
            try:
                yield near, far, ended
            finally:
                drop(far)
                near.abort()
                thread.join()


def test_large_frames_of_several_threads_and_pongs_stay_whole() -> None:
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * KIB)]
    with browser_socket(lambda message: None, sockopt=small) as (near, far, _), ThreadPoolExecutor(3) as pool:

        def flood(number: int) -> None:
            for _ in range(100):
                near.send(bytes([number]) * 70_000)

        flooding = [pool.submit(flood, number) for number in range(3)]
        frames = pongs = 0
        while frames < 300 or pongs < 150:
            opcode, got = far.recv_data_frame(control_frame=True)
            if opcode == websocket.ABNF.OPCODE_PONG:
                pongs += 1
                continue
            assert got is not None and opcode == websocket.ABNF.OPCODE_BINARY
            assert len(got.data) == 70_000 and len(set(got.data)) == 1
            frames += 1
            if frames % 2:
                far.ping("are you there")
        for each in flooding:
            each.result()


def test_a_browser_that_never_answers_a_ping_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumpserver, "PING_SECONDS", 0.05)
    with browser_socket(lambda message: None) as (near, _, ended):
        assert ended.wait(5)
        assert cast(Owner, near.session).end == jumpserver.BROWSER_SILENT
        with pytest.raises(jumpserver.BrowserGone):
            near.send(b"x")


@pytest.mark.parametrize("how", ["far", "abort", "finish"])
def test_the_end_of_the_connection_is_always_told(how: str) -> None:
    for _ in range(20):
        with browser_socket(lambda message: None) as (near, far, ended):
            if how == "far":
                drop(far)
            elif how == "abort":
                near.abort()
            else:
                far.send_close()
                near.finish(1000, "")
            assert ended.wait(5)
            assert not near.connected


def test_a_blocked_send_wakes_when_the_connection_is_dropped() -> None:
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * KIB)]
    with browser_socket(lambda message: None, sockopt=small) as (near, far, _), ThreadPoolExecutor(1) as pool:
        sending = pool.submit(near.send, bytes(64 * MIB))
        assert far.sock and far.sock.recv(1)  # it has begun, and cannot end
        near.abort()
        with pytest.raises(jumpserver.BrowserGone):
            sending.result(5)


@pytest.mark.parametrize("system", ["Linux", "macOS"])
def test_a_browser_that_takes_nothing_is_dropped_and_nothing_follows_its_cut_off_frame(
    monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr(jumpserver, "SEND_TIMEOUT_SECONDS", 1)
    if system == "macOS":
        monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * KIB)]
    with browser_socket(lambda message: None, sockopt=small) as (near, far, ended):
        with pytest.raises(jumpserver.BrowserGone):
            near.send(bytes(64 * MIB))
        assert ended.wait(5) and far.sock
        with contextlib.suppress(ConnectionResetError):
            while far.sock.recv(MIB):
                pass
        with pytest.raises(jumpserver.BrowserGone):
            near.send(b"more")


def test_a_slow_browser_that_keeps_taking_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumpserver, "SEND_TIMEOUT_SECONDS", 1)
    small, tick = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)], threading.Event()
    with browser_socket(lambda message: None, sockopt=small) as (near, far, ended), ThreadPoolExecutor(1) as pool:
        sending = pool.submit(near.send, bytes(16 * MIB))  # four times what the system buffers
        assert far.sock
        taken = 0
        for _ in range(30):
            taken += len(far.sock.recv(16 * KIB))
            assert not ended.is_set() and not sending.done()
            tick.wait(0.1)
        while taken < 16 * MIB:
            taken += len(far.sock.recv(MIB))
        sending.result()


def test_nothing_can_be_sent_once_the_close_frame_is_out() -> None:
    with browser_socket(lambda message: None) as (near, _, _):
        near.ws.send(CloseConnection(1000))  # as simple-websocket does before it clears ``connected``
        with pytest.raises(jumpserver.BrowserGone):
            near.send(b"x")
        near.finish(1000, "")


def test_a_message_that_had_to_wait_for_room_proves_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumpserver, "PING_SECONDS", 0.3)
    messages: queue.Queue[str | bytes] = queue.Queue()
    ping, pong = b"\x89\x00", frame(b"", websocket.ABNF.OPCODE_PONG)
    with browser_socket(messages.put) as (near, far, _):
        assert far.sock
        room = cast(Owner, near.session).room
        room.clear()
        read_until(far.sock, ping)
        far.sock.sendall(frame(b"first"))
        read_until(far.sock, ping)  # sent while the first message waits: by now the next ping is due
        far.sock.sendall(pong + frame(b"second"))
        room.set()
        assert (messages.get(timeout=5), messages.get(timeout=5)) == ("first", "second")


def test_a_close_frame_waits_for_what_is_being_sent() -> None:
    with browser_socket(lambda message: None) as (near, far, _), ThreadPoolExecutor(1) as pool:
        with near._shared.lock:  # as a thread that is sending holds it
            finishing = pool.submit(near.finish, 1000, "over")
            with pytest.raises(concurrent.futures.TimeoutError):
                finishing.result(0.2)
            near.send(b"last")
        assert far.recv_data() == (websocket.ABNF.OPCODE_BINARY, b"last")
        assert far.recv_data() == (websocket.ABNF.OPCODE_CLOSE, b"\x03\xe8over")
        finishing.result()


def test_small_frames_are_not_held_back() -> None:
    with browser_socket(lambda message: None) as (near, _, _):
        assert near.sock._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_in_a_message_ends_the_connection() -> None:
    with browser_socket(lambda message: [][1]) as (near, far, ended):
        far.send("x")
        assert ended.wait(5) and not near.connected and far.sock
        assert read_until(far.sock) == b""


BROKEN_FRAMES = {
    "text that is not UTF-8": frame(b"\xff\xfe"),
    "half a character": frame(b'"\xc3'),
    "a reserved bit": frame(b"x", first_byte=0xC1),
    "an unknown opcode": frame(b"x", first_byte=0x83),
    "a long ping": b"\x89\xfe\x00\x80" + bytes(132),
    "a ping in pieces": frame(b"x", first_byte=0x09),
    "a frame without mask": b"\x81\x02{}",
    "a continuation of nothing": frame(b"x", first_byte=0x80),
    "a text inside a text": frame(b"x", first_byte=0x01) + frame(b"x"),
    "a close with half a code": frame(b"\x03", first_byte=0x88),
    "a close with a forbidden code": frame(b"\x03\xed", first_byte=0x88),
    "a close, then more": frame(b"\x03\xe8", first_byte=0x88) + frame(b"x") + frame(b"\xff"),
    "two closes": frame(b"\x03\xe8", first_byte=0x88) * 2,
    "a length of 2^63": b"\x82\xff" + b"\xff" * 8 + bytes(4),
}


@pytest.mark.parametrize("broken", BROKEN_FRAMES.values(), ids=list(BROKEN_FRAMES))
def test_a_broken_frame_ends_its_session_without_a_traceback(
    server: RunningServer, caplog: pytest.LogCaptureFixture, broken: bytes
) -> None:
    with connected(server.port) as sock:
        sock.sendall(ssh_head(server))
        read_until(sock, b"\r\n\r\n")
        server.cluster.wait_until(server.cluster.shells)
        sock.sendall(broken)
        read_until(sock)
    assert "Traceback" not in caplog.text  # and none in a thread, for which pytest fails the test


@pytest.mark.parametrize("pieces", [1, 5])
def test_a_message_over_1_mib_ends_only_its_own_session(server: RunningServer, pieces: int) -> None:
    data = json.dumps({"type": "input", "input": "x" * MIB}).encode()
    with server.connect() as bystander, server.connect() as terminal:
        bystander.wait_for_event("session")
        terminal.wait_for_event("session")
        size = len(data) // pieces + 1
        with contextlib.suppress(OSError, websocket.WebSocketException):
            for start in range(0, len(data), size):
                first = (0x80 if start + size >= len(data) else 0) | (0 if start else 1)
                terminal.sock.sock.sendall(frame(data[start : start + size], first_byte=first))  # type: ignore[union-attr]
        terminal.wait_end()
        assert terminal.close_code in (1009, 1006)
        bystander.type("echo a$((1+1))b\n")
        bystander.wait_for("a2b")
        end_shell(bystander)


def test_compression_is_not_agreed_to(server: RunningServer) -> None:
    header = ["Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"]
    with server.connect_with(server.token(), size="&cols=80&rows=24", header=header) as terminal:
        assert "sec-websocket-extensions" not in (terminal.sock.getheaders() or {})  # type: ignore[no-untyped-call]
        end_shell(terminal)


def test_frames_sent_along_with_the_handshake_are_not_lost(server: RunningServer) -> None:
    first = frame(b'{"type":"resize","rows":33,"cols":99}') + frame(b'{"type":"input","input":"stty size; exit\\n"}')
    got = exchange(server.port, ssh_head(server, query="") + first)
    assert b"33 99" in got
    assert server.cluster.execs[-1].sizes == [(99, 33)]


def test_a_one_byte_stream_of_the_handshake_and_its_frames_works(server: RunningServer) -> None:
    with connected(server.port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in ssh_head(server) + frame(b'{"type":"input","input":"exit 4\\n"}'):
            sock.sendall(bytes([byte]))
        assert b"exit code 4" in read_until(sock)


def test_a_message_over_1_mib_is_named_in_the_ledger(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.wait_for_event("session")
        terminal.send(type="input", input="x" * MIB)
        terminal.wait_end()
    wait_until(lambda: last_row(server)["logout_at"])
    assert last_row(server)["reason"] == "the browser sent a message of more than 1 MiB"
