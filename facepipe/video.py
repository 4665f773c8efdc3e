"""Videos and webcams: faces in sampled frames, linked into tracks, each named once by its best faces."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from facepipe.draw import draw_faces
from facepipe.errors import OutputError, PhotoError, UsageError
from facepipe.faces import Faces, FloatArray, Match, UInt8Array
from facepipe.files import temporary_beside
from facepipe.pipeline import FacePipeline, rows_to_compare
from facepipe.quality import NamingRules
from facepipe.retinaface.suppression import iou

_BEST_FACES = 5
"""A track is named by the mean vector of so many of its largest faces."""
_NOT_LINKED = 1e6


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """How a video is looked at.

    Attributes:
        every_s: Seconds between the frames that are looked at.
        lost_after_s: A face not seen for so long begins a new track when it comes back.
        least_iou: A box that overlaps a track's last one by this much goes on with it.
        same_within_l2: So does one whose vector is within this Euclidean distance of the track's last one.
        rules: Which faces are compared.
        threshold_l2: Largest distance at which a track is named; None: the gallery's.
    """

    every_s: float = 0.2
    lost_after_s: float = 1.0
    least_iou: float = 0.3
    same_within_l2: float = 0.8
    rules: NamingRules = field(default_factory=NamingRules)
    threshold_l2: float | None = None

    def __post_init__(self) -> None:
        if self.every_s <= 0 or self.lost_after_s < 0:
            raise UsageError(f"expected seconds above 0 between frames, got {self.every_s}")


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a video: its time from the beginning, and RGB uint8 (h, w, 3)."""

    time_s: float
    rgb: UInt8Array


@dataclass(frozen=True, slots=True)
class Sighting:
    """One face in one frame; `vector` is None where it was not good enough to be compared."""

    time_s: float
    face: Faces
    vector: FloatArray | None


@dataclass(frozen=True, slots=True)
class Track:
    """One face through consecutive frames, and who it is."""

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
        """The face at a time between first and last: the box moves evenly from one sighting to the next."""
        if not self.first_s <= time_s <= self.last_s:
            return None
        times = np.array([sighting.time_s for sighting in self.sightings])
        after = int(np.searchsorted(times, time_s))
        later, earlier = self.sightings[after], self.sightings[max(0, after - 1)]
        share = np.float32(
            1 if later is earlier else (time_s - earlier.time_s) / (later.time_s - earlier.time_s)
        )
        return Faces(
            earlier.face.boxes_xyxy * (1 - share) + later.face.boxes_xyxy * share,
            later.face.scores,
            earlier.face.landmarks * (1 - share) + later.face.landmarks * share,
            matches=(self.match,),
        )


def read_frames(source: str | int, every_s: float = 0.0, *, for_s: float | None = None) -> Iterator[Frame]:
    """The frames of a video file, or of a webcam by its number, at least `every_s` seconds apart.

    Args:
        source: A file's path, or a webcam's number.
        every_s: 0: all frames.
        for_s: Stop after so many seconds; None: at the end of the file, for webcams never.

    Raises:
        PhotoError: It can't be opened, or holds no frame.
    """
    capture = cv2.VideoCapture(source)
    try:
        found, due_s = False, 0.0
        for time_s in _grabbed(capture, is_file=isinstance(source, str)):
            if for_s is not None and time_s > for_s:
                break
            if time_s + 1e-6 < due_s:
                continue
            readable, bgr = capture.retrieve()
            if readable:
                found, due_s = True, due_s + every_s if every_s else 0.0
                yield Frame(time_s, np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8))
        if not found:
            kind = "no video that can be read" if isinstance(source, str) else "no webcam of this number"
            raise PhotoError(f"{source}: {kind}; try another")
    finally:
        capture.release()


def _grabbed(capture: Any, is_file: bool) -> Iterator[float]:
    """The time of each frame, which is not decoded yet."""
    start = time.monotonic()
    frames_per_s = capture.get(cv2.CAP_PROP_FPS) or 25.0
    number = 0
    while capture.grab():
        yield number / frames_per_s if is_file else time.monotonic() - start
        number += 1


def find_tracks(
    pipeline: FacePipeline, frames: Iterable[Frame], options: VideoOptions | None = None
) -> list[Track]:
    """Who is in a video, and when; tracks in the order of their beginnings.

    Args:
        pipeline: With a gallery.
        frames: In the order of time.
        options: See `VideoOptions`.
    """
    options = options or VideoOptions()
    tracks: list[list[Sighting]] = []
    for frame in frames:
        link(tracks, _sightings(pipeline, frame, options), options)
    return name_tracks(pipeline, tracks, options)


