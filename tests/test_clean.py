"""What may go from a storage: what no run needs. Rows stay, and so does what somebody works on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from stub_sweep import run_stub_sweep, stub_experiment, stub_model, use_stub_stages

from greenprune.clean import leftovers, remove
from greenprune.errors import SweepError
from greenprune.results import load_trials
from greenprune.storage import Storage
from greenprune.storage.leases import leased
from greenprune.store import StageCall, Store

UNNAMED = StageCall("prune", 1, {"method": "tried once"})


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A finished run of three trials, and one artifact that belongs to none."""
    use_stub_stages(monkeypatch)
    root = tmp_path / "runs"
    run_stub_sweep(stub_experiment(stub_model(tmp_path / "model"), str(root)))
    Store(root).compute(UNNAMED, lambda folder: (folder / "x").write_text("four") and None)
    return root


def age(root: Path, days: float) -> None:
    then = time.time() - days * 86_400
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def reasons(root: Path, **how) -> dict[str, str]:
    return {str(leftover.path): leftover.why for leftover in leftovers(Storage(root), **how)}


def test_what_no_run_names_goes_and_what_one_names_stays(runs):
    assert reasons(runs) == {}  # written a moment ago: a run may be about to name it
    age(runs, 2)
    found = leftovers(Storage(runs))
    assert [(leftover.path, leftover.why) for leftover in found] == [(UNNAMED.folder, "no run names it")]
    assert found[0].bytes > 4  # with its manifest
    before = set(runs.rglob("*"))
    remove(Storage(runs), found)
    assert before - set(runs.rglob("*")) == {
        path for path in before if any(part.partition(".")[0] == UNNAMED.folder.name for part in path.parts)
    }


def test_half_done_work_goes_only_without_an_owner(runs):
    partial = runs / UNNAMED.folder.with_name("half.partial")
    partial.mkdir()
    (partial / "x").write_text("x")
    aside = runs / UNNAMED.folder.with_name("key.damaged.2026-01-01-000000")
    aside.mkdir()
    (aside / "x").write_text("x")
    scratch = runs / "_workers" / "abc" / "x"
    scratch.parent.mkdir(parents=True)
    scratch.write_text("x")
    age(runs, 2)
    with leased(Storage(runs), partial.relative_to(runs).with_suffix(".maker")):
        assert "_stages/prune/half.partial" not in reasons(runs)
    found = reasons(runs)
    assert found["_stages/prune/half.partial"] == "half-done, nobody works on it"
    assert found["_stages/prune/key.damaged.2026-01-01-000000"] == "damaged, set aside"
    assert found["_workers/abc"] == "scratch of workers"


def test_only_the_fronts_models_stay_and_the_others_can_be_made_again(runs, tmp_path):
    age(runs, 2)
    table = load_trials(runs / "stub")
    off = {path: why for path, why in reasons(runs, checkpoints="front").items() if "can be made again" in why}
    assert len(off) == 2  # the dense model's checkpoint is the smallest of this sweep
    remove(Storage(runs), leftovers(Storage(runs), checkpoints="front"))
    assert load_trials(runs / "stub").equals(table)
    experiment = stub_experiment(tmp_path / "model", str(runs))
    assert len(run_stub_sweep(experiment)) == 3


def test_nothing_is_cleaned_while_a_run_is_driven(runs):
    with (
        leased(Storage(runs), Path(".stub.lease")),
        pytest.raises(SweepError, match="while no run is driven, got stub"),
    ):
        leftovers(Storage(runs))
