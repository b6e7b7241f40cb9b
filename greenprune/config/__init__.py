"""What a trial and a sweep are made of, and every reason to refuse one before a model is loaded.

An experiment file is YAML: the sections of one trial, and optionally `sweep`, whose `space` varies them.
Precedence is said once: defaults < file < overrides (`prune.block_size=4` on the command line, or the
sampled point of a sweep: both are the same dotted paths).

A section whose variants are told apart by `method` keeps, when an override changes the method, only those
fields of the file that the new method has; so a sweep may vary the method of a fully written base trial.

model.py, pruning.py, heal.py, benchmark.py and sweep.py hold the sections; methods.py, heal.py, quantize.py
and stages.py the tables; trial.py one trial as a whole; texts.py what names a model or a text, local_paths.py as
absolute paths; dependencies.py what they only name: content of texts, versions of libraries;
overrides.py the dotted keys; refusals.py the wording of errors.
"""

from greenprune.config.benchmark import (
    BenchmarkConfig,
    EnergyConfig,
    tokens_a_sequence,
)
from greenprune.config.engines import (
    ENGINES,
    FIRST_ENGINE,
    EngineKind,
    EngineName,
    refuse_missing_engine,
)
from greenprune.config.heal import (
    HEAL_VARIANTS,
    HEALERS,
    FullHealing,
    HealConfig,
    Healer,
    LoraHealing,
    NoHealing,
    Teaching,
    TextHealing,
)
from greenprune.config.local_paths import (
    absolute,
    absolute_model,
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
    MaskPruning,
    Method,
    NoPruning,
    PruneConfig,
    Shape,
    SkippingPruning,
)
from greenprune.config.quantize import (
    QUANTIZE_VARIANTS,
    QUANTIZERS,
    GgufQuantizing,
    Int8Quantizing,
    Nf4Quantizing,
    NoQuantizing,
    QuantizeConfig,
    Quantizer,
    W4a16Quantizing,
    W8a8Quantizing,
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
    most_points,
    points,
    random_point,
)
from greenprune.config.texts import (
    FILES_AT,
    MODEL,
    TEXT_SUFFIXES,
    TEXTS_AT,
    is_commit,
    is_file,
    is_whole_text,
    named_in,
    perplexity_name,
    split_label,
    split_revision,
    split_text,
)
from greenprune.config.trial import (
    TrialConfig,
)
from greenprune.config.width_pruning import (
    FlapPruning,
    LlmPrunerPruning,
    MinitronWidthPruning,
    RatioPruning,
    SharePruning,
    ShearedPruning,
    TwoStagePruning,
    WandaSpPruning,
    WidthPruning,
)

__all__ = [
    "ENGINES",
    "FILES_AT",
    "FIRST_ENGINE",
    "HEALERS",
    "HEAL_VARIANTS",
    "METHODS",
    "MODEL",
    "PRUNE_VARIANTS",
    "QUANTIZERS",
    "QUANTIZE_VARIANTS",
    "STAGES",
    "TEXTS_AT",
    "TEXT_SUFFIXES",
    "BenchmarkConfig",
    "Bos",
    "CalibrationConfig",
    "DepthPruning",
    "Dimension",
    "EnergyConfig",
    "EngineKind",
    "EngineName",
    "FlapPruning",
    "FullHealing",
    "GgufQuantizing",
    "HealConfig",
    "Healer",
    "Int8Quantizing",
    "LlmPrunerPruning",
    "LoraHealing",
    "MaskPruning",
    "Method",
    "MinitronWidthPruning",
    "ModelConfig",
    "Nf4Quantizing",
    "NoHealing",
    "NoPruning",
    "NoQuantizing",
    "PruneConfig",
    "QuantizeConfig",
    "Quantizer",
    "RatioPruning",
    "ResourcesConfig",
    "Section",
    "SequencePruning",
    "Shape",
    "SharePruning",
    "ShearedPruning",
    "SkippingPruning",
    "Stage",
    "StageResources",
    "SweepConfig",
    "Teaching",
    "TextHealing",
    "TrialConfig",
    "TwoStagePruning",
    "W4a16Quantizing",
    "W8a8Quantizing",
    "WandaSpPruning",
    "WidthPruning",
    "absolute",
    "absolute_model",
    "apply_overrides",
    "flat",
    "holds",
    "in_order",
    "is_commit",
    "is_file",
    "is_whole_text",
    "known_keys",
    "most_points",
    "named_in",
    "perplexity_name",
    "points",
    "random_point",
    "refuse_missing_engine",
    "split_label",
    "split_revision",
    "split_text",
    "tokens_a_sequence",
]
