"""The picture of curves: a quality against size, a line a method; validation loss of healing by step."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from greenprune.columns import Direction, column, heading, phrase
from greenprune.comparability import comparable
from greenprune.errors import ConfigError
from greenprune.pareto import dense_row
from greenprune.report.drawing import STYLE
from greenprune.report.extra import need
from greenprune.report.looks import look_of
from greenprune.report.run import ReportedRun
from greenprune.report.uncertainty import error_bars, floor_of, numbers
from greenprune.results import load_trials

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

SIZE = "parameters_removed_ratio"


def curves_figure(run: ReportedRun, quality: str) -> Figure:
    """Raises ConfigError for a quality that no trial has, or that is none."""
    figure_module = need("matplotlib.figure")
    check_quality(run.trials, quality)
    losses = load_trials(run.path, curves=True)
    losses = losses[(losses["split"] == "validation") & losses["domain"].isna()]
    panels = 1 if losses.empty else 2
    with need("matplotlib").rc_context(STYLE):
        figure: Figure = figure_module.Figure(figsize=(6.4 * panels, 4.8), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        draw_quality(axes[0], run.trials, quality)
        axes[0].legend(frameon=False, fontsize=9)
        if panels == 2:
            _draw_losses(axes[1], losses)
    return figure


def check_quality(trials: DataFrame, quality: str) -> None:
    """Raises ConfigError where no trial has a number that tells a quality of this name, or no size."""
    rows = comparable(trials, {quality: direction_of(quality)})
    if rows.empty or SIZE not in rows:
        raise ConfigError(f"a curve needs finished trials with {quality} and {SIZE}, got none; check the run")


def direction_of(quality: str) -> Direction:
    """Which way a column is better; upwards where that isn't declared."""
    known = column(quality)
    return (known.better if known else None) or "max"


def draw_quality(axes: Axes, trials: DataFrame, quality: str) -> None:
    """Every trial as its method's mark, filled where it was healed; a line along the best of each size."""
    rows = comparable(trials, {quality: direction_of(quality)}).dropna(subset=[SIZE])
    lower = direction_of(quality) == "min"
    methods = rows["prune.method"].fillna("none")
    healed = rows["heal.method"].fillna("none") != "none" if "heal.method" in rows else methods != methods
    for method in sorted(set(methods) - {"none"}):
        look = look_of(method)
        for filled in (False, True):
            part = rows[(methods == method) & (healed == filled)].sort_values(SIZE)
            if part.empty:
                continue
            best = part.groupby(SIZE)[quality].agg("min" if lower else "max")
            axes.plot(best.index, best.to_numpy(), "-" if filled else "--", color=look.colour, linewidth=1.2, alpha=0.8)
            axes.errorbar(
                numbers(part, SIZE), numbers(part, quality), yerr=error_bars(part, quality), fmt=look.shape,
                color=look.colour, markerfacecolor=look.colour if filled else "white", markersize=6, linestyle="none",
                elinewidth=0.7, label=f"{method}, healed" if filled else method,
            )  # fmt: skip
    with suppress(ConfigError):
        axes.axhline(float(dense_row(rows)[quality]), color="black", linestyle=":", label="dense model")
    if (floor := floor_of(rows, quality)) is not None:
        axes.axhline(floor, color="#888888", linestyle=":", label="no knowledge (floor)")
    if lower and numbers(rows, quality).max() > 5 * numbers(rows, quality).min():
        axes.set_yscale("log")
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter("{x:g}")  # its own writes formulae
    known = column(quality)
    axes.set_xlabel(f"share of parameters {heading(SIZE)}")
    axes.set_ylabel(f"{phrase(quality)} ({known.unit})" if known and known.unit else phrase(quality))


def _draw_losses(axes: Axes, losses: DataFrame) -> None:
    for (method, _), part in losses.groupby(["prune.method", "trial_id"], sort=False):
        axes.plot(part["step"], part["loss"], color=look_of(method).colour, marker=".", linewidth=1.2)
    for method in losses["prune.method"].unique():
        axes.plot([], [], color=look_of(method).colour, label=method)
    axes.set_xlabel("optimizer step of healing")
    axes.set_ylabel("validation loss (nats/token)")
    axes.legend(frameon=False, fontsize=9)
