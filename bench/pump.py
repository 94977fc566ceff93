"""The upper limit for Python: passes bytes from TLS to a plain socket and looks at nothing."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading

from bench.source import leave_with_parent, read_head


def pump(plain: socket.socket, port: int, context: ssl.SSLContext) -> None:
    """Pass the request's head on, then everything that is answered."""
    try:
        with plain, socket.create_connection(("127.0.0.1", port)) as sock:
            with context.wrap_socket(sock, server_hostname="127.0.0.1") as tls:
                tls.sendall(read_head(plain).encode("latin-1"))
                buffer = memoryview(bytearray(1 << 18))
                while count := tls.recv_into(buffer):
                    plain.sendall(buffer[:count])
    except (OSError, EOFError):
        pass  # either side left


def main() -> None:
    """Pump for the source on the port that is named, with that CA file; prints its own port."""
    leave_with_parent()
    context = ssl.create_default_context(cafile=sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    while True:
        plain, _ = listener.accept()
        threading.Thread(target=pump, args=(plain, int(sys.argv[1]), context), daemon=True).start()


if __name__ == "__main__":
    main()
