"""Who may, and what is remembered: signed tokens, the platform's answers, the ledger, and operators' own hooks."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server
from typing import Any, Callable

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

import hooks
from hooks import Denied, HookError, Hooks, HooksSettings, SessionInfo, TokenAuthData, load_hooks
from tests.support import WAIT_SECONDS, deaf_port, nothing_left

KEY = secrets.token_hex(32)
KUBECONFIG = "apiVersion: v1\n"
AUTH = TokenAuthData("web", "shop-0", "main", KUBECONFIG, "alice", ("sh", "-i"), {"ticket": "T-1"})
INFO = SessionInfo("id-1", "/records/id-1.cast", AUTH, "10.0.0.9", 1000.5)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left():
        yield


MakeHooks = Callable[..., Hooks]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeHooks]:
    """Makes opened hooks with these settings: with the secret and one cluster unless told otherwise."""
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    opened: list[Hooks] = []

    def make_hooks(kind: type[Hooks] = Hooks, **changes: Any) -> Hooks:
        clusters = {"here": tmp_path / "kubeconfig"}
        values = {"db": tmp_path / "sessions.db", "secret": KEY, "clusters": clusters, **changes}
        opened.append(kind(HooksSettings(**values)))
        opened[-1].open()
        return opened[-1]

    yield make_hooks
    for item in opened:
        item.close()


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a good terminal token, with changes; None takes one out."""
    values = {"exp": time.time() + 60, "sub": "alice", "namespace": "web", "pod_name": "shop-0", **changes}
    return {name: value for name, value in values.items() if value is not None}


def signed(**changes: Any) -> str:
    return jwt.encode(claims(**changes), KEY, "HS256")


def forged(header: object, payload: object, key: str = KEY) -> str:
    """A token with this header and a right HS256 signature, whatever the header says."""

    def part(value: object) -> bytes:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    text = part(header) + b"." + part(payload)
    return (text + b"." + part(hmac.new(key.encode(), text, hashlib.sha256).digest())).decode()


# -- signed tokens ----------------------------------------------------------------------------------------------------


def test_a_token_of_pyjwt_is_understood(make: MakeHooks) -> None:
    token = signed(container_name="main", cluster="here", command=["sh", "-i"], ticket="T-1")
    auth = make().validate_ssh_token(token)
    assert (auth.namespace, auth.pod_name, auth.container_name, auth.user) == ("web", "shop-0", "main", "alice")
    assert (auth.cluster_cfg, auth.command, auth.extra["ticket"]) == (KUBECONFIG, ("sh", "-i"), "T-1")
    assert KUBECONFIG.strip() not in repr(auth)


@pytest.mark.parametrize(
    "changes",
    [{"nbf": time.time() - 1}, {"nbf": time.time() + 10}, {"iat": 0}, {"exp": 4e9}, {"exp": 1 << 33}, {"sub": None}],
)
def test_times_that_are_right_are_accepted(make: MakeHooks, changes: dict[str, Any]) -> None:
    assert make().validate_ssh_token(signed(**changes)).pod_name == "shop-0"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"exp": time.time() - 1}, "has expired"),
        ({"exp": 0}, "has expired"),
        ({"exp": -1}, "has expired"),
        ({"nbf": time.time() + 3600}, "not valid yet"),
        ({"exp": None}, "is not valid"),
        ({"exp": "soon"}, "is not valid"),
        ({"exp": [1]}, "is not valid"),
        ({"exp": {}}, "is not valid"),
        ({"nbf": "soon"}, "is not valid"),
        ({"scope": "play"}, "not for a terminal"),
        ({"scope": "terminal play"}, "not for a terminal"),
        ({"scope": ""}, "not for a terminal"),
        ({"scope": ["terminal"]}, "not for a terminal"),
    ],
)
def test_a_signed_token_with_wrong_claims_is_denied(make: MakeHooks, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Denied, match=sentence):
        make().validate_ssh_token(forged({"alg": "HS256"}, claims(**changes)))


