"""A gallery made anew for another encoder: what would change, and the switch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facepipe.core.counting import counted
from facepipe.core.errors import GalleryError, UsageError
from facepipe.core.faces import FloatArray, Match
from facepipe.gallery import EncoderIdentity, Gallery, Template, UnknownFace
from facepipe.gallery.encoder_change import EncoderChange
from facepipe.gallery.leave_one_out import named_without_themselves
from facepipe.images.reading import DEFAULT_MAX_PIXELS
from facepipe.pipeline import FacePipeline, NamingOptions, card_identity, installed_card
from facepipe.stored_faces import EncodedFace, Origin, StoredFace, encode_stored

Progress = Callable[[Iterator[EncodedFace], int], Iterable[EncodedFace]]
"""Shows how far it is: gets the faces as they are encoded, and how many there are."""


@dataclass(frozen=True, slots=True)
class ThresholdChange:
    """What becomes of an own threshold.

    Attributes:
        person: Whose; None: the gallery's.
        before_l2: For the old encoder.
        after_l2: For the new one, at the same rate of strangers; None: it is dropped, since the distances of
            strangers are not known of both encoders.
    """

    person: str | None
    before_l2: float
    after_l2: float | None

    def __str__(self) -> str:
        whose = "the gallery's own threshold" if self.person is None else f"the threshold of {self.person!r}"
        if self.after_l2 is None:
            return (
                f"{whose}, {self.before_l2:.3f}, is dropped: distances of the two encoders can't be compared"
            )
        return f"{whose}, {self.before_l2:.3f}, becomes {self.after_l2:.3f}: as many strangers lie within it"


@dataclass(frozen=True, slots=True)
class ComparedNames:
    """The names that a template would get, were it a new face.

    Attributes:
        template: The face.
        before: Its match by all others with the vectors of the old encoder.
        after: With those of the new one.
    """

    template: Template
    before: Match
    after: Match

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        template = self.template
        return {
            "id": template.id,
            "person": template.person,
            "source": template.source,
            "before": _match_record(self.before),
            "after": _match_record(self.after),
        }


def _match_record(match: Match) -> dict[str, Any]:
    return {
        "name": match.name,
        "candidate_name": match.candidate_name,
        "distance_l2": None if match.distance_l2 is None else round(match.distance_l2, 4),
        "threshold_l2": round(match.threshold_l2, 4),
        "reason": match.reason,
    }


@dataclass(frozen=True, slots=True, eq=False)
class Reembedding:
    """All of a gallery with another encoder, before the switch.

    Attributes:
        before: The encoder that the gallery has.
        change: What the gallery gets.
        encoded: All its faces, those too that can't be encoded.
        thresholds: What becomes of own thresholds.
        names: Of the templates that can be encoded, each named by all others.
    """

    before: EncoderIdentity
    change: EncoderChange
    encoded: tuple[EncodedFace, ...]
    thresholds: tuple[ThresholdChange, ...]
    names: tuple[ComparedNames, ...]

    def count_from(self, origin: Origin) -> int:
        """Return how many faces were encoded from their kept crops, or from photos."""
        return sum(face.origin is origin for face in self.encoded)

    @property
    def missing(self) -> tuple[EncodedFace, ...]:
        """The faces that can't be encoded."""
        return tuple(face for face in self.encoded if face.new is None)

    @property
    def changed(self) -> tuple[ComparedNames, ...]:
        """The templates that would get another name, or none, or one that they had not."""
        return tuple(names for names in self.names if names.before.label != names.after.label)

    @property
    def right_before(self) -> int:
        """How many templates get their person's name with the old encoder."""
        return sum(names.before.name == names.template.person for names in self.names)

    @property
    def right_after(self) -> int:
        """How many with the new one."""
        return sum(names.after.name == names.template.person for names in self.names)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "encoder_before": self.before.name,
            "encoder": self.change.encoder.name,
            "templates": len(self.change.templates),
            "unknown_faces": len(self.change.unknown),
            "from_crops": self.count_from(Origin.CROP),
            "from_photos": self.count_from(Origin.PHOTO),
            "missing": [_missing_record(face) for face in self.missing],
            "thresholds": [asdict(threshold) for threshold in self.thresholds],
            "named_as_enrolled": {"before": self.right_before, "after": self.right_after},
            "changed": [names.to_dict() for names in self.changed],
        }


def _missing_record(encoded: EncodedFace) -> dict[str, Any]:
    face = encoded.face
    person = face.person if isinstance(face, Template) else None
    return {"id": face.id, "person": person, "source": face.source, "problem": encoded.problem}


def reembed(
    gallery: Gallery,
    pipeline: FacePipeline,
    *,
    photos_from: Sequence[Path] = (),
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress = lambda faces, _: faces,
) -> Reembedding:
    """Encode all faces of a gallery with another encoder, and compare the names; `switch` comes after.

    Args:
        gallery: Nothing in it is changed.
        pipeline: Detector and the other encoder.
        photos_from: See `encode_stored`.
        max_pixels: See `encode_stored`.
        progress: See `Progress`.

    Raises:
        UsageError: The gallery is of this encoder already.
        GalleryError: The gallery is damaged, or was changed meanwhile.
    """
    before, after = _with_strangers(gallery.encoder), card_identity(pipeline.encoder.card)
    if after.makes_same_vectors_as(before):
        raise UsageError(f"{gallery.path}: the gallery holds vectors of {after.name} already")
    held = _Held.by(gallery)
    faces: list[StoredFace] = [*held.templates, *held.unknown]
    encoding = encode_stored(gallery, faces, pipeline, photos_from=photos_from, max_pixels=max_pixels)
    encoded = list(progress(encoding, len(faces)))
    thresholds = tuple(_carried_thresholds(held, before, after))
    change = _change(held, after, encoded, thresholds)
    names = _compared_names(held, before, change)
    return Reembedding(before, change, tuple(encoded), thresholds, tuple(names))


