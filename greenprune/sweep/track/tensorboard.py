"""TensorBoard's files: `tensorboard --logdir runs/NAME/tensorboard`. Ray puts `ray/tune/` before each metric's name."""

from __future__ import annotations

from ray.tune.logger import TBXLoggerCallback

from greenprune.sweep.run_folder import RunFolder


class ToTensorBoard(TBXLoggerCallback):
    def __init__(self, run: RunFolder) -> None:
        super().__init__()
