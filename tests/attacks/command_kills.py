"""Commands killed at random moments, and begun again: what they told is there, and nothing is half there.

An operation is run undisturbed once; what it leaves is what a killed one may leave, or else what was there
before. All runs are at the same path, so that results with paths in them can be compared byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from batch_helpers import job_of
from gallery_helpers import ENCODER, templates

from attacks.cases import TIME_LIMIT_S, Attack, Case
from attacks.processes import Ended, Rehearsal, Work, as_command, as_real_command, kill_at_random, rehearse
from attacks.workshop import KEY, KEY_GIVEN, PEOPLE, gallery_state
from facepipe.errors import FacepipeError
from gallery import Gallery
from gallery.archive import read_archive
from gallery.repair import verify
from weights.card import EmbeddingSpec, InputSpec, WeightCard, WeightFile
from weights.registry import read_card
from weights.storage import read_parameters, write_weight

_KILLS = 4
_REAL_SHARE = 0.1
"""Of the kills that meet an interpreter of their own, which takes a second to begin."""
State = Any
"""What an operation works on, in a form that can be compared."""


@dataclass(frozen=True)
class Operation:
    """What is killed.

    Attributes:
        prepare: Fills the folder; called once a case.
        words: The command, run in the folder; or, as a function of the folder, calls of the library.
        state: What is in the folder; None where there is nothing.
        is_allowed: Whether a killed process may leave `found`, of the states `before` and `after`.
        ends_alike: Begun again, it comes to the same end as if never killed.
        codes: Exit codes of an undisturbed run.
        environment: Of the command.
    """

    prepare: Callable[[Case, Path], None]
    words: tuple[str, ...] | Callable[[Path], object]
    state: Callable[[Case, Path], State]
    is_allowed: Callable[[State, State, State, Ended], bool]
    ends_alike: bool = True
    codes: tuple[int, ...] = (0,)
    environment: tuple[tuple[str, str], ...] = ()

    def work(self, folder: Path, *, real: bool = False) -> Work:
        """As a process does it."""
        if callable(self.words):
            return partial(self.words, folder)
        return (as_real_command if real else as_command)(self.words, folder, dict(self.environment))


def all_or_nothing(before: State, after: State, found: State, ended: Ended) -> bool:
    """Nothing was changed, or all; all, where the command ended well."""
    return bool(found == after or (found == before and ended.was_killed))


def kill_often(operation: Operation, case: Case) -> None:
    """Kill it several times, each time from the beginning, and then on what a killed one left."""
    folder, rehearsed = _rehearsed(operation, case)
    _, after, rehearsal = rehearsed
    for _ in range(_KILLS):
        _begin(folder)
        _killed_once(operation, case, folder, rehearsed)
    if operation.ends_alike:
        _kill_on_the_way(operation, case, folder, rehearsal)
        found = operation.state(case, folder)
        case.require(found == after, f"killed and begun again: {_difference(found, after)}")


def leave_nothing(case: Case) -> None:
    """Kill an operation and begin it again: no hidden file of what was being written may be left."""
    operation = OPERATIONS[case.dice.choice([name for name, each in OPERATIONS.items() if each.ends_alike])]
    folder, (_, _, rehearsal) = _rehearsed(operation, case)
    _begin(folder)
    _kill_on_the_way(operation, case, folder, rehearsal)
    left = [str(file.relative_to(folder)) for file in folder.rglob(".*")]
    left += [str(file.relative_to(folder)) for file in folder.rglob("*.new-*")]
    case.require(not left, f"{operation.words}: left {left}")
    case.count("clean")


def _rehearsed(operation: Operation, case: Case) -> tuple[Path, tuple[State, State, Rehearsal]]:
    folder = case.folder / "work"
    folder.mkdir()
    operation.prepare(case, folder)
    before = operation.state(case, folder)
    shutil.copytree(folder, case.folder / "beginning", symlinks=True)
    ended, rehearsal = rehearse(operation.work(folder), TIME_LIMIT_S)
    case.require_plain(ended, operation.codes)
    return folder, (before, operation.state(case, folder), rehearsal)


def _begin(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("beginning"), folder, symlinks=True)


def _killed_once(
    operation: Operation, case: Case, folder: Path, rehearsed: tuple[State, State, Rehearsal]
) -> None:
    before, after, rehearsal = rehearsed
    if not callable(operation.words) and case.dice.random() < _REAL_SHARE:
        seconds = case.run(operation.work(folder, real=True)).seconds
        _begin(folder)
        ended = kill_at_random(
            operation.work(folder, real=True), Rehearsal(seconds, 0), case.dice, TIME_LIMIT_S
        )
    else:
        ended = kill_at_random(operation.work(folder), rehearsal, case.dice, TIME_LIMIT_S)
    if not ended.was_killed:
        case.require_plain(ended, operation.codes)
    found = operation.state(case, folder)
    kept = operation.is_allowed(before, after, found, ended)
    case.require(kept, f"after {ended.out[-600:]!r} (exit code {ended.code}): {_difference(found, after)}")
    if ended.was_killed:
        case.count("done" if found == after else "undone" if found == before else "in part")


def _kill_on_the_way(operation: Operation, case: Case, folder: Path, rehearsal: Rehearsal) -> None:
    """Kill it up to three times where the one before left it, then let it end."""
    for _ in range(case.dice.randint(1, 3)):
        kill_at_random(operation.work(folder), rehearsal, case.dice, TIME_LIMIT_S)
    case.run_plainly(operation.work(folder), operation.codes)


def _difference(found: State, expected: State) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        return "; ".join(f"{key}: {found.get(key)!r:.300}, not {expected.get(key)!r:.300}" for key in keys[:5])
    return f"{found!r:.600}, not {expected!r:.600}"


# Galleries


def _copy_gallery(case: Case, folder: Path) -> None:
    shutil.copytree(case.workshop.gallery, folder / "gallery")


def _gallery(case: Case, folder: Path, name: str = "gallery", key: str | None = None) -> State:
    """What the gallery holds, which must be whole; None where there is none."""
    path = folder / name
    if not (path / "gallery.sqlite3").exists():
        return None
    secret = key.encode() if key else None
    findings = verify(path, secret=secret)
    case.require(not findings, f"{name} is not whole: {findings}")
    return gallery_state(path, case.workshop.encoder, key)


def _portraits_and_gallery(case: Case, folder: Path) -> None:
    shutil.copytree(case.workshop.portraits, folder / "people" / "Ada")
    shutil.copytree(case.workshop.portraits, folder / "people" / "Bob")
    for number, photo in enumerate((folder / "people" / "Bob").iterdir()):
        photo.write_bytes(photo.read_bytes() + bytes([number]))  # Another photo with the same face.
    if case.dice.random() < 0.5:
        _copy_gallery(case, folder)


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
    _copy_gallery(case, folder)
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
    _copy_gallery(case, folder)
    with Gallery.open(folder / "other", case.workshop.encoder, create=True) as other:
        vectors = np.eye(case.workshop.encoder.dimensions, dtype=np.float32)
        other.add("from elsewhere", templates(vectors[:3]))
        other.add(PEOPLE[1], templates(vectors[3:5]))


def _encrypted(case: Case, folder: Path) -> State:
    """With the key it opens, encrypted or not; which of both is part of the state."""
    with closing(sqlite3.connect(folder / "gallery" / "gallery.sqlite3")) as sql:
        names = [name for (name,) in sql.execute("SELECT name FROM people")]
    return {"plain": PEOPLE[0] in names} | _gallery(case, folder, key=KEY)


def _encrypted_gallery(case: Case, folder: Path) -> None:
    _copy_gallery(case, folder)
    words = ["gallery", "encrypt", "--gallery", "gallery"]
    case.run_plainly(as_command(words, folder, KEY_GIVEN), (0,))


def _damaged_gallery(case: Case, folder: Path) -> None:
    _copy_gallery(case, folder)
    with closing(sqlite3.connect(folder / "gallery" / "gallery.sqlite3")) as sql:
        sql.execute("UPDATE templates SET quality = 0.123 WHERE id = ?", (case.dice.randint(2, 9),))
        sql.commit()


def _repaired(case: Case, folder: Path) -> State:
    """What a whole gallery holds; of a damaged one, its rows as they are."""
    if not verify(folder / "gallery"):
        return _gallery(case, folder)
    with closing(sqlite3.connect(folder / "gallery" / "gallery.sqlite3")) as sql:
        return hashlib.sha256("\n".join(sql.iterdump()).encode()).hexdigest()


# Batches


def _photos_and_gallery(case: Case, folder: Path) -> None:
    """Photos, some of which an earlier batch may have dealt with."""
    _copy_gallery(case, folder)
    shutil.copytree(case.workshop.photos, folder / "photos")
    if case.dice.random() < 0.3:
        photos = sorted(file for file in (folder / "photos").rglob("*") if file.is_file())
        for photo in case.dice.sample(photos, len(photos) // 2):
            photo.rename(folder / f"later {photo.name}")
        case.run_plainly(as_command(_BATCH, folder), (0, 1, 3))
        for photo in folder.glob("later *"):
            photo.rename(folder / "photos" / photo.name)


_BATCH = (
    *("batch", "photos", "--gallery", "gallery", "--out", "out", "--annotate", "--crops", "--xmp"),
    *("--workers", "2", "--batch-size", "2", "--quiet"),
)


def _files(folder: Path) -> Iterator[Path]:
    """What others are to read."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith((".", "job.sqlite3")):
            yield file


