"""How fast recordings are searched and packed, on one core."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.processes import Lab
from bench.report import MB, Report, Scale
from recorder import Recorder, Wanted, open_recording, pack, search, transcript

WORDS = ("error", "default", "running", "container", "kubectl", "delete", "pod", "image pulled", "日志", "in 12 ms")
TEXTS = ("never there", "error: not there", "kubectl delete namespace")  # whose first letters are more and less common


def measure_search(lab: Lab, scale: Scale, report: Report) -> None:
    """Search recordings for what is not in them: what is found costs as much as is printed."""
    kinds = {"lines": ("", 4095), "colours": ("\x1b[32m", 4095), "echoes": ("", 40)}
    for kind, (colour, event_bytes) in kinds.items():
        path = lab.folder / f"{kind}.cast"
        _record(path, colour, event_bytes, scale.recording_bytes)
        for text in TEXTS:
            speeds = [_speed(path, functools.partial(_search, path, text)) for _ in range(scale.rounds)]
            report.add(f"grep {text!r} in {kind}", "MB/s", *speeds, at_least=200.0)
    path = lab.folder / "lines.cast"
    report.add("grep, upper and lower case", "MB/s", _speed(path, functools.partial(_search, path, TEXTS[0], True)))
    report.add("transcript", "MB/s", _speed(path, functools.partial(_read, path)))
    size = path.stat().st_size
    seconds = _seconds(functools.partial(pack, path, lambda: False))
    report.add("pack", "MB/s", size / seconds / MB)
    report.add("packed", "x smaller", size / path.with_name("lines.cast.gz").stat().st_size)
    report.add("grep in it", "MB/s", size / _seconds(functools.partial(_search, path, TEXTS[0])) / MB)


def _record(path: Path, colour: str, event_bytes: int, size: int) -> None:
    recorder = Recorder(path, 120, 40)
    for data in _pieces(colour, event_bytes):
        recorder.output(data)
        if recorder.bytes_written >= size:
            recorder.close()
            return


def _pieces(colour: str, event_bytes: int) -> Iterator[bytes]:
    chosen = random.Random(1)
    lines = (" ".join(f"{colour}{word}" for word in chosen.choices(WORDS, k=12)) for _ in range(20_000))
    text = "".join(f"{line}\r\n" for line in lines).encode()
    while True:
        for start in range(0, len(text), event_bytes):
            yield text[start : start + event_bytes]


def _search(path: Path, text: str, ignore_case: bool = False) -> None:
    with open_recording(path) as file:
        assert not list(search(file, Wanted(text, ignore_case=ignore_case), lambda _: None))


def _read(path: Path) -> None:
    with open_recording(path) as file:
        for _ in transcript(file):
            pass


def _speed(path: Path, work: Callable[[], object]) -> float:
    return path.stat().st_size / _seconds(work) / MB


def _seconds(work: Callable[[], object]) -> float:
    """Of processor time."""
    before = time.process_time()
    work()
    return time.process_time() - before
