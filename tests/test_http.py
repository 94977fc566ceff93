"""Requests: heads, addresses behind proxies, origins, handshakes."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import websocket

import jumpserver
from demo.cluster import StandIn
from tests.support import (
    KEY,
    UPGRADE,
    RunningServer,
    Terminal,
    another_server,
    connected,
    end_shell,
    exchange,
    last_row,
    read_until,
    refuse,
    request_head,
    wait_until,
)


@pytest.fixture(autouse=True)
def _log_at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "jumpserver")


# -- addresses --------------------------------------------------------------------------------------------------------

ADDRESSES = {
    "203.0.113.7": "203.0.113.7",
    " 203.0.113.7 ": "203.0.113.7",
    "203.0.113.7:4711": "203.0.113.7",
    "2001:DB8::1": "2001:db8::1",
    "[2001:db8::1]": "2001:db8::1",
    "[2001:db8::1]:443": "2001:db8::1",
    "::ffff:203.0.113.7": "203.0.113.7",
    "[::ffff:203.0.113.7]:80": "203.0.113.7",
    "::ffff:cb00:7107": "203.0.113.7",
    "fe80::1%eth0": "fe80::1",
    "[fe80::1%\x1b[31m]:80": "fe80::1",
    "": "None",
    "unknown": "None",
    "_hidden": "None",
    "203.0.113": "None",
    "203.0.113.7.8": "None",
    "203.0.113.777": "None",
    "platform.example:80": "None",
    "2001:db8::1:::": "None",
    "\u0663.0.113.7": "None",
    "[": "None",
    "x" * 30_000: "None",
}


@pytest.mark.parametrize(("text", "address"), ADDRESSES.items(), ids=[text[:30] for text in ADDRESSES])
def test_an_address_is_read_in_all_its_spellings(text: str, address: str) -> None:
    assert str(jumpserver.parse_address(text)) == address


TRUST_THIS_HOST = '"127.0.0.0/8", "10.0.0.0/8", "2001:db8:ffff::/48"'
CHAINS = [
    ("", ["203.0.113.9"], "127.0.0.1"),
    ('"10.0.0.0/8"', ["203.0.113.9"], "127.0.0.1"),
    (TRUST_THIS_HOST, [], "127.0.0.1"),
    (TRUST_THIS_HOST, ["6.6.6.6", "7.7.7.7, 203.0.113.9"], "203.0.113.9"),
    (TRUST_THIS_HOST, ["203.0.113.7, 127.0.0.2"], "203.0.113.7"),
    (TRUST_THIS_HOST, ["6.6.6.6, 203.0.113.7:4711", "10.1.1.1, [2001:db8:ffff::2]:80"], "203.0.113.7"),
    (TRUST_THIS_HOST, ["6.6.6.6, ::ffff:203.0.113.7, ::ffff:10.0.0.1"], "203.0.113.7"),
    (TRUST_THIS_HOST, ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
    (TRUST_THIS_HOST, ["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
    (TRUST_THIS_HOST, ["<script>"], "127.0.0.1"),
    (TRUST_THIS_HOST, [""], "127.0.0.1"),
    (TRUST_THIS_HOST, ["6.6.6.6, "], "127.0.0.1"),
]


@pytest.mark.parametrize(("trusted", "forwarded", "address"), CHAINS)
def test_the_address_is_the_rightmost_that_is_not_a_trusted_proxys(
    tmp_path: Path, cluster: StandIn, caplog: pytest.LogCaptureFixture, trusted: str, forwarded: list[str], address: str
) -> None:
    lines = [f"X-Forwarded-For: {value}" for value in forwarded]
    with another_server(tmp_path, cluster, server_lines=f"trusted_proxies = [{trusted}]") as server:
        exchange(server.port, request_head("/ssh?ssh_token=x", *UPGRADE, *lines))
    assert f" remote={address} " in caplog.text


def test_the_ledger_has_the_forwarded_address(tmp_path: Path, cluster: StandIn) -> None:
    with another_server(tmp_path, cluster, server_lines='trusted_proxies = ["127.0.0.1"]') as server:
        header = ["X-Forwarded-For: 6.6.6.6, [2001:DB8::7]:4711"]
        with Terminal(websocket.create_connection(server.terminal_socket(), 10, header=header)) as terminal:
            end_shell(terminal)
        wait_until(lambda: last_row(server)["logout_at"])
        assert last_row(server)["remote_addr"] == "2001:db8::7"


@pytest.mark.parametrize(("trusted", "address"), [("", "127.0.0.1"), ('"127.0.0.1"', "203.0.113.7")])
def test_a_server_on_ipv6_knows_ipv4_addresses(tmp_path: Path, cluster: StandIn, trusted: str, address: str) -> None:
    config = f'[Server]\nlisten = "[::]:0"\ntrusted_proxies = [{trusted}]\n[Token]\nsecret = "{"x" * 32}"\n'
    config += '[Clusters]\nstandin = "kubeconfig.yaml"\n'
    with another_server(tmp_path, cluster, config=config) as server:
        server.secret = "x" * 32
        header = ["X-Forwarded-For: 203.0.113.7"]
        with Terminal(websocket.create_connection(server.terminal_socket(), 10, header=header)) as terminal:
            end_shell(terminal)
        wait_until(lambda: last_row(server)["logout_at"])
        assert last_row(server)["remote_addr"] == address


# -- handshakes -------------------------------------------------------------------------------------------------------


def is_switched(server: RunningServer, *lines: str, version: str = "HTTP/1.1") -> bool:
    """Whether this handshake is accepted; the session that it opened has ended."""
    request = request_head(f"/ssh?ssh_token={server.token()}&cols=80&rows=24", *lines).replace(
        b"HTTP/1.1", version.encode()
    )
    with connected(server.port) as sock:
        sock.sendall(request)
        return read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")


VERSION = "Sec-WebSocket-Version: 13"
HANDSHAKES = {
    "lists": ("Connection: keep-alive, Upgrade", "Upgrade: websocket, foo", VERSION, KEY),
    "lists in the other order": ("Connection: upgrade, keep-alive", "Upgrade: foo , WebSocket", VERSION, KEY),
    "several lines": (
        "Connection: keep-alive",
        "Connection: Upgrade",
        "Upgrade: foo",
        "Upgrade: websocket",
        VERSION,
        KEY,
    ),
    "lower case": (
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        KEY.lower()[:19] + KEY[19:],
    ),
    "upper case": ("CONNECTION: UPGRADE", "UPGRADE: WEBSOCKET", "SEC-WEBSOCKET-VERSION: 13", KEY),
}


@pytest.mark.parametrize("lines", HANDSHAKES.values(), ids=list(HANDSHAKES))
def test_a_handshake_may_be_written_in_all_these_ways(server: RunningServer, lines: tuple[str, ...]) -> None:
    assert is_switched(server, *lines)


def test_http_1_0_cannot_upgrade(server: RunningServer) -> None:
    assert not is_switched(server, *UPGRADE, version="HTTP/1.0")  # RFC 9110, section 7.8


@pytest.mark.parametrize("versions", [["8"], ["8, 13"], ["13", "8"], ["x"], [""], ["013"]], ids=str)
def test_another_version_of_websocket_is_told_which_one_is_spoken(server: RunningServer, versions: list[str]) -> None:
    lines = (*UPGRADE[:2], KEY, *(f"Sec-WebSocket-Version: {version}" for version in versions))
    head, _, body = exchange(server.port, request_head("/ssh", *lines)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 426 ")
    for line in (b"Sec-WebSocket-Version: 13", b"Upgrade: websocket", b"Connection: Upgrade, close"):
        assert line in head.split(b"\r\n")
    assert body == b"this server speaks version 13 of the WebSocket protocol\n"


def test_a_handshake_may_have_its_lists_on_several_lines(server: RunningServer) -> None:
    upgrade = (
        "Connection: keep-alive",
        *UPGRADE,
        "Sec-WebSocket-Protocol: other",
        "Sec-WebSocket-Protocol: jumpserver.v1",
    )
    head = request_head(f"/ssh?ssh_token={server.token()}&cols=80&rows=24", *upgrade)
    with connected(server.port) as sock:
        sock.sendall(head)
        answer = read_until(sock, b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101 ") and b"jumpserver.v1" in answer


def test_only_pages_of_allowed_origins_open_terminals(tmp_path: Path, cluster: StandIn) -> None:
    with another_server(tmp_path, cluster, server_lines='allowed_origins = ["https://good.example"]') as server:
        assert refuse(server, server.token(), origin="https://evil.example")[:2] == (4403, 403)
        assert refuse(server, server.token(), suppress_origin=True)[:2] == (4403, 403)
        with server.connect_with(server.token(), origin="https://good.example") as terminal:
            terminal.wait_for_event("session")


@pytest.mark.parametrize(
    "lines",
    [
        (),
        UPGRADE[:-1],
        (*UPGRADE[:-1], "Sec-WebSocket-Key: c2hvcnQ="),
        (*UPGRADE[:-1], "Sec-WebSocket-Key: ünsinn"),
        ("Connection: Upgrade", "Upgrade: websocket", KEY),
        ("Connection: close", *UPGRADE[1:]),
        ("Connection: Upgrade", "Upgrade: h2c", *UPGRADE[2:]),
    ],
)
def test_a_bad_handshake_is_answered_with_400(
    server: RunningServer, caplog: pytest.LogCaptureFixture, lines: tuple[str, ...]
) -> None:
    answer = exchange(server.port, request_head(f"/ssh?ssh_token={server.token()}", *lines))
    assert answer.startswith(b"HTTP/1.1 400 ") and b"\r\nContent-Type: text/plain" in answer
    assert server.cluster.execs == [] and "Traceback" not in caplog.text


# -- foreign mistakes -------------------------------------------------------------------------------------------------

STRANGE = [
    *(
        "/ssh?" + "a=1&" * 100,
        "http://[",
        "//[",
        "/\xff\xfe?%ff%00",
        "*",
        "?",
        "#",
        "ssh",
        "http://",
        "/ssh?%",
        "/%zz",
    ),
    *(
        "http://\xb5/ssh",
        "/ssh?ssh_token=%ed%a0%80",
        "/records/play?filename=%ed%a0%80&token=%ff",
        "/records/play?token=%00",
    ),
    *("/ssh?ssh_token=\xff\xe9", "/records/play?filename=\x7f&token=\x80", "http://x:99999999/nothing", "/;?&=&&==;"),
]


@pytest.mark.parametrize("target", STRANGE)
def test_a_strange_request_target_is_answered_without_a_traceback(
    server: RunningServer, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    answer = exchange(server.port, request_head(target, *UPGRADE))
    assert re.match(rb"HTTP/1\.1 40[0134] ", answer), answer
    assert "Traceback" not in caplog.text


def test_no_text_of_the_client_comes_back_in_a_head(server: RunningServer) -> None:
    lines = (*UPGRADE, "Sec-WebSocket-Protocol: marker", "Origin: marker", "Sec-WebSocket-Extensions: marker")
    targets = ("/ssh?ssh_token=marker", "/marker", "/records/play?filename=marker&token=marker", "/?a=%0d%0amarker:x")
    for request in [request_head(target, *lines) for target in targets] + [
        b"GET / marker HTTP/1.1\r\n\r\n",
        b"MARKER / HTTP/1.1\r\n\r\n",
    ]:
        head, _, _ = exchange(server.port, request).partition(b"\r\n\r\n")
        assert b"marker" not in head.lower(), head


def test_the_liveness_probe_is_answered(server: RunningServer) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(server.port) as sock:
        sock.sendall(head)
        assert read_until(sock).startswith(b"HTTP/1.1 200 ")


def test_an_absolute_target_names_the_same_resource(server: RunningServer) -> None:
    assert exchange(server.port, request_head("http://anything:80/healthz")).endswith(b"alive\n")  # RFC 9112, 3.2.2


MISTAKES = {
    "no version": (b"GET /healthz\r\nHost: x\r\n\r\n", rb"HTTP/1.1 200 "),
    "no target": (b"GET\r\n\r\n", rb"HTTP/1.1 400 "),
    "nothing but blanks": (b"   \r\n\r\n", rb""),
    "blank lines": (b"\r\n\r\n\r\n", rb""),
    "four words": (b"GET / / HTTP/1.1\r\n\r\n", rb"HTTP/1.1 400 "),
    "another version": (b"GET / HTTP/2.0\r\n\r\n", rb"HTTP/1.1 505 "),
    "no version at all": (b"GET / HTTP/x.y\r\n\r\n", rb"HTTP/1.1 400 "),
    "a version of 5,000 digits": (b"GET / HTTP/1." + b"1" * 5000 + b"\r\n\r\n", rb"HTTP/1.1 400 "),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", rb"HTTP/1.1 505 "),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\n\n", rb"HTTP/1.1 400 "),
    "an unknown method": (b"BREW /pot HTTP/1.1\r\n\r\n", rb"HTTP/1.1 501 "),
    "a method of ours": (b"__init__ / HTTP/1.1\r\n\r\n", rb"HTTP/1.1 501 "),
    "CONNECT": (b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n\r\n", rb"HTTP/1.1 501 "),
    "a header without a colon": (b"GET /healthz HTTP/1.1\r\nHost\r\n\r\n", rb"HTTP/1.1 400 "),
    "a blank before the colon": (b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n", rb"HTTP/1.1 400 "),
    "a header in two lines": (b"GET /healthz HTTP/1.1\r\nX: a\r\n b\r\n\r\n", rb"HTTP/1.1 400 "),
    "a lone CR": (b"GET /healthz HTTP/1.1\r\nX: a\rX-Forwarded-For: 6.6.6.6\r\n\r\n", rb"HTTP/1.1 400 "),
    "a lone CR in the line": (b"GET /healthz\rX HTTP/1.1\r\n\r\n", rb"HTTP/1.1 400 "),
    "a NUL": (b"GET /healthz HTTP/1.1\r\nX: a\0b\r\n\r\n", rb"HTTP/1.1 400 "),
    "lines that end with LF": (b"GET /healthz HTTP/1.1\nHost: x\n\n", rb"HTTP/1.1 200 "),
    "a question before the body": (b"GET /healthz HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", rb"HTTP/1.1 100 "),
}


@pytest.mark.parametrize(("request_", "answer"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_foreign_mistake_is_answered_and_leaves_no_traceback(
    server: RunningServer, caplog: pytest.LogCaptureFixture, request_: bytes, answer: bytes
) -> None:
    assert exchange(server.port, request_).startswith(answer)
    wait_until(lambda: not server.server._connections)
    assert caplog.messages == []


def test_half_a_head_is_no_event(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    for said in (b"", b"GET", b"GET / HTTP/1.1\r\nHost: x\r\n"):
        with connected(server.port) as sock:
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            assert read_until(sock) == b""
    wait_until(lambda: not server.server._connections)
    assert not server.server._heads
    assert caplog.messages == []


# -- pages of other origins -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server_for_platform(tmp_path: Path, cluster: StandIn) -> Iterator[RunningServer]:
    lines = 'allowed_origins = ["https://Platform.example:443/", "http://localhost:8080"]'
    with another_server(tmp_path, cluster, server_lines=lines) as server:
        yield server


def headers_of(answer: bytes) -> dict[str, list[str]]:
    """Status under "", and the headers by lower-case name."""
    status, *lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    found = {"": [status.split()[1]]}
    for line in lines:
        name, _, value = line.partition(": ")
        found.setdefault(name.lower(), []).append(value)
    return found


GOOD_ORIGINS = {
    "https://platform.example": "https://platform.example",
    "https://PLATFORM.example": "https://platform.example",
    "https://platform.example:443": "https://platform.example",
    "http://localhost:8080": "http://localhost:8080",
}
BAD_ORIGINS = [
    "https://evil.example",
    "http://platform.example",
    "https://platform.example:8443",
    "null",
    "",
    "*",
    "x" * 9000,
]


def test_pages_of_allowed_origins_open_terminals_however_they_are_written(tmp_path: Path, cluster: StandIn) -> None:
    with server_for_platform(tmp_path, cluster) as server:
        for origin in GOOD_ORIGINS:
            with server.connect_with(server.token(), origin=origin) as terminal:
                terminal.wait_for_event("session")
        for origin in BAD_ORIGINS:
            assert not is_switched(server, *UPGRADE, f"Origin: {origin}")


@pytest.mark.parametrize(
    "target", ["/records/play?filename=a.cast", "/records/play?filename=a.cast&token=x", "/healthz", "/"]
)
def test_every_answer_can_be_read_by_pages_of_allowed_origins_and_by_no_other(
    tmp_path: Path, cluster: StandIn, target: str
) -> None:
    with server_for_platform(tmp_path, cluster) as server:
        for written, origin in GOOD_ORIGINS.items():
            headers = headers_of(exchange(server.port, request_head(target, f"Origin: {written}")))
            assert headers["access-control-allow-origin"] == [origin]
            assert {"Content-Range", "ETag"} <= set(headers["access-control-expose-headers"][0].split(", "))
            assert "Origin" in headers["vary"]
        for lines in [(), *((f"Origin: {origin}",) for origin in BAD_ORIGINS)]:
            headers = headers_of(exchange(server.port, request_head(target, *lines)))
            assert not [name for name in headers if name.startswith("access-control")]
            assert "Origin" in headers["vary"]


PREFLIGHT = ("Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization,range")


def test_a_preflight_is_answered_for_allowed_origins_and_for_no_other(tmp_path: Path, cluster: StandIn) -> None:
    with server_for_platform(tmp_path, cluster) as server:

        def ask(*lines: str) -> dict[str, list[str]]:
            request = request_head("/records/play?filename=a.cast", *PREFLIGHT, *lines).replace(
                b"GET /", b"OPTIONS /", 1
            )
            return headers_of(exchange(server.port, request))

        answer = ask("Origin: https://platform.example")
        assert answer[""] == ["204"] and answer["vary"] == ["Origin"]
        assert answer["access-control-allow-origin"] == ["https://platform.example"]
        assert answer["access-control-allow-methods"] == ["GET, HEAD, POST"]
        allowed = answer["access-control-allow-headers"][0].lower().split(", ")
        assert {"authorization", "range", "if-range", "if-none-match"} <= set(allowed)
        for origin in BAD_ORIGINS:
            refused = ask(f"Origin: {origin}")
            assert not [name for name in refused if name.startswith("access-control")]


def test_without_allowed_origins_no_other_page_may_read_anything(server: RunningServer) -> None:
    for target in ("/", "/healthz", "/records/play?filename=a.cast"):
        headers = headers_of(exchange(server.port, request_head(target, "Origin: https://platform.example")))
        assert not [name for name in headers if name.startswith("access-control")]
    request = request_head("/", *PREFLIGHT, "Origin: https://platform.example").replace(b"GET", b"OPTIONS", 1)
    assert headers_of(exchange(server.port, request))[""] == ["501"]


# -- what browsers are told of every answer ----------------------------------------------------------------------------

WORDS = ("/healthz", "/readyz", "/nothing", "/ssh", "/records/play?filename=a.cast", "/healthz?" + "x=1&" * 30)


@pytest.mark.parametrize("target", ["/", "/index.html", "/terminal.js", *WORDS])
def test_browsers_are_told_what_they_must_not_do(server: RunningServer, target: str) -> None:
    headers = headers_of(exchange(server.port, request_head(target)))
    assert headers["x-content-type-options"] == ["nosniff"]
    assert headers["referrer-policy"] == ["no-referrer"]
    assert headers["connection"] == ["close"]
    (policy,) = headers["content-security-policy"]
    sources = {name: values for name, *values in map(str.split, policy.split(";"))}
    for name in ("default-src", "base-uri", "form-action"):
        assert sources[name] == ["'none'"]
    assert sources["script-src"] == ["'self'", "'wasm-unsafe-eval'"]
    assert sources["frame-ancestors"] == ["'self'"]


def test_without_frame_ancestors_nobody_may_frame_a_page(tmp_path: Path, cluster: StandIn) -> None:
    with another_server(tmp_path, cluster, server_lines="frame_ancestors = []") as server:
        (policy,) = headers_of(exchange(server.port, request_head("/")))["content-security-policy"]
    assert policy.endswith("; frame-ancestors 'none'")


@pytest.mark.parametrize("target", WORDS)
def test_an_answer_in_words_is_kept_by_no_cache(server: RunningServer, target: str) -> None:
    assert headers_of(exchange(server.port, request_head(target)))["cache-control"] == ["no-store"]


def test_a_page_is_asked_for_each_time_it_is_used(server: RunningServer) -> None:
    for lines, status in (((), "200"), (("If-None-Match: *",), "304")):
        answer = headers_of(exchange(server.port, request_head("/terminal.js", *lines)))
        assert (answer[""], answer["cache-control"]) == ([status], ["no-cache"])


# -- pages that the browser has already -------------------------------------------------------------------------------


def test_a_page_has_an_etag_for_each_of_its_forms(server: RunningServer) -> None:
    plain = headers_of(exchange(server.port, request_head("/style.css")))["etag"][0]
    packed = headers_of(exchange(server.port, request_head("/style.css", "Accept-Encoding: gzip")))["etag"][0]
    assert plain != packed
    for known, status in (
        (plain, "304"),
        (f"W/{plain}", "304"),
        (f'"x", {plain}', "304"),
        ("*", "304"),
        (packed, "200"),
    ):
        answer = headers_of(exchange(server.port, request_head("/style.css", f"If-None-Match: {known}")))
        assert (answer[""], answer["etag"], answer["vary"]) == ([status], [plain], ["Accept-Encoding"])
