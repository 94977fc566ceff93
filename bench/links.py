"""Measures what a page feels of its connection: a slow link under a flood, and the way back after a drop."""

from __future__ import annotations

import contextlib
import shutil
import time
from typing import Any

from bench.processes import ROOT, Helper, Lab, nginx
from bench.report import MB, Report, Scale, percentile

LINK_BYTES_PER_SECOND = 1_000_000
LINK_DELAY_SECONDS = 0.05  # each way
_SITE = ROOT / "deploy" / "nginx.conf"


def measure_link(lab: Lab, scale: Scale, report: Report) -> None:
    """Ctrl-C in a flood over a slow link, until the prompt is drawn; with and without nginx behind the link."""
    standin = lab.helper("standin", str(lab.kubeconfig("standin")))
    client = lab.helper("client")
    with lab.server() as server, contextlib.ExitStack() as stack:
        routes = {"": (server.port, "")}
        if shutil.which("nginx"):
            site = _SITE.read_text().replace("127.0.0.1:7000", f"127.0.0.1:{server.port}")
            routes[", nginx"] = (stack.enter_context(nginx(lab.folder, site)), "/jumpserver")
        else:
            report.notes.append("nginx is not installed: the slow link was not measured through it")
        for name, (port, prefix) in routes.items():
            proxy = lab.helper("proxy", str(port), str(LINK_BYTES_PER_SECOND), str(LINK_DELAY_SECONDS))
            for who, runs in (("v1", scale.interrupts), ("the original's client", scale.interrupts_original)):
                answers = []
                for _ in range(runs):
                    target = lab.page(proxy.port, v1=who == "v1", prefix=prefix)
                    answers.append(_interrupt(standin, client, target, scale.flood_for))
                    server.wait_threads(server.idle_threads)
                    lab.forget_recordings()
                _report_link(report, f"{who}{name}", answers)


def _interrupt(standin: Helper, client: Helper, target: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One run; also how much waited in the cluster shortly before Ctrl-C."""
    client.give("interrupt", target=target, seconds=seconds)
    time.sleep(seconds)
    waiting = standin.do("look")["waiting_bytes"]
    return {**client.take(), "waiting": waiting}


def _report_link(report: Report, name: str, answers: list[dict[str, Any]]) -> None:
    seconds = [answer["seconds"] for answer in answers]
    limit = 0.6 if name.startswith("v1") else None
    report.add(f"Ctrl-C to prompt p50, {name}", "s", *seconds)
    report.add(f"Ctrl-C to prompt p95, {name}", "s", percentile(seconds, 95), at_most=limit)
    for key, what in (("waiting", "waits in the cluster"), ("drawn", "drawn after Ctrl-C"), ("skipped", "not shown")):
        report.add(f"{what}, {name}", "MB", *(answer[key] / MB for answer in answers))


def measure_resume(lab: Lab, scale: Scale, report: Report) -> None:
    """From a dropped connection to a prompt: one page again and again, then many pages at the same time."""
    lab.helper("standin", str(lab.kubeconfig("standin")))
    client = lab.helper("client")
    for count, name in ((1, "1 process"), (2, "2 processes")):
        with lab.servers(count) as servers:
            port = servers[0].port
            if not client.do("open_pages", targets=[lab.page(port)])["can_resume"]:
                report.notes.append("this server keeps no shell for a page that lost its connection")
                client.do("close_pages")
                return
            back = [client.do("come_back")["milliseconds"][0] for _ in range(scale.drops)]
            client.do("close_pages")
            report.add(f"drop to prompt p50, {name}", "ms", *back, at_most=300.0)
            report.add(f"drop to prompt p95, {name}", "ms", percentile(back, 95))
            client.do("open_pages", targets=[lab.page(port) for _ in range(scale.pages)])
            together = client.do("come_back")
            client.do("close_pages")
            back = together["milliseconds"]
            report.add(f"{scale.pages} dropped at once, {name}: all are back", "s", together["seconds"])
            report.add(f"{scale.pages} dropped at once, {name}: drop to prompt p50", "ms", *back)
