"""A sweep on Ray Tune: every trial is a light driver, and its stages are Ray tasks with their own resources.

A trial's driver asks for nothing but a place on the head node (its locks live there, see store.py), so it
holds no stage's resources while it waits for another's. Ctrl-C or a crash leaves the run resumable: Tune's own
state brings back the search, the store brings back every finished stage.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import tune
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError

from greenprune import assets
from greenprune.config import TrialConfig
from greenprune.energy.exclusive import node_is_taken
from greenprune.errors import ConfigError, SweepError
from greenprune.experiment import Experiment, parse_experiment, read_yaml
from greenprune.locks import locked_or_refused
from greenprune.logs import logging_to
from greenprune.results import TrialResult, load_trials, read_results, write_result
from greenprune.storage import Storage, write_atomically
from greenprune.store import Artifact
from greenprune.sweep import cluster
from greenprune.sweep.live import Live, Status, TellLive
from greenprune.sweep.search import SweepSearch
from greenprune.trial import Request, perform_all, resolved, run_trial, write_trial

log = logging.getLogger("greenprune")
VERSIONED = "greenprune ray torch transformers peft bitsandbytes deepspeed datasets lm_eval codecarbon optuna".split()


@dataclass(frozen=True)
class Run:
    """A finished or interrupted sweep. `failed`: rows with their reasons; `trials`: the DataFrame."""

    folder: Path
    trials: Any
    failed: list[TrialResult]
    interrupted: bool


def run_sweep(
    experiment: Experiment | TrialConfig,
    *,
    address: str | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Run every trial of an experiment's sweep; failed ones become rows.

    address: a Ray cluster ("auto", "ray://host:10001"); None starts Ray on this machine. resume: go on with an
    interrupted run of the same configuration. Raises ConfigError or SweepError before any trial starts.
    """
    if not isinstance(experiment, Experiment) or experiment.sweep is None:
        raise ConfigError("a sweep needs a sweep section, got none; add sweep.space, or use `greenprune trial`")
    experiment = _with_facts(experiment)
    assert experiment.sweep is not None, "it still has its sweep"
    storage = Storage(experiment.sweep.storage)
    folder = storage.local / experiment.name
    with _only_driver(folder):
        _prepare(folder, storage, experiment, resume)
        if not ray.is_initialized():
            cluster.start_ray(address)
        cluster.check_storage_is_shared(storage)
        write_atomically(folder / "environment.json", json.dumps(environment(), indent=1))
        storage.push(f"{experiment.name}/environment.json")
        interrupted = _fit(experiment, storage, folder, resume, quiet)
    results = read_results(folder)
    failed = [result for result in results if result.status == "failed"]
    return Run(folder, load_trials(folder), failed, interrupted)


def _with_facts(experiment: Experiment) -> Experiment:
    """The experiment with 'auto' resolved, checked once more against the model's own config."""
    assets.model_facts(experiment.model, online=True)
    benchmark = resolved(experiment.trial()).benchmark
    data = experiment.to_dict() | {"benchmark": benchmark.model_dump(mode="json")}
    return parse_experiment(data, source=f"experiment {experiment.name}")


def _only_driver(folder: Path) -> AbstractContextManager[None]:
    refusal = f"one process at a time may drive {folder}, got a second; wait for it, or set name=…"
    return locked_or_refused(folder / ".lock", SweepError(refusal))


def _prepare(folder: Path, storage: Storage, experiment: Experiment, resume: bool) -> None:
    """The run folder with this configuration in it; refuses to mix two configurations in one run."""
    path = folder / "config.yaml"
    storage.pull(f"{folder.name}/config.yaml")
    if path.exists() and parse_experiment(read_yaml(path), source=str(path)) != experiment:
        raise SweepError(
            f"the run {folder} holds trials of another configuration (see its config.yaml), got a changed one; "
            "give this sweep another name=…, or remove the folder"
        )
    if resume and not _has_state(folder, storage):
        raise SweepError(f"--resume needs an interrupted run in {folder}, got none; start it without --resume")
    if not resume:
        for stale in ("tune", "trials"):
            shutil.rmtree(folder / stale, ignore_errors=True)
    write_atomically(path, yaml.safe_dump(experiment.to_dict(), sort_keys=False))
    storage.push(f"{folder.name}/config.yaml")


def _has_state(folder: Path, storage: Storage) -> bool:
    return tune.Tuner.can_restore(_tune_path(folder, storage))


def _tune_path(folder: Path, storage: Storage) -> str:
    return f"{storage.uri}/{folder.name}/tune"


