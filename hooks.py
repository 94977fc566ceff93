"""Who may, and what is remembered? Tokens, the ledger of sessions, and the calls to the release platform.

This is the file that operators extend: name a file of your own under ``[Hooks] file``, subclass ``Hooks`` in it
and override what you need. Knows nothing of browsers, pods or HTTP serving.

Hooks run on the threads of the sessions and requests, ``on_logout`` and ``on_heartbeat`` on others, several at a time.
A hook refuses a user by raising ``Denied`` with a sentence that the user may read, and says with ``HookError`` that it
could not do its work; any other exception is logged with its traceback and refuses the user politely.

Where is what: ``Hooks`` and its data; what a token says; calls to the platform; the log; ``Ledger``; its chain and the
``Proof`` of it; ``Keeper``; ``Notes``.
"""

from __future__ import annotations

import base64
import binascii
import collections
import contextlib
import fcntl
import functools
import glob
import hashlib
import hmac
import http.client
import importlib.util
import inspect
import itertools
import json
import logging
import math
import operator
import os
import re
import socket
import sqlite3
import sys
import threading
import time
import traceback
import urllib.parse
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, ClassVar, Protocol

__all__ = [
    "Ask",
    "Command",
    "CommandQuery",
    "Database",
    "Denied",
    "Entry",
    "HookError",
    "Hooks",
    "HooksSettings",
    "Keeper",
    "Ledger",
    "LedgerError",
    "LogEvent",
    "Notes",
    "Proof",
    "Rows",
    "SessionInfo",
    "SessionQuery",
    "TokenAuthData",
    "Unfinished",
    "cursor",
    "load_hooks",
    "log_event",
    "log_fault",
]

PLATFORM_TIMEOUT_SECONDS = 5.0
_ANSWER_LIMIT_BYTES = 2 << 20
_CLOCK_SKEW_SECONDS = 30
_DENIAL = "the platform does not accept this token; open the terminal again from the platform"
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_WILDCARD = re.compile(r"[\\%_]")  # of LIKE
_SURROGATE = re.compile("[\ud800-\udfff]")
SECRET_MINIMUM_BYTES = 32  # RFC 7518, section 3.2: an HS256 key is at least as long as the hash


class Denied(Exception):
    """The user is refused; the text is shown to the user. ``user`` is who that is, where the token says it."""

    def __init__(self, reason: str = "", user: str = "") -> None:
        super().__init__(reason)
        self.user = user


class HookError(Exception):
    """A hook could not do its work. The text goes to the log and names no secret."""


class LedgerError(HookError):
    """The ledger cannot be read or written now."""


@dataclass(frozen=True)
class TokenAuthData:
    """What a token stands for: a container to open, and who opens it. The field names are the JSON names."""

    namespace: str
    pod_name: str
    container_name: str = ""
    cluster_cfg: str = field(default="", repr=False)  # the kubeconfig's text
    user: str = ""
    command: tuple[str, ...] = ()  # empty: the best shell of the container
    extra: Mapping[str, Any] = field(default_factory=dict)  # whatever else the platform said
    directory: str = ""  # where it starts; empty: where the image says
    message: str = ""  # shown above the first prompt
    cluster: str = ""  # the name under [Clusters]; empty for the token's own kubeconfig, and the server's own cluster
    cluster_file: Path | None = None  # where cluster_cfg was read, if it is the operator's own
    context: str = ""  # of the kubeconfig; empty: its current one
    reusable: bool = False  # whether the token opens another terminal, too
    idle_timeout: int = 0  # seconds; lowers that of [Limits], and never raises it; 0: says nothing
    max_duration: int = 0  # the same
    label: str = ""  # a word for where this is, such as production; empty: that of the cluster
    colour: str = ""  # of that word, as #rrggbb; empty: the same

    @property
    def place(self) -> str:
        """``namespace/pod/container``, or without the container where none is named."""
        return f"{self.namespace}/{self.pod_name}/{self.container_name}".rstrip("/")


@dataclass(frozen=True)
class SessionInfo:
    """One session. Times are Unix seconds; what is known at the end only is None or empty before."""

    session_id: str
    filename: str
    auth: TokenAuthData
    remote_addr: str
    login_at: float
    logout_at: float | None = None
    reason: str = ""
    exit_code: int | None = None
    bytes_out: int | None = 0  # printed by the pod; None: not known
    bytes_in: int | None = 0  # typed by the user; None: not known
    size: int | None = None  # bytes of the recording
    sha256: str = ""  # of the recording
    hung_up: int | None = None  # processes that the session left in the pod and were ended; None: not checked
    cluster: str = ""  # its name under [Clusters], else the host of its API server
    server: str = ""  # the process whose session it is, as Ledger.server
    chain: str = ""  # the head of the ledger's chain after its logout

    def as_json(self) -> dict[str, Any]:
        """All of it but the kubeconfig, ``reusable`` and the limits, as one flat JSON object."""
        values = asdict(self)
        auth = values.pop("auth")
        del auth["cluster_cfg"], auth["cluster_file"], auth["reusable"], auth["idle_timeout"], auth["max_duration"]
        return {**auth, **values}


@dataclass(frozen=True)
class HooksSettings:
    """The part of the configuration that hooks see."""

    db: Path
    secret: str = field(default="", repr=False)
    validate_url: str = field(default="", repr=False)  # URLs may hold credentials
    login_url: str = field(default="", repr=False)
    logout_url: str = field(default="", repr=False)
    heartbeat_url: str = field(default="", repr=False)
    heartbeat_interval: int = 30  # seconds
    authorization: str = field(default="", repr=False)  # the Authorization header of calls to the platform
    clusters: Mapping[str, Path] = field(default_factory=dict)
    records: Path = Path("records")  # folder of the recordings


class Hooks:
    """The hooks that ship. ``[Token]`` and ``[Platform]`` choose what they do; without either, all are denied."""

    # What ``authorize`` is asked about; all else is denied. A class that overrides it names them, or has "play" alone:
    # so an older one, which looks at no other action, opens nothing that it does not know.
    actions: ClassVar[tuple[str, ...]] = ("play", "watch", "list", "search", "terminate")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "authorize" in vars(cls) and "actions" not in vars(cls):
            cls.actions = ("play",)

    def __init__(self, settings: HooksSettings) -> None:
        self.settings = settings
        self.ledger = self.make_ledger(settings)  # written by the server itself, whatever the hooks below do

    @staticmethod
    def make_ledger(settings: HooksSettings) -> Ledger:
        """The ledger, not opened yet. Put another in its place that keeps the contract of ``Ledger``."""
        return Ledger(settings.db)

    def open(self) -> None:
        """Called once, before the server listens."""
        self.ledger.open()

    def close(self) -> None:
        """Called once, when every session has ended."""
        self.ledger.close()

    def validate_ssh_token(self, token: str) -> TokenAuthData:
        """Say what ``token`` stands for, or raise Denied. Called once a terminal, before it opens."""
        if self.settings.validate_url:
            return self._ask_platform(token)
        if self.settings.secret:
            return self._read_signed_token(token)
        raise Denied("this server has no way to check tokens yet; its operator must set [Token] secret or [Platform]")

    def on_login(self, info: SessionInfo) -> None:
        """A session begins: it stands in the ledger, its recording exists, its shell not yet. Raising ends it."""
        if self.settings.login_url:
            self._post(self.settings.login_url, info.as_json())

    def on_heartbeat(self, info: SessionInfo) -> None:
        """A session is open; ``info`` has its bytes and its recording's size so far. Raising Denied ends it.

        Called every ``[Platform] heartbeat_interval`` for each session, not twice at a time for one, and never where
        neither ``heartbeat_url`` is set nor this is overridden. No session waits for it, and no other exception ends
        any. One that was called before its session ended may return after that.
        """
        if self.settings.heartbeat_url:
            self._post(self.settings.heartbeat_url, info.as_json(), denial="")

    def on_logout(self, info: SessionInfo) -> None:
        """A session has ended, and the ledger says so; after a crash its reason is ``lost``. No session waits for this.

        Called after each ``on_login``, even one that raised, and again, with growing pauses and after a restart, too,
        until it returns or the logout is a day old. A crash in between may repeat one that has returned.
        """
        if self.settings.logout_url:
            self._post(self.settings.logout_url, info.as_json())

    def authorize(self, token: str, action: str, filename: str) -> str:
        """Say which user may do ``action``, or raise Denied.

        Actions are "play" and "watch" with a recording, "terminate" with the session of that recording, "list" of
        sessions and "search" in commands; of more than one session ``filename`` is "". So it is, too, when a page asks
        whether it may offer to "terminate" any. A class that overrides this says in ``actions`` which ones it knows.

        Here: a link signed with ``[Token] secret`` whose claim ``scope`` has a word for the action; a claim
        ``filename``, absolute or relative to the record folder, limits it to that recording.
        """
        if not self.settings.secret:
            raise Denied("recordings are not open here; the server's operator must set [Token] secret")
        claims = verify_token(token, self.settings.secret)
        user = str(claims.get("sub", ""))
        scopes = _SCOPES.get(action, ())
        if not set(scopes).intersection(str(claims.get("scope", "")).split()):
            raise Denied(f"this link does not allow to {action}; it needs the scope {' or '.join(scopes)}", user)
        if "filename" in claims and not self._is_same(claims["filename"], filename):
            raise Denied("this link is for another recording", user)
        return user

    def _is_same(self, claimed: object, filename: str) -> bool:
        """Whether these are one recording's names, absolute or relative to the record folder."""
        if not (isinstance(claimed, str) and claimed and filename):
            return False
        root = self.settings.records.absolute()
        return os.path.join(root, claimed) == os.path.join(root, filename)

    def fetch_recording(self, filename: str) -> Path | None:
        """Bring a recording back that is not in the record folder any more. None: there is none elsewhere.

        Called where ``authorize`` or ``[Record] public`` allows it, on the thread of the request that wants to play it:
        it may be slow. ``filename`` is relative to the record folder and certain to be of the form of a recording; that
        such a session ever existed is not. The file, ``.cast`` or ``.cast.gz``, is served as it is and may lie anywhere
        (a cache, kept small by this hook): that it is that recording, unchanged, is the hook's to see to.
        """
        return None

    def _read_signed_token(self, token: str) -> TokenAuthData:
        claims = verify_token(token, self.settings.secret)
        if claims.get("scope", "terminal") != "terminal":
            raise Denied("this link is not for a terminal", str(claims.get("sub", "")))
        auth = auth_data({**claims, "user": claims.get("sub", "")}, self.settings.clusters)
        if "jti" not in claims:
            return replace(auth, reusable=True)
        try:
            self.ledger.use_token(str(claims["jti"]), float(claims["exp"]))
        except Denied as exc:
            raise Denied(str(exc), auth.user) from None
        return auth

    def _ask_platform(self, token: str) -> TokenAuthData:
        answer = self._post(self.settings.validate_url, {"ssh_token": token})
        if not isinstance(answer, dict):
            raise HookError("the platform's answer to validate_url is not a JSON object")
        return auth_data(answer, self.settings.clusters)

    def _post(self, url: str, body: Mapping[str, Any], denial: str = _DENIAL) -> Any:
        """POST JSON to the platform: see post_json."""
        return post_json(url, body, self.settings.authorization, denial)


