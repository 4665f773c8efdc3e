"""Whether an index file agrees with the database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from facepipe.gallery.index.file import DamagedIndexError
from facepipe.gallery.index.vectors import VectorIndex
from facepipe.gallery.models import Finding
from facepipe.gallery.storage.postgres.shared_store import SharedStore
from facepipe.gallery.storage.store import Store

_LOOKS = 3
_BETWEEN_LOOKS_S = 0.05


def index_findings(file: Path, store: Store) -> tuple[Finding, ...]:
    """Return what is wrong with an index file. Outside of any transaction.

    Other processes save the index and erase from it meanwhile: a second look tells that from a fault.
    """
    for _ in range(_LOOKS):
        found = tuple(_findings(file, store))
        if not found:
            break
        time.sleep(_BETWEEN_LOOKS_S)
    return found


def _findings(file: Path, store: Store) -> Iterator[Finding]:
    """Check an index file; a missing or older one is no fault: the next use catches it up."""
    try:
        index = VectorIndex.load(file, store.encoder.dimensions)
    except FileNotFoundError:
        return
    except DamagedIndexError as error:
        yield Finding("index", f"{file}: damaged: {error}")
        return
    with store.reading():
        yield from _differences(file, index, store)


def _differences(file: Path, index: VectorIndex, store: Store) -> Iterator[Finding]:
    if not store.went_through(index.state):
        yield Finding("index", f"{file}: belongs to another gallery")
        return
    index.remove(store.removed_after(index.state.generation))
    known, compared = index.ids, 0
    for ids, vectors in store.vectors_after(0):
        held = np.intersect1d(ids, known[compared : compared + len(ids)])
        compared += len(held)
        if len(held) != np.count_nonzero(ids <= index.last_id):
            yield Finding("index", f"{file}: does not hold the templates of the database")
            return
        if not np.array_equal(index.vectors_of(held), vectors[: len(held)]):
            yield Finding("index", f"{file}: holds other vectors than the database")
            return
    if compared != len(known):
        yield Finding("index", f"{file}: holds templates that are not in the database")


def search_findings(store: Store) -> tuple[Finding, ...]:
    """Return what is wrong with the table by which a server searches, where there is one.

    Outside of any transaction.
    """
    assert isinstance(store, SharedStore)
    with store.reading():
        return tuple(store.vectors.findings()) if store.vectors.is_there() else ()
