"""The server behind a real nginx, with the location that ships and with the shortest one."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import websocket

from tests.support import RunningServer, Terminal, need_program, wait_until

REPOSITORY = Path(__file__).parent.parent
SHORTEST = """
map $http_upgrade $connection_upgrade { default upgrade; '' close; }
server {
    listen 127.0.0.1:8080;
    location /jumpserver/{
        proxy_pass http://127.0.0.1:7000/;
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
    }
}
"""
SHIPPED = (REPOSITORY / "deploy" / "nginx.conf").read_text().replace("/var/log/nginx/error.log", "stderr")


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def nginx(folder: Path, site: str, backend: int) -> Iterator[int]:
    """Run nginx in the foreground with this site; gives its port."""
    need_program("nginx")
    port = free_port()
    site = site.replace("127.0.0.1:7000", f"127.0.0.1:{backend}").replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; error_log {folder}/error.log; pid {folder}/pid; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; {temporary}\n{site}\n}}"
    )
    command = [str(shutil.which("nginx")), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    process = subprocess.Popen(command)
    try:
        wait_until(lambda: accepts(port), "nginx listening")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


@pytest.mark.parametrize("site", [SHORTEST, SHIPPED], ids=["shortest", "shipped"])
def test_terminal_page_and_recording_work_behind_nginx(server: RunningServer, tmp_path: Path, site: str) -> None:
    folder = tmp_path / "nginx"
    folder.mkdir(mode=0o777)
    with nginx(folder, site, server.port) as port:
        base = f"127.0.0.1:{port}/jumpserver"
        with urllib.request.urlopen(f"http://{base}/", timeout=10) as page:
            assert b"<html" in page.read()
        with Terminal(websocket.create_connection(f"ws://{base}/ssh?ssh_token={server.token()}", 10)) as terminal:
            terminal.type("printf '%s\\n' through''-nginx; exit\r")
            terminal.wait_for("through-nginx")
            terminal.wait_end()
        with urllib.request.urlopen(f"http://{base}{server.play_path(server.recordings()[0])}", timeout=10) as played:
            assert b"through-nginx" in played.read()


def test_a_trusted_nginx_tells_the_browsers_address(server: RunningServer, tmp_path: Path) -> None:
    folder = tmp_path / "nginx"
    folder.mkdir(mode=0o777)
    proxies = server.config.Server.trusted_proxies
    assert proxies == ()
    object.__setattr__(server.config.Server, "trusted_proxies", ("127.0.0.1",))
    site = re.sub(r"\$proxy_add_x_forwarded_for", "192.0.2.7", SHIPPED)
    with nginx(folder, site, server.port) as port:
        url = f"ws://127.0.0.1:{port}/jumpserver/ssh?ssh_token={server.token()}"
        with Terminal(websocket.create_connection(url, 10)) as terminal:
            terminal.type("exit\r")
            terminal.wait_end()
    server.stop()
    assert server.rows()[0]["remote_addr"] == "192.0.2.7"
