"""What holds of every healer of the table; each has a row here."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from healing import (
    SEQ_LEN,
    TRAIN,
    VALIDATION,
    Interrupt,
    logits,
    teacher,
    text_file,
    toy_tokenizer,
    without_times,
    zeros_of,
)
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from greenprune import PruneConfig, prune
from greenprune._callable import function_named
from greenprune.config import HEAL_VARIANTS, HEALERS, LoraHealing
from greenprune.config.heal import _variant
from greenprune.heal import heal_stage
from greenprune.heal.history import History
from greenprune.heal.teacher import teach_stage

STEPS = 8
TRAINING = {
    "steps": STEPS, "seq_len": SEQ_LEN, "batch_size": 2, "gradient_accumulation": 2, "warmup_steps": 2,
    "validation_samples": 6, "eval_every": 3, "checkpoint_every": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What a healer is tried with: options of its section, beside those of TRAINING."""

    healer: str
    options: dict[str, Any] = field(default_factory=dict)

    def section(self, **more: Any) -> Any:
        return HEAL_VARIANTS[self.healer](**TRAINING, **self.options, **more)

    def heal(self, checkpoint: Path, work: Path, **more: Any) -> tuple[Any, History]:
        function = function_named(HEALERS[self.healer].function)
        if self.section().teaching():
            more["teacher"] = teacher(work.with_name(f"{work.name}-record"))
        return function(checkpoint, TRAIN, VALIDATION, self.section(), work, dtype="float32", **more)


ROWS = {
    "lora": Row("lora", {"learning_rate": 2e-2}),
    "lora, nf4": Row("lora", {"learning_rate": 2e-2, "quantize": "nf4"}),
    "lora, dora and rslora": Row("lora", {"learning_rate": 1e-2, "dora": True, "rslora": True}),
    "lora, kd": Row("lora", {"learning_rate": 2e-2, "loss": {"ce": 0.3, "kd": 0.7}}),
    "full": Row("full", {"learning_rate": 1e-3}),
}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


@pytest.fixture(scope="module")
def runs(checkpoint, tmp_path_factory) -> dict[str, tuple[Any, History]]:
    """Each row's model and history, undisturbed."""
    return {name: row.heal(checkpoint, tmp_path_factory.mktemp("work")) for name, row in ROWS.items()}


@pytest.fixture
def run(row, runs) -> tuple[Any, History]:
    (name,) = [name for name, each in ROWS.items() if each is row]
    return runs[name]


def test_every_healer_has_a_row():
    assert {row.healer for row in ROWS.values()} == {name for name, entry in HEALERS.items() if entry.function}


@every_row
def test_the_loss_does_not_rise(row, run):
    model, history = run
    assert history.loss_end <= history.loss_start
    assert history.loss_merged <= history.loss_start
    with torch.no_grad():
        assert model(VALIDATION, labels=VALIDATION).loss.item() == pytest.approx(history.loss_merged, abs=1e-5)


@every_row
def test_the_history_is_whole(row, run):
    _, history = run
    assert [step.step for step in history.train] == list(range(1, STEPS + 1))
    assert [point.step for point in history.validation] == [0, 3, 6, 8]
    assert (history.loss_start, history.loss_end) == (history.validation[0].loss, history.validation[-1].loss)
    assert history.steps == STEPS
    assert [point.tokens for point in history.validation] == [
        point.step * 2 * 2 * SEQ_LEN for point in history.validation
    ]
    divergences = [point.kl for point in history.validation]
    if row.section().teaching():
        assert divergences[-1] < divergences[0]
    else:
        assert divergences == [None] * 4
    assert history.tokens == STEPS * 2 * 2 * SEQ_LEN
    assert history.seconds > 0
    assert history.trainable_parameters > 0
    losses = [*(step.loss for step in history.train), *(point.loss for point in history.validation)]
    assert all(map(math.isfinite, [*losses, history.train_loss, history.loss_merged]))


@every_row
def test_the_same_seed_gives_the_same_model(row, run, checkpoint, tmp_path):
    model, history = row.heal(checkpoint, tmp_path)
    assert without_times(history) == without_times(run[1])
    assert torch.equal(logits(model), logits(run[0]))


