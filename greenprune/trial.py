"""One trial: its stages in their order, each a content-addressed artifact.

`run_trial` runs them in this process; a sweep passes `Stages` with another `execute`, which runs each stage as
a Ray task. Both give the same artifacts for the same configuration, so any row of a sweep can be reproduced
alone with `greenprune trial RUN/trials/ID/config.yaml`.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from greenprune import assets
from greenprune._callable import function_named
from greenprune.benchmark.own_tasks.rouge import METRICS as ROUGE
from greenprune.config import Experiment, ModelConfig, NoHealing, NoPruning, TrialConfig
from greenprune.energy.costs import break_even_requests
from greenprune.energy.exclusive import Exclusive
from greenprune.results import TrialResult, write_result
from greenprune.storage import Storage, write_atomically
from greenprune.store import Artifact, StageCall, Store, clear

log = logging.getLogger("greenprune")


# ------------------------------------------------------------------------------------------------- stages


@dataclass(frozen=True)
class Stage:
    """`version` is raised when the stage's output changes for the same input, so old artifacts are left aside.

    `machine_bound`: the artifact belongs to the hardware that made it, and its function is told what it has to
    itself. `resumes`: the stage goes on from what
    a former attempt left in its folder.
    """

    function: str
    version: int
    machine_bound: bool = False
    resumes: bool = False


STAGES = {
    "collect": Stage("greenprune.collect:collect_stage", 1),
    "prune": Stage("greenprune.prune:prune_stage", 3),
    "heal": Stage("greenprune.heal:heal_stage", 2, resumes=True),
    "accuracy": Stage("greenprune.benchmark:accuracy_stage", 3),
    "energy": Stage("greenprune.benchmark:energy_stage", 2, machine_bound=True),
}


@dataclass(frozen=True)
class Source:
    """The dense model, as a stage's parent."""

    config: ModelConfig
    key: str


@dataclass(frozen=True)
class Request:
    """One stage to run somewhere: what its artifact depends on, and where its inputs are.

    section: the configuration that the artifact depends on; inputs: parents by parameter name; options:
    parameters that don't change the artifact; exclusive: what it wants to itself (energy/exclusive.py).
    """

    stage: str
    section: Any
    inputs: Mapping[str, Source | Artifact | None]
    facts: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    exclusive: Exclusive = "none"

    def call(self, machine: str | None = None) -> StageCall:
        section = {"config": self.section.model_dump(mode="json"), **self.facts}
        if machine:
            section["machine"] = machine
        parents = {name: parent.key for name, parent in self.inputs.items() if parent is not None}
        return StageCall(self.stage, STAGES[self.stage].version, section, parents)


def perform(request: Request, storage_uri: str) -> Artifact:
    """Run one stage here and commit its artifact. In a sweep this is what a Ray task runs.

    Only one that is to be alone runs alone (see energy/exclusive.py). Whoever waits for its turn holds no
    resource but the task's own; whoever has it waits for no other stage.
    """
    from greenprune.energy import machine_identity
    from greenprune.energy.exclusive import gpus_here, hold_node

    store = Store(storage_uri)
    machine_bound = STAGES[request.stage].machine_bound
    call = request.call(machine_identity()[0] if machine_bound else None)
    compute = store.get_or_compute if machine_bound else store.compute
    if getattr(request.section, "num_workers", 1) > 1:  # its workers wait for their own turns, and aren't metered
        return compute(call, lambda out: _work(request, store, out))
    mine = hold_node(store.storage.uri, request.exclusive, gpus_here())
    return compute(call, lambda out: _metered(request, store, out), mine)


