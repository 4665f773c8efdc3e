"""The gallery's speed: a FAISS index of template vectors, derived from the truth and thrown away at will.

This module is the one home of the index: whatever engine stands behind `VectorIndex`, the gallery asks it
to add, remove, search, save and load, and to say which state of the truth it holds.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from facepipe.errors import GalleryError
from facepipe.faces import FloatArray
from gallery.files import replaced

IdArray = npt.NDArray[np.int64]
DistanceArray = npt.NDArray[np.float64]

# The FAISS file, then this trailer: magic, generation, token, length and CRC-32 of what stands before it.
# A trailer, not a header, so that FAISS can read (or map) the file from its first byte.
_TRAILER = struct.Struct("<8sQ16sQL")
_MAGIC = b"FACEPIX1"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class VectorState:
    """Names one state of the set of stored vectors.

    Attributes:
        generation: Of the change that led to it; 0: never any vector.
        token: 16 random bytes, so that copies of a gallery that went separate ways are told apart.
    """

    generation: int
    token: bytes


EMPTY_STATE = VectorState(0, bytes(16))


class DamagedIndexError(GalleryError):
    """An index file can't be used; the truth is not touched by that."""


class VectorIndex:
    """Exact nearest neighbours by Euclidean distance, with explicit ids.

    Attributes:
        dimensions: Length of a vector.
        state: The state of the truth that the index holds; set by whoever keeps both in step.
    """

    def __init__(self, dimensions: int) -> None:
        faiss = _faiss()
        self.dimensions = dimensions
        self.state = EMPTY_STATE
        self._faiss: Any = faiss.IndexIDMap2(faiss.IndexFlatL2(dimensions))

    def __len__(self) -> int:
        return int(self._faiss.ntotal)

    @property
    def ids(self) -> IdArray:
        """int64 (n,), in no order."""
        ids: IdArray = _faiss().vector_to_array(self._faiss.id_map)
        return ids

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add vectors float32 (n, d) under new ids int64 (n,)."""
        self._faiss.add_with_ids(np.ascontiguousarray(vectors), ids)

    def remove(self, ids: IdArray) -> None:
        """Forget these ids."""
        if len(ids):
            self._faiss.remove_ids(ids)

    def search(
        self, queries: FloatArray, count: int, exclude_ids: IdArray | None = None
    ) -> tuple[DistanceArray, IdArray]:
        """The nearest vectors of each query.

        Args:
            queries: float32 (n, d).
            count: Neighbours wanted; fewer come back where the index holds fewer.
            exclude_ids: int64, ids of the index to pass over.

        Returns:
            Distances float64 (n, k), Euclidean, rising; ids int64 (n, k).
        """
        faiss = _faiss()
        parameters = None
        allowed = len(self)
        if exclude_ids is not None:
            allowed -= len(exclude_ids)
            selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(exclude_ids))
            parameters = faiss.SearchParameters(sel=selector)
        count = min(count, allowed)
        if not count or not len(queries):
            return np.zeros((len(queries), count)), np.zeros((len(queries), count), np.int64)
        _, ids = self._faiss.search(np.ascontiguousarray(queries), count, params=parameters)
        return self._by_exact_distance(queries, ids)

    def _by_exact_distance(self, queries: FloatArray, ids: IdArray) -> tuple[DistanceArray, IdArray]:
        """FAISS answers squared distances, in batches by an expansion that is off by 1e-3 near zero."""
        found = self._faiss.reconstruct_batch(ids.ravel()).reshape(*ids.shape, self.dimensions)
        distances = np.linalg.norm(found.astype(np.float64) - queries[:, None].astype(np.float64), axis=2)
        order = np.argsort(distances, axis=1, kind="stable")
        return np.take_along_axis(distances, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def save(self, file: Path, temporary: Path) -> None:
        """Write the index with its state, atomically, by way of `temporary` in the same folder."""
        faiss = _faiss()
        with replaced(file, temporary) as out:
            writer = _CheckedWriter(out)
            faiss.write_index(self._faiss, faiss.PyCallbackIOWriter(writer.write))
            state = self.state
            out.write(_TRAILER.pack(_MAGIC, state.generation, state.token, writer.length, writer.crc))

    @classmethod
    def load(cls, file: Path, dimensions: int) -> Self:
        """Read an index that `save` wrote.

        Raises:
            FileNotFoundError: There is none.
            DamagedIndexError: It is truncated, altered, unreadable or of another kind.
        """
        faiss = _faiss()
        index = cls(dimensions)
        try:
            with open(file, "rb") as source:
                index.state = _checked_state(source)
                source.seek(0)
                index._faiss = faiss.read_index(faiss.PyCallbackIOReader(source.read))
        except FileNotFoundError:
            raise
        except (OSError, RuntimeError) as error:
            raise DamagedIndexError(f"{file.name} can't be read ({error})") from error
        if not isinstance(index._faiss, faiss.IndexIDMap2) or index._faiss.d != dimensions:
            raise DamagedIndexError(f"{file.name} is of another kind")
        return index


def _faiss() -> Any:
    import faiss  # Late: it takes longer to import than a gallery to list.

    return faiss


def saved_state(file: Path) -> VectorState | None:
    """The state that an index file claims to hold, without reading its vectors; None: missing or damaged."""
    try:
        with open(file, "rb") as source:
            return _read_trailer(source)[0]
    except (OSError, DamagedIndexError):
        return None


def _read_trailer(source: BinaryIO) -> tuple[VectorState, int, int]:
    """State, payload length in bytes and CRC-32."""
    length = source.seek(0, os.SEEK_END) - _TRAILER.size
    if length < 0:
        raise DamagedIndexError("index is truncated")
    source.seek(length)
    magic, generation, token, claimed_length, crc = _TRAILER.unpack(source.read(_TRAILER.size))
    if magic != _MAGIC or claimed_length != length:
        raise DamagedIndexError("index is truncated or not an index")
    return VectorState(generation, token), length, crc


def _checked_state(source: BinaryIO) -> VectorState:
    """Check every byte before FAISS parses any: its reader trusts the lengths it finds."""
    state, length, expected_crc = _read_trailer(source)
    source.seek(0)
    crc = 0
    while length > 0:
        chunk = source.read(min(_CHUNK_BYTES, length))
        if not chunk:
            break
        crc = zlib.crc32(chunk, crc)
        length -= len(chunk)
    if crc != expected_crc:
        raise DamagedIndexError("index has altered bytes")
    return state


class _CheckedWriter:
    """Counts and sums what FAISS writes."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.length = 0
        self.crc = 0

    def write(self, data: bytes) -> int:
        self.length += len(data)
        self.crc = zlib.crc32(data, self.crc)
        return self._out.write(data)
