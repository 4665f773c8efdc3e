"""What the tests of `facepipe.library` share: a batch of made-up people, and its gallery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pipeline_helpers import faces_at

from facepipe.batch.groups import update_groups
from facepipe.batch.job import Job
from facepipe.batch.models import PhotoAnalysis
from facepipe.batch.naming import options_to_dict
from facepipe.core.faces import Faces, FloatArray, Match
from facepipe.gallery import Gallery
from facepipe.images.reading import photo_sha256
from facepipe.library.library import Library
from facepipe.pipeline import NamingOptions, card_identity
from facepipe.weights.registry import DEFAULT_ENCODER, load_card

DIMENSIONS = 128
SPREAD = 0.35
"""Length of the noise added to a person's vector: two faces of one person are some 0.5 apart, people 1.4."""
BOX_PX, GAP_PX = 90, 10
NOBODY = Match(None, None, 1.0, reason="nobody_near")


def vectors_of(person: str, count: int) -> FloatArray:
    """float32 (count, 128), unit length: a made-up person's faces, the same at every call."""
    random = np.random.default_rng(list(person.encode()))
    middle = _unit(random.normal(size=DIMENSIONS))
    noise = np.array([SPREAD * _unit(random.normal(size=DIMENSIONS)) for _ in range(count)])
    vectors = middle + noise
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _unit(
    vector: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.asarray(vector / np.linalg.norm(vector))


def make_batch(folder: Path, photos: Mapping[str, Sequence[str]], secret: bytes | None = None) -> Path:
    """A batch of photos named `NAME.png`, with these people in them from left to right; answers its folder.

    The gallery beside it is empty: nobody has a name yet.
    """
    pictures, out, gallery = folder / "photos", folder / "out", folder / "gallery"
    pictures.mkdir(parents=True)
    Gallery.open(gallery, card_identity(load_card(DEFAULT_ENCODER).card), create=True, secret=secret).close()
    paths = [
        _write(pictures / f"{name}.png", number, len(people))
        for number, (name, people) in enumerate(photos.items())
    ]
    with Job(out, create=True, secret=secret) as job:
        if secret is not None:
            job.require_encryption()
        job.require_settings({"detector options": {"max_side": 1280}}, again=False)
        job.remember_naming(gallery, options_to_dict(NamingOptions()))
        job.plan(paths)
        analyze(job, photos)
        update_groups(job, 0.9)
    return out


def analyze(job: Job, photos: Mapping[str, Sequence[str]], shift_px: float = 0.0) -> None:
    """Save what the networks would find in the photos that wait; `shift_px` moves the boxes."""
    numbered = _numbered(photos)
    for task in job.waiting():
        name = task.path.stem
        faces = _faces(numbered[name], shift_px)
        analysis = PhotoAnalysis(
            task,
            photo_sha256(task.path),
            Image.open(task.path).size,
            faces,
            reasons=(None,) * len(faces),
            pictures={-1: b"preview", **{row: f"{name} {row}".encode() for row in range(len(faces))}},
            taken_at="2024-05-01T12:00:00",
        )
        job.save([analysis], "names")


def _numbered(photos: Mapping[str, Sequence[str]]) -> dict[str, list[tuple[str, int]]]:
    """By photo, its people, each with the number of their faces in the photos before."""
    seen, numbered = Counter[str](), dict[str, list[tuple[str, int]]]()
    for name, people in photos.items():
        numbered[name] = [(person, seen[person]) for person in people]
        seen.update(people)
    return numbered


def _faces(people: Sequence[tuple[str, int]], shift_px: float) -> Faces:
    step = BOX_PX + GAP_PX
    places = [(row * step + shift_px, 5, row * step + BOX_PX + shift_px, 95) for row in range(len(people))]
    faces = faces_at(*places) if places else Faces.empty()
    vectors = [vectors_of(person, number + 1)[number] for person, number in people]
    faces = faces.with_embeddings(np.array(vectors, np.float32).reshape(-1, DIMENSIONS))
    faces = faces.with_enrollable(np.ones(len(people), np.bool_))
    return faces.with_matches([NOBODY] * len(people))


def _write(path: Path, number: int, faces: int) -> Path:
    width = max(faces, 1) * (BOX_PX + GAP_PX)
    Image.new("RGB", (width, 100), (number % 256, number // 256, 99)).save(path)
    return path


def face_of(library: Library, photo: str, row: int = 0) -> str:
    """Id of a face by the name of its photo."""
    return next(
        face.id
        for face in library.faces.values()
        if library.photos[face.photo_id].path.stem == photo and face.row == row
    )


def names_in(library: Library) -> dict[str, list[str | None]]:
    """The names of all faces, by photo."""
    found: dict[str, list[str | None]] = {}
    for face in library.faces.values():
        found.setdefault(library.photos[face.photo_id].path.stem, []).append(face.name)
    return found
