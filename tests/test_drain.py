"""A server that is told to end: open terminals may finish, nobody new comes in, and a hurried operator is obeyed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import websocket

from demo.cluster import StandIn
from tests.support import Program, answer_of, end_shell, wait_until

STUCK_LOGOUT = """
import threading
from hooks import Hooks
class Own(Hooks):
    def on_logout(self, info):
        threading.Event().wait()
"""


def wait_draining(server: Program) -> None:
    wait_until(lambda: " drain " in server.log(), "the drain")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_draining_all_is_answered_but_new_terminals_and_the_last_open_one_ends_it(
    cluster: StandIn, tmp_path: Path, number: signal.Signals
) -> None:
    with Program(tmp_path, cluster, server_lines="drain_timeout = 300") as server, server.connect() as terminal:
        terminal.wait_for_event("session")
        server.process.send_signal(number)
        wait_draining(server)
        assert answer_of(server, "readyz") == (503, "the server is shutting down\n")
        assert answer_of(server, "healthz") == (200, "alive\n")
        assert answer_of(server, "metrics")[0] == 200
        assert answer_of(server, server.play_path(server.recordings()[0])[1:])[0] == 200
        with server.connect() as refused:
            assert refused.wait_end()["reason"] == "the server is shutting down"
            assert refused.close_code == 4503
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            server.connect(v1=False)
        assert caught.value.status_code == 503
        assert int((caught.value.resp_headers or {})["retry-after"]) > 0
        notice = terminal.wait_for_event("notice")
        assert notice["text"] == "the server is shutting down: this terminal ends in 5 minutes"
        terminal.type("echo still-$((40+2))\n")
        terminal.wait_for("still-42")
        assert end_shell(terminal)["reason"] == "the shell has ended"
        assert server.process.wait(20) == 0


def test_what_is_open_after_the_drain_timeout_ends_as_without_it(cluster: StandIn, tmp_path: Path) -> None:
    with Program(tmp_path, cluster, server_lines="drain_timeout = 2") as server, server.connect() as terminal:
        terminal.wait_for_event("session")
        server.process.send_signal(signal.SIGTERM)
        assert terminal.wait_end()["reason"] == "the server is shutting down"
        assert server.process.wait(20) == 0
        assert [row["reason"] for row in server.rows()] == ["the server is shutting down"]


def test_a_second_signal_ends_the_drain_and_a_third_the_process(cluster: StandIn, tmp_path: Path) -> None:
    draining = Program(tmp_path, cluster, server_lines="drain_timeout = 300", hooks_file=STUCK_LOGOUT)
    with draining as server, server.connect() as terminal:
        terminal.wait_for_event("session")
        server.process.send_signal(signal.SIGTERM)
        wait_draining(server)
        server.process.send_signal(signal.SIGTERM)
        assert terminal.wait_end()["reason"] == "the server is shutting down"
        wait_until(lambda: " logout " in server.log(), "the logout")
        assert server.end() == -signal.SIGTERM


def test_a_drain_without_terminals_takes_no_time(cluster: StandIn, tmp_path: Path) -> None:
    with Program(tmp_path, cluster, server_lines="drain_timeout = 300") as server:
        assert server.end() == 0
