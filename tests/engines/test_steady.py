"""So many requests are always in flight, and what is counted of them is right."""

from __future__ import annotations

import itertools

import pytest
from counting_stepper import CountingStepper

from greenprune.engines.steady import SteadyLoad, generate


class Clock:
    """A step of an engine takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Ticking(CountingStepper):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.most = 0

    def step(self):
        self.clock.now += 1.0
        self.most = max(self.most, len(self.flying))
        return super().step()


@pytest.fixture
def clock():
    return Clock()


@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_load_is_steady(clock, concurrency):
    stepper = Ticking(clock)
    load = SteadyLoad(stepper, [(10, 6)], concurrency, clock=clock)
    load.warm_up(0.0)
    clock.now += 1000.0  # nobody serves between runs
    served = load.run(60.0)
    assert stepper.most == concurrency
    assert served.seconds == pytest.approx(60.0, abs=6)
    assert served.decode_tokens == served.seconds * concurrency
    assert served.prompt_tokens / served.decode_tokens == pytest.approx(10 / 6, rel=0.05)
    assert set(served.ttft_s) == set(served.tpot_s) == {1.0}, "requests that were in flight meanwhile too"


def test_requests_are_spread_over_time(clock):
    """Begun together they would also end together, for ever."""
    load = SteadyLoad(Ticking(clock), [(10, 6)], 3, clock=clock)
    load.warm_up(0.0)
    assert len({flight.done for flight in load.flying.values()}) == len(load.flying)


def test_lengths_are_taken_in_turn_and_prompts_are_the_same_for_every_model(clock):
    stepper, again = Ticking(clock), Ticking(clock)
    for each in (stepper, again):
        SteadyLoad(each, [(2, 1), (5, 3)], 1, seed=4, clock=clock).run(20.0)
    assert stepper.prompts == again.prompts
    assert [len(stepper.prompts[number]) for number in range(4)] == [2, 5, 2, 5]
    assert set(itertools.chain(*stepper.prompts.values())) <= set(range(7))
    other = Ticking(clock)
    SteadyLoad(other, [(2, 1), (5, 3)], 1, seed=5, clock=clock).run(20.0)
    assert other.prompts != stepper.prompts


def test_a_load_that_is_taken_off_leaves_nothing_in_flight(clock):
    stepper = Ticking(clock)
    load = SteadyLoad(stepper, [(10, 6)], 3, clock=clock)
    load.run(5.0)
    load.drain()
    assert not stepper.flying


def test_replies_are_put_together():
    assert generate(CountingStepper(), [[1], [2, 3]], 3) == [[1, 2, 3], [2, 3, 4]]
