"""Every picture: its size, its labels, its data; and a clear word where a run doesn't hold what it shows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade_runs import ANGULAR, results, trial
from replayed_run import LAYERS, TASKS, replayed_run

import greenprune as gp
from greenprune.errors import ConfigError
from greenprune.report.looks import look_of
from greenprune.report.plots import FORMATS, PLOTS, save_plot
from greenprune.results import TrialResult, write_trials


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replayed_run(tmp_path_factory.mktemp("runs") / "small", 24)


@pytest.fixture(scope="module")
def larger(run: Path) -> Path:
    return replayed_run(run.parent / "larger", 12, model="pypi:other", seed=1)


def texts(figure: Any) -> str:
    from matplotlib.text import Text

    return " ".join(each.get_text() for each in figure.findobj(Text))


def test_front_is_the_sweeps(run: Path):
    figure = gp.plots.front(run)
    assert figure.axes[0].get_ylabel().startswith("accuracy, mean over tasks")
    assert len(figure.axes[0].collections) > 3


def test_layers_holds_every_distance_and_the_blocks(run: Path):
    figure = gp.plots.layers(run)
    distances = figure.axes[0].images[0].get_array()
    assert distances.shape == (LAYERS, LAYERS)
    assert np.ma.count(np.ma.masked_invalid(distances)) == LAYERS * (LAYERS + 1) / 2
    trials = gp.load_trials(run)
    blocks = trials[(trials["prune.method"] == "angular") & (trials["status"] == "ok")]
    frames = {patch.get_xy() for patch in figure.axes[0].patches}
    for removed in blocks["layers_removed"]:
        layers = [int(layer) for layer in removed.strip("[]").split(",")]
        assert (layers[0] - 0.5, len(layers) - 0.5) in frames
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("first layer of the block", "block size")
    assert len(figure.axes[1].patches) == LAYERS


def test_radar_has_a_ring_a_trial_and_a_spoke_a_task(run: Path):
    figure = gp.plots.radar(run, ["dense", 3])
    accuracy, energy = figure.axes
    assert [label.get_text() for label in accuracy.get_xticklabels()] == list(TASKS)
    dense = gp.load_trials(run).iloc[0]
    drawn = accuracy.lines[0].get_ydata()
    assert drawn.tolist() == [*(dense[f"{task}_acc"] for task in TASKS), dense["boolq_acc"]]
    assert (len(accuracy.lines), energy.get_title()) == (2, "energy (Wh)")
    assert "dense" in texts(gp.plots.radar(run))


def test_curves_mark_the_dense_model_and_the_floor(run: Path):
    figure = gp.plots.curves(run)
    named = {line.get_label(): line for line in figure.axes[0].lines}
    trials = gp.load_trials(run)
    assert named["dense model"].get_ydata()[0] == trials["accuracy"][0]
    assert named["no knowledge (floor)"].get_ydata()[0] == pytest.approx(np.mean(list(TASKS.values())))
    assert figure.axes[1].get_ylabel() == "validation loss (nats/token)"
    assert "perplexity" in gp.plots.curves(run, "wikipedia_ppl@512").axes[0].get_ylabel()


def test_energy_by_stage_and_by_trial(run: Path):
    stages, requests, carbon = gp.plots.energy(run).axes
    assert "estimated" in stages.get_ylabel()
    assert requests.get_xlabel() == "energy of 1,000 requests (Wh; estimated)"
    assert "g CO2e" in carbon.get_xlabel()
    dense = next(bar for bar in requests.patches if bar.get_width() == pytest.approx(8.2))
    assert np.allclose(dense.get_facecolor()[:3], 0)


def test_family_compares_runs_by_their_ratios(run: Path, larger: Path):
    figure = gp.plots.family([run, larger])
    assert len(figure.axes) == 4
    assert ["pypi:smollm2-135m" in figure.axes[0].get_title(), "pypi:other" in figure.axes[1].get_title()] == [
        True,
        True,
    ]
    assert figure.axes[2].get_ylabel() == "energy relative to the dense model"


def test_contaminated_energies_are_on_no_family_picture(tmp_path: Path):
    for name in "ab":
        spoiled = trial(1, 0.7, 1.0, ANGULAR, energy_kind="contaminated", parameters_removed_ratio=0.1)
        write_trials(tmp_path / name, [trial(0, 0.8, 2.0, parameters_removed_ratio=0.0), spoiled])
    figure = gp.plots.family([tmp_path / "a", tmp_path / "b"])
    ratios = [y for axes in figure.axes[2:] for line in axes.lines for y in line.get_ydata()]
    assert 0.5 not in ratios


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_picture_is_a_file_of_its_suffix(suffix: str, run: Path, tmp_path: Path):
    path = save_plot([run], "energy", tmp_path / f"x{suffix}")
    assert path.read_bytes()[:8].startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])


def test_what_cant_be_drawn_is_said(run: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="known kind, got 'frnt'; did you mean 'front'"):
        save_plot([run], "frnt", tmp_path / "x.png")
    with pytest.raises(ConfigError, match=r"end in .png, .svg, .pdf, got x.gif"):
        save_plot([run], "front", tmp_path / "x.gif")
    with pytest.raises(ConfigError, match="of one run, got 2"):
        save_plot([run, run], "front", tmp_path / "x.png")
    with pytest.raises(ConfigError, match="several runs, got 1"):
        save_plot([run], "family", tmp_path / "x.png")


ODD: dict[str, Callable[[], list[TrialResult]]] = {
    "one trial": lambda: results()[:1],
    "all failed": lambda: results()[-1:],
    "no trials": list,
    "odd names": lambda: [trial(0, 0.8, 2.0), trial(1, 0.7, 1.0, {"method": "$\\frac$<b>ü", "ratio": 0.1})],
}


@pytest.mark.parametrize("kind", PLOTS)
@pytest.mark.parametrize("odd", ODD)
def test_odd_runs_give_a_picture_or_a_clear_error(kind: str, odd: str, tmp_path: Path):
    write_trials(tmp_path / "r", ODD[odd]())
    write_trials(tmp_path / "s", ODD[odd]())
    runs = [tmp_path / "r", tmp_path / "s"] if kind == "family" else [tmp_path / "r"]
    with suppress(ConfigError):
        assert save_plot(runs, kind, tmp_path / "x.svg").read_text().count("<svg") == 1


def test_radar_shows_another_trial_than_dense_where_dense_is_the_knee(tmp_path: Path):
    tasks = {f"{task}_acc": 0.5 for task in ("boolq", "arc_easy", "piqa")}
    others = [trial(i, 0.4 + 0.1 * i, 9.0, ANGULAR, energy_kind="contaminated", **tasks) for i in (1, 2)]
    write_trials(tmp_path / "r", [trial(0, 0.8, 2.0, **tasks), *others])
    assert [line.get_label() for line in gp.plots.radar(tmp_path / "r").axes[0].lines] == ["dense", "angular 4"]


@pytest.mark.parametrize("kind", [kind for kind in PLOTS if kind != "family"])
def test_no_title_is_cut(kind: str, run: Path, tmp_path: Path):
    """What is drawn at the edges leaves them white."""
    from matplotlib.image import imread

    picture = imread(save_plot([run], kind, tmp_path / "x.png"))[..., :3]
    edges = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
    assert all((edge == 1).all() for edge in edges)


def test_a_method_has_its_look_on_curves_too(run: Path):
    axes = gp.plots.curves(run).axes[0]
    marks = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    for container in axes.containers:
        marks[container.get_label()] = container[0]
    name = next(label for label in marks if label.startswith("angular"))
    assert (marks[name].get_color(), marks[name].get_marker()) == (look_of("angular").colour, look_of("angular").shape)
