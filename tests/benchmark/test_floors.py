"""Scores without knowledge."""

from __future__ import annotations

import pytest

from greenprune.benchmark.floors import chance, majority


def test_floors():
    assert majority([0, 1, 1, 1]) == 0.75
    assert chance([2, 4]) == pytest.approx(0.375)
