"""What the tests share: a stand-in cluster, a running jumpserver, clients, and the proof that nothing is left over."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, TypeVar

import jwt
import psycopg
import pytest
import trustme
import websocket

import hooks
import jumpserver
from demo.cluster import StandIn
from k8s_exec import ExecRefused, PodExec, Target, Trust, load_kubeconfig
from recorder import RecordFolder

jumpserver.POLL_SECONDS = 0.01  # thousands of servers are ended here
jumpserver.TICK_SECONDS = 0.1  # and many wait for the clock
WAIT_SECONDS = 10.0
START_SECONDS = 20.0
PROGRAM = Path(jumpserver.__file__)
_STARTED = re.compile(r"\bstart\b.*\blisten\W+\S*:(\d+)")  # in every form of the log
LOOPBACK = Trust(allow_servers=("127.0.0.0/8", "::1"))  # for a kubeconfig as it comes with a token
ALLOW_LOOPBACK = '[Kubernetes]\nallow_servers = ["127.0.0.0/8"]\n'  # the same in a configuration


def wait_until(condition: Callable[[], object], what: str = "the condition", seconds: float = WAIT_SECONDS) -> None:
    """Poll until the condition holds; for states of other processes and the system, which wake nobody."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds:g} s")
        pause.wait(0.01)


def wait_until_still(count: Callable[[], int]) -> None:
    """Wait until the number is above 0 and has stayed the same for a while: who counts it is blocked."""
    seen: list[int] = []

    def still() -> bool:
        seen.append(count())
        return seen[-1] > 0 and seen[-20:].count(seen[-1]) == 20

    wait_until(still)


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def programs(cluster: StandIn, pod: str = "demo") -> list[str]:
    """The names of what runs in the pod."""
    names = []
    for pid in cluster.processes("default", pod):
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return sorted(names)


def kubeconfig(cluster: StandIn | None, user: dict[str, Any] | None = None, /, **place: Any) -> str:
    """A kubeconfig in JSON for that user, by default the first one's token; ``place`` changes its cluster."""
    server: dict[str, Any] = {"server": "https://k8s.example"}
    if cluster is not None:
        server = {"server": cluster.url, "certificate-authority-data": b64(cluster.ca_pem)}
        user = user or {"token": cluster.token}
    document = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {**server, **place}}],
        "users": [{"name": "u", "user": user}],
    }
    return json.dumps(document)


def opened(
    text: str, trust: Trust = LOOPBACK, command: tuple[str, ...] = ("echo", "here"), limit: float = 5
) -> PodExec:
    """A program in the pod ``demo``, as a kubeconfig that came with a token may start it."""
    return PodExec.open(Target(load_kubeconfig(text, trust=trust), "default", "demo"), command, timeout=limit)


def output_of(text: str, trust: Trust = LOOPBACK) -> bytes:
    """What ``echo here`` prints there."""
    with contextlib.closing(opened(text, trust)) as pod:
        return b"".join(iter(pod.read, b""))


def refusal(text: str, trust: Trust = LOOPBACK, limit: float = 5) -> str:
    """The sentence with which it is refused."""
    with pytest.raises(ExecRefused) as caught:
        opened(text, trust, limit=limit).close()
    return str(caught.value)


