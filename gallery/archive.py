"""A gallery in one open file: a zip of `people.json` and `vectors.safetensors`, nothing executable.

`people.json`:
    {"format": "facepipe gallery", "version": 1,
     "encoder": {"name", "fingerprint", "dimensions", "threshold_l2"},
     "people": [{"name", "templates": [
         {"row", "source", "box_xyxy", "quality", "photo_sha256", "added_at"}]}]}
`vectors.safetensors`: one tensor "embeddings", float32 (n, dimensions); "row" counts from 0.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from facepipe.errors import FacepipeError, GalleryError
from facepipe.faces import FloatArray
from gallery.files import replaced
from gallery.records import EncoderIdentity, NewTemplate, Template, clean_name, require_vectors

FORMAT_NAME = "facepipe gallery"
FORMAT_VERSION = 1
PEOPLE_BYTES_MAX = 512 << 20
"""Of `people.json`, unpacked: some two million templates."""

_PEOPLE = "people.json"
_VECTORS = "vectors.safetensors"
_TENSOR = "embeddings"
_SAFETENSORS_HEADER_BYTES_MAX = 1 << 16
# What zipfile, json and their decoders raise on damaged data.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OverflowError,
    RuntimeError,
    ValueError,
)
_FIELDS = ("source", "box_xyxy", "quality", "photo_sha256", "added_at")


def write_archive(
    file: Path, encoder: EncoderIdentity, people: Iterable[tuple[str, Sequence[Template], FloatArray]]
) -> None:
    """Write names, templates and their vectors float32 (n, d), atomically.

    Raises:
        GalleryError: The file can't be written.
    """
    from safetensors.numpy import save

    entries: list[dict[str, Any]] = []
    blocks = [np.zeros((0, encoder.dimensions), np.float32)]
    row = 0
    for name, templates, vectors in people:
        rows = [_template_to_json(row + i, template) for i, template in enumerate(templates)]
        entries.append({"name": name, "templates": rows})
        blocks.append(vectors)
        row += len(vectors)
    document = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "encoder": asdict(encoder),
        "people": entries,
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    try:
        temporary = file.with_name(f".{file.name}.{os.getpid()}.new")
        with replaced(file, temporary) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_PEOPLE, text)
            archive.writestr(_VECTORS, save({_TENSOR: np.concatenate(blocks)}), zipfile.ZIP_STORED)
    except OSError as error:
        raise GalleryError(f"{file}: the archive can't be written ({error.strerror or error})") from error


def read_archive(file: Path, encoder: EncoderIdentity) -> Mapping[str, Sequence[NewTemplate]]:
    """Read what `write_archive` wrote, trusting nothing in it: each name's templates.

    Raises:
        GalleryError: It can't be read, breaks the format or holds vectors of another encoder than `encoder`;
            the message names the file and the reason.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _require_members(archive)
            document = json.loads(_read_member(archive, _PEOPLE, PEOPLE_BYTES_MAX))
            people = _parse_people(document, encoder)
            count = sum(len(templates) for templates in people.values())
            size_max = count * encoder.dimensions * 4 + _SAFETENSORS_HEADER_BYTES_MAX
            vectors = _parse_vectors(_read_member(archive, _VECTORS, size_max), count, encoder.dimensions)
        return _with_vectors(people, vectors)
    except FacepipeError as error:
        raise GalleryError(f"{file}: archive refused: {error}") from error
    except OSError as error:
        raise GalleryError(f"{file}: can't be read ({error.strerror or error})") from error
    except KeyError as error:
        raise GalleryError(f"{file}: archive refused: {_PEOPLE} lacks {error}") from error
    except _DAMAGE as error:
        raise GalleryError(f"{file}: not a gallery archive, or damaged ({error})") from error


def _template_to_json(row: int, template: Template) -> dict[str, Any]:
    return {"row": row, **{name: getattr(template, name) for name in _FIELDS}}


def _require_members(archive: zipfile.ZipFile) -> None:
    """Nothing is ever unpacked to disk; strange names still tell of an archive made to harm."""
    names = sorted(info.filename for info in archive.infolist())
    if names != sorted((_PEOPLE, _VECTORS)):
        found = ", ".join(names[:5]) or "nothing"
        raise GalleryError(f"expected {_PEOPLE} and {_VECTORS} in it, got {found}")


