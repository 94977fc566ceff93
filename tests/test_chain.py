"""The chain: who changes, removes, swaps or adds anything behind its back is found; where its head is told."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hooks import (
    Command,
    CommandQuery,
    HookError,
    Hooks,
    HooksSettings,
    Ledger,
    LedgerError,
    Proof,
    SessionInfo,
    SessionQuery,
    TokenAuthData,
    Unfinished,
)
from tests.support import keeping, nothing_left, opened_ledger, wait_until

INFO = SessionInfo("id-0", "/records/id-0.cast", TokenAuthData("web", "shop-0", user="alice"), "10.0.0.9", 1000.5)
ENDED = replace(INFO, logout_at=1010.0, reason="it ended", exit_code=0, size=900, sha256="ab" * 32)
OLD_LEDGERS = sorted((Path(__file__).parent / "ledgers").glob("*.sql"))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left():
        yield


@contextlib.contextmanager
def database(folder: Path) -> Iterator[sqlite3.Connection]:
    """The file as an intruder has it."""
    with contextlib.closing(sqlite3.connect(folder / "sessions.db")) as connection, connection:
        connection.row_factory = sqlite3.Row
        yield connection


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Three sessions, of which two have ended; entries 1 to 3, 5 and 6 are theirs, 4 is a replay."""
    with opened_ledger(tmp_path) as own:
        for number in range(3):
            own.login(replace(INFO, session_id=f"id-{number}", login_at=1000.0 + number))
        own.append("play", "id-0", by="eve")
        for number in range(2):
            own.save([Unfinished(replace(ENDED, session_id=f"id-{number}", login_at=1000.0 + number))])
        yield own


def faults(ledger: Ledger, head: str = "") -> list[str]:
    return list(Proof(ledger, lambda info: (900, "ab" * 32), head=head).findings())


def attacked(folder: Path, *statements: str) -> None:
    with database(folder) as db:
        for statement in statements:
            db.execute(statement)


def written_anew(folder: Path, first: int, last: int = 100) -> None:
    """What an intruder does who knows how: the digests of these entries fit again."""
    with database(folder) as db:
        entries = db.execute("SELECT * FROM entries ORDER BY number").fetchall()
        before = "0" * 64
        for number, entry in enumerate(entries, 1):
            digest = entry["digest"]
            if first <= number <= last:
                values = [before, number, *(entry[name] for name in ("time", "kind", "session", "json"))]
                digest = hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()
                db.execute("UPDATE entries SET number = ?, digest = ? WHERE number = ?", (number, digest, entry[0]))
            before = digest
        logout = "SELECT number || ':' || digest FROM entries WHERE kind = 'logout' AND session = session_id"
        db.execute(f"UPDATE sessions SET chain = ({logout}) WHERE logout_at IS NOT NULL")


def test_a_ledger_that_nobody_touched_holds(ledger: Ledger) -> None:
    assert faults(ledger) == faults(ledger, ledger.head()) == []


def test_the_digests_are_what_the_readme_says(ledger: Ledger, tmp_path: Path) -> None:
    before = [entry.digest for entry in ledger.entries()]
    written_anew(tmp_path, 1)
    assert [entry.digest for entry in ledger.entries()] == before


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("UPDATE entries SET json = replace(json, 'alice', 'bob') WHERE number = 2", 2),
        ("UPDATE entries SET json = json || ' ' WHERE number = 2", 2),
        ("UPDATE entries SET json = x'00ff' WHERE number = 2", 2),
        ("UPDATE entries SET json = '[]' WHERE number = 6", 6),
        ("UPDATE entries SET kind = 'watch' WHERE number = 4", 4),
        ("UPDATE entries SET session = 'id-2' WHERE number = 4", 4),
        ("UPDATE entries SET time = time + 1 WHERE number = 4", 4),
        ("UPDATE entries SET time = 'never' WHERE number = 4", 4),
        ("UPDATE entries SET digest = upper(digest) WHERE number = 6", 6),
        ("UPDATE entries SET number = 7 WHERE number = 6", 7),
        ("DELETE FROM entries WHERE number = 1", 2),
        ("DELETE FROM entries WHERE number = 4", 5),
        ("INSERT INTO entries SELECT 7, time, kind, session, json, digest FROM entries WHERE number = 4", 7),
    ],
)
def test_the_first_entry_that_does_not_follow_is_named(
    ledger: Ledger, tmp_path: Path, statement: str, number: int
) -> None:
    attacked(tmp_path, statement)
    first = next(fault for fault in faults(ledger) if "follow" in fault)
    assert first.startswith(f"entry {number} (")


