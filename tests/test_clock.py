"""The clock does what is to be done once a second, whatever fails."""

from __future__ import annotations

import logging
import threading

import pytest

from jumpserver import Clock
from tests.support import WAIT_SECONDS, nothing_left


def test_a_tick_that_fails_is_logged_and_keeps_no_other_from_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    turns = threading.Semaphore(0)
    clock = Clock()

    def fail() -> None:
        raise RuntimeError("no tick today")

    clock.ticks += [fail, turns.release]
    with nothing_left(), caplog.at_level(logging.ERROR):
        clock.start()
        try:
            assert turns.acquire(timeout=WAIT_SECONDS)
            assert turns.acquire(timeout=WAIT_SECONDS)
        finally:
            clock.stop()
    assert "no tick today" in caplog.text


def test_a_clock_that_never_ran_can_be_stopped() -> None:
    with nothing_left():
        Clock().stop()
