"""What a finished artifact's folder holds: a manifest with the size and sha256 of every file, and whether that is so.

A power cut or a torn upload leaves files that look finished. So a folder is sealed before it counts: every file is on
the disk, then the manifest says what they are. It is checked where it is first used on a machine: sizes always, the
content once a machine.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greenprune.storage.files import cache_dir, sync, write_atomically

MANIFEST = "manifest.json"


def seal(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest: `facts`, and `files` (bytes) and `sha256` by each file's name. All is on the disk then."""
    files, sums = {}, {}
    for path in sorted(path for path in folder.rglob("*") if path != folder / MANIFEST):
        sync(path)
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name], sums[name] = path.stat().st_size, _sha256(path)
    manifest = {**facts, "files": files, "sha256": sums}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))
    _remember_checked(folder)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None where it has none that can be read."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def holds_all_files(folder: Path) -> bool:
    """Whether every file of the manifest is here; the mirror of an object store may hold the manifest alone."""
    manifest = read_manifest(folder)
    return manifest is not None and all((folder / name).exists() for name in manifest.get("files", {}))


def damage(folder: Path, content: bool = True) -> str | None:
    """The first thing in a folder that isn't as its manifest says; None where all is. Content is read once a machine,
    where it is asked for.

    Artifacts of before have no checksums: of them only the sizes are compared.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or can't be read"
    if problem := _wrong_size(folder, manifest.get("files", {})):
        return problem
    if not content or _is_checked(folder):
        return None
    if problem := _wrong_content(folder, manifest.get("sha256", {})):
        return problem
    _remember_checked(folder)
    return None


def damage_of_part(folder: Path, part: str) -> str | None:
    """The same of one file, or of the files in one folder, of an artifact: whatever else of it may not be here."""
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or can't be read"
    listed = {name for name in manifest.get("files", {}) if Path(name).is_relative_to(part)}
    sizes, sums = ({n: v for n, v in manifest.get(of, {}).items() if n in listed} for of in ("files", "sha256"))
    return _wrong_size(folder, sizes) or _wrong_content(folder, sums)


def _wrong_size(folder: Path, sizes: Mapping[str, int]) -> str | None:
    for name, size in sizes.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes for {size}"
    return None


def _wrong_content(folder: Path, sums: Mapping[str, str]) -> str | None:
    for name, expected in sums.items():
        if _sha256(folder / name) != expected:
            return f"{name} has another content than the one that was written"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _mark(folder: Path) -> Path:
    """Where this machine remembers that it has checked a folder. The last part of its name, its key, is its own."""
    place = f"{socket.gethostname()}:{folder.resolve().with_suffix('')}"
    return cache_dir() / "checked" / hashlib.sha256(place.encode()).hexdigest()[:32]


def _is_checked(folder: Path) -> bool:
    mark = _mark(folder)
    return mark.exists() and mark.read_text() == _sha256(folder / MANIFEST)


def forget_checked(folder: Path) -> None:
    """Its content comes from elsewhere once more, so it has to be read once more."""
    _mark(folder).unlink(missing_ok=True)


def _remember_checked(folder: Path) -> None:
    write_atomically(_mark(folder), _sha256(folder / MANIFEST))
