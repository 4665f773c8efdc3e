"""Whole runs of the detector's trainer, small enough for seconds."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from training_helpers import (
    TORCHRUN,
    assert_same_run,
    environment,
    plain_task,
    run_python,
    to_toml,
    write_dataset,
)

from facepipe.core.errors import DataError, DeviceError, UsageError, WeightsError
from facepipe.core.faces import UInt8Array
from facepipe.detector import DetectorOptions, FaceDetector
from facepipe.evaluation.labels import read_labels, unlabelled_photos
from facepipe.images.reading import read_image
from facepipe.retinaface.backbones import MobileNetV1Stages
from facepipe.retinaface.network import RetinaFace, retinaface_mobilenet025, retinaface_resnet50
from facepipe.runtime.architectures import load_network
from facepipe.training.detection.augment import AugmentConfig
from facepipe.training.detection.config import DetectorConfig, NetworkConfig, TeacherConfig
from facepipe.training.detection.crops import WeightedPhotos
from facepipe.training.detection.data import PhotoFiles
from facepipe.training.detection.initialize import initial_detector, load_teacher
from facepipe.training.detection.losses import LossConfig
from facepipe.training.detection.pictures import detection_sheet
from facepipe.training.detection.prepare import open_data, write_preview
from facepipe.training.detection.task import DetectorTask, Teacher
from facepipe.training.engine.checkpoints import load_checkpoint
from facepipe.training.engine.config import read_configuration, to_plain
from facepipe.training.engine.logs import read_log
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.pixels import IMAGENET_INPUT
from facepipe.training.engine.runs import configuration_of_run
from facepipe.training.export import export_checkpoint
from facepipe.training.train import train
from facepipe.weights.cards import AnchorSpec, InputSpec


@pytest.fixture
def dataset(tmp_path: Path, astronaut: UInt8Array) -> Path:
    return write_dataset(tmp_path / "data", astronaut)


def _config(dataset: Path, *overrides: str) -> DetectorConfig:
    return read_configuration(
        DetectorConfig,
        None,
        [
            f"data.0.folder={dataset}",
            "device=cpu",
            "augment.size_px=64",
            "loop.batch_size=2",
            "loop.workers=0",
            "loop.steps=4",
            "loop.warmup_steps=1",
            "loop.log_every=1",
            "loop.checkpoint_every=2",
            *overrides,
        ],
    )


def test_two_photos_are_learned_and_the_export_finds_their_faces(tmp_path: Path, dataset: Path) -> None:
    config = _config(
        dataset,
        "loop.steps=60",
        "loop.batch_size=4",
        "loop.ema_decay=0.8",
        "optimiser.reference_batch=4",
        "optimiser.learning_rate=5e-3",
        "augment.whole_photo_share=1",
        "augment.size_px=128",
        "augment.colour_share=0",
        "loop.log_every=5",
        "loop.checkpoint_every=1000",
        f"validation.photos={dataset}",
        "validation.max_side=128",
    )
    outcome = train(config, tmp_path / "run")
    losses = read_log(tmp_path / "run" / "log.csv")
    for part, share in (("class", 0.4), ("box", 0.4), ("landmark", 0.3)):
        assert losses[part][-1][1] < share * losses[part][0][1], part
    assert outcome.step == outcome.steps == 60
    assert outcome.best is not None
    assert outcome.figures["ap"] > 0.9
    assert (tmp_path / "run" / "precision_recall.png").is_file()
    assert outcome.samples is not None
    assert read_image(outcome.samples).shape[1] > 480
    assert read_image(outcome.curves).ndim == 3

    weight = export_checkpoint([outcome.best, outcome.last], "tiny", tmp_path / "weights", licence="MIT")
    assert weight.card.training["steps"] == 60
    assert weight.card.training["recipe"]["data"][0]["folder"] == "/".join(dataset.parts[-2:])
    assert str(tmp_path) not in weight.card.to_json()
    assert weight.card.measured == {}  # the mean of two checkpoints is another network
    best = export_checkpoint([outcome.best], "best", tmp_path / "weights", half_storage=True).card
    assert best.measured["validation"]["setting"]["max_side"] == 128
    assert best.measured["validation"]["ap"] > 0.9
    raised = export_checkpoint([outcome.best], "raised", tmp_path / "weights", class_bias=0.1).card
    assert raised.measured == {}  # and so is one that says more of large faces
    detector = FaceDetector.load(
        str(tmp_path / "weights" / "tiny.json"), DetectorOptions(top_k=1, max_side=128)
    )
    for photo in read_labels(dataset):
        faces = detector.detect(read_image(photo.path))
        assert len(faces) == 1
        np.testing.assert_allclose(
            faces.boxes_xyxy, photo.boxes_xyxy, atol=0.25 * float(np.ptp(photo.boxes_xyxy))
        )


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from facepipe.training.engine.config import read_configuration
from facepipe.training.detection.config import DetectorConfig
from facepipe.training.train import train
torch.set_num_threads(1)
def kill(progress):
    if progress.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
train(read_configuration(DetectorConfig, None, sys.argv[2:]), Path(sys.argv[1]), on_step=kill)
"""


