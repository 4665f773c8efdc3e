"""The branch for small faces: what it changes at first (nothing), what it learns and from whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from network_helpers import randomised
from torch import nn
from training_helpers import BatchNormGradients, export_maps, write_dataset

from facepipe.core.errors import UsageError, WeightsError
from facepipe.core.faces import UInt8Array
from facepipe.retinaface.network import RetinaFace
from facepipe.retinaface.small_faces import SmallFaceBranch, SmallFaceRetinaFace
from facepipe.training.detection.config import Architecture, DetectorConfig, NetworkConfig
from facepipe.training.detection.crops import DetectionBatch
from facepipe.training.detection.initialize import Detector, detector_of_checkpoints, initial_detector
from facepipe.training.detection.prepare import build_task
from facepipe.training.detection.small_faces import BranchTask, SmallFaceConfig, SmallFaceTeacher
from facepipe.training.detection.task import DetectorTask
from facepipe.training.distillation.teacher_forcing import InnerMaps
from facepipe.training.engine.checkpoints import load_checkpoint
from facepipe.training.engine.config import read_configuration
from facepipe.training.engine.logs import read_log
from facepipe.training.export import export_checkpoint
from facepipe.training.train import train
from facepipe.weights.cards import AnchorSpec, InputSpec
from facepipe.weights.registry import DEFAULT_DETECTOR, load_card

MAPS = tuple(f"map{number}" for number in range(16))
INPUT = InputSpec("rgb", (120.0, 110.0, 100.0), (60.0, 60.0, 60.0))
PLAIN: Architecture = "retinaface_mobilenet025"
CPU = torch.device("cpu")
DETAIL: Architecture = "retinaface_mobilenet025_detail"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    return write_dataset(tmp_path_factory.mktemp("detail") / "data", astronaut)


@pytest.fixture(scope="module")
def teacher_branch() -> SmallFaceBranch:
    torch.manual_seed(3)
    branch = randomised(SmallFaceBranch())
    assert isinstance(branch, SmallFaceBranch)
    return branch


class BlockMaps(nn.Module):
    """A branch that gives the maps of its blocks."""

    def __init__(self, branch: SmallFaceBranch) -> None:
        super().__init__()
        self.branch, self._maps = branch, InnerMaps(list(branch.blocks))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self._maps.recording() as maps:
            self.branch(images)
        return tuple(maps)


@pytest.fixture(scope="module")
def detail(tmp_path_factory: pytest.TempPathFactory, teacher_branch: SmallFaceBranch) -> SmallFaceConfig:
    file = tmp_path_factory.mktemp("teacher") / "teacher.onnx"
    export_maps(BlockMaps(teacher_branch), file, 64, MAPS, any_size=True)
    return SmallFaceConfig(file, MAPS, input=INPUT)


def grown(seed: int = 0) -> SmallFaceRetinaFace:
    torch.manual_seed(seed)
    network = initial_detector(NetworkConfig(DETAIL, initial="retinaface_mobilenet025")).network
    assert isinstance(network, SmallFaceRetinaFace)
    return network


def branch_task(
    dataset: Path, detail: SmallFaceConfig, network: RetinaFace
) -> tuple[BranchTask, DetectionBatch]:
    config = run_config(dataset, detail, "detail.alone=true")
    task = build_task(config, Detector(DETAIL, network, INPUT, AnchorSpec()), CPU)
    assert isinstance(task, BranchTask)
    return task, next(task.batches(0))


def run_config(dataset: Path, detail: SmallFaceConfig | None, *overrides: str) -> DetectorConfig:
    return read_configuration(
        DetectorConfig,
        None,
        [
            f"data.0.folder={dataset}",
            f"network.architecture={DETAIL}",
            "network.initial=retinaface_mobilenet025",
            *(_detail_settings(detail) if detail else ()),
            "device=cpu",
            "augment.size_px=64",
            "loop.batch_size=2",
            "loop.workers=0",
            "loop.warmup_steps=1",
            "loop.log_every=1",
            *overrides,
        ],
    )


def _detail_settings(detail: SmallFaceConfig) -> list[str]:
    taps = ", ".join(f'"{name}"' for name in detail.taps)
    return [
        f"detail.weights={detail.weights}",
        f"detail.taps=[{taps}]",
        f"detail.input={{channels='rgb', mean={list(INPUT.mean)}, std={list(INPUT.std)}}}",
    ]


@pytest.mark.parametrize("entered", [0, 1])
def test_the_branch_changes_no_coarser_outputs_than_it_enters(
    teacher_branch: SmallFaceBranch, entered: int
) -> None:
    """With a lateral that is not zero, it changes outputs at that stride of 8 or 16 and finer ones."""
    network = grown().eval()
    network.small_face_branch = teacher_branch.eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(images).classes
        network.small_face_laterals[entered][1].weight.normal_(0, 1)  # type: ignore[index]
        after = network(images).classes
    strides = [2 * 8**2, 2 * 4**2, 2 * 2**2]
    moved = [a - b for a, b in zip(after.split(strides, 1), before.split(strides, 1), strict=True)]
    assert all(m.abs().max() > 0.1 for m in moved[: entered + 1])
    assert all(m.abs().max() < 1e-5 for m in moved[entered + 1 :])


@pytest.mark.parametrize(("architecture", "weight"), [(PLAIN, PLAIN), (DETAIL, DEFAULT_DETECTOR)])
def test_with_the_finest_frozen_large_faces_learn_and_small_ones_are_found_as_before(
    tmp_path: Path, dataset: Path, architecture: Architecture, weight: str
) -> None:
    frozen = ("network.frozen=finest", "loop.freeze_steps=3", "loop.steps=3", "loop.ema_decay=0.1")
    initial = (f"network.architecture={architecture}", f"network.initial={weight}")
    train(run_config(dataset, None, *initial, *frozen), tmp_path)
    before = initial_detector(NetworkConfig(architecture, initial=weight)).network.eval()
    after = detector_of_checkpoints([load_checkpoint(tmp_path / "last.pt")], "last.pt").network.eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    finest = 2 * 8**2
    with torch.no_grad():
        for ours, theirs in zip(after(images), before(images), strict=True):
            torch.testing.assert_close(ours[:, :finest], theirs[:, :finest])
            assert (ours - theirs)[:, finest:].abs().max() > 1e-3


def test_each_block_learns_from_the_teachers_map_before_it(
    dataset: Path, detail: SmallFaceConfig, teacher_branch: SmallFaceBranch
) -> None:
    """A branch that differs from its teacher in one block errs in that block's map, and no other is moved."""
    network = grown()
    network.small_face_branch.load_state_dict(teacher_branch.state_dict())
    with torch.no_grad():
        network.small_face_branch.blocks[4][0].weight.mul_(-1)  # type: ignore[index]
    task, batch = branch_task(dataset, detail, network)
    task.module.eval()
    teacher_maps = task._teacher(batch.pixels)
    assert wrong_maps(task.module(task._input(batch.pixels), teacher_maps), teacher_maps) == [4]
    assert wrong_maps(task.module(task._input(batch.pixels), ()), teacher_maps) == list(range(4, 16))
    task.losses(task.module, batch, 0.0)["detail"].backward()
    pulled = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-3}
    assert pulled
    assert all(name.startswith("small_face_branch.blocks.4.") for name in pulled)

    task.losses(task.module, batch, detail.forced_share)["detail"].backward()
    pulled = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-3}
    assert {name.split(".")[2] for name in pulled} == {str(number) for number in range(16)}


