"""The gallery's speed: nearest neighbours among vectors, derived from the truth and thrown away at will.

This module is the one home of the index: whatever engine stands behind `VectorIndex`, the gallery asks it
to add, remove, search, save and load, and to say which state of the truth it holds.

Up to 100,000 vectors a search looks at all of them. Above, FAISS scans a sketch of each (4 bits for every
two dimensions, a sixteenth of the size), and the 1,000 likeliest are compared exactly. So every distance is
exact; docs/gallery.md says how seldom the nearest vector is missed.
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import FloatArray
from facepipe.core.forks import in_forked_processes
from facepipe.gallery.index.file import (
    EMPTY_STATE,
    CodeArray,
    Columns,
    DamagedIndexError,
    IdArray,
    SavedExtent,
    read_index,
    rows_of,
    write_index,
)

DistanceArray = npt.NDArray[np.float64]

EXACT_ROWS_MAX = 100_000
"""Up to here all vectors are compared; the sketch looks at ten times as many in less time."""
CANDIDATES = 1_000
"""Compared exactly of what the sketch finds; 500 held the nearest of a million in all of 1,000 searches."""

_SPARE = 8  # Of float32 scores that are equal but for rounding, the exact distances choose.
_CHUNK_ROWS = 1 << 16
_QUERIES_AT_ONCE = 256
_TRAINING_ROWS = 1 << 15
_CENTROIDS = 16
_SAVED_SHARE = 32  # A file is rewritten when a 32nd of it is missing from it or removed.

logger = logging.getLogger("facepipe")


class VectorIndex:
    """Nearest neighbours by Euclidean distance, with explicit ids. One thread at a time.

    Attributes:
        dimensions: Length of a vector.
        state: The state of the truth that the index holds; set by whoever keeps both in step.
    """

    def __init__(self, dimensions: int) -> None:
        none = np.zeros((0, dimensions), np.float32)
        self.dimensions = dimensions
        self.state = EMPTY_STATE
        self._ids = _Column(np.zeros(0, np.int64))
        self._half_squares = _Column(np.zeros(0, np.float32))  # Infinite where removed.
        self._saved_vectors, self._vectors = none, _Column(none)  # Those of the file, and later ones.
        self._removed = 0
        self._sketch: _PQIndex | None = None
        self._sketching: _Sketching | None = None

    def __len__(self) -> int:
        return self._rows - self._removed

    @property
    def last_id(self) -> int:
        """The largest id that was ever added; 0: none was."""
        return int(self._ids.array[-1]) if self._rows else 0

    @property
    def ids(self) -> IdArray:
        """int64 (n,), rising."""
        ids: IdArray = self._ids.array[np.isfinite(self._half_squares.array)]
        return ids

    def vectors_of(self, ids: IdArray) -> FloatArray:
        """The vectors float32 (n, d) of ids of the index."""
        return self._vectors_at(rows_of(self._ids.array, ids))

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add vectors float32 (n, d) under new ids int64 (n,), rising and larger than all before."""
        if len(ids) and (ids[0] <= self.last_id or (np.diff(ids) <= 0).any()):
            raise ValueError(f"expected rising ids above {self.last_id}, got {ids}")
        self._ids.append(ids)
        self._half_squares.append(np.einsum("nd,nd->n", vectors, vectors) / np.float32(2))
        self._vectors.append(vectors)

    def remove(self, ids: IdArray) -> None:
        """Forget these ids; others than those of the index may be among them."""
        rows = rows_of(self._ids.array, np.unique(ids))
        half_squares = self._half_squares.array
        self._removed += int(np.isfinite(half_squares[rows]).sum())
        half_squares[rows] = np.inf
        later = rows[rows >= len(self._saved_vectors)] - len(self._saved_vectors)
        self._vectors.array[later] = 0

    def search(
        self, queries: FloatArray, count: int, exclude_ids: IdArray | None = None
    ) -> tuple[DistanceArray, IdArray]:
        """The nearest vectors of each query.

        Args:
            queries: float32 (n, d).
            count: Neighbours wanted; fewer come back where the index holds fewer.
            exclude_ids: int64, ids to pass over.

        Returns:
            Distances float64 (n, k), Euclidean, rising; ids int64 (n, k).
        """
        excluded = np.zeros(0, np.int64)
        if exclude_ids is not None:
            excluded = rows_of(self._ids.array, np.unique(exclude_ids))
        allowed = len(self) - int(np.isfinite(self._half_squares.array[excluded]).sum())
        count = min(count, allowed)
        if not count or not len(queries):
            return np.zeros((len(queries), count)), np.zeros((len(queries), count), np.int64)
        self._follow_size()
        wanted = min(count + _SPARE, allowed)
        found = [
            self._by_exact_distance(some, self._nearest(some, wanted, excluded), count)
            for some in np.split(queries, range(_QUERIES_AT_ONCE, len(queries), _QUERIES_AT_ONCE))
        ]
        return np.concatenate([some[0] for some in found]), np.concatenate([some[1] for some in found])

    def settle(self) -> None:
        """Wait until what goes on in the background is done."""
        self._follow_size(wait=True)

    def save(self, file: Path) -> None:
        """Write the index with its state, atomically."""
        self.settle()
        write_index(file, self.state, self._columns())

    @classmethod
    def load(cls, file: Path, dimensions: int) -> Self:
        """Read an index that `save` wrote.

        Raises:
            FileNotFoundError: There is none.
            DamagedIndexError: It is truncated, altered, unreadable or of another kind.
        """
        index = cls(dimensions)
        index.state, columns = read_index(file, dimensions)
        index._ids, index._half_squares = _Column(columns.ids), _Column(columns.half_squares.copy())
        index._saved_vectors = columns.vectors
        index._removed = int(np.isinf(columns.half_squares).sum())
        if len(columns.codebook):
            index._sketch = _PQIndex.of_columns(columns)
        return index

    # Searching; a row is the place of a vector in the index

    @property
    def _rows(self) -> int:
        return len(self._ids.array)

    def _nearest(self, queries: FloatArray, wanted: int, excluded: IdArray) -> IdArray:
        if self._sketch is None:
            return self._nearest_of_all(queries, wanted, excluded)
        return self._nearest_by_sketch(self._sketch, queries, wanted, excluded)

    def _nearest_of_all(self, queries: FloatArray, wanted: int, excluded: IdArray) -> IdArray:
        """The rows int64 (n, wanted) with the largest scores: product less half of the squared length."""
        scores = np.zeros((len(queries), 0), np.float32)
        rows = np.zeros((len(queries), 0), np.int64)
        for start, vectors in self._chunks():
            fresh = queries @ vectors.T - self._half_squares.array[start : start + len(vectors)]
            inside = excluded[(excluded >= start) & (excluded < start + len(vectors))]
            fresh[:, inside - start] = -np.inf
            top = _largest(fresh, wanted)
            scores = np.concatenate([scores, np.take_along_axis(fresh, top, axis=1)], axis=1)
            rows = np.concatenate([rows, top + start], axis=1)
        return np.take_along_axis(rows, _largest(scores, wanted), axis=1)

    def _nearest_by_sketch(
        self, sketch: _PQIndex, queries: FloatArray, wanted: int, excluded: IdArray
    ) -> IdArray:
        """As `_nearest_of_all`, of the sketch's candidates only; of all where too few of them count."""
        candidates = sketch.search(queries, max(CANDIDATES, 4 * wanted))
        rows = np.empty((len(queries), wanted), np.int64)
        for at, query in enumerate(queries):
            mine = candidates[at]
            scores = self._vectors_at(mine) @ query - self._half_squares.array[mine]
            scores[np.isin(mine, excluded)] = -np.inf
            if np.isfinite(scores).sum() >= wanted:
                rows[at] = mine[_largest(scores[None], wanted)[0]]
            else:
                rows[at] = self._nearest_of_all(query[None], wanted, excluded)[0]
        return rows

    def _by_exact_distance(
        self, queries: FloatArray, rows: IdArray, count: int
    ) -> tuple[DistanceArray, IdArray]:
        """Products of float32 choose the rows, but are off by 1e-3 as distances near zero."""
        found = self._vectors_at(rows.ravel()).reshape(*rows.shape, self.dimensions)
        distances = np.linalg.norm(found.astype(np.float64) - queries[:, None].astype(np.float64), axis=2)
        distances[~found.any(axis=2)] = np.inf  # Another process is erasing it at this moment.
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        ids = self._ids.array[rows]
        return np.take_along_axis(distances, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def _vectors_at(self, rows: IdArray) -> FloatArray:
        """float32 (n, d)."""
        saved = len(self._saved_vectors)
        if not len(self._vectors.array):
            return self._saved_vectors[rows]
        found = np.empty((len(rows), self.dimensions), np.float32)
        is_saved = rows < saved
        found[is_saved] = self._saved_vectors[rows[is_saved]]
        found[~is_saved] = self._vectors.array[rows[~is_saved] - saved]
        return found

    def _chunks(self, start: int = 0) -> list[tuple[int, FloatArray]]:
        """All vectors from row `start` on, some at a time, each with its first row."""
        saved = len(self._saved_vectors)
        parts = [(0, self._saved_vectors), (saved, self._vectors.array)]
        return [
            (first + at, vectors[at : at + _CHUNK_ROWS])
            for first, vectors in parts
            for at in range(max(0, start - first), len(vectors), _CHUNK_ROWS)
        ]

    # From looking at all to the sketch, in the background of whatever call comes first

    @property
    def _wants_sketch(self) -> bool:
        return self._sketch is None and _needs_sketch(self._rows, self.dimensions)

    def _follow_size(self, wait: bool = False) -> None:
        """Begin the sketch where there are enough vectors, and use it once it is made."""
        if self._wants_sketch:
            self._sketching = self._sketching or _Sketching(self._chunks(), self.dimensions)
            self._sketch = self._sketching.result(wait)
        if self._sketch is not None:
            self._sketching = None
            for _, vectors in self._chunks(len(self._sketch)):
                self._sketch.add(vectors)

    def _columns(self) -> list[Columns]:
        """What is to be saved: the rows of the file, and the later ones."""
        saved, ids, half_squares = len(self._saved_vectors), self._ids.array, self._half_squares.array
        codebook, codes = np.zeros(0, np.float32), np.zeros((self._rows, 0), np.uint8)
        old_codes, new_codes = codes[:saved], codes[saved:]
        if self._sketch is not None:
            codebook, old_codes, new_codes = self._sketch.codebook, *self._sketch.codes_from(saved)
        return [
            Columns(ids[:saved], half_squares[:saved], codebook, old_codes, self._saved_vectors),
            Columns(ids[saved:], half_squares[saved:], codebook, new_codes, self._vectors.array),
        ]


def is_far_behind(saved: SavedExtent, added: int, removed: int) -> bool:
    """Whether a file that lacks so many vectors, and holds so many that were removed, is to be rewritten.

    Until then the next opening reads what is missing from the truth.
    """
    changed = added + removed + saved.removed
    misses_sketch = _needs_sketch(saved.rows + added, saved.dimensions) and not saved.has_sketch
    return changed * _SAVED_SHARE > saved.rows or misses_sketch


class _PQIndex:
    """Product quantisation: two dimensions of a vector are told by the nearest of 16 points, in 4 bits.

    FAISS keeps the codes shuffled, so that one instruction looks up 32 of them. Here they are kept as rows
    too, of which the saved ones are mapped from the file.
    """

    def __init__(self, dimensions: int, codebook: FloatArray) -> None:
        faiss = load_faiss()
        self.codebook = codebook
        self._plain: Any = faiss.IndexPQ(dimensions, dimensions // 2, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(codebook, self._plain.pq.centroids)
        self._plain.is_trained = True
        self._saved_codes = np.zeros((0, dimensions // 4), np.uint8)
        self._codes = _Column(self._saved_codes)
        self._fast: Any = faiss.IndexPQFastScan(self._plain)

    def __len__(self) -> int:
        return int(self._fast.ntotal)

    @classmethod
    def trained(cls, sample: FloatArray) -> Self:
        """A sketch for vectors like those of `sample`, empty."""
        faiss = load_faiss()
        quantiser = faiss.ProductQuantizer(sample.shape[1], sample.shape[1] // 2, 4)
        quantiser.train(np.ascontiguousarray(sample))
        return cls(sample.shape[1], faiss.vector_to_array(quantiser.centroids))

    @classmethod
    def of_columns(cls, columns: Columns) -> Self:
        """The sketch of an index file.

        Raises:
            DamagedIndexError: The columns do not fit each other.
        """
        dimensions = columns.vectors.shape[1]
        if dimensions % 4 or len(columns.codebook) != _CENTROIDS * dimensions:
            raise DamagedIndexError("is of another kind")
        if columns.codes.shape[1] != dimensions // 4:
            raise DamagedIndexError("is of another kind")
        faiss = load_faiss()
        sketch = cls(dimensions, columns.codebook.copy())
        sketch._saved_codes = columns.codes
        faiss.copy_array_to_vector(columns.codes.ravel(), sketch._plain.codes)
        sketch._plain.ntotal = len(columns.codes)
        sketch._fast = faiss.IndexPQFastScan(sketch._plain)
        sketch._plain.reset()
        return sketch

    def add(self, vectors: FloatArray) -> None:
        """Add vectors float32 (n, d)."""
        vectors = np.ascontiguousarray(vectors)
        self._codes.append(self._plain.sa_encode(vectors))
        self._fast.add(vectors)

    def search(self, queries: FloatArray, count: int) -> IdArray:
        """The rows int64 (n, k) of the likeliest neighbours, removed ones among them."""
        rows: IdArray = self._fast.search(np.ascontiguousarray(queries), min(count, len(self)))[1]
        return rows

    def codes_from(self, row: int) -> tuple[CodeArray, CodeArray]:
        """The codes before and from `row` on."""
        if not len(self._codes.array):
            return self._saved_codes[:row], self._saved_codes[row:]
        if len(self._saved_codes) == row:
            return self._saved_codes, self._codes.array
        codes = np.concatenate([self._saved_codes, self._codes.array])
        return codes[:row], codes[row:]


class _Sketching:
    """A thread that makes a sketch of the vectors there are now: a second for 300,000 of them."""

    def __init__(self, chunks: list[tuple[int, FloatArray]], dimensions: int) -> None:
        self._chunks = chunks
        self._sketch: _PQIndex | None = None
        self._thread = threading.Thread(target=self._run, name="facepipe index", daemon=True)
        self._thread.start()

    def result(self, wait: bool) -> _PQIndex | None:
        """The sketch once it is made."""
        if wait:
            self._thread.join()
        return None if self._thread.is_alive() else self._sketch

    def _run(self) -> None:
        total = sum(len(vectors) for _, vectors in self._chunks)
        every = max(1, total // _TRAINING_ROWS)
        sketch = _PQIndex.trained(np.concatenate([vectors[::every] for _, vectors in self._chunks]))
        for _, vectors in self._chunks:
            sketch.add(vectors)
        self._sketch = sketch


class _Column:
    """An array that grows at its end in amortised constant time.

    Attributes:
        array: The rows so far. An `append` may leave earlier views behind: they see no later changes.
    """

    def __init__(self, first: npt.NDArray[Any]) -> None:
        self._room = self.array = first

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Add rows of the same kind."""
        length = len(self.array) + len(rows)
        if length > len(self._room):
            self._room = np.empty((length + length // 2, *self.array.shape[1:]), self.array.dtype)
            self._room[: len(self.array)] = self.array
        self._room[len(self.array) : length] = rows
        self.array = self._room[:length]


def _needs_sketch(rows: int, dimensions: int) -> bool:
    return rows > EXACT_ROWS_MAX and not dimensions % 4  # Two codes of two dimensions are a byte.


def _largest(scores: FloatArray, count: int) -> IdArray:
    """Columns int64 (n, k) of the largest of each row, in no order."""
    count = min(count, scores.shape[1])
    return np.argpartition(scores, scores.shape[1] - count, axis=1)[:, scores.shape[1] - count :]


@cache
def load_faiss() -> Any:
    """FAISS, on one thread in forked processes: the threads of its OpenMP exist in the parent only."""
    import faiss  # Late: it takes longer to import than a gallery to list.

    in_forked_processes(lambda: faiss.omp_set_num_threads(1))
    return faiss
