"""A file for llama.cpp, beside the configuration that says what shapes it holds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from greenprune.config import GgufQuantizing
from greenprune.engines.gguf_file import write_gguf

GGUF_NAME = "model.gguf"
KEPT = ("config.json", "generation_config.json", "*.py")


def write_as_gguf(
    checkpoint: Path,
    out: Path,
    config: GgufQuantizing,
    tokens: torch.Tensor | None,
    dtype: str,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """As quantize.QuantizingFunction says; embeddings and head are quantised too. Raises ModelError for what llama.cpp
    has no architecture for."""
    out.mkdir(parents=True)
    write_gguf(checkpoint, out / GGUF_NAME, config.type)
    for path in (path for pattern in KEPT for path in checkpoint.glob(pattern)):
        shutil.copyfile(path, out / path.name)
    return {"type": config.type}
