"""Whether tasks and texts are read from the hub or are the stand-ins that pinned wheels hold."""

from __future__ import annotations

import logging
import os
import time
import urllib.request
from collections.abc import Callable
from typing import Literal

from greenprune.assets import answer_within

log = logging.getLogger("greenprune")
Data = Literal["hub", "assets"]
HUB_PATIENCE_S = 3.0
HUB_WAITS_S = (1.0, 4.0)  # between one request to the hub and the next


def resolve_data(
    mode: Literal["auto", "hub", "assets"],
    answers: Callable[[], bool] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Data:
    """Where task data comes from here: `auto` is the hub where it answers, else the assets, with a warning.

    One lost packet mustn't decide for a whole run, so the hub is asked three times. answers: whether it does, by
    default within 3 s; wait: lets so many seconds pass.
    """
    if mode != "auto":
        return mode
    ask = answers or _hub_answers
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        reason = "HF_HUB_OFFLINE is set"
    elif _any_time(ask, wait):
        return "hub"
    else:
        reason = f"the hub did not answer, asked {1 + len(HUB_WAITS_S)} times"
    log.warning(
        "benchmark.data auto is assets from now on (%s): tasks and texts are the stand-ins that pinned wheels hold, so "
        "compare these trials with each other only, or set benchmark.data: hub",
        reason,
    )
    return "assets"


def _any_time(ask: Callable[[], bool], wait: Callable[[float], None]) -> bool:
    for seconds in (*HUB_WAITS_S, None):
        if ask():
            return True
        if seconds is not None:
            wait(seconds)
    return False


def _hub_answers() -> bool:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

    def ask() -> bool:
        with urllib.request.urlopen(f"{endpoint}/api/datasets/allenai/ai2_arc", timeout=HUB_PATIENCE_S) as answer:
            return answer.status == 200

    try:
        return answer_within(HUB_PATIENCE_S, ask)
    except Exception:  # whatever kept it from that
        return False
