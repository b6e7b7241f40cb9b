"""What Tune runs for each trial: a light driver that asks for its stages, writes the row and reports once."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from ray import tune

from greenprune.cluster.resources import Need
from greenprune.cluster.surroundings import learn_token
from greenprune.comparability import reported
from greenprune.config import TrialConfig
from greenprune.experiment import Experiment
from greenprune.results import TrialResult, read_result, write_result
from greenprune.stages import Request
from greenprune.storage import Storage
from greenprune.store import Artifact
from greenprune.sweep.nodes import refused_nodes
from greenprune.sweep.stage_tasks import RayTasks, first_line
from greenprune.sweep.status import Status
from greenprune.trial import run_trial, write_trial


def drive_trial(
    config: Mapping[str, Any],
    storage_uri: str,
    run: str,
    needed: Mapping[str, Need],
    experiment: str,
    any_versions: bool = False,
) -> None:
    """Tune's trainable: run one trial's stages as Ray tasks, write its row, report its objectives once."""
    sweep = Experiment.model_validate_json(experiment).sweep
    assert sweep is not None, "only a sweep drives trials"
    storage = Storage(storage_uri)
    log_path = f"{run}/trials/{config['trial_id']}"
    learn_token()
    refused = functools.partial(refused_nodes, storage.local / run)
    execute = RayTasks(needed, sweep.stage_retries, log_path, refused)
    result = write_row(config, storage, run, execute, any_versions)
    # Tune waits for ever on a NaN, so only finite objectives are reported.
    tune.report({**reported(result.metrics, sweep.objectives), "number": result.number})


class Recorded(Protocol):
    """Executes stages and remembers what they made."""

    @property
    def done(self) -> list[Artifact]: ...

    def __call__(self, requests: Sequence[Request], storage_uri: str) -> list[Artifact]: ...


def write_row(
    config: Mapping[str, Any], storage: Storage, run: str, execute: Recorded, any_versions: bool = False
) -> TrialResult:
    """Run one trial's stages, or take the row that is there, and write it. A failed one's row says why, then raises.

    config: what the search suggested (trial_id, number, trial).
    """
    folder = storage.local / run
    trial = TrialConfig.model_validate(config["trial"])
    known = read_result(folder, config["trial_id"])
    finished = known if known and known.status == "ok" else None  # it ended, but Tune died before it took note
    status = Status(storage, f"{run}/trials/{config['trial_id']}")
    started, number = time.time(), config["number"]
    how: dict[str, Any] = {"execute": execute, "watch": status.show, "any_versions": any_versions, "fixed": True}
    try:
        result = finished or run_trial(trial, storage, number=number, **how)
    except Exception as problem:
        error = f"{status.stage}: {first_line(problem)}"
        done = [asdict(artifact) for artifact in execute.done]
        failed = TrialResult.failed(config["trial_id"], number, config["trial"], error, started, done)
        write_result(folder, failed)
        storage.push(f"{run}/trials/{config['trial_id']}")
        raise
    write_trial(folder, result, storage)
    storage.push(f"{run}/trials/{config['trial_id']}", last="result.json")
    return result
