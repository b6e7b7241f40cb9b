"""Finished means sent and whole: uploads that fail, files that a power cut changed, nodes that are lost."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from faulty_store import FaultyStore

from greenprune.errors import DamagedArtifact, StorageError
from greenprune.storage import Storage, following, place
from greenprune.store import StageCall, Store

CALL = StageCall("prune", 1, {"method": "angular"}, {"checkpoint": "abc"})


def write(text: str):
    def function(folder: Path) -> dict[str, float]:
        (folder / "deep").mkdir()
        (folder / "deep" / "out.txt").write_text(text)
        return {"energy_j": 3.0}

    return function


def refuse(folder: Path) -> None:
    raise AssertionError("computed again")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(place, "WAITS_S", (0.0, 0.0, 0.0))


def node(tmp_path: Path, name: str, remote: FaultyStore) -> Store:
    """A node's view of the object store: its own mirror."""
    storage = Storage(tmp_path / name)
    storage.remote = remote
    return Store(storage)


def test_an_upload_that_fails_once_is_sent_again(tmp_path):
    remote = FaultyStore(tmp_path / "bucket", send=["fail", "none", "tear"])
    node(tmp_path, "a", remote).get_or_compute(CALL, write("one"))
    other = node(tmp_path, "b", remote)
    assert (other.path(other.get_or_compute(CALL, refuse)) / "deep" / "out.txt").read_text() == "one"
    assert remote.met["fail"] == remote.met["tear"] == 1


def test_what_could_not_be_sent_is_finished_nowhere_and_is_only_sent_the_next_time(tmp_path):
    remote = FaultyStore(tmp_path / "bucket", send=["none"] + ["fail"] * 4)
    here, there = node(tmp_path, "a", remote), node(tmp_path, "b", remote)
    with pytest.raises(StorageError, match=r"must take _stages/prune.*got OSError: the connection was reset"):
        here.get_or_compute(CALL, write("one"))
    assert here.find(CALL) is None
    assert there.find(CALL) is None
    sent = here.get_or_compute(CALL, refuse)
    assert (sent.energy_j, sent.reused) == (3.0, False)
    assert there.find(CALL) is not None


def test_a_file_that_is_shorter_than_it_was_is_set_aside_and_made_again(tmp_path, caplog):
    store = Store(tmp_path)
    made = store.get_or_compute(CALL, write("one"))
    (store.path(made) / "deep" / "out.txt").write_text("on")
    again = store.get_or_compute(CALL, write("one"))
    assert not again.reused
    assert (store.path(again) / "deep" / "out.txt").read_text() == "one"
    assert "deep/out.txt has 2 bytes for 3" in caplog.text
    aside = next((tmp_path / "_stages" / "prune").glob(f"{CALL.key}.damaged.*"))
    assert (aside / "deep" / "out.txt").read_text() == "on"


def test_another_content_of_the_same_size_is_seen_where_it_is_first_used(tmp_path, monkeypatch):
    store = Store(tmp_path)
    (store.path(store.get_or_compute(CALL, write("one"))) / "deep" / "out.txt").write_text("two")
    monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / "of another machine"))
    with pytest.raises(DamagedArtifact, match=r"deep/out.txt has another content.*set aside"):
        store.path(CALL)
    assert store.find(CALL) is None


def test_an_artifact_of_before_has_no_checksums_and_is_taken(tmp_path, monkeypatch):
    store = Store(tmp_path)
    folder = store.path(store.get_or_compute(CALL, write("one")))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert store.get_or_compute(CALL, refuse).reused


def test_a_damaged_upload_is_set_aside_for_all_nodes(tmp_path):
    remote = FaultyStore(tmp_path / "bucket")
    node(tmp_path, "a", remote).get_or_compute(CALL, write("one"))
    (tmp_path / "bucket" / "folder" / CALL.folder / "deep" / "out.txt").write_text("xyz")
    there = node(tmp_path, "b", remote)
    found = there.find(CALL)
    with pytest.raises(DamagedArtifact):
        there.path(found)
    assert node(tmp_path, "c", remote).find(CALL) is None
    assert not there.get_or_compute(CALL, write("one")).reused


def test_a_torn_download_is_fetched_again(tmp_path):
    remote = FaultyStore(tmp_path / "bucket")
    node(tmp_path, "a", remote).get_or_compute(CALL, write("one"))
    remote.plan["read"] = ["none", "tear", "fail"]
    there = node(tmp_path, "b", remote)
    assert (there.path(there.get_or_compute(CALL, refuse)) / "deep" / "out.txt").read_text() == "one"


def test_a_lost_node_costs_what_was_done_since_its_last_checkpoint(tmp_path, monkeypatch):
    remote = FaultyStore(tmp_path / "bucket")
    bucket = tmp_path / "bucket" / "folder" / CALL.folder.with_suffix(".partial")
    monkeypatch.setattr(following, "EVERY_S", 0.01)

    def lost(folder: Path) -> None:
        (folder / "checkpoint-1").mkdir()
        (folder / "checkpoint-1" / "state").write_text("1")
        _until(lambda: (bucket / "checkpoint-1" / "state").exists())
        (folder / "checkpoint-2").mkdir()
        (folder / "checkpoint-2" / "state").write_text("2")
        (folder / "checkpoint-1" / "state").unlink()
        _until(lambda: (bucket / "checkpoint-2" / "state").exists() and not (bucket / "checkpoint-1/state").exists())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        node(tmp_path, "a", remote).compute(CALL, lost, resumes=True)
    found: list[str] = []

    def goes_on(folder: Path) -> None:
        found.extend(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        (folder / "out.txt").write_text("done")

    node(tmp_path, "b", remote).compute(CALL, goes_on, resumes=True)
    assert found == ["checkpoint-2/state"]
    assert not [path for path in bucket.rglob("*") if path.is_file()]


def _until(holds) -> None:
    waiting = threading.Event()
    for _ in range(500):
        if holds():
            return
        waiting.wait(0.01)
    raise AssertionError("it never came")


@pytest.mark.parametrize("seed", range(20))
def test_a_store_that_fails_delays_and_tears_never_gives_a_wrong_artifact(tmp_path, seed):
    """One call in three goes wrong. Whatever a node is given is what was written; in the end all nodes have it."""
    remote = FaultyStore(tmp_path / "bucket", seed=seed)
    calls = [StageCall("prune", 1, {"ratio": ratio}) for ratio in range(3)]
    missing = {(name, call.key) for name in "ab" for call in calls}
    for _ in range(60):
        for name in "ab":
            store = node(tmp_path, name, remote)
            for call in calls:
                try:
                    made = store.get_or_compute(call, write(call.key))
                    assert (store.path(made) / "deep" / "out.txt").read_text() == call.key
                    missing.discard((name, call.key))
                except StorageError:
                    continue
        if not missing:
            break
    assert not missing
    assert remote.met["tear"]
    assert remote.met["fail"]
