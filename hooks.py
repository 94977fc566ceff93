"""Who may, and what is remembered? Tokens, the ledger of sessions, and the calls to the release platform.

This is the file that operators extend: name a file of your own under ``[Hooks] file``, subclass ``Hooks`` in it
and override what you need. Knows nothing of browsers, pods or HTTP serving.

Hooks run on the threads of the sessions, ``on_logout`` on those of the keeper, several at a time. A hook refuses a user
by raising ``Denied`` with a sentence that the user may read, and says with ``HookError`` that it could not do its work;
any other exception is logged with its traceback and refuses the user politely.

Where is what: ``Hooks`` and its data; what a token says; calls to the platform; the log; ``Ledger``; ``Keeper``;
``Notes``.
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
import json
import logging
import math
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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Protocol

__all__ = [
    "Denied",
    "HookError",
    "Hooks",
    "HooksSettings",
    "Keeper",
    "Ledger",
    "LedgerError",
    "Notes",
    "SessionInfo",
    "TokenAuthData",
    "load_hooks",
    "log_event",
]

PLATFORM_TIMEOUT_SECONDS = 5.0
_ANSWER_LIMIT_BYTES = 2 << 20
_CLOCK_SKEW_SECONDS = 30
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
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
    authorization: str = field(default="", repr=False)  # the Authorization header of calls to the platform
    clusters: Mapping[str, Path] = field(default_factory=dict)


class Hooks:
    """The hooks that ship. ``[Token]`` and ``[Platform]`` choose what they do; without either, all are denied."""

    def __init__(self, settings: HooksSettings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.db)  # written by the server itself, whatever the hooks below do

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
        sessions and "search" in commands; of more than one session ``filename`` is "".

        Here: a link signed with ``[Token] secret`` whose claim ``scope`` has a word for the action; a claim
        ``filename`` limits it to that recording.
        """
        if not self.settings.secret:
            raise Denied("recordings are not open here; the server's operator must set [Token] secret")
        claims = verify_token(token, self.settings.secret)
        user = str(claims.get("sub", ""))
        scopes = _SCOPES.get(action, ())
        if not set(scopes).intersection(str(claims.get("scope", "")).split()):
            raise Denied(f"this link does not allow to {action}; it needs the scope {' or '.join(scopes)}", user)
        if claims.get("filename", filename) != filename:
            raise Denied("this link is for another recording", user)
        return user

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

    def _post(self, url: str, body: Mapping[str, Any]) -> Any:
        """POST JSON to the platform. Blocks for 5 s at most. Raises Denied for 401, 403 and 404, else HookError."""
        return post_json(url, body, self.settings.authorization)


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
    extra = {key: value for key, value in values.items() if key not in (*_TEXT_LIMITS, *_SECONDS, "command")}
    return TokenAuthData(**texts, **seconds, command=tuple(command), cluster=cluster, cluster_file=file, extra=extra)


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


def post_json(url: str, body: Mapping[str, Any], authorization: str) -> Any:
    """POST a JSON object and return the JSON answer (None for an empty one). Blocks for 5 s, and as much to connect.

    Redirects are not followed: they would carry the user's token to another host. Raises Denied for 401, 403 and 404,
    with the answer's ``message``; HookError for everything else.
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
    return _understood(response.status, answer)


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


def _understood(status: int, answer: bytes) -> Any:
    """What the platform's answer says, as JSON."""
    if status in (401, 403, 404):
        raise Denied(_denial(answer))
    if not 200 <= status < 300:
        raise HookError(f"the platform answered with HTTP status {status}")
    if len(answer) > _ANSWER_LIMIT_BYTES:
        raise HookError("the platform's answer is too long")
    try:
        return json.loads(answer) if answer.strip() else None
    except (ValueError, RecursionError):
        raise HookError("the platform's answer is not JSON") from None


def _denial(answer: bytes) -> str:
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(answer)
        message = values.get("message") if isinstance(values, dict) else None
        if message and isinstance(message, str):
            return str(message)[: _TEXT_LIMITS["message"]]
    return "the platform does not accept this token; open the terminal again from the platform"


