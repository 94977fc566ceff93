"""TLS to the cluster as kubectl has it: which chains are good, which PEM texts are read, and what alerts mean."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import k8s_exec
from demo.cluster import StandIn
from k8s_exec import Cluster, ExecError, PodLost, Target, dial, load_kubeconfig, why_lost
from tests.raw_cluster import tls_context, tls_server
from tests.support import (
    LOOPBACK,
    Listener,
    b64,
    kubeconfig,
    need_program,
    nothing_left,
    opened,
    output_of,
    refusal,
)

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
DER = serialization.Encoding.DER
PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Certificate:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(DER)

    def served(self, *chain: Certificate) -> trustme.LeafCert:
        """For a server that sends these after it."""
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return trustme.LeafCert(self.key.private_bytes(PEM, *form), self.pem, [item.pem for item in chain])


def issue(
    name: str,
    issuer: Certificate | None = None,
    *,
    ca: bool | None = None,
    expired: bool = False,
    named: bool = False,
    usage: x509.ObjectIdentifier | None = None,
) -> Certificate:
    """A certificate from that issuer, or a self-signed one; ``ca``: its basic constraints; ``named``: for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(
        issuer.certificate.subject if issuer else subject,
        subject,
        key.public_key(),
        x509.random_serial_number(),
        NOW - 2 * DAY,
        NOW - DAY if expired else NOW + DAY,
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True)
    if named:
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
    return Certificate(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


ROOT = issue("root", ca=True)
INTERMEDIATE = issue("intermediate", ROOT, ca=True)
LEAF = issue("leaf", INTERMEDIATE, ca=False, named=True)
EXPIRED_ROOT = Certificate(issue("root", ca=True, expired=True).certificate, ROOT.key)
NO_CA = issue("no-ca", ROOT, ca=False)
UNSAID = issue("unsaid", ROOT)
OTHER = issue("other", ca=True)


def self_signed(**options: Any) -> Certificate:
    return issue("self-signed", named=True, **options)


def place(ca: bytes) -> dict[str, str]:
    return {"certificate-authority-data": b64(ca)}


def kubectl_opens(text: str, folder: Path) -> bool:
    """Whether kubectl, which is the oracle, gets an answer with this kubeconfig."""
    (folder / "config").write_text(text)
    command = [need_program("kubectl"), "--kubeconfig", str(folder / "config"), "get", "--raw", "/version"]
    answer = subprocess.run(command, env={"PATH": os.environ["PATH"], "HOME": str(folder)}, capture_output=True)
    return answer.returncode == 0


def opens(text: str) -> bool:
    try:
        opened(text, command=("true",)).close()
    except ExecError:
        return False
    return True


# -- which chain is good -----------------------------------------------------------------------------------------------

OWN = [self_signed(), self_signed(ca=False), self_signed(ca=True), self_signed(expired=True)]
CHAINS: dict[str, tuple[trustme.LeafCert, bytes, bool]] = {  # what is served, the pool, whether it is good
    "the root": (LEAF.served(INTERMEDIATE), ROOT.pem, True),
    "the root, and the server sends no chain": (LEAF.served(), ROOT.pem, False),
    "the issuing CA": (LEAF.served(INTERMEDIATE), INTERMEDIATE.pem, True),
    "the issuing CA, and the server sends no chain": (LEAF.served(), INTERMEDIATE.pem, True),
    "the issuing CA and an expired root": (LEAF.served(), EXPIRED_ROOT.pem + INTERMEDIATE.pem, True),
    "the server's own": (LEAF.served(INTERMEDIATE), LEAF.pem, True),
    "the server's own, and the server sends no chain": (LEAF.served(), LEAF.pem, True),
    "its own, self-signed, of no kind": (OWN[0].served(), OWN[0].pem, True),
    "its own, self-signed, no CA": (OWN[1].served(), OWN[1].pem, True),
    "its own, self-signed, a CA": (OWN[2].served(), OWN[2].pem, True),
    "its own, self-signed, expired": (OWN[3].served(), OWN[3].pem, False),
    "another than the self-signed": (OWN[0].served(), ROOT.pem, False),
    "an expired root": (LEAF.served(INTERMEDIATE), EXPIRED_ROOT.pem, False),
    "an issuer that is no CA": (issue("x", NO_CA, named=True).served(), NO_CA.pem, False),
    "an issuer that does not say": (issue("x", UNSAID, named=True).served(), UNSAID.pem, False),
    "the root of a chain through no CA": (issue("x", NO_CA, named=True).served(NO_CA), ROOT.pem, False),
    "the issuer of another address": (issue("127.0.0.1", INTERMEDIATE).served(), INTERMEDIATE.pem, False),
    "the issuer of a client's": (
        issue("x", INTERMEDIATE, named=True, usage=ExtendedKeyUsageOID.CLIENT_AUTH).served(),
        INTERMEDIATE.pem,
        False,
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_good_where_kubectl_takes_it(name: str, tmp_path: Path) -> None:
    served, pool, good = CHAINS[name]
    with nothing_left(), StandIn(certificate=served) as cluster:
        text = kubeconfig(cluster, **place(pool))
        assert opens(text) == good
        assert kubectl_opens(text, tmp_path) == good


# -- which PEM text is read --------------------------------------------------------------------------------------------

ROOT_BODY = base64.b64encode(ROOT.der)
LINE = (b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----")
DAMAGED = b"\n".join((LINE[0], base64.b64encode(ROOT.der[:-40]), LINE[1], b""))
TEXTS: dict[str, tuple[bytes, bool]] = {
    "bytes of no encoding between": (b"\xff\xfe\x00 caf\xe9\n" + OTHER.pem + b"\xc3\xa9 # root:\n" + ROOT.pem, True),
    "a damaged certificate before": (DAMAGED + ROOT.pem, True),
    "a damaged certificate after": (ROOT.pem + DAMAGED, True),
    "no base64 before": (DAMAGED.replace(b"M", b"?") + ROOT.pem, True),
    "a block that does not end before": (OTHER.pem.replace(LINE[1], b"") + ROOT.pem, True),
    "blocks of other kinds around": (b"-----BEGIN X-----\nAAAA\n-----END X-----\n" + ROOT.pem, True),
    "CRLF": (ROOT.pem.replace(b"\n", b"\r\n"), True),
    "no line break at the end": (ROOT.pem.strip(), True),
    "a body on one line": (b"\n".join((LINE[0], ROOT_BODY, LINE[1])), True),
    "an indented body": (ROOT.pem.replace(b"\n", b"\n  ").replace(b"  -", b"-"), True),
    "blanks after the first line": (ROOT.pem.replace(LINE[0], LINE[0] + b" \t"), True),
    "twice the same": (ROOT.pem * 2, True),
    "damaged only": (DAMAGED, False),
    "all on one line": (LINE[0] + ROOT_BODY + LINE[1], False),
    "text before the first line": (b"x " + ROOT.pem, False),
    "text after the last line": (ROOT.pem.strip() + b" x\n", False),
    "indented": (b"  " + ROOT.pem.replace(b"\n", b"\n  "), False),
    "CR": (ROOT.pem.replace(b"\n", b"\r"), False),
    "two without a line break between": (OTHER.pem.strip() + ROOT.pem, False),
    "a header in the block": (ROOT.pem.replace(b"-----\n", b"-----\nName: x\n\n", 1), False),
    "another kind": (ROOT.pem.replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE"), False),
    "bytes after the certificate": (b"\n".join((LINE[0], base64.b64encode(ROOT.der + b"xx"), LINE[1])), False),
    "DER": (ROOT.der, False),
    "no certificate": (b"hello", False),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_pem_text_is_read_where_kubectl_reads_it(name: str, tmp_path: Path) -> None:
    pool, good = TEXTS[name]
    with nothing_left(), StandIn(certificate=LEAF.served(INTERMEDIATE)) as cluster:
        text = kubeconfig(cluster, **place(pool))
        assert kubectl_opens(text, tmp_path) == good
        if good:
            assert output_of(text) == b"here\r\n"
        else:
            with pytest.raises(k8s_exec.KubeconfigError, match="holds no PEM certificate"):
                opened(text)


def test_a_pool_of_the_pods_own_service_account_may_have_text_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nothing_left(), StandIn() as cluster:
        for name, content in (("ca.crt", f"é\n{cluster.ca_pem}"), ("token", cluster.token), ("namespace", "default")):
            (tmp_path / name).write_text(content)
        monkeypatch.setattr(k8s_exec, "SERVICE_ACCOUNT_FOLDER", tmp_path)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", cluster.host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
        k8s_exec.PodExec.open(Target(k8s_exec.in_cluster(), "default", "demo"), ["true"], timeout=5).close()


CLIENT_TEXTS: dict[str, Callable[[bytes, bytes], tuple[bytes, bytes]]] = {
    "text around": lambda pem, key: (b"caf\xe9\n" + pem + b"\xff\n", b"\xe9: \xff\n" + key + b"\xe9"),
    "both in one file": lambda pem, key: (pem + key, pem + key),
    "both in one file, key first": lambda pem, key: (key + pem, key + pem),
    "parameters before the key": lambda pem, key: (
        pem,
        b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + key,
    ),
    "a second key": lambda pem, key: (pem, key + issue("x").served().private_key_pem.bytes()),
    "CRLF": lambda pem, key: (pem.replace(b"\n", b"\r\n"), key.replace(b"\n", b"\r\n")),
}


@pytest.mark.parametrize("name", CLIENT_TEXTS)
def test_a_client_certificate_is_read_where_kubectl_reads_it(name: str, tmp_path: Path) -> None:
    with nothing_left(), StandIn(demand_certificate=True) as cluster:
        certificate, key = (text.encode() for text in cluster.client_certificate())
        certificate, key = CLIENT_TEXTS[name](certificate, key)
        pair = {"client-certificate-data": certificate, "client-key-data": key}
        text = kubeconfig(cluster, {name: b64(value) for name, value in pair.items()})
        assert kubectl_opens(text, tmp_path)
        assert output_of(text) == b"here\r\n"


# -- what alerts mean --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asking", [False, True], ids=["an exec", "a question"])
def test_a_cluster_that_wants_a_client_certificate_is_told_so_at_once(asking: bool) -> None:
    with nothing_left(), StandIn(demand_certificate=True) as cluster:
        text, begin = kubeconfig(cluster), time.monotonic()
        if asking:
            target = Target(load_kubeconfig(text, trust=LOOPBACK), "default", "demo")
            said = why_lost(target, time.time(), timeout=2)
        else:
            said = refusal(text)
        assert "it wants a client certificate" in said
        assert time.monotonic() - begin < 1.5
        assert not cluster.execs


def test_a_shell_is_refused_without_a_hang_up_that_could_not_work_either() -> None:
    with nothing_left(), StandIn(demand_certificate=True) as cluster:
        target = Target(load_kubeconfig(kubeconfig(cluster), trust=LOOPBACK), "default", "demo")
        begin = time.monotonic()
        with pytest.raises(ExecError, match="it wants a client certificate"):
            k8s_exec.open_shell(target, "1", (), "", (80, 24), timeout=10)
        assert time.monotonic() - begin < 2


@contextlib.contextmanager
def server_of(context: ssl.SSLContext, after: Callable[[ssl.SSLSocket], None]) -> Any:
    """A server that speaks TLS, then does that; its cluster."""
    with tls_server(context, after) as port:
        yield Cluster("127.0.0.1", port, ca_pem=LEAF.pem.decode())


def server_context() -> ssl.SSLContext:
    return tls_context(LEAF.served())


def only_tls_1_2(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED


def only_tls_1_1(context: ssl.SSLContext) -> None:
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.10 and newer
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1


def no_cipher_in_common(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("PSK")


def unknown_name(context: ssl.SSLContext) -> None:
    context.sni_callback = lambda tls, name, context: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


def other_alert(context: ssl.SSLContext) -> None:
    context.sni_callback = lambda tls, name, context: ssl.ALERT_DESCRIPTION_INTERNAL_ERROR


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (only_tls_1_2, "it wants a client certificate, or other ciphers than this server has"),
        (only_tls_1_1, "it speaks neither TLS 1.2 nor 1.3"),
        (no_cipher_in_common, "it wants a client certificate, or other ciphers than this server has"),
        (unknown_name, "it does not know itself by this name (see tls-server-name)"),
        (other_alert, "it sent the TLS alert internal_error"),
    ],
)
def test_each_alert_in_the_handshake_has_its_words(change: Callable[[ssl.SSLContext], None], words: str) -> None:
    context = server_context()
    change(context)
    with server_of(context, lambda tls: None) as cluster, pytest.raises(k8s_exec.ExecRefused) as caught:
        dial(cluster, k8s_exec.Credential(), time.monotonic() + 5)
    at = f"no TLS connection to the cluster at 127.0.0.1:{cluster.port}"
    assert str(caught.value) == f"{at}: {words}"


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (issue("client", OTHER), "the client certificate comes from a CA that it does not know"),
        (issue("client", ROOT, expired=True), "the client certificate has expired"),
        (issue("client", ROOT, usage=ExtendedKeyUsageOID.SERVER_AUTH), "it does not accept the client certificate"),
    ],
    ids=["other CA", "expired", "other use"],
)
def test_each_fault_of_a_client_certificate_has_its_words(own: Certificate, words: str) -> None:
    context = server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ROOT.der)
    with server_of(context, lambda tls: None) as cluster:
        user = k8s_exec.User(own.pem, own.served().private_key_pem.bytes())
        cluster = Cluster(cluster.host, cluster.port, ca_pem=cluster.ca_pem, user=user)
        with pytest.raises(k8s_exec.ExecRefused) as caught:
            k8s_exec.PodExec.open(Target(cluster, "default", "demo"), ["sh"], timeout=5)
    assert words in str(caught.value)


@pytest.mark.parametrize("asking", [False, True], ids=["an exec", "a question"])
def test_an_alert_is_heard_where_the_request_can_no_longer_be_sent(
    monkeypatch: pytest.MonkeyPatch, asking: bool
) -> None:
    context, closed = server_context(), threading.Event()
    context.verify_mode = ssl.CERT_REQUIRED

    def serve(raw: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError):
            context.wrap_socket(raw, server_side=True)  # which closes it, with what it has not read
        closed.set()

    real = k8s_exec.dial

    def slow_dial(*args: Any) -> ssl.SSLSocket:
        tls = real(*args)
        assert closed.wait(5)
        return tls

    monkeypatch.setattr(k8s_exec, "dial", slow_dial)
    with nothing_left():
        listener = Listener(serve)
        target = Target(Cluster("127.0.0.1", listener.port, ca_pem=LEAF.pem.decode()), "default", "demo")
        if asking:
            said = why_lost(target, time.time(), timeout=0)
        else:
            with pytest.raises(k8s_exec.ExecRefused) as caught:
                k8s_exec.PodExec.open(target, ["sh"], timeout=5)
            said = str(caught.value)
        listener.close()
    assert "it wants a client certificate" in said


def test_an_alert_in_the_middle_of_a_stream_is_named() -> None:
    with nothing_left(), StandIn() as cluster:
        pod = opened(kubeconfig(cluster), command=("cat",))
        socket.socket.send(pod._stream._tls, b"\x17\x03\x03\x00\x20" + bytes(32))  # which no key has made
        with pytest.raises(PodLost, match=r"was lost: it sent the TLS alert bad_record_mac"):
            while pod.read():
                pass
        pod.close()


def damage_a_record(tls: ssl.SSLSocket) -> None:
    """Let the other side see bytes that no key has made, and it answers with an alert; so do we."""
    tls.recv(65536)
    socket.socket.send(tls, b"\x17\x03\x03\x00\x20" + bytes(32))
    tls.recv(1)


def test_a_broken_stream_before_the_answer_leaves_it_open_whether_the_program_runs() -> None:
    with server_of(server_context(), damage_a_record) as cluster, pytest.raises(PodLost):
        k8s_exec.PodExec.open(Target(cluster, "default", "demo"), ["sh"], timeout=5)
