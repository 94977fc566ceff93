"""A pod of the stand-in cluster: its programs, its home, its processes.

Owns what runs: a pod is a directory of links to programs of this host and a home, not isolated at all: a
shell here is a shell on this host. It knows nothing of Kubernetes' wire. Linux only.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
COMMON_TOOLS = tuple(
    """
    [ awk basename cat chmod clear cp cut date dd df dirname du echo env expr false find grep head hostname id
    kill less ln ls mkdir mkfifo more mv nohup printf ps pwd readlink rm rmdir sed seq setsid sleep sort stat
    stty tail tee test timeout top touch tput tr true tty uname uniq vi wc which who xargs yes
    """.split()  # noqa: SIM905
)


# How a container runtime tells that an image has no such program: without a folder in its name, and with one.
NO_PROGRAM = {
    "runc": ('exec: "{}": executable file not found in $PATH', 'exec: "{}": stat {}: no such file or directory'),
    "docker": ('exec: "{}": executable file not found in $PATH', 'exec: "{}": stat {}: no such file or directory'),
    "crun": ("executable file `{}` not found in $PATH: No such file or directory",) * 2,
    "kata": ("rpc error: code = Internal desc = ENOENT: No such file or directory",) * 2,
    "windows": ("hcs::System::CreateProcess main: The system cannot find the file specified.",) * 2,
}
WINDOWS_PROGRAMS = {"powershell.exe": "bash", "cmd.exe": "sh"}  # what stands in for them


@dataclass(frozen=True)
class Pod:
    """`programs` are what `tools` has not: the shells. `state` is running, or one of `demo.endings.NOT_RUNNING`.

    With `whole_host`, PATH goes on with the folders of this host, so that vim and whatever else it has is found.
    `elsewhere` are programs outside of PATH, by their whole path; `environment` is the image's, beside HOME.
    `sidecars` are init containers that go on running, `debuggers` ephemeral containers, both beside `containers`; the
    annotation names a `default_container` of the latter. `runtime` is one of `NO_PROGRAM`; docker tells a program that
    cannot start by output and exit code.
    """

    namespace: str
    name: str
    containers: tuple[str, ...] = ("main",)
    state: str = "running"
    programs: tuple[str, ...] = ("bash", "sh")
    tools: tuple[str, ...] = COMMON_TOOLS
    elsewhere: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    whole_host: bool = False
    sidecars: tuple[str, ...] = ()
    debuggers: tuple[str, ...] = ()
    default_container: str = ""
    runtime: str = "runc"


class ExecFailure(Exception):
    """The runtime cannot start the program; the text is the end of the message in the status."""


def _link(folder: Path, names: Iterable[str]) -> None:
    """Links to those of the programs that this host has."""
    for name in names:
        target = shutil.which(WINDOWS_PROGRAMS.get(name, name), path=os.pathsep.join(SYSTEM_DIRECTORIES))
        if target:
            (folder / name).symlink_to(target)


@functools.cache
def _toolbox(tools: tuple[str, ...]) -> Path:
    """The folder of these tools, for all pods until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="standin-tools-"))
    atexit.register(shutil.rmtree, folder)
    _link(folder, tools)
    return folder


class Image:
    """What a pod's programs see: a PATH that begins with a directory of its own, and a home."""

    def __init__(self, root: Path, pod: Pod) -> None:
        self.pod, self.root = pod, root
        self.bin, self.home = root / "bin", root / "home"
        self.folders = [self.bin, _toolbox(pod.tools), *map(Path, SYSTEM_DIRECTORIES if pod.whole_host else ())]
        self.environment = {
            "PATH": os.pathsep.join(map(str, self.folders)),
            **dict(pod.environment),
            "HOSTNAME": pod.name,
            "HOME": str(self.home),
        }

    def unpack(self) -> None:
        """Make its folders, once. The caller sees to it that nobody else does so meanwhile."""
        if not self.root.exists():
            self.bin.mkdir(parents=True)
            self.home.mkdir()
            _link(self.bin, self.pod.programs)

    def resolve(self, command: Sequence[str]) -> str:
        """The path of the program on this host; ExecFailure in the runtime's words when there is none."""
        program = command[0] if command else ""
        if not program:
            raise ExecFailure("args must not be empty")
        folder, name = os.path.split(program)
        if program in self.pod.elsewhere:
            return program
        if not folder or folder in SYSTEM_DIRECTORIES:
            path = next((place / name for place in self.folders if (place / name).exists()), self.bin / name)
        else:
            path = self.home / program
        if not path.exists() or not (folder or str(path.parent) in self.environment["PATH"].split(os.pathsep)):
            raise ExecFailure(NO_PROGRAM[self.pod.runtime][bool(folder)].format(program, program))
        if path.is_dir() or not os.access(path, os.X_OK):
            raise ExecFailure(f'exec: "{program}": permission denied')
        return str(path)


