"""Measures what those who watch a session take from it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.processes import Helper, Lab, Server
from bench.report import MB, Report, Scale, ratios

WATCHERS = (0, 1, 20)
_FRAME_BYTES = 4095
_LONGER = 4  # than other floods, so that it counts little what it takes to begin to watch
_FIRST_FRAMES = int(30 * MB / _FRAME_BYTES)
_START_SECONDS = 10.0  # for a recording to appear


def measure_watchers(lab: Lab, scale: Scale, report: Report) -> None:
    """A flood with nobody who watches, one, and many. They take turns within each round."""
    client, audience = lab.helper("client"), lab.helper("client")
    speeds: dict[int, list[float]] = {count: [] for count in WATCHERS}
    costs: dict[int, list[float]] = {count: [] for count in WATCHERS}
    frames = _FIRST_FRAMES
    with lab.server() as server:
        for turn in range(scale.rounds + 1):  # the first one warms up and finds how much is enough
            for count in WATCHERS:
                spent = server.cpu_seconds
                seconds = _flood(lab, server, client, audience, frames, count)
                server.wait_threads(server.idle_threads)
                lab.forget_recordings()
                volume = frames * _FRAME_BYTES
                if turn:
                    speeds[count].append(volume / seconds / MB)
                    costs[count].append((server.cpu_seconds - spent) / (volume / 1e9))
                elif not count:
                    frames = int(frames * _LONGER * scale.flood_seconds / seconds)
    for count in WATCHERS:
        name = f"{count} {'watcher' if count == 1 else 'watchers'}"
        report.add(f"a flood, {name}", "MB/s", *speeds[count])
        report.add(f"a flood, {name}: processor time", "s/GB", *costs[count])
        if count:
            report.add(f"a flood, {name} / none", "x", *ratios(speeds[count], speeds[0]), at_least=0.9)


def _flood(lab: Lab, server: Server, client: Helper, audience: Helper, frames: int, count: int) -> float:
    """The seconds that a flood takes with so many who watch it from its first second on."""
    client.give("flood", target=lab.through_server(server, "flood", str(_FRAME_BYTES), str(frames), v1=True))
    recording = _newest(lab.records)
    for _ in range(count):
        audience.do("drain", target=lab.live(server, str(recording.relative_to(lab.records))))
    answer: dict[str, Any] = client.take()
    audience.do("close")
    return float(answer["seconds"])


def _newest(folder: Path) -> Path:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        for path in folder.rglob("*.cast"):
            return path
        time.sleep(0.005)
    raise TimeoutError("no recording appeared")
