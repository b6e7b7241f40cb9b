"""The radar charts: accuracy and energy by task, of a few trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from greenprune.columns import parts_of, those_of
from greenprune.comparability import comparable, finished
from greenprune.errors import ConfigError
from greenprune.pareto import dense_row, knee
from greenprune.report.drawing import STYLE
from greenprune.report.extra import need
from greenprune.report.looks import look_of
from greenprune.report.run import ReportedRun
from greenprune.results import find_trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

LEAST_TASKS = 3
SIDES = {"<task>_acc": "accuracy", "<task>_wh": "energy (Wh)"}


def radar_figure(run: ReportedRun, trials: Sequence[str | int] | None = None) -> Figure:
    """Accuracy, and energy where tasks were metered alike, side by side. Raises ConfigError for too few tasks."""
    figure_module = need("matplotlib.figure")
    rows = finished(_chosen(run, trials))
    sides = [pattern for pattern in SIDES if _can_be_drawn(rows, pattern)]
    if "<task>_acc" not in sides:
        tasks = those_of("<task>_acc", rows.columns)
        raise ConfigError(
            f"a radar chart needs {LEAST_TASKS} tasks that all of its trials answered, got {len(tasks)} in "
            f"{run.path}; add to benchmark.tasks, or take the picture `front`"
        )
    with need("matplotlib").rc_context(STYLE):
        figure: Figure = figure_module.Figure(figsize=(4.6 * len(sides), 4.3), layout="constrained")
        panels = figure.subplots(1, len(sides), subplot_kw={"projection": "polar"}, squeeze=False)[0]
        for pattern, axes in zip(sides, panels, strict=True):
            _draw_rings(axes, run, rows, pattern)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _chosen(run: ReportedRun, trials: Sequence[str | int] | None) -> DataFrame:
    """These trials; by default the dense model and the knee, where that is another: else the most accurate other."""
    if trials is not None:
        wanted = [find_trial(run.results, name).trial_id for name in trials]
        return run.trials[run.trials["trial_id"].isin(wanted)]
    chosen = []
    with suppress(ConfigError):
        chosen.append(dense_row(run.trials).name)
    best = None if run.front is None else knee(run.front, run.objectives)
    others = finished(run.trials).drop(index=chosen)
    if best is not None and best.name not in chosen:
        chosen.append(best.name)
    elif "accuracy" in others and others["accuracy"].notna().any():
        chosen.append(others["accuracy"].idxmax())
    return run.trials.loc[sorted(chosen)]


def _can_be_drawn(rows: DataFrame, pattern: str) -> bool:
    names = those_of(pattern, rows.columns)
    if len(names) < LEAST_TASKS or rows.empty or rows[names].isna().any().any():
        return False
    try:
        return len(comparable(rows, dict.fromkeys(names, "max"))) == len(rows)
    except ConfigError:
        return False


def _draw_rings(axes: Any, run: ReportedRun, rows: DataFrame, pattern: str) -> None:
    names = those_of(pattern, rows.columns)
    angles = [2 * math.pi * k / len(names) for k in range(len(names))]
    for index, row in rows.iterrows():
        method = str(row.get("prune.method", "none"))
        values = [float(row[name]) for name in names]
        style = "--" if method == "none" else "-"
        look = look_of(method)
        axes.plot([*angles, angles[0]], [*values, values[0]], style, color=look.colour, label=run.labels[index])
        axes.fill(angles, values, color=look.colour, alpha=0.08)
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [parts_of(name)["task"] for name in names])
    for angle, name in zip(angles, axes.get_xticklabels(), strict=True):  # outwards, so that none lies on the ring
        aside = math.sin(angle)
        name.set_horizontalalignment("center" if abs(aside) < 0.1 else "left" if aside > 0 else "right")
    axes.set_ylim(bottom=0)
    top = axes.get_ylim()[1]
    axes.set_yticks([tick for tick in need("matplotlib.ticker").MaxNLocator(3).tick_values(0, top) if 0 < tick <= top])
    axes.set_rlabel_position(180 / len(names))  # between two tasks
    axes.set_title(SIDES[pattern], fontsize=10.5, pad=18)
    axes.tick_params(axis="y", labelsize=8)
    axes.tick_params(axis="x", pad=2)
