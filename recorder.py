"""What was seen? The recording of a session: an asciicast v2 file, which may be packed with gzip when it is finished.

Owns the path of a recording, writing it, following it while it grows, repairing and examining it after a crash,
packing it, finding it again, and searching and reading it as text. Knows nothing of sessions, browsers, pods or HTTP.
What the pod printed is recorded, with its times and the terminal's sizes; markers for what the user was not shown, and
for the commands that the shell reports; and what was typed, where that is wanted.

Events are asciicast's own (``o`` output, ``i`` input, ``r`` resize, ``m`` marker) and two more. ``b``: where output was
not UTF-8, the ``o`` event has U+FFFD in its place, as a terminal shows it, and a ``b`` event after it has the bytes, in
base64, so that nothing is lost. ``d``: the command that began last is done; its data is the exit code, or empty. It
began with an ``m`` whose label is "$ " and the command line. Players pass over codes that they do not know.

Where is what: finding, repairing and examining; ``RecordFolder``; ``Recorder``; packed recordings; searching; reading
as text.
"""

from __future__ import annotations

import base64
import codecs
import collections
import contextlib
import errno
import hashlib
import io
import itertools
import json
import math
import os
import re
import stat
import struct
import threading
import time
import unicodedata
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "Examined",
    "Follower",
    "Found",
    "PackedFile",
    "RecordError",
    "RecordFolder",
    "RecordedCommand",
    "Recorder",
    "Wanted",
    "examine",
    "find_recording",
    "is_incomplete",
    "mark_incomplete",
    "open_recording",
    "pack",
    "playable_size",
    "read_header",
    "recorded_commands",
    "recorded_output",
    "recording_name",
    "recording_path",
    "recordings",
    "repair",
    "search",
    "session_of",
    "transcript",
]

