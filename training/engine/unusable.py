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
"""Photos that get a warning of their own."""


class UnusablePhotos:
    """Counts the photos that can't be used, each once, and warns of them."""

    def __init__(self) -> None:
        self._reasons: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, reason: str) -> None:
        """Count a photo by its name and what is wrong with it. The first few get a warning each."""
        if reason not in self._reasons and len(self) < _NAMED:
            _LOG.warning("passed over: %s", reason)
        self._reasons[reason] = None

    def conclude(self, source: object, used: int) -> None:
        """Warn of their number, after all photos of a data set.

        Args:
            source: The data set, for messages.
            used: Its photos that can be used.

        Raises:
            DataError: There are photos, and none can be used.
        """
        if not self._reasons:
            return
        photos = counted(len(self), "photo")
        if not used:
            raise DataError(
                f"{source}: none of {photos} can be used to train on; first {next(iter(self._reasons))}"
            )
        _LOG.warning("%s: %s passed over, %d used", source, photos, used)


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
    unusable, used = UnusablePhotos(), 0
    for item in items:
        try:
            result = read(item)
        except (PhotoError, LandmarkError) as error:
            unusable.add(str(error))
            continue
        used += 1
        yield item, result
    unusable.conclude(source, used)
