"""Whether a token opens another terminal, as the messages of jumpserver.v1 say it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from demo.cluster import StandIn
from tests.support import RunningServer, nothing_left

HOOKS = """
import hooks


class TicketHooks(hooks.Hooks):
    def validate_ssh_token(self, token):
        if token == "broken":
            raise RuntimeError("out of order")
        return hooks.TokenAuthData("default", "demo", cluster_cfg=self.kubeconfig(), reusable=token == "season")

    def kubeconfig(self):
        return next(iter(self.settings.clusters.values())).read_text()
"""


@pytest.mark.parametrize(("claims", "reusable"), [({}, True), ({"jti": "once"}, False)])
def test_session_and_end_say_whether_the_token_opens_another(
    server: RunningServer, claims: dict[str, Any], reusable: bool
) -> None:
    with server.connect(**claims) as terminal:
        assert terminal.wait_for_event("session")["reusable"] is reusable
        terminal.type("exit\n")
        assert terminal.wait_end()["reusable"] is reusable


def test_a_token_that_has_expired_meanwhile_opens_no_other(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.connect() as terminal:
        assert terminal.wait_for_event("session")["reusable"] is True
        an_hour_later = time.time() + 3600
        monkeypatch.setattr(time, "time", lambda: an_hour_later)
        terminal.type("exit\n")
        assert terminal.wait_end()["reusable"] is False


def test_a_pod_that_cannot_be_opened_has_spent_a_one_use_token(server: RunningServer) -> None:
    with server.connect("no-such-pod", jti="once") as terminal:
        assert terminal.wait_end()["reusable"] is False


def test_a_denied_token_opens_no_other(server: RunningServer) -> None:
    with server.connect_with("not-a-token") as terminal:
        assert terminal.wait_end()["reusable"] is False


def test_a_token_that_a_full_server_never_looked_at_is_as_good_as_before(tmp_path: Path, cluster: StandIn) -> None:
    with nothing_left():
        server = RunningServer(tmp_path, cluster, server_lines="max_sessions = 1")
        try:
            with server.connect() as first:
                first.wait_for_event("session")
                token = server.token(jti="once")
                with server.connect_with(token) as second:
                    assert second.wait_end()["reusable"] is True
                first.type("exit\n")
                first.wait_end()
            server.server.sessions.wait_empty(10)
            with server.connect_with(token) as third:
                assert third.wait_for_event("session")["reusable"] is False
        finally:
            server.stop()


@pytest.mark.parametrize(("token", "reusable"), [("season", True), ("single", False), ("broken", True)])
def test_a_hooks_file_may_say_it_and_one_that_fails_has_spent_nothing(
    tmp_path: Path, cluster: StandIn, token: str, reusable: bool
) -> None:
    with nothing_left():
        server = RunningServer(tmp_path, cluster, hooks_file=HOOKS)
        try:
            with server.connect_with(token) as terminal:
                terminal.type("exit\n")
                assert terminal.wait_end()["reusable"] is reusable
        finally:
            server.stop()
