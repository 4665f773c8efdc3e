"""Nodes that leave a cluster before or after a call there fails: told once, with nothing lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from facepipe.batch import ray_engine
from facepipe.batch.analysis import AnalysisOptions
from facepipe.batch.engine import EngineOptions
from facepipe.batch.failures import failed_photo
from facepipe.batch.models import PhotoTask
from facepipe.batch.ray_cluster import Node, RayCluster
from facepipe.batch.ray_engine import RayEngine
from facepipe.batch.ray_worker import Answer, Installation, Networks, PhotoToAnalyze, WorkerSetup
from facepipe.core.errors import PhotoError
from facepipe.detector import DetectorOptions

HERE = Installation({}, {})
SETUP = WorkerSetup(
    Networks("detector", "encoder", DetectorOptions(), "onnx"), AnalysisOptions(), EngineOptions()
)
LEAVES, STAYS = Node("a", "10.0.0.1", 1), Node("b", "10.0.0.2", 1)


class UnavailableError(Exception):
    """Stands for Ray's, which is not imported: a cluster on this machine is started before that."""


def reference(future: Future[Any]) -> SimpleNamespace:
    return SimpleNamespace(future=lambda: future)


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Cluster:
    """Of two nodes. One leaves after a call there was made, which fails at once or never ends."""

    address = "10.0.0.1:6379"

    def __init__(self, *, fails_at_once: bool) -> None:
        self._fails_at_once = fails_at_once
        self._was_called, self._answers_now = threading.Event(), threading.Event()
        self._listed_since = 0
        self.stopped: list[str] = []

    def nodes(self) -> list[Node]:
        self._listed_since += self._was_called.is_set()
        if self._listed_since <= 3:
            return [LEAVES, STAYS]
        self._answers_now.set()
        return [STAYS]

    def store_bytes(self) -> int:
        return 1_000_000

    def start_worker(self, worker: type[Any], node: Node, processors: int, calls: int) -> Any:
        is_second = node is LEAVES and self._was_called.is_set()  # it can't be started there any more
        prepared: Future[Any] = Future() if is_second else done(HERE)
        prepare = SimpleNamespace(remote=lambda _: reference(prepared))
        analyze = SimpleNamespace(remote=lambda photos: reference(self._called(node, photos)))
        return SimpleNamespace(prepare=prepare, analyze=analyze, node=node)

    def stop_worker(self, actor: Any) -> None:
        self.stopped.append(actor.node.id)

    def _called(self, node: Node, photos: Sequence[PhotoToAnalyze]) -> Future[Any]:
        future: Future[Any] = Future()
        if node is LEAVES:
            self._was_called.set()
            if self._fails_at_once:
                future.set_exception(UnavailableError("for now"))
            return future
        outcomes = [failed_photo(photo.task, PhotoError("none")) for photo in photos]
        threading.Thread(target=self._answer, args=(future, Answer(list(outcomes), {}))).start()
        return future

    def _answer(self, future: Future[Any], answer: Answer) -> None:
        assert self._answers_now.wait(20)
        future.set_result(answer)


@pytest.mark.parametrize("fails_at_once", [True, False], ids=["call fails first", "call never ends"])
def test_a_node_that_leaves_is_told_once_and_its_photos_go_to_others(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fails_at_once: bool,
) -> None:
    monkeypatch.setattr(ray_engine, "_NODES_S", 0.02)
    monkeypatch.setattr(ray_engine, "_POLL_S", 0.01)
    for name in ("is_lost_worker", "is_death"):
        monkeypatch.setattr(ray_engine, name, lambda error: isinstance(error, UnavailableError))
    tasks = []
    for number in range(30):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(b"a photo")
        tasks.append(PhotoTask(number, path))
    cluster = Cluster(fails_at_once=fails_at_once)
    with caplog.at_level(logging.INFO, "facepipe"):
        engine = RayEngine(cast(RayCluster, cluster), iter(tasks), SETUP, HERE)
        outcomes = list(engine.outcomes())
    assert sorted(outcome.task.id for outcome in outcomes) == list(range(30))
    told = [record.getMessage() for record in caplog.records if "has gone" in record.getMessage()]
    assert told == ["node 10.0.0.1 has gone; its photos go to others"]
    assert cluster.stopped.count("a") == (2 if fails_at_once else 1)
