"""The tables of a gallery, whichever database holds them: their columns, and the checksums of their rows."""

from __future__ import annotations

import secrets
import zlib

SCHEMA_VERSION = 4
"""Of the tables, whichever database holds them."""
CHECKED_SINCE_VERSION = 2
"""Tables of version 1 have neither checksums nor keys."""

FACE_COLUMNS = "source, box_left, box_top, box_right, box_bottom, quality, photo_sha256, added_at"
"""Columns of a face beside its vector and its picture."""

CHECKED_COLUMNS = {
    "meta": "encoder_name, encoder_fingerprint, dimensions, threshold_l2",
    "settings": "key, value",
    "key_copy": "salt, key_check",
    "people": "name, threshold_l2",
    "templates": f"person_id, vector, {FACE_COLUMNS}, crop",
    "unknown_faces": f"vector, {FACE_COLUMNS}, crop",
}
"""By table, what its column `checksum` is the checksum of: SQLite itself has none."""

COPY_SETTING = "copied_from"
"""Key of the setting of a gallery into which another one is being copied."""

THRESHOLD_SETTING = "threshold_l2"
"""Key of the gallery's own threshold among the settings."""

SEALED_COLUMNS = {
    "people": ("name",),
    "templates": ("vector", "source", "photo_sha256", "crop"),
    "unknown_faces": ("vector", "source", "photo_sha256", "crop"),
}
"""By table, what an encrypted gallery holds as ciphertext."""
TEXT_COLUMNS = frozenset(("name", "source", "photo_sha256"))
"""Those of the sealed columns that are text; the others are bytes."""


def state_statement() -> tuple[str, tuple[object, ...]]:
    """Return the statement that gives the gallery a state that neither it nor a copy of it was ever in."""
    return "UPDATE meta SET state = ?", (secrets.token_bytes(16),)


def row_checksum(*values: object) -> int:
    """CRC-32 of a row's values (None, numbers, text, bytes); every connection offers it to SQL."""
    crc = 0
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode()
        crc = zlib.crc32(b"%d:" % len(data), zlib.crc32(data, crc))
    return crc
