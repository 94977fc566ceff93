"""What the log says: a line an event, of a length that nobody outside chooses, at a level that can be filtered by."""

from __future__ import annotations

import json
import logging
import math
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

import jumpserver
from demo.cluster import StandIn
from hooks import Denied, Hooks, HooksSettings, LogEvent, log_event
from tests.support import Listener, Program, end_shell, exchange, read_until, request_head, run_program, wait_until


def test_what_went_wrong_can_be_told_from_what_happens_every_day(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "jumpserver")
    for event in ("error", "trouble", "warning", "login", "logout", "ready"):
        log_event(event, session="x")
    levels = [(record.levelname, record.getMessage().split()[0]) for record in caplog.records]
    assert levels == [
        ("ERROR", "error"),
        ("ERROR", "trouble"),
        ("WARNING", "warning"),
        ("INFO", "login"),
        ("INFO", "logout"),
        ("INFO", "ready"),
    ]


def test_a_stranger_cannot_write_long_lines_into_it(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster) as server:
        exchange(server.port, request_head(f"/records/play?filename={'a' * 30_000}&token=a.b.c"))
        server.end()
        (line,) = (line for line in server.log().splitlines() if " refusal " in line)
        assert line.endswith('reason="this link is not valid; open it again from the platform"')
        assert len(line) < 5000


def test_nor_can_a_platform_that_refuses(tmp_path: Path) -> None:
    body = json.dumps({"message": "no" * 100_000}).encode()
    head = f"HTTP/1.1 403 No\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    def refuse(sock: socket.socket) -> None:
        read_until(sock, b"}")
        sock.sendall(head + body)

    platform = Listener(refuse)
    try:
        own = Hooks(HooksSettings(db=tmp_path / "db", validate_url=f"http://127.0.0.1:{platform.port}"))
        with pytest.raises(Denied) as caught:
            own.validate_ssh_token("T")
    finally:
        platform.close()
    assert str(caught.value) == "no" * 2048


def test_an_ipv6_address_and_its_port_can_be_told_apart(tmp_path: Path, cluster: StandIn) -> None:
    with Program(tmp_path, cluster, config='[Server]\nlisten = "[::1]:0"\n') as server:
        server.end()
        assert f" listen=[::1]:{server.port} " in server.log()


# -- forms ------------------------------------------------------------------------------------------------------------

FAULTY = """
import hooks

class Own(hooks.Hooks):
    def validate_ssh_token(self, token):
        if super().validate_ssh_token(token).user == "unlucky":
            raise ValueError(f"a fault\\n<0>of our own, with {token}")
        return super().validate_ssh_token(token)
"""


def give_to_journal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server's log be what systemd says is the journal's stream."""
    log_file = folder / "log"
    log_file.touch()
    status = log_file.stat()
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")


def day(folder: Path, cluster: StandIn) -> tuple[str, str]:
    """The log of a server with a session, a refusal, a fault and a reload that fails; and the token of the fault."""
    with Program(folder, cluster, hooks_file=FAULTY) as server:
        with server.connect() as terminal:
            terminal.wait_for_event("session")
            end_shell(terminal)
        exchange(server.port, request_head("/records/play?filename=%1b%5b31m%0a%c2%9b&token=a.b.c"))
        token = server.token(sub="unlucky")
        with server.connect_with(token) as refused:
            refused.wait_end()
        server.config_file.write_text("no TOML")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "nothing of the configuration has changed" in server.log(), "the reload")
        server.wait_settled()
        assert server.end() == 0
    return server.log(), token


def objects(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


def test_in_the_journal_every_line_has_its_priority_and_no_time_of_its_own(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_to_journal(tmp_path, monkeypatch)
    log, _ = day(tmp_path, cluster)
    assert all(re.match("<[36]>", line) for line in log.splitlines()), log
    assert re.search(r"^<6>login session=", log, re.M) and re.search(r"^<6>stop$", log, re.M)
    assert re.search(r"^<3>error session=\S* hook=validate_ssh_token$", log, re.M)
    assert re.search(r"^<3>Traceback ", log, re.M) and re.search("^<3><0>of our own", log, re.M)


def test_a_log_that_is_no_longer_the_journal_is_not_written_as_such(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    give_to_journal(tmp_path / "other", monkeypatch)
    log, _ = day(tmp_path, cluster)
    assert re.search(r"^\d{4}-\d\d-\d\d \S+ INFO login session=", log, re.M) and not re.search("^<[36]>", log, re.M)


def test_as_json_every_line_is_one_event_without_control_characters_or_tokens(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_FORMAT", "json")
    log, token = day(tmp_path, cluster)
    assert re.fullmatch(r"[ -~\n]+", log) and token not in log
    found = {event["event"]: event for event in objects(log) if event["level"] == "info"}
    assert found["login"]["user"] == "alice" and re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found["login"]["time"]
    )
    assert found["logout"]["exit"] == 0 and 0 < found["logout"]["seconds"] < 60
    assert [event["file"] for event in objects(log) if "file" in event and event["event"] == "refusal"] == [
        "\x1b[31m\n\x9b"
    ]
    faults = [event for event in objects(log) if event["level"] == "error"]
    assert "\n<0>of our own, with [token]" in faults[0]["traceback"]
    assert faults[0]["hook"] == "validate_ssh_token"
    assert faults[1]["error"].startswith("nothing of the configuration has changed:")


def test_json_in_the_journal_is_json_once_the_journal_has_taken_the_priority(
    tmp_path: Path, cluster: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_to_journal(tmp_path, monkeypatch)
    monkeypatch.setenv("LOG_FORMAT", "json")
    log, _ = day(tmp_path, cluster)
    priorities = {json.loads(line[3:])["level"]: line[:3] for line in log.splitlines()}
    assert priorities == {"info": "<6>", "error": "<3>"}


def test_a_line_of_somebody_else_is_an_object_too() -> None:
    form = jumpserver.log_format("json", to_journal=False)
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "%s of\x1b 3", (2,), sys.exc_info())
    line = form.format(record)
    said = json.loads(line)
    assert (said["level"], said["event"]) == ("warning", "message")
    assert said["message"].startswith("2 of\x1b 3\nTraceback ") and said["message"].endswith("ValueError: a\nb")
    assert "\n" not in line


def test_numbers_stay_numbers_and_what_is_none_is_text() -> None:
    event = LogEvent("x", {"a": 1.23456, "b": 7, "c": None, "d": True, "e": math.nan, "f": Path("/x"), "g": "y" * 9999})
    said = event.as_json()
    assert (said["a"], said["b"], said["c"], said["d"], said["e"], said["f"]) == (1.235, 7, None, True, "nan", "/x")
    assert said["g"] == "y" * 4096
    assert str(LogEvent("x", {"a": {"b": "\n"}})) == 'x a={"b": "\\n"}'


def test_why_it_cannot_start_is_an_event_where_a_machine_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "jumpserver.toml"
    config.write_text("[Nonsense]\n")
    plain = run_program("-jumpserver", config)
    monkeypatch.setenv("LOG_FORMAT", "json")
    (said,) = objects(run_program("-jumpserver", config).stderr)
    assert plain.stderr == f"jumpserver: {said['error']}\n" and (said["event"], said["level"]) == ("error", "error")
    checked = run_program("--check", "-jumpserver", config)
    assert (checked.stderr, checked.returncode) == (plain.stderr, 2)


def test_a_form_that_it_does_not_know_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_FORMAT", "xml")
    done = run_program("-jumpserver", tmp_path / "jumpserver.toml")
    assert (done.returncode, done.stderr) == (2, "jumpserver: the variable LOG_FORMAT must be text or json\n")
