"""The stand-in cluster behaves as the two measured ones, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import websocket

from demo.cluster import DEFAULT_PODS, Exec, StandIn
from k8s_exec import parse_frame

ROOT = Path(__file__).parent.parent

V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"
MIB = 1 << 20
DEMO = DEFAULT_PODS[0]
OPENED: list[Any] = []  # by open_exec, closed after each test
Stream = Any  # websocket.WebSocket, whose types are incomplete


@pytest.fixture(scope="module")
def started() -> Iterator[dict[str, StandIn]]:
    with StandIn(flavour="new") as new, StandIn(flavour="old") as old:
        yield {"new": new, "old": old}


@pytest.fixture(autouse=True)
def close_streams() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().shutdown()


@pytest.fixture(params=["new", "old"])
def cluster(request: pytest.FixtureRequest, started: dict[str, StandIn]) -> Iterator[StandIn]:
    """One of the two flavours, without a stream when the test begins and when it ends."""
    yield started[request.param]
    end_streams(started[request.param])


@pytest.fixture
def new(started: dict[str, StandIn]) -> Iterator[StandIn]:
    yield started["new"]
    end_streams(started["new"])


@pytest.fixture
def old(started: dict[str, StandIn]) -> Iterator[StandIn]:
    yield started["old"]
    end_streams(started["old"])


def end_streams(cluster: StandIn) -> None:
    cluster.wait_until(lambda: ended(cluster))
    with contextlib.suppress(KeyError):
        cluster.delete_pod(DEMO.namespace, DEMO.name)
    cluster.add_pod(DEMO)
    cluster.execs.clear()


def ended(cluster: StandIn) -> bool:
    """Whether all streams and shells are gone; speeds the others up."""
    cluster.drop_connections()
    shells = cluster.shells()
    for pid in shells:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    return not shells and all(record.ended or record.http_status not in (0, 101) for record in cluster.execs)


def open_exec(
    cluster: StandIn,
    *command: str,
    pod: str = "demo",
    container: str = "",
    namespace: str = "default",
    streams: str = "stdin stdout tty",
    subprotocol: str = V4,
    token: str | None = None,
    certificate: tuple[str, str] = ("", ""),
) -> Stream:
    token = cluster.token if token is None else token
    pairs = [(stream, "true") for stream in streams.split()] + [("command", word) for word in command]
    if container:
        pairs.append(("container", container))
    context = ssl.create_default_context(cadata=cluster.ca_pem)
    if certificate[0]:
        context.load_cert_chain(*certificate)
    stream = websocket.create_connection(
        f"wss://127.0.0.1:{cluster.port}/api/v1/namespaces/{namespace}/pods/{pod}/exec?{urlencode(pairs)}",
        header=[f"Authorization: Bearer {token}"] if token else [],
        sslopt={"context": context},
        subprotocols=[subprotocol],
        timeout=5,
        suppress_origin=True,
    )
    OPENED.append(stream)
    return stream


def refusal(cluster: StandIn, *command: str, **options: Any) -> tuple[int, Any]:
    """(HTTP status, Status object or text) of an exec that must be refused."""
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        open_exec(cluster, *command, **options)
    body = (caught.value.resp_body or b"").decode()
    return caught.value.status_code, json.loads(body) if body.startswith("{") else body


@dataclass
class Outcome:
    output: dict[int, bytes] = field(default_factory=dict)
    frame_bytes: list[int] = field(default_factory=list)
    status: dict[str, Any] | None = None
    close_code: int | None = None


def read_to_end(stream: Stream) -> Outcome:
    """Everything up to the close frame, or to the loss of the connection."""
    outcome = Outcome()
    chunks: dict[int, list[bytes]] = {}
    with contextlib.suppress(OSError, websocket.WebSocketException):
        while outcome.close_code is None:
            opcode, data = stream.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                outcome.close_code = struct.unpack("!H", data[:2])[0]
            elif data[0] == 3:
                assert outcome.status is None
                outcome.status = json.loads(data[1:])
            else:
                chunks.setdefault(data[0], []).append(data[1:])
                outcome.frame_bytes.append(len(data))
    outcome.output = {channel: b"".join(parts) for channel, parts in chunks.items()}
    stream.shutdown()
    return outcome


def read_until(stream: Stream, marker: bytes) -> bytes:
    seen = b""
    while marker not in seen:
        seen += stream.recv_data()[1][1:]
    return seen


def read_after(stream: Stream, marker: bytes) -> bytes:
    """The rest of the line that holds the marker."""
    seen = read_until(stream, marker).partition(marker)[2]
    while b"\n" not in seen:
        seen += stream.recv_data()[1][1:]
    return seen


def run(cluster: StandIn, *command: str, **options: Any) -> Outcome:
    return read_to_end(open_exec(cluster, *command, **options))


def drop_tcp(stream: Stream) -> None:
    """Without a close frame."""
    socket.socket.shutdown(stream.sock, socket.SHUT_RDWR)
    stream.shutdown()


def wait_until_still(cluster: StandIn, record: Exec) -> None:
    """Until twenty looks in a row saw no output pass."""
    seen = [0]

    def still() -> bool:
        seen.append(record.bytes_out)
        return len(seen) > 20 and seen[-20] == seen[-1] > 0

    cluster.wait_until(still)


def round_trip(cluster: StandIn) -> None:
    """Time enough for a cluster to do what it should not have done."""
    assert run(cluster, "true", streams="stdout").status is not None


# Streams


def test_first_message_is_empty_stdout_and_last_is_status_before_close(cluster: StandIn) -> None:
    stream = open_exec(cluster, "sh")
    assert stream.recv_data() == (websocket.ABNF.OPCODE_BINARY, b"\x01")
    stream.send_binary(b"\x00exit\n")
    outcome = read_to_end(stream)
    assert outcome.status is not None
    assert outcome.status["status"] == "Success"
    assert outcome.close_code == 1000
    assert cluster.execs[-1].ended == "status"


def test_terminal_is_0_x_0_until_the_first_resize_and_ignores_0_x_0(cluster: StandIn) -> None:
    stream = open_exec(cluster, "sh", "-c", "stty size; read x; stty size; read x; stty size")
    assert b"0 0\r\n" in read_until(stream, b"\n")
    stream.send_binary(b'\x04{"Width":123,"Height":45}')
    stream.send_binary(b"\x00\n")
    assert b"45 123\r\n" in read_until(stream, b"45 123\r\n")
    stream.send_binary(b'\x04{"Width":0,"Height":0}')
    stream.send_binary(b"\x00\n")
    assert b"45 123\r\n" in read_to_end(stream).output[1]
    assert cluster.execs[-1].sizes == [(123, 45), (0, 0)]


def test_resize_sends_sigwinch(new: StandIn) -> None:
    script = "trap 'stty size; exit' WINCH; sleep 1000 & echo ready; while :; do wait; done"
    stream = open_exec(new, "sh", "-c", script)
    read_until(stream, b"ready")
    stream.send_binary(b'\x04{"Width":81,"Height":25}')
    assert b"25 81" in read_to_end(stream).output[1]


def test_shell_has_its_own_session_and_controlling_terminal(new: StandIn) -> None:
    outcome = run(new, "sh", "-c", "ps -o pid=,sid=,pgid=,tpgid= -p $$; tty; : < /dev/tty && echo controlled")
    text = outcome.output[1].decode()
    pid = str(new.execs[-1].pid)
    assert text.split()[:4] == [pid] * 4
    assert "/dev/pts/" in text
    assert "controlled" in text


def test_interrupt_character_reaches_the_foreground_program(new: StandIn) -> None:
    stream = open_exec(new, "bash")
    stream.send_binary(b"\x00sleep 1000 & wait; echo st$?op\n")
    new.wait_until(lambda: len(new.processes()) == 2)
    read_until(stream, b"\n")
    stream.send_binary(b"\x00\x03exit 5\n")
    assert cause(read_to_end(stream)) == "5"


def test_environment_is_the_pods_and_no_more(new: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    lines = run(new, "env", pod="busybox").output[1].decode().split()
    assert sorted(line.partition("=")[0] for line in lines) == ["HOME", "HOSTNAME", "PATH"]
    assert "HOSTNAME=busybox" in lines
    home = run(new, "pwd", pod="busybox").output[1].decode().strip()
    assert f"HOME={home}" in lines
    assert Path(home) == new.home(name="busybox")


def test_pipes_keep_stdout_and_stderr_apart(cluster: StandIn) -> None:
    outcome = run(cluster, "sh", "-c", "echo out; echo err >&2", streams="stdout stderr")
    assert outcome.output == {1: b"out\n", 2: b"err\n"}


def test_stdin_ends_with_the_close_message_of_v5(cluster: StandIn) -> None:
    stream = open_exec(cluster, "cat", streams="stdin stdout", subprotocol=V5)
    stream.send_binary(b"\x00first ")
    stream.send_binary(b"\x00second")
    stream.send_binary(b"\xff\x00")
    outcome = read_to_end(stream)
    assert outcome.output == {1: b"first second"}
    assert outcome.status == {"metadata": {}, "status": "Success"}


def test_empty_messages_are_counted_and_not_seen_by_the_program(cluster: StandIn) -> None:
    stream = open_exec(cluster, "cat", streams="stdin stdout", subprotocol=V5)
    for message in (b"\x00", b"", b"\x00", b"\x00x", b"\xff\x00"):
        stream.send_binary(message)
    assert read_to_end(stream).output == {1: b"x"}
    record = cluster.execs[-1]
    assert record.keepalives == 2
    assert record.bytes_in == 1
    assert record.last_stdin_at > 0


def test_flood_comes_whole_through_a_terminal_and_through_a_pipe(new: StandIn) -> None:
    script = "stty raw 2>/dev/null; head -c 3000000 /dev/zero"
    for streams, largest in (("stdin stdout tty", 32768), ("stdout", 32768)):
        outcome = run(new, "sh", "-c", script, streams=streams)
        assert outcome.output[1] == bytes(3000000)
        assert max(outcome.frame_bytes) <= largest + 1


def test_a_large_buffer_takes_the_flood_that_a_slow_client_leaves() -> None:
    with StandIn(buffer_bytes=16 * MIB) as cluster:
        stream = open_exec(cluster, "bash", "-c", "trap 'echo; echo interr''upted; exit' INT; yes")
        cluster.wait_until(lambda: cluster.waiting_bytes() >= 16 * MIB, 30)  # nobody has read anything
        stream.send_binary(b"\x00\x03")
        outcome = read_to_end(stream)
        assert outcome.output[1].endswith(b"interrupted\r\n")
        assert 16 * MIB < len(outcome.output[1]) < 40 * MIB
        assert cluster.waiting_bytes() == 0


def test_without_a_large_buffer_the_program_waits_for_a_slow_client(new: StandIn) -> None:
    stream = open_exec(new, "yes")
    wait_until_still(new, new.execs[-1])
    assert new.waiting_bytes() < MIB
    stream.shutdown()


def test_output_is_gathered_for_frames_of_the_size_that_is_asked_for() -> None:
    with StandIn(frame_bytes=5500, buffer_bytes=MIB) as cluster:
        outcome = run(cluster, "sh", "-c", "stty raw; head -c 3000000 /dev/zero; echo end")
        assert outcome.output[1] == bytes(3000000) + b"end\n"
        assert max(outcome.frame_bytes) == 5501
        assert sum(size == 5501 for size in outcome.frame_bytes) > 50  # all of them where the reader is the slower


def test_each_frame_is_a_tls_record_of_its_own() -> None:
    with StandIn(frame_bytes=5500) as cluster:
        stream = open_exec(cluster, "sh", "-c", "stty raw; head -c 3000000 /dev/zero")
        read_until(stream, b"\0")
        wait_until_still(cluster, cluster.execs[-1])
        records = [bytearray(stream.sock.recv(16384)) for _ in range(300)][1:]  # SSL_read gives one record at most
        for record in records:
            place = parse_frame(record, 0)
            assert place is not None and place[2] == len(record)
        assert max(map(len, records)) == 5505  # channel and header included


def test_output_before_exit_is_never_lost(new: StandIn) -> None:
    for _ in range(10):
        assert run(new, "printf", "last words").output[1] == b"last words"


def test_terminal_ends_with_its_shell_though_a_child_keeps_printing(new: StandIn) -> None:
    outcome = run(new, "bash", "-c", "setsid sh -c 'trap \"\" HUP; yes' & sleep 0.05")
    assert outcome.status == {"status": "Success"}


def test_terminal_ends_with_its_shell_though_a_child_has_it_open(new: StandIn) -> None:
    outcome = run(new, "sh", "-c", "(trap '' HUP; exec sleep 1000) & exit 4")
    assert cause(outcome) == "4"


def test_newer_subprotocol_wins_in_either_order(new: StandIn) -> None:
    for offer in (f"{V4}, {V5}", f"{V5}, {V4}"):
        with contextlib.suppress(websocket.WebSocketException):
            open_exec(new, "sh", subprotocol=offer)
        assert new.execs[-1].subprotocol == V5


def test_pings_are_answered_and_our_own_pings_expect_a_pong(cluster: StandIn) -> None:
    stream = open_exec(cluster, "cat")
    stream.recv_data()
    stream.ping("hello")
    frame = stream.recv_frame()
    assert (frame.opcode, frame.data) == (websocket.ABNF.OPCODE_PONG, b"hello")
    cluster.ping()
    opcode, _ = stream.recv_data_frame(control_frame=True)
    assert opcode == websocket.ABNF.OPCODE_PING
    cluster.wait_until(lambda: cluster.execs[-1].pongs == 1)
    assert cluster.execs[-1].unsolicited_pongs == 0


def test_ping_interval_pings_without_being_asked() -> None:
    with StandIn(ping_interval=0.01) as cluster:
        stream = open_exec(cluster, "cat")
        while cluster.execs[-1].pongs < 2:
            stream.recv_data_frame(control_frame=True)
        drop_tcp(stream)


def test_unsolicited_pong_ends_the_session_on_old_only(cluster: StandIn) -> None:
    stream = open_exec(cluster, "cat")
    stream.pong("unasked")
    record = cluster.execs[-1]
    cluster.wait_until(lambda: record.unsolicited_pongs == 1)
    if cluster.flavour == "old":
        outcome = read_to_end(stream)
        assert (outcome.status, outcome.close_code) == (None, None)
    else:
        stream.send_binary(b"\x00\x04")
        assert read_to_end(stream).status == {"status": "Success"}


# Statuses


def cause(outcome: Outcome) -> str:
    assert outcome.status is not None
    assert outcome.status["reason"] == "NonZeroExitCode"
    message: str = outcome.status["details"]["causes"][0]["message"]
    return message


def test_exit_code_and_signal_are_told(cluster: StandIn) -> None:
    outcome = run(cluster, "sh", "-c", "exit 3")
    status = {
        "status": "Failure",
        "message": "command terminated with non-zero exit code: error executing command [sh -c exit 3], exit code 3",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
    }
    assert outcome.status == (status if cluster.flavour == "new" else {"metadata": {}, **status})
    assert cause(run(cluster, "sh", "-c", "kill -9 $$")) == "137"


@pytest.mark.parametrize(
    ("pod", "command", "text"),
    [
        ("demo", ["nosuchcmd"], 'exec: "nosuchcmd": executable file not found in $PATH'),
        ("busybox", ["bash"], 'exec: "bash": executable file not found in $PATH'),
        ("busybox", ["/bin/bash"], 'exec: "/bin/bash": stat /bin/bash: no such file or directory'),
        ("distroless", ["sh"], 'exec: "sh": executable file not found in $PATH'),
        ("demo", ["/etc/passwd"], 'exec: "/etc/passwd": permission denied'),
        ("demo", [""], "args must not be empty"),
        ("demo", [], "args must not be empty"),
    ],
)
def test_program_that_cannot_start_is_told_by_a_status(
    cluster: StandIn, pod: str, command: list[str], text: str
) -> None:
    outcome = run(cluster, *command, pod=pod)
    assert outcome.status is not None
    assert outcome.close_code == 1000
    assert (outcome.status["reason"], outcome.status["code"]) == ("InternalError", 500)
    message = outcome.status["message"]
    assert message.startswith("Internal error occurred: ")
    if cluster.flavour == "new":
        assert message.endswith(text)
        assert "metadata" not in outcome.status
    else:
        assert message.endswith(f"{text}: unknown")
        assert outcome.status["metadata"] == {}
        assert outcome.status["details"]["causes"][0]["message"].endswith(text + ": unknown")


def test_finished_pod_on_v5_is_told_by_a_status_on_old_only(cluster: StandIn) -> None:
    if cluster.flavour == "new":
        assert refusal(cluster, "sh", pod="finished", subprotocol=V5)[0] == 500
    else:
        status = run(cluster, "sh", pod="finished", subprotocol=V5).status
        assert status is not None
        assert status["reason"] == "InternalError"


# Refusals


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"token": "wrong"}, 401, "Unauthorized"),
        (
            {"token": ""},
            403,
            (
                'pods "demo" is forbidden: User "system:anonymous" cannot get resource "pods/exec"'
                ' in API group "" in the namespace "default"'
            ),
        ),
        ({"pod": "nopod"}, 404, 'pods "nopod" not found'),
        ({"namespace": "nowhere"}, 404, 'pods "demo" not found'),
        ({"container": "nope"}, 400, "container nope is not valid for pod demo"),
        ({"pod": "multi"}, 400, "a container name must be specified for pod multi, choose one of: [c1 c2]"),
        ({"pod": "finished"}, 500, 'container not found ("main")'),
        ({"pod": "pending"}, 500, 'container not found ("main")'),
        ({"streams": "tty"}, 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ({"subprotocol": "v9.channel.k8s.io"}, 403, ""),
    ],
)
def test_refusal_before_the_upgrade(cluster: StandIn, options: dict[str, str], code: int, message: str) -> None:
    got_code, body = refusal(cluster, "sh", **options)
    assert got_code == code
    assert (body if isinstance(body, str) else body["message"]) == message
    assert cluster.execs == [] if code == 401 else cluster.execs[-1].http_status == code


def test_status_object_is_complete(new: StandIn) -> None:
    assert refusal(new, "sh", pod="nopod")[1] == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'pods "nopod" not found',
        "reason": "NotFound",
        "details": {"name": "nopod", "kind": "pods"},
        "code": 404,
    }


def test_user_without_rights_is_forbidden(cluster: StandIn) -> None:
    code, body = refusal(cluster, "sh", pod="busybox", namespace="kube-system", token=cluster.token_of("nobody"))
    assert code == 403
    assert body["message"] == (
        'pods "busybox" is forbidden: User "nobody" cannot get resource "pods/exec" in API group ""'
        ' in the namespace "kube-system"'
    )


def test_get_alone_is_enough_on_old_only(cluster: StandIn) -> None:
    reader = cluster.token_of("reader")
    if cluster.flavour == "old":
        assert run(cluster, "true", token=reader).close_code == 1000
    else:
        code, body = refusal(cluster, "true", token=reader)
        assert (code, body["message"]) == (403, 'pods "demo" is forbidden: ')


def test_request_without_upgrade_is_refused(new: StandIn) -> None:
    context = ssl.create_default_context(cadata=new.ca_pem)
    path = "/api/v1/namespaces/default/pods/demo/exec?stdout=true&command=sh"
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {new.token}\r\nConnection: close\r\n\r\n"
    with context.wrap_socket(socket.create_connection((new.host, new.port)), server_hostname="localhost") as sock:
        sock.sendall(head.encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Upgrade request required" in answer


def test_expired_token_is_refused_and_a_new_one_is_not() -> None:
    with StandIn() as cluster:
        stream = open_exec(cluster, "cat")
        expired = cluster.token
        cluster.expire_token()
        assert refusal(cluster, "sh", token=expired)[0] == 401
        assert run(cluster, "true", token=cluster.renew_token()).close_code == 1000
        stream.send_binary(b"\x00\x04")
        assert read_to_end(stream).close_code == 1000


def test_client_certificate_names_its_user(new: StandIn, tmp_path: Path) -> None:
    files = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    for user, code in (("demo", None), ("nobody", 403), ("stranger", 403)):
        for name, pem in zip(files, new.client_certificate(user)):
            Path(name).write_text(pem)
        if code is None:
            assert run(new, "true", token="", certificate=files).close_code == 1000
        else:
            assert refusal(new, "true", token="", certificate=files)[0] == code
        assert new.execs[-1].user == user


def test_a_client_that_never_speaks_tls_delays_nobody(new: StandIn) -> None:
    with socket.create_connection((new.host, new.port)):
        round_trip(new)


# Ends


@pytest.mark.parametrize("subprotocol", [V4, V5])
def test_tcp_drop_kills_the_shell_on_new_with_v4_only(cluster: StandIn, subprotocol: str) -> None:
    stream = open_exec(cluster, "sh", subprotocol=subprotocol)
    record = cluster.execs[-1]
    cluster.wait_until(cluster.shells)
    drop_tcp(stream)
    cluster.wait_until(lambda: record.ended == "lost")
    if cluster.flavour == "new" and subprotocol == V4:
        cluster.wait_until(lambda: not cluster.shells())
    else:
        round_trip(cluster)
        assert cluster.shells() == [record.pid]


def test_background_child_survives_the_tcp_drop(new: StandIn) -> None:
    stream = open_exec(new, "bash")
    stream.send_binary(b"\x00sleep 1000 & echo pi''d=$!.\n")
    child = int(read_after(stream, b"pid=").partition(b".")[0])
    drop_tcp(stream)
    new.wait_until(lambda: not new.shells())
    round_trip(new)
    assert new.processes() == [child]


def test_close_frame_leaves_the_shell_running(cluster: StandIn) -> None:
    stream = open_exec(cluster, "sh")
    record = cluster.execs[-1]
    cluster.wait_until(cluster.shells)
    stream.send_close(1000)
    assert read_to_end(stream).status is None
    cluster.wait_until(lambda: record.ended == "closed")
    round_trip(cluster)
    assert cluster.shells() == [record.pid]


def test_orphan_that_is_hung_up_later_is_reaped(old: StandIn) -> None:
    stream = open_exec(old, "cat")
    old.wait_until(old.shells)
    pid = old.execs[-1].pid
    drop_tcp(stream)
    old.wait_until(lambda: old.execs[-1].ended == "lost")
    run(old, "sh", "-c", f"kill -HUP {pid}", streams="stdout")
    old.wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_dropped_connections_end_without_a_status(cluster: StandIn) -> None:
    stream = open_exec(cluster, "sh")
    cluster.wait_until(cluster.shells)
    cluster.drop_connections()
    outcome = read_to_end(stream)
    assert (outcome.status, outcome.close_code) == (None, None)
    cluster.wait_until(lambda: cluster.execs[-1].ended == "dropped")


def test_deleted_pod_ends_its_streams_with_137(cluster: StandIn) -> None:
    stream = open_exec(cluster, "bash")
    stream.send_binary(b"\x00cd /; setsid nohup sleep 1000 & echo st'art'ed\n")
    read_until(stream, b"started")
    left = cluster.processes()
    cluster.delete_pod("default", "demo")
    outcome = read_to_end(stream)
    assert cause(outcome) == "137"
    assert outcome.close_code == 1000
    assert refusal(cluster, "sh")[0] == 404
    assert not any(Path(f"/proc/{pid}/cwd").exists() for pid in left)


# Hostile and slow clients


@pytest.mark.parametrize(
    "size",
    [
        "nope",
        '{"Width":80.5,"Height":24}',
        '{"Width":-1,"Height":24}',
        '{"Width":65536,"Height":24}',
        '{"Width":"80","Height":"24"}',
        "[80,24]",
    ],
)
def test_malformed_resize_stops_input_resizes_and_pongs(new: StandIn, size: str) -> None:
    stream = open_exec(new, "sh")
    record = new.execs[-1]
    stream.send_binary(b"\x04" + size.encode())
    stream.send_binary(b'\x04{"Width":80,"Height":24}')
    stream.send_binary(b"\x00exit\n")
    stream.ping("x")
    new.wait_until(lambda: record.jammed)
    round_trip(new)
    assert (record.sizes, record.bytes_in, record.pings) == ([], 0, 0)
    assert record.pid in new.shells()


def test_tcp_drop_is_noticed_after_a_malformed_resize(new: StandIn) -> None:
    stream = open_exec(new, "sh")
    stream.send_binary(b"\x04[]")
    new.wait_until(lambda: new.execs[-1].jammed)
    socket.socket.shutdown(stream.sock, socket.SHUT_WR)
    new.wait_until(lambda: not new.shells())


def test_input_resizes_and_pongs_wait_while_the_program_does_not_read(cluster: StandIn) -> None:
    script = f"stty raw -echo; echo ready; while [ ! -e go ]; do sleep 0.01; done; head -c {MIB} | wc -c; read x"
    stream = open_exec(cluster, "sh", "-c", script)
    record = cluster.execs[-1]
    read_until(stream, b"ready")
    for _ in range(64):
        stream.send_binary(b"\x00" + bytes(MIB // 64))
    stream.send_binary(b'\x04{"Width":80,"Height":24}')
    stream.ping("x")
    cluster.wait_until(lambda: record.bytes_in > 0)
    round_trip(cluster)
    assert record.bytes_in < MIB // 2
    assert (record.sizes, record.pings) == ([], 0)
    (cluster.home() / "go").touch()
    read_until(stream, str(MIB).encode())
    cluster.wait_until(lambda: (record.sizes, record.pings) == ([(80, 24)], 1))


def test_output_is_not_read_while_the_client_does_not_read(cluster: StandIn) -> None:
    total = 24 * MIB
    stream = open_exec(cluster, "head", "-c", str(total), "/dev/zero", streams="stdout")
    record = cluster.execs[-1]
    wait_until_still(cluster, record)
    assert record.bytes_out < total
    assert record.pid in cluster.shells()
    assert len(read_to_end(stream).output[1]) == total


def test_input_passes_while_the_client_does_not_read(new: StandIn) -> None:
    stream = open_exec(new, "sh", "-c", "yes & read x; touch got; kill $!; wait")
    wait_until_still(new, new.execs[-1])
    stream.send_binary(b"\x00\n")
    new.wait_until(lambda: (new.home() / "got").exists())
    read_to_end(stream)


def test_frame_of_31_mib_passes(new: StandIn) -> None:
    stream = open_exec(new, "wc", "-c", streams="stdin stdout", subprotocol=V5)
    stream.send_binary(bytes(31 * MIB))
    stream.send_binary(b"\xff\x00")
    assert int(read_to_end(stream).output[1]) == 31 * MIB - 1


def test_frame_of_33_mib_is_refused(new: StandIn) -> None:
    stream = open_exec(new, "wc", "-c", streams="stdin stdout")
    with contextlib.suppress(OSError, websocket.WebSocketException):
        stream.send_binary(bytes(33 * MIB))
    outcome = read_to_end(stream)
    assert (outcome.status, outcome.close_code) == (None, None)
    assert new.execs[-1].bytes_in == 0


# Leftovers


@pytest.mark.parametrize("flavour", ["new", "old"])
def test_stop_leaves_no_process_thread_descriptor_or_file(flavour: str) -> None:
    descriptors = set(os.listdir("/proc/self/fd"))
    threads = set(threading.enumerate())
    with StandIn(flavour=flavour) as cluster:
        idle = open_exec(cluster, "bash")
        orphan = open_exec(cluster, "bash", subprotocol=V5)
        flood = open_exec(cluster, "yes")
        idle.send_binary(b"\x00cd /; setsid nohup sleep 1000 & nohup sleep 1000 & echo st'art'ed\n")
        read_until(idle, b"started")
        plain = socket.create_connection((cluster.host, cluster.port))
        drop_tcp(orphan)
        cluster.wait_until(lambda: cluster.execs[1].ended == "lost" and len(cluster.processes()) >= 5)
        home = cluster.home()
        pids = cluster.processes()
    assert not home.exists()
    assert not any(Path(f"/proc/{pid}/cwd").exists() for pid in pids)
    assert set(threading.enumerate()) == threads
    for stream in (idle, flood):
        stream.shutdown()
    plain.close()
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert cluster.shells() == []


def test_stop_twice_is_harmless_and_a_cluster_can_be_restarted_as_another() -> None:
    cluster = StandIn()
    cluster.stop()
    cluster.start()
    cluster.stop()
    cluster.stop()
    assert not list(Path(tempfile.gettempdir()).glob(f"standin-*/{cluster.port}"))
