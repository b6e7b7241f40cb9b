"""GPTQ by llm-compressor, in an environment of its own, where greenprune isn't installed.

    PYTHON -P oneshot.py JOB.json

The job: checkpoint and out, folders; tokens, a safetensors file whose `tokens` are LongTensor [num_samples, seq_len];
scheme, W8A8 or W4A16; group_size, columns that share a scale, null for a scale a row; dtype, trust_remote_code. Writes
the checkpoint and prints, as the last line, JSON: the versions that did it.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def quantize(job: dict[str, Any]) -> dict[str, str]:
    import torch
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trusted = {"trust_remote_code": job["trust_remote_code"]}
    model = AutoModelForCausalLM.from_pretrained(job["checkpoint"], dtype=getattr(torch, job["dtype"]), **trusted)
    tokens = load_file(job["tokens"])["tokens"]
    text = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    scheme: QuantizationScheme = preset_name_to_scheme(job["scheme"], ["Linear"])
    if job["group_size"]:
        scheme.weights.group_size = job["group_size"]
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    zeros = {name: linear.weight == 0 for name, linear in linears.items()}
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(job["checkpoint"]),
        dataset=text,
        recipe=GPTQModifier(config_groups={"layers": scheme}, ignore=["lm_head", "embed_out"]),
        num_calibration_samples=len(tokens),
        max_seq_length=tokens.shape[1],
        shuffle_calibration_samples=False,
    )
    for name, linear in linears.items():  # GPTQ moves its error into every weight, those of a mask too
        linear.weight.data.masked_fill_(zeros[name], 0)
    model.save_pretrained(job["out"], save_compressed=True)
    return {name: version(name) for name in ("llmcompressor", "compressed-tensors", "transformers")}


if __name__ == "__main__":
    print(json.dumps(quantize(json.loads(Path(sys.argv[1]).read_text()))))
