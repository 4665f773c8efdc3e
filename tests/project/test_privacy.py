"""Nothing leaves the machine, and no file is made but where the user looks for it."""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import pytest
from paths import ROOT
from privacy_helpers import Seen, watched

from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="watches processes as Linux and macOS let it")
RUNTIMES = [
    "onnx",
    pytest.param("openvino", marks=pytest.mark.skipif(not find_spec("openvino"), reason="needs openvino")),
    pytest.param("torch", marks=pytest.mark.skipif(not find_spec("torch"), reason="needs torch")),
]

COMMANDS = """
from facepipe import cli
def run(*arguments):
    cli.main([str(word) for word in arguments], standalone_mode=False)
"""
MAIN_JOB = """
run("enroll", "--name", "Ada", "photo.png")
run("identify", "photo.png", "--annotate", "out/annotated", "--crops", "out/crops", "--remember-unknown")
run("batch", "photos", "--out", "out/batch", "--annotate", "--crops", "--xmp")
run("video", "video.mp4", "--annotate", "out/video.mp4")
run("cluster")
run("sort", "out/batch", "--to", "out/sorted")
run("gallery", "list")
run("gallery", "verify")
run("gallery", "audit")
run("gallery", "backup", "out/backup")
run("gallery", "remove", "Ada")
run("weights", "list")
run("doctor")
"""
API = """
import facepipe
from pathlib import Path
from facepipe.enrollment import PersonPhoto
runtime = facepipe.choose_runtime({runtime!r})
with facepipe.FacePipeline.load("my-gallery", create_gallery=True, runtime=runtime) as pipeline:
    list(facepipe.enroll(pipeline, [PersonPhoto("Ada", Path("photo.png"))]))
    print([match.name for match in pipeline.identify(facepipe.read_image("photo.png")).matches])
"""
SERVER = """
from pathlib import Path
from litestar.testing import TestClient
from facepipe import FacePipeline
from facepipe.server.app import create_app
from facepipe.server.services import Services
from facepipe.server.settings import ServerSettings
settings = ServerSettings(Path("my-gallery"), compreface=True)
pipeline = FacePipeline.load(settings.gallery, create_gallery=True)
photo = Path("photo.png").read_bytes()
with TestClient(create_app(Services(settings, pipeline)), base_url="http://127.0.0.1") as client:
    client.post("/v1/people?name=Ada", files={"photo": photo}).raise_for_status()
    faces = client.post("/v1/identify", files={"photo": photo + bytes(3_000_000)}).json()["faces"]
    client.post("/api/v1/recognition/recognize", files={"file": photo}).raise_for_status()
    print([face["name"] for face in faces])
"""
TRAINING = """
run("train", "detector", "run", "--recipe", "retinaface_mobilenet025", "--data", "data", "--set=loop.steps=1",
    "--set=loop.batch_size=2", "--set=loop.workers=1", "--set=loop.compile=false", "--set=augment.size_px=64",
    "--device=cpu")
run("export", "run/last.pt", "--name", "mine", "--out", "out")
"""


