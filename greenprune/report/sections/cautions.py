"""What a reader must know before believing a number."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from greenprune.assets import note_on
from greenprune.columns import parts_of, those_of
from greenprune.comparability import finished
from greenprune.config import METHODS, MaskPruning, split_revision, split_text
from greenprune.report.run import ReportedRun, distinct

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_NOTES = 3
MANY_UNPARSED = 0.05
STAND_INS = ("wikitext2", "c4")  # texts that assets hold a small sample of under the hub's name


def gather_cautions(run: ReportedRun) -> dict[str, Any] | None:
    found = [caution for look in CAUTIONS for caution in look(run.trials)]
    return {"cautions": found} if found else None


def _estimates(trials: DataFrame) -> list[str]:
    rows = finished(trials)
    estimated = _of_kind(rows, "estimated")
    if estimated.empty:
        return []
    sources = ", ".join(distinct(estimated, "energy_source")) or "not recorded"
    of_all = "" if len(estimated) == len(rows) else f" in {len(estimated)} of {len(rows)} trials"
    return [
        f"These energies are ESTIMATES{of_all} (source: {sources}): no sensor was read. Compare trials of this run "
        "with each other, never with measured joules."
    ]


def _contaminated(trials: DataFrame) -> list[str]:
    rows = finished(trials)
    spoiled = _of_kind(rows, "contaminated")
    if spoiled.empty:
        return []
    return [
        f"{len(spoiled)} of {len(rows)} trials' energies are CONTAMINATED by other work on their node and on no front."
    ]


def _of_kind(rows: DataFrame, kind: str) -> DataFrame:
    return rows[rows["energy_kind"] == kind] if "energy_kind" in rows else rows[:0]


def _energy_notes(trials: DataFrame) -> list[str]:
    return [f"Energy: {note}." for note in distinct(finished(trials), "energy_note")[:MOST_NOTES]]


def _of_the_model(trials: DataFrame) -> list[str]:
    return list(dict.fromkeys(filter(None, map(note_on, distinct(trials, "model.id")))))


def _samples(trials: DataFrame) -> list[str]:
    limits = distinct(finished(trials), "benchmark.limit")
    if not limits:
        return []
    return [f"Scores are from a sample of {', '.join(limits)} documents a task; mind their standard errors."]


def _unparsed(trials: DataFrame) -> list[str]:
    rows = finished(trials)
    most = {name: rows[name].max() for name in those_of("<task>_unparsed", rows.columns)}
    return [
        f"Of the answers to {parts_of(name)['task']}, up to {share:.0%} in a trial can't be parsed; they count as "
        "wrong."
        for name, share in most.items()
        if share > MANY_UNPARSED
    ]


def _stand_ins(trials: DataFrame) -> list[str]:
    """Whether trials read texts of the hub's names from assets, which hold samples of them."""
    rows = finished(trials)
    if not {"benchmark.data", "benchmark.perplexity"} <= set(rows.columns):
        return []
    lists = rows.loc[rows["benchmark.data"] == "assets", "benchmark.perplexity"].dropna().unique()
    sources = {split_revision(split_text(text)[1])[0] for cell in lists for text in json.loads(cell)}
    texts = [name for name in STAND_INS if name in sources]
    if not texts:
        return []
    return [
        f"Perplexities of {' and '.join(texts)} are of the small samples that pinned wheels hold, not of the test "
        "splits of papers: compare trials of this run only."
    ]


def _masks(trials: DataFrame) -> list[str]:
    """Zeros of masks save parameters on paper only."""
    methods = [name for name in distinct(finished(trials), "prune.method") if _is_mask(name)]
    if not methods:
        return []
    return [
        f"Masks ({', '.join(methods)}) leave shapes as they are, and stock engines multiply by zeros as by all else: "
        "vLLM and llm-compressor dropped their kernels for 2:4. A mask saves no energy today; differences are noise."
    ]


def _is_mask(method: str) -> bool:
    return method in METHODS and issubclass(METHODS[method].fields, MaskPruning)


# In their order on the page.
CAUTIONS = (_estimates, _contaminated, _energy_notes, _masks, _of_the_model, _samples, _unparsed, _stand_ins)
