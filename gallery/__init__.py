"""The gallery: names for vectors. It knows people and numbers, never photos or networks."""

from gallery.gallery import Gallery
from gallery.records import EncoderIdentity, GalleryInfo, NewTemplate, Person, Template, UnknownFace

__all__ = [
    "EncoderIdentity",
    "Gallery",
    "GalleryInfo",
    "NewTemplate",
    "Person",
    "Template",
    "UnknownFace",
]
