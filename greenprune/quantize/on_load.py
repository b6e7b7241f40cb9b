"""Weights that bitsandbytes quantises while Transformers loads them, saved as they then are.

NF4 with double quantisation in blocks of 64 (QLoRA, Dettmers et al. 2023, section 3); LLM.int8() with a scale a row
(Dettmers et al. 2022). Embeddings, norms and the head stay in the model's dtype.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from greenprune.config import Int8Quantizing, Nf4Quantizing
from greenprune.errors import GreenpruneError
from greenprune.models.load import DTYPES, default_device, model_class


def write_nf4(
    checkpoint: Path,
    out: Path,
    config: Nf4Quantizing,
    tokens: torch.Tensor | None,
    dtype: str,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """As quantize.QuantizingFunction says; computes in the model's dtype."""
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )
    return _write(checkpoint, out, how, dtype, trust_remote_code)


def write_int8(
    checkpoint: Path,
    out: Path,
    config: Int8Quantizing,
    tokens: torch.Tensor | None,
    dtype: str,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """As quantize.QuantizingFunction says."""
    return _write(checkpoint, out, BitsAndBytesConfig(load_in_8bit=True), dtype, trust_remote_code)


def _write(checkpoint: Path, out: Path, how: BitsAndBytesConfig, dtype: str, trust_remote_code: bool) -> dict[str, Any]:
    try:
        import bitsandbytes  # a broken installation fails here, with the clearest message
    except Exception as problem:
        raise GreenpruneError(
            f"quantize.method nf4 and int8 need a working bitsandbytes, got {type(problem).__name__}: {problem}; "
            "run `pip install -U bitsandbytes` (`python -m bitsandbytes` tells what it misses)"
        ) from problem
    model = model_class(checkpoint).from_pretrained(
        checkpoint,
        dtype=DTYPES[dtype],
        trust_remote_code=trust_remote_code,
        device_map={"": default_device()},
        quantization_config=how,
    )
    model.save_pretrained(out)
    return {"bitsandbytes": bitsandbytes.__version__}
