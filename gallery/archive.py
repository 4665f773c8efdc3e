"""A gallery in one open file: a zip of `people.json` and `vectors.safetensors`, nothing executable.

`people.json`:
    {"format": "facepipe gallery", "version": 2,
     "encoder": {"name", "fingerprint", "dimensions", "threshold_l2"},
     "threshold_l2",
     "people": [{"name", "threshold_l2", "templates": [FACE, ...]}, ...],
     "unknown": [FACE, ...]}
    FACE: {"row", "source", "box_xyxy", "quality", "photo_sha256", "added_at", "crop"}
`vectors.safetensors`: one tensor "embeddings", float32 (n, dimensions); "row" counts from 0.
`crops/ROW`: the encoded picture of a face (PNG, WebP or JPEG, as it was given) whose "crop" is true.

Version 1 has no thresholds but the encoder's, no unknown faces and no crops; it is still read.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from msgspec import Meta

from facepipe.core.counting import counted
from facepipe.core.errors import FacepipeError, GalleryError
from facepipe.core.faces import FloatArray
from facepipe.core.files import atomic_file, open_regular
from facepipe.core.plain_text import visible_line
from facepipe.core.validation import decode_json
from facepipe.gallery.impostors import FARTHEST_L2
from facepipe.gallery.models import (
    CROP_BYTES_MAX,
    Contents,
    EncoderIdentity,
    NewTemplate,
    PersonContents,
    require_threshold,
    require_vectors,
)
from facepipe.gallery.names import NAME_LENGTH_MAX, clean_name, mended_name

FORMAT_NAME = "facepipe gallery"
FORMAT_VERSION = 2
PEOPLE_BYTES_MAX = 512 << 20
"""Of `people.json`, unpacked: some two million templates."""

FEW_PEOPLE_BYTES_MAX = 4 << 20
FACE_BYTES_MAX = 2048
"""`people.json` may have so many bytes, and so many for each face whose vector is in the archive: a small
compressed text could list millions otherwise. A face takes 450 and its path."""

FEW_MARKS_MAX = 1 << 16
FACE_MARKS_MAX = 64
"""Commas and opening brackets for each face, on average; it has 12, and those of its path."""

_PEOPLE = "people.json"
_VECTORS = "vectors.safetensors"
_TENSOR = "embeddings"
_SAFETENSORS_HEADER_BYTES_MAX = 1 << 16
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members may be packed: as they are written. zipfile unpacks other methods without a limit of memory."""
# What zipfile, json and their decoders raise on damaged data.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    RuntimeError,
    ValueError,
)
_RAW_NAME_LENGTH_MAX = 10 * NAME_LENGTH_MAX
_NUMBERED_NAMES_MAX = 1000
_SHOWN_LENGTH_MAX = 200
_CROP_MEMBER = re.compile(r"crops/(0|[1-9][0-9]{0,9})")
_FIELDS = ("source", "box_xyxy", "quality", "photo_sha256", "added_at")

logger = logging.getLogger("facepipe")


@dataclass(frozen=True, slots=True)
class _Face:
    row: int
    source: str | None
    box_xyxy: tuple[float, float, float, float] | None
    quality: float | None
    photo_sha256: str | None
    added_at: str
    crop: bool = False


@dataclass(frozen=True, slots=True)
class _Person:
    name: Annotated[str, Meta(max_length=_RAW_NAME_LENGTH_MAX)]
    templates: Annotated[tuple[_Face, ...], Meta(min_length=1)]
    threshold_l2: float | None = None


@dataclass(frozen=True, slots=True)
class _Encoder:
    name: str
    fingerprint: str
    dimensions: int
    threshold_l2: float


@dataclass(frozen=True, slots=True)
class _Heading:
    format: str
    version: int


@dataclass(frozen=True, slots=True)
class _Document:
    encoder: _Encoder
    people: tuple[_Person, ...]
    unknown: tuple[_Face, ...] = ()
    threshold_l2: float | None = None


_Part = TypeVar("_Part", _Heading, _Document)


