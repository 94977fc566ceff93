"""A cluster whose bytes a test writes, and a program in a pod that is read to its end."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Callable

import trustme
from wsproto.utilities import generate_accept_token

from k8s_exec import Cluster, PodExec, Target, load_kubeconfig
from tests.support import LOOPBACK, WAIT_SECONDS, Listener, b64, kubeconfig, nothing_left

SECRET = "s3cr3t-bearer-token"


def ca_data(ca: trustme.CA) -> str:
    """As ``certificate-authority-data`` holds it."""
    return b64(ca.cert_pem.bytes())


def frame(payload: bytes, opcode: int = 2, *, fin: bool = True) -> bytes:
    """A server's frame (RFC 6455, section 5.2)."""
    first = (0x80 if fin else 0) | opcode
    if len(payload) < 126:
        return bytes((first, len(payload))) + payload
    if len(payload) < 65536:
        return struct.pack("!BBH", first, 126, len(payload)) + payload
    return struct.pack("!BBQ", first, 127, len(payload)) + payload


SUCCESS = frame(b'\x03{"status":"Success"}')


def tls_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """The server's side of TLS with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@contextlib.contextmanager
def tls_server(context: ssl.SSLContext, serve: Callable[[ssl.SSLSocket], object]) -> Iterator[int]:
    """A server that speaks TLS, then does that with each connection; its port. Nothing is left of it."""

    def talk(raw: socket.socket) -> None:
        with context.wrap_socket(raw, server_side=True) as tls:
            serve(tls)

    with nothing_left(), contextlib.closing(Listener(talk)) as listener:
        yield listener.port


class RawServer:
    """A TLS server whose answers the test writes: ``serve(connection, request head)``, a thread a connection."""

    def __init__(
        self,
        ca: trustme.CA,
        serve: Callable[[socket.socket, bytes], None],
        *,
        certificate: trustme.LeafCert | None = None,
        plain: bool = False,
    ) -> None:
        self.requests: list[bytes] = []
        self.accepted = 0
        self.stopping = threading.Event()
        self._serve = serve
        self._context = None if plain else tls_context(certificate or ca.issue_cert("127.0.0.1", "localhost"))
        self._ca = ca
        self._listener = Listener(self._talk)
        self.port = self._listener.port

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self._listener.close()

    def cluster(self, **changes: Any) -> Cluster:
        """How to reach it, with a token."""
        place = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority-data": ca_data(self._ca)}
        return load_kubeconfig(kubeconfig(None, {"token": SECRET}, **{**place, **changes}), trust=LOOPBACK)

    def _talk(self, raw: socket.socket) -> None:
        self.accepted += 1
        raw.settimeout(WAIT_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = raw if self._context is None else self._context.wrap_socket(raw, server_side=True)
        self._listener.adopt(connection)
        with connection:
            head = b""
            while self._context is not None and b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    break
                head += piece
            self.requests.append(head)
            self._serve(connection, head)
            while connection.recv(65536):
                pass


def answer(data: bytes) -> Callable[[socket.socket, bytes], None]:
    """Send this, then close the sending side."""

    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(data)
        socket.socket.shutdown(connection, socket.SHUT_WR)

    return serve


def upgrade(head: bytes, *headers: str, protocol: str = "v4.channel.k8s.io") -> bytes:
    """The right answer to this request."""
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {generate_accept_token(fields['Sec-WebSocket-Key'].encode()).decode()}",
        *([f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []),
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def stream(*frames: bytes) -> Callable[[socket.socket, bytes], None]:
    """Accept, send these bytes, and close."""

    def serve(connection: socket.socket, head: bytes) -> None:
        answer(upgrade(head) + b"".join(frames))(connection, head)

    return serve


def http_error(status: str, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def status_body(message: str, reason: str, code: int) -> bytes:
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return json.dumps({**status, "reason": reason, "details": {}, "code": code}).encode()


@contextlib.contextmanager
def closing(pod: PodExec) -> Iterator[PodExec]:
    """It is closed at the end, and aborted after a while, so that no test waits for ever."""
    guard = threading.Timer(WAIT_SECONDS * 2, pod.abort)
    guard.start()
    try:
        yield pod
    finally:
        guard.cancel()
        guard.join()
        pod.close()


@contextlib.contextmanager
def opened(
    cluster: Cluster | str, command: Sequence[str] = ("sh",), pod: str = "demo", container: str = ""
) -> Iterator[PodExec]:
    """A program in a pod."""
    if isinstance(cluster, str):
        cluster = load_kubeconfig(cluster, trust=LOOPBACK)
    target = Target(cluster, cluster.namespace, pod, container)
    with closing(PodExec.open(target, command, timeout=WAIT_SECONDS)) as running:
        yield running


def read_until(pod: PodExec, text: bytes) -> bytes:
    output = b""
    while text not in output:
        piece = pod.read()
        assert piece, f"ended with {pod.exit} after {output[-300:]!r}"
        output += piece
    return output


def read_all(pod: PodExec) -> bytes:
    return b"".join(iter(pod.read, b""))


@contextlib.contextmanager
def running(target: Callable[[], object]) -> Iterator[threading.Thread]:
    """The function on a thread of its own, which has ended when the block has."""
    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
