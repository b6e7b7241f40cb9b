"""What a stage needs of memory at its peak, predicted from shapes before any weight is read.

A prediction adds up what is large: weights that are resident (of a model that stays in its files: a layer and what
isn't in layers), a forward's activations, statistics, and what gradients need. Each stage's entry in STAGES names its
function here; one without counts the weights alone. A trial's row has the prediction beside the measured peak.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from greenprune._callable import function_named
from greenprune.config import (
    STAGES,
    BenchmarkConfig,
    CalibrationConfig,
    EnergyConfig,
    HealConfig,
    LoraHealing,
    MaskPruning,
    PruneConfig,
    QuantizeConfig,
    SequencePruning,
    ShearedPruning,
    TextHealing,
    split_text,
    tokens_a_sequence,
)
from greenprune.models.decoder import LOGITS_AT_ONCE
from greenprune.models.in_files import IN_FILES_FROM
from greenprune.models.parts import PART_BYTES
from greenprune.models.sizes import ModelSizes

PROCESS_BYTES = 700 << 20  # Python, torch, Transformers and Ray in a process; a GPU's allocator doesn't see them
FLOAT32, FLOAT64 = 4, 8
# Of a container: cgroup v2, and v1
CGROUP_LIMITS = tuple(map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")))
LIVE_PARAMETERS = 1_000_000_000  # that DeepSpeed keeps gathered at most (stage3_max_live_parameters)


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak: of one process, or of its GPUs together."""

    weights: int
    activations: int = 0
    statistics: int = 0
    gradients: int = 0
    process: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.statistics + self.gradients + self.process


@dataclass(frozen=True)
class Devices:
    """Where a stage runs: on so many GPUs, that hold `gpu_bytes` each, or on CPUs, with `cpu_bytes` of memory."""

    gpus: int = 0
    gpu_bytes: int = 0
    cpu_bytes: int = 0

    @property
    def bytes(self) -> int:
        return self.gpus * self.gpu_bytes or self.cpu_bytes

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def devices_here() -> Devices:
    """This process's."""
    import torch

    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = min([whole, *(limit for path in CGROUP_LIMITS if (limit := _number_in(path)))])
    if not torch.cuda.is_available():
        return Devices(cpu_bytes=memory)
    return Devices(torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory, memory)


def _number_in(path: Path) -> int | None:
    with suppress(OSError, ValueError):  # "max" where there is no limit
        return int(path.read_text())
    return None


def predicted(
    stage: str, sizes: ModelSizes, section: Any, facts: Mapping[str, Any] | None = None, devices: Devices | None = None
) -> Memory:
    """Of a stage of STAGES on a model of these sizes; section, facts: as its Request has them."""
    devices, named = devices or Devices(), STAGES[stage].memory
    need = function_named(named)(sizes, section, facts or {}, devices) if named else Memory(sizes.weight_bytes)
    return need if devices.gpus else replace(need, process=PROCESS_BYTES)


# ------------------------------------------------------------------------------------------------- parts


def stays_in_files(sizes: ModelSizes, devices: Devices) -> bool:
    """As models.load_streamed decides, with a GPU that nothing else is on."""
    return sizes.weight_bytes >= max(IN_FILES_FROM, 0.8 * devices.gpu_bytes if devices.gpus else 0)


def resident_weights(sizes: ModelSizes, devices: Devices) -> int:
    """Of a stage that streams: embeddings and head, and a layer before and after its change, or a part being saved."""
    if not stays_in_files(sizes, devices):
        return sizes.weight_bytes + sizes.layer * sizes.itemsize
    return sizes.outside * sizes.itemsize + max(2 * sizes.layer * sizes.itemsize, PART_BYTES)


def layer_activations(sizes: ModelSizes, tokens: int) -> int:
    """Of a forward of so many tokens that keeps nothing: the stream, and what the layer at work makes of it."""
    numbers = 5 * sizes.hidden + 2 * sizes.attention + sizes.cached + 3 * sizes.channels
    return tokens * numbers * sizes.itemsize


