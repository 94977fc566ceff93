"""Links to a moment of a recording, what becomes of their tokens, and the clock beside it."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import WAIT_MS
from tests.support import RunningServer
from tests.test_pages import until
from tests.test_player_chapters import picture_ends_with, rows
from tests.test_player_page import PLAYER, cast, fulfil, page_of, play, player_text
from tests.test_player_search import record

NO_STORAGE = "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('denied'); } });"
LONG = cast([0, "o", "start"], [100, "o", " middle"], [3723, "o", " late"], [4000, "o", " end"])


def elapsed(page: Page, text: str) -> None:
    expect(page.locator("#elapsed")).to_have_text(text)


def is_paused(page: Page) -> None:
    expect(page.get_by_role("button", name="Play")).to_have_count(1)


@pytest.mark.parametrize(
    ("t", "shown", "last"),
    [
        ("0", "00:00", "start"),
        ("99.9", "01:39", "start"),  # in a pause that is cut
        ("100", "01:40", "middle"),
        ("3723", "01:02:03", "late"),
        ("1h2m3s", "01:02:03", "late"),
        ("62m3.5s", "01:02:03", "late"),
        ("1h2m2s", "01:02:02", "middle"),
        ("1m", "01:00", "start"),
        ("999999999", "01:06:40", "end"),
    ],
)
def test_a_link_opens_paused_at_its_moment(server: RunningServer, page: Page, t: str, shown: str, last: str) -> None:
    fulfil(page, LONG)
    page.goto(f"{server.player_url('any.cast')}&t={t}")
    picture_ends_with(page, last)
    elapsed(page, f"{shown} of 01:06:40")
    is_paused(page)
    expect(page.locator("#moment-remark")).to_be_hidden()


def test_its_moment_is_one_of_the_recording_however_pauses_are_cut(server: RunningServer, page: Page) -> None:
    fulfil(page, LONG)
    page.goto(f"{server.player_url('any.cast')}&t=1000")
    for pauses in ("In full", "At most 5 s", "At most 1 s", "At most 2 s"):
        elapsed(page, "16:40 of 01:06:40")
        picture_ends_with(page, "middle")
        page.get_by_label("Pauses").select_option(label=pauses)


@pytest.mark.parametrize("t", ["soon", "-5", "1e9", "5m5m", "NaN", "1" * 40, "0x10"])
def test_a_moment_that_is_none_is_said_in_words(server: RunningServer, page: Page, t: str) -> None:
    fulfil(page, LONG)
    page.goto(f"{server.player_url('any.cast')}&t={t}")
    expect(page.locator("#moment-remark")).to_contain_text("cannot be read")
    elapsed(page, "00:00 of 01:06:40")


def test_a_link_can_be_copied_and_holds_no_token(server: RunningServer, page: Page) -> None:
    page.goto(server.player_url(record(server, b"start", b" middle", b" end")))
    page.get_by_role("button", name="Pause").click()
    page.evaluate(f"{PLAYER}.seek('75%')")
    elapsed(page, "00:15 of 00:20")
    page.get_by_role("button", name="Copy link to this moment").click()
    expect(page.locator("#toast")).to_contain_text("no token")
    link = page.evaluate("navigator.clipboard.readText()")
    assert "token=" not in link
    assert link.endswith("&t=15")
    assert page.url == link
    page.goto("about:blank")
    page.goto(link)  # in this tab its token is still known
    elapsed(page, "00:15 of 00:20")
    picture_ends_with(page, "middle")
    is_paused(page)


def test_copying_that_is_not_allowed_leaves_the_link_in_the_address_bar(server: RunningServer, page: Page) -> None:
    page.add_init_script("navigator.clipboard.writeText = async () => { throw new Error('no'); };")
    play(server, page, cast([0, "o", "start"], [1, "o", " end"]))
    picture_ends_with(page, "end")
    page.get_by_role("button", name="Copy link to this moment").click()
    expect(page.locator("#toast")).to_contain_text("in the address bar")
    assert page.url == f"{server.url}player.html#filename=any.cast&t=1"


def test_a_moment_that_was_jumped_to_is_copied_to_the_digit(server: RunningServer, page: Page) -> None:
    play(
        server, page, cast([0, "o", "start"], [83.512345, "m", "$ ls"], [83.512345, "o", " listed"], [200, "o", "end"])
    )
    page.get_by_role("button", name="Pause").click()
    rows(page).first.click()
    picture_ends_with(page, "listed")
    page.get_by_role("button", name="Copy link to this moment").click()
    until(page, "location.hash.endsWith('t=83.512')")
    page.reload()
    picture_ends_with(page, "listed")


@pytest.mark.parametrize("mark", ["?", "#"])
def test_the_token_leaves_the_address_bar_and_a_reload_plays_again(
    server: RunningServer, page: Page, mark: str
) -> None:
    page.goto(server.player_url(record(server, b"start", b" end")).replace("#", mark))
    player_text(page, "start")
    assert "token=" not in page.url
    page.reload()
    player_text(page, "start")


def test_where_nothing_can_be_kept_the_token_stays_in_the_fragment(server: RunningServer, page: Page) -> None:
    page.add_init_script(NO_STORAGE)
    url = server.player_url(record(server, b"start", b" end"))
    page.goto(url.replace("#", "?"))
    player_text(page, "start")
    assert "?" not in page.url
    assert "token=" in page.url
    page.reload()
    player_text(page, "start")


def test_each_recording_has_its_own_token(server: RunningServer, page: Page) -> None:
    name = record(server, b"start", b" end")
    mine, other = server.link_token(filename=name), server.link_token(filename="other.cast")
    page.goto(f"{server.url}player.html#filename={name}&token={mine}")
    player_text(page, "start")
    page.goto(f"{server.url}player.html#filename=other.cast&token={other}")
    expect(page.locator("#words-title")).to_have_text("There is no such recording")
    page.goto(f"{server.url}player.html#filename={name}")
    player_text(page, "start")


@pytest.mark.parametrize("is_link", [False, True])
def test_a_link_without_a_token_asks_for_one(server: RunningServer, browser: Browser, is_link: bool) -> None:
    name = record(server, b"start", b" middle", b" end")
    with page_of(browser) as page:
        page.goto(f"{server.url}player.html#filename={name}&t=10")
        expect(page.locator("#words-title")).to_have_text("This recording needs a token")
        page.get_by_label("Token").fill(server.player_url(name) if is_link else server.link_token())
        page.get_by_role("button", name="Play the recording").click()
        picture_ends_with(page, "middle")
        elapsed(page, "00:10 of 00:20")
        assert "token=" not in page.url


def test_a_token_that_is_refused_can_be_replaced(server: RunningServer, page: Page) -> None:
    name = record(server, b"start", b" end")
    page.goto(f"{server.url}player.html#filename={name}&token=wrong")
    expect(page.locator("#words-title")).to_have_text("You may not play this recording")
    page.get_by_label("Token").fill(server.link_token())
    page.keyboard.press("Enter")
    player_text(page, "start")


def test_another_moment_of_the_same_recording_is_shown_at_once(server: RunningServer, page: Page) -> None:
    play(server, page, LONG)
    player_text(page, "start")
    page.evaluate("window.same = true")
    page.evaluate("location.hash = '#filename=any.cast&t=1h2m3s'")
    picture_ends_with(page, "late")
    elapsed(page, "01:02:03 of 01:06:40")
    is_paused(page)
    assert page.evaluate("window.same")
    page.evaluate("location.hash = '#filename=other.cast&t=1h2m3s'")
    until(page, "!window.same")


# ---- The clock ----


def test_the_clock_tells_date_time_and_zone_of_the_moment(server: RunningServer, browser: Browser) -> None:
    with page_of(browser, timezone_id="Asia/Shanghai", locale="en-GB") as page:
        fulfil(page, LONG)
        page.goto(f"{server.player_url('any.cast')}&t=1h2m3s")
        clock = page.locator("#clock")
        expect(clock).to_have_text("15 Nov 2023, 07:15:23 GMT+8", timeout=WAIT_MS)
        expect(clock).to_have_attribute("title", "2023-11-14 23:15:23 UTC")
        expect(clock).to_have_attribute("datetime", "2023-11-14T23:15:23.000Z")


def test_the_clock_runs_as_it_plays(server: RunningServer, page: Page) -> None:
    play(server, page, LONG)
    page.get_by_label("Speed").select_option("8")
    elapsed(page, "01:06:40 of 01:06:40")
    expect(page.locator("#clock")).to_have_attribute("title", "2023-11-14 23:20:00 UTC")


@pytest.mark.parametrize("timestamp", [None, "soon", 1e300, 8.64e12])
def test_without_a_date_there_is_only_the_time_that_went_by(
    server: RunningServer, page: Page, timestamp: object
) -> None:
    play(server, page, cast([0, "o", "start"], [1, "o", " end"], timestamp=timestamp))
    picture_ends_with(page, "end")
    elapsed(page, "00:01 of 00:01")
    expect(page.locator("#clock")).to_be_hidden()


def test_the_name_of_the_file_is_told(server: RunningServer, page: Page) -> None:
    fulfil(page, LONG)
    page.goto(server.player_url("ab/cd/session-7.cast"))
    expect(page.locator("#meta")).to_contain_text("session-7.cast")


# ---- Keys ----


def test_all_keys_are_listed(server: RunningServer, page: Page) -> None:
    play(server, page, LONG)
    player_text(page, "start")
    page.keyboard.press("?")
    for key in ("Space", "[", "/", "f", "Esc"):
        expect(page.get_by_role("dialog").get_by_text(key, exact=True).first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Keys", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator(".ap-overlay-help")).to_be_hidden()


def test_the_players_keys_work_where_nothing_has_the_focus(server: RunningServer, page: Page) -> None:
    play(server, page, LONG)
    player_text(page, "start")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    is_paused(page)
    page.keyboard.press("0")
    elapsed(page, "00:00 of 01:06:40")
