"""Private copies and folders beside a gallery, for what is taken out of it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from facepipe.core.file_names import with_ending
from facepipe.core.files import PRIVATE_FOLDER_MODE, atomic_file, open_regular, remove_dead_temporaries

_ASIDE = re.compile(r"\.(?:damaged|replaced)-\d{8}T\d{6}-[0-9a-f]{8}$")


def copy_private(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all, closed to other users."""
    with open_regular(source) as original, atomic_file(target) as out:
        shutil.copyfileobj(original, out)


def remove_left_over(gallery: Path) -> None:
    """Remove the temporary files that killed processes left in a gallery's folder and in those beside it."""
    remove_dead_temporaries(gallery)
    gallery = gallery.resolve()
    with suppress(OSError):  # the folder above may not be read
        for name in os.listdir(gallery.parent):
            ending = _ASIDE.search(name)
            if ending and with_ending(gallery.name, ending[0]) == name:
                remove_dead_temporaries(gallery.parent / name)


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
