"""Galleries copied exactly, from folders and databases to others, also by copies that are killed."""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, OTHER_ENCODER, person_vectors, start, template, templates
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facepipe.core.errors import GalleryError, UsageError
from facepipe.gallery import Gallery
from facepipe.gallery.copying import GalleryCopy, copy_gallery
from facepipe.gallery.repair import verify

KEY, OTHER_KEY = b"a key of many bytes", b"another key of many bytes"
_numbers = itertools.count()

Step = tuple[str, str, int, bytes | None, bool]
"""What is done, a name, a number, a picture, and whether the photo is known."""

Place = Callable[[str], str]
"""Makes the address of a new gallery, `folder` or `postgres`."""


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    def make(kind: str) -> str:
        number = next(_numbers)
        if kind == "folder":
            return str(Path(tempfile.mkdtemp(dir=tmp_path)) / "gallery")
        url: str = request.getfixturevalue("postgres_url")
        return f"{url}&schema=copy_{number}"

    return make


def everything(address: str, secret: bytes | None) -> list[object]:
    """All that a gallery tells of itself, with its ids."""
    with Gallery.open(address, secret=secret) as gallery:
        people, unknown = gallery.people(), gallery.unknown_faces()
        faces = [face for person in people for face in gallery.templates(person.name)]
        return [
            gallery.encoder,
            gallery.threshold_l2,
            people,
            faces,
            [gallery.vectors(person.name).tobytes() for person in people],
            [gallery.crop(face.id) for face in faces],
            [(f.id, f.source, f.box_xyxy, f.quality, f.photo_sha256, f.added_at) for f in unknown],
            [(f.embedding.tobytes(), gallery.unknown_crop(f.id)) for f in unknown],
        ]


def next_ids(address: str, secret: bytes | None) -> tuple[list[int], list[int]]:
    """The ids of a template and an unknown face that are added now."""
    with Gallery.open(address, ENCODER, secret=secret) as gallery:
        vectors = person_vectors(12345, 2)
        return gallery.add("Newcomer", templates(vectors[:1])), gallery.remember_unknown(
            templates(vectors[1:])
        )


names = st.text("abcé李 '\"%?\\", min_size=1, max_size=8).filter(lambda name: bool(name.strip()))
crops = st.none() | st.binary(min_size=1, max_size=3000)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("add"), names, st.integers(0, 50), crops, st.booleans()),
        st.tuples(st.just("unknown"), st.just(""), st.integers(0, 50), crops, st.booleans()),
        st.tuples(st.just("remove"), names, st.integers(0, 50), st.none(), st.booleans()),
        st.tuples(st.just("threshold"), names, st.integers(0, 20), st.none(), st.booleans()),
    ),
    max_size=12,
)


def make(address: str, steps: list[Step], secret: bytes | None) -> None:
    """Make a gallery by changes, so that ids have gaps, also at their end."""
    with Gallery.open(address, ENCODER, create=True, secret=secret) as gallery:
        for what, name, number, crop, has_photo in steps:
            face = template(person_vectors(number, 1)[0], f"photo é {number}" if has_photo else None, crop)
            if what == "add":
                gallery.add(name, [face])
            elif what == "unknown":
                gallery.remember_unknown([face])
            elif what == "remove" and gallery.people():
                gallery.remove(gallery.people()[number % len(gallery.people())].name)
            elif what == "threshold" and gallery.people() and has_photo:
                gallery.set_person_threshold(gallery.people()[0].name, number / 10)
            elif what == "threshold":
                gallery.set_threshold(number / 10)


def check_copy(
    place: Place, kinds: tuple[str, str], steps: list[Step], keys: tuple[bytes | None, bytes | None]
) -> None:
    source, target = map(place, kinds)
    secret, target_secret = keys
    make(source, steps, secret)
    copied = copy_gallery(source, target, secret=secret, target_secret=target_secret)
    key = target_secret or secret
    whole = everything(source, secret)
    assert everything(target, key) == whole
    assert copied == GalleryCopy(len(whole[2]), len(whole[3]), len(whole[6]))  # type: ignore[arg-type]
    assert verify(target, secret=key) == ()
    assert copy_gallery(source, target, secret=secret, target_secret=target_secret) == copied  # it is there
    assert next_ids(target, key) == next_ids(source, secret)
    with Gallery.open(source, ENCODER, secret=secret) as gallery:
        gallery.add("One more", templates(person_vectors(777, 1)))
    with pytest.raises(GalleryError, match="holds another gallery"):
        copy_gallery(source, target, secret=secret, target_secret=target_secret)


