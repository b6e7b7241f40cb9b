"""What every option of a width-pruning method keeps, whatever it chooses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from architectures import TOKENS, assert_generates, assert_reloads, logits_of, random_model
from transformers import PreTrainedModel

from greenprune import PruneConfig, prune
from greenprune.models import Decoder
from greenprune.prune import PruneReport


@dataclass(frozen=True)
class Pruned:
    model: PreTrainedModel
    untouched: PreTrainedModel
    report: PruneReport
    prunable: list[int]


def widths(model: PreTrainedModel) -> list[tuple[int, int, int]]:
    """Query heads, KV heads and channels of each layer."""
    return [(view.heads, view.kv_heads, view.channels) for view in Decoder(model).views()]


def keeps_width_contract(config: PruneConfig, name: str, folder: Path) -> Pruned:
    """A random model pruned by a fifth, checked; and the one it was, for what is a method's own."""
    model, untouched = random_model(name), random_model(name)
    report = prune(model, config, calibration=TOKENS)
    prunable = list(config.prunable(6))

    assert report.ratio_reached == pytest.approx(0.2, abs=0.04)
    assert list(report.kept_heads) == list(report.kept_channels) == prunable
    for layer, (view, before) in enumerate(zip(Decoder(model).views(), Decoder(untouched).views(), strict=True)):
        if layer in prunable:
            assert view.heads == len(report.kept_heads[layer]) >= 1
            assert view.channels == len(report.kept_channels[layer]) >= 1
        else:
            states = view.module.state_dict(), before.module.state_dict()
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    if config.uniform:
        assert len(set(widths(model))) == 1

    again = random_model(name)
    assert prune(again, config, calibration=TOKENS) == report
    assert torch.equal(logits_of(again), logits_of(model))
    assert logits_of(model).isfinite().all()
    assert_generates(model)
    assert_reloads(model, folder, report.needs)
    return Pruned(model, untouched, report, prunable)
