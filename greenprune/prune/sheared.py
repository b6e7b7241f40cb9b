"""Sheared LLaMA: masks over layers, heads, channels and hidden dimensions learned to an exact shape (Xia et al. 2023).

Every unit has a hard concrete mask. Masks and weights learn together to predict the calibration text, while a
Lagrangian brings the number of units of each mask to the shape that is asked for. Then the units of the largest masks
stay, for which the weights learn on their own at the end; masks of heads and channels are folded into the weights.

A mask acts where cutting its units will act: heads and channels on what the output projections read, layers on what
attention and MLP give to the residual stream, hidden dimensions on all that is written to the stream; norms then divide
by the size of what is left.

On purpose different from the original (princeton-nlp/LLM-Shearing): the calibration text is the training text, gone
through as often as the steps need; with grouped-query attention each KV group keeps equally many query heads, or with
`heads: kv_group` whole groups go; layers and hidden dimensions end as 0 or 1, for norms and a tied head can't hold what
is between. And for hundreds of steps in place of thousands: masks begin near the shape, by importance (`mask_start`),
and the Lagrangian is augmented: its square counts from the start, its multipliers ascend by their plain gradient. The
original's, by Adam from 0, swing about the shape until the order of the units is lost at the ends of log α.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from greenprune.config import ShearedPruning
from greenprune.data import drawn_in_passes
from greenprune.errors import ConfigError, ModelError
from greenprune.logs import Seldom
from greenprune.models.decoder import Decoder, of_one_width
from greenprune.models.hooks import Hooks
from greenprune.models.in_files import MARK
from greenprune.models.loss import LOGITS_AT_ONCE, cross_entropy
from greenprune.models.stock_form import fit_class_and_config
from greenprune.models.surgery import keep_channels, keep_heads, keep_hidden, remove_layers
from greenprune.prune import Calibration, Removed
from greenprune.prune.hard_concrete import HardConcrete

log = logging.getLogger("greenprune")

IMPORTANCE_SHARE = 0.1  # of the steps, that say where masks begin; nothing learns in them
PIECE = 32  # tokens
TARGET_WARM_UP = 0.2  # of the steps, until the wanted shape is the final one, where masks begin with everything
SETTLED_SHARE = 0.6  # of the steps, at the end, in which weights learn under the masks that will be cut
RATE_WARM_UP = 0.1  # of the steps, until the weights' learning rate is the whole one

# --------------------------------------------------------------------------------------------------- masks


@dataclass(frozen=True)
class Whole:
    """What a decoder has before it is pruned; heads of a row are those that leave or stay one by one."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    channels: int
    hidden: int


