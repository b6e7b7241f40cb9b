"""What all pictures share: how they look, and how one becomes a file or a part of a page.

Needs matplotlib (`greenprune[report]`) but no display.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from greenprune.report.extra import need
from greenprune.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def save(figure: Figure, path: Path) -> Path:
    """Write the figure; the suffix (.png, .svg, .pdf) tells the format."""
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
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata, bbox_inches="tight")  # no title is cut
    return buffer.getvalue()
