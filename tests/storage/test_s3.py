"""What is asked of an object store, asked of an S3 on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_here import S3, s3_here, use

from greenprune.errors import ConfigError
from greenprune.storage import Storage, leases
from greenprune.storage.bucket import CHUNK, Bucket, open_bucket
from greenprune.store import StageCall, Store

pytestmark = pytest.mark.slow
ROOT = "s3://bucket/folder"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[S3]:
    with s3_here(tmp_path_factory.mktemp("s3")) as s3:
        yield s3


@pytest.fixture
def there(server, monkeypatch, tmp_path) -> Bucket:
    use(server, monkeypatch)
    return open_bucket(f"{ROOT}/{tmp_path.name}")


def test_an_object_is_there_or_not(there, tmp_path):
    assert there.head("a/b") is None
    assert there.listing("a") == {}
    there.write("a/b", b"one")
    before = there.head("a/b")
    there.write("a/b", b"two")
    after = there.head("a/b")
    assert (before.bytes, after.bytes) == (3, 3)
    assert before.tag != after.tag
    there.write("ab/c", b"")
    assert set(there.listing("a")) == {"a/b"}
    assert set(there.listing("")) == {"a/b", "ab/c"}
    assert bytes(there.read("a/b", 1, 2)) == b"wo"
    assert bytes(there.read("ab/c", 0, 0)) == b""
    there.move("a/b", "x/y")
    assert there.head("a/b") is None
    assert bytes(there.read("x/y", 0, 3)) == b"two"
    there.delete("x/y")
    there.delete("x/y")
    with pytest.raises(FileNotFoundError):
        there.read("x/y", 0, 3)


def test_of_many_who_create_one_does(there):
    won = []

    def create(number: int) -> None:
        if there.create("mark", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(won) == 1
    assert bytes(there.read("mark", 0, 1)) == str(won[0]).encode()


TRANSFER = """
import os, resource, sys
from pathlib import Path
from greenprune.storage import Storage
storage = Storage(sys.argv[1])
if sys.argv[2] == "push":
    (storage.local / "large").mkdir(parents=True)
    with (storage.local / "large" / "file").open("wb") as sink:
        for _ in range(16):
            sink.write(os.urandom(1 << 20) * 16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
storage.push("large") if sys.argv[2] == "push" else storage.pull("large")
grew = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grew >> 10, (storage.local / "large" / "file").stat().st_size)
"""


def test_a_large_file_travels_in_chunks_of_which_few_are_in_memory(server, there, tmp_path):
    """256 MiB: 16 chunks each way."""
    uri = f"{ROOT}/{tmp_path.name}"
    for way, method in (("push", "PUT"), ("pull", "GET")):
        before = server.asked("large/file")[method]
        environment = os.environ | server.environment | {"GREENPRUNE_CACHE": str(tmp_path / way)}
        done = subprocess.run(
            [sys.executable, "-c", TRANSFER, uri, way], env=environment, capture_output=True, text=True, check=True
        )
        grew_mib, size = map(int, done.stdout.split())
        print(way, grew_mib, "MiB", server.asked("large/file"))
        assert size == 16 * CHUNK
        assert server.asked("large/file")[method] - before == 16
        assert grew_mib < 230, "8 chunks of 16 MiB, and what requests take"


def test_artifacts_leases_and_numbers_travel(server, there, tmp_path, monkeypatch):
    """Two machines by their caches: one makes an artifact, the other has it, and waits for its lease meanwhile."""
    monkeypatch.setattr(leases, "LOOKS_S", (0.01, 0.1))
    call = StageCall("prune", 1, {"method": tmp_path.name})

    def node(name: str) -> Store:
        monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / name))
        return Store(f"{ROOT}/{tmp_path.name}")

    made, calls = [], []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "weights").write_bytes(b"w" * 1000)
        (folder / "report.json").write_text("{}")

    stores = [node(name) for name in "abc"]
    threads = [threading.Thread(target=lambda s=s: made.append(s.get_or_compute(call, make))) for s in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 3
    assert len(calls) == 1
    head = node("head")
    assert head.part(made[0], "report.json").read_text() == "{}"
    assert not (head.storage.local / call.folder / "checkpoint").exists()
    assert (node("d").path(made[0]) / "checkpoint" / "weights").stat().st_size == 1000


@pytest.mark.parametrize("uri", ["nowhere://bucket", "s3://bucket/folder?endpoint_override=x"])
def test_what_is_refused(uri):
    with pytest.raises(ConfigError, match=r"storage must be a path or a URI such as s3://"):
        Storage(uri)
