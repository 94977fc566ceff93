"""The player page in a real browser, against the real server."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

import jumpserver
from recorder import recording_path
from tests.conftest import WAIT_MS
from tests.support import RunningServer
from tests.test_pages import open_terminal, phase, run, until

PLAYER = "document.querySelector('#player').player"
PLAYER_SCRIPT = "**/asciinema-player.min.js"


def player_text(page: Page, text: str) -> None:
    expect(page.locator("#player .ap-term")).to_contain_text(text, timeout=WAIT_MS)


def fulfil(page: Page, body: str) -> None:
    """Answer for the server: with files that it would not write itself."""
    page.route("**/records/play*", lambda route: route.fulfill(body=body, content_type="application/x-asciicast"))


def cast(*events: list[Any], **header: Any) -> str:
    values = {"version": 2, "width": 80, "height": 24, "timestamp": 1700000000, "title": "demo", **header}
    return "".join(json.dumps(line) + "\n" for line in (values, *events))


def play(server: RunningServer, page: Page, body: str) -> None:
    fulfil(page, body)
    page.goto(server.player_url("any.cast"))


@contextlib.contextmanager
def page_of(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page of which scripts may fail, in a browser with these settings."""
    context = browser.new_context(**options)
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


def said_with_download(page: Page, words: str) -> None:
    expect(page.locator("#words")).to_contain_text(words)
    expect(page.get_by_role("link", name="Download")).to_be_visible()
    expect(page.locator("#player")).to_be_hidden()


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
    expect(page.locator("#ticks i")).to_have_count(1)


def test_other_events_than_those_of_the_terminal_do_no_harm(server: RunningServer, page: Page) -> None:
    play(server, page, RAW_BYTES)
    player_text(page, "before \ufffd\ufffd after")
    until(page, f"{PLAYER}.getDuration() === 0.4")


# Output that was not UTF-8 is recorded twice: as it can be shown, then as it came.
RAW_BYTES = cast(
    [0.1, "o", "before "],
    [0.2, "o", "\ufffd\ufffd"],
    [0.2, "b", base64.b64encode(b"\xc4\xe3").decode()],
    [0.3, "r", "90x25"],
    [0.4, "o", " after"],
)


def test_such_events_do_no_harm_to_asciinema_player_alone(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "first"]))
    player_text(page, "first")
    page.evaluate(
        """(data) => {
            document.querySelector("#player").player.dispose();
            window.alone = AsciinemaPlayer.create({ data }, document.querySelector("#player"), { autoPlay: true });
            window.alone.addEventListener("ended", () => { window.done = true; });
        }""",
        RAW_BYTES,
    )
    until(page, "window.done")
    player_text(page, "before \ufffd\ufffd after")
    assert page.evaluate("window.alone.getDuration()") == 0.4


@pytest.mark.parametrize("command", ["cat", "play"])
def test_such_events_do_no_harm_to_asciinemas_cli(tmp_path: Path, command: str) -> None:
    (tmp_path / "a.cast").write_text(RAW_BYTES)
    program = [sys.executable, "-m", "asciinema", command, str(tmp_path / "a.cast")]
    environment = {**os.environ, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(program, capture_output=True, env=environment, timeout=60, start_new_session=True)
    assert (done.returncode, done.stdout.decode()) == (0, "before \ufffd\ufffd after")


# ---- What stays, what is told ----


def test_another_speed_while_paused_stays_paused(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "start "], [60, "o", "end"]))
    player_text(page, "start")
    page.get_by_role("button", name="Pause").click()
    at = page.evaluate(f"{PLAYER}.getCurrentTime()")
    page.evaluate(f"window.before = {PLAYER}")
    page.get_by_label("Speed").select_option("8")
    until(page, f"{PLAYER} !== window.before && {PLAYER}.getCurrentTime() > 0")
    player_text(page, "start")
    expect(page.get_by_role("button", name="Play")).to_have_count(1)  # and no large one over the picture
    assert page.evaluate(f"{PLAYER}.getCurrentTime()") == pytest.approx(at, abs=0.001)
    page.get_by_role("button", name="Play").click()
    until(page, f"{PLAYER}.getCurrentTime() > {at}")


