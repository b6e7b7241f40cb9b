"""Pruning methods: one file a family, one entry a method.

    report = prune(model, PruneConfig(method="angular", block_size=4), calibration=tokens)

A method is a function `(model, config, statistics) -> Removed` that changes the model in place. Its entry
names the statistics it needs; METHODS must stay importable without torch, so functions are named, not held.
"""

from __future__ import annotations

import importlib
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune._callable import make_callable
from greenprune.config import PruneConfig
from greenprune.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from greenprune.collect import Statistics

log = logging.getLogger("greenprune")


@dataclass(frozen=True)
class Method:
    """`statistics` are gathered in one pass, shared by all methods that ask for the same set."""

    function: str | None
    statistics: frozenset[str]
    summary: str
    paper: str


HIDDEN_STATES = frozenset({"angular", "bi"})

METHODS: dict[str, Method] = {
    "none": Method(None, frozenset(), "the dense model", ""),
    "angular": Method(
        "greenprune.prune.depth:remove_angular_block",
        HIDDEN_STATES,
        "the contiguous block of layers that turns the last token's state least",
        "Gromov et al. 2024, arXiv:2403.17887",
    ),
    "bi": Method(
        "greenprune.prune.depth:remove_least_influential",
        HIDDEN_STATES,
        "the layers of least block influence, one shot",
        "Men et al. 2024 (ShortGPT), arXiv:2403.03853",
    ),
}


@dataclass(frozen=True)
class Removed:
    """What a method took away; indices are those of the dense model."""

    layers_removed: list[int] = field(default_factory=list)
    kept_heads: dict[int, list[int]] = field(default_factory=dict)
    kept_channels: dict[int, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class PruneReport(Removed):
    """`ratio_reached`: removed share of the decoder layers' parameters (embeddings and head don't count)."""

    method: str = "none"
    parameters_before: int = 0
    parameters_after: int = 0
    ratio_reached: float = 0.0


def prune(
    model: PreTrainedModel,
    config: PruneConfig,
    calibration: torch.Tensor | None = None,
    statistics: Statistics | None = None,
) -> PruneReport:
    """Prune `model` in place and say what was removed.

    calibration: LongTensor [num_samples, seq_len], needed unless `statistics` are given or the method needs
    none. Raises ConfigError for a configuration that doesn't fit the model, before anything is changed.
    """
    from greenprune.collect import collect
    from greenprune.models.decoder import Decoder

    method = METHODS[config.method]
    layers = len(Decoder(model))
    if config.layers_removed() > min(layers - 1, layers - config.layers_protected()):
        raise ConfigError(
            f"prune.block_size must leave a layer of {layers} ({config.layers_protected()} of them skipped), "
            f"got {config.layers_removed()}; lower prune.block_size, prune.skip_first or prune.skip_last"
        )
    if method.statistics and statistics is None:
        if calibration is None:
            raise ConfigError(
                f"prune.method {config.method} needs calibration tokens, got none; pass calibration=LongTensor "
                "[num_samples, seq_len]"
            )
        statistics = collect(model, calibration, method.statistics)
    before, prunable = parameter_count(model), parameter_count(Decoder(model).layers)
    removed = _function(method)(model, config, statistics) if method.function else Removed()
    after = parameter_count(model)
    return PruneReport(
        **asdict(removed),
        method=config.method,
        parameters_before=before,
        parameters_after=after,
        ratio_reached=(before - after) / prunable,
    )


def parameter_count(module: torch.nn.Module) -> int:
    """Number of parameters; a tied embedding counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _function(method: Method) -> Any:
    module, _, name = (method.function or "").partition(":")
    return getattr(importlib.import_module(module), name)


def prune_stage(
    out: Path,
    *,
    checkpoint: Path,
    statistics: Path | None,
    config: PruneConfig,
    dtype: str,
    trust_remote_code: bool,
) -> None:
    """The pruned model as an ordinary checkpoint in `out/checkpoint`, and `out/report.json`."""
    from greenprune.collect import Statistics
    from greenprune.models import load_checkpoint, load_tokenizer, save_checkpoint

    model = load_checkpoint(checkpoint, dtype, trust_remote_code=trust_remote_code)
    report = prune(model, config, statistics=Statistics.load(statistics) if statistics else None)
    save_checkpoint(model, load_tokenizer(checkpoint), out / "checkpoint")
    (out / "report.json").write_text(json.dumps(asdict(report)))
    log.info(
        "pruned by %s: %.1f %% of the decoder's parameters, layers %s",
        config.method,
        100 * report.ratio_reached,
        report.layers_removed,
    )


make_callable(__name__)
