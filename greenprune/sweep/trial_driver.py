"""What Tune runs for each trial: a light driver that asks for its stages, writes the row and reports once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray import tune

from greenprune.cluster.resources import Need
from greenprune.comparability import reported
from greenprune.config import TrialConfig
from greenprune.experiment import Experiment
from greenprune.results import TrialResult, read_result, write_result
from greenprune.storage import Storage
from greenprune.sweep.live import Status
from greenprune.sweep.stage_tasks import RayTasks, first_line
from greenprune.trial import run_trial, write_trial


def drive_trial(
    config: Mapping[str, Any], storage_uri: str, run: str, needed: Mapping[str, Need], experiment: str
) -> None:
    """Tune's trainable: run one trial's stages, write its row, report its objectives once."""
    storage = Storage(storage_uri)
    folder = storage.local / run
    trial = TrialConfig.model_validate(config["trial"])
    sweep = Experiment.model_validate_json(experiment).sweep
    assert sweep is not None, "only a sweep drives trials"
    known = read_result(folder, config["trial_id"])
    finished = known if known and known.status == "ok" else None  # it ended, but Tune died before it took note
    status = Status(folder / "trials" / config["trial_id"])
    execute = RayTasks(needed, sweep.stage_retries, str(status.folder / "log.txt"))
    started = time.time()
    try:
        result = finished or run_trial(trial, storage, execute=execute, watch=status.show, number=config["number"])
    except Exception as problem:
        error = f"{status.stage}: {first_line(problem)}"
        done = [asdict(artifact) for artifact in execute.done]
        failed = TrialResult.failed(config["trial_id"], config["number"], config["trial"], error, started, done)
        write_result(folder, failed)
        storage.push(f"{run}/trials/{config['trial_id']}")
        raise
    write_trial(folder, result, storage)
    storage.push(f"{run}/trials/{config['trial_id']}")
    # Tune waits for ever on a NaN, so only finite objectives are reported.
    tune.report({**reported(result.metrics, sweep.objectives), "number": result.number})