def test_a_run_killed_in_the_middle_and_resumed_equals_an_uninterrupted_one(
    tmp_path: Path, dataset: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = _config(
            dataset, "loop.steps=8", "loop.workers=1", "augment.turn_share=0.3", "loop.freeze_steps=3"
        )
        recipe = tmp_path / "recipe.py"
        recipe.write_text(_KILLED)
        plain = [f"{key}={to_toml(value)}" for key, value in to_plain(config).items()]
        killed = run_python(recipe, str(tmp_path / "killed"), *plain)
        assert killed.returncode == -9, killed.stderr
        assert load_checkpoint(tmp_path / "killed" / "last.pt")["step"] == 4
        resumed_config = configuration_of_run(DetectorConfig, tmp_path / "killed")
        train(resumed_config, tmp_path / "killed", resume=True)
        train(config, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    killed_state, whole_state = (load_checkpoint(tmp_path / name / "last.pt") for name in ("killed", "whole"))
    assert_same_run(killed_state, whole_state)
    steps = [step for step, _ in read_log(tmp_path / "killed" / "log.csv")["class"]]
    assert steps == list(range(1, 9))


_STOPPED = """
import sys
from pathlib import Path
import torch
from facepipe.training.engine.config import read_configuration
from facepipe.training.detection.config import DetectorConfig
from facepipe.training.train import train
torch.set_num_threads(1)
config = read_configuration(DetectorConfig, None, sys.argv[2:])
print(train(config, Path(sys.argv[1]), on_step=lambda p: print(p.step, flush=True)).step)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_though_it_reaches_the_loading_workers(
    tmp_path: Path, dataset: Path, number: signal.Signals
) -> None:
    script = tmp_path / "stopped.py"
    script.write_text(_STOPPED)
    config = _config(dataset, "loop.steps=100000", "loop.workers=1", "loop.checkpoint_every=99999")
    plain = [f"{key}={to_toml(value)}" for key, value in to_plain(config).items()]
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "run"), *plain],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() not in ("3", ""):
        pass
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert int(output.split()[-1]) == load_checkpoint(tmp_path / "run" / "last.pt")["step"] >= 3


_TOGETHER = """
import sys
from pathlib import Path
import torch
from training_helpers import plain_task
from facepipe.training.engine.distributed import is_main, process_group, world_size
from facepipe.training.engine.loop import TrainingLoop
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.optimizer import OptimiserConfig
torch.set_num_threads(1)
with process_group("cpu"):
    batch = 4 // world_size()
    task = plain_task(Path(sys.argv[1]), batch)
    config = LoopConfig(
        steps=3, batch_size=batch, warmup_steps=0, freeze_steps=1, log_every=3, checkpoint_every=9, workers=0
    )
    optimiser = OptimiserConfig(
        name="sgd", learning_rate=0.01, reference_batch=4, accumulate=2, clip_norm=float(sys.argv[3])
    )
    TrainingLoop(task, optimiser, config, Path(sys.argv[2]), {}).run()
"""


def test_two_processes_train_as_one_with_the_whole_batch(tmp_path: Path, dataset: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(_TOGETHER)
    runs: dict[str, tuple[str, ...]] = {"one": (), "two": TORCHRUN}
    for name, launcher in runs.items():
        done = run_python(script, str(dataset), str(tmp_path / name), "1.0", launcher=launcher)
        assert done.returncode == 0, done.stderr
    one, two = (load_checkpoint(tmp_path / name / "last.pt") for name in runs)
    assert one["step"] == two["step"] == 3
    assert one["epoch"] == two["epoch"]
    before = plain_task(dataset, 4).module.state_dict()
    for name, value in one["module"].items():
        torch.testing.assert_close(two["module"][name], value, atol=1e-6, rtol=1e-4)
    assert any(not torch.equal(before[name], value) for name, value in one["module"].items())
    figures = [read_log(tmp_path / name / "log.csv") for name in runs]
    for part in ("class", "box", "landmark"):
        assert figures[0][part][0][1] == pytest.approx(figures[1][part][0][1], rel=1e-3)


def test_a_teacher_of_other_widths_gives_hints_through_projections(tmp_path: Path, dataset: Path) -> None:
    wide = RetinaFace(MobileNetV1Stages(stem=8, slope=0.1), width=96, slope=0.0)
    data = [
        WeightedPhotos(PhotoFiles(read_labels(dataset)), 1.0),
        WeightedPhotos(PhotoFiles(unlabelled_photos(dataset / "images")), 1.0, labelled=False),
    ]
    config = _config(dataset, "loss.hints_last=1")
    task = DetectorTask(
        retinaface_mobilenet025(),
        IMAGENET_INPUT,
        AnchorSpec(),
        data,
        config,
        teacher=Teacher(wide, InputSpec("bgr", (104.0, 117.0, 123.0), (1.0, 1.0, 1.0))),
    )
    assert len(task.module.projections) == 6
    losses = task.losses(task.module, next(task.batches(0)), 0.0)
    assert {"class", "soft_class", "soft_box", "soft_landmark", "hint"} <= set(losses)
    losses["hint"].backward()
    for projection in task.module.projections:
        assert projection.weight.grad is not None
    assert all(parameter.grad is None for parameter in wide.parameters())
    same = Teacher(retinaface_mobilenet025(), IMAGENET_INPUT)
    assert len(_task_with(dataset, same).module.projections) == 0


def test_all_hints_reach_every_block_of_the_backbone(dataset: Path) -> None:
    teacher = Teacher(retinaface_mobilenet025(), IMAGENET_INPUT)
    expected: dict[Literal["pyramid", "all"], int] = {"pyramid": 6, "all": 6 + 14}
    for hints_from, maps in expected.items():
        task = _task_with(dataset, teacher, loss=LossConfig(hints_from=hints_from))
        shown, _, _ = task.module(torch.zeros(1, 3, 64, 64))
        assert len(shown) == maps
    losses = task.losses(task.module, next(task.batches(0)), 0.0)
    losses["hint"].backward()
    assert all(p.grad is not None for p in task.module.network.backbone.parameters())


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
def test_a_compiled_teacher_says_the_same(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    teacher = load_teacher(TeacherConfig(weights="retinaface_mobilenet025"))
    said = []
    for compiled in (False, True):
        torch.manual_seed(0)
        task = _task_with(dataset, teacher, loss=LossConfig(hints_from="all"), compiled=compiled)
        with torch.no_grad():
            said.append(task.losses(task.module, next(task.batches(0)), 0.0))
    torch.testing.assert_close(said[1], said[0], rtol=1e-3, atol=1e-4)


def test_all_hints_need_a_teacher_of_the_same_layers(dataset: Path) -> None:
    wide = RetinaFace(MobileNetV1Stages(stem=8, slope=0.1), width=96, slope=0.0)
    with pytest.raises(UsageError, match="other layers"):
        _task_with(dataset, Teacher(wide, IMAGENET_INPUT), loss=LossConfig(hints_from="all"))


def test_forced_parts_learn_the_teachers_maps_each_from_the_maps_before(dataset: Path) -> None:
    """A student that differs from its teacher in one block errs in that block's map and in no later one."""
    shipped = NetworkConfig(initial="retinaface_mobilenet025")
    teacher, student = (initial_detector(shipped).network for _ in range(2))
    loss = LossConfig(hints_from="all", teacher_forcing=True)
    task = _task_with(dataset, Teacher(teacher, IMAGENET_INPUT), loss=loss, network=student)
    assert task._teacher is not None
    assert isinstance(student.backbone, MobileNetV1Stages)
    with torch.no_grad():
        student.backbone.stage2[1][1][0].weight.mul_(-1)  # type: ignore[index]
    task.module.eval()
    batch = next(task.batches(0))
    maps, output = task._teacher(batch.pixels)
    ours, heads, _ = task.module(task._input(batch.pixels), maps)
    wrong = [not torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(ours, maps, strict=True)]
    assert wrong == [number == 7 for number in range(14 + 6)]
    torch.testing.assert_close(heads.boxes, output.boxes)

    task.losses(task.module, batch, 0.0)["hint"].backward()
    pulled = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-5}
    assert pulled
    assert all(name.startswith("backbone.stage2.1.") for name in pulled)


def test_forcing_needs_all_hints_and_a_chain_of_blocks(dataset: Path) -> None:
    with pytest.raises(UsageError, match="hints_from=all"):
        LossConfig(teacher_forcing=True)
    network, loss = retinaface_resnet50(), LossConfig(hints_from="all", teacher_forcing=True)
    with pytest.raises(UsageError, match=r"name one \(--teacher\)"):
        _task_with(dataset, None, loss=loss)
    with pytest.raises(UsageError, match="MobileNetV1's blocks"):
        _task_with(dataset, Teacher(retinaface_resnet50(), IMAGENET_INPUT), loss=loss, network=network)


def _task_with(
    dataset: Path,
    teacher: Teacher | None,
    labelled: bool = True,
    loss: LossConfig | None = None,
    network: RetinaFace | None = None,
    compiled: bool = False,
) -> DetectorTask:
    data = [WeightedPhotos(PhotoFiles(read_labels(dataset)), 1.0, labelled)]
    config = DetectorConfig(
        augment=AugmentConfig(size_px=64),
        loss=loss or LossConfig(),
        loop=LoopConfig(batch_size=1, workers=0, compile=compiled),
    )
    return DetectorTask(
        network or retinaface_mobilenet025(),
        IMAGENET_INPUT,
        AnchorSpec(),
        data,
        config,
        teacher=teacher,
    )


def test_a_teacher_must_have_the_students_anchors(dataset: Path) -> None:
    anchors = AnchorSpec(sizes_px=((10, 20), (32, 64), (128, 256)))
    with pytest.raises(UsageError, match="teacher's anchors"):
        _task_with(dataset, Teacher(retinaface_mobilenet025(), IMAGENET_INPUT, anchors))
    with pytest.raises(UsageError, match="without labels"):
        _task_with(dataset, None, labelled=False)


def test_a_teacher_sees_the_same_pixels_in_its_own_form(dataset: Path) -> None:
    """A student that is its teacher has nothing to learn from it, whatever their preprocessing says."""
    network = retinaface_mobilenet025().eval()
    task = _task_with(dataset, Teacher(network, IMAGENET_INPUT))
    task.module.network.load_state_dict(network.state_dict())
    losses = task.losses(task.module.eval(), next(task.batches(0)), 0.0)
    for part in ("soft_class", "soft_box", "soft_landmark", "hint"):
        assert losses[part].item() == pytest.approx(0, abs=1e-5)


def test_training_starts_from_published_files(shared_data: Path) -> None:
    weights = shared_data / "weights"
    backbone = initial_detector(NetworkConfig(initial=str(weights / "mobilenetv1_025_imagenet.pth")))
    whole = initial_detector(NetworkConfig(initial=str(weights / "retinaface_mnet025_bgr.pth")))
    assert backbone.input == IMAGENET_INPUT
    stem = "backbone.stage1.0.0.weight"
    assert not torch.equal(backbone.network.state_dict()[stem], whole.network.state_dict()[stem])
    with pytest.raises(WeightsError, match=r"mnet025_bgr\.pth"):
        initial_detector(
            NetworkConfig("retinaface_resnet50", initial=str(weights / "retinaface_mnet025_bgr.pth"))
        )


def test_an_export_may_raise_what_coarse_strides_say_of_faces(tmp_path: Path, dataset: Path) -> None:
    last = train(_config(dataset, "loop.steps=2"), tmp_path / "run").last
    plain, raised = (
        export_checkpoint([last], f"by_{bias}", tmp_path, class_bias=bias) for bias in (0.0, 0.5)
    )
    assert "class_bias" not in plain.card.training
    assert raised.card.training["class_bias"] == 0.5
    with pytest.raises(UsageError, match="expected a finite number, got nan"):
        export_checkpoint([last], "nowhere", tmp_path, class_bias=math.nan)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (load_network(weight).eval()(images) for weight in (plain, raised))
    coarse = (torch.arange(before.classes.shape[1]) >= 2 * 8**2).float()
    torch.testing.assert_close(after.classes - before.classes, coarse[None, :, None] * torch.tensor([0, 0.5]))
    torch.testing.assert_close(after.landmarks, before.landmarks)


def test_training_goes_on_from_a_weight_or_a_checkpoint(tmp_path: Path, dataset: Path) -> None:
    spec = 'network.input={channels="bgr", mean=[104, 117, 123], std=[1, 1, 1]}'
    anchors = "network.anchors.sizes_px=[[10, 20], [32, 64], [128, 256]]"
    outcome = train(_config(dataset, "loop.steps=2", spec, anchors), tmp_path / "run")
    weight = export_checkpoint([outcome.last], "first", tmp_path)
    for initial in (str(outcome.last), str(tmp_path / "first.json")):
        start = initial_detector(NetworkConfig(initial=initial))
        assert start.input == weight.card.input
        assert start.input.channels == "bgr"
        assert start.anchors == weight.card.anchors
    with pytest.raises(WeightsError, match="is not a retinaface_resnet50"):
        initial_detector(NetworkConfig("retinaface_resnet50", initial=str(outcome.last)))
    with pytest.raises(WeightsError, match="exists already"):
        export_checkpoint([outcome.last], "first", tmp_path)
    teacher = load_teacher(TeacherConfig(str(tmp_path / "first.json")))
    assert teacher.anchors == weight.card.anchors


def test_torchvision_has_no_mobilenet_v1() -> None:
    with pytest.raises(WeightsError, match="no MobileNetV1"):
        initial_detector(NetworkConfig(initial="imagenet"))


def test_epochs_become_steps_when_the_photos_are_counted(tmp_path: Path, dataset: Path) -> None:
    outcome = train(_config(dataset, "loop.epochs=3"), tmp_path / "run")
    assert outcome.step == outcome.steps == 3  # of two photos each
    assert configuration_of_run(DetectorConfig, tmp_path / "run").loop.steps == 3
    longer = configuration_of_run(DetectorConfig, tmp_path / "run", ["loop.epochs=4"])
    assert train(longer, tmp_path / "run", resume=True).steps == 4


@pytest.mark.parametrize("cached", [False, True])
def test_a_photo_that_cannot_be_read_is_passed_over_and_counted(
    tmp_path: Path, dataset: Path, caplog: pytest.LogCaptureFixture, cached: bool
) -> None:
    (dataset / "images" / "0.png").write_bytes(b"no photo")
    said: list[str] = []
    cache = [f"cache={tmp_path / 'cache'}"] if cached else []
    outcome = train(_config(dataset, *cache), tmp_path / "run", say=said.append)
    assert outcome.step == 4
    assert said[-1] == "1 photo passed over that could not be read"
    warnings = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert len(warnings) == 1
    assert "0.png" in warnings[0]


def test_a_part_of_the_photos_measures_progress_and_never_trains(
    tmp_path: Path, astronaut: UInt8Array
) -> None:
    folder = write_dataset(tmp_path / "data", astronaut, (0.2, 0.25, 0.3, 0.35, 0.4))
    config = _config(folder, "validation.held_out_share=0.4")
    data, held_out = open_data(config)
    trained = {photo.path.name for photo in data[0].photos.photos}
    names = {photo.path.name for photo in held_out}
    assert (len(trained), len(names)) == (3, 2)
    assert trained | names == {f"{number}.png" for number in range(5)}
    moved = open_data(_config(folder.rename(tmp_path / "moved"), "validation.held_out_share=0.4"))[1]
    assert {photo.path.name for photo in moved} == names
    (tmp_path / "moved" / "images" / min(names)).write_bytes(b"no photo")
    outcome = train(_config(tmp_path / "moved", "validation.held_out_share=0.4"), tmp_path / "run")
    assert outcome.best is not None
    assert 0 <= outcome.figures["ap"] <= 1
    (tmp_path / "moved" / "images" / max(names)).write_bytes(b"no photo")
    with pytest.raises(DataError, match=rf"no photo that is held out .* such as .*{max(names)}"):
        train(_config(tmp_path / "moved", "validation.held_out_share=0.4"), tmp_path / "other")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["validation.held_out_share=1"], "expected more than 0 and less than 1, got 1"),
        (["validation.ground_truth=truth"], "those of validation.photos: name them"),
        (["data.0.labelled=false"], "no labelled data to hold photos out of"),
    ],
)
def test_photos_that_cannot_be_held_out(dataset: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_data(_config(dataset, "validation.limit=5", *overrides))


def test_one_photo_is_too_few_to_hold_some_out(tmp_path: Path, astronaut: UInt8Array) -> None:
    folder = write_dataset(tmp_path / "one", astronaut, (0.25,))
    with pytest.raises(UsageError, match=r"one: too few photos to hold some out \(1\)"):
        open_data(_config(folder, "validation.limit=5"))


def test_pictures_are_drawn_where_patience_ends_a_run(tmp_path: Path, dataset: Path) -> None:
    config = _config(
        *(dataset, f"validation.photos={dataset}", "loop.steps=50", "loop.patience=1"),
        *("loop.validate_every=1", "optimiser.learning_rate=1e-9"),
    )
    outcome = train(config, tmp_path / "run")
    assert outcome.step == outcome.steps < 50
    assert outcome.samples is not None
    assert outcome.samples.is_file()


def test_misses_and_false_alarms_are_marked(tmp_path: Path, astronaut: UInt8Array) -> None:
    folder = write_dataset(tmp_path / "data", astronaut, (1.0,))
    (photo,) = read_labels(folder)
    elsewhere = replace(photo, boxes_xyxy=np.array([[350, 350, 450, 450]], np.float32))
    detector = FaceDetector.load()
    right, wrong, unlabelled = (
        detection_sheet(detector, [shown], labelled=labelled, cell_px=512).astype(int)
        for shown, labelled in ((photo, True), (elsewhere, True), (elsewhere, False))
    )
    assert np.abs(wrong[345:455, 345:455] - unlabelled[345:455, 345:455]).max() > 100
    red = (wrong[..., 0] > 200) & (wrong[..., 1:].max(axis=2) < 100) & (right[..., 1] > 100)
    assert red.any()
    assert np.array_equal(right, unlabelled)


def test_a_folder_with_a_run_needs_resume(tmp_path: Path, dataset: Path) -> None:
    config = _config(dataset, "loop.steps=1")
    with pytest.raises(UsageError, match="no run to continue"):
        train(config, tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="no run to continue"):
        configuration_of_run(DetectorConfig, tmp_path / "run")
    train(config, tmp_path / "run")
    with pytest.raises(UsageError, match="--resume"):
        train(config, tmp_path / "run")
    longer = configuration_of_run(DetectorConfig, tmp_path / "run", ["loop.steps=2"])
    assert longer.data == config.data
    assert train(longer, tmp_path / "run", resume=True).step == 2


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("data=[]", UsageError, "no data to train on"),
        ("loop.patience=2", UsageError, "name photos to validate on"),
        ("data.0.folder=/nowhere", DataError, "/nowhere"),
        ("device=cuda:97", DeviceError, "cuda:97"),
        ("device=gpu", DeviceError, "gpu"),
        ("network.initial=no_such_weight", WeightsError, "no_such_weight"),
        ("network.initial=gone.pth", WeightsError, "gone.pth"),
        ("teacher.weights=gone.pth", WeightsError, "gone.pth"),
        ("validation.photos=/nowhere", DataError, "/nowhere"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, dataset: Path, override: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(_config(dataset, override), tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()


def test_checkpoints_of_another_trainer_are_not_exported(tmp_path: Path) -> None:
    torch.save({"step": 1, "module": {}, "average": {}, "record": {}}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt"):
        export_checkpoint([tmp_path / "other.pt"], "x", tmp_path)
    with pytest.raises(UsageError, match="no checkpoint"):
        export_checkpoint([], "x", tmp_path)


def test_the_preview_of_a_run_is_written(tmp_path: Path, dataset: Path) -> None:
    write_preview(_config(dataset), tmp_path / "crops.png", count=2)
    assert read_image(tmp_path / "crops.png").shape == (326, 2 * 326, 3)
    with pytest.raises(UsageError, match="no data"):
        write_preview(_config(dataset, "data=[]"), tmp_path / "none.png")
