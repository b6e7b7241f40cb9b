"""What a sweep shows while it runs, and the rows it writes as trials end.

On a terminal a small table is redrawn in place; in a log file the same facts come as lines, one when a trial
ends and one a minute in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from ray import tune
from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from greenprune.errors import StorageError, SweepError
from greenprune.experiment import Experiment
from greenprune.labels import label
from greenprune.pareto import pareto_front
from greenprune.results import TrialResult, load_trials, read_result, write_result, write_trials
from greenprune.sweep.run_folder import RunFolder
from greenprune.sweep.status import FILE_NAME, Status
from greenprune.sweep.track import Trackers

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger("greenprune")
SECONDS_BETWEEN_LINES = 60.0
SECONDS_BETWEEN_TABLES = 2.0  # it is written as a whole: of many trials that is work for each


class TellLive(tune.Callback):
    """Passes Tune's events to the Live that is open. It holds nothing: Tune pickles it and brings it back on resume."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        Live.open_view().started(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        Live.open_view().ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        Live.open_view().ended(trial)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        Live.open_view().tick()


class Live:
    """Draws progress and keeps trials.parquet and trials.csv up to date."""

    _open: ClassVar[Live | None] = None

    @classmethod
    def open_view(cls) -> Live:
        assert cls._open is not None, "Tune runs inside `with Live(…)`"
        return cls._open

    def __init__(
        self,
        run: RunFolder,
        experiment: Experiment,
        known: Iterable[TrialResult],
        trackers: Trackers,
        *,
        total: int,
        concurrent: Callable[[], int],
        quiet: bool,
        alone: Callable[[], bool] = lambda: True,
    ) -> None:
        """alone: whether no other process has taken the run over."""
        assert experiment.sweep is not None, "only a sweep is watched"
        self.run, self.folder, self.trackers = run, run.path, trackers
        self.objectives, self.total, self.concurrent = experiment.sweep.objectives, total, concurrent
        self.alone = alone
        self.console = Console(quiet=quiet, soft_wrap=True)
        self.running: dict[str, str] = {}  # Ray's trial id -> ours
        self.results = {result.trial_id: result for result in known}
        self.begun, self.begun_with = time.time(), len(self.results)
        self.shown, self.written, self.unwritten = time.time(), 0.0, False
        self.view = RichLive(console=self.console, refresh_per_second=2, get_renderable=self._table)

    def __enter__(self) -> Live:
        Live._open = self
        done = sum(result.status == "ok" for result in self.results.values())
        plan = f"{done} of {self.total} trials are done, going on" if self.results else f"up to {self.total} trials"
        self.console.print(f"sweep [bold]{self.run.name}[/bold]: {plan}, up to {self.concurrent()} at once")
        if self.console.is_terminal:
            self.view.start()
        return self

    def __exit__(self, *_: Any) -> None:
        Live._open = None
        if self.console.is_terminal:
            self.view.stop()
        if self.alone():  # else the table is another's to write
            self._write()
        front = self._front() if self.trackers.callbacks else None
        self.trackers.close(None if front is None else set(front["trial_id"]))

    def finished(self) -> bool:
        """Whether no trial was left running or waiting."""
        return not self.running

    # ---------------------------------------------------------------------------------------------- events

    def started(self, trial: Any) -> None:
        self.running[trial.trial_id] = trial.config["trial_id"]
        begun = TrialResult(trial.config["trial_id"], trial.config["number"], "ok", trial.config["trial"])
        self.trackers.started(begun)

    def tick(self) -> None:
        """What is done at every step of Tune's, to the last: where nothing is left to suggest, nobody else asks.

        Raises SweepError where another process has taken the run over.
        """
        if not self.alone():
            raise SweepError(
                f"one process at a time may drive {self.folder}, got another one, which took over after this one was "
                "silent for too long; it goes on with the run: wait for it, no result is lost"
            )
        self.concurrent()  # looks at the nodes, and takes note of those that come
        if self.unwritten and time.time() - self.written > SECONDS_BETWEEN_TABLES:
            self._write()
        if not self.console.is_terminal and time.time() - self.shown > SECONDS_BETWEEN_LINES:
            self.shown = time.time()
            for ours in self.running.values():
                self._pull(f"{ours}/{FILE_NAME}")
            doing = ", ".join(f"{ours} {Status.read(self.folder / 'trials' / ours)}" for ours in self.running.values())
            self.console.print(f"  {self._progress()} running: {doing}", highlight=False)

    def ended(self, trial: Any) -> None:
        """Write the trial's row, its driver's or, where that died, one that says so."""
        self.running.pop(trial.trial_id, None)
        ours = trial.config["trial_id"]
        self._pull(f"{ours}/result.json")
        result = read_result(self.folder, ours)
        if result is None:  # its driver died before it could write
            error = "the trial's driver process died before it could report"
            began = getattr(trial, "start_time", None) or time.time()
            result = TrialResult.failed(ours, trial.config["number"], trial.config["trial"], error, began)
            write_result(self.folder, result)
        self.results[ours], self.unwritten, self.shown = result, True, time.time()
        self.trackers.ended(result)
        self.tick()
        self.console.print(f"  {self._progress()}  {self._line(result)}", highlight=False)

    def _pull(self, file: str) -> None:
        """Bring what a trial's driver wrote, whose mirror of an object store may be another one."""
        try:
            self.run.storage.pull(f"{self.run.name}/trials/{file}")
        except StorageError as problem:
            log.warning("%s isn't brought: %s", file, problem)

    def _write(self) -> None:
        self.written, self.unwritten = time.time(), False
        write_trials(self.folder, self.results.values())
        try:
            for name in ("trials.parquet", "trials.csv"):
                self.run.storage.push(f"{self.run.name}/{name}")
        except StorageError as problem:  # the next row sends it again, and the results are the truth
            log.warning("the table isn't sent: %s", problem)

    # ------------------------------------------------------------------------------------------------ text

    def _progress(self) -> str:
        done = len(self.results)
        failed = sum(result.status == "failed" for result in self.results.values())
        text = f"[{done}/{self.total}]" + (f" {failed} failed" if failed else "")
        fresh = done - self.begun_with
        if fresh > 1 and done < self.total:
            left = (time.time() - self.begun) / fresh * (self.total - done)
            text += f" about {left / 60:.0f} min left" if left > 90 else f" about {left:.0f} s left"
        return text

    def _line(self, result: TrialResult) -> str:
        name = label(result.to_row())
        if result.status == "failed":
            return f"{name}: FAILED {result.error}"
        shown = [f"{key} {result.metrics[key]:.4g}" for key in self.objectives if result.metrics.get(key) is not None]
        kind = result.metrics.get("energy_kind")
        reused = sum(stage["reused"] for stage in result.stages)
        numbers = ", ".join(shown) + (f" ({kind})" if kind else "")
        return f"{name}: {numbers}  {result.seconds:.0f} s, {reused} stages reused"

    def _front(self) -> DataFrame | None:
        try:
            return pareto_front(load_trials(self.folder), self.objectives)
        except Exception:
            return None  # nothing finished yet, or energies that may not share a front

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        table.add_column("running")
        table.add_column("stage")
        for ours in self.running.values():
            table.add_row(ours, Status.read(self.folder / "trials" / ours))
        front = self._front()
        labels = "-" if front is None else ", ".join(label(row) for _, row in front.iterrows())
        return Group(table, Text(f"front: {labels}"), Text(self._progress()))
