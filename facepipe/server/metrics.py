"""What Prometheus may count; of all workers together where there are several.

The parent of several workers names a folder in `$PROMETHEUS_MULTIPROC_DIR` before this module is imported.
"""

from __future__ import annotations

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

SHARED_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST

REQUESTS = Counter("facepipe_requests", "Requests answered.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "facepipe_request_seconds",
    "Time from a request's headers to the end of its answer.",
    ["route"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
QUEUED_PHOTOS = Gauge(
    "facepipe_queued_photos", "Photos that wait for the networks.", multiprocess_mode="livesum"
)
BATCH_PHOTOS = Histogram(
    "facepipe_batch_photos", "Photos that went through the networks together.", buckets=(1, 2, 3, 4, 6, 8)
)
FACES = Counter("facepipe_faces", "Faces found.")
REFUSED = Counter("facepipe_refused", "Requests refused for want of room or time.", ["reason"])


def exposition() -> bytes:
    """Return all metrics in Prometheus' text form."""
    if SHARED_FOLDER_VARIABLE not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