def _results(case: Case, folder: Path) -> State:
    """Every file of the results and beside the photos, with its content."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for part in ("photos", "out")
        for file in _files(folder / part)
    }


def _whole_files(before: State, after: State, found: State, ended: Ended) -> bool:
    """Each file as before or as after."""
    return all(found.get(name) in (before.get(name), after.get(name)) for name in found | before)


# Sorting


def _sorted_job(case: Case, folder: Path) -> None:
    """A job with small files for photos, some with sidecars, some of one name."""
    people = {}
    for number in range(8):
        photo = folder / "photos" / f"folder {number % 3}" / f"{number // 2}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(case.dice.randbytes(case.dice.randrange(1, 200_000)))
        if number % 2:
            photo.with_name(f"{photo.name}.xmp").write_bytes(case.dice.randbytes(500))
        people[photo] = case.dice.sample(["Ada", "Bob", "Eve"], case.dice.randint(1, 2))
    job_of(folder / "job", people)


def _move(folder: Path, *, over_to_another_disk: bool) -> None:
    """`facepipe sort --move`; a file system without hard links stands for another disk."""
    if over_to_another_disk:

        def refuse(*_: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        os.link = refuse
    as_command(["sort", "job", "--to", "sorted", "--move"], folder)()


def _moved(case: Case, folder: Path) -> State:
    """Where every content is; hidden files are not looked at."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for part in ("photos", "sorted")
        for file in _files(folder / part)
    }


