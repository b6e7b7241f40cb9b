"""A longer run goes on from the constant part of a shorter one in the store, and ends where it would have ended."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from healing import TRAIN, VALIDATION, Interrupt, config, logits, text_file, toy_tokenizer, without_times

from greenprune.config import ModelConfig
from greenprune.errors import ConfigError
from greenprune.heal.beginnings import STABLE
from greenprune.heal.lora import heal_with_lora
from greenprune.models import load_checkpoint
from greenprune.stages import Request, Source, perform
from greenprune.store import Store

WSD = {"scheduler": "wsd", "decay_share": 0.25}


def test_the_learning_rate_is_constant_and_falls_at_the_end(checkpoint, tmp_path):
    seen = Interrupt()
    seen.on_step_begin = lambda args, state, control, lr_scheduler, **_: rates.append(lr_scheduler.get_last_lr()[0])
    rates: list[float] = []
    heal_with_lora(checkpoint, TRAIN, VALIDATION, config(**WSD), tmp_path, callbacks=(seen,))
    assert [rate / 2e-2 for rate in rates] == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.5])


@pytest.mark.parametrize("text", [TRAIN, TRAIN[:7]])  # each block once, or several times
def test_runs_are_one_until_the_shorter_decays(checkpoint, tmp_path, text):
    """From the shorter one's kept state the longer one ends where it ends from the start."""
    shorter, longer = config(steps=4, **WSD), config(steps=8, **WSD)
    blocks = {4: text[: shorter.blocks], 8: text[: longer.blocks]}
    heal_with_lora(checkpoint, blocks[4], VALIDATION, shorter, tmp_path / "short")
    whole, history = heal_with_lora(checkpoint, blocks[8], VALIDATION, longer, tmp_path / "whole")
    shutil.copytree(tmp_path / "short" / STABLE, tmp_path / "begun")
    witness = Interrupt()
    begun, its_history = heal_with_lora(
        checkpoint, blocks[8], VALIDATION, longer, tmp_path / "begun", callbacks=(witness,)
    )
    assert witness.seen == [4, 5, 6, 7, 8]
    assert torch.equal(logits(begun), logits(whole))
    assert without_times(its_history) == without_times(history)


@pytest.fixture
def heal(checkpoint, tmp_path):
    """Heals in a store of its own, which has what was healed before; gives the artifact."""
    source = tmp_path / "pruned"
    shutil.copytree(checkpoint, source)
    toy_tokenizer().save_pretrained(source)
    text, model = text_file(tmp_path, 200), ModelConfig(id=str(source), dtype="float32")

    def run(storage: str, **fields):
        section = config(dataset=text, **fields)
        inputs = {"checkpoint": Source(model, "0" * 24), "teacher": None, "dense": None}
        request = Request("heal", section, inputs, options={"dtype": "float32"})
        return perform(request, str(tmp_path / storage)), Store(tmp_path / storage)

    return run


def test_the_store_gives_the_longest_shorter_run(heal):
    alone, elsewhere = heal("elsewhere", steps=12, **WSD)
    for steps in (4, 8, 16):
        heal("here", steps=steps, **WSD)
    made, store = heal("here", steps=12, **WSD)
    manifest = json.loads((store.path(made) / "manifest.json").read_text())
    before = heal("here", steps=8, **WSD)[0]
    assert manifest["begun_with"] == before.key
    assert made.key == alone.key
    assert made.energy_j is None  # only a part was metered
    weights = [load_checkpoint(each.path(made) / "checkpoint").state_dict() for each in (store, elsewhere)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert not (store.path(made) / "work").exists()


@pytest.mark.parametrize("other", [{"learning_rate": 1e-2}, {"scheduler": "cosine"}, {"seed": 1}, {"decay_share": 0.5}])
def test_a_run_of_another_configuration_is_no_beginning(heal, other):
    heal("here", steps=4, **WSD | other)
    made, store = heal("here", steps=8, **WSD)
    assert "begun_with" not in json.loads((store.path(made) / "manifest.json").read_text())


def test_other_schedules_keep_nothing(heal):
    made, store = heal("here", steps=4)
    assert not (store.path(made) / STABLE).exists()


def test_a_warm_up_that_leaves_no_room_for_the_decay_is_refused():
    with pytest.raises((ConfigError, ValueError), match="must leave room for wsd's decay, 2 of 8 steps, got 7"):
        config(warmup_steps=7, **WSD)