def test_clocks_may_differ_by_half_a_minute_and_no_more(make: MakeHooks) -> None:
    assert make().validate_ssh_token(signed(nbf=time.time() + 25)).pod_name == "shop-0"
    with pytest.raises(Denied, match="not valid yet"):
        make().validate_ssh_token(signed(nbf=time.time() + 40))


def test_not_a_number_is_no_time(make: MakeHooks) -> None:
    for value in (float("nan"), float("-inf")):
        with pytest.raises(Denied):
            make().validate_ssh_token(forged({"alg": "HS256"}, claims(exp=value)))


@pytest.mark.parametrize("name", ["exp", "nbf"])
def test_a_time_too_large_for_a_float_is_denied(make: MakeHooks, name: str) -> None:
    with pytest.raises(Denied):
        make().validate_ssh_token(forged({"alg": "HS256"}, claims(**{name: 10**400})))


RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_PUBLIC = (
    RSA_KEY.public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    .decode()
)
GOOD = {"exp": 4e9, "sub": "alice", "namespace": "web", "pod_name": "shop-0"}
NOT_OURS = {
    "other secret": jwt.encode(GOOD, secrets.token_hex(32), "HS256"),
    "empty secret": forged({"alg": "HS256"}, GOOD, ""),
    "alg none": jwt.encode(GOOD, "", "none"),
    "alg none, signed": forged({"alg": "none"}, GOOD),
    "alg None": forged({"alg": "None"}, GOOD),
    "alg HS512": jwt.encode(GOOD, KEY, "HS512"),
    "alg HS384": jwt.encode(GOOD, KEY, "HS384"),
    "alg hs256": forged({"alg": "hs256"}, GOOD),
    "alg missing": forged({"typ": "JWT"}, GOOD),
    "alg list": forged({"alg": ["HS256"]}, GOOD),
    "RS256": jwt.encode(GOOD, RSA_KEY, "RS256"),
    "RS256 in the header of an HS256 token": forged({"alg": "RS256"}, GOOD),
    "HS256 with a public key": forged({"alg": "HS256"}, GOOD, RSA_PUBLIC),
    "crit": forged({"alg": "HS256", "crit": ["b64"], "b64": False}, GOOD),
    "crit empty": forged({"alg": "HS256", "crit": []}, GOOD),
    "header list": forged([], GOOD),
    "header null": forged(None, GOOD),
    "header no JSON": forged(b"{", GOOD),
    "payload list": forged({"alg": "HS256"}, [GOOD]),
    "payload text": forged({"alg": "HS256"}, "x"),
    "payload null": forged({"alg": "HS256"}, None),
    "payload no JSON": forged({"alg": "HS256"}, b"{"),
    "payload no UTF-8": forged({"alg": "HS256"}, b'{"\xff":1}'),
    "payload deep": forged({"alg": "HS256"}, b"[" * 40_000),
    "empty": "",
    "dots": "..",
    "one part": "abc",
    "two parts": ".".join(jwt.encode(GOOD, KEY, "HS256").split(".")[:2]),
    "no signature": ".".join(jwt.encode(GOOD, KEY, "HS256").split(".")[:2]) + ".",
    "four parts": jwt.encode(GOOD, KEY, "HS256") + ".x",
    "short signature": jwt.encode(GOOD, KEY, "HS256")[:-4],
    "not ASCII": jwt.encode(GOOD, KEY, "HS256") + "é",
    "surrogate": "\ud800." + jwt.encode(GOOD, KEY, "HS256"),
    "blank": jwt.encode(GOOD, KEY, "HS256") + " ",
    "line break": jwt.encode(GOOD, KEY, "HS256") + "\n",
    "NUL": "\0" + jwt.encode(GOOD, KEY, "HS256"),
    "long": "a" * 1_000_000,
    "signed and long": jwt.encode({**GOOD, "more": "a" * 70_000}, KEY, "HS256"),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_token_that_is_not_ours_is_denied_without_a_word_about_why(make: MakeHooks, name: str) -> None:
    for check in (make().validate_ssh_token, lambda token: make().authorize(token, "play", "a.cast")):
        with pytest.raises(Denied) as caught:
            check(NOT_OURS[name])
        assert str(caught.value) == "this link is not valid; open it again from the platform"


@settings(max_examples=300, deadline=None, database=None)
@given(st.integers(0, 400), st.sampled_from("AZaz09-_+/=. é"), st.sampled_from(["replace", "insert", "delete"]))
def test_no_mutation_passes_that_pyjwt_refuses(position: int, char: str, how: str) -> None:
    token = jwt.encode({**GOOD, "scope": "play"}, KEY, "HS256")
    position %= len(token)
    token = token[:position] + ("" if how == "delete" else char) + token[position + (how != "insert") :]
    checker = Hooks(HooksSettings(Path("unused.db"), secret=KEY))
    try:
        user = checker.authorize(token, "play", "a.cast")
    except Denied:
        return
    assert jwt.decode(token, KEY, ["HS256"])["sub"] == user


def test_padding_is_no_part_of_a_token(make: MakeHooks) -> None:
    with pytest.raises(Denied):
        make().validate_ssh_token(signed() + "=")


def test_a_one_use_token_works_once(make: MakeHooks) -> None:
    token, other = signed(jti="one"), signed(jti="two")
    own = make()
    own.validate_ssh_token(token)
    with pytest.raises(Denied, match="already used"):
        own.validate_ssh_token(token)
    own.validate_ssh_token(other)
    own.close()
    with pytest.raises(Denied, match="already used"):  # also after a restart
        make().validate_ssh_token(token)


def test_a_token_without_jti_works_again(make: MakeHooks) -> None:
    own, token = make(), signed()
    assert own.validate_ssh_token(token) == own.validate_ssh_token(token)


def test_of_many_threads_and_servers_one_gets_in_with_a_one_use_token(make: MakeHooks) -> None:
    servers = [make(), make()]  # two processes of one ledger
    token, barrier = signed(jti="one"), threading.Barrier(16)

    def knock(number: int) -> bool:
        barrier.wait()
        try:
            servers[number % 2].validate_ssh_token(token)
        except Denied:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(knock, range(16))) == 1


