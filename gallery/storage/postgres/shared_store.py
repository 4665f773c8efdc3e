"""The truth of a gallery that many processes on many machines share, in PostgreSQL."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from facepipe.gallery.storage.home import Cursor, Home
from facepipe.gallery.storage.postgres.vector_table import VectorTable
from facepipe.gallery.storage.store import Store


class SharedHome(Home, Protocol):
    """What a server's database can do beside holding tables."""

    @property
    def is_inside(self) -> bool:
        """Whether a transaction is open, inside `alone`."""

    def alone(self) -> AbstractContextManager[Any]:
        """Keep the connection from other threads."""

    def glance(self, query: str, *values: Any) -> Cursor:
        """Run a query by itself, of the present state; one round trip to the server."""

    def listen(self) -> Any:
        """Return a new connection of psycopg that gets a notification after every change."""


class SharedStore(Store):
    """The rows of one gallery, and what tells that others have changed them.

    Args:
        home: As for `Store`.
        secret: As for `Store`.

    Attributes:
        home: The database.
        vectors: The table by which the server searches.
    """

    def __init__(self, home: SharedHome, secret: bytes | None = None) -> None:
        super().__init__(home, secret)
        self.home = home
        self.vectors = VectorTable(self._rows)

    @property
    def gallery(self) -> str:
        """What messages about the gallery begin with."""
        return self.home.gallery

    def people_changed_after(self, generation: int) -> list[int]:
        """Return the people who were removed, renamed or given another threshold by later changes.

        Also those who lost templates, or got some of others. Inside a transaction.
        """
        rows = self._rows.sql.execute(
            "SELECT DISTINCT person_id FROM changed_people WHERE generation > ?", (generation,)
        ).fetchall()
        return [id for (id,) in rows]

    def present_state(self) -> str:
        """Return the name of the state that the database is in now. Outside of any transaction."""
        generation, state = self.home.glance("SELECT generation, state FROM meta").fetchone()
        return f"{generation}-{state.hex()}"

    def people_changed_now(self, generation: int) -> set[int]:
        """Do as `people_changed_after` does, of the state that the database is in now.

        Outside of any transaction.
        """
        rows = self.home.glance("SELECT person_id FROM changed_people WHERE generation > ?", generation)
        return {id for (id,) in rows.fetchall()}
