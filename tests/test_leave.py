"""Ending a shell over its own connection, where the cluster does not allow another exec any more."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from demo.cluster import StandIn
from k8s_exec import ExitStatus, HangUp, PodExec, Target, hang_up, load_kubeconfig, open_shell
from tests.raw_cluster import closing, read_until
from tests.support import LOOPBACK, WAIT_SECONDS, nothing_left, programs, wait_until

SESSION = str(uuid.uuid4())  # pods of the stand-in see the processes of other tests
LEAVE_SECONDS = 5.0  # a busy machine takes its time; what matters in use is bounded by the caller


@pytest.fixture(params=["old", "new"])
def cluster(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    with nothing_left(), StandIn(flavour=request.param) as running:
        yield running


def target_of(cluster: StandIn, pod: str = "demo") -> Target:
    return Target(load_kubeconfig(cluster.kubeconfig(), trust=LOOPBACK), "default", pod)


@contextlib.contextmanager
def shell_in(cluster: StandIn, pod: str = "demo", command: tuple[str, ...] = ()) -> Iterator[PodExec]:
    """A shell that answers."""
    with closing(
        open_shell(target_of(cluster, pod), SESSION, command, "", (80, 24), timeout=WAIT_SECONDS).pod
    ) as shell:
        if not command:
            shell.write(b"echo rea''dy\r")
            read_until(shell, b"ready\r\n")
        yield shell


# What is typed, and what shows that it has been understood: output, or a program.
ENDED = {
    "an idle shell": ("", b"", ""),
    "a half-typed line": ("touch half-typed", b"touch half-typed", ""),
    "an open quote": ("echo 'open\r", b"echo 'open\r\n", ""),
    "sleep": ("sleep 1000\r", b"", "sleep"),
    "cat into a file": ("cat >file\r", b"", "cat"),
    "an output loop": ("yes\r", b"y\r\ny\r\n", "yes"),
    "less": ("less /etc/passwd\r", b"root", "less"),
    "top": ("top\r", b"load average", "top"),
    "an editor": ("vi notes\r", b"[?1049h", ""),
    "an editor in insert mode": ("vi notes\rihello", b"hello", ""),
    "a stopped job": ("sleep 1000 & kill -STOP $!; echo stop''ped\r", b"stopped\r\n", ""),
    "a shell that ignores HUP": ("trap '' HUP; echo trap''ped\r", b"trapped\r\n", ""),
    "a shell in a shell": ("sh -c \"echo in''ner; exec sh\"\r", b"inner\r\n", ""),
}


@pytest.mark.parametrize("pod", ["demo", "busybox"])
@pytest.mark.parametrize("what", list(ENDED))
def test_a_shell_leaves_with_what_runs_in_its_foreground(cluster: StandIn, pod: str, what: str) -> None:
    keys, shown, program = ENDED[what]
    if shutil.which(keys.split()[0] if keys else "sh") is None and "editor" in what:
        pytest.skip("no vi on this host")
    with shell_in(cluster, pod) as shell:
        shell.write(keys.encode())
        if shown:
            read_until(shell, shown)
        if program:
            wait_until(lambda: program in programs(cluster, pod), program)
        assert shell.leave(LEAVE_SECONDS)
        assert shell.exit is not None
        assert shell.exit.code is not None
        # What bash ends may be stopped just after the kernel has looked for stopped jobs, and so stay.
        wait_until(lambda: not {"bash", "dash", "sh"} & set(programs(cluster, pod)), "the end of the shell")
    home = cluster.home("default", pod)
    assert not (home / "half-typed").exists()
    assert not (home / "notes").exists()
    assert cluster.execs[0].ended == "status"


def test_a_program_that_was_started_with_nohup_stays(cluster: StandIn) -> None:
    with shell_in(cluster) as shell:
        shell.write(b"nohup sleep 1000 >log 2>&1 & echo start''ed\r")
        read_until(shell, b"started\r\n")
        assert shell.leave(LEAVE_SECONDS)
        wait_until(lambda: programs(cluster, "demo") == ["sleep"], "only sleep")


def test_it_is_left_where_the_credentials_have_expired(cluster: StandIn) -> None:
    with shell_in(cluster) as shell:
        target = target_of(cluster)
        cluster.expire_token()
        shell.wake()
        while shell.read():  # the prompt, maybe
            shell.wake()
        assert hang_up(target, SESSION, "sh", timeout=WAIT_SECONDS) == HangUp(None, again=False)
        assert shell.leave(LEAVE_SECONDS)
        assert shell.exit == ExitStatus(0)
        wait_until(lambda: not cluster.processes(), "an empty pod")


def test_a_shell_that_was_hung_up_by_another_exec_is_seen_to_end(cluster: StandIn) -> None:
    with shell_in(cluster) as shell:
        shell.write(b"env -i sleep 1000 & echo start''ed\r")  # which lost what marks the session
        read_until(shell, b"started\r\n")
        wait_until(lambda: "sleep" in programs(cluster, "demo"), "sleep")
        shell.wake()
        assert hang_up(target_of(cluster), SESSION, "sh", timeout=WAIT_SECONDS) == HangUp(2)
        assert shell.leave(LEAVE_SECONDS)
        assert shell.exit == ExitStatus(129)
        wait_until(lambda: not cluster.processes(), "an empty pod")


def test_a_program_that_does_not_leave_is_given_up_in_time(cluster: StandIn) -> None:
    script = "trap '' HUP TSTP; stty raw -echo; echo R; exec sleep 1000"
    with shell_in(cluster, command=("sh", "-c", script)) as shell:
        read_until(shell, b"R")
        shell.wake()
        begin = time.monotonic()
        assert not shell.leave(0.3)
        assert 0.25 < time.monotonic() - begin < 2
        assert shell.exit is None


def test_nothing_is_typed_where_input_waits(cluster: StandIn) -> None:
    script = "stty raw -echo; echo R; exec sleep 1000"
    with shell_in(cluster, command=("sh", "-c", script)) as shell:
        read_until(shell, b"R")
        while shell.wait_for_room(0, 0.2):
            shell.write(b"x" * 65536)
        shell.wake()
        begin = time.monotonic()
        assert not shell.leave(LEAVE_SECONDS)
        assert time.monotonic() - begin < LEAVE_SECONDS / 2


def test_a_shell_whose_connection_is_lost_cannot_be_left(cluster: StandIn) -> None:
    with shell_in(cluster) as shell:
        cluster.drop_connections()
        assert not shell.leave(LEAVE_SECONDS)


def test_wake_wakes_a_reader_and_the_connection_stays(cluster: StandIn) -> None:
    with shell_in(cluster, command=("sh", "-c", "stty raw -echo; echo R; exec cat >typed")) as shell:
        read_until(shell, b"R")
        output: list[bytes] = []
        reader = threading.Thread(target=lambda: output.append(shell.read()))
        reader.start()
        shell.wake()
        reader.join(WAIT_SECONDS)
        assert not reader.is_alive()
        assert output == [b""]
        shell.write(b"still open")
        typed = cluster.home() / "typed"
        wait_until(lambda: typed.exists() and typed.read_bytes() == b"still open", "the input")
        shell.abort()
        assert shell.read() == b""


def test_wake_may_come_again_and_after_the_end(cluster: StandIn) -> None:
    with shell_in(cluster) as shell:
        shell.wake()
        shell.wake()
        assert shell.read() == b""
        shell.close()
        shell.wake()
        assert not shell.leave(LEAVE_SECONDS)
