"""Learning people from the regions of other programs: which face is meant, what is refused, nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import facepipe
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pipeline_helpers import FACE_XYXY, noise, shifted, side_by_side
from xmp_helpers import ORIENTATIONS, exiftool, mp, mwg, needs_exiftool, packet, save_turned

from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.enrollment import EnrollReport, Outcome, PersonPhoto, enroll
from facepipe.gallery import Gallery, NewTemplate
from facepipe.pipeline import FacePipeline, card_identity
from facepipe.region_enrollment import enroll_marked, rows_of_regions
from facepipe.runtime.engines import RuntimeChoice
from facepipe.xmp.marks import read_marks
from facepipe.xmp.regions import Region

HER = "Eileen Collins"
SIDE_PX = 512
"""Of the astronaut."""


@pytest.fixture(scope="module")
def networks() -> FacePipeline:
    return FacePipeline.load(runtime=RuntimeChoice("onnx", "cpu", 1))


@pytest.fixture
def pipeline(networks: FacePipeline, tmp_path: Path) -> Iterator[FacePipeline]:
    """An empty gallery of its own for each test."""
    gallery = Gallery.open(tmp_path / "gallery", card_identity(networks.encoder.card), create=True)
    with FacePipeline(networks.detector, networks.encoder, gallery) as opened:
        yield opened


def region(name: str, box_xyxy: Sequence[float], size_wh: tuple[int, int]) -> Region:
    left, top, right, bottom = (side / size_wh[at % 2] for at, side in enumerate(box_xyxy))
    return Region(name, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def her(name: str = HER) -> Region:
    """The astronaut's face."""
    return region(name, FACE_XYXY.tolist(), (SIDE_PX, SIDE_PX))


def save(path: Path, rgb: UInt8Array, *regions: Region) -> Path:
    """Save a PNG with embedded regions."""
    save_with(path, rgb, packet(*regions, size_wh=(rgb.shape[1], rgb.shape[0])))
    return path


def save_with(path: Path, rgb: UInt8Array, xmp: str) -> None:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    Image.fromarray(rgb).save(path, pnginfo=info)


def enrolled(pipeline: FacePipeline, *paths: Path, force: bool = False) -> list[EnrollReport]:
    return list(enroll_marked(pipeline, map(read_marks, paths), force=force))


def outcomes(reports: Sequence[EnrollReport]) -> list[tuple[str, Outcome, tuple[str, ...]]]:
    return [(report.photo.name, report.outcome, report.reasons) for report in reports]


def stored(pipeline: FacePipeline) -> dict[str, int]:
    assert pipeline.gallery is not None
    return {person.name: person.template_count for person in pipeline.gallery.people()}


@needs_exiftool
def test_regions_in_the_stored_frame_of_every_orientation(
    networks: FacePipeline, tmp_path: Path, astronaut: UInt8Array
) -> None:
    photo = np.ascontiguousarray(astronaut[:, :400])
    upright = region(HER, FACE_XYXY.tolist(), (400, SIDE_PX))
    for orientation in ORIENTATIONS:
        path = tmp_path / f"{orientation}.jpg"
        save_turned(photo, orientation, path)
        in_frame = upright.in_stored_frame(orientation)
        written = mwg(in_frame, size_wh=Image.open(path).size) if orientation % 2 else mp(in_frame)
        exiftool(written, path if orientation < 5 else f"{path}.xmp")
        gallery = Gallery.open(tmp_path / path.stem, card_identity(networks.encoder.card), create=True)
        (report,) = enrolled(FacePipeline(networks.detector, networks.encoder, gallery), path)
        assert (report.photo.name, report.outcome) == (HER, Outcome.ENROLLED), orientation
        (template,) = gallery.templates(HER)
        assert template.box_xyxy is not None
        assert np.abs(np.array(template.box_xyxy) - FACE_XYXY).max() < 25
        gallery.close()


def test_enrolling_twice_changes_nothing(
    pipeline: FacePipeline, tmp_path: Path, astronaut: UInt8Array
) -> None:
    photo = save(tmp_path / "photo.png", astronaut, her())
    assert outcomes(enrolled(pipeline, photo)) == [(HER, Outcome.ENROLLED, ())]
    assert outcomes(enrolled(pipeline, photo)) == [(HER, Outcome.KNOWN, ())]
    save(photo, astronaut, her(), region("Nobody", (400, 300, 440, 350), (SIDE_PX, SIDE_PX)))
    assert outcomes(enrolled(pipeline, photo)) == [  # its metadata is another one, its pixels are the same
        (HER, Outcome.KNOWN, ()),
        ("Nobody", Outcome.REFUSED, ("no_face",)),
    ]
    assert stored(pipeline) == {HER: 1}


