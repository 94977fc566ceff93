"""Who we are in a cluster: each kind of credential against a cluster, and what an untrusted kubeconfig may not do."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import k8s_exec
from demo.cluster import StandIn, User
from k8s_exec import ExecRefused, KubeconfigError, PodExec, Target, Trust, credential, load_kubeconfig
from tests.support import ALLOW_LOOPBACK, LOOPBACK, RunningServer, b64, kubeconfig, nothing_left, wait_until

API = "client.authentication.k8s.io/"
USERS = (User("demo", password="p:ss wörd"), User("boss", frozenset(("impersonate",))), User("nobody", frozenset()))


@pytest.fixture
def cluster() -> Iterator[StandIn]:
    """Takes the place of the one in support: with users of all kinds."""
    with nothing_left(), StandIn(users=USERS) as running:
        yield running


def run(text: str, trust: Trust = LOOPBACK, command: tuple[str, ...] = ("true",)) -> bytes:
    """Run a program in the pod as the user of this kubeconfig; returns what it printed."""
    target = Target(load_kubeconfig(text, trust=trust), "default", "demo")
    pod = PodExec.open(target, command, timeout=5)
    output = b""
    try:
        while chunk := pod.read():
            output += chunk
        assert pod.exit is not None
        assert pod.exit.code == 0
    finally:
        pod.close()
    return output


# -- what is shown to the cluster --------------------------------------------------------------------------------------


@pytest.mark.parametrize("intermediate", [False, True], ids=["of the CA", "of an intermediate CA"])
@pytest.mark.parametrize("key", ["rsa", "ec", "ed25519"])
def test_a_client_certificate_is_accepted(cluster: StandIn, key: str, intermediate: bool) -> None:
    certificate, private_key = cluster.client_certificate(key=key, intermediate=intermediate)
    assert certificate.count("BEGIN CERTIFICATE") == 1 + intermediate
    run(kubeconfig(cluster, {"client-certificate-data": b64(certificate), "client-key-data": b64(private_key)}))
    assert cluster.execs[-1].user == "demo"


def test_a_certificate_and_a_key_may_be_files_beside_an_operators_kubeconfig(cluster: StandIn, tmp_path: Path) -> None:
    certificate, private_key = cluster.client_certificate()
    (tmp_path / "ca.crt").write_text(cluster.ca_pem)
    (tmp_path / "user.crt").write_text(certificate)
    (tmp_path / "user.key").write_text(private_key)
    text = kubeconfig(
        cluster,
        {"client-certificate": "user.crt", "client-key": str(tmp_path / "user.key")},
        **{"certificate-authority-data": None, "certificate-authority": "ca.crt"},
    )
    run(text, Trust(folder=tmp_path))
    assert cluster.execs[-1].user == "demo"
    with pytest.raises(KubeconfigError, match="allow_files"):
        load_kubeconfig(text)


def test_a_token_file_is_read_again_when_it_changes(cluster: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(cluster.token_of("demo") + "\n")
    loaded = load_kubeconfig(kubeconfig(cluster, {"tokenFile": "token"}), trust=Trust(folder=tmp_path))
    PodExec.open(Target(loaded, "default", "demo"), ["true"], timeout=5).close()
    cluster.expire_token()
    with pytest.raises(ExecRefused, match="does not accept the credentials"):
        PodExec.open(Target(loaded, "default", "demo"), ["true"], timeout=5)
    file.write_text(cluster.renew_token())
    PodExec.open(Target(loaded, "default", "demo"), ["true"], timeout=5).close()
    assert [item.user for item in cluster.execs] == ["demo", "demo"]


@pytest.mark.parametrize("content", [None, "", " \n", "a\r\nX-Evil: yes", "töken"])
def test_a_token_file_without_a_token_gives_the_token_beside_it(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    text = kubeconfig(None, {"tokenFile": "token", "token": "beside"})
    shown = credential(load_kubeconfig(text, trust=Trust(folder=tmp_path)).user, time.monotonic() + 15)
    assert shown.headers == ("Authorization: Bearer beside",)
    alone = load_kubeconfig(kubeconfig(None, {"tokenFile": "token"}), trust=Trust(folder=tmp_path)).user
    with pytest.raises(KubeconfigError, match=r"tokenFile (holds no token|cannot be read: No such file)"):
        credential(alone, time.monotonic() + 15)


def test_basic_authentication_is_accepted(cluster: StandIn) -> None:
    run(kubeconfig(cluster, {"username": "demo", "password": "p:ss wörd"}))
    assert cluster.execs[-1].user == "demo"
    with pytest.raises(ExecRefused, match="does not accept the credentials"):
        run(kubeconfig(cluster, {"username": "demo", "password": "other"}))


def test_impersonation_arrives_exactly(cluster: StandIn) -> None:
    user = {
        "token": cluster.token_of("boss"),
        "as": "demo",
        "as-uid": "u-1",
        "as-groups": ["dev", "system:masters"],
        "as-user-extra": {"Reason": ["a ticket", "another"], "example.com/Team%": ["core"]},
    }
    run(kubeconfig(cluster, user))
    assert sorted((name.lower(), value) for name, value in cluster.execs[-1].impersonation) == [
        ("impersonate-extra-example.com%2fteam%25", "core"),
        ("impersonate-extra-reason", "a ticket"),
        ("impersonate-extra-reason", "another"),
        ("impersonate-group", "dev"),
        ("impersonate-group", "system:masters"),
        ("impersonate-uid", "u-1"),
        ("impersonate-user", "demo"),
    ]


def test_a_user_who_may_not_impersonate_is_refused(cluster: StandIn) -> None:
    with pytest.raises(ExecRefused, match='cannot impersonate resource "users"'):
        run(kubeconfig(cluster, {"token": cluster.token_of("demo"), "as": "boss"}))


def test_in_a_cluster_the_service_account_is_used(
    cluster: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text(cluster.token)
    (folder / "ca.crt").write_text(cluster.ca_pem)
    (folder / "namespace").write_text("kube-system\n")
    monkeypatch.setattr(k8s_exec, "SERVICE_ACCOUNT_FOLDER", folder)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", cluster.host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
    secret = "s" * 32
    config = f'[Server]\nlisten = "127.0.0.1:0"\n[Token]\nsecret = "{secret}"\n'
    server = RunningServer(tmp_path, cluster, config=config)
    server.secret = secret
    try:
        terminal = server.connect("busybox", namespace="", command=["true"])
        assert terminal.wait_end()["exit_code"] == 0
        assert (cluster.execs[-1].user, cluster.execs[-1].namespace) == ("demo", "kube-system")
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
        reason = server.connect("busybox").wait_end()["reason"]
        assert reason == "no kubeconfig was given, and this server does not run in a cluster"
    finally:
        server.stop()


# -- credential plugins ------------------------------------------------------------------------------------------------


class PluginProgram:
    """A real program that answers with what is in a file, and notes each run with what it was told."""

    def __init__(self, folder: Path, version: str = "v1") -> None:
        self.folder, self.version = folder, version
        self.path = folder / "get-token"
        self.runs_file = folder / "runs"
        self.write(
            f'printf "%s|%s|%s\\n" "$KUBERNETES_EXEC_INFO" "$GREETING" "$*" >>{self.runs_file}\ncat {folder}/out'
        )

    def write(self, script: str) -> None:
        self.path.write_text(f"#!/bin/sh\n{script}\n")
        self.path.chmod(0o755)

    def answer(self, **status: str) -> None:
        document = {"kind": "ExecCredential", "apiVersion": API + self.version, "status": status}
        (self.folder / "out").write_text(json.dumps(document))

    @property
    def runs(self) -> list[list[str]]:
        lines = self.runs_file.read_text().splitlines() if self.runs_file.exists() else []
        return [line.split("|") for line in lines]

    def user(self, **more: Any) -> dict[str, Any]:
        return {"exec": {"apiVersion": API + self.version, "command": str(self.path), **more}}

    @property
    def trust(self) -> Trust:
        return dataclasses.replace(LOOPBACK, allow_exec=(str(self.path),), allow_env=("GREETING", "PASSWORD"))


@pytest.fixture
def program(tmp_path: Path) -> PluginProgram:
    return PluginProgram(tmp_path)


def after(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_plugin_is_told_what_it_needs_and_its_token_is_shown(cluster: StandIn, tmp_path: Path, version: str) -> None:
    program = PluginProgram(tmp_path, version)
    program.answer(token=cluster.token)
    environment = [{"name": "GREETING", "value": "good day"}]
    extension = [{"name": f"{API}exec", "extension": {"audience": "here"}}, {"name": "other", "extension": 1}]
    user = program.user(args=["get", "it"], env=environment, provideClusterInfo=True, interactiveMode="Never")
    run(kubeconfig(cluster, user, extensions=extension), program.trust)
    ((info, greeting, arguments),) = program.runs
    assert (greeting, arguments) == ("good day", "get it")
    assert json.loads(info) == {
        "kind": "ExecCredential",
        "apiVersion": API + version,
        "spec": {
            "interactive": False,
            "cluster": {
                "server": cluster.url,
                "certificate-authority-data": b64(cluster.ca_pem),
                "config": {"audience": "here"},
            },
        },
    }


def test_a_plugin_is_not_told_of_the_cluster_unasked(cluster: StandIn, program: PluginProgram) -> None:
    program.answer(token=cluster.token)
    run(kubeconfig(cluster, program.user()), program.trust)
    assert json.loads(program.runs[0][0])["spec"] == {"interactive": False}


def test_a_plugin_may_give_a_client_certificate(cluster: StandIn, program: PluginProgram) -> None:
    certificate, key = cluster.client_certificate()
    program.answer(clientCertificateData=certificate, clientKeyData=key)
    run(kubeconfig(cluster, program.user()), program.trust)
    assert cluster.execs[-1].user == "demo"


@pytest.mark.parametrize(
    ("expires", "runs"), [(None, 1), (after(3600), 1), (after(5), 2), (after(-60), 2)], ids=range(4)
)
def test_an_answer_serves_until_shortly_before_it_expires(
    cluster: StandIn, program: PluginProgram, expires: str | None, runs: int
) -> None:
    program.answer(token=cluster.token, **({"expirationTimestamp": expires} if expires else {}))
    for _ in range(2):
        run(kubeconfig(cluster, program.user()), program.trust)
    assert len(program.runs) == runs


def test_a_401_makes_the_plugin_run_once_more_and_no_oftener(cluster: StandIn, program: PluginProgram) -> None:
    program.answer(token=cluster.token)
    text = kubeconfig(cluster, program.user())
    run(text, program.trust)
    cluster.expire_token()
    program.answer(token=cluster.renew_token())
    run(text, program.trust)
    assert len(program.runs) == 2
    program.answer(token="wrong")
    cluster.expire_token()
    with pytest.raises(ExecRefused, match="does not accept the credentials"):
        run(text, program.trust)
    assert len(program.runs) == 3


SECRET = "s3cr3t-of-the-plugin"


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (f"echo {SECRET}; exit 7", "failed with exit code 7; get it from the intranet"),
        (f"echo {SECRET}", "printed no ExecCredential"),
        ("", "printed no ExecCredential"),
        (f'echo \'{{"apiVersion":"{API}v1","status":{{}}}}\'', "gave neither a token nor a certificate with its key"),
        (
            f'echo \'{{"apiVersion":"{API}v1","status":{{"clientKeyData":"{SECRET}"}}}}\'',
            "gave neither a token nor a certificate with its key",
        ),
        (f'echo \'{{"apiVersion":"{API}v1beta1","status":{{"token":"{SECRET}"}}}}\'', "in another apiVersion"),
        (f'printf %s \'{{"apiVersion":"{API}v1","status":{{"token":"{SECRET}\\nX: y"}}}}\'', "gave neither"),
        (
            f'echo \'{{"apiVersion":"{API}v1","status":{{"token":"{SECRET}","expirationTimestamp":"soon"}}}}\'',
            "printed no ExecCredential",
        ),
    ],
)
def test_a_plugin_that_fails_is_named_without_what_it_printed(
    program: PluginProgram, script: str, sentence: str
) -> None:
    program.write(script)
    user = program.user(installHint="get it from the intranet")
    with pytest.raises(KubeconfigError) as caught:
        credential(load_kubeconfig(kubeconfig(None, user), trust=program.trust).user, time.monotonic() + 15)
    assert sentence in str(caught.value)
    assert str(program.path) in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_plugin_that_is_not_installed_is_told_with_its_hint(tmp_path: Path) -> None:
    user = {"exec": {"apiVersion": f"{API}v1", "command": "no-such-plugin", "installHint": "ask\nIT"}}
    loaded = load_kubeconfig(kubeconfig(None, user), trust=Trust(allow_exec=("no-such-plugin",)))
    with pytest.raises(KubeconfigError, match=r"no-such-plugin is not installed on the jumpserver; ask IT"):
        credential(loaded.user, time.monotonic() + 15)


def test_a_plugin_that_hangs_is_ended_with_its_children(
    program: PluginProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k8s_exec, "PLUGIN_TIMEOUT_SECONDS", 0.3)
    pids = program.folder / "pids"
    program.write(f"sleep 1000 & echo $! $$ >{pids}; wait")
    with pytest.raises(KubeconfigError, match="did not answer in time"):
        credential(load_kubeconfig(kubeconfig(None, program.user()), trust=program.trust).user, time.monotonic() + 15)
    try:
        wait_until(lambda: not [pid for pid in pids.read_text().split() if is_alive(pid)], "their end", 2.0)
    finally:
        for pid in pids.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)


def at_once(calls: list[Callable[[], object]], then: Callable[[], object] = bool) -> list[object]:
    """What these calls at the same time gave, or with what they failed; ``then`` is called when all have begun."""
    together = threading.Barrier(len(calls) + 1)

    def one(call: Callable[[], object]) -> object:
        together.wait(10)
        try:
            return call()
        except KubeconfigError as exc:
            return str(exc)

    with ThreadPoolExecutor(len(calls)) as pool:
        results = [pool.submit(one, call) for call in calls]
        together.wait(10)
        then()
        return [result.result() for result in results]


def shown_to(user: k8s_exec.User) -> Callable[[], object]:
    return lambda: credential(user, time.monotonic() + 15).headers


def held(program: PluginProgram) -> Path:
    """Let the program note its run, then answer when the file is there."""
    go = program.folder / "go"
    program.write(f"echo run >>{program.runs_file}\nuntil [ -e {go} ]; do sleep 0.01; done\ncat {program.folder}/out")
    return go


def test_logins_at_the_same_time_share_one_run(program: PluginProgram) -> None:
    go = held(program)
    program.answer(token="shared")
    user = load_kubeconfig(kubeconfig(None, program.user()), trust=program.trust).user
    other = load_kubeconfig(kubeconfig(None, program.user(args=["other"])), trust=program.trust).user

    def let_go() -> None:  # nor does one plugin wait for the other
        wait_until(lambda: len(program.runs) == 2, "a run of each plugin")
        go.touch()

    with nothing_left():
        answers = at_once([*[shown_to(user)] * 10, shown_to(other)], let_go)
    assert answers == [("Authorization: Bearer shared",)] * 11
    assert len(program.runs) == 2


def test_logins_at_the_same_time_share_one_failure_for_a_moment(
    program: PluginProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write(f"echo run >>{program.runs_file}; exit 7")
    user = load_kubeconfig(kubeconfig(None, program.user()), trust=program.trust).user
    for _ in range(2):
        answers = at_once([shown_to(user)] * 10)
        assert answers == [f"the credential plugin {program.path} failed with exit code 7"] * 10
    assert len(program.runs) == 1
    monkeypatch.setattr(k8s_exec, "_PLUGIN_FAILURE_SECONDS", -1.0)
    k8s_exec._plugin_runs.clear()
    for runs in (2, 3):
        at_once([shown_to(user)])
        assert len(program.runs) == runs


def test_who_waits_for_a_run_waits_no_longer_than_it_may(program: PluginProgram) -> None:
    go = held(program)
    program.answer(token="late")
    user = load_kubeconfig(kubeconfig(None, program.user()), trust=program.trust).user
    with nothing_left():
        begin = time.monotonic()
        for limit in (0.3, 0.1, -1.0):
            with pytest.raises(KubeconfigError, match="did not answer in time"):
                credential(user, time.monotonic() + limit)
        assert time.monotonic() - begin < 3
        go.touch()
        assert credential(user, time.monotonic() + 15).headers == ("Authorization: Bearer late",)  # of the same run
        assert len(program.runs) == 1


def test_logins_whose_credential_was_revoked_share_one_run(cluster: StandIn, program: PluginProgram) -> None:
    program.answer(token=cluster.token)
    text = kubeconfig(cluster, program.user())
    run(text, program.trust)
    cluster.expire_token()
    program.answer(token=cluster.renew_token())
    assert at_once([lambda: run(text, program.trust)] * 10) == [b""] * 10
    assert len(program.runs) == 2


def is_alive(pid: str) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# -- whom a kubeconfig comes from --------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [(), ("other",), ("get-token",), ("/usr/bin/get-token",)])
def test_a_program_that_is_not_allowed_by_this_very_name_is_refused(
    program: PluginProgram, allowed: tuple[str, ...]
) -> None:
    with pytest.raises(KubeconfigError, match="allow_exec"):
        load_kubeconfig(kubeconfig(None, program.user()), trust=Trust(allow_exec=allowed))
    assert not program.runs


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "LD_PRELOAD",
        "OPENSSL_CONF",
        "SSLKEYLOGFILE",
        "AWS_ENDPOINT_URL",
        "greeting",
        "GREETINGS",
        "GREETING ",
        "GREETING=x",
        "GREETING\0",
        "",
    ],
)
def test_a_variable_that_is_not_allowed_by_this_very_name_is_refused(name: str, program: PluginProgram) -> None:
    text = kubeconfig(None, program.user(env=[{"name": name, "value": SECRET}]))
    with pytest.raises(KubeconfigError, match=r"may not set the variable '.*' \(see allow_env\)") as caught:
        load_kubeconfig(text, trust=program.trust)
    assert name.replace("\0", "").strip() in str(caught.value)
    assert SECRET not in str(caught.value)


def test_an_operators_kubeconfig_may_run_the_program_beside_it(cluster: StandIn, program: PluginProgram) -> None:
    program.answer(token=cluster.token)
    user = program.user(env=[{"name": "PATH", "value": os.environ["PATH"]}])
    user["exec"]["command"] = "./get-token"
    run(kubeconfig(cluster, user), Trust(folder=program.folder))
    assert len(program.runs) == 1


@pytest.mark.parametrize("version", ["", "v1", f"{API}v1alpha1", f"{API}v2"])
def test_other_versions_of_the_plugins_api_are_refused(program: PluginProgram, version: str) -> None:
    with pytest.raises(KubeconfigError, match="apiVersion: must be"):
        load_kubeconfig(kubeconfig(None, program.user(apiVersion=version)), trust=program.trust)


def test_a_plugin_that_must_ask_questions_is_refused(program: PluginProgram) -> None:
    with pytest.raises(KubeconfigError, match="nobody to answer"):
        load_kubeconfig(kubeconfig(None, program.user(interactiveMode="Always")), trust=program.trust)


def test_auth_providers_are_refused_with_the_way_out() -> None:
    with pytest.raises(KubeconfigError, match="use exec, a token or a client certificate"):
        load_kubeconfig(kubeconfig(None, {"auth-provider": {"name": "gcp"}}))


def test_files_are_read_in_allowed_folders_only(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    for folder in (allowed, allowed / "deep", outside):
        folder.mkdir()
        (folder / "token").write_text("good")
    (allowed / "link").symlink_to(outside / "token")
    (allowed / "inner").symlink_to(allowed / "token")
    (tmp_path / "allowed-not").write_text("good")
    trust = Trust(allow_files=(allowed,))
    for name in ("token", "deep/token", "deep/../token", "inner"):
        user = load_kubeconfig(kubeconfig(None, {"tokenFile": f"{allowed}/{name}"}), trust=trust).user
        assert credential(user, time.monotonic() + 15).headers == ("Authorization: Bearer good",)
    refused = [f"{allowed}/link", f"{allowed}/../outside/token", f"{outside}/token", f"{tmp_path}/allowed-not"]
    for path in [*refused, f"{allowed}/none", str(allowed), "token", "/etc/passwd", "/dev/zero", "\0", "/" * 5000]:
        for key in ("tokenFile", "client-certificate", "client-key"):
            with pytest.raises(KubeconfigError, match="allow_files"):
                load_kubeconfig(kubeconfig(None, {key: path}), trust=trust)
        with pytest.raises(KubeconfigError, match="allow_files"):
            load_kubeconfig(kubeconfig(None, {"token": "x"}, **{"certificate-authority": path}), trust=trust)


@pytest.mark.parametrize("allow", [False, True])
def test_the_configuration_says_what_a_tokens_kubeconfig_may_do(cluster: StandIn, tmp_path: Path, allow: bool) -> None:
    program = PluginProgram(tmp_path)
    program.answer(token=cluster.token)
    rules = f'allow_exec = ["{program.path}"]\nallow_env = ["GREETING"]\n' if allow else ""
    server = RunningServer(tmp_path, cluster, more=ALLOW_LOOPBACK + rules)
    try:
        text = kubeconfig(cluster, program.user(env=[{"name": "GREETING", "value": "hello"}]))
        end = server.connect(cluster_cfg=text, command=["true"]).wait_end()
        assert end["exit_code"] == (0 if allow else None)
        assert ("allow_exec" in end["reason"]) == (not allow)
        assert [run[1] for run in program.runs] == ["hello"] * allow
    finally:
        server.stop()


def test_no_secret_shows_in_repr_and_errors(cluster: StandIn, program: PluginProgram) -> None:
    certificate, key = cluster.client_certificate()
    secrets = [SECRET, b64(SECRET), certificate.splitlines()[2], key.splitlines()[1]]
    program.answer(token=SECRET)
    environment = [{"name": "PASSWORD", "value": SECRET}]
    users: list[dict[str, Any]] = [
        {"token": SECRET},
        {"username": "u", "password": SECRET},
        {"token": "t", "as": SECRET},
        {"client-certificate-data": b64(certificate), "client-key-data": b64(key)},
        program.user(args=[SECRET], env=environment),
    ]
    for user in users:
        loaded = load_kubeconfig(
            kubeconfig(cluster, user, **{"proxy-url": f"http://u:{SECRET}@127.0.0.1:1"}), trust=program.trust
        )
        shown = credential(loaded.user, time.monotonic() + 15)
        with pytest.raises(ExecRefused) as caught:
            PodExec.open(Target(loaded, "default", "demo"), ["true"], timeout=5)
        for text in (repr(loaded), repr(loaded.user), repr(shown), repr(loaded.user.plugin), str(caught.value)):
            assert not [secret for secret in secrets if secret in text]
