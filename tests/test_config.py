"""The configuration: what is refused, what is brought into one form, and what `--check` says and does not do."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

import pytest

import jumpserver
from demo.cluster import StandIn
from tests.support import PROGRAM, START_SECONDS, Installation, Program, run_program

# -- check ------------------------------------------------------------------------------------------------------------


def everything_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_check_says_good_and_writes_nothing(tmp_path: Path, cluster: StandIn) -> None:
    file = Installation(tmp_path, cluster, hooks_file=HOOKS).config_file
    before = everything_below(tmp_path)
    done = run_program("--check", "-jumpserver", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: good\n", "")
    assert everything_below(tmp_path) == before


HOOKS = """
import hooks
class Own(hooks.Hooks):
    def validate_ssh_token(self, token):
        raise hooks.Denied(token)
"""
REFUSES_ALL = "every token will be refused: set [Token] secret, [Platform] validate_url or [Hooks] file"


@pytest.mark.parametrize(
    ("lines", "refuses_all"),
    [
        ("", True),
        ('[Hooks]\nfile = "login.py"\n', True),
        ('[Hooks]\nfile = "own.py"\n', False),
        (f'[Token]\nsecret = "{"x" * 32}"\n', False),
        ('[Platform]\nvalidate_url = "https://platform.example/"\n', False),
        ('[Platform]\nlogin_url = "https://platform.example/"\n', True),
    ],
)
def test_check_warns_of_a_server_that_will_refuse_every_token(tmp_path: Path, lines: str, refuses_all: bool) -> None:
    file = tmp_path / "jumpserver.toml"
    file.write_text(lines)
    (tmp_path / "own.py").write_text(HOOKS)
    (tmp_path / "login.py").write_text("import hooks\nclass Own(hooks.Hooks):\n    pass\n")
    done = run_program("--check", "-jumpserver", file)
    assert (done.returncode, done.stdout) == (0, f"{file}: good\n")
    assert done.stderr == (f"jumpserver: {file}: warning: {REFUSES_ALL}\n" if refuses_all else "")


def test_the_start_warns_of_a_server_that_will_refuse_every_token(tmp_path: Path, cluster: StandIn) -> None:
    config = '[Server]\nlisten = "127.0.0.1:0"\n'
    with Program(tmp_path, cluster, config=config) as program:
        assert f'warning reason="{REFUSES_ALL}"' in program.log()
    with Program(tmp_path, cluster) as program:
        assert "warning" not in program.log()


def test_check_and_start_say_that_files_of_the_pages_are_missing(tmp_path: Path, cluster: StandIn) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("jumpserver.py", "hooks.py", "k8s_exec.py", "recorder.py"):
        shutil.copy(PROGRAM.with_name(name), copy)
    shutil.copytree(PROGRAM.with_name("static"), copy / "static", ignore=shutil.ignore_patterns("node_modules"))
    installed = Installation(tmp_path, cluster)
    done = run_program("--check", "-jumpserver", installed.config_file, program=copy / "jumpserver.py")
    count = sum("node_modules" in name for name in jumpserver.ASSETS.values())
    words = f"{count} files of the pages are missing: run `npm ci` in the folder static"
    assert (done.returncode, done.stderr) == (0, f"jumpserver: {installed.config_file}: warning: {words}\n")
    with Program(tmp_path, cluster, program=copy / "jumpserver.py") as program:
        assert f'warning reason="{words}"' in program.log()


@pytest.mark.parametrize("path", ["records", "a/b/records"])
def test_the_record_folder_is_made_by_the_start_and_not_by_a_check(tmp_path: Path, cluster: StandIn, path: str) -> None:
    config = f'[Server]\nlisten = "127.0.0.1:0"\n[Record]\npath = "{path}"\n'
    file = Installation(tmp_path, cluster, config=config).config_file
    assert run_program("--check", "-jumpserver", file).returncode == 0
    assert not (tmp_path / path.split("/")[0]).exists()
    with Program(tmp_path, cluster, config=config):
        assert (tmp_path / path).is_dir()


@pytest.mark.parametrize(
    ("path", "words"), [("file", "is not a folder"), ("file/records", "is not a folder"), ("link", "is not a folder")]
)
def test_check_refuses_a_record_folder_that_is_none(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    config = jumpserver.Config(Record=jumpserver.RecordConfig(path=path), folder=tmp_path)
    with pytest.raises(jumpserver.ConfigError, match=words):
        jumpserver.check_record_path(config, tmp_path / "jumpserver.toml")


# Root may write everywhere, so it becomes somebody else once all is imported.
CHECK_AS_NOBODY = """
import os, sys, jumpserver
if os.geteuid() == 0:
    os.setuid(65534)
