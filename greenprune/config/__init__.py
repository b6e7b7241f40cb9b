"""What a trial and a sweep are made of, and every reason to refuse one before a model is loaded.

An experiment file is YAML: the sections of one trial, and optionally `sweep`, whose `space` varies them.
Precedence is said once: defaults < file < overrides (`prune.block_size=4` on the command line, or the
sampled point of a sweep: both are the same dotted paths).

A section whose variants are told apart by `method` keeps, when an override changes the method, only those
fields of the file that the new method has; so a sweep may vary the method of a fully written base trial.

model.py, pruning.py, heal.py, benchmark.py and sweep.py hold the sections; methods.py, heal.py and stages.py the
tables; trial.py one trial as a whole; overrides.py the dotted keys; refusals.py the wording of errors.
"""

from greenprune.config.benchmark import (
    TEXT_SUFFIXES,
    BenchmarkConfig,
    EnergyConfig,
    perplexity_name,
    split_text,
)
from greenprune.config.heal import (
    HEAL_VARIANTS,
    HEALERS,
    HealConfig,
    Healer,
    LoraHealing,
    NoHealing,
)
from greenprune.config.methods import (
    METHODS,
    PRUNE_VARIANTS,
    SequencePruning,
)
from greenprune.config.model import (
    Bos,
    CalibrationConfig,
    ModelConfig,
)
from greenprune.config.overrides import (
    apply_overrides,
    flat,
    known_keys,
)
from greenprune.config.pruning import (
    DepthPruning,
    FlapPruning,
    LlmPrunerPruning,
    MaskPruning,
    Method,
    MinitronWidthPruning,
    NoPruning,
    PruneConfig,
    RatioPruning,
    Shape,
    SkippingPruning,
    WandaSpPruning,
    WidthPruning,
)
from greenprune.config.section import Section
from greenprune.config.stages import (
    STAGES,
    Stage,
)
from greenprune.config.sweep import (
    Dimension,
    ResourcesConfig,
    StageResources,
    SweepConfig,
    holds,
    in_order,
    points,
)
from greenprune.config.trial import (
    TrialConfig,
)

__all__ = [
    "HEALERS",
    "HEAL_VARIANTS",
    "METHODS",
    "PRUNE_VARIANTS",
    "STAGES",
    "TEXT_SUFFIXES",
    "BenchmarkConfig",
    "Bos",
    "CalibrationConfig",
    "DepthPruning",
    "Dimension",
    "EnergyConfig",
    "FlapPruning",
    "HealConfig",
    "Healer",
    "LlmPrunerPruning",
    "LoraHealing",
    "MaskPruning",
    "Method",
    "MinitronWidthPruning",
    "ModelConfig",
    "NoHealing",
    "NoPruning",
    "PruneConfig",
    "RatioPruning",
    "ResourcesConfig",
    "Section",
    "SequencePruning",
    "Shape",
    "SkippingPruning",
    "Stage",
    "StageResources",
    "SweepConfig",
    "TrialConfig",
    "WandaSpPruning",
    "WidthPruning",
    "apply_overrides",
    "flat",
    "holds",
    "in_order",
    "known_keys",
    "perplexity_name",
    "points",
    "split_text",
]
