"""The encoder's evaluation: the shipped weights on real photos, and its parts by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from facepipe.commands.evaluate import evaluate
from facepipe.core.errors import DataError
from facepipe.core.faces import UInt8Array
from facepipe.encoder import FaceEncoder
from facepipe.evaluation.encoder import EncoderEvaluation, evaluate_encoder, write_card
from facepipe.evaluation.encoder_report import html, pair_header, pair_rows, text, write_encoder_report
from facepipe.evaluation.impostors import LabelledVectors, check_galleries
from facepipe.evaluation.main_faces import find_main_faces, read_crops, turned
from facepipe.evaluation.pair_lists import read_pair_list
from facepipe.evaluation.robustness import damages
from facepipe.gallery.impostors import ImpostorModel
from facepipe.images.reading import read_image, write_image
from facepipe.pipeline import FacePipeline
from facepipe.quality import central_face
from facepipe.weights.registry import DEFAULT_ENCODER, load_card, read_card

PEOPLE = 10


@pytest.fixture(scope="module")
def pipeline() -> FacePipeline:
    return FacePipeline.load()


@pytest.fixture(scope="module")
def press_photos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos each of some people of LFW: images/, pairs.txt, and people/ with one stranger."""
    folder = tmp_path_factory.mktemp("press")
    everybody = sorted((shared_data / "lfw_dev" / "images").iterdir())
    people = [person for person in everybody if len(list(person.iterdir())) > 1][:PEOPLE]
    for row, person in enumerate(people):
        photos = sorted(person.iterdir())[:2]
        places = ["enroll", "probe/known"] if row < 3 else ["probe/strangers"] * 2 if row == 3 else []
        for number, photo in enumerate(photos, 1):
            _copy(photo, folder / "images" / person.name / f"{person.name}_{number:04d}.png")
        for place, photo in zip(places, photos, strict=False):
            _copy(photo, folder / "people" / place / person.name / f"{photo.stem}.png")
    names = [person.name for person in people]
    half = PEOPLE // 2
    lines = [f"2\t{half}"]
    for fold in (names[:half], names[half:]):
        lines += [f"{name}\t1\t2" for name in fold]
        lines += [f"{a}\t1\t{b}\t2" for a, b in zip(fold, fold[1:] + fold[:1], strict=True)]
    (folder / "pairs.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def _copy(photo: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    write_image(to, read_image(photo))


@pytest.fixture(scope="module")
def crops(pipeline: FacePipeline, press_photos: Path) -> Path:
    """The same photos, aligned."""
    photos = {f"{p.parent.name}/{p.stem}": p for p in (press_photos / "images").glob("*/*")}
    faces = find_main_faces(pipeline, photos)
    for key, crop in zip(faces.keys, faces.crops, strict=True):
        path = press_photos / "crops" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, crop)
    return press_photos / "crops"


@pytest.fixture(scope="module")
def evaluation(pipeline: FacePipeline, press_photos: Path) -> EncoderEvaluation:
    return evaluate_encoder(
        pipeline,
        read_pair_list(press_photos / "pairs.txt", press_photos / "images"),
        people=press_photos / "people",
        damaged=True,
    )


def test_press_photos_from_whole_photos(evaluation: EncoderEvaluation) -> None:
    assert evaluation.setting.startswith("whole photos, faces found by retinaface")
    assert evaluation.pairs.pairs == 2 * PEOPLE
    assert evaluation.pairs.accuracy > 0.7
    assert evaluation.pairs.auc > 0.9
    assert evaluation.all_pairs is not None
    assert evaluation.all_pairs.genuines == PEOPLE
    assert evaluation.all_pairs.impostors == 4 * PEOPLE * (PEOPLE - 1) // 2
    assert sum(evaluation.all_pairs.genuine_share) == pytest.approx(1)
    assert evaluation.all_pairs.roc_tar[-1] == 1
    means = [
        np.average(evaluation.all_pairs.histogram_l2, weights=share)
        for share in (evaluation.all_pairs.genuine_share, evaluation.all_pairs.impostor_share)
    ]
    assert means[0] < 1.1 < means[1]


def test_every_pair_with_faces_is_in_one_bin_of_sizes(evaluation: EncoderEvaluation) -> None:
    inside = sum(size.genuines + size.impostors for size in evaluation.by_size)
    assert inside == evaluation.pairs.pairs - evaluation.pairs.failed_pairs


