"""Training of RetinaFace: losses against labels and an optional teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from facepipe.core.errors import UsageError
from facepipe.retinaface.anchors import make_anchors
from facepipe.retinaface.backbones import MobileNetV1Stages, ResNetStages
from facepipe.retinaface.network import RetinaFace, RetinaFaceOutput
from facepipe.retinaface.small_faces import FocusedRetinaFace, SmallFaceRetinaFace
from facepipe.training.detection.config import DetectorConfig
from facepipe.training.detection.crops import CropBatches, CropSampler, DetectionBatch, WeightedPhotos
from facepipe.training.detection.losses import LossConfig, distillation_loss, hint_loss, multibox_loss
from facepipe.training.detection.small_faces import SmallFaceConfig, SmallFaceTeacher, branch_of
from facepipe.training.detection.targets import match_batch
from facepipe.training.detection.validation import Validator
from facepipe.training.distillation.teacher_forcing import InnerMaps
from facepipe.training.engine.pixels import Normalisation
from facepipe.training.engine.stream import Batches, batches_of_process
from facepipe.training.engine.unusable import UnusablePhotos
from facepipe.weights.cards import AnchorSpec, InputSpec


@dataclass(frozen=True, slots=True)
class Teacher:
    """A trained detector to learn from, its preprocessing and its anchors.

    Its outputs are compared anchor by anchor, so that its anchors must be the student's (unless the weights
    of those losses are 0). Its inner maps may be of other widths: projections, which are not shipped, go
    between.
    """

    network: RetinaFace
    input: InputSpec
    anchors: AnchorSpec = field(default_factory=AnchorSpec)


class TrainedDetector(nn.Module):
    """A network, and its inner maps for comparison with a teacher's.

    Args:
        network: What is trained and shipped.
        projections: For each map of FPN and SSH, a layer to the teacher's width; empty: widths are the same.
        with_backbone: Whether the maps of the backbone's blocks come before those of FPN and SSH.
    """

    def __init__(
        self,
        network: RetinaFace,
        projections: Sequence[nn.Module] = (),
        *,
        with_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.projections = nn.ModuleList(projections)
        blocks = _backbone_blocks(network) if with_backbone else []
        self._maps = InnerMaps([*blocks, network.fpn, *network.contexts])
        has_branch = isinstance(network, SmallFaceRetinaFace)
        self._branch_maps = InnerMaps(list(branch_of(network).blocks) if has_branch else [])

    def forward(
        self, images: Tensor, teacher_maps: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], RetinaFaceOutput, list[Tensor]]:
        """Compute (projected) maps, raw outputs and the maps of the branch for small faces.

        Args:
            images: Preprocessed, (batch, 3, h, w).
            teacher_maps: For teacher forcing: see `InnerMaps.recording`. The branch takes none.
        """
        with self._maps.recording(teacher_maps) as maps, self._branch_maps.recording() as branch_maps:
            output = self.network(images)
        if self.projections:
            maps = [projection(m) for projection, m in zip(self.projections, maps, strict=True)]
        return maps, output, branch_maps


class DetectorTask:
    """See `facepipe.training.engine.task.Task`.

    Args:
        network: What is trained.
        input_spec: Its preprocessing.
        anchors: Its anchors.
        data: At least one data set.
        config: Of the run; with `loop.compile`, the teacher and the comparison with its maps are compiled.
        teacher: A detector to learn from besides labels.
        validator: Measures a network; its "score" chooses the best checkpoint.
        device: Of networks and batches.

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
        config: DetectorConfig,
        *,
        teacher: Teacher | None = None,
        validator: Validator | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._device = device or torch.device("cpu")
        _check_teacher(teacher, network, anchors, config.loss, data)
        self._detail = config.detail
        self._detail_teacher = _branch_teacher(config.detail, network, self._device)
        self._variances, self._config = anchors.variances, config
        self._batches = CropBatches(
            CropSampler(data, config.augment, config.loop.seed), config.loop.batch_size
        )
        self.validator = validator
        self.unreadable = UnusablePhotos()
        self._input = Normalisation(input_spec, self._device)
        all_hints = teacher is not None and config.loss.hints_from == "all"
        compiled = config.loop.compile
        self._teacher = _RunningTeacher(teacher, self._device, compiled, all_hints) if teacher else None
        self._hint_loss = torch.compile(hint_loss) if compiled else hint_loss
        self._beyond_teacher = _beyond_teacher(network, teacher) if not config.loss.teacher_forcing else ()
        if isinstance(network, FocusedRetinaFace):
            network.focus.requires_grad_(False)  # learns by `FocusTask` alone
        projections = _projections(network, teacher.network) if teacher else []
        module = TrainedDetector(network, projections, with_backbone=all_hints)
        self.module = _placed(module, self._device)
        self.samples_per_epoch = sum(len(d.photos.photos) for d in data)
        side = config.augment.size_px
        self._anchors = torch.from_numpy(make_anchors(side, side, anchors).copy()).to(self._device)

    def pretrained_parts(self) -> list[nn.Module]:
        """Return the backbone, or all that outputs at stride 8 depend on: see `NetworkConfig.frozen`."""
        network = self.module.network
        is_finest = self._config.network.frozen == "finest"
        return _stride8_modules(network) if is_finest else [network.backbone]

    def batches(self, first_step: int) -> Batches[DetectionBatch]:
        """Endless crops of this process, from this batch on."""
        return batches_of_process(self._batches, first_step, self._config.loop.workers)

    def losses(self, module: nn.Module, batch: DetectionBatch, progress: float) -> dict[str, Tensor]:
        """Compute the weighted parts against the labels and, with teachers, their outputs and maps."""
        config = self._config.loss
        for reason in batch.unreadable:
            self.unreadable.add(reason)
        pixels = batch.pixels.to(self._device, non_blocking=True)
        teacher_maps, teacher_output = self._teacher(pixels) if self._teacher else ([], None)
        maps, output, branch_maps = module(
            self._input(pixels), teacher_maps if config.teacher_forcing else ()
        )
        targets = match_batch(batch.faces, self._anchors, self._variances, self._config.match)
        parts = multibox_loss(output, targets, config, self._variances)
        if teacher_output is not None:
            parts |= distillation_loss(output, teacher_output, targets, config)
            weight = config.hints_first + (config.hints_last - config.hints_first) * progress
            parts["hint"] = weight * self._hint_loss(*map(self._comparable, (maps, teacher_maps)))
        if self._detail and self._detail_teacher:
            weight = self._detail.weight(progress)
            parts["detail"] = weight * self._hint_loss(branch_maps, self._detail_teacher(pixels))
        return parts

    def _comparable(self, maps: list[Tensor]) -> list[Tensor]:
        return [m for number, m in enumerate(maps, -len(maps)) if number not in self._beyond_teacher]

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Figures of the validator; none without one."""
        assert isinstance(module, TrainedDetector)
        return self.validator(module.network) if self.validator else {}

    def describe(self, batch: DetectionBatch) -> str:
        """Return the batch's photos."""
        return ", ".join(batch.files)


