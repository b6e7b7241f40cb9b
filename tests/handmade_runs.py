"""Trials made by hand, for what reads runs: reports, labels."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from typing import Any

from greenprune.results import TrialResult


def trial(
    number: int, accuracy: float, energy: float, prune: Any = None, heal: Any = None, **metrics: Any
) -> TrialResult:
    prune = prune or {"method": "none"}
    config = {
        "model": {"id": "pypi:smollm2-135m"},
        "prune": prune,
        "heal": heal or {"method": "none"},
        "benchmark": {"limit": 50},
    }
    measured = {
        "accuracy": accuracy, "piqa_acc": accuracy, "piqa_stderr": 0.01, "piqa_floor": 0.5, "w_ppl@512": 20.0,
        "energy_j_per_token": energy, "energy_ratio": energy / 2.0, "energy_ci95_ratio": 0.02,
        "energy_kind": "estimated", "energy_source": "cpu_model <2 cores>", "machine": "box-1",
    }  # fmt: skip
    name = f"{prune['method']}-{number:08x}"
    return TrialResult(name, number, "ok", config, measured | metrics, started="2026-01-02T03:04:05+00:00")


LORA = {"method": "lora", "rank": 8, "quantize": "none"}
QLORA = {"heal.method": "lora", "heal.quantize": "nf4"}
ANGULAR = {"method": "angular", "block_size": 4}


def results() -> list[TrialResult]:
    return [
        trial(0, 0.8, 2.0),
        trial(1, 0.7, 1.5, ANGULAR),
        trial(2, 0.75, 1.5, ANGULAR, LORA),
        trial(3, 0.51, 1.2, {"method": "bi", "block_size": 8}),
        TrialResult("bi-00000004", 4, "failed", trial(4, 0, 0).config, {}, error="boom <script>alert(1)</script>"),
    ]


EVIL = "<img src=x onerror=alert(1)>Ω</script>"


def _evil() -> list[TrialResult]:
    rows = [trial(i, 0.8 - 0.1 * i, 2.0 - i, {"method": EVIL, "block_size": i} if i else None) for i in range(2)]
    for row in rows:
        row.config["model"]["id"] = EVIL
        row.metrics.update({f"{EVIL}_acc": 0.5, "machine": EVIL, "energy_source": EVIL})
    return rows


ODD: dict[str, Callable[[], list[TrialResult]]] = {
    "one trial": lambda: results()[:1],
    "all failed": lambda: results()[-1:],
    "no front": lambda: [trial(0, 0.8, 2.0), trial(1, 0.7, 1.0, ANGULAR, machine="box-2")],
    "only the dense model is clean": lambda: [
        trial(0, 0.8, 2.0), *(trial(i, 0.7, 1.0 + i, ANGULAR, energy_kind="contaminated") for i in (1, 2)),
    ],
    "no trials": list,
    "markup in names": _evil,
}  # fmt: skip


def text_of(page: str) -> str:
    """The words of a page, without its pictures, its script and its list of sections."""
    page = re.sub(r"<(style|svg|script|nav).*?</\1>", " ", page, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())