def test_who_has_no_other_photos_is_a_stranger(
    evaluation: EncoderEvaluation, pipeline: FacePipeline, crops: Path, tmp_path: Path
) -> None:
    found = evaluation.identification
    assert found is not None
    assert (found.templates, found.people, found.known, found.strangers) == (PEOPLE, PEOPLE, PEOPLE, 0)
    assert found.rank1 > 0.7
    first, second, third = sorted(path.name for path in crops.iterdir())[:3]
    pairs = tmp_path / "pairs.txt"
    pairs.write_text(f"1\n{first}\t1\t2\n{second}\t1\t{third}\t1\n", encoding="utf-8")
    few = evaluate_encoder(pipeline, read_pair_list(pairs, crops), crops=True)
    assert few.identification is not None
    assert (few.identification.known, few.identification.strangers) == (1, 2)
    assert (few.impostors, few.galleries) == (None, ())
    assert few.identification.at_thresholds == ()
    assert (
        evaluate_encoder(pipeline, read_pair_list(pairs, crops), crops=True, enroll=2).identification is None
    )


def test_enrolled_people_and_strangers(evaluation: EncoderEvaluation) -> None:
    found = evaluation.people
    assert found is not None
    assert (found.templates, found.people, found.known, found.strangers) == (3, 3, 3, 2)
    assert [at.wrong for at in found.at_thresholds] == [0]


def test_damage_is_measured(evaluation: EncoderEvaluation) -> None:
    assert [row.corruption for row in evaluation.robustness] == [*damages(), "turned by 15 degrees"]
    for row in evaluation.robustness:
        assert 0.4 < row.accuracy_at_clean <= 1
        assert row.failed_photos <= 2


def test_what_is_damaged_is_what_is_said(astronaut: UInt8Array) -> None:
    crop = np.ascontiguousarray(astronaut[60:172, 170:282])
    harmed = {name: harm(crop) for name, harm in damages().items()}
    errors = {name: float(np.square(h.astype(float) - crop).mean()) for name, h in harmed.items()}
    assert errors["64 px"] < errors["32 px"] < errors["24 px"]
    assert all(
        h.shape == crop.shape and error > 1 for h, error in zip(harmed.values(), errors.values(), strict=True)
    )
    assert np.ptp(harmed["grayscale"].astype(int), axis=2).max() == 0
    assert np.array_equal(damages()["JPEG quality 20"](crop), harmed["JPEG quality 20"])


def test_a_turned_photo_keeps_its_face_and_its_corners(pipeline: FacePipeline, astronaut: UInt8Array) -> None:
    photo = turned(astronaut, 15)
    a = np.deg2rad(15)
    side = round(512 * (np.cos(a) + np.sin(a)))
    assert photo.shape == (side, side, 3)
    level, slanted = (
        central_face(pipeline.detect(image), *image.shape[1::-1]).boxes_xyxy[0].reshape(2, 2).mean(axis=0)
        for image in (astronaut, photo)
    )
    offset = (level - 255.5) @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    assert slanted == pytest.approx(offset + (side - 1) / 2, abs=8)
    assert np.array_equal(turned(astronaut, 0), astronaut)


def test_crops_give_what_whole_photos_give(
    pipeline: FacePipeline, evaluation: EncoderEvaluation, press_photos: Path, crops: Path
) -> None:
    """Crops that are cut once, and written, are the very frames that photos are warped to."""
    found = evaluate_encoder(pipeline, read_pair_list(press_photos / "pairs.txt", crops), crops=True)
    assert found.pairs == evaluation.pairs
    assert (found.setting, found.by_size) == ("aligned crops", ())
    assert found.identification == evaluation.identification


