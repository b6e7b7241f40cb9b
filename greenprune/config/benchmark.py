"""What is measured of a model: tasks, texts, and the workload whose energy is metered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from greenprune.config.model import Bos
from greenprune.config.section import Int, Section
from greenprune.config.texts import is_commit, is_whole_text, split_label, split_revision

WATTS_PER_CORE = 4.0  # CodeCarbon's fallback: 4 W a thread of an unknown CPU
WATTS_BASE = 5.0  # and 5 W for a memory module


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
    LATER: ClassVar[Mapping[str, Any]] = {"bos": "none", "commits": {}}

    tasks: list[str] = Field(default_factory=list, description="lm-eval task names")
    data: Literal["auto", "hub", "assets"] = Field(
        "auto", description="where task data comes from; auto takes the hub where it answers, else assets"
    )
    commits: dict[str, str] = Field(
        default_factory=dict, description="by data set of a task on the hub, the commit that is read; fixed once a run"
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
    bos: Bos = Field(
        "auto", description="BOS before each of perplexity's segments, the first, or none; tasks as lm-eval"
    )
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


def split_text(text: str) -> tuple[str, str, int]:
    """Name, source and length: `'ptb=data/test.txt@2048'` gives `('ptb', 'data/test.txt', 2048)`.

    Without a name it is the source's: `pypi:wikipedia` gives `wikipedia`, a file its stem. Length 0 where none
    is given. A source of the hub keeps its revision, which is in no name.
    """
    label, source, length = split_label(text)
    bare, revision = split_revision(source)
    tokens = length.removeprefix("@")
    if (tokens and int(tokens) < 2) or (revision and not length and not is_commit(revision)):
        raise ValueError(f"must be name@length with length an integer of at least 2, got {text!r}")
    return label[:-1] or re.sub(r"[.\s]", "_", Path(bare.removeprefix("pypi:")).stem), source, int(tokens or 0)


def perplexity_name(text: str) -> str:
    """The metric that a text gives: `pypi:wikipedia@512` gives `wikipedia_ppl@512`."""
    name, _, length = split_text(text)
    return f"{name}_ppl@{length}"
