"""Enrollment of people from photos: who is in which photo, which are good enough, what was stored."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from facepipe.core.counting import counted
from facepipe.core.csv_files import read_rows
from facepipe.core.errors import PhotoError, UsageError
from facepipe.core.faces import Faces
from facepipe.core.json_lines import record_to_json
from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.audit import FaceRemark, remarks_on_new
from facepipe.gallery.names import clean_name
from facepipe.images.face_crops import box_of, encode_crop
from facepipe.images.finding import PhotoSearch
from facepipe.images.reading import DEFAULT_MAX_PIXELS, PHOTO_SUFFIXES, photo_sha256, read_image
from facepipe.pipeline import FacePipeline, PhotoResult
from facepipe.quality import MainFace, assess_main_face
from facepipe.quality_rules import EnrollRules

_PATH_WORDS = ("path", "photo", "photos", "file", "filename", "filepath", "image", "picture", "source")
_NAME_WORDS = ("name", "person", "people", "who", "label", "identity", "fullname")
"""What a header of `enroll --csv` may call its columns."""
_log = logging.getLogger("facepipe")


@dataclass(frozen=True, slots=True)
class PersonPhoto:
    """A photo and who is in it.

    Attributes:
        name: The person, as stored: see `facepipe.gallery.names.clean_name`.
        path: The file.

    Raises:
        GalleryError: The name can't be used.
    """

    name: str
    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", clean_name(self.name))  # before half of the photos are stored
        object.__setattr__(self, "path", Path(self.path))


class Outcome(Enum):
    """What became of a photo. The values are stable codes for reports."""

    ENROLLED = "enrolled"
    KNOWN = "known"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EnrollReport:
    """What became of one photo.

    Attributes:
        photo: The photo and the person.
        outcome: Stored, stored before, refused by the rules, or not readable.
        reasons: Codes of `facepipe.quality.Reason` that speak against the photo, also where it was forced.
        sentence: The same for people to read; empty where there is nothing to say.
        warnings: What is odd about the face beside the gallery's others; it was stored all the same.
    """

    photo: PersonPhoto
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    sentence: str = ""
    warnings: tuple[FaceRemark, ...] = ()

    def __str__(self) -> str:
        said = [self.sentence.removeprefix(f"{self.photo.path}: "), *(f"warning: {w}" for w in self.warnings)]
        remark = "; ".join(words for words in said if words)
        return f"{self.outcome.value:<9} {self.photo.name}  {self.photo.path}{remark and f': {remark}'}"

    def to_json(self) -> str:
        """One line of JSON: `{"photo", "name", "outcome", "reasons", "sentence", "warnings"}`."""
        return record_to_json(
            {
                "photo": self.photo.path,
                "name": self.photo.name,
                "outcome": self.outcome.value,
                "reasons": self.reasons,
                "sentence": self.sentence,
                "warnings": [warning.to_dict() for warning in self.warnings],
            }
        )


def photos_in_folders(folder: str | Path, *, exclude: Sequence[str] = ()) -> list[PersonPhoto]:
    """One sub-folder a person, named after the person; photos at any depth below it.

    A sub-folder without photos, and photos beside the sub-folders, are passed over with a warning.

    Args:
        folder: Holds the sub-folders.
        exclude: Patterns of files and folders to pass over; see `find_photos`.

    Raises:
        UsageError: Not a readable folder, no sub-folders, or no photos in any of them.
        GalleryError: The name of a sub-folder with photos can't be a person's.
    """
    folder, search = Path(folder), PhotoSearch(exclude)
    try:
        files, people = search.list_folder(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        message = f"{folder}: not a folder; expected one with a sub-folder per person, or use --name"
        raise UsageError(message) from error
    except OSError as error:
        raise UsageError(f"{folder}: can't read this folder ({error.strerror})") from error
    if not people:
        raise UsageError(f"{folder}: has no sub-folders; expected one per person, or use --name NAME")
    if stray := sum(file.suffix.lower() in PHOTO_SUFFIXES for file in files):
        _log.warning("%s: passed over %s in no person's sub-folder", folder, counted(stray, "photo"))
    photos = [PersonPhoto(person.name, photo) for person in people for photo in _photos_of(person, search)]
    search.log_unread()
    if not photos:
        raise UsageError(f"{folder}: no photos in any sub-folder; expected some of each person")
    return photos


def _photos_of(person: Path, search: PhotoSearch) -> list[Path]:
    try:
        return search.find([person])
    except UsageError as error:
        _log.warning("%s; nobody is enrolled from it", error)
        return []


def photos_in_csv(file: str | Path) -> list[PersonPhoto]:
    """Rows of a path and a name, as spreadsheets write them (see `facepipe.core.csv_files.read_rows`).

    Without a header the path comes first. Relative paths start at the file's folder.

    Raises:
        UsageError: Not readable, empty, or a row without a path and a name; names the line.
    """
    file = Path(file)
    rows = list(read_rows(file, (_PATH_WORDS, _NAME_WORDS)))
    if not rows:
        raise UsageError(f"{file}: no rows of path,name")
    number, (path, name) = rows[0]
    if not Path(path).suffix and not (file.parent / path).exists():
        raise UsageError(
            f"{file}, line {number}: expected path,name, got {path},{name}: there is no such photo; "
            "in a header, call the columns path and name"
        )
    return [PersonPhoto(name, file.parent / path) for _, (path, name) in rows]


def enroll(
    pipeline: FacePipeline,
    photos: Iterable[PersonPhoto],
    *,
    rules: EnrollRules | None = None,
    force: bool = False,
    keep_crops: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Iterator[EnrollReport]:
    """Store the face of each photo as a template of its person, one transaction a photo.

    Enrolling the same photo again changes nothing. What was reported as stored is on disk. A face that looks
    like another person's, or unlike the person's others, is stored with a warning.

    Args:
        pipeline: With a gallery.
        photos: Who is in which.
        rules: What a face must have.
        force: Take the largest face of a photo that breaks the rules, if it has any face.
        keep_crops: Store the pictures of the faces too.
        max_pixels: Largest photo read.

    Raises:
        UsageError: The pipeline has no gallery, or what is given is no `PersonPhoto`.
        GalleryError: The gallery can't be written.
    """
    gallery = pipeline.gallery
    if gallery is None:
        raise UsageError("enrolling needs a gallery")
    if isinstance(photos, PersonPhoto | str | os.PathLike):
        raise UsageError("expected photos to enroll, got one: give a list of PersonPhoto(name, path)")
    enrollment = _Enrollment(pipeline, gallery, rules, force, keep_crops, max_pixels)
    for photo in photos:
        if not isinstance(photo, PersonPhoto):
            raise UsageError(f"expected PersonPhoto(name, path), got {photo!r:.80}")
        try:
            report = enrollment.enroll(photo)
        except PhotoError as error:
            report = EnrollReport(photo, Outcome.FAILED, sentence=str(error))
        yield report


@dataclass(frozen=True, slots=True)
class _Enrollment:
    """The arguments of `enroll`."""

    pipeline: FacePipeline
    gallery: Gallery
    rules: EnrollRules | None
    force: bool
    keep_crops: bool
    max_pixels: int

    def enroll(self, photo: PersonPhoto) -> EnrollReport:
        digest = photo_sha256(photo.path)
        if self.gallery.has_photo(digest, photo.name):
            return EnrollReport(photo, Outcome.KNOWN, sentence="enrolled before")
        image = read_image(photo.path, max_pixels=self.max_pixels)
        faces = self.pipeline.detect(image)
        assessment = assess_main_face(image, faces, self.rules, crop=self.pipeline.encoder.crop)
        reasons = tuple(refusal.reason.value for refusal in assessment.refusals)
        scale = self.pipeline.detector.options.scale_of((image.shape[1], image.shape[0]))
        hint = PhotoResult(photo.path, faces=faces, scale=scale).hint
        sentence = "; ".join(filter(None, (*(refusal.sentence for refusal in assessment.refusals), hint)))
        if assessment.face is None or (reasons and not self.force):
            return EnrollReport(photo, Outcome.REFUSED, reasons, sentence)
        template = template_of(self.pipeline, photo.path, digest, faces, assessment.face, self.keep_crops)
        warnings = remarks_on_new(self.gallery, photo.name, template.embedding)
        self.gallery.add(photo.name, [template])
        return EnrollReport(photo, Outcome.ENROLLED, reasons, sentence, warnings)


def template_of(
    pipeline: FacePipeline, photo: Path, digest: str, faces: Faces, face: MainFace, keep_crop: bool
) -> NewTemplate:
    """Encode a face of a photo, to be stored.

    Args:
        pipeline: With the encoder.
        photo: The file.
        digest: Its content hash.
        faces: All that were found in it.
        face: One of them.
        keep_crop: Store its picture too.
    """
    return NewTemplate(
        embedding=pipeline.encoder.encode(face.crop[None])[0],
        source=str(photo.resolve()),
        box_xyxy=box_of(faces, face.row),
        quality=face.measures.sharpness,
        photo_sha256=digest,
        crop=encode_crop(face.crop) if keep_crop else None,
    )
