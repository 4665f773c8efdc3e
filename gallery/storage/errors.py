"""Kinds of errors of a gallery's database, whichever it is."""

from __future__ import annotations

from facepipe.core.errors import GalleryError
from facepipe.gallery.storage.schema import SCHEMA_VERSION

DAMAGED = "the gallery is damaged: restore a backup, or run `facepipe gallery repair`"


def newer_schema(name: str, version: int) -> str:
    """Return the message about a database of a newer facepipe."""
    known = f"schema {version}, this one knows {SCHEMA_VERSION}"
    return f"{name}: made by a newer facepipe ({known}): upgrade facepipe"


class DamagedDatabaseError(GalleryError):
    """What the database holds can't be used."""


class LostDatabaseError(GalleryError):
    """The database's server or file can't be reached, or no longer the one that was opened.

    Another try may go well, at least after the gallery was opened again.
    """


class UnknownOutcomeError(LostDatabaseError):
    """The connection was lost while a change was committed: whether it was done is not known."""


class BusyDatabaseError(GalleryError):
    """Another process has kept a lock for longer than the caller would wait."""
