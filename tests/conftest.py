"""Fixtures that every test may use."""

from __future__ import annotations

import gzip
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import V1
from paths import ROOT

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch; there is a process of tests for each processor

sys.path.append(str(ROOT))  # for the benchmarks, behind what is installed

from postgres_helpers import OWNER, PostgresServer, new_database, new_server

from facepipe.core.faces import UInt8Array

_SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development photos, published weights and golden outputs; users don't have it."""
    if not _SHARED_DATA.is_dir():
        pytest.skip(f"development data not found at {_SHARED_DATA}")
    return _SHARED_DATA


@pytest.fixture(scope="session")
def astronaut() -> UInt8Array:
    """RGB uint8 (512, 512, 3): NASA's public-domain portrait of Eileen Collins, from scikit-image."""
    from skimage import data

    return np.ascontiguousarray(data.astronaut(), dtype=np.uint8)


@pytest.fixture
def memory_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where possible: what a killed process wrote is there without a disk, and much sooner."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


@pytest.fixture
def v1_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "g"
    folder.mkdir()
    (folder / "gallery.sqlite3").write_bytes(gzip.decompress((V1 / "gallery.sqlite3.gz").read_bytes()))
    shutil.copy(V1 / "index.faiss", folder)
    return folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server that tests share: nobody stops it."""
    with new_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database of the test's own, whose role `OWNER` logs in."""
    with new_database(postgres_server) as name:
        yield postgres_server.url(name, OWNER)
