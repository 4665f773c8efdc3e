"""The photos of a batch, found before there is anything of it."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from facepipe.batch.output_files import own_files
from facepipe.core.errors import UsageError
from facepipe.images.finding import find_photos

_ALLOW_MISSING = "nothing was changed; where that is as it should be, --allow-missing goes on without it"


def find_batch_photos(
    folders: Iterable[str | os.PathLike[str]],
    out: Path,
    *,
    exclude: Sequence[str] = (),
    allow_missing: bool = False,
    may_be_empty: bool = False,
) -> list[Path]:
    """Find the photos of a batch.

    Args:
        folders: Files, folders and globs.
        out: Folder of the job; what is in it is no photo of the batch.
        exclude: Patterns to pass over; see `find_photos`.
        allow_missing: Go on without folders and files that are not there, and folders without a photo.
        may_be_empty: A folder need not hold a photo.

    Raises:
        UsageError: One of the folders is not there, or holds no photo, and that is not allowed.
    """
    names = [os.path.abspath(folder) for folder in folders]
    there = [name for name in names if os.path.exists(name) or glob.has_magic(name)]
    exclude = [*exclude, *own_files(out, there)]
    if not allow_missing:
        for name in names:
            if name not in there:
                raise UsageError(f"{name}: not there (is its disk mounted?); {_ALLOW_MISSING}")
    try:
        return find_photos(there, exclude=exclude)
    except UsageError as error:
        if not (allow_missing or may_be_empty):
            raise UsageError(f"{error}; {_ALLOW_MISSING}") from error
    return find_photos([name for name in there if _holds_photos(name, exclude)], exclude=exclude)


def _holds_photos(folder: str, exclude: Sequence[str]) -> bool:
    try:
        return bool(find_photos([folder], exclude=exclude))
    except UsageError:
        return False
