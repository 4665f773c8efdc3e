"""An endless stream of batches of faces in which sample i depends on the seed and i alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from facepipe.errors import DataError, UsageError
from training.recognition.augment import DamageConfig, ShakeConfig, cut, damage, shake_matrix
from training.recognition.crops import NOBODY, FaceCrops
from training.signals import leave_signals_to_parent

Indices = npt.NDArray[np.int64]

_EPOCH, _PEOPLE, _AUGMENT = range(3)
"""Streams of random numbers, so that none disturbs another."""


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """What a batch is made of.

    Attributes:
        size: Faces.
        people: Of these, so many people ...
        photos_per_person: ... with so many faces each; the rest are drawn from all faces in turn.
    """

    size: int = 64
    people: int = 0
    photos_per_person: int = 4

    def __post_init__(self) -> None:
        if self.size < 1 or self.people < 0 or self.photos_per_person < 2:
            raise UsageError("batch: expected size from 1, people from 0, photos_per_person from 2")
        if self.people * self.photos_per_person > self.size:
            raise UsageError(
                f"batch: {self.people} people with {self.photos_per_person} photos each are more than "
                f"{self.size} faces"
            )


@dataclass(frozen=True, slots=True)
class FaceBatch:
    """Faces of one step.

    Attributes:
        clean: RGB uint8 (batch, size, size, 3), shaken: what a teacher sees.
        damaged: The same faces, pixels damaged: what the student sees.
        people: int64 (batch,); `NOBODY` where unknown.
        indices: int64 (batch,) into the crops.
    """

    clean: Tensor
    damaged: Tensor
    people: Tensor
    indices: Tensor


class BatchPlan:
    """Which crops a batch holds: labelled people with several photos first, then all crops in turn.

    Args:
        people: int64 (n,): who each crop shows.
        trained: Indices of the crops to train on.
        config: See `BatchConfig`.
        seed: Batch b is a function of this and b.

    Raises:
        DataError: There are fewer people with two or more crops than a batch wants, or no crops.
    """

    def __init__(self, people: Indices, trained: Indices, config: BatchConfig, seed: int) -> None:
        self.config, self._trained, self._seed = config, trained, seed
        labelled = trained[people[trained] != NOBODY]
        by_person = labelled[np.argsort(people[labelled], kind="stable")]
        starts = np.flatnonzero(np.diff(people[by_person], prepend=NOBODY))[1:]
        groups = np.split(by_person, starts) if len(by_person) else []
        self._groups = [group for group in groups if len(group) >= 2]
        if not len(trained):
            raise DataError("no faces to train on")
        if len(self._groups) < config.people:
            raise DataError(
                f"a batch wants {config.people} people, but only {len(self._groups)} have two or more crops"
            )
        self._orders: dict[int, Indices] = {}

    def __getitem__(self, batch: int) -> Indices:
        """Indices (size,) of the crops of this batch."""
        config = self.config
        rng = np.random.default_rng([self._seed, _PEOPLE, batch])
        chosen = rng.permutation(len(self._groups))[: config.people]
        known = [_photos_of(self._groups[person], config.photos_per_person, rng) for person in chosen]
        others = config.size - config.people * config.photos_per_person
        places = batch * others + np.arange(others)
        epochs, within = np.divmod(places, len(self._trained))
        rest = [self._order(int(e))[within[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate([*known, *rest])

    def _order(self, epoch: int) -> Indices:
        """All crops, shuffled; kept while neighbouring batches need it."""
        if epoch not in self._orders:
            rng = np.random.default_rng([self._seed, _EPOCH, epoch])
            latest = list(self._orders.items())[-1:]
            self._orders = {**dict(latest), epoch: rng.permutation(self._trained)}
        return self._orders[epoch]


class FaceSampler:
    """Makes batches.

    Args:
        crops: Where pixels come from.
        plan: Which crops a batch holds.
        size_px: Side of the network's input.
        shake, damage: See there.
        seed: Sample i is a function of this and i.
    """

    def __init__(
        self,
        crops: FaceCrops,
        plan: BatchPlan,
        size_px: int,
        shake: ShakeConfig,
        damage: DamageConfig,
        seed: int,
    ) -> None:
        self.crops, self._plan, self._size_px = crops, plan, size_px
        self._shake, self._damage, self._seed = shake, damage, seed

    def __getitem__(self, batch: int) -> FaceBatch:
        indices = self._plan[batch]
        first = batch * self._plan.config.size
        pairs = [self._faces(int(index), first + i) for i, index in enumerate(indices)]
        clean, damaged = (torch.from_numpy(np.stack(faces)) for faces in zip(*pairs, strict=True))
        people = torch.from_numpy(self.crops.people[indices])
        return FaceBatch(clean, damaged, people, torch.from_numpy(indices))

    def _faces(self, index: int, number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """One face, shaken, without and with damage."""
        rng = np.random.default_rng([self._seed, _AUGMENT, number])
        matrix = shake_matrix(self._size_px, self._shake, rng)
        clean = cut(self.crops.pixels(index), self._size_px, matrix)
        return clean, damage(clean, self._damage, rng)


def endless_batches(
    sampler: FaceSampler, *, first_batch: int, every: int, workers: int
) -> Iterator[FaceBatch]:
    """Batches first_batch, first_batch + every, ...: the same ones whatever the number of workers.

    Args:
        sampler: Makes them.
        first_batch, every: Which batches; processes that train together take turns.
        workers: Processes that prepare them; 0: this one.
    """
    loader = DataLoader(
        _Batches(sampler, first_batch, every),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
    )
    return iter(loader)


class _Batches(IterableDataset[FaceBatch]):
    def __init__(self, sampler: FaceSampler, first: int, every: int) -> None:
        self._sampler, self._first, self._every = sampler, first, every

    def __iter__(self) -> Iterator[FaceBatch]:
        worker = torch.utils.data.get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        batch = self._first + offset * self._every
        while True:
            yield self._sampler[batch]
            batch += stride * self._every


def _photos_of(group: Indices, count: int, rng: np.random.Generator) -> Indices:
    """So many crops of one person; each is taken once before one is taken twice."""
    rounds = -(-count // len(group))
    return np.concatenate([rng.permutation(group) for _ in range(rounds)])[:count]


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    leave_signals_to_parent(worker)
