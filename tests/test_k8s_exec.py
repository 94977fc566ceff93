"""The way to the pod: kubeconfigs, the exec protocol's bytes, and whole streams over real TLS."""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import hashlib
import json
import os
import select
import signal
import socket
import ssl
import struct
import threading
import time
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, Callable

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.utilities import generate_accept_token

import k8s_exec
from demo.cluster import Pod, StandIn
from k8s_exec import (
    Cluster,
    ExecError,
    ExecRefused,
    ExitStatus,
    KubeconfigError,
    PodExec,
    PodLost,
    Target,
    User,
    decode_status,
    encode_resize,
    encode_stdin,
    exec_path,
    explain_refusal,
    load_kubeconfig,
    parse_frame,
    printable,
)
from tests.support import LOOPBACK, WAIT_SECONDS, Listener, nothing_left, wait_until

SECRET = "s3cr3t-bearer-token"


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


# -- kubeconfig -------------------------------------------------------------------------------------------------------


def kubeconfig(
    cluster: dict[str, Any] | None = None,
    user: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
    **document: Any,
) -> str:
    """A kubeconfig in JSON, with these keys changed; None takes a key out."""

    def changed(values: dict[str, Any], changes: dict[str, Any] | None) -> dict[str, Any]:
        return {key: value for key, value in {**values, **(changes or {})}.items() if value is not None}

    whole = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": changed({"server": "https://k8s.example:6443"}, cluster)}],
        "users": [{"name": "u", "user": changed({"token": SECRET}, user)}],
        "contexts": [{"name": "here", "context": changed({"cluster": "c", "user": "u"}, context)}],
    }
    return json.dumps(changed(whole, document))


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def pem(ca: trustme.CA) -> str:
    return ca.cert_pem.bytes().decode()


def test_a_token_and_the_server_are_read() -> None:
    cluster = load_kubeconfig(kubeconfig())
    assert (cluster.host, cluster.port, cluster.path_prefix) == ("k8s.example", 6443, "")
    assert (cluster.user.token, cluster.namespace, cluster.insecure_skip_tls_verify) == (SECRET, "default", False)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://k8s.example", ("k8s.example", 443, "")),
        ("https://k8s.example:1/", ("k8s.example", 1, "")),
        ("https://10.0.0.1:6443/k8s/clusters/c-1/", ("10.0.0.1", 6443, "/k8s/clusters/c-1")),
        ("https://[::1]:6443", ("::1", 6443, "")),
        ("HTTPS://k8s.example", ("k8s.example", 443, "")),
    ],
)
def test_the_server_url_is_taken_apart(url: str, expected: tuple[str, int, str]) -> None:
    cluster = load_kubeconfig(kubeconfig({"server": url}))
    assert (cluster.host, cluster.port, cluster.path_prefix) == expected


def test_yaml_as_kubectl_writes_it_is_read_too() -> None:
    text = f"""\
apiVersion: v1
clusters:
- cluster:
    insecure-skip-tls-verify: true
    server: https://127.0.0.1:6443
    tls-server-name: k8s.example
  name: c
contexts:
- context: {{cluster: c, namespace: web, user: u}}
  name: here
current-context: here
users:
- name: u
  user:
    token: {SECRET}
"""
    for form in (text, text.encode()):
        cluster = load_kubeconfig(form)
        assert (cluster.user.token, cluster.namespace, cluster.tls_server_name) == (SECRET, "web", "k8s.example")
        assert cluster.insecure_skip_tls_verify is True


def test_client_certificate_and_ca_are_read(ca: trustme.CA) -> None:
    leaf = ca.issue_cert("u.invalid")
    certificate, key = leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()
    user = {"token": None, "client-certificate-data": b64(certificate), "client-key-data": b64(key)}
    cluster = load_kubeconfig(kubeconfig({"certificate-authority-data": b64(pem(ca))}, user))
    assert (cluster.user.certificate_pem, cluster.user.key_pem, cluster.ca_pem) == (certificate, key, pem(ca))


def test_a_context_is_chosen_by_name() -> None:
    contexts = [
        {"name": "here", "context": {"cluster": "c", "user": "u"}},
        {"name": "there", "context": {"cluster": "c2", "user": "u2", "namespace": "n2"}},
    ]
    clusters = [{"name": name, "cluster": {"server": f"https://{name}.example"}} for name in ("c", "c2")]
    users = [{"name": name, "user": {"token": f"token-{name}"}} for name in ("u", "u2")]
    text = kubeconfig(contexts=contexts, clusters=clusters, users=users)
    assert load_kubeconfig(text).host == "c.example"
    there = load_kubeconfig(text, "there")
    assert (there.host, there.user.token, there.namespace) == ("c2.example", "token-u2", "n2")
    with pytest.raises(KubeconfigError, match="'nowhere'"):
        load_kubeconfig(text, "nowhere")


def test_the_first_of_two_entries_with_one_name_counts() -> None:
    users = [{"name": "u", "user": {"token": token}} for token in ("first", "second")]
    assert load_kubeconfig(kubeconfig(users=users)).user.token == "first"


def test_a_context_without_a_user_is_anonymous() -> None:
    assert load_kubeconfig(kubeconfig(context={"user": None})).user == User()


def test_blanks_round_a_token_are_not_part_of_it() -> None:
    assert load_kubeconfig(kubeconfig(user={"token": f"{SECRET}\n"})).user.token == SECRET


def test_base64_may_have_line_breaks(ca: trustme.CA) -> None:
    broken = "\n".join(b64(pem(ca))[start : start + 64] for start in range(0, 2000, 64))
    assert load_kubeconfig(kubeconfig({"certificate-authority-data": broken})).ca_pem == pem(ca)


BROKEN = [
    ("[]", "map"),
    ("", "map"),
    ("just text", "map"),
    (kubeconfig(None, None, None, **{"current-context": None}), "current-context"),
    (kubeconfig(None, None, None, **{"current-context": 7}), "current-context"),
    (kubeconfig(contexts=None), "'here'"),
    (kubeconfig(contexts=[]), "contexts"),
    (kubeconfig(contexts={"name": "here"}), "contexts"),
    (kubeconfig(contexts=[None, 1, "x"]), "contexts"),
    (kubeconfig(contexts=[{"name": "here", "context": []}]), "contexts"),
    (kubeconfig(clusters=None), "clusters"),
    (kubeconfig(users=None), "users"),
    (kubeconfig(context={"cluster": "x"}), "'x'"),
    (kubeconfig(context={"cluster": None}), "cluster"),
    (kubeconfig(context={"user": "x"}), "'x'"),
    (kubeconfig(context={"user": 1}), "user"),
    (kubeconfig(context={"namespace": 1}), "namespace"),
    (kubeconfig({"server": None}), "server"),
    (kubeconfig({"server": 1}), "server"),
    (kubeconfig({"server": "http://k8s.example"}), "server"),
    (kubeconfig({"server": "k8s.example:6443"}), "server"),
    (kubeconfig({"server": "https://"}), "server"),
    (kubeconfig({"server": "https://k8s.example:99999"}), "server"),
    (kubeconfig({"server": "https://k8s.example:x"}), "server"),
    (kubeconfig({"server": "https://[::1"}), "server"),
    (kubeconfig({"server": f"https://u:{SECRET}@k8s.example"}), "server"),
    (kubeconfig({"server": f"https://k8s.example/?{SECRET}"}), "server"),
    (kubeconfig({"server": f"https://k8s.example/#{SECRET}"}), "server"),
    (kubeconfig({"server": "https://k8s.example/\r\nX-Y: z"}), "server"),
    (kubeconfig({"server": "https://k8s.example/a b"}), "server"),
    (kubeconfig({"server": " https://k8s.example"}), "server"),
    (kubeconfig({"server": "https://k8s.exämple"}), "server"),
    (kubeconfig({"insecure-skip-tls-verify": "true"}), "insecure-skip-tls-verify"),
    (kubeconfig({"tls-server-name": 1}), "tls-server-name"),
    (kubeconfig({"certificate-authority-data": "%%%" + SECRET}), "certificate-authority-data"),
    (kubeconfig({"certificate-authority-data": b64("é")}), "certificate-authority"),
    (
        kubeconfig({"certificate-authority-data": b64("x"), "insecure-skip-tls-verify": True}),
        "insecure-skip-tls-verify",
    ),
    (kubeconfig(user={"token": 12345678901}), "token"),
    (kubeconfig(user={"token": [SECRET]}), "token"),
    (kubeconfig(user={"token": f"{SECRET}\r\nX-Evil: 1"}), "token"),
    (kubeconfig(user={"token": f"{SECRET}\n{SECRET}"}), "token"),
    (kubeconfig(user={"token": f"{SECRET} {SECRET}"}), "token"),
    (kubeconfig(user={"token": f"{SECRET}é"}), "token"),
    (kubeconfig(user={"password": SECRET}), "username: basic authentication"),
    (kubeconfig(user={"exec": SECRET}), "exec: must be a map"),
    (kubeconfig(user={"as": "x", "as-groups": SECRET}), "as-groups: must be a list"),
    (kubeconfig(user={"as": "x", "as-user-extra": {"reason": SECRET}}), "as-user-extra: reason: must be a list"),
    (kubeconfig(user={"client-certificate-data": b64(SECRET)}), "certificate and key"),
    (kubeconfig(user={"client-key-data": b64(SECRET)}), "certificate and key"),
    (
        kubeconfig(user={"client-certificate-data": b64("x"), "client-key-data": SECRET + "!"}),
        "client-key-data",
    ),
    (
        kubeconfig(user={"client-certificate-data": SECRET, "client-key-data": b64("x")}),
        "client-certificate-data",
    ),
]


