"""What axe-core finds on the pages: nothing, in each of their states, on large and small screens, light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import WAIT_MS
from tests.support import RunningServer
from tests.test_pages import open_terminal, phase, run, until, wait_for_text
from tests.test_player_page import PLAYER_SCRIPT, cast, play, player_text

AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"
DESKTOP: dict[str, Any] = {"viewport": {"width": 1440, "height": 900}}
TABLET: dict[str, Any] = {"viewport": {"width": 768, "height": 1024}, "has_touch": True}
PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 700}, "has_touch": True, "is_mobile": True}
SCREENS: dict[str, dict[str, Any]] = {"desktop": DESKTOP, "tablet": TABLET, "phone": PHONE}


@pytest.fixture(params=SCREENS)
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = browser.new_context(**SCREENS[request.param])
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


FINDINGS = """async (rules) => {
  const options = { resultTypes: ["violations"], ...(rules && { runOnly: rules }) };
  const { passes, violations, incomplete } = await axe.run(options);
  const found = violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html.slice(0, 150)}`));
  return { found, looked: passes.length + violations.length + incomplete.length };
}"""


def findings(page: Page, rules: Sequence[str] = ()) -> list[str]:
    """The faults that axe-core finds now: rule and place. By all of its rules, or by these."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())  # not as a script element: the pages' policy allows none but their own
    result = page.evaluate(FINDINGS, list(rules) or None)
    assert result["looked"] > (0 if rules else 10)
    found: list[str] = result["found"]
    return found


def findings_in_all_colours(page: Page) -> list[str]:
    """The same on a light and on a dark system: the page changes its colours while it is open, and nothing else."""
    page.emulate_media(color_scheme="light")
    until(page, "document.documentElement.dataset.theme === 'light'")
    found = findings(page)
    page.emulate_media(color_scheme="dark")
    until(page, "document.documentElement.dataset.theme === 'dark'")
    return found + findings(page, ["color-contrast"])


# ---- The terminal ----


def test_the_form_of_the_terminal_page(server: RunningServer, page: Page) -> None:
    page.goto(server.url)
    expect(page.get_by_label("Token")).to_be_visible()
    assert findings_in_all_colours(page) == []


def test_a_terminal_that_connects(server: RunningServer, page: Page) -> None:
    page.route_web_socket("**/ssh?*", lambda socket: None)  # never answered
    page.goto(server.terminal_url())
    phase(page, "connecting")
    assert findings_in_all_colours(page) == []


def test_an_open_terminal(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "for i in 1 2 3 4 5 6 7; do printf '\\033[3%dmcolour %d\\033[0m\\n' $i $i; done; echo done-$((1 + 1))")
    wait_for_text(page, "done-2")
    assert findings_in_all_colours(page) == []


def test_a_terminal_with_its_search_bar(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "echo nee''dle")
    wait_for_text(page, "\nneedle")
    page.keyboard.press("Control+Shift+F")
    page.keyboard.type("needle")
    expect(page.locator("#search-count")).to_have_text("1 of 1")
    assert findings_in_all_colours(page) == []


def test_a_terminal_that_has_ended(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "exit")
    phase(page, "ended")
    assert findings_in_all_colours(page) == []


def test_a_terminal_that_was_refused(server: RunningServer, page: Page) -> None:
    page.goto(f"{server.url}#ssh_token=wrong")
    phase(page, "refused")
    assert findings_in_all_colours(page) == []


# ---- The player ----


def test_a_player_that_loads(server: RunningServer, page: Page) -> None:
    page.route("**/records/play*", lambda route: None)  # never answered
    page.goto(server.player_url("any.cast"))
    expect(page.locator("#words")).to_contain_text("Loading")
    assert findings_in_all_colours(page) == []


def test_a_player_that_plays(server: RunningServer, page: Page) -> None:
    colours = "".join(f"\x1b[3{number}mcolour {number}\x1b[0m\r\n" for number in range(1, 8))
    play(server, page, cast([0.1, "o", colours], [1, "m", "a marker"], [60, "o", "end"]))
    player_text(page, "colour 7")
    assert findings_in_all_colours(page) == []


def test_a_player_that_is_paused_and_has_remarks(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "start"], [60, "o", "end"], width=1001) + '[61, "o')
    player_text(page, "start")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    expect(page.locator("#size-remark")).to_be_visible()
    expect(page.locator("#incomplete")).to_be_visible()
    assert findings_in_all_colours(page) == []


def test_a_player_that_says_what_is_wrong(server: RunningServer, page: Page) -> None:
    play(server, page, json.dumps({"version": 9}))
    expect(page.locator("#words")).to_contain_text("This is not a recording")
    assert findings_in_all_colours(page) == []


def test_a_player_that_has_not_started(server: RunningServer, page: Page) -> None:
    page.route(PLAYER_SCRIPT, lambda route: None)  # never answered
    page.goto(server.player_url("any.cast"), wait_until="commit")
    page.wait_for_selector("#stuck", state="attached")
    page.evaluate("document.getAnimations().forEach((animation) => animation.finish())")
    expect(page.locator("#stuck")).to_be_visible()
    expect(page.locator("#title")).not_to_be_empty()
    expect(page.get_by_role("button", name="Colours")).to_be_visible()  # the words have come
    assert findings_in_all_colours(page) == []
