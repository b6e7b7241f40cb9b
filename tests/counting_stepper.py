"""An engine that computes nothing: a request gets a token a step, its number plus how many it had."""

from __future__ import annotations

import os
import signal
import time


class CountingStepper:
    """slots: requests that advance in one step; die_after: steps until it kills its own process; step_s: a step's."""

    vocabulary = 7

    def __init__(self, slots: int = 100, die_after: int | None = None, step_s: float = 0.0) -> None:
        self.slots, self.left_to_live, self.step_s = slots, die_after, step_s
        self.flying: dict[int, list[int]] = {}
        self.prompts: dict[int, list[int]] = {}

    def add(self, number: int, prompt, decode: int) -> None:
        self.flying[number], self.prompts[number] = [0, decode], list(prompt)

    def step(self):
        time.sleep(self.step_s)
        if self.left_to_live is not None:
            self.left_to_live -= 1
            if self.left_to_live < 0:
                print("out of breath", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        found = []
        for number, request in list(self.flying.items())[: self.slots]:
            request[0] += 1
            found.append((number, number + request[0]))
            if request[0] == request[1]:
                del self.flying[number]
        return found