def test_each_face_of_a_group_gets_its_own_name(
    pipeline: FacePipeline, tmp_path: Path, astronaut: UInt8Array
) -> None:
    both, size_wh = side_by_side(astronaut), (2 * SIDE_PX, SIDE_PX)
    left, top, right, bottom = FACE_XYXY.tolist()
    mirrored = (2 * SIDE_PX - right, top, 2 * SIDE_PX - left, bottom)
    photo = save(
        tmp_path / "group.png",
        both,
        region("Right", mirrored, size_wh),
        region("Left", FACE_XYXY.tolist(), size_wh),
    )
    reports = enrolled(pipeline, photo, force=True)
    assert {report.outcome for report in reports} == {Outcome.ENROLLED}
    assert pipeline.gallery is not None
    for name, is_right in (("Left", False), ("Right", True)):
        (template,) = pipeline.gallery.templates(name)
        assert template.box_xyxy is not None
        assert (template.box_xyxy[0] > SIDE_PX) == is_right


def test_a_name_that_the_gallery_contradicts_is_refused_unless_forced(
    pipeline: FacePipeline, tmp_path: Path, astronaut: UInt8Array
) -> None:
    before = tmp_path / "before.png"
    Image.fromarray(shifted(astronaut, 8)).save(before)
    list(enroll(pipeline, [PersonPhoto(HER, before)]))
    photo = save(tmp_path / "photo.png", astronaut, her("Somebody Else"))
    (report,) = enrolled(pipeline, photo)
    assert (report.outcome, report.reasons) == (Outcome.REFUSED, ("looks_like_other",))
    assert f"looks like {HER}" in report.sentence
    assert stored(pipeline) == {HER: 1}
    (forced,) = enrolled(pipeline, photo, force=True)
    assert forced.outcome is Outcome.ENROLLED
    assert [warning.name for warning in forced.warnings] == [HER]


@pytest.mark.parametrize("names", [("like.png", "typical.png"), ("typical.png", "like.png")])
def test_a_face_like_anothers_is_taken_where_it_is_nearer_to_its_own(
    pipeline: FacePipeline,
    tmp_path: Path,
    astronaut: UInt8Array,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, str],
) -> None:
    """Whichever photo comes first, and a second run finds nothing more."""
    angles_rad = {"like.png": 0.75, "typical.png": 1.4, "alone.png": 0.1}

    def template(_: FacePipeline, photo: Path, digest: str, *__: object) -> NewTemplate:
        return NewTemplate(at_angle(angles_rad[photo.name]), photo_sha256=digest)

    monkeypatch.setattr("facepipe.region_enrollment.template_of", template)
    assert pipeline.gallery is not None
    pipeline.gallery.add("Other", [NewTemplate(at_angle(0.0))])
    photos = [save(tmp_path / name, shifted(astronaut, at), her()) for at, name in enumerate(names)]
    photos.append(save(tmp_path / "alone.png", shifted(astronaut, 9), her("Third")))
    refused = ("Third", Outcome.REFUSED, ("looks_like_other",))
    assert outcomes(enrolled(pipeline, *photos)) == [(HER, Outcome.ENROLLED, ())] * 2 + [refused]
    assert outcomes(enrolled(pipeline, *photos)) == [(HER, Outcome.KNOWN, ())] * 2 + [refused]
    assert stored(pipeline) == {HER: 2, "Other": 1}


def at_angle(angle_rad: float) -> FloatArray:
    """A vector of the encoder's dimension, in a plane."""
    vector = np.zeros(128, np.float32)
    vector[:2] = np.cos(angle_rad), np.sin(angle_rad)
    return vector


@pytest.mark.parametrize("force", [False, True])
def test_contradictions_and_empty_places_are_refused_by_name(
    pipeline: FacePipeline, tmp_path: Path, astronaut: UInt8Array, force: bool
) -> None:
    two = save(tmp_path / "two.png", astronaut, her(), her("Somebody Else"))
    nobody = save(tmp_path / "nobody.png", noise(0, SIDE_PX, SIDE_PX), her())
    other = tmp_path / "other.png"
    save_with(other, astronaut, packet(her(), size_wh=(100, 300)))
    assert outcomes(enrolled(pipeline, two, nobody, other, force=force)) == [
        (HER, Outcome.REFUSED, ("two_names",)),
        ("Somebody Else", Outcome.REFUSED, ("two_names",)),
        (HER, Outcome.REFUSED, ("no_face",)),
        (HER, Outcome.REFUSED, ("other_shape",)),
    ]
    assert stored(pipeline) == {}


