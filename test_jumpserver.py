"""The server as a whole: start and end, and the life of a session from the first key to the row in the ledger."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import http.client
import json
import logging
import os
import re
import resource
import shutil
import signal
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import websocket

import jumpserver
from demo.cluster import StandIn
from hooks import Hooks
from tests.support import (
    UPGRADE,
    Installation,
    Program,
    RunningServer,
    Terminal,
    another_server,
    connected,
    end_shell,
    exchange,
    last_row,
    newest,
    recorded_events,
    recorded_output,
    request_head,
    run_program,
    wait_until,
)

KIB, MIB = 1 << 10, 1 << 20
BROWSER_LEFT = jumpserver.BROWSER_LEFT.reason


# -- start ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-jumpserver", "--jumpserver"])
def test_the_configuration_of_the_original_is_enough(tmp_path: Path, cluster: StandIn, flag: str) -> None:
    config = f'[Server]\nlisten = "127.0.0.1:0"\n\n[Record]\npath = "{tmp_path}/data/records"\n'
    program = Program(tmp_path, cluster, config=config)
    program.start(flag)
    assert exchange(program.port, request_head("/nothing")).startswith(b"HTTP/1.1 404 ")
    assert exchange(program.port, request_head("/ssh?ssh_token=x", *UPGRADE)).startswith(b"HTTP/1.1 403 ")
    assert program.end() == 0
    assert (tmp_path / "data" / "records").is_dir()
    assert "Traceback" not in program.log()


def test_version_is_printed() -> None:
    done = run_program("--version")
    assert (done.returncode, done.stdout) == (0, f"jumpserver {jumpserver.__version__}\n")


def test_a_server_listens_when_its_ledger_is_open_and_not_before(tmp_path: Path, cluster: StandIn) -> None:
    config = Installation(tmp_path, cluster).config
    config.record_path.mkdir()
    server = jumpserver.JumpServer(config, Hooks(config.hooks_settings()))
    port = server.server_port
    with pytest.raises(ConnectionRefusedError), connected(port):
        pass
    server.start()
    assert exchange(port, request_head("/healthz")).startswith(b"HTTP/1.1 200 ")
    server.stop()


def test_a_server_that_waits_for_its_sessions_to_end_takes_no_new_connection(tmp_path: Path, cluster: StandIn) -> None:
    entered, go_on = tmp_path / "entered", tmp_path / "go_on"
    slow = (
        "import hooks, pathlib, threading\n"
        "class Slow(hooks.Hooks):\n"
        "    def on_logout(self, info):\n"
        f"        pathlib.Path({str(entered)!r}).touch()\n"
        f"        while not pathlib.Path({str(go_on)!r}).exists():\n"
        "            threading.Event().wait(0.01)\n"
        "        super().on_logout(info)\n"
    )
    with Program(tmp_path, cluster, hooks_file=slow) as program, program.connect() as terminal:
        terminal.wait_for_event("session")
        program.process.terminate()
        wait_until(entered.exists)
        with pytest.raises(ConnectionRefusedError), connected(program.port):
            pass
        go_on.touch()
        assert program.process.wait(10) == 0


def test_the_start_asks_no_name_server(tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("looked a name up"))
    with another_server(tmp_path, cluster):
        pass


def test_the_listen_backlog_holds_a_rush_of_browsers(server: RunningServer) -> None:
    info = server.server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    with open("/proc/sys/net/core/somaxconn") as file:
        assert struct.unpack_from("I", info, 28)[0] >= min(1024, int(file.read()))  # tcpi_sacked: the backlog


# -- signals and crashes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_sessions_with_the_reason_and_the_process_with_0(
    tmp_path: Path, cluster: StandIn, number: signal.Signals
) -> None:
    with Program(tmp_path, cluster) as program, program.connect() as terminal, program.connect(v1=False) as legacy:
        for each in (terminal, legacy):
            each.type("echo a$((1+1))b\n")
            each.wait_for("a2b")
        program.process.send_signal(number)
        end = terminal.wait_end()
        legacy.wait_end()
        assert program.process.wait(5) == 0
        reason = jumpserver.SHUTTING_DOWN.reason
        assert (end["reason"], terminal.close_code, legacy.close_code) == (reason, 4503, 4503)
        assert terminal.output.endswith(f"\r\n[jumpserver] {reason}\r\n".encode())
        assert legacy.output.endswith(f"\r\n[jumpserver] {reason}\r\n".encode())
        assert {recorded_output(Path(row["filename"])) for row in program.rows()} == {terminal.output, legacy.output}
        for row in program.rows():
            assert row["logout_at"] and row["reason"] == reason and row["exit_code"] is None
            assert row["sha256"] == hashlib.sha256(Path(row["filename"]).read_bytes()).hexdigest()
        assert "Traceback" not in program.log()


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, cluster: StandIn) -> None:
    hooks = (
        "import hooks, pathlib, threading\n"
        "class Slow(hooks.Hooks):\n"
        "    def on_logout(self, info):\n"
        f"        pathlib.Path({str(tmp_path / 'entered')!r}).touch()\n"
        "        threading.Event().wait(60)\n"
    )
    with Program(tmp_path, cluster, hooks_file=hooks) as program, program.connect() as terminal:
        terminal.wait_for_event("session")
        program.process.terminate()
        wait_until((tmp_path / "entered").exists)
        assert program.end() == -signal.SIGTERM


def test_two_servers_share_a_port_and_a_ledger_and_one_outlives_the_other(tmp_path: Path, cluster: StandIn) -> None:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        first = Program(tmp_path, cluster, port=reserved.getsockname()[1], server_lines="reuse_port = true")
        second = copy.copy(first)
        second.log_file = tmp_path / "second.log"
        with first, second, contextlib.ExitStack() as stack:
            terminals: dict[Program, Terminal] = {}
            while len(terminals) < 2:  # the kernel chooses
                terminal = stack.enter_context(first.connect())
                session = terminal.wait_for_event("session")["id"]
                terminals[first if session in first.log() else second] = terminal
            first.end(signal.SIGKILL)
            first.start()
            terminals[second].type("echo a$((1+1))b\n")
            terminals[second].wait_for("a2b")
            lost, alive = (terminals[program].wait_for_event("session")["id"] for program in (first, second))

            def end_of(session: str) -> str:
                return next(str(row["reason"]) for row in second.rows() if row["session_id"] == session)

            wait_until(lambda: end_of(lost) == "lost", "the lost session")
            assert end_of(alive) == ""


def test_after_kill_9_the_session_is_lost_and_its_recording_playable(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster) as program, program.connect() as terminal:
        terminal.type("echo a$((1+1))b\n")
        terminal.wait_for("a2b")
        program.end(signal.SIGKILL)
        with newest(program).open("ab") as file:
            file.write('[9.5, "o", "half a line ü'.encode()[:-1])
        program.start()
        program.wait_settled()
        row = last_row(program)
        assert row["reason"] == "lost" and row["logout_at"] >= row["login_at"]
        assert b"a2b" in recorded_output(newest(program))
        assert "mended" in program.log()
        assert exchange(program.port, request_head(program.play_path(program.recordings()[-1]))).endswith(b"\n")
        assert program.end() == 0


# -- a terminal -------------------------------------------------------------------------------------------------------


def test_a_client_of_the_original_works_and_gets_no_text(server: RunningServer) -> None:
    with server.connect(v1=False, size="") as terminal:
        terminal.sock.send('{"type":"resize","rows":40,"cols":120}')
        terminal.sock.send('{"type":"input","input":"stty size; exit 3\\n"}')
        terminal.wait_end()
    assert b"40 120" in terminal.output
    assert (terminal.events, terminal.close_code) == ([], 1000)
    assert terminal.sock.getsubprotocol() is None  # type: ignore[no-untyped-call]


def test_a_client_of_v1_is_told_of_session_and_end(server: RunningServer) -> None:
    with server.connect(container_name="main") as terminal:
        session = terminal.wait_for_event("session")
        where = {"cluster": "standin", "namespace": "default", "pod": "demo", "container": "main", "user": "alice"}
        assert session == {
            "type": "session",
            "id": newest(server).stem,
            **where,
            "label": "",
            "colour": "",
            "reusable": True,
            "position": 0,
            "resume": None,
        }
        terminal.type("exit 3\n")
        end = terminal.wait_end()
    reason = "the shell has ended with exit code 3"
    assert end == {"type": "end", "reason": reason, "exit_code": 3, "reusable": True}
    assert (terminal.close_code, terminal.close_reason) == (1000, end["reason"])


@pytest.mark.parametrize(("typed", "code"), [("exit", 0), ("exit 255", 255), ("kill -9 $$", 137)])
def test_the_exit_code_reaches_browser_and_ledger(server: RunningServer, typed: str, code: int) -> None:
    with server.connect() as terminal:
        terminal.type(f"{typed}\n")
        assert terminal.wait_end()["exit_code"] == code
    wait_until(lambda: last_row(server)["logout_at"])
    row = last_row(server)
    assert (row["exit_code"], row["user"], row["pod_name"]) == (code, "alice", "demo")
    assert row["bytes_in"] == len(typed) + 1
    assert row["bytes_out"] == len(recorded_output(newest(server)))
    assert row["sha256"] == hashlib.sha256(newest(server).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("query", "resize", "expected"),
    [
        ("&cols=132&rows=43", None, (132, 43)),
        ("", (99, 33), (99, 33)),
        ("", None, (80, 24)),
        ("&cols=0&rows=24", None, (80, 24)),
        ("&cols=wide&rows=24", (90, 30), (90, 30)),
    ],
)
def test_the_first_size_is_the_querys_or_the_first_resize_or_80x24(
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
    resize: tuple[int, int] | None,
    expected: tuple[int, int],
) -> None:
    if resize is None:
        monkeypatch.setattr(jumpserver, "FIRST_SIZE_SECONDS", 0.05)
    with server.connect(size=query) as terminal:
        if resize:
            terminal.resize(*resize)
        terminal.type("stty size\n")
        terminal.wait_for(f"{expected[1]} {expected[0]}")
        end_shell(terminal)
    header = json.loads(newest(server).read_text().splitlines()[0])
    assert (header["width"], header["height"]) == expected
    assert server.cluster.execs[-1].sizes == [expected]


def test_resizes_reach_the_pod_and_the_recording(server: RunningServer) -> None:
    sizes = [(90, 20), (1000, 1), (120, 50)]
    with server.connect() as terminal:
        for size in sizes:
            terminal.resize(*size)
        terminal.type("stty size\n")
        terminal.wait_for("50 120")
        end_shell(terminal)
    assert server.cluster.execs[-1].sizes == [(100, 30), *sizes]
    assert recorded_events(newest(server), "r") == [f"{cols}x{rows}" for cols, rows in sizes]


def test_resizes_out_of_range_are_dropped_and_the_session_goes_on(server: RunningServer) -> None:
    with server.connect() as terminal:
        for value in (0, -1, 65536, 80.0, "80", True, None, [80], 10**30, float("inf"), float("nan")):
            terminal.send(type="resize", rows=24, cols=value)
            terminal.send(type="resize", rows=value, cols=80)
        terminal.sock.send('{"type":"resize","rows":24,"cols":' + "9" * 5000 + "}")
        terminal.resize(81, 25)
        terminal.type("stty size\n")
        terminal.wait_for("25 81")
        end_shell(terminal)
    assert server.cluster.execs[-1].sizes == [(100, 30), (81, 25)]
    assert recorded_events(newest(server), "r") == ["81x25"]


def test_messages_of_unknown_types_are_ignored(server: RunningServer) -> None:
    with server.connect() as terminal:
        kinds: list[object] = ["ping", "", "session", 5, None, ["input"], {}]
        for kind in kinds:
            terminal.send(type=kind, input="x", rows=1, cols=1)
        terminal.type("echo a$((1+1))b; exit\n")
        terminal.wait_end()
    assert b"a2b" in terminal.output and terminal.close_code == 1000


MALFORMED: list[str | bytes] = [
    *(
        "",
        "keys",
        "[]",
        "5",
        "null",
        '"input"',
        "{}",
        '{"input":"x"}',
        '{"type":"input"}',
        '{"type":"ack"}',
        '{"type":"ack","drawn":1.5}',
    ),
    *('{"type":"resize","rows":24}', '{"type":"input","input":null}', '{"type":"input","input":5}', "[" * 100_000),
    *(b"\xff\xfe\xfd", b"\x00\x01"),
]


def test_a_malformed_message_ends_only_its_own_session(server: RunningServer) -> None:
    accepted = []
    with server.connect() as bystander:
        for message in MALFORMED:
            with server.connect() as terminal:
                terminal.wait_for_event("session")
                opcode = websocket.ABNF.OPCODE_BINARY if isinstance(message, bytes) else websocket.ABNF.OPCODE_TEXT
                terminal.sock.send(message, opcode)
                terminal.type("\x15exit\n")  # ^U takes back what should not have been typed
                end = terminal.wait_end()
            if (terminal.close_code, end["reason"]) != (4400, jumpserver.NOT_UNDERSTOOD.reason):
                accepted.append((message[:40], terminal.close_code))
        bystander.type("echo a$((1+1))b\n")
        bystander.wait_for("a2b")
        end_shell(bystander)
    assert accepted == []


@pytest.mark.parametrize(("pod", "shell"), [("demo", "bash"), ("busybox", "sh")])
def test_bash_is_preferred_and_sh_is_the_fallback(server: RunningServer, pod: str, shell: str) -> None:
    with server.connect(pod) as terminal:
        terminal.type('echo "<${BASH_VERSION:+bash}>" "<$TERM>"\n')
        terminal.wait_for("<bash> <xterm-256color>" if shell == "bash" else "<> <xterm-256color>")
        end_shell(terminal)


def test_the_command_of_a_token_takes_the_place_of_the_shell(server: RunningServer) -> None:
    command = ["sh", "-c", 'printf "%s|" "$@"', "sh", "a b", "&c=d", "", "ü"]
    with server.connect(command=command) as terminal:
        assert terminal.wait_end()["exit_code"] == 0
    assert terminal.output == "a b|&c=d||ü|".encode()
    assert server.cluster.execs[-1].command[-len(command) :] == tuple(command)


def test_everything_received_is_in_the_recording(server: RunningServer) -> None:
    script = r'i=0; while [ $i -lt 300 ]; do printf "%s ü€😀 \033[1mx\033[0m\a\n" $i; i=$((i+1)); done; exit 1'
    with server.connect(command=["sh", "-c", script]) as terminal:
        terminal.wait_end()
    assert terminal.output == recorded_output(newest(server))
    assert terminal.output.count("ü€😀".encode()) == 300


def test_the_last_200_kb_before_the_exit_arrive(server: RunningServer) -> None:
    command = ["sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x; exit 7"]
    for _ in range(20):
        with server.connect(v1=False, command=command) as terminal:
            terminal.wait_end()
        assert (len(terminal.output), terminal.close_code) == (200_000, 1000)


# -- recording --------------------------------------------------------------------------------------------------------


def test_no_recording_no_session(tmp_path: Path, cluster: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    with another_server(tmp_path, cluster, more='[Audit]\ndb = "ledger.db"\n') as server:
        shutil.rmtree(tmp_path / "records")
        (tmp_path / "records").write_text("in the way")
        with caplog.at_level(logging.INFO, "jumpserver"), server.connect() as terminal:
            assert terminal.wait_end()["reason"] == jumpserver.RECORDING_FAILED.reason
        assert terminal.close_code == 4500
        assert [event["type"] for event in terminal.events] == ["end"]
        assert (cluster.execs, server.rows()) == ([], [])
        assert "the record folder" in caplog.text and "Traceback" not in caplog.text


def test_a_recording_that_cannot_be_written_any_more_ends_the_session(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster) as program:
        with program.connect() as terminal, program.connect() as bystander:
            session = terminal.wait_for_event("session")["id"]
            bystander.wait_for_event("session")
            resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (MIB, MIB))
            terminal.type("yes\n")
            reason = terminal.wait_end()["reason"]
            assert (terminal.close_code, reason) == (4500, jumpserver.RECORDING_FAILED.reason)
            assert terminal.output.endswith(f"\r\n[jumpserver] {reason}\r\n".encode())
            cluster.wait_until(lambda: len(cluster.shells()) == 1)
            end_shell(bystander)
        wait_until(lambda: all(row["logout_at"] for row in program.rows()))
        (row,) = [row for row in program.rows() if row["session_id"] == session]
        recorded = recorded_output(Path(row["filename"]))
        assert row["reason"] == reason and 0 < len(recorded) <= MIB
        shown = terminal.output[: -len(f"\r\n[jumpserver] {reason}\r\n")]
        assert recorded.startswith(shown)  # nothing was shown that is not recorded
        assert "File too large" in program.log() and "Traceback" not in program.log()


# -- how the browser leaves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["drop", "close", "reset"])
def test_a_browser_that_leaves_ends_the_shell_and_completes_the_ledger(server: RunningServer, leave: str) -> None:
    silent = ["sh", "-c", "stty raw -echo; echo ready; exec sleep 1000"]  # only the browser's side can tell of the end
    with server.connect(command=silent) as terminal:
        terminal.wait_for("ready")
        (pid,) = server.cluster.shells()
        if leave == "close":
            terminal.sock.close()
        elif leave == "reset":
            linger = struct.pack("ii", 1, 0)
            terminal.sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # type: ignore[union-attr]
    server.cluster.wait_until(lambda: pid not in server.cluster.shells())
    wait_until(lambda: last_row(server)["logout_at"])
    row = last_row(server)
    reason = jumpserver.BROWSER_CLOSED.reason if leave == "close" else BROWSER_LEFT
    assert (row["reason"], row["exit_code"]) == (reason, None)
    assert row["sha256"] == hashlib.sha256(newest(server).read_bytes()).hexdigest()
    shell = next(record for record in server.cluster.execs if record.pid == pid)
    server.cluster.wait_until(lambda: shell.ended)
    assert shell.ended in ("status", "lost")  # never by a close frame, on which a shell lives on


def test_a_browser_that_leaves_before_the_first_size_gets_no_shell(server: RunningServer) -> None:
    count = len(server.rows())
    with server.connect(size=""):
        pass
    wait_until(lambda: not len(server.server.sessions))
    server.wait_settled()
    assert [row["reason"] for row in server.rows()[count:]] in ([], [BROWSER_LEFT])
    assert server.cluster.execs == []


def test_50_browsers_that_vanish_leave_nothing(server: RunningServer) -> None:
    def vanish(number: int) -> None:
        with server.connect() as terminal:
            terminal.wait_for_event("session")
            if number % 2:
                terminal.type("yes\n")
                terminal.wait_for("y\r\ny\r\n")

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(vanish, range(50)))
    server.wait_settled(30)
    assert {row["reason"] for row in server.rows()[-50:]} == {BROWSER_LEFT}
    assert not server.cluster.shells()


def test_logs_hold_no_token_no_query_and_no_kubeconfig(
    server: RunningServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    token, link = server.token(), server.link_token()
    with caplog.at_level(logging.DEBUG):
        with server.connect_with(token, size="&cols=81&rows=25") as terminal:
            end_shell(terminal)
        with contextlib.suppress(websocket.WebSocketBadStatusException):
            server.connect_with(token + "x", v1=False)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        with contextlib.closing(connection):
            for name in (server.recordings()[-1], "missing.cast"):
                connection.request("GET", f"/records/play?filename={name}&token={link}")
                connection.getresponse().read()
            for method, target in (("POST", f"/ssh?ssh_token={token}"), ("GET", f"/nothing?token={link}")):
                connection.request(method, target)
                connection.getresponse().read()
        exchange(server.port, f"GET /ssh?ssh_token={token}\r\n\r\n".encode())
        exchange(server.port, f"GET /ssh?ssh_token={token} HTTP/9.9\r\n\r\n".encode())
        wait_until(lambda: "logout" in caplog.text)
    assert {"login", "logout", "refusal", "play"} <= {record.getMessage().split()[0] for record in caplog.records}
    secrets = (token, link, server.secret, "ssh_token=", "cols=81", server.cluster.token, "certificate-authority")
    written = caplog.text + "".join(capfd.readouterr())
    assert [secret for secret in secrets if secret in written] == []
    assert os.fspath(newest(server)) in caplog.text


def test_the_server_raises_its_own_limit_of_descriptors(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster) as program:
        limits = Path(f"/proc/{program.process.pid}/limits").read_text()
        soft, hard = map(int, re.findall(r"Max open files +(\d+) +(\d+)", limits)[0])
        assert soft == hard or soft >= 6 * program.config.Server.max_sessions
