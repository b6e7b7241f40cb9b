"""What an optimiser may be told: what a front would take."""

from __future__ import annotations

import math

import pytest

from greenprune.comparability import CommonFront, reported

BOTH = ("accuracy", "energy_j_per_token")
DENSE = {
    "accuracy": 0.6, "energy_j_per_token": 2.0, "energy_ratio": 1.0, "energy_kind": "measured",
    "energy_scope": "device", "machine": "card-1", "machine_class": "h100", "layers": 30,
}  # fmt: skip


def test_finite_numbers_of_one_kind_are_told():
    front = CommonFront(BOTH)
    assert front.accept(DENSE) == {"accuracy": 0.6, "energy_j_per_token": 2.0}
    assert front.accept(DENSE | {"energy_j_per_token": 1.5}) == {"accuracy": 0.6, "energy_j_per_token": 1.5}
    assert front.accept({"accuracy": math.nan, **{k: v for k, v in DENSE.items() if k != "accuracy"}}).keys() == {
        "energy_j_per_token"
    }


@pytest.mark.parametrize(
    "change",
    [
        {"energy_kind": "contaminated"},
        {"energy_kind": "estimated"},
        {"energy_scope": "device+package"},
        {"machine": "card-2", "machine_class": "a100"},
        {"machine": "card-2", "energy_ratio": None},
    ],
)
def test_what_a_front_would_not_take_is_not_told(change):
    front = CommonFront(BOTH)
    front.accept(DENSE)
    assert front.accept(DENSE | change) == {"accuracy": 0.6}


def test_the_first_that_counts_decides_not_a_contaminated_one():
    front = CommonFront(BOTH)
    assert front.accept(DENSE | {"energy_kind": "contaminated", "machine": "card-9"}) == {"accuracy": 0.6}
    assert front.accept(DENSE)["energy_j_per_token"] == 2.0


def test_another_card_of_the_class_counts_by_its_ratio():
    """In joules of the first card, on which the dense model takes 2 J/token; on the other it takes 2.5."""
    front = CommonFront(BOTH)
    front.accept(DENSE)
    other = DENSE | {"machine": "card-2", "energy_j_per_token": 2.0, "energy_ratio": 0.8}
    assert front.accept(other)["energy_j_per_token"] == pytest.approx(1.6)


def test_what_a_trial_reports_is_enough_to_judge_it():
    told = reported(DENSE | {"held_ppl@16": math.inf}, [*BOTH, "held_ppl@16"])
    assert told == {name: value for name, value in DENSE.items() if name != "layers"}
    assert CommonFront(BOTH).accept(told) == CommonFront(BOTH).accept(DENSE)
