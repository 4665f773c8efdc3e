"""Encryption of what a gallery's rows hold: names, paths, embeddings and pictures.

Encryption is AES-256 in SIV mode (RFC 5297) of each value by itself, by the library `cryptography`. SIV is
authenticated, so altered or foreign values are refused; and deterministic, so that a name or a photo is found
by an equal ciphertext in an ordinary SQL query. What the file shows without the key: how many
people, faces and photos there are, which faces are of one person or of one photo, and when they were added.

The key comes from a secret (a password, or better a file of random bytes) by scrypt with the gallery's salt.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, Protocol

from facepipe.core.errors import GalleryError, MissingExtraError
from facepipe.gallery.storage.errors import DamagedDatabaseError
from facepipe.gallery.storage.home import SettingValue
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, SEALED_COLUMNS, TEXT_COLUMNS, row_checksum

KEY_VARIABLE = "FACEPIPE_GALLERY_KEY"
"""The environment's variable for the secret itself."""
KEY_FILE_VARIABLE = "FACEPIPE_GALLERY_KEY_FILE"
"""That for the path of a file with the secret."""
SALT_BYTES = 16
_SCRYPT_COST = 1 << 15
"""With r = 8 and p = 1: 32 MB and about 0.1 s for each guess."""
_KEY_FILE_BYTES_MAX = 4096
_CHECK = b"facepipe gallery"
_READ_ONCE: dict[tuple[str, int, int], bytes] = {}
"""Secrets from pipes, by path, device and inode."""
_SIV_BYTES = 16
"""By which ciphertext is longer than the plain text."""
KEY_SETTINGS = "key_salt", "key_check"
"""Keys of the settings that belong to the encryption."""


class Codec(Protocol):
    """Converts values to what is stored in rows, and back. None is stored as None."""

    def seal(self, column: str, value: Any) -> Any:
        """Return what is stored for `value` in `column`; equal for equal values."""

    def open(self, column: str, stored: Any) -> Any:
        """Return the value of what is stored."""


class PlainCodec:
    """Stores values as they are."""

    def seal(self, column: str, value: Any) -> Any:
        """Return the value."""
        return value

    def open(self, column: str, stored: Any) -> Any:
        """Return the value.

        Raises:
            GalleryError: It is not of the kind that is stored there.
        """
        if stored is not None and not isinstance(stored, str if column in TEXT_COLUMNS else bytes):
            raise GalleryError(f"a stored {column} is damaged: run `facepipe gallery repair`")
        return stored


