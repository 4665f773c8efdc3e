"""Pages that hold all they need, whatever the names are."""

from __future__ import annotations

from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from facepipe.reports.html import Figure, page, paragraph, sheet, table

NASTY = "<script>alert(1)</script> \"quoted\" & 'so'"


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def picture(kind: str) -> bytes:
    encoded = BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(encoded, kind)
    return encoded.getvalue()


def test_text_stays_text() -> None:
    parts = [paragraph(NASTY), table([NASTY], [[NASTY]]), sheet([Figure(picture("PNG"), NASTY, (NASTY,))])]
    read = Reader(page(NASTY, {NASTY: parts}))
    assert "script" not in read.tags
    assert read.text.count(NASTY) == 8  # Title, heading, section, paragraph, two cells, two lines of caption.


@pytest.mark.parametrize(("kind", "media"), [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp")])
def test_pictures_are_inside(kind: str, media: str) -> None:
    (source,) = Reader(sheet([Figure(picture(kind))])).sources
    assert source.startswith(f"data:image/{media};base64,")


def test_nothing_is_loaded_from_anywhere() -> None:
    html = page("Faces", {"All": [sheet([Figure(picture("PNG"), "a"), Figure(None, "b")])]})
    read = Reader(html)
    assert [source[:5] for source in read.sources] == ["data:"]
    assert "http" not in html.replace("http-equiv", "")
    assert "no picture" in read.text
    assert "color-scheme: light dark" in html


def test_cells_and_file_names_that_are_no_text() -> None:
    html = table(["a", "b"], [[1, None], [0.5, "x\udcff"]])
    assert "<td>1</td><td></td>" in html
    assert "x\\udcff" in html
    html.encode("utf-8")
