"""Which projections get an adapter, by the names that the model's own decoder layers use."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from greenprune.errors import ConfigError, nearest
from greenprune.models import Decoder


def target_modules(model: PreTrainedModel, wanted: str | Sequence[str]) -> list[str]:
    """Full names of the decoder layers' linear projections that `wanted` selects; never the head.

    `wanted` is "all-linear", "attention", "mlp", or names such as "q_proj" or "mlp.gate_proj". They are full
    paths, because a bare name like OPT's `out_proj` might also match outside the layers.
    Raises ConfigError for a name that matches nothing.
    """
    projections = _projections(model)
    if wanted == "all-linear":
        return list(projections)
    if isinstance(wanted, str):
        return [full for full, inner in projections.items() if _in_attention(inner) == (wanted == "attention")]
    selected = {name: _matching(projections, name) for name in wanted}
    for name, found in selected.items():
        if not found:
            known = {inner.rpartition(".")[2] for inner in projections.values()}
            raise ConfigError(
                f"heal.target_modules must name projections of the model's decoder layers, got {name!r}; "
                f"{nearest(name, known)}; or all-linear, attention, mlp"
            )
    chosen = {full for found in selected.values() for full in found}
    return [full for full in projections if full in chosen]


def _projections(model: PreTrainedModel) -> dict[str, str]:
    """Full name of each linear module in a decoder layer, to its name inside the layer."""
    paths = {module: name for name, module in model.named_modules()}
    return {
        f"{paths[layer]}.{inner}": inner
        for layer in Decoder(model).layers
        for inner, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }


def _matching(projections: dict[str, str], name: str) -> list[str]:
    return [full for full, inner in projections.items() if f".{inner}".endswith(f".{name}")]


def _in_attention(inner: str) -> bool:
    """Every known architecture keeps its attention in a child named so; OPT's fc1 and fc2 have no parent."""
    return any("attn" in part or "attention" in part for part in inner.split("."))
