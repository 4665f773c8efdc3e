"""API keys: what each allows. Only the hashes of their secrets are stored."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from facepipe.core.errors import UsageError
from facepipe.server.database import ServerDatabase

_PREFIX = "fp"
_ID_BYTES, _SECRET_BYTES = 6, 32
_NO_HASH = bytes(hashlib.sha256().digest_size)


class Scope(IntEnum):
    """What a key allows; each scope includes those before it."""

    READ = 1
    """People, thresholds, figures."""
    IDENTIFY = 2
    """Photos: detect, embed, verify, identify, search."""
    MANAGE = 3
    """Changes of the gallery."""

    def __str__(self) -> str:
        return self.name.lower()


SCOPES = tuple(str(scope) for scope in Scope)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret.

    Attributes:
        id: The public part of the key, for logs.
        name: As its maker called it.
        scope: What it allows.
        created_at: ISO 8601, UTC.
        revoked_at: Likewise; None: it is valid.
    """

    id: str
    name: str
    scope: Scope
    created_at: str
    revoked_at: str | None = None


class ApiKeys:
    """The keys of a server.

    Every answer is read from the database: a key that was revoked is refused at once.
    Secrets are 256 random bits, so that their plain SHA-256 can't be guessed.

    Args:
        database: Holds them.
    """

    def __init__(self, database: ServerDatabase) -> None:
        self._database = database

    @property
    def is_remote(self) -> bool:
        """Whether a look-up may have to wait for another machine."""
        return self._database.is_remote

    @property
    def none_created(self) -> bool:
        """Whether no key was ever created, revoked ones included."""
        with self._database.reading() as sql:
            return sql is None or sql.execute("SELECT 1 FROM keys LIMIT 1").fetchone() is None

    @property
    def any_valid(self) -> bool:
        """Whether there is a key that is not revoked."""
        return any(key.revoked_at is None for key in self.all())

    def create(self, name: str, scope: Scope) -> str:
        """Make a key; its text is returned this once and not stored.

        Raises:
            UsageError: The name is empty or in use.
        """
        if not name.strip() or not name.isprintable():
            raise UsageError(f"a key needs a name of printable characters, got {name!r}")
        key_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
        with self._database.writing() as sql:
            if sql.execute("SELECT 1 FROM keys WHERE name = ? AND revoked_at IS NULL", (name,)).fetchone():
                raise UsageError(f"there is a key {name!r}: revoke it first, or choose another name")
            sql.execute(
                "INSERT INTO keys (id, name, scope, secret_sha256, created_at) VALUES (?, ?, ?, ?, ?)",
                (key_id, name, str(scope), _hash(secret), _now()),
            )
        return f"{_PREFIX}_{key_id}_{secret}"

    def all(self) -> list[ApiKey]:
        """Return all keys ever made, oldest first."""
        with self._database.reading() as sql:
            if sql is None:
                return []
            rows = sql.execute(
                "SELECT id, name, scope, created_at, revoked_at FROM keys ORDER BY created_at, id"
            ).fetchall()
        return [ApiKey(id, name, Scope[scope.upper()], *times) for id, name, scope, *times in rows]

    def revoke(self, name: str) -> None:
        """Refuse a key from now on.

        Raises:
            UsageError: There is no valid key of this name or id.
        """
        if not any(name in (key.name, key.id) and key.revoked_at is None for key in self.all()):
            raise UsageError(f"no valid key {name!r}: `facepipe serve keys list` names them")
        with self._database.writing() as sql:
            sql.execute(
                "UPDATE keys SET revoked_at = ? WHERE ? IN (name, id) AND revoked_at IS NULL", (_now(), name)
            )

    def find(self, text: str) -> ApiKey | None:
        """Return the valid key with this text; None: there is none. Takes as long for near misses."""
        _, key_id, secret = (*text.split("_", 2), "", "")[:3]
        row = None
        with self._database.reading() as sql:
            if sql is not None:
                row = sql.execute(
                    "SELECT secret_sha256, name, scope, created_at FROM keys"
                    " WHERE id = ? AND revoked_at IS NULL",
                    (key_id,),
                ).fetchone()
        secret_hash, *fields = row or (_NO_HASH,)
        if not hmac.compare_digest(_hash(secret), secret_hash) or row is None:
            return None
        name, scope, created_at = fields
        return ApiKey(key_id, name, Scope[scope.upper()], created_at)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
