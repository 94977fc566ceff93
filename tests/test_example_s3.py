"""``examples/s3_upload_hooks.py`` on a real S3 server: what ends is uploaded, what is gone is played from there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from demo.cluster import StandIn
from examples import s3_upload_hooks
from hooks import HookError, SessionInfo, TokenAuthData, load_hooks
from recorder import pack, recording_path
from tests.support import Installation, Program, answer_of, newest, nothing_left, run_program, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Boto3 will no longer support")
EXAMPLE = Path(s3_upload_hooks.__file__)
# Ends when its input does.
STORE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A real S3 server in a process of its own; the environment leads there and nowhere else."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", STORE], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    host, port = process.stdout.readline().split()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "S3CRET",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"{host}:{port}"
    process.communicate()


class Store:
    """A bucket of its own for each test."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self._client = boto3.client("s3")
        self.make_bucket()

    def keys(self) -> list[str]:
        return [item["Key"] for item in self._client.list_objects_v2(Bucket=self.bucket).get("Contents", [])]

    def versions(self) -> int:
        """How many objects were ever written."""
        return len(self._client.list_object_versions(Bucket=self.bucket).get("Versions", []))

    def keep_versions(self) -> None:
        self._client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def read(self, key: str) -> bytes:
        return bytes(self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def write(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def empty(self) -> None:
        for key in self.keys():
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def remove_bucket(self) -> None:
        self._client.delete_bucket(Bucket=self.bucket)

    def make_bucket(self) -> None:
        self._client.create_bucket(Bucket=self.bucket)

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def store(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    assert address.startswith("127.0.0.1:")
    bucket = f"recordings-{uuid.uuid4()}"
    monkeypatch.setenv("RECORDINGS_BUCKET", bucket)
    with contextlib.closing(Store(bucket)) as made:
        yield made


@pytest.fixture
def server(store: Store, cluster: StandIn, tmp_path: Path) -> Iterator[Program]:
    with Program(tmp_path, cluster, hooks_file=EXAMPLE.read_text()) as running:
        yield running


def recorded_session(server: Installation) -> tuple[str, bytes]:
    """A session that has ended: the name of its recording, and what is in it."""
    with server.connect() as terminal:
        terminal.type("echo kept-$((40 + 2)); exit\n")
        terminal.wait_end()
    path = newest(server)
    return str(path.relative_to(server.config.record_path)), path.read_bytes()


def play(server: Installation, name: str) -> tuple[int, str]:
    return answer_of(server, server.play_path(name)[1:])


def test_a_finished_recording_is_uploaded_and_played_from_there_when_it_is_gone(store: Store, server: Program) -> None:
    name, data = recorded_session(server)
    server.wait_settled()
    assert store.keys() == [name] and store.read(name) == data and b"kept-42" in data
    assert play(server, name) == (200, data.decode())
    newest(server).unlink()
    for filename in (name, name, str(server.config.record_path / name)):
        assert play(server, filename) == (200, data.decode())
    store.empty()
    assert play(server, name) == (200, data.decode())  # of the cache
    assert server.end() == 0
    assert "Traceback" not in server.log() and "S3CRET" not in server.log()


def test_so_is_one_that_the_server_packs(store: Store, cluster: StandIn, tmp_path: Path) -> None:
    hooks_file = EXAMPLE.read_text()
    with Program(tmp_path, cluster, hooks_file=hooks_file, record_lines="compress = true") as server:
        with server.connect() as terminal:
            terminal.type("echo kept-$((40 + 2)); exit\n")
            terminal.wait_end()
        wait_until(lambda: list(server.config.record_path.rglob("*.cast.gz")), "the packed recording")
        server.wait_settled()
        (name,) = store.keys()
        data = store.read(name)
        assert name.endswith(".cast") and hashlib.sha256(data).hexdigest() == server.rows()[0]["sha256"]
        (server.config.record_path / f"{name}.gz").unlink()
        assert play(server, name) == (200, data.decode())


def test_what_is_neither_here_nor_there_is_not_found(store: Store, server: Program) -> None:
    name, _ = recorded_session(server)
    server.wait_settled()
    newest(server).unlink()
    store.empty()
    assert play(server, name)[0] == 404
    stranger = str(recording_path(Path(), "7d3a1c5e-0b1f-4c8e-9a55-6f0e3b1d2c4a"))
    store.write(stranger, b"of no session\n")
    assert play(server, stranger)[0] == 404


def test_what_was_changed_in_the_store_is_not_played(store: Store, server: Program) -> None:
    name, data = recorded_session(server)
    server.wait_settled()
    newest(server).unlink()
    store.write(name, data.replace(b"kept-42", b"kept-43"))
    assert play(server, name) == (503, "this recording cannot be fetched now; try again later\n")
    assert "what the store has is not the recording of the session" in server.log()


def test_an_upload_that_fails_is_tried_again_and_holds_up_no_session(store: Store, server: Program) -> None:
    store.remove_bucket()
    name, data = recorded_session(server)
    wait_until(lambda: "hook=on_logout" in server.log(), "the failure")
    assert 'error="the store refuses: NoSuchBucket"' in server.log()
    with server.connect() as terminal:
        terminal.wait_for_event("session")
        store.make_bucket()
        wait_until(lambda: store.keys() == [name], "the next try")
    assert store.read(name) == data


@contextlib.contextmanager
def hooks_beside(server: Installation) -> Iterator[Any]:
    """The hooks of the example on the same files, in this process."""
    with nothing_left():
        own = load_hooks(EXAMPLE)(server.config.hooks_settings())
        own.open()
        try:
            yield own
        finally:
            own.close()


def info_of(server: Installation) -> SessionInfo:
    path = newest(server)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    auth = TokenAuthData("default", "demo", user="alice")
    return SessionInfo(path.stem, str(path), auth, "", 1.0, 2.0, size=path.stat().st_size, sha256=digest)


def test_a_logout_that_is_repeated_uploads_nothing_again_unless_the_store_has_something_else(
    store: Store, server: Program
) -> None:
    store.keep_versions()
    name, data = recorded_session(server)
    server.wait_settled()
    with hooks_beside(server) as own:
        for _ in range(3):
            own.on_logout(info_of(server))
        assert store.versions() == 1
        store.write(name, b"something else")
        own.on_logout(info_of(server))
        assert store.versions() == 3 and store.read(name) == data


def test_one_that_is_packed_already_is_uploaded_as_it_was(store: Store, server: Program) -> None:
    name, data = recorded_session(server)
    server.wait_settled()
    store.empty()
    info = info_of(server)
    assert pack(newest(server), lambda: False)
    with hooks_beside(server) as own:
        own.on_logout(info)
    assert store.read(name) == data


def test_nothing_but_a_sessions_unchanged_recording_in_the_record_folder_is_uploaded(
    store: Store, server: Program, tmp_path: Path
) -> None:
    recorded_session(server)
    server.wait_settled()
    store.empty()
    info, root = info_of(server), server.config.record_path
    outside = recording_path(tmp_path / "outside", info.session_id)
    outside.parent.mkdir(parents=True)
    outside.write_bytes(Path(info.filename).read_bytes())
    link = recording_path(root, "7d3a1c5e-0b1f-4c8e-9a55-6f0e3b1d2c4a")
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    (root / "other.cast").write_bytes(outside.read_bytes())
    with hooks_beside(server) as own:
        for path in (outside, link, root / "other.cast", root / "../outside" / outside.relative_to(outside.parents[8])):
            with pytest.raises(HookError, match="cannot be uploaded: no such recording"):
                own.on_logout(replace(info, filename=str(path)))
        with open(info.filename, "ab") as file:
            file.write(b'[9.0, "o", "never shown"]\n')
        with pytest.raises(HookError, match="is not the one of the session any more"):
            own.on_logout(info)
    assert store.keys() == []


def test_the_cache_forgets_what_was_played_longest_ago(
    store: Store, server: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [recorded_session(server)[0] for _ in range(3)]
    server.wait_settled()
    too_small = sum(len(store.read(name)) for name in names) - 1  # for three; two of them fit
    with hooks_beside(server) as own:
        monkeypatch.setattr(sys.modules[type(own).__module__], "CACHE_BYTES", too_small)
        first, second, third = (own.fetch_recording(name) for name in names)
        assert [path.exists() for path in (first, second, third)] == [False, True, True]
        assert own.fetch_recording(names[1]) == second
        assert own.fetch_recording(names[0]) == first
        assert [path.exists() for path in (first, second, third)] == [True, True, False]
        assert first.read_bytes() == store.read(names[0])


def test_a_server_without_a_bucket_does_not_start(
    cluster: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RECORDINGS_BUCKET", raising=False)
    file = Installation(tmp_path, cluster, hooks_file=EXAMPLE.read_text()).config_file
    done = run_program("-jumpserver", file)
    assert done.returncode == 2
    assert done.stderr.endswith(f"jumpserver: {file}: RECORDINGS_BUCKET must name the bucket for recordings\n")
