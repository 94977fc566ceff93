"""What bash reports of its commands, and that nobody who works in it can tell: it is a shell like any other."""

from __future__ import annotations

import os
import re
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import k8s_exec
from demo.cluster import DEFAULT_PODS, Pod, StandIn
from k8s_exec import Target, exec_path, hang_up, load_kubeconfig, open_shell
from tests.support import LOOPBACK, WAIT_SECONDS, need_program, nothing_left, programs, wait_until

SESSION = str(uuid.uuid4())
MARK = re.compile(rb"\x1b\]633;([DE]);([^\x07]*)\x07")
JOB = re.compile(rb"(\[1\][+ ]?) *[0-9]+")
PROMPT = b"at your service> "
READY = f"PS1='{PROMPT.decode()}'; bind 'set enable-bracketed-paste off'\n"
STARTERS = ("dash", "busybox", "bash")  # what may be the image's sh


def start_script(sh: Path, folder: Path, reports: bool) -> list[str]:
    """What the server runs in a pod that has such an sh."""
    arguments = [str(folder), "80", "24", k8s_exec._REPORTS if reports else ""]
    return [str(sh), "-c", k8s_exec._TAG, SESSION, str(sh), k8s_exec._START, *arguments]


def linked_sh(folder: Path, kind: str) -> Path:
    """A program of the host under the name of sh, by which bash and busybox go."""
    link = folder / "sh"
    link.symlink_to(need_program(kind))
    return link


