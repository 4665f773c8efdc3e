"""Faces of a video linked into tracks, each named once by its best faces, and the timeline of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from facepipe.core.boxes import iou
from facepipe.core.errors import UsageError
from facepipe.core.faces import Faces, FloatArray, Match, UInt8Array
from facepipe.core.json_lines import record_to_json
from facepipe.pipeline import FacePipeline, NamingOptions
from facepipe.quality import accepted_rows, assess
from facepipe.quality_rules import NamingRules

_BEST_FACES = 5
"""A track is named by the mean embedding of so many of its largest faces."""
_FORBIDDEN = 1e6
_UNKNOWN_DISTANCE = 1.0
"""Distance of a pair without two embeddings, as a share of the largest that one person has."""
_DISTANCE_WEIGHT = 2.0
"""How much a distance of 1 costs beside an overlap of 0: embeddings separate people better than places."""
_THUMBNAIL_PX = 8
_MIN_LIKENESS = 0.75
"""Lowest correlation of successive thumbnails of one shot. At 8 x 8 pixels 99% of pairs of different press
photos lie below, and 99% of photos beside themselves moved by 5% of their width above."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a video: its time from the beginning, and RGB uint8 (h, w, 3), upright."""

    time_s: float
    rgb: UInt8Array


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """How a video is analyzed.

    Attributes:
        every_s: Seconds between the frames that are analyzed.
        lost_after_s: A face that is missing in analyzed frames for longer begins a new track afterwards.
        min_iou: Lowest overlap of a face's box with the last one of its track, where the place is to count.
        jump_share: A face at another place, or in another shot, goes on with a track where their embeddings
            are within this share of the largest distance of one person, the encoder's threshold.
        rules: Which faces are compared.
        naming: How tracks are named.
    """

    every_s: float = 0.2
    lost_after_s: float = 1.0
    min_iou: float = 0.3
    jump_share: float = 0.75
    rules: NamingRules = field(default_factory=NamingRules)
    naming: NamingOptions = field(default_factory=NamingOptions)

    def __post_init__(self) -> None:
        if not self.every_s > 0 or not self.lost_after_s >= 0:
            raise UsageError(f"expected seconds above 0 between frames, got {self.every_s}")


@dataclass(frozen=True, slots=True)
class Sighting:
    """One face in one frame.

    Attributes:
        time_s: Of the frame.
        face: One row.
        embedding: float32 (d,), unit length; None where the face was not good enough to be compared.
        shot: Number of the shot that the frame belongs to.
    """

    time_s: float
    face: Faces
    embedding: FloatArray | None
    shot: int = 0


@dataclass(frozen=True, slots=True)
class Track:
    """One face through successive frames, and who it is."""

    sightings: tuple[Sighting, ...]
    match: Match

    @property
    def first_s(self) -> float:
        """When it was first seen."""
        return self.sightings[0].time_s

    @property
    def last_s(self) -> float:
        """When it was last seen."""
        return self.sightings[-1].time_s

    def at(self, time_s: float) -> Faces | None:
        """The face at a time between first and last: the box moves evenly from one sighting to the next.

        None outside that time, and between two shots: where the one ended is not known.
        """
        if not self.first_s <= time_s <= self.last_s:
            return None
        times = np.array([sighting.time_s for sighting in self.sightings])
        after = int(np.searchsorted(times, time_s))
        later, earlier = self.sightings[after], self.sightings[max(0, after - 1)]
        if later.time_s == time_s:
            return later.face.with_matches([self.match])
        if later.shot != earlier.shot:
            return None
        share = np.float32((time_s - earlier.time_s) / (later.time_s - earlier.time_s))
        return Faces(
            earlier.face.boxes_xyxy * (1 - share) + later.face.boxes_xyxy * share,
            later.face.scores,
            earlier.face.landmarks * (1 - share) + later.face.landmarks * share,
            matches=(self.match,),
        )


