"""Joining a Ray cluster or starting Ray here, and whether its nodes see the same storage."""

from __future__ import annotations

import logging
import os
import uuid
from typing import Any

import ray

from greenprune.errors import SweepError
from greenprune.storage import Storage


def start_ray(address: str | None) -> None:
    """Join the cluster at `address`, or start Ray here, with its token authentication on (its default).

    Raises SweepError where the cluster can't be reached.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a task with no GPU sees no GPU
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(address="local", include_dashboard=False, dashboard_host="127.0.0.1", **common)
    except Exception as problem:
        where = f"at {address}" if address else "on this machine"
        raise SweepError(
            f"Ray must be reachable {where}, got {type(problem).__name__}: {problem}; check `ray status` there, its "
            "version, and that this node has the cluster's token (RAY_AUTH_MODE, ~/.ray/auth_token)"
        ) from problem


def check_storage_is_shared(storage: Storage) -> None:
    """Every node must see what another writes. Raises SweepError that names a node that doesn't."""
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if storage.remote is not None or len(alive) < 2:
        return
    probe = storage.local / f".probe-{uuid.uuid4().hex[:8]}"
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.touch()
    sees = ray.remote(os.path.exists)
    try:
        for node in alive:
            pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            if not ray.get(sees.options(num_cpus=0, scheduling_strategy=pinned).remote(str(probe))):
                raise SweepError(
                    f"sweep.storage must be a folder that all nodes share, got {storage.uri}, which node "
                    f"{node['NodeManagerAddress']} doesn't see; use a shared file system or s3://…"
                )
    finally:
        probe.unlink(missing_ok=True)
