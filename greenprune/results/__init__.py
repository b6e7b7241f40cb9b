"""What a trial gave: one `TrialResult` on disk, one row in a run's table.

`trials/<trial_id>/result.json` is the truth, written when a trial ends. `trials.parquet` and `trials.csv` are
the same results as one table. A metric that wasn't measured is missing (None, NaN), never 0; 0.0 is a
measured zero. Columns differ between trials (each pruning method has its own fields) and may mix types, so a
column's type is decided here, once, over all trials. What a column means is declared in columns.py.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import yaml

from greenprune.columns import column
from greenprune.config import STAGES, TrialConfig, flat
from greenprune.energy.costs import SearchCost, search_cost
from greenprune.errors import ConfigError, nearest
from greenprune.storage import Storage, write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame, Series

HEAD = ("trial_number", "trial_id", "status", "error")
TAIL = ("seconds", "started")
SECTIONS = tuple(TrialConfig.model_fields)
CHANGING = tuple(stage.key for stage in STAGES.values() if stage.variants)  # the sections that make another model

# ------------------------------------------------------------------------------------------------ one trial


@dataclass(frozen=True)
class TrialResult:
    """One trial: its configuration, and its metrics named as in columns.py, or why it failed."""

    trial_id: str
    number: int
    status: Literal["ok", "failed"]
    config: dict[str, Any]
    metrics: dict[str, float | int | str | None] = field(default_factory=dict)
    error: str | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)
    started: str = ""
    seconds: float = 0.0

    def to_json(self) -> str:
        """Everything, as JSON. A metric that is NaN or infinite keeps that value (Python's NaN, Infinity)."""
        return json.dumps(asdict(self), indent=1, default=_plain_number)

    @classmethod
    def from_json(cls, text: str) -> TrialResult:
        """The inverse of `to_json`. Raises ValueError or TypeError for anything else."""
        return cls(**json.loads(text))

    @classmethod
    def failed(
        cls,
        trial_id: str,
        number: int,
        config: Mapping[str, Any],
        error: str,
        started: float,
        stages: Sequence[dict[str, Any]] = (),
    ) -> TrialResult:
        """The row of a trial that ended with `error`, after `stages`; `started` in seconds since the epoch."""
        began = datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds")
        return cls(
            trial_id,
            number,
            "failed",
            dict(config),
            error=error,
            stages=list(stages),
            started=began,
            seconds=time.time() - started,
        )

    def to_row(self) -> dict[str, Any]:
        """One flat row: identity, dotted configuration keys, metrics, time."""
        head = dict(zip(HEAD, (self.number, self.trial_id, self.status, self.error), strict=True))
        cells = {key: _cell(value) for key, value in (flat(self.config) | self.metrics).items()}
        return head | cells | {"seconds": self.seconds, "started": self.started}


def _plain_number(value: Any) -> Any:
    """A NumPy or Torch scalar as a number, so that a stage's slip can't cost a finished trial."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a result holds numbers, text and lists, got {type(value).__name__}")


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, tuple)) else value


def write_result(run_dir: Path, result: TrialResult) -> Path:
    """Write `trials/<trial_id>/{config.yaml, result.json}` and give that folder.

    `greenprune trial <folder>/config.yaml` reproduces the row.
    """
    folder = Path(run_dir) / "trials" / result.trial_id
    config = yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", config)
    write_atomically(folder / "result.json", result.to_json())
    return folder


def read_results(run_dir: Path) -> list[TrialResult]:
    """All `trials/*/result.json` of a run, by number. Raises ConfigError for a file that isn't a result."""
    results = [_read(path) for path in Path(run_dir).glob("trials/*/result.json")]
    return sorted(results, key=lambda result: (result.number, result.trial_id))


def read_result(run_dir: Path, trial_id: str) -> TrialResult | None:
    """One trial's result; None where it has none yet. Raises ConfigError for a file that isn't a result."""
    path = Path(run_dir) / "trials" / trial_id / "result.json"
    return _read(path) if path.exists() else None


def is_dense(result: TrialResult) -> bool:
    """Whether no stage turned the trial's model into another one."""
    return all(result.config.get(key, {}).get("method", "none") == "none" for key in CHANGING)


def find_trial(results: Sequence[TrialResult], wanted: str | int) -> TrialResult:
    """The trial that a user names: by its id, by the beginning of one id, by its number, or as "dense".

    Raises ConfigError for a name that fits none or several.
    """
    name = str(wanted)
    rules: tuple[Callable[[TrialResult], bool], ...] = (
        lambda result: result.trial_id == name,
        lambda result: name == "dense" and is_dense(result),
        lambda result: str(result.number) == name,
        lambda result: bool(name) and result.trial_id.startswith(name),
    )
    fitting = next(filter(None, ([result for result in results if fits(result)] for fits in rules)), [])
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        among = ", ".join(sorted(result.trial_id for result in fitting))
        raise ConfigError(
            f"a trial must be named unambiguously, got {name!r}, which fits {among}; give one of these ids"
        )
    if not results:
        raise ConfigError(f"a trial must be in its run, got {name!r} and a run without trials; check the run")
    raise ConfigError(
        "a trial must be named by its id, the beginning of it, its number, or as dense, got "
        f"{name!r}; {nearest(name, [result.trial_id for result in results])}"
    )


def _read(path: Path) -> TrialResult:
    try:
        return TrialResult.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError) as problem:
        raise ConfigError(
            f"{path}: must be a trial's result, got {problem}; move the file elsewhere and run the sweep again, which "
            "makes that row anew from the finished stages"
        ) from None


# ---------------------------------------------------------------------------------------- a table of trials


