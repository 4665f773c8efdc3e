"""Failures of photos in a batch: whether one photo is at fault, or the machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np

from facepipe.batch.models import FailedPhoto, PhotoTask
from facepipe.core.errors import LandmarkError, PhotoError

ONE_PHOTO_FAILS = (PhotoError, LandmarkError, MemoryError, OSError)
"""While a photo is opened or its faces are cut: others may still go well."""
_PROBE_BYTES, _PROBE_FILES = 256 << 20, 4
"""About what decoding a large photo takes."""
_OF_MEMORY = re.compile("out of memory|insufficient memory|allocat|too many open files", re.IGNORECASE)
"""As it stands in errors of decoders and networks whose class means anything: OSError, RuntimeError."""


def _is_temporary(error: BaseException) -> bool:
    """Whether the machine is at fault (disk, permissions, memory, a library that lacks), not the photo."""
    return any(map(_is_of_the_machine, _chain(error)))


def _is_of_the_machine(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:  # decoders raise OSError too, without a number
        return True
    return isinstance(error, ImportError) or _is_lack_of_memory(error)


def _is_lack_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return not isinstance(error, PhotoError) and bool(_OF_MEMORY.search(str(error)))


def require_lack_of_memory(error: Exception) -> None:
    """Raise an error of a network again, unless it lacked memory: then its photos fail, and no others."""
    if not any(map(_is_lack_of_memory, _chain(error))):
        raise error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those that it was raised from or while they were handled."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        next_one = waiting.pop()
        if next_one is not None and id(next_one) not in seen:
            seen.add(id(next_one))
            yield next_one
            waiting += [next_one.__cause__, next_one.__context__]


def failed_photo(task: PhotoTask, error: Exception) -> FailedPhoto:
    """Return a photo that met an error of `ONE_PHOTO_FAILS`, or for which a network lacked memory."""
    sentence = str(error) if isinstance(error, PhotoError) else f"{task.path}: {_sentence(error)}"
    return FailedPhoto(task, sentence, is_temporary=_is_temporary(error) or is_machine_short())


def is_machine_short() -> bool:
    """Whether memory or file descriptors can't be had: decoders then find photos broken that are not."""
    try:
        np.empty(_PROBE_BYTES, np.uint8)  # nothing is written there: whether there is room is the question
        with ExitStack() as opened:
            for _ in range(_PROBE_FILES):
                opened.enter_context(open(os.devnull, "rb"))
    except (MemoryError, OSError):
        return True
    return False


def _sentence(error: Exception) -> str:
    match error:
        case MemoryError():
            return "not enough memory to analyze it; the next run tries again"
        case OSError(errno=int()):
            return f"{error.strerror}; the next run tries again"
        case _:
            return str(error)
