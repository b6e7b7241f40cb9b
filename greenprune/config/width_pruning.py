"""The fields of methods that narrow layers, or reach a shape in which layers are narrower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from greenprune.config.pruning import PruneConfig, Shape, SkippingPruning
from greenprune.config.section import Int
from greenprune.errors import ConfigError

ROUNDED_FOR_KERNELS = 64  # of quantised weights: narrower blocks stay in 16 bits, or have no kernel at all


class SharePruning(SkippingPruning):
    """A share of the prunable layers' parameters is removed; the layers stay."""

    ratio: float | None = Field(gt=0, lt=1, description="share of the prunable layers' parameters that is removed")
    round_to: Int = Field(
        8,
        ge=1,
        description="MLP widths are multiples of it; tensor cores want 8, or 64. auto: 64, and 256 for GGUF's q4_k_m",
    )

    @field_validator("round_to", mode="before")
    @classmethod
    def _auto(cls, round_to: Any) -> Any:
        return ROUNDED_FOR_KERNELS if round_to == "auto" else round_to


class RatioPruning(SharePruning):
    """Heads and MLP channels are removed."""

    LATER: ClassVar[Mapping[str, Any]] = {"reconstruct": "none"}

    uniform: bool = Field(False, description="one width for all layers, which stock Transformers configs can hold")
    heads: Literal["within_group", "kv_group"] = Field(
        "within_group",
        description="trim query heads in each KV group, their share rounded down, or remove whole groups",
    )
    reconstruct: Literal["none", "bias", "least_squares", "windows"] = Field(
        "none",
        description="output projections of pruned layers refitted to the dense model's states: their biases, by ridge "
        "regression, or then the weights of a few layers at a time trained to them",
    )

    def compensation(self) -> str | None:
        return None if self.reconstruct == "none" else f"reconstruct.{self.reconstruct}"

    @model_validator(mode="after")
    def _uniform_means_all_layers(self) -> RatioPruning:
        if self.uniform and (self.skip_first or self.skip_last):
            raise ValueError(
                "uniform gives all layers one width, so prune.skip_first and prune.skip_last must be 0, got "
                f"{self.skip_first} and {self.skip_last}; leave them out or set prune.uniform=false"
            )
        return self

    def check(self, shape: Shape) -> None:
        super().check(shape)
        if self.heads == "within_group" or shape.kv_heads is None:
            return
        if shape.kv_heads < 2:
            raise ConfigError(
                f"prune.heads=kv_group needs at least 2 KV heads, got {shape.kv_heads}; set prune.heads=within_group"
            )
        if self.ratio is not None and round(self.ratio * shape.kv_heads) >= shape.kv_heads:
            raise ConfigError(
                f"prune.ratio with prune.heads=kv_group must leave a KV head of {shape.kv_heads}, got {self.ratio}; "
                "lower it or set prune.heads=within_group"
            )


class WidthPruning(RatioPruning):
    ratio: float = Field(gt=0, lt=1, description="share of the prunable layers' parameters that is removed")


class LlmPrunerPruning(WidthPruning):
    importance: Literal["param_first", "param_second", "param_mix", "vectorize", "l1", "l2", "random"] = "param_first"
    reduction: Literal["sum", "mean", "max", "prod", "first"] = Field(
        "sum", description="of the scores of coupled matrices"
    )
    scope: Literal["local", "global"] = Field("local", description="a ratio for each layer, or one threshold for all")
    iterations: Int = Field(1, ge=1, description="steps to the ratio, each with fresh scores")
    seed: Int = Field(0, description="of importance random")

    def needs_tokens(self) -> bool:
        return super().needs_tokens() or (self.iterations > 1 and bool(self.statistics()))


class FlapPruning(WidthPruning):
    metric: Literal["WIFV", "IFV", "WIFN"] = "WIFV"
    structure: Literal["AL-AM", "UL-UM", "UL-MM", "AL-MM"] = Field(
        "AL-AM", description="ratio uniform in layers (UL) or adaptive (AL); modules manual (MM) or adaptive (AM)"
    )
    bias: bool = Field(True, description="add the mean output of what was removed as a bias")
    remove_heads: Int | None = Field(
        None, ge=0, description="query heads removed of all layers together, in MM structures; None: ratio of them"
    )

    @model_validator(mode="after")
    def _heads_are_set_in_manual_structures(self) -> FlapPruning:
        if self.remove_heads is not None and self.structure not in ("UL-MM", "AL-MM"):
            raise ValueError(
                f"remove_heads is for structures UL-MM and AL-MM, got {self.structure}, which finds the number of "
                "heads itself; leave remove_heads out or change structure"
            )
        return self


