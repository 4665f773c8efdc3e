"""Folders and URLs that name a gallery."""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from facepipe.core.errors import UsageError
from facepipe.gallery.address import (
    DEFAULT_SCHEMA,
    PostgresAddress,
    SearchPlace,
    default_address,
    parse_address,
)

SECRET = "Xq7secretXq7"
words = st.text(min_size=1, max_size=12).filter(lambda text: SECRET not in text and "\0" not in text)
schemas = st.builds(
    str.__add__,
    st.sampled_from("fpq_"),
    st.text("agpz059_", max_size=53),
).filter(lambda name: not name.startswith("pg_"))
hosts = st.sampled_from(["", "db", "db:6432", "[::1]:5432", "a:1,b:2", "127.0.0.1", "%2Frun%2Fpostgresql"])


@st.composite
def urls(draw: st.DrawFn) -> tuple[str, str, str]:
    """Draw a URL with a password somewhere in it, the same one without, and the schema."""
    scheme = draw(st.sampled_from(["postgresql://", "postgres://"]))
    host = draw(hosts) + draw(st.sampled_from(["", "/", "/people"]))
    user, schema = quote(draw(words), safe=""), draw(schemas)
    others = [f"application_name={quote(draw(words), safe='')}", "sslmode=verify-full"]
    secrets = ["password", "sslpassword", "pass%77ord"]
    shown = [] if schema == DEFAULT_SCHEMA else [f"schema={schema}"]
    if draw(st.booleans()):
        login, query = f"{user}:{SECRET}{quote(draw(words), safe='')}@", others
    else:
        login, query = f"{user}@", [*others, f"{draw(st.sampled_from(secrets))}={SECRET}"]
    query = draw(st.permutations([*query, f"schema={schema}"]))
    kept = [each for each in query if each in others]
    return (
        f"{scheme}{login}{host}?{'&'.join(query)}",
        f"{scheme}{user}@{host}?{'&'.join([*kept, *shown])}",
        schema,
    )


@settings(max_examples=60)
@given(urls())
def test_the_password_goes_to_libpq_only(url: tuple[str, str, str]) -> None:
    text, shown, schema = url
    address = parse_address(text)
    assert isinstance(address, PostgresAddress)
    assert (str(address), address.schema, address.has_password) == (shown, schema, True)
    for form in (str(address), repr(address), f"{address}", str([address])):
        assert SECRET not in form
    assert SECRET in address.conninfo
    assert "schema=" not in address.conninfo
    assert parse_address(shown) == address.without_password()
    assert not address.without_password().has_password
    assert pickle.loads(pickle.dumps(address)) == address


@settings(max_examples=40)
@given(urls())
def test_libpq_understands_what_it_gets(url: tuple[str, str, str]) -> None:
    conninfo = pytest.importorskip("psycopg.conninfo", reason="needs the [postgres] extra")
    address = parse_address(url[0])
    assert isinstance(address, PostgresAddress)
    with_password = conninfo.conninfo_to_dict(address.conninfo)
    secrets = {name: value for name, value in with_password.items() if SECRET in value}
    assert len(secrets) == 1
    without = conninfo.conninfo_to_dict(address.without_password().conninfo)
    assert without == {name: value for name, value in with_password.items() if name not in secrets}


@given(st.text(max_size=30))
def test_other_text_is_a_folder_or_refused(text: str) -> None:
    assume(":/" not in text and not text.lower().startswith("postgres"))
    assert parse_address(text) == Path(text)
    assert parse_address(Path(text)) == Path(text)


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://me:{SECRET}@x@db/people",
        f"postgresql://me:{SECRET}/x@db/people",
        f"postgresql://me:{SECRET}?x@db/people",
        f"postgresql://me:{SECRET}/people",  # the host was forgotten
        f"postgresql://db/people?password={SECRET}@",
        f"postgresql://me:{SECRET}%@db/people",
        f"postgresql://me:{SECRET}%00@db/people",
        f"postgresql://db/people?{SECRET}",
        f"postgresql://me@db/people?password={SECRET}=",
        f"postgresql://me:{SECRET} @db/people",
        f"postgresql:/me:{SECRET}@db/people",  # went through a Path
        f"PostgreSQL://me:{SECRET}@db/people",
        f"mysql://me:{SECRET}@db/people",
        f"postgresql+psycopg://me:{SECRET}@db/people",
    ],
)
def test_a_url_that_is_not_understood_is_refused_and_not_shown(text: str) -> None:
    for form in (text, Path(text)):
        with pytest.raises(UsageError, match="a gallery is a folder or a PostgreSQL database") as caught:
            parse_address(form)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["", "Upper", "1st", "pg_catalog", 'a"b', "a;b", "a%20b", "x" * 55])
def test_a_schema_has_a_plain_name(name: str) -> None:
    with pytest.raises(UsageError, match=r"a schema's name is 1 to 54 of a-z, 0-9 and _"):
        parse_address(f"postgresql://db/people?schema={name}")
    with pytest.raises(UsageError, match="schema is given twice"):
        parse_address("postgresql://db/people?schema=a&schema=a")


def test_an_address_is_taken_as_it_is() -> None:
    address = PostgresAddress("postgresql:///?service=faces", "family")
    assert parse_address(address) is address
    assert str(address) == "postgresql:///?service=faces&schema=family"
    assert parse_address(str(address)) == address
    with pytest.raises(UsageError):
        PostgresAddress(f"host=db password={SECRET}")


def test_the_variable_names_a_folder_or_a_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACEPIPE_HOME", str(tmp_path))
    monkeypatch.delenv("FACEPIPE_GALLERY", raising=False)
    assert default_address() == tmp_path / "gallery"
    monkeypatch.setenv("FACEPIPE_GALLERY", "")
    assert default_address() == tmp_path / "gallery"
    monkeypatch.setenv("FACEPIPE_GALLERY", "~/faces")
    assert default_address() == Path.home() / "faces"
    monkeypatch.setenv("FACEPIPE_GALLERY", "postgresql://db/people")
    assert default_address() == PostgresAddress("postgresql://db/people")


@pytest.mark.parametrize("place", SearchPlace)
def test_the_url_says_where_faces_are_compared(place: SearchPlace) -> None:
    address = parse_address(f"postgresql://db/people?search={place.value}&sslmode=require&schema=family")
    assert isinstance(address, PostgresAddress)
    assert (address.search, address.schema) == (place, "family")
    assert address.conninfo == "postgresql://db/people?sslmode=require"
    assert parse_address(str(address)) == address
    assert address.without_password() == address


def test_faces_are_compared_in_one_of_two_places() -> None:
    with pytest.raises(UsageError, match=r"search='nowhere' in the gallery's URL is not local or server"):
        parse_address("postgresql://db/people?search=nowhere")
