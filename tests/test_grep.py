"""``jumpserver.py grep``: which recordings showed a text."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hooks
import recorder
from recorder import Found, Recorder, pack, recording_path
from tests.support import PROGRAM, run_program

MIB = 1 << 20


def recording(*events: str | tuple[str, str], ascii_only: bool = False) -> io.BytesIO:
    """Events a second apart, the first one at 0; a text stands for output. Of a writer that is not ours."""
    pairs = [("o", event) if isinstance(event, str) else event for event in events]
    lines: list[Any] = [{"version": 2, "width": 80, "height": 24, "title": "a secret title"}]
    lines += [[float(second), code, data] for second, (code, data) in enumerate(pairs)]
    return io.BytesIO("".join(f"{json.dumps(line, ensure_ascii=ascii_only)}\n" for line in lines).encode())


def found_in(file: io.BytesIO, text: str, ignore_case: bool = False) -> list[Found]:
    return list(recorder.search(file, recorder.Wanted(text, ignore_case=ignore_case), lambda _: None))


def lines_of(text: str, *events: str | tuple[str, str], **how: bool) -> list[str]:
    return [found.line for found in found_in(recording(*events), text, **how)]


# -- what is a match --------------------------------------------------------------------------------------------------


def test_a_line_is_found_with_the_second_at_which_the_match_begins() -> None:
    found = found_in(recording("first\r\nkubectl del", "ete pod", " cart\r\nlast\r\n"), "delete pod")
    assert found == [Found(0.0, "kubectl delete pod cart\r")]
    assert found_in(recording("first\r\nkubectl ", "delete", " cart\r\n"), "delete") == [
        Found(1.0, "kubectl delete cart\r")
    ]


@pytest.mark.parametrize(
    "events",
    [
        ("\x1b[1;31ms\x1b[0mec\x1b[Kr\x1b(Bet\x1b[m",),
        ("sec\x1b[3", "8;5;20", "8mret"),
        ("sec", ("r", "80x24"), ("m", "$ a\nsecond line"), ("b", "YQ=="), "ret"),
        ("sec\x1b]0;a title\x07ret", "sec\x1b]0;a title\x1b\\ret"),
        ('sec\x0f\x1b[62;1"pret',),
        ("s", "e", "c", "r", "e", "t"),
    ],
)
def test_what_is_not_shown_may_stand_between_two_letters(events: tuple[str | tuple[str, str], ...]) -> None:
    (line,) = lines_of("secret", *events)
    assert line.startswith("secret")


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("31", ("\x1b[31mred",)),  # in an escape sequence
        ("title", ("\x1b]0;title\x07x",)),
        ("ab", ("a\x1b]0;xb\x07c",)),  # half of it in a title
        ('a"b', ('a\x1b]0;x"b\x1b\\c',)),
        ("nano", ("x\nano",)),  # over the n of \n
        ("001", ("\x01",)),
        ("0.0", ("x",)),  # the time of an event
        ("label", ("x", ("m", "label"), ("i", "label"))),
        ("title", ("x",)),  # of the header
        ("ab", ("a\r\nb",)),
        ('"o"', ("x", "y")),
    ],
)
def test_what_was_not_shown_is_not_found(text: str, events: tuple[str | tuple[str, str], ...]) -> None:
    assert lines_of(text, *events) == []


@pytest.mark.parametrize(
    "text", ['"quoted"', "back\\slash", "\\nano", "u001b", "<a href='x'>&+/", "日本語", "😀x", "a\tb"]
)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_characters_are_found_however_json_spells_them(text: str, ascii_only: bool) -> None:
    file = recording(f"it says {text}.\r\n", ascii_only=ascii_only)
    assert [found.line for found in found_in(file, text)] == [f"it says {text}.\r"]
    upper = io.BytesIO(file.getvalue().replace(b"<", b"\\u003C").replace(b"&", b"\\u0026").replace(b"/", b"\\/"))
    assert len(found_in(upper, text)) == 1


def test_no_character_of_the_text_has_a_meaning_of_its_own() -> None:
    assert lines_of("a.*b", "axxb\r\na.*b\r\n") == ["a.*b\r"]


def test_upper_and_lower_case_are_told_apart_unless_they_are_to_be_ignored() -> None:
    events = ("Kubectl\x1b[1m DELETE ÄRGER\r\n",)
    assert lines_of("kubectl delete", *events) == []
    assert lines_of("kubectl delete ärger", *events, ignore_case=True) == ["Kubectl DELETE ÄRGER\r"]


def test_a_line_with_many_matches_is_found_once() -> None:
    assert lines_of("a", "aaa\x1b[1maaa", "aaa\r\nbbb\r\na\r\n") == ["aaaaaaaaa\r", "a\r"]


def test_lines_of_other_writers_are_understood() -> None:
    file = io.BytesIO(b'{"version":2}\r\n[0.5,"o","sec"]\r\n[1.5 , "o" , "ret\\r\\n"]\r\n[2,"o","secret"]')
    assert found_in(file, "secret") == [Found(0.5, "secret\r"), Found(2.0, "secret")]


@pytest.mark.parametrize(
    "torn", [b"", b"[1", b'[1.0, "o", "secr', b'[1.0, "o", "x\\', b"\xff\0secret", b'["o", "secret"]']
)
def test_a_torn_or_damaged_file_is_searched_as_far_as_it_goes(torn: bytes) -> None:
    whole = recording("the secret\r\n").getvalue()
    assert found_in(io.BytesIO(whole + torn), "secret") == [Found(0.0, "the secret\r")]


# -- large ones -------------------------------------------------------------------------------------------------------


class Generated(io.RawIOBase):
    """A file that is made while it is read, and how much of it was."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._rest = parts, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._parts, b"")
        data, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