def _read_member(archive: zipfile.ZipFile, name: str, size_max_bytes: int) -> bytes:
    with archive.open(name) as source:
        data = source.read(size_max_bytes + 1)
    if len(data) > size_max_bytes:
        raise GalleryError(f"{name} is larger than the {size_max_bytes} bytes allowed for its contents")
    return data


def _parse_people(document: Any, encoder: EncoderIdentity) -> dict[str, list[dict[str, Any]]]:
    """Each name's raw templates."""
    _require(isinstance(document, dict) and document.get("format") == FORMAT_NAME, "not a facepipe gallery")
    version = document["version"]
    _require(version == FORMAT_VERSION, f"version {version!r}, expected {FORMAT_VERSION}: upgrade facepipe")
    theirs = _parse_encoder(_typed(dict, document["encoder"], "encoder"))
    _require(theirs.makes_same_vectors_as(encoder), f"it holds vectors of {theirs}, the gallery of {encoder}")
    people: dict[str, list[dict[str, Any]]] = {}
    for person in _list_of(dict, document["people"], "people"):
        name = clean_name(_typed(str, person["name"], "name"))
        _require(name not in people, f"{name!r} is there twice")
        people[name] = _list_of(dict, person["templates"], f"templates of {name!r}")
        _require(bool(people[name]), f"{name!r} has no templates")
    return people


def _parse_encoder(raw: Mapping[str, Any]) -> EncoderIdentity:
    return EncoderIdentity(
        name=_typed(str, raw["name"], "encoder name"),
        fingerprint=_typed(str, raw["fingerprint"], "encoder fingerprint"),
        dimensions=_typed(int, raw["dimensions"], "encoder dimensions"),
        threshold_l2=float(_typed((int, float), raw["threshold_l2"], "encoder threshold_l2")),
    )


def _parse_vectors(data: bytes, count: int, dimensions: int) -> FloatArray:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a number type that NumPy does not know.
        raise GalleryError(f"{_VECTORS} is damaged ({error})") from error
    _require(
        list(tensors) == [_TENSOR], f"expected the tensor {_TENSOR!r} in {_VECTORS}, got {list(tensors)}"
    )
    vectors: FloatArray = tensors[_TENSOR]
    require_vectors(vectors, dimensions, _VECTORS)
    _require(len(vectors) == count, f"{count} templates, but {len(vectors)} vectors")
    return vectors


def _with_vectors(
    people: Mapping[str, list[dict[str, Any]]], vectors: FloatArray
) -> dict[str, list[NewTemplate]]:
    rows = [_typed(int, raw["row"], "row") for templates in people.values() for raw in templates]
    _require(sorted(rows) == list(range(len(vectors))), "rows of vectors are missing or there twice")
    return {
        name: [_parse_template(raw, vectors[raw["row"]]) for raw in templates]
        for name, templates in people.items()
    }


def _parse_template(raw: Mapping[str, Any], vector: FloatArray) -> NewTemplate:
    source, box, quality, photo_sha256, added_at = (raw[name] for name in _FIELDS)
    if box is not None:
        left, top, right, bottom = (float(side) for side in _list_of((int, float), box, "box_xyxy"))
        box = (left, top, right, bottom)
    return NewTemplate(
        embedding=vector,
        source=None if source is None else _typed(str, source, "source"),
        box_xyxy=box,
        quality=None if quality is None else float(_typed((int, float), quality, "quality")),
        photo_sha256=None if photo_sha256 is None else _typed(str, photo_sha256, "photo_sha256"),
        added_at=_typed(str, added_at, "added_at"),
    )


def _list_of(kind: type | tuple[type, ...], value: Any, what: str) -> list[Any]:
    return [_typed(kind, item, what) for item in _typed(list, value, what)]


def _typed(kind: type | tuple[type, ...], value: Any, what: str) -> Any:
    # JSON's true is no number, though Python's True is.
    fits = isinstance(value, kind) and not isinstance(value, bool)
    _require(fits, f"{what} is of a wrong type: {value!r:.80}")
    return value


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise GalleryError(complaint)
