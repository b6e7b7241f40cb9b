"""How well the ratio to the dense model is known: six models of one shape, alone and in pairs of windows.

    .venv/bin/python scripts/bench_pairs.py [--model pypi:smollm2-135m] [--engine transformers] [--repeats 5]

Each lacks four layers, other ones each time, so all six cost the same; what their ratios differ by is the method's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from greenprune import load_model
from greenprune.assets import materialize
from greenprune.benchmark import energy_stage
from greenprune.config import EnergyConfig, ModelConfig
from greenprune.models.surgery import remove_layers

WITHOUT = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:smollm2-135m")
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    asked = parser.parse_args()
    dense = ModelConfig(id=asked.model)
    config = EnergyConfig(
        engine=asked.engine,
        prompt_len=128,
        decode_len=32,
        min_seconds=asked.seconds,
        repeats=asked.repeats,
        target_half_width=0.0,
        max_foreign_load=1.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = [shorter(Path(folder) / f"{first}", asked.model, first) for first in range(2, 26, 4)]
        began = time.perf_counter()
        of_dense = measured(Path(folder) / "dense", materialize(dense), config)["energy_j_per_token"]
        alone = [measured(path / "alone", path, config)["energy_j_per_token"] / of_dense for path in checkpoints]
        told("alone", alone, time.perf_counter() - began)
        began, paired = time.perf_counter(), config.model_copy(update={"paired": True})
        found = [measured(path / "paired", path, paired, dense) for path in checkpoints]
        told("in pairs", [each["energy_ratio"] for each in found], time.perf_counter() - began)
        print("intervals of the pairs:", ", ".join(f"±{each['energy_ratio_ci95']:.3f}" for each in found))


def shorter(path: Path, name: str, first: int) -> Path:
    model, tokenizer = load_model(name)
    remove_layers(model, list(range(first, first + WITHOUT)))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def measured(out: Path, checkpoint: Path, config: EnergyConfig, dense: ModelConfig | None = None) -> dict:
    out.mkdir()
    energy_stage(out, checkpoint=checkpoint, config=config, dtype="float32", dense=dense)
    return json.loads((out / "energy.json").read_text())


def told(how: str, ratios: list[float], seconds: float) -> None:
    mean = sum(ratios) / len(ratios)
    spread = (max(ratios) - min(ratios)) / mean
    each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"{how}: {each}; mean {mean:.3f}, largest - smallest {spread:.1%} of it; {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
