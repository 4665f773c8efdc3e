"""facepipe finds the faces in photos and says who they are.

The public names, which `__init__.pyi` lists, load what they need when they are first used: `import facepipe`
itself costs nothing.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lazy_loader

from facepipe.core.environment import prepare_environment

__version__ = "0.1.0"

# In a checkout, facepipe.cli, .gallery, .training and .weights lie beside this folder: see pyproject.toml.
if not (Path(__file__).parent / "cli.py").exists():
    __path__.append(str(Path(__file__).parents[1]))

prepare_environment()

_public_name, _, __all__ = lazy_loader.attach_stub(__name__, __file__)

_RENAMED = {"enrol": "enroll"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(
            f"facepipe.{name} is now facepipe.{_RENAMED[name]}; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        name = _RENAMED[name]
    return _public_name(name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
