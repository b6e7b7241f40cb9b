"""Masks between 0 and 1 that can be learned, and come to hold an exact number of units (Louizos et al. 2018).

A mask is a row of units, each with a log α. A sample is a stretched sigmoid of log α and noise, clipped, so that it is
exactly 0 or 1 most of the time and has a gradient otherwise. That as many units stay as wanted, a Lagrangian sees to:
its multipliers rise as long as the expected number is off.

Source: Louizos et al. 2018, arXiv:1712.01312, section 2; limits, temperature and the Lagrangian: Xia et al. 2023
(Sheared LLaMA), arXiv:2310.06694, section 2.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LOW, HIGH = -0.1, 1.1  # of the stretched sigmoid
TEMPERATURE = 2 / 3
FIRST_SQUARE = 10.0  # the multiplier of the constraint's square at first: with 0 the share swings about what is wanted
LOG_ALPHA_LIMIT = math.log(100)  # of log α, either way
UNDECIDED = 0.05  # of the units, on either side of the border where masks begin by importance
NO_NOISE = 1e-6  # noise is uniform between it and 1 less it


class HardConcrete(nn.Module):
    """Rows of masks, of each of which `kept` units are to stay.

    multipliers: [2, rows], of the constraint and of its square; they ascend.
    """

    def __init__(self, rows: int, units: int, kept: int) -> None:
        super().__init__()
        self.kept = kept
        self.log_alpha = nn.Parameter(torch.full((rows, units), LOG_ALPHA_LIMIT))
        self.multipliers = nn.Parameter(torch.tensor([[0.0], [FIRST_SQUARE]]).repeat(1, rows))

    @torch.no_grad()
    def begin(self, importance: Tensor) -> None:
        """The `kept` most important units of each row stay, the others go, and those beside the border are undecided.

        importance: [rows, units].
        """
        units = importance.shape[1]
        ranks = importance.argsort(dim=1, descending=True).argsort(dim=1)
        inside = (self.kept - 0.5 - ranks) / max(0.5, UNDECIDED * units)
        if self.kept < units:
            self.log_alpha.copy_(inside.clamp(-1, 1) * LOG_ALPHA_LIMIT)

    def sample(self, random: torch.Generator) -> Tensor:
        """Masks in [0, 1], [rows, units], with a gradient to log α."""
        noise = torch.rand(self.log_alpha.shape, generator=random).clamp(NO_NOISE, 1 - NO_NOISE)
        return _clipped((noise.logit().to(self.log_alpha) + self.log_alpha) / TEMPERATURE)

    def certain(self) -> Tensor:
        """Without noise: 0 but for the `kept` units of the largest log α of each row; these between 0 and 1."""
        return self.chosen() * _clipped(self.log_alpha.detach() / TEMPERATURE)

    def chosen(self) -> Tensor:
        """1 for the units of `best`, 0 for the others, [rows, units]."""
        return torch.zeros_like(self.log_alpha).scatter(1, self.best(), 1.0)

    def best(self) -> Tensor:
        """The `kept` units of the largest log α of each row, ascending; of equals the first. long [rows, kept]."""
        order = self.log_alpha.detach().argsort(dim=1, descending=True, stable=True)
        return order[:, : self.kept].sort(dim=1).values

    def expected_share(self) -> Tensor:
        """Which share of each row's units isn't 0 in a sample, [rows]."""
        return torch.sigmoid(self.log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).mean(dim=1)

    def penalty(self, progress: float) -> Tensor:
        """The Lagrangian of `kept` units a row, [], to be lowered by log α and raised by the multipliers.

        progress: how far the wanted share has come from all to `kept`, 0 to 1.
        """
        units = self.log_alpha.shape[1]
        off = self.expected_share() - (1 - progress * (1 - self.kept / units))
        return (self.multipliers[0] * off + self.multipliers[1] * off.square()).sum()

    @torch.no_grad()
    def clamp(self) -> None:
        self.log_alpha.clamp_(-LOG_ALPHA_LIMIT, LOG_ALPHA_LIMIT)


def _clipped(logits: Tensor) -> Tensor:
    return (torch.sigmoid(logits) * (HIGH - LOW) + LOW).clamp(0, 1)
