"""Keys of artifacts: those in stores of before stay found, and a method's version is its own."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from greenprune import trial as trials
from greenprune.config import METHODS, PRUNE_VARIANTS, PruneConfig
from greenprune.experiment import parse_experiment
from greenprune.stages import Source
from greenprune.store import Artifact

MACHINE = "m" * 12
# prune, heal, the trial's id, and its artifacts' keys, as the code of 2026-11-22 made them
KEYS = {
    "dense": [
        {"method": "none"},
        {"method": "none"},
        "none-41f863ed",
        {"accuracy": "44717a41f5080e004d2d3c1b", "energy0": "4485485e67ff1d3d333619b9"},
    ],
    "angular": [
        {"method": "angular", "block_size": 2},
        {"method": "lora"},
        "angular-38861881",
        {
            "collect": "8af4bfa83bd93bf5c181160c",
            "prune": "ff3ac3091c925ae4e7232631",
            "heal": "6863610be2d70b5f046018b4",
            "accuracy": "2cae06619ab4a85d9e418745",
            "energy0": "4485485e67ff1d3d333619b9",
            "energy1": "ffbd601bcb13432ea3e96b27",
        },
    ],
    "flap": [
        {"method": "flap", "ratio": 0.2},
        {"method": "lora", "quantize": "nf4", "rank": 16},
        "flap-8fbd313d",
        {
            "collect": "9e66c0bff50e06b38612abcf",
            "prune": "3c00d4ec05d2e7ada0dbbfdd",
            "heal": "7001c0cf39d5cdde0cab3ddf",
            "accuracy": "6e9d3102c8d7146d0c6310b2",
            "energy0": "4485485e67ff1d3d333619b9",
            "energy1": "2fb03a2324d792e28650fcc6",
        },
    ],
    "wanda": [
        {"method": "wanda", "structure": "2:4"},
        {"method": "none"},
        "wanda-9090c61f",
        {
            "prune": "185e6f659d70de8827f0568a",
            "accuracy": "afc0f1ca6a36472ff15415d0",
            "energy0": "4485485e67ff1d3d333619b9",
            "energy1": "14372b27dca001b5ef2970aa",
        },
    ],
    "llm_pruner": [
        {"method": "llm_pruner", "ratio": 0.3, "iterations": 2},
        {"method": "none"},
        "llm_pruner-c8716279",
        {
            "collect": "b5db0cfed1c4c172e8b46983",
            "prune": "ee187f291853566968f7eaf4",
            "accuracy": "a4baeaccef26c2cc90d6eeaa",
            "energy0": "4485485e67ff1d3d333619b9",
            "energy1": "6289a164a55f8a4aef2f1c57",
        },
    ],
    "minitron_width": [
        {"method": "minitron_width", "targets": {"ffn": 1024}},
        {"method": "none"},
        "minitron_width-a5339c29",
        {
            "collect": "9e66c0bff50e06b38612abcf",
            "prune": "f2c072e4d8438d9156cf68ee",
            "accuracy": "b401e1aae53d46ea0af1e3ed",
            "energy0": "4485485e67ff1d3d333619b9",
            "energy1": "1f78a9756ef9ca7fa00d6b76",
        },
    ],
    "sequence": [
        {"method": "sequence", "steps": [{"method": "bi", "block_size": 1}, {"method": "flap", "ratio": 0.1}]},
        {"method": "lora"},
        "sequence-44c585ab",
        {
            "prune": "0c63ca2799a616d39e305eb1",
            "heal": "baf3f9bc16f52f43510902da",
            "accuracy": "b91982dd58591561a5c126b6",
            "energy0": "4485485e67ff1d3d333619b9",
            "energy1": "6fc2fc9369b9b2a468ff4242",
        },
    ],
}


class Recorder:
    """Stands in for a trial's stages: gives each call's key and runs nothing."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.store = SimpleNamespace(storage=SimpleNamespace(uri="x"))

    def run(self, request):
        self.keys[request.stage] = request.call().base
        return Artifact(request.stage, self.keys[request.stage])

    def run_bound(self, requests):
        made = [Artifact("energy", request.call({"machine": MACHINE}).base) for request in requests]
        self.keys |= {f"energy{i}": artifact.key for i, artifact in enumerate(made)}
        return made


def keys_of(prune: dict, heal: dict) -> tuple[str, dict[str, str]]:
    """A trial's id, and the keys of its artifacts; resolved for a tokenizer that starts no text with BOS."""
    benchmark = {"tasks": ["piqa"], "data": "assets", "bos": "none"}
    heal = heal if heal["method"] == "none" else heal | {"bos": "none"}
    data = {
        "model": {"id": "x/y"},
        "calibration": {"bos": "none"},
        "prune": prune,
        "heal": heal,
        "benchmark": benchmark,
    }
    config = parse_experiment(data).trial()
    stages, dense = Recorder(), Source(config.model, "d" * 24)
    pruned = trials._prune(stages, config, dense, trials._collect(stages, config, dense))
    model = trials._heal(stages, config, pruned)
    trials._accuracy(stages, config, model)
    trials._energy(stages, config, model, dense)
    return config.trial_id(), stages.keys


@pytest.mark.parametrize("case", KEYS)
def test_artifacts_of_before_are_found(case):
    prune, heal, trial_id, keys = KEYS[case]
    assert keys_of(prune, heal) == (trial_id, keys)


def test_a_mended_method_leaves_only_its_own_artifacts_aside(monkeypatch):
    before = {case: keys_of(*KEYS[case][:2])[1] for case in KEYS}
    monkeypatch.setattr(PRUNE_VARIANTS["flap"], "entry", dataclasses.replace(METHODS["flap"], version=1))
    after = {case: keys_of(*KEYS[case][:2])[1] for case in KEYS}
    changed = {case for case in KEYS if before[case].get("prune") != after[case].get("prune")}
    assert changed == {"flap", "sequence"}  # the sequence has a step of flap
    assert before["flap"]["collect"] == after["flap"]["collect"]
    assert PruneConfig(method="flap", ratio=0.2).output_version() == 1
