"""A card is read back as it was written, and every way to get one wrong is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facepipe.core.errors import WeightsError
from facepipe.weights.cards import AnchorSpec, EmbeddingSpec, InputSpec, WeightCard, WeightFile
from facepipe.weights.registry import read_card, shipped_folder

DETECTOR = WeightCard(
    name="some_detector",
    kind="detector",
    architecture="retinaface_mobilenet025",
    input=InputSpec("bgr", (104.0, 117.0, 123.0), (1.0, 1.0, 1.0)),
    parameters=WeightFile("some_detector.safetensors", "a" * 64),
    onnx=WeightFile("some_detector.onnx", "b" * 64),
    anchors=AnchorSpec(sizes_px=((10, 20), (32, 64), (128, 256))),
    licence="MIT",
    training={"data": "photos", "hours": 1.5},
    measured={"dev": [1, 2.5, None]},
    limits="profiles — and the dark",
)
FIVE_POINTS = EmbeddingSpec(128, "five_points_112", threshold_l2=1.05, threshold_source="photos of 20 people")
ENCODER = WeightCard(
    name="some_encoder",
    kind="encoder",
    architecture="facenet_mobilenet",
    input=InputSpec("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), size_px=112),
    parameters=WeightFile("some_encoder.safetensors", None),
    embedding=FIVE_POINTS,
)

Raw = dict[str, Any]


def _without(*path: str) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        for key in path[:-1]:
            raw = raw[key]
        del raw[path[-1]]

    return change


def _with(value: Any, *path: str) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        for key in path[:-1]:
            raw = raw[key]
        raw[path[-1]] = value

    return change


def without_sha256(card: WeightCard) -> Raw:
    raw: Raw = json.loads(card.to_json())
    del raw["sha256"]
    return raw


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


DETECTOR_MISTAKES = {
    **{
        f"no {'.'.join(path)}": (_without(*path), path[-1])
        for path in [
            ("name",),
            ("kind",),
            ("architecture",),
            ("input",),
            ("parameters",),
            ("anchors",),
            ("input", "channels"),
            ("input", "mean"),
            ("input", "std"),
            ("parameters", "name"),
            ("parameters", "sha256"),
            ("onnx", "name"),
            ("onnx", "sha256"),
            ("anchors", "sizes_px"),
            ("anchors", "strides_px"),
            ("anchors", "variances"),
        ]
    },
    "unknown field": (_with("MIT", "license"), "license"),
    "unknown inner field": (_with(3, "input", "sizepx"), "sizepx"),
    "name is a number": (_with(5, "name"), "name"),
    "name leaves the folder": (_with("../other", "name"), "../other"),
    "name is empty": (_with("", "name"), "name"),
    "name is hidden": (_with(".hidden", "name"), ".hidden"),
    "kind unknown": (_with("classifier", "kind"), "classifier"),
    "kind is a list": (_with(["detector"], "kind"), "kind"),
    "architecture is null": (_with(None, "architecture"), "architecture"),
    "input is a list": (_with([], "input"), "input"),
    "channels unknown": (_with("gray", "input", "channels"), "gray"),
    "two means": (_with([1, 2], "input", "mean"), "input.mean"),
    "mean of words": (_with(["a", "b", "c"], "input", "mean"), "input.mean"),
    "mean is a number": (_with(1, "input", "mean"), "input.mean"),
    "mean is not finite": (_with([0, 0, float("inf")], "input", "mean"), "mean"),
    "mean beyond float32": (_with([1e300, 0, 0], "input", "mean"), "mean"),
    "std is zero": (_with([1, 0, 1], "input", "std"), "std"),
    "std is next to zero": (_with([1, 1e-300, 1], "input", "std"), "std"),
    "std overflows": (_with([1, 10**400, 1], "input", "std"), "input.std[1]: number out of range"),
    "size is a fraction": (_with(112.5, "input", "size_px"), "size_px"),
    "size is huge": (_with(100_000, "input", "size_px"), "size_px from 1 to 1024"),
    "size is negative": (_with(-1, "input", "size_px"), "size_px"),
    "size is a boolean": (_with(True, "input", "size_px"), "size_px"),
    "file leaves the folder": (_with("../x.safetensors", "parameters", "name"), "../x.safetensors"),
    "file is absolute": (_with("/etc/passwd", "onnx", "name"), "/etc/passwd"),
    "sha256 is short": (_with("abc", "parameters", "sha256"), "abc"),
    "sha256 is a number": (_with(1, "parameters", "sha256"), "parameters.sha256"),
    "onnx is text": (_with("x.onnx", "onnx"), "onnx"),
    "anchors of words": (_with([["a"], ["b"], ["c"]], "anchors", "sizes_px"), "sizes_px"),
    "anchors flat": (_with([16, 32], "anchors", "sizes_px"), "sizes_px"),
    "anchors for two strides": (_with([[16], [32]], "anchors", "sizes_px"), "3 strides"),
    "a stride without anchors": (_with([[16], [], [64]], "anchors", "sizes_px"), "3 strides"),
    "anchors beyond numbers": (_with([[16], [32], [10**40]], "anchors", "sizes_px"), "anchor sizes"),
    "anchors by the thousand": (_with([[16] * 5000, [32], [64]], "anchors", "sizes_px"), "up to 16"),
    "strides by the thousand": (_with([8] * 5000, "anchors", "strides_px"), "up to 8 strides"),
    "stride zero": (_with([8, 0, 32], "anchors", "strides_px"), "strides"),
    "one variance": (_with([0.1], "anchors", "variances"), "variances"),
    "variance is not a number": (_with([0.1, float("nan")], "anchors", "variances"), "variances"),
    "licence is a list": (_with([], "licence"), "licence"),
    "training is nested": (_with({"a": nested(600)}, "training"), "nested more than 20 deep"),
    "training is no unicode": (_with({"a": "\ud800"}, "training"), "surrogates not allowed"),
    "unknown fields without end": (lambda raw: raw.update({f"x{i}\n": 0 for i in range(5000)}), "unknown"),
    "training is text": (_with("two hours", "training"), "training"),
    "measured is a list": (_with([], "measured"), "measured"),
    "limits is null": (_with(None, "limits"), "limits"),
}
ENCODER_MISTAKES = {
    "no embedding": (_without("embedding"), "embedding"),
    "no dimensions": (_without("embedding", "dimensions"), "dimensions"),
    "no alignment": (_without("embedding", "alignment"), "alignment"),
    "no dimension at all": (_with(0, "embedding", "dimensions"), "dimensions"),
    "dimensions without end": (_with(10**9, "embedding", "dimensions"), "dimensions from 1 to 65536"),
    "dimensions in words": (_with("128", "embedding", "dimensions"), "dimensions"),
    "flip average in words": (_with("yes", "embedding", "flip_average"), "embedding.flip_average"),
    "flip average is null": (_with(None, "embedding", "flip_average"), "embedding.flip_average"),
    "flip average is a number": (_with(2, "embedding", "flip_average"), "embedding.flip_average"),
    "flip average is one": (_with(1, "embedding", "flip_average"), "embedding.flip_average"),
    "threshold in words": (_with("1.05", "embedding", "threshold_l2"), "threshold_l2"),
    "threshold beyond unit vectors": (_with(2.5, "embedding", "threshold_l2"), "threshold_l2"),
    "threshold is not a number": (_with(float("nan"), "embedding", "threshold_l2"), "threshold_l2"),
    "threshold source is a number": (_with(7, "embedding", "threshold_source"), "threshold_source"),
}
MISTAKES = [
    pytest.param(card, change, told, id=f"{card.kind}: {name}")
    for card, mistakes in ((DETECTOR, DETECTOR_MISTAKES), (ENCODER, ENCODER_MISTAKES))
    for name, (change, told) in mistakes.items()
]


@pytest.mark.parametrize("card", [DETECTOR, ENCODER], ids=["detector", "encoder"])
def test_a_card_survives_the_round_trip(card: WeightCard) -> None:
    assert WeightCard.from_json(card.to_json()) == card


@pytest.mark.parametrize(
    "field",
    ["onnx", "embedding", "licence", "training", "measured", "limits"],
)
def test_fields_with_a_default_may_be_left_out(field: str) -> None:
    raw = without_sha256(DETECTOR)
    del raw[field]
    assert WeightCard.from_json(json.dumps(raw)) == replace(
        DETECTOR, **{field: getattr(_bare_detector(), field)}
    )


@pytest.mark.parametrize("averaged", [True, False])
def test_flip_average_is_read_as_written(averaged: bool) -> None:
    card = replace(ENCODER, embedding=replace(FIVE_POINTS, flip_average=averaged))
    again = WeightCard.from_json(card.to_json())
    assert again.embedding is not None
    assert again.embedding.flip_average is averaged


def test_flip_average_is_off_unless_the_card_says_so() -> None:
    raw = without_sha256(ENCODER)
    del raw["embedding"]["flip_average"]
    assert WeightCard.from_json(json.dumps(raw)) == ENCODER
    assert not FIVE_POINTS.flip_average


def _bare_detector() -> WeightCard:
    return WeightCard("x", "detector", "y", DETECTOR.input, DETECTOR.parameters, anchors=AnchorSpec())


def test_a_card_that_was_changed_since_is_refused() -> None:
    """Where every field is of the right form, only the sha256 of the contents shows it."""
    text = ENCODER.to_json()
    changes = [("123.675", "123.676"), ("photos of 20", "photos of 21"), ('"sha256": "', '"sha256": "0')]
    for before, after in changes:
        assert before in text
        with pytest.raises(WeightsError, match=r"x\.json: .*take 'sha256' out"):
            WeightCard.from_json(after.join(text.rsplit(before, 1)), "x.json")


def test_a_card_without_its_sha256_or_of_another_layout_is_read() -> None:
    assert WeightCard.from_json(json.dumps(without_sha256(ENCODER))) == ENCODER
    turned = dict(reversed(json.loads(DETECTOR.to_json()).items()))
    assert WeightCard.from_json(json.dumps(turned)) == DETECTOR


@pytest.mark.parametrize(("card", "change", "told"), MISTAKES)
def test_a_wrong_card_is_refused_and_named(
    card: WeightCard, change: Callable[[Raw], None], told: str, tmp_path: Path
) -> None:
    raw = without_sha256(card)
    change(raw)
    path = tmp_path / f"{card.name}.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(WeightsError) as caught:
        read_card(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b"<!DOCTYPE html>",
        b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
        b" " * (1 << 20) + b"{}",
    ],
    ids=["empty", "cut", "list", "null", "text", "not utf-8", "html", "deep", "long number", "large"],
)
def test_what_is_no_card_is_refused_and_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"some\.json"):
        read_card(path)


@pytest.mark.parametrize(
    "changed",
    [
        replace(ENCODER, parameters=WeightFile("some_encoder.safetensors", "c" * 64)),
        replace(ENCODER, onnx=WeightFile("some_encoder.onnx", "c" * 64)),
        replace(ENCODER, input=replace(ENCODER.input, channels="bgr")),
        replace(ENCODER, input=replace(ENCODER.input, mean=(0.0, 0.0, 0.0))),
        replace(ENCODER, embedding=EmbeddingSpec(128, "another_template")),
        replace(ENCODER, embedding=replace(FIVE_POINTS, flip_average=True)),
    ],
    ids=["parameters", "onnx", "channels", "mean", "alignment", "flip average"],
)
def test_the_fingerprint_changes_with_the_numbers(changed: WeightCard) -> None:
    assert changed.fingerprint != ENCODER.fingerprint


def test_the_fingerprint_does_not_change_with_the_words() -> None:
    words = replace(ENCODER, licence="MIT", limits="none known", measured={"lfw": 0.97})
    assert words.fingerprint == ENCODER.fingerprint
    assert WeightCard.from_json(ENCODER.to_json()).fingerprint == ENCODER.fingerprint


BEFORE = {
    "facenet_mobilefacenet_128": "c341885ea49a1d1f",
    "retinaface_mobilenet025": "a2b2cf5739b556c2",
}


@pytest.mark.parametrize(("name", "fingerprint"), BEFORE.items())
def test_galleries_and_jobs_of_shipped_weights_stay_valid(name: str, fingerprint: str) -> None:
    card = read_card(shipped_folder() / f"{name}.json").card
    assert card.fingerprint == fingerprint
    assert card.earlier_fingerprint is None


@pytest.mark.parametrize("name", BEFORE)
def test_another_onnx_file_beside_shipped_parameters_is_another_encoder(name: str) -> None:
    shipped = read_card(shipped_folder() / f"{name}.json").card
    posing = replace(shipped, onnx=WeightFile(f"{name}.onnx", "c" * 64))
    assert shipped.fingerprint not in (posing.fingerprint, posing.earlier_fingerprint)


def test_the_earlier_fingerprint_leaves_out_the_onnx_file() -> None:
    first = replace(ENCODER, onnx=WeightFile("some_encoder.onnx", "b" * 64))
    second = replace(ENCODER, onnx=WeightFile("some_encoder.onnx", "c" * 64))
    assert first.fingerprint != second.fingerprint
    assert first.earlier_fingerprint == second.earlier_fingerprint == ENCODER.fingerprint
    assert ENCODER.earlier_fingerprint is None
