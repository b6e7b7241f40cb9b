"""RAPL: the counters of CPU packages and memory that Linux shows below /sys/class/powercap.

They count microjoules and wrap (a busy package in minutes), so a window looks at them now and then. The
`core` and `uncore` zones lie within `package` and don't count again; `dram` is listed below its package but is
not part of it. Since 2020 only root may read them until somebody says otherwise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from greenprune.energy.reading import Component, Part

POWERCAP = Path("/sys/class/powercap")
COMPONENTS: dict[str, Component] = {"package": "cpu", "dram": "ram"}


@dataclass(frozen=True)
class Zone:
    """One counter; its file wraps to 0 after `range_uj` microjoules."""

    folder: Path
    name: str
    component: Component

    @property
    def counter(self) -> Path:
        return self.folder / "energy_uj"

    @property
    def range_uj(self) -> int:
        return int((self.folder / "max_energy_range_uj").read_text())

    def read_uj(self) -> int:
        return int(self.counter.read_text())

    def readable(self) -> bool:
        return os.access(self.counter, os.R_OK)


def zones(root: Path = POWERCAP) -> list[Zone]:
    """The package and dram zones, each once, whether they can be read or not."""
    found: dict[str, Zone] = {}
    for folder in sorted([*root.glob("intel-rapl:*"), *root.glob("intel-rapl:*/intel-rapl:*")]):
        try:
            name = (folder / "name").read_text().strip()
        except OSError:
            continue
        component = COMPONENTS.get(name.split("-")[0])
        if component and (folder / "energy_uj").exists():
            found.setdefault(folder.name, Zone(folder, name, component))
    return list(found.values())


def mend(root: Path = POWERCAP) -> str | None:
    """The command that makes the counters readable; None where it isn't needed."""
    closed = [str(zone.counter) for zone in zones(root) if not zone.readable()]
    return f"sudo chmod a+r {' '.join(closed)}" if closed else None


class RaplSensor:
    """All packages of the node, and their memory where it has counters."""

    period_s: float | None = 10.0

    def __init__(self, found: list[Zone]) -> None:
        self.zones = found

    @classmethod
    def here(cls, root: Path = POWERCAP) -> RaplSensor | None:
        """None without a counter, and where one can't be read: a part of the packages is no figure."""
        found = zones(root)
        if not any(zone.component == "cpu" for zone in found) or not all(zone.readable() for zone in found):
            return None
        return cls(found)

    def open(self) -> RaplCount:
        return RaplCount(self.zones)


class RaplCount:
    """One window's reading of RAPL."""

    def __init__(self, found: list[Zone]) -> None:
        self.zones = found
        self.notes: list[str] = []
        self.ranges = [zone.range_uj for zone in found]
        self.counted = [0] * len(found)
        self.last = [zone.read_uj() for zone in found]

    def tick(self) -> None:
        for i, zone in enumerate(self.zones):
            now = zone.read_uj()
            self.counted[i] += now - self.last[i] + (self.ranges[i] if now < self.last[i] else 0)
            self.last[i] = now

    def close(self, seconds: float) -> list[Part]:
        self.tick()
        parts = []
        for component, scope in (("cpu", "package"), ("ram", "dram")):
            microjoules = [c for zone, c in zip(self.zones, self.counted, strict=True) if zone.component == component]
            if microjoules and sum(microjoules) > 0:
                parts.append(Part(component, sum(microjoules) / 1e6, "measured", "rapl", scope))  # type: ignore[arg-type]
        return parts