def cache_bytes(sizes: ModelSizes, tokens: int) -> int:
    """Keys and values of all layers."""
    return tokens * sizes.layers * sizes.cached * sizes.itemsize


def logits_bytes(sizes: ModelSizes, tokens: int) -> int:
    """In the model's dtype and in float32, of at most LOGITS_AT_ONCE numbers at a time."""
    return min(tokens * sizes.vocabulary, LOGITS_AT_ONCE) * (sizes.itemsize + FLOAT32)


def largest_matrix(sizes: ModelSizes) -> int:
    """Numbers, of a matrix of gates and ups where these are one."""
    return sizes.channels * sizes.hidden * 2


# ------------------------------------------------------------------------------------------------- stages


def of_collect(sizes: ModelSizes, config: CalibrationConfig, facts: Mapping[str, Any], devices: Devices) -> Memory:
    return of_statistics(sizes, frozenset(facts.get("want", ())), config, devices)


def of_statistics(sizes: ModelSizes, want: frozenset[str], config: CalibrationConfig, devices: Devices) -> Memory:
    """Of collect(), in each of `config.num_workers` processes."""
    batch, workers = config.batch_size * config.seq_len, config.num_workers
    tokens = math.ceil(config.num_samples / workers) * config.seq_len
    stream = sizes.hidden * sizes.itemsize
    weights, taylor = resident_weights(sizes, devices), bool(want & {"gradient", "fisher"})
    if workers > 1:
        live = min(LIVE_PARAMETERS, sizes.parameters) * sizes.itemsize
        weights = sizes.weight_bytes // workers + live
    activations = layer_activations(sizes, batch)
    statistics = 0
    if "activations" in want:
        widths = sizes.attention + sizes.channels
        statistics += 6 * sizes.layers * widths * FLOAT64 + 3 * batch * sizes.channels * FLOAT32
    if want & {"angular", "bi"}:
        statistics += 3 * batch * sizes.hidden * FLOAT32
    if "layer_perplexity" in want:
        statistics += sizes.layers * batch * stream + logits_bytes(sizes, batch)
    gradients = 0
    if taylor:
        copies = 4 if "fisher" in want else 3  # sums, the batch's own, weights in float32
        every = sizes.layers * tokens * stream <= sizes.weight_bytes
        kept = sizes.layers if every else 2 * math.ceil(math.sqrt(sizes.layers))
        gradients = sizes.layer * copies * FLOAT32 + (kept + 1) * tokens * stream
        gradients += 2 * layer_activations(sizes, batch) + 2 * logits_bytes(sizes, batch)
    return Memory(weights, activations, statistics, gradients)


def of_prune(sizes: ModelSizes, config: PruneConfig, facts: Mapping[str, Any], devices: Devices) -> Memory:
    text = CalibrationConfig(**{**CalibrationConfig.LATER, **facts.get("calibration", {})})
    if isinstance(config, SequencePruning):
        needs = [_of_step(sizes, step, text, devices) for step in config.steps]
        return max(needs, key=lambda need: need.total)
    need = _of_step(sizes, config, text, devices)
    return need if config.needs_tokens() else replace(need, activations=0, gradients=0)


