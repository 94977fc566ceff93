"""The pod, its node or the API server goes away under a session: the user reads which, and so does the recording."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import jumpserver
from demo.cluster import StandIn, User
from k8s_exec import explain_pod
from tests.support import RunningServer, Terminal, nothing_left, wait_until

LIMIT_SECONDS = 5.0
EVICTED = "the pod was evicted: The node was low on resource: memory."
OOM = "the container was killed because it used too much memory (OOMKilled)"
NODE_LOST = "the pod's node was lost"

# -- what a pod's object says ------------------------------------------------------------------------------------------

SINCE = 1790000000.0  # when the session began
BEFORE, AFTER = "2026-09-21T13:00:00Z", "2026-09-21T15:00:00Z"


def pod(status: dict[str, Any], **metadata: str) -> bytes:
    return json.dumps({"kind": "Pod", "metadata": {"name": "demo", **metadata}, "status": status}).encode()


def container(name: str = "main", ready: bool = True, **states: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ready": ready, "restartCount": 0, **states}


def terminated(reason: str, code: int, at: str = AFTER) -> dict[str, Any]:
    return {"terminated": {"reason": reason, "exitCode": code, "startedAt": BEFORE, "finishedAt": at}}


RUNNING = {"running": {"startedAt": BEFORE}}
READY = [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]
NOT_READY = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
PROBE_FAILS = [
    {"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
    {"type": "ContainersReady", "status": "False", "reason": "ContainersNotReady"},
]
GATE_WAITS = [
    {"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"},
    {"type": "ContainersReady", "status": "True"},
]


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (404, b'{"kind":"Status","reason":"NotFound","details":{"kind":"pods"},"code":404}', "the pod was deleted"),
        (404, b'{"kind":"Status","reason":"NotFound","details":{},"code":404}', ""),  # no such path
        (404, b'{"kind":"Status","reason":"NotFound","code":404}', ""),
        (404, b'{"message":"no Route matched","code":404}', ""),
        (404, b"<html>404 Not Found</html>", ""),
        (404, b"", ""),
        (401, b"<html>Log in</html>", ""),
        (401, b'{"kind":"Status","details":{"kind":"pods"},"code":404}', ""),
        (503, b"no healthy upstream", ""),
        (401, b'{"kind":"Status","reason":"Unauthorized","code":401}', "the cluster no longer accepts the credentials"),
        (403, b'{"kind":"Status","reason":"Forbidden","code":403}', ""),
        (500, b"etcdserver: request timed out", ""),
        (200, pod({"phase": "Failed", "reason": "Evicted", "message": "The node was low"}), "the pod was evicted: The"),
        (200, pod({"phase": "Failed", "reason": "Evicted"}), "the pod was evicted"),
        (200, pod({"phase": "Failed", "reason": "Evicted", "message": None}), "the pod was evicted"),
        (200, pod({"reason": "NodeLost"}, deletionTimestamp=AFTER), NODE_LOST),
        (200, pod({"conditions": [{"type": "Ready", "status": "Unknown"}]}), NODE_LOST),
        (200, pod({"conditions": NOT_READY, "containerStatuses": [container(state=RUNNING)]}), NODE_LOST),
        (200, pod({"conditions": PROBE_FAILS, "containerStatuses": [container(ready=False, state=RUNNING)]}), ""),
        (200, pod({"conditions": GATE_WAITS, "containerStatuses": [container(state=RUNNING)]}), ""),
        (200, pod({"containerStatuses": [container(state=terminated("OOMKilled", 137))]}), OOM),
        (200, pod({"containerStatuses": [container(state=RUNNING, lastState=terminated("OOMKilled", 137))]}), OOM),
        (
            200,
            pod({"containerStatuses": [container(state=terminated("Completed", 0))]}),
            "the container has ended (Completed, exit code 0)",
        ),
        (
            200,
            pod({"containerStatuses": [container(state=RUNNING, lastState=terminated("OOMKilled", 137, BEFORE))]}),
            "",
        ),
        (
            200,
            pod({"containerStatuses": [container("other", state=terminated("Error", 1)), container(state=RUNNING)]}),
            "",
        ),
        (200, pod({"containerStatuses": [container(state=RUNNING)]}, deletionTimestamp=AFTER), "the pod is being del"),
        (200, pod({"conditions": READY, "containerStatuses": [container(state=RUNNING, lastState={})]}), ""),
        (200, pod({}), ""),
        (200, b"", ""),
        (200, b"[]", ""),
        (200, b'{"status":null}', ""),
        (200, b'{"status":{"conditions":[{}]}}', ""),
        (200, pod({"initContainerStatuses": [container(state=terminated("OOMKilled", 137))]}), OOM),
        (200, pod({"ephemeralContainerStatuses": [container(state=terminated("OOMKilled", 137))]}), OOM),
        (200, pod({"initContainerStatuses": [container("other", state=terminated("OOMKilled", 137))]}), ""),
        (
            200,
            pod({"containerStatuses": [container(state=terminated("Error\x1b[31m", cast(int, "1\x1b" + "9" * 9000)))]}),
            "the container has ended (Error [31m, exit code 1 999",
        ),
        (200, pod({"containerStatuses": [container(state=terminated("Error", 1, "0001-01-01T00:00:00+14:00"))]}), ""),
        (200, pod({"containerStatuses": [container(state=terminated("Error", 1, "9" * 9000))]}), ""),
        (200, pod({"containerStatuses": "x" * 100, "initContainerStatuses": [7]}), ""),
        (200, b"[" * 100_000, ""),
    ],
)
def test_what_a_pods_object_says_of_its_end(status: int, body: bytes, sentence: str) -> None:
    said = explain_pod(status, body, "main", SINCE)
    assert said.startswith(sentence)
    assert bool(said) == bool(sentence)


def test_the_clusters_text_is_shown_on_one_line_and_without_controls() -> None:
    body = pod({"reason": "Evicted", "message": "low\r\n\x1b[31mmemory" + "x" * 5000})
    said = explain_pod(200, body, "main", SINCE)
    assert said.isprintable()
    assert len(said) < 600


def test_without_a_name_only_the_pods_own_containers_are_meant() -> None:
    oom = terminated("OOMKilled", 137)
    assert explain_pod(200, pod({"containerStatuses": [container(state=oom)]}), "", SINCE) == OOM
    assert explain_pod(200, pod({"initContainerStatuses": [container(state=oom)]}), "", SINCE) == ""


# -- a session -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=("new", "old"))
def cluster(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    """Takes the place of the one in support: here each test is for both."""
    with nothing_left(), StandIn(flavour=request.param) as running:
        yield running


def opened(server: RunningServer) -> Terminal:
    """A terminal whose shell answers."""
    terminal = server.connect()
    terminal.type("echo rea''dy\n")
    terminal.wait_for("ready\r\n")
    return terminal


def end_of(server: RunningServer, terminal: Terminal, failure: Callable[[], None]) -> dict[str, Any]:
    """Let it happen. The terminal, the recording and the ledger must say the same, and soon."""
    begin = time.monotonic()
    failure()
    end = terminal.wait_end()
    assert time.monotonic() - begin < LIMIT_SECONDS
    wait_until(lambda: all(row["logout_at"] for row in server.rows()), "the end of the session")
    (row,) = server.rows()
    assert row["reason"] == end["reason"]
    *_, (_, kind, text) = (json.loads(line) for line in Path(row["filename"]).read_text().splitlines())
    if terminal.close_code != 1000:
        assert f"[jumpserver] {end['reason']}\r\n".encode() in terminal.output
        assert (kind, text) == ("o", f"\r\n[jumpserver] {end['reason']}\r\n")
    return end


@pytest.mark.parametrize("lag", [0.0, 1.0], ids=["at once", "after a second"])
@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("evicted", EVICTED),
        ("oom", OOM),
        ("deleting", "the pod is being deleted"),
        ("node-not-ready", NODE_LOST),
        ("node-lost", NODE_LOST),
    ],
)
def test_the_user_reads_what_became_of_the_pod(
    cluster: StandIn, server: RunningServer, how: str, sentence: str, lag: float
) -> None:
    # The kubelet tells the API server of an end only after it has happened, by a second or so.
    terminal = opened(server)
    end = end_of(server, terminal, lambda: cluster.fail_pod("default", "demo", how, lag=lag))
    assert end["reason"].startswith(sentence)
    assert terminal.close_code == 4502


def test_the_user_reads_that_the_pod_was_deleted(cluster: StandIn, server: RunningServer) -> None:
    terminal = opened(server)
    assert end_of(server, terminal, lambda: cluster.delete_pod("default", "demo"))["reason"] == "the pod was deleted"


def test_the_user_reads_that_the_api_server_is_away(cluster: StandIn, tmp_path: Path) -> None:
    server = RunningServer(tmp_path, cluster)
    try:
        terminal = opened(server)
        reason = end_of(server, terminal, cluster.go_down)["reason"]
        assert reason == "the cluster's API server cannot be reached any more"
        assert server.rows()[0]["hung_up"] is None
        cluster.come_back()
        with opened(server):
            pass
    finally:
        server.stop()


def test_the_user_reads_that_the_token_has_expired(cluster: StandIn, server: RunningServer) -> None:
    def cut_off() -> None:
        cluster.expire_token()
        cluster.drop_connections()

    terminal = opened(server)
    assert end_of(server, terminal, cut_off)["reason"].startswith("the cluster no longer accepts the credentials")
    cluster.delete_pod("default", "demo")  # nobody may hang the shell up


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is nothing to learn, a shorter wait for it shows the same."""
    monkeypatch.setattr(jumpserver, "WHY_TIMEOUT_SECONDS", 0.5)


