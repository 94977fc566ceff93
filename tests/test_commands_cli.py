"""The command line: the server's own, and its commands."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

import jumpserver
from tests.support import run_program


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "records").mkdir()
    (tmp_path / "jumpserver.toml").write_text("")
    return tmp_path / "jumpserver.toml"


def test_help_names_every_command() -> None:
    said = run_program("--help").stdout
    for name in ("commands",):
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
    assert jumpserver.parse_moment("2026-11-25") == datetime(2026, 11, 25).timestamp()
    assert jumpserver.parse_moment("2026-11-25T10:30:00+00:00") == 1795602600
    assert time.time() - jumpserver.parse_moment("2w") - 14 * 86400 < 60
    assert jumpserver.parse_age("90m") == 5400