def test_a_token_that_is_not_usable_is_not_spent(make: MakeHooks) -> None:
    with pytest.raises(HookError):
        make().validate_ssh_token(signed(jti="one", cluster="unknown"))
    assert make().validate_ssh_token(signed(jti="one")).user == "alice"


def test_without_any_configuration_all_are_denied(make: MakeHooks) -> None:
    with pytest.raises(Denied, match=r"\[Token\] secret or \[Platform\]"):
        make(secret="").validate_ssh_token(forged({"alg": "HS256"}, GOOD, ""))
    with pytest.raises(Denied, match=r"\[Token\] secret"):
        make(secret="").authorize(forged({"alg": "HS256"}, {**GOOD, "scope": "play"}, ""), "play", "a.cast")


# -- links to recordings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["play", "watch play", " play  list "])
def test_a_link_whose_scope_names_the_action_is_for_its_user(make: MakeHooks, scope: str) -> None:
    assert make().authorize(signed(scope=scope), "play", "a.cast") == "alice"


@pytest.mark.parametrize("scope", [None, "", "terminal", "watch", "playback", "PLAY", "re-play", "play,watch", 1, {}])
def test_a_link_with_another_scope_is_denied(make: MakeHooks, scope: object) -> None:
    with pytest.raises(Denied, match="does not allow to play"):
        make().authorize(signed(scope=scope), "play", "a.cast")