class SealingCodec:
    """Stores values encrypted, bound to their column.

    Attributes:
        salt: Of the gallery; random bytes, not secret.

    Raises:
        MissingExtraError: The library is not installed.
    """

    def __init__(self, secret: bytes, salt: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESSIV
            from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
        except ImportError as error:
            raise MissingExtraError("an encrypted gallery", "encryption") from error
        self.salt = salt
        self._cipher = AESSIV(Scrypt(salt=salt, length=64, n=_SCRYPT_COST, r=8, p=1).derive(secret))

    def check(self) -> bytes:
        """Return a value that only the same secret and salt produce."""
        return self._cipher.encrypt(_CHECK, None)

    def seal(self, column: str, value: Any) -> Any:
        """Ciphertext, 16 bytes longer than the text or bytes `value`."""
        if value is None:
            return None
        data = value.encode() if column in TEXT_COLUMNS else value
        return self._cipher.encrypt(data, [column.encode()])

    def open(self, column: str, stored: Any) -> Any:
        """Return the text or bytes again.

        Raises:
            GalleryError: The value was altered or encrypted with another key.
        """
        from cryptography.exceptions import InvalidTag

        if stored is None:
            return None
        try:
            data = self._cipher.decrypt(stored, [column.encode()])
            return data.decode() if column in TEXT_COLUMNS else data
        except (InvalidTag, ValueError, TypeError) as error:
            raise GalleryError(
                f"a stored {column} can't be decrypted (damaged: run `facepipe gallery verify`)"
            ) from error

    def opens(self, column: str, stored: Any) -> bool:
        """Return whether a stored value was encrypted with this key."""
        try:
            return self.open(column, stored) is not None
        except GalleryError:
            return False


def new_codec(secret: bytes | None) -> Codec:
    """Return a codec with a salt of its own; without a secret, the plain one."""
    return PlainCodec() if secret is None else SealingCodec(secret, secrets.token_bytes(SALT_BYTES))


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What one place of a gallery's file holds of its key; there are two places.

    Attributes:
        salt: As stored; None: missing.
        check: As stored; None: missing.
        is_whole: Both are there and agree with their checksums.
    """

    salt: Any
    check: Any
    is_whole: bool


def key_records(
    settings: Iterable[tuple[Any, Any, Any]], copies: Iterable[tuple[Any, Any, Any]]
) -> list[KeyRecord]:
    """Return the key's records from the rows (key, value, checksum) and (salt, key_check, checksum)."""
    by_key = {key: (value, row_checksum(key, value) == checksum) for key, value, checksum in settings}
    (salt, salt_is_whole), (check, check_is_whole) = (by_key.get(key, (None, False)) for key in KEY_SETTINGS)
    return [
        KeyRecord(salt, check, salt_is_whole and check_is_whole),
        *(KeyRecord(salt, check, row_checksum(salt, check) == checksum) for salt, check, checksum in copies),
    ]


def key_statements(codec: Codec) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yield what stores the salt and the check of `codec` in both places, and nothing of a plain one."""
    yield "DELETE FROM settings WHERE key IN (?, ?)", KEY_SETTINGS
    yield "DELETE FROM key_copy", ()
    if isinstance(codec, SealingCodec):
        key = codec.salt, codec.check()
        for setting in zip(KEY_SETTINGS, key, strict=True):
            yield setting_statement(*setting)
        yield "INSERT INTO key_copy VALUES (1, ?, ?, ?)", (*key, row_checksum(*key))


def setting_statement(key: str, value: float | bytes) -> tuple[str, tuple[object, ...]]:
    """Return what stores a setting that is not there."""
    return (
        f"INSERT INTO settings ({CHECKED_COLUMNS['settings']}, checksum) VALUES (?, ?, ?)",
        (key, SettingValue(value), row_checksum(key, value)),
    )


def codec_of_gallery(
    name: str,
    dimensions: int,
    records: Sequence[KeyRecord],
    samples: Iterable[tuple[str, Any]],
    secret: bytes | None,
) -> Codec:
    """Return the codec that a gallery was written with, whatever is damaged of its key's records.

    Args:
        name: What messages begin with, such as the SQLite file.
        dimensions: Length of a vector.
        records: Of the key.
        samples: Columns and stored values of some rows that agree with their checksums; read only where
            the records do not decide.
        secret: The key that was given.

    Raises:
        GalleryError: It is encrypted, and `secret` is not its key.
        DamagedDatabaseError: Its salt is lost, or too little is left to recognise a wrong key.
    """
    is_encrypted = any(record.salt is not None or record.check is not None for record in records)
    if not is_encrypted and not _is_ciphertext(samples, dimensions):
        return PlainCodec()
    if secret is None:
        raise GalleryError(
            f"{name}: the gallery is encrypted: give its key with --key-file FILE, or in ${KEY_VARIABLE}"
        )
    in_trust = sorted(records, key=lambda record: not record.is_whole)
    salts = dict.fromkeys(record.salt for record in in_trust if isinstance(record.salt, bytes))
    codecs = [SealingCodec(secret, salt) for salt in salts]
    checks = [record.check for record in records]
    for codec in codecs:
        if codec.check() in checks:
            return codec
    samples = list(samples)
    for codec in codecs:
        if any(codec.opens(*sample) for sample in samples):
            return codec
    if any(record.is_whole for record in records):
        raise GalleryError(f"{name}: this is not the gallery's key: give the one it was encrypted with")
    raise DamagedDatabaseError(
        f"{name}: the salt of the gallery's key is damaged in both places, or this is not its key: nothing "
        "can be decrypted: give the key it was encrypted with, or restore a backup"
    )


def sealed_sample(table: str, rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Return the sealed columns, with their stored values, of the first row that agrees with its checksum."""
    checked = CHECKED_COLUMNS[table].split(", ")
    for row in rows:
        if row["checksum"] == row_checksum(*(row[column] for column in checked)):
            return [(column, row[column]) for column in SEALED_COLUMNS[table]]
    return []


def _is_ciphertext(samples: Iterable[tuple[str, Any]], dimensions: int) -> bool:
    for column, stored in samples:
        if column in TEXT_COLUMNS and stored is not None:
            return isinstance(stored, bytes)
        if column == "vector":
            return isinstance(stored, bytes) and len(stored) == 4 * dimensions + _SIV_BYTES
    return False


def secret_of_environment() -> bytes | None:
    """The secret in `$FACEPIPE_GALLERY_KEY`, else in the file `$FACEPIPE_GALLERY_KEY_FILE`; None: neither."""
    secret = os.environ.get(KEY_VARIABLE, "").strip()
    if secret:
        return os.fsencode(secret)
    file = os.environ.get(KEY_FILE_VARIABLE)
    return read_key_file(Path(file)) if file else None


def read_key_file(file: Path) -> bytes:
    """Return the secret in a file. White space around it does not count: text editors add a line break.

    A command may ask several times, for its gallery, another one and its job. What is no regular file, such
    as the pipe of `--key-file <(...)`, gives its bytes but once, so they are kept as long as the process.

    Raises:
        GalleryError: The file can't be read, is too large for a key, or there is nothing in it.
    """
    try:
        stat = os.stat(file)
        source = str(file), stat.st_dev, stat.st_ino
        if source in _READ_ONCE:
            return _READ_ONCE[source]
        secret = _read_secret(file)
    except OSError as error:
        raise GalleryError(
            f"{file}: the key can't be read ({error.strerror or error}); name the file that holds it"
        ) from error
    if not S_ISREG(stat.st_mode):
        _READ_ONCE[source] = secret
    return secret


def _read_secret(file: Path) -> bytes:
    with open(file, "rb") as source:
        secret = source.read(_KEY_FILE_BYTES_MAX + 1)
    if not secret.strip() or len(secret) > _KEY_FILE_BYTES_MAX:
        raise GalleryError(
            f"{file}: a key file holds 1 to {_KEY_FILE_BYTES_MAX} bytes: make one with "
            "`head -c 32 /dev/urandom | base64 > FILE`"
        )
    return secret.strip()