class _RunningTeacher:
    """A teacher, frozen, on a device."""

    def __init__(self, teacher: Teacher, device: torch.device, compiled: bool, with_backbone: bool) -> None:
        module = TrainedDetector(teacher.network, with_backbone=with_backbone)
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
    require_teacher(config, teacher is not None)
    if teacher is None:
        if not all(d.labelled for d in data):
            raise UsageError("a data set without labels trains only with a teacher")
        return
    if config.hints_from == "all" and _layout(teacher.network) != _layout(student):
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


def require_teacher(config: LossConfig, is_named: bool) -> None:
    """Refuse losses that compare with a teacher where there is none.

    Raises:
        UsageError: Names the setting and the cure.
    """
    if config.hints_from == "all" and not is_named:
        raise UsageError(
            "loss.hints_from = all compares with a teacher of the same layers: name one (--teacher), or set "
            "loss.hints_from=pyramid to train from labels alone"
        )


def _branch_teacher(
    detail: SmallFaceConfig | None, network: RetinaFace, device: torch.device
) -> SmallFaceTeacher | None:
    return SmallFaceTeacher(detail, branch_of(network), device) if detail else None


def _backbone_blocks(network: RetinaFace) -> list[nn.Module]:
    """MobileNetV1's blocks, or ResNet's stages, in the order of computation."""
    backbone = network.backbone
    if isinstance(backbone, ResNetStages):
        return [backbone.trunk.layer1, backbone.trunk.layer2, backbone.trunk.layer3, backbone.trunk.layer4]
    return [*backbone.stage1, *backbone.stage2, *backbone.stage3]


def _stride8_modules(network: RetinaFace) -> list[nn.Module]:
    """Return all that outputs at stride 8 depend on: SSH and the heads of strides 16 and 32 are left out."""
    heads = [network.box_heads[0], network.class_heads[0], network.landmark_heads[0]]
    modules = [network.backbone, network.fpn, network.contexts[0], *heads]
    if isinstance(network, SmallFaceRetinaFace):
        modules += [network.small_face_branch, network.small_face_laterals]
    return modules


def _layout(network: RetinaFace) -> tuple[list[torch.Size], list[int]]:
    """Shapes of the backbone's parameters, and widths of the maps after it."""
    return [p.shape for p in network.backbone.parameters()], _map_widths(network)


def _beyond_teacher(student: RetinaFace, teacher: Teacher | None) -> tuple[int, ...]:
    """Maps, numbered from the end, that are not compared: the teacher lacks the branch that adds to them.

    The branch's two maps go into P3 and P4, and through them into the first two of SSH.
    """
    if teacher is None or isinstance(teacher.network, SmallFaceRetinaFace):
        return ()
    p3, p4, _, ssh3, ssh4, _ = range(-6, 0)
    return (p3, p4, ssh3, ssh4) if isinstance(student, SmallFaceRetinaFace) else ()


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