def _sightings(pipeline: FacePipeline, frame: Frame, options: VideoOptions) -> list[Sighting]:
    faces = pipeline.detect(frame.rgb)
    faces, reasons, crops = pipeline.crops_to_compare(frame.rgb, faces, options.rules)
    vectors = dict(zip(rows_to_compare(reasons).tolist(), pipeline.encoder.encode(crops), strict=True))
    return [Sighting(frame.time_s, faces.select([row]), vectors.get(row)) for row in range(len(faces))]


def link(tracks: list[list[Sighting]], seen: Sequence[Sighting], options: VideoOptions) -> None:
    """Add the faces of one frame to the tracks they go on with; the others begin new ones.

    Each track goes on with one face at most, so that the sum of the costs is least. A pair costs 1 - IoU, or
    its vectors' share of the distance allowed, whichever is less.
    """
    from scipy.optimize import linear_sum_assignment

    now_s = seen[0].time_s if seen else 0.0
    alive = [track for track in tracks if now_s - track[-1].time_s <= options.lost_after_s]
    costs = np.array([[_cost(track, face, options) for face in seen] for track in alive])
    linked = set()
    if costs.size:
        for row, column in zip(*linear_sum_assignment(costs), strict=True):
            if costs[row, column] < _NOT_LINKED:
                alive[row].append(seen[column])
                linked.add(int(column))
    tracks.extend([face] for column, face in enumerate(seen) if column not in linked)


def _cost(track: Sequence[Sighting], seen: Sighting, options: VideoOptions) -> float:
    costs = [_NOT_LINKED]
    overlap = float(iou(track[-1].face.boxes_xyxy[0], seen.face.boxes_xyxy)[0])
    if overlap >= options.least_iou:
        costs.append(1 - overlap)
    before = next((sighting.vector for sighting in reversed(track) if sighting.vector is not None), None)
    if before is not None and seen.vector is not None:
        distance_l2 = float(np.linalg.norm(before - seen.vector))
        if distance_l2 > 2 * options.same_within_l2 and len(costs) == 1:
            return _NOT_LINKED
        if distance_l2 <= options.same_within_l2:
            costs.append(distance_l2 / options.same_within_l2)
    return min(costs)


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
    good = [(sighting.face, sighting.vector) for sighting in track if sighting.vector is not None]
    if not good:
        threshold_l2 = pipeline.threshold_l2(options.threshold_l2)
        return Match(None, None, threshold_l2, reason="never_good_enough")
    best = sorted(good, key=lambda pair: -float(pair[0].sizes_px[0]))[:_BEST_FACES]
    total = np.sum([vector for _, vector in best], axis=0)
    face = best[0][0].with_embeddings((total / np.linalg.norm(total))[None].astype(np.float32))
    margin = options.rules.min_margin_l2
    return pipeline.name(face, [None], threshold_l2=options.threshold_l2, min_margin_l2=margin)[0]


def track_record(number: int, track: Track) -> dict[str, Any]:
    """A track for JSON Lines: who, from when to when, and every sighting."""
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
        yield json.dumps(track_record(number, track), ensure_ascii=False)


def timeline_rows(tracks: Sequence[Track]) -> Iterator[list[Any]]:
    """One row a track, in the order of `TIMELINE_COLUMNS`."""
    for number, track in enumerate(tracks):
        record = track_record(number, track)
        yield ["" if record[column] is None else record[column] for column in TIMELINE_COLUMNS]


def write_annotated(
    source: str, target: Path, tracks: Sequence[Track], on_frame: Callable[[float], None] | None = None
) -> None:
    """Write the video again (MPEG-4, without sound) with faces and names drawn into every frame.

    The file appears whole or not at all.

    Raises:
        OutputError: It can't be written.
    """
    partial = temporary_beside(target, target.suffix)  # the suffix selects the container
    writer = None
    try:
        for frame in read_frames(source):
            if writer is None:
                writer = _writer(source, partial, frame.rgb.shape[1::-1])
            faces = [face for track in tracks if (face := track.at(frame.time_s)) is not None]
            drawn = draw_faces(frame.rgb, _together(faces)) if faces else frame.rgb
            writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
            if on_frame is not None:
                on_frame(frame.time_s)
        if writer is not None:
            writer.release()
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _together(faces: Sequence[Faces]) -> Faces:
    return Faces(
        np.concatenate([face.boxes_xyxy for face in faces]),
        np.concatenate([face.scores for face in faces]),
        np.concatenate([face.landmarks for face in faces]),
        matches=tuple(match for face in faces for match in face.matches or ()),
    )


def _writer(source: str, target: Path, size_wh: tuple[int, int]) -> cv2.VideoWriter:
    frames_per_s = cv2.VideoCapture(source).get(cv2.CAP_PROP_FPS) or 25.0
    writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), frames_per_s, size_wh)
    if not writer.isOpened():
        raise OutputError(f"{target}: can't write a video there; choose a name that ends in .mp4")
    return writer
