"""The process on a node of a cluster that holds the networks and analyzes photos. It opens no gallery."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata

import numpy as np

from facepipe.batch.analysis import AnalysisOptions, PhotoAnalyzer
from facepipe.batch.engine import Engine, EngineOptions, Outcome
from facepipe.batch.file_view import FileView, view_of
from facepipe.batch.models import FailedPhoto, PhotoTask
from facepipe.core.errors import FacepipeError
from facepipe.detector import DetectorOptions
from facepipe.pipeline import FacePipeline
from facepipe.runtime.engines import RuntimeName, choose_runtime

_PACKAGES = ("numpy", "opencv-python-headless", "pillow", "pillow-heif", "simplejpeg")
_RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
"""What the results of an analysis depend on."""


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks of an analysis.

    Attributes:
        detector_weights: Name of a weight, or path of a card.
        encoder_weights: Likewise.
        options: What counts as a face.
        runtime: What they run on, on the CPU.
    """

    detector_weights: str
    encoder_weights: str
    options: DetectorOptions
    runtime: RuntimeName


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker is to do.

    Attributes:
        networks: Which it loads.
        analysis: How it analyzes photos.
        engine: How it spreads the work over its threads.
    """

    networks: Networks
    analysis: AnalysisOptions
    engine: EngineOptions


@dataclass(frozen=True, slots=True)
class Installation:
    """What the results of a process depend on: equal where the results are.

    Attributes:
        packages: Versions of facepipe and the packages that it computes with, where they are installed.
        fingerprints: Of detector and encoder.
    """

    packages: dict[str, str]
    fingerprints: dict[str, str]

    def differences(self, here: Installation) -> str:
        """What is another than here, as a part of a sentence; empty: nothing."""
        pairs = [
            (f"{kind} {name}", theirs.get(name), ours.get(name))
            for kind, theirs, ours in (
                ("package", self.packages, here.packages),
                ("weights of the", self.fingerprints, here.fingerprints),
            )
            for name in sorted(theirs.keys() | ours.keys())
        ]
        different = [(name, theirs, ours) for name, theirs, ours in pairs if theirs != ours]
        return ", ".join(
            f"{name} {theirs or 'missing'} (here {ours or 'missing'})" for name, theirs, ours in different
        )


def installation_of(pipeline: FacePipeline, runtime: RuntimeName) -> Installation:
    """Return what the results of a pipeline depend on that runs on `runtime`, on the CPU."""
    cards = {"detector": pipeline.detector.card, "encoder": pipeline.encoder.card}
    prints = {kind: f"{card.name} {card.fingerprint[:12]}" for kind, card in cards.items()}
    return Installation(_versions(choose_runtime(runtime, "cpu").runtime), prints)


def _versions(runtime: str) -> dict[str, str]:
    from facepipe import __version__

    found = {"facepipe": __version__}
    for package in (*_PACKAGES, _RUNTIMES[runtime]):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class PhotoToAnalyze:
    """A photo on its way to a worker.

    Attributes:
        task: With the bytes of its file where they are sent.
        view: What the sender sees of its file; None where its bytes are sent.
    """

    task: PhotoTask
    view: FileView | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker made of some photos.

    Attributes:
        outcomes: In the order of the photos; None: the worker sees another file at its path, or none.
        seconds: Of the worker's threads by stage since its last answer.
    """

    outcomes: list[Outcome | None]
    seconds: dict[str, float]


class PhotoWorker:
    """Analyzes photos on all processors that it was given; an actor of Ray, without knowing of it.

    Threads may call `analyze` side by side: their photos share calls of the networks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._replies: dict[int, queue.SimpleQueue[Outcome | BaseException]] = {}
        self._reported: dict[str, float] = {}
        self._error: BaseException | None = None
        self._engine: Engine | None = None

    def prepare(self, setup: WorkerSetup) -> Installation | FacepipeError:
        """Load the networks.

        Returns:
            What the results depend on, or why the networks can't be loaded here.
        """
        networks = setup.networks
        try:
            runtime = choose_runtime(networks.runtime, "cpu", calls=setup.engine.threads)
            pipeline = FacePipeline.load(
                detector_weights=networks.detector_weights,
                encoder_weights=networks.encoder_weights,
                options=networks.options,
                runtime=runtime,
            )
            _try_networks(pipeline)
        except FacepipeError as error:
            return FacepipeError(str(error))
        self._engine = Engine(PhotoAnalyzer(pipeline, setup.analysis), (), setup.engine, stays_open=True)
        threading.Thread(target=self._deliver, args=(self._engine,), daemon=True).start()
        return installation_of(pipeline, networks.runtime)

    def analyze(self, photos: Sequence[PhotoToAnalyze]) -> Answer:
        """Analyze photos; those whose files are others here, or missing, are left alone.

        Raises:
            Exception: What a stage raised that is no photo's fault.
        """
        assert self._engine is not None
        seen = [photo.task for photo in photos if _is_readable(photo)]
        replies: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._replies |= {task.id: replies for task in seen}
        self._engine.add(seen)
        outcomes: dict[int, Outcome] = {}
        while len(outcomes) < len(seen):
            reply = replies.get()
            if isinstance(reply, BaseException):
                raise reply
            outcomes[reply.task.id] = _to_send(reply)
        return Answer([outcomes.get(photo.task.id) for photo in photos], self._new_seconds())

    def _deliver(self, engine: Engine) -> None:
        """Give every outcome to the call that waits for it."""
        try:
            for outcome in engine.outcomes():
                with self._lock:
                    replies = self._replies.pop(outcome.task.id)
                replies.put(outcome)
        except BaseException as error:  # for the calls to raise
            with self._lock:
                self._error = error
                for replies in self._replies.values():
                    replies.put(error)

    def _new_seconds(self) -> dict[str, float]:
        assert self._engine is not None
        with self._lock:
            now = dict(self._engine.seconds)
            new = {stage: seconds - self._reported.get(stage, 0.0) for stage, seconds in now.items()}
            self._reported = now
        return new


def _is_readable(photo: PhotoToAnalyze) -> bool:
    """Whether its bytes were sent, or its file is the same here."""
    return photo.view is None or view_of(photo.task.path) == photo.view


def _try_networks(pipeline: FacePipeline) -> None:
    """Run both: a processor that can't is found before a photo is blamed for it."""
    side = pipeline.encoder.input_size_px
    pipeline.detector.detect(np.full((64, 64, 3), 128, np.uint8))
    pipeline.encoder.encode(np.full((1, side, side, 3), 128, np.uint8))


def _to_send(outcome: Outcome) -> Outcome:
    """What the job keeps of an outcome."""
    task = replace(outcome.task, content=None)
    if isinstance(outcome, FailedPhoto):
        return replace(outcome, task=task)
    return replace(outcome, task=task, alignments=())
