"""The picture of layers: angular distance over first layer × block size, the blocks that trials took, influence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenprune.errors import ConfigError
from greenprune.report.drawing import STYLE
from greenprune.report.extra import need
from greenprune.report.layers import LayerStatistics, layer_statistics, layers_kept
from greenprune.report.looks import look_of
from greenprune.report.run import ReportedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def layers_figure(run: ReportedRun) -> Figure:
    """Of the run's first model. Raises ConfigError where no calibration pass saw its layers."""
    figure_module = need("matplotlib.figure")
    statistics = layer_statistics(run.storage, run.results)
    if not statistics:
        raise ConfigError(
            f"a picture of layers needs a calibration pass that saw angular distances or block influence, got none in "
            f"{run.path}; run a trial with prune.method angular or bi in this storage"
        )
    first = statistics[0]
    shown = [name for name in ("angular", "influence") if getattr(first, name) is not None]
    heights = {"angular": 5.6, "influence": 2.0}
    with need("matplotlib").rc_context(STYLE):
        figure: Figure = figure_module.Figure(figsize=(7.2, sum(heights[name] for name in shown)), layout="constrained")
        panels = figure.subplots(len(shown), height_ratios=[heights[name] for name in shown], squeeze=False)[:, 0]
        for name, axes in zip(shown, panels, strict=True):
            {"angular": _draw_distances, "influence": _draw_influence}[name](axes, run, first)
    return figure


def _draw_distances(axes: Axes, run: ReportedRun, statistics: LayerStatistics) -> None:
    distances = statistics.angular
    assert distances is not None, "drawn where there are any"
    layers = len(distances)
    edges = (-0.5, layers - 0.5, 0.5, layers + 0.5)
    image = axes.imshow(distances, origin="lower", extent=edges, aspect="auto", cmap="viridis", interpolation="none")
    axes.figure.colorbar(image, ax=axes, label="angular distance (units of π)")
    axes.grid(False)
    axes.set_xlabel("first layer of the block")
    axes.set_ylabel("block size")
    axes.set_title(f"{statistics.model}; outlined: removed by", loc="left", fontsize=10)
    _outline_blocks(axes, run, statistics.model)


def _outline_blocks(axes: Axes, run: ReportedRun, model: str) -> None:
    """A frame around each block that a trial removed, in the colour of its method."""
    rectangle: Any = need("matplotlib.patches").Rectangle
    methods = {
        result.trial_id: str(result.config.get("prune", {}).get("method"))
        for result in run.results
        if str(result.config.get("model", {}).get("id")) == model
    }
    named: set[str] = set()
    for kept in layers_kept(run.storage, run.results):
        if kept.block and kept.trial_id in methods:
            method, (start, size) = methods[kept.trial_id], kept.block
            label = None if method in named else method
            named.add(method)
            colour = look_of(method).colour
            frame = rectangle((start - 0.5, size - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=3.4)
            axes.add_patch(frame)
            axes.add_patch(
                rectangle((start - 0.5, size - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=2, label=label)
            )
    if named:
        axes.legend(loc="upper right", frameon=False)


def _draw_influence(axes: Axes, run: ReportedRun, statistics: LayerStatistics) -> None:
    assert statistics.influence is not None, "drawn where there is any"
    axes.bar(range(len(statistics.influence)), statistics.influence, color="#888888")
    axes.set_xlabel("layer")
    axes.set_ylabel("block influence")
    axes.set_xlim(-0.5, len(statistics.influence) - 0.5)
