"""An engine that serves from a process of its own, as the workload drives it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from greenprune.config import EnergyConfig
from greenprune.engines.process import EngineProcess
from greenprune.engines.steady import Served
from greenprune.errors import ModelError


class ServedLoad:
    """Requests in flight on an engine's process: RequestsInFlight."""

    def __init__(self, process: EngineProcess, config: EnergyConfig, concurrency: int) -> None:
        self.process, self.config, self.concurrency = process, config, concurrency

    def warm_up(self, seconds: float) -> None:
        asked = {"concurrency": self.concurrency, "seed": self.config.seed, "seconds": seconds}
        self.process.ask("load_up", lengths=self.config.lengths, **asked)

    def run(self, seconds: float) -> Served:
        return Served(**self.process.ask("run", seconds=seconds))

    def synchronise(self) -> None:
        """An answer comes when the work is done."""

    def reset_peak_memory(self) -> None:
        self.process.reset_peak_memory()

    def peak_memory_bytes(self) -> int | None:
        """Of the process; None on a GPU, where an engine takes what it is given."""
        return None if torch.cuda.is_available() else self.process.peak_memory_bytes()


class ServingEngine:
    """A checkpoint that a process of ours serves. A subclass says how that is started.

    The process is started when it is first needed and again when it has died; `close` ends it.
    """

    maker: str

    def __init__(self, checkpoint: Path, dtype: str, trust_remote_code: bool) -> None:
        self.checkpoint, self.dtype, self.trust_remote_code = checkpoint, dtype, trust_remote_code
        self.device = torch.device("cuda" if self.uses_gpu() else "cpu")
        self.process: EngineProcess | None = None

    @classmethod
    def load(cls, checkpoint: Path, dtype: str, trust_remote_code: bool) -> Self:
        return cls(checkpoint, dtype, trust_remote_code)

    def uses_gpu(self) -> bool:
        return torch.cuda.is_available()

    def check_length(self, tokens: int, what: str) -> None:
        limit = settings_of(self.checkpoint).get("max_position_embeddings")
        if limit is not None and tokens > limit:
            raise ModelError(
                f"{what} must be at most {limit} tokens, the model's longest input, got {tokens}; lower it"
            )

    def start(self, sequences: int, tokens: int) -> EngineProcess:
        """A process for so many requests at once, of so many tokens in and out each."""
        environment = {"OMP_NUM_THREADS": str(torch.get_num_threads()), **self.environment(sequences * tokens)}
        return EngineProcess(self.maker, self.settings(sequences, tokens), environment)

    def settings(self, sequences: int, tokens: int) -> dict[str, Any]:
        raise NotImplementedError

    def environment(self, tokens: int) -> dict[str, str]:
        """tokens: of all requests at once."""
        return {}

    @contextmanager
    def serve(self, config: EnergyConfig, concurrency: int = 1) -> Iterator[ServedLoad]:
        tokens = sum(config.longest)
        self.check_length(tokens, "benchmark.energy prompt_len + decode_len")
        if self.process is None or not self.process.alive():
            self.close()
            self.process = self.start(max(*config.concurrency, concurrency), tokens)
        yield ServedLoad(self.process, config, concurrency)
        self.process.ask("drain")

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """The greedy replies to prompts of token ids, `new_tokens` each, all in flight together."""
        process = self.start(len(prompts), max(map(len, prompts)) + new_tokens)
        try:
            return process.ask("generate", prompts=[list(prompt) for prompt in prompts], new_tokens=new_tokens)
        finally:
            process.close()

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None


def settings_of(checkpoint: Path) -> dict[str, Any]:
    """config.json; empty where there is none."""
    file = checkpoint / "config.json"
    return json.loads(file.read_text()) if file.is_file() else {}
