"""Take the pictures in docs/images from the demo as it runs: ``make screenshots``.

Needs a Chromium: the one that CHROMIUM names, else the one on PATH.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from demo.__main__ import record, serving
from demo.cluster import Pod, StandIn
from examples.http_platform import PEOPLE, Place, Platform
from tests.conftest import CHROMIUM_ARGS, WAIT_MS

FOLDER = Path(__file__).parent.parent / "docs" / "images"
LIMIT_BYTES = 300_000  # of all pictures together
QUALITY = 85  # of WebP, in per cent
CART = Place("shop", "cart-7d9f8c5b6-x2x4q", "app")
CHECKOUT, LEDGER = Place("shop", "checkout-5c4d9-kk7lm"), Place("payments", "ledger-0")
PODS = (
    Pod("shop", CART.pod, (CART.container,), whole_host=True),
    Pod("shop", CHECKOUT.pod),
    Pod("payments", LEDGER.pod),
)
# Typed in the first terminal, whose recording the player shows.
TYPED = (
    r"PS1='\[\e[1;32m\]cart\[\e[0m\]:\[\e[1;34m\]\W\[\e[0m\]$ '; clear",
    "mkdir -p releases/r41 releases/r42 && ln -s releases/r42 current",
    r"printf 'GET /cart %s ms\n' '200 3' '200 4' '500 812' '200 3' >access.log",
    "ls -l --color=always",
    "grep --color=always -n ' 500 ' access.log",
    "cat current/VERSION",
    "ln -sfn releases/r41 current && echo rolled back",
)
LAST_LINE = """() => {
    const buffer = document.querySelector("#terminal").terminal.buffer.active;
    return buffer.getLine(buffer.baseY + buffer.cursorY).translateToString(true);
}"""


def take(page: Page, name: str) -> None:
    """Write what the page shows as WebP, which playwright itself does not offer."""
    options = {"format": "webp", "quality": QUALITY}
    shot = page.context.new_cdp_session(page).send("Page.captureScreenshot", options)
    (FOLDER / f"{name}.webp").write_bytes(base64.b64decode(shot["data"]))


def wait_for_prompt(page: Page) -> None:
    page.wait_for_function(f"() => /^\\S*[$#] ?$/.test(({LAST_LINE})())")


def type_all(page: Page) -> None:
    """Type line after line, each when the prompt is back, and end it when all of it is there."""
    expect(page.locator("body")).to_have_attribute("data-phase", "connected")
    for line in TYPED:
        wait_for_prompt(page)
        page.keyboard.type(line)
        page.wait_for_function(f"(line) => ({LAST_LINE})().endsWith(line)", arg=line)
        page.keyboard.press("Enter")
    wait_for_prompt(page)


def take_all(browser: Browser, platform: Platform) -> None:
    context = browser.new_context(viewport={"width": 1000, "height": 480}, color_scheme="dark")
    context.set_default_timeout(WAIT_MS)
    page, auditor = context.new_page(), context.new_page()
    for person, place in (("alice", CHECKOUT), ("bob", LEDGER), ("bob", CHECKOUT)):
        record(platform, person, place)
    page.goto(platform.terminal_link("alice", CART))
    type_all(page)
    take(page, "terminal")

    auditor.goto(platform.sessions_link("carol"))
    expect(auditor.locator("#open .item")).to_have_count(1)
    expect(auditor.locator("#ended .item")).to_have_count(3)
    take(auditor, "sessions")

    page.keyboard.type("exit 0\n")
    expect(page.locator("body")).to_have_attribute("data-phase", "ended")
    session = next(s for s in platform.sessions(PEOPLE["carol"]) if s["pod_name"] == CART.pod)
    auditor.set_viewport_size({"width": 1400, "height": 640})  # so that it is readable without a scroll bar
    auditor.goto(platform.replay_link("carol", session["session_id"]))
    auditor.wait_for_function("() => document.querySelector('#player').player?.getDuration() > 0")
    auditor.evaluate("() => document.querySelector('#player').player.seek('95%')")
    auditor.wait_for_function("() => document.querySelector('#player .ap-term')?.textContent.includes('rolled back')")
    expect(auditor.locator("#elapsed")).not_to_have_text(re.compile("^0?0:00 "))
    take(auditor, "player")


def main() -> int:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-headless-shell")
    if not chromium:
        print("screenshots: Chromium is not installed", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="jumpserver-screenshots-") as name, StandIn(pods=PODS) as cluster:
        folder = Path(name)
        (folder / "kubeconfig").write_text(cluster.kubeconfig())
        with serving((CART, CHECKOUT, LEDGER), folder / "kubeconfig", folder) as web, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
            take_all(browser, web.platform)
            browser.close()
    size = sum(file.stat().st_size for file in FOLDER.iterdir())
    print(f"{FOLDER}: {size} bytes of {LIMIT_BYTES}")
    return 0 if size <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