def test_a_crop_with_a_margin_and_one_that_is_none(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    write_image(tmp_path / "wide.png", np.ascontiguousarray(astronaut[:100, :90]))
    with pytest.raises(DataError, match=r"wide\.png: expected an aligned square crop, got 90x100"):
        read_crops(pipeline.encoder, {"a/b": tmp_path / "wide.png"})
    big = np.ascontiguousarray(astronaut[40:180, 155:295])  # 140 px: the inner 112 are the frame
    write_image(tmp_path / "big.png", big)
    crops = read_crops(pipeline.encoder, {"a/b": tmp_path / "big.png"}).crops
    assert np.abs(crops[0].astype(int) - big[14:126, 14:126]).max() <= 1


def test_photos_without_faces_are_left_out(pipeline: FacePipeline, tmp_path: Path) -> None:
    write_image(tmp_path / "black.png", np.zeros((64, 64, 3), np.uint8))
    faces = find_main_faces(pipeline, {"nobody/1": tmp_path / "black.png"})
    assert faces.keys == ()
    assert faces.vectors(pipeline.encoder) == {}
    assert faces.vectors(pipeline.encoder, damages()["grayscale"]) == {}
    (tmp_path / "pairs.txt").write_text("black.png black.png 1\nblack.png black.png 0\n", encoding="utf-8")
    with pytest.raises(DataError, match="expected photos with faces, found none"):
        evaluate_encoder(pipeline, read_pair_list(tmp_path / "pairs.txt", tmp_path))


def test_a_threshold_keeps_its_promise_on_other_people() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(400, 24))
    vectors = np.repeat(centres, 2, axis=0) + 0.3 * rng.normal(size=(800, 24))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    checks = check_galleries(LabelledVectors(vectors, np.repeat(np.arange(400), 2)), fpir=0.05)
    assert [check.templates for check in checks] == [1, 20, 100]  # there are not a thousand
    for check in checks:
        assert check.measured == pytest.approx(0.05, abs=0.025)
    assert checks[0].threshold_l2 > checks[1].threshold_l2 > checks[2].threshold_l2


def _copy_card(folder: Path) -> Path:
    """The default encoder's card, that can be written, beside links to its files."""
    shipped = load_card(DEFAULT_ENCODER)
    for path in shipped.folder.glob(f"{shipped.card.name}.*"):
        (folder / path.name).symlink_to(path)
    card_path = folder / f"{shipped.card.name}.json"
    text = card_path.read_text(encoding="utf-8")
    card_path.unlink()
    card_path.write_text(text, encoding="utf-8")
    return card_path


def test_the_model_goes_onto_the_card(evaluation: EncoderEvaluation, tmp_path: Path) -> None:
    shipped = load_card(evaluation.encoder)
    card_path = _copy_card(tmp_path)
    write_card(read_card(card_path), [evaluation])
    card = read_card(card_path).card
    assert card.fingerprint == shipped.card.fingerprint
    assert card.embedding is not None
    assert card.embedding.impostors is not None
    model = ImpostorModel.from_dict(card.embedding.impostors)
    assert card.embedding.threshold_l2 == pytest.approx(model.threshold_l2(0.01, 100), abs=0.005)
    assert "100 templates" in str(card.embedding.threshold_source)
    assert model.people == PEOPLE
    assert "faces found by retinaface" in model.source
    assert model.max_threshold_l2 == pytest.approx(evaluation.pairs.best_threshold_l2, abs=1e-4)
    assert card.measured["verification"][evaluation.list_name]["accuracy"] == pytest.approx(
        evaluation.pairs.accuracy, abs=1e-4
    )
    assert set(card.measured["robustness"]) == {row.corruption for row in evaluation.robustness}
    assert card.measured.keys() >= shipped.card.measured.keys()
    assert FaceEncoder.load(str(card_path)).card == card
    with pytest.raises(DataError, match="too few people"):
        write_card(read_card(card_path), [dataclasses.replace(evaluation, impostors=None)])


def test_the_report_stands_alone(evaluation: EncoderEvaluation, tmp_path: Path) -> None:
    path = write_encoder_report(tmp_path / "new" / "folder", [evaluation])
    markup = path.read_text(encoding="utf-8")
    assert not any(loaded in markup for loaded in ("://", "src=", "href=", "url(", "@import", "<script"))
    assert markup.count("<svg") == 3
    for row in evaluation.robustness:
        assert row.corruption in markup
    record = json.loads((path.parent / "encoder.json").read_text(encoding="utf-8"))
    assert record == json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert ImpostorModel.from_dict(record["impostors"]).people == PEOPLE


def test_a_report_of_little(evaluation: EncoderEvaluation) -> None:
    little = dataclasses.replace(
        evaluation,
        groups=(),
        all_pairs=None,
        by_size=(),
        impostors=None,
        galleries=(),
        identification=None,
        robustness=(),
    )
    assert "<svg" not in html([little])
    assert any(line.startswith("accuracy") for line in text([little]))


def test_the_command(press_photos: Path, crops: Path, tmp_path: Path) -> None:
    options = ["--pairs", press_photos / "pairs.txt", "--images", crops, "--crops", "--report", tmp_path]
    result = CliRunner().invoke(evaluate, ["encoder", *map(str, options), "--json"])
    assert result.exception is None
    record = json.loads(result.stdout)
    assert record["pairs"]["pairs"] == 2 * PEOPLE
    assert record == json.loads((tmp_path / "encoder.json").read_text(encoding="utf-8"))