def _fit(experiment: Experiment, storage: Storage, folder: Path, resume: bool, quiet: bool) -> bool:
    """Run Tune to its end; True where the user interrupted it."""
    assert experiment.sweep is not None, "checked by run_sweep"
    present = cluster.nodes()
    needed = cluster.needs(experiment.sweep.resources, present)
    concurrent = experiment.sweep.max_concurrent or cluster.concurrency(needed, present)
    trainable = tune.with_resources(
        functools.partial(
            drive_trial,
            storage_uri=storage.uri,
            run=folder.name,
            needed=needed,
            experiment=experiment.model_dump_json(by_alias=True),
        ),
        tune.PlacementGroupFactory([{"CPU": 0, cluster.HEAD: 0.0001}]),
    )
    search = SweepSearch(experiment, busy=functools.partial(node_is_taken, storage.uri))
    live = Live(folder, storage, experiment, total=search.total, concurrent=concurrent, quiet=quiet)
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its new output can't be silenced; Live takes its place
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are shown by Live, once
    run_config = tune.RunConfig(
        name="tune",
        storage_path=f"{storage.uri}/{folder.name}",
        failure_config=tune.FailureConfig(max_failures=0),
        callbacks=[TellLive()],
        verbose=0,
    )
    if resume:
        tuner = tune.Tuner.restore(_tune_path(folder, storage), trainable, restart_errored=True, resume_unfinished=True)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=search,
                num_samples=-1,
                max_concurrent_trials=concurrent,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
                reuse_actors=False,
            ),
            run_config=run_config,
        )
    with live:
        tuner.fit()
    return not live.finished()


def _trial_name(trial: Any) -> str:
    return trial.config["trial_id"]


# ----------------------------------------------------------------------------------------- in a trial's driver


def drive_trial(
    config: Mapping[str, Any], storage_uri: str, run: str, needed: Mapping[str, cluster.Need], experiment: str
) -> None:
    """Tune's trainable: run one trial's stages, write its row, report its objectives once."""
    storage = Storage(storage_uri)
    folder = storage.local / run
    trial = TrialConfig.model_validate(config["trial"])
    sweep = Experiment.model_validate_json(experiment).sweep
    assert sweep is not None, "only a sweep drives trials"
    status = Status(folder / "trials" / config["trial_id"])
    execute = RayTasks(needed, sweep.stage_retries, str(status.folder / "log.txt"))
    started = time.time()
    try:
        result = run_trial(trial, storage, execute=execute, watch=status.show, number=config["number"])
    except Exception as problem:
        error = f"{status.stage}: {describe(problem)}"
        done = [asdict(artifact) for artifact in execute.done]
        failed = TrialResult.failed(config["trial_id"], config["number"], config["trial"], error, started, done)
        write_result(folder, failed)
        storage.push(f"{run}/trials/{config['trial_id']}")
        raise
    write_trial(folder, result, storage)
    storage.push(f"{run}/trials/{config['trial_id']}")
    tune.report({**_finite(result.metrics, sweep.objectives), "number": config["number"]})


def _finite(metrics: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """Tune waits for ever on a NaN, so only finite objectives are reported."""
    return {name: metrics[name] for name in names if metrics.get(name) is not None and math.isfinite(metrics[name])}


def describe(problem: BaseException) -> str:
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0] if text else 'no message'}"


@dataclass(frozen=True)
class RayTasks:
    """Executes stages as Ray tasks, outside the trial's own placement group; `done` is what they made."""

    needed: Mapping[str, cluster.Need]
    retries: int
    log_path: str
    done: list[Artifact] = field(default_factory=list)

    def __call__(self, requests: Sequence[Request], storage_uri: str) -> list[Artifact]:
        artifacts = self._run(requests, storage_uri)
        self.done.extend(artifacts)
        return artifacts

    def _run(self, requests: Sequence[Request], storage_uri: str) -> list[Artifact]:
        stage = requests[0].stage
        need = self.needed[stage]
        if getattr(requests[0].section, "num_workers", 1) > 1:
            need = cluster.Need(cpu=0)  # its workers ask for themselves; the task that starts them only waits
        requests = [replace(request, exclusive=need.exclusive) for request in requests]
        task = ray.remote(_perform_on_node).options(
            name=stage,
            max_retries=self.retries,
            retry_exceptions=False,
            scheduling_strategy="DEFAULT",
            **need.options(),
        )
        try:
            return ray.get(task.remote(list(requests), storage_uri, int(need.cpu), self.log_path))
        except WorkerCrashedError:
            raise SweepError(
                f"the {stage} stage's worker process must stay alive, got {1 + self.retries} deaths (killed, or out of "
                f"memory); see {self.log_path}, or lower its batch size"
            ) from None
        except RayTaskError as problem:
            raise problem.cause if isinstance(problem.cause, Exception) else problem from None
        except RayError as problem:
            raise SweepError(f"the {stage} stage must be run by Ray, got {describe(problem)}") from problem


def _perform_on_node(requests: list[Request], storage_uri: str, threads: int, log_path: str) -> list[Artifact]:
    """What the Ray task runs: the same as inline, with as many threads as it has cores, logging to the trial."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
    Path(log_path).parent.mkdir(parents=True, exist_ok=True)  # an object store's mirror on this node may lack it
    with logging_to(logging.FileHandler(log_path), "%(asctime)s %(levelname)s %(message)s"):
        return perform_all(requests, storage_uri)


def environment() -> dict[str, Any]:
    """What a run was made with: versions, commit, machine. No environment variables: they may hold secrets."""
    versions: dict[str, str | None] = {}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    from greenprune.energy import machine_identity

    machine, facts = machine_identity()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git_commit": commit.stdout.strip() or None,
        "machine": machine,
        "machine_facts": facts,
        "ray_nodes": cluster.nodes(),
    }
