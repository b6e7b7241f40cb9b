"""The commit that a model or a data set of the hub is at: what a branch or tag means today.

A run asks once and goes on with the answer, since a branch moves. Without the hub, the local cache tells what it holds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from greenprune.assets.patience import answer_within

log = logging.getLogger("greenprune")
Repository = Literal["model", "dataset"]
AskCommit = Callable[[Repository, str, str | None], str | None]  # kind, owner/name, revision → commit
PATIENCE_S = 10.0


def hub_commit(kind: Repository, name: str, revision: str | None = None) -> str | None:
    """The commit of `revision` (None: the default branch); None, with a warning, where neither hub nor cache tells."""
    try:
        commit = _asked(kind, name, revision)
    except Exception as problem:
        commit = _cached(kind, name, revision)
        if commit is None:
            reason = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
            log.warning(
                "the %s %s can't be pinned to a commit (%s): a change of it on the hub would go unnoticed; "
                "connect to the hub, or give a commit as its revision",
                kind,
                name,
                reason,
            )
    return commit


def _asked(kind: Repository, name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    ask = api.model_info if kind == "model" else api.dataset_info
    return answer_within(2 * PATIENCE_S, lambda: ask(name, revision=revision, timeout=PATIENCE_S).sha)


def _cached(kind: Repository, name: str, revision: str | None) -> str | None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    branch = folder / "refs" / (revision or "main")
    return branch.read_text().strip() if branch.is_file() else None
