"""Made-up libraries: faces with names, groups and decisions, without a batch or a gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from gallery_helpers import ENCODER, person_vectors

from facepipe.batch.decisions import Decision, Verdict
from facepipe.core.faces import FloatArray, Match
from facepipe.library.library import Library
from facepipe.library.models import LibraryFace

THRESHOLD_L2 = 1.0


@dataclass(eq=False)
class MadeUpLibrary:
    """What questions and advice read of a library; `as_library` for mypy."""

    faces: dict[str, LibraryFace] = field(default_factory=dict)
    embeddings: FloatArray = field(default_factory=lambda: np.zeros((0, 128), np.float32))
    gallery: Any = field(
        default_factory=lambda: SimpleNamespace(
            encoder=ENCODER, default_threshold_l2=THRESHOLD_L2, people=lambda: []
        )
    )

    hidden: frozenset[str] = frozenset()

    def add(self, vectors: FloatArray, photos: Sequence[int] | None = None, **face: Any) -> list[str]:
        """Add a face of each vector, each in a photo of its own; returns their ids. See `made_face`."""
        first = len(self.embeddings)
        self.embeddings = np.concatenate([self.embeddings, vectors])
        rows = range(first, first + len(vectors))
        for row, photo in zip(rows, photos or rows, strict=True):
            made = made_face(row, photo, **face)
            self.faces[made.id] = made
        return [face_id(row) for row in rows]

    def hidden_people(self) -> frozenset[str]:
        """As given."""
        return self.hidden

    def as_library(self) -> Library:
        """Itself."""
        return cast(Library, self)


def face_id(row: int) -> str:
    """Of the face of a row of embeddings."""
    return f"{row:012x}"


def made_face(
    row: int,
    photo: int,
    name: str | None = None,
    distance_l2: float | None = None,
    group: int | None = None,
    is_confirmed: bool = False,
    verdict: Verdict | None = None,
    not_names: Sequence[str] = (),
) -> LibraryFace:
    """A face that can be enrolled."""
    decision = None
    if is_confirmed or verdict or not_names:
        verdict = Verdict.IS if is_confirmed else verdict
        decision = Decision(
            face_id(row), "", (0, 0, 1, 1), verdict, name if is_confirmed else None, frozenset(not_names)
        )
    match = Match(name, distance_l2, THRESHOLD_L2)
    return LibraryFace(face_id(row), photo, 0, (0, 0, 1, 1), 1.0, match, True, row, decision, group)


def library_of(people: Mapping[str, int], spread: float = 0.05) -> MadeUpLibrary:
    """People with so many confirmed faces each."""
    library = MadeUpLibrary()
    for seed, (name, count) in enumerate(people.items()):
        library.add(person_vectors(seed, count, spread), name=name, distance_l2=0.0, is_confirmed=True)
    return library
