"""What a pruning method made outlives the merge: zeros of a mask, layers of different widths."""

from __future__ import annotations

import pytest
import torch
from healing import TRAIN, VALIDATION, config, logits, zeros_of
from transformers import AutoModelForCausalLM

from greenprune import PruneConfig, prune
from greenprune.heal.lora import heal_with_lora
from greenprune.models.loss import mean_loss


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_zeros_of_a_mask_outlive_the_merge(checkpoint, tmp_path, quantize):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prune(model, PruneConfig(method="magnitude", structure="2:4"))
    model.save_pretrained(tmp_path / "masked")
    healed, history = heal_with_lora(
        tmp_path / "masked", TRAIN, VALIDATION, config(quantize=quantize, target_modules="mlp"), tmp_path / "work"
    )
    before, after = zeros_of(model), zeros_of(healed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    name = "model.layers.0.mlp.up_proj.weight"
    assert before[name].float().mean() == 0.5
    assert not torch.equal(model.state_dict()[name], healed.state_dict()[name])
    assert healed.config.pruning_mask == "2:4"
    assert not any("lora" in name for name in healed.state_dict())
    assert history.loss_merged == pytest.approx(mean_loss(healed, VALIDATION, batch_size=2), abs=1e-5)
    assert history.loss_merged < history.loss_start


def test_zeros_that_no_mask_made_may_be_filled(checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0] = 0
    model.save_pretrained(tmp_path / "model")
    healed, _ = heal_with_lora(tmp_path / "model", TRAIN, VALIDATION, config(), tmp_path / "work")
    assert healed.model.layers[0].mlp.up_proj.weight[0].any()


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_layers_of_different_widths_heal_and_stay_so(checkpoint, tmp_path, quantize):
    from greenprune.models import fit_class_and_config, keep_channels, keep_heads, load_checkpoint

    model = load_checkpoint(checkpoint, device="cpu")
    keep_heads(model, 1, [0, 2])
    keep_channels(model, 1, range(64))
    assert fit_class_and_config(model) == "trust_remote_code"
    model.save_pretrained(tmp_path / "pruned")
    healed, history = heal_with_lora(
        tmp_path / "pruned", TRAIN, VALIDATION, config(quantize=quantize), tmp_path / "work"
    )
    assert history.loss_end < history.loss_start - 0.2
    healed.save_pretrained(tmp_path / "healed")
    reloaded = load_checkpoint(tmp_path / "healed", device="cpu")
    assert type(reloaded).__name__ == "PrunedLlamaForCausalLM"
    assert [own.intermediate_size for own in reloaded.config.per_layer_config] == [128, 64, 128]
    assert torch.equal(logits(reloaded), logits(healed))
