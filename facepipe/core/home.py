"""Where facepipe keeps what belongs to the user: imported weights, downloads, remembered hashes."""

from __future__ import annotations

import os
from pathlib import Path

from facepipe.core.errors import UsageError


def facepipe_home() -> Path:
    """Return the user's own folder: `$FACEPIPE_HOME`, or `~/.facepipe`. It need not exist yet.

    Raises:
        UsageError: The variable is unset and the system knows no home folder.
    """
    try:
        return expand_home(os.environ.get("FACEPIPE_HOME") or "~/.facepipe")
    except UsageError as error:
        raise UsageError(
            "no home folder found: set FACEPIPE_HOME to a folder for facepipe's files"
        ) from error


def default_gallery() -> Path:
    """Return the user's own gallery: `gallery` in `facepipe_home()`."""
    return facepipe_home() / "gallery"


def expand_home(path: str) -> Path:
    """Return a path that may begin with `~` or `~user`.

    Raises:
        UsageError: The system knows no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: no such home folder; write the whole path") from error
