"""lm-eval's questions to an engine whose model isn't a module of torch: llama.cpp's, of GGUF files.

Questions are tokenised, cut and scored by HFLM's own code, so that answers differ from Transformers' by the logits
alone. HFLM gets the model's shapes without weights; its forwards go to the engine, a sequence at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from greenprune.engines.llama_cpp import LlamaCppEngine
from greenprune.errors import ModelError
from greenprune.models.sizes import on_meta


class LogitsLM(HFLM):
    """max_length: tokens of the longest input."""

    def __init__(self, engine: LlamaCppEngine, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        shapes = on_meta(engine.checkpoint, "auto", engine.trust_remote_code)
        super().__init__(pretrained=shapes, tokenizer=tokenizer, batch_size=1, max_length=max_length)
        self._device = torch.device("cpu")
        self.engine = engine

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        """Logits [batch, tokens, vocabulary] of inps [batch, tokens]. Raises ModelError where one isn't finite."""
        logits = torch.stack([torch.from_numpy(self.engine.logits(row)) for row in inps.tolist()])
        if not logits.isfinite().all():
            raise ModelError("logits must be finite to be scored, got some that aren't; use another quantize.type")
        return logits

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        """The context [1, tokens] and the greedy reply to it, up to `stop` or max_length tokens in all."""
        if options.get("do_sample"):
            raise ModelError("answers must be greedy where llama.cpp gives them, got do_sample; leave the task out")
        (tokens,) = context.tolist()
        given = len(tokens)
        exact = self.engine.dtype == "float32"
        with self.engine.model.context(1, max_length, exact=exact) as cache:
            *_, last = cache.logits(tokens)
            while len(tokens) < max_length:
                tokens.append(int(last[-1].argmax()))
                said = self.tokenizer.decode(tokens[given:])
                if tokens[-1] == self.eot_token_id or any(end in said for end in stop):
                    break
                cache.decode([(tokens[-1], len(tokens) - 1, 0, True)])
                last = cache.logits_at(0)[None].copy()
        return torch.tensor([tokens])