def _metered(request: Request, store: Store, out: Path) -> dict[str, Any] | None:
    """Do a stage's work; gives its energy for the manifest, as far as it was metered."""
    import torch

    from greenprune.energy import AbsentMeter, Meter, stage_meter
    from greenprune.errors import EnergyError
    from greenprune.models.load import default_device

    resumed = STAGES[request.stage].resumes and any(out.iterdir())
    try:
        meter: Meter = stage_meter(torch.device(default_device()))
    except EnergyError as problem:
        meter = AbsentMeter(str(problem))
    with meter.window(request.stage) as window:
        _work(request, store, out)
    if resumed:  # a former attempt's part is lost with its process
        return None
    reading = window.reading
    return {"energy_j": reading.energy_j, "energy_kind": reading.grade, "energy_source": reading.source}


def perform_all(requests: Sequence[Request], storage_uri: str) -> list[Artifact]:
    """Several stages on one machine, one after the other."""
    return [perform(request, storage_uri) for request in requests]


def _work(request: Request, store: Store, out: Path) -> None:
    stage = STAGES[request.stage]
    if not stage.resumes:
        clear(out)
    inputs = {name: _locate(parent, store) for name, parent in request.inputs.items()}
    options = {**request.options, "exclusive": request.exclusive} if stage.machine_bound else request.options
    function_named(stage.function)(out, config=request.section, **inputs, **request.facts, **options)


def _locate(parent: Source | Artifact | None, store: Store) -> Path | None:
    """A parent's folder on this machine; of a stage that makes a model, its checkpoint."""
    if parent is None:
        return None
    if isinstance(parent, Source):
        return assets.materialize(parent.config)
    folder = store.path(parent)
    return folder / "checkpoint" if parent.stage in ("prune", "heal") else folder


Execute = Callable[[Sequence[Request], str], list[Artifact]]


class Stages:
    """Runs a trial's stages: reuses an artifact, waits for another trial that makes it, or has it made."""

    def __init__(
        self,
        storage: Storage,
        execute: Execute = perform_all,
        watch: Callable[[str], None] = lambda stage: None,
    ) -> None:
        self.store = Store(storage)
        self.execute = execute
        self.watch = watch
        self.done: list[Artifact] = []

    def run(self, request: Request) -> Artifact:
        """The artifact of a stage that may run anywhere."""
        self.watch(request.stage)
        call = request.call()
        with self.store.single_flight(call):
            artifact = self.store.find(call) or self.execute([request], self.store.storage.uri)[0]
        self.done.append(artifact)
        return artifact

    def run_bound(self, requests: Sequence[Request]) -> list[Artifact]:
        """The artifacts of machine-bound stages, all from one machine; that machine looks for them first."""
        self.watch(requests[0].stage)
        artifacts = self.execute(requests, self.store.storage.uri)
        self.done += artifacts
        return artifacts

    def read(self, artifact: Artifact, name: str) -> dict[str, Any]:
        return json.loads((self.store.path(artifact) / name).read_text())


# -------------------------------------------------------------------------------------------------- trial


def run_trial(
    config: TrialConfig,
    storage: str | Path | Storage = "runs",
    *,
    execute: Execute = perform_all,
    watch: Callable[[str], None] = lambda stage: None,
    number: int = 0,
) -> TrialResult:
    """Prune, heal and benchmark one configuration; finished stages below `storage` are reused.

    Returns the metrics of README's table. Raises what a stage raised; finished stages stay.
    """
    started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    config = resolved(config.trial() if isinstance(config, Experiment) else config)
    stages = Stages(storage if isinstance(storage, Storage) else Storage(storage), execute, watch)
    dense = Source(config.model, assets.fingerprint(config.model))

    statistics = _collect(stages, config, dense)
    pruned = _prune(stages, config, dense, statistics)
    healed = _heal(stages, config, pruned)
    accuracy = _accuracy(stages, config, healed)
    energy, dense_energy = _energy(stages, config, healed, dense)

    return TrialResult(
        trial_id=config.trial_id(),
        number=number,
        status="ok",
        config=config.model_dump(mode="json"),
        metrics=_metrics(stages, pruned, healed, accuracy, energy, dense_energy),
        stages=[asdict(artifact) for artifact in stages.done],
        started=started,
        seconds=time.perf_counter() - began,
    )


