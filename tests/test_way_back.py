"""The terminal page after a drop, a reload and in two tabs: the same shell, and words that are true."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import jumpserver
from demo.cluster import StandIn
from tests.conftest import WAIT_MS
from tests.support import RunningServer, last_row, nothing_left, wait_until
from tests.test_accessibility import findings
from tests.test_pages import (
    SCREEN_TEXT,
    Relay,
    open_terminal,
    phase,
    run,
    until,
    wait_for_text,
)

MIB = 1 << 20


class Link(Relay):
    """A relay whose connections can be cut, or stopped without a word, while new ones go through."""

    def __init__(self, url: str) -> None:
        self._pairs: list[socket.socket] = []
        super().__init__(url)

    def _serve(self, near: socket.socket) -> None:
        self._pairs.append(near)
        super()._serve(near)

    def drop(self) -> None:
        pairs, self._pairs = self._pairs, []
        for near in pairs:
            with contextlib.suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)

    def is_up(self) -> bool:
        """Whether a connection has come since they were cut."""
        return bool(self._pairs)


@pytest.fixture
def server(cluster: StandIn, tmp_path: Path) -> Iterator[RunningServer]:
    with nothing_left():
        running = RunningServer(tmp_path, cluster, resume_grace=60)
        try:
            yield running
        finally:
            running.stop()
            cluster.wait_until(lambda: not cluster.shells())


@pytest.fixture
def link(server: RunningServer) -> Iterator[Link]:
    link = Link(server.url)
    yield link
    link.cut()


def url_through(link: Link, server: RunningServer) -> str:
    return server.terminal_url().replace(f"127.0.0.1:{server.port}", link.address)


def screen(page: Page) -> str:
    return str(page.evaluate(f"({SCREEN_TEXT})(2000)"))


def test_a_dropped_connection_comes_back_to_the_same_shell(server: RunningServer, page: Page, link: Link) -> None:
    open_terminal(page, url_through(link, server))
    run(page, "mark=shell-$$; stty -echo; for i in $(seq 2000); do echo line-$i; done; echo do''ne")
    for _ in range(5):
        link.drop()
        wait_until(link.is_up, "the page to come back")
        phase(page, "connected")
    wait_for_text(page, "done", timeout_ms=30_000)
    run(page, "echo $mark; echo st''ill")
    wait_for_text(page, "still")
    lines = [line for line in screen(page).splitlines() if line.startswith("line-")]
    assert lines == [f"line-{i}" for i in range(1, 2001)][-len(lines) :] and len(lines) > 500
    assert len(server.rows()) == 1


def test_while_the_connection_is_lost_the_page_says_for_how_long_it_tries(
    server: RunningServer, page: Page, link: Link
) -> None:
    open_terminal(page, url_through(link, server))
    run(page, "echo ke''pt")
    wait_for_text(page, "kept")
    page.context.set_offline(True)
    phase(page, "reconnecting")
    expect(page.locator("#status")).to_have_text("Reconnecting; typing is paused")
    assert 50 < int(re.sub(r"\D", "", page.locator("#status").get_attribute("data-left") or "0")) <= 60
    page.keyboard.type("lost")
    assert "kept" in screen(page)
    assert findings(page) == []
    page.context.set_offline(False)
    phase(page, "connected")
    run(page, "echo ba''ck")
    wait_for_text(page, "back")
    assert "lost" not in screen(page)


def test_a_reload_goes_on_with_the_same_shell_and_its_screen(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    page.on("dialog", lambda dialog: dialog.accept())
    run(page, "mark=shell-$$; echo bef''ore; printf '\\033[c'; read -rsn 12 -t 1 answer")
    wait_for_text(page, "before")
    for _ in range(3):
        page.reload()
        phase(page, "connected")
        wait_for_text(page, "before")
    run(page, "echo same-$mark-")
    wait_for_text(page, "same-shell-")
    assert len(server.rows()) == 1
    run(page, "exit")
    phase(page, "ended")
    page.reload()
    expect(page.locator("#status")).to_have_text("No token yet")


def test_a_full_screen_program_is_drawn_again_after_a_reload(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    page.on("dialog", lambda dialog: dialog.accept())
    run(page, "printf '\\033[?1049h'; trap 'printf \"\\033[Hdrawn again\"' WINCH; while :; do read -t 1 x; done")
    until(page, 'document.querySelector("#terminal").terminal.buffer.active.type === "alternate"')
    page.reload()
    wait_for_text(page, "drawn again")


def test_a_second_tab_takes_over_and_the_first_shows_the_way_back(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "echo fir''st")
    wait_for_text(page, "first")
    kept = page.evaluate("dispatchEvent(new Event('pagehide')); sessionStorage.getItem('jumpserver.resume')")
    other = page.context.new_page()  # as a browser does that copies a tab
    other.add_init_script(
        f"sessionStorage.getItem('jumpserver.resume') ?? sessionStorage.setItem('jumpserver.resume', {kept!r})"
    )
    other.goto(server.url)
    phase(other, "connected")
    wait_for_text(other, "first")
    phase(page, "taken")
    expect(page.locator("#notice-text")).to_have_text("This terminal goes on in another page or tab.")
    assert findings(page) == []
    page.get_by_role("button", name="Continue here").click()
    phase(page, "connected")
    phase(other, "taken")
    run(page, "echo a''gain; exit")
    phase(page, "ended")
    other.get_by_role("button", name="Continue here").click()
    phase(other, "ended")
    expect(other.locator("#notice-text")).to_have_text("The shell has ended while this page was away.")
    other.close()


def test_the_end_button_ends_the_shell_at_once(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    page.get_by_role("button", name="End the session").click()
    phase(page, "ended")
    server.wait_settled()
    assert last_row(server)["reason"] == jumpserver.BROWSER_CLOSED.reason


def test_a_silent_link_turns_amber_and_then_is_given_up(server: RunningServer, page: Page) -> None:
    page.clock.install()
    silent = [False]

    def route(near: object) -> None:
        far = near.connect_to_server()  # type: ignore[attr-defined]
        near.on_message(lambda message: silent[0] or far.send(message))  # type: ignore[attr-defined]
        far.on_message(lambda message: silent[0] or near.send(message))  # type: ignore[attr-defined]

    page.route_web_socket("**/ssh?*", route)
    open_terminal(page, server.terminal_url())
    page.clock.run_for(30_000)
    phase(page, "connected")  # it answers
    silent[0] = True
    page.clock.run_for(11_500)
    phase(page, "silent")
    expect(page.locator("#status")).to_have_text("No answer from the server")
    page.clock.run_for(15_000)
    phase(page, "reconnecting")
    silent[0] = False
    page.clock.run_for(9_000)
    phase(page, "connected")


def test_what_an_interrupt_leaves_out_is_said(server: RunningServer, page: Page, link: Link) -> None:
    open_terminal(page, server.terminal_url())
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 20})
    run(page, "yes 'one line of a flood that nobody reads'")
    (session,) = server.server.sessions.all()
    wait_until(lambda: session._is_held_up and session._bytes_out > MIB / 4)
    page.keyboard.press("Control+c")
    wait_for_text(page, "not shown here; the recording has them", timeout_ms=2 * WAIT_MS)
    run(page, "echo pro''mpt")
    wait_for_text(page, "prompt", timeout_ms=2 * WAIT_MS)
