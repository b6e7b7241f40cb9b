"""Healing a tiny random Llama on text of a simple pattern: what the tests of heal/ share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast, TrainerCallback

from greenprune.config import LoraHealing
from greenprune.heal.history import History
from greenprune.heal.lora import heal_with_lora
from greenprune.heal.teacher import Teacher, write_record

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


class Counts(torch.nn.Module):
    """A teacher that knows the text: each token's successor has all but a little of the probability."""

    def __init__(self) -> None:
        super().__init__()
        self.config = AutoConfig.for_model("llama", vocab_size=128)
        self.device = torch.device("cpu")

    def get_output_embeddings(self) -> None:
        """None, so that all logits come from one forward."""

    def forward(self, input_ids, use_cache=False):
        wanted = torch.nn.functional.one_hot((input_ids + 1) % 8, 128).float()
        return SimpleNamespace(logits=10 * wanted)


def teacher(folder: Path) -> Teacher:
    """What `Counts` says on the text of these tests."""
    parts = {"train": TRAIN, "validation": VALIDATION}
    folder.mkdir(exist_ok=True)
    write_record(folder, Counts(), parts, top_k=4)
    return Teacher(folder, parts)


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
