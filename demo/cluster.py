"""A stand-in for the part of a Kubernetes API server that a terminal needs: TLS, identities, pods and exec.

Owns: the certificate authority, the users, the HTTP side and the refusals. `demo.stream` speaks on an exec
stream that is open, `demo.pods` runs the program. It knows nothing of the product. The answers are those
of real clusters in two flavours, "new" (1.36) and "old" (1.32).
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, final
from urllib.parse import parse_qs, unquote, urlsplit

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from wsproto.utilities import generate_accept_token

from .endings import ENDINGS, NOT_RUNNING, UNSCHEDULABLE
from .pods import Image, Pod, kill_in, processes_in
from .stream import BUFFER_BYTES, V4, V5, Exec, Session

__all__ = ["DEFAULT_PODS", "DEFAULT_USERS", "Exec", "Pod", "StandIn", "User"]

HEAD_SECONDS = 10.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class User:
    """`verbs` are those allowed on `pods/exec`, and "impersonate"; `reads_pods` is `get` and `list` on `pods`."""

    name: str
    verbs: frozenset[str] = frozenset(("get", "create"))
    password: str = ""  # of basic authentication; empty: it has none
    reads_pods: bool | None = None  # None: whoever may `get` on pods/exec


DEFAULT_PODS = (
    Pod("default", "demo", whole_host=True),
    Pod("default", "busybox", programs=("sh",)),
    Pod("default", "multi", containers=("c1", "c2")),
    Pod("default", "distroless", programs=(), tools=("cat", "sleep")),
    Pod("default", "finished", state="finished"),
    Pod("default", "pending", state="pending"),
    Pod("kube-system", "busybox", programs=("sh",)),
)
DEFAULT_USERS = (User("demo"), User("reader", frozenset(("get",))), User("nobody", frozenset()))
ANONYMOUS = User("system:anonymous", frozenset())


class Refusal(Exception):
    """An HTTP answer instead of the one asked for: a Status object, or text/plain."""

    def __init__(self, code: int, body: str | dict[str, Any]) -> None:
        super().__init__(code)
        self.code, self.body = code, body


def _refuse(code: int, reason: str, message: str, **details: str) -> Refusal:
    status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    status.update(message=message, reason=reason)
    if details:
        status["details"] = details
    return Refusal(code, {**status, "code": code})


def _forbidden(user: str, verb: str, resource: str, namespace: str, name: str = "") -> Refusal:
    which = f'pods "{name}" is' if name else "pods is"
    cannot = f'User "{user}" cannot {verb} resource "{resource}" in API group ""'
    message = f'{which} forbidden: {cannot} in the namespace "{namespace}"'
    return _refuse(403, "Forbidden", message, name=name, kind="pods")


class _Server(ThreadingHTTPServer):
    """Accepts at once; TLS is spoken in the connection's thread. Knows its threads and sockets."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, cluster: StandIn, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.cluster = cluster
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._context = context
        self._lock = threading.Lock()  # guards _connections
        self._connections: dict[threading.Thread, socket.socket] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # http.server's own looks up the host name, which can hang on DNS.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self._serve_connection,
            args=(request, client_address),
            name="standin-connection",
            daemon=True,
        )
        with self._lock:
            self._connections[thread] = request
        thread.start()

    def _serve_connection(self, raw: socket.socket, client_address: Any) -> None:
        sock = raw
        try:
            raw.settimeout(HEAD_SECONDS)
            sock = self._context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
            with self._lock:
                self._connections[threading.current_thread()] = sock
            if not self.cluster.stopping:
                sock.do_handshake()
                _Handler(sock, client_address, self)
        except OSError:
            pass  # the client went away, or never spoke TLS
        finally:
            with self._lock:
                del self._connections[threading.current_thread()]
            sock.close()

    def close(self, deadline: float) -> None:
        """Cut every connection and wait for its thread."""
        self.server_close()
        with self._lock:
            connections = dict(self._connections)
            for sock in connections.values():
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in connections:
            thread.join(max(0.0, deadline - time.monotonic()))


