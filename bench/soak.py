"""A day in ten minutes: ``python -m bench.soak``. Many users on two servers of one ledger, while all breaks that can.

Looks only at what anybody can see: the wire, the ledger, the files, and what the kernel counts for the processes.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.page import GOING_AWAY, NORMAL, Ended, Page, Refused
from bench.processes import ROOT, Lab, Process, Server

READY = "<ready> "
GRACE_SECONDS = 10
WAIT_SECONDS = 30.0  # for anything that a user types; then it counts as lost
TAKEN = 4409
SESSION_OVER = 4410
LINK_BYTES_PER_SECOND, LINK_DELAY_SECONDS = 1_000_000, 0.03  # each way; of every fifth user


@dataclass(frozen=True)
class Plan:
    """How long, for how many, and how busy they are."""

    users: int
    seconds: float
    think_seconds: float  # between two things that a user does, on average
    settle_seconds: float = 60.0  # for what is left to do after the last user has gone
    has_memory_limit: bool = True


LONG = Plan(users=300, seconds=600, think_seconds=3.0)
SHORT = Plan(users=24, seconds=18, think_seconds=0.25, has_memory_limit=False)  # too short for memory to be level


def say(text: str) -> None:
    """A progress line."""
    print(f"[soak] {text}", file=sys.stderr, flush=True)


# -- the platform -----------------------------------------------------------------------------------------------------


class Platform(http.server.ThreadingHTTPServer):
    """Is told of logins and logouts; fails while ``fails`` is set."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self) -> None:
        self.fails = threading.Event()
        self.told: dict[str, Counter[str]] = {"/login": Counter(), "/logout": Counter()}  # by session
        self.refused = 0
        super().__init__(("127.0.0.1", 0), _Told)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def lines(self) -> list[str]:
        """Its part of the configuration."""
        base = f"http://127.0.0.1:{self.server_port}"
        return ["[Platform]", f'login_url = "{base}/login"', f'logout_url = "{base}/logout"']


class _Told(http.server.BaseHTTPRequestHandler):
    server: Platform

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.fails.is_set():
            self.server.refused += 1
            self.send_response(500)
        else:
            self.server.told[self.path][body["session_id"]] += 1
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


# -- the users --------------------------------------------------------------------------------------------------------


@dataclass
class Segment:
    """Output that came without a gap, from a position on."""

    begin: int
    end: int
    digest: Any


class WatchedPage(Page):
    """A page that remembers what it has shown, as digests."""

    def __init__(self, port: int, *, v1: bool, news: News) -> None:
        super().__init__(port, v1=v1, timeout=WAIT_SECONDS)
        self.segments: list[Segment] = []
        self._news = news

    def receive(self, timeout: float | None = None) -> bytes:
        data = super().receive(timeout)
        if data:
            begin = self.position - len(data)
            if not self.segments or self.segments[-1].end != begin:
                self.segments.append(Segment(begin, begin, hashlib.sha256()))
            self.segments[-1].digest.update(data)
            self.segments[-1].end = self.position
        return data

    def resume(self, cols: int = 120, rows: int = 40) -> None:
        before = self.position
        super().resume(cols, rows)
        if self.session["position"] != before:
            self._news.fault(f"resumed at {self.session['position']} instead of {before}")

    def take_over(self) -> WatchedPage:
        """Another page that goes on with this one's session."""
        other = WatchedPage(self.port, v1=True, news=self._news)
        other.session, other.position, other.segments = dict(self.session), self.position, self.segments
        other.skipped_bytes = self.skipped_bytes
        self.segments = []
        other.resume()
        return other


@dataclass
class Shown:
    """What one session's user has seen. ``user`` is of this session alone."""

    user: str
    segments: list[Segment]
    bytes: int
    skipped: int


@dataclass
class News:
    """What happened to all users. Any thread."""

    counts: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    over: list[tuple[str, float]] = field(default_factory=list)  # users to whom the server said that theirs had ended
    lock: threading.Lock = field(default_factory=threading.Lock)  # guards the counts and ends

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def ended(self, how: str) -> None:
        with self.lock:
            self.ends[how] += 1

    def fault(self, text: str) -> None:
        say(f"FAULT {text}")
        self.faults.append(text)


