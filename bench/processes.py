"""The processes of a benchmark: starts them, asks them, and reads what the kernel counts for them. Knows no figures."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jwt
import trustme

ROOT = Path(__file__).parent.parent
_KUBECONFIG = """apiVersion: v1
kind: Config
current-context: bench
contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]
clusters: [{{name: bench, cluster: {{server: "https://127.0.0.1:{port}", certificate-authority: "{ca}"}}}}]
users: [{{name: bench, user: {{token: bench}}}}]
"""
_LISTENING = re.compile(r" listen=\S+:(\d+)")


class Process:
    """A running Python program."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        command = [sys.executable, *arguments]
        self.popen = subprocess.Popen(command, cwd=ROOT, text=True, **options)

    @property
    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far, ended ones included (to 10 ms)."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def status(self, key: str) -> int:
        """A number of /proc/<pid>/status: VmRSS and VmHWM in KB, Threads."""
        for line in Path(f"/proc/{self.popen.pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
        raise LookupError(key)

    def forget_peak(self) -> None:
        """Let VmHWM begin again at VmRSS."""
        Path(f"/proc/{self.popen.pid}/clear_refs").write_text("5")

    def wait_threads(self, count: int) -> None:
        """Wait until no more than so many threads are left: ended sessions have been written down then."""
        deadline = time.monotonic() + 30
        while self.status("Threads") > count:
            if time.monotonic() > deadline:
                raise TimeoutError("sessions did not end")
            time.sleep(0.005)

    def stop(self) -> None:
        """Kill it: with thousands of sessions an orderly end takes long."""
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()


class Helper(Process):
    """A module of this folder. Its first line says where it listens; a client then answers jobs."""

    def __init__(self, module: str, *arguments: str) -> None:
        super().__init__("-m", f"bench.{module}", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = int(self.take().get("port", 0))

    def give(self, job: str, **values: Any) -> None:
        """Send a job."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps({"job": job, **values}) + "\n")
        self.popen.stdin.flush()

    def take(self) -> dict[str, Any]:
        """The next answer."""
        assert self.popen.stdout is not None
        answer: dict[str, Any] = json.loads(self.popen.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def do(self, job: str, **values: Any) -> dict[str, Any]:
        """Do a job and wait for it."""
        self.give(job, **values)
        return self.take()


class Server(Process):
    """The jumpserver under test, started as an operator starts it."""

    def __init__(self, program: Path, config: Path) -> None:
        start = time.perf_counter()
        super().__init__(str(program), "-jumpserver", str(config), stderr=subprocess.PIPE)
        assert self.popen.stderr is not None
        self.port = self._listening_port(self.popen.stderr)
        self.start_seconds = time.perf_counter() - start
        self.idle_threads = self.status("Threads")
        threading.Thread(target=self._drain, args=(self.popen.stderr,), daemon=True).start()

    def _listening_port(self, log: IO[str]) -> int:
        text = ""
        for line in log:
            text += line
            found = _LISTENING.search(line)
            if found:
                return int(found[1])
        raise RuntimeError(f"the server did not start: {text}")

    @staticmethod
    def _drain(log: IO[str]) -> None:
        with contextlib.suppress(ValueError):  # closed by stop()
            for line in log:
                if " ERROR " in line or not line[:4].isdigit():  # a traceback has no time
                    sys.stderr.write(line)


class Lab:
    """A folder with certificates, configuration and recordings, and the processes that were started in it.

    There are two clusters: a flood must not slow down the source of what is measured beside it.
    """

    def __init__(self, folder: Path, program: Path, before: Path | None = None) -> None:
        self.folder = folder
        self.program = program
        self.before = before  # another jumpserver.py to compare with
        self.secret = secrets.token_hex(32)
        self.records = folder / "records"
        self.records.mkdir()
        self.running: list[Process] = []
        self.ca = str(folder / "ca.pem")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "source.pem")
        self.sources = {name: self.helper("source", str(folder / "source.pem")) for name in ("main", "flood")}
        for name, source in self.sources.items():
            self.kubeconfig(name).write_text(_KUBECONFIG.format(port=source.port, ca=self.ca))
        self.kubeconfig("standin").write_text(_KUBECONFIG.format(port=9, ca=self.ca))  # until it is started

    def kubeconfig(self, cluster: str) -> Path:
        """The file for a cluster: main, flood or standin."""
        return self.folder / f"{cluster}.kubeconfig"

    def write_config(self, *server_lines: str, more: Sequence[str] = ()) -> Path:
        """The configuration, with these lines in ``[Server]`` and ``more`` before ``[Clusters]``."""
        lines = ["[Server]", *server_lines, "max_sessions = 5000", "[Record]", 'path = "records"']
        lines += ["[Token]", f'secret = "{self.secret}"', *more, "[Clusters]"]
        lines += [f'{name} = "{name}.kubeconfig"' for name in (*self.sources, "standin")]
        config = self.folder / "jumpserver.toml"
        config.write_text("\n".join(lines))
        return config

    def helper(self, module: str, *arguments: str) -> Helper:
        """Start a module of this folder."""
        self.running.append(Helper(module, *arguments))
        return self.running[-1]  # type: ignore[return-value]

    @contextlib.contextmanager
    def server(self, program: Path | None = None) -> Iterator[Server]:
        """A fresh jumpserver with no sessions; by default of the tree that is measured."""
        server = Server(program or self.program, self.write_config('listen = "127.0.0.1:0"'))
        try:
            yield server
        finally:
            server.stop()

    @contextlib.contextmanager
    def servers(self, count: int) -> Iterator[list[Server]]:
        """So many jumpservers on one port."""
        with self.reserved_port() as port, contextlib.ExitStack() as stack:
            config = self.write_config(f'listen = "127.0.0.1:{port}"', "reuse_port = true")
            servers = []
            for _ in range(count):
                servers.append(Server(self.program, config))
                stack.callback(servers[-1].stop)
            yield servers

    @staticmethod
    @contextlib.contextmanager
    def reserved_port() -> Iterator[int]:
        """A port that servers may share, and nobody else takes."""
        with socket.socket() as reserved:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(("127.0.0.1", 0))
            yield reserved.getsockname()[1]

    def peer(self, module: str) -> Helper:
        """The baseline or the pump, before the main source."""
        return self.helper(module, str(self.sources["main"].port), self.ca, str(self.records))

    def token(self, **claims: Any) -> str:
        """A signed token."""
        return jwt.encode({"exp": time.time() + 600, "sub": "bench", **claims}, self.secret, "HS256")

    def direct(self, *words: str) -> dict[str, Any]:
        """The source itself as a client's target."""
        return {"port": self.sources["main"].port, "path": _exec_path(words), "ca": self.ca}

    def through_pump(self, pump: Helper, *words: str) -> dict[str, Any]:
        """The pump as a client's target."""
        return {"port": pump.port, "path": _exec_path(words), "v4": True}

    def through_baseline(self, baseline: Helper, *words: str) -> dict[str, Any]:
        """The baseline as a client's target."""
        return {"port": baseline.port, "path": f"/?path={urllib.parse.quote(_exec_path(words), safe='')}"}

    def through_server(self, server: Server, *words: str, cluster: str = "main", v1: bool = False) -> dict[str, Any]:
        """The jumpserver as a client's target, with a token of its own; the client is the original's or a page."""
        claims = {"namespace": "default", "pod_name": "bench", "container_name": "main", "cluster": cluster}
        token = self.token(**claims, command=["bench", *words], jti=secrets.token_hex(8))
        return {"port": server.port, "path": f"/ssh?ssh_token={token}&cols=120&rows=40", "v1": v1}

    def page(self, port: int, *, v1: bool = True, prefix: str = "", **more: Any) -> dict[str, Any]:
        """A shell in the stand-in cluster as a page's target, through whatever listens at the port."""
        claims = {"namespace": "default", "pod_name": "demo", "cluster": "standin", **more}
        token = self.token(**claims, jti=secrets.token_hex(8))
        return {"port": port, "path": f"/ssh?ssh_token={token}&cols=120&rows=40", "v1": v1, "prefix": prefix}

    def download(self, server: Server, filename: str) -> dict[str, Any]:
        """A recording as a client's target."""
        return {
            "port": server.port,
            "path": f"/records/play?filename={filename}&token={self.token(scope='play')}",
        }

    def live(self, server: Server, filename: str) -> dict[str, Any]:
        """A session, for one who watches, as a client's target."""
        return {
            "port": server.port,
            "path": f"/records/live?filename={filename}&token={self.token(scope='watch')}",
        }

    def forget_recordings(self) -> None:
        """Free the space of the recordings; the ledger, which the server holds open, stays."""
        for path in self.records.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix == ".cast":
                path.unlink()

    def stop(self) -> None:
        """Stop all that was started."""
        for process in reversed(self.running):
            process.stop()


def free_port() -> int:
    """A port of this host at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def listening(port: int, *command: str, **options: Any) -> Iterator[None]:
    """A foreign server, from when it accepts at the port to its end."""
    process = subprocess.Popen(command, **options)
    try:
        deadline = time.monotonic() + 20
        while not _accepts(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"{command[0]} did not start")
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


@contextlib.contextmanager
def nginx(folder: Path, site: str, main: str = "master_process off;") -> Iterator[int]:
    """nginx with a ``server`` block that listens at 127.0.0.1:8080; gives the port that takes its place.

    All that it writes is in the folder. ``main``: what stands outside of the http block.
    """
    port = free_port()
    site = site.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("/var/log/nginx", str(folder))
    folders = " ".join(f"{kind}_temp_path {folder}/nginx_{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; {main} error_log {folder}/error.log; pid {folder}/nginx.pid; events {{}}\n"
        f"http {{ access_log off; sendfile on; client_body_temp_path {folder}/nginx_body; {folders}\n{site}\n}}\n"
    )
    with listening(port, *nginx_command(folder)):
        yield port


def nginx_command(folder: Path) -> tuple[str, ...]:
    return ("nginx", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf")


def _exec_path(words: Sequence[str]) -> str:
    query = [("container", "main"), ("stdin", "true"), ("stdout", "true"), ("tty", "true")]
    query += [("command", word) for word in ("bench", *words)]
    return f"/api/v1/namespaces/default/pods/bench/exec?{urllib.parse.urlencode(query)}"
