"""Every command a chapter: what shells report becomes markers in the recording and rows of the ledger."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Page, expect

import recorder
from demo.cluster import StandIn
from hooks import CommandQuery, Hooks, Ledger
from recorder import RecordedCommand, Recorder, RecordError, ShellMarks, recorded_commands
from tests.conftest import WAIT_MS
from tests.support import Installation, Program, RunningServer, Terminal, newest, nothing_left, wait_until
from tests.test_pages import SCREEN_TEXT, open_terminal, phase, wait_for_text


def begin(text: str) -> bytes:
    return f"\x1b]633;E;{text}\x07".encode()


def done(code: object) -> bytes:
    return f"\x1b]633;D;{code}\x07".encode()


# -- what is found in output -----------------------------------------------------------------------------------------

# Output, and what it says of commands: VS Code's, then those of fish and of shells with OSC 133 alone.
MARKS = {
    "a command": (b"a\x1b]633;E;ls -l\x07b", [("m", "ls -l")]),
    "its end": (b"\x1b]633;D;0\x07", [("d", "0")]),
    "an end without a code": (b"\x1b]633;D\x07", [("d", "")]),
    "with a string terminator": (b"\x1b]633;E;ls\x1b\\", [("m", "ls")]),
    "escaped": (rb"%b]633;E;echo \x3b \\x3b \x0a\x5c" % b"\x1b" + b"\x07", [("m", "echo ; \\x3b \n\\")]),
    "with a nonce": (b"\x1b]633;E;ls;4711\x07", [("m", "ls")]),
    "not UTF-8": (b"\x1b]633;E;\xb1\xe0\x07", [("m", "\ufffd\ufffd")]),
    "empty": (b"\x1b]633;E;\x07", [("m", "")]),
    "two": (b"\x1b]633;D;1\x07$ \x1b]633;E;ls\x07", [("d", "1"), ("m", "ls")]),
    "of fish": (b"\x1b]133;C;cmdline_url=echo%20%E4%BD%A0%3B\x07x\x1b]133;D;3\x07", [("m", "echo 你;"), ("d", "3")]),
    "without a command line": (b"\x1b]133;A\x07$ \x1b]133;B\x07\x1b]133;C\x07\x1b]133;D\x07", [("m", ""), ("d", "")]),
    "others": (b"\x1b]0;E;title\x07\x1b]633;P;Cwd=/\x07\x1b]633;C\x07\x1b]8;;http://a\x1b\\", []),
    "broken off": (b"\x1b]633;E;ls\x18\x07 \x1b]633;E;ls\x1a\x07 \x1b]633;E;l\x1b[0m\x07", []),
    "plain": (b"]633;E;ls\x07", []),
    "too long": (b"\x1b]633;E;" + b"x" * 20_000 + b"\x07", []),
    "without an end": (b"\x1b]633;E;ls", []),
}


@pytest.mark.parametrize("what", MARKS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100_000])
def test_the_marks_of_shells_are_found_however_they_are_cut(what: str, size: int) -> None:
    output, found = MARKS[what]
    marks = ShellMarks()
    pieces = [output[start : start + size] for start in range(0, len(output), size)]
    assert [mark for piece in pieces for mark in marks.find(piece)] == found


@given(st.lists(st.binary(max_size=6) | st.sampled_from([b"\x1b", b"\x1b]633;E;", b"\x07", b"\x1b\\", b"]133;D;1"])))
def test_nothing_that_is_printed_confuses_what_is_found_later(pieces: list[bytes]) -> None:
    marks = ShellMarks()
    for piece in pieces:
        marks.find(piece)
        assert len(marks._rest) <= 17_000
    marks.find(b"\x18")  # the end of whatever it may have begun
    assert marks.find(begin("ls")) == [("m", "ls")]


def test_a_mark_without_an_end_is_not_remembered_for_ever() -> None:
    marks = ShellMarks()
    marks.find(b"\x1b]633;E;")
    for _ in range(100):
        marks.find(b"x" * 1000)
        assert len(marks._rest) <= 17_000


# -- what becomes of it in a recording -------------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(tmp_path / "a.cast", 80, 24)
    yield made
    with contextlib.suppress(RecordError, OSError):
        made.close()


def events(path: Path, *codes: str) -> list[Any]:
    """Code and data of the events of a recording."""
    found = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [event[1:] for event in found if event[1] in codes]


def texts(commands: list[RecordedCommand]) -> list[tuple[str, int | None]]:
    return [(command.text, command.exit_code) for command in commands]


def test_a_command_is_a_marker_where_it_begins_and_a_d_where_it_ends(recording: Recorder) -> None:
    recording.output(b"$ ls\r\n" + begin("ls"))
    recording.output(b"a b\r\n" + done(0) + b"$ ")
    recording.close()
    assert [code for code, _ in events(recording.path, "o", "m", "d")] == ["o", "m", "o", "d"]
    assert events(recording.path, "m", "d") == [["m", "$ ls"], ["d", "0"]]


def test_all_output_is_recorded_and_shown_as_it_came(recording: Recorder) -> None:
    pieces = [b"a" + begin("ls")[:7], begin("ls")[7:] + b"b", done(1)]
    assert [recording.output(piece) for piece in pieces] == pieces
    recording.close()
    assert "".join(data for _, data in events(recording.path, "o")).encode() == b"".join(pieces)


def test_commands_are_handed_out_once_they_are_done(recording: Recorder) -> None:
    recording.output(begin("sleep 1"))
    assert recording.take_commands() == []
    recording.output(done(2) + done(3) + begin("a") + begin("b"))
    assert texts(recording.take_commands()) == [("sleep 1", 2), ("a", None)]
    assert recording.take_commands() == []
    recording.close()
    assert texts(recording.take_commands()) == [("b", None)]


def test_a_file_says_of_its_commands_what_was_handed_out(recording: Recorder) -> None:
    recording.output(begin("a") + done(0) + begin("b"))
    recording.marker("detached")
    recording.output(done("?") + begin("c") + done(-1) + begin('"quoted" \\x5c'))
    recording.close()
    commands = recording.take_commands()
    assert texts(commands) == [("a", 0), ("b", None), ("c", -1), ('"quoted" \\', None)]
    assert list(recorded_commands(recording.path)) == commands


def test_a_broken_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.cast").write_text('{"version": 2}\n[1.0, "m", "$ ls"\n')
    with pytest.raises(RecordError, match=r"cannot read .*a\.cast"):
        list(recorded_commands(tmp_path / "a.cast"))


@pytest.mark.parametrize(
    ("told", "label"),
    [
        ("a\\x0ab\tc", "a⏎b c"),
        ("\\x1b[2J\\x07", "\ufffd[2J\ufffd"),
        ("evil\u202etxt.exe", "evil\ufffdtxt.exe"),
        ("", "(not told by the shell)"),
        (" ", "(not told by the shell)"),
        ("长" * 3000, "长" * 1024),
    ],
    ids=ascii,
)
def test_a_label_is_one_harmless_line_of_limited_length(recording: Recorder, told: str, label: str) -> None:
    recording.output(begin(told))
    recording.close()
    assert events(recording.path, "m") == [["m", f"$ {label}"]]
    assert [command.text for command in recording.take_commands()] == [label]


def test_osc_133_does_not_hide_the_command_line_that_osc_633_told(recording: Recorder) -> None:
    recording.output(begin("ls") + b"\x1b]133;C\x07" + b"\x1b]133;D;5\x07" + done(5))
    recording.close()
    assert events(recording.path, "m", "d") == [["m", "$ ls"], ["d", "5"]]


def test_a_flood_of_marks_is_limited_to_some_a_second(recording: Recorder) -> None:
    recording.output(b"".join(begin(str(number)) + done(number) for number in range(1000)))
    recording.close()
    assert texts(recording.take_commands()) == [(str(number), number) for number in range(20)]
    assert len(events(recording.path, "m", "d")) == 40


def test_a_session_has_a_limited_number_of_commands(recording: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_COMMANDS_A_SECOND", 20_000)
    many = Recorder(recording.path.with_name("b.cast"), 80, 24)
    many.output(b"".join(begin(str(number)) for number in range(10_010)))
    many.close()
    assert len(many.take_commands()) == 10_000


def test_where_they_are_not_wanted_marks_are_output_like_any_other(tmp_path: Path) -> None:
    recording = Recorder(tmp_path / "a.cast", 80, 24, commands=False)
    recording.output(begin("ls") + done(0))
    recording.close()
    assert events(tmp_path / "a.cast", "m", "d") == []
    assert recording.take_commands() == []


@pytest.mark.skipif(importlib.util.find_spec("asciinema") is None, reason="asciinema's CLI is not installed")
def test_asciinema_prints_a_recording_with_commands(recording: Recorder) -> None:
    recording.output(b"before" + begin("ls"))
    recording.input(b"x")
    recording.output(done(0) + b"after")
    recording.close()
    command = [sys.executable, "-m", "asciinema", "cat", str(recording.path)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=20).stdout
    assert printed == b"before" + begin("ls") + done(0) + b"after"


# -- sessions, and the ledger ----------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[StandIn]:
    """Takes the place of the one in support: with a home that has a prompt to wait for."""
    with nothing_left(), StandIn() as running:
        (running.home() / ".bashrc").write_text("PS1='ready> '\nbind 'set enable-bracketed-paste off'\n")
        yield running


def run(terminal: Terminal, *lines: str) -> None:
    """Type lines, each at a prompt."""
    for line in lines:
        terminal.wait_for("ready> ")
        prompts = terminal.output.count(b"ready> ")
        terminal.type(f"{line}\n")
        while terminal.output.count(b"ready> ") == prompts and terminal.close_code is None:
            terminal.step()


def ledger_of(server: Installation) -> Ledger:
    ledger = Hooks(server.config.hooks_settings()).ledger
    ledger.open()
    return ledger


def known(server: Installation) -> list[tuple[str, int | None]]:
    """The commands in the ledger, the oldest first."""
    ledger = ledger_of(server)
    try:
        found = [command for command, _ in ledger.commands(CommandQuery(limit=1000))]
    finally:
        ledger.close()
    return [(command.text, command.exit_code) for command in reversed(found)]


def test_the_commands_of_a_session_are_in_its_recording_and_in_the_ledger(server: RunningServer) -> None:
    terminal = server.connect()
    run(terminal, "echo 'a;b'", "(exit 7)", "exit 3")
    terminal.wait_end()
    server.wait_settled()
    expected = [("echo 'a;b'", 0), ("(exit 7)", 7), ("exit 3", None)]
    assert texts(list(recorded_commands(newest(server)))) == expected
    assert known(server) == expected
    recorded = list(recorded_commands(newest(server)))
    found = server.hooks.ledger.commands(CommandQuery())
    assert [command.seconds for command, _ in reversed(found)] == [command.seconds for command in recorded]
    assert {info.session_id for _, info in found} == {server.rows()[0]["session_id"]}


def test_a_command_that_is_done_is_in_the_ledger_while_the_session_goes_on(server: RunningServer) -> None:
    with server.connect() as terminal:
        run(terminal, "true")
        wait_until(lambda: known(server) == [("true", 0)], "the command")


def test_commands_wait_for_a_ledger_that_is_locked(server: RunningServer) -> None:
    terminal = server.connect()
    run(terminal, "true")
    db = server.config.hooks_settings().db
    with contextlib.closing(sqlite3.connect(db, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        run(terminal, "false", "exit")
        terminal.wait_end()
        connection.execute("ROLLBACK")
    server.wait_settled()
    assert known(server) == [("true", 0), ("false", 1), ("exit", None)]


def test_a_clean_stop_loses_no_command(server: RunningServer) -> None:
    with server.connect() as terminal:
        run(terminal, "true")
        terminal.type("sleep 1000\n")
        terminal.wait_for(begin("sleep 1000"))
        server.stop()
    assert known(server) == [("true", 0), ("sleep 1000", None)]


def test_the_commands_of_a_server_that_was_killed_are_taken_from_the_recording(
    cluster: StandIn, tmp_path: Path
) -> None:
    with Program(tmp_path, cluster) as server, server.connect() as terminal:
        run(terminal, "true")
        wait_until(lambda: known(server) == [("true", 0)], "the command")
        terminal.type("false; sleep 1000\n")
        terminal.wait_for(begin("false\\x3b sleep 1000"))
        server.end(signal.SIGKILL)
        server.start()
        wait_until(lambda: len(known(server)) > 1, "the other command", 10)
        assert known(server) == [("true", 0), ("false; sleep 1000", None)]


def test_commands_can_be_turned_off_for_new_sessions(cluster: StandIn, tmp_path: Path) -> None:
    with Program(tmp_path, cluster) as server, server.connect() as before:
        run(before, "true")
        text = server.config_file.read_text().replace("[Record]", "[Record]\ncommands = false")
        server.config_file.write_text(text)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: " reload" in server.log(), "the reload")
        with server.connect() as after:
            run(after, "false")
            assert b"633;" not in after.output
        run(before, "true")
        wait_until(lambda: known(server) == [("true", 0), ("true", 0)], "the commands")


# -- the pages -------------------------------------------------------------------------------------------------------


def test_neither_terminal_nor_player_shows_anything_of_the_reports(server: RunningServer, page: Page) -> None:
    """Marks of OSC 633 and 133, with both ends."""
    open_terminal(page, server.terminal_url())
    wait_for_text(page, "ready> ")
    page.keyboard.type("printf '\\e]133;D;0\\a\\e]133;C;cmdline_url=ls\\e\\\\sh''own\\n'\n")
    wait_for_text(page, "\nshown\nready> ")
    screen = page.evaluate(f"() => ({SCREEN_TEXT})(200)")
    assert screen.startswith("ready> printf ") and "633" not in screen
    page.keyboard.type("exit\n")
    phase(page, "ended")
    page.goto(server.player_url(server.recordings()[-1]))
    page.get_by_label("Speed").select_option("8")
    shown = page.locator("#player .ap-term")
    expect(shown).to_contain_text("shown", timeout=WAIT_MS)
    expect(shown).not_to_contain_text("633")
    expect(page.locator("#ticks i").first).to_be_attached()
