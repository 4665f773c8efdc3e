"""Errors of PostgreSQL, as errors that name the database and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from facepipe.core.errors import GalleryError, one_line
from facepipe.gallery.storage.errors import BusyDatabaseError, DamagedDatabaseError, LostDatabaseError

NOTHING_CHANGED = "nothing was changed"
NOT_KNOWN = (
    "the connection was lost while a change was committed, so whether it was done is not known: look before "
    "you repeat it"
)
_LOST = f"the connection to the server was lost; {NOTHING_CHANGED}: try again"
_NO_ROOM = f"the server's disk is full; {NOTHING_CHANGED}: make room there first"
_READ_ONLY = (
    f"the server may only be read (a replica, or default_transaction_read_only is on); {NOTHING_CHANGED}: "
    "give the address of the primary server"
)
_NOT_ALLOWED = (
    "the role that logs in may not do this ({text}): let the owner of the schema do it, or grant it"
)

_BY_SQLSTATE = {
    "28P01": "the password is wrong, or the role is not known: check user and password (also ~/.pgpass)",
    "28000": "the server does not let this user in ({text}): check user, password and its pg_hba.conf",
    "3D000": "there is no such database ({text}): make it with `createdb`, or check the URL",
    "42501": _NOT_ALLOWED,
    "25006": _READ_ONLY,
    "53100": _NO_ROOM,
    "53200": f"the server is out of memory; {NOTHING_CHANGED}: try again, or give it more",
    "53300": "the server has too many connections ({text}): try again, or raise its max_connections",
    "53400": f"a limit of the server's configuration is reached ({{text}}); {NOTHING_CHANGED}: raise it",
    "57014": f"the server stopped the statement ({{text}}); {NOTHING_CHANGED}: raise statement_timeout",
    "57P03": "the server is starting or shutting down ({text}): try again in a moment",
    "55P03": f"another process has kept the gallery busy; {NOTHING_CHANGED}: try again",
    "40P01": f"the server broke a deadlock; {NOTHING_CHANGED}: try again",
    "40001": f"another process changed the same rows; {NOTHING_CHANGED}: try again",
    "25P02": f"a statement had failed; {NOTHING_CHANGED}: try again",
    "25P03": f"the server ended an idle transaction; {NOTHING_CHANGED}: try again",
    "25P04": f"the server ended the transaction; {NOTHING_CHANGED}: raise transaction_timeout",
    "0A000": "the server can't do this ({text}): upgrade PostgreSQL to 13 or newer",
    "42P01": "a table of the gallery is missing ({text}): restore a backup of the database",
    "42703": "a column of the gallery is missing ({text}): restore a backup of the database",
    "XX001": "the server finds its files damaged ({text}): restore a backup of the database",
    "XX002": "the server finds an index damaged ({text}): let its owner run REINDEX",
}
_TOO_MANY = "53300"
_DAMAGE = ("42P01", "42703", "XX001", "XX002")
_BUSY = ("55P03", "40P01", "40001")

# What libpq says where it names no SQLSTATE. The texts of a server in another language are shown as they are.
_BY_TEXT = (
    ("password authentication failed", "28P01"),
    ("no password supplied", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("authentication failed", "28000"),
    ("too many clients", "53300"),
    ("too many connections", "53300"),
    ("remaining connection slots", "53300"),
    ("the database system is", "57P03"),
)


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Raise errors of PostgreSQL as one kind of error, which begins with `name`."""
    try:
        yield
    except psycopg.Error as error:
        raise error_of(name, error) from error


def error_of(name: str, error: psycopg.Error) -> GalleryError:
    """Return an error of PostgreSQL as one that begins with `name` and ends with the cure."""
    state = _state_of(error)
    return _kind_of(state, error)(f"{name}: {_explanation(state, error)}")


def _kind_of(state: str, error: psycopg.Error) -> type[GalleryError]:
    if state in _DAMAGE:
        return DamagedDatabaseError
    if state in _BUSY:
        return BusyDatabaseError
    is_lost = state == _TOO_MANY or _is_loss(state, error)
    return LostDatabaseError if is_lost else GalleryError


def _is_loss(state: str, error: psycopg.Error) -> bool:
    """Whether the connection is gone, or the server starts or stops."""
    return state.startswith(("57P", "08")) or (not state and isinstance(error, psycopg.OperationalError))


def _explanation(state: str, error: psycopg.Error) -> str:
    text = one_line(error.diag.message_primary or error)
    if state in _BY_SQLSTATE:
        return _BY_SQLSTATE[state].format(text=text)
    if _is_loss(state, error):
        return f"{_LOST} ({text})"
    return f"{text} (PostgreSQL's error {state or type(error).__name__})"


def _state_of(error: psycopg.Error) -> str:
    if error.sqlstate:
        return error.sqlstate
    text = str(error)
    if 'database "' in text and "does not exist" in text:
        return "3D000"
    if 'role "' in text and "does not exist" in text:
        return "28000"
    return next((state for part, state in _BY_TEXT if part in text), "")


def no_connection(name: str, error: psycopg.Error) -> GalleryError:
    """Return the error of a connection that can't be made."""
    if _state_of(error) in _BY_SQLSTATE:
        return error_of(name, error)
    return LostDatabaseError(
        f"{name}: no connection to the server ({one_line(error)}): check that it runs, and the address"
    )
