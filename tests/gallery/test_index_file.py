"""The index file: what is written is read, what is harmed is refused, what is erased is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_helpers import person_vectors, unit

from facepipe.gallery.index import file as index_file
from facepipe.gallery.index.file import (
    DamagedIndexError,
    VectorState,
    erase_rows,
    read_index,
    record_file,
    saved_record,
)
from facepipe.gallery.index.parts import ERASED, QuantizedPart
from facepipe.gallery.index.vectors import VectorIndex

STATE = VectorState(7, b"0123456789abcdef")
LATER = VectorState(8, b"fedcba9876543210")
COUNT = 40
IDS = np.array([3, 10, 99, *range(100, 97 + COUNT)])
VECTORS = person_vectors(1, COUNT)


@pytest.fixture(params=["flat", "quantised"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved index of some vectors, that is read into memory or mapped."""
    monkeypatch.setattr(
        "facepipe.gallery.index.vectors.EXACT_ROWS_MAX", 1 if request.param == "quantised" else 1 << 40
    )
    save(tmp_path / "i", IDS, VECTORS)
    return tmp_path / "i"


def save(file: Path, ids: np.ndarray, vectors: np.ndarray) -> None:
    index = VectorIndex(vectors.shape[1])
    index.add(ids, vectors)
    index.state = STATE
    index.save(file)


def test_what_is_saved_is_loaded(file: Path) -> None:
    record = saved_record(file)
    assert record is not None
    assert (record.state, record.rows, record.erased, record.last_id) == (STATE, COUNT, 0, IDS[-1])
    index = VectorIndex.load(file, 128)
    assert (index.state, index.last_id) == (STATE, IDS[-1])
    assert index.ids.tolist() == IDS.tolist()
    np.testing.assert_array_equal(index.vectors_of(IDS), VECTORS)
    assert sorted(f.name for f in file.parent.iterdir()) == ["i", "i.json"]
    for name in ("i", "i.json"):
        assert (file.parent / name).stat().st_mode & 0o077 == 0


def test_rows_are_read_without_copying_all_of_them(file: Path) -> None:
    """To take some rows of vectors that are not aligned to their numbers, NumPy copies the whole array."""
    assert all(part.vectors.flags.aligned for part in VectorIndex.load(file, 128)._parts if len(part))


def test_faiss_itself_opens_the_file_and_finds_the_same(file: Path) -> None:
    faiss = pytest.importorskip("faiss")
    queries = person_vectors(1, 60, spread=0.06)[20:]
    distances, ids = VectorIndex.load(file, 128).search(queries, 5)
    theirs = faiss.read_index(str(file))
    assert type(theirs) is faiss.IndexIDMap2
    squares, labels = theirs.search(queries, 5)
    np.testing.assert_array_equal(labels, ids)
    np.testing.assert_allclose(np.sqrt(squares), distances, atol=2e-3)
    np.testing.assert_array_equal(theirs.reconstruct(99), VECTORS[2])


def test_faiss_finds_no_vector_that_was_erased(file: Path) -> None:
    faiss = pytest.importorskip("faiss")
    erase_rows(file, np.array([10, 99]), LATER)
    for count in (1, 30):  # FAISS computes batches from 20 on in another way.
        _, labels = faiss.read_index(str(file)).search(VECTORS[:count], COUNT)
        assert set(labels.ravel().tolist()) == {-1, *IDS.tolist()} - {10, 99}


def test_an_empty_index_is_saved_and_loaded(tmp_path: Path) -> None:
    save(tmp_path / "i", IDS[:0], VECTORS[:0])
    assert len(VectorIndex.load(tmp_path / "i", 128)) == 0
    erase_rows(tmp_path / "i", IDS, LATER)
    assert VectorIndex.load(tmp_path / "i", 128).state == LATER


def test_a_failed_save_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(OSError, match="nowhere"):
        VectorIndex(128).save(file.parent / "nowhere" / "i")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:20], id="start only"),
        pytest.param(lambda data: data[:-1], id="last byte lost"),
        pytest.param(lambda data: data[: len(data) // 2], id="half"),
        pytest.param(lambda data: data + b"x", id="a byte too many"),
        pytest.param(lambda data: b"text " * 400, id="text"),
        pytest.param(lambda data: b"FACEPIX1" + data[8:], id="a much older version"),
        pytest.param(lambda data: b"FACEPIX2" + data[8:], id="an older version"),
        pytest.param(lambda data: data[:8] + b"\xff" * 8 + data[16:], id="absurd number of rows"),
    ],
)
@pytest.mark.parametrize("place", [lambda file: file, record_file], ids=["index", "record"])
def test_damage_is_noticed(file: Path, place: Callable[[Path], Path], harm: Callable[[bytes], bytes]) -> None:
    place(file).write_bytes(harm(place(file).read_bytes()))
    with pytest.raises(DamagedIndexError):
        VectorIndex.load(file, 128)


def test_a_missing_record_is_noticed(file: Path) -> None:
    record_file(file).unlink()
    with pytest.raises(DamagedIndexError, match="no record"):
        VectorIndex.load(file, 128)
    assert saved_record(file) is None


def test_an_index_and_the_record_of_another_do_not_fit(file: Path) -> None:
    """As a kill between the two leaves them."""
    record = record_file(file).read_bytes()
    save(file, IDS, VECTORS[::-1])
    record_file(file).write_bytes(record)
    with pytest.raises(DamagedIndexError):
        VectorIndex.load(file, 128)


