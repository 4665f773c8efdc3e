"""Workers of a cluster that go wrong in the ways that the tests are about; nodes of a cluster import them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from facepipe import cli
from facepipe.batch import ray_engine
from facepipe.batch.ray_worker import Answer, Installation, PhotoToAnalyze, PhotoWorker, WorkerSetup
from facepipe.core.errors import FacepipeError

DEADLY = "deadly.jpg"
"""Name of a photo that kills the process which analyzes it."""


HOLD = "FACEPIPE_TEST_HOLD"
"""Environment variable with the path of a file: while it exists, workers stop after their first call."""


class MortalWorker(PhotoWorker):
    """Dies of a photo, and waits while the file that `HOLD` names exists."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._has_analyzed = False

    def analyze(self, photos: Sequence[PhotoToAnalyze]) -> Answer:
        hold = os.environ.get(HOLD)
        while hold is not None and self._has_analyzed and Path(hold).exists():
            time.sleep(0.02)
        self._has_analyzed = True
        if any(photo.task.path.name == DEADLY for photo in photos):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().analyze(photos)


class BlindWorker(PhotoWorker):
    """Sees other files than the sender, as on a machine with folders of its own."""

    def analyze(self, photos: Sequence[PhotoToAnalyze]) -> Answer:
        others = [
            photo if photo.view is None else replace(photo, view=replace(photo.view, mtime_ns=0))
            for photo in photos
        ]
        return super().analyze(others)


class OlderWorker(PhotoWorker):
    """Has an earlier facepipe."""

    def prepare(self, setup: WorkerSetup) -> Installation | FacepipeError:
        prepared = super().prepare(setup)
        assert isinstance(prepared, Installation)
        return replace(prepared, packages=prepared.packages | {"facepipe": "0.0.1"})


class FailingWorker(PhotoWorker):
    """Meets an error that is no photo's."""

    def analyze(self, photos: Sequence[PhotoToAnalyze]) -> Answer:
        raise RuntimeError("out of order")


if __name__ == "__main__":
    ray_engine.PhotoWorker = MortalWorker  # type: ignore[attr-defined]
    cli.main(sys.argv[1:])