def test_another_speed_while_it_plays_plays_on(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "start "], [60, "o", "end"]))
    player_text(page, "start")
    page.get_by_label("Pauses").select_option(label="In full")
    page.get_by_label("Speed").select_option("8")
    until(page, f"{PLAYER}.getCurrentTime() > 8")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_the_place_is_kept_however_quickly_controls_change(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0, "o", "start "], [50, "o", "middle "], [200, "o", "end"]))
    page.get_by_label("Pauses").select_option(label="In full")
    until(page, f"{PLAYER}.getDuration() === 200")
    page.evaluate(f"{PLAYER}.seek(100)")
    until(page, f"{PLAYER}.getCurrentTime() >= 100")
    page.get_by_label("Speed").focus()
    page.evaluate("for (let i = 0; i < 5; i += 1) document.activeElement.dispatchEvent(new Event('change'))")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    until(page, f"{PLAYER}.getCurrentTime() >= 101")
    assert page.evaluate(f"{PLAYER}.getCurrentTime()") < 110
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    player_text(page, "start middle")
    expect(page.locator("#words")).to_be_hidden()


def test_another_speed_at_the_end_stays_there(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "start "], [0.2, "o", "end"]))
    player_text(page, "start end")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    page.evaluate(f"window.before = {PLAYER}")
    page.get_by_label("Speed").select_option("0.5")
    until(page, f"{PLAYER} !== window.before && {PLAYER}.getCurrentTime() === 0.2")
    player_text(page, "start end")
    expect(page.get_by_role("button", name="Play")).to_have_count(1)


def test_a_place_inside_a_pause_that_is_cut_is_kept(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0, "o", "start "], [100, "o", "middle "], [200, "o", "end"]))
    page.get_by_label("Pauses").select_option(label="In full")
    until(page, f"{PLAYER}.getDuration() === 200")
    page.get_by_role("button", name="Pause").click()
    page.evaluate(f"{PLAYER}.seek(150)")
    until(page, f"{PLAYER}.getCurrentTime() === 150")
    page.get_by_label("Pauses").select_option(label="At most 2 s")
    until(page, f"{PLAYER}.getDuration() === 4 && {PLAYER}.getCurrentTime() === 3")
    page.get_by_label("Pauses").select_option(label="At most 5 s")
    until(page, f"{PLAYER}.getDuration() === 10")
    player_text(page, "start middle")
    expect(page.locator("#player .ap-term")).not_to_contain_text("end")
    page.get_by_label("Pauses").select_option(label="In full")
    until(page, f"{PLAYER}.getCurrentTime() === 150")


def test_the_total_is_what_the_clock_counts_to(server: RunningServer, page: Page) -> None:
    play(server, page, cast([1, "o", "start "], [3725.9, "o", "end"]))
    meta = page.locator("#meta")
    expect(meta).to_contain_text("00:03 (01:02:05 with all pauses)")
    until(page, f"{PLAYER}.getCurrentTime() === {PLAYER}.getDuration()")
    assert page.get_by_role("slider").evaluate("(slider) => Number(slider.max)") == pytest.approx(3)
    page.get_by_label("Pauses").select_option(label="In full")
    expect(meta).to_contain_text("\u00b7 01:02:05 \u00b7")
    expect(page.locator("#elapsed")).to_have_text("01:02:05 of 01:02:05")
    until(page, "document.querySelector('#seek').max > 3700")


def test_the_date_has_seconds_and_zone(server: RunningServer, browser: Browser) -> None:
    with page_of(browser, timezone_id="Asia/Shanghai", locale="en-GB") as page:
        play(server, page, cast([0.1, "o", "a"]))
        expect(page.locator("#meta")).to_contain_text("15 Nov 2023, 06:13:20 GMT+8")


@pytest.mark.parametrize("timestamp", [None, "soon", 1e300])
def test_a_date_that_is_none_is_left_out(server: RunningServer, page: Page, timestamp: object) -> None:
    play(server, page, cast([0.1, "o", "a"], timestamp=timestamp))
    expect(page.locator("#meta")).to_have_text(re.compile(r"^00:00 \u00b7"))


def test_a_control_that_is_changed_keeps_the_focus(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "start "], [60, "o", "end"]))
    player_text(page, "start")
    for label in ("Speed", "Pauses"):
        page.get_by_label(label).focus()
        page.keyboard.press("ArrowDown")
        expect(page.get_by_label(label)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Fit")).to_be_focused()


def test_the_player_is_used_by_keyboard(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "start "], [60, "o", "end"]))
    player_text(page, "start")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    page.keyboard.press("5")
    until(page, f"{PLAYER}.getCurrentTime() * 2 === {PLAYER}.getDuration()")
    page.get_by_role("slider").focus()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Play")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Pause")).to_be_focused()
    page.keyboard.press("0")
    until(page, f"{PLAYER}.getCurrentTime() < 1")


