"""What a session that was cut off leaves in the pod: nothing, but what was started to outlive it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import k8s_exec
from demo.cluster import DEFAULT_PODS, Pod, StandIn
from k8s_exec import HangUp
from tests.support import (
    LOOPBACK,
    Listener,
    RunningServer,
    Terminal,
    need_program,
    nothing_left,
    programs,
    running,
    wait_until,
)

BARE = Pod("default", "bare", programs=("sh",), tools=("sleep",))
FLAVOURS = ("new", "old")
SHELLS = ("bash", "sh", "dash", "ash")


@pytest.fixture(params=FLAVOURS)
def cluster(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    """Takes the place of the one in support: here each test is for both."""
    with nothing_left(), StandIn(flavour=request.param, pods=(*DEFAULT_PODS, BARE)) as running:
        yield running


def states(cluster: StandIn, pod: str = "demo") -> str:
    """The letters under which the kernel lists the pod's processes; T is stopped (proc(5))."""
    letters = ""
    for pid in cluster.processes("default", pod):
        with contextlib.suppress(OSError):
            letters += Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return letters


def opened(server: RunningServer, pod: str = "demo") -> Terminal:
    """A terminal whose shell answers."""
    terminal = server.connect(pod)
    terminal.type("echo rea''dy\n")
    terminal.wait_for("ready\r\n")
    return terminal


def logged_out(server: RunningServer, number: int = 1) -> None:
    wait_until(lambda: sum(row["logout_at"] is not None for row in server.rows()) == number, "the end of the session")


def after_drop(server: RunningServer, terminal: Terminal) -> int | None:
    """Cut the browser off, and wait until nothing is left to do. Returns how many processes the ledger counts."""
    terminal.drop()
    server.wait_settled()
    hung_up = server.rows()[0]["hung_up"]
    assert hung_up is None or isinstance(hung_up, int)
    return hung_up


# What is typed, and which program shows that it has begun.
ENDED = {
    "an idle shell": ("", ""),
    "sleep": ("sleep 1000\n", "sleep"),
    "top": ("top\n", "top"),
    "vi": ("vi notes\n", "vi"),
    "a child in the background": ("sleep 1000 &\n", "sleep"),
    "a stopped job": ("sleep 1000 & kill -STOP $!\n", ""),
    "a job behind Ctrl-Z": ("sleep 1000\n", "sleep"),
    "a shell that ignores HUP": ("trap '' HUP; echo trap''ped\n", ""),
    "an output loop": ("yes\n", "yes"),
}


@pytest.mark.parametrize("pod", ["demo", "busybox"])
@pytest.mark.parametrize("what", list(ENDED))
def test_nothing_stays_of_a_session_whose_browser_left(
    cluster: StandIn, server: RunningServer, pod: str, what: str
) -> None:
    keys, program = ENDED[what]
    terminal = opened(server, pod)
    terminal.type(keys)
    if program:
        # vi and top have other names where they are links to something better
        wait_until(lambda: any(name not in SHELLS for name in programs(cluster, pod)), program)
    if "ignores" in what:
        terminal.wait_for("trapped\r\n")
    if "Ctrl-Z" in what:
        terminal.type("\x1a")
    if "stopped" in what or "Ctrl-Z" in what:
        wait_until(lambda: "T" in states(cluster, pod), "a stopped process")
    assert after_drop(server, terminal) is not None
    wait_until(lambda: not cluster.processes("default", pod), "an empty pod")


@pytest.mark.parametrize("starter", ["nohup", "setsid"])
def test_what_was_started_to_outlive_the_terminal_stays(cluster: StandIn, server: RunningServer, starter: str) -> None:
    terminal = opened(server)
    terminal.type(f"{starter} sleep 1000 >log 2>&1 &\n")
    wait_until(lambda: "sleep" in programs(cluster), "sleep")
    after_drop(server, terminal)
    wait_until(lambda: programs(cluster) == ["sleep"], "only sleep")


