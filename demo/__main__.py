"""Start a release platform and a jumpserver on this host, to click through.

Without arguments the pods are those of the stand-in cluster; with --kubeconfig it is a real one.
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
from collections.abc import Iterator
from pathlib import Path

import websocket

import hooks
import jumpserver
from demo.cluster import StandIn
from examples.http_platform import Place, Platform, PlatformServer

HEARTBEAT_SECONDS = 2  # so that nobody has to wait for the end of a shell
PLACES = (
    Place("default", "demo", note="bash, with the programs of this host"),
    Place("default", "busybox", note="has no bash: sh is opened"),
    Place("default", "multi", "c2", note="one of two containers"),
    Place("default", "pending", note="does not run: says why"),
)
# Typed one after the other: each is a chapter of the recording.
SAMPLE = (
    r"printf 'This is a recording.\r\n\033[32mgreen\033[0m \033[1;34mblue\033[0m 容器终端 🚀\r\n'",
    "for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done",
    "ls /nowhere",
    "exit 0",
)


def record(platform: Platform, person: str, place: Place) -> None:
    """Run the sample in the pod as this person would, so that there is something to replay."""
    url = platform.terminal_link(person, place).replace("http", "ws", 1).replace("/#", "/ssh?")
    with contextlib.closing(websocket.create_connection(f"{url}&cols=80&rows=24", 20)) as sock:
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


def configuration(web: PlatformServer, secret: str, kubeconfig: Path, port: int) -> str:
    """A jumpserver.toml."""
    return f"""
[Server]
listen = "127.0.0.1:{port}"
frame_ancestors = ["'self'", "{web.origin}"]
platform_url = "{web.origin}/"

[Record]
path = "records"

[Token]
secret = "{secret}"

[Platform]
validate_url = "{web.origin}/api/validate"
login_url = "{web.origin}/api/login"
logout_url = "{web.origin}/api/logout"
heartbeat_url = "{web.origin}/api/heartbeat"
heartbeat_interval = {HEARTBEAT_SECONDS}
authorization = "{web.platform.authorization}"

[Clusters]
demo = {json.dumps(str(kubeconfig.absolute()))}
"""


@contextlib.contextmanager
def serving(places: tuple[Place, ...], kubeconfig: Path, folder: Path, port: int = 0) -> Iterator[PlatformServer]:
    """A platform and a jumpserver that serve, with all of its files in the folder."""
    secret = secrets.token_hex(32)
    platform = Platform(places, secret, f"Bearer {secrets.token_hex(32)}")
    file = folder / "jumpserver.toml"
    with PlatformServer(platform) as web:
        file.write_text(configuration(web, secret, kubeconfig, port))
        config = jumpserver.load_config(file)
        server = jumpserver.JumpServer(config, hooks.Hooks(config.hooks_settings()))
        try:
            server.start()
            platform.jumpserver = f"http://127.0.0.1:{server.server_address[1]}"
            yield web
        finally:
            server.stop()


def run(places: tuple[Place, ...], kubeconfig: Path, folder: Path, port: int) -> None:
    """Serve until a KeyboardInterrupt, which passes."""
    with serving(places, kubeconfig, folder, port) as web:
        print(f"\nThe platform: {web.origin}/\n\nRecording a sample ...", flush=True)
        record(web.platform, "alice", places[0])
        threading.Event().wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, help="of a cluster of your own, in place of the stand-in")
    parser.add_argument("-n", "--namespace", default="default")
    parser.add_argument("-c", "--container", default="")
    parser.add_argument("--port", type=int, default=0, help="of the jumpserver; any free one by default")
    parser.add_argument("pod", nargs="?", default="demo", help="of your own cluster")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    places: tuple[Place, ...] = PLACES
    kubeconfig: Path
    end_on_signals()
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jumpserver-demo-")))
            if options.kubeconfig:
                kubeconfig = options.kubeconfig
                places = (Place(options.namespace, options.pod, options.container),)
            else:
                kubeconfig = folder / "kubeconfig"
                kubeconfig.write_text(stack.enter_context(StandIn()).kubeconfig())
            run(places, kubeconfig, folder, options.port)
    except KeyboardInterrupt:
        return 0
    except (OSError, jumpserver.ConfigError, jumpserver.ListenError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
