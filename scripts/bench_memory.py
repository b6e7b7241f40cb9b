"""A model far larger than what its stages may hold: each stage in a process of its own, with its peak memory.

    .venv/bin/python scripts/bench_memory.py make BIG              # a random Llama of 7B's shapes in bf16, 13.5 GB
    .venv/bin/python scripts/bench_memory.py collect BIG OUT       # statistics, streamed in one process
    .venv/bin/python scripts/bench_memory.py collect BIG OUT --num-workers 2    # sharded by ZeRO-3
    .venv/bin/python scripts/bench_memory.py prune BIG OUT flap    # streamed, with the statistics in OUT
    .venv/bin/python scripts/bench_memory.py load BIG OUT flap     # a forward of what was pruned, streamed

Peaks are of the resident set, mapped files included: Python sees the process itself, for workers /proc is watched.
`--layers 2` makes a small one. Exit status 1 where a process held more than `--limit` GiB (12).
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, PreTrainedTokenizerFast

from greenprune.config import CalibrationConfig, ModelConfig, PruneConfig
from greenprune.models.peak import PeakMemory

GIB = 2**30
WORDS = tuple("the cat sat on a mat and saw that green trees grow tall while rivers run to the sea".split())
METHODS = {
    "angular": {"block_size": 8},
    "taylor_depth": {"block_size": 8},
    "llm_pruner": {"ratio": 0.2},
    "flap": {"ratio": 0.2},
    "minitron_width": {"targets": {"hidden": 3072, "ffn": 8192}},
    "magnitude": {"ratio": 0.5},
    "wanda": {"structure": "2:4"},
    "sparsegpt": {"structure": "2:4"},
}
WANTED = ("activations", "angular", "bi", "gradient")


def config_of(layers: int) -> LlamaConfig:
    """Llama 2 7B's shapes."""
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        max_position_embeddings=4096,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )


def make(folder: Path, layers: int) -> None:
    """Write a layer a file, so that no more is ever in memory; its tokenizer knows WORDS."""
    config, generator = config_of(layers), torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    write_tokenizer(folder)
    noise = torch.randn(32000 * 4096, generator=generator).mul_(0.02).bfloat16()  # drawn once, and shifted: it's quick
    hidden, channels = config.hidden_size, config.intermediate_size
    shapes = {f"self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
    shapes |= {f"mlp.{part}_proj.weight": (channels, hidden) for part in ("gate", "up")}
    shapes |= {"mlp.down_proj.weight": (hidden, channels)}
    index: dict[str, str] = {}

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    def drawn(*shape: int) -> torch.Tensor:
        size = shape[0] * shape[1]
        return noise.roll(int(torch.randint(len(noise), (), generator=generator)))[:size].view(shape).clone()

    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        weights = {prefix + name: drawn(*shape) for name, shape in shapes.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        weights |= {f"{prefix}{name}.weight": torch.ones(hidden, dtype=torch.bfloat16) for name in norms}
        write(f"model-layer-{layer:02}.safetensors", weights)
    ends = {name: drawn(config.vocab_size, hidden) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    write("model-ends.safetensors", ends | {"model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "text.jsonl").write_text(json.dumps({"text": " ".join(WORDS * 200)}) + "\n")


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *dict.fromkeys(WORDS)])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def calibration(big: Path, samples: int, seq_len: int, num_workers: int = 1) -> CalibrationConfig:
    return CalibrationConfig(
        dataset=str(big / "text.jsonl"), num_samples=samples, seq_len=seq_len, num_workers=num_workers, bos="none"
    )


def collect(big: Path, out: Path, config: CalibrationConfig, want: list[str]) -> None:
    from greenprune.collect import collect_stage

    source = ModelConfig(id=str(big.resolve()), dtype="bfloat16")
    out.mkdir(parents=True, exist_ok=True)
    scratch = str((out / "_workers").resolve())
    collect_stage(out, checkpoint=big, config=config, want=want, source=source, scratch=scratch)


def prune(big: Path, out: Path, method: str, config: CalibrationConfig) -> None:
    from greenprune.prune import prune_stage

    chosen = PruneConfig(method=method, **METHODS[method])
    prune_stage(
        out / method,
        checkpoint=big,
        statistics=out if chosen.statistics() else None,
        config=chosen,
        calibration=config.identity() if chosen.needs_tokens() else None,
        dtype="bfloat16",
        trust_remote_code=False,
    )


def load(out: Path, method: str) -> None:
    """A forward of the pruned model, which says whether its weights can be read."""
    from greenprune.models import load_streamed
    from greenprune.models.decoder import Decoder

    model = load_streamed(out / method / "checkpoint")
    with torch.inference_mode(), Decoder(model).one_at_a_time():
        logits = model(torch.arange(3, 19)[None], logits_to_keep=1).logits
    assert logits.isfinite().all()
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters; logits {tuple(logits.shape)}")


class Watched:
    """The highest resident set of each process of this session's workers, by process id."""

    def __init__(self) -> None:
        self.peaks: dict[int, int] = {}
        self.over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.over.wait(0.5):
            for place in Path("/proc").glob("[0-9]*"):
                try:
                    if b"RayTrainWorker" not in (place / "cmdline").read_bytes():
                        continue
                    lines = (place / "status").read_text().splitlines()
                except OSError:
                    continue
                found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
                self.peaks[int(place.name)] = max([self.peaks.get(int(place.name), 0), *found])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["make", "collect", "prune", "load"])
    parser.add_argument("big", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("method", choices=METHODS, nargs="?")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=32)
    parser.add_argument("--want", nargs="+", default=WANTED, choices=WANTED, help="statistics to collect")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--limit", type=float, default=12.0, help="GiB a process")
    given = parser.parse_args()
    began, memory, workers = time.perf_counter(), PeakMemory(torch.device("cpu")), Watched()
    text = calibration(given.big, given.samples, given.seq_len, given.num_workers)
    if given.what == "make":
        make(given.big, given.layers)
    elif given.what == "collect":
        collect(given.big, given.out, text, given.want)
    elif given.what == "prune":
        prune(given.big, given.out, given.method, text)
    else:
        load(given.out, given.method)
    peaks = [memory.bytes() or 0, *workers.peaks.values()]
    shown = ", ".join(f"{peak / GIB:.2f}" for peak in peaks)
    print(f"{given.what} {given.method or ''}: peak GiB {shown}; {time.perf_counter() - began:.0f} s", flush=True)
    return int(max(peaks) > given.limit * GIB)


if __name__ == "__main__":
    sys.exit(main())
