"""Start a jumpserver on this host and print links that open a terminal and a recording.

Without arguments the pods are those of the stand-in cluster; with --kubeconfig they are real ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import secrets
import signal
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

import jwt
import websocket

import hooks
import jumpserver
from demo.cluster import StandIn

LINK_SECONDS = 12 * 3600
# Typed one after the other: each is a chapter of the recording.
SAMPLE = (
    r"printf 'This is a recording.\r\n\033[32mgreen\033[0m \033[1;34mblue\033[0m 容器终端 🚀\r\n'",
    "for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done",
    "ls /nowhere",
    "exit",
)


class DemoHooks(hooks.Hooks):
    """The hooks that ship, and a link to the recording of each session that ends."""

    links: Links

    def on_logout(self, info: hooks.SessionInfo) -> None:
        super().on_logout(info)
        print(f"\nReplay it: {self.links.player(info.filename)}", flush=True)


class Links:
    """Mints tokens as a release platform would, with any JWT library."""

    def __init__(self, secret: str, namespace: str, pod: str, container: str) -> None:
        self.secret = secret
        self.base = ""
        self.claims = {"namespace": namespace, "pod_name": pod, "container_name": container}

    def token(self, **claims: object) -> str:
        return jwt.encode({"exp": int(time.time()) + LINK_SECONDS, "sub": "demo", **claims}, self.secret, "HS256")

    def terminal(self) -> str:
        return f"{self.base}/#ssh_token={self.token(**self.claims)}"

    def player(self, filename: str) -> str:
        fragment = {"filename": filename, "token": self.token(scope="play", filename=filename)}
        return f"{self.base}/player.html#{urllib.parse.urlencode(fragment)}"


def record_sample(links: Links) -> None:
    """Run some commands in the pod through the server, so that there is something to replay."""
    token = links.token(**links.claims)
    url = f"{links.base.replace('http', 'ws', 1)}/ssh?ssh_token={token}&cols=80&rows=24"
    with contextlib.closing(websocket.create_connection(url, 20)) as sock:
        sock.send(json.dumps({"type": "input", "input": "".join(f"{line}\r" for line in SAMPLE)}))
        while sock.recv_data()[0] != websocket.ABNF.OPCODE_CLOSE:
            pass


def end_on_signals() -> None:
    """Let Ctrl-C, SIGTERM and a terminal that closes raise KeyboardInterrupt, once: what cleans up is not cut short."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)


def run(links: Links, kubeconfig: Path, folder: Path, port: int) -> None:
    """Serve until a KeyboardInterrupt, which passes."""
    file = folder / "jumpserver.toml"
    file.write_text(
        f'[Server]\nlisten = "127.0.0.1:{port}"\n[Record]\npath = "records"\n'
        f'[Token]\nsecret = "{links.secret}"\n[Clusters]\ndemo = {json.dumps(str(kubeconfig.absolute()))}\n'
    )
    config = jumpserver.load_config(file)
    demo_hooks = DemoHooks(config.hooks_settings())
    demo_hooks.links = links
    server = jumpserver.JumpServer(config, demo_hooks)
    try:
        server.start()
        links.base = f"http://127.0.0.1:{server.server_address[1]}"
        print(f"\nOpen a terminal: {links.terminal()}\n\nRecording a sample ...", flush=True)
        record_sample(links)
        threading.Event().wait()
    finally:
        server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, help="use a cluster of your own instead of the stand-in")
    parser.add_argument("-n", "--namespace", default="default")
    parser.add_argument("-c", "--container", default="")
    parser.add_argument("--port", type=int, default=0, help="of the jumpserver; any free one by default")
    parser.add_argument("pod", nargs="?", default="demo")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    links = Links(secrets.token_hex(32), options.namespace, options.pod, options.container)
    kubeconfig: Path
    end_on_signals()
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jumpserver-demo-")))
            if options.kubeconfig:
                kubeconfig = options.kubeconfig
            else:
                kubeconfig = folder / "kubeconfig"
                kubeconfig.write_text(stack.enter_context(StandIn()).kubeconfig())
            run(links, kubeconfig, folder, options.port)
    except KeyboardInterrupt:
        return 0
    except (OSError, jumpserver.ConfigError, jumpserver.ListenError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
