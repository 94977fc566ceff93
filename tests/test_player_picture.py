"""How large the player's picture is on which screen, in which colours, and the one row of controls below it."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support import RunningServer
from tests.test_accessibility import PHONE, SCREENS, TABLET
from tests.test_live_page import badge, live_page, terminal
from tests.test_pages import until
from tests.test_player_chapters import many
from tests.test_player_page import PLAYER, cast, fulfil, page_of, play, player_text

__all__ = ["terminal"]
WIDE = cast([0.1, "o", "x" * 119 + "|"], [60, "o", "end"], width=120, height=34)
TEXT_PX = "parseFloat(getComputedStyle(document.querySelector('.ap-player')).fontSize)"
TERM = "document.querySelector('.ap-term').getBoundingClientRect()"
READABLE_PX = 10


def is_chosen(page: Page, name: str) -> None:
    for button in ("Fit", "100 %"):
        expect(page.get_by_role("button", name=button)).to_have_attribute("aria-pressed", str(button == name).lower())


@pytest.mark.parametrize("screen", SCREENS)
def test_all_text_can_be_read_and_all_controls_reached(server: RunningServer, browser: Browser, screen: str) -> None:
    with page_of(browser, **SCREENS[screen]) as page:
        play(server, page, WIDE)
        player_text(page, "|")
        until(page, "document.querySelector('[aria-pressed=true]')")
        assert page.evaluate(TEXT_PX) >= READABLE_PX
        for control in page.locator("#transport :is(button, select, input):visible").all():
            expect(control).to_be_in_viewport(ratio=1)
        assert page.evaluate("document.documentElement.scrollWidth") == SCREENS[screen]["viewport"]["width"]
        assert page.locator("#stage").bounding_box()["height"] > 400  # type: ignore[index]


@pytest.mark.parametrize("size", [(1440, 900), (1200, 500), (768, 1024)])
def test_a_fitted_picture_is_seen_whole_and_fills_the_page_in_one_direction(
    server: RunningServer, page: Page, size: tuple[int, int]
) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    play(server, page, WIDE)
    player_text(page, "|")
    page.get_by_role("button", name="Fit").click()
    filled = f"Math.max({TERM}.width / {{0}}.clientWidth, {TERM}.height / {{0}}.clientHeight)"
    until(page, f"Math.abs({filled.replace('{0}', 'document.querySelector(`#player`)')} - 1) < 0.01")
    whole = "((box) => [box.scrollWidth - box.clientWidth, box.scrollHeight - box.clientHeight])"
    assert max(page.evaluate(f"{whole}(document.querySelector('#player'))")) <= 1


def test_a_small_terminal_is_not_blown_up(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "start"], [60, "o", "end"], width=20, height=5))
    player_text(page, "start")
    is_chosen(page, "Fit")
    assert page.evaluate(TEXT_PX) == 24


def test_the_switch_shows_the_text_in_its_full_size_and_back(server: RunningServer, page: Page) -> None:
    play(server, page, WIDE)
    player_text(page, "|")
    is_chosen(page, "Fit")
    page.evaluate(f"window.before = {PLAYER}")
    page.get_by_role("button", name="100 %").click()
    is_chosen(page, "100 %")
    until(page, f"{TEXT_PX} === 15")
    page.set_viewport_size({"width": 500, "height": 700})
    page.get_by_role("button", name="Fit").click()
    is_chosen(page, "Fit")
    until(page, f"{TERM}.width <= 500 && {TERM}.width > 490")
    page.set_viewport_size({"width": 1000, "height": 900})
    until(page, f"{TERM}.width <= 1000 && {TERM}.width > 990")
    assert page.evaluate(f"window.before === {PLAYER}")


def test_a_terminal_that_changes_its_size_stays_fitted(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "start"], [0.2, "r", "200x20"], [60, "o", "end"]))
    player_text(page, "start")
    until(page, f"Math.abs({TERM}.width - document.querySelector('#player').clientWidth) < 5")


def test_on_a_phone_the_text_scrolls_at_its_full_size(server: RunningServer, browser: Browser) -> None:
    with page_of(browser, **PHONE) as page:
        play(server, page, cast([0.1, "o", "x" * 79 + "|"], [60, "o", "end"]))
        player_text(page, "|")
        is_chosen(page, "100 %")
        page.evaluate("document.querySelector('#player').scrollTo(9999, 0)")
        assert page.evaluate(f"{TERM}.right") < 376 < page.evaluate(f"{TERM}.width")
        page.get_by_role("button", name="Fit").click()
        until(page, f"{TERM}.width <= 375")


def test_a_phone_on_its_side_shows_the_picture_above_all(server: RunningServer, browser: Browser) -> None:
    with page_of(browser, viewport={"width": 700, "height": 375}, has_touch=True, is_mobile=True) as page:
        play(server, page, cast([0.1, "o", "x" * 79 + "|"], [1, "m", "$ ls"], [60, "o", "end"]))
        player_text(page, "|")
        is_chosen(page, "100 %")
        stage = page.locator("#stage").bounding_box()
        assert stage and stage["height"] > 250
        for control in page.locator("#transport :is(button, input):visible").all():
            expect(control).to_be_in_viewport(ratio=1)


def test_on_a_tablet_the_chapters_take_the_room_that_the_picture_leaves(
    server: RunningServer, browser: Browser
) -> None:
    with page_of(browser, **TABLET) as page:
        play(server, page, many(30))
        player_text(page, "start")
        until(page, f"Math.abs({TERM}.width - 768) < 2")
        player, chapters = (page.locator(name).bounding_box() for name in ("#player", "#chapters"))
        assert player and chapters
        assert player["height"] - page.evaluate(f"{TERM}.height") < 3  # nothing is left empty below it
        assert chapters["y"] + chapters["height"] == 1024


# ---- The controls ----


def test_the_slider_jumps(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0, "o", "start "], [10, "o", "middle "], [1000, "o", "end"]))
    page.get_by_role("button", name="Pause").click()
    slider = page.get_by_role("slider")
    box = slider.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    player_text(page, "middle")  # half of what is played, not of the time that went by: pauses are cut
    expect(page.locator("#elapsed")).to_have_text("00:10 of 16:40")
    slider.focus()
    page.keyboard.press("End")
    player_text(page, "end")
    expect(slider).to_have_attribute("aria-valuetext", "16:40 of 16:40")


def test_the_buttons_step_through_the_chapters(server: RunningServer, page: Page) -> None:
    fulfil(page, many(30))
    page.goto(f"{server.player_url('any.cast')}&t=0")
    for name, elapsed in (("Next", "00:01"), ("Next", "00:02"), ("Previous", "00:01")):
        page.get_by_role("button", name=f"{name} chapter").click()
        expect(page.locator("#elapsed")).to_have_text(f"{elapsed} of 00:31")


def test_there_is_one_set_of_controls(server: RunningServer, page: Page) -> None:
    play(server, page, WIDE)
    player_text(page, "|")
    assert page.locator(".ap-control-bar").count() == 0


def test_full_screen_takes_the_controls_along(server: RunningServer, page: Page) -> None:
    play(server, page, WIDE)
    player_text(page, "|")
    page.keyboard.press("f")
    until(page, "document.fullscreenElement === document.querySelector('#picture')")
    expect(page.get_by_role("button", name="Pause")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("button", name="Full screen")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Full screen").click()
    until(page, "!document.fullscreenElement")


# ---- Colours ----


def test_other_colours_keep_the_place(server: RunningServer, page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    play(server, page, cast([0.1, "o", "\x1b[31mred\x1b[0m"], [60, "o", "end"]))
    player_text(page, "red")
    page.get_by_role("button", name="Pause").click()
    red = page.get_by_text("red", exact=True)
    expect(red).to_have_css("color", "rgb(245, 132, 132)")
    page.get_by_role("button", name="Colours").click()
    expect(red).to_have_css("color", "rgb(196, 35, 47)")
    expect(page.locator(".ap-player")).to_have_css("background-color", "rgb(255, 255, 255)")
    expect(page.get_by_role("button", name="Play")).to_have_count(1)


# ---- The live view ----


@pytest.mark.parametrize("screen", SCREENS)
def test_commands_are_listed_as_they_come(server: RunningServer, terminal: Any, browser: Browser, screen: str) -> None:
    recorder = server.server.sessions.all()[0]._output.recorder  # type: ignore[union-attr]
    with page_of(browser, **SCREENS[screen]) as page:
        page.goto(live_page(server))
        player_text(page, "ready")
        expect(page.get_by_role("button", name="Chapters")).to_be_hidden()
        recorder.marker("$ make test")
        recorder.marker("= 2")
        recorder.marker("$ make")
        button = page.get_by_role("button", name="Chapters")
        expect(button).to_have_attribute("aria-expanded", str(screen != "phone").lower())
        if screen == "phone":
            button.tap()
        rows = page.locator("#chapters [role=option]")
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text("make test")
        expect(rows.last).to_have_attribute("aria-selected", "true")
        assert "token=" not in page.url
        page.keyboard.press("Escape")
        expect(page.locator("#chapters")).to_be_visible(visible=screen != "phone")


def test_what_is_watched_changes_its_colours_and_goes_on(server: RunningServer, terminal: Any, page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto(live_page(server))
    player_text(page, "ready")
    page.get_by_role("button", name="Colours").click()
    expect(page.locator(".ap-player")).to_have_css("background-color", "rgb(255, 255, 255)")
    terminal.type(" again")
    player_text(page, "again")
    badge(page, "Live")
    expect(page.locator(".ap-player")).to_have_count(1)
