"""A recording that is not on disk any more is played from where a hook brings it; no other is asked for."""

from __future__ import annotations

import contextlib
import os
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.cluster import StandIn
from hooks import Denied, HookError
from recorder import RecordError, recording_name, recording_path
from tests.support import RunningServer, answer_of, newest
from tests.test_records import Answer, Recorded, ask, record

# Keeps recordings in a folder beside that of the server; says no, breaks, or is lost for words when it is told to.
OWN = """
import hooks
class Own(hooks.Hooks):
    asked = ()
    failure = None
    def fetch_recording(self, filename):
        self.asked += (filename,)
        if self.failure:
            raise self.failure
        path = self.settings.records.parent / "archive" / filename
        return path if path.exists() else None
"""


@pytest.fixture
def server(cluster: StandIn, tmp_path: Path) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path, cluster, hooks_file=OWN)
    try:
        yield running
    finally:
        running.stop()


def archived(server: RunningServer) -> Recorded:
    """A recording that was moved away."""
    recorded = record(server)
    path = server.folder / "archive" / recorded.name
    path.parent.mkdir(parents=True)
    os.rename(recorded.path, path)
    return Recorded(recorded.name, path, recorded.data)


def play(server: RunningServer, filename: str, **headers: str) -> Answer:
    return ask(server, server.play_path(filename), **headers)


def asked(server: RunningServer) -> tuple[str, ...]:
    hook: Any = server.hooks
    return tuple(hook.asked)


@pytest.mark.parametrize("absolute", [False, True])
def test_it_is_played_as_if_it_were_still_there(server: RunningServer, absolute: bool) -> None:
    recorded = archived(server)
    name = str(server.config.record_path / recorded.name) if absolute else recorded.name
    answer = play(server, name)
    assert (answer.status, answer.body, answer.headers["X-Recording"]) == (200, recorded.data, "complete")
    assert asked(server) == (recorded.name,)
    part = play(server, name, Range="bytes=10-19")
    assert (part.status, part.body) == (206, recorded.data[10:20])
    known = play(server, name, If_None_Match=answer.headers["ETag"])
    assert known.status == 304


def test_one_that_is_on_disk_is_not_asked_for(server: RunningServer) -> None:
    recorded = record(server)
    assert play(server, recorded.name).body == recorded.data
    assert asked(server) == ()


def test_one_that_is_nowhere_is_not_found(server: RunningServer) -> None:
    name = str(recording_path(Path(), str(uuid.uuid4())))
    assert (play(server, name).status, asked(server)) == (404, (name,))


def test_one_that_vanishes_again_is_not_found(server: RunningServer) -> None:
    recorded = archived(server)
    recorded.path.unlink()
    recorded.path.symlink_to("nowhere")
    assert play(server, recorded.name).status == 404


def test_nobody_is_asked_for_one_that_the_token_does_not_allow(server: RunningServer) -> None:
    recorded = archived(server)
    token = server.link_token(filename="other.cast")
    assert ask(server, f"/records/play?filename={recorded.name}&token={token}").status == 403
    assert ask(server, f"/records/play?filename={recorded.name}").status == 401
    assert asked(server) == ()


ID = "7d3a1c5e-0b1f-4c8e-9a55-6f0e3b1d2c4a"
NAME = str(recording_path(Path(), ID))
NO_NAMES = [
    "",
    f"{ID}.cast",
    f"{NAME}.gz",
    NAME.replace(ID, ID.upper()),
    NAME.replace(ID, "7d3a1c5e"),
    str(recording_path(Path(), "7d3a1c5e")),
    str(recording_path(Path(), ID.upper())),
    NAME.replace(".cast", ".txt"),
    f"00/{NAME[3:]}",
    f"{NAME[:3]}../{NAME}",
    f"x/../{NAME}",
    f"/{NAME}",
    f"/etc/{NAME}",
    "../../etc/passwd",
    f"{NAME}\0",
    f"{NAME}\n",
    "a" * 10_000,
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_no_recording_can_have_reaches_no_hook(server: RunningServer, name: str) -> None:
    assert play(server, urllib.parse.quote(name, safe="")).status == 404
    assert asked(server) == ()
    with pytest.raises(RecordError, match="no such recording"):
        recording_name(server.config.record_path, name)


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        (Denied("it is under seal"), 403, "it is under seal\n"),
        (HookError("no way to the archive"), 503, "this recording cannot be fetched now; try again later\n"),
        (KeyError("of ours"), 503, "this recording cannot be fetched now; try again later\n"),
    ],
)
def test_a_hook_that_cannot_or_may_not_says_so_in_words(
    server: RunningServer, caplog: pytest.LogCaptureFixture, failure: Exception, status: int, words: str
) -> None:
    recorded = archived(server)
    hook: Any = server.hooks
    hook.failure = failure
    answer = play(server, recorded.name)
    assert (answer.status, answer.body.decode()) == (status, words)
    logged = [record.getMessage() for record in caplog.records if "hook=fetch_recording" in record.getMessage()]
    assert len(logged) == (0 if status == 403 else 1)
    assert all(str(failure) in line for line in logged)


def test_calls_are_counted(server: RunningServer) -> None:
    play(server, archived(server).name)
    assert 'jumpserver_hook_seconds_count{hook="fetch_recording"} 1.0\n' in answer_of(server, "metrics")[1]


def test_by_default_there_is_none_elsewhere(cluster: StandIn, tmp_path: Path) -> None:
    running = RunningServer(tmp_path, cluster)
    with contextlib.ExitStack() as stack:
        stack.callback(running.stop)
        recorded = archived(running)
        assert play(running, recorded.name).status == 404


def test_a_name_is_made_relative_to_the_record_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path, Path(), Path("records")):
        assert recording_name(root, NAME) == recording_name(root, str(root.absolute() / NAME)) == NAME


def test_a_real_sessions_recording_may_be_moved_away(server: RunningServer) -> None:
    with server.connect() as terminal:
        terminal.type("echo here-$((40 + 2)); exit\n")
        terminal.wait_end()
    server.wait_settled()
    path = newest(server)
    name = str(path.relative_to(server.config.record_path))
    target = server.folder / "archive" / name
    target.parent.mkdir(parents=True)
    os.rename(path, target)
    answer = play(server, str(path))
    assert answer.status == 200 and b"here-42" in answer.body and asked(server) == (name,)
