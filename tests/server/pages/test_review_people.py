"""All that the page does, on photos of several people."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from cli_helpers import facepipe
from PIL import Image
from playwright.sync_api import Browser, Route, expect
from review_helpers import PHONE, Review, Visitor, make_batch, reviewing, visit

from facepipe.images.reading import read_image

KNOWN = ("Ada", "Ben", "Clara")
PAGES = ("people", "person?name=Ada", "questions", "groups", "photos", "checked", "history", "album")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A folder with a gallery of three people, and a batch of their photos and of two strangers'."""
    people = shared_data / "photos" / "people"
    folder = tmp_path_factory.mktemp("people")
    for name, source in zip(KNOWN, sorted((people / "enroll").iterdir()), strict=False):
        shutil.copytree(source, folder / "enroll" / name)
        shutil.copytree(people / "probe" / "known" / source.name, folder / "photos" / f"{name}'s")
    for source in sorted((people / "probe" / "strangers").iterdir())[:2]:
        shutil.copytree(source, folder / "photos" / source.name)
    _write_pair(folder)
    (folder / "photos" / "broken.jpg").write_bytes(b"no photo")
    assert facepipe("enroll", folder / "enroll", "--gallery", folder / "gallery").code in (0, 3)
    make_batch(folder / "photos", folder / "out", folder / "gallery")
    return folder


def _write_pair(folder: Path) -> None:
    """A photo with Ada and Ben, taken on a known day."""
    sides = [read_image(sorted((folder / "enroll" / name).iterdir())[0]) for name in ("Ada", "Ben")]
    height = min(len(side) for side in sides)
    pair = np.hstack([side[:height] for side in sides])
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2019:07:31 12:00:00"
    Image.fromarray(pair).save(folder / "photos" / "pair.jpg", quality=95, exif=exif)


@pytest.fixture
def review(made: Path, tmp_path: Path) -> Iterator[Review]:
    """The page on a copy: what a test decides is not there for the next."""
    for part in ("out", "gallery"):
        shutil.copytree(made / part, tmp_path / part)
    with reviewing(tmp_path / "out", "--gallery", tmp_path / "gallery") as review:
        yield review


def test_faces_are_confirmed_and_rejected_by_keys(visitor: Visitor) -> None:
    page = visitor.page
    visitor.open("person?name=Ada")
    count = page.locator(".face").count()
    page.locator(".face").first.focus()
    visitor.press("y", "y")
    expect(page.locator(".face.confirmed")).to_have_count(2)
    visitor.press("n")
    expect(page.locator(".face.gone")).to_have_count(1)
    visitor.wait_until_saved()

    visitor.open("person?name=Ada")
    expect(page.locator(".face")).to_have_count(count - 1)
    expect(page.locator(".face.confirmed")).to_have_count(2)
    expect(page.locator(".head")).to_contain_text("2 checked")


def test_a_range_becomes_somebody_new(visitor: Visitor) -> None:
    page = visitor.page
    visitor.open("person?name=Ben")
    page.locator(".face").nth(0).click()
    page.locator(".face").nth(2).click(modifiers=["Shift"])
    expect(page.locator("#bar-text")).to_have_text("3 faces are selected")
    visitor.press("e")
    page.get_by_label("Name", exact=True).fill("Bert")
    visitor.press("Enter")
    expect(page.locator(".face.gone")).to_have_count(3)
    visitor.wait_until_saved()
    visitor.open("person?name=Bert")
    expect(page.locator(".face")).to_have_count(3)


def test_all_are_confirmed_at_once(visitor: Visitor) -> None:
    page = visitor.page
    visitor.open("person?name=Clara")
    count = page.locator(".face").count()
    page.locator(".face").first.focus()
    visitor.press("Control+a", "y")
    expect(page.locator(".face.confirmed")).to_have_count(count)
    visitor.wait_until_saved()
    visitor.open("people")
    expect(page.get_by_role("link", name="Clara")).to_contain_text("all checked")

    visitor.open("person?name=Ben")
    page.get_by_role("button", name="All are right").click()
    page.get_by_role("dialog").get_by_role("button", name="All are right").click()
    expect(page.locator("#messages")).to_contain_text("faces confirmed as Ben")
    visitor.arrive()
    visitor.open("people")
    expect(page.get_by_role("link", name="Ben")).to_contain_text("all checked")


def test_people_are_renamed_merged_hidden_and_shown_by_another_face(visitor: Visitor) -> None:
    page = visitor.page
    visitor.open("person?name=Ada")
    face = page.locator(".face").nth(1)
    face_id = face.get_attribute("data-id")
    face.focus()
    visitor.press("c")
    expect(page.locator(f".cover[src*='{face_id}']")).to_be_visible()

    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Name", exact=True).fill("Ada Lovelace")
    visitor.press("Enter")
    visitor.arrive("Ada Lovelace")

    page.get_by_role("button", name="Merge").click()
    page.get_by_label("Name", exact=True).fill("Ben")
    visitor.press("Enter")
    visitor.arrive("Ben")

    page.get_by_role("button", name="Hide").click()
    page.wait_for_url("**/review/people")
    expect(page.get_by_role("link", name="Ben")).to_have_count(0)
    page.get_by_role("link", name="1 hidden").click()
    expect(page.get_by_role("link", name="Ben")).to_be_visible()

    visitor.open("history")
    page.get_by_role("button", name="Undo back to here").last.click()
    expect(page.locator(".steps .undone")).to_have_count(4)
    visitor.wait_until_named()
    visitor.open("people")
    expect(page.get_by_role("link", name="Ada")).to_be_visible()


