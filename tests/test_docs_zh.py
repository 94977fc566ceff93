"""The pages in Chinese say what the English ones say: the same code, words of code, headings, rows and links."""

from __future__ import annotations

import os
import re
from pathlib import PurePath

import pytest

from tests.sentences import ROOT
from tests.test_docs import anchors, links, text_of

ENGLISH = {
    "README.zh-CN.md": "README.md",
    "docs/zh/integrate.md": "docs/integrate.md",
    "docs/zh/operate.md": "docs/operate.md",
}
both = pytest.mark.parametrize(("chinese", "english"), ENGLISH.items())


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S)


def code(page: str) -> list[str]:
    """Its code blocks, fenced and indented, without comments."""
    found = re.findall(r"^```.*?^```$|^    [^\n]*$", text_of(page), re.M | re.S)
    return [re.sub(r"\s+(#|//) .*$", "", block, flags=re.M) for block in found]


def parts(page: str) -> list[str]:
    """What stands between headings and rows of tables, the rows, and the headings with their level, in order."""
    return re.split(r"^(?=#)|^(?=\|)|(?<=\|)\n(?!\|)", prose(page), flags=re.M)


def outline(page: str) -> list[tuple[str, int, set[str]]]:
    """Of each part: the sign of its heading, how many cells its row has, and the words of code in it."""
    found = []
    for part in parts(page):
        level = re.match(r"#*", part)
        cells = part.count("|") if part.startswith("|") else 0
        found.append((level[0] if level else "", cells, set(re.findall(r"`([^`\n]+)`", part))))
    return found


def targets(page: str) -> list[tuple[str, int]]:
    """Where its links lead, sorted: the English page, and which heading of it; -1 for the page."""
    found = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        file = os.path.normpath(PurePath(page).parent / path) if path else page
        found.append((ENGLISH.get(file, file), anchors(file).index(anchor) if anchor else -1))
    return sorted(found)


def test_each_page_in_chinese_is_held_against_an_english_one() -> None:
    there = {file.relative_to(ROOT).as_posix() for file in (*ROOT.glob("*.zh-CN.md"), *ROOT.glob("docs/zh/*"))}
    assert there == set(ENGLISH)


@both
def test_its_code_is_the_same_but_for_comments(chinese: str, english: str) -> None:
    assert code(chinese) == code(english)


@both
def test_its_headings_and_rows_are_the_same_with_the_same_words_of_code(chinese: str, english: str) -> None:
    assert outline(chinese) == outline(english)


@both
def test_its_links_lead_to_the_same_places(chinese: str, english: str) -> None:
    assert targets(chinese) == targets(english)


@both
def test_its_links_lead_to_chinese_pages_where_there_are_some(chinese: str, english: str) -> None:
    files = [os.path.normpath(PurePath(chinese).parent / link.partition("#")[0]) for link in links(chinese)]
    assert [file for file in files if file in ENGLISH.values()] == [english]  # to change the language


@both
def test_each_of_the_two_names_the_other_below_its_title(chinese: str, english: str) -> None:
    there = os.path.relpath(chinese, PurePath(english).parent)
    back = os.path.relpath(english, PurePath(chinese).parent)
    assert text_of(english).splitlines()[2] == f"English | [简体中文]({there})"
    assert text_of(chinese).splitlines()[2] == f"[English]({back}) | 简体中文"
