"""2SSP: what its formula gives, and both of its choices against brute force."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import TOKENS, random_model

from greenprune import PruneConfig, prune
from greenprune.errors import ConfigError, ModelError
from greenprune.models import Decoder
from greenprune.models.loss import mean_loss
from greenprune.prune.two_stage import attentions_to_remove, channel_sizes


@pytest.mark.parametrize(
    ("layers", "ratio", "mlp", "attention", "alpha", "removed"),
    [
        (32, 0.5, 3, 1, 1.5, 8),  # 32 * 0.5²
        (32, 0.25, 3, 1, 1.5, 2),
        (30, 0.2, 3, 1, 1.5, 1),  # 30 * 0.04
        (32, 0.5, 2, 1, 2.0, 16),  # 32 * 0.5
    ],
)
def test_how_many_attentions_go(layers, ratio, mlp, attention, alpha, removed):
    assert attentions_to_remove(layers, ratio, mlp, attention, alpha) == removed


def test_a_channel_counts_by_the_norm_over_tokens_added_up_over_samples():
    values = torch.tensor([[[3.0, 0.0], [4.0, 0.0]], [[0.0, 6.0], [0.0, 8.0]]])  # [2 samples, 2 tokens, 2 channels]
    assert channel_sizes(values).tolist() == [5.0, 10.0]
    assert channel_sizes(values[:1]).tolist() == [5.0, 0.0]


def test_both_choices_are_those_of_brute_force():
    model = random_model("llama")
    dense = copy.deepcopy(model)
    report = prune(model, PruneConfig(method="two_stage", ratio=0.3, alpha=20), calibration=TOKENS)

    for layer, kept in report.kept_channels.items():
        inputs: list[torch.Tensor] = []
        down = Decoder(dense).view(layer).down
        handle = down.register_forward_pre_hook(lambda _, args, seen=inputs: seen.append(args[0]))
        with torch.no_grad():
            dense(TOKENS)
        handle.remove()
        sizes = inputs[0].double().square().sum(dim=1).sqrt().sum(dim=0)
        assert kept == sorted(sizes.topk(len(kept)).indices.tolist())

    narrow = copy.deepcopy(dense)
    for layer, kept in report.kept_channels.items():
        gone = sorted(set(range(Decoder(dense).view(layer).channels)) - set(kept))
        with torch.no_grad():
            Decoder(narrow).view(layer).down.weight[:, gone] = 0
    without: list[int] = []
    for _ in range(sum(not heads for heads in report.kept_heads.values())):
        losses = {}
        for layer in set(range(len(Decoder(dense)))) - set(without):
            candidate = copy.deepcopy(narrow)
            for other in (*without, layer):
                torch.nn.init.zeros_(Decoder(candidate).view(other).out.weight)
            losses[layer] = mean_loss(candidate, TOKENS[:1])
        without.append(min(losses, key=losses.__getitem__))
    assert len(without) > 1
    assert sorted(without) == [layer for layer, heads in report.kept_heads.items() if not heads]


def test_a_layer_without_attention_is_not_narrowed_again():
    model = random_model("llama")
    prune(model, PruneConfig(method="two_stage", ratio=0.3, alpha=20), calibration=TOKENS)
    with pytest.raises(ModelError, match="heads can be pruned where every layer has attention"):
        prune(model, PruneConfig(method="wanda_sp", ratio=0.1), calibration=TOKENS)


def test_a_ratio_out_of_reach_is_refused_before_anything_changes():
    model = random_model("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=r"prune.ratio must be at most 0\.\d\d here"):
        prune(model, PruneConfig(method="two_stage", ratio=0.95, alpha=0.1), calibration=TOKENS)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