@pytest.mark.parametrize("one_event", [True, False])
def test_a_line_of_100_mib_needs_no_memory_and_hides_nothing(one_event: bool) -> None:
    filler = b"x" * (64 << 10) + b"\\u001b[1m"
    between = b"" if one_event else b'"]\n[2.0, "o", "'

    def parts() -> Iterator[bytes]:
        yield b'{"version": 2}\n[1.0, "o", "'
        for number in range(1600):
            yield filler + between + (b"sec" + between + b"ret" if number in (0, 777, 1599) else b"")
        yield b'"]\n'

    tracemalloc.start()
    try:
        file = io.BufferedReader(Generated(parts()))
        found = list(recorder.search(file, recorder.Wanted("secret"), lambda _: None))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 3
    assert all(1000 < len(line.line) + 500 < 2000 and "secret" in line.line for line in found)
    assert [line.seconds for line in found] == ([1.0] * 3 if one_event else [2.0] * 3)
    assert peak < 32 * MIB


def test_a_match_is_found_wherever_the_file_is_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    data = recording(*["first line\r\nsec\x1b[31m", "ret \\n \\\\ä\r\n"] * 3).getvalue()
    expected = found_in(io.BytesIO(data), "secret")
    assert [found.line for found in expected] == ["secret \\n \\\\ä\r"] * 3
    for size in range(1, 60):
        monkeypatch.setattr(recorder, "_SEARCH_BYTES", size)
        monkeypatch.setattr(recorder, "_SEARCH_WINDOW_BYTES", 120)
        assert found_in(io.BytesIO(data), "secret") == expected, size


@pytest.mark.parametrize("text", ["secret", "e", "et", "ccs", "ret e", "é日s", "日é", '"s', "never", "s" * 50])
@pytest.mark.parametrize("ignore_case", [False, True])
def test_it_does_not_matter_where_in_the_text_looking_begins(
    monkeypatch: pytest.MonkeyPatch, text: str, ignore_case: bool
) -> None:
    chosen = random.Random(text)
    hidden = ["\x1b[1;31m", "\x1b]0;secret\x07", "\x1b]0;et e\x1b\\", "\x1b(B", "\x0f"]
    apart = "".join(f"{letter}{hidden[number % 5] * 3}" for number, letter in enumerate(text))
    parts = [*"secrt   é日", "SEC", *hidden, apart, *text, *["\r\n"] * 9, '"', "\\", "x" * 40]
    pieces = ["".join(chosen.choices(parts, k=chosen.randrange(12))) for _ in range(3000)]
    file = recording(*pieces)
    plainly = found_in(file, text, ignore_case)
    monkeypatch.setattr(recorder, "_SAMPLE_BYTES", 200)
    for size in (1 << 22, 30_000):
        monkeypatch.setattr(recorder, "_SEARCH_BYTES", size)
        file.seek(0)
        assert found_in(file, text, ignore_case) == plainly
    assert plainly or text in ("never", "s" * 50)


