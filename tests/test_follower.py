"""Following a recording while it grows: what who watches is sent, and when."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder import Follower, Recorder, open_recording, pack, read_header
from tests.support import nothing_left

HEADER = '{"version": 2, "width": 80, "height": 24, "title": "alice@default/demo"}\n'
PIECE = 2 << 20  # that is taken at once
LINE = "0123456789abcdef" * 4 + "\r\n"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left():
        yield


class Growing:
    """A recording that grows, and who follows it."""

    def __init__(self, path: Path, text: str = HEADER) -> None:
        self._writer = path.open("wb", buffering=0)
        self._reader: BinaryIO = path.open("rb")
        self.follower = Follower(self._reader)
        self.write(text)

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.close()
        self._reader.close()

    def write(self, text: str | bytes) -> None:
        self._writer.write(text.encode() if isinstance(text, str) else text)

    def add(self, *events: list[Any]) -> None:
        self.write("".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events))

    def read(self) -> list[Any]:
        """What comes, each parsed."""
        return [json.loads(message) for message in self.follower.read()]


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    with Growing(tmp_path / "a.cast") as running:
        yield running


def flood(size: int, start: float = 1.0) -> list[list[Any]]:
    """Output events that take so many bytes of the file, or a few more."""
    text = LINE * 100
    return [[start + number / 1000, "o", text] for number in range(size // len(text) + 1)]


def test_the_header_comes_first_and_once_then_the_screen_as_one_event(growing: Growing) -> None:
    growing.add([0.1, "o", "one "], [5.0, "o", "two "], [9.5, "o", "三"])
    assert growing.read() == [json.loads(HEADER), [9.5, "o", "one two 三"]]
    assert growing.read() == []
    growing.add([10.0, "o", "four"])
    assert growing.read() == [[10.0, "o", "four"]]


def test_a_recording_with_a_header_alone_is_followed_from_there(growing: Growing) -> None:
    assert growing.read() == [json.loads(HEADER)]
    growing.add([0.5, "o", "a"])
    assert growing.read() == [[0.5, "o", "a"]]


def test_a_file_of_which_the_header_is_not_whole_has_nothing_to_send_yet(tmp_path: Path) -> None:
    with Growing(tmp_path / "a.cast", HEADER[:-1]) as growing:
        assert growing.read() == []
        growing.write("\n")
        assert growing.read() == [json.loads(HEADER)]


def test_of_a_file_that_grows_a_byte_at_a_time_only_whole_lines_are_sent(growing: Growing) -> None:
    growing.read()
    event = [0.25, "o", 'quo"te \\ 中 \u001b[1m']
    line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
    for byte in line[:-1]:
        growing.write(bytes([byte]))
        assert growing.read() == []
    growing.write(line[-1:])
    assert growing.read() == [event]


def test_who_comes_while_a_line_is_being_written_gets_it_when_it_is_whole(growing: Growing) -> None:
    growing.add([0.1, "o", "a"])
    growing.write('[0.2, "o", "b')
    assert growing.read()[1:] == [[0.1, "o", "a"]]
    growing.write('c"]\n')
    assert growing.read() == [[0.2, "o", "bc"]]


def test_output_that_is_drawn_at_once_comes_at_once_and_nothing_else_is_joined(growing: Growing) -> None:
    growing.read()
    growing.add([1.0, "o", "a"], [1.001, "o", "b"], [1.002, "r", "90x20"], [1.003, "o", "c"], [1.1, "o", "d"])
    assert growing.read() == [[1.0, "o", "ab"], [1.002, "r", "90x20"], [1.003, "o", "c"], [1.1, "o", "d"]]


def test_the_terminal_gets_its_size_before_the_screen(growing: Growing) -> None:
    growing.add([0.1, "r", "90x20"], [0.2, "o", "a"], [0.3, "r", "100x30"])
    assert growing.read()[1:] == [[0.3, "r", "100x30"], [0.3, "o", "a"]]


def test_commands_so_far_come_before_the_screen_and_their_ends_as_markers(growing: Growing) -> None:
    growing.add([0.1, "m", "$ false"], [0.2, "o", "a"], [0.3, "d", "1"], [0.4, "m", "$ vim"])
    assert growing.read()[1:] == [[0.1, "m", "$ false"], [0.3, "m", "= 1"], [0.4, "m", "$ vim"], [0.4, "o", "a"]]
    growing.add([0.5, "d", "0"], [0.6, "m", "the browser is lost"])
    assert growing.read() == [[0.5, "m", "= 0"], [0.6, "m", "the browser is lost"]]


def test_what_no_player_knows_is_left_out(growing: Growing) -> None:
    growing.read()
    growing.add([0.1, "o", "\ufffd"], [0.1, "b", "xOM="], [0.2, "i", "x"])
    growing.write('[0.3, "o", 7]\nnot an event\n[0.4, "oo", "a"]\n[1, "o", "b"]\n')
    assert growing.read() == [[0.1, "o", "\ufffd"], [0.2, "i", "x"], [1, "o", "b"]]


def test_what_the_recorder_writes_is_followed_as_it_is_written(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path.joinpath("a.cast"), 100, 30, title="alice@default/demo")
    with (tmp_path / "a.cast").open("rb") as file:
        follower = Follower(file)
        assert read_header(file)["title"] == "alice@default/demo"
        assert json.loads(follower.read()[0])["width"] == 100
        text = "".join(map(chr, range(0x20, 0x250))) + '\x1b[?1049h\r\n\t\0\\n"'
        recorder.output(text.encode())
        recorder.resize(90, 20)
        recorder.marker('a "label"')
        found = [json.loads(message)[1:] for message in follower.read()]
    recorder.close()
    assert found == [["o", text], ["r", "90x20"], ["m", 'a "label"']]


def late(growing: Growing, *before: list[Any], more: int = 3 * PIECE) -> tuple[list[Any], str]:
    """Who comes after these events and a flood: the messages after the header, and the text of the last one."""
    growing.add(*before, *flood(more))
    messages = growing.read()[1:]
    return messages, messages[-1][2]


def test_who_comes_late_gets_the_last_2_mib_from_the_start_of_a_line(growing: Growing) -> None:
    _, text = late(growing)
    assert PIECE / 2 < len(text) <= PIECE
    assert text == "\x1bc" + LINE * (len(text) // len(LINE))


def test_who_comes_late_gets_a_size_that_was_set_long_before(growing: Growing) -> None:
    messages, _ = late(growing, [0.1, "r", "90x20"], [0.2, "r", "133x50"], more=5 * PIECE)
    assert messages[0][1:] == ["r", "133x50"]


@pytest.mark.parametrize(
    ("before", "mode"),
    [
        ("\x1b[?1049h", "\x1b[?1049h"),
        ("\x1b[?1049h\x1b[?1049l", ""),
        ("\x1b[?25;1049h", "\x1b[?1049h"),
        ("\x1b[?47h", "\x1b[?1049h"),
        ("\\u001b[?1049h", ""),  # not the sequence, but its text
    ],
)
def test_who_comes_late_gets_the_screen_that_is_on(growing: Growing, before: str, mode: str) -> None:
    _, text = late(growing, [0.1, "o", before])
    assert text.startswith(f"\x1bc{mode}0123")


def test_a_sequence_is_found_wherever_it_stands_before_what_is_shown(tmp_path: Path) -> None:
    # The pieces in which it is looked for begin at any place: it is moved over the place where two of them meet.
    for shift in range(0, 40, 3):
        with Growing(tmp_path / f"{shift}.cast") as growing:
            growing.add([0.0, "o", "x" * shift], [0.1, "o", "\x1b[?1049h"], [0.2, "o", "x" * (PIECE // 2 - 140)])
            _, text = late(growing, more=PIECE)
            assert text.startswith("\x1bc\x1b[?1049h"), shift


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["\\", "\r\n", "\x1b[31m", "r", "n", '"', "u001b", "中", "\\r\\n"]), max_size=12))
def test_cut_output_begins_at_a_line_or_a_sequence(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    first = "".join(texts)
    with Growing(tmp_path_factory.mktemp("cut") / "a.cast") as growing:
        growing.add([0.0, "o", "gone " * 10], [0.1, "o", first])
        growing.follower.read()
        growing.add([0.2, "o", first + "\r\nend "], [0.3, "o", "x" * (PIECE - 100 - len(json.dumps(first)))])
        shown = growing.read()[-1][2]
    if shown.startswith("\x1bc"):  # else all of it was still shown
        rest = shown[2:]
        assert re.match(r"\x1b\[31m|[^\r\n]|\r\n", rest) and (first + "\r\nend ").endswith(rest.partition("xxx")[0])


def test_one_that_falls_far_behind_goes_on_with_the_screen_as_it_is_then(growing: Growing) -> None:
    growing.add([0.1, "o", "\x1b[?1049h"])
    growing.read()
    assert not growing.follower.is_far_behind()
    growing.add([0.2, "r", "90x20"], *flood(2 * PIECE))
    assert growing.follower.is_far_behind()
    size, screen = growing.read()
    assert size[1:] == ["r", "90x20"]
    assert screen[2].startswith("\x1bc\x1b[?1049h0123") and len(screen[2]) <= PIECE
    growing.add([90.0, "o", "next"])
    assert growing.read() == [[90.0, "o", "next"]]


def test_a_line_as_long_as_any_is_sent_whole(growing: Growing) -> None:
    growing.read()
    longest = [1.0, "o", "\x01" * (256 << 10)]
    growing.add(longest, [1.0, "b", "A" * (350 << 10)])
    assert growing.read() == [longest]


def test_of_a_packed_recording_only_the_header_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "a.cast"
    path.write_text(HEADER + '[0.1, "o", "a"]\n')
    assert pack(path, lambda: False)
    with open_recording(path) as file:
        follower = Follower(file)
        assert [follower.read(), follower.read()] == [[HEADER.strip().encode()], []]


@pytest.mark.parametrize("text", ["", "\n", "[1, 2]\n", "{" * 70_000 + "\n", "[" * 70_000, "{\n"])
def test_a_file_without_a_header_has_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.cast"
    path.write_text(text)
    with path.open("rb") as file:
        assert read_header(file) == {}
