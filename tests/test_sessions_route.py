"""The lists of sessions and commands: who may see them, what they say, and that the chain says who looked."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hooks
import jumpserver
from demo.cluster import StandIn
from hooks import Command, Entry, SessionInfo, TokenAuthData, Unfinished
from tests.support import (
    RunningServer,
    Terminal,
    another_server,
    answer_of,
    connected,
    end_shell,
    exchange,
    last_row,
    newest,
    nothing_left,
    read_until,
    request_head,
    wait_until,
)
from tests.test_ledger import locked

LOGIN = 1_700_000_000.0


def get(server: RunningServer, path: str, scope: str = "audit", **claims: Any) -> tuple[int, Any]:
    """Status of the answer, and what it says: JSON, or a sentence."""
    url = urllib.parse.urlsplit(path)
    query = f"{url.query}&" if url.query else ""
    status, text = answer_of(server, f"{url.path}?{query}token={server.link_token(scope, **claims)}")
    return status, json.loads(text) if status == 200 else text


def found(server: RunningServer, query: str = "") -> list[str]:
    """The ids on the first page."""
    status, answer = get(server, f"sessions?{query}")
    assert status == 200, answer
    return [row["session_id"] for row in answer["sessions"]]


def write(server: RunningServer, session_id: str, login_at: float = LOGIN, ended: bool = True, **auth: Any) -> None:
    """Put a session into the ledger."""
    values: dict[str, Any] = {"namespace": "web", "pod_name": "shop-0", "user": "alice", **auth}
    info = SessionInfo(session_id, f"/records/{session_id}.cast", TokenAuthData(**values), "10.0.0.9", login_at)
    server.hooks.ledger.login(info)
    if ended:
        end = replace(info, logout_at=login_at + 60, reason=f"the end of {session_id}", exit_code=3, size=77)
        server.hooks.ledger.save([Unfinished(end, tell=False, hang_up=False)])


def entries(server: RunningServer, *kinds: str) -> list[Entry]:
    return [entry for entry in server.hooks.ledger.entries() if entry.kind in kinds]


def written(server: RunningServer, kind: str) -> list[Entry]:
    """Entries that are written when there is time for it."""
    wait_until(lambda: entries(server, kind), kind)
    return entries(server, kind)


# -- what is listed ---------------------------------------------------------------------------------------------------


def test_an_open_session_is_listed_as_it_is_now(server: RunningServer, terminal: Terminal) -> None:
    status, answer = get(server, "sessions?state=open")
    (row,) = answer["sessions"]
    assert (status, answer["next"]) == (200, None)
    assert (row["user"], row["namespace"], row["pod_name"], row["cluster"]) == ("bob", "default", "demo", "standin")
    assert (row["remote_addr"], row["logout_at"], row["detached"]) == ("127.0.0.1", None, False)
    assert row["bytes_in"] == len("echo hi-$((1 + 1))\n")
    assert row["bytes_out"] >= len(terminal.output) > 0
    assert 0 <= row["idle"] < 60
    assert row["size"] > 0
    assert row["filename"] == str(newest(server))


def test_a_session_that_has_ended_is_listed_as_the_ledger_has_it(server: RunningServer, terminal: Terminal) -> None:
    end_shell(terminal)
    server.wait_settled()
    assert found(server, "state=open") == []
    _, answer = get(server, "sessions?state=ended")
    (row,) = answer["sessions"]
    ledger = last_row(server)
    names = ("logout_at", "reason", "exit_code", "bytes_in", "bytes_out", "size", "sha256", "chain")
    assert {name: row[name] for name in names} == {name: ledger[name] for name in names}
    assert row["exit_code"] == 0 and "idle" not in row


def test_nothing_that_a_token_hid_is_listed(server: RunningServer) -> None:
    hidden: dict[str, Any] = {"cluster_cfg": "the kubeconfig", "command": ("the command",), "message": "the message"}
    write(server, "a", ended=False, extra={"ticket": "the ticket"}, **hidden)
    _, answer = get(server, "sessions")
    assert "the " not in json.dumps(answer)


def test_pages_of_fifty_follow_each_other_from_the_newest_to_the_oldest(server: RunningServer) -> None:
    for number in range(120):
        write(server, f"s-{number:03}", LOGIN + number // 3)  # some at the same time
    seen: list[str] = []
    sizes, before = [], ""
    while before is not None:
        _, answer = get(server, f"sessions?before={before}")
        sizes.append(len(answer["sessions"]))
        seen += [row["session_id"] for row in answer["sessions"]]
        before = answer["next"]
    assert sizes == [50, 50, 20]
    assert seen == sorted(seen, reverse=True) and len(set(seen)) == 120


def test_a_page_that_is_full_and_the_last_one_says_so(server: RunningServer) -> None:
    for number in range(50):
        write(server, f"s-{number}", LOGIN + number)
    _, answer = get(server, "sessions")
    assert (len(answer["sessions"]), answer["next"]) == (50, None)


FILTERS = {
    "": ["d", "c", "b", "a"],
    "state=open": ["d"],
    "state=ended": ["c", "b", "a"],
    "user=bob": ["b"],
    "user=bo": [],
    "namespace=other": ["c"],
    "pod=shop-1": ["b"],
    "q=SHOP-1": ["b"],
    "q=end%20of%20c": ["c"],
    "q=10.0.0.9&user=alice": ["d", "c", "a"],
    "q=%25": [],
    "since=1700000010": ["d", "c", "b"],
    "since=2023-11-14T22:13:30Z&until=2023-11-14T22:13:45": ["c", "b"],
    "since=2023-11-14T23:13:30%2B01:00&until=1700000020.5": ["c", "b"],
    "until=2023-11-14": [],
    "since=7d": [],
    "until=7d": ["d", "c", "b", "a"],
    "since=2023-11-15": [],
    "user=": ["d", "c", "b", "a"],
}


def test_filters_leave_the_sessions_that_match(server: RunningServer) -> None:
    write(server, "a", LOGIN)
    write(server, "b", LOGIN + 10, user="bob", pod_name="shop-1")
    write(server, "c", LOGIN + 20, namespace="other")
    write(server, "d", LOGIN + 30, ended=False)
    assert {query: found(server, query) for query in FILTERS} == FILTERS


BAD = {
    "state=closed": "state must be open or ended",
    "since=yesterday": "since must be a time such as",
    "until=nan": "until must be a time such as",
    "until=1e9": "until must be a time such as",
    "since=7y": "since must be a time such as",
    "since=0000-00-00": "since must be a time such as",
    "users=bob": "there is no parameter users here",
    f"q={'x' * 1001}": "q is longer than 1000 characters",
    "user=%00": "user is longer than 1000 characters, or has a NUL in it",
}


@pytest.mark.parametrize("query", BAD)
def test_a_bad_parameter_is_answered_with_a_sentence(server: RunningServer, query: str) -> None:
    status, text = get(server, f"sessions?{query}")
    assert (status, text.startswith(BAD[query])) == (400, True), text
    assert entries(server, "list") == []


def test_one_session_has_a_place_of_its_own(server: RunningServer, terminal: Terminal) -> None:
    session_id = terminal.wait_for_event("session")["id"]
    status, row = get(server, f"sessions/{session_id}")
    assert (status, row["session_id"], row["user"], row["idle"] >= 0) == (200, session_id, "bob", True)
    assert get(server, "sessions/none") == (404, "there is no such session\n")
    assert get(server, "sessions/<id>") == (404, "there is no such session\n")
    for name in ("a/b", "", "%2e%2e", "x" * 101):
        assert get(server, f"sessions/{name}") == (404, "not found\n")


# -- commands ---------------------------------------------------------------------------------------------------------


def test_commands_are_found_with_their_session_and_second(server: RunningServer) -> None:
    write(server, "a")
    write(server, "b", LOGIN + 1, user="bob")
    ran = [Command("a", 1.5, "kubectl get pods", 0), Command("a", 9.0, "kubectl delete pod x", 1)]
    server.hooks.ledger.add_commands([*ran, Command("b", 3.0, "kubectl DELETE pod y", None)])
    status, answer = get(server, "commands?q=delete")
    first, second = answer["commands"]
    assert (status, answer["next"]) == (200, None)
    assert (first["seconds"], first["text"], first["exit_code"]) == (9.0, "kubectl delete pod x", 1)
    assert (first["session"]["session_id"], first["session"]["filename"]) == ("a", "/records/a.cast")
    assert (second["text"], second["exit_code"], second["session"]["user"]) == ("kubectl DELETE pod y", None, "bob")
    assert [hit["text"] for hit in get(server, "commands?user=bob")[1]["commands"]] == ["kubectl DELETE pod y"]
    assert get(server, "commands?namespace=x")[0] == 400


def test_commands_come_by_the_page(server: RunningServer) -> None:
    write(server, "a")
    server.hooks.ledger.add_commands(Command("a", float(number), f"echo {number}", 0) for number in range(70))
    _, first = get(server, "commands")
    _, second = get(server, f"commands?before={first['next']}")
    texts = [hit["text"] for hit in first["commands"] + second["commands"]]
    assert (texts, second["next"]) == ([f"echo {number}" for number in reversed(range(70))], None)


# -- who may ----------------------------------------------------------------------------------------------------------

ALLOWED = {"audit": {"sessions", "sessions/a", "commands"}, "terminate": set[str](), "play": set[str]()}
ALLOWED.update({"watch": set(), "list": set(), "terminal": set(), "": set(), "play audit": ALLOWED["audit"]})


@pytest.mark.parametrize("scope", ALLOWED)
def test_lists_are_for_the_scope_audit(server: RunningServer, scope: str) -> None:
    write(server, "a")
    answers = {path: get(server, path, scope) for path in ("sessions", "sessions/a", "commands")}
    assert {path for path, (status, _) in answers.items() if status == 200} == ALLOWED[scope]
    for status, text in answers.values():
        assert status == 200 or (status, "it needs the scope audit" in text) == (403, True)


def test_without_a_token_nothing_is_listed_public_recordings_or_not(tmp_path: Path, cluster: StandIn) -> None:
    with nothing_left(), another_server(tmp_path, cluster, record_lines="public = true") as server:
        write(server, "a")
        for path in ("sessions", "sessions/a", "sessions/none", "commands"):
            assert answer_of(server, path) == (401, "a token is needed: open the page from the platform\n")


def test_a_link_to_one_recording_shows_its_session_and_no_other(server: RunningServer) -> None:
    write(server, "a")
    write(server, "b")
    claims = {"filename": "/records/a.cast"}
    assert get(server, "sessions/a", **claims)[0] == 200
    for path in ("sessions", "sessions/b", "sessions/none", "commands"):
        assert get(server, path, **claims) == (403, "this link is for another recording\n")
    mistakes: list[Any] = ["", None, [], 0, "."]  # that a platform may sign
    for nothing in mistakes:
        for path in ("sessions", "sessions/a", "commands"):
            assert get(server, path, filename=nothing) == (403, "this link is for another recording\n")


def test_a_link_may_name_its_recording_as_the_ledger_does_or_shorter(server: RunningServer, terminal: Terminal) -> None:
    session_id, path = terminal.wait_for_event("session")["id"], newest(server)
    for name in (str(path), str(path.relative_to(server.config.record_path))):
        assert get(server, f"sessions/{session_id}", filename=name)[0] == 200
        played = {
            asked: answer_of(server, f"records/play?filename={asked}&token={server.link_token(filename=name)}")[0]
            for asked in (str(path), str(path.relative_to(server.config.record_path)), f"x/../{name}", f"./{name}")
        }
        assert list(played.values()) == [200, 200, 403, 403]


def test_the_scope_audit_plays_recordings(server: RunningServer, terminal: Terminal) -> None:
    end_shell(terminal)
    assert answer_of(server, server.play_path(newest(server).name, scope="audit"))[0] == 404
    assert answer_of(server, server.play_path(str(newest(server)), scope="audit"))[0] == 200
    assert answer_of(server, server.play_path(str(newest(server)), scope="watch terminate"))[0] == 403


@pytest.mark.parametrize(("scope", "may"), [("audit", False), ("audit terminate", True)])
def test_the_list_of_open_sessions_says_whether_they_may_be_ended(
    server: RunningServer, terminal: Terminal, scope: str, may: bool
) -> None:
    assert get(server, "sessions?state=open", scope)[1]["may_terminate"] is may
    assert "may_terminate" not in get(server, "sessions?state=ended", scope)[1]
    server.server.notes.finish(time.monotonic() + 10)
    assert entries(server, "refused") == []  # who only looks has tried nothing


OLDER = """
from hooks import Hooks
class Ours(Hooks):
    {actions}
    def authorize(self, token, action, filename):
        return "eve"
