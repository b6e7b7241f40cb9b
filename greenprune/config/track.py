"""The experiment trackers that a sweep may tell of its trials. Where each keeps them is its own setting."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from greenprune.errors import ConfigError

TrackerName = Literal["tensorboard", "mlflow", "wandb"]


@dataclass(frozen=True)
class Tracker:
    """callback: "module:class" of one of Ray's callbacks, made with a run's folder. library: the module it imports."""

    callback: str
    library: str
    where: str


TRACKERS: dict[TrackerName, Tracker] = {
    "tensorboard": Tracker(
        "greenprune.sweep.track.tensorboard:ToTensorBoard", "tensorboardX", "files in the run's folder `tensorboard`"
    ),
    "mlflow": Tracker("greenprune.sweep.track.mlflow:ToMLflow", "mlflow", "$MLFLOW_TRACKING_URI"),
    "wandb": Tracker("greenprune.sweep.track.wandb:ToWandb", "wandb", "$WANDB_PROJECT, by $WANDB_API_KEY or its login"),
}


def refuse_missing(track: list[TrackerName]) -> None:
    """Raises ConfigError where a tracker's library isn't installed here, where the sweep's command runs."""
    for name in track:
        library = TRACKERS[name].library
        if find_spec(library) is None:
            raise ConfigError(
                f"sweep.track must name trackers whose library is installed, got {name} and no {library}; "
                f"run: pip install 'greenprune[{name}]', or take it out"
            )
