"""README.md says what the code does: settings, routes, hooks, session fields, close codes and commands."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

import hooks
import jumpserver

README = (Path(__file__).parent.parent / "README.md").read_text()
ROWS = [line for line in README.splitlines() if line.startswith("|")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def settings() -> list[tuple[str, str, str]]:
    """(section, key, default as TOML writes it) of every setting."""
    found = []
    for section, kind in jumpserver._SECTIONS.items():
        for item in dataclasses.fields(kind):
            default = list(item.default) if isinstance(item.default, tuple) else item.default
            found.append((section, item.name, json.dumps(default)))
    return found


def documented() -> list[tuple[str, str, str]]:
    found, section = [], ""
    for row in ROWS:
        match = re.match(r"\| (?:`\[(\w+)\]`)? ?\| `(\w+)` \| `([^`]+)` \|", row)
        if match:
            section = match[1] or section
            found.append((section, match[2], match[3]))
    return found


def test_every_setting_stands_in_the_readme_with_its_default() -> None:
    assert documented() == settings()


def test_every_route_stands_in_the_readme() -> None:
    routes = [*jumpserver.Handler.ROUTES, *(route for route in jumpserver.ASSETS if route in ("/", "/player.html"))]
    for route in routes:
        assert any(row.startswith(f"| `{route}") for row in ROWS), route


def test_every_hook_stands_in_the_readme() -> None:
    for name, _ in inspect.getmembers(hooks.Hooks, inspect.isfunction):
        if not name.startswith("_"):
            assert f"`{name}`" in README, name


def test_every_field_of_a_session_and_a_token_stands_in_the_readme() -> None:
    kept_back = {"auth", "extra", "cluster_file", "reusable"}
    for kind in (hooks.SessionInfo, hooks.TokenAuthData):
        for item in dataclasses.fields(kind):
            assert item.name in kept_back or f'"{item.name}"' in README or f"`{item.name}`" in README, item.name


def test_every_close_code_stands_in_the_readme() -> None:
    for code in jumpserver._HTTP_STATUS:
        assert str(code) in README, code


@pytest.mark.parametrize("text", blocks("toml"))
def test_every_configuration_of_the_readme_is_accepted(tmp_path: Path, text: str) -> None:
    if "[Clusters]" in text:  # the file that it names must exist
        (tmp_path / "cluster").write_text(
            "current-context: a\ncontexts: [{name: a, context: {cluster: a}}]\n"
            "clusters: [{name: a, cluster: {server: 'https://192.0.2.1'}}]\n"
        )
        text = text.replace("/etc/jumpserver/production.kubeconfig", "cluster")
    (tmp_path / "jumpserver.toml").write_text(text)
    jumpserver.load_config(tmp_path / "jumpserver.toml")


def test_the_token_example_is_accepted_and_names_every_claim(tmp_path: Path) -> None:
    example, secret = blocks("python")[0], "at least 32 bytes that only platform and jumpserver know"
    names: dict[str, Any] = {}
    exec(example, names)
    (tmp_path / "production").write_text("kubeconfig")
    settings = hooks.HooksSettings(tmp_path / "db", secret=secret, clusters={"production": tmp_path / "production"})
    own = hooks.Hooks(settings)
    own.open()
    try:
        auth = own.validate_ssh_token(names["ssh_token"])
    finally:
        own.close()
    assert (auth.user, auth.namespace, auth.pod_name, auth.container_name) == ("alice", "shop", "cart-7d9f", "app")
    assert (auth.command, auth.directory, auth.message) == (("python3",), "/srv", "Production!")


def test_the_link_example_may_play_that_recording(tmp_path: Path) -> None:
    names: dict[str, Any] = {"jwt": jwt, "time": time, "secret": "s" * 32, "filename": "a.cast"}
    exec(blocks("python")[1], names)
    own = hooks.Hooks(hooks.HooksSettings(tmp_path / "db", secret="s" * 32))
    assert own.authorize(names["play"], "play", "a.cast") == "auditor"


def test_the_platforms_answer_in_the_readme_is_accepted() -> None:
    auth = hooks.auth_data(json.loads(blocks("json")[0]), {})
    assert (auth.user, auth.pod_name) == ("alice", "cart-7d9f")


def test_the_hooks_example_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_platform.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "our_hooks.py").write_text(blocks("python")[2])
    assert hooks.load_hooks(tmp_path / "our_hooks.py").__name__ == "OurHooks"


def test_the_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.M):
        assert f"\n{target}:" in makefile, target
