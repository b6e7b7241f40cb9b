"""The commands that run the front's trials again, exactly as they were."""

from __future__ import annotations

import shlex
from typing import Any

from greenprune.report.run import ReportedRun


def gather_commands(run: ReportedRun) -> dict[str, Any] | None:
    """Of the front's trials; without any on it, of the first, so that a failure can be seen again."""
    chosen = run.trials.index[:1] if run.front is None or run.front.empty else run.front.index
    if chosen.empty:
        return None
    return {"commands": [(run.labels[i], _command(run, run.trials.loc[i, "trial_id"])) for i in chosen]}


def _command(run: ReportedRun, trial_id: str) -> str:
    config = f"{run.path.rstrip('/')}/trials/{trial_id}/config.yaml"
    return f"greenprune trial {shlex.quote(config)}"
