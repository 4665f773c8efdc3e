"""What all cases share, made when it is first wanted: photos, a gallery, results of a batch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from batch_helpers import NAME, write_archive
from gallery_helpers import person_vectors, template
from PIL import Image

from attacks.processes import Work, as_command, start
from facepipe.core.faces import UInt8Array
from facepipe.gallery import EncoderIdentity, Gallery
from facepipe.gallery.models import Template
from facepipe.gallery.storage.encryption import KEY_VARIABLE
from facepipe.pipeline import card_identity
from facepipe.weights.registry import DEFAULT_ENCODER, load_card

KEY = "a key for the attacks"
KEY_GIVEN = {KEY_VARIABLE: KEY}
"""The environment of commands that open an encrypted gallery."""
PEOPLE = tuple(f"person {number}" for number in range(6))
"""Made-up people of `Workshop.gallery`; number n has the photos 10 n to 10 n + 2."""
_PHOTOS_EACH = 3
_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 << 30


@contextmanager
def opened_workshop() -> Iterator[Workshop]:
    """A workshop in a temporary folder, in memory where there is room: processes die, disks do not."""
    in_memory = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES
    with tempfile.TemporaryDirectory(prefix="facepipe-attack-", dir=_MEMORY if in_memory else None) as name:
        folder = Path(name)
        os.environ |= {"FACEPIPE_HOME": str(folder / "home"), "TMPDIR": name}
        tempfile.tempdir = None  # Asks $TMPDIR again.
        yield Workshop(folder)


class Workshop:
    """Templates that cases copy, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def encoder(self) -> EncoderIdentity:
        """The default encoder, whose vectors are in the galleries here."""
        return card_identity(load_card(DEFAULT_ENCODER).card)

    @cached_property
    def astronaut(self) -> UInt8Array:
        """RGB uint8 (512, 512, 3), from scikit-image."""
        from skimage import data

        load: Any = data.astronaut
        return np.ascontiguousarray(load(), dtype=np.uint8)

    @cached_property
    def portraits(self) -> Path:
        """A folder of four photos of the astronaut, each of another size."""
        folder = self._folder("portraits")
        for number, side in enumerate((224, 240, 256, 272)):
            Image.fromarray(self.astronaut).resize((side, side)).save(folder / f"{number}.jpg")
        return folder

    @cached_property
    def gallery(self) -> Path:
        """A gallery of made-up people and the astronaut, with crops, thresholds and unknown faces."""
        folder = self.folder / "gallery"
        run(
            as_command(["enroll", "--name", NAME, "--gallery", folder, self.portraits / "0.jpg"], self.folder)
        )
        with Gallery.open(folder, self.encoder) as gallery:
            for number, name in enumerate(PEOPLE):
                photos = range(10 * number, 10 * number + _PHOTOS_EACH)
                vectors = person_vectors(number, _PHOTOS_EACH)
                crop = bytes([number]) * 300 if number % 2 else None
                gallery.add(
                    name,
                    [
                        template(vector, str(photo), crop)
                        for vector, photo in zip(vectors, photos, strict=True)
                    ],
                )
            gallery.set_person_threshold(PEOPLE[0], 0.9)
            gallery.remember_unknown([template(vector, "stranger") for vector in person_vectors(99, 2)])
        return folder

    @cached_property
    def photos(self) -> Path:
        """A folder as archives hold them: sizes, formats, turned ones, duplicates, a broken one."""
        folder = self._folder("photos")
        write_archive(folder, self.astronaut, 60)
        return folder

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder


def run(work: Work, codes: tuple[int, ...] = (0,)) -> str:
    """Do what an attack needs, in a process of its own; answers its stdout.

    Raises:
        RuntimeError: It failed.
    """
    ended = start(work).wait(600)
    if ended.code not in codes:
        raise RuntimeError(f"exit code {ended.code}: {ended.err[-2000:]}")
    return ended.out


def gallery_state(folder: Path, encoder: EncoderIdentity, secret: str | None = None) -> dict[str, Any]:
    """All that a gallery holds but ids and times, as JSON has it."""
    with Gallery.open(folder, encoder, secret=secret.encode() if secret else None) as gallery:
        return contents_of(gallery)


def contents_of(gallery: Gallery) -> dict[str, Any]:
    """As `gallery_state`."""
    people: dict[str, Any] = {}
    for person in gallery.people():
        faces = [
            [
                t.source,
                t.photo_sha256,
                vector.tobytes().hex(),
                t.quality,
                list(t.box_xyxy or ()),
                _crop(gallery, t),
            ]
            for t, vector in zip(gallery.templates(person.name), gallery.vectors(person.name), strict=True)
        ]
        people[person.name] = {"threshold": person.threshold_l2, "faces": faces}
    unknown = [
        [face.source, face.photo_sha256, face.embedding.tobytes().hex()] for face in gallery.unknown_faces()
    ]
    return {"people": people, "unknown": unknown, "threshold": gallery.threshold_l2}


def _crop(gallery: Gallery, face: Template) -> str:
    return (gallery.crop(face.id) or b"").hex()
