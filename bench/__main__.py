"""Takes the figures and prints them. Owns what is measured, how often, and the targets."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.ledger import measure_ledger
from bench.links import measure_link, measure_resume
from bench.processes import ROOT, Lab, Process, Server, nginx
from bench.report import FULL, MB, QUICK, Report, Scale, percentile, ratios, say, table

SHM = Path("/dev/shm")
SPACE_BYTES = 4 << 30  # for the recordings of one run

# -- 1 and 4: throughput, processor time ------------------------------------------------------------------------------

FRAME_BYTES = 4095  # a terminal's
# How the source sends: the name in the table, the word for it, bytes of output a frame.
FLOODS = (
    ("frames of 4,095", "flood", FRAME_BYTES),
    ("frames of 32,768", "flood", 32768),
    ("records of 5,500", "records", 5500),  # each frame in a TLS record of its own, as a real API server sends it
)
_FIRST_GUESS = 30 * MB  # bytes a second, of a peer not measured yet


def measure_throughput(lab: Lab, scale: Scale, report: Report) -> None:
    """One session at a time. The peers take turns within each round."""
    pump, baseline, client = lab.peer("pump"), lab.peer("baseline"), lab.helper("client")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(lab.server())
        before = stack.enter_context(lab.server(lab.before)) if lab.before else None
        targets: dict[str, Callable[..., dict[str, Any]]] = {
            "direct": lab.direct,
            "pump": lambda *words: lab.through_pump(pump, *words),
            "baseline": lambda *words: lab.through_baseline(baseline, *words),
            "ours": lambda *words: lab.through_server(server, *words),
            "ours, v1": lambda *words: lab.through_server(server, *words, v1=True),
        }
        processes: dict[str, Process] = {"baseline": baseline, "ours": server, "ours, v1": server}
        if before is not None:
            peer = before  # for the lambda, which the type checker does not follow
            targets["before, v1"] = lambda *words: lab.through_server(peer, *words, v1=True)
            processes["before, v1"] = before
        for flood, word, size in FLOODS:
            speeds: dict[str, list[float]] = {name: [] for name in targets}
            costs: dict[str, list[float]] = {name: [] for name in processes}
            guesses = dict.fromkeys(targets, _FIRST_GUESS)
            for turn in range(scale.rounds + 1):  # the first one warms up and finds how much is enough
                for name, target in targets.items():
                    frames = int(guesses[name] * (scale.flood_seconds if turn else 0.3) / size) + 1
                    process = processes.get(name)
                    spent = process.cpu_seconds if process else 0.0
                    seconds = client.do("flood", target=target(word, str(size), str(frames)))["seconds"]
                    if isinstance(process, Server):
                        process.wait_threads(process.idle_threads)
                    lab.forget_recordings()
                    guesses[name] = frames * size / seconds
                    if turn:
                        speeds[name].append(frames * size / seconds / MB)
                        if process:
                            costs[name].append((process.cpu_seconds - spent) / (frames * size / 1e9))
            _report_throughput(report, flood, speeds, costs)


def _report_throughput(
    report: Report, flood: str, speeds: dict[str, list[float]], costs: dict[str, list[float]]
) -> None:
    for name, values in speeds.items():
        report.add(f"{flood}: {name}", "MB/s", *values, at_least=100.0 if name == "ours" else None)
    over_baseline = ratios(speeds["ours"], speeds["baseline"])
    report.add(f"{flood}: ours / baseline", "x", *over_baseline, at_least=3.0 if flood == FLOODS[0][0] else None)
    report.add(f"{flood}: ours / pump", "x", *ratios(speeds["ours"], speeds["pump"]))
    if "before, v1" in speeds:
        report.add(f"{flood}: v1, ours / before", "x", *ratios(speeds["ours, v1"], speeds["before, v1"]), at_least=0.97)
    for name, values in costs.items():
        report.add(f"{flood}: processor time, {name}", "s/GB", *values, at_most=10.0 if name == "ours" else None)


# -- 2: echo ----------------------------------------------------------------------------------------------------------


def measure_latency(lab: Lab, scale: Scale, report: Report) -> None:
    """Type a word, wait for its echo, type the next."""
    client, others, baseline = lab.helper("client"), lab.helper("client"), lab.peer("baseline")
    floods = [lab.helper("client") for _ in range(2)]
    figures: dict[str, list[list[float]]] = {}

    def measure(name: str, target: dict[str, Any]) -> None:
        say(f"echo, {name}")
        answer = client.do("echo", target=target, count=scale.keys)
        figures.setdefault(name, []).append(answer["milliseconds"])

    with lab.server() as server:
        for _ in range(max(1, scale.rounds * 3 // 5)):
            measure("direct", lab.direct("echo"))
            measure("baseline idle", lab.through_baseline(baseline, "echo"))
            measure("ours idle", lab.through_server(server, "echo"))
            idle = [lab.through_server(server, "idle") for _ in range(min(100, scale.sessions[-1]))]
            others.do("open", targets=idle, workers=4)
            measure(f"ours with {len(idle)} idle sessions", lab.through_server(server, "echo"))
            others.do("close")
            server.wait_threads(server.idle_threads)
            with flooding(lab, server, floods):
                measure("ours under 2 floods", lab.through_server(server, "echo"))
            server.wait_threads(server.idle_threads)
            lab.forget_recordings()
    _report_latency(report, figures)


@contextlib.contextmanager
def flooding(lab: Lab, server: Server, clients: list[Any]) -> Iterator[None]:
    """Flood sessions run at full speed during the block."""
    for client in clients:
        client.do("drain", target=lab.through_server(server, "flood", str(FRAME_BYTES), str(10**9), cluster="flood"))
    yield
    for client in clients:
        client.do("close")


def _report_latency(report: Report, figures: dict[str, list[list[float]]]) -> None:
    middles = {name: [percentile(run, 50) for run in runs] for name, runs in figures.items()}
    for name, runs in figures.items():
        limit = 20.0 if "floods" in name else None
        report.add(f"echo p50, {name}", "ms", *middles[name])
        report.add(f"echo p99, {name}", "ms", *(percentile(run, 99) for run in runs), at_most=limit)
    over = [ours - direct for ours, direct in zip(middles["ours idle"], middles["direct"])]
    report.add("echo p50, ours idle over direct", "ms", *over, at_most=0.3)


# -- 3: many sessions -------------------------------------------------------------------------------------------------


def measure_sessions(lab: Lab, scale: Scale, report: Report) -> None:
    """Open more and more idle sessions in one server; as many in the baseline as memory is read at."""
    client, prober, baseline = lab.helper("client"), lab.helper("client"), lab.peer("baseline")
    *steps, most = scale.sessions
    with lab.server() as server:
        _first_prompts(lab, server, prober, scale)  # imports, caches
        memory = server.status("VmRSS")
        opened = 0
        for step in (*steps, most):
            targets = [lab.through_server(server, "idle") for _ in range(step - opened)]
            opened = step
            logins, costs = _open_all(server, client, targets)
            if step == steps[-1]:
                report.add(f"logins a second, up to {step:,} open", "/s", *logins, at_least=200.0)
                report.add("processor time a login", "ms", *costs)
                report.add(f"memory a session, {step:,} idle", "KB", _each(server, "VmRSS", memory, step), at_most=60.0)
                threads = _each(server, "Threads", server.idle_threads, step)
                report.add(f"threads a session, {step:,} idle", "", threads, at_most=3.0)
            if step != most:
                report.add(f"first prompt beside {step:,} open", "ms", *_first_prompts(lab, server, prober, scale))
        report.add("sessions in one process", "", float(opened), at_least=2000.0 if scale is FULL else None)
    client.do("close")
    targets = [lab.through_baseline(baseline, "idle")] * steps[-1]
    memory, idle_threads = baseline.status("VmRSS"), baseline.status("Threads")
    logins, costs = _open_all(baseline, client, targets)
    report.add("baseline (no tokens, no ledger): logins a second", "/s", *logins)
    report.add("baseline: processor time a login", "ms", *costs)
    report.add("baseline: memory a session", "KB", _each(baseline, "VmRSS", memory, steps[-1]))
    report.add("baseline: threads a session", "", _each(baseline, "Threads", idle_threads, steps[-1]))


def _open_all(process: Process, client: Any, targets: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Open these terminals in a few batches; returns each batch's logins a second, and milliseconds of processor."""
    size = max(50, len(targets) // 5)  # fewer would drown in the 10 ms of the kernel's clock
    logins, costs = [], []
    for batch in (targets[i : i + size] for i in range(0, len(targets), size)):
        spent = process.cpu_seconds
        logins.append(len(batch) / client.do("open", targets=batch, workers=8)["seconds"])
        costs.append((process.cpu_seconds - spent) / len(batch) * 1000)
    return logins, costs


def _each(process: Process, key: str, before: int, sessions: int) -> float:
    return (process.status(key) - before) / sessions


def _first_prompts(lab: Lab, server: Server, prober: Any, scale: Scale) -> list[float]:
    """One after the other; closed again."""
    threads = server.status("Threads")
    targets = [lab.through_server(server, "idle") for _ in range(scale.probes)]
    milliseconds: list[float] = prober.do("open", targets=targets, workers=1)["milliseconds"]
    prober.do("close")
    server.wait_threads(threads)
    return milliseconds


# -- 4: several processes ---------------------------------------------------------------------------------------------

PROCESSES = (1, 2, 4)
_FLOODS = 8


def measure_processes(lab: Lab, scale: Scale, report: Report) -> None:
    """Floods at the same time, and logins, through servers that share a port; the load takes processors from them."""
    clients = [lab.helper("client") for _ in range(_FLOODS)]
    frames = int(scale.flood_seconds * 100 * MB / _FLOODS / FRAME_BYTES)
    speeds: dict[int, list[float]] = {count: [] for count in PROCESSES}
    costs: dict[int, list[float]] = {count: [] for count in PROCESSES}
    logins: dict[int, list[float]] = {count: [] for count in PROCESSES}
    for _ in range(scale.rounds):
        for count in PROCESSES:
            with lab.servers(count) as servers:
                speed, cost = _flood_together(lab, servers, clients, frames)
                speeds[count].append(speed)
                costs[count].append(cost)
                targets = [lab.through_server(servers[0], "idle") for _ in range(scale.sessions[1])]
                logins[count].append(len(targets) / clients[0].do("open", targets=targets, workers=8)["seconds"])
                clients[0].do("close")
            lab.forget_recordings()
    for count in PROCESSES:
        name = "1 process" if count == 1 else f"{count} processes"
        report.add(f"{_FLOODS} floods, {name}", "MB/s", *speeds[count])
        if count > 1:
            report.add(f"{_FLOODS} floods, {name} / 1 process", "x", *ratios(speeds[count], speeds[1]))
        report.add(f"{_FLOODS} floods, {name}: processor time", "s/GB", *costs[count])
        report.add(f"logins a second, {name}", "/s", *logins[count])


def _flood_together(lab: Lab, servers: list[Server], clients: list[Any], frames: int) -> tuple[float, float]:
    """A flood for each client; returns MB/s of all, and seconds of the servers' processor time a GB."""
    spent = sum(server.cpu_seconds for server in servers)
    for client, cluster in zip(clients, itertools.cycle(lab.sources)):
        words = ("flood", str(FRAME_BYTES), str(frames))
        client.give("flood", target=lab.through_server(servers[0], *words, cluster=cluster))
    seconds = max(client.take()["seconds"] for client in clients)
    for server in servers:
        server.wait_threads(server.idle_threads)
    spent = sum(server.cpu_seconds for server in servers) - spent
    volume = len(clients) * frames * FRAME_BYTES
    return volume / seconds / MB, spent / (volume / 1e9)


# -- 5: start ---------------------------------------------------------------------------------------------------------


def measure_start(lab: Lab, scale: Scale, report: Report) -> None:
    """Start the server again and again; the first start, which fills caches, does not count."""
    starts, memory, imports, bare = [], [], [], []
    for turn in range(scale.starts + 1):
        with lab.server() as server:
            seconds, resident = server.start_seconds, server.status("VmRSS") / 1024
        if turn:
            starts.append(seconds)
            memory.append(resident)
            imports.append(_python_seconds(lab, "import jumpserver, os; os._exit(0)"))
            bare.append(_python_seconds(lab, "import os; os._exit(0)"))
    report.add("start to listening", "s", *starts, at_most=0.25)
    report.add("of it Python itself", "s", *bare)
    report.add("of it import", "s", *(whole - python for whole, python in zip(imports, bare)))
    report.add("memory at rest", "MB", *memory, at_most=30.0)


def _python_seconds(lab: Lab, code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=lab.program.parent, check=True)
    return time.perf_counter() - start


# -- 6: recordings ----------------------------------------------------------------------------------------------------


_FILES = "gzip on; gzip_types *; server {{ listen 127.0.0.1:8080; root {root}; }}"


def measure_player(lab: Lab, scale: Scale, report: Report) -> None:
    """Download a long recording from the server, and the same file from nginx."""
    folder = lab.records / "long"
    folder.mkdir()
    recording = folder / "long.cast"
    texts = (
        "".join(f"\x1b[32m日志\x1b[0m request {i}{n} handled in {i * n % 977} ms\r\n" for n in range(20))
        for i in range(5000)
    )
    lines = "".join(json.dumps([1.5, "o", text], ensure_ascii=False) + "\n" for text in texts)
    with recording.open("w", encoding="utf-8") as file:
        file.write('{"version": 2, "width": 120, "height": 40}\n')
        while file.tell() < scale.recording_bytes:
            file.write(lines)
    client = lab.helper("client")
    speeds: dict[str, list[float]] = {}
    growth = []
    with lab.server() as server, contextlib.ExitStack() as stack:
        targets = {"ours": lab.download(server, "long/long.cast")}
        if shutil.which("nginx"):
            targets["nginx"] = {
                "port": stack.enter_context(nginx(lab.folder, _FILES.format(root=lab.records))),
                "path": "/long/long.cast",
            }
        else:
            report.notes.append("nginx is not installed: recordings are not compared with it")
        for turn in range(scale.rounds + 1):
            server.forget_peak()
            before = server.status("VmRSS")
            for packed in ("", ", gzip"):
                for name, target in targets.items():
                    answer = client.do("fetch", target=target, gzip=bool(packed))
                    if turn:
                        speed = recording.stat().st_size / answer["seconds"] / MB
                        speeds.setdefault(f"{name}{packed}", []).append(speed)
            if turn:
                growth.append((server.status("VmHWM") - before) / 1024)
    for name, values in speeds.items():
        report.add(f"recording of {scale.recording_bytes >> 20} MB: {name}", "MB/s", *values)
    for packed in ("", ", gzip"):
        if "nginx" in targets:
            report.add(
                f"recording: ours / nginx{packed}", "x", *ratios(speeds[f"ours{packed}"], speeds[f"nginx{packed}"])
            )
    report.add("recording: memory growth of the server", "MB", *growth)


# -- the command ------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Lab, Scale, Report], None]] = {
    "throughput": measure_throughput,
    "latency": measure_latency,
    "sessions": measure_sessions,
    "processes": measure_processes,
    "start": measure_start,
    "player": measure_player,
    "link": measure_link,
    "resume": measure_resume,
    "ledger": measure_ledger,
}


