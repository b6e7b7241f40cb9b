"""GGUF to an ordinary safetensors checkpoint. Imported only where one is converted: it needs torch and transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the de-quantised model in `source` as fp32 safetensors, with its tokenizer, into `folder`."""
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    # Without dequantize=True transformers 5 keeps the model marked as quantised and won't save it.
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
