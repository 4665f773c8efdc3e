"""The benchmark of questions: archives of known truth, and a library that is simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.archives import TILE_HEIGHT_PX, Tile, paste, plan_archive, true_names
from benchmarks.questions import Truth, by_groups, by_questions, current_names
from benchmarks.simulated_library import ArchiveFaces, SimulatedLibrary


@given(st.lists(st.integers(1, 8), min_size=1, max_size=30), st.integers(1, 60), st.integers(0, 40))
def test_an_archive_shows_all_photos_of_some_people_and_one_of_others(
    counts: list[int], photo_count: int, person_count: int
) -> None:
    people = {
        str(row): [Path(f"{row}/{photo}") for photo in range(count)] for row, count in enumerate(counts)
    }
    plan = plan_archive(people, photo_count, person_count, seed=0)
    shown = [tile for photo in plan for tile in photo]
    assert all(len({person for person, _ in photo}) == len(photo) > 0 for photo in plan)
    assert len(plan) <= photo_count
    assert len(shown) == len(set(shown))


def test_faces_are_the_people_of_their_tiles() -> None:
    tiles = [Tile("Ada", 0, 300), Tile("Grace", 300, 600)]
    boxes = np.array(
        [[400, 100, 500, 200], [0, 0, 40, 40], [110, 110, 190, 200], [500, 0, 590, 90]], np.float32
    )
    assert true_names(boxes, tiles) == ["Grace", None, "Ada", None]


def test_people_are_pasted_side_by_side(tmp_path: Path) -> None:
    Image.fromarray(np.full((160, 80, 3), 10, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((640, 640, 3), 200, np.uint8)).save(tmp_path / "b.png")
    picture, tiles = paste([("Ada", tmp_path / "a.png"), ("Grace", tmp_path / "b.png")])
    assert picture.shape == (TILE_HEIGHT_PX, 160 + 320, 3)
    assert tiles == [Tile("Ada", 0, 160), Tile("Grace", 160, 480)]
    assert (picture[:, 10].max(), picture[:, 300].min()) == (10, 200)


@pytest.fixture(scope="module")
def archive() -> ArchiveFaces:
    """20 people of six faces, two of them in each photo, and 40 strangers."""
    people = [person_vectors(seed, 6, 0.06) for seed in range(20)]
    strangers = [person_vectors(seed, 1) for seed in range(100, 140)]
    names = [f"person {seed}" for seed in range(20) for _ in range(6)]
    photos = np.concatenate([np.arange(120) % 60, 60 + np.arange(40)])
    vectors = np.concatenate([*people, *strangers])
    return ArchiveFaces(vectors, photos, np.ones(160, np.bool_), [*names, *[None] * 40])


def test_questions_name_an_archive_in_few_actions(archive: ArchiveFaces) -> None:
    truth, library = Truth(archive), SimulatedLibrary(archive, ENCODER)
    assert (truth.wanted, truth.fewest_actions) == (114, 19)
    figures = by_questions(library, truth)
    assert truth.is_reached(current_names(library))
    assert truth.fewest_actions <= figures.actions <= 1.2 * truth.fewest_actions


@pytest.mark.parametrize("gallery_names", [False, True])
def test_groups_name_an_archive_too(archive: ArchiveFaces, gallery_names: bool) -> None:
    truth = Truth(archive)
    figures = by_groups(SimulatedLibrary(archive, ENCODER), truth, gallery_names)
    assert truth.fewest_actions <= figures.actions < truth.wanted
