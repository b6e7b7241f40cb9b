"""The sensors of energy, by the names that a machine's identity lists them under.

A new sensor is a file beside nvml.py and rapl.py, an entry here, and a row in tests/energy/test_sensors.py. The meter,
the machine's identity and `greenprune doctor` go through this table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from greenprune.energy import nvml, rapl
from greenprune.energy.counting import Found, Sensor


def _nothing() -> str:
    return ""


@dataclass(frozen=True)
class SensorKind:
    """How a sensor is found on this machine.

    here: whether the machine has it, for its identity. find: the sensor for work on these GPUs (NVML indices, ()
    for a CPU's work), None where there is none; may raise EnergyError where it can't be told from others' work.
    found: doctor's rows. headline: what doctor says of a trial's joules where this sensor is the first that
    measures. why_not: why a CPU's work can't be measured with it, and what would mend that.
    """

    here: Callable[[], bool]
    find: Callable[[Sequence[int]], Sensor | None]
    found: Callable[[], list[Found]]
    headline: str
    why_not: Callable[[], str] = _nothing


SENSORS = {
    "nvml": SensorKind(
        here=nvml.here,
        find=nvml.find,
        found=nvml.found,
        headline="measured on the GPU it runs on; of a model on the CPU, see above",
    ),
    "rapl": SensorKind(
        here=rapl.here,
        find=rapl.find,
        found=rapl.found,
        headline="measured, over the whole node",
        why_not=rapl.why_not,
    ),
}


def sensors_for(gpus: Sequence[int]) -> list[Sensor]:
    """The sensors that count for work on these GPUs, () for a CPU's work. EnergyError where one can't be told."""
    found = [kind.find(gpus) for kind in SENSORS.values()]
    return [sensor for sensor in found if sensor is not None]


def why_no_sensor() -> str:
    """Why work on the CPU isn't measured here, and what would mend it."""
    reasons = filter(None, (kind.why_not() for kind in SENSORS.values()))
    return f"estimated: {'; '.join(reasons) or 'no sensor'}"