def test_several_lists_have_a_row_each(
    pipeline: FacePipeline, press_photos: Path, crops: Path, tmp_path: Path
) -> None:
    """The people are those of the first list, whose strangers go onto the card."""
    lists = [press_photos / "pairs.txt", tmp_path / "other.csv"]
    first, second = (sorted(path.glob("*")) for path in sorted(crops.iterdir())[:2])
    paths = [path.relative_to(crops).as_posix() for path in (*first, *second)]
    lists[1].write_text(f"{paths[0]},{paths[1]},1\n{paths[0]},{paths[2]},0\n", encoding="utf-8")
    _copy_card(tmp_path)
    options = ["--images", crops, "--crops", "--write-card", "--report", tmp_path / "report"]
    options += ["--encoder-weights", tmp_path / f"{DEFAULT_ENCODER}.json"]
    options += [word for file in lists for word in ("--pairs", file)]
    result = CliRunner().invoke(evaluate, ["encoder", *map(str, options)])
    assert result.exception is None
    name = press_photos.name
    lines = [line.split() for line in result.stdout.splitlines()]
    tars = [word for far in ("0.01", "0.001", "0.0001") for word in ("TAR", "at", far)]
    assert lines[0] == ["list", "pairs", "accuracy", "EER", "AUC", *tars, "threshold", "no", "face"]
    assert [(line[0], line[1]) for line in lines[1:3]] == [(name, str(2 * PEOPLE)), ("other", "2")]
    assert lines.count([f"{name}:"]) == lines.count(["other:"]) == 1
    records = json.loads((tmp_path / "report" / "encoder.json").read_text(encoding="utf-8"))["lists"]
    for record, file in zip(records, lists, strict=True):
        alone = evaluate_encoder(pipeline, read_pair_list(file, crops), crops=True)
        assert record == json.loads(json.dumps(alone.to_dict()))
    markup = (tmp_path / "report" / "encoder.html").read_text(encoding="utf-8")
    assert "<h2>Lists of pairs</h2>" in markup
    assert "<h2>Same person or not, other</h2>" in markup
    card = read_card(tmp_path / f"{DEFAULT_ENCODER}.json").card
    assert list(card.measured["verification"]) == [name, "other"]
    assert card.measured["verification"]["other"]["accuracy"] == records[1]["pairs"]["accuracy"]
    assert card.embedding is not None
    assert card.embedding.impostors == records[0]["impostors"]


