"""Programs in pods of clusters that misbehave, and clusters that cannot be reached."""

from __future__ import annotations

import contextlib
import datetime
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import k8s_exec
from k8s_exec import Cluster, ExecError, ExecRefused, ExitStatus, PodExec, PodLost, Target, load_kubeconfig
from tests.raw_cluster import (
    SECRET,
    SUCCESS,
    RawServer,
    answer,
    frame,
    http_error,
    opened,
    read_all,
    read_until,
    status_body,
    stream,
    upgrade,
)
from tests.support import LOOPBACK, WAIT_SECONDS, kubeconfig, nothing_left


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left():
        yield


# -- PodExec and servers that misbehave -------------------------------------------------------------------------------


def refused(cluster: Cluster, timeout: float = WAIT_SECONDS) -> ExecRefused:
    """The refusal of an attempt to open a shell; it names no secret."""
    error = failed(cluster, timeout)
    assert isinstance(error, ExecRefused)
    return error


def unsure(cluster: Cluster, timeout: float = WAIT_SECONDS) -> PodLost:
    """The failure of an attempt to open a shell that may run all the same; it names no secret."""
    error = failed(cluster, timeout)
    assert isinstance(error, PodLost)
    return error


def failed(cluster: Cluster, timeout: float) -> ExecError:
    with pytest.raises(ExecError) as caught:
        PodExec.open(Target(cluster, "n", "p"), ["sh"], timeout=timeout).close()
    assert SECRET not in str(caught.value)
    assert str(caught.value).isprintable()
    return caught.value


def test_the_request_is_that_of_the_protocol(ca: trustme.CA) -> None:
    with RawServer(ca, stream(frame(b"\x01"), frame(b"\x01hi"), SUCCESS, frame(b"\x03\xe8", 8))) as server:
        with opened(server.cluster(), ["sh", "-i"], "p") as pod:
            assert read_all(pod) == b"hi"
            assert pod.exit == ExitStatus(0)
    first, *fields = server.requests[0].decode().split("\r\n")
    path = "/api/v1/namespaces/default/pods/p/exec?stdin=true&stdout=true&tty=true&command=sh&command=-i"
    assert first == f"GET {path} HTTP/1.1"
    assert f"Authorization: Bearer {SECRET}" in fields
    assert "Sec-WebSocket-Protocol: v4.channel.k8s.io" in fields
    assert f"Host: 127.0.0.1:{server.port}" in fields
    assert not any(field.lower().startswith(("origin:", "cookie:", "sec-websocket-extensions:")) for field in fields)


def test_a_stream_a_byte_at_a_time_is_understood(ca: trustme.CA) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        for byte in upgrade(head) + frame(b"\x01ab") + frame(b"", 9) + frame(b"\x01" + b"c" * 200) + SUCCESS:
            connection.sendall(bytes((byte,)))

    with RawServer(ca, serve) as server, opened(server.cluster()) as pod:
        assert read_all(pod) == b"ab" + b"c" * 200
        assert pod.exit == ExitStatus(0)


def test_both_output_channels_are_output_and_unknown_ones_are_ignored(ca: trustme.CA) -> None:
    frames = [frame(b"\x01a"), frame(b"\x02b"), frame(b"\x05x"), frame(b"\xffx"), frame(b""), frame(b"\x01c"), SUCCESS]
    with RawServer(ca, stream(*frames)) as server, opened(server.cluster()) as pod:
        assert read_all(pod) == b"abc"


def test_a_message_may_come_in_fragments_with_pings_between(ca: trustme.CA) -> None:
    """RFC 6455, section 5.4."""
    status = (
        b'{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}'
    )
    frames = [
        *(frame(b"\x01he", fin=False), frame(b"are you there", 9), frame(b"llo", 0)),
        *(frame(b"", fin=False), frame(b"\x01", 0, fin=False), frame(b"", 9), frame(b" there", 0)),
        *(frame(b"\x01this is te", 1, fin=False), frame(b"xt", 0), frame(b"\x01text", 1)),
        *(frame(b"\x01" + b"x" * 65535, fin=False), frame(b"", 0)),
        *(frame(b"\x03" + status[:9], fin=False), frame(status[9:], 0)),
    ]
    with RawServer(ca, stream(*frames)) as server, opened(server.cluster()) as pod:
        assert read_all(pod) == b"hello there" + b"x" * 65535
        assert pod.exit == ExitStatus(3)