@pytest.mark.parametrize("filename", ["b.cast", "", "./a.cast", "A.cast", 1, ["a.cast"], {}])
def test_a_link_for_another_recording_is_denied(make: MakeHooks, filename: object) -> None:
    with pytest.raises(Denied, match="for another recording"):
        make().authorize(signed(scope="play", filename=filename), "play", "a.cast")


def test_a_link_for_this_recording_or_for_all_is_good(make: MakeHooks) -> None:
    assert make().authorize(signed(scope="play", filename="a.cast"), "play", "a.cast") == "alice"
    assert make().authorize(signed(scope="play", sub=None), "play", "a.cast") == ""


def test_an_expired_link_is_denied(make: MakeHooks) -> None:
    with pytest.raises(Denied, match="has expired"):
        make().authorize(signed(scope="play", exp=time.time() - 1), "play", "a.cast")


# -- what a token stands for ------------------------------------------------------------------------------------------

BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"pod_name": None}, "pod_name"),
    ({"pod_name": ""}, "pod_name"),
    ({"pod_name": 7}, "pod_name"),
    ({"pod_name": ["a"]}, "pod_name"),
    ({"namespace": 7}, "namespace"),
    ({"namespace": {"a": 1}}, "namespace"),
    ({"container_name": True}, "container_name"),
    ({"cluster_cfg": {"clusters": []}}, "cluster_cfg"),
    ({"cluster_cfg": 1.5}, "cluster_cfg"),
    ({"sub": 7}, "user"),
    ({"command": "sh -i"}, "command"),
    ({"command": ["sh", 1]}, "command"),
    ({"command": {"0": "sh"}}, "command"),
    ({"command": 7}, "command"),
    ({"cluster": "elsewhere"}, "elsewhere"),
    ({"cluster": ["here"]}, "cluster"),
    ({"cluster": 7}, "cluster"),
]


@pytest.mark.parametrize(("changes", "named"), BAD_VALUES, ids=str)
def test_a_wrong_value_is_the_platforms_mistake_and_named(make: MakeHooks, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(HookError, match=named):
        make().validate_ssh_token(forged({"alg": "HS256"}, claims(**changes)))


def test_the_only_cluster_need_not_be_named(make: MakeHooks) -> None:
    assert make().validate_ssh_token(signed()).cluster_cfg == KUBECONFIG


def test_one_of_several_clusters_must_be_named(make: MakeHooks, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other: 1\n")
    both = make(clusters={"here": tmp_path / "kubeconfig", "there": tmp_path / "other"})
    assert both.validate_ssh_token(signed(cluster="there")).cluster_cfg == "other: 1\n"
    with pytest.raises(HookError, match="not under"):
        both.validate_ssh_token(signed())


def test_without_clusters_no_kubeconfig_means_the_cluster_that_the_server_runs_in(make: MakeHooks) -> None:
    auth = make(clusters={}).validate_ssh_token(signed())
    assert (auth.cluster_cfg, auth.cluster_file) == ("", None)


@pytest.mark.parametrize("name", ["../kubeconfig", "/etc/passwd", "kubeconfig", "HERE"])
def test_a_cluster_is_a_name_and_never_a_path(make: MakeHooks, name: str) -> None:
    with pytest.raises(HookError, match="not under"):
        make().validate_ssh_token(signed(cluster=name))


def test_a_kubeconfig_in_the_token_is_taken(make: MakeHooks) -> None:
    assert make(clusters={}).validate_ssh_token(signed(cluster_cfg="inline: 1\n")).cluster_cfg == "inline: 1\n"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "no text"])
def test_a_kubeconfig_that_cannot_be_read_is_named(make: MakeHooks, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "broken").write_bytes(content)
    with pytest.raises(HookError, match="broken"):
        make(clusters={"here": tmp_path / "broken"}).validate_ssh_token(signed())


def test_a_kubeconfig_is_read_anew_for_every_token(make: MakeHooks, tmp_path: Path) -> None:
    own = make()
    own.validate_ssh_token(signed())
    (tmp_path / "kubeconfig").write_text("renewed: 1\n")
    assert own.validate_ssh_token(signed()).cluster_cfg == "renewed: 1\n"


