from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_helpers import LANDMARKS, write_dataset

from facepipe.cli import main
from facepipe.core.errors import DataError, PhotoError, UsageError
from facepipe.core.faces import UInt8Array
from facepipe.evaluation.labels import read_labels, unlabelled_photos
from facepipe.images.reading import read_image, write_image
from facepipe.training.detection.check import check_dataset, swapped_landmarks
from facepipe.training.detection.data import DecodedPhotos, PhotoFiles

_POINTS = "1 2 0 3 4 0 5 6 0 7 8 0 9 10 0 0.5"
_UNKNOWN = " ".join(["-1"] * 15) + " 0"


def _labels(folder: Path, text: str, name: str = "label.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_retinaface_labels(tmp_path: Path) -> None:
    text = f"# a/one.jpg\n10 20 30 40 {_POINTS}\n1.5 2 3 4 {_UNKNOWN}\n\n# two.jpg\n# three.jpg\n5 6 7 8\n"
    one, two, three = read_labels(_labels(tmp_path, text))
    assert one.path == tmp_path / "a" / "one.jpg"  # there is no folder images/
    assert one.boxes_xyxy.tolist() == [[10, 20, 40, 60], [1.5, 2, 4.5, 6]]
    assert one.landmarks[0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    assert np.isnan(one.landmarks[1]).all()
    assert two.boxes_xyxy.shape == (0, 4)
    assert np.isnan(three.landmarks).all()


def test_only_minus_one_minus_one_is_an_unknown_landmark(tmp_path: Path) -> None:
    points = "-3 2 0 -1 4 0 -1 -1 -1 7 8 0 9 10 0 0.5"  # a face that the photo's left edge cuts
    (photo,) = read_labels(_labels(tmp_path, f"# a.jpg\n-4 0 10 10 {points}\n"))
    assert np.isnan(photo.landmarks[0]).all(axis=1).tolist() == [False, False, True, False, False]


def test_wider_labels(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    text = (
        "0--Parade/a.jpg\n2\n449 330 122 149 0 0 0 0 0 0\n361 98 263 339 0 0 0 1 0 0\n"
        "0--Parade/none.jpg\n0\n0 0 0 0 0 0 0 0 0 0\nb.jpg\n1\n1 2 3 4\n\n"
    )
    a, none, b = read_labels(_labels(tmp_path, text, "wider_face_train_bbx_gt.txt"))
    assert a.path == tmp_path / "images" / "0--Parade" / "a.jpg"
    assert a.boxes_xyxy.tolist() == [[449, 330, 571, 479]]
    assert a.ignored_xyxy.tolist() == [[361, 98, 624, 437]]  # marked invalid
    assert len(none.boxes_xyxy) == len(none.ignored_xyxy) == 0
    assert b.boxes_xyxy.tolist() == [[1, 2, 4, 6]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("label.txt", "", "names no photos"),
        ("label.txt", "1 2 3 4\n", "line 1: expected '# photo'"),
        ("label.txt", "# a.jpg\n1 2 three 4\n", "line 2: expected numbers, got '1 2 three 4'"),
        ("label.txt", "# a.jpg\n1 2 3\n", "line 2: expected 4 numbers (a box), or 19 numbers"),
        ("label.txt", "# a.jpg\n1 2 nan 4\n", "line 2: expected finite numbers"),
        ("x_bbx_gt.txt", "a.jpg\nmany\n", "line 2: expected the number of faces, got 'many'"),
        ("x_bbx_gt.txt", "a.jpg\n-1\n", "line 2: expected the number of faces"),
        ("x_bbx_gt.txt", "a.jpg\n3²\n", "line 2: expected the number of faces, got '3²'"),
        ("x_bbx_gt.txt", f"a.jpg\n{'9' * 5000}\n", "line 2: expected the number of faces"),
        ("x_bbx_gt.txt", "a.jpg\n", "line 2: expected the number of faces, got ''"),
        ("x_bbx_gt.txt", "a.jpg\n2\n1 2 3 4\n", "ends before the 2 faces of a.jpg"),
        ("x_bbx_gt.txt", "a.jpg\n1\n1 2 3\n", "line 3: expected 4 numbers (a box), or 10 numbers"),
        ("x_bbx_gt.txt", "a.jpg\n1\n1 2 3 4 0 0 0\n", "line 3: expected 4 numbers"),
        ("other.txt", "", "found no label.txt, *bbx_gt.txt, *.json"),
    ],
)
def test_bad_labels_name_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_labels(_labels(tmp_path, text, name))
    assert str(tmp_path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("count", [0, *range(5, 19), 21, 24])
def test_a_face_that_would_lose_its_landmarks_is_refused(tmp_path: Path, count: int) -> None:
    text = f"# a.jpg\n{' '.join('7' for _ in range(4))}\n# b.jpg\n{' '.join('7' for _ in range(count))}\n"
    if not count:
        assert len(read_labels(_labels(tmp_path, text))) == 2
        return
    with pytest.raises(DataError, match=rf"label\.txt, line 4: expected .*, got {count}: '7 7"):
        read_labels(_labels(tmp_path, text))
    done = CliRunner().invoke(main, ["data", "check", str(tmp_path)])
    assert done.exit_code == 1
    assert "label.txt, line 4" in done.output


def test_several_label_files_must_be_chosen_from(tmp_path: Path) -> None:
    for name in ("train_bbx_gt.txt", "val_bbx_gt.txt"):
        _labels(tmp_path, f"{name}.jpg\n0\n0 0 0 0\n", name)
    with pytest.raises(DataError, match="several label files"):
        read_labels(tmp_path)
    (photo,) = read_labels(tmp_path, tmp_path / "val_bbx_gt.txt")
    assert photo.path.name == "val_bbx_gt.txt.jpg"


def test_labels_that_are_not_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "label.txt").write_bytes(b"# \xff\xfe.jpg\n")
    with pytest.raises(DataError, match=r"label\.txt"):
        read_labels(tmp_path)


def test_unlabelled_photos(tmp_path: Path, astronaut: UInt8Array) -> None:
    write_dataset(tmp_path, astronaut)
    photos = unlabelled_photos(tmp_path / "images")
    assert [photo.path.name for photo in photos] == ["0.png", "1.png"]
    with pytest.raises(UsageError):
        unlabelled_photos(_labels(tmp_path / "empty", ""))


def test_cached_pixels_are_the_photos(tmp_path: Path, astronaut: UInt8Array) -> None:
    photos = read_labels(write_dataset(tmp_path / "data", astronaut))
    cached, files = DecodedPhotos(photos, tmp_path / "cache"), PhotoFiles(photos)
    for i, photo in enumerate(photos):
        assert np.array_equal(cached.pixels(i), read_image(photo.path))
        assert np.array_equal(files.pixels(i), cached.pixels(i))


def test_the_cache_is_used_and_a_changed_photo_or_torn_file_renews_it(
    tmp_path: Path, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = read_labels(write_dataset(tmp_path / "data", astronaut))
    DecodedPhotos(photos, tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr("facepipe.training.detection.data.read_image", lambda _: pytest.fail("decoded again"))
        DecodedPhotos(photos, tmp_path / "cache")
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    pixels.write_bytes(pixels.read_bytes()[:-1])
    assert np.array_equal(DecodedPhotos(photos, tmp_path / "cache").pixels(1), read_image(photos[1].path))
    write_image(photos[0].path, astronaut[:99, :77])
    assert DecodedPhotos(photos, tmp_path / "cache").pixels(0).shape == (99, 77, 3)


def test_a_cache_leaves_out_what_cannot_be_read(tmp_path: Path, astronaut: UInt8Array) -> None:
    photos = read_labels(write_dataset(tmp_path / "data", astronaut))
    first = read_image(photos[0].path)
    photos[1].path.write_bytes(b"no photo")
    for _ in range(2):
        cached = DecodedPhotos(photos, tmp_path / "cache")
        assert np.array_equal(cached.pixels(0), first)
        with pytest.raises(PhotoError, match=r"1\.png: could not be read"):
            cached.pixels(1)
    photos[1].path.unlink()
    with pytest.raises(PhotoError, match=r"1\.png: could not be read"):
        DecodedPhotos(photos, tmp_path / "cache").pixels(1)


def test_a_cache_that_fails_leaves_nothing(tmp_path: Path, astronaut: UInt8Array) -> None:
    photos = read_labels(write_dataset(tmp_path / "data", astronaut))
    for photo in photos:
        photo.path.write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"no photo can be read, such as .*1\.png.*; check with"):
        DecodedPhotos(photos, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't write the cache"):
        DecodedPhotos(photos[:1], tmp_path / "file")


def test_a_sound_data_set_has_no_faults(tmp_path: Path, astronaut: UInt8Array) -> None:
    report = check_dataset(write_dataset(tmp_path, astronaut))
    assert (report.photos, report.faces, report.with_landmarks, report.ignored) == (2, 2, 2, 0)
    assert report.faults == ()
    assert [(low, n) for low, _, n in report.sizes if n] == [(16, 1), (32, 1)]


def test_faults_of_a_data_set_are_found(tmp_path: Path, astronaut: UInt8Array) -> None:
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "a.png", astronaut)
    (tmp_path / "images" / "broken.png").write_bytes(b"?")
    astray = " ".join("300 300 0" for _ in range(5)) + " 1"
    rows = [
        "# a.png",
        "10 10 20 20",
        "10 10 0 20",
        "500 10 40 20",
        f"10 10 20 20 {astray}",
        "# gone.png",
        "1 1 9 9",
        "# broken.png",
        "1 1 9 9",
        "# a.png",
    ]
    report = check_dataset(_labels(tmp_path, "\n".join(rows)))
    assert report.fault_counts == {
        "photo listed twice": 1,
        "zero size": 1,
        "box outside the photo": 1,
        "landmarks outside the box": 1,
        "missing photo": 1,
        "unreadable photo": 1,
        "photo without faces": 1,
    }
    outside = next(fault for fault in report.faults if fault.kind == "box outside the photo")
    assert (outside.photo.name, outside.detail) == ("a.png", "x 500 y 10 w 40 h 20 in 512x512")
    assert report.to_dict()["fault_counts"] == report.fault_counts


def test_the_development_data_is_as_its_readme_says(shared_data: Path) -> None:
    photos = read_labels(shared_data / "wider" / "train")
    assert len(photos) == 2426
    faces = np.concatenate([photo.landmarks for photo in photos])
    known = np.isfinite(faces).all(axis=(1, 2))
    assert 0 < known.sum() < len(known)
    photos = read_labels(shared_data / "landmarks" / "train")
    assert len(photos) == 1500
    assert all(np.isfinite(photo.landmarks).all() and len(photo.landmarks) == 1 for photo in photos)


_SWAPS = {
    "eyes swapped": [1, 0, 2, 3, 4],
    "mouth corners swapped": [0, 1, 2, 4, 3],
    "face mirrored": [1, 0, 2, 4, 3],
}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(degrees=st.floats(-180, 180), scale=st.floats(0.2, 4), kind=st.sampled_from([None, *_SWAPS]))
def test_swapped_landmarks_are_found_however_the_face_is_turned(
    tmp_path: Path, degrees: float, scale: float, kind: str | None
) -> None:
    matrix = cv2.getRotationMatrix2D((225, 130), degrees, scale)
    points = LANDMARKS @ matrix[:, :2].T + matrix[:, 2]
    if kind:
        points = points[_SWAPS[kind]]
    line = " ".join(f"{x:.3f} {y:.3f} 0" for x, y in points)
    (tmp_path / "images").mkdir(exist_ok=True)
    if not (tmp_path / "images" / "a.png").exists():
        write_image(tmp_path / "images" / "a.png", np.zeros((512, 512, 3), np.uint8))
    report = check_dataset(_labels(tmp_path, f"# a.png\n0 0 512 512 {line}\n"))
    assert [fault.kind for fault in report.faults if fault.kind in _SWAPS] == ([kind] if kind else [])


def test_unknown_landmarks_are_not_swapped(tmp_path: Path, astronaut: UInt8Array) -> None:
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "a.png", astronaut)
    one_eye = "-1 -1 0 203 108 0 225 130 0 206 152 0 242 152 0"
    report = check_dataset(_labels(tmp_path, f"# a.png\n178 68 90 118 {one_eye}\n178 68 90 118 {_UNKNOWN}\n"))
    assert report.faults == ()


def test_real_labels_have_no_swapped_landmarks(shared_data: Path) -> None:
    for name in ("wider/train", "landmarks/train", "landmarks/dev"):
        points = [face for photo in read_labels(shared_data / name) for face in photo.landmarks]
        known = [face for face in points if np.isfinite(face).all()]
        assert len(known) >= 300
        assert [swapped_landmarks(face) for face in known if swapped_landmarks(face)] == []
