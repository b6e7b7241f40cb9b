"""A checkpoint's files, read and written in parts, so that no more than a part of a model is in memory at once."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from greenprune.models.in_files import put_away
from greenprune.storage import cache_dir

PART_BYTES = 2 << 30


def weight_bytes(folder: Path, dtype: torch.dtype | None = None) -> int:
    """What the weights of a checkpoint take in a dtype (default: their own); 0 where it holds no safetensors."""
    return sum(weight.numel() * _target(weight, dtype).itemsize for weight in mapped_weights(folder).values())


def mapped_weights(folder: Path) -> dict[str, Tensor]:
    """The weights that Transformers would load, mapped: those of the index, where others lie beside them."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    files = {SAFE_WEIGHTS_NAME} if (folder / SAFE_WEIGHTS_NAME).exists() else set()
    if not files and index.exists():
        files = set(json.loads(index.read_text())["weight_map"].values())
    return {name: weight for file in sorted(files) for name, weight in load_file(folder / file).items()}


def _target(weight: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and weight.is_floating_point() else weight.dtype


@contextmanager
def in_dtype(folder: Path, dtype: torch.dtype | None) -> Iterator[Path]:
    """A checkpoint with its floating-point weights in a dtype: `folder` itself where they are, else a copy that goes
    when the `with` ends. What is mapped from the copy can be read on.
    """
    mapped = mapped_weights(folder)
    if all(_target(weight, dtype) == weight.dtype for weight in mapped.values()):
        yield folder
        return
    (cache_dir() / "weights").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir() / "weights") as place:
        for path in folder.iterdir():
            if path.is_file() and ".safetensors" not in path.name:
                shutil.copyfile(path, Path(place) / path.name)
        split = split_torch_state_dict_into_shards(
            {name: weight.to(device="meta", dtype=_target(weight, dtype)) for name, weight in mapped.items()},
            max_shard_size=PART_BYTES,
        )
        for file, names in split.filename_to_tensors.items():
            part = {name: mapped[name].to(_target(mapped[name], dtype)) for name in names}
            save_file(part, Path(place) / file, metadata={"format": "pt"})
            del part
        if split.is_sharded:
            _write_index(Path(place), split.tensor_to_filename)
        yield Path(place)


def save_in_parts(model: PreTrainedModel, folder: Path) -> None:
    """`model.save_pretrained(folder)`, in files of at most PART_BYTES, each put away before the next is written."""
    weights = model.state_dict(keep_vars=True)
    split = split_torch_state_dict_into_shards(weights, max_shard_size=PART_BYTES)
    if not split.is_sharded:
        model.save_pretrained(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    for file, names in split.filename_to_tensors.items():
        part = {name: weights[name] for name in names}
        with tempfile.TemporaryDirectory(dir=folder) as place:
            # Transformers gives the weights the names that they have in files, and writes the rest of a checkpoint.
            model.save_pretrained(place, state_dict={name: weight.detach() for name, weight in part.items()})
            places |= dict.fromkeys(load_file(Path(place) / SAFE_WEIGHTS_NAME), file)
            (Path(place) / SAFE_WEIGHTS_NAME).rename(Path(place) / file)
            for path in Path(place).iterdir():
                path.replace(folder / path.name)
        put_away(weight for weight in part.values() if isinstance(weight, torch.nn.Parameter))
    _write_index(folder, places)


def _write_index(folder: Path, places: dict[str, str]) -> None:
    """places: the file of each weight."""
    total = sum(path.stat().st_size for path in map(folder.joinpath, set(places.values())))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
