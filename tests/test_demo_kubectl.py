"""The stand-in cluster serves the real kubectl."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.cluster import StandIn
from tests.support import need_program, nothing_left


@pytest.fixture(params=["new", "old"])
def cluster(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    with nothing_left(), StandIn(flavour=request.param) as running:
        yield running


@pytest.fixture
def kubectl(tmp_path: Path) -> Kubectl:
    return Kubectl(tmp_path)


class Kubectl:
    def __init__(self, folder: Path) -> None:
        self.program = need_program("kubectl")
        self.folder = folder
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "xterm"}

    def command(self, cluster: StandIn, *arguments: str, **options: str) -> list[str]:
        config = self.folder / "config"
        config.write_text(cluster.kubeconfig(**options))
        return [self.program, "--kubeconfig", str(config), *arguments]

    def __call__(
        self, cluster: StandIn, *arguments: str, stdin: str = "", **options: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(cluster, *arguments, **options),
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )


@pytest.mark.parametrize("auth", ["token", "cert"])
def test_kubectl_gets_pods(cluster: StandIn, kubectl: Kubectl, auth: str) -> None:
    result = kubectl(cluster, "get", "pods", auth=auth)
    assert result.stderr == ""
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["multi", "2/2", "Running", "0"] in lines
    assert ["finished", "0/1", "Completed", "0"] in lines


def test_kubectl_exec_returns_output_and_exit_code(cluster: StandIn, kubectl: Kubectl) -> None:
    result = kubectl(
        cluster,
        "exec",
        "-i",
        "demo",
        "--",
        "sh",
        "-c",
        "cat; echo err >&2; exit 3",
        stdin="typed",
        auth="cert",
    )
    assert (result.returncode, result.stdout) == (3, "typed")
    assert result.stderr.splitlines()[0] == "err"
    assert cluster.execs[-1].subprotocol == "v5.channel.k8s.io"


def test_kubectl_shows_refusals(cluster: StandIn, kubectl: Kubectl) -> None:
    missing = kubectl(cluster, "exec", "demo", "--", "nosuchcmd")
    assert missing.returncode != 0
    assert "executable file not found in $PATH" in missing.stderr
    assert 'pods "nopod" not found' in kubectl(cluster, "exec", "nopod", "--", "true").stderr
    assert 'pods "demo" is forbidden' in kubectl(cluster, "exec", "demo", "--", "true", user="nobody").stderr


def test_kubectl_exec_opens_a_terminal(cluster: StandIn, kubectl: Kubectl) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    with subprocess.Popen(
        kubectl.command(cluster, "exec", "-it", "demo", "--", "bash"),
        env=kubectl.environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as process:
        os.close(slave)
        cluster.wait_until(lambda: cluster.execs and (111, 33) in cluster.execs[-1].sizes)
        os.write(master, b"stty size; exit 7\r")
        seen = b""
        with contextlib.suppress(OSError):  # EIO at the end
            while True:
                seen += os.read(master, 65536)
    os.close(master)
    assert process.returncode == 7
    assert b"33 111" in seen
