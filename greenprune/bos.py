"""Where a text's beginning is marked: with a BOS token before every block, once before the whole text, or nowhere.

A model that was trained with BOS predicts badly without it, and its activations are others than in use: Gemma 3 270M's
perplexity is three times as high. `auto` asks the tokenizer, and is settled before keys are computed, so that a trial's
configuration says what was done.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from greenprune.assets import materialize
from greenprune.config import Bos, ModelConfig, TrialConfig
from greenprune.errors import AssetError, ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Place = Literal["each", "first", "none"]


@dataclass(frozen=True)
class Marking:
    """BOS at its place in blocks of equally many tokens, itself included. token: its id; None for `none`."""

    place: Place = "none"
    token: int | None = None

    def text_tokens(self, blocks: int, seq_len: int) -> int:
        """How many tokens of text so many blocks hold."""
        return blocks * seq_len - {"none": 0, "first": min(1, blocks), "each": blocks}[self.place]

    def whole_blocks(self, tokens: int, seq_len: int) -> int:
        """How many blocks so many tokens of text fill."""
        if self.place == "each":
            return tokens // (seq_len - 1)
        return (tokens + (self.place == "first")) // seq_len

    def cut(self, text: Sequence[int] | torch.Tensor, blocks: int, seq_len: int) -> torch.LongTensor:
        """The first blocks of a text of tokens, LongTensor [blocks, seq_len]; the text must fill them."""
        import torch

        ids = torch.as_tensor(text, dtype=torch.long)[: self.text_tokens(blocks, seq_len)]
        if self.place == "each":
            marks = torch.full((blocks, 1), self.token or 0, dtype=torch.long)
            return torch.cat([marks, ids.view(blocks, seq_len - 1)], dim=1)
        if self.place == "first":
            ids = torch.cat([torch.tensor([self.token], dtype=torch.long), ids])
        return ids.view(blocks, seq_len)


def marking(bos: Bos, tokenizer: PreTrainedTokenizerBase | Any, key: str = "bos") -> Marking:
    """What a setting means for a tokenizer: `auto` is `each` where it starts a text with BOS by itself, else `none`.

    key: the setting's name, for the error. Raises ConfigError where a BOS is asked for and the tokenizer has none.
    """
    if bos == "none":
        return Marking()
    token = tokenizer.bos_token_id
    if bos == "auto":
        starts = token is not None and list(tokenizer("x")["input_ids"])[:1] == [token]
        return Marking("each", token) if starts else Marking()
    if token is None:
        raise ConfigError(f"{key} {bos} needs a tokenizer with a BOS token, got one without; set {key}: none")
    return Marking(bos, token)


def with_bos(config: TrialConfig) -> TrialConfig:
    """The trial with every `bos` as it is for its model's tokenizer, which is read only where one isn't `none`.

    A benchmark without texts has nothing to mark: its auto is none. Raises ConfigError as `marking`, AssetError for a
    model out of reach.
    """
    places: dict[str, Any] = {}
    for name in type(config).model_fields:
        section = getattr(config, name)
        bos: Bos = getattr(section, "bos", "none")
        if bos == "auto" and name == "benchmark" and not section.perplexity:
            places[name] = section.model_copy(update={"bos": "none"})
        elif bos != "none":
            place = marking(bos, _tokenizer(config.model), f"{name}.bos").place
            places[name] = section.model_copy(update={"bos": place})
    return config.model_copy(update=places)


@functools.lru_cache(maxsize=4)
def _tokenizer(model: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    folder = materialize(model, weights=False)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as problem:  # Transformers has no one error for a folder without a tokenizer
        said = (str(problem).strip().splitlines() or [""])[0]
        raise AssetError(
            f"model.id must be a model with its tokenizer, got {folder} ({type(problem).__name__}: {said}); save it "
            "there with tokenizer.save_pretrained, or set bos: none wherever text is read"
        ) from None
