"""Who may, and what is remembered? Tokens, the ledger of sessions, and the calls to the release platform.

This is the file that operators extend: name a file of your own under ``[Hooks] file``, subclass ``Hooks`` in it
and override what you need. Knows nothing of browsers, pods or HTTP serving.

Hooks run on the threads of the sessions, several at a time. A hook refuses a user by raising ``Denied`` with a
sentence that the user may read; any other exception is logged with its traceback and refuses the user politely.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import glob
import hashlib
import hmac
import http.client
import importlib.util
import inspect
import json
import os
import re
import socket
import sqlite3
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["Denied", "HookError", "Hooks", "HooksSettings", "SessionInfo", "TokenAuthData", "load_hooks"]

PLATFORM_TIMEOUT_SECONDS = 5.0
_ANSWER_LIMIT_BYTES = 2 << 20
_CLOCK_SKEW_SECONDS = 30
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
SECRET_MINIMUM_BYTES = 32  # RFC 7518, section 3.2: an HS256 key is at least as long as the hash


class Denied(Exception):
    """The user is refused; the text is shown to the user."""


class HookError(Exception):
    """A hook could not do its work. The text goes to the log and names no secret."""


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
    cluster_file: Path | None = None  # where cluster_cfg was read, if it is the operator's own
    reusable: bool = False  # whether the token may open another terminal

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
    bytes_out: int = 0  # printed by the pod
    bytes_in: int = 0  # typed by the user
    sha256: str = ""  # of the recording
    hung_up: int | None = None  # processes that the session left in the pod and were ended; None: not checked

    def as_json(self) -> dict[str, Any]:
        """All of it but the kubeconfig and ``reusable``, as one flat JSON object."""
        values = asdict(self)
        auth = values.pop("auth")
        del auth["cluster_cfg"], auth["cluster_file"], auth["reusable"]
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
        self.ledger = Ledger(settings.db)

    def open(self) -> Sequence[str]:
        """Called once at start. Returns the recordings of the sessions that a crash had cut off."""
        return self.ledger.open()

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
        """A session begins: its recording exists, its shell not yet. Raising ends it."""
        self.ledger.login(info)
        if self.settings.login_url:
            self._post(self.settings.login_url, info.as_json())

    def on_logout(self, info: SessionInfo) -> None:
        """A session has ended. Called exactly once for each ``on_login``, even one that raised; not after a crash."""
        self.ledger.logout(info)
        if self.settings.logout_url:
            self._post(self.settings.logout_url, info.as_json())

    def authorize(self, token: str, action: str, filename: str) -> str:
        """Say which user may do ``action`` ("play") with a recording, or raise Denied.

        Here: a link signed with ``[Token] secret`` whose claim ``scope`` names the action; a claim ``filename``
        limits it to that recording.
        """
        if not self.settings.secret:
            raise Denied("recordings are not open here; the server's operator must set [Token] secret")
        claims = verify_token(token, self.settings.secret)
        if action not in str(claims.get("scope", "")).split():
            raise Denied(f"this link does not allow to {action}")
        if claims.get("filename", filename) != filename:
            raise Denied("this link is for another recording")
        return str(claims.get("sub", ""))

    def _read_signed_token(self, token: str) -> TokenAuthData:
        claims = verify_token(token, self.settings.secret)
        if claims.get("scope", "terminal") != "terminal":
            raise Denied("this link is not for a terminal")
        auth = auth_data({**claims, "user": claims.get("sub", "")}, self.settings.clusters)
        if "jti" in claims:
            self.ledger.use_token(str(claims["jti"]), float(claims["exp"]))
        return replace(auth, reusable="jti" not in claims)

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

_TEXT_FIELDS = ("namespace", "pod_name", "container_name", "cluster_cfg", "user", "directory", "message")


def auth_data(values: Mapping[str, Any], clusters: Mapping[str, Path]) -> TokenAuthData:
    """Build a TokenAuthData from a JSON object. ``cluster`` names a kubeconfig of the operator's.

    Raises HookError when something is missing or of a wrong type: that is the platform's mistake, not the user's.
    """
    texts: dict[str, Any] = {name: "" if values.get(name) is None else values[name] for name in _TEXT_FIELDS}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise HookError(f"{name} of a token must be text")
    if not texts["pod_name"]:
        raise HookError("a token must name a pod_name")
    command = values.get("command") or []
    if not isinstance(command, list) or not all(isinstance(argument, str) for argument in command):
        raise HookError("command of a token must be a list of texts")
    file = None if texts["cluster_cfg"] else _cluster_file(values.get("cluster"), clusters)
    if file is not None:
        texts["cluster_cfg"] = _read_cluster(file)
    extra = {key: value for key, value in values.items() if key not in (*_TEXT_FIELDS, "command")}
    return TokenAuthData(**texts, command=tuple(command), cluster_file=file, extra=extra)


def _cluster_file(name: object, clusters: Mapping[str, Path]) -> Path | None:
    """The kubeconfig under ``[Clusters]``: the named or the only one; None where there are none."""
    if not name and len(clusters) <= 1:
        return next(iter(clusters.values()), None)
    if isinstance(name, str) and name in clusters:
        return clusters[name]
    raise HookError(f"the cluster of a token must be one of [Clusters]; {name!r} is not under it")


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
        signed, _, signature = token.rpartition(".")
        header, payload = (json.loads(_base64url(part)) for part in signed.split("."))
        expected = hmac.new(secret.encode(), signed.encode("ascii"), hashlib.sha256).digest()
        genuine = hmac.compare_digest(expected, _base64url(signature))
        if not genuine or not isinstance(payload, dict) or header.get("alg") != "HS256" or "crit" in header:
            raise ValueError("not signed by us")
        expires, not_before = float(payload["exp"]), float(payload.get("nbf", 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise Denied("this link is not valid; open it again from the platform") from None
    now = time.time()
    if not now < expires:
        raise Denied("this link has expired; open it again from the platform")
    if now + _CLOCK_SKEW_SECONDS < not_before:
        raise Denied("this link is not valid yet")
    return payload


def _base64url(text: str) -> bytes:
    """Decode base64url without padding (RFC 7515, section 2); ValueError for anything else."""
    if not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
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
    cut.start()
    try:
        yield
    finally:
        cut.cancel()
        cut.join()


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
        if isinstance(values, dict) and isinstance(values.get("message"), str):
            return str(values["message"])
    return "the platform does not accept this token; open the terminal again from the platform"


# -- the ledger -------------------------------------------------------------------------------------------------------

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    session_id TEXT PRIMARY KEY, filename TEXT NOT NULL, user TEXT NOT NULL, namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL, container_name TEXT NOT NULL, remote_addr TEXT NOT NULL, login_at REAL NOT NULL,
    logout_at REAL, reason TEXT NOT NULL DEFAULT '', exit_code INTEGER, bytes_out INTEGER, bytes_in INTEGER,
    sha256 TEXT, hung_up INTEGER, server TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS open_sessions ON sessions (session_id) WHERE logout_at IS NULL;
CREATE TABLE IF NOT EXISTS used_tokens (jti TEXT PRIMARY KEY, expires_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS expiring_tokens ON used_tokens (expires_at);
"""