def _nothing_lost(before: State, after: State, found: State, ended: Ended) -> bool:
    """Every photo and sidecar is whole, where it was or where it goes, and there where that was told."""
    lines = [line for line in ended.out.splitlines(keepends=True) if line.endswith("\n")]
    told = [line.rstrip("\n").split(" -> ")[1] for line in lines]
    is_known = all(found[name] in (before.get(name), after.get(name)) for name in found)
    return is_known and set(before.values()) <= set(found.values()) and all(name in found for name in told)


# Weights


def _card(name: str) -> WeightCard:
    return WeightCard(
        name=name,
        kind="encoder",
        architecture="facenet_mobilenetv1_128",
        input=InputSpec(channels="rgb", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size_px=112),
        parameters=WeightFile(f"{name}.safetensors", None),
        embedding=EmbeddingSpec(dimensions=ENCODER.dimensions, alignment="arcface"),
    )


def _write_weight(folder: Path, value: float = 1.0) -> None:
    parameters = {"kernel": np.full(100_000, value, np.float32)}
    onnx = np.full(50_000, value, np.float32).tobytes()
    write_weight(folder / "weights", _card("new"), parameters, onnx, replace_existing=True)


def _old_weight(case: Case, folder: Path) -> None:
    _write_weight(folder, 2.0)


