"""Transformers in this process: the workload as plain forwards."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel

from greenprune.config import EnergyConfig
from greenprune.engines.perplexity import perplexity
from greenprune.engines.positions import check_length
from greenprune.models import load_split
from greenprune.models.peak import PeakMemory


class TransformersEngine:
    """A model that Transformers has loaded, on the device that holds it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        places = set(getattr(model, "hf_device_map", {}).values())
        self.device = torch.device("cuda") if len(places) > 1 and torch.cuda.is_available() else model.device
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.layers = model.config.get_text_config().num_hidden_layers

    @classmethod
    def load(cls, checkpoint: Path, dtype: str, trust_remote_code: bool) -> TransformersEngine:
        return cls(load_split(checkpoint, dtype, trust_remote_code))

    def check_length(self, tokens: int, what: str) -> None:
        check_length(self.model, tokens, what)

    def perplexity(self, segments: torch.Tensor) -> float:
        return perplexity(self.model, segments)

    @contextmanager
    def serve(self, config: EnergyConfig, concurrency: int = 1) -> Iterator[ForwardPhases]:
        self.check_length(sum(config.request), "benchmark.energy prompt_len + decode_len")
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield ForwardPhases(self.model, config, concurrency)
        finally:
            self.model.train(training)

    def close(self) -> None:
        """Its memory goes when nobody holds the model any more."""
        del self.model


class ForwardPhases:
    """The workload as forwards of the model with a KV cache, a token a step."""

    def __init__(self, model: PreTrainedModel, config: EnergyConfig, concurrency: int = 1) -> None:
        self.model = model
        self.config = config
        vocabulary = model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(config.seed)
        shape = (config.batch_size * concurrency, config.request.prompt)
        self.prompt = torch.randint(vocabulary, shape, generator=generator).to(model.device)
        self._first_token = self.prompt[:, -1:]
        self._cache = DynamicCache()
        names = inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in names else "past_key_values"  # renamed in Transformers 5.24
        self._reply: list[torch.Tensor] = []
        self._memory = PeakMemory(model.device)

    def prefill(self) -> None:
        """The prompt through the model, with a new KV cache."""
        self._forward(self.prompt, DynamicCache())

    def fill_cache(self) -> None:
        """What decoding starts from.

        The cache is made without the model's config, so sliding-window layers keep all their states: a window
        that has slid can't be cropped back. The mask still limits what is attended to.
        """
        self._cache = DynamicCache()
        self._first_token = self._forward(self.prompt, self._cache)

    def decode(self) -> None:
        """The greedy reply, a token a step; afterwards the cache holds the prompt alone again."""
        token, self._reply = self._first_token, []
        for _ in range(self.config.request.decode):
            token = self._forward(token, self._cache)
            self._reply.append(token)
        for layer in self._cache.layers:  # Cache.crop means different things in different transformers 5.x
            if layer.is_initialized:
                layer.keys = layer.keys[..., : self.config.request.prompt, :]
                layer.values = layer.values[..., : self.config.request.prompt, :]

    def reply(self) -> torch.Tensor:
        return torch.cat(self._reply, dim=1)

    def _forward(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """The next token of each sequence, [batch, 1]; it stays on the device."""
        states = {self._cache_argument: cache}
        logits = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **states).logits
        return logits[:, -1:].argmax(dim=-1)

    def synchronise(self) -> None:
        if self.model.device.type == "cuda":
            for gpu in range(torch.cuda.device_count()):
                torch.cuda.synchronize(gpu)

    def reset_peak_memory(self) -> None:
        self._memory = PeakMemory(self.model.device)

    def peak_memory_bytes(self) -> int | None:
        return self._memory.bytes()
