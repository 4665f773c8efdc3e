"""Paths as callers give them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

AnyPath = str | os.PathLike[str]


def each_path(paths: AnyPath | Iterable[AnyPath]) -> Iterable[AnyPath]:
    """Return the paths, also where it is a single one: text is never taken letter by letter."""
    return [paths] if isinstance(paths, str | os.PathLike) else paths


def is_inside(path: AnyPath, folder: AnyPath) -> bool:
    """Return whether a path is a folder or leads into it, all links followed; neither need exist."""
    real, root = (os.path.normcase(os.path.realpath(each)) for each in (path, folder))
    return Path(real).is_relative_to(root)
