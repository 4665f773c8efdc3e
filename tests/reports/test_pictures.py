"""Pictures of results: laid out as the photos are, and never in the place of a photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline_helpers import faces_at

from facepipe.core.errors import OutputError, UsageError
from facepipe.core.faces import Match, UInt8Array
from facepipe.core.overwriting import VECTORS
from facepipe.images.reading import read_image, write_image
from facepipe.pipeline import PhotoResult
from facepipe.reports.pictures import PictureFolder, make_folder, require_place


def gradient(width: int = 60, height: int = 40) -> UInt8Array:
    """Red says x, green says y."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 4, np.zeros_like(x)], axis=-1).astype(np.uint8)


def photo_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, gradient())
    return path


def result(
    path: Path, *names: str | None, box: tuple[float, float, float, float] = (20, 10, 40, 30)
) -> PhotoResult:
    faces = faces_at(*[box] * len(names))
    matches = [Match(name, 0.5, 1.05) for name in names]
    return PhotoResult(path, gradient(), faces.with_matches(matches))


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_annotated_photos_keep_their_layout(tmp_path: Path) -> None:
    photos = [photo_at(tmp_path / "in" / name) for name in ("a.png", "day 1/a.png", "day 2/é.jpg")]
    pictures = PictureFolder(tmp_path / "out", photos)
    for photo in photos:
        assert pictures.write_annotated(result(photo, "Ada")).is_file()
    assert below(tmp_path / "out") == ["a.png", "day 1/a.png", "day 2/é.jpg"]
    annotated = read_image(tmp_path / "out" / "a.png")
    assert annotated.shape == (40, 60, 3)
    assert (annotated != gradient()).any()
    np.testing.assert_array_equal(read_image(photos[0]), gradient())


def test_one_photo_needs_no_sub_folders(tmp_path: Path) -> None:
    photo = photo_at(tmp_path / "deep" / "down" / "a.png")
    written = PictureFolder(tmp_path / "out", [photo]).write_annotated(result(photo))
    assert written == tmp_path / "out" / "a.png"


def test_a_link_that_leads_out_of_the_folder_is_not_written_through(tmp_path: Path) -> None:
    photos = [photo_at(tmp_path / "in" / name / "a.png") for name in ("day 1", "day 2")]
    theirs = photo_at(tmp_path / "theirs" / "a.png").read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "day 1").symlink_to(tmp_path / "theirs")
    pictures = PictureFolder(tmp_path / "out", photos)
    with pytest.raises(OutputError, match="leads out"):
        pictures.write_annotated(result(photos[0], "Ada"))
    assert pictures.write_annotated(result(photos[1], "Ada")).is_file()
    assert (tmp_path / "theirs" / "a.png").read_bytes() == theirs


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo_at(tmp_path / "in" / "a.png")
    photo_at(tmp_path / "in" / "sub" / "b.png")
    monkeypatch.chdir(tmp_path / "in")
    photos = [Path("a.png"), Path("sub/../sub/b.png")]
    pictures = PictureFolder(Path("../out"), photos)
    for photo in photos:
        pictures.write_annotated(result(photo))
    assert below(tmp_path / "out") == ["a.png", "sub/b.png"]


@pytest.mark.parametrize("name", ["a.heic", "a.gif", "a.AVIF", "a"])
def test_formats_that_are_only_read_become_jpeg(tmp_path: Path, name: str) -> None:
    photo = tmp_path / "in" / name
    photo_at(tmp_path / "in" / "x.png").rename(photo)
    written = PictureFolder(tmp_path / "out", [photo]).write_annotated(result(photo))
    assert written.name == f"{name}.jpg"
    assert read_image(written).shape == (40, 60, 3)


def test_again_replaces_the_pictures_of_before(tmp_path: Path) -> None:
    photo = photo_at(tmp_path / "in" / "a.png")
    for _ in range(2):
        PictureFolder(tmp_path / "out", [photo]).write_annotated(result(photo, "Ada"))
    assert below(tmp_path / "out") == ["a.png"]


# No photo is overwritten


def test_the_photos_own_folder_is_refused(tmp_path: Path) -> None:
    photo = photo_at(tmp_path / "a.png")
    link = tmp_path / "link"
    link.symlink_to(tmp_path, target_is_directory=True)
    for folder in (tmp_path, link, tmp_path / "x" / ".."):
        with pytest.raises(UsageError, match="holds the photos themselves"):
            PictureFolder(folder, [photo])


def test_a_folder_among_the_photos_is_refused(tmp_path: Path) -> None:
    """`p/x.png` annotated into `p/a` would take the place of the photo `p/a/x.png`."""
    photos = [photo_at(tmp_path / "p" / "x.png"), photo_at(tmp_path / "p" / "a" / "x.png")]
    with pytest.raises(UsageError, match="holds the photos themselves"):
        PictureFolder(tmp_path / "p" / "a", photos)
    PictureFolder(tmp_path / "p" / "b", photos)


