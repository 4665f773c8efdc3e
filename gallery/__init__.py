"""The gallery: names for embeddings. Nothing here depends on photos or networks."""

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
