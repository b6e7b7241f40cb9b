"""What a run fixes once, before its first trial: where `data: auto` reads, and the commits of models and texts.

The answers are written into the configuration, so that every trial, a run that is gone on with, and a row that is made
again alone read the same. Who goes on with a run keeps its answers, whatever the hub says by then.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from greenprune.assets import AskCommit, Repository, hub_commit, is_local
from greenprune.config import MODEL, TEXTS_AT, BenchmarkConfig, TrialConfig, is_commit, named_in, split_revision
from greenprune.config.refusals import validated

DataMode = Callable[[], str]


def decided(
    data: Mapping[str, Any],
    former: Mapping[str, Any] | None = None,
    ask: AskCommit = hub_commit,
    choose_data: DataMode | None = None,
) -> dict[str, Any]:
    """An experiment's or a trial's `data` with `benchmark.data` and the hub's commits fixed.

    former: the configuration that a run holds, whose answers are kept. ask, choose_data: who tells a commit, and
    whether task data comes from the hub or from assets.
    """
    base = {key: value for key, value in data.items() if key not in ("name", "sweep")}
    trial = validated(TrialConfig, base, "config")
    space = (data.get("sweep") or {}).get("space", {})
    made = dict(data)
    if trial.benchmark.data == "auto" and _reads_hub(trial, space):
        made["benchmark"] = made["benchmark"] | {"data": _kept_data(former) or (choose_data or _choose_data)()}
    commits = Commits(former or {}, ask)
    unread = set() if _calibrates(trial, space) else {"calibration.dataset"}
    if made["benchmark"]["data"] == "assets":
        unread.add("benchmark.perplexity")
    if made["benchmark"]["data"] == "hub":
        made["benchmark"] = made["benchmark"] | {"commits": commits.of_tasks(trial.benchmark, space)}
    made = named_in(made, lambda key, name: commits.of_text(key, name, key in unread))
    asked = trial.model.revision
    made["model"] = made["model"] | {"revision": commits.of_model(trial.model.id, asked)}
    if MODEL in space:
        with_id = functools.partial(commits.in_space, asked=asked)
        made["sweep"] = named_in({"sweep": made["sweep"]}, with_id)["sweep"]
    return made


class Commits:
    """Tells commits: as the former configuration has it, else each is asked for once. What it left open stays."""

    def __init__(self, former: Mapping[str, Any], ask: AskCommit) -> None:
        self.former = dict(_revisions_in(former))
        self.ask = functools.cache(ask)

    def of_model(self, name: str, revision: str | None) -> str | None:
        """The commit of a hub model; the revision as it is of any other model, and where nobody knows."""
        if is_commit(revision) or name.startswith("pypi:") or is_local(name):
            return revision
        return self._commit((MODEL, name), "model", name, revision) or revision

    def in_space(self, key: str, name: str, asked: str | None) -> str:
        """A model among which a space chooses, its revision in its id: that of the fixed model isn't for it."""
        bare, revision = split_revision(name)
        if key != MODEL or name.startswith("pypi:") or is_local(name):
            return name
        return f"{bare}@{self.of_model(bare, revision or asked) or 'main'}"

    def of_text(self, key: str, name: str, unread: bool) -> str:
        """A text of the hub with its commit; any other as it is, and one that isn't read or has a stand-in that is."""
        from greenprune.assets import TEXTS
        from greenprune.data import hub_text

        bare, revision = split_revision(name)
        if key not in TEXTS_AT or (source := hub_text(name)) is None or is_commit(revision):
            return name
        if unread and (key != "benchmark.perplexity" or bare in TEXTS):
            return name
        commit = self._commit((key, bare), "dataset", source.path, revision)
        return f"{bare}@{commit}" if commit else name

    def of_tasks(self, benchmark: BenchmarkConfig, space: Mapping[str, Any]) -> dict[str, str]:
        """By data set, the commit of each that a trial's tasks read on the hub; one that was given stays."""
        from greenprune.benchmark.tasks import hub_dataset

        choices = (space.get("benchmark.tasks") or {}).get("choice", [])
        found = dict(benchmark.commits)
        for name in sorted({*benchmark.tasks, *itertools.chain.from_iterable(choices)}):
            if (dataset := hub_dataset(name)) and dataset[0] not in found:
                path, revision = dataset
                if commit := self._commit(("benchmark.commits", path), "dataset", path, revision):
                    found[path] = commit
        return found

    def _commit(self, named: tuple[str, str], kind: Repository, name: str, revision: str | None) -> str | None:
        if named not in self.former:
            return self.ask(kind, name, revision)
        kept = self.former[named]
        return kept if is_commit(kept) else None


def _revisions_in(former: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str | None]]:
    """The revisions that a configuration holds, by key and name."""
    named: list[tuple[str, str]] = []

    def note(key: str, name: str) -> str:
        named.append((key, name))
        return name

    named_in(former, note)
    yield from (((key, split_revision(name)[0]), split_revision(name)[1]) for key, name in named)
    for path, commit in ((former.get("benchmark") or {}).get("commits") or {}).items():
        yield ("benchmark.commits", path), commit
    if model := former.get("model"):
        yield (MODEL, model.get("id")), model.get("revision")


def _kept_data(former: Mapping[str, Any] | None) -> str | None:
    kept = ((former or {}).get("benchmark") or {}).get("data")
    return kept if kept in ("hub", "assets") else None


def _choose_data() -> str:
    from greenprune.benchmark.data_mode import resolve_data

    return resolve_data("auto")


def _reads_hub(trial: TrialConfig, space: Mapping[str, Any]) -> bool:
    """Whether it matters to any trial where data comes from."""
    return trial.benchmark.reads_hub() or bool({"benchmark.tasks", "benchmark.perplexity"} & space.keys())


def _calibrates(trial: TrialConfig, space: Mapping[str, Any]) -> bool:
    """Whether any trial looks at the calibration text."""
    varied = any(key.startswith("prune.") for key in space)
    return varied or bool(trial.prune.statistics()) or trial.prune.needs_tokens()