_SYNC_SECONDS = 5.0  # what a crash of the machine can lose of a busy recording
_SCAN_BYTES = 1 << 16
_LINE_LIMIT_BYTES = 1 << 23  # several times what the largest event can take
_FOLDERS = 8  # between the root and a recording
_SESSION_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MIN_FREE_BYTES = 1 << 30  # by default, on a disk of which that is less than a twentieth
_RESERVE_BYTES = 16 << 20  # on a disk of which that is less than a fiftieth
_SMALL_LINE_BYTES = 1024  # what the reserve is for: echoes, prompts, last words
_BEHIND_BYTES = 1 << 21  # that a follower catches up with; beyond, it leaves out
_LATE_BYTES, _LATE_LOOK_BYTES = 1 << 21, 1 << 25  # what it goes on with when it begins, and looks through before that
_LAST_BYTES, _LAST_LOOK_BYTES = 1 << 19, 1 << 22  # the same when it leaves out
_LOOK_BYTES = 1 << 20  # at a time
_OVERLAP_BYTES = 128  # more than what is looked for takes
_FRAMES_A_SECOND = 60  # that players draw
PACKED_SUFFIX = ".gz"
_LOST = b', "m", "the server ended before the session did"]\n'
# What a shell says of its commands, whole, and the beginning of it (OSC: ECMA-48, 8.3.89). No ESC can be inside.
_SHELL_MARK = re.compile(rb"\x1b\]([16]33);([CDE])(?:;([^\x07\x18\x1a\x1b]{0,16384}))?(?:\x07|\x1b\\)")
_UNFINISHED_MARK = re.compile(rb"\x1b(?:\](?:[16](?:3(?:3(?:;[^\x07\x18\x1a\x1b]{0,16384}\x1b?)?)?)?)?)?\Z")
_VSCODE_ESCAPE = re.compile(r"\\(?:\\|x([0-9a-fA-F]{2}))")
_COMMAND = "$ "  # begins the label of a marker that is a command's
_COMMAND_LIMIT_CHARACTERS = 1024
_COMMANDS_LIMIT = 10_000  # of a session
_COMMANDS_A_SECOND = 20
_NOT_TOLD = "(not told by the shell)"  # in place of a command line
_EXIT_CODE = re.compile(r"-?[0-9]{1,10}")
_HARMLESS = {ord("\n"): "⏎", ord("\t"): " "}
# C0, C1, what ends a line or turns the direction of text, and halves of characters.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LAST_LINE_BYTES = 512  # of the output, in which a prompt for a secret is looked for
_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])")
_COLONS = (":", "\uff1a", "\ufe55")  # with the full-width and the small one
# A word for a secret near the end of a line in which no shell's prompt has come since. In lower case.
_ASKS = re.compile(
    r"(?:pass ?(?:word|phrase|code)|passwd|\bpin\b|\botp\b|one-time|verification code|secret|token|passwort|kennwort"
    r"|mot de passe|contraseña|clave|senha|palavra-passe|parola|wachtwoord|lösenord|passord|adgangskode|salasana"
    r"|hasło|heslo|jelszó|şifre|пароль|κωδικός|סיסמה|كلمة المرور|mật khẩu|kata sandi|密码|密碼|口令|パスワード|암호"
    r"|비밀번호|รหัสผ่าน)"
    r"[^$#%>]{0,40}\Z"
)
# What JSON wants escaped (RFC 8259, section 7); the backslash first, since the others bring new ones.
_ESCAPES = (
    *((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\r", b"\\r"), (b"\t", b"\\t")),
    *((bytes((byte,)), b"\\u%04x" % byte) for byte in range(32) if byte not in b"\n\r\t"),
)

# Lines as the recorder writes them: time, code, data. In the data, quotes and control characters are escaped.
_EVENT = re.compile(rb'\[([0-9]{1,10}(?:\.[0-9]{1,9})?), "([a-z])", "')
_RESIZED = re.compile(rb', "r", "([0-9]{1,5}x[0-9]{1,5})"\]')
# Begins with what is rare: ten times as fast as with the escape, which stands before it and is no escaped backslash's.
_SWITCHED = re.compile(rb"\[\?(?<=[^\\]\\u001b\[\?)(?:[0-9]{1,5};){0,8}(?:1049|1047|47)(?:;[0-9]{1,5}){0,8}([hl])")
_GOOD_PLACE = re.compile(rb"(?<!\\)(?:\\r\\n|(?=\\u001b))")  # where output can begin: a line, an escape sequence
_LiveEvent = tuple[bytes, bytes, bytes]  # time, code and data, as they stand in the line


class RecordError(Exception):
    """A recording cannot be made, written or found. ``str()`` names the file and the system's reason."""


def recording_path(root: Path, session_id: str) -> Path:
    """Where a session's recording lies: eight two-digit folders from its id's MD5, then ``<session id>.cast``."""
    digits = hashlib.md5(session_id.encode(), usedforsecurity=False).hexdigest()[:16]
    folders = [digits[i : i + 2] for i in range(0, 2 * _FOLDERS, 2)]
    return root.joinpath(*folders, f"{session_id}.cast")


def recording_name(root: Path, name: str) -> str:
    """The path relative to ``root`` of a recording, named so or absolutely, whether it is there or not.

    Raises RecordError for a name that no session's recording can have.
    """
    path = root.absolute() / name
    if _SESSION_ID.fullmatch(path.stem) and path == recording_path(root.absolute(), path.stem):
        return str(path.relative_to(root.absolute()))
    raise RecordError("no such recording")


def find_recording(root: Path, name: str) -> Path:
    """The real path of a recording, named absolutely or relative to ``root`` by its ``.cast``, also if it is packed.

    Raises RecordError for everything that is not a regular ``.cast`` or ``.cast.gz`` file inside the real root.
    """
    for form in ("", PACKED_SUFFIX):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # a NUL, a name too long, a symlink loop
            real_root = root.resolve()
            path = (real_root / f"{name}{form}").resolve()
            inside = real_root in path.parents and Path(path.name.removesuffix(form)).suffix == ".cast"
            if inside and stat.S_ISREG(path.stat().st_mode):
                return path
    raise RecordError("no such recording")


def session_of(path: Path) -> str:
    """The id of the session whose recording that is."""
    return path.name.partition(".cast")[0]


def recordings(root: Path) -> Iterator[Path]:
    """The paths of all recordings below the root, packed ones included; links are not followed."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if name.endswith((".cast", ".cast.gz")))


def playable_size(file: BinaryIO) -> int:
    """The size in bytes of the whole lines of a recording that may still be growing, or was torn by a crash."""
    return file.size if isinstance(file, PackedFile) else _line_start(file, file.seek(0, os.SEEK_END))


def _line_start(file: BinaryIO, end: int) -> int:
    """The place after the last line feed before ``end``; 0 if there is none."""
    while end > 0:
        start = max(0, end - _SCAN_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_header(file: BinaryIO) -> dict[str, Any]:
    """The header of a recording; {} where it has none. Raises OSError."""
    file.seek(0)
    with contextlib.suppress(ValueError, RecursionError):
        header = json.loads(file.readline(_SCAN_BYTES))
        return header if isinstance(header, dict) else {}
    return {}


def repair(path: Path) -> int:
    """Cut a torn last line. Returns how many bytes went. Raises RecordError."""
    try:
        with path.open("rb+") as file:
            size = playable_size(file)
            torn = file.seek(0, os.SEEK_END) - size
            if torn:
                file.truncate(size)
            return torn
    except OSError as exc:
        raise RecordError(f"cannot repair {path}: {exc.strerror}") from exc


def is_incomplete(file: BinaryIO, size: int) -> bool:
    """Whether the recording, whose whole lines have that size, was cut off: its last line is torn, or says so."""
    if isinstance(file, PackedFile):
        return file.is_incomplete
    if size < file.seek(0, os.SEEK_END):
        return True
    file.seek(max(0, size - len(_LOST)))
    return file.read(len(_LOST)) == _LOST


def mark_incomplete(path: Path) -> None:
    """Say in a last event of a recording that its session went on: a marker, which players show. Raises RecordError."""
    try:
        with path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size and not is_incomplete(file, size):
                file.write(b"[%.6f%b" % (_last_time(file, size), _LOST))  # which has read to the end
    except OSError as exc:
        raise RecordError(f"cannot write {path}: {exc.strerror}") from exc


@dataclass(frozen=True)
class Examined:
    """What a recording says of its session when nobody else does."""

    size: int  # bytes
    sha256: str  # in hex
    seconds: float  # from its start to its last event; 0 when it has none


def examine(path: Path) -> Examined:
    """Read a whole recording that nobody writes any more, in either form. Raises RecordError."""
    digest = hashlib.sha256()
    try:
        with open_recording(path) as file:
            while block := file.read(_SCAN_BYTES * 16):
                digest.update(block)
            size = file.tell()
            return Examined(size, digest.hexdigest(), _last_time(file, size))
    except OSError as exc:
        raise RecordError(f"cannot read {path}: {exc.strerror}") from exc


def recorded_output(path: Path, offset: int) -> Iterator[bytes]:
    """What the output events from that byte of the file on have shown, an event at a time. Raises RecordError.

    For the thread that records: what is written while this runs may be missing.
    """
    shown = b""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                _, code, data = json.loads(line)
                if code == "b":  # the bytes of the event before
                    shown = base64.b64decode(data)
                elif code == "o":
                    if shown:
                        yield shown
                    shown = data.encode()
    except (OSError, ValueError, TypeError) as exc:
        raise RecordError(f"cannot read {path}: {exc}") from exc
    if shown:
        yield shown


@dataclass(frozen=True)
class RecordedCommand:
    """A command line that a shell reported, and how it ended (None: not known)."""

    seconds: float  # since the start of the recording
    text: str
    exit_code: int | None


def recorded_commands(path: Path) -> Iterator[RecordedCommand]:
    """The commands of a recording that nobody writes any more, in order. Raises RecordError."""
    begun: RecordedCommand | None = None
    try:
        with path.open("rb") as file:
            for line in file:
                if b', "m", "$ ' not in line[:32] and b', "d", "' not in line[:32]:
                    continue
                seconds, code, data = json.loads(line)
                if begun:
                    yield replace(begun, exit_code=_exit_code(data) if code == "d" else None)
                begun = RecordedCommand(float(seconds), data[len(_COMMAND) :], None) if code == "m" else None
    except (OSError, ValueError, TypeError) as exc:
        raise RecordError(f"cannot read {path}: {exc}") from exc
    if begun:
        yield begun


def _exit_code(text: str) -> int | None:
    return int(text) if _EXIT_CODE.fullmatch(text) else None


class Follower:
    """A recording while it grows, for one who watches: messages of asciicast v2, a JSON document each. One thread.

    First the header and the screen so far, then what comes. It only reads the file, so it works from any process and
    holds nobody up.
    """

    def __init__(self, file: BinaryIO) -> None:
        """The file stays the caller's."""
        self._file = file
        self._position = 0  # up to which it was taken: the end of a line
        self._size = b""  # of the terminal, once it has changed
        self._mode = b"l"  # "h" while it has its alternate screen on

    def read(self) -> list[bytes]:
        """What has come; where that is more than 2 MiB, the screen as it is by now. [] if nothing. Raises RecordError.

        A line of which the end has not come yet is left for the next time.
        """
        with self._translated():
            if self._position == 0:
                return self._begin()
            if self._behind() > _BEHIND_BYTES:
                return self._screen(_LAST_BYTES, _LAST_LOOK_BYTES)
            return _messages(self._take(self._position, self._behind()))

    def is_far_behind(self) -> bool:
        """Whether so much has come that some of it will be left out. Raises RecordError."""
        with self._translated():
            return self._behind() > _BEHIND_BYTES

    def _behind(self) -> int:
        """Bytes that are not taken yet."""
        return max(0, self._file.seek(0, os.SEEK_END) - self._position)

    def _begin(self) -> list[bytes]:
        header, newline, _ = self._bytes(0, _SCAN_BYTES).partition(b"\n")
        if not newline:
            return []
        if isinstance(self._file, PackedFile):  # its session is over, and what was shown last may take long to unpack
            self._position = self._file.size
            return [header]
        self._position = len(header) + 1
        return [header, *self._screen(_LATE_BYTES, _LATE_LOOK_BYTES)]

    def _screen(self, size: int, look: int) -> list[bytes]:
        """Go on at the last ``size`` bytes: their markers, then the terminal's size, then all output as one event."""
        end = playable_size(self._file)
        start = max(self._position, _line_start(self._file, end - size))
        is_cut = start > self._position
        self._look_back(start, max(self._position, start - look))
        mode = b"\\u001bc\\u001b[?1049h" if self._mode == b"h" else b"\\u001bc"
        events = self._take(start, end - start)
        output = b"".join(data for _, code, data in events if code == b"o")
        if is_cut:
            good = _GOOD_PLACE.search(output)
            output = mode + output[good.end() if good else 0 :]
        now = events[-1][0] if events else b"0"
        screen = [(now, b"r", self._size), (now, b"o", output)]
        markers = [event for event in events if event[1] == b"m"]
        return _messages([*markers, *(event for event in screen if event[2])])

    def _take(self, start: int, size: int) -> list[_LiveEvent]:
        """The events in the whole lines of these bytes."""
        lines = self._bytes(start, size)
        lines = lines[: lines.rfind(b"\n") + 1]
        self._position = start + len(lines)
        self._size = _last_size(lines) or self._size
        self._mode = _last_mode(lines) or self._mode
        return list(_live_events(lines))

    def _look_back(self, start: int, floor: int) -> None:
        """Find the terminal's size and screen as they were at that byte of the file, if what is above tells."""
        size = mode = b""
        while start > floor and not (size and mode):
            begin = max(floor, start - _LOOK_BYTES)
            data = self._bytes(begin, start - begin)
            size = size or _last_size(data)
            mode = mode or _last_mode(data)
            start = begin + _OVERLAP_BYTES if begin > floor else floor
        self._size = size or self._size
        self._mode = mode or self._mode

    def _bytes(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise RecordError(f"cannot read the recording: {exc.strerror}") from exc


def _last_size(lines: bytes) -> bytes:
    """The last size of the terminal that they tell; b"" for none."""
    found = _RESIZED.findall(lines)
    return found[-1] if found else b""


def _last_mode(lines: bytes) -> bytes:
    """Whether they leave the alternate screen on (h) or off (l); b"" if they do not switch it."""
    found = _SWITCHED.findall(lines)
    return found[-1] if found else b""


def _live_events(lines: bytes) -> Iterator[_LiveEvent]:
    """Those that a player shows. That a command is done (``d``) becomes a marker: of others it would tell nobody."""
    for line in lines.split(b"\n"):
        match = _EVENT.match(line)
        if match and line.endswith(b'"]'):
            time, code = match.groups()
            data = line[match.end() : -2]
            if code == b"d":
                yield time, b"m", b"= " + data
            elif code in b"oirm":
                yield time, code, data


def _messages(events: Iterable[_LiveEvent]) -> list[bytes]:
    """One for each event; output that players draw at once comes at once."""
    messages = []
    for (code, _), group in itertools.groupby(events, lambda event: (event[1], _frame(event[0]))):
        items = [(time, data) for time, _, data in group]
        if code == b"o":
            items = [(items[0][0], b"".join(data for _, data in items))]
        messages += [b'[%b, "%b", "%b"]' % (time, code, data) for time, data in items]
    return messages


def _frame(time: bytes) -> int:
    return int(float(time) * _FRAMES_A_SECOND)


def _last_time(file: BinaryIO, size: int) -> float:
    """The time of the last event; 0 where there is none, or no number that is one."""
    file.seek(max(0, size - _LINE_LIMIT_BYTES))
    last = file.read(_LINE_LIMIT_BYTES).rstrip(b"\n").rpartition(b"\n")[2]
    try:
        seconds = float(json.loads(last)[0])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return 0.0
    return seconds if 0 <= seconds < 1e9 else 0.0


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class RecordFolder:
    """The root of all recordings: made at the start only, and then the same folder for good. Any thread.

    A reserve lies in it, a file of which nothing is ever read. It is removed when the disk is full: small lines and the
    ledger then have room to go on, large ones are refused, so that no flood takes it. All servers on one folder share
    the file: one that finds it gone does as if it had removed it.
    """

    def __init__(self, path: Path, min_free: int = 0) -> None:
        """Make the folder if it is missing; ``min_free``: see check; 0 for the default. Raises RecordError."""
        self.path = path
        self.is_full = False  # the reserve is given back
        try:
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._identity = _identity(path.stat())
            space = os.statvfs(path)
        except OSError as exc:
            raise RecordError(f"cannot make {path}: {exc.strerror}") from exc
        size = space.f_blocks * space.f_frsize
        self._reserve = path / ".reserve"
        self._reserve_bytes = min(_RESERVE_BYTES, size // 50)
        self.min_free = max(min_free or min(_MIN_FREE_BYTES, size // 20), 2 * self._reserve_bytes)  # bytes

    def check(self) -> None:
        """Raises RecordError when no recording may begin: the folder was removed or unmounted, or space runs out."""
        if self.free() < self.min_free:
            raise RecordError(f"the record folder {self.path} has less than {self.min_free / (1 << 20):.1f} MiB left")
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise RecordError(f"the record folder {self.path} cannot be written")

    def free(self) -> int:
        """The bytes that are left. Raises RecordError when the folder is not the one of the start."""
        try:
            same = _identity(self.path.stat()) == self._identity
            space = os.statvfs(self.path)
        except OSError as exc:
            raise RecordError(f"the record folder {self.path} is gone: {exc.strerror}") from exc
        if not same:
            raise RecordError(
                f"the record folder {self.path} is not the one of the start: was it removed or unmounted?"
            )
        return space.f_bavail * space.f_frsize

    def keep_reserve(self) -> None:
        """Give the reserve back if hardly anything is left; make it if it is gone and can be. Raises RecordError.

        To be called every second. A file system that cannot allocate has no reserve.
        """
        free = self.free()
        if self._has_reserve():
            self.is_full = False
            if free < self._reserve_bytes // 16:
                self.give_back()
        elif free < 2 * self._reserve_bytes:
            self.is_full = True
        else:
            self.is_full = False
            with contextlib.suppress(OSError):
                self._make_reserve()

    def give_back(self) -> None:
        """The disk is full: remove the reserve."""
        self.is_full = True
        with contextlib.suppress(OSError):
            self._reserve.unlink()

    def _has_reserve(self) -> bool:
        try:
            return self._reserve.lstat().st_size >= self._reserve_bytes
        except OSError:
            return False

    def _make_reserve(self) -> None:
        # May be what another server does, too, or has left half done: the same bytes are not allocated twice.
        fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o640)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, self._reserve_bytes)
            else:
                os.pwrite(fd, bytes(self._reserve_bytes), 0)
        finally:
            os.close(fd)


class ShellMarks:
    """Finds where shells say that a command begins or ends, however the output is cut. One thread at a time.

    OSC 633 of VS Code's shell integration (E with the command line, D), and OSC 133 (C, in fish with the command line,
    D). Anything may print them: they are no evidence. Only the beginning of one is remembered, 16 KiB at most.
    """

    def __init__(self) -> None:
        self._rest = b""

    def find(self, data: bytes) -> list[tuple[str, str]]:
        """Of each one in the output its event's code, "m" or "d", and the command line or the exit code."""
        if not self._rest and b"\x1b" not in data:
            return []
        data = self._rest + data
        # What it begins with, and one of two bytes that end it: looking for single ones costs next to nothing.
        may_have = b"]" in data and (b"\x07" in data or b"\\" in data)
        matches = _SHELL_MARK.finditer(data) if may_have else ()
        found = [mark for match in matches for mark in (_meaning(*match.groups(b"")),) if mark]
        start = data.rfind(b"\x1b", 0, len(data) - 1)  # an ESC at the very end may be half of what ends it
        if start >= 0 and _UNFINISHED_MARK.match(data, start):
            self._rest = data[start:]
        else:
            self._rest = data[-1:] if data.endswith(b"\x1b") else b""
        return found


def _meaning(number: bytes, letter: bytes, data: bytes) -> tuple[str, str] | None:
    text = data.decode("utf-8", "replace").partition(";")[0]
    if letter == b"D":
        return "d", text
    if (number, letter) == (b"633", b"E"):
        return "m", _VSCODE_ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else "\\", text)
    if (number, letter) == (b"133", b"C"):
        name, _, value = text.partition("=")
        return "m", urllib.parse.unquote(value) if name == "cmdline_url" else ""
    return None


def _harmless(text: str) -> str:
    """A command line as a label: one line of limited length that cannot steer a terminal."""
    return _HARMFUL.sub("\ufffd", text.translate(_HARMLESS))[:_COMMAND_LIMIT_CHARACTERS].strip() or _NOT_TOLD


def asks_for_secret(output: bytes) -> bool:
    """Whether the last line of the output looks like a prompt for a password.

    It does where it ends in a colon, or where a word for a secret stands near its end. The stars in place of what was
    typed do not count.
    """
    text = _ESCAPE_SEQUENCE.sub("", output[-_LAST_LINE_BYTES:].decode("utf-8", "replace"))
    line = text[max(text.rfind("\n"), text.rfind("\r")) + 1 :].rstrip(" \t*•●")
    return line.endswith(_COLONS) or _ASKS.search(line.lower()) is not None


class Recorder:
    """Writes one asciicast v2 file, a line an event, straight to the file. Any thread.

    The file exists, with its header, when the constructor returns. Every method raises RecordError when the
    file cannot be written, or is no longer the one at its path; from then on nothing more is accepted.
    """

    def __init__(
        self,
        path: Path,
        cols: int,
        rows: int,
        *,
        title: str = "",
        place: Mapping[str, str] | None = None,
        folder: RecordFolder | None = None,
        commands: bool = True,
    ) -> None:
        """Make the file and those of its eight folders that are missing; the root must be there.

        ``place``: the cluster and how the pages mark it, for the header's own key ``jumpserver``. ``folder``: whose
        reserve is given back when the disk is full. ``commands``: whether those that shells report become events.
        """
        self.path = path
        self._folder = folder
        self.bytes_written = 0
        self._failed = False
        self._lock = threading.Lock()  # guards all but the path
        self._rest = b""  # the beginning of a character of which the end has not come yet
        self._last_line = b""  # or more
        self._marks = ShellMarks() if commands else None
        self._running: RecordedCommand | None = None
        self._done: list[RecordedCommand] = []  # and not taken yet
        self._begun = collections.deque((-math.inf,) * _COMMANDS_A_SECOND, _COMMANDS_A_SECOND)  # when; monotonic
        self._commands_left = _COMMANDS_LIMIT
        self._digest = hashlib.sha256()
        self._start = self._synced = time.monotonic()
        self._fd = _create(path)
        header = {"version": 2, "width": cols, "height": rows, "timestamp": int(time.time()), "title": title}
        header["env"] = {"TERM": "xterm-256color"}
        if place:
            header["jumpserver"] = place
        try:
            self._write(json.dumps(header, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        except RecordError:
            os.close(self._fd)
            path.unlink()
            raise

    def output(self, data: bytes, *, final: bool = False) -> bytes:
        """Record what the pod printed; returns what of it may now be shown.

        That is all but a character that is still incomplete, which comes with the next call, unless this is the
        ``final`` one.
        """
        with self._lock:
            return self._print(self._rest + data, final)

    def input(self, data: bytes) -> None:
        """Record what was typed, unless the pod seems to have asked for a secret."""
        with self._lock:
            if not asks_for_secret(self._last_line):
                self._event(b"i", escape(data.decode("utf-8", "replace").encode()))

    def take_commands(self) -> list[RecordedCommand]:
        """The commands that are done since the last call; after ``close`` all that are left."""
        with self._lock:
            done, self._done = self._done, []
            return done

    def resize(self, cols: int, rows: int) -> None:
        """Record that the terminal has a new size."""
        with self._lock:
            self._event(b"r", b"%dx%d" % (cols, rows))

    def marker(self, label: str) -> None:
        """Record that something happened, in words that players show at that place."""
        with self._lock:
            self._event(b"m", json.dumps(label)[1:-1].encode())

    def close(self) -> str:
        """Finish the file and return its SHA-256 in hex, also after a write that failed. Call once, at the end."""
        with self._lock:
            try:
                if not self._failed:
                    self._print(self._rest, final=True)
                    self._sync()
            finally:
                self._end_command(None)
                self._failed = True  # the descriptor's number may soon be another file's
                os.close(self._fd)
            return self._digest.hexdigest()

    def discard(self) -> None:
        """Remove the file of a session that never began. In place of ``close``."""
        with self._lock:
            os.close(self._fd)
            self._failed = True
            with self._translated():
                self.path.unlink()

    def _print(self, data: bytes, final: bool) -> bytes:
        try:
            _, whole = codecs.utf_8_decode(data, "strict", final)
            text = data[:whole]
        except UnicodeDecodeError:
            replaced, whole = codecs.utf_8_decode(data, "replace", final)
            text = replaced.encode()
        shown, self._rest = data[:whole], data[whole:]
        if shown:
            self._event(b"o", escape(text))
        if text != shown:
            self._event(b"b", base64.b64encode(shown))
        tail = shown[-_LAST_LINE_BYTES:]
        self._last_line = tail if len(tail) == _LAST_LINE_BYTES else (self._last_line + tail)[-_LAST_LINE_BYTES:]
        if self._marks:
            for mark, value in self._marks.find(shown):
                self._begin_command(value) if mark == "m" else self._tell_end(value)
        return shown

    def _begin_command(self, text: str) -> None:
        if self._running and not text:
            return  # OSC 133 ; C, of which OSC 633 ; E has told more
        self._end_command(None)
        now = time.monotonic()
        if self._commands_left and now - self._begun[0] >= 1.0:
            self._commands_left -= 1
            self._begun.append(now)
            text = _harmless(text)
            self._running = RecordedCommand(self._event(b"m", escape(f"{_COMMAND}{text}".encode())), text, None)

    def _tell_end(self, code: str) -> None:
        if self._running:
            exit_code = _exit_code(code)
            self._event(b"d", b"" if exit_code is None else b"%d" % exit_code)
            self._end_command(exit_code)

    def _end_command(self, exit_code: int | None) -> None:
        if self._running:
            self._done.append(replace(self._running, exit_code=exit_code))
            self._running = None

    def _event(self, code: bytes, data: bytes) -> float:
        """Write it; returns its time, as the file has it."""
        now = time.monotonic()
        seconds = round(now - self._start, 6)
        self._write(b'[%.6f, "%b", "%b"]\n' % (seconds, code, data))
        if now - self._synced > _SYNC_SECONDS:
            self._synced = now
            self._sync()
        return seconds

    def _sync(self) -> None:
        """Bring the file to the disk, and see that it can still be found: a removed one is written without an error."""
        with self._translated():
            os.fsync(self._fd)
            if _identity(os.fstat(self._fd)) != _identity(self.path.stat()):
                raise FileNotFoundError(errno.ENOENT, "another file is in its place")

    def _write(self, line: bytes) -> None:
        if self._failed:
            raise RecordError(f"cannot write {self.path}: an earlier write failed")
        with self._translated():
            try:
                self._append(line)
            except OSError as exc:
                if self._folder is None or exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._folder.give_back()
                self._append(line)  # there is room now for a small one
        self._digest.update(line)
        self.bytes_written += len(line)

    def _append(self, line: bytes) -> None:
        if self._folder is not None and self._folder.is_full and len(line) > _SMALL_LINE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            os.ftruncate(self._fd, self.bytes_written)  # half a line would make the whole file unplayable
            raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            self._failed = True
            raise RecordError(f"cannot write {self.path}: {exc.strerror}") from exc


def escape(text: bytes) -> bytes:
    """Valid UTF-8 as the inside of a JSON string.

    Passes in C over bytes, without decoding and encoding. Measured: half the time of ``json.dumps``, 1.5 times the
    throughput of a session.
    """
    for byte, escaped in _ESCAPES:
        text = text.replace(byte, escaped)
    return text


def _create(path: Path) -> int:
    """Make the file and its folders, readable by owner and group only. Never opens one that exists."""
    try:
        _make_folders(path.parent)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
    except OSError as exc:
        raise RecordError(f"cannot create {path}: {exc.strerror}") from exc


def _make_folders(folder: Path) -> None:
    # Not Path.mkdir(parents=True): that gives its mode to the last folder only, and would make the root again.
    missing = [folder]
    while len(missing) < _FOLDERS and not missing[-1].parent.is_dir():
        missing.append(missing[-1].parent)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o750)


# -- packed recordings ------------------------------------------------------------------------------------------------

_PACK_LEVEL = 6
_PACK_BYTES = 1 << 18  # at a time
# A gzip header (RFC 1952, section 2.3) with one extra field, of the id "JS": the size in bytes of the plain text, and
# whether it is incomplete, so that nothing has to be unpacked to know that.
_PACKED_HEAD = struct.Struct("<10sH2sHQ?")
_MAGIC = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff"
_EXTRA = (_PACKED_HEAD.size - 12, b"JS", _PACKED_HEAD.size - 16)


def open_recording(path: Path) -> io.BufferedReader:
    """The plain text of a recording, whichever form it has by now: ``path`` ends with ``.cast`` or ``.cast.gz``.

    One that is packed seeks by unpacking. Raises OSError, also while a packed one is read that is torn or none.
    """
    if path.suffix == PACKED_SUFFIX:
        return _opened_packed(path)
    try:
        return path.open("rb")
    except FileNotFoundError:
        return _opened_packed(path.with_name(path.name + PACKED_SUFFIX))  # it may have been packed just now


def _opened_packed(path: Path) -> PackedFile:
    packed = path.open("rb")
    try:
        return PackedFile(packed)
    except BaseException:
        packed.close()
        raise


def pack(path: Path, stopped: Callable[[], bool]) -> bool:
    """Put ``<name>.cast.gz`` in the place of a finished ``<name>.cast``; False if ``stopped`` said so before.

    Takes seconds a GB. Whatever happens, one of the two is there and whole; to be called again after a crash, which may
    have left both, or a half of the new one under a temporary name. Raises RecordError; then nothing has changed.
    """
    packed = path.with_name(path.name + PACKED_SUFFIX)
    half = packed.with_name(f"{packed.name}.half")
    try:
        with path.open("rb") as file:
            try:
                if not _write_packed(file, half, stopped):
                    return False
                half.rename(packed)
            finally:
                half.unlink(missing_ok=True)
        _sync_folder(path.parent)
        path.unlink()
        return True
    except OSError as exc:
        raise RecordError(f"cannot pack {path}: {exc.strerror}") from exc


def _write_packed(file: BinaryIO, half: Path, stopped: Callable[[], bool]) -> bool:
    """Pack the file, and bring that to the disk; False if it was stopped."""
    status = os.fstat(file.fileno())
    incomplete = is_incomplete(file, playable_size(file))
    file.seek(0)
    packer = zlib.compressobj(_PACK_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    checksum = size = 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(half, flags, 0o640), "wb") as written:
        written.write(_PACKED_HEAD.pack(_MAGIC, *_EXTRA, status.st_size, incomplete))
        while block := file.read(_PACK_BYTES):
            if stopped():
                return False
            checksum = zlib.crc32(block, checksum)
            size += len(block)
            written.write(packer.compress(block))
        written.write(packer.flush() + struct.pack("<II", checksum, size % (1 << 32)))
        written.flush()
        os.utime(written.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(written.fileno())
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PackedFile(io.BufferedReader):
    """The plain text of a packed recording, as a file. Memory does not grow with it. OSError where it is torn."""

    def __init__(self, packed: BinaryIO) -> None:
        """Takes the packed file over. One that ``pack`` did not write is read once, to know the size."""
        self.packed = packed
        said = _said_by_head(packed)
        super().__init__(_Unpacked(packed), _SCAN_BYTES)
        self.size, self.is_incomplete = said or self._measured()  # of the plain text

    def _measured(self) -> tuple[int, bool]:
        last = b""
        while block := self.read(_PACK_BYTES):
            last = (last + block)[-len(_LOST) :]
        return self.tell(), last == _LOST or not last.endswith(b"\n")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file; what is passed over is unpacked by the next read."""
        if whence == os.SEEK_END:
            offset, whence = self.size + offset, os.SEEK_SET
        return super().seek(offset, whence)


def _said_by_head(packed: BinaryIO) -> tuple[int, bool] | None:
    packed.seek(0)
    head = packed.read(_PACKED_HEAD.size)
    if len(head) < _PACKED_HEAD.size:
        return None
    magic, *extra, size, incomplete = _PACKED_HEAD.unpack(head)
    return (size, incomplete) if magic == _MAGIC and tuple(extra) == _EXTRA else None


class _Unpacked(io.RawIOBase):
    """What a gzip file of one member unpacks to. Going back begins again at the start."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._wanted = 0  # where the next read is to begin
        self._begin()

    def _begin(self) -> None:
        self._position = 0  # up to which it is unpacked
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._packed.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._wanted = max(0, offset + (self._wanted if whence == os.SEEK_CUR else 0))
        return self._wanted

    def readinto(self, buffer: Any) -> int:
        if self._wanted < self._position:
            self._begin()
        while self._position < self._wanted:
            if not self._unpack(min(_PACK_BYTES, self._wanted - self._position)):
                return 0
        data = self._unpack(len(buffer))
        buffer[: len(data)] = data
        self._wanted = self._position
        return len(data)

    def _unpack(self, limit: int) -> bytes:
        """The next bytes, ``limit`` at most; b"" at the end."""
        while not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail or self._packed.read(_SCAN_BYTES)
            try:
                data = self._unpacker.decompress(packed, limit)
            except zlib.error:
                raise OSError(errno.EILSEQ, "it is no gzip file, or damaged") from None
            self._position += len(data)
            if data:
                return data
            if not packed:
                raise OSError(errno.EILSEQ, "it is torn")
        return b""

    def close(self) -> None:
        self._packed.close()
        super().close()


# -- searching --------------------------------------------------------------------------------------------------------

_SEARCH_BYTES = 1 << 22  # at a time
_SAMPLE_BYTES = 1 << 13  # of these, in which letters are counted
_SAMPLED_LETTERS = 32  # of a text, at most
_TRIES = 4  # at what looked rare and was not
_SEARCH_WINDOW_BYTES = 1 << 18  # what a match and its line may take to each side, with all that is not shown
_SEQUENCE_BYTES = 1 << 12  # before a match, in which an escape sequence is looked for that it is a part of
_AROUND_CHARACTERS = 500  # of the line, to each side of the match
# What may stand between two letters of a text and is not shown, as it stands in the file, where the pod's output is
# inside of JSON strings. No part of it can be taken for another, and how many there may be is limited: nothing is
# looked at again and again.
_NEXT_EVENT = (
    rb'"[ \t]{0,8}\][ \t\r]{0,8}\n'
    rb'(?:\[[^"\n]{0,64}"[^o"\n]"[^\n]*\n){0,16}'  # other events than output
    rb'\[[^"\n]{0,64}"o"[ \t]{0,8},[ \t]{0,8}"'
)
_ESC = rb"\\u001[bB]"
_SEQUENCE = (  # ECMA-48, sections 5.3, 5.4 and 5.6: control sequences, control strings, all others
    rb"%(esc)b(?:%(next)b)?\[[0-?]*(?:%(next)b[0-?]*){0,4}(?:[ !#-/]|\\\")*(?:[@-\[\]-~]|\\\\)"
    rb"|%(esc)b[\]P_X^][^\\\"\n]*(?:\\(?!u001[bB]|u0007)[^\n][^\\\"\n]*)*"  # up to what ends it:
    rb"(?=\\u(?:001[bB]|0007)|[\"\n]|\Z)"
    rb"|%(esc)b(?:[ !#-/]|\\\")*(?:[0-OQ-WYZ`-~]|\\\\)"
) % {b"esc": _ESC, b"next": _NEXT_EVENT}
_HIDDEN = rb"(?:%b|%b|\\u000[0-7eEfF]){0,32}" % (_SEQUENCE, _NEXT_EVENT)
_SEQUENCE_HERE = re.compile(_SEQUENCE)
_EVENT_ENDS = re.compile(_NEXT_EVENT)
_OUTPUT_BEGINS = re.compile(rb'\[[ \t]{0,8}([0-9.eE+-]{1,32})[ \t]{0,8},[ \t]{0,8}"o"[ \t]{0,8},[ \t]{0,8}"')
_SPELLED_OTHERWISE = "\"&'+/<=>\\`"  # than as they are, by some writers of JSON
_JSON_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.?))", re.DOTALL)
_JSON_CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True)
class Found:
    """A line of a recording's output in which a text was shown."""

    seconds: float  # since the recording's start, of the event in which the match begins
    line: str  # without escape sequences, but with other control characters; a long one around the match only


class Wanted:
    """A text that is looked for in the bytes of recordings, also over several events and with colours inside.

    Of any writer: JSON can spell a character in several ways. One thread.
    """

    def __init__(self, text: str, *, ignore_case: bool = False) -> None:
        self.ignore_case = ignore_case  # the patterns are for bytes in lower case then
        self._letters = [_spellings(character, ignore_case) for character in text]
        self._patterns: dict[tuple[int, frozenset[bytes]], re.Pattern[bytes]] = {}

    def whole(self) -> re.Pattern[bytes]:
        """Finds the text."""
        return self._from(0, self._letters[0])

    def rarest(self, data: bytes) -> re.Pattern[bytes]:
        """Finds what is in every match in these bytes: the text from the letter on at which looking costs least.

        Measured: 1.5 to 10 times the speed.
        """
        if len(data) < _SAMPLE_BYTES * 16:
            return self.whole()
        sample = data[:_SAMPLE_BYTES]
        count = max(1, min(len(self._letters) - 1, _SAMPLED_LETTERS))  # not the last one: each of it would be a hit
        first = min(range(count), key=lambda first: _cost(sample, *self._letters[first : first + 2]))
        spelled = self._letters[first]
        if len(spelled) > 1:  # of which the file has one, nearly always
            spelled = {spelling for spelling in spelled if spelling in data} or spelled
        return self._from(first, spelled)

    def _from(self, first: int, spelled: set[bytes]) -> re.Pattern[bytes]:
        """Finds the text from that letter on, which is spelled so."""
        key = (first, frozenset(spelled))
        if key not in self._patterns:
            self._patterns[key] = _text_pattern([spelled, *self._letters[first + 1 :]])
        return self._patterns[key]


def _cost(sample: bytes, letter: set[bytes], following: Iterable[bytes] = ()) -> int:
    """What looking for a letter costs: each one a little, each with what may follow it twelve times that."""
    followed = {a + b for a in letter for b in (*following, b'"', b"\\")}
    several = len(sample) // 12 * (len(letter) > 1)
    return several + sum(map(sample.count, letter)) + 12 * sum(map(sample.count, followed))


def _text_pattern(spellings: list[set[bytes]]) -> re.Pattern[bytes]:
    letters = [b"(?:%b)" % b"|".join(map(re.escape, sorted(several))) for several in spellings]
    if len(letters) > 1:  # a glance at what follows the first one. Measured: 1.2 times the speed
        begins = {spelling[:1] for spelling in spellings[1]} | {b'"', b"\\"}
        letters[0] += b"(?=[%b])" % re.escape(b"".join(sorted(begins)))
    return re.compile(_HIDDEN.join(letters))


def _spellings(character: str, ignore_case: bool) -> set[bytes]:
    """How JSON may have the character."""
    cases = {character, character.lower(), character.upper()} if ignore_case else {character}
    spelled = {escape(case.encode("utf-8", "surrogatepass")) for case in cases}
    if not character.isascii() or character in _SPELLED_OTHERWISE:
        units = character.encode("utf-16-be", "surrogatepass").hex()
        spelled.add("".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)).encode())
        spelled.add("".join(f"\\u{units[i : i + 4].upper()}" for i in range(0, len(units), 4)).encode())
        spelled.add(rb"\/" if character == "/" else escape(character.encode("utf-8", "surrogatepass")))
    if ignore_case:
        spelled = {spelling.lower() for spelling in spelled}
    return spelled


