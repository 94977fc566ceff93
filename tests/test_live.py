"""Watching a session while it runs, over the WebSocket that asciinema-player opens."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

import jumpserver
from demo.cluster import StandIn
from tests.support import (
    UPGRADE,
    WAIT_SECONDS,
    Client,
    Installation,
    RunningServer,
    Terminal,
    another_server,
    answer_of,
    end_shell,
    exchange,
    newest,
    nothing_left,
    request_head,
    two_programs,
    wait_until,
)
from tests.test_proxies import SHIPPED, SHORTEST, behind_nginx

OFFERED = ["v1.alis", "v2.asciicast", "v3.asciicast", "raw"]  # by asciinema-player 3.18
PLAIN = ["sh", "-c", "stty raw -echo; echo ready; exec cat"]
FLOOD = ["sh", "-c", 'stty raw -echo; echo ready; read count; seq "$count"; echo over; exec cat']


class Watcher(Client):
    """asciinema-player's side of a live session, without a browser."""

    def __init__(self, sock: websocket.WebSocket) -> None:
        super().__init__(sock)
        self.messages: list[Any] = []  # each parsed

    def take(self, opcode: int, data: bytes) -> None:
        assert opcode == websocket.ABNF.OPCODE_TEXT
        self.messages.append(json.loads(data))

    @property
    def output(self) -> str:
        return "".join(data for _, code, data in self.messages[1:] if code == "o")

    def wait_for(self, text: str) -> str:
        """Receive until the output holds the text; returns all output."""
        while text not in self.output:
            assert self.close_code is None, f"ended with {self.close_code} after {self.output[-300:]!r}"
            self.step()
        return self.output

    def wait_end(self) -> int | None:
        """Receive until the connection ends; returns its close code."""
        while self.close_code is None:
            self.step()
        return self.close_code


def live_url(server: Installation, filename: str, **claims: Any) -> str:
    token = server.link_token(**{"scope": "watch", **claims})
    return f"ws://127.0.0.1:{server.port}/records/live?filename={filename}&token={token}"


def watch(
    server: Installation, filename: str = "", *, subprotocols: list[str] | None = OFFERED, **options: Any
) -> Watcher:
    """Watch a session, by default the newest."""
    url = live_url(server, filename or server.recordings()[-1])
    return Watcher(websocket.create_connection(url, WAIT_SECONDS, subprotocols=subprotocols, **options))


def refusal(server: Installation, url: str, **options: Any) -> tuple[int, str]:
    """HTTP status and sentence."""
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        websocket.create_connection(url, WAIT_SECONDS, **{"subprotocols": OFFERED, **options})
    return caught.value.status_code, (caught.value.resp_body or b"").decode().strip()


@pytest.fixture
def terminal(server: RunningServer) -> Iterator[Terminal]:
    """A session that has begun."""
    with server.connect(command=PLAIN) as running:
        running.wait_for("ready")
        yield running


def test_who_watches_gets_the_header_once_the_screen_so_far_and_what_comes(
    server: RunningServer, terminal: Terminal
) -> None:
    terminal.type("before")
    terminal.wait_for("before")
    with watch(server) as watcher:
        assert watcher.sock.getsubprotocol() == "v2.asciicast"  # type: ignore[no-untyped-call]
        watcher.wait_for("before")
        header, screen = watcher.messages
        assert (header["version"], header["width"], header["height"]) == (2, 100, 30)
        assert screen[1:] == ["o", "ready\nbefore"]
        terminal.type("after")
        assert watcher.wait_for("after") == "ready\nbeforeafter"
        assert sum(isinstance(message, dict) for message in watcher.messages) == 1


def test_a_new_size_is_passed_on(server: RunningServer, terminal: Terminal) -> None:
    with watch(server) as watcher:
        watcher.wait_for("ready")
        terminal.resize(133, 50)
        terminal.type("resized")
        watcher.wait_for("resized")
        assert [data for _, code, data in watcher.messages[1:] if code == "r"] == ["133x50"]


def test_the_end_of_the_session_is_the_end_of_watching(server: RunningServer) -> None:
    with server.connect() as terminal, watch_when_begun(server, terminal) as watcher:
        end_shell(terminal)
        assert watcher.wait_end() == 1000
        assert "exit" in watcher.output


@contextlib.contextmanager
def watch_when_begun(server: Installation, terminal: Terminal) -> Iterator[Watcher]:
    terminal.wait_for_event("session")
    with watch(server) as watcher:
        yield watcher


