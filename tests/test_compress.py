"""``[Record] compress``: finished recordings are packed, and stay what they were to everybody who reads them."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import json
import logging
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import recorder
from demo.cluster import StandIn
from recorder import Recorder, RecordError, find_recording, open_recording, pack, recording_path
from tests.conftest import WAIT_MS
from tests.support import (
    PROGRAM,
    WAIT_SECONDS,
    Installation,
    Program,
    RunningServer,
    end_shell,
    fill_up,
    run_program,
    running,
    small_disk,
    wait_until,
)

MIB = 1 << 20
COMPRESS = "compress = true\n"


def never() -> bool:
    return False


@pytest.fixture
def packing(tmp_path: Path, cluster: StandIn) -> Iterator[RunningServer]:
    with running(tmp_path, cluster, record_lines=COMPRESS) as server:
        yield server


def recorded(folder: Path, size: int = 5000) -> Path:
    """A recording of output that hardly gets smaller."""
    path = folder / "a.cast"
    made = Recorder(path, 80, 24)
    for _ in range(size // 2000):
        made.output(random.Random(size).randbytes(1000).hex().encode())
    made.close()
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def play(
    server: RunningServer, name: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """The answer to a request for a recording, as it comes; underscores in header names stand for dashes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_SECONDS)
    with contextlib.closing(connection):
        named = {header.replace("_", "-"): value for header, value in headers.items()}
        connection.request(method, server.play_path(name), headers={"Accept-Encoding": "identity", **named})
        with connection.getresponse() as response:
            return response, response.read()


# -- packing ----------------------------------------------------------------------------------------------------------


def test_a_session_that_has_ended_is_packed_and_the_ledger_tells_of_the_plain_text(packing: RunningServer) -> None:
    with packing.connect() as terminal:
        terminal.type("echo packed\n")
        end_shell(terminal)
    packing.wait_settled()
    (row,) = packing.rows()
    path = Path(row["filename"])
    assert path.suffix == ".cast" and not path.exists()
    packed = path.with_name(f"{path.name}.gz")
    assert files_below(path.parent) == [packed.name]
    assert stat.S_IMODE(packed.stat().st_mode) == 0o640
    plain = gzip.decompress(packed.read_bytes())
    assert b"packed" in plain
    assert (row["size"], row["sha256"]) == (len(plain), hashlib.sha256(plain).hexdigest())
    done = run_program("verify", "-jumpserver", packing.config_file)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_nothing_is_packed_by_default(server: RunningServer) -> None:
    with server.connect() as terminal:
        end_shell(terminal)
    server.wait_settled()
    assert Path(server.rows()[0]["filename"]).exists()


def test_a_lost_session_is_mended_first(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster, record_lines=COMPRESS) as program, program.connect() as terminal:
        terminal.wait_for_event("session")
        terminal.type("echo la''st\n")
        terminal.wait_for("last")
        program.end(signal.SIGKILL)
        path = Path(program.rows()[0]["filename"])
        with path.open("ab") as file:
            file.write(b'[99.0, "o", "to')
    with running(tmp_path, cluster, record_lines=COMPRESS) as server:
        server.wait_settled()
        (row,) = server.rows()
        with open_recording(path) as plain:
            text = plain.read()
        assert text.endswith(b'"the server ended before the session did"]\n')
        assert (row["reason"], row["size"], row["sha256"]) == ("lost", len(text), hashlib.sha256(text).hexdigest())
        response, _ = play(server, row["filename"])
        assert response.headers["X-Recording"] == "cut"


def left_by_a_dead_server(server: Installation) -> None:
    """Make the ledger say that a server died while it packed."""
    with contextlib.closing(sqlite3.connect(server.config.hooks_settings().db)) as db, db:
        db.execute("UPDATE sessions SET todo = 4, server = 'dead'")


@pytest.mark.parametrize("state", ["half", "both"])
def test_what_a_dead_server_left_half_done_the_next_one_finishes(tmp_path: Path, cluster: StandIn, state: str) -> None:
    with running(tmp_path, cluster) as server:
        with server.connect() as terminal:
            end_shell(terminal)
        server.wait_settled()
        left_by_a_dead_server(server)
    path = Path(server.rows()[0]["filename"])
    plain, packed = path.read_bytes(), path.with_name(f"{path.name}.gz")
    if state == "half":
        packed.with_name(f"{packed.name}.half").write_bytes(b"half")
    else:
        assert pack(path, never)
        path.write_bytes(plain)
    with running(tmp_path, cluster, record_lines=COMPRESS) as server:
        server.wait_settled()
    assert files_below(path.parent) == [packed.name]
    assert gzip.decompress(packed.read_bytes()) == plain


