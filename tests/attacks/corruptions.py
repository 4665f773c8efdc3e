"""Files with random damage: never a wrong name, never a face less without a word.

What is read from a damaged file is compared with what the whole one holds: the same, less with a
complaint, or an error of one line with the documented exit code.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from batch_helpers import NAME
from gallery_helpers import person_vectors, template

from attacks.cases import Attack, Case
from attacks.damage import damaged
from attacks.processes import Word, as_command, start
from attacks.workshop import KEY, KEY_GIVEN, PEOPLE, Workshop, contents_of, gallery_state, run
from facepipe.core.errors import FacepipeError
from facepipe.gallery import Gallery
from facepipe.weights.files import read_onnx, read_parameters
from facepipe.weights.registry import load_card, shipped_folder

_TRIES = 3
_IDENTIFY_SHARE = 0.1
_DATABASE = "gallery.sqlite3"
Answers = dict[str, Any]
"""What a gallery holds (`contents_of`), and under "names" whom it sees in `_probes`."""


# Galleries


def _probes() -> Any:
    """float32 (n, 128): a new photo of every made-up person, and strangers."""
    seen = [person_vectors(number, 12)[11:] for number in range(len(PEOPLE) + 4)]
    return np.concatenate([*seen, *(person_vectors(seed, 1) for seed in range(1000, 1010))])


def _answers(gallery: Gallery) -> Answers:
    matches = gallery.match(_probes(), one_person_per_photo=False)
    return contents_of(gallery) | {"names": [match.name for match in matches]}


def _tell_answers(folder: Path, workshop: Workshop, secret: bytes | None = None) -> None:
    """Write them to stdout; an error of the library ends the process as it ends a command."""
    try:
        with Gallery.open(folder, workshop.encoder, secret=secret) as gallery:
            print(json.dumps(_answers(gallery)))
    except FacepipeError as error:
        print(f"facepipe: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error


def wrong(found: Answers, intact: Answers, *, repaired: bool = False) -> str | None:
    """What is wrong in answers, where that is more than something missing.

    Of a face in a damaged row, the person must be right; in a repaired gallery all that is there.
    """
    for now, before in zip(found["names"], intact["names"], strict=True):
        if now not in (None, before):
            return f"a face of {before} was named {now}"
    for name, person in found["people"].items():
        if name not in intact["people"]:
            return f"a person {name!r} who was never there"
        known = intact["people"][name]
        damaged_faces = [face for face in person["faces"] if face not in known["faces"]]
        if damaged_faces and (repaired or any(_is_of_another(face, name, intact) for face in damaged_faces)):
            return f"faces of {name} that are not theirs: {str(damaged_faces)[:200]}"
        if person["threshold"] not in (None, known["threshold"]):
            return f"the threshold of {name} is {person['threshold']}"
    # An index that is ahead brings lost faces back, without their names.
    vectors = {face[2] for person in intact["people"].values() for face in person["faces"]}
    never = [face for face in found["unknown"] if face not in intact["unknown"] and face[2] not in vectors]
    if repaired and never:
        return f"unknown faces that were never there: {str(never)[:200]}"
    return (
        None
        if found["threshold"] in (None, intact["threshold"])
        else f"the threshold is {found['threshold']}"
    )


def _is_of_another(face: list[Any], name: str, intact: Answers) -> bool:
    """Whether photo or vector are those of another person's face."""
    others = [
        known for other, person in intact["people"].items() if other != name for known in person["faces"]
    ]
    return any(face[part] is not None and face[part] == known[part] for known in others for part in range(3))