def to_frame(results: Iterable[TrialResult]) -> DataFrame:
    """One row a trial, sorted by number; identity, configuration, metrics and time from left to right."""
    import pandas as pd

    ordered = sorted(results, key=lambda result: (result.number, result.trial_id))
    rows = [result.to_row() for result in ordered]
    configs = {key: None for result in ordered for key in flat(result.config)}
    metrics = {key: None for result in ordered for key in result.metrics}
    columns = [*HEAD, *sorted(configs, key=_section), *metrics, *TAIL]
    return pd.DataFrame({name: _column(name, [row.get(name) for row in rows]) for name in columns})


def _section(key: str) -> int:
    section = key.split(".")[0]
    return SECTIONS.index(section) if section in SECTIONS else len(SECTIONS)


def _column(name: str, values: list[Any]) -> Series:
    """One type a column, so that parquet takes it: missing stays missing, a mixture becomes text."""
    import pandas as pd

    declared = column(name)
    present = [value for value in values if value is not None]
    complete = len(present) == len(values)
    if (declared is not None and declared.text) or not all(isinstance(value, Real) for value in present):
        text = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pd.Series(text, dtype="str")
    if present and all(isinstance(value, bool) for value in present):
        return pd.Series(values, dtype="bool" if complete else "boolean")
    if any(isinstance(value, bool) for value in present) or any(_too_big(value) for value in present):
        return pd.Series([None if value is None else json.dumps(value) for value in values], dtype="str")
    if present and all(isinstance(value, Integral) for value in present):
        return pd.Series(values, dtype="int64" if complete else "Int64")
    return pd.Series([float("nan") if value is None else float(value) for value in values], dtype="float64")


def _too_big(value: Any) -> bool:
    return isinstance(value, Integral) and not -(2**63) <= int(value) < 2**63


def write_trials(run_dir: Path, results: Iterable[TrialResult]) -> DataFrame:
    """Write trials.parquet and trials.csv, each whole or not at all, and give their table."""
    frame = to_frame(results)
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    write_atomically(Path(run_dir) / "trials.parquet", parquet.getvalue())
    write_atomically(Path(run_dir) / "trials.csv", frame.to_csv(index=False))
    return frame


def load_trials(
    run: str | Path | Sequence[str | Path], *, long: bool = False, curves: bool = False, windows: bool = False
) -> DataFrame:
    """A run's table of trials, columns as in columns.py; from the results, or from trials.parquet where that is all.

    `run` is a folder or a URI (s3://bucket/runs/NAME); of a list of them, all their rows, with the run's name in a
    column `run`. By default a row is a trial; long: a trial's task; curves: a step of its healing; windows: one of its
    energy windows (frames.py names their columns).

    dtypes: text `str`; whole numbers `int64`, `Int64` where some are missing; yes or no `bool`, `boolean` where some
    are missing; every other number `float64`. A field of the configuration that is text in one trial and a number in
    another is text. Missing is NaN or NA, never 0.

    Raises ConfigError where there are no trials, and where more than one kind of row is asked for.
    """
    from greenprune.results import frames

    kinds = {"long": long, "curves": curves, "windows": windows}
    asked = [name for name, wanted in kinds.items() if wanted]
    if len(asked) > 1:
        raise ConfigError(f"a table has one kind of row, got {' and '.join(asked)}; load each by itself")
    if not isinstance(run, str | Path):
        return frames.of_several(run, *asked)
    return frames.ROWS[asked[0]](run) if asked else _table_of(run)


def _table_of(run: str | Path) -> DataFrame:
    import pandas as pd

    storage, name = locate_run(run)
    folder = storage.local / name
    storage.pull(f"{name}/trials")
    if results := read_results(folder):
        return to_frame(results)
    if storage.pull(f"{name}/trials.parquet"):
        return pd.read_parquet(folder / "trials.parquet")
    raise ConfigError(
        f"a run must hold trials.parquet or trials/*/result.json, got {run}, which has neither; "
        f"start one with `greenprune sweep`, or check the path{_other_runs(storage.local, name)}"
    )


def run_cost(run: str | Path) -> SearchCost:
    """What a run's trials took together, failed ones as far as they came; each shared artifact once."""
    storage, name = locate_run(run)
    storage.pull(f"{name}/trials")
    return search_cost(stage for result in read_results(storage.local / name) for stage in result.stages)


def locate_run(run: str | Path) -> tuple[Storage, str]:
    """The storage root that holds a run (its parent) and the run's name."""
    if "://" in str(run):
        parts = urlsplit(str(run))
        parent, _, name = parts.path.rstrip("/").rpartition("/")
        if not name:
            raise ConfigError(f"a run's URI must end in the run's name, got {run}; e.g. s3://bucket/runs/demo")
        return Storage(urlunsplit(parts._replace(path=parent))), name
    path = Path(run).expanduser().resolve()
    return Storage(path.parent), path.name


def _other_runs(root: Path, name: str) -> str:
    others = [path.parent.name for path in root.glob("*/trials")] if root.is_dir() else []
    others = [other for other in others if other != name]
    return f" ({nearest(name, others)})" if others else ""


def is_missing(value: Any) -> bool:
    """Whether a cell of the table holds nothing: None, NaN or NA."""
    import pandas as pd

    return bool(pd.isna(value))


def row_config(row: Mapping[str, Any] | Series, section: str) -> dict[str, Any]:
    """The fields that one row's configuration section has, e.g. `{'method': 'angular', 'block_size': 4}`."""
    start = f"{section}."
    fields = {str(key): value for key, value in row.items()}
    return {
        key.removeprefix(start): value
        for key, value in fields.items()
        if key.startswith(start) and not is_missing(value)
    }
