"""Whether a model's widths suit a format, known from shapes before any weight is read."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from greenprune.errors import ModelError
from greenprune.models.decoder import Decoder
from greenprune.models.sizes import on_meta


def layer_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Every linear of the decoder's layers by its name in the model: what quantizers change, the head stays."""
    within = {id(module) for layer in Decoder(model).layers for module in layer.modules()}
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in within
    }


def check_widths(checkpoint: Path, method: str, multiple_of: int, trust_remote_code: bool = False) -> None:
    """Raises ModelError where a linear of the layers has inputs that aren't a multiple of so many, or outputs that
    aren't one of 32, which are the rules of kernels for CPUs of bitsandbytes and vLLM."""
    if multiple_of == 1:
        return
    for name, linear in layer_linears(on_meta(checkpoint, "auto", trust_remote_code)).items():
        if linear.in_features % multiple_of or linear.out_features % 32:
            raise ModelError(
                f"inputs must be multiples of {multiple_of} and outputs of 32 for quantize.method {method}, got "
                f"{name} with {linear.in_features} and {linear.out_features}; prune with round_to: {multiple_of}, "
                "or choose another quantize.method"
            )


def largest_group(checkpoint: Path, sizes: tuple[int, ...], trust_remote_code: bool = False) -> int:
    """The largest of these sizes that divides the inputs of every linear of the layers; the last divides them."""
    inputs = {linear.in_features for linear in layer_linears(on_meta(checkpoint, "auto", trust_remote_code)).values()}
    return next(size for size in sizes if all(columns % size == 0 for columns in inputs))
