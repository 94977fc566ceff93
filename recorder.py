"""What was seen? The recording of a session: an asciicast v2 file, which may be packed with gzip when it is finished.

Owns the path of a recording, writing it, repairing and examining it after a crash, packing it, finding it again, and
searching and reading it as text. Knows nothing of sessions, browsers, pods or HTTP. Only what the pod printed is
recorded, with its times and the terminal's sizes, and markers for what the user was not shown.

Events are asciicast's own (``o`` output, ``r`` resize, ``m`` marker) and one more, ``b``: where output was not UTF-8,
the ``o`` event has U+FFFD in its place, as a terminal shows it, and a ``b`` event after it has the bytes, in base64, so
that nothing is lost. Players pass over codes that they do not know.

Where is what: finding, repairing and examining; ``RecordFolder``; ``Recorder``; packed recordings; searching; reading
as text.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import stat
import struct
import threading
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "Examined",
    "Found",
    "PackedFile",
    "RecordError",
    "RecordFolder",
    "Recorder",
    "examine",
    "find_recording",
    "is_incomplete",
    "mark_incomplete",
    "open_recording",
    "pack",
    "playable_size",
    "recorded_output",
    "recording_path",
    "recordings",
    "repair",
    "search",
    "search_pattern",
    "session_of",
    "transcript",
]

_SYNC_SECONDS = 5.0  # what a crash of the machine can lose of a busy recording
_SCAN_BYTES = 1 << 16
_LINE_LIMIT_BYTES = 1 << 23  # several times what the largest event can take
_FOLDERS = 8  # between the root and a recording
_MIN_FREE_BYTES = 1 << 30  # by default, on a disk of which that is less than a twentieth
_RESERVE_BYTES = 16 << 20  # on a disk of which that is less than a fiftieth
_SMALL_LINE_BYTES = 1024  # what the reserve is for: echoes, prompts, last words
PACKED_SUFFIX = ".gz"
_LOST = b', "m", "the server ended before the session did"]\n'
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
    if isinstance(file, PackedFile):
        return file.size
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


class Recorder:
    """Writes one asciicast v2 file, a line an event, straight to the file. Any thread.

    The file exists, with its header, when the constructor returns. Every method raises RecordError when the
    file cannot be written, or is no longer the one at its path; from then on nothing more is accepted.
    """

    def __init__(
        self, path: Path, cols: int, rows: int, *, title: str = "", folder: RecordFolder | None = None
    ) -> None:
        """Make the file and those of its eight folders that are missing; the root must be there.

        ``folder``: whose reserve is given back when the disk is full.
        """
        self.path = path
        self._folder = folder
        self.bytes_written = 0
        self._failed = False
        self._lock = threading.Lock()  # guards all but the path
        self._rest = b""  # the beginning of a character of which the end has not come yet
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
        return shown

    def _event(self, code: bytes, data: bytes) -> None:
        now = time.monotonic()
        self._write(b'[%.6f, "%b", "%b"]\n' % (now - self._start, code, data))
        if now - self._synced > _SYNC_SECONDS:
            self._synced = now
            self._sync()

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
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
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
_SEARCH_WINDOW_BYTES = 1 << 18  # what a match and its line may take to each side, with all that is not shown
_SEQUENCE_BYTES = 1 << 12  # before a match, in which an escape sequence is looked for that it is a part of
_AROUND_CHARACTERS = 500  # of the line, to each side of the match
# What may stand between two letters of a text and is not shown, as it stands in the file, where the pod's output is
# inside of JSON strings. No part of it can be taken for another, so that nothing is tried twice.
_NEXT_EVENT = (
    rb'"[ \t]{0,8}\][ \t\r]{0,8}\n'
    rb'(?:\[[^"\n]{0,64}"[^o"\n]"[^\n]*\n)*'  # other events than output
    rb'\[[^"\n]{0,64}"o"[ \t]{0,8},[ \t]{0,8}"'
)
_ESC = rb"\\u001[bB]"
_SEQUENCE = (  # ECMA-48, sections 5.3, 5.4 and 5.6: control sequences, control strings, all others
    rb"%(esc)b(?:%(next)b)?\[[0-?]*(?:%(next)b[0-?]*)?(?:[ !#-/]|\\\")*(?:[@-\[\]-~]|\\\\)"
    rb"|%(esc)b[\]P_X^][^\\\"\n]*(?:\\(?!u001[bB]|u0007)[^\n][^\\\"\n]*)*"  # ends before ESC or BEL, which are next
    rb"|%(esc)b(?:[ !#-/]|\\\")*(?:[0-OQ-WYZ`-~]|\\\\)"
) % {b"esc": _ESC, b"next": _NEXT_EVENT}
_HIDDEN = rb"(?:%b|%b|\\u000[0-7eEfF])*" % (_SEQUENCE, _NEXT_EVENT)
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


def search_pattern(text: str, *, ignore_case: bool = False) -> re.Pattern[bytes]:
    """A pattern that finds the text in the bytes of a recording, also over several events and with colours inside.

    Of any writer: JSON can spell a character in several ways. With ``ignore_case`` it is for bytes in lower case.
    """
    return re.compile(_HIDDEN.join(_spellings(character, ignore_case) for character in text))


def _spellings(character: str, ignore_case: bool) -> bytes:
    cases = {character, character.lower(), character.upper()} if ignore_case else {character}
    spelled = {escape(case.encode("utf-8", "surrogatepass")) for case in cases}
    if not character.isascii() or character in _SPELLED_OTHERWISE:
        units = character.encode("utf-16-be", "surrogatepass").hex()
        spelled.add("".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)).encode())
        spelled.add("".join(f"\\u{units[i : i + 4].upper()}" for i in range(0, len(units), 4)).encode())
        spelled.add(rb"\/" if character == "/" else escape(character.encode("utf-8", "surrogatepass")))
    if ignore_case:
        spelled = {spelling.lower() for spelling in spelled}
    either = b"|".join(map(re.escape, sorted(spelled)))
    return either if len(spelled) == 1 else b"(?:%b)" % either


def search(file: BinaryIO, pattern: re.Pattern[bytes], *, ignore_case: bool = False) -> Iterator[Found]:
    """The lines that match, each once. Memory does not grow with the file. Raises OSError.

    A line is what was shown up to a line feed, 256 KiB of the file at most; one that is longer counts as several. Where
    a cursor was moved, or what was shown was drawn over, no match is seen.
    """
    data, position, ended = b"", 0, False  # data: of the file, from the beginning of an event on
    while not ended:
        block = file.read(_SEARCH_BYTES)
        ended = not block
        data += block or b"\n"  # so that the last line has an end, too
        limit = len(data) if ended else len(data) - _SEARCH_WINDOW_BYTES
        searched = data.lower() if ignore_case else data
        while position < limit and (match := pattern.search(searched, position)) and match.start() < limit:
            seconds = _time_shown(data, match.start())
            position = match.start() + 1
            if seconds is not None:
                line, position = _line_around(data, match.start(), match.end())
                yield Found(seconds, line)
        position = max(position, limit)
        data, position = _from_event(data, position)


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
    sequence = data[begin:position].lower().rfind(b"\\u001b")
    if sequence >= 0 and not _is_escaped(data, begin + sequence):
        inside = _SEQUENCE_HERE.match(data, begin + sequence)
        if inside and inside.end() > position:
            return None
    try:
        return float(head[1])
    except ValueError:
        return None


def _is_escaped(data: bytes, position: int) -> bool:
    """Whether what is there follows a backslash that is not itself escaped."""
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
_SEQUENCES = re.compile(rf"{_CONTROL_SEQUENCE}|{_STRING}|\x1b[ -/]*[0-OQ-WYZ\\`-~]")
_TOKENS = re.compile(
    rf"(?P<text>[^\x00-\x1f\x7f-\x9f]+)|(?P<control>{_CONTROL_SEQUENCE})|(?P<string>{_STRING})"
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]|(?P<character>[\x00-\x1f\x7f-\x9f])"
)
_STRING_END = re.compile(r"[\x07\x18\x1a\x1b\x9c]")
_BEGUN = re.compile(r"(?:\x1b|\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ROWS_CHANGE = "ABEFHJSTdf"  # final characters of control sequences that leave the line
_ALTERNATE_SCREEN = {"?47", "?1047", "?1049"}


def transcript(file: BinaryIO) -> Iterator[str]:
    """What a session showed, as lines of plain text without control characters. Raises OSError.

    Lines are as they stood when they were left: progress bars in their last state, typing mistakes mended. Programs
    that draw the whole screen are only mentioned, and so are the server's own words, in brackets.
    """
    paper = _Paper()
    while line := file.readline(_LINE_LIMIT_BYTES):
        if not line.startswith(b"["):  # the header, or the rest of what is too long
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
            if token["control"]:
                yield from self._control(token["control"])
            elif token["string"]:
                self._in_string = token.end() == len(text)
            elif self._full_screen:
                continue
            elif token["text"]:
                yield from self._write(token["text"])
            elif token["character"]:
                yield from self._move(token["character"])

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
        cells = text if text.isascii() else "".join(map(_cells_of, text))
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


def _cells_of(character: str) -> str:
    return f"{character}\0" if unicodedata.east_asian_width(character) in "WF" else character
