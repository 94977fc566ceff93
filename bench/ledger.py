"""The ledger: how long a page of sessions takes among many, what a login costs with the chain, and the proof of it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.processes import Lab
from bench.report import Report, Scale, say
from hooks import Command, CommandQuery, Ledger, SessionInfo, SessionQuery, TokenAuthData, Unfinished, cursor
from recorder import Recorder, recording_path

TURNS = 9  # of one query
_FIRST_AT, _EVERY_SECONDS = 1.7e9, 30.0
_USER, _NAMESPACE, _POD = "user17@example.com", "team-3", "api-7d9f-17"
# As many sessions as rows, of 300 users in 5 namespaces; made by SQL, since a login each would take minutes.
_VARIED = {
    "session_id": "printf('%08x-0000-4000-8000-%012x', i * 2654435761 % 4294967296, i)",
    '"user"': "'user' || (i % 300) || '@example.com'",
    "namespace": "'team-' || (i / 7 % 5)",
    "pod_name": "'api-7d9f-' || (i % 900)",
    "login_at": f"{_FIRST_AT} + {_EVERY_SECONDS} * i",
    "logout_at": "CASE WHEN i <= :open THEN NULL ELSE logout_at END",
    "words": "'user' || (i % 300) || '@example.com' || char(10) || 'api-7d9f-' || (i % 900) || char(10) || 'team-'"
    " || (i / 7 % 5) || char(10) || 'app' || char(10) || 'production' || char(10) || '10.1.' || (i % 250) || '.7'"
    " || char(10) || 'the shell has ended'",
}


def measure_ledger(lab: Lab, scale: Scale, report: Report) -> None:
    """A ledger of many sessions is searched; then one with recordings is proved."""
    folder = lab.folder / "ledger"
    folder.mkdir()
    ledger = Ledger(folder / "sessions.db")
    ledger.open()
    with contextlib.closing(ledger):
        _measure_writes(ledger, scale, report)
        _fill(ledger.path, scale.ledger_sessions)
        _measure_finds(ledger, scale, report)
    _measure_verify(lab, scale, report)


def _info(number: int, file: Path = Path("/records/x.cast")) -> SessionInfo:
    auth = TokenAuthData(_NAMESPACE, _POD, "app", user=_USER, cluster="production")
    return SessionInfo(f"id-{number}", str(file), auth, "10.1.2.3", _FIRST_AT, cluster="production")


def _ended(info: SessionInfo, size: int = 900, sha256: str = "ab" * 32) -> Unfinished:
    end = replace(info, logout_at=_FIRST_AT + 60, reason="the shell has ended", size=size, sha256=sha256)
    return Unfinished(end, tell=False, hang_up=False)


def _measure_writes(ledger: Ledger, scale: Scale, report: Report) -> None:
    calls: dict[str, Callable[[int], object]] = {
        "a login with its entry": lambda number: ledger.login(_info(number)),
        "a logout with its entry": lambda number: ledger.save([_ended(_info(number))]),
        "an entry alone": lambda number: ledger.append("play", user=_USER),
    }
    for name, call in calls.items():
        times = [_milliseconds(call, number) for number in range(scale.keys)]
        report.add(f"ledger: {name}", "ms", *times)


def _fill(path: Path, count: int) -> None:
    """Copies of one session, with other names and times, and a command each."""
    say(f"{count:,} sessions")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        columns = [f'"{row[1]}"' for row in db.execute("PRAGMA table_info(sessions)")]
        values = ", ".join(_VARIED.get(name.strip('"'), _VARIED.get(name, name)) for name in columns)
        numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
        template = "(SELECT * FROM sessions WHERE session_id = 'id-0')"
        db.execute(
            f"{numbers} INSERT INTO sessions ({', '.join(columns)}) SELECT {values} FROM n, {template}",
            {"open": count // 500},
        )
        db.execute(
            f"{numbers} INSERT INTO commands SELECT i, 'id-0', 'user' || (i % 300) || '@example.com',"
            f" {_FIRST_AT} + i, i, 'kubectl get pods --namespace team-' || i, 0 FROM n"
        )


def _measure_finds(ledger: Ledger, scale: Scale, report: Report) -> None:
    middle = _FIRST_AT + _EVERY_SECONDS * scale.ledger_sessions / 2
    queries: dict[str, dict[str, Any]] = {
        "all": {},
        "open": {"state": "open"},
        "ended": {"state": "ended"},
        "of a user": {"user": _USER},
        "of a namespace": {"namespace": _NAMESPACE},
        "of a pod": {"pod": _POD},
        "of a user in a namespace": {"user": _USER, "namespace": _NAMESPACE},
        "open in a namespace": {"state": "open", "namespace": _NAMESPACE},
        "of a day": {"since": middle, "until": middle + 86400},
        "q that all have": {"q": "Production"},
        "q that few have": {"q": "user17@"},
        "q that none has": {"q": "nothing"},
        "q that none has, in a namespace": {"q": "nothing", "namespace": _NAMESPACE},
        "q that none has, of a user": {"q": "nothing", "user": _USER},
    }
    for name, values in queries.items():
        times = [_milliseconds(ledger.find, SessionQuery(**values)) for _ in range(TURNS)]
        report.add(f"a page of {scale.ledger_sessions:,}: {name}", "ms", *times, at_most=10.0)
    query = SessionQuery(before=cursor(ledger.find(SessionQuery(until=middle))[0]))
    times = [_milliseconds(ledger.find, query) for _ in range(TURNS)]
    report.add(f"a page of {scale.ledger_sessions:,}: in the middle", "ms", *times, at_most=10.0)
    for name, text in (("q that all have", "KUBECTL"), ("q that none has", "nothing")):
        times = [_milliseconds(ledger.commands, CommandQuery(q=text)) for _ in range(TURNS)]
        report.add(f"commands of {scale.ledger_sessions:,}: {name}", "ms", *times, at_most=10.0)


def _measure_verify(lab: Lab, scale: Scale, report: Report) -> None:
    """``jumpserver.py verify`` over recordings of 20 kB."""
    folder = lab.folder / "verified"
    records = folder / "records"
    records.mkdir(parents=True)
    (folder / "jumpserver.toml").write_text("")
    ledger = Ledger(records / "sessions.db")
    ledger.open()
    with contextlib.closing(ledger):
        for number in range(scale.verified):
            _record(ledger, records, number)
    command = [sys.executable, str(lab.program), "verify", "-jumpserver", str(folder / "jumpserver.toml")]
    seconds = []
    for _ in range(scale.rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    report.add(f"verify, {scale.verified:,} sessions", "s", *seconds)


def _record(ledger: Ledger, records: Path, number: int) -> None:
    info = _info(number, recording_path(records, f"id-{number}"))
    recorder = Recorder(Path(info.filename), 80, 24)
    recorder.output(json.dumps(number).encode() * (20_000 // len(json.dumps(number))))
    sha256 = recorder.close()
    ledger.login(info)
    ledger.add_commands([Command(info.session_id, 1.0, "ls", 0)])
    ledger.save([_ended(info, recorder.bytes_written, sha256)])


def _milliseconds(call: Callable[..., object], *values: object) -> float:
    start = time.perf_counter()
    call(*values)
    return (time.perf_counter() - start) * 1000
