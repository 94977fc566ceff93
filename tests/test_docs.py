"""README.md and docs/ say what the code does, their links lead somewhere, and their examples work."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import re
import subprocess
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

import hooks
import jumpserver
from tests.sentences import MODULES, ROOT
from tests.support import need_program

PAGES = sorted(
    str(page.relative_to(ROOT)) for pattern in ("*.md", "docs/**/*.md", "bench/*.md") for page in ROOT.glob(pattern)
)
SECRET = "at least 32 bytes that only platform and jumpserver know"


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def rows(page: str) -> list[str]:
    return [line for line in text_of(page).splitlines() if line.startswith("|")]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.M | re.S)


def all_blocks(*languages: str) -> list[Any]:
    """Each code block of these languages, with the name of its page and its number there."""
    return [
        pytest.param(text, id=f"{page}-{number}")
        for page in PAGES
        for language in languages
        for number, text in enumerate(blocks(page, language), 1)
    ]


# -- what the code has stands in the pages ----------------------------------------------------------------------------


def settings() -> list[tuple[str, str, str]]:
    """(section, key, default as TOML writes it) of every setting."""
    found = []
    for section, kind in jumpserver._SECTIONS.items():
        for item in dataclasses.fields(kind):
            default = list(item.default) if isinstance(item.default, tuple) else item.default
            found.append((section, item.name, json.dumps(default)))
    return found


def documented_settings() -> list[tuple[str, str, str]]:
    found, section = [], ""
    for row in rows("docs/configure.md"):
        match = re.match(r"\| (?:`\[(\w+)\]`)? ?\| `(\w+)` \| `([^`]+)` \|", row)
        if match:
            section = match[1] or section
            found.append((section, match[2], match[3]))
    return found


def test_every_setting_stands_in_configure_with_its_default() -> None:
    assert documented_settings() == settings()


def test_what_a_reload_cannot_change_stands_in_configure() -> None:
    (row,) = [row for row in rows("docs/configure.md") if row.startswith("| stays as it was")]
    assert re.findall(r"`(\w+)`", row) == [key for keys in jumpserver._FIXED.values() for key in keys]


def test_every_route_stands_in_wire() -> None:
    pages = [route for route in jumpserver.ASSETS if route == "/" or route.endswith(".html")]
    for route in (*jumpserver.Handler.ROUTES, *pages):
        if route != "/index.html":  # the same as "/"
            assert any(row.startswith(f"| `{route}") for row in rows("docs/wire.md")), route


def test_every_close_code_stands_in_wire_with_its_http_status() -> None:
    for code, status in jumpserver._HTTP_STATUS.items():
        assert any(row.startswith(f"| {code} | {status} |") for row in rows("docs/wire.md")), code


def test_every_hook_stands_in_integrate() -> None:
    told = re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows("docs/integrate.md")))
    for name, _ in inspect.getmembers(hooks.Hooks, inspect.isfunction):
        assert name.startswith("_") or name in told, name


def test_every_field_of_a_session_and_a_token_stands_in_integrate() -> None:
    page = text_of("docs/integrate.md")
    kept_back = {"auth", "cluster_file"}
    for kind in (hooks.SessionInfo, hooks.TokenAuthData):
        for item in dataclasses.fields(kind):
            assert item.name in kept_back or re.search(rf"[`\"]{item.name}[`\"=]", page), item.name


def test_the_platform_is_told_the_fields_that_integrate_lists() -> None:
    info = hooks.SessionInfo("id", "file", hooks.TokenAuthData("n", "p"), "remote", 0.0)
    section = text_of("docs/integrate.md").split("\n### `login_url`")[1].split("\n## ")[0]
    listed = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", section, re.M)))
    assert sorted(listed) == sorted(info.as_json())


def test_every_scope_stands_in_audit() -> None:
    for words in hooks._SCOPES.values():
        for word in words:
            assert any(row.startswith(f"| `{word}` |") for row in rows("docs/audit.md")), word


def test_every_kind_of_entry_stands_in_audit() -> None:
    told = re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows("docs/audit.md")))
    written = first_words("_enter", "_note", "append", "_append", "_add") | LOOKS | set(hooks._ROW_ENTRIES)
    for kind in sorted(written):
        assert kind in told, kind


# What is written into chain and log under a name that is handed on.
LOOKS = {"list", "search"}


def first_words(*functions: str) -> set[str]:
    """The names that stand as the first argument of calls of these functions and methods."""
    found = set()
    for module in MODULES:
        for node in ast.walk(ast.parse(text_of(module))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                word = node.args[0].value
                if function in functions and isinstance(word, str) and word.isidentifier():
                    found.add(word)
    return found


def test_every_number_stands_in_operate_with_its_label() -> None:
    told = re.findall(r"`jumpserver_(\w+)(?:{([\w,]+)})?`", " ".join(rows("docs/operate.md")))
    text = jumpserver.Metrics().text(**dict.fromkeys(jumpserver.GAUGES, 0.0))
    labels = dict.fromkeys(re.findall(r"^# TYPE jumpserver_(\w+) ", text, re.M), "")
    for name, inside in re.findall(r"^jumpserver_(\w+?)(?:_bucket|_count|_sum)?{(.*)} ", text, re.M):
        labels[name] = ",".join(label for label in re.findall(r'(\w+)="', inside) if label != "le")
    assert sorted(told) == sorted(labels.items())


def test_every_event_of_the_log_stands_in_operate() -> None:
    section = text_of("docs/operate.md").split("\n### The log\n")[1].split("\n## ")[0]
    events = first_words("log_event", "_enter", "_note") | LOOKS
    assert len(events) > 20
    for event in sorted(events):
        assert f"`{event}`" in section, event


def test_every_command_and_its_options_stand_in_audit_or_operate() -> None:
    said = text_of("docs/audit.md") + text_of("docs/operate.md")
    (commands,) = [a for a in jumpserver._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for name, parser in commands.choices.items():
        assert re.search(rf"(`|\.pyz? ){name}\b", said), name
        for action in parser._actions:
            long = [option for option in action.option_strings if option.startswith("--")]
            assert not long or long[-1] in ("--help", "--jumpserver") or long[-1] in said, (name, long)


def test_what_architecture_names_is_there() -> None:
    table = "".join(rows("docs/architecture.md"))
    code = "".join(map(text_of, MODULES))
    for name in re.findall(r"`(_?[A-Za-z]\w+)(?:\.\w+)?`", table):
        assert re.search(rf"\b{name}\b", code) or (ROOT / f"{name}.py").exists(), name
    for part in re.findall(r"[\"]([a-z ]+)[\"]", table):
        assert re.search(rf"^# -- {part}\b", code, re.M), part


# -- links ------------------------------------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """What links may lead to: the headings, as GitHub and GitLab spell them."""
    found: dict[str, int] = {}
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


def links(page: str) -> list[str]:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text_of(page), flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_and_anchor_leads_somewhere(page: str) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        if urllib.parse.urlsplit(link).scheme:
            continue
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert ROOT in target.parents, f"{page}: {link} leads out of the tree"
        if anchor:
            assert anchor in anchors(str(target.relative_to(ROOT))), f"{page}: {link}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        near = [((ROOT / page).parent / link.partition("#")[0]).resolve() for link in links(page)]
        pages = {str(file.relative_to(ROOT)) for file in near if file.suffix == ".md" and file.exists()}
        waiting += pages - seen - set(waiting)
    assert [page for page in PAGES if page.startswith("docs/") and page not in seen] == []


def test_the_pictures_are_small() -> None:
    assert sum(file.stat().st_size for file in (ROOT / "docs" / "images").iterdir()) <= 300_000


def test_the_readme_is_one_screen() -> None:
    assert len(text_of("README.md").splitlines()) <= 100


def test_the_commands_of_the_pages_are_targets_of_the_makefile() -> None:
    makefile = text_of("Makefile")
    commands = [target for page in PAGES for target in re.findall(r"^    make (\w+)", text_of(page), re.M)]
    assert {"demo", "test"} <= set(re.findall(r"^    make (\w+)$", text_of("README.md"), re.M))
    for target in commands:
        assert f"\n{target}:" in makefile, target


# -- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", all_blocks("toml"))
def test_every_configuration_of_the_pages_is_accepted(tmp_path: Path, text: str) -> None:
    if "[Clusters]" in text:  # the file that it names must exist
        (tmp_path / "cluster").write_text(
            "current-context: a\ncontexts: [{name: a, context: {cluster: a}}]\n"
            "clusters: [{name: a, cluster: {server: 'https://192.0.2.1'}}]\n"
        )
        text = re.sub(r'"[^"]+\.kubeconfig"', '"cluster"', text)
    (tmp_path / "jumpserver.toml").write_text(text)
    jumpserver.load_config(tmp_path / "jumpserver.toml")


@pytest.mark.parametrize("text", all_blocks("python"))
def test_every_python_of_the_pages_is_python(text: str) -> None:
    ast.parse(text)


@pytest.mark.parametrize("text", all_blocks("json"))
def test_every_json_of_the_pages_is_json(text: str) -> None:
    json.loads(text)


@pytest.fixture
def own_hooks(tmp_path: Path) -> Iterator[hooks.Hooks]:
    """The hooks that ship, with the secret and the cluster of the examples."""
    (tmp_path / "production").write_text("kubeconfig")
    own = hooks.Hooks(
        hooks.HooksSettings(tmp_path / "db", secret=SECRET, clusters={"production": tmp_path / "production"})
    )
    own.open()
    yield own
    own.close()


def check_token(own_hooks: hooks.Hooks, token: str) -> None:
    """It is what all the examples mint: for one terminal, of a minute."""
    claims = jwt.decode(token, SECRET, ["HS256"])
    assert 50 < claims["exp"] - time.time() <= 61
    auth = own_hooks.validate_ssh_token(token)
    assert (auth.user, auth.cluster, auth.namespace) == ("alice", "production", "shop")
    assert (auth.pod_name, auth.container_name, auth.reusable) == ("cart-7d9f", "app", False)
    with pytest.raises(hooks.Denied, match="already used"):
        own_hooks.validate_ssh_token(token)


def test_the_token_that_python_mints_is_accepted_once(own_hooks: hooks.Hooks) -> None:
    names: dict[str, Any] = {}
    exec(blocks("docs/integrate.md", "python")[0], names)
    assert names["link"].endswith(f"/jumpserver/#ssh_token={names['ssh_token']}")
    check_token(own_hooks, names["ssh_token"])


def test_the_token_that_javascript_mints_is_accepted_once(own_hooks: hooks.Hooks) -> None:
    (script,) = blocks("docs/integrate.md", "js")
    command = [need_program("node"), "--input-type=module", "--eval", f"{script}\nconsole.log(link);"]
    link = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=True).stdout.strip()
    check_token(own_hooks, link.partition("/jumpserver/#ssh_token=")[2])


@pytest.mark.parametrize("language", ["go", "java", "php"])
def test_the_other_languages_mint_the_same_claims(language: str) -> None:
    (example,) = blocks("docs/integrate.md", language)
    for text in ("alice", "production", "shop", "cart-7d9f", "app", SECRET):
        assert re.search(rf"['\"]{text}['\"]", example) or (text == SECRET and "secret []byte" in example), text


def test_every_claim_that_integrate_lists_is_read(own_hooks: hooks.Hooks) -> None:
    names = ("namespace", "pod_name", "container_name", "context", "directory", "message", "label")
    texts = {name: f"a-{name}" for name in names}
    claims: dict[str, Any] = {
        **texts,
        "exp": time.time() + 60,
        "nbf": time.time(),
        "jti": "j",
        "sub": "alice",
        "scope": "terminal",
        "cluster": "production",
        "colour": "#00ff00",
        "command": ["python3", "-i"],
        "max_duration": 5,
        "idle_timeout": 6,
    }
    section = text_of("docs/integrate.md").split("\n### The claims\n")[1].split("\n### ")[0]
    listed = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", section, re.M)))
    assert sorted(listed) == sorted(claims)
    auth = own_hooks.validate_ssh_token(jwt.encode({**claims, "release": "r7"}, SECRET, "HS256"))
    assert {name: getattr(auth, name) for name in texts} == texts
    assert (auth.user, auth.cluster, auth.command) == ("alice", "production", ("python3", "-i"))
    assert (auth.max_duration, auth.idle_timeout, auth.colour, auth.extra["release"]) == (5, 6, "#00ff00", "r7")


def test_the_link_example_may_play_that_recording(own_hooks: hooks.Hooks) -> None:
    names: dict[str, Any] = {"jwt": jwt, "time": time, "secret": SECRET, "filename": "a.cast"}
    exec(blocks("docs/integrate.md", "python")[1], names)
    assert own_hooks.authorize(names["play"], "play", "a.cast") == "auditor"
    with pytest.raises(hooks.Denied, match="another recording"):
        own_hooks.authorize(names["play"], "play", "b.cast")


def test_the_platforms_answer_in_the_page_is_accepted() -> None:
    auth = hooks.auth_data(json.loads(blocks("docs/integrate.md", "json")[0]), {})
    assert (auth.user, auth.pod_name) == ("alice", "cart-7d9f")


def test_the_hooks_example_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_platform.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "our_hooks.py").write_text(blocks("docs/integrate.md", "python")[2])
    own = hooks.load_hooks(tmp_path / "our_hooks.py")
    assert (own.__name__, own.actions) == ("OurHooks", hooks.Hooks.actions)


def test_the_token_of_the_readme_is_accepted(own_hooks: hooks.Hooks) -> None:
    names: dict[str, Any] = {"jwt": jwt, "time": time, "uuid": uuid, "secret": SECRET}
    exec(blocks("README.md", "python")[0], names)
    assert own_hooks.validate_ssh_token(names["token"]).pod_name == "cart-7d9f"