@pytest.mark.parametrize(("text", "named"), BROKEN, ids=range(len(BROKEN)))
def test_what_cannot_be_used_is_named_without_its_value(text: str, named: str) -> None:
    with pytest.raises(KubeconfigError) as caught:
        load_kubeconfig(text)
    assert named in str(caught.value)
    for secret in (SECRET, b64(SECRET)):
        assert secret not in str(caught.value) + repr(caught.value)


# What would make this host run a program or read a file, and what cannot be used: section, key, value, named.
REFUSED_KEYS = [
    ("user", "exec", {"command": SECRET, "apiVersion": "client.authentication.k8s.io/v1"}, "allow_exec"),
    ("user", "auth-provider", {"name": "gcp", "config": {"access-token": SECRET}}, "removed auth providers"),
    ("user", "tokenFile", f"/run/{SECRET}", "allow_files"),
    ("user", "client-certificate", f"/etc/{SECRET}", "allow_files"),
    ("user", "client-key", f"/etc/{SECRET}", "allow_files"),
    ("user", "username", SECRET, "exclude each other"),
    ("user", "as-uid", SECRET, "need it"),
    ("user", "as-groups", [SECRET], "need it"),
    ("user", "as-user-extra", {"reason": [SECRET]}, "need it"),
    ("user", "as", f"{SECRET}\r\nX-Evil: 1", "cannot stand in a header"),
    ("cluster", "certificate-authority", f"/etc/{SECRET}", "allow_files"),
    ("cluster", "proxy-url", f"socks5://{SECRET}@proxy.example", "SOCKS"),
    ("cluster", "proxy-url", f"ftp://{SECRET}@proxy.example", "must be http://"),
]


@pytest.mark.parametrize(("section", "key", "value", "why"), REFUSED_KEYS, ids=[row[1] for row in REFUSED_KEYS])
def test_a_key_that_is_not_allowed_is_refused_by_name(section: str, key: str, value: object, why: str) -> None:
    with pytest.raises(KubeconfigError, match=why) as caught:
        load_kubeconfig(kubeconfig(**{section: {"token": "other", key: value}}))
    assert key in str(caught.value)
    assert SECRET not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(("section", "key", "value", "why"), REFUSED_KEYS, ids=[row[1] for row in REFUSED_KEYS])
def test_such_a_key_may_be_there_when_it_is_empty(section: str, key: str, value: object, why: str) -> None:
    plain = load_kubeconfig(kubeconfig())
    for empty in ("null", json.dumps(type(value)())):
        text = kubeconfig(**{section: {key: SECRET + key}}).replace(json.dumps(SECRET + key), empty)
        assert f'"{key}": {empty}' in text
        assert load_kubeconfig(text) == plain


def test_no_secret_shows_in_repr(ca: trustme.CA) -> None:
    leaf = ca.issue_cert("u.invalid")
    key = leaf.private_key_pem.bytes()
    user = {"client-certificate-data": b64(leaf.cert_chain_pems[0].bytes()), "client-key-data": b64(key)}
    cluster = load_kubeconfig(kubeconfig({"certificate-authority-data": b64(pem(ca))}, user))
    for shown in (repr(cluster), str(cluster), f"{cluster}"):
        assert SECRET not in shown
        assert "BEGIN" not in shown
        assert key.decode().splitlines()[1] not in shown
        assert "k8s.example" in shown


def encrypted(key: bytes) -> bytes:
    loaded = serialization.load_pem_private_key(key, None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )


@pytest.mark.parametrize("fault", ["other key", "encrypted key", "no certificate", "no key", "not text"])
def test_an_unusable_client_key_is_named_without_its_value(ca: trustme.CA, fault: str) -> None:
    leaf, other = ca.issue_cert("u.invalid"), ca.issue_cert("v.invalid")
    certificate, key = leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()
    pair = {
        "other key": (certificate, other.private_key_pem.bytes()),
        "encrypted key": (certificate, encrypted(key)),
        "no certificate": (b"hello", key),
        "no key": (certificate, b"hello"),
        "not text": (b"\x00\xff", b"\x00\xff"),
    }[fault]
    user = {"client-certificate-data": b64(pair[0]), "client-key-data": b64(pair[1])}
    with nothing_left(), pytest.raises(KubeconfigError) as caught:
        text = kubeconfig({"server": "https://127.0.0.1:1", "certificate-authority-data": b64(pem(ca))}, user)
        PodExec.open(Target(load_kubeconfig(text), "n", "p"), ["sh"], timeout=WAIT_SECONDS)
    assert "client certificate and key" in str(caught.value)
    for line in pair[1].splitlines()[1:-1]:
        assert line.decode() not in str(caught.value)


def test_an_unusable_ca_is_named() -> None:
    damaged = f"-----BEGIN CERTIFICATE-----\n{SECRET}\n-----END CERTIFICATE-----\n"
    text = kubeconfig({"server": "https://127.0.0.1:1", "certificate-authority-data": b64(damaged)})
    with pytest.raises(KubeconfigError, match="the certificate authority holds no PEM certificate") as caught:
        PodExec.open(Target(load_kubeconfig(text), "n", "p"), ["sh"], timeout=WAIT_SECONDS)
    assert SECRET not in str(caught.value)


# -- the request ------------------------------------------------------------------------------------------------------

PLAIN = Cluster("k8s.example", 443)


def test_the_request_names_container_streams_and_each_argument() -> None:
    assert exec_path(Target(PLAIN, "web", "shop-0", "main"), ["sh", "-c", "echo $x & ls '?#%' ü\n"]) == (
        "/api/v1/namespaces/web/pods/shop-0/exec?container=main&stdin=true&stdout=true&tty=true"
        "&command=sh&command=-c&command=echo+%24x+%26+ls+%27%3F%23%25%27+%C3%BC%0A"
    )


def test_the_request_begins_with_the_servers_path_and_may_leave_the_container_out() -> None:
    cluster = load_kubeconfig(kubeconfig({"server": "https://rancher.example/k8s/clusters/c-1"}))
    assert exec_path(Target(cluster, "n", "p"), ["a"]) == (
        "/k8s/clusters/c-1/api/v1/namespaces/n/pods/p/exec?stdin=true&stdout=true&tty=true&command=a"
    )


@pytest.mark.parametrize("argument", ["\0", "a\0b", "\ud800", "a\udfffb"], ids=ascii)
def test_what_no_program_can_be_given_is_refused_in_a_sentence(argument: str) -> None:
    with pytest.raises(ExecRefused, match="holds a character that no program can be given"):
        exec_path(Target(PLAIN, "n", "p"), ["sh", "-c", argument])


