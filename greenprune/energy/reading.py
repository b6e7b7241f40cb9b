"""A window of work and what a meter read over it.

Every figure says its kind (measured, estimated, constant, absent), source and scope, because a number without
them can't be compared with another. Absent is None, never 0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from greenprune.energy.counting import Kind, Part
from greenprune.energy.units import JOULES_PER_KWH
from greenprune.storage import write_atomically

Grade = Literal["measured", "estimated", "contaminated", "absent"]  # best to worst
Sharing = Literal["exclusive: node", "exclusive: device", "shared"]

# CodeCarbon's columns in its order (its EmissionsData), which users of such studies know.
EMISSIONS_COLUMNS = (
    "timestamp",
    "project_name",
    "run_id",
    "experiment_id",
    "duration",
    "emissions",
    "emissions_rate",
    "cpu_power",
    "gpu_power",
    "ram_power",
    "cpu_energy",
    "gpu_energy",
    "ram_energy",
    "energy_consumed",
    "water_consumed",
    "country_name",
    "country_iso_code",
    "region",
    "cloud_provider",
    "cloud_region",
    "os",
    "python_version",
    "codecarbon_version",
    "cpu_count",
    "cpu_model",
    "gpu_count",
    "gpu_model",
    "longitude",
    "latitude",
    "ram_total_size",
    "tracking_mode",
    "cpu_utilization_percent",
    "gpu_utilization_percent",
    "ram_utilization_percent",
    "ram_used_gb",
    "on_cloud",
    "pue",
    "wue",
)
OUR_COLUMNS = ("task_name", "energy_j", "energy_kind", "energy_source", "energy_scope", "contamination")


@dataclass(frozen=True)
class Reading:
    """What a meter read over one window, gross (idle power included).

    energy_j is the headline: the sum of the components that `source` and `scope` name. cpu_j, gpu_j and
    ram_j are all components that the meter gave, whatever their kind; `parts` says how each was had. co2e_g
    belongs to energy_j and is None without a country. sharing: whether other stages of ours were kept away.
    contamination: who else worked there, None for nobody. notes: why it isn't measured, which sensors
    disagree. began: seconds since the epoch. gpus: clocks, power cap, temperature and throttling of each GPU.
    row is the window's line of emissions.csv, in CodeCarbon's units (kWh, kg, W).
    """

    name: str
    energy_j: float | None
    seconds: float
    kind: Kind
    source: str
    scope: str
    cpu_j: float | None = None
    gpu_j: float | None = None
    ram_j: float | None = None
    co2e_g: float | None = None
    parts: tuple[Part, ...] = ()
    sharing: Sharing = "shared"
    contamination: str | None = None
    notes: tuple[str, ...] = ()
    began: float | None = None
    gpus: tuple[Mapping[str, Any], ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        assert (self.energy_j is None) == (self.kind == "absent"), "energy is None exactly where it is absent"

    @property
    def grade(self) -> Grade:
        """How far the figure may be trusted; a constant is an estimate too."""
        if self.kind == "absent":
            return "absent"
        if self.contamination:
            return "contaminated"
        return "measured" if self.kind == "measured" else "estimated"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but the row, which emissions.csv holds."""
        return {key: value for key, value in asdict(self).items() if key != "row"}


class Window:
    """An open window; its reading is there once the `with` has ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._reading: Reading | None = None

    @property
    def reading(self) -> Reading:
        assert self._reading is not None, "a window has its reading when its `with` has ended without an error"
        return self._reading

    def close(self, reading: Reading) -> None:
        self._reading = reading


class Meter(Protocol):
    """Anything that can tell the energy of a piece of work; one window at a time."""

    def window(self, name: str) -> AbstractContextManager[Window]: ...


def worst_grade(readings: Iterable[Reading]) -> Grade:
    """A figure made of several readings is graded as its worst part; no reading at all is absent."""
    grades = [reading.grade for reading in readings]
    return max(grades, key=get_args(Grade).index) if grades else "absent"


def notes_of(readings: Sequence[Reading]) -> str | None:
    """What the readings say about themselves, each thing once; None where they say nothing."""
    notes = dict.fromkeys(note for reading in readings for note in reading.notes)
    disturbed = [reading.contamination for reading in readings if reading.contamination]
    if disturbed:
        notes[f"contaminated in {len(disturbed)} of {len(readings)} windows: {disturbed[0]}"] = None
    return "; ".join(notes) or None


def write_emissions(path: Path, readings: Iterable[Reading]) -> None:
    """Write emissions.csv: a line a window, CodeCarbon's columns and figures, empty where not measured.

    Our headline stands beside them: energy_j, its grade as energy_kind (what every other table calls so), its source
    and scope. CodeCarbon's own sum mixes sensors and models.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, [*EMISSIONS_COLUMNS, *OUR_COLUMNS], extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for reading in readings:
        measured = {
            "duration": reading.seconds,
            "emissions": reading.co2e_g / 1000 if reading.co2e_g is not None else None,
            "energy_consumed": reading.energy_j / JOULES_PER_KWH if reading.energy_j is not None else None,
        }
        ours = {
            "task_name": reading.name,
            "energy_j": reading.energy_j,
            "energy_kind": reading.grade,
            "energy_source": reading.source,
            "energy_scope": reading.scope,
            "contamination": reading.contamination,
        }
        table.writerow({**measured, **reading.row, **ours})
    write_atomically(path, text.getvalue())
