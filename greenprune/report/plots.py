"""Pictures of runs as matplotlib figures, for notebooks and papers.

    import greenprune as gp
    gp.plots.layers("runs/demo").savefig("layers.pdf")          # or: greenprune plot runs/demo layers layers.pdf

Each takes a run's folder or URI (family: several) and raises ConfigError where the run doesn't hold what it shows, and
GreenpruneError where matplotlib is missing. Methods have the colours and shapes that they have on the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from greenprune.columns import Direction
from greenprune.errors import ConfigError, nearest
from greenprune.report.curves_figure import curves_figure
from greenprune.report.drawing import save
from greenprune.report.energy_figure import energy_figure
from greenprune.report.family_figure import family_figure
from greenprune.report.front_figure import front_figure
from greenprune.report.layers_figure import layers_figure
from greenprune.report.radar_figure import radar_figure
from greenprune.report.run import read_run
from greenprune.results import load_trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


def front(run: str | Path, objectives: Mapping[str, Direction] | None = None, mixed: bool = False) -> Figure:
    """The Pareto front; `objectives` default to the sweep's."""
    reported = read_run(run)
    return front_figure(reported.trials, objectives or reported.objectives, mixed)


def layers(run: str | Path) -> Figure:
    """Angular distance by first layer and block size, chosen blocks outlined; block influence by layer."""
    return layers_figure(read_run(run))


def radar(run: str | Path, trials: Sequence[str | int] | None = None) -> Figure:
    """Accuracy and energy by task of these trials (see `find_trial`); by default dense and the front's knee, or the
    most accurate other where that is the dense model."""
    return radar_figure(read_run(run), trials)


def curves(run: str | Path, quality: str = "accuracy") -> Figure:
    """A quality, e.g. `accuracy` or `wikitext2_ppl@2048`, against size, a line a method; validation loss of healing."""
    return curves_figure(read_run(run), quality)


def energy(run: str | Path) -> Figure:
    """What the search took by stage; each trial's energy of 1,000 requests, and their CO2e where a country is known."""
    return energy_figure(read_run(run))


def family(runs: Sequence[str | Path], quality: str = "accuracy") -> Figure:
    """Several runs beside each other: a quality and the energy relative to dense against size, a panel a run."""
    return family_figure({str(run): load_trials(run) for run in runs}, quality)


PLOTS: dict[str, Callable[..., Figure]] = {
    "front": front,
    "layers": layers,
    "radar": radar,
    "curves": curves,
    "energy": energy,
    "family": family,
}


def save_plot(runs: Sequence[str | Path], kind: str, out: Path) -> Path:
    """Write a picture of a run (family: of several); the suffix of `out` tells its format. Raises as pictures do."""
    if kind not in PLOTS:
        raise ConfigError(f"a picture must be of a known kind, got {kind!r}; {nearest(kind, PLOTS)}")
    if out.suffix not in FORMATS:
        raise ConfigError(f"a picture's file must end in {', '.join(FORMATS)}, got {out.name}; rename it")
    if kind == "family":
        return save(family(runs), out)
    if len(runs) != 1:
        raise ConfigError(f"a picture of kind {kind} is of one run, got {len(runs)}; name one, or take family")
    return save(PLOTS[kind](runs[0]), out)
