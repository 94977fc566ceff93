"""The terminal page's title, bell, options, full screen, and how wide it takes emoji to be."""

from __future__ import annotations

import ctypes
import locale

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import WAIT_MS
from tests.support import RunningServer
from tests.test_accessibility import findings
from tests.test_pages import CELLS, open_terminal, phase, run, until, wait_for_text

HIDE = """(hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
}"""
# Of Unicode 6 to 15: plain, of two and more code points, narrow by itself, a flag.
EMOJI = ["\U0001f389", "\U0001f971", "\U0001f972", "\U0001fae0", "\U0001fae8", "\u2764\ufe0f", "\U0001f44d\U0001f3fd"]
EMOJI += ["\U0001f469\u200d\U0001f4bb", "\U0001f1e9\U0001f1ea", "\U0001f93b", "\u2705", "\u4f60"]


# -- title and bell ---------------------------------------------------------------------------------------------------


def title(page: Page, sequence: str) -> None:
    run(page, f"PROMPT_COMMAND=; printf '{sequence}'")


def test_a_programs_title_is_the_tabs_bounded_and_without_control_characters(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url(label="production"))
    expect(page).to_have_title("production: demo \u2013 Terminal")
    title(page, "\\033]2;vim a.txt\\007")
    expect(page).to_have_title("production: vim a.txt \u2013 demo")
    title(page, "\\033]0;a\\342\\200\\256b%0200d\\007")
    expect(page).to_have_title(f"production: ab{'0' * 97} \u2013 demo")
    title(page, "\\033]2;\\007")
    expect(page).to_have_title("production: demo \u2013 Terminal")


def test_the_title_of_a_shell_that_is_gone_is_not_the_next_ones(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    title(page, "\\033]2;old\\007")
    expect(page).to_have_title("old \u2013 demo")
    run(page, "exit")
    phase(page, "ended")
    page.get_by_role("button", name="Reconnect").click()
    phase(page, "connected")
    expect(page).to_have_title("demo \u2013 Terminal")


def test_a_bell_marks_a_hidden_tab_until_it_is_looked_at(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "printf '\\a'; echo seen-$((1 + 1))")
    wait_for_text(page, "seen-2")
    expect(page).to_have_title("demo \u2013 Terminal")
    page.evaluate(HIDE, True)
    run(page, "printf '\\a'")
    expect(page).to_have_title("\U0001f514 demo \u2013 Terminal")
    page.evaluate(HIDE, False)
    expect(page).to_have_title("demo \u2013 Terminal")


@pytest.mark.parametrize(("motion", "flashes"), [("no-preference", True), ("reduce", False)])
def test_a_bell_flashes_where_motion_is_not_reduced(
    server: RunningServer, browser: Browser, motion: str, flashes: bool
) -> None:
    context = browser.new_context(reduced_motion=motion)  # type: ignore[arg-type]
    page = context.new_page()
    page.add_init_script(
        """window.flashes = 0;
        const animate = Element.prototype.animate;
        Element.prototype.animate = function (...how) { window.flashes += 1; return animate.apply(this, how); };"""
    )
    open_terminal(page, server.terminal_url())
    run(page, "printf '\\a'; echo rang-$((1 + 1))")
    wait_for_text(page, "rang-2")
    assert (page.evaluate("window.flashes") > 0) is flashes
    context.close()


# -- options and full screen ------------------------------------------------------------------------------------------


def test_what_is_selected_is_copied_if_that_is_wanted_and_the_wish_is_kept(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    page.evaluate("navigator.clipboard.writeText('before')")
    run(page, "clear; echo select-$((1 + 1))")
    wait_for_text(page, "select-2")
    word = page.locator(".xterm-rows span", has_text="select-2").last
    word.dblclick(force=True)
    assert page.evaluate("navigator.clipboard.readText()") == "before"
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Copy what is selected").check()
    assert findings(page) == []
    page.keyboard.press("Escape")
    expect(page.locator("#options-menu")).to_be_hidden()
    word.dblclick(force=True)
    until(page, "navigator.clipboard.readText().then((text) => text.startsWith('select'))")
    page.goto("about:blank")
    page.goto(server.url)
    expect(page.locator("#copy-on-select")).to_be_checked()


def test_full_screen_gives_the_shell_all_keys_and_says_how_to_leave(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    page.get_by_role("button", name="Full screen").click()
    until(page, "document.fullscreenElement !== null")
    expect(page.locator("#toast")).to_have_text("All keys go to the shell; hold Esc to leave")
    run(page, "echo full-$((1 + 1))")
    wait_for_text(page, "full-2")
    page.get_by_role("button", name="Leave full screen").click()
    until(page, "document.fullscreenElement === null")
    expect(page.get_by_role("button", name="Full screen", exact=True)).to_be_visible()


def test_where_the_keyboard_cannot_be_locked_the_page_does_not_claim_it(server: RunningServer, page: Page) -> None:
    page.add_init_script("Object.defineProperty(navigator, 'keyboard', { value: undefined })")
    open_terminal(page, server.terminal_url())
    page.get_by_role("button", name="Full screen").click()
    expect(page.locator("#toast")).to_contain_text("Press Esc to leave")


@pytest.mark.parametrize("width", [375, 768, 1440])
def test_the_bar_has_room_for_its_tools(server: RunningServer, browser: Browser, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 700})
    open_terminal(page, server.terminal_url(label="production", colour="red"))
    for button in page.locator(".bar button:visible").all():
        box = button.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
    page.get_by_role("button", name="Options").click()
    box = page.locator("#options-menu").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
    page.close()


# -- emoji ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def widths() -> dict[str, int]:
    """How many columns the C library here takes each for; the shells of the tests use it, too."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    count = ctypes.CDLL(None).wcwidth
    found = {text: sum(count(ord(character)) for character in text) for text in EMOJI}
    locale.setlocale(locale.LC_CTYPE, before)
    return found


def test_emoji_are_as_wide_as_the_c_library_counts_them(
    server: RunningServer, page: Page, widths: dict[str, int]
) -> None:
    if min(widths.values()) < 0:
        pytest.skip("the C library here does not know all of them")
    open_terminal(page, server.terminal_url())
    for number, (text, width) in enumerate(widths.items()):
        escaped = "".join(f"\\{byte:03o}" for byte in text.encode())
        run(page, f"clear; printf 'w{number}:{escaped}|\\n'")
        page.wait_for_function(f"(word) => ({CELLS})(word) !== null", arg=f"w{number}:", timeout=WAIT_MS)
        cells = page.evaluate(CELLS, f"w{number}:")
        start = len(f"w{number}:")
        assert sum(cell[1] for cell in cells[start:-1]) == width, text


def test_a_line_with_emoji_can_be_edited_in_its_middle(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "PS1='> '; clear")
    page.keyboard.insert_text("echo \U0001fae0\U0001f972\U0001f44d\U0001f3fdxz")
    page.keyboard.press("ArrowLeft")
    page.keyboard.insert_text("y")
    wait_for_text(page, "> echo \U0001fae0\U0001f972\U0001f44d\U0001f3fdxyz")
    page.keyboard.press("Enter")
    wait_for_text(page, "\n\U0001fae0\U0001f972\U0001f44d\U0001f3fdxyz")
