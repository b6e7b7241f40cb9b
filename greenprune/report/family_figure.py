"""The picture of a family: several runs, say of models of several sizes, each in a column of panels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from greenprune.columns import phrase
from greenprune.errors import ConfigError
from greenprune.report.curves_figure import check_quality, draw_quality
from greenprune.report.drawing import STYLE
from greenprune.report.extra import need

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

ENERGY = "energy_ratio"  # to each run's own dense model: joules of several machines share no axis


def family_figure(runs: Mapping[str, DataFrame], quality: str) -> Figure:
    """runs: tables of trials by the run's path. Raises ConfigError for fewer than two runs, and as `curves_figure`."""
    figure_module = need("matplotlib.figure")
    if len(runs) < 2:
        raise ConfigError(
            f"a family is of several runs, got {len(runs)}; name two or more, or take the picture `curves`"
        )
    for trials in runs.values():
        check_quality(trials, quality)
    rows = [quality, ENERGY] if all(map(_has_clean_energy, runs.values())) else [quality]
    with need("matplotlib").rc_context(STYLE):
        figure: Figure = figure_module.Figure(figsize=(4.2 * len(runs), 3.6 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), len(runs), squeeze=False, sharey="row", sharex=True)
        for place, (path, trials) in enumerate(runs.items()):
            for row, metric in enumerate(rows):
                draw_quality(grid[row][place], trials, metric)
                grid[row][place].set_ylabel(phrase(metric) if not place else "")
            models = ", ".join(map(str, trials["model.id"].dropna().unique()))
            grid[0][place].set_title(f"{Path(path).name}\n{models}", fontsize=9.5)
        entries = {
            name: handle for axes in grid.flat for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _has_clean_energy(trials: DataFrame) -> bool:
    try:
        check_quality(trials, ENERGY)
    except ConfigError:
        return False
    return True