def test_a_poor_face_is_refused_by_the_rules_unless_forced(
    pipeline: FacePipeline, tmp_path: Path, astronaut: UInt8Array
) -> None:
    small = np.asarray(Image.fromarray(astronaut).resize((128, 128)).resize((SIDE_PX, SIDE_PX)))
    photo = save(tmp_path / "soft.png", small, her())
    (report,) = enrolled(pipeline, photo)
    assert (report.outcome, report.reasons) == (Outcome.REFUSED, ("too_blurred",))
    (forced,) = enrolled(pipeline, photo, force=True)
    assert (forced.outcome, forced.reasons) == (Outcome.ENROLLED, ("too_blurred",))


def test_a_photo_that_goes_or_breaks_meanwhile_fails(
    pipeline: FacePipeline, tmp_path: Path, astronaut: UInt8Array
) -> None:
    gone, cut = (save(tmp_path / name, astronaut, her()) for name in ("gone.png", "cut.png"))
    marked = [read_marks(gone), read_marks(cut)]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:20_000])
    reports = list(enroll_marked(pipeline, marked))
    assert [report.outcome for report in reports] == [Outcome.FAILED, Outcome.FAILED]
    for path, report in zip((gone, cut), reports, strict=True):
        assert report.sentence.startswith(f"{path}: ")


NOWHERE = (float("nan"),) * 4


@pytest.mark.parametrize(
    ("regions", "boxes", "rows"),
    [
        ([(0, 0, 10, 10)], [(20, 20, 30, 30), (1, 1, 11, 11)], [1]),
        ([(0, 0, 30, 30)], [(10, 10, 20, 20)], [0]),
        ([(0, 0, 30, 30)], [(21, 21, 30, 30)], [None]),
        ([(0, 0, 10, 10), (2, 2, 12, 12)], [(2, 2, 12, 12)], [None, 0]),
        ([(0, 0, 10, 10), (2, 2, 12, 12)], [(1, 1, 11, 11), (3, 3, 13, 13)], [0, 1]),
        ([NOWHERE, (0, 0, 10, 10)], [(0, 0, 10, 10)], [None, 0]),
        ([(0, 0, 10, 10)], [], [None]),
        ([], [(0, 0, 10, 10)], []),
    ],
)
def test_the_largest_overlap_decides_and_a_face_is_one_regions(
    regions: list[tuple[float, ...]], boxes: list[tuple[float, ...]], rows: list[int | None]
) -> None:
    given = (np.array(places, np.float32).reshape(-1, 4) for places in (regions, boxes))
    assert rows_of_regions(*given) == rows


# The command


def test_the_command_reports_each_name(tmp_path: Path, astronaut: UInt8Array) -> None:
    folder, gallery = tmp_path / "photos", tmp_path / "gallery"
    folder.mkdir()
    save(folder / "1.png", astronaut, her(), region("Nobody", (400, 300, 440, 350), (SIDE_PX, SIDE_PX)))
    (folder / "1.xmp").write_text("no XMP")
    Image.fromarray(noise(0, 64, 64)).save(folder / "2.png")
    said = facepipe("enroll", "--xmp", folder, "--gallery", gallery, "--json")
    assert said.code == 3
    first, second = map(json.loads, said.lines)
    assert (first["name"], first["outcome"]) == (HER, "enrolled")
    assert (second["name"], second["reasons"]) == ("Nobody", ["no_face"])
    unread, summary = said.complaints
    assert unread.startswith(f"facepipe: {folder / '1.xmp'}: can't be read as XMP")
    assert summary.startswith("facepipe: 1 enrolled, 1 refused; 2 people asked for")


def test_the_command_without_regions_or_with_names_is_wrong_usage(tmp_path: Path) -> None:
    Image.fromarray(noise(0, 64, 64)).save(tmp_path / "1.png")
    none = facepipe("enroll", "--xmp", tmp_path, "--gallery", tmp_path / "gallery")
    assert (none.code, "no named face regions in 1 photo" in none.err) == (2, True)
    for wrong in (["--name", HER, tmp_path], ["--csv", "people.csv"], []):
        said = facepipe("enroll", "--xmp", *wrong, "--gallery", tmp_path / "gallery")
        assert (said.code, "--xmp goes with photos, and alone" in said.err) == (2, True)
    assert not (tmp_path / "gallery").exists()
