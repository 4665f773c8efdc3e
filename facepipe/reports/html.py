"""Self-contained HTML: one file with its pictures, nothing loaded from anywhere, light or dark as wished.

Text comes in as text and is escaped here; pieces that a function returns are HTML and go in as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from facepipe.core.overwriting import GENERATOR
from facepipe.core.plain_text import visible
from facepipe.images.small_pictures import data_url

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #888 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 0 0 1.5rem }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
.sheet { display: flex; flex-wrap: wrap; gap: .8rem; margin: 0 0 1.5rem }
figure { margin: 0; width: 7rem }
figure img, .nothing { display: block; width: 7rem; height: 7rem; background: var(--line) }
figure img { object-fit: contain }
.nothing { display: grid; place-items: center; color: var(--faint); font-size: 12px }
figcaption { font-size: 12px; overflow-wrap: anywhere; color: var(--faint) }
figcaption b { display: block; color: CanvasText }
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """A small picture with its caption.

    Attributes:
        picture: PNG, JPEG or WebP; None: there is none to show.
        title: The caption's first line.
        lines: The rest of it.
    """

    picture: bytes | None
    title: str = ""
    lines: tuple[str, ...] = ()


def page(title: str, sections: Mapping[str, Iterable[str]]) -> str:
    """Return a whole page: a title, and under each heading its pieces of HTML."""
    body = "\n".join(f"<h2>{_text(head)}</h2>\n" + "\n".join(parts) for head, parts in sections.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"{GENERATOR}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Names and paths are other people's text: whatever slips through, the page may load and run nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{_text(title)}</h1>\n{body}\n</body></html>\n"
    )


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{_text(text)}</p>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; its cells are text or numbers, an empty one where there is nothing (None)."""
    lines = [_row("th", header), *(_row("td", row) for row in rows)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def sheet(figures: Iterable[Figure]) -> str:
    """Pictures side by side."""
    return '<div class="sheet">\n' + "\n".join(_figure(figure) for figure in figures) + "\n</div>"


def _figure(figure: Figure) -> str:
    caption = (f"<b>{_text(figure.title)}</b>" if figure.title else "") + "<br>".join(
        map(_text, figure.lines)
    )
    return f"<figure>{_picture(figure)}<figcaption>{caption}</figcaption></figure>"


def _picture(figure: Figure) -> str:
    if figure.picture is None:
        return '<span class="nothing">no picture</span>'
    return f'<img alt="{_text(figure.title)}" src="{data_url(figure.picture)}">'


def _row(cell: str, values: Sequence[object]) -> str:
    texts = ("" if value is None else _text(str(value)) for value in values)
    return "<tr>" + "".join(f"<{cell}>{text}</{cell}>" for text in texts) + "</tr>"


def _text(text: str) -> str:
    """Escaped for HTML, with no control character in it."""
    return escape(visible(text))