def test_a_crop_never_takes_the_place_of_a_photo(tmp_path: Path) -> None:
    photos = [photo_at(tmp_path / "a.png"), photo_at(tmp_path / "out" / "a.png_face0_Ada.jpg")]
    pictures = PictureFolder(tmp_path / "out", photos)
    with pytest.raises(OutputError, match="one of the photos has this name"):
        pictures.write_crops(result(photos[0], "Ada"))


# Crops


def test_crops_show_the_face_with_a_margin(tmp_path: Path) -> None:
    photo = photo_at(tmp_path / "in" / "a.png")
    (written,) = PictureFolder(tmp_path / "out", [photo]).write_crops(result(photo, "Ada"))
    assert written == tmp_path / "out" / "a.png_face0_Ada.jpg"
    crop = read_image(written)
    assert crop.shape == (30, 30, 3)
    np.testing.assert_allclose(crop[0, 0].astype(int), [15 * 4, 5 * 4, 0], atol=8)


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 60, 40), (40, 60)),
        ((50, 30, 60, 40), (13, 13)),
        ((59.5, 39.5, 60, 40), (1, 1)),
        ((60, 40, 60, 40), (1, 1)),
        ((0, 0, 0.4, 40), (40, 1)),
    ],
    ids=["whole photo", "corner", "half a pixel", "beyond", "sliver"],
)
def test_crops_end_at_the_edges(
    tmp_path: Path, box: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    photo = photo_at(tmp_path / "in" / "a.png")
    (written,) = PictureFolder(tmp_path / "out", [photo]).write_crops(result(photo, None, box=box))
    assert written.name == "a.png_face0_unknown.jpg"
    assert read_image(written).shape[:2] == size


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Ada Lovelace", "Ada Lovelace"),
        ("Zoë 李", "Zoë 李"),
        ("दादी", "दादी"),
        ("../../etc/passwd", "_.._etc_passwd-3754d6cb3a"),
        ("a/b", "a_b-c14cddc033"),
        ("a_b", "a_b-648fa9b31b"),
        ("..", "_-5ec1f7e700"),
        ("李" * 200, f"{'李' * 16}-49b57a8fab"),
    ],
)
def test_names_are_safe_in_file_names(tmp_path: Path, name: str, expected: str) -> None:
    photo = photo_at(tmp_path / "in" / "a.png")
    (written,) = PictureFolder(tmp_path / "out", [photo]).write_crops(result(photo, name))
    assert written == tmp_path / "out" / f"a.png_face0_{expected}.jpg"
    assert written.is_file()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif"])
@pytest.mark.parametrize("letter", ["a", "李"])
def test_a_photo_may_have_the_longest_name(tmp_path: Path, suffix: str, letter: str) -> None:
    longest = letter * ((255 - len(suffix)) // len(letter.encode())) + suffix
    photo = tmp_path / "in" / longest
    other = photo.with_name(f"{longest[: -len(suffix) - 1]}b{suffix}")
    pictures = PictureFolder(tmp_path / "out", [photo, other])
    annotated = [pictures.write_annotated(result(path, "Ada")) for path in (photo, other)]
    crops = [crop for path in (photo, other) for crop in pictures.write_crops(result(path, "Ada", "Ada"))]
    assert len({*annotated, *crops}) == 6, "no two share a name"
    assert all(path.is_file() for path in (*annotated, *crops))
    assert {path.name[-14:] for path in crops} == {"_face0_Ada.jpg", "_face1_Ada.jpg"}


def test_faces_of_one_name_have_files_of_their_own(tmp_path: Path) -> None:
    photo = photo_at(tmp_path / "in" / "a.png")
    pictures = PictureFolder(tmp_path / "out", [photo])
    assert len({*pictures.write_crops(result(photo, None, None, "Ada"))}) == 3
    unmatched = PhotoResult(photo, gradient(), faces_at((20, 10, 40, 30)))
    assert [path.name for path in pictures.write_crops(unmatched)] == ["a.png_face0_unknown.jpg"]


# Places


def test_a_file_in_the_place_of_a_folder_is_told_before_any_work(tmp_path: Path) -> None:
    photo = photo_at(tmp_path / "in" / "a.png")
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OutputError, match="can't make this folder"):
            PictureFolder(folder, [photo])
        with pytest.raises(OutputError, match="can't make this folder"):
            make_folder(folder)


def test_a_place_for_a_file(tmp_path: Path) -> None:
    require_place(tmp_path / "new" / "folders" / "v.npz", VECTORS)
    assert (tmp_path / "new" / "folders").is_dir()
    assert list((tmp_path / "new" / "folders").iterdir()) == []
    with pytest.raises(OutputError, match="is a folder; name a file"):
        require_place(tmp_path, VECTORS)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="can't make this folder"):
        require_place(tmp_path / "file" / "v.npz", VECTORS)
