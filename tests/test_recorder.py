"""The recording: what is in the file, where it lies, what a failure leaves of it, and that other programs play it."""

from __future__ import annotations

import base64
import errno
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder import (
    Recorder,
    RecordError,
    RecordFolder,
    examine,
    find_recording,
    is_incomplete,
    mark_incomplete,
    playable_size,
    recording_path,
    repair,
)
from tests.support import nothing_left, small_disk

ROOT = Path(__file__).resolve().parent.parent
MIXED = "aé中文🙂👩‍🚀e\u0301\u2028\x1b[1m終"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left():
        yield


def lines(path: Path) -> list[Any]:
    """The file's lines, each parsed; fails when the last one is torn."""
    data = path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.decode().split("\n")[:-1]]


def printed(path: Path) -> str:
    """All output of the file, joined."""
    return "".join(data for _, code, data in lines(path)[1:] if code == "o")


# -- the file's path --------------------------------------------------------------------------------------------------

# From the test suite in RFC 1321, appendix A.5.
MD5 = [
    ("a", "0cc175b9c0f1b6a831c399e269772661"),
    ("abc", "900150983cd24fb0d6963f7d28e17f72"),
    ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
    ("abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b"),
]


@pytest.mark.parametrize(("session_id", "digest"), MD5)
def test_path_is_eight_folders_of_the_md5_then_the_id(session_id: str, digest: str) -> None:
    folders = re.findall("..", digest)[:8]
    assert recording_path(Path("/r"), session_id) == Path("/r", *folders, f"{session_id}.cast")


def test_file_and_folders_are_closed_to_others(tmp_path: Path) -> None:
    path = recording_path(tmp_path / "root", "abc")
    before = os.umask(0o022)
    try:
        RecordFolder(tmp_path / "root")
        Recorder(path, 80, 24).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    folders = [folder for folder in path.parents if tmp_path in folder.parents]
    assert len(folders) == 9
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o750}


def in_the_way_file(path: Path) -> None:
    path.write_text("older\n")


def in_the_way_link(path: Path) -> None:
    (path.parent / "target").write_text("older\n")
    path.symlink_to("target")


def in_the_way_dangling_link(path: Path) -> None:
    path.symlink_to("elsewhere")


def in_the_way_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "put", [in_the_way_file, in_the_way_link, in_the_way_dangling_link, in_the_way_folder], ids=lambda put: put.__name__
)
def test_nothing_in_the_way_is_overwritten_or_followed(tmp_path: Path, put: Callable[[Path], None]) -> None:
    path = tmp_path / "a.cast"
    put(path)
    before = sorted(item.name for item in tmp_path.iterdir())
    with pytest.raises(RecordError, match=r"cannot create .*a\.cast: File exists"):
        Recorder(path, 80, 24)
    assert sorted(item.name for item in tmp_path.iterdir()) == before
    assert all(item.read_text() == "older\n" for item in tmp_path.iterdir() if item.is_file())


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "90").write_text("")
    with pytest.raises(RecordError, match="Not a directory"):
        Recorder(recording_path(tmp_path, "abc"), 80, 24)


def test_two_recorders_may_make_the_same_folders_at_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    errors: list[Exception] = []

    def make(number: int) -> None:
        barrier.wait()
        try:
            Recorder(tmp_path / "a" / "b" / "c" / "d" / f"{number}.cast", 80, 24).close()
        except Exception as exc:
            errors.append(exc)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(list(tmp_path.rglob("*.cast"))) == 8


# -- what is written --------------------------------------------------------------------------------------------------


def test_header_is_on_disk_when_the_constructor_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1700000000.9)
    recording = Recorder(tmp_path / "a.cast", 100, 30, title="alice@default/demo", place={"cluster": "production"})
    try:
        assert (tmp_path / "a.cast").read_bytes() == (
            b'{"version": 2, "width": 100, "height": 30, "timestamp": 1700000000, "title": "alice@default/demo",'
            b' "env": {"TERM": "xterm-256color"}, "jumpserver": {"cluster": "production"}}\n'
        )
    finally:
        recording.close()


def test_events_are_lines_of_time_code_and_data(tmp_path: Path) -> None:
    recording = Recorder(tmp_path / "a.cast", 80, 24)
    recording.output(b"one\r\n\x1b[31m\x00\x7f")
    recording.resize(120, 40)
    recording.output(b"")
    recording.output("二".encode())
    recording.close()
    events = lines(tmp_path / "a.cast")[1:]
    assert [event[1:] for event in events] == [["o", "one\r\n\x1b[31m\x00\x7f"], ["r", "120x40"], ["o", "二"]]
    assert all(type(event[0]) is float and 0 <= event[0] < 60 for event in events)
    assert re.search(rb"[\x00-\x09\x0b-\x1f]", (tmp_path / "a.cast").read_bytes()) is None