class _Handler(BaseHTTPRequestHandler):
    """One connection of plain HTTP; an exec request turns it into a stream and ends it."""

    protocol_version = "HTTP/1.1"
    timeout = HEAD_SECONDS
    rbufsize = 0  # nothing of the stream may hide in a buffer
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        try:
            self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 1 << 20))
            answer = self._route()
        except Refusal as refusal:
            self._answer(refusal.code, refusal.body)
        else:
            if answer is not None:
                self._answer(200, answer)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `StandIn.execs` is the log."""

    def _answer(self, code: int, body: str | dict[str, Any]) -> None:
        text = isinstance(body, str)
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; charset=utf-8" if text else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _route(self) -> dict[str, Any] | None:
        url = urlsplit(self.path)
        cluster = self.server.cluster
        if not url.path.startswith(f"{cluster.path_prefix}/"):
            raise Refusal(404, "404 page not found")
        path = tuple(unquote(part) for part in url.path[len(cluster.path_prefix) :].strip("/").split("/"))
        user = cluster.authenticate(self.connection.getpeercert(), self.headers.get("Authorization", ""))
        user = cluster.impersonate(user, self.headers.get("Impersonate-User", ""))
        if path[:3] == ("api", "v1", "namespaces") and len(path) in (5, 6, 7) and path[4] == "pods":
            if len(path) == 7 and path[6] == "exec":
                self._exec(user, path[3], path[5], parse_qs(url.query, keep_blank_values=True))
                return None
            verb = "get" if path[5:] else "list"
            cluster.asked.add((verb, "pods"))
            if not ("get" in user.verbs if user.reads_pods is None else user.reads_pods):
                raise _forbidden(user.name, verb, "pods", path[3], "".join(path[5:]))
            if len(path) == 6:
                return cluster.pod_object(cluster.find(path[3], path[5]).pod)
            if len(path) == 5:
                pods = [pod for pod in cluster.pods() if pod.namespace == path[3]]
                return _pod_table(pods) if "as=Table" in self.headers.get("Accept", "") else _pod_list(pods)
        if path in DISCOVERY:
            return {"gitVersion": "v1.36.0" if cluster.flavour == "new" else "v1.32.0", **DISCOVERY[path]}
        raise _refuse(404, "NotFound", "the server could not find the requested resource")

    def _exec(self, user: User, namespace: str, name: str, query: dict[str, list[str]]) -> None:
        cluster = self.server.cluster
        streams = frozenset(key for key in ("stdin", "stdout", "stderr", "tty") if _is_true(query.get(key, [""])))
        record = Exec(
            user=user.name,
            method=self.command,
            namespace=namespace,
            pod=name,
            container=query.get("container", [""])[0],
            command=tuple(query.get("command", ())),
            tty="tty" in streams,
            offered=tuple(self._tokens("Sec-WebSocket-Protocol")),
            impersonation=tuple(item for item in self.headers.items() if item[0].lower().startswith("impersonate-")),
            host=self.headers.get("Host", ""),
        )
        cluster.add(record)
        try:
            image = cluster.admit(record, user, streams, self._tokens("Upgrade"), self._tokens("Connection"))
            key = self.headers.get("Sec-WebSocket-Key", "")
            if self.command != "GET" or not key:
                raise _refuse(400, "BadRequest", "Upgrade request required")
        except Refusal as refusal:
            record.http_status = refusal.code
            raise
        finally:
            cluster.changed()
        self.close_connection = True
        self.send_response_only(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", generate_accept_token(key.encode()).decode())
        self.send_header("Sec-WebSocket-Protocol", record.subprotocol)
        self.end_headers()
        record.http_status = 101
        self.rfile.close()  # it would keep the socket open past its close
        cluster.serve(self.connection, record, image, streams)

    def _tokens(self, header: str) -> list[str]:
        values = ",".join(self.headers.get_all(header, ()))
        return [token.strip() for token in values.split(",") if token.strip()]


def _is_true(values: list[str]) -> bool:
    return values[0].lower() in ("1", "t", "true")


DISCOVERY: dict[tuple[str, ...], dict[str, Any]] = {
    ("version",): {"major": "1", "minor": "32", "platform": "linux/amd64"},
    ("api",): {"kind": "APIVersions", "versions": ["v1"]},
    ("apis",): {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    ("api", "v1"): {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {
                "name": "pods",
                "singularName": "pod",
                "namespaced": True,
                "kind": "Pod",
                "verbs": ["get", "list"],
            },
            {"name": "pods/exec", "namespaced": True, "kind": "PodExecOptions", "verbs": ["create", "get"]},
        ],
    },
}


def _phase(pod: Pod) -> str:
    return str(NOT_RUNNING.get(pod.state, {"phase": "Running"})["phase"])


def _pod_object(pod: Pod) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": pod.name, "namespace": pod.namespace, "uid": f"{pod.namespace}-{pod.name}"}
    if pod.default_container:
        metadata["annotations"] = {"kubectl.kubernetes.io/default-container": pod.default_container}
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {"phase": _phase(pod)}
    shown: dict[str, Any] = {"ready": pod.state == "running", "restartCount": 0}
    if pod.state == "running":
        shown["state"] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    elif "state" in NOT_RUNNING.get(pod.state, {}):
        shown["state"] = NOT_RUNNING[pod.state]["state"]
    kinds = {"container": pod.containers, "initContainer": pod.sidecars, "ephemeralContainer": pod.debuggers}
    for kind, names in kinds.items():
        if names:
            spec[f"{kind}s"] = [{"name": name, "image": "standin"} for name in names]
            status[f"{kind}Statuses"] = [{"name": name, **shown} for name in names]
    if pod.state == "unschedulable":
        del status["containerStatuses"]
        status["conditions"] = [UNSCHEDULABLE]
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": status}


def _pod_list(pods: Sequence[Pod]) -> dict[str, Any]:
    items = [_pod_object(pod) for pod in pods]
    return {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}


def _pod_table(pods: Sequence[Pod]) -> dict[str, Any]:
    """What `kubectl get pods` asks for."""
    names = ("Name", "Ready", "Status", "Restarts")
    rows = []
    for pod in pods:
        total = len(pod.containers)
        ready = f"{total if pod.state == 'running' else 0}/{total}"
        cells = [pod.name, ready, "Completed" if pod.state == "finished" else _phase(pod), 0]
        rows.append({"cells": cells, "object": _pod_object(pod)})
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": "1"},
        "columnDefinitions": [{"name": name, "type": "string", "format": "", "priority": 0} for name in names],
        "rows": rows,
    }


@final
class StandIn:
    """A cluster on this host, from `start` to `stop`; also a context manager. Methods: any thread.

    `ping_interval` (seconds) makes it ping the clients of its exec streams, which real ones do not do.
    `path_prefix` is where the API begins, as behind a gateway that serves several clusters. `input_delay` is for how
    many seconds what a client sends is on its way, at the beginning of a stream. `buffer_bytes` of output are read from
    a program for a client that reads slowly (real ones: 12 to 24 MB); with `frame_bytes` output is gathered for frames
    of that size (real ones: 5 to 6 KB). `certificate` is shown in place of one of its own CA; with `demand_certificate`
    a client without one is refused in the handshake.
    """

    def __init__(
        self,
        *,
        flavour: str = "new",
        pods: Iterable[Pod] = DEFAULT_PODS,
        users: Iterable[User] = DEFAULT_USERS,
        host: str = "127.0.0.1",
        port: int = 0,
        ping_interval: float | None = None,
        path_prefix: str = "",
        input_delay: float = 0.0,
        buffer_bytes: int = BUFFER_BYTES,
        frame_bytes: int = 0,
        certificate: trustme.LeafCert | None = None,
        demand_certificate: bool = False,
    ) -> None:
        if flavour not in ("new", "old"):
            raise ValueError("flavour must be new or old")
        self.flavour = flavour
        self.host = host
        self.port = port
        self.ping_interval = ping_interval
        self.path_prefix = path_prefix
        self.input_delay = input_delay
        self.buffer_bytes = buffer_bytes
        self.frame_bytes = frame_bytes
        self._certificate = certificate
        self._client_certificate = ssl.CERT_REQUIRED if demand_certificate else ssl.CERT_OPTIONAL
        self.execs: list[Exec] = []  # every exec request since the start, refused ones too
        self.asked: set[tuple[str, str]] = set()  # the (verb, resource) pairs of all requests, refused ones too
        self.stopping = False
        self._first_pods = tuple(pods)
        self._users = {user.name: user for user in users}
        self._tokens = {f"standin-{secrets.token_hex(16)}": user for user in self._users.values()}
        self._ca = trustme.CA()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._changed = threading.Condition()  # guards execs, _endings, _images, _sessions, _tokens
        self._images: dict[tuple[str, str], Image] = {}
        self._endings: dict[tuple[str, str], tuple[str, float, float]] = {}  # how, when, seen from
        self._sessions: set[Session] = set()
        self._root: tempfile.TemporaryDirectory[str] | None = None
        self._server: _Server | None = None
        self._gone: list[_Server] = []  # which do not listen any more, but may have connections
        self._thread: threading.Thread | None = None
        self._image_number = 0

    # Life

    def start(self) -> StandIn:
        """Listen; returns when connections are accepted. OSError when the port is taken."""
        self._context.verify_mode = self._client_certificate
        self._ca.configure_trust(self._context)
        names = dict.fromkeys((self.host, "127.0.0.1", "::1", "localhost"))
        (self._certificate or self._ca.issue_cert(*names)).configure_cert(self._context)
        self._listen()
        self._root = tempfile.TemporaryDirectory(prefix="standin-")
        for pod in self._first_pods:
            self.add_pod(pod)
        return self

    def _listen(self) -> None:
        self._server = _Server(self, (self.host, self.port), self._context)
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="standin-accept", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End every stream, process, thread and file of this cluster. Blocks for a moment; idempotent."""
        root = self._root
        if root is None:
            return
        deadline = time.monotonic() + STOP_SECONDS
        self.stopping = True
        self.go_down()
        self._command("stop")
        for server in self._gone:
            server.close(deadline)
        if any(Path(root.name).iterdir()):  # nothing ran in a pod that nobody has asked for
            kill_in(Path(root.name))
        root.cleanup()
        self._images.clear()
        self._gone.clear()
        self._root = None

    def go_down(self) -> None:
        """The API server goes away: exec streams are reset and connections refused, until `come_back`."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        server.shutdown()
        thread.join()
        server.server_close()
        self.drop_connections()
        self._gone.append(server)
        self._server = self._thread = None

    def come_back(self) -> None:
        """Listen again, on the same port."""
        self._listen()

    def __enter__(self) -> StandIn:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # How to reach it

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}{self.path_prefix}"

    @property
    def ca_pem(self) -> str:
        return self._ca.cert_pem.bytes().decode()

    @property
    def token(self) -> str:
        """The token of the first user, who may do everything unless other users were given."""
        return self.token_of(next(iter(self._users)))

    def token_of(self, user: str) -> str:
        """The user's valid token; KeyError when it has expired."""
        with self._changed:
            for token, owner in self._tokens.items():
                if owner.name == user:
                    return token
        raise KeyError(user)

    def client_certificate(self, user: str = "demo", *, key: str = "ec", intermediate: bool = False) -> tuple[str, str]:
        """A new (certificate, private key) for the user, both PEM; `key` is ec, rsa or ed25519.

        With `intermediate` another authority has issued it, whose certificate follows in the same text.
        """
        issuer = self._ca.create_child_ca() if intermediate else self._ca
        kind = trustme.KeyType.RSA if key == "rsa" else trustme.KeyType.ECDSA
        leaf = issuer.issue_cert("standin.invalid", common_name=user, key_type=kind)
        certificate, private_key = leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()
        if key == "ed25519":
            certificate, private_key = _as_ed25519(certificate, issuer)
        chain = [certificate, *(pem.bytes() for pem in leaf.cert_chain_pems[1:])]
        return b"".join(chain).decode(), private_key.decode()

    def kubeconfig(self, *, auth: str = "token", user: str = "demo", namespace: str = "default") -> str:
        """A kubeconfig as kubectl writes it; `auth` is token or cert."""
        if auth == "token":
            secret = {"token": self.token_of(user)}
        elif auth == "cert":
            certificate, key = self.client_certificate(user)
            secret = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
        else:
            raise ValueError("auth must be token or cert")
        lines = [
            "apiVersion: v1",
            "clusters:",
            "- cluster:",
            f"    certificate-authority-data: {_base64(self.ca_pem)}",
            f"    server: {self.url}",
            "  name: standin",
            "contexts:",
            "- context:",
            "    cluster: standin",
            f"    namespace: {namespace}",
            f"    user: {user}",
            "  name: standin",
            "current-context: standin",
            "kind: Config",
            "preferences: {}",
            "users:",
            f"- name: {user}",
            "  user:",
            *(f"    {key}: {value}" for key, value in secret.items()),
        ]
        return "\n".join(lines) + "\n"

    # Controls

    def pods(self) -> list[Pod]:
        with self._changed:
            return [image.pod for image in self._images.values()]

    def add_pod(self, pod: Pod) -> None:
        """Only between start and stop."""
        if self._root is None:
            raise RuntimeError("the cluster is not started")
        with self._changed:
            self._image_number += 1
            root = Path(self._root.name, str(self._image_number))
            self._images[pod.namespace, pod.name] = Image(root, pod)
            self._endings.pop((pod.namespace, pod.name), None)

    def delete_pod(self, namespace: str, name: str) -> None:
        """Kill all its processes; its streams end with status 137. KeyError when there is no such pod."""
        with self._changed:
            image = self._images.pop((namespace, name))
        kill_in(image.root)

    def fail_pod(self, namespace: str, name: str, how: str, *, lag: float = 0.0) -> None:
        """Let a pod come to one of the `demo.endings`; its object tells of it `lag` seconds later.

        The streams end with status 137, or are reset when the node is gone, which then refuses new ones.
        """
        if how not in ENDINGS:
            raise ValueError(f"how must be one of {', '.join(ENDINGS)}")
        image = self.find(namespace, name)
        with self._changed:
            self._endings[namespace, name] = (how, time.time(), time.monotonic() + lag)
        if how.startswith("node-"):
            self._command("drop", (namespace, name))
        kill_in(image.root)

    def drop_connections(self) -> None:
        """Reset every exec stream, as when the API server restarts. Returns at once."""
        self._command("drop")

    def ping(self) -> None:
        """Send one ping on every exec stream; the answers are counted in `Exec.pongs`."""
        self._command("ping")

    def expire_token(self, user: str = "demo") -> None:
        """The user's tokens are refused from now on; open streams stay."""
        with self._changed:
            self._tokens = {token: owner for token, owner in self._tokens.items() if owner.name != user}

    def renew_token(self, user: str = "demo") -> str:
        """A new token, besides those that the user has."""
        token = f"standin-{secrets.token_hex(16)}"
        with self._changed:
            self._tokens[token] = self._users[user]
        return token

    def shells(self) -> list[int]:
        """Pids of the programs started by exec that still run, whether or not their streams do."""
        with self._changed:
            processes = [session.process for session in self._sessions]
        return sorted(p.popen.pid for p in processes if p is not None and p.popen.poll() is None)

    def waiting_bytes(self) -> int:
        """Output on its way to clients which they have not taken yet."""
        with self._changed:
            return sum(session.waiting_bytes for session in self._sessions)

    def processes(self, namespace: str = "default", name: str = "demo") -> list[int]:
        """Pids of everything alive in the pod, what the shells left behind included."""
        return processes_in(self.find(namespace, name).root)

    def home(self, namespace: str = "default", name: str = "demo") -> Path:
        """The pod's home, where its programs start."""
        return self.find(namespace, name).home

    def wait_until(self, predicate: Callable[[], object], timeout: float = 5.0) -> None:
        """Block until the predicate holds; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not predicate():
                if time.monotonic() > deadline:
                    raise TimeoutError("the cluster did not come to the expected state")
                self._changed.wait(0.01)  # processes come and go without a word

    # For the connections' threads

    def changed(self) -> None:
        """Wake `wait_until`."""
        with self._changed:
            self._changed.notify_all()

    def add(self, record: Exec) -> None:
        with self._changed:
            self.execs.append(record)

    def serve(self, sock: ssl.SSLSocket, record: Exec, image: Image, streams: frozenset[str]) -> None:
        """Relay an exec stream to its end. Blocks."""
        session = Session(
            sock,
            record,
            image,
            streams,
            flavour=self.flavour,
            ping_interval=self.ping_interval,
            input_delay=self.input_delay,
            buffer_bytes=self.buffer_bytes,
            frame_bytes=self.frame_bytes,
            changed=self.changed,
        )
        with self._changed:
            self._sessions.add(session)
        if self.stopping:
            session.command("stop")
        try:
            session.run()
        finally:
            with self._changed:
                self._sessions.discard(session)
                self._changed.notify_all()

    def pod_object(self, pod: Pod) -> dict[str, Any]:
        """The pod as the API shows it now."""
        shown = _pod_object(pod)
        with self._changed:
            how, when, seen_from = self._endings.get((pod.namespace, pod.name), ("", 0.0, 0.0))
        if how and time.monotonic() >= seen_from:
            ENDINGS[how](shown, when)
        return shown

    def _command(self, what: str, pod: tuple[str, str] | None = None) -> None:
        """To all streams, or to those in the pod."""
        with self._changed:
            sessions = [item for item in self._sessions if pod in (None, (item.record.namespace, item.record.pod))]
        for session in sessions:
            session.command(what)

    def find(self, namespace: str, name: str) -> Image:
        """The pod, with its folders."""
        with self._changed:
            image = self._images.get((namespace, name))
            if image is not None:
                image.unpack()
        if image is None:
            raise _refuse(404, "NotFound", f'pods "{name}" not found', name=name, kind="pods")
        return image

    def authenticate(self, certificate: Any, authorization: str) -> User:
        """Who asks: by certificate, else by bearer token."""
        for attribute in (certificate or {}).get("subject", ()):
            if attribute[0][0] == "commonName":
                return self._users.get(attribute[0][1], User(attribute[0][1], frozenset()))
        if not authorization:
            return ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "basic":
            for known in self._users.values():
                if known.password and token == _base64(f"{known.name}:{known.password}"):
                    return known
        with self._changed:
            user = self._tokens.get(token.strip())
        if scheme.lower() != "bearer" or user is None:
            raise _refuse(401, "Unauthorized", "Unauthorized")
        return user

    def impersonate(self, user: User, name: str) -> User:
        """Whose rights count: those of the user who asks, or of the one that it wants to be."""
        if not name:
            return user
        if "impersonate" not in user.verbs:
            message = f'users "{name}" is forbidden: User "{user.name}" cannot impersonate resource "users"'
            raise _refuse(403, "Forbidden", f'{message} in API group "" at the cluster scope', name=name, kind="users")
        return self._users.get(name, User(name, frozenset()))

    def admit(
        self, record: Exec, user: User, streams: frozenset[str], upgrade: list[str], connection: list[str]
    ) -> Image:
        """Refuse in the order of a cluster: API server, then kubelet. Sets container and subprotocol."""
        verb = record.method.lower().replace("post", "create")
        self.asked |= {(wanted, "pods/exec") for wanted in (verb, *(["create"] if self.flavour == "new" else []))}
        if verb not in user.verbs:
            raise _forbidden(user.name, verb, "pods/exec", record.namespace, record.pod)
        if self.flavour == "new" and "create" not in user.verbs:
            message = f'pods "{record.pod}" is forbidden: '
            raise _refuse(403, "Forbidden", message, name=record.pod, kind="pods")
        image = self.find(record.namespace, record.pod)
        if self._endings.get((record.namespace, record.pod), ("",))[0].startswith("node-"):
            no_route = "error dialing backend: dial tcp 10.0.0.5:10250: connect: no route to host"
            raise _refuse(500, "InternalError", no_route)
        record.container = self._choose_container(image.pod, record.container)
        websocket = [token.lower() for token in upgrade] == ["websocket"]
        if not websocket or "upgrade" not in [token.lower() for token in connection]:
            raise _refuse(400, "BadRequest", "Upgrade request required")
        if not streams & {"stdin", "stdout", "stderr"}:
            raise Refusal(400, "you must specify at least 1 of stdin, stdout, stderr")
        record.subprotocol = next((name for name in (V5, V4) if name in record.offered), "")
        if image.pod.state != "running" and not (self.flavour == "old" and record.subprotocol == V5):
            raise Refusal(500, f'container not found ("{record.container}")')
        if not record.subprotocol:
            raise Refusal(403, "")
        return image

    @staticmethod
    def _choose_container(pod: Pod, name: str) -> str:
        if name in (*pod.containers, *pod.sidecars, *pod.debuggers):
            return name
        if name:
            raise _refuse(400, "BadRequest", f"container {name} is not valid for pod {pod.name}")
        if len(pod.containers) > 1:
            choice = f"choose one of: [{' '.join(pod.containers)}]"
            raise _refuse(400, "BadRequest", f"a container name must be specified for pod {pod.name}, {choice}")
        return pod.containers[0]


def _as_ed25519(certificate: bytes, issuer: trustme.CA) -> tuple[bytes, bytes]:
    """The same certificate for a new key, which trustme has no way to ask for, and the key."""
    old = x509.load_pem_x509_certificate(certificate)
    signer = serialization.load_pem_private_key(issuer.private_key_pem.bytes(), None)
    key = ed25519.Ed25519PrivateKey.generate()
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, key.public_key(), old.serial_number, old.not_valid_before_utc, old.not_valid_after_utc
    )
    for extension in old.extensions:
        if not isinstance(extension.value, x509.SubjectKeyIdentifier):
            builder = builder.add_extension(extension.value, extension.critical)
    new = builder.sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    return new.public_bytes(pem), key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)


def _base64(pem: str) -> str:
    return base64.b64encode(pem.encode()).decode()
