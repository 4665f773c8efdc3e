"""`facepipe face`: one face of a gallery shown, given away and erased."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import facepipe
from gallery_helpers import ENCODER, person_vectors, photo_hash, template

from facepipe.core.faces import FloatArray
from facepipe.gallery import Gallery
from facepipe.gallery.ranking import PersonDistance
from facepipe.gallery.storage.encryption import KEY_FILE_VARIABLE, KEY_VARIABLE

ADA, BOB, EVE = (person_vectors(seed, 2) for seed in (1, 2, 3))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """The option for a gallery of Ada with the faces 1 and 2, Bob with 3 and 4, Eve with 5."""
    for variable in (KEY_VARIABLE, KEY_FILE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(v, f"ada{i}") for i, v in enumerate(ADA)])
        gallery.add("Bob", [template(v, f"bob{i}") for i, v in enumerate(BOB)])
        gallery.add("Eve", [template(EVE[0])])
    return "--gallery", tmp_path / "g"


def ids(folder: Path) -> dict[str, list[int]]:
    with Gallery.open(folder) as gallery:
        return {p.name: [t.id for t in gallery.templates(p.name)] for p in gallery.people()}


def distance(first: FloatArray, second: FloatArray) -> float:
    return float(np.linalg.norm(first.astype(float) - second.astype(float)))


def test_show(here: tuple[str, Path]) -> None:
    bob_l2, eve_l2 = min(distance(ADA[0], v) for v in BOB), distance(ADA[0], EVE[0])
    shown = facepipe("face", "show", 1, *here)
    assert shown.code == 0
    assert shown.lines[:4] == [
        "face 1 of Ada",
        "photo    photos/ada0.jpg",
        "box      2, 2, 101, 0 px (left, top, right, bottom)",
        "quality  sharpness 0.10",
    ]
    others = sorted([(bob_l2, "Bob"), (eve_l2, "Eve")])
    assert shown.lines[5:] == [
        f"nearest  {distance(ADA[0], ADA[1]):.3f}  another face of Ada",
        *(f"other    {l2:.3f}  {name}" for l2, name in others),
    ]
    record = json.loads(facepipe("face", "show", 1, "--json", *here).out)
    assert (record["id"], record["person"], record["photo_sha256"]) == (1, "Ada", photo_hash("ada0"))
    assert record["own_l2"] == pytest.approx(distance(ADA[0], ADA[1]), abs=1e-4)
    assert record["others"] == [{"name": n, "distance_l2": pytest.approx(l2, abs=1e-4)} for l2, n in others]


def test_a_face_without_a_photo_or_another_one_of_its_person(here: tuple[str, Path]) -> None:
    shown = facepipe("face", "show", 5, *here)
    assert [line.split()[0] for line in shown.lines] == ["face", "photo", "added", "other", "other"]
    assert shown.lines[1] == "photo    not known"


def test_more_people_than_neighbours_are_ranked(tmp_path: Path) -> None:
    """Fifty nearest faces are of one person, so a single search finds nobody else."""
    crowd = person_vectors(1, 51, spread=0.01)
    others = [person_vectors(seed, 30) for seed in range(2, 9)]
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(crowd[0])])
        gallery.add("Twin", [template(v) for v in crowd[1:]])
        for number, vectors in enumerate(others):
            gallery.add(f"person {number}", [template(v) for v in vectors])
        (_, *found), everybody = (
            gallery.search(crowd[:1], count, PersonDistance.NEAREST)[0] for count in (5, 99)
        )
    exact = sorted((min(distance(crowd[0], v) for v in vs), f"person {n}") for n, vs in enumerate(others))
    assert [at.name for at in found] == ["Twin", *(name for _, name in exact[:3])]
    assert [at.distance_l2 for at in found[1:]] == pytest.approx([l2 for l2, _ in exact[:3]])
    assert [at.name for at in everybody] == ["Ada", "Twin", *(name for _, name in exact)]


@pytest.mark.parametrize("command", ["move", "name"])
def test_giving_a_face_to_somebody_else(here: tuple[str, Path], command: str) -> None:
    moved = facepipe("face", command, 2, "Bob", *here)
    assert (moved.code, moved.err) == (0, "facepipe: face 2 of 'Ada' is now one of 'Bob'\n")
    assert ids(here[1]) == {"Ada": [1], "Bob": [2, 3, 4], "Eve": [5]}
    again = facepipe("face", command, 2, " Bob", *here)
    assert (again.code, again.err) == (0, "facepipe: face 2 is one of 'Bob'; nothing was changed\n")
    facepipe("face", command, 1, "Zoe", *here)
    assert ids(here[1]) == {"Bob": [2, 3, 4], "Eve": [5], "Zoe": [1]}


def test_giving_a_face_to_whoever_has_it(here: tuple[str, Path]) -> None:
    with Gallery.open(here[1], ENCODER) as gallery:
        gallery.add("Bob", [template(ADA[0], "ada0")])
    moved = facepipe("face", "move", 1, "Bob", *here)
    assert moved.err == "facepipe: 'Bob' has face 1 of 'Ada' already; 'Ada' has it no more\n"
    assert ids(here[1]) == {"Ada": [2], "Bob": [3, 4, 6], "Eve": [5]}


def test_remove(here: tuple[str, Path]) -> None:
    removed = facepipe("face", "remove", 1, *here)
    assert (removed.code, removed.err) == (0, "facepipe: erased face 1 of 'Ada'\n")
    last = facepipe("face", "remove", 2, *here)
    assert last.err == "facepipe: erased face 2 of 'Ada'; it was the last of 'Ada', who is forgotten\n"
    assert ids(here[1]) == {"Bob": [3, 4], "Eve": [5]}


@pytest.mark.parametrize("command", [("show",), ("remove",), ("reject",), ("move", "Bob"), ("name", "Bob")])
def test_a_face_that_is_not_there(here: tuple[str, Path], command: tuple[str, ...]) -> None:
    said = facepipe("face", command[0], 99, *command[1:], *here)
    assert said.code == 1
    assert f"{here[1]}: there is no face 99 (any more)" in said.err
    assert ids(here[1]) == {"Ada": [1, 2], "Bob": [3, 4], "Eve": [5]}


@pytest.mark.parametrize("id", ["Ada", "1.5", "٣", "9" * 19, ""])
def test_what_is_no_number_of_a_face(here: tuple[str, Path], id: str) -> None:
    said = facepipe("face", "show", id, *here)
    assert said.code == 2
    assert "expected the number of a face" in said.err


def test_an_enrolled_face_is_not_rejected(here: tuple[str, Path]) -> None:
    said = facepipe("face", "reject", 1, *here)
    assert said.code == 2
    assert "facepipe face remove 1" in said.err
    assert ids(here[1])["Ada"] == [1, 2]
