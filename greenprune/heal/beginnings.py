"""A run of more steps goes on from a shorter one, where both have the same beginning (scheduler: wsd).

With warm-up, a constant learning rate, and decay in the last steps alone, two runs that differ in nothing but their
steps are one run until the shorter one's decay begins. Its state there is kept in its artifact; whoever needs more
steps of the same finds it in the store, and what it trains then is the same as from the start.

Source: the schedule, Hu et al. 2024 (MiniCPM), arXiv:2404.06395, section 4.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from greenprune.config import TextHealing
from greenprune.store import Artifact, StageCall, Store

STABLE = "stable"  # the folder of the state before the decay, in the work folder and then in the artifact
log = logging.getLogger("greenprune")


def keeps_stable(config: TextHealing) -> bool:
    """Several workers' parts of a state stay among themselves, and which domains are read depends on all steps."""
    return config.scheduler == "wsd" and config.num_workers == 1 and not config.domains


class KeepStable(TrainerCallback):
    """Has the Trainer save its state after so many steps, and keeps that."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._keep(args, state)  # resumed just there

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save |= state.global_step == self.steps

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._keep(args, state)

    def _keep(self, args: TrainingArguments, state: TrainerState) -> None:
        saved = Path(str(args.output_dir)) / f"checkpoint-{self.steps}"
        if state.global_step == self.steps and saved.exists():
            kept = saved.parent / STABLE / saved.name
            shutil.rmtree(kept.parent, ignore_errors=True)
            shutil.copytree(saved, kept)


def keep_stable(out: Path) -> None:
    """What KeepStable kept in `out/work` becomes part of the artifact in `out`."""
    shutil.rmtree(out / STABLE, ignore_errors=True)
    if (out / "work" / STABLE).exists():
        (out / "work" / STABLE).rename(out / STABLE)


def begin_with_shorter(store: Store, call: StageCall, out: Path) -> dict[str, Any]:
    """Put the state of the longest shorter run into the empty folder `out`, where there is one.

    Gives `begun_with`, its key, for the manifest: its part of the work is in no energy of this artifact.
    """
    if call.section["config"].get("scheduler") != "wsd":
        return {}
    asked, libraries = _beginning(call.asked), call.key.partition("-")[2]
    known = store.manifests(call, lambda key: key.partition("-")[2] == libraries)
    shorter = [made for made in known if _beginning(made) == asked and _steps(made) < _steps(call.asked)]
    for made in sorted(shorter, key=_steps, reverse=True):
        for state in store.part(Artifact(call.stage, made["key"]), STABLE).glob("checkpoint-*"):
            shutil.copytree(state, out / "work" / state.name)
            log.info("heal: goes on from step %s of %s", state.name.rpartition("-")[2], made["key"][:8])
            return {"begun_with": made["key"]}
    return {}


def _steps(asked: Mapping[str, Any]) -> int:
    return asked["section"]["config"]["steps"]


def _beginning(asked: Mapping[str, Any]) -> Any:
    """All but the steps, and but the teacher's record, which is as long as the run."""
    section = dict(asked["section"])
    config = {name: value for name, value in section.pop("config").items() if name != "steps"}
    parents = {name: key for name, key in asked["parents"].items() if name != "teacher"}
    return asked["version"], config, section, parents
