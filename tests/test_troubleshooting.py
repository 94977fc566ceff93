"""docs/troubleshooting.md has every sentence that the program can say, and none that it cannot."""

from __future__ import annotations

import re

import pytest

import jumpserver
from tests import sentences

PAGE = (sentences.ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
SECTIONS = [part for part in re.split(r"^## ", PAGE, flags=re.M) if not part.startswith("How sessions end")]
CELLS = [row.split(" | ")[0] for part in SECTIONS for row in part.splitlines() if row.startswith("| `")]
TOLD = {text for cell in CELLS for text in re.findall(r"`([^`]+)`", cell)}
SAID = set().union(*map(sentences.of_module, sentences.MODULES))


def is_told(sentence: str) -> bool:
    """Whether the page has it; what stands between backticks may be a … there, which cannot stand in code."""
    return re.sub(r"`[^`]*`", "…", sentence) in TOLD


@pytest.mark.parametrize("module", sentences.MODULES)
def test_every_sentence_of_a_module_stands_in_the_page(module: str) -> None:
    said = sentences.of_module(module)
    assert len(said) > 15
    assert sorted(sentence for sentence in said if not is_told(sentence)) == []


def pattern(sentence: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, sentence.split("…"))))


def test_every_sentence_of_the_pages_stands_in_the_page() -> None:
    said = sentences.of_pages()
    assert len(said) > 40
    assert sorted(text for text in said if not any(pattern(text).fullmatch(told) for told in TOLD)) == []


def test_the_page_tells_of_no_sentence_that_nobody_says() -> None:
    said = {re.sub(r"`[^`]*`", "…", sentence) for sentence in SAID}
    pages = list(map(pattern, sentences.of_pages()))
    assert sorted(told for told in TOLD - said if not any(page.fullmatch(told) for page in pages)) == []


def test_what_is_left_out_is_in_the_modules() -> None:
    texts = set().union(*map(sentences.texts_of_module, sentences.MODULES))
    assert sorted(set().union(*sentences.LEFT_OUT.values()) - texts) == []


def test_every_end_and_cause_stands_in_the_page() -> None:
    (section,) = [part for part in re.split(r"^## ", PAGE, flags=re.M) if part.startswith("How sessions end")]
    told = re.findall(r"`(\w+)`", " ".join(row.split(" | ")[0] for row in section.splitlines() if row.startswith("|")))
    assert sorted(set(told) - {"end", "cause"}) == sorted(jumpserver._ENDS)
