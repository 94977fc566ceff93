"""The way to the cluster: proxies, addresses, prefixes, time limits, certificates, and where nobody may go."""

from __future__ import annotations

import contextlib
import datetime
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import k8s_exec
from demo.cluster import StandIn
from k8s_exec import Cluster, Credential, ExecRefused, KubeconfigError, Trust, dial, load_kubeconfig
from tests.raw_cluster import ca_data, tls_context, tls_server
from tests.support import (
    ALLOW_LOOPBACK,
    LOOPBACK,
    Listener,
    RunningServer,
    b64,
    deaf_port,
    kubeconfig,
    nothing_left,
    opened,
    output_of,
    read_until,
    refusal,
    wait_until,
)

SECRET = "pr0xy-p:ss"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "NO_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


# -- proxies -----------------------------------------------------------------------------------------------------------


class Proxy:
    """An HTTP proxy that knows CONNECT (RFC 9110, section 9.3.6), over TLS if it has a certificate.

    All goes to ``target``, whatever the request names. ``refuse`` is the answer in place of 200.
    """

    def __init__(self, target: tuple[str, int], context: ssl.SSLContext | None = None, refuse: str = "") -> None:
        self.target, self.context, self.refuse = target, context, refuse
        self.ok = "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n"
        self.heads: list[str] = []
        self.listener = Listener(self._serve)
        self.port = self.listener.port

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.listener.close()

    def _serve(self, raw: socket.socket) -> None:
        near = self.context.wrap_socket(raw, server_side=True) if self.context else raw
        self.listener.adopt(near)
        with near:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                byte = near.recv(1)
                if not byte:
                    return
                head += byte
            self.heads.append(head.decode())
            near.sendall((self.refuse or self.ok).encode())
            if not self.refuse:
                with socket.create_connection(self.target) as far:
                    self.listener.adopt(far)
                    self._relay(near, far)

    def _relay(self, near: socket.socket, far: socket.socket) -> None:
        """One thread for both directions: while one side takes nothing, the other is not read."""
        while True:
            pending = isinstance(near, ssl.SSLSocket) and near.pending()
            ready = [near] if pending else select.select([near, far], [], [])[0]
            for source, sink in ((near, far), (far, near)):
                if source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    sink.sendall(data)