def test_of_an_ended_session_the_last_screen_is_shown(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.type("echo last-$((1 + 1)); exit\n")
        terminal.wait_end()
    server.wait_settled()
    with watch(server) as watcher:
        assert watcher.wait_end() == 1000
        assert "last-2" in watcher.output


def test_a_recording_that_is_removed_ends_watching_with_its_session(server: RunningServer) -> None:
    with server.connect() as terminal, watch_when_begun(server, terminal) as watcher:
        newest(server).unlink()
        terminal.type("echo unseen; exit\n")
        terminal.wait_end()
        assert watcher.wait_end() == 1000


def test_one_can_watch_from_another_process_and_the_user_is_told(cluster: StandIn, tmp_path: Path) -> None:
    with two_programs(tmp_path, cluster) as (its_own, other), its_own.connect(command=PLAIN) as terminal:
        terminal.wait_for("ready")
        with watch(other) as watcher:
            watcher.wait_for("ready")
            assert terminal.wait_for_event("notice")["text"] == "auditor is watching this terminal"
            terminal.type("typed over there")
            watcher.wait_for("typed over there")
            terminal.send(type="close")
            terminal.sock.close()
            assert watcher.wait_end() == 1000


def test_the_user_is_told_who_begins_to_watch(server: RunningServer, terminal: Terminal) -> None:
    with watch(server) as watcher:
        watcher.wait_for("ready")
        assert terminal.wait_for_event("notice")["text"] == "auditor is watching this terminal"


def test_who_comes_back_within_a_minute_is_not_announced_again(server: RunningServer, terminal: Terminal) -> None:
    for _ in range(3):
        with watch(server) as watcher:
            watcher.wait_for("ready")
    with watch_as(server, "another") as watcher:
        watcher.wait_for("ready")
        while len([event for event in terminal.events if event["type"] == "notice"]) < 2:
            terminal.step()
    told = [event["text"] for event in terminal.events if event["type"] == "notice"]
    assert told == ["auditor is watching this terminal", "another is watching this terminal"]


def watch_as(server: Installation, user: str) -> Watcher:
    url = live_url(server, server.recordings()[-1], sub=user)
    return Watcher(websocket.create_connection(url, WAIT_SECONDS, subprotocols=OFFERED))


def test_a_name_of_any_length_and_form_is_announced_harmlessly(server: RunningServer, terminal: Terminal) -> None:
    with watch_as(server, "\x1b[31m" + "x" * 5000) as watcher:
        watcher.wait_for("ready")
        text = terminal.wait_for_event("notice")["text"]
        assert "\x1b" not in text and len(text) < 200


def test_nobody_is_told_where_the_operator_wants_it_so(cluster: StandIn, tmp_path: Path) -> None:
    more = "[Audit]\nannounce_watch = false\n"
    with (
        nothing_left(),
        another_server(tmp_path, cluster, more=more) as server,
        server.connect(command=PLAIN) as terminal,
    ):
        terminal.wait_for("ready")
        with watch(server) as watcher:
            watcher.wait_for("ready")
            server.server.sessions.all()[0].notify("the next")
            assert terminal.wait_for_event("notice")["text"] == "the next"


def test_who_watches_is_in_the_chain_before_anything_is_shown(server: RunningServer, terminal: Terminal) -> None:
    with watch(server) as watcher:
        watcher.step()
        entry = [entry for entry in server.hooks.ledger.entries() if entry.kind == "watch"][-1]
    assert entry.session_id == newest(server).stem
    assert entry.values == {"user": "auditor", "remote": "127.0.0.1", "file": str(newest(server))}


def test_without_the_ledger_nothing_is_shown(server: RunningServer, terminal: Terminal) -> None:
    url = live_url(server, server.recordings()[-1])
    db = server.config.hooks_settings().db
    with contextlib.closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        status, reason = refusal(server, url)
        connection.execute("ROLLBACK")
    assert status == 503 and "ledger" in reason
    wait_until(lambda: len(server.server.watchers) == 0, "the place")


def test_a_slow_watcher_is_dropped_so_that_it_comes_back_and_the_session_goes_on(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumpserver, "SLOW_SECONDS", 0.05)
    narrow = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
    with server.connect(command=FLOOD) as terminal:
        terminal.wait_for("ready")
        with watch(server, sockopt=narrow) as watcher:
            watcher.step()
            terminal.type("2000000\n")  # far more than fits between a server and a client that takes nothing
            terminal.wait_for("over")  # the session has printed all of it, while nothing was taken here
            assert watcher.wait_end() == 1013
        terminal.type("still here")
        terminal.wait_for("still here")
        with watch(server) as watcher:
            watcher.wait_for("over\nstill here")
            assert watcher.messages[1][2].startswith("\x1bc")


def test_one_that_keeps_up_sees_the_end_of_a_flood_without_coming_back(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumpserver, "SLOW_SECONDS", 600)  # this machine may be busy
    with server.connect(command=FLOOD) as terminal:
        terminal.wait_for("ready")
        with watch(server) as watcher:
            watcher.wait_for("ready")
            terminal.type("600000\n")
            terminal.wait_for("over")
            watcher.wait_for("599999\n600000\nover\n")


def numbers(server: Installation) -> str:
    return answer_of(server, "metrics")[1]


@pytest.mark.parametrize("goodbye", [True, False])
def test_one_that_leaves_is_noticed(server: RunningServer, terminal: Terminal, goodbye: bool) -> None:
    watcher = watch(server)
    watcher.wait_for("ready")
    assert "jumpserver_watchers 1.0" in numbers(server)
    if goodbye:
        watcher.sock.close()
    else:
        watcher.sock.shutdown()  # type: ignore[no-untyped-call]
    wait_until(lambda: "jumpserver_watchers 0.0" in numbers(server), "the number")


def test_what_one_says_who_watches_is_passed_over(server: RunningServer, terminal: Terminal) -> None:
    with watch(server) as watcher:
        for _ in range(200):
            watcher.sock.send("x" * 10_000)
        watcher.sock.ping("?")
        watcher.wait_for("ready")
        terminal.type("fine")
        watcher.wait_for("fine")
    assert terminal.wait_for("fine") == b"ready\nfine"


def test_one_that_answers_no_ping_is_dropped(
    server: RunningServer, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumpserver, "PING_SECONDS", 0.1)
    with watch(server) as watcher:
        wait_until(lambda: len(server.server.watchers) == 0, "the drop")  # nothing is read here, so nothing answered
        assert watcher.wait_end() == 1006


def test_one_that_answers_pings_stays(
    server: RunningServer, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumpserver, "PING_SECONDS", 0.1)
    with watch(server) as watcher:
        watcher.sock.settimeout(WAIT_SECONDS)
        pings = 0
        while pings < 4:
            opcode, _ = watcher.sock.recv_data(control_frame=True)
            pings += opcode == websocket.ABNF.OPCODE_PING


def test_a_server_that_stops_drops_those_who_watch(cluster: StandIn, tmp_path: Path) -> None:
    with nothing_left(), contextlib.ExitStack() as stack:
        server = stack.enter_context(another_server(tmp_path, cluster))
        terminal = stack.enter_context(server.connect(command=PLAIN))
        terminal.wait_for("ready")
        watchers = [stack.enter_context(watch(server)) for _ in range(3)]
        for watcher in watchers:
            watcher.wait_for("ready")
        server.stop()
        assert {watcher.wait_end() for watcher in watchers} <= {1000, 1006}
        assert len(server.server.watchers) == 0


def test_there_are_so_many_places_for_those_who_watch_and_no_page_takes_them(
    server: RunningServer, terminal: Terminal
) -> None:
    server.server.watchers = jumpserver.Places(1, 1)
    with watch(server) as watcher:
        watcher.wait_for("ready")
        status, reason = refusal(server, live_url(server, server.recordings()[-1]))
        assert (status, reason) == (503, jumpserver.SERVER_BUSY.reason)
        assert answer_of(server, "player.html")[0] == 200


@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ("filename={name}", 401, "a token is needed"),
        ("filename={name}&token={play}", 403, "does not allow to watch"),
        ("filename={name}&token={other}", 403, "for another recording"),
        ("filename={name}&token=x", 403, "not valid"),
        ("filename=../a.cast&token={watch}", 404, "not found"),
        ("token={watch}", 404, "not found"),
    ],
)
def test_who_may_not_watch_is_told_so(
    server: RunningServer, terminal: Terminal, query: str, status: int, reason: str
) -> None:
    tokens = {
        "name": server.recordings()[-1],
        "play": server.link_token("play"),
        "watch": server.link_token("watch"),
        "other": server.link_token("watch", filename="other.cast"),
    }
    target = f"/records/live?{query.format(**tokens)}"
    assert refusal(server, f"ws://127.0.0.1:{server.port}{target}")[0] == status
    found = answer_of(server, target[1:])
    assert found[0] == status and reason in found[1]
    assert [entry.kind for entry in server.hooks.ledger.entries() if entry.kind != "refused"] == ["login"]


