"""The numbers are what happened, in Prometheus' format; what is deployed beside the server asks for no other."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import websocket
import yaml
from prometheus_client.parser import text_string_to_metric_families

import jumpserver
from demo.cluster import StandIn
from tests.support import (
    RunningServer,
    Terminal,
    another_server,
    connected,
    end_shell,
    exchange,
    need_program,
    newest,
    refuse,
    request_head,
    wait_until,
)

DEPLOY = Path(__file__).parent.parent / "deploy"

Numbers = dict[str, float]


def fetch(server: RunningServer, port: int | None = None) -> tuple[str, str]:
    """The text and its content type."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port or server.port}/metrics", timeout=5) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def samples(text: str) -> Numbers:
    """Every series with its value, as ``name{label=value}``."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            series = (
                f"{sample.name.removeprefix('jumpserver_')}{{{labels}}}"
                if labels
                else sample.name.removeprefix("jumpserver_")
            )
            assert series not in found, series
            found[series] = sample.value
    return found


def numbers(server: RunningServer) -> Numbers:
    return samples(fetch(server)[0])


def test_the_format_is_prometheus_own(server: RunningServer) -> None:
    text, content_type = fetch(server)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {family.type for family in families.values()} == {"counter", "gauge", "histogram"}
    assert all(family.documentation and family.samples for family in families.values())
    promtool = need_program("promtool")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_session_is_counted_while_it_runs_and_when_it_has_ended(server: RunningServer) -> None:
    before = numbers(server)
    with server.connect() as terminal:
        terminal.type("echo number-$((40+2))\n")
        terminal.wait_for("number-42")
        running = numbers(server)
        assert running["sessions_open"] == 1
        assert running["bytes_total{direction=in}"] == len("echo number-$((40+2))\n")
        assert running["bytes_total{direction=out}"] >= len(terminal.output)
        assert running["recorded_bytes_total"] > running["bytes_total{direction=out}"]
        end_shell(terminal)
    server.wait_settled()
    wait_until(lambda: numbers(server)["sessions_open"] == 0)
    after = numbers(server)
    assert after["sessions_total{end=exit}"] == before["sessions_total{end=exit}"] + 1
    assert after["bytes_total{direction=out}"] == len(terminal.output)
    assert after["recorded_bytes_total"] == newest(server).stat().st_size
    assert after["hook_seconds_count{hook=validate_ssh_token}"] == 1
    assert after["hook_seconds_count{hook=on_login}"] == 1
    assert after["hook_seconds_count{hook=on_logout}"] == 1
    assert after["cluster_open_seconds_count"] == 1
    assert after["ledger_seconds_count"] >= 2
    assert after["outbox_length"] == 0


def test_a_user_who_closes_the_terminal_is_told_apart_and_the_hang_up_is_counted(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.type("sleep 1000 &\n")
        terminal.wait_for("sleep")
        terminal.sock.close()
    server.wait_settled()
    after = numbers(server)
    assert after["sessions_total{end=closed}"] == 1
    assert after["hang_ups_total{result=some}"] == 1


def test_a_shell_that_waits_for_its_browser_and_the_return_are_counted(cluster: StandIn, tmp_path: Path) -> None:
    with another_server(tmp_path, cluster, resume_grace=60) as server:
        with server.connect() as terminal:
            resume = terminal.wait_for_event("session")["resume"]
        wait_until(lambda: numbers(server)["detached"] == 1, "the loss")
        url = f"ws://127.0.0.1:{server.port}/{resume['url']}"
        with Terminal(websocket.create_connection(url, 5, subprotocols=["jumpserver.v1"])) as back:
            back.send(type="resume", secret=resume["secret"], drawn=0, cols=100, rows=30)
            back.wait_for_event("session")
            after = numbers(server)
            assert (after["detached"], after["resumed_total"], after["sessions_open"]) == (0, 1, 1)
            end_shell(back)


def test_refused_logins_are_counted_by_cause_and_not_as_sessions(server: RunningServer) -> None:
    refuse(server, "no-token")  # two clients
    after = numbers(server)
    assert after["refused_total{cause=denied}"] == 2
    assert sum(value for series, value in after.items() if series.startswith("sessions_total")) == 0


def test_a_call_that_takes_long_is_in_the_bucket_of_its_time() -> None:
    metrics = jumpserver.Metrics()
    with metrics.timed("ledger_seconds"):
        pass
    gauges = dict.fromkeys(jumpserver.GAUGES, 0.0)
    found = samples(metrics.text(**gauges))
    buckets = [value for series, value in found.items() if series.startswith("ledger_seconds_bucket")]
    assert len(buckets) == 13
    assert buckets == sorted(buckets)
    assert found["ledger_seconds_bucket{le=15.0}"] == found["ledger_seconds_bucket{le=+Inf}"] == 1
    assert found["ledger_seconds_sum"] < 15


def test_a_server_that_cannot_open_terminals_says_so(server: RunningServer) -> None:
    assert numbers(server)["ready"] == 1
    server.config.record_path.rename(server.folder / "elsewhere")
    try:
        wait_until(lambda: numbers(server)["ready"] == 0, "trouble")
    finally:
        (server.folder / "elsewhere").rename(server.config.record_path)


def test_nothing_of_users_or_pods_stands_in_the_numbers(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.wait_for_event("session")
        text, _ = fetch(server)
        for word in ("alice", "demo", "standin", server.rows()[0]["session_id"]):
            assert word not in text
        end_shell(terminal)


def test_the_admin_port_has_numbers_and_health_and_the_public_one_no_numbers(cluster: StandIn, tmp_path: Path) -> None:
    with another_server(tmp_path, cluster, server_lines='admin_listen = "127.0.0.1:0"') as server:
        assert server.server.admin is not None
        port = int(server.server.admin.server_address[1])
        assert "jumpserver_threads" in fetch(server, port)[0]
        assert exchange(port, request_head("/readyz")).endswith(b"\r\n\r\nready\n")
        assert exchange(port, request_head("/healthz")).endswith(b"\r\n\r\nalive\n")
        for path in ("/", "/ssh", "/records/play", "/terminal.js"):
            assert exchange(port, request_head(path)).startswith(b"HTTP/1.1 404 "), path
        assert exchange(server.port, request_head("/metrics")).startswith(b"HTTP/1.1 404 ")
        assert exchange(server.port, request_head("/readyz")).startswith(b"HTTP/1.1 200 ")


def test_a_silent_client_of_the_admin_port_does_not_outlive_the_server(cluster: StandIn, tmp_path: Path) -> None:
    with another_server(tmp_path, cluster, server_lines='admin_listen = "[::1]:0"') as server:
        assert server.server.admin is not None
        port = int(server.server.admin.server_address[1])
        with pytest.raises(ConnectionRefusedError), connected(port):
            pass  # another family
        with socket.create_connection(("::1", port), 5) as silent:
            wait_until(lambda: server.server._heads)
            server.stop()
            assert silent.recv(1) == b""


def expressions(value: Any) -> list[str]:
    """Every PromQL expression in the document."""
    if isinstance(value, dict):
        own = [value["expr"]] if isinstance(value.get("expr"), str) else []
        return own + [found for item in value.values() for found in expressions(item)]
    return [found for item in value for found in expressions(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("name", ["alerts.yaml", "grafana.json"])
def test_alerts_and_dashboard_ask_for_series_that_there_are(server: RunningServer, name: str) -> None:
    text = (DEPLOY / name).read_text()
    asked = expressions(json.loads(text) if name.endswith("json") else yaml.safe_load(text))
    families = list(text_string_to_metric_families(fetch(server)[0]))
    names = {sample.name for family in families for sample in family.samples}
    labels = {
        (sample.name, label, value)
        for family in families
        for sample in family.samples
        for label, value in sample.labels.items()
    }
    assert len(asked) >= 6
    for expression in asked:
        found = re.findall(r"(jumpserver_\w+)(?:\{(\w+)=~?\"([^\"]+)\"\})?", expression)
        assert found or "up{" in expression, expression
        for series, label, values in found:
            assert series in names, series
            for value in values.split("|") if label else []:
                assert (series, label, value) in labels, (series, value)


def test_promtool_takes_the_alerts_and_there_are_six() -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert len(rules) == 6
    checked = subprocess.run([need_program("promtool"), "check", "rules", DEPLOY / "alerts.yaml"], capture_output=True)
    assert checked.returncode == 0, checked.stderr
