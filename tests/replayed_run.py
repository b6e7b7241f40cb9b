"""A run of many trials, replayed from a seed: numbers that hang together as a real sweep's do, artifacts included.

python tests/replayed_run.py /tmp/runs/replayed 200
"""

from __future__ import annotations

import gzip
import json
import math
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from greenprune.results import TrialResult, write_result, write_trials

TASKS = {"boolq": 0.62, "piqa": 0.5, "hellaswag": 0.25, "winogrande": 0.5, "arc_easy": 0.25, "arc_challenge": 0.25,
         "openbookqa": 0.25}  # fmt: skip
DEPTH, WIDTH, MASKS = ("angular", "bi", "sleb"), ("llm_pruner", "flap", "wanda_sp"), ("wanda", "sparsegpt")
LAYERS, HEADS, CHANNELS, DOCUMENTS = 30, 9, 48, 60
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def replayed_run(folder: Path, count: int, *, model: str = "pypi:smollm2-135m", seed: int = 0) -> Path:
    """Write a run of `count` trials, the dense model first; a few fail. Gives its folder."""
    random_of = random.Random(seed)
    stages = folder.parent / "_stages"
    _write_statistics(stages / "collect" / f"stat{seed}")
    results = [_trial(number, model, random_of, stages, seed) for number in range(count)]
    for result in results:
        write_result(folder, result)
    write_trials(folder, results)
    return folder


def _trial(number: int, model: str, chance: random.Random, stages: Path, seed: int) -> TrialResult:
    prune, heal, removed, kept = _configuration(number, chance)
    config = {"model": {"id": model}, "prune": prune, "heal": heal, "benchmark": {"limit": DOCUMENTS}}
    name = f"{prune['method']}-{seed:02x}{number:06x}"
    started = (BEGAN + timedelta(minutes=4 * number)).isoformat()
    if number and number % 41 == 0:
        return TrialResult(
            name, number, "failed", config, error="RuntimeError: out of memory", started=started, seconds=9
        )
    share = 0.5 * kept["share"] if prune["method"] in MASKS else kept["share"]
    skill = 1 - share * (1.1 if heal["method"] == "none" else 0.75) * chance.uniform(0.8, 1.2)
    scores = {task: min(1.0, max(0.0, floor + (0.85 - floor) * max(0.0, skill) + chance.gauss(0, 0.01)))
              for task, floor in TASKS.items()}  # fmt: skip
    scores = {task: round(score * DOCUMENTS) / DOCUMENTS for task, score in scores.items()}
    _write_artifacts(stages, name, scores, removed, kept, heal, chance)
    ratio = (1 - share if prune["method"] not in MASKS else 1.0) * chance.uniform(0.98, 1.02) if number else 1.0
    made = {"prune": 0.02, "heal": 1.5 if heal["method"] != "none" else 0.0} if number else {}
    return TrialResult(
        name, number, "ok", config, _metrics(scores, ratio, share, removed, made, chance),
        stages=_stage_rows(name, heal, number, seed), started=started, seconds=200.0 + chance.uniform(0, 60),
    )  # fmt: skip


def _configuration(number: int, chance: random.Random) -> tuple[dict, dict, list[int], dict[str, Any]]:
    """prune, heal, layers removed, and what the others keep."""
    if number == 0:
        return {"method": "none"}, {"method": "none"}, [], {"share": 0.0}
    method = chance.choice(DEPTH + WIDTH + MASKS)
    heal = {"method": "lora", "rank": chance.choice([8, 16])} if chance.random() < 0.5 else {"method": "none"}
    if method in DEPTH:
        size = chance.randint(1, 12)
        start = chance.randint(LAYERS - 2 * size - 3, LAYERS - size - 2) if size < 10 else LAYERS - size - 2
        removed = list(range(start, start + size))
        if method != "angular":
            removed = sorted(chance.sample(range(3, LAYERS - 1), size))
        return {"method": method, "block_size": size}, heal, removed, {"share": 0.79 * size / LAYERS}
    ratio = chance.choice([0.1, 0.2, 0.3, 0.4, 0.5])
    return {"method": method, "ratio": ratio}, heal, [], {"share": ratio, "width": method in WIDTH}


