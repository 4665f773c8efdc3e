"""Runs the server: a socket, one worker in this process or several in their own, an orderly end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from litestar.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from facepipe.core.environment import THREAD_VARIABLES
from facepipe.core.errors import UsageError
from facepipe.core.processors import THREADS_VARIABLE, compute_threads
from facepipe.pipeline import FacePipeline
from facepipe.server.settings import ServerSettings

_SHARED_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_STOP_WAIT_S = 60
"""How long a stop waits for requests that are being answered."""
_HEALTH_WAIT_S = 60
"""How long a worker may be too busy to say that it lives."""
_IDLE_S = 60
"""How long a connection may be idle."""
_BACKLOG = 256

AppFactory = Callable[[], ASGIApp]
"""Makes the app of a worker, in its process; can be pickled."""


def api_app(settings: ServerSettings, pipeline: FacePipeline) -> ASGIApp:
    """Make the app that serves the API; it closes the pipeline when it ends."""
    from facepipe.server.app import create_app
    from facepipe.server.services import Services

    return create_app(Services(settings, pipeline))


def loaded_app(settings: ServerSettings, load: Callable[[], FacePipeline]) -> ASGIApp:
    """Make the app of a worker in its own process, which ends when the parent does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return api_app(settings, load())


def _end_with_parent() -> None:
    """Wait for the parent's end, as by SIGKILL: nobody else would stop this worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def listen(settings: ServerSettings) -> socket.socket:
    """Return a socket that waits for connections.

    Raises:
        UsageError: The address is not this machine's, or the port is taken.
    """
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small answers at once (TCP_NODELAY) only on sockets whose protocol is named.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, settings.port))
    except OSError as error:
        found.close()
        raise UsageError(
            f"can't listen on {settings.host} port {settings.port} ({error.strerror}): "
            "choose another --host or --port"
        ) from error
    found.listen(_BACKLOG)
    return found


def serve(settings: ServerSettings, factory: AppFactory, listening: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; what is being answered then is answered.

    Args:
        settings: See `ServerSettings`.
        factory: Makes the app, once in each worker.
        listening: Of `listen`.

    Raises:
        KeyboardInterrupt: Either signal came, and all was ended in order.
    """
    config = uvicorn.Config(
        factory,
        factory=True,
        workers=settings.workers,
        log_config=_log_config(settings.log_json),
        access_log=False,
        server_header=False,
        ws="none",
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=list(settings.proxies),
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_STOP_WAIT_S,
        timeout_worker_healthcheck=_HEALTH_WAIT_S,
    )
    # After its orderly end uvicorn raises the signal again, for those who had a handler before.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if settings.workers == 1:
        uvicorn.Server(config).run(sockets=[listening])
        return
    with _shared_by_workers(settings.workers):
        Multiprocess(config, sockets=[listening]).run()


@contextmanager
def _shared_by_workers(workers: int) -> Iterator[None]:
    """Give workers a folder for their metrics, and each a share of the threads."""
    threads = str(max(1, compute_threads() // workers))
    for name in (THREADS_VARIABLE, *THREAD_VARIABLES):
        os.environ[name] = threads
    with tempfile.TemporaryDirectory(prefix="facepipe-metrics-") as folder:
        os.environ[_SHARED_FOLDER_VARIABLE] = folder
        yield


def _log_config(as_json: bool) -> dict[str, Any]:
    formatter = "facepipe.core.logs.JsonFormatter" if as_json else "facepipe.core.logs.LineFormatter"
    quiet = {"handlers": ["stderr"], "level": "WARNING", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
        "loggers": {
            "facepipe": quiet | {"level": "INFO"},
            "uvicorn": quiet,
            "uvicorn.error": quiet,
            "asyncio": quiet,
        },
    }
