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
from facepipe.gallery.index.file import DamagedIndexError, VectorState, erase_rows, read_index, saved_extent
from facepipe.gallery.index.vectors import VectorIndex

STATE = VectorState(7, b"0123456789abcdef")
LATER = VectorState(8, b"fedcba9876543210")
IDS = np.array([3, 10, 99])


@pytest.fixture(params=["read", "mapped"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved index of three vectors, that is read into memory or mapped."""
    monkeypatch.setattr(
        "facepipe.gallery.index.file.MAPPED_BYTES_MIN", 1 if request.param == "mapped" else 1 << 40
    )
    save(tmp_path / "i", IDS, person_vectors(1, 3))
    return tmp_path / "i"


def save(file: Path, ids: np.ndarray, vectors: np.ndarray) -> None:
    index = VectorIndex(vectors.shape[1])
    index.add(ids, vectors)
    index.state = STATE
    index.save(file)


def test_what_is_saved_is_loaded(file: Path) -> None:
    extent = saved_extent(file)
    assert extent is not None
    assert (extent.state, extent.rows, extent.removed, extent.last_id) == (STATE, 3, 0, 99)
    index = VectorIndex.load(file, 128)
    assert index.state == STATE
    assert index.ids.tolist() == [3, 10, 99]
    np.testing.assert_array_equal(index.vectors_of(IDS), person_vectors(1, 3))
    assert [f.name for f in file.parent.iterdir()] == ["i"]
    assert file.stat().st_mode & 0o077 == 0


def test_an_empty_index_is_saved_and_loaded(tmp_path: Path) -> None:
    save(tmp_path / "i", IDS[:0], person_vectors(1, 1)[:0])
    assert len(VectorIndex.load(tmp_path / "i", 128)) == 0


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
        pytest.param(lambda data: b"FACEPIX1" + data[8:], id="an older version"),
        pytest.param(lambda data: data[:44] + b"\xff" * 8 + data[52:], id="absurd number of rows"),
    ],
)
def test_damage_is_noticed(file: Path, harm: Callable[[bytes], bytes]) -> None:
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(DamagedIndexError):
        VectorIndex.load(file, 128)


def test_a_flipped_bit_anywhere_is_noticed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the padding between the header and the first block, which means nothing."""
    monkeypatch.setattr("facepipe.gallery.index.file._RETRY_S", 0)
    data = file.read_bytes()
    payload = data.index(IDS.astype("<i8").tobytes())
    header = len(data[:payload].rstrip(b"\0"))
    places = [*range(header), *range(payload, len(data), 17), len(data) - 1]
    for place in places:
        file.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        with pytest.raises(DamagedIndexError):
            VectorIndex.load(file, 128)
    file.write_bytes(data)
    assert len(VectorIndex.load(file, 128)) == 3


def test_an_index_of_other_dimensions_is_refused(file: Path) -> None:
    with pytest.raises(DamagedIndexError, match="another kind"):
        VectorIndex.load(file, 64)


def test_erased_rows_are_gone_from_the_file_and_from_whoever_mapped_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = person_vectors(1, 3)
    monkeypatch.setattr("facepipe.gallery.index.file.MAPPED_BYTES_MIN", 1)
    mapped = VectorIndex.load(file, 128)
    erase_rows(file, np.array([2, 10, 500]), LATER)
    assert vectors[1].tobytes() not in file.read_bytes()
    # It has not heard of the removal yet, and must not take zeros for a face that is near everybody.
    distances, ids = mapped.search(vectors[1:2], 3)
    assert dict(zip(ids[0].tolist(), np.isfinite(distances[0]).tolist(), strict=True)) == {
        3: True,
        99: True,
        10: False,
    }
    again = VectorIndex.load(file, 128)
    assert (again.state, again.ids.tolist()) == (LATER, [3, 99])
    extent = saved_extent(file)
    assert extent is not None
    assert (extent.rows, extent.removed, extent.last_id) == (3, 1, 99)
    again.save(file)
    assert VectorIndex.load(file, 128).ids.tolist() == [3, 99]


def test_erasing_touches_several_blocks(tmp_path: Path) -> None:
    """Rows of 512 bytes in blocks of 1 MiB, some of them across two."""
    vectors = unit(np.random.default_rng(1).normal(size=(6000, 128)))
    save(tmp_path / "i", np.arange(1, 6001), vectors)
    gone = np.arange(1, 6001, 7)
    erase_rows(tmp_path / "i", gone, LATER)
    _, columns = read_index(tmp_path / "i", 128)
    is_gone = np.isin(columns.ids, gone)
    assert not columns.vectors[is_gone].any()
    np.testing.assert_array_equal(columns.vectors[~is_gone], vectors[~is_gone])


def test_damaged_blocks_are_not_blessed_by_erasing(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-600] ^= 4
    file.write_bytes(data)
    with pytest.raises(DamagedIndexError):
        erase_rows(file, np.array([3]), LATER)
    assert file.read_bytes() == data


def test_readers_beside_an_eraser_see_whole_files(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(1).normal(size=(3000, 128)))
    file = tmp_path / "i"
    save(file, np.arange(1, 3001), vectors)

    def erase() -> None:
        for id in range(1, 3001, 120):
            erase_rows(file, np.array([id]), VectorState(id, STATE.token))

    eraser = threading.Thread(target=erase)
    eraser.start()
    lengths = [len(VectorIndex.load(file, 128))]
    while eraser.is_alive():
        lengths.append(len(VectorIndex.load(file, 128)))
    eraser.join()
    assert lengths == sorted(lengths, reverse=True)
    assert len(VectorIndex.load(file, 128)) == 2975


def test_an_eraser_that_was_killed_leaves_a_damaged_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facepipe.gallery.index.file._ERASING_S_MAX", 0.05)
    write_head, calls = index_file._write_head, iter([True, False])

    def write_first_only(*arguments: Any) -> None:
        if not next(calls):
            raise KeyboardInterrupt
        write_head(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("facepipe.gallery.index.file._write_head", write_first_only)
        with pytest.raises(KeyboardInterrupt):
            erase_rows(file, np.array([10]), LATER)
    with pytest.raises(DamagedIndexError):
        VectorIndex.load(file, 128)
    with pytest.raises(DamagedIndexError):
        erase_rows(file, np.array([10]), LATER)
