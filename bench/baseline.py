"""The straightforward assembly of the same libraries: one recv_data, one json.dumps and one send a frame.

It records, but has no tokens, no limits, no ledger and no orderly end.
"""

from __future__ import annotations

import codecs
import http.server
import json
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

import simple_websocket
import websocket

from bench.source import leave_with_parent


class Handler(http.server.BaseHTTPRequestHandler):
    """Relays one session. The request's ``path`` is the exec path that is asked of the cluster."""

    server: Baseline

    def do_GET(self) -> None:
        self.close_connection = True
        exec_path = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["path"][0]
        browser = simple_websocket.Server(self._environ())
        pod = self._open_pod(exec_path)
        threading.Thread(target=relay_input, args=(browser, pod), daemon=True).start()
        try:
            self._relay_output(browser, pod)
        except (OSError, simple_websocket.ConnectionClosed, websocket.WebSocketException):
            pass  # either side left
        finally:
            pod.shutdown()  # type: ignore[no-untyped-call]

    def _environ(self) -> dict[str, Any]:
        headers = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in self.headers.items()}
        return {"werkzeug.socket": self.connection, **headers}

    def _open_pod(self, path: str) -> websocket.WebSocket:
        sock = socket.create_connection(("127.0.0.1", self.server.cluster_port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = self.server.context.wrap_socket(sock, server_hostname="127.0.0.1")
        url = f"wss://127.0.0.1:{self.server.cluster_port}{path}"
        pod: websocket.WebSocket = websocket.create_connection(url, socket=tls, subprotocols=["v4.channel.k8s.io"])
        return pod

    def _relay_output(self, browser: Any, pod: websocket.WebSocket) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        start = time.monotonic()
        with (self.server.folder / f"{uuid.uuid4()}.cast").open("w", encoding="utf-8") as recording:
            recording.write(json.dumps({"version": 2, "width": 80, "height": 24}) + "\n")
            while True:
                opcode, message = pod.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    return
                if message[0] == 1 and len(message) > 1:
                    event = [time.monotonic() - start, "o", decoder.decode(message[1:])]
                    recording.write(json.dumps(event) + "\n")
                    browser.send(message[1:])

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def relay_input(browser: Any, pod: websocket.WebSocket) -> None:
    """Pass on what is typed until the browser leaves."""
    try:
        while True:
            pod.send_binary(b"\x00" + json.loads(browser.receive())["input"].encode())
    except (OSError, simple_websocket.ConnectionClosed, websocket.WebSocketException):
        pod.shutdown()  # type: ignore[no-untyped-call]


class Baseline(http.server.ThreadingHTTPServer):
    """Serves on a free port."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, cluster_port: int, ca_file: str, folder: Path) -> None:
        self.cluster_port = cluster_port
        self.context = ssl.create_default_context(cafile=ca_file)
        self.folder = folder
        super().__init__(("127.0.0.1", 0), Handler)


def main() -> None:
    """Relay for the source on the port that is named, with that CA file, recordings into that folder."""
    leave_with_parent()
    server = Baseline(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    print(json.dumps({"port": server.server_port}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
