"""The fields of each family of pruning methods, and what an entry of the table of methods is (methods.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from greenprune.config.section import Int, Section
from greenprune.errors import ConfigError, nearest

COMPENSATION_VERSION = 1  # raised when what prune.reconstruct or prune.patch gives changes for the same input


@dataclass(frozen=True)
class Shape:
    """What a configuration must fit: a model's numbers, as far as they are known (None otherwise).

    adds_outputs: whether what attention and MLP give is added to the residual stream with no norm on it.
    """

    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    adds_outputs: bool | None = None


@dataclass(frozen=True)
class Method:
    """One pruning method.

    version: raised when its output changes for the same input, so that its old artifacts are left aside, and no other
    method's. fields: the parameters it takes. statistics: names of collect.STATISTICS, gathered once over the
    dense model and shared by all methods, ratios and options that ask for the same set. tokens: the function
    runs the model itself, on the calibration tokens; layerwise: a layer at a time for all of them; hessian: with a
    matrix [inputs, inputs] for each input (both for greenprune/memory/prediction.py).
    """

    fields: type[PruneConfig]
    function: str | None
    summary: str
    paper: str
    statistics: frozenset[str] | Callable[[Any], frozenset[str]] = frozenset()
    tokens: bool = False
    layerwise: bool = False
    hessian: bool = False
    version: int = 0


class PruneConfig(Section):
    """One pruning method and its parameters; `PruneConfig(method="angular", block_size=4)` gives its variant.

    Raises ConfigError for an unknown method and pydantic's ValidationError for a bad field.
    """

    variants: ClassVar[dict[str, type[PruneConfig]]] = {}  # by method: methods.py fills it from its table
    entry: ClassVar[Method]  # of a variant

    method: str

    def __new__(cls, *args: Any, **fields: Any) -> PruneConfig:
        if cls is PruneConfig and fields:
            method = fields.get("method")
            if method not in cls.variants:
                raise ConfigError(
                    f"prune.method must name a method, got {method!r}; {nearest(str(method), cls.variants)}"
                )
            cls = cls.variants[method]
        return super().__new__(cls)

    def check(self, shape: Shape) -> None:
        """Raises ConfigError where this configuration can't prune a model of that shape."""

    def statistics(self) -> frozenset[str]:
        """What the calibration pass must gather for it."""
        needed = self.entry.statistics
        return needed(self) if callable(needed) else needed

    def compensation(self) -> str | None:
        """What makes up for what was removed, `OPTION.VALUE` (prune.COMPENSATIONS); None: nothing."""
        return None

    def needs_dense(self) -> bool:
        """Whether the dense model stays beside the pruned one."""
        return self.compensation() is not None

    def needs_tokens(self) -> bool:
        """Whether the method itself, or its compensation, runs the model on calibration tokens."""
        return self.entry.tokens or self.needs_dense()

    def output_version(self) -> int:
        return self.entry.version + (COMPENSATION_VERSION if self.compensation() else 0)


class NoPruning(PruneConfig):
    pass


class SkippingPruning(PruneConfig):
    """`protected` are the original's own first and last layers left alone: used where the file doesn't say and
    the model is deep enough that most of it stays prunable."""

    protected: ClassVar[tuple[int, int]] = (0, 0)

    skip_first: Int | None = Field(None, ge=0, description="first decoder layers that are left as they are")
    skip_last: Int | None = Field(None, ge=0, description="last decoder layers that are left as they are")

    def skips(self, layers: int) -> tuple[int, int]:
        """How many first and last layers of a model with `layers` layers are left alone."""
        first, last = self.protected if layers >= 2 * sum(self.protected) else (0, 0)
        return first if self.skip_first is None else self.skip_first, last if self.skip_last is None else self.skip_last

    def prunable(self, layers: int) -> range:
        """The layers that may be touched."""
        first, last = self.skips(layers)
        return range(first, layers - last)

    def check(self, shape: Shape) -> None:
        if shape.layers is not None and not self.prunable(shape.layers):
            raise ConfigError(
                f"prune.skip_first and prune.skip_last must leave a layer of {shape.layers}, got "
                f"{self.skip_first} and {self.skip_last}; lower them"
            )


class DepthPruning(SkippingPruning):
    LATER: ClassVar[Mapping[str, Any]] = {"patch": "none"}

    block_size: Int = Field(ge=1, description="decoder layers removed")
    patch: Literal["none", "linear", "least_squares"] = Field(
        "none",
        description="the MLP before a removed block stands for it too: by a linear map of its output, or refitted",
    )

    def compensation(self) -> str | None:
        return None if self.patch == "none" else f"patch.{self.patch}"

    def check(self, shape: Shape) -> None:
        if self.patch != "none" and shape.adds_outputs is False:
            raise ConfigError(
                f"prune.patch must be none where a norm stands on what an MLP gives to the residual stream, got "
                f"{self.patch}; set prune.patch=none"
            )
        if shape.layers is None:
            return
        protected = sum(self.skips(shape.layers))
        most = max(0, min(shape.layers - 1, shape.layers - protected))
        if self.block_size > most:
            raise ConfigError(
                f"prune.block_size must be at most {most} for a model of {shape.layers} layers ({protected} of them "
                f"skipped), got {self.block_size}; lower prune.block_size, prune.skip_first or prune.skip_last"
            )


class ShortenedDepthPruning(DepthPruning):
    protected: ClassVar[tuple[int, int]] = (4, 2)


class SlebPruning(DepthPruning):
    protected: ClassVar[tuple[int, int]] = (1, 1)


class SharePruning(SkippingPruning):
    """A share of the prunable layers' parameters is removed; the layers stay."""

    ratio: float | None = Field(gt=0, lt=1, description="share of the prunable layers' parameters that is removed")
    round_to: Int = Field(8, ge=1, description="MLP widths are multiples of it; tensor cores want 8, or 64")


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
        """The names of Transformers configs mean the same dimensions."""
        names = {"intermediate_size": "ffn", "num_attention_heads": "heads", "hidden_size": "hidden"}
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


class MaskPruning(PruneConfig):
    """Weights become zero and shapes stay. `N:M`: the N lowest of every M consecutive inputs go."""

    ratio: float = Field(0.0, ge=0, lt=1, description="share of each matrix that becomes zero; N:M implies N/M")
    structure: str = Field("unstructured", description="unstructured, or N:M such as 2:4", examples=["2:4", "4:8"])

    @model_validator(mode="before")
    @classmethod
    def _ratio_of_structure(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        structure, ratio = str(data.get("structure", "unstructured")), data.get("ratio")
        if structure == "unstructured":
            if not ratio:
                raise ValueError("needs a ratio in (0, 1) for unstructured masks; add prune.ratio")
            return data
        found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", structure)
        if not found or int(found[1]) >= int(found[2]):
            raise ValueError(f"structure must be unstructured or N:M with N < M, got {structure!r}; e.g. '2:4'")
        implied = int(found[1]) / int(found[2])
        if ratio is not None and abs(ratio - implied) > 1e-9:
            raise ValueError(f"ratio must be {implied:g} or left out for structure {structure}, got {ratio}")
        return {**data, "ratio": implied}

    def pattern(self) -> tuple[int, int] | None:
        """(N, M), or None for unstructured."""
        if self.structure == "unstructured":
            return None
        n, _, m = self.structure.partition(":")
        return int(n), int(m)
