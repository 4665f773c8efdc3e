"""A process that is forked after loading works, and ends: whatever the runtime, and with the gallery open."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from paths import ROOT

from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

IN_CHILDREN = """
import os, signal, sys
import numpy as np

def in_child(work):
    '''The child's result, and whether it ended well, by way of Python's own clearing up.'''
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.alarm(60)  # a child that hangs is killed, and seen
        os.write(write, work().encode())
        sys.exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        text = pipe.read()
    return text, os.waitpid(child, 0)[1]
"""

NETWORK = """
from facepipe.runtime.engines import RuntimeChoice, open_network
from facepipe.weights.registry import DEFAULT_DETECTOR, load_card

def main(runtime, calls):
    network = open_network(load_card(DEFAULT_DETECTOR), RuntimeChoice(runtime, "cpu", 2, calls))
    photo = np.random.default_rng(0).uniform(0, 255, (1, 3, 320, 320)).astype(np.float32)
    before = [output.copy() for output in network.run(photo)]

    def work():
        again = [network.run(photo) for _ in range(3)]
        return str(max(float(abs(a - b).max()) for run in again for a, b in zip(run, before)))

    for _ in range(2):
        difference, status = in_child(work)
        assert status == 0, status
        assert float(difference) < 1e-4
    assert in_child(lambda: "did not call it") == ("did not call it", 0)
    again = network.run(photo)  # the parent's own goes on
    assert all((a == b).all() for a, b in zip(again, before))
"""

PIPELINE = """
from pathlib import Path
import facepipe
from facepipe.enrollment import PersonPhoto
from facepipe.gallery import NewTemplate

def main(folder):
    photo = facepipe.read_image(folder + "/photo.png")
    pipeline = facepipe.FacePipeline.load(folder + "/gallery", create_gallery=True)
    for report in facepipe.enroll(pipeline, [PersonPhoto("Ada", Path(folder, "photo.png"))]):
        assert report.outcome.value == "enrolled", report

    def names():
        return ", ".join(match.name or "nobody" for match in pipeline.identify(photo).matches)

    def enrolled_by_child():
        vector = np.eye(128, dtype=np.float32)[0]
        pipeline.gallery.add("Bob", [NewTemplate(vector)])
        return names()

    assert names() == "Ada"
    with pipeline.gallery.one_state():
        assert in_child(names) == ("Ada", 0)
    assert in_child(enrolled_by_child) == ("Ada", 0)
    assert [person.name for person in pipeline.gallery.people()] == ["Ada", "Bob"]
    pipeline.gallery.remove("Ada")
    assert in_child(names) == ("nobody", 0)
    pipeline.close()
"""

FAISS = """
from facepipe.gallery.clustering import group_faces

def main():
    vectors = np.random.default_rng(0).normal(size=(3000, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def groups():
        return str(group_faces(vectors, [None] * len(vectors), 1.0).max())

    before = groups()
    assert in_child(groups) == (before, 0)
"""


def run(code: str, call: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{IN_CHILDREN}{code}\n{call}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "FACEPIPE_HOME": str(folder), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize(
    "runtime",
    [
        "onnx",
        pytest.param(
            "openvino", marks=pytest.mark.skipif(not find_spec("openvino"), reason="needs openvino")
        ),
        pytest.param("torch", marks=pytest.mark.skipif(not find_spec("torch"), reason="needs torch")),
    ],
)
def test_a_network_runs_in_forked_processes(runtime: str, calls: int, tmp_path: Path) -> None:
    run(NETWORK, f"main({runtime!r}, {calls})", tmp_path)


def test_a_pipeline_with_its_gallery_works_in_forked_processes(tmp_path: Path, astronaut: UInt8Array) -> None:
    write_image(tmp_path / "photo.png", astronaut)
    run(PIPELINE, f"main({str(tmp_path)!r})", tmp_path)


def test_unknown_faces_are_grouped_in_forked_processes(tmp_path: Path) -> None:
    run(FAISS, "main()", tmp_path)
