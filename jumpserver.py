#!/usr/bin/env python3
"""Who is connected? The server: configuration, HTTP routes, browser sockets, sessions, shutdown.

Owns everything that a browser sees. Asks hooks who may, k8s_exec for the pod, recorder to write down what was seen.

The life of a session, whose moves stand together in ``Session`` (start, attach, left, stop):

              start            attach: the browser is back, or another page takes over
    opening ─────────► attached ◄────────────────────────────────────┐
       │                   │ └──────────────────────────────────► detached
       │ stop              │ stop     left: its connection is lost   │ stop; the grace is over
       └───────────────────┴──────────────► ended ◄──────────────────┘

Its threads: ``<id>-output`` (pod to recording to browser) and ``<id>-browser`` (that of the browser's connection:
browser to pod).

Where is what: addresses and origins; configuration; how a session ends; numbers; the browser's socket; sessions, from
``Window`` and ``Output`` to ``SessionRegistry``; pages; HTTP, the ``Handler`` and its routes; what goes round beside
the sessions; the servers; the program; the log; systemd.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import collections
import contextlib
import dataclasses
import email.utils
import errno
import functools
import gzip
import hashlib
import html
import http.server
import io
import ipaddress
import itertools
import json
import logging
import math
import os
import platform
import re
import resource
import secrets
import select
import selectors
import shutil
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
import traceback
import types
import urllib.parse
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol, Union

import simple_websocket
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Ping
from wsproto.utilities import LocalProtocolError

from hooks import (
    LIMIT_MAXIMUM,
    NORMAL_MARKS,
    SECRET_MINIMUM_BYTES,
    Ask,
    Command,
    CommandQuery,
    Denied,
    HookError,
    Hooks,
    HooksSettings,
    Keeper,
    Ledger,
    LedgerError,
    LogEvent,
    Notes,
    Proof,
    SessionInfo,
    SessionQuery,
    TokenAuthData,
    cursor,
    load_hooks,
    log_event,
    log_fault,
)
from k8s_exec import (
    KEEP_ALIVE_SECONDS,
    SHELLS,
    Cluster,
    ExecError,
    ExitStatus,
    KubeconfigError,
    PodExec,
    PodLost,
    SeveralContainers,
    Shell,
    Target,
    Trust,
    encode_resize,
    hang_up,
    in_cluster,
    load_kubeconfig,
    open_shell,
    printable,
    why_lost,
)
from recorder import (
    PACKED_SUFFIX,
    Follower,
    PackedFile,
    RecordedCommand,
    Recorder,
    RecordError,
    RecordFolder,
    Wanted,
    examine,
    find_recording,
    is_incomplete,
    mark_incomplete,
    open_recording,
    pack,
    playable_size,
    read_header,
    recorded_commands,
    recorded_output,
    recording_name,
    recording_path,
    recordings,
    repair,
    search,
    session_of,
    transcript,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__version__ = "0.2.0.dev0"
__commit__ = ""  # of which this is a copy; deploy/dist.py writes it

# -- addresses and origins --------------------------------------------------------------------------------------------

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

_HOST = r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}"
_ORIGIN = re.compile(rf"(https?)://({_HOST}\.?|\[[0-9a-f:.]+\])(?::(\d{{0,5}}))?/?")
_SERVER_NAME = re.compile(rf"(?:\*\.)?{_HOST}")
_FRAME_ANCESTOR = re.compile(
    rf"'self'|'none'|\*|[a-z][a-z0-9+.-]*:|(?:[a-z][a-z0-9+.-]*://)?(?:\*|(?:\*\.)?{_HOST})(?::(?:\d{{1,5}}|\*))?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_address(text: str) -> Address | None:
    """An address as sockets and proxies write it: alone, with a port, in brackets, with a zone. None for anything else.

    An IPv4 address inside of an IPv6 one (RFC 4291, section 2.5.5.2) comes out as IPv4, and a zone goes.
    """
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def parse_network(text: str) -> Network:
    """An address or a network, IPv4 inside of IPv6 as IPv4. Raises ValueError."""
    if "%" in text:
        raise ValueError("a zone")
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    network = ipaddress.ip_network(bare, strict=False)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped and network.prefixlen >= 96:
        return ipaddress.IPv4Network((int(mapped), network.prefixlen - 96))
    return network


# Each item of a list in the configuration is brought into the one form that is compared, or refused with a sentence.


def normal_origin(text: str) -> str:
    """An origin as browsers write it (RFC 6454, section 6.2). Raises ValueError."""
    match = _ORIGIN.fullmatch(text.lower())
    try:
        if match is None:
            raise ValueError("another form")
        scheme, host, port = match[1], match[2], int(match[3] or _DEFAULT_PORTS[match[1]])
        if host.startswith("["):
            host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
        if not 1 <= port <= 65535:
            raise ValueError("no such port")
    except ValueError:
        text = json.dumps(text)
        raise ValueError(f"{text} is not an origin such as https://platform.example or http://host:8080") from None
    return f"{scheme}://{host}" + ("" if port == _DEFAULT_PORTS[scheme] else f":{port}")


def normal_frame_ancestor(text: str) -> str:
    """A source of the CSP directive frame-ancestors. Raises ValueError."""
    source = text.lower()
    if source.endswith("/") and not source.endswith("//"):
        source = source[:-1]
    if source in ("self", "none"):
        raise ValueError(f"write \"'{source}'\", with the inner quotes")
    if not _FRAME_ANCESTOR.fullmatch(source):
        raise ValueError(f"{json.dumps(text)} is not a CSP source such as https://platform.example, without a path")
    return source


def normal_proxy(text: str) -> str:
    """An address or a network. Raises ValueError."""
    try:
        return str(parse_network(text))
    except ValueError:
        raise ValueError(f"{json.dumps(text)} is not an address or a network such as 10.0.0.0/8") from None


def normal_server(text: str) -> str:
    """A host name, ``*.domain``, an address or a network, in lower case and without a final dot. Raises ValueError."""
    with contextlib.suppress(ValueError):
        network = parse_network(text)
        return str(network if "/" in text else network.network_address)
    name = text.lower()[: -1 if text.endswith(".") else None]
    name = f"*{name}" if name.startswith(".") else name
    if not _SERVER_NAME.fullmatch(name) or name.rpartition(".")[2].isdigit():
        raise ValueError(
            f"{json.dumps(text)} is not a host name, *.domain, address or network such as 10.0.0.0/8; "
            "leave https://, port and path out"
        )
    return name


# -- configuration ----------------------------------------------------------------------------------------------------


class ConfigError(Exception):
    """The configuration cannot be used; the text names file and key."""


@dataclass(frozen=True)
class ServerConfig:
    """``[Server]``"""

    listen: str = "127.0.0.1:7000"  # address:port
    admin_listen: str = ""  # address:port of /metrics, /readyz and /healthz; empty: only the public one has them
    reuse_port: bool = False  # whether several servers may listen at this address, to use more than one core
    max_sessions: int = 1000  # open terminals at a time
    drain_timeout: int = 0  # seconds that open terminals may go on after SIGTERM
    resume_grace: int = 60  # seconds that a shell waits for a browser that lost its connection; 0: it ends at once
    allowed_origins: tuple[str, ...] = ()  # of pages that may open a terminal; empty: any, since the token decides
    frame_ancestors: tuple[str, ...] = ("'self'",)  # who may show the pages in a frame (CSP source list)
    trusted_proxies: tuple[str, ...] = ()  # addresses and networks of proxies whose X-Forwarded-For is believed
    platform_url: str = ""  # where the pages lead back to; empty: nowhere

    @functools.cached_property
    def _proxy_networks(self) -> tuple[Network, ...]:
        return tuple(map(parse_network, self.trusted_proxies))

    @property
    def embedders(self) -> list[str]:
        """Those of frame_ancestors that are one origin each, or 'self': the terminal page tells them what happens."""
        found = []
        for source in self.frame_ancestors:
            with contextlib.suppress(ValueError):
                found.append(source if source == "'self'" else normal_origin(source))
        return found

    def trusts(self, address: Address) -> bool:
        """Whether the address is a trusted proxy's."""
        return any(address in network for network in self._proxy_networks)

    def crowd(self, address: Address | None) -> str:
        """Whose connections are counted together: an address, an IPv6 network of 64 bits, which is one host's.

        "" for a trusted proxy and this host, which stand for many browsers.
        """
        if address is None or address.is_loopback or self.trusts(address):
            return ""
        return str(address if address.version == 4 else ipaddress.IPv6Network((int(address), 64), strict=False))


@dataclass(frozen=True)
class LimitsConfig:
    """``[Limits]``; 0: there is none."""

    idle_timeout: int = 0  # seconds in which nothing is typed until a session ends
    max_duration: int = 0  # seconds that a session may last
    max_sessions_per_user: int = 0  # open terminals at a time; a user without a name is not counted
    max_sessions_per_pod: int = 0  # open terminals at a time
    logins_per_second: int = 0  # of one address; five times as many at once


@dataclass(frozen=True)
class RecordConfig:
    """``[Record]``"""

    path: str = "records"  # folder of the recordings
    public: bool = False  # whether anybody may replay them; for those whose proxy does the guarding
    max_bytes: int = 2 << 30  # of one recording, at which its session ends; 0: any
    commands: bool = True  # whether shells are made to report what they run
    input: bool = False  # whether what is typed is recorded, but for passwords
    min_free: int = 0  # bytes left below which no session begins; 0: 1 GiB or 5 % of the disk, the smaller
    compress: bool = False  # whether finished recordings are packed with gzip


@dataclass(frozen=True)
class TokenConfig:
    """``[Token]``"""

    secret: str = field(default="", repr=False)  # of HS256, shared with the platform; 32 bytes or more


@dataclass(frozen=True)
class PlatformConfig:
    """``[Platform]``"""

    validate_url: str = field(default="", repr=False)  # asked what an ssh_token stands for
    login_url: str = field(default="", repr=False)  # told when a session begins
    logout_url: str = field(default="", repr=False)  # told when it has ended
    heartbeat_url: str = field(default="", repr=False)  # asked again and again whether it may go on
    heartbeat_interval: int = 30  # seconds
    authorization: str = field(default="", repr=False)  # Authorization header of these calls


@dataclass(frozen=True)
class HooksConfig:
    """``[Hooks]``"""

    file: str = ""  # a Python file with a subclass of hooks.Hooks


@dataclass(frozen=True)
class AuditConfig:
    """``[Audit]``"""

    db: str = ""  # the ledger, a SQLite file; empty: sessions.db in the record path
    announce_watch: bool = True  # whether a terminal says who begins to watch it


@dataclass(frozen=True)
class KubernetesConfig:
    """``[Kubernetes]``: what a kubeconfig that came with a token may do; those under ``[Clusters]`` may do all."""

    allow_exec: tuple[str, ...] = ()  # credential plugins that may be run, by their command
    allow_env: tuple[str, ...] = ()  # variables that may be set for them
    allow_files: tuple[str, ...] = ()  # folders whose files may be read
    allow_servers: tuple[str, ...] = ()  # names, *.domains, addresses and networks; empty: all but local addresses


@dataclass(frozen=True)
class ClusterConfig:
    """What a name under ``[Clusters]`` stands for. A text there is the kubeconfig alone."""

    kubeconfig: Path
    label: str = ""  # a word for the cluster, which the pages show
    colour: str = ""  # of that word, as #rrggbb


@dataclass(frozen=True)
class Config:
    """The whole configuration. Relative paths in the file are relative to the file's folder."""

    Server: ServerConfig = ServerConfig()
    Limits: LimitsConfig = LimitsConfig()
    Record: RecordConfig = RecordConfig()
    Token: TokenConfig = TokenConfig()
    Platform: PlatformConfig = PlatformConfig()
    Hooks: HooksConfig = HooksConfig()
    Audit: AuditConfig = AuditConfig()
    Kubernetes: KubernetesConfig = KubernetesConfig()
    Clusters: Mapping[str, ClusterConfig] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def record_path(self) -> Path:
        return self.folder / self.Record.path

    @property
    def address(self) -> tuple[str, int]:
        return _host_and_port(self.Server.listen)

    @property
    def admin_address(self) -> tuple[str, int] | None:
        return _host_and_port(self.Server.admin_listen) if self.Server.admin_listen else None

    def hooks_settings(self) -> HooksSettings:
        """The part that hooks see."""
        return HooksSettings(
            db=self.folder / self.Audit.db if self.Audit.db else self.record_path / "sessions.db",
            secret=self.Token.secret,
            clusters={name: cluster.kubeconfig for name, cluster in self.Clusters.items()},
            records=self.record_path,
            **dataclasses.asdict(self.Platform),
        )

    def trust(self) -> Trust:
        """What a kubeconfig that came with a token may do."""
        rules = self.Kubernetes
        folders = tuple(self.folder / folder for folder in rules.allow_files)
        return Trust(None, rules.allow_exec, rules.allow_env, folders, rules.allow_servers)


# What is made at the start, and stays.
_FIXED = {
    "Server": ("listen", "admin_listen", "reuse_port"),
    "Record": ("path", "min_free"),
    "Hooks": ("file",),
    "Audit": ("db",),
}


def keep_fixed(old: Config, new: Config) -> tuple[Config, list[str]]:
    """The new configuration with what cannot change while the server runs as it was; and which keys differ in that."""
    differ = []
    for name, keys in _FIXED.items():
        before, after = getattr(old, name), getattr(new, name)
        differ += [f"{key} in [{name}]" for key in keys if getattr(before, key) != getattr(after, key)]
        section = dataclasses.replace(after, **{key: getattr(before, key) for key in keys})
        new = dataclasses.replace(new, **{name: section})
    return new, differ


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


_SECTIONS: Mapping[str, type[Any]] = {
    "Server": ServerConfig,
    "Limits": LimitsConfig,
    "Record": RecordConfig,
    "Token": TokenConfig,
    "Platform": PlatformConfig,
    "Hooks": HooksConfig,
    "Audit": AuditConfig,
    "Kubernetes": KubernetesConfig,
}
_NORMAL_FORMS: Mapping[str, Callable[[str], str]] = {
    "allowed_origins": normal_origin,
    "frame_ancestors": normal_frame_ancestor,
    "trusted_proxies": normal_proxy,
    "allow_servers": normal_server,
}
_SECRETS = ("secret", "authorization")  # {file = "…"} in place of one names the file that has it
_SECRET_FILE_BYTES = 1 << 14
_TYPE_NAMES = {str: "text in quotes", int: "a whole number", bool: "true or false", tuple: "a list of texts"}
_PLATFORM_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?([/?][!-~]*)?")
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]*):(\d{1,5})")


def load_config(file: Path) -> Config:
    """Read and check the TOML file. Raises ConfigError with one line that names key and file."""
    try:
        with file.open("rb") as opened:
            document = tomllib.load(opened)
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}: is not TOML: {exc}") from exc
    folder = file.absolute().parent
    clusters = _clusters(document.pop("Clusters", {}), folder, file)
    sections = {name: _section(name, values, file) for name, values in document.items()}
    config = Config(**sections, Clusters=clusters, folder=folder)
    _check_values(config, file)
    return config


def _section(name: str, values: object, file: Path) -> Any:
    if name not in _SECTIONS:
        raise ConfigError(f"{file}: unknown section [{name}]; there are {', '.join([*_SECTIONS, 'Clusters'])}")
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: {name} must be a section: [{name}]")
    known = {item.name: item.default for item in dataclasses.fields(_SECTIONS[name])}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{file}: unknown key {key} in [{name}]; there are {', '.join(known)}")
        if key in _SECRETS and isinstance(value, dict):
            value = values[key] = _read_secret(value, file.absolute().parent, f"{file}: {key} in [{name}]")
        expected = type(known[key])
        if expected is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            values[key] = _normal(key, value, f"{file}: {key} in [{name}]")
        elif type(value) is not expected:
            raise ConfigError(f"{file}: {key} in [{name}] must be {_TYPE_NAMES[expected]}")
        elif expected is str and not value.isprintable():
            raise ConfigError(f"{file}: {key} in [{name}] must be one line without control characters")
    return _SECTIONS[name](**values)


def _read_secret(value: Mapping[str, object], folder: Path, where: str) -> str:
    """What the file that ``value`` names has in its one line."""
    name = value.get("file")
    if len(value) != 1 or not isinstance(name, str) or not name.isprintable():
        raise ConfigError(f'{where} must be text in quotes, or {{file = "the file that has it"}}')
    path = folder / name
    try:
        with path.open("rb") as opened:
            content = opened.read(_SECRET_FILE_BYTES + 1)
        text = content.decode().removesuffix("\n")
    except OSError as exc:
        raise ConfigError(f"{where}: {path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: {path} is not UTF-8") from None  # whose text would have a part of it
    if not 0 < len(text) <= len(content) <= _SECRET_FILE_BYTES:
        raise ConfigError(f"{where}: {path} must have 1 to {_SECRET_FILE_BYTES} bytes")
    return text


def _normal(key: str, items: list[str], where: str) -> tuple[str, ...]:
    try:
        return tuple(map(_NORMAL_FORMS.get(key, str), items))
    except ValueError as exc:
        raise ConfigError(f"{where}: {exc}") from None


def _clusters(values: object, folder: Path, file: Path) -> Mapping[str, ClusterConfig]:
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: Clusters must be a section: [Clusters]")
    return {name: _cluster(value, folder, f"{file}: {name} in [Clusters]") for name, value in values.items()}


def _cluster(value: object, folder: Path, where: str) -> ClusterConfig:
    texts = {"kubeconfig": value} if isinstance(value, str) else value
    keys = {"kubeconfig", *NORMAL_MARKS}
    if not isinstance(texts, dict) or "kubeconfig" not in texts or not keys.issuperset(texts):
        form = '"kubeconfig file", or {kubeconfig = "…", label = "…", colour = "…"}'
        raise ConfigError(f"{where} must have the form {form}")
    mark = {}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ConfigError(f"{where}: {name} must be text in quotes")
        try:
            mark[name] = NORMAL_MARKS.get(name, str)(text)
        except ValueError as exc:
            raise ConfigError(f"{where}: {name} {exc}") from None
    return ClusterConfig(folder / mark.pop("kubeconfig"), **mark)


def _check_values(config: Config, file: Path) -> None:
    for name, text in ("listen", config.Server.listen), ("admin_listen", config.Server.admin_listen):
        listen = _LISTEN.fullmatch(text)
        if (text or name == "listen") and not (listen and int(listen[2]) <= 65535):
            raise ConfigError(f'{file}: {name} in [Server] must be "address:port"')
    if config.admin_address and config.admin_address[1] == config.address[1] != 0:
        raise ConfigError(f"{file}: admin_listen in [Server] must have another port than listen")
    if not 0 <= config.Server.drain_timeout <= 86400:
        raise ConfigError(f"{file}: drain_timeout in [Server] must be 0 to 86400 seconds")
    for name, size in ("max_bytes", config.Record.max_bytes), ("min_free", config.Record.min_free):
        if size < 0:
            raise ConfigError(f"{file}: {name} in [Record] must be 0 bytes or more")
    if config.Server.max_sessions < 1:
        raise ConfigError(f"{file}: max_sessions in [Server] must be 1 or more")
    for key, value in dataclasses.asdict(config.Limits).items():
        if not 0 <= value <= LIMIT_MAXIMUM:
            raise ConfigError(f"{file}: {key} in [Limits] must be 0 to {LIMIT_MAXIMUM}")
    if config.Token.secret and len(config.Token.secret.encode()) < SECRET_MINIMUM_BYTES:
        raise ConfigError(f"{file}: secret in [Token] must have {SECRET_MINIMUM_BYTES} bytes or more")
    if "'none'" in config.Server.frame_ancestors[1:] + config.Server.frame_ancestors[:-1]:
        raise ConfigError(f"{file}: frame_ancestors in [Server]: 'none' must stand alone")
    settings = dataclasses.asdict(config.Platform).items()
    urls = {f"{key} in [Platform]": value for key, value in settings if key.endswith("_url")}
    for name, url in {"platform_url in [Server]": config.Server.platform_url, **urls}.items():
        if url and not _is_platform_url(url):
            raise ConfigError(f"{file}: {name} must be an http:// or https:// URL without user and password")
    if not 1 <= config.Platform.heartbeat_interval <= 86400:
        raise ConfigError(f"{file}: heartbeat_interval in [Platform] must be 1 to 86400 seconds")
    if not config.Platform.authorization.isascii():
        raise ConfigError(f"{file}: authorization in [Platform] must be ASCII, as HTTP headers are")
    for name, cluster in config.Clusters.items():
        path = cluster.kubeconfig
        try:
            load_kubeconfig(path.read_bytes(), trust=Trust(folder=path.parent))
        except OSError as exc:
            raise ConfigError(f"{file}: {name} in [Clusters]: {path} cannot be read: {exc.strerror}") from exc
        except KubeconfigError as exc:
            raise ConfigError(f"{file}: {name} in [Clusters]: {path}: {exc}") from exc


def _is_platform_url(url: str) -> bool:
    with contextlib.suppress(ValueError):  # a port or an address that cannot be
        return bool(_PLATFORM_URL.fullmatch(url)) and urllib.parse.urlsplit(url).port != 0
    return False


def check_record_path(config: Config, file: Path) -> None:
    """Whether this user can write in the record folder, or make it. Writes nothing. Raises ConfigError."""
    path = config.record_path
    there = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written by this user" if os.path.isdir(there) else "is not a folder"
        raise ConfigError(f"{file}: path in [Record]: {there} {why}")


def check_ledger_path(config: Config, file: Path) -> None:
    """Whether this user can open the ledger, or make it; beside it stand files of SQLite's. Raises ConfigError."""
    db = config.hooks_settings().db
    folder_is_good = db.parent == config.record_path or os.access(db.parent, os.W_OK | os.X_OK)
    if not folder_is_good or (db.exists() and not (db.is_file() and os.access(db, os.R_OK | os.W_OK))):
        raise ConfigError(f"{file}: db in [Audit]: {db} cannot be written, or made, by this user")


# -- how a session ends -----------------------------------------------------------------------------------------------

# WebSocket close codes (RFC 6455, section 7.4.2: 4000 to 4999 are the application's), and the HTTP status that
# says the same to a client which did not ask for the subprotocol.
NORMAL, GOING_AWAY, TRY_AGAIN = 1000, 1001, 1013
BAD_REQUEST, DENIED, TAKEN, GONE, INTERNAL, CLUSTER, BUSY = 4400, 4403, 4409, 4410, 4500, 4502, 4503
_HTTP_STATUS = {BAD_REQUEST: 400, DENIED: 403, TAKEN: 409, GONE: 410, INTERNAL: 503, CLUSTER: 502, BUSY: 503}
_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True)
class End:
    """Why a session ended: a sentence for the user, and what the programs are told."""

    reason: str
    close_code: int = NORMAL
    exit_code: int | None = None
    notice: bool = True  # whether the terminal prints the reason, too
    label: str = ""  # for the numbers, of one whose reason varies


