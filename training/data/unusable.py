"""Photos of training data that can't be used: the first are named, all are counted, the others train."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from facepipe.core.counting import counted
from facepipe.core.errors import DataError, LandmarkError, PhotoError

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOG = logging.getLogger("facepipe.training")
_NAMED = 5
"""Photos of a data set that get a warning of their own."""


class UnusablePhotos:
    """Counts the photos of a data set that can't be used, and warns of them.

    Args:
        source: The data set, for messages.

    Attributes:
        count: How many there are so far.
    """

    def __init__(self, source: object) -> None:
        self.count = 0
        self._source, self._first = source, ""

    def add(self, error: Exception) -> None:
        """Count a photo; `error` names it. The first few get a warning each."""
        self._first = self._first or str(error)
        self.count += 1
        if self.count <= _NAMED:
            _LOG.warning("passed over: %s", error)

    def conclude(self, used: int) -> None:
        """Warn of their number, after all photos.

        Args:
            used: Photos that can be used.

        Raises:
            DataError: There are photos, and none can be used.
        """
        if not self.count:
            return
        if not used:
            photos = counted(self.count, "photo")
            raise DataError(f"{self._source}: none of {photos} can be used to train on; first {self._first}")
        _LOG.warning("%s: %s passed over, %d used", self._source, counted(self.count, "photo"), used)


def usable(
    source: object, items: Iterable[Item], read: Callable[[Item], Result]
) -> Iterator[tuple[Item, Result]]:
    """Yield the items of a data set with what `read` makes of each, and pass over those that can't be read.

    Args:
        source: The data set, for messages.
        items: Photos, or what stands for them.
        read: Raises `PhotoError` or `LandmarkError`, naming the photo, where an item can't be used.

    Raises:
        DataError: There are items, and none can be used.
    """
    unusable, used = UnusablePhotos(source), 0
    for item in items:
        try:
            result = read(item)
        except (PhotoError, LandmarkError) as error:
            unusable.add(error)
            continue
        used += 1
        yield item, result
    unusable.conclude(used)
