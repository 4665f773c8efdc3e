"""What a library keeps in its job beside decisions: how people are shown, templates, and steps."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from facepipe.batch.job import Job
from facepipe.batch.job_schema import FOLLOWED
from facepipe.library.models import Step

MAX_STEPS = 1000
"""Steps that can be undone; older ones are forgotten."""


class StepState(Enum):
    """How far a step is."""

    DOING = "doing"
    DONE = "done"
    UNDOING = "undoing"
    UNDONE = "undone"


@dataclass(frozen=True, slots=True)
class PersonDisplay:
    """How a person is shown: not at all, and with which face; None: with the best."""

    is_hidden: bool = False
    cover_face_id: str | None = None


@dataclass(frozen=True, slots=True)
class StoredStep:
    """A step with what it changed; see `facepipe.library.changes`."""

    id: int
    label: str
    made_at: str
    state: StepState
    changes: dict[str, Any]

    @property
    def step(self) -> Step:
        """The step for people to read."""
        return Step(self.id, self.label, self.made_at, self.state in (StepState.UNDOING, StepState.UNDONE))


class LibraryTables:
    """The tables of a library. Changes belong into a transaction of the job (`Job.file.changing`)."""

    def __init__(self, job: Job) -> None:
        self._file, self._database = job.file, job.file.database

    # People

    def people(self) -> dict[str, PersonDisplay]:
        """Return how people are shown, by name; of the others, nothing was chosen."""
        opened = self._file.seal.open
        rows = self._database.execute("SELECT name, is_hidden, cover FROM people")
        return {
            opened("name", name): PersonDisplay(bool(hidden), opened("cover", cover))
            for name, hidden, cover in rows
        }

    def show_person(self, name: str, display: PersonDisplay | None) -> None:
        """Remember how a person is shown; None: as by default."""
        seal = self._file.seal.seal
        self._database.execute("DELETE FROM people WHERE name = ?", (seal("name", name),))
        if display is not None and display != PersonDisplay():
            self._database.execute(
                "INSERT INTO people (name, is_hidden, cover) VALUES (?, ?, ?)",
                (seal("name", name), display.is_hidden, seal("cover", display.cover_face_id)),
            )

    # Templates

    def templates(self) -> dict[str, int]:
        """Return the ids of the gallery's templates that confirmed faces have become, by face id."""
        opened = self._file.seal.open
        rows = self._database.execute("SELECT face_id, template_id FROM templates")
        return {opened("face_id", face_id): template_id for face_id, template_id in rows}

    def set_templates(self, added: dict[str, int], removed: Iterable[str]) -> None:
        """Remember and forget templates by face id."""
        seal = self._file.seal.seal
        for face_id in [*removed, *added]:
            self._database.execute("DELETE FROM templates WHERE face_id = ?", (seal("face_id", face_id),))
        rows = [(seal("face_id", face_id), template_id) for face_id, template_id in added.items()]
        self._database.executemany("INSERT INTO templates (face_id, template_id) VALUES (?, ?)", rows)

    # The gallery

    def followed(self) -> str | None:
        """Return the state of the gallery that the names follow; None: they were never compared with one."""
        query = "SELECT value FROM settings WHERE key = ?"
        row = self._database.execute(query, (FOLLOWED,)).fetchone()
        return None if row is None else str(json.loads(row[0]))

    def set_followed(self, state: str) -> None:
        """Remember the state of the gallery that the names follow, or will with those that are due."""
        row = FOLLOWED, json.dumps(state)
        self._database.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", row)

    # Steps

    def add_step(self, label: str, changes: dict[str, Any], state: StepState) -> StoredStep:
        """Remember a step; the oldest beyond `MAX_STEPS` are forgotten."""
        seal, made_at = self._file.seal.seal, now()
        text = json.dumps(changes, ensure_ascii=False)
        row = seal("label", label), seal("changes", text), made_at, state.value
        cursor = self._database.execute(
            "INSERT INTO steps (label, changes, made_at, state) VALUES (?, ?, ?, ?)", row
        )
        assert cursor.lastrowid is not None
        self._database.execute("DELETE FROM steps WHERE id <= ?", (cursor.lastrowid - MAX_STEPS,))
        return StoredStep(cursor.lastrowid, label, made_at, state, changes)

    def set_step_state(self, step_id: int, state: StepState) -> None:
        """Remember how far a step is."""
        self._database.execute("UPDATE steps SET state = ? WHERE id = ?", (state.value, step_id))

    def steps(self, limit: int, states: Iterable[StepState] = tuple(StepState)) -> list[StoredStep]:
        """Return the newest steps that are in one of the states, the newest first."""
        wanted = [state.value for state in states]
        rows = self._database.execute(
            f"""SELECT id, label, changes, made_at, state FROM steps
            WHERE state IN ({", ".join("?" * len(wanted))}) ORDER BY id DESC LIMIT ?""",
            (*wanted, limit),
        )
        opened = self._file.seal.open
        return [
            StoredStep(
                id, opened("label", label), made_at, StepState(state), json.loads(opened("changes", changes))
            )
            for id, label, changes, made_at, state in rows
        ]


def now() -> str:
    """Return the time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