class Installation:
    """The files of a jumpserver before a stand-in cluster, and how to reach it on ``port`` (0: any) once it runs.

    ``server_lines`` are added to ``[Server]``, ``record_lines`` to ``[Record]``, ``more`` at the end; ``config`` takes
    the place of everything. A lost browser ends its session at once, unless ``resume_grace`` says otherwise.
    """

    def __init__(
        self,
        folder: Path,
        cluster: StandIn,
        *,
        port: int = 0,
        config: str = "",
        resume_grace: int = 0,
        hooks_file: str = "",
        server_lines: str = "",
        record_lines: str = "",
        more: str = "",
    ) -> None:
        self.folder = folder
        self.cluster = cluster
        self.port = port
        self.secret = secrets.token_hex(32)
        (folder / "kubeconfig.yaml").write_text(cluster.kubeconfig())
        if hooks_file:
            (folder / "own_hooks.py").write_text(hooks_file)
        self.config_file = folder / "jumpserver.toml"
        self.config_file.write_text(
            config
            or f'[Server]\nlisten = "127.0.0.1:{port}"\nresume_grace = {resume_grace}\n{server_lines}\n'
            f'[Record]\npath = "records"\n{record_lines}\n'
            f'[Token]\nsecret = "{self.secret}"\n[Clusters]\nstandin = "kubeconfig.yaml"\n'
            + ('[Hooks]\nfile = "own_hooks.py"\n' if hooks_file else "")
            + more
        )
        self.config = jumpserver.load_config(self.config_file)

    @property
    def url(self) -> str:
        """The address of the pages."""
        return f"http://127.0.0.1:{self.port}/"

    def token(self, pod: str = "demo", **claims: Any) -> str:
        """A terminal token, valid for a minute."""
        values = {"exp": time.time() + 60, "sub": "alice", "namespace": "default", "pod_name": pod, **claims}
        return jwt.encode(values, self.secret, "HS256")

    def link_token(self, scope: str = "play", **claims: Any) -> str:
        """A token for a link."""
        return jwt.encode({"exp": time.time() + 60, "sub": "auditor", "scope": scope, **claims}, self.secret, "HS256")

    def terminal_url(self, pod: str = "demo", **claims: Any) -> str:
        """The page with a terminal in the pod."""
        return f"{self.url}#ssh_token={self.token(pod, **claims)}"

    def terminal_socket(self, **claims: Any) -> str:
        """The WebSocket of a terminal with a size."""
        return f"ws://127.0.0.1:{self.port}/ssh?ssh_token={self.token(**claims)}&cols=100&rows=30"

    def player_url(self, filename: str) -> str:
        """The page that plays a recording."""
        return f"{self.url}player.html#filename={filename}&token={self.link_token()}"

    def play_path(self, filename: str, **claims: Any) -> str:
        """The request target of a recording's download."""
        return f"/records/play?filename={filename}&token={self.link_token(**claims)}"

    def recordings(self) -> list[str]:
        """The recordings on disk, oldest first, by their names relative to the root."""
        root = self.config.record_path
        paths = sorted(root.rglob("*.cast"), key=lambda path: path.stat().st_mtime_ns)
        return [str(path.relative_to(root)) for path in paths]

    def rows(self) -> list[dict[str, Any]]:
        """The ledger."""
        with contextlib.closing(sqlite3.connect(self.config.hooks_settings().db)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM sessions ORDER BY login_at")]

    def wait_settled(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until every session has ended, and nothing is left to do about any."""
        wait_until(lambda: all(row["logout_at"] and not row["todo"] for row in self.rows()), "the ledger", seconds)

    def connect(
        self, pod: str = "demo", *, v1: bool = True, size: str = "&cols=100&rows=30", **claims: Any
    ) -> Terminal:
        """Open a terminal as a browser would."""
        return self.connect_with(self.token(pod, **claims), v1=v1, size=size)

    def connect_with(self, token: str, *, v1: bool = True, size: str = "", **options: Any) -> Terminal:
        """Open a terminal with this token."""
        url = f"ws://127.0.0.1:{self.port}/ssh?ssh_token={token}{size}"
        subprotocols = ["jumpserver.v1"] if v1 else None
        return Terminal(websocket.create_connection(url, WAIT_SECONDS, subprotocols=subprotocols, **options))

    def resume(self, lost: Terminal, base: str = "", **message: Any) -> Terminal:
        """Go on with the terminal that was lost, as a page does; ``message`` changes what it says.

        ``base``: of the page's address, ``host:port/prefix``, where it came through a proxy.
        """
        resume = lost.wait_for_event("session")["resume"]
        url = f"ws://{base or f'127.0.0.1:{self.port}'}/{resume['url']}"
        terminal = Terminal(websocket.create_connection(url, WAIT_SECONDS, subprotocols=["jumpserver.v1"]))
        terminal.send(**{"type": "resume", "secret": resume["secret"], "drawn": lost.drawn, **message})
        return terminal


class RunningServer(Installation):
    """A real jumpserver in this process, on a free port of this host."""

    def __init__(self, folder: Path, cluster: StandIn, **options: Any) -> None:
        super().__init__(folder, cluster, **options)
        hooks_file = self.config.Hooks.file
        hooks_class = hooks.load_hooks(self.config.folder / hooks_file if hooks_file else None)
        self.hooks = hooks_class(self.config.hooks_settings())
        self.server = jumpserver.JumpServer(self.config, self.hooks)
        self.server.start()
        self.port = int(self.server.server_address[1])
        self._stopped = False

    def stop(self, seconds: float = jumpserver.STOP_SECONDS) -> None:
        """Stop the server; once is enough."""
        if not self._stopped:
            self._stopped = True
            self.server.stop(seconds)


@contextlib.contextmanager
def another_server(folder: Path, cluster: StandIn, **options: Any) -> Iterator[RunningServer]:
    running = RunningServer(folder, cluster, **options)
    try:
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def running(folder: Path, cluster: StandIn, **options: Any) -> Iterator[RunningServer]:
    """A server of which nothing is left at the end."""
    with nothing_left(), another_server(folder, cluster, **options) as server:
        yield server


@contextlib.contextmanager
def opened_ledger(folder: Path) -> Iterator[hooks.Ledger]:
    """The ledger in that folder, beside those of servers."""
    ledger = hooks.Ledger(folder / "sessions.db")
    ledger.open()
    with contextlib.closing(ledger):
        yield ledger


OwnHooks = TypeVar("OwnHooks", bound=hooks.Hooks)


@contextlib.contextmanager
def keeping(folder: Path, own: Callable[[hooks.HooksSettings], OwnHooks]) -> Iterator[tuple[OwnHooks, hooks.Keeper]]:
    """A keeper at work, without a server, and the hooks that it calls."""
    called = own(hooks.HooksSettings(folder / "sessions.db"))
    config = jumpserver.Config(folder=folder)
    keeper = hooks.Keeper(called, jumpserver.Chores(config, RecordFolder(config.record_path)))
    with nothing_left():
        called.open()
        keeper.start()
        try:
            yield called, keeper
        finally:
            keeper.finish(time.monotonic() + 5)
            called.close()


class Program(Installation):
    """A jumpserver in a process of its own."""

    def __init__(
        self,
        folder: Path,
        cluster: StandIn,
        *,
        python: Sequence[str] = (sys.executable,),
        program: Path = PROGRAM,
        **options: Any,
    ) -> None:
        super().__init__(folder, cluster, **options)
        self.program = (*python, str(program))
        self.log_file = folder / "log"

    def __enter__(self) -> Program:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()

    def start(self, flag: str = "-jumpserver") -> None:
        with self.log_file.open("wb") as log:
            command = [*self.program, flag, str(self.config_file)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        over = lambda: _STARTED.search(self.log()) or self.process.poll() is not None  # noqa: E731
        wait_until(over, "the start", START_SECONDS)
        found = _STARTED.search(self.log())
        assert found, self.log()
        self.port = int(found[1])

    def log(self) -> str:
        return self.log_file.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(5)


@contextlib.contextmanager
def two_programs(folder: Path, cluster: StandIn, **options: Any) -> Iterator[tuple[Program, Program]]:
    """Two processes with one configuration, each on a port of its own."""
    first = Program(folder, cluster, **options)
    second = copy.copy(first)
    second.log_file = folder / "log-of-the-second"
    with first, second:
        yield first, second


def run_program(*arguments: str | Path, program: Path = PROGRAM) -> subprocess.CompletedProcess[str]:
    """Run a jumpserver that ends by itself."""
    command = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)


Side = TypeVar("Side", bound="Client")


class Client:
    """A browser's side of a WebSocket, without a browser."""

    def __init__(self, sock: websocket.WebSocket) -> None:
        self.sock = sock
        self.close_code: int | None = None  # None while open; 1006 when the connection was lost
        self.close_reason = ""

    def __enter__(self: Side) -> Side:
        return self

    def __exit__(self, *exc: object) -> None:
        self.drop()

    def drop(self) -> None:
        """Close the TCP connection without a word."""
        self.sock.shutdown()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Receive one message."""
        try:
            opcode, data = self.sock.recv_data()
        except (websocket.WebSocketConnectionClosedException, ConnectionError):
            self.close_code = 1006
            return
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            self.close_code = int.from_bytes(data[:2], "big")
            self.close_reason = data[2:].decode()
        else:
            self.take(opcode, data)

    def take(self, opcode: int, data: bytes) -> None:
        """Keep a message."""
        raise NotImplementedError


class Terminal(Client):
    """A browser's side of a terminal. Acknowledges output as a page does, if it speaks v1."""

    def __init__(self, sock: websocket.WebSocket) -> None:
        super().__init__(sock)
        self.acknowledges = True
        self.drawn = self.acknowledged = 0  # positions
        self.every = 32 << 10  # bytes to be drawn until the next acknowledgement
        self.output = b""  # all that was received as binary
        self.events: list[dict[str, Any]] = []  # all that was received as text

    def type(self, text: str) -> None:
        """Send keys."""
        self.send(type="input", input=text)

    def resize(self, cols: int, rows: int) -> None:
        """Send a size."""
        self.send(type="resize", rows=rows, cols=cols)

    def send(self, **message: Any) -> None:
        """Send one message."""
        self.sock.send(json.dumps(message))

    def take(self, opcode: int, data: bytes) -> None:
        if opcode == websocket.ABNF.OPCODE_BINARY:
            self.output += data
            self.drawn += len(data)
            if self.drawn - self.acknowledged >= self.every:
                self.acknowledge()
        elif opcode == websocket.ABNF.OPCODE_TEXT:
            self._hear(json.loads(data))

    def _hear(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["type"] == "session":
            self.drawn = event["position"]
            self.every = 32 << 10
            self.acknowledge()
        elif event["type"] == "ack":
            self.every = event["every"]
        elif event["type"] == "skipped":
            self.drawn += event["bytes"]

    def acknowledge(self) -> None:
        """Tell how much is drawn."""
        if self.acknowledges and self.sock.getsubprotocol():  # type: ignore[no-untyped-call]
            self.acknowledged = self.drawn
            with contextlib.suppress(OSError, websocket.WebSocketException):
                self.send(type="ack", drawn=self.drawn)

    def wait_for(self, text: str | bytes) -> bytes:
        """Receive until the output holds the text; returns all output."""
        wanted = text.encode() if isinstance(text, str) else text
        while wanted not in self.output:
            if self.close_code is not None:
                raise AssertionError(f"ended with {self.close_code} {self.close_reason!r} after {self.output[-500:]!r}")
            self.step()
        return self.output

    def wait_for_event(self, kind: str) -> dict[str, Any]:
        """Receive until there is a text message of that type."""
        while not any(event["type"] == kind for event in self.events):
            if self.close_code is not None:
                raise AssertionError(f"ended with {self.close_code} {self.close_reason!r} before {kind!r}")
            self.step()
        return next(event for event in self.events if event["type"] == kind)

    def wait_end(self) -> dict[str, Any]:
        """Receive until the connection ends; returns the ``end`` message, or an empty one."""
        while self.close_code is None:
            self.step()
        self.sock.shutdown()  # type: ignore[no-untyped-call]
        return next((event for event in self.events if event["type"] == "end"), {})


def request_head(target: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1")


KEY = f"Sec-WebSocket-Key: {b64(bytes(16))}"
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", KEY)


def ssh_head(server: Installation, query: str = "&cols=80&rows=24", **claims: Any) -> bytes:
    return request_head(f"/ssh?ssh_token={server.token(**claims)}{query}", *UPGRADE)


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        yield sock


def read_until(sock: socket.socket, text: bytes = b"") -> bytes:
    """Read until the text has come, or to the end."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while not text or text not in got:
            data = sock.recv(65536)
            if not data:
                break
            got += data
    return got


def exchange(port: int, request: bytes) -> bytes:
    with connected(port) as sock:
        sock.sendall(request)
        return read_until(sock)


def frame(data: bytes, opcode: int = websocket.ABNF.OPCODE_TEXT, *, first_byte: int | None = None) -> bytes:
    """A client's frame; ``first_byte`` takes the place of FIN and opcode."""
    whole: bytes = websocket.ABNF.create_frame(data, opcode, 1).format()
    return whole if first_byte is None else bytes([first_byte]) + whole[1:]


def answer_of(server: Installation, path: str) -> tuple[int, str]:
    """Status and text of the answer to a plain request."""
    try:
        with urllib.request.urlopen(f"{server.url}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def newest(server: Installation) -> Path:
    """The recording that was written last."""
    return server.config.record_path / server.recordings()[-1]


def recorded_events(path: Path, code: str) -> list[str]:
    """The data of a recording's events of one kind. Every line must be whole."""
    return [event[2] for event in map(json.loads, path.read_text().splitlines()[1:]) if event[1] == code]


def recorded_output(path: Path) -> bytes:
    return "".join(recorded_events(path, "o")).encode()


def last_row(server: Installation) -> dict[str, Any]:
    return server.rows()[-1]


def end_shell(terminal: Terminal) -> dict[str, Any]:
    terminal.type("exit\n")
    return terminal.wait_end()


def drop(sock: websocket.WebSocket) -> None:
    sock.shutdown()  # type: ignore[no-untyped-call]


def refuse(server: RunningServer, token: str, **options: Any) -> tuple[int, int, str]:
    """The close code of a v1 client, the HTTP status of an older one, and the reason, which is the same for both."""
    with server.connect_with(token, **options) as terminal:
        reason = terminal.wait_end()["reason"]
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        server.connect_with(token, v1=False, **options)
    assert (caught.value.resp_body or b"").decode() == f"{reason}\n"
    assert (caught.value.resp_headers or {})["content-type"] == "text/plain; charset=utf-8"
    assert server.cluster.execs == []
    return terminal.close_code or 0, caught.value.status_code, reason


class Listener:
    """A server on a free port; each connection is given to ``serve`` on a thread. ``close`` ends everything."""

    def __init__(self, serve: Callable[[socket.socket], None], host: str = "127.0.0.1") -> None:
        self._serve = serve
        self._lock = threading.Lock()  # guards the lists
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._socket = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port = int(self._socket.getsockname()[1])
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="test-listener", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.adopt(connection)
            self._start(self._run, connection)

    def adopt(self, connection: socket.socket) -> None:
        """Let ``close`` wake whoever is blocked on this socket, too."""
        with self._lock:
            self._open.append(connection)

    def _run(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._threads[0].join()
        for connection in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose queue is full: it answers nobody."""
    with socket.socket() as sock, contextlib.ExitStack() as stack:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        yield sock.getsockname()[1]


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[None]:
    """A real file system of that size at the folder."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)  # the test may have done so


def fill_up(folder: Path) -> Path:
    """Leave no byte free; remove the returned file to make room."""
    descriptor = os.open(folder / "fill", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(descriptor, bytes(4096)):
            pass
    os.close(descriptor)
    return folder / "fill"


def need_program(name: str) -> str:
    """The path of a program; without it the test is skipped, or fails where nothing may be skipped."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("JUMPSERVER_TESTS_NEED_ALL"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return path


def open_files() -> set[str]:
    """What this process has open, sockets and pipes included, by descriptor and target."""
    files = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            files.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return files


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if the block leaves a thread, or a file or socket open."""
    threads, files = set(threading.enumerate()), open_files()
    yield
    try:
        wait_until(lambda: set(threading.enumerate()) <= threads and open_files() <= files)
    except AssertionError:
        left = [thread.name for thread in set(threading.enumerate()) - threads]
        old = [thread.name for thread in threads]  # one of which may have opened what is left
        files_left = sorted(open_files() - files)
        raise AssertionError(f"left over: threads {left}, files {files_left}; threads before: {old}") from None


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def cluster() -> Iterator[StandIn]:
    with nothing_left(), StandIn() as running:
        yield running


@pytest.fixture
def server(cluster: StandIn, tmp_path: Path) -> Iterator[RunningServer]:
    with nothing_left():
        running = RunningServer(tmp_path, cluster)
        try:
            yield running
        finally:
            running.stop()
            cluster.wait_until(lambda: not cluster.shells())


def postgresql_programs() -> Path:
    """The folder of initdb and postgres: Debian's is on nobody's PATH."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path()) or Path(need_program("initdb")).parent


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A server of this worker's own, on a Unix socket; it refuses to be root's."""
    names = {user.pw_name for user in pwd.getpwall()}
    user = None if os.geteuid() else next(name for name in ("postgres", "nobody") if name in names)
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    folder.chmod(0o711)  # clients need no right but to connect
    if user is not None:
        shutil.chown(folder, user)
    programs, data = postgresql_programs(), folder / "data"
    setup = ("--no-sync", "--auth=trust", "--username=jumpserver", "--no-locale", "--encoding=UTF8")
    settings = ("listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", "max_connections=60")
    place = f"host={folder} user=jumpserver dbname=postgres"
    try:
        made = [str(programs / "initdb"), *setup, "--pgdata", str(data)]
        subprocess.run(made, check=True, capture_output=True, user=user, cwd=folder)
        words = [word for setting in settings for word in ("-c", setting)]
        with (folder / "log").open("wb") as log:
            started = [str(programs / "postgres"), "-D", str(data), *words]
            server = subprocess.Popen(started, stderr=log, user=user, cwd=folder)
        try:
            wait_until(lambda: _answers(place), "PostgreSQL")
            yield place
        finally:
            server.terminate()
            server.wait(10)
    finally:
        shutil.rmtree(folder)


def _answers(place: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(place):
        return True
    return False
