"""Several servers on one port: whichever a browser comes back to, it gets the shell that it lost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import websocket

import jumpserver
from demo.cluster import StandIn
from tests.support import (
    UPGRADE,
    Program,
    RunningServer,
    Terminal,
    another_server,
    end_shell,
    nothing_left,
    open_files,
    request_head,
    two_programs,
    wait_until,
)

REUSE = "reuse_port = true"
ECHO = ["sh", "-c", "stty raw -echo; echo ready; exec cat"]
FLOOD = ["sh", "-c", "stty raw -echo; echo ready; read go; seq 100000; printf end; exec cat"]


@pytest.fixture
def pair(tmp_path: Path, cluster: StandIn) -> Iterator[tuple[Program, Program]]:
    """Two processes on one port, with one configuration."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        with two_programs(tmp_path, cluster, port=port, resume_grace=60, server_lines=REUSE) as both:
            yield both


@pytest.fixture
def server(tmp_path: Path, cluster: StandIn) -> Iterator[RunningServer]:
    """One of several, as far as it knows."""
    with nothing_left(), another_server(tmp_path, cluster, resume_grace=60, server_lines=REUSE) as running:
        yield running


def server_of(terminal: Terminal) -> str:
    url: str = terminal.wait_for_event("session")["resume"]["url"]
    return url.partition("=")[2].partition(".")[0]


def one_of_each(program: Program, command: list[str] = ECHO) -> list[Terminal]:
    """A terminal in each process."""
    found: dict[str, Terminal] = {}
    while len(found) < 2:
        terminal = program.connect(command=command)
        terminal.wait_for("ready\n")
        if server_of(terminal) in found:
            terminal.sock.send_close(1000)
            terminal.wait_end()
        else:
            found[server_of(terminal)] = terminal
    return list(found.values())


def left_behind(program: Program) -> set[str]:
    db = program.config.hooks_settings().db
    return {
        path.name.rsplit(".", 1)[1] for path in db.parent.glob(f"{db.name}.*") if path.suffix in (".sock", ".alive")
    }


def test_whichever_process_the_browser_comes_back_to_no_byte_is_lost(pair: tuple[Program, Program]) -> None:
    for terminal in one_of_each(pair[0], FLOOD):
        terminal.type("go\n")
        seen = b""
        for cut in range(1, 20):  # each of them reaches either process; "go" has arrived when the first is made
            while len(seen) + len(terminal.output) < 20_000 * cut:
                terminal.step()
            terminal.drop()
            seen += terminal.output
            terminal = pair[0].resume(terminal, cols=100, rows=30)
            terminal.wait_for_event("session")
        while not (seen + terminal.output).endswith(b"end"):  # all of which the one before may have had
            terminal.step()
        assert seen + terminal.output == b"ready\n" + b"".join(b"%d\n" % n for n in range(1, 100_001)) + b"end"
        terminal.sock.send_close(1000)
        terminal.wait_end()
    assert [program.end() for program in pair] == [0, 0]
    assert left_behind(pair[0]) == set()
    pair[0].wait_settled()


def test_the_shell_of_a_killed_process_is_over_and_its_files_go(pair: tuple[Program, Program]) -> None:
    terminals = one_of_each(pair[0])
    pair[0].process.send_signal(signal.SIGKILL)
    pair[0].process.wait()
    codes = []
    for terminal in terminals:
        with contextlib.suppress(ConnectionError, websocket.WebSocketException):
            terminal.type("x")
        terminal.drop()
        with pair[1].resume(terminal, cols=100, rows=30) as again:
            while not again.events:
                again.step()
            if again.events[0]["type"] == "session":
                codes.append(0)
                again.sock.send_close(1000)
            again.wait_end()
            if again.events[0]["type"] == "end":
                codes.append(again.close_code or -1)
                assert again.events[0]["reason"] == jumpserver.SESSION_OVER.reason
    assert sorted(codes) == [0, jumpserver.GONE]
    db = pair[0].config.hooks_settings().db
    wait_until(lambda: len(list(db.parent.glob(f"{db.name}.*.sock"))) == 1, "the dead server's socket to go", 30)
    assert pair[1].end() == 0
    assert left_behind(pair[0]) == set()


@pytest.mark.parametrize("name", ["x", "f" * 32, f"{'f' * 32}.x", "../../x.y", f"{'f' * 31}/.x", "%00.x", "." * 3000])
def test_a_server_that_is_unknown_has_no_session(server: RunningServer, name: str) -> None:
    url = f"ws://127.0.0.1:{server.port}/ssh?resume={name}"
    with Terminal(websocket.create_connection(url, 10, subprotocols=["jumpserver.v1"])) as terminal:
        assert terminal.wait_end()["reason"] == jumpserver.SESSION_OVER.reason
        assert terminal.close_code == jumpserver.GONE


