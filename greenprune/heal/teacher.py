"""The teacher's record: what the dense model predicts at every position of the healing text, once for all students.

Each position has the likeliest tokens with their log-probabilities at the temperature: ids in two bytes where the
vocabulary allows it, else four; log-probabilities in fp16 (of numbers around -8 it is exact to 0.004, bf16 to 0.03).
Shards of safetensors are written one after the other and only one is in memory; a second attempt goes on behind the
last whole one. Readers map shards and copy one block at a time, so a student may ask in any order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from greenprune.config import Teaching
from greenprune.errors import GreenpruneError
from greenprune.heal.beside import DenseBeside
from greenprune.heal.blocks import healing_blocks
from greenprune.heal.distillation import likeliest
from greenprune.logs import Seldom
from greenprune.models import load_checkpoint, load_tokenizer
from greenprune.models.loss import mean_loss, next_token_logits
from greenprune.storage import write_atomically

SHARD_BYTES = 64 * 2**20
POSITIONS_AT_ONCE = 2048  # of a forward
FACTS = "teacher.json"
log = logging.getLogger("greenprune")


@dataclass(frozen=True)
class RecordFacts:
    """What teacher.json holds. blocks, tokens_sha256: of each part, train and validation, how many blocks and their
    content. positions: of a block: those that predict one of its tokens. bytes_per_token: of the shards' tensors.
    losses: the model's cross-entropy on the validation blocks of each domain, in nats a token."""

    top_k: int
    temperature: float
    seq_len: int
    positions: int
    blocks_per_shard: int
    blocks: dict[str, int]
    tokens_sha256: dict[str, str]
    bytes_per_token: float
    losses: dict[str, float] = field(default_factory=dict)


def teach_stage(
    out: Path, *, checkpoint: Path, config: Teaching, dtype: str, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Write the record of the model in `checkpoint` over its healing text to `out`; gives its size for the manifest.

    Raises AssetError where the text is out of reach or too short.
    """
    tokenizer = load_tokenizer(checkpoint)
    train, validation = healing_blocks(config, tokenizer)
    model = load_checkpoint(checkpoint, dtype, trust_remote_code=trust_remote_code)
    parts = {"train": train, "validation": validation}
    by_domain = zip(config.domains, validation.chunk(max(1, len(config.domains))), strict=False)
    losses = {name: mean_loss(model, blocks) for name, blocks in by_domain}
    facts = write_record(out, model, parts, config.top_k, config.temperature, losses)
    tokens = (len(train) + len(validation)) * config.seq_len
    return {"bytes_per_token": facts.bytes_per_token, "tokens": tokens}


def write_record(
    out: Path,
    model: PreTrainedModel,
    parts: dict[str, Tensor],
    top_k: int,
    temperature: float = 1.0,
    losses: dict[str, float] | None = None,
) -> RecordFacts:
    """Record the model's predictions on the blocks [n, seq_len] of each part; shards that are there stay.

    losses: of the model on the validation blocks, by domain.
    """
    vocabulary = model.config.get_text_config().vocab_size
    kept = min(top_k, vocabulary)
    id_type = torch.uint16 if vocabulary <= 2**16 else torch.int32
    seq_len = next(iter(parts.values())).shape[1]
    bytes_per_block = (seq_len - 1) * kept * (id_type.itemsize + torch.float16.itemsize)
    per_shard = max(1, SHARD_BYTES // bytes_per_block)
    lines = Seldom()
    for part, blocks in parts.items():
        for number, shard in enumerate(blocks.split(per_shard) if len(blocks) else ()):
            path = out / _shard_name(part, number)
            if not path.exists():
                _write_shard(path, model, shard, kept, temperature, id_type)
            if lines.due():
                log.info("teach: %d of %d blocks (%s)", number * per_shard + len(shard), len(blocks), part)
    facts = RecordFacts(
        top_k=kept,
        temperature=temperature,
        seq_len=seq_len,
        positions=seq_len - 1,
        blocks_per_shard=per_shard,
        blocks={part: len(blocks) for part, blocks in parts.items()},
        tokens_sha256={part: _digest(blocks) for part, blocks in parts.items()},
        bytes_per_token=bytes_per_block / seq_len,
        losses=losses or {},
    )
    write_atomically(out / FACTS, json.dumps(asdict(facts)))
    return facts


def _shard_name(part: str, number: int) -> str:
    return f"{part}-{number:05d}.safetensors"


def _digest(blocks: Tensor) -> str:
    return hashlib.sha256(blocks.contiguous().numpy().tobytes()).hexdigest()


@torch.inference_mode()
def _write_shard(
    path: Path, model: PreTrainedModel, blocks: Tensor, top_k: int, temperature: float, id_type: torch.dtype
) -> None:
    """Both tensors [n, positions, top_k]; the file is there whole or not at all."""
    ids, log_probs = [], []
    for batch in blocks.split(max(1, POSITIONS_AT_ONCE // blocks.shape[1])):
        pieces = [likeliest(logits, top_k, temperature) for logits in next_token_logits(model, batch.to(model.device))]
        ids.append(torch.cat([piece[0] for piece in pieces], dim=1).to(id_type).cpu())
        log_probs.append(torch.cat([piece[1] for piece in pieces], dim=1).to(torch.float16).cpu())
    partial = path.with_suffix(".writing")
    save_file({"ids": torch.cat(ids), "log_probs": torch.cat(log_probs)}, partial)
    os.replace(partial, path)


class Teacher:
    """A record that is read, and the dense model itself where it is beside the student.

    Raises GreenpruneError where the record is of other blocks than those that are healed on.
    """

    def __init__(self, folder: Path, parts: dict[str, Tensor], beside: DenseBeside | None = None) -> None:
        self.folder, self.beside = folder, beside
        self.facts = RecordFacts(**json.loads((folder / FACTS).read_text()))
        for part, blocks in parts.items():
            if self.facts.blocks[part] and self.facts.tokens_sha256[part] != _digest(blocks):
                raise GreenpruneError(
                    f"heal: the teacher's record must be of the blocks that are healed on, got other {part} blocks in "
                    f"{folder}: the text or its tokenizer has changed since; move that folder aside and run again"
                )

    def part(self, name: str) -> TeacherRows | None:
        """What it said on one part's blocks; None where it was not asked about them."""
        return TeacherRows(self, name) if self.facts.blocks[name] else None


class TeacherRows:
    """What the teacher said on blocks, by the block's number: ids long, log_probs float32, both [positions, top_k]."""

    def __init__(self, teacher: Teacher, part: str) -> None:
        self.teacher, self.part = teacher, part

    def __len__(self) -> int:
        return self.teacher.facts.blocks[self.part]

    def __getitem__(self, block: int) -> tuple[Tensor, Tensor]:
        number, row = divmod(block, self.teacher.facts.blocks_per_shard)
        shard = self._shards[number]
        ids, log_probs = (shard.get_slice(name)[row : row + 1][0] for name in ("ids", "log_probs"))
        return ids.long(), log_probs.float()

    @cached_property
    def _shards(self) -> list[Any]:
        """Opened, which maps them and reads nothing."""
        return list(self._open())

    def _open(self) -> Iterator[Any]:
        for number in range(-(-len(self) // self.teacher.facts.blocks_per_shard)):
            yield safe_open(self.teacher.folder / _shard_name(self.part, number), framework="pt")
