"""Width pruning: the contract on every architecture, and the maths by hand on small matrices."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, TOKENS, assert_generates, assert_reloads, logits_of, random_model
from width_contract import keeps_width_contract

from greenprune import PruneConfig, collect, prune
from greenprune.errors import ConfigError, ModelError
from greenprune.experiment import parse_experiment
from greenprune.models import Decoder
from greenprune.prune import parameter_count
from greenprune.prune.flap import FLUCTUATIONS, compensation, standardised
from greenprune.prune.minitron_width import head_sizes, hidden_for
from greenprune.prune.wanda_sp import input_scores
from greenprune.prune.widths import Units, apply_widths, best_kept, best_of_all, head_slots, rounded, units_of
from greenprune.store import Store
from greenprune.trial import run_trial

CASES = {
    "flap": {"method": "flap"},
    "flap-ul-um": {"method": "flap", "structure": "UL-UM", "metric": "IFV"},
    "flap-ul-mm": {"method": "flap", "structure": "UL-MM", "remove_heads": 4, "metric": "WIFN"},
    "flap-al-mm": {"method": "flap", "structure": "AL-MM", "bias": False},
    "flap-uniform": {"method": "flap", "uniform": True},
    "flap-groups": {"method": "flap", "heads": "kv_group"},
    "wanda_sp": {"method": "wanda_sp"},
    "wanda_sp-sequential": {"method": "wanda_sp", "sequential": True},
    "wanda_sp-groups": {"method": "wanda_sp", "heads": "kv_group"},
    "minitron_width": {"method": "minitron_width"},
    "minitron_width-ffn": {"method": "minitron_width", "targets": ["ffn"]},
}
SKIPS = {"skip_first": 1, "skip_last": 1}


def config_of(case: str, **fields) -> PruneConfig:
    return PruneConfig(**{"ratio": 0.2} | CASES[case] | fields)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["llama", "phi3", "opt"])
def test_every_option_keeps_the_contract(name, case, tmp_path):
    config = config_of(case) if config_of(case).uniform else config_of(case, **SKIPS)
    pruned = keeps_width_contract(config, name, tmp_path)
    layers = [sum(map(parameter_count, Decoder(model).layers)) for model in (pruned.untouched, pruned.model)]
    assert pruned.report.parameters_before - pruned.report.parameters_after == layers[0] - layers[1]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["llama"])
def test_bf16(name, case, tmp_path):
    model = random_model(name, torch.bfloat16)
    report = prune(model, config_of(case), calibration=TOKENS)
    assert report.ratio_reached == pytest.approx(0.2, abs=0.04)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert logits_of(model).isfinite().all()
    assert_reloads(model, tmp_path, report.needs)


# ------------------------------------------------------------------------------------------ several steps


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_neox"])
@pytest.mark.parametrize("second", ["flap", "wanda_sp", "wanda_sp-sequential", "minitron_width"])
def test_a_pruned_model_is_pruned_again(name, second, tmp_path):
    """Layers differ in width after the first steps, and statistics with them."""
    steps = [{"method": "bi", "block_size": 1}, {"method": "flap", "ratio": 0.1, "round_to": 4}]
    steps.append({"ratio": 0.1, "round_to": 4} | CASES[second])
    model = random_model(name)
    report = prune(model, PruneConfig(method="sequence", steps=steps), calibration=TOKENS)
    left = [layer for layer in range(6) if layer not in report.layers_removed]
    assert list(report.kept_channels) == left
    for position, layer in enumerate(left):
        view = Decoder(model).view(position)
        assert (view.heads, view.channels) == (len(report.kept_heads[layer]), len(report.kept_channels[layer]))
    assert report.ratio_reached == pytest.approx(1 - 5 / 6 * 0.9 * 0.9, abs=0.04)
    assert_generates(model)
    assert_reloads(model, tmp_path, report.needs)


@pytest.mark.parametrize("case", ["flap", "wanda_sp", "wanda_sp-sequential", "minitron_width"])
def test_one_width_is_refused_where_layers_differ(case):
    model = random_model("llama")
    prune(model, config_of("flap", ratio=0.1), calibration=TOKENS)
    before = logits_of(model)
    with pytest.raises(ConfigError, match=r"prune\.uniform needs layers of one width"):
        prune(model, config_of(case, uniform=True), calibration=TOKENS)
    assert torch.equal(logits_of(model), before)


@pytest.mark.parametrize(
    "method",
    ["flap", *(pytest.param(name, marks=pytest.mark.slow) for name in ("wanda_sp", "minitron_width", "llm_pruner"))],
)
def test_ten_ratios_share_one_calibration_pass(tiny_experiment, tmp_path, method):
    tiny_experiment["prune"] = {"method": method, "ratio": 0.5, "round_to": 1}
    tiny_experiment["heal"] = {"method": "none"}
    tiny_experiment["sweep"]["space"] = {"prune.ratio": {"choice": [round(0.05 * n, 2) for n in range(1, 11)]}}
    experiment = parse_experiment(tiny_experiment)
    for ratio in experiment.sweep.space["prune.ratio"].choice:
        assert run_trial(experiment.trial({"prune.ratio": ratio}), tmp_path / "runs").status == "ok"
    stages = [event["stage"] for event in Store(tmp_path / "runs").events() if event["event"] == "computed"]
    assert (stages.count("collect"), stages.count("prune")) == (1, 10)


def test_methods_share_the_pass_and_the_sequential_one_needs_text():
    for case in ("flap", "wanda_sp", "minitron_width"):
        assert (config_of(case).statistics(), config_of(case).needs_tokens()) == ({"activations"}, False)
    sequential = config_of("wanda_sp-sequential")
    assert (sequential.statistics(), sequential.needs_tokens()) == (frozenset(), True)


# --------------------------------------------------------------------------------------------------- widths


def test_slots_by_hand():
    scores = torch.tensor([3.0, 1.0, 2.0, 4.0, 6.0, 5.0])  # two groups of three heads
    assert head_slots(scores, 2, whole_groups=False) == [[1, 3], [2, 5], [0, 4]]
    assert head_slots(scores, 2, whole_groups=True) == [[0, 1, 2], [3, 4, 5]]
    assert head_slots(scores, 6, whole_groups=False) == [[1], [2], [0], [3], [5], [4]]


def test_rounded_widths_by_hand():
    assert rounded([13, 10, 9], 8, [16, 16, 16]) == [16, 8, 8]  # 32 in all before and after
    assert rounded([3, 20, 20], 8, [20, 20, 20]) == [8, 20, 20]  # at least one multiple; full widths stay
    assert rounded([5, 6, 7], 1, [9, 9, 9]) == [5, 6, 7]


def test_units_count_every_parameter():
    for name in ARCHITECTURES:
        for heads in ("within_group", "kv_group"):
            model = random_model(name)
            units = units_of(Decoder(model).view(0), heads == "kv_group")
            kept = best_kept(
                head_slots(torch.arange(4.0), Decoder(model).view(0).kv_heads, heads == "kv_group"),
                units.slots - 1,
                torch.arange(48.0),
                45,
            )
            apply_widths(model, {0: kept})
            left = parameter_count(Decoder(model).layers[0])
            assert units.total - left == units.slot + 3 * units.channel


def test_uniform_counts_by_hand():
    """The real model with nine KV heads: 64 columns of 576 in each of four matrices for a head; MLP of 1536."""
    single = Units(4 * 576**2 + 3 * 576 * 1536, 4 * 64 * 576, 9, True, 3 * 576, 1536)
    assert single.uniform(0.2, round_to=1) == (8, 1229)  # as the original: int(0.2 * 9), int(0.2 * 1536) gone
    assert single.uniform(0.2, round_to=8) == (8, 1232)
    grouped = Units(885_000 + 3 * 576 * 1536, 221_184, 3, False, 3 * 576, 1536)
    for ratio, left in {0.2: 3, 0.4: 2}.items():  # a third of the heads leaves at once, and not for less than a third
        slots, channels = grouped.uniform(ratio, round_to=1)
        assert slots == left
        assert grouped.removed(slots, channels) == pytest.approx(ratio, abs=1e-3)


def test_channels_make_up_for_heads_that_are_too_few():
    units = Units(total=1000, slot=200, slots=2, whole=True, channel=6, channels=100)
    assert units.uniform(0.15, round_to=1) == (2, 75)  # 0 heads and 15 channels would be 9 %
    assert units.kept(0.3, slots=1, round_to=1) == (1, 83)


@pytest.mark.parametrize("case", ["flap", "flap-ul-um", "flap-al-mm", "flap-uniform", "wanda_sp", "minitron_width"])
def test_unreachable_ratio_is_refused_before_anything_changes(case):
    model = random_model("llama")
    before = logits_of(model)
    with pytest.raises(ConfigError, match=r"prune\.ratio must be at most 0\.\d\d .*got 0\.95"):
        prune(model, config_of(case, ratio=0.95), calibration=TOKENS)
    assert torch.equal(logits_of(model), before)


# ----------------------------------------------------------------------------------------------------- FLAP


def test_metrics_by_hand():
    weight, variance, square_sum = torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([2.0, 5.0]), torch.ones(2) * 4
    assert FLUCTUATIONS["WIFV"](weight, variance, square_sum).tolist() == [20.0, 20.0]
    assert FLUCTUATIONS["IFV"](weight, variance, square_sum).tolist() == [2.0, 5.0]
    assert FLUCTUATIONS["WIFN"](weight, variance, square_sum).tolist() == [4.0, 2.0]
    assert standardised(torch.tensor([1.0, 2.0, 3.0])).tolist() == [-1.0, 0.0, 1.0]
    assert standardised(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_one_ranking_by_hand():
    heads, channels = torch.tensor([0.0, 5.0]), torch.tensor([4.0, 3.0, 2.0, 1.0])
    # in order of score: a head of 10, four channels of 2, the other head
    assert best_of_all([heads, channels], [10, 2], [1, 1], budget=14.0) == [1, 2]
    assert best_of_all([heads, channels], [10, 2], [1, 1], budget=27.0) == [2, 4]
    assert best_of_all([heads, channels - 9], [10, 2], [1, 3], budget=16.0) == [1, 3]  # three channels stay first


def test_compensation_by_hand():
    weight, mean = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), torch.tensor([10.0, 1.0, 2.0])
    assert compensation(weight, mean, torch.tensor([True, False, False])).tolist() == [8.0, 1.0]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("remove_heads", "part"), [(2, "out"), (0, "down")])
def test_bias_keeps_the_mean_output(name, remove_heads, part):
    """Of the first layer, whose inputs pruning doesn't change; of its MLP where attention stays whole."""

    def mean_output(model) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        linear = getattr(Decoder(model).view(0), part)
        handle = linear.register_forward_hook(lambda _, __, output: seen.append(output))
        logits_of(model)
        handle.remove()
        return seen[0].flatten(0, -2).mean(dim=0)

    dense, model, bare = (random_model(name) for _ in range(3))
    for each in (dense, model, bare):
        Decoder(each).view(0).out.weight.data *= 30
        Decoder(each).view(0).down.weight.data *= 30
    fields = {"remove_heads": remove_heads, "skip_last": 5, "ratio": 0.3, "round_to": 1}
    report = prune(model, config_of("flap-ul-mm", **fields), calibration=TOKENS)
    prune(bare, config_of("flap-ul-mm", bias=False, **fields), calibration=TOKENS)
    assert len(report.kept_heads[0]) == 4 - remove_heads
    assert len(report.kept_channels[0]) < 48
    torch.testing.assert_close(mean_output(model), mean_output(dense), atol=1e-6, rtol=1e-4)
    assert (mean_output(bare) - mean_output(dense)).abs().max() > 1e-3


