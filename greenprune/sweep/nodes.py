"""The cluster as a sweep sees it: what its stages ask for, who joins and who goes, how many trials find room.

What stages ask for is decided once, from what the cluster can be; how many trials run at once follows the nodes. A node
is looked at when it joins: one whose code or libraries would give other numbers is left aside, and nodes.json says so.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from greenprune.cluster.capacity import NODE_GROUP, Capacity, capacity_of, is_head
from greenprune.cluster.join import check_storage_is_shared
from greenprune.cluster.node_types import Growth, growth
from greenprune.cluster.resources import check_room, needs, width
from greenprune.config import STAGES
from greenprune.errors import SweepError
from greenprune.experiment import Experiment
from greenprune.logs import Seldom
from greenprune.plan import stages_of
from greenprune.storage import Storage
from greenprune.sweep.environment import differences, node_facts

log = logging.getLogger("greenprune")
NODES_FILE = "nodes.json"
LOOKED_AT_EVERY_S = 5.0
FIRST_LOOK_S = 60.0  # within which the nodes that are there when a sweep begins must answer

Facts = Mapping[str, Any]


class Nodes:
    """The nodes of the cluster that this process has joined. Raises SweepError for what they will never have room for.

    limit: how many trials run at once at most, as far as the user says; record: is told what nodes.json holds.
    """

    def __init__(self, experiment: Experiment) -> None:
        assert experiment.sweep is not None, "only a sweep has resources"
        self.limit = experiment.sweep.max_concurrent
        self.growth: Growth | None = growth()
        self.mine = node_facts()
        self.known: dict[str, dict[str, Any]] = {}  # by Ray's id; what nodes.json holds
        self.asked: dict[str, Any] = {}  # nodes that were asked and haven't answered yet
        self.record: Callable[[str], None] = lambda text: None
        self._look(FIRST_LOOK_S)
        self._check_any_is_left()
        capacity = self._wait_for_a_worker()
        self.elsewhere = capacity.head_rests  # whether stages run on other machines than this one
        asked, groups = stages_of(experiment), groups_of(experiment)
        self.needed = needs(experiment.sweep.resources, capacity, groups)
        self.used = {name: need for name, need in self.needed.items() if name in asked}
        check_room(self.used, capacity)
        self.trials = self.limit or width(self.used, capacity)
        self.looked_at = time.monotonic()

    def width(self) -> int:
        """How many trials may run at once now; looks at the nodes every few seconds."""
        if time.monotonic() - self.looked_at > LOOKED_AT_EVERY_S:
            changed = self._look(0.0)
            self.looked_at = time.monotonic()
            now = self.limit or width(self.used, self._capacity())
            if changed or now != self.trials:
                log.info("%d nodes, up to %d trials at once", len(self._alive()), now)
            self.trials = now
        return self.trials

    def text(self) -> str:
        """What nodes.json holds."""
        return json.dumps(self.known, indent=1)

    def check_storage(self, storage: Storage) -> None:
        """Leave aside nodes that can't be asked. Raises SweepError where one has another storage, or none is left."""
        for node_id, why in check_storage_is_shared(storage, self._alive()).items():
            self._refuse(node_id, why)
        self._check_any_is_left()

    def _alive(self) -> list[dict[str, Any]]:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        return [node for node in nodes if not self.known.get(node["NodeID"], {}).get("refused")]

    def _capacity(self) -> Capacity:
        return capacity_of(self._alive(), self.growth)

    def _wait_for_a_worker(self) -> Capacity:
        """What the cluster can be; where only the nodes themselves can tell, after the first has come."""
        due = Seldom(30.0)
        while not (capacity := self._capacity()).kinds and capacity.more_may_come:
            if due.due():
                log.info("waiting for the first worker: `ray status` says what comes")
            time.sleep(1.0)
            self._look(1.0)
        return capacity

    def _check_any_is_left(self) -> None:
        refused = [node["refused"] for node in self.known.values() if node.get("refused")]
        if refused and not self._capacity().kinds:
            raise SweepError(
                "the cluster's nodes must run processes with this node's code and versions, got "
                f"{refused[0]}; mend one, or install the same there"
            )

    def _look(self, within_s: float) -> bool:
        """Ask new nodes for their versions, and take note of answers; whether nodes came or went."""
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        here = ray.get_runtime_context().get_node_id()
        came = [node_id for node_id in alive if node_id not in self.known]
        gone = [node_id for node_id, node in self.known.items() if node["alive"] and node_id not in alive]
        for node_id in gone:
            self.known[node_id]["alive"] = False
        for node_id in came:
            node = alive[node_id]
            kind = "head" if is_head(node) else (node["Labels"] or {}).get(NODE_GROUP)
            self.known[node_id] = {"address": node["NodeManagerAddress"], "type": kind, "alive": True}
            if node_id == here:
                self._note(node_id, self.mine)
            else:
                there = NodeAffinitySchedulingStrategy(node_id, soft=False)
                self.asked[node_id] = ray.remote(node_facts).options(num_cpus=0, scheduling_strategy=there).remote()
        answered = self._take_answers(within_s)
        if came or gone or answered:
            self.record(self.text())
        return bool(came or gone)

    def _take_answers(self, within_s: float) -> bool:
        waiting = list(self.asked.values())
        ready = set(ray.wait(waiting, num_returns=len(waiting), timeout=within_s)[0]) if waiting else set()
        answered = {node_id: answer for node_id, answer in self.asked.items() if answer in ready}
        for node_id, answer in answered.items():
            del self.asked[node_id]
            try:
                self._note(node_id, ray.get(answer))
            except Exception as problem:  # it is gone, or it can't import this code
                self._refuse(node_id, f"{type(problem).__name__}: {problem}".splitlines()[0])
        return bool(answered)

    def _note(self, node_id: str, theirs: Facts) -> None:
        self.known[node_id] |= {"host": theirs["host"], "versions": theirs["versions"]}
        if other := differences(self.mine["decides"], theirs["decides"]):
            self._refuse(node_id, f"{other} on {theirs['host']}")
        elif other := differences(self.mine["versions"], theirs["versions"]):
            log.info("the node %s has other versions, which numbers don't depend on: %s", theirs["host"], other)

    def _refuse(self, node_id: str, why: str) -> None:
        self.known[node_id]["refused"] = why
        if self.known[node_id]["alive"]:
            log.warning("the node %s is left aside: %s", self.known[node_id]["address"], why)


def refused_nodes(run: Path) -> set[str]:
    """The ids of nodes that a run's nodes.json has left aside, read by its trials' drivers."""
    try:
        known = json.loads((run / NODES_FILE).read_text())
    except (OSError, ValueError):
        return set()
    return {node_id for node_id, node in known.items() if node.get("refused") and node.get("alive")}


def groups_of(experiment: Experiment) -> dict[str, int]:
    """By stage, of how many workers a group of it may be; stages that are always one process are left out."""
    assert experiment.sweep is not None, "only a sweep has a space"
    found = {}
    for name, stage in STAGES.items():
        varied = experiment.sweep.space.get(f"{stage.key}.num_workers")
        section = getattr(experiment, stage.key, None)
        asked = [section.workers() if section else 1, *(varied.ends() if varied else ())]
        if max(asked) > 1:
            found[name] = max(asked)
    return found
