"""Is this installation healthy? Versions, devices, weights, gallery."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from facepipe import __version__
from facepipe.core.counting import counted
from facepipe.core.errors import FacepipeError, GalleryError

if TYPE_CHECKING:
    from facepipe.gallery.address import GalleryAddress
    from facepipe.runtime.engines import RuntimeName

_NEEDED = {
    "click": "click",
    "faiss-cpu": "faiss",
    "lazy-loader": "lazy_loader",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "safetensors": "safetensors",
    "scikit-image": "skimage",
    "scipy": "scipy",
    "simplejpeg": "simplejpeg",
    "tifffile": "tifffile",
    "tqdm": "tqdm",
}
"""Package to the module that it is imported as."""
_OPTIONAL = (
    "pillow-heif",
    "cryptography",
    "psycopg",
    "lxml",
    "watchdog",
    "openvino",
    "torch",
    "torchvision",
    "facenet-pytorch",
    "matplotlib",
    "onnx",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked, what was found, and whether it is as it should be."""

    what: str
    finding: str
    ok: bool


def examine(
    gallery: GalleryAddress | None = None, runtime: RuntimeName = "auto", device: str = "auto"
) -> list[Check]:
    """Look at everything that identifying photos depends on. A gallery need not exist; None: the user's own.

    Without a needed package nothing else can be checked: the list ends there.
    """
    here = f"{__version__} on Python {platform.python_version()}, {platform.platform()}"
    needed = [_needed(package, module) for package, module in _NEEDED.items()]
    checks = [Check("facepipe", here, True), *needed, *map(_optional, _OPTIONAL)]
    if not all(check.ok for check in needed):
        return checks
    from facepipe.core.processors import describe_threads
    from facepipe.gallery.address import default_address
    from facepipe.runtime.engines import choose_runtime

    return [
        *checks,
        _tried("processors", describe_threads),
        _tried("runtime", lambda: str(choose_runtime(runtime, device))),
        *verify_weights(()),
        _tried("gallery", lambda: _gallery_finding(gallery or default_address())),
    ]


def verify_weights(names: Iterable[str]) -> list[Check]:
    """Compare the files of the named weights, or of all, with their cards."""
    from facepipe.weights.registry import list_weights

    wanted = [names] if isinstance(names, str) else list(names)
    if wanted:
        return [_tried(f"weight {name}", lambda name=name: _verified(name)) for name in wanted]  # type: ignore[misc]
    try:
        entries = list_weights()
    except (FacepipeError, OSError) as error:
        return [Check("weights", str(error), False)]
    return [
        Check(f"weight {entry.name}", entry.problem, False)
        if entry.problem
        else _tried(f"weight {entry.name}", lambda path=entry.card_path: _verified(path))  # type: ignore[misc]
        for entry in entries
    ]


def _verified(name: str | Path) -> str:
    from facepipe.weights.files import verify
    from facepipe.weights.registry import load_card

    weight = load_card(name)
    verify(weight)
    return f"{weight.card.kind}, files as on the card"


def _needed(package: str, module: str) -> Check:
    try:
        import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        return Check(package, f"can't be loaded ({error}): pip install --force-reinstall {package}", False)
    return Check(package, _version(package) or "of unknown version", True)


def _optional(package: str) -> Check:
    return Check(package, _version(package) or "not installed (optional)", True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gallery_finding(address: GalleryAddress) -> str:
    if isinstance(address, Path) and not address.exists():
        return f"none yet at {address}; facepipe enroll makes it"
    from facepipe.gallery import Gallery
    from facepipe.gallery.repair import verify

    if findings := verify(address):
        first, more = findings[0], len(findings) - 1
        raise GalleryError(
            f"{address}: {first.code}: {first.message}{f' (and {more} more)' if more else ''}: "
            "see `facepipe gallery verify`, then run `facepipe gallery repair`"
        )
    with Gallery.open(address) as gallery:
        info = gallery.info()
    held = f"{counted(info.people, 'person')}, {counted(info.templates, 'face')}"
    return f"{address}: {held} of {info.encoder.name}"


def _tried(what: str, check: Callable[[], str]) -> Check:
    try:
        return Check(what, check(), True)
    except (FacepipeError, OSError) as error:  # OSError: a folder that may not be entered
        return Check(what, str(error), False)
