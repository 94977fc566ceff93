"""The command line: the server's own, and its commands."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

import hooks
import jumpserver
from tests.support import PROGRAM, run_program


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "records").mkdir()
    (tmp_path / "jumpserver.toml").write_text("")
    return tmp_path / "jumpserver.toml"


def test_help_names_every_command() -> None:
    said = run_program("--help").stdout
    for name in ("commands", "grep", "transcript", "verify", "retire", "init"):
        assert f"\n    {name} " in said


@pytest.mark.parametrize("before", [True, False])
def test_the_configuration_is_named_before_or_after_a_command(config: Path, before: bool) -> None:
    named = ("-jumpserver", config)
    done = run_program(*named, "commands") if before else run_program("commands", *named)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_must_be_mended_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = run_program("commands", "-jumpserver", tmp_path / "no.toml")
    assert done.returncode == 2
    assert done.stderr == f"jumpserver: {tmp_path}/no.toml: cannot be read: No such file or directory\n"


def test_a_wrong_option_is_status_2() -> None:
    done = run_program("commands", "--since", "soon")
    assert done.returncode == 2
    assert done.stderr.endswith("'soon' is neither a date such as 2026-11-25 nor an age such as 7d\n")


def test_a_moment_is_a_date_or_an_age() -> None:
    assert jumpserver.argument_time("2026-11-25") == datetime(2026, 11, 25).timestamp()
    assert jumpserver.argument_time("2026-11-25T10:30:00+00:00") == 1795602600
    assert time.time() - jumpserver.argument_time("2w") - 14 * 86400 < 60
    assert jumpserver.parse_age("90m") == 5400


LOGIN = datetime(2026, 11, 25, 10, 0, 0).timestamp()  # local time


@pytest.fixture
def ledger(config: Path) -> hooks.Ledger:
    """With two sessions; who uses it opens and closes it."""
    made = hooks.Ledger(config.parent / "records" / "sessions.db")
    made.open()
    for session_id, user, login_at in ("a", "alice", LOGIN), ("b", "", LOGIN + 3600):
        auth = hooks.TokenAuthData("shop", "cart-1", user=user)
        made.login(hooks.SessionInfo(session_id, f"{session_id}.cast", auth, "192.0.2.1", login_at))
    made.add_commands(
        [hooks.Command("a", 1.0, "ls", 0), hooks.Command("b", 61.0, "kubectl delete ns \x1b[31mx\ny", None)]
    )
    made.close()
    return made


@pytest.mark.parametrize(
    ("chosen", "texts"),
    [
        ((), ["kubectl", "ls"]),
        (("ls",), ["ls"]),
        (("DELETE",), ["kubectl"]),
        (("--user", "alice"), ["ls"]),
        (("--since", "2026-11-25T10:30"), ["kubectl"]),
        (("--since", "2026-11-25T10:30", "ls"), []),
    ],
)
def test_commands_are_printed_as_chosen_the_newest_first(
    config: Path, ledger: hooks.Ledger, chosen: tuple[str, ...], texts: list[str]
) -> None:
    done = run_program("commands", *chosen, "-jumpserver", config)
    assert (done.returncode, done.stderr) == (0, "")
    lines = {
        "ls": "2026-11-25 10:00:01 alice shop/cart-1 ls",
        "kubectl": "2026-11-25 11:01:01 - shop/cart-1 kubectl delete ns \\x1b[31mx\\ny",
    }
    assert done.stdout.splitlines() == [lines[text] for text in texts]


def test_commands_come_page_by_page(config: Path, ledger: hooks.Ledger) -> None:
    ledger.open()
    ledger.add_commands(hooks.Command("a", number + 0.5, f"command {number}", 0) for number in range(1200))
    ledger.close()
    done = run_program("commands", "command", "-jumpserver", config)
    assert [line.split(" ")[-1] for line in done.stdout.splitlines()] == [str(n) for n in reversed(range(1200))]


def test_who_reads_no_further_ends_a_command_without_a_word(config: Path, ledger: hooks.Ledger) -> None:
    ledger.open()
    ledger.add_commands(hooks.Command("a", number + 0.5, "x" * 1000, 0) for number in range(1000))
    ledger.close()
    command = [sys.executable, str(PROGRAM), "commands", "-jumpserver", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stderr is not None
        assert program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == b""


def test_a_locale_that_cannot_say_something_escapes_it(config: Path, ledger: hooks.Ledger) -> None:
    ledger.open()
    ledger.add_commands([hooks.Command("a", 1.5, "echo 日本", 0)])
    ledger.close()
    command = [sys.executable, str(PROGRAM), "commands", "echo", "-jumpserver", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONIOENCODING": "ascii"}, timeout=20)
    assert done.stdout == "2026-11-25 10:00:01 alice shop/cart-1 echo \\u65e5\\u672c\n"
