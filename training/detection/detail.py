"""What the detail branch learns from: a second teacher's maps, one for each of the branch's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from facepipe.core.errors import UsageError
from facepipe.retinaface.network import RetinaFace, SmallFaceBranch
from facepipe.training.detection.crops import CropBatches, DetectionBatch
from facepipe.training.detection.losses import hint_loss
from facepipe.training.distillation.onnx_teacher import open_onnx
from facepipe.training.engine.pixels import Normalisation
from facepipe.training.engine.stream import Batches, batches_of_process
from facepipe.weights.cards import InputSpec

YUNET_TAPS = (
    *("458", "461", "464", "467", "470", "473", "476", "479"),
    *("482", "485", "488", "491", "494", "497", "500", "503"),
)
YUNET_INPUT = InputSpec("bgr", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True, slots=True)
class DetailConfig:
    """What the detail branch learns besides labels: the maps of a published YuNet.

    Attributes:
        weights: An ONNX file, for pictures of any size. It must be named.
        taps: Names of its maps, one for each of the branch's blocks: those before their ReLUs, which hide
            from a block what it does wrong below zero. They differ by file; the default is for
            `yunet_n_dynamic.onnx`.
        input: How it wants its pixels.
        hints_first, hints_last: Weight of the hints at the first and the last step, linear between.
        alone: Train the branch and nothing else, to begin with; labels count for nothing.
        forced_share: With `alone`, the first part of the run, 0..1, in which each block is fed the teacher's
            map instead of the one before it, as in `LossConfig.teacher_forcing`.
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
        """Of the hints, when this share of the run is done."""
        return self.hints_first + (self.hints_last - self.hints_first) * progress


class DetailTeacher:
    """Looks at crops as the branch does.

    Args:
        config: See `DetailConfig`.
        branch: What learns from it.
        device: Where its maps go.

    Raises:
        WeightsError: The file can't be read, or computes no map of a name.
        UsageError: No file is named, or the maps are not of the branch's shapes.
    """

    def __init__(self, config: DetailConfig, branch: SmallFaceBranch, device: torch.device) -> None:
        if config.weights is None:
            raise UsageError("the detail branch has no teacher: name an ONNX file of YuNet (detail.weights)")
        self._device, self._input = device, Normalisation(config.input, torch.device("cpu"))
        self._run = open_onnx(config.weights, config.taps)
        _check_shapes(self(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)), branch, config)

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """RGB uint8 crops (batch, side, side, 3) to a map (batch, channels, h, w) for each block."""
        values = self._run(self._input(pixels.cpu()).contiguous().numpy())
        return [torch.from_numpy(np.asarray(value, np.float32)).to(self._device) for value in values]


class TrainedBranch(nn.Module):
    """A detector of which the detail branch alone learns; the rest stays as it is.

    Args:
        network: With a branch.
    """

    def __init__(self, network: RetinaFace) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        branch_of(network).requires_grad_(True)

    def forward(self, images: Tensor, given: Sequence[Tensor]) -> list[Tensor]:
        """Preprocessed images to the map of every block; see `SmallFaceBranch.forward` for `given`."""
        return branch_of(self.network)(images, given)  # type: ignore[no-any-return]


class BranchTask:
    """Training the branch and nothing else: see `DetailConfig.alone` and `Task`.

    Args:
        network: With a detail branch.
        input_spec: Its preprocessing.
        detail: What the branch learns from.
        batches: Crops; what their labels say is not looked at.
        workers: Processes that prepare batches.
        photos: How many there are.
        compiled: Whether the comparison of maps goes through torch.compile.
        device: Where it all runs.

    Raises:
        UsageError, WeightsError: See `DetailTeacher`; or there is no branch.
    """

    def __init__(
        self,
        network: RetinaFace,
        input_spec: InputSpec,
        detail: DetailConfig,
        batches: CropBatches,
        *,
        workers: int,
        photos: int,
        compiled: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self._device = device or torch.device("cpu")
        self._detail, self._teacher = detail, DetailTeacher(detail, branch_of(network), self._device)
        self._batches, self._workers, self.samples_per_epoch = batches, workers, photos
        self._input = Normalisation(input_spec, self._device)
        self._hint_loss = torch.compile(hint_loss) if compiled else hint_loss
        self.module = TrainedBranch(network).to(self._device)

    def pretrained_parts(self) -> list[nn.Module]:
        """None: the rest stays as it is anyway."""
        return []

    def batches(self, first_step: int) -> Batches[DetectionBatch]:
        """Endless crops of this process; a resumed run sees what it would have seen."""
        return batches_of_process(self._batches, first_step, self._workers)

    def losses(self, module: nn.Module, batch: DetectionBatch, progress: float) -> dict[str, Tensor]:
        """The squared error of the branch's maps, as shares of the teacher's variance."""
        lesson = self._teacher(batch.pixels)
        forced = lesson if progress < self._detail.forced_share else ()
        maps = module(self._input(batch.pixels.to(self._device, non_blocking=True)), forced)
        return {"detail": self._detail.weight(progress) * self._hint_loss(maps, lesson)}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Nothing: what the detector says has not changed yet."""
        return {}

    def describe(self, batch: DetectionBatch) -> str:
        """The batch's photos."""
        return ", ".join(batch.files)


def branch_of(network: RetinaFace) -> SmallFaceBranch:
    """The detail branch.

    Raises:
        UsageError: The network has none.
    """
    if network.detail is None:
        raise UsageError(
            "[detail] teaches a detail branch: set network.architecture=retinaface_mobilenet025_detail"
        )
    return network.detail


def _check_shapes(maps: Sequence[Tensor], branch: SmallFaceBranch, config: DetailConfig) -> None:
    with torch.no_grad():
        ours = [tuple(m.shape[1:]) for m in branch.eval()(torch.zeros(1, 3, 64, 64))]
    branch.train()
    theirs = [tuple(m.shape[1:]) for m in maps]
    if ours != theirs:
        raise UsageError(
            f"detail.taps: of a picture of 64 px the branch makes maps of {ours}, and {config.weights} of "
            f"{theirs}; name one map for each block"
        )
