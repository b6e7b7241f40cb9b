"""A sweep on Ray Tune: every trial is a light driver, and its stages are Ray tasks with their own resources.

A trial's driver asks for nothing but a place on the head node (its locks live there, see store.py), so it
holds no stage's resources while it waits for another's. Whatever ends a run, the same command goes on with it:
results that are there stay, the search's journal brings back its decisions, the store every finished stage.
Tune's own state is never read: it's a pickle, it lags behind, and it holds the settings of before.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import tune

from greenprune.cluster.join import start_ray
from greenprune.cluster.node_types import HEAD_NODE
from greenprune.cluster.resources import MOST_AT_ONCE
from greenprune.cluster.surroundings import keep_token
from greenprune.config import TrialConfig
from greenprune.config.track import refuse_missing
from greenprune.energy.exclusive import node_is_taken
from greenprune.errors import ConfigError, SweepError
from greenprune.experiment import Experiment
from greenprune.plan import refuse_too_large
from greenprune.results import TrialResult, load_trials, read_results
from greenprune.storage import Storage
from greenprune.storage.leases import Lease
from greenprune.sweep.environment import environment
from greenprune.sweep.live import Live, TellLive
from greenprune.sweep.nodes import NODES_FILE, Nodes
from greenprune.sweep.provenance import FILE, RECORD, settled
from greenprune.sweep.run_folder import RunFolder
from greenprune.sweep.search import SweepSearch
from greenprune.sweep.track import Trackers
from greenprune.sweep.trial_driver import drive_trial

log = logging.getLogger("greenprune")


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
    fresh: bool = False,
    quiet: bool = False,
    any_versions: bool = False,
) -> Run:
    """Run every trial of an experiment's sweep; failed ones become rows. A run that is there is gone on with.

    address: a Ray cluster ("auto", "ray://host:10001"); None starts Ray on this machine. resume: there must be a
    run to go on with. fresh: start anew; the old run is kept beside the new one under a dated name. quiet: print
    nothing. any_versions: use artifacts, and go on with rows, that other versions of torch or another library made.
    Raises ConfigError or SweepError before any trial starts, and before any file is touched.
    """
    if not isinstance(experiment, Experiment) or experiment.sweep is None:
        raise ConfigError("a sweep needs a sweep section, got none; add sweep.space, or use `greenprune trial`")
    if resume and fresh:
        raise ConfigError("--resume goes on with a run and --fresh starts anew, got both; leave one out")
    track = experiment.sweep.track
    refuse_missing(track)
    if address and not ray.is_initialized():
        start_ray(address)  # before anything that takes long
    storage = Storage(experiment.sweep.storage)
    run = RunFolder(storage, experiment.name)
    with run.driven_alone() as lease:
        known = [] if fresh else run.results()
        experiment, depends_on = settled(experiment, run, known, fresh, any_versions)
        if resume and not known and not run.exists():
            raise SweepError(f"--resume needs an interrupted run in {run.path}, got none; start it without --resume")
        if not ray.is_initialized():
            refuse_too_large(experiment)
            start_ray(None)
        nodes = Nodes(experiment)
        nodes.check_storage(storage)
        trackers = Trackers(track, run)
        if fresh and run.exists():
            log.info("the old run is now %s", run.keep_aside())
        run.write("config.yaml", yaml.safe_dump(experiment.to_dict(), sort_keys=False))
        run.write(FILE, json.dumps(environment() | {RECORD: depends_on}, indent=1))
        nodes.record = functools.partial(run.write, NODES_FILE)
        nodes.record(nodes.text())
        interrupted = _fit(experiment, run, lease, nodes, known, trackers, quiet, any_versions)
    failed = [result for result in read_results(run.path) if result.status == "failed"]
    return Run(run.path, load_trials(run.path), failed, interrupted)


def _fit(
    experiment: Experiment,
    run: RunFolder,
    lease: Lease,
    nodes: Nodes,
    known: list[TrialResult],
    trackers: Trackers,
    quiet: bool,
    any_versions: bool,
) -> bool:
    """Run Tune to its end, or go on with it; True where the user interrupted it."""
    trainable = tune.with_resources(
        functools.partial(
            drive_trial,
            storage_uri=run.storage.uri,
            run=run.name,
            needed=nodes.needed,
            experiment=experiment.model_dump_json(by_alias=True),
            any_versions=any_versions,
        ),
        tune.PlacementGroupFactory([{"CPU": 0, HEAD_NODE: 0.0001}]),
    )
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(MOST_AT_ONCE)  # else processes start one after the other
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its new output can't be silenced; Live takes its place
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are shown by Live, once
    journal = run.journal()
    busy = functools.partial(node_is_taken, run.storage.uri)
    search = SweepSearch(experiment, busy, known, tuple(journal.events), journal.record, nodes.width)
    live = Live(
        run,
        experiment,
        known,
        trackers,
        total=search.total,
        concurrent=nodes.width,
        quiet=quiet,
        alone=lambda: not lease.lost,
    )
    tuner = _tuner(run, trainable, search)
    kept = keep_token() if nodes.elsewhere else None
    with live:
        tuner.fit()
    del kept
    return not live.finished()


def _tuner(run: RunFolder, trainable: Any, search: SweepSearch) -> tune.Tuner:
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=-1,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
            reuse_actors=True,  # a process takes seconds to start
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(run.path),  # never read, so an object store doesn't get it
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[TellLive()],
            verbose=0,
        ),
    )


def _trial_name(trial: Any) -> str:
    return trial.config["trial_id"]
