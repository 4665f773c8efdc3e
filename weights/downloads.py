"""Download of published weights: the only part of facepipe that uses the network, and only on request."""

from __future__ import annotations

import difflib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from facepipe.core.errors import WeightsError
from facepipe.core.files import SHARED_FILE_MODE, atomic_path, atomic_write_bytes
from facepipe.core.home import facepipe_home
from facepipe.core.validation import decode_json
from facepipe.weights.connection import (
    OFFLINE_CURE,
    Deadline,
    FetchOptions,
    Progress,
    TransientError,
    page_cure,
    receive,
)
from facepipe.weights.legacy import require_checkpoint
from facepipe.weights.onnx_file import require_self_contained
from facepipe.weights.published import PUBLISHED, TRAINING_FILES, WITHOUT_ADDRESS, PublishedFile
from facepipe.weights.registry import offline_folder

_CHUNK_BYTES = 1 << 16
_PAGE_BEGINNINGS = (b"<!doctype", b"<html", b"<?xml", b"{", b"[")


@dataclass(frozen=True, slots=True)
class FetchResult:
    """A fetched file.

    Attributes:
        path: Where it is.
        sha256: Its hash, 64 hex digits.
        was_known: Whether that hash was known before, from the registry or an earlier fetch. If not, nothing
            but the connection was checked, and later fetches must give a file of this hash.
        origin: Where it came from.
        next_step: What to do with it.
    """

    path: Path
    sha256: str
    was_known: bool
    origin: Literal["existing", "offline", "network"]
    next_step: str


_PATIENT = FetchOptions()


def fetch(
    name: str,
    *,
    folder: Path | None = None,
    url: str | None = None,
    options: FetchOptions = _PATIENT,
    progress: Progress | None = None,
) -> FetchResult:
    """Return a published file that exists, else copy it from the offline folder, else download it.

    Args:
        name: A name in `PUBLISHED` or `TRAINING_FILES` of `facepipe.weights.published`.
        folder: Where to; None: `$FACEPIPE_HOME/downloads`. It is made if it is missing.
        url: Another http(s) address of the same file, such as a mirror's; None: its authors'.
        options: Limits of time and size.
        progress: Called with the bytes received so far.

    Raises:
        WeightsError: Unknown name, no connection, an error page or another file than expected in its place,
            or a folder that can't be written. Nothing half-written is left under the file's name.
    """
    weight = _find(name)
    target = (folder or facepipe_home() / "downloads") / weight.file_name
    expected = _expected(weight)
    offline = _offline_file(weight)
    address = weight.url if url is None else url
    origin: Literal["existing", "offline", "network"]
    if target.exists():
        origin, sha256 = "existing", _hash_chunks(_read_chunks(target))
        _check_file(target, sha256, expected, str(target))
    elif offline is not None:
        origin, sha256 = "offline", _save(_read_chunks(offline), target, str(offline), expected)
    else:
        origin, sha256 = "network", _download(address, target, expected, options, progress)
    if expected.sha256 is None:
        _remember_hash(name, sha256)
    step = weight.next_step.format(path=target)
    return FetchResult(target, sha256, expected.sha256 is not None, origin, step)


@dataclass(frozen=True, slots=True)
class _Expected:
    """The required hash of a file (None: any), and the advice where it has another."""

    sha256: str | None
    cure: str


def _find(name: str) -> PublishedFile:
    known: dict[str, PublishedFile] = {**PUBLISHED, **TRAINING_FILES}
    if name in known:
        return known[name]
    if name in WITHOUT_ADDRESS:
        raise WeightsError(f"{name}: no public address is known; {WITHOUT_ADDRESS[name]}")
    near = difflib.get_close_matches(name, [*known, *WITHOUT_ADDRESS])
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise WeightsError(
        f"no published weight is called {name!r}; there are {', '.join(known)} (and no public address is "
        f"known of {', '.join(WITHOUT_ADDRESS)}).{hint}"
    )


def _expected(weight: PublishedFile) -> _Expected:
    damaged = "It is damaged, or not the file that was published: delete any copy on disk and fetch it again"
    if weight.sha256 is not None:
        return _Expected(weight.sha256, damaged)
    replaced = f"If its authors replaced it and you trust them, take {weight.name} out of {_hashes_path()}"
    return _Expected(_remembered_hashes().get(weight.name), f"{damaged}. {replaced}")


def _offline_file(weight: PublishedFile) -> Path | None:
    folder = offline_folder()
    path = folder / weight.file_name if folder else None
    return path if path is not None and path.is_file() else None


def _download(
    url: str, target: Path, expected: _Expected, options: FetchOptions, progress: Progress | None
) -> str:
    with Deadline(options.total_s) as deadline:
        for attempt in range(options.retries + 1):
            if attempt:
                time.sleep(options.first_wait_s * 2 ** (attempt - 1))
                deadline.check(url)
            try:
                return _save(receive(url, options, deadline, progress), target, url, expected)
            except TransientError as error:
                reason = error
    raise WeightsError(
        f"{url}: {reason} (tried {options.retries + 1} times). Check the network and try again, "
        f"{OFFLINE_CURE}"
    ) from reason


def _save(chunks: Iterable[bytes], target: Path, source: str, expected: _Expected) -> str:
    """Write a file to `target` once it is complete and verified, and return its sha256."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target, mode=SHARED_FILE_MODE) as temporary:
            with temporary.open("wb") as stream:
                sha256 = _hash_chunks(_written(_not_a_page(chunks, source), stream.write))
            _check_file(temporary, sha256, expected, source)
    except OSError as error:
        raise WeightsError(f"{target}: can't be written ({error}); choose another folder") from error
    return sha256


def _written(chunks: Iterable[bytes], write: Callable[[bytes], int]) -> Iterator[bytes]:
    for chunk in chunks:
        write(chunk)
        yield chunk


def _not_a_page(chunks: Iterable[bytes], source: str) -> Iterator[bytes]:
    """Pass chunks on, but refuse web pages: servers and proxies send error pages with status 200."""
    empty = True
    for chunk in chunks:
        if empty and chunk.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE_BEGINNINGS):
            raise WeightsError(f"{source}: is a web page, not a weight file. {page_cure(source)}")
        empty = False
        yield chunk
    if empty:
        raise WeightsError(f"{source}: is empty")


def _read_chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise WeightsError(f"{path}: can't read this file: {error}") from error


def _hash_chunks(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _check_file(file: Path, sha256: str, expected: _Expected, source: str) -> None:
    """Compare the hash with the required one; where there is none, check that it is a network's file."""
    if expected.sha256 is None and source.endswith(".onnx"):
        require_self_contained(b"".join(_read_chunks(file)), source)
    elif expected.sha256 is None:
        require_checkpoint(file, source)
    elif sha256 != expected.sha256:
        raise WeightsError(f"{source}: sha256 is {sha256}, expected {expected.sha256}. {expected.cure}")


def _hashes_path() -> Path:
    return facepipe_home() / "fetched_sha256.json"


def _remembered_hashes() -> dict[str, str]:
    """Read the hashes of files that were fetched when none was published, by name."""
    path = _hashes_path()
    try:
        return decode_json(path.read_bytes(), dict[str, str])
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: can't read the remembered hashes ({error}); mend or delete it"
        ) from error


def _remember_hash(name: str, sha256: str) -> None:
    path = _hashes_path()
    text = json.dumps(_remembered_hashes() | {name: sha256}, indent=1, sort_keys=True) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, text.encode(), SHARED_FILE_MODE)
    except OSError as error:
        raise WeightsError(f"{path}: can't remember the hash {sha256} of {name}: {error}") from error
