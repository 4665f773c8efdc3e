"""The queue before the networks: what goes together, what fails alone, and what becomes of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from server_helpers import as_jpeg

from facepipe.core.errors import PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.images.decoding_memory import taken_bytes
from facepipe.pipeline import FacePipeline
from facepipe.quality_rules import EnrollRules, NamingRules
from facepipe.server import recognizer as recognizer_module
from facepipe.server.errors import RefusedError
from facepipe.server.photo_tasks import AnalyzedPhoto, EncodeFaces, EncodeMainFace, FindFaces
from facepipe.server.recognizer import Recognizer
from facepipe.server.settings import Limits

_ROOM_FOR_ONE_BYTES = 14_000_000
"""What decoding one photo of the portrait's size takes, and hardly more."""


@pytest.fixture(scope="module")
def pipeline() -> FacePipeline:
    return FacePipeline.load()


@pytest.fixture
def recognizer(pipeline: FacePipeline) -> Iterator[Recognizer]:
    """One thread, so that what waits goes together."""
    recognizer = Recognizer(pipeline, Limits(), threads=1)
    yield recognizer
    recognizer.close()


def _all(recognizer: Recognizer, jobs: Sequence[tuple[bytes, Any]]) -> list[Any]:
    async def analyze() -> list[Any]:
        asked = (recognizer.analyze(photo, task) for photo, task in jobs)
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(analyze())


def test_photos_that_go_together_give_what_each_gives_alone(
    pipeline: FacePipeline, recognizer: Recognizer, astronaut: UInt8Array, portrait: bytes
) -> None:
    small, two = astronaut[::2, ::2], np.concatenate([astronaut, astronaut[:, ::-1]], axis=1)
    photos = [portrait, as_jpeg(small), as_jpeg(two), portrait, as_jpeg(np.zeros((64, 64, 3), np.uint8))]
    together: list[AnalyzedPhoto] = _all(
        recognizer, [(photo, EncodeFaces(NamingRules())) for photo in photos]
    )
    assert [len(found.faces) for found in together] == [1, 1, 2, 1, 0]
    for photo, found in zip(photos, together, strict=True):
        alone = pipeline.embed_comparable(_decoded(photo))
        assert found.faces.embeddings is not None
        assert alone.embeddings is not None
        assert found.faces.boxes_xyxy == pytest.approx(alone.boxes_xyxy, abs=0.01)
        assert found.faces.embeddings == pytest.approx(alone.embeddings, abs=1e-4)


def _decoded(photo: bytes) -> UInt8Array:
    from facepipe.images.reading import read_image

    return read_image(photo)


def test_a_bad_photo_fails_alone(recognizer: Recognizer, portrait: bytes) -> None:
    jobs = [(portrait, FindFaces()), (b"no photo", FindFaces()), (portrait, EncodeMainFace(EnrollRules()))]
    first, second, third = _all(recognizer, jobs)
    assert len(first.faces) == 1
    assert isinstance(second, PhotoError)
    assert third.main.face is not None
    assert taken_bytes() == 0


def test_a_face_too_small_in_the_reduced_photo_is_cut_from_the_whole_one(
    pipeline: FacePipeline, recognizer: Recognizer, astronaut: UInt8Array
) -> None:
    """A large photo with a face so small that a reduced copy would have fewer pixels than its crop."""
    large = np.full((3000, 4000, 3), 128, np.uint8)
    large[1000:1512, 1500:2012] = astronaut
    (found,) = _all(recognizer, [(as_jpeg(large), EncodeFaces(NamingRules()))])
    (exact,) = _all(recognizer, [(as_jpeg(astronaut), EncodeFaces(NamingRules()))])
    assert len(found.faces) == 1
    assert np.linalg.norm(found.faces.embeddings[0] - exact.faces.embeddings[0]) < 0.3
    assert taken_bytes() == 0


def test_more_photos_than_the_memory_holds_are_analyzed_one_after_the_other(
    pipeline: FacePipeline, portrait: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognizer_module, "allowed_bytes", lambda _: _ROOM_FOR_ONE_BYTES)
    recognizer = Recognizer(pipeline, Limits(), threads=3)
    found = _all(recognizer, [(portrait, EncodeFaces(NamingRules()))] * 24)
    assert [len(one.faces) for one in found] == [1] * 24
    recognizer.close()
    assert taken_bytes() == 0


def test_what_takes_too_long_is_given_up_and_what_waits_at_the_end_is_analyzed(
    pipeline: FacePipeline, portrait: bytes
) -> None:
    recognizer = Recognizer(pipeline, Limits(work_s=1e-4), threads=1)
    answers = _all(recognizer, [(portrait, FindFaces())] * 4)
    recognizer.close()
    assert [isinstance(one, RefusedError) and one.code for one in answers] == ["slow"] * 4


def test_an_error_of_the_networks_reaches_every_request(pipeline: FacePipeline, portrait: bytes) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(pipeline.detector, name)

        def detect_batch(self, *_: object) -> Any:
            raise RuntimeError("broken")

    broken = FacePipeline(Broken(), pipeline.encoder)  # type: ignore[arg-type]
    recognizer = Recognizer(broken, Limits(), threads=1)
    try:
        answers = _all(recognizer, [(portrait, FindFaces())] * 3)
    finally:
        recognizer.close()
    assert [str(one) for one in answers] == ["broken"] * 3
    assert taken_bytes() == 0
