"""Questions, the most useful first, and what speaks for an answer."""

from __future__ import annotations

from typing import Annotated

from litestar import Router, get, post
from litestar.response import Template
from msgspec import Meta, Struct

from facepipe.core.plain_text import visible
from facepipe.library.library import Library
from facepipe.library.questions import Question, QuestionKind, next_questions
from facepipe.server.pages.library_thread import LibraryThread


class QuestionRequest(Struct):
    """How many questions are wanted, and which are not: those that are waiting or were skipped."""

    count: Annotated[int, Meta(ge=1, le=64)]
    skipped: list[str] = []


class AskedFace(Struct):
    """A face of a question: its id, and the name of its photo."""

    id: str
    photo: str


class AskedQuestion(Struct):
    """A question as it is shown.

    Attributes:
        id: Of the question.
        kind: Value of `QuestionKind`.
        text: The question itself.
        reason: Why it is asked.
        faces: Those that are asked about, the most likely first.
        name: The person who is asked about, or who it may be.
        other_name: The other person, where two may be one.
        compared: Faces to compare with: the one that decided, or those of the other person.
        compared_text: What they are.
    """

    id: str
    kind: str
    text: str
    reason: str
    faces: list[AskedFace]
    name: str | None
    other_name: str | None
    compared: list[AskedFace]
    compared_text: str


@get("/questions")
async def questions_page() -> Template:
    """Show the page; its script fetches the questions."""
    return Template("questions.html")


@post("/questions/next", status_code=200)
async def more_questions(library_thread: LibraryThread, data: QuestionRequest) -> list[AskedQuestion]:
    """Return the next questions."""

    def ask(library: Library) -> list[AskedQuestion]:
        questions = next_questions(library, data.count, frozenset(data.skipped))
        return [_asked(library, question) for question in questions]

    return await library_thread.run(ask)


def _asked(library: Library, question: Question) -> AskedQuestion:
    compared, text = _compared(question)
    return AskedQuestion(
        id=question.id,
        kind=question.kind.value,
        text=_text(question),
        reason=_reason(question),
        faces=[_asked_face(library, id) for id in question.face_ids],
        name=question.name,
        other_name=question.other_name,
        compared=[_asked_face(library, id) for id in compared],
        compared_text=text,
    )


def _compared(question: Question) -> tuple[tuple[str, ...], str]:
    if question.kind is QuestionKind.SAME_PERSON:
        return question.other_face_ids, str(question.other_name)
    decided = question.deciding_face_id
    return ((), "") if decided is None else ((decided,), f"{question.name}: the nearest face")


def _asked_face(library: Library, face_id: str) -> AskedFace:
    face = library.face(face_id)
    return AskedFace(face.id, visible(library.photos[face.photo_id].path.name))


def _text(question: Question) -> str:
    count = len(question.face_ids)
    match question.kind:
        case QuestionKind.IS_PERSON:
            return f"Is this {question.name}?" if count == 1 else f"Are these all {question.name}?"
        case QuestionKind.SAME_PERSON:
            return f"Are {question.name} and {question.other_name} one person?"
    return "Who is this?" if count == 1 else f"Who is this group of {count}?"


def _reason(question: Question) -> str:
    if question.name is None or question.distance_l2 is None:
        return "Nobody with a name is near."
    if question.kind is QuestionKind.SAME_PERSON:
        distance = f"{question.distance_l2:.2f}"
        return f"Their faces are at a distance of {distance}, and they are in no photo together."
    sentence = f"The nearest person is {question.name}, at a distance of {question.distance_l2:.2f}."
    if question.runner_up is None or question.runner_up_distance_l2 is None:
        return sentence
    return f"{sentence} The next is {question.runner_up}, at {question.runner_up_distance_l2:.2f}."


questions_router = Router("/", route_handlers=[questions_page, more_questions])
