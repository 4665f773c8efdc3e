"""An official download: its folder as unpacked, or else its zip file."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from facepipe.core.errors import DataError, OutputError
from facepipe.core.files import atomic_write_bytes, make_private_folder
from facepipe.evaluation.labels.fields import read_file

_MAX_FILE_BYTES = 1 << 28
"""Of one file in an archive: photos and labels of WIDER FACE have 20 MB at most."""


class Download:
    """Files of one download, by their paths in it.

    Args:
        parent: Folder that holds the folder `name` or the file `name.zip`; the folder goes first.
        name: Of the download.
    """

    def __init__(self, parent: Path, name: str) -> None:
        self._name = name
        self._folder = parent / name
        self._zip = parent / f"{name}.zip"

    def __str__(self) -> str:
        return str(self._folder if self._folder.is_dir() else self._zip)

    @property
    def exists(self) -> bool:
        """Whether it is there, in either form."""
        return self._folder.is_dir() or self._zip.is_file()

    def has(self, inner: str) -> bool:
        """Return whether it holds a file.

        Raises:
            DataError: The zip file is damaged.
        """
        if self._folder.is_dir():
            return (self._folder / inner).is_file()
        return self._zip.is_file() and self._member(inner) is not None

    def read(self, inner: str) -> bytes:
        """Read a file that is there.

        Raises:
            DataError: It is damaged, or can't be read.
        """
        if self._folder.is_dir():
            return read_file(self._folder / inner)
        member = self._member(inner)
        if member is None or member.file_size > _MAX_FILE_BYTES:
            raise DataError(f"{self._zip}: holds no {inner}, or one that is too large; download it again")
        with self._damage_named():
            return self._archive.read(member)

    def place(self, inner: str, target: Path) -> str:
        """Put a file that is there at another place, as a hard link where possible.

        Returns:
            How: "hard link", "copied file" or "extracted file"; or "earlier file" that was at the target.

        Raises:
            DataError: It is damaged, or can't be read.
            OutputError: The target can't be written.
        """
        if os.path.lexists(target):
            return "earlier file"
        unpacked = self._folder.is_dir()
        try:
            make_private_folder(target.parent)
            if unpacked and _linked(self._folder / inner, target):
                return "hard link"
            atomic_write_bytes(target, self.read(inner))
        except OSError as error:
            raise OutputError(
                f"{target}: can't be written ({error.strerror}); check room and rights"
            ) from error
        return "copied file" if unpacked else "extracted file"

    def _member(self, inner: str) -> zipfile.ZipInfo | None:
        members = self._members
        return members.get(f"{self._name}/{inner}") or members.get(inner)

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        with self._damage_named():
            return zipfile.ZipFile(self._zip)

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        return self._archive.NameToInfo

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self._zip}: can't be read ({error.strerror}); check its rights") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{self._zip}: damaged or cut off ({error}); download it again") from error


def _linked(source: Path, target: Path) -> bool:
    """Return whether a file has a second name now; some file systems, and links between two, have none."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        return False
    return True
