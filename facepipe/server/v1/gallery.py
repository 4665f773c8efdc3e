"""Routes of the gallery as a whole: figures, thresholds."""

from __future__ import annotations

from litestar import Router, get, put

from facepipe.pipeline import NamingOptions
from facepipe.server.keys import Scope
from facepipe.server.security import requires
from facepipe.server.services import Services
from facepipe.server.v1.schemas import GalleryFigures, ThresholdChange, Thresholds


@get("/gallery", operation_id="getGallery", guards=[requires(Scope.READ)], sync_to_thread=True)
def figures(services: Services) -> GalleryFigures:
    """Return the gallery in figures."""
    info = services.gallery.info()
    return GalleryFigures(
        encoder=info.encoder.name,
        dimensions=info.encoder.dimensions,
        people=info.people,
        faces=info.templates,
        unknown_faces=info.unknown_faces,
        generation=info.generation,
        threshold_l2=info.threshold_l2,
        size_bytes=info.size_bytes,
        read_only=info.read_only,
        encrypted=info.encrypted,
    )


@get("/thresholds", operation_id="getThresholds", guards=[requires(Scope.READ)], sync_to_thread=True)
def thresholds(services: Services) -> Thresholds:
    """Return the distances up to which faces are named: in use, the gallery's own, and people's own."""
    return _thresholds(services)


@put("/thresholds", operation_id="setThreshold", guards=[requires(Scope.MANAGE)], sync_to_thread=True)
def set_threshold(services: Services, data: ThresholdChange) -> Thresholds:
    """Give the gallery its own threshold, or take it away."""
    services.gallery.set_threshold(data.gallery_l2)
    return _thresholds(services)


def _thresholds(services: Services) -> Thresholds:
    gallery = services.gallery
    with gallery.one_state():
        own = {one.name: one.threshold_l2 for one in gallery.people() if one.threshold_l2 is not None}
        return Thresholds(
            gallery.default_threshold_l2, gallery.threshold_l2, NamingOptions().min_margin_l2, own
        )


router = Router("/v1", route_handlers=[figures, thresholds, set_threshold], tags=["gallery"])