def search(file: BinaryIO, wanted: Wanted, step: Callable[[int], None]) -> Iterator[Found]:
    """The lines that match, each once. Memory does not grow with the file; ``step`` is told how many bytes were read.

    A line is what was shown up to a line feed, 256 KiB of the file at most; one that is longer counts as several. Where
    a cursor was moved, or what was shown was drawn over, no match is seen. Raises OSError.
    """
    data, position, ended = b"", 0, False  # data: of the file, from the beginning of an event on
    while not ended:
        block = file.read(_SEARCH_BYTES)
        step(len(block))
        ended = not block
        data += block or b"\n"  # so that the last line has an end, too
        limit = len(data) if ended else len(data) - _SEARCH_WINDOW_BYTES
        piece = _Piece(data, wanted)
        while position < limit and (found := piece.first(position)) and found[1].start() < limit:
            seconds, match = found
            line, position = _line_around(data, match.start(), match.end())
            yield Found(seconds, line)
        position = max(position, limit)
        data, position = _from_event(data, position)


class _Piece:
    """A piece of a recording, in which a text is looked for."""

    def __init__(self, data: bytes, wanted: Wanted) -> None:
        self._data = data
        self._searched = data.lower() if wanted.ignore_case else data
        self._whole = wanted.whole()
        self._rare = wanted.rarest(self._searched)  # a part that is in every match

    def first(self, position: int) -> tuple[float, re.Match[bytes]] | None:
        """The first match from there on that was shown, and its time."""
        if self._rare is self._whole:
            return self._shown(position, len(self._data))
        begin = position
        for _ in range(_TRIES):
            rare = self._rare.search(self._searched, begin)
            if rare is None:
                return None
            found = self._shown(max(position, rare.start() - _SEARCH_WINDOW_BYTES), rare.end())
            if found:
                return found
            begin = rare.start() + 1
        return self._shown(max(position, begin - _SEARCH_WINDOW_BYTES), len(self._data))

    def _shown(self, position: int, end: int) -> tuple[float, re.Match[bytes]] | None:
        """The first match between these places that was shown, and its time."""
        while match := self._whole.search(self._searched, position, end):
            seconds = _time_shown(self._data, match.start())
            if seconds is not None:
                return seconds, match
            position = match.start() + 1
        return None


