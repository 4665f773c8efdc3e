"""Groups of a job's unknown faces, with numbers that stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from facepipe.batch.job import Job
from facepipe.core.faces import FloatArray
from facepipe.gallery.clustering import group_faces


@dataclass(frozen=True, slots=True, eq=False)
class FacesToGroup:
    """Unknown faces, each once.

    Attributes:
        ids: n.
        photos: n content hashes.
        embeddings: float32 (n, d).
    """

    ids: Sequence[str]
    photos: Sequence[str]
    embeddings: FloatArray

    def found_groups(self, max_distance_l2: float) -> list[list[str]]:
        """Find the groups of two and more faces; see `facepipe.gallery.clustering.group_faces`.

        Takes seconds for 10,000s of faces, and needs nothing but them: any thread can do it.
        """
        if not self.ids:
            return []
        members: dict[int, list[str]] = {}
        labels = group_faces(self.embeddings, self.photos, max_distance_l2)
        for id, label in zip(self.ids, labels.tolist(), strict=True):
            members.setdefault(label, []).append(id)
        return [ids for ids in members.values() if len(ids) > 1]


def update_groups(job: Job, max_distance_l2: float) -> dict[str, int]:
    """Group the unknown faces of a job anew, and remember the groups.

    Args:
        job: The results.
        max_distance_l2: See `facepipe.gallery.clustering.group_faces`.

    Returns:
        The number of its group, from 1, by face id; faces without company have none.
    """
    faces = list({face.face_id: face for face in job.faces.unknown_faces()}.values())  # copies share them
    embeddings = np.stack([face.embedding for face in faces]) if faces else np.zeros((0, 0), np.float32)
    found = FacesToGroup([face.face_id for face in faces], [face.photo_sha256 for face in faces], embeddings)
    return remember_groups(job, found.found_groups(max_distance_l2))


def remember_groups(job: Job, groups: Sequence[Sequence[str]]) -> dict[str, int]:
    """Remember groups of faces; returns the number of its group, from 1, by face id.

    A group keeps the number that most of its faces have; new groups get the next ones, the largest first.
    """
    numbers = numbered(groups, job.groups.read())
    job.groups.write(numbers)
    return numbers


def numbered(groups: Sequence[Sequence[str]], before: Mapping[str, int]) -> dict[str, int]:
    """Return numbers of groups by face id: those of before, where a group has most of its faces."""
    claims = [
        (count, -number, index)
        for index, ids in enumerate(groups)
        for number, count in Counter(before[id] for id in ids if id in before).items()
    ]
    given: dict[int, int] = {}
    taken = set[int]()
    for _, negative, index in sorted(claims, reverse=True):
        if index not in given and -negative not in taken:
            given[index] = -negative
            taken.add(-negative)
    following = max([0, *before.values()]) + 1
    for index in sorted(range(len(groups)), key=lambda index: -len(groups[index])):
        if index not in given:
            given[index], following = following, following + 1
    return {id: given[index] for index, ids in enumerate(groups) for id in ids}