@pytest.mark.parametrize("place", [lambda file: file, record_file], ids=["index", "record"])
def test_a_flipped_bit_anywhere_is_noticed(file: Path, place: Callable[[Path], Path]) -> None:
    data = place(file).read_bytes()
    step = 1 + len(data) // 2000
    for at in [*range(0, len(data), step), len(data) - 1]:
        place(file).write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        with pytest.raises(DamagedIndexError):
            VectorIndex.load(file, 128)
    place(file).write_bytes(data)
    assert len(VectorIndex.load(file, 128)) == COUNT


def test_an_index_of_other_dimensions_is_refused(file: Path) -> None:
    with pytest.raises(DamagedIndexError, match="another kind"):
        VectorIndex.load(file, 64)


def test_erased_rows_are_gone_from_the_file_and_from_whoever_mapped_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facepipe.gallery.index.vectors.EXACT_ROWS_MAX", 1)
    file = tmp_path / "i"
    save(file, IDS, VECTORS)
    mapped = VectorIndex.load(file, 128)
    erase_rows(file, np.array([2, 10, 500]), LATER)
    assert VECTORS[1].tobytes() not in file.read_bytes()
    # It has not heard of the removal yet.
    distances, ids = mapped.search(VECTORS[1:2], COUNT)
    assert {id for id, l2 in zip(ids[0].tolist(), distances[0], strict=True) if not np.isfinite(l2)} == {10}
    again = VectorIndex.load(file, 128)
    assert (again.state, again.ids.tolist()) == (LATER, [id for id in IDS.tolist() if id != 10])
    record = saved_record(file)
    assert record is not None
    assert (record.rows, record.erased, record.last_id) == (COUNT, 1, IDS[-1])
    again.save(file)
    assert VectorIndex.load(file, 128).ids.tolist() == again.ids.tolist()
    record = saved_record(file)
    assert record is not None
    assert (record.rows, record.erased) == (COUNT - 1, 0)


def test_no_code_of_an_erased_vector_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facepipe.gallery.index.vectors.EXACT_ROWS_MAX", 1000)
    vectors = unit(np.random.default_rng(1).normal(size=(1100, 128)))
    save(tmp_path / "i", np.arange(1, 1101), vectors)
    _, whole = read_index(tmp_path / "i", 128)
    erase_rows(tmp_path / "i", np.arange(3, 1101, 3), LATER)
    _, part = read_index(tmp_path / "i", 128)
    assert isinstance(whole, QuantizedPart)
    assert isinstance(part, QuantizedPart)
    first = part.quantizer.reconstruct_n(0, 1100)
    erased = np.arange(2, 1100, 3)
    assert (first[erased] == first[2]).all()
    kept = np.delete(np.arange(1100), erased)
    np.testing.assert_array_equal(first[kept], whole.quantizer.reconstruct_n(0, 1100)[kept])


def test_erasing_touches_several_blocks(tmp_path: Path) -> None:
    """Rows of 512 bytes in blocks of 1 MiB, some of them across two."""
    vectors = unit(np.random.default_rng(1).normal(size=(6000, 128)))
    save(tmp_path / "i", np.arange(1, 6001), vectors)
    gone = np.arange(1, 6001, 7)
    erase_rows(tmp_path / "i", gone, LATER)
    record = saved_record(tmp_path / "i")
    assert record is not None
    data = np.fromfile(tmp_path / "i", np.uint8)
    is_gone = record.ids(data) == -1
    np.testing.assert_array_equal(np.flatnonzero(is_gone), gone - 1)
    assert (record.vectors(data)[is_gone] == ERASED).all()
    np.testing.assert_array_equal(record.vectors(data)[~is_gone], vectors[~is_gone])
    index = VectorIndex.load(tmp_path / "i", 128)
    np.testing.assert_array_equal(index.vectors_of(index.ids), vectors[~is_gone])


def test_damaged_blocks_are_not_blessed_by_erasing(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-600] ^= 4  # An id or a vector.
    file.write_bytes(data)
    with pytest.raises(DamagedIndexError):
        erase_rows(file, np.array([3]), LATER)
    assert file.read_bytes() == data


@pytest.mark.parametrize("limit", [1000, 1 << 40])
def test_readers_beside_an_eraser_and_a_writer_see_whole_files(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facepipe.gallery.index.vectors.EXACT_ROWS_MAX", limit)
    vectors = unit(np.random.default_rng(1).normal(size=(3000, 128)))
    file = tmp_path / "i"
    save(file, np.arange(1, 3001), vectors)

    def erase() -> None:
        for id in range(1, 3001, 120):
            erase_rows(file, np.array([id]), VectorState(id, STATE.token))
            if id % 600 == 1:
                VectorIndex.load(file, 128).save(file)

    eraser = threading.Thread(target=erase)
    eraser.start()
    lengths = [len(VectorIndex.load(file, 128))]
    while eraser.is_alive():
        lengths.append(len(VectorIndex.load(file, 128)))
    eraser.join()
    assert lengths == sorted(lengths, reverse=True)
    assert len(VectorIndex.load(file, 128)) == 2975


def test_an_eraser_that_was_killed_leaves_a_damaged_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facepipe.gallery.index.file._CHANGING_S_MAX", 0.05)
    write_record, calls = index_file._write_record, iter([True, False])

    def write_first_only(*arguments: Any) -> None:
        if not next(calls):
            raise KeyboardInterrupt
        write_record(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("facepipe.gallery.index.file._write_record", write_first_only)
        with pytest.raises(KeyboardInterrupt):
            erase_rows(file, np.array([10]), LATER)
    with pytest.raises(DamagedIndexError):
        VectorIndex.load(file, 128)
    with pytest.raises(DamagedIndexError):
        erase_rows(file, np.array([10]), LATER)
