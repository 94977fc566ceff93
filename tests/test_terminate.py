"""A session is ended from outside: at once, with a name and a reason, whichever process it is in."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hooks
from demo.cluster import StandIn
from tests.support import (
    Installation,
    Program,
    RunningServer,
    Terminal,
    end_shell,
    last_row,
    newest,
    two_programs,
    wait_until,
)
from tests.test_ledger import locked

JSON = "application/json"


def terminate(
    server: Installation,
    session_id: str,
    body: Any = None,
    *,
    scope: str = "terminate",
    kind: str = JSON,
    **claims: Any,
) -> tuple[int, str]:
    """Ask for the end of a session; status and text of the answer."""
    data = body if isinstance(body, bytes) else json.dumps({"reason": "too late"} if body is None else body).encode()
    token = server.link_token(scope, **{"sub": "dana", **claims})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
        connection.request("POST", f"/sessions/{session_id}/terminate", data, headers)
        with connection.getresponse() as response:
            return response.status, response.read().decode()


def id_of(terminal: Terminal) -> str:
    found: str = terminal.wait_for_event("session")["id"]
    return found


def chain(server: Installation) -> list[tuple[str, str, dict[str, Any]]]:
    ledger = hooks.Ledger(server.config.hooks_settings().db)
    ledger.open()
    with contextlib.closing(ledger):
        return [
            (entry.kind, entry.session_id, dict(entry.values)) for entry in ledger.entries() if entry.kind != "amended"
        ]


@pytest.fixture
def terminal(server: RunningServer) -> Iterator[Terminal]:
    with server.connect() as terminal:
        terminal.type("echo hi-$((1 + 1))\n")
        terminal.wait_for("hi-2")
        yield terminal


def test_the_session_ends_and_everybody_is_told_by_whom_and_why(server: RunningServer, terminal: Terminal) -> None:
    session_id, said = id_of(terminal), "ended by dana: left open in production"
    status, answer = terminate(server, session_id, {"reason": "left open in production"})
    assert (status, json.loads(answer)) == (202, {"session_id": session_id, "will": "the session ends now"})
    end = terminal.wait_end()
    assert (end["reason"], terminal.close_code, terminal.close_reason) == (said, 1000, said)
    assert f"[jumpserver] {said}" in terminal.output.decode()
    server.wait_settled()
    assert said in newest(server).read_text()
    assert (last_row(server)["reason"], last_row(server)["exit_code"]) == (said, None)
    server.cluster.wait_until(lambda: not server.cluster.shells())
    asked, ended = [entry for entry in chain(server) if entry[0] != "commands"][-2:]
    assert asked == (
        "terminate",
        session_id,
        {"user": "dana", "reason": "left open in production", "remote": "127.0.0.1"},
    )
    assert (ended[0], ended[1], ended[2]["reason"]) == ("logout", session_id, said)


def test_a_client_of_the_original_is_told_in_its_terminal(server: RunningServer) -> None:
    with server.connect(v1=False) as terminal:
        wait_until(lambda: server.server.sessions.all() and server.server.sessions.all()[0]._shell)
        (session,) = server.server.sessions.all()
        terminate(server, session.id)
        terminal.wait_end()
        assert terminal.output.decode().endswith("\r\n[jumpserver] ended by dana: too late\r\n")


def test_a_session_whose_browser_is_away_ends_too(tmp_path: Path, cluster: StandIn) -> None:
    running = RunningServer(tmp_path, cluster, resume_grace=60)
    try:
        terminal = running.connect()
        session_id = id_of(terminal)
        terminal.drop()
        wait_until(lambda: running.server.sessions.all()[0].is_detached)
        assert terminate(running, session_id)[0] == 202
        running.wait_settled()
        assert last_row(running)["reason"] == "ended by dana: too late"
        assert "ended by dana: too late" in newest(running).read_text()
    finally:
        running.stop()


def test_words_from_outside_are_one_printable_line(server: RunningServer, terminal: Terminal) -> None:
    body = {"reason": "a\x1b[31m\r\nb\u202e"}
    assert terminate(server, id_of(terminal), body, sub="da\x1b[0mna\n")[0] == 202
    assert terminal.wait_end()["reason"] == "ended by da [0mna: a [31m b"


def test_who_has_no_name_is_an_operator(server: RunningServer, terminal: Terminal) -> None:
    terminate(server, id_of(terminal), sub="")
    assert terminal.wait_end()["reason"] == "ended by an operator: too late"


REFUSED: dict[str, tuple[Any, dict[str, Any], int, str]] = {
    "no reason": ({}, {}, 400, "a reason is needed"),
    "an empty one": ({"reason": " \n"}, {}, 400, "a reason is needed"),
    "one that is no text": ({"reason": ["x"]}, {}, 400, "a reason is needed"),
    "one too long": ({"reason": "x" * 201}, {}, 400, "a reason is needed, of 200 characters at most"),
    "no object": (["reason"], {}, 400, "a reason is needed"),
    "no JSON": (b"reason=x", {}, 400, "a reason is needed"),
    "JSON that nests too deep": (b"[" * 8000, {}, 400, "a reason is needed"),
    "a form": (None, {"kind": "text/plain"}, 415, "must be JSON"),
    "the scope audit": (None, {"scope": "audit play watch"}, 403, "it needs the scope terminate"),
    "a link to another recording": (None, {"filename": "other.cast"}, 403, "for another recording"),
    "an old link": (None, {"exp": 1}, 403, "expired"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_ends_nothing(server: RunningServer, terminal: Terminal, case: str) -> None:
    body, options, status, words = REFUSED[case]
    answer = terminate(server, id_of(terminal), body, **options)
    assert (answer[0], words in answer[1]) == (status, True), answer
    assert "terminate" not in [kind for kind, _, _ in chain(server)]
    assert end_shell(terminal)["reason"] == "the shell has ended"


def test_a_link_to_its_recording_ends_that_session(server: RunningServer, terminal: Terminal) -> None:
    assert terminate(server, id_of(terminal), filename=str(newest(server)))[0] == 202
    terminal.wait_end()


def test_a_session_that_is_unknown_or_over_is_told_apart(server: RunningServer, terminal: Terminal) -> None:
    assert terminate(server, "none") == (404, "there is no such session\n")
    assert terminate(server, "none", scope="audit")[0] == 403
    end_shell(terminal)
    server.wait_settled()
    assert terminate(server, id_of(terminal)) == (409, "this session has ended already\n")
    assert last_row(server)["reason"] == "the shell has ended"
    assert "terminate" not in [kind for kind, _, _ in chain(server)]


def test_what_cannot_stand_in_the_chain_is_not_done(server: RunningServer, terminal: Terminal) -> None:
    with locked(server.config.record_path):
        assert terminate(server, id_of(terminal))[0] == 503
    assert end_shell(terminal)["reason"] == "the shell has ended"


# -- several processes on one ledger ----------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path, cluster: StandIn) -> Iterator[tuple[Program, Program]]:
    with two_programs(tmp_path, cluster) as both:
        yield both


def test_a_session_of_another_process_ends_within_seconds(pair: tuple[Program, Program]) -> None:
    its_own, other = pair
    with its_own.connect() as terminal, its_own.connect() as bystander:
        bystander.wait_for_event("session")
        session_id = id_of(terminal)
        status, answer = terminate(other, session_id)
        will = "the session's own server ends it within two seconds"
        assert (status, json.loads(answer)) == (202, {"session_id": session_id, "will": will})
        assert terminal.wait_end()["reason"] == "ended by dana: too late"
        assert end_shell(bystander)["reason"] == "the shell has ended"
    its_own.wait_settled()
    rows = {row["session_id"]: row["reason"] for row in its_own.rows()}
    assert rows[session_id] == "ended by dana: too late"
    said = [(kind, values.get("reason")) for kind, found, values in chain(other) if found == session_id]
    assert said == [("login", None), ("terminate", "too late"), ("logout", "ended by dana: too late")]


def test_a_session_of_another_process_is_listed_without_what_only_that_one_knows(pair: tuple[Program, Program]) -> None:
    its_own, other = pair
    with its_own.connect() as terminal:
        session_id = id_of(terminal)
        rows = [listed(server)["sessions"][0] for server in (its_own, other)]
        assert [row["session_id"] for row in rows] == [session_id] * 2
        assert rows[0].keys() - rows[1].keys() == {"idle", "detached"}
        assert rows[1]["server"] == rows[0]["server"] != ""
        end_shell(terminal)


def listed(server: Installation) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", f"/sessions?token={server.link_token('audit')}")
        with connection.getresponse() as response:
            answer: dict[str, Any] = json.load(response)
            return answer


def test_a_locked_ledger_delays_an_end_and_nothing_else(server: RunningServer, terminal: Terminal) -> None:
    looks, go = threading.Event(), threading.Event()

    def wait_for_the_lock() -> None:
        looks.set()
        go.wait(10)

    server.server.errands.ticks.insert(0, wait_for_the_lock)
    assert looks.wait(10)
    assert server.hooks.ledger.ask(id_of(terminal), "end", "dana", "through the ledger")
    ticks: list[None] = []
    server.server.clock.ticks.append(lambda: ticks.append(None))
    with locked(server.config.record_path):
        go.set()
        wait_until(lambda: len(ticks) > 3)
        assert server.server.sessions.all()[0]._end is None
    assert terminal.wait_end()["reason"] == "ended by dana: through the ledger"
