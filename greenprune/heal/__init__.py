"""Train a pruned model back on blocks of text; the result is an ordinary checkpoint.

A healer is one file here, one entry of HEALERS in config/heal.py, and one row of tests/heal/test_contract.py.

lora.py trains adapters, merge.py merges them, targets.py names the projections that get one, quantised.py loads the
4-bit base; full.py trains all weights. For any healer: blocks.py makes the data, teacher.py records what the dense
model says on it, beside.py has it beside the student, training.py trains, with the losses of distillation.py,
domains.py says which of several texts is read, progress.py watches the loss, history.py keeps it, resume.py finds what
a former attempt left, beginnings.py what a shorter run did already, sharded.py is for several workers, quiet.py hushes
the libraries.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from greenprune.config import TextHealing
    from greenprune.heal.history import History
    from greenprune.heal.teacher import Teacher

__all__ = ["HealingFunction", "heal_here", "heal_stage"]


class HealingFunction(Protocol):
    """What an entry of HEALERS names."""

    def __call__(
        self,
        checkpoint: Path,
        train: torch.LongTensor,
        validation: torch.LongTensor,
        config: Any,
        work: Path,
        dtype: str,
        trust_remote_code: bool,
        *,
        teacher: Teacher | None = None,
    ) -> tuple[PreTrainedModel, History] | None:
        """Train the model in `checkpoint` on `train` [n, seq_len], which may be fewer blocks than the steps need.

        `work` may hold what a killed attempt left; `config` is the healer's own section. Returns the healed model in
        evaluation mode and in `dtype`, loadable as the checkpoint was, and the history with the losses over
        `validation` [m, seq_len]. teacher: the dense model's record on both, where `config.teaching()` asks for one.
        The same seed gives the same model. In a worker that isn't the first of its group (training.py: `leads`), None.
        Raises HealingDiverged.
        """


def heal_stage(
    out: Path,
    *,
    checkpoint: Path,
    config: TextHealing,
    dtype: str,
    trust_remote_code: bool = False,
    teacher: Path | None = None,
    dense: Path | None = None,
    scratch: str = "",
) -> dict[str, Any] | None:
    """Heal the model in `checkpoint`; write `out/checkpoint/` (with its tokenizer) and `out/history.json`.

    `dtype` is that of the checkpoint and of the result; `teacher` the folder of the dense model's record (teacher.py),
    where config.teaching() asks for one, `dense` the dense model where config.wants_dense(); `checkpoint` is in the
    folder that the prune stage left then. Training resumes from what a former attempt left in `out/work`, which is
    removed at the end. history.json: see `history.History`. Every healer so far trains on text, so `config` has the
    fields of TextHealing. Where that asks for several workers, scratch is a folder of the storage that all of them see,
    and the energy of all is given, as far as it was metered.

    Raises AssetError (data out of reach or too short), ConfigError (unknown target module, a mask that several workers
    would fill), HealingDiverged.
    """
    from greenprune.heal.beginnings import keep_stable
    from greenprune.heal.blocks import healing_blocks
    from greenprune.models import load_tokenizer

    shutil.rmtree(out / "checkpoint", ignore_errors=True)  # a former attempt's, perhaps half-written
    train, validation = healing_blocks(config, load_tokenizer(checkpoint))
    given: dict[str, Any] = {"out": out, "checkpoint": checkpoint, "config": config, "teacher": teacher}
    given |= {"dense": dense, "dtype": dtype, "trust_remote_code": trust_remote_code}
    made = None
    if config.num_workers == 1:
        heal_here(train=train, validation=validation, **given)
    else:
        from greenprune.cluster.workers import on_workers
        from greenprune.heal.sharded import heal_on_worker

        blocks = {"train": train.numpy(), "validation": validation.numpy()}
        made = on_workers(heal_on_worker, {**given, **blocks}, "heal", config.num_workers, scratch)
    keep_stable(out)
    shutil.rmtree(out / "work", ignore_errors=True)
    return made


def heal_here(
    out: Path,
    checkpoint: Path,
    train: torch.Tensor,
    validation: torch.Tensor,
    config: TextHealing,
    dtype: str,
    trust_remote_code: bool,
    teacher: Path | None,
    dense: Path | None,
) -> None:
    """`heal_stage` in this process, which may be one of several workers: the first of them writes."""
    from greenprune._callable import function_named
    from greenprune.config import HEALERS
    from greenprune.heal.beside import DenseBeside
    from greenprune.heal.teacher import Teacher
    from greenprune.models import load_tokenizer, save_checkpoint
    from greenprune.storage import write_atomically

    function = HEALERS[config.method].function
    assert function is not None, f"heal.method {config.method} trains nothing, so it is no stage"
    heal: HealingFunction = function_named(function)
    more = {}
    if teacher:
        beside = DenseBeside.of(dense, checkpoint, dtype, trust_remote_code) if dense else None
        more["teacher"] = Teacher(teacher, {"train": train, "validation": validation}, beside)
    healed = heal(checkpoint, train, validation, config, out / "work", dtype, trust_remote_code, **more)
    if healed is not None:
        model, history = healed
        save_checkpoint(model, load_tokenizer(checkpoint), out / "checkpoint")
        write_atomically(out / "history.json", json.dumps(history.to_json(), allow_nan=False))
