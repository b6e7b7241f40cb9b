"""The model that a trial begins with, and the text that pruning looks at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from greenprune.config.section import Int, Section
from greenprune.config.texts import split_revision

# Where BOS stands in blocks of text: before each, once before the whole text, nowhere; auto: each where the model's
# tokenizer starts a text with BOS by itself, else none.
Bos = Literal["auto", "each", "first", "none"]


class ModelConfig(Section):
    id: str = Field(min_length=1, description="hub id, local directory, or pypi:<asset>")
    revision: str | None = Field(
        None, description="hub revision: branch, tag or commit; a run keeps the commit that it is at first"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = Field(False, description="run modelling code that ships with the checkpoint")

    @model_validator(mode="before")
    @classmethod
    def _revision_in_id(cls, data: Any) -> Any:
        """`owner/name@revision` says both fields at once, for a space that chooses among models."""
        name = data.get("id") if isinstance(data, Mapping) else None
        if not isinstance(name, str) or name.startswith((".", "/", "~", "pypi:")) or "@" not in name:
            return data
        bare, revision = split_revision(name)
        return {**data, "id": bare, "revision": revision}


class CalibrationConfig(Section):
    LATER: ClassVar[Mapping[str, Any]] = {"bos": "none"}

    dataset: str = Field(
        "c4", description="named text, hub id (either also name@revision), local file, or pypi:<asset>"
    )
    num_samples: Int = Field(128, ge=1)
    seq_len: Int = Field(2048, ge=2)
    batch_size: Int = Field(1, ge=1)
    seed: Int = 0
    bos: Bos = Field("auto", description="BOS before each block, the first, or none; auto asks the tokenizer")
    num_workers: Int = Field(1, ge=1, description="more than one shards the model by DeepSpeed ZeRO-3")

    def halved(self) -> Self | None:
        return self.model_copy(update={"batch_size": self.batch_size // 2}) if self.batch_size > 1 else None
