"""The same shell after a drop: what a page gets when it comes back, who may, and for how long."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

import jumpserver
from bench.soak import recorded_output
from demo.cluster import StandIn
from tests.support import (
    RunningServer,
    Terminal,
    drop,
    end_shell,
    last_row,
    newest,
    recorded_events,
    wait_until,
    wait_until_still,
)

KIB, MIB = 1 << 10, 1 << 20
ECHO = ["sh", "-c", "stty raw -echo; echo ready; exec cat"]


@pytest.fixture
def server(tmp_path: Path, cluster: StandIn) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path, cluster, resume_grace=60)
    yield running
    running.stop()


def is_detached(server: RunningServer) -> bool:
    return all(session._browser is None for session in server.server.sessions.all())


def dropped(server: RunningServer, terminal: Terminal) -> Terminal:
    terminal.wait_for_event("session")
    terminal.drop()
    wait_until(lambda: is_detached(server), "a detached session")
    return terminal


def test_random_cuts_lose_no_byte_and_repeat_none(server: RunningServer) -> None:
    rng = random.Random(9)
    script = "stty raw -echo; echo ready; read go; seq 400000; printf '\\377\\376end'; cat"
    terminal = server.connect(command=["sh", "-c", script])
    terminal.wait_for("ready\n")
    terminal.type("go\n")
    seen = b""
    for _ in range(25):
        wanted = len(seen) + rng.choice((0, 1, 100, 5_000, 100_000, 300_000))
        while len(seen) + len(terminal.output) < wanted and not (seen + terminal.output).endswith(b"end"):
            assert terminal.close_code is None, terminal.close_reason
            terminal.step()
        terminal.drop()
        seen += terminal.output
        terminal = server.resume(terminal)
        terminal.wait_for_event("session")
    while not (seen + terminal.output).endswith(b"\xff\xfeend"):
        assert terminal.close_code is None, terminal.close_reason
        terminal.step()
    seen += terminal.output
    terminal.drop()
    wait_until(lambda: is_detached(server))
    assert seen == b"ready\n" + b"".join(b"%d\n" % number for number in range(1, 400_001)) + b"\xff\xfeend"
    assert recorded_output(newest(server)) == seen
    wait_until(lambda: recorded_events(newest(server), "m").count("resumed from 127.0.0.1") == 25)


def test_a_flood_goes_on_for_16_mib_and_all_of_it_is_there_for_who_comes_back(server: RunningServer) -> None:
    lost = dropped(server, server.connect(command=["sh", "-c", "stty raw; seq 3500000; exec cat"]))
    (session,) = server.server.sessions.all()
    wait_until_still(lambda: session._bytes_out)
    assert jumpserver.AHEAD_BYTES <= session._bytes_out < jumpserver.AHEAD_BYTES + MIB
    with server.resume(lost) as terminal:
        terminal.wait_for(b"3500000\n")
        assert lost.output + terminal.output == b"".join(b"%d\n" % number for number in range(1, 3_500_001))


def test_who_comes_back_for_output_whose_recording_has_vanished_is_told_the_end(server: RunningServer) -> None:
    lost = dropped(server, server.connect(command=["sh", "-c", "stty raw; seq 200000; exec cat"]))
    (session,) = server.server.sessions.all()
    wait_until(lambda: session._bytes_out > MIB, "a flood that is read ahead")
    newest(server).unlink()
    back = server.resume(lost, drawn=0)
    reason = back.wait_end()["reason"]
    assert back.close_code == 4500
    assert back.output.endswith(f"\r\n[jumpserver] {reason}\r\n".encode())


def test_what_was_typed_before_the_drop_runs_on_and_the_shell_is_the_same(server: RunningServer) -> None:
    terminal = server.connect()
    terminal.type("mark=$$; echo before-$mark\n")
    pid = None
    while pid is None:
        terminal.step()
        pid = re.search(rb"before-(\d+)\r", terminal.output)
    with server.resume(dropped(server, terminal), cols=77, rows=22) as again:
        assert again.wait_for_event("session")["position"] == terminal.drawn
        again.type("echo after-$mark-$(stty size)\n")
        again.wait_for(b"after-" + pid[1] + b"-22 77")
        assert end_shell(again)["exit_code"] == 0
    server.wait_settled()
    assert last_row(server)["reason"] == "the shell has ended"
    assert len(server.rows()) == 1


def test_each_use_brings_a_new_secret_and_the_old_one_counts_until_that_has_arrived(server: RunningServer) -> None:
    first = dropped(server, server.connect())
    deaf = server.resume(first)
    deaf.acknowledges = False
    second = dropped(server, deaf)
    assert second.wait_for_event("session")["resume"]["secret"] != first.wait_for_event("session")["resume"]["secret"]
    with server.resume(first) as again:  # the new secret may have been lost on the way
        again.wait_for_event("session")
        (session,) = server.server.sessions.all()
        wait_until(lambda: jumpserver._digest(first.events[0]["resume"]["secret"]) not in session._secrets)
        with server.resume(first) as late:
            assert late.wait_end()["reason"] == jumpserver.TAKEN_OVER.reason
            assert late.close_code == jumpserver.TAKEN
        end_shell(again)


def test_another_page_takes_over_and_the_first_is_told_and_can_go_on(server: RunningServer) -> None:
    with server.connect() as first:
        first.wait_for_event("session")
        with server.resume(first) as second:
            secret = first.wait_for_event("taken")["secret"]
            first.wait_end()
            assert first.close_code == jumpserver.TAKEN
            second.type("echo sec''ond\n")
            second.wait_for("second")
            with server.resume(first, secret=secret, drawn=second.drawn) as back:
                second.wait_end()
                assert second.close_code == jumpserver.TAKEN
                back.type("echo ba''ck\n")
                back.wait_for("back")
                end_shell(back)


def test_keys_of_a_page_that_was_taken_over_do_not_arrive(server: RunningServer) -> None:
    with server.connect(command=ECHO) as first:
        first.wait_for("ready\n")
        with server.resume(first) as second:
            second.wait_for_event("session")
            first.type("lost")
            second.type("kept")
            assert second.wait_for("kept") == b"kept"


def test_nobody_resumes_after_the_end_nor_without_the_secret(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.wait_for_event("session")
        for message in ({"secret": "guess"}, {"secret": ""}):
            with server.resume(terminal, **message) as other:
                other.wait_end()
                assert other.close_code == jumpserver.TAKEN
        odd: list[dict[str, Any]] = [{"type": "input", "input": "x"}, {"drawn": "x"}, {"secret": 5}, {"drawn": -1.5}]
        for words in odd:
            with server.resume(terminal, **words) as other:
                other.wait_end()
                assert other.close_code == jumpserver.BAD_REQUEST
        terminal.type("echo st''ill\n")
        terminal.wait_for("still")
        end_shell(terminal)
    server.wait_settled()
    url = f"ws://127.0.0.1:{server.port}/{terminal.events[0]['resume']['url']}"
    for address in (url, f"{url}x"):
        with Terminal(websocket.create_connection(address, 10, subprotocols=["jumpserver.v1"])) as late:
            assert late.wait_end()["reason"] == jumpserver.SESSION_OVER.reason
            assert late.close_code == jumpserver.GONE


def test_positions_beyond_what_there_is_are_clamped(server: RunningServer) -> None:
    terminal = server.connect(command=ECHO)
    terminal.wait_for("ready\n")
    for drawn, position in ((10**30, 6), (-5, 0)):
        lost = dropped(server, terminal)
        terminal = server.resume(lost, drawn=drawn)
        assert terminal.wait_for_event("session")["position"] == position
    assert terminal.wait_for("ready\n") == b"ready\n"
    terminal.drop()


@pytest.mark.parametrize("code", [1000, 1001, 4001])
def test_how_long_the_shell_waits_depends_on_how_the_page_left(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(jumpserver, "RELOAD_SECONDS", 0.3)
    terminal = server.connect()
    terminal.wait_for_event("session")
    terminal.sock.send_close(code)
    if code == 4001:
        wait_until(lambda: is_detached(server))
        with server.resume(terminal) as again:
            end_shell(again)
    else:
        server.wait_settled()
        expected = jumpserver.BROWSER_CLOSED if code == 1000 else jumpserver.BROWSER_LEFT
        assert last_row(server)["reason"] == expected.reason
        assert server.cluster.shells() == []
    terminal.drop()


def test_after_the_grace_the_shell_is_hung_up(tmp_path: Path, cluster: StandIn) -> None:
    server = RunningServer(tmp_path, cluster, resume_grace=1)
    try:
        terminal = dropped(server, server.connect())
        (pid,) = cluster.shells()
        cluster.wait_until(lambda: pid not in cluster.shells())
        server.wait_settled()
        row = last_row(server)
        assert (row["reason"], row["hung_up"]) == (jumpserver.BROWSER_LEFT.reason, 1)
        assert recorded_events(newest(server), "m") == ["the browser closed the connection; the shell waits for it"]
        with server.resume(terminal) as late:
            late.wait_end()
            assert late.close_code == jumpserver.GONE
    finally:
        server.stop()


def test_a_server_that_stops_does_not_wait_for_browsers_that_are_away(server: RunningServer) -> None:
    dropped(server, server.connect())
    server.stop(5)
    assert last_row(server)["reason"] == jumpserver.SHUTTING_DOWN.reason


def test_the_secret_is_nowhere_but_on_the_wire(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    terminal = dropped(server, server.connect())
    with server.resume(terminal) as again:
        found = {event["resume"]["secret"] for event in terminal.events + again.events if event.get("resume")}
        found.add(again.wait_for_event("session")["resume"]["secret"])
        end_shell(again)
    server.wait_settled()
    written = caplog.text + "".join(
        path.read_bytes().decode("latin-1") for path in server.folder.rglob("*.*") if path.is_file()
    )
    assert len(found) == 2 and not any(secret in written for secret in found)


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than what the connections hold, however fast this machine is."""
    monkeypatch.setattr(jumpserver, "WINDOW_MAXIMUM_BYTES", jumpserver.WINDOW_MINIMUM_BYTES)


