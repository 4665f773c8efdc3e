"""The vectors of templates as pgvector searches them: a table of its own beside that of the templates."""

from __future__ import annotations

from collections.abc import Iterator
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
_SEARCHED = 400
"""Nodes of the graph that a search keeps."""
_SPARE = 8  # Of float32 distances that are equal but for rounding, the exact ones choose.
_NODE_BYTES = 800  # Of the graph while it is built, beside the vector.
_BUILD_MB = (64, 2048)  # At least PostgreSQL's default; no more than most servers can spare.
_ROWS_AT_ONCE = 4096
_HEAD_BYTES = 4  # Of a vector in pgvector's binary form: its length and an unused number.


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

    def prepare(self, *, exact: bool = False) -> None:
        """Set how this transaction searches: by the graph or, `exact`, by comparing all vectors."""
        self._rows.sql.execute(
            "SELECT set_config('hnsw.ef_search', ?, true), set_config('hnsw.iterative_scan', ?, true),"
            " set_config('enable_indexscan', ?, true)",
            (str(_SEARCHED), "strict_order", "off" if exact else "on"),
        )

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
