"""How well a model predicts without some of its layers or attentions: each candidate at the price of half a forward.

Layers before the removed ones don't notice, so one forward of the whole model gives the state from which each
candidate goes on. The model's own forward runs, with a stand-in for the layers up to there: masks, rotary
embeddings, final norm and head stay those of the architecture, and each layer keeps its position and so its type.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from greenprune.collect.hidden_states import watch_hidden_states
from greenprune.logs import Seldom
from greenprune.models.decoder import Decoder
from greenprune.models.hooks import Hooks
from greenprune.models.loss import total_loss
from greenprune.models.surgery import without_attention

log = logging.getLogger("greenprune")


def layer_perplexity(model: PreTrainedModel, tokens: Tensor, batch_size: int) -> dict[str, Tensor]:
    """`layer_perplexity` float64 [L]: perplexity over all tokens with each layer removed alone (Kim et al. 2024)."""
    alone = [range(layer, layer + 1) for layer in range(len(Decoder(model)))]
    return {"layer_perplexity": losses_without(model, tokens, alone, batch_size).exp()}


def losses_without(model: PreTrainedModel, tokens: Tensor, blocks: Sequence[range], batch_size: int = 1) -> Tensor:
    """Mean next-token cross-entropy with each block of contiguous layers removed. The model stays as it is.

    tokens: LongTensor [num_samples, seq_len >= 2], each sample predicted on its own. Returns float64
    [len(blocks)], in nats; inf where the rest of the model gives no finite loss. Holds the hidden states before
    every block for one batch of samples.
    """
    layers = list(Decoder(model).layers)
    return _losses(model, tokens, [(block.start, layers[block.stop :]) for block in blocks], batch_size)


def losses_without_attention(
    model: PreTrainedModel, tokens: Tensor, layers: Sequence[int], batch_size: int = 1
) -> Tensor:
    """As `losses_without`, with the attention sublayer of each of `layers` removed alone: float64 [len(layers)]."""
    decoder = Decoder(model)
    rests = [[without_attention(decoder.view(layer)), *decoder.layers[layer + 1 :]] for layer in layers]
    return _losses(model, tokens, list(zip(layers, rests, strict=True)), batch_size)


@torch.inference_mode()
def _losses(
    model: PreTrainedModel, tokens: Tensor, candidates: Sequence[tuple[int, Sequence[nn.Module]]], batch_size: int
) -> Tensor:
    """Of each candidate: the state before which layer it goes on from, and the last layers that run then."""
    decoder, training = Decoder(model), model.training
    totals = torch.zeros(len(candidates), dtype=torch.float64)
    started, lines = time.monotonic(), Seldom()
    model.eval()
    try:
        with decoder.one_at_a_time():
            for done, rows in enumerate(tokens.split(batch_size)):
                batch = rows.to(model.device)
                states = _states_before(decoder, batch, {start for start, _ in candidates})
                for index, (start, rest) in enumerate(candidates):
                    with decoder.running([*[_Given(states[start])] * (len(decoder) - len(rest)), *rest]):
                        totals[index] += total_loss(model, batch)
                    if lines.due():
                        share = (done + (index + 1) / len(candidates)) / math.ceil(len(tokens) / batch_size)
                        log.info("removing layers in turn: %.0f %% after %.0f s", 100 * share, lines.last - started)
    finally:
        model.train(training)
    losses = totals / (tokens.shape[0] * (tokens.shape[1] - 1))
    return losses.nan_to_num(nan=math.inf, posinf=math.inf)


def _states_before(decoder: Decoder, batch: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
    """The inputs h^l of the asked layers."""
    states: dict[int, Tensor] = {}

    def see(layer: int, hidden: Tensor) -> None:
        if layer in layers:
            states[layer] = hidden

    with Hooks() as hooks:
        watch_hidden_states(decoder, see, hooks)
        decoder.backbone(input_ids=batch, use_cache=False)
    return states


class _Given(nn.Module):
    """A decoder layer whose output is known."""

    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.state = state

    def forward(self, *_: object, **__: object) -> Tensor:
        return self.state
