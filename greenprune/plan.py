"""What would not fit where: the memory that each stage of an experiment needs, known from shapes before any work.

    greenprune plan EXPERIMENT.yaml --gpus 1 --gpu-gb 80

Of a sweep's trials each stage's neediest counts. A model's config.json is read, weights aren't.
"""

from __future__ import annotations

import functools
import itertools
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from greenprune.assets import materialize
from greenprune.config import STAGES, ModelConfig, TrialConfig, points
from greenprune.config.overrides import flat
from greenprune.errors import ConfigError, MemoryExceeded, ModelError
from greenprune.experiment import MAX_CHECKED_POINTS, Experiment
from greenprune.memory.prediction import Devices, Memory, devices_here, predicted
from greenprune.models.sizes import ModelSizes, sizes_of


@dataclass(frozen=True)
class PlannedStage:
    """A stage of the trial that needs most there. there_is: bytes; trial: what the sweep's space sets of it."""

    stage: str
    memory: Memory
    devices: Devices
    there_is: int
    trial: str

    @property
    def on(self) -> str:
        return f"{self.devices.gpus} GPU" if self.devices.gpus else "CPU"

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.there_is

    def refusal(self) -> str:
        need = self.memory
        parts = ", ".join(
            f"{name} {getattr(need, name) / 2**30:.1f}"
            for name in ("weights", "activations", "statistics", "gradients")
            if getattr(need, name)
        )
        return (
            f"{self.stage} must fit into {self.there_is / 2**30:.1f} GiB ({self.on}), got a prediction of "
            f"{need.total / 2**30:.1f} GiB ({parts}){f' for {self.trial}' if self.trial else ''}; lower its "
            f"batch_size, give it more GPUs, or say with sweep.resources.{self.stage}.memory_gb what it gets"
        )


def plan_stages(experiment: Experiment | TrialConfig, devices: Devices | None = None) -> list[PlannedStage]:
    """A row for each stage, in order. devices: what a stage has, unless sweep.resources says; default: what is here.

    Raises AssetError for a model whose configuration can't be had, ModelError for one of no known architecture.
    """
    devices = devices or devices_here()
    worst: dict[str, PlannedStage] = {}
    resources = experiment.sweep.resources if isinstance(experiment, Experiment) and experiment.sweep else None
    for point, trial in _trials(experiment):
        sizes = _sizes(trial.model)
        for stage, section, facts in stages_with_facts(trial):
            asked = getattr(resources, stage, None)
            gpus = devices.gpus if asked is None or asked.gpu is None else int(asked.gpu)
            of_stage = replace(devices, gpus=gpus)
            if STAGES[stage].streams and sizes.weight_bytes >= 0.8 * of_stage.bytes:
                of_stage = replace(devices, gpus=0)
            need = predicted(stage, sizes, section, facts, of_stage)
            there = int(asked.memory_gb * 2**30) if asked and asked.memory_gb and not of_stage.gpus else of_stage.bytes
            if stage not in worst or need.total > worst[stage].memory.total:
                named = ", ".join(f"{key}={value}" for key, value in point.items())
                worst[stage] = PlannedStage(stage, need, of_stage, there, named)
    return [worst[stage] for stage in STAGES if stage in worst]


def refuse_too_large(experiment: Experiment | TrialConfig) -> None:
    """Raises MemoryExceeded where a stage's prediction is more than this machine has; says nothing of models that are
    in no table."""
    try:
        found = plan_stages(experiment)
    except ModelError:
        return
    for row in found:
        if not row.fits:
            raise MemoryExceeded(f"on {socket.gethostname()}, {row.refusal()}")


def stages_of(experiment: Experiment) -> set[str]:
    """The stages that any trial of a sweep may have."""
    return {name for _, trial in _trials(experiment, ends_only=True) for name, *_ in stages_with_facts(trial)}


def stages_with_facts(trial: TrialConfig) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, section and facts of each stage that a trial has, as its requests have them."""
    want = sorted(trial.prune.statistics())
    facts: dict[str, dict[str, Any]] = {"collect": {"want": want}}
    if trial.prune.needs_tokens():
        facts["prune"] = {"calibration": trial.calibration.identity()}
    if trial.quantize.needs_tokens():
        facts["quantize"] = {"calibration": trial.calibration.identity()}
    for name, stage in STAGES.items():
        section = trial.heal.teaching() if name == "teach" else attrgetter(stage.key)(trial)
        if section is None or getattr(section, "method", None) == "none" or (name == "collect" and not want):
            continue
        yield name, section, facts.get(name, {})


def _trials(
    experiment: Experiment | TrialConfig, ends_only: bool = False
) -> Iterator[tuple[Mapping[str, Any], TrialConfig]]:
    """Every point of a grid, or with `ends_only` and of a search every corner, with its trial."""
    if not isinstance(experiment, Experiment):
        yield {}, experiment
    elif experiment.sweep is None:
        yield {}, experiment.trial()
    else:
        fixed = flat(experiment.model_dump(mode="json", exclude={"name", "sweep"}))
        every = points(experiment.sweep, fixed, ends_only=ends_only or experiment.sweep.search != "grid")
        for point in itertools.islice(every, MAX_CHECKED_POINTS):
            with suppress(ConfigError):  # a space may have points that no trial allows (experiment.py)
                yield point, experiment.trial(point)


@functools.lru_cache(maxsize=32)
def _sizes(model: ModelConfig) -> ModelSizes:
    return sizes_of(materialize(model, weights=False), model.dtype, model.trust_remote_code)
