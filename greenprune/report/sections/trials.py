"""All trials: identity, size, scores with floors, perplexity, speed, energy."""

from __future__ import annotations

from typing import Any

from greenprune.report.run import ReportedRun
from greenprune.report.tables import Cell, PrintedColumn, label_column, trials_table

OF_ALL_TRIALS = (
    "trial_number",
    "trial_id",
    "on the front",
    "parameters_removed_ratio",
    "accuracy",
    "<task>_acc",
    "<text>_ppl@<length>",
    "energy_j_per_token",
    "energy_ratio",
    "energy_j_per_prefill_token",
    "energy_j_per_decode_token",
    "decode_tokens_per_s",
    "peak_memory_bytes",
    "energy_kind",
)


def gather_trials(run: ReportedRun) -> dict[str, Any]:
    own = {"trial_id": label_column(run.labels)}
    if run.front is not None:
        own["on the front"] = _marks(set(run.front.index))
    return {"table": trials_table(run.trials, OF_ALL_TRIALS, own)}


def _marks(chosen: set[Any]) -> PrintedColumn:
    return PrintedColumn(Cell("front"), lambda row: Cell("●" if row.name in chosen else "", "mark"))