class Bash:
    """A shell on a terminal, started as in a pod. Its ``.bashrc`` begins with a prompt that can be waited for."""

    def __init__(
        self,
        home: Path,
        bashrc: str = "",
        *,
        reports: bool = True,
        sh: str = "dash",
        within: Sequence[str] = (),
        **environment: str,
    ) -> None:
        (home / ".bashrc").write_text(READY + bashrc)
        command = start_script(linked_sh(home, sh), home, reports)
        self.output = b""
        self._terminal, theirs = os.openpty()
        self._process = subprocess.Popen(
            [*within, "setsid", "-c", *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=home,
            env={"HOME": str(home), "PATH": os.environ["PATH"], **environment},
        )
        os.close(theirs)

    def __enter__(self) -> Bash:
        self.wait_for(PROMPT)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def wait_for(self, text: bytes, count: int = 1) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while self.output.count(text) < count:
            assert time.monotonic() < deadline, self.output
            self.output += os.read(self._terminal, 65536)

    def run(self, *lines: str) -> Bash:
        """Type lines, each once the prompt for it has come; wait for the next prompt."""
        for line in lines:
            prompts = self.output.count(PROMPT)
            os.write(self._terminal, line.encode() + b"\n")
            self.wait_for(PROMPT, prompts + 1)
        return self

    @property
    def reported(self) -> list[str]:
        """The command lines and exit codes in the order in which they came."""
        return [(b"%b %b" % match).decode("utf-8", "replace") for match in MARK.findall(self.output)]

    @property
    def seen(self) -> bytes:
        """What a terminal shows of it; the numbers of processes differ."""
        return JOB.sub(rb"\1", MARK.sub(b"", self.output))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left():
        yield


def reports(home: Path, lines: Sequence[str], bashrc: str = "", **environment: str) -> list[str]:
    """What is reported; fails when anything else than in a shell without reports is seen."""
    seen = []
    for name in ("plain", "reports"):
        (home / name).mkdir()
        with Bash(home / name, bashrc, reports=name == "reports", **environment) as bash:
            bash.run(*lines)
            seen.append(bash.seen.replace(os.fsencode(home / name), b"~"))
    assert seen[1] == seen[0]
    return bash.reported


@pytest.mark.parametrize("sh", STARTERS)
def test_a_command_line_and_its_exit_code_are_told(tmp_path: Path, sh: str) -> None:
    with Bash(tmp_path, sh=sh) as bash:
        bash.run("echo 'a;b\\c' 你好", "(exit 7)", "")
    assert bash.reported == [
        *("E echo 'a\\x3bb\\\\c' 你好", "D 0"),
        *("E (exit 7)", "D 7"),
        "D 7",  # an empty line: there is no command that it could be of
    ]


LATE = ["D 0", "E false", "D 1", "E true"]  # without a PROMPT_COMMAND: the next command tells the code

# What ~/.bashrc has; what is typed; what is reported. All else must be as in a shell without reports.
KEPT = {
    "nothing": ("", ["false", "echo $?"], ["E false", "D 1", "E echo $?", "D 0"]),
    "the last argument": ("", ["echo a b", "echo $_"], ["E echo a b", "D 0", "E echo $_", "D 0"]),
    "PIPESTATUS": ("", ["false | true", "echo ${PIPESTATUS[*]}"], None),
    "a PROMPT_COMMAND": ("PROMPT_COMMAND='echo it was $?'", ["false"], ["E false", "D 1"]),
    "several PROMPT_COMMANDs": ("PROMPT_COMMAND=('echo 1: $?' 'echo 2: $?')", ["false"], ["E false", "D 1"]),
    "a readonly PROMPT_COMMAND": ("readonly PROMPT_COMMAND='echo'", ["false", "true"], LATE),
    "an exported PROMPT_COMMAND": ("export PROMPT_COMMAND='echo $?'", ["false", "env | grep ^PROMPT"], None),
    "a PROMPT_COMMAND that goes": ("", ["unset PROMPT_COMMAND", "false", "true"], ["E unset PROMPT_COMMAND", *LATE]),
    "a PS0": ("PS0='[$?]'", ["false", "true"], ["E false", "D 1", "E true", "D 0"]),
    "a readonly PS0": ("readonly PS0", ["false"], []),
    "no expansion of prompts": ("shopt -u promptvars", ["false"], []),
    "set -u": ("set -u", ["false", "echo $?"], ["E false", "D 1", "E echo $?", "D 0"]),
    "set -e": ("set -e", ["! true", "echo $?"], ["E ! true", "D 1", "E echo $?", "D 0"]),
    "set -x": ("", ["set -x", "false", "set +x"], ["E set -x", "D 0", "E false", "D 1", "E set +x", "D 0"]),
    "set -a": ("set -a", ["env | grep -ci jumpserver", "bash -c env | grep -ci jumpserver"], None),
    "a trap for ERR": ("trap 'echo an error' ERR", ["false", "echo $?"], ["E false", "D 1", "E echo $?", "D 0"]),
    "a trap for DEBUG": ("trap 'echo \"<$BASH_COMMAND>\"' DEBUG", ["false", "true"], LATE),
    "functrace": ("set -T; trap 'echo \"<$BASH_COMMAND>\"' DEBUG", ["false"], []),
    "aliases": ("alias local=false printf=false shopt=false history=false", ["false"], ["E false", "D 1"]),
    "a failing end": ("false", ["echo $?"], ["E echo $?", "D 0"]),
    "a broken end": ("if", ["echo $?"], ["E echo $?", "D 0"]),
    "several lines": ("", ["for i in 1 2; do\necho $i\ndone"], None),
    "job control": ("", ["sleep 1000 &", "kill %1; wait %1", "jobs"], None),
}  # fmt: skip


@pytest.mark.parametrize("what", KEPT)
def test_a_shell_that_reports_is_as_it_was(tmp_path: Path, what: str) -> None:
    bashrc, lines, expected = KEPT[what]
    if "several lines" in what:
        with Bash(tmp_path) as bash:
            bash.run(*lines)
        assert bash.reported == ["E for i in 1 2\\x3b do echo $i\\x3b done", "D 0"]
        return
    reported = reports(tmp_path, lines, f"{bashrc}\n")
    assert expected is None or reported == expected
    assert expected == [] or any(report.startswith("E") for report in reported)


# HISTCONTROL and the like; what is typed; the command lines that are told. Empty: the history does not say.
HISTORIES = {
    "nothing": ("", [" a", "b", "b"], [" a", "b", "b"]),
    "ignorespace": ("HISTCONTROL=ignorespace", ["a", " secret", "b", "b"], ["a", "", "b", "b"]),
    "ignoreboth": ("HISTCONTROL=ignoreboth", ["a", " secret", "a", "b"], ["a", "", "", "b"]),
    "both, by name": ("HISTCONTROL=ignorespace:ignoreboth", ["a", " secret", "b"], ["a", "", "b"]),
    "ignoredups": ("HISTCONTROL=ignoredups", ["a", "a", " b"], ["a", "a", " b"]),
    "erasedups": ("HISTCONTROL=erasedups", ["a", "b", "a", "a"], ["a", "b", "a", "a"]),
    "HISTIGNORE": ("HISTIGNORE='a*'", ["a", "b"], ["", "b"]),
    "HISTSIZE=0": ("HISTSIZE=0", ["a", "b"], ["", ""]),
    "a full history": ("HISTSIZE=2", ["a", "b", "c", "d"], ["a", "b", "c", "d"]),
    "no history": ("set +o history", ["a", "b"], ["", ""]),
    "off and on": ("", ["a", "set +o history", "b", "set -o history", "c"], ["a", "set +o history", "", "", "c"]),
    "a shared one": ("PROMPT_COMMAND='history -a; history -c; history -r'", ["a", "b"], ["a", "b"]),
    "with times": ("HISTTIMEFORMAT='%F %T '", ["a"], ["a"]),
    "with times for good": ("readonly HISTTIMEFORMAT='%F %T '", ["a"], ["a"]),
}  # fmt: skip


@pytest.mark.parametrize("what", HISTORIES)
def test_a_command_line_that_is_told_is_the_right_one(tmp_path: Path, what: str) -> None:
    bashrc, lines, told = HISTORIES[what]
    found = [report[2:] for report in reports(tmp_path, lines, f"{bashrc}\n") if report.startswith("E")]
    assert found == told


def test_the_last_line_of_an_older_session_is_not_told_for_one_that_is_hidden(tmp_path: Path) -> None:
    (tmp_path / ".bash_history").write_text("older\n")
    with Bash(tmp_path, "HISTCONTROL=ignorespace\n") as bash:
        bash.run(" secret")
    assert bash.reported == ["E ", "D 127"]


def test_a_long_command_line_is_cut_in_the_pod(tmp_path: Path) -> None:
    with Bash(tmp_path) as bash:
        os.write(bash._terminal, b"stty -icanon\n")
        bash.wait_for(PROMPT, 2)
        bash.run("echo " + "长" * 3000)  # which brings more than one prompt, where the line is drawn again
        bash.wait_for(b"\x1b]633;D;", 2)
    assert bash.reported[-2] == "E echo " + "长" * 1019


def test_control_characters_do_not_end_a_report(tmp_path: Path) -> None:
    with Bash(tmp_path) as bash:
        bash.run("echo 'a\x16\x07b\x16\x1bc' >/dev/null")
    assert bash.reported == ["E echo 'a b c' >/dev/null", "D 0"]


def test_nothing_of_it_reaches_programs(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    seen = []
    for home, reporting in ((tmp_path / "plain", False), (tmp_path, True)):
        with Bash(home, reports=reporting) as bash:
            bash.run("env | grep -v ^JUMPSERVER_SESSION= | sort >env")
            bash.run("ls /proc/self/fd >fds")
            bash.run("bash -ic 'declare -F; echo $PS0$PROMPT_COMMAND' >inner 2>&1")
        texts = [(home / name).read_text().replace(str(home), "~") for name in ("env", "fds", "inner")]
        seen.append(texts)
    assert seen[0] == seen[1]
    assert "JUMPSERVER" not in seen[1][0].upper()
    assert seen[1][1].split() == ["0", "1", "2", "3"]  # the last is the directory's own


def test_a_shell_in_the_shell_reports_nothing(tmp_path: Path) -> None:
    with Bash(tmp_path) as bash:
        bash.run("bash", "echo inside", "exit", "exec bash", "echo inside")
    assert bash.reported == ["E bash", "D 0", "E exec bash"]


def test_output_that_goes_into_a_file_has_no_reports_in_it(tmp_path: Path) -> None:
    with Bash(tmp_path) as bash:
        bash.run("exec >log", "echo a", "false", "exec >/dev/tty")
    assert (tmp_path / "log").read_text() == "a\n"
    assert bash.reported.count("D 1") == 1


READ_ONLY = ("unshare", "--mount", "sh", "-c", 'mount -o remount,bind,ro / && exec "$@"', "sh")


@pytest.mark.parametrize("sh", STARTERS)
def test_a_read_only_root_is_enough(tmp_path: Path, sh: str) -> None:
    if subprocess.run([*READ_ONLY, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    with Bash(tmp_path, sh=sh, within=READ_ONLY) as bash:
        bash.run("touch /tmp/a /var/tmp/a ./a")
    assert bash.output.count(b"Read-only file system") == 3
    assert bash.reported == ["E touch /tmp/a /var/tmp/a ./a", "D 1"]


@pytest.mark.parametrize("sh", STARTERS)
def test_a_posix_shell_starts_as_before(tmp_path: Path, sh: str) -> None:
    (tmp_path / "env").write_text(READY)
    with Bash(tmp_path, sh=sh, POSIXLY_CORRECT="1", ENV=str(tmp_path / "env")) as bash:
        bash.run("echo a", "ls /proc/self/fd >fds")
    assert bash.reported == []
    assert (tmp_path / "fds").read_text().split() == ["0", "1", "2", "3"]


def test_nobody_sees_the_reports_as_processes(tmp_path: Path) -> None:
    need_program("ps")
    with Bash(tmp_path, sh="bash") as bash:
        bash.run("ps -o stat=,args= --ppid $$ >children")
    assert [line.split()[1] for line in (tmp_path / "children").read_text().splitlines()] == ["ps"]


PODS = (*DEFAULT_PODS, Pod("default", "odd", programs=(), elsewhere=("/usr/bin/bash",)))


def first_command(pod: str, *, reports: bool, command: Sequence[str] = ()) -> bytes:
    """All output of a shell in a pod of the stand-in in which one command is run."""
    with StandIn(pods=PODS) as cluster:
        target = Target(load_kubeconfig(cluster.kubeconfig(), trust=LOOPBACK), "default", pod)
        shell = open_shell(target, SESSION, command, "", (80, 24), timeout=WAIT_SECONDS, reports=reports).pod
        shell.write(b"echo a''b; exit\r")
        output = b""
        while not shell.over:
            output += shell.read()
        shell.close()
        return output


@pytest.mark.parametrize(
    ("pod", "command", "wanted", "told"),
    [
        ("demo", (), True, True),
        ("odd", (), True, True),  # bash has run the start script, too
        ("busybox", (), True, False),
        ("demo", (), False, False),
        ("demo", ("bash",), True, False),
    ],
    ids=["bash", "bash outside of PATH", "sh", "not wanted", "a command of the token"],
)
def test_only_the_pods_own_bash_reports(pod: str, command: tuple[str, ...], wanted: bool, told: bool) -> None:
    output = first_command(pod, reports=wanted, command=command)
    assert b"ab\r\n" in output
    assert [code for code, _ in MARK.findall(output)] == ([b"E"] if told else [])


@pytest.mark.parametrize("keys", ["", "sleep 1000\r", "sleep 1000 &\r"], ids=ascii)
def test_a_shell_that_reports_can_be_hung_up_and_left(keys: str) -> None:
    with StandIn() as cluster:
        target = Target(load_kubeconfig(cluster.kubeconfig(), trust=LOOPBACK), "default", "demo")
        for leave in (False, True):
            shell = open_shell(target, SESSION, (), "", (80, 24), timeout=WAIT_SECONDS, reports=True)
            shell.pod.write(f"echo a''b\r{keys}".encode())
            output = b""
            while b"ab\r\n" not in output:
                output += shell.pod.read()
            if keys:
                wait_until(lambda: "sleep" in programs(cluster), "sleep")
            if leave:
                assert shell.pod.leave(WAIT_SECONDS)
            else:
                assert hang_up(target, SESSION, shell.program, timeout=WAIT_SECONDS).count == (2 if keys else 1)
            shell.pod.close()
            if not leave:
                wait_until(lambda: not cluster.processes(), "an empty pod")


def test_the_request_stays_far_below_what_proxies_take() -> None:
    """nginx takes 8 KiB by default."""
    target = Target(load_kubeconfig(SMALL), "a-namespace", "a-deployment-5d9c7b8f6d-x2x7q", "a-container")
    arguments = ["/a/directory", "1000", "500", k8s_exec._REPORTS]
    script = ["/usr/bin/bash", "-c", k8s_exec._TAG, SESSION, "/usr/bin/bash", k8s_exec._START, *arguments]
    assert len(exec_path(target, script)) < 5000


SMALL = """
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "https://cluster.example"}}]
users: [{name: a, user: {token: secret}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
"""
