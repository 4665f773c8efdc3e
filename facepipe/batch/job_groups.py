"""The groups of unknown faces, as the job file remembers them."""

from __future__ import annotations

from collections.abc import Mapping

from facepipe.batch.job_file import JobFile


class JobGroups:
    """Numbers of groups by face id. Every change is one transaction."""

    def __init__(self, file: JobFile) -> None:
        self._file = file

    def read(self) -> dict[str, int]:
        """Return the number of its group by face id."""
        opened = self._file.seal.open
        rows = self._file.database.execute("SELECT face_id, number FROM face_groups")
        return {opened("face_id", id): number for id, number in rows}

    def add(self, numbers: Mapping[str, int]) -> None:
        """Remember the groups of some faces, and leave others as they are."""
        with self._file.changing() as database:
            for face_id, number in numbers.items():
                sealed = self._file.seal.seal("face_id", face_id)
                database.execute("DELETE FROM face_groups WHERE face_id = ?", (sealed,))
                database.execute("INSERT INTO face_groups (face_id, number) VALUES (?, ?)", (sealed, number))

    def write(self, numbers: Mapping[str, int]) -> None:
        """Remember these groups in place of those of before."""
        before = self.read()
        with self._file.changing() as database:
            for face_id in before.keys() | numbers.keys():
                if before.get(face_id) == numbers.get(face_id):
                    continue
                sealed = self._file.seal.seal("face_id", face_id)
                database.execute("DELETE FROM face_groups WHERE face_id = ?", (sealed,))
                if face_id in numbers:
                    row = sealed, numbers[face_id]
                    database.execute("INSERT INTO face_groups (face_id, number) VALUES (?, ?)", row)
