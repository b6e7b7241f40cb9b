"""What the sweep's command knows and every node must know too: where caches lie, which hub, offline or not, its token.

All but the token travel as Ray's runtime environment. Ray writes that into its logs, so the token doesn't: it stays in
the memory of one actor on the head, which every process of this sweep asks.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

import ray

from greenprune.cluster.node_types import HEAD_NODE

TOKEN = "HF_TOKEN"
PASSED_ON = (
    "GREENPRUNE_CACHE",
    "GREENPRUNE_CACHE_GB",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_CACHE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
)
KEEPER = "greenprune-token"
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # where `ray job submit` leaves the job's own runtime environment


def runtime_env() -> dict[str, Any]:
    """What `ray.init` is given where a cluster is joined. A job's own settings come first: Ray takes each once."""
    job = json.loads(os.environ.get(JOB) or "{}").get("runtime_env") or {}
    mine = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    passed = {name: value for name, value in mine.items() if name not in (job.get("env_vars") or {})}
    return {"env_vars": passed} if passed else {}


class Keeper:
    """Holds the token in memory."""

    def __init__(self) -> None:
        self.token: str | None = None

    def keep(self, token: str) -> None:
        self.token = token

    def tell(self) -> str | None:
        return self.token


def keep_token() -> Any:
    """Let all processes of this sweep know this process's hub token; gives what must be held on to meanwhile."""
    from huggingface_hub import get_token

    if (token := get_token()) is None:
        return None
    on_head = {"num_cpus": 0, "resources": {HEAD_NODE: 0.0001}}
    keeper = ray.remote(Keeper).options(name=KEEPER, get_if_exists=True, **on_head).remote()
    ray.get(keeper.keep.remote(token))
    return keeper


def learn_token() -> None:
    """Set the token for this process, where the sweep has one and this process hasn't."""
    if TOKEN in os.environ:
        return
    with suppress(ValueError):  # nobody keeps one
        if token := ray.get(ray.get_actor(KEEPER).tell.remote()):
            os.environ[TOKEN] = token
