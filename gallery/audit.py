"""Likely mistakes in a gallery: faces under wrong names, people under two names, people of few photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from facepipe.core.errors import UsageError
from facepipe.core.faces import FloatArray
from facepipe.gallery.gallery import Gallery
from facepipe.gallery.matching import PersonAt
from facepipe.gallery.models import Person, Template, require_threshold
from facepipe.gallery.names import lookalikes
from facepipe.gallery.ranking import PersonDistance

NEAR_DUPLICATE_L2 = 0.35
"""Faces this near show the same moment. Of 96 re-encoded, resized, cropped, gray or mirrored copies of 12
photos, 74 lie within it; of 311 photos, two lie so near to another one of their person."""

FAR_SHARE = 1.2
"""A face this many thresholds from its person's nearest photo is far: 6% of 78 enrolled press photos (four a
person), and 85% of photos put under a wrong name."""

FEW_TEMPLATES = 3
"""Fewer faces of a person miss many of their photos; three are what a mean can be taken of."""


class Remark(Enum):
    """What is odd about a face under a name. The values are stable codes for reports."""

    NEAR_DUPLICATE = "near_duplicate"
    FAR_FROM_OTHERS = "far_from_others"
    LOOKS_LIKE_OTHER = "looks_like_other"
    SIMILAR_NAME = "similar_name"


@dataclass(frozen=True, slots=True)
class FaceRemark:
    """One odd thing about a face under a name.

    Attributes:
        remark: What.
        distance_l2: To the person's nearest other face, or, where it looks like another person, to them; None
            where only the names look alike.
        name: That other person; None for remarks about the person's own faces.
    """

    remark: Remark
    distance_l2: float | None
    name: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: `{"code", "name", "distance_l2", "sentence"}`."""
        return {
            "code": self.remark.value,
            "name": self.name,
            "distance_l2": None if self.distance_l2 is None else round(self.distance_l2, 4),
            "sentence": str(self),
        }

    def __str__(self) -> str:
        distance = "" if self.distance_l2 is None else f" ({self.distance_l2:.2f})"
        match self.remark:
            case Remark.NEAR_DUPLICATE:
                return f"nearly the same as an enrolled photo{distance}"
            case Remark.FAR_FROM_OTHERS:
                return f"far from the person's other photos{distance}"
            case Remark.LOOKS_LIKE_OTHER:
                return f"looks like {self.name}{distance}"
            case Remark.SIMILAR_NAME:
                return f"the name looks like that of {self.name!r}: are they one person?"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A stored face that may be under a wrong name.

    Attributes:
        template: The face.
        own_l2: Distance to the person's nearest other face; None where there is none.
        other: The nearest other person; None in a gallery of one.
        remarks: What is odd; one at least.
    """

    template: Template
    own_l2: float | None
    other: PersonAt | None
    remarks: tuple[FaceRemark, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "remarks": [remark.to_dict() for remark in self.remarks]}


@dataclass(frozen=True, slots=True)
class SamePerson:
    """Two names that may be one person's.

    Attributes:
        first: The one name.
        second: The other.
        distance_l2: Mean, over the faces of both, of the distance to the nearest face under the other name.
    """

    first: str
    second: str
    distance_l2: float


@dataclass(frozen=True, slots=True)
class Audit:
    """What `audit` found.

    Attributes:
        threshold_l2: Below which faces count as of one person.
        people: Number of people compared.
        templates: Number of their faces.
        mislabelled: Faces that may be under a wrong name, the most suspicious first.
        same_people: Names that may be one person's, the nearest first.
        few_photos: People of fewer than `FEW_TEMPLATES` faces, by name.
        similar_names: Groups of names that people can't tell apart.
    """

    threshold_l2: float
    people: int
    templates: int
    mislabelled: tuple[Suspect, ...]
    same_people: tuple[SamePerson, ...]
    few_photos: tuple[Person, ...]
    similar_names: tuple[tuple[str, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, fields as above."""
        return {**asdict(self), "mislabelled": [suspect.to_dict() for suspect in self.mislabelled]}


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """A template beside the gallery's other faces.

    Attributes:
        template: The face.
        own_l2: Distance to the person's nearest other face; None where there is none.
        others: The nearest other people by their nearest faces, the nearest first.
    """

    template: Template
    own_l2: float | None
    others: tuple[PersonAt, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: the fields of the template, `own_l2` and `others`."""
        return {
            **asdict(self.template),
            "own_l2": None if self.own_l2 is None else round(self.own_l2, 4),
            "others": [{"name": at.name, "distance_l2": round(at.distance_l2, 4)} for at in self.others],
        }


def template_report(gallery: Gallery, template_id: int, others: int = 5) -> TemplateReport:
    """Compare a template with the faces of its person and of so many nearest other people.

    Raises:
        GalleryError: There is no such template.
    """
    with gallery.one_state():
        template, vector = gallery.template(template_id), gallery.template_vector(template_id)
        (near,) = gallery.search(vector[None], others + 1, PersonDistance.NEAREST)
        return TemplateReport(
            template,
            _nearest_of(gallery, template.person, vector, {template_id}),
            tuple(person for person in near if person.name != template.person)[:others],
        )


def audit(gallery: Gallery, threshold_l2: float | None = None) -> Audit:
    """Compare every face of a gallery with all others, as if it were new under its name.

    Args:
        gallery: Whose people are compared with each other.
        threshold_l2: Below which faces count as of one person; None: the gallery's default for naming.

    Raises:
        UsageError: The threshold is not within 0..2, or None and there is no default.
    """
    if threshold_l2 is None:
        threshold_l2 = gallery.default_threshold_l2
        if threshold_l2 is None:
            raise UsageError(f"{gallery.encoder} has no measured threshold: give one (--threshold)")
    require_threshold(threshold_l2)
    with gallery.one_state():
        return _audited(gallery, threshold_l2)


def _audited(gallery: Gallery, threshold_l2: float) -> Audit:
    people = gallery.people()
    suspects: list[Suspect] = []
    pairs: set[tuple[str, str]] = set()
    for person in people:
        templates, vectors = gallery.templates(person.name), gallery.vectors(person.name)
        own, others = nearest_own(vectors), gallery.nearest_others(person.name, vectors)
        suspects += _suspects(templates, own, others, threshold_l2)
        near = (other for other in others if other is not None and other.distance_l2 <= threshold_l2)
        pairs |= {(min(person.name, other.name), max(person.name, other.name)) for other in near}
    return Audit(
        threshold_l2=threshold_l2,
        people=len(people),
        templates=sum(person.template_count for person in people),
        mislabelled=_still_suspect(gallery, sorted(suspects, key=_suspicion_key), threshold_l2),
        same_people=_same_people(gallery, pairs, threshold_l2),
        few_photos=tuple(person for person in people if person.template_count < FEW_TEMPLATES),
        similar_names=tuple(lookalikes(person.name for person in people)),
    )


def remarks_on_new(gallery: Gallery, name: str, embedding: FloatArray) -> tuple[FaceRemark, ...]:
    """Return what is odd about a face, float32 (d,), that is to be enrolled under a name, known or not."""
    with gallery.one_state():
        is_known = gallery.knows(name)
        alike = [] if is_known else gallery.people_like(name)
        own = gallery.vectors(name) if is_known else np.zeros((0, len(embedding)), np.float32)
        (other,) = gallery.nearest_others(name, embedding[None])
        threshold_l2 = gallery.default_threshold_l2 or 0.0
    distances = np.linalg.norm(own.astype(np.float64) - embedding.astype(np.float64), axis=1)
    nearest_l2 = float(distances.min()) if len(distances) else None
    named_alike = (FaceRemark(Remark.SIMILAR_NAME, None, other_name) for other_name in alike)
    return (*named_alike, *remarks(nearest_l2, other, threshold_l2))


def remarks(own_l2: float | None, other: PersonAt | None, threshold_l2: float) -> tuple[FaceRemark, ...]:
    """Return what is odd about a face.

    Args:
        own_l2: Distance to the nearest other face under its name; None: there is none.
        other: The nearest other person; None: there is nobody.
        threshold_l2: Below which faces count as of one person; 0: not measured, and nothing counts as far.
    """
    found = []
    if own_l2 is not None and own_l2 <= NEAR_DUPLICATE_L2:
        found.append(FaceRemark(Remark.NEAR_DUPLICATE, own_l2))
    if own_l2 is not None and own_l2 > FAR_SHARE * threshold_l2 > 0:
        found.append(FaceRemark(Remark.FAR_FROM_OTHERS, own_l2))
    if other is not None and other.distance_l2 <= min(threshold_l2, np.inf if own_l2 is None else own_l2):
        found.append(FaceRemark(Remark.LOOKS_LIKE_OTHER, other.distance_l2, other.name))
    return tuple(found)


def nearest_own(vectors: FloatArray) -> list[float | None]:
    """Of each of a person's faces, float32 (n, d), the distance to the nearest other one, if any."""
    distances = _distances(vectors, vectors)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.min(axis=1, initial=np.inf)
    return [float(value) if np.isfinite(value) else None for value in nearest]


def _suspects(
    templates: Sequence[Template],
    own: Sequence[float | None],
    others: Sequence[PersonAt | None],
    threshold_l2: float,
) -> list[Suspect]:
    """Return the faces that may be under a wrong name; near duplicates are not."""
    found = []
    for template, own_l2, other in zip(templates, own, others, strict=True):
        odd = [
            remark
            for remark in remarks(own_l2, other, threshold_l2)
            if remark.remark is not Remark.NEAR_DUPLICATE
        ]
        # A person with one photo who resembles another is among `same_people`.
        if odd and own_l2 is not None:
            found.append(Suspect(template, own_l2, other, tuple(odd)))
    return found


def _still_suspect(gallery: Gallery, suspects: Sequence[Suspect], threshold_l2: float) -> tuple[Suspect, ...]:
    """Those that are suspect without the worse ones: a face under a wrong name makes those like it suspect.

    `suspects` begin with the worst. Each is compared again without the faces that were found before it.
    """
    found: list[Suspect] = []
    for suspect in suspects:
        without = {known.template.id for known in found}
        odd = _suspects([suspect.template], *_compared_without(gallery, suspect, without), threshold_l2)
        found += odd
    return tuple(found)


def _compared_without(
    gallery: Gallery, suspect: Suspect, without: set[int]
) -> tuple[list[float | None], list[PersonAt | None]]:
    """Return the distances to the person's own faces and to the other person, without some faces."""
    person, own_id = suspect.template.person, suspect.template.id
    own_ids = [template.id for template in gallery.templates(person)]
    vector = gallery.vectors(person)[own_ids.index(own_id)]
    own_l2 = _nearest_of(gallery, person, vector, without | {own_id})
    if suspect.other is None:
        return [own_l2], [None]
    other_l2 = _nearest_of(gallery, suspect.other.name, vector, without)
    return [own_l2], [None if other_l2 is None else PersonAt(suspect.other.name, other_l2)]


def _nearest_of(gallery: Gallery, name: str, vector: FloatArray, without: set[int]) -> float | None:
    """Distance to a person's nearest face that is not among some; None: there is none."""
    kept = [template.id not in without for template in gallery.templates(name)]
    distances = _distances(vector[None], gallery.vectors(name)[kept])
    return float(distances.min()) if distances.size else None


def _suspicion_key(suspect: Suspect) -> tuple[bool, float]:
    """Sort key: first those that look like another, from the farthest to the nearest to their own."""
    like_other = any(remark.remark is Remark.LOOKS_LIKE_OTHER for remark in suspect.remarks)
    other_l2 = np.inf if suspect.other is None else suspect.other.distance_l2
    return not like_other, other_l2 - (suspect.own_l2 or 0.0)


def _same_people(
    gallery: Gallery, pairs: set[tuple[str, str]], threshold_l2: float
) -> tuple[SamePerson, ...]:
    found = [
        SamePerson(first, second, mutual_distance(gallery.vectors(first), gallery.vectors(second)))
        for first, second in sorted(pairs)
    ]
    near = (pair for pair in found if pair.distance_l2 <= threshold_l2)
    return tuple(sorted(near, key=lambda pair: pair.distance_l2))


def mutual_distance(first: FloatArray, second: FloatArray) -> float:
    """Between two people with faces float32 (n, d) and (m, d): mean distance of a face to the nearest of the
    other's, half from either side. One look-alike photo, or one under the wrong name, moves it little.

    At the naming threshold it takes none of 4,350 pairs of strangers for one person, and finds 76% of
    people whose eight photos were divided between two names (63% of four photos).
    """
    distances = _distances(first, second)
    return float((distances.min(axis=1).mean() + distances.min(axis=0).mean()) / 2)


def _distances(first: FloatArray, second: FloatArray) -> npt.NDArray[np.float64]:
    """float64 (n, m), Euclidean."""
    differences = first[:, None].astype(np.float64) - second[None].astype(np.float64)
    return np.asarray(np.linalg.norm(differences, axis=2))
