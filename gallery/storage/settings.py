"""The table of settings: the gallery's own threshold, and what belongs to its key."""

from __future__ import annotations

from typing import Any

from facepipe.core.errors import GalleryError
from facepipe.gallery.models import is_threshold
from facepipe.gallery.storage.encryption import KEY_SETTINGS, setting_statement
from facepipe.gallery.storage.rows import Table
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, COPY_SETTING, THRESHOLD_SETTING, row_checksum


class Settings(Table):
    """All settings."""

    def all(self) -> list[tuple[Any, Any, Any]]:
        """All rows: key, value and checksum."""
        query = f"SELECT {CHECKED_COLUMNS['settings']}, checksum FROM settings"
        return self._rows.sql.execute(query).fetchall()

    def threshold(self) -> float | None:
        """Return the gallery's own threshold; None: it has none that can be used.

        Raises:
            GalleryError: A setting is damaged that may have been the threshold.
        """
        threshold = None
        for key, value, checksum in self.all():
            if row_checksum(key, value) != checksum and key not in KEY_SETTINGS:
                raise GalleryError(
                    f"{self._rows.gallery}: a setting, perhaps the threshold, is damaged: run "
                    "`facepipe gallery repair`"
                )
            if key == THRESHOLD_SETTING:
                threshold = value
        return threshold if is_threshold(threshold) else None

    def copied_from(self) -> bytes | None:
        """Return what `set_copied_from` stored; None: no copy into this gallery is under way."""
        found = [value for key, value, _ in self.all() if key == COPY_SETTING]
        return bytes(found[0]) if found else None

    def set_copied_from(self, mark: bytes | None) -> None:
        """Note which gallery is being copied into this one; None: it is there as a whole."""
        self._rows.sql.execute("DELETE FROM settings WHERE key = ?", (COPY_SETTING,))
        if mark is not None:
            self._rows.sql.execute(*setting_statement(COPY_SETTING, mark))

    def set_threshold(self, threshold_l2: float | None) -> None:
        """Give the gallery its own threshold; None: take it away."""
        self._rows.sql.execute("DELETE FROM settings WHERE key = ?", (THRESHOLD_SETTING,))
        if threshold_l2 is not None:
            self._rows.sql.execute(*setting_statement(THRESHOLD_SETTING, float(threshold_l2) + 0.0))
