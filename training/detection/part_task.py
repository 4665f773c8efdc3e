"""Training of a part of a detector, apart from the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facepipe.training.detection.augment import AugmentConfig
from facepipe.training.detection.crops import CropBatches, CropSampler, DetectionBatch, WeightedPhotos
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.pixels import Normalisation
from facepipe.training.engine.stream import Batches, batches_of_process
from facepipe.training.engine.unusable import UnusablePhotos
from facepipe.weights.cards import InputSpec


class PartTask:
    """What tasks share in which a part of a detector learns, and the rest is frozen from the first step.

    See `facepipe.training.engine.task.Task`.

    Args:
        input_spec: The detector's preprocessing.
        data: At least one data set; its labels are not used.
        augment: How crops are cut.
        loop: Of the run.
        device: Of network and batches.

    Attributes:
        samples_per_epoch: Number of photos.
        unreadable: Photos that were passed over.
    """

    def __init__(
        self,
        input_spec: InputSpec,
        data: list[WeightedPhotos],
        augment: AugmentConfig,
        loop: LoopConfig,
        device: torch.device | None = None,
    ) -> None:
        self._device = device or torch.device("cpu")
        self._batches = CropBatches(CropSampler(data, augment, loop.seed), loop.batch_size)
        self._workers, self.samples_per_epoch = loop.workers, sum(len(d.photos.photos) for d in data)
        self._input = Normalisation(input_spec, self._device)
        self.unreadable = UnusablePhotos()

    def pretrained_parts(self) -> list[nn.Module]:
        """None: the rest is frozen anyway."""
        return []

    def batches(self, first_step: int) -> Batches[DetectionBatch]:
        """Endless crops of this process, from this batch on."""
        return batches_of_process(self._batches, first_step, self._workers)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Nothing: the detector's outputs have not changed."""
        return {}

    def describe(self, batch: DetectionBatch) -> str:
        """Return the batch's photos."""
        return ", ".join(batch.files)

    def _pixels(self, batch: DetectionBatch) -> Tensor:
        """Count the photos that were passed over, and return the crops on the device."""
        for reason in batch.unreadable:
            self.unreadable.add(reason)
        return batch.pixels.to(self._device, non_blocking=True)