def test_adaptive_widths_differ_and_reach_the_ratio():
    model = random_model("llama-mha")
    for layer, scale in zip(Decoder(model).layers, (1, 2, 4, 1, 2, 4), strict=True):
        layer.mlp.down_proj.weight.data *= torch.linspace(1, scale, 48)
    report = prune(model, config_of("flap", round_to=1, bias=False), calibration=TOKENS)
    assert len({len(channels) for channels in report.kept_channels.values()}) > 1
    assert report.ratio_reached == pytest.approx(0.2, abs=0.01)
    assert report.needs == "trust_remote_code"


def test_uniform_flap_with_biases_is_a_stock_llama():
    model = random_model("llama")
    report = prune(model, config_of("flap-uniform", round_to=1), calibration=TOKENS)
    assert report.needs == "transformers"
    assert model.config.mlp_bias
    assert report.ratio_reached == pytest.approx(0.2, abs=0.02)


def test_number_of_heads_is_set_in_manual_structures_only():
    with pytest.raises(ValueError, match="remove_heads is for structures UL-MM and AL-MM, got AL-AM"):
        config_of("flap", remove_heads=3)
    model = random_model("llama-mha")
    report = prune(model, config_of("flap-al-mm", remove_heads=5), calibration=TOKENS)
    assert sum(map(len, report.kept_heads.values())) == 6 * 4 - 5
    for case in ("flap-al-mm", "flap-ul-mm"):
        for fields in ({"remove_heads": 18, "ratio": 0.05}, {"remove_heads": 0, "ratio": 0.6}):
            with pytest.raises(ConfigError, match=r"prune\.remove_heads must leave channels .*0\.\d+, got \d+;"):
                prune(random_model("llama-mha"), config_of(case, **fields), calibration=TOKENS)


