"""An exec stream of the stand-in cluster: WebSocket frames on one side, a program in a pod on the other.

Owns the channels, the statuses and the ends; it is a single thread over non-blocking descriptors, so what one
side does not take, the other is not asked for. It knows nothing of HTTP, users or pods' names.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from wsproto import events as ws
from wsproto.connection import Connection, ConnectionType
from wsproto.utilities import RemoteProtocolError

from .pods import ExecFailure, Image, Process

STDIN, STDOUT, STDERR, STATUS, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"
MAX_MESSAGE_BYTES = 32 << 20
FRAME_BYTES = 32768  # a pipe gives as much at once, a pty 4,095
BUFFER_BYTES = 65536  # above it the pod's output is not read
STUCK_BYTES = 1 << 20  # so much above that (pongs to a client that does not read) the client is not read
DRAIN_BYTES = 1 << 20  # printed after the shell's end by what it left behind on the terminal
LINGER_SECONDS = 1.0


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
    impersonation: tuple[tuple[str, str], ...] = ()  # the headers that ask for it, as they came
    host: str = ""  # the header
    last_stdin_at: float = 0.0  # time.monotonic(), empty messages included
    bytes_in: int = 0
    bytes_out: int = 0


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


class Session:
    """One exec stream, from the answer 101 to the end of its program; that may be long after the stream's."""

    def __init__(
        self,
        sock: ssl.SSLSocket,
        record: Exec,
        image: Image,
        streams: frozenset[str],
        *,
        flavour: str,
        ping_interval: float | None,
        input_delay: float = 0.0,
        buffer_bytes: int = BUFFER_BYTES,
        frame_bytes: int = 0,
        changed: Callable[[], None],
    ) -> None:
        self.record = record
        self.image = image
        self.process: Process | None = None
        self._old = flavour == "old"
        self._ping_interval = ping_interval
        self._changed = changed  # wakes whoever waits for a change of the record
        self._streams = streams - {"stderr"} if "tty" in streams else streams
        self._sock: ssl.SSLSocket | None = sock
        self._ws = Connection(ConnectionType.SERVER)
        self._events: Iterator[ws.Event] = iter(())
        self._message: list[bytes] = []
        self._message_bytes = 0
        self._pending = memoryview(b"")  # stdin that the program does not take yet
        self._buffer_bytes = buffer_bytes
        self._frame_bytes = frame_bytes  # that output is gathered for; 0: a frame for each read
        self._out: deque[bytes] = deque()  # frames that the client does not take yet
        self.waiting_bytes = 0  # in _out; bounded by _buffer_bytes and STUCK_BYTES. Read from any thread
        self._closing = False  # the status is in _out
        self._drained_bytes = 0
        self._asked_pings: set[bytes] = set()
        self._reads_from = time.monotonic() + input_delay
        self._ping_at = time.monotonic() + (ping_interval or 0)
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
                self.process = Process(self.image, self.record.command, self._streams)
                self.record.pid = self.process.popen.pid
                self._changed()
                return
            except ExecFailure as exc:
                start = "OCI runtime exec failed: exec failed: unable to start container process: "
                if self.image.pod.runtime == "docker":
                    self._send(STDOUT, f"{start}{exc}: unknown\r\n".encode())
                    self._send_status(_exit_status(self.record.command, 126))
                    return
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
        if time.monotonic() < self._reads_from:
            return False
        stuck = self.waiting_bytes > self._buffer_bytes + STUCK_BYTES
        return not (self._pending or self.record.jammed or self._closing or stuck)

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
            if self.waiting_bytes < self._buffer_bytes:
                wanted.update(dict.fromkeys(process.outputs, select.POLLIN))
            if self._pending and process.stdin is not None:
                wanted[process.stdin] = wanted.get(process.stdin, 0) | select.POLLOUT
        return wanted

    def _timeout_ms(self) -> float | None:
        if self._sock is None:
            return None
        buffered = self._reads() and self._sock.pending() > 0  # decrypted, so invisible to poll
        draining = self._draining() and self.waiting_bytes < self._buffer_bytes
        if buffered or draining:
            return 0
        if time.monotonic() < self._reads_from:
            return max(1.0, (self._reads_from - time.monotonic()) * 1000)
        if self._ping_interval and not self._closing:
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
        interval = self._ping_interval
        if interval and time.monotonic() >= self._ping_at:
            self._ping_at = time.monotonic() + interval
            self._ping()

    def _ping(self) -> None:
        if self._sock is not None and not self._closing and len(self._asked_pings) < 1000:
            payload = secrets.token_bytes(4)
            self._asked_pings.add(payload)
            self._queue(self._ws.send(ws.Ping(payload=payload)))

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
            self._queue(self._ws.send(event.response()))
        elif isinstance(event, ws.Pong):
            self._handle_pong(bytes(event.payload))
        elif isinstance(event, ws.CloseConnection):
            self._queue(self._ws.send(event.response()))
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
        self._changed()

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
        elif channel == CLOSE and message[1:] == b"\0" and self.record.subprotocol == V5 and process is not None:
            process.close_stdin()
        self._changed()

    def _relay_output(self, ready: dict[int, int]) -> None:
        process = self.process
        if process is None:
            return
        if process.pidfd in ready and self.record.exit_code is None:
            self.record.exit_code = process.exit_code()
        if self._sock is None:
            return
        for descriptor, channel in list(process.outputs.items()):
            if self.waiting_bytes >= self._buffer_bytes:
                if ready.get(descriptor, 0) & (select.POLLHUP | select.POLLERR):
                    process.close_stdin()  # polled for writing only, and there is nobody to read it
            elif descriptor in ready or self._draining():
                self._read_output(process, descriptor, channel)

    def _read_output(self, process: Process, descriptor: int, channel: int) -> None:
        data, ended = self._gather(descriptor)
        if not data and not ended:
            return
        self._drained_bytes += len(data) if self._draining() else 0
        if data and self._drained_bytes <= DRAIN_BYTES:
            self.record.bytes_out += len(data)
            self._send(channel, data)
        else:
            del process.outputs[descriptor]

    def _gather(self, descriptor: int) -> tuple[bytes, bool]:
        """Output for one frame, and whether the descriptor has no more."""
        data = b""
        try:
            while True:
                more = os.read(descriptor, (self._frame_bytes or FRAME_BYTES) - len(data))
                data += more
                if not more or len(data) >= self._frame_bytes:
                    return data, not more
        except BlockingIOError:
            return data, not data and self._draining()
        except OSError:  # EIO: nobody has the terminal open any more
            return data, True

    def _queue(self, frame: bytes) -> None:
        self._out.append(frame)
        self.waiting_bytes += len(frame)

    def _send(self, channel: int, data: bytes) -> None:
        self._queue(self._ws.send(ws.BytesMessage(data=bytes((channel,)) + data)))

    def _send_status(self, status: dict[str, Any]) -> None:
        if self._old or self.record.subprotocol == V5:
            status = {"metadata": {}, **status}
        self._send(STATUS, json.dumps(status, separators=(",", ":")).encode())
        self._queue(self._ws.send(ws.CloseConnection(code=1000)))
        self._closing = True
        self.record.ended = "status"  # before the client can know

    def _flush(self) -> None:
        """Send what the client takes, each frame in a TLS record of its own, as a real API server does."""
        try:
            while self._out and self._sock is not None:
                sent = self._sock.send(self._out[0])
                self.waiting_bytes -= sent
                if sent < len(self._out[0]):
                    self._out[0] = self._out[0][sent:]
                else:
                    self._out.popleft()
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
            self._changed()
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
        self._changed()

    def _disconnect(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock = None
        self._out.clear()
