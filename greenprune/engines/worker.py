"""The process that an engine runs in: asked by lines of JSON, it answers by lines of JSON.

    python -m greenprune.engines.worker greenprune.engines.vllm:make_stepper '{"model": …}'

It ends with whoever started it, however that ends. What libraries print goes to the standard error. While it works on
an answer it says every second that it still steps, so that a hung engine can be told from a slow one.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from greenprune._callable import function_named
from greenprune.engines.steady import SteadyLoad, Stepper, generate

PR_SET_PDEATHSIG = 1  # prctl(2)
SIGN_S = 1.0  # between two signs of life


class SigningStepper:
    """A stepper that calls `sign` after a step, at most once in SIGN_S."""

    def __init__(self, stepper: Stepper, sign: Callable[[], None]) -> None:
        self.stepper, self.sign, self.vocabulary = stepper, sign, stepper.vocabulary
        self._signed_s = time.monotonic()

    def add(self, number: int, prompt: Sequence[int], decode: int) -> None:
        self.stepper.add(number, prompt, decode)

    def step(self) -> Iterable[tuple[int, int]]:
        tokens = self.stepper.step()
        if time.monotonic() - self._signed_s > SIGN_S:
            self.sign()
            self._signed_s = time.monotonic()
        return tokens


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

        def say(**said: Any) -> None:
            print(json.dumps(said), file=answers, flush=True)

        stepper = function_named(sys.argv[1])(**json.loads(sys.argv[2]))
        worker = Worker(SigningStepper(stepper, lambda: say(steps=True)))
        say(answer="ready")
        for line in sys.stdin:
            question = json.loads(line)
            say(answer=getattr(worker, question.pop("ask"))(**question))


if __name__ == "__main__":
    main()
