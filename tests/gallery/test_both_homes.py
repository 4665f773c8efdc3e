"""The same changes to a gallery in a folder and to one in PostgreSQL: the same answers, the same contents."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gallery_helpers import ENCODER, person_vectors, photo_hash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facepipe.core.errors import FacepipeError
from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.repair import verify

NAMES = [
    "Ada",
    "ada",
    "Zoë",
    "a\u200bda",
    "  Bob ",
    "O'Brien; DROP TABLE people",
    "50% ?",
    "\\x41",
    "李雷",
    "",
]
SOURCES = ["beach", "what?", "100%", "it's", "back\\slash", "tab\there", "\udcff"]

names = st.sampled_from(NAMES)
seeds = st.integers(0, 5)
places = st.integers(0, 8)
thresholds = st.one_of(st.none(), st.floats(-0.0, 2), st.just(-0.0), st.just(3.0))


def face(seed: int, photo: int) -> NewTemplate:
    """One of 54 faces; those of odd photos have no hash."""
    return NewTemplate(
        person_vectors(seed, photo + 1)[photo],
        source=SOURCES[photo % len(SOURCES)],
        box_xyxy=(-0.0, 0.0, 1e-300, 1e300) if photo % 3 else None,
        quality=-0.0 if photo % 4 else None,
        photo_sha256=None if photo % 2 else photo_hash(f"photo {photo}"),
        crop=b"\0crop\xff" if photo % 4 else None,
    )


faces = st.lists(st.builds(face, seeds, places), min_size=1, max_size=4)
CHANGES: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
    "add": st.tuples(names, faces),
    "rename": st.tuples(names, names),
    "merge": st.tuples(names, names),
    "remove": st.tuples(names),
    "set_threshold": st.tuples(thresholds),
    "set_person_threshold": st.tuples(names, thresholds),
    "remember_unknown": st.tuples(faces),
    "enroll_unknown": st.tuples(st.lists(places, max_size=2), names),
    "forget_unknown": st.tuples(st.lists(places, max_size=2)),
    "move_templates": st.tuples(st.lists(places, max_size=3), names),
    "remove_templates": st.tuples(st.lists(places, max_size=2)),
    "forget_photo": st.tuples(st.sampled_from(SOURCES[:-1]), st.sampled_from([None, photo_hash("photo 4")])),
}
changes = st.one_of(
    *(arguments.map(lambda given, name=name: (name, given)) for name, arguments in CHANGES.items())  # type: ignore[misc]
)
_OF_IDS = ("enroll_unknown", "forget_unknown", "move_templates", "remove_templates")


def templates_of(gallery: Gallery) -> list[Any]:
    """All templates, oldest first."""
    found = [t for person in gallery.people() for t in gallery.templates(person.name)]
    return sorted(found, key=lambda template: template.id)


def change(gallery: Gallery, name: str, arguments: tuple[Any, ...]) -> object:
    """Make a change; returns what it answers, or its error. Places stand for the ids of faces."""
    if name in _OF_IDS:
        unknown = "unknown" in name
        ids = [face.id for face in (gallery.unknown_faces() if unknown else templates_of(gallery))]
        arguments = ([ids[at] if at < len(ids) else 2**40 + at for at in arguments[0]], *arguments[1:])
    try:
        answer = getattr(gallery, name)(*arguments)
    except FacepipeError as error:
        kept = str(error).replace(str(gallery.path), "PLACE")
        return type(error), "" if "face" in kept else kept
    return len(answer) if isinstance(answer, list) else answer


def contents(gallery: Gallery) -> list[object]:
    """All that a gallery holds but ids and times, which two galleries need not share."""
    people = [(p.name, p.template_count, p.threshold_l2) for p in gallery.people()]
    enrolled = [
        (repr((t.person, t.source, t.box_xyxy, t.quality, t.photo_sha256)), gallery.crop(t.id))
        for t in templates_of(gallery)
    ]
    vectors = [gallery.template_vector(t.id).tobytes() for t in templates_of(gallery)]
    unknown = [
        (repr((f.source, f.box_xyxy, f.photo_sha256)), f.embedding.tobytes(), gallery.unknown_crop(f.id))
        for f in gallery.unknown_faces()
    ]
    info = gallery.info()
    return [people, enrolled, vectors, unknown, repr(gallery.threshold_l2), info.generation, info.templates]


def named(gallery: Gallery) -> object:
    """Who six faces are."""
    return gallery.match(person_vectors(1, 6), min_margin_l2=0.01, one_person_per_photo=False)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(changes, max_size=20), st.booleans())
def test_the_same_changes_have_the_same_answers(
    shared_database: str, made: list[tuple[str, tuple[Any, ...]]], is_encrypted: bool
) -> None:
    url = f"{shared_database}&schema=both_{time.monotonic_ns()}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "g"
        with (
            Gallery.open(folder, ENCODER, create=True) as one,
            Gallery.open(url, ENCODER, create=True) as other,
        ):
            galleries = (one, other)

            def both(read: Callable[[Gallery], object]) -> object:
                answers = [read(gallery) for gallery in galleries]
                assert answers[0] == answers[1]
                return answers[0]

            for name, arguments in made:
                both(lambda gallery, name=name, arguments=arguments: change(gallery, name, arguments))  # type: ignore[misc]
            before = both(contents)
            both(named)
            if is_encrypted:
                for gallery in galleries:
                    gallery.encrypt(b"a key of many bytes")
                    gallery.decrypt()
                after = both(contents)
                assert isinstance(after, list)
                assert isinstance(before, list)
                assert after[:5] == before[:5]
        assert verify(folder, ENCODER) == verify(url, ENCODER) == ()
