"""Which servers a kubeconfig that came with a token may name. Names and connections are stubs: nothing leaves here."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import k8s_exec
from demo.cluster import StandIn
from k8s_exec import ExecRefused, PodExec, Target, Trust, load_kubeconfig
from tests.support import ALLOW_LOOPBACK, RunningServer, kubeconfig

NO_RULE = Trust()


class Network:
    """What this host looks up and connects to. Each connection is refused."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []  # names only
        self.contacted: list[str] = []

    def getaddrinfo(self, host: str, port: int, *args: Any, **options: Any) -> Any:
        try:
            return numeric(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            self.asked.append(host)
        if host.rstrip(".") not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            item
            for address in self.names[host.rstrip(".")]
            for item in numeric(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        ]

    def connect(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        self.contacted.append(address[0])
        raise ConnectionRefusedError(111, "Connection refused")

    def of(self, server: str, trust: Trust = NO_RULE, proxy: str = "") -> tuple[list[str], str]:
        """The addresses that an exec with this server contacts, and the sentence with which it fails."""
        self.asked.clear()
        self.contacted.clear()
        place = {"server": f"https://{server}:6443", **({"proxy-url": proxy} if proxy else {})}
        target = Target(load_kubeconfig(kubeconfig(None, {"token": "t"}, **place), trust=trust), "default", "demo")
        with pytest.raises(ExecRefused) as caught:
            PodExec.open(target, ["sh"], timeout=5)
        return list(self.contacted), str(caught.value)


numeric = socket.getaddrinfo


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    for name in ("HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    stub = Network()
    monkeypatch.setattr(socket, "getaddrinfo", stub.getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", lambda sock, address: stub.connect(sock, address))
    yield stub


LOCAL = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",  # where clouds tell a machine its credentials
    "169.254.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "[::1]",
    "[::]",
    "[fe80::1]",
    "[febf::1]",
    "[ff02::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[::ffff:0:0]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]",
    "[0:0:0:0:0:0:0:1]",
    "[fe80::1%251]",
]
SPELLED = [
    "2130706433",
    "0x7f000001",
    "0X7F.1",
    "0177.0.0.1",
    "017700000001",
    "127.1",
    "127.0.1",
    "0",
    "0xa9fea9fe",
    "2852039166",
    "0251.0376.0251.0376",
    "169.254.43518",
    "localhost",
    "LocalHost",
    "localhost.",
    "a.localhost",
    "127.0.0.1.",
]


@pytest.mark.parametrize("host", LOCAL + SPELLED)
def test_a_local_address_is_refused_however_it_is_spelled(network: Network, host: str) -> None:
    network.names["localhost"] = ["127.0.0.1"]
    contacted, said = network.of(host)
    assert (contacted, network.asked) == ([], [])
    assert said.startswith("this server may not connect to ")
    assert said.endswith(" (see allow_servers)")
    contacted, said = network.of(host, proxy="http://203.0.113.1:3128")  # the proxy would look it up
    assert (contacted, network.asked) == ([], [])
    assert said.endswith(" (see allow_servers)")
    contacted, said = network.of("203.0.113.7", proxy=f"http://u:p@{host}:3128")
    assert (contacted, network.asked) == ([], [])
    assert said.endswith(" (see allow_servers)")


@pytest.mark.parametrize("address", LOCAL)
def test_a_name_that_means_a_local_address_is_refused(network: Network, address: str) -> None:
    network.names["k8s.test"] = [address.strip("[]").replace("%25", "%")]
    for host in ("k8s.test", "k8s.test.", "K8S.test"):
        contacted, said = network.of(host)
        assert (contacted, said.endswith(":6443 (see allow_servers)")) == ([], True)
        contacted, said = network.of("203.0.113.7", proxy=f"https://{host}:3128")
        assert (contacted, said.endswith(":3128 (see allow_servers)")) == ([], True)
    for rule in ("k8s.test", "*.test", "203.0.113.0/24"):
        contacted, said = network.of("k8s.test", Trust(allow_servers=(rule,)))
        assert (contacted, said.endswith("(see allow_servers)")) == ([], True)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("192.168.1.1", "192.168.1.1"),
        ("203.0.113.7", "203.0.113.7"),
        ("128.0.0.1", "128.0.0.1"),
        ("169.253.1.1", "169.253.1.1"),
        ("223.255.255.254", "223.255.255.254"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[fd00::1]", "fd00::1"),
        ("[64:ff9b::10.0.0.1]", "64:ff9b::a00:1"),
        ("[2002:a00:1::]", "2002:a00:1::"),
        ("[::ffff:10.0.0.1]", "::ffff:10.0.0.1"),
        ("k8s.test", "10.0.0.9"),
        ("localhost.test", "10.0.0.9"),
    ],
)
def test_any_other_address_may_be_named(network: Network, host: str, address: str) -> None:
    network.names = {"k8s.test": ["10.0.0.9"], "localhost.test": ["10.0.0.9"]}
    contacted, said = network.of(host)
    assert contacted == [address]
    assert said.endswith("cannot be reached: Connection refused")
    assert network.of("203.0.113.7", proxy=f"http://{host}")[0] == [address]


def test_of_a_names_addresses_the_local_ones_are_left_out(network: Network) -> None:
    network.names["k8s.test"] = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "10.0.0.2"]
    assert network.of("k8s.test")[0] == ["10.0.0.1", "10.0.0.2"]
    assert network.of("k8s.test", Trust(allow_servers=("10.0.0.2", "::/8")))[0] == ["::1", "10.0.0.2"]
    assert network.of("k8s.test", Trust(allow_servers=("*.test", "127.0.0.0/8")))[0] == [
        "127.0.0.1",
        "10.0.0.1",
        "10.0.0.2",
    ]


@pytest.mark.parametrize(
    ("rule", "host", "address"),
    [
        ("127.0.0.0/8", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.0/8", "0x7f.1", "127.0.0.1"),
        ("127.0.0.0/8", "localhost", "127.0.0.1"),
        ("127.0.0.1", "[::ffff:127.0.0.1]", "::ffff:127.0.0.1"),
        ("::1", "[::1]", "::1"),
        ("169.254.0.0/16", "169.254.169.254", "169.254.169.254"),
        ("fe80::/10", "[fe80::1%251]", "fe80::1"),
        ("k8s.test", "k8s.test", "10.0.0.9"),
        ("k8s.test", "k8s.test.", "10.0.0.9"),
        ("*.test", "k8s.test", "10.0.0.9"),
        (".test", "k8s.test", "10.0.0.9"),
        ("10.0.0.0/24", "k8s.test", "10.0.0.9"),
    ],
)
def test_what_allow_servers_names_may_be_named(network: Network, rule: str, host: str, address: str) -> None:
    network.names = {"k8s.test": ["10.0.0.9"], "localhost": ["127.0.0.1"]}
    trust = Trust(allow_servers=(rule,))
    (contacted,), _ = network.of(host, trust)
    assert contacted.partition("%")[0] == address


@pytest.mark.parametrize(
    ("rule", "host"),
    [
        ("10.0.0.0/8", "203.0.113.7"),
        ("10.0.0.0/8", "127.0.0.1"),
        ("::/0", "[::ffff:127.0.0.1]"),
        ("::/0", "203.0.113.7"),
        ("10.0.0.0/8", "k8s.test"),
        ("203.0.113.8", "203.0.113.7"),
    ],
)
def test_what_it_does_not_name_may_not(network: Network, rule: str, host: str) -> None:
    network.names["k8s.test"] = ["203.0.113.7"]
    contacted, said = network.of(host, Trust(allow_servers=(rule,)))
    assert contacted == []
    assert said == f"this server may not connect to {host}:6443 (see allow_servers)"


@pytest.mark.parametrize("rule", ["other.test", "test", "8s.test", "*.k8s.test", ".k8s.test"])
def test_a_name_that_is_not_allowed_is_not_even_looked_up(network: Network, rule: str) -> None:
    network.names["k8s.test"] = ["10.0.0.1"]
    trust = Trust(allow_servers=(rule,))
    assert network.of("k8s.test", trust) == ([], "this server may not connect to k8s.test:6443 (see allow_servers)")
    assert network.asked == []
    assert network.of("other.test", Trust(allow_servers=("other.test",)), "http://k8s.test:1")[0] == []
    assert network.asked == []


def test_an_operators_kubeconfig_and_the_servers_own_cluster_may_be_anywhere(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = Trust(folder=tmp_path, allow_servers=("10.0.0.0/8",))
    assert network.of("127.0.0.1", trust)[0] == ["127.0.0.1"]
    assert network.of("10.0.0.1", trust, "http://169.254.1.1:1")[0] == ["169.254.1.1"]
    for name in ("ca.crt", "token", "namespace"):
        (tmp_path / name).write_text("x" if name != "ca.crt" else "")
    monkeypatch.setattr(k8s_exec, "SERVICE_ACCOUNT_FOLDER", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "169.254.1.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(ExecRefused, match="Connection refused"):
        PodExec.open(Target(k8s_exec.in_cluster(), "default", "demo"), ["sh"], timeout=5)
    assert network.contacted[-1] == "169.254.1.1"


def test_the_proxy_of_the_environment_may_be_anywhere_but_what_is_behind_it_may_not(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
    assert network.of("203.0.113.7")[0] == ["127.0.0.1"]
    assert network.of("k8s.test")[0] == ["127.0.0.1"]
    assert network.asked == []
    assert network.of("k8s.test", Trust(allow_servers=("k8s.test",)))[0] == ["127.0.0.1"]
    for host, trust in (("169.254.169.254", NO_RULE), ("k8s.test", Trust(allow_servers=("10.0.0.0/8",)))):
        assert network.of(host, trust) == ([], f"this server may not connect to {host} (see allow_servers)")


@pytest.mark.parametrize("allowed", [False, True])
def test_a_session_reaches_this_host_only_where_the_configuration_says_so(
    cluster: StandIn, tmp_path: Path, allowed: bool
) -> None:
    server = RunningServer(tmp_path, cluster, more=ALLOW_LOOPBACK if allowed else "")
    try:
        end = server.connect(cluster_cfg=cluster.kubeconfig(), command=["true"]).wait_end()
        assert end["exit_code"] == (0 if allowed else None)
        assert ("allow_servers" in end["reason"]) == (not allowed)
        assert server.connect(command=["true"]).wait_end()["exit_code"] == 0  # the operator's own
    finally:
        server.stop()
