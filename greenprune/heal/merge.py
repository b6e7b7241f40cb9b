"""Adapters into the weights; what a mask made zero stays zero.

An adapter's update is dense, so merging refills the zeros of a masked model. They are put back one matrix after the
other, which costs the memory of one mask. Training doesn't know the mask: what the update had learnt to do there
is lost, and `loss_merged` beside `loss_end` shows how much that was.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from greenprune.models import Decoder


@torch.no_grad()
def merged(adapted: PeftModel) -> PreTrainedModel:
    """The model with its adapters merged. Of one with `config.pruning_mask` every zero in an adapted matrix stays."""
    if getattr(adapted.config, "pruning_mask", None) is None:
        return adapted.merge_and_unload()
    before = _zeros(adapted.get_base_model())
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            zeros = module.weight == 0
            module.merge()
            module.weight.masked_fill_(zeros, 0)
    model = adapted.unload()
    assert _zeros(model) >= before, "merging keeps the sparsity"
    return model


def _zeros(model: PreTrainedModel) -> int:
    """Zeros in the decoder's matrices, adapters left out."""
    decoder = Decoder(model)
    matrices = [linear.weight for layer in range(len(decoder)) for linear in decoder.view(layer).linears.values()]
    return sum(weight.numel() - int(weight.count_nonzero()) for weight in matrices)
