"""Recordings over HTTP: who may have one, which bytes come, and what the log says of it."""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import http.client
import json
import logging
import os
import socket
import time
import tracemalloc
import urllib.parse
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest

from demo.cluster import StandIn
from recorder import Recorder, recording_path
from tests.support import WAIT_SECONDS, RunningServer, Terminal, nothing_left, wait_until

MTIME = 1_700_000_000
MODIFIED = "Tue, 14 Nov 2023 22:13:20 GMT"
MIB = 1 << 20


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(server: RunningServer, target: str, method: str = "GET", **headers: str) -> Answer:
    """One request; underscores in header names stand for dashes. The connection must end after the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_SECONDS)
    with contextlib.closing(connection):
        connection.request(method, target, headers={name.replace("_", "-"): value for name, value in headers.items()})
        with connection.getresponse() as response:
            assert response.headers["Connection"] == "close"
            return Answer(response.status, response.headers, response.read())


@dataclass
class Recorded:
    """A finished recording of a server: its name relative to the root, where it lies, what is in it."""

    name: str
    path: Path
    data: bytes


def record(server: RunningServer) -> Recorded:
    root = server.config.record_path
    path = recording_path(root, str(uuid.uuid4()))
    recording = Recorder(path, 80, 24, title="alice@default/demo")
    for number in range(50):
        recording.output(f"line {number} 日本\r\n".encode())
    recording.close()
    os.utime(path, (MTIME, MTIME))
    return Recorded(str(path.relative_to(root)), path, path.read_bytes())


@contextlib.contextmanager
def _running(server: RunningServer) -> Iterator[RunningServer]:
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all tests: none of them changes more than a recording of its own."""
    with (
        nothing_left(),
        StandIn() as cluster,
        _running(RunningServer(tmp_path_factory.mktemp("server"), cluster)) as running,
    ):
        yield running


@pytest.fixture(autouse=True)
def _nothing_left(server: RunningServer) -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture
def recorded(server: RunningServer) -> Recorded:
    return record(server)


@pytest.fixture(autouse=True)
def _log_at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "jumpserver")


def with_bearer(server: RunningServer, recorded: Recorded, method: str = "GET", **headers: str) -> Answer:
    target = "/records/play?filename=" + urllib.parse.quote(recorded.name)
    return ask(server, target, method, Authorization=f"Bearer {server.link_token()}", **headers)


# -- who may ----------------------------------------------------------------------------------------------------------


def test_a_signed_link_is_good_as_header_and_in_the_query(server: RunningServer, recorded: Recorded) -> None:
    target = f"/records/play?filename={recorded.name}"
    for answer in (
        ask(server, target, Authorization=f"Bearer {server.link_token()}"),
        ask(server, target, Authorization=f"bearer   {server.link_token()} "),
        ask(server, f"{target}&token={server.link_token()}"),
        ask(server, f"{target}&token={server.link_token(filename=recorded.name)}"),
        ask(server, f"{target}&token={server.link_token()}", Authorization="Basic eDp5"),
    ):
        assert (answer.status, answer.body) == (200, recorded.data)
        assert answer.headers["Content-Type"] == "application/x-asciicast"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_recording_may_be_named_absolutely_as_the_hooks_are_told_it(
    server: RunningServer, recorded: Recorded
) -> None:
    assert ask(server, server.play_path(str(recorded.path))).body == recorded.data


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer "}], ids=str)
def test_without_a_token_nothing_is_told(server: RunningServer, recorded: Recorded, headers: dict[str, str]) -> None:
    for name in (recorded.name, "none.cast", "../x", ""):
        answer = ask(server, f"/records/play?filename={name}", **headers)
        assert (answer.status, answer.headers["Content-Type"]) == (401, "text/plain; charset=utf-8")
        assert answer.body == b"a token is needed: open the recording from the platform\n"


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        ({"exp": time.time() - 1}, b"this link has expired"),
        ({"nbf": time.time() + 3600}, b"this link is not valid yet"),
        ({"scope": "watch"}, b"this link does not allow to play"),
        ({"scope": "terminal"}, b"this link does not allow to play"),
        ({"filename": "b.cast"}, b"this link is for another recording"),
    ],
)
def test_a_link_that_does_not_fit_is_refused_in_words(
    server: RunningServer, recorded: Recorded, claims: dict[str, Any], sentence: bytes
) -> None:
    for name in (recorded.name, "none.cast"):
        token = server.link_token(**{"scope": "play", **claims})
        answer = ask(server, f"/records/play?filename={name}&token={token}")
        assert answer.status == 403
        assert sentence in answer.body


