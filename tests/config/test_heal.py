"""What healing's section says: which losses count, what a teacher is asked, what is in keys."""

from __future__ import annotations

import pytest

from greenprune.config import FullHealing, LoraHealing
from greenprune.experiment import parse_experiment


@pytest.mark.parametrize(
    ("loss", "weights"),
    [
        ("ce", {"ce": 1.0}),
        ("kd", {"kd": 1.0}),
        ({"ce": 0.3, "kd": 0.7}, {"ce": 0.3, "kd": 0.7}),
        ({"kd": 2}, {"kd": 2}),
    ],
)
def test_the_losses_that_count(loss, weights):
    assert LoraHealing(loss=loss).weights == weights


def test_a_teacher_is_asked_only_where_it_is_listened_to():
    assert LoraHealing().teaching() is None
    assert FullHealing(loss={"ce": 1, "kd": 0}).teaching() is None
    asked = LoraHealing(loss="kd", steps=100, batch_size=2, gradient_accumulation=4, teacher={"top_k": 8}).teaching()
    assert (asked.blocks, asked.top_k, asked.temperature) == (800, 8, 1.0)
    assert LoraHealing(track_kl=True).teaching().blocks == 0, "only the validation blocks"


def test_what_a_teacher_says_is_the_same_for_students_of_one_text():
    section = {"loss": "kd", "steps": 100}
    students = [
        LoraHealing(**section),
        LoraHealing(**section, rank=16, learning_rate=1e-3, quantize="nf4"),
        LoraHealing(loss={"ce": 0.5, "kd": 0.5}, steps=50, gradient_accumulation=32, warmup_steps=5),
        FullHealing(**section),
    ]
    assert len({student.teaching().model_dump_json() for student in students}) == 1
    assert LoraHealing(**section, seed=1).teaching() != students[0].teaching()


def test_off_by_default_is_in_no_key():
    plain = LoraHealing(bos="none").identity()
    later = {"loss", "teacher", "track_kl", "tokens", "bf16", "dora", "rslora"}
    assert not plain.keys() & later
    assert LoraHealing(bos="none", teacher={"top_k": 8}).identity() == plain, "nobody listens to it"
    distilled = LoraHealing(bos="none", loss="kd", teacher={"top_k": 8}).identity()
    assert distilled == plain | {"loss": "kd", "teacher": {"top_k": 8, "temperature": 1.0}}
    assert LoraHealing(bos="none", dora=True).identity() == plain | {"dora": True}


def test_tokens_are_another_way_to_say_steps():
    sizes = {"seq_len": 128, "batch_size": 2, "gradient_accumulation": 2, "warmup_steps": 0}
    by_tokens, by_steps = LoraHealing(tokens=20_000, **sizes), LoraHealing(steps=39, **sizes)
    assert by_tokens.num_steps == 39
    assert by_tokens.blocks == 39 * 4
    assert by_tokens.identity() == by_steps.identity()


def test_a_space_may_vary_tokens_and_losses(tiny_experiment):
    tiny_experiment["heal"] = {"method": "lora", "tokens": 4096, "seq_len": 16, "warmup_steps": 0}
    tiny_experiment["sweep"]["space"] = {
        "heal.tokens": {"choice": [1024, 2048]},
        "heal.loss": {"choice": ["ce", "kd", {"ce": 0.3, "kd": 0.7}]},
    }
    experiment = parse_experiment(tiny_experiment)
    trial = experiment.trial({"heal.tokens": 2048, "heal.loss": {"ce": 0.3, "kd": 0.7}})
    assert trial.heal.num_steps == 8
    assert trial.heal.weights == {"ce": 0.3, "kd": 0.7}
    assert trial.trial_id() != experiment.trial({"heal.tokens": 1024}).trial_id()