BROWSER_SILENT = End("the browser no longer answers", notice=False)
MESSAGE_TOO_BIG = End("the browser sent a message of more than 1 MiB", BAD_REQUEST)
BROWSER_LEFT = End("the browser closed the connection", notice=False)
BROWSER_CLOSED = End("the user has ended the session", notice=False)
SESSION_OVER = End("this session has ended", GONE, notice=False)
TAKEN_OVER = End("this terminal goes on in another page", TAKEN, notice=False)
SHUTTING_DOWN = End("the server is shutting down", BUSY)
IDLE = End("nothing was typed for as long as a session may be idle")
LASTED_TOO_LONG = End("the session has lasted as long as it may")
USER_FULL = End("you have as many terminals open as you may; end one, then open this again from the platform", BUSY)
POD_FULL = End("this pod has as many terminals open as it may; open it again from the platform later", BUSY)
TOO_MANY_LOGINS = End("too many terminals were opened from your address just now; try again later", BUSY)
SERVER_FULL = End("the server has as many terminals open as it may; try again later", BUSY)
RECORDING_FAILED = End("the session cannot be recorded, so it has ended", INTERNAL)
RECORDING_TOO_BIG = End("the recording of this session is as large as it may be, so the session has ended", INTERNAL)
DISK_FULL = End("the disk is nearly full and this session fills it the fastest, so it has ended", INTERNAL)
LEDGER_FAILED = End("this session cannot be written into the ledger, so it cannot begin; try again later", INTERNAL)
NOT_IN_LEDGER = "the ledger cannot be read or written now, and nothing goes on without it; try again later"
SERVER_BUSY = End("the server has as many answers under way as it may; try again later", BUSY)
TOKEN_TOO_LONG = End("this token is longer than 16 KiB, which is more than this server takes", DENIED)
FETCH_FAILED = End("this recording cannot be fetched now; try again later", INTERNAL)
HOOK_FAILED = End("the server could not check this with the platform; try again later", INTERNAL)
SERVER_FAULT = End("the server met an error of its own; its log has the details", INTERNAL)
NO_DESCRIPTORS = End("the server has as many files and connections open as it may; try again later", BUSY)
NOT_UNDERSTOOD = End("the browser sent a message that is not understood", BAD_REQUEST)


def ended_by(who: str, reason: str) -> End:
    """The end of a session by hand."""
    return End(f"ended by {printable(who) or 'an operator'}: {printable(reason)}", label="terminated")


class Refused(Exception):
    """A terminal was refused before it opened. ``user`` is whom, where the token says it."""

    def __init__(self, end: End, user: str = "") -> None:
        super().__init__(end.reason)
        self.end = end
        self.user = user


_END_LABELS = {
    BROWSER_LEFT: "browser_left",
    BROWSER_CLOSED: "closed",
    BROWSER_SILENT: "browser_silent",
    SHUTTING_DOWN: "shutdown",
    SERVER_FULL: "full",
    RECORDING_FAILED: "recording",
    RECORDING_TOO_BIG: "space",
    DISK_FULL: "space",
    LEDGER_FAILED: "ledger",
    HOOK_FAILED: "hook",
    NO_DESCRIPTORS: "full",
    IDLE: "idle",
    LASTED_TOO_LONG: "max_duration",
    USER_FULL: "limit",
    POD_FULL: "limit",
    TOO_MANY_LOGINS: "limit",
}
_CODE_LABELS = {
    NORMAL: "exit",
    BAD_REQUEST: "bad_message",
    DENIED: "denied",
    TAKEN: "taken",
    GONE: "gone",
    INTERNAL: "fault",
    CLUSTER: "cluster",
    BUSY: "busy",
}


def end_label(end: End) -> str:
    """The end as one of a few words, for the numbers."""
    return end.label or _END_LABELS.get(end) or _CODE_LABELS.get(end.close_code, "other")


# -- numbers ----------------------------------------------------------------------------------------------------------

# Name, without the prefix: help, name of the one label ("" for none), its values. No label names a user or a pod: those
# are too many, and nobody else's business. What is listed is there from the start, so that the first event is a rise.
_ENDS = tuple(dict.fromkeys([*_END_LABELS.values(), *_CODE_LABELS.values(), "terminated", "other"]))
COUNTERS = {
    "sessions_total": ("Sessions that have ended, by their end.", "end", _ENDS),
    "refused_total": ("Terminals that were refused before the login, by cause.", "cause", _ENDS),
    "bytes_total": ("Bytes typed (in) and printed (out) in sessions.", "direction", ("in", "out")),
    "recorded_bytes_total": ("Bytes written to recordings.", "", ("",)),
    "resumed_total": ("Browsers that came back to their shell, or another page that took it over.", "", ("",)),
    "hang_ups_total": (
        "Hang-ups tried, by what they found in the pod.",
        "result",
        ("none", "some", "unknown", "again"),
    ),
}
HISTOGRAMS = {
    "hook_seconds": (
        "How long a call of a hook took.",
        "hook",
        ("validate_ssh_token", "on_login", "on_heartbeat", "on_logout", "authorize", "fetch_recording"),
    ),
    "ledger_seconds": ("How long a write to the ledger took.", "", ("",)),
    "cluster_open_seconds": ("How long it took until a shell was open, or was not.", "", ("",)),
}
GAUGES = {
    "ready": "1 while terminals can be opened.",
    "sessions_open": "Sessions that are open.",
    "watchers": "Who watches sessions live.",
    "detached": "Sessions whose shell waits for a browser that lost its connection.",
    "free_bytes": "Bytes free where the recordings are.",
    "outbox_length": "Ended sessions about which something is left to do.",
    "threads": "Threads of this process.",
}
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)  # seconds


@dataclass(frozen=True)
class Traffic:
    """Bytes of a session."""

    typed: int
    printed: int
    recorded: int


class Metrics:
    """Counts what happens, for Prometheus. Any thread; bytes are summed up when they are asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below; no I/O under it
        self._counts: dict[tuple[str, str], float] = {
            (name, value): 0 for name, (_, _, values) in COUNTERS.items() for value in values
        }
        self._times: dict[tuple[str, str], list[float]] = {
            (name, value): [0.0] * (len(_BUCKETS) + 2)
            for name, (_, _, values) in HISTOGRAMS.items()
            for value in values
        }  # how many were in each bucket, in none of them, and the sum of seconds
        self._open: set[Session] = set()

    def count(self, name: str, value: str = "", by: int = 1) -> None:
        """Add to a counter of that name and value of its label."""
        with self._lock:
            self._counts[name, value] += by

    @contextlib.contextmanager
    def timed(self, name: str, value: str = "") -> Iterator[None]:
        """Measure how long the block takes, however it ends."""
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            with self._lock:
                times = self._times[name, value]
                times[bisect.bisect_left(_BUCKETS, seconds)] += 1
                times[-1] += seconds

    def opened(self, session: Session) -> None:
        """Count the session's bytes, too, until it has ended."""
        with self._lock:
            self._open.add(session)

    def ended(self, session: Session, end: End) -> None:
        """Keep what the session came to."""
        with self._lock:
            self._open.discard(session)
            self._counts["sessions_total", end_label(end)] += 1
            _add_traffic(self._counts, session)

    def text(self, **gauges: float) -> str:
        """All of it in the text format 0.0.4."""
        with self._lock:
            counts = dict(self._counts)
            times = {key: list(values) for key, values in self._times.items()}
            for session in self._open:
                _add_traffic(counts, session)
        lines = _head("build_info", "gauge", "The version that runs.")
        lines.append(f"{_sample('build_info', version=__version__, python=platform.python_version())} 1")
        for name, meaning in GAUGES.items():
            lines += [*_head(name, "gauge", meaning), f"{_sample(name)} {float(gauges[name])}"]
        for name, (meaning, label, values) in COUNTERS.items():
            lines += _head(name, "counter", meaning)
            lines += [f"{_sample(name, **{label: value})} {counts[name, value]}" for value in values]
        for name, (meaning, label, values) in HISTOGRAMS.items():
            lines += _head(name, "histogram", meaning)
            for value in values:
                lines += _histogram(name, {label: value}, times[name, value])
        return "\n".join(lines)


def _add_traffic(counts: dict[tuple[str, str], float], session: Session) -> None:
    traffic = session.traffic()
    counts["bytes_total", "in"] += traffic.typed
    counts["bytes_total", "out"] += traffic.printed
    counts["recorded_bytes_total", ""] += traffic.recorded


