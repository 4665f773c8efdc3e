"""What threads share: one pipeline with its networks and its gallery, used by all of them at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import person_vectors, templates
from pipeline_helpers import shifted, side_by_side

from facepipe import FacePipeline, PersonPhoto, enroll
from facepipe.core.faces import Faces, UInt8Array
from facepipe.detector import DetectorOptions
from facepipe.images.reading import write_image
from facepipe.runtime.engines import Engine, RuntimeChoice

HER = "Eileen Collins"
THREADS, ROUNDS = 4, 2


def photos_of_many_sizes(astronaut: UInt8Array) -> list[UInt8Array]:
    return [
        astronaut,
        shifted(astronaut, 40),
        np.ascontiguousarray(astronaut[:260, :400]),
        side_by_side(astronaut),
        np.zeros((64, 90, 3), np.uint8),
    ]


def same(first: Faces, second: Faces) -> bool:
    assert first.embeddings is not None
    assert second.embeddings is not None
    return (
        np.allclose(first.boxes_xyxy, second.boxes_xyxy, atol=1e-3)
        and np.allclose(first.embeddings, second.embeddings, atol=1e-5, equal_nan=True)
        and [face.name for face in first] == [face.name for face in second]
    )


@pytest.mark.parametrize("engine", ["onnx", "openvino", "torch"])
def test_threads_share_a_pipeline_and_get_the_answers_of_one(
    engine: Engine, astronaut: UInt8Array, tmp_path: Path
) -> None:
    """Meanwhile the gallery grows, and other people are removed from it."""
    if engine != "onnx" and find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    photos = photos_of_many_sizes(astronaut)
    write_image(tmp_path / "her.png", astronaut)
    with FacePipeline.load(
        tmp_path / "gallery",
        create_gallery=True,
        options=DetectorOptions(score_threshold=0.8),
        runtime=RuntimeChoice(engine, "cpu", 1, calls=2),
    ) as pipeline:
        list(enroll(pipeline, [PersonPhoto(HER, tmp_path / "her.png")]))
        alone = [pipeline.identify(photo) for photo in photos]
        assert [len(faces) for faces in alone] == [1, 1, 1, 2, 0]
        gallery = pipeline.gallery
        assert gallery is not None

        def look(thread: int) -> list[bool]:
            order = np.random.default_rng(thread).permutation(len(photos) * ROUNDS) % len(photos)
            return [same(pipeline.identify(photos[i]), alone[i]) for i in order]

        def change(thread: int) -> list[bool]:
            for step in range(10):
                name = f"{thread} {step}"
                gallery.add(name, templates(person_vectors(100 * thread + step, 2)))
                if step % 2:
                    gallery.remove(name)
            return [True]

        with ThreadPoolExecutor(THREADS + 2) as pool:
            work = [pool.submit(look, thread) for thread in range(THREADS)]
            work += [pool.submit(change, thread) for thread in range(2)]
            assert all(all(done.result()) for done in work)
        assert len(gallery.people()) == 1 + 10
