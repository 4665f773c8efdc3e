"""Made-up encoders, vectors and templates for the gallery's tests."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
from paths import ROOT, TESTS

from facepipe.core.faces import FloatArray
from facepipe.gallery import EncoderIdentity, Gallery, NewTemplate
from facepipe.gallery.storage.schema import row_checksum
from facepipe.gallery.storage.sqlite.schema import _V3, _V4, creating_statements

ENCODER = EncoderIdentity(name="round", fingerprint="0123456789abcdef", dimensions=128, threshold_l2=1.0)
OTHER_ENCODER = EncoderIdentity(
    name="square", fingerprint="fedcba9876543210", dimensions=128, threshold_l2=1.1
)


def unit(vectors: npt.NDArray[np.float32] | npt.NDArray[np.float64]) -> FloatArray:
    """Rows of unit length, float32."""
    rows: FloatArray = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return rows


def person_vectors(seed: int, count: int, spread: float = 0.05) -> FloatArray:
    """(count, 128) vectors about a direction of its own; with spread 0.05 about 0.7 from one another."""
    rng = np.random.default_rng(seed)
    return unit(unit(rng.normal(size=128)) + spread * rng.normal(size=(count, 128)))


def photo_hash(text: str) -> str:
    """The content hash of a photo that holds `text`."""
    return hashlib.sha256(text.encode()).hexdigest()


def template(vector: FloatArray, photo: str | None = None, crop: bytes | None = None) -> NewTemplate:
    """A template of `vector`, from a photo named `photo` where given."""
    if photo is None:
        return NewTemplate(vector, crop=crop)
    return NewTemplate(
        vector,
        source=f"photos/{photo}.jpg",
        box_xyxy=(1.5, 2.25, 101.0, 1 / 3),
        quality=0.1,
        photo_sha256=photo_hash(photo),
        crop=crop,
    )


def templates(vectors: FloatArray) -> list[NewTemplate]:
    """One template a vector, without a photo."""
    return [NewTemplate(vector) for vector in vectors]


def statements_of_schema_2(encoder: EncoderIdentity) -> list[tuple[str, tuple[object, ...]]]:
    """What made an empty gallery before schema 3: statements and their values."""
    kept = [
        (statement, values)
        for statement, values in creating_statements(encoder)
        if statement not in (*_V3, *_V4)
        and not statement.startswith(("PRAGMA user_version", "UPDATE meta SET state"))
    ]
    return [*kept, ("PRAGMA user_version = 2", ())]


def make_gallery_of_schema_2(folder: Path) -> None:
    """Ada with a threshold of 0.5 and the templates `person_vectors(1, 3)`, as earlier versions left her."""
    folder.mkdir()
    with closing(sqlite3.connect(folder / "gallery.sqlite3")) as connection:
        connection.create_function("row_checksum", -1, row_checksum)
        connection.execute("PRAGMA journal_mode = WAL")
        for statement, values in statements_of_schema_2(ENCODER):
            connection.execute(statement, values)
        connection.execute("INSERT INTO people VALUES (1, 'Ada', 0.5, ?)", (row_checksum("Ada", 0.5),))
        for vector in person_vectors(1, 3):
            face = (1, vector.tobytes(), *[None] * 7, "2026-01-01T00:00:00", None)
            connection.execute(
                f"INSERT INTO templates VALUES (NULL, {'?, ' * 10}?, ?)",
                (*face[:-1], row_checksum(*face), None),
            )
        connection.commit()


def folder_of(gallery: Gallery) -> Path:
    """The folder of a gallery in one."""
    assert isinstance(gallery.path, Path)
    return gallery.path


INDEX_FILES = ["index.faiss", "index.faiss.json"]


def read_index_files(folder: Path) -> dict[str, bytes]:
    """The index of a gallery and the record beside it."""
    return {name: (folder / name).read_bytes() for name in INDEX_FILES}


def write_index_files(folder: Path, files: dict[str, bytes]) -> None:
    """Put an index and its record into a gallery."""
    for name, data in files.items():
        (folder / name).write_bytes(data)


def bytes_in(folder: Path, secrets: list[bytes]) -> list[str]:
    """Where any of the secrets occurs in any file of the folder."""
    return [
        f"{file.name}: {secret[:20]!r}"
        for file in folder.rglob("*")
        if file.is_file()
        for secret in secrets
        if secret in file.read_bytes()
    ]


def wipe_due(folder: Path) -> int:
    """Whether remains of removed rows are yet to be wiped."""
    with closing(sqlite3.connect(folder / "gallery.sqlite3")) as connection:
        return int(connection.execute("SELECT wipe_due FROM meta").fetchone()[0])


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run Python code in another process, with the gallery and the tests' helpers importable."""
    preamble = "import sys\nfrom facepipe.gallery import Gallery\nfrom gallery_helpers import *\n"
    paths = os.pathsep.join([str(ROOT), str(TESTS)])
    return subprocess.Popen(
        [sys.executable, "-c", preamble + textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


V1 = TESTS / "data" / "gallery_v1"
"""A gallery as facepipe 0.1.0 left it on disk: Ada (3), Zoë Ñuñez (2); Eve was there and is erased."""

ENCODER_8D = EncoderIdentity("round", "0123456789abcdef", 8, 1.0)
