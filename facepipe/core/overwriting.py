"""Which files may be replaced: those that facepipe wrote in the same form, any other only when asked."""

from __future__ import annotations

import errno
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from facepipe.core.csv_files import BOM
from facepipe.core.errors import OutputError
from facepipe.core.files import open_regular

GENERATOR = '<meta name="generator" content="facepipe">'
"""What makes a page known as one of facepipe's; within its first 4,096 bytes."""
PICTURE_SOFTWARE = "facepipe picture"
"""What makes a picture known: its EXIF tag Software, within its first or last 4,096 bytes."""
NAMESPACE = "https://facepipe.invalid/xmp/1.0/"
"""Of what facepipe writes in XMP."""
_PART_BYTES = 4096
_SQLITE = b"SQLite format 3\0"
_LOG_OF_SQLITE = re.compile(r"-(wal|shm|journal)$")


@dataclass(frozen=True, slots=True)
class Form:
    """A kind of file that facepipe writes.

    Attributes:
        name: For messages, with its article.
        is_ours: Whether an open file is one.
    """

    name: str
    is_ours: Callable[[BinaryIO], bool]


def require_replaceable(
    file: Path, form: Form, *, force: bool | None = None, inputs: Iterable[Path] = ()
) -> None:
    """Check that writing a file destroys nothing of the user's.

    An empty file, and one that facepipe wrote in this form, may be replaced; with `force` any other ordinary
    file, but no input and nothing of a gallery's or a job's database. Links, pipes and devices never may.

    Args:
        file: Where to write; need not exist.
        form: What is to be written.
        force: Whether the user asked for it; None: the command has no such option.
        inputs: Files that the command reads.

    Raises:
        OutputError: It may not be replaced, or can't be looked at.
    """
    if os.path.realpath(file) in {os.path.realpath(path) for path in inputs}:
        raise OutputError(f"{file}: is one of the files to be read; choose another name")
    if _is_of_database(file):
        raise OutputError(f"{file}: belongs to the database of a gallery or a job; choose another name")
    try:
        mode = os.lstat(file).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise OutputError(f"{file}: can't be written ({error.strerror}); choose another place") from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"{file}: is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise OutputError(f"{file}: is a link, a pipe or a device; name an ordinary file")
    if not force and not _is_ours(file, form):
        cure = "" if force is None else ", or replace it with --force"
        raise OutputError(f"{file}: exists, and is not {form.name} of facepipe; choose another name{cure}")


def _is_ours(file: Path, form: Form) -> bool:
    """Return whether it is empty, or facepipe wrote it in this form.

    Raises:
        OutputError: It may not be read.
    """
    try:
        with open_regular(file) as stream:
            return not os.fstat(stream.fileno()).st_size or form.is_ours(stream)
    except PermissionError as error:
        raise OutputError(f"{file}: exists, and can't be read; choose another name") from error
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _is_of_database(file: Path) -> bool:
    """Return whether it is a file of SQLite, or has the name of a log of one."""
    database = file.with_name(_LOG_OF_SQLITE.sub("", file.name) or file.name)
    try:
        with open_regular(database) as stream:
            return stream.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def _begins_with(start: str) -> Callable[[BinaryIO], bool]:
    encoded = start.encode()
    return lambda stream: stream.read(len(encoded)) == encoded


def _is_page(stream: BinaryIO) -> bool:
    return GENERATOR.encode() in stream.read(_PART_BYTES)


def _is_picture(stream: BinaryIO) -> bool:
    start = stream.read(_PART_BYTES)
    try:
        stream.seek(-_PART_BYTES, os.SEEK_END)
    except OSError as error:
        if error.errno != errno.EINVAL:  # shorter than that
            raise
    return PICTURE_SOFTWARE.encode() in start + stream.read()


def _holds_members(*names: str) -> Callable[[BinaryIO], bool]:
    def is_ours(stream: BinaryIO) -> bool:
        with zipfile.ZipFile(stream) as archive:
            return set(names) == {name for name in archive.namelist() if not name.startswith("crops/")}

    return is_ours


def _is_named_copy(stream: BinaryIO) -> bool:
    return NAMESPACE.encode() in stream.read()


PAGE = Form("a page", _is_page)
PICTURE = Form("a picture", _is_picture)
NAMED_COPY = Form("a copy of a photo with names", _is_named_copy)
RECORDS = Form("a file of results", _begins_with('{"photo": '))
TABLE = Form("a table", _begins_with(f"{BOM}photo,error,face,"))
VECTORS = Form("a file of vectors", _holds_members("paths.npy", "boxes.npy", "embeddings.npy"))
DECISIONS = Form("a file of decisions", _begins_with('{"format": "facepipe decisions"'))
ARCHIVE = Form("an archive", _holds_members("people.json", "vectors.safetensors"))
VIDEO = Form("a video that is known as one", lambda stream: False)
