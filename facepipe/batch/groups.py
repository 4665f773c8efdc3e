"""Groups of a job's unknown faces, with numbers that stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from facepipe.batch.job import Job
from facepipe.gallery.clustering import group_faces


def update_groups(job: Job, max_distance_l2: float) -> dict[str, int]:
    """Group the unknown faces of a job anew, and remember the groups.

    A group keeps the number that most of its faces have; new groups get the next ones, the largest first.

    Args:
        job: The results.
        max_distance_l2: See `facepipe.gallery.clustering.group_faces`.

    Returns:
        The number of its group, from 1, by face id; faces without company have none.
    """
    faces = list({face.face_id: face for face in job.faces.unknown_faces()}.values())  # copies share them
    groups: list[list[str]] = []
    if faces:
        embeddings = np.stack([face.embedding for face in faces])
        labels = group_faces(embeddings, [face.photo_sha256 for face in faces], max_distance_l2)
        members: dict[int, list[str]] = {}
        for face, label in zip(faces, labels.tolist(), strict=True):
            members.setdefault(label, []).append(face.face_id)
        groups = [ids for ids in members.values() if len(ids) > 1]
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
    for _, negative, index in sorted(claims, reverse=True):
        if index not in given and -negative not in given.values():
            given[index] = -negative
    following = max([0, *before.values()]) + 1
    for index in sorted(range(len(groups)), key=lambda index: -len(groups[index])):
        if index not in given:
            given[index], following = following, following + 1
    return {id: given[index] for index, ids in enumerate(groups) for id in ids}
