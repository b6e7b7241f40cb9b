"""Joules in the units that people read."""

from __future__ import annotations

JOULES_PER_WH = 3600.0
JOULES_PER_KWH = 1000 * JOULES_PER_WH
