"""The word and the colour of a cluster or a token: who may say them, where they are shown, and who can read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

import hooks
import jumpserver
from demo.cluster import StandIn
from tests.support import RunningServer, another_server, answer_of, end_shell, last_row, run_program
from tests.test_accessibility import findings
from tests.test_pages import open_terminal
from tests.test_player_page import cast, play, player_text

PRODUCTION = '{kubeconfig = "kubeconfig.yaml", label = "production", colour = "red"}'
RED = "#e5484d"


@pytest.fixture
def marked(tmp_path: Path, cluster: StandIn) -> Iterator[RunningServer]:
    """A server whose one cluster is marked as production."""
    secret = "s" * 32
    config = '[Server]\nlisten = "127.0.0.1:0"\nresume_grace = 0\n'
    config += f'[Token]\nsecret = "{secret}"\n[Clusters]\nstandin = {PRODUCTION}\n'
    with another_server(tmp_path, cluster, config=config) as running:
        running.secret = secret
        yield running


def marks(server: RunningServer, **claims: Any) -> tuple[str, str]:
    with server.connect(**claims) as terminal:
        session = terminal.wait_for_event("session")
    return session["label"], session["colour"]


def test_a_cluster_is_marked_by_the_configuration(marked: RunningServer) -> None:
    assert marks(marked) == ("production", RED)
    assert marked.hooks.settings.clusters["standin"].name == "kubeconfig.yaml"


def test_a_cluster_that_is_a_file_alone_has_no_mark(server: RunningServer) -> None:
    assert marks(server) == ("", "")


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"label": "staging"}, ("staging", RED)),
        ({"label": "生产", "colour": "#ABCDEF"}, ("生产", "#abcdef")),
        ({"colour": "green"}, ("production", "#3fa76d")),
        ({"label": "", "colour": None}, ("production", RED)),
    ],
)
def test_what_a_token_says_wins(marked: RunningServer, claims: dict[str, Any], expected: tuple[str, str]) -> None:
    assert marks(marked, **claims) == expected


@pytest.mark.parametrize(
    "claims",
    [
        {"label": 1},
        {"label": "x" * 25},
        {"label": "a\nb"},
        {"label": "\u202eabc"},
        {"label": "\ud800"},
        {"colour": "url(a)"},
        {"colour": "#fff"},
    ],
)
def test_a_field_of_that_name_that_is_no_mark_comes_back_as_every_other_does(claims: dict[str, Any]) -> None:
    auth = hooks.auth_data({"pod_name": "demo", **claims}, {})
    assert (auth.label, auth.colour, auth.extra) == ("", "", claims)


def test_sessions_are_listed_with_their_marks_open_or_not(marked: RunningServer) -> None:
    path = f"sessions?token={marked.link_token('audit')}"

    def listed() -> list[tuple[str, str]]:
        return [(row["label"], row["colour"]) for row in json.loads(answer_of(marked, path)[1])["sessions"]]

    with marked.connect(label="mine") as terminal:
        terminal.wait_for_event("session")
        assert listed() == [("mine", RED)]
    marked.wait_settled()
    assert listed() == [("production", RED)]  # the ledger does not keep what the token said


def test_check_accepts_both_forms(tmp_path: Path, cluster: StandIn) -> None:
    (tmp_path / "kubeconfig.yaml").write_text(cluster.kubeconfig())
    file = tmp_path / "jumpserver.toml"
    file.write_text(f'[Record]\npath = "records"\n[Clusters]\nplain = "kubeconfig.yaml"\nproduction = {PRODUCTION}\n')
    assert run_program("--check", "-jumpserver", file).returncode == 0
    clusters = jumpserver.load_config(file).Clusters
    assert clusters["plain"].kubeconfig == clusters["production"].kubeconfig == tmp_path / "kubeconfig.yaml"


@pytest.mark.parametrize("width", [375, 768, 1440])
def test_the_word_stands_in_the_bar_beside_cluster_and_namespace(
    marked: RunningServer, browser: Browser, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 700})
    open_terminal(page, marked.terminal_url())
    for selector, text in {
        "#mark": "production",
        "#namespace": "namespace default",
        "#cluster": "cluster standin",
    }.items():
        expect(page.locator(selector)).to_have_text(text)
        box = page.locator(selector).bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width, selector
    assert page.locator("#mark").evaluate("(mark) => getComputedStyle(mark).borderColor") == "rgb(229, 72, 77)"
    page.close()


def test_a_recording_is_replayed_with_the_mark_that_its_terminal_had(marked: RunningServer, page: Page) -> None:
    with marked.connect(label="mine", colour="green") as terminal:
        end_shell(terminal)
    marked.wait_settled()
    page.goto(marked.player_url(last_row(marked)["filename"]))
    expect(page.locator("#mark")).to_have_text("mine")
    expect(page.locator("#meta")).to_contain_text("cluster standin")
    assert page.locator("#mark").evaluate("(mark) => getComputedStyle(mark).borderColor") == "rgb(63, 167, 109)"


@pytest.mark.parametrize("place", [1, None, [], {"cluster": 1, "label": {}, "colour": "url(x)"}, {"colour": RED}])
def test_a_recording_of_another_kind_has_none(server: RunningServer, page: Page, place: Any) -> None:
    play(server, page, cast([0.1, "o", "shown"], jumpserver=place))
    player_text(page, "shown")
    expect(page.locator("#mark")).to_be_hidden()


def test_a_colour_without_a_word_is_never_shown_alone(server: RunningServer, page: Page) -> None:
    open_terminal(page, server.terminal_url(colour="purple"))
    expect(page.locator("#mark")).to_have_text("standin")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_word_can_be_read_on_any_colour(server: RunningServer, page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    open_terminal(page, server.terminal_url(label="production"))
    for colour in ["", *hooks._COLOURS.values(), "#000000", "#ffffff", "#777777", "#0b0e14", "#00ff00", "#ff00ff"]:
        page.evaluate("(colour) => document.body.style.setProperty('--mark', colour || null)", colour)
        assert findings(page, ["color-contrast"]) == [], colour