def load_hooks(file: Path | None) -> type[Hooks]:
    """The Hooks class that ships, or the one subclass of it in the operator's ``file``. Raises HookError."""
    if file is None:
        return Hooks
    spec = importlib.util.spec_from_file_location("operator_hooks", file)
    if spec is None or spec.loader is None:
        raise HookError(f"file in [Hooks]: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        raise HookError(f"file in [Hooks]: {file} cannot be loaded: {type(exc).__name__}: {exc}") from exc
    found = {
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Hooks) and value.__module__ == module.__name__
    }
    if len(found) != 1:
        raise HookError(
            f"file in [Hooks]: {file} must define exactly one subclass of hooks.Hooks; it defines {len(found)}"
        )
    return found.pop()


# -- what a token says ------------------------------------------------------------------------------------------------

# Which words of the claim ``scope`` allow an action.
_SCOPES = {
    "play": ("play", "audit"),
    "watch": ("watch", "audit"),
    "list": ("audit",),
    "search": ("audit",),
    "terminate": ("terminate",),
}
_TEXT_LIMITS = {  # characters
    "namespace": 253,
    "pod_name": 253,
    "container_name": 253,
    "user": 1000,
    "context": 1000,
    "directory": 4096,
    "message": 4096,
    "cluster_cfg": 1 << 20,
}
_SECONDS = ("idle_timeout", "max_duration")
_LABEL_LIMIT_CHARACTERS = 24
_COLOURS = {
    "red": "#e5484d",
    "orange": "#e8823a",
    "yellow": "#e0b341",
    "green": "#3fa76d",
    "blue": "#4b8bf0",
    "purple": "#a06be0",
    "grey": "#8a91a2",
}
_COLOUR = re.compile("(#[0-9a-f]{6})?")
LIMIT_MAXIMUM = 10**9  # of a number in [Limits], and of a token's
_COMMAND_LIMIT_CHARACTERS = 1 << 16
_TOKEN_LIMIT_CHARACTERS = 1 << 16


def auth_data(values: Mapping[str, Any], clusters: Mapping[str, Path]) -> TokenAuthData:
    """Build a TokenAuthData from a JSON object. ``cluster`` names a kubeconfig of the operator's.

    Raises HookError when something is missing or of a wrong type: that is the platform's mistake, not the user's.
    """
    texts: dict[str, Any] = {name: _token_text(name, values.get(name), limit) for name, limit in _TEXT_LIMITS.items()}
    if not texts["pod_name"]:
        raise HookError("a token must name a pod_name")
    command = values.get("command") or []
    if not isinstance(command, list):
        raise HookError("command of a token must be a list of texts")
    command = [_token_text("command", argument, _COMMAND_LIMIT_CHARACTERS) for argument in command]
    if sum(map(len, command)) + len(command) > _COMMAND_LIMIT_CHARACTERS:
        raise HookError("command of a token is too long")
    cluster = "" if texts["cluster_cfg"] else _cluster_name(values.get("cluster"), clusters)
    file = clusters[cluster] if cluster else None
    if file is not None:
        texts["cluster_cfg"] = _read_cluster(file)
    seconds: dict[str, Any] = {name: _token_seconds(name, values.get(name)) for name in _SECONDS}
    mark: dict[str, Any] = {name: _token_mark(name, values.get(name)) for name in NORMAL_MARKS}
    known = {*_TEXT_LIMITS, *_SECONDS, *filter(mark.get, mark), "command"}
    extra = {key: value for key, value in values.items() if key not in known}
    return TokenAuthData(
        **texts, **seconds, **mark, command=tuple(command), cluster=cluster, cluster_file=file, extra=extra
    )


