"""The terminal page in a real browser, against the real server and the stand-in cluster."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, WebSocket, expect

from tests.conftest import WAIT_MS
from tests.support import Listener, RunningServer

TERMINAL = "document.querySelector('#terminal').terminal"
# The text of the last lines, wrapped ones joined.
SCREEN_TEXT = f"""(lines) => {{
    const buffer = {TERMINAL}.buffer.active;
    let text = "";
    for (let y = Math.max(0, buffer.length - lines); y < buffer.length; y += 1) {{
        const line = buffer.getLine(y);
        text += (line.isWrapped || text === "" ? "" : "\\n") + line.translateToString(true);
    }}
    return text;
}}"""
# The cells of the first line that starts with a word: text, columns, foreground and its kind.
CELLS = f"""(word) => {{
    const buffer = {TERMINAL}.buffer.active;
    for (let y = 0; y < buffer.length; y += 1) {{
        const line = buffer.getLine(y);
        if (!line.translateToString(true).startsWith(word)) continue;
        const cells = Array.from({{ length: line.length }}, (_, x) => line.getCell(x));
        return cells.filter((cell) => cell.getWidth() && cell.getChars()).map((cell) => [
            cell.getChars(), cell.getWidth(), cell.getFgColor(),
            cell.isFgRGB() ? "rgb" : cell.isFgPalette() ? "palette" : "default",
        ]);
    }}
    return null;
}}"""
# Longest time in which the page did nothing else, in milliseconds, from now until it is read.
WATCH_STALLS = """() => {
    window.longestStall = 0;
    let last = performance.now();
    setInterval(() => {
        window.longestStall = Math.max(window.longestStall, performance.now() - last);
        last = performance.now();
    }, 20);
}"""


class Relay:
    """A TCP relay to the server that can be cut, as a network can. One thread a direction."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 80)
        self._listener = Listener(self._serve)
        self.address = f"127.0.0.1:{self._listener.port}"

    def _serve(self, near: socket.socket) -> None:
        with socket.create_connection(self._target) as far:
            self._listener.adopt(far)
            back = threading.Thread(target=self._copy, args=(far, near), daemon=True)
            back.start()
            self._copy(near, far)
            back.join()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Close everything at once, the listener too; idempotent."""
        self._listener.close()


def phase(page: Page, name: str) -> None:
    expect(page.locator("body")).to_have_attribute("data-phase", name, timeout=WAIT_MS)


def open_terminal(page: Page, url: str) -> None:
    page.goto(url)
    phase(page, "connected")


def run(page: Page, command: str) -> None:
    page.keyboard.type(command)
    page.keyboard.press("Enter")


def until(page: Page, condition: str) -> None:
    page.wait_for_function(f"() => {condition}")  # a function: the pages' policy forbids evaluating a string


def wait_for_text(page: Page, text: str, timeout_ms: int = WAIT_MS) -> None:
    page.wait_for_function(f"(text) => ({SCREEN_TEXT})(200).includes(text)", arg=text, timeout=timeout_ms)


def sent_messages(page: Page) -> list[dict[str, Any]]:
    """A list that fills with the text messages the page sends from now on."""
    messages: list[dict[str, Any]] = []

    def listen(socket: WebSocket) -> None:
        socket.on("framesent", lambda payload: messages.append(json.loads(payload)))

    page.on("websocket", listen)
    return messages


def test_a_typed_command_shows_its_output(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "echo $((40 + 2))-is-the-answer")
    wait_for_text(page, "42-is-the-answer")
    expect(page.locator("#target")).to_contain_text("demo")
    expect(page.get_by_text("Recorded", exact=True)).to_be_visible()


def test_the_token_leaves_the_address_bar(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    assert "ssh_token" not in page.url
    assert page.url == server.url


def test_the_first_size_is_that_of_the_window(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    rows, cols = page.evaluate(f"[{TERMINAL}.rows, {TERMINAL}.cols]")
    run(page, "echo size $(stty size) end")
    wait_for_text(page, f"size {rows} {cols} end")
    assert (rows, cols) != (24, 80)


def test_a_resized_window_changes_the_size_in_the_pod(server: RunningServer, page: Page) -> None:
    messages = sent_messages(page)
    open_terminal(page, server.terminal_url())
    cols = page.evaluate(f"{TERMINAL}.cols")
    page.set_viewport_size({"width": 900, "height": 600})
    page.wait_for_function(f"(cols) => {TERMINAL}.cols !== cols", arg=cols)
    rows, cols = page.evaluate(f"[{TERMINAL}.rows, {TERMINAL}.cols]")
    run(page, "echo size $(stty size) end")
    wait_for_text(page, f"size {rows} {cols} end")
    assert [message for message in messages if message["type"] == "resize"] == [
        {"type": "resize", "rows": rows, "cols": cols}
    ]


def test_a_paste_of_100_kb_arrives_intact(server: RunningServer, page: Page) -> None:
    messages = sent_messages(page)
    # An odd emoji here and there, so that the cuts between messages fall inside surrogate pairs too.
    lines = [f"{number:05d} " + "\U0001f389\u4f60x" * (number % 7) + "=" * 60 for number in range(1500)]
    assert len("\n".join(lines).encode()) > 100_000
    open_terminal(page, server.terminal_url())
    page.evaluate("(text) => navigator.clipboard.writeText(text)", "\n".join([*lines, ""]))
    run(page, "stty -echo; echo rea''dy; cat > pasted; stty echo; clear; cat pasted; echo pasted-$((1 + 1))")
    wait_for_text(page, "\nready")
    page.get_by_role("button", name="Paste").click()
    until(page, "document.activeElement.classList.contains('xterm-helper-textarea')")
    page.keyboard.press("Control+d")
    wait_for_text(page, "pasted-2")
    text = page.evaluate(SCREEN_TEXT, 10_000)
    assert text[text.index("00000 ") : text.index("\npasted-2")].split("\n") == lines
    assert max(len(json.dumps(message, ensure_ascii=False).encode()) for message in messages) <= 16 * 1024


def test_the_paste_shortcut_pastes(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    page.evaluate("navigator.clipboard.writeText('echo sh\\'\\'ort\\'\\'cut')")
    page.keyboard.press("Control+Shift+V")
    wait_for_text(page, "echo sh")
    page.keyboard.press("Enter")
    wait_for_text(page, "\nshortcut")


def test_a_paste_cannot_end_its_own_brackets(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "printf '\\033[?2004h'; echo brackets-$((1 + 0)); cat")
    wait_for_text(page, "brackets-1")
    page.evaluate(f"window.typed = ''; {TERMINAL}.onData((data) => {{ window.typed += data; }})")
    page.evaluate("navigator.clipboard.writeText('one\\x1b[201~two')")
    page.get_by_role("button", name="Paste").click()
    until(page, "window.typed.includes('two')")
    assert page.evaluate("window.typed") == "\x1b[200~onetwo\x1b[201~"


def test_the_selection_is_copied(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "echo copy-$((3 + 4))-me")
    wait_for_text(page, "copy-7-me")
    page.evaluate(f"{TERMINAL}.selectAll()")
    page.keyboard.press("Control+Shift+C")
    until(page, "navigator.clipboard.readText().then((text) => text.includes('copy-7-me'))")


def test_a_program_may_fill_the_clipboard_but_not_read_it(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    page.evaluate("navigator.clipboard.writeText('secret of the user')")
    page.evaluate(f"window.typed = ''; {TERMINAL}.onData((data) => {{ window.typed += data; }})")
    page.evaluate(f"{TERMINAL}.write('\\x1b]52;c;?\\x07\\x1b]52;c;ZnJvbSB0aGUgcG9k\\x07')")
    until(page, "navigator.clipboard.readText().then((text) => text === 'from the pod')")
    assert page.evaluate("window.typed") in ("", "\x1b]52;c;\x07")


def test_wide_characters_emoji_and_colours_are_shown(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(
        page,
        "printf '\\033[31mR\\033[38;2;1;2;3mT\\033[0m\\344\\275\\240\\360\\237\\216\\211e\\314\\201z\\n'",
    )
    until(page, f"({CELLS})('RT') !== null")
    assert page.evaluate(CELLS, "RT") == [
        ["R", 1, 1, "palette"],
        ["T", 1, 0x010203, "rgb"],
        ["\u4f60", 2, -1, "default"],
        ["\U0001f389", 2, -1, "default"],
        ["e\u0301", 1, -1, "default"],
        ["z", 1, -1, "default"],
    ]


def test_a_flood_is_held_back_and_does_not_freeze_the_page(server: RunningServer, page: Page) -> None:
    messages = sent_messages(page)
    open_terminal(page, server.terminal_url())
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 4})
    page.evaluate(WATCH_STALLS)
    run(page, "yes 0123456789abcdefghijklmnopqrstuvwxyz | head -c 5000000; echo; echo flood-$((1 + 1))")
    wait_for_text(page, "flood-2", timeout_ms=60_000)
    assert page.evaluate("window.longestStall") < 2000
    drawn = [message["drawn"] for message in messages if message["type"] == "ack"]
    assert drawn == sorted(drawn) and len(drawn) > 5  # the window may be as large as 4 MiB


def test_search_begins_at_the_newest_match_and_counts(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "clear; for i in 1 2 3; do echo nee''dle; done")
    wait_for_text(page, "needle\nneedle\nneedle")
    page.keyboard.press("Control+Shift+F")
    page.keyboard.type("needle")
    expect(page.locator("#search-count")).to_have_text("3 of 3")
    page.keyboard.press("Enter")
    expect(page.locator("#search-count")).to_have_text("2 of 3")
    page.keyboard.press("Shift+Enter")
    expect(page.locator("#search-count")).to_have_text("3 of 3")
    page.keyboard.press("Enter")
    page.keyboard.press("Backspace")
    expect(page.locator("#search-count")).to_have_text("3 of 3")
    page.keyboard.press("Escape")
    run(page, "echo focus-$((1 + 1))")
    wait_for_text(page, "focus-2")


def test_the_font_size_is_kept(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    cols = page.evaluate(f"{TERMINAL}.cols")
    page.get_by_role("button", name="Options").click()
    page.get_by_role("button", name="Larger text").click()
    assert page.evaluate(f"{TERMINAL}.cols") < cols
    size = page.evaluate(f"{TERMINAL}.options.fontSize")
    page.goto("about:blank")
    page.goto(server.url)
    assert page.evaluate(f"{TERMINAL}.options.fontSize") == size


def test_a_touch_screen_has_the_keys_it_lacks(server: RunningServer, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    open_terminal(page, server.terminal_url())
    run(page, "cat; echo after-$((1 + 1))")
    page.get_by_role("button", name="Ctrl").tap()
    page.keyboard.type("c")
    run(page, "echo again-$((2 + 1))")
    wait_for_text(page, "again-3")
    page.get_by_role("button", name="Up", exact=True).tap()
    page.keyboard.type("4")
    page.keyboard.press("Backspace")
    run(page, "; echo up-$((3 + 1))")
    wait_for_text(page, "again-3\nup-4")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    context.close()


def test_without_a_token_the_page_asks_for_one(server: RunningServer, page: Page) -> None:
    page.goto(server.url)
    token = server.terminal_url().split("ssh_token=")[1]
    page.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")
    phase(page, "connected")
    run(page, "echo form-$((1 + 1))")
    wait_for_text(page, "form-2")


def test_a_token_in_the_query_works_too(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url().replace("#", "?"))
    assert page.url == server.url


def test_a_refused_token_shows_the_sentence_of_the_server(server: RunningServer, page: Page) -> None:
    closed: list[str] = []

    def on_frame(payload: Any) -> None:
        if isinstance(payload, str):
            closed.append(json.loads(payload)["reason"])

    page.on("websocket", lambda socket: socket.on("framereceived", on_frame))
    page.goto(f"{server.url}#ssh_token=not-a-token")
    phase(page, "refused")
    sentence = closed[0][0].upper() + closed[0][1:] + "."
    assert page.locator("#notice").inner_text().split("\n") == ["Terminal not opened", "", sentence, "", "Close"]


def test_a_shell_that_ends_shows_its_exit_code_and_reconnects(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "echo first-$((1 + 1)); exit 7")
    phase(page, "ended")
    expect(page.locator("#notice")).to_contain_text("7")
    page.get_by_role("button", name="Reconnect").click()
    phase(page, "connected")
    run(page, "echo second-$((1 + 1))")
    wait_for_text(page, "second-2")
    wait_for_text(page, "first-2")  # what the first shell printed is still there


def test_leaving_asks_only_while_connected(server: RunningServer, page: Page) -> None:
    asks = "dispatchEvent(new Event('beforeunload', { cancelable: true })) === false"
    open_terminal(page, server.terminal_url())
    assert page.evaluate(asks)
    run(page, "exit")
    phase(page, "ended")
    assert not page.evaluate(asks)


def test_a_lost_connection_is_named(server: RunningServer, page: Page) -> None:
    relay = Relay(server.url)
    open_terminal(page, server.terminal_url().replace(urlsplit(server.url).netloc, relay.address))
    relay.cut()
    phase(page, "lost")
    expect(page.locator("#status")).to_have_text("Connection lost")
    expect(page.get_by_role("button", name="Reconnect")).to_be_visible()


def test_a_server_that_stops_says_so(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    server.stop()
    expect(page.locator("#notice")).to_contain_text("server")
    page.get_by_role("button", name="Reconnect").click()
    phase(page, "refused")
    expect(page.locator("#notice-text")).to_have_text("The server could not be reached.")


def test_the_terminal_works_inside_an_iframe(server: RunningServer, page: Page) -> None:
    embedder = f'<!doctype html><iframe src="{server.terminal_url()}" width="900" height="500"></iframe>'
    page.route("**/embedder", lambda route: route.fulfill(body=embedder, content_type="text/html"))
    page.goto(f"{server.url}embedder")
    frame = page.frame_locator("iframe")
    expect(frame.locator("body")).to_have_attribute("data-phase", "connected", timeout=WAIT_MS)
