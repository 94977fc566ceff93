"""Build what is handed out: the one file, the folder for vendoring, and the wheel, of which this is pip's backend.

The same commit, Python and zlib make the same bytes: names are sorted, times are the commit's, modes are fixed.
"""

from __future__ import annotations

import argparse
import ast
import base64
import functools
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipapp
import zipfile
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / "build" / "wheels"  # what was downloaded, by the hashes in requirements.txt
OLDEST = 9  # of Python 3: what is locked for this one runs on all newer ones, too
MODULES = ("hooks.py", "jumpserver.py", "k8s_exec.py", "recorder.py")
TEXTS = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README*.md", "SECURITY.md", "bench/README.md"),
    *("docs/*.md", "docs/zh/*.md", "docs/*.svg"),
)
# What else a folder has in another repository.
SOURCES = (
    "deploy/*",
    "deploy/kubernetes/*/*",
    "docs/images/*",
    "examples/*",
    "static/*",
    "jumpserver.toml",
    "pyproject.toml",
    "requirements.*",
    "requirements-postgresql.*",
)

START = '''\
"""What Python runs first of this file."""

import linecache
import sys
import zipimport

from jumpserver import main

# Another version may take this file's place while the server runs: what tracebacks show is read now.
for module in list(sys.modules.values()):
    if isinstance(getattr(module, "__loader__", None), zipimport.zipimporter):
        linecache.getlines(module.__file__, vars(module))
sys.exit(main())
'''
PACKAGE = '''\
"""The jumpserver as pip installs it: its modules, which find each other by their plain names, as hooks files do."""

import os
import sys


def main() -> int:
    sys.path.insert(0, os.path.dirname(__file__))
    from jumpserver import main

    return main()
'''

Files = dict[str, bytes]  # by their names with slashes


class BuildError(Exception):
    """It cannot be built; the text says what to do."""


# -- what goes in -----------------------------------------------------------------------------------------------------


@functools.cache
def constant(name: str) -> Any:
    """What jumpserver.py says, without importing it: its dependencies may not be installed."""
    for node in ast.parse((ROOT / "jumpserver.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return eval(compile(ast.Expression(node.value), "jumpserver.py", "eval"), {})
    raise KeyError(name)


@functools.cache
def git(*arguments: str) -> str:
    """What git says of this checkout; "" where this is none, or git is missing."""
    if not ((ROOT / ".git").exists() and shutil.which("git")):  # the folder may lie in somebody else's checkout
        return ""
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@functools.cache
def commit() -> str:
    """The commit that is built, with a word where files differ from it; that of the folder that was vendored."""
    differs = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + (" with changes" if differs else "") or constant("__commit__")


@functools.cache
def seconds() -> int:
    """The time of all files, in Unix seconds: the commit's."""
    zip_begins = 315532800  # 1980
    return max(zip_begins, int(os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct") or 0))


def program() -> Files:
    """The modules and the texts, those of ``init`` among them. Raises BuildError."""
    files = found(*MODULES, *TEXTS)
    files["jumpserver.py"] = re.sub(
        rb'^__commit__ = ".*"', f'__commit__ = "{commit()}"'.encode(), files["jumpserver.py"], flags=re.M
    )
    return files | {f"deploy/{name}": (ROOT / "deploy" / name).read_bytes() for name in constant("INIT_MODES")}


def found(*patterns: str) -> Files:
    """The files of those names, as they are here. Raises BuildError when there is none of a name."""
    files: Files = {}
    for pattern in patterns:
        here = [file for file in ROOT.glob(pattern) if file.is_file()]
        if not here:
            raise BuildError(f"{pattern} is missing")
        files.update({file.relative_to(ROOT).as_posix(): file.read_bytes() for file in here})
    return files


def pages() -> Files:
    """The files that pages are made of. Raises BuildError."""
    names = sorted(set(constant("ASSETS").values()))
    if not all((ROOT / "static" / name).is_file() for name in names):
        install_assets()
    return {f"static/{name}": (ROOT / "static" / name).read_bytes() for name in names}


def install_assets() -> None:
    """``npm ci``. Raises BuildError."""
    if not shutil.which("npm"):
        raise BuildError("the pages' assets are missing: run `npm ci` in the folder static; it needs Node.js with npm")
    command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=ROOT / "static", check=True, stdout=sys.stderr)


def packed(files: Files) -> Files:
    """What npm brought, most of the bytes, as browsers get it; our own pages are small, and a setting goes into one."""
    return {
        **{name: data for name, data in files.items() if "/node_modules/" not in name},
        **{f"{name}.gz": gzip.compress(data, 9, mtime=0) for name, data in files.items() if "/node_modules/" in name},
    }


def page_licences() -> Files:
    """Of all that npm installed: some packages hold others."""
    modules = ROOT / "static" / "node_modules"
    found = sorted([*modules.glob("*/LICENSE*"), *modules.glob("@*/*/LICENSE*")])
    return {f"licences/{file.parent.relative_to(modules)}/{file.name}": file.read_bytes() for file in found}


def locked() -> dict[str, list[str]]:
    """Each pin of requirements.txt that counts for the oldest Python, without its condition, and its hashes."""
    pins = {}
    for entry in re.split(r"\n(?=\w)", (ROOT / "requirements.txt").read_text())[1:]:
        match = re.match(r"(\S+==\S+)(?: ; python_full_version (<|>=) '3\.(\d+)')? \\", entry)
        if not match:
            raise BuildError(f"requirements.txt: {entry}: this condition is not known here")
        if match[2] is None or (match[2] == "<") == (int(match[3]) > OLDEST):
            pins[match[1]] = re.findall("--hash=sha256:([0-9a-f]{64})", entry)
    return pins


def wheels() -> list[Path]:
    """The wheels of the runtime dependencies that run everywhere, downloaded where they are not here yet."""
    pins = locked()
    if len(downloaded(pins)) < len(pins):
        download(pins)
    return downloaded(pins)


def downloaded(pins: dict[str, list[str]]) -> list[Path]:
    good = {digest for hashes in pins.values() for digest in hashes}
    return [file for file in sorted(WHEELS.glob("*.whl")) if hashlib.sha256(file.read_bytes()).hexdigest() in good]


def download(pins: dict[str, list[str]]) -> None:
    """Let pip fetch each pin's wheel that is pure Python."""
    lines = [" ".join([pin, *(f"--hash=sha256:{digest}" for digest in hashes)]) for pin, hashes in pins.items()]
    everywhere = ["--platform=any", "--implementation=py", "--abi=none", f"--python-version=3.{OLDEST}"]
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder, "lock.txt")
        lock.write_text("\n".join(lines))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*command, "--only-binary=:all:", *everywhere, f"--dest={WHEELS}", f"-r{lock}"], check=True)


