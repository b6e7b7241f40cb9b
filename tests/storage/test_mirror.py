"""A machine's mirror of an object store: only what is asked for comes, once, and within a bound."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from faulty_store import FaultyStore

from greenprune.errors import ConfigError, DamagedArtifact
from greenprune.storage import bucket, mirror, place
from greenprune.storage.mirror import GB, bound_bytes
from greenprune.store import Artifact, StageCall, Store

KB = 1000


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> FaultyStore:
    there = FaultyStore(tmp_path / "bucket")
    monkeypatch.setattr(bucket, "open_bucket", lambda uri: there)
    monkeypatch.setattr(place, "WAITS_S", (0.0,) * 4)
    return there


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Whoever is asked for a store is on that machine from then on: each has its own cache."""

    def on(name: str) -> Store:
        monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / name))
        return Store("faulty://bucket/folder")

    return on


def call(number: int) -> StageCall:
    return StageCall("prune", 1, {"ratio": number})


def write(size: int):
    def function(folder: Path) -> None:
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "weights").write_bytes(os.urandom(size))
        (folder / "report.json").write_text("{}")

    return function


def names_here(store: Store) -> set[str]:
    paths = (path for path in (store.storage.local / "_stages" / "prune").rglob("*") if path.is_file())
    return {path.name for path in paths if path.suffix not in (".use", ".bringing")}


def test_a_number_is_read_without_the_checkpoint(machine, store):
    made = machine("node").get_or_compute(call(0), write(50 * KB))
    head = machine("head")
    assert head.find(call(0)) is not None
    assert head.part(made, "report.json").read_text() == "{}"
    assert not head.part(made, "emissions.csv").exists()
    assert names_here(head) == {"manifest.json", "report.json"}
    assert not store.asked["read", f"{made.folder}/checkpoint/weights"]
    assert (head.path(made) / "checkpoint" / "weights").exists(), "the rest comes where it is wanted"


def test_a_part_that_is_damaged_is_seen_and_the_artifact_set_aside(machine, store):
    made = machine("node").get_or_compute(call(0), write(KB))
    (store.root / made.folder / "report.json").write_text("[]")
    with pytest.raises(DamagedArtifact, match=r"report.json has another content"):
        machine("head").part(made, "report.json")
    assert machine("other").find(call(0)) is None


def test_a_part_of_an_artifact_that_was_made_anew_is_the_new_one(machine, store):
    made = machine("node").get_or_compute(call(0), write(KB))
    head = machine("head")
    head.part(made, "report.json")
    for path in (store.root / made.folder).rglob("*.*"):
        path.unlink()
    machine("another node").get_or_compute(call(0), write(2 * KB))
    assert (machine("head").part(made, "checkpoint") / "weights").stat().st_size == 2 * KB


def test_several_stages_of_a_machine_bring_an_artifact_once(machine, store):
    made = machine("a").get_or_compute(call(0), write(KB))
    here = machine("b")
    threads = [threading.Thread(target=here.path, args=(made,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert store.asked["read", f"{made.folder}/checkpoint/weights"] == 1


def test_the_longest_unused_goes_and_none_in_use(machine, monkeypatch):
    made = [machine("a").get_or_compute(call(number), write(100 * KB)) for number in range(4)]
    here = machine("b")
    monkeypatch.setenv(mirror.BOUND, str(250 * KB / GB))
    for artifact in made[:2]:
        with here.using(artifact):
            pass
        time.sleep(0.02)
    with here.using(made[0]) as folder:  # the older one, used again
        here.path(made[2])
        assert _whole(here, made) == [0, 2]
        here.path(made[3])
        assert 0 in _whole(here, made), "in use"
        assert (folder / "checkpoint" / "weights").stat().st_size == 100 * KB
    assert (here.path(made[1]) / "checkpoint" / "weights").exists(), "it can always come again"


def _whole(store: Store, made: list[Artifact]) -> list[int]:
    folders = [store.storage.local / artifact.folder for artifact in made]
    return [number for number, folder in enumerate(folders) if (folder / "checkpoint" / "weights").exists()]


def test_what_a_machine_made_itself_is_within_the_bound_too(machine, monkeypatch):
    here = machine("a")
    monkeypatch.setenv(mirror.BOUND, str(250 * KB / GB))
    made = []
    for number in range(4):
        made.append(here.get_or_compute(call(number), write(100 * KB)))
        os.utime(here.storage.local / made[-1].folder, (number, number))
    assert len(_whole(here, made)) <= 2
    assert all(here.find(call(number)) for number in range(4))


@pytest.mark.parametrize("said", ["much", "0", "-1"])
def test_a_bound_that_is_none_is_refused(monkeypatch, said):
    monkeypatch.setenv(mirror.BOUND, said)
    with pytest.raises(ConfigError, match=r"GREENPRUNE_CACHE_GB must be a number of gigabytes above 0, got"):
        bound_bytes()


def test_without_one_it_is_half_of_the_disk(monkeypatch, tmp_path):
    monkeypatch.delenv(mirror.BOUND, raising=False)
    monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / "new"))
    assert bound_bytes() > 0


def test_a_large_file_comes_in_chunks_and_whole(machine, store, monkeypatch):
    monkeypatch.setattr(place, "CHUNK", 64 * KB)
    made = machine("a").get_or_compute(call(0), write(1000 * KB))
    here = machine("b")
    store.plan["read"] = ["none", "none", "none", "tear", "fail", "none", "tear"]
    weights = here.path(made) / "checkpoint" / "weights"
    assert weights.read_bytes() == (store.root / made.folder / "checkpoint" / "weights").read_bytes()
    assert store.asked["read", f"{made.folder}/checkpoint/weights"] == 16 + 3
