"""The loss on states that the student has in common with the dense model."""

from __future__ import annotations

import copy

import pytest
import torch
from healing import TRAIN, VALIDATION, config, teacher
from pydantic import ValidationError

from greenprune import PruneConfig, prune
from greenprune.config import FullHealing
from greenprune.errors import ConfigError
from greenprune.experiment import parse_experiment
from greenprune.heal.beside import DenseBeside, matched_layers
from greenprune.heal.full import heal_fully
from greenprune.heal.lora import heal_with_lora
from greenprune.models import load_checkpoint, remove_layers, save_checkpoint
from greenprune.trial import run_trial

TOKENS = TRAIN[:4] + 1  # 0 is padding, whose states are 0


def test_a_layer_is_compared_where_the_next_one_reads():
    assert matched_layers(6, []) == [0, 1, 2, 3, 4, 5]
    assert matched_layers(6, [2, 3]) == [0, 3, 4, 5]
    assert matched_layers(6, [4, 5]) == [0, 1, 2, 5]
    assert matched_layers(6, [0, 3]) == [1, 3, 4, 5]


def error(beside: DenseBeside, student) -> float:
    with torch.no_grad(), beside.watching(student) as states:
        student(TOKENS)
    return beside.error(states, TOKENS).item()


def test_the_error_is_that_of_the_states_and_none_for_the_dense_model_itself(tiny_model):
    layers = len(tiny_model.model.layers)
    assert error(DenseBeside(tiny_model, matched_layers(layers, [])), tiny_model) == 0
    with torch.no_grad():
        states = tiny_model.model(TOKENS, output_hidden_states=True).hidden_states
    shorter = copy.deepcopy(tiny_model)
    remove_layers(shorter, [1])
    beside = DenseBeside(tiny_model, matched_layers(layers, [1]))
    with torch.no_grad(), beside.watching(shorter) as given:
        shorter(TOKENS)
    behind_the_first = ((states[1] - states[2]).norm(dim=-1) / states[2].norm(dim=-1)).square().mean()
    alone = DenseBeside(tiny_model, [1])
    assert alone.error(given[:1], TOKENS).item() == pytest.approx(behind_the_first.item(), rel=1e-4)
    assert beside.error(given, TOKENS) > 0


@pytest.mark.parametrize("heal", [heal_with_lora, heal_fully])
def test_states_come_nearer_to_the_dense_ones(heal, checkpoint, tmp_path, tiny_tokenizer):
    dense, student = load_checkpoint(checkpoint), load_checkpoint(checkpoint)
    prune(student, PruneConfig(method="magnitude", ratio=0.5))
    save_checkpoint(student, tiny_tokenizer, tmp_path / "pruned")
    section = config(loss={"hidden": 1.0}, steps=30, learning_rate=3e-3, dropout=0.0, eval_every=30)
    if heal is heal_fully:
        shared = section.model_dump(include={*FullHealing.model_fields} - {"method"})
        section = FullHealing(**shared | {"learning_rate": 1e-3})
    record = teacher(tmp_path / "record")
    record.beside = DenseBeside(dense, matched_layers(len(dense.model.layers), []))
    before = error(record.beside, student)
    healed, history = heal(
        tmp_path / "pruned", TRAIN, VALIDATION, section, tmp_path / "work", "float32", teacher=record
    )
    assert error(record.beside, healed) < 0.9 * before
    assert history.train[0].loss == pytest.approx(before, rel=0.3)  # what is minimised is that error alone


def test_a_trial_heals_a_shorter_model_by_it(tiny_experiment, tmp_path):
    data = tiny_experiment | {"sweep": None}
    data["heal"] |= {"loss": {"ce": 0.5, "hidden": 0.5}, "learning_rate": 1e-2, "steps": 6}
    data["benchmark"]["energy"] = None
    result = run_trial(parse_experiment(data).trial(), tmp_path / "runs" / "x")
    assert result.status == "ok", result
    assert [stage["stage"] for stage in result.stages] == ["collect", "prune", "teach", "heal", "accuracy"]


def test_a_student_of_other_layers_is_refused(tiny_model):
    beside = DenseBeside(tiny_model, matched_layers(len(tiny_model.model.layers), [0]))
    with pytest.raises(ConfigError, match="all of whose layers are the dense model's"), beside.watching(tiny_model):
        pass


def test_what_cannot_be_is_refused_before_work_begins(tiny_experiment):
    with pytest.raises(ValidationError, match="num_workers must be 1 where loss has hidden"):
        config(loss="hidden", num_workers=2)
    data = tiny_experiment | {"sweep": None}
    data["heal"] |= {"loss": {"hidden": 1.0}}
    data["prune"] = {"method": "minitron_width", "targets": {"hidden": 8}}
    with pytest.raises(ConfigError, match="leave hidden out of either"):
        parse_experiment(data)
