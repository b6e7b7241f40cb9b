"""Joining a Ray cluster or starting Ray here, and whether its nodes see the same storage.

Where no Ray answers, `ray.init` waits for minutes and can't be interrupted. So somebody else asks first: a plain
connection, then a process of its own that may be ended when its time is up.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import uuid
from typing import Any
from urllib.parse import urlsplit

import ray

from greenprune.cluster.node_types import is_a_launched_head
from greenprune.cluster.surroundings import runtime_env
from greenprune.errors import SweepError
from greenprune.storage import Storage

log = logging.getLogger("greenprune")

# Below half a minute together. It takes a process a few seconds to import Ray, and then a fraction of one to ask.
CONNECT_S = 5.0
ANSWER_S = 15.0

# Run by a process of its own. A client is answered by the server that it would use; others by the cluster's GCS.
ASK_FOR_RAY = """
import sys, ray
from ray._private.services import canonicalize_bootstrap_address_or_die
try:
    if sys.argv[1].startswith("ray://"):
        ray.init(sys.argv[1], log_to_driver=False)
    else:
        ray._raylet.GcsClient(address=canonicalize_bootstrap_address_or_die(sys.argv[1]))
except BaseException as problem:
    sys.exit(f"{type(problem).__name__}: {problem}".splitlines()[0])
"""


def check_address(address: str, connect_s: float = CONNECT_S, answer_s: float = ANSWER_S) -> None:
    """Raise SweepError unless Ray answers at "auto", "host:port" or "ray://host:port" within these seconds."""
    if address != "auto":
        try:
            parts = urlsplit(address if "://" in address else f"//{address}")
            where = parts.hostname, parts.port
            if not all(where):
                raise ValueError("no host:port")
            socket.create_connection(where, timeout=connect_s).close()
        except (OSError, ValueError) as problem:
            raise _unreachable(address, f"{problem}") from None
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASK_FOR_RAY, address], capture_output=True, text=True, timeout=answer_s
        )
    except subprocess.TimeoutExpired:
        raise _unreachable(address, f"no answer of Ray's within {answer_s:.0f} s") from None
    if asked.returncode:
        said = asked.stderr.strip().splitlines()
        raise _unreachable(address, said[-1] if said else f"exit code {asked.returncode}")


def _unreachable(address: str | None, problem: str) -> SweepError:
    where = f"at {address}" if address else "on this machine"
    return SweepError(
        f"Ray must be reachable {where}, got {problem}; check `ray status` there, its version, and that this node has "
        "the cluster's token (RAY_AUTH_MODE, ~/.ray/auth_token)"
    )


def start_ray(address: str | None) -> None:
    """Join the cluster at `address` or, without one, at $RAY_ADDRESS (which `ray job submit` sets); else, or where it
    is "local", start Ray here, with its token authentication on (its default).

    Raises SweepError where the cluster can't be reached, within half a minute where nothing answers.
    """
    asked, address = address, address or os.environ.get("RAY_ADDRESS")
    if address == "local":
        address = None
    if address:
        check_address(address)
    elif asked is None and is_a_launched_head():
        log.warning("this is the head of a Ray cluster, and all runs on it alone; --address auto takes the cluster")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a task with no GPU sees no GPU
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, runtime_env=runtime_env(), **common)
        else:
            ray.init(address="local", include_dashboard=False, dashboard_host="127.0.0.1", **common)
    except Exception as problem:
        raise _unreachable(address, f"{type(problem).__name__}: {problem}") from problem


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
