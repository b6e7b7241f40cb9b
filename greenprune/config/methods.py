"""The table of pruning methods.

A method is one entry of METHODS: its fields, the function that prunes, what that function needs, the paper. The
variants of `prune` in an experiment file are made from this table. It must import without torch, so functions
are named, not held.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model

from greenprune.config.pruning import (
    DepthPruning,
    MaskPruning,
    Method,
    NoPruning,
    PruneConfig,
    Shape,
    ShortenedDepthPruning,
    SlebPruning,
)
from greenprune.config.section import chosen_by_method
from greenprune.config.width_pruning import (
    FlapPruning,
    LlmPrunerPruning,
    MinitronWidthPruning,
    ShearedPruning,
    TwoStagePruning,
    WandaSpPruning,
)

HIDDEN_STATES = frozenset({"angular", "bi"})
ACTIVATIONS = frozenset({"activations"})


def _gradients(config: LlmPrunerPruning) -> frozenset[str]:
    if config.importance in ("l1", "l2", "random"):
        return frozenset()
    return frozenset({"fisher"} if config.importance in ("param_second", "param_mix") else {"gradient"})


def _dense_activations(config: WandaSpPruning) -> frozenset[str]:
    return frozenset() if config.sequential else ACTIVATIONS


METHODS: dict[str, Method] = {
    "none": Method(NoPruning, None, "the dense model", ""),
    "angular": Method(
        DepthPruning,
        "greenprune.prune.depth:remove_angular_block",
        "the contiguous block of layers that turns the last token's state least",
        "Gromov et al. 2024, arXiv:2403.17887",
        HIDDEN_STATES,
    ),
    "bi": Method(
        DepthPruning,
        "greenprune.prune.depth:remove_least_influential",
        "the layers of least block influence, one shot",
        "Men et al. 2024 (ShortGPT), arXiv:2403.03853",
        HIDDEN_STATES,
    ),
    "taylor_depth": Method(
        ShortenedDepthPruning,
        "greenprune.prune.depth:remove_by_taylor",
        "the layers of least first-order effect on the loss, one shot",
        "Kim et al. 2024 (Shortened LLaMA, Taylor+), arXiv:2402.02834",
        frozenset({"gradient"}),
    ),
    "ppl_depth": Method(
        ShortenedDepthPruning,
        "greenprune.prune.depth:remove_by_perplexity",
        "the layers whose removal alone harms the perplexity least, one shot",
        "Kim et al. 2024 (Shortened LLaMA, PPL), arXiv:2402.02834",
        frozenset({"layer_perplexity"}),
    ),
    "sleb": Method(
        SlebPruning,
        "greenprune.prune.depth:remove_greedily",
        "layer by layer, each time that whose removal harms the loss least",
        "Song et al. 2024 (SLEB), arXiv:2402.09025",
        tokens=True,
    ),
    "minitron_depth": Method(
        DepthPruning,
        "greenprune.prune.depth:remove_best_window",
        "the contiguous block of layers whose removal harms the loss least",
        "Muralidharan et al. 2024 (Minitron), arXiv:2407.14679; Sreenivas et al. 2024, arXiv:2408.11796",
        tokens=True,
    ),
    "llm_pruner": Method(
        LlmPrunerPruning,
        "greenprune.prune.llm_pruner:prune_llm_pruner",
        "heads and channels, with all that is coupled to them, whose weights matter least to the loss",
        "Ma et al. 2023, arXiv:2305.11627",
        _gradients,
    ),
    "flap": Method(
        FlapPruning,
        "greenprune.prune.flap:prune_flap",
        "heads and channels whose outputs fluctuate least, their mean kept as a bias",
        "An et al. 2023, arXiv:2312.11983",
        ACTIVATIONS,
    ),
    "wanda_sp": Method(
        WandaSpPruning,
        "greenprune.prune.wanda_sp:prune_wanda_sp",
        "heads and channels of the smallest products of weight and input norm",
        "An et al. 2023 (its baseline), arXiv:2312.11983",
        _dense_activations,
        layerwise=True,
    ),
    "minitron_width": Method(
        MinitronWidthPruning,
        "greenprune.prune.minitron_width:prune_minitron_width",
        "heads, channels and hidden dimensions of the smallest activations",
        "Muralidharan et al. 2024, arXiv:2407.14679",
        ACTIVATIONS,
    ),
    "two_stage": Method(
        TwoStagePruning,
        "greenprune.prune.two_stage:prune_in_two_stages",
        "the channels of the smallest activations, then the attention sublayers whose removal harms the loss least",
        "Sandri et al. 2025 (2SSP), arXiv:2501.17771",
        tokens=True,
    ),
    "sheared": Method(
        ShearedPruning,
        "greenprune.prune.sheared:prune_sheared",
        "layers, heads, channels and hidden dimensions by masks that learn an exact shape with the weights",
        "Xia et al. 2023 (Sheared LLaMA), arXiv:2310.06694",
        tokens=True,
        trains=True,
        version=1,
    ),
    "magnitude": Method(
        MaskPruning,
        "greenprune.prune.masks:mask_by_magnitude",
        "zeros for the smallest weights",
        "Han et al. 2015, arXiv:1506.02626",
    ),
    "wanda": Method(
        MaskPruning,
        "greenprune.prune.masks:mask_by_wanda",
        "zeros for the smallest products of weight and input norm",
        "Sun et al. 2023, arXiv:2306.11695",
        tokens=True,
        layerwise=True,
    ),
    "sparsegpt": Method(
        MaskPruning,
        "greenprune.prune.masks:mask_by_sparsegpt",
        "zeros where the other weights can best make up for them, which they then do",
        "Frantar & Alistarh 2023, arXiv:2301.00774",
        tokens=True,
        layerwise=True,
        hessian=True,
    ),
}


def _variant(name: str, entry: Method) -> type[PruneConfig]:
    """The section of `prune` that is chosen by `method: name`; a global of this module, so that it pickles."""
    literal = Literal[name]  # type: ignore[valid-type]
    title = f"{entry.fields.__name__}[{name}]"
    variant = _made(title, entry.fields, method=(literal, name))
    variant.entry = entry
    return globals().setdefault(title, variant)


def _made(title: str, base: type[PruneConfig], **fields: Any) -> type[PruneConfig]:
    return create_model(title, __base__=base, __module__=__name__, **fields)


PRUNE_VARIANTS: dict[str, type[PruneConfig]] = {name: _variant(name, entry) for name, entry in METHODS.items()}
if TYPE_CHECKING:
    AnyStep = PruneConfig
else:
    AnyStep = chosen_by_method(PRUNE_VARIANTS)


class SequencePruning(PruneConfig):
    """Several methods one after the other, each on statistics of the model that the former left."""

    method: Literal["sequence"] = "sequence"
    steps: list[AnyStep] = Field(min_length=1, description="prune sections, in order")

    def check(self, shape: Shape) -> None:
        for step in self.steps:
            step.check(shape)
            if isinstance(step, DepthPruning) and shape.layers is not None:
                shape = replace(shape, layers=shape.layers - step.block_size)

    def statistics(self) -> frozenset[str]:
        return frozenset()

    def needs_dense(self) -> bool:
        return any(step.needs_dense() for step in self.steps)

    def needs_tokens(self) -> bool:
        return any(step.statistics() or step.needs_tokens() for step in self.steps)

    def output_version(self) -> int:
        """Versions only rise, so a change of any step's gives another sum, and never one that was."""
        return super().output_version() + sum(step.output_version() for step in self.steps)


SEQUENCE = Method(
    SequencePruning, "greenprune.prune.sequence:prune_in_steps", "several methods in turn", "", tokens=True
)
METHODS["sequence"] = SequencePruning.entry = SEQUENCE
PRUNE_VARIANTS["sequence"] = SequencePruning
PruneConfig.variants.update(PRUNE_VARIANTS)
