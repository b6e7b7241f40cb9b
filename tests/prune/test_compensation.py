"""What makes up for what was removed: the regression by hand, and models that come nearer to the dense one."""

from __future__ import annotations

import re

import pytest
import torch
from architectures import random_model
from torch import nn

from greenprune import PruneConfig, collect, prune
from greenprune.config import DepthPruning, RatioPruning
from greenprune.errors import ConfigError, ModelError
from greenprune.models import Decoder
from greenprune.models.surgery import twin
from greenprune.prune import COMPENSATIONS, windows
from greenprune.prune.patch import OutputMap, blocks_of
from greenprune.prune.reconstruct import Refit
from greenprune.prune.ridge import RIDGES, UNCHOSEN, RegressionSums, held_back
from greenprune.prune.windows import relative_error

TOKENS = torch.randint(3, 64, (12, 32), generator=torch.Generator().manual_seed(1))
HERE = torch.device("cpu")
WANDA = {"method": "wanda_sp", "ratio": 0.25}


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


# -------------------------------------------------------------------------------------------------- maths


def ridge_by_hand(x, errors, weights, ridge):
    """A row more for each input: the penalty as something to predict."""
    x, errors = (x * weights[:, None]).double(), (errors * weights[:, None]).double()
    more = torch.cat([x, (ridge * x.square().sum(dim=0)).sqrt().diag()])
    return torch.linalg.lstsq(more, torch.cat([errors, torch.zeros(x.shape[1], errors.shape[1])])).solution


def test_the_correction_is_that_of_ridge_regression(random):
    x, errors = torch.randn(50, 6, generator=random), torch.randn(50, 3, generator=random)
    weights, held = torch.rand(50, generator=random), torch.arange(50) % 4 == 3
    sums = RegressionSums(6, 3, HERE)
    for rows in torch.arange(50).split(7):
        sums.add(x[rows], errors[rows], weights[rows], held[rows])
    correction, ridge = sums.solve()
    torch.testing.assert_close(correction, ridge_by_hand(x, errors, weights, ridge), atol=1e-5, rtol=1e-4)
    fitted, _ = sums.solve(of_all=False)
    by_hand = ridge_by_hand(x[~held], errors[~held], weights[~held], ridge)
    torch.testing.assert_close(fitted, by_hand, atol=1e-5, rtol=1e-4)

    def held_back_error(candidate):
        made = ridge_by_hand(x[~held], errors[~held], weights[~held], candidate)
        return float(((x[held] @ made.float() - errors[held]) * weights[held, None]).square().sum())

    assert ridge == min(RIDGES, key=held_back_error)


@pytest.mark.parametrize(("noise", "ridge"), [(0.0, RIDGES[0]), (100.0, RIDGES[-1])])
def test_held_back_tokens_choose_the_ridge(noise, ridge, random):
    x, planted = torch.randn(400, 20, generator=random), torch.randn(20, 4, generator=random)
    errors = x @ planted + noise * torch.randn(400, 4, generator=random)
    sums = RegressionSums(20, 4, HERE)
    sums.add(x, errors, torch.ones(400), torch.arange(400) % 4 == 3)
    assert sums.solve()[1] == ridge


def test_without_held_back_tokens_the_ridge_is_unchosen(random):
    sums = RegressionSums(2, 1, HERE)
    sums.add(torch.randn(9, 2, generator=random), torch.ones(9, 1), torch.ones(9), torch.zeros(9, dtype=torch.bool))
    assert sums.solve()[1] == UNCHOSEN
    assert held_back(torch.arange(9)).tolist() == [False, False, False, True] * 2 + [False]


def test_dead_inputs_change_nothing():
    sums = RegressionSums(3, 2, HERE)
    sums.add(torch.zeros(8, 3), torch.ones(8, 2), torch.ones(8), torch.arange(8) % 4 == 3)
    assert torch.equal(sums.solve()[0], torch.zeros(3, 2, dtype=torch.float64))


def test_states_that_are_not_finite_are_refused():
    sums = RegressionSums(1, 1, HERE)
    sums.add(torch.full((2, 1), torch.inf), torch.ones(2, 1), torch.ones(2), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ModelError, match="must be finite, got NaN or infinity"):
        sums.solve()