@pytest.mark.usefixtures("impatient")
def test_a_connection_that_was_only_cut_is_called_lost(cluster: StandIn, server: RunningServer) -> None:
    terminal = opened(server)
    assert end_of(server, terminal, cluster.drop_connections)["reason"] == "the connection to the cluster was lost"


@pytest.mark.usefixtures("impatient")
def test_a_user_who_kills_the_shell_is_not_told_of_the_pod(cluster: StandIn, server: RunningServer) -> None:
    terminal = opened(server)
    end = end_of(server, terminal, lambda: terminal.type("kill -9 $$\n"))
    assert (end["reason"], end["exit_code"]) == ("the shell has ended with exit code 137", 137)
    assert terminal.close_code == 1000


@pytest.fixture
def blind(tmp_path: Path) -> Iterator[tuple[StandIn, RunningServer]]:
    """A cluster whose user may exec, but not look at pods."""
    user = User("demo", reads_pods=False)
    with nothing_left(), StandIn(users=[user]) as cluster:
        server = RunningServer(tmp_path, cluster)
        try:
            yield cluster, server
        finally:
            server.stop()


def test_without_the_right_to_look_a_kill_is_an_exit_code(blind: tuple[StandIn, RunningServer]) -> None:
    cluster, server = blind
    terminal = opened(server)
    end = end_of(server, terminal, lambda: cluster.fail_pod("default", "demo", "oom"))
    assert (end["reason"], end["exit_code"]) == ("the shell has ended with exit code 137", 137)


def test_without_the_right_to_look_a_loss_is_a_loss(blind: tuple[StandIn, RunningServer]) -> None:
    cluster, server = blind
    terminal = opened(server)
    end = end_of(server, terminal, lambda: cluster.fail_pod("default", "demo", "node-lost"))
    assert end["reason"] == "the connection to the cluster was lost"
