"""LLM-Pruner: scores by hand, counts, and the contract on every architecture."""

from __future__ import annotations

import pytest
import torch
from architectures import TOKENS, logits_of, random_model
from tiny import tiny_config
from transformers import LlamaForCausalLM
from width_contract import keeps_width_contract, widths

from greenprune import PruneConfig, collect, prune
from greenprune.errors import ConfigError
from greenprune.models import Decoder
from greenprune.prune import parameter_count
from greenprune.prune.llm_pruner import (
    channel_scores,
    folded,
    head_scores,
    local_counts,
    reduced,
)
from greenprune.prune.widths import Ranking, Units, global_counts, units_of

CASES = {
    "default": {},
    "second order": {"importance": "param_second"},
    "mix, max": {"importance": "param_mix", "reduction": "max"},
    "vectorize, mean": {"importance": "vectorize", "reduction": "mean"},
    "l1, first": {"importance": "l1", "reduction": "first"},
    "l2, prod": {"importance": "l2", "reduction": "prod"},
    "random": {"importance": "random", "seed": 3},
    "global": {"scope": "global"},
    "global in steps": {"scope": "global", "iterations": 2},
    "steps": {"iterations": 3},
    "kv_group": {"heads": "kv_group"},
    "uniform": {"uniform": True},
}
SKIPS = {"skip_first": 1, "skip_last": 1}


def config_of(case: str, **fields) -> PruneConfig:
    skips = {} if CASES[case].get("uniform") else SKIPS
    return PruneConfig(method="llm_pruner", **{"ratio": 0.2} | skips | CASES[case] | fields)


# -------------------------------------------------------------------------------------------------- maths


def test_reductions_by_hand():
    first, second = torch.tensor([1.0, 6, 3]), torch.tensor([4.0, 5, 2])
    expected = {"sum": [5, 11, 5], "mean": [2.5, 5.5, 2.5], "max": [4, 6, 3], "prod": [4, 30, 6], "first": [1, 6, 3]}
    for reduction, scores in expected.items():
        assert reduced([first, second], reduction).tolist() == scores


def test_query_heads_fold_into_the_kv_head_they_read():
    scores = torch.tensor([1.0, 2, 10, 20, 3, 4, 30, 40])  # four heads of two components, two to a KV head
    assert folded(scores, kv_heads=2, head_dim=2).tolist() == [11, 22, 33, 44]


PARTS = {
    "query": torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]),
    "key": torch.tensor([100.0, 200, 300, 400]),
    "value": torch.tensor([0.0, 0, 0, 1000]),
    "out": torch.tensor([1.0, 1, 1, 1, 2, 2, 2, 2]),
}


def test_heads_of_a_group_are_scored_without_keys_and_values():
    assert head_scores(PARTS, 2, 2, "sum", whole_groups=False).tolist() == [5, 9, 15, 19]
    assert head_scores(PARTS, 2, 2, "first", whole_groups=False).tolist() == [3, 7, 11, 15]


def test_whole_groups_are_scored_with_all_their_heads():
    heads = head_scores(PARTS, 2, 2, "sum", whole_groups=True)
    assert heads.view(2, 2).sum(dim=1).tolist() == [5 + 9 + 300, 15 + 19 + 1700]
    assert head_scores(PARTS, 2, 2, "first", whole_groups=True).view(2, 2).sum(dim=1).tolist() == [300, 700]


def test_heads_with_kv_heads_of_their_own():
    parts = PARTS | {"query": PARTS["query"][:4], "out": PARTS["out"][:4]}
    assert head_scores(parts, 2, 2, "sum", whole_groups=True).tolist() == [5 + 300, 9 + 1700]
    assert head_scores(parts, 2, 2, "max", whole_groups=True).tolist() == [300, 1300]