# ---------------------------------------------------------------------------------- Wanda-sp and Minitron


def test_wanda_sp_scores_by_hand():
    weight, square_sum = torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([4.0, 9.0])
    assert input_scores(weight, square_sum).tolist() == [4.0, 3.0]


def test_wanda_sp_layer_after_layer_scores_behind_the_pruned_ones():
    dense, sequential = random_model("llama"), random_model("llama")
    for model in (dense, sequential):
        for layer in Decoder(model).layers:
            layer.self_attn.o_proj.weight.data *= 30
            layer.mlp.down_proj.weight.data *= 30
    one = prune(dense, config_of("wanda_sp", ratio=0.4), calibration=TOKENS)
    other = prune(sequential, config_of("wanda_sp-sequential", ratio=0.4), calibration=TOKENS)
    assert (one.kept_heads[0], one.kept_channels[0]) == (other.kept_heads[0], other.kept_channels[0])
    assert one.kept_channels != other.kept_channels


def test_head_sizes_by_hand():
    assert head_sizes(torch.tensor([3.0, 4.0, 0.0, 2.0]), 2).tolist() == [5.0, 2.0]


def test_minitron_keeps_the_largest_activations():
    model = random_model("llama")
    statistics = collect(model, TOKENS, {"activations"})
    report = prune(model, PruneConfig(method="minitron_width", targets={"ffn": 40}), statistics=statistics)
    for layer, kept in report.kept_channels.items():
        assert kept == sorted(statistics["mlp.minitron"][layer].topk(40).indices.tolist())
    assert all(heads == [0, 1, 2, 3] for heads in report.kept_heads.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("heads", ["within_group", "kv_group"])
def test_minitron_reaches_exact_widths(name, heads, tmp_path):
    model = random_model(name)
    targets = {"intermediate_size": 36, "num_attention_heads": 2}
    if name not in ("opt", "gpt_neox"):
        targets["hidden_size"] = 24
    config = PruneConfig(method="minitron_width", targets=targets, heads=heads)
    report = prune(model, config, calibration=TOKENS)
    for layer in range(6):
        view = Decoder(model).view(layer)
        assert (view.heads, view.channels) == (2, 36)
        group = ARCHITECTURES[name].get("num_key_value_heads", 4) == 2
        assert view.kv_heads == (1 if group and heads == "kv_group" else 2)
    assert report.ratio_asked is None
    if "hidden_size" in targets:
        assert model.get_input_embeddings().weight.shape == (64, 24)
        assert report.notes == ["hidden size 32 became 24"]
    assert_generates(model)
    assert_reloads(model, tmp_path, report.needs)


@pytest.mark.parametrize("targets", [["hidden"], ["hidden", "ffn"], ["hidden", "heads"], ["hidden", "heads", "ffn"]])
def test_minitron_shares_the_ratio(targets, tmp_path):
    model = random_model("llama")
    config = PruneConfig(method="minitron_width", targets=targets, ratio=0.3, round_to=2)
    report = prune(model, config, calibration=TOKENS)
    assert report.ratio_reached == pytest.approx(0.3, abs=0.04)
    assert "hidden size" in report.notes[0]
    if "ffn" in targets:
        assert report.needs == "transformers"
    assert_reloads(model, tmp_path, report.needs)


def test_hidden_sizes_by_hand():
    assert hidden_for(0.9, 576, heads=9, round_to=8, slack=0.1) == 504  # a multiple of 72
    assert hidden_for(0.9, 576, heads=9, round_to=8, slack=0.01) == 520  # 504 is too far: a multiple of 8


@pytest.mark.parametrize(
    ("name", "fields", "error", "message"),
    [
        ("opt", {"targets": {"hidden": 16}}, ModelError, "got opt, which derives it from the hidden size"),
        ("llama", {"targets": {"heads": 3}}, ConfigError, r"prune\.targets\.heads must be one of 2, 4, … 4, got 3"),
        ("llama", {"targets": {"ffn": 50}}, ConfigError, r"prune\.targets\.ffn must be one of 1, 2, … 48, got 50"),
        ("llama", {"targets": ["heads"], "ratio": 0.6}, ConfigError, r"prune\.ratio must be at most"),
        ("llama", {"targets": ["ffn"], "ratio": 0.7}, ConfigError, r"prune\.ratio must be at most"),
    ],
)
def test_minitron_refuses_what_cannot_be(name, fields, error, message):
    model = random_model(name)
    before = logits_of(model)
    with pytest.raises(error, match=message):
        prune(model, PruneConfig(method="minitron_width", **fields), calibration=TOKENS)
    assert torch.equal(logits_of(model), before)


def test_hidden_dimensions_of_skipped_layers_are_refused():
    with pytest.raises(ValueError, match=r"skip_last must be 0, got 1 and None"):
        PruneConfig(method="minitron_width", targets={"hidden": 16}, skip_first=1)
