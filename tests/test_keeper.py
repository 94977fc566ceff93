"""No logout is lost: a locked or full disk, a platform that fails, a server that is killed, files that vanish."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable

import pytest

import jumpserver
from demo.cluster import StandIn
from tests.support import (
    ALLOW_LOOPBACK,
    Installation,
    Listener,
    Program,
    RunningServer,
    Terminal,
    answer_of,
    fill_up,
    nothing_left,
    small_disk,
    wait_until,
)


@contextlib.contextmanager
def running(folder: Path, cluster: StandIn, **options: Any) -> Iterator[RunningServer]:
    with nothing_left():
        server = RunningServer(folder, cluster, **options)
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def locked(server: Installation) -> Iterator[None]:
    """Another process, or a backup, that keeps the ledger locked."""
    db = server.config.hooks_settings().db
    with contextlib.closing(sqlite3.connect(db, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def opened(server: Installation, **claims: Any) -> Terminal:
    terminal = server.connect(**claims)
    terminal.wait_for_event("session")
    return terminal


def digest_of(row: dict[str, Any]) -> str:
    return hashlib.sha256(Path(row["filename"]).read_bytes()).hexdigest()


class Platform:
    """Keeps what it is told; answers with ``status``, or not at all while ``answering`` is clear."""

    def __init__(self) -> None:
        self.status = 204
        self.told: list[dict[str, Any]] = []
        self.answering = threading.Event()
        self.answering.set()
        platform = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                platform.answering.wait(20)
                platform.told.append({**body, "status": platform.status})
                self.send_response(platform.status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self.lines = f'[Platform]\nlogout_url = "http://127.0.0.1:{self._server.server_port}/"\n'
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.answering.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def platform() -> Iterator[Platform]:
    own = Platform()
    yield own
    own.close()


# -- the ledger cannot be written -------------------------------------------------------------------------------------


def test_sessions_that_end_while_the_ledger_is_locked_are_written_when_it_is_free(server: RunningServer) -> None:
    terminals = [opened(server) for _ in range(8)]
    with locked(server):
        for number, terminal in enumerate(terminals):
            terminal.type(f"exit {number}\n")
        for terminal in terminals:
            terminal.wait_end()
        wait_until(lambda: not len(server.server.sessions), "the end of the sessions, which wait for no ledger")
        assert [row["logout_at"] for row in server.rows()] == [None] * 8
    server.wait_settled()
    assert sorted(row["exit_code"] for row in server.rows()) == list(range(8))
    assert all(row["sha256"] == digest_of(row) for row in server.rows())


def test_a_login_while_the_ledger_is_locked_is_refused_in_words_and_leaves_no_file(server: RunningServer) -> None:
    with locked(server), server.connect() as terminal:
        assert terminal.wait_end()["reason"] == jumpserver.LEDGER_FAILED.reason
        assert terminal.close_code == 4500
    wait_until(lambda: not len(server.server.sessions), "the end of the session")
    assert (server.cluster.execs, server.recordings(), server.rows()) == ([], [], [])
    opened(server).drop()


def test_what_could_not_be_written_by_the_end_is_in_the_log_whole(
    tmp_path: Path, cluster: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumpserver")
    with running(tmp_path, cluster) as server:
        terminals = [opened(server) for _ in range(3)]
        terminals[0].type("exit 7\n")
        terminals[0].wait_end()
        with locked(server):
            started = time.monotonic()
            server.stop(4.0)
            assert time.monotonic() - started < 4.3
        for terminal in terminals:
            terminal.drop()
    lines = [record.getMessage() for record in caplog.records if "is not in the ledger" in record.getMessage()]
    unwritten = {row["session_id"]: row for row in (json.loads(line.partition(" row=")[2]) for line in lines)}
    open_rows = {row["session_id"]: row for row in server.rows() if row["logout_at"] is None}
    assert set(unwritten) == set(open_rows) and len(unwritten) >= 2
    for session_id, row in unwritten.items():
        assert row["sha256"] == digest_of(open_rows[session_id])
        assert row["logout_at"] >= row["login_at"] and "cluster_cfg" not in row


def test_a_full_disk_ends_sessions_and_their_rows_are_closed_once_there_is_room(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hooks._ROOM_BYTES", 0)
    with small_disk(tmp_path / "records", "4m"), running(tmp_path, cluster) as server:
        terminal = opened(server)
        quiet = opened(server)
        filling = fill_up(tmp_path / "records")
        terminal.type("seq 100000\n")
        assert terminal.wait_end()["reason"] == jumpserver.RECORDING_FAILED.reason
        quiet.drop()
        wait_until(lambda: not len(server.server.sessions), "the end of the sessions")
        filling.unlink()
        server.wait_settled()
        assert [row["sha256"] for row in server.rows()] == [digest_of(row) for row in server.rows()]
        assert server.rows()[0]["size"] == Path(server.rows()[0]["filename"]).stat().st_size


# -- the platform -----------------------------------------------------------------------------------------------------


def test_a_logout_that_the_platform_did_not_take_is_told_again(
    tmp_path: Path, cluster: StandIn, platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumpserver")
    platform.status = 500
    with running(tmp_path, cluster, more=platform.lines) as server:
        with opened(server) as terminal:
            terminal.type("exit 3\n")
            terminal.wait_end()
        wait_until(lambda: platform.told, "the first try")
        assert server.rows()[0]["exit_code"] == 3  # the ledger first
        platform.status = 204
        server.wait_settled()
    assert [told["status"] for told in platform.told] == [500, 204]
    assert platform.told[1]["exit_code"] == 3
    assert "Traceback" not in caplog.text and "HTTP status 500" in caplog.text


def test_a_logout_that_was_not_taken_is_told_by_the_next_server(
    tmp_path: Path, cluster: StandIn, platform: Platform
) -> None:
    platform.status = 503
    with running(tmp_path, cluster, more=platform.lines) as server:
        with opened(server, ticket="T-1") as terminal:
            terminal.type("exit 3\n")
            terminal.wait_end()
        wait_until(lambda: platform.told, "the first try")
    platform.status = 204
    again = Installation(tmp_path, cluster, more=platform.lines)
    with running(again.folder, cluster, more=platform.lines) as server:
        server.wait_settled()
    first, last = platform.told[0], platform.told[-1]
    assert (last["status"], last["exit_code"], last["extra"]["ticket"]) == (204, 3, "T-1")
    assert {**first, "status": 0, "server": ""} == {**last, "status": 0, "server": ""}
    assert first["chain"] and first["server"] != last["server"]


def test_a_platform_that_does_not_answer_delays_no_row_and_no_login(
    tmp_path: Path, cluster: StandIn, platform: Platform
) -> None:
    platform.answering.clear()
    with running(tmp_path, cluster, more=platform.lines) as server:
        for number in range(12):  # more than are called at once
            with opened(server) as terminal:
                terminal.type(f"exit {number}\n")
                terminal.wait_end()
        wait_until(lambda: all(row["logout_at"] for row in server.rows()), "the rows", 4)
        platform.answering.set()
        wait_until(lambda: len({told["session_id"] for told in platform.told}) == 12, "all twelve", 30)


OPERATORS = """
import threading
from hooks import Hooks

