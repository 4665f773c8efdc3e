"""What an index is made of: FAISS's own indexes, a flat one that grows and a quantised one that is mapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import BoolArray, FloatArray, UInt8Array
from facepipe.core.forks import in_forked_processes

IdArray = npt.NDArray[np.int64]
Neighbours = tuple[npt.NDArray[np.float64], IdArray]
"""Distances and ids of vectors, both (n, k)."""

CANDIDATES = 1_000
"""Of the quantised scan, compared exactly; of a million, 500 held the nearest in all of 1,000 searches."""
ERASED = np.float32(1e15)
"""Stands in a file in place of each number of a vector that was removed: far from everything."""

_CHUNK_ROWS = 1 << 16
_TRAINING_ROWS = 1 << 15
_CODE_BITS = 4
_K_FACTOR = 100
"""Candidates for each neighbour where another program searches the file."""
_COUNTED_BITS = 6
"""Rows are counted among 64 successive ids."""


@cache
def load_faiss() -> Any:
    """FAISS, on one thread in forked processes: the threads of its OpenMP exist in the parent only."""
    import faiss  # Late: it takes longer to import than a gallery to list.

    in_forked_processes(lambda: faiss.omp_set_num_threads(1))
    return faiss


class FlatPart:
    """An `IndexIDMap2` over an `IndexFlatL2`: every search compares all vectors.

    Attributes:
        index: FAISS's.
    """

    def __init__(self, index: Any) -> None:
        self.index = index
        self._vectors: Any = load_faiss().downcast_index(index.index)

    @classmethod
    def empty(cls, dimensions: int) -> Self:
        """Without a vector."""
        faiss = load_faiss()
        return cls(faiss.IndexIDMap2(faiss.IndexFlatL2(dimensions)))

    @classmethod
    def made_of(cls, parts: Sequence[Part], removed: IdArray) -> Self:
        """Return all vectors of `parts` but for ids that were `removed`."""
        part = cls.empty(parts[0].index.d)
        for ids, vectors in _held(parts, removed):
            part.add(ids, vectors)
        return part

    @classmethod
    def of_file(cls, data: UInt8Array) -> Self:
        """Return a copy of what a file holds, without the rows that were erased from it."""
        part = cls(load_faiss().deserialize_index(data))
        part.remove(np.array([-1]))
        return part

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def has_gaps(self) -> bool:
        """Whether rows are left of what was removed."""
        return False

    @property
    def ids(self) -> IdArray:
        """int64 (n,), rising."""
        ids: IdArray = load_faiss().vector_to_array(self.index.id_map)
        return ids

    @property
    def vectors(self) -> FloatArray:
        """float32 (n, d) in the order of `ids`, until the next change."""
        return _rows_of_flat(self._vectors)

    @property
    def codes(self) -> UInt8Array:
        """Empty: the vectors themselves are compared."""
        return np.zeros(0, np.uint8)

    def with_ids(self) -> Any:
        """FAISS's `IndexIDMap2` of this part, to be written."""
        return self.index

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add vectors float32 (n, d) under ids that are larger than all before."""
        self.index.add_with_ids(np.ascontiguousarray(vectors), ids)

    def remove(self, ids: IdArray) -> None:
        """Forget these ids; others may be among them."""
        if len(self):
            self.index.remove_ids(ids)

    def locate(self, ids: IdArray) -> tuple[IdArray, BoolArray]:
        """Return the rows int64 (n,) of `ids`, and which of them occur."""
        return locate(self.ids, ids)

    def nearest(self, queries: FloatArray, count: int, excluded: IdArray) -> Neighbours:
        """Return each query's nearest vectors.

        Args:
            queries: float32 (n, d).
            count: Of neighbours wanted.
            excluded: Ids to pass over, rising; others may be among them.

        Returns:
            Distances float64 (n, k) and ids int64 (n, k), in no order; infinite and -1 where there are
            fewer.
        """
        count = min(count, len(self))
        out = places(self.ids, excluded) if len(excluded) else excluded
        rows = _search(self._vectors, queries, count, _all_but(out) if len(out) else None)
        return _measured(self.vectors, self.ids, queries, rows)


class QuantizedPart:
    """An `IndexPQFastScan` that finds candidates, refined by an `IndexFlatL2` (`IndexRefineFlat`).

    A vector's code has 4 bits for every two of its numbers. Where the vectors are those of a mapped file
    FAISS can only read them, so rows are neither added nor removed.

    Attributes:
        index: FAISS's, of rows counted from 0.
        ids: int64 (n,), of the rows; not falling.
    """

    def __init__(self, index: Any, ids: IdArray, data: UInt8Array | None = None) -> None:
        faiss = load_faiss()
        self.index = index
        self.index.k_factor = _K_FACTOR
        self._data = data  # Which FAISS reads for as long as the index lives.
        self.ids: IdArray = np.maximum.accumulate(ids)
        self._rows = RowsOfIds(self.ids)
        self._erased = np.flatnonzero(ids < 0)
        self._flat: Any = faiss.downcast_index(index.refine_index)
        self.quantizer: Any = faiss.downcast_index(index.base_index)

    @classmethod
    def made_of(cls, parts: Sequence[Part], removed: IdArray) -> Self:
        """Return all vectors of `parts` but for `removed` ids; some thousand, to learn codes from."""
        faiss = load_faiss()
        quantizer = next(
            (faiss.clone_index(p.quantizer) for p in parts if isinstance(p, QuantizedPart)), None
        )
        if quantizer is None:
            quantizer = _trained_quantizer(parts, removed)
        quantizer.reset()
        index, ids = faiss.IndexRefineFlat(quantizer), []
        for some_ids, vectors in _held(parts, removed):
            index.add(vectors)
            ids.append(some_ids)
        return cls(index, np.concatenate(ids))

    @classmethod
    def of_file(cls, data: UInt8Array, ids: IdArray) -> Self:
        """Return the vectors where they lie in a file's mapped bytes; `ids` are -1 where rows were erased."""
        faiss = load_faiss()
        reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(data), len(data))
        return cls(faiss.read_index(reader), ids, data)

    def __len__(self) -> int:
        return len(self.ids) - len(self._erased)

    @property
    def has_gaps(self) -> bool:
        """Whether rows are left of what was removed."""
        return len(self._erased) > 0

    @property
    def vectors(self) -> FloatArray:
        """float32 (n, d) in the order of `ids`."""
        return _rows_of_flat(self._flat)

    @property
    def codes(self) -> UInt8Array:
        """All codes, as FAISS packs them."""
        codes: UInt8Array = load_faiss().rev_swig_ptr(self.quantizer.codes.get(), self.quantizer.codes.size())
        return codes

    def with_ids(self) -> Any:
        """FAISS's `IndexIDMap2` of this part, to be written."""
        faiss = load_faiss()
        index = faiss.IndexIDMap2(faiss.IndexFlatL2(self.index.d))
        index.index, index.ntotal = self.index, self.index.ntotal
        faiss.copy_array_to_vector(self.ids, index.id_map)
        return index

    def locate(self, ids: IdArray) -> tuple[IdArray, BoolArray]:
        """Return the rows int64 (n,) of `ids`, and which of them occur."""
        return self._rows.locate(ids)

    def nearest(self, queries: FloatArray, count: int, excluded: IdArray) -> Neighbours:
        """See `FlatPart.nearest`; a neighbour that is not among the candidates is missed."""
        faiss = load_faiss()
        out = np.union1d(self._erased, places(self.ids, excluded)) if len(excluded) else self._erased
        wanted = min(count, len(self.ids) - len(out))
        candidates = min(max(CANDIDATES, 4 * count), len(self.ids))
        compared = min(wanted + len(out), candidates)
        if not wanted:
            return np.zeros((len(queries), 0)), np.zeros((len(queries), 0), np.int64)
        factor = faiss.IndexRefineSearchParameters(k_factor=candidates / compared)
        rows = _search(self.index, queries, compared, factor)
        if not len(out):
            return _measured(self.vectors, self.ids, queries, rows)
        counts = (rows >= 0) & ~np.isin(rows, out)
        first = np.argsort(~counts, axis=1, kind="stable")[:, :wanted]
        rows = np.take_along_axis(rows, first, axis=1)
        short = counts.sum(axis=1) < wanted
        if short.any():
            rows[short] = _search(self._flat, queries[short], wanted, _all_but(out))
        return _measured(self.vectors, self.ids, queries, rows)


