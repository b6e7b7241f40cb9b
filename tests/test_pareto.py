"""The front on tables worked by hand: ties, gaps, failures, and numbers that must not be compared."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from greenprune.columns import Direction
from greenprune.comparability import compared_objectives
from greenprune.errors import ConfigError
from greenprune.pareto import (
    constrained_best,
    dense_row,
    hypervolume,
    knee,
    pareto_front,
    parse_objectives,
)

BOTH: dict[str, Direction] = {"accuracy": "max", "energy_j_per_token": "min"}


def table(*points: tuple[float | None, float | None], **columns: Any) -> pd.DataFrame:
    """Trials `t0`, `t1`, … at (accuracy, energy)."""
    frame = pd.DataFrame(points, columns=["accuracy", "energy_j_per_token"], dtype="float64")
    frame.insert(0, "trial_id", [f"t{i}" for i in range(len(points))])
    return frame.assign(status="ok").assign(**columns)


def ids(rows: pd.DataFrame) -> list[str]:
    return rows["trial_id"].tolist()


def test_front_leaves_dominated_trials_out_and_begins_with_the_best():
    assert ids(pareto_front(table((0.4, 1.0), (0.6, 3.0), (0.5, 2.0), (0.45, 2.5)), BOTH)) == [
        "t1",
        "t2",
        "t0",
    ]


def test_directions_decide():
    trials = table((0.4, 1.0), (0.6, 3.0), (0.5, 2.0))
    assert ids(pareto_front(trials, {"accuracy": "max", "energy_j_per_token": "max"})) == ["t1"]
    assert ids(pareto_front(trials, {"accuracy": "min", "energy_j_per_token": "min"})) == ["t0"]
    assert ids(pareto_front(trials, {"energy_j_per_token": "min"})) == ["t0"]
    assert ids(pareto_front(trials, {"energy_j_per_token": "min", "accuracy": "max"})) == ["t0", "t2", "t1"]


def test_ties():
    trials = table((0.5, 2.0), (0.4, 1.0), (0.5, 2.0), (0.5, 2.5), (0.4, 1.0))
    assert ids(pareto_front(trials, BOTH)) == ["t0", "t2", "t1", "t4"]  # t3: equal accuracy, more energy
    assert ids(pareto_front(trials, {"accuracy": "max"})) == ["t0", "t2", "t3"]


def test_failed_and_unmeasured_trials_take_no_part():
    trials = table((0.9, 0.1), (None, 0.1), (0.9, None), (math.inf, 0.1), (0.9, -math.inf), (0.5, 1.0))
    trials.loc[0, "status"] = "failed"
    assert ids(pareto_front(trials, BOTH)) == ["t5"]


def test_nullable_integers_are_numbers():
    trials = table((0.5, 1.0), (0.4, 1.0), (0.9, 1.0))
    trials["parameters"] = pd.array([10, 5, None], dtype="Int64")
    assert ids(pareto_front(trials, {"accuracy": "max", "parameters": "min"})) == ["t0", "t1"]


def test_no_finished_trial_is_an_empty_front():
    trials = table((0.5, 1.0), status="failed")
    assert pareto_front(trials, BOTH).empty
    assert pareto_front(trials.drop(columns=["accuracy"]), BOTH).empty
    assert pareto_front(table((None, 1.0)), BOTH).empty
    assert hypervolume(trials, BOTH) == 0.0
    assert knee(trials.iloc[:0], BOTH) is None
    assert constrained_best(trials, "accuracy", "max", {"energy_j_per_token": ("<=", 9.0)}) is None


def test_front_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, size=(60, 3)).astype(float)
    trials = pd.DataFrame(values, columns=["a", "b", "c"]).assign(status="ok")
    good = values * [1, -1, 1]
    beaten = [any((o >= g).all() and (o > g).any() for o in good) for g in good]
    front = pareto_front(trials, {"a": "max", "b": "min", "c": "max"})
    assert sorted(front.index) == [i for i, lost in enumerate(beaten) if not lost]


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({"acuracy": "max"}, "did you mean 'accuracy'"),
        ({"energy_ratio": "min"}, "no trial measured it"),
        ({"trial_id": "max"}, "is text"),
        ({"accuracy": "up"}, "must be max or min, got 'up'"),
        ({}, "at least one metric"),
    ],
)
def test_bad_objectives_are_refused(objectives: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        pareto_front(table((0.5, 1.0)), objectives)


def test_measured_and_estimated_never_share_a_front():
    trials = table((0.5, 1.0), (0.4, 0.5), energy_kind=["measured", "estimated"], energy_ratio=[1.0, 0.5])
    with pytest.raises(ConfigError, match=r"all measured or all estimated.*estimated, measured.*mixed=True"):
        pareto_front(trials, BOTH)
    with pytest.raises(ConfigError, match="all measured or all estimated"):
        pareto_front(trials, {"accuracy": "max", "energy_ratio": "min"})
    with pytest.raises(ConfigError, match="all measured or all estimated"):
        hypervolume(trials, BOTH)
    with pytest.raises(ConfigError, match="all measured or all estimated"):
        constrained_best(trials, "accuracy", "max", {"energy_j_per_token": ("<=", 1.0)})
    assert len(pareto_front(trials, BOTH, mixed=True)) == 2
    assert len(pareto_front(trials, {"accuracy": "max"})) == 1
    assert len(pareto_front(trials[trials["energy_kind"] == "measured"], BOTH)) == 1


def test_mixed_kinds_are_compared_by_the_ratio_to_dense():
    trials = table(
        (0.5, 10.0), (0.4, 9.0), (0.5, 0.1),
        energy_kind=["measured", "measured", "estimated"], energy_ratio=[0.5, 0.9, 0.8], machine=["a", "a", "b"],
    )  # fmt: skip
    assert compared_objectives(trials, BOTH) == BOTH
    assert compared_objectives(trials, BOTH, mixed=True) == {"accuracy": "max", "energy_ratio": "min"}
    assert ids(pareto_front(trials, BOTH, mixed=True)) == ["t0"]  # in joules t2 would win
    assert hypervolume(trials, BOTH, {"accuracy": 0.0, "energy_ratio": 1.0}, mixed=True) == pytest.approx(0.25)
    best = constrained_best(trials, "energy_j_per_token", "min", {"accuracy": (">=", 0.4)}, mixed=True)
    assert best["trial_id"] == "t0"
    alike = trials[trials["energy_kind"] == "measured"]
    assert compared_objectives(alike, BOTH, mixed=True) == BOTH  # nothing is mixed: joules stay joules
    with pytest.raises(ConfigError, match=r"got average_power_w, which has none"):
        pareto_front(trials.assign(average_power_w=1.0), {"average_power_w": "min"}, mixed=True)
    with pytest.raises(ConfigError, match=r"got energy_ratio.*no trial measured it"):
        pareto_front(trials.drop(columns="energy_ratio"), BOTH, mixed=True)


def test_contaminated_energies_are_on_no_front():
    trials = table((0.5, 1.0), (0.9, 0.1), energy_kind=["measured", "contaminated"], energy_ratio=[1.0, 0.1])
    assert ids(pareto_front(trials, BOTH)) == ["t0"]
    assert ids(pareto_front(trials, BOTH, mixed=True)) == ["t0"]
    assert ids(pareto_front(trials, {"accuracy": "max"})) == ["t1"]
    with pytest.raises(ConfigError, match=r"1 trials, all contaminated.*max_foreign_load"):
        pareto_front(trials[trials["energy_kind"] == "contaminated"], BOTH)


def test_energies_of_tasks_have_their_own_kind():
    trials = table(
        (0.5, 1.0), (0.4, 0.5),
        energy_kind=["measured", "measured"], tasks_energy_kind=["measured", "estimated"], energy_wh_tasks=[2.0, 1.0],
    )  # fmt: skip
    assert len(pareto_front(trials, BOTH)) == 2
    with pytest.raises(ConfigError, match=r"energy_wh_tasks must be all measured.*estimated, measured"):
        pareto_front(trials, {"accuracy": "max", "energy_wh_tasks": "min"})


def test_joules_of_a_device_and_of_a_package_share_no_front():
    trials = table((0.5, 1.0), (0.4, 0.5), energy_kind=["measured"] * 2, energy_scope=["device", "package"])
    with pytest.raises(ConfigError, match=r"of one scope to share a front, got device, package"):
        pareto_front(trials, BOTH)


def test_an_unknown_kind_is_not_a_measured_one():
    with pytest.raises(ConfigError, match="measured, unknown"):
        pareto_front(table((0.5, 1.0), (0.4, 0.5), energy_kind=["measured", None]), BOTH)


def test_only_trials_that_take_part_must_agree():
    trials = table((0.5, 1.0), (None, 0.5), (0.4, 0.4), energy_kind=["measured", "estimated", "estimated"])
    trials.loc[2, "status"] = "failed"
    assert ids(pareto_front(trials, BOTH)) == ["t0"]


def test_machines_share_a_front_only_by_ratio():
    trials = table((0.5, 1.0), (0.4, 0.5), machine=["a", "b"], energy_ratio=[1.0, 0.5], decode_latency_s=[2.0, 1.0])
    for metric in ("energy_j_per_token", "decode_latency_s"):
        with pytest.raises(ConfigError, match=r"one machine.*a, b.*energy_ratio"):
            pareto_front(trials, {"accuracy": "max", metric: "min"})
    assert len(pareto_front(trials, {"accuracy": "max", "energy_ratio": "min"})) == 2
    assert len(pareto_front(trials, BOTH, mixed=True)) == 2


def test_cards_of_one_class_share_a_front_by_their_ratio():
    """In joules t1 would win: its card takes less for everything."""
    trials = table(
        (0.5, 1.0), (0.5, 0.9),
        machine=["card-1", "card-2"], machine_class="h100", energy_ratio=[0.5, 0.6], average_power_w=[300.0, 270.0],
    )  # fmt: skip
    assert compared_objectives(trials, BOTH) == {"accuracy": "max", "energy_ratio": "min"}
    assert ids(pareto_front(trials, BOTH)) == ["t0"]
    with pytest.raises(ConfigError, match=r"one machine.*card-1, card-2 \(cards of one class, each.*energy_ratio"):
        pareto_front(trials, {"accuracy": "max", "average_power_w": "min"})
    unlike = trials.assign(machine_class=["h100", "a100"])
    with pytest.raises(ConfigError, match="one machine"):
        pareto_front(unlike, BOTH)
    one_card = trials.assign(machine="card-1")
    assert compared_objectives(one_card, BOTH) == BOTH
    with pytest.raises(ConfigError, match="all measured or all estimated"):
        pareto_front(trials.assign(energy_kind=["measured", "estimated"]), BOTH)


def test_hypervolume_by_hand():
    trials = table((0.6, 3.0), (0.5, 2.0), (0.4, 1.0), (0.2, 4.0))
    # from the worst values (0.2, 4): strips of energy 3–4, 2–3, 1–2 under accuracy 0.6, 0.5, 0.4
    assert hypervolume(trials, BOTH) == pytest.approx(0.4 + 0.3 + 0.2)
    assert hypervolume(trials, BOTH, {"accuracy": 0.4, "energy_j_per_token": 3.0}) == pytest.approx(0.1)
    assert hypervolume(table((0.6, 3.0)), BOTH) == 0.0
    assert hypervolume(trials, {"accuracy": "max"}) == pytest.approx(0.4)


def test_hypervolume_relative_to_dense():
    trials = table((0.8, 2.0), (0.6, 1.0), **{"prune.method": ["none", "bi"], "heal.method": "none"})
    # three quarters of the accuracy at half of the energy
    assert hypervolume(trials, BOTH, "dense") == pytest.approx(0.75 * 0.5)
    scaled = trials.assign(energy_j_per_token=trials["energy_j_per_token"] * 7)
    assert hypervolume(scaled, BOTH, "dense") == pytest.approx(0.75 * 0.5)
    perplexity = trials.assign(**{"w_ppl@512": [10.0, 40.0]})
    by_perplexity: dict[str, Direction] = {"w_ppl@512": "min", "energy_j_per_token": "min"}
    assert hypervolume(perplexity, by_perplexity, "dense") == pytest.approx(0.25 * 0.5)


def test_hypervolume_reference_is_checked():
    with pytest.raises(ConfigError, match="dense model needs its finished trial"):
        hypervolume(table((0.6, 3.0)), BOTH, "dense")
    with pytest.raises(ConfigError, match="none for energy_j_per_token"):
        hypervolume(table((0.6, 3.0)), BOTH, {"accuracy": 0.1})
    with pytest.raises(ConfigError, match="'dense' or None"):
        hypervolume(table((0.6, 3.0)), BOTH, "sparse")  # type: ignore[arg-type]


def test_a_healed_unpruned_trial_is_not_the_dense_model():
    columns = {"prune.method": ["none", "none"], "heal.method": ["lora", "none"]}
    assert dense_row(table((0.9, 1.0), (0.8, 1.0), **columns))["trial_id"] == "t1"


def test_knee():
    bent = pareto_front(table((1.0, 10.0), (0.9, 2.0), (0.5, 1.5), (0.0, 1.0)), BOTH)
    assert knee(bent, BOTH)["trial_id"] == "t1"  # type: ignore[index]
    away = pareto_front(table((1.0, 10.0), (0.2, 9.0), (0.0, 1.0)), BOTH)
    assert knee(away, BOTH)["trial_id"] == "t0"  # type: ignore[index]
    for few in (table((0.4, 1.0)), table((0.1, 0.5), (0.4, 1.0))):
        assert knee(pareto_front(few, BOTH), BOTH)["accuracy"] == 0.4  # type: ignore[index]


def test_best_under_a_limit():
    trials = table((0.4, 1.0), (0.6, 3.0), (0.5, 2.0), (0.5, 1.5))

    def best(objective: str, direction: Direction, constraints: Any) -> str | None:
        row = constrained_best(trials, objective, direction, constraints)
        return None if row is None else row["trial_id"]

    assert best("accuracy", "max", {"energy_j_per_token": ("<=", 2.0)}) == "t3"  # equal accuracy, less energy
    assert best("accuracy", "max", {"energy_j_per_token": ("<=", 3.0)}) == "t1"
    assert best("energy_j_per_token", "min", {"accuracy": (">=", 0.5)}) == "t3"
    assert best("energy_j_per_token", "min", {"accuracy": (">=", 0.51)}) == "t1"
    assert best("energy_j_per_token", "min", {"accuracy": (">=", 0.7)}) is None
    assert best("accuracy", "max", {"accuracy": ("<=", 0.5), "energy_j_per_token": (">=", 1.6)}) == "t2"
    with pytest.raises(ConfigError, match="'<=' or '>='"):
        best("accuracy", "max", {"energy_j_per_token": ("<", 2.0)})
    with pytest.raises(ConfigError, match="did you mean 'energy_j_per_token'"):
        best("accuracy", "max", {"energy_j_per_tokn": ("<=", 2.0)})


def test_parse_objectives():
    assert parse_objectives(" accuracy:max, w_ppl@512:min") == {"accuracy": "max", "w_ppl@512": "min"}
    for text, message in {
        "": "name:max or name:min, got ''",
        "accuracy": "name:max or name:min, got 'accuracy'",
        "accuracy:max,": "got ''",
        ":max": "got ':max'",
        "accuracy:higher": "must be max or min, got 'higher'",
        "accuracy:max,accuracy:min": "accuracy twice",
    }.items():
        with pytest.raises(ConfigError, match=message):
            parse_objectives(text)
