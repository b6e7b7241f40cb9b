"""Short names of trials, of methods and stages that don't exist yet too."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from handmade_runs import ANGULAR, LORA, QLORA, trial

from greenprune import labels as room
from greenprune.labels import label, labels
from greenprune.results import to_frame


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prune.method": "none", "heal.method": "none"}, "dense"),
        ({"prune.method": "none", "heal.method": "lora"}, "dense + lora"),
        ({"prune.method": "angular", "prune.block_size": 4, "prune.ratio": None}, "angular 4"),
        ({"prune.method": "bi", "prune.block_size": 2.0} | QLORA, "bi 2 + qlora"),
        ({"prune.method": "flap", "prune.ratio": 0.2, "prune.structure": "AL-AM"}, "flap 20 %"),
        ({"prune.method": "wanda", "prune.ratio": 0.5, "prune.structure": "2:4"}, "wanda 50 % 2:4"),
    ],
)  # fmt: skip
def test_label(row: dict[str, Any], expected: str):
    assert label(row) == expected
    assert label(pd.Series(row)) == expected


def test_labels_tell_twins_apart():
    rank16 = {**LORA, "rank": 16}
    frame = to_frame([trial(0, 0.8, 2.0), trial(1, 0.7, 1.0, ANGULAR, LORA), trial(2, 0.7, 1.0, ANGULAR, rank16)])
    assert labels(frame) == ["dense", "angular 4 + lora, rank 8", "angular 4 + lora, rank 16"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prune.method": "brand_new", "prune.strength": 3}, "brand_new"),
        ({"prune.method": "nonesuch", "prune.ratio": 0.25}, "nonesuch 25 %"),
        ({"prune.method": "a_layer", "prune.ratio": "[0.1, 0.2]"}, "a_layer [0.1, 0.2]"),
        ({"prune.method": "angular", "prune.block_size": 4, "heal.method": "brand_new"}, "angular 4 + brand_new"),
        ({"model.id": "x"}, "dense"),
    ],
)
def test_what_nobody_knows_yet_shows_by_its_name(row: dict[str, Any], expected: str):
    assert label(row) == expected


def test_a_new_stage_shows_its_method_after_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "CHANGING", ("prune", "heal", "quantize"))
    row = {"prune.method": "angular", "prune.block_size": 4, "heal.method": "lora", "quantize.method": "nf4"}
    assert label(row) == "angular 4 + lora + nf4"
    assert label({**row, "quantize.method": "none"}) == "angular 4 + lora"
    assert label({"prune.method": "none", "quantize.method": "gguf"}) == "dense + gguf"
    twins = [trial(i, 0.7, 1.0, ANGULAR) for i in range(2)]
    for result, kind in zip(twins, ("q4_k_m", "q8_0"), strict=True):
        result.config["quantize"] = {"method": "gguf", "type": kind}
    assert labels(to_frame(twins)) == ["angular 4 + q4_k_m", "angular 4 + q8_0"]