KINDS = [("folder", "folder"), ("folder", "postgres"), ("postgres", "folder"), ("postgres", "postgres")]


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
@given(changes)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_copy_is_exact(place: Place, kinds: tuple[str, str], steps: list[Step]) -> None:
    check_copy(place, kinds, steps, (None, None))


@pytest.mark.parametrize(
    ("kinds", "keys"),
    [
        (("folder", "postgres"), (None, KEY)),
        (("postgres", "folder"), (KEY, OTHER_KEY)),
        (("postgres", "postgres"), (KEY, None)),
    ],
)
def test_each_side_has_its_key(
    place: Place, kinds: tuple[str, str], keys: tuple[bytes | None, bytes | None]
) -> None:
    steps: list[Step] = [("add", "Ada", 1, b"a picture", True), ("add", "李", 2, None, False)]
    steps += [("unknown", "", 3, b"another", True), ("remove", "", 1, None, True)]
    steps += [("add", "Eve", 4, b"one more", True), ("threshold", "", 9, None, True)]
    check_copy(place, kinds, steps, keys)


def people(address: str, count: int) -> None:
    """Fill a gallery with so many people of two faces, with crops, and as many unknown faces."""
    with Gallery.open(address, ENCODER, create=True) as gallery:
        for number in range(count):
            vectors = person_vectors(number, 3)
            faces = [
                template(vector, f"{number}-{i}", bytes([i + 1]) * 500) for i, vector in enumerate(vectors)
            ]
            gallery.add(f"person {number}", faces[:2])
            gallery.remember_unknown(faces[2:])


def test_a_gallery_that_was_emptied_takes_a_copy(place: Place) -> None:
    source, target = place("folder"), place("postgres")
    people(source, 3)
    with Gallery.open(target, ENCODER, create=True) as gallery:
        gallery.add("Somebody", templates(person_vectors(500, 9)))
        assert gallery.match(person_vectors(500, 1))[0].name == "Somebody"
        gallery.remove("Somebody")
        copy_gallery(source, target)
        with pytest.raises(GalleryError, match="open it again"):
            gallery.match(person_vectors(1, 1))
    assert everything(target, None) == everything(source, None)
    with Gallery.open(target, ENCODER) as gallery:
        assert gallery.match(person_vectors(1, 1))[0].name == "person 1"
        assert gallery.add("Next", templates(person_vectors(501, 1))) == [10]


def test_a_copy_is_refused_where_it_can_not_be(place: Place, tmp_path: Path) -> None:
    source = place("folder")
    people(source, 1)
    with pytest.raises(UsageError, match="this is the gallery itself"):
        copy_gallery(source, source)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(UsageError):
        copy_gallery(source, tmp_path / "link")
    with pytest.raises(UsageError, match="own folder"):
        copy_gallery(source, Path(source) / "copy")
    other = place("folder")
    with Gallery.open(other, OTHER_ENCODER, create=True):
        pass
    with pytest.raises(GalleryError, match="vectors of square"):
        copy_gallery(source, other)
    with pytest.raises(GalleryError, match="there is no gallery"):
        copy_gallery(tmp_path / "nothing", place("folder"))


COPY = """
    import facepipe.gallery.copying as copying
    copying._ROWS_AT_ONCE = 7
    copying.copy_gallery(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize("kinds", [("folder", "postgres"), ("postgres", "folder")], ids="-".join)
def test_a_killed_copy_goes_on_and_ends_exact(place: Place, kinds: tuple[str, str]) -> None:
    source, target = map(place, kinds)
    people(source, 120)
    whole, rng, killed = everything(source, None), random.Random(7), 0
    for _ in range(30):
        process = start(COPY, source, target)
        while process.poll() is None and not _has_marker(target):
            time.sleep(0.02)  # Opening both takes what the copying needs.
        time.sleep(rng.uniform(0, 0.05) if killed else 0)
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        if _has_marker(target):
            killed += 1
            with pytest.raises(GalleryError, match="run `facepipe gallery copy` again"):
                Gallery.open(target)
        if killed == 2:
            break
    assert killed, "no copy was killed on its way"
    copy_gallery(source, target)
    assert everything(target, None) == whole


def _has_marker(address: str) -> bool:
    try:
        Gallery.open(address).close()
    except GalleryError as error:
        return "has not ended" in str(error)
    return False
