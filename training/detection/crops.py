"""An endless stream of training batches in which sample i depends on the seed and i alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facepipe.core.errors import DataError, PhotoError
from facepipe.training.detection.augment import AugmentConfig, TrainingCrop, augment
from facepipe.training.detection.data import PhotoSource
from facepipe.training.detection.targets import CropFaces
from facepipe.training.engine.stream import naming

_ATTEMPTS = 20
"""To draw a photo that can be read."""


@dataclass(frozen=True, slots=True)
class WeightedPhotos:
    """A data set.

    Attributes:
        photos: Labels and pixels.
        weight: Its share of the samples, relative to the other data sets.
        labelled: Whether it has labels; without them only losses against a teacher apply.
    """

    photos: PhotoSource
    weight: float
    labelled: bool = True


@dataclass(frozen=True, slots=True)
class DetectionBatch:
    """Crops of one step.

    Attributes:
        pixels: uint8 (batch, size, size, 3).
        faces: Of each crop.
        files: The photo of each crop.
        unreadable: Photos that were drawn in vain, each with what is wrong with it.
    """

    pixels: Tensor
    faces: list[CropFaces]
    files: list[str]
    unreadable: list[str]


@dataclass(frozen=True, slots=True)
class Sample:
    """One crop, the file of its photo, whether that is labelled, and the photos drawn in vain before it."""

    crop: TrainingCrop
    file: str
    labelled: bool
    unreadable: list[str]


class CropSampler:
    """Draws crops with replacement by the data sets' weights, past photos that can't be read.

    Args:
        data: At least one data set.
        config: Settings of the augmentation.
        seed: Sample i is a function of this and i.
    """

    def __init__(self, data: Sequence[WeightedPhotos], config: AugmentConfig, seed: int) -> None:
        self._data, self._config, self._seed = data, config, seed
        weights = np.array([d.weight for d in data])
        self._shares = weights / weights.sum()

    def __getitem__(self, number: int) -> Sample:
        unreadable: list[str] = []
        for attempt in range(_ATTEMPTS):
            data, index, rng = self._drawn(number, attempt)
            photo = data.photos.photos[index]
            with naming(str(photo.path)):
                try:
                    pixels = data.photos.pixels(index)
                except PhotoError as error:
                    unreadable.append(str(error))
                    continue
                crop = augment(pixels, photo, self._config, rng)
            return Sample(crop, str(photo.path), data.labelled, unreadable)
        raise DataError(
            f"{_ATTEMPTS} photos in a row can't be read, such as {unreadable[-1]}; "
            "check with 'facepipe data check'"
        )

    def file(self, number: int) -> str:
        """Return the photo of a sample, without reading it."""
        data, index, _ = self._drawn(number)
        return str(data.photos.photos[index].path)

    def _drawn(self, number: int, attempt: int = 0) -> tuple[WeightedPhotos, int, np.random.Generator]:
        """Return the data set of a sample, its photo's index there, and the generator of the rest."""
        rng = np.random.default_rng([self._seed, number, *([attempt] if attempt else [])])
        data = self._data[int(rng.choice(len(self._data), p=self._shares))]
        return data, int(rng.integers(len(data.photos.photos))), rng


class CropBatches:
    """Batch b holds the samples from b * batch_size; see `facepipe.training.engine.stream.BatchSource`."""

    def __init__(self, sampler: CropSampler, batch_size: int) -> None:
        self._sampler, self._batch_size = sampler, batch_size

    def batch(self, number: int) -> DetectionBatch:
        """Return the crops of one step."""
        first = number * self._batch_size
        samples = [self._sampler[first + i] for i in range(self._batch_size)]
        pixels = torch.from_numpy(np.stack([sample.crop.pixels for sample in samples]))
        unreadable = [reason for sample in samples for reason in sample.unreadable]
        return DetectionBatch(pixels, [_faces(s) for s in samples], [s.file for s in samples], unreadable)

    def files(self, number: int) -> list[str]:
        """See `facepipe.training.engine.stream.BatchSource`."""
        first = number * self._batch_size
        return [self._sampler.file(first + i) for i in range(self._batch_size)]


def _faces(sample: Sample) -> CropFaces:
    crop = sample.crop
    return CropFaces(crop.boxes_xyxy, crop.landmarks, crop.ignored_xyxy, sample.labelled)