def _from_event(data: bytes, position: int) -> tuple[bytes, int]:
    """The data from a window before the position on, and the position in that. It begins with the head of an event."""
    begin = max(0, position - _SEARCH_WINDOW_BYTES)
    event = data.rfind(b"\n", 0, begin) + 1
    if begin - event <= _SEARCH_WINDOW_BYTES:
        return data[event:], position - event
    head = _OUTPUT_BEGINS.match(data, event, begin)
    repeated = head[0] if head else b""
    return repeated + data[begin:], len(repeated) + position - begin


def _time_shown(data: bytes, position: int) -> float | None:
    """The time of the output event of which the byte there begins a character that was shown; None for any other."""
    event = data.rfind(b"\n", 0, position) + 1
    head = _OUTPUT_BEGINS.match(data, event)
    if not head or position < head.end() or _is_inside_escape(data, position):
        return None
    begin = max(head.end(), position - _SEQUENCE_BYTES)
    sequence = data.rfind(b"\\u001", begin, position)
    if sequence >= 0 and not _is_escaped(data, sequence):
        inside = _SEQUENCE_HERE.match(data, sequence)
        if inside and inside.end() > position:
            return None
    try:
        return float(head[1])
    except ValueError:
        return None


def _is_escaped(data: bytes, position: int) -> bool:
    """Whether what is there follows a backslash that is not itself escaped."""
    if data[position - 1 : position] != b"\\":
        return False
    before = data[max(0, position - _SCAN_BYTES) : position]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


