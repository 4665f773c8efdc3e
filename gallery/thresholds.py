"""The thresholds of a gallery: its own, those of its people, and what applies without them."""

from __future__ import annotations

from facepipe.gallery.base import GalleryBase
from facepipe.gallery.models import require_threshold


class ThresholdsMixin(GalleryBase):
    """The thresholds of a gallery."""

    _people_counted = (-1, 0)  # At which generation, and how many.

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
        with self._store.reading():
            return self._default_threshold(len(self._index.current()))  # SQLite counts row by row.

    def _default_threshold(self, templates: int) -> float | None:
        """Inside a transaction."""
        own_l2 = self._store.settings.threshold()
        if own_l2 is not None:
            return own_l2
        return self.encoder.default_threshold_l2(templates, self._people_count()) or None

    def _people_count(self) -> int:
        """Inside a transaction; SQLite counts row by row, so only after a change."""
        generation = self._store.generation()
        if self._people_counted[0] != generation:
            self._people_counted = (generation, self._store.people.count())
        return self._people_counted[1]
