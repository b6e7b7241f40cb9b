"""The names beside the points of a front, each where it covers the fewest marks and other names."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from greenprune.report.uncertainty import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

STEPS = "Pareto front"  # the legend's name of the step line, which names keep clear of
MOST_NAMES = 20
LEADER = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, "shrinkB": 4}
# Where a name may stand: distance from its point in typographic points, alignment; the nearest first.
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


def write_names(
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
    for px, py, name in zip(numbers(front, x), numbers(front, y), names, strict=True):
        shared.setdefault((float(px), float(py)), []).append(name)
    points = [(point, " = ".join(group)) for point, group in sorted(shared.items())]
    if len(points) <= MOST_NAMES:
        return points
    step = (len(points) - 1) / (MOST_NAMES - 1)
    return [points[round(i * step)] for i in range(MOST_NAMES)]


def _obstacles(axes: Axes, rows: DataFrame, x: str, y: str) -> list[Any]:
    """Pixel boxes that a name should not cover: the trials' marks, and the front's steps."""
    from matplotlib.transforms import Bbox

    marks = axes.transData.transform(list(zip(numbers(rows, x), numbers(rows, y), strict=True)))
    boxes = [Bbox.from_bounds(px - 7, py - 7, 14, 14) for px, py in marks]
    for line in axes.lines:
        if line.get_label() != STEPS:
            continue
        path: Any = line.get_path().cleaned(transform=axes.transData)
        corners = [(px, py) for (px, py), code in zip(path.vertices, path.codes, strict=True) if code in (1, 2)]
        for (x0, y0), (x1, y1) in itertools.pairwise(corners):
            boxes.append(Bbox.from_extents(min(x0, x1) - 2, min(y0, y1) - 2, max(x0, x1) + 2, max(y0, y1) + 2))
    return boxes


def _overlap(a: Any, b: Any) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0.0) * max(height, 0.0)
