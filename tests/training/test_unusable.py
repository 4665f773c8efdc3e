"""Photos that can't be used are passed over, the first are named, and all are counted."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from facepipe.core.errors import DataError
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import read_image, write_image
from facepipe.training.engine.unusable import usable
from facepipe.training.recognition.sources import CropSource


@pytest.fixture
def crops(tmp_path: Path, astronaut: UInt8Array) -> Path:
    """Seven torn files between three crops."""
    folder = tmp_path / "crops"
    (folder / "ada").mkdir(parents=True)
    for number in range(10):
        path = folder / "ada" / f"{number}.png"
        write_image(path, astronaut[:40, number : number + 40])
        if number % 3:
            path.write_bytes(path.read_bytes()[:50])
    (folder / "ada" / "empty.jpg").touch()
    return folder


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_good_crops_train_in_their_order_and_the_first_torn_ones_are_named(
    crops: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faces = list(CropSource(crops, labelled=True).faces())
    assert [face.name for face in faces] == [f"crops/ada/{number}.png" for number in (0, 3, 6, 9)]
    assert {face.person for face in faces} == {"ada"}
    *named, count = _said(caplog)
    assert [line.split(":")[1].strip() for line in named] == [
        str(crops / "ada" / f"{number}.png") for number in (1, 2, 4, 5, 7)
    ]
    assert count == f"{crops}: 7 photos passed over, 4 used"


def test_torn_members_of_a_tar_file_are_passed_over(crops: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive = crops.with_suffix(".tar")
    with tarfile.open(archive, "w") as stream:
        stream.add(crops, "crops")
    assert len(list(CropSource(archive).faces())) == 4
    assert f"{archive}, crops/ada/" in _said(caplog)[0]
    assert _said(caplog)[-1] == f"{archive}: 7 photos passed over, 4 used"


def test_a_data_set_without_one_good_photo_is_an_error(crops: Path) -> None:
    torn = [crops / "ada" / "1.png", crops / "ada" / "empty.jpg"]
    with pytest.raises(DataError, match=r"crops: none of 2 photos can be used to train on; first .*1\.png"):
        list(CropSource(crops, photos=tuple(torn)).faces())


def test_good_data_is_no_reason_for_a_warning(crops: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = crops / "ada" / "0.png"
    [(path, pixels)] = usable(crops, [good], read_image)
    assert (path, pixels.shape) == (good, (40, 40, 3))
    assert list(usable(crops, [], read_image)) == []
    assert not caplog.records


def test_other_errors_are_not_the_photos(crops: Path) -> None:
    def fail(_: Path) -> None:
        raise DataError("the labels are wrong")

    with pytest.raises(DataError, match="labels"):
        list(usable(crops, [crops], fail))
    with pytest.raises(DataError, match="none of 1 photo can"):
        list(usable(crops, [crops / "gone.png"], read_image))