def test_times_follow_the_monotonic_clock_whatever_the_wall_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 100.25, 100.25, 103.5, 103.5, 104.0])
    wall = iter([2000.0, 1000.0, 500.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "time", lambda: next(wall))
    recording = Recorder(tmp_path / "a.cast", 80, 24)
    recording.output(b"a")
    recording.output(b"b")
    recording.resize(1, 2)
    monkeypatch.undo()
    recording.close()
    assert [event[0] for event in lines(tmp_path / "a.cast")[1:]] == [0.25, 0.25, 3.5]


@pytest.mark.parametrize("cut", range(len(MIXED.encode()) + 1))
def test_a_character_split_over_two_calls_comes_out_whole(tmp_path: Path, cut: int) -> None:
    data = MIXED.encode()
    recording = Recorder(tmp_path / "a.cast", 80, 24)
    recording.output(data[:cut])
    recording.output(data[cut:])
    recording.close()
    assert printed(tmp_path / "a.cast") == MIXED


@settings(max_examples=60, deadline=None, database=None)
@given(st.text(max_size=60), st.lists(st.integers(0, 240), max_size=12))
def test_any_text_in_any_pieces_comes_out_whole(text: str, cuts: list[int]) -> None:
    data = text.encode()
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.cast")
        recording = Recorder(path, 80, 24)
        for start, end in zip(bounds, bounds[1:]):
            recording.output(data[start:end])
        digest = recording.close()
        assert printed(path) == text
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_give_a_valid_file(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.cast")
        recording = Recorder(path, 80, 24)
        for piece in pieces:
            recording.output(piece)
        recording.close()
        assert printed(path) == b"".join(pieces).decode("utf-8", "replace")


def test_bytes_that_are_no_utf8_become_replacement_characters(tmp_path: Path) -> None:
    recording = Recorder(tmp_path / "a.cast", 80, 24)
    recording.output(b"a\xff\xc3(\xed\xa0\x80z")
    recording.output(b"\xe4\xb8")  # the end comes inside a character
    recording.close()
    assert printed(tmp_path / "a.cast") == b"a\xff\xc3(\xed\xa0\x80z\xe4\xb8".decode("utf-8", "replace")
    assert printed(tmp_path / "a.cast").endswith("z\N{REPLACEMENT CHARACTER}")


def raw_output(path: Path) -> bytes:
    """What the pod printed, byte for byte: where an event ``b`` follows an event ``o``, its bytes count."""
    pieces: list[bytes] = []
    for _, code, data in lines(path)[1:]:
        if code == "o":
            pieces.append(data.encode())
        elif code == "b":
            pieces[-1] = base64.b64decode(data)
    return b"".join(pieces)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=30) | st.sampled_from([*(bytes((byte,)) for byte in "中é".encode("gbk"))])))
