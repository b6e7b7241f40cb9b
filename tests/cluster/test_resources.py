"""What stages ask for, from what a cluster can be: alive nodes and those of an autoscaler. No Ray is started."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from paths import ROOT

from greenprune.cluster.capacity import Capacity, NodeKind, capacity_of
from greenprune.cluster.node_types import HEAD_NODE, Growth, NodeType, growth_of
from greenprune.cluster.resources import MOST_AT_ONCE, Need, check_room, needs, room, width
from greenprune.config import STAGES
from greenprune.config.sweep import ResourcesConfig, StageResources
from greenprune.errors import SweepError
from greenprune.experiment import load_experiment

PLAIN = ResourcesConfig()
CPU_NODE = NodeKind("small", {"CPU": 8.0})
GPU_NODE = NodeKind("big", {"CPU": 32.0, "GPU": 4.0})
METER = NodeKind("meter", {"CPU": 32.0, "GPU": 4.0, "energy_meter": 1.0})


def of(*kinds: NodeKind, **more: Any) -> Capacity:
    return Capacity(kinds, **more)


def alive(resources: dict[str, float], head: bool = False, **labels: str) -> dict[str, Any]:
    """A node as `ray.nodes()` gives it."""
    more = {HEAD_NODE: 1.0} if head else {}
    return {"NodeID": "ab", "NodeManagerAddress": "10.0.0.1", "Resources": {**resources, **more}, "Labels": labels}


def asked(**stages: Any) -> ResourcesConfig:
    return PLAIN.model_copy(update={name: StageResources(**fields) for name, fields in stages.items()})


# ------------------------------------------------------------------------------------------ what a cluster can be


def launched() -> Growth:
    """cluster.yaml as the launcher leaves it on the head: it asks AWS what the machines hold."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for known in config["available_node_types"].values():
        known["resources"] = {"CPU": 16, "GPU": 1, "memory": 2**36, **known["resources"]}
    return growth_of(config)


def test_the_launch_files_nodes_count_before_they_are_there():
    empty = capacity_of([alive({"CPU": 0.0}, head=True)], launched())
    assert {kind.name: kind.at_most for kind in empty.kinds} == {"prepare": 4, "meter": 2}
    needed = needs(PLAIN, empty)
    assert {(needed[name].cpu, needed[name].gpu) for name in STAGES} == {(16.0, 1.0)}
    assert needed["energy"].custom == {"energy_meter": 1.0}
    assert width(needed, empty) == 7  # four prepare, two are measured, one gets ready
    assert all(need.off_head for need in needed.values())


def test_nodes_that_are_there_are_told_by_label_or_by_what_they_hold():
    by_label = alive({"CPU": 15.0, "GPU": 1.0, "accelerator_type:L40S": 1.0}, **{"ray.io/node-group": "prepare"})
    by_resources = alive({"CPU": 16.0, "GPU": 1.0, "energy_meter": 1.0, "memory": 5.0, "node:10.0.0.2": 1.0})
    by_hand = alive({"CPU": 2.0})
    found = capacity_of([alive({"CPU": 4.0}, head=True), by_label, by_resources, by_hand], launched())
    assert [(kind.name, kind.at_most, kind.holds("CPU")) for kind in found.kinds] == [
        ("prepare", 4, 15.0),
        ("meter", 2, 16.0),
        ("10.0.0.1", 1, 2.0),
    ]


def test_the_head_works_only_where_it_is_alone():
    head = alive({"CPU": 2.0}, head=True)
    assert capacity_of([head], None) == Capacity((NodeKind("10.0.0.1", head["Resources"], labels={}),))
    pair = capacity_of([head, alive({"CPU": 8.0})], None)
    assert [kind.holds("CPU") for kind in pair.kinds] == [8.0]
    assert pair.head_rests


def test_types_of_which_only_the_node_itself_tells():
    local = growth_of({"available_node_types": {"a": {"resources": {}, "max_workers": 3}}, "max_workers": 3})
    assert capacity_of([alive({"CPU": 0.0}, head=True)], local) == Capacity((), True, more_may_come=True, most_nodes=3)
    check_room({"heal": Need(cpu=999)}, Capacity((), True, more_may_come=True))  # it may come
    all_there = capacity_of([alive({"CPU": 0.0}, head=True), *[alive({"CPU": 8.0})] * 3], local)
    assert not all_there.more_may_come
    assert [kind.holds("CPU") for kind in all_there.kinds] == [8.0] * 3


