"""How badly a model predicts text: next-token cross-entropy, in nats, taken in fp32 whatever the model's dtype. And how
far its states are from another's.

All logits of a forward would be its largest tensor (1 GiB for 2048 tokens of a 128k vocabulary), so they are made for
some positions at a time, with a gradient too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from greenprune.models.architectures import ARCHITECTURES
from greenprune.models.decoder import LOGITS_AT_ONCE, Decoder


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over all positions. logits [batch, positions, vocabulary]; targets [batch, positions]: what came."""
    targets = targets.flatten().to(logits.device)  # the head may be on another GPU than the tokens
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum")


def relative_error(states: Tensor, wanted: Tensor) -> Tensor:
    """Mean over tokens of ||states - wanted||² / ||wanted||². [..., hidden] -> []."""
    wanted = wanted.float()
    sizes = wanted.square().sum(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return ((states.float() - wanted).square().sum(dim=-1) / sizes).mean()


def total_loss(model: PreTrainedModel, ids: Tensor) -> float:
    """Sum of the cross-entropies of all next tokens of `ids` [batch, seq_len]."""
    total, begin = 0.0, 1
    for logits in next_token_logits(model, ids):
        end = begin + logits.shape[1]
        total, begin = total + cross_entropy(logits, ids[:, begin:end]).item(), end
    assert begin == ids.shape[1], "each token but the first is a target once"
    return total


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, blocks: Tensor, batch_size: int = 1) -> float:
    """Mean over all next tokens of `blocks` [n, seq_len >= 2], in evaluation mode; batch_size: blocks a forward."""
    training = model.training
    model.eval()
    try:
        total = sum(total_loss(model, batch.to(model.device)) for batch in blocks.split(batch_size))
    finally:
        model.train(training)
    return total / (blocks.shape[0] * (blocks.shape[1] - 1))


def loss_gradient(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the sum of cross-entropies, by the backbone's states that predict the targets.

    hidden [batch, positions, hidden_size]; targets [batch, positions]. Returns a tensor like `hidden`.
    """
    gradient = torch.empty_like(hidden)
    for piece in _pieces(model, hidden):
        with torch.enable_grad():
            states = hidden[:, piece].detach().requires_grad_()
            loss = cross_entropy(Decoder(model).logits(states), targets[:, piece])
        (gradient[:, piece],) = torch.autograd.grad(loss, states)
    return gradient


def _pieces(model: PreTrainedModel, hidden: Tensor) -> list[slice]:
    """The positions of states [batch, positions, …], in pieces of LOGITS_AT_ONCE logits at most."""
    batch, positions = hidden.shape[:2]
    vocabulary = model.config.get_text_config().vocab_size
    size = max(1, LOGITS_AT_ONCE // (vocabulary * max(1, batch)))
    return [slice(start, start + size) for start in range(0, positions, size)]


def next_token_logits(model: PreTrainedModel, ids: Tensor) -> Iterator[Tensor]:
    """The logits that predict tokens 1, 2, …, in pieces [batch, some positions, vocabulary]."""
    if model.get_output_embeddings() is None or model.config.model_type not in ARCHITECTURES:
        yield model(input_ids=ids, use_cache=False).logits[:, :-1]
        return
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    for piece in _pieces(model, hidden):
        yield Decoder(model).logits(hidden[:, piece])
