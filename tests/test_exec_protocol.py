"""The exec protocol's bytes: the request, the channels, the end, the refusals, the frames."""

from __future__ import annotations

import json
import struct
import unicodedata
from typing import Any, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s_exec import (
    Cluster,
    ExecRefused,
    ExitStatus,
    PodLost,
    Target,
    decode_status,
    encode_resize,
    encode_stdin,
    exec_path,
    explain_refusal,
    load_kubeconfig,
    parse_frame,
    printable,
)
from tests.raw_cluster import frame, status_body
from tests.support import kubeconfig

# -- the request ------------------------------------------------------------------------------------------------------

PLAIN = Cluster("k8s.example", 443)


def test_the_request_names_container_streams_and_each_argument() -> None:
    assert exec_path(Target(PLAIN, "web", "shop-0", "main"), ["sh", "-c", "echo $x & ls '?#%' ü\n"]) == (
        "/api/v1/namespaces/web/pods/shop-0/exec?container=main&stdin=true&stdout=true&tty=true"
        "&command=sh&command=-c&command=echo+%24x+%26+ls+%27%3F%23%25%27+%C3%BC%0A"
    )


def test_the_request_begins_with_the_servers_path_and_may_leave_the_container_out() -> None:
    cluster = load_kubeconfig(kubeconfig(None, {"token": "x"}, server="https://rancher.example/k8s/clusters/c-1"))
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
