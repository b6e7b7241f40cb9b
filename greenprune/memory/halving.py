"""A stage's work, with half the batch where memory doesn't suffice. `request` is one of stages.py, built on this."""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greenprune._callable import function_named
from greenprune.config import STAGES
from greenprune.errors import MemoryExceeded, ModelError
from greenprune.storage.files import clear

log = logging.getLogger("greenprune")


def fitted(request: Any, inputs: Mapping[str, Path | None], out: Path) -> dict[str, Any]:
    """Do a stage's work, with half the batch where memory doesn't suffice; gives what it took of memory.

    Raises MemoryExceeded where that doesn't suffice either.
    """
    import torch

    from greenprune.memory.prediction import devices_here
    from greenprune.models.load import default_device
    from greenprune.models.peak import PeakMemory, is_out_of_memory

    expected = _expected(request, inputs["checkpoint"])
    failed: list[str] = []
    for attempt in filter(None, (request, request.smaller())):
        peak = PeakMemory(torch.device(default_device()))
        try:
            facts = _work(attempt, inputs, out)
        except Exception as problem:
            if not is_out_of_memory(problem):
                raise
            failed.append(f"{_gib(peak.bytes())} ({str(problem).splitlines()[0][:120]})")
        else:
            alone = request.section.workers() == 1  # else others did the work
            measured = {"peak_memory_bytes": peak.bytes() if alone else None}
            return {**facts, **measured, "predicted_memory_bytes": expected, "halved": attempt.halved}
        log.warning("%s ran out of memory at %s", request.stage, failed[-1])
        if not STAGES[request.stage].resumes:
            clear(out)
        gc.collect()
    raise MemoryExceeded(
        f"the {request.stage} stage must fit into {_gib(devices_here().bytes)} on {socket.gethostname()}, got out of "
        f"memory at {', with half the batch at '.join(failed)}; predicted: {_gib(expected)}. Lower its batch_size, "
        f"or give it more (sweep.resources.{request.stage})"
    )


def _work(request: Any, inputs: Mapping[str, Path | None], out: Path) -> dict[str, Any]:
    """Call the stage's function; gives what it says about its artifact, for the manifest."""
    stage, (section, facts) = STAGES[request.stage], request.parts()
    options = {**request.options, "exclusive": request.exclusive} if stage.machine_bound else request.options
    return function_named(stage.function)(out, config=section, **inputs, **facts, **options) or {}


def _expected(request: Any, checkpoint: Path | None) -> int | None:
    """What the stage is predicted to take of memory here; None for a model that isn't in the table."""
    from greenprune.memory.prediction import devices_here, predicted
    from greenprune.models.sizes import sizes_of

    source = request.options.get("source")
    dtype = source.dtype if source else request.options.get("dtype", "auto")
    assert checkpoint is not None, "every stage has a model"
    try:
        sizes = sizes_of(checkpoint, dtype, source.trust_remote_code if source else False)
    except (ModelError, OSError, ValueError):  # Transformers raises these for what it doesn't know
        return None
    return predicted(request.stage, sizes, request.section, request.facts, devices_here()).total


def _gib(size: int | None) -> str:
    return "an unknown size" if size is None else f"{size / 2**30:.1f} GiB"
