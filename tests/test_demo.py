"""``python -m demo``: a real process that serves, and leaves nothing behind, however it is ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import websocket

from demo.pods import processes_in
from recorder import recorded_commands
from tests.support import Terminal, wait_until

ROOT = Path(__file__).parent.parent
START_SECONDS = 30
HOST_PROGRAMS = [name for name in ("sha256sum", "od", "python3", "vim", "htop") if shutil.which(name, path=os.defpath)]


class Demo:
    """The running demo, with all of its files below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tmp"
        self.folder.mkdir()
        self._log_file = folder / "log"
        environment = {**os.environ, "TMPDIR": str(self.folder), "HOME": str(folder / "home-of-the-host")}
        with self._log_file.open("wb") as log:
            command = [sys.executable, "-m", "demo"]
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def log(self) -> str:
        return self._log_file.read_text()

    def wait_for(self, pattern: str) -> str:
        """The first group of a pattern once the log has it."""
        wait_until(lambda: re.search(pattern, self.log()) or self.process.poll() is not None, pattern, START_SECONDS)
        found = re.search(pattern, self.log())
        assert found, self.log()
        return found[1]

    def connect(self) -> Terminal:
        """Open a terminal in the first pod of the platform, as alice."""
        platform = self.wait_for(r"The platform: (http://127\.0\.0\.1:\d+/)\n")
        client = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        client.addheaders = [("Origin", platform.rstrip("/"))]
        client.open(f"{platform}login", b"name=alice", timeout=10).close()
        with client.open(f"{platform}terminal", b"place=0", timeout=10) as page:
            link = re.search(r'<iframe src="http([^"]+)"', page.read().decode())
        assert link is not None
        url = "ws" + link[1].replace("/#ssh_token=", "/ssh?ssh_token=") + "&cols=100&rows=30"
        return Terminal(websocket.create_connection(url, 10, subprotocols=["jumpserver.v1"]))


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    running = Demo(tmp_path)
    yield running
    running.process.kill()
    running.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_stays_of_a_demo_that_is_ended(demo: Demo, number: signal.Signals) -> None:
    with demo.connect() as terminal:
        terminal.type("nohup sleep 1000 & setsid sleep 1000 & echo started-$((1 + 1))\r")
        terminal.wait_for("started-2")
        wait_until(lambda: len(processes_in(demo.folder)) >= 3, "the shell and both of its jobs")
        demo.process.send_signal(number)
        demo.process.send_signal(number)  # impatience does not cut the cleaning-up short
        assert terminal.wait_end()["reason"] == "the server is shutting down"
    assert demo.process.wait(30) == 0
    assert processes_in(demo.folder) == []
    assert list(demo.folder.iterdir()) == []
    assert "Traceback" not in demo.log()


def test_nothing_stays_of_a_demo_that_is_ended_while_it_starts(demo: Demo) -> None:
    demo.wait_for(r"(Recording a sample)")
    demo.process.send_signal(signal.SIGTERM)
    assert demo.process.wait(30) == 0
    assert processes_in(demo.folder) == []
    assert list(demo.folder.iterdir()) == []
    assert "Traceback" not in demo.log()


def test_a_sample_is_recorded(demo: Demo) -> None:
    demo.wait_for(r"logout session=(\S+) user=alice pod=default/demo \S+ .* exit=0 ")


def test_the_sample_has_chapters(demo: Demo) -> None:
    demo.wait_for(r"logout session=(\S+) user=alice ")
    (recording,) = demo.folder.rglob("*.cast")
    chapters = [(command.text.split()[0], command.exit_code) for command in recorded_commands(recording)]
    assert chapters[:2] == [("printf", 0), ("for", 0)] and chapters[2][1] != 0 and chapters[3:] == [("exit", None)]


def test_its_pod_finds_what_the_host_has_and_nothing_of_its_home(demo: Demo) -> None:
    with demo.connect() as terminal:
        terminal.type(f"for name in {' '.join(HOST_PROGRAMS)}; do command -v $name || echo no $name; done\r")
        terminal.type("env | sort; echo done-$((1 + 1))\r")
        output = terminal.wait_for("done-2").decode()
    assert re.search(r"^no ", output, re.M) is None, output
    assert f"HOME={demo.folder}" in output
    assert "home-of-the-host" not in output


def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "demo", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("demo: listen in [Server]: ") and "Traceback" not in done.stderr
