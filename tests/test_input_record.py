"""``[Record] input``: what is typed is recorded, but for what a prompt asks that looks like one for a secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.cluster import StandIn
from recorder import Recorder, asks_for_secret
from tests.support import RunningServer, another_server, newest, nothing_left

ASKING = [
    "[sudo] password for alice: ",
    "[sudo: authenticate] Password: ",
    "\x1b[?2004l\r\nalice@host's password: ",
    "Enter passphrase for key '/home/alice/.ssh/id_ed25519': ",
    "Enter password: ",
    "Password for user alice: ",
    "Token (will be hidden): ",
    "Unseal Key (will be hidden): ",
    "New password:",
    "Password for 'https://alice@github.com': ",
    "Enter the value: ",  # read -s -p
    "Enter PEM pass phrase:",
    "Verification code: ",
    "\x1b[1mPassword\x1b[0m: \x1b[K",
    "\x1b]0;title\x07Password: ",
    "Password: ****",
    "Password: \u2022\u2022\u2022",
    "ready\rPassword: ",
    "Password? ",
    "Enter your PIN (six digits) ",
    "API token [hidden] ",
    "Passwort: ",
    "Passwort fur alice ",
    "Mot de passe\u00a0: ",
    "Contraseña: ",
    "Senha ",
    "Введите пароль ",
    "请输入密码\uff1a",
    "密码",
    "パスワード ",
    "비밀번호 ",
    "x" * 5000 + " Password: ",
]
SILENT = [
    "",
    "alice@pod:~$ ",
    "root@token-service-7d9f:/# ",
    "[root@vault password]# ",
    "bash-5.2$ cat notes",
    "root@pod:~# \x1b[32m",
    "mysql> ",
    ">>> ",
    "(gdb) ",
    "Password: \r\nWelcome\r\n$ ",
    "Wrong password\r\n",
    "Are you sure? [y/N] ",
    "spinning wheel",
    "100%",
]


@pytest.mark.parametrize("output", ASKING, ids=lambda text: ascii(text[-40:]))
def test_a_prompt_for_a_secret_is_known(output: str) -> None:
    assert asks_for_secret(output.encode())


@pytest.mark.parametrize("output", SILENT, ids=ascii)
def test_what_asks_for_nothing_is_known(output: str) -> None:
    assert not asks_for_secret(output.encode())


def test_output_that_is_cut_anywhere_does_no_harm() -> None:
    output = "\x1b[1m密码\x1b[0m: ".encode()
    for start in range(len(output)):
        asks_for_secret(output[start:])
        asks_for_secret(output[:start])


def typed(path: Path) -> list[str]:
    """The data of the input events of a recording."""
    events: list[Any] = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [event[2] for event in events if event[1] == "i"]


def test_input_is_recorded_as_it_was_typed(tmp_path: Path) -> None:
    recording = Recorder(tmp_path / "a.cast", 80, 24)
    recording.input('ls "你"\\\r\x03\x1b[A'.encode())
    recording.close()
    assert typed(tmp_path / "a.cast") == ['ls "你"\\\r\x03\x1b[A']


def test_the_prompt_may_come_in_pieces_and_holds_until_something_else_is_printed(tmp_path: Path) -> None:
    recording = Recorder(tmp_path / "a.cast", 80, 24)
    for piece in ("su\r\nPass", "wor", "d:", " "):
        recording.output(piece.encode())
    for key in "secret\r":
        recording.input(key.encode())
    recording.output(b"\r\n# ")
    recording.input(b"ls\r")
    recording.close()
    assert typed(tmp_path / "a.cast") == ["ls\r"]
    assert "secret" not in (tmp_path / "a.cast").read_text()


@pytest.fixture
def cluster() -> Iterator[StandIn]:
    """Takes the place of the one in support: with a home that has a prompt to wait for."""
    with nothing_left(), StandIn() as running:
        (running.home() / ".bashrc").write_text("PS1='ready> '\nbind 'set enable-bracketed-paste off'\n")
        yield running


@pytest.mark.parametrize("prompt", ["[sudo] password for alice: ", "Enter the value: ", "Kennwort eingeben "])
def test_what_is_typed_is_in_the_recording_and_a_password_is_not(
    cluster: StandIn, tmp_path: Path, prompt: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with another_server(tmp_path, cluster, record_lines="input = true") as server:
        terminal = server.connect()
        terminal.wait_for("ready> ")
        terminal.type(f"read -rsp '{prompt}' secret; echo; echo t''aken\r")

        while not terminal.output.endswith(prompt.encode()):
            terminal.step()
        terminal.type("hunter2")
        terminal.type("\r")
        terminal.wait_for("taken\r\n")
        terminal.type("exit\r")
        terminal.wait_end()
        server.wait_settled()
        keys = "".join(typed(newest(server)))
        assert keys == f"read -rsp '{prompt}' secret; echo; echo t''aken\rexit\r"
        assert "hunter2" not in newest(server).read_text()
        assert b"hunter2" not in server.config.hooks_settings().db.read_bytes()
    assert "hunter2" not in caplog.text and "exit\r" not in caplog.text


def test_what_is_typed_before_the_pod_is_open_is_recorded_too(cluster: StandIn, tmp_path: Path) -> None:
    with another_server(tmp_path, cluster, record_lines="input = true") as server:
        terminal = server.connect(message="Password rules have changed:")
        terminal.type("exit 3\r")
        terminal.wait_end()
        server.wait_settled()
        assert "".join(typed(newest(server))) == "exit 3\r"


def test_by_default_nothing_that_is_typed_is_recorded(server: RunningServer) -> None:
    terminal = server.connect()
    terminal.type("exit 3\r")
    terminal.wait_end()
    server.wait_settled()
    assert typed(newest(server)) == []
