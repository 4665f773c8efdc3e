"""Training RetinaFace: losses against labels and an optional teacher; see `Task`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from facepipe.core.errors import UsageError
from facepipe.retinaface.anchors import make_anchors
from facepipe.retinaface.network import MobileNetV1Stages, RetinaFace, RetinaFaceFeatures, RetinaFaceOutput
from facepipe.training.detection.augment import AugmentConfig
from facepipe.training.detection.config import Frozen
from facepipe.training.detection.crops import CropBatches, CropSampler, DetectionBatch, WeightedPhotos
from facepipe.training.detection.detail import DetailConfig, DetailTeacher, branch_of
from facepipe.training.detection.losses import LossConfig, distillation_loss, hint_loss, multibox_loss
from facepipe.training.detection.targets import MatchConfig, match_batch
from facepipe.training.engine.pixels import Normalisation
from facepipe.training.engine.stream import Batches, batches_of_process
from facepipe.weights.cards import AnchorSpec, InputSpec


@dataclass(frozen=True, slots=True)
class DetectorTaskConfig:
    """What a crop looks like, how anchors are matched, what the loss is made of."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass(frozen=True, slots=True)
class Teacher:
    """A trained detector, how it wants its pixels, and its anchors.

    Its soft outputs are compared anchor by anchor, so its anchors must be the student's (unless those
    weights are 0). Its inner maps may be of other widths: projections that are thrown away stand between.
    """

    network: RetinaFace
    input: InputSpec
    anchors: AnchorSpec = field(default_factory=AnchorSpec)


class TrainedDetector(nn.Module):
    """The network with its inner maps on show, as losses want them.

    Args:
        network: What is trained and shipped.
        projections: Per map, FPN first, a layer to the teacher's width; empty: the widths are the same.
        shows_backbone: Whether the backbone's maps are on show after those of FPN and SSH.
    """

    def __init__(
        self,
        network: RetinaFace,
        projections: Sequence[nn.Module] = (),
        *,
        shows_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.projections = nn.ModuleList(projections)
        self._shows_backbone = shows_backbone

    def forward(
        self, images: Tensor, given: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], RetinaFaceOutput, list[Tensor]]:
        """Preprocessed images (batch, 3, h, w) to (projected) maps, raw outputs and the branch's maps.

        `given` are maps as they are shown, backbone and all, that parts take in place of those before them.
        """
        levels = len(self.network.contexts)
        fpn, ssh, backbone = given[:levels], given[levels : 2 * levels], given[2 * levels :]
        forced = RetinaFaceFeatures(list(backbone), tuple(fpn), tuple(ssh), []) if given else None
        features = self.network.features(images, forced)
        maps = [*features.fpn, *features.ssh, *(features.backbone if self._shows_backbone else ())]
        if self.projections:
            maps = [projection(m) for projection, m in zip(self.projections, maps, strict=True)]
        return maps, self.network.heads(forced or features), features.detail