def test_the_last_output_and_the_status_may_come_in_one_record(ca: trustme.CA) -> None:
    with RawServer(ca, stream(frame(b"\x01bye"), SUCCESS)) as server, opened(server.cluster()) as pod:
        assert pod.read() == b"bye"
        assert pod.read() == b""
        assert pod.exit == ExitStatus(0)


LOST = [
    ("end of the connection", b"", "the connection to the cluster was lost"),
    ("close frame", frame(b"\x03\xe8", 8), "without an exit status"),
    ("close frame without a code", frame(b"", 8), "without an exit status"),
    ("masked frame", b"\x82\x85\x00\x00\x00\x00\x01abcd", "masked"),
    ("oversized frame", struct.pack("!BBQ", 0x82, 127, 1 << 33), "limit of 1 MiB"),
    ("half a message", frame(b"\x01a", fin=False), "the connection to the cluster was lost"),
    ("a message in a message", frame(b"\x01a", fin=False) + frame(b"\x01b"), "out of order"),
    ("a text in a message", frame(b"\x01a", fin=False) + frame(b"b", 1), "out of order"),
    ("the end of no message", frame(b"b", 0), "out of order"),
    ("an endless message", frame(b"\x01", fin=False) + frame(b"b" * (1 << 19), 0, fin=False) * 3, "limit of 1 MiB"),
    ("half a frame", b"\x82\x7e\x10", "the connection to the cluster was lost"),
]


@pytest.mark.parametrize("before", [b"", frame(b"\x01"), frame(b"\x01last words")], ids=["silent", "empty", "printed"])
@pytest.mark.parametrize(("data", "sentence"), [row[1:] for row in LOST], ids=[row[0] for row in LOST])
def test_an_end_without_a_status_is_a_loss_after_what_was_printed(
    ca: trustme.CA, data: bytes, sentence: str, before: bytes
) -> None:
    output = b""
    with RawServer(ca, stream(before, data)) as server, opened(server.cluster()) as pod:
        with pytest.raises(PodLost, match=sentence):
            while True:
                piece = pod.read()
                assert piece, "an end that looks like an exit"
                output += piece
        assert pod.exit is None
    assert output == before[3:]


def test_what_is_no_tls_in_the_middle_of_a_stream_is_a_loss(ca: trustme.CA) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(upgrade(head) + frame(b"\x01hi"))
        connection.recv(100)
        socket.socket.send(connection, b"HTTP/1.1 502 Bad Gateway\r\n\r\n")

    with RawServer(ca, serve) as server, opened(server.cluster()) as pod:
        assert read_until(pod, b"hi") == b"hi"
        pod.write(b"go")
        with pytest.raises(PodLost, match="the connection to the cluster was lost"):
            pod.read()


