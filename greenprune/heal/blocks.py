"""Blocks of tokens to train on and to validate with.

Training text is tokenised document by document, not as one string as for calibration: a long healing run
takes hundreds of megabytes of text, which a tokenizer can't swallow in one piece.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from greenprune.bos import marking
from greenprune.config import Bos, Teaching, TextHealing
from greenprune.data import documents, shuffled, split_documents, token_blocks
from greenprune.errors import AssetError

SECTION_CHARACTERS = 4_000  # a plain text file counts as documents of about this length
DOCUMENTS_AT_ONCE = 64
MOST_OF_A_DOMAIN = 2  # times its equal share: what it is asked for more is seen again
log = logging.getLogger("greenprune")


def healing_blocks(config: TextHealing | Teaching, tokenizer: Any) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Training blocks [at most config.blocks, seq_len] and validation blocks [validation_samples, seq_len].

    No document gives both. The validation blocks don't depend on the seed, so that runs can be compared.
    Of several domains the blocks stand one domain behind the other: of each as many validation blocks, and as many
    training blocks, those of a short text repeated.
    Raises AssetError when a text is too short for the validation blocks and one training block.
    """
    parts = [_blocks_of(dataset, config, tokenizer) for dataset in config.texts()]
    train, validation = (torch.cat(blocks) for blocks in zip(*parts, strict=True))
    return train, validation


def _blocks_of(dataset: str, config: TextHealing | Teaching, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The training and the validation blocks of one text."""
    validation = token_blocks(
        _texts(dataset, "validation", tokenizer), tokenizer, config.seq_len, config.validation_samples, bos=config.bos
    )
    wanted = min(config.blocks, math.ceil(MOST_OF_A_DOMAIN * config.blocks / len(config.texts())))
    texts = shuffled(_texts(dataset, "train", tokenizer), config.seed)
    train = _training_blocks(texts, tokenizer, config.seq_len, wanted, config.bos)
    if len(train) < wanted:
        log.info("heal: %s gives %d blocks, each is seen %.1f times", dataset, len(train), wanted / len(train))
        if config.domains:
            train = train.repeat(math.ceil(wanted / len(train)), 1)[:wanted]
    return train, validation


def _texts(dataset: str, part: str, tokenizer: Any) -> Iterator[str]:
    """One side's documents, in an order that doesn't depend on the seed."""
    texts: Iterable[str] = documents(dataset, tokenizer=tokenizer)
    if dataset.endswith(".txt"):
        texts = (section for text in texts for section in _sections(text))
    return split_documents(shuffled(texts, seed=0), part)


def _sections(text: str) -> Iterator[str]:
    """Runs of whole paragraphs."""
    section: list[str] = []
    for paragraph in text.split("\n\n"):
        section.append(paragraph)
        if sum(map(len, section)) >= SECTION_CHARACTERS:
            yield "\n\n".join(section)
            section = []
    if section:
        yield "\n\n".join(section)


def _training_blocks(texts: Iterable[str], tokenizer: Any, seq_len: int, at_most: int, bos: Bos) -> torch.LongTensor:
    """Consecutive blocks of the joined documents, LongTensor [1..at_most, seq_len]; none where none is asked for."""
    if not at_most:
        return torch.empty(0, seq_len, dtype=torch.long)
    stream, chunks, total, mark = iter(texts), [], 0, marking(bos, tokenizer)
    while total < mark.text_tokens(at_most, seq_len) and (batch := list(islice(stream, DOCUMENTS_AT_ONCE))):
        ids = tokenizer([f"{text}\n\n" for text in batch], add_special_tokens=False, verbose=False)["input_ids"]
        chunks.append(torch.tensor([token for document in ids for token in document], dtype=torch.long))
        total += len(chunks[-1])
    blocks = min(at_most, mark.whole_blocks(total, seq_len))
    if not blocks:
        raise AssetError(
            f"the text must give a training block of {seq_len} tokens, got {total} tokens; "
            "lower heal.seq_len or heal.validation_samples, or use a longer text"
        )
    return mark.cut(torch.cat(chunks), blocks, seq_len)
