"""A damaged gallery made whole again from all that can be read and trusted; the rest is put aside."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from facepipe.gallery.address import PostgresAddress, parse_address
from facepipe.gallery.files import copy_private, make_folder_aside
from facepipe.gallery.gallery import Gallery
from facepipe.gallery.index.file import move_index
from facepipe.gallery.index_check import index_findings, search_findings
from facepipe.gallery.index_sync import INDEX_FILE
from facepipe.gallery.lost_faces import lost_faces
from facepipe.gallery.models import EncoderIdentity, Finding
from facepipe.gallery.opening import STORE_FILE, open_existing
from facepipe.gallery.storage.encryption import secret_of_environment
from facepipe.gallery.storage.errors import DamagedDatabaseError
from facepipe.gallery.storage.integrity import summarised
from facepipe.gallery.storage.sqlite.errors import errors_of
from facepipe.gallery.storage.sqlite.log_check import alone, logs_of
from facepipe.gallery.storage.sqlite.log_file import dropped_changes, mend_log
from facepipe.gallery.storage.sqlite.rebuild import rebuild_database

FINDINGS_MAX = 10
"""Findings of each kind that are listed; further ones are counted."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What was mended.

    Attributes:
        findings: What was wrong before; empty: nothing, and nothing was done.
        templates: How many are in the gallery now.
        quarantined: Number of rows that could be read but not trusted.
        brought_back: Number of lost faces that are unknown faces now: only their vectors were known.
        aside: The folder with the damaged file as it was and the rows in quarantine; None: only the index
            was made again. It holds personal data: delete it when it is not needed any more.
    """

    findings: tuple[Finding, ...]
    templates: int
    quarantined: int
    brought_back: int
    aside: Path | None


def verify(
    path: str | Path | PostgresAddress, encoder: EncoderIdentity | None = None, secret: bytes | None = None
) -> tuple[Finding, ...]:
    """Check a gallery from its database's pages to its index; empty: it is whole.

    Raises:
        GalleryError: There is no gallery, it is of another encoder than `encoder`, of a newer facepipe, or
            the key is not its own.
    """
    try:
        with Gallery.open(path, encoder, secret=secret) as gallery:
            with gallery._store.reading():
                found = tuple(summarised(gallery._store.findings(), FINDINGS_MAX))
            if not isinstance(gallery.path, Path):
                return found or search_findings(gallery._store)
            lost = lost_faces(gallery.path, gallery.encoder.dimensions)
            found += tuple(Finding("lost", str(faces)) for faces in lost)
            return found or index_findings(gallery.path / INDEX_FILE, gallery._store)
    except DamagedDatabaseError as error:
        return (Finding("database", str(error)),)


def repair(
    path: str | Path | PostgresAddress,
    encoder: EncoderIdentity | None = None,
    secret: bytes | None = None,
) -> Repair:
    """Make a gallery whole. No other process may have it open, but one in PostgreSQL.

    A bad index is made again. Lost faces that the index still holds come back as unknown faces. Where the
    database is damaged, it is built anew from all rows that can be read and that agree with their checksums;
    a damaged log is read beyond the damage. The damaged files and the rows that are not to be trusted are put
    into a folder beside the gallery first. In PostgreSQL, only rows are judged, in one transaction; the
    folder for those that are not to be trusted is made in the present one.

    Args:
        path: The gallery's folder or address.
        encoder: Whose embeddings it holds; needed only where that can't be read from the gallery.
        secret: The key of an encrypted gallery; None: that of the environment.

    Raises:
        GalleryError: Not even the encoder can be read, or another process has the gallery open.
    """
    address, secret = parse_address(path), secret or secret_of_environment()
    if isinstance(address, PostgresAddress):
        return _repair_database(address, encoder, secret)
    path = address.resolve()
    findings = verify(path, secret=secret)
    aside, quarantined = None, 0
    if any(finding.code not in ("index", "lost") for finding in findings):
        aside, quarantined = _rebuild(path, encoder, secret)
    with Gallery.open(path, secret=secret) as gallery:
        lost = lost_faces(path, gallery.encoder.dimensions)
        brought_back = gallery.bring_back(lost)
        if lost:
            aside = aside or make_folder_aside(path, "damaged")
            for faces in lost:
                move_index(faces.file, aside / faces.file.name)
        if findings:
            gallery.rebuild_index()
        return Repair(findings, gallery.info().templates, quarantined, brought_back, aside)


def _repair_database(
    address: PostgresAddress, encoder: EncoderIdentity | None, secret: bytes | None
) -> Repair:
    """Take the rows that are not to be trusted out of a gallery in PostgreSQL."""
    home = open_existing(address)
    home.close()
    findings = verify(address, secret=secret)
    aside, quarantined = None, 0
    if any(finding.code != "index" for finding in findings):
        aside, quarantined = _rebuild_rows(address, encoder, secret)
    with Gallery.open(address, secret=secret) as gallery:
        if findings:
            gallery.rebuild_index()
        return Repair(findings, gallery.info().templates, quarantined, 0, aside)


def _rebuild_rows(
    address: PostgresAddress, encoder: EncoderIdentity | None, secret: bytes | None
) -> tuple[Path, int]:
    """Rebuild a database's rows; returns the folder with those in quarantine, and how many these are."""
    from facepipe.gallery.storage.postgres.database import PostgresDatabase
    from facepipe.gallery.storage.postgres.rebuild import rebuild_rows

    aside = make_folder_aside(Path(address.schema), "damaged")
    try:
        with closing(PostgresDatabase(address)) as home:
            return aside, rebuild_rows(home, aside, encoder, secret)
    except BaseException:
        shutil.rmtree(aside)
        raise


def _rebuild(path: Path, encoder: EncoderIdentity | None, secret: bytes | None) -> tuple[Path, int]:
    """Rebuild the database; returns the folder of what was put aside, and how many rows are in quarantine."""
    file = path / STORE_FILE
    aside, is_log_mended = _copied_aside(path, file)
    try:
        return aside, rebuild_database(file, aside, encoder, secret)
    except BaseException:
        if not is_log_mended:  # Else it holds what is nowhere else.
            shutil.rmtree(aside)
        raise


def _copied_aside(path: Path, file: Path) -> tuple[Path, bool]:
    """Copy the files as they are, then mend the log; returns the copies' folder, and whether it did."""
    log = logs_of(file)[0]
    with errors_of(file), alone(file):
        aside = make_folder_aside(path, "damaged")
        for part in (file, log):
            if part.exists():
                copy_private(part, aside / part.name)
        is_damaged = log.exists() and dropped_changes(file, log) > 0
        if is_damaged:
            mend_log(file, log)
    return aside, is_damaged