Part = FlatPart | QuantizedPart


def locate(rising: IdArray, ids: IdArray) -> tuple[IdArray, BoolArray]:
    """The places int64 (n,) of `ids` in `rising`, the first of equals, and which of them occur there."""
    rows = np.searchsorted(rising, ids)
    is_present = rows < len(rising)
    is_present[is_present] = rising[rows[is_present]] == ids[is_present]
    return rows, is_present


def places(rising: IdArray, ids: IdArray) -> IdArray:
    """Return the places of those `ids` that occur in `rising`."""
    rows, is_present = locate(rising, ids)
    return rows[is_present]


class RowsOfIds:
    """Finds the rows of ids in a column that does not fall.

    A binary search reads some twenty places far apart, each slow where other memory was read in between. Here
    rows are counted from the first of some successive ids, which is right wherever none of these is missing.

    Args:
        ids: int64 (n,).
    """

    def __init__(self, ids: IdArray) -> None:
        self._ids = ids
        self._first, self._last = (max(0, int(ids[0])), int(ids[-1])) if len(ids) else (0, -1)
        span = self._last - self._first
        self._shift = max(_COUNTED_BITS, (span // max(1, len(ids))).bit_length())
        counted_from = self._first + (np.arange((span >> self._shift) + 1) << self._shift)
        self._starts = np.searchsorted(ids, counted_from)

    def locate(self, ids: IdArray) -> tuple[IdArray, BoolArray]:
        """Return what `locate` does."""
        if not len(self._starts):
            return locate(self._ids, ids)
        offsets = np.clip(ids, self._first, self._last) - self._first
        rows = self._starts[offsets >> self._shift] + (offsets & ((1 << self._shift) - 1))
        np.minimum(rows, len(self._ids) - 1, out=rows)
        is_present = (self._ids[rows] == ids) & ((rows == 0) | (self._ids[rows - 1] < ids))
        missed = np.flatnonzero(~is_present)
        if len(missed):
            rows[missed], is_present[missed] = locate(self._ids, ids[missed])
        return rows, is_present


def rows_of_values(rising: IdArray, values: IdArray) -> tuple[IdArray, IdArray]:
    """Return the rows (n,) of `rising` that hold some values, value by value, and where each begins."""
    return ranges(np.searchsorted(rising, values), np.searchsorted(rising, values, "right"))


def ranges(first: IdArray, end: IdArray) -> tuple[IdArray, IdArray]:
    """Return the numbers from each `first` up to its `end`, range by range (n,), and where each begins."""
    starts = np.cumsum(end - first) - (end - first)
    return np.repeat(first - starts, end - first) + np.arange(np.sum(end - first)), starts


def _all_but(excluded: IdArray) -> Any:
    """Return what FAISS is to pass over, as parameters of a search."""
    faiss = load_faiss()
    return faiss.SearchParameters(sel=faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded)))


