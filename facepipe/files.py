"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that becomes `path` when the block ends well, and is gone when it doesn't.

    The bytes go to a hidden temporary file in the same folder, are synced to disk, and then take the
    place of `path`: a reader, or whoever comes after a killed process, sees the old file or the new one.

    Raises:
        OSError: The folder does not exist or can't be written.
    """
    temporary = temporary_beside(path)
    with temporary.open("xb") as stream:
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        except BaseException:
            stream.close()  # Windows removes no open file
            temporary.unlink(missing_ok=True)
            raise
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def temporary_beside(path: Path, suffix: str = "") -> Path:
    """A hidden name in the folder of `path` that no file has, `.part` or `.part` and `suffix` at its end.

    Its length does not depend on the name of `path`, which may be as long as the file system allows.
    """
    return path.with_name(f".{secrets.token_hex(8)}.part{suffix}")


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    Raises:
        OSError: The folder does not exist or can't be written; no temporary file is left behind.
    """
    with atomic_file(path) as stream:
        stream.write(data)


def sync_folder(folder: Path) -> None:
    """Make the renames in `folder` survive a power cut. Windows can't open folders and needs no sync."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def utf8_name(path: str) -> Iterator[str]:
    """A name for a file or folder that is there, to give to a C library.

    OpenCV takes names as UTF-8, and crashes the process on others. While the block runs, such a file can be
    reached through its descriptor.

    Raises:
        OSError: It can't be opened.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield f"/dev/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield path