def test_the_token_may_come_in_a_header(server: RunningServer, terminal: Terminal) -> None:
    url = f"ws://127.0.0.1:{server.port}/records/live?filename={server.recordings()[-1]}"
    header = [f"Authorization: Bearer {server.link_token('watch')}"]
    with Watcher(websocket.create_connection(url, WAIT_SECONDS, subprotocols=OFFERED, header=header)) as watcher:
        watcher.wait_for("ready")


def test_where_anybody_may_replay_anybody_may_watch(cluster: StandIn, tmp_path: Path) -> None:
    with nothing_left(), another_server(tmp_path, cluster, record_lines="public = true") as server:
        with server.connect(command=PLAIN) as terminal:
            terminal.wait_for("ready")
            url = f"ws://127.0.0.1:{server.port}/records/live?filename={server.recordings()[-1]}"
            with Watcher(websocket.create_connection(url, WAIT_SECONDS, subprotocols=OFFERED)) as watcher:
                watcher.wait_for("ready")
                assert terminal.wait_for_event("notice")["text"] == "somebody is watching this terminal"


def test_a_client_without_a_subprotocol_gets_the_same_and_one_with_others_a_no(
    server: RunningServer, terminal: Terminal
) -> None:
    with watch(server, subprotocols=None) as watcher:
        watcher.wait_for("ready")
    found = refusal(server, live_url(server, server.recordings()[-1]), subprotocols=["v1.alis"])
    assert found == (400, "this address speaks the WebSocket subprotocol v2.asciicast")


