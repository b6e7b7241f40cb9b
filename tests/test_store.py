"""Artifacts are computed once, whoever asks; a crash leaves nothing that looks finished."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from faulty_store import FaultyStore

from greenprune.errors import ConfigError
from greenprune.storage import Storage, write_atomically
from greenprune.store import Artifact, StageCall, Store

CALL = StageCall("prune", 1, {"method": "angular"}, {"checkpoint": "abc"})


def write(text: str):
    def function(folder: Path) -> None:
        (folder / "out.txt").write_text(text)

    return function


def refuse(folder: Path) -> None:
    raise AssertionError("computed again")


def events(store: Store, *kinds: str) -> list[str]:
    return [event["event"] for event in store.events() if event["event"] in kinds]


def test_key_depends_on_everything_and_on_nothing_else():
    same = StageCall("prune", 1, {"method": "angular"}, {"checkpoint": "abc"})
    assert same.key == CALL.key
    others = [
        StageCall("heal", 1, CALL.section, CALL.parents),
        StageCall("prune", 2, CALL.section, CALL.parents),
        StageCall("prune", 1, {"method": "bi"}, CALL.parents),
        StageCall("prune", 1, CALL.section, {"checkpoint": "abd"}),
    ]
    assert len({CALL.key, *(call.key for call in others)}) == 5
    a, b = StageCall("x", 1, {"a": 1, "b": 2}), StageCall("x", 1, {"b": 2, "a": 1})
    assert a.key == b.key


def test_computed_once_then_reused(tmp_path):
    store = Store(tmp_path)
    first = store.get_or_compute(CALL, write("one"))
    second = Store(tmp_path).get_or_compute(CALL, refuse)
    assert (first.key, first.reused, second.reused) == (second.key, False, True)
    assert (store.path(second) / "out.txt").read_text() == "one"
    assert events(store, "computed", "reused") == ["computed", "reused"]


def test_manifest_says_what_it_was_made_from(tmp_path):
    store = Store(tmp_path)
    manifest = json.loads((store.path(store.get_or_compute(CALL, write("one"))) / "manifest.json").read_text())
    assert (manifest["stage"], manifest["section"], manifest["parents"]) == ("prune", CALL.section, CALL.parents)
    assert manifest["files"] == {"out.txt": 3}


def half(folder: Path) -> None:
    (folder / "half.txt").write_text("half")
    raise RuntimeError("lost power")


def test_what_a_failed_attempt_left_is_there_for_one_that_resumes(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="lost power"):
        store.get_or_compute(CALL, half, resumes=True)
    assert store.find(CALL) is None
    assert events(store, "failed") == ["failed"]

    def rest(folder: Path) -> None:
        assert (folder / "half.txt").read_text() == "half"

    store.get_or_compute(CALL, rest, resumes=True)
    assert store.find(CALL) is not None


def test_nothing_is_left_of_a_failed_attempt_that_none_can_go_on_with(tmp_path):
    """A stage that fills the disk must not keep it full."""
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="lost power"):
        store.get_or_compute(CALL, half)
    assert not list(tmp_path.rglob("half.txt"))
    assert not list(tmp_path.rglob("*.partial"))


def _slow(root: str, marks: str) -> None:
    def function(folder: Path) -> None:
        with open(marks, "a") as handle:
            handle.write("x")
        time.sleep(0.5)

    Store(root).get_or_compute(CALL, function)


def test_single_flight_between_processes(tmp_path):
    marks = tmp_path / "marks"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_slow, args=(str(tmp_path / "runs"), str(marks))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert marks.read_text() == "x"


def _hang(root: str, started: str) -> None:
    def function(folder: Path) -> None:
        Path(started).touch()
        time.sleep(60)

    Store(root).get_or_compute(CALL, function)


def test_a_killed_process_leaves_no_lock(tmp_path):
    started = tmp_path / "started"
    worker = multiprocessing.get_context("fork").Process(target=_hang, args=(str(tmp_path / "runs"), str(started)))
    worker.start()
    while not started.exists():
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)
    artifact = Store(tmp_path / "runs").get_or_compute(CALL, write("after"))
    assert not artifact.reused


def test_another_machine_that_finished_first_wins(tmp_path):
    store = Store(tmp_path)

    def beaten(folder: Path) -> None:
        (folder / "out.txt").write_text("ours")
        theirs = folder.with_suffix("")
        theirs.mkdir()
        (theirs / "out.txt").write_text("theirs")
        (theirs / "manifest.json").write_text(json.dumps({"seconds": 1.0}))

    artifact = store.get_or_compute(CALL, beaten)
    assert (store.path(artifact) / "out.txt").read_text() == "theirs"


def mirrored(mirror: Path, bucket: Path) -> Store:
    """A store on a remote file system (a folder behind a Bucket's calls), with its mirror elsewhere."""
    storage = Storage(mirror)
    storage.remote = FaultyStore(bucket)
    return Store(storage)


def test_artifacts_travel_through_an_object_store(tmp_path):
    here, there = (mirrored(tmp_path / name, tmp_path / "bucket") for name in "ab")
    artifact = here.get_or_compute(CALL, write("one"))
    found = there.get_or_compute(CALL, refuse)
    assert found.reused
    assert (there.path(found) / "out.txt").read_text() == "one"
    assert not (there.storage.local / Artifact("prune", "other").folder).exists()
    assert artifact.key == found.key


def test_unknown_storage_scheme_is_refused():
    with pytest.raises(ConfigError, match=r"storage must be a path or a URI such as s3://"):
        Storage("nowhere://bucket")


def test_file_uri_is_a_folder(tmp_path):
    assert Storage(f"file://{tmp_path}").local == tmp_path


def test_atomic_write_leaves_the_old_file_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
