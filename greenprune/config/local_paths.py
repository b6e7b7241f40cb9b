"""What a configuration names on this machine, as absolute paths: the same from any directory and on any node.

A model is a path where it is written as one (./x, ../x, ~/x, /x), or where it is the name of a folder and no hub id has
that form. A text is a path by its suffix.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greenprune.config.texts import FILES_AT, MODEL, is_file, named_in, split_revision
from greenprune.errors import ConfigError


def absolute(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of an experiment's data, or of overrides by their dotted keys, with paths relative to `folder` made
    absolute. Raises ConfigError for a model that may be a hub id and a folder.
    """

    def change(key: str, name: str) -> str:
        if key in FILES_AT:
            return _joined(name, folder)
        return absolute_model(name, folder) if key == MODEL else _text(name, folder)

    return named_in(data, change)


def absolute_model(name: str, folder: Path) -> str:
    """A model's id; of a folder, its absolute path. Raises ConfigError for one that may be a hub id too."""
    if name.startswith("pypi:"):
        return name
    if name.startswith((".", "/", "~")):
        return _joined(name, folder)
    bare = split_revision(name)[0]
    here = [place for place in (folder, Path.cwd()) if os.path.isdir(place / bare)]
    if not here:
        return name
    if bare.count("/") == 1 or folder not in here:
        raise ConfigError(
            f"model.id must be a hub id or a folder, got {name!r}, which may be the model of the hub or the folder "
            f"{here[0] / bare}; write ./{name} or an absolute path for a folder of the experiment file's directory, or "
            "rename the folder"
        )
    return _joined(name, folder)


def _text(name: str, folder: Path) -> str:
    return _joined(name, folder) if is_file(name) else name


def _joined(name: str, folder: Path) -> str:
    """`name` from `folder`; a home that nobody has stays as it is, for whoever opens it to refuse."""
    return os.path.abspath(folder / os.path.expanduser(name))
