"""The page of sessions in a real browser, against the real server."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from hooks import Command, Unfinished
from tests.conftest import WAIT_MS
from tests.support import RunningServer, Terminal, end_shell, newest
from tests.test_accessibility import SCREENS, findings
from tests.test_sessions_route import LOGIN, entries, write

SESSIONS = "**/sessions?*"


def page_url(server: RunningServer, scope: str = "audit terminate", **filters: str) -> str:
    token = server.link_token(scope, sub="dana")
    return f"{server.url}sessions.html#{urllib.parse.urlencode({'token': token, **filters})}"


def link_of(page: Page) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(page.url.partition("#")[2]))


def rows(page: Page, section: str) -> Any:
    return page.locator(f"#{section} .item")


def names(page: Page, section: str = "ended") -> list[str]:
    found: list[str] = page.locator(f"#{section} [data-text=user]").all_text_contents()
    return found


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_an_open_session_is_shown_as_it_is_and_moves_down_when_it_ends(
    server: RunningServer, terminal: Terminal, page: Page
) -> None:
    page.goto(page_url(server))
    row = rows(page, "open").first
    expect(row).to_contain_text("bob")
    expect(row).to_contain_text("demo")
    expect(row).to_contain_text("127.0.0.1")
    expect(row).to_contain_text("recorded")
    expect(rows(page, "ended")).to_have_count(0)
    expect(page.locator("#ended .none")).to_be_visible()
    size = row.locator("[data-text=bytes]").text_content()
    terminal.type("seq 2000; echo done-$((1 + 1))\n")
    terminal.wait_for("done-2")
    expect(row.locator("[data-text=bytes]")).not_to_have_text(size or "")
    expect(row.locator("[data-text=state]")).to_contain_text("idle")
    end_shell(terminal)
    expect(rows(page, "ended")).to_have_count(1)
    expect(rows(page, "ended")).to_contain_text("the shell has ended")
    expect(rows(page, "open")).to_have_count(0)
    expect(page.locator("#open .none")).to_be_visible()


def test_a_session_that_comes_is_shown_above_the_others(server: RunningServer, terminal: Terminal, page: Page) -> None:
    page.goto(page_url(server))
    expect(rows(page, "open")).to_have_count(1)
    with server.connect(sub="carol") as other:
        expect(rows(page, "open")).to_have_count(2)
        assert names(page, "open") == ["carol", "bob"]
        end_shell(other)
    expect(rows(page, "open")).to_have_count(1)


def test_a_session_that_began_long_ago_is_put_where_it_belongs(server: RunningServer, page: Page) -> None:
    write(server, "a", LOGIN, user="first")
    write(server, "b", LOGIN + 1, ended=False, user="second")
    write(server, "c", LOGIN + 2, user="third")
    page.goto(page_url(server))
    expect(rows(page, "ended")).to_have_count(2)
    end(server, "b")
    expect(rows(page, "ended")).to_have_count(3)
    assert names(page) == ["third", "second", "first"]


def end(server: RunningServer, session_id: str) -> None:
    """Write the end of a session that only the ledger knows."""
    info = server.hooks.ledger.session(session_id)
    assert info is not None
    ended = replace(info, logout_at=info.login_at + 5, reason="over")
    server.hooks.ledger.save([Unfinished(ended, tell=False, hang_up=False)])


def test_watch_and_replay_open_the_player_with_the_token_behind_the_hash(
    server: RunningServer, terminal: Terminal, page: Page
) -> None:
    page.goto(page_url(server))
    watch = rows(page, "open").get_by_role("link", name="Watch", exact=True).get_attribute("href") or ""
    token = link_of(page)["token"]
    path, _, fragment = watch.partition("#")
    assert (path, dict(urllib.parse.parse_qsl(fragment))) == (
        "player.html",
        {"filename": str(newest(server)), "token": token, "live": "1"},
    )
    end_shell(terminal)
    rows(page, "ended").get_by_role("link", name="Replay", exact=True).click()
    expect(page.locator("#player .ap-term")).to_contain_text("hi-2", timeout=WAIT_MS)
    assert link_of(page) == {"filename": str(newest(server))}  # the page keeps the token for its tab


def test_a_row_is_as_good_as_its_link_and_its_text_can_be_selected(server: RunningServer, page: Page) -> None:
    write(server, "a", pod_name="shop-0")
    page.goto(page_url(server))
    box = rows(page, "ended").get_by_text("10.0.0.9").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 1, box["y"] + 8)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + 8)
    page.mouse.up()
    assert "10.0.0" in page.evaluate("getSelection().toString()")
    assert "sessions.html" in page.url
    page.evaluate("getSelection().empty()")
    rows(page, "ended").get_by_text("shop-0").click()
    page.wait_for_url("**/player.html#*")
    assert link_of(page)["filename"] == "/records/a.cast"


def test_a_recording_is_downloaded_without_a_token_in_any_address(
    server: RunningServer, terminal: Terminal, page: Page
) -> None:
    end_shell(terminal)
    server.wait_settled()
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(page_url(server))
    with page.expect_download() as download:
        rows(page, "ended").get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == newest(server).name
    assert download.value.path().read_bytes() == newest(server).read_bytes()
    assert [address for address in addresses if "token=" in address.partition("#")[0]] == []


def test_a_recording_that_is_gone_is_said_beside_the_list(server: RunningServer, page: Page) -> None:
    write(server, "a")
    page.goto(page_url(server))
    rows(page, "ended").get_by_role("button", name="Download").click()
    expect(page.locator("#toast")).to_have_text("a.cast: Not found.")
    expect(rows(page, "ended")).to_be_visible()


# -- filters ----------------------------------------------------------------------------------------------------------


def test_filters_stand_in_the_address_and_a_link_brings_them_back(server: RunningServer, page: Page) -> None:
    write(server, "a", LOGIN, user="alice", pod_name="shop-0")
    write(server, "b", LOGIN + 1, user="bob", pod_name="shop-0")
    write(server, "c", LOGIN + 2, user="bob", pod_name="cart-0")
    page.goto(page_url(server))
    expect(rows(page, "ended")).to_have_count(3)
    page.get_by_label("User").fill("bob")
    expect(rows(page, "ended")).to_have_count(2)
    page.get_by_label("Search").fill("SHOP")
    expect(rows(page, "ended")).to_have_count(1)
    assert {key: value for key, value in link_of(page).items() if key != "token"} == {"user": "bob", "q": "SHOP"}
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    expect(rows(page, "ended")).to_have_count(1)
    expect(page.get_by_label("User")).to_have_value("bob")
    page.get_by_role("button", name="Clear").click()
    expect(rows(page, "ended")).to_have_count(3)
    assert link_of(page).keys() == {"token"}


def test_days_are_those_of_the_browser_and_the_last_one_counts(server: RunningServer, browser: Browser) -> None:
    for number, login in enumerate(
        (1_700_006_399, 1_700_006_400, 1_700_092_799, 1_700_092_800)
    ):  # Shanghai's midnights
        write(server, str(number), login - 8 * 3600, user=f"user-{number}")
    context = browser.new_context(timezone_id="Asia/Shanghai")
    page = context.new_page()
    page.goto(page_url(server, since="2023-11-15", until="2023-11-15"))
    expect(rows(page, "ended")).to_have_count(2)
    assert names(page) == ["user-2", "user-1"]
    context.close()


def test_a_filter_that_cannot_be_is_said_in_words_until_it_is_mended(server: RunningServer, page: Page) -> None:
    write(server, "a")
    page.goto(page_url(server, user="x" * 1001))
    expect(page.locator("#words")).to_contain_text("User is longer than 1000 characters")
    page.get_by_label("User").fill("alice")
    expect(rows(page, "ended")).to_have_count(1)
    expect(page.locator("#words")).to_be_hidden()


def test_what_users_are_called_is_shown_as_text(server: RunningServer, page: Page) -> None:
    write(server, "a", user="<img src=x onerror=alert(1)>", pod_name="<b>pod</b>")
    page.goto(page_url(server))
    expect(rows(page, "ended")).to_contain_text("<img src=x onerror=alert(1)>")
    expect(rows(page, "ended")).to_contain_text("<b>pod</b>")


# -- many -------------------------------------------------------------------------------------------------------------


def test_more_rows_come_with_scrolling(server: RunningServer, page: Page) -> None:
    for number in range(120):
        write(server, f"{number:03}", LOGIN + number, user=f"user-{number}")
    page.goto(page_url(server))
    expect(page.locator("#ended .count")).to_have_text("50+")
    rows(page, "ended").last.scroll_into_view_if_needed()
    expect(page.locator("#ended .count")).to_have_text("100+")
    rows(page, "ended").last.scroll_into_view_if_needed()
    expect(page.locator("#ended .count")).to_have_text("120")
    assert names(page) == [f"user-{number}" for number in reversed(range(120))]
    expect(page.locator("#ended .more")).to_be_hidden()


def test_a_hundred_thousand_sessions_are_shown_by_the_page(server: RunningServer, page: Page) -> None:
    write(server, "0", LOGIN, user="user-0")
    with contextlib.closing(sqlite3.connect(server.config.hooks_settings().db)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(sessions)")]
        changed = {"session_id": "n", '"user"': "'user-' || (n % 1000)", "login_at": "login_at + n"}
        chosen = ", ".join(changed.get(name, f'"{name}"') if name != "user" else changed['"user"'] for name in columns)
        series = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 99999)"
        connection.execute(f"INSERT INTO sessions {series} SELECT {chosen} FROM sessions, numbers")
        connection.commit()
    page.goto(page_url(server))
    expect(page.locator("#ended .count")).to_have_text("50+")
    assert page.evaluate("document.querySelectorAll('.item').length") == 50
    assert names(page)[0] == "user-999"
    page.get_by_label("User").fill("user-7")
    expect(rows(page, "ended").first).to_contain_text("user-7")
    assert set(names(page)) == {"user-7"}


# -- commands ---------------------------------------------------------------------------------------------------------


def test_a_command_that_is_found_opens_the_player_at_its_second(server: RunningServer, page: Page) -> None:
    write(server, "a", user="alice")
    write(server, "b", user="bob")
    ran = [Command("a", 5.0, "ls", 0), Command("a", 61.9, "kubectl delete pod x", 1)]
    server.hooks.ledger.add_commands([*ran, Command("b", 7.0, "kubectl get pods", None)])
    page.goto(page_url(server))
    page.get_by_role("button", name="Commands").click()
    expect(rows(page, "commands")).to_have_count(3)
    expect(page.locator("#ended")).to_be_hidden()
    page.keyboard.press("/")
    page.keyboard.type("DELETE")
    expect(rows(page, "commands")).to_have_count(1)
    hit = rows(page, "commands").first
    expect(hit).to_contain_text("kubectl delete pod x")
    expect(hit).to_contain_text("exit 1")
    href = hit.get_by_role("link").get_attribute("href") or ""
    assert dict(urllib.parse.parse_qsl(href.partition("#")[2])) == {
        "filename": "/records/a.cast",
        "token": link_of(page)["token"],
        "t": "61",
    }
    assert (link_of(page)["view"], link_of(page)["q"]) == ("commands", "DELETE")
    assert entries(server, "search")[-1].values["filters"] == "q=DELETE"
    page.reload()
    expect(rows(page, "commands")).to_have_count(1)


# -- ending -----------------------------------------------------------------------------------------------------------


def test_a_session_is_ended_with_a_reason(server: RunningServer, terminal: Terminal, page: Page) -> None:
    page.goto(page_url(server))
    rows(page, "open").get_by_role("button", name="End").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("bob in default/demo")
    dialog.get_by_role("button", name="End the session").click()
    expect(dialog).to_be_visible()  # a reason is needed
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    rows(page, "open").get_by_role("button", name="End").click()
    page.keyboard.type("left open")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#toast")).to_have_text("The session ends now.")
    assert terminal.wait_end()["reason"] == "ended by dana: left open"
    expect(rows(page, "ended")).to_contain_text("ended by dana: left open")


def test_who_may_not_end_sessions_is_offered_nothing(server: RunningServer, terminal: Terminal, page: Page) -> None:
    page.goto(page_url(server, "audit"))
    expect(rows(page, "open").get_by_role("link", name="Watch", exact=True)).to_be_visible()
    expect(rows(page, "open").get_by_role("button", name="End")).to_have_count(0)
    page.goto(page_url(server))
    expect(rows(page, "open").get_by_role("button", name="End")).to_be_visible()


# -- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("", "A token is needed: open the page from the platform."),
        ("play", "This link does not allow to list; it needs the scope audit."),
    ],
)
def test_without_the_scope_one_sentence_says_what_is_needed(
    server: RunningServer, page: Page, link: str, words: str
) -> None:
    page.goto(page_url(server, link) if link else f"{server.url}sessions.html")
    expect(page.locator("#words-text")).to_have_text(words)
    expect(page.locator(".list:visible")).to_have_count(0)


def test_a_server_that_is_away_is_said_and_asked_again(server: RunningServer, page: Page) -> None:
    write(server, "a")
    page.route(SESSIONS, lambda route: route.abort())
    page.goto(page_url(server))
    expect(page.locator("#status")).to_contain_text("The server could not be reached")
    page.unroute(SESSIONS)
    expect(rows(page, "ended")).to_have_count(1)
    expect(page.locator("#status")).to_be_empty()
    page.route(SESSIONS, lambda route: route.fulfill(status=503, body="busy", content_type="text/plain"))
    expect(page.locator("#status")).to_contain_text("Busy.")
    expect(rows(page, "ended")).to_have_count(1)


def test_an_answer_that_is_not_a_jumpservers_is_said(server: RunningServer, page: Page) -> None:
    page.route(SESSIONS, lambda route: route.fulfill(body="<html>sign in", content_type="text/html"))
    page.goto(page_url(server))
    expect(page.locator("#status")).to_contain_text("not from a jumpserver")


def test_a_page_that_nobody_sees_asks_nothing(server: RunningServer, page: Page) -> None:
    asked: list[str] = []

    def count(route: Route) -> None:
        asked.append(route.request.url)
        route.continue_()

    page.route(SESSIONS, count)
    page.clock.install()
    page.goto(page_url(server))
    expect(page.locator("#ended .none")).to_be_visible()
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    before = len(asked)
    page.clock.run_for(60_000)
    page.evaluate("fetch('healthz')")  # what was on its way by then has come
    assert len(asked) == before
    page.evaluate("delete document.hidden")
    with page.expect_response(SESSIONS):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_a_page_whose_script_never_comes_says_so(server: RunningServer, page: Page) -> None:
    page.route("**/sessions.js", lambda route: route.abort())
    page.goto(page_url(server))
    page.evaluate("document.getAnimations().forEach((animation) => animation.finish())")
    expect(page.locator("#stuck")).to_be_visible()


# -- keys and screens -------------------------------------------------------------------------------------------------


def test_the_keyboard_reaches_all_of_it(server: RunningServer, terminal: Terminal, page: Page) -> None:
    write(server, "a", LOGIN, user="alice")
    write(server, "b", LOGIN + 1, user="berta")
    page.goto(page_url(server))
    expect(rows(page, "ended")).to_have_count(2)
    expect(rows(page, "open")).to_have_count(1)
    page.keyboard.press("/")
    expect(page.get_by_label("Search")).to_be_focused()
    focused = "document.activeElement.querySelector('[data-text=user]')?.textContent"
    seen = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
        seen.append(page.evaluate(focused))
    assert seen == ["bob", "berta", "alice", "alice", "berta"]
    page.keyboard.press("Enter")
    page.wait_for_url("**/player.html#*")
    assert link_of(page)["filename"] == "/records/b.cast"


def test_the_focus_stays_on_its_row_while_the_list_changes(server: RunningServer, page: Page) -> None:
    for number in range(3):
        write(server, str(number), LOGIN + number, ended=False, user=f"user-{number}")
    page.goto(page_url(server))
    expect(rows(page, "open")).to_have_count(3)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    write(server, "9", LOGIN + 9, ended=False, user="user-9")
    expect(rows(page, "open")).to_have_count(4)
    expect(page.locator("#open .main:focus")).to_contain_text("user-1")
    end(server, "1")
    expect(rows(page, "open")).to_have_count(3)
    expect(page.locator("#open .main:focus")).to_contain_text("user-0")


@pytest.fixture(params=itertools.product(SCREENS, ["light", "dark"]), ids="-".join)
def screen(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    screen, colours = request.param
    context = browser.new_context(**SCREENS[screen], color_scheme=colours)
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


def test_nothing_is_wider_than_the_screen(server: RunningServer, screen: Page) -> None:
    write(server, "a", user="u" * 900, namespace="n" * 250, pod_name="p" * 250, container_name="c" * 250)
    server.hooks.ledger.add_commands([Command("a", 1.0, "c" * 1000, 0)])
    screen.goto(page_url(server))
    for view, section in (("Sessions", "ended"), ("Commands", "commands")):
        screen.get_by_role("button", name=view).click()
        expect(rows(screen, section)).to_have_count(1)
        inside = (
            "[document.documentElement, document.querySelector('main')].every((it) => it.scrollWidth <= it.clientWidth)"
        )
        assert screen.evaluate(inside), view


def test_axe_finds_nothing_on_the_list(server: RunningServer, terminal: Terminal, screen: Page) -> None:
    for number in range(60):
        write(server, f"{number:02}", LOGIN + number)
    screen.goto(page_url(server))
    expect(rows(screen, "open")).to_have_count(1)
    expect(rows(screen, "ended").first).to_be_visible()
    assert findings(screen) == []
    rows(screen, "open").get_by_role("button", name="End").click()
    expect(screen.get_by_label("Reason")).to_be_focused()
    assert findings(screen) == []


def test_axe_finds_nothing_on_the_commands(server: RunningServer, screen: Page) -> None:
    write(server, "a")
    server.hooks.ledger.add_commands([Command("a", 1.0, "ls", 0), Command("a", 2.0, "false", 1)])
    screen.goto(page_url(server, view="commands", q="s", user="alice"))
    expect(rows(screen, "commands")).to_have_count(2)
    assert findings(screen) == []


def test_axe_finds_nothing_where_a_scope_is_missing(server: RunningServer, screen: Page) -> None:
    screen.goto(page_url(server, "play"))
    expect(screen.locator("#words")).to_be_visible()
    assert findings(screen) == []
