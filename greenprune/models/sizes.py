"""How large a model is, from its shapes alone: it is built on the meta device, where tensors have no memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from greenprune.models.decoder import Decoder
from greenprune.models.load import DTYPES, model_class


@dataclass(frozen=True)
class ModelSizes:
    """Numbers of parameters and widths; layer, heads, channels, …: the largest of all layers.

    layer: parameters of a decoder layer; outside: those of all else, tied ones once. attention, channels: inputs of the
    two output projections. cached: keys and values of a token in one layer. itemsize: bytes of a weight.
    """

    parameters: int
    layers: int
    layer: int
    outside: int
    hidden: int
    attention: int
    channels: int
    cached: int
    vocabulary: int
    itemsize: int

    @property
    def weight_bytes(self) -> int:
        return self.parameters * self.itemsize


def sizes_of(folder: Path, dtype: str, trust_remote_code: bool = False) -> ModelSizes:
    """Of the model whose config.json is in `folder`; weights aren't needed. dtype: "auto" or one of DTYPES.

    Raises ModelError for an architecture without an entry.
    """
    return measured_sizes(on_meta(folder, dtype, trust_remote_code))


def on_meta(folder: Path, dtype: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without memory."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    wanted = DTYPES.get(dtype) or config.dtype or torch.float32
    kind = model_class(folder)
    with torch.device("meta"):
        if kind is AutoModelForCausalLM:
            return kind.from_config(config, dtype=wanted, trust_remote_code=trust_remote_code)
        return kind(config).to(wanted)


def measured_sizes(model: PreTrainedModel) -> ModelSizes:
    """Of a model on any device."""
    decoder = Decoder(model)
    views = decoder.views()
    counts = [sum(parameter.numel() for parameter in view.module.parameters()) for view in views]
    total = sum(parameter.numel() for parameter in model.parameters())
    return ModelSizes(
        parameters=total,
        layers=len(views),
        layer=max(counts),
        outside=total - sum(counts),
        hidden=views[0].down.out_features,
        attention=max(view.heads * view.head_dim for view in views),
        channels=max(view.channels for view in views),
        cached=max(2 * view.kv_heads * view.head_dim for view in views),
        vocabulary=model.config.get_text_config().vocab_size,
        itemsize=model.dtype.itemsize,
    )


def work_of(model: PreTrainedModel) -> dict[str, Any]:
    """What a token's multiply-accumulates follow from, of a model on any device.

    linear_macs: those of all linear layers with the head, one a weight. attention_widths: heads × size of a head, by
    layer; a query does twice as many with each position that it looks at. Raises ModelError as `sizes_of`.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return {
        "linear_macs": sum(linear.in_features * linear.out_features for linear in linears),
        "attention_widths": [view.out.in_features for view in Decoder(model).views()],
    }
