"""An endless stream of batches of faces in which sample i depends on the seed and i alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facepipe.align import MARGINS, cut
from facepipe.core.errors import DataError, UsageError
from facepipe.images.corruption import CorruptionConfig, corrupt
from facepipe.training.engine.stream import naming
from facepipe.training.recognition.augment import JitterConfig, jitter_matrix
from facepipe.training.recognition.crops import NOBODY, FaceCrops

Indices = npt.NDArray[np.int64]

_EPOCH, _PEOPLE, _AUGMENT, _JITTER = range(4)
"""Streams of random numbers, so that none disturbs another."""


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """Composition of a batch.

    Attributes:
        people: So many labelled people ...
        photos_per_person: ... with so many faces each; the rest are drawn from all faces in turn.
    """

    people: int = 0
    photos_per_person: int = 4

    def __post_init__(self) -> None:
        if self.people < 0 or self.photos_per_person < 2:
            raise UsageError("batch: expected people from 0, photos_per_person from 2")


@dataclass(frozen=True, slots=True)
class FaceBatch:
    """Faces of one step.

    Attributes:
        clean: RGB uint8 (batch, size, size, 3), for a teacher; None: there is no such teacher.
        corrupted: The same faces with corrupted pixels, for the student.
        people: int64 (batch,); `NOBODY` where unknown.
        indices: int64 (batch,) into the crops.
        variants: int64 (batch,): which draw of the jitter each face has; see `JitterConfig.variants`.
    """

    clean: Tensor | None
    corrupted: Tensor
    people: Tensor
    indices: Tensor
    variants: Tensor


class BatchPlan:
    """Which crops a batch holds: labelled people with several photos first, then all crops in turn.

    Args:
        people: int64 (n,): who each crop shows.
        trained: Indices of the crops to train on.
        config: See `BatchConfig`.
        size: Faces a batch.
        seed: Batch b is a function of this and b.

    Raises:
        UsageError: So many people do not fit into a batch.
        DataError: There are fewer people with two or more crops than a batch needs, or no crops.
    """

    def __init__(
        self, people: Indices, trained: Indices, config: BatchConfig, *, size: int, seed: int
    ) -> None:
        self.size, self._config, self._trained, self._seed = size, config, trained, seed
        self._others = size - config.people * config.photos_per_person
        if self._others < 0:
            raise UsageError(
                f"batch: {config.people} people with {config.photos_per_person} photos each are more than "
                f"{size} faces (loop.batch_size)"
            )
        self._groups = [group for group in grouped_by_person(people, trained) if len(group) >= 2]
        if not len(trained):
            raise DataError("no faces to train on")
        if len(self._groups) < config.people:
            raise DataError(
                f"a batch needs {config.people} people, but only {len(self._groups)} have two or more crops"
            )
        self._orders: dict[int, Indices] = {}

    def __getitem__(self, batch: int) -> Indices:
        """Indices (size,) of the crops of this batch."""
        config = self._config
        rng = np.random.default_rng([self._seed, _PEOPLE, batch])
        chosen = rng.permutation(len(self._groups))[: config.people]
        known = [_photos_of(self._groups[person], config.photos_per_person, rng) for person in chosen]
        epochs, within = np.divmod(self._places(batch), len(self._trained))
        rest = [self._order(int(e))[within[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate([*known, *rest])

    def epochs(self, batch: int) -> Indices:
        """Epoch of each sample (size,) of this batch.

        That of crops in turn counts how often all of them came before; people's counts all samples.
        """
        people = batch * self.size + np.arange(self.size - self._others)
        return np.concatenate([people, self._places(batch)]) // len(self._trained)

    def _places(self, batch: int) -> Indices:
        """Places of the crops that are taken in turn, in all epochs one after the other."""
        return batch * self._others + np.arange(self._others)

    def _order(self, epoch: int) -> Indices:
        """Return all crops, shuffled; kept while neighbouring batches need it."""
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
        jitter, corruption: See there.
        seed: Sample i is a function of this and i.
        margin: Of the crops: see `facepipe.align.MARGINS`.
        with_clean: Whether batches hold the faces without corruption, too.
    """

    def __init__(
        self,
        crops: FaceCrops,
        plan: BatchPlan,
        size_px: int,
        jitter: JitterConfig,
        corruption: CorruptionConfig,
        seed: int,
        *,
        margin: float = MARGINS["arcface_112"],
        with_clean: bool = True,
    ) -> None:
        self.crops, self._plan, self._size_px = crops, plan, size_px
        self._margin, self._with_clean = margin, with_clean
        self._jitter, self._corruption, self._seed = jitter, corruption, seed

    def batch(self, number: int) -> FaceBatch:
        """See `facepipe.training.engine.stream.BatchSource`."""
        indices = self._plan[number]
        first = number * self._plan.size
        variants = self._plan.epochs(number) % max(1, self._jitter.variants)
        pairs = [
            self._faces(int(index), first + i, int(variant))
            for i, (index, variant) in enumerate(zip(indices, variants, strict=True))
        ]
        clean, corrupted = (torch.from_numpy(np.stack(faces)) for faces in zip(*pairs, strict=True))
        people = torch.from_numpy(self.crops.people[indices])
        return FaceBatch(
            clean if self._with_clean else None,
            corrupted,
            people,
            torch.from_numpy(indices),
            torch.from_numpy(variants),
        )

    def files(self, number: int) -> list[str]:
        """See `facepipe.training.engine.stream.BatchSource`."""
        return [self.crops.names[index] for index in self._plan[number]]

    def _faces(
        self, index: int, number: int, variant: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """One face, jittered, as it is and corrupted."""
        rng = np.random.default_rng([self._seed, _AUGMENT, number])
        of_jitter = rng
        if self._jitter.variants:
            of_jitter = np.random.default_rng([self._seed, _JITTER, index, variant])
        with naming(self.crops.names[index]):
            matrix = jitter_matrix(self._size_px, self._jitter, of_jitter)
            clean = cut(self.crops.pixels(index), self._size_px, self._margin, matrix)
            return clean, corrupt(clean, self._corruption, rng)


def grouped_by_person(people: Indices, crops: Indices) -> list[Indices]:
    """Group the labelled ones of these crops by person; `people` (n,) is the person in each crop."""
    labelled = crops[people[crops] != NOBODY]
    by_person = labelled[np.argsort(people[labelled], kind="stable")]
    starts = np.flatnonzero(np.diff(people[by_person], prepend=NOBODY))[1:]
    return np.split(by_person, starts) if len(by_person) else []


def _photos_of(group: Indices, count: int, rng: np.random.Generator) -> Indices:
    """So many crops of one person; each is taken once before one is taken twice."""
    rounds = -(-count // len(group))
    return np.concatenate([rng.permutation(group) for _ in range(rounds)])[:count]
