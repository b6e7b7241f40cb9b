"""So many requests always in flight: what a server of its own continuous batching sees under steady load.

    load = SteadyLoad(stepper, lengths, concurrency=8, seed=0)
    load.warm_up(1.0)
    served = load.run(10.0)            # from the end of one request to the end of another, at least so many seconds

Requests of one length that begin together would also end together for ever, each prefill a burst; so the first ones
get shorter replies, spread over a request's length. Knows nothing of any engine, and runs in the engine's process.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


class Stepper(Protocol):
    """An engine that batches by itself. vocabulary: tokens that a prompt is drawn from."""

    vocabulary: int

    def add(self, number: int, prompt: Sequence[int], decode: int) -> None:
        """Queue a request for exactly `decode` greedy tokens."""

    def step(self) -> Iterable[tuple[int, int]]:
        """One forward of whatever is in flight; each new token with its request's number."""


@dataclass
class Served:
    """What was done in `seconds`. ttft_s: of each request whose first token came; tpot_s: of each that ended, the mean
    time of a token after the first."""

    seconds: float = 0.0
    prompt_tokens: int = 0
    decode_tokens: int = 0
    requests: int = 0
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Flight:
    prompt: int
    decode: int
    sent_s: float
    done: int = 0
    first_s: float = 0.0


class SteadyLoad:
    """lengths: (prompt, decode) of the requests in turn; seed: of their random tokens, the same for every model."""

    def __init__(
        self,
        stepper: Stepper,
        lengths: Sequence[tuple[int, int]],
        concurrency: int,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.stepper, self.lengths, self.concurrency, self.seed, self.clock = stepper, lengths, concurrency, seed, clock
        self.flying: dict[int, _Flight] = {}
        self.sent = 0
        self._stood_s = 0.0  # between runs, which no request is charged
        self._stopped_s: float | None = None

    def warm_up(self, seconds: float) -> None:
        """Until the first requests, whose replies are short, have gone and `seconds` are over."""
        self._start()
        ends = self._now() + seconds
        while self._now() < ends or any(number < self.concurrency for number in self.flying) or not self.sent:
            self._step(Served())
        self._stop()

    def run(self, seconds: float) -> Served:
        """Serve for at least so long, and until a request ends, so that windows begin and end alike."""
        served = Served()
        self._start()
        began = self._now()
        while not (self._step(served) and self._now() - began >= seconds):
            pass
        served.seconds = self._now() - began
        self._stop()
        return served

    def drain(self) -> None:
        """Let what is in flight end, and send no more."""
        self._start()
        while self.flying:
            self._advance(Served())
        self._stop()

    def _step(self, served: Served) -> bool:
        """One step with all places taken; whether a request ended."""
        while len(self.flying) < self.concurrency:
            prompt, decode = self.lengths[self.sent % len(self.lengths)]
            if self.sent < self.concurrency:
                decode = max(1, decode * (self.sent + 1) // self.concurrency)
            draw = random.Random(f"{self.seed} {self.sent}")
            tokens = [draw.randrange(self.stepper.vocabulary) for _ in range(prompt)]
            self.flying[self.sent] = _Flight(prompt, decode, self._now())
            self.stepper.add(self.sent, tokens, decode)
            self.sent += 1
        return self._advance(served)

    def _advance(self, served: Served) -> bool:
        ended = False
        for number, _ in self.stepper.step():
            now, flight = self._now(), self.flying[number]
            flight.done += 1
            served.decode_tokens += 1
            if flight.done == 1:
                flight.first_s = now
                served.prompt_tokens += flight.prompt
                served.ttft_s.append(now - flight.sent_s)
            if flight.done == flight.decode:
                del self.flying[number]
                ended = True
                served.requests += 1
                if flight.decode > 1:
                    served.tpot_s.append((now - flight.first_s) / (flight.decode - 1))
        return ended

    def _now(self) -> float:
        return self.clock() - self._stood_s

    def _start(self) -> None:
        if self._stopped_s is not None:
            self._stood_s += self.clock() - self._stopped_s

    def _stop(self) -> None:
        self._stopped_s = self.clock()


def generate(stepper: Stepper, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    """The greedy replies to these prompts, all in flight together."""
    replies: list[list[int]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        stepper.add(number, prompt, new_tokens)
    while any(len(reply) < new_tokens for reply in replies):
        for number, token in stepper.step():
            replies[number].append(token)
    return replies