class Ledger:
    """The sessions of one or several servers on this host in SQLite: a row at login, completed at logout. Any thread.

    Also remembers which one-use tokens are spent. Errors are sqlite3's own, but for those of ``open``: HookError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server = uuid.uuid4().hex
        self._alive: int | None = None  # the descriptor of a file beside the ledger, locked while this server lives
        self._lock = threading.Lock()  # guards the connection
        self._connection: sqlite3.Connection | None = None

    def open(self) -> list[str]:
        """Open or make the file. Rows that crashed servers left open are closed as lost; returns their recordings."""
        try:
            with self._alone():
                self._connect()
                self._alive = os.open(self._life_file(self._server), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
                fcntl.flock(self._alive, fcntl.LOCK_EX)
                return list(self._close_lost())
        except (OSError, sqlite3.Error) as exc:
            raise HookError(f"db in [Audit]: {self.path} cannot be opened: {exc}") from exc

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the ledger's folder: servers that start together do so one after the other."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _connect(self) -> None:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o640))  # SQLite would make it readable by all
        self._connection = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
        self._connection.executescript("PRAGMA journal_mode=WAL;" + _SCHEMA)
        if "server" not in (row[1] for row in self._run("PRAGMA table_info(sessions)")):  # it is older than the column
            self._run("ALTER TABLE sessions ADD COLUMN server TEXT NOT NULL DEFAULT ''")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        if self._alive is not None:
            self._life_file(self._server).unlink(missing_ok=True)
            os.close(self._alive)
            self._alive = None

    def _life_file(self, server: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{server}.alive")

    def _living(self) -> Iterator[str]:
        """The servers that live, this one included; the files of the others are removed."""
        for path in self.path.parent.glob(f"{glob.escape(self.path.name)}.*.alive"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                except BlockingIOError:
                    yield path.name.rsplit(".", 2)[1]

    def _close_lost(self) -> Iterator[str]:
        """Close the open rows of servers that have crashed; returns the recordings."""
        servers = {row[0] for row in self._run("SELECT DISTINCT server FROM sessions WHERE logout_at IS NULL")}
        for server in servers.difference(self._living()):
            rows = self._run("SELECT filename FROM sessions WHERE logout_at IS NULL AND server = ?", server)
            yield from (row[0] for row in rows)
            self._run(
                "UPDATE sessions SET logout_at = ?, reason = 'lost' WHERE logout_at IS NULL AND server = ?",
                *(time.time(), server),
            )

    def login(self, info: SessionInfo) -> None:
        """Write the row of a session that begins."""
        auth = info.auth
        self._run(
            "INSERT INTO sessions (session_id, filename, user, namespace, pod_name, container_name, remote_addr,"
            " login_at, server) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(info.session_id, info.filename, auth.user, auth.namespace, auth.pod_name, auth.container_name),
            *(info.remote_addr, info.login_at, self._server),
        )

    def logout(self, info: SessionInfo) -> None:
        """Complete the row of a session that has ended."""
        self._run(
            "UPDATE sessions SET logout_at = ?, reason = ?, exit_code = ?, bytes_out = ?, bytes_in = ?, sha256 = ?,"
            " hung_up = ? WHERE session_id = ?",
            *(info.logout_at, info.reason, info.exit_code, info.bytes_out, info.bytes_in, info.sha256),
            *(info.hung_up, info.session_id),
        )

    def use_token(self, jti: str, expires_at: float) -> None:
        """Spend a one-use token (RFC 7519, section 4.1.7). Raises Denied the second time."""
        # One that was verified just before it expired must still be found.
        self._run("DELETE FROM used_tokens WHERE expires_at < ?", time.time() - 3600)
        try:
            self._run("INSERT INTO used_tokens VALUES (?, ?)", jti, expires_at)
        except sqlite3.IntegrityError:
            raise Denied("this link was already used; open the terminal again from the platform") from None

    def _run(self, statement: str, *values: object) -> list[Any]:
        with self._lock:
            if self._connection is None:
                raise HookError("the ledger is closed")
            return self._connection.execute(statement, values).fetchall()
