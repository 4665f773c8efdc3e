"""Finds the face in a box that was drawn by hand, so that it can be compared with others."""

from __future__ import annotations

from functools import lru_cache, partial

from facepipe.core.errors import WeightsError
from facepipe.library.drawing import find_face
from facepipe.library.library import FindFace, Library
from facepipe.pipeline import FacePipeline, card_identity


def face_finder(library: Library) -> FindFace | None:
    """Return what finds faces for a library; None: its encoder is not installed, so none can be compared.

    The networks are loaded at the first call, which takes a second.
    """
    encoder = library.gallery.encoder
    try:
        pipeline = _pipeline(encoder.name)
    except WeightsError:
        return None
    is_same = card_identity(pipeline.encoder.card).makes_same_vectors_as(encoder)
    return partial(find_face, pipeline) if is_same else None


@lru_cache(maxsize=1)
def _pipeline(encoder: str) -> FacePipeline:
    return FacePipeline.load(encoder_weights=encoder)
