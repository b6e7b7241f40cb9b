"""The power goes at every file operation of a sweep: no finished trial is lost, no row is wrong, the run goes on."""

from __future__ import annotations

import csv
import gc
import os
import shutil
from pathlib import Path

import pytest
from crashing import PowerCuts
from faulty_store import FaultyStore
from stub_sweep import run_stub_sweep, stub_experiment, stub_model, stub_score, use_stub_stages

from greenprune.errors import StorageError
from greenprune.results import TrialResult, read_results
from greenprune.storage import bucket, leases, place
from greenprune.storage.manifest import MANIFEST, damage

WEIGHTS = ("weights at 0.3", "weights at 0.5")
SAID = ("accuracy", "parameters", "checkpoint_bytes", "ratio_reached")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Everything that a sweep writes, its cache and its lock folders too."""
    use_stub_stages(monkeypatch)
    gc.freeze()  # each stage collects garbage: not the libraries' half a million objects each time
    monkeypatch.setattr(leases, "DEAD_AFTER_S", 0.1)  # of a mark that the power cut tore nobody knows whose it is
    monkeypatch.setattr(leases, "LOOKS_S", (0.01, 0.05))
    monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / "root" / "cache"))
    yield tmp_path / "root"
    gc.unfreeze()


def facts(results: list[TrialResult]) -> list[tuple]:
    """What a row says, without the times."""
    return [
        (result.number, result.trial_id, result.status, *(result.metrics.get(name) for name in SAID))
        for result in results
    ]


def finished(run: Path) -> dict[str, str]:
    """When each finished trial began: another time would mean that it was run again."""
    return {result.trial_id: result.started for result in read_results(run) if result.status == "ok"}


def check_whole(root: Path) -> None:
    for manifest in (root / "runs" / "_stages").glob(f"*/*/{MANIFEST}"):
        if ".damaged" not in manifest.parent.name:
            assert damage(manifest.parent) is None
    with (root / "runs" / "stub" / "trials.csv").open() as stream:
        assert [row["trial_number"] for row in csv.DictReader(stream)] == ["0", "1", "2"]
    for trial in (root / "runs" / "stub" / "trials").iterdir():
        assert (trial / "emissions.csv").read_text().count("\n") == 2


def test_a_power_cut_at_every_file_operation(root, tmp_path, monkeypatch):
    experiment = stub_experiment(stub_model(tmp_path / "model"), str(root / "runs"))
    with PowerCuts(root, into=tmp_path / "disks") as cuts:
        expected = facts(run_stub_sweep(experiment))
    assert len(expected) == 3
    assert cuts.operations > 200
    assert len(cuts.disks) > 100
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # these go on undisturbed
    for disk in cuts.disks:
        shutil.rmtree(root)
        shutil.copytree(disk, root)
        shutil.rmtree(root / "cache", ignore_errors=True)  # so that everything is read again
        before = finished(root / "runs" / "stub")
        assert facts(run_stub_sweep(experiment)) == expected, disk
        assert before.items() <= finished(root / "runs" / "stub").items(), disk
        check_whole(root)


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_sweep_on_a_store_that_fails_delays_and_tears(root, tmp_path, monkeypatch, seed):
    """One call in three goes wrong, and each attempt starts on a new head: rows that are there stay, none is wrong."""
    monkeypatch.setattr(place, "WAITS_S", (0.0, 0.0))
    store = FaultyStore(tmp_path / "bucket", seed=seed)
    monkeypatch.setattr(bucket, "open_bucket", lambda uri: store)
    experiment = stub_experiment(stub_model(tmp_path / "model"), "faulty://bucket/folder")
    run, rows, errors = store.root / "stub", [], 0
    for _ in range(100):
        shutil.rmtree(root, ignore_errors=True)  # another head: nothing is here
        before = finished(run)
        try:
            rows = run_stub_sweep(experiment)
        except StorageError:
            errors += 1
        assert before.items() <= finished(run).items()
        if rows:
            break
    monkeypatch.setattr(place, "WAITS_S", (0.0,) * 20)
    shutil.rmtree(root, ignore_errors=True)
    assert facts(run_stub_sweep(experiment)) == facts(rows)
    assert [row.metrics["checkpoint_bytes"] for row in rows] == [5, len("weights at 0.3"), len("weights at 0.5")]
    assert {row.metrics["accuracy"] for row in rows} == {stub_score("dense"), *map(stub_score, WEIGHTS)}
    assert errors


def test_a_damaged_parent_is_made_again_by_the_trial_that_needs_it(root, tmp_path, monkeypatch):
    store = FaultyStore(tmp_path / "bucket")
    monkeypatch.setattr(bucket, "open_bucket", lambda uri: store)
    experiment = stub_experiment(stub_model(tmp_path / "model"), "faulty://bucket/folder")
    expected = facts(run_stub_sweep(experiment))
    there = store.root
    for checkpoint in (there / "_stages" / "prune").rglob("model.safetensors"):
        checkpoint.write_text(checkpoint.read_text().replace("0.", "9."))
    shutil.rmtree(there / "_stages" / "accuracy")
    shutil.rmtree(there / "stub")
    shutil.rmtree(root)  # another head
    assert facts(run_stub_sweep(experiment)) == expected
    assert len(list((there / "_stages" / "prune").glob("*.damaged.*"))) == 2
