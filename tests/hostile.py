"""Whether a regular expression takes linear time: texts made to hurt it, and a child process to run it on them.

The child's processor time is limited (RLIMIT_CPU): that counts what the pattern uses, not what else runs here. A linear
pattern takes 0.1 to 10 ms for SIZE characters, a quadratic one 2 s and more. ``python -m tests.hostile`` is the child;
it knows nothing of the product, so that it starts at once.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants as op  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as op
    import sre_parse as parser

SIZE = 1 << 17
LIMIT_SECONDS = 1.0  # of processor time; what is tried here takes some milliseconds, or it would take minutes


def is_in(char: str, kind: Any, value: Any) -> bool:
    """Whether one item of a parsed pattern matches a character."""
    if kind is op.LITERAL:
        return bool(ord(char) == value)
    if kind is op.NOT_LITERAL:
        return bool(ord(char) != value)
    if kind is op.RANGE:
        return bool(value[0] <= ord(char) <= value[1])
    if kind is op.CATEGORY:
        plain = {"DIGIT": char.isdigit(), "SPACE": char.isspace(), "WORD": char.isalnum() or char == "_"}
        *_, inverse, name = ["", *str(value).split("_")]
        return plain[name] != (inverse == "NOT")
    if kind is op.IN:
        negated = value[0][0] is op.NEGATE
        return any(is_in(char, *item) for item in value[negated:]) != negated
    return kind is op.ANY and char != "\n"


CHARACTERS = [chr(code) for code in (*range(32, 127), 10, 9, 13, 0, 0x85, 0xE9)]
SETS = (op.LITERAL, op.NOT_LITERAL, op.IN, op.ANY)


def parts(items: Any) -> Iterator[tuple[Any, Any]]:
    """All items of a parsed pattern, at any depth."""
    for kind, value in items:
        yield kind, value
        for inner in inside(kind, value):
            yield from parts(inner)


def inside(kind: Any, value: Any) -> list[Any]:
    """The patterns that an item consists of; alternatives for a branch."""
    if kind is op.BRANCH:
        return list(value[1])
    if kind in (op.SUBPATTERN, op.ASSERT, op.ASSERT_NOT):
        return [value[-1]]
    return [value[-1]] if "REPEAT" in str(kind) else []


def sample(items: Any) -> str:
    """A text that the items match, or nearly."""
    text = ""
    for kind, value in items:
        if kind in SETS:
            text += next((char for char in CHARACTERS[33:] + CHARACTERS if is_in(char, kind, value)), "?")
        elif kind not in (op.ASSERT, op.ASSERT_NOT):
            text += "".join(map(sample, inside(kind, value)[:1])) * (max(1, value[0]) if "REPEAT" in str(kind) else 1)
    return text


def pumps(items: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """For each repeat: what comes before it, and what it repeats."""
    for item in items:
        for inner in inside(*item):
            if "REPEAT" in str(item[0]):
                yield before, sample(inner)
            yield from pumps(inner, before)
        before += sample([item])


def hostile(pattern: re.Pattern[Any]) -> Iterator[str]:
    """Texts of SIZE characters: each repeat fed with all that differs to the pattern, then an end that it refuses."""
    tree = parser.parse(pattern.pattern, pattern.flags)
    sets = [item for item in parts(tree) if item[0] in SETS]
    kinds = {tuple(is_in(char, *item) for item in sets): char for char in reversed(CHARACTERS)}
    seen = set()
    for before, repeated in [("", sample(tree)), *pumps(tree)]:
        for pump in {repeated, before + repeated, *kinds.values()} - {""}:
            for start in ("", before):
                seen.add((start, pump))
    for start, pump in sorted(seen):
        for end in ("", "\0", "\n"):
            yield start + pump * (SIZE // len(pump)) + end


def run(pattern: re.Pattern[Any], method: str, text: Any) -> None:
    if method in ("match", "fullmatch", "search"):
        getattr(pattern, method)(text)
    else:
        pattern.sub(text[:0], text)


def limit() -> None:
    """Allow LIMIT_SECONDS of processor time from now on: then a signal ends the process, wherever it is."""
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)


def child() -> None:
    """Run the patterns that come as JSON, and say the number of each before it begins."""
    for number, (source, flags, of_bytes, method) in enumerate(json.load(sys.stdin)):
        print(number, flush=True)
        pattern = re.compile(source.encode("latin-1") if of_bytes else source, flags & ~re.UNICODE.value)
        for text in hostile(pattern):
            limit()
            run(pattern, method, text.encode("latin-1") if of_bytes else text)


def slow(work: list[tuple[str, re.Pattern[Any], str]]) -> list[str]:
    """Which of (name, pattern, method) take more than linear time.

    Twice in a row: a virtual machine that stands still for a second may count it as used.
    """
    found: list[str] = []
    suspect: object = None
    while work:
        told = [
            (source.decode("latin-1") if isinstance(source, bytes) else source, pattern.flags, of_bytes, method)
            for _, pattern, method in work
            for source, of_bytes in [(pattern.pattern, isinstance(pattern.pattern, bytes))]
        ]
        command = [sys.executable, "-m", "tests.hostile"]
        done = subprocess.run(
            command, input=json.dumps(told), capture_output=True, text=True, cwd=Path(__file__).parent.parent
        )
        if done.returncode == 0:
            assert len(done.stdout.split()) == len(work)
            return found
        assert done.returncode == -signal.SIGPROF, done.stderr
        work = work[int(done.stdout.split()[-1]) :]
        if suspect is not work[0]:
            suspect = work[0]
        else:
            name, _, method = work.pop(0)
            found.append(f"{name}.{method}")
    return found


if __name__ == "__main__":
    child()
