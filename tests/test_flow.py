"""Who waits for whom: programs for pages that draw slowly, keys for programs that do not read, nobody for ever."""

from __future__ import annotations

import collections
import contextlib
import json
import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import websocket

import jumpserver
from tests.support import RunningServer, Terminal, end_shell, wait_until

KIB, MIB = 1 << 10, 1 << 20


def test_a_session_waits_for_a_slow_browser_to_take_the_rest(server: RunningServer) -> None:
    command = ["sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x"]
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)]
    with server.connect_with(server.token(command=command), size="&cols=80&rows=24", sockopt=small) as terminal:
        server.cluster.wait_until(lambda: server.cluster.execs and server.cluster.execs[-1].ended)
        with pytest.raises(AssertionError):
            wait_until(lambda: not len(server.server.sessions), seconds=0.3)
        terminal.type("too late")
        terminal.wait_end()
    assert len(terminal.output) == 200_000


def test_a_page_that_draws_nothing_gets_a_window_of_output_and_then_the_program_waits(server: RunningServer) -> None:
    with server.connect(command=["yes"]) as terminal:
        terminal.wait_for("y\r\n")
        terminal.acknowledges = False
        record, before = server.cluster.execs[-1], -1
        while record.bytes_out != before:  # what is on its way fills the buffers between
            before = record.bytes_out
            while select.select([terminal.sock.sock], [], [], 0.15)[0]:
                terminal.step()
        assert jumpserver.WINDOW_MINIMUM_BYTES <= len(terminal.output) < 2 * jumpserver.WINDOW_MINIMUM_BYTES + MIB
        terminal.acknowledges = True
        terminal.acknowledge()
        while record.bytes_out < before + 4 * MIB:
            terminal.step()


def test_a_large_paste_while_nothing_is_drawn_is_echoed_without_a_deadlock(server: RunningServer) -> None:
    echo = ["sh", "-c", "stty raw -echo; echo ready; exec cat"]
    piece, count = "0123456789abcdef" * 4096, 192
    with server.connect(command=echo) as terminal, ThreadPoolExecutor(1) as pool:
        terminal.wait_for("ready\n")
        terminal.acknowledges = False
        start = len(terminal.output)
        pasted = pool.submit(lambda: collections.deque(map(terminal.type, [piece] * count)))
        while not pasted.done():
            if select.select([terminal.sock.sock], [], [], 0.1)[0]:
                terminal.step()
        pasted.result()
        terminal.acknowledges = True
        terminal.acknowledge()
        while len(terminal.output) < start + len(piece) * count:
            terminal.step()
        assert terminal.output[start:] == (piece * count).encode()


DEAF = ["sh", "-c", "stty raw -echo; echo ready; exec sleep 1000"]


def session_threads(terminal: Terminal) -> set[str]:
    session = terminal.wait_for_event("session")["id"]
    return {thread.name[len(session) :] for thread in threading.enumerate() if thread.name.startswith(session)}


def test_keys_before_and_after_a_paste_that_has_to_wait_arrive_in_order(server: RunningServer) -> None:
    echo = ["sh", "-c", "stty raw -echo; echo ready; exec cat"]
    words = [f"<{i}>" for i in range(50)]
    with server.connect(command=echo) as terminal:
        terminal.wait_for("ready\n")
        for word in (*words, "x" * 100 * KIB, *words, "<end>"):
            terminal.type(word)
        output = terminal.wait_for("<end>")
        assert session_threads(terminal) == {"-output", "-browser"}
    typed = "".join(words)
    assert output.decode().endswith(typed + "x" * 100 * KIB + typed + "<end>")


def test_input_that_the_pod_does_not_read_is_held_back(server: RunningServer) -> None:
    keys = json.dumps({"type": "input", "input": "x" * 64 * KIB})
    sent = 0
    with server.connect(command=DEAF) as terminal:
        terminal.wait_for("ready")
        terminal.sock.settimeout(0.7)
        with pytest.raises((websocket.WebSocketTimeoutException, TimeoutError)):
            while sent < 100 * MIB:
                sent += terminal.sock.send(keys)
        server.cluster.drop_connections()
    assert sent < 50 * MIB


def test_a_browser_that_leaves_while_its_input_is_held_back_is_noticed(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumpserver, "PING_SECONDS", 0.5)
    keys = json.dumps({"type": "input", "input": "x" * 64 * KIB})
    with server.connect(command=DEAF) as terminal:
        terminal.wait_for("ready")
        terminal.sock.settimeout(0.5)
        with contextlib.suppress(websocket.WebSocketTimeoutException, TimeoutError):
            while True:
                terminal.sock.send(keys)
    try:
        wait_until(lambda: not len(server.server.sessions), seconds=3)
    finally:
        server.cluster.drop_connections()


def test_a_browser_that_stops_reading_is_dropped_and_hurts_nobody(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumpserver, "SEND_TIMEOUT_SECONDS", 1)
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)]
    with server.connect_with(server.token(command=["yes"]), size="&cols=80&rows=24", sockopt=small):
        with server.connect(sub="bystander") as bystander:
            server.cluster.wait_until(lambda: len(server.cluster.execs) == 2)
            flood = next(record for record in server.cluster.execs if record.command[-1] == "yes")
            bystander.type("echo a$((1+1))b\n")
            bystander.wait_for("a2b")
            server.cluster.wait_until(lambda: flood.ended, 10)
            assert flood.bytes_out < 50 * MIB
            end_shell(bystander)
    wait_until(lambda: all(row["logout_at"] for row in server.rows()[-2:]))
    ends = [row["reason"] for row in server.rows()[-2:] if row["user"] == "alice"]
    assert ends == [jumpserver.BROWSER_SILENT.reason]
