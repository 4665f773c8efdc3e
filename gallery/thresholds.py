"""The thresholds of a gallery: its own, those of its people, and what applies without them."""

from __future__ import annotations

from collections.abc import Callable

from facepipe.gallery.base import GalleryBase
from facepipe.gallery.models import require_threshold
from facepipe.gallery.search.views import NamingView


class ThresholdsMixin(GalleryBase):
    """The thresholds of a gallery."""

    @property
    def threshold_l2(self) -> float | None:
        """The gallery's own largest distance at which a face is named; None: the encoder's applies."""
        with self._store.reading():
            return self._store.settings.threshold()

    def set_threshold(self, threshold_l2: float | None) -> None:
        """Give the gallery its own threshold; None: take it away.

        Raises:
            UsageError: It is not within 0..2.
        """
        if threshold_l2 is not None:
            require_threshold(threshold_l2)
        with self._changing():
            self._store.settings.set_threshold(threshold_l2)

    def set_person_threshold(self, name: str, threshold_l2: float | None) -> None:
        """Give a person their own threshold, which goes before the gallery's; None: take it away.

        Raises:
            GalleryError: Nobody has this name.
            UsageError: The threshold is not within 0..2.
        """
        if threshold_l2 is not None:
            require_threshold(threshold_l2)
        with self._changing():
            self._store.people.set_threshold(self._stored_name(name), threshold_l2)

    @property
    def default_threshold_l2(self) -> float | None:
        """What `match` takes for people without a threshold of their own; None: none was set or measured."""
        return self._index.answer(self._default_threshold_of)

    def _default_threshold_of(self, view: NamingView) -> float | None:
        return self._default_threshold(view.threshold(), view.sizes)

    def _default_threshold(self, own_l2: float | None, sizes: Callable[[], tuple[int, int]]) -> float | None:
        """Return what `match` takes, from its own threshold and the sizes of a gallery."""
        return self.encoder.default_threshold_l2(*sizes()) or None if own_l2 is None else own_l2
