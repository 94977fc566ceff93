"""Who gets no terminal, and in which words."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jumpserver
from demo.cluster import StandIn
from tests.support import (
    UPGRADE,
    RunningServer,
    another_server,
    connected,
    end_shell,
    frame,
    last_row,
    newest,
    read_until,
    recorded_output,
    refuse,
    request_head,
    running,
    wait_until,
)

LONG_DENIAL = "ü" * 100
OWN_HOOKS = f"""
import hooks

class OwnHooks(hooks.Hooks):
    def validate_ssh_token(self, token):
        if token == "denied":
            raise hooks.Denied("not on a Friday")
        if token == "denied-at-length":
            raise hooks.Denied("{LONG_DENIAL}")
        if token.startswith("broken"):
            raise RuntimeError("cannot look up " + token)
        return super().validate_ssh_token(token)

    def on_login(self, info):
        super().on_login(info)
        if info.auth.user == "denied":
            raise hooks.Denied("too many terminals are open")
        if info.auth.user == "broken":
            raise RuntimeError("no such user")
"""


@pytest.fixture
def server(cluster: StandIn, tmp_path: Path) -> Iterator[RunningServer]:
    """Takes the place of the one in support: with hooks that deny and break."""
    with running(tmp_path, cluster, hooks_file=OWN_HOOKS) as server:
        yield server


def test_a_denial_is_shown_in_the_hooks_words(server: RunningServer) -> None:
    assert refuse(server, "denied") == (4403, 403, "not on a Friday")


def test_no_token_and_a_foreign_and_an_expired_one_are_denied(server: RunningServer) -> None:
    foreign = server.token()[:-4] + "AAAA"
    cases = {"": "there is no ssh_token", foreign: "not valid", server.token(exp=time.time() - 1): "expired"}
    for token, words in cases.items():
        code, status, reason = refuse(server, token)
        assert (code, status) == (4403, 403) and words in reason


def test_a_token_for_a_recording_opens_no_terminal(server: RunningServer) -> None:
    assert refuse(server, server.link_token())[:2] == (4403, 403)


def test_a_token_with_a_jti_opens_one_terminal(server: RunningServer) -> None:
    token = server.token(jti="only-once")
    with server.connect_with(token) as terminal:
        end_shell(terminal)
    server.cluster.execs.clear()
    code, status, reason = refuse(server, token)
    assert (code, status) == (4403, 403) and "already used" in reason


def test_a_hook_that_breaks_refuses_politely_and_is_logged_without_the_token(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "jumpserver"):
        assert refuse(server, "broken-S3CRET") == (4500, 503, jumpserver.HOOK_FAILED.reason)
    assert "Traceback" in caplog.text and "RuntimeError" in caplog.text
    assert "S3CRET" not in caplog.text


@pytest.mark.parametrize(
    ("user", "code", "reason"),
    [("denied", 4403, "too many terminals are open"), ("broken", 4500, jumpserver.HOOK_FAILED.reason)],
)
def test_a_login_that_fails_ends_the_session_before_the_pod_hears_of_it(
    server: RunningServer, user: str, code: int, reason: str
) -> None:
    with server.connect(sub=user) as terminal:
        assert terminal.wait_end() == {"type": "end", "reason": reason, "exit_code": None, "reusable": True}
    assert (terminal.close_code, terminal.events[0]["type"]) == (code, "end")
    assert server.cluster.execs == []
    wait_until(lambda: last_row(server)["logout_at"])
    assert last_row(server)["reason"] == reason
    assert recorded_output(newest(server)) == terminal.output == f"\r\n[jumpserver] {reason}\r\n".encode()


def test_a_full_server_refuses_and_has_room_again_afterwards(tmp_path: Path, cluster: StandIn) -> None:
    with another_server(tmp_path, cluster, server_lines="max_sessions = 1") as server:
        with server.connect() as terminal:
            terminal.wait_for_event("session")
            cluster.execs.clear()
            assert refuse(server, server.token()) == (4503, 503, jumpserver.SERVER_FULL.reason)
            end_shell(terminal)
        wait_until(lambda: not len(server.server.sessions))
        with server.connect() as terminal:
            terminal.wait_for_event("session")


@pytest.mark.parametrize(
    ("pod", "claims", "words"),
    [
        ("multi", {"container_name": "c3"}, "the pod has no such container"),
        ("distroless", {}, "the container's image has no shell"),
        ("missing", {}, "the cluster does not know it"),
        ("finished", {}, "the container is not running"),
        ("../secrets", {}, "not a valid pod name"),
        ("demo", {"namespace": "de fault"}, "not a valid namespace name"),
    ],
)
def test_what_the_cluster_refuses_is_said_in_a_sentence(
    server: RunningServer, pod: str, claims: dict[str, Any], words: str
) -> None:
    with server.connect(pod, **claims) as terminal, server.connect(pod, v1=False, **claims) as legacy:
        reason = terminal.wait_end()["reason"]
        legacy.wait_end()
    assert words in reason
    assert (terminal.close_code, legacy.close_code, legacy.events) == (4502, 4502, [])
    assert terminal.output == legacy.output == f"\r\n[jumpserver] {reason}\r\n".encode()


def test_a_lost_cluster_ends_the_session_with_its_sentence(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.wait_for_event("session")
        server.cluster.drop_connections()
        end = terminal.wait_end()
    assert (terminal.close_code, end["reason"]) == (4502, "the connection to the cluster was lost")
    assert recorded_output(newest(server)) == terminal.output


def test_a_close_reason_is_cut_between_characters_and_the_event_has_it_whole(server: RunningServer) -> None:
    code, _, reason = refuse(server, "denied-at-length")
    assert (code, reason) == (4403, LONG_DENIAL)
    with server.connect_with("denied-at-length") as terminal:
        terminal.wait_end()
    assert terminal.close_reason == "ü" * 61


def test_a_refused_browser_that_keeps_sending_holds_no_thread(server: RunningServer) -> None:
    keys = frame(json.dumps({"type": "input", "input": "x" * 700_000}).encode())
    head = request_head("/ssh?ssh_token=denied", *UPGRADE, "Sec-WebSocket-Protocol: jumpserver.v1")
    with connected(server.port) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(head + keys * 3)
        read_until(sock)


def test_a_thread_that_cannot_start_refuses_the_session_in_words(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith("-output"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with server.connect() as terminal:
        terminal.wait_end()
    assert (terminal.close_code, terminal.close_reason) == (jumpserver.INTERNAL, jumpserver.SERVER_FAULT.reason)
    assert not server.cluster.shells() and len(server.server.sessions) == 0
    assert "can't start new thread" in caplog.text