def test_a_program_without_a_terminal_asks_for_none() -> None:
    path = exec_path(Target(PLAIN, "n", "p"), ["a"], tty=False)
    assert path == "/api/v1/namespaces/n/pods/p/exec?stdin=true&stdout=true&command=a"


@pytest.mark.parametrize("name", ["a", "0", "a-b.c", "a" * 253, "shop-7f9c-x2x"])
def test_names_that_kubernetes_allows_pass(name: str) -> None:
    path = exec_path(Target(PLAIN, name, name, name), ["sh"])
    assert f"/namespaces/{name}/pods/{name}/exec?container={name}&" in path


BAD_NAMES = [
    "..",
    ".",
    "-",
    "-a",
    "a-",
    "A",
    "a/b",
    "a%2fb",
    "a b",
    "a?x",
    "a#x",
    "a&b=c",
    "a\r\nHost: x",
    "a\n",
    "ä",
    "a" * 254,
    "\x1b[31m",
    "\ud800",
    "../../nodes/x",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
@pytest.mark.parametrize("place", ["namespace", "pod", "container"])
def test_other_names_are_refused_before_anything_is_sent(name: str, place: str) -> None:
    names = {"namespace": "n", "pod": "p", "container": "c", place: name}
    with pytest.raises(ExecRefused) as caught:
        Target(PLAIN, **names)
    assert place in str(caught.value)
    assert str(caught.value).isprintable()
    str(caught.value).encode()


@pytest.mark.parametrize("place", ["namespace", "pod"])
def test_only_the_container_may_be_empty(place: str) -> None:
    names = {"namespace": "n", "pod": "p", place: ""}
    with pytest.raises(ExecRefused, match=place):
        Target(PLAIN, **names)


# -- the channels' bytes ----------------------------------------------------------------------------------------------


def test_stdin_goes_on_channel_0() -> None:
    assert encode_stdin(b"ls\r") == b"\x00ls\r"
    assert encode_stdin(b"") == b"\x00"


@pytest.mark.parametrize(("cols", "rows"), [(1, 1), (80, 24), (65535, 65535)])
def test_a_size_goes_on_channel_4(cols: int, rows: int) -> None:
    message = encode_resize(cols, rows)
    assert message[:1] == b"\x04"
    assert json.loads(message[1:]) == {"Width": cols, "Height": rows}


@pytest.mark.parametrize("bad", [0, -1, 65536, 1 << 40, 80.0, float("nan"), "80", None, True, [80], {}], ids=repr)
def test_a_size_that_would_make_the_server_deaf_is_refused(bad: Any) -> None:
    for size in ((bad, 24), (80, bad)):
        with pytest.raises(ValueError, match="65535"):
            encode_resize(*size)


EXIT_3: dict[str, Any] = {
    "status": "Failure",
    "message": "command terminated with non-zero exit code: error executing command [sh -c exit 3], exit code 3",
    "reason": "NonZeroExitCode",
    "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
}


def internal_error(text: str) -> dict[str, Any]:
    return {"status": "Failure", "message": f"Internal error occurred: {text}", "reason": "InternalError", "code": 500}


START = "error executing command in container: failed to exec in container: OCI runtime exec failed: exec failed: "
START += "unable to start container process: "
NO_PROGRAM = internal_error(START + 'exec: "nosuchcmd": executable file not found in $PATH')
NO_FILE = internal_error(START + 'exec: "/bin/zsh": stat /bin/zsh: no such file or directory')
CRUN = internal_error(START + "executable file `sh` not found in $PATH: No such file or directory")
KATA = internal_error("rpc error: code = Internal desc = ENOENT: No such file or directory")
WINDOWS = internal_error("hcs::System::CreateProcess main: The system cannot find the file specified.")
OTHER_FILE = internal_error("failed to exec in container: open /run/containerd/io.sock: no such file or directory")
NOT_EXECUTABLE = internal_error(START + 'exec: "/etc/passwd": permission denied')
EMPTY = internal_error(START + "args must not be empty")
ROWS = [
    ({"status": "Success"}, 0, ""),
    (EXIT_3, 3, ""),
    ({**EXIT_3, "details": {"causes": [{"reason": "ExitCode", "message": "137"}]}}, 137, ""),
    ({**EXIT_3, "details": {"causes": [{"reason": "Other", "message": "x"}, *EXIT_3["details"]["causes"]]}}, 3, ""),
    (NO_PROGRAM, None, "the container has no program 'nosuchcmd'"),
    (NO_FILE, None, "the container has no program '/bin/zsh'"),
    (NOT_EXECUTABLE, None, "the container may not run the program '/etc/passwd': permission denied"),
    (EMPTY, None, "args must not be empty"),
    (CRUN, None, "the container has no program 'sh'"),
    (KATA, None, "the container has no program by that name"),
    (WINDOWS, None, "the container has no program by that name"),
    (OTHER_FILE, None, "the cluster could not start the program: "),
    *(
        ({**EXIT_3, "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]}}, code, "")
        for code in (-1, -(1 << 31), 0xC000013A, (1 << 32) - 1)  # Windows, signed and unsigned
    ),
]


def as_old(status: dict[str, Any]) -> dict[str, Any]:
    """The same as a 1.32 cluster with containerd 1.6 says it."""
    status = {"metadata": {}, **status}
    if status.get("reason") == "InternalError":
        text = status["message"] + ": unknown"
        status.update(message=text, details={"causes": [{"message": text.partition(": ")[2]}]})
    return status


@pytest.mark.parametrize("form", [dict, as_old], ids=["new", "old"])
@pytest.mark.parametrize(("status", "code", "message"), ROWS, ids=range(len(ROWS)))
def test_each_status_becomes_an_exit_code_or_a_sentence(
    status: dict[str, Any], code: int | None, message: str, form: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    found = decode_status(json.dumps(form(status)).encode())
    assert found.code == code
    assert message in found.message
    assert bool(found.message) == (code is None)
    assert found.not_found == ("has no program" in message)


NOT_UNDERSTOOD = ExitStatus(None, "the cluster reported an end that is not understood")
GARBAGE = [
    *(
        json.dumps({**EXIT_3, "details": {"causes": [{"reason": "ExitCode", "message": code}]}}).encode()
        for code in ("9" * 30, "4294967296", "-2147483649", "1" * 5000, "1_0", " 1", "\u0663", "1e3", "", 7, [1])
    ),
    b"",
    b"{",
    b"null",
    b"3",
    b'"Success"',
    b"[]",
    b"[" * 100_000,
    b"\xff\xfe",
    b"{}",
    b'{"status":"Failure","reason":"NonZeroExitCode"}',
    b'{"status":"Failure","reason":"NonZeroExitCode","details":null}',
    b'{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[]}}',
    b'{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":{}}}',
    b'{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[3]}}',
    b'{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode"}]}}',
    b'{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"x"}]}}',
    b'{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":null}]}}',
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_a_status_that_makes_no_sense_is_no_exit_code(data: bytes) -> None:
    assert decode_status(data) == NOT_UNDERSTOOD


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["status", "reason", "message", "details", "causes", "code"]) | st.text(max_size=4),
                inner,
            )
        ),
        max_leaves=8,
    )
)
def test_no_json_makes_the_decoders_raise(value: object) -> None:
    text = json.dumps(value).encode()
    assert isinstance(decode_status(text), ExitStatus)
    assert not any(unicodedata.category(char) == "Cc" for char in explain_refusal(500, text))


def status_body(message: str, reason: str, code: int) -> bytes:
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return json.dumps({**status, "reason": reason, "details": {}, "code": code}).encode()


