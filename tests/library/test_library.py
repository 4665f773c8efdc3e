"""What people decide about faces holds, whatever the gallery finds, and can be taken back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from library_helpers import analyze, face_of, make_batch, names_in
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from facepipe.batch.forgetting import forget_left_out
from facepipe.batch.job import Job
from facepipe.core.errors import FacepipeError, GalleryError, UsageError
from facepipe.gallery import Gallery, NewTemplate
from facepipe.library.library import Library
from facepipe.library.models import Checked
from facepipe.pipeline import known_identity

PHOTOS = {
    "one": ["ada", "bob"],
    "two": ["ada"],
    "three": ["ada", "eve"],
    "four": ["bob"],
    "five": ["bob", "eve"],
    "six": ["stranger"],
    "none": [],
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return make_batch(tmp_path, PHOTOS)


def test_a_named_group_names_the_person_everywhere(out: Path) -> None:
    with Library.open(out) as library:
        sizes = [len(group.face_ids) for group in library.groups()]
        assert sizes == [3, 3, 2]
        group = next(g for g in library.groups() if face_of(library, "two") in g.face_ids)
        library.name_group(group.number, "Ada")
        assert names_in(library)["one"] == ["Ada", None]
        library.name_again()
        (ada,) = library.people()
        assert (ada.name, ada.face_count, ada.confirmed_count) == ("Ada", 3, 3)
        assert ada.template_count >= 1
        assert ada.cover_face_id in group.face_ids
        with pytest.raises(UsageError, match="no group"):
            library.group(group.number)


def test_one_confirmed_face_names_the_others_of_the_person(out: Path) -> None:
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        assert library.name_again() == 0
        found = names_in(library)
        assert (found["one"], found["three"]) == (["Ada", None], ["Ada", None])
        assert [face.is_confirmed for face in library.faces_of("Ada")] == [False, False, True]
    with Library.open(out) as library:
        assert names_in(library) == found
        assert library.checked() == Checked(0, 0)
        library.confirm([face_of(library, "one")], "Ada")
        library.reject([face_of(library, "three")], "Ada")
        assert library.checked() == library.checked("Ada") == Checked(1, 1)


def test_a_rejected_name_is_never_given_again(out: Path) -> None:
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.name_again()
        library.reject([face_of(library, "one")], "Ada")
        library.name_everything()
        assert names_in(library)["one"][0] is None
        library.confirm([face_of(library, "three")], "Ada")
        library.name_everything()
        assert names_in(library)["one"][0] is None
    with Library.open(out) as library:
        assert names_in(library)["one"][0] is None
        assert library.faces[face_of(library, "one")].decision is not None


def test_false_alarms_and_ignored_faces_are_in_no_group_and_have_no_name(out: Path) -> None:
    with Library.open(out) as library:
        library.mark_not_faces([face_of(library, "two")])
        library.ignore([face_of(library, "three")])
        library.confirm([face_of(library, "one")], "Ada")
        library.name_everything()
        library.regroup()
        assert names_in(library)["two"] == [None]
        assert names_in(library)["three"] == [None, None]
        grouped = {id for group in library.groups() for id in group.face_ids}
        assert not grouped & {face_of(library, "two"), face_of(library, "three")}


def test_groups_keep_their_numbers(out: Path) -> None:
    with Library.open(out) as library:
        before = {group.face_ids: group.number for group in library.groups()}
        largest = library.groups()[0]
        library.name_group(largest.number, "Somebody")
        library.name_everything()
        library.regroup()
        after = {group.face_ids: group.number for group in library.groups()}
        assert after == {ids: number for ids, number in before.items() if number != largest.number}


def test_everything_is_undone_in_turn(out: Path) -> None:
    with Library.open(out) as library:
        states = [(names_in(library), library.people())]

        def done() -> None:
            library.name_everything()
            states.append((names_in(library), library.people()))

        library.confirm([face_of(library, "two")], "Ada")
        done()
        library.confirm([face_of(library, "four")], "Bob")
        done()
        library.reject([face_of(library, "one")], "Ada")
        done()
        library.mark_not_faces([face_of(library, "six")])
        done()
        library.set_hidden("Bob", True)
        done()
        library.rename("Bob", "Robert")
        done()
        library.merge("Robert", "Ada")
        done()
        library.set_threshold("Ada", 0.1)
        done()
        library.set_threshold(None, 0.2)
        done()
        library.set_cover("Ada", face_of(library, "four"))
        done()
        library.draw_face(next(iter(library.photos)), (1, 1, 40, 40), "Dora")
        done()
    labels = []
    while states:
        with Library.open(out) as library:  # also after a restart
            library.name_everything()
            assert (names_in(library), library.people()) == states.pop()
            step = library.undo()
            assert (step is None) == (not states)
            labels.append(step and step.label)
    assert labels[:2] == ["a face drawn of Dora", "Ada shown with another face"]
    assert labels[-1] is None


@pytest.mark.parametrize("is_grouped_between", [False, True])
def test_a_group_that_is_undone_is_a_group_again(out: Path, is_grouped_between: bool) -> None:
    def groups_of(library: Library) -> dict[int, set[str]]:
        return {group.number: set(group.face_ids) for group in library.groups()}

    with Library.open(out) as library:
        before = groups_of(library)
        first, second, *_ = before
        library.name_group(first, "Ada")
        library.ignore(list(before[second])[:1])
        if is_grouped_between:
            library.name_everything()
            library.regroup()
    with Library.open(out) as library:
        library.undo()
        library.undo()
        assert groups_of(library) == before
    with Library.open(out) as library:
        assert groups_of(library) == before
        library.regroup()
        assert groups_of(library) == before


def test_a_group_that_is_undone_takes_no_number_of_another(out: Path) -> None:
    with Library.open(out) as library:
        groups = sorted(library.groups(), key=lambda group: group.number)
        last = groups[-1]
        library.name_group(last.number, "Eve")
        ids = groups[0].face_ids
        library.take_groups([groups[1].face_ids, ids[:2]])  # the last number is free, the first one taken
        library.take_groups([groups[1].face_ids, ids[1:]])
        library.take_groups([groups[1].face_ids])
        library.take_groups([groups[1].face_ids, ids])
        assert last.number in {group.number for group in library.groups()}
        library.undo()
        assert not set(last.face_ids) & {id for group in library.groups() for id in group.face_ids}


def test_a_person_who_is_nobody_for_a_while_keeps_the_threshold(out: Path) -> None:
    with Library.open(out) as library:
        only = face_of(library, "two")
        library.confirm([only], "Ada")
        library.name_again()
        library.set_threshold("Ada", 0.9)
        library.ignore([only])
        library.name_again()
        assert not library.gallery.knows("Ada")
    with Library.open(out) as library:
        library.undo()
        library.name_again()
        (ada,) = library.gallery.people()
        assert (ada.name, ada.threshold_l2) == ("Ada", 0.9)


def test_renaming_and_merging_keep_decisions_and_templates(out: Path) -> None:
    with Library.open(out) as library:
        library.confirm([face_of(library, "two"), face_of(library, "one")], "Ada")
        library.confirm([face_of(library, "five", 1)], "Eve")
        library.name_again()
        library.rename("Ada", "Ada Lovelace")
        with pytest.raises(GalleryError, match="merge the two"):
            library.rename("Eve", "Ada Lovelace")
        with pytest.raises(UsageError, match="nobody is named"):
            library.rename("Nobody", "X")
        library.name_again()
        assert {p.name: p.confirmed_count for p in library.people()} == {"Ada Lovelace": 2, "Eve": 1}
        library.merge("Eve", "Ada Lovelace")
        library.name_again()
        (person,) = library.people()
        assert (person.confirmed_count, library.gallery.people()[0].template_count) == (
            3,
            person.template_count,
        )


def test_decisions_outlive_a_new_analysis_with_other_boxes(out: Path) -> None:
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.reject([face_of(library, "one")], "Ada")
        library.name_again()
        ids = set(library.faces)
    with Job(out) as job:
        job.require_settings({"detector options": {"max_side": 640}}, again=True)
        analyze(job, PHOTOS, shift_px=12.0)
    with Library.open(out) as library:
        library.name_everything()
        assert set(library.faces) == ids
        assert library.faces[face_of(library, "two")].is_confirmed
        assert names_in(library)["one"][0] is None


def test_decisions_follow_photos_that_are_moved(out: Path, tmp_path: Path) -> None:
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.name_again()
    (tmp_path / "elsewhere").mkdir()
    photos = sorted((tmp_path / "photos").iterdir())
    moved = [photo.rename(tmp_path / "elsewhere" / photo.name) for photo in photos]
    with Job(out) as job:
        job.plan(moved)
        assert job.waiting() == []
    with Library.open(out) as library:
        assert library.faces[face_of(library, "two")].is_confirmed
        assert library.photos[library.faces[face_of(library, "two")].photo_id].path in moved


def test_decisions_wait_for_photos_that_come_back(out: Path, tmp_path: Path) -> None:
    photos = sorted((tmp_path / "photos").iterdir())
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
    with Job(out) as job:
        job.plan([photo for photo in photos if photo.stem != "two"])
    with Library.open(out) as library:
        assert "two" not in names_in(library)
        assert len(library.decisions()) == 1
    with Job(out) as job:
        job.plan(photos)
    with Library.open(out) as library:
        assert names_in(library)["two"] == ["Ada"]


def test_a_person_enrolled_elsewhere_under_a_wrong_name_loses_the_face(out: Path) -> None:
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Eve")  # a mistake
        library.name_everything()
        assert names_in(library)["one"] == ["Eve", None]
        library.confirm([face_of(library, "two")], "Ada")
        library.name_everything()
        assert {p.name for p in library.gallery.people()} == {"Ada"}
        assert names_in(library)["one"] == ["Ada", None]


@pytest.mark.parametrize("is_open_meanwhile", [True, False])
def test_names_follow_what_others_change_in_the_gallery(out: Path, is_open_meanwhile: bool) -> None:
    """Such as `facepipe gallery threshold` in a terminal beside the page, or before it is opened."""

    @contextmanager
    def opened() -> Iterator[Library]:
        with Library.open(out) as library:
            library.follow_gallery()
            library.name_again()
            yield library

    def named_after(change: Callable[[Gallery], object]) -> list[str | None]:
        with ExitStack() as stack:
            library = stack.enter_context(opened())
            if not is_open_meanwhile:
                stack.close()
            with Gallery.open(out.parent / "gallery", known_identity(library.gallery.encoder)) as gallery:
                change(gallery)
            if not is_open_meanwhile:
                library = stack.enter_context(opened())
            library.follow_gallery()
            library.name_again()
            return [names_in(library)[photo][0] for photo in ("one", "two", "four")]

    with opened() as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.name_again()
        assert names_in(library)["one"][0] == "Ada"
        bob = library.embeddings[library.face(face_of(library, "four")).embedding_row]
    assert named_after(lambda gallery: gallery.set_threshold(0.1)) == [None, "Ada", None]
    assert named_after(lambda gallery: gallery.set_person_threshold("Ada", 0.9)) == ["Ada", "Ada", None]
    assert named_after(lambda gallery: gallery.add("Bob", [NewTemplate(bob)])) == ["Ada", "Ada", "Bob"]
    assert named_after(lambda gallery: gallery.rename("Bob", "Robert")) == ["Ada", "Ada", "Robert"]
    assert named_after(lambda gallery: gallery.remove("Robert")) == ["Ada", "Ada", None]


def test_what_the_library_changes_in_the_gallery_concerns_few_photos(out: Path) -> None:
    with Library.open(out) as library:
        library.follow_gallery()
        for change in (
            lambda: library.confirm([face_of(library, "two")], "Ada"),
            lambda: library.confirm([face_of(library, "six")], "Eve"),
            lambda: library.set_threshold("Ada", 0.9),
            library.undo,
            lambda: library.rename("Eve", "Eva"),
            lambda: library.merge("Eva", "Ada"),
            library.undo,
            lambda: library.erase("Eva"),
        ):
            change()
            library.name_again()
            version = library.version
            library.follow_gallery()
            assert (library.name_again(), library.version) == (0, version)


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_what_others_change_in_the_gallery_beside_the_library_is_not_missed(
    out: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with Library.open(out) as library, Gallery.open(out.parent / "gallery") as other:
        library.follow_gallery()
        library.confirm([face_of(library, "two")], "Ada")
        library.name_again()
        library.follow_gallery()
        assert (library.name_again(), names_in(library)["one"][0]) == (0, "Ada")
        add = library.gallery.add

        def add_meanwhile(name: str, templates: Sequence[NewTemplate]) -> object:
            if moment == "before":
                other.set_person_threshold("Ada", 0.01)
            added = add(name, templates)
            if moment != "before":
                other.set_person_threshold("Ada", 0.01)
            if moment == "between":
                library.gallery.set_person_threshold(name, 0.5)
            return added

        monkeypatch.setattr(library.gallery, "add", add_meanwhile)
        library.confirm([face_of(library, "six")], "Eve")
        library.name_again()
        assert names_in(library)["one"][0] == "Ada", "Eve is not near"
        library.follow_gallery()
        library.name_again()
        assert names_in(library)["one"][0] is None


def test_erasing_leaves_no_word_of_a_person(out: Path) -> None:
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Zebedee Quux")
        library.reject([face_of(library, "four")], "Zebedee Quux")
        library.confirm([face_of(library, "five")], "Bob")
        library.set_cover("Zebedee Quux", face_of(library, "two"))
        library.name_everything()
        library.write_results()
        assert library.erase("Zebedee Quux") == 3
        assert [person.name for person in library.people()] == ["Bob"]
        assert library.undo() is None
        assert library.name_again() == 0
    for file in [*out.iterdir(), *(out.parent / "gallery").iterdir()]:
        assert b"Zebedee" not in file.read_bytes(), file


def test_erasing_reaches_what_was_decided_just_now(out: Path) -> None:
    with Library.open(out) as library:
        library.confirm([face_of(library, "two"), face_of(library, "one")], "Zebedee Quux")
        assert library.erase("Zebedee Quux") == 2
        assert library.photo_counts().waiting == 2
        assert "two" not in names_in(library)
    assert b"Zebedee" not in b"".join(file.read_bytes() for file in out.iterdir())


def test_forgotten_photos_take_their_decisions_along(out: Path, tmp_path: Path) -> None:
    with Library.open(out) as library:
        library.confirm([face_of(library, "two"), face_of(library, "one")], "Ada")
    (tmp_path / "photos" / "two.png").unlink()
    with Job(out) as job:
        job.plan(list((tmp_path / "photos").iterdir()))
        forget_left_out(job)
        assert [stored.decision.name for stored in job.decisions] == ["Ada"]


def test_a_face_drawn_by_hand_is_a_face_like_others(out: Path) -> None:
    with Library.open(out) as library:
        photo = next(p for p in library.photos.values() if p.path.stem == "none")
        _, mark = library.draw_face(photo.id, (10, 10, 40, 45), "Ada")
        library.name_everything()
        assert names_in(library)["none"] == ["Ada"]
        assert library.faces[mark].embedding_row is None
        for box in ((200.0, 10.0, 240.0, 40.0), (10.0, 10.0, 5.0, 40.0)):
            with pytest.raises(UsageError, match="expected a box within 100 x 100 pixels"):
                library.draw_face(photo.id, box)
    with Job(out) as job:
        job.require_settings({"detector options": {"max_side": 640}}, again=True)
        analyze(job, PHOTOS)
    with Library.open(out) as library:
        library.name_everything()
        assert library.faces[mark].name == "Ada"
        library.undo()
        assert mark not in library.faces
        assert names_in(library).get("none") is None


def test_faces_are_found_by_the_beginning_of_their_ids(out: Path) -> None:
    with Library.open(out) as library:
        id = face_of(library, "two")
        assert library.face(id[:6]).id == id
        for text in ("", id[:3], "zzzzzzzzzzzz", id[:-1] + "x"):
            with pytest.raises(UsageError, match="no face"):
                library.face(text)
        with pytest.raises(UsageError, match="no face is given"):
            library.confirm([], "Ada")
        with pytest.raises(FacepipeError):
            library.confirm([id], " \0 ")
        assert library.steps() == []


def test_pictures_are_those_of_the_faces(out: Path) -> None:
    with Library.open(out) as library:
        assert library.picture(face_of(library, "one", 1)) == b"one 1"
        photo = library.faces[face_of(library, "one", 1)].photo_id
        assert library.preview(photo) == b"preview"
        assert library.photos[photo].taken_at == "2024-05-01T12:00:00"


def test_a_library_needs_a_batch_of_its_gallerys_encoder(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no batch was run"):
        Library.open(tmp_path / "nothing")
    with pytest.raises(GalleryError, match="there is no gallery"):
        Library.open(out, tmp_path / "nothing")
    with Job(out) as job:
        job.require_settings({"encoder": "another 0123456789ab"}, again=True)
    with pytest.raises(GalleryError, match="another 0123456789ab"):
        Library.open(out)


def test_embeddings_belong_to_their_faces(out: Path) -> None:
    with Library.open(out) as library:
        rows = [face.embedding_row for face in library.faces.values()]
        assert sorted(row for row in rows if row is not None) == list(range(len(library.embeddings)))
        np.testing.assert_allclose(np.linalg.norm(library.embeddings, axis=1), 1, atol=1e-5)


def test_decisions_stay_when_metadata_of_a_photo_is_edited(out: Path, tmp_path: Path) -> None:
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        photo = next(p for p in library.photos.values() if p.path.stem == "none")
        _, mark = library.draw_face(photo.id, (10, 10, 40, 45), "Eve")
        library.name_everything()
        kept = set(library.faces) - {mark, face_of(library, "three"), face_of(library, "three", 1)}
    for name in ("two", "none"):
        path = tmp_path / "photos" / f"{name}.png"
        info = PngInfo()
        info.add_text("Comment", "edited")
        with Image.open(path) as picture:
            picture.save(path, pnginfo=info)
    painted = tmp_path / "photos" / "three.png"
    Image.new("RGB", (300, 100)).save(painted)
    with Job(out) as job:
        job.plan(sorted((tmp_path / "photos").iterdir()))
        assert {task.path.stem for task in job.waiting()} == {"two", "none", "three"}
        analyze(job, {**PHOTOS, "three": ["ada", "eve", "new"]})
    with Library.open(out) as library:
        library.name_everything()
        assert library.faces[face_of(library, "two")].is_confirmed
        assert library.faces[mark].name == "Eve"
        assert {stored.decision.photo_sha256 for stored in library.decisions()} == {
            library.photos[library.faces[id].photo_id].sha256 for id in (mark, face_of(library, "two"))
        }
        assert library.undo() is not None
        assert library.undo() is not None
        assert library.decisions() == []
        assert kept <= set(library.faces)


def test_decisions_hold_for_copies_of_a_photo(out: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "photos" / "two.png", tmp_path / "photos" / "copy.png")
    with Job(out) as job:
        job.plan(sorted((tmp_path / "photos").iterdir()))
        analyze(job, {**PHOTOS, "copy": ["ada"]})
    with Library.open(out) as library:
        library.regroup()
        library.name_everything()
        library.mark_not_faces([face_of(library, "two")])
        library.name_everything()
        library.write_results()
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    found = {Path(line["photo"]).stem: [face["reason"] for face in line["faces"]] for line in lines}
    assert found["two"] == found["copy"] == ["not_a_face"]
