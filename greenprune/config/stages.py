"""The table of stages: what a trial consists of, each declared once.

A trial's configuration has a section for each, a sweep's file its resources, a run's table what it cost; Request, the
walk to a checkpoint, export, metrics and emissions take from here what a stage is. It must import without torch, so
functions are named, not held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from greenprune.config.benchmark import BenchmarkConfig
from greenprune.config.heal import HEAL_VARIANTS, NoHealing
from greenprune.config.methods import PRUNE_VARIANTS
from greenprune.config.model import CalibrationConfig
from greenprune.config.quantize import QUANTIZE_VARIANTS, NoQuantizing
from greenprune.config.section import Section, chosen_by_method

Role = Literal["statistics", "model", "benchmark"]


@dataclass(frozen=True)
class Stage:
    """One stage.

    function: writes the artifact: `f(out, *, config, **inputs, **facts, **options)`. version: raised when the output
    changes for the same input, so that old artifacts are left aside; a method's own changes raise the method's
    version instead. key: the dotted key of its configuration. Where that is a section of its own: section, its type, or
    variants, its types by `method`; default, what it is where a file says nothing.

    role: `statistics` about a model, another `model` (its artifact holds `checkpoint/`), or a `benchmark` of one (its
    artifact holds emissions.csv). What isn't a benchmark is part of making the model, and so is its energy.
    needs: the parents, by parameter. machine_bound: the artifact belongs to the hardware that made it, and the stage
    has that to itself. disturbed: `f(folder)`, whether an artifact of it was spoiled by other work on its machine, so
    that whoever asks next makes another. resumes: it goes on from what a former attempt left in its folder. begins:
    `f(store, call, folder)`, puts there what another artifact has in common with this one, where one has, and gives
    facts of it; the result is the same as without. libraries:
    those that decide its numbers; with another major or minor version of one the artifact is another.
    memory: `f(sizes, section, facts, devices)`, what it needs (greenprune/memory/prediction.py); None: the weights.
    streams: what no GPU holds it does layer by layer on a CPU.
    """

    function: str
    version: int
    key: str
    role: Role
    needs: tuple[str, ...] = ("checkpoint",)
    section: Any = None
    default: Any = ...
    variants: Mapping[str, type[Section]] | None = None
    machine_bound: bool = False
    disturbed: str | None = None
    resumes: bool = False
    begins: str | None = None
    libraries: tuple[str, ...] = ("torch", "transformers")
    memory: str | None = None
    streams: bool = False

    @property
    def section_type(self) -> Any:
        """The type of its section in a trial's configuration; None where it has none of its own."""
        return chosen_by_method(self.variants) if self.variants else self.section


# In the order of a trial.
STAGES: dict[str, Stage] = {
    "collect": Stage(
        "greenprune.collect:collect_stage",
        1,
        "calibration",
        "statistics",
        section=CalibrationConfig,
        default=CalibrationConfig(),
        memory="greenprune.memory.prediction:of_collect",
        streams=True,
    ),
    "prune": Stage(
        "greenprune.prune:prune_stage",
        3,
        "prune",
        "model",
        needs=("checkpoint", "statistics"),
        variants=PRUNE_VARIANTS,
        memory="greenprune.memory.prediction:of_prune",
        streams=True,
    ),
    "teach": Stage(
        "greenprune.heal.teacher:teach_stage",
        1,
        "heal.teacher",
        "statistics",
        resumes=True,
    ),
    "heal": Stage(
        "greenprune.heal:heal_stage",
        2,
        "heal",
        "model",
        needs=("checkpoint", "teacher", "dense"),
        default=NoHealing(),
        variants=HEAL_VARIANTS,
        resumes=True,
        begins="greenprune.heal.beginnings:begin_with_shorter",
        libraries=("torch", "transformers", "peft", "bitsandbytes"),
        memory="greenprune.memory.prediction:of_heal",
    ),
    "quantize": Stage(
        "greenprune.quantize:quantize_stage",
        1,
        "quantize",
        "model",
        default=NoQuantizing(),
        variants=QUANTIZE_VARIANTS,
        libraries=("torch", "transformers", "bitsandbytes"),
        memory="greenprune.memory.prediction:of_quantize",
    ),
    "accuracy": Stage(
        "greenprune.benchmark:accuracy_stage",
        3,
        "benchmark",
        "benchmark",
        section=BenchmarkConfig,
        default=BenchmarkConfig(),
        libraries=("torch", "transformers", "lm_eval"),
        memory="greenprune.memory.prediction:of_accuracy",
    ),
    "energy": Stage(
        "greenprune.benchmark:energy_stage",
        2,
        "benchmark.energy",
        "benchmark",
        machine_bound=True,
        disturbed="greenprune.benchmark:was_disturbed",
        memory="greenprune.memory.prediction:of_energy",
    ),
}
