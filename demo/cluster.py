"""A stand-in for the part of a Kubernetes API server that a terminal needs: TLS, identities, pods and exec.

Owns: the certificate authority, the users, the make-believe pods (a directory of programs and a home on this
host, no isolation whatsoever: a shell here is a shell on the host) and the exec streams. It knows nothing of
the product. The answers are those of real clusters in two flavours, "new" (1.36) and "old" (1.32). Linux
only.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, final
from urllib.parse import parse_qs, unquote, urlsplit

import trustme
from wsproto import events as ws
from wsproto.connection import Connection, ConnectionType
from wsproto.utilities import RemoteProtocolError, generate_accept_token

__all__ = ["DEFAULT_PODS", "DEFAULT_USERS", "Exec", "Pod", "StandIn", "User"]

STDIN, STDOUT, STDERR, STATUS, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"
MAX_MESSAGE_BYTES = 32 << 20
READ_BYTES = 32768  # a pipe gives as much at once, a pty 4,095
OUT_FULL_BYTES = 65536  # above it the pod's output is not read
OUT_STUCK_BYTES = 1 << 20  # above it (pongs to a client that does not read) the client is not read
DRAIN_BYTES = 1 << 20  # printed after the shell's end by what it left behind on the terminal
HEAD_SECONDS = 10.0
LINGER_SECONDS = 1.0
STOP_SECONDS = 10.0

SYSTEM_DIRECTORIES = frozenset(("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin"))
COMMON_TOOLS = tuple(
    """
    [ awk basename cat chmod clear cp cut date dd df dirname du echo env expr false find grep head hostname id
    kill less ln ls mkdir mkfifo more mv nohup printf ps pwd readlink rm rmdir sed seq setsid sleep sort stat
    stty tail tee test timeout top touch tput tr true tty uname uniq vi wc which who xargs yes
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Pod:
    """`programs` are what `tools` has not: the shells. `state` is running, finished or pending."""

    namespace: str
    name: str
    containers: tuple[str, ...] = ("main",)
    state: str = "running"
    programs: tuple[str, ...] = ("bash", "sh")
    tools: tuple[str, ...] = COMMON_TOOLS


@dataclass(frozen=True)
class User:
    """`verbs` are those allowed on `pods/exec`."""

    name: str
    verbs: frozenset[str] = frozenset(("get", "create"))


DEFAULT_PODS = (
    Pod("default", "demo"),
    Pod("default", "busybox", programs=("sh",)),
    Pod("default", "multi", containers=("c1", "c2")),
    Pod("default", "distroless", programs=(), tools=("cat", "sleep")),
    Pod("default", "finished", state="finished"),
    Pod("default", "pending", state="pending"),
    Pod("kube-system", "busybox", programs=("sh",)),
)
DEFAULT_USERS = (User("demo"), User("reader", frozenset(("get",))), User("nobody", frozenset()))
ANONYMOUS = User("system:anonymous", frozenset())


@dataclass
class Exec:
    """What became of one exec request. Written by its thread only; the counters are read from any."""

    user: str
    method: str
    namespace: str
    pod: str
    container: str
    command: tuple[str, ...]
    tty: bool
    offered: tuple[str, ...]
    subprotocol: str = ""
    http_status: int = 0  # 101 when the stream was opened
    pid: int = 0
    exit_code: int | None = None
    ended: str = ""  # "status" (sent), "closed" (by a close frame), "lost" (TCP), "dropped" (by us)
    jammed: bool = False  # by a malformed resize: nothing is read any more
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (cols, rows)
    pings: int = 0  # received
    pongs: int = 0  # received, that answer one of our pings
    unsolicited_pongs: int = 0
    keepalives: int = 0  # empty stdin messages
    last_stdin_at: float = 0.0  # time.monotonic(), empty messages included
    bytes_in: int = 0
    bytes_out: int = 0


class Refusal(Exception):
    """An HTTP answer instead of the one asked for: a Status object, or text/plain."""

    def __init__(self, code: int, body: str | dict[str, Any]) -> None:
        super().__init__(code)
        self.code, self.body = code, body


class ExecFailure(Exception):
    """The runtime cannot start the program; the text is the end of the message in the status."""


def _refuse(code: int, reason: str, message: str, **details: str) -> Refusal:
    status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    status.update(message=message, reason=reason)
    if details:
        status["details"] = details
    return Refusal(code, {**status, "code": code})


def _forbidden(user: str, verb: str, resource: str, namespace: str, name: str = "") -> Refusal:
    which = f'pods "{name}" is' if name else "pods is"
    cannot = f'User "{user}" cannot {verb} resource "{resource}" in API group ""'
    message = f'{which} forbidden: {cannot} in the namespace "{namespace}"'
    return _refuse(403, "Forbidden", message, name=name, kind="pods")


def _exit_status(command: Sequence[str], code: int) -> dict[str, Any]:
    if code == 0:
        return {"status": "Success"}
    what = f"error executing command [{' '.join(command)}], exit code {code}"
    return {
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: {what}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def _internal_error(text: str, old: bool) -> dict[str, Any]:
    status: dict[str, Any] = {
        "status": "Failure",
        "message": f"Internal error occurred: {text}",
        "reason": "InternalError",
    }
    if old:
        status["details"] = {"causes": [{"message": text}]}
    return {**status, "code": 500}


def _parse_size(payload: bytes) -> tuple[int, int]:
    """(cols, rows) of a resize message, as Go reads two uint16 fields; ValueError when it would not."""
    size = json.loads(payload)
    fields = ("Width", "Height")
    cols, rows = (size.get(name, 0) if isinstance(size, dict) else -1 for name in fields)
    for value in (cols, rows):
        if type(value) is not int or not 0 <= value <= 65535:
            raise ValueError("not an unsigned 16-bit integer")
    return cols, rows


class _Image:
    """What a pod's programs see: a bin directory that is the whole PATH, and a home."""

    def __init__(self, root: Path, pod: Pod) -> None:
        self.pod, self.root = pod, root
        self.bin, self.home = root / "bin", root / "home"
        self.bin.mkdir(parents=True)
        self.home.mkdir()
        for name in (*pod.programs, *pod.tools):
            target = shutil.which(name, path=os.pathsep.join(sorted(SYSTEM_DIRECTORIES)))
            if target:
                (self.bin / name).symlink_to(target)
        self.environment = {"PATH": str(self.bin), "HOSTNAME": pod.name, "HOME": str(self.home)}

    def resolve(self, command: Sequence[str]) -> str:
        """The path of the program on this host; ExecFailure in the runtime's words when there is none."""
        program = command[0] if command else ""
        if not program:
            raise ExecFailure("args must not be empty")
        folder, name = os.path.split(program)
        path = self.bin / name if not folder or folder in SYSTEM_DIRECTORIES else self.home / program
        if not path.exists():
            why = (
                f"stat {program}: no such file or directory"
                if folder
                else "executable file not found in $PATH"
            )
            raise ExecFailure(f'exec: "{program}": {why}')
        if path.is_dir() or not os.access(path, os.X_OK):
            raise ExecFailure(f'exec: "{program}": permission denied')
        return str(path)


def _processes_in(folder: Path) -> list[int]:
    """Pids of the live processes with a home or working directory below the folder, and of their children."""
    below = os.fsencode(folder) + b"/"
    parents: dict[int, int] = {}
    found: set[int] = set()
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        with contextlib.suppress(OSError):
            state, parent = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:2]
            if state == b"Z":
                continue
            parents[pid] = int(parent)
            environment = b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
            if b"\0HOME=" + below in environment or os.readlink(b"/proc/%d/cwd" % pid).startswith(below):
                found.add(pid)
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return sorted(found)
        found |= more


def _kill_in(folder: Path) -> None:
    """SIGKILL to all of them, again and again until nothing is left. Blocks up to 5 s."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        pids = _processes_in(folder)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


class _Process:
    """A program in a pod with the near ends of its terminal or pipes, non-blocking. Session thread only."""

    def __init__(self, image: _Image, command: Sequence[str], streams: frozenset[str]) -> None:
        path = image.resolve(command)
        self.tty = "tty" in streams
        self.stdin: int | None = None
        self.outputs: dict[int, int] = {}  # descriptor: channel
        self._descriptors: list[int] = []
        try:
            if self.tty:
                self.popen = self._start_on_terminal(image, command, "stdin" in streams)
            else:
                self.popen = self._start_on_pipes(image, command, path, streams)
            self.pidfd = os.pidfd_open(self.popen.pid)
        except OSError as exc:
            self._close_descriptors()
            raise ExecFailure(f'exec: "{command[0]}": {(exc.strerror or "").lower()}') from exc
        self._descriptors.append(self.pidfd)
        for descriptor in self._descriptors:
            os.set_blocking(descriptor, False)

    def _start_on_terminal(
        self, image: _Image, command: Sequence[str], stdin: bool
    ) -> subprocess.Popen[bytes]:
        master, slave = os.openpty()
        self._descriptors.append(master)
        self.outputs[master] = STDOUT
        self.stdin = master if stdin else None
        # setsid(1) makes the session and the controlling terminal, then becomes the program: no code of ours
        # runs between fork and exec, which a process with threads must not do.
        try:
            return subprocess.Popen(
                ("setsid", "-c", *command),
                executable=shutil.which("setsid"),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=image.environment,
                cwd=image.home,
            )
        finally:
            os.close(slave)

    def _start_on_pipes(
        self, image: _Image, command: Sequence[str], path: str, streams: frozenset[str]
    ) -> subprocess.Popen[bytes]:
        far: list[int] = []
        ends: list[int] = [subprocess.DEVNULL] * 3
        try:
            for number, name in enumerate(("stdin", "stdout", "stderr")):
                if name not in streams:
                    continue
                read_end, write_end = os.pipe()
                theirs, ours = (read_end, write_end) if number == 0 else (write_end, read_end)
                far.append(theirs)
                self._descriptors.append(ours)
                ends[number] = theirs
                if number == 0:
                    self.stdin = ours
                else:
                    self.outputs[ours] = number
            return subprocess.Popen(
                command,
                executable=path,
                stdin=ends[0],
                stdout=ends[1],
                stderr=ends[2],
                env=image.environment,
                cwd=image.home,
                start_new_session=True,
            )
        finally:
            for descriptor in far:
                os.close(descriptor)

    def write(self, data: memoryview) -> memoryview:
        """Give the program what it takes now; the rest comes back. After its end everything is taken."""
        while data and self.stdin is not None:
            try:
                data = data[os.write(self.stdin, data) :]
            except BlockingIOError:
                return data
            except OSError:
                self.close_stdin()
        return memoryview(b"")

    def close_stdin(self) -> None:
        """End of file for a pipe. A terminal has no such thing: it stays open, and takes no more."""
        if self.stdin is not None and not self.tty:
            self._descriptors.remove(self.stdin)
            os.close(self.stdin)
        self.stdin = None

    def resize(self, cols: int, rows: int) -> None:
        for master in self.outputs if self.tty else ():
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def exit_code(self) -> int | None:
        code = self.popen.poll()
        return code if code is None or code >= 0 else 128 - code

    def close(self) -> None:
        """Kill and reap the program if it still runs, and close everything."""
        self.popen.kill()
        self.popen.wait()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self.outputs.clear()
        self.stdin = None


class _Session:
    """One exec stream, from the answer 101 to the end of its program; that may be long after the stream's."""

    def __init__(
        self,
        cluster: StandIn,
        sock: ssl.SSLSocket,
        record: Exec,
        image: _Image,
        streams: frozenset[str],
    ) -> None:
        self.record = record
        self.image = image
        self.process: _Process | None = None
        self._cluster = cluster
        self._old = cluster.flavour == "old"
        self._streams = streams - {"stderr"} if "tty" in streams else streams
        self._sock: ssl.SSLSocket | None = sock
        self._ws = Connection(ConnectionType.SERVER)
        self._events: Iterator[ws.Event] = iter(())
        self._message: list[bytes] = []
        self._message_bytes = 0
        self._pending = memoryview(b"")  # stdin that the program does not take yet
        self._out = bytearray()  # frames that the client does not take yet; bounded by OUT_STUCK_BYTES
        self._closing = False  # the status is in _out
        self._drained_bytes = 0
        self._asked_pings: set[bytes] = set()
        self._ping_at = time.monotonic() + (cluster.ping_interval or 0)
        self._commands: deque[str] = deque()
        self._wake_read, self._wake_write = os.pipe()
        self._wake_lock = threading.Lock()  # guards _wake_write against its closing

    def command(self, what: str) -> None:
        """Any thread: `ping` the client, `drop` the stream, or `stop`: drop it and kill the program."""
        with self._wake_lock:
            if self._wake_write >= 0:
                self._commands.append(what)
                os.write(self._wake_write, b"!")

    def run(self) -> None:
        """Relay until the program has ended and the stream is gone. Blocks."""
        assert self._sock is not None
        self._sock.setblocking(False)
        try:
            first = min({"stdout": STDOUT, "stderr": STDERR}.get(name, STATUS) for name in self._streams)
            self._send(first, b"")
            self._start()
            while self._sock is not None or self.process is not None:
                self._step()
        finally:
            self._disconnect()
            if self.process is not None:
                self.process.close()
            with self._wake_lock:
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._wake_write = -1

    def _start(self) -> None:
        failure = f'container not found ("{self.record.container}")'
        if self.image.pod.state == "running":
            try:
                self.process = _Process(self.image, self.record.command, self._streams)
                self.record.pid = self.process.popen.pid
                self._cluster.changed()
                return
            except ExecFailure as exc:
                start = "OCI runtime exec failed: exec failed: unable to start container process: "
                failure = f"error executing command in container: failed to exec in container: {start}{exc}"
        self._send_status(_internal_error(failure + (": unknown" if self._old else ""), self._old))

    def _step(self) -> None:
        """Wait for what can be done, and do it once."""
        wanted = self._wanted()
        poller = select.poll()
        for descriptor, mask in wanted.items():
            poller.register(descriptor, mask)
        ready = dict(poller.poll(self._timeout_ms()))
        if self._wake_read in ready:
            self._obey()
        self._ping_when_due()
        self._relay_input(ready)
        self._relay_output(ready)
        self._flush()
        self._finish()

    def _reads(self) -> bool:
        """Whether the client may be read: not while its input waits, nor after a malformed resize."""
        return not (self._pending or self.record.jammed or self._closing or len(self._out) > OUT_STUCK_BYTES)

    def _wanted(self) -> dict[int, int]:
        wanted = {self._wake_read: select.POLLIN}
        process = self.process
        if process is not None and self.record.exit_code is None:
            wanted[process.pidfd] = select.POLLIN
        if self._sock is None:
            return wanted
        mask = select.POLLIN if self._reads() else select.POLLRDHUP
        wanted[self._sock.fileno()] = mask | (select.POLLOUT if self._out else 0)
        if process is not None:
            if len(self._out) < OUT_FULL_BYTES:
                wanted.update(dict.fromkeys(process.outputs, select.POLLIN))
            if self._pending and process.stdin is not None:
                wanted[process.stdin] = wanted.get(process.stdin, 0) | select.POLLOUT
        return wanted

    def _timeout_ms(self) -> float | None:
        if self._sock is None:
            return None
        buffered = self._reads() and self._sock.pending() > 0  # decrypted, so invisible to poll
        draining = self._draining() and len(self._out) < OUT_FULL_BYTES
        if buffered or draining:
            return 0
        if self._cluster.ping_interval and not self._closing:
            return max(0.0, self._ping_at - time.monotonic()) * 1000
        return None

    def _draining(self) -> bool:
        """Whether only the rest of a terminal is to be read. What the shell left behind may hold it open."""
        return self.process is not None and self.process.tty and self.record.exit_code is not None

    def _obey(self) -> None:
        os.read(self._wake_read, 4096)
        while self._commands:
            command = self._commands.popleft()
            if command == "ping":
                self._ping()
            else:
                self._lose("dropped")
                if command == "stop" and self.process is not None:
                    self.process.popen.kill()

    def _ping_when_due(self) -> None:
        interval = self._cluster.ping_interval
        if interval and time.monotonic() >= self._ping_at:
            self._ping_at = time.monotonic() + interval
            self._ping()

    def _ping(self) -> None:
        if self._sock is not None and not self._closing and len(self._asked_pings) < 1000:
            payload = secrets.token_bytes(4)
            self._asked_pings.add(payload)
            self._out += self._ws.send(ws.Ping(payload=payload))

    def _relay_input(self, ready: dict[int, int]) -> None:
        process = self.process
        if process is not None and self._pending:
            self._pending = process.write(self._pending)
        if self._sock is None:
            return
        got = ready.get(self._sock.fileno(), 0)
        if self._reads():
            self._handle_events()  # those that waited for the program to take its input
        if self._sock is not None and self._reads() and (got & select.POLLIN or self._sock.pending()):
            self._receive(self._sock)
        elif got & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
            self._lose("lost")

    def _receive(self, sock: ssl.SSLSocket) -> None:
        try:
            data = sock.recv(65536)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            data = b""
        if not data:
            self._lose("lost")
            return
        self._ws.receive_data(data)
        self._events = self._ws.events()
        self._handle_events()

    def _handle_events(self) -> None:
        try:
            while self._sock is not None and self._reads():
                event = next(self._events, None)
                if event is None:
                    return
                self._handle(event)
        except RemoteProtocolError:
            self._lose("lost")

    def _handle(self, event: ws.Event) -> None:
        if isinstance(event, (ws.BytesMessage, ws.TextMessage)):
            self._collect(event)
        elif isinstance(event, ws.Ping):
            self.record.pings += 1
            self._out += self._ws.send(event.response())
        elif isinstance(event, ws.Pong):
            self._handle_pong(bytes(event.payload))
        elif isinstance(event, ws.CloseConnection):
            self._out += self._ws.send(event.response())
            self._flush()
            self._leave("closed")

    def _handle_pong(self, payload: bytes) -> None:
        if payload in self._asked_pings:
            self._asked_pings.remove(payload)
            self.record.pongs += 1
        else:
            self.record.unsolicited_pongs += 1
            if self._old:
                self._lose("dropped")
        self._cluster.changed()

    def _collect(self, event: ws.BytesMessage | ws.TextMessage) -> None:
        """Join the parts of a message as they arrive. On v4 every fragment counts as a message of its own."""
        data = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
        self._message.append(data)
        self._message_bytes += len(data)
        if self._message_bytes > MAX_MESSAGE_BYTES:
            self._lose("dropped")
        elif event.message_finished or (event.frame_finished and self.record.subprotocol == V4):
            message = b"".join(self._message)
            self._message.clear()
            self._message_bytes = 0
            if message:
                self._dispatch(message[0], message)

    def _dispatch(self, channel: int, message: bytes) -> None:
        process = self.process
        if channel == STDIN:
            self.record.last_stdin_at = time.monotonic()
            self.record.bytes_in += len(message) - 1
            self.record.keepalives += len(message) == 1
            if process is not None:
                self._pending = process.write(memoryview(message)[1:])
        elif channel == RESIZE and len(message) > 1 and "tty" in self._streams:
            try:
                cols, rows = _parse_size(message[1:])
            except ValueError:
                self.record.jammed = True
            else:
                self.record.sizes.append((cols, rows))
                if process is not None and cols and rows:
                    process.resize(cols, rows)
        elif (
            channel == CLOSE
            and message[1:] == b"\0"
            and self.record.subprotocol == V5
            and process is not None
        ):
            process.close_stdin()
        self._cluster.changed()

    def _relay_output(self, ready: dict[int, int]) -> None:
        process = self.process
        if process is None:
            return
        if process.pidfd in ready and self.record.exit_code is None:
            self.record.exit_code = process.exit_code()
        if self._sock is None:
            return
        for descriptor, channel in list(process.outputs.items()):
            if len(self._out) >= OUT_FULL_BYTES:
                if ready.get(descriptor, 0) & (select.POLLHUP | select.POLLERR):
                    process.close_stdin()  # polled for writing only, and there is nobody to read it
            elif descriptor in ready or self._draining():
                self._read_output(process, descriptor, channel)

    def _read_output(self, process: _Process, descriptor: int, channel: int) -> None:
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            if not self._draining():
                return
            data = b""
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        self._drained_bytes += len(data) if self._draining() else 0
        if data and self._drained_bytes <= DRAIN_BYTES:
            self.record.bytes_out += len(data)
            self._send(channel, data)
        else:
            del process.outputs[descriptor]

    def _send(self, channel: int, data: bytes) -> None:
        self._out += self._ws.send(ws.BytesMessage(data=bytes((channel,)) + data))

    def _send_status(self, status: dict[str, Any]) -> None:
        if self._old or self.record.subprotocol == V5:
            status = {"metadata": {}, **status}
        self._send(STATUS, json.dumps(status, separators=(",", ":")).encode())
        self._out += self._ws.send(ws.CloseConnection(code=1000))
        self._closing = True
        self.record.ended = "status"  # before the client can know

    def _flush(self) -> None:
        try:
            while self._out and self._sock is not None:
                del self._out[: self._sock.send(bytes(self._out[:16384]))]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._lose("lost")

    def _finish(self) -> None:
        """Take the steps that the end of the program, of its output and of the frames call for."""
        process = self.process
        code = self.record.exit_code
        if process is not None and code is not None and (self._sock is None or not process.outputs):
            process.close()
            self.process = None
            self._pending = memoryview(b"")
            if self._sock is not None:
                self._send_status(_exit_status(self.record.command, code))
                self._flush()
            self._cluster.changed()
        if self._closing and not self._out and self._sock is not None:
            self._leave("status")

    def _lose(self, how: str) -> None:
        """The TCP connection is gone, or is made to go: on "new" with v4 this kills the shell itself."""
        if self._sock is None:
            return
        if how == "dropped":  # a reset, not a goodbye
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._disconnect()
        if self.process is not None and not self._old and self.record.subprotocol == V4:
            self.process.popen.kill()
        self._end(how)

    def _leave(self, how: str) -> None:
        """Close after an orderly end. To close on unread input would be a reset, and lose the status."""
        sock = self._sock
        if sock is None:
            return
        deadline = time.monotonic() + LINGER_SECONDS
        with contextlib.suppress(OSError, ValueError):
            with contextlib.suppress(OSError):
                sock.unwrap()  # sends the close_notify; the answer is not waited for
            socket.socket.shutdown(sock, socket.SHUT_WR)
            while time.monotonic() < deadline:
                sock.settimeout(deadline - time.monotonic())
                if not socket.socket.recv(sock, 65536):
                    break
        self._disconnect()
        self._end(how)

    def _end(self, how: str) -> None:
        self.record.ended = how
        if self.process is not None:
            self._pending = memoryview(b"")
            self.process.close_stdin()
        self._cluster.changed()

    def _disconnect(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock = None
        self._out.clear()


class _Server(ThreadingHTTPServer):
    """Accepts at once; TLS is spoken in the connection's thread. Knows its threads and sockets."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, cluster: StandIn, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.cluster = cluster
        self._context = context
        self._lock = threading.Lock()  # guards _connections
        self._connections: dict[threading.Thread, socket.socket] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # http.server's own looks up the host name, which can hang on DNS.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self._serve_connection,
            args=(request, client_address),
            name="standin-connection",
            daemon=True,
        )
        with self._lock:
            self._connections[thread] = request
        thread.start()

    def _serve_connection(self, raw: socket.socket, client_address: Any) -> None:
        sock = raw
        try:
            raw.settimeout(HEAD_SECONDS)
            sock = self._context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
            with self._lock:
                self._connections[threading.current_thread()] = sock
            if not self.cluster.stopping:
                sock.do_handshake()
                _Handler(sock, client_address, self)
        except OSError:
            pass  # the client went away, or never spoke TLS
        finally:
            with self._lock:
                del self._connections[threading.current_thread()]
            sock.close()

    def close(self, deadline: float) -> None:
        """Cut every connection and wait for its thread."""
        self.server_close()
        with self._lock:
            connections = dict(self._connections)
            for sock in connections.values():
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in connections:
            thread.join(max(0.0, deadline - time.monotonic()))


class _Handler(BaseHTTPRequestHandler):
    """One connection of plain HTTP; an exec request turns it into a stream and ends it."""

    protocol_version = "HTTP/1.1"
    timeout = HEAD_SECONDS
    rbufsize = 0  # nothing of the stream may hide in a buffer
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        try:
            self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 1 << 20))
            answer = self._route()
        except Refusal as refusal:
            self._answer(refusal.code, refusal.body)
        else:
            if answer is not None:
                self._answer(200, answer)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `StandIn.execs` is the log."""

    def _answer(self, code: int, body: str | dict[str, Any]) -> None:
        text = isinstance(body, str)
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; charset=utf-8" if text else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _route(self) -> dict[str, Any] | None:
        url = urlsplit(self.path)
        path = tuple(unquote(part) for part in url.path.strip("/").split("/"))
        cluster = self.server.cluster
        user = cluster.authenticate(self.connection.getpeercert(), self.headers.get("Authorization", ""))
        if path[:3] == ("api", "v1", "namespaces") and len(path) in (5, 6, 7) and path[4] == "pods":
            if len(path) == 7 and path[6] == "exec":
                self._exec(user, path[3], path[5], parse_qs(url.query, keep_blank_values=True))
                return None
            if "get" not in user.verbs:
                raise _forbidden(user.name, "get" if path[5:] else "list", "pods", path[3], "".join(path[5:]))
            if len(path) == 6:
                return _pod_object(cluster.find(path[3], path[5]).pod)
            if len(path) == 5:
                pods = [pod for pod in cluster.pods() if pod.namespace == path[3]]
                return _pod_table(pods) if "as=Table" in self.headers.get("Accept", "") else _pod_list(pods)
        if path in DISCOVERY:
            return {"gitVersion": "v1.36.0" if cluster.flavour == "new" else "v1.32.0", **DISCOVERY[path]}
        raise _refuse(404, "NotFound", "the server could not find the requested resource")

    def _exec(self, user: User, namespace: str, name: str, query: dict[str, list[str]]) -> None:
        cluster = self.server.cluster
        streams = frozenset(
            key for key in ("stdin", "stdout", "stderr", "tty") if _is_true(query.get(key, [""]))
        )
        record = Exec(
            user=user.name,
            method=self.command,
            namespace=namespace,
            pod=name,
            container=query.get("container", [""])[0],
            command=tuple(query.get("command", ())),
            tty="tty" in streams,
            offered=tuple(self._tokens("Sec-WebSocket-Protocol")),
        )
        cluster.add(record)
        try:
            image = cluster.admit(record, user, streams, self._tokens("Upgrade"), self._tokens("Connection"))
            key = self.headers.get("Sec-WebSocket-Key", "")
            if self.command != "GET" or not key:
                raise _refuse(400, "BadRequest", "Upgrade request required")
        except Refusal as refusal:
            record.http_status = refusal.code
            raise
        finally:
            cluster.changed()
        self.close_connection = True
        self.send_response_only(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", generate_accept_token(key.encode()).decode())
        self.send_header("Sec-WebSocket-Protocol", record.subprotocol)
        self.end_headers()
        record.http_status = 101
        self.rfile.close()  # it would keep the socket open past its close
        cluster.serve(_Session(cluster, self.connection, record, image, streams))

    def _tokens(self, header: str) -> list[str]:
        values = ",".join(self.headers.get_all(header, ()))
        return [token.strip() for token in values.split(",") if token.strip()]


def _is_true(values: list[str]) -> bool:
    return values[0].lower() in ("1", "t", "true")


DISCOVERY: dict[tuple[str, ...], dict[str, Any]] = {
    ("version",): {"major": "1", "minor": "32", "platform": "linux/amd64"},
    ("api",): {"kind": "APIVersions", "versions": ["v1"]},
    ("apis",): {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    ("api", "v1"): {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {
                "name": "pods",
                "singularName": "pod",
                "namespaced": True,
                "kind": "Pod",
                "verbs": ["get", "list"],
            },
            {"name": "pods/exec", "namespaced": True, "kind": "PodExecOptions", "verbs": ["create", "get"]},
        ],
    },
}
PHASES = {"running": "Running", "finished": "Succeeded", "pending": "Pending"}


def _pod_object(pod: Pod) -> dict[str, Any]:
    ready = pod.state == "running"
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": f"{pod.namespace}-{pod.name}"},
        "spec": {"containers": [{"name": name, "image": "standin"} for name in pod.containers]},
        "status": {
            "phase": PHASES[pod.state],
            "containerStatuses": [
                {"name": name, "ready": ready, "restartCount": 0} for name in pod.containers
            ],
        },
    }


def _pod_list(pods: Sequence[Pod]) -> dict[str, Any]:
    items = [_pod_object(pod) for pod in pods]
    return {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}


def _pod_table(pods: Sequence[Pod]) -> dict[str, Any]:
    """What `kubectl get pods` asks for."""
    names = ("Name", "Ready", "Status", "Restarts")
    rows = []
    for pod in pods:
        total = len(pod.containers)
        ready = f"{total if pod.state == 'running' else 0}/{total}"
        cells = [pod.name, ready, "Completed" if pod.state == "finished" else PHASES[pod.state], 0]
        rows.append({"cells": cells, "object": _pod_object(pod)})
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": "1"},
        "columnDefinitions": [
            {"name": name, "type": "string", "format": "", "priority": 0} for name in names
        ],
        "rows": rows,
    }


@final
class StandIn:
    """A cluster on this host, from `start` to `stop`; also a context manager. Methods: any thread.

    `ping_interval` (seconds) makes it ping the clients of its exec streams, which real ones do not do.
    """

    def __init__(
        self,
        *,
        flavour: str = "new",
        pods: Iterable[Pod] = DEFAULT_PODS,
        users: Iterable[User] = DEFAULT_USERS,
        host: str = "127.0.0.1",
        port: int = 0,
        ping_interval: float | None = None,
    ) -> None:
        if flavour not in ("new", "old"):
            raise ValueError("flavour must be new or old")
        self.flavour = flavour
        self.host = host
        self.port = port
        self.ping_interval = ping_interval
        self.execs: list[Exec] = []  # every exec request since the start, refused ones too
        self.stopping = False
        self._first_pods = tuple(pods)
        self._users = {user.name: user for user in users}
        self._tokens = {f"standin-{secrets.token_hex(16)}": user for user in self._users.values()}
        self._ca = trustme.CA()
        self._changed = threading.Condition()  # guards execs, _images, _sessions, _tokens
        self._images: dict[tuple[str, str], _Image] = {}
        self._sessions: set[_Session] = set()
        self._root: tempfile.TemporaryDirectory[str] | None = None
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._image_number = 0

    # Life

    def start(self) -> StandIn:
        """Listen; returns when connections are accepted. OSError when the port is taken."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
        self._ca.configure_trust(context)
        self._ca.issue_cert(self.host, "127.0.0.1", "localhost").configure_cert(context)
        self._server = _Server(self, (self.host, self.port), context)
        self.port = self._server.server_port
        self._root = tempfile.TemporaryDirectory(prefix="standin-")
        for pod in self._first_pods:
            self.add_pod(pod)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="standin-accept", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """End every stream, process, thread and file of this cluster. Blocks for a moment; idempotent."""
        server, thread, root = self._server, self._thread, self._root
        if server is None or thread is None or root is None:
            return
        deadline = time.monotonic() + STOP_SECONDS
        self.stopping = True
        server.shutdown()
        thread.join()
        self._command("stop")
        server.close(deadline)
        _kill_in(Path(root.name))
        root.cleanup()
        self._images.clear()
        self._server = self._thread = self._root = None

    def __enter__(self) -> StandIn:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # How to reach it

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"

    @property
    def ca_pem(self) -> str:
        return self._ca.cert_pem.bytes().decode()

    @property
    def token(self) -> str:
        """The token of the first user, who may do everything unless other users were given."""
        return self.token_of(next(iter(self._users)))

    def token_of(self, user: str) -> str:
        """The user's valid token; KeyError when it has expired."""
        with self._changed:
            for token, owner in self._tokens.items():
                if owner.name == user:
                    return token
        raise KeyError(user)

    def client_certificate(self, user: str = "demo") -> tuple[str, str]:
        """A new (certificate, private key) for the user, both PEM."""
        leaf = self._ca.issue_cert("standin.invalid", common_name=user)
        return leaf.cert_chain_pems[0].bytes().decode(), leaf.private_key_pem.bytes().decode()

    def kubeconfig(self, *, auth: str = "token", user: str = "demo", namespace: str = "default") -> str:
        """A kubeconfig as kubectl writes it; `auth` is token or cert."""
        if auth == "token":
            secret = {"token": self.token_of(user)}
        elif auth == "cert":
            certificate, key = self.client_certificate(user)
            secret = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
        else:
            raise ValueError("auth must be token or cert")
        lines = [
            "apiVersion: v1",
            "clusters:",
            "- cluster:",
            f"    certificate-authority-data: {_base64(self.ca_pem)}",
            f"    server: {self.url}",
            "  name: standin",
            "contexts:",
            "- context:",
            "    cluster: standin",
            f"    namespace: {namespace}",
            f"    user: {user}",
            "  name: standin",
            "current-context: standin",
            "kind: Config",
            "preferences: {}",
            "users:",
            f"- name: {user}",
            "  user:",
            *(f"    {key}: {value}" for key, value in secret.items()),
        ]
        return "\n".join(lines) + "\n"

    # Controls

    def pods(self) -> list[Pod]:
        with self._changed:
            return [image.pod for image in self._images.values()]

    def add_pod(self, pod: Pod) -> None:
        """Only between start and stop."""
        if self._root is None:
            raise RuntimeError("the cluster is not started")
        with self._changed:
            self._image_number += 1
            root = Path(self._root.name, str(self._image_number))
            self._images[pod.namespace, pod.name] = _Image(root, pod)

    def delete_pod(self, namespace: str, name: str) -> None:
        """Kill all its processes; its streams end with status 137. KeyError when there is no such pod."""
        with self._changed:
            image = self._images.pop((namespace, name))
        _kill_in(image.root)

    def drop_connections(self) -> None:
        """Reset every exec stream, as when the API server restarts. Returns at once."""
        self._command("drop")

    def ping(self) -> None:
        """Send one ping on every exec stream; the answers are counted in `Exec.pongs`."""
        self._command("ping")

    def expire_token(self, user: str = "demo") -> None:
        """The user's tokens are refused from now on; open streams stay."""
        with self._changed:
            self._tokens = {token: owner for token, owner in self._tokens.items() if owner.name != user}

    def renew_token(self, user: str = "demo") -> str:
        """A new token, besides those that the user has."""
        token = f"standin-{secrets.token_hex(16)}"
        with self._changed:
            self._tokens[token] = self._users[user]
        return token

    def shells(self) -> list[int]:
        """Pids of the programs started by exec that still run, whether or not their streams do."""
        with self._changed:
            processes = [session.process for session in self._sessions]
        return sorted(p.popen.pid for p in processes if p is not None and p.popen.poll() is None)

    def processes(self, namespace: str = "default", name: str = "demo") -> list[int]:
        """Pids of everything alive in the pod, what the shells left behind included."""
        return _processes_in(self.find(namespace, name).root)

    def home(self, namespace: str = "default", name: str = "demo") -> Path:
        """The pod's home, where its programs start."""
        return self.find(namespace, name).home

    def wait_until(self, predicate: Callable[[], object], timeout: float = 5.0) -> None:
        """Block until the predicate holds; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not predicate():
                if time.monotonic() > deadline:
                    raise TimeoutError("the cluster did not come to the expected state")
                self._changed.wait(0.01)  # processes come and go without a word

    # For the connections' threads

    def changed(self) -> None:
        """Wake `wait_until`."""
        with self._changed:
            self._changed.notify_all()

    def add(self, record: Exec) -> None:
        with self._changed:
            self.execs.append(record)

    def serve(self, session: _Session) -> None:
        """Run a session to its end. Blocks."""
        with self._changed:
            self._sessions.add(session)
        if self.stopping:
            session.command("stop")
        try:
            session.run()
        finally:
            with self._changed:
                self._sessions.discard(session)
                self._changed.notify_all()

    def _command(self, what: str) -> None:
        with self._changed:
            sessions = list(self._sessions)
        for session in sessions:
            session.command(what)

    def find(self, namespace: str, name: str) -> _Image:
        with self._changed:
            image = self._images.get((namespace, name))
        if image is None:
            raise _refuse(404, "NotFound", f'pods "{name}" not found', name=name, kind="pods")
        return image

    def authenticate(self, certificate: Any, authorization: str) -> User:
        """Who asks: by certificate, else by bearer token."""
        for attribute in (certificate or {}).get("subject", ()):
            if attribute[0][0] == "commonName":
                return self._users.get(attribute[0][1], User(attribute[0][1], frozenset()))
        if not authorization:
            return ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        with self._changed:
            user = self._tokens.get(token.strip())
        if scheme.lower() != "bearer" or user is None:
            raise _refuse(401, "Unauthorized", "Unauthorized")
        return user

    def admit(
        self, record: Exec, user: User, streams: frozenset[str], upgrade: list[str], connection: list[str]
    ) -> _Image:
        """Refuse in the order of a cluster: API server, then kubelet. Sets container and subprotocol."""
        verb = record.method.lower().replace("post", "create")
        if verb not in user.verbs:
            raise _forbidden(user.name, verb, "pods/exec", record.namespace, record.pod)
        if self.flavour == "new" and "create" not in user.verbs:
            message = f'pods "{record.pod}" is forbidden: '
            raise _refuse(403, "Forbidden", message, name=record.pod, kind="pods")
        image = self.find(record.namespace, record.pod)
        record.container = self._choose_container(image.pod, record.container)
        websocket = [token.lower() for token in upgrade] == ["websocket"]
        if not websocket or "upgrade" not in [token.lower() for token in connection]:
            raise _refuse(400, "BadRequest", "Upgrade request required")
        if not streams & {"stdin", "stdout", "stderr"}:
            raise Refusal(400, "you must specify at least 1 of stdin, stdout, stderr")
        record.subprotocol = next((name for name in (V5, V4) if name in record.offered), "")
        if image.pod.state != "running" and not (self.flavour == "old" and record.subprotocol == V5):
            raise Refusal(500, f'container not found ("{record.container}")')
        if not record.subprotocol:
            raise Refusal(403, "")
        return image

    @staticmethod
    def _choose_container(pod: Pod, name: str) -> str:
        if name in pod.containers:
            return name
        if name:
            raise _refuse(400, "BadRequest", f"container {name} is not valid for pod {pod.name}")
        if len(pod.containers) > 1:
            choice = f"choose one of: [{' '.join(pod.containers)}]"
            raise _refuse(
                400, "BadRequest", f"a container name must be specified for pod {pod.name}, {choice}"
            )
        return pod.containers[0]


def _base64(pem: str) -> str:
    return base64.b64encode(pem.encode()).decode()
