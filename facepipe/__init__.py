"""facepipe finds the faces in photos and says who they are.

The names below load what they need when they are first used: `import facepipe` itself costs nothing.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facepipe.core.environment import prepare_environment

if TYPE_CHECKING:
    from facepipe.align import align_faces
    from facepipe.core.errors import FacepipeError
    from facepipe.core.faces import Face, Faces, Match
    from facepipe.detector import DetectorOptions, FaceDetector
    from facepipe.encoder import FaceEncoder
    from facepipe.enrollment import PersonPhoto, enroll, photos_in_csv, photos_in_folders
    from facepipe.gallery import Gallery
    from facepipe.images.finding import find_photos
    from facepipe.images.reading import read_image
    from facepipe.pipeline import FacePipeline
    from facepipe.runtime.engines import choose_runtime
    from facepipe.shortcuts import Found, Verification, find, represent, stream, verify

__version__ = "0.1.0"

# In a checkout, facepipe.cli, .gallery, .training and .weights lie beside this folder: see pyproject.toml.
if not (Path(__file__).parent / "cli.py").exists():
    __path__.append(str(Path(__file__).parents[1]))

prepare_environment()

__all__ = [
    "DetectorOptions",
    "Face",
    "FaceDetector",
    "FaceEncoder",
    "FacePipeline",
    "FacepipeError",
    "Faces",
    "Found",
    "Gallery",
    "Match",
    "PersonPhoto",
    "Verification",
    "align_faces",
    "choose_runtime",
    "enroll",
    "find",
    "find_photos",
    "photos_in_csv",
    "photos_in_folders",
    "read_image",
    "represent",
    "stream",
    "verify",
]

_HOMES = {
    "DetectorOptions": "facepipe.detector",
    "Face": "facepipe.core.faces",
    "FaceDetector": "facepipe.detector",
    "FaceEncoder": "facepipe.encoder",
    "FacePipeline": "facepipe.pipeline",
    "FacepipeError": "facepipe.core.errors",
    "Faces": "facepipe.core.faces",
    "Found": "facepipe.shortcuts",
    "Gallery": "facepipe.gallery",
    "Match": "facepipe.core.faces",
    "PersonPhoto": "facepipe.enrollment",
    "Verification": "facepipe.shortcuts",
    "align_faces": "facepipe.align",
    "choose_runtime": "facepipe.runtime.engines",
    "enroll": "facepipe.enrollment",
    "find": "facepipe.shortcuts",
    "find_photos": "facepipe.images.finding",
    "photos_in_csv": "facepipe.enrollment",
    "photos_in_folders": "facepipe.enrollment",
    "read_image": "facepipe.images.reading",
    "represent": "facepipe.shortcuts",
    "stream": "facepipe.shortcuts",
    "verify": "facepipe.shortcuts",
}

_RENAMED = {"enrol": "enroll"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(
            f"facepipe.{name} is now facepipe.{_RENAMED[name]}; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        name = _RENAMED[name]
    if name not in _HOMES:
        raise AttributeError(f"module 'facepipe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
