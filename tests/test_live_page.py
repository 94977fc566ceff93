"""The live view of the player page in a real browser, with the real player, against the real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.conftest import WAIT_MS
from tests.support import Installation, RunningServer, Terminal, end_shell
from tests.test_accessibility import findings
from tests.test_pages import Relay, until
from tests.test_player_page import player_text

PLAIN = ["sh", "-c", "stty raw -echo; echo ready; exec cat"]


def live_page(server: Installation, scope: str = "watch play", url: str = "", **claims: Any) -> str:
    token = server.link_token(scope, **claims)
    return f"{url or server.url}player.html#filename={server.recordings()[-1]}&token={token}&live=1"


def badge(page: Page, text: str) -> None:
    expect(page.locator("#live")).to_have_text(text, timeout=WAIT_MS)


@pytest.fixture
def terminal(server: RunningServer) -> Iterator[Terminal]:
    """A session that has begun."""
    with server.connect(command=PLAIN) as running:
        running.wait_for("ready")
        yield running


def test_what_is_typed_is_seen_and_the_user_is_told(server: RunningServer, terminal: Terminal, page: Page) -> None:
    page.goto(live_page(server))
    badge(page, "Live")
    player_text(page, "ready")
    assert terminal.wait_for_event("notice")["text"] == "auditor is watching this terminal"
    terminal.type("\r\nkubectl get pods \x1b[32m日志\x1b[0m")
    player_text(page, "kubectl get pods 日志")
    expect(page.locator("#title")).to_have_text("alice@default/demo")
    expect(page.locator("#meta")).to_contain_text("100 \u00d7 30")


def test_the_picture_takes_the_terminals_new_size(server: RunningServer, terminal: Terminal, page: Page) -> None:
    page.goto(live_page(server))
    player_text(page, "ready")
    terminal.resize(133, 50)
    expect(page.locator("#meta")).to_contain_text("133 \u00d7 50")


def test_the_end_is_said_and_the_recording_is_offered(server: RunningServer, page: Page) -> None:
    with server.connect() as terminal:
        terminal.wait_for_event("session")
        page.goto(live_page(server))
        badge(page, "Live")
        terminal.type("echo last-$((1 + 1))\n")
        player_text(page, "last-2")
        end_shell(terminal)
    badge(page, "Ended")
    expect(page.locator("#live-remark")).to_have_text("The session has ended. This is the last that was seen.")
    player_text(page, "last-2")
    expect(page.locator("#player .ap-overlay-info")).to_be_hidden()
    page.get_by_role("link", name="Play the recording").click()
    expect(page.get_by_label("Speed")).to_be_visible()
    player_text(page, "last-2")


def test_of_a_session_that_has_ended_only_the_recording_is_offered(server: RunningServer, page: Page) -> None:
    with server.connect() as terminal:
        terminal.wait_for_event("session")
        end_shell(terminal)
    server.wait_settled()
    page.goto(live_page(server))
    badge(page, "Ended")
    expect(page.locator("#words")).to_contain_text("This session has ended")
    expect(page.get_by_role("link", name="Play the recording")).to_be_visible()


def test_a_lost_connection_comes_back_with_the_screen_as_it_is(
    server: RunningServer, terminal: Terminal, page: Page
) -> None:
    sockets: list[WebSocketRoute] = []

    def pass_on(route: WebSocketRoute) -> None:
        route.connect_to_server()
        sockets.append(route)

    page.route_web_socket("**/records/live*", pass_on)
    page.goto(live_page(server))
    player_text(page, "ready")
    badge(page, "Live")
    sockets[0].close(code=1013)
    terminal.type("while away")
    player_text(page, "while away")
    badge(page, "Live")
    assert len(sockets) == 2


def test_a_server_that_is_away_is_said_to_be_so(server: RunningServer, terminal: Terminal, page: Page) -> None:
    relay = Relay(server.url)
    page.goto(live_page(server, url=f"http://{relay.address}/"))
    badge(page, "Live")
    relay.cut()
    badge(page, "Reconnecting")
    expect(page.locator("#live-remark")).to_contain_text("The server could not be reached", timeout=WAIT_MS)


def test_who_may_not_watch_any_more_is_told_so(server: RunningServer, terminal: Terminal, page: Page) -> None:
    relay = Relay(server.url)
    page.goto(live_page(server, url=f"http://{relay.address}/"))
    badge(page, "Live")
    expired = {"status": 403, "body": "this link has expired", "content_type": "text/plain"}
    page.route("**/records/live*", lambda route: route.fulfill(**expired))
    relay.cut()
    expect(page.locator("#words")).to_contain_text("This link has expired.", timeout=WAIT_MS)
    badge(page, "Not live")


@pytest.mark.parametrize(
    ("scope", "claims", "words"),
    [
        ("play", {}, "This link does not allow to watch; it needs the scope watch or audit."),
        ("watch", {"filename": "other.cast"}, "This link is for another recording."),
        ("watch", {"exp": 1}, "This link has expired"),
    ],
)
def test_a_refusal_is_said_in_words(
    server: RunningServer, terminal: Terminal, page: Page, scope: str, claims: dict[str, Any], words: str
) -> None:
    page.goto(live_page(server, scope, **claims))
    expect(page.locator("#words")).to_contain_text("You may not watch this session")
    expect(page.locator("#words")).to_contain_text(words)
    badge(page, "Not live")


def test_a_session_that_is_not_there_is_said_to_be_missing(server: RunningServer, page: Page) -> None:
    page.goto(f"{server.url}player.html#filename=a.cast&token={server.link_token('watch')}&live=1")
    expect(page.locator("#words")).to_contain_text("There is no such session")
    page.goto(f"{server.url}player.html?live=1")
    expect(page.locator("#words")).to_contain_text("No session was named")


def test_commands_are_told_as_they_come(server: RunningServer, terminal: Terminal, page: Page) -> None:
    recorder = server.server.sessions.all()[0]._output.recorder  # type: ignore[union-attr]
    recorder.marker("$ make test")
    page.goto(live_page(server))
    expect(page.locator("#meta")).to_contain_text("$ make test")
    recorder.marker("$ kubectl delete pod cart")
    expect(page.locator("#meta")).to_contain_text("$ kubectl delete pod cart")


def test_silence_is_said_to_be_so(server: RunningServer, terminal: Terminal, page: Page) -> None:
    page.goto(live_page(server))
    player_text(page, "ready")
    expect(page.locator("#meta")).to_contain_text("nothing printed for", timeout=WAIT_MS)


def test_a_token_in_the_query_leaves_the_address_bar(server: RunningServer, terminal: Terminal, page: Page) -> None:
    page.goto(live_page(server).replace("#", "?"))
    player_text(page, "ready")
    assert page.evaluate("location.search") == "" and "live=1" in page.evaluate("location.hash")


def test_on_a_phone_the_picture_scrolls_at_a_size_that_can_be_read(
    server: RunningServer, terminal: Terminal, page: Page
) -> None:
    page.set_viewport_size({"width": 375, "height": 700})
    page.goto(live_page(server))
    player_text(page, "ready")
    until(page, "document.querySelector('#player').scrollWidth > 600")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 375])
def test_axe_finds_nothing_while_it_runs_when_it_is_lost_and_when_it_is_refused(
    server: RunningServer, terminal: Terminal, page: Page, width: int, colours: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=colours)
    page.set_viewport_size({"width": width, "height": 700})
    relay = Relay(server.url)
    page.goto(live_page(server, url=f"http://{relay.address}/"))
    badge(page, "Live")
    player_text(page, "ready")
    assert findings(page) == []
    relay.cut()
    badge(page, "Reconnecting")
    assert findings(page) == []
    page.goto(live_page(server, "play"))
    badge(page, "Not live")
    assert findings(page) == []
