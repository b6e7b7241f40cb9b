"""Healing a tiny random Llama on text of a simple pattern: what the tests of heal/ share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast, TrainerCallback

from greenprune.config import LoraHealing
from greenprune.heal.history import History
from greenprune.heal.lora import heal_with_lora

SEQ_LEN = 16


def config(**changes) -> LoraHealing:
    quick = {
        "steps": 8,
        "seq_len": SEQ_LEN,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "learning_rate": 2e-2,
        "warmup_steps": 2,
        "validation_samples": 6,
        "eval_every": 3,
        "checkpoint_every": 3,
    }
    return LoraHealing(**(quick | changes))


def counting(rows: int, seed: int) -> torch.LongTensor:
    """Rows that count upwards modulo 8 from random starts, LongTensor [rows, SEQ_LEN]."""
    starts = torch.randint(0, 8, (rows, 1), generator=torch.Generator().manual_seed(seed))
    return (torch.arange(SEQ_LEN)[None] + starts) % 8


TRAIN, VALIDATION = counting(20, seed=1), counting(6, seed=2)


def tiny_config(model_type: str = "llama", **fields):
    common = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return AutoConfig.for_model(model_type, **(common | fields))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(VALIDATION).logits


def without_times(history: History) -> History:
    return replace(history, seconds=0.0)


class Interrupt(TrainerCallback):
    """Ends the run at a step, as a crash would; counts the steps it saw."""

    def __init__(self, step: int = -1) -> None:
        self.step, self.seen = step, []

    def on_step_end(self, args, state, control, **_):
        self.seen.append(state.global_step)
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(checkpoint: Path, work: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        heal_with_lora(checkpoint, TRAIN, VALIDATION, config(), work, callbacks=(Interrupt(step),))


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros_of(model) -> dict[str, torch.Tensor]:
    return {name: weight == 0 for name, weight in model.named_parameters() if "_proj" in name}


def text_file(folder: Path, documents: int) -> str:
    path = folder / "text.jsonl"
    texts = (f"{chr(65 + i % 26)}{i} counts its own number. " * 4 for i in range(documents))
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


def toy_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    letters = {chr(i): i for i in range(127)} | {"<unk>": 127}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
