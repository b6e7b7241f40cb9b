"""Small files of a trial's artifacts, fetched one by one: never a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from greenprune.results import TrialResult
from greenprune.storage import Storage
from greenprune.store import Artifact


def key_of(result: TrialResult, stage: str) -> str | None:
    """The key of a stage's last artifact in a trial; of energy that is the trial's own, the dense model's is before."""
    return next((each["key"] for each in reversed(result.stages) if each["stage"] == stage), None)


def artifact_file(storage: Storage, result: TrialResult, stage: str, name: str) -> Path | None:
    """A file that a trial's stage wrote; None where there is none (any more)."""
    key = key_of(result, stage)
    if key is None:
        return None
    relative = Artifact(stage, key).folder / name
    path = storage.local / relative
    return path if path.exists() or storage.pull(relative) else None


def artifact_json(storage: Storage, result: TrialResult, stage: str, name: str) -> Any:
    """What a trial's stage wrote as JSON; None where it isn't there or can't be read."""
    path = artifact_file(storage, result, stage, name)
    try:
        return None if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