def _token_text(name: str, value: object, limit: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise HookError(f"{name} of a token must be text")
    if len(value) > limit:
        raise HookError(f"{name} of a token has more than {limit} characters")
    if "\0" in value or _SURROGATE.search(value):
        raise HookError(f"{name} of a token has a character that no text has (NUL, or half of a surrogate pair)")
    return value


def normal_label(text: str) -> str:
    """A word for a place, as the pages show it. Raises ValueError."""
    if len(text) > _LABEL_LIMIT_CHARACTERS or not text.isprintable():
        raise ValueError(f"must be one line of {_LABEL_LIMIT_CHARACTERS} characters at most")
    return text.strip()


def normal_colour(text: str) -> str:
    """A colour as ``#rrggbb``; "" stays so. Raises ValueError."""
    colour = _COLOURS.get(text, text.lower())
    if not _COLOUR.fullmatch(colour):
        raise ValueError(f"must be #rrggbb or one of {', '.join(_COLOURS)}")
    return colour


# How the pages tell one cluster from another.
NORMAL_MARKS: Mapping[str, Callable[[str], str]] = {"label": normal_label, "colour": normal_colour}


def _token_mark(name: str, value: object) -> str:
    """What has another form is no mark: a platform may have a field of that name for a purpose of its own."""
    try:
        return NORMAL_MARKS[name](value) if isinstance(value, str) else ""
    except ValueError:
        return ""


def _token_seconds(name: str, value: object) -> int:
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= LIMIT_MAXIMUM:
        raise HookError(f"{name} of a token must be a whole number of seconds, 0 to {LIMIT_MAXIMUM}")
    return value


def _cluster_name(name: object, clusters: Mapping[str, Path]) -> str:
    """The cluster under ``[Clusters]``: the named or the only one; "" where there are none."""
    if not name and len(clusters) <= 1:
        return next(iter(clusters), "")
    if isinstance(name, str) and name in clusters:
        return name
    raise HookError(f"the cluster of a token must be one of [Clusters]; {str(name)[:100]!r} is not under it")


def _read_cluster(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise HookError(f"the kubeconfig {path} cannot be read: {exc}") from exc


def verify_token(token: str, secret: str) -> dict[str, Any]:
    """The claims of a JWT signed with HS256 (RFC 7519, RFC 7515 section 5.2), or Denied.

    ``exp`` is required; ``nbf`` is honoured. No other algorithm is accepted, whatever the header says.
    """
    try:
        if len(token) > _TOKEN_LIMIT_CHARACTERS:
            raise ValueError("too long")
        signed, _, signature = token.rpartition(".")
        header, payload = (json.loads(_base64url(part)) for part in signed.split("."))
        expected = hmac.new(secret.encode(), signed.encode("ascii"), hashlib.sha256).digest()
        genuine = hmac.compare_digest(expected, _base64url(signature))
        if not genuine or not isinstance(payload, dict) or header.get("alg") != "HS256" or "crit" in header:
            raise ValueError("not signed by us")
        expires, not_before = float(payload["exp"]), float(payload.get("nbf", 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise Denied("this link is not valid; open it again from the platform") from None
    now, user = time.time(), str(payload.get("sub", ""))
    if not now < expires:
        raise Denied("this link has expired; open it again from the platform", user)
    if now + _CLOCK_SKEW_SECONDS < not_before:
        raise Denied("this link is not valid yet", user)
    return payload


def _base64url(text: str) -> bytes:
    """Decode base64url without padding (RFC 7515, section 2); ValueError for anything else."""
    if not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_")
    except binascii.Error as exc:
        raise ValueError("not base64url") from exc


# -- the platform -----------------------------------------------------------------------------------------------------


def post_json(url: str, body: Mapping[str, Any], authorization: str, denial: str = _DENIAL) -> Any:
    """POST a JSON object and return the JSON answer (None for an empty one). Blocks for 5 s, and as much to connect.

    Redirects are not followed: they would carry the user's token to another host. Raises Denied for 401, 403 and 404,
    with the answer's ``message``, or else with ``denial`` unless that is empty; HookError for everything else.
    """
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=PLATFORM_TIMEOUT_SECONDS)
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    headers = {"Content-Type": "application/json", **({"Authorization": authorization} if authorization else {})}
    try:
        connection.connect()
        with _limited(connection.sock):
            connection.request("POST", target, json.dumps(body), headers)
            with connection.getresponse() as response:
                answer = response.read(_ANSWER_LIMIT_BYTES + 1)
    except (OSError, http.client.HTTPException) as exc:
        raise HookError(f"the platform cannot be reached or did not answer in time: {type(exc).__name__}") from None
    finally:
        connection.close()
    return _understood(response.status, answer, denial)


@contextlib.contextmanager
def _limited(sock: socket.socket) -> Iterator[None]:
    """Cut the connection when the block takes longer than a call to the platform may."""
    cut = threading.Timer(PLATFORM_TIMEOUT_SECONDS, _cut, (sock,))
    try:
        cut.start()
    except RuntimeError:
        raise HookError("no thread can be started for a call to the platform") from None
    try:
        yield
    finally:
        cut.cancel()


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may be gone already
        sock.shutdown(socket.SHUT_RDWR)


def _understood(status: int, answer: bytes, denial: str) -> Any:
    """What the platform's answer says, as JSON."""
    sentence = (_message(answer) or denial) if status in (401, 403, 404) else ""
    if sentence:
        raise Denied(sentence)
    if not 200 <= status < 300:
        raise HookError(f"the platform answered with HTTP status {status}")
    if len(answer) > _ANSWER_LIMIT_BYTES:
        raise HookError("the platform's answer is too long")
    try:
        return json.loads(answer) if answer.strip() else None
    except (ValueError, RecursionError):
        raise HookError("the platform's answer is not JSON") from None


def _message(answer: bytes) -> str:
    """The sentence for the user in it; "" if there is none."""
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(answer)
        message = values.get("message") if isinstance(values, dict) else None
        if message and isinstance(message, str):
            return str(message)[: _TEXT_LIMITS["message"]]
    return ""


# -- the log ----------------------------------------------------------------------------------------------------------

log = logging.getLogger("jumpserver")
_PLAIN_VALUE = re.compile(r"[!#-<>-\[\]-~]+")
_VALUE_LIMIT_CHARACTERS = 4096  # as long as a path may be; strangers' words come here, too
_LEVELS = {"error": logging.ERROR, "trouble": logging.ERROR, "warning": logging.WARNING}  # all else is INFO


class LogEvent:
    """A line of the log: the event's name, and ``key=value`` pairs; then the traceback of what nobody foresaw."""

    def __init__(self, name: str, fields: Mapping[str, object], trace: str = "") -> None:
        self._name, self._fields, self._trace = name, fields, trace

    def __str__(self) -> str:
        pairs = (f"{key}={_log_value(value)}" for key, value in self._fields.items())
        return " ".join((self._name, *pairs)) + (f"\n{self._trace}" if self._trace else "")

    def as_json(self) -> dict[str, object]:
        """The same for a machine: numbers stay numbers."""
        fields = {key: _json_value(value) for key, value in self._fields.items()}
        return {"event": self._name, **fields, **({"traceback": self._trace} if self._trace else {})}


def log_event(event: str, /, **fields: object) -> None:
    """One line an event: its name and ``key=value`` pairs; what has blanks or control characters is quoted."""
    log.log(_LEVELS.get(event, logging.INFO), LogEvent(event, fields))


def log_fault(trace: str, /, **fields: object) -> None:
    """An ``error`` that nobody foresaw, with its traceback."""
    log.error(LogEvent("error", fields, trace))


def _log_value(value: object) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value)
    text = f"{value:.3f}" if isinstance(value, float) else str(value)[:_VALUE_LIMIT_CHARACTERS]
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text)


def _json_value(value: object) -> object:
    if value is None or isinstance(value, (bool, int, Mapping)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return round(value, 3)
    return str(value)[:_VALUE_LIMIT_CHARACTERS]


# -- the ledger -------------------------------------------------------------------------------------------------------

_TELL, _HANG_UP, _PACK = 1, 2, 4
_UNFINISHED = "(logout_at IS NULL OR todo > 0)"
# In words that SQLite and PostgreSQL share.
_TABLES = """
CREATE TABLE IF NOT EXISTS sessions (
    session_id TEXT PRIMARY KEY, filename TEXT NOT NULL, "user" TEXT NOT NULL, namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL, container_name TEXT NOT NULL, remote_addr TEXT NOT NULL, login_at DOUBLE PRECISION NOT NULL,
    logout_at DOUBLE PRECISION, reason TEXT NOT NULL DEFAULT '', exit_code BIGINT, bytes_out BIGINT, bytes_in BIGINT,
    sha256 TEXT);
CREATE TABLE IF NOT EXISTS used_tokens (jti TEXT PRIMARY KEY, expires_at DOUBLE PRECISION NOT NULL);
CREATE INDEX IF NOT EXISTS expiring_tokens ON used_tokens (expires_at);
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY, time DOUBLE PRECISION NOT NULL, kind TEXT NOT NULL, session TEXT NOT NULL,
    json TEXT NOT NULL, digest TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS entries_of_session ON entries (session, number);
CREATE TABLE IF NOT EXISTS asked (
    session_id TEXT NOT NULL, what TEXT NOT NULL, "by" TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (session_id, what, "by"));
CREATE TABLE IF NOT EXISTS commands (
    number INTEGER PRIMARY KEY, session_id TEXT NOT NULL, "user" TEXT NOT NULL, time DOUBLE PRECISION NOT NULL,
    seconds DOUBLE PRECISION NOT NULL, text TEXT NOT NULL, exit_code BIGINT)
"""
# Later than the first version: what a table of sessions may lack.
_NEWER_COLUMNS = {
    "hung_up": "BIGINT",
    "server": "TEXT NOT NULL DEFAULT ''",
    "cluster": "TEXT NOT NULL DEFAULT ''",
    "size": "BIGINT",
    "todo": "INTEGER NOT NULL DEFAULT 0",  # of an ended session: _TELL, _HANG_UP, _PACK
    "info": "TEXT",  # what on_logout is told and no column holds, until nothing is left to do
    "chain": "TEXT NOT NULL DEFAULT ''",  # the head after its logout
    "words": "TEXT NOT NULL DEFAULT ''",  # what a search looks at: _words
}
_INDEXES = f"""
CREATE INDEX IF NOT EXISTS unfinished ON sessions (server) WHERE {_UNFINISHED};
CREATE INDEX IF NOT EXISTS sessions_open ON sessions (login_at, session_id) WHERE logout_at IS NULL;
CREATE INDEX IF NOT EXISTS sessions_in_time ON sessions (login_at, session_id, words);
CREATE INDEX IF NOT EXISTS sessions_of_user ON sessions ("user", login_at, session_id);
CREATE INDEX IF NOT EXISTS sessions_of_namespace ON sessions (namespace, login_at, session_id);
CREATE INDEX IF NOT EXISTS sessions_of_pod ON sessions (pod_name, login_at, session_id);
CREATE INDEX IF NOT EXISTS commands_in_time ON commands (time, number, text);
CREATE INDEX IF NOT EXISTS commands_of_user ON commands ("user", time, number, text)
"""
_AT_LOGIN = (
    *("filename", "user", "namespace", "pod_name", "container_name"),
    *("remote_addr", "login_at", "cluster", "server"),
)
_AT_LOGOUT = (
    *("container_name", "logout_at", "reason", "exit_code", "bytes_out", "bytes_in"),
    *("size", "sha256", "hung_up"),
)
_NOT_ENDED = {**dict.fromkeys(_AT_LOGOUT), "reason": "", "chain": ""}
# What the kinds of entries say of a session's row, the later ones in place of the earlier ones.
_ROW_ENTRIES = {
    "found": _AT_LOGIN + _AT_LOGOUT,
    "login": _AT_LOGIN,
    "logout": _AT_LOGOUT,
    "amended": _AT_LOGOUT,
    "adopted": ("server",),
}
_SEARCHED = ("user", "pod_name", "namespace", "container_name", "cluster", "remote_addr", "reason")
_NO_DIGEST = "0" * 64  # stands before the first entry
_PAGE_ROWS = 1000  # read at a time
_ENTRY_LIMIT_CHARACTERS = 4096  # of a text that others hand in for an entry
_FEW = 500  # rows that have a text; of more, 50 are soon met
_CACHE_BYTES = 32 << 20  # for searches through 100,000 sessions; is taken as it is needed
_LOCKED_SECONDS = 0.5  # for a file that another process has locked
_STUCK_SECONDS = 1.0  # without any progress of those whose turn it is
_ALONE_SECONDS = 5.0
_ROOM_BYTES = 16 << 20  # free space below which no session begins
_SPENT_SECONDS = 24 * 3600.0  # how far the clock may go back without making a spent token good again
_INTEGER_MAX = (1 << 63) - 1


class Rows(Protocol):
    """What a statement has found, or how many rows it has changed."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Database(Protocol):
    """A connection, while it is one thread's. Rows are read by the names of their columns."""

    def execute(self, query: str, values: Sequence[Any] = (), /) -> Rows:
        """Run a statement with a question mark for each value."""


@dataclass(frozen=True)
class Unfinished:
    """A session about which something is left to do; one without ``logout_at`` was lost with its server."""

    info: SessionInfo
    tell: bool = True  # on_logout has not returned yet
    hang_up: bool = True  # it may have left something in its pod
    with_token: bool = False  # its kubeconfig came with its token, and so is gone
    pack: bool = False  # its recording is to be packed


@dataclass(frozen=True)
class Entry:
    """One entry of the chain. Its digest is that of the entry before and all of this one: see ``chain_digest``."""

    number: int  # from 1, without gaps
    time: float  # Unix seconds
    kind: str
    session_id: str  # empty: of no session
    values: Mapping[str, Any]
    digest: str  # SHA-256 in hex
    text: str = field(default="", repr=False)  # the values as they stand in the chain, JSON

    @property
    def head(self) -> str:
        """The chain up to here in one word: ``<number>:<digest>``."""
        return f"{self.number}:{self.digest}"

    def follows(self, before: Entry) -> bool:
        """Whether it stands behind that one, and all of it is as it was written."""
        said = chain_digest(before.digest, self.number, self.time, self.kind, self.session_id, self.text)
        return self.number == before.number + 1 and self.digest == said


@dataclass(frozen=True)
class Ask:
    """What one server, or one person through it, wants of a session of another: "end" or "watch"."""

    session_id: str
    what: str
    by: str
    reason: str


@dataclass(frozen=True)
class Command:
    """A command line that a session's shell reported, and how it ended (None: not known)."""

    session_id: str
    seconds: float  # since the start of the recording
    text: str
    exit_code: int | None
    number: int = field(default=0, compare=False)  # of its row, once it has one


@dataclass(frozen=True)
class SessionQuery:
    """Which sessions to find; what is empty or None does not matter. Times are those of the login, Unix seconds."""

    state: str = ""  # "open" or "ended"
    user: str = ""
    namespace: str = ""
    pod: str = ""
    since: float | None = None
    until: float | None = None  # and not later
    q: str = ""  # part of user, pod, namespace, container, cluster, address or reason, in upper or lower case
    before: str = ""  # the cursor of the last one of the page before
    limit: int = 50


@dataclass(frozen=True)
class CommandQuery:
    """Which commands to find, as ``SessionQuery``; the times are their own, and ``q`` is a part of their text."""

    q: str = ""
    user: str = ""
    since: float | None = None
    until: float | None = None
    before: str = ""
    limit: int = 50


def cursor(last: SessionInfo | Command) -> str:
    """What a query's ``before`` says to go on behind this one. One that the ledger does not know finds nothing."""
    return last.session_id if isinstance(last, SessionInfo) else str(last.number)


class Ledger:
    """The sessions of one or several servers on this host in SQLite: a row at login, completed at logout. Any thread.

    What matters is also an entry in a chain, each with a digest over itself and the one before, so that nobody changes
    the past unseen. Also remembers which one-use tokens are spent. Every method takes about a second at most, and
    raises LedgerError when another process keeps the file locked, when it cannot be written, or when it is not the one
    that was opened.

    All SQL is plain enough for others than SQLite: a ledger elsewhere replaces ``open``, ``close``, ``check``,
    ``adopt``, ``need_room``, ``reading`` and ``transaction``.
    """

    LIKE = "LIKE"  # the operator that takes no heed of upper and lower case

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = uuid.uuid4().hex  # names this server among those that share the file
        self._alive: int | None = None  # the descriptor of a file beside the ledger, locked while this server lives
        self._lock = threading.Lock()  # guards the connection
        self._connection: sqlite3.Connection | None = None
        self._identity: object = None  # of the files that are open
        self._has_search = False  # whether there is an index of all parts of texts
        self._progress = 0.0  # the monotonic time at which the last transaction was done

    def open(self) -> None:
        """Open or make the file, and say that this server lives."""
        try:
            with self._alone():
                self._connect()
                self._say_alive()
        except LedgerError:
            self.close()
            raise
        except (OSError, sqlite3.Error) as exc:
            self.close()
            raise LedgerError(f"db in [Audit]: {self.path} cannot be opened: {exc}") from exc

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the ledger's folder: no two servers look who lives, or begin to, at the same time.

        Raises OSError when another keeps it for more than five seconds.
        """
        deadline = time.monotonic() + _ALONE_SECONDS
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            while True:
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
            yield
        finally:
            os.close(folder)

    def _connect(self) -> None:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o640))  # SQLite would make it readable by all
        self._connection = sqlite3.connect(
            self.path, timeout=_LOCKED_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(f"PRAGMA cache_size=-{_CACHE_BYTES >> 10}")
        tables = self._connection.execute("SELECT name FROM sqlite_master").fetchall()  # makes the write-ahead log
        self._identity = _identity(self.path)  # of files that stay while it is open
        with self.transaction() as db:
            there = {row["name"] for row in db.execute("PRAGMA table_info(sessions)")}
            self.make_tables(db, there, _INDEXES)
            names = {row["name"] for row in tables}
            if there and "entries" not in names:
                _take_over(db)
            self._has_search = "session_search" in names or _make_search(db)

    @staticmethod
    def make_tables(db: Database, columns: Container[str], indexes: str) -> None:
        """Make what is not there yet; ``columns``: those that the table of sessions has."""
        missing = [name for name in _NEWER_COLUMNS if name not in columns]
        added = [f"ALTER TABLE sessions ADD COLUMN {name} {_NEWER_COLUMNS[name]}" for name in missing]
        for statement in (*_TABLES.split(";"), *added, *indexes.split(";")):
            db.execute(statement)

    def _say_alive(self) -> None:
        self._fall_silent()
        self._alive = os.open(self._life_file(self.server), os.O_CREAT | os.O_RDWR, 0o640)
        fcntl.flock(self._alive, fcntl.LOCK_EX)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        self._fall_silent()

    def _fall_silent(self) -> None:
        if self._alive is not None:
            self._life_file(self.server).unlink(missing_ok=True)
            os.close(self._alive)
            self._alive = None

    def _life_file(self, server: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{server}.alive")

    def socket_file(self, server: str) -> Path:
        """Where that server may listen to the others. Removed with what says that it lives, if it dies."""
        return self._life_file(server).with_suffix(".sock")

    def _living(self) -> Iterator[str]:
        """The servers that live, this one included; the files of the others are removed."""
        for path in self.path.parent.glob(f"{glob.escape(self.path.name)}.*.alive"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.with_suffix(".sock").unlink(missing_ok=True)
                    path.unlink()
                except BlockingIOError:
                    yield path.name.rsplit(".", 2)[1]

    def check(self) -> None:
        """Raises LedgerError when no session could be written now."""
        with self.transaction():
            self.need_room()

    def need_room(self) -> None:
        """Raises LedgerError where the disk has no room for another session."""
        space = os.statvfs(self.path)
        if space.f_bavail * space.f_frsize < _ROOM_BYTES:
            raise LedgerError(f"db in [Audit]: {self.path} has less than {_ROOM_BYTES >> 20} MiB left")

    def login(self, info: SessionInfo) -> None:
        """Write the row of a session that begins."""
        auth = info.auth
        with_token = bool(auth.cluster_cfg) and auth.cluster_file is None
        row = _columns(replace(info, server=self.server), _AT_LOGIN)
        kept = json.dumps({**info.as_json(), "named": auth.cluster, "with_token": with_token}, default=str)
        with self.transaction() as db:
            self.need_room()
            _insert(db, "sessions", {**row, "session_id": info.session_id, "info": kept, "words": _words(row)})
            _append(db, "login", info.session_id, row)

    def is_open(self, session_id: str) -> bool:
        """Whether the session has begun and not ended, on whatever server."""
        with self.reading() as db:
            query = "SELECT 1 FROM sessions WHERE session_id = ? AND logout_at IS NULL"
            return db.execute(query, (_storable(session_id),)).fetchone() is not None

    def save(self, sessions: Iterable[Unfinished]) -> list[str]:
        """Write what is known of sessions that have ended, and what is still to be done about them: all or none.

        Returns the head of the chain after the logout of each.
        """
        with self.transaction() as db:
            return [self._save(db, session) for session in sessions]

    def _save(self, db: Database, session: Unfinished) -> str:
        session_id = session.info.session_id
        before = _row(db.execute("SELECT * FROM sessions WHERE session_id = ?", (session_id,)))
        row, chain = _columns(session.info, _AT_LOGOUT), str(before.get("chain", ""))
        changed = {name: value for name, value in row.items() if value != before.get(name)}
        if before.get("logout_at") is None:
            chain = _append(db, "logout", session_id, row)
            db.execute("DELETE FROM asked WHERE session_id = ?", (session_id,))
            if self._has_search:
                _insert(db, "session_search", {"words": _words({**before, **row}), "session_id": session_id})
        elif changed:
            _append(db, "amended", session_id, changed)
        todo = _TELL * session.tell | _HANG_UP * session.hang_up | _PACK * session.pack
        row.update(chain=chain, words=_words({**before, **row}), todo=todo, info=before.get("info") if todo else None)
        _update(db, session_id, row)
        return chain

    def adopt(self) -> list[Unfinished]:
        """Take over what servers that have died left unfinished: from now on it is this server's."""
        try:
            with self._alone():
                if not self._life_file(self.server).exists():  # somebody has removed it
                    self._say_alive()
                return self.adopt_from(lambda servers: servers.difference(self._living()))
        except OSError as exc:
            raise LedgerError(f"db in [Audit]: {self.path}: {exc}") from exc

    def adopt_from(self, dead: Callable[[set[str]], set[str]]) -> list[Unfinished]:
        """``adopt``, where it is known which of these servers, those that have something unfinished, are dead."""
        with self.reading() as db:
            found = db.execute(f"SELECT DISTINCT server FROM sessions WHERE {_UNFINISHED}")  # noqa: S608
            servers = dead({row["server"] for row in found}) - {self.server}
        return self._adopt_of(servers) if servers else []

    def _adopt_of(self, servers: Iterable[str]) -> list[Unfinished]:
        """All or nothing: what stands in the ledger as this server's, nobody takes over as long as it lives."""
        rows: list[Mapping[str, Any]] = []
        with self.transaction() as db:
            for server in servers:
                query = f"SELECT * FROM sessions WHERE {_UNFINISHED} AND server = ?"  # noqa: S608
                rows += map(dict, db.execute(query, (server,)))
            for row in rows:
                _update(db, row["session_id"], {"server": self.server})
                _append(db, "adopted", row["session_id"], {"server": self.server})
            return [
                replace(session, info=replace(session.info, server=self.server)) for session in map(_unfinished, rows)
            ]

    def use_token(self, jti: str, expires_at: float) -> None:
        """Spend a one-use token (RFC 7519, section 4.1.7). Raises Denied the second time."""
        with self.transaction() as db:
            db.execute("DELETE FROM used_tokens WHERE expires_at < ?", (time.time() - _SPENT_SECONDS,))
            spent = "INSERT INTO used_tokens VALUES (?, ?) ON CONFLICT DO NOTHING"
            if not db.execute(spent, (_storable(jti), expires_at)).rowcount:
                raise Denied("this link was already used; open the terminal again from the platform")

    def append(self, kind: str, session_id: str = "", **values: object) -> None:
        """Write an entry of its own into the chain: who did what, and when. Long texts are cut."""
        with self.transaction() as db:
            _append(db, kind, session_id, {name: _short(value) for name, value in values.items()})

    def head(self) -> str:
        """The chain in one word, ``<number>:<hex digest>`` of its last entry: a copy elsewhere proves all before it."""
        with self.reading() as db:
            number, digest = _last(db)
            return f"{number}:{digest}"

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """The entries behind that number, in order; nothing is locked between two of them."""
        while True:
            with self.reading() as db:
                query = "SELECT * FROM entries WHERE number > ? ORDER BY number LIMIT ?"
                page = [_entry(row) for row in db.execute(query, (after, _PAGE_ROWS))]
            yield from page
            if len(page) < _PAGE_ROWS:
                return
            after = page[-1].number

    def histories(self) -> Iterator[tuple[Mapping[str, Any], list[Entry]]]:
        """Each row of a session with the entries of that session, as they were at one moment. Locks as ``entries``."""
        page = "SELECT * FROM sessions WHERE session_id > ? ORDER BY session_id LIMIT ?"
        kinds = ", ".join(f"'{kind}'" for kind in (*_ROW_ENTRIES, "retired"))
        entries = f"entries ON session = session_id AND number > 0 AND kind IN ({kinds})"
        query = f"SELECT * FROM ({page}) AS page LEFT JOIN {entries} ORDER BY session_id, number"  # noqa: S608
        found: list[dict[str, Any]] = [{"session_id": ""}]
        while found:
            with self.reading() as db:
                found = [dict(row) for row in db.execute(query, (found[-1]["session_id"], _PAGE_ROWS))]
            for _, same in itertools.groupby(found, operator.itemgetter("session_id")):
                rows = list(same)
                yield rows[0], [_entry(row) for row in rows if row["number"] is not None]

    def without_row(self) -> list[str]:
        """The sessions that began, as the chain says, and have no row."""
        query = (
            "SELECT DISTINCT session FROM entries WHERE kind IN ('login', 'found')"
            " AND session NOT IN (SELECT session_id FROM sessions) ORDER BY session"
        )
        with self.reading() as db:
            return [row["session"] for row in db.execute(query)]

    def command_rows(self, first: int, last: int) -> list[Mapping[str, Any]]:
        """The rows of the table of commands with these numbers."""
        with self.reading() as db:
            query = "SELECT * FROM commands WHERE number BETWEEN ? AND ? ORDER BY number"
            return [dict(row) for row in db.execute(query, (first, last))]

    def last_command(self) -> int:
        """The highest number of a row of the table of commands; 0 if there is none."""
        with self.reading() as db:
            return _last_command(db)

    def find(self, query: SessionQuery) -> list[SessionInfo]:
        """The sessions that match, the newest first, ``query.limit`` at most."""
        where = _Where()
        if query.state:
            where.add("logout_at IS NULL" if query.state == "open" else "logout_at IS NOT NULL")
        narrow = query.state == "open"
        phrase = "" if narrow else self._rare("session_search", query.q)
        if phrase:
            is_open = "SELECT session_id FROM sessions WHERE logout_at IS NULL"
            has_it = "SELECT session_id FROM session_search WHERE session_search MATCH ?"
            where.add(f"session_id IN ({is_open} UNION ALL {has_it})", phrase)
            narrow = True
        # The one index that is likely to lead to the fewest rows; SQLite would take any, and so it sees no other.
        for name, text in (("pod_name", query.pod), ("user", query.user), ("namespace", query.namespace)):
            if text:
                narrow = narrow or (name == "namespace" and bool(query.q))
                where.add(f"\"{name}\" || '' = ?" if narrow else f'"{name}" = ?', text)
                narrow = True
        where.within("login_at", query.since, query.until)
        where.contains(f"words {self.LIKE}", query.q.lower())
        if query.before:
            last = "SELECT login_at, session_id FROM sessions WHERE session_id = ?"
            where.add(f"(login_at, session_id) < ({last})", query.before)
        return [_session_info(row) for row in self._select("sessions", where, ("login_at", "session_id"), query.limit)]

    def session(self, session_id: str) -> SessionInfo | None:
        """What the ledger knows of one session."""
        with self.reading() as db:
            row = _row(db.execute("SELECT * FROM sessions WHERE session_id = ?", (_storable(session_id),)))
            return _session_info(row) if row else None

    def ask(self, session_id: str, what: str, by: str, reason: str = "") -> bool:
        """Ask the server whose session it is to "end" it, or to tell its user who begins to "watch".

        Returns False if the session is not open. Who asks the same twice before it is done has asked once.
        """
        row = [_short(value) for value in (session_id, what, by, reason)]
        with self.transaction() as db:
            query = "SELECT 1 FROM sessions WHERE session_id = ? AND logout_at IS NULL"
            if db.execute(query, row[:1]).fetchone() is None:
                return False
            db.execute("INSERT INTO asked VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", row)
            return True

    def asked(self) -> list[Ask]:
        """What was asked of this server's sessions, each time once; also of those that it has adopted."""
        is_mine = "SELECT 1 FROM sessions WHERE session_id = asked.session_id AND server = ?"
        mine = f"FROM asked WHERE EXISTS ({is_mine})"
        with self.reading() as db:
            if db.execute(f"SELECT 1 {mine}", (self.server,)).fetchone() is None:  # nearly always
                return []
        with self.transaction() as db:
            asks = [
                Ask(row["session_id"], row["what"], row["by"], row["reason"])
                for row in db.execute(f"SELECT * {mine}", (self.server,))
            ]
            db.execute(f"DELETE {mine}", (self.server,))
            return asks

    def add_commands(self, commands: Iterable[Command]) -> None:
        """Write commands of sessions that have a row, all or none; the chain gets one entry for all of them.

        One that is there already, of the same session and second, is passed over.
        """
        with self.transaction() as db:
            number = _last_command(db)
            rows: list[dict[str, Any]] = []
            for command in commands:
                query = "SELECT * FROM sessions WHERE session_id = ?"
                session = _row(db.execute(query, (_storable(command.session_id),)))
                row = _command_row(command, session) if session else {}
                same = "SELECT number FROM commands WHERE time = ? AND session_id = ?"
                if row and not _row(db.execute(same, (row["time"], row["session_id"]))):
                    rows.append({"number": number + 1 + len(rows), **row})
                    _insert(db, "commands", rows[-1])
            if rows:
                first, last = rows[0]["number"], rows[-1]["number"]
                _append(db, "commands", "", {"first": first, "last": last, "sha256": commands_digest(rows)})
                if self._has_search:
                    added = "SELECT number, text FROM commands WHERE number >= ?"
                    db.execute(f"INSERT INTO command_search (rowid, text) {added}", (first,))

    def commands(self, query: CommandQuery) -> list[tuple[Command, SessionInfo]]:
        """The commands that match and their sessions, the newest first, ``query.limit`` at most."""
        where = _Where()
        if query.user:
            where.add('"user" = ?', query.user)
        where.within("time", query.since, query.until)
        phrase = self._rare("command_search", query.q)
        if phrase:
            where.add("number IN (SELECT rowid FROM command_search WHERE command_search MATCH ?)", phrase)
        where.contains(f"text {self.LIKE}", query.q)
        if query.before:
            number = int(query.before) if query.before.isdecimal() and len(query.before) < 19 else 0
            where.add("(time, number) < (SELECT time, number FROM commands WHERE number = ?)", number)
        found = [_command(row) for row in self._select("commands", where, ("time", "number"), query.limit)]
        sessions = {session_id: self.session(session_id) for session_id in {command.session_id for command in found}}
        return [(command, info) for command in found for info in (sessions[command.session_id],) if info is not None]

    def _rare(self, table: str, q: str) -> str:
        """The text as a phrase to look up in an index of parts, if few rows have it: else going by time is quicker."""
        if not self._has_search or len(q) < 3:
            return ""
        phrase = '"{}"'.format(str(_short(q)).replace('"', '""'))
        with self.reading() as db:
            query = f"SELECT rowid FROM {table} WHERE {table} MATCH ? LIMIT ?"  # noqa: S608
            return phrase if len(db.execute(query, (phrase, _FEW + 1)).fetchall()) <= _FEW else ""

    def _select(self, table: str, where: _Where, order: tuple[str, str], limit: int) -> list[Mapping[str, Any]]:
        """The last rows of a table in that order, backwards."""
        backwards = ", ".join(f"{name} DESC" for name in order)
        query = f"SELECT * FROM {table} WHERE {where} ORDER BY {backwards} LIMIT ?"  # noqa: S608
        with self.reading() as db:
            return list(db.execute(query, (*where.values, max(1, min(limit, _PAGE_ROWS)))))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Database]:
        """All that the block writes, or nothing of it; one at a time, of all servers."""
        with self.reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    db.execute("ROLLBACK")
                raise
            self._progress = time.monotonic()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Database]:
        """The connection, for one thread at a time."""
        self._wait_turn()
        try:
            if self._connection is None:
                raise LedgerError("the ledger is closed")
            if _identity(self.path) != self._identity:
                raise LedgerError(f"db in [Audit]: {self.path} was replaced by another file")
            yield self._connection
        except (sqlite3.Error, OSError) as exc:
            raise LedgerError(f"db in [Audit]: {self.path}: {exc}") from exc
        finally:
            self._lock.release()

    def _wait_turn(self) -> None:
        """Wait as long as those before get on; not behind those that themselves wait for a locked file."""
        started = time.monotonic()
        while not self._lock.acquire(timeout=_STUCK_SECONDS / 10):
            if time.monotonic() - max(started, self._progress) > _STUCK_SECONDS:
                raise LedgerError(f"db in [Audit]: {self.path} is locked")


