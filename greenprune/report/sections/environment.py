"""environment.json as lines of key and value: versions, devices, drivers, energy sources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from greenprune.config import flat
from greenprune.report.run import ReportedRun


def gather_environment(run: ReportedRun) -> dict[str, Any] | None:
    if not run.pull("environment.json"):
        return None
    lines = _lines((run.folder / "environment.json").read_text(encoding="utf-8"))
    return {"environment": lines} if lines else None


def _lines(text: str) -> dict[str, str]:
    try:
        content = json.loads(text)
    except ValueError:
        return {"environment.json": "unreadable"}
    values = flat(content) if isinstance(content, Mapping) else {"environment": content}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
