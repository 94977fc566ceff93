"""Text search in what a recording showed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from recorder import Recorder, recording_path
from tests.support import RunningServer
from tests.test_pages import until
from tests.test_player_page import PLAYER, cast, play, player_text

STEP_SECONDS = 10


def record(server: RunningServer, *pieces: bytes) -> str:
    """A recording of these pieces of output, ten seconds between them; returns its name."""
    path = recording_path(server.config.record_path, "searched")
    recorder = Recorder(path, 80, 24, title="searched")
    for piece in pieces:
        recorder.output(piece)
    recorder.close()
    stretch(path)
    return str(path)


def stretch(path: Path) -> None:
    header, *events = path.read_text().splitlines()
    late = [[index * STEP_SECONDS, *json.loads(event)[1:]] for index, event in enumerate(events)]
    path.write_text("\n".join([header, *map(json.dumps, late), ""]))


def search(page: Page, text: str) -> None:
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_label("Search in what was shown").fill(text)


def count(page: Page, text: str) -> None:
    expect(page.locator("#search-count")).to_have_text(text)


def open_recording(server: RunningServer, page: Page, *pieces: bytes) -> None:
    page.goto(server.player_url(record(server, *pieces)))
    page.get_by_role("button", name="Pause").click()


def test_matches_are_jumped_to_one_after_the_other(server: RunningServer, page: Page) -> None:
    open_recording(server, page, b"start\r\n", b"a needle\r\n", b"hay\r\n", b"Needle two\r\n", b"end\r\n")
    search(page, "needle")
    count(page, "2 found")
    page.keyboard.press("Enter")
    count(page, "1 of 2")
    expect(page.locator("#search-line")).to_have_text("a needle")
    expect(page.locator("#elapsed")).to_have_text("00:10 of 00:40")
    player_text(page, "a needle")
    expect(page.locator("#player .ap-term")).not_to_contain_text("hay")
    page.keyboard.press("Enter")
    count(page, "2 of 2")
    expect(page.locator("#elapsed")).to_have_text("00:30 of 00:40")
    player_text(page, "Needle two")
    page.keyboard.press("Enter")  # round
    count(page, "1 of 2")
    page.keyboard.press("Shift+Enter")
    count(page, "2 of 2")
    page.get_by_role("button", name="Previous match").click()
    count(page, "1 of 2")
    page.get_by_role("button", name="Next match").click()
    count(page, "2 of 2")


def test_the_first_jump_is_from_the_moment_that_is_shown(server: RunningServer, page: Page) -> None:
    open_recording(server, page, b"needle\r\n", b"hay\r\n", b"needle\r\n", b"needle\r\n")
    page.evaluate(f"{PLAYER}.seek('50%')")
    expect(page.locator("#elapsed")).to_have_text("00:15 of 00:30")
    search(page, "needle")
    page.keyboard.press("Enter")
    count(page, "2 of 3")
    search_again = page.get_by_label("Search in what was shown")
    search_again.fill("needl")
    page.keyboard.press("Shift+Enter")
    count(page, "1 of 3")


def test_what_was_found_is_marked_in_the_picture(server: RunningServer, page: Page) -> None:
    open_recording(server, page, b"start\r\n", b"a \x1b[31mNee\x1b[32mdle\x1b[0m and a needle\r\n", b"end\r\n")
    search(page, "needle")
    page.keyboard.press("Enter")
    marked = "[...CSS.highlights.get('found')].map(String).join()"
    until(page, f"{marked} === 'Needle,needle'")
    page.keyboard.press("Escape")
    until(page, f"{marked} === ''")


def test_a_jump_pauses(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0, "o", "start"], [500, "o", " needle"], [1000, "o", " end"]))
    page.get_by_label("Pauses").select_option(label="In full")
    until(page, f"{PLAYER}.getDuration() === 1000")
    search(page, "needle")
    page.keyboard.press("Enter")
    player_text(page, "needle")
    expect(page.get_by_role("button", name="Play")).to_have_count(1)
    assert page.evaluate(f"{PLAYER}.getCurrentTime()") == pytest.approx(500, abs=0.01)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ((b"kub", b"ectl del", b"ete"), "kubectl delete"),
        ((b"\x1b[31mkub\x1b[0m\x1b[1;32mectl",), "kubectl"),
        ((b"kub\x1b", b"[3", b"1mectl"), "kubectl"),
        ((b"kub\x1b]8;;https://x.example\x1b\\ectl\x1b]8;;\x1b\\",), "kubectl"),
        ((b"kub\x1b]0;a title", b" in two\x1b", b"\\ectl"), "kubectl"),
        ((b"kub\x1b]0;a title", b" in two\x07ectl"), "kubectl"),
        ((b"kub\x1bPq" + b"#" * 5000, b"#" * 5000 + b"\x1b\\ectl"), "kubectl"),
        ((b"kub\x1b]0;cut\x1b[1mectl",), "kubectl"),
        ((b"kub\x1b(Bectl\x1b=",), "kubectl"),
        ((b"kubx", b"\b\x1b[K", b"ectl"), "kubectl"),
        ((b"kub\x00\x07ectl",), "kubectl"),
        ((b"get\x1b[Cpods\x1b[1Cnow",), "get pods now"),
        (("gr\u00fc\u00dfe \u4f60\u597d".encode(),), "GR\u00dc\u00dfE \u4f60\u597d"),
        ((b"a.b*c(d)[e]{f}|g^$\\h/",), ".b*c(d)[e]{f}|g^$\\h/"),
    ],
)
def test_what_was_shown_is_found(server: RunningServer, page: Page, pieces: tuple[bytes, ...], text: str) -> None:
    open_recording(server, page, b"prompt$ ", *pieces, b" end")
    search(page, text)
    count(page, "1 found")


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ((b"\x1b]0;a title\x07",), "title"),
        ((b"\x1b]0;a ti", b"tle\x07"), "tle"),
        ((b"\x1b[31m",), "31m"),
        ((b"\x1b[3", b"1m"), "1m"),
        ((b"one\r\ntwo",), "onetwo"),
        ((b"one\x1b[5;5Htwo",), "onetwo"),
        ((b"10%\r20%",), "10%20%"),
        ((b"axc",), "a.c"),
        ((b"seen\b\b\b\b\x1b[K",), "seen"),
    ],
)
def test_what_was_not_shown_is_not(server: RunningServer, page: Page, pieces: tuple[bytes, ...], text: str) -> None:
    open_recording(server, page, b"prompt$ ", *pieces, b" end")
    search(page, text)
    count(page, "Not found")
    page.keyboard.press("Enter")
    count(page, "Not found")


def test_keys_open_and_close_it(server: RunningServer, page: Page) -> None:
    open_recording(server, page, b"start", b" end")
    box = page.get_by_label("Search in what was shown")
    for key in ("/", "Control+f"):
        page.keyboard.press(key)
        expect(box).to_be_focused()
        expect(box).to_have_value("")
        expect(page.get_by_role("button", name="Search", exact=True)).to_have_attribute("aria-expanded", "true")
        page.keyboard.press("Escape")
        expect(box).to_be_hidden()
        expect(page.locator(".ap-wrapper")).to_be_focused()


def test_another_search_takes_the_place_of_the_first(server: RunningServer, page: Page) -> None:
    open_recording(server, page, b"one\r\n", b"two\r\n", b"two\r\n")
    search(page, "one")
    count(page, "1 found")
    page.get_by_label("Search in what was shown").fill("two")
    page.keyboard.press("Enter")  # not waiting until the typing is over
    count(page, "1 of 2")
    page.get_by_label("Search in what was shown").fill("  ")
    count(page, "")


def test_the_number_of_matches_is_bounded(server: RunningServer, page: Page) -> None:
    play(server, page, cast(*([index, "o", "needle "] for index in range(1500))))
    search(page, "needle")
    count(page, "1000 or more found")
    page.keyboard.press("Shift+Enter")
    expect(page.locator("#search-count")).to_contain_text("of 1000 or more")


def test_a_search_that_takes_long_leaves_the_page_alive_and_can_be_replaced(server: RunningServer, page: Page) -> None:
    hay = b"\x1b[1mhay \x1b[0m" * 5000
    open_recording(server, page, b"needle", *[hay] * 250, b"end")
    page.evaluate(
        """() => {
            window.said = [];
            const [count, box] = ["count", "text"].map((name) => document.querySelector(`#search-${name}`));
            new MutationObserver(() => {
                if (window.said.push(count.textContent) !== 1) return; // its first progress
                box.value = "needle";
                box.dispatchEvent(new Event("input"));
            }).observe(count, { childList: true });
        }"""
    )
    search(page, "nothing of the kind")
    count(page, "1 found")
    said = page.evaluate("window.said")
    assert said[0].startswith("Searching, ")
    assert "Not found" not in said
