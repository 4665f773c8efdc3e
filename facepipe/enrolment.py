"""Learning people from photos: who is in which photo, which photos are good enough, what was stored."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from facepipe.errors import PhotoError, UsageError
from facepipe.faces import Faces, UInt8Array
from facepipe.images import DEFAULT_MAX_PIXELS, find_photos, photo_sha256, read_image
from facepipe.pipeline import FacePipeline
from facepipe.quality import EnrolRules, Judgement, judge
from facepipe.report import record_to_json
from gallery import NewTemplate


@dataclass(frozen=True, slots=True)
class PersonPhoto:
    """A photo and who is in it."""

    name: str
    path: Path


class Outcome(Enum):
    """What became of a photo. The values are stable codes for reports."""

    ENROLLED = "enrolled"
    KNOWN = "known"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EnrolReport:
    """What became of one photo.

    Attributes:
        photo: The photo and the person.
        outcome: Stored, stored before, refused by the rules, or not readable.
        reasons: Codes of `facepipe.quality.Reason` that speak against the photo, also where it was forced.
        sentence: The same for people to read; empty where there is nothing to say.
    """

    photo: PersonPhoto
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    sentence: str = ""

    def __str__(self) -> str:
        remark = f": {self.sentence}" if self.sentence else ""
        return f"{self.outcome.value:<9} {self.photo.name}  {self.photo.path}{remark}"

    def to_json(self) -> str:
        """One line of JSON: `{"photo", "name", "outcome", "reasons", "sentence"}`."""
        return record_to_json(
            {
                "photo": self.photo.path,
                "name": self.photo.name,
                "outcome": self.outcome.value,
                "reasons": self.reasons,
                "sentence": self.sentence,
            }
        )


def photos_in_folders(folder: Path) -> list[PersonPhoto]:
    """One sub-folder a person, named after the person; photos at any depth below it.

    Raises:
        UsageError: Not a folder, no sub-folders, or a sub-folder without photos.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a folder; expected one with a sub-folder per person, or use --name")
    people = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not people:
        raise UsageError(f"{folder}: has no sub-folders; expected one per person, or use --name NAME")
    return [PersonPhoto(person.name, photo) for person in people for photo in find_photos([person])]


def photos_in_csv(file: Path) -> list[PersonPhoto]:
    """Rows of `path,name`, with or without that header; relative paths start at the file's folder.

    Raises:
        UsageError: Not readable, empty, or a row without exactly a path and a name; names the line.
    """
    try:
        rows = list(csv.reader(file.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file}: can't read this CSV: {error}") from error
    photos = []
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells[:2] == ["path", "name"]):
            continue
        if len(cells) != 2 or not all(cells):
            raise UsageError(f"{file}, line {number}: expected path,name, got {','.join(row)!r}")
        photos.append(PersonPhoto(cells[1], file.parent / cells[0]))
    if not photos:
        raise UsageError(f"{file}: no rows of path,name")
    return photos


def enrol(
    pipeline: FacePipeline,
    photos: Iterable[PersonPhoto],
    *,
    rules: EnrolRules | None = None,
    force: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Iterator[EnrolReport]:
    """Store the face of each photo as a template of its person, one transaction a photo.

    Enrolling the same photo again changes nothing. What was reported as stored is on disk.

    Args:
        pipeline: With a gallery.
        photos: Whom to learn from what.
        rules: What a face must have.
        force: Take the largest face of a photo that breaks the rules, if it has any face.
        max_pixels: Largest photo read.

    Raises:
        UsageError: The pipeline has no gallery.
        GalleryError: The gallery can't be written, or a name can't be used.
    """
    gallery = pipeline.gallery
    if gallery is None:
        raise UsageError("enrolling needs a gallery")
    for photo in photos:
        try:
            digest = photo_sha256(photo.path)
            if gallery.has_photo(digest, photo.name):
                yield EnrolReport(photo, Outcome.KNOWN, sentence="enrolled before")
                continue
            image = read_image(photo.path, max_pixels=max_pixels)
        except PhotoError as error:
            yield EnrolReport(photo, Outcome.FAILED, sentence=str(error))
            continue
        faces = pipeline.detect(image)
        judgement = judge(image, faces, rules)
        reasons = tuple(refusal.reason.value for refusal in judgement.refusals)
        sentence = "; ".join(refusal.sentence for refusal in judgement.refusals)
        if judgement.face is None or (reasons and not force):
            yield EnrolReport(photo, Outcome.REFUSED, reasons, sentence)
            continue
        gallery.add(photo.name, [_template(pipeline, image, faces, judgement, photo.path, digest)])
        yield EnrolReport(photo, Outcome.ENROLLED, reasons, sentence)


def _template(
    pipeline: FacePipeline, image: UInt8Array, faces: Faces, judgement: Judgement, path: Path, digest: str
) -> NewTemplate:
    assert judgement.face is not None
    face = pipeline.encoder.embed(image, faces.select([judgement.face]))
    assert face.embeddings is not None
    left, top, right, bottom = (float(v) for v in face.boxes_xyxy[0])
    return NewTemplate(
        embedding=face.embeddings[0],
        source=str(path.resolve()),
        box_xyxy=(left, top, right, bottom),
        quality=judgement.sharpness,
        photo_sha256=digest,
    )
