"""How much output may be on its way to a page, and how often the page says what it has drawn."""

from __future__ import annotations

import time

import pytest

from jumpserver import WINDOW_MAXIMUM_BYTES, WINDOW_MINIMUM_BYTES, Window
from tests.support import RunningServer

TOLD_FIRST = 32 << 10  # what a page goes by before it is told


class Page:
    """Draws at a steady rate, by a clock of its own; the pod prints as fast, or faster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.window = Window(0, True)
        self.every = TOLD_FIRST

    def draw(self, rate: float, seconds: float, *, pod_waits: bool) -> None:
        """Draw for so long; ``pod_waits``: the window is always full."""
        until = self.now + seconds
        while self.now < until:
            self.every = self.window.news() or self.every
            assert self.every < self.window.size  # else page and server would wait for each other
            room = self.window.size - (self.window.sent - self.window.drawn)
            self.window.send(room if pod_waits else min(room, self.every))
            self.now += self.every / rate
            self.window.acknowledge(self.window.drawn + self.every)


def test_the_window_follows_what_the_page_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(monkeypatch)
    page.draw(4e6, 2, pod_waits=True)
    assert page.window.size == pytest.approx(1e6, rel=0.2)
    page.draw(1e6, 3, pod_waits=True)
    assert page.window.size == pytest.approx(250e3, rel=0.2)
    page.draw(1e3, 3000, pod_waits=True)
    assert page.window.size == WINDOW_MINIMUM_BYTES


def test_a_page_that_keeps_up_gets_a_large_window_and_acknowledges_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(monkeypatch)
    page.draw(200e6, 1, pod_waits=False)
    assert page.window.size == WINDOW_MAXIMUM_BYTES
    assert page.every == WINDOW_MAXIMUM_BYTES // 4


def test_a_silent_pod_does_not_make_the_window_small(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(monkeypatch)
    page.draw(8e6, 2, pod_waits=True)
    size = page.window.size
    for _ in range(5):
        page.window.acknowledge(page.window.sent)
        page.now += 1.0
        page.draw(8e6, 0.2, pod_waits=False)
    assert page.window.size == size


def test_a_flood_makes_the_server_ask_for_fewer_acknowledgements(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.type("yes 0123456789012345678901234567890123456789\r")
        while not any(event["type"] == "ack" for event in terminal.events):
            assert terminal.close_code is None
            terminal.step()
        assert terminal.every > TOLD_FIRST