def _is_inside_escape(data: bytes, position: int) -> bool:
    unicode = data.rfind(b"\\u", max(0, position - 5), position)
    return _is_escaped(data, position) or (unicode >= 0 and not _is_escaped(data, unicode))


def _line_around(data: bytes, start: int, end: int) -> tuple[str, int]:
    """The line that has that match, and where the next one begins."""
    begin, after = _line_begin(data, start), _line_end(data, end)
    before, found, rest = _plain(data[begin:start]), _plain(data[start:end]), _plain(data[end:after])
    return before[-_AROUND_CHARACTERS:] + found + rest[:_AROUND_CHARACTERS], after


def _line_begin(data: bytes, position: int) -> int:
    """Behind the last line feed before that was shown."""
    floor = max(0, position - _SEARCH_WINDOW_BYTES)
    begin = end = position
    while True:
        event = data.rfind(b"\n", 0, end) + 1
        head = _OUTPUT_BEGINS.match(data, event)
        if head:
            newline = _last_newline(data, max(head.end(), floor), end)
            if newline >= 0:
                return newline + 2
            begin = max(head.end(), floor)
        if event <= floor:
            return begin
        end = event - 1


def _last_newline(data: bytes, start: int, end: int) -> int:
    while (end := data.rfind(b"\\n", start, end)) >= 0 and _is_escaped(data, end):
        pass
    return end