@pytest.fixture(params=["http", "https"])
def proxy(
    request: pytest.FixtureRequest,
    cluster: StandIn,
    ca: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[str, Proxy]]:
    """(URL, proxy); this host trusts the proxy's certificate."""
    context = None
    if request.param == "https":
        ca.cert_pem.write_to_path(str(tmp_path / "proxy-ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "proxy-ca.pem"))
        context = tls_context(ca.issue_cert("127.0.0.1"))
    with nothing_left(), Proxy((cluster.host, cluster.port), context) as running:
        yield f"{request.param}://127.0.0.1:{running.port}", running


def test_the_kubeconfigs_proxy_is_used(cluster: StandIn, proxy: tuple[str, Proxy]) -> None:
    url, running = proxy
    assert output_of(kubeconfig(cluster, **{"proxy-url": url})) == b"here\r\n"
    (head,) = running.heads
    assert head.startswith(f"CONNECT 127.0.0.1:{cluster.port} HTTP/1.1\r\nHost: 127.0.0.1:{cluster.port}\r\n")
    assert "Proxy-Authorization" not in head
    assert cluster.token not in head


def test_name_and_password_are_shown_to_the_proxy_only(cluster: StandIn, proxy: tuple[str, Proxy]) -> None:
    url, running = proxy
    url = url.replace("://", "://us%40er:pr0xy-p%3Ass@")
    assert output_of(kubeconfig(cluster, **{"proxy-url": url})) == b"here\r\n"
    pair = b64(f"us@er:{SECRET}")
    assert f"\r\nProxy-Authorization: Basic {pair}\r\n" in running.heads[0]


def test_a_whole_session_goes_through_a_proxy(cluster: StandIn, proxy: tuple[str, Proxy], tmp_path: Path) -> None:
    server = RunningServer(tmp_path, cluster, more=ALLOW_LOOPBACK)
    try:
        text = kubeconfig(cluster, **{"proxy-url": proxy[0]})
        with server.connect(cluster_cfg=text) as terminal:
            terminal.type("seq 200000 | tail -1; echo do''ne\n")
            terminal.wait_for("done\r\n")
        wait_until(lambda: server.rows()[0]["logout_at"], "the end of the session")
        wait_until(lambda: not cluster.processes(), "an empty pod")
    finally:
        server.stop()


def test_both_directions_at_once_go_through_a_proxy(cluster: StandIn, proxy: tuple[str, Proxy]) -> None:
    echo = ("sh", "-c", "stty raw -echo; echo ready; exec cat")
    pod = opened(kubeconfig(cluster, **{"proxy-url": proxy[0]}), command=echo)
    sent, got = bytes(range(256)) * 32768, pod.read()
    wanted = b"ready\n" + sent

    def write() -> None:
        for start in range(0, len(sent), 5000):
            pod.wait_for_room(65536, 60)
            pod.write(sent[start : start + 5000])

    writer = threading.Thread(target=write)
    writer.start()
    while len(got) < len(wanted) and (data := pod.read()):
        got += data
    writer.join()
    pod.close()
    cluster.delete_pod("default", "demo")
    assert got == wanted


def test_who_waits_for_room_behind_a_proxy_is_woken(cluster: StandIn, proxy: tuple[str, Proxy]) -> None:
    pod = opened(
        kubeconfig(cluster, **{"proxy-url": proxy[0]}), command=("sh", "-c", "stty raw -echo; exec sleep 1000")
    )
    while pod.wait_for_room(0, 0.3):
        pod.write(b"x" * 65536)
    waiter = threading.Thread(target=pod.wait_for_room, args=(0, 60))
    waiter.start()
    pod.abort()
    waiter.join(5)
    assert not waiter.is_alive()
    pod.close()
    cluster.delete_pod("default", "demo")  # the end of a connection waits behind input that is not read


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "(407)"),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nsecret", "refused the connection with HTTP status 403"),
        ("HTTP/1.0 502 Bad Gateway\r\n\r\n", "refused the connection with HTTP status 502"),
        ("SSH-2.0-OpenSSH_9\r\n\r\n", "no connection through the proxy 127.0.0.1"),
        ("HTTP/1.1 200 OK\r\nX: " + "x" * 20000, "no connection through the proxy 127.0.0.1"),
        ("", "no connection through the proxy 127.0.0.1"),
    ],
)
def test_a_proxy_that_says_no_is_named(cluster: StandIn, answer: str, sentence: str) -> None:
    with Proxy((cluster.host, cluster.port), refuse=answer or " ") as proxy:
        said = refusal(kubeconfig(cluster, **{"proxy-url": f"http://u:{SECRET}@127.0.0.1:{proxy.port}"}))
    assert sentence in said
    assert "127.0.0.1" in said
    assert SECRET not in said
    assert "status 0" not in said


@pytest.mark.parametrize("piece", [b"x", b"x" * 4096], ids=["trickling", "endless"])
def test_a_proxys_answer_without_an_end_is_given_up(cluster: StandIn, piece: bytes) -> None:
    closing = threading.Event()

    def serve(connection: socket.socket) -> None:
        while not closing.wait(0.02 if len(piece) == 1 else 0):
            connection.sendall(piece)

    listener, begin = Listener(serve), time.monotonic()
    limit = 0.4 if len(piece) == 1 else 20
    said = refusal(kubeconfig(cluster, **{"proxy-url": f"http://127.0.0.1:{listener.port}"}), limit=limit)
    assert time.monotonic() - begin < 5
    closing.set()
    listener.close()
    assert "no connection through the proxy 127.0.0.1" in said


def test_a_proxys_answer_needs_no_reason_phrase(cluster: StandIn) -> None:
    with Proxy((cluster.host, cluster.port)) as proxy:
        proxy.ok = "HTTP/1.1 200\r\n\r\n"
        assert output_of(kubeconfig(cluster, **{"proxy-url": f"http://127.0.0.1:{proxy.port}"})) == b"here\r\n"


