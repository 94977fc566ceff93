"""Light and dark: which of them a page shows, what the choice changes, and that everything can be seen in both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import WAIT_MS
from tests.support import RunningServer
from tests.test_pages import TERMINAL, open_terminal, until

PAGES = ["", "player.html", "sessions.html"]
LIGHT, DARK = "rgb(244, 245, 248)", "rgb(13, 15, 21)"
NO_STORAGE = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied'); } });"
# The contrast (WCAG 2.2) of colours of style.css: [of one, on another].
CONTRAST = """(pairs) => {
    const style = getComputedStyle(document.documentElement);
    const canvas = document.createElement("canvas").getContext("2d");
    const luminance = (name) => {
        canvas.fillStyle = style.getPropertyValue(name);
        const parts = [1, 3, 5].map((at) => parseInt(canvas.fillStyle.slice(at, at + 2), 16) / 255);
        const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    return pairs.map((pair) => pair.map(luminance).sort((a, b) => b - a)).map(([light, dark]) => light / dark);
}"""
GROUNDS = ["--ground", "--panel", "--raised"]


@pytest.fixture(params=["light", "dark"])
def themed(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = browser.new_context(color_scheme=request.param)
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


def ground(page: Page, colour: str) -> None:
    expect(page.locator("body")).to_have_css("background-color", colour)


def low(page: Page, pairs: list[tuple[str, str]], wanted: float) -> list[tuple[tuple[str, str], float]]:
    """The pairs of colours with less contrast than that."""
    found = page.evaluate(CONTRAST, pairs)
    return [(pair, contrast) for pair, contrast in zip(pairs, found) if contrast < wanted]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_follows_the_system_until_something_is_chosen(server: RunningServer, page: Page, path: str) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(server.url + path)
    ground(page, LIGHT)
    page.emulate_media(color_scheme="dark")
    ground(page, DARK)


def test_a_choice_holds_on_all_pages_whatever_the_system_says(server: RunningServer, page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto(f"{server.url}sessions.html")
    page.get_by_role("button", name="Colours: as the system has them").click()
    ground(page, LIGHT)
    for path in PAGES:
        page.goto(server.url + path)
        ground(page, LIGHT)
    page.goto(f"{server.url}sessions.html")
    page.get_by_role("button", name="Colours: light").click()
    page.emulate_media(color_scheme="light")
    ground(page, DARK)
    page.get_by_role("button", name="Colours: dark").click()
    ground(page, LIGHT)
    page.emulate_media(color_scheme="dark")
    ground(page, DARK)


def test_a_choice_holds_in_other_tabs_at_once(server: RunningServer, page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto(f"{server.url}sessions.html")
    other = page.context.new_page()
    other.emulate_media(color_scheme="dark")
    other.goto(server.url)
    ground(other, DARK)
    page.get_by_role("button", name="Colours").click()
    ground(other, LIGHT)


def test_where_nothing_can_be_kept_the_choice_holds_as_long_as_the_page(server: RunningServer, page: Page) -> None:
    page.add_init_script(NO_STORAGE)
    page.emulate_media(color_scheme="dark")
    page.goto(f"{server.url}sessions.html")
    page.get_by_role("button", name="Colours").click()
    ground(page, LIGHT)
    page.reload()
    ground(page, DARK)


def test_what_was_kept_by_another_program_is_passed_over(server: RunningServer, page: Page) -> None:
    page.add_init_script("localStorage.setItem('jumpserver.theme', 'toString')")
    page.emulate_media(color_scheme="light")
    page.goto(server.url)
    ground(page, LIGHT)


def test_an_open_terminal_changes_its_colours_and_keeps_its_screen(server: RunningServer, page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    open_terminal(page, server.terminal_url())
    page.evaluate(f"{TERMINAL}.write('still-here')")
    background = f"{TERMINAL}.options.theme.background"
    assert page.evaluate(background) == "#0d0f15"
    page.get_by_role("button", name="Colours").click()
    until(page, f"{background} === '#ffffff'")
    expect(page.locator("#terminal")).to_contain_text("still-here")


def test_text_can_be_read(server: RunningServer, themed: Page) -> None:
    themed.goto(f"{server.url}sessions.html")
    words = ["--text", "--dim", "--good", "--warn", "--bad", "--accent"]
    pairs = list(itertools.product(words, GROUNDS))
    pairs += [(f"--{name}", f"--{name}-soft") for name in ("good", "warn", "bad")]
    pairs += [("--text", "--hover"), ("--dim", "--hover"), ("--bad", "--hover")]
    pairs += [("--on-accent", "--accent"), ("--on-accent", "--accent-hover")]
    assert low(themed, pairs, 4.5) == []


def test_the_edges_of_controls_can_be_seen(server: RunningServer, themed: Page) -> None:
    themed.goto(f"{server.url}sessions.html")
    assert low(themed, list(itertools.product(["--edge", "--accent", "--bad"], GROUNDS)), 3) == []
    kinds = ["button:not(.icon, .quiet, [aria-pressed])", "input:not([type=search])", "input[type=search]"]
    edge = themed.evaluate("getComputedStyle(document.querySelector('#q')).borderTopColor")
    for kind in kinds:
        expect(themed.locator(kind).first).to_have_css("border-top-color", edge)


def test_the_colours_of_the_terminal_can_be_read_and_marked(server: RunningServer, themed: Page) -> None:
    themed.goto(server.url)
    is_dark = themed.evaluate("document.documentElement.dataset.theme") == "dark"
    names = ["foreground", *range(1 if is_dark else 0, 16)]  # black on black is black
    pairs = [(f"--term-color-{name}", "--term-color-background") for name in names]
    for name in ("selection", "selection-inactive", "match", "match-active"):
        pairs.append(("--term-color-foreground", f"--term-{name}"))
    assert low(themed, pairs, 4.5) == []
    assert low(themed, [("--term-match-edge", "--term-color-background")], 3) == []


def test_the_pages_have_an_icon(server: RunningServer, page: Page) -> None:
    with page.expect_response("**/favicon.svg") as answer:
        page.goto(server.url)
    assert answer.value.headers["content-type"] == "image/svg+xml"
    assert b"<svg" in answer.value.body()


def test_every_icon_that_a_page_uses_is_there(server: RunningServer, page: Page) -> None:
    for path in PAGES:
        page.goto(server.url + path)
        missing = page.evaluate(
            """async () => {
                const sprite = new DOMParser().parseFromString(await (await fetch("icons.svg")).text(), "text/xml");
                const uses = [...document.querySelectorAll("use")].map((use) => use.getAttribute("href").split("#")[1]);
                return [uses.length > 0, uses.filter((name) => !sprite.getElementById(name))];
            }"""
        )
        assert missing == [True, []]