def _head(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP jumpserver_{name} {meaning}", f"# TYPE jumpserver_{name} {kind}"]


def _sample(name: str, **labels: str) -> str:
    """A series' name; labels without a name are left out."""
    inner = ",".join(f'{label}="{value}"' for label, value in labels.items() if label)
    return f"jumpserver_{name}{{{inner}}}" if inner else f"jumpserver_{name}"


def _histogram(name: str, labels: Mapping[str, str], times: list[float]) -> list[str]:
    *counts, total = times
    upto = list(itertools.accumulate(counts))
    bounds = [*map(str, _BUCKETS), "+Inf"]
    lines = [f"{_sample(f'{name}_bucket', **labels, le=bound)} {number}" for bound, number in zip(bounds, upto)]
    return [*lines, f"{_sample(f'{name}_count', **labels)} {upto[-1]}", f"{_sample(f'{name}_sum', **labels)} {total}"]


# -- the browser's socket ---------------------------------------------------------------------------------------------

SUBPROTOCOL = "jumpserver.v1"
LIVE_SUBPROTOCOL = "v2.asciicast"  # asciinema-player's name for it
PING_SECONDS = 25.0
SEND_TIMEOUT_SECONDS = 30  # a browser that takes nothing for so long is gone
CLOSE_TIMEOUT_SECONDS = 2.0  # for the browser's answer to a close frame
MESSAGE_LIMIT_BYTES = 1 << 20
UNSENT_LIMIT_BYTES = 1 << 17  # in the kernel, of what the network does not take yet
_TEXT_FRAME, _BINARY_FRAME = 0x81, 0x82  # final, opcodes 1 and 2 (RFC 6455, section 5.2)


class _SharedSocket:
    """The socket as simple-websocket sees it: sends whole, one sender at a time; the handler closes it, nobody else."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.lock = threading.RLock()  # guards sends
        self.silent = False  # whether the peer did not answer in time
        self.fileno = sock.fileno
        self.settimeout = sock.settimeout

    def recv(self, size: int) -> bytes:
        try:
            return self._sock.recv(size)
        except TimeoutError:  # TCP_USER_TIMEOUT
            self.silent = True
            raise

    def send(self, data: bytes) -> int:
        self.send_parts(data)
        return len(data)

    def send_parts(self, *parts: bytes) -> None:
        with self.lock:
            try:
                sent = self._sock.sendmsg(parts)
                if sent < sum(map(len, parts)):
                    self._sock.sendall(memoryview(b"".join(parts))[sent:])
            except OSError as exc:
                self.silent = self.silent or isinstance(exc, (BlockingIOError, TimeoutError))  # SO_SNDTIMEO
                self.close()  # part of a frame may be out: nothing can follow it
                raise

    def writable(self) -> bool:
        with contextlib.suppress(OSError, ValueError):  # closed by its handler
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            return bool(poll.poll(0))
        return False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


class _NoThread:
    """In place of the thread that simple-websocket would start: the connection's own runs its loop."""

    name = ""

    def __init__(self, target: Callable[[], None]) -> None:
        pass

    def start(self) -> None:
        pass


class BrowserGone(Exception):
    """The browser's connection has ended."""


class BrowserSocket(simple_websocket.Server):  # type: ignore[misc]
    """The server's end of a browser's WebSocket, made safe for two threads: one receives, in ``run``; any sends."""

    def __init__(self, sock: socket.socket, key: str, subprotocol: str, remote_addr: str) -> None:
        """Answer the upgrade request whose Sec-WebSocket-Key is ``key``. Raises OSError."""
        self.session: Session | None = None  # whom its messages are for
        self.window = Window(0, False)  # of its session's; only that changes it
        self.greeted = False
        self.shown_secret = b""  # digest of the secret that it resumed with; b"" once it has the next
        self._shared = _SharedSocket(sock)
        self._early: list[str | bytes] = []  # messages that came before there was a session
        self.connected = False
        self.over = threading.Event()
        self.remote_addr = remote_addr
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LIMIT_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # for a network that falls silent and a browser that takes nothing
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SEND_TIMEOUT_SECONDS * 1000)
        else:  # the next best, which also drops a browser that takes only a little in that time
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_SECONDS, 0))
        # Only what is needed is passed on: no extension (compression costs far more than it saves here).
        environ = {
            "werkzeug.socket": self._shared,
            "HTTP_HOST": "jumpserver",
            "HTTP_CONNECTION": "Upgrade",
            "HTTP_UPGRADE": "websocket",
            "HTTP_SEC_WEBSOCKET_KEY": key,
            "HTTP_SEC_WEBSOCKET_VERSION": "13",
            **({"HTTP_SEC_WEBSOCKET_PROTOCOL": subprotocol} if subprotocol else {}),
        }
        super().__init__(
            environ,
            subprotocols=[subprotocol],
            receive_bytes=1 << 16,
            ping_interval=PING_SECONDS,
            max_message_size=MESSAGE_LIMIT_BYTES,
            thread_class=_NoThread,
        )
        # In place of a list without a bound: hands each message on at once. While that blocks, the sender has to wait.
        self.input_buffer = types.SimpleNamespace(append=self._deliver)

    @property
    def v1(self) -> bool:
        """Whether it speaks ``jumpserver.v1``; else it is a client of the original."""
        return bool(self.subprotocol == SUBPROTOCOL)

    # The connection's thread.

    def first_message(self, seconds: float) -> str | bytes | None:
        """The first message if it comes within ``seconds``. Only before ``run``."""
        self._receive(seconds, lambda: bool(self._early))
        return self._early.pop(0) if self._early else None

    def _receive(self, seconds: float, enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        try:
            while self.connected and not enough():
                self._shared.settimeout(max(0.001, deadline - time.monotonic()))
                self._take()
            self._shared.settimeout(None)
        except (OSError, LocalProtocolError):
            self.connected = False

    def _take(self) -> None:
        """Receive once, and answer what has to be answered. Raises OSError and LocalProtocolError."""
        data = self._shared.recv(self.receive_bytes)
        self.ws.receive_data(data or None)
        self.connected = bool(self._handle_events() and data)

    def run(self) -> None:
        """Receive until the connection ends; the session's ``on_message`` and ``left`` are called here."""
        assert self.session is not None  # noqa: S101
        try:
            for message in self._early:
                self.session.on_message(self, message)
            with selectors.DefaultSelector() as selector:  # simple-websocket does not close its own on every way out
                self.selector_class = lambda: selector
                self._thread()
        except Exception:
            self.session.fault()
        finally:  # simple-websocket does not clear ``connected`` on every way out
            self.connected = False
            self.abort()
            self.session.left(self)
            self.over.set()

    def _deliver(self, message: str | bytes) -> None:
        self.pong_received = True  # a message proves life as well; after a wait the pong may be unread yet
        if self.session is None:
            self._early.append(message)
            return
        self.session.on_message(self, message)
        while not self.session.wait_for_room(PING_SECONDS):
            self.sock.send(self.ws.send(Ping()))  # nothing is read meanwhile: only a send finds out who has left

    def close(self, reason: int | None = None, message: str | None = None) -> None:
        """Called by simple-websocket when a ping was not answered."""
        self._shared.silent = True
        super().close(reason, message)

    @property
    def is_unloaded(self) -> bool:
        """Whether the page went away by itself: its tab was closed, or reloaded (close code 1001)."""
        return bool(self.close_reason == GOING_AWAY)

    def why_ended(self) -> End:
        """Why the connection is no more."""
        if self.incoming_message_len > MESSAGE_LIMIT_BYTES:
            return MESSAGE_TOO_BIG
        if self.v1 and self.close_reason == NORMAL:
            return BROWSER_CLOSED
        return BROWSER_SILENT if self._shared.silent else BROWSER_LEFT

    # Any thread.

    def send(self, data: bytes) -> None:
        """Send output. Blocks while the browser takes nothing. Raises BrowserGone."""
        with self._sending():  # wsproto would copy all of it, and once more to join it with the head
            self._shared.send_parts(frame_head(_BINARY_FRAME, len(data)), data)

    def send_json(self, **values: object) -> None:
        """Send a text message, to clients of ``jumpserver.v1`` only: the original's take none. As ``send``."""
        if self.v1:
            with self._sending():
                super().send(json.dumps(values))

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        try:
            with self._shared.lock:
                if not self.connected or self.ws.state is not ConnectionState.OPEN:
                    raise BrowserGone
                yield
        except (OSError, simple_websocket.ConnectionClosed, LocalProtocolError):
            raise BrowserGone from None

    def _send_close(self, code: int, reason: str) -> None:
        # wsproto cuts the reason at 123 bytes of UTF-8 (RFC 6455, section 5.5).
        with self._sending():
            self.sock.send(self.ws.send(CloseConnection(code, reason)))

    def dismiss(self, code: int, reason: str, **values: object) -> None:
        """Send last words and a close frame without waiting; a browser that takes nothing is dropped."""
        if self._shared.writable():
            with contextlib.suppress(BrowserGone):
                self.send_json(**values)
                self._send_close(code, reason)
        else:
            self.abort()

    def finish(self, code: int, reason: str) -> None:
        """Send a close frame and wait for the answer, so that all arrives: 2 s after each progress."""
        with contextlib.suppress(BrowserGone):
            self._send_close(code, reason)
            if self.session is None:  # then this is the connection's thread
                self._receive(CLOSE_TIMEOUT_SECONDS, lambda: False)
            else:
                drawn = -1
                while not self.over.wait(CLOSE_TIMEOUT_SECONDS) and drawn < self.window.drawn:
                    drawn = self.window.drawn
        self.abort()
        if self.session is not None:
            self.over.wait()

    def abort(self) -> None:
        """Drop the connection: a blocked send raises, ``run`` returns."""
        self._shared.close()


def frame_head(first: int, size: int) -> bytes:
    """What stands before the payload in a server's frame (RFC 6455, section 5.2)."""
    if size < 126:
        return bytes((first, size))
    return struct.pack("!BBH", first, 126, size) if size < 1 << 16 else struct.pack("!BBQ", first, 127, size)


class WatcherSocket(BrowserSocket):
    """Of one who watches a session. Used by its connection's thread alone; what it is told is passed over."""

    def __init__(self, sock: socket.socket, key: str, subprotocol: str, remote_addr: str) -> None:
        super().__init__(sock, key, subprotocol, remote_addr)
        self._ping_at = time.monotonic() + PING_SECONDS

    def _deliver(self, message: str | bytes) -> None:
        self.pong_received = True

    def send_texts(self, texts: Iterable[bytes]) -> None:
        """Send a message for each, which must be UTF-8. Blocks while the browser takes nothing. Raises BrowserGone."""
        with self._sending():
            self._shared.send(b"".join(part for text in texts for part in (frame_head(_TEXT_FRAME, len(text)), text)))

    def listen(self, seconds: float) -> None:
        """Wait, and meanwhile answer pings and a close frame, and send pings. Raises BrowserGone."""
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0 and _is_readable(self._shared, left):
                self._take()
                if not self.connected:
                    raise BrowserGone
            if time.monotonic() >= self._ping_at:
                self._ping()
        except (OSError, LocalProtocolError):
            raise BrowserGone from None

    def _ping(self) -> None:
        if not self.pong_received:
            raise BrowserGone
        self.pong_received = False
        self._ping_at = time.monotonic() + PING_SECONDS
        self.sock.send(self.ws.send(Ping()))


# -- sessions ---------------------------------------------------------------------------------------------------------

FIRST_SIZE_SECONDS = 1.0
DEFAULT_SIZE = (80, 24)
COLS_LIMIT, ROWS_LIMIT = 1000, 500  # asciinema-player in Chromium plays it with a colour of its own for each cell
OPEN_TIMEOUT_SECONDS = 15.0  # a credential plugin included
CHOICE_SECONDS = 60  # for the user to choose a container
LEAVE_SECONDS = 1.0  # for a shell to go when it is left
HANG_UP_TIMEOUT_SECONDS = 5.0
STOP_SECONDS = 20.0  # for a clean end of the server
STUCK_SECONDS = 10.0  # after which a thread that should have gone round is taken for stuck
_WARNINGS = (600.0, 300.0, 120.0, 60.0, 30.0, 10.0)  # seconds before the end of a drain
WHY_TIMEOUT_SECONDS = 2.0
INPUT_LIMIT_BYTES = 1 << 20  # typed and not yet taken by the pod
RESUME_SECONDS = 10.0  # for the first message of a browser that comes back
RELOAD_SECONDS = 15.0  # after a close frame 1001: a page that is reloaded, or a tab that was closed
WINDOW_SECONDS = 0.25  # of output on its way to a page
WINDOW_MINIMUM_BYTES, WINDOW_MAXIMUM_BYTES = 1 << 17, 1 << 22
KEPT_BYTES = 1 << 17  # of output in memory, to be shown again; memory for a whole window would never be in the cache
AHEAD_BYTES = 1 << 24  # read of the pod for a browser that is away
INTERRUPT_SECONDS = 2.0  # after an interrupt key, in which output that waits is caught up with
CATCH_UP_PAUSE_SECONDS = 0.1  # of the pod, after an interrupted flood
CATCH_UP_SECONDS, CATCH_UP_BYTES = 5.0, 1 << 26
TAIL_BYTES = 1 << 12  # of it that is shown
_RATE_SECONDS = 0.05  # over which the drawing is measured, or longer
_PIECE_BYTES = 1 << 16
_MARKS, _MARK_BYTES = 1024, 1 << 17  # more than can be read ahead or skipped
_SECRETS_LIMIT = 4
WARNING_SECONDS = 60  # before a limit ends a session
_WARNINGS_OF = {IDLE: "nothing was typed for a while", LASTED_TOO_LONG: LASTED_TOO_LONG.reason}
_ANNOUNCE_SECONDS = 60.0  # in which who comes back to watch is not announced again
_NAME_CHARACTERS = 100  # of a user's name in an announcement
_POSITION_LIMIT = 1 << 53  # what a page's numbers can hold
_INTERRUPTS = (b"\x03", b"\x1c", b"\x1a")  # Ctrl-C, Ctrl-\ and Ctrl-Z
_ALTERNATE_SCREEN = re.compile(rb"\x1b\[\?(?:[0-9]{1,5};){0,8}(?:1049|1047|47)(?:;[0-9]{1,5}){0,8}([hl])")

Size = tuple[int, int]  # columns, rows


class Window:
    """How much output may be on its way to a page and not drawn yet: as much as it draws in 250 ms.

    Positions count the bytes of the session's output. The output thread sends, the browser's thread acknowledges.
    """

    def __init__(self, position: int, acknowledged: bool) -> None:
        """``acknowledged``: whether the client says what it has drawn; those of the original do not."""
        self.sent = self.drawn = position
        self._acknowledged = acknowledged
        self.size = WINDOW_MINIMUM_BYTES
        self._told = self._every
        self._since = (time.monotonic(), position, False)  # where the measuring began, and whether it was full then

    def is_full(self) -> bool:
        """Whether nothing more may be sent now."""
        return self.sent - self.drawn >= self.size

    @property
    def _every(self) -> int:
        return self.size // 4

    def news(self) -> int:
        """After how many bytes the page is to acknowledge from now on; 0 when that is about what it knows."""
        every = self._every
        if self._told / 2 < every < self._told * 2:
            return 0
        self._told = every
        return every

    def send(self, size: int) -> None:
        """So much more is on its way."""
        self.sent += size
        if not self._acknowledged:
            self.drawn = self.sent

    def skip(self, position: int) -> None:
        """What is between is not sent: it takes no room."""
        self.sent = self.drawn = position

    def acknowledge(self, position: int) -> None:
        """All up to there is drawn."""
        if not self.drawn < position <= self.sent:
            return
        is_full = self.is_full()
        self.drawn = position
        (then, start, was_full), now = self._since, time.monotonic()
        if now - then < _RATE_SECONDS:
            return
        size = int((position - start) / (now - then) * WINDOW_SECONDS)
        if size > self.size or (was_full and is_full):  # else the pod may have been slower than the page
            self.size = max(WINDOW_MINIMUM_BYTES, min(size, WINDOW_MAXIMUM_BYTES))
        self._since = (now, position, is_full)


class Output:
    """What the user is shown, as one stream of bytes: recorded first, then there until the page has drawn it.

    The last of it is in memory, all of it in the recording. The output thread's.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.end = 0  # bytes so far
        self.full_screen = False  # whether a program has the alternate screen on
        self.sha256 = ""  # of the recording, once it is closed
        self._newest = b""
        self._kept: collections.deque[bytes | bytearray] = collections.deque()  # pieces, the last up to the end
        self._kept_bytes = 0
        self._marks = collections.deque([(0, recorder.bytes_written)], _MARKS)  # positions, and where the file has them

    def add(self, data: bytes, *, final: bool = False) -> None:
        """Record what was printed; what of it may now be shown is there to be sent. Raises RecordError."""
        offset = self.recorder.bytes_written
        self._newest = self.recorder.output(data, final=final)
        if self._newest:
            if self.end - self._marks[-1][0] >= _MARK_BYTES:
                self._marks.append((self.end, offset))
            self._look_for_full_screen(self._newest)
            self._keep(self._newest)
        self.end += len(self._newest)

    def _keep(self, data: bytes) -> None:
        if len(data) >= _PIECE_BYTES:
            self._kept.append(data)
        else:  # joined: there may be many small ones
            if not self._kept or len(self._kept[-1]) >= _PIECE_BYTES:
                self._kept.append(bytearray())
            self._kept[-1] += data
        self._kept_bytes += len(data)
        while self._kept_bytes > KEPT_BYTES + len(self._kept[0]):
            self._kept_bytes -= len(self._kept.popleft())

    def _look_for_full_screen(self, data: bytes) -> None:
        if b"?" in data and b"\x1b[?" in data:  # the first is many times as fast, and mostly enough
            for match in _ALTERNATE_SCREEN.finditer(data):
                self.full_screen = match[1] == b"h"

    @property
    def oldest(self) -> int:
        """The position from which on it can still be had."""
        return self._marks[0][0]

    def since(self, position: int) -> bytes:
        """A piece of what follows that position. Raises RecordError."""
        if position == self.end - len(self._newest):
            return self._newest
        start = self.end - self._kept_bytes
        if position >= start:
            for kept in self._kept:
                if position < start + len(kept):
                    return bytes(kept[position - start :])
                start += len(kept)
            return b""
        start, offset = next(mark for mark in reversed(self._marks) if mark[0] <= position)
        pieces = []
        for piece in recorded_output(self.recorder.path, offset):
            pieces.append(piece[max(0, position - start) :])
            start += len(piece)
            if start - position >= _PIECE_BYTES:
                break
        return b"".join(pieces)

    def tail(self) -> int:
        """The position at which the last few KiB begin, at the start of a line if they have one."""
        last = b"".join(self._kept)[-TAIL_BYTES:]
        return self.end - len(last) + last.find(b"\n") + 1

    def forget(self, position: int) -> None:
        """All up to there is drawn: it needs not be in memory."""
        while self._kept and position >= self.end - self._kept_bytes + len(self._kept[0]):
            self._kept_bytes -= len(self._kept.popleft())

    def close(self) -> None:
        """Raises RecordError."""
        self.sha256 = self.recorder.close()


class Session:
    """One terminal: owns the pod's side and the recording; a browser is attached to it, and may be replaced.

    The output thread opens the pod, shows what it prints, and ends it all. Of what may be empty, ``_output`` is there
    from the recording's start on, ``_info``, which is all that is known at the login, from the login on, and ``_shell``
    once the pod is open.
    """

    def __init__(self, server: JumpServer, session_id: str, auth: TokenAuthData, remote_addr: str) -> None:
        self.id = session_id
        self.auth = auth
        self.pod = (auth.cluster, auth.namespace, auth.pod_name)  # as the token names it
        self._server = server
        self._config = server.config
        self._max_duration = _lowest(self._config.Limits.max_duration, auth.max_duration)
        self._idle_timeout = _lowest(self._config.Limits.idle_timeout, auth.idle_timeout)
        self._began = self._typed_at = time.monotonic()
        self._warned: dict[End, float] = {}  # of which end, and since when its time runs; the clock's
        self._remote_addr = remote_addr
        self._changed = threading.Condition()  # guards all below; no I/O under it
        self._end: End | None = None
        self._browser: BrowserSocket | None = None  # None: detached
        self._waits_until = math.inf  # monotonic: when the grace of a detached session is over
        self._secrets: dict[bytes, None] = {}  # digests of those with which a page may resume now, oldest first
        self._shell: Shell | None = None
        self._hang_up: HangUp | None = None  # where the pod has a program for it
        self._early: list[bytes | Size] = []  # what came before the pod was open
        self._choices: tuple[str, ...] = ()  # the containers of which the user is asked to choose one
        self._chosen = ""
        self._words: collections.deque[str] = collections.deque(maxlen=8)  # for the user, not told yet
        self._announced: dict[str, float] = {}  # who watches, and when (monotonic) that was said last
        # The output thread's, and so without a lock; others only look.
        self._output: Output | None = None
        self._info: SessionInfo | None = None
        self._login_time = 0.0  # monotonic
        self._drawn = 0  # position up to which some page has drawn
        self._skipped = (0, 0)  # positions between which nothing is shown
        self._bytes_out = 0
        self._is_held_up = False  # output waits for the page to draw
        self._told_of_size = False  # that the recording will soon be as large as it may be
        # The browser's thread's.
        self._bytes_in = 0
        self._interrupted_until = 0.0  # monotonic: for so long after a key for that a flood is caught up with

    def start(self, browser: BrowserSocket, size: Size | None) -> None:
        """Attach the first browser, and begin. The connection's thread. Raises Refused when no thread can be had."""
        browser.session = self
        self._browser = browser
        browser.window = Window(0, browser.v1)
        thread = threading.Thread(target=self._run, args=(size,), name=f"{self.id}-output", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:
            browser.session = None
            self._server.sessions.release(self.id)
            log_event("error", session=self.id, error=exc)
            raise Refused(SERVER_FAULT) from None

    # The output thread.

    def _run(self, size: Size | None) -> None:
        """Live the whole session; returns when nothing of it is left."""
        try:
            size = size or self._first_size()
            target = self._find_target()
            self._output = self._start_recording(*size)
            self._login(self._output, target)
            shell = self._open_pod(target, size)
            self._relay(shell.pod, self._output)
        except RecordError as exc:
            self._recording_failed(exc)
        except Refused as exc:
            self.stop(exc.end)
        except PodLost as exc:
            self.stop(End(self._why_lost() or str(exc), CLUSTER))
        except ExecError as exc:
            self.stop(End(str(exc), CLUSTER))
        except Exception:
            self.fault()
        finally:
            self._finish()

    def _first_size(self) -> Size:
        """The size that the browser sends within a second; of several at once the last one."""

        def sizes() -> list[Size]:
            return [item for item in self._early if not isinstance(item, bytes)]

        with self._changed:
            self._changed.wait_for(lambda: self._end is not None or sizes(), FIRST_SIZE_SECONDS)
            found = sizes()
            self._early = [item for item in self._early if isinstance(item, bytes)]
            return found[-1] if found else DEFAULT_SIZE

    def _find_target(self) -> Target:
        """Read the kubeconfig. From here on the namespace is the one that is really used."""
        cluster = load_cluster(self._config, self.auth)
        self.auth = dataclasses.replace(self.auth, namespace=self.auth.namespace or cluster.namespace)
        return Target(cluster, self.auth.namespace, self.auth.pod_name, self.auth.container_name)

    def _start_recording(self, cols: int, rows: int) -> Output:
        self._server.folder.check()
        path = recording_path(self._config.record_path.absolute(), self.id)
        title = printable(f"{self.auth.user}@{self.auth.place}")
        known = {"cluster": self.auth.cluster, **mark_of(self._config, self.auth.cluster, self.auth)}
        place = {name: printable(value) for name, value in known.items() if value}
        commands = self._config.Record.commands
        folder = self._server.folder
        return Output(Recorder(path, cols, rows, title=title, place=place, folder=folder, commands=commands))

    def _login(self, output: Output, target: Target) -> None:
        cluster = self.auth.cluster or target.cluster.host
        file = str(output.recorder.path)
        server = self._server.hooks.ledger.server
        info = SessionInfo(self.id, file, self.auth, self._remote_addr, time.time(), cluster=cluster, server=server)
        self._login_time = time.monotonic()
        hook = "the ledger"
        try:
            with self._server.metrics.timed("ledger_seconds"):
                self._server.hooks.ledger.login(info)
            self._info = info
            self._server.metrics.opened(self)
            log_event("login", **self._log_fields(), cluster=cluster, remote=self._remote_addr, file=file)
            hook = "on_login"
            with self._server.metrics.timed("hook_seconds", "on_login"):
                self._server.hooks.on_login(info)
        except Exception as exc:
            raise Refused(hook_failure(exc, hook, self.id)) from None

    def _open_pod(self, target: Target, size: Size) -> Shell:
        with self._changed:
            if self._end is not None:  # nothing must start in a pod for a browser that has left
                raise Refused(self._end)
        try:
            shell = self._open_shell(target, size)
        except SeveralContainers as exc:
            shell = self._open_shell(dataclasses.replace(target, container=self._ask_which(exc)), size)
        self.auth = dataclasses.replace(self.auth, container_name=shell.target.container)
        self._hang_up = HangUp(shell.target, self.id, shell.program) if shell.program else None
        while not self._has_taken_over(shell):
            self._pass_on(shell.pod, self._early.pop(0))
        return shell

    def _open_shell(self, target: Target, size: Size) -> Shell:
        with self._server.metrics.timed("cluster_open_seconds"):
            return open_shell(
                target,
                self.id,
                self.auth.command,
                self.auth.directory,
                size,
                timeout=OPEN_TIMEOUT_SECONDS,
                reports=self._config.Record.commands,
            )

    def _ask_which(self, several: SeveralContainers) -> str:
        """Let the user choose one of the pod's containers. Raises ``several`` where nobody does."""
        browser = self._browser
        if browser is None or not browser.v1:
            raise several
        with self._changed:
            self._choices = several.names
        with contextlib.suppress(BrowserGone):  # its thread ends the session
            browser.send_json(type="choose", containers=several.names, seconds=CHOICE_SECONDS, **self._place())
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None or self._chosen, CHOICE_SECONDS)
            self._choices = ()
            if self._end is not None:
                raise Refused(self._end)
            if not self._chosen:
                raise several
        self._note("container", f"container {self._chosen} chosen", container=self._chosen)
        return self._chosen

    def _has_taken_over(self, shell: Shell) -> bool:
        """Whether all that came early is on its way: then the browser's thread passes on by itself what it gets."""
        with self._changed:
            self._shell = None if self._early else shell
            self._changed.notify_all()
            return not self._early

    def _relay(self, pod: PodExec, output: Output) -> None:
        """Show what the pod prints until one of the two ends."""
        if self.auth.message:
            output.add(f"{printable(self.auth.message)}\r\n".encode())
        while self._end is None:
            may_read = self._show(pod, output)
            if not may_read and self._wants_to_catch_up(output):
                self._catch_up(pod, output)
                continue
            waits = self._waits_until - time.monotonic()
            if waits <= 0:
                self._end_waiting()
            if not self._read(pod, output, min(waits, KEEP_ALIVE_SECONDS), may_read=may_read) and pod.over:
                break
        if pod.exit is not None:
            self.stop(self._exit_end(pod.exit))

    def _end_waiting(self) -> None:
        """The grace is over, unless a browser has come back at the last moment."""
        with self._changed:
            if time.monotonic() >= self._waits_until:
                self.stop(BROWSER_LEFT)

    def _show(self, pod: PodExec, output: Output) -> bool:
        """Send the browser what it has not got, as far as its window allows. Returns whether more may be read."""
        browser = self._browser
        try:
            if browser is None:
                return output.end - self._drawn < AHEAD_BYTES
            if not browser.greeted:
                self._greet(browser, output)
            while self._words:
                self._tell(browser, output, self._words.popleft())
            output.forget(browser.window.drawn)
            every = browser.window.news()
            if every:
                browser.send_json(type="ack", every=every)
            return self._send_output(browser, output, pod)
        except BrowserGone:
            if browser is not None:
                self._lose(browser)
            return False

    def _lose(self, browser: BrowserSocket) -> None:
        browser.abort()
        browser.over.wait(CLOSE_TIMEOUT_SECONDS)  # its thread knows best why, and may be about to say so
        self.left(browser)

    def _send_output(self, browser: BrowserSocket, output: Output, pod: PodExec | None) -> bool:
        """Send what the browser has not got, within its window. Returns whether that is all. Without a pod: all."""
        window = browser.window
        begin, end = self._skipped
        while window.sent < output.end:
            if begin <= window.sent < end:
                skipped = end - window.sent
                window.skip(end)  # before the sending: the answer may be here before that returns
                browser.send_json(type="skipped", bytes=skipped)
            if pod is not None and self._must_wait(window, pod):
                return False
            piece = output.since(window.sent)
            window.send(len(piece))
            browser.send(piece)
        return True

    def _must_wait(self, window: Window, pod: PodExec) -> bool:
        """Whether the page has to draw first. Not where input is full: the pod may want to be read before."""
        self._is_held_up = window.is_full()
        if self._is_held_up:  # and looked at again: from here on an acknowledgement wakes this thread
            self._is_held_up = window.is_full() and pod.wait_for_room(INPUT_LIMIT_BYTES, 0)
        return self._is_held_up

    def _greet(self, browser: BrowserSocket, output: Output) -> None:
        grace = self._config.Server.resume_grace
        secret = (
            {"url": f"ssh?resume={self._server.resume_name(self.id)}", "secret": self._new_secret(), "grace": grace}
            if grace
            else None
        )
        browser.send_json(
            type="session",
            id=self.id,
            container=self.auth.container_name,
            **self._place(),
            user=self.auth.user,
            reusable=self._token_opens_another(),
            position=browser.window.sent,
            resume=secret,
        )
        browser.greeted = True

    def _place(self) -> dict[str, str]:
        """Where the shell is, or is to be, as a page shows it."""
        auth, info = self.auth, self._info
        cluster = info.cluster if info else ""
        mark = mark_of(self._config, auth.cluster, auth)
        return {"namespace": auth.namespace, "pod": auth.pod_name, "cluster": cluster, **mark}

    def _new_secret(self) -> str:
        """Make a secret with which a page may resume. Only its digest is kept."""
        secret = secrets.token_urlsafe(32)
        with self._changed:
            self._secrets[_digest(secret)] = None
            while len(self._secrets) > _SECRETS_LIMIT:
                del self._secrets[next(iter(self._secrets))]
        return secret

    def _tell(self, browser: BrowserSocket, output: Output, text: str) -> None:
        """Beside the terminal where the client can show that, else in it: recorded first, as all that is shown."""
        if browser.v1:
            browser.send_json(type="notice", text=text)
        else:
            output.add(f"\r\n[jumpserver] {printable(text)}\r\n".encode())

    def _wants_to_catch_up(self, output: Output) -> bool:
        """Whether output that waits is of no use any more: its program was interrupted, and draws no screen."""
        interrupted = time.monotonic() < self._interrupted_until
        return interrupted and self._browser is not None and self._browser.v1 and not output.full_screen

    def _catch_up(self, pod: PodExec, output: Output) -> None:
        """After an interrupt, read a flood to its end at full speed, and show only that end; all of it is recorded."""
        browser = self._browser
        if browser is None:
            return
        start = browser.window.sent
        now = time.monotonic()
        deadline, quiet_at = now + CATCH_UP_SECONDS, now + CATCH_UP_PAUSE_SECONDS
        while self._end is None and not pod.over and output.end - start < CATCH_UP_BYTES:
            left = min(deadline, quiet_at) - time.monotonic()
            if left <= 0:
                break
            if self._read(pod, output, left):
                quiet_at = time.monotonic() + CATCH_UP_PAUSE_SECONDS
        tail = output.tail()
        if tail - start > browser.window.size:
            self._skipped = (start, tail)
            output.recorder.marker(f"{tail - start} bytes not shown to the user")

    def _read(self, pod: PodExec, output: Output, timeout: float, *, may_read: bool = True) -> int:
        """Read and record what the pod prints; returns how much."""
        printed = pod.read(timeout, output=may_read)
        if printed:
            self._bytes_out += len(printed)
            output.add(printed)
            self._keep_commands(output)
            self._limit_recording(output)
        return len(printed)

    def _keep_commands(self, output: Output) -> None:
        """Hand those that are done over to the keeper."""
        done = output.recorder.take_commands()
        if done:
            self._server.keeper.add_commands(_commands(self.id, done))

    def _limit_recording(self, output: Output) -> None:
        """Warn the user at 90 % of what may be recorded, and end the session at all of it. Any thread."""
        limit, size = self._config.Record.max_bytes, output.recorder.bytes_written
        if not limit or size < 0.9 * limit:
            return
        if size >= limit:
            self.stop(RECORDING_TOO_BIG)
        elif not self._told_of_size:
            self._told_of_size = True
            self.notify("the recording of this session is at 90 % of its largest size, at which the session ends")

    def _exit_end(self, status: ExitStatus) -> End:
        code = status.code
        if code is None:
            return End(status.message, CLUSTER)
        if code == _KILLED:  # by the user, or with the container: the cluster may know
            why = self._why_lost()
            if why:
                return End(why, CLUSTER, code)
        reason = "the shell has ended" if code == 0 else f"the shell has ended with exit code {code}"
        return End(reason, NORMAL, code, notice=False)

    def _why_lost(self) -> str:
        if self._shell is None or self._info is None:
            return ""
        return why_lost(self._shell.target, self._info.login_at, timeout=WHY_TIMEOUT_SECONDS)

    def _finish(self) -> None:
        """Tell the browser, free everything, and say goodbye to the hook. Every step is tried."""
        end = self.stop(SERVER_FAULT)  # which counts only if nothing else has ended the session
        with contextlib.ExitStack() as steps:  # from the last one to the first
            steps.callback(self._server.sessions.release, self.id)
            steps.callback(self._close_pod)
            steps.callback(self._log_out, end)
            steps.callback(self._close_recording)
            steps.callback(self._say_goodbye, end)

    def _say_goodbye(self, end: End) -> None:
        """Show what is left, and the reason; close the browser's connection."""
        notice = words = f"\r\n[jumpserver] {printable(end.reason)}\r\n".encode() if end.notice else b""
        output, browser = self._output, self._browser
        if output is not None:
            with contextlib.suppress(RecordError):
                output.add(b"", final=True)
                if words:
                    output.add(words)
                    words = b""
        if browser is None:
            return
        with contextlib.suppress(BrowserGone):
            try:
                if output is not None:
                    self._send_output(browser, output, None)
            except RecordError:  # the file is gone, and so is what the browser has not got yet
                words = notice
            if words:  # of the server's own, which are shown even where nothing can be recorded
                browser.send(words)
            reusable = self._token_opens_another()
            browser.send_json(type="end", reason=end.reason, exit_code=end.exit_code, reusable=reusable)
        browser.finish(end.close_code, end.reason)

    def _token_opens_another(self) -> bool:
        """Whether the session's token can be used again at this moment."""
        expires = self.auth.extra.get("exp")
        return self.auth.reusable and not (isinstance(expires, (int, float)) and expires <= time.time())

    def _close_recording(self) -> None:
        if self._output is None:
            return
        try:
            if self._info is None:
                self._output.recorder.discard()
            else:
                self._output.close()
        except RecordError as exc:
            log_event("error", session=self.id, error=exc)
        if self._info is not None:
            self._keep_commands(self._output)

    def _log_out(self, end: End) -> None:
        """Hand the rest over to the keeper: a hang-up, the ledger, the platform."""
        if self._info is None or self._output is None:
            self._server.metrics.count("refused_total", end_label(end))
            log_event("refusal", **self._log_fields(), remote=self._remote_addr, reason=end.reason)
            return
        self._server.metrics.ended(self, end)
        seconds = time.monotonic() - self._login_time
        info = dataclasses.replace(
            self._info,
            auth=self.auth,
            logout_at=self._info.login_at + seconds,
            reason=end.reason,
            exit_code=end.exit_code,
            bytes_out=self._bytes_out,
            bytes_in=self._bytes_in,
            size=self._output.recorder.bytes_written,
            sha256=self._output.sha256,
        )
        log_event(
            "logout",
            **self._log_fields(),
            seconds=seconds,
            bytes_out=info.bytes_out,
            bytes_in=info.bytes_in,
            exit=info.exit_code,
            reason=info.reason,
        )
        self._server.keeper.ended(info, self._hang_up if end.exit_code is None else None)

    def _close_pod(self) -> None:
        """Drop the connection, once the keeper has hung up what is left: the stream is the last way into the pod.

        Where another exec is refused (credentials that have expired), the shell is left by keys over that stream. Not
        before, since keys would also end what a tmux or screen in it is there to keep.
        """
        if self._shell is None:
            return
        pod = self._shell.pod
        if pod.exit is None and self._hang_up is not None:
            self._hang_up.tried.wait(2 * HANG_UP_TIMEOUT_SECONDS)
            if self._hang_up.refused and not self.auth.command:
                pod.leave(LEAVE_SECONDS)
        pod.close()

    def _log_fields(self) -> dict[str, object]:
        return {"session": self.id, "user": self.auth.user, "pod": self.auth.place}

    # The browser's thread.

    def on_message(self, browser: BrowserSocket, message: str | bytes) -> None:
        """Take one message of the browser."""
        try:
            kind, value = parse_message(message)
        except ValueError:
            self.stop(NOT_UNDERSTOOD)
            return
        if kind == "ping":
            with contextlib.suppress(BrowserGone):
                browser.send_json(type="pong")
        elif browser is not self._browser:
            pass  # another page has taken over
        elif kind == "ack":
            self._acknowledge(browser, value)
        elif kind == "input" and value:
            self._typed_at = time.monotonic()
            self._bytes_in += len(value)
            self._pass_on_or_keep(value)
            if any(key in value for key in _INTERRUPTS):
                self._interrupted_until = time.monotonic() + INTERRUPT_SECONDS
                self._wake()
        elif kind == "resize":
            self._pass_on_or_keep(value)
        elif kind == "container":
            self._choose(value)

    def _choose(self, container: str) -> None:
        with self._changed:
            if container in self._choices:
                self._choices, self._chosen = (), container
                self._typed_at = time.monotonic()
                self._changed.notify_all()

    def _acknowledge(self, browser: BrowserSocket, position: int) -> None:
        browser.window.acknowledge(position)
        with self._changed:  # it has the new secret
            self._secrets.pop(browser.shown_secret, None)
        if self._is_held_up:
            self._wake()

    def _pass_on_or_keep(self, item: bytes | Size) -> None:
        with self._changed:
            shell = self._shell
            if shell is None:
                self._early.append(item)
                self._changed.notify_all()
                return
        self._pass_on(shell.pod, item)

    def _pass_on(self, pod: PodExec, item: bytes | Size) -> None:
        """Keys, or a size, which is recorded first. Does not block. A failure ends the session."""
        try:
            self._record(item)
            if isinstance(item, bytes):
                pod.write(item)
            else:
                pod.resize(*item)
        except PodLost:
            pass  # the output thread meets the same end, and may have an exit status for it
        except RecordError as exc:
            if self._end is None:  # else the recording may just be closed
                self._recording_failed(exc)
        except Exception:
            self.fault()

    def _record(self, item: bytes | Size) -> None:
        """Record a size, and keys where that is wanted. Raises RecordError."""
        if self._output is None or (isinstance(item, bytes) and not self._config.Record.input):
            return
        if isinstance(item, bytes):
            self._output.recorder.input(item)
        else:
            self._output.recorder.resize(*item)
        self._limit_recording(self._output)

    def wait_for_room(self, timeout: float) -> bool:
        """Block while the pod takes no input, ``timeout`` seconds at most. Returns whether more may come."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._shell is not None or not self._has_much_early(), timeout):
                return False
            shell = self._shell
        if shell is None or self._end is not None or shell.pod.wait_for_room(INPUT_LIMIT_BYTES, 0):
            return True
        shell.pod.wake()  # the output thread may wait for acknowledgements, which are not received any more
        return shell.pod.wait_for_room(INPUT_LIMIT_BYTES, timeout) or self._end is not None

    def _has_much_early(self) -> bool:
        """Needs the lock."""
        size = sum(64 + len(item) if isinstance(item, bytes) else 64 for item in self._early)
        return self._end is None and size > INPUT_LIMIT_BYTES

    # Moves between the states; any thread.

    def attach(self, browser: BrowserSocket, secret: str, drawn: int, size: Size | None) -> None:
        """Go on with another connection, from the position up to which its page has drawn. Raises Refused."""
        digest = _digest(secret)
        with self._changed:
            if self._end is not None or self._output is None or self._shell is None:
                raise Refused(SESSION_OVER)
            if digest not in self._secrets:
                raise Refused(TAKEN_OVER)
            position = max(self._output.oldest, min(drawn, self._output.end))
            browser.session, browser.window, browser.shown_secret = self, Window(position, True), digest
            before, self._browser = self._browser, browser
            self._waits_until = math.inf
        self._server.metrics.count("resumed_total")
        self._wake()
        if before is not None:
            before.dismiss(TAKEN, TAKEN_OVER.reason, type="taken", secret=self._new_secret())
        self._note("resumed", f"resumed from {browser.remote_addr}", remote=browser.remote_addr)
        if size is not None:
            self._pass_on_or_keep(size)

    def left(self, browser: BrowserSocket) -> None:
        """The browser's connection has ended. Keep the shell for a while if its page may come back, else end."""
        why, grace = browser.why_ended(), self._grace(browser)
        with self._changed:
            if browser is not self._browser:
                return  # another has taken over, or this was told before
            waits = grace > 0 and self._shell is not None and self._end is None
            if waits:
                self._browser = None
                self._drawn = browser.window.drawn
                self._waits_until = time.monotonic() + grace
        if waits:
            self._wake()
            self._note("detached", f"{why.reason}; the shell waits for it", grace=grace, reason=why.reason)
        else:
            self.stop(why)

    def _grace(self, browser: BrowserSocket) -> float:
        """For how many seconds the shell waits for a browser that has left."""
        if not browser.v1 or browser.why_ended() in (BROWSER_CLOSED, MESSAGE_TOO_BIG):
            return 0
        grace = self._config.Server.resume_grace
        return min(grace, RELOAD_SECONDS) if browser.is_unloaded else grace

    def _note(self, event: str, label: str, **values: object) -> None:
        """In the log, in the chain, and as a marker in the recording."""
        log_event(event, session=self.id, **values)
        self._server.notes.add(event, self.id, **values)
        try:
            if self._output is not None:
                self._output.recorder.marker(label)
        except RecordError as exc:
            self._recording_failed(exc)

    def stop(self, end: End) -> End:
        """End the session; the first reason wins and is returned. Does not wait.

        Wakes: the output thread in ``pod.read``; who waits for room for input, the first size or a choice. Not woken,
        but limited: opening the pod (15 s), asking why it was lost (5 s), hooks (5 s a call to the platform), waiting
        for the hang-up (10 s) and sending to the browser (30 s), which both abort() wakes, leaving the shell (1 s).
        """
        with self._changed:
            if self._end is not None:
                return self._end
            self._end = end
            self._changed.notify_all()
        self._wake()
        return end

    # Any thread.

    @property
    def is_detached(self) -> bool:
        """Whether its shell waits for a browser that may come back."""
        return self._browser is None

    def traffic(self) -> Traffic:
        """What went through it until now."""
        return Traffic(self._bytes_in, self._bytes_out, self._output.recorder.bytes_written if self._output else 0)

    def so_far(self) -> SessionInfo | None:
        """What is known of it; None before its shell is open, and once it ends."""
        info, output = self._info, self._output
        if info is None or output is None or self._shell is None or self._end is not None:
            return None
        size = output.recorder.bytes_written
        return dataclasses.replace(info, auth=self.auth, bytes_out=self._bytes_out, bytes_in=self._bytes_in, size=size)

    def as_it_is(self) -> dict[str, object]:
        """What only this server knows of it while it is open, for JSON."""
        traffic = self.traffic()
        return {
            "container_name": self.auth.container_name,
            **mark_of(self._config, self.auth.cluster, self.auth),
            "idle": round(time.monotonic() - self._typed_at, 1),
            "detached": self.is_detached,
            "bytes_in": traffic.typed,
            "bytes_out": traffic.printed,
            "size": traffic.recorded,
        }

    def notify(self, text: str) -> None:
        """Tell the user something, beside the terminal where the client can show it there. Does not block."""
        self._words.append(text)
        self._wake()

    def announce(self, watcher: str) -> None:
        """Tell the user who begins to watch; of one who has come back, not again within a minute. Does not block."""
        now = time.monotonic()
        with self._changed:
            self._announced = {name: at for name, at in self._announced.items() if now - at < _ANNOUNCE_SECONDS}
            is_new = watcher not in self._announced
            self._announced[watcher] = now
        if is_new:
            self.notify(f"{printable(watcher[:_NAME_CHARACTERS]) or 'somebody'} is watching this terminal")

    def tick(self, now: float) -> None:
        """End the session when its time is over, and warn of it before. ``now`` is monotonic. Does not block."""
        for end, limit, since in (
            (LASTED_TOO_LONG, self._max_duration, self._began),
            (IDLE, self._idle_timeout, self._typed_at),
        ):
            left = since + limit - now
            if left <= 0:
                self.stop(end)
            elif left <= min(WARNING_SECONDS, limit / 2) and self._warned.get(end) != since:
                self._warned[end] = since
                self.notify(f"{_WARNINGS_OF[end]}: this terminal ends in {math.ceil(left)} seconds")

    def _wake(self) -> None:
        """Make the output thread look again."""
        shell = self._shell
        if shell is not None:
            shell.pod.wake()

    def abort(self) -> None:
        """Drop the browser's connection: wakes a send to a browser that takes nothing. Wait for no hang-up."""
        if self._hang_up is not None:
            self._hang_up.tried.set()
        browser = self._browser
        if browser is not None:
            browser.abort()

    def _recording_failed(self, exc: RecordError) -> None:
        log_event("error", session=self.id, error=exc)
        self.stop(RECORDING_FAILED)

    def fault(self) -> None:
        """Log the exception that is being handled, and end the session with it: it is this server's fault."""
        exc = sys.exc_info()[1]
        if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
            log_event("error", session=self.id, error=exc.strerror)
            self.stop(NO_DESCRIPTORS)
        else:
            log_fault(traceback.format_exc(), session=self.id)
            self.stop(SERVER_FAULT)


def _commands(session_id: str, done: Iterable[RecordedCommand]) -> list[Command]:
    """A session's commands as the ledger has them."""
    return [Command(session_id, command.seconds, command.text, command.exit_code) for command in done]


def _lowest(*limits: int) -> float:
    """Of limits where 0 is none."""
    return min((limit for limit in limits if limit), default=math.inf)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def terminal_size(cols: int, rows: int) -> Size:
    """The columns and rows that pod and recording get for those of a browser.

    Raises ValueError outside of 1..65535: the cluster must never see it. A large one becomes one that can be replayed.
    """
    encode_resize(cols, rows)
    return min(cols, COLS_LIMIT), min(rows, ROWS_LIMIT)


def parse_message(message: str | bytes) -> tuple[str, Any]:
    """A browser's message as its kind and value: "input" and bytes, "resize" and a size, "ack" and a position, "ping",
    "container" and its name, "resume" and (secret, position, size or None); "" for what can be ignored.

    Raises ValueError for what is not of the form. A size out of range is ignored: the cluster must never see it.
    """
    try:
        values = json.loads(message)
        kind = values["type"]
        if kind == "input":
            return kind, _typed(values["input"], str).encode("utf-8", "replace")
        if kind == "resize":
            size = _size(values)
            return (kind, size) if size else ("", None)
        if kind == "ack":
            return kind, _position(values["drawn"])
        if kind == "container":
            return kind, _typed(values["name"], str)
        if kind == "resume":
            size = _size(values) if "cols" in values else None
            return kind, (_typed(values["secret"], str), _position(values["drawn"]), size)
        return ("ping" if kind == "ping" else ""), None
    except (KeyError, TypeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise ValueError("not a message of this protocol") from exc
    except ValueError:  # a number of thousands of digits
        return "", None


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"not {kind.__name__}")
    return value


def _position(value: Any) -> int:
    return max(0, min(int(_typed(value, int)), _POSITION_LIMIT))


def _size(values: Mapping[str, Any]) -> Size | None:
    try:
        return terminal_size(values["cols"], values["rows"])
    except ValueError:
        return None


def mark_of(config: Config, cluster: str, auth: TokenAuthData) -> dict[str, str]:
    """The word and the colour by which the pages tell this place from others: the token's, else the cluster's."""
    known = config.Clusters.get(cluster, ClusterConfig(Path()))
    return {"label": auth.label or known.label, "colour": auth.colour or known.colour}


def hook_failure(exc: Exception, hook: str, session_id: str, token: str = "") -> End:
    """What the user is told when a hook raised. HookError is logged in a line, the unforeseen with its traceback."""

    def without_token(text: str) -> str:
        return text.replace(token, "[token]") if token else text

    if isinstance(exc, Denied):
        return End(printable(without_token(str(exc))), DENIED)
    if isinstance(exc, HookError):
        log_event("error", session=session_id, hook=hook, error=without_token(str(exc)))
        return LEDGER_FAILED if isinstance(exc, LedgerError) else HOOK_FAILED
    log_fault(without_token(traceback.format_exc()), session=session_id, hook=hook)
    return HOOK_FAILED


class HangUp:
    """The hang-up of one session, for the keeper to call, again and again if need be; the session waits for the first.

    Holds nothing of the session itself: its cluster may be away for hours.
    """

    def __init__(self, target: Target, session_id: str, program: str) -> None:
        self._target = target
        self._session_id = session_id
        self._program = program
        self.tried = threading.Event()
        self.refused = False  # for good

    def __call__(self) -> tuple[int | None, bool]:
        """How many processes were ended in the pod, None when that is not known; and whether to try again. Blocks."""
        told = hang_up(self._target, self._session_id, self._program, timeout=HANG_UP_TIMEOUT_SECONDS)
        self.refused = told.count is None and not told.again
        self.tried.set()
        return told.count, told.again


def load_cluster(config: Config, auth: TokenAuthData) -> Cluster:
    """The cluster of a token: its own kubeconfig, the operator's, or the one that this server runs in.

    Raises KubeconfigError.
    """
    if auth.cluster_file is not None:
        trust = Trust(folder=auth.cluster_file.parent)
    elif auth.cluster_cfg:
        trust = config.trust()
    else:
        return in_cluster()
    return load_kubeconfig(auth.cluster_cfg, auth.context, trust)


class Chores:
    """What the keeper needs of recordings and pods."""

    def __init__(self, config: Config, folder: RecordFolder, metrics: Metrics | None = None) -> None:
        self.config = config  # may be replaced
        self._folder = folder
        self._metrics = metrics or Metrics()

    def timed(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Measure how long the block takes, a hook's call or "ledger"."""
        return self._metrics.timed("ledger_seconds") if what == "ledger" else self._metrics.timed("hook_seconds", what)

    def hung_up(self, count: int | None, again: bool) -> None:
        """A hang-up was tried."""
        result = "again" if again else "unknown" if count is None else "some" if count else "none"
        self._metrics.count("hang_ups_total", result)

    def check(self) -> str:
        """Why no recording can begin now; "" when it can."""
        try:
            self._folder.check()
        except RecordError as exc:
            return str(exc)
        return ""

    def examine(self, info: SessionInfo) -> SessionInfo:
        """Mend a lost session's recording, if it can be written; returns the session with what the recording says."""
        lost = dataclasses.replace(info, logout_at=max(time.time(), info.login_at), bytes_out=None, bytes_in=None)
        try:
            path = find_recording(self.config.record_path, info.filename)
            if path.suffix != PACKED_SUFFIX:
                self._mend(info.session_id, path)
            found = examine(path)
        except RecordError as exc:
            log_event("error", session=info.session_id, error=exc)
            return lost
        logout_at = min(info.login_at + found.seconds, lost.logout_at or info.login_at)
        return dataclasses.replace(lost, logout_at=logout_at, size=found.size, sha256=found.sha256)

    def commands(self, info: SessionInfo) -> list[Command]:
        """What a lost session's recording says of its commands."""
        try:
            path = find_recording(self.config.record_path, info.filename)
            return _commands(info.session_id, recorded_commands(path))
        except RecordError as exc:
            log_event("error", session=info.session_id, error=exc)
            return []

    def _mend(self, session_id: str, path: Path) -> None:
        """Cut the torn last line, and say that the session went on."""
        try:
            log_event("mended", session=session_id, file=path, bytes_cut=repair(path))
            mark_incomplete(path)
        except RecordError as exc:
            log_event("error", session=session_id, error=exc)

    def packs(self) -> bool:
        """Whether finished recordings are to be packed."""
        return self.config.Record.compress

    def pack(self, info: SessionInfo, stopped: Callable[[], bool]) -> bool:
        """Pack a finished recording, unless it could take the space that open sessions need; whether it is done."""
        try:
            path = find_recording(self.config.record_path, info.filename)
        except RecordError:
            return True  # somebody has removed it
        try:
            if path.suffix == PACKED_SUFFIX:
                return True
            return self._folder.free() - path.stat().st_size > self._folder.min_free and pack(path, stopped)
        except (RecordError, OSError) as exc:
            log_event("error", session=info.session_id, error=exc)
            return False

    def hang_up(self, info: SessionInfo) -> tuple[int | None, bool]:
        """Hang up a session of a server that has died: how many processes, and whether to try again."""
        auth = info.auth
        try:
            if auth.cluster:
                file = self.config.Clusters[auth.cluster].kubeconfig
                auth = dataclasses.replace(auth, cluster_cfg=file.read_text("utf-8"), cluster_file=file)
            cluster = load_cluster(self.config, auth)
            target = Target(cluster, auth.namespace, auth.pod_name, auth.container_name)
        except (OSError, ValueError, LookupError, ExecError) as exc:
            log_event("error", session=info.session_id, error=f"cannot be hung up: {type(exc).__name__}: {exc}")
            return None, False
        for program in SHELLS:  # which one it was died with the server
            count, again = HangUp(target, info.session_id, program)()
            if count is not None or again:
                return count, again
        return None, False


_LOGIN_BURST_SECONDS = 5
_LOGIN_CROWDS = 10_000  # remembered at a time


class SessionRegistry:
    """The sessions that are open, and those that are about to be. Any thread."""

    def __init__(self, limit: int, limits: LimitsConfig = LimitsConfig()) -> None:
        self._changed = threading.Condition()  # guards all below; no hook and no I/O under it
        self._limit = limit
        self._limits = limits
        self._sessions: dict[str, Session | None] = {}
        self._closing = False

    def change_limits(self, limit: int, limits: LimitsConfig) -> None:
        """For sessions to come."""
        with self._changed:
            self._limit, self._limits = limit, limits

    def admit(self, session_id: str) -> None:
        """Keep a place, until it is released. Raises Refused when there is none."""
        with self._changed:
            if self._closing:
                raise Refused(SHUTTING_DOWN)
            if len(self._sessions) >= self._limit:
                raise Refused(SERVER_FULL)
            self._sessions[session_id] = None

    def register(self, session: Session) -> None:
        """Put the session in its place. Raises Refused when its user or pod has too many, or the server ends."""
        user = session.auth.user
        with self._changed:
            if self._closing:
                raise Refused(SHUTTING_DOWN)
            others = [other for other in self._sessions.values() if other is not None]
            if user and _is_reached(self._limits.max_sessions_per_user, (user == other.auth.user for other in others)):
                raise Refused(USER_FULL)
            if _is_reached(self._limits.max_sessions_per_pod, (session.pod == other.pod for other in others)):
                raise Refused(POD_FULL)
            self._sessions[session.id] = session

    def release(self, session_id: str) -> None:
        """The session has ended, or was refused."""
        with self._changed:
            self._sessions.pop(session_id, None)
            self._changed.notify_all()

    def find(self, session_id: str) -> Session | None:
        """The open session of that id."""
        with self._changed:
            return self._sessions.get(session_id)

    def all(self) -> list[Session]:
        """Those that are open."""
        with self._changed:
            return [session for session in self._sessions.values() if session is not None]

    def __len__(self) -> int:
        with self._changed:
            return len(self._sessions)

    @property
    def closing(self) -> bool:
        """Whether no more are taken."""
        with self._changed:
            return self._closing

    def refuse_more(self) -> None:
        """Take no more; those that are open go on."""
        with self._changed:
            self._closing = True

    def close(self, end: End) -> None:
        """Take no more, and stop those that are open. Does not wait."""
        self.refuse_more()
        for session in self.all():
            session.stop(end)

    def abort(self) -> None:
        """Drop the browsers of those that are still open."""
        for session in self.all():
            session.abort()

    def wait_empty(self, timeout: float) -> bool:
        """Block until the last one has ended, or ``timeout`` seconds. Returns whether all have."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._sessions, timeout)


def _is_reached(limit: int, counted: Iterable[bool]) -> bool:
    return 0 < limit <= sum(counted)


class LoginRate:
    """How many logins of one crowd may begin: so many a second, and what five seconds bring at once. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the dictionary
        self._full_at: dict[str, float] = {}  # when all may be had at once again; the one longest unused first

    def take(self, crowd: str, per_second: int, now: float) -> bool:
        """Whether one more may begin at that monotonic time; then it counts."""
        with self._lock:
            full_at = max(now, self._full_at.pop(crowd, now))
            free = full_at - now < _LOGIN_BURST_SECONDS
            self._full_at[crowd] = full_at + free / per_second
            if len(self._full_at) > _LOGIN_CROWDS:
                del self._full_at[next(iter(self._full_at))]
            return free


# -- pages ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asset:
    """A file that is served as it is."""

    data: bytes = field(repr=False)
    content_type: str
    packed: bytes = field(default=b"", repr=False)  # by gzip, if it came so

    @functools.cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()[:32]

    def etag(self, packed: bool) -> str:
        """Of one of the two forms (RFC 9110, section 8.8.3.3)."""
        return f'"{self._digest}{_PACKED if packed else ""}"'

    @functools.cached_property
    def gzipped(self) -> bytes:
        return self.packed or gzip.compress(self.data, 6, mtime=0)


_PACKED = "-gzip"  # ends the ETag of what is sent packed

# URL path -> file below static/. What is not listed does not exist.
ASSETS = {
    "/": "index.html",
    **{
        f"/{name}": name
        for name in (
            "index.html",
            "player.html",
            "sessions.html",
            "style.css",
            "icons.svg",
            "favicon.svg",
            "theme.js",
            "terminal.js",
            "connection.js",
            "failure.js",
            "touch.js",
            "widths.js",
            "mark.js",
            "words.js",
            "live.js",
            "player.js",
            "chapters.js",
            "link.js",
            "picture.js",
            "search.js",
            "timeline.js",
            "sessions.js",
            "node_modules/@xterm/xterm/css/xterm.css",
            "node_modules/@xterm/xterm/lib/xterm.mjs",
            "node_modules/@xterm/addon-clipboard/lib/addon-clipboard.mjs",
            "node_modules/@xterm/addon-fit/lib/addon-fit.mjs",
            "node_modules/@xterm/addon-search/lib/addon-search.mjs",
            "node_modules/@xterm/addon-unicode11/lib/addon-unicode11.mjs",
            "node_modules/@xterm/addon-web-links/lib/addon-web-links.mjs",
            "node_modules/@xterm/addon-webgl/lib/addon-webgl.mjs",
            "node_modules/asciinema-player/dist/bundle/asciinema-player.css",
            "node_modules/asciinema-player/dist/bundle/asciinema-player.min.js",
        )
    },
}
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
NO_PAGE = "this page is not installed; run `npm ci` in the folder static and start the server again"


_HOME = os.path.dirname(__file__)  # of the program's files: a folder, or a .pyz as the command line names it


class _Loader(Protocol):
    def get_data(self, path: str) -> bytes: ...


@functools.cache
def shipped(name: str) -> bytes:
    """A file that came with the program. Raises OSError.

    Read once: another version may take a .pyz's place while this one runs.
    """
    loader: _Loader = globals()["__loader__"]
    return loader.get_data(os.path.join(_HOME, name))


def load_assets(server: ServerConfig = ServerConfig()) -> dict[str, Asset]:
    """Read the pages. See missing_assets."""
    told = {"platform-url": server.platform_url, "embedders": " ".join(server.embedders)}
    assets: dict[str, Asset] = {}
    for route, name in ASSETS.items():
        with contextlib.suppress(OSError):
            asset = _load_asset(name)
            if name == "index.html":
                asset = dataclasses.replace(asset, data=_told(asset.data, told))
            assets[route] = asset
    return assets


def _told(page: bytes, values: Mapping[str, str]) -> bytes:
    """The page with what it is told by its meta elements."""
    for name, value in values.items():
        empty, filled = (f'name="{name}" content="{html.escape(text)}"'.encode() for text in ("", value))
        page = page.replace(empty, filled)
    return page


def _load_asset(name: str) -> Asset:
    """A file below static/: the operator's beside a .pyz, else the one that came with the program, packed or not."""
    content_type = _CONTENT_TYPES[Path(name).suffix]
    own = Path(_HOME).absolute().parent / "static" / name
    if os.path.isfile(_HOME) and own.exists():
        return Asset(own.read_bytes(), content_type)
    with contextlib.suppress(OSError):
        packed = shipped(f"static/{name}.gz")
        return Asset(gzip.decompress(packed), content_type, packed)
    return Asset(shipped(f"static/{name}"), content_type)


def missing_assets(assets: Mapping[str, Asset]) -> list[str]:
    """The files below static/ that the pages need and that are not there."""
    return sorted({name for route, name in ASSETS.items() if route not in assets})


# -- HTTP -------------------------------------------------------------------------------------------------------------

HEAD_SECONDS = 10.0  # for a request's line and headers to arrive
HEAD_LIMIT_BYTES = 1 << 16  # of the line and all headers
LINE_LIMIT_BYTES = 1 << 15  # of each of them; deploy/nginx.conf lets as much through
HEAD_LINES_LIMIT = 100  # as http.client's
BODY_LIMIT_BYTES = 1 << 13  # of a request that has one; it has as long to arrive as a head
TOKEN_LIMIT_CHARACTERS = 1 << 14
_DRAIN_SECONDS = 2.0  # for what a refused client still sends
_PEEK_BYTES = 1 << 13
_CHUNK_BYTES = 1 << 17
# Connections that are no terminals, at a time: of all, and of one address. Each costs a thread.
_HEADS, _HEADS_EACH = 200, 50  # whose request has not been read yet
_PAGES, _PAGES_EACH = 200, 50  # that are answered: pages, downloads, refused terminals
_WATCHERS, _WATCHERS_EACH = 200, 50  # that watch a session
LOOK_SECONDS = 0.2  # after which a watcher's thread looks again at the recording
_FLOOD_SECONDS = 0.05  # the same for each watcher there is, where some is left out: that takes milliseconds
_ASK_SECONDS = 1.0  # after which it asks again whether the session goes on
SLOW_SECONDS = 5.0  # for what has come; a watcher who takes longer, and is far behind then, is dropped
_RETRY_SECONDS = "10"  # what a refused client is asked to wait
_CHANGING = ("/sessions/<id>/terminate",)  # for POST, and nothing else is
_PUBLIC = ("play", "watch")  # what [Record] public opens
_LOOK_SECONDS = 600.0  # in which one who looks again at the same is no news
_LOOKS = 1000  # remembered at a time
_ADMIN_ROUTES = ("/metrics", "/readyz", "/healthz")
# What must always be answered, and what is counted elsewhere: as sessions, as watchers.
_UNCOUNTED = ("/healthz", "/readyz", "/ssh", "/records/live")
_CORS_EXPOSED = "Accept-Ranges, Content-Encoding, Content-Range, ETag, X-Recording"
_CORS_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Modified-Since, If-None-Match, If-Range, Range",
    "Access-Control-Max-Age": "600",
}
# RFC 9110, section 12.4.2: a weight has three digits at most; 0 means no.
_LENGTH = re.compile(r"[0-9]{1,18}")
_GZIP_WANTED = re.compile(r"gzip[ \t]*(;[ \t]*q=(1(\.0{0,3})?|0\.0{0,2}[1-9][0-9]{0,2}))?", re.I)
_BYTE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "font-src 'self' data:; img-src 'self' data: blob:; connect-src 'self' ws: wss:; worker-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors "
)


