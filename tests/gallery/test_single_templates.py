"""Single templates: shown, erased, and given to another person."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import (
    ENCODER,
    bytes_in,
    folder_of,
    person_vectors,
    photo_hash,
    start,
    template,
    templates,
)

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery
from facepipe.gallery.repair import verify

ADA, BOB = person_vectors(1, 4), person_vectors(2, 2)
TOO_LARGE = 2**70


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    """Ada with the templates 1 to 4, Bob with 5 and 6."""
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(v, f"ada{i}", f"crop of ada{i} ".encode()) for i, v in enumerate(ADA)])
        gallery.add("Bob", [template(v, f"bob{i}") for i, v in enumerate(BOB)])
        yield gallery


def people(gallery: Gallery) -> dict[str, list[int]]:
    """The ids of everybody's templates."""
    return {p.name: [t.id for t in gallery.templates(p.name)] for p in gallery.people()}


def test_a_template_is_shown_with_its_vector(gallery: Gallery) -> None:
    shown = gallery.template(2)
    assert (shown.id, shown.person, shown.source) == (2, "Ada", "photos/ada1.jpg")
    assert shown == gallery.templates("Ada")[1]
    np.testing.assert_array_equal(gallery.template_vector(2), ADA[1])


@pytest.mark.parametrize("id", [0, -1, 7, TOO_LARGE])
def test_ids_of_no_template_change_nothing(gallery: Gallery, id: int) -> None:
    before = gallery.state
    for act in (
        lambda: gallery.template(id),
        lambda: gallery.template_vector(id),
        lambda: gallery.remove_templates([1, id]),
        lambda: gallery.move_templates([1, id], "Bob"),
        lambda: gallery.move_templates([1, id], "Eve"),
    ):
        with pytest.raises(GalleryError, match=f"no face {id} "):
            act()
    assert gallery.state == before
    assert people(gallery) == {"Ada": [1, 2, 3, 4], "Bob": [5, 6]}


def test_no_ids_change_nothing(gallery: Gallery) -> None:
    before = gallery.state
    assert (gallery.remove_templates([]), gallery.move_templates([], "Eve")) == (0, 0)
    assert gallery.state == before


def test_removed_templates_are_in_no_byte_of_the_folder(gallery: Gallery) -> None:
    gallery.match(ADA)
    gallery._index.save()
    secrets = [v.tobytes()[:32] for v in ADA[1:3]]
    secrets += [s.encode() for i in (1, 2) for s in (f"ada{i}.jpg", photo_hash(f"ada{i}"), f"crop of ada{i}")]
    assert {line.split(":")[0] for line in bytes_in(folder_of(gallery), secrets)} >= {"index.faiss"}
    assert gallery.remove_templates([2, 3, 2]) == 2
    assert bytes_in(folder_of(gallery), [*secrets, ADA[1].tobytes(), ADA[2].tobytes()]) == []
    assert people(gallery) == {"Ada": [1, 4], "Bob": [5, 6]}
    assert verify(gallery.path, ENCODER) == ()


def test_whoever_loses_the_last_template_is_forgotten(gallery: Gallery) -> None:
    gallery.set_person_threshold("Bob", 0.5)
    assert gallery.remove_templates([6, 5]) == 2
    assert not gallery.knows("Bob")
    assert bytes_in(folder_of(gallery), [b"Bob"]) == []
    assert gallery.match(BOB[:1])[0].name is None


def test_removed_faces_never_name_again_in_a_gallery_that_is_open(gallery: Gallery) -> None:
    with Gallery.open(gallery.path, ENCODER) as other:
        assert [m.name for m in other.match(ADA, one_person_per_photo=False)] == ["Ada"] * 4
        gallery.remove_templates([1, 2, 3])
        match = other.match(ADA[:1])[0]
        assert match.distance_l2 == pytest.approx(np.linalg.norm(ADA[0] - ADA[3]), abs=1e-5)
        gallery.remove_templates([4])
        assert [m.name for m in other.match(ADA)] == [None] * 4
    with Gallery.open(gallery.path, ENCODER) as again:
        assert [m.name for m in again.match(ADA)] == [None] * 4


