"""Servers that tests share, so that networks are loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from server_helpers import Server, as_jpeg, running

from facepipe.core.faces import UInt8Array


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with running(folder / "gallery", "--log-json", "--compreface", log=folder / "log") as running_server:
        yield running_server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """A server on the loopback without keys, with an empty gallery."""
    for person in shared_server.client.get("/v1/people?limit=1000").json()["people"]:
        shared_server.client.delete(f"/v1/people/{person['name']}").raise_for_status()
    return shared_server


@pytest.fixture(scope="session")
def portrait(astronaut: UInt8Array) -> bytes:
    """A JPEG of Eileen Collins."""
    return as_jpeg(astronaut)


@pytest.fixture(scope="session")
def mirrored(astronaut: UInt8Array) -> bytes:
    """Another photo of her: mirrored and darker."""
    return as_jpeg(np.ascontiguousarray(cv2.convertScaleAbs(astronaut[:, ::-1], alpha=0.8), np.uint8))
