"""A run that diverges is stopped, and one that goes on says how far it is."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
from healing import TRAIN, VALIDATION, config, without_times
from transformers import AutoModelForCausalLM, TrainerCallback

from greenprune.errors import HealingDiverged
from greenprune.heal.lora import heal_with_lora


def test_progress_is_logged(checkpoint, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="greenprune"):
        heal_with_lora(checkpoint, TRAIN, VALIDATION, config(steps=2), tmp_path)
    assert any("step 2/2" in r.message and "validation loss" in r.message for r in caplog.records)


# A tiny model's loss never exceeds chance by much, whatever one does to it: so this one begins below chance.
WILD = {"steps": 50, "learning_rate": 1e3, "divergence_factor": 1.05}


@pytest.fixture(scope="module")
def trained(healed, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    healed[0].save_pretrained(folder)
    return folder


def test_divergence_stops_the_run_and_leaves_the_process_clean(checkpoint, trained, healed, tmp_path):
    work = tmp_path / "work"
    with pytest.raises(HealingDiverged, match=r"below 4\.\d+ .* loss of .* at step \d+ of 50; lower heal"):
        heal_with_lora(trained, TRAIN, VALIDATION, config(**WILD), work)
    assert not work.exists()
    _, history = heal_with_lora(checkpoint, TRAIN, VALIDATION, config(), work)
    assert without_times(history) == without_times(healed[1])


def test_nan_stops_the_run_at_once(checkpoint, tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            if state.global_step == 4:
                next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)

    with pytest.raises(HealingDiverged, match="training loss of nan at step 5 of 8"):
        heal_with_lora(checkpoint, TRAIN, VALIDATION, config(), tmp_path / "work", callbacks=(Poison(),))


def test_nan_model_is_refused_before_training(checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.model.norm.weight.data.fill_(math.nan)
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(HealingDiverged, match="validation loss of nan at step 0"):
        heal_with_lora(tmp_path / "nan", TRAIN, VALIDATION, config(), tmp_path / "work")