# -- the platform -----------------------------------------------------------------------------------------------------

Reply = Callable[[BaseHTTPRequestHandler], None]


class Platform:
    """A release platform: keeps what it is sent, and replies as the test says."""

    def __init__(self) -> None:
        self.reply: Reply = reply(200, {})
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.stopping = threading.Event()
        platform = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                platform.requests.append((self.path, dict(self.headers), json.loads(body)))
                with contextlib.suppress(OSError):
                    platform.reply(self)

            def do_GET(self) -> None:
                platform.requests.append((self.path, dict(self.headers), None))
                self.send_error(404)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = False  # so that server_close() waits for them

            def server_bind(self) -> None:
                self.socket.bind(self.server_address)
                self.server_name, self.server_port = self.server_address = self.socket.getsockname()

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Platform:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def reply(status: int, body: object = None, **headers: str) -> Reply:
    """Answer with JSON, or with these bytes."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return send


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform() as running:
        yield running


def test_the_platform_is_asked_what_a_token_stands_for(make: MakeHooks, platform: Platform) -> None:
    platform.reply = reply(
        200,
        {
            "namespace": "web",
            "pod_name": "shop-0",
            "container_name": "main",
            "cluster_cfg": "inline: 1\n",
            "user": "bob",
            "command": ["sh"],
            "ticket": "T-1",
        },
    )
    own = make(validate_url=f"{platform.url}/validate?k=1", authorization="Bearer service")
    auth = own.validate_ssh_token("T\u00e9 & x")
    assert auth == TokenAuthData("web", "shop-0", "main", "inline: 1\n", "bob", ("sh",), {"ticket": "T-1"})
    ((path, headers, body),) = platform.requests
    assert (path, body) == ("/validate?k=1", {"ssh_token": "T\u00e9 & x"})
    assert (headers["Content-Type"], headers["Authorization"]) == ("application/json", "Bearer service")


def test_an_address_may_have_a_query_and_no_path(make: MakeHooks, platform: Platform) -> None:
    with contextlib.suppress(HookError):
        make(validate_url=f"{platform.url}?x=1").validate_ssh_token("T")
    assert platform.requests[0][0] == "/?x=1"


def test_no_authorization_is_sent_unless_configured(make: MakeHooks, platform: Platform) -> None:
    make(login_url=platform.url).on_login(INFO)
    assert "Authorization" not in platform.requests[0][1]


def test_the_platforms_answer_may_name_a_cluster(make: MakeHooks, platform: Platform) -> None:
    platform.reply = reply(200, {"pod_name": "p", "cluster": "here"})
    assert make(validate_url=platform.url).validate_ssh_token("T").cluster_cfg == KUBECONFIG


@pytest.mark.parametrize(("changes", "named"), [row for row in BAD_VALUES if "sub" not in row[0]], ids=str)
def test_a_wrong_value_in_the_answer_is_named(
    make: MakeHooks, platform: Platform, changes: dict[str, Any], named: str
) -> None:
    platform.reply = reply(200, {"pod_name": "p", **changes})
    with pytest.raises(HookError, match=named):
        make(validate_url=platform.url).validate_ssh_token("T")


@pytest.mark.parametrize("body", [None, b"", b" \n", [], "x", 3, b"null"], ids=repr)
def test_an_answer_that_is_no_object_is_an_error(make: MakeHooks, platform: Platform, body: object) -> None:
    platform.reply = reply(200, body)
    with pytest.raises(HookError, match="not a JSON object"):
        make(validate_url=platform.url).validate_ssh_token("T")


@pytest.mark.parametrize("body", [b"<html>", b"{", b"\xff\xfe\xfd", b"[" * 9999], ids=lambda body: repr(body[:9]))
def test_an_answer_that_is_no_json_is_an_error(make: MakeHooks, platform: Platform, body: bytes) -> None:
    platform.reply = reply(200, body)
    with pytest.raises(HookError, match="not JSON"):
        make(validate_url=platform.url).validate_ssh_token("T")


FLAT = {
    "namespace": "web",
    "pod_name": "shop-0",
    "container_name": "main",
    "user": "alice",
    "command": ["sh", "-i"],
    "extra": {"ticket": "T-1"},
    "directory": "",
    "message": "",
    "label": "",
    "colour": "",
    "context": "",
    "cluster": "",
    "session_id": "id-1",
    "filename": "/records/id-1.cast",
    "remote_addr": "10.0.0.9",
    "login_at": 1000.5,
    "logout_at": None,
    "reason": "",
    "exit_code": None,
    "bytes_out": 0,
    "bytes_in": 0,
    "size": None,
    "sha256": "",
    "hung_up": None,
    "server": "",
    "chain": "",
}
ENDED = replace(
    INFO, logout_at=1010.0, reason="it ended", exit_code=3, bytes_out=500, bytes_in=20, size=900, sha256="ab" * 32
)


def test_the_platform_is_told_who_came_and_who_went(make: MakeHooks, platform: Platform) -> None:
    platform.reply = reply(204)
    own = make(login_url=f"{platform.url}/in", logout_url=f"{platform.url}/out", authorization="Basic eA==")
    own.on_login(INFO)
    own.on_logout(ENDED)
    end = {"logout_at": 1010.0, "reason": "it ended", "exit_code": 3, "bytes_out": 500, "bytes_in": 20}
    (in_path, in_headers, in_body), (out_path, out_headers, out_body) = platform.requests
    assert (in_path, in_body) == ("/in", FLAT)
    assert (out_path, out_body) == ("/out", {**FLAT, **end, "size": 900, "sha256": "ab" * 32})
    assert in_headers["Authorization"] == out_headers["Authorization"] == "Basic eA=="


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_with_a_message_is_shown_to_the_user(make: MakeHooks, platform: Platform, status: int) -> None:
    platform.reply = reply(status, {"message": "Der Pod gehört dir nicht"})
    own = make(validate_url=platform.url, login_url=platform.url)
    for call in (lambda: own.validate_ssh_token("T"), lambda: own.on_login(INFO)):
        with pytest.raises(Denied) as caught:
            call()
        assert str(caught.value) == "Der Pod gehört dir nicht"


@pytest.mark.parametrize(
    "body", [None, b"<html>no</html>", [], {"message": 3}, {"message": ""}, {"error": "x"}, b"\xff"], ids=repr
)
def test_a_refusal_without_a_message_has_a_sentence_of_its_own(
    make: MakeHooks, platform: Platform, body: object
) -> None:
    platform.reply = reply(403, body)
    with pytest.raises(Denied, match="does not accept this token"):
        make(validate_url=platform.url).validate_ssh_token("T")


@pytest.mark.parametrize("status", [101, 400, 409, 429, 500, 502, 503])
def test_other_statuses_are_the_platforms_failure(make: MakeHooks, platform: Platform, status: int) -> None:
    platform.reply = reply(status, {"message": "stack trace"})
    with pytest.raises(HookError) as caught:
        make(validate_url=platform.url).validate_ssh_token("T")
    assert str(caught.value) == f"the platform answered with HTTP status {status}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(make: MakeHooks, platform: Platform, status: int) -> None:
    with Platform() as elsewhere:
        platform.reply = reply(status, None, Location=f"{elsewhere.url}/take-it")
        with pytest.raises(HookError, match=f"HTTP status {status}"):
            make(validate_url=platform.url, authorization="Bearer service").validate_ssh_token("T")
        assert elsewhere.requests == []


def test_an_answer_that_does_not_end_is_cut(make: MakeHooks, platform: Platform) -> None:
    platform.reply = reply(200, b" " * (3 << 20))
    with pytest.raises(HookError, match="too long"):
        make(validate_url=platform.url).validate_ssh_token("T")


def test_a_refusal_that_does_not_end_is_cut(make: MakeHooks, platform: Platform) -> None:
    platform.reply = reply(403, b" " * (3 << 20) + b'{"message": "x"}')
    with pytest.raises(Denied, match="does not accept this token"):
        make(validate_url=platform.url).validate_ssh_token("T")


def silence(platform: Platform) -> Reply:
    def wait(handler: BaseHTTPRequestHandler) -> None:
        platform.stopping.wait(WAIT_SECONDS)

    return wait


def verbatim(data: bytes) -> Reply:
    """Answer with these bytes and nothing else."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(data)

    return send


