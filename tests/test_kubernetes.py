"""The manifests in deploy/kubernetes: what kubectl makes of them, and that they fit the program that they run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import kubernetes_validate
import psycopg
import pytest
import yaml

import jumpserver
from demo.cluster import Pod, StandIn, User
from tests.support import (
    PROGRAM,
    START_SECONDS,
    Program,
    Terminal,
    answer_of,
    end_shell,
    need_program,
    run_program,
    running,
    wait_until,
)
from tests.test_ledger_contract import empty
from tests.test_terminate import terminate

ROOT = Path(__file__).parent.parent
SECRETS = {"token": "t" * 64, "pgpassword": "of the ledger's user"}
LABELS = {"app.kubernetes.io/name": "jumpserver"}
OLDEST, NEWEST = "1.30", kubernetes_validate.latest_version()

Manifest = dict[str, Any]


def kustomized(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    kubectl = need_program("kubectl")
    version = json.loads(subprocess.check_output([kubectl, "version", "--client", "-o", "json"]))["clientVersion"]
    if int(re.findall(r"\d+", version["minor"])[0]) < 24:
        pytest.skip("this kubectl is too old for these kustomizations")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the manifests, with the files that an operator makes."""
    copy = tmp_path_factory.mktemp("repository")
    for name in "deploy", "examples":
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("secrets"))
    folder = copy / "deploy" / "kubernetes"
    (folder / "site" / "secrets").mkdir()
    for name, text in SECRETS.items():
        (folder / "site" / "secrets" / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def site(manifests: Path) -> list[Manifest]:
    return kustomized(manifests / "site")


def named(documents: list[Manifest], kind: str, name: str = "jumpserver") -> Manifest:
    """The manifest of that kind and name, with or without kustomize's digest at its end."""
    wanted = re.compile(rf"{name}(-[a-z0-9]{{10}})?")
    found = [item for item in documents if item["kind"] == kind and wanted.fullmatch(item["metadata"]["name"])]
    assert len(found) == 1, (kind, name)
    return found[0]


def pod_of(documents: list[Manifest]) -> Manifest:
    return cast(Manifest, named(documents, "Deployment")["spec"]["template"]["spec"])


def container_of(documents: list[Manifest]) -> Manifest:
    (container,) = pod_of(documents)["containers"]
    return cast(Manifest, container)


# -- what Kubernetes wants ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("folder", ["base", "site", "terminals"])
def test_every_manifest_fits_the_schema(manifests: Path, folder: str, version: str) -> None:
    documents = kustomized(manifests / folder)
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


def test_all_but_what_belongs_to_no_namespace_is_in_that_of_the_server(site: list[Manifest]) -> None:
    outside = {item["kind"] for item in site if item["metadata"].get("namespace") != "jumpserver"}
    assert outside == {"Namespace", "ClusterRole"}
    assert named(site, "Namespace")


def test_selectors_choose_the_servers_pods_and_no_others(site: list[Manifest]) -> None:
    deployment = named(site, "Deployment")["spec"]
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    network = named(site, "NetworkPolicy")["spec"]
    assert deployment["template"]["metadata"]["labels"] == LABELS
    assert deployment["selector"]["matchLabels"] == spread["labelSelector"]["matchLabels"] == LABELS
    assert named(site, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == LABELS
    assert named(site, "Service")["spec"]["selector"] == network["podSelector"]["matchLabels"] == LABELS
    assert network["egress"][0]["to"][0]["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}


def test_what_the_pod_mounts_is_there(site: list[Manifest]) -> None:
    config, run, records = (
        {volume["name"]: volume for volume in pod_of(site)["volumes"]}[name] for name in ("config", "run", "records")
    )
    assert "emptyDir" in run
    claim = named(site, "PersistentVolumeClaim", records["persistentVolumeClaim"]["claimName"])
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert sorted(files_of(config, site)) == ["hooks/postgresql_hooks.py", "jumpserver.toml", "secrets/token"]
    for variable in container_of(site)["env"]:
        if "valueFrom" in variable:
            chosen = variable["valueFrom"]["secretKeyRef"]
            assert chosen["key"] in named(site, "Secret", chosen["name"])["data"]


def files_of(volume: Manifest, documents: list[Manifest]) -> dict[str, str]:
    """What stands in a projected volume. A secret's values are SECRETS."""
    files: dict[str, str] = {}
    for source in volume["projected"]["sources"]:
        ((kind, chosen),) = source.items()
        kind = {"configMap": "ConfigMap", "secret": "Secret"}[kind]
        data = named(documents, kind, chosen["name"])["data"]
        texts = data if kind == "ConfigMap" else {key: SECRETS[key] for key in data}
        items = chosen.get("items") or [{"key": key, "path": key} for key in data]
        files.update({item["path"]: texts[item["key"]] for item in items})
    return files


def test_no_secret_is_in_the_repository_or_outside_of_the_secret(manifests: Path, site: list[Manifest]) -> None:
    assert not [item for item in kustomized(manifests / "base") if item["kind"] == "Secret"]
    tracked = subprocess.check_output(["git", "ls-files", "deploy", "examples"], cwd=ROOT, text=True)
    assert "secrets/" not in tracked and "secrets/" in (ROOT / ".gitignore").read_text()
    others = json.dumps([item for item in site if item["kind"] != "Secret"])
    assert not any(secret in others for secret in SECRETS.values())


# -- how far the pod can reach -----------------------------------------------------------------------------------------


def test_the_pod_keeps_the_restricted_pod_security_standard(site: list[Manifest]) -> None:
    labels = named(site, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    pod, container = pod_of(site), container_of(site)
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & pod.keys()
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {
        *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
    }
    assert all("hostPort" not in port for port in container["ports"])
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions"} & pod["securityContext"].keys()
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,  # which the standard does not ask for
        "capabilities": {"drop": ["ALL"]},
    }


def test_who_is_let_in_reaches_one_port_each(site: list[Manifest]) -> None:
    policy = named(site, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    ways = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"] if len(rule["ports"]) == 1}
    assert len(ways) == len(policy["ingress"]) and ways.keys() == {"http", "admin"}
    for (source,) in ways.values():
        assert source["namespaceSelector"]["matchLabels"]
    assert all(rule["ports"] and rule["to"] for rule in policy["egress"])
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 443, 5432, 6443}


def rules_of(documents: list[Manifest]) -> set[tuple[str, str]]:
    """The (verb, resource) pairs that the role allows."""
    rules = named(documents, "ClusterRole", "jumpserver-terminals")["rules"]
    assert all(rule["apiGroups"] == [""] for rule in rules)
    return {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def test_nothing_binds_the_role_in_all_namespaces(manifests: Path, site: list[Manifest]) -> None:
    (binding,) = kustomized(manifests / "terminals")
    assert (binding["kind"], binding["roleRef"]["name"]) == ("RoleBinding", "jumpserver-terminals")
    account = named(site, "ServiceAccount")["metadata"]
    (subject,) = binding["subjects"]
    assert (subject["namespace"], subject["name"]) == (account["namespace"], account["name"])
    assert pod_of(site)["serviceAccountName"] == account["name"]
    assert not [item for item in site if item["kind"].endswith("Binding")]


def prompt(terminal: Terminal) -> None:
    terminal.type("echo a$((1+1))b\n")
    terminal.wait_for("a2b")


def works(folder: Path, flavour: str, allowed: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """What the server asked of a cluster that allows just that, while all that a session can need was done.

    Raises AssertionError where one of it was not done.
    """
    verbs = frozenset(verb for verb, resource in allowed if resource == "pods/exec")
    user = User("demo", verbs, reads_pods=("get", "pods") in allowed)
    pods = (
        Pod("default", "demo", whole_host=True),
        Pod("default", "two", containers=("a", "b"), default_container="b"),
    )
    folder.mkdir()
    with StandIn(flavour=flavour, users=(user,), pods=pods) as cluster:
        with running(folder, cluster) as server:
            with server.connect("two", v1=False) as terminal:  # the default container; a page would ask its user
                prompt(terminal)
                end_shell(terminal)
            assert cluster.execs[-1].container == "b"
            with server.connect() as terminal:  # a lost browser, and the hang-up
                prompt(terminal)
            server.wait_settled()
            assert server.rows()[-1]["hung_up"] >= 1
            with server.connect() as terminal:  # why the pod went away
                prompt(terminal)
                cluster.fail_pod("default", "demo", "evicted")
                assert "evicted" in terminal.wait_end()["reason"]
        return cluster.asked


@pytest.mark.parametrize("flavour", ["new", "old"])
def test_the_role_allows_what_a_session_asks_for_and_nothing_else(
    tmp_path: Path, site: list[Manifest], flavour: str
) -> None:
    asked = works(tmp_path / "all", flavour, rules_of(site))
    assert asked == rules_of(site) - ({("create", "pods/exec")} if flavour == "old" else set())
    for rule in asked:
        with pytest.raises(AssertionError):
            works(tmp_path / "_".join(rule).replace("/", "_"), flavour, rules_of(site) - {rule})


# -- what the program wants --------------------------------------------------------------------------------------------


def mount(documents: list[Manifest], folder: Path, records: Path) -> str:
    """Lay out the pod's /etc/jumpserver in the folder; returns the configuration, with that record folder."""
    (config,) = (volume for volume in pod_of(documents)["volumes"] if volume["name"] == "config")
    mounts = {mount["mountPath"] for mount in container_of(documents)["volumeMounts"]}
    assert mounts == {"/etc/jumpserver", "/records", "/run/jumpserver"}
    for name, text in files_of(config, documents).items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text.replace('"/records"', f'"{records}"'))
    return (folder / "jumpserver.toml").read_text()


@pytest.fixture
def mounted(site: list[Manifest], tmp_path: Path) -> Path:
    """The configuration in the pod's /etc/jumpserver, with folders of its own."""
    file = tmp_path / "jumpserver.toml"
    file.write_text(mount(site, tmp_path, tmp_path / "records").replace("/run/jumpserver", str(tmp_path)))
    return file


def test_the_configuration_is_good(mounted: Path, site: list[Manifest]) -> None:
    environ = {item["name"]: item.get("value", SECRETS["pgpassword"]) for item in container_of(site)["env"]}
    command = [sys.executable, str(PROGRAM), "--check", "-jumpserver", str(mounted)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, env={**os.environ, **environ})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{mounted}: good\n", "")


def test_ports_and_times_are_those_of_the_configuration(mounted: Path, site: list[Manifest]) -> None:
    config, container = jumpserver.load_config(mounted), container_of(site)
    assert config.Token.secret == SECRETS["token"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert config.admin_address is not None
    assert ports == {"http": config.address[1], "admin": config.admin_address[1]}
    assert {config.address[0], config.admin_address[0]} == {"0.0.0.0"}
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    ending = config.Server.drain_timeout + jumpserver.STOP_SECONDS
    assert int(command[1]) + ending <= pod_of(site)["terminationGracePeriodSeconds"]
    assert config.Server.drain_timeout + 30 <= pod_of(site)["terminationGracePeriodSeconds"]
    for service_port in named(site, "Service")["spec"]["ports"]:
        assert ports[service_port["targetPort"]] == service_port["port"]


def test_the_memory_is_what_the_page_on_sizes_asks_for(mounted: Path, site: list[Manifest]) -> None:
    said = re.search(r"(\d+) MB \+ `max_sessions` . (\d+) MB, doubled", (ROOT / "docs" / "sizing.md").read_text())
    assert said
    megabytes = 2 * (int(said[1]) + jumpserver.load_config(mounted).Server.max_sessions * int(said[2]))
    limit = container_of(site)["resources"]["limits"]["memory"]
    assert limit.endswith("Gi") and int(limit[:-2]) * 1024**3 >= megabytes * 1000**2


def test_probes_and_metrics_are_answered_by_the_program(
    manifests: Path, site: list[Manifest], tmp_path: Path, cluster: StandIn
) -> None:
    container = container_of(site)
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {"admin"}
    assert probes["readiness"]["path"] == "/readyz" and probes["liveness"]["path"] == "/healthz"
    metrics = monitor_of(manifests)["spec"]["endpoints"][0]["path"]
    with running(tmp_path, cluster, server_lines='admin_listen = "127.0.0.1:0"') as server:
        admin = server.server.admin
        assert admin is not None
        server.port = int(admin.server_address[1])
        for path in {probe["path"] for probe in probes.values()} | {metrics}:
            assert answer_of(server, path[1:])[0] == 200, path
        server.server.sessions.refuse_more()
        assert answer_of(server, probes["readiness"]["path"][1:])[0] == 503
        assert answer_of(server, probes["liveness"]["path"][1:])[0] == 200


# -- two replicas ------------------------------------------------------------------------------------------------------

# What a pod may do: no rights, a file system that only has its volumes to write to, and a service account.
IN_A_POD = """
mount --bind "$RECORDS" "$RECORDS"
mount -o remount,ro,bind /
mount -t tmpfs none /run
mkdir -p /run/jumpserver /run/secrets/kubernetes.io
cp -r serviceaccount /run/secrets/kubernetes.io
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


@contextlib.contextmanager
def replica(folder: Path, cluster: StandIn, site: list[Manifest], records: Path) -> Iterator[Program]:
    """A server with the manifests' configuration, in what a pod gives it; its ports are free ones of this host."""
    folder.mkdir()
    config = re.sub(r'"0\.0\.0\.0:700\d"', '"127.0.0.1:0"', mount(site, folder, records))
    account = folder / "serviceaccount"
    account.mkdir()
    for name, text in {"token": cluster.token, "ca.crt": cluster.ca_pem, "namespace": "jumpserver"}.items():
        (account / name).write_text(text)
    python = ("unshare", "--mount", "sh", "-ec", IN_A_POD, "sh", sys.executable)
    program = Program(folder, cluster, config=config, python=python)
    program.secret = SECRETS["token"]
    with program:
        yield program


@pytest.fixture
def replicas(
    cluster: StandIn, site: list[Manifest], postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Program, Program]]:
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/run"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    empty(postgresql)
    records = tmp_path / "records"
    records.mkdir()
    for name, value in {
        "RECORDS": str(records),
        "JUMPSERVER_POSTGRESQL": postgresql,
        "KUBERNETES_SERVICE_HOST": cluster.host,
        "KUBERNETES_SERVICE_PORT": str(cluster.port),
    }.items():
        monkeypatch.setenv(name, value)
    with replica(tmp_path / "a", cluster, site, records) as a, replica(tmp_path / "b", cluster, site, records) as b:
        yield a, b


def test_replicas_have_no_rights_and_a_read_only_file_system(replicas: tuple[Program, Program]) -> None:
    for server in replicas:
        about = Path("/proc", str(server.process.pid))
        assert re.search(r"^CapEff:\s+0+$", (about / "status").read_text(), re.M)
        assert re.search(r"^NoNewPrivs:\s+1$", (about / "status").read_text(), re.M)
        assert re.search(r" / / ro[, ]", (about / "mountinfo").read_text())


def test_replicas_share_ledger_recordings_and_spent_tokens(replicas: tuple[Program, Program]) -> None:
    a, b = replicas
    token = a.token(jti="once")
    with a.connect_with(token) as terminal:
        prompt(terminal)
        (shown,) = sessions(b)
        assert (shown["user"], shown["logout_at"]) == ("alice", None)
        with b.connect_with(token) as second:
            assert "already used" in second.wait_end()["reason"]
        assert end_shell(terminal)["exit_code"] == 0
    wait_until(lambda: sessions(b)[0]["logout_at"])
    status, recording = answer_of(b, b.play_path(shown["filename"])[1:])
    assert status == 200 and "a2b" in recording
    done = run_program("verify", "-jumpserver", b.config_file)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_browser_finds_its_shell_in_the_replica_that_has_it_and_in_no_other(
    replicas: tuple[Program, Program],
) -> None:
    a, b = replicas
    with a.connect() as terminal:
        prompt(terminal)
        terminal.drop()
        b.port, port = a.port, b.port  # through the cookie of the Ingress
        with b.resume(terminal) as back:
            back.type("echo b$((1+1))a\n")
            back.wait_for("b2a")
            b.port = port  # without it
            with b.resume(terminal) as lost:
                assert lost.wait_end()["reason"] == jumpserver.SESSION_OVER.reason
            assert end_shell(back)["exit_code"] == 0


def test_a_session_is_ended_through_any_replica(replicas: tuple[Program, Program]) -> None:
    a, b = replicas
    with a.connect() as terminal:
        status, _ = terminate(b, terminal.wait_for_event("session")["id"])
        assert (status, terminal.wait_end()["reason"]) == (202, "ended by dana: too late")


def test_a_replica_that_is_told_to_stop_is_ready_no_more_and_ends_when_its_terminals_have(
    replicas: tuple[Program, Program],
) -> None:
    a, b = replicas
    with a.connect() as terminal:
        prompt(terminal)
        a.process.send_signal(signal.SIGTERM)
        wait_until(lambda: answer_of(a, "readyz")[0] == 503)
        assert answer_of(a, "healthz")[0] == 200 and answer_of(b, "readyz")[0] == 200
        assert end_shell(terminal)["exit_code"] == 0
    assert a.process.wait(START_SECONDS) == 0


@contextlib.contextmanager
def nobody_connects(place: str) -> Iterator[None]:
    """The database is away: its connections are cut, and it takes no new ones."""
    with psycopg.connect(place.replace("dbname=postgres", "dbname=template1"), autocommit=True) as connection:
        connection.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
        try:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres'")
            yield
        finally:
            connection.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true")


def test_while_the_database_is_away_open_terminals_go_on_and_nobody_else_gets_in(
    replicas: tuple[Program, Program], postgresql: str
) -> None:
    a, b = replicas
    with a.connect() as terminal:
        prompt(terminal)
        (shown,) = sessions(b)
        with nobody_connects(postgresql):
            wait_until(lambda: answer_of(a, "readyz")[0] == answer_of(b, "readyz")[0] == 503)
            assert answer_of(a, "healthz")[0] == answer_of(b, "healthz")[0] == 200
            with b.connect() as refused:
                assert "cannot be written into the ledger" in refused.wait_end()["reason"]
            assert answer_of(b, b.play_path(shown["filename"])[1:])[0] == 503
            terminal.type("echo c$((1+1))d\n")
            terminal.wait_for("c2d")
            assert end_shell(terminal)["exit_code"] == 0
        wait_until(lambda: answer_of(b, "readyz")[0] == 200)
    wait_until(lambda: [item["exit_code"] for item in sessions(b)] == [0])


def sessions(server: Program) -> list[dict[str, Any]]:
    """What the server lists."""
    status, text = answer_of(server, f"sessions?token={server.link_token('audit')}")
    assert status == 200, text
    return cast(list[dict[str, Any]], json.loads(text)["sessions"])


# -- numbers -----------------------------------------------------------------------------------------------------------


def monitor_of(manifests: Path) -> Manifest:
    """What the component adds to an installation that names it."""
    folder = manifests / "monitored"
    if not folder.exists():
        shutil.copytree(manifests / "site", folder)
        file = folder / "kustomization.yaml"
        text = file.read_text()
        assert text.count("# components:\n#   - ") == 1
        file.write_text(text.replace("# components:\n#   - ", "components:\n  - "))
    return named(kustomized(folder), "ServiceMonitor")


def test_prometheus_finds_the_pods_under_the_name_that_the_alerts_use(manifests: Path, site: list[Manifest]) -> None:
    monitor, service = monitor_of(manifests)["spec"], named(site, "Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [item["port"] for item in monitor["endpoints"]] == ["admin"]
    alerts = (ROOT / "deploy" / "alerts.yaml").read_text()
    assert set(re.findall(r'job="(.+?)"', alerts)) == {service["metadata"]["name"]}
    assert named(site, "NetworkPolicy")["spec"]["ingress"][1]["ports"] == [{"port": "admin"}]


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_names_what_is_there(manifests: Path, site: list[Manifest], mounted: Path) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    folders = {folder.name for folder in (ROOT / "deploy" / "kubernetes").iterdir()}
    assert set(re.findall(r"^\| `(\w+)` \| [a-z]", page.partition("## ")[0], re.M)) == folders
    for path in re.findall(r"\b(?:deploy|examples)/[\w./-]*\w|requirements-\w+\.txt", page):
        assert (ROOT / path).exists() or path == "deploy/jumpserver", path
    assert f"`drain_timeout`, {jumpserver.load_config(mounted).Server.drain_timeout} s" in page
    assert f"`terminationGracePeriodSeconds: {pod_of(site)['terminationGracePeriodSeconds']}`" in page


# -- the image ---------------------------------------------------------------------------------------------------------


def test_the_dockerfile_has_nothing_that_hadolint_warns_of() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
