"""The process that an engine runs in: asked by lines of JSON, it answers by lines of JSON.

    python -m greenprune.engines.worker greenprune.engines.vllm:make_stepper '{"model": …}'

It ends with whoever started it, however that ends. What libraries print goes to the standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

from greenprune._callable import function_named
from greenprune.engines.steady import SteadyLoad, Stepper, generate

PR_SET_PDEATHSIG = 1  # prctl(2)


class Worker:
    """Answers for one stepper."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self.load: SteadyLoad | None = None

    def load_up(self, lengths: list[list[int]], concurrency: int, seed: int, seconds: float) -> None:
        self.drain()
        self.load = SteadyLoad(self.stepper, [(prompt, decode) for prompt, decode in lengths], concurrency, seed)
        self.load.warm_up(seconds)

    def run(self, seconds: float) -> dict[str, Any]:
        assert self.load is not None, "a load is put on before it is measured"
        return self.load.run(seconds).to_json()

    def drain(self) -> None:
        if self.load is not None:
            self.load.drain()
            self.load = None

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        return generate(self.stepper, prompts, new_tokens)


def end_with_parent() -> None:
    """On Linux the system kills this process when the one that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    end_with_parent()
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        worker = Worker(function_named(sys.argv[1])(**json.loads(sys.argv[2])))
        print(json.dumps({"answer": "ready"}), file=answers, flush=True)
        for line in sys.stdin:
            question = json.loads(line)
            print(json.dumps({"answer": getattr(worker, question.pop("ask"))(**question)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
