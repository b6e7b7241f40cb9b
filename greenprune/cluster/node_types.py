"""The nodes that a cluster may have one day: what its autoscaler was told.

Ray 2.60 tells this nowhere to programs (only managed platforms publish it), so it is read where Ray's autoscaler itself
has it: from the file that its process on the head was started with, on Kubernetes from the RayCluster.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

log = logging.getLogger("greenprune")
HEAD_NODE = "node:__internal_head__"  # Ray gives the head node one unit of it
KUBERNETES_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
ASKED_WITHIN_S = 120.0  # a process has to start on the head


@dataclass(frozen=True)
class NodeType:
    """Nodes that the autoscaler may start. resources: of one, empty where only the node itself will tell."""

    name: str
    resources: Mapping[str, float]
    at_most: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Growth:
    """What an autoscaler may add to the head. most_workers: of all types together; None: no such limit."""

    types: tuple[NodeType, ...]
    most_workers: int | None = None


def growth() -> Growth | None:
    """What the autoscaler of this cluster may start; None where there is no autoscaler."""
    here = ray.get_runtime_context().get_node_id()
    if any(node["NodeID"] == here and HEAD_NODE in node["Resources"] for node in ray.nodes()):
        return growth_seen_on_head()
    asked = ray.remote(growth_seen_on_head).options(num_cpus=0, resources={HEAD_NODE: 0.0001})
    return ray.get(asked.remote(), timeout=ASKED_WITHIN_S)


def growth_seen_on_head() -> Growth | None:
    """The same, in a process on the head, where the autoscaler runs."""
    if published := ray._private.state.state.get_cluster_config():
        groups = published.node_group_configs
        types = (NodeType(g.name, dict(g.resources), _unlimited(g.max_count)) for g in groups)
        return Growth(tuple(types))
    config = _from_kubernetes() or _from_file(ray.get_runtime_context().gcs_address)
    return growth_of(config) if config else None


def growth_of(config: Mapping[str, Any]) -> Growth:
    """What a cluster's configuration (a launcher's file, as the head has it) lets an autoscaler start."""
    most = config.get("max_workers")
    types = config.get("available_node_types") or {}
    found = (
        NodeType(
            name, known.get("resources") or {}, _unlimited(known.get("max_workers", most)), known.get("labels") or {}
        )
        for name, known in types.items()
        if name != config.get("head_node_type") or known.get("max_workers")
    )
    return Growth(tuple(kind for kind in found if kind.at_most), most)


def _unlimited(count: int | None) -> int:
    return 1_000_000 if count is None or count < 0 else count


def _from_file(gcs_address: str) -> dict[str, Any] | None:
    """The file of the autoscaler's process of this cluster; of other clusters on this machine others run."""
    for command in _commands():
        options = dict(part.split("=", 1) for part in command if part.startswith("--") and "=" in part)
        if options.get("--gcs-address") == gcs_address and (path := options.get("--autoscaling-config")):
            with suppress(OSError, yaml.YAMLError):
                return yaml.safe_load(Path(path).expanduser().read_text())
    return None


def is_a_launched_head() -> bool:
    """Whether a launcher's autoscaler runs on this machine, or beside it in a pod."""
    asked = any(part.startswith("--autoscaling-config=") for command in _commands() for part in command)
    return asked or "RAY_CLUSTER_NAME" in os.environ


def _commands() -> Iterator[list[str]]:
    """Of all processes of this machine; not of the containers on it, which are machines of their own."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.readlink(f"/proc/{process.pid}/ns/pid") == os.readlink("/proc/self/ns/pid"):
                yield process.cmdline()


def _from_kubernetes() -> dict[str, Any] | None:
    """KubeRay's autoscaler has the same from the RayCluster, which its head's service account may read."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not KUBERNETES_NAMESPACE.exists():
        return None
    from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

    try:
        return AutoscalingConfigProducer(name, KUBERNETES_NAMESPACE.read_text().strip())()
    except Exception as problem:  # no right to read it, or no autoscaling
        log.warning("the RayCluster %s doesn't say which nodes may come: %s", name, problem)
        return None
