"""The picture of a front: every trial as a mark, what no trial beats as a step line.

Colour and shape both tell the method, filled marks are healed trials, thin bars are the uncertainty. The
first objective is the vertical axis, the second the horizontal one. Needs matplotlib (`greenprune[report]`)
but no display; nothing here imports it before a figure is asked for.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune.columns import DEFAULT_OBJECTIVES, Direction, column, phrase, those_of
from greenprune.comparability import comparable, compared_objectives
from greenprune.errors import GreenpruneError
from greenprune.labels import labels
from greenprune.pareto import pareto_front
from greenprune.results import load_trials
from greenprune.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

# Okabe & Ito's colours, told apart by colour-blind readers too; black is the dense model's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHAPES = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "text.parse_math": False,  # a $ in a model's name is no formula
    "svg.fonttype": "path",
    "svg.hashsalt": "greenprune",
}
MOST_LABELS = 20
LEADER = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, "shrinkB": 4}


def need(module: str) -> Any:
    """Import a part of the extra `report`. Raises GreenpruneError with the remedy where it's missing."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise GreenpruneError(
            f"a report needs {package}, which isn't installed; run: pip install 'greenprune[report]'"
        ) from None


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
        _write_labels(figure, axes, front, rows, [names[i] for i in front.index], x, y)
    return figure


def save_front(run: str | Path, path: str | Path, objectives: Mapping[str, Direction] | None = None) -> Path:
    """Write a run's front as a picture; the suffix (.png, .svg, .pdf) tells the format."""
    path = Path(path)
    figure = front_figure(load_trials(run), objectives or DEFAULT_OBJECTIVES)
    write_atomically(path, _rendered(figure, path.suffix.lstrip(".") or "png"))
    return path


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element to put into HTML."""
    text = _rendered(figure, "svg").decode()
    return text[text.index("<svg") :]


def _rendered(figure: Figure, kind: str) -> bytes:
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None} if kind == "svg" else None
    buffer = io.BytesIO()
    with need("matplotlib").rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------- what is drawn


def _draw_trials(axes: Axes, rows: DataFrame, x: str, y: str) -> None:
    """One mark a trial, with its error bars; a legend entry for each method and for each kind of mark."""
    axes.errorbar(
        _numbers(rows, x), _numbers(rows, y), xerr=_spread(rows, x), yerr=_spread(rows, y),
        fmt="none", ecolor="#c4c4c4", elinewidth=0.8, zorder=1,
    )  # fmt: skip
    methods = rows["prune.method"].fillna("none") if "prune.method" in rows else rows["status"]
    healed = (rows["heal.method"].fillna("none") != "none") if "heal.method" in rows else methods != methods
    for i, method in enumerate(sorted(set(methods) - {"none"})):
        _marks(axes, rows, (x, y), methods == method, healed, method, COLOURS[i % 6], SHAPES[i % 6])
    _marks(axes, rows, (x, y), methods == "none", healed, "dense model", "black", "*")


def _marks(
    axes: Axes,
    rows: DataFrame,
    xy: tuple[str, str],
    chosen: Any,
    healed: Any,
    name: str,
    colour: str,
    shape: str,
) -> None:
    size = 190 if shape == "*" else 52
    for filled in (False, True):
        part = rows[chosen & (healed == filled)]
        if part.empty:
            continue
        axes.scatter(
            _numbers(part, xy[0]), _numbers(part, xy[1]), s=size, marker=shape, linewidths=1.5, zorder=3,
            edgecolors=colour, facecolors=colour if filled or shape == "*" else "white",
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
        _numbers(ordered, x), _numbers(ordered, y), drawstyle=shape, color="#444444", linewidth=1.4, zorder=2,
        label="Pareto front",
    )  # fmt: skip


def _draw_floor(axes: Axes, rows: DataFrame, y: str) -> None:
    """What a model without knowledge scores, where that isn't far below the trials."""
    floor = floor_of(rows, y)
    if floor is None:
        return
    low, high = float(_numbers(rows, y).min()), float(_numbers(rows, y).max())
    if floor > low - max(high - low, 0.02):
        axes.axhline(floor, color="#888888", linestyle=":", linewidth=1.3, zorder=1, label="no knowledge (floor)")


def floor_of(rows: DataFrame, metric: str) -> float | None:
    """The score without knowledge that belongs to `accuracy` (mean over tasks) or to a task's score, else None."""
    scores = those_of("<task>_acc", rows.columns) if metric == "accuracy" else [metric]
    floors = [known.floor for name in scores if (known := column(name)) and known.floor]
    if not floors or len(floors) < len(scores) or not set(floors) <= set(rows.columns):
        return None
    return None if rows[floors].isna().all().any() else float(rows[floors].mean().mean())


def _spread(rows: DataFrame, metric: str) -> Any:
    """Half-widths of the error bars: one standard error of a score, 95 % interval of an energy, else None."""
    known = column(metric)
    if known and known.ci95_ratio and known.ci95_ratio in rows:
        return _numbers(rows, metric) * _numbers(rows.fillna({known.ci95_ratio: 0.0}), known.ci95_ratio)
    errors = stderr_of(rows, metric)
    return None if errors is None else errors.fillna(0.0).to_numpy()