def write_archive(file: Path, encoder: EncoderIdentity, contents: Contents) -> None:
    """Write all that a gallery holds, atomically.

    Raises:
        GalleryError: The file can't be written.
    """
    from safetensors.numpy import save

    faces: list[NewTemplate] = []
    document = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "encoder": {field.name: getattr(encoder, field.name) for field in fields(_Encoder)},
        "threshold_l2": contents.threshold_l2,
        "people": [
            {
                "name": name,
                "threshold_l2": person.threshold_l2,
                "templates": _faces_to_json(person.templates, faces),
            }
            for name, person in contents.people.items()
        ],
        "unknown": _faces_to_json(contents.unknown, faces),
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    vectors = np.zeros((len(faces), encoder.dimensions), np.float32)
    for row, face in enumerate(faces):
        vectors[row] = face.embedding
    try:
        with (
            atomic_file(file) as out,
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            archive.writestr(_PEOPLE, text)
            archive.writestr(_VECTORS, save({_TENSOR: vectors}), zipfile.ZIP_STORED)
            for row, face in enumerate(faces):
                if face.crop is not None:
                    archive.writestr(_crop_member(row), face.crop, zipfile.ZIP_STORED)
    except OSError as error:
        raise GalleryError(f"{file}: the archive can't be written ({error.strerror or error})") from error


def _faces_to_json(faces: Sequence[NewTemplate], written: list[NewTemplate]) -> list[dict[str, Any]]:
    """Entries of the faces, which are appended to `written`, in the order of the rows."""
    first = len(written)
    written.extend(faces)
    return [
        {"row": row, **{name: getattr(face, name) for name in _FIELDS}, "crop": face.crop is not None}
        for row, face in enumerate(faces, start=first)
    ]


def read_archive(file: Path, encoder: EncoderIdentity) -> Contents:
    """Read what `write_archive` wrote, trusting nothing in it.

    Raises:
        GalleryError: It can't be read, breaks the format or holds vectors of another encoder than `encoder`;
            the message names the file and the reason.
    """
    try:
        with open_regular(file) as source, zipfile.ZipFile(source) as archive:
            return _read_contents(archive, encoder)
    except FacepipeError as error:
        raise GalleryError(f"{file}: archive refused: {error}") from error
    except OSError as error:
        raise GalleryError(f"{file}: can't be read ({error.strerror or error})") from error
    except _DAMAGE as error:
        reason = _shown(str(error)) or type(error).__name__
        raise GalleryError(f"{file}: not a gallery archive, or damaged ({reason})") from error


def _read_contents(archive: zipfile.ZipFile, encoder: EncoderIdentity) -> Contents:
    crop_members = _require_members(archive)
    document = _read_document(archive, encoder)
    people = _people_by_name(document.people)
    raw_faces = [*(face for person in people.values() for face in person.templates), *document.unknown]
    size_max = len(raw_faces) * encoder.dimensions * 4 + _SAFETENSORS_HEADER_BYTES_MAX
    vectors = _parse_vectors(_read_member(archive, _VECTORS, size_max), len(raw_faces), encoder.dimensions)
    rows = sorted(face.row for face in raw_faces)
    _require(rows == list(range(len(rows))), "rows of vectors are missing or there twice")
    cropped = {_crop_member(face.row) for face in raw_faces if face.crop}
    _require(cropped == crop_members, "the crops are not those of the faces")

    def templates(raw_faces: Iterable[_Face]) -> list[NewTemplate]:
        return [_template(archive, face, vectors) for face in raw_faces]

    contents = {
        name: PersonContents(templates(person.templates), _threshold(person.threshold_l2))
        for name, person in people.items()
    }
    return Contents(contents, templates(document.unknown), _threshold(document.threshold_l2))


def _require_members(archive: zipfile.ZipFile) -> set[str]:
    """Check the names, the packing and the sizes of an archive's members, though none is unpacked to disk.

    Returns:
        The names of the crops.
    """
    crops = [info for info in archive.infolist() if _CROP_MEMBER.fullmatch(info.filename)]
    names = {info.filename for info in crops}
    others = [info.filename for info in archive.infolist() if info.filename not in names]
    if sorted(others) != [_PEOPLE, _VECTORS]:
        found = _shown(", ".join(others[:5])) or "nothing"
        raise GalleryError(f"expected {_PEOPLE} and {_VECTORS} in it, got {found}")
    _require(len(names) == len(crops), "a crop is there twice")
    for info in archive.infolist():
        _require(info.compress_type in _METHODS, f"{info.filename} is packed in a way that is not read")
    # Crops are stored as they are, so only members that share their bytes can be larger.
    size_bytes = archive.fp.seek(0, os.SEEK_END) if archive.fp else 0
    _require(sum(info.file_size for info in crops) <= size_bytes, "the crops are larger than the archive")
    packed_bytes = sum(info.compress_size for info in archive.infolist())
    _require(packed_bytes <= size_bytes, "its members are larger than the archive")
    return names


def _crop_member(row: int) -> str:
    return f"crops/{row}"


def _read_document(archive: zipfile.ZipFile, encoder: EncoderIdentity) -> _Document:
    """`people.json`, of a size that fits the number of vectors, so that the memory it takes is bounded."""
    faces = archive.getinfo(_VECTORS).compress_size // (4 * encoder.dimensions)
    text = _read_member(
        archive, _PEOPLE, min(PEOPLE_BYTES_MAX, FEW_PEOPLE_BYTES_MAX + faces * FACE_BYTES_MAX)
    )
    marks = sum(text.count(mark) for mark in (b",", b"{", b"["))
    _require(
        marks <= FEW_MARKS_MAX + faces * FACE_MARKS_MAX, f"{_PEOPLE} lists more than there are vectors for"
    )
    heading = _decoded(text, _Heading)
    _require(heading.format == FORMAT_NAME, "not a facepipe gallery")
    _require(
        1 <= heading.version <= FORMAT_VERSION,
        f"version {heading.version}, expected 1 to {FORMAT_VERSION}: upgrade facepipe",
    )
    document = _decoded(text, _Document)
    theirs = EncoderIdentity(**asdict(document.encoder))
    _require(
        theirs.makes_same_vectors_as(encoder),
        f"it holds vectors of {_shown(str(theirs))}, the gallery of {encoder}",
    )
    return document


def _decoded(text: bytes, kind: type[_Part]) -> _Part:
    try:
        return decode_json(text, kind)
    except ValueError as error:
        raise GalleryError(f"{_PEOPLE}: {_shown(str(error))}") from error


def _read_member(archive: zipfile.ZipFile, name: str, size_max_bytes: int) -> bytes:
    with archive.open(name) as source:
        data = source.read(size_max_bytes + 1)
    if len(data) > size_max_bytes:
        raise GalleryError(f"{name} is larger than the {size_max_bytes} bytes allowed for its contents")
    return data


def _people_by_name(entries: Sequence[_Person]) -> dict[str, _Person]:
    people: dict[str, _Person] = {}
    taken = {person.name for person in entries}
    numbered = 0
    for person in entries:
        cleaned = clean_name(person.name)
        name = mended_name(person.name, taken)  # Earlier versions wrote names with invisible characters.
        numbered += name != cleaned
        _require(numbered <= _NUMBERED_NAMES_MAX, "too many names differ in what can't be seen only")
        taken.add(name)
        _require(name not in people, f"{name!r} is there twice")
        people[name] = person
    return people


def _threshold(threshold_l2: float | None) -> float | None:
    if threshold_l2 is None:
        return None
    if threshold_l2 > FARTHEST_L2:  # Earlier versions wrote such; it would name any face.
        logger.warning("the archive's threshold %s is outside 0..2 and is left out", threshold_l2)
        return None
    require_threshold(threshold_l2)
    return threshold_l2


def _parse_vectors(data: bytes, count: int, dimensions: int) -> FloatArray:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a number type that NumPy does not know.
        raise GalleryError(f"{_VECTORS} is damaged ({_shown(str(error))})") from error
    found = _shown(str(list(tensors)))
    _require(list(tensors) == [_TENSOR], f"expected the tensor {_TENSOR!r} in {_VECTORS}, got {found}")
    vectors: FloatArray = tensors[_TENSOR]
    require_vectors(vectors, dimensions, _VECTORS)
    _require(len(vectors) == count, f"{counted(count, 'template')}, but {counted(len(vectors), 'vector')}")
    return vectors


def _template(archive: zipfile.ZipFile, face: _Face, vectors: FloatArray) -> NewTemplate:
    return NewTemplate(
        embedding=vectors[face.row],
        crop=_read_member(archive, _crop_member(face.row), CROP_BYTES_MAX) if face.crop else None,
        **{name: getattr(face, name) for name in _FIELDS},
    )


def _shown(text: str) -> str:
    """Text from an archive as a message quotes it: one line, shortened."""
    escaped = visible_line(text)
    return escaped if len(escaped) <= _SHOWN_LENGTH_MAX else f"{escaped[:_SHOWN_LENGTH_MAX]}..."


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise GalleryError(complaint)
