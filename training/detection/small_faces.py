"""Training of the branch for small faces from the maps of a published YuNet, one for each of its blocks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from facepipe.core.errors import UsageError
from facepipe.retinaface.network import RetinaFace
from facepipe.retinaface.small_faces import SmallFaceBranch, SmallFaceRetinaFace
from facepipe.training.detection.augment import AugmentConfig
from facepipe.training.detection.crops import DetectionBatch, WeightedPhotos
from facepipe.training.detection.losses import hint_loss
from facepipe.training.detection.part_task import PartTask
from facepipe.training.distillation.onnx_teacher import open_onnx, require_any_size
from facepipe.training.distillation.teacher_forcing import InnerMaps
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.pixels import Normalisation
from facepipe.weights.cards import InputSpec

YUNET_TAPS = (
    *("458", "461", "464", "467", "470", "473", "476", "479"),
    *("482", "485", "488", "491", "494", "497", "500", "503"),
)
YUNET_INPUT = InputSpec("bgr", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True, slots=True)
class SmallFaceConfig:
    """The teacher of the branch for small faces: a published YuNet.

    Attributes:
        weights: An ONNX file for images of any size; required.
        taps: Names of its maps, one for each of the branch's blocks: those before their ReLUs, which would
            hide errors below zero. They differ by file; the default is for `yunet_n_dynamic.onnx`.
        input: Its preprocessing.
        hints_first, hints_last: Weight of the hints at the first and the last step, linear between.
        alone: Train the branch alone, from the hints alone, as a first phase.
        forced_share: With `alone`, the first part of the run, 0..1, with teacher forcing: each block takes
            the teacher's map in place of the one before it, as in `LossConfig.teacher_forcing`.
    """

    weights: Path | None = None
    taps: tuple[str, ...] = YUNET_TAPS
    input: InputSpec = YUNET_INPUT
    hints_first: float = 4.0
    hints_last: float = 0.8
    alone: bool = False
    forced_share: float = 0.3

    def __post_init__(self) -> None:
        if min(self.hints_first, self.hints_last) < 0:
            raise UsageError("detail: expected weights of hints from 0")
        if not 0 <= self.forced_share <= 1:
            raise UsageError(f"detail.forced_share: expected 0..1, got {self.forced_share}")

    def weight(self, progress: float) -> float:
        """Weight of the hints at a share 0..1 of the run."""
        return self.hints_first + (self.hints_last - self.hints_first) * progress


class SmallFaceTeacher:
    """A YuNet whose maps the branch learns.

    Args:
        config: See `SmallFaceConfig`.
        branch: The student.
        device: Of the maps.

    Raises:
        WeightsError: The file can't be read, takes images of one size only, or computes no map of a name.
        UsageError: No file is named, or the maps are not of the branch's shapes.
    """

    def __init__(self, config: SmallFaceConfig, branch: SmallFaceBranch, device: torch.device) -> None:
        if config.weights is None:
            raise UsageError(
                "the branch for small faces has no teacher: name an ONNX file of YuNet (detail.weights); "
                "facepipe weights fetch yunet_any_size downloads one"
            )
        self._device, self._input = device, Normalisation(config.input, torch.device("cpu"))
        require_any_size(config.weights)
        self._run = open_onnx(config.weights, config.taps)
        _check_shapes(self(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)), branch, config)

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Map RGB uint8 crops (batch, side, side, 3) to a map (batch, channels, h, w) for each block."""
        values = self._run(self._input(pixels.cpu()).contiguous().numpy())
        return [torch.from_numpy(np.asarray(value, np.float32)).to(self._device) for value in values]


class TrainedBranch(nn.Module):
    """A detector of which the branch for small faces alone learns; the rest is frozen.

    Args:
        network: With a branch.
    """

    def __init__(self, network: RetinaFace) -> None:
        super().__init__()
        branch = branch_of(network)
        self.network = network.requires_grad_(False)
        branch.requires_grad_(True)
        self._block_maps = InnerMaps(list(branch.blocks))

    def forward(self, images: Tensor, teacher_maps: Sequence[Tensor]) -> list[Tensor]:
        """Map preprocessed images to the map of every block; `teacher_maps`: see `InnerMaps.recording`."""
        with self._block_maps.recording(teacher_maps) as maps:
            branch_of(self.network)(images)
        return maps


class BranchTask(PartTask):
    """Training of the branch alone: see `SmallFaceConfig.alone`.

    Args:
        network: With a branch for small faces.
        input_spec: Its preprocessing.
        detail: The branch's teacher.
        data: See `PartTask`.
        augment: See `PartTask`.
        loop: Of the run; with `compile`, the comparison of maps is compiled.
        device: Of network, teacher and batches.

    Raises:
        UsageError, WeightsError: See `SmallFaceTeacher`; or there is no branch.
    """

    def __init__(
        self,
        network: RetinaFace,
        input_spec: InputSpec,
        detail: SmallFaceConfig,
        data: list[WeightedPhotos],
        augment: AugmentConfig,
        loop: LoopConfig,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(input_spec, data, augment, loop, device)
        self._detail, self._teacher = detail, SmallFaceTeacher(detail, branch_of(network), self._device)
        self._hint_loss = torch.compile(hint_loss) if loop.compile else hint_loss
        self.module = TrainedBranch(network).to(self._device)

    def losses(self, module: nn.Module, batch: DetectionBatch, progress: float) -> dict[str, Tensor]:
        """Compute the weighted `hint_loss` of the branch's maps."""
        pixels = self._pixels(batch)
        teacher_maps = self._teacher(batch.pixels)
        forced = teacher_maps if progress < self._detail.forced_share else ()
        maps = module(self._input(pixels), forced)
        return {"detail": self._detail.weight(progress) * self._hint_loss(maps, teacher_maps)}


def branch_of(network: RetinaFace) -> SmallFaceBranch:
    """Return the branch for small faces.

    Raises:
        UsageError: The network has none.
    """
    if not isinstance(network, SmallFaceRetinaFace):
        raise UsageError(
            "[detail] teaches a branch for small faces: "
            "set network.architecture=retinaface_mobilenet025_detail"
        )
    return network.small_face_branch


def _check_shapes(maps: Sequence[Tensor], branch: SmallFaceBranch, config: SmallFaceConfig) -> None:
    branch = copy.deepcopy(branch).eval()
    with torch.no_grad(), InnerMaps(list(branch.blocks)).recording() as branch_maps:
        branch(torch.zeros(1, 3, 64, 64))
    ours, theirs = ([tuple(m.shape[1:]) for m in of_network] for of_network in (branch_maps, maps))
    if ours != theirs:
        raise UsageError(
            f"detail.taps: the branch's maps of an image of 64 px have shapes {ours}, those of "
            f"{config.weights} {theirs}; name one map for each block"
        )
