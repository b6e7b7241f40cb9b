"""What holds of every stage of the table; each has a row here: what a trial must say for it to run."""

from __future__ import annotations

import pytest

from greenprune.columns import column
from greenprune.config import STAGES, ResourcesConfig, known_keys
from greenprune.experiment import parse_experiment
from greenprune.export import export
from greenprune.models import load_checkpoint
from greenprune.stages import checkpoint_in
from greenprune.store import Artifact, Store
from greenprune.trial import run_trial, write_trial

ROWS: dict[str, list[str]] = {
    "collect": [],
    "prune": [],
    "teach": ["heal.loss=kd", "heal.teacher.top_k=4"],
    "heal": [],
    "quantize": ["quantize.method=int8"],
    "accuracy": [],
    "energy": [],
}


def test_every_stage_has_a_row_its_resources_and_its_configuration():
    assert list(ROWS) == list(STAGES)
    assert set(ResourcesConfig.model_fields) == set(STAGES)
    for stage in STAGES.values():
        assert stage.key in known_keys()
        assert (stage.role == "model") == (stage.variants is not None)


@pytest.mark.parametrize("name", ROWS)
def test_a_stage_runs_once_and_its_artifact_is_what_its_entry_says(name, tiny_experiment, tmp_path):
    stage, runs = STAGES[name], tmp_path / "runs"
    config = parse_experiment(tiny_experiment, ROWS[name]).trial()
    result = run_trial(config, runs)
    made = [artifact for artifact in result.stages if artifact["stage"] == name]
    assert made
    assert not any(artifact["reused"] for artifact in made)
    store, artifact = Store(runs), Artifact(name, made[-1]["key"])
    if stage.role == "model":
        assert load_checkpoint(checkpoint_in(store, artifact)).config.num_hidden_layers == 3
    assert (store.path(artifact) / "emissions.csv").exists() == (stage.role == "benchmark")
    cost = f"{name}_energy_wh"
    assert (cost in result.metrics) == (stage.role != "benchmark")
    assert column(cost).machine == f"{name}_machine"
    again = run_trial(config, runs)
    assert all(artifact["reused"] for artifact in again.stages)
    assert again.metrics == result.metrics


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.role == "model"])
def test_the_last_model_is_exported_and_the_dense_one_has_none_of_them(name, tiny_experiment, tmp_path):
    if name == "prune":
        tiny_experiment["heal"] = {"method": "none"}
    config = parse_experiment(tiny_experiment, ROWS[name]).trial()
    result = run_trial(config, tmp_path / "runs")
    write_trial(tmp_path / "runs" / "tiny", result, Store(tmp_path / "runs").storage)
    last = next(made for made in reversed(result.stages) if STAGES[made["stage"]].role == "model")
    assert last["stage"] == name
    out = export(tmp_path / "runs" / "tiny", result.trial_id, tmp_path / "out")
    made = checkpoint_in(Store(tmp_path / "runs"), Artifact(name, last["key"])) / "model.safetensors"
    assert (out / "model.safetensors").read_bytes() == made.read_bytes()
    assert getattr(config.dense(), STAGES[name].key).method == "none"