@pytest.mark.parametrize(
    "settings", [("detail.alone=true",), ("loss.hints_from=all", f"teacher.weights={PLAIN}")]
)
def test_gradients_of_hints_have_their_channels_last_as_the_maps_have(
    dataset: Path, detail: SmallFaceConfig, settings: tuple[str, ...]
) -> None:
    """Otherwise BatchNorm's backward pass takes over ten times as long."""
    task = build_task(
        run_config(dataset, detail, *settings), Detector(DETAIL, grown(), INPUT, AnchorSpec()), CPU
    )
    task.module.train()
    parts = task.losses(task.module, next(task.batches(0)), 0.5)
    with BatchNormGradients() as gradients:
        (parts["detail"] + parts.get("hint", 0.0)).backward()
    assert len(gradients.channel_strides) >= 16
    assert set(gradients.channel_strides) == {1}


def wrong_maps(ours: list[torch.Tensor], teacher_maps: list[torch.Tensor]) -> list[int]:
    pairs = enumerate(zip(ours, teacher_maps, strict=True))
    return [number for number, (a, b) in pairs if not torch.allclose(a, b, atol=1e-3, rtol=1e-3)]


def test_alone_it_learns_and_the_rest_stays(tmp_path: Path, dataset: Path, detail: SmallFaceConfig) -> None:
    settings = ("loop.steps=12", "optimiser.learning_rate=0.02", "loop.ema_decay=0")
    config = run_config(dataset, detail, "detail.alone=true", "detail.forced_share=1", *settings)
    before = grown().state_dict()
    outcome = train(config, tmp_path / "run")
    errors = [value for _, value in read_log(tmp_path / "run" / "log.csv")["detail"]]
    assert errors[-1] < 0.7 * errors[0]
    begun = NetworkConfig(DETAIL, initial=str(outcome.last))
    after = initial_detector(begun).network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("detail.") for name in moved)

    whole = run_config(dataset, detail, f"network.initial={outcome.last}", "loop.steps=2")
    outcome = train(whole, tmp_path / "whole")
    assert {"class", "box", "landmark", "detail"} <= set(read_log(tmp_path / "whole" / "log.csv"))
    weight = export_checkpoint([outcome.last], "fine", tmp_path / "weights", licence="MIT")
    assert weight.card.architecture == DETAIL
    assert weight.card.training["recipe"]["detail"]["weights"].endswith("teacher.onnx")
    assert str(tmp_path) not in weight.card.to_json()


