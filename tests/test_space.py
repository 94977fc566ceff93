"""Space: a recording has a largest size, floods end before the disk is full, and a full disk tears nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import jumpserver
from demo.cluster import StandIn
from recorder import Recorder, RecordError, RecordFolder, find_recording
from tests.support import RunningServer, Terminal, another_server, fill_up, newest, nothing_left, small_disk, wait_until

MIB = 1 << 20
FLOOD = "yes 0123456789012345678901234567890123456789\n"


@contextlib.contextmanager
def running(folder: Path, cluster: StandIn, record: str = "") -> Iterator[RunningServer]:
    """A server that has gone round once, with these lines in ``[Record]``."""
    with nothing_left(), another_server(folder, cluster, record_lines=record) as server:
        wait_until((server.config.record_path / ".reserve").exists, "the reserve")
        yield server


def check_records(server: RunningServer) -> list[dict[str, Any]]:
    """Every row is closed with the digest of its file, of which every line can be played; returns the rows."""
    server.wait_settled()
    rows = server.rows()
    for row in rows:
        data = Path(row["filename"]).read_bytes()
        assert data.endswith(b"\n") and row["size"] == len(data)
        header, *_ = [json.loads(line) for line in data.splitlines()]
        assert header["version"] == 2
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
    return rows


def still_works(terminal: Terminal) -> None:
    terminal.type("echo still-$((40+2))\n")
    terminal.wait_for("still-42")


def is_ready(server: RunningServer) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}readyz", timeout=5):
            return True
    except urllib.error.HTTPError as exc:
        with exc:
            assert "MiB left" in exc.read().decode()
        return False


# -- one recording ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v1", [True, False])
def test_a_recording_that_grows_too_large_is_warned_of_and_ends_in_words(
    tmp_path: Path, cluster: StandIn, v1: bool
) -> None:
    with running(tmp_path, cluster, "max_bytes = 20_000_000") as server, server.connect(v1=v1) as terminal:
        terminal.type(FLOOD)
        terminal.wait_end()
        warning = "is at 90 % of its largest size"
        if v1:
            assert warning in terminal.wait_for_event("notice")["text"]
            assert sum(event["type"] == "notice" for event in terminal.events) == 1
            assert terminal.close_code == 4500
        else:
            assert terminal.output.count(warning.encode()) == 1
        assert jumpserver.RECORDING_TOO_BIG.reason.encode() in terminal.output
        (row,) = check_records(server)
        assert row["reason"] == jumpserver.RECORDING_TOO_BIG.reason
        assert 20_000_000 <= row["size"] < 21_000_000


def test_sizes_of_the_terminal_count_as_recorded(tmp_path: Path, cluster: StandIn) -> None:
    with running(tmp_path, cluster, "max_bytes = 4000") as server, server.connect() as terminal:
        terminal.wait_for_event("session")
        with contextlib.suppress(OSError):
            for number in range(200):
                terminal.resize(80 + number, 24)
        terminal.wait_end()
        assert check_records(server)[0]["reason"] == jumpserver.RECORDING_TOO_BIG.reason


def test_no_largest_size_is_no_limit(tmp_path: Path, cluster: StandIn) -> None:
    with running(tmp_path, cluster, "max_bytes = 0") as server, server.connect() as terminal:
        terminal.type("seq 100000; echo do''ne\n")
        terminal.wait_for("done")


# -- the disk ---------------------------------------------------------------------------------------------------------


def test_below_half_of_what_is_to_stay_free_floods_end_and_quiet_sessions_go_on(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hooks._ROOM_BYTES", 0)
    slow_flood = "while :; do seq 3000; sleep 0.05; done\n"
    with small_disk(tmp_path / "records", "80m"), running(tmp_path, cluster, f"min_free = {70 * MIB}") as server:
        quiet, flood = server.connect(), server.connect()
        quiet.wait_for_event("session")
        flood.wait_for_event("session")
        assert is_ready(server)
        with (tmp_path / "records" / "fill").open("wb") as file:
            file.write(bytes(42 * MIB))
        flood.type(slow_flood)
        flood.wait_end()
        assert flood.close_code == 4500
        assert jumpserver.DISK_FULL.reason.encode() in flood.output
        wait_until(lambda: not is_ready(server), "the readiness")
        with server.connect() as refused:
            assert refused.wait_end()["reason"] == jumpserver.RECORDING_FAILED.reason
        still_works(quiet)
        (tmp_path / "records" / "fill").unlink()
        wait_until(lambda: is_ready(server), "the readiness")
        quiet.type("exit\n")
        quiet.wait_end()
        rows = check_records(server)
        assert {row["reason"] for row in rows} == {jumpserver.DISK_FULL.reason, "the shell has ended"}
    said = [record for record in caplog.records if "space runs out" in record.getMessage()]
    assert len(said) == 1  # a minute


@pytest.mark.parametrize("already_full", [True, False])
def test_a_disk_that_floods_fill_tears_no_recording_and_no_row(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch, already_full: bool
) -> None:
    monkeypatch.setattr("hooks._ROOM_BYTES", 0)
    with small_disk(tmp_path / "records", "64m"), running(tmp_path, cluster) as server:
        quiet = server.connect()
        quiet.wait_for_event("session")
        floods = [server.connect() for _ in range(3)]
        for flood in floods:
            flood.wait_for_event("session")
        filling = tmp_path / "records" / "fill"
        if already_full:
            fill_up(tmp_path / "records")
        else:
            filling.touch()
        for flood in floods:
            flood.type(FLOOD)
        with ThreadPoolExecutor() as readers:
            reasons = {end["reason"] for end in readers.map(Terminal.wait_end, floods)}
        assert reasons <= {jumpserver.RECORDING_FAILED.reason, jumpserver.DISK_FULL.reason}
        still_works(quiet)
        quiet.type("exit\n")
        quiet.wait_end()
        rows = check_records(server)  # while the disk is still full
        assert [row["reason"] for row in rows].count("the shell has ended") == 1
        filling.unlink()
        for row in rows:
            Path(row["filename"]).unlink()
        wait_until((tmp_path / "records" / ".reserve").exists, "the reserve")
        wait_until(lambda: is_ready(server), "the readiness")


def test_hardly_anything_left_gives_the_reserve_back_before_anybody_has_failed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "records", "8m"):
        folder = RecordFolder(tmp_path / "records")
        folder.keep_reserve()
        filling = fill_up(tmp_path / "records")
        assert folder.free() == 0
        folder.keep_reserve()
        assert folder.is_full and folder.free() >= 8 * MIB // 50 - 4096
        folder.keep_reserve()
        assert folder.is_full  # what was given back is no room for another reserve
        filling.unlink()
        folder.keep_reserve()
        assert not folder.is_full


def test_on_a_full_disk_small_lines_are_recorded_and_large_ones_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path / "records", "8m"):
        folder = RecordFolder(tmp_path / "records")
        folder.keep_reserve()
        quiet = Recorder(tmp_path / "records" / "quiet.cast", 80, 24, folder=folder)
        flood = Recorder(tmp_path / "records" / "flood.cast", 80, 24, folder=folder)
        fill_up(tmp_path / "records")
        for _ in range(100):
            quiet.output(b"x" * 900)
        with pytest.raises(RecordError, match="No space left"):
            flood.output(b"y" * 20_000)
        for recorder in (quiet, flood):
            assert recorder.close() == hashlib.sha256(recorder.path.read_bytes()).hexdigest()
        assert quiet.path.read_bytes().count(b"\n") == 101


def test_servers_on_one_folder_share_the_reserve(tmp_path: Path) -> None:
    one, other = RecordFolder(tmp_path / "records"), RecordFolder(tmp_path / "records")
    one.keep_reserve()
    other.keep_reserve()
    (reserve,) = (tmp_path / "records").iterdir()
    size = reserve.stat().st_size
    assert reserve.stat().st_blocks * 512 >= size == 16 * MIB
    os.truncate(reserve, 5)  # what a server that died in the middle leaves
    other.keep_reserve()
    assert reserve.stat().st_size == size
    with small_disk(tmp_path / "small", "8m"):
        one, other = RecordFolder(tmp_path / "small"), RecordFolder(tmp_path / "small")
        one.keep_reserve()
        fill_up(tmp_path / "small")
        one.give_back()
        other.keep_reserve()
        assert other.is_full


def test_the_reserve_is_no_recording(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path)
    folder.keep_reserve()
    assert (tmp_path / ".reserve").exists()
    with pytest.raises(RecordError, match="no such recording"):
        find_recording(tmp_path, ".reserve")


def test_a_folder_in_the_place_of_the_record_folder_gets_no_reserve(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path / "records")
    (tmp_path / "records").rename(tmp_path / "old")
    (tmp_path / "records").mkdir()
    with pytest.raises(RecordError, match="not the one of the start"):
        folder.keep_reserve()
    assert list((tmp_path / "records").iterdir()) == []


# -- floods -----------------------------------------------------------------------------------------------------------


def test_a_flood_is_told_once_with_user_and_pod(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumpserver")
    monkeypatch.setattr("jumpserver.FLOOD_SECONDS", 0.5)
    monkeypatch.setattr("jumpserver.FLOOD_BYTES", 100_000)

    def told() -> list[str]:
        return [line for line in caplog.messages if line.startswith("flood ")]

    with running(tmp_path, cluster) as server, server.connect() as quiet, server.connect() as flood:
        quiet.wait_for_event("session")
        flood.type(FLOOD)
        before = newest(server).stat().st_size
        while not told():
            flood.step()
        ticks: list[None] = []
        server.server.clock.ticks.append(lambda: ticks.append(None))
        while len(ticks) < 3:
            flood.step()
        (line,) = told()
        assert f"session={flood.wait_for_event('session')['id']} user=alice pod=default/demo" in line
        assert newest(server).stat().st_size > before
