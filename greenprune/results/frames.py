"""Other tables of the same trials: a row a task, a step of healing, an energy window; and several runs in one.

Each starts with the trial's identity and its configuration, as the table of trials has them.

    gp.load_trials(["runs/a", "runs/b"], long=True).groupby(["run", "task"])["acc"].mean()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune.columns import COLUMNS, those_of
from greenprune.errors import ConfigError
from greenprune.results import TrialResult, load_trials, locate_run, read_results
from greenprune.results.evidence import artifact_json

if TYPE_CHECKING:
    from pandas import DataFrame

IDENTITY = ("trial_number", "trial_id", "status")
TASK = "<task>_"
WINDOW = (
    *("energy_j", "seconds", "kind", "source", "scope", "cpu_j", "gpu_j", "ram_j", "co2e_g"),
    *("contamination", "began"),
)


def of_several(runs: Sequence[str | Path], kind: str | None = None) -> DataFrame:
    """The tables of several runs under each other; `run`: the run's name, its path where names are alike."""
    import pandas as pd

    if not runs:
        raise ConfigError("a table needs at least one run, got none; name the folders of runs")
    names = [locate_run(run)[1] for run in runs]
    told = [str(run) if names.count(name) > 1 else name for run, name in zip(runs, names, strict=True)]
    if len(set(told)) < len(told):
        raise ConfigError(f"runs of a table must differ, got {', '.join(told)}; name each once")
    tables = [load_trials(run, **({kind: True} if kind else {})) for run in runs]
    for table, name in zip(tables, told, strict=True):
        table.insert(0, "run", pd.Series([name] * len(table), dtype="str"))
    everywhere = set.intersection(*(set(table.columns) for table in tables))
    return pd.concat([_with_gaps(table, everywhere) for table in tables], ignore_index=True)


def _with_gaps(table: DataFrame, everywhere: set[str]) -> DataFrame:
    """The columns that other tables lack in dtypes that keep what is missing."""
    gaps = {"int64": "Int64", "bool": "boolean"}
    types = {name: gaps.get(str(table[name].dtype)) for name in table.columns if name not in everywhere}
    return table.astype({name: dtype for name, dtype in types.items() if dtype})


def rows_of_tasks(run: str | Path) -> DataFrame:
    """A row a trial and task: `task` (str), and as float64 what the columns `<task>_acc`, `<task>_stderr`,
    `<task>_floor`, `<task>_unparsed`, `<task>_seconds`, `<task>_wh`, `<task>_co2e_g` and `<task>_rouge…` hold, by the
    part of their name after the task's. Failed trials have no row.
    """
    import pandas as pd

    trials = load_trials(run)
    patterns = [name for name in COLUMNS if name.startswith(TASK)]
    tasks = [name.removesuffix("_acc") for name in those_of("<task>_acc", trials.columns)]
    head = _head(trials)
    parts = []
    for rank, task in enumerate(tasks):
        names = [name for pattern in patterns for name in those_of(pattern, trials.columns)]
        longer = tuple(f"{other}_" for other in tasks if len(other) > len(task))  # arc_easy_acc isn't of a task arc
        own = [name for name in names if name.startswith(f"{task}_") and not name.startswith(longer)]
        part = trials[head].assign(task=pd.Series([task] * len(trials), dtype="str"))
        for name in own:
            part[name.removeprefix(f"{task}_")] = trials[name].astype("float64")
        parts.append(part[trials[f"{task}_acc"].notna()].assign(_rank=rank))
    if not parts:
        return trials[head].iloc[:0].assign(task=pd.Series(dtype="str"))
    table = pd.concat(parts).sort_values(["trial_number", "_rank"], kind="stable")
    return table.drop(columns="_rank").reset_index(drop=True)


def rows_of_healing(run: str | Path) -> DataFrame:
    """A row a logged step of healing: `step` (int64), `split` (str: `train` or `validation`), `loss` (float64, nats a
    token), `learning_rate` (float64; of training alone), and of validation alone `tokens` (Int64, of training text seen
    by then) and `kl` (float64, divergence from the dense model in nats a token, where it was measured). Where
    heal.domains has several texts, a validation has a row more for each of them: `domain` (str), its `loss`, and
    `share` (float64), how much of what is read from then on is its. Trials that weren't healed, or whose history isn't
    in the storage any more, have no row.
    """

    def rows(result: TrialResult, storage: Any) -> Iterator[dict[str, Any]]:
        history = artifact_json(storage, result, "heal", "history.json") or {}
        for split in ("train", "validation"):
            for each in history.get(split, ()):
                row = {"split": split} | {name: each.get(name) for name in types if name != "split"}
                yield row
                for domain, loss in (each.get("losses") or {}).items():
                    yield row | {"domain": domain, "loss": loss, "share": each["shares"][domain], "kl": None}

    types = {"step": "int64", "split": "str", "domain": "str", "loss": "float64", "learning_rate": "float64"}
    types |= {"tokens": "Int64", "kl": "float64", "share": "float64"}
    return _from_artifacts(run, rows, types)


def rows_of_windows(run: str | Path) -> DataFrame:
    """A row an energy window of a trial's workload.

    `phase` (str): idle, prefill, decode or serve, with `@n` where it is one of several numbers of requests in flight;
    `repeat` (Int64); `energy_j`, `cpu_j`, `gpu_j`, `ram_j` (joules), `seconds`,
    `co2e_g`, `began` (seconds since the epoch), all float64; `kind`, `source`, `scope`, `contamination` (str);
    `discarded` (bool): others worked, it was measured again.
    """

    def rows(result: TrialResult, storage: Any) -> Iterator[dict[str, Any]]:
        energy = artifact_json(storage, result, "energy", "energy.json") or {}
        idle = [energy["idle"]] if energy.get("idle") else []
        for discarded, readings in ((False, [*idle, *energy.get("readings", ())]), (True, energy.get("discarded", ()))):
            for reading in readings:
                phase, _, repeat = str(reading["name"]).partition(" ")
                found = {name: reading.get(name) for name in WINDOW}
                number = int(repeat) if repeat.isdecimal() else None
                yield {"phase": phase, "repeat": number, **found, "discarded": discarded}

    texts = dict.fromkeys(("phase", "kind", "source", "scope", "contamination"), "str")
    numbers = dict.fromkeys(("energy_j", "seconds", "cpu_j", "gpu_j", "ram_j", "co2e_g", "began"), "float64")
    return _from_artifacts(run, rows, {"repeat": "Int64", "discarded": "bool"} | texts | numbers)


def _from_artifacts(run: str | Path, rows_of: Any, types: dict[str, str]) -> DataFrame:
    """Identity and configuration of each trial beside each of its rows."""
    import pandas as pd

    storage, name = locate_run(run)
    trials = load_trials(run)
    found = [
        {"trial_id": result.trial_id} | row
        for result in read_results(storage.local / name)
        for row in rows_of(result, storage)
    ]
    order = list(found[0]) if found else ["trial_id", *types]
    values = {key: [row[key] for row in found] for key in order}
    table = pd.DataFrame({key: pd.Series(cells, dtype=types.get(key, "str")) for key, cells in values.items()})
    return trials[_head(trials)].merge(table, on="trial_id", how="inner")


def _head(trials: DataFrame) -> list[str]:
    return [*IDENTITY, *those_of("<section>.<key>", trials.columns)]


# What load_trials calls them.
ROWS = {"long": rows_of_tasks, "curves": rows_of_healing, "windows": rows_of_windows}
