"""The TLS stream to the cluster, below the WebSocket: what it waits for, how much it takes, how its socket is set."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trustme

import k8s_exec
from demo.cluster import StandIn
from k8s_exec import Credential, PodLost, TlsStream, dial, load_kubeconfig
from tests.raw_cluster import SUCCESS, RawServer, frame, opened, read_all, stream, tls_context, upgrade
from tests.support import LOOPBACK, WAIT_SECONDS, kubeconfig, nothing_left, wait_until_still

CA = trustme.CA()
CLIENT, SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls_context(CA.issue_cert("localhost"))
CA.configure_trust(CLIENT)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left():
        yield


class Counted(ssl.SSLSocket):
    """Counts the calls into OpenSSL."""

    calls = 0

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        self.calls += 1
        return super().recv(buflen, flags)

    def send(self, data: Any, flags: int = 0) -> int:
        self.calls += 1
        return super().send(data, flags)


CLIENT.sslsocket_class = Counted


@contextlib.contextmanager
def pair() -> Iterator[tuple[Counted, socket.socket]]:
    """A client whose handshake comes with its first call, which so has to wait for the other side; and that side."""
    near, far = socket.socketpair()
    far.settimeout(WAIT_SECONDS)
    tls = CLIENT.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False)
    assert isinstance(tls, Counted)
    with tls, far:
        yield tls, far


def test_a_send_waits_for_what_openssl_must_read_first() -> None:
    with ThreadPoolExecutor(1) as pool, pair() as (tls, far):
        sent = pool.submit(TlsStream(tls, None).send, b"x")
        wait_until_still(lambda: tls.calls)
        with SERVER.wrap_socket(far, server_side=True) as served:
            assert served.recv(1) == b"x"
        assert sent.result(WAIT_SECONDS) == 1


def test_a_receive_waits_for_what_openssl_must_send_first() -> None:
    with ThreadPoolExecutor(1) as pool, pair() as (tls, far):
        stream, waiting = TlsStream(tls, None), 0
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting += socket.socket.send(tls, bytes(4096))
        filled = pool.submit(stream.fill, WAIT_SECONDS)
        wait_until_still(lambda: tls.calls)
        while waiting:
            waiting -= len(far.recv(waiting))
        with SERVER.wrap_socket(far, server_side=True) as served:
            served.sendall(b"x")
            assert filled.result(WAIT_SECONDS)
        assert stream.buffer == b"x"


def test_a_request_that_is_not_taken_is_given_up_in_time() -> None:
    with ThreadPoolExecutor(1) as pool, pair() as (tls, _):
        sent = pool.submit(TlsStream(tls, time.monotonic() + 0.2).send, b"x")
        assert isinstance(sent.exception(WAIT_SECONDS), TimeoutError)


def test_what_one_fill_takes_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k8s_exec, "_READ_BYTES", 1 << 15)
    with ThreadPoolExecutor(1) as pool, pair() as (tls, far):
        stream = TlsStream(tls, None)
        filled = pool.submit(stream.fill, WAIT_SECONDS)
        with SERVER.wrap_socket(far, server_side=True) as served:
            served.sendall(b"x")
            assert filled.result(WAIT_SECONDS)
            served.sendall(bytes(100_000))
            assert stream.fill(WAIT_SECONDS)
            assert 1 << 15 <= len(stream.buffer) < 3 << 14


def test_the_socket_delays_nothing_and_notices_a_peer_that_is_gone() -> None:
    with StandIn() as standin:
        cluster = load_kubeconfig(kubeconfig(standin), trust=LOOPBACK)
        with dial(cluster, Credential(), time.monotonic() + WAIT_SECONDS) as tls:
            assert tls.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert tls.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert tls.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == k8s_exec._USER_TIMEOUT_MS


@pytest.mark.parametrize("message", [frame(b""), frame(b"", fin=False) + frame(b"", 0)], ids=["whole", "fragments"])
def test_a_message_without_even_a_channel_is_ignored(message: bytes) -> None:
    with RawServer(CA, stream(message)) as server, opened(server.cluster(), ["sh"], "p") as pod:
        with pytest.raises(PodLost, match="was lost"):  # and nothing else
            pod.read()


def test_pings_that_nobody_takes_the_answers_of_keep_no_output_back() -> None:
    go, read = threading.Event(), threading.Event()

    def serve(connection: socket.socket, head: bytes) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(upgrade(head))
        assert go.wait(WAIT_SECONDS)
        connection.sendall(frame(b"x" * 125, 9) * 5000 + frame(b"\x01hi") + SUCCESS)
        read.wait(3 * WAIT_SECONDS)

    with RawServer(CA, serve) as server, opened(server.cluster(), ["sh"], "p") as pod:
        pod._stream._tls.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        go.set()
        output = read_all(pod)
        read.set()
        assert output == b"hi"


def test_messages_of_several_threads_stay_whole() -> None:
    size, count = 200_000, 4
    with StandIn() as standin, ThreadPoolExecutor(2) as pool:
        with opened(standin.kubeconfig(), ["sh", "-c", "stty raw -echo; printf R; exec cat"]) as pod:
            assert pod.read() == b"R"
            pod._stream._tls.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # each waits in the middle
            for letter in (b"a", b"b"):
                for _ in range(count):
                    pool.submit(pod.write, letter * size)
            output = b""
            while len(output) < 2 * count * size:
                piece = pod.read()
                assert piece
                output += piece
    blocks = [output[start : start + size] for start in range(0, len(output), size)]
    assert sorted(blocks) == [b"a" * size] * count + [b"b" * size] * count


def test_a_quiet_stream_is_kept_alive_by_one_message_and_a_busy_one_by_none() -> None:
    with StandIn() as standin, opened(standin.kubeconfig()) as pod:
        for silent in (0, k8s_exec.KEEP_ALIVE_SECONDS):
            pod._last_sent -= silent  # as if so long had gone by
            for _ in range(3):
                pod.keep_alive()
        pod.write(b"exit\r")
        read_all(pod)
        assert standin.execs[0].keepalives == 1


def test_a_pong_is_not_answered() -> None:
    answered: list[bytes] = []

    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(upgrade(head) + frame(b"unasked", 10) + frame(b"?", 9))
        answered.append(connection.recv(65536))
        connection.sendall(SUCCESS)

    with RawServer(CA, serve) as server, opened(server.cluster(), ["sh"], "p") as pod:
        assert read_all(pod) == b""
    assert [data[0] & 0x0F for data in answered] == [10] and len(answered[0]) == 2 + 4 + 1
