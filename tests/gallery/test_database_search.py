"""Naming from a gallery in PostgreSQL, from memory and by the server, beside one in a folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, start, template, templates, unit
from postgres_helpers import PostgresServer, new_database

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray
from facepipe.gallery import EncoderIdentity, Gallery, ranking
from facepipe.gallery import gallery as gallery_module
from facepipe.gallery.encoder_change import EncoderChange, NewVector
from facepipe.gallery.ranking import PersonDistance, rank_people
from facepipe.gallery.repair import repair, verify
from facepipe.gallery.restore import restore
from facepipe.gallery.search import database, memory
from facepipe.gallery.storage.errors import BusyDatabaseError
from facepipe.gallery.storage.home import Cursor
from facepipe.gallery.storage.postgres.shared_store import SharedStore

PEOPLE = 12
FACES = 5


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wiping does not wait for transactions that these tests hold open."""
    monkeypatch.setattr("facepipe.gallery.storage.postgres.wiping.WAIT_S", 0.0)


@pytest.fixture(params=["local", "server"])
def url(request: pytest.FixtureRequest, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The gallery in a database, searched in one of the two places, among fewer candidates than there are."""
    monkeypatch.setattr(ranking, "CANDIDATE_NEIGHBOURS", 20)
    monkeypatch.setattr(ranking, "MEASURED_PEOPLE", 4)
    return f"{postgres_url}&search={request.param}"


@pytest.fixture
def gallery(url: str) -> Iterator[Gallery]:
    """An open gallery of some people."""
    with Gallery.open(url, ENCODER, create=True) as opened:
        fill(opened)
        yield opened


def fill(gallery: Gallery) -> None:
    for person in range(PEOPLE):
        gallery.add(f"person {person}", templates(person_vectors(person, FACES)))


def queries() -> FloatArray:
    """Faces of the first people, and strangers."""
    return np.concatenate([person_vectors(person, FACES + 1)[-1:] for person in range(PEOPLE + 4)])


def everything_about(gallery: Gallery, asked: FloatArray) -> list[object]:
    """All that naming gives of some faces."""
    return [
        gallery.match(asked, threshold_l2=None),
        gallery.match(asked, threshold_l2=0.7, min_margin_l2=0.2, one_person_per_photo=False),
        gallery.match(asked, person_distance=PersonDistance.NEAREST),
        gallery.search(asked[:3], 5),
        gallery.nearest_others("person 1", asked),
        gallery.default_threshold_l2,
    ]


Change = Callable[[Gallery], object]

CHANGES: dict[str, Change] = {
    "add to a person": lambda g: g.add("person 1", templates(person_vectors(50, 3))),
    "add a person": lambda g: g.add("newcomer", templates(person_vectors(PEOPLE, 3))),
    "remove a person": lambda g: g.remove("person 2"),
    "rename": lambda g: g.rename("person 3", "renamed"),
    "merge": lambda g: g.merge("person 4", "person 5"),
    "remove a face": lambda g: g.remove_templates([g.templates("person 6")[0].id]),
    "remove all faces": lambda g: g.remove_templates([face.id for face in g.templates("person 7")]),
    "move a face": lambda g: g.move_templates([g.templates("person 8")[1].id], "person 9"),
    "move a face to nobody yet": lambda g: g.move_templates([g.templates("person 8")[0].id], "eight"),
    "a person's threshold": lambda g: g.set_person_threshold("person 9", 0.1),
    "the gallery's threshold": lambda g: g.set_threshold(0.9),
    "no threshold": lambda g: g.set_threshold(None),
    "remove the last one": lambda g: g.remove("newcomer"),
    "add once more": lambda g: g.add("person 2", templates(person_vectors(2, FACES))),
}


def test_answers_are_those_of_a_folder_after_every_change(url: str, tmp_path: Path) -> None:
    with (
        Gallery.open(tmp_path / "g", ENCODER, create=True) as folder,
        Gallery.open(url, ENCODER, create=True) as changed,
        Gallery.open(url, ENCODER) as followed,
    ):
        assert everything_about(changed, queries()) == everything_about(folder, queries())
        for gallery in (folder, changed):
            fill(gallery)
        for name, change in {"nothing": lambda _: None, **CHANGES}.items():
            change(folder)
            change(changed)
            expected = everything_about(folder, queries())
            assert everything_about(followed, queries()) == expected, name
            assert everything_about(changed, queries()) == expected, name


def test_more_people_than_neighbours_are_found(url: str, tmp_path: Path) -> None:
    """One person has more faces than are compared at once, and is left out to find the next."""
    crowd = unit(person_vectors(1, 1) + 0.02 * np.random.default_rng(3).normal(size=(150, 128)))
    asked = person_vectors(1, 2)
    answers = []
    for address in (url, str(tmp_path / "g")):
        with Gallery.open(address, ENCODER, create=True) as gallery:
            gallery.add("many", templates(crowd))
            fill(gallery)
            answers.append(everything_about(gallery, asked))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda g: g.remove("person 1"),
        lambda g: g.rename("person 1", "somebody else"),
        lambda g: g.merge("person 1", "person 2"),
    ],
    ids=["remove", "rename", "merge"],
)
def test_a_name_given_up_while_an_answer_is_made_is_not_in_it(
    gallery: Gallery, url: str, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = person_vectors(1, 1)
    assert gallery.match(asked)[0].name == "person 1"
    waiting = [change]

    def rank_and_be_overtaken(*arguments: object) -> object:
        found = rank_people(*arguments)  # type: ignore[arg-type]
        if waiting:
            with Gallery.open(url, ENCODER) as other:
                waiting.pop()(other)
        return found

    monkeypatch.setattr(gallery_module, "rank_people", rank_and_be_overtaken)
    (match,) = gallery.match(asked)
    assert not waiting
    assert "person 1" not in (match.name, match.runner_up_name, match.candidate_name)


def test_an_answer_whose_person_always_changes_is_refused(
    gallery: Gallery, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = person_vectors(1, 1)
    with Gallery.open(url, ENCODER) as other:

        def rank_and_be_overtaken(*arguments: object) -> object:
            found = rank_people(*arguments)  # type: ignore[arg-type]
            other.set_person_threshold("person 1", np.random.default_rng().uniform(0.5, 1.5))
            return found

        monkeypatch.setattr(gallery_module, "rank_people", rank_and_be_overtaken)
        with pytest.raises(BusyDatabaseError, match="changed again and again"):
            gallery.match(asked)


def test_others_who_change_do_not_hold_up_an_answer(
    gallery: Gallery, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[object] = []
    with Gallery.open(url, ENCODER) as other:

        def rank_and_be_overtaken(*arguments: object) -> object:
            found = rank_people(*arguments)  # type: ignore[arg-type]
            rounds.append(
                other.add(f"newcomer {len(rounds)}", templates(person_vectors(60 + len(rounds), 1)))
            )
            return found

        monkeypatch.setattr(gallery_module, "rank_people", rank_and_be_overtaken)
        assert gallery.match(person_vectors(1, 1))[0].name == "person 1"
    assert len(rounds) <= 2


def test_an_idle_process_follows_by_itself(postgres_url: str) -> None:
    asked = person_vectors(1, 1)
    with Gallery.open(f"{postgres_url}&search=local", ENCODER, create=True) as gallery:
        fill(gallery)
        gallery.match(asked)
        gallery.match(asked)  # From the second answer on it listens.
        with Gallery.open(postgres_url, ENCODER) as other:
            other.remove("person 1")
            expected = other.state
        search = gallery._index
        assert isinstance(search, database.DatabaseSearch)
        assert isinstance(search._chosen, memory.MemorySearch)
        deadline = time.monotonic() + 20
        while search._chosen._view is None or search._chosen._view.state != expected:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_match_from_memory_is_one_query(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.open(f"{postgres_url}&search=local", ENCODER, create=True) as gallery:
        fill(gallery)
        gallery.match(queries())
        monkeypatch.setattr(memory, "Listener", lambda *_: None)  # It asks for itself when it begins.
        queried: list[object] = []
        home = store_of(gallery).home
        glance = home.glance

        def counted_glance(*query: Any) -> Cursor:
            queried.append(query)
            return glance(*query)

        monkeypatch.setattr(home, "glance", counted_glance)
        monkeypatch.setattr(home, "reading", lambda *_: pytest.fail("a transaction"))
        gallery.match(queries())
        assert len(queried) == 1
        monkeypatch.undo()


def test_one_state_is_that_of_its_beginning(gallery: Gallery, url: str) -> None:
    asked = person_vectors(1, 1)
    gallery.match(asked)
    with gallery.one_state():
        before = gallery.match(asked)
        with Gallery.open(url, ENCODER) as other:
            other.remove("person 1")
        assert gallery.match(asked) == before
    assert gallery.match(asked)[0].name != "person 1"


def test_forked_processes_name_by_themselves(gallery: Gallery, url: str) -> None:
    asked = person_vectors(1, 1)
    for _ in range(2):
        gallery.match(asked)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.read(reader, 1)
        os._exit(1 if gallery.match(asked)[0].name == "person 1" else 0)
    with Gallery.open(url, ENCODER) as other:
        other.remove("person 1")
    os.write(writer, b".")
    assert os.waitpid(child, 0)[1] == 0
    assert gallery.match(asked)[0].name != "person 1"


NAMER = """
    import select, time
    url, out = sys.argv[1], []
    asked = person_vectors(1, 1)
    with Gallery.open(url, ENCODER) as gallery:
        gallery.match(asked)
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            began = time.monotonic()
            (match,) = gallery.match(asked)
            names = {match.name, match.runner_up_name, match.candidate_name}
            out += [(began, name) for name in names if name and name.startswith("P")]
    for began, name in out:
        print(began, name)
    """


def test_no_process_names_who_was_given_up_before_it_was_asked(url: str) -> None:
    """People of one face come and go, while other processes name it all the time."""
    given_up: dict[str, float] = {}
    with Gallery.open(url, ENCODER, create=True) as gallery:
        fill(gallery)
        namers = [start(NAMER, url) for _ in range(2)]
        for namer in namers:
            assert namer.stdout is not None
            assert namer.stdout.readline() == "ready\n"
        number, end = 0, time.monotonic() + 4
        while time.monotonic() < end or number < 5:
            names = [f"P{number}", f"P{number}b", f"P{number}c"]
            gallery.add(names[0], [template(person_vectors(1, 1)[0], f"{number}")])
            gallery.add(names[1], [template(person_vectors(1, 1)[0], f"{number}b")])
            gallery.rename(names[0], names[2])
            given_up[names[0]] = time.monotonic()
            gallery.merge(names[1], names[2])
            given_up[names[1]] = time.monotonic()
            gallery.remove(names[2])
            given_up[names[2]] = time.monotonic()
            number += 1
        answers = [line.split() for namer in namers for line in namer.communicate()[0].splitlines()]
    assert answers  # They saw some of those who came and went.
    for began, name in answers:
        assert name not in given_up or float(began) < given_up[name], name


def test_another_encoder_with_longer_vectors(gallery: Gallery, url: str) -> None:
    longer = EncoderIdentity("longer", "f" * 16, 200, 0.9)
    new = unit(np.random.default_rng(1).normal(size=(PEOPLE * FACES, 200)))
    ids = [face.id for person in range(PEOPLE) for face in gallery.templates(f"person {person}")]
    with Gallery.open(url, ENCODER) as open_meanwhile:
        open_meanwhile.match(queries())
        vectors = {id: NewVector(vector) for id, vector in zip(ids[1:], new[1:], strict=True)}
        assert gallery.change_encoder(EncoderChange(longer, gallery.state, vectors)) == 1
        with pytest.raises(GalleryError, match="made anew for another encoder"):
            open_meanwhile.match(queries())
    with Gallery.open(url, longer) as again:
        assert [match.name for match in again.match(new[[1, -1]])] == ["person 0", f"person {PEOPLE - 1}"]
        assert max(again.add("new", templates(new[:1]))) > max(ids)
        assert again.match(new[:1])[0].name == "new"


def test_ids_are_never_given_again(gallery: Gallery) -> None:
    last = max(face.id for face in gallery.templates(f"person {PEOPLE - 1}"))
    gallery.remove(f"person {PEOPLE - 1}")
    (added,) = gallery.add("new", templates(person_vectors(70, 1)))
    assert added > last


def test_an_encrypted_gallery_is_searched_from_memory_only(postgres_url: str) -> None:
    server = f"{postgres_url}&search=server"
    with Gallery.open(server, ENCODER, create=True) as gallery:
        fill(gallery)
        expected = gallery.match(queries())
        gallery.encrypt(b"a key")
    with pytest.raises(GalleryError, match="encrypted, so the server can't search it: use search=local"):
        Gallery.open(server, ENCODER, secret=b"a key")
    with Gallery.open(postgres_url, ENCODER, secret=b"a key") as gallery:
        assert gallery.match(queries()) == expected
        assert not has_table_of_vectors(gallery)


def has_table_of_vectors(gallery: Gallery) -> bool:
    with gallery.one_state():
        return store_of(gallery).vectors.is_there()


def store_of(gallery: Gallery) -> SharedStore:
    assert isinstance(gallery._store, SharedStore)
    return gallery._store


def test_by_size_the_server_searches_where_it_was_prepared(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def place(address: str) -> str:
        with Gallery.open(address, ENCODER) as gallery:
            gallery.match(queries())
            search = gallery._index
            assert isinstance(search, database.DatabaseSearch)
            return type(search._chosen).__name__

    with Gallery.open(postgres_url, ENCODER, create=True) as gallery:
        fill(gallery)
    assert place(postgres_url) == "MemorySearch"
    monkeypatch.setattr(database, "MEMORY_TEMPLATES_MAX", PEOPLE * FACES - 1)
    with caplog.at_level(logging.WARNING):
        assert place(postgres_url) == "MemorySearch"
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "each process reads all 60 faces into its memory: to let the server search, open it once with "
        "search=server; else ask for search=local"
    ]
    assert place(f"{postgres_url}&search=server") == "ServerSearch"
    assert place(postgres_url) == "ServerSearch"
    assert place(f"{postgres_url}&search=local") == "MemorySearch"
    monkeypatch.undo()
    assert place(postgres_url) == "MemorySearch"


def test_without_the_extension(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "MEMORY_TEMPLATES_MAX", 1)
    with new_database(postgres_server, vector=False) as name:
        url = postgres_server.url(name)
        with Gallery.open(url, ENCODER, create=True) as gallery:
            fill(gallery)
            with caplog.at_level(logging.WARNING):
                for _ in range(3):
                    assert gallery.match(person_vectors(1, 1))[0].name == "person 1"
        (record,) = caplog.records
        assert "let a superuser run CREATE EXTENSION vector in its database" in record.getMessage()
        with pytest.raises(GalleryError, match="let a superuser run CREATE EXTENSION vector there"):
            Gallery.open(f"{url}&search=server", ENCODER)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM template_vectors WHERE template_id = 7",
        "UPDATE template_vectors SET embedding = other.embedding FROM template_vectors AS other"
        " WHERE template_vectors.template_id = 7 AND other.template_id = 1",
    ],
)
def test_a_damaged_table_of_vectors_is_made_again(postgres_url: str, damage: str) -> None:
    server = f"{postgres_url}&search=server"
    with Gallery.open(server, ENCODER, create=True) as gallery:
        fill(gallery)
        expected = gallery.match(queries())
        assert verify(server) == ()
        with gallery._store.changing():
            gallery._store._rows.sql.execute(damage)
        assert [finding.code for finding in verify(server)] == ["index"]
        assert [finding.code for finding in repair(server).findings] == ["index"]
        assert verify(server) == ()
        assert gallery.match(queries()) == expected


def test_a_restored_gallery_is_searched_by_the_server(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Where the gallery as it was is kept.
    server = f"{postgres_url}&search=server"
    with Gallery.open(server, ENCODER, create=True) as gallery:
        fill(gallery)
        expected = gallery.match(queries())
        gallery.backup(tmp_path / "backup")
        gallery.remove("person 1")
        assert gallery.match(queries()) != expected
    restore(server, tmp_path / "backup", ENCODER)
    assert verify(server) == ()
    with Gallery.open(server, ENCODER) as gallery:
        assert gallery.match(queries()) == expected
