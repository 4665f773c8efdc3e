"""Learning people: whose photos, which are taken, why others are not, and nothing twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pipeline_helpers import noise, shifted, side_by_side, write_broken_photos

from facepipe.core.errors import GalleryError, UsageError
from facepipe.core.faces import Faces, UInt8Array
from facepipe.enrollment import EnrollReport, Outcome, PersonPhoto, enroll, photos_in_csv, photos_in_folders
from facepipe.gallery import Gallery
from facepipe.gallery.audit import Remark, audit
from facepipe.images.finding import find_photos
from facepipe.images.reading import write_image
from facepipe.pipeline import FacePipeline
from facepipe.quality_rules import EnrollRules
from facepipe.runtime.engines import RuntimeChoice

HER = "Eileen Collins"
ONE_THREAD = RuntimeChoice("onnx", "cpu", 1)
PIXEL = np.zeros((1, 1, 3), np.uint8)


@pytest.fixture(scope="module")
def networks() -> FacePipeline:
    return FacePipeline.load(runtime=ONE_THREAD)


@pytest.fixture
def pipeline(networks: FacePipeline, tmp_path: Path) -> Iterator[FacePipeline]:
    """An empty gallery of its own for each test."""
    from facepipe.pipeline import card_identity

    gallery = Gallery.open(tmp_path / "gallery", card_identity(networks.encoder.card), create=True)
    with FacePipeline(networks.detector, networks.encoder, gallery) as opened:
        yield opened


def stored(pipeline: FacePipeline) -> dict[str, int]:
    assert pipeline.gallery is not None
    return {person.name: person.template_count for person in pipeline.gallery.people()}


def enroll_one(
    pipeline: FacePipeline,
    path: Path,
    name: str = HER,
    *,
    force: bool = False,
    rules: EnrollRules | None = None,
) -> EnrollReport:
    (report,) = enroll(pipeline, [PersonPhoto(name, path)], force=force, rules=rules)
    return report


def test_a_name_like_anothers_is_a_warning_of_its_own_with_the_first_photo(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    photos = [tmp_path / f"{i}.png" for i in range(3)]
    for i, photo in enumerate(photos):
        write_image(photo, shifted(astronaut, 4 * i))
    enroll_one(pipeline, photos[0], "José")
    first, second = (json.loads(enroll_one(pipeline, photo, "josé\u200b").to_json()) for photo in photos[1:])
    assert first["name"] == second["name"] == "josé"
    (warning,) = [w for w in first["warnings"] if w["code"] == "similar_name"]
    assert (warning["name"], warning["distance_l2"]) == ("José", None)
    assert "similar_name" not in {w["code"] for w in second["warnings"]}
    assert stored(pipeline) == {"José": 1, "josé": 2}


# Whose photos


def test_a_sub_folder_is_a_person(tmp_path: Path) -> None:
    for name in ("Zoë", "Ada Lovelace", "Ada Lovelace/1960s", ".hidden"):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "2.png", PIXEL)
        write_image(tmp_path / name / "10.jpg", PIXEL)
    photos = photos_in_folders(tmp_path)
    assert [(p.name, str(p.path.relative_to(tmp_path))) for p in photos] == [
        ("Ada Lovelace", "Ada Lovelace/2.png"),
        ("Ada Lovelace", "Ada Lovelace/10.jpg"),
        ("Ada Lovelace", "Ada Lovelace/1960s/2.png"),
        ("Ada Lovelace", "Ada Lovelace/1960s/10.jpg"),
        ("Zoë", "Zoë/2.png"),
        ("Zoë", "Zoë/10.jpg"),
    ]


def test_photos_beside_the_sub_folders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "Ada").mkdir()
    for place in ("Ada/1.png", "stray.JPG", "stray.png", "notes.txt"):
        (tmp_path / place).write_bytes(b"x")
    with caplog.at_level(logging.WARNING, "facepipe"):
        assert len(photos_in_folders(tmp_path)) == 1
    assert "passed over 2 photos in no person's sub-folder" in caplog.text


def test_empty_sub_folders_are_told_and_the_rest_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("Ada", "Bo", "Cy"):
        (tmp_path / name).mkdir()
    write_image(tmp_path / "Bo" / "1.png", PIXEL)
    (tmp_path / "Cy" / "notes.txt").write_text("no photo")
    assert [photo.name for photo in photos_in_folders(tmp_path)] == ["Bo"]
    told = [line for line in caplog.messages if "no photos match this folder" in line]
    assert [Path(line.partition(":")[0]).name for line in told] == ["Ada", "Cy"]
    assert all(line.endswith("nobody is enrolled from it") for line in told)


def test_folders_of_the_system_are_no_people(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("Ada", "@eaDir", "$RECYCLE.BIN", "lost+found", "Ada/@eaDir", "Album"):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "1.png", PIXEL)
    (tmp_path / "Ada" / "film.mov").write_bytes(b"x")
    (tmp_path / "Album" / "raw.nef").write_bytes(b"x")
    with caplog.at_level(logging.INFO, "facepipe"):
        photos = photos_in_folders(tmp_path, exclude=["Album"])
    assert [photo.path.relative_to(tmp_path).as_posix() for photo in photos] == ["Ada/1.png"]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("passed over 1 video (.mov)")


def test_folders_that_name_nobody(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        photos_in_folders(tmp_path / "missing")
    with pytest.raises(UsageError, match="has no sub-folders"):
        photos_in_folders(tmp_path)
    for name in ("Ada", "Zoë"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="no photos in any sub-folder"):
        photos_in_folders(tmp_path)
    (tmp_path / "file.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a folder"):
        photos_in_folders(tmp_path / "file.jpg")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg,Ada\n", [("a.jpg", "Ada")]),
        ("path,name\na.jpg,Ada\nb.jpg,Bob\n", [("a.jpg", "Ada"), ("b.jpg", "Bob")]),
        ("Path, Name\r\na.jpg , Ada \r\n\r\n", [("a.jpg", "Ada")]),
        ("\ufeffpath,name\na.jpg,Ada", [("a.jpg", "Ada")]),
        ('"a, b.jpg","Ada ""Countess"" L."\n', [("a, b.jpg", 'Ada "Countess" L.')]),
        ('"two\nlines.jpg",Ada\n', [("two\nlines.jpg", "Ada")]),
        ("née\u2028.jpg,Zoë\n", [("née\u2028.jpg", "Zoë")]),
        ("/far/a.jpg,Ada\n", [("/far/a.jpg", "Ada")]),
        ("-x.jpg,--force\n", [("-x.jpg", "--force")]),
        ("a.jpg;Ada\nb.jpg;Bob, Jr.\n", [("a.jpg", "Ada"), ("b.jpg", "Bob, Jr.")]),
        ("a.jpg\tAda\nb, 2.jpg\tBob\n", [("a.jpg", "Ada"), ("b, 2.jpg", "Bob")]),
        ("sep=;\r\na.jpg;Ada\r\n", [("a.jpg", "Ada")]),
        ("Person;Note;File name\nAda;first;a.jpg\n", [("a.jpg", "Ada")]),
        ("photo,name\n'-x.jpg,'@Ada\n", [("-x.jpg", "@Ada")]),
    ],
    ids=[
        "plain",
        "header",
        "spaces",
        "byte order mark",
        "quotes",
        "line break",
        "line separator",
        "absolute",
        "like options",
        "semicolons",
        "tabs",
        "a separator that is stated",
        "a header of other words and order",
        "as results are written",
    ],
)
def test_rows_of_path_and_name(tmp_path: Path, text: str, expected: list[tuple[str, str]]) -> None:
    file = tmp_path / "people.csv"
    file.write_bytes(text.encode())
    assert [(p.path, p.name) for p in photos_in_csv(file)] == [
        (tmp_path / path, name) for path, name in expected
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("header", ["", "name\tphoto\r\n"])
def test_encodings_of_spreadsheets(tmp_path: Path, encoding: str, header: str) -> None:
    row = "Zoë 王\tphotos/1 día.jpg" if header else "photos/1 día.jpg\tZoë 王"
    file = tmp_path / "people.csv"
    file.write_bytes(f"{header}{row}\r\n".encode(encoding))
    assert [(p.path, p.name) for p in photos_in_csv(file)] == [(tmp_path / "photos/1 día.jpg", "Zoë 王")]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"Datei;Mensch\na.jpg;Ada\n", "line 1: expected path,name, got Datei,Mensch.*call the columns"),
        ("a.jpg,José\n".encode("cp1252"), "it is not UTF-8.*save it as 'CSV UTF-8'"),
        (b"name;path\nAda;a.jpg\n;b.jpg\n", "line 3: expected path,name, got ',b.jpg'"),
        (b"", "no rows of path,name"),
        (b"path,name\n", "no rows of path,name"),
        (b"a.jpg\n", "line 1: expected path,name, got 'a.jpg'"),
        (b"a.jpg,Ada\nb.jpg,Bob,12\n", "line 2: expected path,name, got 'b.jpg,Bob,12'"),
        (b"a.jpg,\n", "line 1: expected path,name"),
        (b"a.jpg;Ada\nb.jpg\n", "line 2: expected path,name, got 'b.jpg'"),
        (b'"a\nb.jpg",Ada\nc.jpg\n', "line 3: expected path,name, got 'c.jpg'"),
        (b"\xff\xfe\x00", "can't read this CSV"),
    ],
    ids=[
        "foreign header",
        "another encoding",
        "no name below a header",
        "empty",
        "header only",
        "one cell",
        "three cells",
        "no name",
        "semicolons",
        "after a break",
        "binary",
    ],
)
def test_a_csv_of_another_form_is_wrong_usage(tmp_path: Path, data: bytes, told: str) -> None:
    file = tmp_path / "people.csv"
    file.write_bytes(data)
    with pytest.raises(UsageError, match=told):
        photos_in_csv(file)


def test_a_missing_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.csv: can't read this CSV"):
        photos_in_csv(tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["", "   ", "two\nlines", "x" * 201, "half\udcffname"])
def test_a_name_that_cant_be_used_is_told_before_any_work(name: str) -> None:
    with pytest.raises(GalleryError):
        PersonPhoto(name, Path("photo.jpg"))


# What becomes of photos


def test_a_portrait_is_stored_once(pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path) -> None:
    write_image(tmp_path / "her.png", astronaut)
    first, second = (enroll_one(pipeline, tmp_path / "her.png") for _ in range(2))
    assert (first.outcome, first.reasons, first.sentence) == (Outcome.ENROLLED, (), "")
    assert (second.outcome, second.sentence) == (Outcome.KNOWN, "enrolled before")
    (tmp_path / "her.png").rename(tmp_path / "renamed.png")
    assert enroll_one(pipeline, tmp_path / "renamed.png").outcome is Outcome.KNOWN
    assert stored(pipeline) == {HER: 1}
    assert pipeline.gallery is not None
    (template,) = pipeline.gallery.templates(HER)
    assert template.source == str((tmp_path / "her.png").resolve())
    assert template.box_xyxy is not None
    assert template.quality is not None
    assert 0.2 < template.quality < 0.6


def test_several_photos_and_people(pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path) -> None:
    photos = []
    for i, name in enumerate((HER, HER, "Her twin")):
        write_image(tmp_path / f"{i}.png", shifted(astronaut, 10 * i + 1))
        photos.append(PersonPhoto(name, tmp_path / f"{i}.png"))
    photos.append(PersonPhoto("Her twin", tmp_path / "0.png"))
    assert [report.outcome for report in enroll(pipeline, photos)] == [Outcome.ENROLLED] * 4
    assert stored(pipeline) == {HER: 2, "Her twin": 2}


def spoilt(astronaut: UInt8Array, how: str) -> UInt8Array:
    match how:
        case "no_face":
            return noise(3, 100, 100)
        case "several_faces":
            return side_by_side(astronaut)
        case "too_blurred":
            return cv2.GaussianBlur(astronaut, (0, 0), 3).astype(np.uint8)
        case "too_small":
            return cv2.resize(astronaut, (128, 128), interpolation=cv2.INTER_AREA).astype(np.uint8)
    raise AssertionError(how)


@pytest.mark.parametrize("reason", ["no_face", "several_faces", "too_blurred", "too_small"])
def test_refusals_give_their_reason_and_force_overrules_them(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path, reason: str
) -> None:
    path = tmp_path / "spoilt.png"
    write_image(path, spoilt(astronaut, reason))
    rules = EnrollRules(min_score=0.6)  # how sure the detector is of a spoilt face is not the matter here
    report = enroll_one(pipeline, path, rules=rules)
    assert report.outcome is Outcome.REFUSED
    assert reason in report.reasons
    assert report.sentence
    assert stored(pipeline) == {}
    forced = enroll_one(pipeline, path, force=True, rules=rules)
    if reason == "no_face":
        assert forced.outcome is Outcome.REFUSED
        assert stored(pipeline) == {}
    else:
        assert forced.outcome is Outcome.ENROLLED
        assert forced.reasons == report.reasons
        assert stored(pipeline) == {HER: 1}


def test_files_that_are_no_photos_fail_and_the_rest_goes_on(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    broken = dict(write_broken_photos(tmp_path, astronaut))
    photos = [PersonPhoto(HER, path) for path in [*broken, tmp_path / "whole.jpg"]]
    *failed, last = enroll(pipeline, photos)
    for report in failed:
        assert report.outcome is Outcome.FAILED
        assert broken[report.photo.path] in report.sentence
        assert str(report).count(report.photo.path.name) == 1
    assert last.outcome is Outcome.ENROLLED
    assert stored(pipeline) == {HER: 1}


def test_a_face_that_cant_be_aligned_is_refused_even_by_force(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "her.png", astronaut)
    found = pipeline.detect(astronaut)

    def flat(photo: UInt8Array) -> Faces:
        return replace(found, landmarks=np.full_like(found.landmarks, 7))

    monkeypatch.setattr(pipeline, "detect", flat)
    for force in (False, True):
        report = enroll_one(pipeline, tmp_path / "her.png", force=force)
        assert (report.outcome, report.reasons) == (Outcome.REFUSED, ("no_alignment",))
    assert stored(pipeline) == {}


def test_what_was_reported_is_stored_before_the_next_photo(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    write_image(tmp_path / "her.png", astronaut)

    def photos() -> Iterator[PersonPhoto]:
        yield PersonPhoto(HER, tmp_path / "her.png")
        raise KeyboardInterrupt

    reports = enroll(pipeline, photos())
    assert next(reports).outcome is Outcome.ENROLLED
    with pytest.raises(KeyboardInterrupt):
        next(reports)
    with Gallery.open(tmp_path / "gallery") as reopened:
        assert [person.name for person in reopened.people()] == [HER]


def test_enrolling_needs_a_gallery(networks: FacePipeline) -> None:
    with pytest.raises(UsageError, match="enrolling needs a gallery"):
        next(enroll(networks, []))


# Reports


def test_reports_for_people_and_programs() -> None:
    photo = PersonPhoto("Zoë", Path("photos/a b.jpg"))
    refused = EnrollReport(photo, Outcome.REFUSED, ("too_small", "too_blurred"), "too small; too blurred")
    assert str(refused) == "refused   Zoë  photos/a b.jpg: too small; too blurred"
    assert str(EnrollReport(photo, Outcome.ENROLLED)) == "enrolled  Zoë  photos/a b.jpg"
    assert json.loads(refused.to_json()) == {
        "photo": "photos/a b.jpg",
        "name": "Zoë",
        "outcome": "refused",
        "reasons": ["too_small", "too_blurred"],
        "sentence": "too small; too blurred",
        "warnings": [],
    }
    assert "\n" not in refused.to_json()


def test_the_codes_are_stable() -> None:
    assert {outcome.value for outcome in Outcome} == {"enrolled", "known", "refused", "failed"}


# What is odd about a face beside the others


def test_a_face_like_another_persons_is_stored_with_a_warning(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        write_image(path, shifted(astronaut, 12 * i))
    first, second = enroll(pipeline, [PersonPhoto(HER, path) for path in paths[:2]])
    assert first.warnings == ()
    assert [warning.remark for warning in second.warnings] == [Remark.NEAR_DUPLICATE]
    (other,) = enroll(pipeline, [PersonPhoto("Somebody else", paths[2])])
    assert (other.outcome, other.reasons) == (Outcome.ENROLLED, ())
    (warning,) = other.warnings
    assert (warning.remark, warning.name) == (Remark.LOOKS_LIKE_OTHER, HER)
    assert f"warning: looks like {HER} (0." in str(other)
    (record,) = json.loads(other.to_json())["warnings"]
    assert (record["code"], record["name"]) == ("looks_like_other", HER)
    assert record["distance_l2"] == pytest.approx(warning.distance_l2, abs=1e-4)


@pytest.mark.parametrize("keep", [False, True])
def test_pictures_are_kept_only_when_asked(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path, keep: bool
) -> None:
    write_image(tmp_path / "her.png", astronaut)
    list(enroll(pipeline, [PersonPhoto(HER, tmp_path / "her.png")], keep_crops=keep))
    assert pipeline.gallery is not None
    (template,) = pipeline.gallery.templates(HER)
    assert (pipeline.gallery.crop(template.id) is not None) == keep


def test_a_photo_under_a_wrong_name_is_noticed(pipeline: FacePipeline, shared_data: Path) -> None:
    """Real people: the warning when it is enrolled, and the audit afterwards."""
    folder = shared_data / "photos" / "people"
    people = sorted(path.name for path in (folder / "enroll").iterdir())[:5]
    right = [PersonPhoto(n, photo) for n in people for photo in find_photos([folder / "enroll" / n])]
    reports = [report for report in enroll(pipeline, right) if report.outcome is Outcome.ENROLLED]
    assert sum(report.warnings != () for report in reports) <= 0.2 * len(reports)
    wrong = [
        PersonPhoto(people[(i + 1) % 5], photo)
        for i, name in enumerate(people)
        for photo in find_photos([folder / "probe" / "known" / name])[:2]
    ]
    planted = [report for report in enroll(pipeline, wrong) if report.outcome is Outcome.ENROLLED]
    noticed = [report for report in planted if report.warnings]
    assert len(noticed) >= 0.6 * len(planted)
    for report in noticed:
        named = {warning.name for warning in report.warnings} - {None}
        assert named <= {report.photo.path.parent.name}


def test_the_audit_finds_who_was_enrolled_under_two_names(pipeline: FacePipeline, shared_data: Path) -> None:
    folder = shared_data / "photos" / "people"
    people = sorted(path.name for path in (folder / "enroll").iterdir())[:4]
    photos = [PersonPhoto(n, photo) for n in people for photo in find_photos([folder / "enroll" / n])]
    photos += [
        PersonPhoto(f"{n} again", photo)
        for n in people
        for photo in find_photos([folder / "probe" / "known" / n])[:4]
    ]
    list(enroll(pipeline, photos))
    assert pipeline.gallery is not None
    found = [(couple.first, couple.second) for couple in audit(pipeline.gallery).same_people]
    assert {(n, f"{n} again") for n in people} >= set(found)
    assert len(found) >= 2
