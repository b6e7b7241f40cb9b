"""Weights that stay in their files, so that a model far larger than memory can be looked at and pruned.

Transformers maps a safetensors checkpoint: a page of it is read when it is asked for. Two things are missing for
bounded memory. Pages that were read stay with the process, and what pruning changes is new memory. `put_away` sees to
both: pages as they are in the file are given back, and what isn't is written to a file of its own and mapped in its
turn. So code that goes through the layers and puts each one away when it is done needs the memory of one layer, and
gives bit for bit what it gives in memory, for it is the same code.

A small model just stays in memory: nothing is put away there. So does one from pickled weights, and one on a GPU.
"""

from __future__ import annotations

import ctypes
import mmap
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from greenprune.storage import cache_dir

IN_FILES_FROM = 2 << 30  # bytes of weights
MADV_DONTNEED = 4  # madvise(2): a private mapping's page is read from its file again when it is next asked for
MARK = "_in_file"  # attribute of a parameter that belongs into a file


@dataclass(frozen=True)
class InFile:
    """Where a parameter lies in a mapped file, and its version then. `weight` keeps the mapping alive."""

    weight: Tensor
    version: int

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether the parameter is what the file says; what was set or changed in place isn't."""
        return parameter.data_ptr() == self.weight.data_ptr() and parameter._version == self.version


def leave_in_files(model: nn.Module) -> None:
    """From now on `put_away` puts away those of the model's weights that are mapped from safetensors.

    They must not be changed through `.data` or NumPy, which nothing would notice; in-place changes by torch are fine.
    """
    mapped = _mapped_ranges()
    for parameter in model.parameters():
        start, size = parameter.data_ptr(), parameter.nbytes
        if parameter.device.type == "cpu" and any(low <= start and start + size <= high for low, high in mapped):
            setattr(parameter, MARK, InFile(parameter.detach(), parameter._version))


def belongs_with(parameter: nn.Parameter, like: nn.Parameter) -> nn.Parameter:
    """The parameter, to be put away where `like` is, whose place it takes; what was read of `like` is freed."""
    if hasattr(like, MARK):
        setattr(parameter, MARK, None)
        place: InFile | None = getattr(like, MARK)
        if place is not None and place.holds(like):  # else a change may still be asked for
            _give_back(like)
    return parameter


def put_away(weights: nn.Module | Iterable[nn.Parameter]) -> None:
    """Free the memory of weights that belong into files; their values stay as they are, and are read when asked for.

    Raises OSError where the cache's disk is full.
    """
    parameters = weights.parameters() if isinstance(weights, nn.Module) else weights
    changed = []
    for parameter in {id(each): each for each in parameters if hasattr(each, MARK)}.values():
        place: InFile | None = getattr(parameter, MARK)
        if place is not None and place.holds(parameter):
            _give_back(parameter)
        else:
            changed.append(parameter)
    if changed:
        _write(changed)


@contextmanager
def borrowed(weights: nn.Module | Iterable[nn.Parameter]) -> Iterator[None]:
    """Weights that are put away when the `with` ends."""
    weights = weights if isinstance(weights, nn.Module) else [*weights]
    try:
        yield
    finally:
        put_away(weights)


def _write(parameters: list[nn.Parameter]) -> None:
    """Into one new file, which has no name any more: it is gone when nothing maps it."""
    folder = cache_dir() / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "changed.safetensors"
        save_file({str(number): each.detach().contiguous() for number, each in enumerate(parameters)}, path)
        with safe_open(path, framework="pt") as file:
            mapped = [file.get_tensor(str(number)) for number in range(len(parameters))]
    for parameter, weight in zip(parameters, mapped, strict=True):
        before: InFile | None = getattr(parameter, MARK)
        parameter.data = weight
        setattr(parameter, MARK, InFile(weight, parameter._version))
        for read in (weight, before.weight if before else None):
            if read is not None:
                _give_back(read)


def _give_back(weight: Tensor) -> None:
    """The whole pages of a mapped tensor; those that it shares with its neighbours stay."""
    first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (weight.data_ptr() + weight.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if size > 0:
        _dont_need(first, size)


def _dont_need(start: int, size: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), MADV_DONTNEED)


@contextmanager
def read_only(every_s: float = 0.2) -> Iterator[None]:
    """Pages of mapped safetensors are given back while the `with` lasts: for code of others that reads them all once.

    No weight that is mapped may have been changed, or be changed in it.
    """
    done = threading.Event()

    def give_back() -> None:
        while not done.wait(every_s):
            for low, high in _mapped_ranges():
                _dont_need(low, high - low)

    thread = threading.Thread(target=give_back, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _mapped_ranges() -> list[tuple[int, int]]:
    """The addresses of all mapped safetensors files; none where the system doesn't tell (not Linux)."""
    maps = Path("/proc/self/maps")
    lines = [line.split(maxsplit=5) for line in maps.read_text().splitlines()] if maps.exists() else []
    files = [line[0].split("-") for line in lines if len(line) > 5 and ".safetensors" in line[5] and "p" in line[1]]
    return [(int(low, 16), int(high, 16)) for low, high in files]
