"""What processes of their own measure of a gallery: opening, matching, memory, and many at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a file

from benchmarks.engines import BATCH, Latency, latency_of, resident_bytes
from benchmarks.made_up_faces import DIMENSIONS
from facepipe.core.faces import FloatArray
from facepipe.gallery import EncoderIdentity, Gallery

ENCODER = EncoderIdentity("made up", "0" * 16, DIMENSIONS, threshold_l2=1.04)
"""The threshold is about that of the shipped encoder for small galleries."""
_MANY_S = 10.0


@dataclass(frozen=True, slots=True)
class Opened:
    """Measurements of one process.

    Attributes:
        open_s: Until the first face was matched.
        latency: Of the queries.
        memory_bytes: Taken by opening and matching.
        names: The nearest person of each query.
        distances: To them.
    """

    open_s: float
    latency: Latency
    memory_bytes: int
    names: list[str]
    distances: list[float]


@dataclass(frozen=True, slots=True)
class Many:
    """Measurements of several processes that match one query after the other, all at the same time."""

    processes: int
    answers_per_s: float
    p50_ms: float
    p99_ms: float


def opened(address: str, queries: Path, evict: bool = False) -> Opened:
    """Measure in a new process; where `evict`, nothing of a gallery's folder is in memory before."""
    if evict:
        for file in Path(address).iterdir():
            _evict(file)
    run = [sys.executable, __file__, "one", address, str(queries)]
    answer: dict[str, Any] = json.loads(subprocess.run(run, check=True, capture_output=True).stdout)
    return Opened(**{**answer, "latency": Latency(**answer["latency"])})


def many_opened(address: str, queries: Path, processes: int) -> Many:
    """Measure processes that all begin when the last of them has opened the gallery."""
    run = [sys.executable, __file__, "many", address, str(queries)]
    started = [
        subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = [json.loads(answer) for answer in _outputs(started)]
    every_ms = np.concatenate(answers)
    p50_ms, p99_ms = np.percentile(every_ms, [50, 99])
    return Many(processes, len(every_ms) / _MANY_S, float(p50_ms), float(p99_ms))


def _outputs(started: list[subprocess.Popen[str]]) -> list[str]:
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate()[0] for process in started]


def _evict(file: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _measure(address: str, queries: FloatArray) -> Opened:
    before = resident_bytes()
    started = time.perf_counter()
    with Gallery.open(address, ENCODER) as gallery:

        def match(some: FloatArray) -> list[Any]:
            return list(gallery.match(some, threshold_l2=2.0, one_person_per_photo=False))

        match(queries[:1])
        open_s = time.perf_counter() - started
        latency = latency_of(match, queries)
        matches = [match(query[None])[0] for query in queries]
        memory = resident_bytes() - before
    return Opened(
        open_s,
        latency,
        memory,
        [match.name for match in matches],
        [match.distance_l2 for match in matches],
    )


def _match_for_a_while(address: str, queries: FloatArray) -> list[float]:
    """Milliseconds of each match, from when a line comes in."""
    taken_ms = []
    with Gallery.open(address, ENCODER) as gallery:
        for query in queries[:20]:
            gallery.match(query[None])
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        end = time.perf_counter() + _MANY_S
        at = os.getpid()
        while (started := time.perf_counter()) < end:
            gallery.match(queries[at % len(queries)][None])
            taken_ms.append(1000 * (time.perf_counter() - started))
            at += 1
    return taken_ms


def _main() -> None:
    kind, address, file = sys.argv[1:]
    queries = np.load(file)
    import faiss  # noqa: F401  Its own import is no matter of size.

    queries[:BATCH] @ queries.T  # Nor are the buffers that BLAS makes.
    if kind == "one":
        print(json.dumps(asdict(_measure(address, queries))))
    else:
        print(json.dumps(_match_for_a_while(address, queries)))


if __name__ == "__main__":
    _main()