class User(threading.Thread):
    """One session after the other until ``over``; what it does is chance, from a seed."""

    def __init__(self, number: int, lab: Lab, port: int, plan: Plan, news: News, over: threading.Event) -> None:
        super().__init__(name=f"user-{number}", daemon=True)
        self._number, self._lab, self._port, self._plan, self._news, self._over = number, lab, port, plan, news, over
        self._random = random.Random(number)
        self._steps = 0
        self._began = False  # whether the session has come to its prompt
        self._page: WatchedPage

    def run(self) -> None:
        logins = 0
        self._over.wait(self._random.uniform(0, self._plan.think_seconds))
        while not self._over.is_set():
            logins += 1
            self._live(f"user-{self._number}-{logins}")

    def _live(self, name: str) -> None:
        self._page = WatchedPage(self._port, v1=self._random.random() < 0.85, news=self._news)
        self._began = False
        claims: dict[str, Any] = {"sub": name, "pod_name": f"shop-{self._random.randrange(4)}"}
        try:
            self._page.open(self._lab.page(self._port, **claims)["path"])
            self._page.type(f"PS1='{READY[:3]}''{READY[3:]}'\r")
            self._page.wait_for(READY.encode())
            self._news.count("sessions")
            self._began = True
            while not self._over.is_set() and self._act(name):
                self._over.wait(self._random.uniform(0, 2 * self._plan.think_seconds))
            if self._over.is_set():
                self._exit()
        except Refused as exc:
            self._news.count(f"logins refused with {exc.status}")
            self._over.wait(self._random.uniform(0.2, 1))
        except Ended as exc:
            self._see_end(name, exc)
        except TimeoutError as exc:
            self._news.fault(f"{name} ({self._page.session.get('id')}) waited in vain: {exc}")
        except OSError:  # nobody listens, or no more: while a server is started again
            self._news.count("logins that met nobody")
            self._over.wait(self._random.uniform(0.2, 1))
        finally:
            self._page.drop()
            page = self._page
            if page.segments:
                self._news.shown.append(Shown(name, page.segments, page.position, page.skipped_bytes))

    def _see_end(self, name: str, exc: Ended) -> None:
        if exc.code == SESSION_OVER:
            self._news.over.append((name, time.time()))
        if not self._began:
            self._news.count(f"logins refused with {exc.code}")
            self._over.wait(self._random.uniform(0.2, 1))
        else:
            self._news.ended(str(exc.end.get("reason") or exc.code))

    def _act(self, name: str) -> bool:
        """Do one thing; returns whether the session goes on."""
        self._steps += 1
        actions: list[tuple[float, Callable[[], bool]]] = [
            (60, self._type),
            (10, self._flood),
            (2, self._interrupt),
            (10, self._resize),
            (4, self._leave),
        ]
        if self._page.can_resume:
            actions += [(10, self._come_back), (3, self._come_back_in_a_flood), (2, self._take_over)]
        (action,) = self._random.choices([action for _, action in actions], [weight for weight, _ in actions])
        self._news.count(action.__name__.strip("_").replace("_", " "))
        try:
            return action()
        except Ended as exc:
            # Who was cut off tries to come back, as the page does.
            if exc.code != 1006 or exc.end or not self._page.can_resume:
                raise
        self._resume()
        return True

    def _mark(self) -> tuple[str, bytes]:
        """How a mark is typed, and how it is printed."""
        return f"echo E''{self._steps}.", f"E{self._steps}.\r\n".encode()

    def _type(self) -> bool:
        typed, printed = self._mark()
        self._page.type(f"{typed}\r")
        self._page.wait_for(printed)
        return True

    def _start_flood(self) -> bytes:
        typed, printed = self._mark()
        lines = self._random.choice((2_000, 20_000, 20_000, 100_000))
        self._page.type(f"seq -f 'line %g 日志' {lines}; {typed}\r")
        return printed

    def _flood(self) -> bool:
        self._page.wait_for(self._start_flood())
        return True

    def _interrupt(self) -> bool:
        self._page.type("yes\r")
        self._page.wait_for(b"y\r\ny\r\n")
        until = time.monotonic() + self._random.choice((0.2, 1))
        while time.monotonic() < until:
            self._page.receive(max(0.0, until - time.monotonic()))
        self._page.type("\x03")
        self._page.wait_for(READY.encode())
        return self._type()

    def _resize(self) -> bool:
        cols, rows = self._random.randint(40, 200), self._random.randint(10, 60)
        self._page.send(type="resize", cols=cols, rows=rows)
        self._page.type("stty size\r")
        self._page.wait_for(f"{rows} {cols}\r\n".encode())
        return True

    def _resume(self) -> None:
        """Come back, again and again while nobody listens."""
        until = time.monotonic() + GRACE_SECONDS / 2
        while True:
            try:
                self._page.resume()
                break
            except (Ended, Refused):
                raise
            except OSError:
                if time.monotonic() > until:
                    raise
            self._over.wait(0.2)
        self._news.count("resumed")
        self._steps += 1
        self._type()

    def _come_back(self) -> bool:
        self._page.drop(reset=self._random.random() < 0.5)
        time.sleep(self._random.choice((0, 0, 0.01, 0.3, 2)))
        self._resume()
        return True

    def _come_back_in_a_flood(self) -> bool:
        printed = self._start_flood()
        seen = b""
        for _ in range(self._random.randint(0, 6)):
            seen += self._page.receive(0.2)
        self._page.drop(reset=self._random.random() < 0.5)
        time.sleep(self._random.choice((0, 0.05, 0.5)))
        self._page.resume()
        self._news.count("resumed")
        if printed not in seen:
            self._page.wait_for(printed[-8:])
        return self._type()

    def _take_over(self) -> bool:
        first = self._page
        self._page = first.take_over()
        try:
            while True:
                first.receive()
        except Ended as exc:
            if exc.code != TAKEN:
                raise
        finally:
            first.drop()
        self._steps += 1
        return self._type()

    def _leave(self) -> bool:
        """End it in one of the ways there are."""
        way = self._random.choice((self._exit, self._close, self._go_away, self._vanish))
        way()
        return False

    def _exit(self) -> None:
        self._page.type(f"exit {self._random.choice((0, 3))}\r")
        while True:
            self._page.receive()

    def _close(self) -> None:
        self._news.ended("closed by its user")
        self._page.close(NORMAL)

    def _go_away(self) -> None:
        self._news.ended("tab closed")
        self._page.close(GOING_AWAY)

    def _vanish(self) -> None:
        self._news.ended("dropped for good")