def test_a_page_of_elsewhere_may_watch_only_where_it_may_open_terminals(cluster: StandIn, tmp_path: Path) -> None:
    origin, lines = "https://platform.example", 'allowed_origins = ["https://platform.example"]'
    with nothing_left(), another_server(tmp_path, cluster, server_lines=lines) as server:
        with server.connect_with(server.token(command=PLAIN), origin=origin) as terminal:
            terminal.wait_for("ready")
            assert (
                refusal(server, live_url(server, server.recordings()[-1]), origin="https://elsewhere.example")[0] == 403
            )
            with watch(server, origin=origin) as watcher:
                watcher.wait_for("ready")


def test_another_version_of_the_protocol_is_refused(server: RunningServer, terminal: Terminal) -> None:
    upgrade = [line.replace("Version: 13", "Version: 8") for line in UPGRADE]
    target = live_url(server, server.recordings()[-1]).partition(str(server.port))[2]
    assert exchange(server.port, request_head(target, *upgrade)).startswith(b"HTTP/1.1 426 ")


def test_a_page_can_ask_before_it_watches(server: RunningServer) -> None:
    def asked() -> dict[str, Any]:
        target = f"records/live?filename={server.recordings()[-1]}&token={server.link_token('watch')}"
        status, text = answer_of(server, target)
        assert status == 200
        values: dict[str, Any] = json.loads(text)
        return values

    with server.connect() as terminal:
        terminal.wait_for_event("session")
        answer = asked()
        assert (answer["running"], answer["title"]) == (True, "alice@default/demo")
        assert 0 <= answer["idle"] < WAIT_SECONDS
        end_shell(terminal)
    server.wait_settled()
    assert asked()["running"] is False
    assert "watch" not in {entry.kind for entry in server.hooks.ledger.entries()}


@pytest.mark.parametrize("site", [SHORTEST, SHIPPED], ids=["shortest", "shipped"])
def test_one_can_watch_behind_nginx(server: RunningServer, terminal: Terminal, tmp_path: Path, site: str) -> None:
    with behind_nginx(tmp_path, server, site) as proxy:
        target = live_url(server, server.recordings()[-1]).partition(f":{server.port}")[2]
        sock = websocket.create_connection(f"ws://{proxy.base}{target}", WAIT_SECONDS, subprotocols=OFFERED)
        with Watcher(sock) as watcher:
            watcher.wait_for("ready")
            terminal.type("through nginx")
            watcher.wait_for("through nginx")


def test_the_token_is_not_in_the_log(
    server: RunningServer, terminal: Terminal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with watch(server) as watcher:
        watcher.wait_for("ready")
    refusal(server, live_url(server, "missing.cast"))
    assert "watch user=auditor" in caplog.text
    assert "eyJ" not in caplog.text
