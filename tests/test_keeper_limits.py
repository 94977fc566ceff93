"""The keeper's calls: which may run when, how often they are tried again, and when they are given up."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import hooks
from hooks import HookError, Hooks, HooksSettings, Keeper, SessionInfo, TokenAuthData
from jumpserver import Chores, Config
from recorder import RecordFolder
from tests.support import WAIT_SECONDS, nothing_left, wait_until, wait_until_still
from tests.test_ledger import locked, rows

INFO = SessionInfo("id-0", "/records/id-0.cast", TokenAuthData("web", "shop-0"), "10.0.0.9", time.time())


class Told(Hooks):
    """Notes each call; fails ``failures`` times, and waits for ``go`` first."""

    def __init__(self, folder: Path) -> None:
        super().__init__(HooksSettings(folder / "sessions.db"))
        self.told: list[SessionInfo] = []
        self.failures = 0
        self.go = threading.Event()
        self.go.set()
        self.inside = 0

    def on_logout(self, info: SessionInfo) -> None:
        self.told.append(info)
        self.inside += 1
        self.go.wait(WAIT_SECONDS)
        self.inside -= 1
        if len(self.told) <= self.failures:
            raise HookError("the platform is down")


class Kept:
    """A keeper with a real ledger and record folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hooks = Told(folder)
        self.hooks.open()
        self.keeper = Keeper(self.hooks, Chores(Config(folder=folder), RecordFolder(folder / "records")))

    def running(self, peer: str) -> int:
        """How many calls to that peer are under way."""
        with self.keeper._changed:
            return sum(call.running and call.peer == peer for job in self.keeper._jobs for call in job.calls)

    def end(self, number: int = 0, hang_up: hooks.HangUp | None = None, cluster: str = "", late: float = 0) -> None:
        """A session begins and ends."""
        info = replace(INFO, session_id=f"id-{number}", cluster=cluster)
        self.hooks.ledger.login(info)
        self.keeper.ended(replace(info, logout_at=time.time() - late, reason="over"), hang_up)

    def settled(self) -> bool:
        return all(row["logout_at"] and not row["todo"] for row in rows(self.folder))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Kept]:
    caplog.set_level(logging.INFO, "jumpserver")
    monkeypatch.setattr(hooks, "_TICK_SECONDS", 0.02)
    with nothing_left():
        own = Kept(tmp_path)
        own.keeper.start()
        try:
            yield own
        finally:
            own.hooks.go.set()
            own.keeper.finish(time.monotonic() + WAIT_SECONDS)
            own.hooks.close()


def test_the_platform_is_told_of_what_the_ledger_has_and_of_nothing_else(kept: Kept) -> None:
    platforms: list[int] = []  # calls that run when a hang-up does

    def hang_up() -> tuple[int, bool]:
        platforms.append(kept.running("platform"))
        return 2, False

    sessions = [replace(INFO, session_id=f"id-{number}") for number in range(3)]
    for info in sessions:
        kept.hooks.ledger.login(info)
    with locked(kept.folder):
        for number, info in enumerate(sessions):
            kept.keeper.ended(replace(info, logout_at=time.time()), hang_up)
            wait_until(lambda: len(platforms) == number + 1, "a hang-up, which needs no ledger")  # noqa: B023
            wait_until(lambda: not kept.running("cluster "), "its end")
        assert platforms == [0, 0, 0] and not kept.hooks.told
    wait_until(kept.settled)
    assert [info.hung_up for info in kept.hooks.told] == [2, 2, 2]


def test_the_calls_of_one_session_come_one_after_the_other(kept: Kept) -> None:
    begun, go = threading.Event(), threading.Event()

    def hang_up() -> tuple[int, bool]:
        begun.set()
        go.wait(WAIT_SECONDS)
        return 1, False

    kept.end(0, hang_up)
    assert begun.wait(WAIT_SECONDS)
    wait_until(lambda: rows(kept.folder)[0]["logout_at"], "the row")
    kept.end(1)
    wait_until(lambda: kept.hooks.told, "the other session's news")
    assert [info.session_id for info in kept.hooks.told] == ["id-1"]
    go.set()
    wait_until(kept.settled)
    assert [info.hung_up for info in kept.hooks.told] == [None, 1]


