"""What all rows of a run must share though its configuration only names it, recorded in the run's environment.json.

Rows of one table are compared with each other: a run isn't gone on with once a text file, the model or a library that
decides numbers has changed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from greenprune import assets
from greenprune.config import (
    FILES_AT,
    MODEL,
    STAGES,
    ModelConfig,
    absolute,
    is_commit,
    named_in,
    refuse_missing_engine,
    split_revision,
)
from greenprune.config.dependencies import contents, minor_versions
from greenprune.decided import decided
from greenprune.errors import SweepError
from greenprune.experiment import Experiment, parse_experiment
from greenprune.quantize.toolchain import check_installed
from greenprune.results import TrialResult
from greenprune.sweep.run_folder import REMEDY, RunFolder
from greenprune.trial import check_benchmark

log = logging.getLogger("greenprune")
FILE = "environment.json"
RECORD = "depends_on"  # its key in there


def settled(
    experiment: Experiment, run: RunFolder, known: Sequence[TrialResult], fresh: bool, any_versions: bool
) -> tuple[Experiment, dict[str, Any]]:
    """The experiment with all fixed that its run fixes once, checked against the model's own config and against the run
    that is gone on with (`known`: its rows); and the record for the run's environment.json.

    Raises ConfigError or SweepError before anything is touched.
    """
    former = None if fresh else run.configuration()
    data = decided(absolute(experiment.to_dict(), Path.cwd()), former)
    assets.model_facts(ModelConfig.model_validate(data["model"]), online=True)
    fixed = parse_experiment(data, source=f"experiment {experiment.name}")
    check_benchmark(fixed.trial())
    space = fixed.sweep.space if fixed.sweep else {}
    for key, refuse in (("benchmark.energy.engine", refuse_missing_engine), ("quantize.method", check_installed)):
        for name in space[key].ends() if key in space else ():
            refuse(name)
    record = provenance(experiment, fixed)
    if not fresh:
        run.check_configuration(fixed, list(known))
    return fixed, check_provenance(run, record, any_versions) if known and not fresh else record


def provenance(asked: Experiment, fixed: Experiment) -> dict[str, dict[str, Any]]:
    """What is recorded: the models' content, the text files' content, major and minor versions of libraries, and the
    branches that were asked for where commits were found.
    """
    libraries = {name for stage in STAGES.values() for name in stage.libraries}
    return {
        "model": _models(fixed),
        "text": contents(fixed.to_dict()),
        "revision": _branches(asked),
        "library": minor_versions(sorted(libraries)),
    }


def check_provenance(run: RunFolder, now: Mapping[str, Mapping[str, Any]], any_versions: bool) -> dict[str, Any]:
    """Refuse to go on with rows that were made from something else. Gives what to record for the run from now on.

    Raises SweepError that names what changed. A run of before this was recorded is gone on with, with a warning.
    """
    before = _recorded(run)
    if before is None:
        log.warning("%s doesn't say what its rows depend on: going on with the texts and libraries of now", run.path)
        return dict(now)
    for kind, found in now.items():
        known = before.get(kind, {})
        changed = [name for name in known if name in found and known[name] != found[name]]
        if kind == "library":
            changed = (
                [] if any_versions else [name for name in {**known, **found} if known.get(name) != found.get(name)]
            )
        if changed:
            was, got = (", ".join(f"{name} {_short(of.get(name))}" for name in changed) for of in (known, found))
            also = ", or let them share it with --any-versions" if kind == "library" else ""
            raise SweepError(
                f"the rows of {run.path} must share one {kind} to be compared, got {got}, and {was} in the rows that "
                f"are there; {REMEDY}{also}"
            )
    return {**now, "revision": {**now["revision"], **before.get("revision", {})}}


def _recorded(run: RunFolder) -> dict[str, Any] | None:
    if not run.storage.pull(f"{run.name}/{FILE}"):
        return None
    try:
        record = json.loads((run.path / FILE).read_text()).get(RECORD)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _models(experiment: Experiment) -> dict[str, str]:
    """The fingerprint of the model, and of each among which the space chooses."""
    names = {experiment.model.id: experiment.model.revision}
    dimension = experiment.sweep.space.get(MODEL) if experiment.sweep else None
    for choice in (dimension.choice or []) if dimension else []:
        chosen = ModelConfig(id=choice)
        names[chosen.id] = chosen.revision
    made = (experiment.model.model_copy(update={"id": name, "revision": revision}) for name, revision in names.items())
    return {model.id: assets.fingerprint(model) for model in made}


def _branches(experiment: Experiment) -> dict[str, str]:
    """The revision of each model and text that isn't a commit, as the user wrote it."""
    found: dict[str, str] = {}

    def note(key: str, name: str) -> str:
        bare, revision = split_revision(name)
        if key not in FILES_AT and not is_commit(revision):
            found[f"{key} {bare}"] = revision or "main"
        return name

    data = experiment.to_dict()
    named_in(data | {"model": {}}, note)
    if not is_commit(experiment.model.revision):
        found[f"{MODEL} {experiment.model.id}"] = experiment.model.revision or "main"
    return found


def _short(value: Any) -> str:
    """A hash by its beginning; versions and branches as they are."""
    content = re.search(r"[0-9a-f]{24,}", str(value))
    return content[0][:12] if content else str(value)
