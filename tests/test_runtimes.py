"""What each container runtime says of a program that an image has not: the next one is tried, whatever the words."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

import k8s_exec
from demo.cluster import Pod, StandIn
from k8s_exec import ExecRefused, PodLost, Target, load_kubeconfig, open_shell
from tests.support import LOOPBACK, RunningServer, nothing_left, wait_until

RUNTIMES = ("runc", "docker", "crun", "kata")
PODS = (
    Pod("default", "demo"),
    Pod("default", "odd"),
    Pod("default", "noisy", programs=("bash",), environment=(("BASH_ENV", "noise"),)),
    Pod("default", "no-path", environment=(("PATH", "/nowhere"),)),
    Pod("default", "windows", programs=("powershell.exe", "cmd.exe"), tools=("cat",), runtime="windows"),
    Pod("default", "old-windows", programs=("cmd.exe",), tools=(), runtime="windows"),
    *(Pod("default", f"{name}-bash", programs=("bash",), runtime=name) for name in RUNTIMES),
    *(Pod("default", f"{name}-none", programs=(), tools=("cat",), runtime=name) for name in RUNTIMES),
)


@pytest.fixture(params=["new", "old"])
def cluster(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    """Takes the place of the one in support: with pods on many runtimes."""
    with nothing_left(), StandIn(pods=PODS, flavour=request.param) as running:
        yield running


def commands(cluster: StandIn) -> list[str]:
    """The programs that were asked for."""
    return [record.command[0] for record in cluster.execs]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_next_shell_is_tried_whatever_the_runtime_says(
    cluster: StandIn, server: RunningServer, runtime: str
) -> None:
    terminal = server.connect(f"{runtime}-bash")
    terminal.type("exit 5\n")
    assert terminal.wait_end()["exit_code"] == 5
    assert commands(cluster) == ["sh", "bash"]
    assert b"OCI" not in terminal.output


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_image_without_a_shell_is_told_in_the_same_words_on_each(server: RunningServer, runtime: str) -> None:
    terminal = server.connect(f"{runtime}-none")
    assert terminal.wait_end()["reason"].startswith("the container's image has no shell and nothing else that could")
    assert terminal.close_code == 4502


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_command_runs_where_there_is_no_shell_on_each(server: RunningServer, runtime: str) -> None:
    terminal = server.connect(f"{runtime}-none", command=["cat", "/proc/self/cmdline"])
    assert terminal.wait_end()["exit_code"] == 0
    assert terminal.output == b"cat\0/proc/self/cmdline\0"


def test_a_shell_whose_loader_is_missing_is_passed_over(cluster: StandIn, server: RunningServer) -> None:
    shell = cluster.find("default", "odd").bin / "sh"
    shell.unlink()
    shell.write_text("#!/lib/ld-nowhere.so\n")
    shell.chmod(0o755)
    terminal = server.connect("odd")
    terminal.type("exit 5\n")
    assert terminal.wait_end()["exit_code"] == 5
    assert [record.exit_code for record in cluster.execs] == [127, 5]


@pytest.mark.parametrize("code", [126, 127, 128])
def test_a_command_that_ends_with_such_a_code_has_run_once(cluster: StandIn, server: RunningServer, code: int) -> None:
    terminal = server.connect(command=["sh", "-c", f"echo it ran >>log; cat log; exit {code}"])
    assert terminal.wait_end()["exit_code"] == code
    assert terminal.output == b"it ran\r\n"
    assert (cluster.home() / "log").read_text() == "it ran\n"


def test_a_command_that_is_not_there_ends_with_the_shells_own_words(cluster: StandIn, server: RunningServer) -> None:
    terminal = server.connect(command=["nosuchcmd"])
    assert terminal.wait_end()["exit_code"] == 127
    assert b"nosuchcmd" in terminal.output
    assert commands(cluster) == ["sh"]


def test_a_command_that_prints_nothing_is_not_waited_for(server: RunningServer) -> None:
    begin = time.monotonic()
    with server.connect(command=["sleep", "1000"]) as terminal:
        terminal.wait_for_event("session")
        assert time.monotonic() - begin < k8s_exec._SILENT_SECONDS


def test_what_comes_before_the_script_is_shown(cluster: StandIn, server: RunningServer) -> None:
    (cluster.home("default", "noisy") / "noise").write_text("echo before\n")
    terminal = server.connect("noisy", command=["echo", "after"])
    terminal.wait_end()
    assert terminal.output.endswith(b"before\r\nafter\r\n")
    assert terminal.output.count(b"\n") == 3  # bash was started twice


def test_a_shell_outside_of_path_is_found_and_hung_up(cluster: StandIn, server: RunningServer) -> None:
    terminal = server.connect("no-path")
    terminal.type("echo rea''dy; /bin/sleep 1000 &\n")
    terminal.wait_for("ready\r\n")
    wait_until(lambda: len(cluster.processes("default", "no-path")) == 2, "a shell and its child")
    assert commands(cluster) == ["sh", "bash", "/bin/sh"]
    terminal.drop()
    server.wait_settled()
    assert server.rows()[0]["hung_up"] >= 1
    wait_until(lambda: not cluster.processes("default", "no-path"), "an empty pod")


@pytest.mark.parametrize(("pod", "shell"), [("windows", "powershell.exe"), ("old-windows", "cmd.exe")])
def test_a_windows_pod_has_its_own_shells(cluster: StandIn, server: RunningServer, pod: str, shell: str) -> None:
    terminal = server.connect(pod)
    terminal.type("exit 5\n")
    assert terminal.wait_end()["exit_code"] == 5
    assert cluster.execs[-1].command == (shell,)


def test_a_command_runs_as_it_is_in_a_windows_pod(cluster: StandIn, server: RunningServer) -> None:
    terminal = server.connect("windows", command=["cat", "/proc/self/cmdline"])
    assert terminal.wait_end()["exit_code"] == 0
    assert terminal.output == b"cat\0/proc/self/cmdline\0"
    assert "powershell.exe" not in commands(cluster)


def test_a_command_that_a_windows_pod_has_not_is_named(server: RunningServer) -> None:
    assert "(tried: nano.exe)" in server.connect("windows", command=["nano.exe"]).wait_end()["reason"]


def test_a_program_that_may_not_run_is_said_when_nothing_else_does(cluster: StandIn) -> None:
    (cluster.find("default", "runc-none").bin / "sh").write_text("not a program")
    target = Target(load_kubeconfig(cluster.kubeconfig(), trust=LOOPBACK), "default", "runc-none")
    with pytest.raises(ExecRefused, match="may not run the program 'sh': permission denied"):
        open_shell(target, str(uuid.uuid4()), (), "", (80, 24), timeout=10.0)
    assert len(cluster.execs) > 2


def test_a_shell_that_never_says_that_it_runs_is_given_up_in_time(
    cluster: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k8s_exec, "_UNSURE_SECONDS", 2.0)
    shell = cluster.find("default", "odd").bin / "sh"
    shell.unlink()
    shell.write_text("#!/bin/sh\nexec sleep 1000\n")
    shell.chmod(0o755)
    target = Target(load_kubeconfig(cluster.kubeconfig(), trust=LOOPBACK), "default", "odd")
    with pytest.raises(PodLost, match="did not start in time"):
        open_shell(target, str(uuid.uuid4()), (), "", (80, 24), timeout=0.5)
    assert commands(cluster) == ["sh", "sh"]  # the second is its hang-up


@pytest.mark.parametrize("what", ["command", "directory"])
@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"], ids=ascii)
def test_what_no_program_can_be_given_is_a_sentence(cluster: StandIn, what: str, text: str) -> None:
    target = Target(load_kubeconfig(cluster.kubeconfig(), trust=LOOPBACK), "default", "demo")
    command, directory = ([text], "") if what == "command" else ([], text)
    with pytest.raises(ExecRefused, match="the command or its directory holds a character"):
        open_shell(target, str(uuid.uuid4()), command, directory, (80, 24), timeout=10.0)
    assert cluster.execs == []
