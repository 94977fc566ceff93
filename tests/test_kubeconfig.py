"""Kubeconfigs: what is read, what is refused, and what of them is never shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from k8s_exec import KubeconfigError, PodExec, Target, User, load_kubeconfig
from tests.raw_cluster import SECRET, ca_data
from tests.support import WAIT_SECONDS, b64, nothing_left


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
    cluster = load_kubeconfig(kubeconfig({"certificate-authority-data": ca_data(ca)}, user))
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
    broken = "\n".join(ca_data(ca)[start : start + 64] for start in range(0, 2000, 64))
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
    cluster = load_kubeconfig(kubeconfig({"certificate-authority-data": ca_data(ca)}, user))
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
        text = kubeconfig({"server": "https://127.0.0.1:1", "certificate-authority-data": ca_data(ca)}, user)
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
