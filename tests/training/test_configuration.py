from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_helpers import places, replaced

from facepipe.core.errors import UsageError
from facepipe.training.detection.config import DataConfig, DetectorConfig
from facepipe.training.engine.config import (
    RECIPES,
    from_plain,
    read_configuration,
    read_phases,
    recipe_names,
    to_plain,
)
from facepipe.training.engine.optimizer import OptimiserConfig
from facepipe.training.recognition.config import EncoderConfig


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_reads_and_survives_json(name: str) -> None:
    detector = name.startswith("retinaface")
    kind: type[DetectorConfig | EncoderConfig] = DetectorConfig if detector else EncoderConfig
    config = read_configuration(kind, name, ["data.0.folder=/photos" if detector else "data.0.path=/faces"])
    assert name.startswith(config.network.architecture)
    assert from_plain(kind, json.loads(json.dumps(to_plain(config)))) == config


def test_a_commands_steps_go_before_a_recipes_epochs(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[loop]\nepochs = 7\n")
    assert read_configuration(DetectorConfig, recipe).loop.epochs == 7
    loop = read_configuration(DetectorConfig, recipe, ["loop.steps=9"]).loop
    assert (loop.steps, loop.epochs) == (9, None)
    assert read_configuration(DetectorConfig, recipe, ["loop.epochs=2"]).loop.epochs == 2


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "drops"),
    [("retinaface_mobilenet025", 32, 250, (190, 220)), ("retinaface_resnet50", 24, 100, (70, 90))],
)
def test_the_paper_recipes_are_as_published(
    name: str, batch: int, epochs: int, drops: tuple[int, int]
) -> None:
    frozen, whole = (phase.config for phase in read_phases(DetectorConfig, f"{name}_paper"))
    assert (frozen.loop.batch_size, whole.loop.batch_size) == (16, batch)
    assert frozen.loop.freeze_steps > 10**6 > whole.loop.freeze_steps
    assert frozen.loop.epochs is not None
    assert whole.loop.epochs is not None
    assert frozen.loop.epochs + whole.loop.epochs == epochs
    assert whole.optimiser == OptimiserConfig(
        "sgd", 1e-3, reference_batch=batch, weight_decay=5e-4, clip_norm=1e6
    )
    loop = whole.loop.with_known_length(samples=12_880, samples_per_step=batch)
    found = [
        frozen.loop.epochs + step * batch / 12_880
        for step in range(1, loop.steps)
        if loop.rate_factor(step) < loop.rate_factor(step - 1)
    ]
    assert found == pytest.approx(drops, abs=0.01)
    for config in (frozen, whole):
        assert config.augment.size_px == 640
        assert (config.loss.classes, config.loss.boxes, config.loss.landmarks) == (1, 2, 1)
        assert (config.loss.box_error, config.loss.negatives_per_positive) == ("smooth_l1", 7)


def test_a_recipe_file_is_read_and_overridden(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[loop]\nsteps = 7\nprecision = "bfloat16"\n[[data]]\nfolder = "a"\nweight = 2\n')
    overrides = [
        "loop.steps=9",
        "loop.schedule=constant",
        "augment.scale_range=[1, 2]",
        "data.1.folder=b",
        "data.0.weight=0.5",
        "teacher.weights=some_detector",
        "validation=none",
        "optimiser.learning_rate = 1e-3",
        'network.input={channels="bgr", mean=[104, 117, 123], std=[1, 1, 1]}',
        "network.anchors.sizes_px=[[10, 20], [32, 64], [128, 256]]",
    ]
    config = read_configuration(DetectorConfig, recipe, overrides)
    assert (config.loop.steps, config.loop.precision, config.loop.schedule) == (9, "bfloat16", "constant")
    assert config.augment.scale_range == (1.0, 2.0)
    assert config.data == (DataConfig(Path("a"), 0.5), DataConfig(Path("b")))
    assert config.teacher is not None
    assert config.teacher.weights == "some_detector"
    assert config.validation is None
    assert config.optimiser.learning_rate == 1e-3
    assert config.network.input is not None
    assert config.network.input.mean == (104.0, 117.0, 123.0)
    assert config.network.anchors is not None
    assert config.network.anchors.sizes_px == ((10, 20), (32, 64), (128, 256))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.step=1", "unknown key loop.step; did you mean steps"),
        ("lop.steps=1", "unknown key lop; did you mean loop"),
        ("nonsense.x=1", "known here: cache, device"),
        ("loop.steps=many", "loop.steps: expected `int`, got `str`"),
        ("loop.steps=1.5", "loop.steps: expected `int`, got `float`"),
        ("loop.steps=true", "loop.steps: expected `int`, got `bool`"),
        ("loop.compile=1", "loop.compile: expected `bool`, got `int`"),
        (
            "loop.schedule=linear",
            "loop.schedule: expected one of cosine, step, constant: invalid enum value 'linear'",
        ),
        ("loop.steps=0", "loop.steps: expected at least 1"),
        ("loop.seed=-1", "loop.seed: expected 0 or more"),
        ("loop=3", "loop: expected `object`, got `int`"),
        ("augment.scale_range=[1]", "augment.scale_range: expected `array` of length 2, got 1"),
        ("augment.scale_range=2", "augment.scale_range: expected `array`, got `int`"),
        ("augment.scale_range=[2, 1]", "augment.scale_range"),
        ("augment.scale_range=[1, 'b']", "augment.scale_range[1]: expected `float`, got `str`"),
        ("augment.size_px=100", "augment.size_px: expected a multiple of 32"),
        ("augment.turn_share=2", "augment.turn_share: expected 0..1"),
        ("optimiser.learning_rate=-1", "learning_rate"),
        ("loss.boxes=-1", "loss"),
        ("match.positive_iou=0.1", "match"),
        ("data.0.weight=1", "data[0]: object missing required field `folder`"),
        ("data.1.folder=x", "expected an index from 0 to 0"),
        ("data.first.folder=x", "data: expected `array`, got `object`"),
        ("network.input.channels=rgb", "network.input: object missing required field `mean`"),
        ('network.input={channels="rgb", mean=[1,1,1], std=[0,1,1]}', "positive std"),
        ("loop.steps", "expected section.key=value"),
        (".steps=1", "expected section.key=value"),
        ("loop.steps.more=1", "loop.steps: expected `int`, got `object`"),
    ],
)
def test_wrong_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_configuration(DetectorConfig, None, [override])
    assert message in str(caught.value)


