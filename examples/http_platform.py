"""A small release platform: what stands on the other side of a jumpserver, to click through and to copy from.

It logs people in, shows a list of pods, mints one-time tokens, opens terminals in a frame, which tells it of their end,
answers the jumpserver's calls, shows who was where, with links to replay it, and offboards people, which ends their
shells. ``make demo`` starts it.

``Platform`` is the integration: how terminals and recordings are opened, and what is answered to the four calls.
``Handler`` is the web around it: who is logged in, no form of another site's, nothing unescaped. What a real platform
has more: passwords, a database, HTTPS (then its cookie gets ``Secure``, too), several processes.

Its jumpserver needs, beside ``[Token] secret`` and ``[Platform] authorization``, which both know:

    [Server]
    frame_ancestors = ["'self'", "http://127.0.0.1:8000"]
    platform_url = "http://127.0.0.1:8000/"

    [Platform]
    validate_url = "http://127.0.0.1:8000/api/validate"
    login_url = "http://127.0.0.1:8000/api/login"
    logout_url = "http://127.0.0.1:8000/api/logout"
    heartbeat_url = "http://127.0.0.1:8000/api/heartbeat"
"""

from __future__ import annotations

import hmac
import html
import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import jwt

TICKET_SECONDS = 60  # for which a one-time token waits for its terminal
LINK_SECONDS = 600  # for which a link to a recording opens it
SESSIONS_KEPT = 1000
BODY_BYTES = 1 << 20  # of a request: a session with its fields has a few KiB
REQUEST_SECONDS = 10.0  # between two packets of a client
COOKIE = "platform_login"


@dataclass(frozen=True)
class Person:
    """Somebody who may log in."""

    name: str
    title: str
    is_auditor: bool = False  # may see and end all sessions, and offboard


PEOPLE = {
    person.name: person
    for person in (
        Person("alice", "Developer"),
        Person("bob", "Developer"),
        Person("carol", "Auditor", is_auditor=True),
    )
}


@dataclass(frozen=True)
class Place:
    """A container that terminals may be opened in."""

    namespace: str
    pod: str
    container: str = ""
    cluster: str = ""  # a name under [Clusters] of the jumpserver
    note: str = ""
    command: tuple[str, ...] = ()  # empty: the best shell


