"""The file of the gallery's index, which FAISS writes and reads, and the record beside it.

`index.faiss` is what `faiss.write_index` makes of an `IndexIDMap2`. `index.faiss.json` names the state of the
truth that it holds, and has the CRC-32 of every block of 1 MiB: no byte is believed before it was checked.
Removed rows are overwritten in place. They are found by the end of FAISS's format:

    vectors      float32 (n, d)
    refine factor  4 bytes, where there are codes
    length n     8 bytes
    ids          int64 (n,)

and before the vectors, where there are codes, these and the head of the flat index.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import struct
import time
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.core.files import atomic_file, atomic_write_bytes, open_regular
from facepipe.gallery.index.parts import (
    ERASED,
    FlatPart,
    IdArray,
    Part,
    QuantizedPart,
    erase_codes,
    load_faiss,
    places,
)

_BLOCK_BYTES = 1 << 20
_RECORD_BYTES_MAX = 1 << 26
_INDEX_HEAD_BYTES = 37
"""Of any index in FAISS's format: four letters, dimensions, rows, two unused numbers, is trained, metric."""
_LENGTH_BYTES = 8
_FACTOR_BYTES = 4
_RETRY_S = 0.01
_CHANGING_S_MAX = 5.0
"""Erasing takes milliseconds, and so does a change of names; whoever began it so long ago was killed."""
_OLD_HEADER = struct.Struct("<8sQ16s")
_OLD_MAGIC = b"FACEPIX2"


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


class OldIndexError(DamagedIndexError):
    """An index file of a version before FAISS's own format."""


@dataclass(frozen=True, slots=True)
class IndexRecord:
    """The contents of the file beside an index file.

    Attributes:
        state: Of the truth, that the index holds.
        dimensions: Length of a vector.
        rows: Vectors, with those since erased.
        erased: Of these.
        last_id: The largest id that was ever in it; 0: there is none.
        code_bytes: Of all codes; 0: the index is flat.
        length: Bytes of the index file.
        block_crcs: CRC-32 of each of its blocks.
        is_changing: Another process is at it, or was killed while it was.
    """

    state: VectorState
    dimensions: int
    rows: int
    erased: int
    last_id: int
    code_bytes: int
    length: int
    block_crcs: tuple[int, ...]
    is_changing: bool

    @property
    def ids_at(self) -> int:
        """Where the ids begin in the index file."""
        return self.length - 8 * self.rows

    @property
    def vectors_at(self) -> int:
        """Where the vectors begin."""
        factor_bytes = _FACTOR_BYTES if self.code_bytes else 0
        return self.ids_at - _LENGTH_BYTES - factor_bytes - 4 * self.rows * self.dimensions

    @property
    def codes_at(self) -> int:
        """Where the codes begin, if there are any."""
        return self.vectors_at - _INDEX_HEAD_BYTES - _LENGTH_BYTES - self.code_bytes

    def ids(self, data: UInt8Array) -> IdArray:
        """int64 (n,), a view of the file's bytes; -1 where rows were erased."""
        return data[self.ids_at :].view("<i8")

    def vectors(self, data: UInt8Array) -> FloatArray:
        """float32 (n, d), a view of the file's bytes."""
        vectors = data[self.vectors_at :][: 4 * self.rows * self.dimensions].view("<f4")
        return vectors.reshape(self.rows, self.dimensions)

    def codes(self, data: UInt8Array) -> UInt8Array:
        """Return a view of the file's bytes."""
        return data[self.codes_at :][: self.code_bytes]

    def packed(self) -> bytes:
        """Return the bytes of the file beside."""
        fields = asdict(self)
        fields["state"]["token"] = self.state.token.hex()
        return json.dumps({"index": fields, "checksum": zlib.crc32(json.dumps(fields).encode())}).encode()

    @classmethod
    def unpacked(cls, data: bytes) -> IndexRecord:
        """Return what `packed` made the bytes of.

        Raises:
            DamagedIndexError: They are others.
        """
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            fields: dict[str, Any] = json.loads(data)["index"]
            state = VectorState(fields["state"]["generation"], bytes.fromhex(fields["state"]["token"]))
            record = cls(**{**fields, "state": state, "block_crcs": tuple(fields["block_crcs"])})
            if record.packed() == data:
                return record
        raise DamagedIndexError("has a damaged record beside it")


