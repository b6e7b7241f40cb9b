"""Statistics of what output projections read: against all inputs kept at once, whatever batches and padding."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, TOKENS, random_model

from greenprune.collect import collect, watchers
from greenprune.collect.activations import centred_sums, plain_sums, squared_mean_sizes
from greenprune.collect.forward import ForwardPass
from greenprune.models import Decoder, keep_channels

WANT = {"activations"}


def inputs_of(model, tokens) -> dict[str, list[torch.Tensor]]:
    """What every output projection reads and every norm gives, one sample a forward: [samples, T, d] in float64."""
    decoder, kept = Decoder(model), {"attention": [], "mlp": [], "norms": []}
    for layer in range(len(decoder)):
        view = decoder.view(layer)
        for part, module in (("attention", view.out), ("mlp", view.down)):
            kept[part].append([])
            module.register_forward_pre_hook(lambda _, args, seen=kept[part][-1]: seen.append(args[0]))
        for norm in (view.input_norm, view.mlp_norm):
            kept["norms"].append([])
            norm.register_forward_hook(lambda _, __, output, seen=kept["norms"][-1]: seen.append(output))
    with torch.no_grad():
        for row in tokens:
            model(row[None])
    return {
        part: [torch.stack([value.reshape(tokens.shape[1], -1) for value in seen]).double() for seen in values]
        for part, values in kept.items()
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_brute_force(name):
    statistics = collect(random_model(name), TOKENS, WANT, batch_size=3)
    inputs = inputs_of(random_model(name), TOKENS)
    for part in ("attention", "mlp"):
        for layer, values in enumerate(inputs[part]):
            tokens = values.flatten(0, 1)
            expected = {
                "mean": tokens.mean(0),
                "variance": tokens.var(0, correction=0),
                "square_sum": tokens.square().sum(0),
                "minitron": values.abs().mean(1).square().sum(0).sqrt(),
            }
            for statistic, value in expected.items():
                torch.testing.assert_close(statistics[f"{part}.{statistic}"][layer], value, rtol=1e-4, atol=1e-9)
    hidden = sum(values.abs().mean(1).square().sum(0).sqrt() for values in inputs["norms"])
    torch.testing.assert_close(statistics["hidden.minitron"], hidden, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["llama", "opt"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_counts(name, side):
    short, long = TOKENS[:2, :10], TOKENS[2:, :]
    pad = (6, 0) if side == "left" else (0, 6)
    tokens = torch.cat([torch.nn.functional.pad(short, pad), long])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(short), pad), torch.ones_like(long)])
    model = random_model(name)
    padded = collect(model, tokens, WANT, attention_mask=mask, batch_size=4)
    assert (padded.num_samples, padded.num_tokens) == (4, 2 * 10 + 2 * 16)
    parts = [collect(model, rows, WANT) for rows in (short, long)]
    for name in ("attention.square_sum", "mlp.square_sum"):
        torch.testing.assert_close(padded[name], parts[0][name] + parts[1][name], rtol=1e-4, atol=1e-9)
    for name in ("attention.minitron", "mlp.minitron"):
        expected = (parts[0][name].square() + parts[1][name].square()).sqrt()
        torch.testing.assert_close(padded[name], expected, rtol=1e-4, atol=1e-9)
    for name in ("attention.mean", "mlp.mean"):
        expected = (20 * parts[0][name] + 32 * parts[1][name]) / 52
        torch.testing.assert_close(padded[name], expected, rtol=1e-4, atol=1e-7)


def test_batch_size_changes_nothing(tiny_model):
    one, four = (collect(tiny_model, TOKENS, WANT, batch_size=size) for size in (1, 4))
    assert one.tensors.keys() == four.tensors.keys()
    for name in one.tensors:
        torch.testing.assert_close(one[name], four[name], rtol=1e-4, atol=1e-9)


def test_sums_of_workers_add_up(tiny_model):
    """Two workers with a sample that one of them only repeats, as ZeRO-3 does it."""
    parts = [ForwardPass(tiny_model, watchers(WANT, 4)) for _ in range(2)]
    parts[0].run(TOKENS[:2])
    parts[1].run(TOKENS[[2, 0]], batch_size=2, counted=torch.tensor([True, False]))
    parts[0].replace_sums(parts[0].sums() + parts[1].sums())
    added, whole = parts[0].statistics(), collect(tiny_model, TOKENS[:3], WANT)
    for name in whole.tensors:
        torch.testing.assert_close(added[name], whole[name], rtol=1e-4, atol=1e-9)


def test_layers_of_different_width_end_in_nan(tiny_model):
    keep_channels(tiny_model, 1, range(8))
    statistics = collect(tiny_model, TOKENS, WANT)
    for name in ("mean", "variance", "square_sum", "minitron"):
        assert statistics[f"mlp.{name}"].shape == (4, 48)
        assert statistics[f"mlp.{name}"].isnan().sum(dim=1).tolist() == [0, 40, 0, 0]
        assert not statistics[f"attention.{name}"].isnan().any()


def test_a_small_variance_beside_a_large_mean_survives():
    values = 1000 + torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * 0.01
    total, squares = sum(plain_sums(centred_sums(batch), len(batch)) for batch in values.split(1000))
    variance = squares / 4000 - (total / 4000).square()
    torch.testing.assert_close(variance, values.double().var(0, correction=0), rtol=1e-4, atol=0)


def test_sums_by_hand():
    sums = plain_sums(centred_sums(torch.tensor([[1.0, 0.0], [3.0, 2.0]])), 2)
    assert sums.tolist() == [[4.0, 2.0], [10.0, 4.0]]


def test_squared_mean_sizes_by_hand():
    values = torch.tensor([[[1.0], [-3.0]], [[4.0], [9.0]], [[5.0], [5.0]]])  # 3 samples, 2 tokens, 1 channel
    assert squared_mean_sizes(values).tolist() == [2.0**2 + 6.5**2 + 5.0**2]
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    assert squared_mean_sizes(values, valid).tolist() == [2.0**2 + 4.0**2]
