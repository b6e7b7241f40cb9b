"""Masks: the choices by hand, SparseGPT against a slow copy of its algorithm, the contract on every architecture."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, TOKENS, logits_of, random_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from greenprune import PruneConfig, prune
from greenprune.collect.hidden_states import watch_hidden_states
from greenprune.collect.layerwise import LayerByLayer, products, squares
from greenprune.errors import ConfigError, ModelError
from greenprune.models import Decoder, fit_class_and_config, keep_channels, keep_heads, load_checkpoint
from greenprune.models.hooks import Hooks
from greenprune.prune.masks import (
    DAMPING,
    inverse_factor,
    lowest_of_groups,
    lowest_of_matrix,
    lowest_of_rows,
    sparsegpt,
    wanda_scores,
)

METHODS = ["magnitude", "wanda", "sparsegpt"]
STRUCTURES = {"unstructured": {"ratio": 0.5}, "2:4": {"structure": "2:4"}, "1:8": {"structure": "1:8"}}


def gone(rows: list[str]) -> Tensor:
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


# -------------------------------------------------------------------------------------------- maths by hand

SCORES = torch.tensor([[4.0, 1.0, 3.0, 1.0], [8.0, 5.0, 6.0, 7.0]])


def test_lowest_of_matrix_by_hand():
    assert torch.equal(lowest_of_matrix(SCORES, 0.3), gone([".xxx", "...."]))  # rank int(2.4), counted from 0
    assert torch.equal(lowest_of_matrix(SCORES, 0.01), gone([".x.x", "...."]))  # all that are equal to the last
    assert lowest_of_matrix(SCORES, 0.99).all()


def test_lowest_of_rows_by_hand():
    assert torch.equal(lowest_of_rows(SCORES, 0.5), gone([".x.x", ".xx."]))
    assert torch.equal(lowest_of_rows(SCORES, 0.49), gone([".x..", ".x.."]))  # of equals the first
    assert torch.equal(lowest_of_rows(SCORES, 0.75), gone([".xxx", ".xxx"]))
    assert not lowest_of_rows(SCORES, 0.2).any()  # less than one weight a row


def test_lowest_of_groups_by_hand():
    assert torch.equal(lowest_of_groups(SCORES, 2, 4), gone([".x.x", ".xx."]))
    equal = SCORES[:1].topk(1, dim=1, largest=False).indices.item()  # the originals' choice of equals
    assert torch.equal(lowest_of_groups(SCORES, 1, 4), gone(["".join(".x"[i == equal] for i in range(4)), ".x.."]))
    assert torch.equal(lowest_of_groups(SCORES, 1, 2), gone([".x.x", ".xx."]))


def test_wanda_scores_by_hand():
    weight = torch.tensor([[1.0, -2.0, 0.0, 3.0], [-4.0, 1.0, 2.0, -1.0]])
    scores = wanda_scores(weight, torch.tensor([4.0, 1.0, 9.0, 0.0]))
    assert torch.equal(scores, torch.tensor([[2.0, 2.0, 0.0, 0.0], [8.0, 1.0, 6.0, 0.0]]))


def test_means_of_inputs_by_hand():
    inputs = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    torch.testing.assert_close(squares(inputs, 2), torch.tensor([5.0, 2.0]))
    torch.testing.assert_close(products(inputs, 2), torch.tensor([[10.0, 2.0], [2.0, 4.0]]))


def test_sparsegpt_by_hand():
    """Of one row and two inputs the first goes; the second takes over what H lets it: w_2 + w_1 H_12 / H_22."""
    hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    factor, _ = inverse_factor(hessian, damping=0.0)
    torch.testing.assert_close(factor.T @ factor, torch.tensor([[2.0, -1.0], [-1.0, 2.0]]) / 3)
    pruned = sparsegpt(torch.tensor([[1.0, 4.0]]), factor, 0.0, (1, 2))
    torch.testing.assert_close(pruned, torch.tensor([[0.0, 4.5]]))
    pruned = sparsegpt(torch.tensor([[4.0, 1.0]]), factor, 0.0, (1, 2))
    assert pruned.tolist() == [[4.0, 0.0]]  # what is behind can't be made up for by what is before


# ------------------------------------------------------------------------------- SparseGPT on random problems


def random_problem(inputs: int = 24, outputs: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """weight [out, in], correlated inputs x [N, in], and their Hessian."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, inputs // 2, generator=generator) @ torch.randn(inputs // 2, inputs, generator=generator)
    x += torch.randn(200, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight, x, products(x, 200)


def slow_sparsegpt(weight: Tensor, hessian: Tensor, ratio: float, pattern, block: int) -> Tensor:
    """Weight by weight, in float64: every error goes to all columns behind it at once."""
    weight, inverse = weight.double().clone(), torch.linalg.inv(hessian.double())
    upper = torch.linalg.cholesky(inverse, upper=True)
    rows, columns = weight.shape
    zero = torch.zeros(rows, columns, dtype=torch.bool)
    for column in range(columns):
        width = pattern[1] if pattern else block
        if column % width == 0:
            part = slice(column, min(column + width, columns))
            scores = weight[:, part] ** 2 / upper.diagonal()[part] ** 2
            if pattern:
                for row in range(rows):
                    zero[row, column + scores[row].sort(stable=True).indices[: pattern[0]]] = True
            else:
                ranked = scores.flatten().sort().values
                zero[:, part] = scores <= ranked[int(len(ranked) * ratio)]
        for row in range(rows):
            if zero[row, column]:
                error = weight[row, column] / upper[column, column]
                weight[row, column:] -= error * upper[column, column:]
                weight[row, column] = 0
    return weight


@pytest.mark.parametrize("pattern", [None, (2, 4), (4, 8), (1, 3)])
@pytest.mark.parametrize("block", [8, 12, 128])
def test_sparsegpt_is_the_algorithm(pattern, block):
    weight, _, hessian = random_problem()
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    expected = slow_sparsegpt(weight, damped, 0.6, pattern, block)
    pruned = sparsegpt(weight, inverse_factor(hessian)[0], 0.6, pattern, block)
    assert torch.equal(pruned == 0, expected == 0)
    torch.testing.assert_close(pruned, expected.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_sparsegpt_loses_less_than_magnitude_and_wanda(pattern):
    weight, x, hessian = random_problem(inputs=96, outputs=64)

    def lost(pruned: Tensor) -> float:
        return float(((pruned - weight) @ x.T).square().sum())

    def masked(scores: Tensor) -> Tensor:
        zero = lowest_of_groups(scores, *pattern) if pattern else lowest_of_matrix(scores, 0.5)
        return weight.masked_fill(zero, 0)

    ours = lost(sparsegpt(weight, inverse_factor(hessian)[0], 0.5, pattern))
    assert ours < 0.7 * lost(masked(wanda_scores(weight, squares(x, 200))))
    assert ours < 0.7 * lost(masked(weight.abs()))


def test_indefinite_hessian_is_damped_until_it_factors():
    hessian = torch.tensor([[1.0, 3.0], [3.0, 1.0]])  # eigenvalues 4 and -2
    factor, damping = inverse_factor(hessian)
    assert damping == pytest.approx(10.0)
    expected = torch.linalg.inv(hessian + 10 * torch.eye(2))
    torch.testing.assert_close(factor.T @ factor, expected)
    assert sparsegpt(torch.ones(1, 2), factor, 0.5).isfinite().all()


def test_more_damping_is_said(tiny_model, monkeypatch, caplog):
    """Float32 rounding can make a Gram matrix indefinite; here its sum is made so."""
    monkeypatch.setattr("greenprune.prune.masks.products", lambda x, n: 3 * products(x, n) - 4 * squares(x, n).diag())
    report = prune(tiny_model, PruneConfig(method="sparsegpt", ratio=0.5), calibration=TOKENS)
    damped = [note for note in report.notes if "positive definite" in note]
    assert damped
    assert damped[0].startswith("layer 0, self_attn.")
    assert damped[0] in caplog.text
    assert all(parameter.isfinite().all() for parameter in tiny_model.parameters())


def test_inputs_that_are_never_used_lose_their_weights(tiny_model):
    with torch.no_grad():
        tiny_model.model.layers[0].mlp.up_proj.weight[5] = 0  # so channel 5 is always 0
    prune(tiny_model, PruneConfig(method="sparsegpt", ratio=0.25), calibration=TOKENS)
    down = tiny_model.model.layers[0].mlp.down_proj.weight
    assert not down[:, 5].any()
    assert down.isfinite().all()


# ------------------------------------------------------------------------------------------ layer by layer


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_states_are_those_of_the_whole_model(name, batch_size):
    model, expected = random_model(name), []
    layers = Decoder(model).layers
    with Hooks() as hooks:
        watch_hidden_states(Decoder(model), lambda _, hidden: expected.append(hidden), hooks)
        logits_of(model)
    walk = LayerByLayer(model, TOKENS, batch_size)
    assert Decoder(model).layers is layers
    for layer, states in enumerate(expected):
        torch.testing.assert_close(walk.states, states, rtol=1e-5, atol=1e-6)
        if layer < len(walk):
            walk.advance(layer)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_neox"])
def test_linears_that_share_an_input_share_a_mean(name):
    model, seen = random_model(name), {}
    linears = Decoder(model).view(1).linears
    handles = [
        linear.register_forward_pre_hook(lambda _, args, path=path: seen.__setitem__(path, args[0].flatten(0, -2)))
        for path, linear in linears.items()
    ]
    logits_of(model)
    for handle in handles:
        handle.remove()
    sums = {}
    walk = LayerByLayer(model, TOKENS, batch_size=3)
    walk.advance(0)
    found = walk.input_means(1, linears, products)
    for group in found:
        sums |= dict.fromkeys(group.linears, group.mean)
    assert len(found) == 4
    assert sums.keys() == linears.keys()
    for path, total in sums.items():
        torch.testing.assert_close(total, products(seen[path], len(TOKENS)), rtol=1e-4, atol=1e-4)


def test_hooks_are_gone_and_layers_are_back_after_an_error(tiny_model):
    layers = Decoder(tiny_model).layers
    walk = LayerByLayer(tiny_model, TOKENS)
    linears = Decoder(tiny_model).view(0).linears
    with pytest.raises(ZeroDivisionError):
        walk.input_means(0, linears, lambda *_: 1 / 0)
    assert not any(linear._forward_pre_hooks for linear in linears.values())
    with pytest.raises(IndexError):
        LayerByLayer(tiny_model, TOKENS + 1000)  # no such token
    assert Decoder(tiny_model).layers is layers


def test_overflow_is_refused(tiny_model):
    with torch.no_grad():
        tiny_model.model.layers[1].mlp.up_proj.weight[0] = float("inf")
    with pytest.raises(ModelError, match=r"NaN or infinity in layer 1, mlp\.down_proj"):
        prune(tiny_model, PruneConfig(method="wanda", ratio=0.5), calibration=TOKENS)


# ------------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_neox"])
def test_what_becomes_zero_and_what_stays(name, method, structure, tmp_path):
    model, dense = random_model(name), random_model(name)
    config = PruneConfig(method=method, **STRUCTURES[structure])
    report = prune(model, config, calibration=TOKENS, batch_size=3)

    linears = [linear for layer in range(6) for linear in Decoder(model).view(layer).linears.values()]
    zeros, entries = sum(int((x.weight == 0).sum()) for x in linears), sum(x.weight.numel() for x in linears)
    assert report.ratio_reached == report.sparsity == pytest.approx(zeros / entries)
    assert report.ratio_asked == config.ratio
    assert report.ratio_reached == pytest.approx(config.ratio, abs=2e-3)
    assert (report.parameters_after, report.needs) == (report.parameters_before, "transformers")
    assert report.notes[0].startswith("kernel: dense")
    if pattern := config.pattern():
        for linear in linears:
            assert ((linear.weight.view(-1, pattern[1]) == 0).sum(dim=1) == pattern[0]).all()

    matrices = {id(linear.weight) for linear in linears}
    for (key, after), before in zip(model.named_parameters(), dense.parameters(), strict=True):
        assert id(after) in matrices or torch.equal(after, before), key
    if method != "sparsegpt":  # what stays is as it was
        for layer in range(6):
            for path, before in Decoder(dense).view(layer).linears.items():
                after = Decoder(model).view(layer).linears[path].weight
                assert torch.equal(after, before.weight * (after != 0))

    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.pruning_mask == structure


def test_batch_size_changes_no_mask():
    one, three = random_model("llama"), random_model("llama")
    prune(one, PruneConfig(method="wanda", ratio=0.5), calibration=TOKENS, batch_size=1)
    prune(three, PruneConfig(method="wanda", ratio=0.5), calibration=TOKENS, batch_size=3)
    assert torch.equal(logits_of(one), logits_of(three))


def test_wanda_sees_what_the_pruned_layers_give(tiny_model):
    """Later layers are chosen on the states of the pruned earlier ones, not on the dense model's."""
    sums, linears = [], Decoder(tiny_model).view(1).linears
    dense = LayerByLayer(tiny_model, TOKENS)
    dense.advance(0)
    sums.append(dense.input_means(1, linears, squares)[0].mean)
    prune(tiny_model, PruneConfig(method="wanda", ratio=0.9), calibration=TOKENS)
    walk = LayerByLayer(tiny_model, TOKENS)
    walk.advance(0)
    sums.append(walk.input_means(1, linears, squares)[0].mean)
    assert not torch.allclose(*sums, rtol=1e-2)
    query = linears["self_attn.q_proj"].weight
    torch.manual_seed(0)
    untouched = AutoModelForCausalLM.from_config(tiny_model.config).model.layers[1].self_attn.q_proj.weight
    assert torch.equal(query == 0, lowest_of_rows(wanda_scores(untouched.detach(), sums[1]), 0.9))


def test_groups_that_do_not_fit_are_refused_before_anything_changes(tiny_model):
    before = logits_of(tiny_model)
    with pytest.raises(ConfigError, match=r"2:5 needs inputs in multiples of 5, got 32 in layer 0, self_attn\.q_proj"):
        prune(tiny_model, PruneConfig(method="wanda", structure="2:5"), calibration=TOKENS)
    assert torch.equal(logits_of(tiny_model), before)


def test_a_mask_after_a_depth_step(tiny_model):
    steps = [{"method": "bi", "block_size": 1}, {"method": "sparsegpt", "ratio": 0.5}]
    report = prune(tiny_model, PruneConfig(method="sequence", steps=steps), calibration=TOKENS)
    assert len(report.layers_removed) == 1
    assert report.sparsity == pytest.approx(0.5, abs=2e-3)
    assert tiny_model.config.pruning_mask == "unstructured"


def test_a_mask_on_layers_of_different_widths(tiny_model, tmp_path):
    keep_heads(tiny_model, 1, [0, 2])
    keep_channels(tiny_model, 2, range(40))
    fit_class_and_config(tiny_model)
    report = prune(tiny_model, PruneConfig(method="wanda", structure="2:4"), calibration=TOKENS)
    assert (report.sparsity, report.needs) == (0.5, "trust_remote_code")
    tiny_model.save_pretrained(tmp_path)
    reloaded = load_checkpoint(tmp_path, device="cpu")
    assert torch.equal(logits_of(reloaded), logits_of(tiny_model))
    assert reloaded.config.pruning_mask == "2:4"
