"""The fields of each family of pruning methods, and what an entry of the table of methods is (methods.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from greenprune.config.section import Int, Section
from greenprune.errors import ConfigError, nearest

COMPENSATION_VERSION = 2  # raised when what prune.reconstruct or prune.patch gives changes for the same input


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
    matrix [inputs, inputs] for each input; trains: all weights are trained (for greenprune/memory/prediction.py).
    """

    fields: type[PruneConfig]
    function: str | None
    summary: str
    paper: str
    statistics: frozenset[str] | Callable[[Any], frozenset[str]] = frozenset()
    tokens: bool = False
    layerwise: bool = False
    hessian: bool = False
    trains: bool = False
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
