"""Store a model's weights in fewer bits; what is left is measured and exported as any other checkpoint.

A quantizer is one entry of QUANTIZERS in config/quantize.py, a function here, and one row of
tests/quantize/test_contract.py.

on_load.py quantises as Transformers loads (bitsandbytes); compressed.py asks llm-compressor, in the environment that
toolchain.py finds, where oneshot.py runs; to_gguf.py writes a file for llama.cpp. fits.py refuses widths that a format
can't hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from greenprune.config import QUANTIZERS, CalibrationConfig, QuantizeConfig

if TYPE_CHECKING:
    import torch

__all__ = ["QuantizingFunction", "quantize_stage"]


class QuantizingFunction(Protocol):
    """What an entry of QUANTIZERS names."""

    def __call__(
        self,
        checkpoint: Path,
        out: Path,
        config: Any,
        tokens: torch.Tensor | None,
        dtype: str,
        trust_remote_code: bool,
    ) -> dict[str, Any]:
        """Write the model in `checkpoint` to the new folder `out`, quantised; `config` is the quantizer's own section.

        tokens: LongTensor [num_samples, seq_len] where the entry asks for them. dtype: what isn't quantised stays in
        it. Gives facts for the artifact's report: what was chosen, which versions did it. Raises ModelError for a
        model that it can't hold.
        """


def quantize_stage(
    out: Path,
    *,
    checkpoint: Path,
    config: QuantizeConfig,
    calibration: dict[str, Any] | None = None,
    dtype: str,
    trust_remote_code: bool = False,
) -> None:
    """Write `out/checkpoint/` with its tokenizer, and `out/report.json`: method, and what its function says.

    calibration: a CalibrationConfig's identity, for quantizers that look at text. Raises ModelError for a model that
    the format can't hold, ConfigError for what isn't installed, AssetError for text out of reach.
    """
    from greenprune._callable import function_named
    from greenprune.data import calibration_tokens
    from greenprune.models import load_tokenizer
    from greenprune.quantize.fits import check_widths
    from greenprune.storage import write_atomically

    entry = QUANTIZERS[config.method]
    assert entry.function is not None, f"quantize.method {config.method} changes nothing, so it is no stage"
    quantize: QuantizingFunction = function_named(entry.function)
    check_widths(checkpoint, config.method, entry.multiple_of, trust_remote_code)
    tokenizer, tokens = load_tokenizer(checkpoint), None
    if calibration:
        text = CalibrationConfig(**{**CalibrationConfig.LATER, **calibration})
        tokens = calibration_tokens(text.dataset, tokenizer, text.num_samples, text.seq_len, text.seed, text.bos)
    facts = quantize(checkpoint, out / "checkpoint", config, tokens, dtype, trust_remote_code)
    tokenizer.save_pretrained(out / "checkpoint")
    write_atomically(out / "report.json", json.dumps({"method": config.method, **facts}))
