"""Paths as callers give them."""

from __future__ import annotations

import os
from collections.abc import Iterable

AnyPath = str | os.PathLike[str]


def each_path(paths: AnyPath | Iterable[AnyPath]) -> Iterable[AnyPath]:
    """Return the paths, also where it is a single one: text is never taken letter by letter."""
    return [paths] if isinstance(paths, str | os.PathLike) else paths