def _identity(db: Path) -> object:
    """Which files the ledger and its write-ahead log are. Raises OSError when one is missing."""
    return [(status.st_dev, status.st_ino) for status in (db.stat(), db.with_name(f"{db.name}-wal").stat())]


def _take_over(db: Database) -> None:
    """The sessions of a ledger that had no chain yet become entries of it, as they were found."""
    for row in map(dict, db.execute("SELECT * FROM sessions ORDER BY login_at, session_id").fetchall()):
        head = _append(db, "found", row["session_id"], {name: row[name] for name in _ROW_ENTRIES["found"]})
        ended = row["logout_at"] is not None
        _update(db, row["session_id"], {"words": _words(row), "chain": head if ended else ""})


def _make_search(db: Database) -> bool:
    """Make an index of all parts of texts, if SQLite can: it needs FTS5, and 3.34."""
    try:
        db.execute("CREATE VIRTUAL TABLE session_search USING fts5(words, session_id UNINDEXED, tokenize = trigram)")
    except sqlite3.OperationalError:
        return False
    options = "content = commands, content_rowid = number, tokenize = trigram"
    db.execute(f"CREATE VIRTUAL TABLE command_search USING fts5(text, {options})")
    db.execute("INSERT INTO session_search SELECT words, session_id FROM sessions WHERE logout_at IS NOT NULL")
    db.execute("INSERT INTO command_search (command_search) VALUES ('rebuild')")
    return True


