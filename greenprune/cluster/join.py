"""Joining a Ray cluster or starting Ray here, and whether its nodes see the same storage.

Where no Ray answers, `ray.init` waits for minutes and can't be interrupted. So somebody else asks first: a plain
connection, then a process of its own that may be ended when its time is up.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import ray

from greenprune.cluster.node_types import is_a_launched_head
from greenprune.cluster.surroundings import runtime_env
from greenprune.energy.exclusive import storage_mark
from greenprune.errors import SweepError
from greenprune.storage import Storage

log = logging.getLogger("greenprune")

# Below half a minute together, and on a busy node the time that a process takes to import Ray, which is given its own.
CONNECT_S = 5.0
ANSWER_S = 15.0
PROBE_S = 120.0  # a node starts a process, which imports this package, and asks the storage
IMPORT_S = 180.0

# Run by a process of its own. A client is answered by the server that it would use; others by the cluster's GCS.
ASK_FOR_RAY = """
import sys, ray
from ray._private.services import canonicalize_bootstrap_address_or_die
print("imported", flush=True)
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
    with subprocess.Popen(
        [sys.executable, "-c", ASK_FOR_RAY, address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as asked:
        assert asked.stdout, "a pipe"
        select.select([asked.stdout], [], [], IMPORT_S)
        try:
            said = asked.communicate(timeout=answer_s)[1].strip().splitlines()
        except subprocess.TimeoutExpired:
            asked.kill()
            raise _unreachable(address, f"no answer of Ray's within {answer_s:.0f} s") from None
    if asked.returncode:
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


def check_storage_is_shared(storage: Storage, alive: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Every one of these `ray.nodes()`, the head too, must see what another writes. Raises SweepError that names a node
    that doesn't.

    Gives the ids of those that couldn't be asked (no process lives there, or none in time), and why. A node that joins
    later is asked by its first stage (stages.py).
    """
    if len(alive) < 2:
        return {}
    mark, silent = storage_mark(storage.uri), {}
    asks = ray.remote(_what_is_wrong)
    asked = []
    for node in alive:
        pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answer = asks.options(num_cpus=0, max_retries=0, scheduling_strategy=pinned).remote(storage.uri, mark)
        asked.append((node, answer))
    for node, answer in asked:
        try:
            wrong = ray.get(answer, timeout=PROBE_S)
        except ray.exceptions.RayError as problem:
            silent[node["NodeID"]] = f"{type(problem).__name__}: {problem}".splitlines()[0]
            continue
        if wrong:
            raise SweepError(
                f"sweep.storage must be a folder that all nodes share, or an object store that all may use, got "
                f"{storage.uri}, which node {node['NodeManagerAddress']} doesn't have: {wrong}; use a shared file "
                "system or s3://…"
            )
    return silent


def _what_is_wrong(storage_uri: str, mark: str) -> str | None:
    """Run by a node: whether it sees the storage of that mark."""
    try:
        return None if storage_mark(storage_uri) == mark else "it sees another one"
    except Exception as problem:
        return str(problem)