def _of_step(sizes: ModelSizes, config: PruneConfig, text: CalibrationConfig, devices: Devices) -> Memory:
    """Of a method that gathers its statistics itself; between steps a model lies where it lay."""
    batch, need = text.batch_size * text.seq_len, of_statistics(sizes, config.statistics(), text, devices)
    stream = sizes.hidden * sizes.itemsize
    if config.entry.layerwise and config.needs_tokens():
        states = text.num_samples * text.seq_len * stream
        inputs = 2 * batch * sizes.channels * FLOAT32
        need = replace(need, activations=need.activations + states + inputs)
    elif config.needs_tokens() and not config.statistics():
        need = replace(need, activations=need.activations + sizes.layers * batch * stream + logits_bytes(sizes, batch))
    if isinstance(config, ShearedPruning):
        batch = config.batch_size * text.seq_len
        activations = 2 * sizes.layers * layer_activations(sizes, batch) + logits_bytes(sizes, batch)
        trained = 4 if config.learning_rate else 1  # beside the weights: their gradients and Adam's two moments
        need = replace(need, activations=activations, gradients=trained * sizes.parameters * FLOAT32)
    if isinstance(config, MaskPruning):
        hessians = 5 * max(sizes.channels, sizes.attention) ** 2 if config.entry.hessian else 0
        need = replace(need, statistics=FLOAT32 * (hessians + 4 * largest_matrix(sizes)))
    return need


def of_heal(sizes: ModelSizes, config: HealConfig, facts: Mapping[str, Any], devices: Devices) -> Memory:
    """In each of `config.num_workers` processes; a healer of other fields counts the weights alone."""
    if not isinstance(config, TextHealing):
        return Memory(sizes.weight_bytes)
    dense = sizes.weight_bytes if config.wants_dense() else 0
    batch = config.batch_size * config.seq_len
    kept = sizes.layers * batch * sizes.hidden * sizes.itemsize + 3 * layer_activations(sizes, batch)
    activations = kept if config.gradient_checkpointing else 2 * sizes.layers * layer_activations(sizes, batch)
    activations += batch * sizes.vocabulary * 2 * (sizes.itemsize + FLOAT32)
    if isinstance(config, LoraHealing):
        widths = 4 * (sizes.hidden + sizes.attention) + 3 * (sizes.hidden + sizes.channels)
        adapters = config.rank * widths * sizes.layers * FLOAT32
        return Memory(dense + sizes.weight_bytes, activations, gradients=adapters + 3 * adapters // config.num_workers)
    weights, live = sizes.parameters * FLOAT32, 0
    if config.num_workers > 1:
        live = min(LIVE_PARAMETERS, sizes.parameters) * FLOAT32
    share = weights // config.num_workers
    return Memory(dense + share + live, activations, gradients=3 * share)


def of_quantize(sizes: ModelSizes, config: QuantizeConfig, facts: Mapping[str, Any], devices: Devices) -> Memory:
    """The model and its quantised form; with calibration a layer's states of all samples and its Hessians, in
    llm-compressor's process."""
    weights = 2 * sizes.weight_bytes
    if not config.needs_tokens():
        return Memory(weights)
    text = CalibrationConfig(**{**CalibrationConfig.LATER, **facts.get("calibration", {})})
    states = 2 * text.num_samples * text.seq_len * sizes.hidden * sizes.itemsize
    hessians = FLOAT32 * (3 * max(sizes.channels, sizes.attention) ** 2 + 6 * sizes.hidden**2)
    return Memory(weights, layer_activations(sizes, text.seq_len) + states, hessians)


def of_accuracy(sizes: ModelSizes, config: BenchmarkConfig, facts: Mapping[str, Any], devices: Devices) -> Memory:
    tokens = max(config.batch_size * tokens_a_sequence(devices.device), config.max_length) if config.tasks else 0
    tokens = max([tokens, *(split_text(text)[2] for text in config.perplexity)])
    cached = cache_bytes(sizes, tokens) if config.tasks else 0
    return Memory(
        sizes.weight_bytes,
        layer_activations(sizes, tokens) + cached + 2 * logits_bytes(sizes, tokens),
    )


def of_energy(sizes: ModelSizes, config: EnergyConfig, facts: Mapping[str, Any], devices: Devices) -> Memory:
    batch, longest = config.batch_size * max(config.concurrency), config.longest
    prompt, length = batch * longest.prompt, batch * sum(longest)
    activations = layer_activations(sizes, prompt) + 2 * cache_bytes(sizes, length)
    return Memory(sizes.weight_bytes, activations + logits_bytes(sizes, batch))
