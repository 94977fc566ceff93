"""The service manager is told what goes on, and may hold the sockets; here a test is in its place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

import jumpserver
from demo.cluster import StandIn
from tests.support import (
    START_SECONDS,
    WAIT_SECONDS,
    Installation,
    Program,
    RunningServer,
    another_server,
    connected,
    need_program,
    read_until,
    request_head,
    wait_until,
)

ROOT = Path(jumpserver.__file__).parent
# As systemd starts a service: the descriptor is 3, and LISTEN_PID the service's own.
ACTIVATE = """
import os, sys
for number, descriptor in enumerate(sys.argv[1].split(","), 3):
    os.dup2(int(descriptor), number)
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[2]))
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


class Manager:
    """Listens at NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(WAIT_SECONDS)
        self._socket.bind(address.replace("@", "\0", 1))

    def wait_for(self, good: Callable[[list[str]], bool]) -> list[str]:
        """Receive until a message's lines are as wanted; returns them."""
        while True:
            lines = self._socket.recv(4096).decode().splitlines()
            if good(lines):
                return lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "file" else f"@jumpserver-{secrets.token_hex(8)}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with contextlib.closing(Manager(address)) as manager:
        yield manager


def test_the_manager_hears_of_start_sessions_and_end(manager: Manager, cluster: StandIn, tmp_path: Path) -> None:
    with Program(tmp_path, cluster, server_lines="drain_timeout = 300") as server:
        assert manager.wait_for(lambda lines: True) in (["READY=1"], ["STATUS=0 sessions"])
        with server.connect() as terminal:
            terminal.wait_for_event("session")
            assert "WATCHDOG=1" not in manager.wait_for(lambda lines: lines[0] == "STATUS=1 sessions")
            server.process.send_signal(signal.SIGTERM)
            manager.wait_for(lambda lines: lines == ["STOPPING=1"])
            more_time = manager.wait_for(lambda lines: "EXTEND_TIMEOUT_USEC=30000000" in lines)
            assert more_time[0] == "STATUS=1 sessions"
            terminal.type("exit\n")
            terminal.wait_end()
        assert server.process.wait(20) == 0


def test_the_watchdog_is_fed_only_where_it_waits_for_this_process(
    manager: Manager, cluster: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    with another_server(tmp_path, cluster):
        manager.wait_for(lambda lines: "WATCHDOG=1" in lines)
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        manager.wait_for(lambda lines: "WATCHDOG=1" in lines)
        monkeypatch.setenv("WATCHDOG_PID", "1")
        for _ in range(3):  # a message may have been under way
            last = manager.wait_for(lambda lines: True)
        assert last == ["STATUS=0 sessions"]


def hold_keeper(server: RunningServer, until: threading.Event) -> None:
    check = server.hooks.ledger.check

    def wait() -> None:
        until.wait()
        check()

    server.hooks.ledger.check = wait  # type: ignore[method-assign]


@pytest.mark.parametrize("thread", ["keeper", "listener"])
def test_a_thread_that_is_stuck_stops_the_watchdog_until_it_goes_on(
    cluster: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thread: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jumpserver, "STUCK_SECONDS", 2.5)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with contextlib.closing(Manager(str(tmp_path / "notify"))) as manager, contextlib.ExitStack() as stack:
        server = stack.enter_context(another_server(tmp_path, cluster))
        manager.wait_for(lambda lines: "WATCHDOG=1" in lines)
        go_on = threading.Event()
        stack.callback(go_on.set)
        if thread == "keeper":
            hold_keeper(server, go_on)
            manager.wait_for(lambda lines: "WATCHDOG=1" not in lines)
            go_on.set()
        else:
            with server.server._changed, connected(server.port):  # which accepting needs
                manager.wait_for(lambda lines: "WATCHDOG=1" not in lines)
        assert f"the thread {thread} is stuck" in caplog.text
        manager.wait_for(lambda lines: "WATCHDOG=1" in lines)


def test_a_manager_that_is_away_disturbs_nothing(
    cluster: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with Program(tmp_path, cluster) as server:
        assert server.end() == 0


@contextlib.contextmanager
def activated(
    installed: Installation,
    sockets: list[socket.socket],
    names: str = "",
    other_pid: bool = False,
    log_name: str = "log",
) -> Iterator[subprocess.Popen[bytes]]:
    """A server to which these sockets are handed; it has started, or ended."""
    log_file = installed.folder / log_name
    descriptors = [sock.fileno() for sock in sockets]
    environment = {**os.environ, "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names}
    command = [sys.executable, "-c", ACTIVATE, ",".join(map(str, descriptors)), str(int(other_pid))]
    command += [jumpserver.__file__, "-jumpserver", str(installed.config_file)]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env=environment, pass_fds=descriptors, stdout=log, stderr=log)
    try:
        started = lambda: " start " in log_file.read_text() or process.poll() is not None  # noqa: E731
        wait_until(started, "the start", START_SECONDS)
        yield process
    finally:
        process.kill()
        process.wait()


def high(sock: socket.socket) -> socket.socket:
    """The same socket, with a descriptor that is none of those that a service gets."""
    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 10))


