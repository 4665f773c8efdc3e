"""The encoder of a gallery, as its file names it, and another one in its place."""

from __future__ import annotations

from dataclasses import replace

from facepipe.core.errors import FacepipeError
from facepipe.gallery.models import EncoderIdentity
from facepipe.gallery.storage.errors import DAMAGED, DamagedDatabaseError
from facepipe.gallery.storage.rows import Table
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, row_checksum


class EncoderRows(Table):
    """The encoder whose vectors a gallery holds."""

    def read(self) -> EncoderIdentity:
        """Return the encoder.

        Raises:
            DamagedDatabaseError: What the file says of it can't be used.
        """
        row = self._rows.sql.execute(
            "SELECT encoder_name, encoder_fingerprint, dimensions, threshold_l2 FROM meta"
        ).fetchone()
        try:
            return EncoderIdentity(*row)
        except (TypeError, FacepipeError) as error:  # TypeError: there is no row, or a value of another kind.
            raise DamagedDatabaseError(f"{self._rows.name}: {DAMAGED}") from error

    def set_fingerprint(self, fingerprint: str) -> None:
        """Store another fingerprint of the same encoder."""
        self._write(replace(self._rows.encoder, fingerprint=fingerprint))

    def replace(self, encoder: EncoderIdentity) -> None:
        """Name another encoder, after all vectors were replaced by its own.

        No index of before is of a state that the vectors went through any more, and whoever has the gallery
        open must open it again: see `Store.changing`.
        """
        self._write(encoder)
        self._rows.sql.execute("DELETE FROM vector_states")
        self._rows.note_vectors_changed()
        self._rows.note_wipe_due()

    def _write(self, encoder: EncoderIdentity) -> None:
        values = encoder_values(encoder)
        assignments = ", ".join(f"{column} = ?" for column in CHECKED_COLUMNS["meta"].split(", "))
        self._rows.sql.execute(
            f"UPDATE meta SET {assignments}, checksum = ?", (*values, row_checksum(*values))
        )


def encoder_values(encoder: EncoderIdentity) -> tuple[str, str, int, float]:
    """Return what the checked columns of `meta` hold of an encoder."""
    return encoder.name, encoder.fingerprint, encoder.dimensions, float(encoder.threshold_l2) + 0.0
