"""A random Llama with a tokenizer of bytes, and stand-ins for the wheels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tiny_causal import tiny
from transformers import PreTrainedTokenizerFast

from greenprune.benchmark import tasks
from greenprune.benchmark.engines.transformers import TransformersEngine
from greenprune.benchmark.tasks import TASKS


@pytest.fixture(scope="session")
def llama():
    return tiny(max_position_embeddings=2048)


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level, without merges: a token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<end>", *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocabulary, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<end>", bos_token="<end>")


@pytest.fixture
def checkpoint(llama, tokenizer, tmp_path):
    folder = tmp_path / "checkpoint"
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def engine(llama):
    return TransformersEngine(llama)


def write_arrow(path: Path, rows: list[dict]) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    path.parent.mkdir(parents=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A stand-in for the wheels with a few documents of BoolQ (Arrow), OpenBookQA (requests), IMDB (CSV) and XSum
    (JSON lines), all made up."""
    monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "wheel"
    passages = [
        {
            "passage": f"Stone {n} is {'' if n % 4 else 'not '}grey.",
            "question": f"is stone {n} grey",
            "answer": n % 4 > 0,
        }
        for n in range(20)
    ]
    write_arrow(folder / TASKS["boolq"].member, passages)
    lines = []
    for number in range(8):
        query = f"Question: The number after {number} is\nAnswer:"
        choices = [str(number - 1), str(number + 1), "no number"]
        doc = {"id": f"n{number}", "query": query, "choices": choices, "gold": 1}
        for doc_id in (number, number + 1_000_000):  # with the question, and without it
            lines += [json.dumps({"doc_id": doc_id, "idx": choice, "doc": doc}) for choice in range(3)]
    requests = folder / TASKS["openbookqa"].member
    requests.parent.mkdir(parents=True)
    requests.write_bytes(gzip.compress("\n".join(lines).encode()))
    reviews = folder / TASKS["imdb"].member
    reviews.parent.mkdir(parents=True)
    reviews.write_text('text,label\n"Long, dull.<br /><br />Avoid!",0\n"A ""gem"".",1\nLovely.,1\n')
    articles = folder / TASKS["xsum"].member
    articles.parent.mkdir(parents=True)
    rows = [{"id": str(n), "document": f"Stone {n} fell.", "summary": f"A stone fell, number {n}."} for n in range(4)]
    articles.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setattr(tasks, "wheel_folder", lambda wheel: folder)
    return folder
