"""Train a pruned model back: LoRA or QLoRA on blocks of text, merged into an ordinary checkpoint.

lora.py trains, merge.py merges, blocks.py makes the data, targets.py names the adapted projections, quantised.py
loads the 4-bit base, progress.py watches the loss, resume.py finds what a former attempt left.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenprune.config import LoraHealing

__all__ = ["heal_stage"]


def heal_stage(
    out: Path, *, checkpoint: Path, config: LoraHealing, dtype: str, trust_remote_code: bool = False
) -> None:
    """Heal the model in `checkpoint`; write `out/checkpoint/` (merged, tokenizer) and `out/history.json`.

    `dtype` is that of the checkpoint and of the result. Training resumes from the adapter checkpoints that a
    former attempt left in `out/work`, which is removed at the end. history.json: see `lora.heal`.

    Raises AssetError (data out of reach or too short), ConfigError (unknown target module), HealingDiverged.
    """
    from greenprune.heal.blocks import healing_blocks
    from greenprune.heal.lora import heal
    from greenprune.models import load_tokenizer, save_checkpoint
    from greenprune.storage import write_atomically

    shutil.rmtree(out / "checkpoint", ignore_errors=True)  # a former attempt's, perhaps half-written
    tokenizer = load_tokenizer(checkpoint)
    train, validation = healing_blocks(config, tokenizer)
    model, history = heal(checkpoint, train, validation, config, out / "work", dtype, trust_remote_code)
    save_checkpoint(model, tokenizer, out / "checkpoint")
    write_atomically(out / "history.json", json.dumps(history, allow_nan=False))
    shutil.rmtree(out / "work")
