"""Decisions carried from one library to another, as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facepipe.batch.decision_table import StoredDecision
from facepipe.batch.library_checks import check_decision
from facepipe.core.counting import counted
from facepipe.core.errors import DataError, one_line
from facepipe.core.face_ids import is_face_id
from facepipe.core.files import atomic_write_bytes
from facepipe.core.json_lines import record_to_json
from facepipe.gallery.names import clean_name
from facepipe.library.changes import decision_of, decision_to_dict
from facepipe.library.library import Library
from facepipe.library.storage import PersonDisplay

FORMAT, VERSION = "facepipe decisions", 1
_MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of the decisions in a file.

    Attributes:
        taken: New, or newer than those that were there.
        older: Left out: what was decided here is newer, or the same.
        waiting: Of those taken, how many are about photos that are not in the library yet: they hold as soon
            as these are.
    """

    taken: int
    older: int
    waiting: int


def export_decisions(library: Library, file: Path) -> int:
    """Write all decisions, and how people are shown, to a JSON file; answers how many decisions.

    Raises:
        OSError: It can't be written.
    """
    decisions = [decision_to_dict(stored) for stored in library.decisions()]
    people = {
        name: {"is_hidden": display.is_hidden, "cover": display.cover_face_id}
        for name, display in library.displays().items()
    }
    record = {"format": FORMAT, "version": VERSION, "decisions": decisions, "people": people}
    atomic_write_bytes(file, f"{record_to_json(record)}\n".encode())
    return len(decisions)


def import_decisions(library: Library, file: Path) -> ImportReport:
    """Take over the decisions of a file, as one step. Of two about the same face the newer one holds.

    Raises:
        DataError: The file can't be read, or is none that `export_decisions` wrote; nothing is changed.
    """
    decisions, displays = _read(file)
    before = {stored.decision.face_id: stored for stored in library.decisions()}
    newer = [stored for stored in decisions if _is_newer(stored, before.get(stored.decision.face_id))]
    if newer or displays:
        library.take_over(newer, displays, f"{counted(len(newer), 'decision')} imported from {file.name}")
    waiting = sum(stored.decision.face_id not in library.faces for stored in newer)
    return ImportReport(len(newer), len(decisions) - len(newer), waiting)


def _is_newer(stored: StoredDecision, there: StoredDecision | None) -> bool:
    return there is None or there.decision.decided_at < stored.decision.decided_at


def _read(file: Path) -> tuple[list[StoredDecision], dict[str, PersonDisplay]]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise DataError(f"{file}: larger than 1 GB: not an export of decisions")
        record = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(
            f"{file}: not JSON ({one_line(error)}); expected `facepipe library export`"
        ) from error
    try:
        if record["format"] != FORMAT or record["version"] != VERSION:
            raise ValueError(f"expected {FORMAT!r}, version {VERSION}")
        decisions = [_checked(decision_of(values)) for values in record["decisions"]]
        return decisions, {clean_name(name): _display(values) for name, values in record["people"].items()}
    except Exception as error:  # KeyError, TypeError, ValueError, GalleryError: whatever was changed in it
        raise DataError(
            f"{file}: not as `facepipe library export` writes it ({one_line(error)}): export again"
        ) from error


def _checked(stored: StoredDecision) -> StoredDecision:
    """Require what the job file requires of a decision, and names as they are stored."""
    decision, embedding = stored.decision, stored.embedding
    if not isinstance(decision.is_drawn, bool):
        raise ValueError(f"is_drawn of {decision.face_id!r:.40}")
    check_decision(
        {
            "face_id": decision.face_id,
            "sha256": decision.photo_sha256,
            "numbers": stored.numbers,
            "verdict": decision.verdict and decision.verdict.value,
            "name": decision.name,
            "not_names": json.dumps(sorted(decision.not_names)),
            "found_name": decision.found_name,
            "is_drawn": decision.is_drawn,
            "vectors": None if embedding is None else embedding.tobytes(),
            "decided_at": decision.decided_at,
        }
    )
    for name in (decision.name, *decision.not_names, decision.found_name):
        if name is not None and clean_name(name) != name:
            raise ValueError(f"the name {name!r:.80}")
    return stored


def _display(values: dict[str, Any]) -> PersonDisplay:
    cover = values["cover"]
    if not isinstance(values["is_hidden"], bool) or not (cover is None or is_face_id(cover)):
        raise ValueError("how a person is shown")
    return PersonDisplay(values["is_hidden"], cover)
