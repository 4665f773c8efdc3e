"""The gallery: names for vectors. It knows people and numbers, never photos or networks."""

from facepipe.gallery.gallery import Gallery
from facepipe.gallery.models import EncoderIdentity, GalleryInfo, NewTemplate, Person, Template, UnknownFace

__all__ = [
    "EncoderIdentity",
    "Gallery",
    "GalleryInfo",
    "NewTemplate",
    "Person",
    "Template",
    "UnknownFace",
]