def test_swapped_entries_are_found(ledger: Ledger, tmp_path: Path) -> None:
    attacked(tmp_path, *(f"UPDATE entries SET number = {b} WHERE number = {a}" for a, b in ((1, 9), (2, 1), (9, 2))))
    assert faults(ledger)[0] == "entry 1 (login) does not follow the one before it, 0"


def test_an_entry_that_was_changed_and_signed_again_is_found_by_the_next(ledger: Ledger, tmp_path: Path) -> None:
    attacked(tmp_path, "UPDATE entries SET json = '{}' WHERE number = 4")
    written_anew(tmp_path, 4, 4)
    assert faults(ledger) == ["entry 5 (logout) does not follow the one before it, 4"]


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE sessions SET reason = 'lunch' WHERE session_id = 'id-0'", "reason of session id-0"),
        ("UPDATE sessions SET sha256 = '' WHERE session_id = 'id-0'", "sha256 of session id-0"),
        ("UPDATE sessions SET logout_at = 1.0 WHERE session_id = 'id-2'", "logout_at of session id-2"),
        ("UPDATE sessions SET logout_at = NULL WHERE session_id = 'id-1'", "logout_at of session id-1"),
        ("UPDATE sessions SET login_at = 'x' WHERE session_id = 'id-1'", "login_at of session id-1"),
        ("UPDATE sessions SET chain = '' WHERE session_id = 'id-1'", "chain of session id-1"),
        ("UPDATE sessions SET words = '' WHERE session_id = 'id-1'", "words of session id-1"),
        ("UPDATE sessions SET server = 'x' WHERE session_id = 'id-2'", "server of session id-2"),
        ("UPDATE sessions SET session_id = 'id-3' WHERE session_id = 'id-2'", "session id-3 has a row, but no entry"),
        ("DELETE FROM sessions WHERE session_id = 'id-2'", "session id-2 has entries, but no row"),
    ],
)
def test_a_row_that_does_not_say_what_its_entries_say_is_named(
    ledger: Ledger, tmp_path: Path, statement: str, fault: str
) -> None:
    attacked(tmp_path, statement)
    assert faults(ledger)[0].startswith(fault)


def test_swapped_and_inserted_rows_are_found(ledger: Ledger, tmp_path: Path) -> None:
    names = ", ".join(_columns(tmp_path))
    new = f"INSERT INTO sessions (session_id, {names}) SELECT 'id-9', {names} FROM sessions WHERE session_id = 'id-0'"
    swapped = (("id-0", "x"), ("id-1", "id-0"), ("x", "id-1"))
    attacked(tmp_path, new, *(f"UPDATE sessions SET session_id = '{b}' WHERE session_id = '{a}'" for a, b in swapped))
    found = faults(ledger)
    assert "session id-9 has a row, but no entry" in found
    assert {f"login_at of session id-{number}" for number in (0, 1)} <= {fault.partition(" is ")[0] for fault in found}


def _columns(folder: Path) -> list[str]:
    with database(folder) as db:
        return [f'"{row["name"]}"' for row in db.execute("PRAGMA table_info(sessions)") if row["name"] != "session_id"]


