"""The frozen base in 4 bits: NF4 with double quantisation (QLoRA, Dettmers et al. 2023, section 3)."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from greenprune.errors import GreenpruneError
from greenprune.models.load import default_device, model_class


def load_nf4(checkpoint: Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model in `checkpoint` with its decoder's linear layers in NF4, computing in bf16 (fp32 on a CPU).

    Raises GreenpruneError where bitsandbytes is missing or doesn't work here.
    """
    device = default_device()
    compute = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        import bitsandbytes  # a broken installation fails here, with the clearest message

        model = model_class(checkpoint).from_pretrained(
            checkpoint,
            dtype=compute,
            trust_remote_code=trust_remote_code,
            device_map={"": device},
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=compute,
            ),
        )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as problem:
        raise GreenpruneError(
            f"heal.quantize nf4 needs a working bitsandbytes, got {type(problem).__name__}: {problem}; "
            "run `pip install -U bitsandbytes` (`python -m bitsandbytes` tells what it misses), or set "
            "heal.quantize: none"
        ) from problem
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # On a CPU with AVX512-BF16 the first forward in evaluation mode (the validation loss) packs
            # the weights for an inference kernel without a backward, and gradients silently stop there.
            module.support_avx512bf16_for_cpu = False
    return model
