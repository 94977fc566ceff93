"""``examples/http_platform.py`` and a jumpserver, clicked through in a real browser; and what a stranger tries."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from playwright.sync_api import Browser, Frame, Page, expect

from demo.__main__ import PLACES, configuration
from demo.cluster import StandIn
from examples import http_platform
from examples.http_platform import Place, Platform, PlatformServer
from hooks import verify_token
from tests.conftest import WAIT_MS
from tests.support import RunningServer, nothing_left
from tests.test_accessibility import findings
from tests.test_pages import SCREEN_TEXT
from tests.test_player_page import player_text

SECRET = "s" * 64
AUTHORIZATION = "Bearer of good news"
SESSION = {
    "session_id": "1",
    "filename": "/records/1.cast",
    "user": "alice",
    "namespace": "default",
    "pod_name": "demo",
    "container_name": "",
    "remote_addr": "127.0.0.1",
    "login_at": 1_700_000_000.5,
    "logout_at": None,
    "reason": "",
}


@pytest.fixture
def web() -> Iterator[PlatformServer]:
    with nothing_left(), PlatformServer(Platform(PLACES, SECRET, AUTHORIZATION)) as running:
        yield running


@pytest.fixture
def server(web: PlatformServer, cluster: StandIn, tmp_path: Path) -> Iterator[RunningServer]:
    config = configuration(web, SECRET, tmp_path / "kubeconfig.yaml", 0)
    running = RunningServer(tmp_path, cluster, config=config)
    web.platform.jumpserver = running.url.rstrip("/")
    try:
        yield running
    finally:
        running.stop()


# -- in a browser -----------------------------------------------------------------------------------------------------


def log_in(page: Page, web: PlatformServer, name: str) -> None:
    page.goto(web.origin)
    page.get_by_role("button", name=name).click()
    expect(page.get_by_role("heading", name="Pods")).to_be_visible()


def open_terminal(page: Page, pod: str = "demo") -> Frame:
    """The frame with a shell."""
    page.get_by_role("button", name=f"Open a terminal in {pod}").click()
    element = page.locator("iframe").element_handle()
    frame = element.content_frame() if element else None
    assert frame is not None
    expect(frame.locator("body")).to_have_attribute("data-phase", "connected", timeout=WAIT_MS)
    frame.locator("textarea.xterm-helper-textarea").focus()
    return frame


def wait_for_text(frame: Frame, text: str) -> None:
    frame.wait_for_function(f"(text) => ({SCREEN_TEXT})(200).includes(text)", arg=text, timeout=WAIT_MS)


def run(page: Page, command: str) -> None:
    page.keyboard.type(command)
    page.keyboard.press("Enter")


def other_page(browser: Browser) -> Page:
    context = browser.new_context()
    context.set_default_timeout(WAIT_MS)
    return context.new_page()


def test_a_developer_works_and_an_auditor_replays_it(web: PlatformServer, server: RunningServer, page: Page) -> None:
    log_in(page, web, "alice")
    frame = open_terminal(page)
    run(page, "echo in-a-frame-$((40 + 2))")
    wait_for_text(frame, "in-a-frame-42")
    expect(page.get_by_role("status")).to_have_text("The terminal is open.")
    page.set_viewport_size({"width": 375, "height": 700})
    run(page, "exit")
    expect(frame.locator("#notice")).to_contain_text("The shell has ended")
    expect(page.get_by_role("status")).to_have_text("The terminal has ended: the shell has ended.")
    server.wait_settled()
    frame.get_by_role("link", name="Back to the platform").click()
    page.get_by_role("link", name="Sessions").click()
    row = page.get_by_role("row").filter(has_text="default/demo")
    expect(row).to_contain_text("alice")
    expect(row).to_contain_text("the shell has ended")
    expect(page.get_by_role("link", name="Replay")).to_have_count(0)
    page.get_by_role("button", name="Log out").click()
    log_in(page, web, "carol")
    page.get_by_role("link", name="Sessions").click()
    page.get_by_role("link", name="Replay").click()
    expect(page.locator("#title")).to_have_text("alice@default/demo", timeout=WAIT_MS)
    player_text(page, "in-a-frame-42")


def test_who_is_offboarded_loses_the_shell_and_gets_no_other(
    web: PlatformServer, server: RunningServer, page: Page, browser: Browser
) -> None:
    log_in(page, web, "alice")
    frame = open_terminal(page)
    auditor = other_page(browser)
    log_in(auditor, web, "carol")
    auditor.get_by_role("link", name="People").click()
    auditor.locator("li").filter(has_text="alice").get_by_role("button", name="Offboard").click()
    expect(auditor.locator("li").filter(has_text="alice")).to_contain_text("offboarded")
    expect(frame.locator("#notice")).to_contain_text("Alice was offboarded.")
    server.wait_settled()
    assert server.rows()[-1]["reason"] == "alice was offboarded"
    auditor.get_by_role("link", name="Sessions").click()
    expect(auditor.get_by_role("row").filter(has_text="alice")).to_contain_text("alice was offboarded")
    page.get_by_role("link", name="Pods").first.click()
    page.get_by_role("button", name="alice").click()
    expect(page.get_by_text("You have no account here.")).to_be_visible()
    auditor.get_by_role("link", name="People").click()
    auditor.get_by_role("button", name="Take back").click()
    log_in(page, web, "alice")
    open_terminal(page)
    auditor.context.close()


def test_a_pod_that_does_not_run_says_why_in_the_frame(web: PlatformServer, server: RunningServer, page: Page) -> None:
    log_in(page, web, "bob")
    page.get_by_role("button", name="Open a terminal in pending").click()
    expect(page.frame_locator("iframe").locator("#notice")).to_contain_text(
        "The container is not running: ContainerCreating."
    )


# -- without one ------------------------------------------------------------------------------------------------------


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.text = response.status, response.headers, response.read().decode()


def ask(web: PlatformServer, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection(web.host, timeout=10)
    connection.request(method, path, body, headers)
    with connection.getresponse() as response:
        answer = Answer(response)
    connection.close()
    return answer


def submit(web: PlatformServer, path: str, cookie: str = "", **fields: str) -> Answer:
    return ask(web, "POST", path, urllib.parse.urlencode(fields), Origin=web.origin, Cookie=cookie)


def cookie_of(web: PlatformServer, name: str) -> str:
    return str(submit(web, "/login", name=name).headers["Set-Cookie"]).partition(";")[0]


def call(web: PlatformServer, name: str, body: object, authorization: str = AUTHORIZATION) -> tuple[int, Any]:
    answer = ask(web, "POST", f"/api/{name}", json.dumps(body), Authorization=authorization)
    return answer.status, json.loads(answer.text)


def token_of(link: str) -> str:
    return link.partition("#ssh_token=")[2]


def test_a_one_time_token_says_who_and_where_once(web: PlatformServer) -> None:
    place = Place("shop", "cart-0", "app", "production", command=("top",))
    token = token_of(web.platform.terminal_link("alice", place))
    assert call(web, "validate", {"ssh_token": token}) == (
        200,
        {
            "user": "alice",
            "namespace": "shop",
            "pod_name": "cart-0",
            "container_name": "app",
            "cluster": "production",
            "command": ["top"],
        },
    )
    others: list[object] = [token, "", "x" * 10_000, None, []]
    for spent in others:
        status, answer = call(web, "validate", {"ssh_token": spent})
        assert status == 403 and "already used" in answer["message"]


def test_a_token_that_was_not_used_within_a_minute_is_void(
    web: PlatformServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_platform, "TICKET_SECONDS", 0)
    token = token_of(web.platform.terminal_link("alice", PLACES[0]))
    assert call(web, "validate", {"ssh_token": token})[0] == 403


def test_of_two_that_spend_a_token_at_the_same_time_one_gets_it(web: PlatformServer) -> None:
    token = token_of(web.platform.terminal_link("alice", PLACES[0]))
    together, statuses = threading.Barrier(8), []

    def spend() -> None:
        together.wait()
        statuses.append(call(web, "validate", {"ssh_token": token})[0])

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [403] * 7


@pytest.mark.parametrize("authorization", ["", "Bearer", AUTHORIZATION[:-1], f"{AUTHORIZATION}x", "\u00e4"])
@pytest.mark.parametrize("name", ["validate", "login", "heartbeat", "logout"])
def test_a_call_of_somebody_else_changes_nothing_and_ends_nothing(
    web: PlatformServer, name: str, authorization: str
) -> None:
    token = token_of(web.platform.terminal_link("alice", PLACES[0]))
    assert call(web, name, {**SESSION, "ssh_token": token}, authorization) == (401, {})
    assert web.platform.sessions(http_platform.PEOPLE["carol"]) == []
    assert call(web, "validate", {"ssh_token": token})[0] == 200


@pytest.mark.parametrize("body", [[], "x", 1, None, {}, {"session_id": "1"}])
def test_a_call_that_is_no_session_is_an_error_of_the_caller(web: PlatformServer, body: object) -> None:
    for name in ("login", "heartbeat"):
        assert call(web, name, body)[0] == 400
    assert ask(web, "POST", "/api/login", "[" * 100_000, Authorization=AUTHORIZATION).status == 400


def test_a_heartbeat_that_comes_late_opens_no_session_again(web: PlatformServer) -> None:
    assert call(web, "login", SESSION)[0] == 200
    assert call(web, "logout", {**SESSION, "logout_at": 1_700_000_009.0, "reason": "done"})[0] == 200
    assert call(web, "heartbeat", SESSION)[0] == 200
    (session,) = web.platform.sessions(http_platform.PEOPLE["carol"])
    assert session["reason"] == "done"


def test_whoever_is_offboarded_is_refused_at_each_call_but_the_logout(web: PlatformServer) -> None:
    token = token_of(web.platform.terminal_link("alice", PLACES[0]))
    web.platform.set_offboarded("alice", True)
    for name in ("validate", "login", "heartbeat"):
        assert call(web, name, {**SESSION, "ssh_token": token}) == (403, {"message": "alice was offboarded"})
    assert call(web, "logout", {**SESSION, "logout_at": time.time()})[0] == 200


def test_sessions_are_forgotten_in_the_end(web: PlatformServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_platform, "SESSIONS_KEPT", 3)
    for number in range(5):
        call(web, "login", {**SESSION, "session_id": str(number)})
    seen = web.platform.sessions(http_platform.PEOPLE["carol"])
    assert [session["session_id"] for session in seen] == ["4", "3", "2"]


def test_a_form_of_another_site_does_nothing(web: PlatformServer) -> None:
    cookie = cookie_of(web, "carol")
    for origin in ("http://evil.example", "null", web.origin.replace("http", "https"), f"{web.origin}0"):
        for path in ("/login", "/offboard", "/terminal", "/logout"):
            answer = ask(web, "POST", path, "name=alice&gone=yes&place=0", Origin=origin, Cookie=cookie)
            assert answer.status == 403 and "Set-Cookie" not in answer.headers
    assert ask(web, "POST", "/offboard", "name=alice&gone=yes", Cookie=cookie).status == 403
    assert not web.platform.is_offboarded("alice")
    assert "<h1>Pods</h1>" in ask(web, "GET", "/", Cookie=cookie).text


def test_no_other_name_leads_here(web: PlatformServer) -> None:
    assert ask(web, "GET", "/", Host="evil.example").status == 421
    assert ask(web, "POST", "/login", "name=carol", Host="evil.example", Origin="http://evil.example").status == 421


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites_and_void_after_the_logout(web: PlatformServer) -> None:
    header = submit(web, "/login", name="alice").headers["Set-Cookie"]
    assert header.endswith("; Path=/; HttpOnly; SameSite=Lax")
    cookie = header.partition(";")[0]
    assert "<h1>Pods</h1>" in ask(web, "GET", "/", Cookie=cookie).text
    assert submit(web, "/logout", cookie).status == 303
    for stale in (cookie, "", "platform_login=", "platform_login", ";;=", f"{cookie}x"):
        assert "Who are you?" in ask(web, "GET", "/", Cookie=stale).text


def test_pages_for_auditors_are_for_nobody_else(web: PlatformServer) -> None:
    call(web, "login", {**SESSION, "user": "bob"})
    cookie = cookie_of(web, "alice")
    for path in ("/people", "/replay?session=1", "/audit"):
        assert ask(web, "GET", path, Cookie=cookie).status == 403
    assert submit(web, "/offboard", cookie, name="carol", gone="yes").status == 403
    assert "There was none yet." in ask(web, "GET", "/sessions", Cookie=cookie).text
    for path in ("/people", "/replay?session=1", "/audit", "/sessions"):
        assert "Who are you?" in ask(web, "GET", path).text


def test_auditors_do_not_offboard_themselves(web: PlatformServer) -> None:
    cookie = cookie_of(web, "carol")
    assert submit(web, "/offboard", cookie, name="carol", gone="yes").status == 404
    assert 'value="carol"' not in ask(web, "GET", "/people", Cookie=cookie).text


@pytest.mark.parametrize("width", [1440, 375])
def test_axe_core_finds_nothing_on_the_pages(
    web: PlatformServer, server: RunningServer, browser: Browser, width: int
) -> None:
    call(web, "login", SESSION)
    page = other_page(browser)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(web.origin)
    assert findings(page) == []
    log_in(page, web, "carol")
    for path in ("", "/sessions", "/people", "/nowhere"):
        page.goto(f"{web.origin}{path}")
        assert findings(page) == [], path
    page.context.close()


def claims_of(location: str) -> tuple[str, dict[str, Any]]:
    address, _, fragment = location.partition("#")
    return address, verify_token(dict(urllib.parse.parse_qsl(fragment))["token"], SECRET)


def test_links_of_an_auditor_are_signed_for_what_they_open(web: PlatformServer) -> None:
    web.platform.jumpserver = "http://127.0.0.1:7000"
    call(web, "login", SESSION)
    cookie = cookie_of(web, "carol")
    replay = ask(web, "GET", "/replay?session=1", Cookie=cookie)
    address, claims = claims_of(replay.headers["Location"])
    assert (replay.status, address) == (303, "http://127.0.0.1:7000/player.html")
    assert (claims["sub"], claims["scope"], claims["filename"]) == ("carol", "play", "/records/1.cast")
    address, claims = claims_of(ask(web, "GET", "/audit", Cookie=cookie).headers["Location"])
    assert (address, claims["scope"]) == ("http://127.0.0.1:7000/sessions.html", "audit terminate")
    assert ask(web, "GET", "/replay?session=2", Cookie=cookie).status == 404


def test_what_others_say_is_text_on_the_pages(web: PlatformServer) -> None:
    evil = "<script>alert(1)</script>\"'{user}"
    call(web, "login", {**SESSION, "user": evil, "pod_name": evil, "reason": evil, "session_id": evil})
    call(web, "logout", {**SESSION, "user": evil, "pod_name": evil, "reason": evil, "logout_at": 1_700_000_001.0})
    web.platform.places = (Place(evil, evil, evil, note=evil),)
    for path in ("/", "/sessions"):
        text = ask(web, "GET", path, Cookie=cookie_of(web, "carol")).text
        assert "&lt;script&gt;" in text and "<script" not in text and "{user}" in text
    terminal = submit(web, "/terminal", cookie_of(web, "carol"), place="0").text
    assert terminal.count("<script") == 1 and "<iframe src=" in terminal


def test_every_answer_forbids_scripts_frames_and_caches(web: PlatformServer) -> None:
    for path in ("/", "/style.css", "/nowhere"):
        headers = ask(web, "GET", path, Cookie=cookie_of(web, "alice")).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self';") and "frame-ancestors 'none'" in policy
        assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")


@pytest.mark.parametrize("place", ["4", "-1", "", "x", "\u0661", "9" * 5000])
def test_a_place_that_is_not_in_the_list_is_not_found(web: PlatformServer, place: str) -> None:
    assert submit(web, "/terminal", cookie_of(web, "alice"), place=place).status == 404


@pytest.mark.parametrize("length", ["", "-1", "x", "1048577", "9" * 30])
def test_a_body_without_a_sound_length_is_not_read(web: PlatformServer, length: str) -> None:
    answer = ask(web, "POST", "/login", None, Origin=web.origin, **{"Content-Length": length})
    assert answer.status == 413


def test_a_form_of_too_many_fields_is_refused(web: PlatformServer) -> None:
    assert ask(web, "POST", "/login", "&".join(["a=b"] * 11), Origin=web.origin).status == 400
    assert ask(web, "GET", f"/?{'&'.join(['a=b'] * 11)}", Cookie=cookie_of(web, "alice")).status == 400


def test_links_are_what_any_jwt_library_reads(web: PlatformServer) -> None:
    token = web.platform.sessions_link("carol").partition("#token=")[2]
    assert jwt.decode(token, SECRET, ["HS256"])["sub"] == "carol"