def _judge(case: Case, folder: Path, states: list[Answers], key: str | None = None) -> None:
    """Ask a damaged gallery, verify it, repair it and ask again. `states` are those that it may have."""
    environment = {} if key is None else KEY_GIVEN
    secret = None if key is None else key.encode()
    ask = partial(_tell_answers, folder, case.workshop, secret)
    asked = case.run_plainly(ask, (0, 1))
    verified = case.run_plainly(
        as_command(["gallery", "verify", "--gallery", folder], folder.parent, environment), (0, 1)
    )
    if asked.code == 0:
        found = json.loads(asked.out)
        faults = [wrong(found, state) for state in states]
        case.require(None in faults, f"{faults[0]}; verify: {verified.out[:300]}{verified.err[:300]}")
        told = verified.code == 1 or bool(asked.err.strip())
        case.require(found in states or told, "something is missing, and nothing was told")
        case.require(verified.code == 1 or found in states, "verify passes a gallery that lost something")
        outcome = "the same" if found in states else "told"
    else:
        outcome = "refused"
    if case.dice.random() < _IDENTIFY_SHARE:
        _require_right_names(case, folder, environment)
    words: list[Word] = ["gallery", "repair", "--gallery", folder]
    repaired = case.run_plainly(as_command(words, folder.parent, environment), (0, 1))
    if repaired.code == 0:
        again = case.run_plainly(ask, (0, 1))
        case.require(again.code == 0, f"repaired, and refused: {again.err}")
        found = json.loads(again.out)
        faults = [wrong(found, state, repaired=True) for state in states]
        case.require(None in faults, f"after repair: {faults}")
        told = bool(repaired.out.strip()) or outcome == "told"
        case.require(found in states or told, "after repair something is missing, and nothing was told")
    case.count(outcome)


def _require_right_names(case: Case, folder: Path, environment: dict[str, str]) -> None:
    """Ask by `identify` who is in the portraits."""
    words: list[Word] = ["identify", case.workshop.portraits, "--json", "--gallery", folder]
    ended = case.run_plainly(as_command(words, folder.parent, environment), (0, 1))
    named = [face["name"] for line in ended.out.splitlines() for face in json.loads(line)["faces"]]
    case.require(set(named) <= {NAME, None}, f"identify named {named}")


def _corrupt(case: Case, file: Path) -> None:
    file.write_bytes(damaged(file.read_bytes(), case.dice))


def _gallery_file(case: Case, name: str) -> None:
    intact = _intact(case)
    for _ in range(_TRIES):
        folder = _fresh(case, case.workshop.gallery)
        _corrupt(case, folder / name)
        _judge(case, folder, [intact])


def _intact(case: Case, key: str | None = None) -> Answers:
    folder = _fresh(case, _encrypted(case) if key else case.workshop.gallery)
    told = case.run(partial(_tell_answers, folder, case.workshop, key.encode() if key else None))
    answers: Answers = json.loads(told.out)
    return answers


def _fresh(case: Case, template_folder: Path) -> Path:
    """A copy to be damaged, in place of the one before."""
    for folder in case.folder.glob("g*"):  # With what repair put aside.
        shutil.rmtree(folder)
    return Path(shutil.copytree(template_folder, case.folder / "g"))


def _encrypted(case: Case) -> Path:
    folder = case.workshop.folder / "encrypted gallery"
    if not folder.exists():
        shutil.copytree(case.workshop.gallery, folder)
        run(as_command(["gallery", "encrypt", "--gallery", folder], case.workshop.folder, KEY_GIVEN))
    return folder


def _encrypted_gallery(case: Case) -> None:
    intact = _intact(case, KEY)
    folder = _fresh(case, _encrypted(case))
    _corrupt(case, folder / _DATABASE)
    _judge(case, folder, [intact], KEY)


# The write-ahead log


def _logged(case: Case, name: str, first: int) -> tuple[Path, list[Answers]]:
    """A gallery whose last changes are in its log, since its writer was killed; and all its states."""
    folder, states_file = case.workshop.folder / name, case.workshop.folder / f"{name}.json"
    if not folder.exists():
        shutil.copytree(case.workshop.gallery, folder)
        told = start(partial(_change_and_die, folder, case.workshop, first)).wait(600)
        states_file.write_text(json.dumps([json.loads(line) for line in told.out.splitlines()]))
    return folder, json.loads(states_file.read_text())