@pytest.mark.usefixtures("small_window")
def test_an_interrupted_flood_is_recorded_whole_and_its_end_is_shown(server: RunningServer) -> None:
    script = "trap 'echo; echo caught; exec cat' INT; yes 'one line of a flood that nobody reads'"
    with server.connect(command=["sh", "-c", script]) as terminal:
        terminal.wait_for(b"flood")
        terminal.acknowledges = False
        (session,) = server.server.sessions.all()
        wait_until(lambda: session._is_held_up)
        wait_until_still(lambda: server.cluster.execs[-1].bytes_out)  # the connections between are full
        terminal.type("\x03")
        terminal.acknowledges = True
        skipped = terminal.wait_for_event("skipped")["bytes"]
        terminal.wait_for("caught")
        assert skipped > jumpserver.WINDOW_MINIMUM_BYTES
        terminal.drop()
        wait_until(lambda: is_detached(server))
        shown, everything = terminal.output, recorded_output(newest(server))
        assert len(shown) + skipped == len(everything) == terminal.drawn
        start = session._skipped[0]
        assert shown == everything[:start] + everything[start + skipped :]
        assert everything[start + skipped :].startswith(b"one line of a flood")
        assert f"{skipped} bytes not shown to the user" in recorded_events(newest(server), "m")


@pytest.mark.usefixtures("small_window")
def test_a_full_screen_program_is_never_caught_up_with(server: RunningServer) -> None:
    script = r"printf '\033[?25l\033[?1049;2004h'; trap 'echo caught; exec cat' INT; yes"
    with server.connect(command=["sh", "-c", script]) as terminal:
        terminal.wait_for(b"y\r\ny")
        terminal.acknowledges = False
        (session,) = server.server.sessions.all()
        wait_until(lambda: session._is_held_up)
        terminal.type("\x03")
        terminal.acknowledges = True
        terminal.acknowledge()
        terminal.wait_for("caught")
        assert not any(event["type"] == "skipped" for event in terminal.events)


def test_a_ping_is_answered(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.wait_for_event("session")
        terminal.send(type="ping")
        terminal.wait_for_event("pong")
        drop(terminal.sock)
