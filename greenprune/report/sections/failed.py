"""The trials that failed, and why."""

from __future__ import annotations

from typing import Any

from greenprune.report.run import ReportedRun


def gather_failed(run: ReportedRun) -> dict[str, Any] | None:
    rows = run.trials[run.trials["status"] != "ok"]
    if rows.empty:
        return None
    reasons = rows["error"].fillna("no reason kept")
    return {
        "failed": [
            {"name": run.labels[i], "trial_id": rows.loc[i, "trial_id"], "error": reasons[i]} for i in rows.index
        ]
    }
