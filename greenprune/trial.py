"""One trial: its stages in their order, each a content-addressed artifact.

`run_trial` runs them in this process; a sweep has each run as a Ray task (stages.py). So any row of a sweep can be
reproduced alone with `greenprune trial RUN/trials/ID/config.yaml`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from greenprune import assets
from greenprune.bos import with_bos
from greenprune.config import STAGES, QuantizeConfig, TrialConfig, absolute, refuse_missing_engine
from greenprune.config.lengths import request_lengths
from greenprune.decided import decided
from greenprune.errors import DamagedArtifact
from greenprune.experiment import Experiment
from greenprune.metrics import metrics_of
from greenprune.quantize.toolchain import check_installed
from greenprune.results import TrialResult, write_result
from greenprune.stages import Execute, Request, Source, Stages, perform_all
from greenprune.storage import Storage, write_atomically
from greenprune.store import Artifact, Store

DAMAGED_AT_MOST = 8  # artifacts of one trial that are made again


def run_trial(
    config: TrialConfig,
    storage: str | Path | Storage = "runs",
    *,
    execute: Execute = perform_all,
    watch: Callable[[str], None] = lambda stage: None,
    number: int = 0,
    any_versions: bool = False,
    fixed: bool = False,
) -> TrialResult:
    """Prune, heal and benchmark one configuration; finished stages below `storage` are reused.

    any_versions: also those that other versions of torch or another library made. fixed: the configuration says
    already where its data comes from, at which commits (decided.py) and where BOS stands (bos.py), as a sweep's does:
    nobody is asked.

    Returns the metrics of README's table. Raises what a stage raised; finished stages stay.
    """
    config = config.trial() if isinstance(config, Experiment) else config
    if not fixed:
        data = decided(absolute(config.model_dump(mode="json"), Path.cwd()))
        config = with_bos(TrialConfig.model_validate(data))
    check_benchmark(config)
    for _ in range(DAMAGED_AT_MOST):
        with suppress(DamagedArtifact):  # it was set aside, so the next walk makes it again
            return _walk(config, Stages(storage, execute, watch, any_versions), number)
    return _walk(config, Stages(storage, execute, watch, any_versions), number)


def _walk(config: TrialConfig, stages: Stages, number: int) -> TrialResult:
    """All stages, one after the other."""
    started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    dense = Source(config.model, assets.fingerprint(config.model))

    statistics = _collect(stages, config, dense)
    pruned = _prune(stages, config, dense, statistics)
    model = _heal(stages, config, pruned, _teach(stages, config, dense), dense)
    accuracy = _accuracy(stages, config, model)
    energy, dense_energy = _energy(stages, config, model, dense)

    return TrialResult(
        trial_id=config.trial_id(),
        number=number,
        status="ok",
        config=config.model_dump(mode="json"),
        metrics=metrics_of(stages.store, stages.done, accuracy, energy, dense_energy, config),
        stages=[asdict(artifact) for artifact in stages.done],
        started=started,
        seconds=time.perf_counter() - began,
    )


def check_benchmark(config: TrialConfig) -> None:
    """Raises ConfigError for tasks or a country that their libraries don't know, for an engine or a quantizer that
    isn't installed here and for a file of request lengths that isn't one, before any stage runs."""
    check_installed(config.quantize.method)
    benchmark = config.benchmark
    if benchmark.energy:
        refuse_missing_engine(benchmark.energy.engine)
        request_lengths(benchmark.energy.prompt_len, benchmark.energy.decode_len)
    if benchmark.energy and benchmark.energy.country:
        from greenprune.energy.carbon import check_country

        check_country(benchmark.energy.country)
    if benchmark.tasks:
        from greenprune.benchmark.tasks import check_tasks

        check_tasks(benchmark.tasks, benchmark.data)


def _collect(stages: Stages, config: TrialConfig, dense: Source) -> Artifact | None:
    want = config.prune.statistics()
    if not want:
        return None
    facts = {"want": sorted(want)}
    options = {"source": config.model, **_scratch(stages)}
    return stages.run(Request("collect", config.calibration, {"checkpoint": dense}, facts, options))


def _prune(stages: Stages, config: TrialConfig, dense: Source, statistics: Artifact | None) -> Source | Artifact:
    if config.prune.method == "none":
        return dense
    inputs = {"checkpoint": dense, "statistics": statistics}
    facts = {"calibration": config.calibration.identity()} if config.prune.needs_tokens() else {}
    return stages.run(Request("prune", config.prune, inputs, facts, _loading(config)))


def _teach(stages: Stages, config: TrialConfig, dense: Source) -> Artifact | None:
    """What the dense model predicts on the healing text; None where healing doesn't ask for it."""
    teaching = config.heal.teaching()
    if teaching is None:
        return None
    return stages.run(Request("teach", teaching, {"checkpoint": dense}, options=_loading(config)))


