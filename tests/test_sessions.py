"""What a session says of itself: the names that were really used, one line for what others did wrong."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import websocket

import jumpserver
from demo.cluster import StandIn
from demo.pods import Pod
from tests.support import (
    ALLOW_LOOPBACK,
    Program,
    RunningServer,
    another_server,
    connected,
    nothing_left,
    read_until,
    request_head,
    wait_until,
)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.INFO, "jumpserver")
    yield caplog
    assert "Traceback" not in caplog.text


def test_a_token_without_a_namespace_shows_the_kubeconfigs_everywhere(
    tmp_path: Path, cluster: StandIn, log: pytest.LogCaptureFixture
) -> None:
    cluster.add_pod(Pod("shop", "cart", ("main",), programs=("bash", "sh")))
    with another_server(tmp_path, cluster, more=ALLOW_LOOPBACK) as server:
        kubeconfig = cluster.kubeconfig(namespace="shop")
        with server.connect("cart", namespace=None, cluster_cfg=kubeconfig) as terminal:
            session = terminal.wait_for_event("session")
            assert (session["namespace"], session["cluster"]) == ("shop", "127.0.0.1")
            terminal.type("exit\n")
            terminal.wait_end()
        server.wait_settled()
        (row,) = server.rows()
        assert (row["namespace"], row["cluster"]) == ("shop", "127.0.0.1")
        assert json.loads(Path(row["filename"]).read_text().splitlines()[0])["title"] == "alice@shop/cart"
        assert " pod=shop/cart " in log.text


def test_the_container_that_the_annotation_chose_stands_in_page_and_ledger(tmp_path: Path, cluster: StandIn) -> None:
    cluster.add_pod(Pod("default", "two", ("side", "app"), programs=("bash", "sh"), default_container="app"))
    with another_server(tmp_path, cluster) as server:
        with server.connect("two") as terminal:
            assert terminal.wait_for_event("session")["container"] == "app"
            terminal.type("exit\n")
            terminal.wait_end()
        server.wait_settled()
        assert server.rows()[0]["container_name"] == "app"


def test_a_token_may_name_a_context_of_its_kubeconfig(tmp_path: Path, cluster: StandIn) -> None:
    cluster.add_pod(Pod("shop", "cart", ("main",), programs=("bash", "sh")))
    more = "- context: {cluster: standin, namespace: shop, user: demo}\n  name: shopping\n"
    kubeconfig = cluster.kubeconfig().replace("current-context:", f"{more}current-context:")
    with another_server(tmp_path, cluster, more=ALLOW_LOOPBACK) as server:
        with server.connect("cart", namespace=None, cluster_cfg=kubeconfig, context="shopping") as terminal:
            assert terminal.wait_for_event("session")["namespace"] == "shop"
        with server.connect("cart", namespace=None, cluster_cfg=kubeconfig, context="no") as terminal:
            assert "no context named 'no'" in terminal.wait_end()["reason"]


def test_a_kubeconfig_that_cannot_be_used_is_a_refusal_without_a_file(
    tmp_path: Path, cluster: StandIn, log: pytest.LogCaptureFixture
) -> None:
    with another_server(tmp_path, cluster) as server:
        with server.connect(cluster_cfg="a: [") as terminal:
            assert terminal.wait_end()["reason"].startswith("line 1, column 5:")
            assert terminal.close_code == 4502
        wait_until(lambda: " reason=" in log.text and "refusal " in log.text, "the refusal in the log")
        assert (server.rows(), server.recordings()) == ([], [])


@pytest.mark.parametrize(
    "claims",
    [
        {"command": ["echo", "\ud800"]},
        {"directory": "/srv\0"},
        {"directory": "\udfff"},
        {"container_name": 5},
        {"command": ["x" * 70_000]},
        {"user": "x" * 2000},
    ],
    ids=lambda claims: next(iter(claims)),
)
def test_a_token_with_what_no_program_can_be_given_is_one_line_in_the_log(
    tmp_path: Path, cluster: StandIn, log: pytest.LogCaptureFixture, claims: dict[str, object]
) -> None:
    answer = json.dumps({"namespace": "default", "pod_name": "demo", **claims})
    hooks_file = (
        "import json\nfrom hooks import Hooks, auth_data\n"
        "class Own(Hooks):\n    def validate_ssh_token(self, token):\n"
        f"        return auth_data(json.loads({answer!r}), self.settings.clusters)\n"
    )
    with another_server(tmp_path, cluster, hooks_file=hooks_file) as server:
        with server.connect_with("any") as terminal:
            assert terminal.wait_end()["reason"] == jumpserver.HOOK_FAILED.reason
        assert server.cluster.execs == []
    assert f"{next(iter(claims))} of a token" in log.text


def test_a_platform_that_cannot_be_reached_is_one_line_in_the_log(
    tmp_path: Path, cluster: StandIn, log: pytest.LogCaptureFixture
) -> None:
    platform = '[Platform]\nvalidate_url = "http://127.0.0.1:9/"\n'
    with another_server(tmp_path, cluster, more=platform) as server:
        token = secrets.token_hex(8)
        with server.connect_with(token) as terminal:
            assert terminal.wait_end()["reason"] == jumpserver.HOOK_FAILED.reason
    assert "the platform cannot be reached" in log.text and token not in log.text


def test_descriptors_that_run_out_refuse_in_words_and_harm_no_other_session(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster) as program, program.connect() as first:
        first.wait_for_event("session")
        pid = program.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        reasons = set()
        for spare in range(3, 14):  # each step of a login meets the limit once
            wait_until(lambda: program.log().count(" login ") == program.log().count(" logout ") + 1, "one session")
            descriptors = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(descriptors) + spare, limits[1]))
            with contextlib.suppress(OSError, websocket.WebSocketException), program.connect() as terminal:
                while not terminal.events and terminal.close_code is None:
                    terminal.step()
                reasons |= {event.get("reason", "") for event in terminal.events}
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        assert any("open" in reason for reason in reasons), reasons
        first.type("echo a$((1+1))b\n")
        first.wait_for("a2b")
        assert "Traceback" not in program.log()


def test_a_server_without_descriptors_lets_connections_wait_and_does_not_spin(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster) as program:
        pid, log = program.process.pid, "no file descriptor is left"
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), limits[1]))
        with connected(program.port) as sock:
            sock.sendall(request_head("/healthz"))
            wait_until(lambda: log in program.log())
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            assert read_until(sock).startswith(b"HTTP/1.1 200 ")
        assert program.log().count(log) < 5


def rush(server: RunningServer, number: int) -> None:
    terminals = [server.connect() for _ in range(number)]
    for terminal in terminals:
        terminal.wait_for_event("session")
    for terminal in terminals:
        terminal.drop()


def test_of_many_browsers_that_vanish_at_once_a_few_are_hung_up_at_a_time(tmp_path: Path) -> None:
    with nothing_left(), StandIn(flavour="old") as cluster, another_server(tmp_path, cluster) as server:
        rush(server, 30)
        most = 0

        def done() -> bool:
            nonlocal most
            under_way = [record for record in cluster.execs if not record.tty and not record.ended]
            most = max(most, len(under_way))
            return all(row["logout_at"] and not row["todo"] for row in server.rows())

        wait_until(done, "all hang-ups", 60)
        assert 1 <= most <= 8
        assert not cluster.shells()
        assert all(row["hung_up"] is not None for row in server.rows())
