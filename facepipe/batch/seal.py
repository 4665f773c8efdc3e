"""Values in a job file, paths, names, embeddings and pictures: plain, or as ciphertext.

The encryption is that of galleries (`facepipe.gallery.storage.encryption`), with a salt of the job's own.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from facepipe.batch.damage import DamagedJobError
from facepipe.core.errors import GalleryError
from facepipe.core.plain_text import text_of
from facepipe.gallery.storage.encryption import KEY_VARIABLE, SALT_BYTES, SealingCodec

SEALED_COLUMNS = {
    "photos": ("path", "sha256", "error", "vectors", "matches", "face_ids"),
    "pictures": ("webp",),
    "products": ("files",),
    "moves": ("paths",),
    "decisions": ("face_id", "sha256", "name", "not_names", "found_name", "vectors"),
    "steps": ("label", "changes"),
    "people": ("name", "cover"),
    "face_groups": ("face_id",),
    "templates": ("face_id",),
    "library": ("gallery",),
    "photo_writes": ("sha256_before", "sha256"),
}
"""By table, what an encrypted job holds as ciphertext."""
TEXT_COLUMNS = frozenset(
    (
        *("sha256", "error", "matches", "files", "paths", "face_id", "face_ids", "name", "not_names"),
        *("found_name", "label", "changes", "cover", "sha256_before"),
    )
)
"""Those of them that are text; the others are bytes."""


class Seal:
    """Between values and what stands for them in the job file; None and nothing stand for themselves.

    Args:
        file: The job file, for messages.
        codec: None: values stand for themselves.
    """

    def __init__(self, file: Path, codec: SealingCodec | None = None) -> None:
        self._file, self._codec = file, codec

    @property
    def is_encrypting(self) -> bool:
        """Whether values become ciphertext."""
        return self._codec is not None

    @property
    def salt_and_check(self) -> tuple[bytes, bytes]:
        """What the job file keeps to know the key again."""
        assert self._codec is not None
        return self._codec.salt, self._codec.check()

    def seal(self, column: str, value: str | bytes | None) -> Any:
        """What stands for a value in a column; equal for equal values. Text that is no Unicode is escaped."""
        if isinstance(value, str):
            value = text_of(value).encode()
        if self._codec is not None and value:
            return self._codec.seal(f"job {column}", value)
        return value.decode() if value is not None and column in TEXT_COLUMNS else value

    def open(self, column: str, stored: Any) -> Any:
        """Return the text or bytes again.

        Raises:
            DamagedJobError: They were altered.
        """
        if self._codec is None or not stored:
            return stored
        try:
            value = self._codec.open(f"job {column}", stored)
        except GalleryError as error:
            raise DamagedJobError(self._file, f"a stored {column} can't be deciphered") from error
        return value.decode() if column in TEXT_COLUMNS else value

    def seal_path(self, path: Path) -> Any:
        """Return what is stored for a path."""
        return self.seal("path", os.fsencode(path))

    def open_path(self, stored: Any) -> Path:
        """Read a stored path; raises as `open`."""
        return Path(os.fsdecode(self.open("path", stored)))


def new_seal(file: Path, secret: bytes | None) -> Seal:
    """For a job that is to be encrypted.

    Raises:
        GalleryError: There is no secret.
    """
    if secret is None:
        raise GalleryError(f"{file}: to encrypt the job, {_GIVE_KEY}")
    return Seal(file, SealingCodec(secret, secrets.token_bytes(SALT_BYTES)))


def known_seal(file: Path, salt: bytes, check: bytes, secret: bytes | None) -> Seal:
    """For a job that was encrypted.

    Raises:
        GalleryError: `secret` is not its key.
    """
    if secret is None:
        raise GalleryError(f"{file}: the job is encrypted: {_GIVE_KEY}")
    codec = SealingCodec(secret, salt)
    if codec.check() != check:
        raise GalleryError(
            f"{file}: this is not the key that the job was encrypted with: give that one, "
            "or choose another --out"
        )
    return Seal(file, codec)


_GIVE_KEY = f"give the gallery's key with --key-file FILE, or in ${KEY_VARIABLE}"