def record_file(file: Path) -> Path:
    """Return the file beside an index file."""
    return file.with_name(f"{file.name}.json")


def write_index(file: Path, state: VectorState, part: Part, last_id: int) -> None:
    """Write an index and its record, each atomically; a kill in between leaves two that do not fit."""
    with atomic_file(file) as out:
        load_faiss().write_index(part.with_ids(), load_faiss().PyCallbackIOWriter(out.write))
        out.flush()
        length = os.fstat(out.fileno()).st_size
        data = np.asarray(np.memmap(out, np.uint8, "r"))
        crcs = tuple(_crc(data, block) for block in range(-(-length // _BLOCK_BYTES)))
        record = IndexRecord(
            state, part.index.d, len(part), 0, last_id, len(part.codes), length, crcs, is_changing=True
        )
        _require_known_format(data, record, part)
        _write_record(file, record)
    _write_record(file, replace(record, is_changing=False))


def read_index(file: Path, dimensions: int) -> tuple[IndexRecord, Part]:
    """Return an index that `write_index` wrote, with every byte checked; where it has codes, it is mapped.

    Raises:
        FileNotFoundError: There is none.
        OldIndexError: It is of an earlier version.
        DamagedIndexError: It is truncated, altered, unreadable or of another kind.
    """
    deadline = time.monotonic() + _CHANGING_S_MAX
    while True:
        record = _read_record(file)
        if record.dimensions != dimensions:
            raise DamagedIndexError("is of another kind")
        data = _checked(file, record)
        if data is not None:
            return record, _part(record, data)
        _await_another_record(file, record, deadline)


def saved_record(file: Path) -> IndexRecord | None:
    """How far an index file goes, without reading its vectors; None: it is missing or can't be used."""
    try:
        record = _read_record(file)
        return record if file.stat().st_size == record.length else None
    except (OSError, DamagedIndexError):
        return None


def is_unfinished(file: Path) -> bool:
    """Return whether the file is being written, or whoever wrote it was killed in the middle."""
    with suppress(OSError, DamagedIndexError):
        return _read_record(file).is_changing
    return False


def claimed_state(file: Path) -> VectorState | None:
    """The state that an index file claims to hold, also one of an earlier version; None: not known."""
    with suppress(OSError), open_regular(file) as source:
        head = source.read(_OLD_HEADER.size)
        if head.startswith(_OLD_MAGIC) and len(head) == _OLD_HEADER.size:
            _, generation, token = _OLD_HEADER.unpack(head)
            return VectorState(generation, token)
    record = saved_record(file)
    return record.state if record else None


def move_index(file: Path, target: Path) -> None:
    """Give an index file and its record other names."""
    shutil.move(file, target)
    with suppress(FileNotFoundError):  # An earlier version wrote none.
        shutil.move(record_file(file), record_file(target))


def delete_index(file: Path) -> None:
    """Delete an index file, if there is one, and its record."""
    file.unlink(missing_ok=True)
    record_file(file).unlink(missing_ok=True)


def erase_rows(file: Path, ids: IdArray, state: VectorState) -> None:
    """Overwrite the vectors of these ids (others may be among them), durably.

    The file then holds nothing that was removed up to `state`; what was added since it was written is still
    missing. Processes that have mapped it see the vectors vanish. No other may change it meanwhile.

    Raises:
        OSError: The file can't be written.
        DamagedIndexError: It can't be trusted, or whoever erased before was killed in the middle.
    """
    record = _read_record(file)
    with open(file, "r+b") as out:
        if record.is_changing or os.fstat(out.fileno()).st_size != record.length:
            raise DamagedIndexError("has altered bytes")
        mapped = np.memmap(out, np.uint8, "r+")
    data = np.asarray(mapped)
    column = record.ids(data)
    rows = places(np.maximum.accumulate(column), ids)
    blocks = _blocks_with(record, rows)
    if _altered(data, record, blocks):
        raise DamagedIndexError("has altered bytes")
    _write_record(file, replace(record, is_changing=True))
    column[rows] = -1
    record.vectors(data)[rows] = ERASED
    if record.code_bytes:
        erase_codes(record.codes(data), rows, record.dimensions)
    mapped.flush()
    crcs = np.array(record.block_crcs)
    crcs[blocks] = [_crc(data, block) for block in blocks.tolist()]
    _write_record(
        file, replace(record, state=state, erased=record.erased + len(rows), block_crcs=tuple(crcs.tolist()))
    )


def _read_record(file: Path) -> IndexRecord:
    try:
        with open_regular(file) as source:
            if source.read(len(_OLD_MAGIC)) == _OLD_MAGIC:
                raise OldIndexError("is of an earlier version")
        try:
            with open_regular(record_file(file)) as source:
                return IndexRecord.unpacked(source.read(_RECORD_BYTES_MAX))
        except FileNotFoundError:
            raise DamagedIndexError("has no record beside it") from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedIndexError(f"can't be read: {error.strerror}") from error


def _write_record(file: Path, record: IndexRecord) -> None:
    atomic_write_bytes(record_file(file), record.packed())


def _checked(file: Path, record: IndexRecord) -> UInt8Array | None:
    """Return the bytes of an index file, mapped where it has codes; None: they do not fit the record."""
    try:
        with open_regular(file, buffering=0) as source:
            if os.fstat(source.fileno()).st_size != record.length:
                return None
            if record.code_bytes:
                data: UInt8Array = np.memmap(source, np.uint8, "r")
            else:
                data = np.fromfile(source, np.uint8)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedIndexError(f"can't be read: {error.strerror}") from error
    return None if _altered(data, record, np.arange(len(record.block_crcs))) else data


def _part(record: IndexRecord, data: UInt8Array) -> Part:
    try:
        if record.code_bytes:  # Without the outer index: its map of ids takes 40 bytes a face.
            part = QuantizedPart.of_file(data[_INDEX_HEAD_BYTES:], record.ids(data))
            _release(data, 0, record.vectors_at)
            _release(data, record.ids_at, record.length)
            return part
        return FlatPart.of_file(data)
    except RuntimeError as error:
        raise DamagedIndexError("is of another kind") from error


def _release(data: UInt8Array, start: int, end: int) -> None:
    """Give back the memory of mapped bytes that were copied; they can still be read."""
    mapped: Any = data.base
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start and hasattr(mapped, "madvise"):  # Not on Windows.
        mapped.madvise(mmap.MADV_DONTNEED, start, end - start)


def _await_another_record(file: Path, record: IndexRecord, deadline: float) -> None:
    """Bytes that do not fit the record are damaged, unless a process is changing both at this moment."""
    while _read_record(file) == record:
        if not record.is_changing or time.monotonic() > deadline:
            raise DamagedIndexError("has altered bytes")
        time.sleep(_RETRY_S)


def _require_known_format(data: UInt8Array, record: IndexRecord, part: Part) -> None:
    """Make sure that rows can be erased from what FAISS wrote."""
    ends = [0, -1] if record.rows else []
    is_known = (
        np.array_equal(record.ids(data), part.ids)
        and np.array_equal(record.vectors(data)[ends], part.vectors[ends])
        and np.array_equal(record.codes(data), part.codes)
    )
    if not is_known:
        raise DamagedIndexError("this version of FAISS writes another format: install faiss-cpu 1.11 to 1.15")


def _crc(data: UInt8Array, block: int) -> int:
    return zlib.crc32(data[block * _BLOCK_BYTES : (block + 1) * _BLOCK_BYTES].data)


def _altered(data: UInt8Array, record: IndexRecord, blocks: IdArray) -> bool:
    return any(_crc(data, block) != record.block_crcs[block] for block in blocks.tolist())


def _blocks_with(record: IndexRecord, rows: IdArray) -> IdArray:
    """Return the blocks in which the vectors of these rows stand, and all those of codes and ids."""
    starts = record.vectors_at + 4 * record.dimensions * rows
    ends = starts + 4 * record.dimensions - 1
    before = np.arange(record.vectors_at // _BLOCK_BYTES + 1)
    behind = np.arange(record.ids_at // _BLOCK_BYTES, len(record.block_crcs))
    return np.unique(np.concatenate([before, behind, starts // _BLOCK_BYTES, ends // _BLOCK_BYTES]))
