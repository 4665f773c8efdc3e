"""The vectors of templates as pgvector searches them: a table of its own beside that of the templates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray
from facepipe.gallery.index.parts import IdArray
from facepipe.gallery.models import Finding
from facepipe.gallery.storage.rows import Table

DIMENSIONS_MAX = 2000
"""Of pgvector's indexes."""

_CONNECTIONS, _CONSTRUCTION = 16, 128
"""Edges of a node of the graph, and candidates for them; docs/gallery.md has figures of others."""
SEARCH_SETTINGS = {"hnsw.ef_search": "400", "hnsw.iterative_scan": "strict_order"}
"""Of every connection: nodes of the graph that a search keeps, and that it goes on where they are too few."""
_SPARE = 8  # Of float32 distances that are equal but for rounding, the exact ones choose.
_NODE_BYTES = 800  # Of the graph while it is built, beside the vector.
_BUILD_MB = (64, 2048)  # At least PostgreSQL's default; no more than most servers can spare.
_ROWS_AT_ONCE = 4096
_HEAD_BYTES = 4  # Of a vector in pgvector's binary form: its length and an unused number.


_LIKELY_PEOPLE = """WITH
    asked AS MATERIALIZED (
        SELECT place, query::{type} AS query
        FROM unnest(?::text[]) WITH ORDINALITY AS queries (query, place)),
    owners AS MATERIALIZED (
        SELECT place, person_id, min(l2) AS l2 FROM asked
        CROSS JOIN LATERAL (
            SELECT template_id, embedding {distance} asked.query AS l2 FROM template_vectors
            ORDER BY embedding {distance} asked.query LIMIT ?) AS near
        CROSS JOIN LATERAL (SELECT person_id FROM templates WHERE id = template_id LIMIT 1) AS owner
        GROUP BY place, person_id),
    means AS MATERIALIZED (
        SELECT person_id, mean FROM (SELECT DISTINCT person_id FROM owners) AS people
        CROSS JOIN LATERAL (
            SELECT {schema}.l2_normalize({schema}.avg(embedding)) AS mean
            FROM templates JOIN template_vectors ON template_id = id
            WHERE templates.person_id = people.person_id) AS mean_of_person),
    ranked AS (
        SELECT place, person_id, row_number() OVER (
            PARTITION BY place ORDER BY least(l2, mean {distance} query), person_id) AS rank
        FROM owners JOIN means USING (person_id) JOIN asked USING (place)),
    likely AS MATERIALIZED (SELECT place, person_id FROM ranked WHERE rank <= ?)
SELECT place, person_id, NULL, 0 AS template_id FROM likely
UNION ALL
SELECT 0, person_id, {schema}.vector_send(embedding), template_id
FROM (SELECT DISTINCT person_id FROM likely) AS people
CROSS JOIN LATERAL (
    SELECT template_id, embedding FROM templates JOIN template_vectors ON template_id = id
    WHERE templates.person_id = people.person_id) AS own
ORDER BY 1, 2, 4"""
"""LATERAL makes the planner look rows up one by one, whatever it believes of their number."""