class DetectorTask:
    """See `facepipe.training.engine.task.Task`.

    Args:
        network: What is trained.
        input_spec: Its preprocessing.
        anchors: Its anchors.
        data: At least one data set.
        config: See `DetectorTaskConfig`.
        batch_size: Samples a batch, in this process.
        seed: Of crops and projections.
        workers: Processes that prepare batches.
        teacher: What to learn from besides labels.
        detail: What the network's detail branch learns from.
        validator: Figures of a network; "score" chooses the best checkpoint.
        frozen: What `loop.freeze_steps` keeps as it is.
        compiled: Whether the teacher and the comparison with its maps go through torch.compile.
        device: Where it all runs.

    Raises:
        UsageError: The teacher has other anchors, unlabelled data has no teacher, or `detail` no branch.
        WeightsError: The teacher of `detail` can't be read.
    """

    def __init__(
        self,
        network: RetinaFace,
        input_spec: InputSpec,
        anchors: AnchorSpec,
        data: list[WeightedPhotos],
        config: DetectorTaskConfig,
        *,
        batch_size: int,
        seed: int,
        workers: int,
        teacher: Teacher | None = None,
        detail: DetailConfig | None = None,
        validator: Callable[[RetinaFace], dict[str, float]] | None = None,
        frozen: Frozen = "backbone",
        compiled: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self._device = device or torch.device("cpu")
        self._frozen = frozen
        _check_teacher(teacher, network, anchors, config.loss, data)
        self._detail = detail
        self._detail_teacher = DetailTeacher(detail, branch_of(network), self._device) if detail else None
        self._variances, self._config = anchors.variances, config
        self._workers = workers
        self._batches = CropBatches(CropSampler(data, config.augment, seed), batch_size)
        self._validator = validator
        self._input = Normalisation(input_spec, self._device)
        all_hints = teacher is not None and config.loss.hints_from == "all"
        self._teacher = _RunningTeacher(teacher, self._device, compiled, all_hints) if teacher else None
        self._hint_loss = torch.compile(hint_loss) if compiled else hint_loss
        self._beyond_teacher = _beyond_teacher(network, teacher) if not config.loss.teacher_forcing else ()
        projections = _projections(network, teacher.network) if teacher else []
        module = TrainedDetector(network, projections, shows_backbone=all_hints)
        self.module = _placed(module, self._device)
        self.samples_per_epoch = sum(len(d.photos.photos) for d in data)
        side = config.augment.size_px
        self._anchors = torch.from_numpy(make_anchors(side, side, anchors).copy()).to(self._device)

    def pretrained_parts(self) -> list[nn.Module]:
        """The backbone, or all that the finest stride depends on."""
        network = self.module.network
        return network.stride8_modules() if self._frozen == "finest" else [network.backbone]

    def batches(self, first_step: int) -> Batches[DetectionBatch]:
        """Endless crops of this process; a resumed run sees what it would have seen."""
        return batches_of_process(self._batches, first_step, self._workers)

    def losses(self, module: nn.Module, batch: DetectionBatch, progress: float) -> dict[str, Tensor]:
        """Weighted parts against the labels and, with a teacher, against its outputs and maps."""
        config = self._config.loss
        pixels = batch.pixels.to(self._device, non_blocking=True)
        teacher_maps, teacher_output = self._teacher(pixels) if self._teacher else ([], None)
        maps, output, detail = module(self._input(pixels), teacher_maps if config.teacher_forcing else ())
        targets = match_batch(batch.faces, self._anchors, self._variances, self._config.match)
        parts = multibox_loss(output, targets, config, self._variances)
        if teacher_output is not None:
            parts |= distillation_loss(output, teacher_output, targets, config)
            weight = config.hints_first + (config.hints_last - config.hints_first) * progress
            parts["hint"] = weight * self._hint_loss(*map(self._comparable, (maps, teacher_maps)))
        if self._detail and self._detail_teacher:
            weight = self._detail.weight(progress)
            parts["detail"] = weight * self._hint_loss(detail, self._detail_teacher(pixels))
        return parts

    def _comparable(self, maps: list[Tensor]) -> list[Tensor]:
        return [m for number, m in enumerate(maps) if number not in self._beyond_teacher]

    def validate(self, module: nn.Module) -> dict[str, float]:
        """The validator's figures; nothing without one."""
        assert isinstance(module, TrainedDetector)
        return self._validator(module.network) if self._validator else {}

    def describe(self, batch: DetectionBatch) -> str:
        """The batch's photos."""
        return ", ".join(batch.files)


class _RunningTeacher:
    """A teacher, frozen, on a device."""

    def __init__(self, teacher: Teacher, device: torch.device, compiled: bool, shows_backbone: bool) -> None:
        module = TrainedDetector(teacher.network, shows_backbone=shows_backbone)
        module = _placed(module, device).eval().requires_grad_(False)
        self._module: Callable[[Tensor], tuple[list[Tensor], RetinaFaceOutput, list[Tensor]]]
        self._module = torch.compile(module) if compiled else module
        self._input = Normalisation(teacher.input, device)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[list[Tensor], RetinaFaceOutput]:
        maps, output, _ = self._module(self._input(pixels))
        return maps, output


def _placed(module: TrainedDetector, device: torch.device) -> TrainedDetector:
    # Convolutions are fastest with channels last in memory, on CPUs and GPUs alike.
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _check_teacher(
    teacher: Teacher | None,
    student: RetinaFace,
    anchors: AnchorSpec,
    config: LossConfig,
    data: Sequence[WeightedPhotos],
) -> None:
    if teacher is None:
        if not all(d.labelled for d in data):
            raise UsageError("a data set without labels trains only with a teacher")
        if config.teacher_forcing:
            raise UsageError("loss.teacher_forcing feeds a teacher's maps: name a teacher (teacher.weights)")
        return
    if config.hints_from == "all" and _shown(teacher.network) != _shown(student):
        raise UsageError("loss.hints_from = all: the teacher has other layers than the student; take pyramid")
    if config.teacher_forcing and not isinstance(student.backbone, MobileNetV1Stages):
        raise UsageError(
            "loss.teacher_forcing feeds MobileNetV1's blocks: set network.architecture accordingly"
        )
    soft = config.distil_classes + config.distil_boxes + config.distil_landmarks
    if soft and teacher.anchors != anchors:
        raise UsageError(
            f"the teacher's anchors {teacher.anchors.sizes_px} differ from {anchors.sizes_px}: use the "
            "teacher's anchors, or feature hints alone (loss.distil_classes, _boxes and _landmarks = 0)"
        )


def _shown(network: RetinaFace) -> tuple[list[torch.Size], list[int]]:
    """Shapes of the backbone's parameters, and widths of the maps after it."""
    return [p.shape for p in network.backbone.parameters()], _map_widths(network)


def _beyond_teacher(student: RetinaFace, teacher: Teacher | None) -> tuple[int, ...]:
    """FPN's and SSH's maps, by number, that a branch enters which the teacher lacks: they are to say more."""
    if student.detail is None or teacher is None or teacher.network.detail is not None:
        return ()
    entered = range(len(student.detail.ends))
    return *entered, *(len(student.contexts) + level for level in entered)


def _projections(student: RetinaFace, teacher: RetinaFace) -> list[nn.Module]:
    """1x1 convolutions from the student's maps to the teacher's where their widths differ; else none."""
    widths = zip(_map_widths(student), _map_widths(teacher), strict=True)
    pairs = [(ours, theirs) for ours, theirs in widths]
    if all(ours == theirs for ours, theirs in pairs):
        return []
    return [nn.Conv2d(ours, theirs, 1) for ours, theirs in pairs]


def _map_widths(network: RetinaFace) -> list[int]:
    """Channels of FPN's and SSH's maps, which SSH leaves as wide as FPN made them."""
    width: int = network.box_heads[0].in_channels  # type: ignore[assignment]
    return [width] * 2 * len(network.box_heads)
