"""The terminal page under fingers, with links that are used up, and where it cannot be reached or cannot start."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect
from playwright.sync_api import Error as PlaywrightError

import jumpserver
from demo.cluster import StandIn
from tests.conftest import WAIT_MS
from tests.support import Listener, RunningServer, nothing_left
from tests.test_pages import SCREEN_TEXT, TERMINAL, Relay, open_terminal, phase, run, until, wait_for_text

PLATFORM_URL = 'https://platform.example/terminals?a="1"&b=2'
VIEWPORT_TOP = f"{TERMINAL}.buffer.active.viewportY"
THREE_FRAMES = "new Promise((done) => [1, 2, 3].reduce((next) => () => requestAnimationFrame(next), done)())"
CATCH_TYPED = f"window.typed = ''; {TERMINAL}.onData((data) => {{ window.typed += data; }})"


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 375, "height": 667}, has_touch=True, is_mobile=True)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def platform_server(cluster: StandIn, tmp_path: Path) -> Iterator[RunningServer]:
    """A server that knows where its pages lead back to."""
    with nothing_left():
        running = RunningServer(tmp_path, cluster, server_lines=f"platform_url = '{PLATFORM_URL}'")
        try:
            yield running
        finally:
            running.stop()
            cluster.wait_until(lambda: not cluster.shells())


class Finger:
    """One finger on the page, through the browser's own input path; ``clock`` is its time in seconds."""

    def __init__(self, page: Page) -> None:
        self._session = page.context.new_cdp_session(page)
        self._x, self._y, self.clock = 0.0, 0.0, time.time()

    def _send(self, kind: str) -> None:
        points = [] if kind == "touchEnd" else [{"x": self._x, "y": self._y}]
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points, "timestamp": self.clock})

    def down(self, x: float, y: float) -> Finger:
        self._x, self._y = x, y
        self._send("touchStart")
        return self

    def move(self, x: float, y: float, steps: int = 10) -> Finger:
        start_x, start_y = self._x, self._y
        for step in range(1, steps + 1):
            self.clock += 0.016
            self._x = start_x + (x - start_x) * step / steps
            self._y = start_y + (y - start_y) * step / steps
            self._send("touchMove")
        return self

    def rest(self) -> Finger:
        self.clock += 1.0
        return self

    def catch_up(self) -> Finger:
        """It was really held until now: a browser takes no tap that seems to come with the end of an older touch."""
        self.clock = time.time()
        return self

    def up(self) -> None:
        self._send("touchEnd")


def cell_position(page: Page, word: str) -> tuple[float, float]:
    """Where the last line that starts with the word is on the page: the middle of its first cell."""
    x, y = page.evaluate(
        f"""(word) => {{
            const term = {TERMINAL}, buffer = term.buffer.active;
            const box = document.querySelector(".xterm-screen").getBoundingClientRect();
            let row = buffer.length - 1;
            while (!buffer.getLine(row).translateToString().startsWith(word)) row -= 1;
            const height = box.height / term.rows;
            return [box.left + box.width / term.cols / 2, box.top + (row - buffer.viewportY + 0.5) * height];
        }}""",
        word,
    )
    return float(x), float(y)


def line_height(page: Page) -> float:
    height = page.evaluate(f"document.querySelector('.xterm-screen').clientHeight / {TERMINAL}.rows")
    return float(height)


# ---- Fingers ----


def open_long_output(page: Page, server: RunningServer) -> int:
    """Open a terminal with 300 lines in it; returns the first line that is shown."""
    open_terminal(page, server.terminal_url())
    run(page, "seq 1 300; echo all-$((1 + 1))")
    wait_for_text(page, "300\nall-2\n")
    until(page, f"{VIEWPORT_TOP} === {TERMINAL}.buffer.active.baseY && {VIEWPORT_TOP} > 200")
    return int(page.evaluate(VIEWPORT_TOP))


def test_a_dragged_finger_takes_the_lines_with_it(server: RunningServer, phone: Page) -> None:
    bottom = open_long_output(phone, server)
    lines = int(200 / line_height(phone))
    finger = Finger(phone).down(150, 250).move(150, 450).rest()
    finger.up()
    phone.evaluate(THREE_FRAMES)
    assert phone.evaluate(VIEWPORT_TOP) == bottom - lines
    finger.down(150, 450).move(150, 250).rest().up()
    assert phone.evaluate(VIEWPORT_TOP) == bottom