class _Where:
    """The conditions of a query, and the values of their question marks."""

    def __init__(self) -> None:
        self._conditions = ["1 = 1"]
        self.values: list[object] = []

    def __str__(self) -> str:
        return " AND ".join(self._conditions)

    def add(self, condition: str, *values: object) -> None:
        """One more that has to hold."""
        self._conditions.append(condition)
        self.values += map(_storable, values)

    def within(self, name: str, since: float | None, until: float | None) -> None:
        """The column lies between two times; None: no end."""
        if since is not None:
            self.add(f"{name} >= ?", since)
        if until is not None:
            self.add(f"{name} <= ?", until)

    def contains(self, like: str, part: str) -> None:
        """The text that is ``like`` has that part; ``%`` and ``_`` in it stand for themselves."""
        if part:
            escaped = _WILDCARD.sub(r"\\\g<0>", str(_short(part)))
            self.add(f"{like} ? ESCAPE '\\'", f"%{escaped}%")


def _row(found: Rows) -> dict[str, Any]:
    """The first row of what was found; empty if there is none."""
    return dict(found.fetchone() or {})


def _insert(db: Database, table: str, row: Mapping[str, object]) -> None:
    names = ", ".join(f'"{name}"' for name in row)
    query = f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})"  # noqa: S608
    db.execute(query, [_storable(value) for value in row.values()])


