"""Two stages, each from a checkpoint to one JSON file.

    accuracy_stage   accuracy.json: tasks, perplexities, size          (any machine; joules of each task too)
                     answers/TASK.jsonl.gz: a line a document, for greenprune.paired
    energy_stage     energy.json: time, memory, energy of the workload (belongs to the machine it names)

Both write emissions.csv, a line a window, with CodeCarbon's columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune.columns import CONTAMINATED
from greenprune.config import ENGINES, FIRST_ENGINE, BenchmarkConfig, EnergyConfig, ModelConfig, refuse_missing_engine
from greenprune.errors import ModelError
from greenprune.storage import write_atomically

if TYPE_CHECKING:
    import torch

    from greenprune.energy import Reading
    from greenprune.energy.exclusive import Exclusive
    from greenprune.energy.reading import Sharing

WEIGHTS, GGUF = (".safetensors", ".bin"), ".gguf"


def accuracy_stage(
    out: Path, *, checkpoint: Path, config: BenchmarkConfig, dtype: str, trust_remote_code: bool = False
) -> None:
    """Write out/accuracy.json, out/answers/ and out/emissions.csv for the model in `checkpoint`.

    accuracy.json: accuracy, tasks and data (see accuracy.AccuracyResult), perplexity {"<text>_ppl@<length>": …}
    (Infinity where it isn't finite), parameters (tied ones once, in however many bits), checkpoint_bytes, layers, work
    (models.sizes.work_of; None for an architecture without an entry), energy_wh_tasks, energy_kind, energy_note,
    machine, machine_class, machine_facts, hostname, readings. Metering can't fail this stage: where it isn't possible
    joules are None. Raises ModelError where a task's logits aren't finite.
    """
    from greenprune.benchmark.accuracy import measure_accuracy
    from greenprune.benchmark.answers import write_answers
    from greenprune.benchmark.texts import measure_perplexities
    from greenprune.energy import meter_if_possible, notes_of, worst_grade
    from greenprune.engines import load_engine
    from greenprune.models import load_tokenizer

    engine = load_engine(checkpoint, dtype, trust_remote_code, "llama_cpp" if is_gguf(checkpoint) else FIRST_ENGINE)
    tokenizer = load_tokenizer(checkpoint)
    measured = measure_accuracy(engine, tokenizer, config, meter_if_possible(engine.device))
    for task, rows in measured.answers.items():
        write_answers(out / "answers", task, rows)
    result = {
        **measured.to_json(),
        "perplexity": measure_perplexities(engine, tokenizer, config),
        "checkpoint_bytes": bytes_of_weights(checkpoint),
        "layers": engine.layers,
        **_from_shapes(checkpoint, trust_remote_code),
        "energy_wh_tasks": _watt_hours(measured.readings),
        "energy_kind": worst_grade(measured.readings),
        "energy_note": notes_of(measured.readings),
    }
    _write(out, "accuracy.json", result, measured.readings, allow_nan=True)


def energy_stage(
    out: Path,
    *,
    checkpoint: Path,
    config: EnergyConfig,
    dtype: str,
    trust_remote_code: bool = False,
    exclusive: Exclusive = "none",
    dense: ModelConfig | None = None,
) -> None:
    """Write out/energy.json and out/emissions.csv for the model in `checkpoint` on this machine.

    exclusive: what the caller keeps other stages away from (see energy/exclusive.py); it decides which sensors
    count. dense: the dense model, where `config.paired` may ask for it; None where it is the checkpoint itself.
    energy.json: see workload.WorkloadResult; machine, machine_class, machine_facts, hostname, and
    the readings.
    Raises EnergyError for a GPU whose energy can't be told from others'.
    """
    from greenprune.assets import materialize
    from greenprune.benchmark.workload import Side, measure_workload
    from greenprune.energy import meter_for
    from greenprune.energy.linear import LinearModel
    from greenprune.engines import load_engine

    def make(folder: Path) -> Any:
        return load_engine(folder, dtype, trust_remote_code, config.engine)

    refuse_missing_engine(config.engine)
    folder_of_dense = None if dense is None else materialize(dense)
    engine = make(checkpoint)
    meter = meter_for(
        engine.device,
        config.country,
        sharing=sharing(exclusive, engine.device.type),
        model=LinearModel(config.watts_per_core, config.watts_base),
        max_foreign_load=config.max_foreign_load,
    )
    together = folder_of_dense is None or fits_beside(folder_of_dense, engine.device, config)
    own = Side(lambda: make(checkpoint), keep=together)
    if together:
        own.engine = engine
    else:
        engine.close()
    other = None if folder_of_dense is None else Side(lambda: make(folder_of_dense), keep=together)
    try:
        measured = measure_workload(own, config, meter, other)
    finally:
        for side in (own, other):
            if side is not None:
                side.close()
    _write(out, "energy.json", measured.to_json(), measured.readings)


def fits_beside(checkpoint: Path, device: torch.device, config: EnergyConfig) -> bool:
    """Whether another model's weights, and as much again for its work, have room beside what is loaded. An engine of
    its own batching takes most of a GPU for itself."""
    import psutil
    import torch

    free = psutil.virtual_memory().available
    if device.type == "cuda":
        if not ENGINES[config.engine].batches:
            return False
        free = sum(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count()))
    return 2 * bytes_of_weights(checkpoint) < free


def was_disturbed(artifact: Path) -> bool:
    """Whether others worked on the machine in a window of this energy stage's figures, as often as it was tried."""
    found = json.loads((artifact / "energy.json").read_text())
    return CONTAMINATED in {figures.get("energy_kind") for figures in (found, *found.get("at", {}).values())}


def sharing(exclusive: Exclusive, device: str) -> Sharing:
    """How a window of work on a "cpu" or "cuda" device is shared; a CPU alone is the node alone."""
    if exclusive == "none":
        return "shared"
    return "exclusive: device" if exclusive == "device" and device != "cpu" else "exclusive: node"


def bytes_of_weights(checkpoint: Path) -> int:
    """Of the checkpoint's weight files."""
    weights = (GGUF,) if is_gguf(checkpoint) else WEIGHTS
    return sum(path.stat().st_size for path in checkpoint.iterdir() if path.suffix in weights)


def is_gguf(checkpoint: Path) -> bool:
    """Whether a folder's weights are a file for llama.cpp, and nothing else."""
    found = {path.suffix for path in checkpoint.iterdir()}
    return GGUF in found and not found & {*WEIGHTS}


def _from_shapes(checkpoint: Path, trust_remote_code: bool) -> dict[str, Any]:
    """What holds in however many bits the weights are stored."""
    from greenprune.models.sizes import on_meta, work_of

    model, work = on_meta(checkpoint, "auto", trust_remote_code), None
    with suppress(ModelError):
        work = work_of(model)
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), "work": work}


def _watt_hours(readings: Sequence[Reading]) -> float | None:
    from greenprune.energy.units import JOULES_PER_WH

    joules = [reading.energy_j for reading in readings]
    known = [energy for energy in joules if energy is not None]
    return sum(known) / JOULES_PER_WH if known and len(known) == len(joules) else None


def _write(
    out: Path, name: str, result: Mapping[str, Any], readings: Sequence[Reading], allow_nan: bool = False
) -> None:
    from greenprune.energy import machine_identity, write_emissions

    machine, facts = machine_identity()
    named = {name: facts[name] for name in ("machine_class", "hostname")}
    provenance = {"machine": machine, **named, "machine_facts": facts}
    listed = [reading.to_dict() for reading in readings]
    text = json.dumps({**result, **provenance, "readings": listed}, indent=1, allow_nan=allow_nan)
    write_atomically(out / name, text)
    write_emissions(out / "emissions.csv", readings)