def listening() -> socket.socket:
    return high(socket.create_server(("127.0.0.1", 0)))


def ask(port: int, path: str) -> bytes:
    with connected(port) as sock:
        sock.sendall(request_head(path))
        return read_until(sock)


def test_a_restart_refuses_nobody_where_the_manager_holds_the_socket(cluster: StandIn, tmp_path: Path) -> None:
    installed = Installation(tmp_path, cluster)
    with listening() as sock:
        installed.port = sock.getsockname()[1]
        with activated(installed, [sock]) as process, installed.connect() as terminal:
            terminal.wait_for_event("session")
            process.send_signal(signal.SIGTERM)
            assert terminal.wait_end()["reason"] == "the server is shutting down"
            assert process.wait(20) == 0
        with connected(installed.port) as early:  # while no server runs
            early.sendall(request_head("/readyz"))
            with activated(installed, [sock]), installed.connect() as terminal:
                assert read_until(early).endswith(b"\r\n\r\nready\n")
                terminal.wait_for_event("session")


@pytest.mark.parametrize("server_lines", ["", 'admin_listen = "127.0.0.1:1"', 'admin_listen = "[::1]:1"'])
def test_a_socket_named_admin_has_the_numbers_whatever_admin_listen_says(
    cluster: StandIn, tmp_path: Path, server_lines: str
) -> None:
    installed = Installation(tmp_path, cluster, server_lines=server_lines)
    with listening() as sock, listening() as admin:
        with activated(installed, [admin, sock], "admin:jumpserver.socket"):
            assert b"jumpserver_threads" in ask(admin.getsockname()[1], "/metrics")
            assert ask(sock.getsockname()[1], "/metrics").startswith(b"HTTP/1.1 404 ")


def test_several_processes_of_one_configuration_have_their_own_numbers(cluster: StandIn, tmp_path: Path) -> None:
    """As ``jumpserver@<port>`` with ``jumpserver-admin@<port>.socket``."""
    with socket.socket() as holder, contextlib.ExitStack() as stack:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        installed = Installation(tmp_path, cluster, port=holder.getsockname()[1], server_lines="reuse_port = true")
        admins = [stack.enter_context(listening()) for _ in range(2)]
        for number, admin in enumerate(admins):
            stack.enter_context(activated(installed, [admin], "admin", log_name=f"log{number}"))
        with installed.connect() as terminal:
            terminal.wait_for_event("session")
            numbers = [ask(admin.getsockname()[1], "/metrics") for admin in admins]
            assert sorted(b"jumpserver_sessions_open 1.0\n" in text for text in numbers) == [False, True]
            assert ask(installed.port, "/metrics").startswith(b"HTTP/1.1 404 ")


def test_sockets_for_another_process_are_left_alone(cluster: StandIn, tmp_path: Path) -> None:
    installed = Installation(tmp_path, cluster)
    with listening() as sock, activated(installed, [sock], other_pid=True):
        assert f":{sock.getsockname()[1]} " not in (tmp_path / "log").read_text()


def test_what_cannot_be_served_on_is_refused_in_words(cluster: StandIn, tmp_path: Path) -> None:
    installed = Installation(tmp_path, cluster)
    with high(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock, activated(installed, [sock]) as process:
        assert process.wait(WAIT_SECONDS) == 2
    assert "LISTEN_FDS: there must be one TCP socket that listens" in (tmp_path / "log").read_text()


# -- the units that ship ----------------------------------------------------------------------------------------------

UNITS = {
    "jumpserver.service": "jumpserver.service",
    "jumpserver.socket": "jumpserver.socket",
    "jumpserver@7101.service": "jumpserver.service",
    "jumpserver-admin@7101.socket": "jumpserver-admin@.socket",
}
"""What systemd is to load, and the file in deploy/ of which it is made."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the units, as an operator's is; only the interpreter is the one that is here."""
    for name, source in UNITS.items():
        text = (ROOT / "deploy" / source).read_text().replace("/opt/jumpserver/.venv/bin/python", sys.executable)
        (tmp_path / re.sub("@.*[.]", "@.", name)).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", UNITS)
def test_systemd_has_nothing_to_say_against_the_unit(units: Path, name: str) -> None:
    done = subprocess.run(
        [need_program("systemd-analyze"), "verify", "--man=no", name],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
        cwd=units,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_lets_the_server_do_hardly_more_than_it_must(units: Path) -> None:
    """The exposure that systemd counts is 2.0 of 10 at most."""
    command = [need_program("systemd-analyze"), "security", "--offline=true", "--no-pager", "--threshold=20"]
    done = subprocess.run([*command, str(units / "jumpserver.service")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
