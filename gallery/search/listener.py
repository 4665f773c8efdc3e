"""A thread that acts whenever a process has changed the gallery."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

from facepipe.core.errors import FacepipeError

_RETRY_S = 5.0
_GATHERED_S = 0.05
"""Changes that follow each other within this time are read at once."""

logger = logging.getLogger("facepipe")


class Listener:
    """Waits for notifications of changes, on a connection of its own, until it is stopped.

    Whoever needs what it does looks for changes again, so where it can't connect nothing is lost but time.

    Args:
        connect: Returns a new connection that listens (psycopg, in autocommit mode).
        act: Called after every change, some of them at once, and after every connecting.
    """

    def __init__(self, connect: Callable[[], Any], act: Callable[[], object]) -> None:
        self._connect, self._act = connect, act
        self._stopped, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="facepipe gallery changes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end; it is not waited for, since it may wait for its caller."""
        self._stop.send(b".")
        self._stop.close()

    def _run(self) -> None:
        import psycopg

        is_stopped = False
        with self._stopped:
            while not is_stopped:
                try:
                    with closing(self._connect()) as connection:
                        self._follow(connection)
                    return
                except (FacepipeError, psycopg.Error, OSError) as error:
                    logger.debug("changes of the gallery are not listened for: %s", error)
                is_stopped = self._is_stopped_within(_RETRY_S)

    def _follow(self, connection: Any) -> None:
        self._act()  # There may have been changes before it listened.
        while not self._is_stopped_within(None, connection):
            for _ in connection.notifies(timeout=_GATHERED_S):
                pass
            self._act()

    def _is_stopped_within(self, timeout_s: float | None, *connections: Any) -> bool:
        """Wait until it is to stop, or until there is something to read from a connection."""
        with selectors.DefaultSelector() as selector:
            for readable in (self._stopped, *connections):
                selector.register(readable, selectors.EVENT_READ)
            return any(key.fileobj is self._stopped for key, _ in selector.select(timeout_s))
