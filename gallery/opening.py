"""Whether there is a gallery at an address, and of which encoder; making an empty one."""

from __future__ import annotations

import logging
import tempfile
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

from facepipe.core.errors import GalleryError, MissingExtraError
from facepipe.core.files import make_private_folder
from facepipe.gallery.address import GalleryAddress, PostgresAddress
from facepipe.gallery.models import EncoderIdentity
from facepipe.gallery.storage.encryption import key_statements, new_codec
from facepipe.gallery.storage.home import Home
from facepipe.gallery.storage.postgres.shared_store import SharedHome, SharedStore
from facepipe.gallery.storage.sqlite.database import Database, create_database
from facepipe.gallery.storage.sqlite.schema import creating_statements
from facepipe.gallery.storage.sqlite.snapshot import Snapshot
from facepipe.gallery.storage.store import Store

if TYPE_CHECKING:
    from facepipe.gallery.storage.postgres.database import PostgresDatabase

STORE_FILE = "gallery.sqlite3"
_MISSING = "there is no gallery: make one with `facepipe enroll` or `facepipe batch`"

logger = logging.getLogger("facepipe")


def open_store(
    path: GalleryAddress,
    encoder: EncoderIdentity | None,
    create: bool,
    secret: bytes | None,
    *,
    for_copy: bool = False,
) -> Store:
    """Open the store of the gallery at `path`; the arguments are those of `Gallery.open`.

    With `for_copy`, also one that another gallery is being copied into.

    Raises:
        GalleryError: There is no gallery, it can't be opened, it is damaged, of another encoder, or the key
            is not its own.
        MissingExtraError: It is in PostgreSQL, and the library for that is not installed.
    """
    created_for = encoder if create else None
    if isinstance(path, PostgresAddress):
        home: Home = open_database(path, created_for, secret)
    else:
        home = _open_file(path, created_for, secret)
    store = store_in(home, path, secret)
    try:
        if create:
            store.require_no_unused_key()
        elif store.has_unused_key:
            logger.warning("%s: a key is given, but the gallery is not encrypted (`gallery encrypt`)", path)
        require_same_encoder(path, store, encoder)
        if not for_copy:
            _require_complete(path, store)
    except BaseException:
        store.close()
        raise
    return store


def store_in(home: Home, path: GalleryAddress, secret: bytes | None = None) -> Store:
    """Return the store of a gallery whose database, at `path`, is open."""
    return (
        SharedStore(cast(SharedHome, home), secret)
        if isinstance(path, PostgresAddress)
        else Store(home, secret)
    )


def open_existing(path: GalleryAddress) -> Home:
    """Open the database of the gallery at `path`, also to be written.

    Raises:
        GalleryError: There is none.
        MissingExtraError: It is in PostgreSQL, and the library for that is not installed.
    """
    if isinstance(path, PostgresAddress):
        return open_database(path, None, None)
    require_gallery(path)
    return Database(path / STORE_FILE)


def open_to_read(path: GalleryAddress, scratch: Path | None) -> Home:
    """Open the database of the gallery at `path` without changing a byte of it.

    Args:
        path: The folder or the address.
        scratch: A private folder for a copy of a file; None: a temporary one of the system.

    Raises:
        GalleryError: There is none.
        MissingExtraError: It is in PostgreSQL, and the library for that is not installed.
    """
    if isinstance(path, PostgresAddress):
        return open_database(path, None, None, read_only=True)
    require_gallery(path)
    return Snapshot(path / STORE_FILE, scratch or Path(tempfile.gettempdir()))


def require_gallery(path: Path) -> None:
    """Check that there is a gallery in folder `path`.

    Raises:
        GalleryError: There is none.
    """
    if not (path / STORE_FILE).exists():
        raise GalleryError(f"{path}: {_MISSING}")


def require_same_encoder(path: GalleryAddress, store: Store, encoder: EncoderIdentity | None) -> None:
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


def _require_complete(path: GalleryAddress, store: Store) -> None:
    with store.reading():
        is_incomplete = store.settings.copied_from() is not None
    if is_incomplete:
        raise GalleryError(
            f"{path}: the copy of a gallery to this place has not ended: run `facepipe gallery copy` again"
        )


def make_folder(path: Path) -> None:
    """Make a private folder, unless it exists.

    Raises:
        GalleryError: It can't be made.
    """
    try:
        make_private_folder(path)
    except OSError as error:
        raise GalleryError(
            f"{path}: the folder can't be made ({error.strerror}); name another place"
        ) from error


def _open_file(path: Path, encoder: EncoderIdentity | None, secret: bytes | None) -> Database:
    """Open the SQLite file in a folder, which is made for `encoder` where one is given."""
    file = path / STORE_FILE
    try:
        if not file.exists():
            _create(path, encoder, secret)
    except OSError as error:
        raise GalleryError(f"{path}: no gallery can be opened there ({error.strerror})") from error
    return Database(file)


def open_database(
    address: PostgresAddress, encoder: EncoderIdentity | None, secret: bytes | None, read_only: bool = False
) -> PostgresDatabase:
    """Open a schema of PostgreSQL, where a gallery is made for `encoder` if one is given.

    Raises:
        GalleryError: There is no gallery, or no connection.
        MissingExtraError: The library for it is not installed.
    """
    try:
        from facepipe.gallery.storage.postgres.database import PostgresDatabase
    except ImportError as error:
        raise MissingExtraError("a gallery in PostgreSQL", "postgres") from error
    database = PostgresDatabase(address, read_only=read_only)
    try:
        if not database.exists:
            if encoder is None:
                raise GalleryError(f"{address}: {_MISSING}")
            database.create(encoder, secret)
    except BaseException:
        database.close()
        raise
    return database


def _create(path: Path, encoder: EncoderIdentity | None, secret: bytes | None) -> None:
    if path.exists() and not path.is_dir():
        raise GalleryError(f"{path}: a gallery is a folder, this is a file; name another place")
    if encoder is None:
        raise GalleryError(f"{path}: {_MISSING}")
    make_folder(path)
    statements = chain(creating_statements(encoder), key_statements(new_codec(secret)))
    create_database(path / STORE_FILE, statements)
