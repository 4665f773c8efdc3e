"""A batch from its command to its results: find photos, analyze them, name their faces."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from facepipe.batch.analysis import AnalysisOptions, PhotoAnalyzer
from facepipe.batch.engine import Engine, EngineOptions, Outcome, PhotoEngine
from facepipe.batch.finding import find_batch_photos
from facepipe.batch.job import Job
from facepipe.batch.models import Counts, FailedPhoto, PhotoAnalysis, PhotoTask
from facepipe.batch.naming import Naming, options_to_dict
from facepipe.batch.output_files import own_files
from facepipe.batch.photo_writing import finish_photo_writes, write_into_photos
from facepipe.batch.progress_file import RunningBatch, remove_progress, write_progress
from facepipe.batch.rows import known_count
from facepipe.batch.shards import Shard
from facepipe.core.counting import counted
from facepipe.images.finding import is_wanted
from facepipe.pipeline import FacePipeline, NamingOptions

_FEW_PHOTOS, _MANY_PHOTOS = 16, 512
_SOON_S, _LATE_S = 0.25, 0.5
"""Few photos are a transaction after a quarter of a second, fewer after half a second, many at once: that is
what a killed process repeats at most."""
_NAMED_TOGETHER = 64
"""Photos whose faces are named at once."""
_TELL_S = 1.0
"""How often other processes are told how far a batch is."""
_log = logging.getLogger("facepipe")


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What a batch is to do.

    Attributes:
        exclude: Patterns to pass over; see `find_photos`.
        retry_failed: Analyze photos again that failed.
        again: Analyze all photos again.
        allow_missing: Go on without folders and files that are not there, and folders without a photo.
        analysis: How photos are analyzed. Results depend on it, and the job is bound to it.
        naming: How faces are named. When it, or the gallery, has changed since, all faces are named again,
            from their embeddings.
        engine: How the work is spread.
        shard: Take this share of the photos; None: all.
    """

    exclude: Sequence[str] = ()
    retry_failed: bool = False
    again: bool = False
    allow_missing: bool = False
    analysis: AnalysisOptions = field(default_factory=AnalysisOptions)
    naming: NamingOptions = field(default_factory=NamingOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    shard: Shard | None = None


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is.

    Attributes:
        total: Photos of the command.
        done: Photos analyzed, in this run or before.
        failed: Photos that could not be.
        faces: In the photos that are done.
        known: Faces with a name.
        here: Photos dealt with in this run.
        elapsed_s: Since this run began its analysis.
    """

    total: int
    done: int
    failed: int
    faces: int
    known: int
    here: int
    elapsed_s: float

    @property
    def unknown(self) -> int:
        """Faces without a name."""
        return self.faces - self.known

    @property
    def photos_per_s(self) -> float:
        """Of this run."""
        return self.here / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def running(self) -> RunningBatch:
        """What other processes are told."""
        rate = round(self.photos_per_s, 2)
        return RunningBatch(self.total, self.done, self.failed, self.faces, self.known, rate, self.left_s)

    @property
    def left_s(self) -> float | None:
        """Seconds to go at this speed; None before the first photo."""
        left = self.total - self.done - self.failed
        return left / self.photos_per_s if self.photos_per_s else None


@dataclass(frozen=True, slots=True)
class Summary:
    """A batch that has ended.

    Attributes:
        counts: Photos and faces of the command.
        here: Photos dealt with in this run.
        named_again: Photos whose faces were named again without an analysis.
        stage_s: Seconds of threads by stage, and under "wait" without work.
        elapsed_s: Since this run began its analysis.
    """

    counts: Counts
    here: int
    named_again: int
    stage_s: dict[str, float] = field(default_factory=dict)
    elapsed_s: float = 0.0


class Batch:
    """Folders worked through into a job file. Kill it at any time: the same calls go on where it was.

    Args:
        pipeline: With a gallery.
        job: Where the work is remembered.
        options: See `BatchOptions`.
        make_engine: Makes what analyzes photos; None: `Engine`, on this machine.

    Raises:
        UsageError: The job was begun with other settings, or faces can't be named (see `FacePipeline.name`).
        GalleryError: The gallery is encrypted, and the job can't be for want of the key.
    """

    def __init__(
        self,
        pipeline: FacePipeline,
        job: Job,
        options: BatchOptions | None = None,
        make_engine: Callable[[Iterable[PhotoTask]], PhotoEngine] | None = None,
    ) -> None:
        self._pipeline, self._job, self._options = pipeline, job, options or BatchOptions()
        self._analyzer = PhotoAnalyzer(pipeline, self._options.analysis)
        self._make_engine = make_engine or self._threads
        self._folders: list[Path] = []
        self._naming = Naming(pipeline.require_gallery(), self._options.naming)
        if not self._options.again:
            job.require_settings(analysis_settings(pipeline, self._options.analysis), again=False)
        if self._naming.gallery.info().encrypted and job.require_encryption():
            _log.warning(
                "the gallery is encrypted, and so is the job from now on; what others are to read is not: "
                "%s (report, records, pictures) and sidecars hold names and faces in the clear",
                job.folder,
            )

    @property
    def group_within_l2(self) -> float:
        """Mean distance up to which unknown faces are likely one person's."""
        return self._naming.group_within_l2

    def find(self, folders: Iterable[str | os.PathLike[str]], *, may_be_empty: bool = False) -> None:
        """Take the photos of folders, files and globs for those of this batch. The job's own folder is none.

        Args:
            folders: Files, folders and globs.
            may_be_empty: A folder need not hold a photo, unless it did.

        Raises:
            UsageError: One is not there, or holds no photo, and that is not allowed; nothing is changed.
        """
        folders = list(folders)
        may_be_empty = may_be_empty and not self._job.photos()
        photos = find_batch_photos(
            folders,
            self._job.folder,
            exclude=self._options.exclude,
            allow_missing=self._options.allow_missing,
            may_be_empty=may_be_empty,
        )
        self.take(folders, photos)

    def take(self, folders: Iterable[str | os.PathLike[str]], photos: Sequence[Path]) -> None:
        """Take photos for those of this batch.

        Args:
            folders: Files, folders and globs in which they were found; see `find_batch_photos`.
            photos: All of them, in order.
        """
        self._job.remember_naming(self._naming.gallery.path, options_to_dict(self._naming.options))
        finish_photo_writes(self._job, self._naming.gallery)
        self._folders = [Path(os.path.abspath(folder)) for folder in folders]
        if self._options.again:
            self._job.require_settings(analysis_settings(self._pipeline, self._options.analysis), again=True)
        shard, retry_failed = self._options.shard, self._options.retry_failed
        if shard is None:
            taken = self._job.plan(photos, retry_failed=retry_failed)
        else:
            ours = shard.select(photos)
            taken = self._job.plan(ours, places=ours.values(), shard=shard, retry_failed=retry_failed)
            _log.info("share %s: %d of %s", shard, len(ours), counted(len(photos), "photo"))
        if taken.moved:
            _log.info("known again by content: %s moved or renamed", counted(taken.moved, "photo"))
        if taken.left_out:
            _log.info(
                "no longer in the results, but remembered: %s of the last run",
                counted(taken.left_out, "photo"),
            )

    def add(self, files: Iterable[Path]) -> int:
        """Take more photos, of files that have come to the folders; answers how many wait to be analyzed."""
        exclude = [*self._options.exclude, *own_files(self._job.folder, self._folders)]
        photos = dict.fromkeys(Path(os.path.abspath(file)) for file in files if os.path.exists(file))
        self._job.plan_more([photo for photo in photos if is_wanted(photo, self._folders, exclude)])
        return self._job.counts().waiting

    def leave_out_missing(self) -> int:
        """Leave out the photos that are no longer there; answers how many.

        Where none is there any more, nothing is changed: a disk may have been unmounted.
        """
        photos = self._job.photos()
        missing = [photo for photo in photos if not os.path.lexists(photo)]
        if len(missing) == len(photos):
            return 0
        self._job.leave_out(missing)
        return len(missing)

    def run(self, on_progress: Callable[[BatchProgress], None] | None = None) -> Summary:
        """Analyze the photos that wait, and name all faces by the gallery as it is now.

        Args:
            on_progress: Called after every transaction.
        """
        self._naming.refresh()
        naming_key, dimensions = self._naming.key, self._analyzer.dimensions
        named_again = self._job.faces.name_again(self._naming, naming_key, dimensions)
        if named_again:
            photos = counted(named_again, "photo")
            _log.info("the gallery or its settings have changed: faces of %s named again", photos)
        start, counts = time.monotonic(), self._job.counts()
        engine = self._make_engine(self._job.waiting())
        saver = _Saver(self._job, self._naming, naming_key)
        tally = saver.tally

        told_at = -_TELL_S

        def saved() -> None:
            nonlocal told_at
            progress = _progress(counts, tally, time.monotonic() - start)
            if on_progress is not None:
                on_progress(progress)
            if time.monotonic() - told_at >= _TELL_S:
                told_at = time.monotonic()
                write_progress(self._job.folder, progress.running)

        saved()
        with _untold(self._job.folder), saver, closing(engine.outcomes()) as outcomes:
            for outcome in outcomes:
                if saver.add(outcome):
                    saved()
        saved()
        # Somebody may have enrolled meanwhile; and decisions wait for photos that were analyzed now.
        self._naming.refresh()
        named_again += self._job.faces.name_again(self._naming, self._naming.key, dimensions)
        elapsed_s = time.monotonic() - start
        return Summary(
            self._job.counts(), tally["done"] + tally["failed"], named_again, dict(engine.seconds), elapsed_s
        )

    def write_into_photos(self) -> int:
        """Write the names into the photos themselves; answers how many could not be written, which is logged.

        Raises:
            UsageError: exiftool is not installed.
        """
        failed = write_into_photos(self._job, max_pixels=self._options.analysis.max_pixels)
        finish_photo_writes(self._job, self._naming.gallery)
        return failed

    def _threads(self, tasks: Iterable[PhotoTask]) -> PhotoEngine:
        return Engine(self._analyzer, tasks, self._options.engine)


def analysis_settings(pipeline: FacePipeline, options: AnalysisOptions) -> dict[str, Any]:
    """Return what the analysis of a photo depends on; names and thresholds come later and may change."""
    detector_options = asdict(pipeline.detector.options)
    if detector_options["focus"]:
        del detector_options["focus"]  # jobs of earlier versions, and of weights without a focus map, go on
    return {
        "detector": f"{pipeline.detector.card.name} {pipeline.detector.card.fingerprint[:12]}",
        "encoder": f"{pipeline.encoder.card.name} {pipeline.encoder.card.fingerprint[:12]}",
        "detector options": detector_options,
        "rules": asdict(options.rules),
        "reduced decoding": options.reduce,
    }


@contextmanager
def _untold(folder: Path) -> Iterator[None]:
    """Tell other processes in the end that no batch is at work."""
    try:
        yield
    finally:
        remove_progress(folder)


class _Saver:
    """Gathers outcomes, names their faces together and saves them; the last ones also when interrupted.

    Attributes:
        tally: What was saved: photos done and failed, faces, known ones.
    """

    def __init__(self, job: Job, naming: Naming, naming_key: str) -> None:
        self._job, self._naming, self._naming_key = job, naming, naming_key
        self._gathered: list[Outcome] = []
        self._saved_at = time.monotonic()
        self.tally = Counter[str]()

    def __enter__(self) -> _Saver:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()

    def add(self, outcome: Outcome) -> bool:
        """Return whether anything was written."""
        self._gathered.append(outcome)
        count, waited_s = len(self._gathered), time.monotonic() - self._saved_at
        due = waited_s > (_SOON_S if count >= _FEW_PHOTOS else _LATE_S) or count >= _MANY_PHOTOS
        if due:
            self.save()
        return due

    def save(self) -> None:
        """Write what was gathered."""
        analyses = [outcome for outcome in self._gathered if isinstance(outcome, PhotoAnalysis)]
        failures = [outcome for outcome in self._gathered if isinstance(outcome, FailedPhoto)]
        faces = [(analysis.faces, analysis.reasons) for analysis in analyses]
        matches = [
            own
            for at in range(0, len(faces), _NAMED_TOGETHER)
            for own in self._naming(faces[at : at + _NAMED_TOGETHER])
        ]
        named = [
            replace(analysis, faces=analysis.faces.with_matches(own))
            for analysis, own in zip(analyses, matches, strict=True)
        ]
        self._job.save([*failures, *named], self._naming_key)
        self.tally["failed"] += len(failures)
        self.tally["done"] += len(named)
        self.tally["faces"] += sum(len(own) for own in matches)
        self.tally["known"] += sum(known_count(own) for own in matches)
        self._gathered, self._saved_at = [], time.monotonic()


def _progress(before: Counts, tally: Counter[str], elapsed_s: float) -> BatchProgress:
    return BatchProgress(
        total=before.total,
        done=before.done + tally["done"],
        failed=before.failed + tally["failed"],
        faces=before.faces + tally["faces"],
        known=before.known + tally["known"],
        here=tally["done"] + tally["failed"],
        elapsed_s=elapsed_s,
    )
