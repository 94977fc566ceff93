"""Whatever a kubeconfig holds, and whatever this host runs out of: a sentence, never a traceback."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import k8s_exec
from demo.cluster import StandIn
from k8s_exec import ExecError, KubeconfigError, PodExec, PodLost, Target, Trust, load_kubeconfig
from tests.raw_cluster import tls_context, tls_server
from tests.support import LOOPBACK, Listener, b64, kubeconfig, nothing_left, opened

API = "client.authentication.k8s.io/v1"
VALUES = {
    "NUL": "a\0b",
    "lone surrogate": "a\ud800b",
    "long": "a" * 70_000,
    "not ASCII": "é",
    "emoji": "🦀" * 300,
    "line breaks": "a\r\nX-Evil: yes",
    "dots": "a..b",
    "blank": " ",
    "brackets": "[",
    "percent": "%00",
    "dot": ".",
}
FIELDS = {
    "current-context": "current-context",
    "context": "contexts/0/context",
    "context name": "contexts/0/name",
    "cluster of the context": "contexts/0/context/cluster",
    "user of the context": "contexts/0/context/user",
    "namespace": "contexts/0/context/namespace",
    "server": "clusters/0/cluster/server",
    "host": "clusters/0/cluster/server=https://{}:6443",
    "final label": "clusters/0/cluster/server=https://k8s.{}",
    "zone": "clusters/0/cluster/server=https://[fe80::1%25{}]",
    "path": "clusters/0/cluster/server=https://k8s.test/{}",
    "tls-server-name": "clusters/0/cluster/tls-server-name",
    "CA": "clusters/0/cluster/certificate-authority-data",
    "CA file": "clusters/0/cluster/certificate-authority",
    "proxy": "clusters/0/cluster/proxy-url",
    "proxy's host": "clusters/0/cluster/proxy-url=https://{}:3128",
    "proxy's zone": "clusters/0/cluster/proxy-url=https://[fe80::1%25{}]:3128",
    "proxy's user": "clusters/0/cluster/proxy-url=http://{}@k8s.test:3128",
    "token": "users/0/user/token",
    "token file": "users/0/user/tokenFile",
    "user name": "users/0/user/username",
    "password": "users/0/user/password",
    "as": "users/0/user/as",
    "as-uid": "users/0/user/as-uid",
    "group": "users/0/user/as-groups/0",
    "extra": "users/0/user/as-user-extra/x/0",
    "certificate": "users/0/user/client-certificate-data",
    "key": "users/0/user/client-key-data",
    "certificate file": "users/0/user/client-certificate",
    "key file": "users/0/user/client-key",
    "plugin": "users/0/user/exec/command",
    "argument": "users/0/user/exec/args/0",
    "variable": "users/0/user/exec/env/0/name",
    "value": "users/0/user/exec/env/0/value",
    "hint": "users/0/user/exec/installHint",
}


def changed(text: str, field: str, value: str) -> str:
    """The kubeconfig with this text at that place."""
    document: dict[str, Any] = json.loads(text)
    path, _, form = field.partition("=")
    *parents, last = path.split("/")
    holder: Any = document
    for name in parents:
        holder = holder[int(name) if isinstance(holder, list) else name]
    holder[int(last) if isinstance(holder, list) else last] = form.replace("{}", value) if form else value
    return json.dumps(document)


@pytest.fixture(scope="module")
def running() -> Iterator[StandIn]:
    with nothing_left(), StandIn() as cluster:
        yield cluster


@pytest.fixture
def every_name_is_here(running: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any name and address that can be looked up is the stand-in."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> Any:
        with contextlib.suppress(socket.gaierror):
            real(host, port, flags=socket.AI_NUMERICHOST)  # which raises what no resolver is asked for
        return real("127.0.0.1", running.port, type=socket.SOCK_STREAM)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def user_with(field: str) -> dict[str, Any]:
    """A user in whom the field counts."""
    if "/exec/" in field:
        command = {"command": "/bin/true", "args": ["x"], "env": [{"name": "X", "value": "x"}]}
        return {"exec": {"apiVersion": API, **command}}
    if "/username" in field or "/password" in field:
        return {"username": "u", "password": "p"}
    if "/client-" in field:
        return {"client-certificate-data": "eA==", "client-key-data": "eA=="}
    return {"token": "t", "as": "x", "as-groups": ["x"], "as-user-extra": {"x": ["x"]}}


@pytest.mark.parametrize("origin", ["a token", "the operator"])
@pytest.mark.parametrize("field", FIELDS)
def test_any_text_anywhere_gives_a_sentence(
    running: StandIn, every_name_is_here: None, tmp_path: Path, field: str, origin: str
) -> None:
    trust = Trust(folder=tmp_path) if origin == "the operator" else LOOPBACK
    whole = kubeconfig(running, user_with(FIELDS[field]))
    unverified = kubeconfig(
        running, user_with(FIELDS[field]), **{"certificate-authority-data": "", "insecure-skip-tls-verify": True}
    )
    for document, value in itertools.product((whole, unverified), VALUES.values()):
        try:
            loaded = load_kubeconfig(changed(document, FIELDS[field], value), trust=trust)
            PodExec.open(Target(loaded, "default", "demo"), ["true"], timeout=5).close()
        except ExecError as exc:
            assert str(exc).isprintable()
            assert len(str(exc)) < 1500
            assert running.token not in str(exc)


@pytest.mark.parametrize("value", VALUES)
def test_a_context_that_is_not_there_is_named_and_nothing_else(running: StandIn, value: str) -> None:
    with pytest.raises(KubeconfigError) as caught:
        load_kubeconfig(running.kubeconfig(), VALUES[value])
    shown = k8s_exec.printable(VALUES[value])
    assert str(caught.value) == f"the kubeconfig has no context named {shown!r} under contexts"


def test_a_context_may_be_named_that_is_not_the_current_one(running: StandIn) -> None:
    document = json.loads(kubeconfig(running))
    document["contexts"].append({"name": "other", "context": {"cluster": "c", "user": "u", "namespace": "web"}})
    document["contexts"].append({"name": "broken", "context": {"cluster": "gone", "user": "u"}})
    text = json.dumps(document)
    assert [load_kubeconfig(text, name).namespace for name in (None, "", "x", "other")] == [*["default"] * 3, "web"]
    with pytest.raises(KubeconfigError, match="no cluster named 'gone' under clusters"):
        load_kubeconfig(text, "broken")
    del document["current-context"]
    assert load_kubeconfig(json.dumps(document), "other").namespace == "web"


def test_a_request_that_the_server_does_not_read_is_given_up_in_time(ca: trustme.CA) -> None:
    context = tls_context(ca.issue_cert("127.0.0.1"))
    with nothing_left():
        held: list[ssl.SSLSocket] = []  # open, and never read
        listener = Listener(lambda raw: held.append(context.wrap_socket(raw, server_side=True)))
        user = k8s_exec.User(token="t" * 16_000_000)
        cluster = k8s_exec.Cluster("127.0.0.1", listener.port, ca_pem=ca.cert_pem.bytes().decode(), user=user)
        begin = time.monotonic()
        with pytest.raises(PodLost, match="in time"):
            PodExec.open(Target(cluster, "default", "demo"), ["sh"], timeout=1)
        assert time.monotonic() - begin < 4
        for tls in held:
            tls.close()
        listener.close()


# A client that has few descriptors, or no more threads. Prints how each attempt ended.
CLIENT = """
import resource, sys, threading, time
import k8s_exec
from k8s_exec import *

