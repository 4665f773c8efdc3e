"""The derived index: exact, incremental, and never trusted blindly."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, templates

from gallery import Gallery
from gallery.index import DamagedIndexError, VectorIndex, VectorState, saved_state

STATE = VectorState(7, b"0123456789abcdef")


@pytest.fixture
def index() -> VectorIndex:
    index = VectorIndex(128)
    index.add(np.array([10, 3, 99]), person_vectors(1, 3))
    return index


def test_search_gives_exact_distances_and_ids(index: VectorIndex) -> None:
    vectors = person_vectors(1, 3)
    distances, ids = index.search(vectors, 2)
    assert ids[:, 0].tolist() == [10, 3, 99]
    assert distances[:, 0].tolist() == [0, 0, 0]
    assert distances[0, 1] == pytest.approx(np.linalg.norm(vectors[1:] - vectors[0], axis=1).min(), abs=1e-6)


def test_search_is_exact_in_large_batches_too(index: VectorIndex) -> None:
    queries = np.repeat(person_vectors(1, 1), 50, axis=0)
    assert (index.search(queries, 1)[0] == 0).all()


def test_search_asks_for_no_more_than_there_is(index: VectorIndex) -> None:
    query = person_vectors(1, 1)
    assert index.search(query, 50)[1].shape == (1, 3)
    assert sorted(index.search(query, 50, exclude_ids=np.array([10]))[1][0].tolist()) == [3, 99]
    assert index.search(query, 50, exclude_ids=np.array([10, 3, 99]))[1].shape == (1, 0)
    assert VectorIndex(128).search(query, 5)[0].shape == (1, 0)


def test_removal_keeps_the_other_ids(index: VectorIndex) -> None:
    index.remove(np.array([10]))
    assert sorted(index.ids.tolist()) == [3, 99]
    assert index.search(person_vectors(1, 3)[1:], 1)[1].tolist() == [[3], [99]]


def test_what_is_saved_is_loaded(index: VectorIndex, tmp_path: Path) -> None:
    file = tmp_path / "i"
    index.state = STATE
    index.save(file, tmp_path / "i.tmp")
    assert saved_state(file) == STATE
    again = VectorIndex.load(file, 128)
    assert again.state == STATE
    assert again.ids.tolist() == index.ids.tolist()
    np.testing.assert_array_equal(
        again.search(person_vectors(1, 3), 3)[0], index.search(person_vectors(1, 3), 3)[0]
    )
    assert [f.name for f in tmp_path.iterdir()] == ["i"]


def test_a_failed_save_leaves_the_old_file(index: VectorIndex, tmp_path: Path) -> None:
    file = tmp_path / "i"
    index.save(file, tmp_path / "i.tmp")
    before = file.read_bytes()
    with pytest.raises(OSError, match="nowhere"):
        index.save(file, tmp_path / "nowhere" / "i.tmp")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:20], id="start only"),
        pytest.param(lambda data: data[:-1], id="last byte lost"),
        pytest.param(lambda data: data[: len(data) // 2], id="half"),
        pytest.param(lambda data: data + b"x", id="a byte too many"),
        pytest.param(lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:], id="a bit flipped"),
        pytest.param(lambda data: b"text " * 400, id="text"),
    ],
)
def test_damage_is_noticed_before_faiss_reads(
    index: VectorIndex, tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "i"
    index.save(file, tmp_path / "i.tmp")
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(DamagedIndexError):
        VectorIndex.load(file, 128)


def test_an_index_of_other_dimensions_is_refused(index: VectorIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "i", tmp_path / "i.tmp")
    with pytest.raises(DamagedIndexError, match="another kind"):
        VectorIndex.load(tmp_path / "i", 64)


# In the gallery


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gallery of Ada (5 templates) and Bob (3), closed."""
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 5)))
        gallery.add("Bob", templates(person_vectors(2, 3)))
    return tmp_path / "g"


def names_found(folder: Path) -> list[str | None]:
    with Gallery.open(folder, ENCODER) as gallery:
        return [m.name for m in gallery.match(np.concatenate([person_vectors(1, 1), person_vectors(2, 1)]))]


