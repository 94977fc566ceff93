"""A server whose pages are not installed whole says so on the pages."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jumpserver
from tests.support import wait_until

ROOT = Path(jumpserver.__file__).parent
XTERM = "node_modules/@xterm/xterm/lib/xterm.mjs"
PLAYER = "node_modules/asciinema-player/dist/bundle/asciinema-player.min.js"


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """The server's files without node_modules, ready to start."""
    (tmp_path / "static").mkdir()
    modules = [ROOT / f"{name}.py" for name in ("jumpserver", "k8s_exec", "recorder", "hooks")]
    for file in (*modules, *(path for path in (ROOT / "static").iterdir() if path.name != "node_modules")):
        os.symlink(file, tmp_path / file.relative_to(ROOT))
    (tmp_path / "jumpserver.toml").write_text('[Server]\nlisten = "127.0.0.1:0"\n[Record]\npath = "records"\n')
    return tmp_path


@pytest.fixture
def port(installation: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """Where a server of that installation listens; with a parameter, that asset is the only one missing."""
    if missing := getattr(request, "param", ""):
        for name in jumpserver.ASSETS.values():
            if name.startswith("node_modules/") and name != missing:
                (installation / "static" / name).parent.mkdir(parents=True, exist_ok=True)
                os.symlink(ROOT / "static" / name, installation / "static" / name)
    log = installation / "log"
    with log.open("wb") as opened:
        process = subprocess.Popen([sys.executable, "jumpserver.py"], cwd=installation, stderr=opened)
    try:
        wait_until(lambda: " start " in log.read_text() or process.poll() is not None, "the start", 20)
        found = re.search(r" listen=\S+:(\d+)", log.read_text())
        assert found, log.read_text()
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    with connection.getresponse() as answer:
        status, text = answer.status, answer.read().decode()
    connection.close()
    return status, text


def test_pages_that_are_not_installed_say_so(port: int) -> None:
    for path in ("/", "/index.html", "/player.html", "/terminal.js"):
        assert get(port, path) == (503, f"{jumpserver.NO_PAGE}\n")
    assert get(port, "/healthz")[0] == 200
    assert get(port, "/nothing")[0] == 404


@pytest.mark.parametrize("port", [XTERM, PLAYER], indirect=True)
def test_one_file_that_is_missing_is_enough(port: int) -> None:
    assert get(port, "/") == (503, f"{jumpserver.NO_PAGE}\n")
    assert get(port, "/player.html") == (503, f"{jumpserver.NO_PAGE}\n")


def test_missing_assets_are_named() -> None:
    assets = jumpserver.load_assets()
    assert jumpserver.missing_assets(assets) == []
    del assets[f"/{PLAYER}"]
    assert jumpserver.missing_assets(assets) == [PLAYER]
