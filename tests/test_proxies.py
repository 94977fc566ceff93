"""The server behind real proxies, with the configurations that ship, and behind nginx with the shortest one, too."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import websocket

import jumpserver
from bench.processes import free_port, listening, nginx, nginx_command
from demo.cluster import StandIn
from tests.support import (
    RunningServer,
    Terminal,
    another_server,
    end_shell,
    exchange,
    need_program,
    request_head,
    wait_until,
)


def text(name: str) -> str:
    """A file of deploy/."""
    return (Path(__file__).parent.parent / "deploy" / name).read_text()


SHIPPED = text("nginx.conf")
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
# Debian has no package of it.
WHERE_INSTALLED = pytest.mark.skipif(not shutil.which("traefik"), reason="traefik is not installed")


@dataclass(frozen=True)
class Front:
    """A proxy that runs before the server."""

    port: int
    folder: Path  # of its files

    @property
    def base(self) -> str:
        return f"127.0.0.1:{self.port}/jumpserver"

    def log(self) -> str:
        """All that it has written anywhere."""
        return "".join(path.read_text() for path in self.folder.glob("*.log"))


@contextmanager
def behind_nginx(folder: Path, server: RunningServer, site: str = SHIPPED, main: str = "") -> Iterator[Front]:
    need_program("nginx")
    site = site.replace("127.0.0.1:7000", f"127.0.0.1:{server.port}")
    with nginx(folder, site, main) as port:
        yield Front(port, folder)


@contextmanager
def behind_haproxy(folder: Path, server: RunningServer) -> Iterator[Front]:
    front = Front(free_port(), folder)
    config = shipped(front, server, "haproxy.cfg")
    with run(front, need_program("haproxy"), "-db", "-f", config):
        yield front


@contextmanager
def behind_caddy(folder: Path, server: RunningServer) -> Iterator[Front]:
    front = Front(free_port(), folder)
    config = shipped(front, server, "Caddyfile", **{"\n{\n": "\n{\nadmin off\n"})
    with run(front, need_program("caddy"), "run", "--adapter", "caddyfile", "--config", config):
        yield front


@contextmanager
def behind_traefik(folder: Path, server: RunningServer) -> Iterator[Front]:
    front = Front(free_port(), folder)
    shipped(front, server, "traefik-routes.yaml")
    config = shipped(front, server, "traefik.yaml", **{"/etc/traefik": str(folder)})
    with run(front, "traefik", f"--configfile={config}"):
        wait_until(lambda: b"ready\n" in exchange(front.port, READY), "the routes")
        yield front


def shipped(front: Front, server: RunningServer, name: str, **changes: str) -> str:
    """Write the file from deploy/ for these ports; returns its path."""
    config = text(name).replace(":7000", f":{server.port}").replace(":8080", f":{front.port}")
    for old, new in changes.items():
        assert old in config
        config = config.replace(old, new)
    (front.folder / name).write_text(config)
    return str(front.folder / name)


@contextmanager
def run(front: Front, *command: str) -> Iterator[None]:
    with (front.folder / "output.log").open("wb") as log:
        with listening(front.port, *command, stdout=log, stderr=log, env={**os.environ, "HOME": str(front.folder)}):
            yield


READY = request_head("/jumpserver/readyz", "Connection: close")
BEHIND: dict[str, Any] = {
    "nginx": behind_nginx,
    "haproxy": behind_haproxy,
    "caddy": behind_caddy,
    "traefik": behind_traefik,
}


@pytest.fixture(params=["nginx", "haproxy", "caddy", pytest.param("traefik", marks=WHERE_INSTALLED)])
def front(request: pytest.FixtureRequest, cluster: StandIn, tmp_path: Path) -> Iterator[tuple[RunningServer, Front]]:
    """A server that trusts the proxy before it, and the proxy."""
    (tmp_path / "proxy").mkdir()
    with another_server(tmp_path, cluster, server_lines='trusted_proxies = ["127.0.0.1"]') as server:
        with BEHIND[request.param](tmp_path / "proxy", server) as running:
            yield server, running


def terminal_at(base: str, token: str, **options: Any) -> Terminal:
    url = f"ws://{base}/ssh?ssh_token={token}"
    return Terminal(websocket.create_connection(url, 10, subprotocols=["jumpserver.v1"], **options))


def page_terminal_and_recording_work(server: RunningServer, base: str) -> None:
    with urllib.request.urlopen(f"http://{base}/", timeout=10) as page:
        assert b"<html" in page.read()
    with terminal_at(base, server.token()) as terminal:
        terminal.type("printf '%s\\n' through''-it; exit\r")
        terminal.wait_for("through-it")
        assert terminal.wait_end()["reason"] == "the shell has ended"
    with urllib.request.urlopen(f"http://{base}{server.play_path(server.recordings()[0])}", timeout=10) as played:
        assert b"through-it" in played.read()


def test_page_terminal_and_recording_work(front: tuple[RunningServer, Front]) -> None:
    server, proxy = front
    page_terminal_and_recording_work(server, proxy.base)


def test_they_work_behind_nginx_with_the_shortest_location(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "proxy").mkdir()
    with behind_nginx(tmp_path / "proxy", server, SHORTEST) as proxy:
        page_terminal_and_recording_work(server, proxy.base)


def test_the_ledger_has_the_browsers_address_and_not_what_it_says_it_is(front: tuple[RunningServer, Front]) -> None:
    server, proxy = front
    with socket.create_connection(("127.0.0.1", proxy.port), 10, ("127.0.0.9", 0)) as sock:
        with terminal_at(proxy.base, server.token(), socket=sock, header=["X-Forwarded-For: 192.0.2.7"]) as terminal:
            end_shell(terminal)
    server.wait_settled()
    assert server.rows()[0]["remote_addr"] == "127.0.0.9"


def test_the_longest_token_passes_and_a_longer_one_is_refused_in_words(front: tuple[RunningServer, Front]) -> None:
    server, proxy = front
    limit = jumpserver.TOKEN_LIMIT_CHARACTERS
    long = server.token(filler="x" * (limit * 3 // 4 - 300))
    assert 9_000 < limit - 400 < len(long) <= limit
    for token, code in ((long, 1000), (server.token(filler="x" * limit), 4403)):
        with terminal_at(proxy.base, token) as terminal:
            terminal.type("exit\r")
            end = terminal.wait_end()
            assert (terminal.close_code, end["reason"] == jumpserver.TOKEN_TOO_LONG.reason) == (code, code == 4403)
    link = server.link_token(filler="x" * (limit * 3 // 4 - 300))
    for headers, target in (({}, f"&token={link}"), ({"Authorization": f"Bearer {link}"}, "")):
        request = urllib.request.Request(f"http://{proxy.base}/records/play?filename=a.cast{target}", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        with caught.value as answer:
            assert (answer.code, answer.read()) == (404, b"not found\n")


def test_its_log_says_who_did_what_and_has_no_token(front: tuple[RunningServer, Front]) -> None:
    server, proxy = front
    token = server.token()
    with terminal_at(proxy.base, token) as terminal:
        end_shell(terminal)
    play = f"/jumpserver{server.play_path(server.recordings()[0])}"
    head = request_head(play, "Connection: close", f"Referer: http://x/{token}", f"Authorization: Bearer {token}")
    exchange(proxy.port, head)
    exchange(proxy.port, request_head(f"/jumpserver?ssh_token={token}", "Connection: close"))
    server.stop()
    exchange(proxy.port, request_head(f"/jumpserver/ssh?ssh_token={token}", "Connection: close"))  # an error
    wait_until(lambda: "502" in proxy.log() or "503" in proxy.log(), "the log")
    log = proxy.log()
    assert "127.0.0.1" in log and ("/jumpserver/ssh" in log or '"RouterName":"jumpserver@file"' in log)
    for secret in (token, play.partition("token=")[2]):
        assert secret not in log and secret[-20:] not in log


@pytest.mark.parametrize(
    "path", ["metrics", "metrics?x", "metrics/", "/metrics", "./metrics", "%6detrics", "x/../metrics"]
)
def test_it_shows_nobody_the_numbers(front: tuple[RunningServer, Front], path: str) -> None:
    _, proxy = front
    answer = exchange(proxy.port, request_head(f"/jumpserver/{path}", "Connection: close"))
    assert re.match(rb"HTTP/1.1 (404|30[178]|400) ", answer) and b"jumpserver_threads" not in answer
    assert b"ready\n" in exchange(proxy.port, READY)


def test_the_address_without_the_final_slash_leads_to_the_page(front: tuple[RunningServer, Front]) -> None:
    _, proxy = front
    answer = exchange(proxy.port, request_head("/jumpserver?ssh_token=a", "Connection: close"))
    assert re.match(rb"HTTP/1.1 30[178] ", answer)
    # Where it is relative, the proxy need not know its own address.
    assert re.search(rb"\r\nlocation: (http://x)?/jumpserver/\?ssh_token=a\r\n", answer, re.I)
    host, _, path = proxy.base.partition("/")
    with closing(http.client.HTTPConnection(host, timeout=10)) as connection:
        connection.request("GET", f"/{path}")  # urllib follows a 308 from Python 3.11 on
        url = urllib.parse.urljoin(f"http://{proxy.base}", connection.getresponse().headers["Location"])
    assert url.rstrip("?") == f"http://{proxy.base}/"
    with urllib.request.urlopen(url, timeout=10) as page:
        assert b"<html" in page.read()


@pytest.mark.parametrize(("name", "count"), [("nginx.conf", 2), ("haproxy.cfg", 3)])
def test_a_silent_terminal_is_not_taken_for_a_dead_one(name: str, count: int) -> None:
    limits = re.findall(r"(?m)^ *(?:proxy_(?:read|send)_timeout|timeout (?:client|server|tunnel)) (\d+)s", text(name))
    assert len(limits) == count and min(map(int, limits)) >= 2 * jumpserver.PING_SECONDS


def test_what_it_lets_through_is_refused_by_the_server_in_words(server: RunningServer, tmp_path: Path) -> None:
    header = "x" * (jumpserver.LINE_LIMIT_BYTES - 2000)
    (tmp_path / "proxy").mkdir()
    with behind_nginx(tmp_path / "proxy", server) as proxy:
        request = urllib.request.Request(f"http://{proxy.base}/healthz", headers={f"X-{i}": header for i in range(3)})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        with caught.value as answer:
            assert answer.code == 431 and b"64 KiB together" in answer.read()


def test_a_terminal_goes_on_after_a_reload_of_nginx_has_ended_its_connection(cluster: StandIn, tmp_path: Path) -> None:
    (tmp_path / "proxy").mkdir()
    with another_server(tmp_path, cluster, resume_grace=60) as server:
        with behind_nginx(tmp_path / "proxy", server, main="worker_shutdown_timeout 1s;") as proxy:
            with terminal_at(proxy.base, server.token()) as terminal:
                terminal.type("a=kept; echo rea''dy\n")
                terminal.wait_for("ready")
                subprocess.run([*nginx_command(proxy.folder), "-s", "reload"], check=True)
                terminal.wait_end()
                assert terminal.close_code == 1006
            with server.resume(terminal, proxy.base) as again:
                again.type("echo $a-over-the-reload\n")
                again.wait_for("kept-over-the-reload")
                assert end_shell(again)["reason"] == "the shell has ended"
