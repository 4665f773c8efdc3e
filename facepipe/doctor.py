"""Is this installation healthy? Versions, devices, weights, gallery."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from facepipe import __version__
from facepipe.errors import FacepipeError
from facepipe.runtime import RuntimeName, choose_runtime
from gallery import Gallery
from weights.registry import list_weights, load_card
from weights.storage import verify

_NEEDED = ("click", "faiss-cpu", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "safetensors")
_OPTIONAL = ("pillow-heif", "torch", "torchvision", "facenet-pytorch", "onnx")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, what was found, and whether it is as it should be."""

    what: str
    finding: str
    ok: bool


def examine(gallery: Path, runtime: RuntimeName = "auto", device: str = "auto") -> list[Check]:
    """Look at everything that identifying photos depends on. A gallery need not exist."""
    return [
        Check(
            "facepipe", f"{__version__} on Python {platform.python_version()}, {platform.platform()}", True
        ),
        *_packages(_NEEDED, needed=True),
        *_packages(_OPTIONAL, needed=False),
        _tried("runtime", lambda: str(choose_runtime(runtime, device))),
        *verify_weights(()),
        _gallery_check(gallery),
    ]


def verify_weights(names: Iterable[str]) -> list[Check]:
    """Compare the files of the named weights, or of all, with their cards."""
    wanted = list(names)
    if wanted:
        return [_tried(f"weight {name}", lambda name=name: _verified(name)) for name in wanted]  # type: ignore[misc]
    return [
        Check(f"weight {entry.name}", entry.problem, False)
        if entry.problem
        else _tried(f"weight {entry.name}", lambda path=entry.card_path: _verified(path))  # type: ignore[misc]
        for entry in list_weights()
    ]


def _verified(name: str | Path) -> str:
    weight = load_card(name)
    verify(weight)
    return f"{weight.card.kind}, files as on the card"


def _packages(names: Iterable[str], *, needed: bool) -> Iterator[Check]:
    for name in names:
        try:
            yield Check(name, version(name), True)
        except PackageNotFoundError:
            yield Check(
                name, "missing: pip install facepipe" if needed else "not installed (optional)", not needed
            )


def _gallery_check(path: Path) -> Check:
    if not path.exists():
        return Check("gallery", f"none yet at {path}; facepipe enroll makes it", True)

    def look() -> str:
        with Gallery.open(path) as gallery:
            info = gallery.info()
        return f"{path}: {info.people} people, {info.templates} faces of {info.encoder.name}"

    return _tried("gallery", look)


def _tried(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what, look(), True)
    except FacepipeError as error:
        return Check(what, str(error), False)
