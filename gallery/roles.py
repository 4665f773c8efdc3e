"""SQL that gives PostgreSQL roles no more rights on a gallery than they need."""

from __future__ import annotations

from collections.abc import Iterator

from facepipe.core.errors import UsageError
from facepipe.gallery.address import GalleryAddress, PostgresAddress

_NAME_BYTES_MAX = 63


def roles_sql(address: GalleryAddress, reader: str | None, writer: str | None) -> str:
    """Return statements that make roles, unless they exist, and give them their rights on a gallery.

    A reader's role identifies, and can change nothing. A writer's adds and erases people too; it can't change
    or drop tables, so that it can't encrypt the gallery or bring it to a newer schema. The statements are run
    in the gallery's database by a role that may make roles, and by the owner of the schema or a superuser.

    Args:
        address: Of the gallery; nothing is looked up there.
        reader: Name of a role; None: without one.
        writer: Likewise.

    Raises:
        UsageError: The gallery is a folder, or a name can't be that of a role.
    """
    if not isinstance(address, PostgresAddress):
        raise UsageError(f"{address}: roles are PostgreSQL's: who may read or change a folder, its mode says")
    schema = address.schema
    lines = [
        f"-- Rights on the gallery in the schema {schema}: for psql, in its database.",
        "-- Passwords are set by \\password ROLE.",
        "DO $facepipe$",
        f"DECLARE owner text := (SELECT nspowner::regrole FROM pg_namespace WHERE nspname = '{schema}');",
        "BEGIN",
    ]
    if reader:
        lines += _rights(reader, schema, "SELECT", "SELECT")
    if writer:
        lines += _rights(writer, schema, "SELECT, INSERT, UPDATE, DELETE", "USAGE, SELECT, UPDATE")
        lines += _vacuum_rights(writer, schema)
    return "\n".join([*lines, "END $facepipe$;"])


def _rights(role: str, schema: str, on_tables: str, on_sequences: str) -> Iterator[str]:
    name = _identifier(role)
    yield f"    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {_literal(role)}) THEN"
    yield f"        CREATE ROLE {name} LOGIN;"
    yield "    END IF;"
    yield f"    GRANT USAGE ON SCHEMA {schema} TO {name};"
    for rights, objects in ((on_tables, "TABLES"), (on_sequences, "SEQUENCES")):
        yield f"    GRANT {rights} ON ALL {objects} IN SCHEMA {schema} TO {name};"
        yield f"    {_default(rights, objects, role, schema)}"


def _vacuum_rights(role: str, schema: str) -> Iterator[str]:
    yield "    IF current_setting('server_version_num')::int >= 170000 THEN  -- to clear away what it erased"
    yield f"        GRANT MAINTAIN ON ALL TABLES IN SCHEMA {schema} TO {_identifier(role)};"
    yield f"        {_default('MAINTAIN', 'TABLES', role, schema)}"
    yield "    END IF;"


def _default(rights: str, objects: str, role: str, schema: str) -> str:
    """The statement for tables of later versions, which belong to the owner of the schema."""
    statement = f"ALTER DEFAULT PRIVILEGES FOR ROLE %s IN SCHEMA {schema} GRANT {rights} ON {objects} TO %I"
    return f"EXECUTE format('{statement}', owner, {_literal(role)});"


def _identifier(name: str) -> str:
    is_plain = name.isprintable() and 0 < len(name.encode()) <= _NAME_BYTES_MAX
    if not is_plain or name.startswith("pg_") or name == "public" or "$facepipe$" in name:
        raise UsageError(f"{name!r}: a role's name is 1 to {_NAME_BYTES_MAX} bytes of text, and not pg_...")
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'" if "\\" in text else f"'{escaped}'"