FORBIDDEN = 'pods "busybox" is forbidden: User "u" cannot get resource "pods/exec" in API group "" in the namespace "x"'
REFUSALS = [
    (401, status_body("Unauthorized", "Unauthorized", 401), "does not accept the credentials"),
    (403, status_body(FORBIDDEN, "Forbidden", 403), f"the cluster forbids it: {FORBIDDEN}"),
    (403, status_body('pods "busybox" is forbidden: ', "Forbidden", 403), "needs get and create on pods/exec"),
    (401, b"<html>Log in", "a gateway before the cluster refused with HTTP status 401"),
    (404, b"404 page not found", "a gateway before the cluster refused with HTTP status 404: 404 page not found"),
    (403, b"<h1>Blocked</h1>", "a gateway before the cluster refused with HTTP status 403"),
    (503, b"no healthy upstream", "a gateway before the cluster refused with HTTP status 503: no healthy upstream"),
    (
        503,
        status_body("etcd is away", "ServiceUnavailable", 503),
        "the cluster refused with HTTP status 503: etcd is away",
    ),
    (400, status_body("choose one of: [" * 20_000, "BadRequest", 400), "choose one of"),
    (403, b"", "exec over WebSocket"),
    (404, status_body('pods "nopod" not found', "NotFound", 404), 'pods "nopod" not found'),
    (404, b"", "a gateway before the cluster refused with HTTP status 404"),
    (400, status_body("container nope is not valid for pod busybox", "BadRequest", 400), "no such container"),
    (
        400,
        status_body("a container name must be specified for pod multi, choose one of: [c1 c2]", "BadRequest", 400),
        "the pod has several containers, choose one of: c1 c2",
    ),
    (500, b'container not found ("main")', 'the container is not running: container not found ("main")'),
    (400, b"you must specify at least 1 of stdin, stdout, stderr", "HTTP status 400: you must specify at least 1"),
    (400, status_body("Upgrade request required", "BadRequest", 400), "HTTP status 400: Upgrade request required"),
    (502, b"<html>\r\n<h1>Bad\x1b[31m Gateway</h1>", "a gateway before the cluster refused with HTTP status 502"),
    (500, b"", "HTTP status 500: no reason given"),
    (500, b"[1]", "HTTP status 500: [1]"),
    (500, b'{"message": 3}', 'HTTP status 500: {"message": 3}'),
    (500, b'{"kind": "Status", "message": 3}', "HTTP status 500: 3"),
    (500, b"\xff" * 5000, "HTTP status 500"),
    (500, b"[" * 100_000, "HTTP status 500"),
]


@pytest.mark.parametrize(("status", "body", "sentence"), REFUSALS, ids=range(len(REFUSALS)))
def test_each_refusal_becomes_a_short_sentence(status: int, body: bytes, sentence: str) -> None:
    found = explain_refusal(status, body)
    assert sentence in found
    assert found.isprintable()
    assert len(found) < 700


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("日本 ü", "日本 ü"),
        ("a\r\nb\tc", "a b c"),
        ("\x1b[31mred\x07\x7f", "[31mred"),
        ("a\x9b31m\x85b", "a 31m b"),
        ("\x00\x00", ""),
        (" x ", "x"),
        ("x" * 10_000, "x" * 500),
        ("a\ud800b", "a b"),  # half of a pair cannot be encoded
        ("a\udfffb", "a b"),
        ("a\u2028b", "a b"),
        ("a\u2029b", "a b"),
        ("a\u202eb", "a b"),  # turns the line round
        ("a\u2066b", "a b"),
    ],
    ids=ascii,
)
def test_foreign_text_is_shown_on_one_line_without_controls(text: str, shown: str) -> None:
    assert printable(text) == shown


# -- frames -----------------------------------------------------------------------------------------------------------


def frame(payload: bytes, opcode: int = 2, *, fin: bool = True) -> bytes:
    """A server's frame (RFC 6455, section 5.2)."""
    first = (0x80 if fin else 0) | opcode
    if len(payload) < 126:
        return bytes((first, len(payload))) + payload
    if len(payload) < 65536:
        return struct.pack("!BBH", first, 126, len(payload)) + payload
    return struct.pack("!BBQ", first, 127, len(payload)) + payload


STREAM = [b"", b"\x01", b"\x01" + b"x" * 124, b"\x01" + b"y" * 125, b"\x01" + b"z" * 65534, b"w" * 65536]


def test_frames_are_found_when_they_come_a_byte_at_a_time() -> None:
    data, buffer, position = b"".join(frame(payload) for payload in STREAM), bytearray(), 0
    found: list[bytes] = []
    for byte in data:
        buffer.append(byte)
        place = parse_frame(buffer, position)
        if place is not None:
            first, start, end = place
            assert first == 0x82
            assert end == len(buffer)
            found.append(bytes(buffer[start:end]))
            position = end
    assert found == STREAM


def test_frames_are_found_one_after_the_other_in_one_buffer() -> None:
    buffer, position = bytearray(b"".join(frame(payload) for payload in STREAM)), 0
    for payload in STREAM:
        place = parse_frame(buffer, position)
        assert place is not None
        assert bytes(buffer[place[1] : place[2]]) == payload
        position = place[2]
    assert parse_frame(buffer, position) is None


@pytest.mark.parametrize(
    "head",
    [b"\x82\x80", b"\x82\x85", b"\x82\xfe", b"\x82\xff", b"\x89\x80"],
    ids=["0", "5", "16-bit", "64-bit", "ping"],
)
def test_a_masked_frame_is_refused_at_once(head: bytes) -> None:
    with pytest.raises(PodLost, match="masked"):
        parse_frame(bytearray(head), 0)


@pytest.mark.parametrize("length", [(1 << 20) + 1, 1 << 31, (1 << 64) - 1])
def test_an_oversized_frame_is_refused_before_its_payload_comes(length: int) -> None:
    with pytest.raises(PodLost, match="limit"):
        parse_frame(bytearray(struct.pack("!BBQ", 0x82, 127, length)), 0)


def test_the_largest_frame_passes() -> None:
    buffer = bytearray(frame(b"x" * (1 << 20)))
    assert parse_frame(buffer, 0) == (0x82, 10, len(buffer))


# -- PodExec and the stand-in -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def started() -> Iterator[dict[str, StandIn]]:
    with nothing_left(), StandIn(flavour="new") as new, StandIn(flavour="old") as old:
        yield {"new": new, "old": old}


@pytest.fixture(autouse=True)
def _nothing_left(started: dict[str, StandIn]) -> Iterator[None]:
    with nothing_left():
        yield


def clear(standin: StandIn) -> None:
    """End what an "old" cluster leaves running, and take away the file that tells a program to go on."""
    for pid in standin.shells():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    standin.wait_until(lambda: not standin.shells())
    standin.execs.clear()
    (standin.home() / "go").unlink(missing_ok=True)


@pytest.fixture(params=["new", "old"])
def either(request: pytest.FixtureRequest, started: dict[str, StandIn]) -> Iterator[StandIn]:
    yield started[request.param]
    clear(started[request.param])


@pytest.fixture
def standin(started: dict[str, StandIn]) -> Iterator[StandIn]:
    yield started["new"]
    clear(started["new"])


@contextlib.contextmanager
def opened(
    cluster: Cluster | str, command: Sequence[str] = ("sh",), pod: str = "demo", container: str = ""
) -> Iterator[PodExec]:
    """A program in a pod. It is aborted after a while, so that no test waits for ever."""
    if isinstance(cluster, str):
        cluster = load_kubeconfig(cluster, trust=LOOPBACK)
    running = PodExec.open(Target(cluster, cluster.namespace, pod, container), command, timeout=WAIT_SECONDS)
    guard = threading.Timer(WAIT_SECONDS * 2, running.abort)
    guard.start()
    try:
        yield running
    finally:
        guard.cancel()
        guard.join()
        running.close()


def read_until(pod: PodExec, text: bytes) -> bytes:
    output = b""
    while text not in output:
        piece = pod.read()
        assert piece, f"ended with {pod.exit} after {output[-300:]!r}"
        output += piece
    return output


def read_all(pod: PodExec) -> bytes:
    return b"".join(iter(pod.read, b""))


@contextlib.contextmanager
def running(target: Callable[[], object]) -> Iterator[threading.Thread]:
    """The function on a thread of its own, which has ended when the block has."""
    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()


