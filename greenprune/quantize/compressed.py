"""W8A8 and W4A16 in the format of compressed-tensors, by llm-compressor's GPTQ on the trial's calibration text.

llm-compressor works in another process, with another Python (toolchain.py): a job in JSON goes in, a checkpoint comes
out, and what went wrong comes back as this process's error.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from greenprune.config import QuantizeConfig
from greenprune.errors import GreenpruneError
from greenprune.models import modeling_pruned
from greenprune.quantize import oneshot
from greenprune.quantize.fits import largest_group
from greenprune.quantize.toolchain import required_python

GROUPS = (128, 64, 32)  # columns that share a scale, of those that kernels know
OUR_CODE = Path(modeling_pruned.__file__)


def write_compressed(
    checkpoint: Path,
    out: Path,
    config: QuantizeConfig,
    tokens: torch.Tensor | None,
    dtype: str,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """As quantize.QuantizingFunction says. Raises GreenpruneError with what llm-compressor's process said last."""
    assert tokens is not None, "the entry asks for tokens"
    group = largest_group(checkpoint, GROUPS, trust_remote_code) if config.method == "w4a16" else None
    with tempfile.TemporaryDirectory(prefix="greenprune-quantize-") as place:
        source, own_code = _with_code_of_ours(checkpoint, Path(place) / "checkpoint")
        save_file({"tokens": tokens.contiguous()}, Path(place) / "tokens.safetensors")
        job = {
            "checkpoint": str(source),
            "out": str(out),
            "tokens": str(Path(place) / "tokens.safetensors"),
            "scheme": config.method.upper(),
            "group_size": group,
            "dtype": dtype,
            "trust_remote_code": trust_remote_code or own_code,
        }
        (Path(place) / "job.json").write_text(json.dumps(job))
        versions = _run(Path(place) / "job.json", Path(place))
    if own_code:
        shutil.copyfile(OUR_CODE, out / OUR_CODE.name)
    return {"group_size": group, **versions}


def _with_code_of_ours(checkpoint: Path, place: Path) -> tuple[Path, bool]:
    """The checkpoint, for a process without greenprune: with this version's own modelling code where it needs that, so
    that no code that came with it runs."""
    if not (checkpoint / OUR_CODE.name).is_file():
        return checkpoint, False
    place.mkdir()
    for path in checkpoint.iterdir():
        if path.name != OUR_CODE.name:
            (place / path.name).symlink_to(path.absolute())
    shutil.copyfile(OUR_CODE, place / OUR_CODE.name)
    return place, True


def _run(job: Path, work: Path) -> dict[str, str]:
    command = [str(required_python()), "-P", oneshot.__file__, str(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing"]
        raise GreenpruneError(
            f"llm-compressor must quantise the model, got exit status {done.returncode}: {said[-1][:500]}; "
            f"the last of what it said:\n{chr(10).join(said[-15:])}"
        )
    versions: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return versions