def test_where_motion_is_reduced_it_waits_to_be_started(server: RunningServer, browser: Browser) -> None:
    with page_of(browser, reduced_motion="reduce") as page:
        play(server, page, cast([0, "o", "start "], [1, "o", "end"]))
        expect(page.locator("#meta")).to_contain_text("00:01")
        page.get_by_label("Speed").select_option("2")
        until(page, f"{PLAYER}.getDuration() === 1")
        assert page.evaluate(f"{PLAYER}.getCurrentTime()") == 0
        page.locator(".ap-overlay-start").click()
        player_text(page, "start end")


# ---- What is not whole ----


def test_a_running_session_is_told_as_incomplete(server: RunningServer, page: Page) -> None:
    with server.connect() as terminal:
        terminal.type("echo ready-$((1 + 1))\r")
        terminal.wait_for("ready-2")
        page.goto(server.player_url(server.recordings()[-1]))
        expect(page.locator("#incomplete")).to_contain_text("Incomplete")
        expect(page.locator("#incomplete")).to_contain_text("still running")
        player_text(page, "ready-2")
        terminal.type("exit\r")
        terminal.wait_end()
        server.wait_settled()
        page.reload()
        player_text(page, "exit")
        expect(page.locator("#incomplete")).to_be_hidden()


def test_a_torn_recording_is_told_as_incomplete(server: RunningServer, page: Page) -> None:
    path = recording_path(server.config.record_path, "torn")
    path.parent.mkdir(parents=True)
    path.write_text(cast([0.1, "o", "whole"]) + '[0.2, "o", "to')
    page.goto(server.player_url(str(path)))
    player_text(page, "whole")
    expect(page.locator("#incomplete")).to_contain_text("Incomplete")
    expect(page.locator("#incomplete")).to_contain_text("cut off")


def test_a_torn_last_line_of_a_running_session_is_no_end(server: RunningServer, page: Page) -> None:
    body, headers = cast([0.1, "o", "whole"]) + '[0.2, "o", "to', {"X-Recording": "running"}
    page.route("**/records/play*", lambda route: route.fulfill(body=body, headers=headers))
    page.goto(server.player_url("any.cast"))
    player_text(page, "whole")
    expect(page.locator("#incomplete")).to_contain_text("still running")


def test_a_torn_last_line_that_arrives_is_told_too(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "whole"]) + '[0.2, "o", "to')
    player_text(page, "whole")
    expect(page.locator("#incomplete")).to_contain_text("cut off")


# ---- What cannot be played ----


@pytest.mark.parametrize(("cols", "rows"), [(65535, 65535), (10000, 10000), (1001, 24)])
def test_a_terminal_too_large_for_the_player_is_shown_smaller(
    server: RunningServer, page: Page, cols: int, rows: int
) -> None:
    play(
        server, page, cast([0.1, "o", "\x1b[41mhuge"], [0.2, "r", "80x24"], [0.3, "o", " end"], width=cols, height=rows)
    )
    player_text(page, "huge end")
    expect(page.locator("#size-remark")).to_contain_text(f"{cols} \u00d7 {rows}")


def test_a_resize_too_large_for_the_player_is_bounded(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.1, "o", "small"], [0.2, "r", "65535x65535"], [0.3, "o", " end"]))
    player_text(page, "small end")
    expect(page.locator("#size-remark")).to_contain_text("1000 \u00d7 500")


@pytest.mark.parametrize("size", ["", "x", "0x0", "-1x5", "nonsense", "1e9x1e9", "80x24x24"])
def test_a_resize_that_is_none_does_no_harm(server: RunningServer, page: Page, size: str) -> None:
    play(server, page, cast([0.1, "o", "small"], [0.2, "r", size], [0.3, "o", " end"]))
    player_text(page, "small end")


@pytest.mark.parametrize("header", [{"width": 0}, {"width": None}, {"width": "80", "height": {}}, {"height": 2.5}])
def test_a_header_without_a_size_does_no_harm(server: RunningServer, page: Page, header: dict[str, Any]) -> None:
    play(server, page, cast([0.1, "o", "small end"], **header))
    player_text(page, "small end")