def test_an_https_proxy_of_an_unknown_ca_is_refused(cluster: StandIn, ca: trustme.CA) -> None:
    with Proxy((cluster.host, cluster.port), tls_context(ca.issue_cert("127.0.0.1"))) as proxy:
        said = refusal(kubeconfig(cluster, **{"proxy-url": f"https://u:{SECRET}@127.0.0.1:{proxy.port}"}))
    assert "no connection through the proxy 127.0.0.1: its certificate comes from a CA" in said
    assert not proxy.heads


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1080", "socks5h://127.0.0.1", "ftp://p", "http://", "http://p:x"])
def test_other_proxies_are_refused_in_words(cluster: StandIn, url: str) -> None:
    with pytest.raises(KubeconfigError, match=r"http:// or https:// proxy|must be http://"):
        load_kubeconfig(kubeconfig(cluster, **{"proxy-url": url}))


def via(host: str, port: int = 6443) -> str:
    """The proxy for that server, by the environment."""
    proxy = k8s_exec.proxy_for(Cluster(host, port))
    return proxy.netloc if proxy else ""


@pytest.mark.parametrize("url", ["http://p.example:3128", "https://p.example:3128", "p.example:3128"])
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    monkeypatch.setenv(name, url)
    assert via("k8s.example") == "p.example:3128"
    assert [via(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1")] == [""] * 4


def test_other_variables_and_unusable_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://other:1")
    monkeypatch.setenv("ALL_PROXY", "http://other:1")
    assert via("k8s.example") == ""
    monkeypatch.setenv("HTTPS_PROXY", f"socks5://u:{SECRET}@p:1080")
    with pytest.raises(ExecRefused, match="HTTPS_PROXY is not the URL of an HTTP proxy") as caught:
        via("k8s.example")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "host", "direct"),
    [
        ("*", "k8s.example", True),
        ("k8s.example", "k8s.example", True),
        ("K8S.Example", "k8s.example", True),
        ("example", "k8s.example", True),  # a domain holds its hosts
        ("8s.example", "k8s.example", False),
        (".example", "k8s.example", True),
        (".k8s.example", "k8s.example", False),  # but not itself, with a dot
        ("*.example", "k8s.example", True),
        ("*.k8s.example", "k8s.example", False),
        ("k8s.example:6443", "k8s.example", True),
        ("k8s.example:443", "k8s.example", False),
        ("example:6443", "k8s.example", True),
        (".example:443", "k8s.example", False),
        (":6443", "k8s.example", False),
        ("other, k8s.example ,more", "k8s.example", True),
        (",, ,", "k8s.example", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1:6443", "10.0.0.1", True),
        ("10.0.0.1:443", "10.0.0.1", False),
        ("10.0.0.0/8", "10.0.0.1", True),
        ("10.9.9.9/8", "10.0.0.1", True),
        ("11.0.0.0/8", "10.0.0.1", False),
        ("10.0.0.0/8", "k8s.example", False),  # names are not looked up for it
        ("10.0.0.0/99", "10.0.0.1", False),
        ("2001:db8::1", "2001:db8::1", True),
        ("2001:DB8:0::1", "2001:db8::1", True),
        ("[2001:db8::1]:6443", "2001:db8::1", True),
        ("[2001:db8::1]:443", "2001:db8::1", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("2001:db9::/32", "2001:db8::1", False),
        ("", "k8s.example", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_what_no_proxy_exempts(
    monkeypatch: pytest.MonkeyPatch, name: str, entries: str, host: str, direct: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv(name, entries)
    assert via(host) == ("" if direct else "p:1")


def test_the_kubeconfigs_proxy_is_used_even_to_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    proxy = k8s_exec.proxy_for(Cluster("localhost", 6443, proxy_url="http://p:1"))
    assert proxy is not None
    assert proxy.netloc == "p:1"


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_a_server_at_an_ipv6_address_is_reached() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as exc:
        pytest.skip(f"this host has no IPv6: {exc}")
    with nothing_left(), StandIn(host="::1") as cluster:
        assert cluster.url.startswith("https://[::1]:")
        assert output_of(cluster.kubeconfig()) == b"here\r\n"
        assert cluster.execs[0].host == f"[::1]:{cluster.port}"
        with Proxy(("::1", cluster.port)) as proxy:
            text = kubeconfig(cluster, **{"proxy-url": f"http://127.0.0.1:{proxy.port}"})
            assert output_of(text) == b"here\r\n"
            assert proxy.heads[0].startswith(f"CONNECT [::1]:{cluster.port} ")


def test_a_zone_is_for_the_connection_alone() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as exc:
        pytest.skip(f"this host has no IPv6: {exc}")
    with nothing_left(), StandIn(host="::1") as cluster:
        zoned = f"https://[::1%251]:{cluster.port}"
        assert load_kubeconfig(kubeconfig(cluster, server=zoned)).host == "::1%1"
        assert output_of(kubeconfig(cluster, server=zoned)) == b"here\r\n"
        assert cluster.execs[0].host == f"[::1]:{cluster.port}"
        with Proxy(("::1", cluster.port)) as proxy:
            text = kubeconfig(cluster, server=zoned, **{"proxy-url": f"http://127.0.0.1:{proxy.port}"})
            assert output_of(text) == b"here\r\n"
            assert proxy.heads[0].startswith(f"CONNECT [::1]:{cluster.port} ")


@pytest.mark.parametrize("zone", ["%eth0", "%25", "%25eth%200", "%25eth0%0a", "%25%00", "%25eth0/x"])
@pytest.mark.parametrize("key", ["server", "proxy-url"])
def test_a_zone_that_cannot_be_one_is_refused(zone: str, key: str) -> None:
    with pytest.raises(KubeconfigError, match=key):
        load_kubeconfig(kubeconfig(None, {"token": "x"}, **{key: f"https://[fe80::1{zone}]:6443"}))


@pytest.mark.parametrize("host", ["k8s%2etest", "127%2e0.0.1", "k8s.test%00", "k8s%25eth0"])
@pytest.mark.parametrize("key", ["server", "proxy-url"])
def test_a_name_has_no_percent_in_it(host: str, key: str) -> None:
    with pytest.raises(KubeconfigError, match=key):
        load_kubeconfig(kubeconfig(None, {"token": "x"}, **{key: f"https://{host}:6443"}))


class Seen:
    """A TLS server for k8s.test that refuses every request; the names and the Host headers that it was sent."""

    def __init__(self, ca: trustme.CA) -> None:
        self.names, self.hosts = list[Any](), list[str]()
        self.context = tls_context(ca.issue_cert("k8s.test", "127.0.0.1"))
        self.context.sni_callback = lambda tls, name, context: self.names.append(name)

    def serve(self, tls: ssl.SSLSocket) -> None:
        head = read_until(tls, b"\r\n\r\n")
        self.hosts += [line[6:] for line in head.decode().split("\r\n") if line.startswith("Host: ")]
        tls.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    ("place", "name", "host"),
    [
        ({"server": "https://k8s.test:6443"}, "k8s.test", "k8s.test:6443"),
        ({"server": "https://k8s.test.:6443"}, "k8s.test", "k8s.test.:6443"),
        ({"server": "https://k8s.test"}, "k8s.test", "k8s.test"),
        ({"server": "https://k8s.test:443"}, "k8s.test", "k8s.test"),
        ({"server": "https://k8s.test:80"}, "k8s.test", "k8s.test:80"),
        ({"server": "https://K8S.test."}, "k8s.test", "k8s.test."),
        ({"server": "https://k8s.test", "tls-server-name": "127.0.0.1"}, None, "k8s.test"),
        ({"server": "https://other.test", "tls-server-name": "k8s.test."}, "k8s.test", "other.test"),
        ({"server": "https://127.0.0.1"}, None, "127.0.0.1"),
        ({"server": "https://[::ffff:127.0.0.1]:443"}, None, "[::ffff:127.0.0.1]"),
    ],
)
def test_the_name_for_tls_and_the_host_of_each_request(
    monkeypatch: pytest.MonkeyPatch, ca: trustme.CA, place: dict[str, str], name: str | None, host: str
) -> None:
    seen, real = Seen(ca), socket.getaddrinfo
    with tls_server(seen.context, seen.serve) as port:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: real("127.0.0.1", port, **options))
        text = kubeconfig(None, {"token": "x"}, **{"certificate-authority-data": ca_data(ca)}, **place)
        assert "forbids" in refusal(text)
        k8s_exec.why_lost(
            k8s_exec.Target(load_kubeconfig(text, trust=LOOPBACK), "default", "demo"), time.time(), timeout=0
        )
    assert (seen.names, seen.hosts) == ([name] * 2, [host] * 2)


def test_a_proxy_is_told_the_port_always(cluster: StandIn) -> None:
    with Proxy((cluster.host, cluster.port)) as proxy:
        place = {"server": "https://localhost", "proxy-url": f"http://127.0.0.1:{proxy.port}"}
        assert output_of(kubeconfig(cluster, **place)) == b"here\r\n"
    assert proxy.heads[0].startswith("CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n")
    assert cluster.execs[0].host == "localhost"


def test_a_server_below_a_path_is_reached_by_all_requests(tmp_path: Path) -> None:
    with nothing_left(), StandIn(path_prefix="/k8s/clusters/c-m-1") as cluster:
        server = RunningServer(tmp_path, cluster)
        try:
            with server.connect() as terminal:
                terminal.type("sleep 1000 & echo rea''dy\n")
                terminal.wait_for("ready\r\n")
            server.wait_settled()
            assert server.rows()[0]["hung_up"] is not None
            terminal = server.connect()
            terminal.wait_for_event("session")
            cluster.delete_pod("default", "demo")
            assert terminal.wait_end()["reason"] == "the pod was deleted"
        finally:
            server.stop()


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the name k8s.test have these addresses. No test may change the DNS of its host."""
    real = socket.getaddrinfo

    def set_addresses(*addresses: tuple[int, str, int]) -> None:
        def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
            if host != "k8s.test":
                return real(host, *args, **options)
            return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address, port in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return set_addresses


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that is bound, so that nobody else gets it, but does not listen."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def named(cluster: StandIn) -> str:
    return kubeconfig(cluster, server="https://k8s.test:6443", **{"tls-server-name": "localhost"})


def test_all_addresses_of_a_name_are_tried(cluster: StandIn, resolve: Callable[..., None]) -> None:
    with closed_port() as closed, deaf_port() as deaf:
        inet = socket.AF_INET
        resolve((inet, "127.0.0.1", closed), (inet, "127.0.0.1", deaf), (inet, "127.0.0.1", cluster.port))
        with contextlib.closing(opened(named(cluster), limit=1.5)) as pod:
            assert pod.read() == b"here\r\n"


def test_an_address_of_a_family_that_this_host_has_not_is_passed_over(
    cluster: StandIn, resolve: Callable[..., None]
) -> None:
    unknown = 9999  # as AF_INET6 is where the kernel has no IPv6
    resolve((unknown, "::1", 1), (socket.AF_INET, "127.0.0.1", cluster.port))
    assert output_of(named(cluster)) == b"here\r\n"
    resolve((unknown, "::1", 1))
    assert refusal(named(cluster)).startswith("k8s.test:6443 cannot be reached: ")


def test_a_server_that_does_not_accept_is_given_up_in_time(cluster: StandIn) -> None:
    with deaf_port() as deaf:
        begin = time.monotonic()
        said = refusal(kubeconfig(cluster, server=f"https://127.0.0.1:{deaf}"), limit=0.3)
        assert time.monotonic() - begin < 1
    assert said == f"127.0.0.1:{deaf} cannot be reached: no answer in time"


@pytest.mark.parametrize("through", [False, True], ids=["itself", "its proxy"])
def test_a_server_that_never_speaks_is_given_up_in_time(cluster: StandIn, through: bool) -> None:
    listener = Listener(lambda connection: [None for _ in iter(lambda: connection.recv(4096), b"")].clear())
    url = f"http://127.0.0.1:{listener.port}" if through else ""
    place = {"proxy-url": url} if through else {"server": f"https://127.0.0.1:{listener.port}"}
    begin = time.monotonic()
    said = refusal(kubeconfig(cluster, **place), limit=0.3)
    assert time.monotonic() - begin < 1
    listener.close()
    assert said.endswith("the handshake took too long")


# -- where nobody may go -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "good"),
    [
        (("127.0.0.0/8",), True),
        (("127.0.0.1",), True),
        (("other.test", "127.0.0.1/32"), True),
        ((), False),
        (("k8s.test",), False),  # who may choose the name may choose that it means this host
        (("*.test",), False),
        (("10.0.0.0/8",), False),  # the name has an address outside
        (("::/0",), False),
    ],
)
def test_a_name_that_means_this_host_needs_its_address_allowed(
    cluster: StandIn, resolve: Callable[..., None], patterns: tuple[str, ...], good: bool
) -> None:
    resolve((socket.AF_INET, "127.0.0.1", cluster.port))
    trust = Trust(allow_servers=patterns)
    if good:
        assert output_of(named(cluster), trust) == b"here\r\n"
    else:
        assert refusal(named(cluster), trust) == "this server may not connect to k8s.test:6443 (see allow_servers)"
        assert not cluster.execs


def test_an_operators_kubeconfig_may_name_any(cluster: StandIn, tmp_path: Path) -> None:
    assert output_of(kubeconfig(cluster), Trust(folder=tmp_path, allow_servers=("10.0.0.0/8",))) == b"here\r\n"


def test_only_the_allowed_addresses_of_a_name_are_tried(cluster: StandIn, resolve: Callable[..., None]) -> None:
    contacted = threading.Event()
    listener = Listener(lambda connection: contacted.set())
    # 127.0.0.2 is this host, too
    resolve((socket.AF_INET, "127.0.0.1", listener.port), (socket.AF_INET, "127.0.0.2", listener.port))
    assert "allow_servers" in refusal(named(cluster), Trust(allow_servers=("127.0.0.3",)))
    listener.close()
    assert not contacted.is_set()


def test_a_proxy_must_be_allowed_and_the_server_behind_it_too(cluster: StandIn, resolve: Callable[..., None]) -> None:
    with Proxy((cluster.host, cluster.port)) as proxy:
        text = kubeconfig(cluster, **{"proxy-url": f"http://127.0.0.1:{proxy.port}"})
        said = refusal(text, Trust(allow_servers=("k8s.test",)))
        assert said == "this server may not connect to 127.0.0.1 (see allow_servers)"
        resolve((socket.AF_INET, "127.0.0.2", proxy.port))
        text = kubeconfig(cluster, **{"proxy-url": "http://k8s.test:3128"})
        said = refusal(text, Trust(allow_servers=("127.0.0.1",)))
        assert said == "this server may not connect to k8s.test:3128 (see allow_servers)"
        assert not proxy.heads
        resolve((socket.AF_INET, "127.0.0.1", proxy.port))
        assert output_of(text, Trust(allow_servers=("127.0.0.1",))) == b"here\r\n"


def test_the_configuration_says_which_servers(cluster: StandIn, tmp_path: Path) -> None:
    server = RunningServer(tmp_path, cluster, more='[Kubernetes]\nallow_servers = ["10.0.0.0/8"]\n')
    try:
        assert "allow_servers" in server.connect(cluster_cfg=kubeconfig(cluster)).wait_end()["reason"]
        assert server.connect(command=["true"]).wait_end()["exit_code"] == 0
    finally:
        server.stop()


# -- certificates ------------------------------------------------------------------------------------------------------

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("certificate", "fault"),
    [
        ({"not_before": NOW - 2 * DAY, "not_after": NOW - DAY}, "its certificate has expired"),
        ({"not_before": NOW + DAY}, "its certificate is not valid yet"),
        ({"names": ("10.0.0.1",)}, "its certificate is for another IP address (see tls-server-name)"),
        ({"other_ca": True}, "its certificate comes from a CA that the kubeconfig does not name"),
        ({"name": "k8s.internal"}, "its certificate is for another host name (see tls-server-name)"),
        ({}, ""),
        ({"names": ("k8s.internal",), "name": "k8s.internal"}, ""),
    ],
)
def test_each_fault_of_a_certificate_has_its_sentence(ca: trustme.CA, certificate: dict[str, Any], fault: str) -> None:
    options = dict(certificate)
    names, name = options.pop("names", ("127.0.0.1",)), options.pop("name", "")
    issuer = trustme.CA() if options.pop("other_ca", False) else ca
    context = tls_context(issuer.issue_cert(*names, **options))
    with tls_server(context, lambda tls: tls.recv(1)) as port:
        cluster = Cluster("127.0.0.1", port, ca_pem=ca.cert_pem.bytes().decode(), tls_server_name=name)
        if fault:
            with pytest.raises(ExecRefused) as caught:
                dial(cluster, Credential(), time.monotonic() + 5)
            assert str(caught.value) == f"no TLS connection to the cluster at 127.0.0.1:{port}: {fault}"
        else:
            dial(cluster, Credential(), time.monotonic() + 5).close()
