"""What a setup installs is pinned with hashes, holds all that was asked for, and names no place to fetch it from."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import need_program

ROOT = Path(__file__).parent.parent
LOCKS = ["requirements.txt", "requirements-demo.txt", "requirements-dev.txt"]
PINNED = [*LOCKS, "requirements-postgresql.txt"]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entries(lock: str) -> list[str]:
    """What pip sees: lines joined, comments and blanks gone."""
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def pins(lock: str) -> list[Requirement]:
    return [Requirement(entry.partition("--hash")[0]) for entry in entries(lock)]


def intents(lock: str) -> list[Requirement]:
    """What the ``.in`` file beside the lock asks for, with the files that it includes."""
    found = []
    for line in (ROOT / lock).with_suffix(".in").read_text().splitlines():
        asked = line.partition("#")[0].strip()
        if asked.startswith("-r "):
            found += intents(asked[3:])
        elif asked:
            found.append(Requirement(asked))
    return found


@pytest.mark.parametrize("lock", PINNED)
def test_every_line_is_one_version_with_its_hashes_and_nothing_else(lock: str) -> None:
    assert entries(lock)
    for entry in entries(lock):
        requirement, *hashes = entry.split(" --hash")
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [a-z0-9_ '.<>=!*()]+)? *", requirement, re.I), requirement
        assert hashes, f"no hash: {requirement}"
        assert all(HASH.fullmatch(f"--hash{text.strip()}") for text in hashes), requirement


@pytest.mark.parametrize("lock", PINNED)
def test_lock_and_intents_name_no_host_and_no_path(lock: str) -> None:
    for file in (ROOT / lock, (ROOT / lock).with_suffix(".in")):
        assert not re.search(r"//|index|find-links|@ |\w+\.(org|com|io|net)\b|(^|\s)/\w", file.read_text()), file.name


@pytest.mark.parametrize("lock", PINNED)
def test_everything_asked_for_is_in_the_lock(lock: str) -> None:
    assert intents(lock)
    for wanted in intents(lock):
        found = [pin for pin in pins(lock) if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
        assert found, f"{wanted.name} is missing; run `make locks`"
        for pin in found:
            assert wanted.specifier.contains(next(iter(pin.specifier)).version), f"{pin} is not {wanted}"


@pytest.mark.parametrize("python", ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"])
def test_each_lock_holds_the_smaller_ones(python: str) -> None:
    """One environment serves all targets: what the demo installed, the tests must not exchange."""
    environment = {"python_version": python, "python_full_version": f"{python}.5"}
    chosen = [
        {str(pin).partition(";")[0] for pin in pins(lock) if not pin.marker or pin.marker.evaluate(environment)}
        for lock in LOCKS
    ]
    assert len(chosen[0]) >= 4 and chosen[0] < chosen[1] < chosen[2]


def test_the_image_has_what_the_ledger_in_postgresql_was_tested_with() -> None:
    tested = set(map(str, pins("requirements-dev.txt")))
    assert {str(pin) for pin in pins("requirements-postgresql.txt")} <= tested


def test_what_the_tests_run_with_is_what_the_lock_names() -> None:
    for pin in pins("requirements-dev.txt"):
        if pin.marker is None or pin.marker.evaluate():
            assert pin.specifier.contains(importlib.metadata.version(pin.name)), pin


@pytest.mark.parametrize("folder", ["static", "tests"])
def test_what_npm_installs_is_pinned_with_hashes_and_names_no_host(folder: str) -> None:
    root, *packages = json.loads((ROOT / folder / "package-lock.json").read_text())["packages"].items()
    asked = json.loads((ROOT / folder / "package.json").read_text())["dependencies"]
    assert asked == root[1]["dependencies"] and len(packages) >= len(asked)
    for name, package in packages:
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", package["integrity"]), name
        assert asked.get(name.partition("/")[2], package["version"]) == package["version"], name
        package.pop("funding", None)  # pages of its makers, from which nothing is fetched
        assert "resolved" not in package and "://" not in json.dumps(package), name


@pytest.mark.parametrize(
    ("target", "lock"), [("demo", LOCKS[1]), ("dist", LOCKS[1]), ("bench", LOCKS[1]), ("test", LOCKS[2])]
)
def test_each_target_installs_its_own_lock_and_no_more(target: str, lock: str) -> None:
    command = [need_program("make"), "--dry-run", "--always-make", target]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"pip install .* (\S+\.txt)", said) == [lock]
    assert "npm ci" in said
    assert not {"mypy", "playwright", "hypothesis"} & {pin.name for pin in pins(LOCKS[1])}


@pytest.mark.parametrize("file", ["Makefile", "README.md", "CONTRIBUTING.md", "docs/operate.md", ".ci/run"])
def test_nothing_is_installed_past_the_locks(file: str) -> None:
    for line in (ROOT / file).read_text().splitlines():
        if "pip install" in line:
            assert re.search(
                r"pip install (--quiet )?--require-hashes -r (\$<|requirements\.txt)$|`pip install \.`", line
            ), line
        assert not re.search(r"npm (install|i)\b", line), line