@pytest.mark.parametrize(
    ("keys", "counts"),
    [("", (0, 1)), ("sleep 1000 &\n", (1, 2))],
    ids=["idle", "background"],
)
def test_what_was_hung_up_is_counted(
    cluster: StandIn,
    server: RunningServer,
    caplog: pytest.LogCaptureFixture,
    keys: str,
    counts: tuple[int, int],
) -> None:
    # The shell itself goes over the stream that is still open, unless the hang-up is first.
    caplog.set_level(logging.INFO, "jumpserver")
    terminal = opened(server)
    terminal.type(keys)
    wait_until(lambda: not keys or "sleep" in programs(cluster), "sleep")
    hung_up = after_drop(server, terminal)
    assert hung_up in counts
    line = next(record.message for record in caplog.records if record.message.startswith("hang_up "))
    assert line.endswith(f" hung_up={hung_up}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that prints nothing is waited for in case it does not exist; not for long here."""
    monkeypatch.setattr(k8s_exec, "_SILENT_SECONDS", 0.2)


def test_a_command_of_the_token_is_hung_up_too(cluster: StandIn, server: RunningServer) -> None:
    terminal = server.connect(command=["sleep", "1000"])
    wait_until(lambda: programs(cluster) == ["sleep"], "sleep")
    terminal.wait_for_event("session")
    after_drop(server, terminal)
    wait_until(lambda: not cluster.processes(), "an empty pod")


def test_the_shutdown_of_the_server_hangs_up(cluster: StandIn, server: RunningServer) -> None:
    terminals = [opened(server) for _ in range(3)]
    for terminal in terminals:
        terminal.type("sleep 1000 &\n")
    wait_until(lambda: programs(cluster).count("sleep") == 3, "three sleeps")
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    reason = "the server is shutting down"
    assert [terminal.wait_end()["reason"] for terminal in terminals] == [reason] * 3
    stopping.join()
    wait_until(lambda: not cluster.processes(), "an empty pod")
    assert [row["reason"] for row in server.rows()] == [reason] * 3
    assert all(row["hung_up"] >= 1 for row in server.rows())


def test_the_processes_of_another_session_are_left_alone(cluster: StandIn, server: RunningServer) -> None:
    staying, leaving = opened(server), opened(server)
    staying.type("sleep 1000 &\n")
    wait_until(lambda: programs(cluster).count("sleep") == 1, "sleep")
    before = set(cluster.processes())
    staying.type("echo unt''ouched\n")
    staying.wait_for("untouched\r\n")
    leaving.type("sleep 1000 &\n")
    wait_until(lambda: programs(cluster).count("sleep") == 2, "another sleep")
    leaving.drop()
    logged_out(server)
    wait_until(lambda: len(cluster.processes()) == 2, "one shell and its child")
    assert set(cluster.processes()) <= before
    staying.type("echo still''here\n")
    staying.wait_for("stillhere\r\n")
    staying.drop()
    logged_out(server, 2)


def test_a_shell_that_ended_by_itself_is_not_looked_for(cluster: StandIn, server: RunningServer) -> None:
    terminal = opened(server)
    terminal.type("exit 3\n")
    assert terminal.wait_end()["exit_code"] == 3
    logged_out(server)
    assert server.rows()[0]["hung_up"] is None
    assert len(cluster.execs) == 1


def test_an_image_without_the_tools_is_reported_as_not_checked(cluster: StandIn, tmp_path: Path) -> None:
    server = RunningServer(tmp_path, cluster)
    try:
        terminal = server.connect("bare")
        terminal.type("echo rea''dy\n")
        terminal.wait_for("ready\r\n")
        assert after_drop(server, terminal) is None
    finally:
        server.stop()


@pytest.mark.usefixtures("impatient")
def test_a_pod_without_any_shell_is_reported_as_not_checked(cluster: StandIn, tmp_path: Path) -> None:
    server = RunningServer(tmp_path, cluster)
    try:
        terminal = server.connect("distroless", command=["cat"])
        terminal.wait_for_event("session")
        assert after_drop(server, terminal) is None
    finally:
        server.stop()


# -- what the script sees and says ------------------------------------------------------------------------------------

FOREIGN_PROCESSES = 3000
# Forks processes that end with its standard input, every third one in a session of its own, as a node has them.
CROWD = """
import os, sys
for number in range(int(sys.argv[1])):
    if os.fork() == 0:
        if number % 3 == 0:
            os.setsid()
        os.close(1)
        os.read(0, 1)
        os._exit(0)
print("ready", flush=True)
os.read(0, 1)
"""


@contextlib.contextmanager
def crowd() -> Iterator[None]:
    """Thousands of processes beside the pod's, as where a pod sees its whole node (hostPID)."""
    command = [sys.executable, "-S", "-c", CROWD, str(FOREIGN_PROCESSES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as crowd:
        assert crowd.stdin is not None and crowd.stdout is not None
        assert crowd.stdout.readline() == b"ready\n"
        yield
        crowd.stdin.close()


def test_thousands_of_foreign_processes_cost_little(tmp_path: Path) -> None:
    with crowd():  # once: it slows everything on this host
        for flavour, pod in itertools.product(FLAVOURS, ("demo", "busybox")):
            folder = tmp_path / f"{flavour}-{pod}"
            folder.mkdir()
            with StandIn(flavour=flavour) as cluster, running(folder, cluster) as server:
                hang_up_leaves_nothing(cluster, server, pod)


def hang_up_leaves_nothing(cluster: StandIn, server: RunningServer, pod: str) -> None:
    terminal = opened(server, pod)
    terminal.type("sleep 1000 &\n")
    wait_until(lambda: "sleep" in programs(cluster, pod), "sleep")
    hung_up = after_drop(server, terminal)
    assert hung_up is not None and hung_up >= 1
    wait_until(lambda: not cluster.processes("default", pod), "an empty pod")
    assert cluster.execs[-1].exit_code == 0  # the script came to its end


def tell(cluster: StandIn, session_id: str = "", *, timeout: float = 10.0) -> HangUp:
    target = k8s_exec.Target(k8s_exec.load_kubeconfig(cluster.kubeconfig(), trust=LOOPBACK), "default", "demo")
    return k8s_exec.hang_up(target, session_id or str(uuid.uuid4()), "sh", timeout=timeout)


@contextlib.contextmanager
def process(session: str, *, leader: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A process with that mark of a session, itself the leader of one or not."""
    command = ["sleep", "1000"]
    environ = {**os.environ, "JUMPSERVER_SESSION": session}
    with subprocess.Popen(command, env=environ, start_new_session=leader) as running:
        try:
            yield running
        finally:
            running.kill()


def test_the_number_of_a_session_that_others_have_now_is_not_believed(cluster: StandIn) -> None:
    # What an old session started with setsid still names a process id that belongs to somebody else by now.
    session_id = str(uuid.uuid4())
    with process(str(uuid.uuid4()), leader=True) as other, process(f"{session_id}:{other.pid}", leader=True):
        assert tell(cluster, session_id) == HangUp(0)
        assert other.poll() is None


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_where_proc_shows_nothing_the_script_says_nothing(tmp_path: Path, shell: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not on this host")
    script = k8s_exec._HANG_UP.replace("/proc/", f"{tmp_path}/")
    assert script != k8s_exec._HANG_UP
    command = [path, *(["sh"] if shell == "busybox" else []), "-c", script, "session", "sh"]
    for number in (0, 1):  # with nothing there, and with another's processes
        done = subprocess.run(command, capture_output=True, timeout=10, check=False)
        assert (done.returncode, done.stdout) == (1, b"")
        folder = tmp_path / str(number + 1)
        folder.mkdir()
        (folder / "environ").write_bytes(b"JUMPSERVER_SESSION=session:1\0")
        (folder / "stat").write_text("1 (sleep) S 0 1 1 0 -1\n")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo hung up 3", HangUp(3)),
        ("echo some noise of the image; echo hung up 3", HangUp(3)),
        ("echo hung up 99999999999999999999", HangUp(None)),
        ("echo hung up 99999999", HangUp(None)),
        ("echo hung up -1", HangUp(None)),
        ("echo hung up 3 or so", HangUp(None)),
        ("echo who hung up 3", HangUp(None)),
        ("echo hung up 3; echo more", HangUp(None)),
        ("echo hung up 3; exit 1", HangUp(None)),
        ("echo hung up", HangUp(None)),
        ("exit 0", HangUp(None)),
        ("kill -9 $$", HangUp(None)),
        ("yes hung up 3 | head -c 1000005", HangUp(None)),
    ],
)
def test_only_what_the_script_counts_is_believed(cluster: StandIn, script: str, told: HangUp) -> None:
    shell = cluster.find("default", "demo").bin / "sh"
    shell.unlink()
    shell.write_text(f"#!/bin/sh\n{script}\n")
    shell.chmod(0o755)
    assert tell(cluster) == told


def test_another_try_is_of_use_where_the_cluster_did_not_answer(cluster: StandIn) -> None:
    shell = cluster.find("default", "demo").bin / "sh"
    shell.unlink()
    shell.write_text("#!/bin/sh\nexec sleep 1000\n")
    shell.chmod(0o755)
    assert tell(cluster, timeout=0.3) == HangUp(None, again=True)
    cluster.go_down()
    assert tell(cluster) == HangUp(None, again=True)
    cluster.come_back()


def test_another_try_is_of_no_use_where_the_cluster_says_no(cluster: StandIn) -> None:
    target = k8s_exec.Target(k8s_exec.load_kubeconfig(cluster.kubeconfig(), trust=LOOPBACK), "default", "finished")
    assert k8s_exec.hang_up(target, "x", "sh", timeout=10.0) == HangUp(None, again=False)
    assert k8s_exec.hang_up(target, "x", "", timeout=10.0) == HangUp(None, again=False)
    cluster.delete_pod("default", "demo")
    assert tell(cluster) == HangUp(None, again=False)


TLS_HANDSHAKE = 22  # the type of a record with a ClientHello (RFC 8446, section 5.1), which may be long


@contextlib.contextmanager
def without_the_first_answer(cluster: StandIn) -> Iterator[str]:
    """A kubeconfig that leads through a TCP relay: what answers the first exec request never comes back."""
    connections = iter(("first", "second"))

    def serve(near: socket.socket) -> None:
        asked = threading.Event()
        swallow = next(connections) == "first"

        def answer(far: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := far.recv(65536):
                    if not (swallow and asked.is_set()):
                        near.sendall(data)

        with socket.create_connection(("127.0.0.1", cluster.port)) as far:
            listener.adopt(far)
            thread = threading.Thread(target=answer, args=(far,), name="answers", daemon=True)
            thread.start()
            while data := near.recv(65536):
                if data[0] != TLS_HANDSHAKE and len(data) > 700:  # nothing else is so long before the request
                    asked.set()
                far.sendall(data)
            far.shutdown(socket.SHUT_RDWR)
            thread.join()

    listener = Listener(serve)
    try:
        yield cluster.kubeconfig().replace(f":{cluster.port}", f":{listener.port}")
    finally:
        listener.close()


def test_a_shell_whose_start_was_never_answered_is_hung_up(cluster: StandIn) -> None:
    with without_the_first_answer(cluster) as kubeconfig:
        target = k8s_exec.Target(k8s_exec.load_kubeconfig(kubeconfig, trust=LOOPBACK), "default", "demo")
        with pytest.raises(k8s_exec.PodLost, match="did not answer the exec request in time"):
            k8s_exec.open_shell(target, str(uuid.uuid4()), (), "", (80, 24), timeout=1.0)
    assert [record.http_status for record in cluster.execs] == [101, 101]
    wait_until(lambda: not cluster.processes("default", "demo"), "an empty pod")


@pytest.mark.parametrize(
    "keys", ["", "echo half", "sleep 1000\n", "less /etc/passwd\n"], ids=["idle", "half a line", "sleep", "less"]
)
def test_a_session_whose_credentials_have_expired_leaves_no_shell(
    cluster: StandIn, server: RunningServer, keys: str
) -> None:
    terminal = opened(server)
    terminal.type(keys)
    wait_until(lambda: not keys.endswith("\n") or len(cluster.processes()) > 1, "the program")
    cluster.expire_token()
    assert after_drop(server, terminal) is None
    wait_until(lambda: not cluster.processes("default", "demo"), "an empty pod")


def test_a_multiplexer_survives_its_terminal(cluster: StandIn, server: RunningServer) -> None:
    """As it does when a real terminal goes away: keys typed into it would end it."""
    need_program("tmux")
    terminal = opened(server)
    terminal.type("TMUX_TMPDIR=$PWD tmux new 'sleep 1000'\n")
    wait_until(lambda: "sleep" in programs(cluster), "sleep in tmux")
    after_drop(server, terminal)
    wait_until(lambda: not {"bash", "sh"} & set(programs(cluster)), "the end of the shell")
    assert "sleep" in programs(cluster)
