"""Pascal VOC's annotations: one XML file a photo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from facepipe.core.errors import DataError
from facepipe.evaluation.labels.fields import face_categories, photo_path, read_file, to_numbers
from facepipe.evaluation.labels.models import FaceLabel, LabelledPhoto
from facepipe.images.finding import natural_key

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Photo(NamedTuple):
    """A photo and its objects, with their categories."""

    path: Path
    objects: list[tuple[str, FaceLabel]]


def read_voc(labels: Path, images: Path) -> Iterator[LabelledPhoto]:
    """Yield the photos of Pascal VOC's annotations, in the natural order of their files.

    Corners are taken as they stand: pixels from the top-left corner of the photo. A face that is difficult is
    ignored. The photo is `filename`, in the sub-folder of the annotation's name where it is not in `images`.

    Args:
        labels: Folder of the XML files; searched with its sub-folders.
        images: Folder of the photos.

    Raises:
        DataError: A file is no such annotation; names it and the place.
    """
    files = sorted(labels.rglob("*.xml"), key=lambda file: natural_key(str(file.relative_to(labels))))
    photos = [_photo(file, images, file.parent.relative_to(labels)) for file in files]
    wanted = face_categories((name for photo in photos for name, _ in photo.objects), labels)
    for photo in photos:
        yield LabelledPhoto.of_faces(photo.path, [face for name, face in photo.objects if name in wanted])


def _photo(file: Path, images: Path, sub_folder: Path) -> _Photo:
    annotation = _parsed(file)
    name = (annotation.findtext("filename") or "").strip()
    path = photo_path(images, name, f"{file}, filename")
    if not path.is_file():
        path = images / sub_folder / name
    objects = enumerate(annotation.iterfind("object"), 1)
    return _Photo(path, [_object(item, f"{file}, object {number}") for number, item in objects])


def _object(item: Element, place: str) -> tuple[str, FaceLabel]:
    box = item.find("bndbox")
    words = [None if box is None else box.findtext(corner) for corner in _CORNERS]
    left, top, right, bottom = to_numbers((word or "" for word in words), f"{place}, bndbox")
    difficult = (item.findtext("difficult") or "0").strip() == "1"
    return (item.findtext("name") or "").strip(), FaceLabel((left, top, right, bottom), ignored=difficult)


def _parsed(file: Path) -> Element:
    """Parse a file without a document type: entities, which can unfold to gigabytes, are declared there."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> None:
        raise DataError(f"{file}, line {parser.CurrentLineNumber}: has a document type; remove it")

    parser.StartDoctypeDeclHandler = refuse
    data = read_file(file)
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise DataError(f"{file}: not an annotation of Pascal VOC: {error}") from error
    return builder.close()
