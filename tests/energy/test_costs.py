"""What a model's making cost, and when it has paid for itself."""

from __future__ import annotations

import pytest

from greenprune.energy.costs import break_even_requests, search_cost


def test_break_even_by_hand():
    assert break_even_requests(3.0, 50.0, 0.5) == pytest.approx(60)  # the dense one takes 100 Wh for 1,000
    assert break_even_requests(3.0, 50.0, 1.0) is None  # never
    assert break_even_requests(None, 50.0, 0.5) is None
    assert break_even_requests(0.0, 50.0, 0.5) == 0.0


def test_each_artifact_of_a_search_is_counted_once():
    def stage(name, key, joules, kind="estimated"):
        return {"stage": name, "key": key, "seconds": 10.0, "energy_j": joules, "energy_kind": kind}

    shared, unmetered = stage("collect", "k", 3600.0), stage("heal", "h", None)
    cost = search_cost([shared, stage("prune", "k", 1800.0), shared, unmetered, stage("heal", "i", 1800.0, "measured")])
    assert (cost.energy_wh, cost.unmetered, cost.seconds) == (2.0, 1, 40.0)
    assert cost.by_stage_wh == {"collect": 1.0, "prune": 0.5, "heal": 0.5}
    assert cost.describe() == "2 Wh, estimated and measured (collect 1, prune 0.5, heal 0.5; not metered: 1)"
    assert search_cost([unmetered]).energy_wh is None