@pytest.mark.parametrize("auth", ["token", "cert"])
def test_a_shell_answers_and_its_exit_code_comes_back(either: StandIn, auth: str) -> None:
    with opened(either.kubeconfig(auth=auth)) as pod:
        pod.write(b"echo a$((1+1))b; exit 3\r")
        assert b"a2b" in read_all(pod)
        assert pod.exit == ExitStatus(3)
        assert pod.read() == b""
    (record,) = either.execs
    assert (record.user, record.subprotocol, record.offered) == ("demo", "v4.channel.k8s.io", ("v4.channel.k8s.io",))
    assert (record.tty, record.http_status, record.ended) == (True, 101, "status")


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137)])
def test_exit_codes(either: StandIn, script: str, code: int) -> None:
    with opened(either.kubeconfig(), ["sh", "-c", script]) as pod:
        assert read_all(pod) == b""
        assert pod.exit == ExitStatus(code)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["nosuchcmd"], "the container has no program 'nosuchcmd'"),
        (["/bin/zsh"], "the container has no program '/bin/zsh'"),
        (["./plain"], "the container may not run the program './plain': permission denied"),
        ([""], "args must not be empty"),
    ],
)
def test_a_program_that_cannot_start_gives_a_sentence(either: StandIn, command: list[str], message: str) -> None:
    (either.home() / "plain").write_text("not a program")
    with opened(either.kubeconfig(), command) as pod:
        assert read_all(pod) == b""
        assert pod.exit is not None
        assert pod.exit.code is None
        assert message in pod.exit.message
        assert pod.exit.not_found == ("has no program" in message)


def test_arguments_arrive_as_they_are(standin: StandIn) -> None:
    argument = "a b&c=d+e%41?#ü'\"\n\\"
    with opened(standin.kubeconfig(), ["printf", "<%s>", argument, ""]) as pod:
        assert read_all(pod).replace(b"\r\n", b"\n") == f"<{argument}><>".encode()


def test_the_container_is_asked_for_by_name(standin: StandIn) -> None:
    with opened(standin.kubeconfig(), ["sh", "-c", "exit 0"], "multi", "c2") as pod:
        read_all(pod)
    assert standin.execs[0].container == "c2"


def test_sizes_arrive_in_order(standin: StandIn) -> None:
    with opened(standin.kubeconfig(), ["sh", "-c", "stty -echo; read x; stty size; read x; stty size"]) as pod:
        pod.resize(80, 24)
        pod.write(b"\r")
        assert b"24 80" in read_until(pod, b"80")
        pod.resize(65535, 1)
        pod.write(b"\r")
        assert b"1 65535" in read_all(pod)
    assert standin.execs[0].sizes == [(80, 24), (65535, 1)]
    assert not standin.execs[0].jammed


def test_a_bad_size_is_never_sent(standin: StandIn) -> None:
    with opened(standin.kubeconfig()) as pod:
        with pytest.raises(ValueError, match="65535"):
            pod.resize(0, 24)
        pod.write(b"echo a$((1+1))b\r")
        read_until(pod, b"a2b")
    assert standin.execs[0].sizes == []


REFUSED_BY_STANDIN = [
    ("nopod", "", 404, 'pods "nopod" not found'),
    ("demo", "nope", 400, "no such container"),
    ("multi", "", 400, "choose one of: c1 c2"),
    ("finished", "", 500, "the container is not running"),
    ("pending", "", 500, "the container is not running"),
]


@pytest.mark.parametrize(("pod", "container", "status", "sentence"), REFUSED_BY_STANDIN)
def test_the_clusters_refusals(either: StandIn, pod: str, container: str, status: int, sentence: str) -> None:
    with pytest.raises(ExecRefused, match=sentence) as caught:
        with opened(either.kubeconfig(), pod=pod, container=container):
            pass
    assert caught.value.status == status


@pytest.mark.parametrize(("user", "flavours"), [("nobody", ("new", "old")), ("reader", ("new",))])
def test_a_user_without_the_right_is_refused(either: StandIn, user: str, flavours: tuple[str, ...]) -> None:
    if either.flavour not in flavours:
        with opened(either.kubeconfig(user=user), ["sh", "-c", "exit 0"]) as pod:
            assert read_all(pod) == b""
        return
    with pytest.raises(ExecRefused, match='the cluster forbids it: pods "demo" is forbidden') as caught:
        with opened(either.kubeconfig(user=user)):
            pass
    assert caught.value.status == 403


def test_a_token_that_the_cluster_does_not_know_is_refused_and_not_shown(standin: StandIn) -> None:
    text = standin.kubeconfig().replace(standin.token, SECRET)
    with pytest.raises(ExecRefused, match="does not accept the credentials") as caught, opened(text):
        pass
    assert caught.value.status == 401
    assert SECRET not in str(caught.value)


def answered(standin: StandIn, pongs: int) -> bool:
    return standin.execs[0].pongs == pongs


def test_pings_are_answered_and_no_pong_comes_unasked(either: StandIn) -> None:
    with opened(either.kubeconfig()) as pod:
        with running(lambda: read_all(pod)):
            either.wait_until(lambda: either.execs and either.execs[0].pid)
            for _ in range(3):
                expected = either.execs[0].pongs + 1
                either.ping()
                either.wait_until(functools.partial(answered, either, expected))
            pod.write(b"exit\r")
    assert (either.execs[0].unsolicited_pongs, either.execs[0].pings, either.execs[0].ended) == (0, 0, "status")


def test_a_quiet_stream_is_kept_alive_and_the_program_sees_nothing_of_it(
    either: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k8s_exec, "KEEP_ALIVE_SECONDS", 0.03)
    with opened(either.kubeconfig(), ["sh", "-c", "stty raw -echo; printf R; exec dd bs=1 count=1 status=none"]) as pod:
        output = []
        with running(lambda: output.append(read_all(pod))):
            either.wait_until(lambda: either.execs and either.execs[0].keepalives >= 3)
            pod.write(b"q")
        assert output == [b"Rq"]
        assert pod.exit == ExitStatus(0)
    assert either.execs[0].bytes_in == 1


def test_a_stream_that_only_prints_is_kept_alive_too(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k8s_exec, "KEEP_ALIVE_SECONDS", 0.03)
    with opened(standin.kubeconfig(), ["yes"]) as pod:
        while standin.execs[0].keepalives < 3:
            assert pod.read()


def test_abort_wakes_a_reader(either: StandIn) -> None:
    with opened(either.kubeconfig(), ["sleep", "1000"]) as pod:
        reading, output = threading.Event(), []

        def read() -> None:
            reading.set()
            output.append(pod.read())

        with running(read):
            assert reading.wait(WAIT_SECONDS)
            either.wait_until(lambda: either.execs[0].pid)
            pod.abort()
        assert output == [b""]
        assert pod.exit is None


def fill(pod: PodExec) -> None:
    """Write until the cluster takes no more."""
    while pod.wait_for_room(0, 0.2):
        pod.write(b"x" * 65536)


def test_a_write_never_blocks_and_what_waits_is_sent_once_it_is_taken(either: StandIn) -> None:
    script = "stty raw -echo; printf R; until [ -e go ]; do sleep 0.01; done; exec head -c 40000000 | sha256sum"
    with opened(either.kubeconfig(), ["sh", "-c", script]) as pod:
        read_until(pod, b"R")
        piece = os.urandom(40_000)
        for _ in range(1000):
            pod.write(piece)
        assert not pod.wait_for_room(1 << 20, 0)
        (either.home() / "go").touch()
        expected = hashlib.sha256(piece * 1000).hexdigest().encode()
        read_until(pod, expected)
        assert pod.wait_for_room(0, 5)


def test_who_waits_for_room_is_woken(either: StandIn) -> None:
    for wake in (PodExec.wake, PodExec.abort):
        with opened(either.kubeconfig(), ["sh", "-c", "stty raw -echo; printf R; exec sleep 1000"]) as pod:
            read_until(pod, b"R")
            fill(pod)
            waiting: list[bool] = []
            with running(lambda pod=pod, waiting=waiting: waiting.append(pod.wait_for_room(0, 60))):  # type: ignore[misc]
                wait_until(lambda pod=pod: pod._stream._room._waiters)  # type: ignore[misc]
                wake(pod)
            assert waiting == [False]
            pod.abort()
            assert pod.wait_for_room(0, 60)
            with pytest.raises(PodLost):
                pod.write(b"x")
            assert pod.read() == b""


