"""A run seen from outside, while it runs or after: what runs where, the front so far, what is left.

Everything is read from the run's folder, so it works from another terminal, and from any machine that sees the storage.
Of an object store only what was sent there is seen: rows as trials end, not the stage that a trial is in. A run
that was killed looks as if it ran: the seconds of its stages go on.

    greenprune watch runs/demo --html
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from greenprune.config.refusals import validated
from greenprune.energy.costs import SearchCost, search_cost
from greenprune.errors import ConfigError, nearest
from greenprune.experiment import Experiment, read_yaml
from greenprune.labels import label
from greenprune.pareto import pareto_front
from greenprune.results import TrialResult, locate_run, read_results, to_frame
from greenprune.storage import Storage
from greenprune.sweep.search import most_trials
from greenprune.sweep.status import FILE_NAME, Status

SECONDS_BETWEEN_LOOKS = 2.0


@dataclass(frozen=True)
class Seen:
    """A run at one moment. running: trial id -> what it does. total: trials in all, the dense model's among them.

    hours_left, kwh_left: at the pace and the energy of the trials that ended; None without any.
    """

    name: str
    results: list[TrialResult]
    running: dict[str, str]
    total: int
    cost: SearchCost
    front: list[str]

    @property
    def over(self) -> bool:
        return not self.running and len(self.results) >= self.total

    @property
    def left(self) -> int:
        return max(0, self.total - len(self.results))

    @property
    def hours_left(self) -> float | None:
        if not self.results:
            return None
        each = sum(result.seconds for result in self.results) / len(self.results)
        return each * self.left / max(1, len(self.running)) / 3600

    @property
    def kwh_left(self) -> float | None:
        if not self.results or self.cost.energy_wh is None:
            return None
        return self.cost.energy_wh / len(self.results) * self.left / 1000


def look(run: str | Path) -> Seen:
    """Raises ConfigError where there is no run, and for a configuration that isn't a sweep's."""
    storage, name = locate_run(run)
    folder = storage.local / name
    storage.pull(f"{name}/trials")
    if not storage.pull(f"{name}/config.yaml"):
        raise ConfigError(f"a run must hold config.yaml, got {run}, which has none; check the path")
    experiment = validated(Experiment, read_yaml(folder / "config.yaml"), f"{run}/config.yaml")
    if experiment.sweep is None:
        raise ConfigError("only a sweep is watched, got a configuration without sweep; watch a run of greenprune sweep")
    results = read_results(folder)
    ended = {result.trial_id for result in results}
    running = {
        path.parent.name: Status.read(path.parent)
        for path in sorted(folder.glob(f"trials/*/{FILE_NAME}"))
        if path.parent.name not in ended
    }
    cost = search_cost(stage for result in results for stage in result.stages)
    return Seen(name, results, running, most_trials(experiment), cost, _front(results, experiment))


def _front(results: list[TrialResult], experiment: Experiment) -> list[str]:
    if not results or experiment.sweep is None:
        return []
    try:
        front = pareto_front(to_frame(results), experiment.sweep.objectives)
    except ConfigError:  # nothing finished yet, or energies that may not share a front
        return []
    return [label(row) for _, row in front.iterrows()]


def view(seen: Seen) -> Group:
    """What a terminal shows."""
    failed = sum(result.status == "failed" for result in seen.results)
    done = f"{len(seen.results)} of {seen.total} trials ended"
    left = []
    if seen.hours_left is not None and seen.left:
        hours = seen.hours_left
        left.append(f"about {hours:.1f} h" if hours > 1 else f"about {60 * hours:.0f} min")
    if seen.kwh_left is not None and seen.left:
        left.append(f"{seen.kwh_left:.3g} kWh")
    table = Table(box=None, pad_edge=False)
    table.add_column("running")
    table.add_column("stage")
    for trial_id, doing in seen.running.items():
        table.add_row(Text(trial_id), Text(doing))
    lines = [f"{seen.name}: {done}" + (f", {failed} failed" if failed else "")]
    lines += [f"left: {' and '.join(left)}"] if left else []
    lines += [f"the search took {seen.cost.describe()}", f"front: {', '.join(seen.front) or '-'}"]
    return Group(*map(Text, lines), *([table] if seen.running else []))


def watch_run(run: str | Path, each: Callable[[Seen], None], every_s: float = SECONDS_BETWEEN_LOOKS) -> None:
    """Call `each` with what is seen, again and again, until the run is over."""
    while True:
        seen = look(run)
        each(seen)
        if seen.over:
            return
        time.sleep(every_s)


# ------------------------------------------------------------------------------------------------------------- logs


def log_of(run: str | Path, trial: str, follow: bool = False, every_s: float = 0.5) -> Iterator[str]:
    """A trial's log, line by line; `follow`: as it grows, until the trial has ended.

    trial: its id or the beginning of it. Raises ConfigError for a name that fits none or several, and without a log.
    """
    storage, name = locate_run(run)
    folder = _folder_of(storage, name, trial)
    path = folder / "log.txt"
    if not path.exists():
        raise ConfigError(f"a trial's log is written once it begins, got none of {folder.name}; wait, or check its run")
    with path.open(encoding="utf-8", errors="replace") as lines:
        while True:
            ended = (folder / "result.json").exists()  # before the last look: nothing is written after it
            yield from lines
            if ended or not follow:
                return
            time.sleep(every_s)


def _folder_of(storage: Storage, name: str, trial: str) -> Path:
    storage.pull(f"{name}/trials")
    known = sorted(path for path in (storage.local / name / "trials").glob("*") if path.is_dir())
    fitting = [path for path in known if path.name == trial] or [path for path in known if path.name.startswith(trial)]
    if trial and len(fitting) == 1:
        return fitting[0]
    names = [path.name for path in fitting or known]
    raise ConfigError(f"a trial must be named by its id or the beginning of it, got {trial!r}; {nearest(trial, names)}")