def test_an_entry_cannot_say_what_its_kind_does_not_say(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append("amended", "id-0", user="mallory")
    assert faults(ledger) == []
    attacked(tmp_path, "UPDATE sessions SET \"user\" = 'mallory' WHERE session_id = 'id-0'")
    assert faults(ledger)[0].startswith("user of session id-0")


@pytest.mark.parametrize("number", [0, -7, -(1 << 63)])
def test_an_entry_outside_the_chain_bears_nothing_out(ledger: Ledger, tmp_path: Path, number: int) -> None:
    forged = f"INSERT INTO entries SELECT {number}, time, kind, 'id-9', json, digest FROM entries WHERE number = 1"
    names = ", ".join(_columns(tmp_path))
    row = f"INSERT INTO sessions (session_id, {names}) SELECT 'id-9', {names} FROM sessions WHERE session_id = 'id-0'"
    attacked(tmp_path, forged, row)
    assert faults(ledger) == ["session id-9 has a row, but no entry"]


@pytest.mark.parametrize("form", ["number and digest", "digest"])
def test_a_chain_that_was_cut_off_is_found_with_a_head_only(ledger: Ledger, tmp_path: Path, form: str) -> None:
    head = ledger.head() if form != "digest" else ledger.head().partition(":")[2]
    assert faults(ledger, head) == []
    attacked(
        tmp_path,
        "DELETE FROM entries WHERE number = 6",
        "UPDATE sessions SET logout_at = NULL, reason = '', exit_code = NULL, bytes_out = NULL, bytes_in = NULL,"
        " size = NULL, sha256 = NULL, chain = '', words = replace(words, 'it ended', '') WHERE session_id = 'id-1'",
    )
    assert faults(ledger) == []
    assert [fault.partition(",")[0] for fault in faults(ledger, head)] == [f"the head {head} is not in the chain"]


def test_a_chain_that_was_written_anew_is_found_with_a_head_only(ledger: Ledger, tmp_path: Path) -> None:
    heads = [entry.head for entry in ledger.entries()]
    attacked(tmp_path, "UPDATE entries SET json = replace(json, 'eve', 'bob') WHERE number = 4")
    written_anew(tmp_path, 4)
    assert faults(ledger) == faults(ledger, heads[2]) == []
    for head in heads[3:]:
        assert len(faults(ledger, head)) == 1


def test_an_empty_ledger_proves_nothing(tmp_path: Path) -> None:
    with opened_ledger(tmp_path) as own:
        assert faults(own) == ["the chain is empty"]


def test_a_ledger_grows_while_it_is_proved(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooks._PAGE_ROWS", 1)

    def step(what: str, done: int, of: int) -> None:
        if done == 2:
            ledger.append("play")
            ledger.login(replace(INFO, session_id=f"new-{what}"))
            ledger.save([Unfinished(replace(ENDED, session_id=f"new-{what}"))])

    proof = Proof(ledger, lambda info: (900, "ab" * 32), step=step)
    assert list(proof.findings()) == []
    assert (proof.entries, proof.sessions) == (9, 5)


# -- a ledger of 0.1 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", OLD_LEDGERS, ids=lambda path: path.stem)
def test_the_sessions_of_an_older_ledger_become_entries_once(tmp_path: Path, text: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        connection.executescript(text.read_text())
    for _ in range(2):
        with opened_ledger(tmp_path) as own:
            entries = list(own.entries())
            assert {entry.kind for entry in entries} == {"found"}
            assert sorted(entry.session_id[7] for entry in entries) == ["1", "2", "3"][: len(entries)]
            assert faults(own) == []
    with opened_ledger(tmp_path) as own:
        adopted = own.adopt()
        assert [each.info.chain for each in adopted if each.info.logout_at] in ([], [entries[1].head])
        lost = next(each for each in adopted if each.info.logout_at is None)
        end = replace(lost.info, logout_at=1700000070.0, reason="lost", size=900, sha256="ab" * 32)
        own.save([Unfinished(end, tell=False, hang_up=False)])
        assert faults(own) == []


def test_an_older_ledger_is_taken_over_whole_or_not_at_all(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        connection.executescript(OLD_LEDGERS[-1].read_text())
        connection.execute("UPDATE sessions SET filename = x'ff' WHERE filename LIKE '%3.cast'")
        fails = "BEFORE UPDATE ON sessions WHEN NEW.filename = x'ff' BEGIN SELECT RAISE(ABORT, 'no'); END"
        connection.execute(f"CREATE TRIGGER fails {fails}")
        connection.commit()
        with pytest.raises(LedgerError, match="no"), opened_ledger(tmp_path):
            pass
        connection.execute("DROP TRIGGER fails")
        connection.execute("UPDATE sessions SET filename = '3.cast' WHERE filename = x'ff'")
        connection.commit()
    with opened_ledger(tmp_path) as own:
        assert len(list(own.entries())) == 3 and faults(own) == []


def test_a_ledger_gets_its_index_of_texts_when_it_can_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr("hooks._make_search", lambda db: False)
        with opened_ledger(tmp_path) as own:
            own.login(INFO)
            own.save([Unfinished(ENDED)])
            own.add_commands([Command("id-0", 1.0, "kubectl get pods", 0)])
    for _ in range(2):
        with opened_ledger(tmp_path) as own:
            assert [info.session_id for info in own.find(SessionQuery(q="shop-0"))] == ["id-0"]
            assert len(own.commands(CommandQuery(q="get pods"))) == 1


# -- where the head is told -------------------------------------------------------------------------------------------


class OurHooks(Hooks):
    """Keeps the heads that it was told; refuses the news until ``accepts``."""

    accepts = True

    def __init__(self, settings: HooksSettings) -> None:
        super().__init__(settings)
        self.told: list[str] = []

    def on_logout(self, info: SessionInfo) -> None:
        self.told.append(info.chain)
        if not self.accepts:
            raise HookError("not now")


def heads(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.removeprefix("chain head=") for line in caplog.messages if line.startswith("chain ")]


def test_the_platform_gets_the_head_after_the_logout_now_and_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OurHooks, "accepts", False)
    now = time.time()
    ended = replace(ENDED, login_at=now, logout_at=now)
    with keeping(tmp_path, OurHooks) as (hooks, keeper):
        hooks.ledger.login(replace(INFO, login_at=now))
        keeper.ended(ended, None)
        wait_until(lambda: hooks.told)
        hooks.ledger.append("play")
        (_, logout, *_) = hooks.ledger.entries()
    assert set(hooks.told) == {logout.head}
    monkeypatch.setattr(OurHooks, "accepts", True)
    with keeping(tmp_path, OurHooks) as (hooks, keeper):
        wait_until(lambda: hooks.told)
        assert hooks.told == [logout.head]
        assert faults(hooks.ledger, logout.head) == []


def test_the_head_is_in_the_log_when_it_has_moved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "jumpserver")
    monkeypatch.setattr("hooks._HEAD_SECONDS", 0.0)
    monkeypatch.setattr("hooks._TICK_SECONDS", 0.01)
    with keeping(tmp_path, OurHooks) as (hooks, _):
        for kind in ("play", "watch"):
            hooks.ledger.append(kind)
            wait_until(lambda: heads(caplog)[-1:] == [hooks.ledger.head()])
    assert len(heads(caplog)) == len(set(heads(caplog)))


def test_the_last_head_is_in_the_log_when_a_server_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "jumpserver")
    with keeping(tmp_path, OurHooks) as (hooks, _):
        hooks.ledger.append("play")
        last = hooks.ledger.head()
    assert heads(caplog) == [last]


def test_hooks_may_put_another_ledger_in_its_place(tmp_path: Path) -> None:
    class Other(Ledger):
        pass

    class OtherHooks(Hooks):
        @staticmethod
        def make_ledger(settings: HooksSettings) -> Ledger:
            return Other(settings.db.with_name("other.db"))

    hooks = OtherHooks(HooksSettings(tmp_path / "sessions.db"))
    hooks.open()
    with contextlib.closing(hooks):
        hooks.ledger.login(INFO)
    assert isinstance(hooks.ledger, Other) and [path.name for path in tmp_path.iterdir()] == ["other.db"]


# -- what was tampered with breaks nobody ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sessions SET info = '{\"command\": 5}', todo = 1",
        "UPDATE sessions SET info = '{\"extra\": []}', todo = 1",
        "UPDATE sessions SET info = '[1]', todo = 1",
        "UPDATE sessions SET info = x'ff', size = 'big', logout_at = 'late'",
        "UPDATE sessions SET reason = 5, cluster = x'00', hung_up = 'x'",
        "UPDATE entries SET json = '{\"first\": 1e999, \"last\": 1e999}', kind = 'commands'",
        "UPDATE entries SET json = '{\"first\": [], \"last\": NaN}', kind = 'commands'",
        'UPDATE entries SET json = \'{"user": 7, "reason": {}, "logout_at": []}\'',
        "UPDATE entries SET kind = x'ff', session = 5",
    ],
)
def test_odd_values_break_neither_proof_nor_list_nor_logout(ledger: Ledger, tmp_path: Path, statement: str) -> None:
    attacked(tmp_path, statement)
    assert len(ledger.find(SessionQuery())) == 3
    ledger.save([Unfinished(replace(ENDED, session_id="id-2"))])
    faults(ledger)


def test_odd_values_are_faults(ledger: Ledger, tmp_path: Path) -> None:
    attacked(tmp_path, "UPDATE entries SET json = '{\"first\": 1e999, \"last\": 1e999}', kind = 'commands'")
    assert faults(ledger)[:2] == [
        "entry 1 (commands) does not follow the one before it, 0",
        "commands 1 to 0 are not what entry 1 says",
    ]
