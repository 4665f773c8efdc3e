"""What stands in the rows of a gallery for names, paths, vectors and pictures: themselves, or ciphertext.

Encryption is AES-256 in SIV mode (RFC 5297) of each value by itself, by the library `cryptography`. SIV is
authenticated, so altered or foreign values are refused; and deterministic, so that a name or a photo is found
by an equal ciphertext in an ordinary SQL query. What that shows to whoever has the file but no key: how many
people, faces and photos there are, which faces are of one person or of one photo, and when they were added.

The key comes from a secret (a password, or better a file of random bytes) by scrypt with the gallery's salt.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from facepipe.errors import GalleryError, MissingExtraError
from gallery.schema import TEXT_COLUMNS

KEY_VARIABLE = "FACEPIPE_GALLERY_KEY"
"""The environment's variable for the secret itself."""
KEY_FILE_VARIABLE = "FACEPIPE_GALLERY_KEY_FILE"
"""That for the path of a file with the secret."""
SALT_BYTES = 16
_SCRYPT_COST = 1 << 15
"""With r = 8 and p = 1: 32 MB and about 0.1 s for each guess."""
_KEY_FILE_BYTES_MAX = 4096
_CHECK = b"facepipe gallery"


class Codec(Protocol):
    """Between what is known of a face and what stands in its row. None stands for None everywhere."""

    def seal(self, column: str, value: Any) -> Any:
        """What stands for `value` in `column`; equal for equal values."""

    def open(self, column: str, stored: Any) -> Any:
        """The value that `stored` stands for."""


class PlainCodec:
    """Everything stands for itself."""

    def seal(self, column: str, value: Any) -> Any:
        """The value."""
        return value

    def open(self, column: str, stored: Any) -> Any:
        """The value.

        Raises:
            GalleryError: It is not of the kind that is stored there.
        """
        if stored is not None and not isinstance(stored, str if column in TEXT_COLUMNS else bytes):
            raise GalleryError(f"a stored {column} is damaged: run `facepipe gallery repair`")
        return stored


class SealingCodec:
    """Everything stands there encrypted, bound to its column.

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
        """A value that only the same secret and salt make."""
        return self._cipher.encrypt(_CHECK, None)

    def seal(self, column: str, value: Any) -> Any:
        """Ciphertext, 16 bytes longer than the text or bytes `value`."""
        if value is None:
            return None
        data = value.encode() if column in TEXT_COLUMNS else value
        return self._cipher.encrypt(data, [column.encode()])

    def open(self, column: str, stored: Any) -> Any:
        """The text or bytes again.

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


def secret_of_environment() -> bytes | None:
    """The secret in `$FACEPIPE_GALLERY_KEY`, else in the file `$FACEPIPE_GALLERY_KEY_FILE`; None: neither."""
    secret = os.environ.get(KEY_VARIABLE, "").strip()
    if secret:
        return os.fsencode(secret)
    file = os.environ.get(KEY_FILE_VARIABLE)
    return read_key_file(Path(file)) if file else None


def read_key_file(file: Path) -> bytes:
    """The secret in a file. White space around it does not count: text editors add a line break.

    Raises:
        GalleryError: The file can't be read, is too large for a key, or there is nothing in it.
    """
    try:
        with open(file, "rb") as source:
            secret = source.read(_KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise GalleryError(f"{file}: the key can't be read ({error.strerror or error})") from error
    if not secret.strip() or len(secret) > _KEY_FILE_BYTES_MAX:
        raise GalleryError(
            f"{file}: a key file holds 1 to {_KEY_FILE_BYTES_MAX} bytes: make one with "
            "`head -c 32 /dev/urandom | base64 > FILE`"
        )
    return secret.strip()
