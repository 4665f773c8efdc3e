"""Whole runs of the encoder's trainer, small enough for seconds."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from recognition_helpers import (
    FACE,
    INPUT,
    SIDE_PX,
    build_tiny,
    plain_task,
    tiny_config,
    write_people,
    write_teacher,
)
from torch import nn
from training_helpers import TORCHRUN, assert_same_run, run_python, to_toml

from facepipe.cli import main
from facepipe.core.errors import DataError, FacepipeError, UsageError, WeightsError
from facepipe.core.faces import UInt8Array
from facepipe.encoder import FaceEncoder
from facepipe.images.reading import write_image
from facepipe.runtime.architectures import build_network
from facepipe.training.engine.checkpoints import load_checkpoint
from facepipe.training.engine.config import from_plain, to_plain
from facepipe.training.engine.logs import read_log
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.runs import configuration_of_run
from facepipe.training.export import export_checkpoint
from facepipe.training.recognition.config import EncoderConfig, NetworkConfig
from facepipe.training.recognition.initialize import encoder_of_checkpoints, initial_encoder
from facepipe.training.train import train
from facepipe.weights.cards import InputSpec


@pytest.fixture(autouse=True)
def tiny_mobilenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """`facenet_mobilenet` is tiny here, so that whole runs take seconds."""
    monkeypatch.setattr("facepipe.facenet.network.facenet_mobilenet", build_tiny)


@pytest.fixture
def people(tmp_path: Path, astronaut: UInt8Array) -> Path:
    return write_people(tmp_path / "people", astronaut)


def _settings(tmp_path: Path, people: Path, *overrides: str) -> EncoderConfig:
    return tiny_config(f"cache={tmp_path / 'cache'}", f"data.0.path={people}", *overrides)


def _vectors(network: nn.Module, faces: UInt8Array, spec: InputSpec) -> torch.Tensor:
    pixels = (torch.from_numpy(faces).float() - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    with torch.no_grad():
        return network.eval()(pixels.permute(0, 3, 1, 2)).vectors  # type: ignore[no-any-return]


def test_people_are_learned_by_the_command_and_the_export_gives_the_same_vectors(
    tmp_path: Path, astronaut: UInt8Array
) -> None:
    people = write_people(tmp_path / "people", astronaut, people=4, photos=8)
    plain = to_plain(tiny_config())
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        "\n".join(f"{key} = {to_toml(value)}" for key, value in plain.items()), encoding="utf-8"
    )
    settings = [
        "loop.steps=40",
        "loop.ema_decay=0.5",
        "loop.validate_every=40",
        "optimiser.learning_rate=3e-3",
        "loss.softmax=1",
        "loss.triplet=1",
        "batch.people=2",
        "batch.photos_per_person=3",
        "held_out_share=0.3",
        'teacher.taps=["/features/0/Conv_output_0"]',
    ]
    run, data = str(tmp_path / "run"), ["--data", str(people), "--cache", str(tmp_path / "cache")]
    chosen = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(main, ["train", "encoder", run, "--recipe", str(recipe), *data, *chosen])
    assert done.exit_code == 0, done.output
    assert "step 40 of 40, finished" in done.output
    assert "same_person_auc" in done.output
    losses = [value for _, value in read_log(tmp_path / "run" / "log.csv")["softmax"]]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])

    best, out = str(tmp_path / "run" / "best.pt"), str(tmp_path / "weights")
    done = CliRunner().invoke(main, ["export", best, "--name", "tiny", "--out", out, "--licence", "MIT"])
    assert done.exit_code == 0, done.output
    encoder = FaceEncoder.load(str(tmp_path / "weights" / "tiny.json"))
    assert (encoder.embedding.dimensions, encoder.embedding.alignment) == (16, "arcface_112")
    assert (encoder.embedding.flip_average, encoder.embedding.threshold_l2) == (True, None)
    assert encoder.card.training["steps"] == 40
    assert str(tmp_path) not in encoder.card.to_json()
    assert encoder.card.training["recipe"]["teacher"]["taps"] == ["/features/0/Conv_output_0"]
    assert encoder.card.measured["validation"]["same_person_auc"] > 0
    trained = encoder_of_checkpoints([load_checkpoint(Path(best))], best)
    faces = np.stack([astronaut[60 + i : 92 + i, 200 : 200 + SIDE_PX] for i in range(0, 80, 20)])
    both = [_vectors(trained.network, f, trained.input) for f in (faces, faces[:, :, ::-1].copy())]
    expected = nn.functional.normalize(sum(nn.functional.normalize(v) for v in both))  # type: ignore[arg-type]
    np.testing.assert_allclose(encoder.encode(faces), expected.numpy(), atol=1e-3)


def test_the_published_losses_fall_from_random_values_without_a_teacher(
    tmp_path: Path, astronaut: UInt8Array
) -> None:
    people = write_people(tmp_path / "people", astronaut, people=16, photos=4)
    run, data = str(tmp_path / "run"), ["--data", str(people), "--cache", str(tmp_path / "cache")]
    settings = ("loop.steps=30", "loop.log_every=1", "loop.workers=0", "loop.warmup_steps=10", INPUT)
    chosen = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(
        main, ["train", "encoder", run, "--recipe", "facenet_mobilenet_paper", *data, *chosen]
    )
    assert done.exit_code == 0, done.output
    log = read_log(tmp_path / "run" / "log.csv")
    softmax, triplet = ([value for _, value in log[name]] for name in ("softmax", "triplet"))
    assert softmax[0] == pytest.approx(np.log(16), abs=0.5)  # 16 people, none known yet
    assert np.mean(softmax[-5:]) < 0.5 * np.mean(softmax[:5])
    assert np.mean(triplet[-5:]) < 0.8 * np.mean(triplet[:5])
    head = load_checkpoint(tmp_path / "run" / "last.pt")["module"]["margin_head.linear.weight"]
    assert head.shape == (16, 128)


def test_a_run_that_can_not_begin_says_why(tmp_path: Path, people: Path) -> None:
    for arguments, message in (
        (["--resume", "--photos", str(tmp_path)], "its own data"),
        (["--resume"], "no run to continue"),
        ([], "no faces to train on"),
        (["--recipe", "facenet_mobilefacenet_people"], "no faces to train on"),
        (["--recipe", "facenet_mobilenet", "--data", str(people)], "name one (--teacher)"),
        (["--recipe", "facenet_mobilenetv1", "--data", str(people)], "this recipe's is SFace: face_recog"),
    ):
        done = CliRunner().invoke(main, ["train", "encoder", str(tmp_path / "none"), *arguments])
        assert done.exit_code == 2, done.output
        assert message in done.output


_KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from recognition_helpers import make_mobilenet_tiny
from facepipe.training.engine.config import from_plain
from facepipe.training.recognition.config import EncoderConfig
from facepipe.training.train import train
make_mobilenet_tiny()
torch.set_num_threads(1)
def kill(progress):
    if progress.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
config = from_plain(EncoderConfig, json.loads(sys.argv[2]))
train(config, Path(sys.argv[1]), on_step=kill)
"""


