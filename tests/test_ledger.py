"""The ledger: what a row says, what a crash leaves of it, and that a locked, full or removed file is told at once."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hooks import Denied, Ledger, LedgerError, SessionInfo, TokenAuthData, Unfinished
from tests.support import fill_up, nothing_left, small_disk, wait_until

KUBECONFIG = "apiVersion: v1\n"
AUTH = TokenAuthData("web", "shop-0", "main", KUBECONFIG, "alice", ("sh", "-i"), {"ticket": "T-1"}, "/srv", "hello")
INFO = SessionInfo("id-1", "/records/id-1.cast", AUTH, "10.0.0.9", 1000.5, cluster="10.0.0.1")
END: dict[str, Any] = {
    "logout_at": 1010.0,
    "reason": "it ended",
    "exit_code": 3,
    "bytes_out": 500,
    "bytes_in": 20,
    "size": 900,
}
ENDED = replace(INFO, **END, sha256="ab" * 32)
DONE = Unfinished(ENDED, tell=False, hang_up=False)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left():
        yield


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Ledger]:
    ledger = Ledger(folder / "sessions.db")
    ledger.open()
    try:
        yield ledger
    finally:
        ledger.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path) as own:
        yield own


def rows(folder: Path) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(folder / "sessions.db")) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM sessions ORDER BY session_id")]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another process, or a backup, that keeps the file locked."""
    with contextlib.closing(sqlite3.connect(folder / "sessions.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


ROW = {
    "session_id": "id-1",
    "filename": "/records/id-1.cast",
    "user": "alice",
    "namespace": "web",
    "pod_name": "shop-0",
    "container_name": "main",
    "remote_addr": "10.0.0.9",
    "login_at": 1000.5,
    "cluster": "10.0.0.1",
}


def test_a_row_is_written_at_login_and_completed_at_the_end(ledger: Ledger, tmp_path: Path) -> None:
    ledger.login(INFO)
    (row,) = rows(tmp_path)
    assert {name: row[name] for name in ROW} == ROW
    assert (row["logout_at"], row["reason"], row["exit_code"], row["sha256"]) == (None, "", None, None)
    ledger.save([DONE])
    (row,) = rows(tmp_path)
    assert {name: row[name] for name in (*ROW, *END, "sha256")} == {**ROW, **END, "sha256": "ab" * 32}


def test_a_session_is_open_from_its_login_to_its_end(ledger: Ledger) -> None:
    assert not ledger.is_open(INFO.session_id)
    ledger.login(INFO)
    assert ledger.is_open(INFO.session_id) and not ledger.is_open("another")
    ledger.save([DONE])
    assert not ledger.is_open(INFO.session_id)


def test_what_is_told_later_is_kept_only_as_long_as_it_is_needed(ledger: Ledger, tmp_path: Path) -> None:
    ledger.login(INFO)
    ledger.save([Unfinished(ENDED, tell=True, hang_up=False)])
    assert json.loads(rows(tmp_path)[0]["info"])["extra"] == {"ticket": "T-1"}
    ledger.save([DONE])
    assert (rows(tmp_path)[0]["info"], rows(tmp_path)[0]["todo"]) == (None, 0)


def test_no_kubeconfig_is_in_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    ledger.login(INFO)
    ledger.save([Unfinished(ENDED)])
    ledger.close()
    for file in tmp_path.glob("sessions.db*"):
        assert KUBECONFIG.strip().encode() not in file.read_bytes()


@pytest.mark.parametrize(
    "odd",
    [
        {"exit_code": 10**30, "hung_up": 10**20, "bytes_out": 1 << 64},
        {"exit_code": -(10**30)},
        {"reason": "half \ud800 of a pair", "sha256": "\udfff"},
        {"bytes_in": None, "size": None},
        {"logout_at": float("nan")},
    ],
    ids=str,
)
def test_no_odd_value_costs_the_row(ledger: Ledger, tmp_path: Path, odd: dict[str, Any]) -> None:
    ledger.login(INFO)
    ledger.login(replace(INFO, session_id="id-2"))
    ledger.save([Unfinished(replace(ENDED, **odd)), Unfinished(replace(ENDED, session_id="id-2"))])
    first, second = rows(tmp_path)
    assert (first["container_name"], second["reason"]) == ("main", "it ended")
    assert {"logout_at"} == set(odd) or first["logout_at"] == 1010.0


def test_odd_text_does_not_keep_a_session_out_of_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    ledger.login(replace(INFO, auth=replace(AUTH, user="a\ud800b", extra={"odd": "\ud800"}), remote_addr="\udc00"))
    assert rows(tmp_path)[0]["user"] == "a?b"


# -- sessions of servers that have died -------------------------------------------------------------------------------


def test_what_a_dead_server_left_open_is_taken_over_once(tmp_path: Path) -> None:
    with opened(tmp_path) as own:
        own.login(INFO)
        own.login(replace(INFO, session_id="id-2", filename="/records/id-2.cast"))
        own.login(replace(INFO, session_id="id-3"))
        own.save([DONE, Unfinished(replace(ENDED, session_id="id-3"), tell=True, hang_up=False)])
    with opened(tmp_path) as again, opened(tmp_path) as other:
        lost, untold = sorted(again.adopt(), key=lambda session: session.info.session_id)
        assert again.adopt() == other.adopt() == []
    assert (lost.info.session_id, lost.info.logout_at, lost.tell, lost.hang_up) == ("id-2", None, True, True)
    assert (untold.info.session_id, untold.tell, untold.hang_up) == ("id-3", True, False)
    assert untold.info.auth == replace(AUTH, cluster_cfg="")
    assert untold.info == replace(
        ENDED, session_id="id-3", auth=untold.info.auth, server=again.server, chain=untold.info.chain
    )


@pytest.mark.parametrize(
    ("auth", "with_token", "cluster"),
    [
        (AUTH, True, ""),
        (replace(AUTH, cluster="here", cluster_file=Path("/k")), False, "here"),
        (replace(AUTH, cluster_cfg=""), False, ""),
    ],
    ids=["the token's", "the operator's", "the server's own"],
)
def test_a_lost_session_says_where_its_kubeconfig_is(
    tmp_path: Path, auth: TokenAuthData, with_token: bool, cluster: str
) -> None:
    with opened(tmp_path) as own:
        own.login(replace(INFO, auth=auth))
    with opened(tmp_path) as again:
        (lost,) = again.adopt()
    assert (lost.with_token, lost.info.auth.cluster, lost.info.auth.directory) == (with_token, cluster, "/srv")


def test_the_rows_of_another_server_that_lives_stay_open(ledger: Ledger, tmp_path: Path) -> None:
    ledger.login(INFO)
    with opened(tmp_path) as other:
        assert other.adopt() == []
    assert rows(tmp_path)[0]["logout_at"] is None
    ledger.close()
    assert [file.name for file in tmp_path.glob("sessions.db.*")] == []


def test_a_removed_sign_of_life_comes_back(ledger: Ledger, tmp_path: Path) -> None:
    ledger.login(INFO)
    for file in tmp_path.glob("*.alive"):
        file.unlink()
    assert ledger.adopt() == []
    with opened(tmp_path) as other:
        assert other.adopt() == []


def test_a_server_never_takes_its_own_sessions_for_lost(ledger: Ledger) -> None:
    ledger.login(INFO)
    assert ledger._alive is not None
    fcntl.flock(ledger._alive, fcntl.LOCK_UN)
    assert ledger.adopt() == []


@pytest.mark.parametrize("name", ["sessions.db", "[a]*?.db"])
def test_the_sign_of_life_of_a_killed_server_goes_and_those_of_others_stay(tmp_path: Path, name: str) -> None:
    ledgers = [Ledger(tmp_path / name) for _ in range(2)]
    (tmp_path / f"{name}.dead.alive").touch()  # which nobody has locked
    (tmp_path / "a.db.other.alive").touch()
    for each in ledgers:
        each.open()
    assert [each.adopt() for each in ledgers] == [[], []]
    left = {path.name for path in tmp_path.glob("*.alive")}
    assert left == {"a.db.other.alive", *(f"{name}.{each.server}.alive" for each in ledgers)}
    for each in ledgers:
        each.close()


def test_a_server_waits_for_one_that_looks_who_lives_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hooks._ALONE_SECONDS", 0.1)
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    release = threading.Timer(5.0, fcntl.flock, (folder, fcntl.LOCK_UN))
    release.start()
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / "sessions.db").open()
    release.cancel()
    release.join()
    os.close(folder)


def test_servers_may_start_together(tmp_path: Path) -> None:
    for number in range(5):  # each time with a new ledger
        ledgers = [Ledger(tmp_path / f"{number}.db") for _ in range(8)]
        barrier = threading.Barrier(len(ledgers))

        def start(own: Ledger, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            own.open()

        with ThreadPoolExecutor(len(ledgers)) as pool:
            list(pool.map(start, ledgers))
        for own in ledgers:
            own.close()


def test_of_several_dead_servers_all_is_taken_over_or_nothing(tmp_path: Path) -> None:
    for number in range(3):
        with opened(tmp_path) as own:
            own.login(replace(INFO, session_id=f"id-{number}"))
    second_fails = (
        "CREATE TRIGGER second BEFORE UPDATE ON sessions WHEN (SELECT 1 FROM sessions WHERE server = NEW.server)"
        " BEGIN SELECT RAISE(ABORT, 'not now'); END"
    )
    with opened(tmp_path) as again, contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        connection.execute(second_fails)
        with pytest.raises(LedgerError, match="not now"):
            again.adopt()
        connection.execute("DROP TRIGGER second")
        assert len(again.adopt()) == 3


OLD_SCHEMA = """
CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY, filename TEXT NOT NULL, user TEXT NOT NULL, namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL, container_name TEXT NOT NULL, remote_addr TEXT NOT NULL, login_at REAL NOT NULL,
    logout_at REAL, reason TEXT NOT NULL DEFAULT '', exit_code INTEGER, bytes_out INTEGER, bytes_in INTEGER,
    sha256 TEXT, hung_up INTEGER%s);
INSERT INTO sessions (session_id, filename, user, namespace, pod_name, container_name, remote_addr, login_at%s)
VALUES ('old', '/records/old.cast', 'alice', 'default', 'demo', '', '10.0.0.1', 1.0%s);
"""
OLDER = OLD_SCHEMA % ("", "", "")
OLD = OLD_SCHEMA % (", server TEXT NOT NULL", ", server", ", 'dead'")


@pytest.mark.parametrize("schema", [OLDER, OLD], ids=["without server", "with server"])
def test_the_ledger_of_an_older_version_is_taken_over(tmp_path: Path, schema: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        connection.executescript(schema)
    with opened(tmp_path) as own:
        (lost,) = own.adopt()
        assert (lost.info.filename, lost.info.logout_at, lost.with_token) == ("/records/old.cast", None, True)
        own.login(INFO)
        own.save([Unfinished(replace(lost.info, logout_at=2.0, reason="lost"), tell=False, hang_up=False)])
    ends = {row["session_id"]: (row["reason"], row["logout_at"] is None) for row in rows(tmp_path)}
    assert ends == {"old": ("lost", False), INFO.session_id: ("", True)}


# -- a file that cannot be written ------------------------------------------------------------------------------------


def test_a_locked_ledger_fails_a_login_within_about_a_second_and_works_again(ledger: Ledger, tmp_path: Path) -> None:
    failed: list[float] = []

    def login(number: int) -> None:
        started = time.monotonic()
        with pytest.raises(LedgerError, match="locked"):
            ledger.login(replace(INFO, session_id=f"id-{number}"))
        failed.append(time.monotonic() - started)

    with locked(tmp_path), ThreadPoolExecutor(20) as pool:
        list(pool.map(login, range(20)))
    assert max(failed) < 5  # 20 that wait one after the other would take 10
    ledger.login(INFO)
    assert [row["session_id"] for row in rows(tmp_path)] == ["id-1"]


def test_those_in_line_wait_as_long_as_it_moves(ledger: Ledger, tmp_path: Path) -> None:
    barrier = threading.Barrier(40)

    def live(number: int) -> None:
        barrier.wait()
        for turn in range(10):
            info = replace(INFO, session_id=f"{number}-{turn}")
            ledger.login(info)
            ledger.save([Unfinished(replace(info, logout_at=2.0, reason="done"), tell=False, hang_up=False)])

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(live, range(40)))
    assert [row["reason"] for row in rows(tmp_path)] == ["done"] * 400


def test_those_behind_slow_ones_wait_as_long_as_it_moves(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooks._STUCK_SECONDS", 0.5)

    def slow(_: int) -> None:
        with ledger.transaction():
            threading.Event().wait(0.1)  # as on a slow disk

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(slow, range(12)))  # which takes more than a second


def test_a_locked_ledger_is_told_before_a_login_comes(ledger: Ledger, tmp_path: Path) -> None:
    ledger.check()
    with locked(tmp_path), pytest.raises(LedgerError, match="locked"):
        ledger.check()


def test_who_reads_the_ledger_keeps_no_login_out(ledger: Ledger, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
        ledger.login(INFO)
        assert reader.execute("SELECT count(*) FROM sessions").fetchone() == (0,)


def removed(file: Path) -> None:
    file.unlink()


def replaced(file: Path) -> None:
    shutil.copy(file, file.with_name("copy"))
    file.with_name("copy").rename(file)


def log_removed(file: Path) -> None:
    file.with_name(f"{file.name}-wal").unlink()


@pytest.mark.parametrize("do", [removed, replaced, log_removed])
def test_a_ledger_that_is_no_longer_at_its_path_takes_nothing(ledger: Ledger, tmp_path: Path, do: Any) -> None:
    ledger.login(INFO)
    do(tmp_path / "sessions.db")
    with pytest.raises(LedgerError, match=r"sessions\.db"):
        ledger.login(replace(INFO, session_id="x"))
    with pytest.raises(LedgerError, match=r"sessions\.db"):
        ledger.save([DONE])
    with pytest.raises(LedgerError, match=r"sessions\.db"):
        ledger.check()


def test_a_full_disk_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "small"
    with small_disk(folder), opened(folder) as own:
        for refused in (own.check, functools.partial(own.login, INFO)):
            with pytest.raises(LedgerError, match="less than 16 MiB"):
                refused()
        monkeypatch.setattr("hooks._ROOM_BYTES", 0)
        own.login(INFO)
        big = replace(ENDED, reason="x" * 100_000)
        filling = fill_up(folder)
        with pytest.raises(LedgerError, match=r"full|disk I/O"):
            own.save([Unfinished(big)])
        filling.unlink()
        own.save([Unfinished(big)])
        assert len(rows(folder)[0]["reason"]) == 100_000


def test_a_ledger_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / "no" / "sessions.db").open()


def test_the_ledger_is_closed_to_others(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        with opened(tmp_path) as own:
            own.login(INFO)
            assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("sessions.db*")} == {0o640}
    finally:
        os.umask(mask)


def test_a_session_cannot_begin_twice(ledger: Ledger) -> None:
    ledger.login(INFO)
    with pytest.raises(LedgerError):
        ledger.login(INFO)


def test_a_closed_ledger_takes_nothing(ledger: Ledger) -> None:
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.login(INFO)


# -- spent tokens -----------------------------------------------------------------------------------------------------


def test_spent_tokens_are_forgotten_a_day_after_they_have_expired(ledger: Ledger, tmp_path: Path) -> None:
    ledger.use_token("old", time.time() - 24 * 3600 - 1)
    ledger.use_token("new", time.time() + 60)
    ledger.use_token("newer", time.time() + 60)
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        assert sorted(connection.execute("SELECT jti FROM used_tokens")) == [("new",), ("newer",)]


def test_a_spent_token_stays_spent_when_the_clock_goes_back(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    ledger.use_token("once", now + 60)
    monkeypatch.setattr(time, "time", lambda: now + 23 * 3600)
    ledger.use_token("another", now + 24 * 3600)
    monkeypatch.setattr(time, "time", lambda: now)
    with pytest.raises(Denied, match="already used"):
        ledger.use_token("once", now + 60)


def test_a_token_that_expires_between_check_and_use_is_not_spent_twice(ledger: Ledger) -> None:
    ledger.use_token("late \ud800", time.time() - 0.1)
    with pytest.raises(Denied, match="already used"):
        ledger.use_token("late \ud800", time.time() - 0.1)


def test_of_many_threads_one_spends_a_token(ledger: Ledger) -> None:
    barrier, denied = threading.Barrier(16), []

    def use(_: int) -> None:
        barrier.wait()
        try:
            ledger.use_token("one", time.time() + 60)
        except Denied as exc:
            denied.append(exc)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, range(16)))
    wait_until(lambda: len(denied) == 15)
