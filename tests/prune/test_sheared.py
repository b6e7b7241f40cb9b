"""Sheared LLaMA's masks: their maths, that a masked model is the cut one, and that they find what isn't needed."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, TOKENS, logits_of, random_model

from greenprune import PruneConfig, prune
from greenprune.data import drawn_in_passes
from greenprune.errors import ConfigError, ModelError
from greenprune.models import Decoder, load, load_streamed
from greenprune.prune.hard_concrete import LOG_ALPHA_LIMIT, HardConcrete
from greenprune.prune.sheared import ShapeMasks, checked_whole, cut, mask_optimizers, mean_next_token_loss, rate

SHAPE = {"layers": 4, "heads": 2, "ffn": 40}


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


# -------------------------------------------------------------------------------------------------- maths


@pytest.mark.parametrize("log_alpha", [-3.0, 0.0, 2.0])
def test_the_expected_share_is_that_of_samples(log_alpha, random):
    mask = HardConcrete(1, 20_000, 10_000).requires_grad_(False)
    mask.log_alpha.fill_(log_alpha)
    sample = mask.sample(random)
    assert float(sample.min()) >= 0
    assert float(sample.max()) <= 1
    assert float(mask.expected_share()) == pytest.approx(float((sample > 0).float().mean()), abs=0.02)


def test_the_penalty_pulls_to_the_wanted_number_from_both_sides():
    mask = HardConcrete(2, 8, 4)
    torch.nn.init.constant_(mask.log_alpha[0], LOG_ALPHA_LIMIT)
    torch.nn.init.constant_(mask.log_alpha[1], -LOG_ALPHA_LIMIT)
    with torch.no_grad():
        mask.multipliers[1] = 1.0
    penalty = mask.penalty(progress=1.0)
    penalty.backward()
    assert penalty > 0
    assert (mask.log_alpha.grad[0] > 0).all()  # too many stay: down
    assert (mask.log_alpha.grad[1] < 0).all()
    assert mask.multipliers.grad[0, 0] > 0 > mask.multipliers.grad[0, 1]
    assert HardConcrete(1, 8, 4).penalty(progress=0.0).item() == pytest.approx(0, abs=0.1)


def test_what_stays_is_the_largest(random):
    mask = HardConcrete(3, 10, 4)
    torch.nn.init.normal_(mask.log_alpha, generator=random)
    assert mask.best().tolist() == mask.log_alpha.topk(4).indices.sort().values.tolist()
    assert (mask.chosen().sum(dim=1) == 4).all()
    assert ((mask.certain() > 0) <= (mask.chosen() > 0)).all()


def test_masks_that_begin_by_importance_are_decided_but_for_those_at_the_border(random):
    mask, importance = HardConcrete(2, 100, 60), torch.rand(2, 100, generator=random)
    mask.begin(importance)
    assert mask.best().tolist() == importance.topk(60).indices.sort().values.tolist()
    assert ((mask.log_alpha.abs() < LOG_ALPHA_LIMIT).sum(dim=1) == 10).all()
    narrow = HardConcrete(1, 3, 2)
    narrow.begin(torch.tensor([[2.0, 3.0, 1.0]]))
    assert narrow.log_alpha.tolist() == [[pytest.approx(sign * LOG_ALPHA_LIMIT) for sign in (1, 1, -1)]]


@pytest.mark.parametrize("learning_rate", [0.1, 0.3])
def test_the_share_is_held_and_the_order_kept_while_nothing_but_the_shape_is_learned(learning_rate):
    masks = torch.nn.ModuleDict({"ffn": HardConcrete(1, 1536, 1280)})
    mask = masks["ffn"]
    mask.begin(torch.arange(1536.0, 0, -1)[None])
    optimizers, shares = mask_optimizers(masks, learning_rate), []
    for _ in range(200):
        mask.penalty(progress=1.0).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        mask.clamp()
        shares.append(mask.expected_share().item())
    assert shares[-100:] == pytest.approx([1280 / 1536] * 100, abs=0.01)
    assert (mask.best() < 1280).float().mean() > 0.99


def test_each_sample_comes_once_before_any_comes_again(random):
    order = drawn_in_passes(5, 12, random)
    assert sorted(order[:5].tolist()) == sorted(order[5:10].tolist()) == list(range(5))


def test_the_learning_rate_rises_and_falls():
    rates = [rate(step, 20) for step in range(20)]
    assert rates[0] < rates[1] == 1
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 18)


# ------------------------------------------------------------------------------------------------- wiring


def test_the_loss_is_that_of_all_next_tokens():
    model = random_model("gemma2")
    logits = logits_of(model)[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, TOKENS[:, 1:].flatten())
    torch.testing.assert_close(mean_next_token_loss(model, TOKENS), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("heads", ["within_group", "kv_group"])
def test_a_model_under_its_masks_is_the_one_that_is_cut(name, heads, random):
    targets = SHAPE if name in ("opt", "gpt_neox") else SHAPE | {"hidden": 24}
    config, model = PruneConfig(method="sheared", targets=targets, heads=heads, steps=1), random_model(name)
    masks = ShapeMasks(checked_whole(model, config), config)
    for mask in masks.masks.values():
        torch.nn.init.normal_(mask.log_alpha, generator=random)
    masks.now = masks.settled()
    with masks.on(model), torch.no_grad():
        masked = logits_of(model)
    removed = cut(model, masks, "")
    assert len(removed.layers_removed) == 2
    torch.testing.assert_close(logits_of(model), masked, atol=2e-5, rtol=1e-4)


def test_masks_find_the_channels_that_do_nothing():
    model, idle = random_model("llama"), {}
    for layer, view in enumerate(Decoder(model).views()):
        order = torch.randperm(view.channels, generator=torch.Generator().manual_seed(layer))
        idle[layer] = set(order[: view.channels // 2].tolist())
        with torch.no_grad():
            view.down.weight.mul_(8)  # the others matter
            view.down.weight[:, sorted(idle[layer])] = 0
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    torch.manual_seed(0)
    text = model.generate(torch.randint(3, 64, (16, 1)), max_new_tokens=24, do_sample=True, top_k=0, pad_token_id=0)
    fields = {"steps": 150, "learning_rate": 0, "mask_learning_rate": 0.3}
    report = prune(model, PruneConfig(method="sheared", targets={"ffn": 24}, **fields), calibration=text)
    missed = sum(len(idle[layer] & set(kept)) for layer, kept in report.kept_channels.items())
    assert missed < 0.3 * sum(len(kept) for kept in report.kept_channels.values())  # by chance half of them


def test_the_weights_learn_too_and_keep_their_dtype():
    losses = {}
    for learning_rate in (0.0, 1e-2):
        model = random_model("llama", torch.bfloat16)
        config = PruneConfig(method="sheared", targets={"ffn": 40}, steps=30, learning_rate=learning_rate)
        report = prune(model, config, calibration=TOKENS)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert all(parameter.requires_grad for parameter in model.parameters())
        losses[learning_rate] = float(report.notes[0].rpartition(" ")[2])
    assert losses[1e-2] < losses[0.0] - 0.1


@pytest.mark.parametrize(
    ("targets", "error"),
    [
        ({"heads": 3}, r"prune.targets.heads must be one of 2, 4, … 4, got 3"),
        ({"layers": 7}, r"prune.targets.layers must be one of 1, 2, … 6, got 7"),
        ({"ffn": 0}, r"prune.targets.ffn must be one of"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(targets, error):
    with pytest.raises(ConfigError, match=error):
        prune(random_model("llama"), PruneConfig(method="sheared", targets=targets), calibration=TOKENS)


def test_a_model_that_stays_in_its_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "IN_FILES_FROM", 0)
    random_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="sheared trains the whole model"):
        prune(load_streamed(tmp_path), PruneConfig(method="sheared", targets={"ffn": 40}), calibration=TOKENS)