@pytest.fixture
def place(tmp_path: Path, astronaut: UInt8Array) -> Path:
    (tmp_path / "work" / "photos").mkdir(parents=True)
    for file in ("photo.png", "photos/one.png", "photos/two.png"):
        write_image(tmp_path / "work" / file, astronaut)
    size = astronaut.shape[1::-1]
    video = cv2.VideoWriter(str(tmp_path / "work" / "video.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5.0, size)
    for _ in range(3):
        video.write(astronaut[..., ::-1])
    video.release()
    return tmp_path


def assert_private(seen: Seen, *allowed: Path) -> None:
    assert seen.code == 0, seen.output
    assert seen.network == []
    assert [path for path in seen.made if not any(map(Path(path).is_relative_to, allowed))] == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_library_reaches_for_nothing(place: Path, runtime: str) -> None:
    seen = watched(["-c", API.format(runtime=runtime)], place)
    assert_private(seen)
    assert seen.output.endswith("['Ada']\n")


def test_the_main_job_reaches_for_nothing(place: Path) -> None:
    assert_private(watched(["-c", COMMANDS + MAIN_JOB], place), place / "home" / ".facepipe")


def test_the_server_writes_no_upload_to_disk(place: Path) -> None:
    seen = watched(["-W", "ignore", "-c", SERVER], place)
    assert_private(seen)
    assert seen.output.endswith("['Ada']\n")


ERASING = """
import numpy as np
from facepipe.gallery import Gallery, NewTemplate
from facepipe.pipeline import card_identity
from facepipe.weights.registry import DEFAULT_ENCODER, load_card
vectors = np.random.default_rng(0).normal(size=(6000, 128)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
with Gallery.open("gallery", card_identity(load_card(DEFAULT_ENCODER).card), create=True) as gallery:
    for person in range(60):
        gallery.add(f"Person {person}", [NewTemplate(vector) for vector in vectors[person::60]])
    gallery.remove("Person 1")
"""


def test_erasing_from_a_large_gallery_copies_it_nowhere(place: Path) -> None:
    assert_private(watched(["-c", ERASING], place))


@pytest.mark.skipif(not find_spec("torch"), reason="needs the [train] extra")
def test_training_reaches_for_nothing(place: Path, astronaut: UInt8Array) -> None:
    from training_helpers import write_dataset

    write_dataset(place / "work" / "data", astronaut)
    # PyTorch's temporary folder: emptied by itself but for one without files (docs/training.md)
    assert_private(watched(["-c", COMMANDS + TRAINING], place), place / "home" / ".facepipe", place / "tmp")
    assert [path for path in (place / "tmp").rglob("*") if not path.is_dir()] == []


def test_the_choice_of_the_user_stands(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = "import facepipe, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert watched(["-c", tell], place).output == "1\n"
    assert (
        watched(["-c", f"import os; os.environ['ORT_DISABLE_TELEMETRY'] = '0'; {tell}"], place).output
        == "0\n"
    )


@pytest.mark.skipif(not find_spec("openvino"), reason="needs the [openvino] extra")
def test_openvinos_telemetry_is_missing_for_its_import_only(place: Path) -> None:
    code = """
import importlib.util, sys
from facepipe.core.environment import openvino_core
openvino_core()
assert "openvino_telemetry" not in sys.modules
print(importlib.util.find_spec("openvino_telemetry") is not None)
"""
    assert watched(["-c", code], place).output == f"{find_spec('openvino_telemetry') is not None}\n"


# The watching itself


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket().connect(('127.0.0.1', 9))",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "import socket; socket.getaddrinfo('localhost', 80)",
    ],
)
def test_what_reaches_out_is_seen(place: Path, code: str) -> None:
    assert watched(["-c", code], place).network != []


def test_files_elsewhere_are_seen(place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    code = f"""
import os, pathlib, tempfile
pathlib.Path.home().joinpath("settings").write_text("x")
tempfile.mkdtemp()
pathlib.Path("inside").write_text("x")
os.rename("inside", {str(elsewhere / "moved")!r})
os.remove({str(elsewhere / "moved")!r})
"""
    seen = watched(["-c", code], place)
    assert seen.code == 0, seen.output
    assert str(place / "home" / "settings") in seen.made
    assert any(path.startswith(str(place / "tmp")) for path in seen.made)
    from privacy_helpers import can_trace

    assert (str(elsewhere / "moved") in seen.made) == can_trace()


# The one place

ONE_PLACE = ROOT / "facepipe" / "core" / "environment.py"
OURS = [
    *ROOT.glob("cli.py"),
    *(
        p
        for d in ("facepipe", "gallery", "weights", "training", "benchmarks")
        for p in (ROOT / d).rglob("*.py")
    ),
]


def imported(source: str) -> set[str]:
    """Top-level packages that run when some part of the source does; imports for type checking do not."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [
        node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
    ]
    return {name.partition(".")[0] for name in names}


def test_packages_with_telemetry_are_imported_in_one_place() -> None:
    assert imported(ONE_PLACE.read_text()) >= {"onnxruntime", "openvino"}
    others = {
        path: imported(path.read_text()) & {"onnxruntime", "openvino"} for path in OURS if path != ONE_PLACE
    }
    assert {path: names for path, names in others.items() if names} == {}
