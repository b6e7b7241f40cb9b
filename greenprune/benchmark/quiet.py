"""lm-eval without its noise: progress goes to our log, warnings of its set-up nowhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from greenprune.logs import Seldom, only_errors_of

log = logging.getLogger("greenprune")
REPORT_EVERY_S = 30.0
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


class LoggedProgress:
    """Stands in for tqdm: a line in the log every half minute instead of a bar."""

    label = ""

    def __init__(self, iterable: Iterable[Any] = (), total: int | None = None, **_: Any) -> None:
        self.iterable = iterable
        self.total = total
        self.done = 0
        self.lines = Seldom(REPORT_EVERY_S)

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        self.done += count
        if self.total and self.lines.due():
            log.info("%s %.0f %%", type(self).label, 100 * self.done / self.total)

    def close(self) -> None:
        return


@contextmanager
def quiet_harness(label: str) -> Iterator[None]:
    """Inside, lm-eval and datasets print nothing; long loops report as `label`."""
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface
    import tqdm

    progress = type("Progress", (LoggedProgress,), {"label": label})
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with only_errors_of("lm_eval"), ExitStack() as stack:
            for home in (tqdm, lm_eval.api.task, lm_eval.api.model, lm_eval.models.huggingface):
                stack.enter_context(replaced(home, "tqdm", progress))
            yield
    finally:
        if not bars:
            datasets.enable_progress_bars()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, the attribute has another value."""
    former = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)


@contextmanager
def offline(active: bool = True) -> Iterator[None]:
    """Inside, Hugging Face libraries stay off the network; they read the environment only when imported."""
    if not active:
        yield
        return
    import datasets.config
    import huggingface_hub.constants

    former = {name: os.environ.get(name) for name in OFFLINE_VARIABLES}
    os.environ.update(dict.fromkeys(OFFLINE_VARIABLES, "1"))
    try:
        with (
            replaced(datasets.config, "HF_HUB_OFFLINE", True),
            replaced(datasets.config, "HF_DATASETS_OFFLINE", True),
            replaced(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        ):
            yield
    finally:
        for name, value in former.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