"""


@pytest.mark.parametrize(
    ("actions", "opened"),
    [
        ("", {"play"}),
        ('actions = ("play", "list")', {"play", "list"}),
        ("actions = Hooks.actions", {"play", "watch", "list", "search", "terminate"}),
    ],
)
def test_a_hook_opens_no_more_than_it_says_that_it_knows(
    tmp_path: Path, cluster: StandIn, actions: str, opened: set[str]
) -> None:
    hooks_file = OLDER.format(actions=actions or "pass")
    with nothing_left(), another_server(tmp_path, cluster, hooks_file=hooks_file) as server:
        with server.connect() as terminal:
            session_id = terminal.wait_for_event("session")["id"]
            name = newest(server)
            asked = {
                "watch": f"GET /records/live?filename={name}",
                "list": "GET /sessions?state=open",
                "search": "GET /commands?",
                "terminate": f"POST /sessions/{session_id}/terminate?",
                "play": f"GET /records/play?filename={name}",
            }
            answers = {action: _any_token(server, request) for action, request in asked.items()}
            assert {action for action, answer in answers.items() if b" 403 " not in answer[:20]} == opened
            for action in asked.keys() - opened:
                assert f"the hooks of this server do not say who may {action}\n".encode() in answers[action]
            assert (b'"may_terminate": true' in answers["list"]) == ("terminate" in opened)
            end_shell(terminal)


def _any_token(server: RunningServer, request: str) -> bytes:
    body = b'{"reason": ""}'
    head = f"{request}&token=x HTTP/1.1\r\nHost: x\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return exchange(server.port, head.encode() + (body if request.startswith("POST") else b""))


def test_an_operators_hook_is_told_what_is_to_be_done(tmp_path: Path, cluster: StandIn) -> None:
    own = (
        "from hooks import Denied, Hooks\n"
        "class Ours(Hooks):\n"
        "    actions = Hooks.actions\n"
        "    def authorize(self, token, action, filename):\n"
        '        raise Denied(f"{action} {filename}".strip(), "eve")\n'
    )
    with nothing_left(), another_server(tmp_path, cluster, hooks_file=own) as server:
        write(server, "a")
        said = [get(server, path)[1] for path in ("sessions", "commands", "sessions/a")]
        assert said == ["list\n", "search\n", "list /records/a.cast\n"]
        assert written(server, "refused")[0].values["user"] == "eve"


# -- the chain --------------------------------------------------------------------------------------------------------


def test_who_lists_and_searches_stands_in_the_chain(server: RunningServer) -> None:
    write(server, "a")
    get(server, "sessions?user=al&q=x%20y", sub="dana")
    get(server, "sessions/a", sub="dana")
    get(server, "commands?q=rm", sub="erika")
    first, second, third = entries(server, "list", "search")
    assert (first.kind, first.values) == ("list", {"user": "dana", "filters": "q=x+y&user=al", "remote": "127.0.0.1"})
    assert (second.kind, second.session_id, second.values["user"]) == ("list", "a", "dana")
    assert (third.kind, third.values["filters"], third.values["user"]) == ("search", "q=rm", "erika")


def test_a_page_that_stays_open_is_one_entry_in_ten_minutes(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        write(server, f"s-{number}", LOGIN + number)
    for _ in range(3):
        _, answer = get(server, "sessions?state=ended")
        get(server, f"sessions?state=ended&before={answer['next']}")
    assert len(entries(server, "list")) == 1
    get(server, "sessions?state=ended", sub="another")
    get(server, "sessions?state=open")
    assert len(entries(server, "list")) == 3
    monkeypatch.setattr(jumpserver, "_LOOK_SECONDS", 0.0)
    get(server, "sessions?state=open")
    assert len(entries(server, "list")) == 4


def test_remembered_looks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumpserver, "_LOOKS", 3)
    looks = jumpserver.Looks()
    for number in range(5):
        looks.entered(number, now=float(number))
    assert [looks.is_new(number, now=5.0) for number in range(5)] == [True, True, False, False, False]


def test_who_replays_stands_in_the_chain(server: RunningServer, terminal: Terminal) -> None:
    end_shell(terminal)
    for _ in range(2):
        answer_of(server, server.play_path(str(newest(server)), sub="dana"))
    answer_of(server, server.play_path("none.cast"))
    plays = entries(server, "play")
    assert [(entry.session_id, entry.values) for entry in plays] == [
        (newest(server).stem, {"user": "dana", "file": str(newest(server)), "remote": "127.0.0.1"})
    ] * 2


def test_what_cannot_stand_in_the_chain_is_not_shown(server: RunningServer, terminal: Terminal) -> None:
    end_shell(terminal)
    server.wait_settled()
    with locked(server.config.record_path):
        answers = [get(server, path) for path in ("sessions", "sessions/none", "commands")]
        play = server.play_path(str(newest(server)))
        answers.append(answer_of(server, play))
        whole = exchange(server.port, request_head(play)).decode()  # also what would follow an answer's end
    assert [status for status, _ in answers] == [503, 404, 503, 503]
    assert "hi-2" not in str((answers, whole)) and "bob" not in str((answers, whole))
    assert answers[3][1] == f"{jumpserver.NOT_IN_LEDGER}\n"
    assert get(server, "sessions")[0] == 200


def test_a_refused_token_stands_in_the_chain(server: RunningServer) -> None:
    get(server, "sessions?user=x", "play", sub="mallory")
    get(server, "sessions", exp=time.time() - 1, sub="late")
    answer_of(server, "records/play?filename=a.cast&token=garbage")
    with pytest.raises(Exception, match="403"):
        server.connect_with(server.token(exp=time.time() - 1, sub="old"), v1=False)
    spent = server.token(jti="1", sub="twice")
    with server.connect_with(spent) as terminal:
        end_shell(terminal)
    with server.connect_with(spent) as terminal:
        terminal.wait_end()
    wait_until(lambda: len(entries(server, "refused")) == 5, "five refusals")
    said = [
        (entry.values["action"], entry.values["user"], entry.values["reason"]) for entry in entries(server, "refused")
    ]
    assert said == [
        ("list", "mallory", "this link does not allow to list; it needs the scope audit"),
        ("list", "late", "this link has expired; open it again from the platform"),
        ("play", "", "this link is not valid; open it again from the platform"),
        ("terminal", "old", "this link has expired; open it again from the platform"),
        ("terminal", "twice", "this link was already used; open the terminal again from the platform"),
    ]
    values = entries(server, "refused")[2].values
    assert (values["file"], values["remote"]) == ("a.cast", "127.0.0.1")
    assert abs(values["at"] - time.time()) < 60


def test_what_waits_for_the_chain_is_written_when_the_server_ends(server: RunningServer) -> None:
    for _ in range(25):
        answer_of(server, "sessions?token=garbage")
    server.stop()
    ledger = hooks.Ledger(server.config.hooks_settings().db)
    ledger.open()
    with contextlib.closing(ledger):
        refused = [entry.values for entry in ledger.entries() if entry.kind == "refused"]
    assert (len(refused), refused[-1]["count"], refused[-1]["by_address"]) == (21, 5, {"127.0.0.1": 5})


def test_a_browser_that_is_lost_and_comes_back_stands_in_the_chain(tmp_path: Path, cluster: StandIn) -> None:
    with nothing_left(), another_server(tmp_path, cluster, resume_grace=60) as server:
        lost = server.connect()
        session_id = lost.wait_for_event("session")["id"]
        lost.drop()
        (detached,) = written(server, "detached")
        assert (detached.session_id, detached.values["grace"]) == (session_id, 60)
        assert get(server, "sessions?state=open")[1]["sessions"][0]["detached"] is True
        with server.resume(lost) as terminal:
            terminal.wait_for_event("session")
            (resumed,) = written(server, "resumed")
            assert (resumed.session_id, resumed.values["remote"]) == (session_id, "127.0.0.1")
            end_shell(terminal)


# -- entries for which nobody waits -----------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[hooks.Ledger]:
    ledger = hooks.Ledger(tmp_path / "sessions.db")
    ledger.open()
    yield ledger
    ledger.close()


def test_a_flood_of_refused_tokens_is_counted_by_address(ledger: hooks.Ledger) -> None:
    notes = hooks.Notes(ledger)
    for number in range(10_000):
        notes.refused(f"10.0.0.{number % 30}", action="terminal", reason="no")
    notes.add("detached", "a")
    notes.write(time.monotonic() + 10)
    assert [entry.kind for entry in ledger.entries()] == ["refused"] * 20 + ["detached"]
    notes.finish(time.monotonic() + 10)
    *_, last = ledger.entries()
    assert (last.kind, last.values["count"]) == ("refused", 9_980)
    by_address = last.values["by_address"]
    assert len(by_address) == 21 and sum(by_address.values()) == 9_980
    assert by_address["10.0.0.20"] == 333


def test_the_next_minute_has_refusals_of_its_own(ledger: hooks.Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = hooks.Notes(ledger)
    for _ in range(25):
        notes.refused("10.0.0.1", action="play")
    monkeypatch.setattr(notes, "_minute_ends", 0.0)
    notes.refused("10.0.0.2", action="play")
    notes.write(time.monotonic() + 10)
    *_, counted, next_one = ledger.entries()
    assert (counted.values["count"], counted.values["by_address"]) == (5, {"10.0.0.1": 5})
    assert next_one.values["remote"] == "10.0.0.2"


def test_what_a_locked_ledger_does_not_take_waits_in_order(ledger: hooks.Ledger, tmp_path: Path) -> None:
    notes = hooks.Notes(ledger)
    notes.add("detached", "a")
    with locked(tmp_path):
        notes.add("resumed", "a")
        with pytest.raises(hooks.LedgerError):
            notes.write(time.monotonic() + 10)
    notes.write(time.monotonic() + 10)
    assert [entry.kind for entry in ledger.entries()] == ["detached", "resumed"]


def test_what_finds_no_place_is_counted(ledger: hooks.Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_NOTES_LIMIT", 3)
    notes = hooks.Notes(ledger)
    for number in range(8):
        notes.add("detached", str(number), reason="x" * 5000)
    notes.write(time.monotonic() + 10)
    *kept, last = ledger.entries()
    assert [entry.session_id for entry in kept] == ["0", "1", "2"]
    assert {len(entry.values["reason"]) for entry in kept} == {1000}
    assert (last.kind, last.values["count"]) == ("not_written", 5)


def test_what_the_ledger_never_takes_goes_to_the_log(
    ledger: hooks.Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes = hooks.Notes(ledger)
    notes.add("detached", "a")
    with locked(tmp_path):
        notes.finish(time.monotonic() + 10)
    (line,) = [message for message in caplog.messages if "entry=" in message]
    assert json.loads(line.partition("entry=")[2])["session_id"] == "a"


# -- requests ---------------------------------------------------------------------------------------------------------


def test_what_only_reads_is_not_posted_to_and_the_other_way_round(server: RunningServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    said = []
    for method, path in (
        ("POST", "/sessions"),
        ("POST", "/"),
        ("GET", "/sessions/a/terminate"),
        ("POST", "/none.html"),
    ):
        connection.request(method, path)
        with connection.getresponse() as response:
            said.append((response.status, response.headers["Allow"], response.read().decode()))
    connection.close()
    assert said == [
        (405, "GET, HEAD", "this address is for GET, HEAD\n"),
        (405, "GET, HEAD", "this address is for GET, HEAD\n"),
        (405, "POST", "this address is for POST\n"),
        (405, "GET, HEAD", "this address is for GET, HEAD\n"),
    ]


BODIES = {
    "no length": (b"", b"{}", 411),
    "a length that is no number": (b"Content-Length: -1\r\n", b"{}", 411),
    "digits of another script": ("Content-Length: \u0662\r\n".encode(), b"{}", 411),
    "chunks": (b"Transfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n", 411),
    "too long": (b"Content-Length: 8193\r\n", bytes(8193), 413),
    "a length beyond all bounds": (b"Content-Length: 99999999999999999999999\r\n", b"", 411),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_body_is_bounded_before_it_is_read(server: RunningServer, case: str) -> None:
    header, body, status = BODIES[case]
    head = b"POST /sessions/a/terminate HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n"
    assert exchange(server.port, head + body).startswith(b"HTTP/1.1 %d " % status)


def test_a_body_that_does_not_come_is_not_waited_for(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"POST /sessions/a/terminate HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
    with connected(server.port) as sock:
        sock.sendall(head + b"{")
        sock.shutdown(1)
        assert read_until(sock).startswith(b"HTTP/1.1 400 ")
    monkeypatch.setattr(jumpserver, "HEAD_SECONDS", 0.3)
    with connected(server.port) as sock:
        sock.sendall(head + b"{")
        assert read_until(sock, b"in time").startswith(b"HTTP/1.1 408 ")


def test_a_page_of_the_platform_may_post(tmp_path: Path, cluster: StandIn) -> None:
    lines = 'allowed_origins = ["https://platform.example"]'
    with nothing_left(), another_server(tmp_path, cluster, server_lines=lines) as server:
        request = "OPTIONS /sessions/a/terminate HTTP/1.1\r\nHost: x\r\nOrigin: https://platform.example\r\n\r\n"
        answer = exchange(server.port, request.encode()).decode()
        assert "Access-Control-Allow-Methods: GET, HEAD, POST\r\n" in answer
        assert "Authorization, Content-Type," in answer
