"""Measures what an auditor waits for: the lists of sessions and commands, over HTTP, from a ledger of many rows."""

from __future__ import annotations

import contextlib
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import replace

from bench.processes import Lab, Server
from bench.report import Report, Scale, percentile
from hooks import Command, Ledger, SessionInfo, TokenAuthData, Unfinished

_BEGAN = 1_700_000_000.0
_USERS, _PODS = 200, 50
# What is asked for.
_LISTS = {
    "the first page": "/sessions",
    "ended ones": "/sessions?state=ended",
    "a user's": "/sessions?user=user-7",
    "a pod's, in some days": "/sessions?pod=pod-7&since=1700100000&until=1700200000",
    "a word that many have": "/sessions?q=production",
    "a word that nobody has": "/sessions?q=nowhere",
    "commands": "/commands",
    "a command that nobody ran": "/commands?q=nothing",
}


def measure_lists(lab: Lab, scale: Scale, report: Report) -> None:
    """The time of a whole request, its connection included."""
    client = lab.helper("client")
    with _ledger(lab) as ledger:
        _fill(ledger, scale.rows)
    with lab.server() as server:
        for name, path in _LISTS.items():
            target = _target(lab, server, path)
            client.do("fetch", target=target, gzip=False)  # the look is in the chain from here on
            answers = [client.do("fetch", target=target, gzip=False) for _ in range(scale.keys // 10)]
            times = [answer["seconds"] * 1000 for answer in answers]
            report.add(f"{scale.rows:,} rows: {name} p50", "ms", percentile(times, 50), at_most=10.0)
            report.add(f"{scale.rows:,} rows: {name} p99", "ms", percentile(times, 99))


def _target(lab: Lab, server: Server, path: str) -> dict[str, object]:
    url = urllib.parse.urlsplit(path)
    query = urllib.parse.urlencode([*urllib.parse.parse_qsl(url.query), ("token", lab.token(scope="audit"))])
    return {"port": server.port, "path": f"{url.path}?{query}"}


@contextlib.contextmanager
def _ledger(lab: Lab) -> Iterator[Ledger]:
    ledger = Ledger(lab.records / "sessions.db")
    ledger.open()
    with contextlib.closing(ledger):
        yield ledger


def _fill(ledger: Ledger, count: int) -> None:
    """Write so many sessions as a server does, each with a command."""
    ended = []
    for number in range(count):
        auth = TokenAuthData("default", f"pod-{number % _PODS}", user=f"user-{number % _USERS}")
        session_id, login_at = str(uuid.UUID(int=number)), _BEGAN + number * 60
        file = f"/data/jumpserver/records/{session_id}.cast"
        info = SessionInfo(session_id, file, auth, "10.0.0.9", login_at, cluster="production")
        ledger.login(info)
        end = replace(info, logout_at=login_at + 600, reason="the shell has ended", exit_code=0, size=50_000)
        ended.append(Unfinished(end, tell=False, hang_up=False))
    ledger.save(ended)
    ledger.add_commands(Command(session.info.session_id, 5.0, "kubectl get pods", 0) for session in ended)