def test_a_whole_index_is_used_silently(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = folder / "index.faiss"
    before = file.stat().st_mtime_ns
    assert names_found(folder) == ["Ada", "Bob"]
    assert caplog.messages == []
    assert file.stat().st_mtime_ns == before


def _lose(file: Path) -> None:
    file.unlink()


def _spoil(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[300] ^= 0x10
    file.write_bytes(data)


def _make_unreadable(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _replace_by_foreign(file: Path) -> None:
    with Gallery.open(file.parent / "other", ENCODER, create=True) as other:
        other.add("Eve", templates(person_vectors(3, 5)))
        other.add("Zoe", templates(person_vectors(4, 3)))
    shutil.copy(file.parent / "other" / "index.faiss", file)
    shutil.rmtree(file.parent / "other")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_lose, "missing"),
        (_spoil, "damaged"),
        (lambda file: file.write_bytes(b""), "damaged"),
        (_replace_by_foreign, "another gallery"),
    ],
)
def test_a_bad_index_is_made_again_and_said_once(
    folder: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None], said: str
) -> None:
    harm(folder / "index.faiss")
    assert names_found(folder) == ["Ada", "Bob"]
    (record,) = caplog.records
    assert record.name == "facepipe"
    assert record.levelno == logging.WARNING
    assert said in record.message
    assert names_found(folder) == ["Ada", "Bob"]
    assert len(caplog.records) == 1


def test_an_index_that_can_not_be_replaced_does_no_harm(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _make_unreadable(folder / "index.faiss")
    assert names_found(folder) == ["Ada", "Bob"]
    assert "damaged" in caplog.messages[0]
    assert "could not be saved" in caplog.messages[1]


def test_a_stale_index_is_brought_up_to_date_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    stale = (folder / "index.faiss").read_bytes()
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.remove("Bob")
        gallery.add("Bob", templates(person_vectors(6, 2)))
        gallery.add("Eve", templates(person_vectors(2, 1)))
    (folder / "index.faiss").write_bytes(stale)
    assert names_found(folder) == ["Ada", "Eve"]
    (message,) = caplog.messages
    assert "out of date" in message
    assert names_found(folder) == ["Ada", "Eve"]
    assert len(caplog.messages) == 1


def test_a_copy_restored_by_hand_does_not_fool_the_index(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An older SQLite file put back, then changed: same generation, same ids, other vectors."""
    old = (folder / "gallery.sqlite3").read_bytes()
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Eve", templates(person_vectors(3, 1)))
    newer_index = (folder / "index.faiss").read_bytes()
    (folder / "gallery.sqlite3").write_bytes(old)
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Zoe", templates(person_vectors(4, 1)))
    (folder / "index.faiss").write_bytes(newer_index)
    caplog.clear()
    with Gallery.open(folder, ENCODER) as gallery:
        (match,) = gallery.match(person_vectors(4, 1))
    assert (match.name, match.distance_l2) == ("Zoe", 0.0)
    assert "another gallery" in caplog.messages[0]


def test_adding_is_incremental(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    add = VectorIndex.add

    def counting(self: VectorIndex, ids: np.ndarray, vectors: np.ndarray) -> None:
        added.append(len(ids))
        add(self, ids, vectors)

    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 50)))
        gallery.match(person_vectors(1, 1))
        monkeypatch.setattr(VectorIndex, "add", counting)
        gallery.add("Bob", templates(person_vectors(2, 3)))
        gallery.match(person_vectors(2, 1))
        gallery.remove("Ada")
        gallery.rename("Bob", "Rob")
        assert gallery.match(person_vectors(2, 1))[0].name == "Rob"
    assert added == [3]


def test_a_fresh_gallery_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.match(person_vectors(1, 1))
        gallery.add("Ada", templates(person_vectors(1, 2)))
        gallery.match(person_vectors(1, 1))
        gallery.remove("Ada")
    with Gallery.open(tmp_path, ENCODER) as gallery:
        gallery.add("Bob", templates(person_vectors(1, 2)))
        gallery.match(person_vectors(1, 1))
    assert caplog.messages == []


def test_changes_of_another_opening_are_seen(folder: Path) -> None:
    queries = person_vectors(3, 1)
    with Gallery.open(folder, ENCODER) as reader, Gallery.open(folder, ENCODER) as writer:
        assert reader.match(queries)[0].name is None
        writer.add("Eve", templates(queries))
        assert reader.match(queries)[0].name == "Eve"
        writer.rename("Eve", "Zoe")
        assert reader.match(queries)[0].name == "Zoe"
        writer.remove("Zoe")
        assert reader.match(queries)[0].name is None


def test_a_full_disk_while_saving_the_index_loses_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole device /dev/full answers every write with "no space left"."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    monkeypatch.setattr("gallery.gallery.INDEX_TEMPORARY_FILE", "full")
    (folder / "full").symlink_to("/dev/full")
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Eve", templates(person_vectors(3, 500)))
    assert "could not be saved" in caplog.messages[0]
    with Gallery.open(folder, ENCODER) as gallery:
        assert gallery.match(person_vectors(3, 1))[0].name == "Eve"