def machine(folder: Path) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 1),
        "recordings": "memory (/dev/shm)" if SHM in folder.parents else "disk",
    }


def lab_parent() -> Path | None:
    """Where the recordings go: memory where there is enough, so that the disk is not what is measured."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(SHM).free >= SPACE_BYTES:
            return SHM
    return None


def allow_files(report: Report) -> None:
    """Let the processes open as many files as the system allows; the server needs three a session."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = FULL.sessions[-1] * 3 + 100
    if hard != resource.RLIM_INFINITY and hard < needed:
        report.notes.append(f"only {hard} open files are allowed here; the sessions need {needed}")


def main() -> int:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="one short round: whether it works, not how fast")
    parser.add_argument("--server", type=Path, default=ROOT / "jumpserver.py", help="another jumpserver.py")
    parser.add_argument("--before", type=Path, help="a jumpserver.py to take turns with: v1's throughput beside its")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json", help="the JSON file")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}")
    report = Report()
    allow_files(report)
    scale = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="bench-", dir=lab_parent()) as folder:
        facts = machine(Path(folder))
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as on a host where the server was started before
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        if facts["load"] > 0.5:
            report.notes.append(
                f"this machine was busy at the start (load {facts['load']}): measure again when it is calm"
            )
        for name in options.sections or SECTIONS:
            report.section = name
            say(f"-- {name}")
            (Path(folder) / name).mkdir()
            lab = Lab(Path(folder) / name, options.server.resolve(), options.before and options.before.resolve())
            try:
                SECTIONS[name](lab, scale, report)
            finally:
                lab.stop()
                shutil.rmtree(lab.folder)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": facts, "quick": options.quick, "notes": report.notes}
    rows = [row.as_json() for row in report.rows]
    options.out.write_text(json.dumps({**document, "rows": rows}, indent=1) + "\n")
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(table(report.rows), *report.notes, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