def test_output_comes_while_input_waits(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k8s_exec, "KEEP_ALIVE_SECONDS", 0.01)  # so that the reader wants to write as well
    script = "stty raw -echo; printf R; until [ -e go ]; do sleep 0.01; done; printf there; exec sleep 1000"
    with opened(standin.kubeconfig(), ["sh", "-c", script]) as pod:
        read_until(pod, b"R")
        for _ in range(400):
            pod.write(b"x" * 40_000)  # more than all buffers between take
        (standin.home() / "go").touch()
        assert read_until(pod, b"there") == b"there"
        assert not pod.wait_for_room(0, 0)


@pytest.mark.parametrize("how", [PodExec.abort, PodExec.close])
def test_the_end_is_a_dropped_connection_and_never_a_close_frame(
    standin: StandIn, how: Callable[[PodExec], None]
) -> None:
    with opened(standin.kubeconfig()) as pod:
        pod.write(b"echo a$((1+1))b\r")
        read_until(pod, b"a2b")
        record = standin.execs[0]
        how(pod)
        standin.wait_until(lambda: record.ended)
        assert record.ended == "lost"
        standin.wait_until(lambda: not standin.shells())
        with pytest.raises(PodLost):
            pod.write(b"x")
        with pytest.raises(PodLost):
            pod.resize(80, 24)
        assert pod.read() == b""
        how(pod)  # once more does no harm


def test_a_connection_that_is_reset_is_lost(either: StandIn) -> None:
    with opened(either.kubeconfig(), ["sh", "-c", "printf R; exec sleep 1000"]) as pod:
        read_until(pod, b"R")
        either.drop_connections()
        with pytest.raises(PodLost, match="the connection to the cluster was lost"):
            read_all(pod)
        with pytest.raises(PodLost):
            while True:
                pod.write(b"x" * 1000)
        assert pod.exit is None


def test_a_pod_that_is_deleted_ends_the_program_with_137(either: StandIn) -> None:
    either.add_pod(Pod("default", "doomed"))
    with opened(either.kubeconfig(), ["sh", "-c", "printf R; exec sleep 1000"], "doomed") as pod:
        read_until(pod, b"R")
        either.delete_pod("default", "doomed")
        assert read_all(pod) == b""
        assert pod.exit == ExitStatus(137)


def test_floods_in_both_directions_stay_intact(standin: StandIn) -> None:
    sent, received = hashlib.sha256(), hashlib.sha256()
    total = [0]
    with opened(standin.kubeconfig(), ["sh", "-c", "stty raw -echo; printf R; exec cat"]) as pod:
        assert read_until(pod, b"R") == b"R"
        done = threading.Event()

        def write() -> None:
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                piece = os.urandom(1 + total[0] % 40_000)
                sent.update(piece)
                total[0] += len(piece)
                pod.write(piece)
            done.set()

        with running(write):
            got = 0
            while not (done.is_set() and got == total[0]):
                piece = pod.read()
                assert piece
                got += len(piece)
                received.update(piece)
    assert got > 500_000
    assert received.digest() == sent.digest()


class WatchedSocket(ssl.SSLSocket):
    """Counts the calls into OpenSSL, and those that came while another thread was inside."""

    inside = threading.Lock()
    overlaps = 0
    receives = 0

    def watched(self, call: Callable[[], Any]) -> Any:
        free = WatchedSocket.inside.acquire(blocking=False)
        WatchedSocket.overlaps += not free
        try:
            os.sched_yield()
            return call()
        finally:
            if free:
                WatchedSocket.inside.release()

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        WatchedSocket.receives += 1
        received: bytes = self.watched(lambda: super(WatchedSocket, self).recv(buflen, flags))
        return received

    def send(self, data: Any, flags: int = 0) -> int:
        sent: int = self.watched(lambda: super(WatchedSocket, self).send(data, flags))
        return sent


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[WatchedSocket]:
    def wrap(self: ssl.SSLContext, sock: socket.socket, **options: Any) -> Any:
        kind = ssl.SSLSocket if options.get("server_side") else WatchedSocket
        return kind._create(sock=sock, context=self, **options)  # type: ignore[attr-defined]

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap)
    WatchedSocket.overlaps = WatchedSocket.receives = 0
    return WatchedSocket


def test_never_two_threads_are_inside_openssl(standin: StandIn, watched: type[WatchedSocket]) -> None:
    with opened(standin.kubeconfig(), ["sh", "-c", "stty raw -echo; printf R; exec cat"]) as pod:
        read_until(pod, b"R")

        def write() -> None:
            for _ in range(400):
                pod.write(b"x" * 1000)

        with running(write):
            got = 0
            while got < 400_000:
                piece = pod.read()
                assert piece
                got += len(piece)
    assert watched.receives > 10
    assert watched.overlaps == 0


# -- PodExec and servers that misbehave -------------------------------------------------------------------------------


