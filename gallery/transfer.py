"""Archives, backups, and merging whole galleries."""

from __future__ import annotations

from pathlib import Path

from facepipe.core.errors import GalleryError
from facepipe.gallery.address import PostgresAddress, parse_address
from facepipe.gallery.archive import read_archive, write_archive
from facepipe.gallery.base import GalleryBase
from facepipe.gallery.models import Contents
from facepipe.gallery.opening import STORE_FILE, make_folder, open_to_read, require_same_encoder
from facepipe.gallery.storage.contents import add_contents, read_contents
from facepipe.gallery.storage.encryption import secret_of_environment
from facepipe.gallery.storage.store import Store


class TransferMixin(GalleryBase):
    """Archives and backups of a gallery, and adding what others hold."""

    def export_archive(self, file: str | Path) -> None:
        """Write everybody to one zip of JSON and safetensors (see `facepipe.gallery.archive`), atomically.

        Raises:
            GalleryError: The file can't be written, or lies inside the gallery's folder.
        """
        file = Path(file)
        self._require_outside(file)
        with self._store.reading():
            contents = read_contents(self._store)
        write_archive(file, self.encoder, contents)

    def import_archive(self, file: str | Path) -> int:
        """Add everybody in an archive, in one transaction; returns how many templates were new.

        People of the same name are taken as the same person. Thresholds are taken over for new people, and
        for the gallery where it was empty.

        Raises:
            GalleryError: The archive is not to be trusted, or of another encoder; nothing is changed.
        """
        return self.add_contents(read_archive(Path(file), self.encoder))

    def add_contents(self, contents: Contents) -> int:
        """Add what an archive or another gallery holds, in one transaction; returns how many were new."""
        with self._warning_of_lookalikes(), self._changing(vectors=True):
            return add_contents(self._store, contents)

    def merge_from(self, other: str | Path | PostgresAddress, secret: bytes | None = None) -> int:
        """Add everybody of another gallery, as `import_archive` does; returns how many templates were new.

        Args:
            other: Its folder or the address of its database; no byte in it is changed, not even where it is
                of an older schema.
            secret: Its key, where it is encrypted; None: that of the environment.

        Raises:
            GalleryError: It can't be read or holds vectors of another encoder; nothing is changed.
        """
        address = parse_address(other)
        home = open_to_read(address, scratch=self.path if isinstance(self.path, Path) else None)
        source = Store(home, secret or secret_of_environment())
        try:
            require_same_encoder(address, source, self.encoder)
            with source.reading():
                contents = read_contents(source)
        finally:
            source.close()
        return self.add_contents(contents)

    def backup(self, folder: str | Path) -> None:
        """Copy the present state to a gallery of its own, while other processes read and write.

        The copy of a gallery in PostgreSQL is a folder too, with the same ids, key and state.

        Args:
            folder: Where there is no gallery yet; made private where it does not exist.

        Raises:
            GalleryError: It can't be written, holds a gallery, or lies inside this one.
        """
        address = parse_address(folder)
        if isinstance(address, PostgresAddress):
            raise GalleryError(
                f"{address}: a backup is a folder: back a database up with its server's pg_dump, or copy the "
                "gallery with `facepipe gallery copy`"
            )
        folder = address
        self._require_outside(folder)
        if (folder / STORE_FILE).exists():
            raise GalleryError(f"{folder}: holds a gallery already: give the backup a folder of its own")
        make_folder(folder)
        self._store.backup(folder / STORE_FILE)

    def _require_outside(self, target: Path) -> None:
        if isinstance(self.path, Path) and target.resolve().is_relative_to(self.path.resolve()):
            raise GalleryError(f"{target}: archives and backups can't be kept in the gallery's own folder")
