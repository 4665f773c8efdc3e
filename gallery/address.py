"""Where a gallery is: in a folder, or in a schema of a PostgreSQL database that a URL names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from urllib.parse import unquote

from facepipe.core.errors import UsageError
from facepipe.core.home import default_gallery, expand_home

GALLERY_VARIABLE = "FACEPIPE_GALLERY"
"""Environment variable with the folder or URL of the user's own gallery."""

DEFAULT_SCHEMA = "facepipe"
"""Schema of the database that a gallery is in, unless the URL has `?schema=NAME`."""

_URL = re.compile(
    r"(?P<scheme>postgres(?:ql)?://)"
    r"(?:(?P<user>[^/@:?]*)(?P<password>:[^/@?]*)?@)?"
    r"(?P<hosts>[^/?@]*)(?P<database>/[^?@]*)?(?:\?(?P<query>[^@]*))?"
)
_HOST = re.compile(r"(?:\[[^\[\]]*\]|[^:\[\]]*)(?::[0-9]*)?")
_PARAMETER = re.compile(r"[^=&]+=[^=&]*")
_NOT_ENCODED = re.compile(r"%(?![0-9a-fA-F]{2})|%00|\s")
_ANY_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|postgres(?:ql)?:", re.IGNORECASE)
_SCHEMA = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,53}")
_SECRET_PARAMETERS = frozenset(
    ["password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"]
)
_OWN_PARAMETERS = frozenset(["schema", "search"])
"""Taken out of the URL before libpq reads it."""
_FORM = "postgresql://[USER@]HOST[:PORT]/DATABASE[?schema=NAME&search=local|server]"


class SearchPlace(Enum):
    """Where faces are compared with those of a gallery in PostgreSQL. The values are stable codes of URLs."""

    LOCAL = "local"
    """In the memory of each process."""
    SERVER = "server"
    """In the database, by pgvector."""


@dataclass(frozen=True, slots=True, repr=False)
class PostgresAddress:
    """A PostgreSQL database and the schema that the gallery is in.

    `str` gives the URL without its password and other secrets, fit for messages, logs and files;
    `parse_address` reads it back.

    Attributes:
        conninfo: The URL as libpq takes it, with the password if it was given in the URL.
        schema: Name of the schema: at most 54 of a-z, 0-9 and _.
        search: Where faces are compared; None: by the size of the gallery.

    Raises:
        UsageError: Not such a URL, or not such a name.
    """

    conninfo: str
    schema: str = DEFAULT_SCHEMA
    search: SearchPlace | None = None

    def __post_init__(self) -> None:
        _split(self.conninfo)
        if not _SCHEMA.fullmatch(self.schema):
            raise UsageError(
                f"schema={self.schema!r}: a schema's name is 1 to 54 of a-z, 0-9 and _, "
                "without a digit first, and not pg_..."
            )

    def __str__(self) -> str:
        url = self.without_password().conninfo
        own = [f"schema={self.schema}"] if self.schema != DEFAULT_SCHEMA else []
        own += [f"search={self.search.value}"] if self.search else []
        return f"{url}{'&' if '?' in url else '?'}{'&'.join(own)}" if own else url

    def __repr__(self) -> str:
        return f"PostgresAddress({str(self)!r})"

    @property
    def has_password(self) -> bool:
        """Whether the URL itself holds a password or another secret."""
        return self.without_password() != self

    def without_password(self) -> PostgresAddress:
        """Return the address without the secrets in its URL."""
        parts = _split(self.conninfo)
        kept = [text for name, text in _parameters(parts["query"]) if name not in _SECRET_PARAMETERS]
        return replace(self, conninfo=_join(parts | {"password": ""}, kept))


GalleryAddress = Path | PostgresAddress
"""Where a gallery is."""


def parse_address(text: str | os.PathLike[str] | PostgresAddress) -> GalleryAddress:
    """Return where a gallery is, from a folder's path or a URL.

    Args:
        text: `postgresql://...` or `postgres://...` as libpq takes it, with the schema as `schema=NAME`, and
            where faces are compared as `search=local` or `search=server`, among its parameters; anything else
            that is no URL is a folder.

    Raises:
        UsageError: A URL of another kind, or one that is not well formed. The message does not show it, since
            it may hold a password.
    """
    if isinstance(text, PostgresAddress):
        return text
    text = os.fspath(text)
    if not _ANY_URL.match(text):
        return Path(text)
    parts = _split(text)
    own: dict[str, str] = {}
    others = []
    for name, parameter in _parameters(parts["query"]):
        if name not in _OWN_PARAMETERS:
            others.append(parameter)
        elif name in own:
            raise UsageError(f"postgresql://...: {name} is given twice in the gallery's URL")
        else:
            own[name] = unquote(parameter.partition("=")[2])
    search = _search_place(own["search"]) if "search" in own else None
    return PostgresAddress(_join(parts, others), own.get("schema", DEFAULT_SCHEMA), search)


def _search_place(value: str) -> SearchPlace:
    places = [place.value for place in SearchPlace]
    if value not in places:
        raise UsageError(
            f"postgresql://...: search={value!r} in the gallery's URL is not {' or '.join(places)}"
        )
    return SearchPlace(value)


def default_address() -> GalleryAddress:
    """Return the user's own gallery: `$FACEPIPE_GALLERY`, a folder or a URL, or `$FACEPIPE_HOME/gallery`.

    Raises:
        UsageError: The variable holds a URL of another kind, or no home folder is known.
    """
    text = os.environ.get(GALLERY_VARIABLE)
    if not text:
        return default_gallery()
    address = parse_address(text)
    return expand_home(text) if isinstance(address, Path) else address


def _split(url: str) -> dict[str, str]:
    """Return the parts of a URL as libpq divides it; those that are absent are empty."""
    match = _URL.fullmatch(url)
    parts = {name: text or "" for name, text in match.groupdict().items()} if match else {}
    if (
        not match
        or not url.isprintable()
        or _NOT_ENCODED.search(url)
        or not all(_HOST.fullmatch(host) for host in parts["hosts"].split(","))
        or not all(_PARAMETER.fullmatch(text) for _, text in _parameters(parts["query"]))
    ):
        raise UsageError(
            "a gallery is a folder or a PostgreSQL database, and this URL can't be understood (it is not "
            f"shown, since it may hold a password): expected {_FORM}, with @ / : ? & = and % in names and "
            "passwords written as %40 %2F %3A %3F %26 %3D and %25"
        )
    return parts


def _parameters(query: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the whole text of each `name=value`."""
    for text in filter(None, query.split("&")):
        yield unquote(text.partition("=")[0]), text


def _join(parts: dict[str, str], parameters: list[str]) -> str:
    login = f"{parts['user']}{parts['password']}"
    url = f"{parts['scheme']}{login and f'{login}@'}{parts['hosts']}{parts['database']}"
    return f"{url}?{'&'.join(parameters)}" if parameters else url