def _heal(
    stages: Stages,
    config: TrialConfig,
    pruned: Source | Artifact,
    teacher: Artifact | None = None,
    dense: Source | None = None,
) -> Source | Artifact:
    """Healing, and whatever other stages turn the pruned model into the one that is measured, in their order."""
    beside = dense if config.heal.wants_dense() else None
    model = pruned
    for name, stage in STAGES.items():
        if stage.role == "model" and name != "prune" and (section := getattr(config, stage.key)).method != "none":
            parents = {"checkpoint": model, "teacher": teacher, "dense": beside}
            inputs = {parent: parents[parent] for parent in stage.needs}
            facts = {"calibration": config.calibration.identity()} if wants_text(section) else {}
            options = _loading(config) | (_scratch(stages) if section.workers() > 1 else {})
            model = stages.run(Request(name, section, inputs, facts, options))
    return model


def wants_text(section: Any) -> bool:
    """Whether a stage with this section looks at the trial's calibration text."""
    return isinstance(section, QuantizeConfig) and section.needs_tokens()


def _accuracy(stages: Stages, config: TrialConfig, model: Source | Artifact) -> Artifact:
    section = config.benchmark.model_copy(update={"energy": None})
    return stages.run(Request("accuracy", section, {"checkpoint": model}, options=_loading(config)))


def _energy(
    stages: Stages, config: TrialConfig, model: Source | Artifact, dense: Source
) -> tuple[Artifact | None, Artifact | None]:
    """The workload's energy for this model and, on the same machine, for the dense one."""
    if config.benchmark.energy is None:
        return None, None
    make = functools.partial(Request, "energy", config.benchmark.energy, options=_loading(config), exclusive="device")
    of_dense = make({"checkpoint": dense})
    if model is dense:
        (energy,) = stages.run_bound([of_dense])
        return energy, energy
    # A pruned model's key says which dense model it came from, so that one doesn't change the artifact's.
    beside = {"dense": config.model} if config.benchmark.energy.paired else {}
    of_model = make({"checkpoint": model}, options=_loading(config) | beside)
    dense_energy, energy = stages.run_bound([of_dense, of_model])
    return energy, dense_energy


def _scratch(stages: Stages) -> dict[str, str]:
    """Where workers of a group write for each other."""
    return {"scratch": f"{stages.store.storage.uri}/_workers"}


def _loading(config: TrialConfig) -> dict[str, Any]:
    return {"dtype": config.model.dtype, "trust_remote_code": config.model.trust_remote_code}


def write_trial(folder: Path, result: TrialResult, storage: Storage) -> Path:
    """The trial's folder in a run: config.yaml, emissions.csv (tasks, then the workload) and, last, result.json."""
    store = Store(storage)
    metered = {made["stage"]: made["key"] for made in result.stages if STAGES[made["stage"]].role == "benchmark"}
    tables = [store.part(Artifact(stage, key), "emissions.csv") for stage, key in metered.items()]
    texts = [table.read_text() for table in tables if table.exists()]
    if country := (result.config["benchmark"].get("energy") or {}).get("country"):
        from greenprune.energy.carbon import in_country

        texts = [in_country(text, country) for text in texts]
    rows = [text.splitlines() for text in texts]
    if rows:
        lines = [*rows[0][:1], *(line for table in rows for line in table[1:])]
        write_atomically(folder / "trials" / result.trial_id / "emissions.csv", "\n".join(lines) + "\n")
    return write_result(folder, result)
