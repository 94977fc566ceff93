"""What the keeper does about many sessions at a time, over again, and when something breaks that nobody foresaw."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import socket
import sqlite3
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

import jumpserver
from demo.cluster import StandIn
from hooks import HookError, Hooks, HooksSettings, SessionInfo, TokenAuthData, Unfinished
from recorder import RecordFolder
from tests.support import RunningServer, fill_up, keeping, nothing_left, small_disk, wait_until

ENDED = SessionInfo(
    "0", "/records/0.cast", TokenAuthData("web", "shop-0"), "10.0.0.9", 1.0, time.time(), "done", cluster="here"
)


class OurHooks(Hooks):
    """Keeps who was told; raises while ``failures`` are left."""

    def __init__(self, settings: HooksSettings) -> None:
        super().__init__(settings)
        self.told: list[str] = []
        self.failures = 0

    def on_logout(self, info: SessionInfo) -> None:
        if self.failures:
            self.failures -= 1
            raise HookError("not now")
        self.told.append(info.session_id)


def session(hooks: Hooks, name: str, **values: Any) -> SessionInfo:
    info = replace(ENDED, session_id=name, **values)
    hooks.ledger.login(replace(info, logout_at=None, reason=""))
    return info


def rows(folder: Path) -> dict[str, tuple[object, int]]:
    with contextlib.closing(sqlite3.connect(folder / "sessions.db")) as connection:
        found = connection.execute("SELECT session_id, logout_at, todo FROM sessions")
        return {name: (logout_at, todo) for name, logout_at, todo in found}


def settled(folder: Path) -> Callable[[], bool]:
    return lambda: all(logout_at and not todo for logout_at, todo in rows(folder).values())


def test_clusters_that_never_answer_keep_no_new_call_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooks._LONGEST_PAUSE_SECONDS", 0.0)

    def unreachable() -> tuple[int | None, bool]:
        tried.append(1)
        time.sleep(0.02)
        return None, True

    tried: list[int] = []
    with keeping(tmp_path, OurHooks) as (hooks, keeper):
        hooks.failures = 1 << 30
        for number in range(40 * 5):
            keeper.ended(session(hooks, f"old-{number}", cluster=f"dead-{number % 5}"), unreachable)
        wait_until(lambda: len(tried) > 400, "hang-ups that are tried again and again", 20)
        done = threading.Event()

        def quick() -> tuple[int | None, bool]:
            done.set()
            return 1, False

        before = len(tried)
        keeper.ended(session(hooks, "new"), quick)
        assert done.wait(10)
        assert len(tried) - before < 100  # of 200
        monkeypatch.undo()


def test_a_call_may_fail_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooks._LONGEST_PAUSE_SECONDS", 0.0)
    with keeping(tmp_path, OurHooks) as (hooks, keeper):
        hooks.failures = 1100  # beyond which 2.0**n is no float
        keeper.ended(session(hooks, "a"), None)
        wait_until(lambda: hooks.told, "the last try", 30)
        wait_until(settled(tmp_path), "the ledger")
        assert hooks.told == ["a"]


def test_what_was_not_tried_yet_is_tried_at_the_end_whatever_else_has_failed(tmp_path: Path) -> None:
    tried = threading.Event()

    def unreachable() -> tuple[int | None, bool]:
        tried.set()
        return None, True

    with keeping(tmp_path, OurHooks) as (hooks, keeper):
        info = session(hooks, "a")
        with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            keeper.ended(info, unreachable)
            assert tried.wait(5)
            time_of_retry = time.monotonic() + 2.1
            wait_until(lambda: time.monotonic() > time_of_retry, "the pause after the first try")
            finishing = threading.Thread(target=keeper.finish, args=(time.monotonic() + 10,))
            finishing.start()
            wait_until(lambda: keeper._deadline is not None)
            other.execute("ROLLBACK")
        finishing.join(5)
        assert not finishing.is_alive() and hooks.told == ["a"]
        finishing.join()


def test_a_session_that_has_ended_is_freed_before_its_hang_up_is_done(tmp_path: Path) -> None:
    with nothing_left(), StandIn() as cluster:
        server = RunningServer(tmp_path, cluster)
        try:
            terminal = server.connect()
            terminal.wait_for_event("session")
            (live,) = server.server.sessions.all()
            ended = weakref.ref(live)
            cluster.stop()
            del live
            terminal.drop()
            wait_until(lambda: server.rows()[0]["logout_at"], "the end")
            wait_until(lambda: not len(server.server.sessions), "the end of the session")
            wait_until(lambda: gc.collect() >= 0 and ended() is None, "the end of all that it held")
            assert server.rows()[0]["todo"]
        finally:
            server.stop(2.0)


def test_a_call_for_which_no_thread_can_be_had_is_told_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", no_thread)
    with socket.create_server(("127.0.0.1", 0)) as platform:
        url = f"http://127.0.0.1:{platform.getsockname()[1]}/"
        with pytest.raises(HookError, match="no thread"):
            Hooks(HooksSettings(tmp_path / "sessions.db", login_url=url)).on_login(ENDED)


# -- what stands in the ledger ----------------------------------------------------------------------------------------


def test_a_hang_up_that_nobody_can_do_any_more_is_forgotten(tmp_path: Path) -> None:
    with keeping(tmp_path, OurHooks) as (hooks, _):
        info = session(hooks, "a", auth=replace(ENDED.auth, cluster_cfg="its own"))
        hooks.ledger.save([Unfinished(info, tell=False, hang_up=True)])
    with keeping(tmp_path, OurHooks):
        wait_until(settled(tmp_path), "the ledger")


def test_a_row_that_cannot_be_understood_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with keeping(tmp_path, OurHooks) as (hooks, _):
        session(hooks, "odd")
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as connection, connection:
        connection.execute("UPDATE sessions SET logout_at = 1.0, todo = 'odd'")
    with keeping(tmp_path, OurHooks) as (hooks, keeper):
        wait_until(lambda: "Traceback" in caplog.text, "the word about it")
        keeper.ended(session(hooks, "a"), None)
        wait_until(lambda: hooks.told == ["a"], "the logout")
    assert set(rows(tmp_path)) == {"odd", "a"}


@pytest.mark.parametrize("damaged", ["[oops", "[]", "[1]", "7", '"x"', "[" * 100_000])
def test_a_lost_session_whose_fields_are_damaged_is_closed_from_its_columns(tmp_path: Path, damaged: str) -> None:
    with keeping(tmp_path, OurHooks) as (hooks, _):
        session(hooks, "odd")
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as connection, connection:
        connection.execute("UPDATE sessions SET info = ?", (damaged,))
    with keeping(tmp_path, OurHooks) as (hooks, _):
        wait_until(settled(tmp_path), "the ledger")
        assert hooks.told == ["odd"]


def test_a_lost_session_on_a_full_disk_has_its_digest_all_the_same(tmp_path: Path) -> None:
    with small_disk(tmp_path / "records"):
        folder = RecordFolder(tmp_path / "records")
        recording = tmp_path / "records" / "a.cast"
        recording.write_bytes(b'{"version": 2}\n' + b'[7.5, "o", "%b"]\n' % (b"x" * (4096 - 30)))
        assert recording.stat().st_size == 4096  # one block: the marker needs another
        fill_up(tmp_path / "records")
        chores = jumpserver.Chores(jumpserver.Config(folder=tmp_path), folder)
        found = chores.examine(replace(ENDED, filename="a.cast"))
        assert (found.size, found.logout_at) == (4096, 8.5)
        assert found.sha256 == hashlib.sha256(recording.read_bytes()).hexdigest()
