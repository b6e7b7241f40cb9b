"""The picture of energy: what the search took by stage, and what trials take to serve, with its CO2e."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenprune.columns import column, phrase
from greenprune.comparability import comparable
from greenprune.errors import ConfigError
from greenprune.report.drawing import STYLE
from greenprune.report.extra import need
from greenprune.report.looks import look_of
from greenprune.report.run import ReportedRun
from greenprune.report.uncertainty import error_bars, numbers
from greenprune.results import run_cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERVING = ("energy_wh_per_1k_requests", "co2e_g_per_1k_requests")
MOST_BARS = 24


def energy_figure(run: ReportedRun) -> Figure:
    """Raises ConfigError where nothing of the run was metered."""
    figure_module = need("matplotlib.figure")
    cost = run_cost(run.path)
    serving = [name for name in SERVING if name in run.trials and not comparable(run.trials, {name: "min"}).empty]
    if cost.energy_wh is None and not serving:
        raise ConfigError(
            f"a picture of energy needs what was metered, got nothing in {run.path}; see greenprune doctor"
        )
    stages = [] if cost.energy_wh is None else ["stages"]
    bars = min(len(run.trials), MOST_BARS)
    with need("matplotlib").rc_context(STYLE):
        figure: Figure = figure_module.Figure(
            figsize=(5.0 * (len(stages) + len(serving)), max(3.2, 0.26 * bars + 1.2)), layout="constrained"
        )
        panels = list(figure.subplots(1, len(stages) + len(serving), squeeze=False)[0])
        if stages:
            axes = panels.pop(0)
            axes.bar(list(cost.by_stage_wh), list(cost.by_stage_wh.values()), color="#0072B2")
            axes.set_ylabel(f"energy of the search (Wh; {', '.join(cost.kinds)})")
            axes.tick_params(axis="x", rotation=30)
        for name, axes in zip(serving, panels, strict=True):
            _draw_serving(axes, run, name)
    return figure


def _draw_serving(axes: Axes, run: ReportedRun, name: str) -> None:
    """A bar a trial, the least first; the front's and the dense model's where there are too many."""
    rows = comparable(run.trials, {name: "min"})
    if len(rows) > MOST_BARS:
        front = [] if run.front is None else list(run.front.index)
        dense = rows["prune.method"].fillna("none") == "none"
        rows = rows[rows.index.isin(front) | dense].head(MOST_BARS)
    rows = rows.sort_values(name, ascending=False)
    colours = [look_of(str(method)).colour for method in rows["prune.method"].fillna("none")]
    axes.barh([run.labels[i] for i in rows.index], numbers(rows, name), xerr=error_bars(rows, name), color=colours)
    kinds = ", ".join(sorted(set(rows["energy_kind"].dropna()))) if "energy_kind" in rows else ""
    known = column(name)
    axes.set_xlabel(f"{phrase(name)} ({'; '.join(filter(None, [known.unit if known else '', kinds]))})")
    axes.grid(False, axis="y")
