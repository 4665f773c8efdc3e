"""`facepipe review`: the page on which people name the photos of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, batch_gallery_option
from facepipe.commands.output import echo
from facepipe.core.errors import MissingExtraError

if TYPE_CHECKING:
    from facepipe.gallery.address import GalleryAddress


@click.command()
@click.argument("out", type=ANY_PATH)
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="[default: a free one]")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@batch_gallery_option
def review(out: Path, gallery_address: GalleryAddress | None, port: int, no_browser: bool) -> None:
    """Name the people in the photos of a batch, on a page in your browser.

    OUT is the folder of a job of `facepipe batch`, whose gallery is used. Only this machine can open the
    page, once, with the address that is printed. Every answer is kept at once; Ctrl-C ends. While a batch
    runs, the page shows how far it is and what was found, and names can be given when it has ended.
    """
    _require_extra()
    from facepipe.library.library import Library
    from facepipe.library.questions import next_questions
    from facepipe.library.watching import LibraryWatch
    from facepipe.server.pages.analysis import AnalysisControl
    from facepipe.server.pages.app import create_page_app
    from facepipe.server.pages.library_thread import LibraryThread
    from facepipe.server.pages.photo_list import prepare as prepare_photos
    from facepipe.server.pages.session import SIGN_IN_PATH, PageSession
    from facepipe.server.run import listen, serve
    from facepipe.server.settings import Limits, ServerSettings

    def prepare(library: Library) -> None:
        prepare_photos(library)
        next_questions(library, 1)  # what is compared for the first question is used for the next ones

    watch = LibraryWatch(out, gallery_address, prepare)
    settings = ServerSettings(out, port=port, limits=Limits(requests_per_minute=1_000_000))
    try:
        with (
            listen(settings) as listening,
            LibraryThread(watch.open, watch.newer) as library,
            AnalysisControl(library, watch.progress) as analysis,
        ):
            session = PageSession(listening.getsockname()[1])
            address = f"http://127.0.0.1:{session.port}{SIGN_IN_PATH}?token={session.token}"
            echo(f"facepipe: {out} can be reviewed at {address} (once; Ctrl-C ends)", err=True)
            if library.is_read_only:
                echo("facepipe: another facepipe works with it: you can look until that has ended", err=True)
            if not no_browser:
                _open_browser(address)
            serve(settings, lambda: create_page_app(library, analysis, session, settings), listening)
    except KeyboardInterrupt:
        echo("facepipe: the review ended; every answer is kept", err=True)


def _open_browser(address: str) -> None:
    """Open the address beside the server, which the browser waits for."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _require_extra() -> None:
    try:
        import jinja2  # noqa: F401
        import litestar  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the page", "serve") from error
