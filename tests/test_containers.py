"""Which container is opened where a token names none: the user chooses, if nothing else does."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

import jumpserver
from demo.cluster import DEFAULT_PODS, DEFAULT_USERS, Pod, StandIn, User
from k8s_exec import running_containers
from tests.support import RunningServer, end_shell, last_row, nothing_left, wait_until
from tests.test_accessibility import findings
from tests.test_pages import open_terminal, phase, run, wait_for_text

ANNOTATED = Pod("default", "annotated", containers=("c1", "c2"), default_container="c2")
WITH_HELPERS = Pod("default", "helpers", containers=("app", "cache"), sidecars=("proxy",), debuggers=("debugger-x",))
SEVERAL = "the pod has several containers, choose one of: c1 c2"


@pytest.fixture
def cluster() -> Iterator[StandIn]:
    users = (*DEFAULT_USERS, User("blind", reads_pods=False))
    with nothing_left(), StandIn(pods=(*DEFAULT_PODS, ANNOTATED, WITH_HELPERS), users=users) as running:
        yield running


def recorded(server: RunningServer) -> str:
    return (server.config.record_path / server.recordings()[-1]).read_text()


def chosen(server: RunningServer) -> list[str]:
    return [entry.values["container"] for entry in server.hooks.ledger.entries() if entry.kind == "container"]


def test_the_chosen_container_is_opened_and_stands_in_ledger_chain_and_recording(server: RunningServer) -> None:
    with server.connect("multi", jti="once") as terminal:
        offer = terminal.wait_for_event("choose")
        assert (offer["containers"], offer["seconds"]) == (["c1", "c2"], jumpserver.CHOICE_SECONDS)
        assert (offer["pod"], offer["namespace"], offer["cluster"]) == ("multi", "default", "standin")
        terminal.send(type="container", name="c2")
        assert terminal.wait_for_event("session")["container"] == "c2"
        terminal.type("echo chosen-$((1 + 1))\n")
        terminal.wait_for("chosen-2")
        assert end_shell(terminal)["exit_code"] == 0
    server.wait_settled()
    assert last_row(server)["container_name"] == "c2" and len(server.rows()) == 1
    assert [record.container for record in server.cluster.execs][:2] == ["", "c2"]
    assert '"container c2 chosen"' in recorded(server)
    wait_until(lambda: chosen(server) == ["c2"], "the chain's entry")


def test_only_what_was_offered_can_be_chosen_and_only_once(server: RunningServer) -> None:
    with server.connect("multi") as terminal:
        terminal.send(type="container", name="c1")  # before it was asked for
        terminal.wait_for_event("choose")
        for name in ("c3", "", "../c1", "c1 "):
            terminal.send(type="container", name=name)
        terminal.send(type="container", name="c2")
        terminal.send(type="container", name="c1")
        assert terminal.wait_for_event("session")["container"] == "c2"
    assert {record.container for record in server.cluster.execs} == {"", "c2"}


def test_a_choice_that_is_no_text_is_a_bad_message(server: RunningServer) -> None:
    with server.connect("multi") as terminal:
        terminal.wait_for_event("choose")
        terminal.send(type="container", name=["c1"])
        assert terminal.wait_end()["reason"] == jumpserver.NOT_UNDERSTOOD.reason


def test_sidecars_and_debuggers_that_run_can_be_chosen_too(server: RunningServer) -> None:
    with server.connect("helpers") as terminal:
        assert terminal.wait_for_event("choose")["containers"] == ["app", "cache", "proxy", "debugger-x"]
        terminal.send(type="container", name="proxy")
        assert terminal.wait_for_event("session")["container"] == "proxy"


def test_where_a_container_is_named_or_annotated_nobody_is_asked(server: RunningServer) -> None:
    for pod, named, container in (("multi", "c1", "c1"), ("annotated", None, "c2")):
        with server.connect(pod, container_name=named) as terminal:
            assert terminal.wait_for_event("session")["container"] == container
            assert "choose" not in [event["type"] for event in terminal.events]


def test_without_the_right_to_look_at_the_pod_the_clusters_own_list_is_offered(
    server: RunningServer, cluster: StandIn
) -> None:
    (server.folder / "kubeconfig.yaml").write_text(cluster.kubeconfig(user="blind"))
    with server.connect("multi") as terminal:
        assert terminal.wait_for_event("choose")["containers"] == ["c1", "c2"]
        terminal.send(type="container", name="c1")
        assert terminal.wait_for_event("session")["container"] == "c1"


def test_a_client_of_the_original_is_refused_with_the_names(server: RunningServer) -> None:
    with server.connect("multi", v1=False) as terminal:
        terminal.wait_end()
    assert terminal.output.decode() == f"\r\n[jumpserver] {SEVERAL}\r\n"


def test_who_does_not_choose_in_time_is_refused_with_the_names(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumpserver, "CHOICE_SECONDS", 0.2)
    with server.connect("multi") as terminal:
        assert terminal.wait_end()["reason"] == SEVERAL
    assert terminal.close_code == jumpserver.CLUSTER


def test_who_leaves_instead_of_choosing_leaves_nothing_behind(server: RunningServer) -> None:
    with server.connect("multi") as terminal:
        terminal.wait_for_event("choose")
    server.wait_settled()
    assert last_row(server)["reason"] == jumpserver.BROWSER_LEFT.reason
    assert {record.container for record in server.cluster.execs} == {""}


def test_a_server_that_stops_waits_for_no_choice(server: RunningServer) -> None:
    with server.connect("multi") as terminal:
        terminal.wait_for_event("choose")
        server.stop()
        assert terminal.wait_end()["reason"] == jumpserver.SHUTTING_DOWN.reason


def statuses(**states: object) -> bytes:
    return json.dumps({"status": {"containerStatuses": [{"name": n, "state": s} for n, s in states.items()]}}).encode()


def test_only_containers_that_run_are_offered() -> None:
    body = statuses(app={"running": {}}, job={"terminated": {"exitCode": 0}}, slow={"waiting": {}}, log={"running": {}})
    assert running_containers(body) == ("app", "log")
    assert running_containers(statuses(**{"a\x1b": {"running": {}}, "b": {"running": {}}})) == ("b",)
    assert len(running_containers(statuses(**{f"c{number}": {"running": {}} for number in range(1000)}))) == 100


@pytest.mark.parametrize("body", [b"", b"[]", b'{"status":7}', b'{"status":{"containerStatuses":[7]}}', b"[" * 100_000])
def test_a_pod_that_makes_no_sense_offers_nothing(body: bytes) -> None:
    assert running_containers(body) == ()


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_offers_them_and_the_keyboard_chooses(server: RunningServer, page: Page) -> None:
    page.goto(server.terminal_url("multi", label="production", colour="red", jti="once"))
    phase(page, "choosing")
    expect(page.locator("#mark")).to_have_text("production")
    expect(page.locator("#target")).to_have_text("multi")
    expect(page.get_by_role("button", name="c1")).to_be_focused()
    assert findings(page) == []
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("button", name="c2")).to_be_focused()
    page.keyboard.press("Enter")
    phase(page, "connected")
    expect(page.locator("#target")).to_have_text("multi / c2")
    run(page, "echo keyboard-$((1 + 1))")
    wait_for_text(page, "keyboard-2")


def test_a_page_that_reconnects_asks_again(server: RunningServer, page: Page) -> None:
    page.goto(server.terminal_url("multi"))
    for name in ("c1", "c2"):
        page.get_by_role("button", name=name).click()
        phase(page, "connected")
        expect(page.locator("#target")).to_have_text(f"multi / {name}")
        run(page, "exit")
        phase(page, "ended")
        page.get_by_role("button", name="Reconnect").click()
    phase(page, "choosing")


def test_a_page_that_waits_too_long_says_which_there_are(
    server: RunningServer, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jumpserver, "CHOICE_SECONDS", 0.2)
    page.goto(server.terminal_url("multi"))
    phase(page, "refused")
    expect(page.locator("#notice-text")).to_have_text("The pod has several containers, choose one of: c1 c2.")
    expect(page.locator("#container-card")).to_be_hidden()


def test_a_pod_with_one_container_is_opened_at_once(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url())
    expect(page.locator("#container-card")).to_be_hidden()
