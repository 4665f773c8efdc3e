"""The derived index: exact where small, nearly so where large, incremental, and never trusted blindly."""

from __future__ import annotations

import io
import logging
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import (
    ENCODER,
    INDEX_FILES,
    person_vectors,
    read_index_files,
    templates,
    unit,
    write_index_files,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from facepipe.core.faces import FloatArray
from facepipe.gallery import Gallery
from facepipe.gallery.index.file import saved_record
from facepipe.gallery.index.parts import IdArray, QuantizedPart, RowsOfIds, locate
from facepipe.gallery.index.vectors import VectorIndex
from facepipe.gallery.index_sync import DerivedIndex
from facepipe.gallery.storage.face_table import FaceTable


@pytest.fixture
def index() -> VectorIndex:
    return index_of(np.array([3, 10, 99]), person_vectors(1, 3))


def index_of(ids: IdArray, vectors: FloatArray) -> VectorIndex:
    index = VectorIndex(vectors.shape[1])
    index.add(ids, vectors)
    return index


def nearest_by_brute_force(
    queries: FloatArray, ids: IdArray, vectors: FloatArray, count: int
) -> tuple[FloatArray, IdArray]:
    distances = np.linalg.norm(queries[:, None].astype(float) - vectors.astype(float), axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(distances, order, axis=1), ids[order]


def test_search_gives_exact_distances_and_ids(index: VectorIndex) -> None:
    vectors = person_vectors(1, 3)
    distances, ids = index.search(vectors, 2)
    assert ids[:, 0].tolist() == [3, 10, 99]
    assert distances[:, 0].tolist() == [0, 0, 0]
    assert distances[0, 1] == pytest.approx(np.linalg.norm(vectors[1:] - vectors[0], axis=1).min(), abs=1e-6)


def test_search_asks_for_no_more_than_there_is(index: VectorIndex) -> None:
    query = person_vectors(1, 1)
    assert index.search(query, 50)[1].shape == (1, 3)
    assert sorted(index.search(query, 50, exclude_ids=np.array([10, 77]))[1][0].tolist()) == [3, 99]
    assert index.search(query, 50, exclude_ids=np.array([10, 3, 99]))[1].shape == (1, 0)
    assert index.search(query[:0], 2)[1].shape == (0, 2)
    assert VectorIndex(128).search(query, 5)[0].shape == (1, 0)


@pytest.mark.parametrize("ids", [[99, 100], [101, 101], [102, 101]])
def test_ids_must_rise(index: VectorIndex, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="rising"):
        index.add(np.array(ids), person_vectors(2, 2))
    assert index.ids.tolist() == [3, 10, 99]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_changes_leave_what_brute_force_finds(data: st.DataObject) -> None:
    """Vectors of all the lengths that count as unit length, ties among them."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    index = VectorIndex(8)
    held: dict[int, FloatArray] = {}
    next_id = 1
    for _ in range(data.draw(st.integers(1, 5))):
        count = data.draw(st.integers(0, 40))
        vectors = unit(rng.integers(-2, 3, (count, 8)) + 0.5) * rng.uniform(0.9991, 1.0009, (count, 1))
        ids = next_id + np.arange(count) * data.draw(st.integers(1, 3))
        index.add(ids, vectors.astype(np.float32))
        held |= dict(zip(ids.tolist(), vectors.astype(np.float32), strict=True))
        next_id = int(max([next_id, *ids])) + 1
        gone = rng.integers(0, next_id + 2, data.draw(st.integers(0, 20)))
        index.remove(gone)
        held = {id: vector for id, vector in held.items() if id not in gone}
    excluded = rng.integers(0, next_id + 2, data.draw(st.integers(0, 20)))
    allowed = {id: vector for id, vector in held.items() if id not in excluded}
    assert index.ids.tolist() == sorted(held)
    queries = unit(rng.normal(size=(3, 8)))
    distances, found = index.search(queries, 7, excluded)
    stored = np.array(list(allowed.values()), np.float32).reshape(-1, 8)
    expected, _ = nearest_by_brute_force(queries, np.array(list(allowed), np.int64), stored, 7)
    np.testing.assert_allclose(distances, expected, atol=1e-12)
    for query, row, ids in zip(queries, distances, found, strict=True):
        assert len(set(ids.tolist())) == len(ids)
        own = [np.linalg.norm(query.astype(float) - allowed[int(id)].astype(float)) for id in ids]
        np.testing.assert_allclose(row, own, atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(-1, 200) | st.integers(-1, 2**63 - 1)), st.lists(st.integers(-1, 2**63 - 1)))
def test_rows_are_found_wherever_ids_are_missing_or_repeated(ids: list[int], others: list[int]) -> None:
    column = np.sort(np.array(ids, np.int64))
    asked = np.array([*others, *ids, *(id + 1 for id in ids if id < 300)], np.int64)
    rows, is_present = RowsOfIds(column).locate(asked)
    expected_rows, expected = locate(column, asked)
    np.testing.assert_array_equal(is_present, expected)
    np.testing.assert_array_equal(rows[is_present], expected_rows[expected])


def test_many_queries_are_answered_as_few_are() -> None:
    index = index_of(np.arange(1, 3001), person_vectors(1, 3000, spread=0.2))
    queries = person_vectors(2, 700, spread=0.2)
    distances, ids = index.search(queries, 3)
    some_distances, some_ids = index.search(queries[650:655], 3)
    np.testing.assert_array_equal(ids[650:655], some_ids)
    np.testing.assert_allclose(distances[650:655], some_distances, atol=1e-12)


# Large


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """From 3,000 vectors on the index changes over to the quantised scan, which brings 100 candidates."""
    monkeypatch.setattr("facepipe.gallery.index.vectors.EXACT_ROWS_MAX", 3000)
    monkeypatch.setattr("facepipe.gallery.index.parts.CANDIDATES", 100)
    return 3000


def crowd(count: int) -> FloatArray:
    """(count, 128) vectors of many people, ten each."""
    rng = np.random.default_rng(5)
    people = np.repeat(rng.normal(size=(-(-count // 10), 128)), 10, axis=0)[:count]
    return unit(people + 0.7 * rng.normal(size=(count, 128)))


def is_quantized(index: VectorIndex) -> bool:
    return [type(part) for part in index._frozen] == [QuantizedPart]


def quantized(vectors: FloatArray) -> VectorIndex:
    index = index_of(np.arange(1, len(vectors) + 1), vectors)
    index.settle()
    assert is_quantized(index)
    return index


def test_the_changeover_happens_beside_searches_that_stay_exact(small_limit: int) -> None:
    vectors = crowd(4000)
    index = index_of(np.arange(1, 3001), vectors[:3000])
    index.search(vectors[:1], 1)
    assert index._merging is None
    index.add(np.arange(3001, 4001), vectors[3000:])
    expected = nearest_by_brute_force(vectors[::100], np.arange(1, 4001), vectors, 5)
    searches = 0
    while not is_quantized(index):
        np.testing.assert_array_equal(index.search(vectors[::100], 5)[1], expected[1])
        searches += 1
        assert searches < 10_000
    distances, ids = index.search(vectors[::100], 5)
    assert ids[:, 0].tolist() == list(range(1, 4001, 100))
    assert (ids == expected[1]).mean() > 0.98
    np.testing.assert_allclose(distances[ids == expected[1]], expected[0][ids == expected[1]], atol=1e-12)


def test_the_quantised_scan_learns_of_additions_and_removals(small_limit: int) -> None:
    vectors = crowd(4000)
    index = quantized(vectors[:3500])
    index.add(np.arange(3501, 4001), vectors[3500:])
    index.remove(np.arange(1, 4001, 2))
    ids = index.search(vectors, 1)[1]
    assert (ids[1::2, 0] == np.arange(2, 4001, 2)).all()
    assert (ids % 2 == 0).all()
    assert len(index) == 2000


def test_where_candidates_run_short_all_are_looked_at(small_limit: int) -> None:
    """More photos of one person than there are candidates, all of them passed over or removed."""
    vectors = np.concatenate([person_vectors(1, 500, spread=0.001), crowd(3000)])
    own, others = np.arange(1, 501), np.arange(501, 3501)
    index = quantized(vectors)
    query = person_vectors(1, 1)
    expected = nearest_by_brute_force(query, others, vectors[500:], 5)
    np.testing.assert_array_equal(index.search(query, 5, exclude_ids=own)[1], expected[1])
    index.remove(own)
    np.testing.assert_array_equal(index.search(query, 5)[1], expected[1])
    np.testing.assert_allclose(index.search(query, 5)[0], expected[0], atol=1e-12)


def test_a_quantised_index_is_saved_and_goes_on(small_limit: int, tmp_path: Path) -> None:
    vectors = crowd(4000)
    index = index_of(np.arange(1, 3501), vectors[:3500])
    index.remove(np.array([7, 8]))
    index.save(tmp_path / "i")  # Waits for the codes.
    record = saved_record(tmp_path / "i")
    assert record is not None
    assert (record.rows, record.last_id, record.code_bytes > 0) == (3498, 3500, True)
    again = VectorIndex.load(tmp_path / "i", 128)
    index.add(np.arange(3501, 4001), vectors[3500:])
    again.add(np.arange(3501, 4001), vectors[3500:])
    again.save(tmp_path / "j")  # Of codes from the file and codes made since.
    third = VectorIndex.load(tmp_path / "j", 128)
    expected = index.search(vectors[::50], 4)
    for other in (again, third):
        np.testing.assert_array_equal(other.search(vectors[::50], 4)[1], expected[1])


@pytest.mark.parametrize("kept", [0, 5, 3100])
def test_what_is_left_of_a_quantised_index_is_saved(small_limit: int, tmp_path: Path, kept: int) -> None:
    vectors = crowd(4000)
    quantized(vectors).save(tmp_path / "i")
    index = VectorIndex.load(tmp_path / "i", 128)
    index.remove(np.arange(kept + 1, 4001))
    index.save(tmp_path / "i")
    for again in (index, VectorIndex.load(tmp_path / "i", 128)):
        assert (len(again), is_quantized(again)) == (kept, kept > small_limit)
        assert again.ids.tolist() == list(range(1, kept + 1))
        assert again.last_id == 4000
        assert again.search(vectors[:3], 1)[1].ravel().tolist() == [1, 2, 3][: 3 * min(kept, 1)]


@pytest.mark.parametrize("dimensions", [3, 6, 7, 8])
def test_vectors_of_any_length_are_quantised(small_limit: int, tmp_path: Path, dimensions: int) -> None:
    vectors = unit(np.random.default_rng(1).normal(size=(3100, dimensions)))
    index = quantized(vectors)
    assert index.search(vectors[:20], 1)[1][:, 0].tolist() == list(range(1, 21))
    index.save(tmp_path / "i")
    assert VectorIndex.load(tmp_path / "i", dimensions).search(vectors[:20], 1)[0].max() == 0


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
    write_index_files(file.parent, read_index_files(file.parent / "other"))
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
    told = len(caplog.records)
    assert {(record.name, record.levelno) for record in caplog.records} == {("facepipe", logging.WARNING)}
    assert said in caplog.text
    assert names_found(folder) == ["Ada", "Bob"]
    assert len(caplog.records) == told


def test_an_index_that_can_not_be_replaced_does_no_harm(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _make_unreadable(folder / "index.faiss")
    assert names_found(folder) == ["Ada", "Bob"]
    assert "damaged" in caplog.messages[0]
    assert "could not be saved" in caplog.messages[1]


def test_a_stale_index_is_brought_up_to_date_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    stale = read_index_files(folder)
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.remove("Bob")
        gallery.add("Bob", templates(person_vectors(6, 2)))
        gallery.add("Eve", templates(person_vectors(2, 1)))
    write_index_files(folder, stale)
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
    newer_index = read_index_files(folder)
    (folder / "gallery.sqlite3").write_bytes(old)
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Zoe", templates(person_vectors(4, 1)))
    write_index_files(folder, newer_index)
    caplog.clear()
    with Gallery.open(folder, ENCODER) as gallery:
        (match,) = gallery.match(person_vectors(4, 1))
    assert (match.name, match.distance_l2) == ("Zoe", 0.0)
    assert "lost 1 face that its index knew (templates 9)" in caplog.messages[0]  # Eve's.


def test_catching_up_reads_only_what_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    as_vectors = FaceTable.as_vectors

    def counting(self: FaceTable, blobs: list[bytes], what: str) -> FloatArray:
        read.append(len(blobs))
        return as_vectors(self, blobs, what)

    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Crowd", templates(crowd(600)))
    with Gallery.open(folder, ENCODER) as gallery:
        monkeypatch.setattr(FaceTable, "as_vectors", counting)
        gallery.match(person_vectors(1, 1))
        assert sum(read) == 0  # The file holds all of them.
        with Gallery.open(folder, ENCODER) as other:
            other.add("Eve", templates(person_vectors(3, 3)))
            other.remove("Ada")
            read.clear()  # Of what adding compares with.
        gallery.rename("Bob", "Rob")
        matches = gallery.match(np.stack([person_vectors(i, 1)[0] for i in (1, 2, 3)]))
        assert [match.name for match in matches] == [None, "Rob", "Eve"]
        assert sum(read) == 3


def test_little_news_is_not_worth_a_new_file(folder: Path) -> None:
    file = folder / "index.faiss"
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Crowd", templates(crowd(600)))
    before = file.read_bytes()
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Eve", templates(person_vectors(3, 3)))
        assert gallery.info().index_is_current
    assert file.read_bytes() == before
    assert names_found(folder) == ["Ada", "Bob"]
    with Gallery.open(folder, ENCODER) as gallery:
        assert gallery.match(person_vectors(3, 1))[0].name == "Eve"
        gallery.add("Zoe", templates(person_vectors(4, 30)))
        assert not gallery.info().index_is_current
    assert file.read_bytes() != before


def test_erasing_in_a_file_that_lacks_the_newest_loses_none(folder: Path) -> None:
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Crowd", templates(crowd(600)))
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Eve", templates(person_vectors(3, 3)))  # Too few for a new file.
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.remove("Bob")
    with Gallery.open(folder, ENCODER) as gallery:
        matches = gallery.match(np.stack([person_vectors(i, 1)[0] for i in (1, 2, 3)]))
    assert [match.name for match in matches] == ["Ada", None, "Eve"]


def test_removing_overwrites_rows_of_the_file_in_place(folder: Path) -> None:
    file = folder / "index.faiss"
    inode, size = file.stat().st_ino, file.stat().st_size
    with Gallery.open(folder, ENCODER) as reader:
        assert reader.match(person_vectors(2, 1))[0].name == "Bob"
        with Gallery.open(folder, ENCODER) as gallery:
            gallery.remove("Bob")
            assert (file.stat().st_ino, file.stat().st_size) == (inode, size)
            assert person_vectors(2, 3)[1].tobytes() not in file.read_bytes()
            assert person_vectors(1, 5)[1].tobytes() in file.read_bytes()
        assert reader.match(person_vectors(2, 1))[0].name is None
    assert names_found(folder) == ["Ada", None]


def test_what_a_killed_remover_left_is_erased_by_the_next_opening(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = person_vectors(2, 3)[1].tobytes()
    with monkeypatch.context() as patch:
        patch.setattr(DerivedIndex, "erase_removed", lambda self: None)
        patch.setattr(DerivedIndex, "save", lambda self: None)
        with Gallery.open(folder, ENCODER) as gallery:
            gallery.remove("Bob")
    assert vector in (folder / "index.faiss").read_bytes()
    Gallery.open(folder).close()
    assert vector not in (folder / "index.faiss").read_bytes()
    assert names_found(folder) == ["Ada", None]


def test_an_index_that_can_not_be_erased_in_place_is_deleted(folder: Path) -> None:
    file = folder / "index.faiss"
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.match(person_vectors(1, 1))
        data = bytearray(file.read_bytes())
        data[-40] ^= 1
        file.write_bytes(data)
        gallery.remove("Bob")
        assert not file.exists()
    assert names_found(folder) == ["Ada", None]


@pytest.mark.parametrize("limit", [600, 1 << 40])
def test_a_file_replaced_while_in_use_disturbs_nobody(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Mapped or read, another process' file takes its place, and more is removed from that."""
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Crowd", templates(crowd(700)))
    monkeypatch.setattr("facepipe.gallery.index.vectors.EXACT_ROWS_MAX", limit)
    queries = np.stack([person_vectors(i, 1)[0] for i in (1, 2, 3)])
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.rebuild_index()
    with Gallery.open(folder, ENCODER) as reader:
        assert [m.name for m in reader.match(queries)] == ["Ada", "Bob", None]
        with Gallery.open(folder, ENCODER) as writer:
            writer.add("Eve", templates(person_vectors(3, 50)))
        assert [m.name for m in reader.match(queries)] == ["Ada", "Bob", "Eve"]
        with Gallery.open(folder, ENCODER) as writer:
            writer.remove("Ada")
        assert [m.name for m in reader.match(queries)] == [None, "Bob", "Eve"]
        with Gallery.open(folder, ENCODER) as late:
            assert [m.name for m in late.match(queries)] == [None, "Bob", "Eve"]


def test_every_way_of_removing_a_template_is_known_to_the_index(folder: Path) -> None:
    """Whoever deletes rows, the database itself keeps the log that indexes catch up by."""
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.match(person_vectors(1, 1))
        gallery.add("Twin", templates(person_vectors(1, 5)))
        gallery.merge("Twin", "Ada")  # Has all five: these are dropped.
        with closing(sqlite3.connect(folder / "gallery.sqlite3")) as sql:
            logged = sql.execute("SELECT generation, template_id FROM removed_templates").fetchall()
        assert [id for _, id in logged] == [9, 10, 11, 12, 13]
        assert {generation for generation, _ in logged} == {gallery.info().generation}
        assert gallery.match(person_vectors(1, 1))[0].name == "Ada"


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
    monkeypatch.setattr(
        "facepipe.gallery.index.file.atomic_file",
        lambda file: io.BufferedWriter(io.FileIO("/dev/full", "wb")),
    )
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Eve", templates(person_vectors(3, 500)))
    assert "could not be saved" in caplog.messages[0]
    with Gallery.open(folder, ENCODER) as gallery:
        assert gallery.match(person_vectors(3, 1))[0].name == "Eve"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_an_index_that_is_no_file_is_told_and_made_again(
    folder: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder / "index.faiss"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    with Gallery.open(folder, ENCODER) as gallery:
        assert gallery.match(person_vectors(2, 1))[0].name == "Bob"
        gallery.remove("Ada")
    assert "index.faiss: the index is damaged (can't be read: not an ordinary file)" in caplog.text
    with Gallery.open(folder, ENCODER) as gallery:
        assert gallery.match(person_vectors(2, 1))[0].name == "Bob"
    assert stat.S_ISREG(os.lstat(file).st_mode)


# Of earlier versions


OLD_FORMAT = b"FACEPIX2"


def write_old_index(folder: Path, generation: int, token: bytes) -> bytes:
    """An index as it was before FAISS wrote it: of it nothing but the state is read any more."""
    for name in INDEX_FILES:
        (folder / name).unlink()
    data = OLD_FORMAT + generation.to_bytes(8, "little") + token + person_vectors(2, 3).tobytes()
    (folder / "index.faiss").write_bytes(data)
    return data


def state_of(folder: Path) -> tuple[int, bytes]:
    with closing(sqlite3.connect(folder / "gallery.sqlite3")) as sql:
        return tuple(sql.execute("SELECT * FROM vector_states ORDER BY generation DESC").fetchone())


def test_an_index_of_an_earlier_version_is_replaced_without_a_word(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_old_index(folder, *state_of(folder))
    assert names_found(folder) == ["Ada", "Bob"]
    assert not (folder / "index.faiss").read_bytes().startswith(OLD_FORMAT)
    assert names_found(folder) == ["Ada", "Bob"]
    assert caplog.messages == []


def test_what_is_removed_leaves_an_index_of_an_earlier_version(folder: Path) -> None:
    write_old_index(folder, *state_of(folder))
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.remove("Bob")
        assert not (folder / "index.faiss").exists()


def test_an_index_of_an_earlier_version_that_is_ahead_is_kept(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_old_index(folder, 99, b"0123456789abcdef")
    assert names_found(folder) == ["Ada", "Bob"]
    (file,) = folder.glob("index.lost-*.faiss")
    assert file.read_bytes() == data
    assert "can't be read" in caplog.messages[0]