class Linker:
    """Links the faces of successive frames into tracks.

    Two embeddings farther apart than one person's are never neighbours in a track, wherever the boxes are and
    however many faces without one stand between them. An embedding is compared with the track's last and
    with the mean of all, so that a dissolve from one portrait to the next is no bridge either.

    Args:
        options: Place, shots and time.
        one_person_l2: Largest Euclidean distance of one person's embeddings.
    """

    def __init__(self, options: VideoOptions, one_person_l2: float) -> None:
        self._options, self._one_person_l2 = options, one_person_l2
        self._tracks: list[_OpenTrack] = []
        self._alive: list[_OpenTrack] = []
        self._previous_s = 0.0

    @property
    def tracks(self) -> list[tuple[Sighting, ...]]:
        """In the order of their beginnings; every face that was added is in one."""
        return [tuple(track.sightings) for track in self._tracks]

    def add(self, time_s: float, seen: Sequence[Sighting]) -> None:
        """Add the faces of the next frame to the tracks they go on with; the others begin new ones.

        Each track goes on with one face at most, so that the sum of the costs is least. To be called for
        frames without faces too.
        """
        from scipy.optimize import linear_sum_assignment

        alive = [track for track in self._alive if self._is_alive(track, time_s)]
        costs = np.array([[self._cost(track, face) for face in seen] for track in alive])
        linked = set()
        if costs.size:
            for row, column in zip(*linear_sum_assignment(costs), strict=True):
                if costs[row, column] < _FORBIDDEN:
                    alive[row].add(seen[column])
                    linked.add(int(column))
        new = [_OpenTrack(face) for column, face in enumerate(seen) if column not in linked]
        self._tracks.extend(new)
        self._alive, self._previous_s = alive + new, time_s

    def _is_alive(self, track: _OpenTrack, now_s: float) -> bool:
        last_s = track.sightings[-1].time_s
        return last_s >= self._previous_s or now_s - last_s <= self._options.lost_after_s

    def _cost(self, track: _OpenTrack, seen: Sighting) -> float:
        last, overlap = track.sightings[-1], 0.0
        if last.shot == seen.shot:
            overlap = float(iou(last.face.boxes_xyxy[0], seen.face.boxes_xyxy)[0])
        in_place = overlap >= self._options.min_iou
        distance_l2 = track.distance_l2(seen.embedding)
        if distance_l2 is None:
            share, allowed = _UNKNOWN_DISTANCE, in_place
        else:
            share = distance_l2 / self._one_person_l2
            allowed = share <= (1.0 if in_place else self._options.jump_share)
        return _DISTANCE_WEIGHT * share + 1 - overlap if allowed else _FORBIDDEN


class _OpenTrack:
    """A track that may go on."""

    def __init__(self, first: Sighting) -> None:
        self.sightings: list[Sighting] = []
        self._last: FloatArray | None = None
        self._total: npt.NDArray[np.float64] | None = None
        self.add(first)

    def add(self, seen: Sighting) -> None:
        self.sightings.append(seen)
        if seen.embedding is not None:
            before = 0.0 if self._total is None else self._total
            self._last, self._total = seen.embedding, before + seen.embedding.astype(np.float64)

    def distance_l2(self, embedding: FloatArray | None) -> float | None:
        """To the last embedding, or to the mean direction of all, whichever is farther; None: not known."""
        if embedding is None or self._last is None or self._total is None:
            return None
        mean = self._total / max(float(np.linalg.norm(self._total)), 1e-9)
        return max(float(np.linalg.norm(other - embedding)) for other in (self._last, mean))