class VectorTable(Table):
    """The table `template_vectors` of a gallery in PostgreSQL, where it was asked for.

    It is derived from the templates: every transaction that adds some adds their vectors here, and rows go
    with their templates. The ids, people and exact vectors that name a face are those of the templates.
    """

    _known_type: str | None = None

    def is_there(self) -> bool:
        """Return whether the gallery has this table."""
        return self._rows.exists(
            "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('template_vectors')"
            " AND attname = 'embedding' AND NOT attisdropped"  # As where the extension was dropped.
        )

    def is_possible(self) -> bool:
        """Return whether the database has the extension `vector`."""
        return self._type() is not None

    def create(self) -> None:
        """Make the table and its graph, of all templates. Inside a changing transaction.

        Whoever may read the templates may read it.

        Raises:
            GalleryError: The database has no extension `vector`, or vectors are too long for it.
        """
        sql, dimensions = self._rows.sql, self._rows.value("SELECT dimensions FROM meta")
        if dimensions > DIMENSIONS_MAX:
            raise GalleryError(
                f"{self._rows.gallery}: pgvector searches vectors of at most {DIMENSIONS_MAX} numbers, those "
                f"of this encoder have {dimensions}: use search=local"
            )
        type = self._required_type()
        self.drop()
        sql.execute(
            "CREATE TABLE template_vectors ("
            "template_id bigint PRIMARY KEY REFERENCES templates (id) ON DELETE CASCADE, "
            f"embedding {type}({dimensions}) NOT NULL)"
        )
        sql.execute("ALTER TABLE template_vectors ALTER embedding SET STORAGE PLAIN")
        self.add_new()
        count = self._rows.count("template_vectors")
        needed_mb = count * (_NODE_BYTES + 8 * dimensions) >> 20
        sql.execute(f"SET LOCAL maintenance_work_mem = '{min(max(needed_mb, _BUILD_MB[0]), _BUILD_MB[1])}MB'")
        sql.execute(
            f"CREATE INDEX template_vectors_graph ON template_vectors USING hnsw (embedding {type}_l2_ops)"
            f" WITH (m = {_CONNECTIONS}, ef_construction = {_CONSTRUCTION})"
        )
        for grantee, privilege in sql.execute(
            "SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,"
            " privilege_type FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = 'templates'::regclass"
        ).fetchall():
            sql.execute(f"GRANT {privilege} ON template_vectors TO {grantee}")

    def drop(self) -> None:
        """Delete the table, where there is one. Inside a changing transaction."""
        self._rows.sql.execute("DROP TABLE IF EXISTS template_vectors")

    def add_new(self) -> None:
        """Add the vectors of the templates that came since. Inside a changing transaction."""
        last = self._rows.value("SELECT coalesce(max(template_id), 0) FROM template_vectors")
        type = self._required_type()
        rows = self._rows.sql.stream("SELECT id, vector FROM templates WHERE id > ? ORDER BY id", (last,))
        while some := list(islice(rows, _ROWS_AT_ONCE)):  # One statement after the other on a connection.
            self._rows.sql.executemany(
                f"INSERT INTO template_vectors VALUES (?, ?::text::{type})",
                [(id, _text(np.frombuffer(vector, "<f4"))) for id, vector in some],
            )

    def nearest(
        self, queries: FloatArray, count: int, exclude_ids: IdArray
    ) -> Iterator[tuple[IdArray, FloatArray]]:
        """Yield the nearest templates of each query that the graph finds, some more than `count`.

        Args:
            queries: float32 (n, d).
            count: Neighbours wanted; where the graph gives fewer, all vectors are compared.
            exclude_ids: int64, ids to pass over.

        Yields:
            Ids int64 (k,) and vectors float32 (k, d), in no order.
        """
        type = self._required_type()
        operator = f"OPERATOR({type.rpartition('.')[0]}.<->)"
        query = (
            f"SELECT place, template_id, {type}_send(embedding) FROM unnest(?::text[])"
            " WITH ORDINALITY AS asked (query, place) CROSS JOIN LATERAL ("
            "SELECT template_id, embedding FROM template_vectors WHERE template_id <> ALL (?)"
            f" ORDER BY embedding {operator} asked.query::{type} LIMIT ?) AS found"
        )
        rows = self._rows.sql.execute(
            query, ([_text(one) for one in queries], exclude_ids.tolist(), count + _SPARE)
        ).fetchall()
        places = np.array([row[0] for row in rows], np.int64)
        ids = np.array([row[1] for row in rows], np.int64)
        vectors = self._vectors([row[2] for row in rows])
        for place in range(1, len(queries) + 1):
            yield ids[places == place], vectors[places == place]

    def likely_people(
        self, queries: FloatArray, neighbours: int, people: int
    ) -> tuple[list[IdArray], IdArray, FloatArray]:
        """Find who may be the nearest of each query float32 (n, d), by the nearest template or the mean.

        Args:
            queries: Unit vectors.
            neighbours: The owners of so many nearest templates are compared, by distances in float32.
            people: Of these, so many are returned.

        Returns:
            Of each query the ids of people, rising; of all their templates, by rising ids of people and then
            of templates, the person int64 (m,) and the vector float32 (m, d).
        """
        type = self._required_type()
        schema = type.rpartition(".")[0]
        rows = self._rows.sql.execute(
            _LIKELY_PEOPLE.format(type=type, distance=f"OPERATOR({schema}.<->)", schema=schema),
            ([_text(one) for one in queries], neighbours, people),
        ).fetchall()
        places = np.array([row[0] for row in rows], np.int64)
        ids = np.array([row[1] for row in rows], np.int64)
        of_each = [np.sort(ids[places == place]) for place in range(1, len(queries) + 1)]
        vectors = self._vectors([row[2] for row in rows if row[2] is not None])
        return of_each, ids[places == 0], vectors

    def vectors_of(self, ids: IdArray) -> tuple[IdArray, FloatArray]:
        """Return the ids int64 (n,) of those `ids` that there are, each once, and their vectors."""
        rows = self._rows.sql.execute(
            f"SELECT template_id, {self._required_type()}_send(embedding) FROM template_vectors"
            " WHERE template_id = ANY (?)",
            (np.unique(ids).tolist(),),
        ).fetchall()
        return np.array([row[0] for row in rows], np.int64), self._vectors([row[1] for row in rows])

    def findings(self) -> Iterator[Finding]:
        """Yield one finding where the table does not hold the vectors of the templates, exactly."""
        type = self._required_type()
        rows = self._rows.sql.stream(
            f"SELECT vector, {type}_send(embedding) FROM templates"
            " LEFT JOIN template_vectors ON template_id = templates.id"
        )
        for vector, sent in rows:
            if sent is None or np.frombuffer(sent[_HEAD_BYTES:], ">f4").astype("<f4").tobytes() != vector:
                yield Finding("index", "template_vectors: does not hold the vectors of the templates")
                return

    @contextmanager
    def comparing_all(self) -> Iterator[None]:
        """Let `nearest` compare all vectors inside, not those that the graph finds."""
        self._rows.sql.execute("SELECT set_config('enable_indexscan', 'off', true)")
        yield
        self._rows.sql.execute("SELECT set_config('enable_indexscan', 'on', true)")

    def _type(self) -> str | None:
        """Return the name of pgvector's type with its schema, as SQL has it; None: it is not installed."""
        if self._known_type is None:
            row = self._rows.sql.execute(
                "SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid ="
                " extnamespace WHERE extname = 'vector'"
            ).fetchone()
            self._known_type = row and f"{row[0]}.vector"
        return self._known_type

    def _required_type(self) -> str:
        type = self._type()
        if type is None:
            raise GalleryError(
                f"{self._rows.gallery}: searching in the server needs the extension vector (pgvector) in "
                "this database: install it on the server and let a superuser run CREATE EXTENSION vector "
                "there, or use search=local"
            )
        return type

    def _vectors(self, sent: list[bytes]) -> FloatArray:
        """Vectors float32 (n, d) from pgvector's binary form."""
        numbers = np.frombuffer(b"".join(one[_HEAD_BYTES:] for one in sent), ">f4")
        return numbers.astype(np.float32).reshape(len(sent), self._rows.encoder.dimensions)


def _text(vector: FloatArray) -> str:
    """A vector as pgvector reads it, exactly."""
    return str(vector.tolist())
