"""A gallery taken back to a backup: whole or not at all, with the present one kept aside."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from facepipe.core.errors import GalleryError
from facepipe.core.files import PRIVATE_FOLDER_MODE, sync_folder
from facepipe.gallery.address import PostgresAddress, parse_address
from facepipe.gallery.files import make_folder_aside
from facepipe.gallery.gallery import Gallery, import_archive
from facepipe.gallery.index_sync import derived_files
from facepipe.gallery.models import EncoderIdentity
from facepipe.gallery.opening import STORE_FILE, open_database
from facepipe.gallery.repair import verify
from facepipe.gallery.storage.sqlite.database import Database
from facepipe.gallery.storage.sqlite.errors import errors_of
from facepipe.gallery.storage.sqlite.log_check import alone, is_open_here, logs_of

_RESTORED_FOLDER = "restored"


@dataclass(frozen=True, slots=True)
class Restoration:
    """What was restored.

    Attributes:
        templates: How many are in the gallery now.
        aside: The folder with the gallery as it was, itself a gallery; None: there was none. It holds
            personal data: delete it when it is not needed any more.
    """

    templates: int
    aside: Path | None


def restore(
    path: str | Path | PostgresAddress,
    backup: str | Path,
    encoder: EncoderIdentity,
    secret: bytes | None = None,
) -> Restoration:
    """Put what a backup holds in the place of the gallery in `path`, or where there is none.

    The backup is copied and checked before anything is changed, and stays as it is. The gallery as it was is
    kept in a private folder beside it, `NAME.replaced-TIME-...`; of one in PostgreSQL, a copy in a folder is
    kept in the present one. There, the change is one transaction, and others must open the gallery again.

    Args:
        path: The gallery's folder or address.
        backup: A gallery's folder, its SQLite file, or an archive as `Gallery.export_archive` writes it.
        encoder: Whose embeddings an archive holds; a backup names its own.
        secret: The key of an encrypted backup; None: that of the environment.

    Raises:
        GalleryError: The backup can't be read or is not whole, or another process has the gallery open;
            nothing is changed.
    """
    address, backup = parse_address(path), Path(backup)
    if isinstance(address, PostgresAddress):
        return _restore_database(address, backup, encoder, secret)
    path = address
    _require_another(path, backup)
    with errors_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = make_folder_aside(path, "replaced")
    try:
        new = _copied(backup, aside / _RESTORED_FOLDER, encoder, secret)
        with errors_of(path):
            _put_in_place(path, new, aside)
    finally:
        shutil.rmtree(aside / _RESTORED_FOLDER, ignore_errors=True)
        if not _is_only_copy(aside / STORE_FILE, path / STORE_FILE):
            shutil.rmtree(aside)
    with Gallery.open(path, secret=secret) as gallery:
        return Restoration(gallery.info().templates, aside if aside.exists() else None)


def _restore_database(
    address: PostgresAddress, backup: Path, encoder: EncoderIdentity, secret: bytes | None
) -> Restoration:
    """Put what a backup holds in the place of the gallery in a PostgreSQL schema."""
    _require_there(backup)
    with errors_of(backup):
        aside = make_folder_aside(Path(address.schema), "replaced")
    try:
        new = _copied(backup, aside / _RESTORED_FOLDER, encoder, secret)
        with Gallery.open(new.parent, secret=secret) as gallery:
            restored_encoder = gallery.encoder
        _replace_rows(address, restored_encoder, new, aside / STORE_FILE)
    except BaseException:
        shutil.rmtree(aside)
        raise
    shutil.rmtree(aside / _RESTORED_FOLDER)
    if not (aside / STORE_FILE).exists():
        aside.rmdir()
    with Gallery.open(address, secret=secret) as gallery:
        return Restoration(gallery.info().templates, aside if aside.exists() else None)


def _replace_rows(address: PostgresAddress, encoder: EncoderIdentity, new: Path, kept: Path) -> None:
    """Replace all rows by those of the SQLite file `new`; a gallery that was there is copied to `kept`."""
    home = open_database(address, encoder, None)
    from facepipe.gallery.storage.postgres.replacing import replace_rows

    with closing(home), _opened(new) as database, database.reading() as source:
        replace_rows(home, source, kept)


def _is_only_copy(kept: Path, file: Path) -> bool:
    return kept.exists() and not (file.exists() and file.samefile(kept))


def _require_another(path: Path, backup: Path) -> None:
    _require_there(backup)
    if (backup / STORE_FILE if backup.is_dir() else backup).resolve() == (path / STORE_FILE).resolve():
        raise GalleryError(f"{backup}: this is the gallery itself: give the folder or file of a backup")


def _require_there(backup: Path) -> None:
    if not backup.exists():
        raise GalleryError(f"{backup}: there is no such backup: give its folder, SQLite file or archive")


def _copied(backup: Path, folder: Path, encoder: EncoderIdentity, secret: bytes | None) -> Path:
    """Return the SQLite file of a gallery made in `folder`, checked: all that the backup holds."""
    file = backup / STORE_FILE if backup.is_dir() else backup
    if not file.exists():
        raise GalleryError(f"{backup}: no backup: there is no {STORE_FILE} in this folder")
    with errors_of(file):
        is_archive = not is_open_here(file) and zipfile.is_zipfile(file)
    if is_archive:
        import_archive(folder, file, encoder)
    else:
        folder.mkdir(PRIVATE_FOLDER_MODE)
        with _opened(file) as database:
            database.backup(folder / STORE_FILE)
    findings = verify(folder, secret=secret)
    if findings:
        raise GalleryError(
            f"{backup}: this backup is not whole ({findings[0].message}): repair a copy of it with `facepipe "
            "gallery repair`, or take another; nothing was changed"
        )
    return folder / STORE_FILE


@contextmanager
def _opened(file: Path) -> Iterator[Database]:
    database = Database(file)
    try:
        yield database
    finally:
        database.close()


def _put_in_place(path: Path, new: Path, aside: Path) -> None:
    file = path / STORE_FILE
    if not file.exists():
        path.mkdir(PRIVATE_FOLDER_MODE, exist_ok=True)
        os.replace(new, file)
    else:
        with alone(file):
            log, shared = logs_of(file)
            derived = derived_files(path)
            _link_aside([log, *derived, file], aside)
            os.replace(new, file)  # Killed here, it leaves a log that is recognised as another file's.
            for left in (log, shared, *derived):
                left.unlink(missing_ok=True)
    sync_folder(path)


def _link_aside(files: list[Path], aside: Path) -> None:
    """Give files a second name in `aside`; the last one is that which this process has locked."""
    for file in files:
        if file.exists():
            try:
                os.link(file, aside / file.name)
            except OSError:  # A file system without hard links, such as exFAT.
                shutil.copyfile(file, aside / file.name)
    sync_folder(aside)
