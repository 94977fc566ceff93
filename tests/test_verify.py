"""``verify`` and ``retire``: what they find, what they remove, and what they leave alone."""

from __future__ import annotations

import contextlib
import os
import pty
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import jumpserver
from demo.cluster import StandIn
from hooks import Entry, Ledger, Proof, SessionInfo, TokenAuthData, Unfinished
from recorder import Recorder, pack, recording_path
from tests.support import Program, end_shell, nothing_left, run_program, wait_until

DAY = 24 * 3600.0
AUTH = TokenAuthData("web", "shop-0", user="alice")


class Site:
    """A record folder and a ledger, with the sessions that a test needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = folder / "records"
        self.records.mkdir()
        (folder / "jumpserver.toml").write_text("")
        self.ledger = Ledger(self.records / "sessions.db")

    def add(self, name: str, *, days: float = 0.0, ended: bool = True, packed: bool = False) -> Path:
        """A session that began, and ended, so many days ago; returns its recording."""
        path = recording_path(self.records, name)
        recorder = Recorder(path, 80, 24)
        recorder.output(f"hello {name}\r\n".encode())
        sha256, at = recorder.close(), time.time() - days * DAY
        info = SessionInfo(name, str(path), AUTH, "10.0.0.9", at)
        self.ledger.login(info)
        if ended:
            end = replace(info, logout_at=at + 1, reason="it ended", size=recorder.bytes_written, sha256=sha256)
            self.ledger.save([Unfinished(end, tell=False, hang_up=False)])
        if packed:
            assert pack(path, lambda: False)
            return path.with_name(f"{path.name}.gz")
        return path

    def run(self, *arguments: str) -> tuple[int, list[str]]:
        """Exit status and lines of a command."""
        done = run_program(*arguments, "-jumpserver", self.folder / "jumpserver.toml")
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    def faults(self, *arguments: str) -> list[str]:
        """What ``verify`` finds."""
        status, lines = self.run("verify", *arguments)
        assert status == (len(lines) > 1)
        assert lines[-1].endswith(f": {len(lines) - 1} faults" if status else ": good")
        return lines[:-1]

    def entries(self, kind: str) -> list[Entry]:
        """The entries of that kind."""
        return [entry for entry in self.ledger.entries() if entry.kind == kind]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with nothing_left():
        site = Site(tmp_path)
        site.ledger.open()
        with contextlib.closing(site.ledger):
            yield site


def test_what_nobody_touched_is_good(site: Site) -> None:
    site.add("a")
    site.add("b", packed=True)
    site.add("c", ended=False)
    assert site.run("verify") == (0, ["5 entries, 3 sessions, 3 recordings read, 0 retired: good"])
    assert site.faults("--head", site.ledger.head()) == []


def changed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"hello", b"hallo"))


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("attack", "fault"),
    [
        (changed, "was changed"),
        (longer, "is longer: {more} bytes, not {size}"),
        (shorter, "is shorter: {less} bytes, not {size}"),
        (Path.unlink, "is missing"),
    ],
)
def test_a_recording_that_is_not_as_it_was_is_named(site: Site, attack: object, fault: str) -> None:
    path = site.add("a")
    site.add("b")
    size = path.stat().st_size
    assert callable(attack)
    attack(path)
    said = fault.format(size=size, more=size + 1, less=size - 1)
    assert site.faults() == [f"the recording of session a, {path}, {said}"]


def test_swapped_recordings_are_found(site: Site) -> None:
    a, b = site.add("a"), site.add("b")
    a.rename(site.folder / "aside")
    b.rename(a)
    (site.folder / "aside").rename(b)
    assert [fault.rpartition(", ")[2] for fault in site.faults()] == ["was changed", "was changed"]


def test_a_packed_recording_that_is_torn_or_no_longer_packed_is_found(site: Site) -> None:
    torn, swapped = site.add("a", packed=True), site.add("b", packed=True)
    os.truncate(torn, torn.stat().st_size - 6)
    swapped.write_bytes(site.add("c", packed=True).read_bytes())
    first, second = site.faults()
    assert first.startswith("the recording of session a, ") and "cannot be read" in first
    assert second == f"the recording of session b, {str(swapped)[:-3]}, was changed"


def test_the_recording_of_an_open_session_only_has_to_be_there(site: Site) -> None:
    longer(site.add("a", ended=False))
    assert site.faults() == []
    site.add("b", ended=False).unlink()
    assert [fault.rpartition(", ")[2] for fault in site.faults()] == ["is missing"]


def test_recordings_that_no_session_has_are_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    own = site.add("a")
    strange = [site.records / "strange.cast", site.records / "a.cast", own.with_name("b.cast.gz")]
    for path in strange:
        path.write_bytes(own.read_bytes())
    (site.records / "notes.txt").write_text("no recording")
    assert site.faults() == []  # which may be of sessions that are about to begin
    monkeypatch.setattr(jumpserver, "_LOGIN_SECONDS", 0.0)
    found = list(jumpserver._unknown_recordings(site.ledger, site.records))
    assert sorted(found) == sorted(f"{path} is the recording of no session in the ledger" for path in strange)


def test_faults_of_the_chain_come_first_and_a_head_is_looked_for(site: Site) -> None:
    path = site.add("a")
    site.add("b")
    head = site.ledger.head()
    site.ledger.close()
    path.unlink()
    with contextlib.closing(sqlite3.connect(site.ledger.path)) as connection, connection:
        connection.execute("UPDATE entries SET json = replace(json, 'alice', 'bob') WHERE number = 1")
        connection.execute("DELETE FROM entries WHERE number = 4")
    faults = site.faults("--head", head)
    assert faults[0] == "entry 1 (login) does not follow the one before it, 0"
    assert faults[1].startswith(f"the head {head} is not in the chain, which ends with 3:")
    assert any("session a" in fault and "is missing" in fault for fault in faults)


def test_since_leaves_out_older_recordings_and_no_part_of_the_chain(site: Site) -> None:
    site.add("a", days=3).unlink()
    path = site.add("b")
    path.unlink()
    assert site.faults("--since", "2d") == [f"the recording of session b, {path}, is missing"]
    assert len(site.faults()) == 2
    with site.ledger.transaction() as db:
        db.execute("UPDATE sessions SET reason = 'lunch' WHERE session_id = 'a'")
    assert len(site.faults("--since", "2d")) == 2


def test_control_characters_of_a_row_reach_no_terminal(site: Site) -> None:
    site.add("\x1b]0;gotcha").unlink()
    (fault,) = site.faults()
    assert "\x1b" not in fault and "gotcha" in fault


def test_without_a_ledger_there_is_nothing_to_be_proud_of(site: Site) -> None:
    assert site.faults() == ["the chain is empty"]


def test_a_ledger_that_cannot_be_opened_is_status_2(tmp_path: Path) -> None:
    (tmp_path / "jumpserver.toml").write_text("[Audit]\ndb = 'no/sessions.db'")
    for command in (("verify",), ("retire", "--older-than", "1d")):
        done = run_program(*command, "-jumpserver", tmp_path / "jumpserver.toml")
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize("arguments", [("retire",), ("retire", "--older-than", "180"), ("verify", "--since", "now")])
def test_wrong_arguments_are_status_2(site: Site, arguments: tuple[str, ...]) -> None:
    assert run_program(*arguments, "-jumpserver", site.folder / "jumpserver.toml").returncode == 2


# -- the progress -----------------------------------------------------------------------------------------------------


def test_progress_is_shown_on_a_terminal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("a").unlink()
    monkeypatch.setattr(jumpserver.Progress, "_EVERY_SECONDS", 0.0)
    master, slave = pty.openpty()
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdout", terminal)
        assert jumpserver.main(["verify", "-jumpserver", str(site.folder / "jumpserver.toml")]) == 1
        monkeypatch.undo()
    data = bytearray()
    with open(master, "rb", buffering=0) as shown, contextlib.suppress(OSError):  # at the end
        while True:
            data += shown.read(4096)
    said = data.decode()
    assert f"\r\x1b[K[{'#' * 15}{' ' * 15}] 1 entries\r\x1b[K[{'#' * 30}] 2 entries" in said
    assert "\r\x1b[Kthe recording of session a, " in said and said.endswith("\r\x1b[K")


def test_the_steps_of_a_proof_lead_to_the_end(site: Site) -> None:
    site.add("a")
    site.add("b")
    steps: list[tuple[str, int, int]] = []
    proof = Proof(site.ledger, lambda info: (0, ""), step=lambda *step: steps.append(step))
    list(proof.findings())
    assert steps == [*(("entries", n, 4) for n in (1, 2, 3, 4)), ("sessions", 1, 2), ("sessions", 2, 2)]


# -- retire -----------------------------------------------------------------------------------------------------------


def test_old_recordings_go_and_the_chain_says_so(site: Site) -> None:
    paths = [site.add("a", days=200), site.add("b", days=181, packed=True)]
    young = [site.add("c", days=179), site.add("d", days=200, ended=False)]
    status, (line,) = site.run("retire", "--older-than", "180d")
    assert (status, line) == (0, "2 recordings retired, 0.0 MiB")
    assert [path.exists() for path in (*paths, *young)] == [False, False, True, True]
    assert sorted(entry.session_id for entry in site.entries("retired")) == ["a", "b"]
    assert site.entries("retired")[0].values["sha256"]
    assert site.run("verify")[1][-1].endswith("2 recordings read, 2 retired: good")
    assert site.run("retire", "--older-than", "180d")[1] == ["0 recordings retired, 0.0 MiB"]
    assert len(site.entries("retired")) == 2


def test_lost_and_retired_recordings_are_told_apart(site: Site) -> None:
    lost = site.add("a", days=200)
    lost.unlink()
    site.add("b", days=200)
    site.run("retire", "--older-than", "180d")
    assert site.faults() == [f"the recording of session a, {lost}, is missing"]


def test_a_retired_recording_that_is_still_there_is_named_and_goes_the_next_time(site: Site) -> None:
    path = site.add("a", days=200)
    site.ledger.append("retired", "a")
    assert site.faults() == [f"the recording of session a, {path}, was retired, and is still there"]
    site.run("retire", "--older-than", "180d")
    assert site.faults() == []


def test_nothing_outside_the_root_and_no_other_sessions_recording_is_removed(site: Site) -> None:
    outside = site.folder / "outside.cast"
    outside.write_text("mine")
    is_open = site.add("open", days=200, ended=False)
    site.add("link", days=200)
    for number, name in enumerate((str(outside), "../outside.cast", str(is_open), "sessions.db")):
        site.add(f"s{number}", days=200).unlink()
        with site.ledger.transaction() as db:
            db.execute("UPDATE sessions SET filename = ? WHERE session_id = ?", (name, f"s{number}"))
    link = recording_path(site.records, "link")
    link.unlink()
    link.symlink_to(is_open)
    assert site.run("retire", "--older-than", "1d") == (0, ["0 recordings retired, 0.0 MiB"])
    assert outside.exists() and is_open.exists() and site.ledger.path.exists()


# -- beside a server --------------------------------------------------------------------------------------------------


def test_what_a_server_writes_is_good_while_it_runs_and_after(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster) as server:
        configuration = ("-jumpserver", server.folder / "jumpserver.toml")
        with server.connect() as ended, server.connect() as terminal:
            ended.wait_for_event("session")
            end_shell(ended)
            terminal.wait_for_event("session")
            wait_until(lambda: [row["logout_at"] is None for row in server.rows()].count(True) == 1)
            done = run_program("verify", *configuration)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == "3 entries, 2 sessions, 2 recordings read, 0 retired: good\n"
            end_shell(terminal)
        server.wait_settled()
        server.end()
        head = server.log().rpartition("chain head=")[2].split()[0]
    done = run_program("verify", "--head", head, *configuration)
    assert (done.returncode, done.stdout) == (0, "4 entries, 2 sessions, 2 recordings read, 0 retired: good\n")
