"""What was removed is in no byte of the gallery's folder."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, bytes_in, person_vectors, photo_hash, template, templates, wipe_due

from facepipe.core.faces import FloatArray
from facepipe.gallery import Gallery, NewTemplate


@pytest.mark.parametrize("others", [0, 200])
def test_a_removed_person_is_in_no_byte_of_the_folder(tmp_path: Path, others: int) -> None:
    vectors = person_vectors(1, 40)
    photos = [f"mata-{i}" for i in range(40)]
    new = [template(v, photo) for v, photo in zip(vectors, photos, strict=True)]
    secrets = [b"Mata Hari", b"photos/mata-", *(v.tobytes() for v in vectors)]
    secrets += [(t.photo_sha256 or "").encode() for t in new]
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        for i in range(others):  # Scattered among others, so that pages are shared, split and joined.
            gallery.add(f"person {i}", templates(person_vectors(100 + i, 2)))
            gallery.add("Mata Hari", new[i * 40 // others : (i + 1) * 40 // others] or new[:1])
        gallery.add("Mata Hari", new)
    assert {line.split(":")[0] for line in bytes_in(tmp_path, secrets)} == {"gallery.sqlite3", "index.faiss"}
    with Gallery.open(tmp_path, ENCODER) as gallery:
        gallery.match(vectors[:1])
        assert gallery.remove("Mata Hari") == 40
        assert bytes_in(tmp_path, secrets) == []  # At once, not only after closing.
        gallery.match(vectors[:1])
    assert bytes_in(tmp_path, secrets) == []
    with Gallery.open(tmp_path, ENCODER) as gallery:
        assert len(gallery.people()) == others
        if others:
            assert gallery.match(person_vectors(100, 1))[0].name == "person 0"


def add_and_remove(gallery: Gallery) -> list[bytes]:
    """A sequence after which secure_delete alone leaves names in split pages of SQLite's index of names.

    Answers the removed names.
    """
    rng = random.Random(4)
    known: list[str] = []
    removed: list[bytes] = []
    for step in range(250):
        if not known or rng.random() < 0.7:
            known.append(f"{step:04} " + "".join(rng.choices("abcdefgh", k=rng.randint(1, 180))))
            gallery.add(known[-1], templates(person_vectors(step, 1)))
        else:
            name = known.pop(rng.randrange(len(known)))
            gallery.remove(name)
            removed.append(name.encode())
    return removed


def test_names_leave_split_pages_too(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        removed = add_and_remove(gallery)
    assert bytes_in(tmp_path, removed) == []


def test_a_kill_before_wiping_is_made_good_by_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        patch.setattr("facepipe.gallery.storage.store.Store.wipe_deleted", lambda self, wait=True: None)
        removed = add_and_remove(gallery)
    assert wipe_due(tmp_path)
    Gallery.open(tmp_path).close()
    assert not wipe_due(tmp_path)
    assert bytes_in(tmp_path, removed) == []


def test_what_a_killed_backup_left_is_wiped_too(tmp_path: Path) -> None:
    """A backup that is killed leaves a copy under a temporary name, where a gallery may be made later."""
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Mata Hari", templates(person_vectors(1, 3)))
        gallery.backup(tmp_path.parent / "backup")
        (tmp_path.parent / "backup" / "gallery.sqlite3").rename(tmp_path / ".facepipe-0123456789abcdef.part")
        gallery.remove("Mata Hari")
        assert bytes_in(tmp_path, [b"Mata Hari"]) == []


@pytest.mark.parametrize("act", ["rename", "merge"])
def test_names_given_up_leave_no_byte_either(tmp_path: Path, act: str) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Mata Hari", templates(person_vectors(1, 1)))
        if act == "rename":
            gallery.rename("Mata Hari", "H21")
        else:
            gallery.add("H21", templates(person_vectors(2, 1)))
            gallery.merge("Mata Hari", "H21")
        assert bytes_in(tmp_path, [b"Mata Hari"]) == []
        assert [p.name for p in gallery.people()] == ["H21"]


def test_another_process_does_not_bring_removed_vectors_back(tmp_path: Path) -> None:
    vectors = person_vectors(1, 3)
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(2, 3)))
        gallery.add("Mata Hari", templates(vectors))
    with Gallery.open(tmp_path, ENCODER) as other:
        other.match(vectors[:1])  # Holds them in memory now.
        with Gallery.open(tmp_path, ENCODER) as gallery:
            gallery.remove("Mata Hari")
        other.add("Bob", templates(person_vectors(3, 1)))
    assert bytes_in(tmp_path, [v.tobytes() for v in vectors]) == []


def test_a_reader_in_the_way_delays_wiping_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("facepipe.gallery.storage.sqlite.database.BUSY_TIMEOUT_S", 0.1)
    vectors = person_vectors(1, 3)
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Mata Hari", templates(vectors))
        with Gallery.open(tmp_path) as reader, reader._store.reading():
            reader._store.generation()  # Its transaction begins with the first read.
            gallery.remove("Mata Hari")
            assert "not yet wiped" in caplog.messages[0]
            assert gallery.people() == []
    Gallery.open(tmp_path).close()
    assert bytes_in(tmp_path, [b"Mata Hari", *(v.tobytes() for v in vectors)]) == []


# Crops, unknown faces and photos


def traces(photo: str, crop: bytes, vector: FloatArray) -> list[bytes]:
    """What a face leaves in a gallery: pieces, as pages cut long values."""
    return [f"photos/{photo}.jpg".encode(), photo_hash(photo).encode(), crop[:15], vector.tobytes()[:32]]


def test_a_removed_person_takes_crops_and_likely_unknown_faces_along(tmp_path: Path) -> None:
    vectors = person_vectors(1, 6, spread=0.02)
    crops = [f"picture {i} of her ".encode() * 400 for i in range(6)]
    stranger, other = person_vectors(2, 1)[0], person_vectors(3, 1)[0]
    secrets = [s for i in range(6) for s in traces(f"mata{i}", crops[i], vectors[i])]
    kept = traces("stranger", b"picture of a stranger", stranger)
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Mata Hari", [template(vectors[i], f"mata{i}", crops[i]) for i in range(3)])
        gallery.add("Ada", [template(other, "ada")])
        gallery.remember_unknown([template(vectors[i], f"mata{i}", crops[i]) for i in range(3, 6)])
        gallery.remember_unknown([template(stranger, "stranger", b"picture of a stranger")])
        gallery.match(vectors[:1])
    assert len(bytes_in(tmp_path, [*secrets, *kept])) >= len(secrets) + len(kept)
    with Gallery.open(tmp_path, ENCODER) as gallery:
        assert gallery.remove("Mata Hari") == 3
        assert bytes_in(tmp_path, [b"Mata Hari", *secrets]) == []
        assert [face.source for face in gallery.unknown_faces()] == ["photos/stranger.jpg"]
    assert bytes_in(tmp_path, [b"Mata Hari", *secrets]) == []
    assert len(bytes_in(tmp_path, kept)) == len(kept)


def test_a_persons_own_threshold_says_which_unknown_faces_go_along(tmp_path: Path) -> None:
    vectors = person_vectors(1, 2)  # About 0.7 apart; the gallery's threshold is 1.0.
    for threshold_l2, left in ((0.5, 1), (0.9, 0)):
        with Gallery.open(tmp_path / str(left), ENCODER, create=True) as gallery:
            gallery.add("Mata Hari", [template(vectors[0])])
            gallery.set_threshold(1.0 if left else 0.2)
            gallery.set_person_threshold("Mata Hari", threshold_l2)
            gallery.remember_unknown([template(vectors[1])])
            gallery.remove("Mata Hari")
            assert len(gallery.unknown_faces()) == left


@pytest.mark.parametrize("by", ["path", "content"])
def test_a_forgotten_photo_is_in_no_byte_of_the_folder(tmp_path: Path, by: str) -> None:
    ada, bob, stranger = (person_vectors(seed, 2) for seed in (1, 2, 3))
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(ada[0], "party", b"Ada's crop"), template(ada[1], "beach")])
        gallery.add("Bob Only Here", [template(bob[0], "party", b"Bob's crop")])
        gallery.remember_unknown([template(stranger[0], "party"), template(stranger[1], "hills")])
        gallery.match(ada[:1])
    secrets = [s for v in (ada[0], bob[0], stranger[0]) for s in traces("party", b"Bob's crop", v)]
    with Gallery.open(tmp_path, ENCODER) as gallery:
        if by == "path":
            assert gallery.forget_photo("photos/party.jpg") == 3
        else:
            assert gallery.forget_photo("renamed.jpg", photo_hash("party")) == 3
        assert bytes_in(tmp_path, [*secrets, b"Bob Only Here"]) == []
        assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 1)]
        assert [face.source for face in gallery.unknown_faces()] == ["photos/hills.jpg"]
        assert gallery.match(ada[1:])[0].distance_l2 == 0.0
        assert gallery.forget_photo("photos/party.jpg") == 0
    assert bytes_in(tmp_path, [*secrets, b"Bob Only Here"]) == []


def test_forgotten_unknown_faces_are_in_no_byte_of_the_folder(tmp_path: Path) -> None:
    vectors = person_vectors(1, 30)
    faces = [template(v, f"stranger{i}", f"crop {i} ".encode() * 99) for i, v in enumerate(vectors)]
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        ids = gallery.remember_unknown(faces)
        gallery.forget_unknown(ids[1:])
        secrets = [face.embedding.tobytes() for face in faces[1:]]
        secrets += [f"crop {i} ".encode() for i in range(1, 30)]
        assert bytes_in(tmp_path, secrets) == []
        assert [face.id for face in gallery.unknown_faces()] == ids[:1]


def test_a_path_is_found_relative_to_here_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new = NewTemplate(person_vectors(1, 1)[0], source=str((tmp_path / "party.jpg").resolve()))
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", [new])
        assert gallery.forget_photo(Path("party.jpg")) == 1
