"""Weights & Biases' runs, a group a sweep. WANDB_MODE=offline leaves them in runs/NAME/wandb, for `wandb sync`.

Ray's callback hands the key to its actors by Ray's runtime environment, which Ray writes into its logs. Here it goes
to them as an argument.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor

from greenprune.sweep.run_folder import RunFolder

KEY = "WANDB_API_KEY"


class _Telling(_WandbLoggingActor):
    """The process that tells W&B of one trial."""

    def __init__(self, *args: Any, key: str | None, **kwargs: Any) -> None:
        if key:
            os.environ[KEY] = key
        super().__init__(*args, **kwargs)


class ToWandb(WandbLoggerCallback):
    _logger_actor_cls = _Telling

    def __init__(self, run: RunFolder) -> None:
        project = os.environ.get("WANDB_PROJECT") or "greenprune"
        super().__init__(project=project, group=run.name, mode=os.environ.get("WANDB_MODE"))

    def _start_logging_actor(self, trial: Any, exclude_results: list[str], **how: Any) -> None:
        trial.init_local_path()  # where W&B's files go
        with _key_hidden() as key:
            super()._start_logging_actor(trial, exclude_results, key=key, **how)


@contextmanager
def _key_hidden() -> Iterator[str | None]:
    """This process's key, which its environment doesn't hold meanwhile."""
    key = os.environ.pop(KEY, None)
    try:
        yield key
    finally:
        if key is not None:
            os.environ[KEY] = key
