"""The state of a gallery: new with every change, and never the same in two copies that were changed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_helpers import NAME, enroll_her
from cli_helpers import facepipe
from gallery_helpers import ENCODER, person_vectors, template
from hypothesis import given, settings
from hypothesis import strategies as st

from facepipe.core.faces import UInt8Array
from facepipe.gallery import Gallery
from facepipe.gallery.repair import repair
from facepipe.images.reading import write_image

CHANGES: dict[str, Callable[[Gallery], object]] = {
    "add": lambda gallery: gallery.add("Ada", [template(person_vectors(3, 1)[0], "new")]),
    "rename": lambda gallery: gallery.rename("Ada", "Eve"),
    "person's threshold": lambda gallery: gallery.set_person_threshold("Bob", 0.5),
    "threshold": lambda gallery: gallery.set_threshold(0.75),
    "no threshold": lambda gallery: gallery.set_threshold(None),
    "merge": lambda gallery: gallery.merge("Cleo", "Bob"),
    "remove": lambda gallery: gallery.remove("Bob"),
    "forget a photo": lambda gallery: gallery.forget_photo("photos/Bob0.jpg"),
    "remember": lambda gallery: gallery.remember_unknown([template(person_vectors(4, 1)[0], "stranger")]),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of three people with a threshold."""
    folder = tmp_path_factory.mktemp("state") / "g"
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        for seed, name in enumerate(["Ada", "Bob", "Cleo"]):
            gallery.add(name, [template(v, f"{name}{i}") for i, v in enumerate(person_vectors(seed, 2))])
        gallery.set_threshold(0.9)
    return folder


THRESHOLDS = st.lists(st.floats(0, 2), min_size=1, max_size=3)


@settings(max_examples=10, deadline=None)
@given(THRESHOLDS, THRESHOLDS)
def test_two_copies_that_are_changed_are_never_in_one_state(
    whole: Path, first: list[float], second: list[float]
) -> None:
    """Not even where the same is done to both."""
    states = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, thresholds in (("one", first), ("two", second)):
            shutil.copytree(whole, Path(scratch) / name)
            with Gallery.open(Path(scratch) / name) as gallery:
                for threshold_l2 in thresholds:
                    gallery.set_threshold(threshold_l2)
                    states.append(gallery.state)
    assert len(set(states)) == len(first) + len(second)


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_makes_a_new_state_of_its_own(whole: Path, tmp_path: Path, change: str) -> None:
    states = set()
    for copy in ("one", "two"):
        shutil.copytree(whole, tmp_path / copy)
        with Gallery.open(tmp_path / copy, ENCODER) as gallery:
            CHANGES[change](gallery)
            states.add(gallery.state)
    with Gallery.open(whole) as gallery:
        assert len({gallery.state, *states}) == 3


def test_what_changes_nothing_leaves_the_state(whole: Path, tmp_path: Path) -> None:
    with Gallery.open(whole, ENCODER) as gallery:
        before = gallery.state
        gallery.match(person_vectors(1, 1))
        gallery.add("Ada", [template(person_vectors(0, 2)[0], "Ada0")])
        gallery.backup(tmp_path / "backup")
    for folder in (whole, tmp_path / "backup"):
        with Gallery.open(folder, ENCODER) as gallery:
            assert gallery.state == before


def test_new_galleries_and_repaired_ones_have_states_of_their_own(whole: Path, tmp_path: Path) -> None:
    states = []
    for name in ("one", "two"):
        with Gallery.open(tmp_path / name, ENCODER, create=True) as gallery:
            states.append(gallery.state)
        shutil.copytree(whole, tmp_path / f"{name} damaged")
        with Gallery.open(tmp_path / f"{name} damaged") as gallery, gallery._store.changing():
            gallery._store._rows.sql.execute("UPDATE templates SET source = 'elsewhere' WHERE id = 1")
        repair(tmp_path / f"{name} damaged")
        with Gallery.open(tmp_path / f"{name} damaged") as gallery:
            states.append(gallery.state)
    assert len(set(states)) == 4


def test_a_batch_after_a_backup_was_restored_gives_the_restored_gallerys_names(
    tmp_path: Path, astronaut: UInt8Array
) -> None:
    """Both histories are one change long, so that neither count nor vectors tell them apart."""
    gallery, backup, out = (tmp_path / name for name in ("gallery", "backup", "out"))
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "her.png", astronaut)
    enroll_her(gallery, astronaut)

    def names_after(*rename: str) -> list[str]:
        assert facepipe("gallery", "rename", NAME, *rename, "--gallery", gallery).code == 0
        batch = facepipe("batch", tmp_path / "photos", "--gallery", gallery, "--out", out)
        assert batch.code == 0, batch.err
        return [name for name in ("First", "Second") if name in (out / "faces.csv").read_text()]

    assert facepipe("gallery", "backup", backup, "--gallery", gallery).code == 0
    assert names_after("First") == ["First"]
    shutil.rmtree(gallery)
    shutil.copytree(backup, gallery)
    assert names_after("Second") == ["Second"]
