"""What runs a checkpoint when its accuracy and its energy are measured.

An engine is one file here, one entry of ENGINES (greenprune/config/engines.py), and one row of
tests/engines/test_engines.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from greenprune._callable import function_named
from greenprune.config import ENGINES, FIRST_ENGINE, EngineName

if TYPE_CHECKING:
    import torch

    from greenprune.config import EnergyConfig
    from greenprune.engines.steady import Served


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


class RequestsInFlight(Protocol):
    """Requests of the workload on a loaded model, so many at a time, each followed by the next."""

    def warm_up(self, seconds: float) -> None:
        """Until the load is steady, and for at least so long."""

    def run(self, seconds: float) -> Served:
        """Serve for at least so long."""

    def synchronise(self) -> None: ...

    def reset_peak_memory(self) -> None: ...

    def peak_memory_bytes(self) -> int | None: ...


class Engine(Protocol):
    """A checkpoint on an engine.

    device: where it works, so what a meter watches; "cuda" without a number: all GPUs that the process sees.
    """

    device: torch.device

    @classmethod
    def load(cls, checkpoint: Path, dtype: str, trust_remote_code: bool) -> Engine:
        """Load the checkpoint onto this machine's device, or split it over all GPUs that the process sees."""

    def check_length(self, tokens: int, what: str) -> None:
        """Raises ModelError where `what`, so many tokens, is more than it can take at all."""

    def serve(self, config: EnergyConfig, concurrency: int = 1) -> AbstractContextManager[Any]:
        """For as long as the `with` lasts: WorkloadPhases where the engine runs a batch, of `config.batch_size` ×
        `concurrency` requests; else RequestsInFlight. Raises ModelError as `check_length`."""

    def close(self) -> None:
        """Free what it holds, and end its process where it has one."""


class ScoringEngine(Engine, Protocol):
    """An engine whose logits can be had. parameters: tied ones once. layers: decoder layers."""

    @property
    def parameters(self) -> int: ...

    @property
    def layers(self) -> int: ...

    def perplexity(self, segments: torch.Tensor) -> float:
        """exp of the mean next-token cross-entropy over segments [num_segments, seq_len], each on its own; inf where
        it isn't finite."""


def load_engine(checkpoint: Path, dtype: str, trust_remote_code: bool = False, name: EngineName = FIRST_ENGINE) -> Any:
    """The checkpoint on an engine of the table: an Engine, or a ScoringEngine."""
    engine: type[Engine] = function_named(ENGINES[name].engine)
    return engine.load(checkpoint, dtype, trust_remote_code)
