"""Pruning methods: one file a family, one entry a method (METHODS, in config/methods.py).

    report = prune(model, PruneConfig(method="angular", block_size=4), calibration=tokens)

A method is a function `(model, config, calibration) -> Removed` that changes the model in place.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune._callable import function_named, make_callable
from greenprune.config import METHODS, CalibrationConfig, MaskPruning, PruneConfig, Shape, SharePruning
from greenprune.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from greenprune.collect import Statistics
    from greenprune.models.decoder import Decoder

log = logging.getLogger("greenprune")

# By PruneConfig.compensation(): `f(model, dense, removed, config, calibration)` changes the pruned model, gives notes
COMPENSATIONS = {
    "reconstruct.bias": "greenprune.prune.reconstruct:reconstruct",
    "reconstruct.least_squares": "greenprune.prune.reconstruct:reconstruct",
    "reconstruct.windows": "greenprune.prune.windows:reconstruct_by_windows",
    "patch.linear": "greenprune.prune.patch:patch",
    "patch.least_squares": "greenprune.prune.patch:patch",
}


@dataclass(frozen=True)
class Calibration:
    """What a method may look at, beside the model: what its entry in METHODS asks for.

    tokens: LongTensor [num_samples, seq_len]; statistics: of the model as it is given.
    """

    tokens: torch.Tensor | None = None
    statistics: Statistics | None = None
    batch_size: int = 1

    def required_tokens(self) -> torch.Tensor:
        assert self.tokens is not None, "the method's entry asks for tokens"
        return self.tokens

    def required_statistics(self) -> Statistics:
        assert self.statistics is not None, "the method's entry asks for statistics"
        return self.statistics


@dataclass(frozen=True)
class Removed:
    """What a method took away; indices are those of the dense model.

    kept_heads, kept_channels: for each layer that was touched, the query heads and MLP channels that stay.
    notes: what a user should know, such as a Hessian that had to be damped.
    """

    layers_removed: list[int] = field(default_factory=list)
    kept_heads: dict[int, list[int]] = field(default_factory=dict)
    kept_channels: dict[int, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PruneReport(Removed):
    """`ratio_asked`: None for methods that take no ratio. `ratio_reached`: removed share of the parameters of the
    layers that could be touched (embeddings and head don't count); of a mask, the share of their matrices that is 0.

    sparsity: zeros among the matrices of all decoder layers. needs: what loads the checkpoint: "transformers", or
    "trust_remote_code" where layers differ in width and the modelling file in the checkpoint is needed.
    """

    method: str = "none"
    ratio_asked: float | None = None
    ratio_reached: float = 0.0
    parameters_before: int = 0
    parameters_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    sparsity: float = 0.0
    needs: str = "transformers"


def prune(
    model: PreTrainedModel,
    config: PruneConfig,
    calibration: torch.Tensor | None = None,
    statistics: Statistics | None = None,
    batch_size: int = 1,
) -> PruneReport:
    """Prune `model` in place and say what was removed.

    calibration: LongTensor [num_samples, seq_len], needed where the method runs the model on text, or its
    `statistics` (of this model) aren't given; batch_size: samples in one forward. Raises ConfigError for a
    configuration that doesn't fit the model, before anything is changed.
    """
    from greenprune.collect import collect
    from greenprune.models.decoder import Decoder

    decoder = Decoder(model)
    config.check(shape_of(model))
    want = config.statistics()
    if calibration is None and (config.needs_tokens() or (want and statistics is None)):
        raise ConfigError(
            f"prune.method {config.method} needs calibration tokens, got none; pass calibration=LongTensor "
            "[num_samples, seq_len]"
        )
    if want and statistics is None:
        statistics = collect(model, calibration, want, batch_size=batch_size)
    before, bytes_before = parameter_count(model), byte_count(model)
    touchable = sum(map(parameter_count, _touchable(model, config)))
    removed = _removed(model, config, Calibration(calibration, statistics, batch_size))
    left, sparsity = sum(map(parameter_count, _touchable(model, config))), zero_share(decoder)
    return PruneReport(
        **asdict(removed),
        method=config.method,
        ratio_asked=getattr(config, "ratio", None),
        ratio_reached=sparsity if isinstance(config, MaskPruning) else 1 - left / touchable,
        parameters_before=before,
        parameters_after=parameter_count(model),
        bytes_before=bytes_before,
        bytes_after=byte_count(model),
        sparsity=sparsity,
        needs="trust_remote_code" if model.config.is_heterogeneous else "transformers",
    )


def _removed(model: PreTrainedModel, config: PruneConfig, calibration: Calibration) -> Removed:
    """What the method takes away, made up for where that is asked for."""
    if not (name := config.compensation()):
        return _function(config)(model, config, calibration)
    from greenprune.models.surgery import twin

    dense = twin(model)
    removed = _function(config)(model, config, calibration)
    notes = function_named(COMPENSATIONS[name])(model, dense, removed, config, calibration)
    return replace(removed, notes=[*removed.notes, *notes])


def shape_of(model: PreTrainedModel) -> Shape:
    """What a configuration is checked against."""
    from greenprune.models.decoder import Decoder

    decoder, heads = Decoder(model), model.config.num_attention_heads
    kv_heads = getattr(model.config, "num_key_value_heads", None) or heads
    return Shape(len(decoder), heads, kv_heads, decoder.adds_outputs)


def parameter_count(module: torch.nn.Module) -> int:
    """Number of parameters; a tied embedding counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def byte_count(module: torch.nn.Module) -> int:
    """Bytes of the parameters; a tied embedding counts once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def zero_share(decoder: Decoder) -> float:
    """Zeros among the weights of all linear matrices of the layers."""
    from torch import nn

    total = nonzero = 0
    for _, view in decoder.in_turn():
        for weight in (part.weight for part in view.module.modules() if isinstance(part, nn.Linear)):
            total, nonzero = total + weight.numel(), nonzero + int(weight.count_nonzero())
    return 1 - nonzero / total


def _touchable(model: PreTrainedModel, config: PruneConfig) -> list[torch.nn.Module]:
    """The layers whose parameters `ratio` is a share of."""
    from greenprune.models.decoder import Decoder

    layers = Decoder(model).layers
    return [layers[index] for index in config.prunable(len(layers))] if isinstance(config, SharePruning) else [*layers]


def _function(config: PruneConfig) -> Any:
    path = METHODS[config.method].function
    return function_named(path) if path else lambda *_: Removed()


def prune_stage(
    out: Path,
    *,
    checkpoint: Path,
    statistics: Path | None,
    config: PruneConfig,
    calibration: dict[str, Any] | None = None,
    dtype: str,
    trust_remote_code: bool,
) -> None:
    """The pruned model as a checkpoint in `out/checkpoint`, and `out/report.json`.

    calibration: a CalibrationConfig's identity, for methods that run the model on text.
    """
    from greenprune.collect import Statistics
    from greenprune.data import calibration_tokens
    from greenprune.models import load_streamed, load_tokenizer, save_checkpoint

    model = load_streamed(checkpoint, dtype, trust_remote_code, copies=1 + config.needs_dense())
    tokenizer = load_tokenizer(checkpoint)
    tokens, text = None, CalibrationConfig(**{**CalibrationConfig.LATER, **(calibration or {})})
    if calibration:
        tokens = calibration_tokens(text.dataset, tokenizer, text.num_samples, text.seq_len, text.seed, text.bos)
    gathered = Statistics.load(statistics) if statistics else None
    report = prune(model, config, tokens, gathered, batch_size=text.batch_size)
    save_checkpoint(model, tokenizer, out / "checkpoint")
    (out / "report.json").write_text(json.dumps(asdict(report)))
    log.info(
        "pruned by %s: %.1f %% of the model's parameters gone, %.1f %% zeros, layers removed: %s; needs %s",
        config.method,
        100 * (report.parameters_before - report.parameters_after) / report.parameters_before,
        100 * report.sparsity,
        report.layers_removed or "none",
        report.needs,
    )


make_callable(__name__)
