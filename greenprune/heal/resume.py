"""What a killed training run left: its checkpoints, of an adapter or of all weights. The last may be half-written."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

from safetensors import safe_open


def last_whole_checkpoint(work: Path, workers: int = 1) -> Path | None:
    """The newest complete `checkpoint-N` in `work` of so many workers, or None. Later, broken ones are removed."""
    for folder in sorted(work.glob("checkpoint-*"), key=_step, reverse=True):
        if _is_whole(folder, workers):
            return folder
        shutil.rmtree(folder)
    return None


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _is_whole(folder: Path, workers: int) -> bool:
    """A cut-off file shows: JSON doesn't parse, a zip has lost its directory, safetensors its last bytes."""
    try:
        json.loads((folder / "trainer_state.json").read_text())
        zipped = _zipped(folder, workers)
        for file in _weights(folder) if workers == 1 else ():
            with safe_open(file, framework="pt"):
                pass
    except Exception:  # safetensors raises its own kin
        return False
    return all(map(zipfile.is_zipfile, zipped))


def _zipped(folder: Path, workers: int) -> list[Path]:
    """What the Trainer keeps by torch.save; of several workers, what DeepSpeed keeps of each, weights too."""
    if workers == 1:
        return [folder / name for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")]
    kept = folder / (folder / "latest").read_text().strip()
    optimizers, weights = list(kept.glob("*_optim_states.pt")), list(kept.glob("*_model_states.pt"))
    if len(optimizers) != workers or not weights:
        raise FileNotFoundError(kept)
    generators = [folder / f"rng_state_{rank}.pth" for rank in range(workers)]
    return [folder / "scheduler.pt", *generators, *optimizers, *weights]


def _weights(folder: Path) -> list[Path]:
    """An adapter's file, else the model's: one, or those that an index lists."""
    adapter, index = folder / "adapter_model.safetensors", folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in set(json.loads(index.read_text())["weight_map"].values())]
    return [adapter if (folder / "adapter_config.json").exists() else folder / "model.safetensors"]