def _update(db: Database, session_id: str, row: Mapping[str, object]) -> None:
    names = ", ".join(f'"{name}" = ?' for name in row)
    db.execute(f"UPDATE sessions SET {names} WHERE session_id = ?", [*map(_storable, row.values()), session_id])  # noqa: S608


def _storable(value: object) -> object:
    """Made to fit a column: its integers have 64 bits, its texts are UTF-8. No odd value may cost a row."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "?")
    if isinstance(value, int):
        return max(-_INTEGER_MAX, min(value, _INTEGER_MAX))
    return None if value != value else value  # not a number is what SQLite takes for NULL


def _short(value: object) -> object:
    """A value that others hand in, made to fit."""
    return _storable(value[:_ENTRY_LIMIT_CHARACTERS] if isinstance(value, str) else value)


def _columns(info: SessionInfo, names: Iterable[str]) -> dict[str, Any]:
    """These columns of a session's row."""
    of_auth = ("user", "namespace", "pod_name", "container_name")
    return {name: _storable(getattr(info.auth if name in of_auth else info, name)) for name in names}


def _words(row: Mapping[str, Any]) -> str:
    """What a search looks at, a line a column."""
    return "\n".join(str(row.get(name) or "") for name in _SEARCHED).lower()


def _last_command(db: Database) -> int:
    return _row(db.execute("SELECT max(number) AS last FROM commands"))["last"] or 0


def _command_row(command: Command, session: Mapping[str, Any]) -> dict[str, Any]:
    seconds = float(command.seconds)
    own = {"seconds": seconds, "text": _short(command.text), "exit_code": _storable(command.exit_code)}
    return {**{name: session[name] for name in ("session_id", "user")}, "time": session["login_at"] + seconds, **own}


def _command(row: Mapping[str, Any]) -> Command:
    return Command(row["session_id"], row["seconds"], row["text"], row["exit_code"], row["number"])


def _session_info(row: Mapping[str, Any]) -> SessionInfo:
    """What a row says; what no column holds is there as long as ``info`` is, which the oldest rows never had."""
    kept = _kept(row)
    auth = TokenAuthData(
        **{name: row[name] for name in ("namespace", "pod_name", "container_name", "user")},
        command=tuple(kept.get("command", ())),
        extra=kept.get("extra", {}),
        **{name: kept.get(name, "") for name in ("directory", "message", "context")},
        cluster=kept.get("named", ""),
    )
    names = ("session_id", "filename", "remote_addr", "login_at", "logout_at", "reason", "exit_code")
    more = ("bytes_out", "bytes_in", "size", "hung_up", "cluster", "server", "chain")
    return SessionInfo(auth=auth, sha256=row["sha256"] or "", **{name: row[name] for name in names + more})


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    with contextlib.suppress(ValueError, TypeError, RecursionError):  # damaged: the columns must do
        kept = dict(json.loads(row["info"] or "{}"))
        if isinstance(kept.get("command", []), list) and isinstance(kept.get("extra", {}), dict):
            return kept
    return {}


def _unfinished(row: Mapping[str, Any]) -> Unfinished:
    info = _session_info(row)
    lost, todo = info.logout_at is None, row["todo"]
    tell, hang_up, pack = (lost or bool(todo & bit) for bit in (_TELL, _HANG_UP, _PACK))
    return Unfinished(info, tell, hang_up, with_token=bool(_kept(row).get("with_token", True)), pack=pack)


# -- the chain --------------------------------------------------------------------------------------------------------


def chain_digest(before: str, number: int, time: float, kind: str, session_id: str, text: str) -> str:
    """The digest of an entry: SHA-256, in hex, of a JSON array of the digest before and all that the entry says.

    Without blanks, in ASCII, the values as one text; 64 zeros stand before the first entry.
    """
    return _sha256([before, number, time, kind, session_id, text])


def commands_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """The digest of rows of the table of commands, whole and in order."""
    return _sha256([[row[name] for name in sorted(row)] for row in rows])


def _sha256(value: object) -> str:
    return hashlib.sha256(_compact(value).encode()).hexdigest()


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def _last(db: Database) -> tuple[int, str]:
    """Number and digest of the last entry."""
    last = _row(db.execute("SELECT number, digest FROM entries ORDER BY number DESC LIMIT 1"))
    return last.get("number", 0), last.get("digest", _NO_DIGEST)


def _append(db: Database, kind: str, session_id: str, values: Mapping[str, object]) -> str:
    """Add an entry, in a transaction that keeps all others out; returns the head of the chain."""
    number, before = _last(db)
    row: dict[str, Any] = {"number": number + 1, "time": time.time(), "kind": kind, "session": _storable(session_id)}
    row["json"] = _compact(values)
    row["digest"] = chain_digest(before, *row.values())
    _insert(db, "entries", row)
    return f"{row['number']}:{row['digest']}"


def _entry(row: Mapping[str, Any]) -> Entry:
    values: object = None
    with contextlib.suppress(ValueError, TypeError, RecursionError):  # not as it was written
        values = json.loads(row["json"])
    values = values if isinstance(values, dict) else {}
    return Entry(row["number"], row["time"], row["kind"], row["session"], values, row["digest"], row["json"])


class Proof:
    """Holds the chain, the rows and the recordings of a ledger against each other. One thread.

    The chain proves that nothing in it was changed, removed or put between. That its end was not cut off, and that it
    was not written anew as a whole, only a head proves that was kept elsewhere.
    """

    def __init__(
        self,
        ledger: Ledger,
        examine: Callable[[SessionInfo], tuple[int, str]],
        *,
        head: str = "",
        since: float = 0.0,
        step: Callable[[str, int, int], None] = lambda what, done, of: None,
    ) -> None:
        """``examine`` reads a recording: its size and SHA-256; FileNotFoundError, or OSError if it cannot be read.

        ``head``: what must be in the chain, ``<number>:<digest>`` or the digest alone; ``since``: leaves out recordings
        whose sessions ended before; ``step`` is told how far it has come.
        """
        self.entries = self.sessions = self.recordings = self.retired = 0  # so many were seen
        self._ledger = ledger
        self._examine = examine
        self._head = head
        self._since = since
        self._step = step
        self._began = 0  # sessions, as the chain says

    def findings(self) -> Iterator[str]:
        """Whatever does not fit, a sentence each; nothing if all does. Raises LedgerError."""
        yield from self._check_chain()
        for row, entries in self._ledger.histories():
            self.sessions += 1
            self._step("sessions", self.sessions, self._began)
            yield from _check_row(row, entries)
            yield from self._check_recording(_session_info(row), {entry.kind for entry in entries})
        for session_id in self._ledger.without_row():
            yield f"session {session_id} has entries, but no row"

    def _check_chain(self) -> Iterator[str]:
        total, last_command = int(self._ledger.head().partition(":")[0]), self._ledger.last_command()
        before, head, commands, follows = Entry(0, 0.0, "", "", {}, _NO_DIGEST), not self._head, 0, True
        for entry in self._ledger.entries():
            if follows and not entry.follows(before):
                follows = False
                yield f"entry {entry.number} ({entry.kind}) does not follow the one before it, {before.number}"
            if entry.kind == "commands":
                yield from self._check_commands(entry, commands)
                commands = int(_number(entry.values.get("last")))
            before, head = entry, head or self._head in (entry.head, entry.digest)
            self.entries += 1
            self._began += entry.kind in ("login", "found")
            self._step("entries", self.entries, total)
        if not self.entries:
            yield "the chain is empty"
        if not head:
            yield f"the head {self._head} is not in the chain, which ends with {before.head}"
        if last_command > commands:
            yield f"commands {commands + 1} to {last_command} are in no entry"
        for row in self._ledger.command_rows(-_INTEGER_MAX, 0):
            yield f"command {row['number']} is in no entry"

    def _check_commands(self, entry: Entry, before: int) -> Iterator[str]:
        first, last = before + 1, int(_number(entry.values.get("last")))
        rows = self._ledger.command_rows(first, last)
        if (entry.values.get("first"), entry.values.get("sha256")) != (first, commands_digest(rows)):
            yield f"commands {first} to {last} are not what entry {entry.number} says"

    def _check_recording(self, info: SessionInfo, kinds: set[str]) -> Iterator[str]:
        """Whether a recording is as the ledger says; that of an open session only has to be there."""
        is_open = info.logout_at is None
        if not is_open and _number(info.logout_at) < self._since:
            return
        is_retired, name = "retired" in kinds, f"the recording of session {info.session_id}, {info.filename},"
        self.retired += is_retired
        try:
            size, sha256 = self._examine(info)
        except FileNotFoundError:
            if not is_retired:
                yield f"{name} is missing"
            return
        except OSError as exc:
            yield f"{name} cannot be read: {exc}"
            return
        self.recordings += 1
        if is_retired:
            yield f"{name} was retired, and is still there"
        elif not is_open and info.size not in (None, size):
            yield f"{name} is {'longer' if size > _number(info.size) else 'shorter'}: {size} bytes, not {info.size}"
        elif not is_open and sha256 != info.sha256:
            yield f"{name} was changed" if info.sha256 else f"{name} has no digest in the ledger"


