"""Whether there is a gallery in a folder, and of which encoder; making an empty one."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path

from facepipe.core.errors import GalleryError
from facepipe.core.files import make_private_folder
from facepipe.gallery.models import EncoderIdentity
from facepipe.gallery.storage.encryption import key_statements, new_codec
from facepipe.gallery.storage.sqlite.database import Database, create_database
from facepipe.gallery.storage.sqlite.schema import creating_statements
from facepipe.gallery.storage.store import Store

STORE_FILE = "gallery.sqlite3"
_MISSING = "there is no gallery: make one with `facepipe enroll` or `facepipe batch`"

logger = logging.getLogger("facepipe")


def open_store(path: Path, encoder: EncoderIdentity | None, create: bool, secret: bytes | None) -> Store:
    """Open the store of the gallery in folder `path`; the arguments are those of `Gallery.open`.

    Raises:
        GalleryError: There is no gallery, it can't be opened, it is damaged, of another encoder, or the key
            is not its own.
    """
    file = path / STORE_FILE
    try:
        if not file.exists():
            _create(path, encoder if create else None, secret)
    except OSError as error:
        raise GalleryError(f"{path}: no gallery can be opened there ({error.strerror})") from error
    store = Store(Database(file), secret)
    try:
        if create:
            store.require_no_unused_key()
        elif store.has_unused_key:
            logger.warning("%s: a key is given, but the gallery is not encrypted (`gallery encrypt`)", path)
        require_same_encoder(path, store, encoder)
    except BaseException:
        store.close()
        raise
    return store


def require_gallery(path: Path) -> None:
    """Check that there is a gallery in folder `path`.

    Raises:
        GalleryError: There is none.
    """
    if not (path / STORE_FILE).exists():
        raise GalleryError(f"{path}: {_MISSING}")


def require_same_encoder(path: Path, store: Store, encoder: EncoderIdentity | None) -> None:
    """Check that `encoder`, where one is given, makes embeddings that can be compared with the stored ones.

    Raises:
        GalleryError: It does not.
    """
    if encoder is not None and not encoder.makes_same_vectors_as(store.encoder):
        with store.reading():
            store.require_whole("meta")
        go_on = f"go on with --encoder-weights {store.encoder.name}"
        if store.encoder.name == encoder.name:  # which were trained further since
            go_on = "go on with the version of facepipe that made it"
        raise GalleryError(
            f"{path}: this gallery holds vectors of {store.encoder}, which can't be compared with those "
            f"of {encoder}: {go_on}, or make the gallery anew for the other encoder (`facepipe gallery "
            "reembed`)"
        )


def make_folder(path: Path) -> None:
    """Make a private folder, unless it exists.

    Raises:
        GalleryError: It can't be made.
    """
    try:
        make_private_folder(path)
    except OSError as error:
        raise GalleryError(f"{path}: the folder can't be made ({error.strerror})") from error


def _create(path: Path, encoder: EncoderIdentity | None, secret: bytes | None) -> None:
    if path.exists() and not path.is_dir():
        raise GalleryError(f"{path}: a gallery is a folder, this is a file")
    if encoder is None:
        raise GalleryError(f"{path}: {_MISSING}")
    make_folder(path)
    statements = chain(creating_statements(encoder), key_statements(new_codec(secret)))
    create_database(path / STORE_FILE, statements)