class WandaSpPruning(WidthPruning):
    sequential: bool = Field(
        False, description="score each layer behind the pruned ones, as the original does, in a pass for every ratio"
    )

    def needs_tokens(self) -> bool:
        return super().needs_tokens() or self.sequential


class TwoStagePruning(SharePruning):
    """MLP channels of every layer go, then whole attention sublayers."""

    ratio: float = Field(gt=0, lt=1, description="share of the prunable layers' parameters that is removed")
    alpha: float = Field(
        1.5, gt=0, description="larger: more attention sublayers go, layers * ratio^(MLP size / attention size / alpha)"
    )


Target = Literal["ffn", "heads", "hidden"]
# The names of Transformers configs mean the same dimensions.
CONFIG_NAMES = {"intermediate_size": "ffn", "num_attention_heads": "heads", "hidden_size": "hidden"}
FFN_AND_HEADS: list[Target] = ["ffn", "heads"]


class MinitronWidthPruning(RatioPruning):
    """`targets` names the dimensions pruned by `ratio`, or gives the exact widths to reach."""

    ratio: float | None = Field(None, gt=0, lt=1)
    targets: list[Target] | dict[Target, Int] = Field(
        FFN_AND_HEADS,
        description="dimensions to prune by ratio, or their exact widths, e.g. {ffn: 1024, heads: 6}",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _config_names(cls, targets: Any) -> Any:
        names = CONFIG_NAMES
        if isinstance(targets, Mapping):
            return {names.get(name, name): width for name, width in targets.items()}
        return [names.get(name, name) for name in targets] if isinstance(targets, list | tuple) else targets

    @model_validator(mode="after")
    def _ratio_or_widths(self) -> MinitronWidthPruning:
        if isinstance(self.targets, Mapping) == (self.ratio is not None):
            raise ValueError(
                "takes either ratio with targets as a list, or targets with exact widths and no ratio; got "
                f"ratio={self.ratio}, targets={self.targets}; give one of them"
            )
        if not self.targets:
            raise ValueError("targets must name a dimension, got none; choices: ffn, heads, hidden")
        if "hidden" in self.targets and (self.skip_first or self.skip_last):
            raise ValueError(
                "targets with hidden change every layer, so prune.skip_first and prune.skip_last must be 0, got "
                f"{self.skip_first} and {self.skip_last}; leave them out, or hidden"
            )
        if "hidden" in self.targets and self.reconstruct != "none":
            raise ValueError(
                f"reconstruct must be none where targets have hidden, got {self.reconstruct}: the dense model's states "
                "have more dimensions then; leave out one of them"
            )
        return self


ShearedTarget = Literal["layers", "heads", "ffn", "hidden"]


class ShearedPruning(PruneConfig):
    """The shape to reach, and how masks and weights learn it on the calibration text."""

    targets: dict[ShearedTarget, Int] = Field(
        min_length=1, description="exact shape, e.g. {layers: 24, heads: 6, ffn: 1024, hidden: 512}; the rest stays"
    )
    heads: Literal["within_group", "kv_group"] = Field(
        "within_group", description="query heads leave in each KV group, or whole groups do"
    )
    steps: Int = Field(400, ge=1, description="of masks and weights; the paper takes 3200")
    batch_size: Int = Field(4, ge=1, description="calibration samples a step")
    learning_rate: float = Field(1e-4, ge=0, description="of the weights, which learn beside the masks; 0: masks alone")
    mask_learning_rate: float = Field(0.1, gt=0, description="of the masks; the paper's 1.0 wants its many steps")
    mask_start: Literal["importance", "whole"] = Field(
        "importance",
        description="masks begin near the shape, by how much the loss feels each unit; whole: with everything, as in "
        "the paper, which wants many more steps",
    )
    seed: Int = 0

    @field_validator("targets", mode="before")
    @classmethod
    def _config_names(cls, targets: Any) -> Any:
        names = CONFIG_NAMES | {"num_hidden_layers": "layers"}
        return (
            {names.get(name, name): width for name, width in targets.items()}
            if isinstance(targets, Mapping)
            else targets
        )
