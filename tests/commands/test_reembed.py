"""`facepipe gallery reembed`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import facepipe
from gallery_helpers import bytes_in, person_vectors, templates
from pipeline_helpers import shifted

from facepipe.core.faces import UInt8Array
from facepipe.gallery import Gallery
from facepipe.images.reading import write_image

OLD, NEW = "facenet_mobilefacenet_128", "facenet_mobilenetv1_128"


@pytest.fixture
def folder(tmp_path: Path, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gallery of the old encoder: two photos of her, without crops; the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    Path("people/Eileen").mkdir(parents=True)
    write_image(Path("people/Eileen/1.png"), astronaut)
    write_image(Path("people/Eileen/2.png"), shifted(astronaut, 5))
    assert facepipe("enroll", "people", "--gallery", "g", "--encoder-weights", OLD, "--threads", 1).code == 0
    return Path("g")


def reembedded(*options: object) -> tuple[int, list[str], list[str]]:
    said = facepipe(
        "gallery", "reembed", "--gallery", "g", "--encoder-weights", NEW, "--threads", 1, *options
    )
    return said.code, said.lines, said.complaints


def encoder_of(folder: Path) -> str:
    with Gallery.open(folder) as gallery:
        return gallery.encoder.name


def test_a_dry_run_shows_and_the_command_switches(folder: Path) -> None:
    with Gallery.open(folder) as gallery:
        gallery.set_person_threshold("Eileen", 0.01)
        old = [vector.tobytes() for vector in gallery.vectors("Eileen")]
    code, lines, complaints = reembedded("--dry-run")
    assert code == 0
    assert lines[0].startswith("threshold: the threshold of 'Eileen', 0.010, becomes 0.0")
    assert complaints == [
        f"facepipe: 2 faces encoded by {NEW}: 0 from kept crops, 2 from photos; 0 can't be",
        "facepipe: each named by all others, 0 of 2 get their name now, 0 then; 0 faces would be named "
        "differently",
    ]
    assert encoder_of(folder) == OLD
    code, lines, complaints = reembedded()
    assert (code, complaints[-1]) == (0, f"facepipe: g is a gallery of {NEW} now")
    assert bytes_in(folder, old) == []
    identified = facepipe("identify", "people", "--gallery", "g", "--threshold", 0.5, "--threads", 1)
    assert (identified.code, identified.complaints) == (0, [])
    assert facepipe("gallery", "verify", "--gallery", "g", "--encoder-weights", NEW).code == 0


def test_names_that_change_are_listed(folder: Path) -> None:
    with Gallery.open(folder) as gallery:
        near_l2 = float(np.linalg.norm(np.subtract(*gallery.vectors("Eileen"))))
        gallery.set_person_threshold("Eileen", near_l2 * 0.999)
    _, lines, complaints = reembedded("--dry-run")
    _, (line,), _ = reembedded("--dry-run", "--json")
    record = json.loads(line)
    changed = {(c["id"], c["before"]["name"], c["after"]["name"]) for c in record["changed"]}
    assert len(lines) == 1 + len(changed)
    assert complaints[-1].endswith(f"{len(changed)} faces would be named differently")
    after_l2 = record["thresholds"][0]["after_l2"]
    assert record["thresholds"] == [{"person": "Eileen", "before_l2": near_l2 * 0.999, "after_l2": after_l2}]
    assert all((before, after) == (None, "Eileen") for _, before, after in changed)


def test_what_is_missing_is_listed_and_stops_it(folder: Path) -> None:
    with Gallery.open(folder) as gallery:
        identity = gallery.encoder
    with Gallery.open(folder, identity) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 1)))
        gallery.remember_unknown(templates(person_vectors(2, 1)))
    Path("people/Eileen/2.png").rename("moved.png")
    code, lines, complaints = reembedded()
    assert code == 1
    assert lines[:2] == [
        "missing: face 3 of Ada: no crop can be used, and its photo is not known",
        "missing: unknown face 1: no crop can be used, and its photo is not known",
    ]
    assert lines[2].startswith("missing: face 2 of Eileen: no crop can be used, and ")
    assert "3 faces can't be encoded again" in complaints[-1]
    assert encoder_of(folder) == OLD
    code, lines, complaints = reembedded("--photos-from", "moved.png", "--drop-missing")
    assert (code, len(lines)) == (0, 2)
    assert complaints[-1] == f"facepipe: g is a gallery of {NEW} now; 2 faces erased"
    assert [line.split() for line in facepipe("gallery", "list", "--gallery", "g").lines] == [["2", "Eileen"]]


def test_the_same_encoder(folder: Path) -> None:
    said = facepipe("gallery", "reembed", "--gallery", "g", "--encoder-weights", OLD, "--threads", 1)
    assert said.code == 2
    assert f"holds vectors of {OLD} already" in said.err


def test_no_gallery_is_made(folder: Path) -> None:
    said = facepipe("gallery", "reembed", "--gallery", "none", "--threads", 1)
    assert said.code == 1
    assert not Path("none").exists()
