"""Servers that tests share, so that networks are loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from server_helpers import Server, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on the loopback without keys."""
    folder = tmp_path_factory.mktemp("server")
    with running(folder / "gallery", "--log-json", log=folder / "log") as running_server:
        yield running_server