def test_a_head_type_may_also_be_a_worker():
    both = {"available_node_types": {"node": {"resources": {"CPU": 4}, "max_workers": 2}}, "head_node_type": "node"}
    assert growth_of(both).types == (NodeType("node", {"CPU": 4}, 2),)


def test_kubernetes_groups_are_node_types():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    def group(cpu: int, **more: Any) -> dict[str, Any]:
        containers = [{"resources": {"limits": {"cpu": str(cpu), "memory": "8Gi"}}}]
        return {"rayStartParams": {}, "template": {"spec": {"containers": containers}}, **more}

    meter = {"rayStartParams": {"resources": '"{\\"energy_meter\\": 1}"'}, "groupName": "meter"}
    spec = {
        "headGroupSpec": group(2),
        "workerGroupSpecs": [
            group(4, groupName="prepare", minReplicas=0, maxReplicas=3),
            group(8, minReplicas=0, maxReplicas=1) | meter,
        ],
    }
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"namespace": "n", "name": "c"}, "spec": spec})
    found = growth_of(config)
    assert {kind.name: (kind.resources["CPU"], kind.at_most) for kind in found.types} == {
        "prepare": (4, 3),
        "meter": (8, 1),
    }
    assert found.types[1].resources["energy_meter"] == 1


# --------------------------------------------------------------------------------------------- what stages ask for


def test_default_needs_follow_the_nodes():
    assert needs(PLAIN, of(CPU_NODE))["heal"] == Need(cpu=8.0)
    assert needs(PLAIN, of(CPU_NODE, GPU_NODE))["heal"] == Need(cpu=8.0, gpu=1.0)


def test_explicit_needs_win():
    need = needs(asked(energy={"cpu": 2, "gpu": 0, "custom": {"energy_meter": 1}, "memory_gb": 1}), of(METER))["energy"]
    assert need == Need(cpu=2, gpu=0, memory_bytes=2**30, custom={"energy_meter": 1})
    assert need.options()["resources"] == {"energy_meter": 1}


def test_an_exclusive_stage_takes_its_whole_node():
    alone = asked(energy={"cpu": 2, "custom": {"energy_meter": 1}, "exclusive": "node"})
    assert needs(alone, of(CPU_NODE, METER))["energy"] == Need(cpu=32.0, gpu=4.0, custom={"energy_meter": 1})


