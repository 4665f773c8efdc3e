"""Files written for photos' results: where they are, and which of them a job may remove.

A job file is no more to be trusted than any other file, so nothing is removed by a whole path that stands in
it. Pictures have names relative to the job's folder of their kind, and neither `..` nor a link leads out of
it. A sidecar is beside its photo; it is changed, and never removed.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from facepipe.core.errors import OutputError
from facepipe.core.paths import is_inside

PICTURE_KINDS = ("annotated", "crops", "embedded")
"""Kinds of pictures, and their folders in the job's."""
SIDECAR_KIND = "xmp in the stored frame"
"""Another name than "xmp", which were regions in another frame: they are made again."""
TAGGED_SIDECAR_KIND = "xmp with keywords"
EMBEDDED_KIND = "xmp in the photo"
"""Names in the photo itself; the file is the photo, or its sidecar where the photo can't hold names."""
SIDECAR_KINDS = (SIDECAR_KIND, TAGGED_SIDECAR_KIND)
"""Kinds of one file: what was written into it, regions alone or keywords too."""


def own_files(job_folder: Path, folders: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return patterns of what is no photo of a batch, to be excluded from a search.

    Args:
        job_folder: All in it, or its pictures where it is itself searched for photos.
        folders: That are searched; a link may lead to them, or to the job's.
    """
    real = os.path.realpath(job_folder)
    own = {os.path.abspath(job_folder), real}
    for folder in folders:
        if is_inside(Path(real), Path(folder)):
            own.add(os.path.join(os.path.abspath(folder), os.path.relpath(real, os.path.realpath(folder))))
    names = [name for path in own for name in (path, *(os.path.join(path, kind) for kind in PICTURE_KINDS))]
    return [glob.escape(os.path.normpath(name)) for name in names]


def picture_folder(job_folder: Path, kind: str) -> Path:
    """Return the folder of the pictures of a kind; it need not exist.

    Raises:
        OutputError: It is a link: what is behind it may be anybody's.
    """
    folder = job_folder / kind
    expected = os.path.join(os.path.realpath(job_folder), kind)
    if os.path.normcase(os.path.realpath(folder)) != os.path.normcase(expected):
        raise OutputError(
            f"{folder}: is a link, and pictures are kept in {job_folder} itself; remove the link"
        )
    return folder


def output_folder(job_folder: Path, kind: str, photo: Path) -> Path:
    """Return what the names of a photo's files are relative to; raises as `picture_folder`."""
    return picture_folder(job_folder, kind) if kind in PICTURE_KINDS else photo.parent


def require_names(names: object) -> tuple[str, ...]:
    """Names of files that stay below whatever folder they are taken in.

    Raises:
        ValueError: They are something else.
    """
    if not isinstance(names, list) or not all(_is_name_below(name) for name in names):
        raise ValueError("expected names of files below a folder")
    return tuple(names)


def names_to_text(names: Iterable[str]) -> str:
    """As JSON."""
    return json.dumps(list(names))


def names_of(text: str) -> tuple[str, ...]:
    """Read the stored names; raises as `require_names`."""
    return require_names(json.loads(text))


def _is_name_below(name: object) -> bool:
    if not isinstance(name, str) or "\0" in name:
        return False
    path = PurePath(name)
    os.fsencode(name)  # surrogates that stand for no byte
    return bool(path.parts) and not path.anchor and ".." not in path.parts and path.as_posix() == name


def remove_pictures(job_folder: Path, kind: str, names: Iterable[str]) -> None:
    """Remove outdated pictures, where they are still there.

    Raises:
        OutputError: One can't be removed, or a link on the way to it leads out of the job's folder.
    """
    for name in names:
        folder = picture_folder(job_folder, kind)
        file = folder / name
        if not is_inside(file.parent, folder):
            raise OutputError(f"{file.parent}: leads out of {folder} by a link; remove the link")
        try:
            file.unlink(missing_ok=True)
        except NotADirectoryError:
            continue
        except OSError as error:
            raise OutputError(f"{file}: outdated, and can't be removed ({error.strerror})") from error


def names_of_before(job_folder: Path, kind: str, files: str) -> tuple[str, ...] | None:
    """Names of the files of a job of before, which remembered whole paths, as somebody had spelled them.

    Its folder may have been renamed, moved or copied since, so of a path only what follows the folder of the
    kind counts.

    Args:
        job_folder: Where the job is now.
        kind: Of the files.
        files: JSON list of paths.

    Returns:
        None where a picture is not in this folder: it is made again.

    Raises:
        ValueError: `files` is something else.
    """
    paths = json.loads(files)
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("expected paths of files")
    if kind not in PICTURE_KINDS:
        return require_names([PurePath(path).name for path in paths])
    names = [_name_below(job_folder / kind, PurePath(path)) for path in paths]
    return None if None in names else require_names(names)


def _name_below(folder: Path, path: PurePath) -> str | None:
    """The end of a path, from a part that is named like the folder, where such a file is in the folder."""
    parts = path.parts
    for at, part in enumerate(parts):
        name = PurePath(*parts[at + 1 :]).as_posix()
        if part == folder.name and _is_name_below(name) and os.path.isfile(folder / name):
            return name
    return None