# -- the log ----------------------------------------------------------------------------------------------------------

log = logging.getLogger("jumpserver")
_PLAIN_VALUE = re.compile(r"[!#-<>-\[\]-~]+")
_VALUE_LIMIT_CHARACTERS = 4096  # as long as a path may be; strangers' words come here, too
_LEVELS = {"error": logging.ERROR, "trouble": logging.ERROR, "warning": logging.WARNING}  # all else is INFO


def log_event(event: str, **fields: object) -> None:
    """One line an event: its name and ``key=value`` pairs; what has blanks or control characters is quoted."""
    pairs = (f"{key}={_log_value(value)}" for key, value in fields.items())
    log.log(_LEVELS.get(event, logging.INFO), "%s", " ".join((event, *pairs)))


def _log_value(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)[:_VALUE_LIMIT_CHARACTERS]
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text)


# -- the ledger -------------------------------------------------------------------------------------------------------

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    session_id TEXT PRIMARY KEY, filename TEXT NOT NULL, user TEXT NOT NULL, namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL, container_name TEXT NOT NULL, remote_addr TEXT NOT NULL, login_at REAL NOT NULL,
    logout_at REAL, reason TEXT NOT NULL DEFAULT '', exit_code INTEGER, bytes_out INTEGER, bytes_in INTEGER,
    sha256 TEXT, hung_up INTEGER);
