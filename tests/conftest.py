"""A real browser for the tests of the pages.

Needs a Chromium: the one that CHROMIUM names, else one on PATH; the headless shell takes half the processor's time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support import RunningServer, Terminal, need_program

CHROMIUM_ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 20_000
LONGEST = ("test_bench", "test_soak")  # files


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: at the end each would run while all others are done."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests of a worker; each has a context of its own, and with it cookies and storage."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium-headless-shell") or need_program("chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own; the test fails if a script throws or the content security policy blocks anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: faults.append(message.text) if "Content Security Policy" in message.text else None,
    )
    yield page
    context.close()
    assert faults == []


@pytest.fixture
def terminal(server: RunningServer) -> Iterator[Terminal]:
    """Of bob, who has run a command."""
    with server.connect(sub="bob") as terminal:
        terminal.type("echo hi-$((1 + 1))\n")
        terminal.wait_for("hi-2")
        yield terminal