def _change_and_die(folder: Path, workshop: Workshop, first: int) -> None:
    """Make changes, writing the answers after each."""
    gallery = Gallery.open(folder, workshop.encoder)
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: gallery.rename(PEOPLE[first], "renamed"),
        lambda: gallery.add("new", [template(person_vectors(6 + first, 1)[0], f"{60 + first}")]),
        lambda: gallery.merge(PEOPLE[first + 1], PEOPLE[first + 2]),
        lambda: gallery.set_threshold(1.0),
        lambda: gallery.add("newer", [template(person_vectors(8 + first, 1)[0], f"{80 + first}")]),
    ]
    for change in changes:
        change()
        print(json.dumps(_answers(gallery)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _log(case: Case) -> None:
    """A log cut short by damage may leave any earlier state, and no mixture (docs/gallery.md, "Limits")."""
    for _ in range(_TRIES):
        template_folder, states = _logged(case, "logged gallery", 0)
        folder = _fresh(case, template_folder)
        _corrupt(case, folder / f"{_DATABASE}-wal")
        _judge(case, folder, states)


def _log_of_another(case: Case) -> None:
    """The log of another gallery, or of another time, beside the database."""
    mine, states = _logged(case, "logged gallery", 0)
    other, _ = _logged(case, "other logged gallery", 1)
    folder = _fresh(case, case.dice.choice([mine, case.workshop.gallery]))
    states = states if (folder / f"{_DATABASE}-wal").exists() else [_intact_kept(case, folder)]
    for ending in ("-wal", "-shm") if case.dice.random() < 0.5 else ("-wal",):
        (folder / f"{_DATABASE}-shm").unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            shutil.copyfile(other / f"{_DATABASE}{ending}", folder / f"{_DATABASE}{ending}")
    _judge(case, folder, states)


def _intact_kept(case: Case, folder: Path) -> Answers:
    """What a gallery answers, asked by a copy."""
    copy = Path(shutil.copytree(folder, case.folder / "kept"))
    answers: Answers = json.loads(case.run(partial(_tell_answers, copy, case.workshop)).out)
    shutil.rmtree(copy)
    return answers


def _index_of_another(case: Case) -> None:
    intact = _intact(case)
    folder, other = _fresh(case, case.workshop.gallery), case.folder / "other"
    with Gallery.open(other, case.workshop.encoder, create=True) as gallery:
        for number, name in enumerate(reversed(PEOPLE)):
            gallery.add(name, [template(vector) for vector in person_vectors(number, 3)])
    names = ["index.faiss", "index.faiss.json"]
    for name in case.dice.choice([names, names[:1], names[1:]]):
        shutil.copyfile(other / name, folder / name)
    _judge(case, folder, [intact])


# Archives, jobs, weights


def _archive(case: Case) -> None:
    """An import takes all of it as it was, or nothing."""
    whole = case.workshop.folder / "archive.zip"
    if not whole.exists():
        run(as_command(["gallery", "export", whole, "--gallery", case.workshop.gallery], case.folder))
    intact = gallery_state(case.workshop.gallery, case.workshop.encoder)
    for number in range(_TRIES):
        file, folder = case.folder / f"{number}.zip", case.folder / f"imported {number}"
        file.write_bytes(damaged(whole.read_bytes(), case.dice))
        words: list[Word] = ["gallery", "import", file, "--gallery", folder]
        ended = case.run_plainly(as_command(words, case.folder), (0, 1))
        if ended.code == 0:
            found = gallery_state(folder, case.workshop.encoder)
            case.require(_by_name(found) == _by_name(intact), "the import holds other faces than the archive")
        else:
            case.require(not (folder / _DATABASE).exists(), "a refused archive left a gallery")
        case.count("refused" if ended.code else "the same")


def _by_name(state: Answers) -> Answers:
    faces = {name: person["faces"] for name, person in state["people"].items()}
    return {"faces": faces, "unknown": sorted(state["unknown"])}


def _job(case: Case, *, encrypted: bool) -> None:
    """A damaged job gives the same results, or an error; the results that are there stay whole."""
    name = "results of an encrypted gallery" if encrypted else "results"
    whole, environment = case.workshop.folder / name, KEY_GIVEN if encrypted else {}
    gallery = _encrypted(case) if encrypted else case.workshop.gallery
    words: list[Word] = ["batch", case.workshop.photos, "--gallery", gallery, "--quiet", "--workers", "2"]
    if not whole.exists():
        run(as_command([*words, "--out", whole], case.folder, environment), (0, 3))
    out = Path(shutil.copytree(whole, case.folder / "out"))
    _corrupt(case, out / "job.sqlite3")
    sort = ["--to", "sorted", "--dry-run"]
    intact = case.run_plainly(as_command(["sort", whole, *sort], case.folder, environment), (0,))
    listed = case.run_plainly(as_command(["sort", out, *sort], case.folder, environment), (0, 1, 3))
    is_part = set(listed.out.splitlines()) <= set(intact.out.splitlines())
    case.require(is_part, f"sorts otherwise: {listed.out[:900]}")
    case.require(listed.out == intact.out or listed.code != 0, "sorts fewer photos without a word")
    ended = case.run_plainly(as_command([*words, "--out", out], case.folder, environment), (0, 1, 3))
    for name in ("results.jsonl", "faces.csv"):
        found, known = (set((folder / name).read_text().splitlines()) for folder in (out, whole))
        told = f"{name} (exit code {ended.code}): lines {found - known} in place of {known - found}"
        case.require(found == known, told[:1500])
    case.count("refused" if ended.code == 1 else "the same")


def _weight(case: Case, ending: str) -> None:
    """A weight that is not what it was is refused."""
    name = "facenet_mobilefacenet_128"
    folder = case.folder / "weights"
    folder.mkdir()
    for part in ("json", "safetensors", "onnx"):
        shutil.copyfile(shipped_folder() / f"{name}.{part}", folder / f"{name}.{part}")
    card = folder / f"{name}.json"
    whole = card.with_suffix(f".{ending}").read_bytes()
    for _ in range(_TRIES):
        card.with_suffix(f".{ending}").write_bytes(damaged(whole, case.dice))
        ended = case.run_plainly(partial(_load, card), (0, 1))
        case.count("refused" if ended.code else "the same")


def _load(card: Path) -> None:
    """Load a weight as the pipeline does; fails unless it is refused or as shipped."""
    shipped = load_card(card.stem)
    try:
        weight = load_card(card)
        onnx, parameters = read_onnx(weight), read_parameters(weight)
    except FacepipeError as error:
        print(f"facepipe: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    assert weight.card == shipped.card, f"the card holds {weight.card}"
    assert onnx == read_onnx(shipped)
    assert parameters.keys() == read_parameters(shipped).keys()


ATTACKS = [
    Attack("corruptions", "gallery database", partial(_gallery_file, name=_DATABASE)),
    Attack("corruptions", "gallery log", _log),
    Attack("corruptions", "log of another gallery", _log_of_another),
    Attack("corruptions", "gallery index", partial(_gallery_file, name="index.faiss")),
    Attack("corruptions", "record of the index", partial(_gallery_file, name="index.faiss.json")),
    Attack("corruptions", "index of another gallery", _index_of_another),
    Attack("corruptions", "encrypted gallery", _encrypted_gallery),
    Attack("corruptions", "batch job", partial(_job, encrypted=False)),
    Attack("corruptions", "encrypted batch job", partial(_job, encrypted=True)),
    Attack("corruptions", "archive", _archive),
    Attack("corruptions", "weight card", partial(_weight, ending="json")),
    Attack("corruptions", "safetensors", partial(_weight, ending="safetensors")),
    Attack("corruptions", "onnx", partial(_weight, ending="onnx")),
]
