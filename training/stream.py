"""Batches without end, prepared by worker processes; a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, IterableDataset

from training.distributed import rank, world_size
from training.signals import leave_signals_to_parent

Batch = TypeVar("Batch")
Made = TypeVar("Made", covariant=True)


class BatchSource(Protocol[Made]):
    """Makes batch b from b alone; travels to worker processes."""

    def batch(self, number: int) -> Made:
        """Of any number from 0."""


def batches_of_process(source: BatchSource[Batch], first_step: int, workers: int) -> Iterator[Batch]:
    """The batches of this process from a step on: processes that train together take turns."""
    first = first_step * world_size() + rank()
    return endless_batches(source, first_batch=first, every=world_size(), workers=workers)


def endless_batches(
    source: BatchSource[Batch], *, first_batch: int, every: int, workers: int
) -> Iterator[Batch]:
    """Batches first_batch, first_batch + every, ...: the same ones whatever the number of workers.

    Args:
        source: Makes them.
        first_batch, every: Which batches.
        workers: Processes that prepare them; 0: this one.
    """
    loader: DataLoader[Batch] = DataLoader(
        EndlessBatches(source, first_batch, every),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
    )
    return iter(loader)


class EndlessBatches(IterableDataset[Batch]):
    """See `endless_batches`; several workers take turns."""

    def __init__(self, source: BatchSource[Batch], first: int, every: int) -> None:
        self._source, self._first, self._every = source, first, every

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        batch = self._first + offset * self._every
        while True:
            yield self._source.batch(batch)
            batch += stride * self._every


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    leave_signals_to_parent(worker)