def _search(index: Any, queries: FloatArray, count: int, parameters: Any) -> IdArray:
    """Return the labels int64 (n, k) that FAISS finds."""
    labels: IdArray = index.search(np.ascontiguousarray(queries), count, params=parameters)[1]
    return labels


def _measured(vectors: FloatArray, ids: IdArray, queries: FloatArray, rows: IdArray) -> Neighbours:
    """Return exact distances and ids, both (n, k), of the rows found for queries; -1 is none.

    FAISS's distances choose, but are products of float32, off by 1e-3 near zero.
    """
    if not rows.size:
        return np.zeros(rows.shape), rows
    apart = vectors.take(rows, axis=0, mode="wrap").astype(np.float64)
    apart -= queries[:, None]
    apart *= apart
    distances = np.sqrt(apart.sum(axis=2))
    is_found = rows >= 0
    if not is_found.all():
        distances[~is_found] = np.inf
    return distances, np.where(is_found, ids[rows], -1)


def _rows_of_flat(flat: Any) -> FloatArray:
    if not flat.ntotal:
        return np.zeros((0, flat.d), np.float32)
    vectors: FloatArray = load_faiss().rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
    return vectors.reshape(flat.ntotal, flat.d)


def held_rows(part: Part, removed: IdArray) -> IdArray:
    """Return the rows of a part that were neither erased nor `removed`, which are ids."""
    is_held = (part.ids >= 0) & ~np.isin(part.ids, removed)
    is_held[1:] &= np.diff(part.ids) > 0  # An erased row has the id of the row before it.
    return np.flatnonzero(is_held)


def _held(parts: Sequence[Part], removed: IdArray, every: int = 1) -> Iterator[tuple[IdArray, FloatArray]]:
    """Ids and vectors that were neither erased nor removed, some at a time; one row of `every` so many."""
    for part in parts:
        rows = held_rows(part, removed)[::every]
        for at in range(0, len(rows), _CHUNK_ROWS):
            some = rows[at : at + _CHUNK_ROWS]
            yield part.ids[some], part.vectors[some]


def _trained_quantizer(parts: Sequence[Part], removed: IdArray) -> Any:
    every = max(1, sum(map(len, parts)) // _TRAINING_ROWS)
    sample = np.concatenate([vectors for _, vectors in _held(parts, removed, every)])
    quantizer = _empty_quantizer(sample.shape[1])
    quantizer.train(sample)
    return quantizer


def _empty_quantizer(dimensions: int) -> Any:
    numbers_a_code = 1 if dimensions % 2 else 2
    return load_faiss().IndexPQFastScan(dimensions, dimensions // numbers_a_code, _CODE_BITS)


def erase_codes(codes: UInt8Array, rows: IdArray, dimensions: int) -> None:
    """Overwrite the codes of these rows in the bytes of an `IndexPQFastScan`, which packs rows in blocks."""
    packer = _empty_quantizer(dimensions).get_CodePacker()
    blocks = codes.reshape(-1, 1, packer.block_size)
    nothing = np.zeros(packer.code_size, np.uint8)
    for row in rows.tolist():
        packer.pack_1(nothing, row % packer.nvec, blocks[row // packer.nvec])
