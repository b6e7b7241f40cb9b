"""What a cluster's nodes hold, what a stage asks of them, and whether more nodes may come."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.experimental.internal_kv import _internal_kv_get

from greenprune.config import STAGES, ResourcesConfig, StageResources

log = logging.getLogger("greenprune")
GIB = 2**30
HEAD_NODE = "node:__internal_head__"  # Ray gives the head node one unit of it
LAUNCHED = "ray.io/node-group"  # label of nodes that a launcher started (`ray up`, KubeRay): their node type


@dataclass(frozen=True)
class Need:
    """What one stage asks of Ray; `exclusive` is its lock's business (energy/exclusive.py)."""

    cpu: float
    gpu: float = 0.0
    memory_bytes: int = 0
    custom: Mapping[str, float] = field(default_factory=dict)
    exclusive: Literal["none", "device", "node"] = field(default="none", compare=False)
    hides_gpus: bool = field(default=False, compare=False)

    def fits(self, node: Mapping[str, float]) -> int:
        """How many such stages an empty node holds."""
        wanted = {"CPU": self.cpu, "GPU": self.gpu, "memory": self.memory_bytes, **self.custom}
        shares = [math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in wanted.items() if amount]
        return min(shares, default=1)

    def options(self) -> dict[str, Any]:
        """The arguments of Ray's `.options(…)`."""
        more: dict[str, Any] = {"memory": self.memory_bytes} if self.memory_bytes else {}
        if self.hides_gpus:  # Ray shows all of them to a task that asks for none
            more["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        return {"num_cpus": self.cpu, "num_gpus": self.gpu, "resources": dict(self.custom), **more}


def nodes() -> list[dict[str, float]]:
    """The resources of every node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def can_grow() -> bool:
    """Whether an autoscaler may bring more nodes; Ray that was started by hand, or by us, has the nodes it has.

    Ray answers this nowhere. Its autoscaler v2 and KubeRay label every node with its node type. The first version
    writes a report, in which the nodes of a cluster without autoscaling are of types that it made up itself.
    """
    if any(LAUNCHED in node["Labels"] for node in ray.nodes() if node["Alive"]):
        return True
    status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    types = (status.get("autoscaler_report") or {}).get("active_nodes") or {}
    return any(not name.startswith("node_") for name in types)


def needs(resources: ResourcesConfig, present: Sequence[Mapping[str, float]]) -> dict[str, Need]:
    """What each stage asks for. Where the file says nothing: a GPU and its share of the cores on GPU nodes,
    else all cores of the smallest node, so that stages don't disturb each other's timings.

    An energy stage has its GPUs to itself, on a CPU its whole node. Where the file doesn't say how many cores, it
    asks for all of them, so that it waits in Ray's queue instead of on a node; its lock does the rest. Smaller
    stages may overtake it in that queue, but not for ever: a trial whose window waits starts nothing else, so at
    the latest when all trials in flight wait for theirs a node is free.
    """
    with_gpu = [node for node in present if node.get("GPU")]
    workers = with_gpu or [node for node in present if node.get("CPU")]
    default_gpu = 1.0 if with_gpu else 0.0
    default_cpu = min((math.floor(node.get("CPU", 1) / (node.get("GPU") or 1)) for node in workers), default=1)

    def need(name: str, stage: StageResources) -> Need:
        gpu = default_gpu if stage.gpu is None else stage.gpu
        cpu = float(max(1, default_cpu)) if stage.cpu is None else stage.cpu
        alone: Literal["device", "node"] = "device" if gpu else "node"
        asked = Need(
            cpu,
            gpu,
            int((stage.memory_gb or 0) * GIB),
            stage.custom,
            exclusive=stage.exclusive or (alone if STAGES[name].machine_bound else "none"),
            hides_gpus=bool(with_gpu) and not gpu,
        )
        whole = stage.exclusive == "node" or (asked.exclusive != "none" and not gpu and stage.cpu is None)
        return _whole_node(asked, present) if whole else asked

    return {name: need(name, getattr(resources, name)) for name in STAGES}


def _whole_node(asked: Need, present: Sequence[Mapping[str, float]]) -> Need:
    """All cores and GPUs of the smallest node that can run it, so that no other stage runs beside it there."""
    able = [node for node in present if asked.fits(node)]
    if not able:
        return asked
    node = min(able, key=lambda node: (node.get("CPU", 0), node.get("GPU", 0)))
    return replace(asked, cpu=node.get("CPU", 0.0), gpu=node.get("GPU", 0.0) if asked.gpu else 0.0)


def concurrency(needed: Mapping[str, Need], present: Sequence[Mapping[str, float]]) -> int:
    """How many trials run at once: what the scarcest stage allows, and one more that gets ready meanwhile."""
    slots = {name: sum(need.fits(node) for node in present) for name, need in needed.items()}
    for name, count in slots.items():
        if count == 0:
            log.warning("no node can run the %s stage yet (%s): it waits for the autoscaler", name, needed[name])
    return max(1, min((count for count in slots.values() if count), default=3)) + 1