def test_channels_with_and_without_a_gate():
    up, down, gate = torch.tensor([1.0, 2]), torch.tensor([3.0, 4]), torch.tensor([10.0, 20])
    assert channel_scores({"up": up, "down": down, "gate": gate}, "sum").tolist() == [14, 26]
    assert channel_scores({"up": up, "down": down, "gate": gate}, "first").tolist() == [10, 20]
    assert channel_scores({"up": up, "down": down}, "first").tolist() == [1, 2]


def units(heads: int, kv_heads: int, head_dim: int, hidden: int, channels: int, whole_groups: bool) -> Units:
    config = tiny_config(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=channels,
        head_dim=head_dim,
        num_hidden_layers=1,
    )
    with torch.device("meta"):
        return units_of(Decoder(LlamaForCausalLM(config)).view(0), whole_groups)


@pytest.mark.parametrize(
    ("shape", "head_dim", "ratio", "round_to", "counts"),
    [
        ((32, 32, 128, 4096, 11008), 128, 0.25, 1, (24, 8256)),  # LLaMA-7B in the paper's table
        ((32, 32, 128, 4096, 11008), 128, 0.25, 64, (24, 8256)),
        ((9, 9, 64, 576, 1536), 64, 0.25, 1, (7, 1152)),
        ((9, 3, 64, 576, 1536), 64, 0.34, 1, (2, 1013)),  # whole KV groups
        ((9, 3, 64, 576, 1536), 64, 0.34, 8, (2, 1016)),
    ],
)
def test_counts_of_the_original(shape, head_dim, ratio, round_to, counts):
    assert local_counts(units(*shape, whole_groups=True), head_dim, ratio, round_to) == counts


def test_channels_make_up_for_heads_that_are_too_coarse():
    """A quarter of three KV heads is none by the original's count, with which only 19 % of the layer would go."""
    layer = units(9, 3, 64, 576, 1536, whole_groups=True)
    slots, channels = local_counts(layer, 64, 0.25, 8)
    assert slots == 2
    assert channels % 8 == 0
    assert layer.removed(slots, channels) == pytest.approx(0.25, abs=0.002)


@pytest.mark.parametrize(("ratio", "left"), [(0.2, 3), (0.32, 3), (0.34, 2)])
def test_query_heads_leave_in_equal_numbers_from_every_group(ratio, left):
    """Of three query heads to a KV head one leaves from a third on, not before."""
    layer = units(9, 3, 64, 576, 1536, whole_groups=False)
    slots, channels = local_counts(layer, 64, ratio, 8)
    assert slots == left
    assert layer.removed(slots, channels) == pytest.approx(ratio, abs=0.002)


def test_global_threshold_by_hand():
    """Two layers of two slots (4 parameters each) and four channels (1 each); nothing is normalised."""
    layer = Units(total=12, slot=4, slots=2, whole=True, channel=1, channels=4)
    slots = [[0], [1]]
    poor = Ranking(slots, torch.tensor([1.0, 9]), torch.tensor([0.1, 0.2, 0.3, 8]))
    rich = Ranking(slots, torch.tensor([5.0, 9]), torch.tensor([6.0, 7, 8, 9]))
    assert global_counts([layer] * 2, [poor, rich], ratio=7 / 24, round_to=1) == [(1, 1), (2, 4)]
    assert global_counts([layer] * 2, [poor, rich], ratio=12 / 24, round_to=1) == [(1, 1), (1, 3)]


# ----------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("name", ["llama", "llama-mha", "phi3", "gpt_neox"])
@pytest.mark.parametrize("case", CASES)
def test_every_option_keeps_the_contract(case, name, tmp_path):
    pruned = keeps_width_contract(config_of(case), name, tmp_path)
    for layer in pruned.prunable:
        view, kept = Decoder(pruned.model).view(layer), pruned.report.kept_channels[layer]
        assert view.channels % 8 == 0
        columns = Decoder(pruned.untouched).view(layer).down.weight[:, kept]
        assert torch.equal(view.down.weight, columns)  # indices are those of the dense model


