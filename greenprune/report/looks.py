"""The look of every method: one colour and one shape, on all pictures of the project.

A method's look follows from its place in METHODS, however many others a run has. Neighbours in the table differ in
colour and in shape; no two methods of the table share a look.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass

from greenprune.config import METHODS
from greenprune.report.extra import need

# Okabe & Ito's colours, told apart by colour-blind readers too; black is the dense model's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h")  # matplotlib's names
LOOKS = len(COLOURS) * len(SHAPES)


@dataclass(frozen=True)
class Look:
    """colour: #rrggbb. shape: a marker of matplotlib."""

    colour: str
    shape: str

    @property
    def path(self) -> str:
        """The shape as the path of an SVG, about 2 wide, its middle in the origin."""
        return _svg_path(self.shape)


DENSE = Look("#000000", "*")


def look_of(method: str) -> Look:
    """The look of a method: that of its place in METHODS; one that isn't there has it from its name."""
    if method == "none":
        return DENSE
    known = [name for name in METHODS if name != "none"]
    if method in known:
        return _look(known.index(method))
    return _look(len(known) + zlib.crc32(method.encode()) % (LOOKS - len(known)))


def _look(place: int) -> Look:
    """Six in a row differ in colour, eleven in shape, and 66 in either: 6 and 11 have no common divisor."""
    return Look(COLOURS[place % len(COLOURS)], SHAPES[place % len(SHAPES)])


@functools.cache
def _svg_path(shape: str) -> str:
    markers = need("matplotlib.markers")
    marker = markers.MarkerStyle(shape)
    path = marker.get_path().transformed(marker.get_transform())
    size = 2 * abs(path.get_extents().extents).max()
    letters = {path.MOVETO: "M", path.LINETO: "L", path.CURVE3: "Q", path.CURVE4: "C", path.CLOSEPOLY: "Z"}
    parts = []
    for points, code in path.iter_segments(curves=True, simplify=False):
        numbers = [] if code == path.CLOSEPOLY else points
        signs = [1 if i % 2 == 0 else -1 for i in range(len(numbers))]  # an SVG counts y downwards
        parts.append(letters[code] + " ".join(f"{2 * v * s / size:.3g}" for v, s in zip(numbers, signs, strict=True)))
    return "".join(parts)