def test_a_window_has_its_device_or_its_node_to_itself():
    assert needs(PLAIN, of(CPU_NODE))["energy"].exclusive == "node"
    on_gpus = needs(PLAIN, of(GPU_NODE))
    assert on_gpus["energy"].exclusive == "device"
    assert {on_gpus[stage].exclusive for stage in ("collect", "prune", "heal", "accuracy")} == {"none"}
    need = needs(asked(energy={"gpu": 0, "exclusive": "node"}), of(GPU_NODE))["energy"]
    assert need == Need(cpu=32.0)  # all cores, and none of the GPUs, which it doesn't see either
    assert need.options()["runtime_env"] == {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    assert "runtime_env" not in needs(PLAIN, of(CPU_NODE))["energy"].options()


def test_roles_are_asked_for_where_nodes_have_them():
    prepare = NodeKind("prepare", {"CPU": 8.0, "prepare": 1.0}, at_most=2)
    needed = needs(PLAIN, of(prepare, METER))
    assert needed["heal"].custom == {"prepare": 0.001}
    assert needed["energy"].custom == {"energy_meter": 1.0}
    assert (needed["heal"].gpu, needed["energy"].gpu) == (0.0, 1.0)  # as the nodes of its own role have it
    assert (needed["heal"].fits(prepare), needed["heal"].fits(METER)) == (1, 0)
    pinned = needs(asked(heal={"labels": {"market": "spot"}}), of(prepare, METER))["heal"]
    assert (pinned.custom, pinned.labels) == ({}, {"market": "spot"})


def test_preparing_leaves_metering_nodes_alone_while_others_can_be_had():
    metered = asked(energy={"custom": {"joules": 1}})
    meter = NodeKind("meter", {"CPU": 8.0, "joules": 1.0})
    both = needs(metered, of(meter, CPU_NODE))
    assert (both["heal"].fits(meter), both["heal"].fits(CPU_NODE)) == (0, 1)
    assert both["energy"].fits(meter) == 1
    alone = needs(metered, of(meter))
    assert alone["heal"].fits(meter) == 1
    mine = needs(asked(energy={"custom": {"joules": 1}}, heal={"custom": {"joules": 1}}), of(meter, CPU_NODE))
    assert mine["heal"].fits(meter) == 1


def test_a_group_of_workers_shares_the_cores_that_there_are():
    assert needs(PLAIN, of(CPU_NODE), {"collect": 2})["collect"] == Need(cpu=4.0)
    apart = Capacity((NodeKind("n", {"CPU": 4.0}, at_most=2),))
    assert needs(PLAIN, apart, {"collect": 2})["collect"] == Need(cpu=4.0)
    assert needs(asked(collect={"cpu": 3}), of(CPU_NODE), {"collect": 2})["collect"].workers == 2


# ------------------------------------------------------------------------------------------- what there is room for


@pytest.mark.parametrize(
    ("need", "said"),
    [
        (
            Need(cpu=64),
            r"sweep.resources.heal must fit .*, got cpu 64, and the largest node \(big\) holds cpu 32, gpu 4, .*;",
        ),
        (Need(cpu=1, custom={"energy_meter": 1}), r"got cpu 1, energy_meter 1, and the largest node \(big\)"),
        (Need(cpu=1, memory_bytes=2**40), r"got cpu 1, memory_gb 1024, and"),
        (Need(cpu=1, labels={"zone": "b"}), r"got cpu 1 with labels \{'zone': 'b'\}, and"),
    ],
)
def test_what_no_node_holds_is_refused_by_name(need, said):
    big = NodeKind("big", {"CPU": 32.0, "GPU": 4.0, "memory": 2.0**36}, labels={"zone": "a"})
    with pytest.raises(SweepError, match=said):
        check_room({"heal": need}, of(big))


def test_a_group_that_finds_no_room_is_refused():
    need = needs(PLAIN, of(CPU_NODE), {"collect": 999})
    with pytest.raises(
        SweepError, match=r"calibration.num_workers must be at most 8, .* with cpu 1, got 999; lower it"
    ):
        check_room(need, of(CPU_NODE))


def test_an_empty_cluster_is_refused():
    with pytest.raises(SweepError, match="there is no node for it"):
        check_room({"heal": Need(cpu=1)}, Capacity((), head_rests=True))


def test_a_limit_of_all_types_together_counts():
    kinds = (NodeKind("a", {"CPU": 1.0}, at_most=100), NodeKind("b", {"CPU": 4.0}, at_most=2))
    assert room(Need(cpu=1), Capacity(kinds, most_nodes=5)) == 2 * 4 + 3


def test_width_is_that_of_the_scarcest_stage_of_each_node():
    assert width(needs(PLAIN, of(CPU_NODE)), of(CPU_NODE)) == 2  # one computes, one gets ready
    assert width(needs(PLAIN, of(GPU_NODE)), of(GPU_NODE)) == 5
    two = of(METER, METER)
    assert width(needs(asked(energy={"custom": {"energy_meter": 1}}), two), two) == 3
    endless = of(NodeKind("any", {"CPU": 8.0}, at_most=1_000_000))
    assert width(needs(PLAIN, endless), endless) == MOST_AT_ONCE
    assert width(needs(PLAIN, of()), of()) == 2


def test_the_thesis_study_fits_the_launch_file():
    study = load_experiment(ROOT / "experiments" / "thesis_llama31_8b.yaml")
    assert study.sweep is not None
    can_be = capacity_of([alive({"CPU": 0.0}, head=True)], launched())
    needed = needs(study.sweep.resources, can_be, {"collect": 2})
    check_room(needed, can_be)
    meters = [kind for kind in can_be.kinds if kind.holds("energy_meter")]
    assert all(needed[name].fits(kind) == (name == "energy") for name in STAGES for kind in meters)