@pytest.mark.parametrize("entered", [0, 1])
def test_maps_that_the_branch_enters_are_not_compared(
    dataset: Path, detail: SmallFaceConfig, entered: int
) -> None:
    teacher = "teacher.weights=retinaface_mobilenet025"
    config = run_config(dataset, detail, teacher, "loss.hints_from=all", "loss.hints_first=1")
    network = grown()
    task = build_task(config, Detector(DETAIL, network, INPUT, AnchorSpec()), CPU)
    assert isinstance(task, DetectorTask)
    with torch.no_grad():
        network.small_face_laterals[entered][1].weight.normal_(0, 0.1)  # type: ignore[index]
    task.module.eval()
    task._input = task._teacher._input  # type: ignore[union-attr]
    losses = task.losses(task.module, next(task.batches(0)), 0.0)
    assert losses["hint"].item() < 1e-6
    assert losses["detail"].item() > 0.1
    losses["detail"].backward()
    pulled = {name for name, p in network.named_parameters() if p.grad is not None}
    branch = network.small_face_branch
    assert pulled == {f"small_face_branch.{name}" for name, _ in branch.named_parameters()}


def test_it_begins_as_the_one_without_a_branch() -> None:
    """In all but the layers that it has in another form; outputs at coarser anchors are the same."""
    before = initial_detector(NetworkConfig(initial=PLAIN)).network.eval()
    network = grown().eval()
    ours, theirs = network.state_dict(), before.state_dict()
    new = {name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])}
    parts = {".".join(name.split(".")[:3]) for name in new if not name.startswith("detail")}
    assert parts == {"fpn.merges.0", "contexts.0.field3", "contexts.0.reduce"}
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images).classes[:, 128:], before(images).classes[:, 128:])


