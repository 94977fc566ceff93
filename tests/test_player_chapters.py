"""The chapters beside a recording: commands with their exit codes, and the server's own words."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support import RunningServer
from tests.test_accessibility import PHONE, SCREENS, findings_in_all_colours
from tests.test_pages import until
from tests.test_player_page import PLAYER, cast, fulfil, page_of, play, player_text

SESSION = cast(
    [0.5, "o", "prompt"],
    [1, "m", "$ make"],
    [1, "o", " made"],
    [2, "d", "0"],
    [100, "m", "the browser was lost"],
    [100, "o", " lost"],
    [200, "m", "$ kubectl delete pod cart"],
    [200, "o", " deleted"],
    [201, "d", "1"],
    [300, "m", "$ sleep 9"],
    [300, "o", " slept"],
)


def rows(page: Page) -> Locator:
    return page.get_by_role("listbox").get_by_role("option")


def lit(page: Page) -> Locator:
    return page.get_by_role("listbox").get_by_role("option", selected=True)


def elapsed(page: Page, text: str) -> None:
    expect(page.locator("#elapsed")).to_have_text(text)


def picture_ends_with(page: Page, text: str) -> None:
    page.wait_for_function(
        "(text) => document.querySelector('#player .ap-term-text')?.textContent.trimEnd().endsWith(text)", arg=text
    )


def many(count: int) -> str:
    """A recording of that many commands, one a second, of which every tenth fails."""
    events: list[list[Any]] = [[0, "o", "start"]]
    for number in range(1, count + 1):
        events += [[number, "m", f"$ command {number}"], [number + 0.5, "d", "0" if number % 10 else "7"]]
    return cast(*events, [count + 1, "o", " end"])


def test_commands_are_listed_with_time_and_exit_code(server: RunningServer, page: Page) -> None:
    play(server, page, SESSION)
    expect(rows(page)).to_have_text(
        [
            "00:01 make exit 0",
            "01:40 the browser was lost ",
            "03:20 kubectl delete pod cart \u2715 exit 1",
            "05:00 sleep 9 ",  # still running at the end
        ]
    )
    expect(page.locator(".chapters-count")).to_have_text("4 chapters, 1 failed")
    expect(page.locator(".chapter.words")).to_have_count(1)


def test_a_click_jumps_there_with_pauses_cut(server: RunningServer, page: Page) -> None:
    play(server, page, SESSION)
    page.get_by_role("button", name="Pause").click()
    rows(page).nth(2).click()
    picture_ends_with(page, "deleted")
    elapsed(page, "03:20 of 05:00")
    expect(lit(page)).to_contain_text("delete pod")
    rows(page).first.click()
    picture_ends_with(page, "made")
    elapsed(page, "00:01 of 05:00")
    expect(lit(page)).to_contain_text("make")


def test_a_jump_while_it_plays_plays_on(server: RunningServer, page: Page) -> None:
    play(server, page, SESSION)
    page.get_by_label("Pauses").select_option(label="In full")
    rows(page).nth(2).click()
    until(page, f"{PLAYER}.getCurrentTime() > 200.2")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_brackets_go_from_chapter_to_chapter(server: RunningServer, page: Page) -> None:
    play(server, page, SESSION)
    page.get_by_role("button", name="Pause").click()
    rows(page).nth(1).click()
    elapsed(page, "01:40 of 05:00")
    for key, there in (("]", "03:20"), ("]", "05:00"), ("]", "05:00"), ("[", "03:20"), ("[", "01:40"), ("[", "00:01")):
        page.keyboard.press(key)
        elapsed(page, f"{there} of 05:00")
    page.keyboard.press("[")
    elapsed(page, "00:00 of 05:00")


def test_brackets_in_a_box_are_text(server: RunningServer, page: Page) -> None:
    play(server, page, many(20))
    page.get_by_label("Filter the chapters").press_sequentially("[x]?/")
    expect(page.get_by_label("Filter the chapters")).to_have_value("[x]?/")
    expect(page.locator("#search")).to_be_hidden()


def test_the_current_chapter_follows_the_picture(server: RunningServer, page: Page) -> None:
    play(server, page, SESSION)
    expect(lit(page)).to_contain_text("make")
    page.get_by_label("Speed").select_option("8")
    expect(lit(page)).to_contain_text("sleep 9")


def test_a_filter_finds_commands_and_brackets_keep_to_it(server: RunningServer, page: Page) -> None:
    play(server, page, many(100))
    page.get_by_role("button", name="Pause").click()
    page.get_by_label("Filter the chapters").fill("COMMAND 5")
    expect(page.locator(".chapters-count")).to_have_text("11 of 100 chapters")
    page.get_by_role("button", name="Failed").click()
    expect(rows(page)).to_have_text(["00:50 command 50 \u2715 exit 7"])
    page.get_by_label("Filter the chapters").fill("")
    expect(page.locator(".chapters-count")).to_have_text("10 of 100 chapters")
    rows(page).first.click()
    page.keyboard.press("]")
    elapsed(page, "00:20 of 01:41")
    page.get_by_role("button", name="Failed").click()
    expect(page.locator(".chapters-count")).to_have_text("100 chapters, 10 failed")
    page.get_by_label("Filter the chapters").fill("nothing")
    expect(page.locator(".chapters-count")).to_have_text("None of 100 chapters")


def test_ten_thousand_chapters_cost_what_a_few_do(server: RunningServer, page: Page) -> None:
    play(server, page, many(10_000))
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".chapters-count")).to_have_text("10000 chapters, 1000 failed")
    assert 10 < rows(page).count() < 60
    assert 250 < page.locator("#ticks i").count() <= 500
    page.get_by_role("listbox").focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    elapsed(page, "02:46:40 of 02:46:41")
    expect(lit(page)).to_contain_text("command 10000")
    expect(lit(page)).to_have_attribute("aria-posinset", "10000")
    expect(lit(page)).to_be_in_viewport()
    assert rows(page).count() < 60


def test_the_list_is_used_by_keyboard(server: RunningServer, page: Page) -> None:
    play(server, page, SESSION)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("listbox").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    active = page.locator(".chapter.active")
    expect(active).to_contain_text("delete pod")
    expect(page.get_by_role("listbox")).to_have_attribute("aria-activedescendant", active.get_attribute("id") or "")
    page.keyboard.press("Space")
    elapsed(page, "03:20 of 05:00")
    expect(page.get_by_role("listbox")).to_be_focused()
    expect(page.get_by_role("button", name="Play")).to_have_count(1)


def test_what_ends_no_command_is_passed_over(server: RunningServer, page: Page) -> None:
    early, twice, nonsense = [0.5, "d", "3"], [3, "d", "4"], [1.5, "d", "1e9"]
    play(server, page, cast(early, [1, "m", "$ a"], nonsense, [2, "d", "0"], twice, [4, "o", "end"]))
    expect(rows(page)).to_have_text(["00:01 a exit 0"])


def test_a_label_is_text(server: RunningServer, page: Page) -> None:
    play(server, page, cast([1, "m", "$ <img src=x>\nsecond"], [2, "o", "end"]))
    expect(rows(page)).to_have_text(["00:01 <img src=x> second "])
    assert page.locator("#chapters img").count() == 0


def test_without_chapters_the_picture_has_the_room(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "a"], [60, "o", "end"]))
    player_text(page, "a")
    expect(page.locator("#chapters")).to_be_hidden()
    expect(page.get_by_role("button", name="Chapters")).to_be_hidden()


def test_the_list_can_be_put_away(server: RunningServer, page: Page) -> None:
    play(server, page, SESSION)
    button = page.get_by_role("button", name="Chapters")
    expect(button).to_have_attribute("aria-expanded", "true")
    width = page.locator("#stage").bounding_box()
    button.click()
    expect(page.locator("#chapters")).to_be_hidden()
    expect(button).to_have_attribute("aria-expanded", "false")
    wider = page.locator("#stage").bounding_box()
    assert width and wider and wider["width"] > width["width"] + 300


def test_on_a_phone_the_list_is_a_sheet_that_a_jump_closes(server: RunningServer, browser: Browser) -> None:
    with page_of(browser, **PHONE) as page:
        play(server, page, SESSION)
        player_text(page, "prompt")
        expect(page.locator("#chapters")).to_be_hidden()
        page.get_by_role("button", name="Chapters").click()
        rows(page).nth(2).click()
        expect(page.locator("#chapters")).to_be_hidden()
        player_text(page, "deleted")
        page.get_by_role("button", name="Chapters").click()
        page.keyboard.press("Escape")
        expect(page.locator("#chapters")).to_be_hidden()
        page.get_by_role("button", name="Chapters").click()
        page.get_by_role("button", name="Close the chapters").click()
        expect(page.locator("#chapters")).to_be_hidden()
        page.get_by_role("button", name="Chapters").click()
        page.mouse.click(180, 100)  # beside it
        expect(page.locator("#chapters")).to_be_hidden()


def test_the_sheet_opens_at_the_current_chapter(server: RunningServer, browser: Browser) -> None:
    with page_of(browser, **PHONE) as page:
        fulfil(page, many(300))
        page.goto(f"{server.player_url('any.cast')}&t=200")
        elapsed(page, "03:20 of 05:01")
        page.get_by_role("button", name="Chapters").click()
        expect(lit(page)).to_contain_text("command 200")
        expect(lit(page)).to_be_in_viewport()


def test_on_a_tablet_the_list_fills_the_page_below(server: RunningServer, browser: Browser) -> None:
    with page_of(browser, viewport={"width": 768, "height": 1024}) as page:
        play(server, page, many(30))
        box = page.locator("#chapters").bounding_box()
        assert box
        assert (box["x"], box["width"], box["y"] + box["height"]) == (0, 768, 1024)
        assert box["height"] > 300


def test_chapters_may_come_one_by_one(server: RunningServer, page: Page) -> None:
    page.goto(f"{server.url}player.html")
    page.evaluate(
        """async () => {
            const { Chapters } = await import("./chapters.js");
            const place = document.createElement("aside");
            place.id = "live";
            document.querySelector("main").append(place);
            window.live = new Chapters(place);
            window.live.onjump = (seconds) => { window.jumped = seconds; };
            window.live.add({ seconds: 3, label: "$ first" });
        }"""
    )
    expect(rows(page)).to_have_text(["00:03 first "])
    page.evaluate("window.live.done(2); window.live.add({ seconds: 7, label: 'words' }); window.live.light(8)")
    expect(rows(page)).to_have_text(["00:03 first \u2715 exit 2", "00:07 words "])
    expect(lit(page)).to_contain_text("words")
    rows(page).first.click()
    assert page.evaluate("window.jumped") == 3


@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing(server: RunningServer, browser: Browser, screen: str) -> None:
    with page_of(browser, **SCREENS[screen]) as page:
        play(server, page, many(40))
        player_text(page, "start")
        page.keyboard.press("/")
        page.keyboard.type("start")
        page.keyboard.press("Enter")
        expect(page.locator("#search-count")).to_have_text("1 of 1")
        if page.locator("#chapters").is_hidden():
            page.get_by_role("button", name="Chapters").click()
        expect(rows(page).first).to_be_visible()
        assert findings_in_all_colours(page) == []
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_be_visible()
        assert findings_in_all_colours(page) == []