def test_so_many_calls_run_at_once_of_one_peer_and_of_all(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_CALLS_AT_ONCE", 5)
    monkeypatch.setattr(hooks, "_CALLS_A_PEER", 2)
    lock, go, running, most = threading.Lock(), threading.Event(), [0], [0]

    def hang_up() -> tuple[int, bool]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        go.wait(WAIT_SECONDS)
        with lock:
            running[0] -= 1
        return 0, False

    for number in range(4):
        kept.end(number, hang_up, "a")
    wait_until(lambda: running[0] == 2)
    for number in range(4, 16):
        kept.end(number, hang_up, f"cluster-{number}")
    wait_until(lambda: running[0] == 5)
    wait_until(lambda: all(row["logout_at"] for row in rows(kept.folder)), "the rows, after which calls are started")
    go.set()
    wait_until(kept.settled)
    assert most[0] == 5


def test_pauses_between_tries_grow_up_to_a_bound(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_LONGEST_PAUSE_SECONDS", 0.05)
    kept.hooks.failures = 5  # with pauses of 2, 4, 8 seconds and so on it would take more than a minute
    begin = time.monotonic()
    kept.end()
    wait_until(kept.settled)
    assert len(kept.hooks.told) == 6
    assert time.monotonic() - begin >= 5 * 0.05


def test_the_first_pause_is_short(kept: Kept) -> None:
    kept.hooks.failures = 1
    kept.end()
    wait_until(kept.settled)
    assert len(kept.hooks.told) == 2


def test_what_is_older_than_a_day_is_not_tried_again(kept: Kept) -> None:
    kept.hooks.failures = 100
    kept.end(late=25 * 3600)
    wait_until(kept.settled)
    assert len(kept.hooks.told) == 1


def test_a_trouble_is_told_when_it_comes_and_when_it_goes(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = count_calls(kept.keeper._chores, "check", monkeypatch)
    monkeypatch.setattr(hooks, "_LOOK_SECONDS", 0.01)
    records = kept.folder / "records"
    records.rename(kept.folder / "away")
    wait_until(lambda: kept.keeper.trouble)
    wait_until(lambda: len(looks) > 10)
    (kept.folder / "away").rename(records)
    wait_until(lambda: not kept.keeper.trouble)
    seen = len(looks)
    wait_until(lambda: len(looks) > seen + 5)
    messages = [record.getMessage().split()[0] for record in caplog.records]
    assert messages == ["trouble", "ready"]


def test_a_trouble_that_is_known_is_not_told_again_for_each_logout(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "_LOOK_SECONDS", 0.01)
    kept.hooks.ledger.login(INFO)
    with locked(kept.folder):
        wait_until(lambda: kept.keeper.trouble)
        tried = count_calls(kept.hooks.ledger, "save", monkeypatch)
        kept.keeper.ended(replace(INFO, logout_at=time.time()), None)
        wait_until(lambda: len(tried) > 1)
    wait_until(kept.settled)
    assert not [record for record in caplog.records if record.getMessage().startswith("error")]


def count_calls(owner: object, name: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of the calls of a method, from now on."""
    real, calls = getattr(owner, name), list[float]()

    def counted(*args: object) -> object:
        calls.append(time.monotonic())
        return real(*args)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_a_fault_while_a_row_is_written_costs_neither_the_row_nor_the_keeper(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(kept.hooks.ledger, "save", lambda sessions: sessions[1 << 9])
        kept.end()
        wait_until(lambda: "IndexError" in caplog.text)
    wait_until(kept.settled)


def test_a_thread_that_cannot_be_had_is_asked_for_again(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[threading.Thread] = []
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "keeper-call" and len(refused) < 3:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    kept.end()
    wait_until(kept.settled)
    assert len(refused) == 3 and len(kept.hooks.told) == 1


def test_the_end_waits_for_one_try_of_each_and_for_no_second_one(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_CALLS_A_PEER", 1)  # so that one has not begun yet
    kept.hooks.failures = 100
    kept.hooks.go.clear()
    kept.end(0)
    wait_until(lambda: kept.hooks.inside)
    kept.end(1)
    begin = time.monotonic()
    threading.Timer(0.1, kept.hooks.go.set).start()
    kept.keeper.finish(begin + WAIT_SECONDS)
    assert sorted(info.session_id for info in kept.hooks.told) == ["id-0", "id-1"]
    assert time.monotonic() - begin < WAIT_SECONDS / 2
    assert [row["todo"] for row in rows(kept.folder)] == [1, 1]  # for the next server


def test_the_end_tries_nothing_a_second_time(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_LONGEST_PAUSE_SECONDS", 0.0)
    kept.hooks.failures = 1 << 30
    go = threading.Event()

    def hang_up() -> tuple[int, bool]:
        go.wait(2 * WAIT_SECONDS)
        return 1, False

    kept.end(0)
    wait_until(lambda: len(kept.hooks.told) > 3, "several tries")
    kept.end(1, hang_up)
    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(kept.keeper.finish, time.monotonic() + 3 * WAIT_SECONDS)
        wait_until(lambda: kept.keeper._deadline)
        try:
            wait_until_still(lambda: len(kept.hooks.told))
        finally:
            go.set()
        finishing.result(WAIT_SECONDS)
    assert kept.hooks.told[-1].session_id == "id-1"


def test_the_end_comes_in_time_whatever_is_under_way(kept: Kept) -> None:
    kept.hooks.go.clear()
    kept.end()
    wait_until(lambda: kept.hooks.inside)
    begin = time.monotonic()
    kept.keeper.finish(begin + 0.3)
    assert time.monotonic() - begin < 3
    wait_until(lambda: not kept.keeper._thread.is_alive(), "the end of the thread, too")


def test_a_logout_after_the_end_is_in_the_log(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    kept.hooks.ledger.login(INFO)
    kept.keeper.finish(time.monotonic() + WAIT_SECONDS)
    kept.keeper.ended(replace(INFO, logout_at=time.time(), reason="too late"), None)
    assert "this logout is not in the ledger" in caplog.text and "too late" in caplog.text


def test_a_keeper_that_never_began_can_be_finished(tmp_path: Path) -> None:
    with nothing_left(), contextlib.closing(Told(tmp_path)) as told:
        told.open()
        keeper = Keeper(told, Chores(Config(folder=tmp_path), RecordFolder(tmp_path / "records")))
        begin = time.monotonic()
        keeper.finish(begin + WAIT_SECONDS)
        assert time.monotonic() - begin < 1
