"""Requests to the page as scripts and bookmarks send them, without a browser, on made-up faces."""

from __future__ import annotations

import io
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from library_helpers import analyze, face_of, make_batch
from litestar import Litestar
from litestar.testing import TestClient

from facepipe.batch.job import Job
from facepipe.library.advice import MIN_RIGHT
from facepipe.library.library import Library
from facepipe.server.pages.analysis import AnalysisControl
from facepipe.server.pages.app import create_page_app
from facepipe.server.pages.library_thread import LibraryThread
from facepipe.server.pages.photo_list import PhotoFilter, find_photos
from facepipe.server.pages.session import SIGN_IN_PATH, PageSession
from facepipe.server.settings import ServerSettings

PHOTOS = {"one": ["ada", "bob"], "two": ["ada"], "three": ["ada"], "four": ["bob"]}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return make_batch(tmp_path, PHOTOS)


@pytest.fixture
def page(out: Path) -> Iterator[TestClient[Litestar]]:
    """A client that is signed in; Ada has a confirmed face in `two`, Bob one in `four`."""
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.confirm([face_of(library, "four")], "Bob")
        library.name_again()
    with signed_in(out) as client:
        yield client


@contextmanager
def signed_in(out: Path) -> Iterator[TestClient[Litestar]]:
    """The page of a batch."""
    with LibraryThread(lambda: Library.open(out)) as thread, AnalysisControl(thread) as analysis:
        session = PageSession(80)
        app = create_page_app(thread, analysis, session, ServerSettings(out, port=0))
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            client.get(SIGN_IN_PATH, params={"token": session.token}).raise_for_status()
            yield client


def post(page: TestClient[Litestar], path: str, **body: Any) -> Any:
    return page.post(f"/review/{path}", json=body).raise_for_status().json()


@pytest.mark.parametrize("query", ["since=tomorrow", "until=2019-13-45", "since=2019-07-31T00:00"])
def test_a_day_that_is_none_is_refused(page: TestClient[Litestar], query: str) -> None:
    answer = page.get(f"/review/photos?{query}", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "day")
    assert "2019-07-31" in answer.json()["message"]


def test_a_step_that_was_taken_back_takes_no_other_with_it(page: TestClient[Litestar]) -> None:
    """Of two windows with the history, one has undone the last step already."""
    hidden = post(page, "changes", do="set_hidden", name="Bob", is_hidden=True)
    assert post(page, "undo", to=hidden["step"])["label"] == "Bob hidden"
    assert post(page, "undo", to=hidden["step"])["label"] is None
    assert post(page, "undo", to=hidden["step"] - 1)["label"] == "1 face confirmed as Bob"
    assert post(page, "undo", to=0)["label"] is None


