"""The faces of a library as columns of numbers, so that 100,000 of them are compared at once."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import compress, count
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from facepipe.library.library import Library
from facepipe.library.models import LibraryFace

IntArray = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

NONE = -1
"""In columns of whole numbers: there is none."""


class FaceColumns:
    """Columns of n faces, brought up to date by `update`; only faces that changed are read again.

    Attributes:
        faces: In the order of the library.
        names: Everybody who was ever a face's name, in the order of `person`.
        embedding_row: int64 (n,), or `NONE`, as in the next columns.
        photo: int64 (n,), ids.
        person: int64 (n,), rows of `names`.
        group: int64 (n,), numbers.
        is_settled: bool (n,).
        is_enrollable: bool (n,).
        distance_l2: float64 (n,), to the nearest person; inf: none.
        runner_up_l2: float64 (n,), likewise of the next.
        threshold_l2: float64 (n,).
    """

    def __init__(self) -> None:
        self.faces: list[LibraryFace] = []
        self.names: list[str] = []
        self._row_of_name: dict[str, int] = {}
        self._resize(0)

    def update(self, faces: Sequence[LibraryFace]) -> None:
        """Read the faces that are other objects than at the last call."""
        if len(faces) != len(self.faces):
            self._resize(len(faces))
            rows = list(range(len(faces)))
        else:
            rows = list(compress(count(), map(operator.is_not, faces, self.faces)))
        self.faces = list(faces)
        if rows:
            self._read(rows, [faces[row] for row in rows])

    def _resize(self, count: int) -> None:
        self.embedding_row, self.photo, self.person, self.group = np.zeros((4, count), np.int64)
        self.is_settled, self.is_enrollable = np.zeros((2, count), np.bool_)
        self.distance_l2, self.runner_up_l2, self.threshold_l2 = np.zeros((3, count))

    def _read(self, rows: list[int], faces: list[LibraryFace]) -> None:
        self.embedding_row[rows] = [_or_none(face.embedding_row) for face in faces]
        self.photo[rows] = [face.photo_id for face in faces]
        self.person[rows] = [self._name_row(face.match.name) for face in faces]
        self.group[rows] = [_or_none(face.group) for face in faces]
        self.is_settled[rows] = [face.is_settled for face in faces]
        self.is_enrollable[rows] = [face.is_enrollable for face in faces]
        self.distance_l2[rows] = [_or_inf(face.match.distance_l2) for face in faces]
        self.runner_up_l2[rows] = [_or_inf(face.match.runner_up_distance_l2) for face in faces]
        self.threshold_l2[rows] = [face.match.threshold_l2 for face in faces]

    def _name_row(self, name: str | None) -> int:
        if name is None:
            return NONE
        row = self._row_of_name.setdefault(name, len(self.names))
        if row == len(self.names):
            self.names.append(name)
        return row


def _or_none(number: int | None) -> int:
    return NONE if number is None else number


def _or_inf(distance_l2: float | None) -> float:
    return np.inf if distance_l2 is None else distance_l2


_COLUMNS: WeakKeyDictionary[Library, FaceColumns] = WeakKeyDictionary()


def columns_of(library: Library) -> FaceColumns:
    """Return the columns of a library, up to date; they are kept as long as the library is."""
    columns = _COLUMNS.setdefault(library, FaceColumns())
    columns.update(list(library.faces.values()))
    return columns
