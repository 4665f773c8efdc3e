"""facepipe finds the faces in photos and says who they are.

The names below load what they need when they are first used: `import facepipe` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from facepipe.environment import prepare_environment

if TYPE_CHECKING:
    from facepipe.align import align_faces
    from facepipe.detector import DetectorOptions, FaceDetector
    from facepipe.encoder import FaceEncoder
    from facepipe.enrolment import PersonPhoto, enrol, photos_in_csv, photos_in_folders
    from facepipe.errors import FacepipeError
    from facepipe.faces import Face, Faces, Match
    from facepipe.finding import find_photos
    from facepipe.images import read_image
    from facepipe.pipeline import FacePipeline
    from facepipe.runtime import choose_runtime
    from facepipe.shortcuts import Found, Verification, find, represent, stream, verify
    from gallery import Gallery

__version__ = "0.1.0"

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
    "enrol",
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
    "Face": "facepipe.faces",
    "FaceDetector": "facepipe.detector",
    "FaceEncoder": "facepipe.encoder",
    "FacePipeline": "facepipe.pipeline",
    "FacepipeError": "facepipe.errors",
    "Faces": "facepipe.faces",
    "Found": "facepipe.shortcuts",
    "Gallery": "gallery",
    "Match": "facepipe.faces",
    "PersonPhoto": "facepipe.enrolment",
    "Verification": "facepipe.shortcuts",
    "align_faces": "facepipe.align",
    "choose_runtime": "facepipe.runtime",
    "enrol": "facepipe.enrolment",
    "find": "facepipe.shortcuts",
    "find_photos": "facepipe.finding",
    "photos_in_csv": "facepipe.enrolment",
    "photos_in_folders": "facepipe.enrolment",
    "read_image": "facepipe.images",
    "represent": "facepipe.shortcuts",
    "stream": "facepipe.shortcuts",
    "verify": "facepipe.shortcuts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'facepipe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
