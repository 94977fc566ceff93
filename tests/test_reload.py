"""SIGHUP: a good configuration counts from then on, a bad one changes nothing, and what cannot change is named."""

from __future__ import annotations

import contextlib
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from demo.cluster import StandIn
from tests.support import WAIT_SECONDS, Program, end_shell, wait_until


def reload(server: Program, text: str, event: str = " reload") -> str:
    """Write the configuration, and send SIGHUP; returns what the log says then."""
    before = len(server.log())
    server.config_file.write_text(text)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: f"{event}" in server.log()[before:], "the reload")
    return server.log()[before:]


def headers(server: Program) -> str:
    with urllib.request.urlopen(f"{server.url}healthz", timeout=WAIT_SECONDS) as answer:
        return str(answer.headers)


def test_a_good_configuration_counts_for_new_terminals_and_open_ones_go_on(cluster: StandIn, tmp_path: Path) -> None:
    with Program(tmp_path, cluster) as server, server.connect() as terminal:
        terminal.wait_for_event("session")
        old_token, old_secret = server.token(), server.secret
        text = server.config_file.read_text()
        server.secret = "n" * 40
        text = text.replace(old_secret, server.secret).replace(
            "[Server]",
            '[Server]\nframe_ancestors = ["https://platform.example"]\nplatform_url = "https://back.example/"',
        )
        said = reload(server, f"{text}\n[Limits]\nmax_sessions_per_user = 2\nmax_duration = 1\n")
        assert "ERROR" not in said and "as before" not in said
        assert "frame-ancestors https://platform.example" in headers(server)
        with urllib.request.urlopen(server.url, timeout=WAIT_SECONDS) as page:
            assert b"https://back.example/" in page.read()
        with server.connect_with(old_token) as refused:
            assert "not valid" in refused.wait_end()["reason"]
        with server.connect() as short:
            assert short.wait_end()["reason"] == "the session has lasted as long as it may"
        terminal.type("echo a$((1+1))b\n")
        terminal.wait_for("a2b")
        assert end_shell(terminal)["reason"] == "the shell has ended"


def test_a_reload_reads_the_files_of_secrets_again(cluster: StandIn, tmp_path: Path) -> None:
    with Program(tmp_path, cluster) as server:
        file = tmp_path / "token"
        text = server.config_file.read_text().replace(f'"{server.secret}"', '{file = "token"}')
        for secret in "a" * 40, "b" * 40:
            old_token, server.secret = server.token(), secret
            file.write_text(f"{secret}\n")
            said = reload(server, text)
            assert secret not in said
            with server.connect_with(old_token) as refused:
                assert "not valid" in refused.wait_end()["reason"]
            with server.connect() as terminal:
                assert end_shell(terminal)["reason"] == "the shell has ended"


def test_fewer_terminals_than_are_open_end_none_and_let_none_in(cluster: StandIn, tmp_path: Path) -> None:
    with Program(tmp_path, cluster) as server, server.connect() as terminal:
        terminal.wait_for_event("session")
        reload(server, server.config_file.read_text().replace("[Server]", "[Server]\nmax_sessions = 1"))
        with server.connect() as refused:
            assert refused.wait_end()["reason"].startswith("the server has as many terminals open")
        assert end_shell(terminal)["reason"] == "the shell has ended"


@pytest.mark.parametrize(
    "more", ["[Limits]\nidle_timeout = -1", "[Nonsense]\n", "a = [", "a = " + "[" * 100_000, '[Clusters]\nx = "no"']
)
def test_a_bad_configuration_changes_nothing_and_is_named(cluster: StandIn, tmp_path: Path, more: str) -> None:
    with Program(tmp_path, cluster) as server:
        text = server.config_file.read_text().replace("[Server]", '[Server]\nframe_ancestors = ["https://new.example"]')
        said = reload(server, f"{text.split('[Clusters]')[0]}\n{more}\n", " ERROR ")
        assert " reload" not in said and server.secret not in said
        assert "new.example" not in headers(server)
        with server.connect() as terminal:
            terminal.wait_for_event("session")


def test_what_cannot_change_is_named_and_stays(cluster: StandIn, tmp_path: Path) -> None:
    with Program(tmp_path, cluster) as server:
        text = server.config_file.read_text().replace('"127.0.0.1:0"', '"127.0.0.1:1"\nreuse_port = true')
        text = text.replace('"records"', '"elsewhere"\npublic = true\nmin_free = 1') + '[Audit]\ndb = "other.db"\n'
        said = reload(server, text, "db in [Audit] is as before")
        for key in ("listen in [Server]", "reuse_port in [Server]", "path in [Record]", "min_free in [Record]"):
            assert f"{key} is as before" in said
        assert "admin_listen" not in said and "[Hooks]" not in said
        with server.connect() as terminal:
            terminal.wait_for_event("session")
            end_shell(terminal)
        server.wait_settled()
        assert len(server.recordings()) == len(server.rows()) == 1
        assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "other.db").exists()
        with urllib.request.urlopen(f"{server.url}records/play?filename={server.recordings()[0]}") as recording:
            assert recording.status == 200  # `public` of the same section has changed


def test_a_reload_does_not_hurry_a_drain(cluster: StandIn, tmp_path: Path) -> None:
    with Program(tmp_path, cluster, server_lines="drain_timeout = 61") as server, server.connect() as terminal:
        terminal.wait_for_event("session")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: " drain " in server.log(), "the drain")
        server.process.send_signal(signal.SIGHUP)
        while not any("in 60 seconds" in event.get("text", "") for event in terminal.events):
            assert terminal.close_code is None
            terminal.step()
        assert end_shell(terminal)["reason"] == "the shell has ended"
        assert server.process.wait(20) == 0


def test_the_service_manager_hears_of_a_reload(
    cluster: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.settimeout(WAIT_SECONDS)
        manager.bind(str(tmp_path / "notify"))
        with Program(tmp_path, cluster) as server:

            def next_state() -> bytes:
                while True:
                    state = manager.recv(4096)
                    if not state.startswith(b"STATUS="):
                        return state

            assert next_state() == b"READY=1"
            reload(server, server.config_file.read_text())
            assert [next_state(), next_state()] == [b"RELOADING=1", b"READY=1"]