def stderr_of(rows: DataFrame, metric: str) -> Any:
    """Series of standard errors of `accuracy` or of a task's score; None where none were measured.

    The mean over n independent tasks has the standard error sqrt(sum of squares) / n.
    """
    if metric != "accuracy":
        known = column(metric)
        return rows.get(known.stderr) if known and known.stderr else None
    scores = [known for name in those_of("<task>_acc", rows.columns) if (known := column(name))]
    errors = [known.stderr for known in scores if known.stderr in rows]
    return (rows[errors].astype("float64") ** 2).sum(axis=1, skipna=False) ** 0.5 / len(errors) if errors else None


def _axis_label(metric: str, rows: DataFrame, objectives: Mapping[str, Direction]) -> str:
    known = column(metric)
    notes = [known.unit] if known and known.unit else []
    if known and known.kind in rows:
        kinds = sorted(set(rows[known.kind].dropna()))
        notes += ["ESTIMATED" if kind == "estimated" else kind for kind in kinds]
    if metric in objectives:
        notes.append("higher is better" if objectives[metric] == "max" else "lower is better")
    return f"{phrase(metric)} ({'; '.join(notes)})" if notes else phrase(metric)


def _thousands(axes: Axes, rows: DataFrame, x: str, y: str) -> None:
    from matplotlib.ticker import EngFormatter

    for axis, metric in ((axes.xaxis, x), (axes.yaxis, y)):
        if float(_numbers(rows, metric).max()) >= 1e5:
            axis.set_major_formatter(EngFormatter(sep=" "))


def _numbers(rows: DataFrame, metric: str) -> Any:
    return rows[metric].to_numpy(dtype="float64", na_value=float("nan"))


# ---------------------------------------------------------------------------------------- labels of the front


def _write_labels(
    figure: Figure, axes: Axes, front: DataFrame, rows: DataFrame, names: list[str], x: str, y: str
) -> None:
    """Name the front's trials, each where it covers the fewest marks and names; equal points share one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # settles the layout, so that pixels are known
    frame, taken = axes.get_window_extent(), _obstacles(axes, rows, x, y)
    for point, name in _names_of_points(front, names, x, y):
        placed: list[tuple[float, Any, Any]] = []
        for dx, dy, ha, va in PLACES:
            leader = LEADER if abs(dx) + abs(dy) > 20 else None
            text = axes.annotate(
                name, point, xytext=(dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=9, zorder=5,
                color="#222222", path_effects=[withStroke(linewidth=2.5, foreground="white")],
                arrowprops=leader,
            )  # fmt: skip
            text.set_in_layout(False)
            text.update_positions(canvas.get_renderer())
            box = Text.get_window_extent(text, canvas.get_renderer())  # the words, without the leader
            outside = box.width * box.height - _overlap(box, frame)
            covered = sum(_overlap(box, other) for other in taken)
            placed.append((covered + 4 * outside + 6 * (abs(dx) + abs(dy)), text, box))
        best = min(placed, key=lambda place: place[0])
        for place in placed:
            if place is not best:
                place[1].remove()
        taken.append(best[2])


def _names_of_points(front: DataFrame, names: list[str], x: str, y: str) -> list[tuple[tuple[float, float], str]]:
    """Points and names along the front, identical points under one name; of a long front a selection."""
    shared: dict[tuple[float, float], list[str]] = {}
    for px, py, name in zip(_numbers(front, x), _numbers(front, y), names, strict=True):
        shared.setdefault((float(px), float(py)), []).append(name)
    points = [(point, " = ".join(group)) for point, group in sorted(shared.items())]
    if len(points) <= MOST_LABELS:
        return points
    step = (len(points) - 1) / (MOST_LABELS - 1)
    return [points[round(i * step)] for i in range(MOST_LABELS)]


def _obstacles(axes: Axes, rows: DataFrame, x: str, y: str) -> list[Any]:
    """Pixel boxes that a name should not cover: the trials' marks, and the front's steps."""
    from matplotlib.transforms import Bbox

    marks = axes.transData.transform(list(zip(_numbers(rows, x), _numbers(rows, y), strict=True)))
    boxes = [Bbox.from_bounds(px - 7, py - 7, 14, 14) for px, py in marks]
    for line in axes.lines:
        if line.get_label() != "Pareto front":
            continue
        path: Any = line.get_path().cleaned(transform=axes.transData)
        corners = [(px, py) for (px, py), code in zip(path.vertices, path.codes, strict=True) if code in (1, 2)]
        for (x0, y0), (x1, y1) in itertools.pairwise(corners):
            boxes.append(Bbox.from_extents(min(x0, x1) - 2, min(y0, y1) - 2, max(x0, x1) + 2, max(y0, y1) + 2))
    return boxes


PLACES = tuple(
    (dx * reach, dy * reach, ha, va)
    for reach in (1, 2, 3.5, 5, 7)
    for dx, dy, ha, va in (
        (-7, 5, "right", "bottom"),
        (0, 8, "center", "bottom"),
        (7, -6, "left", "top"),
        (7, 5, "left", "bottom"),
        (9, 0, "left", "center"),
        (-9, 0, "right", "center"),
        (0, -9, "center", "top"),
        (-7, -6, "right", "top"),
    )
)


def _overlap(a: Any, b: Any) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0.0) * max(height, 0.0)
