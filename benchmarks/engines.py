"""Latency of searches, and the engines that galleries are compared with."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.made_up_faces import CHUNK, DIMENSIONS, Faces, nearest_by_brute_force
from facepipe.core.faces import FloatArray

Search = Callable[[FloatArray], npt.NDArray[np.int64]]
"""Queries to the numbers (from 0) of the nearest face of each."""

BATCH = 64
_WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one query and of a batch of 64, in milliseconds; `cpu`: processor time of the thread."""

    p50_ms: float
    p99_ms: float
    p50_cpu_ms: float
    p99_cpu_ms: float
    batch_p50_ms: float
    batch_p99_ms: float

    def __str__(self) -> str:
        return (
            f"one query {self.p50_ms:8.2f} ms, p99 {self.p99_ms:8.2f} ms "
            f"[{self.p50_cpu_ms:.2f}, {self.p99_cpu_ms:.2f}]; "
            f"batch of {BATCH} {self.batch_p50_ms:8.1f} ms, p99 {self.batch_p99_ms:8.1f} ms"
        )


def latency_of(search: Callable[[FloatArray], object], queries: FloatArray) -> Latency:
    """Time every query by itself, and the same queries in batches of 64."""
    for query in queries[:_WARM_UP]:
        search(query[None])
    singles = np.array([timed(partial(search, query[None])) for query in queries])
    batches = [queries[at : at + BATCH] for at in range(0, len(queries) - BATCH + 1, BATCH)]
    batched = np.array([timed(partial(search, batch)) for batch in batches])
    (p50, p50_cpu), (p99, p99_cpu) = np.percentile(1000 * singles, [50, 99], axis=0)
    batch_p50, batch_p99 = np.percentile(1000 * batched[:, 0], [50, 99])
    return Latency(*map(float, (p50, p99, p50_cpu, p99_cpu, batch_p50, batch_p99)))


def timed(act: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a call takes, by the clock and of this thread's processor time."""
    started, started_cpu = time.perf_counter(), time.thread_time()
    act()
    return time.perf_counter() - started, time.thread_time() - started_cpu


def resident_bytes() -> int:
    """Return the resident memory of this process, mapped files included; Linux only, else 0."""
    gc.collect()
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return 1024 * int(fields["VmRSS"].split()[0])


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Measurements of an index without names, changes or files."""

    build_s: float
    latency: Latency
    recall_at_1: float
    memory_bytes_a_face: float


def measure_engine(build: Callable[[FloatArray], Search], faces: Faces) -> EngineFigures:
    """Build, search, and compare with exact search."""
    before = resident_bytes()
    started = time.perf_counter()
    search = build(faces.enrolled)
    building = time.perf_counter() - started
    found = np.concatenate([search(query[None]) for query in faces.queries])
    latency = latency_of(search, faces.queries)
    memory = (resident_bytes() - before) / len(faces.enrolled)
    return EngineFigures(building, latency, float((found == faces.nearest).mean()), memory)


def _numpy(enrolled: FloatArray) -> Search:
    held = np.array(enrolled)
    return lambda queries: nearest_by_brute_force(held, queries)


def _flat(enrolled: FloatArray) -> Search:
    import faiss

    index = faiss.IndexFlatL2(DIMENSIONS)
    for at in range(0, len(enrolled), CHUNK):
        index.add(np.ascontiguousarray(enrolled[at : at + CHUNK]))
    return lambda queries: np.asarray(index.search(queries, 1)[1][:, 0])


def _hnswlib(enrolled: FloatArray) -> Search:
    import hnswlib

    index = hnswlib.Index("ip", DIMENSIONS)
    index.init_index(max_elements=len(enrolled), M=16, ef_construction=200)
    for at in range(0, len(enrolled), CHUNK):
        index.add_items(enrolled[at : at + CHUNK])
    index.set_ef(400)
    return lambda queries: index.knn_query(queries, 1)[0][:, 0].astype(np.int64)


def _usearch(enrolled: FloatArray) -> Search:
    from usearch.index import Index

    index = Index(ndim=DIMENSIONS, metric="ip", dtype="f32", expansion_add=200, expansion_search=400)
    for at in range(0, len(enrolled), CHUNK):
        index.add(np.arange(at, min(at + CHUNK, len(enrolled))), np.array(enrolled[at : at + CHUNK]))

    def search(queries: FloatArray) -> npt.NDArray[np.int64]:
        return np.asarray(index.search(queries, 1).keys, np.int64).reshape(-1)

    return search


ENGINES = {
    "NumPy brute force": _numpy,
    "FAISS IndexFlatL2": _flat,
    "hnswlib M=16 ef=400": _hnswlib,
    "usearch M=16 ef=400": _usearch,
}
