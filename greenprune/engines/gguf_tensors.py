"""A checkpoint's weights under llama.cpp's names and in its order of rows; read one at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import torch
from torch import Tensor

from greenprune.errors import ModelError
from greenprune.models.parts import mapped_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig


@dataclass
class GgufTensor:
    """A tensor of the file: weights one after the other, each read when its function is called."""

    shape: tuple[int, ...] = ()
    parts: list[Callable[[], Tensor]] = field(default_factory=list)

    def values(self) -> NDArray[Any]:
        """fp32, of `shape`."""
        return torch.cat([part().float() for part in self.parts]).numpy()

    def append(self, rows: int, more: tuple[int, ...], part: Callable[[], Tensor]) -> None:
        self.shape = (rows + (self.shape[0] if self.shape else 0), *more)
        self.parts.append(part)


def tensors_of(checkpoint: Path, config: PreTrainedConfig, architecture: str, pairs: bool) -> dict[str, GgufTensor]:
    """By llama.cpp's name. architecture: llama.cpp's. pairs: rotary embeddings turn neighbours there.

    Raises ModelError for a weight that the architecture doesn't have.
    """
    layers = list(config.per_layer_config)
    known = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(known, len(layers))
    found: dict[str, GgufTensor] = {}
    weights = mapped_weights(checkpoint)
    for name in sorted(weights, key=lambda each: each.replace("k_proj", "r_proj").replace("v_proj", "s_proj")):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        key = names.get_name(name, try_suffixes=(".weight", ".bias"))
        layer, part = _projection(name)
        if key and key.endswith("attn_norm.weight") and not layers[layer].num_attention_heads:
            continue
        if key is None and architecture == "openelm" and part:  # queries, keys, values in one
            key = f"blk.{layer}.attn_qkv.weight"
        if key is None:
            raise ModelError(f"{architecture} of llama.cpp has no {name}; serve the model by transformers")
        change = _as_it_is
        if pairs and part in ("q", "k"):
            change = partial(_neighbours, heads=_heads(layers[layer], part))
        elif architecture == "gemma3" and key.endswith("norm.weight"):
            change = _plus_one
        weight = weights[name]
        found.setdefault(key, GgufTensor()).append(weight.shape[0], weight.shape[1:], partial(change, weight))
    if factors := _frequency_factors(config):
        found["rope_freqs.weight"] = GgufTensor((len(factors),), [partial(torch.tensor, factors)])
    return found


def _projection(name: str) -> tuple[int, str]:
    """The layer of a weight, and of what it projects to queries, keys or values "q", "k" or "v"."""
    layer = re.search(r"layers\.(\d+)\.", name)
    part = re.search(r"self_attn\.([qkv])_proj\.", name)
    return int(layer[1]) if layer else 0, part[1] if part else ""


def _heads(layer: PreTrainedConfig, part: str) -> int:
    return layer.num_attention_heads if part == "q" else layer.num_key_value_heads


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


def _plus_one(weight: Tensor) -> Tensor:
    """Gemma's norms scale by 1 + weight."""
    return weight.float() + 1


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from halves (0 1 2 | 3 4 5) to neighbours (0 3 1 4 2 5) of what is turned together."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def _frequency_factors(config: PreTrainedConfig) -> list[float]:
    """Of Llama 3.1's rotary scaling: by what each frequency is divided; none elsewhere.

    Low frequencies are divided by `factor`, high ones by 1, those between by what lies between.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return []
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    low, high, factors = rope["low_freq_factor"], rope["high_freq_factor"], []
    for place in range(0, head_dim, 2):
        turns = rope["original_max_position_embeddings"] / (2 * math.pi * rope["rope_theta"] ** (place / head_dim))
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / (share + (1 - share) / rope["factor"]))
    return factors