def test_looking_begins_where_it_costs_least(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recorder.Wanted("common: x")
    data = recording("common common  xx" * 10_000).getvalue()
    rare = wanted.rarest(data)
    assert rare.pattern.startswith(b"(?::)") and rare is not wanted.whole()
    assert rare is wanted.rarest(data)
    assert wanted.rarest(data[:100_000]) is wanted.whole()  # where counting would cost more than it saves
    spelled = recorder.Wanted("日日").rarest(recording("日本 " * 50_000).getvalue())
    assert rb"\\u65e5" not in spelled.pattern.partition(b"(?=")[0]


# -- the command ------------------------------------------------------------------------------------------------------


class Archive:
    """A record folder with a configuration and a ledger, and no server."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "jumpserver.toml"
        self.config.write_text("")
        self.root = folder / "records"
        self.root.mkdir()
        self.db = self.root / "sessions.db"

    def add(self, session_id: str, user: str, output: str, login_at: float = 1e9) -> Path:
        made = Recorder(recording_path(self.root, session_id), 80, 24)
        made.output(output.encode())
        made.close()
        ledger = hooks.Ledger(self.db)
        ledger.open()
        auth = hooks.TokenAuthData("shop", "cart", user=user)
        ledger.login(hooks.SessionInfo(session_id, str(made.path), auth, "192.0.2.1", login_at))
        ledger.close()
        return made.path

    def grep(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_program("grep", *arguments, "-jumpserver", self.config)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def told(done: subprocess.CompletedProcess[str]) -> set[tuple[str, str]]:
    """Session and line of each match."""
    return {(session, line) for session, _, line in (row.split(" ", 2) for row in done.stdout.splitlines())}


def test_every_recording_is_searched_the_packed_ones_too(archive: Archive) -> None:
    archive.add("a", "alice", "cat /etc/shadow\r\n")
    assert pack(archive.add("b", "bob", "less /etc/shadow\r\n"), lambda: False)
    archive.add("c", "carol", "nothing\r\n")
    done = archive.grep("/etc/shadow")
    assert (done.returncode, done.stderr) == (0, "")
    assert told(done) == {("a", "cat /etc/shadow"), ("b", "less /etc/shadow")}


def test_user_and_date_choose_recordings(archive: Archive) -> None:
    archive.add("old", "alice", "secret\r\n", login_at=1e9)
    archive.add("new", "alice", "secret\r\n", login_at=1.7e9)
    archive.add("hers", "bob", "secret\r\n", login_at=1.7e9)
    assert told(archive.grep("secret", "--user", "alice")) == {("old", "secret"), ("new", "secret")}
    assert told(archive.grep("secret", "--since", "2020-01-01")) == {("new", "secret"), ("hers", "secret")}
    assert told(archive.grep("--ignore-case", "SECRET", "--user", "bob")) == {("hers", "secret")}


def test_nothing_found_is_status_1(archive: Archive) -> None:
    archive.add("a", "alice", "x\r\n")
    done = archive.grep("secret")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_what_cannot_be_read_is_named_and_the_others_are_searched(archive: Archive) -> None:
    archive.add("good", "alice", "secret\r\n")
    torn = archive.root / "torn.cast.gz"
    torn.write_bytes(b"\x1f\x8b\x08\0 this is no gzip")
    done = archive.grep("secret")
    assert done.returncode == 2
    assert told(done) == {("good", "secret")}
    assert done.stderr.startswith(f"jumpserver: {torn}: ") and done.stderr.count("\n") == 1


def test_a_line_is_safe_for_a_terminal(archive: Archive) -> None:
    archive.add("a", "alice", "\x1b[31msecret\x1b[m\x1b]0;title\x07 10%\r20%\b \u202e\u0085x\r\n")
    assert told(archive.grep("secret")) == {("a", "secret 10%\\r20%\\x08 \\u202e\\x85x")}


@pytest.mark.parametrize("pattern", ["", "two\nlines"])
def test_a_pattern_is_one_line_of_text(archive: Archive, pattern: str) -> None:
    done = archive.grep(pattern)
    assert (done.returncode, done.stderr) == (2, "jumpserver: PATTERN must be one line of text\n")


def test_a_reader_that_has_enough_ends_it_without_a_word(archive: Archive) -> None:
    archive.add("a", "alice", "secret\r\n" * 20_000)
    command = [sys.executable, str(PROGRAM), "grep", "secret", "-jumpserver", str(archive.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as grep:
        assert grep.stdout is not None and grep.stderr is not None
        assert b"secret" in grep.stdout.readline()
        grep.stdout.close()
        assert grep.stderr.read() == b""


def test_on_a_terminal_a_bar_says_how_far_it_is_and_leaves_no_trace(archive: Archive) -> None:
    path = archive.add("a", "alice", "secre cret " * 100)  # which is slow to search
    event = path.read_bytes().splitlines(keepends=True)[1]
    with path.open("ab") as file:
        for _ in range(100):
            file.write(event * 1000)
    master, slave = pty.openpty()
    command = [sys.executable, str(PROGRAM), "grep", "secret", "-jumpserver", str(archive.config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave) as grep, open(master, "rb", 0) as screen:
        os.close(slave)
        drawn = b""
        while not drawn.endswith(b"\r\x1b[K"):
            drawn += screen.read(1000)
        while grep.poll() is None:
            try:
                drawn += screen.read(1000)
            except OSError:  # the other end is closed
                break
    assert b"MB searched" in drawn
    assert drawn.endswith(b"\r\x1b[K")