def _check_row(row: Mapping[str, Any], entries: Iterable[Entry]) -> Iterator[str]:
    """Whether a session's row says what its entries say, the later ones in place of the earlier ones."""
    said: dict[str, Any] = {}
    for entry in entries:
        names = entry.values.keys() & set(_ROW_ENTRIES.get(entry.kind, ()))
        said.update({name: entry.values[name] for name in names})
        if entry.kind == "logout" or (entry.kind == "found" and said.get("logout_at") is not None):
            said["chain"] = entry.head
    if not said:
        yield f"session {row['session_id']} has a row, but no entry"
        return
    for name, value in {**_NOT_ENDED, "words": _words(said), **said}.items():
        if row[name] != value:
            place = f"{name} of session {row['session_id']}"
            yield f"{place} is {row[name]!r:.100} in its row, and {value!r:.100} in its entries"


def _number(value: object) -> float:
    """A number that may have been tampered with; 0 for what is none."""
    return value if isinstance(value, (int, float)) and abs(value) <= _INTEGER_MAX else 0


# -- the keeper -------------------------------------------------------------------------------------------------------

_DAY_SECONDS = 24 * 3600.0  # for so long the platform is told again, and a hang-up tried again
_LONGEST_PAUSE_SECONDS = 300.0  # between two tries
_CALLS_AT_ONCE = 32
_CALLS_A_PEER = 8  # of these, to one platform or cluster: one that is slow does not hold up the others
_PACKED_AT_ONCE = 1  # each keeps a core busy
_TICK_SECONDS = 1.0
_COMMANDS_AT_ONCE = 1000  # written in one transaction
_COMMANDS_WAITING = 100_000  # for a ledger that cannot be written
_LOOK_SECONDS = 2.0  # between two looks at ledger and record folder
_HEAD_SECONDS = 60.0  # between two heads of the chain in the log
_ADOPT_SECONDS = 20.0  # between two looks for servers that have died
_NO_KUBECONFIG = "its kubeconfig came with its token, and is gone"


