"""One view of every decoder-only architecture: where its layers are, and how to run it without its head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from greenprune.errors import ModelError

# model_type -> path from the causal LM to the module that holds `layers`
LAYER_OWNERS = {
    "llama": "model",
    "mistral": "model",
    "qwen2": "model",
    "qwen3": "model",
    "gemma": "model",
    "gemma2": "model",
    "gemma3_text": "model",
    "phi3": "model",
    "glm4": "model",
    "opt": "model.decoder",
    "gpt_neox": "gpt_neox",
}
LOGITS_AT_ONCE = 1 << 24  # numbers, 64 MiB in fp32: all positions' together would be the largest tensor of a pass


@dataclass(frozen=True)
class Decoder:
    """The decoder of a causal LM. `layers[l]` maps h^l to h^{l+1}; h^0 are the embeddings."""

    model: PreTrainedModel

    def __post_init__(self) -> None:
        if self.model.config.model_type not in LAYER_OWNERS:
            raise ModelError(
                f"the model must be one of {', '.join(sorted(LAYER_OWNERS))}, got {self.model.config.model_type}; "
                "add its row to LAYER_OWNERS in greenprune/models/decoder.py"
            )

    @property
    def owner(self) -> nn.Module:
        """The module whose attribute `layers` holds the decoder layers."""
        return self.model.get_submodule(LAYER_OWNERS[self.model.config.model_type])

    @property
    def layers(self) -> nn.ModuleList:
        return self.owner.layers

    @property
    def backbone(self) -> nn.Module:
        """The model without its language-model head: embeddings, layers, final norm."""
        return self.model.base_model

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[…, vocabulary] of the backbone's states […, hidden_size]: the head, and Gemma's soft cap."""
        logits = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def __len__(self) -> int:
        return len(self.layers)


def layer_output(output: object) -> object:
    """The hidden state in what a decoder layer returns (some return a tuple that begins with it)."""
    return output[0] if isinstance(output, tuple) else output
