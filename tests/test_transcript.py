"""``jumpserver.py transcript``: a session as plain text."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import recorder
from recorder import Recorder, pack, recording_path
from tests.support import run_program

MIB = 1 << 20


def lines_of(*events: str | tuple[str, Any]) -> list[str]:
    """The transcript of these events; a text stands for output."""
    pairs = [("o", event) if isinstance(event, str) else event for event in events]
    lines = [json.dumps({"version": 2, "width": 80, "height": 24}), *(json.dumps([1.0, *pair]) for pair in pairs)]
    return list(recorder.transcript(io.BytesIO("".join(f"{line}\n" for line in lines).encode())))


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        ("one\r\ntwo\r\n", ["one", "two"]),
        (
            "$ \x1b[01;34mdir\x1b[0m\x1b(B \x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\x1bPq#0\x1b\\",
            ["$ dir link"],
        ),
        (" 10%\r 50%\r100%\r\ndone\r\n", ["100%", "done"]),
        ("downloading\r\x1b[Kok\r\n", ["ok"]),
        ("$ lx\b \bs\r\n", ["$ ls"]),
        ("$ lx\b\x1b[Ks\r\n", ["$ ls"]),
        ("$ echo c\b\x1b[2@ab\b\x1b[1P\r\n", ["$ echo ac"]),  # readline, in the middle of a line
        ("abc\x1b[2Dx\x1b[Cy\x1b[1Gz\r\n", ["zxcy"]),
        ("abc\b\b\x1b[X\r\n", ["a c"]),
        ("日本\b\b  \b\b語\r\n", ["日語"]),  # each takes two columns
        ("a\tb\r\n12345678\tc\r\n", ["a       b", "12345678        c"]),
        ("\x1b[2J\x1b[Htop\x1b[2;1Hrow\r\n", ["top", "row"]),
        ("bell\x07 nul\0 shift\x0e\x0f c1\x85 csi\x9b31m del\x7f\r\n", ["bell nul shift c1 csi del"]),
        ("$ exit\r\nlast words", ["$ exit", "last words"]),
        ("\r\n\r\n", ["", ""]),
        ("a\ud800b\r\n", ["a\ud800b"]),
    ],
)
def test_lines_are_as_they_stood_when_they_were_left(output: str, lines: list[str]) -> None:
    assert lines_of(output) == lines
    assert lines_of(*output) == lines  # a character at a time


def test_a_program_that_draws_the_screen_is_mentioned() -> None:
    drawing = "\x1b[?1049h\x1b[22;0;0t\x1b[1;1H~\r\n~\x1b[31m text\x1b[?25h\x1b[?1049l"
    assert lines_of(f"$ vim\r\n{drawing}$ \r\n") == ["$ vim", "[full-screen program]", "$"]
    assert lines_of("$ vim\r\n", *drawing, "$ less\r\n\x1b[?47h garbage") == [
        "$ vim",
        "[full-screen program]",
        "$ less",
        "[full-screen program]",
    ]


def test_the_servers_words_stand_in_brackets_and_commands_only_where_they_were_typed() -> None:
    words = ("m", "the browser was lost\x1b[31m")
    assert lines_of("$ ls\r\n", ("m", "$ ls"), words, ("r", "80x24"), ("i", "x"), ("d", "0"), "file\r\n") == [
        "$ ls",
        "[the browser was lost [31m]",
        "file",
    ]


def test_bytes_that_are_no_utf_8_are_shown_as_the_terminal_showed_them(tmp_path: Path) -> None:
    made = Recorder(tmp_path / "a.cast", 80, 24)
    made.output(b"caf\xe9 \xff\r\n")
    made.close()
    with recorder.open_recording(made.path) as file:
        assert list(recorder.transcript(file)) == ["caf\ufffd \ufffd"]


def test_a_long_line_is_broken() -> None:
    assert list(map(len, lines_of("x" * 10_000 + "\r\n"))) == [4096, 4096, 1808]
    assert lines_of("\x1b[999999999Cx\x1b[99999999@y\r\n") == [" " * 4095 + "x", "y"]


def test_what_cannot_be_read_is_said() -> None:
    data = (
        b'{"version": 2}\n[1, "o", "a\\r\\n"]\n[1, "o", "b\n[[[[\n[1]\n\n\0\n[1, "o", 5]\n[1, "o", "c\\r\\n"]\n[2, "o'
    )
    unreadable = "[an event that cannot be read]"
    assert list(recorder.transcript(io.BytesIO(data))) == ["a", *[unreadable] * 3, "c", unreadable]


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "a.cast"
    event = b'[1.0, "o", "%b\\r\\n"]\n' % (b"\\u001b]0;%b" % (b"t" * 60_000) + b"x" * 60_000)
    path.write_bytes(b'{"version": 2}\n' + event * 200 + b'[1.0, "o", "' + b"y" * (20 * MIB) + b'"]\n')
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            count = sum(1 for _ in recorder.transcript(file))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count >= 1
    assert peak < 50 * MIB


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "jumpserver.toml").write_text("")
    return tmp_path / "jumpserver.toml"


@pytest.mark.parametrize("packed", [False, True])
def test_a_recording_is_named_by_path_name_or_session(config: Path, tmp_path: Path, packed: bool) -> None:
    root = tmp_path / "records"
    root.mkdir()
    made = Recorder(recording_path(root, "an-id"), 80, 24)
    made.output("$ ls\r\n日本\r\n".encode())
    made.close()
    if packed:
        assert pack(made.path, lambda: False)
    here = made.path.with_name("an-id.cast.gz") if packed else made.path
    for name in (here, made.path, made.path.relative_to(root), "an-id"):
        done = run_program("transcript", name, "-jumpserver", config)
        assert (done.returncode, done.stdout, done.stderr) == (0, "$ ls\n日本\n", "")


@pytest.mark.parametrize("name", ["none", "../outside.cast", "/etc/passwd.cast", "a\nb", "x" * 5000])
def test_what_is_no_recording_is_refused_in_one_line(config: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "records").mkdir()
    done = run_program("transcript", name, "-jumpserver", config)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"jumpserver: {config}: no such recording\n"


def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.cast.gz").write_bytes(b"no gzip")
    (tmp_path / "b.cast").write_bytes(b"root:x:0:0\n" * 100)
    for name, why in ("a.cast.gz", "it is no gzip file, or damaged"), ("b.cast", "it is no asciicast"):
        done = run_program("transcript", tmp_path / name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"jumpserver: {tmp_path / name}: {why}\n"