@every_row
def test_zeros_of_a_mask_stay(row, checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prune(model, PruneConfig(method="magnitude", structure="2:4"))
    model.save_pretrained(tmp_path / "masked")
    healed, _ = row.heal(tmp_path / "masked", tmp_path / "work")
    before, after = zeros_of(model), zeros_of(healed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(logits(model), logits(healed))


@every_row
def test_an_interrupted_run_ends_as_an_undisturbed_one(row, run, checkpoint, tmp_path):
    if not HEALERS[row.healer].resumes:
        pytest.skip(f"{row.healer} begins anew")
    with pytest.raises(KeyboardInterrupt):
        row.heal(checkpoint, tmp_path, callbacks=(Interrupt(7),))
    witness = Interrupt()
    model, history = row.heal(checkpoint, tmp_path, callbacks=(witness,))
    assert witness.seen == [7, 8], "no finished step is repeated"
    assert without_times(history) == without_times(run[1])
    assert torch.equal(logits(model), logits(run[0]))


@every_row
def test_the_stage_writes_a_checkpoint_for_plain_transformers(row, checkpoint, tmp_path):
    source, out = tmp_path / "pruned", tmp_path / "out"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.save_pretrained(source)
    toy_tokenizer().save_pretrained(source)
    out.mkdir()
    section = row.section(dataset=text_file(tmp_path, 200))
    inputs = {}
    if teaching := section.teaching():
        inputs["teacher"] = tmp_path / "record"
        inputs["teacher"].mkdir()
        teach_stage(inputs["teacher"], checkpoint=source, config=teaching, dtype="float32")
    heal_stage(out, checkpoint=source, config=section, dtype="float32", **inputs)
    healed = AutoModelForCausalLM.from_pretrained(out / "checkpoint")
    assert type(healed) is type(model)
    assert healed.state_dict().keys() == model.state_dict().keys()
    history = json.loads((out / "history.json").read_text())
    assert list(history) == HISTORY
    assert inputs or history["loss_merged"] < history["loss_start"]  # its teacher here is itself
    assert {frozenset(step) for step in history["train"]} == {frozenset({"step", "loss", "learning_rate"})}
    assert {frozenset(point) for point in history["validation"]} == {frozenset({"step", "loss", "tokens", "kl"})}


HISTORY = [  # a key that goes or comes breaks a reader of the artifacts that are in stores
    "train", "validation", "loss_start", "loss_end", "train_loss", "steps", "seconds", "loss_merged", "tokens",
    "trainable_parameters", "peak_memory_bytes",
]  # fmt: skip


def test_a_history_has_its_keys_and_no_others():
    assert [each.name for each in fields(History)] == HISTORY


def test_sections_are_written_as_they_were():
    """Keys of artifacts are made of this: what stands here must not change."""
    assert json.dumps(HEAL_VARIANTS["none"]().identity()) == '{"method": "none"}'
    assert json.dumps(LoraHealing(bos="none").identity(), sort_keys=True) == _sorted(
        '{"method": "lora", "dataset": "c4", "rank": 8, "alpha": 16.0, "dropout": 0.05, '
        '"target_modules": "all-linear", "quantize": "none", "steps": 500, '
        '"seq_len": 1024, "batch_size": 1, "gradient_accumulation": 16, '
        '"learning_rate": 0.0001, "scheduler": "cosine", "warmup_steps": 100, "weight_decay": 0.0, '
        '"gradient_checkpointing": false, "validation_samples": 32, "eval_every": 100, "checkpoint_every": 200, '
        '"divergence_factor": 2.0, "seed": 0}'
    )
    changed = {"method": "lora", "target_modules": ["q_proj"], "quantize": "nf4", "steps": 200}
    assert LoraHealing(**changed).model_dump(mode="json") == LoraHealing().model_dump(mode="json") | changed


def _sorted(text: str) -> str:
    """As keys are made: in the order of names."""
    return json.dumps(json.loads(text), sort_keys=True)


def test_a_healer_may_borrow_the_fields_of_another():
    variant = _variant("lora_twice", LoraHealing)
    section = variant(steps=200)
    assert isinstance(section, LoraHealing)
    assert section.model_dump(mode="json") == LoraHealing(steps=200).model_dump(mode="json") | {"method": "lora_twice"}
    assert pickle.loads(pickle.dumps(section)) == section
    with pytest.raises(ValidationError, match="lora_twice"):
        variant(method="lora")