def test_a_flick_glides_on_until_a_finger_stops_it(server: RunningServer, phone: Page) -> None:
    bottom = open_long_output(phone, server)
    lines = int(200 / line_height(phone))
    phone.evaluate("document.activeElement.blur()")
    Finger(phone).down(150, 250).move(150, 450, steps=5).up()
    until(phone, f"{VIEWPORT_TOP} < {bottom - lines - 5}")
    Finger(phone).down(150, 300).up()
    stopped = phone.evaluate(VIEWPORT_TOP)
    phone.evaluate(THREE_FRAMES)
    assert phone.evaluate(VIEWPORT_TOP) == stopped > 0
    assert phone.evaluate("document.activeElement === document.body")  # the keyboard stays down


@pytest.mark.parametrize(
    ("modes", "older", "newer"),
    [
        ("\\033[?1049h", "\x1b[A", "\x1b[B"),
        ("\\033[?1049h\\033[?1h", "\x1bOA", "\x1bOB"),
        ("\\033[?1049h\\033[?1000h\\033[?1006h", "\x1b[<64;", "\x1b[<65;"),
        ("\\033[?1002h\\033[?1006h", "\x1b[<64;", "\x1b[<65;"),
    ],
    ids=["arrows", "application arrows", "wheel", "wheel without the other screen"],
)
def test_a_program_with_a_screen_of_its_own_gets_the_swipe(
    server: RunningServer, phone: Page, modes: str, older: str, newer: str
) -> None:
    open_terminal(phone, server.terminal_url())
    run(phone, f"stty -echo; printf '{modes}'; echo screen-$((1 + 1)); cat > /dev/null")
    wait_for_text(phone, "screen-2")
    phone.evaluate(CATCH_TYPED)
    lines = int(160 / line_height(phone))
    Finger(phone).down(150, 200).move(150, 360).up()
    assert phone.evaluate("typed").count(older) == lines
    phone.evaluate("window.typed = ''")
    Finger(phone).down(150, 360).move(150, 200).up()
    assert phone.evaluate("typed").count(newer) == lines


def test_so_it_does_when_the_keyboard_of_the_phone_has_taken_some_lines(server: RunningServer, phone: Page) -> None:
    open_terminal(phone, server.terminal_url())
    lines = phone.evaluate(f"{TERMINAL}.rows")
    phone.set_viewport_size({"width": 375, "height": 400})
    until(phone, f"{TERMINAL}.rows < {lines}")
    run(phone, "printf '\\033[?1049h'; seq 1 100; echo filled; cat")
    wait_for_text(phone, "filled")
    assert phone.evaluate(f"{TERMINAL}.buffer.active.length == {TERMINAL}.rows")
    phone.evaluate(CATCH_TYPED)
    Finger(phone).down(180, 200).move(180, 260).rest().up()
    until(phone, "/^(\\x1b\\[A)+$/.test(window.typed)")


def test_a_long_press_selects_a_word_and_copy_copies_it(server: RunningServer, phone: Page) -> None:
    open_terminal(phone, server.terminal_url())
    run(phone, 'clear; echo "one-$((1 + 0)) \u4f60\u597d-$((1 + 1)) three"')
    wait_for_text(phone, "\u4f60\u597d-2 three")
    x, y = cell_position(phone, "one-1")
    copy = phone.get_by_role("button", name="Copy", exact=True)
    expect(copy).to_be_hidden()
    menu = "dispatchEvent(new MouseEvent('contextmenu', { bubbles: true, cancelable: true }))"
    assert phone.evaluate(f"document.querySelector('.xterm-screen').{menu}")
    finger = Finger(phone).down(x, y)
    assert not phone.evaluate(f"document.querySelector('.xterm-screen').{menu}")  # no menu under the finger
    until(phone, f"{TERMINAL}.getSelection() === 'one-1'")
    finger.up()
    copy.tap()
    until(phone, "navigator.clipboard.readText().then((text) => text === 'one-1')")
    expect(copy).to_be_hidden()
    cell = phone.evaluate(f"document.querySelector('.xterm-screen').clientWidth / {TERMINAL}.cols")
    finger.down(x + 7 * cell, y)  # the second half of a wide character
    until(phone, f"{TERMINAL}.getSelection() === '\u4f60\u597d-2'")
    finger.move(x + 15 * cell, y).up()
    assert phone.evaluate(f"{TERMINAL}.getSelection()") == "\u4f60\u597d-2 thr"
    # As over plain http, where there is no such API.
    phone.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    copy.tap()
    until(phone, "navigator.clipboard.readText().then((text) => text.endsWith(' thr'))")


