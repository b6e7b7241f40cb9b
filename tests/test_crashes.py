"""The power goes at every file operation of a sweep: no finished trial is lost, no row is wrong, the run goes on."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from crashing import Crash, PowerCut
from stub_sweep import run_stub_sweep, stub_experiment, use_stub_stages

from greenprune.manifest import MANIFEST, damage
from greenprune.results import TrialResult, read_results

SAID = ("accuracy", "parameters", "checkpoint_bytes", "ratio_reached")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Everything that a sweep writes, its cache and its lock folders too."""
    use_stub_stages(monkeypatch)
    monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / "root" / "cache"))
    return tmp_path / "root"


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


def test_a_power_cut_at_every_file_operation(root, tiny_checkpoint):
    experiment = stub_experiment(tiny_checkpoint, str(root / "runs"))
    with PowerCut(root) as undisturbed:
        expected = facts(run_stub_sweep(experiment))
    assert len(expected) == 3
    assert undisturbed.operations > 200
    for at in range(1, undisturbed.operations + 1):
        shutil.rmtree(root)
        with pytest.raises(Crash), PowerCut(root, at):
            run_stub_sweep(experiment)
        shutil.rmtree(root / "cache", ignore_errors=True)  # so that everything is read again
        before = finished(root / "runs" / "stub")
        assert facts(run_stub_sweep(experiment)) == expected, f"a cut at operation {at}"
        assert before.items() <= finished(root / "runs" / "stub").items(), f"a cut at operation {at}"
        check_whole(root)
