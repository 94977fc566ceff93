"""Limits of time, terminals and logins: told before, ended or refused in words, lowered by a token, never raised."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import websocket

import jumpserver
from demo.cluster import StandIn
from hooks import HookError, auth_data
from jumpserver import IDLE, LASTED_TOO_LONG, POD_FULL, TOO_MANY_LOGINS, USER_FULL, LoginRate, Session
from tests.support import Program, RunningServer, Terminal, another_server, wait_until


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests say what time it is."""
    monkeypatch.setattr(jumpserver.JumpServer, "_tick_sessions", lambda self: None)


def the_session(server: RunningServer) -> Session:
    (session,) = server.server.sessions.all()
    return session


def wait_for_notice(terminal: Terminal, number: int) -> str:
    while len(notices(terminal)) < number:
        terminal.step()
    return notices(terminal)[number - 1]


def notices(terminal: Terminal) -> list[str]:
    return [event["text"] for event in terminal.events if event["type"] == "notice"]


def limits(**values: int) -> str:
    return "[Limits]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())


def test_a_session_is_warned_a_minute_before_its_longest_time_and_then_ends(cluster: StandIn, tmp_path: Path) -> None:
    with another_server(tmp_path, cluster, more=limits(max_duration=600)) as server:
        before = time.monotonic()
        with server.connect() as terminal:
            terminal.wait_for_event("session")
            session, after = the_session(server), time.monotonic()
            session.tick(before + 539)
            session.tick(after + 541)
            session.tick(after + 542)
            assert wait_for_notice(terminal, 1).startswith(f"{LASTED_TOO_LONG.reason}: this terminal ends in ")
            session.tick(before + 599)
            session.tick(after + 600)
            end = terminal.wait_end()
        assert (end["reason"], terminal.close_code) == (LASTED_TOO_LONG.reason, 1000)
        assert len(notices(terminal)) == 1
        server.wait_settled()
        assert server.rows()[0]["reason"] == LASTED_TOO_LONG.reason
        assert 'jumpserver_sessions_total{end="max_duration"} 1' in server.server.numbers()


def test_a_key_begins_the_idle_time_anew_and_a_size_does_not(cluster: StandIn, tmp_path: Path) -> None:
    with another_server(tmp_path, cluster, more=limits(idle_timeout=600)) as server, server.connect() as terminal:
        terminal.wait_for_event("session")
        session, opened = the_session(server), time.monotonic()
        session.tick(opened + 550)
        assert wait_for_notice(terminal, 1).startswith("nothing was typed for a while: this terminal ends in ")
        pressed = time.monotonic()
        terminal.type("echo a$((1+1))b\n")
        terminal.wait_for("a2b")
        typed = time.monotonic()
        session.tick(pressed + 539)
        terminal.resize(90, 20)
        terminal.type("")
        session.tick(typed + 550)
        wait_for_notice(terminal, 2)
        session.tick(pressed + 599)
        session.tick(typed + 600)
        assert terminal.wait_end()["reason"] == IDLE.reason
        assert len(notices(terminal)) == 2


def test_a_short_limit_is_warned_of_at_half_of_it(cluster: StandIn, tmp_path: Path) -> None:
    with another_server(tmp_path, cluster, more=limits(idle_timeout=20)) as server, server.connect() as terminal:
        terminal.wait_for_event("session")
        session = the_session(server)
        session.tick(session._typed_at + 9)
        session.tick(session._typed_at + 11)
        assert wait_for_notice(terminal, 1).endswith("ends in 9 seconds")


@pytest.mark.parametrize(
    ("configured", "token", "counts"), [(0, 0, math.inf), (600, 0, 600), (0, 60, 60), (600, 60, 60), (60, 600, 60)]
)
@pytest.mark.parametrize("name", ["max_duration", "idle_timeout"])
def test_a_token_lowers_a_limit_and_never_raises_it(
    cluster: StandIn, tmp_path: Path, name: str, configured: int, token: int, counts: float
) -> None:
    claims: dict[str, Any] = {name: token}
    with another_server(tmp_path, cluster, more=limits(**{name: configured})) as server:
        with server.connect("demo", **claims) as terminal:
            terminal.wait_for_event("session")
            session = the_session(server)
            session.tick(session._began + min(counts, 1e9) - 1)
            terminal.type("echo a$((1+1))b\n")
            terminal.wait_for("a2b")
            if counts < math.inf:
                session.tick(session._typed_at + counts)
                assert (
                    terminal.wait_end()["reason"]
                    == {"max_duration": LASTED_TOO_LONG, "idle_timeout": IDLE}[name].reason
                )


