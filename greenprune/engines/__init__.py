"""The table of engines: what runs a checkpoint when its accuracy and its energy are measured.

An engine is one file here, one entry of ENGINES, and one row of tests/engines/test_engines.py. The table must
import without torch, so classes are named, not held.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from greenprune._callable import function_named

if TYPE_CHECKING:
    import torch

    from greenprune.config import EnergyConfig

ENGINES: dict[str, str] = {
    "transformers": "greenprune.engines.transformers:TransformersEngine",
}
FIRST_ENGINE = next(iter(ENGINES))  # what runs where a configuration doesn't choose


class WorkloadPhases(Protocol):
    """The workload's two phases on a loaded model; every pass of a phase does the same work.

    prompt: LongTensor [batch_size, prompt_len], the same for every model of one vocabulary.
    """

    prompt: torch.Tensor

    def prefill(self) -> None:
        """The prompt through the model, with nothing remembered of a former pass."""

    def fill_cache(self) -> None:
        """What decoding starts from."""

    def decode(self) -> None:
        """The greedy reply to the prompt, `decode_len` tokens after the first; it can be repeated."""

    def reply(self) -> torch.Tensor:
        """The tokens that the last `decode` gave, LongTensor [batch_size, decode_len]."""

    def synchronise(self) -> None:
        """Wait until the device has done all that was asked of it."""

    def reset_peak_memory(self) -> None:
        """Peak memory counts from here on."""

    def peak_memory_bytes(self) -> int | None:
        """Peak memory since the reset; None where nothing tells it."""


class Engine(Protocol):
    """A checkpoint that is loaded.

    device: where it works, so what a meter watches; "cuda" without a number: all GPUs that the process sees.
    parameters: tied ones once. layers: decoder layers.
    """

    device: torch.device
    parameters: int
    layers: int

    @classmethod
    def load(cls, checkpoint: Path, dtype: str, trust_remote_code: bool) -> Engine:
        """Load the checkpoint onto this machine's device, or split it over all GPUs that the process sees."""

    def check_length(self, tokens: int, what: str) -> None:
        """Raises ModelError where `what`, so many tokens, is more than it can take at all."""

    def perplexity(self, segments: torch.Tensor) -> float:
        """exp of the mean next-token cross-entropy over segments [num_segments, seq_len], each on its own; inf where
        it isn't finite."""

    def serve(self, config: EnergyConfig) -> AbstractContextManager[WorkloadPhases]:
        """The workload's phases, for as long as the `with` lasts. Raises ModelError as `check_length`."""


def load_engine(checkpoint: Path, dtype: str, trust_remote_code: bool = False, name: str = FIRST_ENGINE) -> Engine:
    """The checkpoint on an engine of the table."""
    engine: type[Engine] = function_named(ENGINES[name])
    return engine.load(checkpoint, dtype, trust_remote_code)