class Chores(Protocol):
    """What the keeper lets others do, on threads of its own; none of it takes long without a limit of its own."""

    def check(self) -> str:
        """Why no recording can begin now; "" when it can."""

    def examine(self, info: SessionInfo) -> SessionInfo:
        """Mend the recording of a session that was lost; returns the session with what that says of its end."""

    def commands(self, info: SessionInfo) -> list[Command]:
        """What the recording of a session that was lost says of its commands."""

    def hang_up(self, info: SessionInfo) -> tuple[int | None, bool]:
        """End what a session of a dead server left in its pod: how many processes, and whether to try again."""

    def packs(self) -> bool:
        """Whether finished recordings are to be packed."""

    def pack(self, info: SessionInfo, stopped: Callable[[], bool]) -> bool:
        """Pack the recording of a session that has ended; whether it is done. May take minutes, until ``stopped``."""

    def timed(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Measure how long the block takes, a hook's call or "ledger"."""

    def hung_up(self, count: int | None, again: bool) -> None:
        """A hang-up was tried, with that result."""


HangUp = Callable[[], "tuple[int | None, bool]"]


@dataclass
class _Call:
    """Something that may be slow or fail: run on a thread of its own until it is done, or too old."""

    name: str
    run: Callable[[], bool]  # whether it is done, or of no use to try again
    peer: str
    at_once: int = field(default_factory=lambda: _CALLS_A_PEER)
    may_wait: bool = False  # for the next server, when this one ends
    tries: int = 0
    due: float = 0.0  # monotonic
    running: bool = False


class _Job:
    """All that is left to do about one session. The keeper's lock guards it."""

    def __init__(self, session: Unfinished) -> None:
        self.session = session
        self.unwritten = False
        self.calls: list[_Call] = []  # one at a time; one that has to be tried again lets the next one go first

    def next_call(self, now: float, again: bool) -> _Call | None:
        """The call to start now, if there is one: the platform is told of what the ledger has, and of nothing else.

        ``again``: whether it may be one that has been tried, or may wait.
        """
        if any(call.running for call in self.calls):
            return None
        for call in self.calls:
            if call.name in ("on_logout", "pack") and self.unwritten:
                return None
            if call.due <= now and (again or not (call.tries or call.may_wait)):
                return call
        return None


class Keeper:
    """Does what no session's thread may wait for: logouts in ledger and platform, hang-ups, sessions of dead servers.

    One thread, ``keeper``, writes the ledger and looks after ledger and record folder; what depends on others runs on
    threads ``keeper-call``, a few at a time. What fails is tried again, with pauses from two seconds to five minutes,
    for a day. What a clean end leaves undone stands in the ledger, and the next server, or another, goes on with it.
    """

    def __init__(self, hooks: Hooks, chores: Chores) -> None:
        self.trouble = ""  # why no session may begin; any thread reads it
        self.beat = time.monotonic()  # when the thread last went round; any thread reads it
        self._hooks = hooks
        self._chores = chores
        self._changed = threading.Condition()  # guards all below
        self._jobs: list[_Job] = []
        self._commands: list[Command] = []  # not in the ledger yet
        self._woken = False
        self._deadline: float | None = None  # monotonic; set when it is to finish
        self._closed = False  # nothing is written any more
        self._head = ""  # of the chain, as the log has it; the keeper's thread only
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Look once at ledger and record folder, then go on with that on a thread."""
        self._look()
        self._thread.start()

    def ended(self, info: SessionInfo, hang_up: HangUp | None) -> None:
        """Take a session that has ended over; ``hang_up`` where it may have left something. Any thread; no blocking."""
        job = _Job(Unfinished(info, hang_up=hang_up is not None, pack=True))
        job.unwritten = True
        with self._changed:
            self._add_calls(job, hang_up)
            self._jobs.append(job)
            self._wake()
            late = self._closed
        if late:
            _log_unwritten(info)

    def add_commands(self, commands: Sequence[Command]) -> None:
        """Take commands over for the ledger, which gets them in a second or so. Any thread; no blocking.

        Where too many wait for it, or it is too late, they are in the recordings only.
        """
        with self._changed:
            room = 0 if self._closed else _COMMANDS_WAITING - len(self._commands)
            self._commands += commands[:room]
        if len(commands) > room:
            log_event("error", session=commands[-1].session_id, error="commands are not in the ledger")

    def finish(self, deadline: float) -> None:
        """Write what is unwritten, try what was not tried yet, and end, by the monotonic ``deadline`` at the latest.

        A logout that could not be written by then goes into the log, whole.
        """
        with self._changed:
            self._deadline = deadline - _TICK_SECONDS  # a write that has begun may take as long
            self._wake()
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._closed = True
            unwritten = [job.session.info for job in self._jobs if job.unwritten]
            commands = len(self._commands)
        if commands:
            log_event("error", error=f"{commands} commands are not in the ledger")
        for info in unwritten:
            _log_unwritten(info)

    def __len__(self) -> int:
        """How many sessions have something left to do about them."""
        with self._changed:
            return len(self._jobs)

    def _wake(self) -> None:
        self._woken = True
        self._changed.notify_all()

    # The keeper's thread.

    def _run(self) -> None:
        look_at = adopt_at = 0.0
        head_at = time.monotonic() + _HEAD_SECONDS
        while not self._finished():
            self.beat = now = time.monotonic()
            if now >= look_at and self._deadline is None:
                self._try(self._look)
                look_at = now + _LOOK_SECONDS
            if now >= adopt_at and self._deadline is None:
                self._try(self._adopt)
                adopt_at = now + _ADOPT_SECONDS
            self._try(self._write_commands)
            self._try(self._write)
            if now >= head_at:
                self._try(self._log_head)
                head_at = now + _HEAD_SECONDS
            with self._changed:
                self._start_calls()
                self._changed.wait_for(lambda: self._woken, _TICK_SECONDS if self._deadline is None else 0.1)
                self._woken = False
        self._try(self._log_head)

    def _try(self, step: Callable[[], None]) -> None:
        """Do it. What nobody foresaw goes to the log: without this thread, all logouts would be lost."""
        try:
            step()
        except Exception:
            log_fault(traceback.format_exc())

    def _finished(self) -> bool:
        """Whether it is to end, and all is written and tried once, or its time is over."""
        with self._changed:
            if self._deadline is None:
                return False
            calls = [call for job in self._jobs for call in job.calls]
            waits = any(call.running or not (call.tries or call.may_wait) for call in calls)
            busy = waits or bool(self._commands) or any(job.unwritten for job in self._jobs)
            return not busy or time.monotonic() > self._deadline

    def _look(self) -> None:
        """Find out whether sessions may begin."""
        try:
            trouble = self._chores.check()
            if not trouble:
                self._hooks.ledger.check()
        except LedgerError as exc:
            trouble = str(exc)
        if trouble != self.trouble:
            self.trouble = trouble
            log_event("trouble", error=trouble) if trouble else log_event("ready")

    def _log_head(self) -> None:
        """A copy of the chain's head where who can change the ledger cannot reach."""
        try:
            head = self._hooks.ledger.head()
        except LedgerError as exc:
            if not self.trouble:
                log_event("error", error=exc)
            return
        if head != self._head:
            self._head = head
            log_event("chain", head=head)

    def _adopt(self) -> None:
        try:
            found = self._hooks.ledger.adopt()
        except LedgerError as exc:
            log_event("error", error=exc)
            return
        for session in found:
            job = _Job(session)
            with self._changed:
                if session.info.logout_at is None:
                    log_event("lost", session=session.info.session_id, file=session.info.filename)
                    job.calls.append(_Call("examine", functools.partial(self._examine, job), "disk"))
                else:
                    self._add_calls(job, self._hang_up_later(session))
                    job.unwritten = job.session != session
                self._jobs.append(job)

    def _hang_up_later(self, session: Unfinished) -> HangUp | None:
        if session.hang_up and session.with_token:
            log_event("hang_up", session=session.info.session_id, hung_up=None, error=_NO_KUBECONFIG)
            return None
        return functools.partial(self._chores.hang_up, session.info) if session.hang_up else None

    def _add_calls(self, job: _Job, hang_up: HangUp | None) -> None:
        if hang_up is not None:
            peer = f"cluster {job.session.info.cluster}"
            job.calls.append(_Call("hang_up", functools.partial(self._hang_up, job, hang_up), peer))
        pack = job.session.pack and self._chores.packs()
        job.session = replace(job.session, hang_up=hang_up is not None, pack=pack)
        if job.session.tell:
            job.calls.append(_Call("on_logout", functools.partial(self._tell, job), "platform"))
        if pack:
            packing = functools.partial(self._chores.pack, job.session.info, self._is_finishing)
            job.calls.append(_Call("pack", packing, "disk", _PACKED_AT_ONCE, may_wait=True))

    def _write_commands(self) -> None:
        """Give the ledger commands, before the logouts of their sessions: a transaction's worth each time."""
        with self._changed:
            commands = self._commands[:_COMMANDS_AT_ONCE]
        try:
            if commands:
                with self._chores.timed("ledger"):
                    self._hooks.ledger.add_commands(commands)
        except LedgerError as exc:
            if not self.trouble:
                log_event("error", error=exc)
            return
        with self._changed:
            del self._commands[: len(commands)]

    def _write(self) -> None:
        """Bring the ledger up to date, in one transaction; forget the sessions about which nothing is left to do."""
        with self._changed:
            jobs = [job for job in self._jobs if job.unwritten]
            sessions = [job.session for job in jobs]
        try:
            chains = []
            if sessions:
                with self._chores.timed("ledger"):
                    chains = self._hooks.ledger.save(sessions)
        except LedgerError as exc:
            if not self.trouble:
                log_event("error", error=exc)
            return
        with self._changed:
            for job, session, chain in zip(jobs, sessions, chains):
                job.unwritten = job.session is not session
                job.session = replace(job.session, info=replace(job.session.info, chain=chain))
            self._jobs = [job for job in self._jobs if job.unwritten or job.calls]

    def _start_calls(self) -> None:
        """Start what is due, as much as may run; first what was tried least: what fails keeps nothing new waiting."""
        now, again = time.monotonic(), self._deadline is None
        running = collections.Counter(call.peer for job in self._jobs for call in job.calls if call.running)
        due = [(job, call) for job in self._jobs for call in (job.next_call(now, again),) if call is not None]
        for job, call in sorted(due, key=lambda pair: pair[1].tries):
            if sum(running.values()) >= _CALLS_AT_ONCE:
                return
            if running[call.peer] >= call.at_once:
                continue
            thread = threading.Thread(target=self._run_call, args=(job, call), name="keeper-call", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread can be had now
                return
            call.running = True
            running[call.peer] += 1

    def _is_finishing(self) -> bool:
        return self._deadline is not None

    # The threads of calls.

    def _run_call(self, job: _Job, call: _Call) -> None:
        try:
            done = call.run()
        except Exception:
            log_fault(traceback.format_exc(), session=job.session.info.session_id)
            done = False
        with self._changed:
            call.running = False
            call.tries += 1
            call.due = time.monotonic() + min(2.0 ** min(call.tries, 10), _LONGEST_PAUSE_SECONDS)
            if done or time.time() - (job.session.info.logout_at or time.time()) > _DAY_SECONDS:
                job.calls.remove(call)
            names = {left.name for left in job.calls}
            session = replace(job.session, tell="on_logout" in names, hang_up="hang_up" in names, pack="pack" in names)
            if session != job.session:
                job.session, job.unwritten = session, True
            self._wake()

    def _examine(self, job: _Job) -> bool:
        info = replace(self._chores.examine(job.session.info), reason="lost")
        self.add_commands(self._chores.commands(info))
        with self._changed:
            job.session = replace(job.session, info=info)
            job.unwritten = True
            self._add_calls(job, self._hang_up_later(job.session))
        return True

    def _hang_up(self, job: _Job, hang_up: HangUp) -> bool:
        count, again = hang_up()
        self._chores.hung_up(count, again)
        session_id = job.session.info.session_id
        log_event("hang_up", session=session_id, hung_up=count, **({"again": True} if again else {}))
        with self._changed:
            job.session = replace(job.session, info=replace(job.session.info, hung_up=count))
            job.unwritten = True
        return not again

    def _tell(self, job: _Job) -> bool:
        try:
            with self._chores.timed("on_logout"):
                self._hooks.on_logout(job.session.info)
            return True
        except (Denied, HookError) as exc:  # nobody is left to be refused: the platform did not take the news
            log_event("error", session=job.session.info.session_id, hook="on_logout", error=exc)
            return False


def _log_unwritten(info: SessionInfo) -> None:
    """The last place for a logout that the ledger did not take."""
    row = {key: value for key, value in info.as_json().items() if key not in ("extra", "command", "message")}
    log_event("error", error="this logout is not in the ledger", row=row)


# -- entries for which nobody waits -----------------------------------------------------------------------------------

_NOTES_LIMIT = 10_000  # entries that wait for the ledger
_NOTE_LIMIT_CHARACTERS = 1000  # of a text in one
_REFUSALS_A_MINUTE = 20  # which have an entry of their own
_REFUSED_LIMIT = 20  # addresses that the entry of all others names


@dataclass(frozen=True)
class _Note:
    """An entry to come."""

    kind: str
    session_id: str
    values: Mapping[str, object]

    def as_json(self) -> dict[str, object]:
        return {"kind": self.kind, "session_id": self.session_id, **self.values}


class Notes:
    """Entries of the chain for which no session waits, and no stranger: written in order, when the ledger takes them.

    Refused tokens cannot fill the ledger: of a minute's, the first twenty have an entry each, and all others one that
    counts them by address. Nor the memory: what finds no place while the ledger is locked is counted in an entry, too.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._writing = threading.Lock()  # one thread at a time, so that they stay in order
        self._lock = threading.Lock()  # guards all below
        self._waiting: collections.deque[_Note] = collections.deque()
        self._without_place = 0
        self._refusals = 0  # of this minute
        self._others: collections.Counter[str] = collections.Counter()  # of these without an entry of their own: whose
        self._minute_ends = 0.0  # monotonic

    def add(self, kind: str, session_id: str = "", **values: object) -> None:
        """Remember that this happened now. Any thread; does not block."""
        with self._lock:
            self._add(kind, session_id, values)

    def refused(self, remote: str, **values: object) -> None:
        """Remember that a token was refused. Any thread; does not block."""
        with self._lock:
            self._count_minutes(time.monotonic())
            self._refusals += 1
            if self._refusals <= _REFUSALS_A_MINUTE:
                self._add("refused", "", {**values, "remote": remote})
            else:
                self._others[remote if remote in self._others or len(self._others) < _REFUSED_LIMIT else "others"] += 1

    def write(self, deadline: float) -> None:
        """Write what waits, until the monotonic deadline. Raises LedgerError; what was not taken goes on waiting."""
        with self._writing:
            while time.monotonic() < deadline:
                with self._lock:
                    self._count_minutes(time.monotonic())
                    if not self._waiting:
                        return
                    note = self._waiting[0]
                self._ledger.append(note.kind, note.session_id, **note.values)
                with self._lock:
                    self._waiting.popleft()

    def finish(self, deadline: float) -> None:
        """Write all of it by the monotonic deadline; what the ledger does not take by then goes to the log."""
        with self._lock:
            self._count_minutes(math.inf)
        try:
            self.write(deadline)
        except LedgerError as exc:
            log_event("error", error=exc)
        with self._lock:
            for note in self._waiting:
                log_event("error", error="this entry is not in the ledger", entry=note.as_json())
            self._waiting.clear()

    def _add(self, kind: str, session_id: str, values: Mapping[str, object]) -> None:
        """Needs the lock."""
        if len(self._waiting) >= _NOTES_LIMIT:
            self._without_place += 1
            return
        short = {
            key: value[:_NOTE_LIMIT_CHARACTERS] if isinstance(value, str) else value for key, value in values.items()
        }
        self._waiting.append(_Note(kind, session_id, {**short, "at": time.time()}))

    def _count_minutes(self, now: float) -> None:
        """Sum up what a minute that is over had too much of, and what found no place. Needs the lock."""
        if self._without_place and len(self._waiting) < _NOTES_LIMIT:
            count, self._without_place = self._without_place, 0
            self._add("not_written", "", {"count": count})
        if now < self._minute_ends:
            return
        if self._others:
            self._add("refused", "", {"count": sum(self._others.values()), "by_address": dict(self._others)})
        self._others.clear()
        self._refusals = 0
        self._minute_ends = now + 60
