"""What a trial and a sweep are made of, and every reason to refuse one before a model is loaded.

An experiment file is YAML: the sections of one trial, and optionally `sweep`, whose `space` varies them.
Precedence is said once: defaults < file < overrides (`prune.block_size=4` on the command line, or the
sampled point of a sweep: both are the same dotted paths).

A section whose variants are told apart by `method` keeps, when an override changes the method, only those
fields of the file that the new method has; so a sweep may vary the method of a fully written base trial.

trial.py, methods.py and sweep.py hold the sections, overrides.py the dotted keys, refusals.py the wording of errors,
experiment.py the file.
"""

from greenprune.config.experiment import (
    Experiment,
    json_schema,
    load_experiment,
    parse_experiment,
    read_yaml,
)
from greenprune.config.methods import (
    METHODS,
    PRUNE_VARIANTS,
    DepthPruning,
    FlapPruning,
    LlmPrunerPruning,
    MaskPruning,
    Method,
    MinitronWidthPruning,
    NoPruning,
    PruneConfig,
    RatioPruning,
    SequencePruning,
    Shape,
    SkippingPruning,
    WandaSpPruning,
    WidthPruning,
)
from greenprune.config.overrides import (
    apply_overrides,
    flat,
    known_keys,
)
from greenprune.config.sweep import (
    Dimension,
    ResourcesConfig,
    StageResources,
    SweepConfig,
    holds,
    in_order,
    measured_metrics,
    points,
)
from greenprune.config.trial import (
    TEXT_SUFFIXES,
    BenchmarkConfig,
    CalibrationConfig,
    EnergyConfig,
    HealConfig,
    LoraHealing,
    ModelConfig,
    NoHealing,
    TrialConfig,
    perplexity_name,
    split_text,
)

__all__ = [
    "METHODS",
    "PRUNE_VARIANTS",
    "TEXT_SUFFIXES",
    "BenchmarkConfig",
    "CalibrationConfig",
    "DepthPruning",
    "Dimension",
    "EnergyConfig",
    "Experiment",
    "FlapPruning",
    "HealConfig",
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
    "SequencePruning",
    "Shape",
    "SkippingPruning",
    "StageResources",
    "SweepConfig",
    "TrialConfig",
    "WandaSpPruning",
    "WidthPruning",
    "apply_overrides",
    "flat",
    "holds",
    "in_order",
    "json_schema",
    "known_keys",
    "load_experiment",
    "measured_metrics",
    "parse_experiment",
    "perplexity_name",
    "points",
    "read_yaml",
    "split_text",
]