def test_times_that_go_back_do_no_harm(server: RunningServer, page: Page) -> None:
    play(server, page, cast([0.2, "o", "a"], [0.1, "o", "b"], [-5, "o", "c"], [0.3, "o", "d"]))
    player_text(page, "abcd")
    assert page.evaluate(f"{PLAYER}.getDuration()") == 0.3


def test_a_player_that_dies_is_said_in_words(server: RunningServer, browser: Browser) -> None:
    with page_of(browser) as page:
        script = jumpserver.load_assets()["/player.js"].data.decode()
        unbounded = script.replace("cols: 1000, rows: 500", "cols: 65535, rows: 65535")
        assert unbounded != script
        page.route("**/player.js", lambda route: route.fulfill(body=unbounded, content_type="text/javascript"))
        play(server, page, cast([0.1, "o", "huge"], width=65535, height=65535))
        said_with_download(page, "The player failed")
        expect(page.locator("#transport")).to_be_hidden()


@pytest.mark.parametrize(
    "fault",
    [
        "WebAssembly.instantiate = async () => { throw new WebAssembly.RuntimeError('unreachable'); };",
        "HTMLCanvasElement.prototype.getContext = () => null;",
    ],
    ids=["no WebAssembly", "no canvas"],
)
def test_a_browser_that_cannot_run_the_player_is_said_in_words(
    server: RunningServer, browser: Browser, fault: str
) -> None:
    with page_of(browser) as page:
        page.add_init_script(fault)
        play(server, page, cast([0.1, "o", "a"]))
        said_with_download(page, "The player failed")


def test_a_player_that_does_not_arrive_is_said_in_words(server: RunningServer, page: Page) -> None:
    page.route(PLAYER_SCRIPT, lambda route: route.abort())
    play(server, page, cast([0.1, "o", "a"]))
    said_with_download(page, "The player could not be loaded")


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_a_page_whose_script_does_not_arrive_says_so(server: RunningServer, browser: Browser, motion: Any) -> None:
    with page_of(browser, reduced_motion=motion) as page:
        page.route("**/player.js", lambda route: route.abort())
        page.goto(server.player_url("any.cast"))
        expect(page.locator("#stuck")).to_be_hidden()
        page.evaluate("document.getAnimations().forEach((animation) => animation.finish())")  # its 8 seconds
        expect(page.locator("#stuck")).to_be_visible()
        expect(page.locator("#stuck")).to_contain_text("The player has not started")


def test_a_slow_server_is_waited_for_in_words(server: RunningServer, page: Page) -> None:
    held: list[Any] = []
    page.route("**/records/play*", lambda route: held.append(route))
    page.goto(server.player_url("any.cast"))
    expect(page.locator("#words")).to_contain_text("Waiting for the server")
    held[0].fulfill(body=cast([0.1, "o", "arrived"]), content_type="application/x-asciicast")
    player_text(page, "arrived")
    expect(page.locator("#words")).to_be_hidden()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (cast(), "Nothing was printed"),
        (cast([1, "m", "only a marker"]), "Nothing was printed"),
        (cast([1, "o", "a"]) + "[broken\n" + '[2, "o", "b"]\n', "Line 3 cannot be read"),
        (cast([1, "o", 5], [2, "o", "b"]), "Line 2 cannot be read"),
        (cast(["1", "o", "a"], [2, "o", "b"]), "Line 2 cannot be read"),
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
    expect(page.locator("#words-title")).to_have_text("You may not play this recording")
    expect(page.locator("#words-text")).to_have_text("This link is not valid; open it again from the platform.")
    assert "?" not in page.url  # the token moved to the fragment, which no server sees


def test_what_to_do_is_said_where_the_server_does_not(server: RunningServer, page: Page) -> None:
    page.goto(f"{server.url}player.html#filename=any.cast&token={server.link_token(filename='another.cast')}")
    said = "This link is for another recording. Open the recording again from where you found it."
    expect(page.locator("#words-text")).to_have_text(said)


def test_an_incomplete_link_is_said_in_words(server: RunningServer, page: Page) -> None:
    page.goto(f"{server.url}player.html")
    expect(page.locator("#words")).to_contain_text("No recording was named")


def test_a_server_out_of_reach_is_said_in_words(server: RunningServer, page: Page) -> None:
    page.route("**/records/play*", lambda route: route.abort())
    page.goto(server.player_url("any.cast"))
    expect(page.locator("#words")).to_contain_text("The server could not be reached")