class ShotCounter:
    """Numbers the shots of a video: a new one begins where a frame hardly resembles the one before."""

    def __init__(self) -> None:
        self._number = 0
        self._before: npt.NDArray[np.float32] | None = None

    def number(self, rgb: UInt8Array) -> int:
        """Return the shot of the next frame, RGB uint8 (h, w, 3)."""
        size_wh = (_THUMBNAIL_PX, _THUMBNAIL_PX)
        values = cv2.resize(rgb, size_wh, interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
        values -= values.mean()
        if self._before is not None and _likeness(self._before, values) < _MIN_LIKENESS:
            self._number += 1
        self._before = values
        return self._number


def _likeness(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Correlation, -1..1, of values with a mean of 0; 1 where both are of one colour."""
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norms if norms else float(np.array_equal(first, second))


class Tracker:
    """Finds who is in a video, and when, frame by frame; the tracks so far are there at any time.

    Args:
        pipeline: With a gallery.
        options: See `VideoOptions`.

    Raises:
        UsageError: Faces can't be named; see `FacePipeline.threshold_l2`.
    """

    def __init__(self, pipeline: FacePipeline, options: VideoOptions | None = None) -> None:
        self._pipeline, self._options = pipeline, options or VideoOptions()
        threshold_l2 = pipeline.threshold_l2(self._options.naming.threshold_l2)
        one_person_l2 = pipeline.encoder.embedding.threshold_l2 or threshold_l2
        self._linker, self._shots = Linker(self._options, one_person_l2), ShotCounter()

    def add(self, frame: Frame) -> None:
        """Find the faces of the next frame and link them."""
        encoder, shot = self._pipeline.encoder, self._shots.number(frame.rgb)
        faces = self._pipeline.detect(frame.rgb)
        assessment = assess(frame.rgb, faces, self._options.rules, crop=encoder.crop)
        faces = faces.with_enrollable(assessment.enrollable)
        rows = accepted_rows(assessment.reasons).tolist()
        embeddings = dict(zip(rows, encoder.encode(assessment.crops), strict=True))
        found = [
            Sighting(frame.time_s, faces.select([row]), embeddings.get(row), shot)
            for row in range(len(faces))
        ]
        self._linker.add(frame.time_s, found)

    def tracks(self) -> list[Track]:
        """Return the tracks so far, named, in the order of their beginnings."""
        return name_tracks(self._pipeline, self._linker.tracks, self._options)


def find_tracks(
    pipeline: FacePipeline, frames: Iterable[Frame], options: VideoOptions | None = None
) -> list[Track]:
    """Who is in a video, and when; tracks in the order of their beginnings.

    Args:
        pipeline: With a gallery.
        frames: In the order of time.
        options: See `VideoOptions`.
    """
    tracker = Tracker(pipeline, options)
    for frame in frames:
        tracker.add(frame)
    return tracker.tracks()


def name_tracks(
    pipeline: FacePipeline, tracks: Sequence[Sequence[Sighting]], options: VideoOptions
) -> list[Track]:
    """Ask the gallery once about each track. Of two tracks at the same time, one at most is a person."""
    named = [Track(tuple(track), _match(pipeline, track, options)) for track in tracks]
    by_distance = sorted(named, key=lambda track: (track.match.name is None, track.match.distance_l2 or 0.0))
    kept: list[Track] = []
    for track in by_distance:
        rivals = (other for other in kept if other.match.name == track.match.name is not None)
        taken = any(track.first_s <= other.last_s and other.first_s <= track.last_s for other in rivals)
        kept.append(replace(track, match=replace(track.match, name=None, reason="taken")) if taken else track)
    return sorted(kept, key=lambda track: track.first_s)


def _match(pipeline: FacePipeline, track: Sequence[Sighting], options: VideoOptions) -> Match:
    good = [(sighting.face, sighting.embedding) for sighting in track if sighting.embedding is not None]
    if not good:
        threshold_l2 = pipeline.threshold_l2(options.naming.threshold_l2)
        return Match(None, None, threshold_l2, reason="never_good_enough")
    best = sorted(good, key=lambda pair: -float(pair[0].sizes_px[0]))[:_BEST_FACES]
    total = np.sum([embedding for _, embedding in best], axis=0)
    face = best[0][0].with_embeddings((total / np.linalg.norm(total))[None].astype(np.float32))
    return pipeline.name(face, [None], options.naming)[0]


def track_record(number: int, track: Track) -> dict[str, Any]:
    """Return a track for JSON Lines: who, from when to when, and every sighting."""
    match = track.match
    return {
        "track": number,
        "name": match.name,
        "status": match.status.value,
        "candidate": match.candidate_name,
        "reason": match.reason,
        "distance_l2": None if match.distance_l2 is None else round(match.distance_l2, 4),
        "first_s": round(track.first_s, 3),
        "last_s": round(track.last_s, 3),
        "sightings": [
            {
                "time_s": round(sighting.time_s, 3),
                "box_xyxy": [round(side, 2) for side in sighting.face.boxes_xyxy[0].tolist()],
                "score": round(float(sighting.face.scores[0]), 4),
            }
            for sighting in track.sightings
        ],
    }


TIMELINE_COLUMNS = ("track", "name", "status", "candidate", "reason", "distance_l2", "first_s", "last_s")


def timeline_json(tracks: Sequence[Track]) -> Iterator[str]:
    """One line a track."""
    for number, track in enumerate(tracks):
        yield record_to_json(track_record(number, track))


def timeline_rows(tracks: Sequence[Track]) -> Iterator[list[Any]]:
    """One row a track, in the order of `TIMELINE_COLUMNS`."""
    for number, track in enumerate(tracks):
        record = track_record(number, track)
        yield ["" if record[column] is None else record[column] for column in TIMELINE_COLUMNS]
