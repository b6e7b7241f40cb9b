"""What is measured of a model: tasks, texts, and the workload whose energy is metered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from greenprune.config.engines import ENGINES, FIRST_ENGINE, EngineName
from greenprune.config.lengths import Lengths, is_lengths_file, request_lengths
from greenprune.config.model import Bos
from greenprune.config.section import Int, Section
from greenprune.config.texts import is_whole_text, perplexity_name, split_text

WATTS_PER_CORE = 4.0  # CodeCarbon's fallback: 4 W a thread of an unknown CPU
WATTS_BASE = 5.0  # and 5 W for a memory module


def _length(value: Any) -> Any:
    if (isinstance(value, int) and not isinstance(value, bool) and value >= 1) or is_lengths_file(value):
        return value
    raise ValueError(
        f"must be a number of tokens of at least 1, or a file of request lengths (.csv or .jsonl), got {value!r}; set "
        "it to one of these"
    )


Length = Annotated[int | str, BeforeValidator(_length)]


class EnergyConfig(Section):
    """The fixed workload whose time, memory and energy are measured: prefill a prompt, decode a reply.

    `concurrency` says how many requests are in flight; each number is measured, and the first one's figures have the
    plain names.
    """

    LATER: ClassVar[Mapping[str, Any]] = {"engine": FIRST_ENGINE, "concurrency": [1], "paired": False}

    engine: EngineName = Field(FIRST_ENGINE, description="what serves the model; greenprune doctor says what is there")
    concurrency: list[Annotated[Int, Field(ge=1)]] = Field(
        [1], min_length=1, description="requests in flight, each number measured by itself"
    )
    paired: Literal[True, False, "auto"] = Field(
        False,
        description="measure the dense model and this one in alternation, window by window; auto does so where energy "
        "is estimated or its interval is wide",
    )
    batch_size: Int = Field(1, ge=1)
    prompt_len: Length = 512
    decode_len: Length = 128
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

    @property
    def lengths(self) -> list[Lengths]:
        """Of the requests that are sent. Raises ConfigError for a file that isn't one of them."""
        return request_lengths(self.prompt_len, self.decode_len)

    @property
    def request(self) -> Lengths:
        """The one that every request is like; of a file, its first."""
        return self.lengths[0]

    @property
    def longest(self) -> Lengths:
        """The longest prompt, and the longest reply."""
        lengths = self.lengths
        return Lengths(max(each.prompt for each in lengths), max(each.decode for each in lengths))

    def libraries(self) -> tuple[str, ...]:
        return () if self.engine == FIRST_ENGINE else ENGINES[self.engine].packages

    @field_validator("concurrency")
    @classmethod
    def _each_number_once(cls, concurrency: list[int]) -> list[int]:
        if len(set(concurrency)) < len(concurrency):
            raise ValueError(f"must give each number of requests once, got {concurrency}; remove the repeated one")
        return concurrency

    @model_validator(mode="after")
    def _engine_can(self) -> EnergyConfig:
        files = {name for name in (self.prompt_len, self.decode_len) if isinstance(name, str)}
        if self.batch_size > 1 and (not ENGINES[self.engine].batches or self.concurrency != [1]):
            raise ValueError(
                f"batch_size must be 1 where concurrency or the engine says how many requests are in flight, got "
                f"{self.batch_size} with engine {self.engine} and concurrency {self.concurrency}; use concurrency alone"
            )
        if files and ENGINES[self.engine].batches:
            raise ValueError(
                f"prompt_len and decode_len must be numbers where a batch of requests runs as one, got "
                f"{', '.join(sorted(files))} with engine {self.engine}; give numbers, or another engine"
            )
        if len(files) > 1:
            raise ValueError(
                f"prompt_len and decode_len must name one file, since a line is a request, got "
                f"{', '.join(sorted(files))}; put both columns into one file"
            )
        return self

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

    def halved(self) -> Self | None:
        return self.model_copy(update={"batch_size": self.batch_size // 2}) if self.batch_size > 1 else None

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


def tokens_a_sequence(device: str) -> int:
    """By which `batch_size` bounds a batch of a task's questions.

    A CPU isn't faster with more at once, and small batches need less padding.
    """
    return 32 if device == "cpu" else 256
