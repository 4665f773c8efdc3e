"""`facepipe serve`: the API for other programs, and its keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, Setup, gallery_option, option_group, with_setup
from facepipe.commands.output import LOG_JSON, echo, echo_record, log
from facepipe.core.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from facepipe.gallery.address import GalleryAddress
    from facepipe.server.keys import ApiKeys
    from facepipe.server.settings import Limits, ServerSettings

_SCOPES = ("read", "identify", "manage")


def _limits(
    max_body_mb: float,
    body_time_limit: float,
    max_faces: int,
    queue: int,
    requests_per_minute: int,
    time_limit: float,
) -> dict[str, float]:
    return {
        "body_bytes": round(max_body_mb * 1e6),
        "body_s": body_time_limit,
        "max_faces": max_faces,
        "queue": queue,
        "requests_per_minute": requests_per_minute,
        "work_s": time_limit,
    }


with_limits = option_group(
    "limits",
    _limits,
    [
        click.option("--max-body-mb", type=float, default=20, show_default=True, help="Largest request."),
        click.option(
            "--body-time-limit", type=float, default=30, show_default=True, metavar="S", help="To arrive."
        ),
        click.option("--max-faces", type=int, default=500, show_default=True, help="Of a photo."),
        click.option("--queue", type=int, default=64, show_default=True, help="Photos that may wait."),
        click.option(
            "--requests-per-minute", type=int, default=6000, show_default=True, help="Of a key or an address."
        ),
        click.option(
            "--time-limit", type=float, default=30, show_default=True, metavar="S", help="For a photo."
        ),
    ],
)


@click.group(invoke_without_command=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--allowed-host", multiple=True, metavar="NAME", help="Name of this server; repeatable.")
@click.option("--proxy", multiple=True, metavar="ADDRESS", help="Reverse proxy to be trusted; repeatable.")
@click.option("--library", multiple=True, type=ANY_PATH, metavar="DIR", help="--out of a batch, to be shown.")
@click.option("--compreface", is_flag=True, help="Serve CompreFace's routes too.")
@click.option(LOG_JSON, is_flag=True, help="All lines on stderr as JSON with their time.")
@with_limits
@gallery_option
@with_setup
@click.pass_context
def serve(
    context: click.Context,
    setup: Setup,
    limits: dict[str, float],
    gallery_address: GalleryAddress,
    host: str,
    port: int,
    workers: int,
    allowed_host: tuple[str, ...],
    proxy: tuple[str, ...],
    library: tuple[Path, ...],
    compreface: bool,
    log_json: bool,
) -> None:
    """Answer other programs: detect, verify, identify, and manage people, over HTTP.

    Needs the [serve] extra. Without an API key only this machine may connect.
    """
    if context.invoked_subcommand is not None:
        return
    _require_extra()
    from facepipe.batch.job_file import require_job_file
    from facepipe.server.settings import ServerSettings

    for folder in library:
        require_job_file(folder)
    settings = ServerSettings(
        gallery=gallery_address,
        host=host,
        port=port,
        workers=workers,
        allowed_hosts=allowed_host,
        proxies=proxy,
        libraries=library,
        compreface=compreface,
        log_json=log_json,
        limits=_checked_limits(limits, setup),
    )
    _serve(setup, settings)


def _checked_limits(given: dict[str, float], setup: Setup) -> Limits:
    from facepipe.server.settings import Limits

    pixels = {} if setup.max_megapixels is None else {"max_pixels": setup.max_pixels()}
    return Limits(**given, **pixels)  # type: ignore[arg-type]


def _serve(setup: Setup, settings: ServerSettings) -> None:
    from facepipe.server.run import api_app, listen, loaded_app, serve

    if not settings.is_local:
        _require_key(settings)
    load = partial(setup.pipeline, settings.gallery, create=True, calls=_calls(settings.workers))
    with listen(settings) as listening:
        pipeline = load()  # here, so that what is wrong is told once
        address, port = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        log(f"serving {settings.gallery} on http://{shown}:{port} (Ctrl-C stops)")
        if settings.workers > 1:
            pipeline.close()
            factory = partial(loaded_app, settings, load)
        else:
            factory = partial(api_app, settings, pipeline)
        with suppress(KeyboardInterrupt):
            serve(settings, factory, listening)
    log("stopped")


def _require_key(settings: ServerSettings) -> None:
    with _keys(settings.gallery) as keys:
        if not keys.any_valid:
            raise UsageError(
                f"{settings.host}: other machines could connect, so an API key is needed first: "
                "facepipe serve keys create NAME --scope manage"
            )


def _calls(workers: int) -> int:
    """Return how many calls of the networks run side by side in a worker."""
    from facepipe.core.processors import compute_threads

    return max(1, compute_threads() // workers)


def _require_extra() -> None:
    try:
        import litestar  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the server", "serve") from error


# Keys


@serve.group()
def keys() -> None:
    """Create, list and revoke API keys. Only their hashes are stored."""


@contextmanager
def _keys(gallery_address: GalleryAddress) -> Iterator[ApiKeys]:
    from facepipe.server.database import server_database
    from facepipe.server.keys import ApiKeys

    with closing(server_database(gallery_address)) as database:
        yield ApiKeys(database)


@keys.command("create")
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(_SCOPES),
    required=True,
    help="read: people and figures; identify: photos too; manage: changes too.",
)
@gallery_option
def create(gallery_address: GalleryAddress, name: str, scope: str) -> None:
    """Create the key NAME and print it, this once."""
    from facepipe.server.keys import Scope

    with _keys(gallery_address) as keys:
        echo_record(keys.create(name, Scope[scope.upper()]))


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per key and line.")
@gallery_option
def list_keys(gallery_address: GalleryAddress, as_json: bool) -> None:
    """List all keys, revoked ones too."""
    from facepipe.core.json_lines import record_to_json

    with _keys(gallery_address) as keys:
        every = keys.all()
    for key in every:
        if as_json:
            record = {"id": key.id, "name": key.name, "scope": str(key.scope)}
            times = {"created_at": key.created_at, "revoked_at": key.revoked_at}
            echo_record(record_to_json(record | times))
        else:
            state = f"revoked {key.revoked_at}" if key.revoked_at else f"created {key.created_at}"
            echo(f"{key.id}  {key.scope!s:<8}  {key.name}  ({state})")


@keys.command("revoke")
@click.argument("name")
@gallery_option
def revoke(gallery_address: GalleryAddress, name: str) -> None:
    """Refuse the key NAME, or of this id, from now on, also in servers that run."""
    with _keys(gallery_address) as keys:
        keys.revoke(name)