@pytest.mark.parametrize("name", ["max_duration", "idle_timeout"])
@pytest.mark.parametrize("value", ["60", -1, True, 1.5, math.nan, math.inf, 10**9 + 1, 10**400, [], {}])
def test_odd_limits_of_a_token_are_the_platforms_mistake(name: str, value: Any) -> None:
    with pytest.raises(HookError, match=f"{name} of a token must be a whole number"):
        auth_data({"pod_name": "demo", name: value}, {})


def test_limits_of_a_token_are_fields_and_not_extra() -> None:
    auth = auth_data({"pod_name": "demo", "max_duration": 60, "idle_timeout": None}, {})
    assert (auth.max_duration, auth.idle_timeout, auth.extra) == (60, 0, {})


@pytest.mark.parametrize("value", [-1, 10**9 + 1, 10**400])
def test_a_limit_out_of_range_is_refused_by_its_key(tmp_path: Path, value: int) -> None:
    (tmp_path / "a.toml").write_text(limits(idle_timeout=value))
    with pytest.raises(jumpserver.ConfigError, match=r"idle_timeout in \[Limits\] must be 0 to"):
        jumpserver.load_config(tmp_path / "a.toml")


def refused(server: RunningServer, **claims: Any) -> str:
    with server.connect(**claims) as terminal:
        end = terminal.wait_end()
        assert terminal.close_code == 4503
        assert not end["reusable"]
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        server.connect(v1=False, **claims)
    assert caught.value.status_code == 503
    assert int((caught.value.resp_headers or {})["retry-after"]) > 0
    return str(end["reason"])


def test_a_user_has_so_many_terminals_and_another_user_as_many(cluster: StandIn, tmp_path: Path) -> None:
    with another_server(tmp_path, cluster, more=limits(max_sessions_per_user=1)) as server:
        with server.connect(sub="alice") as first, server.connect(sub="bob") as other:
            first.wait_for_event("session")
            other.wait_for_event("session")
            assert refused(server, sub="alice") == USER_FULL.reason
            with server.connect(sub="") as one, server.connect(sub="") as two:
                one.wait_for_event("session")
                two.wait_for_event("session")
        wait_until(lambda: not len(server.server.sessions), "the places")
        with server.connect(sub="alice") as again:
            again.wait_for_event("session")


def test_a_pod_has_so_many_terminals_whoever_opens_them(cluster: StandIn, tmp_path: Path) -> None:
    with another_server(tmp_path, cluster, more=limits(max_sessions_per_pod=1)) as server:
        with server.connect(sub="alice") as terminal:
            terminal.wait_for_event("session")
            assert refused(server, sub="bob") == POD_FULL.reason
            with server.connect("another", sub="bob") as other:
                assert other.wait_end()["reason"] != POD_FULL.reason


def test_logins_of_one_address_are_refused_before_the_token_is_spent(cluster: StandIn, tmp_path: Path) -> None:
    proxy = 'trusted_proxies = ["127.0.0.1"]'
    with another_server(tmp_path, cluster, server_lines=proxy, more=limits(logins_per_second=1)) as server:
        from_there: dict[str, Any] = {"header": ["X-Forwarded-For: 192.0.2.7"]}
        reasons = []
        for _ in range(8):
            with server.connect_with("bad", **from_there) as terminal:
                reasons.append(terminal.wait_end()["reason"])
        assert reasons.index(TOO_MANY_LOGINS.reason) >= 5
        token = server.token(jti="once")
        with server.connect_with(token, **from_there) as terminal:
            end = terminal.wait_end()
            assert (end["reason"], end["reusable"], terminal.close_code) == (TOO_MANY_LOGINS.reason, True, 4503)
        with server.connect_with(token, header=["X-Forwarded-For: 192.0.2.8"]) as terminal:
            terminal.wait_for_event("session")


def test_a_burst_is_five_seconds_worth_and_comes_back_with_time() -> None:
    rate = LoginRate()
    assert [rate.take("a", 2, 100.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert rate.take("b", 2, 100.0)
    assert [rate.take("a", 2, 100.75) for _ in range(3)] == [True, True, False]
    assert sum(rate.take("a", 2, 1000.0) for _ in range(20)) == 10


def test_only_so_many_addresses_are_remembered_and_the_longest_unused_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumpserver, "_LOGIN_CROWDS", 3)
    rate = LoginRate()
    for crowd in "abcad":
        rate.take(crowd, 1, 100.0)
    assert list(rate._full_at) == ["c", "a", "d"]


def test_the_servers_own_clock_ends_a_session(cluster: StandIn, tmp_path: Path) -> None:
    with Program(tmp_path, cluster, more=limits(max_duration=3)) as server, server.connect() as terminal:
        assert terminal.wait_end()["reason"] == LASTED_TOO_LONG.reason
        assert len(notices(terminal)) == 1