def test_nothing_of_any_bytes_is_lost_or_shown_before_it_is_recorded(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.cast")
        recorder = Recorder(path, 80, 24)
        shown = b""
        for piece in pieces:
            shown += recorder.output(piece)
            assert raw_output(path) == shown
        shown += recorder.output(b"", final=True)
        recorder.close()
        assert raw_output(path) == shown == b"".join(pieces)


def test_the_beginning_of_a_character_is_held_back_until_its_end_has_come(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.cast", 80, 24)
    euro = "€".encode()
    assert [recorder.output(b"1" + euro[:1]), recorder.output(euro[1:2]), recorder.output(euro[2:])] == [
        b"1",
        b"",
        euro,
    ]
    recorder.close()
    assert printed(tmp_path / "a.cast") == "1€"


def test_output_in_gbk_can_be_read_back_from_the_recording(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.cast", 80, 24)
    recorder.output("编码".encode("gbk") + b"\r\n")
    recorder.output(b"plain\r\n")
    recorder.close()
    assert raw_output(tmp_path / "a.cast").decode("gbk") == "编码\r\nplain\r\n"
    assert [code for _, code, _ in lines(tmp_path / "a.cast")[1:]] == ["o", "b", "o"]


def test_a_title_with_half_a_surrogate_pair_is_written_as_valid_utf8(tmp_path: Path) -> None:
    Recorder(tmp_path / "a.cast", 80, 24, title="x\ud800y").close()
    assert lines(tmp_path / "a.cast")[0]["title"] == "x?y"


def test_threads_write_whole_lines_in_order(tmp_path: Path) -> None:
    recording = Recorder(tmp_path / "a.cast", 80, 24)
    barrier = threading.Barrier(4)

    def write(name: str) -> None:
        barrier.wait()
        for number in range(300):
            recording.output(f"<{name}{number}>".encode())
            recording.resize(number + 1, 1)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    digest = recording.close()
    events = lines(tmp_path / "a.cast")[1:]
    assert len(events) == 4 * 600
    assert [event[0] for event in events] == sorted(event[0] for event in events)
    for name in "abcd":
        mine = [int(number) for number in re.findall(f"<{name}(\\d+)>", printed(tmp_path / "a.cast"))]
        assert mine == list(range(300))
    assert digest == hashlib.sha256((tmp_path / "a.cast").read_bytes()).hexdigest()


def test_digest_and_size_are_those_of_the_file(tmp_path: Path) -> None:
    recording = Recorder(tmp_path / "a.cast", 80, 24, title="日本")
    recording.output(MIXED.encode()[:-1])
    recording.resize(1, 65535)
    digest = recording.close()
    data = (tmp_path / "a.cast").read_bytes()
    assert digest == hashlib.sha256(data).hexdigest()
    assert recording.bytes_written == len(data)


# -- a file that cannot be written ------------------------------------------------------------------------------------

FULL_DISK = """
import resource, sys
from pathlib import Path
from recorder import Recorder, RecordError
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
recording = Recorder(Path(sys.argv[1]), 80, 24)
try:
    while True:
        recording.output(b"x" * 1000)
except RecordError as exc:
    print(exc)
try:
    recording.output(b"this would fit")
    print("accepted")
except RecordError as exc:
    print("refused")
try:
    print(recording.close())
except RecordError as exc:
    print(exc)
"""


def fill_disk(path: Path) -> list[str]:
    """Write in a process whose files may not grow past 20 kB; returns what it printed."""
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_write_error_leaves_only_whole_lines(tmp_path: Path) -> None:
    output = fill_disk(tmp_path / "a.cast")
    assert output[0] == f"cannot write {tmp_path / 'a.cast'}: File too large"
    assert printed(tmp_path / "a.cast").replace("x", "") in ("", "this would fit")
    assert (tmp_path / "a.cast").stat().st_size > 18000


def test_nothing_is_accepted_after_a_write_error(tmp_path: Path) -> None:
    assert fill_disk(tmp_path / "a.cast")[1] == "refused"
    assert "fit" not in printed(tmp_path / "a.cast")


def test_a_constructor_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    script = FULL_DISK.split("recording =")[0].replace("20000, 20000", "10, 10") + (
        "import os\nbefore = os.listdir('/proc/self/fd')\n"
        "try:\n    Recorder(Path(sys.argv[1]), 80, 24)\nexcept RecordError as exc:\n    print(exc)\n"
        "print(os.listdir('/proc/self/fd') == before)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.cast")]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert output == [f"cannot write {tmp_path / 'a.cast'}: File too large", "True"]
    assert not (tmp_path / "a.cast").exists()


def test_nothing_is_accepted_after_a_failed_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    recorder = Recorder(tmp_path / "a.cast", 80, 24)
    monkeypatch.setattr("recorder._SYNC_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RecordError, match="Input/output error"):
        recorder.output(b"first")
    with pytest.raises(RecordError, match="an earlier write failed"):
        recorder.output(b"second")
    assert recorder.close() == hashlib.sha256((tmp_path / "a.cast").read_bytes()).hexdigest()
    assert printed(tmp_path / "a.cast") == "first"


def test_the_disk_is_waited_for_every_few_seconds_and_not_at_each_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    recorder = Recorder(tmp_path / "a.cast", 80, 24)
    for expected in (0, 1, 1):
        recorder.output(b"x")
        assert len(synced) == expected
        recorder._synced -= 6 * (expected == 0)  # as if six seconds had gone by
    recorder.close()
    assert len(synced) == 2


@pytest.mark.parametrize("end", [Recorder.close, Recorder.discard])
def test_nothing_is_written_after_the_end(tmp_path: Path, end: Callable[[Recorder], object]) -> None:
    recorder = Recorder(tmp_path / "a.cast", 80, 24)
    end(recorder)
    with (tmp_path / "another").open("wb") as other:  # which gets the number of the descriptor
        assert other.fileno() == recorder._fd
        for write in (lambda: recorder.output(b"late"), lambda: recorder.resize(1, 1)):
            with pytest.raises(RecordError, match="cannot write"):
                write()
    assert (tmp_path / "another").read_bytes() == b""


def test_what_another_process_appends_is_not_written_over(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.cast", 80, 24)
    recorder.output(b"before")
    mark_incomplete(recorder.path)  # by a server that took this one for dead
    recorder.output(b"after")
    recorder.close()
    assert [code for _, code, _ in lines(recorder.path)[1:]] == ["o", "m", "o"]


def removed(path: Path) -> None:
    path.unlink()


def moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere.cast"))


def replaced(path: Path) -> None:
    path.rename(path.with_name("elsewhere.cast"))
    path.write_text("another")


def folder_removed(path: Path) -> None:
    shutil.rmtree(path.parents[1])


@pytest.mark.parametrize("do", [removed, moved, replaced, folder_removed], ids=lambda do: str(do.__name__))
def test_a_recording_that_is_no_longer_at_its_path_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: Callable[[Path], None]
) -> None:
    path = recording_path(tmp_path, "abc")
    recorder = Recorder(path, 80, 24)
    recorder.output(b"kept")
    do(path)
    recorder.output(b"within the five seconds")
    monkeypatch.setattr("recorder._SYNC_SECONDS", 0.0)
    with pytest.raises(RecordError, match="cannot write"):
        recorder.output(b"after them")
    with pytest.raises(RecordError, match="an earlier write failed"):
        recorder.output(b"more")
    recorder.close()


def test_a_removed_recording_is_noticed_at_its_end(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.cast", 80, 24)
    (tmp_path / "a.cast").unlink()
    with pytest.raises(RecordError):
        recorder.close()


def test_a_record_folder_that_was_removed_is_not_made_again_by_a_session(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path / "root")
    folder.check()
    (tmp_path / "root").rmdir()
    with pytest.raises(RecordError, match="is gone"):
        folder.check()
    with pytest.raises(RecordError, match="cannot create"):
        Recorder(recording_path(tmp_path / "root", "abc"), 80, 24)
    assert not (tmp_path / "root").exists()


def test_another_folder_in_the_place_of_the_record_folder_is_noticed(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path / "root")
    (tmp_path / "root").rename(tmp_path / "old")
    (tmp_path / "root").mkdir()
    with pytest.raises(RecordError, match="not the one of the start"):
        folder.check()


def test_another_disk_in_the_place_of_the_record_folder_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with small_disk(root):
        folder = RecordFolder(root)
        with small_disk(root):  # whose root has the same inode number
            with pytest.raises(RecordError, match="not the one of the start"):
                folder.check()


def test_a_record_folder_without_room_is_noticed(tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    folder = RecordFolder(tmp_path, (space.f_bavail + space.f_bfree + 1) * space.f_frsize * 2)
    with pytest.raises(RecordError, match="MiB left"):
        folder.check()


def test_room_that_is_kept_for_root_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = RecordFolder(tmp_path), list(os.statvfs(tmp_path))
    real[4] = 0  # f_bavail, beside f_bfree
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(real))
    with pytest.raises(RecordError, match="MiB left"):
        folder.check()


# Root may write everywhere, so it becomes somebody else once all is imported.
CHECK_AS_NOBODY = """
import os, sys
from pathlib import Path
from recorder import RecordFolder
if os.geteuid() == 0:
    os.chown(sys.argv[1], 65534, -1)
    os.setuid(65534)
RecordFolder(Path(sys.argv[1])).check()
"""


@pytest.mark.parametrize("mode", [0o500, 0o600, 0o300])
def test_a_record_folder_must_let_this_user_write_and_pass(mode: int) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        Path(name).chmod(0o755)
        (Path(name) / "root").mkdir(mode=mode)
        command = [sys.executable, "-c", CHECK_AS_NOBODY, str(Path(name) / "root")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert ("cannot be written" in done.stderr) == (mode != 0o300)
        assert (done.returncode == 0) == (mode == 0o300)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_an_error_names_the_file_and_the_systems_reason(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot create /dev/full/a\.cast: Not a directory"):
        Recorder(Path("/dev/full/a.cast"), 80, 24)


# -- repair -----------------------------------------------------------------------------------------------------------

HEADER = b'{"version": 2, "width": 80, "height": 24}\n'
BLOCK = 1 << 16  # what is scanned at a time
TORN = [
    (b"", 0),
    (b'{"vers', 0),
    (HEADER, len(HEADER)),
    (HEADER + b"[", len(HEADER)),
    (HEADER + b'[0.1, "o", "a"]\n', len(HEADER) + 16),
    (HEADER + b'[0.1, "o", "a"]\n[0.2, "o", "\xe4\xb8', len(HEADER) + 16),
    (HEADER + b"x" * (BLOCK - 1), len(HEADER)),
    (HEADER + b"x" * BLOCK, len(HEADER)),
    (HEADER + b"x" * (BLOCK + 1), len(HEADER)),
    (HEADER + b"x" * (3 * BLOCK), len(HEADER)),
    (b"x" * (BLOCK - 1) + b"\n" + b"y" * BLOCK, BLOCK),
    (b"x" * BLOCK + b"\n" + b"y" * (BLOCK - 1), BLOCK + 1),
    (b"x" * (2 * BLOCK), 0),
    (b"\n" + b"x" * (2 * BLOCK), 1),
]


@pytest.mark.parametrize(("data", "whole"), TORN, ids=range(len(TORN)))
def test_playable_size_is_that_of_the_whole_lines(data: bytes, whole: int) -> None:
    assert playable_size(io.BytesIO(data)) == whole


@pytest.mark.parametrize(("data", "whole"), TORN, ids=range(len(TORN)))
def test_repair_cuts_the_torn_line_and_nothing_else(tmp_path: Path, data: bytes, whole: int) -> None:
    path = tmp_path / "a.cast"
    path.write_bytes(data)
    assert repair(path) == len(data) - whole
    assert path.read_bytes() == data[:whole]
    assert repair(path) == 0


@settings(max_examples=100, deadline=None, database=None)
@given(st.binary(max_size=200))
def test_playable_size_of_anything_ends_with_a_newline_or_is_zero(data: bytes) -> None:
    size = playable_size(io.BytesIO(data))
    assert size == data.rfind(b"\n") + 1


HEADER = b'{"version": 2, "width": 80, "height": 24}\n'


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        (b"", 0.0),
        (b'[1.5, "o", "a"]\n[2.25, "o", "b"]\n', 2.25),
        (b'[1.5, "o", "' + b"x" * 3_000_000 + b'"]\n', 1.5),
        (b'[-1, "o", "a"]\n', 0.0),
        (b'[1e400, "o", "a"]\n', 0.0),
        (b'[NaN, "o", "a"]\n', 0.0),
        (b"[" + b"9" * 400 + b', "o", "a"]\n', 0.0),
        (b'["1", "o"', 0.0),
        (b"5\n", 0.0),
        (b"[null]\n", 0.0),
        (b"[" * 100_000 + b"\n", 0.0),
    ],
    ids=lambda value: None if isinstance(value, float) else f"{len(value)}-bytes",
)
def test_a_recording_says_how_long_its_session_was(tmp_path: Path, events: bytes, seconds: float) -> None:
    path = tmp_path / "a.cast"
    path.write_bytes(HEADER + events)
    found = examine(path)
    assert (found.seconds, found.size) == (seconds, len(HEADER + events))
    assert found.sha256 == hashlib.sha256(HEADER + events).hexdigest()


@pytest.mark.parametrize("events", [b"", b'[1.5, "o", "a"]\n'], ids=["no event", "one"])
def test_a_recording_that_was_cut_off_says_so_once(tmp_path: Path, events: bytes) -> None:
    path = tmp_path / "a.cast"
    path.write_bytes(HEADER + events + b'[2.5, "o", "to')
    with path.open("rb") as file:
        assert is_incomplete(file, playable_size(file))
    repair(path)
    with path.open("rb") as file:
        assert not is_incomplete(file, playable_size(file))
    mark_incomplete(path)
    mark_incomplete(path)
    with path.open("rb") as file:
        assert is_incomplete(file, playable_size(file))
    marker = [1.5 if events else 0.0, "m", "the server ended before the session did"]
    assert lines(path)[1:] == [*map(json.loads, events.splitlines()), marker]


def test_the_end_of_a_long_recording_is_read_and_not_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recorder._LINE_LIMIT_BYTES", 100)
    path = tmp_path / "a.cast"
    path.write_bytes(HEADER + b'[1.0, "o", "x"]\n' * 100 + b'[2.5, "o", "x"]\n')
    assert examine(path).seconds == 2.5


def test_an_empty_file_is_not_marked(tmp_path: Path) -> None:
    (tmp_path / "a.cast").touch()
    mark_incomplete(tmp_path / "a.cast")
    assert (tmp_path / "a.cast").read_bytes() == b""


def test_a_missing_recording_cannot_be_examined(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot read"):
        examine(tmp_path / "no.cast")


def test_repair_of_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot repair .*none\.cast: No such file or directory"):
        repair(tmp_path / "none.cast")


# -- finding ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with everything that may be asked for in it, and next to it what may not be had."""
    root = tmp_path / "records"
    (root / "00").mkdir(parents=True)
    (root / "00" / "a.cast").write_text("")
    (root / "00" / "notes.txt").write_text("")
    (root / "00" / ".cast").write_text("")
    (root / "sessions.db").write_text("")
    (root / "folder.cast").mkdir()
    (tmp_path / "outside.cast").write_text("")
    (tmp_path / "records-old").mkdir()
    (tmp_path / "records-old" / "b.cast").write_text("")
    (root / "leaving.cast").symlink_to(tmp_path / "outside.cast")
    (root / "inside.cast").symlink_to("00/a.cast")
    (root / "disguise.cast").symlink_to("sessions.db")
    (root / "loop.cast").symlink_to("loop.cast")
    (root / "dangling.cast").symlink_to("nowhere.cast")
    (root / "out").symlink_to(tmp_path)
    os.mkfifo(root / "fifo.cast")
    (tmp_path / "linked-root").symlink_to(root)
    return root


REFUSED_NAMES = [
    "",
    ".",
    "..",
    "/",
    "00",
    "none.cast",
    "../outside.cast",
    "../records-old/b.cast",
    "00/../../outside.cast",
    "{tmp}/outside.cast",
    "{tmp}/records-old/b.cast",
    "leaving.cast",
    "out/outside.cast",
    "disguise.cast",
    "loop.cast",
    "dangling.cast",
    "folder.cast",
    "fifo.cast",
    "00/notes.txt",
    "00/.cast",
    "sessions.db",
    "00/a.cast\0",
    "00/a.cast\0.cast",
    "/dev/null",
    "/dev/zero.cast",
    "~/a.cast",
    "00/a.cast\n",
    "00/A.CAST",
    "a" * 300 + ".cast",
    "a/" * 3000 + "b.cast",
    "00/\ud800.cast",
]


@pytest.mark.parametrize("name", REFUSED_NAMES, ids=lambda name: repr(name[:30]))
def test_what_is_no_recording_in_the_root_is_not_found(tree: Path, name: str) -> None:
    with pytest.raises(RecordError) as caught:
        find_recording(tree, name.replace("{tmp}", str(tree.parent)))
    assert str(caught.value) == "no such recording"


@pytest.mark.parametrize(
    "name",
    [
        "00/a.cast",
        "./00/a.cast",
        "00/../00/a.cast",
        "{root}/00/a.cast",
        "inside.cast",
        "out/records/00/a.cast",
        "00/a.cast/",
    ],
)
def test_a_recording_in_the_root_is_found_by_its_real_path(tree: Path, name: str) -> None:
    assert find_recording(tree, name.replace("{root}", str(tree))) == (tree / "00" / "a.cast").resolve()


def test_a_root_that_is_a_link_is_followed(tree: Path) -> None:
    link = tree.parent / "linked-root"
    assert (
        find_recording(link, "00/a.cast") == find_recording(link, f"{link}/00/a.cast") == (tree / "00/a.cast").resolve()
    )


def test_a_missing_root_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such recording"):
        find_recording(tmp_path / "none", "a.cast")


# -- another program's opinion ----------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("asciinema") is None, reason="asciinema's CLI is not installed")
def test_asciinema_prints_what_was_recorded(tmp_path: Path) -> None:
    data = ("$ ls\r\n\x1b[34mbin\x1b[0m\t" + MIXED + "\x00\x85\r\n").encode()
    recording = Recorder(tmp_path / "a.cast", 100, 30, title="alice@default/demo")
    for start in range(0, len(data), 5):
        recording.output(data[start : start + 5])
    recording.resize(90, 20)
    recording.output(b"exit\r\n")
    recording.close()
    command = [sys.executable, "-m", "asciinema", "cat", str(tmp_path / "a.cast")]
    environment = {"LC_ALL": "C.UTF-8", "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert output == data + b"exit\r\n"