_HEAD_END = re.compile(rb"\n\r?\n")
_HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00\r]*")


class HeadRefused(Exception):
    """A request's head or body cannot be taken: the HTTP status, and the reason in words."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def read_head(sock: socket.socket, seconds: float, has_come: Callable[[], bool]) -> bytes:
    """Read a request's line and headers and not a byte of what follows, which is the WebSocket's; b"" at the end.

    One time limit for all of it, however slowly its bytes trickle in. ``has_come`` is told as soon as all is there, and
    while its last bytes can still be seen in the socket; False drops it. Raises HeadRefused, and OSError when the
    connection is lost or the time is up.
    """
    deadline = time.monotonic() + seconds
    head = bytearray()
    while len(head) <= HEAD_LIMIT_BYTES:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        seen = sock.recv(_PEEK_BYTES, socket.MSG_PEEK)
        before = bytes(head[-2:])
        end = _HEAD_END.search(before + seen)
        if end and not has_come():
            return b""
        data = sock.recv(end.end() - len(before) if end else len(seen))
        if not data:
            return b""
        head += data
        if end:
            break
    _check_head(bytes(head))
    return bytes(head)


def read_body(sock: socket.socket, length: int, seconds: float) -> bytes:
    """Read a body of that length. Raises HeadRefused, and OSError when the connection is lost."""
    deadline = time.monotonic() + seconds
    body = b""
    while len(body) < length:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = sock.recv(length - len(body))
        except socket.timeout:  # until Python 3.10 not the same as TimeoutError
            raise HeadRefused(408, "the body of this request has not come in time") from None
        if not data:
            raise HeadRefused(400, "the body of this request is shorter than it says")
        body += data
    return body


def _check_head(head: bytes) -> None:
    """Hold a head against the limits and the grammar (RFC 9112, sections 2.2, 3 and 5). Raises HeadRefused.

    http.server would take a lone CR for the end of a line: with it, a client could slip headers past a proxy.
    """
    line, *headers = head.replace(b"\r\n", b"\n").split(b"\n", HEAD_LINES_LIMIT + 2)
    if len(line) > LINE_LIMIT_BYTES:
        raise HeadRefused(414, "this address is longer than 32 KiB")
    longest = max(map(len, headers), default=0)
    if len(head) > HEAD_LIMIT_BYTES or longest > LINE_LIMIT_BYTES or len(headers) > HEAD_LINES_LIMIT + 1:
        raise HeadRefused(431, "the headers are longer than 32 KiB, or 64 KiB together, or more than 99")
    if not all(map(_HEADER.fullmatch, headers[:-2])):
        raise HeadRefused(400, "this request is not valid HTTP")


class Places:
    """Answers that are being sent: so many at a time, so many of one crowd. Any thread."""

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._lock = threading.Lock()  # guards the counter
        self._taken: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def hold(self, crowd: str) -> Iterator[bool]:
        """Take a place while the block runs; gives whether there was one."""
        with self._lock:
            free = sum(self._taken.values()) < self._total and (not crowd or self._taken[crowd] < self._each)
            self._taken[crowd] += free
        try:
            yield free
        finally:
            with self._lock:
                self._taken[crowd] -= free
                self._taken += collections.Counter()  # which forgets those at zero

    def __len__(self) -> int:
        with self._lock:
            return sum(self._taken.values())


class Looks:
    """Who looks at sessions, with which filters: a page that stays open asks every two seconds. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the dictionary
        self._entered: dict[object, float] = {}  # when the look was last written down, monotonic; oldest first

    def is_new(self, look: object, now: float) -> bool:
        """Whether it is to be written down: it was not within the last ten minutes."""
        with self._lock:
            return now - self._entered.get(look, -math.inf) > _LOOK_SECONDS

    def entered(self, look: object, now: float) -> None:
        """It is written down."""
        with self._lock:
            self._entered.pop(look, None)
            self._entered[look] = now
            if len(self._entered) > _LOOKS:
                del self._entered[next(iter(self._entered))]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request on its connection's own thread, then closes the connection."""

    ROUTES: ClassVar[Mapping[str, str]] = {
        "/ssh": "_ssh",
        "/records/play": "_play",
        "/records/live": "_live",
        "/sessions": "_sessions",
        "/sessions/<id>": "_session",
        "/sessions/<id>/terminate": "_terminate",
        "/commands": "_commands",
        "/healthz": "_healthz",
        "/readyz": "_readyz",
        "/metrics": "_metrics",
    }

    server: JumpServer
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # of a request that names none: an answer without a head helps nobody
    server_version = "jumpserver"
    sys_version = ""

    def handle(self) -> None:
        self.command, self.requestline, self.request_version = "", "", "HTTP/1.1"  # for the answer to a bad head
        self.headers = http.client.HTTPMessage()
        try:
            self.head = self.server.handed_head(self.connection) or read_head(
                self.connection, HEAD_SECONDS, lambda: self.server.head_has_come(self.connection)
            )
        except HeadRefused as exc:
            self._turn_away(exc.status, str(exc))
            return
        self.rfile = io.BytesIO(self.head)
        if self.head:
            self.handle_one_request()

    def do_GET(self) -> None:
        self.connection.settimeout(SEND_TIMEOUT_SECONDS)
        try:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query, max_num_fields=20))
        except ValueError:
            self._answer(400, "this address is not valid, or has too many parameters")
            return
        route, session_id = find_route(url.path)
        query["id"] = session_id
        of_admin = self.server.came_to_admin(self.connection)
        if not self._has_route(route, of_admin):
            self._answer(404, "not found")
        elif (self.command == "POST") != (route in _CHANGING):
            allowed = "POST" if route in _CHANGING else "GET, HEAD"
            self._answer(405, f"this address is for {allowed}", {"Allow": allowed})
        elif of_admin or route in _UNCOUNTED:
            getattr(self, self.ROUTES[route])(query)
        else:
            self._answer_in_place(route, query)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        try:
            with self._place() as free:
                if not free:
                    raise HeadRefused(503, SERVER_BUSY.reason)
                self.body = self._read_body()
        except HeadRefused as exc:
            self._turn_away(exc.status, str(exc))
        else:
            self.do_GET()

    def _read_body(self) -> bytes:
        """The body (RFC 9112, section 6.3). Raises HeadRefused."""
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not _LENGTH.fullmatch(length):
            raise HeadRefused(411, "this request must say the length of its body")
        if int(length) > BODY_LIMIT_BYTES:
            raise HeadRefused(413, "the body of this request is longer than 8 KiB")
        return read_body(self.connection, int(length), HEAD_SECONDS)

    def _answer_in_place(self, route: str, query: Mapping[str, str]) -> None:
        with self._place() as free:
            if not free:
                self._answer(503, SERVER_BUSY.reason)
            elif route in self.ROUTES:
                getattr(self, self.ROUTES[route])(query)
            else:
                self._asset(route)

    def _has_route(self, path: str, of_admin: bool) -> bool:
        """Whether the path exists where the request came in: with ``admin_listen``, the public port has no numbers."""
        if of_admin:
            return path in _ADMIN_ROUTES
        return path != "/metrics" or self.server.admin is None

    def do_OPTIONS(self) -> None:
        """The question of a browser whether a page of another origin may ask (CORS preflight)."""
        if self.server.config.Server.allowed_origins:
            self._head(204, _CORS_PREFLIGHT if self._allowed_origin() else {})
        else:
            self.send_error(501)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """http.server's own answers, without the client's text in them."""
        self._turn_away(code, http.HTTPStatus(code).phrase)

    def _turn_away(self, status: int, text: str) -> None:
        """Answer a request that was not read whole, and read what still comes.

        Closing over unread bytes would reset the connection, and the answer with it (RFC 9112, section 9.6).
        """
        self._answer(status, text)
        self.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _DRAIN_SECONDS
        with self._place() as free:
            while free and time.monotonic() < deadline:
                self.connection.settimeout(max(0.001, deadline - time.monotonic()))
                free = bool(self.connection.recv(_CHUNK_BYTES))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: http.server's lines hold the query, and so the token."""

    def _asset(self, path: str) -> None:
        if path not in ASSETS:
            self._answer(404, "not found")
            return
        if missing_assets(self.server.assets):  # half a page would never start, and not say why
            self._answer(503, NO_PAGE)
            return
        asset, packed = self.server.assets[path], self._accepts_gzip()
        headers = {"ETag": asset.etag(packed), "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if self._is_known(headers["ETag"]):
            self._head(304, headers)
            return
        if packed:
            headers["Content-Encoding"] = "gzip"
        body = asset.gzipped if packed else asset.data
        self._head(200, {**headers, "Content-Type": asset.content_type, "Content-Length": str(len(body))})
        self._body(body)

    def _answer(self, status: int, text: str, more: Mapping[str, str] = types.MappingProxyType({})) -> None:
        """A short answer in words."""
        body = f"{text}\n".encode()  # a line; Prometheus' format, too, ends with one
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store", **more}
        self._head(status, {**headers, "Content-Length": str(len(body))})
        self._body(body)

    def _answer_json(self, status: int, **values: object) -> None:
        body = json.dumps(values).encode()
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        self._head(status, {**headers, "Content-Length": str(len(body))})
        self._body(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**self.server.security_headers, "Connection": "close", **headers}.items():
            self.send_header(name, value)
        if self.server.config.Server.allowed_origins:
            self.send_header("Vary", "Origin")
            origin = self._allowed_origin()
            if origin:
                self.send_header("Access-Control-Allow-Origin", origin)
                self.send_header("Access-Control-Expose-Headers", _CORS_EXPOSED)
        self.end_headers()

    def _allowed_origin(self) -> str:
        """The origin of the page that asks, if it is one of ``allowed_origins``, else ""."""
        allowed = self.server.config.Server.allowed_origins
        with contextlib.suppress(ValueError):
            origin = normal_origin(self.headers.get("Origin", ""))
            return next((item for item in allowed if item == origin), "")
        return ""

    def _body(self, body: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(body)

    def _accepts_gzip(self) -> bool:
        return any(_GZIP_WANTED.fullmatch(coding) for coding in self._list("Accept-Encoding"))

    def _list(self, name: str) -> list[str]:
        """The items of a header that is a list, on one line or on several (RFC 9110, section 5.3)."""
        return [item.strip() for item in ",".join(self.headers.get_all(name, ())).split(",")]

    def _is_known(self, etag: str, modified: float | None = None) -> bool:
        """Whether the client has this already (RFC 9110, sections 13.1.2, 13.1.3 and 13.2.2)."""
        if "If-None-Match" in self.headers:
            tags = self._list("If-None-Match")
            return "*" in tags or etag in tags or f"W/{etag}" in tags
        since = parse_date(self.headers.get("If-Modified-Since", ""))
        return since is not None and modified is not None and modified <= since

    def _remote(self) -> Address | None:
        """The browser's address: from the peer on back to what the last trusted proxy says was its own peer."""
        found = parse_address(self.client_address[0])
        for text in reversed(self._list("X-Forwarded-For")):
            hop = parse_address(text)
            if hop is None or found is None or not self.server.config.Server.trusts(found):
                break
            found = hop
        return found

    def _remote_addr(self) -> str:
        return str(self._remote())

    def _place(self) -> contextlib.AbstractContextManager[bool]:
        return self.server.places.hold(self.server.config.Server.crowd(self._remote()))

    def _healthz(self, query: Mapping[str, str]) -> None:
        self._answer(200, "alive")

    def _readyz(self, query: Mapping[str, str]) -> None:
        trouble = self.server.trouble()
        self._answer(503 if trouble else 200, trouble or "ready")

    def _metrics(self, query: Mapping[str, str]) -> None:
        self._answer(200, self.server.numbers(), {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    # /ssh

    def _ssh(self, query: Mapping[str, str]) -> None:
        if not self._is_upgrade():
            self._answer(400, "this address is for WebSockets; a proxy before it must use HTTP/1.1 and pass Upgrade on")
            return
        if not self._has_version_13():
            return
        threading.current_thread().name = "browser"
        try:
            self._check_origin()
            if "resume" in query:
                self._resume(query["resume"])
            else:
                self._open_session(query)
        except Refused as exc:
            self._refuse(exc)
        except BrowserGone:
            pass

    def _open_session(self, query: Mapping[str, str]) -> None:
        token, session_id = query.get("ssh_token", ""), str(uuid.uuid4())
        if len(token) > TOKEN_LIMIT_CHARACTERS:
            raise Refused(TOKEN_TOO_LONG)
        config = self.server.config
        crowd, rate = config.Server.crowd(self._remote()), config.Limits.logins_per_second
        if crowd and rate and not self.server.login_rate.take(crowd, rate, time.monotonic()):
            raise Refused(TOO_MANY_LOGINS)
        self.server.sessions.admit(session_id)
        try:
            auth = self._validate(token, session_id)
            session = Session(self.server, session_id, auth, self._remote_addr())
            self.server.sessions.register(session)
            browser = self._open_browser()
        except BaseException:
            self.server.sessions.release(session_id)  # else the session itself gives its place back
            raise
        self._attend(browser, session_id, lambda: session.start(browser, _query_size(query)))

    def _attend(self, browser: BrowserSocket, session_id: str, attach: Callable[[], None]) -> None:
        """Let the browser be attached, and receive what it sends until its connection ends."""
        threading.current_thread().name = f"{session_id}-browser"
        try:
            attach()
        except Refused as exc:
            self._turn_browser_away(browser, exc.end)
        else:
            browser.run()

    def _validate(self, token: str, session_id: str) -> TokenAuthData:
        """Ask the hook what the token stands for. Raises Refused."""
        try:
            if not token:
                raise Denied("there is no ssh_token; open the terminal from the platform")
            with self.server.metrics.timed("hook_seconds", "validate_ssh_token"):
                return self.server.hooks.validate_ssh_token(token)
        except Exception as exc:
            raise Refused(hook_failure(exc, "validate_ssh_token", session_id, token), _user_of(exc)) from None

    def _resume(self, name: str) -> None:
        """Attach the browser to the session that it lost. What allows it comes in its first message."""
        session_id = name.rpartition(".")[2]
        session = self.server.sessions.find(session_id)
        if session is None and self.server.hand_over(name, self.connection, self.client_address[0], self.head):
            return
        if session is None:
            raise Refused(SESSION_OVER)
        with self._place() as free:
            if not free:
                raise Refused(SERVER_BUSY)
            browser = self._open_browser()
            message = browser.first_message(RESUME_SECONDS)
        self._attend(browser, session_id, lambda: session.attach(browser, *_resume_message(message)))

    def _is_upgrade(self) -> bool:
        """Whether this is a WebSocket handshake, of whatever version (RFC 6455, section 4.2.1)."""
        connection, upgrade = (map(str.lower, self._list(name)) for name in ("Connection", "Upgrade"))
        try:
            key = base64.b64decode(self.headers.get("Sec-WebSocket-Key", ""), validate=True)
        except ValueError:
            return False
        asked = self.command == "GET" and self.request_version >= "HTTP/1.1" and "Sec-WebSocket-Version" in self.headers
        return asked and "upgrade" in connection and "websocket" in upgrade and len(key) == 16

    def _has_version_13(self) -> bool:
        """Whether the handshake is of the version that there is. If not, it is answered (RFC 6455, section 4.4)."""
        if self._list("Sec-WebSocket-Version") == ["13"]:
            return True
        other = {"Connection": "Upgrade, close", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        self._answer(426, "this server speaks version 13 of the WebSocket protocol", other)
        return False

    def _check_origin(self) -> None:
        if self.server.config.Server.allowed_origins and not self._allowed_origin():
            raise Refused(End("this page may not open a terminal here (see allowed_origins)", DENIED))

    def _wants_v1(self) -> bool:
        return SUBPROTOCOL in self._list("Sec-WebSocket-Protocol")

    def _open_browser(self) -> BrowserSocket:
        subprotocol = SUBPROTOCOL if self._wants_v1() else ""
        try:
            key = self.headers["Sec-WebSocket-Key"]
            return BrowserSocket(self.connection, key, subprotocol, self._remote_addr())
        except OSError:
            raise BrowserGone from None

    def _refuse(self, refused: Refused) -> None:
        end, remote = refused.end, self._remote_addr()
        self.server.metrics.count("refused_total", end_label(end))
        log_event("refusal", remote=remote, reason=end.reason)
        if end.close_code == DENIED:
            self.server.notes.refused(remote, action="terminal", user=refused.user, reason=end.reason)
        with self._place() as free, contextlib.suppress(BrowserGone):
            if free and self._wants_v1():
                self._turn_browser_away(self._open_browser(), end)
            else:
                more = {"Retry-After": _RETRY_SECONDS} if end.close_code == BUSY else {}
                self._answer(_HTTP_STATUS[end.close_code], end.reason, more)

    def _turn_browser_away(self, browser: BrowserSocket, end: End) -> None:
        """Refuse in words, over a WebSocket."""
        with contextlib.suppress(BrowserGone):
            # The token was not looked at, or not to the end.
            unspent = end.close_code in (BUSY, INTERNAL) and end not in (USER_FULL, POD_FULL)
            browser.send_json(type="end", reason=end.reason, exit_code=None, reusable=unspent)
        browser.finish(end.close_code, end.reason)

    # /records/play

    def _play(self, query: Mapping[str, str]) -> None:
        filename = query.get("filename", "")
        user = self._authorized("play", filename, query)
        if user is None:
            return
        try:
            path = self._find(filename)
            file = open_recording(path)
        except (RecordError, OSError):
            self._answer(404, "not found")
            return
        except Refused as exc:
            self._answer(_HTTP_STATUS[exc.end.close_code], exc.end.reason)
            return
        with file:
            if self._enter("play", user, session_of(path), file=str(path)):
                self._send_recording(file, self._outcome(session_of(path)))

    def _find(self, filename: str) -> Path:
        """A recording's file, here or where a hook has brought it. Raises RecordError when there is none, Refused."""
        root = self.server.config.record_path
        try:
            return find_recording(root, filename)
        except RecordError:
            name = recording_name(root, filename)
            try:
                with self.server.metrics.timed("hook_seconds", "fetch_recording"):
                    fetched = self.server.hooks.fetch_recording(name)
            except Exception as exc:
                end = hook_failure(exc, "fetch_recording", Path(name).stem)
                raise Refused(FETCH_FAILED if end is HOOK_FAILED else end) from None
            if fetched is None:
                raise
            return fetched

    def _outcome(self, session_id: str) -> str:
        """What the ledger says of a recording's session; the recording itself is as good without a ledger."""
        with contextlib.suppress(LedgerError):
            if self.server.hooks.ledger.is_open(session_id):
                return "running"
        return "complete"

    # /records/live

    def _live(self, query: Mapping[str, str]) -> None:
        """A session as it goes on, for asciinema-player; without an upgrade, what a page asks before it watches."""
        watches = self._is_upgrade()
        if watches and not self._has_version_13():
            return
        places = self.server.watchers if watches else self.server.places
        with places.hold(self.server.config.Server.crowd(self._remote())) as free:
            if not free:
                self._answer(503, SERVER_BUSY.reason, {"Retry-After": _RETRY_SECONDS})
                return
            filename = query.get("filename", "")
            user = self._authorized("watch", filename, query)
            if user is None:
                return
            try:
                path = find_recording(self.server.config.record_path, filename)
                file = open_recording(path)
            except (RecordError, OSError):
                self._answer(404, "not found")
                return
            with file:
                if not watches:
                    self._tell_of_session(path, file)
                elif self._may_watch(user, path):
                    self._let_watch(session_of(path), file)

    def _tell_of_session(self, path: Path, file: BinaryIO) -> None:
        header = read_header(file)
        self._answer_json(
            200,
            running=self._outcome(session_of(path)) == "running",
            title=str(header.get("title", "")),
            cols=header.get("width"),
            idle=round(max(0.0, time.time() - os.fstat(file.fileno()).st_mtime), 1),
            **self._place_of(session_of(path)),
        )

    def _place_of(self, session_id: str) -> dict[str, object]:
        """Where a session is and how the pages mark that; nothing where the ledger does not know."""
        with contextlib.suppress(LedgerError):
            if info := self.server.hooks.ledger.session(session_id):
                shown = self._shown(info)
                return {name: shown[name] for name in ("namespace", "cluster", "label", "colour")}
        return {}

    def _may_watch(self, user: str, path: Path) -> bool:
        """Whether the watcher can be shown something: the chain has that, and its user is told. If not, it is said."""
        try:
            self._check_origin()
            self._live_subprotocol()
        except Refused as exc:
            self._answer(_HTTP_STATUS[exc.end.close_code], exc.end.reason)
            return False
        return self._enter("watch", user, session_of(path), file=str(path)) and self._announce(user, session_of(path))

    def _live_subprotocol(self) -> str:
        """Who offers none gets the same. Raises Refused."""
        offered = self._list("Sec-WebSocket-Protocol")
        if offered == [""]:
            return ""
        if LIVE_SUBPROTOCOL in offered:
            return LIVE_SUBPROTOCOL
        raise Refused(End(f"this address speaks the WebSocket subprotocol {LIVE_SUBPROTOCOL}", BAD_REQUEST))

    def _let_watch(self, session_id: str, file: BinaryIO) -> None:
        threading.current_thread().name = f"{session_id}-watcher"
        key, subprotocol = self.headers["Sec-WebSocket-Key"], self._live_subprotocol()
        with contextlib.suppress(BrowserGone, OSError):
            watcher = WatcherSocket(self.connection, key, subprotocol, self._remote_addr())
            try:
                self._show_live(watcher, session_id, Follower(file))
            except RecordError as exc:
                log_event("error", session=session_id, error=exc)
                watcher.finish(TRY_AGAIN, "the recording cannot be read now")

    def _announce(self, user: str, session_id: str) -> bool:
        """Let the session's terminal say who begins to watch. False: that cannot be, and the request is answered so."""
        session = self.server.sessions.find(session_id)
        try:
            if not self.server.config.Audit.announce_watch:
                pass
            elif session is not None:
                session.announce(user)
            else:
                self.server.hooks.ledger.ask(session_id, "watch", user)
        except LedgerError as exc:
            self._ledger_failed(exc)
            return False
        return True

    def _show_live(self, watcher: WatcherSocket, session_id: str, follower: Follower) -> None:
        """Send what the recording has and gets, until the session is over. Raises BrowserGone and RecordError.

        It reads no faster than the watcher takes it. One that is slow, and far behind therefore, is dropped: it comes
        back, and begins with the screen as it is then.
        """
        running, asked_at = True, time.monotonic()
        while True:
            leaves_out, messages, now = follower.is_far_behind(), follower.read(), time.monotonic()
            if messages:
                watcher.send_texts(messages)
            elif not running:
                watcher.finish(NORMAL, "the session has ended")
                return
            elif now - asked_at >= _ASK_SECONDS:  # and read once more before the end
                running, asked_at = self._goes_on(session_id), now
                continue
            if time.monotonic() - now > SLOW_SECONDS and follower.is_far_behind():
                watcher.finish(TRY_AGAIN, "too slow for what this session prints")
                return
            watcher.listen(max(LOOK_SECONDS, leaves_out * len(self.server.watchers) * _FLOOD_SECONDS))

    def _goes_on(self, session_id: str) -> bool:
        try:
            return self.server.hooks.ledger.is_open(session_id)
        except LedgerError:
            return True

    def _authorized(self, action: str, filename: str, query: Mapping[str, str]) -> str | None:
        """Who may do this, by the hook, or "" where recordings are public. None: the request is answered with a no."""
        if self.server.config.Record.public and action in _PUBLIC:
            return ""
        token = self._token(query)
        if not token:
            what = "recording" if action in _PUBLIC else "page"
            self._answer(401, f"a token is needed: open the {what} from the platform")
            return None
        try:
            if len(token) > TOKEN_LIMIT_CHARACTERS:
                raise Denied(TOKEN_TOO_LONG.reason)
            with self.server.metrics.timed("hook_seconds", "authorize"):
                return self.server.authorize(token, action, filename)
        except Exception as exc:
            end, remote = hook_failure(exc, "authorize", "-", token), self._remote_addr()
            log_event("refusal", action=action, file=filename, remote=remote, reason=end.reason)
            if end.close_code == DENIED:
                self.server.notes.refused(remote, action=action, file=filename, user=_user_of(exc), reason=end.reason)
            self._answer(_HTTP_STATUS[end.close_code], end.reason)
            return None

    def _token(self, query: Mapping[str, str]) -> str:
        scheme, _, bearer = self.headers.get("Authorization", "").partition(" ")
        return bearer.strip() if scheme.lower() == "bearer" else query.get("token", "")

    def _enter(self, kind: str, user: str, session_id: str = "", **what: str) -> bool:
        """Write into the chain who does what, and from where. False: that cannot be, and the request is answered so."""
        values = {"user": user, **what, "remote": self._remote_addr()}
        try:
            with self.server.metrics.timed("ledger_seconds"):
                self.server.hooks.ledger.append(kind, session_id, **values)
        except LedgerError as exc:
            self._ledger_failed(exc)
            return False
        log_event(kind, **values, **({"session": session_id} if session_id else {}))
        return True

    def _ledger_failed(self, exc: LedgerError) -> None:
        log_event("error", error=exc)
        self._answer(503, NOT_IN_LEDGER, {"Retry-After": _RETRY_SECONDS})

    # /sessions and /commands

    def _sessions(self, query: Mapping[str, str]) -> None:
        self._search("list", query, _SESSION_FILTERS, functools.partial(self._found_sessions, query))

    def _commands(self, query: Mapping[str, str]) -> None:
        self._search("search", query, _COMMAND_FILTERS, self._found_commands)

    def _search(
        self,
        action: str,
        query: Mapping[str, str],
        names: tuple[str, ...],
        find: Callable[[Mapping[str, Any]], dict[str, object]],
    ) -> None:
        """Answer with a page of what the ledger has, and where the next one begins; the chain says who looks."""
        user = self._authorized(action, "", query)
        if user is None:
            return
        try:
            found = find(parse_filters(query, names))
        except ValueError as exc:
            self._answer(400, str(exc))
        except LedgerError as exc:
            self._ledger_failed(exc)
        else:
            if self._look(action, user, query):
                self._answer_json(200, **found)

    def _found_sessions(self, query: Mapping[str, str], wanted: Mapping[str, Any]) -> dict[str, object]:
        found = self.server.hooks.ledger.find(SessionQuery(**wanted, limit=_PAGE_SIZE + 1))
        more = cursor(found[_PAGE_SIZE - 1]) if len(found) > _PAGE_SIZE else None
        may = {"may_terminate": self._may_terminate(query)} if wanted.get("state") == "open" else {}
        return {"sessions": [self._shown(info) for info in found[:_PAGE_SIZE]], "next": more, **may}

    def _may_terminate(self, query: Mapping[str, str]) -> bool:
        """Whether a page may offer it. That is asked again when it is done, and only then a no is told and kept."""
        try:
            self.server.authorize(self._token(query), "terminate", "")
        except Exception:
            return False
        return True

    def _found_commands(self, wanted: Mapping[str, Any]) -> dict[str, object]:
        found = self.server.hooks.ledger.commands(CommandQuery(**wanted, limit=_PAGE_SIZE + 1))
        more = cursor(found[_PAGE_SIZE - 1][0]) if len(found) > _PAGE_SIZE else None
        rows = [
            {
                "seconds": command.seconds,
                "text": command.text,
                "exit_code": command.exit_code,
                "session": self._shown(info),
            }
            for command, info in found[:_PAGE_SIZE]
        ]
        return {"commands": rows, "next": more}

    def _shown(self, info: SessionInfo) -> dict[str, object]:
        """What an auditor sees of a session: what the ledger has, and while it is open here what it is doing."""
        session = self.server.sessions.find(info.session_id) if info.logout_at is None else None
        return {
            **{name: getattr(info.auth, name) for name in _SHOWN_OF_TOKEN},
            **{name: getattr(info, name) for name in _SHOWN},
            **mark_of(self.server.config, info.cluster, info.auth),
            **(session.as_it_is() if session else {}),
        }

    def _look(self, action: str, user: str, query: Mapping[str, str]) -> bool:
        """Write down that somebody looks, but not each time that a page asks again. False: see _enter."""
        wanted = {name: text for name, text in query.items() if name not in ("id", "token", "before")}
        text, now = urllib.parse.urlencode(sorted(wanted.items())), time.monotonic()
        look = (action, user, self._remote_addr(), query["id"], text)
        if self.server.looks.is_new(look, now):
            if not self._enter(action, user, query["id"], filters=text):
                return False
            self.server.looks.entered(look, now)
        return True

    def _session(self, query: Mapping[str, str]) -> None:
        found = self._authorized_session("list", query)
        if found is not None and self._look("list", found[0], {"id": query["id"]}):
            self._answer_json(200, **self._shown(found[1]))

    def _authorized_session(self, action: str, query: Mapping[str, str]) -> tuple[str, SessionInfo] | None:
        """Who may do this with the session that the path names, and that session. None: the request is answered."""
        try:
            info = self.server.hooks.ledger.session(query["id"])
        except LedgerError as exc:
            self._ledger_failed(exc)
            return None
        user = self._authorized(action, info.filename if info else "", query)
        if user is None:
            return None
        if info is None:
            self._answer(404, "there is no such session")
            return None
        return user, info

    def _terminate(self, query: Mapping[str, str]) -> None:
        found = self._authorized_session("terminate", query)
        if found is None:
            return
        user, info = found
        if self.headers.get_content_type() != "application/json":  # which no form of another site can send
            self._answer(415, "the body of this request must be JSON, and say so")
            return
        reason = parse_reason(self.body)
        if not reason:
            self._answer(400, f"a reason is needed, of {_REASON_LIMIT_CHARACTERS} characters at most")
        elif info.logout_at is not None:
            self._answer(409, "this session has ended already")
        elif self._enter("terminate", user, info.session_id, reason=reason):
            self._ask_for_end(info.session_id, user, reason)

    def _ask_for_end(self, session_id: str, user: str, reason: str) -> None:
        """End the session, or have its server do that."""
        session = self.server.sessions.find(session_id)
        try:
            if session is not None:
                session.stop(ended_by(user, reason))
            elif not self.server.hooks.ledger.ask(session_id, "end", user, reason):
                self._answer(409, "this session has ended already")
                return
        except LedgerError as exc:
            self._ledger_failed(exc)
        else:
            will = "the session ends now" if session else "the session's own server ends it within two seconds"
            self._answer_json(202, session_id=session_id, will=will)

    def _send_recording(self, file: BinaryIO, outcome: str) -> None:
        size = playable_size(file)
        if outcome == "complete" and is_incomplete(file, size):
            outcome = "cut"
        raw = file.packed if isinstance(file, PackedFile) else file
        status = os.fstat(raw.fileno())
        packed = self._accepts_gzip() and self.request_version == "HTTP/1.1" and "Range" not in self.headers
        headers = {
            "ETag": f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{size:x}{_PACKED if packed else ""}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",
            "Vary": "Accept-Encoding",
            "X-Recording": outcome,
        }
        modified = int(status.st_mtime)
        if modified < int(time.time()):  # it may change again within this second (RFC 9110, section 8.8.2.2)
            headers["Last-Modified"] = email.utils.formatdate(modified, usegmt=True)
        if self._is_known(headers["ETag"], modified):
            self._head(304, headers)
            return
        headers["Content-Type"] = "application/x-asciicast"
        wanted = self.headers.get("Range", "")
        if self.headers.get("If-Range", headers["ETag"]) not in (headers["ETag"], headers.get("Last-Modified")):
            wanted = ""
        try:
            part = parse_range(wanted, size)
        except ValueError:
            self._head(416, {**headers, "Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        if part is not None:
            start, end = part
            content_range = {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
            self._send_part(206, {**headers, **content_range}, file, start, end)
        elif packed and raw is not file:
            self._send_part(200, {**headers, "Content-Encoding": "gzip"}, raw, 0, status.st_size)
        elif packed:
            self._send_gzipped(headers, file, size)
        else:
            self._send_part(200, headers, file, 0, size)

    def _send_part(self, status: int, headers: Mapping[str, str], file: BinaryIO, start: int, end: int) -> None:
        self._head(status, {**headers, "Content-Length": str(end - start)})
        if self.command != "HEAD" and end > start:
            self.connection.sendfile(file, start, end - start)

    def _send_gzipped(self, headers: Mapping[str, str], file: BinaryIO, size: int) -> None:
        """Compress while sending, in chunks (RFC 9112, section 7.1): memory does not grow with the file."""
        self._head(200, {**headers, "Content-Encoding": "gzip", "Transfer-Encoding": "chunked"})
        if self.command == "HEAD":
            return
        packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
        file.seek(0)
        while size > 0:
            block = file.read(min(_CHUNK_BYTES, size))
            size = size - len(block) if block else 0
            self._send_chunk(packer.compress(block))
        self._send_chunk(packer.flush())
        self.wfile.write(b"0\r\n\r\n")

    def _send_chunk(self, data: bytes) -> None:
        if data:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


# No kubeconfig, no command and nothing that a platform has put into its token.
_SHOWN_OF_TOKEN = ("user", "namespace", "pod_name", "container_name")
_SHOWN = (
    *("session_id", "cluster", "remote_addr", "server", "login_at", "logout_at", "reason", "exit_code"),
    *("bytes_in", "bytes_out", "filename", "size", "sha256", "hung_up", "chain"),
)
_SESSION_FILTERS = ("state", "user", "namespace", "pod", "since", "until", "q", "before")
_COMMAND_FILTERS = ("user", "since", "until", "q", "before")
_PAGE_SIZE = 50
_FILTER_LIMIT_CHARACTERS = 1000
_REASON_LIMIT_CHARACTERS = 200
_SESSION_PATH = re.compile(r"/sessions/([0-9A-Za-z_-]{1,100})(/terminate)?")
_UNIX_TIME = re.compile(r"[0-9]{1,11}(\.[0-9]{1,9})?")


def find_route(path: str) -> tuple[str, str]:
    """The name in ``ROUTES`` of a path, and the id of the session that stands in it; others are their own name."""
    found = _SESSION_PATH.fullmatch(path)
    return (f"/sessions/<id>{found[2] or ''}", found[1]) if found else (path, "")


def parse_time(text: str, zone: tzinfo | None) -> float:
    """Unix seconds: as such, an ISO 8601 date or time, or so long ago as an age such as ``7d`` says. Raises ValueError.

    ``zone`` is that of a time which names none: UTC in requests, whose links mean the same everywhere, and None, this
    host's, in commands, which print such times.
    """
    if _UNIX_TIME.fullmatch(text):
        return float(text)
    ago = parse_age(text)
    if ago is not None:
        return time.time() - ago
    moment = datetime.fromisoformat(text[:40].replace("Z", "+00:00"))
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()
    except (OverflowError, OSError):
        raise ValueError("beyond all calendars") from None


_AGE = re.compile(r"([0-9]{1,6})([mhdw])")
_UNIT_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def parse_age(text: str) -> float | None:
    """A number of minutes, hours, days or weeks, such as ``180d``, in seconds; None for what is none."""
    match = _AGE.fullmatch(text)
    return int(match[1]) * _UNIT_SECONDS[match[2]] if match else None


def parse_reason(body: bytes) -> str:
    """The ``reason`` in a JSON object, in one line; "" where it is missing or too long."""
    try:
        values = json.loads(body)
        reason = values["reason"] if isinstance(values, dict) else ""
    except (ValueError, KeyError, RecursionError):
        return ""
    return printable(reason) if isinstance(reason, str) and len(reason) <= _REASON_LIMIT_CHARACTERS else ""


def parse_filters(query: Mapping[str, str], names: tuple[str, ...]) -> dict[str, Any]:
    """The parameters of those names as a query of the ledger has them. Raises ValueError with a sentence."""
    found: dict[str, Any] = {name: query[name] for name in names if name in query}
    unknown = set(query).difference(names, ("id", "token"))
    if unknown:
        raise ValueError(f"there is no parameter {printable(min(unknown))} here; there are {', '.join(names)}")
    for name, text in found.items():
        if len(text) > _FILTER_LIMIT_CHARACTERS or "\0" in text:
            raise ValueError(f"{name} is longer than {_FILTER_LIMIT_CHARACTERS} characters, or has a NUL in it")
    if found.get("state", "open") not in ("open", "ended"):
        raise ValueError("state must be open or ended")
    for name in {"since", "until"}.intersection(found):
        try:
            found[name] = parse_time(found[name], timezone.utc)
        except ValueError:
            sentence = (
                f"{name} must be a time such as 2026-01-31 or 2026-01-31T12:00Z, Unix seconds, or an age such as 7d"
            )
            raise ValueError(sentence) from None
    return found


def _user_of(exc: Exception) -> str:
    """Whom a hook has refused, where that is known."""
    return exc.user if isinstance(exc, Denied) else ""


def _resume_message(message: str | bytes | None) -> tuple[str, int, Size | None]:
    """Secret, position and size of a browser that wants to resume. Raises Refused."""
    with contextlib.suppress(ValueError):
        kind, value = parse_message(message or "")
        if kind == "resume":
            secret, drawn, size = value
            return secret, drawn, size
    raise Refused(NOT_UNDERSTOOD)


def _query_size(query: Mapping[str, str]) -> Size | None:
    try:
        return terminal_size(int(query["cols"]), int(query["rows"]))
    except (KeyError, ValueError):
        return None


def parse_date(header: str) -> int | None:
    """A date (RFC 9110, section 5.6.7) in Unix seconds; None for what is none."""
    with contextlib.suppress(TypeError, ValueError, IndexError, OverflowError):
        parts = email.utils.parsedate_tz(header[:64])
        return int(email.utils.mktime_tz(parts)) if parts else None
    return None


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """One byte range (RFC 9110, section 14.1.2) as (start, end), or None when the whole is to be sent.

    Raises ValueError when no byte of it exists. Several ranges are answered with the whole.
    """
    match = _BYTE_RANGE.fullmatch(header.strip())
    if not match or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
        if match[2] and int(match[2]) < start:
            return None
    if start >= end:
        raise ValueError("no such bytes")
    return start, end


# -- what goes round beside the sessions ------------------------------------------------------------------------------

FLOOD_BYTES, FLOOD_SECONDS = 10_000_000, 10.0  # recorded a second, and for how long: the log tells of more
QUIET_BYTES = 10_000  # recorded a second: who stays below is not ended for space
_LASTS_SECONDS = 300.0
_SAY_SECONDS = 60.0
TICK_SECONDS = 1.0  # of the clocks
_ERRAND_SECONDS = 0.5  # of each second, for writing what waits: what is asked of sessions must not wait for it


class Clock:
    """What is done once a second, on a thread of that name: each of ``ticks``, which may be added at any time.

    A tick that fails is logged and keeps no other from its turn. None may block for long: the others wait.
    """

    def __init__(self, name: str = "clock") -> None:
        self.ticks: list[Callable[[], None]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; wait for a tick that has begun, a second at most."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            for tick in list(self.ticks):
                try:
                    tick()
                except Exception:
                    log_fault(traceback.format_exc())


@dataclass
class _Pace:
    """How fast a session is recorded."""

    at: float  # monotonic: when it was last looked at
    written: int  # bytes by then
    rate: float = 0.0  # bytes a second, of the last seconds
    slow_at: float = 0.0  # monotonic: when it was last no flood
    told: bool = False


class Space:
    """Keeps the sessions that write most from filling the disk for all. The clock's thread."""

    def __init__(self, folder: RecordFolder, sessions: SessionRegistry) -> None:
        self._folder = folder
        self._sessions = sessions
        self._paces: dict[str, _Pace] = {}  # by session id
        self._say_at = 0.0  # monotonic

    def tick(self) -> None:
        """Tell of floods; where space runs out, say so every minute, and end those that write fastest."""
        now = time.monotonic()
        self._paces = {session.id: self._paced(session, now) for session in self._sessions.all()}
        try:
            self._folder.keep_reserve()
            free = self._folder.free()
        except RecordError:  # the keeper says so
            return
        if free < self._folder.min_free and now >= self._say_at:
            self._say_at = now + _SAY_SECONDS
            log_event("warning", reason="space runs out: no session may begin", free=free, path=self._folder.path)
        if free < self._folder.min_free / 2:
            self._end_fastest(free)

    def _paced(self, session: Session, now: float) -> _Pace:
        written = session.traffic().recorded
        pace = self._paces.get(session.id) or _Pace(now, written, slow_at=now)
        seconds = now - pace.at
        if seconds > 0:
            rate = (written - pace.written) / seconds
            pace.rate = (pace.rate + rate) / 2
            if rate <= FLOOD_BYTES:
                pace.slow_at, pace.told = now, False
            elif now - pace.slow_at > FLOOD_SECONDS and not pace.told:
                pace.told = True
                rate = round(pace.rate)
                log_event("flood", session=session.id, user=session.auth.user, pod=session.auth.place, rate=rate)
        pace.at, pace.written = now, written
        return pace

    def _end_fastest(self, free: int) -> None:
        """The fastest first, until the others need some minutes to fill what is left. Quiet ones go on in any case."""
        total = sum(pace.rate for pace in self._paces.values())
        for session_id, pace in sorted(self._paces.items(), key=lambda item: -item[1].rate):
            if pace.rate < QUIET_BYTES or total * _LASTS_SECONDS < free:
                break
            session = self._sessions.find(session_id)
            if session is not None:
                session.stop(DISK_FULL)
            total -= pace.rate


_BEATS_AT_ONCE = 8
_LATE_SECONDS = 30.0  # a call that takes longer is none of these any more: another may begin
_BEATS_LIMIT = 64  # with late ones


class Heartbeats:
    """Asks the hook ``on_heartbeat`` again and again whether each open session may go on; each at its own moment.

    The clock's thread looks who is due. Threads ``heartbeat``, a few at a time, call the hook and end when nobody is:
    no session waits for a platform that is slow, and those of others are asked about however many calls hang. A call
    that fails ends nothing; the log says when calls begin to fail and when they no longer do, and tells of each that
    is late.
    """

    def __init__(self, server: JumpServer) -> None:
        self._server = server
        self._changed = threading.Condition()  # guards all below; no hook under it
        self._due_at: dict[Session, float] = {}  # monotonic
        self._asked: dict[Session, float] = {}  # of which a call is under way, since when (monotonic)
        self._late: set[Session] = set()  # of these, whose call takes long
        self._failing: set[Session] = set()  # of which the last call failed
        self._threads = 0
        self._closed = False

    def tick(self) -> None:
        """Call the hook for those that are due. The clock's thread."""
        interval = self._server.config.Platform.heartbeat_interval
        sessions = self._server.sessions.all() if self._is_wanted() else []
        now = time.monotonic()
        with self._changed:
            self._due_at = {
                session: self._due_at.get(session, now + interval * _phase(session.id)) for session in sessions
            }
            self._failing.intersection_update(sessions)
            late = [session for session, since in self._asked.items() if now - since > _LATE_SECONDS]
            late = [session for session in late if session not in self._late]
            self._late.update(late)
            for _ in range(min(len(self._due(now)), self._room())):
                self._threads += self._start_thread()
        for session in late:
            error = f"it has not returned for {_LATE_SECONDS:g} s"
            log_event("error", session=session.id, hook="on_heartbeat", error=error)

    def _is_wanted(self) -> bool:
        hooks = self._server.hooks
        return bool(hooks.settings.heartbeat_url) or type(hooks).on_heartbeat is not Hooks.on_heartbeat

    def _due(self, now: float) -> list[Session]:
        """Those to ask now. Needs the lock."""
        return [session for session, at in self._due_at.items() if at <= now and session not in self._asked]

    def _room(self) -> int:
        """How many more threads there may be. Needs the lock."""
        return min(_BEATS_AT_ONCE + len(self._late), _BEATS_LIMIT) - self._threads

    def _start_thread(self) -> bool:
        try:
            threading.Thread(target=self._run, name="heartbeat", daemon=True).start()
        except RuntimeError:  # none can be had now
            return False
        return True

    def stop(self) -> None:
        """Call no more, and wait a second at most for calls that are under way. After the clock has stopped."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._threads, 1.0)

    # The threads of calls.

    def _run(self) -> None:
        while (session := self._next()) is not None:
            self._ask(session)
            with self._changed:
                del self._asked[session]
                self._late.discard(session)
                if session in self._due_at:
                    self._due_at[session] = time.monotonic() + self._server.config.Platform.heartbeat_interval

    def _next(self) -> Session | None:
        """The one that has waited longest; None ends the thread."""
        with self._changed:
            now = time.monotonic()
            due = [] if self._closed or self._room() < 0 else self._due(now)  # one that was late has been replaced
            if not due:
                self._threads -= 1
                self._changed.notify_all()
                return None
            session = min(due, key=self._due_at.__getitem__)
            self._asked[session] = now
            return session

    def _ask(self, session: Session) -> None:
        """Call the hook, which may end the session."""
        info = session.so_far()
        if info is None:
            return
        try:
            with self._server.metrics.timed("hook_seconds", "on_heartbeat"):
                self._server.hooks.on_heartbeat(info)
        except Denied as exc:
            session.stop(End(printable(str(exc)), DENIED))
        except Exception as exc:
            if self._has_turned(session, failed=True):
                hook_failure(exc, "on_heartbeat", session.id)
            return
        if self._has_turned(session, failed=False):
            log_event("warning", reason="on_heartbeat works again")

    def _has_turned(self, session: Session, *, failed: bool) -> bool:
        """Remember how the call went. Returns whether it is the first to fail, or the last of those is well again."""
        with self._changed:
            before = bool(self._failing)
            (self._failing.add if failed else self._failing.discard)(session)
            return bool(self._failing) != before


def _phase(session_id: str) -> float:
    """0 to 1, evenly spread: when in each interval a session has its turn."""
    return uuid.UUID(session_id).int / 2**128


# -- the servers ------------------------------------------------------------------------------------------------------


POLL_SECONDS = 0.1  # how soon a thread that accepts connections sees that it shall end


class ListenError(Exception):
    """The server cannot listen at its address; the text says why."""


class _Acceptor(socketserver.TCPServer):
    """Listens at an address of the configuration, or on a socket that the service manager has opened there."""

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, setting: str, text: str, inherited: socket.socket | None) -> None:
        """Bind the address, or take the socket; ``activate`` listens. Raises ListenError, which names the setting."""
        self._setting = f"{setting} in [Server]: {text}"
        self._inherited = inherited
        address = _host_and_port(text) if inherited is None else inherited.getsockname()[:2]
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler, bind_and_activate=False)
        self._try_listening(self.server_bind)

    def _try_listening(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as exc:
            self.server_close()
            raise ListenError(f"{self._setting}: {exc.strerror}") from exc

    def server_bind(self) -> None:
        if self._inherited is None:
            # HTTPServer would look the host's name up, which can hang on a broken DNS.
            socketserver.TCPServer.server_bind(self)
        else:
            self.socket.close()
            self.socket = self._inherited
            self.server_address = self.socket.getsockname()

    def activate(self) -> None:
        """Listen. Raises ListenError."""
        self._try_listening(self.server_activate)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):  # the connection stays pending: do not spin on it
                log_event("error", error="no file descriptor is left for a new connection")
                time.sleep(1.0)
            raise


def security_headers(config: Config) -> dict[str, str]:
    """Of every answer."""
    return {
        "Content-Security-Policy": _CONTENT_SECURITY_POLICY + (" ".join(config.Server.frame_ancestors) or "'none'"),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


class AdminListener(_Acceptor):
    """Accepts at ``admin_listen``, on the thread ``admin``; the server answers."""

    def __init__(self, server: JumpServer, inherited: socket.socket | None) -> None:
        self._server = server
        self._thread = threading.Thread(target=self.serve_forever, args=(POLL_SECONDS,), name="admin", daemon=True)
        super().__init__("admin_listen", server.config.Server.admin_listen, inherited)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._server.process_request(request, client_address)

    def start(self) -> None:
        """Raises ListenError."""
        self.activate()
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()


HAND_OVER_SECONDS = 2.0  # for giving a connection to another server
_SERVER_ID = re.compile(r"[0-9a-f]{32}")
_UNIX_ADDRESS_BYTES = 107  # unix(7)
_HANDED_BYTES = HEAD_LIMIT_BYTES + 100
_CREDENTIALS = struct.Struct("iII")  # process, user, group


class HandOver:
    """Gives connections to the other servers of this ledger, and takes those that they give. Linux.

    One datagram each, on a Unix socket beside the ledger that is this user's alone: the connection's descriptor, and
    as text the peer's address, a line feed and the request's head. The thread ``hand-over`` takes them.
    """

    def __init__(self, ledger: Ledger, take: Callable[[socket.socket, str, bytes], None]) -> None:
        self._ledger = ledger
        self._take = take
        self._path = ledger.socket_file(ledger.server)
        self._stopped = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._run, name="hand-over", daemon=True)

    def start(self) -> None:
        """Raises ListenError."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            with _unix_address(self._path) as address:
                self._socket.bind(address)
            self._path.chmod(0o600)
        except OSError as exc:
            raise ListenError(f"reuse_port in [Server]: cannot listen at {self._path}: {exc}") from exc
        self._thread.start()

    def stop(self) -> None:
        """End the thread: the socket's shutdown wakes it."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._path.unlink()
        if self._thread.is_alive():
            self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._socket.close()

    def give(self, server: str, connection: socket.socket, host: str, head: bytes) -> bool:
        """Whether that server has the connection now. Any thread; blocks 2 s at most. Raises BrowserGone."""
        try:
            path = self._ledger.socket_file(server)
            with _unix_address(path) as address, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(HAND_OVER_SECONDS)
                sock.connect(address)
                socket.send_fds(sock, [f"{host}\n".encode() + head], [connection.fileno()])
        except (FileNotFoundError, ConnectionRefusedError):
            return False  # that server has ended
        except OSError as exc:
            log_event("error", error=f"a connection cannot be handed over: {exc or type(exc).__name__}")
            raise BrowserGone from None  # it tries again
        return True

    def _run(self) -> None:
        room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4)
        while not self._stopped:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(_HANDED_BYTES, room, socket.MSG_CMSG_CLOEXEC)
            except OSError as exc:
                log_event("error", error=f"a connection cannot be taken: {exc}")
                time.sleep(0.1)  # such as no descriptor: do not spin on it
                continue
            connections = _passed_sockets(ancillary)
            if not self._stopped and not self._accept(data, flags, _sender(ancillary), connections):
                log_event("warning", reason="what came in place of a connection from another server was not one")
                for connection in connections:
                    connection.close()

    def _accept(self, data: bytes, flags: int, user: int | None, connections: list[socket.socket]) -> bool:
        """Take the connection if it is one, and from this user."""
        host, _, head = data.partition(b"\n")
        try:
            _check_head(head)
            address = host.decode("ascii")
        except (HeadRefused, ValueError):
            return False
        if user != os.geteuid() or flags & socket.MSG_TRUNC or not _HEAD_END.search(head) or len(connections) != 1:
            return False
        if connections[0].family not in (socket.AF_INET, socket.AF_INET6) or not parse_address(address):
            return False
        connections[0].settimeout(None)
        self._take(connections[0], address, head)
        return True


@contextlib.contextmanager
def _unix_address(path: Path) -> Iterator[str]:
    """The path of a Unix socket, by way of its folder's descriptor if it is too long to be an address."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        is_short = len(os.fsencode(path)) <= _UNIX_ADDRESS_BYTES
        yield str(path) if is_short else f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _passed_sockets(ancillary: list[tuple[int, int, bytes]]) -> list[socket.socket]:
    """The sockets whose descriptors came (unix(7), SCM_RIGHTS); other descriptors are closed."""
    found = []
    for _, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            for (descriptor,) in struct.iter_unpack("i", data[: len(data) // 4 * 4]):
                try:
                    found.append(socket.socket(fileno=descriptor))
                except OSError:
                    os.close(descriptor)
    return found


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """The user who sent it, as the kernel says (unix(7), SCM_CREDENTIALS)."""
    found = [_CREDENTIALS.unpack(data)[1] for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS]
    return found[0] if found else None


class JumpServer(_Acceptor, http.server.ThreadingHTTPServer):
    """The listening server. ``stop`` ends everything that it has started."""

    daemon_threads = True

    def __init__(
        self, config: Config, hooks: Hooks, inherited: Mapping[str, socket.socket] = types.MappingProxyType({})
    ) -> None:
        """Make the record folder and bind the addresses; ``start`` listens. Raises RecordError, ListenError.

        ``inherited``: see inherited_sockets.
        """
        self.config = config
        self.hooks = hooks
        self.folder = RecordFolder(config.record_path, config.Record.min_free)
        self.metrics = Metrics()
        self._chores = Chores(config, self.folder, self.metrics)
        self.keeper = Keeper(hooks, self._chores)
        self.notes = Notes(hooks.ledger)
        self.looks = Looks()
        self.clock = Clock()
        self.errands = Clock("errands")  # which wait for the ledger
        self.sessions = SessionRegistry(config.Server.max_sessions, config.Limits)
        self.login_rate = LoginRate()
        self.assets = load_assets(config.Server)
        self.security_headers = security_headers(config)
        self.places = Places(_PAGES, _PAGES_EACH)
        self.watchers = Places(_WATCHERS, _WATCHERS_EACH)
        self._changed = threading.Condition()  # guards the three below
        self._connections: set[socket.socket] = set()
        self._handed: dict[socket.socket, bytes] = {}  # the request's head, of connections that another server accepted
        self._heads: dict[socket.socket, str] = {}  # whose request has not been read yet, oldest first: the crowd
        self._beat = time.monotonic()  # of the listener, each time that it goes round
        self._stuck = ""
        self._end_at: float | None = None  # monotonic, of a drain
        self._warnings: list[float] = []  # seconds before the end at which open terminals are still to be told
        self._heartbeats = Heartbeats(self)
        space = Space(self.folder, self.sessions)
        self.clock.ticks += [self._report, self._count_down, self._tick_sessions, space.tick, self._heartbeats.tick]
        self.errands.ticks += [self._do_what_is_asked, self._write_notes]
        self._thread = threading.Thread(target=self.serve_forever, args=(POLL_SECONDS,), name="listener")
        self.admin: AdminListener | None = None
        self._hand_over: HandOver | None = None  # where other servers may have sessions to which browsers come back
        super().__init__("listen", config.Server.listen, inherited.get("listen"))
        if config.Server.admin_listen or "admin" in inherited:
            try:
                self.admin = AdminListener(self, inherited.get("admin"))
            except ListenError:
                self.server_close()
                raise

    def server_bind(self) -> None:
        if self.config.Server.reuse_port:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def service_actions(self) -> None:
        self._beat = time.monotonic()

    def process_request(self, request: Any, client_address: Any) -> None:
        crowd = self.config.Server.crowd(parse_address(client_address[0]))
        with self._changed:
            while not self._has_room(crowd):
                self._changed.wait(0.02)  # for threads that have something to read
            self._connections.add(request)
            self._heads[request] = crowd
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            log_event("error", error="no thread can be started for a new connection")
            self.shutdown_request(request)

    def _has_room(self, crowd: str) -> bool:
        """Whether one more head may be waited for. If not, the oldest silent connection gives way. Needs the lock."""
        heads = list(self._heads)
        if len(heads) < _HEADS:
            heads = [head for head in heads if crowd and self._heads[head] == crowd]
            if len(heads) < _HEADS_EACH:
                return True
        silent = next((head for head in heads if not _is_readable(head)), None)
        if silent is not None:
            del self._heads[silent]
            with contextlib.suppress(OSError):
                silent.shutdown(socket.SHUT_RDWR)
        return silent is not None

    def head_has_come(self, connection: socket.socket) -> bool:
        """Count the connection no longer among those that keep others waiting. False: it has had to give way."""
        with self._changed:
            return self._heads.pop(connection, None) is not None

    def _take(self, connection: socket.socket, host: str, head: bytes) -> None:
        """Answer on a connection that another server has accepted."""
        with self._changed:
            self._connections.add(connection)
            self._handed[connection] = head
        try:
            super().process_request(connection, (host, 0))
        except RuntimeError:
            log_event("error", error="no thread can be started for a new connection")
            self.shutdown_request(connection)

    def handed_head(self, connection: socket.socket) -> bytes:
        """The request's head, if another server has read it; else b""."""
        with self._changed:
            return self._handed.pop(connection, b"")

    def resume_name(self, session_id: str) -> str:
        """How a browser that comes back names the session, to whichever server it comes."""
        return f"{self.hooks.ledger.server}.{session_id}" if self._hand_over else session_id

    def hand_over(self, name: str, connection: socket.socket, host: str, head: bytes) -> bool:
        """Give the connection to the server that has the session, if that is another that lives. Raises BrowserGone.

        If so, the connection is closed here, and must not be shut down.
        """
        server = name.partition(".")[0]
        if self._hand_over is None or not _SERVER_ID.fullmatch(server) or server == self.hooks.ledger.server:
            return False
        given = self._hand_over.give(server, connection, host, head)
        if given:
            connection.close()
        return given

    def shutdown_request(self, request: Any) -> None:
        with self._changed:
            self._handed.pop(request, None)
            self._heads.pop(request, None)
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away in the middle of an answer is no event.
        if not isinstance(sys.exc_info()[1], OSError):
            log_fault(traceback.format_exc(), remote=parse_address(client_address[0]))

    def start(self) -> None:
        """Open the ledger, and serve on a thread of its own. Raises HookError, ListenError."""
        self.hooks.open()
        self.keeper.start()
        server = self.config.Server
        if server.reuse_port and server.resume_grace and hasattr(socket, "SO_PASSCRED"):
            self._hand_over = HandOver(self.hooks.ledger, self._take)
            self._hand_over.start()
        self.activate()  # not before: of several on a port, each gets its share from here on
        if self.admin is not None:
            self.admin.start()
        self._beat = time.monotonic()
        self._thread.start()
        self.clock.start()
        self.errands.start()
        host, port = map(str, self.server_address[:2])
        self._warn_of_what_is_missing()
        log_event(
            "start",
            version=__version__,
            listen=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            records=self.config.record_path,
        )

    def reload(self, config: Config) -> None:
        """Go on with this configuration, as far as it can change; open sessions keep theirs. Logs what cannot."""
        config, differ = keep_fixed(self.config, config)
        assets = load_assets(config.Server)
        self.config = self._chores.config = config
        self.hooks.settings = config.hooks_settings()
        self.sessions.change_limits(config.Server.max_sessions, config.Limits)
        self.assets, self.security_headers = assets, security_headers(config)
        log_event("reload")
        for key in differ:
            log_event("warning", reason=f"{key} is as before: it changes at the next start only")
        self._warn_of_what_is_missing()

    def _warn_of_what_is_missing(self) -> None:
        for line in what_is_missing(self.config, type(self.hooks), self.assets):
            log_event("warning", reason=line)

    def authorize(self, token: str, action: str, filename: str) -> str:
        """Ask the hook of that name, if it knows the action. Raises what it raises."""
        if action not in self.hooks.actions:
            raise Denied(f"the hooks of this server do not say who may {action}")
        return self.hooks.authorize(token, action, filename)

    def trouble(self) -> str:
        """Why no terminal can be opened now; "" when one can."""
        return SHUTTING_DOWN.reason if self.sessions.closing else self.keeper.trouble

    def came_to_admin(self, connection: socket.socket) -> bool:
        """Whether the connection came in at ``admin_listen``."""
        return self.admin is not None and connection.getsockname()[1] == self.admin.server_address[1]

    def numbers(self) -> str:
        """All numbers, in Prometheus' text format."""
        return self.metrics.text(
            ready=not self.trouble(),
            sessions_open=len(self.sessions),
            watchers=len(self.watchers),
            detached=sum(session.is_detached for session in self.sessions.all()),
            free_bytes=self._free_bytes(),
            outbox_length=len(self.keeper),
            threads=threading.active_count(),
        )

    def _free_bytes(self) -> float:
        try:
            return float(shutil.disk_usage(self.config.record_path).free)
        except OSError:
            return math.nan

    def stuck(self) -> str:
        """The thread that has not gone round for STUCK_SECONDS and without which nothing goes on; "" if none."""
        beats = {"listener": self._beat, "keeper": self.keeper.beat}
        return next((name for name, beat in beats.items() if time.monotonic() - beat > STUCK_SECONDS), "")

    def _report(self) -> None:
        """Tell the service manager how it goes; a thread that is stuck stops the watchdog."""
        stuck = self.stuck()
        if stuck != self._stuck:
            self._stuck = stuck
            log_event("error", error=f"the thread {stuck} is stuck") if stuck else log_event(
                "warning", reason="no thread is stuck any more"
            )
        state = [f"STATUS={len(self.sessions)} sessions"]
        if not stuck and watchdog_is_wanted():
            state.append("WATCHDOG=1")
        if self._end_at is not None:
            state.append(f"EXTEND_TIMEOUT_USEC={int((STOP_SECONDS + 10) * 1e6)}")
        notify_systemd("\n".join(state))

    def drain(self, seconds: float) -> None:
        """Open no more terminals. Those that are open are told, again and again, that they end in ``seconds``."""
        self.sessions.refuse_more()
        log_event("drain", seconds=seconds, sessions=len(self.sessions))
        self._warnings = [seconds, *(left for left in _WARNINGS if left < seconds)]
        self._end_at = time.monotonic() + seconds

    def _tick_sessions(self) -> None:
        for session in self.sessions.all():
            session.tick(time.monotonic())

    def _do_what_is_asked(self) -> None:
        """Do what was asked of this server's sessions, by it or by others on the same ledger."""
        with contextlib.suppress(LedgerError):  # the keeper tells of it
            for ask in self.hooks.ledger.asked():
                session = self.sessions.find(ask.session_id)
                if session is not None:  # else it has ended meanwhile
                    self._do(ask, session)

    def _do(self, ask: Ask, session: Session) -> None:
        if ask.what == "end":
            session.stop(ended_by(ask.by, ask.reason))
        elif ask.what == "watch":
            session.announce(ask.by)

    def _write_notes(self) -> None:
        with contextlib.suppress(LedgerError):  # they go on waiting
            self.notes.write(time.monotonic() + _ERRAND_SECONDS)

    def _count_down(self) -> None:
        left = self._end_at - time.monotonic() if self._end_at is not None else math.inf
        due = [warning for warning in self._warnings if warning >= left]
        if not due:
            return
        self._warnings = [warning for warning in self._warnings if warning < left]
        how_long = f"{round(left / 60)} minutes" if left >= 90 else f"{max(0, round(left))} seconds"
        for session in self.sessions.all():
            session.notify(f"{SHUTTING_DOWN.reason}: this terminal ends in {how_long}")

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End all sessions with a word in their terminals, then everything else. Blocks for ``seconds`` at most.

        Half of the time is the sessions' own; then their browsers are dropped; the last quarter is the keeper's.
        """
        started = self._thread.is_alive()
        deadline = time.monotonic() + seconds
        self.clock.stop()
        self._heartbeats.stop()
        self.errands.stop()
        if started:
            self.shutdown()
            self._thread.join()
        if self.admin is not None:
            self.admin.stop()
        if self._hand_over is not None:
            self._hand_over.stop()
        self.server_close()  # first: new connections must be refused, or go to another server on the port
        self.sessions.close(SHUTTING_DOWN)
        if not self.sessions.wait_empty(seconds / 2):
            self.sessions.abort()
            self.sessions.wait_empty(seconds / 4)
        self._drop_connections()
        self.keeper.finish(deadline)
        self.notes.finish(deadline)
        self.hooks.close()
        if started:
            log_event("stop")

    def _drop_connections(self) -> None:
        with self._changed:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._connections, timeout=1.0)


def _is_readable(sock: socket.socket | _SharedSocket, seconds: float = 0.0) -> bool:
    """Whether there is something to read, or the end, within so long."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


# -- the program ------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C, or run a command. Returns the exit status: 2 for what must be mended first."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # foreign text, whatever the locale can say
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except ConfigError as exc:
        print(f"jumpserver: {exc}", file=sys.stderr)
    except (HookError, RecordError, ListenError) as exc:
        print(f"jumpserver: {options.jumpserver}: {exc}", file=sys.stderr)
    except BrokenPipeError:  # whoever reads this has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the exit
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 2


def _parser() -> argparse.ArgumentParser:
    """The command line. ``run`` of what it parses takes the options and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="jumpserver",
        usage="jumpserver [-jumpserver FILE] [--check | --version | COMMAND ...]",
        description="Opens recorded terminals in Kubernetes pods. Without a command, it serves.",
        epilog="jumpserver COMMAND --help says more of a command.",
    )
    _add_jumpserver(parser, Path("jumpserver.toml"))
    parser.add_argument("--check", action="store_true", help="check the configuration and the hooks file, then exit")
    version = f"{__version__} ({__commit__})" if __commit__ else __version__
    parser.add_argument("--version", action="version", version=f"jumpserver {version}")
    parser.set_defaults(run=run_server)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", prog="jumpserver")

    command = _add_command(commands, "commands", run_commands, "print what was run: time, user, pod, command")
    _add_filters(command)
    command.add_argument("pattern", metavar="PATTERN", nargs="?", default="", help="text that the command has in it")

    command = _add_command(commands, "grep", run_grep, "print which recordings showed a text: session, second, line")
    _add_filters(command)
    command.add_argument("--ignore-case", action="store_true", help="take upper and lower case for the same")
    command.add_argument("pattern", metavar="PATTERN", help="the text; no character of it has a meaning of its own")

    command = _add_command(commands, "transcript", run_transcript, "print a session as plain text")
    command.add_argument("file", metavar="FILE", help="a recording, its name in the ledger, or the id of its session")

    command = _add_command(commands, "verify", run_verify, "hold ledger and recordings against the chain")
    command.add_argument("--head", default="", help="a head of the chain from the log or a logout: it must be in there")
    _add_since(command, "no recordings of sessions that ended before")

    command = _add_command(commands, "retire", run_retire, "remove old recordings, and say so in the ledger")
    command.add_argument(
        "--older-than", metavar="AGE", type=argument_age, required=True, help="of sessions that ended so long ago: 180d"
    )

    summary = "write a configuration, a hooks file, a systemd unit and nginx's part into a folder"
    command = commands.add_parser("init", help=summary, description=f"{summary.capitalize()}. Nothing is overwritten.")
    command.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path(), help="this one by default")
    command.set_defaults(run=run_init)

    summary = "say how to see it all with a stand-in for a cluster"
    command = commands.add_parser("demo", help=summary, description=f"{summary.capitalize()}.")
    command.set_defaults(run=run_demo)
    return parser


def _add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    """A command that is told of the configuration as the server is."""
    command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    _add_jumpserver(command, argparse.SUPPRESS)  # not to undo what stands before the command
    command.set_defaults(run=run)
    return command


def _add_jumpserver(parser: argparse.ArgumentParser, default: object) -> None:
    meaning = "the configuration; jumpserver.toml by default"
    parser.add_argument("-jumpserver", "--jumpserver", metavar="FILE", type=Path, default=default, help=meaning)


def _add_filters(command: argparse.ArgumentParser) -> None:
    command.add_argument("--user", metavar="USER", default="", help="of this user's sessions only")
    _add_since(command, "since then only")


def _add_since(command: argparse.ArgumentParser, meaning: str) -> None:
    forms = "such as 2026-11-25, 2026-11-25T10:30, or 7d for a week ago"
    command.add_argument("--since", metavar="DATE", type=argument_time, help=f"{meaning}; {forms}")


def argument_age(text: str) -> float:
    """``parse_age`` for an argument. Raises ArgumentTypeError."""
    seconds = parse_age(text)
    if seconds is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of m, h, d or w, such as 180d")
    return seconds


def argument_time(text: str) -> float:
    """``parse_time`` for an argument. Raises ArgumentTypeError."""
    try:
        return parse_time(text, None)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a date such as 2026-11-25 nor an age such as 7d"
        ) from None


def visible(text: str) -> str:
    """Foreign text made safe for a terminal: what cannot be printed, line ends included, is escaped as Python does."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextlib.contextmanager
def opened_ledger(config: Config) -> Iterator[Ledger]:
    """The ledger, for a command that runs beside the servers on it. Raises HookError."""
    ledger = _hooks_class(config).make_ledger(config.hooks_settings())
    ledger.open()
    with contextlib.closing(ledger):
        yield ledger


def _hooks_class(config: Config) -> type[Hooks]:
    return load_hooks(config.folder / config.Hooks.file if config.Hooks.file else None)


_PAGE_ROWS = 500  # of the ledger, at a time


def run_commands(options: argparse.Namespace) -> int:
    """``commands``: a line for each, the newest first."""
    query = CommandQuery(q=options.pattern, user=options.user, since=options.since, limit=_PAGE_ROWS)
    with opened_ledger(load_config(options.jumpserver)) as ledger:
        while found := ledger.commands(query):
            for command, info in found:
                when = datetime.fromtimestamp(info.login_at + command.seconds).isoformat(" ", "seconds")
                who, where = info.auth.user or "-", f"{info.auth.namespace}/{info.auth.pod_name}"
                print(when, visible(who), visible(where), visible(command.text))
            query = dataclasses.replace(query, before=cursor(found[-1][0]))
    return 0


def run_grep(options: argparse.Namespace) -> int:
    """``grep``: exit status 0 if something was found, 1 if not, 2 if a recording could not be read, as of grep."""
    config = load_config(options.jumpserver)
    if not options.pattern or "\n" in options.pattern:
        raise ConfigError("PATTERN must be one line of text")
    wanted = Wanted(options.pattern, ignore_case=options.ignore_case)
    searched = hits = failures = 0

    with contextlib.closing(Progress()) as progress:

        def step(count: int) -> None:
            nonlocal searched
            searched += count
            progress.step("MB searched", searched // 10**6, 0)

        for path in _chosen_recordings(config, options):
            try:
                with open_recording(path) as file:
                    for found in search(file, wanted, step):
                        hits += 1
                        progress.print(f"{session_of(path)} {found.seconds:.3f} {visible(found.line.rstrip())}")
            except FileNotFoundError:
                continue  # retired meanwhile
            except BrokenPipeError:  # of the output
                raise
            except OSError as exc:
                failures += 1
                progress.close()
                print(f"jumpserver: {path}: {exc.strerror}", file=sys.stderr)
    return 2 if failures else 0 if hits else 1


def _chosen_recordings(config: Config, options: argparse.Namespace) -> Iterator[Path]:
    """The recordings of the sessions in the ledger that the options choose; without options, all that lie there."""
    if not options.user and options.since is None:
        yield from recordings(config.record_path)
        return
    with opened_ledger(config) as ledger:
        for info in _sessions(ledger, SessionQuery(user=options.user, since=options.since, limit=_PAGE_ROWS)):
            with contextlib.suppress(RecordError):  # it is retired, or lost, as verify would say
                yield find_recording(config.record_path, info.filename)


def run_transcript(options: argparse.Namespace) -> int:
    """``transcript``"""
    path = Path(options.file)
    if not os.path.isfile(path):
        root = load_config(options.jumpserver).record_path
        try:
            path = find_recording(root, options.file)
        except RecordError:
            path = find_recording(root, str(recording_path(root, options.file)))
    try:
        with open_recording(path) as file:
            for line in transcript(file):
                print(line)
    except BrokenPipeError:  # of the output
        raise
    except OSError as exc:
        print(f"jumpserver: {path}: {exc.strerror}", file=sys.stderr)
        return 2
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """``verify``: a line for each thing that does not fit, then one that counts. Exit status 1 if there is one."""
    config = load_config(options.jumpserver)
    with opened_ledger(config) as ledger, contextlib.closing(Progress()) as progress:
        proof = Proof(
            ledger,
            functools.partial(_recorded, config.record_path),
            head=options.head,
            since=options.since or 0.0,
            step=progress.step,
        )
        count = 0
        unknown = _unknown_recordings(ledger, config.record_path, progress)
        for finding in itertools.chain(proof.findings(), unknown):
            count += 1
            progress.print(visible(finding))
        progress.print(
            f"{proof.entries} entries, {proof.sessions} sessions, {proof.recordings} recordings read,"
            f" {proof.retired} retired: {f'{count} faults' if count else 'good'}"
        )
    return 1 if count else 0


def _recorded(root: Path, info: SessionInfo) -> tuple[int, str]:
    """Size and digest of a session's recording; nothing of an open one but that it is there. Raises OSError."""
    try:
        path = find_recording(root, info.filename)
    except RecordError as exc:
        raise FileNotFoundError(str(exc)) from exc
    if info.logout_at is None:
        return 0, ""
    try:
        found = examine(path)
    except RecordError as exc:
        raise OSError(str(exc)) from exc
    return found.size, found.sha256


_LOGIN_SECONDS = 60.0  # at most between a recording's beginning and its row


def _unknown_recordings(ledger: Ledger, root: Path, progress: Progress) -> Iterator[str]:
    """The recordings of which no session says that they are its own."""
    for number, path in enumerate(recordings(root), 1):
        progress.step("files", number, 0)
        info = ledger.session(session_of(path))
        with contextlib.suppress(OSError):  # it is being packed, or retired
            is_new = 0 <= time.time() - path.stat().st_ctime < _LOGIN_SECONDS
            own = _own_recording(root, info) if info else None
            if not is_new and (own is None or own.parent != path.resolve().parent):  # for a moment, it has both forms
                yield f"{path} is the recording of no session in the ledger"


def _own_recording(root: Path, info: SessionInfo) -> Path | None:
    """The recording of a session, if it is there and no other session's."""
    with contextlib.suppress(RecordError):
        path = find_recording(root, info.filename)
        return path if session_of(path) == info.session_id else None
    return None


def run_retire(options: argparse.Namespace) -> int:
    """``retire``: the ledger says it first, so that a crash in between leaves a file rather than a riddle."""
    config = load_config(options.jumpserver)
    before = time.time() - options.older_than
    count = size = 0
    with opened_ledger(config) as ledger, contextlib.closing(Progress()) as progress:
        for info in _sessions(ledger, SessionQuery(state="ended", until=before, limit=_PAGE_ROWS)):
            progress.step("recordings retired", count, 0)
            if (info.logout_at or before) < before and (path := _own_recording(config.record_path, info)):
                size += _retire(ledger, info, path)
                count += 1
    print(f"{count} recordings retired, {size / (1 << 20):.1f} MiB")
    return 0


def _sessions(ledger: Ledger, query: SessionQuery) -> Iterator[SessionInfo]:
    """All sessions that the query finds, a page at a time."""
    while found := ledger.find(query):
        yield from found
        query = dataclasses.replace(query, before=cursor(found[-1]))


def _retire(ledger: Ledger, info: SessionInfo, path: Path) -> int:
    """Remove a recording; returns its size on the disk in bytes."""
    try:
        size = path.stat().st_size
        ledger.append("retired", info.session_id, filename=info.filename, size=info.size, sha256=info.sha256)
        path.unlink()
    except OSError as exc:
        raise RecordError(f"cannot remove {path}: {exc.strerror}") from exc
    return size


class Progress:
    """A bar on stderr, if that is a terminal. One thread."""

    _EVERY_SECONDS = 0.1
    _WIDTH = 30

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._due = time.monotonic() + self._EVERY_SECONDS

    def step(self, what: str, done: int, of: int) -> None:
        """Say how far it has come; ``of``: 0 where the end is not known."""
        if not self._is_shown or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._EVERY_SECONDS
        filled = min(self._WIDTH, self._WIDTH * done // of) if of else 0
        bar = f"[{'#' * filled:{self._WIDTH}}] " if of else ""
        self._draw(f"{bar}{done:,} {what}")

    def print(self, line: str) -> None:
        """A line on stdout, above the bar."""
        self.close()
        print(line, flush=self._is_shown)

    def close(self) -> None:
        """Remove the bar."""
        if self._is_shown:
            self._draw("")

    def _draw(self, text: str) -> None:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def run_server(options: argparse.Namespace) -> int:
    """Without a command: serve, or only check the configuration."""
    start_log()
    try:
        return _run_server(options)
    except (ConfigError, HookError, RecordError, ListenError) as exc:
        if options.check or not log_is_for_machines():
            raise
        log_event("error", error=exc)
        return 2


def _run_server(options: argparse.Namespace) -> int:
    sys.dont_write_bytecode |= options.check  # of the hooks file: nothing is written
    config = load_config(options.jumpserver)
    hooks_class = _hooks_class(config)
    check_record_path(config, options.jumpserver)
    if options.check:
        check_ledger_path(config, options.jumpserver)
        for line in what_is_missing(config, hooks_class, load_assets(config.Server)):
            print(f"jumpserver: {options.jumpserver}: warning: {line}", file=sys.stderr)
        print(f"{options.jumpserver}: good")
        return 0
    return serve(config, hooks_class(config.hooks_settings()), options.jumpserver)


# What init writes: the files in deploy/, and the modes they get.
INIT_MODES = {"jumpserver.toml": 0o640, "our_hooks.py": 0o644, "jumpserver.service": 0o644, "nginx.conf": 0o644}
_UNIT_PATH = re.compile(r"[\w.+@/-]+", re.ASCII)  # which neither a unit nor a shell takes for anything else
_NEXT_STEPS = """\
1. Name your clusters' kubeconfigs under [Clusters] of {folder}/jumpserver.toml, and give its secret to your platform.
2. useradd --system jumpserver; install -d -o jumpserver -g jumpserver -m 750 {folder}/records
3. chgrp jumpserver {folder}/jumpserver.toml, and {program} --check -jumpserver {folder}/jumpserver.toml
4. cp {folder}/jumpserver.service /etc/systemd/system/ && systemctl enable --now jumpserver
5. Put {folder}/nginx.conf's locations into the platform's nginx; /jumpserver/#ssh_token=<token> opens a terminal."""


def run_init(options: argparse.Namespace) -> int:
    """``init``: what stands in deploy/, for this folder and with a secret of its own."""
    folder, program = str(options.folder.absolute()), os.path.abspath(sys.argv[0])
    for path in (folder, sys.executable, program):
        if not _UNIT_PATH.fullmatch(path):
            raise ConfigError(f"{path}: choose a path of letters, digits and . _ + @ - only, for the sake of the unit")
    ours = {
        "/opt/jumpserver/.venv/bin/python /opt/jumpserver/jumpserver.py": f"{sys.executable} {program}",
        "/opt/jumpserver": folder,
        "/data/jumpserver": folder,
        'secret = ""': f'secret = "{secrets.token_urlsafe(32)}"',
    }
    try:
        os.makedirs(folder, exist_ok=True)
        for name, mode in INIT_MODES.items():
            template = shipped(f"deploy/{name}").decode()
            written = _write_new(os.path.join(folder, name), _replaced(template, list(ours.items())), mode)
            print(f"{folder}/{name}{'' if written else ' is there already'}")
    except OSError as exc:
        raise ConfigError(f"{exc.filename or folder}: {exc.strerror}") from exc
    print(f"\n{_NEXT_STEPS.format(folder=folder, program=f'{sys.executable} {program}')}")
    return 0


def _replaced(text: str, pairs: list[tuple[str, str]]) -> str:
    """The text with the second of each pair in the place of the first; what was put in is left alone by later pairs."""
    if not pairs:
        return text
    (old, new), *others = pairs
    return new.join(_replaced(part, others) for part in text.split(old))


def _write_new(path: str, text: str, mode: int) -> bool:
    """Write a file of that mode, whatever the umask is; False if there is one. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
    return True


def run_demo(options: argparse.Namespace) -> int:
    """``demo``: what it needs is not in the one file, since its certificates are made by a compiled library."""
    print(
        "The demo is in the source, not in this program: it plays a cluster, with certificates that the library\n"
        "cryptography makes. In a checkout, `make demo` installs what it needs and starts a platform, a jumpserver\n"
        'and the stand-in cluster; `make demo ARGS="--kubeconfig FILE -n NAMESPACE POD"` takes a cluster of your own.'
    )
    return 0


def what_is_missing(config: Config, hooks_class: type[Hooks], assets: Mapping[str, Asset]) -> list[str]:
    """What an operator hardly wants, in sentences."""
    found = []
    decides = hooks_class.validate_ssh_token is not Hooks.validate_ssh_token
    if not (decides or config.Token.secret or config.Platform.validate_url):
        found.append("every token will be refused: set [Token] secret, [Platform] validate_url or [Hooks] file")
    missing = missing_assets(assets)
    if missing:
        found.append(f"{len(missing)} files of the pages are missing: run `npm ci` in the folder static")
    return found


def serve(config: Config, hooks: Hooks, file: Path) -> int:
    """Serve until a signal to end comes; SIGHUP reads ``file`` again. Raises HookError and ListenError at the start."""
    # Freeing one large untouched block makes glibc keep freed memory instead of giving each piece of output back to
    # the kernel at once. Measured: 1.4 times the throughput.
    bytes(8 << 20)
    raise_descriptor_limit(config.Server.max_sessions)
    server = JumpServer(config, hooks, inherited_sockets())
    # A handler alone might not wake a main thread that waits for a lock; a byte on a socket always does.
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    with woken, waker:
        try:
            server.start()
            notify_systemd("READY=1")
            while _next_signal(woken, None) == signal.SIGHUP:
                _reload(server, file)
            notify_systemd("STOPPING=1")
            _drain(server, woken)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):  # from here on, another signal ends the process at once
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            server.stop()
    return 0


def _next_signal(woken: socket.socket, seconds: float | None) -> int:
    """The signal that came within ``seconds``; 0 if none did."""
    return woken.recv(1)[0] if select.select([woken], [], [], seconds)[0] else 0


def _reload(server: JumpServer, file: Path) -> None:
    """Read the configuration again; one that cannot be used changes nothing."""
    notify_systemd("RELOADING=1")
    try:
        config = load_config(file)
        raise_descriptor_limit(config.Server.max_sessions)
        server.reload(config)
    except ConfigError as exc:
        log_event("error", error=f"nothing of the configuration has changed: {exc}")
    except Exception:  # such as of a file that nests too deep: what runs must go on
        log_fault(traceback.format_exc())
    notify_systemd("READY=1")


def _drain(server: JumpServer, woken: socket.socket) -> None:
    """Let open terminals go on until ``drain_timeout`` is over, none is left, or another signal to end comes."""
    seconds = server.config.Server.drain_timeout
    if not seconds:
        return
    server.drain(seconds)
    deadline = time.monotonic() + seconds
    while len(server.sessions) and time.monotonic() < deadline:
        if _next_signal(woken, 0.1) not in (0, signal.SIGHUP):
            break


# -- the log ----------------------------------------------------------------------------------------------------------

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4}  # sd-daemon(3); of all else 6


class JsonFormat(logging.Formatter):
    """An object a line, in ASCII: time, level, and the event with its fields, or the message of somebody else."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        own = record.msg
        said = own.as_json() if isinstance(own, LogEvent) else {"event": "message", "message": super().format(record)}
        return json.dumps({"time": when, "level": record.levelname.lower(), **said}, default=str)


class JournalFormat(logging.Formatter):
    """Each line with the priority that the journal is to give it, which adds the time by itself."""

    def __init__(self, form: logging.Formatter) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in self._form.format(record).split("\n"))


def log_format(name: str, to_journal: bool) -> logging.Formatter:
    """``name``: text or json. Raises ConfigError."""
    forms = {
        "text": logging.Formatter("%(message)s" if to_journal else "%(asctime)s %(levelname)s %(message)s"),
        "json": JsonFormat(),
    }
    if name not in forms:
        raise ConfigError(f"the variable LOG_FORMAT must be {' or '.join(forms)}")
    return JournalFormat(forms[name]) if to_journal else forms[name]


def start_log() -> None:
    """Log to stderr in the form that LOG_FORMAT names, which may be the journal. Raises ConfigError."""
    handler = logging.StreamHandler()
    handler.setFormatter(log_format(_log_format_name(), stderr_is_the_journal()))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def log_is_for_machines() -> bool:
    """Whether each line of stderr is to be an event, the last words before an exit included."""
    return _log_format_name() == "json" or stderr_is_the_journal()


def _log_format_name() -> str:
    return os.environ.get("LOG_FORMAT") or "text"


def stderr_is_the_journal() -> bool:
    """Whether what JOURNAL_STREAM names is still stderr (systemd.exec(5))."""
    try:
        status = os.stat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # there is no stderr
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


# -- systemd ----------------------------------------------------------------------------------------------------------

_FIRST_DESCRIPTOR = 3  # sd_listen_fds(3)


def notify_systemd(state: str) -> None:
    """Tell the service manager, if there is one that wants to know (sd_notify(3)). Any thread; blocks 1 s at most."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1.0)
            sock.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)


def watchdog_is_wanted() -> bool:
    """Whether the service manager waits for a sign of life of this process (sd_watchdog_enabled(3))."""
    return "WATCHDOG_USEC" in os.environ and os.environ.get("WATCHDOG_PID") in (None, str(os.getpid()))


def inherited_sockets() -> dict[str, socket.socket]:
    """The sockets that the service manager has opened for this process (sd_listen_fds(3)): "listen", "admin".

    One that it calls "admin" stands for ``admin_listen``, one of any other name for ``listen``. A child of this
    process gets neither them nor the variables. Raises ListenError.
    """
    count, pid, names = (os.environ.pop(f"LISTEN_{name}", "") for name in ("FDS", "PID", "FDNAMES"))
    found: dict[str, socket.socket] = {}
    if pid != str(os.getpid()) or not count.isdecimal():
        return found
    for index, name in enumerate((names.split(":") + [""] * int(count))[: int(count)]):
        try:
            sock = socket.socket(fileno=_FIRST_DESCRIPTOR + index)
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as exc:
            raise ListenError(f"LISTEN_FDS: descriptor {_FIRST_DESCRIPTOR + index}: {exc.strerror}") from exc
        role = "admin" if name == "admin" else "listen"
        if not listens or sock.family not in (socket.AF_INET, socket.AF_INET6) or role in found:
            raise ListenError("LISTEN_FDS: there must be one TCP socket that listens, and perhaps one named admin")
        sock.set_inheritable(False)
        sock.setblocking(False)  # another process may take the connection first
        found[role] = sock
    return found


def raise_descriptor_limit(sessions: int) -> None:
    """A session needs six descriptors, and two more while it opens; 1,024 is a common limit. Does what it may."""
    wanted = 8 * sessions + 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