def test_a_crash_in_the_middle_leaves_the_recording_and_the_next_try_packs_it(tmp_path: Path) -> None:
    path = recorded(tmp_path, MIB)
    plain = path.read_bytes()
    crash = (
        "import os, sys, pathlib, recorder; recorder.pack(pathlib.Path(sys.argv[1]), lambda: os.kill(os.getpid(), 9))"
    )
    assert subprocess.run([sys.executable, "-c", crash, path], cwd=PROGRAM.parent).returncode == -signal.SIGKILL
    assert files_below(tmp_path) == ["a.cast", "a.cast.gz.half"]
    assert path.read_bytes() == plain
    assert pack(path, never)
    assert files_below(tmp_path) == ["a.cast.gz"]
    assert gzip.decompress((tmp_path / "a.cast.gz").read_bytes()) == plain
    assert int((tmp_path / "a.cast.gz").stat().st_mtime) == 1_700_000_000


def test_who_stops_it_finds_everything_as_it_was(tmp_path: Path) -> None:
    path = recorded(tmp_path, 2 * MIB)
    plain = path.read_bytes()
    assert not pack(path, iter([False, False, True]).__next__)
    assert files_below(tmp_path) == ["a.cast"]
    assert path.read_bytes() == plain


def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk"):
        path = recorded(tmp_path / "disk", MIB // 2)
        plain = path.read_bytes()
        fill_up(tmp_path / "disk")
        with pytest.raises(RecordError, match=r"cannot pack .*a\.cast: No space left on device"):
            pack(path, never)
        assert files_below(tmp_path / "disk") == ["a.cast", "fill"]
        assert path.read_bytes() == plain


def test_a_server_that_ends_does_not_wait_for_packing(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster, record_lines=COMPRESS) as program:
        with program.connect() as terminal:
            terminal.wait_for_event("session")
            path = Path(program.rows()[0]["filename"])
            with path.open("ab") as file:  # a GiB, of which only the end takes room
                file.truncate(1 << 30)
            end_shell(terminal)
        half = path.with_name(f"{path.name}.gz.half")
        wait_until(half.exists, "the beginning of packing")
        assert program.end() == 0
        assert files_below(path.parent) == [path.name]
        assert [row["todo"] for row in program.rows()] == [4]


# -- finding and reading ----------------------------------------------------------------------------------------------


def test_both_forms_are_found_by_one_name_and_nothing_outside(tmp_path: Path) -> None:
    root = tmp_path / "records"
    made = Recorder(recording_path(_made(root), "x"), 80, 24)
    made.close()
    name = str(made.path.relative_to(root))
    assert find_recording(root, name) == made.path
    assert pack(made.path, never)
    packed = made.path.with_name("x.cast.gz")
    assert find_recording(root, name) == find_recording(root, str(made.path)) == packed
    outside = tmp_path / "outside.cast.gz"
    outside.write_bytes(packed.read_bytes())
    (root / "link.cast.gz").symlink_to(outside)
    (root / "folder.cast.gz").mkdir()
    os.mkfifo(root / "fifo.cast.gz")
    for bad in ("link.cast", "folder.cast", "fifo.cast", "../outside.cast", "x", "x.gz", f"{name}.gz.gz", "a\0.cast"):
        with pytest.raises(RecordError):
            find_recording(root, bad)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_packed_recording_reads_and_seeks_as_the_plain_one(tmp_path: Path) -> None:
    path = recorded(tmp_path, 3 * MIB)
    plain, examined = path.read_bytes(), recorder.examine(path)
    assert pack(path, never)
    assert recorder.examine(path) == recorder.examine(tmp_path / "a.cast.gz") == examined
    chosen = random.Random(1)
    with open_recording(path) as file, io.BytesIO(plain) as reference:
        assert recorder.playable_size(file) == len(plain)
        assert not recorder.is_incomplete(file, len(plain))
        for _ in range(30):
            place, whence = chosen.choice(
                [(chosen.randrange(len(plain)), 0), (-chosen.randrange(1000), 2), (-5, 1), (7, 1)]
            )
            assert file.seek(max(place, -file.tell()) if whence == 1 else place, whence) == reference.seek(
                max(place, -reference.tell()) if whence == 1 else place, whence
            )
            size = chosen.randrange(200_000)
            assert file.read(size) == reference.read(size)
            assert file.readline() == reference.readline()


@pytest.mark.parametrize("whole", [True, False])
def test_what_another_program_has_packed_is_read_too(tmp_path: Path, whole: bool) -> None:
    plain = recorded(tmp_path).read_bytes()[: None if whole else -3]
    (tmp_path / "b.cast.gz").write_bytes(gzip.compress(plain))
    with open_recording(tmp_path / "b.cast") as file:
        assert recorder.playable_size(file) == len(plain)
        assert recorder.is_incomplete(file, len(plain)) is not whole
        file.seek(0)
        assert file.read() == plain


def test_a_torn_or_damaged_one_is_an_error_of_the_system(tmp_path: Path) -> None:
    packed = gzip.compress(recorded(tmp_path, 100_000).read_bytes())
    for data in (b"", b"\x1f\x8b", packed[: len(packed) // 2], packed[:100] + b"\xff" * 100 + packed[200:]):
        (tmp_path / "bad.cast.gz").write_bytes(data)
        with pytest.raises(OSError):
            open_recording(tmp_path / "bad.cast")


# -- over HTTP --------------------------------------------------------------------------------------------------------


def packed_on(server: RunningServer) -> tuple[str, bytes, bytes]:
    """A packed recording: its name, its plain text, its bytes on the disk."""
    root = server.config.record_path
    made = Recorder(recording_path(root, "packed"), 80, 24)
    for number in range(5000):
        made.output(f"line {number} 日本\r\n".encode())
    made.close()
    plain = made.path.read_bytes()
    os.utime(made.path, (1_700_000_000, 1_700_000_000))
    assert pack(made.path, never)
    return str(made.path.relative_to(root)), plain, made.path.with_name("packed.cast.gz").read_bytes()


def test_who_takes_gzip_gets_the_file_as_it_lies(server: RunningServer) -> None:
    name, plain, packed = packed_on(server)
    response, body = play(server, name, Accept_Encoding="gzip")
    assert (response.status, body) == (200, packed)
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.headers["Content-Length"] == str(len(packed))
    assert response.headers["X-Recording"] == "complete"
    assert response.headers["Last-Modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    again, nothing = play(server, name, Accept_Encoding="gzip", If_None_Match=response.headers["ETag"])
    assert (again.status, nothing) == (304, b"")
    other, text = play(server, name)
    assert (other.status, text) == (200, plain)
    assert other.headers["ETag"] != response.headers["ETag"]
    assert other.headers["Content-Encoding"] is None
    assert other.headers["Content-Length"] == str(len(plain))
    head, nothing = play(server, name, "HEAD")
    assert (head.headers["Content-Length"], nothing) == (str(len(plain)), b"")


@pytest.mark.parametrize("wanted", ["0-9", "100000-100999", "150000-", "-50", "0-", "5-99999999"])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_a_range_is_one_of_the_plain_text(server: RunningServer, wanted: str, coding: str) -> None:
    name, plain, _ = packed_on(server)
    start, _, end = wanted.partition("-")
    expected = plain[int(start) : int(end) + 1 if end else None] if start else plain[-int(end) :]
    response, body = play(server, name, Range=f"bytes={wanted}", Accept_Encoding=coding)
    assert (response.status, body) == (206, expected)
    assert response.headers["Content-Range"].endswith(f"/{len(plain)}")
    missing, _ = play(server, name, Range=f"bytes={len(plain)}-")
    assert (missing.status, missing.headers["Content-Range"]) == (416, f"bytes */{len(plain)}")


def test_a_bomb_costs_no_memory(server: RunningServer) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(200)) + packer.flush()
    (server.config.record_path / "bomb.cast.gz").write_bytes(bomb)
    tracemalloc.start()
    try:
        response, body = play(server, "bomb.cast", Range="bytes=209000000-209000009")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (response.status, body, response.headers["X-Recording"]) == (206, bytes(10), "cut")
    assert peak < 16 * MIB


def test_a_torn_one_is_not_found_or_ends_short_and_is_no_traceback(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumpserver")
    name, _, packed = packed_on(server)
    torn = server.config.record_path / "torn.cast.gz"
    torn.write_bytes(b"\x1f\x8b no gzip")
    assert play(server, "torn.cast")[0].status == 404
    torn.write_bytes(packed[: len(packed) // 2])  # its head says how long it should be
    with pytest.raises(http.client.IncompleteRead):
        play(server, "torn.cast")
    assert play(server, name)[0].status == 200
    assert "Traceback" not in caplog.text


def test_the_player_plays_what_was_packed(packing: RunningServer, page: Page) -> None:
    with packing.connect() as terminal:
        terminal.type("printf 'packed-%s 日本\\n' $((1 + 1))\n")
        terminal.wait_for("packed-2")
        end_shell(terminal)
    packing.wait_settled()
    filename = packing.rows()[0]["filename"]
    assert not Path(filename).exists()
    page.goto(packing.player_url(filename))
    page.get_by_label("Speed").select_option("8")
    expect(page.locator("#player .ap-term")).to_contain_text("packed-2 日本", timeout=WAIT_MS)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    lines = download.value.path().read_text().splitlines()
    assert json.loads(lines[0])["version"] == 2
    assert download.value.suggested_filename == Path(filename).name