def test_erasing_says_what_and_can_be_cancelled(visitor: Visitor) -> None:
    page = visitor.page
    visitor.open("person?name=Ada")
    page.get_by_role("button", name="Erase").click()
    dialog = page.get_by_role("dialog", name="Erase Ada?")
    expect(dialog).to_contain_text("can't be undone")
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="Ada", level=1)).to_be_visible()

    page.get_by_role("button", name="Erase").click()
    dialog.get_by_role("button", name="Erase").click()
    page.wait_for_url("**/review/people")
    expect(page.get_by_role("link", name="Ada")).to_have_count(0)


def test_questions_do_not_wait_for_the_server(visitor: Visitor) -> None:
    page = visitor.page
    sent: list[str] = []

    def slowly(route: Route) -> None:
        sent.append(route.request.post_data or "")
        page.wait_for_timeout(300)
        route.continue_()

    visitor.open("questions")
    expect(page.locator("#answers")).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.route("**/review/changes", slowly)
    texts = []
    for _ in range(3):
        texts.append(page.locator("#question").get_attribute("data-id"))
        visitor.press("Escape", "i" if page.locator("#question-naming").is_visible() else "y")
    assert len(set(texts)) == 3
    expect(page.locator("#answered")).to_have_text("3 answers so far")
    visitor.wait_until_saved()
    assert len(sent) == 3

    visitor.press("Escape", "Control+z")
    expect(page.locator("#answered")).to_have_text("2 answers so far")
    assert page.locator("#question").get_attribute("data-id") == texts[-1]


def test_an_answer_that_was_not_saved_is_sent_again(visitor: Visitor) -> None:
    page = visitor.page
    visitor.open("person?name=Ada")
    page.route("**/review/changes", lambda route: route.abort())
    page.locator(".face").first.focus()
    visitor.press("y")
    expect(page.get_by_text("Not saved yet")).to_be_visible()
    expect(page.locator("#waiting")).to_have_text("1 to save")
    page.unroute("**/review/changes")
    page.get_by_role("button", name="Try again").click()
    visitor.wait_until_saved()
    visitor.open("person?name=Ada")
    expect(page.locator(".face.confirmed")).to_have_count(1)
    visitor.complaints[:] = [text for text in visitor.complaints if "ERR_FAILED" not in text]


def test_a_refused_change_is_shown_and_taken_back(visitor: Visitor) -> None:
    page = visitor.page
    visitor.open("person?name=Ada")
    count = page.locator(".face").count()
    page.locator(".face").first.focus()
    visitor.press("e")
    page.get_by_label("Name", exact=True).fill("\u200b")
    visitor.press("Enter")
    expect(page.locator("#messages .failed")).to_be_visible()
    expect(page.locator(".face:not(.gone)")).to_have_count(count)
    visitor.complaints[:] = [text for text in visitor.complaints if "Failed to load resource" not in text]


def test_photos_are_found_by_people_place_and_day(visitor: Visitor) -> None:
    page = visitor.page
    visitor.open("photos?person=Ada&person=Ben")
    expect(page.locator(".photos a")).to_have_count(1)
    expect(page.locator(".photos a")).to_contain_text("pair.jpg")
    visitor.open("photos?person=Ada&without=Ben")
    assert page.locator(".photos a").count() > 3
    expect(page.locator(".photos").get_by_text("pair.jpg")).to_have_count(0)
    visitor.open("photos?since=2019-07-31&until=2019-07-31")
    expect(page.locator(".photos a")).to_have_count(1)
    visitor.open("photos?show=failures")
    expect(page.locator(".photos a")).to_contain_text("broken.jpg")

    visitor.open("photos")
    page.get_by_label("Add a person who is in the photo", exact=True).fill("Clara")
    visitor.press("Enter")
    page.wait_for_url("**person=Clara**")
    page.get_by_label("Folder All").select_option("Clara's")
    page.wait_for_url("**folder=Clara**")
    assert 0 < page.locator(".photos a").count() <= 8


def test_names_are_written_beside_the_photos(visitor: Visitor, review: Review) -> None:
    page = visitor.page
    visitor.open("photos?person=Ada")
    page.get_by_role("button", name="Write names to XMP").click()
    page.get_by_role("dialog").get_by_role("button", name="Write").click()
    expect(page.get_by_text("Names are written beside the photos")).to_be_visible()
    visitor.open("photos?person=Ada&person=Ben")
    page.locator(".photos a").click()
    path = Path(page.locator(".path").inner_text())
    assert "Ada" in path.with_name("pair.jpg.xmp").read_text()


