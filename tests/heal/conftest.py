"""A tiny checkpoint, and what an undisturbed healing of it gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from healing import TRAIN, VALIDATION, config, tiny_config
from transformers import AutoModelForCausalLM

from greenprune.heal.lora import heal_with_lora


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny operations on several threads cost a hundredfold when something else runs on the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        tiny_config(intermediate_size=128, num_key_value_heads=2, tie_word_embeddings=True)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def healed(checkpoint, tmp_path_factory):
    """An undisturbed run: merged model and history."""
    return heal_with_lora(checkpoint, TRAIN, VALIDATION, config(), tmp_path_factory.mktemp("work"))