def resolved(config: TrialConfig) -> TrialConfig:
    """The configuration with every 'auto' replaced by what it means here, so that a row can be reproduced.

    Raises ConfigError for tasks or a country that their libraries don't know, before any stage runs.
    """
    benchmark = config.benchmark
    if benchmark.energy and benchmark.energy.country:
        from greenprune.energy.tracker import check_country

        check_country(benchmark.energy.country)
    if benchmark.reads_hub():
        from greenprune.benchmark.tasks import check_tasks, resolve_data

        benchmark = benchmark.model_copy(update={"data": resolve_data(benchmark.data)})
        check_tasks(benchmark.tasks, benchmark.data)
    return config.model_copy(update={"benchmark": benchmark})


def _collect(stages: Stages, config: TrialConfig, dense: Source) -> Artifact | None:
    want = config.prune.statistics()
    if not want:
        return None
    scratch = f"{stages.store.storage.uri}/_workers"
    facts = {"want": sorted(want)}
    options = {"source": config.model, "scratch": scratch}
    return stages.run(Request("collect", config.calibration, {"checkpoint": dense}, facts, options))


def _prune(stages: Stages, config: TrialConfig, dense: Source, statistics: Artifact | None) -> Source | Artifact:
    if isinstance(config.prune, NoPruning):
        return dense
    inputs = {"checkpoint": dense, "statistics": statistics}
    facts = {"calibration": config.calibration.model_dump(mode="json")} if config.prune.needs_tokens() else {}
    return stages.run(Request("prune", config.prune, inputs, facts, _loading(config)))


def _heal(stages: Stages, config: TrialConfig, pruned: Source | Artifact) -> Source | Artifact:
    if isinstance(config.heal, NoHealing):
        return pruned
    return stages.run(Request("heal", config.heal, {"checkpoint": pruned}, options=_loading(config)))


def _accuracy(stages: Stages, config: TrialConfig, healed: Source | Artifact) -> Artifact:
    section = config.benchmark.model_copy(update={"energy": None})
    return stages.run(Request("accuracy", section, {"checkpoint": healed}, options=_loading(config)))


def _energy(
    stages: Stages, config: TrialConfig, healed: Source | Artifact, dense: Source
) -> tuple[Artifact | None, Artifact | None]:
    """The workload's energy for this model and, on the same machine, for the dense one."""
    if config.benchmark.energy is None:
        return None, None
    make = functools.partial(Request, "energy", config.benchmark.energy, options=_loading(config), exclusive="device")
    of_dense = make({"checkpoint": dense})
    if healed is dense:
        (energy,) = stages.run_bound([of_dense])
        return energy, energy
    dense_energy, energy = stages.run_bound([of_dense, make({"checkpoint": healed})])
    return energy, dense_energy


def _loading(config: TrialConfig) -> dict[str, Any]:
    return {"dtype": config.model.dtype, "trust_remote_code": config.model.trust_remote_code}


WH = 3600.0  # joules
SIZE = ("parameters", "checkpoint_bytes", "layers")
RATIOS = {
    "energy_j_per_token": "energy_ratio",
    "energy_j_per_prefill_token": "energy_ratio_prefill",
    "energy_j_per_decode_token": "energy_ratio_decode",
}


