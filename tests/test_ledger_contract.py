"""What every ledger does, the one in SQLite and that of ``examples/postgresql_hooks.py`` on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import psycopg
import pytest

from demo.cluster import StandIn
from examples import postgresql_hooks
from examples.postgresql_hooks import PostgresqlLedger
from hooks import (
    Ask,
    Command,
    CommandQuery,
    Denied,
    HookError,
    HooksSettings,
    Ledger,
    LedgerError,
    Proof,
    SessionInfo,
    SessionQuery,
    TokenAuthData,
    Unfinished,
    cursor,
)
from tests.support import Program, end_shell, nothing_left, run_program, wait_until

AUTH = TokenAuthData("web", "shop-0", "main", user="alice", command=("sh",), extra={"ticket": "T-1"})
INFO = SessionInfo("id-1", "/records/id-1.cast", AUTH, "10.0.0.9", 1000.5, cluster="10.0.0.1")
END: dict[str, Any] = {"logout_at": 1010.0, "reason": "it ended", "exit_code": 3, "bytes_out": 500, "bytes_in": 20}
ENDED = replace(INFO, **END, size=900, sha256="ab" * 32)

Make = Callable[[], Ledger]


def empty(place: str) -> None:
    with psycopg.connect(place) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


@pytest.fixture(params=["sqlite", "sqlite without fts5", "postgresql"])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes ledgers, one a server, that share one store; none of them leaves anything."""
    if request.param == "sqlite without fts5":
        monkeypatch.setattr("hooks._make_search", lambda db: False)
    if request.param != "postgresql":

        def new() -> Ledger:
            return Ledger(tmp_path / "sessions.db")
    else:
        place = request.getfixturevalue("postgresql")
        empty(place)

        def new() -> Ledger:
            return PostgresqlLedger(place, tmp_path / "sessions.db")

    with nothing_left(), contextlib.ExitStack() as stack:

        def made() -> Ledger:
            ledger = new()
            ledger.open()
            stack.callback(ledger.close)
            return ledger

        yield made


@pytest.fixture
def ledger(make: Make) -> Ledger:
    return make()


def session(number: int, **changes: Any) -> SessionInfo:
    return replace(INFO, session_id=f"id-{number}", login_at=1000.0 + number, **changes)


def found(ledger: Ledger, **query: Any) -> list[str]:
    return [info.session_id for info in ledger.find(SessionQuery(**query))]


def faults(ledger: Ledger, **options: Any) -> list[str]:
    return list(Proof(ledger, lambda info: (900, "ab" * 32), **options).findings())


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_is_what_was_said_at_login_and_at_its_end(ledger: Ledger) -> None:
    assert ledger.session("id-1") is None and not ledger.is_open("id-1")
    ledger.login(INFO)
    assert ledger.session("id-1") == replace(INFO, server=ledger.server, bytes_in=None, bytes_out=None)
    assert ledger.is_open("id-1")
    (chain,) = ledger.save([Unfinished(ENDED, tell=True, hang_up=False)])
    assert ledger.session("id-1") == replace(ENDED, server=ledger.server, chain=chain)
    assert not ledger.is_open("id-1")


def test_a_session_cannot_begin_twice(ledger: Ledger) -> None:
    ledger.login(INFO)
    with pytest.raises(LedgerError):
        ledger.login(INFO)
    assert len(list(ledger.entries())) == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"exit_code": 10**30, "hung_up": 10**20, "bytes_out": 1 << 64, "size": None},
        {"reason": "half \ud800 of a pair, a NUL \0 and 'quotes' % ? %s", "sha256": "\udfff"},
        {"logout_at": float("nan")},
        {"logout_at": float("inf"), "exit_code": -(10**30)},
    ],
    ids=str,
)
def test_no_odd_value_costs_the_row_or_the_chain(ledger: Ledger, odd: dict[str, Any]) -> None:
    ledger.login(replace(INFO, auth=replace(AUTH, user="a\ud800\0b?%s", extra={"odd": "\ud800\0"})))
    ledger.save([Unfinished(replace(ENDED, **odd))])
    info = ledger.session("id-1")
    assert info is not None and info.auth.user == "a??b?%s" and info.reason
    assert not [fault for fault in faults(ledger) if "recording" not in fault]