def test_a_drag_after_a_long_press_selects_lines_backwards_too(server: RunningServer, phone: Page) -> None:
    open_long_output(phone, server)
    x, y = cell_position(phone, "297")
    finger = Finger(phone).down(x, y)
    until(phone, f"{TERMINAL}.getSelection() === '297'")
    finger.move(x, y - 2 * line_height(phone))
    assert phone.evaluate(f"{TERMINAL}.getSelection()") == "295\n296\n297"
    top = phone.evaluate(VIEWPORT_TOP)
    finger.move(x, 0).up()  # the lines above come along
    assert phone.evaluate(VIEWPORT_TOP) < top
    assert phone.evaluate(f"{TERMINAL}.getSelection().split('\\n').length") > phone.evaluate(f"{TERMINAL}.rows") - 5
    copy = phone.get_by_role("button", name="Copy", exact=True)
    expect(copy).to_be_visible()
    phone.touchscreen.tap(300, 300)
    expect(copy).to_be_hidden()


def test_copy_says_how_to_select_when_nothing_is(server: RunningServer, phone: Page) -> None:
    open_terminal(phone, server.terminal_url())
    phone.get_by_role("button", name="Copy the selection").tap()
    expect(phone.locator("#toast")).to_contain_text("Press long")


def key_position(page: Page, name: str) -> tuple[float, float]:
    """A place on a key of the key bar, near its left edge."""
    box = page.get_by_role("button", name=name, exact=True).bounding_box()
    assert box is not None
    return box["x"] + 5, box["y"] + 10


def test_a_held_arrow_key_repeats_and_a_tapped_one_does_not(server: RunningServer, phone: Page) -> None:
    open_terminal(phone, server.terminal_url())
    phone.evaluate(CATCH_TYPED)
    x, y = key_position(phone, "Left")
    finger = Finger(phone).down(x, y)
    until(phone, "window.typed.length >= 12")
    finger.catch_up().move(x + 30, y)
    phone.evaluate("window.typed = ''")
    until(phone, "window.typed.length >= 12")
    finger.catch_up().up()
    phone.evaluate("window.typed = ''")
    phone.get_by_role("button", name="Right", exact=True).tap()
    phone.get_by_role("button", name="Esc", exact=True).tap()
    until(phone, "window.typed.length >= 4")
    assert phone.evaluate("typed") == "\x1b[C\x1b"


def test_the_click_at_the_end_of_a_hold_presses_nothing(server: RunningServer, phone: Page) -> None:
    open_terminal(phone, server.terminal_url())
    phone.evaluate(CATCH_TYPED)
    phone.evaluate("window.addEventListener('pointerup', () => { window.typed = ''; })")
    phone.mouse.move(*key_position(phone, "Left"))
    phone.mouse.down()
    until(phone, "window.typed.length >= 12")
    phone.evaluate("window.addEventListener('click', () => { window.clicked = true; })")
    phone.mouse.up()
    until(phone, "window.clicked")
    assert phone.evaluate("typed") == ""


def test_a_key_that_is_held_when_the_session_ends_stops(server: RunningServer, phone: Page) -> None:
    three_keys = ["sh", "-c", "stty raw -echo; head -c 9 > /dev/null"]
    open_terminal(phone, server.terminal_url(command=three_keys))
    Finger(phone).down(*key_position(phone, "Left"))
    phase(phone, "ended")
    phone.get_by_role("button", name="Reconnect").evaluate("(button) => button.click()")
    phase(phone, "connected")
    phone.evaluate(CATCH_TYPED)
    phone.evaluate("new Promise((done) => setTimeout(done, 200))")  # in which a repeating key would type thrice
    assert phone.evaluate("typed") == ""


# ---- Links ----


def new_link(page: Page, server: RunningServer, **claims: Any) -> None:
    """Follow another link to a terminal in the same tab."""
    page.evaluate("(token) => { location.hash = `ssh_token=${token}`; }", server.token(**claims))