@pytest.mark.parametrize("case", ["default", "second order", "global", "steps"])
@pytest.mark.parametrize("name", ["llama", "opt", "gemma3_text"])
def test_bf16(name, case):
    model = random_model(name, torch.bfloat16)
    report = prune(model, config_of(case), calibration=TOKENS)
    assert report.ratio_reached == pytest.approx(0.2, abs=0.04)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert logits_of(model).isfinite().all()


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("name", ["llama", "llama-mha", "gpt_neox"])
def test_steps_end_where_one_step_does(name, iterations):
    model, at_once = random_model(name), random_model(name)
    prune(model, config_of("default", ratio=0.5, iterations=iterations), calibration=TOKENS)
    prune(at_once, config_of("default", ratio=0.5), calibration=TOKENS)
    assert widths(model) == widths(at_once)


def test_steps_score_what_the_former_left(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "greenprune.prune.llm_pruner.collect",
        lambda model, *args, **options: seen.append(parameter_count(model)) or collect(model, *args, **options),
    )
    model = random_model("llama")
    dense = parameter_count(model)
    prune(model, config_of("steps", ratio=0.45, round_to=1), calibration=TOKENS)
    assert len(seen) == 2  # the first step has the statistics that are given
    gone = [dense - seen[0], seen[0] - seen[1], seen[1] - parameter_count(model)]
    assert min(gone) > 0.15 * sum(gone)


def test_one_pass_serves_all_ratios_and_reductions():
    stats = collect(random_model("llama"), TOKENS, {"gradient"})
    for fields in ({"ratio": 0.1}, {"ratio": 0.4}, {"reduction": "max"}, {"importance": "vectorize"}):
        given, gathered = random_model("llama"), random_model("llama")
        config = config_of("default", **fields)
        assert prune(given, config, statistics=stats) == prune(gathered, config, calibration=TOKENS)


def test_seeds_of_random_importance_differ():
    reports = [prune(random_model("llama"), config_of("random", seed=seed)) for seed in (0, 0, 1)]
    assert reports[0] == reports[1]
    assert reports[0].kept_channels != reports[2].kept_channels


def test_kv_groups_go_whole():
    model = random_model("llama")
    report = prune(model, config_of("kv_group", ratio=0.5), calibration=TOKENS)
    assert all(heads in ([0, 1], [2, 3]) for heads in report.kept_heads.values())
    assert {layer[:2] for layer in widths(model)[1:-1]} == {(2, 1)}


def test_within_groups_the_kv_heads_stay():
    model = random_model("llama")
    report = prune(model, config_of("default", ratio=0.5), calibration=TOKENS)
    assert all({head // 2 for head in heads} == {0, 1} for heads in report.kept_heads.values())
    assert {layer[:2] for layer in widths(model)[1:-1]} == {(2, 2)}


def test_importances_choose_differently():
    kept = {
        case: str(prune(random_model("llama"), config_of(case), calibration=TOKENS).kept_channels)
        for case in ("default", "second order", "vectorize, mean", "l2, prod", "random")
    }
    assert len(set(kept.values())) == len(kept)


@pytest.mark.parametrize(
    ("changes", "fields", "message"),
    [
        ({"num_key_value_heads": 1}, {"heads": "kv_group"}, "at least 2 KV heads, got 1"),
        ({}, {"heads": "kv_group", "ratio": 0.8}, "must leave a KV head"),
        ({}, {"ratio": 0.97}, "prune.ratio must be at most"),
        ({}, {"ratio": 0.97, "scope": "global"}, "prune.ratio must be at most"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(changes, fields, message):
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(**changes)).eval()
    before = logits_of(model)
    with pytest.raises(ConfigError, match=message):
        prune(model, PruneConfig(method="llm_pruner", **{"ratio": 0.3} | fields), calibration=TOKENS)
    assert torch.equal(logits_of(model), before)
