"""Every command does its job: in this process, on real photos."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import RUNNING, facepipe
from pipeline_helpers import SURE, noise, shifted, side_by_side

from facepipe.core.faces import UInt8Array
from facepipe.images.reading import read_image, write_image
from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER, shipped_folder

HER = "Eileen Collins"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has an empty folder and home of its own."""
    monkeypatch.setenv("FACEPIPE_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    """A gallery that knows her; not to be changed."""
    folder = tmp_path_factory.mktemp("known")
    write_image(folder / "her.png", astronaut)
    said = facepipe("enroll", "--name", HER, folder / "her.png", "--gallery", folder / "gallery")
    assert said.code == 0, said.err
    return folder / "gallery"


@pytest.fixture
def photos(here: Path, astronaut: UInt8Array) -> Path:
    """Four photos: her, her twice, nobody, no photo."""
    folder = here / "photos"
    (folder / "more").mkdir(parents=True)
    write_image(folder / "1 her.png", shifted(astronaut, 40))
    write_image(folder / "more" / "2 twins.jpg", side_by_side(astronaut))
    write_image(folder / "more" / "3 nobody.webp", noise(5, 80, 100))
    (folder / "more" / "4 broken.jpg").write_bytes(b"")
    return folder


def people(gallery: Path) -> dict[str, int]:
    said = facepipe("gallery", "list", "--json", "--gallery", gallery)
    assert said.code == 0
    rows = [json.loads(line) for line in said.lines]
    return {row["name"]: row["template_count"] for row in rows}


# Enrolling


def test_enroll_a_folder_of_people_twice(here: Path, astronaut: UInt8Array) -> None:
    for i, name in enumerate((HER, HER, "Zoë 李")):
        (here / "people" / name).mkdir(parents=True, exist_ok=True)
        write_image(here / "people" / name / f"{i}.png", shifted(astronaut, 10 * i))
    first = facepipe("enroll", "people", "--gallery", "g")
    assert first.code == 0
    assert [line.partition(": warning")[0] for line in first.lines] == [
        "enrolled  Eileen Collins  people/Eileen Collins/0.png",
        "enrolled  Eileen Collins  people/Eileen Collins/1.png",
        "enrolled  Zoë 李  people/Zoë 李/2.png",
    ]
    assert "nearly the same as an enrolled photo" in first.lines[1]
    assert "looks like Eileen Collins" in first.lines[2]
    assert first.err.count(RUNNING) == 1
    assert first.complaints == ["facepipe: 3 enrolled; 2 people asked for; gallery g"]
    second = facepipe("enroll", "people", "--gallery", "g")
    assert second.code == 0
    assert all(line.startswith("known ") for line in second.lines)
    assert people(Path("g")) == {HER: 2, "Zoë 李": 1}


def test_enroll_one_person_by_name(here: Path, photos: Path, astronaut: UInt8Array) -> None:
    write_image(here / "her.png", astronaut)
    said = facepipe("enroll", "--name", "-x", "her.png", photos / "1*.png", "--gallery", "g")
    assert said.code == 0
    assert people(Path("g")) == {"-x": 2}


def test_enroll_from_csv(here: Path, photos: Path) -> None:
    (here / "people.csv").write_text("path,name\nphotos/1 her.png,Eileen Collins\n", encoding="utf-8")
    said = facepipe("enroll", "--csv", "people.csv", "--gallery", "g")
    assert said.code == 0
    assert people(Path("g")) == {HER: 1}


def test_enroll_reports_refusals_and_failures(photos: Path) -> None:
    said = facepipe("enroll", "--name", HER, photos, "--json", "--gallery", "g")
    assert said.code == 3
    records = [json.loads(line) for line in said.lines]
    keys = ["photo", "name", "outcome", "reasons", "sentence", "warnings"]
    assert [list(record) for record in records] == [keys] * 4
    assert [(record["outcome"], record["reasons"]) for record in records] == [
        ("enrolled", []),
        ("refused", ["several_faces"]),
        ("refused", ["no_face"]),
        ("failed", []),
    ]
    assert "2 faces of similar size" in records[1]["sentence"]
    assert records[3]["sentence"].startswith(f"{photos / 'more' / '4 broken.jpg'}: the file is empty")
    forced = facepipe("enroll", "--name", HER, photos, "--force", "--gallery", "g")
    assert forced.code == 3
    assert [line.split()[0] for line in forced.lines] == ["known", "enrolled", "refused", "failed"]
    assert people(Path("g")) == {HER: 2}


def test_enroll_that_takes_nothing_is_a_failure(photos: Path) -> None:
    said = facepipe("enroll", "--name", HER, photos / "more", "--gallery", "g")
    assert said.code == 1
    assert people(Path("g")) == {}


# Identifying


def test_identify_says_it_in_a_table(known: Path, photos: Path) -> None:
    said = facepipe("identify", photos, "--score-threshold", SURE, "--gallery", known)
    assert said.code == 3
    assert said.lines[0] == f"{photos / '1 her.png'}: 1 face"
    assert said.lines[1].split("distance")[0].strip() == HER
    assert said.lines[2] == f"{photos / 'more' / '2 twins.jpg'}: 2 faces"
    assert sorted(line.split()[0] for line in said.lines[3:5]) == ["Eileen", "unknown"]
    assert said.lines[5] == f"{photos / 'more' / '3 nobody.webp'}: no faces"
    assert len(said.lines) == 6
    assert said.complaints == [
        f"facepipe: {photos / 'more' / '4 broken.jpg'}: the file is empty; copy it again from where it came"
    ]
    assert said.err.count(RUNNING) == 1


def test_identify_in_json(known: Path, photos: Path) -> None:
    said = facepipe("identify", "--json", photos, "--score-threshold", SURE, "--gallery", known)
    assert said.code == 3
    records = [json.loads(line) for line in said.lines]
    assert [Path(record["photo"]).name[0] for record in records] == list("1234")
    assert all(list(record) == ["photo", "error", "faces", "warnings"] for record in records)
    (face,) = records[0]["faces"]
    assert list(face) == [
        "id",
        "box_xyxy",
        "score",
        "landmarks",
        "name",
        "distance_l2",
        "threshold_l2",
        "runner_up",
        "status",
        "candidate",
        "reason",
    ]
    assert face["name"] == HER
    assert 0 <= face["distance_l2"] <= face["threshold_l2"] <= 2
    assert 0.5 < face["score"] <= 1
    left, top, right, bottom = face["box_xyxy"]
    assert 200 < left < right < 330
    assert 40 < top < bottom < 200
    assert np.shape(face["landmarks"]) == (5, 2)
    assert face["runner_up"] is None
    assert records[2]["faces"] == records[3]["faces"] == []
    assert records[2]["error"] is None
    assert "the file is empty" in records[3]["error"]


def test_identify_in_csv(known: Path, photos: Path) -> None:
    said = facepipe("identify", "--csv", photos, "--score-threshold", SURE, "--gallery", known)
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [(Path(row["photo"]).name, row["face"]) for row in rows] == [
        ("1 her.png", "0"),
        ("2 twins.jpg", "0"),
        ("2 twins.jpg", "1"),
        ("3 nobody.webp", ""),
        ("4 broken.jpg", ""),
    ]
    assert rows[0]["name"] == HER
    assert "empty" in rows[-1]["error"]


def test_identify_writes_pictures(known: Path, photos: Path) -> None:
    said = facepipe(
        "identify",
        photos,
        "--score-threshold",
        SURE,
        "--annotate",
        "out",
        "--crops",
        "faces",
        "--gallery",
        known,
    )
    assert said.code == 3
    annotated = sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.*"))
    assert annotated == ["1 her.png", "more/2 twins.jpg", "more/3 nobody.webp"]
    assert (read_image("out/1 her.png") != read_image(photos / "1 her.png")).any()
    crops = sorted(str(path.relative_to("faces")) for path in Path("faces").rglob("*.*"))
    assert crops[0] == f"1 her.png_face0_{HER}.jpg"
    assert len(crops) == 3
    assert sum("unknown" in name for name in crops) == 1


def names(*options: str | Path) -> list[str | None]:
    said = facepipe("identify", "--json", "--score-threshold", SURE, *options)
    assert said.code == 0, said.err
    return [face["name"] for line in said.lines for face in json.loads(line)["faces"]]


def test_identify_options(known: Path, photos: Path) -> None:
    her, twins = photos / "1 her.png", photos / "more" / "2 twins.jpg"
    gallery = ("--gallery", known)
    assert names(her, *gallery) == [HER]
    assert names(her, "--threshold", "0", *gallery) == [None]
    assert names(her, "--threshold", "2", *gallery) == [HER]
    assert names(twins, "--allow-repeats", *gallery) == [HER, HER]
    assert names(her, "--score-threshold", "1", *gallery) == []
    assert names(her, "--min-face", "500", *gallery) == []
    assert names(her, "--original-size", *gallery) == [HER]
    assert names(her, "--max-side", "400", *gallery) == [HER]
    assert len(names(twins, "--top-k", "1", *gallery)) == 1
    assert len(names(her, "--nms-iou", "1", *gallery)) > 1
    assert names(photos / "1*", "photos/1 her.png", *gallery) == [HER]


def test_identify_on_torch(known: Path, photos: Path) -> None:
    pytest.importorskip("torch")
    said = facepipe("identify", photos / "1 her.png", "--runtime", "torch", "--gallery", known)
    assert said.code == 0
    assert HER in said.out
    assert f"{RUNNING}torch on cpu" in said.err


def test_an_empty_gallery_knows_nobody(photos: Path) -> None:
    facepipe("enroll", "--name", HER, photos / "more" / "3 nobody.webp", "--gallery", "g")
    assert names(photos / "1 her.png", "--gallery", "g") == [None]


# Detecting, embedding


def test_detect_names_nobody(photos: Path) -> None:
    said = facepipe(
        "detect", "--json", photos, "--score-threshold", SURE, "--annotate", "out", "--crops", "faces"
    )
    assert said.code == 3
    faces = [face for line in said.lines for face in json.loads(line)["faces"]]
    assert len(faces) == 3
    assert all(face[key] is None for face in faces for key in ("name", "distance_l2", "threshold_l2"))
    assert len(list(Path("out").rglob("*.*"))) == 3
    assert all("_unknown.jpg" in path.name for path in Path("faces").rglob("*.jpg"))
    table = facepipe("detect", photos / "1 her.png")
    assert table.code == 0
    assert "score" in table.lines[1]


def test_embed_writes_arrays(photos: Path) -> None:
    said = facepipe("embed", photos, "--score-threshold", SURE, "--out", "new/vectors.npz")
    assert said.code == 3
    assert said.out == ""
    assert said.complaints[-1] == "facepipe: 3 faces of 3 photos in new/vectors.npz"
    with np.load("new/vectors.npz", allow_pickle=False) as saved:
        assert saved["paths"].tolist() == [str(photos / "1 her.png"), *[str(photos / "more/2 twins.jpg")] * 2]
        assert saved["boxes"].shape == (3, 4)
        assert saved["embeddings"].shape == (3, 128)
        np.testing.assert_allclose(np.linalg.norm(saved["embeddings"], axis=1), 1, atol=1e-5)


# Galleries


def test_people_are_managed(known: Path, photos: Path) -> None:
    gallery = Path(shutil.copytree(known, "g"))
    here = ("--gallery", gallery)
    assert facepipe("gallery", "list", *here).lines == [f"     1  {HER}"]
    shown = facepipe("gallery", "show", HER, "--json", *here)
    record = json.loads(shown.out)
    assert record["person"] == HER
    assert record["source"].endswith("her.png")
    assert len(record["photo_sha256"]) == 64
    assert "sharpness" in facepipe("gallery", "show", HER, *here).out
    assert facepipe("gallery", "rename", *here, "--", HER, "-E C").code == 0
    assert facepipe("enroll", "--name", HER, photos / "1 her.png", *here).code == 0
    assert people(gallery) == {"-E C": 1, HER: 1}
    merged = facepipe("gallery", "merge", *here, "--", "-E C", HER)
    assert merged.err == f"facepipe: '{HER}' now has 1 face of '-E C'\n"
    assert people(gallery) == {HER: 2}
    info = facepipe("gallery", "info", *here)
    assert "templates          2" in info.lines
    assert f"encoder            {DEFAULT_ENCODER}" in info.out
    removed = facepipe("gallery", "remove", HER, *here)
    assert removed.err == f"facepipe: erased '{HER}' and 2 faces\n"
    assert people(gallery) == {}
    for path in gallery.iterdir():
        assert HER.encode() not in path.read_bytes()


def test_galleries_travel_as_archives(known: Path, photos: Path) -> None:
    assert facepipe("gallery", "export", "people.zip", "--gallery", known).code == 0
    for new in ("1 new face", "0 new faces"):
        said = facepipe("gallery", "import", "people.zip", "--gallery", "copy")
        assert (said.code, said.err) == (0, f"facepipe: {new} in copy\n")
    assert names(photos / "1 her.png", "--gallery", "copy") == [HER]


# Weights


def test_weights_are_listed_shown_and_verified() -> None:
    listed = facepipe("weights", "list")
    assert listed.code == 0
    assert any(line.split() == [DEFAULT_DETECTOR, "shipped", "detector"] for line in listed.lines)
    assert any(line.split() == [DEFAULT_ENCODER, "shipped", "encoder"] for line in listed.lines)
    assert any("to fetch" in line for line in listed.lines)
    card = json.loads(facepipe("weights", "show", DEFAULT_ENCODER).out)
    assert card["embedding"]["dimensions"] == 128
    verified = facepipe("weights", "verify")
    assert verified.code == 0
    assert len(verified.lines) == len(list(shipped_folder().glob("*.json"))) == 4
    assert facepipe("weights", "verify", DEFAULT_DETECTOR).lines[0].startswith("ok ")


def test_an_imported_detector_is_used(shared_data: Path, photos: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    file = shared_data / "weights" / "retinaface_mnet025_bgr.pth"
    said = facepipe("weights", "import", file, "--name", "other", "--channels", "bgr")
    assert said.code == 0
    assert any(line.split() == ["other", "user", "detector"] for line in facepipe("weights", "list").lines)
    found = facepipe("detect", "--json", "--detector-weights", "other", photos / "1 her.png")
    assert found.code == 0
    assert len(json.loads(found.out)["faces"]) == 1


# Doctor, demo, help


def test_doctor(known: Path) -> None:
    said = facepipe("doctor", "--gallery", known)
    assert said.code == 0
    assert said.err == ""
    assert all(line.startswith("ok ") for line in said.lines)
    missing = facepipe("doctor", "--device", "cuda:99", "--gallery", known)
    assert missing.code == 1
    assert sum(line.startswith("PROBLEM") for line in missing.lines) == 1


def test_demo() -> None:
    said = facepipe("demo")
    assert said.code == 0, said.out
    assert (Path("facepipe-demo") / "annotated" / "she_is_turned.jpg").is_file()
    failed = facepipe("demo", "--out", "strict", "--min-face", "100000")
    assert failed.code == 1
    assert "could not be enrolled" in failed.err


@pytest.mark.parametrize(
    "command",
    ["", "enroll", "identify", "detect", "embed", "demo", "doctor"]
    + [
        f"gallery {name}"
        for name in ("list", "show", "rename", "remove", "merge", "export", "import", "info")
    ]
    + [f"weights {name}" for name in ("list", "show", "verify", "import", "fetch")],
)
def test_help(command: str) -> None:
    said = facepipe(*command.split(), "--help")
    assert said.code == 0
    assert said.out.startswith("Usage:")
    assert facepipe(*command.split(), "-h").out == said.out
