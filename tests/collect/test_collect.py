"""The calibration pass: the maths by hand, then what it sees of a model."""

from __future__ import annotations

import math

import pytest
import torch
from architectures import ARCHITECTURES, TOKENS, logits_of, random_model

from greenprune.collect import STATISTICS, Statistic, Statistics, collect, removal
from greenprune.collect.forward import last_positions
from greenprune.collect.hidden_states import angular_distances, block_table
from greenprune.collect.removal import losses_without
from greenprune.collect.zero3 import collect_sharded
from greenprune.config import CalibrationConfig, ModelConfig
from greenprune.engines.perplexity import perplexity
from greenprune.errors import ConfigError
from greenprune.models import remove_layers

BOTH = {"angular", "bi"}


def test_angular_distance_by_hand():
    # one sample, three states in the plane: 0, 90 and 180 degrees
    states = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[-3.0, 0.0]]])
    pairs = angular_distances(states)[..., 0]
    expected = torch.tensor([[0.0, 0.5, 1.0], [0.5, 0.0, 0.5], [1.0, 0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(pairs, expected)


def test_block_table_by_hand():
    pairs = torch.tensor([[0.0, 0.5, 1.0], [0.5, 0.0, 0.25], [1.0, 0.25, 0.0]], dtype=torch.float64)
    table = block_table(pairs)
    assert table[0].tolist() == [0.5, 0.25]  # blocks of one layer, starting at 0 and 1
    assert table[1, 0] == 1.0  # the block of both
    assert math.isnan(table[1, 1])


def test_last_real_token():
    valid = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    assert last_positions(valid).tolist() == [1, 3, 3]


def test_matches_hidden_states_of_transformers(tiny_model):
    tokens = torch.randint(3, 64, (5, 12), generator=torch.Generator().manual_seed(0))
    stats = collect(tiny_model, tokens, BOTH, batch_size=2)
    with torch.no_grad():
        states = list(tiny_model(tokens, output_hidden_states=True).hidden_states)
        # Transformers gives the last one after the final norm; take the layer's own output
        layer_inputs = {}
        hook = tiny_model.model.norm.register_forward_pre_hook(lambda _, args: layer_inputs.update(raw=args[0]))
        tiny_model(tokens)
        hook.remove()
    states[-1] = layer_inputs["raw"]
    for layer in range(4):
        cosine = torch.nn.functional.cosine_similarity(states[layer], states[layer + 1], dim=-1)
        assert stats.block_influence[layer].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-6)
    for n in range(1, 5):
        for start in range(4 - n + 1):
            a, b = states[start][:, -1].double(), states[start + n][:, -1].double()
            angle = torch.arccos(torch.nn.functional.cosine_similarity(a, b, dim=-1)) / math.pi
            assert stats.angular_distance[n - 1, start].item() == pytest.approx(angle.mean().item(), abs=1e-6)
    assert (stats.num_samples, stats.num_tokens) == (5, 60)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_counts(tiny_model, side):
    tokens = torch.randint(3, 64, (3, 10), generator=torch.Generator().manual_seed(0))
    plain = collect(tiny_model, tokens, BOTH)
    pad, ones = torch.full((3, 4), 7), torch.ones(3, 10, dtype=torch.long)
    if side == "left":
        padded, mask = torch.cat([pad, tokens], 1), torch.cat([0 * pad, ones], 1)
    else:
        padded, mask = torch.cat([tokens, pad], 1), torch.cat([ones, 0 * pad], 1)
    masked = collect(tiny_model, padded, BOTH, attention_mask=mask)
    torch.testing.assert_close(masked.angular_distance, plain.angular_distance, equal_nan=True, atol=1e-6, rtol=0)
    torch.testing.assert_close(masked.block_influence, plain.block_influence, atol=1e-6, rtol=0)
    assert masked.num_tokens == 30


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_batch_size_does_not_matter(tiny_model, batch_size):
    tokens = torch.randint(3, 64, (7, 10), generator=torch.Generator().manual_seed(0))
    one, many = collect(tiny_model, tokens, BOTH), collect(tiny_model, tokens, BOTH, batch_size=batch_size)
    torch.testing.assert_close(one.angular_distance, many.angular_distance, equal_nan=True, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.block_influence, many.block_influence, atol=1e-6, rtol=0)


def test_only_what_is_wanted(tiny_model):
    tokens = torch.randint(3, 64, (2, 8))
    assert collect(tiny_model, tokens, {"bi"}).angular_distance is None
    assert collect(tiny_model, tokens, {"angular"}).block_influence is None
    with pytest.raises(ConfigError, match="did you mean 'angular'"):
        collect(tiny_model, tokens, {"angula"})


def token_counts(model, tokens, batch_size):
    return {"token_counts": torch.bincount(tokens.flatten(), minlength=64)}


@pytest.fixture
def computed_statistic(monkeypatch):
    """A statistic that no forward pass shows."""
    monkeypatch.setitem(
        STATISTICS, "counts", Statistic("how often each token occurs", compute=f"{__name__}:token_counts")
    )


def test_computed_statistics_join_the_watched(tiny_model, computed_statistic):
    tokens = torch.randint(3, 64, (2, 8))
    stats = collect(tiny_model, tokens, {"bi", "counts"})
    assert stats.tensors.keys() == {"block_influence", "token_counts"}
    assert stats["token_counts"].sum() == 16
    alone = collect(tiny_model, tokens, {"counts"})
    assert alone.tensors.keys() == {"token_counts"}
    assert (alone.num_samples, alone.num_tokens) == (2, 16)


def test_computed_statistics_refuse_padding_and_shards(tiny_model, computed_statistic, tmp_path):
    tokens, mask = torch.randint(3, 64, (2, 8)), torch.ones(2, 8, dtype=torch.long)
    collect(tiny_model, tokens, {"counts"}, attention_mask=mask)
    mask[0, 0] = 0
    with pytest.raises(ConfigError, match="without padding for the statistics counts"):
        collect(tiny_model, tokens, {"bi", "counts"}, attention_mask=mask)
    with pytest.raises(ConfigError, match="num_workers must be 1 for the statistics counts"):
        collect_sharded(ModelConfig(id="x"), tokens, {"counts"}, CalibrationConfig(num_workers=2), str(tmp_path))


def test_hooks_are_gone_also_after_an_error(tiny_model):
    tokens = torch.randint(3, 64, (2, 8))
    collect(tiny_model, tokens, BOTH)
    with pytest.raises(IndexError):
        collect(tiny_model, tokens + 1000, BOTH)
    for layer in tiny_model.model.layers:
        assert not layer._forward_pre_hooks
        assert not layer._forward_hooks


def test_statistics_survive_the_disk(tmp_path, tiny_model):
    stats = collect(tiny_model, torch.randint(3, 64, (2, 8)), BOTH)
    stats.save(tmp_path)
    again = Statistics.load(tmp_path)
    torch.testing.assert_close(again.angular_distance, stats.angular_distance, equal_nan=True, atol=0, rtol=0)
    torch.testing.assert_close(again.block_influence, stats.block_influence, atol=0, rtol=0)
    assert (again.num_samples, again.num_tokens) == (2, 16)


def without(name, block):
    """The loss after really removing the layers of a block."""
    model = random_model(name)
    remove_layers(model, block)
    return math.log(perplexity(model, TOKENS, batch_size=2))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_without_layers_are_those_after_removal(name):
    blocks = [range(layer, layer + 1) for layer in range(6)] + [range(3), range(1, 5), range(4, 6)]
    model = random_model(name)
    before = logits_of(model)
    losses = losses_without(model, TOKENS, blocks, batch_size=2)
    assert losses.tolist() == pytest.approx([without(name, block) for block in blocks], abs=1e-6)
    assert losses.unique().numel() == len(blocks)
    assert torch.equal(logits_of(model), before)


def test_perplexity_of_each_layer_counts_every_token_once(tiny_model):
    one = collect(tiny_model, TOKENS, {"layer_perplexity"})["layer_perplexity"]
    uneven = collect(tiny_model, TOKENS, {"layer_perplexity"}, batch_size=3)["layer_perplexity"]
    torch.testing.assert_close(one, uneven, atol=1e-4, rtol=0)
    remove_layers(tiny_model, [2])
    assert one[2].item() == pytest.approx(perplexity(tiny_model, TOKENS), rel=1e-6)


def test_layers_before_the_removed_ones_run_once(tiny_model):
    calls = []
    for index, layer in enumerate(tiny_model.model.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    collect(tiny_model, TOKENS[:1], {"layer_perplexity"})
    assert [calls.count(layer) for layer in range(4)] == [1, 2, 3, 4]


def test_losses_without_layers_see_no_dropout():
    model = random_model("opt").train()
    blocks = [range(1), range(2, 4)]
    assert torch.equal(losses_without(model, TOKENS, blocks), losses_without(random_model("opt"), TOKENS, blocks))
    assert model.training


def test_a_loss_that_is_not_finite_is_the_worst(tiny_model):
    with torch.no_grad():
        tiny_model.model.layers[2].mlp.down_proj.weight.fill_(math.nan)
    losses = losses_without(tiny_model, TOKENS, [range(layer, layer + 1) for layer in range(4)])
    assert losses.isinf().tolist() == [True, True, False, True]


def test_layers_are_back_also_after_an_error(tiny_model, monkeypatch):
    layers = tiny_model.model.layers
    monkeypatch.setattr(removal, "total_loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        losses_without(tiny_model, TOKENS, [range(2, 3)])
    assert tiny_model.model.layers is layers
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)
