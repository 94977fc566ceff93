"""What `make dist` builds: the one file does the main job with nothing but a Python; the folder and the wheel start."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import jumpserver
from demo.cluster import StandIn
from tests.support import Program, answer_of, end_shell, need_program, run_program, wait_until
from tests.test_locks import pins
from tests.test_pages import open_terminal, phase, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
ALONE = (sys.executable, "-I", "-S")  # without site-packages
HOOKS = """
import hooks

class Own(hooks.Hooks):
    def validate_ssh_token(self, token):
        auth = super().validate_ssh_token(token)
        if auth.user == "unlucky":
            raise ValueError("a fault of our own")
        return auth
"""


def build(folder: Path, root: Path = ROOT, umask: int = 0o022) -> None:
    command = [sys.executable, str(root / "deploy/dist.py"), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, umask=umask)


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is, built once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "dist.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "dist").exists():
            build(shared / "unfinished")
            (shared / "unfinished").rename(shared / "dist")
    return shared / "dist"


@pytest.fixture
def pyz(dist: Path, tmp_path: Path) -> Path:
    """The one file, in a folder of its own."""
    (tmp_path / "bin").mkdir()
    return Path(shutil.copy2(dist / "jumpserver.pyz", tmp_path / "bin"))


@pytest.fixture
def program(pyz: Path, cluster: StandIn, tmp_path: Path) -> Iterator[Program]:
    """It runs, from that file and nothing else but the standard library."""
    with Program(tmp_path, cluster, python=ALONE, program=pyz, hooks_file=HOOKS) as running:
        yield running
        assert running.end() == 0
        running.wait_settled()
        cluster.wait_until(lambda: not cluster.shells())


def extracted(dist: Path, folder: Path) -> Path:
    """The folder for vendoring, as it lies in another repository."""
    (file,) = dist.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(folder)
    return folder / file.name[: -len(".tar.gz")]


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_the_file_is_small_and_can_be_executed_where_it_lies(pyz: Path) -> None:
    assert pyz.stat().st_size < 2_000_000
    assert stat.S_IMODE(pyz.stat().st_mode) == 0o755
    assert pyz.read_bytes().startswith(b"#!/usr/bin/env python3\nPK")
    for arguments in (["init"], ["--check"]):  # both look into the file, by the path that was typed
        done = subprocess.run(["./jumpserver.pyz", *arguments], cwd=pyz.parent, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_it_holds_source_and_the_pages_files_and_nothing_else(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
        assets = {f"static/{name}" for name in jumpserver.ASSETS.values()}
        assert {name.removesuffix(".gz") for name in names if name.startswith("static/")} == assets
        for name in names:
            data = archive.read(name)
            if name.endswith(".gz"):
                data = gzip.decompress(data)
            if name.startswith("static/"):
                assert data == (ROOT / name.removesuffix(".gz")).read_bytes(), name
            assert b"\0" not in data, name
    assert names == sorted(names)
    docs = {file.relative_to(ROOT).as_posix() for file in ROOT.glob("docs/**/*.md")}
    assert {"README.md", "README.zh-CN.md", "docs/architecture.svg", *docs} <= set(names)
    packages = {name.partition("/")[0] for name in names if name.endswith(".py") and "/" in name}
    assert packages == {"deploy", "h11", "simple_websocket", "tomli", "websocket", "wsproto"}


def test_it_bundles_what_is_locked_for_the_oldest_python_each_with_its_licence(pyz: Path) -> None:
    oldest = {"python_version": "3.9", "python_full_version": "3.9.0"}
    locked = [pin for pin in pins("requirements.txt") if pin.marker is None or pin.marker.evaluate(oldest)]
    wanted = {f"{pin.name.replace('-', '_')}-{next(iter(pin.specifier)).version}" for pin in locked}
    lock = json.loads((ROOT / "static/package-lock.json").read_text())
    wanted |= {name[len("node_modules/") :] for name in lock["packages"] if name}
    licences = [name for name in zipfile.ZipFile(pyz).namelist() if name.startswith("licences/")]
    assert {name.partition("/")[2].rpartition("/")[0] for name in licences} == wanted


def commit_of(folder: Path) -> str:
    return subprocess.check_output(["git", "-C", str(folder), "rev-parse", "HEAD"], text=True).strip()


def test_two_folders_with_the_same_commit_build_the_same_bytes(tmp_path: Path) -> None:
    need_program("git")
    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.example"]
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True)
    for name in tracked.splitlines():
        if (ROOT / name).is_file():
            (first / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, first / name)
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], cwd=first, check=True)
    subprocess.run([*git, "clone", "-q", first, second], check=True)
    for root in (first, second):
        (root / "static/node_modules").symlink_to(ROOT / "static/node_modules")
        (root / "build").symlink_to(ROOT / "build")
    build(tmp_path / "1", first)
    build(tmp_path / "2", second, umask=0o077)
    for name in sorted(os.listdir(tmp_path / "1")):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    done = run_program("--version", program=tmp_path / "1/jumpserver.pyz")
    assert done.stdout == f"jumpserver {jumpserver.__version__} ({commit_of(first)})\n"


def test_a_build_without_the_pages_assets_and_npm_says_what_to_do(tmp_path: Path) -> None:
    for name in ("bench", "deploy", "docs", "static"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules"))
    for file in (*ROOT.glob("*.py"), *ROOT.glob("*.md"), ROOT / "LICENSE"):
        shutil.copy(file, tmp_path)
    command = [sys.executable, "deploy/dist.py"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "run `npm ci` in the folder static" in done.stderr


# -- the one file at work ---------------------------------------------------------------------------------------------


def test_a_terminal_is_recorded_and_played_back(program: Program) -> None:
    with program.connect() as terminal:
        terminal.type("echo recorded-$((1 + 1))\n")
        terminal.wait_for("recorded-2")
        assert end_shell(terminal)["reason"]
    (filename,) = program.recordings()
    status, text = answer_of(program, program.play_path(filename)[1:])
    assert status == 200 and "recorded-2" in text
    assert program.rows()[0]["user"] == "alice"


def test_its_pages_open_a_terminal_and_play_the_recording(program: Program, page: Page) -> None:
    open_terminal(page, program.terminal_url())
    run(page, "printf 'from-the-%s \\344\\275\\240\\n' zip; exit")
    phase(page, "ended")
    page.goto(program.player_url(program.recordings()[-1]))
    page.get_by_label("Speed").select_option("8")
    expect(page.locator("#player .ap-term")).to_contain_text("from-the-zip \u4f60")


def test_files_in_static_beside_it_take_the_place_of_its_own_after_a_reload_too(program: Program, pyz: Path) -> None:
    assert "own style" not in answer_of(program, "style.css")[1]
    assets = pyz.parent / "static"
    assets.mkdir()
    (assets / "style.css").write_text("/* own style */")
    program.process.send_signal(signal.SIGHUP)
    wait_until(lambda: answer_of(program, "style.css") == (200, "/* own style */"), "the operator's file")
    assert answer_of(program, "terminal.js") == (200, (ROOT / "static/terminal.js").read_text())


def test_another_version_that_takes_its_place_while_it_runs_disturbs_nothing(program: Program, pyz: Path) -> None:
    pyz.write_bytes(os.urandom(pyz.stat().st_size))
    platform_url = "https://back.example/"
    config = program.config_file.read_text()
    program.config_file.write_text(config.replace("[Server]", f'[Server]\nplatform_url = "{platform_url}"'))
    program.process.send_signal(signal.SIGHUP)
    wait_until(lambda: platform_url in answer_of(program, "")[1], "the reload")
    for name in sorted(jumpserver.ASSETS.values()):
        assert answer_of(program, name)[0] == 200, name
    with program.connect() as terminal:
        terminal.wait_for_event("session")
        end_shell(terminal)
    assert "Traceback" not in program.log()
    with program.connect(sub="unlucky") as terminal:
        assert "a fault" not in terminal.wait_end()["reason"]
    assert "/bin/jumpserver.pyz/hooks.py" in program.log() or "/bin/jumpserver.pyz/jumpserver.py" in program.log()
    assert "validate_ssh_token(token)" in program.log()  # the line of jumpserver.py that called


def test_under_the_name_jumpserver_it_takes_the_place_of_the_original(
    dist: Path, cluster: StandIn, tmp_path: Path
) -> None:
    """Its unit: ``WorkingDirectory=/path/to/jumpserver``, ``ExecStart=…/jumpserver -jumpserver …/jumpserver.toml``."""
    shutil.copy2(dist / "jumpserver.pyz", tmp_path / "jumpserver")
    with Program(tmp_path, cluster, python=(), program=tmp_path / "jumpserver") as program:
        with program.connect() as terminal:
            terminal.wait_for_event("session")
        assert answer_of(program, "player.html")[0] == 200
        assert program.end() == 0


def python_here(minor: int) -> str:
    """A Python 3 of that minor version; "" if there is none."""
    names = [f"/usr/bin/python3.{minor}", *map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3"))]
    return next((name for name in names if os.access(name, os.X_OK)), "")


@pytest.mark.parametrize("minor", [minor for minor in range(9, 15) if python_here(minor)])
def test_it_runs_on_every_python_that_is_here(pyz: Path, cluster: StandIn, tmp_path: Path, minor: int) -> None:
    python = (python_here(minor), "-I", "-S", "-W", "error")
    with Program(tmp_path, cluster, python=python, program=pyz) as program:
        with program.connect() as terminal:
            terminal.type("echo on-$((1 + 1))\n")
            terminal.wait_for("on-2")
            end_shell(terminal)
        (filename,) = program.recordings()
        assert "on-2" in answer_of(program, program.play_path(filename)[1:])[1]
        assert answer_of(program, "")[0] == 200
        assert program.end() == 0
        assert "Warning" not in program.log() and "Traceback" not in program.log()


# -- a first configuration --------------------------------------------------------------------------------------------


def init(program: Path, folder: Path, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ALONE, program, "init", folder], capture_output=True, text=True, umask=umask)


def test_init_writes_a_configuration_that_is_good_with_a_secret_of_its_own(pyz: Path, tmp_path: Path) -> None:
    secrets = set()
    for name in ("a", "b/c"):
        folder = tmp_path / name
        done = init(pyz, folder, umask=0o077)
        assert (done.returncode, done.stderr) == (0, "")
        config = folder / "jumpserver.toml"
        assert stat.S_IMODE(config.stat().st_mode) == 0o640
        assert {stat.S_IMODE((folder / name).stat().st_mode) for name in ("nginx.conf", "our_hooks.py")} == {0o644}
        checked = subprocess.run([*ALONE, pyz, "--check", "-jumpserver", config], capture_output=True, text=True)
        assert (checked.stdout, checked.stderr) == (f"{config}: good\n", "")
        secrets.add(jumpserver.load_config(config).Token.secret)
        assert secrets & set(done.stdout.split()) == set()
    assert len(secrets) == 2 and min(map(len, secrets)) >= 43


def test_every_line_that_init_leaves_out_is_accepted_as_it_stands(pyz: Path, tmp_path: Path) -> None:
    init(pyz, tmp_path)
    config = tmp_path / "jumpserver.toml"
    text, count = re.subn(r"^# (\w+ = )", r"\1", config.read_text(), flags=re.M)
    config.write_text(text)
    (tmp_path / "production.kubeconfig").write_text(
        "current-context: a\ncontexts: [{name: a, context: {cluster: a}}]\n"
        "clusters: [{name: a, cluster: {server: 'https://192.0.2.1'}}]\n"
    )
    done = subprocess.run([*ALONE, pyz, "--check", "-jumpserver", config], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert count >= 10


def test_the_unit_that_init_writes_starts_this_file_with_this_configuration(pyz: Path, tmp_path: Path) -> None:
    done = init(pyz, tmp_path / "a")
    unit = (tmp_path / "a/jumpserver.service").read_text()
    config = tmp_path / "a/jumpserver.toml"
    assert f"\nExecStart={sys.executable} {pyz} -jumpserver {config}\n" in unit
    assert f"\nWorkingDirectory={config.parent}\n" in unit and "/opt/" not in unit and "/data/" not in unit
    assert f"\nReadWritePaths={jumpserver.load_config(config).record_path}\n" in unit
    assert [line[:2] for line in done.stdout.splitlines()[-5:]] == ["1.", "2.", "3.", "4.", "5."]


def test_demo_says_where_the_demo_is(pyz: Path) -> None:
    done = subprocess.run([*ALONE, pyz, "demo"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "`make demo`" in done.stdout


def test_init_overwrites_nothing(pyz: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (tmp_path / "nginx.conf").symlink_to(outside)
    (tmp_path / "jumpserver.toml").write_text("mine")
    done = init(pyz, tmp_path)
    assert done.returncode == 0
    assert f"{tmp_path}/jumpserver.toml is there already\n{tmp_path}/our_hooks.py\n" in done.stdout
    assert (tmp_path / "jumpserver.toml").read_text() == "mine" and not outside.exists()


@pytest.mark.parametrize(
    ("folder", "words"), [("file/a", "Not a directory"), ("file", "File exists"), ("a b", "choose a path of letters")]
)
def test_init_says_in_one_line_what_it_cannot_do(pyz: Path, tmp_path: Path, folder: str, words: str) -> None:
    (tmp_path / "file").touch()
    done = init(pyz, tmp_path / folder)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"jumpserver: {tmp_path}/") and words in done.stderr


# -- vendored and installed -------------------------------------------------------------------------------------------


def assert_complete(program: Program) -> None:
    """It has all pages, opens a terminal, warns of nothing, and ends in order."""
    for name in sorted(jumpserver.ASSETS.values()):
        assert answer_of(program, name)[0] == 200, name
    with program.connect() as terminal:
        terminal.wait_for_event("session")
    assert program.end() == 0
    assert "warning" not in program.log()


def test_the_folder_starts_from_any_working_directory_with_all_its_pages(
    dist: Path, cluster: StandIn, tmp_path: Path
) -> None:
    vendored = extracted(dist, tmp_path / "ops" / "vendor")
    before = sorted(vendored.rglob("*"))
    with Program(tmp_path, cluster, python=(sys.executable, "-B"), program=vendored / "jumpserver.py") as program:
        assert_complete(program)
    assert sorted(vendored.rglob("*")) == before


def test_what_its_texts_lead_to_is_in_the_folder(dist: Path, tmp_path: Path) -> None:
    vendored = extracted(dist, tmp_path)
    texts = [text for text in vendored.rglob("*.md") if "static" not in text.parts]
    assert len(texts) > 15
    for text in texts:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text.read_text()):
            assert (text.parent / link).exists(), f"{text.name}: {link}"


def test_what_is_built_of_the_folder_in_another_repository_tells_its_commit(dist: Path, tmp_path: Path) -> None:
    vendored = extracted(dist, tmp_path)
    subprocess.run([need_program("git"), "init", "-q", tmp_path], check=True)
    (vendored / "build").symlink_to(ROOT / "build")
    build(tmp_path / "out", vendored)
    first, second = (run_program("--version", program=folder / "jumpserver.pyz") for folder in (dist, tmp_path / "out"))
    assert first.stdout == second.stdout
    assert commit_of(ROOT) in first.stdout


def test_pip_installs_a_command_with_pages_and_needs_nothing_to_build_it(
    dist: Path, cluster: StandIn, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "venv/bin/python")]
    wheels = str(ROOT / "build/wheels")  # of the dependencies; there since ``dist`` was built
    command = [*pip, "install", "--quiet", "--no-index", "--find-links", wheels, str(ROOT)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_CONFIG_FILE": os.devnull})
    command_of_venv = tmp_path / "venv/bin/jumpserver"
    with Program(tmp_path, cluster, python=(), program=command_of_venv, hooks_file=HOOKS) as program:
        assert_complete(program)
    shown = subprocess.check_output([*pip, "show", "--files", "k8s-jumpserver"], text=True)
    assert f"Version: {jumpserver.__version__}\n" in shown
    assert f"/k8s_jumpserver/static/{jumpserver.ASSETS['/']}" in shown.replace("  ", "/")


def test_the_wheel_asks_for_what_the_server_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.in").read_text().splitlines())
    assert sorted(line.replace('"', "'") for line in lines if line) == sorted(project["dependencies"])