sys.exit(jumpserver.main(["--check", "-jumpserver", sys.argv[1]]))
"""


def check_as_nobody(folder: Path, lines: str) -> subprocess.CompletedProcess[str]:
    """Check a configuration in a folder with a closed folder and a closed file."""
    folder.chmod(0o755)  # pytest's own folders are closed to others
    (folder / "closed").mkdir(mode=0o555)
    (folder / "closed.db").touch(mode=0o444)
    file = folder / "jumpserver.toml"
    file.write_text(f'{lines}\n[Token]\nsecret = "{"x" * 32}"\n')
    command = [sys.executable, "-c", CHECK_AS_NOBODY, str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, cwd=PROGRAM.parent)


@pytest.mark.parametrize("path", ["closed", "closed/records", "closed/a/records"])
def test_check_refuses_a_record_folder_that_this_user_cannot_write(path: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        done = check_as_nobody(Path(name), f'[Record]\npath = "{path}"')
        assert (done.returncode, done.stdout) == (2, "")
        said = f"{name}/jumpserver.toml: path in [Record]: {name}/closed cannot be written by this user"
        assert done.stderr == f"jumpserver: {said}\n"


@pytest.mark.parametrize("db", ["closed/x.db", "missing/x.db", "closed.db", "records", "jumpserver.toml/x.db"])
def test_check_refuses_a_ledger_that_this_user_cannot_write(db: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "records").mkdir()
        (Path(name) / "records").chmod(0o777)
        done = check_as_nobody(Path(name), f'[Record]\npath = "records"\n[Audit]\ndb = "{db}"')
        assert (done.returncode, done.stdout) == (2, "")
        said = f"{name}/jumpserver.toml: db in [Audit]: {name}/{db} cannot be written, or made, by this user"
        assert done.stderr == f"jumpserver: {said}\n"


# -- errors -----------------------------------------------------------------------------------------------------------

BAD_KUBECONFIG = "users:\n- user:\n    token: S3CRET\n  bad\n"
CONFIG_ERRORS = [
    ("[Sever]\n", "[Sever]"),
    ("Server = 5\n", "Server"),
    ("[Server]\nport = 1\n", "port in [Server]"),
    ("[Server]\nlisten = 7000\n", "listen in [Server]"),
    ("[Server]\nmax_sessions = true\n", "max_sessions in [Server]"),
    ("[Server]\nmax_sessions = 0\n", "max_sessions in [Server]"),
    ("[Record]\nmax_bytes = -1\n", "max_bytes in [Record] must be 0 bytes or more"),
    ("[Record]\nmin_free = -1\n", "min_free in [Record] must be 0 bytes or more"),
    ('[Record]\nmin_free = "5 %"\n', "min_free in [Record] must be a whole number"),
    ('[Server]\nadmin_listen = "9100"\n', "admin_listen in [Server]"),
    ('[Server]\nadmin_listen = "[::1]:7000"\n', "admin_listen in [Server] must have another port"),
    ("[Server]\ndrain_timeout = -1\n", "drain_timeout in [Server]"),
    ("[Server]\ndrain_timeout = 86401\n", "drain_timeout in [Server]"),
    ('[Server]\nallowed_origins = "https://x"\n', "allowed_origins in [Server]"),
    ("[Server]\nallowed_origins = [1]\n", "allowed_origins in [Server]"),
    ('[Server]\ntrusted_proxies = ["proxy.example"]\n', "trusted_proxies in [Server]"),
    ('[Server]\nallowed_origins = ["platform.example"]\n', "allowed_origins in [Server]"),
    ('[Server]\nframe_ancestors = ["https://a.example/path"]\n', "frame_ancestors in [Server]"),
    ('[Server]\nframe_ancestors = ["https://a.example", "\'none\'"]\n', "frame_ancestors in [Server]"),
    ('[Kubernetes]\nallow_servers = ["10.0.0.1/33"]\n', "allow_servers in [Kubernetes]"),
    ("[Server\nlisten = S3CRET\n", "is not TOML"),
    ('[Server]\nlisten = "nowhere"\n', "listen in [Server]"),
    ('[Server]\nlisten = "127.0.0.1:65536"\n', "listen in [Server]"),
    ('[Server]\nlisten = "no..where:7000"\n', "listen in [Server]"),
    ('[Server]\nlisten = "192.0.2.1:7000"\n', "listen in [Server]"),
    ('[Server]\nlisten = "127.0.0.1:IN_USE"\n', "listen in [Server]"),
    ('[Record]\npath = "jumpserver.toml/records"\n', "path in [Record]"),
    ('[Token]\nsecret = "S3CRET"\n', "secret in [Token]"),
    ('[Token]\nsecret = {file = "missing"}\n', "secret in [Token]"),
    ('[Token]\nsecret = {file = "bad.yaml"}\n', "secret in [Token] must be one line"),
    ('[Token]\nsecret = {file = "empty"}\n', "secret in [Token]"),
    ('[Token]\nsecret = {file = "short"}\n', "secret in [Token] must have 32 bytes"),
    ('[Token]\nsecret = {file = "latin-1"}\n', "latin-1 is not UTF-8"),
    ('[Token]\nsecret = {file = "long"}\n', "long must have 1 to 16384 bytes"),
    ('[Token]\nsecret = {file = "."}\n', "secret in [Token]"),
    ('[Token]\nsecret = {file = "a\\u0000b"}\n', "secret in [Token] must be text in quotes, or {file"),
    ('[Token]\nsecret = {value = "S3CRET"}\n', "secret in [Token] must be text in quotes, or {file"),
    ('[Token]\nsecret = {file = "short", value = "S3CRET"}\n', "secret in [Token] must be text in quotes, or {file"),
    ('[Platform]\nauthorization = {file = "missing"}\n', "authorization in [Platform]"),
    ('[Platform]\nvalidate_url = {file = "short"}\n', "validate_url in [Platform] must be text in quotes"),
    ('[Platform]\nvalidate_url = "S3CRET"\n', "validate_url in [Platform]"),
    ('[Platform]\nlogin_url = "https://platform.example:65536/"\n', "login_url in [Platform]"),
    ('[Platform]\nauthorization = "Bearer S3CRET\\n"\n', "authorization in [Platform]"),
    ('[Platform]\nauthorization = "Bearer S3CRET 密码"\n', "authorization in [Platform]"),
    ('[Clusters]\nprod = "bad.yaml"\n', "prod in [Clusters]"),
    ('[Clusters]\nprod = "missing.yaml"\n', "prod in [Clusters]"),
    ("[Clusters]\nprod = 1\n", "prod in [Clusters] must have the form"),
    ("[Clusters]\nprod = {label = 'a'}\n", "prod in [Clusters] must have the form"),
    ("[Clusters]\nprod = {kubeconfig = 'a', color = 'red'}\n", "prod in [Clusters] must have the form"),
    ("[Clusters]\nprod = {kubeconfig = 'a', label = 1}\n", "prod in [Clusters]: label must be text in quotes"),
    (
        "[Clusters]\nprod = {kubeconfig = 'a', label = 'twenty-five characters ...'}\n",
        "prod in [Clusters]: label must be",
    ),
    ("[Clusters]\nprod = {kubeconfig = 'a', colour = 'crimson'}\n", "prod in [Clusters]: colour must be #rrggbb or"),
    ("Clusters = 1\n", "Clusters must be a section"),
    ('[Hooks]\nfile = "missing.py"\n', "missing.py"),
    ('[Hooks]\nfile = "bad.yaml"\n', "bad.yaml"),
    ('[Audit]\ndb = "missing/sessions.db"\n', "db in [Audit]"),
    ('[Audit]\ndb = "bad.yaml"\n', "db in [Audit]"),
]


@pytest.mark.parametrize(("config", "words"), CONFIG_ERRORS, ids=[config.strip() for config, _ in CONFIG_ERRORS])
def test_a_config_error_is_one_line_that_names_file_and_key(tmp_path: Path, config: str, words: str) -> None:
    file = tmp_path / "jumpserver.toml"
    (tmp_path / "bad.yaml").write_text(BAD_KUBECONFIG)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "short").write_text("S3CRET\n")
    (tmp_path / "latin-1").write_bytes(b"S3CRET" * 6 + b"\xe9\n")
    (tmp_path / "long").write_text("S3CRET" * 3000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = config.replace("IN_USE", str(taken.getsockname()[1]))
        file.write_text(text if "[Record]" in text else text + f'[Record]\npath = "{tmp_path}/records"\n')
        done = run_program("-jumpserver", file)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("jumpserver: ") and len(done.stderr.splitlines()) == 1
    assert words in done.stderr and (str(file) in done.stderr or "[Hooks]" in config)
    assert "S3CRET" not in done.stderr


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    done = run_program("-jumpserver", tmp_path / "no.toml")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert str(tmp_path / "no.toml") in done.stderr


# -- secrets in files of their own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_secret_may_stand_in_a_file_of_its_own(tmp_path: Path, end: str) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text("t" * 40 + end)
    (tmp_path / "platform").write_text(f"Bearer p{end}")
    file = tmp_path / "jumpserver.toml"
    file.write_text(
        f'[Token]\nsecret = {{file = "secrets/token"}}\n[Platform]\nauthorization = {{file = "{tmp_path}/platform"}}\n'
    )
    settings = jumpserver.load_config(file).hooks_settings()
    assert (settings.secret, settings.authorization) == ("t" * 40, "Bearer p")


# -- lists are brought into the form that is compared -----------------------------------------------------------------

Form = Callable[[str], str]
NORMAL: list[tuple[Form, dict[str, str]]] = [
    (
        jumpserver.normal_origin,
        {
            "https://platform.example": "https://platform.example",
            "https://platform.example/": "https://platform.example",
            "HTTPS://Platform.Example": "https://platform.example",
            "https://platform.example:443": "https://platform.example",
            "https://platform.example:443/": "https://platform.example",
            "https://platform.example:": "https://platform.example",
            "http://platform.example:80": "http://platform.example",
            "http://platform.example:443": "http://platform.example:443",
            "https://platform.example:08443": "https://platform.example:8443",
            "http://localhost:8080": "http://localhost:8080",
            "http://192.0.2.1:8080": "http://192.0.2.1:8080",
            "https://[2001:DB8:0::1]:443": "https://[2001:db8::1]",
            "https://platform.example.": "https://platform.example.",
        },
    ),
    (
        jumpserver.normal_frame_ancestor,
        {
            "'self'": "'self'",
            "'NONE'": "'none'",
            "*": "*",
            "https:": "https:",
            "https://platform.example/": "https://platform.example",
            "https://*.Platform.example:*": "https://*.platform.example:*",
            "platform.example:8443": "platform.example:8443",
            "localhost:8080": "localhost:8080",
            "http://127.0.0.1:*": "http://127.0.0.1:*",
        },
    ),
    (
        jumpserver.normal_proxy,
        {
            "10.0.0.1": "10.0.0.1/32",
            "10.1.2.3/8": "10.0.0.0/8",
            "2001:DB8::/32": "2001:db8::/32",
            "[::1]": "::1/128",
            "::ffff:10.0.0.0/104": "10.0.0.0/8",
            "::ffff:10.0.0.1": "10.0.0.1/32",
        },
    ),
    (
        jumpserver.normal_server,
        {
            "API.Prod.example": "api.prod.example",
            "api.prod.example.": "api.prod.example",
            "*.Prod.example": "*.prod.example",
            ".prod.example": "*.prod.example",
            "10.1.2.3/8": "10.0.0.0/8",
            "10.0.0.1": "10.0.0.1",
            "[2001:DB8::1]": "2001:db8::1",
            "::ffff:10.0.0.1": "10.0.0.1",
            "kubernetes": "kubernetes",
            "host_1.example": "host_1.example",
        },
    ),
]
NORMAL_FORMS = [(form, text, normal) for form, table in NORMAL for text, normal in table.items()]
REFUSED: list[tuple[Form, list[str]]] = [
    (
        jumpserver.normal_origin,
        [
            *("", "*", "null", "platform.example", "//platform.example", "https://", "https:platform.example"),
            *(
                "https://platform.example/path",
                "https://platform.example//",
                "https://platform.example?x",
                "https://a#b",
            ),
            *("https://*.platform.example", "https://user@platform.example", "https://a b", "https://a,https://b"),
            *("https://platform.example:0", "https://platform.example:65536", "https://platform.example:x"),
            *("wss://platform.example", "file:///", "https://pl\u00e4ttform.example", "https://[fe80::1%25eth0]"),
            *("https://[::1", "https://[1.2.3.4]", "https://platform.example\n", " https://platform.example"),
        ],
    ),
    (
        jumpserver.normal_frame_ancestor,
        [
            *(
                "",
                "self",
                "None",
                "'unsafe-inline'",
                "https://a.example/b",
                "https://",
                "a b",
                "a,b",
                "a;b",
                "https://a:b",
            ),
            *("*.*.example", "https://[::1]", "https://a.example//", "https://u@a.example", "'self", "a\n"),
        ],
    ),
    (
        jumpserver.normal_proxy,
        [
            *(
                "",
                "*",
                "proxy.example",
                "10.0.0.1/33",
                "10.0.0.1:8080",
                "10.0.0",
                "10.0.0.256",
                "::1/129",
                "fe80::1%eth0",
            ),
            *("http://10.0.0.1", "10.0.0.0-10.0.0.9", "[10.0.0.1", "unix:"),
        ],
    ),
    (
        jumpserver.normal_server,
        [
            *(
                "",
                "*",
                ".",
                "*.",
                "https://api.example",
                "https://api.example:6443",
                "api.example:6443",
                "api.example/",
            ),
            *(
                "10.0.0.1/33",
                "10.0.0.1:6443",
                "[::1]:6443",
                "10.0.0.256",
                "10.0.0",
                "a..b",
                "*.*.example",
                "a b",
                "fe80::1%1",
            ),
            *("*example.com", "a.*.example", "pl\u00e4ttform.example", "a.example..", "a\n"),
        ],
    ),
]
REFUSED_FORMS = [(form, text) for form, texts in REFUSED for text in texts]


@pytest.mark.parametrize(
    ("form", "text", "normal"), NORMAL_FORMS, ids=[f"{f.__name__} {t}" for f, t, _ in NORMAL_FORMS]
)
def test_what_is_unambiguous_is_brought_into_one_form(form: Form, text: str, normal: str) -> None:
    assert form(text) == normal
    assert form(normal) == normal


@pytest.mark.parametrize(("form", "text"), REFUSED_FORMS, ids=[f"{f.__name__} {t!r}" for f, t in REFUSED_FORMS])
def test_what_would_never_match_is_refused_with_a_sentence(form: Form, text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an? |inner quotes"):
        form(text)


@pytest.mark.parametrize("form", [form for form, _ in NORMAL])
def test_long_items_are_refused_at_once(form: Form) -> None:
    for piece in ("a", "a.", "1.", ":", "-", "*.", "https://", "[", "a:"):
        began = time.process_time()
        with contextlib.suppress(ValueError):
            form(piece * 50_000 + "!")
        assert time.process_time() - began < 1


def test_the_configuration_holds_the_normal_forms(tmp_path: Path) -> None:
    file = tmp_path / "jumpserver.toml"
    file.write_text(
        '[Server]\nallowed_origins = ["https://Platform.example:443/"]\nframe_ancestors = ["https://Platform.example/"]\n'
        'trusted_proxies = ["10.1.2.3/8"]\n[Kubernetes]\nallow_servers = ["API.example."]\nallow_exec = ["/Opt/AWS"]\n'
    )
    config = jumpserver.load_config(file)
    assert config.Server.allowed_origins == ("https://platform.example",)
    assert config.Server.frame_ancestors == ("https://platform.example",)
    assert config.Server.trusted_proxies == ("10.0.0.0/8",)
    assert config.trust().allow_servers == ("api.example",)
    assert config.trust().allow_exec == ("/Opt/AWS",)