def _read(path: str) -> bytes:
    """What open() and read() would give, at a third of the price: a wait for processes reads thousands of files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))
    finally:
        os.close(descriptor)


def _is_in(pid: int, below: bytes) -> bool:
    with contextlib.suppress(OSError):
        if os.readlink(f"/proc/{pid}/cwd").encode().startswith(below):
            return True
        return b"\0HOME=" + below in b"\0" + _read(f"/proc/{pid}/environ")
    return False


def processes_in(folder: Path) -> list[int]:
    """Pids of the live processes with a home or working directory below the folder, and of their children."""
    below = os.fsencode(folder) + b"/"
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    found = {pid for pid in pids if _is_in(pid, below)}
    if not found:
        return []
    parents: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            state, parent = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:2]
            if state != b"Z":
                parents[pid] = int(parent)
    found &= parents.keys()
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return sorted(found)
        found |= more


def kill_in(folder: Path) -> None:
    """SIGKILL to all of them, again and again until nothing is left. Blocks up to 5 s."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        pids = processes_in(folder)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


class Process:
    """A program in a pod with the near ends of its terminal or pipes, non-blocking. Session thread only."""

    def __init__(self, image: Image, command: Sequence[str], streams: frozenset[str]) -> None:
        path = image.resolve(command)
        self.tty = "tty" in streams
        self.stdin: int | None = None
        self.outputs: dict[int, int] = {}  # descriptor: 1 (stdout) or 2 (stderr)
        self._descriptors: list[int] = []
        try:
            if self.tty:
                self.popen = self._start_on_terminal(image, command, "stdin" in streams)
            else:
                self.popen = self._start_on_pipes(image, command, path, streams)
            self.pidfd = os.pidfd_open(self.popen.pid)
        except OSError as exc:
            self._close_descriptors()
            raise ExecFailure(f'exec: "{command[0]}": {(exc.strerror or "").lower()}') from exc
        self._descriptors.append(self.pidfd)
        for descriptor in self._descriptors:
            os.set_blocking(descriptor, False)

    def _start_on_terminal(self, image: Image, command: Sequence[str], stdin: bool) -> subprocess.Popen[bytes]:
        master, slave = os.openpty()
        self._descriptors.append(master)
        self.outputs[master] = 1
        self.stdin = master if stdin else None
        # setsid(1) makes the session and the controlling terminal, then becomes the program: no code of ours
        # runs between fork and exec, which a process with threads must not do.
        try:
            return subprocess.Popen(
                ("setsid", "-c", *command),
                executable=shutil.which("setsid"),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=image.environment,
                cwd=image.home,
            )
        finally:
            os.close(slave)

    def _start_on_pipes(
        self, image: Image, command: Sequence[str], path: str, streams: frozenset[str]
    ) -> subprocess.Popen[bytes]:
        far: list[int] = []
        ends: list[int] = [subprocess.DEVNULL] * 3
        try:
            for number, name in enumerate(("stdin", "stdout", "stderr")):
                if name not in streams:
                    continue
                read_end, write_end = os.pipe()
                theirs, ours = (read_end, write_end) if number == 0 else (write_end, read_end)
                far.append(theirs)
                self._descriptors.append(ours)
                ends[number] = theirs
                if number == 0:
                    self.stdin = ours
                else:
                    self.outputs[ours] = number
            return subprocess.Popen(
                command,
                executable=path,
                stdin=ends[0],
                stdout=ends[1],
                stderr=ends[2],
                env=image.environment,
                cwd=image.home,
                start_new_session=True,
            )
        finally:
            for descriptor in far:
                os.close(descriptor)

    def write(self, data: memoryview) -> memoryview:
        """Give the program what it takes now; the rest comes back. After its end everything is taken."""
        while data and self.stdin is not None:
            try:
                data = data[os.write(self.stdin, data) :]
            except BlockingIOError:
                return data
            except OSError:
                self.close_stdin()
        return memoryview(b"")

    def close_stdin(self) -> None:
        """End of file for a pipe. A terminal has no such thing: it stays open, and takes no more."""
        if self.stdin is not None and not self.tty:
            self._descriptors.remove(self.stdin)
            os.close(self.stdin)
        self.stdin = None

    def resize(self, cols: int, rows: int) -> None:
        for master in self.outputs if self.tty else ():
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def exit_code(self) -> int | None:
        code = self.popen.poll()
        return code if code is None or code >= 0 else 128 - code

    def close(self) -> None:
        """Kill and reap the program if it still runs, and close everything."""
        self.popen.kill()
        self.popen.wait()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self.outputs.clear()
        self.stdin = None
