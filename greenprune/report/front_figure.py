"""The picture of a front: every trial as a mark, what no trial beats as a step line.

Colour and shape both tell the method, filled marks are healed trials, thin bars are the uncertainty. The
first objective is the vertical axis, the second the horizontal one. Nothing here imports matplotlib before a figure
is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune.columns import DEFAULT_OBJECTIVES, Direction, column, kinds_of, phrase
from greenprune.comparability import comparable, compared_objectives
from greenprune.labels import labels
from greenprune.pareto import pareto_front
from greenprune.report.drawing import STYLE, save
from greenprune.report.extra import need
from greenprune.report.front_names import STEPS, write_names
from greenprune.report.looks import Look, look_of
from greenprune.report.uncertainty import error_bars, floor_of, numbers
from greenprune.results import load_trials

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame


def front_figure(trials: DataFrame, objectives: Mapping[str, Direction], mixed: bool = False) -> Figure:
    """The front of `trials` as a matplotlib Figure. Raises ConfigError as `pareto_front`."""
    figure_module = need("matplotlib.figure")
    rows = comparable(trials, objectives, mixed)
    front = pareto_front(trials, objectives, mixed)
    objectives = compared_objectives(trials, objectives, mixed)
    names = dict(zip(trials.index, labels(trials), strict=True))
    y, x = (*objectives, "trial_number")[:2]
    with need("matplotlib").rc_context(STYLE):
        figure: Figure = figure_module.Figure(figsize=(8.2, 5.4), layout="constrained")
        axes = figure.subplots()
        if rows.empty:
            axes.text(0.5, 0.5, f"no finished trial has {' and '.join(objectives)}", ha="center")
            return figure
        _draw_trials(axes, rows, x, y)
        _draw_front(axes, front, objectives)
        _draw_floor(axes, rows, y)
        axes.set_xlabel(_axis_label(x, rows, objectives))
        axes.set_ylabel(_axis_label(y, rows, objectives))
        axes.margins(0.09)
        _thousands(axes, rows, x, y)
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
            ncols=4,
            frameon=False,
            fontsize=9.5,
            handletextpad=0.4,
        )
        write_names(figure, axes, front, rows, [names[i] for i in front.index], x, y)
    return figure


def save_front(run: str | Path, path: str | Path, objectives: Mapping[str, Direction] | None = None) -> Path:
    """Write a run's front as a picture; the suffix (.png, .svg, .pdf) tells the format."""
    return save(front_figure(load_trials(run), objectives or DEFAULT_OBJECTIVES), Path(path))


def _draw_trials(axes: Axes, rows: DataFrame, x: str, y: str) -> None:
    """One mark a trial, with its error bars; a legend entry for each method and for each kind of mark."""
    axes.errorbar(
        numbers(rows, x), numbers(rows, y), xerr=error_bars(rows, x), yerr=error_bars(rows, y),
        fmt="none", ecolor="#c4c4c4", elinewidth=0.8, zorder=1,
    )  # fmt: skip
    methods = rows["prune.method"].fillna("none") if "prune.method" in rows else rows["status"]
    healed = (rows["heal.method"].fillna("none") != "none") if "heal.method" in rows else methods != methods
    for method in (*sorted(set(methods) - {"none"}), "none"):
        name = "dense model" if method == "none" else method
        _marks(axes, rows, (x, y), methods == method, healed, name, look_of(method))


def _marks(
    axes: Axes,
    rows: DataFrame,
    xy: tuple[str, str],
    chosen: Any,
    healed: Any,
    name: str,
    look: Look,
) -> None:
    is_star = look.shape == "*"
    for filled in (False, True):
        part = rows[chosen & (healed == filled)]
        if part.empty:
            continue
        axes.scatter(
            numbers(part, xy[0]), numbers(part, xy[1]), s=190 if is_star else 52, marker=look.shape,
            linewidths=1.5, zorder=3, edgecolors=look.colour,
            facecolors=look.colour if filled or is_star else "white",
            label=f"{name}, healed" if filled else name,
        )  # fmt: skip


def _draw_front(axes: Axes, front: DataFrame, objectives: Mapping[str, Direction]) -> None:
    """The step line between the front's trials: no trial reached the side of the ideal."""
    if len(objectives) != 2:
        return
    y, x = objectives
    ordered = front.sort_values([x, y])
    shape = "steps-post" if objectives[x] == "min" else "steps-pre"
    axes.plot(
        numbers(ordered, x), numbers(ordered, y), drawstyle=shape, color="#444444", linewidth=1.4, zorder=2,
        label=STEPS,
    )  # fmt: skip


def _draw_floor(axes: Axes, rows: DataFrame, y: str) -> None:
    """What a model without knowledge scores, where that isn't far below the trials."""
    floor = floor_of(rows, y)
    if floor is None:
        return
    low, high = float(numbers(rows, y).min()), float(numbers(rows, y).max())
    if floor > low - max(high - low, 0.02):
        axes.axhline(floor, color="#888888", linestyle=":", linewidth=1.3, zorder=1, label="no knowledge (floor)")


def _axis_label(metric: str, rows: DataFrame, objectives: Mapping[str, Direction]) -> str:
    known = column(metric)
    notes = [known.unit] if known and known.unit else []
    for tells in kinds_of([metric]):
        kinds = sorted(set(rows[tells].dropna())) if tells in rows else []
        notes += ["ESTIMATED" if kind == "estimated" else kind for kind in kinds]
    if metric in objectives:
        notes.append("higher is better" if objectives[metric] == "max" else "lower is better")
    return f"{phrase(metric)} ({'; '.join(notes)})" if notes else phrase(metric)


def _thousands(axes: Axes, rows: DataFrame, x: str, y: str) -> None:
    from matplotlib.ticker import EngFormatter

    for axis, metric in ((axes.xaxis, x), (axes.yaxis, y)):
        if float(numbers(rows, metric).max()) >= 1e5:
            axis.set_major_formatter(EngFormatter(sep=" "))
