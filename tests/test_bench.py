"""The benchmark runs and its file has every figure. How large they are is not tested: that depends on the machine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench.report import percentile

ROOT = Path(__file__).parent.parent
FLOODS = ("frames of 4,095", "frames of 32,768", "records of 5,500")
FIGURES = {
    "throughput": [
        f"{flood}: {name}"
        for flood in FLOODS
        for name in (
            *("direct", "pump", "baseline", "ours", "ours, v1", "before, v1"),
            *("ours / baseline", "ours / pump", "v1, ours / before"),
            *("processor time, baseline", "processor time, ours", "processor time, ours, v1"),
        )
    ],
    "latency": [
        *(
            f"echo {percent}, {name}"
            for name in ("direct", "baseline idle", "ours idle", "ours with 60 idle sessions", "ours under 2 floods")
            for percent in ("p50", "p99")
        ),
        "echo p50, ours idle over direct",
    ],
    "sessions": [
        *(f"first prompt beside {count} open" for count in (1, 25, 50)),
        "logins a second, up to 50 open",
        "processor time a login",
        "memory a session, 50 idle",
        "threads a session, 50 idle",
        "sessions in one process",
        "baseline (no tokens, no ledger): logins a second",
        "baseline: processor time a login",
        "baseline: memory a session",
        "baseline: threads a session",
    ],
    "processes": [
        figure
        for name in ("1 process", "2 processes", "4 processes")
        for figure in (f"8 floods, {name}", f"8 floods, {name}: processor time", f"logins a second, {name}")
    ],
    "start": ["start to listening", "of it Python itself", "of it import", "memory at rest"],
    "link": [
        f"{figure}, {who}{route}"
        for route in ("", ", nginx")
        for who in ("v1", "the original's client")
        for figure in (
            *("Ctrl-C to prompt p50", "Ctrl-C to prompt p95"),
            *("waits in the cluster", "drawn after Ctrl-C", "not shown"),
        )
    ],
    "resume": [
        f"{figure}, {name}{more}"
        for name in ("1 process", "2 processes")
        for figure, more in (
            ("drop to prompt p50", ""),
            ("drop to prompt p95", ""),
            ("10 dropped at once", ": all are back"),
            ("10 dropped at once", ": drop to prompt p50"),
        )
    ],
    "ledger": [
        *("ledger: a login with its entry", "ledger: a logout with its entry", "ledger: an entry alone"),
        *("a page of 2,000: all", "a page of 2,000: open", "a page of 2,000: q that none has"),
        *("commands of 2,000: q that none has", "verify, 20 sessions"),
    ],
    "player": ["recording of 20 MB: ours", "recording of 20 MB: ours, gzip", "recording: memory growth of the server"],
}
MAY_BE_ZERO = ("recording: memory growth", "echo p50, ours idle over direct", "waits in the cluster", "not shown")


@pytest.mark.parametrize(
    "sections", [("throughput", "latency"), ("sessions", "processes", "start", "player", "ledger"), ("link", "resume")]
)
def test_a_quick_run_writes_every_figure(tmp_path: Path, sections: tuple[str, ...]) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "bench", "--quick", "--before", "jumpserver.py", "--out", str(out), *sections]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["quick"] and document["machine"]["cpus"] >= 1
    rows = {row["name"]: row for row in document["rows"]}
    assert set(rows) >= {name for section in sections for name in FIGURES[section]}
    for name, row in rows.items():
        assert name in done.stdout
        assert row["low"] <= row["median"] <= row["high"] and math.isfinite(row["median"])
        assert row["median"] > 0 or name.startswith(MAY_BE_ZERO), row
        assert (row["reached"] is None) == (row["target"] is None)


def test_a_percentile_is_the_smallest_value_that_so_many_percent_do_not_exceed() -> None:
    values = [float(i) for i in range(20, 0, -1)]
    assert [percentile(values, percent) for percent in (1, 50, 95, 99, 100)] == [1, 10, 19, 20, 20]
    assert percentile([7.0], 50) == 7


def test_an_unknown_section_is_refused() -> None:
    command = [sys.executable, "-m", "bench", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "nonsense" in done.stderr
