"""A pod that cannot be entered: why it does not run, and which of its containers is meant; a gateway is no cluster."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator

import pytest
import trustme

import k8s_exec
from demo.cluster import Pod, StandIn, User
from k8s_exec import ExecRefused, Shell, Target, default_container, explain_not_running, load_kubeconfig, open_shell
from tests.raw_cluster import RawServer, answer, http_error
from tests.support import LOOPBACK, nothing_left

PODS = (
    Pod("default", "demo", containers=("main",), sidecars=("proxy",), debuggers=("debug",)),
    Pod("default", "multi", containers=("c1", "c2")),
    Pod("default", "annotated", containers=("c1", "c2"), default_container="c2"),
    Pod("default", "mistaken", containers=("c1", "c2"), default_container="c3"),
    *(Pod("default", state, state=state) for state in ("finished", "pending", "no-image", "crashing", "unschedulable")),
)


@pytest.fixture(params=["new", "old"])
def cluster(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    with nothing_left(), StandIn(pods=PODS, flavour=request.param) as running:
        yield running


@pytest.fixture
def blind() -> Iterator[StandIn]:
    """A cluster whose user may exec, but not look at pods."""
    with nothing_left(), StandIn(pods=PODS, users=[User("demo", reads_pods=False)]) as running:
        yield running


def opened(cluster: StandIn, pod: str, container: str = "") -> Shell:
    """A shell in the pod; its connection has been dropped."""
    target = Target(load_kubeconfig(cluster.kubeconfig(), trust=LOOPBACK), "default", pod, container)
    shell = open_shell(target, str(uuid.uuid4()), ["true"], "", (80, 24), timeout=10.0)
    shell.pod.close()
    return shell


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        ("finished", "Completed, exit code 0"),
        ("pending", "ContainerCreating"),
        ("no-image", 'ImagePullBackOff (Back-off pulling image "nowhere.example/demo:1")'),
        ("crashing", "CrashLoopBackOff (back-off 5m0s restarting failed container=main pod=crashing)"),
        ("unschedulable", "Unschedulable (0/3 nodes are available: 3 Insufficient memory.)"),
    ],
)
def test_why_a_pod_does_not_run_is_said(cluster: StandIn, pod: str, why: str) -> None:
    with pytest.raises(ExecRefused) as caught:
        opened(cluster, pod)
    assert (caught.value.status, str(caught.value)) == (500, f"the container is not running: {why}")


def test_without_the_right_to_look_the_clusters_own_words_must_do(blind: StandIn) -> None:
    with pytest.raises(ExecRefused, match="the container is not running: container not found"):
        opened(blind, "no-image")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"status":null}',
        b'{"status":{"containerStatuses":7}}',
        b'{"status":{"containerStatuses":[7]}}',
        b'{"status":{"containerStatuses":[{"name":"main"}]}}',
        b'{"status":{"containerStatuses":[{"name":"main","state":[]}]}}',
        b'{"status":{"conditions":[{}]}}',
        b"[" * 100_000,
    ],
)
def test_an_object_that_makes_no_sense_says_nothing(body: bytes) -> None:
    assert explain_not_running(body, "main") == explain_not_running(body, "") == default_container(body) == ""


def test_foreign_text_is_made_printable() -> None:
    body = (
        b'{"status":{"containerStatuses":[{"name":"a","state":{"waiting":{"reason":"x\\u001b","message":"\\r\\ny"}}}]}}'
    )
    assert explain_not_running(body, "a") == "x (y)"


def test_the_annotation_chooses_among_several_containers(cluster: StandIn) -> None:
    assert opened(cluster, "annotated").target.container == "c2"
    assert [record.container for record in cluster.execs] == ["", "c2"]


def test_a_container_that_was_named_is_taken(cluster: StandIn) -> None:
    assert opened(cluster, "annotated", "c1").target.container == "c1"
    assert [record.container for record in cluster.execs] == ["c1"]


@pytest.mark.parametrize("pod", ["multi", "mistaken"])
def test_without_a_useful_annotation_the_containers_are_listed(cluster: StandIn, pod: str) -> None:
    with pytest.raises(ExecRefused, match="the pod has several containers, choose one of: c1 c2"):
        opened(cluster, pod)


def test_without_the_right_to_look_the_containers_are_listed(blind: StandIn) -> None:
    with pytest.raises(ExecRefused, match="the pod has several containers, choose one of: c1 c2"):
        opened(blind, "annotated")


@pytest.mark.parametrize("name", [7, None, "", "c\n", "C", ["c1"], {"c1": 1}], ids=repr)
def test_an_annotation_that_is_no_name_chooses_nothing(name: object) -> None:
    body = f'{{"spec":{{"containers":[{{"name":{json.dumps(name)}}}]}},"metadata":{{"annotations":'
    body += f'{{"kubectl.kubernetes.io/default-container":{json.dumps(name)}}}}}}}'
    assert default_container(body.encode()) == ""


@pytest.mark.parametrize("container", ["main", "proxy", "debug"])
def test_an_end_by_lack_of_memory_is_told_of_every_kind_of_container(cluster: StandIn, container: str) -> None:
    assert opened(cluster, "demo", container).target.container == container
    begin = time.time()
    cluster.fail_pod("default", "demo", "oom")
    target = Target(load_kubeconfig(cluster.kubeconfig(), trust=LOOPBACK), "default", "demo", container)
    assert "(OOMKilled)" in k8s_exec.why_lost(target, begin, timeout=0.1)


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found", "503 Service Unavailable"])
def test_a_gateways_page_is_not_the_clusters_word(status: str) -> None:
    with RawServer(trustme.CA(), answer(http_error(status, b"<html><h1>Sorry</h1></html>"))) as server:
        target = Target(server.cluster(), "default", "demo")
        said = k8s_exec.why_lost(target, time.time(), timeout=0.1)
        with pytest.raises(ExecRefused) as caught:
            open_shell(target, str(uuid.uuid4()), (), "", (80, 24), timeout=10.0)
    assert said == str(caught.value) == f"a gateway before the cluster refused with HTTP status {status[:3]}"


def test_an_answer_that_is_no_http_says_nothing() -> None:
    with RawServer(trustme.CA(), answer(b"SSH-2.0-OpenSSH_9.6\r\n")) as server:
        assert k8s_exec.why_lost(Target(server.cluster(), "default", "demo"), time.time(), timeout=0.1) == ""
