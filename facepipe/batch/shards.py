"""Shares of a folder's photos, one for each of several machines, chosen by the photos' content."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from facepipe.core.errors import UsageError
from facepipe.core.files import open_regular

_HEAD_BYTES = 16384
"""Read of every photo. Whole photos would have every machine read the whole archive; photos that are alike in
size and head are only counted to the same share."""
_MAX_COUNT = 1_000_000
_READERS, _CHUNK = 8, 1024
"""Threads that wait for the disk, and photos that are read between two of them that are answered."""
_FORM = re.compile(r"([0-9]{1,7})/([0-9]{1,7})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shard:
    """A share of photos. Every photo that can be read belongs to exactly one, its copies to the same one.

    Attributes:
        number: Of the share, from 1.
        count: Of all shares.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def select(self, photos: Sequence[Path]) -> dict[Path, int]:
        """Return the photos of this share with their places among all.

        A photo that can't be read belongs to every share, so that none is lost where some machines can read
        it and others can't.
        """
        return {photo: place for place, (photo, is_ours) in enumerate(self._each(photos)) if is_ours}

    def _each(self, photos: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
        with ThreadPoolExecutor(_READERS) as pool:
            for at in range(0, len(photos), _CHUNK):
                chunk = photos[at : at + _CHUNK]
                yield from zip(chunk, pool.map(self._holds, chunk), strict=True)

    def _holds(self, photo: Path) -> bool:
        key = _content_key(photo)
        return key is None or key % self.count == self.number - 1


def parse_shard(text: str) -> Shard:
    """Read `K/N`.

    Raises:
        UsageError: It is something else, or there is no share K of N.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise UsageError(f"expected a share such as 1/4, the first of four, got {text!r}")
    number, count = int(found[1]), int(found[2])
    if not 1 <= number <= count <= _MAX_COUNT:
        raise UsageError(f"expected a share from 1/N to N/N, N at most {_MAX_COUNT}, got {text!r}")
    return Shard(number, count)


def _content_key(photo: Path) -> int | None:
    """Return a hash of a file's size and first bytes; None: it can't be read."""
    try:
        with open_regular(photo) as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            digest = hashlib.sha256(size_bytes.to_bytes(8, "big") + stream.read(_HEAD_BYTES)).digest()
    except (OSError, ValueError):
        return None
    return int.from_bytes(digest[:8], "big")
