"""llama.cpp: many sequences in one batch, requests coming and going as they do in its server.

A checkpoint is written as GGUF first (gguf_file.py), unless it is one or holds one. Keys and values are kept in float32
where `model.dtype` says so, without flash attention, else in float16, with it, which are llama.cpp's own choices.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from greenprune.engines.perplexity import LARGEST_LOSS, check_segments
from greenprune.engines.served import ServingEngine

TOKENS_AT_ONCE = 512  # tokens in a batch
ROUNDED_TO = 256  # llama.cpp's contexts
LOG_LEVEL_ERROR = 4  # ggml.h


class LlamaCppEngine(ServingEngine):
    """A checkpoint, or a GGUF file, as llama.cpp runs it: served from a process, scored in this one."""

    maker = "greenprune.engines.llama_cpp:LlamaStepper"

    def __init__(self, checkpoint: Path, dtype: str, trust_remote_code: bool) -> None:
        super().__init__(checkpoint, dtype, trust_remote_code)
        self._written: tempfile.TemporaryDirectory[str] | None = None

    @functools.cached_property
    def file(self) -> Path:
        """The GGUF: the checkpoint itself, the one that it holds, or one that is written now."""
        if self.checkpoint.is_file():
            return self.checkpoint
        if held := sorted(self.checkpoint.glob("*.gguf")):
            return held[0]
        from greenprune.engines.gguf_file import write_gguf

        self._written = tempfile.TemporaryDirectory(prefix="greenprune-gguf-")
        out = Path(self._written.name) / "model.gguf"
        write_gguf(self.checkpoint, out, "f32" if self.dtype == "float32" else "f16")
        return out

    @functools.cached_property
    def model(self) -> LlamaModel:
        return LlamaModel(str(self.file), torch.get_num_threads())

    def uses_gpu(self) -> bool:
        import llama_cpp

        return bool(llama_cpp.llama_supports_gpu_offload()) and torch.cuda.is_available()

    def check_length(self, tokens: int, what: str) -> None:
        if self.checkpoint.is_dir():
            super().check_length(tokens, what)

    def settings(self, sequences: int, tokens: int) -> dict[str, Any]:
        threads, exact = torch.get_num_threads(), self.dtype == "float32"
        return {"file": str(self.file), "threads": threads, "sequences": sequences, "tokens": tokens, "exact": exact}

    @property
    def parameters(self) -> int:
        return self.model.parameters

    @property
    def layers(self) -> int:
        return self.model.layers

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Of each position of one sequence: float32 [tokens, vocabulary]."""
        with self.model.context(1, len(tokens), exact=self.dtype == "float32") as context:
            return np.concatenate(list(context.logits(tokens)))

    def perplexity(self, segments: torch.Tensor) -> float:
        """As the engine of Transformers takes it (perplexity.py), of what llama.cpp computes."""
        check_segments(segments)
        losses: list[float] = []
        with self.model.context(1, segments.shape[1], exact=self.dtype == "float32") as context:
            for row in segments.tolist():
                done = 0
                for part in context.logits(row):
                    following = torch.tensor(row[done + 1 : done + 1 + len(part)])
                    scores = torch.from_numpy(part)[: len(following)]
                    losses.append(torch.nn.functional.cross_entropy(scores, following, reduction="sum").item())
                    done += len(part)
        loss = sum(losses) / (segments.shape[0] * (segments.shape[1] - 1))
        return math.exp(loss) if loss < LARGEST_LOSS else math.inf

    def close(self) -> None:
        super().close()
        if "model" in self.__dict__:
            self.__dict__.pop("model").close()
        if self._written is not None:
            self._written.cleanup()
            self.__dict__.pop("file", None)
            self._written = None


class LlamaModel:
    """A GGUF's weights in this process."""

    def __init__(self, file: str, threads: int) -> None:
        import llama_cpp

        self.library, self.threads = llama_cpp, threads
        _silence()
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.handle = llama_cpp.llama_model_load_from_file(file.encode(), params)
        if not self.handle:
            raise ValueError(f"llama.cpp must know the model of a GGUF file, got {file}, which it can't load")
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle)))
        self.parameters = int(llama_cpp.llama_model_n_params(self.handle))
        self.layers = int(llama_cpp.llama_model_n_layer(self.handle))

    def context(self, sequences: int, tokens: int, exact: bool) -> LlamaContext:
        return LlamaContext(self, sequences, tokens, exact)

    def close(self) -> None:
        self.library.llama_model_free(self.handle)


