"""Faces that a gallery lost, proved by its index: kept in a file of their own until they are brought back.

A damaged write-ahead log, or an older file put back by hand, takes changes from the truth of which the index
knows already. Such an index is not overwritten before the vectors that the truth lacks are kept. What the
index does not hold can't be known any more: whose faces they are, their photos, boxes and crops.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facepipe.core.counting import counted
from facepipe.core.faces import FloatArray
from facepipe.gallery.index.file import DamagedIndexError, VectorState, move_index
from facepipe.gallery.index.parts import IdArray
from facepipe.gallery.index.vectors import VectorIndex
from facepipe.gallery.models import NewTemplate
from facepipe.gallery.storage.store import Store

_PATTERN = "index.lost-*.faiss"
_RANGES_MAX = 10


@dataclass(frozen=True, slots=True)
class LostFaces:
    """What a file of lost faces holds.

    Attributes:
        file: The file.
        ids: int64 (n,), of the templates that the gallery lacks, rising.
        vectors: float32 (n, d).
        is_damaged: The file can't be read, so that nothing is known of what it holds.
    """

    file: Path
    ids: IdArray
    vectors: FloatArray
    is_damaged: bool = False

    def __str__(self) -> str:
        if self.is_damaged:
            what = "faces, of which the index file that knew them can't be read"
        else:
            what = f"{counted(len(self.ids), 'face')} that its index knew (templates {_ranges(self.ids)})"
        return (
            f"{self.file.parent}: the gallery lost {what}: its write-ahead log was damaged, or an older file "
            "was put back by hand. `facepipe gallery repair` brings their vectors back as unknown faces; "
            f"names, photos and crops can't be known. If you went back on purpose, delete {self.file}"
        )


def lost_files(folder: Path) -> list[Path]:
    """Return the files of lost faces in a gallery's folder."""
    return sorted(folder.glob(_PATTERN))


def lost_faces(folder: Path, dimensions: int) -> list[LostFaces]:
    """Return what is kept of lost faces in a gallery's folder."""
    return [_read(file, dimensions) for file in lost_files(folder)]


def _read(file: Path, dimensions: int) -> LostFaces:
    try:
        index = VectorIndex.load(file, dimensions)
    except (DamagedIndexError, FileNotFoundError):
        return LostFaces(file, np.zeros(0, np.int64), np.zeros((0, dimensions), np.float32), True)
    return LostFaces(file, index.ids, index.vectors_of(index.ids), False)


def missing_from(store: Store, index: VectorIndex) -> tuple[IdArray, bool]:
    """Return the templates of an index that the truth lacks and never removed. Inside a transaction.

    Returns:
        Their ids int64 (n,), rising, and whether the index is of this gallery: the truth holds other faces of
        it, or none at all.
    """
    known = index.ids
    is_held = np.zeros(len(known), bool)
    stored = 0
    for ids, vectors in store.vectors_after(0):
        stored += len(ids)
        common, at, _ = np.intersect1d(ids, known, assume_unique=True, return_indices=True)
        is_same = (vectors[at] == index.vectors_of(common)).all(axis=1)
        is_held[np.searchsorted(known, common[is_same])] = True
    is_ours = bool(is_held.any()) or not stored
    candidates = known[~is_held & ~np.isin(known, store.removed_after(0))]
    return _not_stored_otherwise(store, candidates, index.vectors_of(candidates)), is_ours


def _not_stored_otherwise(store: Store, ids: IdArray, vectors: FloatArray) -> IdArray:
    """Those whose vectors the truth does not hold under another id, or without a name."""
    if not len(ids):
        return ids
    id_of = {vector.tobytes(): id for id, vector in zip(ids.tolist(), vectors, strict=True)}
    for _, stored in store.vectors_after(0):
        for vector in stored:
            id_of.pop(vector.tobytes(), None)
    for face in store.unknown.all():
        id_of.pop(face.embedding.tobytes(), None)
    return np.array(sorted(id_of.values()), np.int64)


def keep_lost(index: VectorIndex, ids: IdArray, folder: Path) -> None:
    """Write the templates of these ids to a file of lost faces, atomically."""
    lost = VectorIndex(index.dimensions)
    lost.add(ids, index.vectors_of(ids))
    lost.state = index.state
    file = _file_of(index.state, folder)
    lost.save(file)


def keep_unreadable(file: Path, state: VectorState, folder: Path) -> None:
    """Make a file of lost faces of an index file that is damaged."""
    move_index(file, _file_of(state, folder))


def _file_of(state: VectorState, folder: Path) -> Path:
    return folder / _PATTERN.replace("*", state.token.hex())


def as_unknown(lost: Iterable[LostFaces]) -> list[NewTemplate]:
    """Return the faces, to be remembered without names."""
    return [NewTemplate(vector) for faces in lost for vector in faces.vectors]


def _ranges(ids: IdArray) -> str:
    """Rising ids as 1-3, 7, 9-12; the first of them where there are many."""
    parts = [part.tolist() for part in np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)]
    told = [str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts[:_RANGES_MAX]]
    return ", ".join([*told, "..."] if len(parts) > _RANGES_MAX else told)
