"""Where facepipe keeps what belongs to the user: imported weights, downloads, remembered hashes."""

from __future__ import annotations

import os
from pathlib import Path

from facepipe.errors import UsageError


def facepipe_home() -> Path:
    """The user's own folder: `$FACEPIPE_HOME`, or `~/.facepipe`. It need not exist yet.

    Raises:
        UsageError: The variable is unset and the system knows no home folder.
    """
    try:
        return Path(os.environ.get("FACEPIPE_HOME") or "~/.facepipe").expanduser()
    except RuntimeError as error:
        raise UsageError(
            "no home folder found: set FACEPIPE_HOME to a folder for facepipe's files"
        ) from error
