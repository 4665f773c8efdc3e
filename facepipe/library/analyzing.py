"""Photos that wait to be analyzed: by a library that is open, while people name the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from facepipe.batch.analysis import AnalysisOptions, PhotoAnalyzer
from facepipe.batch.engine import Engine, Outcome
from facepipe.batch.models import FailedPhoto, PhotoTask
from facepipe.batch.output_files import own_files
from facepipe.batch.run import analysis_settings
from facepipe.core.errors import FacepipeError, UsageError
from facepipe.detector import DetectorOptions
from facepipe.images.finding import find_photos, real_paths
from facepipe.library.undoing import UndoingMixin
from facepipe.pipeline import FacePipeline
from facepipe.quality_rules import NamingRules

_SAVE_PHOTOS, _SAVE_S = 16, 0.5


@dataclass(frozen=True, slots=True)
class PhotoCounts:
    """Photos of the last batch by state."""

    waiting: int
    done: int
    failed: int


class AnalyzingMixin(UndoingMixin):
    """Photos that a batch has left, because it was interrupted or a person was erased from them."""

    def photo_counts(self) -> PhotoCounts:
        """Count the photos of the last batch."""
        counts = self._job.counts()
        return PhotoCounts(counts.waiting, counts.done, counts.failed)

    def waiting_photos(self) -> list[PhotoTask]:
        """Return the photos that wait to be analyzed."""
        return self._job.waiting()

    def add_folder(self, folder: str) -> int:
        """Take the photos of a folder and the folders in it, in addition to those of the batch.

        Args:
            folder: Its whole path, or one that begins with `~`.

        Returns:
            How many photos are new; they wait to be analyzed.

        Raises:
            UsageError: There is no such folder, or no photo in it, or it was not given as a whole.
        """
        self._job.require_writable()
        path = Path(folder).expanduser()
        if not path.is_absolute():
            raise UsageError(f"{folder}: expected the whole path of a folder, such as {Path.home()}/Pictures")
        if not path.is_dir():
            raise UsageError(f"{folder}: there is no such folder (is its disk mounted?)")
        found = find_photos([str(path)], exclude=own_files(self.folder, [path]))
        known = set(real_paths(self._job.photos()))
        new = [photo for photo, real in zip(found, real_paths(found), strict=True) if real not in known]
        self._job.plan_more(new)
        return len(new)

    def load_analyzer(self) -> PhotoAnalyzer:
        """Load the networks, with the weights and options that the batch was begun with.

        Raises:
            WeightsError: A weight is not installed.
            UsageError: One is not the same any more.
        """
        self._job.require_writable()
        detector, encoder = (str(self._job.setting(key)).split(" ")[0] for key in ("detector", "encoder"))
        pipeline = FacePipeline.load(
            detector_weights=detector,
            encoder_weights=encoder,
            options=_options(DetectorOptions, self._job.setting("detector options")),
        )
        rules, reduce = self._job.setting("rules"), self._job.setting("reduced decoding")
        options = AnalysisOptions(rules=_options(NamingRules, rules), reduce=bool(reduce))
        self._job.require_settings(analysis_settings(pipeline, options), again=False)
        return PhotoAnalyzer(pipeline, options)

    def save_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Keep what became of photos, with the names of their faces, and show them."""
        self._naming.refresh()
        self._job.save([self._named(outcome) for outcome in outcomes], self._naming.key)
        for outcome in outcomes:
            self._reload_photo(outcome.task.id)
        self._due_photos |= dict.fromkeys(self._job.faces.due_for_naming())

    def _named(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, FailedPhoto):
            return outcome
        (matches,) = self._naming([(outcome.faces, outcome.reasons)])
        return replace(outcome, faces=outcome.faces.with_matches(matches))


def _options(kind: Callable[..., Any], values: Any) -> Any:
    return kind(**values) if isinstance(values, dict) else kind()


class LiveAnalysis:
    """Analyzes the photos that wait, in threads of its own; what is found goes to whoever has the library.

    Args:
        tasks: The photos.
        analyzer: Of `AnalyzingMixin.load_analyzer`.
        save: Keeps outcomes; called in a thread of this object, and may wait.
    """

    def __init__(
        self, tasks: Sequence[PhotoTask], analyzer: PhotoAnalyzer, save: Callable[[Sequence[Outcome]], None]
    ) -> None:
        self._tasks, self._analyzer, self._save = tasks, analyzer, save
        self._stopping = threading.Event()
        self._error: str | None = None
        self._thread = threading.Thread(target=self._work, name="analysis", daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether there is work left to do, and it was not stopped."""
        return self._thread.is_alive()

    @property
    def error(self) -> str | None:
        """Why it ended before its time; None: it did not."""
        return self._error

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def stop(self) -> None:
        """End as soon as what was found is kept; photos that are under way are analyzed again later."""
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        gathered: list[Outcome] = []
        try:
            with closing(Engine(self._analyzer, self._tasks).outcomes()) as outcomes:
                saved_at = time.monotonic()
                for outcome in outcomes:
                    gathered.append(outcome)
                    if len(gathered) >= _SAVE_PHOTOS or time.monotonic() - saved_at > _SAVE_S:
                        self._save(gathered)
                        gathered, saved_at = [], time.monotonic()
                    if self._stopping.is_set():
                        break
            if gathered:
                self._save(gathered)
        except (FacepipeError, OSError) as error:
            self._error = str(error)
