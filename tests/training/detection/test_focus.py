"""The focus map learns where the network finds faces in a finer look, and nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from network_helpers import randomised  # noqa: E402
from training_helpers import write_dataset  # noqa: E402

from facepipe.core.errors import UsageError  # noqa: E402
from facepipe.core.faces import UInt8Array  # noqa: E402
from facepipe.detector import DetectorOptions, FaceDetector  # noqa: E402
from facepipe.retinaface.small_faces import FocusedRetinaFace, retinaface_mobilenet025_focus  # noqa: E402
from facepipe.runtime.architectures import load_network, serving_module  # noqa: E402
from facepipe.training.detection.config import DetectorConfig, NetworkConfig  # noqa: E402
from facepipe.training.detection.focus import FocusTask, cell_targets, focus_loss  # noqa: E402
from facepipe.training.detection.initialize import initial_detector  # noqa: E402
from facepipe.training.detection.prepare import build_task  # noqa: E402
from facepipe.training.engine.config import read_configuration  # noqa: E402
from facepipe.training.engine.logs import read_log  # noqa: E402
from facepipe.training.export import export_checkpoint  # noqa: E402
from facepipe.training.train import train  # noqa: E402
from facepipe.weights.cards import FocusSpec  # noqa: E402

FOCUS = "retinaface_mobilenet025_focus"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    return write_dataset(tmp_path_factory.mktemp("focus") / "data", astronaut)


def config_of(dataset: Path, *overrides: str, architecture: str = FOCUS) -> DetectorConfig:
    settings = {
        "data.0.folder": dataset,
        "network.architecture": architecture,
        "network.initial": "retinaface_mobilenet025",
        "focus": "true",
        "device": "cpu",
        "augment.size_px": 128,
        "augment.scale_range": "[0.4, 1.0]",
        "loop.batch_size": 2,
        "loop.workers": 0,
        "loop.warmup_steps": 1,
        "loop.log_every": 1,
    }
    given = [f"{key}={value}" for key, value in settings.items()]
    return read_configuration(DetectorConfig, None, [*given, *overrides])


def test_it_learns_and_the_rest_stays(tmp_path: Path, dataset: Path) -> None:
    settings = ("loop.steps=40", "optimiser.learning_rate=0.02", "loop.ema_decay=0")
    torch.manual_seed(0)
    before = initial_detector(
        NetworkConfig("retinaface_mobilenet025_focus", initial="retinaface_mobilenet025")
    ).network.state_dict()
    outcome = train(config_of(dataset, *settings), tmp_path / "run")
    errors = [value for _, value in read_log(tmp_path / "run" / "log.csv")["focus"]]
    assert errors[-1] < 0.7 * errors[0]
    weight = export_checkpoint([outcome.last], "focused", tmp_path / "weights", licence="MIT")
    assert weight.card.focus == FocusSpec()
    after = load_network(weight).state_dict()
    moved = {
        n for n in before if not n.endswith("num_batches_tracked") and not torch.equal(before[n], after[n])
    }
    assert moved
    assert all(name.startswith("focus.") for name in moved)


def test_a_run_without_a_score_never_ends_for_want_of_a_better_one(tmp_path: Path, dataset: Path) -> None:
    waiting = ("loop.patience=1", "loop.validate_every=1", f"validation.photos={dataset}", "loop.steps=4")
    train(config_of(dataset, *waiting), tmp_path / "run")
    assert len(read_log(tmp_path / "run" / "log.csv")["focus"]) == 4


def test_labels_train_all_but_the_map(tmp_path: Path, dataset: Path) -> None:
    outcome = train(config_of(dataset, "focus=false", "loop.steps=2"), tmp_path / "run")
    torch.manual_seed(0)
    network = initial_detector(NetworkConfig(FOCUS, initial=str(outcome.last))).network  # type: ignore[arg-type]
    assert isinstance(network, FocusedRetinaFace)
    assert {"class", "box", "landmark"} <= set(read_log(tmp_path / "run" / "log.csv"))
    network.eval()
    with torch.no_grad():
        logits = network.focus_logits(torch.randn(1, 3, 64, 96))
    assert torch.equal(logits, torch.ones(1, 8, 12))


def test_before_it_is_trained_all_is_looked_at(tmp_path: Path, astronaut: UInt8Array) -> None:
    torch.manual_seed(0)
    network = retinaface_mobilenet025_focus().eval()
    with torch.no_grad():
        *_, focus = serving_module(network)(torch.randn(2, 3, 64, 96))
    assert focus.shape == (2, 8, 12)
    assert (focus > FocusSpec().threshold).all()


def test_served_it_is_the_networks_map() -> None:
    network = randomised(retinaface_mobilenet025_focus())
    assert isinstance(network, FocusedRetinaFace)
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw, logits = network(images), network.focus_logits(images)
        boxes, probabilities, landmarks, focus = serving_module(network)(images)
    torch.testing.assert_close(boxes, raw.boxes)
    torch.testing.assert_close(probabilities, raw.classes.softmax(dim=-1))
    torch.testing.assert_close(landmarks, raw.landmarks)
    torch.testing.assert_close(focus, logits.sigmoid())


def test_targets_are_the_faces_that_the_network_finds(dataset: Path) -> None:
    """As the shipped detector finds them in the same crop."""
    config = config_of(dataset, "augment.size_px=256", "network.initial=retinaface_mobilenet025_focus")
    task = build_task(config, initial_detector(config.network), torch.device("cpu"))
    assert isinstance(task, FocusTask)
    batch = next(task.batches(0))
    found, _ = task._found(batch.pixels)
    options = DetectorOptions(score_threshold=0.5, multi_scale=False, max_side=None)
    detector = FaceDetector.load("retinaface_mobilenet025_focus", options)
    seen = 0
    for crop, scores in zip(batch.pixels.numpy(), found.numpy(), strict=True):
        for box, score in zip(*(lambda f: (f.boxes_xyxy, f.scores))(detector.detect(crop)), strict=True):
            column, row = ((box[:2] + box[2:]) / 64).astype(int)
            assert scores[row, column] >= score - 1e-3
            seen += 1
    assert seen


def test_a_face_is_in_every_cell_that_it_reaches_into() -> None:
    boxes = np.array([[10, 40, 50, 70], [90, 90, 120, 130], [0, 0, 300, 300]], np.float32)
    scores, _ = cell_targets(boxes, np.array([0.4, 0.9, 0.8], np.float32), 4)
    expected = np.zeros((4, 4), np.float32)
    expected[1:3, 0:2], expected[2:4, 2:4] = 0.4, 0.9
    np.testing.assert_array_equal(scores, expected)
    assert not cell_targets(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 4)[0].any()
    outside = np.array([[-40, -40, -10, -10], [500, 500, 530, 530]], np.float32)
    assert not cell_targets(outside, np.ones(2, np.float32), 4)[0].any()


def test_cells_weigh_by_how_many_faces_are_in_them_and_how_small() -> None:
    boxes = np.array([[2, 2, 30, 30], [34, 2, 62, 30], [35, 3, 61, 29], [0, 64, 128, 128]], np.float32)
    _, weights = cell_targets(boxes, np.array([0.3, 0.9, 0.9, 0.9], np.float32), 4)
    one, crowd, large, nothing = weights[0, 0], weights[0, 1], weights[2:], weights[0, 2:]
    assert one == pytest.approx(4 * 0.5)  # half sure
    assert crowd == pytest.approx(4)  # at most
    np.testing.assert_allclose(large, 4 / 8)
    np.testing.assert_allclose(nothing, 0.3)


@pytest.mark.parametrize(("score", "better", "worse"), [(0.9, 4.0, -4.0), (0.05, -4.0, 4.0)])
def test_the_loss_falls_towards_what_is_found(score: float, better: float, worse: float) -> None:
    scores, weights = torch.full((1, 4, 4), score), torch.ones(1, 4, 4)
    right, wrong = (focus_loss(torch.full((1, 4, 4), v), scores, weights) for v in (better, worse))
    assert right < 0.1 < wrong


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"architecture": "retinaface_mobilenet025_detail"}, "the network has no map of it"),
        ({"size": "augment.size_px=96"}, "focus takes multiples of 128, got 96"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, dataset: Path, overrides: dict[str, Any], message: str
) -> None:
    settings = [overrides["size"]] if "size" in overrides else []
    config = config_of(dataset, *settings, architecture=overrides.get("architecture", FOCUS))
    with pytest.raises(UsageError, match=message):
        train(config, tmp_path / "run")