def test_it_learns_its_layers_from_the_one_without_a_branch(dataset: Path) -> None:
    """Fed the teacher's maps only the new layers err, and they are compared."""
    forced = ["loss.hints_from=all", "loss.teacher_forcing=true", "loss.hints_first=1"]
    config = run_config(dataset, None, f"teacher.weights={PLAIN}", *forced)
    start = initial_detector(config.network)
    task = build_task(config, start, CPU)
    assert isinstance(task, DetectorTask)
    task.module.eval()
    batch = next(task.batches(0))
    teacher_maps, _ = task._teacher(batch.pixels)  # type: ignore[misc]
    ours, _, _ = task.module(task._input(batch.pixels), teacher_maps)
    assert wrong_maps(ours, teacher_maps) == [14, 17]  # P3 and SSH's first
    task.losses(task.module, batch, 0.0)["hint"].backward()
    pulled = {n for n, p in start.network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    new = {f"{part}.0.weight" for part in ("fpn.merges.0", "contexts.0.field3", "contexts.0.reduce")}
    assert new <= pulled
    assert not any(name.startswith(("contexts.1.", "contexts.2.", "class_heads.")) for name in pulled)


def test_the_teacher_has_pixels_in_its_own_form(
    detail: SmallFaceConfig, teacher_branch: SmallFaceBranch
) -> None:
    pixels = torch.randint(
        0, 256, (2, 96, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    mean, std = torch.tensor(INPUT.mean), torch.tensor(INPUT.std)
    with torch.no_grad(), InnerMaps(list(teacher_branch.blocks)).recording() as expected:
        teacher_branch(((pixels.float() - mean) / std).permute(0, 3, 1, 2))
    maps = SmallFaceTeacher(detail, SmallFaceBranch(), CPU)(pixels)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_published_yunet_has_the_branchs_layers(shared_data: Path) -> None:
    config = SmallFaceConfig(shared_data / "weights" / "yunet_n_dynamic.onnx")
    maps = SmallFaceTeacher(config, SmallFaceBranch(), CPU)(torch.zeros(3, 64, 96, 3, dtype=torch.uint8))
    assert maps[-1].shape == (3, 64, 8, 12)
    assert all(m.min() < 0 for m in maps)  # before their ReLUs


def test_a_yunet_of_one_size_is_refused(tmp_path: Path) -> None:
    file = export_maps(SmallFaceBranch(), tmp_path / "fixed.onnx", 64, ["p3", "p4"])
    with pytest.raises(WeightsError, match=r"fixed\.onnx: takes images of 64 x 64 px only.*yunet_any_size"):
        SmallFaceTeacher(SmallFaceConfig(file, taps=("p3", "p4")), SmallFaceBranch(), CPU)


def test_what_does_not_fit_is_refused(dataset: Path, detail: SmallFaceConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name an ONNX file"):
        SmallFaceTeacher(SmallFaceConfig(taps=MAPS), SmallFaceBranch(), CPU)
    with pytest.raises(UsageError, match="one map for each block"):
        SmallFaceTeacher(replace(detail, taps=MAPS[:15]), SmallFaceBranch(), CPU)
    with pytest.raises(UsageError, match="one map for each block"):
        SmallFaceTeacher(replace(detail, taps=(*MAPS[:6], MAPS[5], *MAPS[7:])), SmallFaceBranch(), CPU)
    with pytest.raises(WeightsError, match="computes no map16"):
        SmallFaceTeacher(replace(detail, taps=(*MAPS[:15], "map16")), SmallFaceBranch(), CPU)
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(WeightsError, match=r"broken\.onnx: not a readable ONNX file"):
        SmallFaceTeacher(replace(detail, weights=tmp_path / "broken.onnx"), SmallFaceBranch(), CPU)
    with pytest.raises(UsageError, match="from 0"):
        replace(detail, hints_last=-1.0)
    with pytest.raises(UsageError, match=r"forced_share: expected 0\.\.1"):
        replace(detail, forced_share=1.5)
    plain = run_config(dataset, detail, "network.architecture=retinaface_mobilenet025")
    with pytest.raises(UsageError, match="teaches a branch for small faces"):
        train(plain, tmp_path / "run")
    with pytest.raises(WeightsError, match="is not a retinaface_mobilenet025"):
        train(
            run_config(
                dataset,
                detail,
                f"network.initial={_checkpoint(dataset, detail, tmp_path)}",
                "network.architecture=retinaface_mobilenet025",
            ),
            tmp_path / "again",
        )


def test_a_weight_with_plain_relus_is_no_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the same parameters, and would be exported as what it is not."""
    weight = load_card("retinaface_mobilenet025")
    plain = replace(weight, card=replace(weight.card, architecture="retinaface_mobilenet025_relu"))
    monkeypatch.setattr("facepipe.training.detection.initialize.load_card", lambda _: plain)
    with pytest.raises(WeightsError, match="is not a retinaface_mobilenet025"):
        initial_detector(NetworkConfig(initial="retinaface_mobilenet025"))


def _checkpoint(dataset: Path, detail: SmallFaceConfig, folder: Path) -> Path:
    return train(run_config(dataset, detail, "loop.steps=1"), folder / "one").last
