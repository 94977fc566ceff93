"""What the page around a terminal's frame is told: by which origins, and that no other hears of it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

import jumpserver
from demo.cluster import StandIn
from tests.conftest import WAIT_MS
from tests.support import Listener, RunningServer, running
from tests.test_pages import until

AROUND = """<!doctype html><title>around</title><script>
window.told = [];
addEventListener("message", ({ origin, data }) => told.push([origin, data]));
</script><iframe src="%s" width="900" height="500"></iframe>"""


@contextlib.contextmanager
def embeddable(folder: Path, cluster: StandIn, *ancestors: str) -> Iterator[RunningServer]:
    with running(folder, cluster, server_lines=f"frame_ancestors = {list(ancestors)}") as server:
        yield server
        cluster.wait_until(lambda: not cluster.shells())


class Platform:
    """Serves one page with a frame, on a port of its own."""

    def __init__(self) -> None:
        self.link = ""
        self._listener = Listener(self._serve)
        self.origin = f"http://127.0.0.1:{self._listener.port}"

    def _serve(self, sock: socket.socket) -> None:
        sock.recv(65536)
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
        sock.sendall((head + AROUND % self.link).encode())

    def show(self, page: Page, link: str) -> None:
        self.link = link
        page.goto(self.origin)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def platform() -> Iterator[Platform]:
    with contextlib.closing(Platform()) as serving:
        yield serving


def end_shell(page: Page) -> None:
    frame = page.frame_locator("iframe")
    expect(frame.locator("body")).to_have_attribute("data-phase", "connected", timeout=WAIT_MS)
    frame.locator("textarea.xterm-helper-textarea").focus()
    page.keyboard.type("exit 3")
    page.keyboard.press("Enter")
    expect(frame.locator("body")).to_have_attribute("data-phase", "ended", timeout=WAIT_MS)


def told(page: Page) -> list[Any]:
    """All that has been told. One that comes from the page itself follows all that was on its way before."""
    page.evaluate("new Promise((done) => { onmessage = done; postMessage('last', '*'); })")
    found: list[Any] = page.evaluate("told")
    return [entry for entry in found if entry[1] != "last"]


def test_an_allowed_page_is_told_when_a_terminal_opens_and_how_it_ends(
    page: Page, platform: Platform, tmp_path: Path, cluster: StandIn
) -> None:
    with embeddable(tmp_path, cluster, "https://other.example", platform.origin) as server:
        platform.show(page, server.terminal_url())
        end_shell(page)
        until(page, "told.length === 2")
        ended = {"type": "ended", "reason": "the shell has ended with exit code 3", "exit_code": 3}
        assert page.evaluate("told") == [[server.url[:-1], {"type": "ready"}], [server.url[:-1], ended]]
        page.goto("about:blank")


def test_a_page_of_the_same_origin_is_told_where_self_is_allowed(page: Page, server: RunningServer) -> None:
    around = AROUND % server.terminal_url("no-such-pod")
    page.route("**/around", lambda route: route.fulfill(body=around, content_type="text/html"))
    page.goto(f"{server.url}around")
    until(page, "told.length === 1")
    ((origin, message),) = page.evaluate("told")
    assert (origin, message["type"], message["exit_code"]) == (server.url[:-1], "ended", None)
    assert "no-such-pod" in message["reason"]


@pytest.mark.parametrize("ancestor", ["*", "http:", "http://127.0.0.1:*"])
def test_a_page_that_may_frame_it_by_a_pattern_alone_is_told_nothing(
    page: Page, platform: Platform, tmp_path: Path, cluster: StandIn, ancestor: str
) -> None:
    with embeddable(tmp_path, cluster, ancestor, "https://other.example") as server:
        platform.show(page, server.terminal_url())
        end_shell(page)
        assert told(page) == []
        page.goto("about:blank")


def test_a_page_that_is_not_allowed_neither_shows_a_terminal_nor_is_told_of_one(
    browser: Browser, platform: Platform, tmp_path: Path, cluster: StandIn
) -> None:
    page = browser.new_page()
    with embeddable(tmp_path, cluster, "https://other.example") as server:
        with page.expect_console_message(lambda message: "frame-ancestors" in message.text):
            platform.show(page, server.terminal_url())
        assert told(page) == []
        assert server.rows() == []
    page.close()


def test_origins_are_told_to_the_page_in_one_form_and_patterns_are_not() -> None:
    sources = ("'self'", "https://platform.example", "https://*.example", "*", "https:", "platform.example")
    server = jumpserver.ServerConfig(frame_ancestors=sources)
    assert server.embedders == ["'self'", "https://platform.example"]
    page = jumpserver.load_assets(server)["/"].data.decode()
    assert '<meta name="embedders" content="&#x27;self&#x27; https://platform.example">' in page
