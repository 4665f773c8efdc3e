"""The most useful question first, about faces that are likely one person's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import person_vectors
from library_helpers import make_batch, names_in
from question_helpers import MadeUpLibrary, library_of

from facepipe.batch.decisions import Verdict
from facepipe.library.library import Library
from facepipe.library.questions import Question, QuestionKind, next_questions

SPREAD = 0.05


def ask(library: MadeUpLibrary, count: int = 10, skipped: tuple[str, ...] = ()) -> list[Question]:
    return next_questions(library.as_library(), count, skipped)


def test_nothing_is_asked_about_an_empty_library() -> None:
    assert ask(MadeUpLibrary()) == []


def test_the_largest_group_is_asked_about_first() -> None:
    library = MadeUpLibrary()
    small = library.add(person_vectors(1, 3), group=1)
    large = library.add(person_vectors(2, 9), group=2)
    first, second = ask(library)
    assert (first.kind, first.group, set(first.face_ids)) == (QuestionKind.NAME_GROUP, 2, set(large))
    assert (second.group, set(second.face_ids)) == (1, set(small))
    assert first.name is None


def test_a_group_is_shown_with_its_most_typical_face_first() -> None:
    library = MadeUpLibrary()
    faces = person_vectors(1, 9, SPREAD)
    library.add(faces, group=1)
    cosines = faces @ faces.sum(axis=0)
    assert [int(id, 16) for id in ask(library)[0].face_ids] == np.argsort(-cosines).tolist()


def test_a_group_near_a_person_is_offered_the_name() -> None:
    library = library_of({"Ada": 5, "Grace": 5})
    faces = person_vectors(0, 9, SPREAD)[5:]
    library.add(faces, distance_l2=0.9, group=1)
    question = ask(library)[0]
    assert question.name == "Ada"
    assert question.distance_l2 is not None
    assert question.distance_l2 < 0.9
    assert question.runner_up == "Grace"
    assert question.deciding_face_id in list(library.faces)[:5]


def test_single_faces_near_a_person_are_asked_about_at_once() -> None:
    library = library_of({"Ada": 5, "Grace": 5})
    near = library.add(person_vectors(0, 9, SPREAD)[5:], distance_l2=0.9)
    question = ask(library)[0]
    assert (question.kind, question.name) == (QuestionKind.IS_PERSON, "Ada")
    assert set(question.face_ids) == set(near)


def test_a_rejected_face_is_never_asked_about_again_for_that_person() -> None:
    library = library_of({"Ada": 5})
    (rejected,) = library.add(person_vectors(0, 6, SPREAD)[5:], distance_l2=0.9, not_names=("Ada",))
    for question in ask(library):
        assert question.kind is not QuestionKind.IS_PERSON
        assert question.face_ids == (rejected,)


def test_settled_faces_are_not_asked_about() -> None:
    library = library_of({"Ada": 5})
    library.add(person_vectors(0, 7, SPREAD)[5:6], verdict=Verdict.IGNORE)
    library.add(person_vectors(0, 7, SPREAD)[6:], verdict=Verdict.NOT_A_FACE)
    assert ask(library) == []


def test_a_person_is_in_a_photo_once() -> None:
    library = library_of({"Ada": 5})
    faces = person_vectors(0, 8, SPREAD)[5:]
    library.add(faces[:1], photos=[0], distance_l2=0.9)  # of a photo with Ada
    both = library.add(faces[1:], photos=[100, 100], distance_l2=0.9)
    questions = [question for question in ask(library) if question.kind is QuestionKind.IS_PERSON]
    assert len(questions) == 1
    assert len(questions[0].face_ids) == 1
    assert questions[0].face_ids[0] in both


def test_a_doubtful_name_is_asked_about() -> None:
    library = library_of({"Ada": 5})
    (doubtful,) = library.add(person_vectors(7, 1), name="Ada", distance_l2=0.97)
    question = ask(library)[0]
    assert (question.kind, question.name, question.face_ids) == (QuestionKind.IS_PERSON, "Ada", (doubtful,))


def test_one_person_under_two_names_is_asked_about_until_told_apart() -> None:
    library = MadeUpLibrary()
    faces = person_vectors(0, 8, SPREAD)
    library.add(faces[:3], name="Ada", is_confirmed=True)
    library.add(faces[3:], name="Ada Lovelace", is_confirmed=True)
    (question,) = ask(library)
    assert question.kind is QuestionKind.SAME_PERSON
    assert (question.name, question.other_name) == ("Ada", "Ada Lovelace")
    assert (len(question.face_ids), len(question.other_face_ids)) == (3, 5)
    for count in (3, 5):  # whoever of both has more faces now
        told_apart = MadeUpLibrary()
        told_apart.add(faces[:count], name="Ada", is_confirmed=True, not_names=["Ada Lovelace"])
        told_apart.add(faces[count:], name="Ada Lovelace", is_confirmed=True)
        assert ask(told_apart) == []


def test_two_names_in_one_photo_are_two_people() -> None:
    library = MadeUpLibrary()
    faces = person_vectors(0, 2, SPREAD)
    library.add(faces[:1], photos=[1], name="Ada", is_confirmed=True)
    library.add(faces[1:], photos=[1], name="Byron", is_confirmed=True)
    assert ask(library) == []


def test_skipped_questions_make_way_for_others() -> None:
    library = MadeUpLibrary()
    for number in range(4):
        library.add(person_vectors(number, 5), group=number)
    first = ask(library, 2)
    rest = ask(library, 4, tuple(question.id for question in first))
    assert {question.group for question in (*first, *rest)} == {0, 1, 2, 3}
    assert len(rest) == 2


@pytest.mark.parametrize("seed", range(3))
def test_no_two_questions_share_a_face_or_a_person(seed: int) -> None:
    random = np.random.default_rng(seed)
    library = library_of({"Ada": 4, "Grace": 4, "Alan": 4}, spread=0.06)
    for person in range(6):
        vectors = person_vectors(person, 12, 0.06)[4:]
        library.add(vectors[:3], group=person, distance_l2=1.0)
        library.add(vectors[3:], distance_l2=float(random.uniform(0.8, 1.1)))
    questions = ask(library, 50)
    faces = [face for question in questions for face in question.face_ids]
    assert len(faces) == len(set(faces)) == len(library.faces) - 12
    people = [question.name for question in questions if question.kind is QuestionKind.IS_PERSON]
    assert len(people) == len(set(people))


def test_the_queue_follows_changes() -> None:
    library = MadeUpLibrary()
    faces = library.add(person_vectors(1, 6, SPREAD), group=1)
    assert ask(library)[0].kind is QuestionKind.NAME_GROUP
    named = library_of({"Ada": 5})
    named.add(person_vectors(0, 6, SPREAD)[5:], distance_l2=0.9)
    library.embeddings = named.embeddings
    library.faces = dict(zip(faces, named.faces.values(), strict=True))
    assert ask(library)[0].name == "Ada"


def test_answers_name_everybody_in_a_library(tmp_path: Path) -> None:
    """The first face of a photo is the person of its name; the one stranger is ignored."""
    photos = {f"{name} {number}": [name] for name in ("ada", "bob", "eve") for number in range(4)}
    out = make_batch(tmp_path, {**photos, "stranger 0": ["stranger"]})
    with Library.open(out) as library:
        kinds = []
        while questions := next_questions(library, 1):
            (question,) = questions
            kinds.append(question.kind)
            photo = library.photos[library.face(question.face_ids[0]).photo_id]
            person = photo.path.stem.split()[0]
            if person == "stranger":
                library.ignore(question.face_ids)
            else:
                library.confirm(question.face_ids, person)
            library.name_again()
        assert kinds == [QuestionKind.NAME_GROUP] * 4
        for name, found in names_in(library).items():
            assert found == [None if name == "stranger 0" else name.split()[0]]


def test_hidden_people_are_in_no_question() -> None:
    library = library_of({"Ada": 5, "Grace": 5})
    library.add(person_vectors(0, 9, SPREAD)[5:], distance_l2=0.9, group=1)
    library.add(person_vectors(0, 12, SPREAD)[9:], distance_l2=0.9)
    stranger = library.add(person_vectors(7, 2), group=2)
    assert {"Ada"} <= {question.name for question in ask(library)}
    library.hidden = frozenset({"Ada"})
    questions = ask(library)
    assert [question for question in questions if "Ada" in (question.name, question.other_name)] == []
    assert [set(question.face_ids) for question in questions if question.kind is QuestionKind.NAME_GROUP] == [
        set(stranger)
    ]


def test_questions_after_answers_are_those_of_a_library_that_is_looked_at_anew() -> None:
    library = library_of({"Ada": 5, "Grace": 5, "Joan": 3})
    for person in range(3, 12):
        library.add(person_vectors(person, 4, SPREAD), group=person, distance_l2=0.9)
    library.add(person_vectors(0, 9, SPREAD)[5:], distance_l2=0.9)
    for _ in range(6):
        questions = ask(library)
        anew = MadeUpLibrary(dict(library.faces), library.embeddings)
        assert questions == ask(anew)
        for id in questions[0].face_ids:
            face = library.faces[id]
            name = questions[0].name or f"Person {questions[0].group}"
            library.faces[id] = replace(face, match=replace(face.match, name=name), group=None)
