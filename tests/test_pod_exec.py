"""Programs in pods of the stand-in cluster, over real TLS."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import trustme

import k8s_exec
from demo.cluster import Pod, StandIn
from k8s_exec import ExecRefused, ExitStatus, PodExec, PodLost
from tests.raw_cluster import SECRET, SUCCESS, RawServer, frame, opened, read_all, read_until, running, stream
from tests.support import WAIT_SECONDS, nothing_left, wait_until


@pytest.fixture(scope="module")
def started() -> Iterator[dict[str, StandIn]]:
    with nothing_left(), StandIn(flavour="new") as new, StandIn(flavour="old") as old:
        yield {"new": new, "old": old}


@pytest.fixture(autouse=True)
def _nothing_left(started: dict[str, StandIn]) -> Iterator[None]:
    with nothing_left():
        yield


def clear(standin: StandIn) -> None:
    """End what an "old" cluster leaves running, and take away the file that tells a program to go on."""
    for pid in standin.shells():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    standin.wait_until(lambda: not standin.shells())
    standin.execs.clear()
    (standin.home() / "go").unlink(missing_ok=True)


@pytest.fixture(params=["new", "old"])
def either(request: pytest.FixtureRequest, started: dict[str, StandIn]) -> Iterator[StandIn]:
    yield started[request.param]
    clear(started[request.param])


@pytest.fixture
def standin(started: dict[str, StandIn]) -> Iterator[StandIn]:
    yield started["new"]
    clear(started["new"])


@pytest.mark.parametrize("auth", ["token", "cert"])
def test_a_shell_answers_and_its_exit_code_comes_back(either: StandIn, auth: str) -> None:
    with opened(either.kubeconfig(auth=auth)) as pod:
        pod.write(b"echo a$((1+1))b; exit 3\r")
        assert b"a2b" in read_all(pod)
        assert pod.exit == ExitStatus(3)
        assert pod.read() == b""
    (record,) = either.execs
    assert (record.user, record.subprotocol, record.offered) == ("demo", "v4.channel.k8s.io", ("v4.channel.k8s.io",))
    assert (record.tty, record.http_status, record.ended) == (True, 101, "status")


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137)])
def test_exit_codes(either: StandIn, script: str, code: int) -> None:
    with opened(either.kubeconfig(), ["sh", "-c", script]) as pod:
        assert read_all(pod) == b""
        assert pod.exit == ExitStatus(code)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["nosuchcmd"], "the container has no program 'nosuchcmd'"),
        (["/bin/zsh"], "the container has no program '/bin/zsh'"),
        (["./plain"], "the container may not run the program './plain': permission denied"),
        ([""], "args must not be empty"),
    ],
)
def test_a_program_that_cannot_start_gives_a_sentence(either: StandIn, command: list[str], message: str) -> None:
    (either.home() / "plain").write_text("not a program")
    with opened(either.kubeconfig(), command) as pod:
        assert read_all(pod) == b""
        assert pod.exit is not None
        assert pod.exit.code is None
        assert message in pod.exit.message
        assert pod.exit.not_found == ("has no program" in message)


def test_arguments_arrive_as_they_are(standin: StandIn) -> None:
    argument = "a b&c=d+e%41?#ü'\"\n\\"
    with opened(standin.kubeconfig(), ["printf", "<%s>", argument, ""]) as pod:
        assert read_all(pod).replace(b"\r\n", b"\n") == f"<{argument}><>".encode()


def test_the_container_is_asked_for_by_name(standin: StandIn) -> None:
    with opened(standin.kubeconfig(), ["sh", "-c", "exit 0"], "multi", "c2") as pod:
        read_all(pod)
    assert standin.execs[0].container == "c2"


def test_sizes_arrive_in_order(standin: StandIn) -> None:
    with opened(standin.kubeconfig(), ["sh", "-c", "stty -echo; read x; stty size; read x; stty size"]) as pod:
        pod.resize(80, 24)
        pod.write(b"\r")
        assert b"24 80" in read_until(pod, b"80")
        pod.resize(65535, 1)
        pod.write(b"\r")
        assert b"1 65535" in read_all(pod)
    assert standin.execs[0].sizes == [(80, 24), (65535, 1)]
    assert not standin.execs[0].jammed


def test_a_bad_size_is_never_sent(standin: StandIn) -> None:
    with opened(standin.kubeconfig()) as pod:
        with pytest.raises(ValueError, match="65535"):
            pod.resize(0, 24)
        pod.write(b"echo a$((1+1))b\r")
        read_until(pod, b"a2b")
    assert standin.execs[0].sizes == []


REFUSED_BY_STANDIN = [
    ("nopod", "", 404, 'pods "nopod" not found'),
    ("demo", "nope", 400, "no such container"),
    ("multi", "", 400, "choose one of: c1 c2"),
    ("finished", "", 500, "the container is not running"),
    ("pending", "", 500, "the container is not running"),
]


@pytest.mark.parametrize(("pod", "container", "status", "sentence"), REFUSED_BY_STANDIN)
def test_the_clusters_refusals(either: StandIn, pod: str, container: str, status: int, sentence: str) -> None:
    with pytest.raises(ExecRefused, match=sentence) as caught:
        with opened(either.kubeconfig(), pod=pod, container=container):
            pass
    assert caught.value.status == status


@pytest.mark.parametrize(("user", "flavours"), [("nobody", ("new", "old")), ("reader", ("new",))])
def test_a_user_without_the_right_is_refused(either: StandIn, user: str, flavours: tuple[str, ...]) -> None:
    if either.flavour not in flavours:
        with opened(either.kubeconfig(user=user), ["sh", "-c", "exit 0"]) as pod:
            assert read_all(pod) == b""
        return
    with pytest.raises(ExecRefused, match='the cluster forbids it: pods "demo" is forbidden') as caught:
        with opened(either.kubeconfig(user=user)):
            pass
    assert caught.value.status == 403


def test_a_token_that_the_cluster_does_not_know_is_refused_and_not_shown(standin: StandIn) -> None:
    text = standin.kubeconfig().replace(standin.token, SECRET)
    with pytest.raises(ExecRefused, match="does not accept the credentials") as caught, opened(text):
        pass
    assert caught.value.status == 401
    assert SECRET not in str(caught.value)


def answered(standin: StandIn, pongs: int) -> bool:
    return standin.execs[0].pongs == pongs


def test_pings_are_answered_and_no_pong_comes_unasked(either: StandIn) -> None:
    with opened(either.kubeconfig()) as pod:
        with running(lambda: read_all(pod)):
            either.wait_until(lambda: either.execs and either.execs[0].pid)
            for _ in range(3):
                expected = either.execs[0].pongs + 1
                either.ping()
                either.wait_until(functools.partial(answered, either, expected))
            pod.write(b"exit\r")
    assert (either.execs[0].unsolicited_pongs, either.execs[0].pings, either.execs[0].ended) == (0, 0, "status")


def test_a_quiet_stream_is_kept_alive_and_the_program_sees_nothing_of_it(
    either: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k8s_exec, "KEEP_ALIVE_SECONDS", 0.03)
    with opened(either.kubeconfig(), ["sh", "-c", "stty raw -echo; printf R; exec dd bs=1 count=1 status=none"]) as pod:
        output = []
        with running(lambda: output.append(read_all(pod))):
            either.wait_until(lambda: either.execs and either.execs[0].keepalives >= 3)
            pod.write(b"q")
        assert output == [b"Rq"]
        assert pod.exit == ExitStatus(0)
    assert either.execs[0].bytes_in == 1


def test_a_stream_that_only_prints_is_kept_alive_too(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k8s_exec, "KEEP_ALIVE_SECONDS", 0.03)
    with opened(standin.kubeconfig(), ["yes"]) as pod:
        while standin.execs[0].keepalives < 3:
            assert pod.read()


def test_abort_wakes_a_reader(either: StandIn) -> None:
    with opened(either.kubeconfig(), ["sleep", "1000"]) as pod:
        reading, output = threading.Event(), []

        def read() -> None:
            reading.set()
            output.append(pod.read())

        with running(read):
            assert reading.wait(WAIT_SECONDS)
            either.wait_until(lambda: either.execs[0].pid)
            pod.abort()
        assert output == [b""]
        assert pod.exit is None


def fill(pod: PodExec) -> None:
    """Write until the cluster takes no more."""
    while pod.wait_for_room(0, 0.2):
        pod.write(b"x" * 65536)


def test_a_write_never_blocks_and_what_waits_is_sent_once_it_is_taken(either: StandIn) -> None:
    script = "stty raw -echo; printf R; until [ -e go ]; do sleep 0.01; done; exec head -c 40000000 | sha256sum"
    with opened(either.kubeconfig(), ["sh", "-c", script]) as pod:
        read_until(pod, b"R")
        piece = os.urandom(40_000)
        for _ in range(1000):
            pod.write(piece)
        assert not pod.wait_for_room(1 << 20, 0)
        (either.home() / "go").touch()
        expected = hashlib.sha256(piece * 1000).hexdigest().encode()
        read_until(pod, expected)
        assert pod.wait_for_room(0, 5)


def test_who_waits_for_room_is_woken(either: StandIn) -> None:
    for wake in (PodExec.wake, PodExec.abort):
        with opened(either.kubeconfig(), ["sh", "-c", "stty raw -echo; printf R; exec sleep 1000"]) as pod:
            read_until(pod, b"R")
            fill(pod)
            waiting: list[bool] = []
            with running(lambda pod=pod, waiting=waiting: waiting.append(pod.wait_for_room(0, 60))):  # type: ignore[misc]
                wait_until(lambda pod=pod: pod._stream._room._waiters)  # type: ignore[misc]
                wake(pod)
            assert waiting == [False]
            pod.abort()
            assert pod.wait_for_room(0, 60)
            with pytest.raises(PodLost):
                pod.write(b"x")
            assert pod.read() == b""


def test_output_comes_while_input_waits(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k8s_exec, "KEEP_ALIVE_SECONDS", 0.01)  # so that the reader wants to write as well
    script = "stty raw -echo; printf R; until [ -e go ]; do sleep 0.01; done; printf there; exec sleep 1000"
    with opened(standin.kubeconfig(), ["sh", "-c", script]) as pod:
        read_until(pod, b"R")
        for _ in range(400):
            pod.write(b"x" * 40_000)  # more than all buffers between take
        (standin.home() / "go").touch()
        assert read_until(pod, b"there") == b"there"
        assert not pod.wait_for_room(0, 0)


@pytest.mark.parametrize("how", [PodExec.abort, PodExec.close])
def test_the_end_is_a_dropped_connection_and_never_a_close_frame(
    standin: StandIn, how: Callable[[PodExec], None]
) -> None:
    with opened(standin.kubeconfig()) as pod:
        pod.write(b"echo a$((1+1))b\r")
        read_until(pod, b"a2b")
        record = standin.execs[0]
        how(pod)
        standin.wait_until(lambda: record.ended)
        assert record.ended == "lost"
        standin.wait_until(lambda: not standin.shells())
        with pytest.raises(PodLost):
            pod.write(b"x")
        with pytest.raises(PodLost):
            pod.resize(80, 24)
        assert pod.read() == b""
        how(pod)  # once more does no harm


def test_a_connection_that_is_reset_is_lost(either: StandIn) -> None:
    with opened(either.kubeconfig(), ["sh", "-c", "printf R; exec sleep 1000"]) as pod:
        read_until(pod, b"R")
        either.drop_connections()
        with pytest.raises(PodLost, match="the connection to the cluster was lost"):
            read_all(pod)
        with pytest.raises(PodLost):
            while True:
                pod.write(b"x" * 1000)
        assert pod.exit is None


def test_a_pod_that_is_deleted_ends_the_program_with_137(either: StandIn) -> None:
    either.add_pod(Pod("default", "doomed"))
    with opened(either.kubeconfig(), ["sh", "-c", "printf R; exec sleep 1000"], "doomed") as pod:
        read_until(pod, b"R")
        either.delete_pod("default", "doomed")
        assert read_all(pod) == b""
        assert pod.exit == ExitStatus(137)


def test_floods_in_both_directions_stay_intact(standin: StandIn) -> None:
    sent, received = hashlib.sha256(), hashlib.sha256()
    total = [0]
    with opened(standin.kubeconfig(), ["sh", "-c", "stty raw -echo; printf R; exec cat"]) as pod:
        assert read_until(pod, b"R") == b"R"
        done = threading.Event()

        def write() -> None:
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                piece = os.urandom(1 + total[0] % 40_000)
                sent.update(piece)
                total[0] += len(piece)
                pod.write(piece)
            done.set()

        with running(write):
            got = 0
            while not (done.is_set() and got == total[0]):
                piece = pod.read()
                assert piece
                got += len(piece)
                received.update(piece)
    assert got > 500_000
    assert received.digest() == sent.digest()


class WatchedSocket(ssl.SSLSocket):
    """Counts the calls into OpenSSL, and those that came while another thread was inside."""

    inside = threading.Lock()
    overlaps = 0
    receives = 0

    def watched(self, call: Callable[[], Any]) -> Any:
        free = WatchedSocket.inside.acquire(blocking=False)
        WatchedSocket.overlaps += not free
        try:
            os.sched_yield()
            return call()
        finally:
            if free:
                WatchedSocket.inside.release()

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        WatchedSocket.receives += 1
        received: bytes = self.watched(lambda: super(WatchedSocket, self).recv(buflen, flags))
        return received

    def send(self, data: Any, flags: int = 0) -> int:
        sent: int = self.watched(lambda: super(WatchedSocket, self).send(data, flags))
        return sent


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[WatchedSocket]:
    def wrap(self: ssl.SSLContext, sock: socket.socket, **options: Any) -> Any:
        kind = ssl.SSLSocket if options.get("server_side") else WatchedSocket
        return kind._create(sock=sock, context=self, **options)  # type: ignore[attr-defined]

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap)
    WatchedSocket.overlaps = WatchedSocket.receives = 0
    return WatchedSocket


def test_never_two_threads_are_inside_openssl(standin: StandIn, watched: type[WatchedSocket]) -> None:
    with opened(standin.kubeconfig(), ["sh", "-c", "stty raw -echo; printf R; exec cat"]) as pod:
        read_until(pod, b"R")

        def write() -> None:
            for _ in range(400):
                pod.write(b"x" * 1000)

        with running(write):
            got = 0
            while got < 400_000:
                piece = pod.read()
                assert piece
                got += len(piece)
    assert watched.receives > 10
    assert watched.overlaps == 0


def test_many_small_frames_arrive_joined(ca: trustme.CA, watched: type[WatchedSocket]) -> None:
    frames = [frame(b"\x01%04d" % number) for number in range(2000)]
    with RawServer(ca, stream(*frames, SUCCESS)) as server, opened(server.cluster()) as pod:
        pieces = list(iter(pod.read, b""))
        assert b"".join(pieces) == b"".join(b"%04d" % number for number in range(2000))
        assert len(pieces) < 100
    assert watched.receives < 300


def test_a_client_key_never_reaches_a_disk(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    before = folder.stat().st_mtime_ns
    with opened(standin.kubeconfig(auth="cert"), ["sh", "-c", "exit 0"]) as pod:
        assert read_all(pod) == b""
    assert list(folder.iterdir()) == []
    if hasattr(os, "memfd_create"):
        assert folder.stat().st_mtime_ns == before
