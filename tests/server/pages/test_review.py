"""The first evening with the page, on photos of one person that are always there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect
from review_helpers import Review, Visitor, altered_copies, make_batch, reviewing

from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image

COPIES = 6


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    """A batch of photos of one person whom nobody knows."""
    folder = tmp_path_factory.mktemp("evening")
    (folder / "photos").mkdir()
    for number, photo in enumerate(altered_copies(astronaut, COPIES)):
        write_image(folder / "photos" / f"{number}.jpg", photo)
    make_batch(folder / "photos", folder / "out", folder / "gallery")
    return folder / "out"


@pytest.fixture
def review(out: Path) -> Iterator[Review]:
    with reviewing(out) as review:
        yield review


def test_a_group_is_named_and_taken_back(visitor: Visitor) -> None:
    page = visitor.page
    page.get_by_role("link", name="Name the unknown groups").click()
    page.get_by_role("link", name=f"{COPIES} faces").click()
    page.wait_for_url("**/review/group?*")
    visitor.arrive()
    page.get_by_role("option").nth(1).click()
    visitor.press("t")
    expect(page.locator("#kept")).to_have_text(str(COPIES - 1))
    page.get_by_role("combobox", name="Who is this?").fill("Eileen")
    visitor.press("Enter")
    page.wait_for_url("**/review/groups")

    visitor.open("person?name=Eileen")
    expect(page.locator(".face.confirmed")).to_have_count(COPIES - 1)

    expect(page.locator("#waiting")).to_have_text("")
    visitor.press("Control+z")
    expect(page.get_by_text("Undone")).to_be_visible()
    visitor.open("history")
    expect(page.locator(".steps .undone")).to_have_count(1)


def test_the_address_opens_once(review: Review, visitor: Visitor) -> None:
    stranger = httpx.get(review.address, headers={"Accept": "text/html"})
    assert stranger.status_code == 403
    assert "Ctrl-C" in stranger.text
    assert httpx.get(f"{review.base}/review/people").status_code == 403
    visitor.page.goto(review.address)
    visitor.page.wait_for_url("**/review/people")


def test_what_others_send_is_refused(review: Review, visitor: Visitor) -> None:
    cookies = {cookie["name"]: cookie["value"] for cookie in visitor.page.context.cookies()}
    with httpx.Client(base_url=review.base, cookies=cookies) as client:
        body = {"do": "rename", "name": "Eileen", "new_name": "Ada"}
        foreign = client.post("/review/changes", json=body, headers={"Origin": "http://evil.example"})
        assert (foreign.status_code, foreign.json()["code"]) == (403, "foreign_origin")
        rebound = client.get("/review/people", headers={"Host": "evil.example"})
        assert rebound.status_code == 421
        malformed = client.post("/review/changes", json={"do": "everything"})
        assert malformed.status_code == 400
    (cookie,) = visitor.page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"


def test_only_photos_of_the_library_are_served(review: Review, visitor: Visitor, out: Path) -> None:
    photos = out.parent / "photos"
    cookies = {cookie["name"]: cookie["value"] for cookie in visitor.page.context.cookies()}
    with httpx.Client(base_url=review.base, cookies=cookies) as client:
        served = client.get("/review/pictures/photos/1/original")
        assert served.headers["content-type"] == "image/jpeg"
        assert served.content in [photo.read_bytes() for photo in photos.iterdir()]
        assert client.get("/review/pictures/photos/999/original").status_code == 404
        assert client.get("/review/static/../../app.py").status_code == 404
        assert client.get("/review/static/%2e%2e/app.py").status_code == 404

        own = next(photo for photo in photos.iterdir() if photo.read_bytes() == served.content)
        own.rename(photos / "kept")
        own.symlink_to("/etc/passwd")
        try:
            assert client.get("/review/pictures/photos/1/original").status_code == 404
            assert b"root:" not in client.get("/review/pictures/photos/1/large").content
        finally:
            own.unlink()
            (photos / "kept").rename(own)


def test_ctrl_c_ends_it_and_the_results_have_the_names(review: Review, out: Path) -> None:
    with httpx.Client(base_url=review.base) as client:
        client.get(review.address).raise_for_status()
        group = client.get("/review/groups").text.partition("group?number=")[2].partition('"')[0]
        body = {"do": "name_group", "group": int(group), "name": "Eileen"}
        client.post("/review/changes", json=body).raise_for_status()
    code, rest = review.stop()
    assert code == 0
    assert "every answer is kept" in rest
    assert (out / "results.jsonl").read_text().count('"Eileen"') == COPIES
