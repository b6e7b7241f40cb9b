"""What a model is worth and what it costs: accuracy and perplexity, speed and memory, energy.

Two stages, each from a checkpoint to one JSON file:

    accuracy_stage   accuracy.json: tasks, perplexities, size          (any machine; joules of each task too)
                     answers/TASK.jsonl.gz: a line a document, for greenprune.paired
    energy_stage     energy.json: time, memory, energy of the workload (belongs to the machine it names)

Both write emissions.csv, a line a window, with CodeCarbon's columns.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune.config import BenchmarkConfig, EnergyConfig
from greenprune.storage import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from greenprune.benchmark.shared_prefix import SharedPrefixLM
    from greenprune.energy import Reading
    from greenprune.energy.exclusive import Exclusive
    from greenprune.energy.reading import Sharing

__all__ = ["SharedPrefixLM", "accuracy_stage", "energy_stage", "size"]
log = logging.getLogger("greenprune")
WEIGHTS = (".safetensors", ".bin")


def __getattr__(name: str) -> Any:
    if name == "SharedPrefixLM":  # only when it is used, since lm-eval takes seconds to import
        from greenprune.benchmark.shared_prefix import SharedPrefixLM

        return SharedPrefixLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def accuracy_stage(
    out: Path, *, checkpoint: Path, config: BenchmarkConfig, dtype: str, trust_remote_code: bool = False
) -> None:
    """Write out/accuracy.json, out/answers/ and out/emissions.csv for the model in `checkpoint`.

    accuracy.json: accuracy, tasks and data (see measure_accuracy), perplexity {"<text>_ppl@<length>": …},
    parameters (tied ones once), checkpoint_bytes, layers, energy_wh_tasks, energy_kind, machine, hostname,
    readings. Metering can't fail this stage: where it isn't possible joules are None.
    """
    from greenprune.benchmark.accuracy import measure_accuracy
    from greenprune.benchmark.answers import write_answers
    from greenprune.benchmark.perplexity import measure_perplexities
    from greenprune.energy import meter_if_possible, notes_of, worst_grade
    from greenprune.models import load_checkpoint, load_tokenizer

    model = load_checkpoint(checkpoint, dtype, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(checkpoint)
    country = config.energy.country if config.energy else None
    measured = measure_accuracy(model, tokenizer, config, meter_if_possible(model.device, country))
    readings = measured.pop("readings")
    for task, rows in measured.pop("answers").items():
        write_answers(out / "answers", task, rows)
    result = {
        **measured,
        "perplexity": measure_perplexities(model, tokenizer, config),
        **size(model, checkpoint),
        "energy_wh_tasks": _watt_hours(readings),
        "energy_kind": worst_grade(readings),
        "energy_note": notes_of(readings),
    }
    _write(out, "accuracy.json", result, readings)


def energy_stage(
    out: Path,
    *,
    checkpoint: Path,
    config: EnergyConfig,
    dtype: str,
    trust_remote_code: bool = False,
    exclusive: Exclusive = "none",
) -> None:
    """Write out/energy.json and out/emissions.csv for the model in `checkpoint` on this machine.

    exclusive: what the caller keeps other stages away from (see energy/exclusive.py); it decides which sensors
    count. energy.json: the metrics of measure_workload, machine, machine_facts, hostname, and the readings.
    Raises EnergyError for a GPU whose energy can't be told from others'.
    """
    from greenprune.benchmark.workload import measure_workload
    from greenprune.energy import meter_for
    from greenprune.energy.linear import LinearModel
    from greenprune.models import load_checkpoint

    model = load_checkpoint(checkpoint, dtype, trust_remote_code=trust_remote_code)
    meter = meter_for(
        model.device,
        config.country,
        sharing=sharing(exclusive, model.device.type),
        model=LinearModel(config.watts_per_core, config.watts_base),
        max_foreign_load=config.max_foreign_load,
    )
    result = measure_workload(model, config, meter)
    readings = result.pop("readings")
    for name in ("idle", "discarded"):
        result[name] = _as_json(result[name])
    _write(out, "energy.json", result, readings)


def sharing(exclusive: Exclusive, device: str) -> Sharing:
    """How a window of work on a "cpu" or "cuda" device is shared; a CPU alone is the node alone."""
    if exclusive == "none":
        return "shared"
    return "exclusive: device" if exclusive == "device" and device != "cpu" else "exclusive: node"


def _as_json(readings: Reading | Sequence[Reading] | None) -> Any:
    if isinstance(readings, Sequence):
        return [reading.to_dict() for reading in readings]
    return None if readings is None else readings.to_dict()


def size(model: PreTrainedModel, checkpoint: Path) -> dict[str, int]:
    """Parameters (tied ones once), bytes of the checkpoint's weight files, decoder layers."""
    weights = [path for path in checkpoint.iterdir() if path.suffix in WEIGHTS]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "checkpoint_bytes": sum(path.stat().st_size for path in weights),
        "layers": model.config.get_text_config().num_hidden_layers,
    }


def _watt_hours(readings: Sequence[Reading]) -> float | None:
    from greenprune.energy.reading import JOULES_PER_WH

    joules = [reading.energy_j for reading in readings]
    known = [energy for energy in joules if energy is not None]
    return sum(known) / JOULES_PER_WH if known and len(known) == len(joules) else None


def _write(out: Path, name: str, result: Mapping[str, Any], readings: Sequence[Reading]) -> None:
    from greenprune.energy import machine_identity, write_emissions

    machine, facts = machine_identity()
    provenance = {"machine": machine, "machine_facts": facts, "hostname": facts["hostname"]}
    listed = [reading.to_dict() for reading in readings]
    text = json.dumps({**result, **provenance, "readings": listed}, indent=1, allow_nan=False)
    write_atomically(out / name, text)
    write_emissions(out / "emissions.csv", readings)
