"""How long an input a model can take at all, as opposed to how long it was trained for."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from greenprune.errors import ModelError


def learned_positions(model: PreTrainedModel) -> int | None:
    """The number of positions of a model that looks them up (OPT, GPT-2); None where they are computed."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in ("embed_positions", "wpe"):
            return model.config.max_position_embeddings
    return None


def check_length(model: PreTrainedModel, tokens: int, what: str) -> None:
    """Refuse inputs beyond the learned positions: an index error on the CPU, a corrupted context on a GPU."""
    limit = learned_positions(model)
    if limit is not None and tokens > limit:
        raise ModelError(
            f"{what} must be at most {limit} tokens, the positions {model.config.model_type} has learned, "
            f"got {tokens}; lower it"
        )
