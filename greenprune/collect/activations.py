"""Statistics of what attention output and MLP down projections read, a value for each input channel.

These inputs are what heads and MLP channels give; removing one removes its columns, so scores of width pruning
(FLAP, Wanda-sp, Minitron) are made of them. Sums of squares are formed around each batch's mean and put
together in float64: a variance far below the squared mean survives, in half precision too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from greenprune.collect.forward import WatchedBatch
from greenprune.models.decoder import Decoder, LayerView
from greenprune.models.hooks import Hooks

# -------------------------------------------------------------------------------------------------- maths


def centred_sums(values: Tensor) -> Tensor:
    """A centre c near the mean, sum of (x - c), sum of (x - c)^2. values [N, d] -> float32 [3, d]."""
    values = values.float()
    centre = values.mean(dim=0)
    deviations = values - centre
    first = deviations.sum(dim=0)
    return torch.stack([centre, first, deviations.square_().sum(dim=0)])


def plain_sums(centred: Tensor, count: int) -> Tensor:
    """Sum of x and sum of x^2 from `centred_sums` of `count` values. [3, d] -> float64 [2, d]."""
    centre, first, second = centred.double()
    return torch.stack([count * centre + first, second + 2 * centre * first + count * centre.square()])


def squared_mean_sizes(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Sum over samples of (mean over the sequence of |x|)^2. values [B, T, d], valid bool [B, T] -> [d].

    Muralidharan et al. 2024 (Minitron), section 2.2: mean over the sequence, L2 norm over the batch.
    """
    sizes = values.float().abs()
    if valid is None:
        means = sizes.mean(dim=1)
    else:
        count = valid.sum(dim=1).clamp(min=1)[:, None]  # a sample that doesn't count has no valid token
        means = (sizes * valid[..., None]).sum(dim=1) / count
    return means.square_().sum(dim=0)


# ------------------------------------------------------------------------------------------------- wiring


class Activations:
    """Watches the inputs of both output projections and the outputs of both norms of every layer.

    Layers of a model that was pruned before may differ in width: rows are as long as the widest layer's, and
    those of narrower layers end in NaN.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.sums: list[Tensor] = []
        self.seen: list[tuple[Tensor, Tensor]] = []  # where to add what, once the batch has run

    def attach(self, decoder: Decoder, hooks: Hooks) -> None:
        views = decoder.views()
        if not self.sums:
            self._allocate(views)
        for layer, view in enumerate(views):
            outputs = {"mlp": view.down} | ({"attention": view.out} if view.attends else {})
            for part, linear in outputs.items():
                hooks.before(linear, self._before(self.inputs[part][layer]))
            for position, norm in enumerate((view.input_norm, view.mlp_norm)):
                hooks.after(norm, self._after(self.normed[layer, position]))

    @torch.inference_mode(False)  # a reduction over workers writes into the sums when the pass is over
    def _allocate(self, views: list[LayerView]) -> None:
        self.widths = {
            "attention": [view.heads * view.head_dim for view in views],
            "mlp": [view.down.in_features for view in views],
        }
        # [L, 3, widest]: sum of x, sum of x^2, Minitron's squared means
        self.inputs = {
            part: torch.zeros(self.layers, 3, max(widths), dtype=torch.float64) for part, widths in self.widths.items()
        }
        self.normed = torch.zeros(self.layers, 2, views[0].down.out_features, dtype=torch.float64)
        self.sums = [*self.inputs.values(), self.normed]

    def begin(self, batch: WatchedBatch) -> None:
        self.batch, self.seen = batch, []
        self.valid = None if batch.whole else batch.valid

    def _before(self, total: Tensor) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], __: dict[str, Any]) -> None:
            values = self._by_sample(args[0])
            sums = centred_sums(self.batch.counted(values))
            self.seen.append((total, torch.cat([sums, squared_mean_sizes(values, self.valid)[None]])))

        return hook

    def _after(self, total: Tensor) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            self.seen.append((total, squared_mean_sizes(self._by_sample(output), self.valid)))

        return hook

    def _by_sample(self, values: Tensor) -> Tensor:
        """[B, T, d]; OPT runs its MLP on [B * T, d]."""
        return values.reshape(*self.batch.tokens.shape, values.shape[-1])

    def end(self, batch: WatchedBatch) -> None:
        count = int(batch.valid.sum())
        for total, seen in self.seen if count else ():
            values = seen.cpu()
            if values.dim() == 2:
                values = torch.cat([plain_sums(values[:3], count), values[3:].double()])
            total[..., : values.shape[-1]] += values
        self.seen = []

    def tensors(self, num_samples: int, num_tokens: int) -> dict[str, Tensor]:
        made = {"hidden.minitron": self.normed.sqrt().sum(dim=(0, 1))}
        for part, sums in self.inputs.items():
            total, squares, sizes = sums.unbind(dim=1)
            mean = total / num_tokens
            made |= {
                f"{part}.mean": mean,
                f"{part}.variance": (squares / num_tokens - mean.square()).clamp(min=0),
                f"{part}.square_sum": squares.clone(),
                f"{part}.minitron": sizes.sqrt(),
            }
            for layer, width in enumerate(self.widths[part]):
                for name in ("mean", "variance", "square_sum", "minitron"):
                    made[f"{part}.{name}"][layer, width:] = torch.nan
        return made
