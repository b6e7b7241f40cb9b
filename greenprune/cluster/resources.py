"""What a stage asks of Ray, by what the cluster can be: how much, on which nodes, and how many trials find room.

Nodes may have roles, which are Ray resources of these names: those with `prepare` collect, prune, heal and score, those
with `energy_meter` measure. Where a cluster has no such names, a stage's own `custom` resources say the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray

from greenprune.cluster.capacity import Capacity, NodeKind, is_head
from greenprune.config import STAGES, ResourcesConfig, StageResources
from greenprune.errors import SweepError

GIB = 2**30
PREPARES, METERS = "prepare", "energy_meter"
SLIVER = 0.001  # of a role that any number of stages may share
MOST_AT_ONCE = 64  # trials: each has a process on the head


@dataclass(frozen=True)
class Need:
    """What one stage asks of Ray, of several workers each; `exclusive` is its lock's business (energy/exclusive.py).

    labels: of nodes that it must have; off_head: it leaves the head alone; leaves: custom resources of nodes that it
    leaves to others. workers: how many form one group.
    """

    cpu: float
    gpu: float = 0.0
    memory_bytes: int = 0
    custom: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    workers: int = field(default=1, compare=False)
    exclusive: Literal["none", "device", "node"] = field(default="none", compare=False)
    hides_gpus: bool = field(default=False, compare=False)
    off_head: bool = field(default=False, compare=False)
    leaves: Mapping[str, float] = field(default_factory=dict, compare=False)

    def resources(self) -> dict[str, float]:
        """By Ray's names."""
        wanted = {"CPU": self.cpu, "GPU": self.gpu, "memory": float(self.memory_bytes), **self.custom}
        return {name: amount for name, amount in wanted.items() if amount}

    def fits(self, kind: NodeKind) -> int:
        """How many such stages an empty node holds."""
        if _holds(kind.resources, self.leaves) or any(kind.labels.get(k, v) != v for k, v in self.labels.items()):
            return 0
        shares = (kind.holds(name) / much for name, much in self.resources().items())
        return math.floor(min(shares, default=1) + 1e-9)

    def selector(self, refused: Collection[str] = ()) -> dict[str, str]:
        """Ray's label selector: which of the nodes that are alive now, and of those to come, it may run on.

        refused: ids of nodes that nothing should run on.
        """
        avoided = {node["NodeID"] for node in _alive() if self._avoids(node)} | set(refused)
        only = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"} if avoided else {}
        return {**self.labels, **only}

    def may_run_on(self, refused: Collection[str]) -> bool:
        """Whether a node is alive that isn't refused and that it doesn't avoid."""
        return any(node["NodeID"] not in refused and not self._avoids(node) for node in _alive())

    def _avoids(self, node: Mapping[str, Any]) -> bool:
        return (self.off_head and is_head(node)) or _holds(node["Resources"], self.leaves)

    def options(self) -> dict[str, Any]:
        """The arguments of Ray's `.options(…)`, without the selector."""
        more: dict[str, Any] = {"memory": self.memory_bytes} if self.memory_bytes else {}
        if self.hides_gpus:  # Ray shows all of them to a task that asks for none
            more["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        return {"num_cpus": self.cpu, "num_gpus": self.gpu, "resources": dict(self.custom), **more}

    def __str__(self) -> str:
        return words(self.resources()) + (f" with labels {dict(self.labels)}" if self.labels else "")


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _holds(resources: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return bool(wanted) and all(resources.get(name, 0) >= amount for name, amount in wanted.items())


def words(resources: Mapping[str, float]) -> str:
    """Resources for a message, without those that are of one node only."""
    shown = {name: amount for name, amount in resources.items() if not name.startswith(("node:", "object_store"))}
    return ", ".join(
        f"memory_gb {amount / GIB:.4g}"
        if name == "memory"
        else f"{name.lower() if name in _PLAIN else name} {amount:.4g}"
        for name, amount in shown.items()
    )


_PLAIN = ("CPU", "GPU")


def needs(resources: ResourcesConfig, capacity: Capacity, workers: Mapping[str, int] | None = None) -> dict[str, Need]:
    """What each stage asks for. Where the file says nothing: a GPU and its share of the cores where there are or may be
    GPUs, else all cores of the smallest node, so that stages don't disturb each other's timings. Of a group of
    `workers` (by stage) each asks for that, or for fewer cores, where otherwise there would be no room for all.

    An energy stage has its GPUs to itself, on a CPU its whole node. Where the file doesn't say how many cores, it
    asks for all of them, so that it waits in Ray's queue instead of on a node; its lock does the rest. Smaller
    stages may overtake it in that queue, but not for ever: a trial whose window waits starts nothing else, so at
    the latest when all trials in flight wait for theirs a node is free.

    Preparing stages leave nodes that meter alone while there are or may be others.
    """
    found = {name: _need(name, getattr(resources, name), capacity, (workers or {}).get(name, 1)) for name in STAGES}
    metering = {
        name: much for stage, need in found.items() if STAGES[stage].machine_bound for name, much in need.custom.items()
    }
    return {name: _leaving(metering, need, capacity.kinds) for name, need in found.items()}


def _need(name: str, stage: StageResources, capacity: Capacity, workers: int) -> Need:
    custom = stage.custom or ({} if stage.labels else _role(name, capacity.kinds))
    kinds = [kind for kind in capacity.kinds if Need(0.0, custom=custom, labels=stage.labels).fits(kind)]
    with_gpu = [kind for kind in kinds if kind.holds("GPU")]
    able = with_gpu or [kind for kind in kinds if kind.holds("CPU")]
    default_cpu = min((math.floor(kind.holds("CPU") / (kind.holds("GPU") or 1)) for kind in able), default=1)
    gpu = (1.0 if with_gpu else 0.0) if stage.gpu is None else stage.gpu
    alone: Literal["device", "node"] = "device" if gpu else "node"
    asked = Need(
        float(max(1, default_cpu)) if stage.cpu is None else stage.cpu,
        gpu,
        int((stage.memory_gb or 0) * GIB),
        custom,
        stage.labels,
        workers,
        exclusive=stage.exclusive or (alone if STAGES[name].machine_bound else "none"),
        hides_gpus=bool(with_gpu) and not gpu,
        off_head=capacity.head_rests,
    )
    if stage.cpu is None and workers > 1:
        while asked.cpu > 1 and room(asked, capacity) < workers:
            asked = replace(asked, cpu=asked.cpu - 1)
    whole = stage.exclusive == "node" or (asked.exclusive != "none" and not gpu and stage.cpu is None)
    return _whole_node(asked, kinds) if whole else asked


def _role(stage: str, kinds: Sequence[NodeKind]) -> dict[str, float]:
    """The role of nodes that a stage asks for where the file says nothing; none where no node has it."""
    role, much = (METERS, 1.0) if STAGES[stage].machine_bound else (PREPARES, SLIVER)
    return {role: much} if any(kind.holds(role) >= much for kind in kinds) else {}


def _leaving(metering: Mapping[str, float], need: Need, kinds: Sequence[NodeKind]) -> Need:
    """The need without nodes that meter, where others can be had and it doesn't ask for those itself."""
    elsewhere = replace(need, leaves=metering)
    mine = set(metering) & set(need.custom)
    return elsewhere if not mine and any(map(elsewhere.fits, kinds)) else need


def _whole_node(asked: Need, kinds: Sequence[NodeKind]) -> Need:
    """All cores and GPUs of the smallest node that can run it, so that no other stage runs beside it there."""
    able = [kind for kind in kinds if asked.fits(kind)]
    if not able:
        return asked
    kind = min(able, key=lambda kind: (kind.holds("CPU"), kind.holds("GPU")))
    return replace(asked, cpu=kind.holds("CPU"), gpu=kind.holds("GPU") if asked.gpu else 0.0)


def room(need: Need, capacity: Capacity) -> int:
    """How many such stages, or workers of a group, the cluster holds at its largest."""
    return _sum_of_largest([(need.fits(kind), kind.at_most) for kind in capacity.kinds], capacity.most_nodes)


def _sum_of_largest(held: Sequence[tuple[int, int]], most_nodes: int | None) -> int:
    """The sum over nodes: (on one node, how many such nodes); at most so many nodes, the best of them."""
    total, left = 0, math.inf if most_nodes is None else most_nodes
    for on_one, nodes in sorted(held, reverse=True):
        taken = min(nodes, left)
        total, left = total + int(on_one * taken), left - taken
    return total


def check_room(needed: Mapping[str, Need], capacity: Capacity) -> None:
    """Raises SweepError for a stage that no node holds, alive or to come, and for a group that finds no room."""
    if capacity.more_may_come:
        return
    largest = capacity.largest()
    for name, need in needed.items():
        holds = (
            f"the largest node ({largest.name}) holds {words(largest.resources)}"
            if largest
            else "there is no node for it"
        )
        if not any(map(need.fits, capacity.kinds)):
            raise SweepError(
                f"sweep.resources.{name} must fit on a node that the cluster has or may start, got {need}, and "
                f"{holds}; ask for less, or add such nodes"
            )
        if (places := room(need, capacity)) < need.workers:
            raise SweepError(
                f"{STAGES[name].key}.num_workers must be at most {places}, what the cluster holds of workers with "
                f"{need}, got {need.workers}; lower it, or sweep.resources.{name}"
            )


def width(needed: Mapping[str, Need], capacity: Capacity) -> int:
    """How many trials run at once: on each node as many as its scarcest stage allows, and one more that gets ready."""
    single = [need for need in needed.values() if need.workers == 1]
    held = []
    for kind in capacity.kinds:
        fitting = [count for need in single if (count := need.fits(kind))]
        held.append((min(fitting, default=0), kind.at_most))
    return min(MOST_AT_ONCE, max(1, _sum_of_largest(held, capacity.most_nodes)) + 1)