class RawServer:
    """A TLS server whose answers the test writes: ``serve(connection, request head)``, a thread a connection."""

    def __init__(
        self,
        ca: trustme.CA,
        serve: Callable[[socket.socket, bytes], None],
        *,
        certificate: trustme.LeafCert | None = None,
        plain: bool = False,
    ) -> None:
        self.requests: list[bytes] = []
        self.accepted = 0
        self.stopping = threading.Event()
        self._serve = serve
        self._context: ssl.SSLContext | None = None
        if not plain:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            (certificate or ca.issue_cert("127.0.0.1", "localhost")).configure_cert(self._context)
        self._ca = ca
        self._listener = Listener(self._talk)
        self.port = self._listener.port

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self._listener.close()

    def cluster(self, **changes: Any) -> Cluster:
        """How to reach it, with a token."""
        server = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority-data": b64(pem(self._ca))}
        return load_kubeconfig(kubeconfig({**server, **changes}), trust=LOOPBACK)

    def _talk(self, raw: socket.socket) -> None:
        self.accepted += 1
        raw.settimeout(WAIT_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = raw if self._context is None else self._context.wrap_socket(raw, server_side=True)
        self._listener.adopt(connection)
        with connection:
            head = b""
            while self._context is not None and b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    break
                head += piece
            self.requests.append(head)
            self._serve(connection, head)
            while connection.recv(65536):
                pass


def answer(data: bytes) -> Callable[[socket.socket, bytes], None]:
    """Send this, then close the sending side."""

    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(data)
        socket.socket.shutdown(connection, socket.SHUT_WR)

    return serve


def upgrade(head: bytes, *headers: str, protocol: str = "v4.channel.k8s.io") -> bytes:
    """The right answer to this request."""
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {generate_accept_token(fields['Sec-WebSocket-Key'].encode()).decode()}",
        *([f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []),
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def stream(*frames: bytes) -> Callable[[socket.socket, bytes], None]:
    """Accept, send these bytes, and close."""

    def serve(connection: socket.socket, head: bytes) -> None:
        answer(upgrade(head) + b"".join(frames))(connection, head)

    return serve


def refused(cluster: Cluster, timeout: float = WAIT_SECONDS) -> ExecRefused:
    """The refusal of an attempt to open a shell; it names no secret."""
    error = failed(cluster, timeout)
    assert isinstance(error, ExecRefused)
    return error


def unsure(cluster: Cluster, timeout: float = WAIT_SECONDS) -> PodLost:
    """The failure of an attempt to open a shell that may run all the same; it names no secret."""
    error = failed(cluster, timeout)
    assert isinstance(error, PodLost)
    return error


def failed(cluster: Cluster, timeout: float) -> ExecError:
    with pytest.raises(ExecError) as caught:
        PodExec.open(Target(cluster, "n", "p"), ["sh"], timeout=timeout).close()
    assert SECRET not in str(caught.value)
    assert str(caught.value).isprintable()
    return caught.value


SUCCESS = frame(b'\x03{"status":"Success"}')


def test_the_request_is_that_of_the_protocol(ca: trustme.CA) -> None:
    with RawServer(ca, stream(frame(b"\x01"), frame(b"\x01hi"), SUCCESS, frame(b"\x03\xe8", 8))) as server:
        with opened(server.cluster(), ["sh", "-i"], "p") as pod:
            assert read_all(pod) == b"hi"
            assert pod.exit == ExitStatus(0)
    first, *fields = server.requests[0].decode().split("\r\n")
    path = "/api/v1/namespaces/default/pods/p/exec?stdin=true&stdout=true&tty=true&command=sh&command=-i"
    assert first == f"GET {path} HTTP/1.1"
    assert f"Authorization: Bearer {SECRET}" in fields
    assert "Sec-WebSocket-Protocol: v4.channel.k8s.io" in fields
    assert f"Host: 127.0.0.1:{server.port}" in fields
    assert not any(field.lower().startswith(("origin:", "cookie:", "sec-websocket-extensions:")) for field in fields)


def test_a_stream_a_byte_at_a_time_is_understood(ca: trustme.CA) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        for byte in upgrade(head) + frame(b"\x01ab") + frame(b"", 9) + frame(b"\x01" + b"c" * 200) + SUCCESS:
            connection.sendall(bytes((byte,)))

    with RawServer(ca, serve) as server, opened(server.cluster()) as pod:
        assert read_all(pod) == b"ab" + b"c" * 200
        assert pod.exit == ExitStatus(0)


def test_many_small_frames_arrive_joined(ca: trustme.CA, watched: type[WatchedSocket]) -> None:
    frames = [frame(b"\x01%04d" % number) for number in range(2000)]
    with RawServer(ca, stream(*frames, SUCCESS)) as server, opened(server.cluster()) as pod:
        pieces = list(iter(pod.read, b""))
        assert b"".join(pieces) == b"".join(b"%04d" % number for number in range(2000))
        assert len(pieces) < 100
    assert watched.receives < 300


def test_both_output_channels_are_output_and_unknown_ones_are_ignored(ca: trustme.CA) -> None:
    frames = [frame(b"\x01a"), frame(b"\x02b"), frame(b"\x05x"), frame(b"\xffx"), frame(b""), frame(b"\x01c"), SUCCESS]
    with RawServer(ca, stream(*frames)) as server, opened(server.cluster()) as pod:
        assert read_all(pod) == b"abc"


def test_a_message_may_come_in_fragments_with_pings_between(ca: trustme.CA) -> None:
    """RFC 6455, section 5.4."""
    status = (
        b'{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}'
    )
    frames = [
        *(frame(b"\x01he", fin=False), frame(b"are you there", 9), frame(b"llo", 0)),
        *(frame(b"", fin=False), frame(b"\x01", 0, fin=False), frame(b"", 9), frame(b" there", 0)),
        *(frame(b"\x01this is te", 1, fin=False), frame(b"xt", 0), frame(b"\x01text", 1)),
        *(frame(b"\x01" + b"x" * 65535, fin=False), frame(b"", 0)),
        *(frame(b"\x03" + status[:9], fin=False), frame(status[9:], 0)),
    ]
    with RawServer(ca, stream(*frames)) as server, opened(server.cluster()) as pod:
        assert read_all(pod) == b"hello there" + b"x" * 65535
        assert pod.exit == ExitStatus(3)


def test_the_last_output_and_the_status_may_come_in_one_record(ca: trustme.CA) -> None:
    with RawServer(ca, stream(frame(b"\x01bye"), SUCCESS)) as server, opened(server.cluster()) as pod:
        assert pod.read() == b"bye"
        assert pod.read() == b""
        assert pod.exit == ExitStatus(0)


LOST = [
    ("end of the connection", b"", "the connection to the cluster was lost"),
    ("close frame", frame(b"\x03\xe8", 8), "without an exit status"),
    ("close frame without a code", frame(b"", 8), "without an exit status"),
    ("masked frame", b"\x82\x85\x00\x00\x00\x00\x01abcd", "masked"),
    ("oversized frame", struct.pack("!BBQ", 0x82, 127, 1 << 33), "limit of 1 MiB"),
    ("half a message", frame(b"\x01a", fin=False), "the connection to the cluster was lost"),
    ("a message in a message", frame(b"\x01a", fin=False) + frame(b"\x01b"), "out of order"),
    ("a text in a message", frame(b"\x01a", fin=False) + frame(b"b", 1), "out of order"),
    ("the end of no message", frame(b"b", 0), "out of order"),
    ("an endless message", frame(b"\x01", fin=False) + frame(b"b" * (1 << 19), 0, fin=False) * 3, "limit of 1 MiB"),
    ("half a frame", b"\x82\x7e\x10", "the connection to the cluster was lost"),
]


@pytest.mark.parametrize("before", [b"", frame(b"\x01"), frame(b"\x01last words")], ids=["silent", "empty", "printed"])
@pytest.mark.parametrize(("data", "sentence"), [row[1:] for row in LOST], ids=[row[0] for row in LOST])
def test_an_end_without_a_status_is_a_loss_after_what_was_printed(
    ca: trustme.CA, data: bytes, sentence: str, before: bytes
) -> None:
    output = b""
    with RawServer(ca, stream(before, data)) as server, opened(server.cluster()) as pod:
        with pytest.raises(PodLost, match=sentence):
            while True:
                piece = pod.read()
                assert piece, "an end that looks like an exit"
                output += piece
        assert pod.exit is None
    assert output == before[3:]


def test_what_is_no_tls_in_the_middle_of_a_stream_is_a_loss(ca: trustme.CA) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(upgrade(head) + frame(b"\x01hi"))
        connection.recv(100)
        socket.socket.send(connection, b"HTTP/1.1 502 Bad Gateway\r\n\r\n")

    with RawServer(ca, serve) as server, opened(server.cluster()) as pod:
        assert read_until(pod, b"hi") == b"hi"
        pod.write(b"go")
        with pytest.raises(PodLost, match="the connection to the cluster was lost"):
            pod.read()


def test_what_came_before_a_broken_connection_is_handed_out(ca: trustme.CA) -> None:
    sent = threading.Event()

    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(upgrade(head))
        connection.recv(100)
        connection.sendall(frame(b"\x01bye") + SUCCESS)
        socket.socket.send(connection, b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
        sent.set()

    with RawServer(ca, serve) as server, opened(server.cluster()) as pod:
        pod.write(b"go")
        assert sent.wait(WAIT_SECONDS)
        assert read_all(pod) == b"bye"
        assert pod.exit == ExitStatus(0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(ca: trustme.CA, status: int) -> None:
    with RawServer(ca, stream(SUCCESS)) as elsewhere:
        location = f"Location: wss://127.0.0.1:{elsewhere.port}/api"
        with RawServer(ca, answer(f"HTTP/1.1 {status} Moved\r\n{location}\r\n\r\n".encode())) as server:
            error = refused(server.cluster())
        assert (server.accepted, elsewhere.accepted) == (1, 0)
    assert "redirect" in str(error)
    assert error.status == status


def test_no_cookie_travels_to_the_next_connection(ca: trustme.CA) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(upgrade(head, "Set-Cookie: affinity=abc; Domain=127.0.0.1; Path=/") + SUCCESS)

    with RawServer(ca, serve) as server:
        for _ in range(2):
            with opened(server.cluster()) as pod:
                assert read_all(pod) == b""
    assert len(server.requests) == 2
    assert not any(b"cookie" in request.lower() for request in server.requests)


def test_a_server_on_this_host_is_not_reached_through_the_environments_proxy(
    ca: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(ca, answer(b""), plain=True) as proxy, RawServer(ca, stream(SUCCESS)) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with opened(server.cluster()) as pod:
            assert read_all(pod) == b""
        assert proxy.accepted == 0


def http_error(status: str, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def test_a_refusal_is_explained_when_its_body_comes_later(ca: trustme.CA) -> None:
    body = status_body('pods "p" not found', "NotFound", 404)

    def serve(connection: socket.socket, head: bytes) -> None:
        whole = http_error("404 Not Found", body)
        for piece in (whole[:20], whole[20:-100], whole[-100:-50], whole[-50:]):
            connection.sendall(piece)
        socket.socket.shutdown(connection, socket.SHUT_WR)

    with RawServer(ca, serve) as server:
        error = refused(server.cluster())
    assert 'pods "p" not found' in str(error)
    assert error.status == 404


def test_a_refusal_is_explained_when_its_body_trickles(ca: trustme.CA) -> None:
    whole = http_error("404 Not Found", status_body('pods "p" not found' + "." * 20_000, "NotFound", 404))

    def serve(connection: socket.socket, head: bytes) -> None:
        for start in range(0, len(whole), 100):
            connection.sendall(whole[start : start + 100])
            select.select([connection], [], [], 0.001)
        socket.socket.shutdown(connection, socket.SHUT_WR)

    with RawServer(ca, serve) as server:
        assert refused(server.cluster()).status == 404


ODD_ANSWERS = [
    ("nothing", b"", 0, "is not a WebSocket's"),
    ("no number", b"HTTP/1.1 abc\r\n\r\n", 0, "is not a WebSocket's"),
    ("no UTF-8", b"HTTP/1.1 101 \xff\r\n\r\n", 0, "is not a WebSocket's"),
    ("200", http_error("200 OK", b"hello"), 200, "HTTP status 200: hello"),
    ("500 without a body", b"HTTP/1.1 500 Oops\r\n\r\n", 500, "HTTP status 500: no reason given"),
    ("bad length", b"HTTP/1.1 500 Oops\r\nContent-Length: x\r\n\r\n", 0, "is not a WebSocket's"),
    ("huge body", http_error("500 Oops", b"x" * (2 << 20)), 0, "too long"),
    ("endless header", b"HTTP/1.1 101 Switching\r\nX: " + b"y" * (1 << 20), 0, "too long"),
    ("endless headers", b"HTTP/1.1 101 Switching\r\n" + b"X: y\r\n" * 200_000, 0, "too long"),
    ("101 without its headers", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 0, "is not a WebSocket's"),
]


@pytest.mark.parametrize(
    ("data", "status", "sentence"), [row[1:] for row in ODD_ANSWERS], ids=[row[0] for row in ODD_ANSWERS]
)
def test_an_answer_that_is_no_upgrade_is_refused(ca: trustme.CA, data: bytes, status: int, sentence: str) -> None:
    with RawServer(ca, answer(data)) as server:
        error = failed(server.cluster(), WAIT_SECONDS)
    assert sentence in str(error)
    assert len(str(error)) < 700
    if sentence == "is not a WebSocket's":  # so it does not say whether the program runs
        assert isinstance(error, PodLost)
    else:
        assert isinstance(error, ExecRefused) and error.status == status


@pytest.mark.parametrize("data", [b"HTTP/1.1\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"], ids=["no status", "not HTTP"])
def test_an_answer_that_is_no_http_is_refused(ca: trustme.CA, data: bytes) -> None:
    with RawServer(ca, answer(data)) as server:
        assert "is not a WebSocket's" in str(unsure(server.cluster()))


@pytest.mark.parametrize("protocol", ["", "v5.channel.k8s.io", "channel.k8s.io"])
def test_another_subprotocol_than_asked_for_is_refused(ca: trustme.CA, protocol: str) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(upgrade(head, protocol=protocol) + SUCCESS)

    with RawServer(ca, serve) as server:
        assert "is not a WebSocket's" in str(unsure(server.cluster()))


def test_a_wrong_accept_key_is_refused(ca: trustme.CA) -> None:
    def serve(connection: socket.socket, head: bytes) -> None:
        connection.sendall(upgrade(b"GET / HTTP/1.1\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"))

    with RawServer(ca, serve) as server:
        assert "is not a WebSocket's" in str(unsure(server.cluster()))


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "403 Forbidden", "500 Oops"])
def test_a_header_that_echoes_the_token_is_not_shown(ca: trustme.CA, status: str) -> None:
    body = status_body("no", "Oops", 500)
    with RawServer(ca, answer(http_error(status, body, f"X-Echo: Bearer {SECRET}"))) as server:
        refused(server.cluster())


@pytest.mark.parametrize("form", ["text", "status"])
def test_a_body_that_echoes_the_token_is_not_shown(ca: trustme.CA, form: str) -> None:
    text = f"Authorization: Bearer {SECRET}"
    body = text.encode() if form == "text" else status_body(text, "Oops", 500)
    with RawServer(ca, answer(http_error("500 Oops", body))) as server:
        refused(server.cluster())


# -- reaching the cluster ---------------------------------------------------------------------------------------------


def self_signed() -> trustme.LeafCert:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    certificate = builder.sign(key, hashes.SHA256())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return trustme.LeafCert(key.private_bytes(*form), certificate.public_bytes(serialization.Encoding.PEM), [])


def test_a_self_signed_certificate_has_its_sentence_and_gets_no_token(ca: trustme.CA) -> None:
    with RawServer(ca, stream(SUCCESS), certificate=self_signed()) as server:
        error = refused(server.cluster())
        assert server.requests == []  # no token before the certificate is right
    assert "self-signed" in str(error)
    assert f"127.0.0.1:{server.port}" in str(error)


def test_nothing_is_checked_when_the_kubeconfig_says_so(ca: trustme.CA) -> None:
    certificate = trustme.CA().issue_cert("other.example")
    with RawServer(ca, stream(SUCCESS), certificate=certificate) as server:
        cluster = server.cluster(**{"certificate-authority-data": None, "insecure-skip-tls-verify": True})
        with opened(cluster) as pod:
            assert read_all(pod) == b""


def test_without_a_ca_the_systems_are_trusted_and_no_others(ca: trustme.CA) -> None:
    with RawServer(ca, stream(SUCCESS)) as server:
        error = refused(server.cluster(**{"certificate-authority-data": None}))
    assert "certificate" in str(error)


def test_a_closed_port_has_its_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = refused(load_kubeconfig(kubeconfig({"server": f"https://127.0.0.1:{port}"}), trust=LOOPBACK))
    assert str(error) == f"127.0.0.1:{port} cannot be reached: Connection refused"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", "a..b"])
def test_an_unknown_host_has_its_sentence(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    def getaddrinfo(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    error = refused(load_kubeconfig(kubeconfig({"server": f"https://{host}"})))
    assert "host name" in str(error)


def test_a_server_that_speaks_plain_http_has_its_sentence(ca: trustme.CA) -> None:
    with RawServer(ca, answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"), plain=True) as server:
        assert "no TLS connection to the cluster" in str(refused(server.cluster()))


def test_a_connection_that_closes_during_the_handshake_has_its_sentence(ca: trustme.CA) -> None:
    with RawServer(ca, answer(b""), plain=True) as server:
        assert "no TLS connection to the cluster" in str(refused(server.cluster()))


def silent(connection: socket.socket, head: bytes) -> None:
    """Wait until the other side has closed."""


def trickling(connection: socket.socket, head: bytes) -> None:
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 30:
            connection.sendall(bytes((byte,)))
            select.select([connection], [], [], 0.02)


@pytest.mark.parametrize("serve", [silent, trickling])
def test_a_server_that_never_answers_is_given_up_in_time(
    ca: trustme.CA, serve: Callable[[socket.socket, bytes], None]
) -> None:
    with RawServer(ca, serve) as server:
        started = time.monotonic()
        error = unsure(server.cluster(), timeout=0.4)
        assert 0.2 < time.monotonic() - started < 3
    assert "did not answer the exec request in time" in str(error)


def test_a_client_key_never_reaches_a_disk(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    before = folder.stat().st_mtime_ns
    with opened(standin.kubeconfig(auth="cert"), ["sh", "-c", "exit 0"]) as pod:
        assert read_all(pod) == b""
    assert list(folder.iterdir()) == []
    if hasattr(os, "memfd_create"):
        assert folder.stat().st_mtime_ns == before


def test_an_answer_about_a_pod_that_trickles_is_not_waited_for(ca: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k8s_exec, "_ANSWER_SECONDS", 0.5)
    sent = 0

    def trickle(connection: socket.socket, head: bytes) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while sent < 1000 and not server.stopping.wait(0.02):
            connection.sendall(b" ")
            sent += 1

    with RawServer(ca, trickle) as server:
        assert k8s_exec.why_lost(Target(server.cluster(), "default", "demo"), time.time(), timeout=0.1) == ""
    assert 0 < sent < 500