def _metrics(
    scores: dict[str, float],
    ratio: float,
    share: float,
    removed: list[int],
    made: dict[str, float],
    chance: random.Random,
) -> dict[str, Any]:
    dense_wh = 8.2
    found: dict[str, Any] = {
        "parameters": int(134_515_008 * (1 - share)), "parameters_dense": 134_515_008,
        "parameters_removed_ratio": share, "layers": LAYERS - len(removed), "layers_removed": json.dumps(removed),
        "accuracy": sum(scores.values()) / len(scores), "wikipedia_ppl@512": 22 * math.exp(3 * share),
    }  # fmt: skip
    for task, score in scores.items():
        error = math.sqrt(score * (1 - score) / DOCUMENTS)
        found |= {f"{task}_acc": score, f"{task}_stderr": error, f"{task}_floor": TASKS[task]}
        found |= {f"{task}_wh": 0.01 * ratio * chance.uniform(0.95, 1.05)}
    found |= {"tasks_energy_kind": "estimated", "tasks_machine": "box-1", "tasks_energy_scope": "process"}
    found |= {
        "energy_j_per_token": 0.185 * ratio, "energy_ratio": ratio, "energy_ci95_ratio": 0.015,
        "energy_wh_per_1k_requests": dense_wh * ratio, "energy_kind": "estimated", "energy_scope": "process",
        "energy_source": "cpu_model (4 W × CPU-seconds + 5 W × seconds)", "machine": "box-1", "hostname": "vm",
        "co2e_g_per_1k_requests": 0.4 * ratio, "peak_memory_bytes": int(1.2e9 * (1 - 0.6 * share)),
        "decode_tokens_per_s": 15.0 / ratio,
    }  # fmt: skip
    for stage, watt_hours in made.items():
        found |= {f"{stage}_energy_wh": watt_hours, f"{stage}_energy_kind": "estimated", f"{stage}_machine": "box-1"}
    if made and ratio < 1:
        found["break_even_requests"] = sum(made.values()) / (dense_wh * (1 - ratio) / 1000)
    return found


def _stage_rows(name: str, heal: dict, number: int, seed: int) -> list[dict[str, Any]]:
    joules = {"collect": 200.0, "prune": 70.0, "heal": 5400.0, "accuracy": 260.0, "energy": 730.0}
    if heal["method"] == "none":
        del joules["heal"]
    if not number:
        joules = {stage: joules[stage] for stage in ("accuracy", "energy")}
    return [
        {
            "stage": stage, "key": f"stat{seed}" if stage == "collect" else name, "seconds": spent / 10,
            "reused": stage == "collect" and number > 1, "energy_j": spent,
            "energy_kind": "estimated", "machine": "box-1",
        }
        for stage, spent in joules.items()
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------- artifacts


def _write_statistics(folder: Path) -> None:
    """Distances that grow with a block's size, and are least among the later layers."""
    folder.mkdir(parents=True, exist_ok=True)
    angular = np.full((LAYERS, LAYERS), np.nan)
    for n in range(1, LAYERS + 1):
        for start in range(LAYERS - n + 1):
            angular[n - 1, start] = 0.08 * n**0.7 * (1.5 - (start + n / 2) / LAYERS) + 0.15 * (start == 0)
    influence = np.linspace(0.3, 0.03, LAYERS)
    influence[-1] = 0.4
    save_file({"angular_distance": angular, "block_influence": influence}, folder / "statistics.safetensors")


def _write_artifacts(
    stages: Path, name: str, scores: dict, removed: list[int], kept: dict, heal: dict, chance: random.Random
) -> None:
    width = (
        {layer: kept["share"] * chance.uniform(0.6, 1.4) for layer in range(3, LAYERS - 1)} if kept.get("width") else {}
    )
    report = {
        "layers_removed": removed,
        "kept_heads": {layer: list(range(max(1, round(HEADS * (1 - share))))) for layer, share in width.items()},
        "kept_channels": {layer: list(range(max(1, round(CHANNELS * (1 - share))))) for layer, share in width.items()},
    }
    if width:
        report["kept_heads"][4], report["kept_channels"][4] = list(range(HEADS)), list(range(CHANNELS))
    _write(stages / "prune" / name / "report.json", report)
    if heal["method"] != "none":
        losses = [{"step": step, "loss": 3.2 + 1.5 * math.exp(-step / 20)} for step in range(0, 101, 20)]
        _write(stages / "heal" / name / "history.json", {"validation": losses, "train": []})
    answers = stages / "accuracy" / name / "answers"
    answers.mkdir(parents=True, exist_ok=True)
    for task, score in scores.items():
        right = round(score * DOCUMENTS)
        easy = sorted(range(DOCUMENTS), key=lambda document: document + chance.gauss(0, 8))[:right]
        rows = [{"doc_id": i, "document": f"d{i}", "score": float(i in easy)} for i in range(DOCUMENTS)]
        with gzip.open(answers / f"{task}.jsonl.gz", "wt", compresslevel=1) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


if __name__ == "__main__":
    print(replayed_run(Path(sys.argv[1]), int(sys.argv[2])))
