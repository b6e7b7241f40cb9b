"""One look a method, whatever else a run has."""

from __future__ import annotations

import re

import pytest
from handmade_runs import trial

from greenprune.config import METHODS
from greenprune.report.front_figure import front_figure
from greenprune.report.looks import COLOURS, LOOKS, look_of
from greenprune.results import to_frame

PRUNING = [name for name in METHODS if name != "none"]


def drawn(methods: list[str]) -> dict[str, tuple[str, str]]:
    """By method, colour and path of its marks in the picture of a run with a trial of each."""
    rows = [trial(i, 0.8 - i / 100, 2.0 - i / 100, {"method": name}) for i, name in enumerate(methods)]
    axes = front_figure(to_frame(rows), {"accuracy": "max", "energy_j_per_token": "min"}).axes[0]
    marks = {each.get_label(): each for each in axes.collections if each.get_label()[0] != "_"}
    return {
        name: (str(each.get_edgecolors().round(3).tolist()), str(each.get_paths()[0].vertices.round(3).tolist()))
        for name, each in marks.items()
    }


def test_all_methods_differ_on_one_picture():
    looks = drawn(["none", *PRUNING])
    assert len(looks) == 1 + len(PRUNING)
    assert len(set(looks.values())) == len(looks)


def test_a_method_looks_the_same_in_every_company():
    assert drawn(["sparsegpt", "bi"])["bi"] == drawn(["none", "angular", "bi", "wanda", "flap"])["bi"]
    assert drawn(["my_own"])["my_own"] == drawn(["a", "b", "my_own", *PRUNING])["my_own"]


def test_a_method_of_ones_own_looks_like_none_of_the_table():
    table = {look_of(name) for name in METHODS}
    assert len(table) == len(METHODS)
    for name in ("my_own", "<b>", "", "x" * 99):
        assert look_of(name) == look_of(name)
        assert look_of(name) not in table


def test_the_table_has_room():
    assert len(METHODS) < LOOKS / 2
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in COLOURS)


@pytest.mark.parametrize("name", METHODS)
def test_a_shape_is_a_path_of_one_size(name: str):
    path = look_of(name).path
    numbers = [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", path)]
    assert re.fullmatch(r"(?:[MLQC](?:-?[\d.]+(?:e-?\d+)?[ ]?)+|Z)+", path)
    assert max(map(abs, numbers)) == pytest.approx(1, abs=0.01)