# -- what breaks ------------------------------------------------------------------------------------------------------


class World:
    """The servers, the cluster and the platform, and what happens to them."""

    def __init__(self, lab: Lab, port: int) -> None:
        self.platform = Platform()
        self.standin = lab.helper("standin", str(lab.kubeconfig("standin")))
        self.lab, self.port = lab, port
        link = (str(port), str(LINK_BYTES_PER_SECOND), str(LINK_DELAY_SECONDS))
        self.slow_port = lab.helper("proxy", *link).port
        self.temporary = lab.folder / "tmp"
        self.temporary.mkdir()
        os.environ["TMPDIR"] = str(self.temporary)  # of the servers
        lines = (f'listen = "127.0.0.1:{port}"', "reuse_port = true", f"resume_grace = {GRACE_SECONDS}")
        self._config = lab.write_config(*lines, more=self.platform.lines())
        self.servers = [Server(lab.program, self._config) for _ in range(2)]
        self.vanished: set[str] = set()
        self.cut_short: set[str] = set()  # sessions whose logout was told, which the killed server could not write down

    def stop(self) -> None:
        """Kill what is left."""
        for server in self.servers:
            server.stop()
        self.platform.shutdown()
        self.platform.server_close()

    def rows(self, condition: str = "1") -> list[dict[str, Any]]:
        """Sessions in the ledger."""
        with contextlib.closing(sqlite3.connect(self.lab.records / "sessions.db", timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(f"SELECT * FROM sessions WHERE {condition}")]

    def platform_fails(self) -> None:
        """It answers with 500, until it works again."""
        self.platform.fails.set()

    def platform_works(self) -> None:
        self.platform.fails.clear()

    def files_vanish(self) -> None:
        """Recordings of running sessions are removed."""
        running = self.rows("logout_at IS NULL")
        for row in random.Random(len(running)).sample(running, min(3, len(running))):
            with contextlib.suppress(FileNotFoundError):
                Path(row["filename"]).unlink()
                self.vanished.add(row["session_id"])

    def server_is_killed(self) -> None:
        """The second one, with SIGKILL."""
        self.servers[1].stop()
        told = self.platform.told["/logout"]
        self.cut_short = {row["session_id"] for row in self.rows() if row["todo"] and told[row["session_id"]]}

    def server_comes_back(self) -> None:
        self.servers[1] = Server(self.lab.program, self._config)

    def pod_is_replaced(self) -> None:
        """One of four, with all shells in it."""
        self.standin.do("replace_pod")

    def api_server_goes_down(self) -> None:
        """All streams are reset, and nobody listens."""
        self.standin.do("go_down")

    def api_server_comes_back(self) -> None:
        self.standin.do("come_back")

    def timetable(self) -> list[tuple[float, Callable[[], None]]]:
        """What happens, and after which part of the time."""
        return [
            (0.12, self.platform_fails),
            (0.17, self.platform_works),
            (0.22, self.files_vanish),
            (0.28, self.server_is_killed),
            (0.31, self.server_comes_back),
            (0.56, self.pod_is_replaced),
            (0.64, self.api_server_goes_down),
            (0.68, self.api_server_comes_back),
            (0.76, self.files_vanish),
            (0.80, self.platform_fails),
            (0.82, self.platform_works),
        ]


def live_through(world: World, plan: Plan, news: News) -> list[tuple[float, int]]:
    """Let everybody in, let everything happen, and everybody go; returns (part of the time, memory in KB)."""
    over = threading.Event()
    ports = [world.slow_port if i % 5 == 0 else world.port for i in range(plan.users)]
    users = [User(i, world.lab, port, plan, news, over) for i, port in enumerate(ports)]
    for user in users:
        user.start()
    events = world.timetable()
    memory: list[tuple[float, int]] = []
    start = time.monotonic()
    pause = threading.Event()
    while (passed := (time.monotonic() - start) / plan.seconds) < 1:
        while events and passed >= events[0][0]:
            _, happens = events.pop(0)
            say(f"{passed:4.0%}  {happens.__name__.replace('_', ' ')}; {news.counts['sessions']:,} sessions so far")
            happens()
        memory.append((passed, world.servers[0].status("VmRSS")))
        pause.wait(plan.seconds / 200)
    over.set()
    for user in users:
        user.join(2 * WAIT_SECONDS)
        if user.is_alive():
            news.fault(f"{user.name} does not come to its end")
    return memory


# -- what must hold ---------------------------------------------------------------------------------------------------


def recorded_output(path: Path) -> bytes:
    """All output in a recording, byte for byte: where text would not do, an event ``b`` follows the ``o``."""
    pieces: list[bytes] = []
    with path.open(encoding="utf-8") as file:
        next(file)
        for line in file:
            _, kind, data = json.loads(line)
            if kind == "o":
                pieces.append(data.encode())
            elif kind == "b":
                pieces[-1] = base64.b64decode(data)
    return b"".join(pieces)


GOODBYE_SECONDS = 5.0  # for so long an ended session may still say goodbye to a connection that is gone


@dataclass(frozen=True)
class Check:
    """Something that must hold; ``trouble`` says where it does not."""

    what: str
    number: int  # of cases that were looked at
    trouble: tuple[str, ...] = ()


def check_ledger(world: World, news: News, rows: list[dict[str, Any]]) -> list[Check]:
    """Every session that anybody saw, once and closed, and told of once."""
    by_user = Counter(row["user"] for row in rows)
    missing = [
        f"{shown.user} stands there {by_user[shown.user]} times" for shown in news.shown if by_user[shown.user] != 1
    ]
    open_rows = [
        f"{row['session_id']} is open, or has todo {row['todo']}" for row in rows if not row["logout_at"] or row["todo"]
    ]
    logouts = world.platform.told["/logout"]
    often = {row["session_id"]: logouts[row["session_id"]] for row in rows}
    told = [
        f"{session}: {count} times"
        for session, count in often.items()
        if not 1 <= count <= (2 if session in world.cut_short else 1)
    ]
    ended = {row["user"]: row["logout_at"] or 0.0 for row in rows}
    early = [f"{user}'s ended later" for user, at in news.over if ended.get(user, 0.0) > at + GOODBYE_SECONDS]
    return [
        Check("every session that was seen is in the ledger, once", len(news.shown), tuple(missing)),
        Check("every session in the ledger is closed, and nothing is left to do", len(rows), tuple(open_rows)),
        Check("the platform was told of every logout, once", len(rows), tuple(told)),
        Check("who could not come back had a session that had ended", len(news.over), tuple(early)),
    ]


def check_recordings(world: World, news: News, rows: list[dict[str, Any]]) -> list[Check]:
    """Sizes and digests, and that all that was shown was recorded."""
    shown = {item.user: item for item in news.shown}
    digests, bytes_ = [], []
    looked_at = shown_bytes = 0
    for row in rows:
        if row["session_id"] in world.vanished:
            continue
        path = Path(row["filename"])
        looked_at += 1
        data = path.read_bytes() if path.exists() else b""
        if (row["size"], row["sha256"]) != (len(data), hashlib.sha256(data).hexdigest()):
            digests.append(f"{path.name}: {len(data):,} bytes instead of {row['size']} ({row['reason']})")
        if row["user"] in shown:
            whole = recorded_output(path) if data else b""
            for part in shown[row["user"]].segments:
                shown_bytes += part.end - part.begin
                if hashlib.sha256(whole[part.begin : part.end]).digest() != part.digest.digest():
                    bytes_.append(f"{path.name}: {part.begin:,} to {part.end:,} of {len(whole):,} ({row['reason']})")
    return [
        Check("every digest and size is that of its file", looked_at, tuple(digests)),
        Check("every byte that was shown was recorded, in its place", shown_bytes, tuple(bytes_)),
    ]


def open_files(process: Process) -> int:
    """How many descriptors it has."""
    return len(os.listdir(f"/proc/{process.popen.pid}/fd"))


def check_leftovers(world: World, before: list[tuple[int, int]]) -> list[Check]:
    """No shell, thread, descriptor or temporary file; then that the servers end in order, and their files go."""
    shells = _wait_for(lambda: not world.standin.do("look")["shells"], 10)
    trouble: list[str] = []
    for number, (server, (threads, files)) in enumerate(zip(world.servers, before), 1):
        _wait_for(lambda s=server, t=threads, f=files: s.status("Threads") <= t and open_files(s) <= f, 10)  # type: ignore[misc]
        if server.status("Threads") > threads:
            trouble.append(f"server {number}: {server.status('Threads')} threads, {threads} at its start")
        if open_files(server) > files:
            trouble.append(f"server {number}: {open_files(server)} descriptors, {files} at its start")
    statuses = []
    for server in world.servers:
        server.popen.send_signal(signal.SIGTERM)
    for number, server in enumerate(world.servers, 1):
        if server.popen.wait(30) != 0:
            statuses.append(f"server {number} ended with {server.popen.returncode}")
    left = [path for path in (*world.temporary.rglob("*"), *world.lab.records.rglob("*")) if path.is_file()]
    strange = [str(path) for path in left if path.suffix != ".cast" and path.name not in ("sessions.db", ".reserve")]
    return [
        Check("no shell is left", 1, () if shells else (f"{world.standin.do('look')['shells']} shells",)),
        Check("no thread and no descriptor is left", len(before), tuple(trouble)),
        Check("the servers end in order", len(world.servers), tuple(statuses)),
        Check("no temporary file is left", len(left), tuple(strange)),
    ]


def check_memory(memory: list[tuple[float, int]], plan: Plan) -> Check:
    """The first server's at the end, beside the middle of the run."""

    def mean(begin: float, end: float) -> float:
        values = [kilobytes for part, kilobytes in memory if begin <= part < end]
        return sum(values) / len(values) / 1024

    middle, end = mean(0.45, 0.55), mean(0.9, 1.0)
    what = f"memory at the end, {end:.0f} MB, is within 10 % of the middle, {middle:.0f} MB"
    wrong = plan.has_memory_limit and end > middle * 1.1
    return Check(what, len(memory), ("it grows",) if wrong else ())


def _wait_for(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.05)
    return True


def soak(lab: Lab, plan: Plan) -> tuple[News, list[Check]]:
    """Live through it, and look at what is left."""
    news = News()
    with lab.reserved_port() as port:
        world = World(lab, port)
        try:
            _warm_up(world, news)
            before = [(server.status("Threads"), open_files(server)) for server in world.servers]
            memory = live_through(world, plan, news)
            say("everybody has gone")
            unfinished = "logout_at IS NULL OR todo > 0"
            _wait_for(lambda: not world.rows(unfinished), plan.settle_seconds)
            rows = world.rows()
            checks = check_ledger(world, news, rows)
            checks += check_leftovers(world, before)
            checks += check_recordings(world, news, rows)
            checks.append(check_memory(memory, plan))
            checks.append(Check("nobody waited in vain, and all came back where they were", 1, tuple(news.faults)))
            news.counts["refusals of the platform that failed"] = world.platform.refused
            news.counts["recordings that vanished"] = len(world.vanished)
            news.counts["MB shown"] = sum(item.bytes - item.skipped for item in news.shown) // 10**6
            news.counts["MB not shown after an interrupt"] = sum(item.skipped for item in news.shown) // 10**6
            return news, checks
        finally:
            world.stop()


def _warm_up(world: World, news: News) -> None:
    """A few sessions on both servers: what is opened once stays open."""
    for number in range(12):
        page = WatchedPage(world.port, v1=True, news=news)
        page.open(world.lab.page(world.port, sub=f"warm-up-{number}")["path"])
        page.type("exit\r")
        with contextlib.suppress(Ended):
            while True:
                page.receive()
    _wait_for(lambda: not world.rows("logout_at IS NULL OR todo > 0"), 10)
    for server in world.servers:
        server.wait_threads(server.idle_threads)


def table(news: News, checks: list[Check]) -> str:
    """What happened, and what holds."""
    counts = [("", ""), *sorted((name, f"{number:,}") for name, number in news.counts.items())]
    ends = [("", ""), *((f"ended: {how}", f"{number:,}") for how, number in news.ends.most_common())]
    lines = [f"{name:<96} {number:>12}".rstrip() for name, number in (*counts, *ends)]
    lines += ["", *(f"{check.what:<96} {check.number:>12,}  {'NO' if check.trouble else 'yes'}" for check in checks)]
    lines += [f"  NO: {trouble}" for check in checks for trouble in check.trouble[:5]]
    return "\n".join(lines).strip()


def main() -> int:
    """Soak, print the table; the exit status is 1 where something does not hold."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--short", action="store_true", help="half a minute, few users")
    parser.add_argument("--users", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--server", type=Path, default=ROOT / "jumpserver.py", help="another jumpserver.py")
    options = parser.parse_args()
    plan = SHORT if options.short else LONG
    plan = dataclasses.replace(plan, users=options.users or plan.users, seconds=options.seconds or plan.seconds)
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="soak-", dir=parent) as folder:
        lab = Lab(Path(folder), options.server.resolve())
        try:
            news, checks = soak(lab, plan)
        finally:
            lab.stop()
    print(f"{plan.users} users, {plan.seconds:g} s")
    print(table(news, checks))
    return 1 if any(check.trouble for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