def _line_end(data: bytes, position: int) -> int:
    """Where the next line feed is that was shown, or the end of what is known of the line."""
    limit = min(len(data), position + _SEARCH_WINDOW_BYTES)
    while (event_end := data.find(b"\n", position, limit)) >= 0:
        newline = _next_newline(data, position, event_end)
        if newline >= 0:
            return newline
        quote = data.rfind(b'"', position, event_end)
        more = _EVENT_ENDS.match(data, quote, limit) if quote >= 0 else None
        if more is None:
            return quote if quote >= 0 else event_end
        position = more.end()
    newline = _next_newline(data, position, limit)
    return newline if newline >= 0 else limit


def _next_newline(data: bytes, start: int, end: int) -> int:
    while (newline := data.find(b"\\n", start, end)) >= 0 and _is_escaped(data, newline):
        start = newline + 1
    return newline


def _plain(data: bytes) -> str:
    """A part of a recording's output as text: one event, or several with all between them."""
    text = _JSON_ESCAPE.sub(_unescaped, _EVENT_ENDS.sub(b"", data).decode("utf-8", "replace"))
    return _SEQUENCES.sub("", text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else _JSON_CONTROLS.get(match[2], match[2])


# -- reading as text --------------------------------------------------------------------------------------------------

_TEXT_LINE_CHARACTERS = 4096  # a longer line is continued on the next one
_FULL_SCREEN = "[full-screen program]"
_UNREADABLE = "[an event that cannot be read]"
_STRING = r"(?:\x1b[\]P_X^]|[\x90\x98\x9d-\x9f])[^\x07\x18\x1a\x1b\x9c]*"
_CONTROL_SEQUENCE = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
_SEQUENCES = re.compile(rf"{_CONTROL_SEQUENCE}|{_STRING}|\x1b[ -/]*[0-OQ-WYZ\\`-~]|[\x00-\x07\x0e\x0f]")
_TOKENS = re.compile(
    rf"(?P<text>[^\x00-\x1f\x7f-\x9f]+)|(?P<control>{_CONTROL_SEQUENCE})|(?P<string>{_STRING})"
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]|(?P<character>[\x00-\x1f\x7f-\x9f])"
)
_STRING_END = re.compile(r"[\x07\x18\x1a\x1b\x9c]")
_BEGUN = re.compile(r"(?:\x1b|\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PERHAPS_WIDE = re.compile(r"[\u1100-\U0010ffff]")
_ROWS_CHANGE = "ABEFHSTdf"  # final characters of control sequences that leave the line
_ALTERNATE_SCREEN = {"?47", "?1047", "?1049"}


def transcript(file: BinaryIO) -> Iterator[str]:
    """What a session showed, as lines of plain text without control characters. Raises OSError.

    Lines are as they stood when they were left: progress bars in their last state, typing mistakes mended. Programs
    that draw the whole screen are only mentioned, and so are the server's own words, in brackets.
    """
    if not file.readline(_LINE_LIMIT_BYTES).startswith(b"{"):
        raise OSError(errno.EILSEQ, "it is no asciicast")
    paper = _Paper()
    while line := file.readline(_LINE_LIMIT_BYTES):
        if not line.startswith(b"["):  # the rest of what is too long
            continue
        try:
            _, code, data = json.loads(line.decode("utf-8", "replace"), strict=False)
        except (ValueError, TypeError, RecursionError):
            yield _UNREADABLE
            continue
        if code == "o" and isinstance(data, str):
            yield from paper.print(data)
        elif code == "m" and isinstance(data, str) and not data.startswith("$ "):
            yield f"[{_UNPRINTABLE.sub(' ', data[:_TEXT_LINE_CHARACTERS])}]"
    yield from paper.end()


class _Paper:
    """A terminal of one line: what leaves the line is printed, and cannot be changed any more."""

    def __init__(self) -> None:
        self._cells = ""  # of the line; a wide character takes two, the second one is NUL
        self._column = 0
        self._begun = ""  # an escape sequence of which the end has not come yet
        self._in_string = False  # a control string
        self._full_screen = False

    def print(self, text: str) -> Iterator[str]:
        """Take output; returns the lines that are done."""
        text = self._whole(self._begun + text)
        for token in _TOKENS.finditer(text):
            kind = token.lastgroup
            if kind == "control":
                yield from self._control(token[0])
            elif kind == "string":
                self._in_string = token.end() == len(text)
            elif kind == "text" and not self._full_screen:
                yield from self._write(token[0])
            elif kind == "character" and not self._full_screen:
                yield from self._move(token[0])

    def end(self) -> Iterator[str]:
        """The line in which the output ended."""
        if self._cells:
            yield self._cut()

    def _whole(self, text: str) -> str:
        """The text without the rest of a control string, and without an escape sequence that is not complete yet."""
        if self._in_string:
            end = _STRING_END.search(text)
            text = text[end.start() :] if end else ""
            self._in_string = end is None
        begin = max(text.rfind("\x1b"), text.rfind("\x9b"))
        is_begun = begin >= 0 and _BEGUN.fullmatch(text, begin)
        self._begun = text[begin:] if is_begun else ""
        return text[:begin] if is_begun else text

    def _write(self, text: str) -> Iterator[str]:
        cells = _PERHAPS_WIDE.sub(_cells_of, text)
        while cells:
            part, cells = cells[: _TEXT_LINE_CHARACTERS - self._column], cells[_TEXT_LINE_CHARACTERS - self._column :]
            self._cells = self._cells.ljust(self._column)
            self._cells = self._cells[: self._column] + part + self._cells[self._column + len(part) :]
            self._column += len(part)
            if cells:
                yield self._cut()

    def _move(self, character: str) -> Iterator[str]:
        if character == "\r":
            self._column = 0
        elif character == "\b":
            self._go(self._column - 1)
        elif character == "\t":
            self._go(self._column // 8 * 8 + 8)
        elif character in "\n\v\f":
            yield self._cut()

    def _control(self, sequence: str) -> Iterator[str]:
        """Do what changes the line (ECMA-48, section 8.3); all else is left out."""
        parameters, final = sequence.lstrip("\x1b[\x9b")[:-1], sequence[-1]
        if final in "hl" and _ALTERNATE_SCREEN & {f"?{number}" for number in parameters.lstrip("?").split(";")}:
            if final == "h" and not self._full_screen:
                yield _FULL_SCREEN
            self._full_screen = final == "h"
        elif not self._full_screen:
            number = parameters.partition(";")[0][:5]
            count = int(number) if number.isdecimal() else 0
            if final in _ROWS_CHANGE:
                yield from self.end()
            else:
                self._edit(final, count)

    def _edit(self, final: str, count: int) -> None:
        before, behind, many = self._cells[: self._column], self._cells[self._column :], max(1, count)
        if final in "CDG":  # right, left, to a column
            self._go({"C": self._column + many, "D": self._column - many, "G": many - 1}[final])
        elif final == "J" and count == 0:  # erase to the end of the screen
            self._cells = before
        elif final == "K":  # erase to the end, or from the beginning, or all
            self._cells = [before, " " * self._column + behind[1:], ""][min(count, 2)]
        elif final == "P":  # delete
            self._cells = before + behind[many:]
        elif final == "@":  # insert
            self._cells = (before + " " * min(many, _TEXT_LINE_CHARACTERS) + behind)[:_TEXT_LINE_CHARACTERS]
        elif final == "X":  # erase
            self._cells = before + " " * min(many, len(behind)) + behind[many:]

    def _go(self, column: int) -> None:
        self._column = max(0, min(column, _TEXT_LINE_CHARACTERS - 1))

    def _cut(self) -> str:
        line, self._cells, self._column = self._cells.replace("\0", "").rstrip(" "), "", 0
        return line


def _cells_of(character: re.Match[str]) -> str:
    return f"{character[0]}\0" if unicodedata.east_asian_width(character[0]) in "WF" else character[0]
