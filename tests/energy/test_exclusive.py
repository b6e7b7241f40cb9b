"""Who works on a node, between real processes: who is alone is alone, nobody starves, a dead holder lets go."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from faulty_store import FaultyStore

from greenprune.energy import exclusive
from greenprune.energy.exclusive import hold_node, lock_folder, node_is_taken
from greenprune.errors import StorageError
from greenprune.storage import bucket

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(exclusive.tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path)  # holds the storage, runs


def take(log: Path, name: str, kind: str, gpus: tuple[str, ...], until: Path | None) -> None:
    with hold_node("runs", kind, gpus), log.open("a") as stream:
        stream.write(json.dumps([name, "in", time.time()]) + "\n")
        stream.flush()
        time.sleep(0.3)
        while until and not until.exists():
            time.sleep(0.02)
        stream.write(json.dumps([name, "out", time.time()]) + "\n")


class Stages:
    """Processes that hold a node, each for a while, and the times at which they did."""

    def __init__(self, log: Path) -> None:
        self.log, self.processes = log, {}

    def start(self, name: str, kind: str, gpus: tuple[str, ...] = (), held: bool = False) -> None:
        """held: until `let_go`."""
        until = self.log.with_name(f"{name}.goes") if held else None
        process = SPAWN.Process(target=take, args=(self.log, name, kind, gpus, until))
        process.start()
        self.processes[name] = process

    def let_go(self, name: str) -> None:
        self.log.with_name(f"{name}.goes").touch()

    def wait_for(self, name: str, event: str = "in") -> None:
        end = time.monotonic() + 60
        while [name, event] not in [line[:2] for line in self.events()]:
            assert time.monotonic() < end, f"{name} waited too long"
            time.sleep(0.02)

    def events(self) -> list:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def spans(self) -> dict[str, tuple[float, float]]:
        for process in self.processes.values():
            process.join(60)
            assert process.exitcode == 0
        times = {(name, event): at for name, event, at in self.events()}
        return {name: (times[name, "in"], times[name, "out"]) for name in self.processes}


@pytest.fixture
def stages(tmp_path):
    return Stages(tmp_path / "log")


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def until_taken() -> None:
    end = time.monotonic() + 60
    while not node_is_taken("runs"):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_stages_share_a_node_and_a_window_has_it_alone(stages):
    stages.start("first", "none", held=True)
    stages.wait_for("first")
    stages.start("second", "none")
    stages.wait_for("second")  # beside the first
    stages.start("window", "node")
    until_taken()
    stages.let_go("first")
    spans = stages.spans()
    assert overlap(spans["first"], spans["second"])
    assert not overlap(spans["window"], spans["first"])
    assert not overlap(spans["window"], spans["second"])


def test_a_window_that_waits_is_not_overtaken(stages):
    stages.start("first", "none", held=True)
    stages.wait_for("first")
    stages.start("window", "node")
    until_taken()  # the window waits at its gate
    stages.start("later", "none")
    time.sleep(0.5)
    stages.let_go("first")
    spans = stages.spans()
    assert spans["first"][1] <= spans["window"][0] < spans["window"][1] <= spans["later"][0]


def test_a_device_window_lets_other_devices_work(stages):
    stages.start("window", "device", ("GPU-0",), held=True)
    stages.wait_for("window")
    stages.start("elsewhere", "none", ("GPU-1",))
    stages.wait_for("elsewhere", "out")
    stages.start("here", "none", ("GPU-0",))
    time.sleep(0.5)
    stages.let_go("window")
    spans = stages.spans()
    assert overlap(spans["window"], spans["elsewhere"])
    assert not overlap(spans["window"], spans["here"])


def test_a_device_window_without_a_device_has_the_node(stages):
    stages.start("window", "device")
    stages.wait_for("window")
    stages.start("other", "none")
    spans = stages.spans()
    assert not overlap(spans["window"], spans["other"])


def test_a_node_is_taken_while_somebody_has_it_alone(stages):
    assert not node_is_taken("runs")
    with hold_node("runs", "none"):
        assert not node_is_taken("runs")
        stages.start("window", "node")
        until_taken()  # it waits for us
    stages.wait_for("window", "out")
    stages.spans()
    assert not node_is_taken("runs")


def test_a_killed_window_lets_go(stages):
    stages.start("killed", "node", held=True)
    stages.wait_for("killed")
    os.kill(stages.processes["killed"].pid, signal.SIGKILL)
    stages.processes.pop("killed").join(60)
    stages.start("next", "node")
    assert set(stages.spans()) == {"next"}


def test_storages_do_not_wait_for_each_other():
    assert lock_folder("runs") != lock_folder("others")


def test_processes_with_other_caches_have_the_locks_of_an_object_store_in_common(tmp_path, monkeypatch):
    there = FaultyStore(tmp_path / "bucket")
    monkeypatch.setattr(bucket, "open_bucket", lambda uri: there)
    folders = set()
    for cache in ("one", "another"):
        monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / cache))
        folders.add(lock_folder("s3://bucket/runs"))
    assert len(folders) == 1
    assert folders != {lock_folder("runs")}


def test_somebody_elses_folder_is_refused(tmp_path):
    """Whoever knows the name could take it first; the name is derived from what lies in the storage."""
    folder = lock_folder("runs")
    assert lock_folder("runs") == folder
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(StorageError, match="must be a folder of this user"):
        lock_folder("runs")
    (tmp_path / "runs" / "_stages" / ".locks").write_text("another secret")
    assert lock_folder("runs") != folder
