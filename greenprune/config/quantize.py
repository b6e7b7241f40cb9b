"""The table of quantizers, and the fields of each.

A quantizer is one entry of QUANTIZERS: its fields, the function that writes the quantised checkpoint, the paper, and
what it can't take. The variants of `quantize` in an experiment file are made from this table. It must import without
torch, so functions are named, not held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from greenprune.config.methods import SequencePruning
from greenprune.config.pruning import MaskPruning, PruneConfig
from greenprune.config.section import Section
from greenprune.config.width_pruning import MinitronWidthPruning
from greenprune.errors import ConfigError

CheckpointFormat = Literal["transformers", "bitsandbytes", "compressed-tensors", "gguf"]  # of a checkpoint


class QuantizeConfig(Section):
    """How the model that is measured is quantised; a variant for each method, like PruneConfig."""

    method: str

    @property
    def stored_as(self) -> str:
        """What its weights are, in a word for tables."""
        return self.method

    def output_version(self) -> int:
        return QUANTIZERS[self.method].version

    def needs_tokens(self) -> bool:
        return QUANTIZERS[self.method].tokens

    def keeps_zeros(self) -> bool:
        """Whether a weight that is zero before is zero afterwards."""
        return True

    def check(self, prune: PruneConfig, widths: Mapping[str, int]) -> None:
        """Raises ConfigError where it can't quantise what this pruning leaves.

        widths: those of the dense model by their names in its config.json, as far as they are known.
        """
        steps = prune.steps if isinstance(prune, SequencePruning) else [prune]
        if any(isinstance(step, MaskPruning) for step in steps) and not self.keeps_zeros():
            raise ConfigError(
                f"quantize must keep the zeros of prune.method {prune.method}, got {self.stored_as}, which shifts "
                "weights; choose another quantize.method, or remove layers, heads and channels instead"
            )
        if (step_of := QUANTIZERS[self.method].multiple_of) == 1:
            return
        for rounded in (getattr(step, "round_to", step_of) for step in steps):
            if isinstance(rounded, int) and rounded % step_of:
                raise ConfigError(
                    f"prune.round_to must be a multiple of {step_of} for quantize.method {self.method}, got "
                    f"{rounded}; set prune.round_to: {step_of}"
                )
        for name, width in widths.items():
            if width % step_of and not any(isinstance(step, MinitronWidthPruning) for step in steps):
                raise ConfigError(
                    f"the model's {name} must be a multiple of {step_of} for quantize.method {self.method}, got "
                    f"{width}; choose another quantize.method"
                )


class NoQuantizing(QuantizeConfig):
    method: Literal["none"] = "none"


class Nf4Quantizing(QuantizeConfig):
    """4-bit normal floats with double quantisation, blocks of 64."""

    method: Literal["nf4"] = "nf4"


class Int8Quantizing(QuantizeConfig):
    """8-bit weights, a scale a row; activations too, but for outliers."""

    method: Literal["int8"] = "int8"


class W8a8Quantizing(QuantizeConfig):
    """8-bit weights, a scale a row, calibrated; 8-bit activations, a scale a token found as it comes."""

    method: Literal["w8a8"] = "w8a8"


class W4a16Quantizing(QuantizeConfig):
    """4-bit weights, a scale a group of columns, calibrated; groups of 128, 64 or 32, the largest that divides all."""

    method: Literal["w4a16"] = "w4a16"


class GgufQuantizing(QuantizeConfig):
    """llama.cpp's file, whose blocks of 32 (q8_0) or 256 (q4_k_m) weights have a scale each."""

    method: Literal["gguf"] = "gguf"
    type: Literal["f32", "f16", "q8_0", "q4_k_m"]

    @property
    def stored_as(self) -> str:
        return self.type

    def keeps_zeros(self) -> bool:
        return self.type != "q4_k_m"  # scales that have an offset


# -------------------------------------------------------------------------------------------- quantizers


@dataclass(frozen=True)
class Quantizer:
    """One way to store weights in fewer bits.

    fields: the parameters it takes. function: writes the quantised checkpoint (its signature:
    `quantize.QuantizingFunction`); None where nothing is done. format: what it writes, which decides what loads it.
    tokens: it looks at the trial's calibration text. multiple_of: what all widths of layers must be divisible by.
    packages: what must be importable where it runs, with what installs it; toolchain: it also needs llm-compressor's
    environment (quantize/toolchain.py). version: times its output has changed for the same input.
    """

    fields: type[QuantizeConfig]
    function: str | None
    summary: str
    paper: str
    format: CheckpointFormat = "transformers"
    tokens: bool = False
    multiple_of: int = 1
    packages: tuple[tuple[str, str], ...] = ()
    toolchain: bool = False
    version: int = 0


_COMPRESSED: dict[str, Any] = {
    "format": "compressed-tensors",
    "tokens": True,
    "packages": (("compressed_tensors", "pip install 'greenprune[quantize]'"),),
    "toolchain": True,
}
_BITSANDBYTES: dict[str, Any] = {
    "format": "bitsandbytes",
    "packages": (("bitsandbytes", "pip install -U bitsandbytes"),),
}

QUANTIZERS: dict[str, Quantizer] = {
    "none": Quantizer(NoQuantizing, None, "weights as they are", ""),
    "nf4": Quantizer(
        Nf4Quantizing,
        "greenprune.quantize.on_load:write_nf4",
        "4-bit normal floats, by bitsandbytes",
        "Dettmers et al. 2023 (QLoRA), arXiv:2305.14314",
        multiple_of=64,  # its kernel for CPUs raises for others
        **_BITSANDBYTES,
    ),
    "int8": Quantizer(
        Int8Quantizing,
        "greenprune.quantize.on_load:write_int8",
        "8-bit weights and activations but for outliers, by bitsandbytes",
        "Dettmers et al. 2022 (LLM.int8()), arXiv:2208.07339",
        **_BITSANDBYTES,
    ),
    "w8a8": Quantizer(
        W8a8Quantizing,
        "greenprune.quantize.compressed:write_compressed",
        "8-bit weights by GPTQ, 8-bit activations, by llm-compressor",
        "Frantar et al. 2022 (GPTQ), arXiv:2210.17323",
        **_COMPRESSED,
    ),
    "w4a16": Quantizer(
        W4a16Quantizing,
        "greenprune.quantize.compressed:write_compressed",
        "4-bit weights by GPTQ, by llm-compressor",
        "Frantar et al. 2022 (GPTQ), arXiv:2210.17323",
        multiple_of=32,  # vLLM's kernels
        **_COMPRESSED,
    ),
    "gguf": Quantizer(
        GgufQuantizing,
        "greenprune.quantize.to_gguf:write_as_gguf",
        "a file for llama.cpp",
        "",
        format="gguf",
        packages=(("llama_cpp", "pip install 'greenprune[llama-cpp]'"),),
    ),
}

QUANTIZE_VARIANTS: dict[str, type[QuantizeConfig]] = {name: entry.fields for name, entry in QUANTIZERS.items()}
