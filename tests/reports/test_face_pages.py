"""Pages of faces: everything found is on them, with pictures where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, template

from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.audit import audit
from facepipe.images.face_crops import encode_crop
from facepipe.reports.face_pages import audit_page, groups_page
from facepipe.unknown_faces import unknown_groups


def kept(template: NewTemplate, gray: int) -> NewTemplate:
    """With a picture of one gray."""
    return replace(template, crop=encode_crop(np.full((112, 112, 3), gray, np.uint8)))


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    """Ada and Bob, one of Bob's photos under Ada's name, Bob again under another name, few of Kim."""
    with Gallery.open(tmp_path, ENCODER, create=True) as opened:
        bobs = person_vectors(1, 8)
        opened.add("Ada", [kept(template(v, f"ada-{i}"), i) for i, v in enumerate(person_vectors(0, 4))])
        opened.add("Bob", [template(v, f"bob-{i}") for i, v in enumerate(bobs[:4])])
        opened.add("Ada", [kept(template(bobs[4], "planted"), 99)])
        opened.add("<b>Robert</b>", [template(v, f"robert-{i}") for i, v in enumerate(bobs[5:])])
        opened.add("Kim", [template(person_vectors(5, 1)[0], "kim")])
        yield opened


def test_an_audit_with_faces(gallery: Gallery) -> None:
    html = audit_page(gallery, audit(gallery))
    assert "photos/planted.jpg" in html
    assert "looks like" in html
    assert "&lt;b&gt;Robert&lt;/b&gt; and Bob" in html or "&lt;b&gt;Robert&lt;/b&gt;" in html
    assert "<b>Robert" not in html.replace("<b>&lt;b&gt;Robert", "")
    assert "<td>Kim</td><td>1</td>" in html
    assert html.count("data:image/jpeg;base64,") == 5  # The planted face, and four of Ada's own.
    assert "no picture" in html


def test_an_audit_without_findings(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(v, f"ada-{i}") for i, v in enumerate(person_vectors(0, 4))])
        html = audit_page(gallery, audit(gallery))
    assert html.count("None found.") == 2


def test_groups_of_unknown_faces(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.remember_unknown(
            [kept(template(v, f"0-{i}"), i) for i, v in enumerate(person_vectors(0, 14))]
        )
        gallery.remember_unknown([template(v, f"1-{i}") for i, v in enumerate(person_vectors(1, 2))])
        html = groups_page(gallery, unknown_groups(gallery))
    assert "Group 1: 14 faces" in html
    assert "Group 15: 2 faces" in html
    assert html.count("data:image/jpeg;base64,") == 12
    assert html.count("no picture") == 2
    assert "facepipe enroll --cluster NUMBER --name NAME" in html
