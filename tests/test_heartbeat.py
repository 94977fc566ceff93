"""Heartbeats: the platform may end a session at any time, and cannot slow or break one by being slow or broken."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import jumpserver
from demo.cluster import StandIn
from jumpserver import Session
from tests.support import Installation, Program, RunningServer, Terminal, answer_of, end_shell, last_row, wait_until
from tests.test_hooks import Platform, Reply, reply, silence

GONE = "alice has left the company"
# A platform of its own inside of the server: blocks all calls until ``go`` is set, and keeps how many run.
BLOCKING = """
import threading
import hooks
class Own(hooks.Hooks):
    def open(self):
        super().open()
        self.go, self.lock, self.running, self.most, self.asked = threading.Event(), threading.Lock(), [], 0, set()
    def on_heartbeat(self, info):
        with self.lock:
            self.running.append(info.session_id)
            self.most = max(self.most, len(self.running))
            self.asked.add(info.session_id)
        self.go.wait(30)
        with self.lock:
            self.running.remove(info.session_id)
"""


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform() as running:
        yield running


@contextlib.contextmanager
def asking(folder: Path, cluster: StandIn, platform: Platform | None = None, **options: Any) -> Iterator[RunningServer]:
    """A server that asks the platform whenever the clock ticks, which is more often than a configuration may say."""
    url = f'heartbeat_url = "{platform.url}/beat"\nauthorization = "Bearer S"\n' if platform else ""
    server = RunningServer(folder, cluster, more=f"[Platform]\nheartbeat_interval = 1\n{url}", **options)
    config = server.server.config
    server.server.config = replace(config, Platform=replace(config.Platform, heartbeat_interval=0))
    try:
        yield server
    finally:
        server.stop()


def opened(server: Installation, **claims: Any) -> Terminal:
    terminal = server.connect(**claims)
    terminal.wait_for_event("session")
    return terminal


def echo(terminal: Terminal, number: int) -> None:
    terminal.type(f"echo it-$(({number} + 1))\n")
    terminal.wait_for(f"it-{number + 1}")


def beats(platform: Platform) -> list[dict[str, Any]]:
    return [body for _, _, body in platform.requests]


def wait_for_beats(platform: Platform, more: int) -> list[dict[str, Any]]:
    """What is sent from now on."""
    before = len(platform.requests)
    wait_until(lambda: len(platform.requests) >= before + more, "heartbeats")
    return beats(platform)[before:]


def the_session(server: RunningServer) -> Session:
    (session,) = server.server.sessions.all()
    return session


def test_the_platform_hears_of_an_open_session_again_and_again_with_its_bytes_so_far(
    cluster: StandIn, tmp_path: Path, platform: Platform
) -> None:
    with asking(tmp_path, cluster, platform) as server, opened(server) as terminal:
        wait_for_beats(platform, 1)
        echo(terminal, 41)
        last = wait_for_beats(platform, 2)[-1]
        assert end_shell(terminal)["exit_code"] == 0
        server.wait_settled()
    path, headers, first = platform.requests[0]
    row = last_row(server)
    assert (path, headers["Authorization"]) == ("/beat", "Bearer S")
    assert first["session_id"] == last["session_id"] == row["session_id"]
    assert (first["user"], first["pod_name"], first["logout_at"], first["sha256"]) == ("alice", "demo", None, "")
    assert first["bytes_in"] == 0 < last["bytes_in"] < row["bytes_in"]
    assert first["bytes_out"] < last["bytes_out"] < row["bytes_out"]
    assert 0 < first["size"] < last["size"] < row["size"]


def test_a_denial_ends_the_session_with_its_sentence(cluster: StandIn, tmp_path: Path, platform: Platform) -> None:
    with asking(tmp_path, cluster, platform) as server, opened(server) as terminal:
        platform.reply = reply(403, {"message": f"{GONE}\x1b[2J"})
        end = terminal.wait_end()
        assert end["reason"].startswith(GONE) and "\x1b" not in end["reason"]
        assert (terminal.close_code, end["exit_code"]) == (jumpserver.DENIED, None)
        assert f"[jumpserver] {GONE}".encode() in terminal.output
        server.wait_settled()
        assert last_row(server)["reason"] == end["reason"]
        cluster.wait_until(lambda: not cluster.shells())


def test_so_it_does_while_the_browser_is_away(cluster: StandIn, tmp_path: Path, platform: Platform) -> None:
    with asking(tmp_path, cluster, platform, resume_grace=60) as server:
        opened(server).drop()
        wait_until(lambda: the_session(server).is_detached)
        platform.reply = reply(404, {"message": GONE})
        server.wait_settled()
        assert last_row(server)["reason"] == GONE


@pytest.mark.parametrize(
    "failing",
    [reply(500), reply(302, Location="http://127.0.0.1:1/"), reply(200, b"<html>"), reply(403), reply(404, b"<html>")],
    ids=["500", "redirect", "no JSON", "403 without a sentence", "404 of a web server"],
)
def test_a_failing_platform_ends_nothing_and_is_logged_when_it_begins_and_when_it_is_over(
    cluster: StandIn, tmp_path: Path, platform: Platform, caplog: pytest.LogCaptureFixture, failing: Reply
) -> None:
    def logged(what: str) -> int:
        return sum(what in record.getMessage() for record in caplog.records)

    platform.reply = failing
    with asking(tmp_path, cluster, platform) as server, opened(server) as terminal, opened(server) as other:
        wait_for_beats(platform, 5)
        assert (logged("hook=on_heartbeat"), logged("works again")) == (1, 0)
        platform.reply = reply(204)
        wait_until(lambda: logged("works again"), "the good news")
        wait_for_beats(platform, 3)
        platform.reply = failing
        wait_until(lambda: logged("hook=on_heartbeat") == 2, "the bad news")
        assert logged("works again") == 1
        for session in (terminal, other):
            echo(session, 6)


def test_a_hook_that_breaks_ends_nothing_and_is_logged_once_with_its_traceback(
    cluster: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = "import hooks\nclass Own(hooks.Hooks):\n    asked = 0\n    def on_heartbeat(self, info):\n"
    own += "        self.asked += 1\n        raise KeyError('of ours')\n"
    with asking(tmp_path, cluster, hooks_file=own) as server, opened(server) as terminal:
        hook: Any = server.hooks
        wait_until(lambda: hook.asked >= 3)
        echo(terminal, 1)
    assert caplog.text.count("KeyError: 'of ours'") == 1


def test_a_platform_that_hangs_holds_up_no_session_and_few_threads(cluster: StandIn, tmp_path: Path) -> None:
    with asking(tmp_path, cluster, hooks_file=BLOCKING) as server, contextlib.ExitStack() as stack:
        hook: Any = server.hooks
        terminals = [stack.enter_context(opened(server)) for _ in range(jumpserver._BEATS_AT_ONCE + 2)]
        heartbeats = server.server._heartbeats
        wait_until(
            lambda: (len(hook.running), len(heartbeats._due(time.monotonic()))) == (jumpserver._BEATS_AT_ONCE, 2),
            "as many calls as there may be, and two sessions that have to wait",
        )
        heartbeats.tick()
        calls = [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
        assert len(calls) == len(hook.running) == jumpserver._BEATS_AT_ONCE
        for terminal in terminals:
            echo(terminal, 1)
        asked = next(terminal for terminal in terminals if terminal.wait_for_event("session")["id"] in hook.running)
        assert end_shell(asked)["exit_code"] == 0
        hook.go.set()
        wait_until(lambda: len(hook.asked) == len(terminals), "those that had to wait")
        assert hook.most == jumpserver._BEATS_AT_ONCE


@pytest.mark.parametrize(("limit", "most"), [(64, 10), (9, 9)])
def test_calls_that_hang_for_long_keep_no_other_session_from_its_turn(
    cluster: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limit: int,
    most: int,
) -> None:
    monkeypatch.setattr(jumpserver, "_LATE_SECONDS", 0.5)
    monkeypatch.setattr(jumpserver, "_BEATS_LIMIT", limit)
    with asking(tmp_path, cluster, hooks_file=BLOCKING) as server, contextlib.ExitStack() as stack:
        hook: Any = server.hooks
        terminals = [stack.enter_context(opened(server)) for _ in range(jumpserver._BEATS_AT_ONCE + 2)]
        wait_until(lambda: len(hook.running) == most, "calls beside those that hang")
        heartbeats = server.server._heartbeats
        wait_until(lambda: len(heartbeats._late) == most, "word of all of them")
        heartbeats.tick()
        words = 'hook=on_heartbeat error="it has not returned for 0.5 s"'
        wait_until(lambda: caplog.text.count(words) == most, "the log's lines")
        assert hook.most == most
        hook.go.set()
        wait_until(lambda: len(hook.asked) == len(terminals), "those that had to wait")
        wait_until(lambda: not heartbeats._late and heartbeats._threads <= jumpserver._BEATS_AT_ONCE)


def test_a_session_is_not_asked_about_twice_at_a_time(cluster: StandIn, tmp_path: Path) -> None:
    with asking(tmp_path, cluster, hooks_file=BLOCKING) as server, opened(server):
        hook: Any = server.hooks
        wait_until(lambda: hook.running, "the first call")
        with opened(server):
            wait_until(lambda: len(set(hook.running)) == 2, "the other session's, a second later or more")
            assert len(hook.running) == 2
        hook.go.set()


def test_the_end_of_the_server_does_not_wait_for_a_platform_that_hangs(cluster: StandIn, tmp_path: Path) -> None:
    with asking(tmp_path, cluster, hooks_file=BLOCKING) as server, opened(server) as terminal:
        hook: Any = server.hooks
        wait_until(lambda: hook.running, "a call")
        server.stop()
        assert terminal.wait_end()["reason"] == "the server is shutting down"
        assert hook.running
        hook.go.set()


def test_a_silent_platform_is_given_up_and_asked_again(
    cluster: StandIn, tmp_path: Path, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hooks.PLATFORM_TIMEOUT_SECONDS", 0.1)
    platform.reply = silence(platform)
    with asking(tmp_path, cluster, platform) as server, opened(server) as terminal:
        wait_for_beats(platform, 2)
        platform.reply = reply(403, {"message": GONE})
        assert terminal.wait_end()["reason"] == GONE


def test_nobody_is_asked_before_the_shell_is_open(cluster: StandIn, tmp_path: Path) -> None:
    own = "import threading\nimport hooks\nclass Own(hooks.Hooks):\n"
    own += "    called, go = threading.Event(), threading.Event()\n"
    own += "    def on_login(self, info):\n        self.called.set()\n        self.go.wait(20)\n"
    with asking(tmp_path, cluster, hooks_file=own) as server, server.connect() as terminal:
        hook: Any = server.hooks
        assert hook.called.wait(10)
        session = the_session(server)
        assert session.so_far() is None
        hook.go.set()
        terminal.wait_for_event("session")
        assert session.so_far() is not None
        end_shell(terminal)
        assert session.so_far() is None


def test_without_an_address_or_a_hook_there_is_nothing_to_do(server: RunningServer) -> None:
    heartbeats = server.server._heartbeats
    with opened(server), server.connect():
        heartbeats.tick()
        assert not heartbeats._due_at and not heartbeats._is_wanted()


def test_an_address_that_comes_with_a_reload_counts_at_once_for_open_sessions(
    cluster: StandIn, tmp_path: Path, platform: Platform
) -> None:
    with Program(tmp_path, cluster) as server, opened(server) as terminal:
        platform.reply = reply(401, {"message": GONE})
        more = f'[Platform]\nheartbeat_interval = 1\nheartbeat_url = "{platform.url}/"\n'
        server.config_file.write_text(server.config_file.read_text() + more)
        server.process.send_signal(signal.SIGHUP)
        assert terminal.wait_end()["reason"] == GONE


def test_calls_are_counted(cluster: StandIn, tmp_path: Path, platform: Platform) -> None:
    name = 'jumpserver_hook_seconds_count{hook="on_heartbeat"}'
    with asking(tmp_path, cluster, platform) as server:
        assert f"{name} 0.0\n" in answer_of(server, "metrics")[1]
        with opened(server):
            wait_for_beats(platform, 1)
            wait_until(lambda: f"{name} 0.0\n" not in answer_of(server, "metrics")[1])


def test_sessions_that_were_opened_together_are_spread_over_the_interval() -> None:
    phases = sorted(jumpserver._phase(str(uuid.uuid4())) for _ in range(500))
    assert phases[0] >= 0 and phases[-1] < 1
    assert max(after - before for before, after in zip(phases, phases[1:])) < 0.1


@pytest.mark.parametrize("value", [0, -1, 86401])
def test_an_interval_that_makes_no_sense_is_refused(tmp_path: Path, value: int) -> None:
    file = tmp_path / "jumpserver.toml"
    file.write_text(f"[Platform]\nheartbeat_interval = {value}\n")
    with pytest.raises(jumpserver.ConfigError, match=r"heartbeat_interval in \[Platform\] must be 1 to 86400 seconds"):
        jumpserver.load_config(file)


def test_hooks_see_the_address_and_the_interval(tmp_path: Path) -> None:
    file = tmp_path / "jumpserver.toml"
    file.write_text('[Platform]\nheartbeat_url = "http://127.0.0.1:1/beat"\nheartbeat_interval = 7\n')
    settings = jumpserver.load_config(file).hooks_settings()
    assert (settings.heartbeat_url, settings.heartbeat_interval) == ("http://127.0.0.1:1/beat", 7)
    assert "127.0.0.1" not in repr(settings)