def trickle(platform: Platform, head: bytes) -> Reply:
    """The head at once, then a byte every now and then for two seconds or so."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        for _ in range(50):
            if platform.stopping.wait(0.04):
                return
            handler.wfile.write(b" ")

    return send


SLOW = [
    ("silence", silence),
    ("trickle", lambda platform: trickle(platform, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")),
    ("slow refusal", lambda platform: trickle(platform, b"HTTP/1.1 403 No\r\nContent-Length: 1000\r\n\r\n")),
    ("slow head", lambda platform: trickle(platform, b"HTTP/1.1 200 OK\r\nX: ")),
]


@pytest.mark.parametrize(("name", "slow"), SLOW)
def test_a_slow_answer_is_cut(
    make: MakeHooks,
    platform: Platform,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    slow: Callable[[Platform], Reply],
) -> None:
    monkeypatch.setattr(hooks, "PLATFORM_TIMEOUT_SECONDS", 0.2)
    platform.reply = slow(platform)
    started = time.monotonic()
    with pytest.raises((HookError, Denied)):
        make(validate_url=platform.url).validate_ssh_token("T")
    assert time.monotonic() - started < 1.0


def test_a_platform_that_does_not_accept_is_given_up_in_time(make: MakeHooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "PLATFORM_TIMEOUT_SECONDS", 0.2)
    started = time.monotonic()
    with deaf_port() as port, pytest.raises(HookError, match="did not answer in time"):
        make(validate_url=f"http://127.0.0.1:{port}/").validate_ssh_token("T")
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    "answer",
    [b"", b"\0\0\0", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", b"SSH-2.0-x\r\n"],
    ids=["nothing", "no HTTP", "cut", "SSH"],
)
def test_a_broken_answer_is_an_error(make: MakeHooks, platform: Platform, answer: bytes) -> None:
    platform.reply = verbatim(answer)
    with pytest.raises(HookError):
        make(validate_url=platform.url).validate_ssh_token("T")


@pytest.mark.parametrize("form", ["http://user:s3cr3t@{at}/v", "http://{at}/v?key=s3cr3t", "https://{at}/?key=s3cr3t"])
@pytest.mark.parametrize("what", ["refused", "500", "redirect", "no HTTP"])
def test_no_error_holds_the_urls_secrets_or_the_token(
    make: MakeHooks, platform: Platform, form: str, what: str
) -> None:
    at = platform.url.partition("//")[2]
    platform.reply = {"500": reply(500, b"T0KEN"), "redirect": reply(302, None, Location="http://x/?key=s3cr3t")}.get(
        what, verbatim(b"s3cr3t T0KEN\r\n\r\n")
    )
    if what == "refused":
        with create_server(("127.0.0.1", 0)) as listener:
            at = f"127.0.0.1:{listener.getsockname()[1]}"
    own = make(validate_url=form.replace("{at}", at), authorization="Bearer s3cr3t")
    with pytest.raises(HookError) as caught:
        own.validate_ssh_token("T0KEN")
    for secret in ("s3cr3t", "T0KEN"):
        assert secret not in str(caught.value) + repr(caught.value)
        assert secret not in repr(own.settings)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_platforms_failure_refuses_the_login_and_is_told_at_the_logout(make: MakeHooks, platform: Platform) -> None:
    platform.reply = reply(500)
    own = make(login_url=platform.url, logout_url=platform.url)
    with pytest.raises(HookError):
        own.on_login(INFO)
    with pytest.raises(HookError):
        own.on_logout(ENDED)


# -- operators' hooks -------------------------------------------------------------------------------------------------

EXAMPLE = '''
"""Our own rules: night shifts only for admins, tokens of our own, and a word to our chat."""

from typing import NamedTuple

from hooks import Denied, Hooks, SessionInfo, TokenAuthData


class Target(NamedTuple):
    namespace: str
    pod_name: str


class OurHooks(Hooks):
    targets = {"golden": Target("web", "shop-0")}

    def open(self):
        self.seen = []
        return super().open()

    def validate_ssh_token(self, token):
        if token not in self.targets:
            raise Denied("ask the platform team")
        return TokenAuthData(*self.targets[token], cluster_cfg="inline: 1", user="carol")

    def on_login(self, info: SessionInfo):
        super().on_login(info)
        self.seen.append(("in", info.auth.user))

    def on_logout(self, info: SessionInfo):
        super().on_logout(info)
        self.seen.append(("out", info.reason))

    def authorize(self, token, action, filename):
        if token == "master":
            return "carol"
        return super().authorize(token, action, filename)
'''


def test_an_operators_file_changes_what_it_needs(make: MakeHooks, tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text(EXAMPLE)
    own: Any = make(load_hooks(tmp_path / "ours.py"))
    assert type(own).__name__ == "OurHooks"
    auth = own.validate_ssh_token("golden")
    assert (auth.namespace, auth.pod_name, auth.user) == ("web", "shop-0", "carol")
    with pytest.raises(Denied, match="ask the platform team"):
        own.validate_ssh_token(signed())
    own.on_login(INFO)
    own.on_logout(ENDED)
    assert own.seen == [("in", "alice"), ("out", "it ended")]
    assert own.authorize("master", "play", "a.cast") == "carol"
    assert own.authorize(signed(scope="play"), "play", "a.cast") == "alice"


def test_without_a_file_the_hooks_that_ship_are_used() -> None:
    assert load_hooks(None) is Hooks


def test_a_class_that_is_only_imported_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "ours.py"
    file.write_text("from hooks import Hooks as Base\n\nclass Ours(Base):\n    pass\n\nAlias = Ours\n")
    with contextlib.suppress(HookError):  # an alias may be refused, but never be taken for the base
        assert load_hooks(file).__name__ == "Ours"
    file.write_text("import hooks\n\nclass Ours(hooks.Hooks):\n    pass\n")
    assert load_hooks(file).__name__ == "Ours"


def test_a_file_may_define_dataclasses_with_postponed_annotations(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom hooks import Hooks\n\n"
        "@dataclass\nclass Rule:\n    name: str\n\nclass Ours(Hooks):\n    pass\n"
    )
    assert load_hooks(tmp_path / "ours.py").__name__ == "Ours"


BAD_FILES = [
    ("missing.py", None, "No such file"),
    ("ours.txt", "x = 1\n", "not a Python file"),
    ("syntax.py", "def (:\n", "SyntaxError"),
    ("raises.py", "raise RuntimeError('at import')\n", "RuntimeError: at import"),
    ("imports.py", "import a_module_that_is_not_there\n", "ModuleNotFoundError"),
    ("empty.py", "", "it defines 0"),
    ("base.py", "from hooks import Hooks\n", "it defines 0"),
    ("other.py", "class Hooks:\n    pass\n", "it defines 0"),
    ("two.py", "from hooks import Hooks\nclass A(Hooks): pass\nclass B(Hooks): pass\n", "it defines 2"),
]


@pytest.mark.parametrize(("name", "text", "why"), BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, name: str, text: str | None, why: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(HookError) as caught:
        load_hooks(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert why in str(caught.value)