class LlamaContext:
    """Room for so many sequences of so many tokens each. exact: all in float32."""

    def __init__(self, model: LlamaModel, sequences: int, tokens: int, exact: bool) -> None:
        library = self.library = model.library
        self.model = model
        params = library.llama_context_default_params()
        params.n_ctx = sequences * (tokens + -tokens % ROUNDED_TO)
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = max(TOKENS_AT_ONCE, sequences)
        params.n_threads = params.n_threads_batch = model.threads
        if exact:
            params.type_k = params.type_v = library.GGML_TYPE_F32
            params.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16
        self.handle = library.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise MemoryError(f"llama.cpp: out of memory for {sequences} sequences of {tokens} tokens")
        self.memory = library.llama_get_memory(self.handle)
        self.room = int(params.n_batch)
        self.batch = library.llama_batch_init(self.room, 0, 1)

    def __enter__(self) -> LlamaContext:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> None:
        """One forward of (token, position, sequence, whether its logits are wanted), at most `room` of them."""
        self.batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            self.batch.logits[i] = wanted
        if code := self.library.llama_decode(self.handle, self.batch):
            raise RuntimeError(f"llama.cpp's decode failed with code {code}")

    def logits_at(self, place: int) -> np.ndarray:
        """Those of a token of the last batch, float32 [vocabulary]; a view until the next one."""
        row = self.library.llama_get_logits_ith(self.handle, place)
        return np.ctypeslib.as_array(row, shape=(self.model.vocabulary,))

    def forget(self, sequence: int) -> None:
        self.library.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Those of one sequence of its own, in parts: float32 [at most `room`, vocabulary]."""
        self.forget(0)
        for start in range(0, len(tokens), self.room):
            part = tokens[start : start + self.room]
            self.decode([(token, start + i, 0, True) for i, token in enumerate(part)])
            rows = self.library.llama_get_logits(self.handle)
            yield np.ctypeslib.as_array(rows, shape=(len(part), self.model.vocabulary)).copy()

    def close(self) -> None:
        self.library.llama_batch_free(self.batch)
        self.library.llama_free(self.handle)


@dataclass
class _Sequence:
    number: int
    slot: int
    decode: int
    left: list[int]  # of the prompt, or the last token alone
    position: int = 0
    done: int = 0


class LlamaStepper:
    """A context as a server keeps it: what decodes goes first, prompts fill the rest of each batch."""

    def __init__(self, file: str, threads: int, sequences: int, tokens: int, exact: bool) -> None:
        self.context = LlamaModel(file, threads).context(sequences, tokens, exact)
        self.vocabulary = self.context.model.vocabulary
        self.free = list(range(sequences))
        self.flying: list[_Sequence] = []
        self.waiting: list[tuple[int, Sequence[int], int]] = []

    def add(self, number: int, prompt: Sequence[int], decode: int) -> None:
        self.waiting.append((number, prompt, decode))

    def step(self) -> list[tuple[int, int]]:
        while self.waiting and self.free:
            number, prompt, decode = self.waiting.pop(0)
            self.flying.append(_Sequence(number, self.free.pop(0), decode, list(prompt)))
        asked: list[tuple[int, int, int, bool]] = []
        ends: list[tuple[_Sequence, int]] = []  # whose next token this batch gives, and where
        for sequence in sorted(self.flying, key=lambda each: not each.done):
            part = sequence.left[: self.context.room - len(asked)]
            sequence.left = sequence.left[len(part) :]
            for token in part:
                asked.append((token, sequence.position, sequence.slot, False))
                sequence.position += 1
            if part and not sequence.left:
                asked[-1] = (*asked[-1][:3], True)
                ends.append((sequence, len(asked) - 1))
        self.context.decode(asked)
        return [(sequence.number, self._took(sequence, place)) for sequence, place in ends]

    def _took(self, sequence: _Sequence, place: int) -> int:
        """The next token of a sequence, which is then asked for the one after it, or ends."""
        token = int(self.context.logits_at(place).argmax())
        sequence.done += 1
        sequence.left = [token]
        if sequence.done == sequence.decode:
            self.context.forget(sequence.slot)
            self.flying.remove(sequence)
            self.free.append(sequence.slot)
        return token


@functools.cache
def _silence() -> Any:
    """llama.cpp tells a lot while it loads; only its errors are kept. The callback must live as long as it may call."""
    import sys

    import llama_cpp

    @llama_cpp.llama_log_callback
    def told(level: int, text: bytes, _: Any) -> None:
        if level == LOG_LEVEL_ERROR:
            sys.stderr.write(text.decode(errors="replace"))

    llama_cpp.llama_log_set(told, None)
    return told
