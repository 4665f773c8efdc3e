"""Arrays, Pillow images, paths and bytes are the same photo; all else is one clear error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from facepipe import FacePipeline, PersonPhoto, align_faces, enroll, find_photos, read_image
from facepipe.core.errors import PhotoError, UsageError
from facepipe.core.faces import Faces, UInt8Array
from facepipe.detector import DetectorOptions
from facepipe.doctor import verify_weights
from facepipe.images.photo_input import as_rgb
from facepipe.images.reading import write_image
from facepipe.pipeline import process_files
from facepipe.runtime.engines import RuntimeChoice
from facepipe.weights.registry import DEFAULT_DETECTOR


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Iterator[FacePipeline]:
    """A pipeline that knows one person."""
    folder = tmp_path_factory.mktemp("photos")
    write_image(folder / "her.png", astronaut)
    with FacePipeline.load(
        folder / "gallery",
        create_gallery=True,
        options=DetectorOptions(score_threshold=0.8),
        runtime=RuntimeChoice("onnx", "cpu", 1),
    ) as pipeline:
        list(enroll(pipeline, [PersonPhoto("Eileen", folder / "her.png")]))
        yield pipeline


def encoded(rgb: UInt8Array, orientation: int = 1) -> bytes:
    """A PNG whose pixels become `rgb` when it is turned upright."""
    stored = ImageOps.exif_transpose(with_orientation(Image.fromarray(rgb), INVERSE[orientation]))
    assert stored is not None
    file = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(file, "PNG", exif=exif)
    return file.getvalue()


INVERSE = {1: 1, 3: 3, 6: 8, 8: 6}


def with_orientation(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[0x0112] = orientation
    return image


@pytest.mark.parametrize("orientation", list(INVERSE))
def test_the_same_photo_in_every_form(astronaut: UInt8Array, tmp_path: Path, orientation: int) -> None:
    rgb = astronaut[:300]
    data = encoded(rgb, orientation)
    (tmp_path / "photo.png").write_bytes(data)
    forms: list[Any] = [rgb, data, tmp_path / "photo.png", str(tmp_path / "photo.png")]
    forms.append(Image.open(BytesIO(data)))
    for form in forms:
        assert np.array_equal(as_rgb(form), rgb)
    assert as_rgb(rgb) is rgb


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "I;16"])
def test_pillow_images_are_converted_as_their_files_are(
    astronaut: UInt8Array, mode: str, tmp_path: Path
) -> None:
    image = Image.fromarray(astronaut).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image, np.uint16) * 257)
    image.save(tmp_path / "photo.tif")
    assert np.array_equal(as_rgb(image), read_image(tmp_path / "photo.tif"))


def test_every_step_takes_every_form(pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path) -> None:
    path = tmp_path / "her.png"
    write_image(path, astronaut)
    forms: list[Any] = [astronaut, Image.fromarray(astronaut), path, str(path), path.read_bytes()]
    for form in forms:
        faces = pipeline.identify(form)
        assert [face.name for face in faces] == ["Eileen"]
        assert np.array_equal(pipeline.detect(form).boxes_xyxy, faces.boxes_xyxy)
        embedded = pipeline.embed(form).embeddings
        assert embedded is not None
        assert faces.embeddings is not None
        np.testing.assert_allclose(embedded, faces.embeddings, atol=1e-6)
        assert pipeline.encoder.align(form, faces).shape == (1, 112, 112, 3)
        assert align_faces(form, faces.landmarks).shape == (1, 112, 112, 3)


WRONG: dict[str, tuple[Any, str]] = {
    "what cv2.imread gives": (None, "got None.*cv2.imread.*read_image"),
    "float": (np.zeros((9, 9, 3)), r"float64 \(9, 9, 3\).*astype"),
    "gray": (np.zeros((9, 9), np.uint8), r"uint8 \(9, 9\).*COLOR_GRAY2RGB"),
    "gray with a channel": (np.zeros((9, 9, 1), np.uint8), "COLOR_GRAY2RGB"),
    "transparent": (np.zeros((9, 9, 4), np.uint8), r"photo\[\.\.\., :3\]"),
    "batch": (np.zeros((2, 9, 9, 3), np.uint8), "one by one"),
    "channels first": (np.zeros((3, 9, 9), np.uint8), "moveaxis"),
    "empty": (np.zeros((0, 9, 3), np.uint8), "without a pixel"),
    "list": ([np.zeros((9, 9, 3), np.uint8)], "a list: give the photos one by one"),
    "number": (7, "got builtins.int"),
}


@pytest.mark.parametrize(("photo", "told"), WRONG.values(), ids=list(WRONG))
@pytest.mark.parametrize("step", ["detect", "embed", "identify"])
def test_what_is_no_photo_is_one_clear_error(
    pipeline: FacePipeline, step: str, photo: Any, told: str
) -> None:
    with pytest.raises(UsageError, match=f"expected a photo: .*{told}"):
        getattr(pipeline, step)(photo)


def test_other_steps_refuse_it_too(pipeline: FacePipeline) -> None:
    nobody: Any = None
    acts: list[Callable[[], object]] = [
        lambda: pipeline.detector.detect_batch([nobody]),
        lambda: pipeline.encoder.align(nobody, Faces.empty()),
        lambda: align_faces(nobody, np.zeros((0, 5, 2), np.float32)),
    ]
    for act in acts:
        with pytest.raises(UsageError, match="expected a photo"):
            act()
    with pytest.raises(UsageError, match="use detect"):
        pipeline.detector.detect_batch("photo.jpg")


def test_a_file_that_is_not_there_is_named(pipeline: FacePipeline) -> None:
    with pytest.raises(PhotoError, match=r"none\.jpg: no such file"):
        pipeline.identify("none.jpg")


# Paths


def test_a_single_path_is_not_taken_letter_by_letter(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    path = tmp_path / "her.png"
    write_image(path, astronaut)
    for one in (str(path), path):
        (result,) = pipeline.identify_files(one)
        assert (result.path, result.error) == (path, None)
        (result,) = process_files(one, pipeline.detect)
        assert result.path == path
        assert find_photos(one) == find_photos([one]) == [path]
    assert [result.path for result in pipeline.identify_files([str(path), path])] == [path, path]
    assert [check.what for check in verify_weights(DEFAULT_DETECTOR)] == [f"weight {DEFAULT_DETECTOR}"]


def test_people_and_their_photos(pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path) -> None:
    write_image(tmp_path / "her.png", astronaut)
    text: Any = str(tmp_path / "her.png")
    photo = PersonPhoto("Eileen", text)
    assert photo.path == tmp_path / "her.png"
    assert [report.outcome.value for report in enroll(pipeline, [photo])] == ["known"]
    wrong: list[Any] = [photo, text, [("Eileen", text)], [text]]
    for photos in wrong:
        with pytest.raises(UsageError, match=r"PersonPhoto\(name, path\)"):
            list(enroll(pipeline, photos))