def test_what_came_before_a_broken_connection_is_handed_out(ca: trustme.CA) -> None:
    sent = threading.Event()

    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(upgrade(head))
        connection.recv(100)
        connection.sendall(frame(b"\x01bye") + SUCCESS)
        socket.socket.send(connection, b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
        sent.set()

    with RawServer(ca, serve) as server, opened(server.cluster()) as pod:
        pod.write(b"go")
        assert sent.wait(WAIT_SECONDS)
        assert read_all(pod) == b"bye"
        assert pod.exit == ExitStatus(0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(ca: trustme.CA, status: int) -> None:
    with RawServer(ca, stream(SUCCESS)) as elsewhere:
        location = f"Location: wss://127.0.0.1:{elsewhere.port}/api"
        with RawServer(ca, answer(f"HTTP/1.1 {status} Moved\r\n{location}\r\n\r\n".encode())) as server:
            error = refused(server.cluster())
        assert (server.accepted, elsewhere.accepted) == (1, 0)
    assert "redirect" in str(error)
    assert error.status == status


def test_no_cookie_travels_to_the_next_connection(ca: trustme.CA) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(upgrade(head, "Set-Cookie: affinity=abc; Domain=127.0.0.1; Path=/") + SUCCESS)

    with RawServer(ca, serve) as server:
        for _ in range(2):
            with opened(server.cluster()) as pod:
                assert read_all(pod) == b""
    assert len(server.requests) == 2
    assert not any(b"cookie" in request.lower() for request in server.requests)


def test_a_server_on_this_host_is_not_reached_through_the_environments_proxy(
    ca: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(ca, answer(b""), plain=True) as proxy, RawServer(ca, stream(SUCCESS)) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with opened(server.cluster()) as pod:
            assert read_all(pod) == b""
        assert proxy.accepted == 0


def test_a_refusal_is_explained_when_its_body_comes_later(ca: trustme.CA) -> None:
    body = status_body('pods "p" not found', "NotFound", 404)

    def serve(connection: socket.socket, head: bytes) -> None:
        whole = http_error("404 Not Found", body)
        for piece in (whole[:20], whole[20:-100], whole[-100:-50], whole[-50:]):
            connection.sendall(piece)
        socket.socket.shutdown(connection, socket.SHUT_WR)

    with RawServer(ca, serve) as server:
        error = refused(server.cluster())
    assert 'pods "p" not found' in str(error)
    assert error.status == 404


def test_a_refusal_is_explained_when_its_body_trickles(ca: trustme.CA) -> None:
    whole = http_error("404 Not Found", status_body('pods "p" not found' + "." * 20_000, "NotFound", 404))

    def serve(connection: socket.socket, head: bytes) -> None:
        for start in range(0, len(whole), 100):
            connection.sendall(whole[start : start + 100])
            select.select([connection], [], [], 0.001)
        socket.socket.shutdown(connection, socket.SHUT_WR)

    with RawServer(ca, serve) as server:
        assert refused(server.cluster()).status == 404


ODD_ANSWERS = [
    ("nothing", b"", 0, "is not a WebSocket's"),
    ("no number", b"HTTP/1.1 abc\r\n\r\n", 0, "is not a WebSocket's"),
    ("no UTF-8", b"HTTP/1.1 101 \xff\r\n\r\n", 0, "is not a WebSocket's"),
    ("200", http_error("200 OK", b"hello"), 200, "HTTP status 200: hello"),
    ("500 without a body", b"HTTP/1.1 500 Oops\r\n\r\n", 500, "HTTP status 500: no reason given"),
    ("bad length", b"HTTP/1.1 500 Oops\r\nContent-Length: x\r\n\r\n", 0, "is not a WebSocket's"),
    ("huge body", http_error("500 Oops", b"x" * (2 << 20)), 0, "too long"),
    ("endless header", b"HTTP/1.1 101 Switching\r\nX: " + b"y" * (1 << 20), 0, "too long"),
    ("endless headers", b"HTTP/1.1 101 Switching\r\n" + b"X: y\r\n" * 200_000, 0, "too long"),
    ("101 without its headers", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 0, "is not a WebSocket's"),
]


@pytest.mark.parametrize(
    ("data", "status", "sentence"), [row[1:] for row in ODD_ANSWERS], ids=[row[0] for row in ODD_ANSWERS]
)
def test_an_answer_that_is_no_upgrade_is_refused(ca: trustme.CA, data: bytes, status: int, sentence: str) -> None:
    with RawServer(ca, answer(data)) as server:
        error = failed(server.cluster(), WAIT_SECONDS)
    assert sentence in str(error)
    assert len(str(error)) < 700
    if sentence == "is not a WebSocket's":  # so it does not say whether the program runs
        assert isinstance(error, PodLost)
    else:
        assert isinstance(error, ExecRefused) and error.status == status


@pytest.mark.parametrize("data", [b"HTTP/1.1\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"], ids=["no status", "not HTTP"])
def test_an_answer_that_is_no_http_is_refused(ca: trustme.CA, data: bytes) -> None:
    with RawServer(ca, answer(data)) as server:
        assert "is not a WebSocket's" in str(unsure(server.cluster()))


@pytest.mark.parametrize("protocol", ["", "v5.channel.k8s.io", "channel.k8s.io"])
def test_another_subprotocol_than_asked_for_is_refused(ca: trustme.CA, protocol: str) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(upgrade(head, protocol=protocol) + SUCCESS)

    with RawServer(ca, serve) as server:
        assert "is not a WebSocket's" in str(unsure(server.cluster()))


def test_a_wrong_accept_key_is_refused(ca: trustme.CA) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(upgrade(b"GET / HTTP/1.1\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"))

    with RawServer(ca, serve) as server:
        assert "is not a WebSocket's" in str(unsure(server.cluster()))


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "403 Forbidden", "500 Oops"])
def test_a_header_that_echoes_the_token_is_not_shown(ca: trustme.CA, status: str) -> None:
    body = status_body("no", "Oops", 500)
    with RawServer(ca, answer(http_error(status, body, f"X-Echo: Bearer {SECRET}"))) as server:
        refused(server.cluster())


@pytest.mark.parametrize("form", ["text", "status"])
def test_a_body_that_echoes_the_token_is_not_shown(ca: trustme.CA, form: str) -> None:
    text = f"Authorization: Bearer {SECRET}"
    body = text.encode() if form == "text" else status_body(text, "Oops", 500)
    with RawServer(ca, answer(http_error("500 Oops", body))) as server:
        refused(server.cluster())


# -- reaching the cluster ---------------------------------------------------------------------------------------------


def self_signed() -> trustme.LeafCert:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    certificate = builder.sign(key, hashes.SHA256())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return trustme.LeafCert(key.private_bytes(*form), certificate.public_bytes(serialization.Encoding.PEM), [])


def test_a_self_signed_certificate_has_its_sentence_and_gets_no_token(ca: trustme.CA) -> None:
    with RawServer(ca, stream(SUCCESS), certificate=self_signed()) as server:
        error = refused(server.cluster())
        assert server.requests == []  # no token before the certificate is right
    assert "self-signed" in str(error)
    assert f"127.0.0.1:{server.port}" in str(error)


def test_nothing_is_checked_when_the_kubeconfig_says_so(ca: trustme.CA) -> None:
    certificate = trustme.CA().issue_cert("other.example")
    with RawServer(ca, stream(SUCCESS), certificate=certificate) as server:
        cluster = server.cluster(**{"certificate-authority-data": None, "insecure-skip-tls-verify": True})
        with opened(cluster) as pod:
            assert read_all(pod) == b""


def test_without_a_ca_the_systems_are_trusted_and_no_others(ca: trustme.CA) -> None:
    with RawServer(ca, stream(SUCCESS)) as server:
        error = refused(server.cluster(**{"certificate-authority-data": None}))
    assert "certificate" in str(error)


def test_a_closed_port_has_its_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = refused(
        load_kubeconfig(kubeconfig(None, {"token": SECRET}, server=f"https://127.0.0.1:{port}"), trust=LOOPBACK)
    )
    assert str(error) == f"127.0.0.1:{port} cannot be reached: Connection refused"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", "a..b"])
def test_an_unknown_host_has_its_sentence(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    def getaddrinfo(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    error = refused(load_kubeconfig(kubeconfig(None, {"token": SECRET}, server=f"https://{host}")))
    assert "host name" in str(error)


def test_a_server_that_speaks_plain_http_has_its_sentence(ca: trustme.CA) -> None:
    with RawServer(ca, answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"), plain=True) as server:
        assert "no TLS connection to the cluster" in str(refused(server.cluster()))


def test_a_connection_that_closes_during_the_handshake_has_its_sentence(ca: trustme.CA) -> None:
    with RawServer(ca, answer(b""), plain=True) as server:
        assert "no TLS connection to the cluster" in str(refused(server.cluster()))


def silent(connection: socket.socket, head: bytes) -> None:
    """Wait until the other side has closed."""


def trickling(connection: socket.socket, head: bytes) -> None:
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 30:
            connection.sendall(bytes((byte,)))
            select.select([connection], [], [], 0.02)


@pytest.mark.parametrize("serve", [silent, trickling])
def test_a_server_that_never_answers_is_given_up_in_time(
    ca: trustme.CA, serve: Callable[[socket.socket, bytes], None]
) -> None:
    with RawServer(ca, serve) as server:
        started = time.monotonic()
        error = unsure(server.cluster(), timeout=0.4)
        assert 0.2 < time.monotonic() - started < 3
    assert "did not answer the exec request in time" in str(error)


def test_an_answer_about_a_pod_that_trickles_is_not_waited_for(ca: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k8s_exec, "_ANSWER_SECONDS", 0.5)
    sent = 0

    def trickle(connection: socket.socket, head: bytes) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while sent < 1000 and not server.stopping.wait(0.02):
            connection.sendall(b" ")
            sent += 1

    with RawServer(ca, trickle) as server:
        assert k8s_exec.why_lost(Target(server.cluster(), "default", "demo"), time.time(), timeout=0.1) == ""
    assert 0 < sent < 500