def _metrics(
    stages: Stages,
    pruned: Source | Artifact,
    healed: Source | Artifact,
    accuracy: Artifact,
    energy: Artifact | None,
    dense_energy: Artifact | None,
) -> dict[str, Any]:
    """All numbers of a trial by their column names; what wasn't measured is absent."""
    scores = stages.read(accuracy, "accuracy.json")
    workload = stages.read(energy, "energy.json") if energy else {}
    dense = stages.read(dense_energy, "energy.json") if dense_energy else {}
    metrics: dict[str, Any] = {name: scores[name] for name in SIZE}
    metrics |= _pruning_metrics(stages, pruned, scores["parameters"])
    if isinstance(healed, Artifact) and healed.stage == "heal":
        history = stages.read(healed, "history.json")
        names = {
            "train_loss": "heal_train_loss",
            "loss_start": "heal_loss_start",
            "loss_end": "heal_loss_end",
        }
        metrics |= {column: history[name] for name, column in names.items()}
    # The joules of tasks were read where the accuracy stage ran: they count only on the workload's machine.
    same_machine = not workload or scores["machine"] == workload["machine"]
    metrics |= _task_metrics(scores, with_energy=same_machine)
    metrics |= {name: value for name, value in workload.items() if not isinstance(value, dict | list)}
    for name, ratio in RATIOS.items():
        if workload.get(name) and dense.get(name):
            metrics[ratio] = workload[name] / dense[name]
    metrics |= _making_metrics(stages.done, metrics)
    return {name: value for name, value in metrics.items() if value is not None}


def _making_metrics(done: Sequence[Artifact], metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Energy of making the model, and the requests that save it again; only where all of it was metered alike."""
    made = [artifact for artifact in done if artifact.stage in ("collect", "prune", "heal")]
    spent = {artifact.stage: artifact.energy_j for artifact in made}
    known: dict[str, float | None] = {f"{stage}_energy_wh": j / WH for stage, j in spent.items() if j is not None}
    if made and len(known) == len(made) and {artifact.energy_kind for artifact in made} == {metrics.get("energy_kind")}:
        a_request, ratio = metrics.get("energy_wh_per_1k_requests"), metrics.get("energy_ratio")
        known["break_even_requests"] = break_even_requests(sum(filter(None, known.values())), a_request, ratio)
    return known


def _pruning_metrics(stages: Stages, pruned: Source | Artifact, parameters: int) -> dict[str, Any]:
    if isinstance(pruned, Source):
        return {"parameters_dense": parameters, "parameters_removed_ratio": 0.0, "layers_removed": "[]"}
    report = stages.read(pruned, "report.json")
    return {
        "parameters_dense": report["parameters_before"],
        "parameters_removed_ratio": 1 - parameters / report["parameters_before"],
        "ratio_reached": report["ratio_reached"],
        "layers_removed": json.dumps(report["layers_removed"]),
        "sparsity": report["sparsity"],
        "checkpoint_needs": report["needs"],
    }


def _task_metrics(scores: Mapping[str, Any], with_energy: bool) -> dict[str, Any]:
    metrics: dict[str, Any] = {"accuracy": scores["accuracy"], **scores["perplexity"]}
    for task, result in scores["tasks"].items():
        joules = result["joules"] if with_energy else None
        metrics |= {f"{task}_{name}": value for name, value in result["metrics"].items() if name in ROUGE}
        metrics |= {
            f"{task}_acc": result["value"],
            f"{task}_stderr": result["stderr"],
            f"{task}_floor": result["floor"],
            f"{task}_unparsed": result["unparsed"],
            f"{task}_seconds": result["seconds"],
            f"{task}_wh": None if joules is None else joules / WH,
        }
    if with_energy:
        metrics |= {
            "energy_wh_tasks": scores["energy_wh_tasks"],
            "tasks_energy_kind": scores.get("energy_kind") if scores["tasks"] else None,
        }
    return metrics


def write_trial(folder: Path, result: TrialResult, storage: Storage) -> Path:
    """The trial's folder in a run: config.yaml, result.json and emissions.csv (tasks, then the workload)."""
    target = write_result(folder, result)
    store = Store(storage)
    metered = {stage["stage"]: stage["key"] for stage in result.stages if stage["stage"] in ("accuracy", "energy")}
    tables = [store.path(Artifact(stage, key)) / "emissions.csv" for stage, key in metered.items()]
    rows = [table.read_text().splitlines() for table in tables if table.exists()]
    if rows:
        lines = [*rows[0][:1], *(line for table in rows for line in table[1:])]
        write_atomically(target / "emissions.csv", "\n".join(lines) + "\n")
    return target
