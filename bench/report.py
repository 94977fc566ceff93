"""What was measured: how much, the figures with their targets, and the table. Measures nothing itself."""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from dataclasses import dataclass
from typing import Any

MB = 1e6


def say(text: str) -> None:
    """A progress line."""
    print(f"[bench] {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int
    flood_seconds: float  # of each flood, roughly
    keys: int  # typed for one latency figure
    sessions: tuple[int, ...]  # open at a time; the last is only reached, the one before is where memory is read
    probes: int  # first prompts timed at each of these
    recording_bytes: int
    starts: int
    interrupts: int  # floods interrupted over a slow link
    interrupts_original: int  # by a client of the original, which waits long for each
    flood_for: float  # seconds of each until Ctrl-C
    drops: int  # of one page, one after the other
    pages: int  # dropped at the same time
    ledger_sessions: int  # in a ledger that is searched
    verified: int  # sessions with a recording, held against the chain


FULL = Scale(
    rounds=5,
    flood_seconds=1.5,
    keys=1000,
    sessions=(1, 100, 1000, 2000),
    probes=15,
    recording_bytes=200 << 20,
    starts=9,
    interrupts=20,
    interrupts_original=3,
    flood_for=4.0,
    drops=30,
    pages=100,
    ledger_sessions=100_000,
    verified=10_000,
)
QUICK = Scale(
    rounds=1,
    flood_seconds=0.2,
    keys=100,
    sessions=(1, 25, 50, 60),
    probes=3,
    recording_bytes=20 << 20,
    starts=2,
    interrupts=2,
    interrupts_original=1,
    flood_for=0.3,
    drops=3,
    pages=10,
    ledger_sessions=2000,
    verified=20,
)


@dataclass(frozen=True)
class Row:
    """One figure: the values of its rounds, and the target for their median."""

    section: str
    name: str
    unit: str
    values: tuple[float, ...]
    target: float | None = None
    at_least: bool = True  # whether the target is a floor

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """None where there is no target."""
        if self.target is None:
            return None
        return self.median >= self.target if self.at_least else self.median <= self.target

    def as_json(self) -> dict[str, Any]:
        """Everything, for the file."""
        derived = {"median": self.median, "low": min(self.values), "high": max(self.values), "reached": self.reached}
        return {**dataclasses.asdict(self), **derived}


class Report:
    """The rows so far, and notes on what could not be measured."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.section = ""

    def add(
        self, name: str, unit: str, *values: float, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        """Add a figure with the values of its rounds."""
        target = at_most if at_least is None else at_least
        row = Row(self.section, name, unit, values, target, at_most is None)
        self.rows.append(row)
        say(f"{name}: {row.median:.4g} {unit}")


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Round by round: what disturbs the machine disturbs both."""
    return [mine / other for mine, other in zip(ours, theirs)]


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def table(rows: list[Row]) -> str:
    """The rows, aligned."""
    lines = [("figure", "median", "low .. high", "", "target", "")]
    for row in rows:
        target = "" if row.target is None else f"{'>=' if row.at_least else '<='} {row.target:g}"
        verdict = {None: "", True: "reached", False: "MISSED"}[row.reached]
        spread = f"{_short(min(row.values))} .. {_short(max(row.values))}" if len(row.values) > 1 else ""
        lines.append((row.name, _short(row.median), spread, row.unit, target, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    aligned = [
        f"{name:<{widths[0]}}  {median:>{widths[1]}} {unit:<{widths[3]}}  {spread:>{widths[2]}}  "
        f"{target:>{widths[4]}}  {verdict}".rstrip()
        for name, median, spread, unit, target, verdict in lines
    ]
    return "\n".join(aligned)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
