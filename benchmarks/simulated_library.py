"""A library in memory, with the product's rules: what the real one does in a transaction takes it no time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from facepipe.batch.decisions import Decision, Verdict
from facepipe.core.faces import BoolArray, FloatArray, Match
from facepipe.gallery import EncoderIdentity
from facepipe.gallery.clustering import LINK_SHARE, group_faces
from facepipe.library.library import Library
from facepipe.library.models import LibraryFace
from facepipe.library.templates import useful_templates
from facepipe.pipeline import NamingOptions

IntArray = npt.NDArray[np.int64]
NOBODY = -1


@dataclass(frozen=True, slots=True, eq=False)
class ArchiveFaces:
    """The faces of an archive, in the order of its photos.

    Attributes:
        embeddings: float32 (n, d); NaN: not encoded.
        photos: int64 (n,).
        is_enrollable: bool (n,).
        true_names: n; None: somebody in the background.
    """

    embeddings: FloatArray
    photos: IntArray
    is_enrollable: BoolArray
    true_names: Sequence[str | None]


class SimulatedLibrary:
    """What questions need of a library: faces are named as `Gallery.match` does, at its default thresholds.

    Faces have the ids "0", "1", ... in the order of the archive.

    Attributes:
        names: Of everybody who was named.
        person: int64 (n,): who each face is, a row of `names`, or `NOBODY`.
    """

    def __init__(self, archive: ArchiveFaces, encoder: EncoderIdentity) -> None:
        count = len(archive.photos)
        self._archive, self._encoder = archive, encoder
        self._encoded = np.isfinite(archive.embeddings[:, 0])
        self._vectors = np.where(self._encoded[:, None], archive.embeddings, 0).astype(np.float32)
        self._distances_l2 = np.zeros((count, 0))
        self._templates: list[int] = []
        self._decisions: list[Decision | None] = [None] * count
        self._groups = np.full(count, NOBODY)
        self.names: list[str] = []
        self.person = np.full(count, NOBODY)
        self.embeddings = self._vectors
        self.gallery: Any = SimpleNamespace(encoder=encoder)
        self.faces: dict[str, LibraryFace] = {}
        self.name_again()
        self.regroup()

    def as_library(self) -> Library:
        """Itself."""
        return cast(Library, self)

    def hidden_people(self) -> frozenset[str]:
        """Nobody."""
        return frozenset()

    def confirm(self, rows: Iterable[int], name: str) -> None:
        """Faces are a person."""
        for row in rows:
            self._decide(row, verdict=Verdict.IS, name=name)
        self._learn(name)

    def reject(self, rows: Iterable[int], name: str) -> None:
        """Faces are not a person."""
        for row in rows:
            self._decide(row, not_names=self._decision(row).not_names | {name})
            if name in self.names:
                self._distances_l2[row, self.names.index(name)] = np.inf

    def ignore(self, rows: Iterable[int]) -> None:
        """Nobody wants to name faces."""
        for row in rows:
            self._decide(row, verdict=Verdict.IGNORE)

    def _decision(self, row: int) -> Decision:
        return self._decisions[row] or Decision(str(row), "", (0, 0, 1, 1))

    def _decide(self, row: int, **changes: Any) -> None:
        self._decisions[row] = replace(self._decision(row), **changes)

    def _learn(self, name: str) -> None:
        """Make the person's confirmed faces templates, and measure all faces from them."""
        if name not in self.names:
            self.names.append(name)
            self._templates.append(0)
            self._distances_l2 = np.column_stack([self._distances_l2, np.full(len(self._vectors), np.inf)])
        decided = enumerate(self._decisions)
        own = np.array(
            [row for row, each in decided if each and each.name == name and self._encoded[row]], np.int64
        )
        best = own[self._archive.is_enrollable[own]] if self._archive.is_enrollable[own].any() else own
        if not len(best):
            return
        chosen = best[useful_templates(self._vectors[best], np.ones(len(best), np.float32))]
        mean = self._vectors[chosen].sum(axis=0)
        cosines = np.column_stack(
            [self._vectors @ self._vectors[chosen].T, self._vectors @ (mean / np.linalg.norm(mean))]
        )
        distances_l2 = np.sqrt(np.maximum(2.0 - 2.0 * cosines.max(axis=1), 0.0))
        rejected = [each is not None and name in each.not_names for each in self._decisions]
        person = self.names.index(name)
        self._distances_l2[:, person] = np.where(rejected | ~self._encoded, np.inf, distances_l2)
        self._templates[person] = len(chosen)

    def regroup(self) -> None:
        """Group the faces of nobody known that enrollment would take."""
        is_open = np.array([each is None or each.verdict is None for each in self._decisions])
        rows = np.flatnonzero(is_open & (self.person == NOBODY) & self._archive.is_enrollable)
        within_l2 = LINK_SHARE * self._encoder.threshold_l2
        labels = group_faces(
            self._vectors[rows], [str(photo) for photo in self._archive.photos[rows]], within_l2
        )
        sizes = np.bincount(labels, minlength=len(rows))
        self._groups[:] = NOBODY
        self._groups[rows] = np.where(sizes[labels] > 1, rows[labels], NOBODY)
        self._show()

    def name_again(self) -> None:
        """Name all faces."""
        first, first_l2, second, second_l2 = self._two_nearest()
        threshold_l2 = self._encoder.default_threshold_l2(
            max(sum(self._templates), 1), max(len(self.names), 1)
        )
        is_open = np.array([each is None or each.verdict is None for each in self._decisions])
        gap_l2 = np.subtract(second_l2, first_l2, out=np.zeros(len(first)), where=np.isfinite(first_l2))
        is_clear = is_open & (first_l2 <= threshold_l2) & (gap_l2 >= NamingOptions().min_margin_l2)
        self.person[:] = [
            self.names.index(each.name) if each and each.name else NOBODY for each in self._decisions
        ]
        self._name_once_a_photo(np.flatnonzero(is_clear), first, first_l2)
        self._groups[self.person != NOBODY] = NOBODY
        self._matches = first_l2, second, second_l2, threshold_l2
        self._show()

    def _two_nearest(self) -> tuple[IntArray, npt.NDArray[np.float64], IntArray, npt.NDArray[np.float64]]:
        count = len(self._vectors)
        distances_l2 = np.column_stack([self._distances_l2, np.full((count, 2), np.inf)])
        two = np.argpartition(distances_l2, 1, axis=1)[:, :2]
        each = np.take_along_axis(distances_l2, two, axis=1)
        order = np.argsort(each, axis=1)
        two, each = np.take_along_axis(two, order, axis=1), np.take_along_axis(each, order, axis=1)
        return two[:, 0], each[:, 0], two[:, 1], each[:, 1]

    def _name_once_a_photo(self, clear: IntArray, first: IntArray, first_l2: npt.NDArray[np.float64]) -> None:
        """Give each person to the nearest clear face of a photo in which no face was confirmed as them."""
        photos = self._archive.photos
        confirmed = np.flatnonzero(self.person != NOBODY)
        taken = set(zip(photos[confirmed].tolist(), self.person[confirmed].tolist(), strict=True))
        for row in clear[np.argsort(first_l2[clear], kind="stable")].tolist():
            place = int(photos[row]), int(first[row])
            if place not in taken:
                taken.add(place)
                self.person[row] = first[row]

    def _show(self) -> None:
        """Make new objects of the faces that changed."""
        first_l2, second, second_l2, threshold_l2 = self._matches
        for row, (photo, person, group) in enumerate(
            zip(self._archive.photos.tolist(), self.person.tolist(), self._groups.tolist(), strict=True)
        ):
            match = Match(
                name=None if person == NOBODY else self.names[person],
                distance_l2=_finite(first_l2[row]),
                threshold_l2=threshold_l2,
                runner_up_name=self.names[second[row]] if np.isfinite(second_l2[row]) else None,
                runner_up_distance_l2=_finite(second_l2[row]),
            )
            decision, group_or_none = self._decisions[row], None if group == NOBODY else group
            before = self.faces.get(str(row))
            if before is None or (before.match, before.decision, before.group) != (
                match,
                decision,
                group_or_none,
            ):
                self.faces[str(row)] = LibraryFace(
                    id=str(row),
                    photo_id=photo,
                    row=0,
                    box_xyxy=(0, 0, 1, 1),
                    score=1.0,
                    match=match,
                    is_enrollable=bool(self._archive.is_enrollable[row]),
                    embedding_row=row if self._encoded[row] else None,
                    decision=decision,
                    group=group_or_none,
                )


def _finite(distance_l2: float) -> float | None:
    return float(distance_l2) if np.isfinite(distance_l2) else None