def test_a_terminals_token_and_a_foreign_one_open_no_recording(server: RunningServer, recorded: Recorded) -> None:
    foreign = jwt.encode({"exp": time.time() + 60, "scope": "play"}, "x" * 64, "HS256")
    for token in (server.token(), foreign, "garbage", "%C3%A9"):
        answer = ask(server, f"/records/play?filename={recorded.name}&token={token}")
        assert answer.status == 403
        assert recorded.data[:20] not in answer.body


def test_the_header_counts_where_the_query_has_a_token_too(server: RunningServer, recorded: Recorded) -> None:
    target = f"/records/play?filename={recorded.name}&token={server.link_token()}"
    assert ask(server, target, Authorization="Bearer garbage").status == 403


OPERATORS_HOOKS = """
from hooks import Denied, Hooks

class Ours(Hooks):
    def authorize(self, token, action, filename):
        if token == "bo" "om":
            raise RuntimeError("our own fault with " + token)
        if (token, action) != ("open sesame", "play"):
            raise Denied("say the word")
        return "ali"
"""


def test_an_operators_hook_decides(server: RunningServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster = server.cluster
    with nothing_left(), _running(RunningServer(tmp_path, cluster, hooks_file=OPERATORS_HOOKS)) as own:
        recorded = record(own)
        target = f"/records/play?filename={recorded.name}"
        assert ask(own, target, Authorization="Bearer open sesame").body == recorded.data
        assert ask(own, f"{target}&token={own.link_token()}").body == b"say the word\n"
        failed = ask(own, f"{target}&token=boom")
    assert (failed.status, b"own fault" in failed.body) == (503, False)
    assert "our own fault" in caplog.text
    assert "boom" not in caplog.text
    assert f"play user=ali file={own.config.record_path / recorded.name}" in caplog.text


def test_a_public_server_asks_nobody(server: RunningServer, tmp_path: Path) -> None:
    cluster = server.cluster
    config = '[Server]\nlisten = "127.0.0.1:0"\n[Record]\npath = "records"\npublic = true\n'
    with nothing_left(), _running(RunningServer(tmp_path, cluster, config=config)) as own:
        recorded = record(own)
        assert ask(own, f"/records/play?filename={recorded.name}").body == recorded.data
        assert ask(own, "/records/play?filename=sessions.db").status == 404
        assert ask(own, f"/records/play?filename={tmp_path}/jumpserver.toml").status == 404


# -- what does not exist ----------------------------------------------------------------------------------------------


def test_everything_that_is_no_recording_gets_one_and_the_same_answer(
    server: RunningServer, recorded: Recorded
) -> None:
    root = server.config.record_path
    outside = root.parent / "outside.cast"
    outside.write_text("secret\n")
    (root / "leaving.cast").symlink_to(outside)
    (root / "folder.cast").mkdir()
    (root / "notes.txt").write_text("secret\n")
    os.mkfifo(root / "pipe.cast")
    names = [
        "",
        "none.cast",
        "sessions.db",
        "notes.txt",
        "folder.cast",
        "pipe.cast",
        "leaving.cast",
        "../outside.cast",
        "..%2foutside.cast",
        str(outside),
        "/etc/passwd",
        "/dev/zero",
        "%00",
        f"{recorded.name}%00",
        f"{recorded.name}%00.cast",
        f"{recorded.name}%0a",
        "%ff.cast",
        "a" * 300 + ".cast",
        "a/" * 2000 + "b.cast",
        os.path.dirname(recorded.name),
    ]
    answers = [ask(server, server.play_path(name)) for name in names]
    answers.append(ask(server, f"/records/play?token={server.link_token()}"))
    assert {(answer.status, answer.body) for answer in answers} == {(404, b"not found\n")}
    assert {answer.headers["Content-Type"] for answer in answers} == {"text/plain; charset=utf-8"}
    assert ask(server, server.play_path("none.cast"), "HEAD").body == b""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_does_not_exist(server: RunningServer, recorded: Recorded) -> None:
    recorded.path.chmod(0)
    assert ask(server, server.play_path(recorded.name)).status == 404


def test_an_encoded_name_is_decoded_once(server: RunningServer) -> None:
    path = server.config.record_path / "a%41 b+c.cast"
    path.write_text('{"version": 2}\n')
    assert ask(server, server.play_path("a%2541%20b%2Bc.cast")).body == b'{"version": 2}\n'
    assert ask(server, server.play_path("aA%20b%2Bc.cast")).status == 404


def test_too_many_parameters_are_refused(server: RunningServer, recorded: Recorded) -> None:
    assert ask(server, server.play_path(recorded.name) + "&x=y" * 30).status == 400


# -- which bytes ------------------------------------------------------------------------------------------------------


def test_the_whole_comes_with_its_length_date_and_no_caching_by_others(
    server: RunningServer, recorded: Recorded
) -> None:
    answer = with_bearer(server, recorded)
    assert answer.headers["Content-Length"] == str(len(recorded.data))
    assert answer.headers["Last-Modified"] == MODIFIED
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert "private" in answer.headers["Cache-Control"]
    assert answer.headers["Content-Encoding"] is None


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-9", 0, 10),
        ("bytes=10-19", 10, 20),
        ("bytes=10-", 10, None),
        ("bytes=0-", 0, None),
        ("bytes=-10", -10, None),
        ("bytes=10-99999999", 10, None),
        ("bytes=-99999999", 0, None),
        ("bytes=0-00000000000000009", 0, 10),
    ],
)
def test_one_range_is_sent(server: RunningServer, recorded: Recorded, wanted: str, start: int, end: int | None) -> None:
    size = len(recorded.data)
    first, after, _ = slice(start, end).indices(size)
    answer = with_bearer(server, recorded, Range=wanted)
    assert answer.status == 206
    assert answer.body == recorded.data[first:after]
    assert answer.headers["Content-Range"] == f"bytes {first}-{after - 1}/{size}"
    assert answer.headers["Content-Length"] == str(after - first)
    assert answer.headers["Last-Modified"] == MODIFIED


