"""The contract that every method keeps, on every architecture; and the choices by hand."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from architectures import TOKENS, logits_of, random_model
from tiny import tiny_config
from transformers import LlamaForCausalLM

from greenprune import PruneConfig, collect, perplexity, prune
from greenprune.collect import Statistics
from greenprune.config import PRUNE_VARIANTS
from greenprune.errors import ConfigError, ModelError
from greenprune.models import Decoder, remove_layers
from greenprune.prune import METHODS, Removed
from greenprune.prune.depth import angular_block, least_influential
from greenprune.prune.sequence import composed

DEPTH = ["angular", "bi", "taylor_depth", "ppl_depth", "sleb", "minitron_depth"]


@pytest.mark.parametrize("method", DEPTH)
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_neox"])
def test_the_layers_that_stay_are_bit_identical(name, method):
    model, untouched = random_model(name), random_model(name)
    config = PruneConfig(method=method, block_size=2, skip_first=1, skip_last=1)
    report = prune(model, config, calibration=TOKENS)

    assert len(report.layers_removed) == 2
    assert not {0, 5} & set(report.layers_removed)
    assert len(Decoder(model)) == model.config.num_hidden_layers == 4
    assert report.ratio_reached == pytest.approx(2 / 6)
    assert report.parameters_before - report.parameters_after == sum(
        p.numel() for i in report.layers_removed for p in Decoder(untouched).layers[i].parameters()
    )
    kept = [i for i in range(6) if i not in report.layers_removed]
    for position, index in enumerate(kept):
        before, after = Decoder(untouched).layers[index].state_dict(), Decoder(model).layers[position].state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_every_method_has_a_config_and_every_config_a_method():
    assert METHODS.keys() == PRUNE_VARIANTS.keys()


def test_none_changes_nothing(tiny_model):
    before = logits_of(tiny_model)
    report = prune(tiny_model, PruneConfig(method="none"))
    assert (report.ratio_reached, report.layers_removed) == (0.0, [])
    assert torch.equal(logits_of(tiny_model), before)


def test_steps_are_composed_in_dense_indices(tiny_model):
    steps = [{"method": "bi", "block_size": 1}, {"method": "angular", "block_size": 2}]
    config = PruneConfig(method="sequence", steps=steps)
    twice = copy.deepcopy(tiny_model)
    first = prune(twice, PruneConfig(**steps[0]), calibration=TOKENS)
    second = prune(twice, PruneConfig(**steps[1]), calibration=TOKENS)  # on statistics of the shorter model
    report = prune(tiny_model, config, calibration=TOKENS)
    left = [layer for layer in range(4) if layer not in first.layers_removed]
    assert report.layers_removed == sorted(first.layers_removed + [left[i] for i in second.layers_removed])
    assert torch.equal(logits_of(tiny_model), logits_of(twice))


def test_composed_widths_by_hand():
    first = Removed(layers_removed=[1], kept_heads={0: [1, 3], 2: [0, 1]})
    then = Removed(layers_removed=[2], kept_heads={0: [1], 1: [0]}, kept_channels={0: [2, 4]})
    assert composed(first, then, 4) == Removed([1, 3], {0: [3], 2: [0]}, {0: [2, 4]})


def test_angular_block_by_hand():
    nan = math.nan
    distance = torch.tensor([[0.3, 0.1, 0.2, 0.4], [0.5, 0.2, 0.2, nan], [0.6, 0.1, nan, nan], [0.9, nan, nan, nan]])
    assert angular_block(distance, 1) == [1]
    assert angular_block(distance, 2) == [1, 2]  # of equals the first
    assert angular_block(distance, 2, skip_first=2) == [2, 3]
    assert angular_block(distance, 1, skip_first=2) == [2]
    assert angular_block(distance, 3, skip_last=1) == [0, 1, 2]


def test_least_influential_by_hand():
    influence = torch.tensor([0.5, 0.1, 0.4, 0.2, 0.05])
    assert least_influential(influence, 2) == [1, 4]
    assert least_influential(influence, 2, skip_last=1) == [1, 3]
    assert least_influential(influence, 1, skip_first=2, skip_last=1) == [3]


SCORES = {"taylor_depth": "layer.taylor", "ppl_depth": "layer_perplexity"}


@pytest.mark.parametrize("method", SCORES)
def test_lowest_scores_go_but_for_the_originals_protected_layers(method):
    score = torch.tensor([0, 0, 0, 0, 7, 5, 6, 5, 8, 9, 0, 0.0], dtype=torch.float64)
    statistics = Statistics({SCORES[method]: score}, 1, 1)
    for fields, removed in [
        ({"block_size": 1}, [5]),  # of equals the first
        ({"block_size": 3}, [5, 6, 7]),
        ({"block_size": 3, "skip_first": 0}, [0, 1, 2]),
        ({"block_size": 3, "skip_last": 0}, [5, 10, 11]),
    ]:
        model = LlamaForCausalLM(tiny_config(num_hidden_layers=12))
        assert prune(model, PruneConfig(method=method, **fields), statistics=statistics).layers_removed == removed
    shallow = LlamaForCausalLM(tiny_config(num_hidden_layers=11))  # too few layers to protect six
    config = PruneConfig(method=method, block_size=2)
    assert prune(shallow, config, statistics=Statistics({SCORES[method]: score[:11]}, 1, 1)).layers_removed == [0, 1]


def loss_without(model, layers) -> float:
    shorter = copy.deepcopy(model)
    remove_layers(shorter, layers)
    return perplexity(shorter, TOKENS)


def test_sleb_scores_anew_after_each_layer():
    model, alive = random_model("llama"), [0, 1, 2, 3, 4, 5]
    at_once = sorted(range(1, 5), key=lambda layer: loss_without(model, [layer]))[:3]
    for _ in range(3):
        gone = [layer for layer in range(6) if layer not in alive]
        alive.remove(min(alive[1:-1], key=lambda layer: loss_without(model, [*gone, layer])))
    report = prune(model, PruneConfig(method="sleb", block_size=3), calibration=TOKENS)  # keeps the first and last
    assert report.layers_removed == [layer for layer in range(6) if layer not in alive]
    assert report.layers_removed != sorted(at_once), "a case that one shot gets wrong"


@pytest.mark.parametrize("skips", [(0, 0), (1, 2)])
def test_minitron_depth_tries_every_window(skips):
    model = random_model("gemma3_text")
    windows = [[start, start + 1] for start in range(skips[0], 6 - skips[1] - 1)]
    expected = min(windows, key=lambda window: loss_without(model, window))
    config = PruneConfig(method="minitron_depth", block_size=2, skip_first=skips[0], skip_last=skips[1])
    assert prune(model, config, calibration=TOKENS).layers_removed == expected


def test_minitron_depth_prefers_a_lower_loss_to_an_unchanged_one(tiny_model):
    useless, harmful = tiny_model.model.layers[1], tiny_model.model.layers[2]
    with torch.no_grad():
        useless.self_attn.o_proj.weight.zero_()
        useless.mlp.down_proj.weight.zero_()
        harmful.mlp.down_proj.weight.copy_(50 * tiny_model.lm_head.weight[5][:, None])  # always predicts token 5
    dense = perplexity(tiny_model, TOKENS)
    assert loss_without(tiny_model, [1]) == pytest.approx(dense)
    assert loss_without(tiny_model, [2]) < dense
    report = prune(tiny_model, PruneConfig(method="minitron_depth", block_size=1), calibration=TOKENS)
    assert report.layers_removed == [2]


def test_statistics_serve_several_configurations(tiny_model):
    stats = collect(tiny_model, TOKENS, METHODS["bi"].statistics)
    report = prune(tiny_model, PruneConfig(method="bi", block_size=1), statistics=stats)
    assert report.layers_removed == [int(stats.block_influence.argmin())]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"block_size": 4}, "got 4"), ({"block_size": 2, "skip_first": 2, "skip_last": 1}, "3 of them skipped")],
)
def test_config_that_does_not_fit_is_refused_before_anything_changes(tiny_model, fields, message):
    before = logits_of(tiny_model)
    with pytest.raises(ConfigError, match=message):
        prune(tiny_model, PruneConfig(method="angular", **fields), calibration=TOKENS)
    assert torch.equal(logits_of(tiny_model), before)


def test_calibration_is_asked_for(tiny_model):
    with pytest.raises(ConfigError, match="needs calibration tokens"):
        prune(tiny_model, PruneConfig(method="bi", block_size=1))


@pytest.mark.parametrize("indices", [[4], [-1], [0, 1, 2, 3]])
def test_layers_that_are_not_there(tiny_model, indices):
    with pytest.raises(ModelError, match=r"some but not all of 0\.\.3"):
        remove_layers(tiny_model, indices)


def test_unknown_architecture_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=32))
    with pytest.raises(ModelError, match="got gpt2; add its entry"):
        prune(model, PruneConfig(method="bi", block_size=1), calibration=TOKENS % 32)


PLAIN_LOADER = """
import sys
sys.modules["greenprune"] = None  # this interpreter must do without it
import json, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokens = torch.tensor(json.loads(sys.argv[2]))
print(json.dumps(model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False).tolist()))
"""


def test_checkpoint_loads_where_greenprune_is_not_installed(tmp_path, tiny_model):
    prune(tiny_model, PruneConfig(method="angular", block_size=2), calibration=TOKENS)
    tiny_model.save_pretrained(tmp_path)
    tokens = TOKENS[:1, :6]
    run = subprocess.run(
        [sys.executable, "-c", PLAIN_LOADER, str(tmp_path), json.dumps(tokens.tolist())],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = tiny_model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert json.loads(run.stdout.splitlines()[-1]) == expected.tolist()
