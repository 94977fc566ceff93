"""The server behind a real nginx, with the location that ships and with the shortest one."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import websocket

import jumpserver
from demo.cluster import StandIn
from tests.support import RunningServer, Terminal, another_server, exchange, need_program, request_head, wait_until

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
    with behind_nginx(tmp_path, server, site) as base:
        with urllib.request.urlopen(f"http://{base}/", timeout=10) as page:
            assert b"<html" in page.read()
        with Terminal(websocket.create_connection(f"ws://{base}/ssh?ssh_token={server.token()}", 10)) as terminal:
            terminal.type("printf '%s\\n' through''-nginx; exit\r")
            terminal.wait_for("through-nginx")
            terminal.wait_end()
        with urllib.request.urlopen(f"http://{base}{server.play_path(server.recordings()[0])}", timeout=10) as played:
            assert b"through-nginx" in played.read()


@contextmanager
def behind_nginx(tmp_path: Path, server: RunningServer, site: str = SHIPPED) -> Iterator[str]:
    """host:port/jumpserver of an nginx before the server."""
    folder = tmp_path / "nginx"
    folder.mkdir(mode=0o777)
    with nginx(folder, site, server.port) as port:
        yield f"127.0.0.1:{port}/jumpserver"


def test_a_trusted_nginx_tells_the_browsers_address(cluster: StandIn, tmp_path: Path) -> None:
    site = re.sub(r"\$proxy_add_x_forwarded_for", '"6.6.6.6, 192.0.2.7"', SHIPPED)
    with another_server(tmp_path, cluster, server_lines='trusted_proxies = ["127.0.0.1"]') as server:
        with behind_nginx(tmp_path, server, site) as base:
            url = f"ws://{base}/ssh?ssh_token={server.token()}"
            with Terminal(websocket.create_connection(url, 10)) as terminal:
                terminal.type("exit\r")
                terminal.wait_end()
        server.stop()
        assert server.rows()[0]["remote_addr"] == "192.0.2.7"


def test_the_longest_token_passes_nginx_and_a_longer_one_is_refused_in_words(
    server: RunningServer, tmp_path: Path
) -> None:
    limit = jumpserver.TOKEN_LIMIT_CHARACTERS
    long = server.token(filler="x" * (limit * 3 // 4 - 300))
    assert 9_000 < limit - 400 < len(long) <= limit
    with behind_nginx(tmp_path, server) as base:
        for token, code in ((long, 1000), (server.token(filler="x" * limit), 4403)):
            sock = websocket.create_connection(f"ws://{base}/ssh?ssh_token={token}", 10, subprotocols=["jumpserver.v1"])
            with Terminal(sock) as terminal:
                terminal.type("exit\r")
                end = terminal.wait_end()
                assert (terminal.close_code, end["reason"] == jumpserver.TOKEN_TOO_LONG.reason) == (code, code == 4403)
        link = server.link_token(filler="x" * (limit * 3 // 4 - 300))
        for headers, target in (({}, f"&token={link}"), ({"Authorization": f"Bearer {link}"}, "")):
            request = urllib.request.Request(f"http://{base}/records/play?filename=a.cast{target}", headers=headers)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=10)
            assert (caught.value.code, caught.value.read()) == (404, b"not found\n")


def test_what_nginx_lets_through_is_refused_by_the_server_in_words(server: RunningServer, tmp_path: Path) -> None:
    header = "x" * (jumpserver.LINE_LIMIT_BYTES - 2000)
    with behind_nginx(tmp_path, server) as base:
        request = urllib.request.Request(f"http://{base}/healthz", headers={f"X-{i}": header for i in range(3)})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        assert caught.value.code == 431 and b"64 KiB together" in caught.value.read()


def test_the_address_without_the_final_slash_leads_to_the_page(server: RunningServer, tmp_path: Path) -> None:
    with behind_nginx(tmp_path, server) as base:
        head = b"GET /jumpserver?ssh_token=a HTTP/1.1\r\nHost: platform.example\r\nConnection: close\r\n\r\n"
        answer = exchange(int(re.findall(r":(\d+)/", base)[0]), head)
        assert re.match(rb"HTTP/1.1 30[178] ", answer)
        assert b"\r\nLocation: /jumpserver/?ssh_token=a\r\n" in answer  # relative: nginx does not know its own address
        with urllib.request.urlopen(f"http://{base}", timeout=10) as page:
            assert page.url == f"http://{base}/" and b"<html" in page.read()


def test_the_shipped_location_shows_nobody_the_numbers(server: RunningServer, tmp_path: Path) -> None:
    with nginx(tmp_path, SHIPPED, server.port) as port:
        assert exchange(port, request_head("/jumpserver/metrics", "Connection: close")).startswith(b"HTTP/1.1 404 ")
        assert exchange(port, request_head("/jumpserver/metrics?x", "Connection: close")).startswith(b"HTTP/1.1 404 ")
        assert b"ready\n" in exchange(port, request_head("/jumpserver/readyz", "Connection: close"))
