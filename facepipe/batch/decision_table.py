"""The decisions in a job file, and what they make of the matches of a gallery."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from sqlite3 import Connection
from typing import Any

import numpy as np

from facepipe.batch.decisions import Decision, Verdict
from facepipe.batch.rows import faces_of
from facepipe.batch.seal import Seal
from facepipe.core.face_ids import same_faces
from facepipe.core.faces import Faces, FloatArray

DECISION_COLUMNS = (
    "face_id, sha256, numbers, verdict, name, not_names, found_name, is_drawn, vectors, decided_at"
)


@dataclass(frozen=True, slots=True, eq=False)
class StoredDecision:
    """A decision with the face that it is about.

    Attributes:
        decision: What was decided.
        numbers: Box, score and landmarks; see `facepipe.batch.rows`.
        embedding: float32 (d,) of a face drawn by hand that could be encoded; None for all others.
    """

    decision: Decision
    numbers: bytes
    embedding: FloatArray | None = None

    @property
    def face(self) -> Faces:
        """The face, one row."""
        return faces_of(self.numbers)


class DecisionTable:
    """The decisions of a job, all of them in memory and each change of them in the file.

    Args:
        database: Of the job.
        seal: Gives the seal of the job.
    """

    def __init__(self, database: Connection, seal: Callable[[], Seal]) -> None:
        self._database, self._seal = database, seal
        self._by_face: dict[str, StoredDecision] = {}
        self._by_photo: dict[str, dict[str, StoredDecision]] = defaultdict(dict)
        self.read()

    def read(self) -> None:
        """Read all decisions from the file."""
        self._by_face.clear()
        self._by_photo.clear()
        for row in self._database.execute(f"SELECT {DECISION_COLUMNS} FROM decisions"):
            self._remember(decision_of_row(row, self._seal()))

    def __len__(self) -> int:
        return len(self._by_face)

    def __iter__(self) -> Iterator[StoredDecision]:
        return iter(self._by_face.values())

    def get(self, face_id: str) -> StoredDecision | None:
        """Return what was decided about a face; None: nothing."""
        return self._by_face.get(face_id)

    def decision(self, face_id: str) -> Decision | None:
        """Return the decision about a face without its face; None: there is none."""
        stored = self._by_face.get(face_id)
        return None if stored is None else stored.decision

    def of_photo(self, photo_sha256: str) -> list[StoredDecision]:
        """Return the decisions about the faces of a photo."""
        return list(self._by_photo.get(photo_sha256, {}).values())

    def of_rows(self, photo_sha256: str, boxes_xyxy: FloatArray) -> list[StoredDecision | None]:
        """Return the decision about each of a photo's faces, boxes (n, 4); None: there is none."""
        stored = self.of_photo(photo_sha256)
        if not stored:
            return [None] * len(boxes_xyxy)
        others = np.concatenate([decision.face.boxes_xyxy for decision in stored])
        return [None if row is None else stored[row] for row in same_faces(boxes_xyxy, others)]

    def put(self, stored: StoredDecision) -> None:
        """Write a decision in place of the one about the same face, or remove that where this one is empty.

        Inside a transaction; whoever rolls it back calls `read`.
        """
        decision, seal = stored.decision, self._seal()
        self.remove(decision.face_id)
        if decision.is_empty:
            return
        embedding = None if stored.embedding is None else stored.embedding.astype("<f4").tobytes()
        values = (
            seal.seal("face_id", decision.face_id),
            seal.seal("sha256", decision.photo_sha256),
            stored.numbers,
            decision.verdict and decision.verdict.value,
            seal.seal("name", decision.name),
            seal.seal("not_names", json.dumps(sorted(decision.not_names), ensure_ascii=False)),
            seal.seal("found_name", decision.found_name),
            decision.is_drawn,
            seal.seal("vectors", embedding),
            decision.decided_at,
        )
        marks = ", ".join("?" * len(values))
        self._database.execute(f"INSERT INTO decisions ({DECISION_COLUMNS}) VALUES ({marks})", values)
        self._remember(stored)

    def remove(self, face_id: str) -> None:
        """Forget what was decided about a face. Inside a transaction."""
        self._database.execute(
            "DELETE FROM decisions WHERE face_id = ?", (self._seal().seal("face_id", face_id),)
        )
        stored = self._by_face.pop(face_id, None)
        if stored is not None:
            del self._by_photo[stored.decision.photo_sha256][face_id]

    def forget_people(self, names: Collection[str]) -> None:
        """Leave no word of people in what was decided. Inside a transaction."""
        for stored in list(self):
            decision = stored.decision
            if decision.name in names:
                decision = replace(decision, verdict=None, name=None)
            if decision.found_name in names:
                decision = replace(decision, found_name=None)
            not_names = decision.not_names - set(names)
            self.put(replace(stored, decision=replace(decision, not_names=not_names)))

    def _remember(self, stored: StoredDecision) -> None:
        decision = stored.decision
        self._by_face[decision.face_id] = stored
        self._by_photo[decision.photo_sha256][decision.face_id] = stored


def box_of(numbers: bytes) -> tuple[float, float, float, float]:
    """Return the box of the first face of `numbers`."""
    left, top, right, bottom = faces_of(numbers).boxes_xyxy[0].tolist()
    return left, top, right, bottom


def decision_of_row(row: Sequence[Any], seal: Seal) -> StoredDecision:
    """Read a row of `DECISION_COLUMNS`."""
    face_id, sha256, numbers, verdict, name, not_names, found_name, is_drawn, embedding, decided_at = row
    opened = seal.open
    decision = Decision(
        face_id=opened("face_id", face_id),
        photo_sha256=opened("sha256", sha256),
        box_xyxy=box_of(numbers),
        verdict=None if verdict is None else Verdict(verdict),
        name=opened("name", name),
        not_names=frozenset(json.loads(opened("not_names", not_names))),
        found_name=opened("found_name", found_name),
        is_drawn=bool(is_drawn),
        decided_at=decided_at,
    )
    vector = None if embedding is None else np.frombuffer(opened("vectors", embedding), "<f4")
    return StoredDecision(decision, numbers, vector)
