"""The picture of a front: every finished trial, the step line, names that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from handmade_runs import ANGULAR, trial

from greenprune.report import save_front
from greenprune.report.drawing import svg
from greenprune.report.front_figure import front_figure
from greenprune.report.front_names import MOST_NAMES
from greenprune.results import load_trials, to_frame


def line(figure: Any, name: str) -> Any:
    return next(line for line in figure.axes[0].lines if line.get_label() == name)


def test_picture_holds_every_finished_trial_and_the_step_of_the_front(run: Path):
    figure = front_figure(load_trials(run), {"accuracy": "max", "energy_j_per_token": "min"})
    axes = figure.axes[0]
    drawn = sorted(
        tuple(point) for marks in axes.collections if marks.get_label()[0] != "_" for point in marks.get_offsets()
    )
    assert drawn == [(1.2, 0.51), (1.5, 0.7), (1.5, 0.75), (2.0, 0.8)]
    step = line(figure, "Pareto front")
    assert list(step.get_xdata()) == [1.2, 1.5, 2.0]
    assert step.get_drawstyle() == "steps-post"
    assert {text.get_text() for text in axes.texts} == {"dense", "angular 4 + lora", "bi 8"}
    assert axes.get_xlabel() == "energy per token (J/token; ESTIMATED; lower is better)"
    assert line(figure, "no knowledge (floor)").get_ydata()[0] == 0.5


def test_picture_of_a_maximised_horizontal_axis_steps_the_other_way(run: Path):
    trials = load_trials(run).assign(decode_tokens_per_s=[1.0, 2.0, 3.0, 4.0, None])
    figure = front_figure(trials, {"accuracy": "max", "decode_tokens_per_s": "max"})
    assert line(figure, "Pareto front").get_drawstyle() == "steps-pre"


@pytest.mark.parametrize("objectives", [["accuracy"], ["accuracy", "energy_ratio", "w_ppl@512"]])
def test_one_or_three_objectives_have_a_picture_without_a_line(run: Path, objectives: list[str]):
    figure = front_figure(load_trials(run), {name: "max" if name == "accuracy" else "min" for name in objectives})
    assert all(line.get_label() != "Pareto front" for line in figure.axes[0].lines)
    assert svg(figure).startswith("<svg")


def test_twins_share_a_label_and_odd_names_are_text(tmp_path: Path):
    odd = {"method": r"a$\frac$<i>", "block_size": 1}
    figure = front_figure(
        to_frame([trial(0, 0.8, 2.0, odd), trial(1, 0.8, 2.0, ANGULAR)]),
        {"accuracy": "max", "energy_ratio": "min"},
    )
    assert [text.get_text() for text in figure.axes[0].texts] == [r"a$\frac$<i> 1 = angular 4"]
    assert "<i>" not in svg(figure)


def test_save_front_takes_its_format_from_the_name(run: Path, tmp_path: Path):
    assert save_front(run, tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    first = save_front(run, tmp_path / "front.svg").read_bytes()
    assert b"<svg" in first
    assert save_front(run, tmp_path / "again.svg").read_bytes() == first


def test_a_long_front_has_a_selection_of_names_its_ends_among_them():
    count = 2 * MOST_NAMES
    front = [trial(i, 0.8 - 0.01 * i, 2.0 - 0.04 * i, {"method": "bi", "block_size": i + 1}) for i in range(count)]
    figure = front_figure(to_frame(front), {"accuracy": "max", "energy_j_per_token": "min"})
    names = [text.get_text() for text in figure.axes[0].texts]
    assert len(names) == MOST_NAMES
    assert {"bi 1", f"bi {count}"} <= set(names)


def test_the_axis_of_an_energy_says_how_its_joules_were_had():
    rows = [trial(i, 0.8, 1.0 + i, energy_wh_tasks=1.0 + i, tasks_energy_kind="estimated") for i in range(2)]
    rows = to_frame(rows).assign(energy_kind="measured")
    axes = front_figure(rows, {"energy_j_per_token": "min", "energy_wh_tasks": "min"}).axes[0]
    assert axes.get_ylabel() == "energy per token (J/token; measured; lower is better)"
    assert axes.get_xlabel() == "energy wh tasks (Wh; ESTIMATED; lower is better)"
