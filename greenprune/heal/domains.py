"""Dynamic batch loading: which of several named texts (heal.domains) a block of training is from.

All begin with equal shares. Behind every validation the share of a domain is multiplied by exp(excess), where excess is
how much its validation loss lies above the dense model's, and 0 below; then shares sum to 1 again. So a step reads more
of what pruning took most from.

The shares stand in the Trainer's log, which every checkpoint keeps, and all else follows from the seed: a run that
resumes reads on as if undisturbed.

Source: Xia et al. 2023 (Sheared LLaMA), arXiv:2310.06694, algorithm 1, with the dense model's loss as the reference;
as in the authors' repository, a small equal share stays with every domain.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Mapping
from itertools import accumulate
from math import exp
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from greenprune.config import TextHealing
from greenprune.data import drawn_in_passes

SHARED_EQUALLY = 1e-4
LOSSES, SHARES = "eval_losses", "shares"  # of an entry of the Trainer's log: of each domain, and from then on

Shares = dict[str, float]


def new_shares(shares: Shares, losses: Mapping[str, float], dense: Mapping[str, float]) -> Shares:
    """What the shares become where the domains' losses are so, and the dense model's are `dense`; in nats a token."""
    raised = {name: share * exp(max(0.0, losses[name] - dense[name])) for name, share in shares.items()}
    total, equal = sum(raised.values()), SHARED_EQUALLY / len(shares)
    return {name: (1 - SHARED_EQUALLY) * share / total + equal for name, share in raised.items()}


class DomainOrder(TrainerCallback):
    """The number of the block at each place of training, known once the validation before it has ended.

    Blocks stand one domain behind the other, `pool` of each. dense: the dense model's validation loss by domain.
    A step's first batch is read while the step before it runs, so its shares are those behind the last validation
    that had ended by then.
    """

    def __init__(self, pool: int, dense: Mapping[str, float], config: TextHealing) -> None:
        self.names, self.dense = list(config.domains), dense
        self.step_blocks = config.blocks // config.num_steps
        self.length = config.blocks
        generator = torch.Generator().manual_seed(config.seed)
        self.unread = [iter(drawn_in_passes(pool, config.blocks, generator).tolist()) for _ in self.names]
        self.pool, self.random = pool, random.Random(config.seed)
        self.chosen: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> int:
        if place >= self.length:
            raise IndexError(place)
        while len(self.chosen) <= place:
            self._choose(len(self.chosen) // self.step_blocks)
        return self.chosen[place]

    def _choose(self, step: int) -> None:
        """The blocks of the step behind `step` others."""
        shares = self._shares(step)
        bounds = list(accumulate(shares[name] for name in self.names))  # the log of a checkpoint has another order
        for _ in range(self.step_blocks):
            domain = min(bisect(bounds, self.random.random()), len(self.names) - 1)  # the sum may end just below 1
            self.chosen.append(domain * self.pool + next(self.unread[domain]))

    def _shares(self, step: int) -> Shares:
        """Behind the last validation before `step`; equal ones where there was none."""
        for entry in reversed(self.log):
            if SHARES in entry and entry["step"] < step:
                return entry[SHARES]
        return dict.fromkeys(self.names, 1 / len(self.names))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.log = state.log_history

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if LOSSES in logs:
            entry, before = self.log[-1], self._shares(state.global_step)
            entry[SHARES] = new_shares(before, logs[LOSSES], self.dense) if state.global_step else before