CREATE TABLE IF NOT EXISTS used_tokens (jti TEXT PRIMARY KEY, expires_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS expiring_tokens ON used_tokens (expires_at);
"""
# Later than the first version: what a ledger may lack.
_NEWER_COLUMNS = {
    "server": "TEXT NOT NULL DEFAULT ''",
    "cluster": "TEXT NOT NULL DEFAULT ''",
    "size": "INTEGER",
    "todo": "INTEGER NOT NULL DEFAULT 0",  # of an ended session: _TELL, _HANG_UP
    "info": "TEXT",  # what on_logout is told and no column holds, until nothing is left to do
}
_TELL, _HANG_UP = 1, 2
_UNFINISHED = "(logout_at IS NULL OR todo > 0)"
_UNFINISHED_SERVERS = f"SELECT DISTINCT server FROM sessions WHERE {_UNFINISHED}"  # noqa: S608
_INDEX = f"CREATE INDEX IF NOT EXISTS unfinished ON sessions (server) WHERE {_UNFINISHED}"
_LOCKED_SECONDS = 0.5  # for a file that another process has locked
_STUCK_SECONDS = 1.0  # without any progress of those whose turn it is
_ALONE_SECONDS = 5.0
_ROOM_BYTES = 16 << 20  # free space below which no session begins
_SPENT_SECONDS = 24 * 3600.0  # how far the clock may go back without making a spent token good again
_INTEGER_MAX = (1 << 63) - 1


@dataclass(frozen=True)
class Unfinished:
    """A session about which something is left to do; one without ``logout_at`` was lost with its server."""

    info: SessionInfo
    tell: bool = True  # on_logout has not returned yet
    hang_up: bool = True  # it may have left something in its pod
    with_token: bool = False  # its kubeconfig came with its token, and so is gone


class Ledger:
    """The sessions of one or several servers on this host in SQLite: a row at login, completed at logout. Any thread.

    Also remembers which one-use tokens are spent. Every method takes about a second at most, and raises LedgerError
    when another process keeps the file locked, when it cannot be written, or when it is not the one that was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = uuid.uuid4().hex  # names this server among those that share the file
        self._alive: int | None = None  # the descriptor of a file beside the ledger, locked while this server lives
        self._lock = threading.Lock()  # guards the connection
        self._connection: sqlite3.Connection | None = None
        self._identity: object = None  # of the files that are open
        self._progress = 0.0  # the monotonic time at which the last transaction was done

    def open(self) -> None:
        """Open or make the file, and say that this server lives."""
        try:
            with self._alone():
                self._connect()
                self._say_alive()
        except (OSError, sqlite3.Error) as exc:
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
        self._connection.executescript("PRAGMA journal_mode=WAL;" + _SCHEMA)
        there = {row[1] for row in self._connection.execute("PRAGMA table_info(sessions)")}
        for name, kind in _NEWER_COLUMNS.items():
            if name not in there:
                self._connection.execute(f"ALTER TABLE sessions ADD COLUMN {name} {kind}")
        self._connection.execute(_INDEX)
        self._identity = _identity(self.path)  # the write-ahead log is there by now, and stays while it is open

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
        with self._transaction():
            self._need_room()

    def _need_room(self) -> None:
        space = os.statvfs(self.path)
        if space.f_bavail * space.f_frsize < _ROOM_BYTES:
            raise LedgerError(f"db in [Audit]: {self.path} has less than {_ROOM_BYTES >> 20} MiB left")

    def login(self, info: SessionInfo) -> None:
        """Write the row of a session that begins."""
        auth = info.auth
        with_token = bool(auth.cluster_cfg) and auth.cluster_file is None
        row = {name: getattr(auth, name) for name in ("user", "namespace", "pod_name", "container_name")}
        row.update(
            {name: getattr(info, name) for name in ("session_id", "filename", "remote_addr", "login_at", "cluster")}
        )
        row["server"] = self.server
        row["info"] = json.dumps({**info.as_json(), "named": auth.cluster, "with_token": with_token}, default=str)
        with self._transaction() as db:
            self._need_room()
            db.execute(
                f"INSERT INTO sessions ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",  # noqa: S608
                [_storable(value) for value in row.values()],
            )

    def is_open(self, session_id: str) -> bool:
        """Whether the session has begun and not ended, on whatever server."""
        with self._reading() as db:
            query = "SELECT 1 FROM sessions WHERE session_id = ? AND logout_at IS NULL"
            return db.execute(query, (_storable(session_id),)).fetchone() is not None

    def save(self, sessions: Iterable[Unfinished]) -> None:
        """Write what is known of sessions that have ended, and what is still to be done about them: all or none."""
        with self._transaction() as db:
            for session in sessions:
                info, todo = session.info, _TELL * session.tell | _HANG_UP * session.hang_up
                names = ("logout_at", "reason", "exit_code", "bytes_out", "bytes_in", "size", "sha256", "hung_up")
                row = {name: getattr(info, name) for name in names}
                row.update(container_name=info.auth.container_name, todo=todo)
                db.execute(
                    f"UPDATE sessions SET {', '.join(f'{name} = ?' for name in row)},"  # noqa: S608
                    " info = CASE WHEN ? THEN info END WHERE session_id = ?",
                    [*(_storable(value) for value in row.values()), todo, info.session_id],
                )

    def adopt(self) -> list[Unfinished]:
        """Take over what servers that have died left unfinished: from now on it is this server's."""
        try:
            with self._alone():
                if not self._life_file(self.server).exists():  # somebody has removed it
                    self._say_alive()
                with self._reading() as db:
                    servers = {row[0] for row in db.execute(_UNFINISHED_SERVERS)}
                dead = servers.difference(self._living(), [self.server])
                return self._adopt_of(dead) if dead else []
        except OSError as exc:
            raise LedgerError(f"db in [Audit]: {self.path}: {exc}") from exc

    def _adopt_of(self, servers: Iterable[str]) -> list[Unfinished]:
        """All or nothing: what stands in the ledger as this server's, nobody takes over as long as it lives."""
        rows: list[sqlite3.Row] = []
        with self._transaction() as db:
            for server in servers:
                rows += db.execute(f"SELECT * FROM sessions WHERE {_UNFINISHED} AND server = ?", (server,))  # noqa: S608
                db.execute(f"UPDATE sessions SET server = ? WHERE {_UNFINISHED} AND server = ?", (self.server, server))  # noqa: S608
            return [_unfinished(row) for row in rows]

    def use_token(self, jti: str, expires_at: float) -> None:
        """Spend a one-use token (RFC 7519, section 4.1.7). Raises Denied the second time."""
        with self._transaction() as db:
            db.execute("DELETE FROM used_tokens WHERE expires_at < ?", (time.time() - _SPENT_SECONDS,))
            try:
                db.execute("INSERT INTO used_tokens VALUES (?, ?)", (_storable(jti), expires_at))
            except sqlite3.IntegrityError:
                raise Denied("this link was already used; open the terminal again from the platform") from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that the block writes, or nothing of it."""
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:  # not after a commit; SQLite may have rolled back by itself
                    db.execute("ROLLBACK")
            self._progress = time.monotonic()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
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


def _storable(value: object) -> object:
    """Made to fit a column: SQLite's integers have 64 bits, its texts are UTF-8. No odd value may cost a row."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return max(-_INTEGER_MAX, min(value, _INTEGER_MAX))
    return value


def _unfinished(row: sqlite3.Row) -> Unfinished:
    """What a row says; the rows of older versions have no ``info``."""
    kept: dict[str, Any] = {}
    with contextlib.suppress(ValueError, TypeError, RecursionError):  # damaged: the columns must do
        kept = dict(json.loads(row["info"] or "{}"))
    auth = TokenAuthData(
        **{name: row[name] for name in ("namespace", "pod_name", "container_name", "user")},
        command=tuple(kept.get("command", ())),
        extra=kept.get("extra", {}),
        **{name: kept.get(name, "") for name in ("directory", "message", "context")},
        cluster=kept.get("named", ""),
    )
    names = ("session_id", "filename", "remote_addr", "login_at", "logout_at", "reason", "exit_code")
    more = ("bytes_out", "bytes_in", "size", "hung_up", "cluster")
    info = SessionInfo(auth=auth, sha256=row["sha256"] or "", **{name: row[name] for name in names + more})
    lost, todo = info.logout_at is None, row["todo"]
    with_token = bool(kept.get("with_token", True))
    return Unfinished(
        info, tell=lost or bool(todo & _TELL), hang_up=lost or bool(todo & _HANG_UP), with_token=with_token
    )


# -- the keeper -------------------------------------------------------------------------------------------------------

_DAY_SECONDS = 24 * 3600.0  # for so long the platform is told again, and a hang-up tried again
_LONGEST_PAUSE_SECONDS = 300.0  # between two tries
_CALLS_AT_ONCE = 32
_CALLS_A_PEER = 8  # of these, to one platform or cluster: one that is slow does not hold up the others
_TICK_SECONDS = 1.0
_LOOK_SECONDS = 2.0  # between two looks at ledger and record folder
_ADOPT_SECONDS = 20.0  # between two looks for servers that have died
_NO_KUBECONFIG = "its kubeconfig came with its token, and is gone"


class Chores(Protocol):
    """What the keeper lets others do, on threads of its own; none of it takes long without a limit of its own."""

    def check(self) -> str:
        """Why no recording can begin now; "" when it can."""

    def examine(self, info: SessionInfo) -> SessionInfo:
        """Mend the recording of a session that was lost; returns the session with what that says of its end."""

    def hang_up(self, info: SessionInfo) -> tuple[int | None, bool]:
        """End what a session of a dead server left in its pod: how many processes, and whether to try again."""

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

        ``again``: whether it may be one that has been tried.
        """
        if any(call.running for call in self.calls):
            return None
        for call in self.calls:
            if call.name == "on_logout" and self.unwritten:
                return None
            if call.due <= now and (again or not call.tries):
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
        self._woken = False
        self._deadline: float | None = None  # monotonic; set when it is to finish
        self._closed = False  # nothing is written any more
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Look once at ledger and record folder, then go on with that on a thread."""
        self._look()
        self._thread.start()

    def ended(self, info: SessionInfo, hang_up: HangUp | None) -> None:
        """Take a session that has ended over; ``hang_up`` where it may have left something. Any thread; no blocking."""
        job = _Job(Unfinished(info, hang_up=hang_up is not None))
        job.unwritten = True
        with self._changed:
            self._add_calls(job, hang_up)
            self._jobs.append(job)
            self._wake()
            late = self._closed
        if late:
            _log_unwritten(info)

    def finish(self, deadline: float) -> None:
        """Write all logouts, try what was not tried yet, and end, by the monotonic time ``deadline`` at the latest.

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
        while not self._finished():
            self.beat = now = time.monotonic()
            if now >= look_at and self._deadline is None:
                self._try(self._look)
                look_at = now + _LOOK_SECONDS
            if now >= adopt_at and self._deadline is None:
                self._try(self._adopt)
                adopt_at = now + _ADOPT_SECONDS
            self._try(self._write)
            with self._changed:
                self._start_calls()
                self._changed.wait_for(lambda: self._woken, _TICK_SECONDS if self._deadline is None else 0.1)
                self._woken = False

    def _try(self, step: Callable[[], None]) -> None:
        """Do it. What nobody foresaw goes to the log: without this thread, all logouts would be lost."""
        try:
            step()
        except Exception:
            log.error("error\n%s", traceback.format_exc())

    def _finished(self) -> bool:
        """Whether it is to end, and all is written and tried once, or its time is over."""
        with self._changed:
            if self._deadline is None:
                return False
            calls = [call for job in self._jobs for call in job.calls]
            busy = any(job.unwritten for job in self._jobs) or any(call.running or not call.tries for call in calls)
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
        job.session = replace(job.session, hang_up=hang_up is not None)
        if job.session.tell:
            job.calls.append(_Call("on_logout", functools.partial(self._tell, job), "platform"))

    def _write(self) -> None:
        """Bring the ledger up to date, in one transaction; forget the sessions about which nothing is left to do."""
        with self._changed:
            jobs = [job for job in self._jobs if job.unwritten]
            sessions = [job.session for job in jobs]
        try:
            if sessions:
                with self._chores.timed("ledger"):
                    self._hooks.ledger.save(sessions)
        except LedgerError as exc:
            if not self.trouble:
                log_event("error", error=exc)
            return
        with self._changed:
            for job, session in zip(jobs, sessions):
                job.unwritten = job.session is not session
            self._jobs = [job for job in self._jobs if job.unwritten or job.calls]

    def _start_calls(self) -> None:
        """Start what is due, as much as may run; first what was tried least: what fails keeps nothing new waiting."""
        now, again = time.monotonic(), self._deadline is None
        running = collections.Counter(call.peer for job in self._jobs for call in job.calls if call.running)
        due = [(job, call) for job in self._jobs for call in (job.next_call(now, again),) if call is not None]
        for job, call in sorted(due, key=lambda pair: pair[1].tries):
            if sum(running.values()) >= _CALLS_AT_ONCE:
                return
            if running[call.peer] >= _CALLS_A_PEER:
                continue
            thread = threading.Thread(target=self._run_call, args=(job, call), name="keeper-call", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread can be had now
                return
            call.running = True
            running[call.peer] += 1

    # The threads of calls.

    def _run_call(self, job: _Job, call: _Call) -> None:
        try:
            done = call.run()
        except Exception:
            log.error("error session=%s\n%s", job.session.info.session_id, traceback.format_exc())
            done = False
        with self._changed:
            call.running = False
            call.tries += 1
            call.due = time.monotonic() + min(2.0 ** min(call.tries, 10), _LONGEST_PAUSE_SECONDS)
            if done or time.time() - (job.session.info.logout_at or time.time()) > _DAY_SECONDS:
                job.calls.remove(call)
            names = {left.name for left in job.calls}
            session = replace(job.session, tell="on_logout" in names, hang_up="hang_up" in names)
            if session != job.session:
                job.session, job.unwritten = session, True
            self._wake()

    def _examine(self, job: _Job) -> bool:
        info = replace(self._chores.examine(job.session.info), reason="lost")
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
    log.error("error error=%s row=%s", json.dumps("this logout is not in the ledger"), json.dumps(row))


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

    def __str__(self) -> str:
        return json.dumps({"kind": self.kind, "session_id": self.session_id, **self.values})


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

    def write(self, deadline: float = math.inf) -> None:
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
                log.error("error error=%s entry=%s", json.dumps("this entry is not in the ledger"), note)
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