what, file = sys.argv[1:]
trust = Trust(folder=k8s_exec.Path(file).parent)
target = Target(load_kubeconfig(open(file).read(), trust=trust), "default", "demo")

def attempts():
    k8s_exec._tls_context.cache_clear()
    k8s_exec._plugin_runs.clear()
    yield lambda: PodExec.open(target, ["true"], timeout=5).close()
    yield lambda: hang_up(target, "1", "sh", timeout=0.2)
    yield lambda: why_lost(target, time.time(), timeout=0)

def attempt(call):
    try:
        call()
        print("opened")
    except Exception as exc:
        print(type(exc).__name__, exc)

if what == "threads":
    real, left = threading.Thread.start, 0
    def start(thread):
        global left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        real(thread)
    threading.Thread.start = start
    for enough_for in range(3):
        for call in attempts():
            left = enough_for
            attempt(call)
else:
    first = open("/dev/null")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for more in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (first.fileno() + 1 + more, hard))
        for call in attempts():
            attempt(call)
"""


@pytest.fixture
def proxy(running: StandIn, ca: trustme.CA, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An https proxy to the stand-in, and the file of its CA."""
    ca.cert_pem.write_to_path(str(tmp_path / "proxy-ca.pem"))

    def refuse(tls: ssl.SSLSocket) -> None:
        tls.recv(65536)
        tls.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        tls.recv(1)

    with tls_server(tls_context(ca.issue_cert("127.0.0.1")), refuse) as port:
        yield f"https://127.0.0.1:{port}", tmp_path / "proxy-ca.pem"


@pytest.mark.parametrize("what", ["descriptors", "threads"])
@pytest.mark.parametrize("way", ["certificate", "plugin", "proxy"])
def test_what_this_host_runs_out_of_is_said_in_a_sentence(
    running: StandIn, proxy: tuple[str, Path], tmp_path: Path, what: str, way: str
) -> None:
    certificate, key = (b64(text) for text in running.client_certificate())
    user: dict[str, Any] = {"client-certificate-data": certificate, "client-key-data": key}
    if way == "plugin":
        answer = json.dumps({"kind": "ExecCredential", "apiVersion": API, "status": {"token": running.token}})
        user = {"exec": {"apiVersion": API, "command": "/bin/echo", "args": [answer]}}
    place = {"proxy-url": proxy[0]} if way == "proxy" else {}
    (tmp_path / "config").write_text(kubeconfig(running, user, **place))
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, what, str(tmp_path / "config")],
        cwd=Path(k8s_exec.__file__).parent,
        env={**os.environ, "SSL_CERT_FILE": str(proxy[1])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert not [line for line in lines if "no matching PEM pair" in line]
    assert {line.split(" ")[0] for line in lines} <= {"opened", "ExecRefused", "KubeconfigError", "PodLost"}
    wanted = "Too many open files" if what == "descriptors" else "no thread can be started"
    if (what, way) != ("threads", "certificate"):  # which needs none
        assert any(wanted in line for line in lines)
    if way != "proxy":
        assert "opened" in lines


def test_a_plugins_certificate_may_be_anything(running: StandIn, tmp_path: Path) -> None:
    for value in ("x", "a\0b", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a" * 70_000):
        status = {"clientCertificateData": value, "clientKeyData": value}
        answer = json.dumps({"kind": "ExecCredential", "apiVersion": API, "status": status})
        (tmp_path / "answer").write_text(answer)
        user = {"exec": {"apiVersion": API, "command": "/bin/cat", "args": [str(tmp_path / "answer")]}}
        k8s_exec._plugin_runs.clear()
        with pytest.raises(KubeconfigError, match="no matching PEM pair"):
            opened(kubeconfig(running, user), Trust(folder=tmp_path))