class Refused(Exception):
    """The answer is no; the text is for the person who asked."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


# -- the integration --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ticket:
    person: str
    place: Place
    expires: float  # monotonic


class Platform:
    """Who may open what, and what became of it. All in memory; any thread."""

    def __init__(self, places: Sequence[Place], secret: str, authorization: str) -> None:
        self.places = places
        self.authorization = authorization  # with which the jumpserver shows who is calling
        self.jumpserver = ""  # its address as browsers know it, without a slash at the end
        self._secret = secret  # of [Token]
        self._lock = threading.Lock()  # guards all below
        self._tickets: dict[str, _Ticket] = {}
        self._sessions: dict[str, dict[str, Any]] = {}  # as the jumpserver has told of them, oldest first
        self._offboarded: set[str] = set()

    # What people click.

    def terminal_link(self, person: str, place: Place) -> str:
        """Where a terminal opens, once, within a minute. The token says nothing by itself: see ``validate``."""
        token, now = secrets.token_urlsafe(32), time.monotonic()
        with self._lock:
            self._tickets = {token: ticket for token, ticket in self._tickets.items() if ticket.expires > now}
            self._tickets[token] = _Ticket(person, place, now + TICKET_SECONDS)
        return f"{self.jumpserver}/#ssh_token={token}"

    def replay_link(self, person: str, session_id: str) -> str:
        """Where a recording is played: signed for this person and this recording. Raises Refused."""
        with self._lock:
            session = self._sessions.get(session_id)
        if session is None:
            raise Refused(404, "there is no such session")
        filename = session["filename"]
        token = self._signed(person, scope="play", filename=filename)
        return f"{self.jumpserver}/player.html#{urllib.parse.urlencode({'filename': filename, 'token': token})}"

    def sessions_link(self, person: str) -> str:
        """Where all sessions of the jumpserver are listed, watched and ended."""
        return f"{self.jumpserver}/sessions.html#token={self._signed(person, scope='audit terminate')}"

    def _signed(self, person: str, **claims: str) -> str:
        return jwt.encode({"exp": int(time.time()) + LINK_SECONDS, "sub": person, **claims}, self._secret, "HS256")

    def set_offboarded(self, person: str, gone: bool) -> None:
        """From now on this person opens nothing; the next heartbeat of each open session ends it."""
        with self._lock:
            (self._offboarded.add if gone else self._offboarded.discard)(person)

    def is_offboarded(self, person: str) -> bool:
        with self._lock:
            return person in self._offboarded

    def sessions(self, person: Person) -> list[dict[str, Any]]:
        """Those that this person may see, newest first."""
        with self._lock:
            return [
                session
                for session in reversed(self._sessions.values())
                if person.is_auditor or session["user"] == person.name
            ]

    # What the jumpserver asks: each takes its JSON object and returns the answer's. Raises Refused.

    def validate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What does this one-time token stand for? It is spent by that."""
        with self._lock:
            ticket = self._tickets.pop(str(body.get("ssh_token", "")), None)
        if ticket is None or ticket.expires < time.monotonic():
            raise Refused(403, "this link was already used, or is too old; open the terminal from the platform again")
        self._refuse_offboarded(ticket.person)
        place = ticket.place
        return {
            "user": ticket.person,
            "namespace": place.namespace,
            "pod_name": place.pod,
            "container_name": place.container,
            "cluster": place.cluster,
            "command": list(place.command),
        }

    def login(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A session begins."""
        self._refuse_offboarded(str(body["user"]))
        self._keep(body)
        return {}

    def heartbeat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """May this open session go on?"""
        self._keep(body)
        self._refuse_offboarded(str(body["user"]))
        return {}

    def logout(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A session has ended. May be told more than once."""
        self._keep(body)
        return {}

    def _refuse_offboarded(self, person: str) -> None:
        if self.is_offboarded(person):
            raise Refused(403, f"{person} was offboarded")

    def _keep(self, session: Mapping[str, Any]) -> None:
        """The newest that is known; a heartbeat that comes after its logout is not."""
        session_id = str(session["session_id"])
        with self._lock:
            before = self._sessions.get(session_id, {})
            if session.get("logout_at") or not before.get("logout_at"):
                self._sessions[session_id] = dict(session)
            while len(self._sessions) > SESSIONS_KEPT:
                del self._sessions[next(iter(self._sessions))]


# -- pages ------------------------------------------------------------------------------------------------------------


class Html(str):
    """Text that is HTML already: all other is escaped where it is filled in."""


def fill(template: str, **values: object) -> Html:
    """Fill a template of this file; what is not Html is escaped."""
    safe = {name: value if isinstance(value, Html) else html.escape(str(value)) for name, value in values.items()}
    return Html(template.format(**safe))


def joined(parts: Sequence[Html]) -> Html:
    return Html("".join(parts))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - Releases</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/style.css">
</head>
<body class="{kind}">
{bar}
<main>
{content}
</main>
</body>
</html>
"""
_BAR = """<header class="bar">
<a class="name" href="/">Releases</a>
<nav>{links}</nav>
<form method="post" action="/logout" class="who"><span>{name}, {title}</span>
<button class="quiet">Log out</button></form>
</header>"""
_LINK = '<a href="{path}"{current}>{text}</a>'
_LOGIN = """<section class="card">
<h1>Who are you?</h1>
<p>A real platform asks for a password here, or the company's single sign-on.</p>
{people}
</section>"""
_LOGIN_BUTTON = """<form method="post" action="/login"><button name="name" value="{name}" class="person">
<strong>{name}</strong><span>{title}</span></button></form>"""
_PODS = """<h1>Pods</h1>
<p class="fine">A terminal is recorded, and ends when you are offboarded.</p>
<ul class="pods">{pods}</ul>"""
_POD = """<li><div><h2>{pod}</h2><p>{where}</p><p class="fine">{note}</p></div>
<form method="post" action="/terminal"><button name="place" value="{number}" class="primary"
 aria-label="Open a terminal in {pod}">Terminal</button></form></li>"""
_TERMINAL = """<p id="told" role="status"></p>
<iframe src="{link}" title="Terminal in {pod}" allow="clipboard-read; clipboard-write; fullscreen"></iframe>
<script src="/terminal.js"></script>"""
_SESSIONS = """<h1>Sessions</h1>
{audit}
{table}"""
_AUDIT = """<p class="fine">What this platform was told. <a href="/audit">All sessions</a> can be searched, watched and
ended at the jumpserver.</p>"""
_TABLE = """<div class="scroll" tabindex="0" role="region" aria-label="Sessions"><table>
<thead><tr><th>Person</th><th>Pod</th><th>From</th><th>Began (UTC)</th><th>Lasted</th><th>State</th><td></td></tr>
</thead>
<tbody>{rows}</tbody></table></div>"""
_ROW = """<tr><td>{user}</td><td>{place}</td><td>{address}</td><td>{began}</td><td>{lasted}</td>
<td>{state}</td><td>{replay}</td></tr>"""
_REPLAY = '<a class="button" href="/replay?session={session_id}">Replay</a>'
_OPEN = Html('<span class="open">Open</span>')
_PEOPLE = """<h1>People</h1>
<p class="fine">Who is offboarded opens no more terminals, and loses those that are open at their next heartbeat.</p>
<ul class="pods">{people}</ul>"""
_PERSON = """<li><div><h2>{name}</h2><p>{title}{state}</p></div>
<form method="post" action="/offboard"><input type="hidden" name="gone" value="{gone}">
<button name="name" value="{name}"{kind}>{action}</button></form></li>"""
_SENTENCE = """<section class="card"><h1>{title}</h1><p>{sentence}</p>
<a class="button" href="/">Back to the pods</a></section>"""


def page(title: str, content: Html, person: Person | None = None, path: str = "", kind: str = "") -> Html:
    """A whole page; ``path`` says which of the links on top is the current one."""
    bar = Html("")
    if person is not None:
        texts = {"/": "Pods", "/sessions": "Sessions", **({"/people": "People"} if person.is_auditor else {})}
        current = {path: Html(' aria-current="page"')}
        links = [fill(_LINK, path=to, text=text, current=current.get(to, Html(""))) for to, text in texts.items()]
        bar = fill(_BAR, links=joined(links), name=person.name, title=person.title)
    return fill(_PAGE, title=title, bar=bar, content=content, kind=kind)


def pods_page(person: Person, places: Sequence[Place]) -> Html:
    pods = [
        fill(_POD, number=number, pod=place.pod, where=_where(place), note=place.note)
        for number, place in enumerate(places)
    ]
    return page("Pods", fill(_PODS, pods=joined(pods)), person, "/")


def _where(place: Place) -> str:
    names = {"cluster": place.cluster, "namespace": place.namespace, "container": place.container}
    return ", ".join(f"{kind} {name}" for kind, name in names.items() if name)


def sessions_page(person: Person, sessions: Sequence[Mapping[str, Any]]) -> Html:
    rows = joined([_session_row(person, session) for session in sessions])
    table = fill(_TABLE, rows=rows) if rows else Html("<p>There was none yet.</p>")
    audit = Html(_AUDIT) if person.is_auditor else Html('<p class="fine">Yours.</p>')
    return page("Sessions", fill(_SESSIONS, audit=audit, table=table), person, "/sessions")


def _session_row(person: Person, session: Mapping[str, Any]) -> Html:
    began, ended = session["login_at"], session["logout_at"]
    return fill(
        _ROW,
        user=session["user"],
        place="/".join(filter(None, (session["namespace"], session["pod_name"], session["container_name"]))),
        address=session["remote_addr"],
        began=datetime.fromtimestamp(began, timezone.utc).strftime("%d %b, %H:%M:%S"),
        lasted=f"{(ended or time.time()) - began:.0f} s",
        state=session["reason"] if ended else _OPEN,
        replay=fill(_REPLAY, session_id=session["session_id"]) if person.is_auditor else "",
    )


def people_page(person: Person, platform: Platform) -> Html:
    people = []
    for other in PEOPLE.values():
        if other == person:  # else nobody might be left to take them back
            continue
        gone = platform.is_offboarded(other.name)
        people.append(
            fill(
                _PERSON,
                name=other.name,
                title=other.title,
                state=", offboarded" if gone else "",
                gone="" if gone else "yes",
                action="Take back" if gone else "Offboard",
                kind=Html("") if gone else Html(' class="danger"'),
            )
        )
    return page("People", fill(_PEOPLE, people=joined(people)), person, "/people")


# -- the web around it ------------------------------------------------------------------------------------------------

FILES = {
    "/style.css": (Path(__file__).with_suffix(".css").read_bytes(), "text/css; charset=utf-8"),
    "/terminal.js": (Path(__file__).with_suffix(".js").read_bytes(), "text/javascript; charset=utf-8"),
}


class PlatformServer(ThreadingHTTPServer):
    """Serves a platform on a port of this host, 0 for any, while the ``with`` block runs."""

    daemon_threads = True

    def __init__(self, platform: Platform, port: int = 0) -> None:
        """Listen. Raises OSError."""
        super().__init__(("127.0.0.1", port), Handler)
        self.platform = platform
        self.host = f"127.0.0.1:{self.server_port}"
        self.origin = f"http://{self.host}"
        self._lock = threading.Lock()  # guards the logins
        self._logins: dict[str, str] = {}  # the cookie's value, and whose it is
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="platform")

    def __enter__(self) -> PlatformServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def log_in(self, person: str) -> str:
        """A new cookie's value."""
        value = secrets.token_urlsafe(32)
        with self._lock:
            self._logins[value] = person
        return value

    def log_out(self, value: str) -> None:
        with self._lock:
            self._logins.pop(value, None)

    def log_out_everywhere(self, person: str) -> None:
        with self._lock:
            self._logins = {value: name for value, name in self._logins.items() if name != person}

    def who(self, value: str) -> Person | None:
        """Whose cookie that is; nobody's, if its owner is offboarded."""
        with self._lock:
            name = self._logins.get(value, "")
        return None if self.platform.is_offboarded(name) else PEOPLE.get(name)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    PAGES: ClassVar[Mapping[str, str]] = {
        "/": "_pods",
        "/sessions": "_sessions",
        "/people": "_people",
        "/replay": "_replay",
        "/audit": "_audit",
    }
    FORMS: ClassVar[Mapping[str, str]] = {"/terminal": "_terminal", "/offboard": "_offboard", "/logout": "_log_out"}
    CALLS: ClassVar[Mapping[str, str]] = {
        "/api/validate": "validate",
        "/api/login": "login",
        "/api/heartbeat": "heartbeat",
        "/api/logout": "logout",
    }

    server: PlatformServer
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        if url.path in FILES:
            self._send(200, *FILES[url.path])
            return
        try:
            self._check_host()
            if url.path not in self.PAGES:
                raise Refused(404, "there is no such page")
            person = self._person()
            if person is None:
                self._log_in_page()
            else:
                getattr(self, self.PAGES[url.path])(person, _fields(url.query))
        except Refused as exc:
            self._say(exc)

    def do_POST(self) -> None:
        try:
            self._check_host()
            if self.path in self.CALLS:
                self._answer_call(self.CALLS[self.path])
                return
            self._check_origin()
            fields = _fields(self._body().decode("ascii", "replace"))
            person = self._person()
            if self.path == "/login":
                self._log_in(fields)
            elif person is None:
                self._go("/")
            elif self.path in self.FORMS:
                getattr(self, self.FORMS[self.path])(person, fields)
            else:
                raise Refused(404, "there is no such page")
        except Refused as exc:
            self._say(exc)

    # Who asks.

    def _check_host(self) -> None:
        """No other name may lead here: a page of that name would be of the same origin (DNS rebinding)."""
        if self.headers.get("Host") != self.server.host:
            raise Refused(421, "this platform has another address")

    def _check_origin(self) -> None:
        """A form is sent by a page of this platform, or not at all: browsers say whose it is (RFC 6454, section 7)."""
        if self.headers.get("Origin") != self.server.origin:
            raise Refused(403, "this form came from another site")

    def _cookie(self) -> str:
        try:
            morsel = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            return ""
        return morsel.value if morsel else ""

    def _person(self) -> Person | None:
        return self.server.who(self._cookie())

    # The jumpserver's calls.

    def _answer_call(self, name: str) -> None:
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, self.server.platform.authorization.encode("latin-1")):
            self._send(401, b"{}", "application/json")  # without a message: no session ends for a wrong setting
            return
        try:
            answer, status = getattr(self.server.platform, name)(json.loads(self._body())), 200
        except Refused as exc:
            answer, status = {"message": str(exc)}, exc.status
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            answer, status = {"error": "this is not a session"}, 400
        self._send(status, json.dumps(answer).encode(), "application/json")

    # Pages.

    def _pods(self, person: Person, fields: Mapping[str, str]) -> None:
        self._show(pods_page(person, self.server.platform.places))

    def _sessions(self, person: Person, fields: Mapping[str, str]) -> None:
        self._show(sessions_page(person, self.server.platform.sessions(person)))

    def _people(self, person: Person, fields: Mapping[str, str]) -> None:
        _need_auditor(person)
        self._show(people_page(person, self.server.platform))

    def _replay(self, person: Person, fields: Mapping[str, str]) -> None:
        _need_auditor(person)
        self._go(self.server.platform.replay_link(person.name, fields.get("session", "")))

    def _audit(self, person: Person, fields: Mapping[str, str]) -> None:
        _need_auditor(person)
        self._go(self.server.platform.sessions_link(person.name))

    # Forms.

    def _log_in_page(self) -> None:
        people = [fill(_LOGIN_BUTTON, name=person.name, title=person.title) for person in PEOPLE.values()]
        self._show(page("Log in", fill(_LOGIN, people=joined(people))))

    def _log_in(self, fields: Mapping[str, str]) -> None:
        name = fields.get("name", "")
        if name not in PEOPLE or self.server.platform.is_offboarded(name):
            raise Refused(403, "you have no account here")
        self.server.log_out(self._cookie())
        self._go("/", f"{COOKIE}={self.server.log_in(name)}; Path=/; HttpOnly; SameSite=Lax")

    def _log_out(self, person: Person, fields: Mapping[str, str]) -> None:
        self.server.log_out(self._cookie())
        self._go("/", f"{COOKIE}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0")

    def _terminal(self, person: Person, fields: Mapping[str, str]) -> None:
        places = {str(number): place for number, place in enumerate(self.server.platform.places)}
        place = places.get(fields.get("place", ""))
        if place is None:
            raise Refused(404, "there is no such pod")
        link = self.server.platform.terminal_link(person.name, place)
        self._show(page(place.pod, fill(_TERMINAL, link=link, pod=place.pod), person, kind="terminal"))

    def _offboard(self, person: Person, fields: Mapping[str, str]) -> None:
        _need_auditor(person)
        if fields.get("name") not in PEOPLE.keys() - {person.name}:
            raise Refused(404, "there is no such person")
        self.server.platform.set_offboarded(fields["name"], bool(fields.get("gone")))
        self.server.log_out_everywhere(fields["name"])
        self._go("/people")

    # Bytes.

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isdecimal() and len(length) < 9 and int(length) <= BODY_BYTES):
            raise Refused(413, "this request is too long, or does not say how long it is")
        return self.rfile.read(int(length))

    def _say(self, refused: Refused) -> None:
        sentence = fill(_SENTENCE, title="That did not work", sentence=f"{str(refused)[:1].upper()}{str(refused)[1:]}.")
        self._show(page("That did not work", sentence), refused.status)

    def _show(self, content: Html, status: int = 200) -> None:
        self._send(status, content.encode(), "text/html; charset=utf-8")

    def _go(self, to: str, cookie: str = "") -> None:
        self._send(303, b"", "text/plain", {"Location": to, **({"Set-Cookie": cookie} if cookie else {})})

    def _send(self, status: int, body: bytes, kind: str, more: Mapping[str, str] | None = None) -> None:
        framed = self.server.platform.jumpserver or "'none'"
        policy = (
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; form-action 'self'; "
            f"base-uri 'none'; frame-ancestors 'none'; frame-src {framed}"
        )
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",  # pages hold one-time tokens
            "Referrer-Policy": "same-origin",  # with no-referrer, browsers would not say whose a form is
            "X-Content-Type-Options": "nosniff",
            **(more or {}),
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the jumpserver's log has what matters."""


def _need_auditor(person: Person) -> None:
    if not person.is_auditor:
        raise Refused(403, "only auditors may see this")


def _fields(text: str) -> dict[str, str]:
    """A query or a form. Raises Refused."""
    try:
        return dict(urllib.parse.parse_qsl(text, max_num_fields=10))
    except ValueError:
        raise Refused(400, "this request has too many fields") from None