def test_a_moved_template_names_its_new_person_everywhere(gallery: Gallery) -> None:
    with Gallery.open(gallery.path, ENCODER) as other:
        assert other.match(ADA[:1])[0].name == "Ada"
        assert gallery.move_templates([1, 2], " Eve ") == 2
        assert people(gallery) == {"Ada": [3, 4], "Bob": [5, 6], "Eve": [1, 2]}
        assert other.match(ADA[:1])[0].name == "Eve"
        assert gallery.crop(1) == b"crop of ada0 "
    assert verify(gallery.path, ENCODER) == ()


def test_a_person_of_whom_all_is_moved_is_forgotten(gallery: Gallery) -> None:
    assert gallery.move_templates([1, 5, 6], "Ada") == 2
    assert people(gallery) == {"Ada": [1, 2, 3, 4, 5, 6]}
    assert bytes_in(folder_of(gallery), [b"Bob"]) == []


def test_a_face_that_the_new_person_has_already_is_dropped(gallery: Gallery) -> None:
    gallery.add("Bob", [template(ADA[0], "ada0"), template(ADA[1], "ada1")])
    assert gallery.move_templates([1, 3], "Bob") == 1
    assert people(gallery) == {"Ada": [2, 4], "Bob": [3, 5, 6, 7, 8]}
    assert gallery.move_templates([2, 8], "Eve") == 1  # One face of one photo, of two people.
    assert people(gallery) == {"Ada": [4], "Bob": [3, 5, 6, 7], "Eve": [2]}
    assert verify(gallery.path, ENCODER) == ()


def test_moving_to_the_same_person_changes_nothing(gallery: Gallery) -> None:
    before = gallery.state
    assert gallery.move_templates([1, 2], "Ada") == 0
    assert gallery.state == before


def test_a_name_that_is_refused_moves_nothing(gallery: Gallery) -> None:
    with pytest.raises(GalleryError, match="name"):
        gallery.move_templates([1], "two\nlines")
    assert people(gallery) == {"Ada": [1, 2, 3, 4], "Bob": [5, 6]}


def test_a_name_like_another_one_is_warned_of(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    gallery.move_templates([1], "ada")
    assert "similar_name" in caplog.text


def test_an_encrypted_gallery_shows_moves_and_removes(gallery: Gallery) -> None:
    gallery.encrypt(b"secret of the test")
    assert gallery.template(2).source == "photos/ada1.jpg"
    assert gallery.move_templates([1, 2], "Eve") == 2
    gallery.add("Eve", [template(ADA[2], "ada2")])
    assert gallery.move_templates([3], "Eve") == 0
    assert gallery.remove_templates([1]) == 1
    assert people(gallery) == {"Ada": [4], "Bob": [5, 6], "Eve": [2, 7]}
    np.testing.assert_array_equal(gallery.template_vector(2), ADA[1])
    assert bytes_in(folder_of(gallery), [b"Eve", ADA[1].tobytes()]) == []


CHANGER = """
    import itertools
    with Gallery.open(sys.argv[1], ENCODER) as gallery:
        print("open", flush=True)
        for step in itertools.count():
            print(step, flush=True)
            if step % 3 == 2:
                gallery.remove_templates([2 * step + 1, 2 * step + 2])
            else:
                gallery.move_templates([2 * step + 1, 2 * step + 2], f"person {step}")
"""


def test_a_kill_leaves_each_change_whole_or_not_at_all(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Everybody", templates(person_vectors(1, 3000)))
    step = 0
    for delay_s in (0, 0.002, 0.004, 0.006, 0.008):
        child = start(CHANGER.replace("count()", f"count({step})"), tmp_path)
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(4)]
        time.sleep(delay_s)
        child.kill()
        said += child.communicate()[0].splitlines()
        began = int(said[-1])
        with Gallery.open(tmp_path, ENCODER) as gallery:
            found = people(gallery)
        for done in range(began + 1):
            ids = [2 * done + 1, 2 * done + 2]
            is_done = not set(ids) & set(found["Everybody"])
            assert is_done or (done == began and set(ids) <= set(found["Everybody"])), done
            assert found.get(f"person {done}") == (ids if is_done and done % 3 != 2 else None)
        step = began + is_done
    assert step > 10
    assert verify(tmp_path, ENCODER) == ()