def test_a_new_link_over_a_running_shell_asks_first(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "kept=$((40 + 2))")
    new_link(page, server, sub="bob")
    dialog = page.get_by_role("dialog", name="End the running shell?")
    expect(dialog).to_be_visible()
    assert page.url == server.url
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    run(page, "echo still-$kept")
    wait_for_text(page, "still-42")
    expect(page.locator("#status")).to_have_text("Connected as alice")
    new_link(page, server, sub="bob")
    dialog.get_by_role("button", name="Keep the shell").click()
    expect(dialog).to_be_hidden()
    assert (page.url, len(server.rows())) == (server.url, 1)
    new_link(page, server, sub="bob")
    dialog.get_by_role("button", name="End it").click()
    expect(page.locator("#status")).to_have_text("Connected as bob")
    run(page, "echo new-${kept:-$((1 + 1))}")
    wait_for_text(page, "new-2")


def test_a_new_link_after_the_shell_has_ended_asks_nothing(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "exit")
    phase(page, "ended")
    new_link(page, server, sub="bob")
    expect(page.locator("#status")).to_have_text("Connected as bob")


def offers(page: Page) -> list[str]:
    """What the notice offers, in order."""
    return page.locator("#notice :is(button, a):visible").all_inner_texts()


@pytest.mark.parametrize(("claims", "offered"), [({}, ["Reconnect"]), ({"jti": "once"}, ["Close"])])
def test_after_the_end_a_new_try_is_offered_only_if_it_can_work(
    server: RunningServer, page: Page, claims: dict[str, str], offered: list[str]
) -> None:
    open_terminal(page, server.terminal_url(**claims))
    run(page, "exit")
    phase(page, "ended")
    assert offers(page) == offered
    expect(page.locator("#notice-hint")).to_have_text("" if not claims else re.compile("from your platform again"))


@pytest.mark.parametrize(("claims", "offered"), [({}, "Reconnect"), ({"jti": "once"}, "Close")])
def test_so_it_is_after_a_lost_connection(
    server: RunningServer, page: Page, claims: dict[str, str], offered: str
) -> None:
    relay = Relay(server.url)
    open_terminal(page, server.terminal_url(**claims).replace(urlsplit(server.url).netloc, relay.address))
    relay.cut()
    phase(page, "lost")
    assert offers(page) == [offered]


def test_a_used_link_leads_back_to_the_platform_and_says_so_once(platform_server: RunningServer, page: Page) -> None:
    link = platform_server.terminal_url(jti="once")
    open_terminal(page, link)
    run(page, "exit")
    phase(page, "ended")
    page.goto("about:blank")
    page.goto(link)
    phase(page, "refused")
    assert offers(page) == ["Back to the platform"]
    assert page.locator("#notice").inner_text().count("again") == 1
    back = page.get_by_role("link", name="Back to the platform")
    assert back.evaluate("(link) => [link.href, link.target]") == [PLATFORM_URL.replace('"', "%22"), "_top"]


def test_without_a_token_the_way_back_is_offered(platform_server: RunningServer, page: Page) -> None:
    page.goto(platform_server.url)
    expect(page.get_by_role("link", name="Back to the platform")).to_be_visible()
    expect(page.get_by_role("button", name="Open the terminal")).to_be_visible()


def test_close_closes_the_tab(server: RunningServer, page: Page) -> None:
    page.goto(server.url)
    with page.expect_popup() as opened:
        page.evaluate("(url) => { window.open(url); }", server.terminal_url("no-such-pod", jti="once"))
    popup = opened.value
    phase(popup, "refused")
    with popup.expect_event("close"), contextlib.suppress(PlaywrightError):  # the click may lose its page
        popup.get_by_role("button", name="Close").click()


def test_in_a_frame_there_is_nothing_to_close(server: RunningServer, page: Page) -> None:
    embedder = f'<!doctype html><iframe src="{server.url}#ssh_token=bad" width="900" height="500"></iframe>'
    page.route("**/embedder", lambda route: route.fulfill(body=embedder, content_type="text/html"))
    page.goto(f"{server.url}embedder")
    frame = page.frame_locator("iframe")
    expect(frame.locator("body")).to_have_attribute("data-phase", "refused", timeout=WAIT_MS)
    expect(frame.get_by_role("button")).to_have_count(0)


