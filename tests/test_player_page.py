"""The player page in a real browser, against the real server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import WAIT_MS
from tests.support import RunningServer
from tests.test_pages import open_terminal, phase, run, until


def player_text(page: Page, text: str) -> None:
    expect(page.locator("#player .ap-term")).to_contain_text(text, timeout=WAIT_MS)


def fulfil(page: Page, body: str) -> None:
    """Answer for the server: with files that it would not write itself."""
    page.route("**/records/play*", lambda route: route.fulfill(body=body, content_type="application/x-asciicast"))


def cast(*events: list[Any]) -> str:
    header = {"version": 2, "width": 80, "height": 24, "timestamp": 1700000000, "title": "demo"}
    return "".join(json.dumps(line) + "\n" for line in (header, *events))


def test_the_player_shows_what_the_terminal_showed(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "printf 'recorded-%s \\344\\275\\240\\345\\245\\275 \\360\\237\\216\\211\\n' $((1 + 1)); exit")
    phase(page, "ended")
    page.goto(server.player_url(server.recordings()[-1]))
    page.get_by_label("Speed").select_option("8")
    player_text(page, "recorded-2 \u4f60\u597d \U0001f389")
    expect(page.locator("#words")).to_be_hidden()
    expect(page.locator("#meta")).to_contain_text("B")


def test_the_download_has_the_name_of_the_file(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    run(page, "exit")
    phase(page, "ended")
    filename = server.recordings()[-1]
    page.goto(server.player_url(filename))
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == filename.rsplit("/", 1)[-1]
    assert download.value.path().read_text().startswith("{")


def test_pauses_are_shortened_as_chosen_and_the_place_is_kept(server: RunningServer, page: Page) -> None:
    fulfil(page, cast([1, "o", "start "], [101, "o", "end"]))
    page.goto(server.player_url("any.cast"))
    player_text(page, "start")
    duration = "document.querySelector('#player').player?.getDuration()"
    until(page, f"{duration} === 3")
    page.get_by_label("Pauses").select_option(label="In full")
    until(page, f"{duration} === 101")
    until(page, "document.querySelector('#player').player.getCurrentTime() >= 1")


def test_a_torn_last_line_is_left_out(server: RunningServer, page: Page) -> None:
    fulfil(page, cast([0.1, "o", "whole"]) + '[0.2, "o", "to')
    page.goto(server.player_url("any.cast"))
    player_text(page, "whole")


def test_markers_are_shown(server: RunningServer, page: Page) -> None:
    fulfil(page, cast([0.1, "o", "a"], [1, "m", "deploy"], [2, "o", "b"]))
    page.goto(server.player_url("any.cast"))
    expect(page.locator("#player .ap-marker")).to_have_count(1)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (cast(), "Nothing was printed"),
        (cast([1, "m", "only a marker"]), "Nothing was printed"),
        (cast([1, "o", "a"]) + "[broken\n" + '[2, "o", "b"]\n', "Line 3 cannot be read"),
        ("<!doctype html>", "This is not a recording"),
        ("", "This is not a recording"),
    ],
)
def test_what_cannot_be_played_is_said_in_words(server: RunningServer, page: Page, body: str, words: str) -> None:
    fulfil(page, body)
    page.goto(server.player_url("any.cast"))
    expect(page.locator("#words")).to_contain_text(words)
    expect(page.get_by_role("link", name="Download")).to_be_visible()


def test_a_missing_recording_is_said_in_words(server: RunningServer, page: Page) -> None:
    page.goto(server.player_url("00/00/00/00/00/00/00/00/missing.cast"))
    expect(page.locator("#words")).to_contain_text("There is no such recording")
    expect(page.locator("#words")).to_contain_text("missing.cast")


def test_a_bad_token_is_said_in_words(server: RunningServer, page: Page) -> None:
    page.goto(f"{server.url}player.html?filename=any.cast&token=wrong")
    expect(page.locator("#words")).to_contain_text("You may not play this recording")
    assert "?" not in page.url  # the token moved to the fragment, which no server sees


def test_an_incomplete_link_is_said_in_words(server: RunningServer, page: Page) -> None:
    page.goto(f"{server.url}player.html")
    expect(page.locator("#words")).to_contain_text("No recording was named")


def test_a_server_out_of_reach_is_said_in_words(server: RunningServer, page: Page) -> None:
    page.route("**/records/play*", lambda route: route.abort())
    page.goto(server.player_url("any.cast"))
    expect(page.locator("#words")).to_contain_text("The server could not be reached")
