"""Nearest neighbours by FAISS; derived from the truth and made again at will.

Up to 20,000 vectors stand in a flat index, which compares a query with all of them. Of more, FAISS scans a
code of each (4 bits for every two dimensions, a sixteenth of the size), and compares the 1,000 likeliest
exactly. So every distance is exact; docs/gallery.md says how seldom the nearest vector is missed.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import FloatArray
from facepipe.gallery.index.file import EMPTY_STATE, IndexRecord, read_index, write_index
from facepipe.gallery.index.parts import (
    ERASED,
    FlatPart,
    IdArray,
    Part,
    QuantizedPart,
    held_rows,
    places,
)

DistanceArray = npt.NDArray[np.float64]

EXACT_ROWS_MAX = 20_000
"""Up to here all vectors are compared; at five times as many the quantised scan takes as long."""

_SPARE = 8  # Of float32 distances that are equal but for rounding, the exact ones choose.
_QUERIES_AT_ONCE = 32  # More take more memory and hardly less time.
_SAVED_SHARE = 32  # A file is rewritten when a 32nd of it is missing from it or removed.


class VectorIndex:
    """Nearest neighbours by Euclidean distance, with explicit ids. One thread at a time.

    Attributes:
        dimensions: Length of a vector.
        state: The state of the truth that the index holds; set by whoever keeps both in step.
        last_id: The largest id that was ever added; 0: none was.
    """

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.state = EMPTY_STATE
        self.last_id = 0
        self._frozen: list[Part] = []  # Not changed any more.
        self._removed = np.zeros(0, np.int64)  # Ids that frozen parts still hold.
        self._flat = FlatPart.empty(dimensions)
        self._merging: _Merging | None = None

    def __len__(self) -> int:
        return sum(map(len, self._parts)) - len(self._removed)

    @property
    def ids(self) -> IdArray:
        """int64 (n,), rising."""
        return np.concatenate([part.ids[held_rows(part, self._removed)] for part in self._parts])

    def vectors_of(self, ids: IdArray) -> FloatArray:
        """Return the vectors float32 (n, d) of ids; infinite where the index does not hold one."""
        found = np.full((len(ids), self.dimensions), np.inf, np.float32)
        for part in filter(len, self._parts):
            rows, is_present = part.locate(ids)
            if is_present.all():
                return part.vectors.take(rows, axis=0)  # As mostly; of thousands, one copy less.
            found[is_present] = part.vectors[rows[is_present]]
        return found

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add vectors float32 (n, d) under new ids int64 (n,), rising and larger than all before."""
        if not len(ids):
            return
        if ids[0] <= self.last_id or (np.diff(ids) <= 0).any():
            raise ValueError(f"expected rising ids above {self.last_id}, got {ids}")
        self._flat.add(ids, vectors)
        self.last_id = int(ids[-1])

    def remove(self, ids: IdArray) -> None:
        """Forget these ids; others than those of the index may be among them."""
        ids = np.unique(ids)
        self._flat.remove(ids)
        frozen = [part.ids[places(part.ids, ids)] for part in self._frozen]
        self._removed = np.unique(np.concatenate([self._removed, *frozen]))

    def search(
        self, queries: FloatArray, count: int, exclude_ids: IdArray | None = None
    ) -> tuple[DistanceArray, IdArray]:
        """Return the nearest vectors of each query.

        Args:
            queries: float32 (n, d).
            count: Neighbours wanted; fewer come back where the index holds fewer.
            exclude_ids: int64, ids to pass over.

        Returns:
            Distances float64 (n, k), Euclidean, rising; ids int64 (n, k).
        """
        self._follow_size()
        excluded = self._removed if exclude_ids is None else np.union1d(self._removed, exclude_ids)
        passed_over = sum(len(places(part.ids, excluded)) for part in self._parts) if len(excluded) else 0
        count = min(count, sum(map(len, self._parts)) - passed_over)
        if not count or not len(queries):
            return np.zeros((len(queries), count)), np.zeros((len(queries), count), np.int64)
        found = [
            self._nearest(some, count, excluded)
            for some in np.split(queries, range(_QUERIES_AT_ONCE, len(queries), _QUERIES_AT_ONCE))
        ]
        return np.concatenate([some[0] for some in found]), np.concatenate([some[1] for some in found])

    def settle(self) -> None:
        """Wait until what goes on in the background is done."""
        self._follow_size(wait=True)

    def save(self, file: Path) -> None:
        """Write the index with its state, atomically."""
        self.settle()
        if self._frozen and self._differs_from_frozen:
            kind = QuantizedPart if len(self) > EXACT_ROWS_MAX else FlatPart
            self._hold_only(kind.made_of(self._parts, self._removed))
        write_index(file, self.state, self._frozen[0] if self._frozen else self._flat, self.last_id)

    @classmethod
    def load(cls, file: Path, dimensions: int) -> Self:
        """Read an index that `save` wrote.

        Raises:
            FileNotFoundError: There is none.
            DamagedIndexError: It is truncated, altered, unreadable or of another kind.
        """
        record, part = read_index(file, dimensions)
        index = cls(dimensions)
        index.state, index.last_id = record.state, record.last_id
        index._hold_only(part)
        return index

    @property
    def _parts(self) -> list[Part]:
        return [*self._frozen, self._flat]

    def _nearest(self, queries: FloatArray, count: int, excluded: IdArray) -> tuple[DistanceArray, IdArray]:
        found = [part.nearest(queries, count + _SPARE, excluded) for part in self._parts if len(part)]
        distances, ids = (np.concatenate(column, axis=1) for column in zip(*found, strict=True))
        distances[distances > ERASED / 2] = np.inf  # Another process is erasing it at this moment.
        order = np.lexsort((ids.view(np.uint64), distances))[:, :count]  # What is missing (-1) comes last.
        return np.take_along_axis(distances, order, axis=1), np.take_along_axis(ids, order, axis=1)

    # From comparing all to the quantised scan, in the background of whatever call comes first

    def _follow_size(self, wait: bool = False) -> None:
        """Begin to quantise where there are enough vectors, and use the result once it is there."""
        if self._merging is None and len(self._flat) > EXACT_ROWS_MAX:
            self._begin_merging()
        part = self._merging.result(wait) if self._merging else None
        if part is not None:
            self._frozen, self._merging = [part], None
            self._removed = part.ids[places(part.ids, self._removed)]

    @property
    def _differs_from_frozen(self) -> bool:
        """Whether there is more or less than the first frozen part holds."""
        changed = len(self._flat) + len(self._removed)
        return bool(changed or len(self._frozen) > 1 or self._frozen[0].has_gaps)

    def _hold_only(self, part: Part) -> None:
        self._frozen, self._removed, self._merging = [], np.zeros(0, np.int64), None
        if isinstance(part, FlatPart):
            self._flat = part
        else:
            self._frozen, self._flat = [part], FlatPart.empty(self.dimensions)

    def _begin_merging(self) -> None:
        """Make one quantised part of all; what is added meanwhile goes to a new flat one."""
        self._frozen.append(self._flat)
        self._flat = FlatPart.empty(self.dimensions)
        self._merging = _Merging(self._frozen, self._removed)


def is_far_behind(saved: IndexRecord, added: int, removed: int) -> bool:
    """Whether a file that lacks so many vectors, and holds so many that were removed, is to be rewritten.

    Until then the next opening reads what is missing from the truth.
    """
    changed = added + removed + saved.erased
    misses_codes = saved.rows + added > EXACT_ROWS_MAX and not saved.code_bytes
    return changed * _SAVED_SHARE > saved.rows or misses_codes


class _Merging:
    """A thread that makes a quantised part of others: a second for 300,000 vectors."""

    def __init__(self, parts: list[Part], removed: IdArray) -> None:
        self._parts, self._removed = list(parts), removed
        self._result: QuantizedPart | None = None
        self._thread = threading.Thread(target=self._run, name="facepipe index", daemon=True)
        self._thread.start()

    def result(self, wait: bool) -> QuantizedPart | None:
        """Return the part once it is made."""
        if wait:
            self._thread.join()
        return None if self._thread.is_alive() else self._result

    def _run(self) -> None:
        self._result = QuantizedPart.made_of(self._parts, self._removed)