def _weight(case: Case, folder: Path) -> State:
    """Its values; None where there is no card; "unusable" where the files are not those of the card."""
    card = folder / "weights" / "new.json"
    if not card.exists():
        return None
    try:
        return float(read_parameters(read_card(card))["kernel"][0])
    except FacepipeError as error:
        return f"unusable: {error}"


_IN_GALLERY = ("--gallery", "gallery")
_ENROLL = Operation(
    _portraits_and_gallery, ("enroll", "people", "--json", *_IN_GALLERY), _gallery, _enrolled_so_far
)


def _changing(
    *words: str, prepare: Callable[[Case, Path], None] = _copy_gallery, ends_alike: bool = False
) -> Operation:
    return Operation(prepare, ("gallery", *words, *_IN_GALLERY), _gallery, all_or_nothing, ends_alike)


def _converting(verb: str, prepare: Callable[[Case, Path], None]) -> Operation:
    words = ("gallery", verb, *_IN_GALLERY)
    environment = tuple(KEY_GIVEN.items())
    return Operation(prepare, words, _encrypted, all_or_nothing, ends_alike=False, environment=environment)


def _moving(*, over_to_another_disk: bool) -> Operation:
    words = partial(_move, over_to_another_disk=over_to_another_disk)
    return Operation(_sorted_job, words, _moved, _nothing_lost)


OPERATIONS = {
    "enroll": _ENROLL,
    "remove": _changing("remove", PEOPLE[2]),
    "rename": _changing("rename", PEOPLE[2], "somebody else"),
    "merge": _changing("merge", PEOPLE[2], PEOPLE[3]),
    "threshold": _changing("threshold", "0.77", ends_alike=True),
    "export": Operation(_copy_gallery, ("gallery", "export", "a.zip", *_IN_GALLERY), _exported, all_or_nothing),
    "import": _changing("import", "a.zip", prepare=_archive, ends_alike=True),
    "merge-from": _changing("merge-from", "other", prepare=_other_gallery, ends_alike=True),
    "backup": Operation(
        _copy_gallery,
        ("gallery", "backup", "copy", *_IN_GALLERY),
        partial(_gallery, name="copy"),
        all_or_nothing,
        ends_alike=False,
    ),
    "encrypt": _converting("encrypt", _copy_gallery),
    "decrypt": _converting("decrypt", _encrypted_gallery),
    "repair": Operation(_damaged_gallery, ("gallery", "repair", *_IN_GALLERY), _repaired, all_or_nothing),
    "batch": Operation(_photos_and_gallery, _BATCH, _results, _whole_files, codes=(0, 3)),
    "sort --move": _moving(over_to_another_disk=False),
    "sort --move to another disk": _moving(over_to_another_disk=True),
    "new weight": Operation(lambda *_: None, _write_weight, _weight, all_or_nothing),
    "replaced weight": Operation(_old_weight, _write_weight, _weight, all_or_nothing),
}
ATTACKS = [
    *(Attack("kills", name, partial(kill_often, operation)) for name, operation in OPERATIONS.items()),
    Attack("kills", "left-over files", leave_nothing),
]