class ShapeMasks:
    """A mask for each dimension of `targets`; the others stay whole."""

    def __init__(self, whole: Whole, config: ShearedPruning) -> None:
        self.whole = whole
        group = whole.heads // whole.kv_heads
        self.by_group = config.heads == "kv_group" or group == 1
        wanted = config.targets
        kinds = {
            "layers": lambda kept: HardConcrete(1, whole.layers, kept),
            "heads": lambda kept: (
                HardConcrete(whole.layers, whole.kv_heads, kept // group)
                if self.by_group
                else HardConcrete(whole.layers * whole.kv_heads, group, kept // whole.kv_heads)
            ),
            "ffn": lambda kept: HardConcrete(whole.layers, whole.channels, kept),
            "hidden": lambda kept: HardConcrete(1, whole.hidden, kept),
        }
        self.masks = nn.ModuleDict({name: kinds[name](kept) for name, kept in wanted.items()})
        self.now: dict[str, Tensor] = {}

    def sample(self, random: torch.Generator) -> None:
        """What the hooks multiply by, from now on."""
        self.now = {name: mask.sample(random) for name, mask in self.masks.items()}

    def settled(self) -> dict[str, Tensor]:
        """What is cut: 0, and for heads and channels, whose weights take masks up, what is between 0 and 1."""
        return {
            name: mask.certain() if name in ("heads", "ffn") else mask.chosen() for name, mask in self.masks.items()
        }

    def penalty(self, progress: float) -> Tensor:
        return torch.stack([mask.penalty(progress) for mask in self.masks.values()]).sum()

    def head_columns(self, masks: Tensor, layer: int) -> Tensor:
        """Of a layer, from masks of all: one number for each input of attention's output projection."""
        whole = self.whole
        if self.by_group:
            heads = masks[layer].repeat_interleave(whole.heads // whole.kv_heads)
        else:
            heads = masks.view(whole.layers, whole.heads)[layer]
        return heads.repeat_interleave(whole.head_dim)

    def kept_heads(self, layer: int) -> list[int]:
        columns = self.head_columns(self.masks["heads"].chosen(), layer)
        return columns.view(-1, self.whole.head_dim)[:, 0].nonzero().flatten().tolist()

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """A forward inside is masked by what `sample` gave last."""
        decoder = Decoder(model)
        embeddings = model.get_submodule(decoder.layout.embeddings)
        with Hooks() as hooks:
            if "hidden" in self.masks:
                hooks.after(embeddings, self._given(lambda: self.now["hidden"][0] * self._embedding_scale(embeddings)))
                self._watch_norm(model.get_submodule(decoder.layout.final_norm), hooks)
            for layer, view in enumerate(decoder.views()):
                self._watch(layer, view, hooks)
            yield

    def _watch(self, layer: int, view: Any, hooks: Hooks) -> None:
        if "heads" in self.masks:
            hooks.before(view.out, _read(lambda: self.head_columns(self.now["heads"], layer)))
        if "ffn" in self.masks:
            hooks.before(view.down, _read(lambda: self.now["ffn"][layer]))
        if "hidden" in self.masks:
            for linear in (view.out, view.down):
                hooks.after(linear, self._given(lambda: self.now["hidden"][0]))
            for norm in view.norms.values():
                self._watch_norm(norm, hooks)
        if "layers" in self.masks:
            output_norms = [view.module.get_submodule(path) for path in view.layout.output_norms]
            for writes in output_norms or (view.out, view.down):
                hooks.after(writes, self._given(lambda: self.now["layers"][0, layer]))

    def _watch_norm(self, norm: nn.Module, hooks: Hooks) -> None:
        """Its mean is over all dimensions; once masked ones are cut, over the rest."""
        hooks.before(norm, _read(lambda: 1 / self._norm_scale()))
        hooks.after(norm, self._given(self._norm_scale))

    def _norm_scale(self) -> Tensor:
        return (self.now["hidden"][0].detach() > 0).float().mean().sqrt()

    def _embedding_scale(self, embeddings: nn.Module) -> Tensor | float:
        """Gemma multiplies embeddings by the square root of the hidden size (surgery.keep_hidden)."""
        return self._norm_scale() if hasattr(embeddings, "embed_scale") else 1.0

    @staticmethod
    def _given(factor: Callable[[], Tensor]) -> Callable[..., Tensor]:
        return lambda _, __, output: output * factor().to(output)


def _read(factor: Callable[[], Tensor]) -> Callable[..., tuple[Any, dict[str, Any]]]:
    return lambda _, args, kwargs: ((args[0] * factor().to(args[0]), *args[1:]), kwargs)


# ------------------------------------------------------------------------------------------------- wiring


def prune_sheared(model: PreTrainedModel, config: ShearedPruning, calibration: Calibration) -> Removed:
    if any(hasattr(parameter, MARK) for parameter in model.parameters()):
        raise ModelError(
            "sheared trains the whole model, which must be in memory, got one that stays in its files; take a machine "
            "with more memory or another method"
        )
    whole = checked_whole(model, config)
    masks = ShapeMasks(whole, config)
    masks.masks.to(model.device)
    before, after = learn(model, masks, config, calibration)
    return cut(model, masks, f"masks learned in {config.steps} steps: loss {before:.3f}, at the end {after:.3f}")


def checked_whole(model: PreTrainedModel, config: ShearedPruning) -> Whole:
    """Raises ConfigError for a shape that the model can't be given."""
    decoder = Decoder(model)
    views = decoder.views()
    if not of_one_width(views):
        raise ConfigError("sheared needs layers of one width, got a model whose layers differ; let it come first")
    first, hidden = views[0], model.get_input_embeddings().embedding_dim
    whole = Whole(len(views), first.heads, first.kv_heads, first.head_dim, first.channels, hidden)
    if "hidden" in config.targets and decoder.layout.head_dim_from_hidden:
        raise ConfigError(
            "the hidden size can be pruned where the size of a head is a setting of its own, got "
            f"{model.config.model_type}, which derives it from the hidden size; leave prune.targets.hidden out"
        )
    group = whole.heads // whole.kv_heads
    steps = {"heads": group if config.heads == "kv_group" or group == 1 else whole.kv_heads}
    now = {"layers": whole.layers, "heads": whole.heads, "ffn": whole.channels, "hidden": hidden}
    for name, wanted in config.targets.items():
        step = steps.get(name, 1)
        if not 0 < wanted <= now[name] or wanted % step:
            raise ConfigError(f"prune.targets.{name} must be one of {step}, {2 * step}, … {now[name]}, got {wanted}")
    return whole


def learn(
    model: PreTrainedModel, masks: ShapeMasks, config: ShearedPruning, calibration: Calibration
) -> tuple[float, float]:
    """Train masks and weights; gives the loss of the first and the last tenth of the steps. Raises ModelError."""
    tokens, random = calibration.required_tokens(), torch.Generator().manual_seed(config.seed)
    first = importance_steps(config)
    before = [(parameter.dtype, parameter.requires_grad) for parameter in model.parameters()]
    for parameter in model.parameters():  # not the buffers: rotary frequencies have a dtype of their own
        parameter.data = parameter.data.float()
        parameter.requires_grad_(config.learning_rate > 0)
    optimizers = mask_optimizers(masks.masks, config.mask_learning_rate)
    if config.learning_rate:
        weights = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(weights, lambda step: rate(step, config.steps - first))
        optimizers.append(weights)
    losses, lines, order = [], Seldom(), drawn_in_passes(len(tokens), config.steps * config.batch_size, random)
    batches = [tokens[rows].to(model.device) for rows in order.split(config.batch_size)]
    last = config.steps - round(SETTLED_SHARE * config.steps) if config.learning_rate else config.steps
    with masks.on(model), torch.enable_grad():
        if first:
            begin_by_importance(model, masks, batches[:first])
        for step, ids in enumerate(batches[first:], first):
            if step == last:
                optimizers, masks.now = optimizers[-1:], masks.settled()
            elif step < last:
                masks.sample(random)
            loss = mean_next_token_loss(model, ids)
            progress = 1.0 if first else min(1.0, (step + 1) / (TARGET_WARM_UP * config.steps))
            (loss + masks.penalty(progress) if step < last else loss).backward()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ModelError(
                    f"the loss must stay finite while masks are learned, got {losses[-1]} in step {step + 1}; lower "
                    "prune.learning_rate"
                )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if config.learning_rate:
                schedule.step()
            for mask in masks.masks.values():
                mask.clamp()
            if lines.due():
                log.info("masks: step %d of %d, loss %.3f", step + 1, config.steps, losses[-1])
    for parameter, (dtype, requires_grad) in zip(model.parameters(), before, strict=True):
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(requires_grad)
    tenth = max(1, len(losses) // 10)
    return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


def mask_optimizers(masks: nn.ModuleDict, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Log α goes down the loss and the penalty, the multipliers go up the penalty by its plain gradient."""
    return [
        torch.optim.Adam((mask.log_alpha for mask in masks.values()), lr=learning_rate),
        torch.optim.SGD((mask.multipliers for mask in masks.values()), lr=1.0, maximize=True),
    ]


def importance_steps(config: ShearedPruning) -> int:
    """How many of the steps only say where masks begin."""
    wanted = max(1, round(IMPORTANCE_SHARE * config.steps)) if config.mask_start == "importance" else 0
    return min(wanted, config.steps - 1)


def begin_by_importance(model: PreTrainedModel, masks: ShapeMasks, batches: list[Tensor]) -> None:
    """Set where masks begin: a unit's importance is the loss's squared gradient by its mask, which is 1.

    batches: LongTensors [batch_size, seq_len], taken in pieces of PIECE tokens, whose squares are added up (the Fisher
    information of a gate: Molchanov et al. 2019, arXiv:1906.10771): so few tokens give many samples. Weights get no
    gradient.
    """
    whole = {name: torch.ones_like(mask.log_alpha, requires_grad=True) for name, mask in masks.masks.items()}
    importance = {name: torch.zeros_like(ones) for name, ones in whole.items()}
    masks.now = whole
    pieces, lines = [piece for ids in batches for row in ids.split(1) for piece in row.split(PIECE, dim=1)], Seldom()
    for number, piece in enumerate(pieces):
        if lines.due():
            log.info("masks: importance, piece %d of %d", number, len(pieces))
        if piece.shape[1] > 1:
            gradients = torch.autograd.grad(mean_next_token_loss(model, piece), [*whole.values()])
            for name, gradient in zip(whole, gradients, strict=True):
                importance[name] += gradient.square()
    for name, mask in masks.masks.items():
        mask.begin(importance[name])


def rate(step: int, steps: int) -> float:
    """The share of the learning rate: up over RATE_WARM_UP of the steps, then down to 0, linearly."""
    up = RATE_WARM_UP * steps
    return min(1.0, (step + 1) / up, (steps - step) / (steps - up)) if up >= 1 else (steps - step) / steps


def mean_next_token_loss(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Mean cross-entropy with a gradient, []; logits are made piece by piece, and once more in the backward pass."""
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    size = max(1, LOGITS_AT_ONCE // (model.config.get_text_config().vocab_size * len(ids)))

    def piece(states: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(Decoder(model).logits(states), targets)

    total = sum(
        checkpoint(piece, hidden[:, start : start + size], ids[:, 1 + start : 1 + start + size], use_reentrant=False)
        for start in range(0, hidden.shape[1], size)
    )
    return total / ids[:, 1:].numel()


@torch.no_grad()
def cut(model: PreTrainedModel, masks: ShapeMasks, note: str) -> Removed:
    """Fold the masks of what stays into the weights, and take the rest away."""
    decoder, whole, notes, settled = Decoder(model), masks.whole, [note], masks.settled()
    by_name: dict[str, Any] = dict(masks.masks.items())
    layers = by_name["layers"].best()[0].tolist() if "layers" in by_name else list(range(whole.layers))
    heads, channels = {}, {}
    for layer in layers:
        view = decoder.view(layer)
        heads[layer], channels[layer] = list(range(whole.heads)), list(range(whole.channels))
        if "heads" in by_name:
            view.out.weight.mul_(masks.head_columns(settled["heads"], layer))
            heads[layer] = masks.kept_heads(layer)
            keep_heads(model, layer, heads[layer])
        if "ffn" in by_name:
            view.down.weight.mul_(settled["ffn"][layer])
            channels[layer] = by_name["ffn"].best()[layer].tolist()
            keep_channels(model, layer, channels[layer])
    if "hidden" in by_name:
        keep_hidden(model, by_name["hidden"].best()[0].tolist())
        notes.append(f"hidden size {whole.hidden} became {by_name['hidden'].kept}")
    removed = sorted(set(range(whole.layers)) - set(layers))
    if removed:
        remove_layers(model, removed)
    fit_class_and_config(model)
    return Removed(layers_removed=removed, kept_heads=heads, kept_channels=channels, notes=notes)