def test_a_person_is_found_in_every_copy_of_a_photo(out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "photos" / "elsewhere" / "copy.png"
    copy.parent.mkdir()
    shutil.copy(tmp_path / "photos" / "two.png", copy)
    with Job(out) as job:
        job.plan(sorted((tmp_path / "photos").rglob("*.png")))
        analyze(job, {**PHOTOS, "copy": ["ada"]})
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.confirm([face_of(library, "four")], "Bob")
        library.name_everything()
        everywhere = find_photos(library, PhotoFilter(people=("Ada",), without=("Bob",)))
        assert sorted(photo.path.stem for photo in everywhere) == ["copy", "three", "two"]
        (only,) = find_photos(library, PhotoFilter(people=("Ada",), folder="elsewhere"))
        assert only.path == copy


@pytest.mark.parametrize("query", ["person=Nobody", "person=Ada&person=Nobody", "person="])
def test_an_album_of_somebody_whom_no_photo_shows_is_refused(page: TestClient[Litestar], query: str) -> None:
    answer = page.get(f"/review/album.zip?{query}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert query.rpartition("=")[2] in answer.json()["message"]
    assert page.get("/review/album.zip").status_code == 400
    assert page.get("/review/album.zip?person=Ada").headers["Content-Type"] == "application/zip"


def test_an_album_of_photos_that_can_not_be_read_is_refused(
    page: TestClient[Litestar], tmp_path: Path
) -> None:
    def photos(who: str = "person=Ada") -> tuple[list[str], list[str]]:
        album = page.get(f"/review/album.zip?{who}").raise_for_status()
        with zipfile.ZipFile(io.BytesIO(album.content)) as pieces:
            counts = re.findall("<p>(.*)</p>", pieces.read("album/index.html").decode())
            return [name for name in pieces.namelist() if name.startswith("album/photos/")], counts

    found, counts = photos()
    assert (len(found), counts) == (3, ["3 photos"])
    (tmp_path / "photos" / "one.png").unlink()
    shutil.copy(tmp_path / "photos" / "four.png", tmp_path / "photos" / "three.png")
    assert photos() == (["album/photos/00001.jpg"], ["1 photo, 2 more could not be read"])
    (tmp_path / "photos" / "two.png").unlink()
    answer = page.get("/review/album.zip?person=Ada", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "photo")
    for words in ("none of its photos can be read", "one.png: can't be read", "is its disk there?"):
        assert words in answer.json()["message"]


def test_thresholds_are_set_and_taken_back(page: TestClient[Litestar]) -> None:
    assert (shown(page, "Ada"), shown(page, "Bob")) == (3, 2)
    label = post(page, "changes", do="set_threshold", name="Ada", threshold_l2=0.1)["label"]
    assert label == "Ada is named up to 0.10"
    assert (shown(page, "Ada"), shown(page, "Bob")) == (1, 2)
    label = post(page, "changes", do="set_threshold", name=None, threshold_l2=0.2)["label"]
    assert label == "names are given up to 0.20"
    assert (shown(page, "Ada"), shown(page, "Bob")) == (1, 1)
    post(page, "undo")
    post(page, "undo")
    assert (shown(page, "Ada"), shown(page, "Bob")) == (3, 2)
    refused = page.post("/review/changes", json={"do": "set_threshold", "name": "Eve", "threshold_l2": 1.0})
    assert (refused.status_code, refused.json()["code"]) == (409, "refused")


def shown(page: TestClient[Litestar], name: str) -> int:
    """How many faces have a name, once names have followed from all changes."""
    deadline = time.monotonic() + 20
    while page.get("/review/state").json()["photos_left"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return page.get(f"/review/person?name={name}").text.count('class="face')


def test_an_advised_threshold_is_offered_until_it_is_taken(tmp_path: Path) -> None:
    out = make_batch(tmp_path, {f"{name}{n}": [name] for name in ("ada", "eve") for n in range(MIN_RIGHT)})
    with Library.open(out) as library:
        for name, decide in (("ada", library.confirm), ("eve", library.reject)):
            decide([face_of(library, f"{name}{number}") for number in range(MIN_RIGHT)], "Ada")
        library.set_threshold(None, 0.1)
    with signed_in(out) as page:
        advised = page.get("/review/advice").text
        (threshold,) = set(re.findall(r'data-threshold="([0-9.]+)"', advised))
        post(page, "changes", do="set_threshold", name=None, threshold_l2=float(threshold))
        assert "data-threshold" not in page.get("/review/advice").text.partition("Ada:")[0]


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
@pytest.mark.parametrize(
    ("path", "status"),
    [("/review/nowhere", 404), ("/review/photos?since=tomorrow", 400), ("/review/people", 500)],
)
def test_every_error_carries_the_id_of_its_request(
    page: TestClient[Litestar],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    status: int,
    accept: str,
) -> None:
    if status == 500:
        monkeypatch.setattr(Library, "people", lambda self: 1 / 0)
    answer = page.get(path, headers={"Accept": accept})
    id = answer.headers["X-Request-ID"]
    assert (answer.status_code, answer.headers["Content-Type"].split(";")[0]) == (status, accept)
    assert len(id) == 16
    assert id in answer.text
    assert (f"request {id} failed" in caplog.text) == (status == 500)


def test_a_gallery_whose_file_is_away_is_worth_another_try(
    page: TestClient[Litestar], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gallery").rename(tmp_path / "away")
    body = {"do": "set_threshold", "name": None, "threshold_l2": 1.0}
    answer = page.post("/review/changes", json=body)
    assert (answer.status_code, answer.json()["code"]) == (503, "gallery_unreachable")
    assert "not there" in answer.json()["message"]
    assert page.get("/review/person?name=Ada", headers={"Accept": "text/html"}).status_code == 503
    assert not any(record.exc_info for record in caplog.records)
    (tmp_path / "away").rename(tmp_path / "gallery")
    assert page.post("/review/changes", json=body).status_code == 200