def test_a_constant_is_not_shrunk():
    sums = RegressionSums(1, 2, HERE, constant=True)
    sums.add(torch.tensor([[-1.0], [1.0]]), torch.full((2, 2), 5.0), torch.ones(2), torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(sums.solve()[0], torch.tensor([[0.0, 0.0], [5.0, 5.0]], dtype=torch.float64))


def test_beside_a_constant_the_mean_of_an_input_is_no_reason_to_shrink_it(random):
    x, errors = torch.randn(50, 6, generator=random), torch.randn(50, 3, generator=random)
    weights, held, solutions = torch.rand(50, generator=random), torch.arange(50) % 4 == 3, []
    for mean in (0.0, 30.0):
        sums = RegressionSums(6, 3, HERE, constant=True)
        sums.add(x + mean, errors, weights, held)
        solutions.append(sums.solve())
    (centred, ridge), (moved, same) = solutions
    assert ridge == same
    torch.testing.assert_close(moved[:6], centred[:6], atol=1e-4, rtol=1e-3)


def test_inputs_that_never_change_are_left_to_the_constant():
    sums = RegressionSums(2, 1, HERE, constant=True)
    sums.add(torch.tensor([[3.0, 0.0]] * 8), torch.ones(8, 1), torch.ones(8), torch.arange(8) % 4 == 3)
    solution = sums.solve()[0]
    torch.testing.assert_close(3 * solution[0] + solution[2], torch.ones(1, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [Refit, OutputMap])
def test_a_projection_learns_what_is_missing(make, bias, random):
    torch.manual_seed(0)
    linear, weights, held = nn.Linear(4, 3, bias=bias), torch.ones(200), torch.arange(200) % 4 == 3
    before, x = linear.weight, torch.randn(200, 4, generator=random)
    given = linear(x).detach()
    wanted = given @ torch.randn(3, 3, generator=random) + (2.0 if bias else 0.0)
    fit = make(linear, HERE)
    fit.add(given if make is OutputMap else x, wanted - given, weights, held)
    assert fit.correct() == RIDGES[0]
    assert (linear(x) - wanted).square().mean() < 1e-2 * (given - wanted).square().mean()
    assert linear.weight is not before


def test_blocks_are_contiguous_runs():
    assert blocks_of([7, 3, 4]) == [range(3, 5), range(7, 8)]
    assert blocks_of([0]) == [range(1)]


def test_the_error_of_a_token_is_relative_to_its_size():
    wanted = torch.tensor([[[3.0, 4.0], [300.0, 400.0]]])
    assert relative_error(1.1 * wanted, wanted).item() == pytest.approx(0.01, rel=1e-4)


# ------------------------------------------------------------------------------------------------- wiring


def test_each_option_has_its_function():
    fields = {("reconstruct", RatioPruning), ("patch", DepthPruning)}
    choices = {f"{name}.{value}" for name, kind in fields for value in kind.model_fields[name].annotation.__args__}
    assert COMPENSATIONS.keys() == choices - {"reconstruct.none", "patch.none"}


def states_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, output_hidden_states=True).hidden_states[-1]


def distance(config, name) -> float:
    """How far the last states of a pruned model are from the dense one's, squared."""
    model, dense = random_model(name), random_model(name)
    prune(model, PruneConfig(**config), calibration=TOKENS[:8])
    return float((states_of(model) - states_of(dense))[8:].square().mean())


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt_neox"])
@pytest.mark.parametrize(("how", "share"), [("bias", 1.0), ("least_squares", 0.7)])
def test_text_that_was_not_seen_is_nearer_to_the_dense_model(how, share, name):
    assert distance(WANDA | {"reconstruct": how}, name) < share * distance(WANDA, name)


@pytest.mark.parametrize(("learning_rate", "learns"), [(1e-5, True), (1.0, False)])
def test_a_window_changes_where_held_back_samples_are_nearer(learning_rate, learns, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW_STEPS", 20)
    monkeypatch.setattr(windows, "LEARNING_RATE", learning_rate)
    report = prune(model := random_model("llama"), PruneConfig(**WANDA, reconstruct="windows"), calibration=TOKENS[:8])
    before, after = re.fullmatch(r"3 layers .* held-back states (\S+), then (\S+)", report.notes[-1]).groups()
    assert (float(after) < float(before)) == learns
    assert all(weight.dtype == model.dtype and weight.is_leaf for weight in model.parameters())


def with_idle_middle(name: str):
    """Layers 2 and 3 turn the states least; layers give more than those of a fresh model."""
    model = random_model(name)
    with torch.no_grad():
        for layer, view in enumerate(Decoder(model).views()):
            for linear in view.linears.values():
                linear.weight *= 4
            view.down.weight *= 0.5 if layer in (2, 3) else 1
            view.out.weight *= 0.5 if layer in (2, 3) else 1
    return model


@pytest.mark.parametrize("name", ["llama", "opt", "gpt_neox"])
@pytest.mark.parametrize("how", ["linear", "least_squares"])
def test_a_patched_block_is_missed_less(how, name):
    errors, dense = {}, states_of(with_idle_middle(name))
    for patch in ("none", how):
        model = with_idle_middle(name)
        config = PruneConfig(method="bi", block_size=2, skip_first=1, skip_last=2, patch=patch)
        report = prune(model, config, calibration=TOKENS[:8])
        errors[patch] = float((states_of(model) - dense)[8:].square().mean())
        assert report.layers_removed == [2, 3]
    assert report.notes[0].startswith("layers 2 to 3: patched by layer 1, ridge")
    assert errors[how] < 0.9 * errors["none"]


@pytest.mark.parametrize(("skip_first", "start"), [(None, 0), (2, 2)])
def test_a_block_with_no_layer_before_that_may_change_has_no_patch(skip_first, start):
    """skip_first leaves layers as they are."""
    plain, patched = random_model("llama"), random_model("llama")
    options = {"method": "angular", "block_size": 2, "skip_first": skip_first, "skip_last": 4 - start}
    prune(plain, PruneConfig(**options), calibration=TOKENS)
    report = prune(patched, PruneConfig(**options, patch="linear"), calibration=TOKENS)
    assert report.layers_removed == [start, start + 1]
    assert report.notes == [f"layers {start} to {start + 1}: patched by no layer before"]
    assert torch.equal(states_of(plain), states_of(patched))


def test_several_blocks_are_patched_in_turn():
    model, dense = random_model("llama"), random_model("llama")
    steps = [{"method": "taylor_depth", "block_size": 3, "patch": "least_squares"}]
    report = prune(model, PruneConfig(method="sequence", steps=steps), calibration=TOKENS)
    assert report.layers_removed == [2, 4, 5]
    patched = ["layer 2: patched by layer 1", "layers 4 to 5: patched by layer 3"]
    assert [note.partition(",")[0] for note in report.notes] == patched
    plain = random_model("llama")
    prune(plain, PruneConfig(method="taylor_depth", block_size=3), calibration=TOKENS)
    assert (states_of(model) - states_of(dense)).square().mean() < (states_of(plain) - states_of(dense)).square().mean()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"method": "bi", "block_size": 1, "patch": "linear"}, "patch must be none where a norm stands"),
        ({"method": "wanda_sp", "ratio": 0.25, "reconstruct": "bias"}, "needs calibration tokens, got none"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(config, reason):
    model = random_model("gemma2")
    statistics = collect(model, TOKENS, {"activations", "bi"})
    with pytest.raises(ConfigError, match=reason):
        prune(model, PruneConfig(**config), statistics=statistics)
    assert torch.equal(states_of(model), states_of(random_model("gemma2")))


def test_a_narrower_stream_cannot_be_brought_to_the_dense_one():
    with pytest.raises(ValueError, match="reconstruct must be none where targets have hidden"):
        PruneConfig(method="minitron_width", targets={"hidden": 24}, reconstruct="least_squares")


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_twin_keeps_its_shape_and_shares_its_weights(name):
    model = random_model(name)
    dense = twin(model)
    assert {id(weight) for weight in model.parameters()} == {id(weight) for weight in dense.parameters()}
    prune(model, PruneConfig(method="flap", ratio=0.25, reconstruct="bias"), calibration=TOKENS)
    assert torch.equal(states_of(dense), states_of(random_model(name)))


def test_keys_of_before_stay_and_those_of_compensation_are_others():
    plain, better = PruneConfig(**WANDA), PruneConfig(**WANDA, reconstruct="least_squares")
    assert "reconstruct" not in plain.identity()
    assert better.identity() == plain.identity() | {"reconstruct": "least_squares"}
    assert not plain.needs_tokens()
    assert better.needs_tokens()


def test_the_dense_model_beside_the_pruned_one_needs_room():
    steps = [{"method": "bi", "block_size": 1}, WANDA]
    assert not PruneConfig(method="sequence", steps=steps).needs_dense()
    assert PruneConfig(method="sequence", steps=[*steps, WANDA | {"reconstruct": "bias"}]).needs_dense()
