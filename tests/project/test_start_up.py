"""Start-up is fast because little is imported. Imports are counted: seconds depend on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image

NEEDS_NOTHING = {
    *("numpy", "cv2", "PIL", "onnxruntime", "faiss", "scipy", "skimage", "torch", "safetensors"),
    *("msgspec", "sqlite3", "asyncio", "litestar", "psycopg", "ray", "tqdm", "lxml", "cryptography"),
}
TRAINING_ONLY = {"torch", "torchvision", "facenet_pytorch", "onnx", "pandas", "matplotlib"}
OF_OTHER_COMMANDS = {
    *("asyncio", "litestar", "psycopg", "ray", "openvino", "tqdm", "lxml", "cryptography", "tifffile"),
    *("http.client", "facepipe.images.drawing", "facepipe.unknown_faces", "facepipe.gallery.clustering"),
}
SLOW_PARTS = {"skimage.filters", "skimage.io", "skimage.segmentation", "scipy.stats", "scipy.signal"}


def imported(code: str, folder: Path) -> tuple[set[str], str]:
    """Modules that are loaded after running `code` in a fresh Python, and what it said."""
    tail = "\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code + tail],
        env={**os.environ, "PYTHONPATH": str(ROOT), "FACEPIPE_HOME": str(folder), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, _, modules = done.stdout.rstrip().rpartition("\n")
    return set(json.loads(modules)), said


def command(*arguments: str) -> str:
    """Code that runs the command line and comes back."""
    return f"from facepipe import cli; cli.main({list(arguments)!r}, standalone_mode=False)"


@pytest.mark.parametrize(
    "code",
    [
        "import facepipe",
        "import facepipe; dir(facepipe); facepipe.__version__",
        "from facepipe import FacepipeError",
        "from facepipe import cli",
        command("--help"),
        command("--version"),
        command("identify", "--help"),
        command("enroll", "--help"),
        command("gallery", "--help"),
        command("weights", "import", "--help"),
    ],
    ids=lambda code: code.removeprefix("from facepipe import cli; cli.main").replace(
        ", standalone_mode=False", ""
    ),
)
def test_help_and_plain_import_load_nothing_heavy(code: str, tmp_path: Path) -> None:
    modules, _ = imported(code, tmp_path)
    assert modules & NEEDS_NOTHING == set()
    assert not any(tmp_path.iterdir())


def test_a_command_ends_without_searching_its_modules_for_garbage(tmp_path: Path) -> None:
    end = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count()))"
    code = f"{end}; from facepipe import cli"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    """With `photo.png`, and its face in the gallery of `FACEPIPE_HOME`."""
    folder = tmp_path_factory.mktemp("start_up")
    write_image(folder / "photo.png", astronaut)
    modules, said = imported(command("enroll", "--name", "Her", "photo.png"), folder)
    assert said.startswith("enrolled")
    assert modules & TRAINING_ONLY == set()
    return folder


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (("gallery", "list"), {"cv2", "PIL", "onnxruntime", "skimage", "scipy"}),
        (("weights", "list"), {"cv2", "PIL", "onnxruntime", "skimage", "scipy", "faiss"}),
        (("detect", "photo.png"), {"skimage", "scipy", "faiss"}),
        (("identify", "photo.png"), SLOW_PARTS | OF_OTHER_COMMANDS),
    ],
    ids=["gallery list", "weights list", "detect", "identify"],
)
def test_commands_load_what_they_use(folder: Path, arguments: tuple[str, ...], unneeded: set[str]) -> None:
    modules, said = imported(command(*arguments), folder)
    assert said
    assert modules & (unneeded | TRAINING_ONLY) == set()
