"""What was seen? The recording of a session: an asciicast v2 file.

Owns the path of a recording, writing it, repairing and examining it after a crash, and finding it again. Knows nothing
of sessions, browsers, pods or HTTP. What the pod printed is recorded, with its times and the terminal's sizes; markers
for what the user was not shown, and for the commands that the shell reports; and what was typed, where that is wanted.

Events are asciicast's own (``o`` output, ``i`` input, ``r`` resize, ``m`` marker) and two more. ``b``: where output was
not UTF-8, the ``o`` event has U+FFFD in its place, as a terminal shows it, and a ``b`` event after it has the bytes, in
base64, so that nothing is lost. ``d``: the command that began last is done; its data is the exit code, or empty. It
began with an ``m`` whose label is "$ " and the command line. Players pass over codes that they do not know.
"""

from __future__ import annotations

import base64
import codecs
import collections
import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "Examined",
    "RecordError",
    "RecordFolder",
    "RecordedCommand",
    "Recorder",
    "examine",
    "find_recording",
    "is_incomplete",
    "mark_incomplete",
    "playable_size",
    "recorded_commands",
    "recorded_output",
    "recording_path",
    "recordings",
    "repair",
    "session_of",
]

_SYNC_SECONDS = 5.0  # what a crash of the machine can lose of a busy recording
_SCAN_BYTES = 1 << 16
_LINE_LIMIT_BYTES = 1 << 23  # several times what the largest event can take
_FOLDERS = 8  # between the root and a recording
_MIN_FREE_BYTES = 1 << 30  # by default, on a disk of which that is less than a twentieth
_RESERVE_BYTES = 16 << 20  # on a disk of which that is less than a fiftieth
_SMALL_LINE_BYTES = 1024  # what the reserve is for: echoes, prompts, last words
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


class RecordError(Exception):
    """A recording cannot be made, written or found. ``str()`` names the file and the system's reason."""


def recording_path(root: Path, session_id: str) -> Path:
    """Where a session's recording lies: eight two-digit folders from its id's MD5, then ``<session id>.cast``."""
    digits = hashlib.md5(session_id.encode(), usedforsecurity=False).hexdigest()[:16]
    folders = [digits[i : i + 2] for i in range(0, 2 * _FOLDERS, 2)]
    return root.joinpath(*folders, f"{session_id}.cast")


def find_recording(root: Path, name: str) -> Path:
    """The real path of a recording, named absolutely or relative to ``root``.

    Raises RecordError for everything that is not a regular ``.cast`` file inside the real root.
    """
    try:
        real_root = root.resolve()
        path = (real_root / name).resolve()
        inside = real_root in path.parents and path.suffix == ".cast"
        if inside and stat.S_ISREG(path.stat().st_mode):
            return path
    except (OSError, ValueError, RuntimeError):  # a NUL, a name too long, a symlink loop
        pass
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
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _SCAN_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


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
    """Read a whole recording that nobody writes any more. Raises RecordError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
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
        folder: RecordFolder | None = None,
        commands: bool = True,
    ) -> None:
        """Make the file and those of its eight folders that are missing; the root must be there.

        ``folder``: whose reserve is given back when the disk is full. ``commands``: whether those that shells report
        become events.
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
        size = {"version": 2, "width": cols, "height": rows, "timestamp": int(time.time())}
        header = json.dumps({**size, "title": title, "env": {"TERM": "xterm-256color"}}, ensure_ascii=False)
        try:
            self._write(header.encode("utf-8", "replace") + b"\n")
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
