"""A sweep of three trials without Ray and without a model: the rooms that write files are the real ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.tune.search import Searcher

from greenprune.comparability import reported
from greenprune.config import STAGES
from greenprune.experiment import Experiment, parse_experiment
from greenprune.results import TrialResult, write_trials
from greenprune.stages import Request, perform_all
from greenprune.storage import Storage
from greenprune.store import Artifact
from greenprune.sweep.run_folder import RunFolder
from greenprune.sweep.search import SweepSearch
from greenprune.sweep.trial_driver import write_row


def stub_prune(out: Path, *, config: Any, **_: Any) -> None:
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "model.safetensors").write_text(f"weights at {config.ratio}")
    report = {"parameters_before": 100, "ratio_reached": config.ratio, "layers_removed": [], "sparsity": config.ratio}
    (out / "report.json").write_text(json.dumps(report | {"needs": "transformers"}))


def stub_score(said: str) -> int:
    return len(said) + sum(map(ord, said))


def stub_accuracy(out: Path, *, checkpoint: Path, **_: Any) -> None:
    """What the checkpoint says, so that a row that was made from another's checkpoint shows."""
    weights = checkpoint / "model.safetensors"
    said = weights.read_text() if weights.exists() and weights.stat().st_size < 100 else "dense"
    scores = {"accuracy": stub_score(said), "perplexity": {}, "tasks": {}, "energy_wh_tasks": None}
    scores |= {"parameters": 100, "checkpoint_bytes": len(said), "layers": 2, "machine": None}
    (out / "accuracy.json").write_text(json.dumps(scores))
    (out / "emissions.csv").write_text(f"name\n{said}\n")


def use_stub_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function in (("prune", "stub_prune"), ("accuracy", "stub_accuracy")):
        monkeypatch.setitem(STAGES, name, replace(STAGES[name], function=f"stub_sweep:{function}"))


def stub_model(folder: Path) -> Path:
    """What looks like a checkpoint to whoever doesn't load it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_text("dense " * 50)
    return folder


def stub_experiment(checkpoint: Path, storage: str) -> Experiment:
    return parse_experiment(
        {
            "name": "stub",
            "model": {"id": str(checkpoint)},
            "calibration": {"bos": "none"},  # the model has no tokenizer
            "prune": {"method": "magnitude", "ratio": 0.3},
            "benchmark": {"tasks": [], "data": "assets", "perplexity": [], "energy": None},
            "sweep": {
                "space": {"prune.ratio": {"choice": [0.3, 0.5]}},
                "objectives": {"checkpoint_bytes": "min"},
                "storage": storage,
            },
        }
    )


@dataclass
class Here:
    """Stages in this process."""

    done: list[Artifact] = field(default_factory=list)

    def __call__(self, requests: Sequence[Request], storage_uri: str) -> list[Artifact]:
        artifacts = perform_all(requests, storage_uri)
        self.done += artifacts
        return artifacts


def run_stub_sweep(experiment: Experiment) -> list[TrialResult]:
    """What run_sweep does, a trial after the other."""
    assert experiment.sweep is not None, "it has one"
    run = RunFolder(Storage(experiment.sweep.storage), experiment.name)
    with run.driven_alone():
        known = run.results()
        run.check_configuration(experiment, known)
        run.write("config.yaml", yaml.safe_dump(experiment.to_dict(), sort_keys=False))
        journal = run.journal()
        search = SweepSearch(experiment, known=known, journal=tuple(journal.events), record=journal.record)
        results = {result.trial_id: result for result in known}
        while (config := search.suggest("ray")) != Searcher.FINISHED:
            result = write_row(config, run.storage, run.name, Here())
            search.on_trial_complete("ray", reported(result.metrics, experiment.sweep.objectives))
            results[result.trial_id] = result
            write_trials(run.path, results.values())
            run.storage.push(f"{run.name}/trials.csv")
        write_trials(run.path, results.values())
    return sorted(results.values(), key=lambda result: result.number)