def dependencies() -> Files:
    """The modules of the runtime dependencies, and their licences."""
    files: Files = {}
    for wheel in wheels():
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                package, _, rest = name.partition("/")
                if name.endswith(".py") and not rest.startswith("tests/"):
                    files[name] = archive.read(name)
                elif package.endswith(".dist-info") and "LICENSE" in rest:
                    files[f"licences/{package[: -len('.dist-info')]}/{name.rpartition('/')[2]}"] = archive.read(name)
    return files


# -- what comes out ---------------------------------------------------------------------------------------------------


def write_zip(target: Path | io.BytesIO, files: Files) -> None:
    """A zip of the files, the same for the same files and commit."""
    moment = time.gmtime(seconds())[:6]
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, moment)
            entry.create_system = 3  # whose modes these are: Unix
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(".gz") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)


def build_pyz(folder: Path) -> Path:
    """The one file: nothing but a Python is needed to run it."""
    files = {"__main__.py": START.encode(), **program(), **packed(pages()), **page_licences(), **dependencies()}
    plain, target = io.BytesIO(), folder / "jumpserver.pyz"
    write_zip(plain, files)
    plain.seek(0)
    zipapp.create_archive(plain, target, interpreter="/usr/bin/env python3")
    target.chmod(0o755)
    return target


def build_folder(folder: Path) -> Path:
    """The folder for vendoring, packed: all that the server needs but its Python dependencies."""
    name = f"jumpserver-{constant('__version__')}"
    files = {**found(*SOURCES), **program(), **pages(), **page_licences()}
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, data in sorted(files.items()):
            entry = tarfile.TarInfo(f"{name}/{path}")
            entry.size, entry.mtime = len(data), seconds()
            entry.mode = 0o755 if data.startswith(b"#!") else 0o644
            archive.addfile(entry, io.BytesIO(data))
    target = folder / f"{name}.tar.gz"
    target.write_bytes(gzip.compress(plain.getvalue(), 9, mtime=0))
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the one file, the folder for vendoring, and the wheel.")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=ROOT / "dist")
    folder: Path = parser.parse_args().folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target in (build_pyz(folder), build_folder(folder), folder / build_wheel(str(folder))):
            print(f"{target} ({target.stat().st_size >> 10} KiB)")
    except (BuildError, subprocess.CalledProcessError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


# -- pip's backend (PEP 517, PEP 427) ---------------------------------------------------------------------------------


def build_wheel(wheel_directory: str, config_settings: object = None, metadata_directory: object = None) -> str:
    """Write the wheel into that folder; returns its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = f"{project['name'].replace('-', '_')}-{constant('__version__')}"
    inside = {"__init__.py": PACKAGE.encode(), **program(), **pages(), **page_licences()}
    files = {f"k8s_jumpserver/{path}": data for path, data in inside.items()}
    scripts = "".join(f"{script} = {target}\n" for script, target in project["scripts"].items())
    info = {
        "METADATA": metadata(project),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: deploy/dist.py\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": f"[console_scripts]\n{scripts}",
    }
    files.update({f"{name}.dist-info/{path}": text.encode() for path, text in info.items()})
    record = f"{name}.dist-info/RECORD"
    files[record] = "".join([*map(record_line, files, files.values()), f"{record},,\n"]).encode()
    write_zip(Path(wheel_directory, f"{name}-py3-none-any.whl"), files)
    return f"{name}-py3-none-any.whl"


def metadata(project: dict[str, Any]) -> str:
    """The core metadata, with README.md for a description."""
    head = {
        "Metadata-Version": "2.1",
        "Name": project["name"],
        "Version": constant("__version__"),
        "Summary": project["description"],
        "License": project["license"],
        "Requires-Python": project["requires-python"],
        "Description-Content-Type": "text/markdown",
    }
    lines = [*(f"{key}: {value}" for key, value in head.items())]
    lines += [f"Requires-Dist: {requirement}" for requirement in project["dependencies"]]
    return "\n".join([*lines, "", (ROOT / "README.md").read_text()])


def record_line(path: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(data)}\n"


if __name__ == "__main__":
    sys.exit(main())
