"""The short form of the soak: half a minute of users, and of all that breaks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HAPPENED = (
    *("sessions", "type", "flood", "interrupt", "resize", "come back", "come back in a flood", "take over", "resumed"),
    *("leave", "recordings that vanished", "refusals of the platform that failed", "MB shown"),
)


def test_after_half_a_minute_of_everything_nothing_is_lost_and_nothing_is_left() -> None:
    command = [sys.executable, "-m", "bench.soak", "--short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(number.replace(",", "")) for name, number in re.findall(r"(?m)^(.+?) +([\d,]+)$", done.stdout)}
    assert all(counts.get(name, 0) > 0 for name in HAPPENED), done.stdout
    checks = re.findall(r"(?m) (\d[\d,]*)  (yes|NO)$", done.stdout)
    assert len(checks) == 12 and all(verdict == "yes" and number != "0" for number, verdict in checks), done.stdout


def test_the_soak_says_no_where_something_does_not_hold() -> None:
    command = [sys.executable, "-m", "bench.soak", "--server", "nowhere.py", "--short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "did not start" in done.stderr