@pytest.fixture(scope="module")
def cfp(astronaut: UInt8Array, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CFP's layout in crops: 3 people who are parts of one photo; a profile is the mirrored part, darker."""
    root = tmp_path_factory.mktemp("cfp")
    lists: dict[str, list[str]] = {"F": [], "P": []}
    for person in range(3):
        part = astronaut[60 + 90 * person :, 170 - 60 * person :][:112, :112]
        for side, pose, crops in (
            ("F", "frontal", (part, part // 4 * 3)),
            ("P", "profile", (part[:, ::-1] // 2,)),
        ):
            for number, crop in enumerate(crops, 1):
                path = root / "Data" / "Images" / f"{person:03d}" / pose / f"{number:02d}.png"
                _save(path, crop)
                lists[side].append(f"../{path.relative_to(root).as_posix()}")
    protocol = root / "Protocol"
    for side, paths in lists.items():
        lines = [f"{number} {path}" for number, path in enumerate(paths, 1)]
        (protocol / "Split").mkdir(parents=True, exist_ok=True)
        (protocol / f"Pair_list_{side}.txt").write_text("\n".join(lines), encoding="utf-8")
    for split, pairs in CFP_PAIRS.items():
        for fold, (same, diff) in enumerate(pairs, 1):
            folder = protocol / "Split" / split / f"{fold:02d}"
            folder.mkdir(parents=True)
            (folder / "same.txt").write_text(same, encoding="utf-8")
            (folder / "diff.txt").write_text(diff, encoding="utf-8")
    return root


CFP_PAIRS = {
    "FF": [("1,2\n3,4", "1,3\n2,6"), ("5,6", "3,5")],
    "FP": [("1,1\n3,2", "1,2\n2,3"), ("6,3", "6,1")],
}


def _save(path: Path, crop: UInt8Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.ascontiguousarray(crop))


def test_both_splits_of_cfp_are_its_splits_by_themselves(pipeline: FacePipeline, cfp: Path) -> None:
    images = cfp / "Data" / "Images"
    both = evaluate_encoder(pipeline, read_pair_list(cfp / "Protocol", images), crops=True)
    assert [group.name for group in both.groups] == ["frontal-frontal", "frontal-profile"]
    for split, group in zip(("FF", "FP"), both.groups, strict=True):
        alone = evaluate_encoder(
            pipeline, read_pair_list(cfp / "Protocol" / "Split" / split, images), crops=True
        )
        assert group.verification == alone.pairs
        assert [fold.pairs for fold in alone.pairs.folds] == [4, 2]
        assert (group.genuines, group.impostors, alone.groups) == (3, 3, ())
    assert both.pairs.pairs == 12
    assert both.all_pairs is not None
    assert (both.all_pairs.genuines, both.all_pairs.impostors) == (9, 27)  # three photos each of three people
    assert both.identification is not None
    assert (both.identification.templates, both.identification.known) == (3, 6)
    assert both.impostors is None


def test_the_figures_of_a_profile_are_those_of_its_vectors(pipeline: FacePipeline, cfp: Path) -> None:
    images = cfp / "Data" / "Images"
    frontals, profiles = sorted(images.glob("*/frontal/*")), sorted(images.glob("*/profile/*"))
    pairs = [(0, 0, 1), (2, 1, 1), (5, 2, 1), (0, 1, 0), (1, 2, 0), (5, 0, 0)]
    vectors = [
        pipeline.encoder.encode(np.stack([read_image(path) for path in paths]))
        for paths in (frontals, profiles)
    ]
    distances = {
        kind: [np.linalg.norm(vectors[0][f] - vectors[1][p]) for f, p, k in pairs if k == kind]
        for kind in (0, 1)
    }
    smaller = np.mean([genuine < impostor for genuine in distances[1] for impostor in distances[0]])
    found = evaluate_encoder(pipeline, read_pair_list(cfp / "Protocol" / "Split" / "FP", images), crops=True)
    assert found.pairs.auc == pytest.approx(smaller)


def test_a_list_of_pairs_names_no_people(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    for name, photo in (
        ("a.png", astronaut),
        ("mirrored.png", astronaut[:, ::-1]),
        ("small.png", astronaut[:300, 60:400]),
        ("black.png", np.zeros((64, 64, 3), np.uint8)),
    ):
        _save(tmp_path / name, photo)
    file = tmp_path / "pairs.csv"
    file.write_text(
        "first,second,same,group\na.png,mirrored.png,1,0-5\na.png,small.png,1,0-5\n"
        "a.png,black.png,0,0-5\nsmall.png,black.png,0,0-5\nmirrored.png,black.png,1,30+\n",
        encoding="utf-8",
    )
    found = evaluate_encoder(pipeline, read_pair_list(file, tmp_path))
    assert (found.pairs.failed_photos, found.pairs.failed_pairs) == (1, 3)
    near, far = found.groups
    assert near.verification is not None
    assert (near.verification.accuracy, near.verification.eer) == (1, 0)
    assert (near.true_accept_rate, far.true_accept_rate, far.verification) == (1, 0, None)
    assert (found.all_pairs, found.impostors, found.identification, found.galleries) == (None, None, None, ())
    rows = {row[0]: row[1:] for row in [pair_header(found), *pair_rows(found)]}
    assert rows[""] == ("all", "0-5", "30+")
    assert rows["photos without a face"] == ("1", "1", "-")
    assert rows["pairs of one person"] == ("", "2", "1")
    assert rows["equal error rate"][1:] == ("0.0", "-")
    assert "<th>30+</th>" in html([found])
    lines = text([found])
    assert len({len(line) for line in lines if "30+" in line or line.startswith("best threshold")}) == 1
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["groups"][1]["verification"] is None
    options = ["--pairs", str(file), "--images", str(tmp_path), "--write-card"]
    refused = CliRunner().invoke(evaluate, ["encoder", *options])
    assert "or the list of pairs names none" in str(refused.exception)
    assert refused.stdout.splitlines() == lines  # the figures are not lost with the card


def test_the_command_on_cfp(cfp: Path) -> None:
    options = ["--pairs", cfp / "Protocol", "--images", cfp / "Data" / "Images", "--crops"]
    result = CliRunner().invoke(evaluate, ["encoder", *map(str, options)])
    assert result.exception is None
    assert "frontal-frontal  frontal-profile" in result.stdout
    assert "of folds: EER (deviation)" in result.stdout
