"""A batch that was interrupted goes on from its page, and photos that come are shown with their names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from busy_job import worked_with
from playwright.sync_api import APIResponse, Browser, expect
from review_helpers import PHONE, Review, Visitor, altered_copies, make_batch, reviewing, visit

from facepipe.batch.job import Job
from facepipe.batch.progress_file import RunningBatch, write_progress
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image
from facepipe.library.library import Library

ANALYZED, WAITING = 3, 5


@pytest.fixture
def out(tmp_path: Path, astronaut: UInt8Array) -> Path:
    """A batch that was interrupted after some of its photos; one of those left is no photo."""
    photos = tmp_path / "photos"
    photos.mkdir()
    copies = list(altered_copies(astronaut, ANALYZED + WAITING - 1))
    for number, photo in enumerate(copies[:ANALYZED]):
        write_image(photos / f"{number}.jpg", photo)
    make_batch(photos, tmp_path / "out", tmp_path / "gallery")
    for number, photo in enumerate(copies[ANALYZED:], ANALYZED):
        write_image(photos / f"{number}.jpg", photo)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")
    with Job(tmp_path / "out") as job:
        job.plan(sorted(photos.iterdir()))
    return tmp_path / "out"


@pytest.fixture
def review(out: Path) -> Iterator[Review]:
    with reviewing(out) as review:
        yield review


def test_photos_that_wait_are_analyzed_from_the_page(visitor: Visitor, review: Review, out: Path) -> None:
    page = visitor.page
    page.set_viewport_size(PHONE)
    visitor.open("photos")
    expect(page.locator("#analysis-text")).to_have_text(f"{WAITING} photos of 8 not analyzed yet")
    assert Axe().run(page, context="#analysis").violations_count == 0
    page.get_by_role("button", name="Analyze them now").click()
    expect(page.locator("#analysis-text")).to_have_text("All 8 photos analyzed", timeout=60_000)
    page.get_by_role("link", name="Show the new photos").click()
    expect(page.locator(".photos > li .tile")).to_have_count(8)
    visitor.open("photos?show=failures")
    expect(page.locator(".photos > li .tile")).to_have_count(1)
    assert review.stop()[0] == 0
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [bool(record["error"]) for record in records].count(True) == 1
    assert len(records) == 8


def test_a_pause_keeps_what_was_found(visitor: Visitor, review: Review, out: Path) -> None:
    request = visitor.page.request
    headers = {"Origin": visitor.base}
    assert request.post(f"{visitor.base}/review/analysis/start", headers=headers).json()["is_running"]
    paused = request.post(f"{visitor.base}/review/analysis/pause", headers=headers).json()
    assert not paused["is_running"]
    assert paused["waiting"] + paused["done"] + paused["failed"] == ANALYZED + WAITING
    again = request.post(f"{visitor.base}/review/analysis/start", headers=headers)
    assert again.ok
    assert review.stop()[0] == 0
    with Library.open(out) as library:
        counts = library.photo_counts()
        assert counts.done >= ANALYZED
        assert len(library.photos) == counts.done + counts.failed


def test_photos_of_an_erased_person_come_back_without_the_name(visitor: Visitor) -> None:
    """Erasing somebody leaves the photos waiting."""
    page = visitor.page
    visitor.open("groups")
    page.get_by_role("link", name=f"{ANALYZED} faces").click()
    visitor.arrive("Group")
    page.get_by_role("combobox", name="Who is this?").fill("Eileen")
    visitor.press("Enter")
    page.wait_for_url("**/review/groups")
    headers = {"Origin": visitor.base}
    erased = page.request.post(
        f"{visitor.base}/review/erase", headers=headers, data=json.dumps({"name": "Eileen"})
    )
    assert erased.ok
    visitor.open("photos")  # none is left
    expect(page.locator("#analysis-text")).to_have_text("8 photos of 8 not analyzed yet")
    page.get_by_role("button", name="Analyze them now").click()
    expect(page.locator("#analysis-text")).to_have_text("All 8 photos analyzed", timeout=60_000)
    visitor.open("people")
    expect(page.get_by_text("Eileen")).to_have_count(0)


def test_a_folder_is_added_and_analyzed(visitor: Visitor, tmp_path: Path, astronaut: UInt8Array) -> None:
    page, more = visitor.page, tmp_path / "more"
    more.mkdir()
    write_image(more / "new.jpg", astronaut)
    visitor.open("photos")
    page.get_by_text("Add a folder").click()
    field = page.get_by_label("Path of a folder on this machine")
    assert Axe().run(page, context="#folder-add").violations_count == 0
    for path, told in ((f"{more}/missing", "there is no such folder"), ("more", "expected the whole path")):
        field.fill(path)
        visitor.press("Enter")
        expect(page.locator("#messages")).to_contain_text(told)
    assert [text for text in visitor.complaints if "409" not in text] == []
    visitor.complaints.clear()
    field.fill(str(more))
    page.get_by_role("button", name="Add and analyze").click()
    expect(page.locator("#messages")).to_contain_text("1 photo added")
    expect(page.locator("#analysis-text")).to_have_text("All 9 photos analyzed", timeout=60_000)
    visitor.open("photos")
    expect(page.locator(".photos > li .tile")).to_have_count(9)


def test_a_batch_of_another_process_is_watched_and_taken_over(
    out: Path, browser: Browser, request: pytest.FixtureRequest
) -> None:
    with Library.open(out) as library:
        group = library.groups()[0].number
    with worked_with(out) as batch:
        write_progress(out, RunningBatch(8, 5, 1, 5, 0, 1.5, 70.0))
        with reviewing(out) as review, browser.new_context() as context:
            visitor = visit(context, review.base)
            page = visitor.page
            page.goto(review.address)
            page.wait_for_url("**/review/people")
            visitor.open("photos")
            told = "6 photos of 8 analyzed by another facepipe, 1.5/s, 1 failed, 2 min left"
            expect(page.locator("#analysis-text")).to_contain_text(told)
            expect(page.locator("#waiting")).to_contain_text("look only")
            expect(page.locator(".photos > li .tile")).to_have_count(ANALYZED)
            change = {"do": "name_group", "group": group, "without": [], "name": "Eileen"}
            refused = _post(visitor, "changes", change)
            assert (refused.status, "another facepipe works with it" in refused.text()) == (409, True)
            assert _post(visitor, "analysis/start", {}).status == 409
            batch.kill()
            expect(page.locator("#analysis-start")).to_be_visible(timeout=20_000)
            expect(page.locator("#waiting")).not_to_contain_text("look only")
            assert _post(visitor, "changes", change).ok
            assert visitor.complaints == []
            assert review.stop()[0] == 0
    with Library.open(out) as library:
        assert [person.name for person in library.people()] == ["Eileen"]


def _post(visitor: Visitor, path: str, body: dict[str, object]) -> APIResponse:
    url, headers = f"{visitor.base}/review/{path}", {"Origin": visitor.base}
    return visitor.page.request.post(url, headers=headers, data=json.dumps(body))


def test_a_batch_of_other_weights_says_so(out: Path) -> None:
    with Job(out) as job:
        settings = {"detector": "retinaface_missing 0123456789ab", "encoder": job.setting("encoder")}
        job.require_settings(settings, again=True)
    with reviewing(out) as review:
        with httpx.Client(base_url=review.base, follow_redirects=True) as client:
            client.get(review.address)
            answer = client.post("/review/analysis/start", headers={"Origin": review.base})
        assert answer.status_code == 409
        assert "retinaface_missing" in answer.json()["message"]
