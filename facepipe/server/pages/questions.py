"""Questions, the most useful first, and what speaks for an answer."""

from __future__ import annotations

from typing import Annotated

from litestar import Router, get, post
from litestar.response import Template
from msgspec import Meta, Struct

from facepipe.core.counting import counted
from facepipe.library.library import Library
from facepipe.library.questions import Question, QuestionKind, next_questions
from facepipe.server.pages.library_thread import LibraryThread
from facepipe.server.pages.views import face_tile

_FACES_SHOWN = 24
"""Of a large group; all of it gets the name."""


class QuestionRequest(Struct):
    """How many questions are wanted, and which are not: those that are waiting or were skipped."""

    count: Annotated[int, Meta(ge=1, le=64)]
    skipped: list[str] = []


class AskedFace(Struct):
    """A face of a question: its id, its photo, and what is said about it."""

    id: str
    photo_id: int
    label: str


class AskedQuestion(Struct):
    """A question as it is shown.

    Attributes:
        id: Of the question.
        kind: Value of `QuestionKind`.
        text: The question itself.
        reason: Why it is asked.
        face_ids: All faces that the answer is about.
        faces: Those that are shown.
        name: The person who is asked about.
        other_name: The other person, where two may be one.
        group: Number of the group that is asked about.
        compared: Faces to compare with: the enrolled one that decided.
    """

    id: str
    kind: str
    text: str
    reason: str
    face_ids: list[str]
    faces: list[AskedFace]
    name: str | None
    other_name: str | None
    group: int | None
    compared: list[AskedFace]


@get("/questions")
async def questions_page() -> Template:
    """Show the page; its script fetches the questions."""
    return Template("questions.html")


@post("/questions", status_code=200)
async def more_questions(library_thread: LibraryThread, data: QuestionRequest) -> list[AskedQuestion]:
    """Return the next questions."""

    def ask(library: Library) -> list[AskedQuestion]:
        questions = next_questions(library, data.count, frozenset(data.skipped))
        return [_asked(library, question) for question in questions]

    return await library_thread.run(ask)


def _asked(library: Library, question: Question) -> AskedQuestion:
    decided = question.deciding_face_id
    shown = question.face_ids[:_FACES_SHOWN]
    return AskedQuestion(
        id=question.id,
        kind=question.kind.value,
        text=_text(question),
        reason=_reason(question),
        face_ids=list(question.face_ids),
        faces=[_asked_face(library, id) for id in shown],
        name=question.name,
        other_name=question.other_name,
        group=question.group,
        compared=[] if decided is None else [_asked_face(library, decided)],
    )


def _asked_face(library: Library, face_id: str) -> AskedFace:
    tile = face_tile(library, library.face(face_id))
    return AskedFace(tile.id, tile.photo_id, f"{tile.label}, {tile.photo_name}")


def _text(question: Question) -> str:
    match question.kind:
        case QuestionKind.IS_PERSON if len(question.face_ids) > 1:
            return f"Are these all {question.name}?"
        case QuestionKind.IS_PERSON:
            return f"Is this {question.name}?"
        case QuestionKind.SAME_PERSON:
            return f"Are {question.name} and {question.other_name} one person?"
        case QuestionKind.NAME_GROUP:
            return f"Who is this group of {len(question.face_ids)}?"


def _reason(question: Question) -> str:
    if question.kind is QuestionKind.NAME_GROUP:
        return f"{counted(len(question.face_ids), 'face')} of one photo each look alike, and like nobody with a name."
    near = "" if question.distance_l2 is None else f" at a distance of {question.distance_l2:.2f}"
    sentence = f"{question.name} is nearest{near}."
    if question.runner_up is None or question.runner_up_distance_l2 is None:
        return sentence
    return f"{sentence} Next comes {question.runner_up} at {question.runner_up_distance_l2:.2f}."


questions_router = Router("/", route_handlers=[questions_page, more_questions])
