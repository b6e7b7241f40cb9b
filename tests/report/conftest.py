"""A run made by hand: four trials that finished, one that failed."""

from __future__ import annotations

from pathlib import Path

import pytest
from handmade_runs import results

from greenprune.results import write_trials


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_trials(tmp_path / "demo", results())
    return tmp_path / "demo"