def test_a_value_is_no_section() -> None:
    with pytest.raises(UsageError, match="steps is a value, not a section"):
        read_configuration(DetectorConfig, {"loop": {"steps": 3}}, ["loop.steps.more=1"])


def test_missing_and_broken_recipes_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    with pytest.raises(UsageError, match="retinaface_mobilenet025"):
        read_configuration(DetectorConfig, "no_such_recipe")
    for text in ("[loop\n", f"a = {'[' * 10_000}"):
        broken.write_text(text)
        with pytest.raises(UsageError, match=r"broken\.toml"):
            read_configuration(DetectorConfig, broken)


def test_plain_data_is_not_changed_by_overrides() -> None:
    plain = to_plain(DetectorConfig())
    read_configuration(DetectorConfig, plain, ["loop.steps=5"])
    assert plain == to_plain(DetectorConfig())


def test_options_stand_between_recipe_and_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('cache = "old"\n[[data]]\nfolder = "a"\n[[data]]\nfolder = "b"\n')
    options = {
        "data": [{"folder": Path("1")}, {"folder": Path('odd "name" \\ [x]')}],
        "teacher.weights": "some_detector",
        "validation.photos": Path("true"),
        "validation.ground_truth": None,
        "cache": Path("new"),
    }
    overrides = ["data.1.weight=3", "validation.limit=5"]
    config = read_configuration(DetectorConfig, recipe, overrides, options)
    assert config.data == (DataConfig(Path("1")), DataConfig(Path('odd "name" \\ [x]'), 3.0))
    assert config.teacher is not None
    assert config.teacher.weights == "some_detector"
    assert config.validation is not None
    assert (config.validation.photos, config.validation.limit) == (Path("true"), 5)
    assert config.cache == Path("new")
    assert read_configuration(DetectorConfig, recipe).data == (DataConfig(Path("a")), DataConfig(Path("b")))


# Any recipe

RECIPE_FILES = [(name, tomllib.loads((RECIPES / f"{name}.toml").read_text())) for name in recipe_names()]
MORE = {
    "teacher": {"weights": "x"},
    "validation": {"photos": "a"},
    "detail": {"weights": "x.onnx"},
    "data": [{"folder": "a"}],
}
WHOLE: list[tuple[type[Any], dict[str, Any]]] = [
    (DetectorConfig, to_plain(DetectorConfig()) | MORE),
    (EncoderConfig, to_plain(EncoderConfig()) | {"data": [{"path": "a"}]}),
    *((DetectorConfig if name.startswith("retina") else EncoderConfig, raw) for name, raw in RECIPE_FILES),
]
TOML_VALUES = st.recursive(
    st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, float("nan"), float("-inf"), True])
    | st.sampled_from(["", "\n", "none", "\0", "~nobody/x", date(2020, 1, 1), time(1), datetime(2020, 1, 1)])
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "\n", "steps", "x" * 500]), inner, max_size=3)
    ),
    max_leaves=6,
)


def told(read: Callable[[], object]) -> str:
    """What is wrong with a configuration; empty: nothing."""
    try:
        read()
    except UsageError as error:
        return str(error)
    return ""


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_any_value_in_any_place_is_taken_or_one_line(data: st.DataObject) -> None:
    kind, raw = data.draw(st.sampled_from(WHOLE))
    place = data.draw(st.sampled_from(places(raw)[1:]))
    message = told(lambda: read_configuration(kind, replaced(raw, place, data.draw(TOML_VALUES))))
    assert "\n" not in message
    assert len(message) < 700


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["loop", "steps", "data", "0", "9" * 5000, "\u0663", "\u00b2", "", "\n", "x" * 300]),
        max_size=4,
    ),
    st.sampled_from(["=", "", "=="]),
    st.sampled_from(
        ["1", "[", "[" * 5000, "9" * 5000, "0x" + "f" * 9000, "nan", "\n", '"', "{a=1}", "\0", "2000-01-01"]
    ),
)
def test_any_override_is_taken_or_one_line(words: list[str], equals: str, value: str) -> None:
    message = told(lambda: read_configuration(DetectorConfig, None, [".".join(words) + equals + value]))
    assert "\n" not in message
    assert len(message) < 700


@pytest.mark.parametrize(
    "text",
    ["a = " + "9" * 5000, "a = 0x" + "f" * 9000, "\ufeff", "a = 1\na = 2", "[a]\n[a]", "\0", "a = nan\n" * 2],
)
def test_any_text_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_configuration(DetectorConfig, tmp_path / "x.toml")
    assert "\n" not in str(caught.value)
