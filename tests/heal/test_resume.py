"""A killed run goes on where it was, and ends where an undisturbed one does."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from healing import TRAIN, VALIDATION, Interrupt, config, cut_in_half, interrupted, logits, without_times

from greenprune.heal.lora import heal_with_lora
from greenprune.heal.resume import last_whole_checkpoint


def resumed_steps(checkpoint: Path, work: Path, healed) -> list[int]:
    """The steps that a second attempt runs; its result must be the undisturbed one."""
    witness = Interrupt()
    model, history = heal_with_lora(checkpoint, TRAIN, VALIDATION, config(), work, callbacks=(witness,))
    assert without_times(history) == without_times(healed[1])
    assert torch.equal(logits(model), logits(healed[0]))
    return witness.seen


def test_resume_repeats_no_finished_step(checkpoint, healed, tmp_path):
    interrupted(checkpoint, tmp_path, step=7)
    assert resumed_steps(checkpoint, tmp_path, healed) == [7, 8]


def test_half_written_last_checkpoint_falls_back(checkpoint, healed, tmp_path):
    interrupted(checkpoint, tmp_path, step=7)
    cut_in_half(tmp_path / "checkpoint-6" / "optimizer.pt")
    assert resumed_steps(checkpoint, tmp_path, healed) == [4, 5, 6, 7, 8]


def test_whichever_file_is_cut_off_the_checkpoint_is_not_whole(checkpoint, tmp_path):
    heal_with_lora(checkpoint, TRAIN, VALIDATION, config(steps=2), tmp_path / "work")
    files = [
        "adapter_model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    ]
    for name in files:
        copy = tmp_path / name
        shutil.copytree(tmp_path / "work", copy)
        assert last_whole_checkpoint(copy) == copy / "checkpoint-2"
        cut_in_half(copy / "checkpoint-2" / name)
        assert last_whole_checkpoint(copy) is None, name


def test_no_whole_checkpoint_starts_anew(checkpoint, healed, tmp_path):
    interrupted(checkpoint, tmp_path, step=4)
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    assert resumed_steps(checkpoint, tmp_path, healed) == list(range(1, 9))


def test_finished_training_is_not_run_again(checkpoint, healed, tmp_path):
    heal_with_lora(checkpoint, TRAIN, VALIDATION, config(), tmp_path)
    assert resumed_steps(checkpoint, tmp_path, healed) == []


def test_broken_checkpoints_are_removed(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    assert last_whole_checkpoint(tmp_path) is None
    assert not any(tmp_path.iterdir())
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