def test_platform_url_must_be_a_url(tmp_path: Path) -> None:
    for bad in ("platform.example", "javascript:alert(1)", "https://user:secret@platform.example/", "https://a b/"):
        (tmp_path / "a.toml").write_text(f'[Server]\nplatform_url = "{bad}"\n')
        with pytest.raises(jumpserver.ConfigError, match="platform_url in \\[Server\\]"):
            jumpserver.load_config(tmp_path / "a.toml")


def test_a_reloaded_page_says_what_ended_the_session(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    page.on("dialog", lambda dialog: dialog.accept())
    page.reload()
    phase(page, "idle")
    expect(page.locator("#token-form")).to_contain_text("This session ended because the page was reloaded.")
    page.reload()
    expect(page.locator("#status")).to_have_text("No token yet")


def test_a_page_that_was_left_and_is_come_back_to_says_so(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto("about:blank")
    page.go_back()
    phase(page, "idle")
    expect(page.locator("#token-form")).to_contain_text("This session ended because the page was left.")


def test_a_page_reloaded_after_the_end_does_not_claim_to_have_ended_it(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "exit")
    phase(page, "ended")
    page.reload()
    expect(page.locator("#status")).to_have_text("No token yet")


# ---- What is shown ----


def add_cluster(route: WebSocketRoute) -> None:
    """Let the session message name a cluster."""
    server = route.connect_to_server()

    def pass_on(message: str | bytes) -> None:
        if isinstance(message, str) and '"session"' in message:
            message = json.dumps({**json.loads(message), "cluster": "production-eu-1"})
        route.send(message)

    server.on_message(pass_on)


@pytest.mark.parametrize("width", [375, 768, 1440])
def test_where_the_shell_runs_and_who_is_connected_can_be_read(
    server: RunningServer, browser: Browser, width: int
) -> None:
    user = "alice.wonderland.of.the.long.names@example.com"
    page = browser.new_page(viewport={"width": width, "height": 700}, has_touch=width < 1000)
    page.route_web_socket(re.compile("/ssh"), add_cluster)
    open_terminal(page, server.terminal_url(container_name="main", sub=user))
    texts = {
        "#target": "demo / main",
        "#namespace": "namespace default",
        "#cluster": "cluster production-eu-1",
        "#status": f"Connected as {user}",
    }
    for selector, text in texts.items():
        expect(page.locator(selector)).to_have_text(text)
        assert page.locator(selector).evaluate("(part) => part.scrollWidth <= part.clientWidth || !part.clientWidth")
        box = page.locator(selector).bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width, selector
    page.close()


def test_black_text_can_be_read(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "clear; printf '\\033[30mblack''-text\\033[0m\\n'")
    wait_for_text(page, "black-text")
    line = page.locator(".xterm-rows span", has_text="black-text").last
    contrast = line.evaluate(
        """(span) => {
            const light = (colour) => colour.match(/\\d+/g).slice(0, 3).map((part) => part / 255)
                .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
                .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0.05);
            const [dim, bright] = [light(getComputedStyle(span).color),
                light(getComputedStyle(document.body).backgroundColor)].sort((one, other) => one - other);
            return bright / dim;
        }"""
    )
    assert contrast >= 4.5


def test_screen_reader_mode_is_remembered(server: RunningServer, page: Page) -> None:
    page.goto(server.url)
    button = page.locator("#screen-reader")
    expect(button).to_have_attribute("aria-pressed", "false")
    open_terminal(page, server.terminal_url())
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".xterm-accessibility")).to_be_attached()
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto("about:blank")
    open_terminal(page, server.terminal_url())
    expect(page.locator(".xterm-accessibility")).to_be_attached()
    expect(button).to_have_attribute("aria-pressed", "true")


def test_output_that_is_not_utf_8_is_shown_as_it_is_recorded(server: RunningServer, page: Page) -> None:
    page.goto(server.terminal_url(command=["printf", "<\\304\\343\\272\\303 \\342\\202>\\345\\245"]))
    phase(page, "ended")
    file = server.config.record_path / server.recordings()[-1]
    events = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    recorded = "".join(data for _, kind, data in events if kind == "o")
    assert recorded.count("\ufffd") == 5
    shown = page.evaluate(SCREEN_TEXT, 100)
    assert shown.rstrip() == recorded.rstrip()


# ---- Where it cannot be reached, or cannot start ----


