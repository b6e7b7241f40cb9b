"""What a cluster can be: the nodes that are alive, and those that its autoscaler may start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from greenprune.cluster.node_types import HEAD_NODE, Growth, NodeType

NODE_GROUP = "ray.io/node-group"  # label of nodes that a launcher started (autoscaler v2, KubeRay): their node type
PLENTY = 2.0**60
OF_ONE_NODE = ("node:", "object_store_memory", "memory")  # resources by which nodes of a type differ


@dataclass(frozen=True)
class NodeKind:
    """Nodes that are alike. at_most: how many there may be; name: for messages."""

    name: str
    resources: Mapping[str, float]
    at_most: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)

    def holds(self, resource: str) -> float:
        """How much an empty node has; of memory without limit where nobody knows yet."""
        return self.resources.get(resource, PLENTY if resource == "memory" else 0.0)


@dataclass(frozen=True)
class Capacity:
    """kinds: of nodes that stages may run on; the head is one of them only where it is alone and stays alone.

    more_may_come: nodes of which nobody knows what they will hold. most_nodes: of all kinds together.
    """

    kinds: tuple[NodeKind, ...]
    head_rests: bool = False
    more_may_come: bool = False
    most_nodes: int | None = None

    def largest(self) -> NodeKind | None:
        return max(self.kinds, key=lambda kind: (kind.holds("GPU"), kind.holds("CPU")), default=None)


def capacity_now(growth: Growth | None) -> Capacity:
    """What the cluster can be, as far as it is known now."""
    return capacity_of([node for node in ray.nodes() if node["Alive"]], growth)


def capacity_of(alive: Sequence[Mapping[str, Any]], growth: Growth | None) -> Capacity:
    """The same of nodes as `ray.nodes()` gives them."""
    heads = [node for node in alive if is_head(node)]
    workers = [node for node in alive if not is_head(node)]
    types = list(growth.types) if growth else []
    head_rests, up = bool(workers or types), len(workers)
    kinds: list[NodeKind] = []
    for node_type in types:
        members = [node for node in workers if _is_of(node, node_type)]
        workers = [node for node in workers if node not in members]
        at_most = max(node_type.at_most, len(members))
        seen = _kind(members[0]) if members else NodeKind(node_type.name, node_type.resources, labels=node_type.labels)
        if members or node_type.resources:
            kinds.append(replace(seen, name=node_type.name, at_most=at_most))
    kinds += [_kind(node) for node in (workers if head_rests else heads)]
    unknown = any(not node_type.resources and up < node_type.at_most for node_type in types)
    return Capacity(tuple(kinds), head_rests, unknown, growth.most_workers if growth else None)


def is_head(node: Mapping[str, Any]) -> bool:
    """Whether one of `ray.nodes()` is the head."""
    return HEAD_NODE in node["Resources"]


def _kind(node: Mapping[str, Any]) -> NodeKind:
    return NodeKind(str(node.get("NodeManagerAddress", "node")), node["Resources"], labels=node.get("Labels") or {})


def _is_of(node: Mapping[str, Any], node_type: NodeType) -> bool:
    """By its label, which the first version of the autoscaler doesn't give; else by what it holds."""
    if group := (node.get("Labels") or {}).get(NODE_GROUP):
        return group == node_type.name
    return _told_apart_by(node["Resources"]) == _told_apart_by(node_type.resources)


def _told_apart_by(resources: Mapping[str, float]) -> dict[str, float]:
    named = {name: float(amount) for name, amount in resources.items() if amount}
    return {name: amount for name, amount in named.items() if not name.startswith((*OF_ONE_NODE, "accelerator_type:"))}
