"""RAPL: the counters of CPU packages and memory that Linux shows below /sys/class/powercap.

They count microjoules and wrap (a busy package in minutes), so a window looks at them now and then. The
`core` and `uncore` zones lie within `package` and don't count again; `dram` is listed below its package but is
not part of it. Since 2020 only root may read them until somebody says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from greenprune.energy.counting import Component, Counted, Found, Part

POWERCAP = Path("/sys/class/powercap")
COMPONENTS: dict[str, Component] = {"package": "cpu", "dram": "ram"}
SCOPES: dict[Component, str] = {"cpu": "package", "ram": "dram"}


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


def zones(root: Path | None = None) -> list[Zone]:
    """The package and dram zones below `root` (POWERCAP), each once, whether they can be read or not."""
    root = root or POWERCAP
    zones_by_folder: dict[str, Zone] = {}
    for folder in sorted([*root.glob("intel-rapl:*"), *root.glob("intel-rapl:*/intel-rapl:*")]):
        try:
            name = (folder / "name").read_text().strip()
        except OSError:
            continue
        component = COMPONENTS.get(name.split("-")[0])
        if component and (folder / "energy_uj").exists():
            zones_by_folder.setdefault(folder.name, Zone(folder, name, component))
    return list(zones_by_folder.values())


def mend(root: Path | None = None) -> str | None:
    """The command that makes the counters readable; None where it isn't needed."""
    closed = [str(zone.counter) for zone in zones(root) if not zone.readable()]
    return f"sudo chmod a+r {' '.join(closed)}" if closed else None


class RaplSensor:
    """All packages of the node, and their memory where it has counters."""

    period_s: float | None = 10.0
    counts_whole_node = True

    def __init__(self, zones: Sequence[Zone]) -> None:
        self.zones = zones

    @classmethod
    def here(cls, root: Path | None = None) -> RaplSensor | None:
        """None without a counter, and where one can't be read: a part of the packages is no figure."""
        listed = zones(root)
        if not any(zone.component == "cpu" for zone in listed) or not all(zone.readable() for zone in listed):
            return None
        return cls(listed)

    def open(self) -> RaplCount:
        return RaplCount(self.zones)


class RaplCount:
    """One window's reading of RAPL."""

    def __init__(self, zones: Sequence[Zone]) -> None:
        self.zones = zones
        self.counted_uj = [0] * len(zones)
        self.problem: Exception | None = None
        try:
            self.ranges = [zone.range_uj for zone in zones]
            self.last = [zone.read_uj() for zone in zones]
        except (OSError, ValueError) as problem:
            self.problem = problem

    def tick(self) -> None:
        """Look at each counter, so that no wrap is missed. One that fails spoils the window."""
        if self.problem:
            return
        try:
            for i, zone in enumerate(self.zones):
                now = zone.read_uj()
                self.counted_uj[i] += now - self.last[i] + (self.ranges[i] if now < self.last[i] else 0)
                self.last[i] = now
        except (OSError, ValueError) as problem:
            self.problem = problem

    def close(self, seconds: float) -> Counted:
        self.tick()
        if self.problem:
            return Counted((Part("cpu", None, "absent", f"a RAPL counter failed: {self.problem}", SCOPES["cpu"]),))
        parts = []
        for component, scope in SCOPES.items():
            pairs = zip(self.zones, self.counted_uj, strict=True)
            microjoules = sum(counted for zone, counted in pairs if zone.component == component)
            if microjoules > 0:
                parts.append(Part(component, microjoules / 1e6, "measured", "rapl", scope))
        still = not any(part.component == "cpu" for part in parts)
        return Counted(tuple(parts), (f"RAPL's package counters stood still for {seconds:.2f} s",) if still else ())


# -------------------------------------------------------------------------------------- on this machine (sensors.py)


def here() -> bool:
    return RaplSensor.here() is not None


def find(gpus: Sequence[int]) -> RaplSensor | None:
    """The packages count beside any GPU, as a column of their own."""
    return RaplSensor.here()


def found() -> list[Found]:
    listed = zones()
    if not listed:
        remedy = "bare metal with RAPL; a virtual machine rarely shows it"
        return [Found("cpu energy", "estimated: no RAPL counter", remedy)]
    if command := mend():
        return [Found("cpu energy", "estimated: RAPL is there but can't be read", command)]
    return [Found("cpu energy", f"measured by RAPL: {', '.join(zone.name for zone in listed)}", measures=here())]


def why_not() -> str:
    if command := mend():
        return f"RAPL is there but can't be read: {command}"
    if not zones():
        return "no sensor, this machine shows no RAPL counter (a virtual machine rarely does)"
    return ""
