"""SQLite's write-ahead log, read without SQLite: whether it belongs to the file beside it, and is whole.

SQLite binds a log to no file: it replays whatever log it finds, into a restored backup too. So every change
of a gallery stamps its file with a random name of the new state and that of the state before. The stamps
in a log must follow on the stamp of its file.

SQLite also takes a damaged log for one that a power cut ended, and drops all changes from the damage on.
But a change is written only after the one before it was synced to disk: where two whole changes stand behind
the damage, it was no power cut.

The format: https://sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from facepipe.core.files import atomic_file

_TOKEN_BYTES = 16
_NO_TOKEN = bytes(_TOKEN_BYTES)
_MARK = bytes.fromhex("fdc0a1f7b85e0d9c31ee7fa264d8930b")  # No text holds these bytes: they are not UTF-8.
_STAMP = re.compile(re.escape(_MARK) + rb"(.{16})(.{16})", re.DOTALL)

_SQLITE_MAGIC = b"SQLite format 3\0"
_PAGE_SIZE_AT = slice(16, 18)
_LOG_HEADER = np.dtype(
    [("magic", ">u4"), ("version", ">u4"), ("page_bytes", ">u4"), ("sequence", ">u4"),
     ("salts", ">u4", 2), ("sums", ">u4", 2)]
)  # fmt: skip
_LOG_MAGIC = 0x377F0682  # Its last bit is set where checksums are of big-endian words.
_LOG_VERSION = 3007000
_FRAME_HEADER = [("page", ">u4"), ("commit", ">u4"), ("salts", ">u4", 2), ("sums", ">u4", 2)]
_SUMMED_HEADER_BYTES = 24
_SUMMED_FRAME_BYTES = 8  # Page number and size; salts are not in the checksum.
_FRAMES_AT_ONCE = 256

_Words = npt.NDArray[np.uint32]
_Frames = npt.NDArray[np.void]


def stamp_after(previous: object) -> bytes:
    """Return a stamp for a new state of a file: 48 bytes.

    Args:
        previous: The stamp of the state before; anything else: there was none.
    """
    found = _STAMP.fullmatch(previous) if isinstance(previous, bytes) else None
    return _MARK + (found[2] if found else _NO_TOKEN) + secrets.token_bytes(_TOKEN_BYTES)


def belongs_to(file: Path, log: Path) -> bool:
    """Return whether the log goes on from the state of the file, or neither of them bears a stamp.

    While other processes write, a False may be wrong.
    """
    page_bytes = _page_bytes(file)
    if not page_bytes:
        return True  # No SQLite file; SQLite reports that.
    stamps = list(_stamps_of_log(log, page_bytes))
    if not stamps:
        return True  # Written before there were stamps, or no change is in it.
    tokens = {token for _, *tokens in stamps for token in tokens}
    pages = {page for page, *_ in stamps}
    own = {token for page in pages for token in _tokens_of_page(file, page, page_bytes)}
    if own:
        return not own.isdisjoint(tokens)
    return _NO_TOKEN in tokens or _holds_all_pages(log, page_bytes)


def dropped_changes(file: Path, log: Path) -> int:
    """Count the changes behind a damaged place of the log, which SQLite does not read.

    One may have been cut short by a power cut; several were on disk. No process may have the file open.
    """
    page_bytes = _page_bytes(file)
    if not page_bytes:
        return 0
    header, is_whole, is_own, commits = _frames_of_log(log, page_bytes)
    if header is None or is_whole.all():
        return 0
    damaged_from = int(np.argmin(is_whole))
    return int(np.count_nonzero(is_own[damaged_from:] & (commits[damaged_from:] > 0)))


def mend_log(file: Path, log: Path) -> None:
    """Rewrite a damaged log so that SQLite reads all changes in it, with the pages as they are.

    Pages may hold damaged bytes then, which the checksums of rows show. No process may have the file open.
    """
    page_bytes = _page_bytes(file)
    _, _, is_own, commits = _frames_of_log(log, page_bytes)
    count = int(np.flatnonzero(is_own & (commits > 0))[-1]) + 1
    pages_max = int(commits[:count][is_own[:count]].max())
    with open(log, "rb") as source, atomic_file(log) as out:
        header = np.zeros(1, _LOG_HEADER)
        salts = np.frombuffer(secrets.token_bytes(8), ">u4")
        header["magic"], header["version"], header["page_bytes"] = _LOG_MAGIC, _LOG_VERSION, page_bytes
        header["salts"] = salts
        sums = _sums_of(_words(header.tobytes()[:_SUMMED_HEADER_BYTES], _LOG_MAGIC)[None])[0]
        header["sums"] = sums
        out.write(header.tobytes())
        source.seek(_LOG_HEADER.itemsize)
        at = 0
        for frames in _chunks(source, page_bytes):
            kept = frames[: max(0, count - at)]
            at += len(frames)
            kept = kept[(kept["page"] > 0) & (kept["page"] <= pages_max)].copy()
            kept["salts"] = salts
            for row in range(len(kept)):
                sums = _sums_of(_summed_words(kept[row : row + 1], _LOG_MAGIC), sums[None])[0]
                kept["sums"][row] = sums
            out.write(kept.tobytes())


# Stamps


def _stamps_of_log(log: Path, page_bytes: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Page, token of the state before, and token of the state, of each stamp."""
    with open(log, "rb") as source:
        salts = _salts(_header(source), source, page_bytes)
        for frames in _chunks(source, page_bytes):
            for found in _STAMP.finditer(frames.tobytes()):
                frame = frames[found.start() // frames.itemsize]
                if (frame["salts"] == salts).any():
                    yield int(frame["page"]), found[1], found[2]


def _tokens_of_page(file: Path, page: int, page_bytes: int) -> list[bytes]:
    with open(file, "rb") as source:
        source.seek((page - 1) * page_bytes)
        return [found[2] for found in _STAMP.finditer(source.read(page_bytes))]


def _holds_all_pages(log: Path, page_bytes: int) -> bool:
    """Return whether the content of the file does not matter, as after rewriting all of it."""
    held: set[int] = set()
    size = 0
    with open(log, "rb") as source:
        salts = _salts(_header(source), source, page_bytes)
        for frames in _chunks(source, page_bytes):
            own = frames[(frames["salts"] == salts).all(axis=1)]
            held.update(own["page"].tolist())
            size = next((int(commit) for commit in own["commit"][::-1] if commit), size)
    return held.issuperset(range(1, size + 1))


# Frames


def _page_bytes(file: Path) -> int:
    """Return the size of a page; 0: it is no SQLite file."""
    with open(file, "rb") as source:
        header = source.read(_PAGE_SIZE_AT.stop)
    size = int.from_bytes(header[_PAGE_SIZE_AT], "big")
    return (65536 if size == 1 else size) if header.startswith(_SQLITE_MAGIC) else 0


def _header(source: BinaryIO) -> Any:
    """Return the log's header; None: it is too short for one. Frames come next."""
    source.seek(0)
    data = source.read(_LOG_HEADER.itemsize)
    return np.frombuffer(data, _LOG_HEADER)[0] if len(data) == _LOG_HEADER.itemsize else None


def _is_header_whole(header: Any) -> bool:
    words = _words(header.tobytes()[:_SUMMED_HEADER_BYTES], int(header["magic"]))
    is_magic = int(header["magic"]) & ~1 == _LOG_MAGIC
    return is_magic and bool((_sums_of(words[None])[0] == header["sums"]).all())


def _salts(header: Any, source: BinaryIO, page_bytes: int) -> npt.NDArray[Any]:
    """Return what marks the frames of this log; frames of an earlier use of the file have others.

    Where the header is damaged, they are those of the first frame. Frames come next again.
    """
    salts: npt.NDArray[Any] = np.zeros(2, ">u4") if header is None else header["salts"]
    if header is not None and not _is_header_whole(header):
        salts = next((frames[0]["salts"] for frames in _chunks(source, page_bytes)), salts)
        source.seek(_LOG_HEADER.itemsize)
    return salts


def _chunks(source: BinaryIO, page_bytes: int) -> Iterator[_Frames]:
    kind = np.dtype([*_FRAME_HEADER, ("data", "u1", page_bytes)])
    while data := source.read(kind.itemsize * _FRAMES_AT_ONCE):
        if len(data) >= kind.itemsize:
            yield np.frombuffer(data, kind, len(data) // kind.itemsize)


def _frames_of_log(
    log: Path, page_bytes: int
) -> tuple[Any, npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """The header and, of every frame (n,): is it whole, is it of this log, the size that it commits or 0."""
    wholes, owns, commits = [np.zeros(0, bool)], [np.zeros(0, bool)], [np.zeros(0, np.int64)]
    with open(log, "rb") as source:
        header = _header(source)
        if header is not None:
            salts = _salts(header, source, page_bytes)
            sums = header["sums"].astype(np.uint32)
            is_header_whole = _is_header_whole(header)
            for frames in _chunks(source, page_bytes):
                before = np.concatenate([sums[None], frames["sums"][:-1].astype(np.uint32)])
                expected = _sums_of(_summed_words(frames, int(header["magic"])), before)
                is_right = (frames["sums"] == expected).all(axis=1) & (frames["salts"] == salts).all(axis=1)
                wholes.append(is_right & is_header_whole)
                owns.append((frames["salts"] == salts).any(axis=1))  # Both differ in older frames.
                commits.append(frames["commit"].astype(np.int64))
                sums = frames["sums"][-1].astype(np.uint32)
    return header, np.concatenate(wholes), np.concatenate(owns), np.concatenate(commits)


# Checksums


def _words(data: bytes, magic: int) -> _Words:
    return np.frombuffer(data, ">u4" if magic & 1 else "<u4").astype(np.uint32)


def _summed_words(frames: _Frames, magic: int) -> _Words:
    """Of each frame, the words that its checksum is of, uint32 (n, w)."""
    data = np.ascontiguousarray(frames).view(np.uint8).reshape(len(frames), -1)
    start = frames.dtype.itemsize - frames.dtype["data"].itemsize
    summed = np.concatenate([data[:, :_SUMMED_FRAME_BYTES], data[:, start:]], axis=1)
    return summed.view(">u4" if magic & 1 else "<u4").astype(np.uint32)


def _sums_of(words: _Words, before: _Words | None = None) -> _Words:
    """Return the checksums uint32 (n, 2) of words (n, w), going on from others (n, 2)."""
    weights, carried = _weights(words.shape[1])
    sums: _Words = words @ weights
    return sums if before is None else sums + before @ carried


@cache
def _weights(count: int) -> tuple[_Words, _Words]:
    """Return how words uint32 (w, 2) and earlier sums (2, 2) count in the two sums, modulo 2 ** 32.

    SQLite takes words a, b in turn: first += a + second; second += b + first. All of that is linear.
    """
    weights = np.zeros((count, 2), np.uint32)
    step = np.array([[1, 1], [1, 2]], np.uint32)  # Rows: what first and second count in first and second.
    carried = np.eye(2, dtype=np.uint32)
    for at in range(count - 2, -1, -2):
        weights[at], weights[at + 1] = carried[0] + carried[1], carried[1]
        carried = step @ carried
    return weights, carried