_COMPARING_MAPS = ('teacher.taps=["tap0", "tap1"]', "loss.hints_first=1")
_KEEPING_TARGETS = ("jitter.variants=1", "loop.batch_size=5", "loop.precision=bfloat16")


@pytest.mark.parametrize("others", [_COMPARING_MAPS, _KEEPING_TARGETS])
def test_a_run_killed_in_the_middle_and_resumed_equals_an_uninterrupted_one(
    tmp_path: Path, people: Path, others: Sequence[str]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = _settings(
            tmp_path,
            people,
            f"teacher.weights={write_teacher(tmp_path / 'teacher.onnx')}",
            "loss.cosine=3",
            "loss.softmax=0.1",
            "loop.steps=7",
            "loop.workers=1",
            "loop.freeze_steps=3",
            *others,
        )
        script = tmp_path / "killed.py"
        script.write_text(_KILLED)
        done = run_python(script, str(tmp_path / "killed"), json.dumps(to_plain(config)))
        assert done.returncode == -9, done.stderr
        assert load_checkpoint(tmp_path / "killed" / "last.pt")["step"] == 4
        resumed = configuration_of_run(EncoderConfig, tmp_path / "killed")
        train(resumed, tmp_path / "killed", resume=True)
        train(config, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    killed, whole = (load_checkpoint(tmp_path / name / "last.pt") for name in ("killed", "whole"))
    assert_same_run(killed, whole)
    if others is _COMPARING_MAPS:
        assert any(name.startswith("projections.") for name in whole["module"])
        assert [step for step, _ in read_log(tmp_path / "killed" / "log.csv")["hint"]] == list(range(1, 8))


_TOGETHER = """
import sys
from pathlib import Path
import torch
from recognition_helpers import plain_task
from facepipe.training.engine.distributed import process_group, world_size
from facepipe.training.engine.loop import TrainingLoop
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.optimizer import OptimiserConfig
torch.set_num_threads(1)
with process_group("cpu"):
    batch = 8 // world_size()
    task = plain_task(Path(sys.argv[1]), batch)
    config = LoopConfig(steps=3, batch_size=batch, warmup_steps=0, log_every=3, checkpoint_every=9, workers=0)
    optimiser = OptimiserConfig(name="sgd", learning_rate=0.02, reference_batch=8)
    TrainingLoop(task, optimiser, config, Path(sys.argv[2]), {}).run()
"""


def test_two_processes_train_network_and_margin_head_as_one_with_the_whole_batch(
    tmp_path: Path, people: Path
) -> None:
    script = tmp_path / "together.py"
    script.write_text(_TOGETHER)
    before = copy.deepcopy(plain_task(tmp_path, 8).module.state_dict())
    runs: dict[str, tuple[str, ...]] = {"one": (), "two": TORCHRUN}
    for name, launcher in runs.items():
        done = run_python(script, str(tmp_path), str(tmp_path / name), launcher=launcher)
        assert done.returncode == 0, done.stderr
    one, two = (load_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    assert one["step"] == two["step"] == 3
    for name, value in one["module"].items():
        torch.testing.assert_close(two["module"][name], value, atol=1e-6, rtol=1e-4)
    directions = "margin_head.directions"
    assert (one["module"][directions] - before[directions]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("architecture", "size_px", "taps"),
    [
        ("facenet_mobilenet", SIDE_PX, '["tap0", "tap1", "tap2"]'),
        ("facenet_mobilenetv1", 112, "[]"),
        ("facenet_mobilefacenet", 112, "[]"),
        ("facenet_inception_resnet_v1", 80, "[]"),
    ],
)
def test_every_backbone_trains_with_hints_where_they_fit(
    tmp_path: Path,
    people: Path,
    architecture: str,
    size_px: int,
    taps: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # of `tiny_mobilenet`
    teacher = write_teacher(tmp_path / "teacher.onnx")
    config = _settings(
        tmp_path,
        people,
        f"network.architecture={architecture}",
        INPUT.replace(f"size_px={SIDE_PX}", f"size_px={size_px}"),
        f"teacher.weights={teacher}",
        f"teacher.taps={taps}",
        f"teacher.view={'shared' if size_px == SIDE_PX else 'canonical'}",
        f"loss.hints_last={float(size_px == SIDE_PX)}",
        "loss.cosine=1",
        "loop.steps=2",
        "loop.batch_size=4",
    )
    start = initial_encoder(config.network).network.state_dict()
    outcome = train(config, tmp_path / "run")
    state = load_checkpoint(outcome.last)["module"]
    stem = next(name for name in start if name.endswith("weight"))
    assert state[f"network.{stem}"].shape == start[stem].shape
    assert {"cosine"} <= read_log(tmp_path / "run" / "log.csv").keys()
    assert ("hint" in read_log(tmp_path / "run" / "log.csv")) == (size_px == SIDE_PX)
    moved = state["network.head.linear.weight"]
    assert moved.isfinite().all()
    assert float((moved - _fresh(config).state_dict()["head.linear.weight"]).abs().max()) > 1e-4


def _fresh(config: EncoderConfig) -> nn.Module:
    torch.manual_seed(config.loop.seed)
    return initial_encoder(config.network).network


def test_pairs_choose_the_best_checkpoint(tmp_path: Path, people: Path, astronaut: UInt8Array) -> None:
    images = tmp_path / "images"
    for person in range(3):
        (images / f"p{person}").mkdir(parents=True)
        for photo in range(2):
            crop = astronaut[60 + 120 * person : 100 + 120 * person, 200 + photo : 240 + photo]
            write_image(images / f"p{person}" / f"p{person}_{photo + 1:04d}.png", crop)
    rows = ["2\t2"]
    for first, second in ((0, 1), (1, 2)):
        rows += [
            f"p{first}\t1\t2",
            f"p{second}\t1\t2",
            f"p{first}\t1\tp{second}\t1",
            f"p{first}\t2\tp{second}\t2",
        ]
    (tmp_path / "pairs.txt").write_text("\n".join(rows) + "\n")
    config = _settings(
        tmp_path,
        people,
        "loss.softmax=1",
        f"validation.pairs={tmp_path / 'pairs.txt'}",
        f"validation.images={images}",
        "validation.aligned=true",
    )
    outcome = train(config, tmp_path / "run")
    # Nearly the same crops for one person, and quite other parts of the photo for others.
    assert outcome.figures["pairs_accuracy"] == outcome.score == 1.0
    assert outcome.best is not None


def test_whole_photos_are_aligned_for_training_and_validation(
    tmp_path: Path, astronaut: UInt8Array, caplog: pytest.LogCaptureFixture
) -> None:
    for person in ("eileen", "collins"):
        (tmp_path / "photos" / person).mkdir(parents=True)
        for number in (1, 2):
            write_image(
                tmp_path / "photos" / person / f"{person}_{number:04d}.png", astronaut[: 300 + number]
            )
    write_image(tmp_path / "photos" / "eileen" / "rocket.png", astronaut[380:, :100])
    (tmp_path / "photos" / "eileen" / "torn.jpg").write_bytes(b"no photo")
    (tmp_path / "pairs.txt").write_text("1\neileen\t1\t2\neileen\t1\tcollins\t2\n")
    config = tiny_config(
        f"cache={tmp_path / 'cache'}",
        f"data.0.path={tmp_path / 'photos'}",
        "data.0.kind=photos",
        "loss.softmax=1",
        "loop.steps=1",
        "loop.batch_size=4",
        f"validation.pairs={tmp_path / 'pairs.txt'}",
        f"validation.images={tmp_path / 'photos'}",
    )
    outcome = train(config, tmp_path / "run")
    assert "pairs_accuracy" in outcome.figures
    said = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert len(said) == 3
    assert "rocket.png: no face" in said[0]
    assert "torn.jpg" in said[1]
    assert said[2] == f"{tmp_path / 'photos'}: 2 photos passed over, 4 used"
    assert load_checkpoint(outcome.last)["module"]["margin_head.directions"].shape == (2, 16)


_TWO = ("loss.cosine=1", "teacher.weights={teacher}", "second_teacher.share=0.5")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data=[]"], UsageError, "no faces to train on"),
        (["data.0.path=/nowhere"], DataError, "/nowhere"),
        (["data.0.path={empty}"], DataError, "no photos"),
        (["data.0.path={broken}"], DataError, "not a readable tar"),
        (["data.0.path={oblong}"], DataError, "a.png: expected a square face crop, got 50x40 pixels"),
        (["loss.softmax=0"], UsageError, "all parts of the loss have weight 0"),
        (["data.0.labelled=false"], DataError, "sub-folder per person"),
        (["loss.triplet=1"], UsageError, "set batch.people"),
        (["loss.triplet=1", "batch.people=2", "data.0.path={single}"], DataError, "only 0 have two or more"),
        (["batch.people=3"], UsageError, "more than 8 faces"),
        (["same_person={empty}/none.csv"], DataError, "none.csv"),
        (["loss.cosine=1"], UsageError, "name one"),
        (["teacher.weights={teacher}"], UsageError, "nothing is learned from it"),
        (["loss.cosine=1", "teacher.weights=gone.onnx"], WeightsError, "gone.onnx: there is no such teacher"),
        (
            ["loss.cosine=1", "teacher.weights=gone.onnx", "teacher.source=SFace"],
            WeightsError,
            "gone.onnx: there is no such teacher; put there SFace",
        ),
        (["loss.cosine=1", "teacher.weights=retinaface_mobilenet025"], WeightsError, "must be an encoder"),
        (["loss.cosine=1", "teacher.weights={wide}"], UsageError, "network.dimensions=24"),
        (["loss.hints_first=1", "teacher.weights={teacher}"], UsageError, "teacher.taps names none"),
        (
            ["loss.hints_first=1", "teacher.weights={teacher}", "teacher.view=canonical"],
            UsageError,
            "the canonical view has none",
        ),
        (
            ["loss.hints_first=1", "teacher.weights={teacher}", 'teacher.taps=["tap9"]'],
            WeightsError,
            "computes no tap9",
        ),
        (
            [*_TWO],
            UsageError,
            r"name the second \(second_teacher.weights\)",
        ),
        (
            [*_TWO, "second_teacher.weights=gone.onnx", "second_teacher.source=that one"],
            WeightsError,
            "gone.onnx: there is no such teacher; put there that one",
        ),
        ([*_TWO, "second_teacher.weights={wide}"], UsageError, "vectors of 24 dimensions, the first of 16"),
        (
            [*_TWO, "second_teacher.weights=facenet_mobilefacenet_128"],
            UsageError,
            "takes faces of 112 px, the first of 32",
        ),
        (
            [*_TWO, "second_teacher.weights={teacher}", "teacher.view=canonical"],
            UsageError,
            "needs teacher.view=shared",
        ),
        (["second_teacher.share=0.5", "second_teacher.weights={teacher}"], UsageError, "after a first"),
        (["second_teacher.share=1"], UsageError, "second_teacher.share: expected 0 or more and below 1"),
        (["network.frozen_maps=-1"], UsageError, "network.frozen_maps: expected 0 or more"),
        (["network.frozen_maps=1"], UsageError, "network.frozen_maps needs a chain of blocks"),
        (
            ["loss.cosine=1", "teacher.weights={teacher}", INPUT.replace("size_px=32", "size_px=48")],
            UsageError,
            "takes faces of 32 px",
        ),
        (
            ["network.architecture=facenet_mobilefacenet"],
            UsageError,
            "facenet_mobilefacenet needs faces of 112 px, got 32",
        ),
        (["network.initial=facenet_mobilefacenet_128"], WeightsError, "not a facenet_mobilenet"),
        (["network.initial=retinaface_mobilenet025"], WeightsError, "not an encoder"),
        (["network.initial={empty}/gone.pt"], DataError, "gone.pt"),
        (["validation.pairs=/none.txt", "validation.images=/none"], DataError, "none.txt"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path,
    people: Path,
    astronaut: UInt8Array,
    overrides: list[str],
    error: type[FacepipeError],
    message: str,
) -> None:
    places = {"empty": tmp_path / "empty", "broken": tmp_path / "broken.tar", "oblong": tmp_path / "oblong"}
    places |= {"single": tmp_path / "single", "teacher": tmp_path / "teacher.onnx"}
    places["wide"] = tmp_path / "wide.onnx"
    for name in ("empty", "oblong", "single/a", "single/b"):
        (tmp_path / name).mkdir(parents=True)
    places["broken"].write_bytes(b"no tar")
    write_image(places["oblong"] / "a.png", astronaut[:40, :50])
    for person in ("a", "b"):
        write_image(places["single"] / person / "1.png", astronaut[FACE])
    if "{teacher}" in str(overrides):
        write_teacher(places["teacher"])
    if "{wide}" in str(overrides):
        write_teacher(places["wide"], dimensions=24)
    named = [_filled(override, places) for override in overrides]
    with pytest.raises(error, match=message):
        train(_settings(tmp_path, people, "loss.softmax=1", *named), tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()


def _filled(override: str, places: dict[str, Path]) -> str:
    for name, path in places.items():
        override = override.replace(f"{{{name}}}", str(path))
    return override


def test_checkpoints_of_the_other_trainer_are_refused_and_recognised(tmp_path: Path) -> None:
    state = {"step": 1, "module": {}, "average": {}, "seconds": 1.0}
    for record in ({"network": {"architecture": "retinaface_mobilenet025"}}, {}):
        torch.save({**state, "record": record}, tmp_path / "other.pt")
        with pytest.raises(WeightsError, match=r"other\.pt: was not written by the encoder's trainer"):
            initial_encoder(NetworkConfig(initial=str(tmp_path / "other.pt")))
    with pytest.raises(WeightsError, match="one of facepipe's trainers"):
        export_checkpoint([tmp_path / "other.pt"], "x", tmp_path)


def test_a_checkpoint_of_an_architecture_that_is_gone_is_refused(tmp_path: Path) -> None:
    network = {"architecture": "facenet_dense", "widths": [48, 96, 192], "blocks": [1, 2, 2]}
    state = {"step": 1, "module": {}, "average": {}, "seconds": 1.0, "record": {"network": network}}
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(WeightsError, match=r"old\.pt: unknown architecture 'facenet_dense'; known are"):
        initial_encoder(NetworkConfig(initial=str(tmp_path / "old.pt")))


def test_a_run_with_settings_of_an_older_version_is_not_resumed(tmp_path: Path) -> None:
    record = to_plain(tiny_config()) | {"detector": "retinaface_mobilenet025"}
    torch.save({"step": 1, "module": {}, "average": {}, "record": record}, tmp_path / "last.pt")
    with pytest.raises(
        UsageError, match=r"version of facepipe \(configuration: unknown key detector.*initial=.*last\.pt"
    ):
        configuration_of_run(EncoderConfig, tmp_path)


def test_an_encoder_takes_no_class_bias(tmp_path: Path) -> None:
    network = build_network("facenet_mobilenet", 16)
    average = {f"network.{name}": value for name, value in network.state_dict().items()}
    record = {"network": {"architecture": "facenet_mobilenet"}}
    state = {"step": 1, "seconds": 1.0, "module": {}, "average": average, "record": record}
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(UsageError, match="class bias: an encoder has no strides"):
        export_checkpoint([tmp_path / "last.pt"], "biased", tmp_path, class_bias=0.5)


def test_a_checkpoint_that_says_little_of_itself_is_read(tmp_path: Path) -> None:
    """Of its record, the architecture is enough: the parameters say the rest."""
    network = build_network("facenet_mobilenet", 16)
    average = {f"network.{name}": value for name, value in network.state_dict().items()}
    record = {"network": {"architecture": "facenet_mobilenet"}}
    torch.save({"step": 1, "module": {}, "average": average, "record": record}, tmp_path / "scratch.pt")
    known = encoder_of_checkpoints([load_checkpoint(tmp_path / "scratch.pt")], "scratch.pt")
    assert known.embedding.dimensions == 16
    for name, value in network.state_dict().items():
        assert torch.equal(known.network.state_dict()[name], value)


def test_configurations_of_runs_are_read_back() -> None:
    config = tiny_config("data.0.path=/faces", "teacher.weights=x", "loop.steps=9")
    assert from_plain(EncoderConfig, json.loads(json.dumps(to_plain(config)))) == config
    assert isinstance(config.loop, LoopConfig)
