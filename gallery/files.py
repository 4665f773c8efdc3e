"""Private copies and folders beside a gallery, for what is taken out of it."""

from __future__ import annotations

import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

from facepipe.file_names import with_ending
from facepipe.files import PRIVATE_FOLDER_MODE, atomic_file, open_regular


def copy_private(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all, closed to other users."""
    with open_regular(source) as original, atomic_file(target) as out:
        shutil.copyfileobj(original, out)


def make_folder_aside(gallery: Path, why: str) -> Path:
    """Make a private folder beside the gallery's, `NAME.WHY-TIME-...`, for what is taken out of it.

    Raises:
        OSError: It can't be made.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    gallery = gallery.resolve()
    aside = gallery.parent / with_ending(gallery.name, f".{why}-{stamp}-{secrets.token_hex(4)}")
    aside.mkdir(PRIVATE_FOLDER_MODE)
    return aside