def test_a_photo_explains_its_names_and_takes_boxes(visitor: Visitor) -> None:
    page = visitor.page
    visitor.open("photos?person=Ada&person=Ben")
    page.locator(".photos a").click()
    visitor.arrive("pair.jpg")
    why = page.locator(".found li", has=page.get_by_role("link", name="Ada")).locator(".why")
    expect(why).to_contain_text("below the threshold")
    count = page.locator(".found li").count()

    visitor.press("d")
    boxes = page.locator("#boxes")
    place = boxes.bounding_box()
    assert place is not None
    page.mouse.move(place["x"] + 5, place["y"] + 5)
    page.mouse.down()
    page.mouse.move(place["x"] + 45, place["y"] + 55)
    page.mouse.up()
    page.get_by_label("Name", exact=True).fill("Dora")
    visitor.press("Enter")
    expect(page.locator(".found li")).to_have_count(count + 1)
    visitor.arrive()

    visitor.press("d", "ArrowDown", "Shift+ArrowRight", "Enter")
    page.get_by_role("dialog", name="Who is this?").get_by_role("button", name="Save").click()
    expect(page.locator(".found li")).to_have_count(count + 2)
    visitor.arrive()

    with page.expect_popup() as opened:
        visitor.press("o")
    opened.value.wait_for_load_state()
    assert opened.value.url.endswith("/original")


def test_accuracy_counts_what_was_checked(visitor: Visitor) -> None:
    page = visitor.page
    visitor.open("person?name=Ada")
    page.locator(".face").first.focus()
    visitor.press("y", "y", "y", "n")
    visitor.wait_until_saved()
    visitor.open("checked")
    expect(page.locator(".lead")).to_contain_text("Of 4 names that you checked, 3 were right")
    expect(page.get_by_role("row", name="Ada")).to_contain_text("4")

    button = '<button type="button" data-threshold="0.50" data-name="Ada">Name up to 0.50</button>'
    page.route("**/review/advice", lambda route: route.fulfill(body=button, content_type="text/html"))
    visitor.open("checked")
    page.get_by_role("button", name="Name up to 0.50").click()
    expect(page.locator("#messages")).to_contain_text("Ada is named up to 0.50")
    visitor.open("history")
    expect(page.locator(".steps li").first).to_contain_text("Ada is named up to 0.50")


def test_a_threshold_set_in_a_terminal_reaches_the_open_page(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.page
    visitor.open("person?name=Ada")
    assert page.locator(".face").count()
    result = facepipe("gallery", "threshold", "0.01", "--gallery", tmp_path / "gallery")
    assert result.code == 0, result.err
    page.get_by_role("button", name="Show new names").click(timeout=30_000)
    expect(page.locator(".face")).to_have_count(0)


def test_an_album_has_nothing_but_photos_and_chosen_names(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.page
    visitor.open("album")
    page.get_by_label("Ada").check()
    with page.expect_download() as begun:
        page.get_by_role("button", name="Download").click()
    begun.value.save_as(tmp_path / "album.zip")
    with zipfile.ZipFile(tmp_path / "album.zip") as album:
        text = album.read("album/index.html").decode()
        photos = [name for name in album.namelist() if name.startswith("album/photos/")]
        assert len(photos) >= 7
        for name in photos:
            with album.open(name) as stream, Image.open(stream) as photo:
                assert not photo.getexif()
    assert "Ada" in text
    assert "Ben" not in text
    assert "pair" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_also_on_a_phone(review: Review, browser: Browser, scheme: str) -> None:
    options: dict[str, Any] = {"color_scheme": scheme, "reduced_motion": "reduce"}  # nothing half faded in
    with browser.new_context(viewport=PHONE, **options) as context:
        visitor = visit(context, review.base)
        visitor.page.goto(review.address)
        visitor.page.wait_for_url("**/review/people")
        first_group = "group?number=" + str(_first_group(visitor))
        for path in (*PAGES, first_group, "photo?id=1"):
            visitor.open(path)
            visitor.page.wait_for_load_state("networkidle")
            assert _violations(visitor, scheme) == [], path
            width = visitor.page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE["width"], path
        visitor.open("person?name=Ada")
        visitor.page.locator(".face").first.click()
        assert _violations(visitor, scheme) == []
        visitor.press("?")
        expect(visitor.page.get_by_role("dialog", name="Keys")).to_be_visible()
        assert _violations(visitor, scheme) == []
        assert visitor.complaints == []


def _first_group(visitor: Visitor) -> int:
    visitor.open("groups")
    address = visitor.page.locator(".groups a").first.get_attribute("href")
    assert address is not None
    return int(address.partition("=")[2])


def _violations(visitor: Visitor, scheme: str) -> list[str]:
    """What axe-core finds; nothing but colors differs in the dark."""
    options = {"runOnly": ["color-contrast"]} if scheme == "dark" else None
    results = Axe().run(visitor.page, options=options)
    return [f"{found['id']}: {found['nodes'][0]['html']}" for found in results.response["violations"]]