def test_all_that_ended_is_saved_or_nothing(ledger: Ledger) -> None:
    ledger.login(session(1))
    ledger.login(session(2))

    def broken() -> Iterator[Unfinished]:
        yield Unfinished(replace(ENDED, session_id="id-1"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ledger.save(broken())
    assert ledger.is_open("id-1") and len(list(ledger.entries())) == 2
    ledger.save([Unfinished(replace(ENDED, session_id=f"id-{number}")) for number in (1, 2)])
    assert found(ledger, state="open") == []


def test_of_many_threads_one_spends_a_token(make: Make) -> None:
    ledgers, denied = [make(), make()], []

    def use(number: int) -> None:
        try:
            ledgers[number % 2].use_token("one \ud800", time.time() + 60)
        except Denied as exc:
            denied.append(exc)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(12)))
    assert len(denied) == 11


def test_a_closed_ledger_takes_nothing_and_can_be_closed_again(make: Make) -> None:
    ledger = make()
    ledger.check()
    ledger.close()
    for call in (lambda: ledger.login(INFO), ledger.check, ledger.head, lambda: ledger.append("play")):
        with pytest.raises(LedgerError):
            call()


def test_servers_may_start_together(make: Make) -> None:
    barrier = threading.Barrier(6)

    def start(number: int) -> None:
        barrier.wait()
        make().login(session(number))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(start, range(6)))
    assert faults(make()) == []


# -- servers that have died -------------------------------------------------------------------------------------------


