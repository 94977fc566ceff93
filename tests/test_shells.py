"""How a terminal begins: which shell, where, in which language and size, and what is said above the first prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.cluster import DEFAULT_PODS, Pod, StandIn
from tests.support import RunningServer, Terminal, nothing_left, wait_until

PODS = (
    *DEFAULT_PODS,
    Pod("default", "odd", programs=(), elsewhere=("/usr/bin/bash",)),
    Pod("default", "odd-sh", programs=("bash",)),
    Pod("default", "chinese", environment=(("LANG", "zh_CN.GBK"),)),
    Pod("default", "typed", environment=(("LC_CTYPE", "C"),)),
    Pod("default", "no-stty", tools=("cat", "sleep")),
)
LATE_SECONDS = 0.3


@pytest.fixture
def cluster() -> Iterator[StandIn]:
    """Takes the place of the one in support: with images that lack this and that."""
    with nothing_left(), StandIn(pods=PODS) as running:
        yield running


def said(server: RunningServer, pod: str, keys: str, **claims: Any) -> str:
    """What a new terminal shows once these keys are typed and the shell is told to leave."""
    terminal = server.connect(pod, **claims)
    terminal.type(f"{keys}\nexit\n")
    assert terminal.wait_end()["reason"] == "the shell has ended", terminal.output
    return terminal.output.decode()


@pytest.mark.parametrize(
    ("pod", "shell"),
    [("demo", "bash"), ("odd-sh", "bash"), ("odd", "/usr/bin/bash"), ("busybox", "sh")],
    ids=["bash and sh", "bash alone", "bash outside of PATH", "sh alone"],
)
def test_the_best_shell_of_the_image_is_opened(server: RunningServer, pod: str, shell: str) -> None:
    # $0 is the name under which the shell was started; only bash has BASH_VERSION.
    output = said(server, pod, 'echo "it is $0${BASH_VERSION:+ with a version}."')
    assert f"it is {shell}{' with a version' if 'bash' in shell else ''}.\r\n" in output


def test_an_image_without_a_shell_is_told_in_a_sentence(server: RunningServer) -> None:
    terminal = server.connect("distroless")
    reason = terminal.wait_end()["reason"]
    assert reason.startswith("the container's image has no shell and nothing else that could be run")
    assert reason.encode() in terminal.output
    assert terminal.close_code == 4502


def test_a_program_that_the_image_has_runs_without_a_shell(server: RunningServer) -> None:
    terminal = server.connect("distroless", command=["cat", "/proc/self/cmdline"])
    assert terminal.wait_end()["exit_code"] == 0
    assert terminal.output == b"cat\0/proc/self/cmdline\0"


def test_a_program_that_the_image_has_not_is_named(server: RunningServer) -> None:
    assert "(tried: nano)" in server.connect("distroless", command=["nano"]).wait_end()["reason"]


def test_the_command_of_a_token_runs_in_place_of_a_shell(server: RunningServer) -> None:
    arguments = ["a b", "$HOME", "'", '"; exit 9', "*", "", "你好"]
    terminal = server.connect(command=["printf", "<%s>", *arguments])
    assert terminal.wait_end()["exit_code"] == 0
    assert terminal.output.decode() == "".join(f"<{argument}>" for argument in arguments)


def test_the_exit_code_of_the_command_is_told(server: RunningServer) -> None:
    end = server.connect(command=["sh", "-c", "exit 7"]).wait_end()
    assert end == {"type": "end", "reason": "the shell has ended with exit code 7", "exit_code": 7, "reusable": True}


@pytest.mark.parametrize("name", ["work", "a folder; with $(id) 'quotes'"])
def test_a_token_may_name_the_folder(cluster: StandIn, server: RunningServer, name: str) -> None:
    folder = cluster.home() / name
    folder.mkdir()
    assert f"in {folder}.\r\n" in said(server, "demo", 'echo "in $PWD."', directory=str(folder))
    terminal = server.connect(directory=str(folder), command=["pwd"])
    terminal.wait_end()
    assert terminal.output.decode() == f"{folder}\r\n"


def test_a_folder_that_is_not_there_ends_with_the_shells_own_words(server: RunningServer) -> None:
    terminal = server.connect(directory="/nowhere")
    assert terminal.wait_end()["exit_code"] == 1
    assert b"/nowhere" in terminal.output


def test_the_message_of_a_token_stands_above_the_first_prompt_and_in_the_recording(server: RunningServer) -> None:
    message = "This is production. 请小心 🚨"
    assert said(server, "demo", "", message=message).startswith(f"{message}\r\n")
    wait_until(lambda: server.rows()[0]["logout_at"])
    lines = Path(server.rows()[0]["filename"]).read_text().splitlines()
    assert json.loads(lines[1])[1:] == ["o", f"{message}\r\n"]


def test_a_message_cannot_steer_the_terminal(server: RunningServer) -> None:
    output = said(server, "demo", "", message="first\r\n\x1b[2Jsecond\x07")
    assert output.startswith("first [2Jsecond\r\n")


@pytest.mark.parametrize(
    ("pod", "language"), [("demo", "<C.UTF-8><>"), ("chinese", "<zh_CN.GBK><>"), ("typed", "<><C>")]
)
def test_the_language_is_unicode_where_the_image_says_nothing(server: RunningServer, pod: str, language: str) -> None:
    terminal = server.connect(pod, command=["sh", "-c", 'printf "<%s><%s>" "$LANG" "$LC_CTYPE"'])
    terminal.wait_end()
    assert terminal.output.decode() == language


def test_the_terminals_type_is_that_of_the_page(server: RunningServer) -> None:
    assert "of xterm-256color.\r\n" in said(server, "demo", 'echo "of $TERM."')


def size_of(server: RunningServer, **options: Any) -> str:
    terminal = server.connect(command=["stty", "size"], **options)
    terminal.wait_end()
    return terminal.output.decode()


@pytest.fixture
def late(tmp_path: Path) -> Iterator[RunningServer]:
    """A cluster far away: the shell has begun before anything of ours reaches it."""
    with nothing_left(), StandIn(pods=PODS, input_delay=LATE_SECONDS) as cluster:
        running = RunningServer(tmp_path, cluster)
        try:
            yield running
        finally:
            running.stop()


def test_the_size_is_right_from_the_beginning(late: RunningServer) -> None:
    assert size_of(late, size="&cols=123&rows=45") == "45 123\r\n"


def test_a_browser_that_names_no_size_has_an_ordinary_one(late: RunningServer) -> None:
    assert size_of(late, size="") == "24 80\r\n"


def test_without_stty_the_size_comes_a_little_later(late: RunningServer) -> None:
    terminal: Terminal = late.connect("no-stty", size="&cols=123&rows=45")
    terminal.wait_for_event("session")
    wait_until(lambda: late.cluster.execs[-1].sizes == [(123, 45)])
    terminal.type("exit\n")
    terminal.wait_end()


def test_a_size_of_the_page_follows(server: RunningServer) -> None:
    with server.connect(size="&cols=123&rows=45") as terminal:
        terminal.wait_for_event("session")
        terminal.resize(77, 33)
        wait_until(lambda: server.cluster.execs[-1].sizes == [(123, 45), (77, 33)])
        terminal.type("stty size\n")
        terminal.wait_for("33 77\r\n")