class OurHooks(Hooks):
    failed = []

    def on_logout(self, info):
        if len(self.failed) < 2:
            self.failed.append(info.session_id)
            raise RuntimeError("our chat is down")
        super().on_logout(info)
"""


def test_an_operators_hook_that_breaks_is_called_again_and_its_fault_logged(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hooks._LONGEST_PAUSE_SECONDS", 0.01)
    with running(tmp_path, cluster, hooks_file=OPERATORS) as server:
        with opened(server) as terminal:
            terminal.type("exit\n")
            terminal.wait_end()
        server.wait_settled()
    assert caplog.text.count("RuntimeError: our chat is down") == 2


# -- a server that was killed -----------------------------------------------------------------------------------------


def test_lost_sessions_are_closed_from_their_recordings_hung_up_and_told(tmp_path: Path, platform: Platform) -> None:
    with nothing_left(), StandIn(flavour="old") as cluster:
        with Program(tmp_path, cluster, more=platform.lines) as program:
            terminals = [opened(program) for _ in range(5)]
            for terminal in terminals:
                terminal.type("sleep 1000 & echo rea''dy\n")
                terminal.wait_for("ready\r\n")
            program.end(signal.SIGKILL)
            before = time.time()
            assert len(cluster.shells()) == 5
            program.start()
            program.wait_settled(30)
            for row in program.rows():
                assert (row["reason"], row["exit_code"], row["sha256"]) == ("lost", None, digest_of(row))
                assert row["size"] == Path(row["filename"]).stat().st_size and row["hung_up"] == 2
                assert row["login_at"] <= row["logout_at"] <= before + 0.5
            told = {told["session_id"]: told for told in platform.told}
            assert len(told) == len(platform.told) == 5
            assert all(entry["reason"] == "lost" and entry["hung_up"] == 2 for entry in told.values())
            with urllib.request.urlopen(f"{program.url}{program.play_path(program.recordings()[0])[1:]}") as response:
                assert response.headers["X-Recording"] == "cut"
            assert not cluster.shells() and not cluster.processes()
            assert program.end() == 0
            for terminal in terminals:
                terminal.drop()


def test_a_living_server_takes_care_of_the_sessions_of_one_that_died(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jumpserver")
    monkeypatch.setattr("hooks._ADOPT_SECONDS", 0.1)
    kubeconfig = cluster.kubeconfig()
    with Program(tmp_path, cluster, more=ALLOW_LOOPBACK) as program, running(tmp_path, cluster) as survivor:
        with opened(program), opened(program, cluster_cfg=kubeconfig, sub="bob"), opened(survivor) as alive:
            program.end(signal.SIGKILL)
            wait_until(lambda: sum(row["logout_at"] is not None for row in survivor.rows()) == 2, "the lost sessions")
            alive.type("echo a$((1+1))b\n")
            alive.wait_for("a2b")
            ends = {row["user"]: row["reason"] for row in survivor.rows() if row["logout_at"]}
            assert ends == {"alice": "lost", "bob": "lost"}
            wait_until(lambda: "its kubeconfig came with its token" in caplog.text, "the word about bob's shell")


def test_a_flood_that_is_killed_has_every_shown_byte_in_its_recording(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster) as program:
        for _ in range(5):
            terminal = program.connect(command=["sh", "-c", "while :; do printf '漢字かな交じり文🙂é'; done"])
            while len(terminal.output) < 300_000:
                terminal.step()
            program.end(signal.SIGKILL)
            with contextlib.suppress(OSError):
                while terminal.close_code is None:
                    terminal.step()
            recorded = (program.config.record_path / program.recordings()[-1]).read_bytes()
            whole = recorded[: recorded.rfind(b"\n") + 1].decode().splitlines()[1:]
            shown = "".join(event[2] for event in map(json.loads, whole) if event[1] == "o").encode()
            assert shown.startswith(terminal.output) and terminal.output
            terminal.drop()
            program.start()


# -- files that vanish ------------------------------------------------------------------------------------------------


def folder_removed(server: RunningServer) -> None:
    shutil.rmtree(server.config.record_path)


def recording_removed(server: RunningServer) -> None:
    (server.config.record_path / server.recordings()[-1]).unlink()


@pytest.mark.parametrize(("do", "ready"), [(folder_removed, 503), (recording_removed, 200)])
def test_a_session_whose_recording_vanished_ends_and_readiness_tells(
    tmp_path: Path,
    cluster: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    do: Callable[[RunningServer], None],
    ready: int,
) -> None:
    monkeypatch.setattr("hooks._LOOK_SECONDS", 0.05)
    monkeypatch.setattr("recorder._SYNC_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "jumpserver")
    with running(tmp_path, cluster, more='[Audit]\ndb = "ledger.db"\n') as server:
        assert answer_of(server, "readyz") == (200, "ready\n")
        terminal = opened(server)
        do(server)
        terminal.type("while :; do echo more; sleep 0.1; done\n")
        assert terminal.wait_end()["reason"] == jumpserver.RECORDING_FAILED.reason
        assert "cannot write" in caplog.text
        wait_until(lambda: answer_of(server, "readyz")[0] == ready, "the readiness")
        assert answer_of(server, "healthz") == (200, "alive\n")
        with server.connect() as another:
            reason = another.wait_end()["reason"] if ready == 503 else ""
        assert reason in ("", jumpserver.RECORDING_FAILED.reason)
        assert server.config.record_path.exists() == (ready == 200)
        server.wait_settled()


def test_an_unmounted_record_folder_ends_its_sessions(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hooks._LOOK_SECONDS", 0.05)
    monkeypatch.setattr("recorder._SYNC_SECONDS", 0.05)
    (tmp_path / "records").mkdir()
    with (
        small_disk(tmp_path / "records", "100m"),
        running(tmp_path, cluster, more='[Audit]\ndb = "ledger.db"\n') as server,
    ):
        terminal = opened(server)
        subprocess.run(["umount", "--lazy", tmp_path / "records"], check=True)
        terminal.type("while :; do echo more; sleep 0.1; done\n")
        assert terminal.wait_end()["reason"] == jumpserver.RECORDING_FAILED.reason
        wait_until(lambda: answer_of(server, "readyz")[0] == 503, "the readiness")
        assert list((tmp_path / "records").iterdir()) == []


def test_a_removed_ledger_refuses_logins_and_keeps_the_sessions(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hooks._LOOK_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "jumpserver")
    with running(tmp_path, cluster) as server:
        terminal = opened(server)
        server.config.hooks_settings().db.unlink()
        wait_until(lambda: answer_of(server, "readyz")[0] == 503, "the readiness")
        assert "sessions.db" in answer_of(server, "readyz")[1]
        with server.connect() as another:
            assert another.wait_end()["reason"] == jumpserver.LEDGER_FAILED.reason
        terminal.type("echo a$((1+1))b; exit 4\n")
        terminal.wait_for("a2b")
        terminal.wait_end()
        server.stop(3.0)
    (line,) = [record.getMessage() for record in caplog.records if "is not in the ledger" in record.getMessage()]
    assert json.loads(line.partition(" row=")[2])["exit_code"] == 4


# -- clocks -----------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_back_makes_no_session_end_before_it_began(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = opened(server)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 7200)
    terminal.type("exit\n")
    terminal.wait_end()
    wait_until(lambda: server.rows()[0]["logout_at"], "the end")
    (row,) = server.rows()
    assert 0 <= row["logout_at"] - row["login_at"] < 60


# -- one peer's cost is never another's wait --------------------------------------------------------------------------


class Gateway:
    """Passes connections on to the cluster, until ``freeze``: then those that come get no answer."""

    def __init__(self, cluster: StandIn) -> None:
        self._frozen = threading.Event()
        self._cluster = cluster
        self._listener = Listener(self._serve)
        self.freeze = self._frozen.set
        self.close = self._listener.close
        self.kubeconfig = cluster.kubeconfig().replace(f":{cluster.port}", f":{self._listener.port}")

    def _serve(self, near: socket.socket) -> None:
        if self._frozen.is_set():
            while near.recv(65536):
                pass
            return
        with socket.create_connection(("127.0.0.1", self._cluster.port)) as far:
            self._listener.adopt(far)
            back = threading.Thread(target=self._pass, args=(far, near))
            back.start()
            self._pass(near, far)
            back.join()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def test_a_cluster_that_does_not_answer_holds_up_no_hang_up_of_another(tmp_path: Path) -> None:
    with nothing_left(), StandIn(flavour="old") as cluster, StandIn(flavour="old") as slow:
        with contextlib.closing(Gateway(slow)) as gateway:
            server = RunningServer(tmp_path, cluster, more=ALLOW_LOOPBACK)
            try:
                stuck = [opened(server, cluster_cfg=gateway.kubeconfig, command=["sh"]) for _ in range(20)]
                quick = opened(server)
                gateway.freeze()
                for terminal in stuck:
                    terminal.drop()
                wait_until(lambda: sum(row["logout_at"] is not None for row in server.rows()) == 20, "their ends")
                quick.drop()
                wait_until(lambda: not cluster.shells(), "the hang-up that can be done", 4)
                assert len(slow.shells()) == 20
            finally:
                server.stop(2.0)