def test_what_a_dead_server_left_is_taken_over_once_and_said_in_the_chain(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examples.postgresql_hooks.SILENT_SECONDS", 0.0)
    dead = make()
    dead.login(session(1))
    dead.login(session(2))
    (chain,) = dead.save([Unfinished(replace(ENDED, session_id="id-2", login_at=1002.0), tell=True, hang_up=False)])
    dead.close()
    monkeypatch.setattr("examples.postgresql_hooks.SILENT_SECONDS", 0.2)
    again, other = make(), make()

    sessions: list[Unfinished] = []

    def adopted() -> list[Unfinished]:
        other.check()
        again.check()
        sessions.extend(again.adopt())
        return sessions

    wait_until(adopted)
    lost, untold = sorted(sessions, key=lambda each: each.info.session_id)
    assert (lost.info.session_id, lost.info.logout_at, lost.tell, lost.hang_up) == ("id-1", None, True, True)
    assert (untold.info.session_id, untold.tell, untold.hang_up, untold.info.chain) == ("id-2", True, False, chain)
    assert untold.info.auth.extra == {"ticket": "T-1"}
    assert {each.info.server for each in sessions} == {again.server}
    assert again.adopt() == []
    other.check()
    assert other.adopt() == []
    assert [entry.kind for entry in again.entries()] == ["login", "login", "logout", "adopted", "adopted"]
    assert faults(again) == []


def test_the_sessions_of_a_server_that_lives_stay_its_own(make: Make) -> None:
    one, other = make(), make()
    one.login(INFO)
    one.check()
    assert other.adopt() == one.adopt() == []


# -- the chain --------------------------------------------------------------------------------------------------------


def test_login_logout_and_what_changes_later_are_entries(ledger: Ledger) -> None:
    ledger.login(INFO)
    (chain,) = ledger.save([Unfinished(ENDED)])
    assert chain == ledger.head()
    ledger.save([Unfinished(ENDED, tell=False)])
    assert ledger.save([Unfinished(replace(ENDED, hung_up=2), tell=False)]) == [chain]
    ledger.save([Unfinished(replace(ENDED, hung_up=2), tell=False, hang_up=False)])
    login, logout, amended = ledger.entries()
    assert [entry.kind for entry in (login, logout, amended)] == ["login", "logout", "amended"]
    assert {entry.session_id for entry in (login, logout, amended)} == {"id-1"}
    assert (login.values["user"], login.values["login_at"], login.values["server"]) == ("alice", 1000.5, ledger.server)
    assert logout.values == {**END, "size": 900, "sha256": "ab" * 32, "container_name": "main", "hung_up": None}
    assert (logout.head, amended.values) == (chain, {"hung_up": 2})
    assert faults(ledger, head=chain) == []


def test_whatever_else_happens_is_an_entry(ledger: Ledger) -> None:
    before = time.time()
    assert ledger.head() == f"0:{'0' * 64}"
    ledger.append("play", "id-1", user="eve \ud800\0", address="::1", count=3, long="x" * 10_000)
    (entry,) = ledger.entries()
    assert (entry.number, entry.kind, entry.session_id) == (1, "play", "id-1")
    assert {**entry.values, "long": len(entry.values["long"])} == {
        "user": "eve ??",
        "address": "::1",
        "count": 3,
        "long": 4096,
    }
    assert before <= entry.time <= time.time()
    assert ledger.head() == entry.head


def test_several_servers_write_one_chain(make: Make) -> None:
    ledgers = [make(), make(), make()]

    def write(number: int) -> None:
        for turn in range(10):
            ledgers[number].append("play", turn=turn)
            ledgers[number].login(session(100 * number + turn))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    assert [entry.number for entry in ledgers[0].entries()] == list(range(1, 61))
    assert faults(ledgers[1], head=ledgers[2].head()) == []


def test_entries_are_read_in_pages_while_others_write(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooks._PAGE_ROWS", 2)
    for number in range(5):
        ledger.append("play", number=number)
    numbers = []
    for entry in ledger.entries(after=1):
        numbers.append(entry.number)
        if entry.number < 4:
            ledger.append("play")
    assert numbers == [2, 3, 4, 5, 6, 7]


def test_the_proof_finds_a_row_that_no_entry_bears_out(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        ledger.login(session(number))
    with ledger.transaction() as db:
        db.execute("UPDATE sessions SET \"user\" = 'eve' WHERE session_id = 'id-1'")
        db.execute("DELETE FROM sessions WHERE session_id = 'id-2'")
    assert faults(ledger) == [
        "user of session id-1 is 'eve' in its row, and 'alice' in its entries",
        "session id-2 has entries, but no row",
    ]


# -- find -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    for number in range(10):
        auth = TokenAuthData(
            ("web", "db")[number % 2], f"shop_{number}", "Main", user=("alice", "bob", "Zoë%")[number % 3]
        )
        ledger.login(session(number, auth=auth, remote_addr=f"10.0.0.{number}"))
    ended = (replace(ENDED, **vars(ledger.session(f"id-{number}")) | END) for number in range(4))
    ledger.save([Unfinished(info) for info in ended])
    return ledger


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({}, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ({"limit": 3}, [9, 8, 7]),
        ({"state": "open"}, [9, 8, 7, 6, 5, 4]),
        ({"state": "ended"}, [3, 2, 1, 0]),
        ({"user": "alice"}, [9, 6, 3, 0]),
        ({"user": "alic"}, []),
        ({"namespace": "db", "user": "bob"}, [7, 1]),
        ({"pod": "shop_4"}, [4]),
        ({"pod": "shop_%"}, []),
        ({"since": 1003.0, "until": 1005.0}, [5, 4, 3]),
        ({"state": "ended", "since": 1002.5}, [3]),
        ({"q": "OP_4"}, [4]),
        ({"q": "zoë%"}, [8, 5, 2]),
        ({"q": "ZOË"}, [8, 5, 2]),
        ({"q": "sh_p"}, []),
        ({"q": "op%4"}, []),
        ({"q": "main", "namespace": "web"}, [8, 6, 4, 2, 0]),
        ({"q": "IT ENDED"}, [3, 2, 1, 0]),
        ({"q": "10.0.0.7"}, [7]),
        ({"q": "\\"}, []),
        ({"q": "' OR 1=1"}, []),
        ({"q": "x" * 100_000}, []),
        ({"before": "id-3"}, [2, 1, 0]),
        ({"before": "of no session"}, []),
        ({"limit": -1}, [9]),
    ],
    ids=str,
)
def test_sessions_are_found(filled: Ledger, query: dict[str, Any], numbers: list[int]) -> None:
    assert found(filled, **query) == [f"id-{number}" for number in numbers]


def test_pages_follow_each_other_though_sessions_began_at_the_same_time(ledger: Ledger) -> None:
    for number in range(7):
        ledger.login(replace(INFO, session_id=f"id-{number}"))
    pages, before = [], ""
    while page := ledger.find(SessionQuery(before=before, limit=3)):
        pages.append([info.session_id for info in page])
        before = cursor(page[-1])
    assert pages == [["id-6", "id-5", "id-4"], ["id-3", "id-2", "id-1"], ["id-0"]]


def test_texts_that_few_and_many_sessions_have_are_found(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooks._FEW", 3)
    for number in range(9):
        ledger.login(session(number, remote_addr="rare" if number in (2, 5) else "common"))
    ended = [session(number, remote_addr="rare" if number == 2 else "common", **END) for number in range(5)]
    ledger.save([Unfinished(info) for info in ended])
    assert found(ledger, q="rare") == ["id-5", "id-2"]
    assert found(ledger, q="RARE", state="ended") == found(ledger, q="rare", until=1003.0) == ["id-2"]
    assert found(ledger, q="common", limit=3) == ["id-8", "id-7", "id-6"]
    assert found(ledger, q='"rare') == found(ledger, q="rare", user="bob") == []


# -- ask --------------------------------------------------------------------------------------------------------------


def test_what_is_asked_reaches_the_server_of_the_session_once(make: Make) -> None:
    own, other = make(), make()
    own.login(session(1))
    other.login(session(2))
    assert own.ask("id-2", "end", "eve", "lunch") and own.ask("id-2", "watch", "eve") and other.ask("id-1", "end", "x")
    assert own.ask("id-2", "end", "eve", "asked twice")
    assert own.asked() == [Ask("id-1", "end", "x", "")]
    assert sorted(other.asked(), key=lambda ask: ask.what) == [
        Ask("id-2", "end", "eve", "lunch"),
        Ask("id-2", "watch", "eve", ""),
    ]
    assert own.asked() == other.asked() == []
    assert own.ask("id-2", "end", "eve")


def test_nothing_is_asked_of_a_session_that_is_not_open(ledger: Ledger) -> None:
    assert not ledger.ask("id-1", "end", "eve")
    ledger.login(INFO)
    assert ledger.ask("id-1", "end", "eve")
    ledger.save([Unfinished(ENDED)])
    assert not ledger.ask("id-1", "end", "eve")
    assert ledger.asked() == []


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def typed(ledger: Ledger) -> Ledger:
    ledger.login(session(1))
    ledger.login(session(2, auth=replace(AUTH, user="bob")))
    ledger.add_commands([Command("id-1", 1, "ls -l", 0), Command("id-2", 5.5, "kubectl DELETE pod", 1)])
    ledger.add_commands([Command("id-1", 3.25, "echo 100%_\ud800\0", None), Command("of no session", 1.0, "id", 0)])
    return ledger


@pytest.mark.parametrize(
    ("query", "texts"),
    [
        ({}, ["kubectl DELETE pod", "echo 100%_??", "ls -l"]),
        ({"limit": 1}, ["kubectl DELETE pod"]),
        ({"user": "alice"}, ["echo 100%_??", "ls -l"]),
        ({"q": "delete"}, ["kubectl DELETE pod"]),
        ({"q": "0%_"}, ["echo 100%_??"]),
        ({"q": "l_"}, []),
        ({"since": 1004.0, "until": 1005.0}, ["echo 100%_??"]),
        ({"before": "'; DROP TABLE commands"}, []),
        ({"before": "9" * 30}, []),
    ],
    ids=str,
)
def test_commands_are_found(typed: Ledger, query: dict[str, Any], texts: list[str]) -> None:
    assert [command.text for command, _ in typed.commands(CommandQuery(**query))] == texts


def test_a_command_comes_with_its_session_and_pages_follow_each_other(typed: Ledger) -> None:
    ((first, info),) = typed.commands(CommandQuery(limit=1))
    assert (first, info) == (Command("id-2", 5.5, "kubectl DELETE pod", 1), typed.session("id-2"))
    rest = [command for command, _ in typed.commands(CommandQuery(before=cursor(first)))]
    assert rest == [Command("id-1", 3.25, "echo 100%_??", None), Command("id-1", 1.0, "ls -l", 0)]


def test_commands_are_in_the_chain(typed: Ledger) -> None:
    typed.add_commands([])
    assert [entry.kind for entry in typed.entries()] == ["login", "login", "commands", "commands"]
    assert faults(typed) == []
    with typed.transaction() as db:
        db.execute("UPDATE commands SET text = 'ls' WHERE number = 2")
    assert faults(typed) == ["commands 1 to 2 are not what entry 3 says"]
    with typed.transaction() as db:
        db.execute("DELETE FROM commands WHERE number = 2")
        db.execute(
            'INSERT INTO commands SELECT 9, session_id, "user", time, seconds, text, 0 FROM commands WHERE number = 1'
        )
        db.execute("INSERT INTO commands SELECT -5, session_id, \"user\", time, seconds, 'rm', 0 FROM commands LIMIT 1")
    assert faults(typed) == [
        "commands 1 to 2 are not what entry 3 says",
        "commands 4 to 9 are in no entry",
        "command -5 is in no entry",
    ]


# -- the example ------------------------------------------------------------------------------------------------------


def test_a_server_keeps_its_sessions_in_postgresql(
    postgresql: str, cluster: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty(postgresql)
    monkeypatch.setenv("JUMPSERVER_POSTGRESQL", postgresql)
    file = Path(postgresql_hooks.__file__)
    with Program(tmp_path, cluster, more=f"[Hooks]\nfile = {str(file)!r}\n") as server:
        with server.connect() as terminal:
            terminal.wait_for_event("session")
            end_shell(terminal)
        assert server.end() == 0
        head = server.log().rpartition("chain head=")[2].split()[0]
    done = run_program("verify", "--head", head, "-jumpserver", server.folder / "jumpserver.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" 1 sessions, 1 recordings read, 0 retired: good\n")
    assert not list(tmp_path.rglob("*.db"))


@pytest.mark.parametrize("place", [None, "host='secret"])
def test_a_place_that_is_none_is_told_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    if place:
        monkeypatch.setenv("JUMPSERVER_POSTGRESQL", place)
    with pytest.raises(HookError, match="JUMPSERVER_POSTGRESQL") as caught:
        postgresql_hooks.PostgresqlHooks(HooksSettings(tmp_path / "db"))
    assert "secret" not in str(caught.value)


def test_a_database_that_is_away_fails_within_seconds_and_leaves_nothing(tmp_path: Path) -> None:
    ledger = PostgresqlLedger(f"host={tmp_path} user=nobody", tmp_path / "db")
    with nothing_left(), pytest.raises(LedgerError, match="PostgreSQL"):
        ledger.open()


def test_who_could_not_say_that_it_lives_believes_nobody_dead(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty(postgresql)
    with nothing_left(), contextlib.ExitStack() as stack:
        one, other = (PostgresqlLedger(postgresql, tmp_path / "db") for _ in range(2))
        for ledger in (one, other):
            ledger.open()
            stack.callback(ledger.close)
        one.login(INFO)
        monkeypatch.setattr(postgresql_hooks, "SILENT_SECONDS", 0.0)
        other.check()  # long after its last sign of life, and now as young as at its start
        monkeypatch.setattr(postgresql_hooks, "SILENT_SECONDS", 3600.0)
        with other.transaction() as db:
            db.execute("UPDATE servers SET seen_at = now() - interval '2 hours' WHERE server = ?", (one.server,))
        assert other.adopt() == []
        with other.transaction() as db:
            db.execute("UPDATE servers SET since = now() - interval '2 hours' WHERE server = ?", (other.server,))
        assert [lost.info.session_id for lost in other.adopt()] == ["id-1"]