@pytest.mark.parametrize("wanted", ["bytes={size}-", "bytes={size}-{size}", "bytes=99999999-", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused_with_the_size(
    server: RunningServer, recorded: Recorded, wanted: str
) -> None:
    answer = with_bearer(server, recorded, Range=wanted.replace("{size}", str(len(recorded.data))))
    assert (answer.status, answer.body) == (416, b"")
    assert answer.headers["Content-Range"] == f"bytes */{len(recorded.data)}"


@pytest.mark.parametrize(
    "wanted",
    [
        "bytes=0-1,5-6",
        "bytes=9-5",
        "bytes=-",
        "bytes=",
        "bytes=a-b",
        "bytes=0x1-2",
        "bytes=1-2-3",
        "bytes=--5",
        "lines=0-1",
        "bytes=" + "9" * 400 + "-",
        "bytes 0-1",
    ],
    ids=lambda wanted: wanted[:20],
)
def test_a_range_that_is_none_or_several_is_answered_with_the_whole(
    server: RunningServer, recorded: Recorded, wanted: str
) -> None:
    answer = with_bearer(server, recorded, Range=wanted)
    assert (answer.status, answer.body) == (200, recorded.data)
    assert answer.headers["Content-Range"] is None


@pytest.mark.parametrize(
    ("condition", "status"),
    [(MODIFIED, 206), ("Tue, 14 Nov 2023 22:13:19 GMT", 200), ('"etag"', 200), ("garbage", 200)],
)
def test_a_range_is_sent_only_if_the_file_is_still_the_same(
    server: RunningServer, recorded: Recorded, condition: str, status: int
) -> None:
    answer = with_bearer(server, recorded, Range="bytes=0-9", If_Range=condition)
    assert answer.status == status
    assert answer.body == (recorded.data[:10] if status == 206 else recorded.data)


def test_the_parts_of_a_download_make_the_whole(server: RunningServer, recorded: Recorded) -> None:
    size = len(recorded.data)
    parts = [with_bearer(server, recorded, Range=f"bytes={at}-{at + 999}").body for at in range(0, size, 1000)]
    assert b"".join(parts) == recorded.data


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-9"}, {"Accept_Encoding": "gzip"}], ids=str)
def test_head_tells_what_get_would_and_sends_no_body(
    server: RunningServer, recorded: Recorded, headers: dict[str, str]
) -> None:
    got = with_bearer(server, recorded, **headers)
    head = with_bearer(server, recorded, "HEAD", **headers)
    assert (head.status, head.body) == (got.status, b"")
    assert sorted(set(head.headers.items()) ^ set(got.headers.items())) in ([], dates(head, got))


def dates(*answers: Answer) -> list[tuple[str, str]]:
    return sorted({("Date", answer.headers["Date"]) for answer in answers})


def test_a_head_without_a_token_is_refused_too(server: RunningServer, recorded: Recorded) -> None:
    answer = ask(server, f"/records/play?filename={recorded.name}", "HEAD")
    assert (answer.status, answer.body) == (401, b"")


@pytest.mark.parametrize(("method", "status"), [("POST", 405), ("PUT", 501), ("DELETE", 501), ("OPTIONS", 501)])
def test_recordings_can_only_be_read(server: RunningServer, recorded: Recorded, method: str, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_SECONDS)
    with contextlib.closing(connection):
        connection.request(method, server.play_path(recorded.name))
        with connection.getresponse() as response:
            assert response.status == status
    assert recorded.path.read_bytes() == recorded.data


def test_last_modified_follows_the_file(server: RunningServer, recorded: Recorded) -> None:
    os.utime(recorded.path, (MTIME + 60, MTIME + 60))
    answer = with_bearer(server, recorded)
    assert answer.headers["Last-Modified"] == email.utils.formatdate(MTIME + 60, usegmt=True)


# -- what the client has already --------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_a_recording_that_has_not_changed_is_not_sent_again(
    server: RunningServer, recorded: Recorded, coding: str
) -> None:
    answer = with_bearer(server, recorded, Accept_Encoding=coding)
    etag = answer.headers["ETag"]
    for known in ({"If_None_Match": etag}, {"If_None_Match": f'"x", W/{etag}'}, {"If_Modified_Since": MODIFIED}):
        for method in ("GET", "HEAD"):
            again = with_bearer(server, recorded, method, Accept_Encoding=coding, **known)
            assert (again.status, again.body) == (304, b"")
            for name in ("ETag", "Vary", "Cache-Control", "Last-Modified"):
                assert again.headers[name] == answer.headers[name]


CHANGED: list[dict[str, str]] = [
    {"If_None_Match": '"x"'},
    {"If_None_Match": ""},
    {"If_None_Match": '"x"', "If_Modified_Since": MODIFIED},  # the first counts (RFC 9110, section 13.1.3)
    {"If_Modified_Since": "Tue, 14 Nov 2023 22:13:19 GMT"},
    *(
        {"If_Modified_Since": text}
        for text in ("", "yesterday", "0", "Tue, 99 Foo 2023", "1" * 9000, "Tue, 14 Nov 99999")
    ),
]


@pytest.mark.parametrize("headers", CHANGED, ids=lambda headers: str(headers)[:60])
def test_a_recording_that_the_client_has_not_is_sent(
    server: RunningServer, recorded: Recorded, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    answer = with_bearer(server, recorded, **headers)
    assert (answer.status, answer.body) == (200, recorded.data)
    assert "Traceback" not in caplog.text


def test_both_forms_of_a_recording_have_etags_of_their_own(server: RunningServer, recorded: Recorded) -> None:
    plain = with_bearer(server, recorded).headers["ETag"]
    packed = with_bearer(server, recorded, Accept_Encoding="gzip").headers["ETag"]
    assert plain != packed
    assert with_bearer(server, recorded, Accept_Encoding="gzip", If_None_Match=plain).status == 200
    assert with_bearer(server, recorded, Accept_Encoding="gzip", If_None_Match=f"{plain}, {packed}").status == 304


def test_a_recording_that_grows_changes_its_etag(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.type("echo a$((1+1))b\r")
        terminal.wait_for("a2b")
        target = server.play_path(server.recordings()[-1])
        first = ask(server, target)
        terminal.type("echo c$((1+2))d\r")
        terminal.wait_for("c3d")
        second = ask(server, target, If_None_Match=first.headers["ETag"])
        assert (second.status, first.headers["ETag"] == second.headers["ETag"]) == (200, False)
        terminal.type("exit\r")
        terminal.wait_end()


def test_a_recording_of_this_very_second_has_no_date_yet(server: RunningServer, recorded: Recorded) -> None:
    ahead = time.time() + 3600  # what comes later within the second would carry the same date
    os.utime(recorded.path, (ahead, ahead))
    assert with_bearer(server, recorded).headers["Last-Modified"] is None
    os.utime(recorded.path, (MTIME, MTIME))
    assert with_bearer(server, recorded).headers["Last-Modified"] == MODIFIED


def test_a_range_goes_on_only_in_the_file_that_it_began_in(server: RunningServer, recorded: Recorded) -> None:
    etag = with_bearer(server, recorded).headers["ETag"]
    for condition in (etag, MODIFIED):
        answer = with_bearer(server, recorded, Range="bytes=10-19", If_Range=condition)
        assert (answer.status, answer.body, answer.headers["ETag"]) == (206, recorded.data[10:20], etag)
    for condition in (f"W/{etag}", '"x"', "", "Tue, 14 Nov 2023 22:13:19 GMT"):
        answer = with_bearer(server, recorded, Range="bytes=10-19", If_Range=condition)
        assert (answer.status, answer.body) == (200, recorded.data)
    with recorded.path.open("ab") as file:
        file.write(b'[9.5, "o", "more"]\n')
    assert with_bearer(server, recorded, Range="bytes=10-19", If_Range=etag).status == 200
    assert with_bearer(server, recorded, Range="bytes=10-19", If_None_Match=etag).status == 206


# -- gzip -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "coding", ["gzip", "br, gzip", "GZIP", "deflate,gzip;q=0.5", "gzip;q=1.0", "gzip ; q=0.001", "identity;q=0, gzip"]
)
def test_a_client_that_takes_gzip_gets_it(server: RunningServer, recorded: Recorded, coding: str) -> None:
    answer = with_bearer(server, recorded, Accept_Encoding=coding)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert gzip.decompress(answer.body) == recorded.data
    assert len(answer.body) < len(recorded.data)


@pytest.mark.parametrize(
    "coding", ["", "br", "gzip;q=0", "gzip;q=0.0", "gzip; q=0.000", "x-gzip-not", "gzipped", "identity"]
)
def test_a_client_that_takes_no_gzip_gets_none(server: RunningServer, recorded: Recorded, coding: str) -> None:
    answer = with_bearer(server, recorded, Accept_Encoding=coding)
    assert (answer.headers["Content-Encoding"], answer.body) == (None, recorded.data)


def test_a_range_is_never_compressed(server: RunningServer, recorded: Recorded) -> None:
    answer = with_bearer(server, recorded, Accept_Encoding="gzip", Range="bytes=5-14")
    assert (answer.status, answer.body) == (206, recorded.data[5:15])
    assert answer.headers["Content-Encoding"] is None


def raw(server: RunningServer, request: str) -> bytes:
    """Everything that comes for this request until the connection ends."""
    with socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS) as sock:
        sock.sendall(request.encode())
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_a_client_of_http_1_0_gets_no_chunks(server: RunningServer, recorded: Recorded) -> None:
    answer = raw(server, f"GET {server.play_path(recorded.name)} HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body == recorded.data


# -- recordings that grow, or were torn -------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b"[", b'[9.5, "o", "\xe6\x97', b"x" * 100_000], ids=["a byte", "a line", "long"])
@pytest.mark.parametrize("headers", [{}, {"Accept_Encoding": "gzip"}, {"Range": "bytes=0-"}], ids=str)
def test_a_torn_last_line_is_never_sent(
    server: RunningServer, recorded: Recorded, torn: bytes, headers: dict[str, str]
) -> None:
    with recorded.path.open("ab") as file:
        file.write(torn)
    answer = with_bearer(server, recorded, **headers)
    body = gzip.decompress(answer.body) if answer.headers["Content-Encoding"] else answer.body
    assert body == recorded.data
    assert with_bearer(server, recorded, Range=f"bytes={len(recorded.data)}-").status == 416


@pytest.mark.parametrize("data", [b"", b'{"version": 2, "wid'], ids=["empty", "half a header"])
def test_a_file_without_a_whole_line_is_sent_as_nothing(server: RunningServer, recorded: Recorded, data: bytes) -> None:
    recorded.path.write_bytes(data)
    answer = with_bearer(server, recorded)
    assert (answer.status, answer.headers["Content-Length"], answer.body) == (200, "0", b"")
    packed = with_bearer(server, recorded, Accept_Encoding="gzip")
    assert gzip.decompress(packed.body) == b""
    assert with_bearer(server, recorded, Range="bytes=0-").status == 416


def parsed(body: bytes) -> list[object]:
    assert body.endswith(b"\n")
    return [json.loads(line) for line in body.decode().splitlines()]


def test_a_running_session_can_be_played_as_far_as_it_is(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.type("echo a$((1+1))b\r")
        terminal.wait_for("a2b")
        name = server.recordings()[-1]
        first = ask(server, server.play_path(name)).body
        assert "a2b" in "".join(str(line) for line in parsed(first))
        terminal.type("echo c$((1+2))d\r")
        terminal.wait_for("c3d")
        second = ask(server, server.play_path(name)).body
        assert second.startswith(first)
        assert "c3d" in "".join(str(line) for line in parsed(second))
        terminal.type("exit\r")
        terminal.wait_end()
    wait_until(lambda: len(server.server.sessions) == 0)
    whole = ask(server, server.play_path(name)).body
    assert whole.startswith(second)


def test_what_comes_while_a_session_prints_is_always_whole_lines(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.type("seq 1500000\r")
        terminal.wait_for("\n1000\r")
        name = server.recordings()[-1]
        sizes = []
        for _ in range(20):
            body = ask(server, server.play_path(name), Accept_Encoding="gzip").body
            text = gzip.decompress(body)
            parsed(text)
            sizes.append(len(text))
            Terminal.step(terminal)
        assert sizes == sorted(sizes)


# -- large files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_a_large_recording_streams_in_bounded_memory(server: RunningServer, recorded: Recorded, coding: str) -> None:
    line = b'[1.000000, "o", "' + b"x" * (MIB - 20) + b'"]\n'
    with recorded.path.open("ab") as file:
        for _ in range(50):
            file.write(line)
    size = recorded.path.stat().st_size
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_SECONDS)
    tracemalloc.start()
    try:
        with contextlib.closing(connection):
            connection.request("GET", server.play_path(recorded.name), headers={"Accept-Encoding": coding})
            with connection.getresponse() as response:
                unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16) if coding == "gzip" else None
                received = 0
                while True:
                    piece = response.read(65536)
                    if not piece:
                        break
                    while unpacker and piece:
                        received += len(unpacker.decompress(piece, 65536))
                        piece = unpacker.unconsumed_tail
                    received += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == size
    assert peak < 8 * MIB


def test_a_client_that_leaves_in_the_middle_is_no_event(
    server: RunningServer, recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    with recorded.path.open("ab") as file:
        for _ in range(20):
            file.write(b'"' + b"x" * MIB + b'"\n')
    with nothing_left(), socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS) as sock:
        sock.sendall(f"GET {server.play_path(recorded.name)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert sock.recv(10) == b"HTTP/1.1 2"
    assert with_bearer(server, recorded, Range="bytes=0-0").status == 206
    assert "error" not in caplog.text


# -- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_says_who_played_what_and_holds_no_token(
    server: RunningServer, recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    token = server.link_token(sub="eve the auditor")
    ask(server, f"/records/play?filename={recorded.name}&token={token}")
    ask(server, f"/records/play?filename={recorded.name}", Authorization=f"Bearer {token}")
    played = [message for message in caplog.messages if message.startswith("play ")]
    path = server.config.record_path / recorded.name
    assert played == [f'play user="eve the auditor" file={path} remote=127.0.0.1 session={path.stem}'] * 2
    assert token not in caplog.text
    assert "token=" not in caplog.text


def test_the_log_says_who_was_refused_and_holds_no_token(
    server: RunningServer, recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    token = server.link_token(scope="watch")
    ask(server, f"/records/play?filename={recorded.name}&token={token}")
    (message,) = [message for message in caplog.messages if message.startswith("refusal ")]
    assert message == (
        f"refusal action=play file={recorded.name} remote=127.0.0.1 "
        'reason="this link does not allow to play; it needs the scope play or audit"'
    )
    assert token not in caplog.text


def test_a_name_cannot_forge_a_line_of_the_log(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    ask(server, server.play_path("x%0aplay%20user=root%1b%5b31m", scope="watch"))
    (message,) = [message for message in caplog.messages if message.startswith("refusal ")]
    assert message.isprintable()
    assert 'file="x\\nplay user=root\\u001b[31m"' in message
