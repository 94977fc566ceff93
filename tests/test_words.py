"""What the pages say: each word in each language, none missing, none left over, and no English on a Chinese page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

import hooks
import jumpserver
from tests.conftest import WAIT_MS
from tests.support import RunningServer
from tests.test_pages import open_terminal, phase, run, sent_messages
from tests.test_player_page import cast, play, player_text
from tests.test_sessions_route import write

STATIC = Path(jumpserver.__file__).parent / "static"
SCRIPTS = {file.name: file.read_text() for file in STATIC.glob("*.js") if file.name != "words.js"}
PAGES = {file.name: file.read_text() for file in STATIC.glob("*.html")}
# What is read or seen of the page without the terminal itself: texts and the attributes that hold some.
SHOWN = """() => {
    const others = "#unloaded, .xterm, .ap-player, .chapter, #clock, #title, [data-text], [lang=en]";
    const shown = (element) => !element.closest(others) && element.checkVisibility();
    const texts = [];
    for (const element of document.body.querySelectorAll("*")) {
        if (!shown(element)) continue;
        for (const node of element.childNodes) if (node.nodeType === Node.TEXT_NODE) texts.push(node.data.trim());
        for (const name of ["title", "aria-label", "placeholder"]) texts.push(element.getAttribute(name) ?? "");
    }
    return texts.filter(Boolean);
}"""
# Names of keys and things, which are the same in Chinese.
SAME = re.compile(r"Esc|Tab|Ctrl|Enter|Pod|[fkF]|A[\u2212+]|[^A-Za-z]*|demo( / main)?")


@pytest.fixture
def chinese(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(locale="zh-CN")
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def words(server: RunningServer, page: Page) -> dict[str, dict[str, str]]:
    """The dictionary as a browser reads it."""
    page.goto(server.url)
    found: dict[str, dict[str, str]] = page.evaluate("import('./words.js').then((words) => words.WORDS)")
    return found


def used_keys() -> set[str]:
    keys = {key for text in PAGES.values() for key in re.findall(r'data-say(?:-[a-z]+)?="([^"]*)"', text)}
    return keys.union(*(re.findall(r'\bsay\("(\w+)"', text) for text in SCRIPTS.values()))


def english_left(page: Page) -> list[str]:
    texts: list[str] = page.evaluate(SHOWN)
    assert len(texts) > 3  # it did look
    return [text for text in texts if not re.search("[\u4e00-\u9fff]", text) and not SAME.fullmatch(text)]


def test_every_word_is_known_in_each_language_with_the_same_places_for_names(words: dict[str, dict[str, str]]) -> None:
    for key, texts in words.items():
        assert sorted(texts) == ["en", "zh"], key
        assert all(texts.values()), key
        places = {language: sorted(re.findall(r"\{(\w+)\}", text)) for language, text in texts.items()}
        assert places["en"] == places["zh"], key


def test_every_word_that_is_used_is_known_and_every_known_one_is_used(words: dict[str, dict[str, str]]) -> None:
    assert used_keys() == set(words)


def test_every_call_names_its_word_so_that_it_can_be_looked_for() -> None:
    for name, text in SCRIPTS.items():
        assert re.findall(r'\bsay\([^"].*', text) == [], name


def test_every_sentence_of_the_server_that_is_always_the_same_is_known_in_chinese(
    server: RunningServer, page: Page
) -> None:
    page.goto(server.url)
    known: dict[str, str] = page.evaluate(
        "import('./words.js').then((words) => Object.fromEntries(words.SAID.zh))",
    )
    ends = [value.reason for value in vars(jumpserver).values() if isinstance(value, jumpserver.End)]
    source = Path(jumpserver.__file__).read_text() + Path(hooks.__file__).read_text()
    denials = re.findall(r'(?:Denied|End)\("([^"]+)"', source)
    said = {re.sub(r"\d+", "#", sentence) for sentence in [*ends, *denials, jumpserver.NOT_IN_LEDGER]}
    # Of several pieces; two of them with a word for how long.
    left = "this terminal ends in #"
    built = {
        "the shell has ended",
        "the shell has ended with exit code #",
        "the recording of this session is at # % of its largest size, at which the session ends",
        *(f"{jumpserver.SHUTTING_DOWN.reason}: {left} {unit}" for unit in ("minutes", "seconds")),
        *(f"{why}: {left} seconds" for why in jumpserver._WARNINGS_OF.values()),
    }
    assert set(known) == said | built
    for sentence, text in known.items():
        assert sentence.count("#") == text.count("#"), sentence


def test_a_chinese_browser_is_spoken_to_in_chinese(server: RunningServer, chinese: Page) -> None:
    chinese.goto(server.url)
    assert chinese.evaluate("document.documentElement.lang") == "zh-CN"
    expect(chinese.get_by_role("button", name="打开终端")).to_be_visible()
    assert english_left(chinese) == []
    open_terminal(chinese, server.terminal_url(container_name="main"))
    expect(chinese.locator("#status")).to_have_text("已以 alice 的身份连接")
    assert english_left(chinese) == []
    run(chinese, "exit 7")
    phase(chinese, "ended")
    expect(chinese.locator("#notice-text")).to_have_text(re.compile("已结束.*退出码 7。"))
    assert english_left(chinese) == []


def test_what_the_server_says_of_others_is_shown_as_it_came_and_marked_as_english(
    server: RunningServer, chinese: Page
) -> None:
    chinese.goto(server.terminal_url("no-such-pod"))
    phase(chinese, "refused")
    expect(chinese.locator("#notice-text[lang=en]")).to_contain_text("no-such-pod")
    expect(chinese.locator("#notice-title")).to_have_text("终端未能打开")
    assert english_left(chinese) == []


def test_a_link_may_choose_the_language_and_a_reload_keeps_it(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url().replace("/#", "/?lang=zh#"))
    assert page.url == f"{server.url}?lang=zh"
    run(page, "exit")
    phase(page, "ended")
    expect(page.locator("#notice-title")).to_have_text("会话已结束")
    page.reload()
    expect(page.locator("#status")).to_have_text("还没有令牌")


def test_a_browser_of_another_language_is_spoken_to_in_the_first_that_is_known(
    server: RunningServer, browser: Browser
) -> None:
    languages: dict[str, list[str]] = {"en": ["de-DE", "fr"], "zh-CN": ["de-DE", "zh-TW", "en"]}
    for expected, wanted in languages.items():
        page = browser.new_page()
        page.add_init_script(f"Object.defineProperty(navigator, 'languages', {{ get: () => {wanted} }})")
        page.goto(server.url)
        expect(page.locator("html")).to_have_attribute("lang", expected)
        page.close()


def test_no_page_is_drawn_in_the_wrong_language_first(server: RunningServer, chinese: Page) -> None:
    """What stands in the HTML file has no words but those for when nothing loads, in each language."""
    messages: list[dict[str, Any]] = sent_messages(chinese)
    chinese.route("**/words.js", lambda route: None)  # never answered
    chinese.goto(server.terminal_url(), wait_until="commit")
    chinese.wait_for_selector("#target", state="attached")
    assert [text for text in chinese.evaluate(SHOWN) if not SAME.fullmatch(text)] == []
    assert messages == []


def test_the_player_speaks_chinese(server: RunningServer, chinese: Page) -> None:
    events = [[0.1, "o", "start"], [1, "m", "$ ls"], [2, "d", "1"], [60, "o", "end"]]
    play(server, chinese, cast(*events, title="demo", width=1001) + "[61, ")
    player_text(chinese, "start")
    chinese.get_by_role("button", name="暂停").click()
    chinese.keyboard.press("/")
    chinese.keyboard.type("start")
    chinese.keyboard.press("Enter")
    expect(chinese.locator("#search-count")).to_have_text(re.compile("^第 1 个.共 1 个$"))
    expect(chinese.locator("#search-line")).to_have_text("start")
    expect(chinese.locator("#incomplete-text")).to_have_text(re.compile("^录像被截断.缺少会话的结尾。$"))
    expect(chinese.locator("#elapsed")).to_have_text("00:00 / 01:00")
    expect(chinese.locator("#clock")).to_contain_text("年")
    chinese.locator("#search-line").evaluate("(line) => (line.lang = 'en')")
    assert english_left(chinese) == []
    chinese.keyboard.press("Escape")
    chinese.keyboard.press("?")
    expect(chinese.get_by_role("dialog")).to_be_visible()
    assert english_left(chinese) == []


def test_the_player_refuses_in_chinese(server: RunningServer, chinese: Page) -> None:
    chinese.goto(f"{server.url}player.html#filename=any.cast&token=wrong")
    expect(chinese.locator("#words-text")).to_have_text(re.compile("^此链接无效.请从平台重新打开。$"))
    chinese.locator("#title").evaluate("(title) => (title.lang = 'en')")  # the name of the file
    assert english_left(chinese) == []
    chinese.goto("about:blank")
    chinese.goto(f"{server.url}player.html?live=1")
    expect(chinese.locator("#words-title")).to_have_text("没有指明会话")
    assert english_left(chinese) == []


def test_the_sessions_page_speaks_chinese(server: RunningServer, chinese: Page) -> None:
    write(server, "a")
    with server.connect():
        chinese.goto(f"{server.url}sessions.html#token={server.link_token('audit terminate')}")
        expect(chinese.locator("#ended [data-text=state]")).to_have_text("the end of a")
        expect(chinese.locator("#open [data-text=time]")).to_have_text(re.compile("^自 "))
        assert english_left(chinese) == []
        chinese.get_by_role("button", name="结束……").click()
        expect(chinese.get_by_role("dialog")).to_contain_text("结束此会话")
        assert english_left(chinese) == []
        chinese.get_by_role("button", name="保留").click()
        chinese.get_by_role("button", name="命令").click()
        expect(chinese.get_by_text("没有符合条件的命令。")).to_be_visible()
        assert english_left(chinese) == []