class Front:
    """Serves the pages and answers ``/ssh`` itself with these bytes; None: never; b"": passes all but the upgrade."""

    def __init__(self, url: str, answer: bytes | None) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 80)
        self._answer = answer
        self._listener = Listener(self._serve)
        self.url = f"http://127.0.0.1:{self._listener.port}/"

    def _serve(self, near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += near.recv(65536)
        if self._answer != b"" and head.startswith(b"GET /ssh"):
            near.sendall(self._answer) if self._answer else near.recv(1)
            return
        with socket.create_connection(self._target) as far:
            self._listener.adopt(far)
            far.sendall(re.sub(rb"\r\nUpgrade:[^\r]*", b"", head))
            while data := far.recv(65536):
                near.sendall(data)

    def close(self) -> None:
        self._listener.close()


def http(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Content-Length: 3", "Connection: close", "", "no\n"]).encode()


@pytest.mark.parametrize(
    ("answer", "words", "offered"),
    [
        (http("414 Request-URI Too Large"), "longer than", ["Close"]),
        (http("431 Request Header Fields Too Large"), "longer than", ["Close"]),
        (http("502 Bad Gateway"), "the server behind it does not (HTTP status 502)", ["Try again"]),
        (http("503 Service Unavailable"), "busy", ["Try again"]),
        (http("404 Not Found"), "no jumpserver at this address", ["Try again"]),
        (http("403 Forbidden"), "did not let the terminal through (HTTP status 403)", ["Try again"]),
        (http("302 Found", "Location: https://login.example/"), "wants a sign-in", ["Try again"]),
        (b"", "WebSocket does not get through", ["Try again"]),
    ],
)
def test_a_handshake_that_fails_is_told_as_what_it_is(
    server: RunningServer, page: Page, answer: bytes, words: str, offered: list[str]
) -> None:
    front = Front(server.url, answer)
    try:
        page.goto(server.terminal_url().replace(server.url, front.url))
        phase(page, "refused")
        expect(page.locator("#notice-title")).to_have_text("Terminal not opened")
        expect(page.locator("#notice-text")).to_contain_text(words)
        assert offers(page) == offered
    finally:
        page.goto("about:blank")
        front.close()


def test_a_server_that_never_answers_is_told_as_such(server: RunningServer, page: Page) -> None:
    front = Front(server.url, None)
    try:
        page.clock.install()
        page.goto(server.terminal_url().replace(server.url, front.url))
        phase(page, "connecting")
        page.clock.fast_forward(31_000)
        phase(page, "refused")
        expect(page.locator("#notice-text")).to_have_text("The server does not answer.")
    finally:
        page.goto("about:blank")
        front.close()


def test_the_question_why_holds_no_token(server: RunningServer, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.resource_type == "fetch" else None)
    token = "t" * 70_000  # more than http.server takes in a line
    page.goto(f"{server.url}#ssh_token={token}")
    phase(page, "refused")
    expect(page.locator("#notice-text")).to_contain_text("longer than")
    assert len(asked) == 1 and "tttt" not in asked[0] and len(asked[0]) > len(token)


def test_a_device_without_a_network_is_told_so(server: RunningServer, page: Page) -> None:
    page.goto(server.url)
    page.context.set_offline(True)
    page.get_by_label("Token").fill(server.token())
    page.keyboard.press("Enter")
    phase(page, "refused")
    expect(page.locator("#notice-text")).to_have_text("This device is offline.")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    phase(page, "connected")


def test_a_page_whose_files_do_not_load_says_so(server: RunningServer, page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    pages = {}
    for missing in ("**/terminal.js", "**/touch.js", "**/xterm.mjs", "**/*.{js,mjs,css}"):
        pages[missing] = page.context.new_page()
        pages[missing].route(missing, lambda route: route.abort())
        pages[missing].goto(server.terminal_url())
        assert not pages[missing].locator("#unloaded").is_visible()
    for opened in pages.values():
        expect(opened.locator("#unloaded")).to_be_visible(timeout=WAIT_MS)
        expect(opened.get_by_text("Starting")).to_be_hidden()
        assert opened.get_by_role("button").all_inner_texts() == []


def test_a_page_that_has_started_does_not_say_so(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    assert page.locator("#unloaded").evaluate("(words) => getComputedStyle(words).display") == "none"


def test_the_words_come_without_any_script(server: RunningServer, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(server.terminal_url())
    expect(page.locator("#unloaded")).to_be_visible(timeout=WAIT_MS)
    context.close()
