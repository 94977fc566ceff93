"""Keep a copy of each finished recording in an S3-compatible store, and play it from there when it is gone here.

    [Hooks]
    file = "examples/s3_upload_hooks.py"

The environment names the bucket, ``RECORDINGS_BUCKET``. Endpoint, region and credentials are found as boto3 always
finds them: in ``AWS_ENDPOINT_URL_S3``, ``AWS_DEFAULT_REGION``, ``AWS_ACCESS_KEY_ID`` and so on, in its files, or from
the cloud. The key of an object is the path of the recording below the record folder.

No session waits for an upload. One that fails is tried again, with the pauses of ``on_logout``, for a day. What
``jumpserver.py retire`` removes here can be played from the store as long as it lies there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from hooks import HookError, Hooks, HooksSettings, SessionInfo
from recorder import RecordError, find_recording, open_recording, recording_name

CACHE_BYTES = 4 << 30  # of fetched recordings; the one that was played longest ago goes first
_CALL = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 3})
_TRANSFER = TransferConfig(use_threads=False)  # the thread that calls a hook is enough


class S3Hooks(Hooks):
    """The hooks that ship, with a store for recordings."""

    def __init__(self, settings: HooksSettings) -> None:
        super().__init__(settings)
        self._bucket = os.environ.get("RECORDINGS_BUCKET", "")
        self._lock = threading.Lock()  # guards what lies in the cache
        self._opened = contextlib.ExitStack()

    def open(self) -> None:
        if not self._bucket:
            raise HookError("RECORDINGS_BUCKET must name the bucket for recordings")
        with _translated():
            self._s3 = boto3.client("s3", config=_CALL)  # which any thread may use
        self._opened.callback(self._s3.close)
        self._cache = Path(self._opened.enter_context(tempfile.TemporaryDirectory(prefix="recordings-")))
        super().open()

    def close(self) -> None:
        super().close()
        self._opened.close()

    def on_logout(self, info: SessionInfo) -> None:
        """Upload the recording if the store does not have it, then tell the platform. May be repeated."""
        self._upload(info)
        super().on_logout(info)

    def _upload(self, info: SessionInfo) -> None:
        try:
            path = find_recording(self.settings.records, info.filename)  # in the record folder, or there is none
            key = recording_name(self.settings.records, info.filename)
            with open_recording(path) as file:
                if _digest(file) != info.sha256:
                    raise HookError("the recording is not the one of the session any more: it is not uploaded")
                with _translated():
                    if not self._has(key, info):
                        file.seek(0)
                        self._s3.upload_fileobj(
                            file,
                            self._bucket,
                            key,
                            ExtraArgs={"ContentType": "application/x-asciicast", "Metadata": {"sha256": info.sha256}},
                            Config=_TRANSFER,
                        )
        except (RecordError, OSError) as exc:
            raise HookError(f"the recording cannot be uploaded: {exc}") from None

    def _has(self, key: str, info: SessionInfo) -> bool:
        """Whether the store has just this recording, as far as it says. Raises the errors of boto3."""
        try:
            there = self._s3.head_object(Bucket=self._bucket, Key=key)
        except ClientError as exc:
            if _is_missing(exc):
                return False
            raise
        return bool((there["ContentLength"], there["Metadata"].get("sha256")) == (info.size, info.sha256))

    def fetch_recording(self, filename: str) -> Path | None:
        """Download a recording of a session that the ledger knows, unless it still lies in the cache."""
        info = self.ledger.session(Path(filename).stem)
        if info is None:
            return None
        path = self._cache / Path(filename).name
        with self._lock, contextlib.suppress(FileNotFoundError):
            os.utime(path)  # it is wanted: others go first
            return path
        return path if self._download(filename, info, path) else None

    def _download(self, key: str, info: SessionInfo, path: Path) -> bool:
        """Put the recording into the cache. False: the store has none. Nobody is shown another than was recorded."""
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part") as file:
            try:
                with _translated():
                    self._s3.download_fileobj(self._bucket, key, file, Config=_TRANSFER)
            except FileNotFoundError:
                return False
            if _digest(file) != info.sha256:
                raise HookError("what the store has is not the recording of the session")
            with self._lock:
                path.unlink(missing_ok=True)
                os.link(file.name, path)
                self._make_room()
        return True

    def _make_room(self) -> None:
        """Who plays a recording that goes reads it to its end. Needs the lock."""
        files = sorted(self._cache.glob("*.cast"), key=lambda file: file.stat().st_mtime)
        while len(files) > 1 and sum(file.stat().st_size for file in files) > CACHE_BYTES:
            files.pop(0).unlink()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """What boto3 raises, as a HookError without addresses and names; FileNotFoundError where there is no object."""
    try:
        yield
    except ClientError as exc:
        if _is_missing(exc):
            raise FileNotFoundError from None
        raise HookError(f"the store refuses: {exc.response['Error']['Code']}") from None
    except (BotoCoreError, Boto3Error) as exc:
        raise HookError(f"the store cannot be used: {type(exc).__name__}") from None


def _is_missing(exc: ClientError) -> bool:
    return str(exc.response["Error"]["Code"]) in ("404", "NoSuchKey")


def _digest(file: IO[bytes]) -> str:
    """SHA-256 in hex of all that is in it."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
