"""The file of the gallery's index: columns of numbers that can be mapped, checked to the last byte.

A header, the CRC-32 of every block of 1 MiB, and then five columns, one after the other: ids, half of the
squared lengths, the sketch's codebook, its codes, and the vectors. All lengths follow from the header, which
has a CRC-32 of its own; no byte is believed before it was checked. Removed rows are overwritten in place.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray
from facepipe.core.files import atomic_file, open_regular

IdArray = npt.NDArray[np.int64]
CodeArray = npt.NDArray[np.uint8]

MAPPED_BYTES_MIN = 1 << 26
"""Files from this size on are mapped: opening copies nothing, and processes share the memory."""

_MAGIC = b"FACEPIX2"
_HEADER = struct.Struct("<8sQ16sIIIQQQI")
"""Magic, generation, token, dimensions, codebook's floats, bytes a code, rows, removed rows, last id, and 1
while rows are erased."""
_CRC = struct.Struct("<L")
_BLOCK_BYTES = 1 << 20
_ALIGNMENT = 64
_WRITTEN_ROWS = 1 << 16
_RETRY_S = 0.01
_ERASING_S_MAX = 5.0
"""Erasing takes milliseconds; whoever began it so long ago was killed."""


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


@dataclass(frozen=True, slots=True)
class Columns:
    """n vectors as the index file holds them.

    Attributes:
        ids: int64 (n,), rising.
        half_squares: float32 (n,), half of the squared length of each vector; infinite: it was removed.
        codebook: float32 (m,), of the sketch; empty: there is no sketch.
        codes: uint8 (n, c), of the sketch.
        vectors: float32 (n, d); zeros where removed.
    """

    ids: IdArray
    half_squares: FloatArray
    codebook: FloatArray
    codes: CodeArray
    vectors: FloatArray


@dataclass(frozen=True, slots=True)
class SavedExtent:
    """How far an index file goes, from its header.

    Attributes:
        state: What it claims to hold.
        dimensions: Length of a vector.
        rows: Vectors, with those since removed.
        removed: Of these.
        last_id: The largest id; 0: there is none.
        has_sketch: Whether there is one.
    """

    state: VectorState
    dimensions: int
    rows: int
    removed: int
    last_id: int
    has_sketch: bool


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where everything stands in a file, from what its header says."""

    dimensions: int
    codebook_floats: int
    code_bytes: int
    rows: int

    @property
    def column_bytes(self) -> tuple[int, ...]:
        """Of the columns, in their order."""
        rows = self.rows
        floats = (self.codebook_floats, rows * self.code_bytes, 4 * rows * self.dimensions)
        return 8 * rows, 4 * rows, 4 * floats[0], floats[1], floats[2]

    @property
    def payload_bytes(self) -> int:
        return sum(_padded(length) for length in self.column_bytes)

    @property
    def blocks(self) -> int:
        return -(-self.payload_bytes // _BLOCK_BYTES)

    @property
    def payload_offset(self) -> int:
        return _padded(_HEADER.size + 4 * self.blocks + _CRC.size)

    def columns(self, payload: CodeArray) -> Columns:
        """Views of the payload's bytes."""
        starts = np.cumsum([0, *map(_padded, self.column_bytes)])
        ids, half_squares, codebook, codes, vectors = (
            payload[start : start + length]
            for start, length in zip(starts[:-1], self.column_bytes, strict=True)
        )
        return Columns(
            ids.view("<i8"),
            half_squares.view("<f4"),
            codebook.view("<f4"),
            codes.reshape(self.rows, self.code_bytes),
            vectors.view("<f4").reshape(self.rows, self.dimensions),
        )


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before the columns."""

    state: VectorState
    layout: _Layout
    removed: int
    last_id: int
    is_erasing: bool
    block_crcs: npt.NDArray[np.uint32]

    def packed(self) -> bytes:
        layout = self.layout
        data = _HEADER.pack(
            _MAGIC,
            self.state.generation,
            self.state.token,
            layout.dimensions,
            layout.codebook_floats,
            layout.code_bytes,
            layout.rows,
            self.removed,
            self.last_id,
            self.is_erasing,
        )
        data += self.block_crcs.astype("<u4").tobytes()
        return (data + _CRC.pack(zlib.crc32(data))).ljust(layout.payload_offset, b"\0")


def write_index(file: Path, state: VectorState, parts: Sequence[Columns]) -> None:
    """Write what was not removed of `parts`, which have one codebook, one after the other, atomically."""
    first = parts[0]
    rows = sum(int(np.isfinite(part.half_squares).sum()) for part in parts)
    layout = _Layout(first.vectors.shape[1], len(first.codebook), first.codes.shape[1], rows)
    with atomic_file(file) as out:
        out.seek(layout.payload_offset)
        writer = _BlockWriter(out)
        writer.write_column(_kept(parts, [part.ids for part in parts]))
        writer.write_column(_kept(parts, [part.half_squares for part in parts]))
        writer.write_column([first.codebook])
        writer.write_column(_kept(parts, [part.codes for part in parts]))
        writer.write_column(_kept(parts, [part.vectors for part in parts]))
        out.seek(0)
        last_id = max((int(part.ids[-1]) for part in parts if len(part.ids)), default=0)
        out.write(_Head(state, layout, 0, last_id, False, writer.finished_crcs()).packed())


def read_index(file: Path, dimensions: int) -> tuple[VectorState, Columns]:
    """The columns of a file that `write_index` wrote, with every byte checked; large files are mapped.

    Raises:
        FileNotFoundError: There is none.
        DamagedIndexError: It is truncated, altered, unreadable or of another kind.
    """
    deadline = time.monotonic() + _ERASING_S_MAX
    try:
        with open_regular(file, buffering=0) as source:  # One file, although another may take its place.
            while True:
                head = _read_head(source)
                if head.layout.dimensions != dimensions:
                    raise DamagedIndexError("is of another kind")
                payload = _payload(source, head.layout)
                if not _altered(payload, head.block_crcs, range(head.layout.blocks)):
                    return head.state, head.layout.columns(payload)
                _await_another_head(source, head, deadline)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedIndexError(f"can't be read: {error.strerror}") from error


def saved_extent(file: Path) -> SavedExtent | None:
    """How far a file goes, without reading its vectors; None: it is missing or damaged."""
    try:
        with open_regular(file) as source:
            head = _read_head(source)
    except (OSError, DamagedIndexError):
        return None
    layout, has_sketch = head.layout, bool(head.layout.codebook_floats)
    return SavedExtent(head.state, layout.dimensions, layout.rows, head.removed, head.last_id, has_sketch)


def erase_rows(file: Path, ids: IdArray, state: VectorState) -> None:
    """Overwrite the vectors of these ids (others may be among them), durably.

    The file then holds nothing that was removed up to `state`; what was added since it was written is still
    missing. Processes that have mapped it see the vectors vanish. No other may change it meanwhile.

    Raises:
        OSError: The file can't be written.
        DamagedIndexError: It can't be trusted, or whoever erased before was killed in the middle.
    """
    with open(file, "r+b") as out:
        head = _read_head(out)
        if not head.layout.rows:
            _write_head(out, replace(head, state=state))
            return
        payload = _mapped(out, head.layout, "r+")
        columns = head.layout.columns(np.asarray(payload))
        rows = rows_of(columns.ids, ids)
        blocks = _blocks_of(np.asarray(payload), columns, rows)
        if head.is_erasing or _altered(payload, head.block_crcs, blocks):
            raise DamagedIndexError("has altered bytes")
        removed = head.removed + int(np.isfinite(columns.half_squares[rows]).sum())
        _write_head(out, replace(head, is_erasing=True))
        columns.half_squares[rows] = np.inf
        columns.codes[rows] = 0
        columns.vectors[rows] = 0
        crcs = head.block_crcs.copy()
        crcs[blocks] = [zlib.crc32(_block(payload, block).data) for block in blocks]
        payload.flush()
        _write_head(out, replace(head, state=state, removed=removed, block_crcs=crcs))


def rows_of(rising: IdArray, ids: IdArray) -> IdArray:
    """The places of those `ids` that occur in `rising`."""
    rows = np.searchsorted(rising, ids)
    present = rows < len(rising)
    present[present] = rising[rows[present]] == ids[present]
    return rows[present]


def _padded(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _read_head(source: BinaryIO) -> _Head:
    for _ in range(2):  # While a process that erases rows writes the head, it does not fit its CRC.
        with suppress(DamagedIndexError):
            return _read_head_once(source)
        time.sleep(_RETRY_S)
    return _read_head_once(source)


def _read_head_once(source: BinaryIO) -> _Head:
    source.seek(0)
    data = source.read(_HEADER.size)
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise DamagedIndexError("is truncated or of another kind")
    _, generation, token, *lengths, removed, last_id, is_erasing = _HEADER.unpack(data)
    layout = _Layout(*lengths)
    if os.fstat(source.fileno()).st_size != layout.payload_offset + layout.payload_bytes:
        raise DamagedIndexError("is truncated or has altered bytes")
    data += source.read(4 * layout.blocks)
    if source.read(_CRC.size) != _CRC.pack(zlib.crc32(data)):
        raise DamagedIndexError("has altered bytes")
    crcs = np.frombuffer(data[_HEADER.size :], "<u4")
    return _Head(VectorState(generation, token), layout, removed, last_id, bool(is_erasing), crcs)


def _write_head(out: BinaryIO, head: _Head) -> None:
    out.seek(0)
    out.write(head.packed())
    out.flush()
    os.fsync(out.fileno())


def _payload(source: BinaryIO, layout: _Layout) -> CodeArray:
    """All columns as bytes: mapped where large, else a copy in memory."""
    if layout.rows and layout.payload_bytes >= MAPPED_BYTES_MIN:
        return np.asarray(_mapped(source, layout, "r"))
    source.seek(layout.payload_offset)
    return np.fromfile(source, np.uint8, layout.payload_bytes)


def _mapped(
    source: BinaryIO, layout: _Layout, mode: Literal["r", "r+"]
) -> np.memmap[Any, np.dtype[np.uint8]]:
    return np.memmap(source, np.uint8, mode, layout.payload_offset, (layout.payload_bytes,))


def _block(payload: CodeArray, block: int) -> CodeArray:
    return payload[block * _BLOCK_BYTES : (block + 1) * _BLOCK_BYTES]


def _altered(payload: CodeArray, crcs: npt.NDArray[np.uint32], blocks: range | IdArray) -> bool:
    return any(zlib.crc32(_block(payload, int(block)).data) != crcs[block] for block in blocks)


def _blocks_of(payload: CodeArray, columns: Columns, rows: IdArray) -> IdArray:
    """The blocks in which the removable values of these rows stand."""
    touched = [np.zeros(0, np.int64)]
    for column in (columns.half_squares, columns.codes, columns.vectors):
        start = column.__array_interface__["data"][0] - payload.__array_interface__["data"][0]
        row_bytes = column[:1].nbytes
        for edge in (0, row_bytes - 1) if row_bytes else ():
            touched.append((start + rows * row_bytes + edge) // _BLOCK_BYTES)
    return np.unique(np.concatenate(touched))


def _await_another_head(source: BinaryIO, head: _Head, deadline: float) -> None:
    """Bytes that do not fit their CRC are damaged, unless a process is erasing rows at this moment."""
    while _read_head(source).packed() == head.packed():
        if not head.is_erasing or time.monotonic() > deadline:
            raise DamagedIndexError("has altered bytes")
        time.sleep(_RETRY_S)


def _kept(parts: Sequence[Columns], columns: Sequence[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """One column of each part without the removed rows, a few at a time."""
    for part, column in zip(parts, columns, strict=True):
        kept = np.isfinite(part.half_squares)
        for at in range(0, len(kept), _WRITTEN_ROWS):
            yield column[at : at + _WRITTEN_ROWS][kept[at : at + _WRITTEN_ROWS]]


class _BlockWriter:
    """Writes columns, each padded, and sums up every block."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._crcs: list[int] = []
        self._crc, self._room = 0, _BLOCK_BYTES

    def write_column(self, arrays: Iterable[npt.NDArray[Any]]) -> None:
        length = 0
        for array in arrays:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            length += len(data)
            self._write(data)
        self._write(np.zeros(_padded(length) - length, np.uint8))

    def finished_crcs(self) -> npt.NDArray[np.uint32]:
        """The CRC-32 of each block."""
        if self._room < _BLOCK_BYTES:
            self._crcs.append(self._crc)
        return np.array(self._crcs, np.uint32)

    def _write(self, data: CodeArray) -> None:
        while len(data):
            part, data = data[: self._room], data[self._room :]
            self._out.write(part.data)
            self._crc, self._room = zlib.crc32(part.data, self._crc), self._room - len(part)
            if not self._room:
                self._crcs.append(self._crc)
                self._crc, self._room = 0, _BLOCK_BYTES