def own_socket(server: RunningServer) -> Path:
    return server.hooks.ledger.socket_file(server.hooks.ledger.server)


def test_the_socket_is_this_users_alone_and_gone_with_the_server(server: RunningServer) -> None:
    path = own_socket(server)
    assert path.stat().st_mode & 0o777 == 0o600
    server.stop()
    assert not path.exists()


def test_what_is_no_connection_is_dropped_and_the_next_is_served(server: RunningServer) -> None:
    head = request_head("/healthz")
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        address = stack.enter_context(jumpserver._unix_address(own_socket(server)))
        silent.connect(address)
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        sock.connect(address)
        before = open_files()
        ours, theirs = (stack.enter_context(each) for each in _tcp_pair())
        other = stack.enter_context(open(os.devnull, "rb"))
        good = theirs.fileno()
        for data, descriptors in (
            (b"", []),
            (b"garbage", [good]),
            (b"127.0.0.1\n" + head, []),
            (b"127.0.0.1\n" + head, [good, good]),
            (b"127.0.0.1\n" + head, [other.fileno()]),
            (b"127.0.0.1\n" + head, [silent.fileno()]),
            (b"127.0.0.1\n" + head[:-2], [good]),
            (b"\xff\n" + head, [good]),
            (b"127.0.0.1\n" + request_head("/", f"X: {'x' * 100_000}"), [good]),
        ):
            socket.send_fds(sock, [data], descriptors)
        socket.send_fds(sock, [b"127.0.0.1\n" + head], [good])
        theirs.close()
        ours.settimeout(10)
        answer = ours.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1") == 1
        other.close()
        ours.close()
        wait_until(lambda: open_files() <= before)


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


def test_a_server_that_takes_nothing_is_waited_for_a_while_only(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumpserver, "HAND_OVER_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf, contextlib.ExitStack() as stack:
        address = stack.enter_context(jumpserver._unix_address(server.hooks.ledger.socket_file("f" * 32)))
        deaf.bind(address)
        filler = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                filler.sendto(b"x", address)
        with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
            sock.sendall(request_head(f"/ssh?resume={'f' * 32}.x", *UPGRADE))
            assert sock.recv(100) == b""  # not told that its session is over: it may try again


def test_a_long_head_is_handed_over_whole(server: RunningServer) -> None:
    path = server.hooks.ledger.socket_file("e" * 32)
    with jumpserver._unix_address(path) as address, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(address)
        other.settimeout(10)
        head = request_head(f"/ssh?resume={'e' * 32}.x", *UPGRADE, f"A: {'a' * 30_000}", f"B: {'b' * 30_000}")
        with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
            sock.sendall(head + b"more")
            data, descriptors, _, _ = socket.recv_fds(other, 1 << 17, 1)
            assert data == b"127.0.0.1\n" + head
            with socket.socket(fileno=descriptors[0]) as taken:
                taken.settimeout(10)
                assert taken.recv(10) == b"more"
                taken.sendall(b"hello")
                assert sock.recv(10) == b"hello"


def test_a_ledger_with_a_long_path_hands_over_too(tmp_path: Path, cluster: StandIn) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    more = f'[Audit]\ndb = "{folder}/a.db"\n'
    with nothing_left(), contextlib.ExitStack() as stack:
        both = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            options = {"resume_grace": 60, "server_lines": REUSE, "more": more}
            both.append(stack.enter_context(another_server(tmp_path / name, cluster, **options)))
        terminal = both[0].connect()
        terminal.wait_for_event("session")
        terminal.drop()
        with both[1].resume(terminal, cols=100, rows=30) as again:
            again.wait_for_event("session")
            end = end_shell(again)
            assert end["exit_code"] == 0, end
    assert list(folder.glob("*.sock")) == []


@pytest.mark.parametrize(("grace", "lines"), [(60, ""), (0, REUSE)])
def test_a_server_that_is_alone_or_lets_nobody_come_back_listens_for_no_other(
    tmp_path: Path, cluster: StandIn, grace: int, lines: str
) -> None:
    with another_server(tmp_path, cluster, resume_grace=grace, server_lines=lines) as server:
        assert list(own_socket(server).parent.glob("*.sock")) == []


def test_a_socket_that_cannot_be_made_keeps_the_server_from_starting(tmp_path: Path, cluster: StandIn) -> None:
    more = f'[Audit]\ndb = "{"a" * 120}.db"\n'
    with nothing_left(), pytest.raises(jumpserver.ListenError, match="cannot listen at"):
        RunningServerThatFails(tmp_path, cluster, server_lines=REUSE, resume_grace=60, more=more)


class RunningServerThatFails(RunningServer):
    def __init__(self, folder: Path, cluster: StandIn, **options: str | int) -> None:
        try:
            super().__init__(folder, cluster, **options)
        except jumpserver.ListenError:
            self.server.stop()
            raise