def switch(gallery: Gallery, found: Reembedding, *, drop_missing: bool = False) -> int:
    """Give a gallery the other encoder, all of it or nothing; see `Gallery.change_encoder`.

    The gallery is closed: whoever needs it opens it again, with the other encoder.

    Args:
        gallery: Of which `found` is.
        found: Of `reembed`.
        drop_missing: Erase the faces that can't be encoded.

    Returns:
        How many faces were erased.

    Raises:
        GalleryError: Some can't be encoded and are not to be erased, or the gallery was changed meanwhile.
    """
    if found.missing and not drop_missing:
        raise GalleryError(
            f"{gallery.path}: {counted(len(found.missing), 'face')} can't be encoded again, so the gallery "
            "stays as it is: say where their photos are (--photos-from), or erase them (--drop-missing)"
        )
    erased = gallery.change_encoder(found.change)
    gallery.close()
    return erased


def _with_strangers(encoder: EncoderIdentity) -> EncoderIdentity:
    """The encoder with what its card knows of strangers, where it is installed."""
    card = installed_card(encoder)
    return encoder if card is None else card_identity(card)


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """What a gallery holds in one state; templates person by person."""

    state: str
    templates: tuple[Template, ...]
    vectors: FloatArray
    unknown: tuple[UnknownFace, ...]
    threshold_l2: float | None
    person_thresholds_l2: dict[str, float]

    @classmethod
    def by(cls, gallery: Gallery) -> _Held:
        with gallery.one_state():
            people = gallery.people()
            nothing = np.zeros((0, gallery.encoder.dimensions), np.float32)
            return cls(
                gallery.state,
                tuple(template for person in people for template in gallery.templates(person.name)),
                np.concatenate([nothing, *(gallery.vectors(person.name) for person in people)]),
                tuple(gallery.unknown_faces()),
                gallery.threshold_l2,
                {p.name: p.threshold_l2 for p in people if p.threshold_l2 is not None},
            )


def _carried_thresholds(
    held: _Held, before: EncoderIdentity, after: EncoderIdentity
) -> Iterator[ThresholdChange]:
    own = {} if held.threshold_l2 is None else {None: held.threshold_l2}
    for person, before_l2 in (own | held.person_thresholds_l2).items():
        after_l2 = None
        if before.impostors is not None and after.impostors is not None:
            after_l2 = after.impostors.threshold_of_same_rate(before.impostors, before_l2)
        yield ThresholdChange(person, before_l2, after_l2)


def _change(
    held: _Held,
    after: EncoderIdentity,
    encoded: Sequence[EncodedFace],
    thresholds: Sequence[ThresholdChange],
) -> EncoderChange:
    new_l2 = {change.person: change.after_l2 for change in thresholds if change.after_l2 is not None}
    return EncoderChange(
        encoder=after,
        state=held.state,
        templates={e.face.id: e.new for e in encoded if e.new and isinstance(e.face, Template)},
        unknown={e.face.id: e.new for e in encoded if e.new and not isinstance(e.face, Template)},
        threshold_l2=new_l2.pop(None, None),
        person_thresholds_l2={person: l2 for person, l2 in new_l2.items() if person is not None},
    )


def _compared_names(held: _Held, before: EncoderIdentity, change: EncoderChange) -> list[ComparedNames]:
    """Names of the templates that both encoders know, each by all others that this encoder knows."""
    carried = [template for template in held.templates if template.id in change.templates]
    nothing = np.zeros((0, change.encoder.dimensions), np.float32)
    new_vectors = [change.templates[template.id].embedding[None] for template in carried]
    old = _named(held.templates, held.vectors, before, held.threshold_l2, held.person_thresholds_l2)
    new = _named(
        carried,
        np.concatenate([nothing, *new_vectors]),
        change.encoder,
        change.threshold_l2,
        change.person_thresholds_l2,
    )
    return [ComparedNames(template, old[template.id], new[template.id]) for template in carried]


def _named(
    templates: Sequence[Template],
    vectors: FloatArray,
    encoder: EncoderIdentity,
    threshold_l2: float | None,
    person_thresholds_l2: Mapping[str, float],
) -> dict[int, Match]:
    """Template id to its match by all others, as `FacePipeline.identify` names."""
    names = list(dict.fromkeys(template.person for template in templates))
    row_of = {name: row for row, name in enumerate(names)}
    if threshold_l2 is None:
        threshold_l2 = encoder.default_threshold_l2(len(templates), len(names))
    matches = named_without_themselves(
        vectors,
        np.array([row_of[template.person] for template in templates], np.int64),
        names,
        np.array([person_thresholds_l2.get(name, threshold_l2) for name in names]),
        min_margin_l2=NamingOptions().min_margin_l2,
    )
    return {template.id: match for template, match in zip(templates, matches, strict=True)}
