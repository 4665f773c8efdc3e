"""Commands on galleries, to be killed."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from gallery_helpers import templates

from attacks.cases import Case
from attacks.operations import Operation, State, all_or_nothing
from attacks.processes import Ended, as_command
from attacks.workshop import KEY, KEY_GIVEN, PEOPLE, gallery_state
from facepipe.gallery import Gallery
from facepipe.gallery.archive import read_archive
from facepipe.gallery.repair import verify

_OTHER_ENCODER = "facenet_mobilefacenet_128"


def copy_gallery(case: Case, folder: Path) -> None:
    shutil.copytree(case.workshop.gallery, folder / "gallery")


def _gallery(case: Case, folder: Path, name: str = "gallery", key: str | None = None) -> State:
    """What the gallery holds, which must be whole; None where there is none, or nothing in it."""
    path = folder / name
    if not (path / "gallery.sqlite3").exists():
        return None
    secret = key.encode() if key else None
    findings = verify(path, secret=secret)
    case.require(not findings, f"{name} is not whole: {findings}")
    state = gallery_state(path, case.workshop.encoder, key)
    return state if any(state.values()) else None


def _portraits_and_gallery(case: Case, folder: Path) -> None:
    shutil.copytree(case.workshop.portraits, folder / "people" / "Ada")
    shutil.copytree(case.workshop.portraits, folder / "people" / "Bob")
    for number, photo in enumerate((folder / "people" / "Bob").iterdir()):
        photo.write_bytes(photo.read_bytes() + bytes([number]))  # Another photo with the same face.
    if case.dice.random() < 0.5:
        copy_gallery(case, folder)


def _faces(state: State) -> set[tuple[str, str]]:
    """Name and face of everything that a gallery holds."""
    people = state["people"] if state else {}
    return {(name, json.dumps(face)) for name, person in people.items() for face in person["faces"]}


def _enrolled_so_far(before: State, after: State, found: State, ended: Ended) -> bool:
    """Whole faces of the undisturbed run, all those that were told, and one more at most."""
    new = _faces(found) - _faces(before)
    lines = [line for line in ended.out.splitlines(keepends=True) if line.endswith("\n")]
    told = sum(json.loads(line)["outcome"] == "enrolled" for line in lines)
    return _faces(before) <= _faces(found) and new <= _faces(after) and told <= len(new) <= told + 1


def _archive(case: Case, folder: Path) -> None:
    copy_gallery(case, folder)
    case.run_plainly(as_command(["gallery", "export", "a.zip", "--gallery", "gallery"], folder), (0,))
    shutil.rmtree(folder / "gallery")


def _exported(case: Case, folder: Path) -> State:
    """The people in the archive and the gallery it was made of; None: there is no archive."""
    _gallery(case, folder)
    if not (folder / "a.zip").exists():
        return None
    contents = read_archive(folder / "a.zip", case.workshop.encoder)
    people = {name: len(person.templates) for name, person in contents.people.items()}
    return people | {"unknown": len(contents.unknown)}


def _other_gallery(case: Case, folder: Path) -> None:
    copy_gallery(case, folder)
    with Gallery.open(folder / "other", case.workshop.encoder, create=True) as other:
        vectors = np.eye(case.workshop.encoder.dimensions, dtype=np.float32)
        other.add("from elsewhere", templates(vectors[:3]))
        other.add(PEOPLE[1], templates(vectors[3:5]))


def _backup_and_change(case: Case, folder: Path) -> None:
    copy_gallery(case, folder)
    for words in (("backup", "copy"), ("rename", PEOPLE[2], "somebody else")):
        case.run_plainly(as_command(["gallery", *words, "--gallery", "gallery"], folder), (0,))


def _encrypted(case: Case, folder: Path) -> State:
    """With the key it opens, encrypted or not; which of both is part of the state."""
    with closing(sqlite3.connect(folder / "gallery" / "gallery.sqlite3")) as sql:
        names = [name for (name,) in sql.execute("SELECT name FROM people")]
    return {"plain": PEOPLE[0] in names} | _gallery(case, folder, key=KEY)


def _encrypted_gallery(case: Case, folder: Path) -> None:
    copy_gallery(case, folder)
    words = ["gallery", "encrypt", "--gallery", "gallery"]
    case.run_plainly(as_command(words, folder, KEY_GIVEN), (0,))


def _damaged_gallery(case: Case, folder: Path) -> None:
    copy_gallery(case, folder)
    with closing(sqlite3.connect(folder / "gallery" / "gallery.sqlite3")) as sql:
        sql.execute("UPDATE templates SET quality = 0.123 WHERE id = ?", (case.dice.randint(2, 9),))
        sql.commit()


def _repaired(case: Case, folder: Path) -> State:
    """What a gallery holds whose database is whole; of a damaged one, its rows as they are."""
    if {finding.code for finding in verify(folder / "gallery")} <= {"index", "lost"}:
        return gallery_state(folder / "gallery", case.workshop.encoder, None)
    with closing(sqlite3.connect(folder / "gallery" / "gallery.sqlite3")) as sql:
        lines = [line for line in sql.iterdump() if "'history'" not in line]  # stamped whenever it is opened
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_repaired(before: State, after: State, found: State, ended: Ended) -> bool:
    """All or nothing of the database; a killed repair may leave what the index knows to the next one."""
    if ended.was_killed and isinstance(found, dict):
        return bool(found["people"] == after["people"])
    return all_or_nothing(before, after, found, ended)


def _of_either_encoder(case: Case, folder: Path) -> State:
    findings = verify(folder / "gallery")
    case.require(not findings, f"the gallery is not whole: {findings}")
    with Gallery.open(folder / "gallery") as gallery:
        encoder, people = gallery.encoder, {p.name: len(gallery.templates(p.name)) for p in gallery.people()}
    with Gallery.open(folder / "gallery", encoder) as gallery:
        matched = {name: gallery.match(gallery.vectors(name)[:1])[0].name for name in people}
    return {"encoder": encoder.name, "people": people, "matched": matched}


_IN_GALLERY = ("--gallery", "gallery")
_ENROLL = Operation(
    _portraits_and_gallery, ("enroll", "people", "--json", *_IN_GALLERY), _gallery, _enrolled_so_far
)


def _changing(
    *words: str, prepare: Callable[[Case, Path], None] = copy_gallery, ends_alike: bool = False
) -> Operation:
    return Operation(prepare, ("gallery", *words, *_IN_GALLERY), _gallery, all_or_nothing, ends_alike)


def _converting(verb: str, prepare: Callable[[Case, Path], None]) -> Operation:
    words = ("gallery", verb, *_IN_GALLERY)
    environment = tuple(KEY_GIVEN.items())
    return Operation(prepare, words, _encrypted, all_or_nothing, ends_alike=False, environment=environment)


OPERATIONS = {
    "enroll": _ENROLL,
    "remove": _changing("remove", PEOPLE[2]),
    "rename": _changing("rename", PEOPLE[2], "somebody else"),
    "merge": _changing("merge", PEOPLE[2], PEOPLE[3]),
    "threshold": _changing("threshold", "0.77", ends_alike=True),
    "export": Operation(
        copy_gallery, ("gallery", "export", "a.zip", *_IN_GALLERY), _exported, all_or_nothing
    ),
    "import": _changing("import", "a.zip", prepare=_archive, ends_alike=True),
    "merge-from": _changing("merge-from", "other", prepare=_other_gallery, ends_alike=True),
    "backup": Operation(
        copy_gallery,
        ("gallery", "backup", "copy", *_IN_GALLERY),
        partial(_gallery, name="copy"),
        all_or_nothing,
        ends_alike=False,
    ),
    "restore": _changing("restore", "copy", prepare=_backup_and_change, ends_alike=True),
    "encrypt": _converting("encrypt", copy_gallery),
    "decrypt": _converting("decrypt", _encrypted_gallery),
    "reembed": Operation(
        copy_gallery,
        ("gallery", "reembed", "--drop-missing", "--encoder-weights", _OTHER_ENCODER, *_IN_GALLERY),
        _of_either_encoder,
        all_or_nothing,
        ends_alike=False,
    ),
    "repair": Operation(_damaged_gallery, ("gallery", "repair", *_IN_GALLERY), _repaired, _is_repaired),
}
