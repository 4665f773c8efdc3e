"""Analysis of photos on a Ray cluster: the driver hands them out and gets one outcome of each."""

from __future__ import annotations

import logging
import queue
import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from facepipe.batch.engine import Outcome
from facepipe.batch.failures import ONE_PHOTO_FAILS, failed_photo
from facepipe.batch.file_view import view_of
from facepipe.batch.models import FailedPhoto, PhotoTask
from facepipe.batch.ray_cluster import RayCluster, is_death, is_lost_worker, last_line, raised_there
from facepipe.batch.ray_state import Call, NodeState, PendingPhoto, Worker
from facepipe.batch.ray_worker import Answer, Installation, PhotoToAnalyze, PhotoWorker, WorkerSetup
from facepipe.core.counting import counted
from facepipe.core.errors import ClusterError, FacepipeError, one_line
from facepipe.images.reading import printable, read_photo_bytes

_POLL_S = 0.2
"""How often the driver leaves its queue, so that Ctrl-C is noticed."""
_NODES_S = 1.0
"""How often it is asked which nodes there are."""
_NO_WORKER_S = 120.0
"""How long the work goes on without any worker, for nodes that come back."""
_MOST_DEATHS = 3
"""Of workers of a node that die before they have tried their networks: the node is not used."""
_MOST_TRIES = 2
"""Workers that may die with a photo; the last one had no other photo."""
_CALLS_AT_ONCE = 4
"""Of a worker that has all the photos that it may have."""
_SENT_FILE_BYTES = 512_000_000
"""Of a file that is sent, at most."""
_log = logging.getLogger("facepipe")


@dataclass(frozen=True, slots=True)
class RayOptions:
    """How photos are spread over a cluster; the results do not depend on it.

    Attributes:
        worker_processors: Of a worker process, at most: nodes with more have several.
        held_photos: Photos that a worker has for each of its threads: work for some seconds. A call has a
            quarter of them.
        held_bytes: Bytes of files that a worker was sent and has not analyzed; one file may be larger. All
            workers together have half of the object store of the driver's node.
    """

    worker_processors: int = 8
    held_photos: int = 8
    held_bytes: int = 64_000_000


@dataclass(frozen=True, slots=True)
class _Reply:
    """A call of a worker has ended; `call` None: that of `prepare`."""

    worker: Worker
    call: int | None
    future: Future[Any]


class RayEngine:
    """Analyzes photos on the nodes of a cluster. One for one run; see `PhotoEngine`.

    Each worker has a bounded number of photos. A photo whose worker dies is given to another; where its node
    lives on, the photo is tried alone, and is a failure when its worker dies again. So every task has exactly
    one outcome, whatever becomes of workers and nodes.

    Args:
        cluster: Connected.
        tasks: What to analyze; read as needed.
        setup: Of the workers. `setup.engine.workers` None: a thread for each processor of a worker, and one.
        here: What results here depend on; workers must have the same.
        options: See `RayOptions`.
        worker: Class of the workers; None: `PhotoWorker`.

    Attributes:
        seconds: Of all threads of the workers, by stage.
    """

    def __init__(
        self,
        cluster: RayCluster,
        tasks: Iterable[PhotoTask],
        setup: WorkerSetup,
        here: Installation,
        options: RayOptions | None = None,
        worker: type[Any] | None = None,
    ) -> None:
        self._cluster, self._setup, self._here = cluster, setup, here
        self._options, self._worker_class = options or RayOptions(), worker or PhotoWorker
        self._tasks = map(PendingPhoto, iter(tasks))
        self._again: deque[PendingPhoto] = deque()
        self._suspects: deque[PendingPhoto] = deque()
        self._failed: deque[FailedPhoto] = deque()
        self._nodes: dict[str, NodeState] = {}
        self._workers: list[Worker] = []
        self._replies: queue.SimpleQueue[_Reply] = queue.SimpleQueue()
        self._call_count = 0
        self._sent_bytes = 0
        self._most_sent_bytes = max(1, cluster.store_bytes() // 2)
        self._tasks_left = True
        self._nodes_asked_at = -_NODES_S
        self._worked_at = time.monotonic()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def outcomes(self) -> Generator[Outcome]:
        """One outcome of each task, as they come, in no order. Leaving the loop stops the work.

        Raises:
            ClusterError: A node can't do the work, or there is none.
            Exception: What a worker raised that is no photo's fault.
        """
        self._again.extend(islice(self._tasks, 1))
        self._tasks_left = bool(self._again)
        try:
            while self._hand_out():
                self._tend_nodes()
                yield from self._failures()
                yield from self._received()
            yield from self._failures()
        finally:
            for worker in self._workers:
                self._cluster.stop_worker(worker.actor)

    # Nodes and workers

    def _tend_nodes(self) -> None:
        """Start the workers that nodes lack: of nodes that have come, and those that have died.

        A node that has gone is given up, also where no call of a worker there has failed, or one failed
        before the cluster knew that the node had gone.
        """
        now = time.monotonic()
        if now - self._nodes_asked_at < _NODES_S:
            return
        self._nodes_asked_at = now
        is_first = not self._nodes
        nodes = self._cluster.nodes()
        for node in nodes:
            state = self._nodes.setdefault(node.id, NodeState(node, is_first))
            if state.is_used:
                self._fill(state)
        for gone in self._nodes.keys() - {node.id for node in nodes}:
            self._leave(self._nodes[gone])
        self._require_workers(now)

    def _fill(self, state: NodeState) -> None:
        """Start the workers that a node lacks."""
        processors = state.node.processors
        wanted = -(-processors // self._options.worker_processors)
        has = sum(worker.state is state for worker in self._workers)
        for number in range(has, wanted):
            share = processors // wanted + (number < processors % wanted)
            self._start(state, share)

    def _start(self, state: NodeState, processors: int) -> None:
        engine = self._setup.engine
        threads = engine.workers or processors + 1
        actor = self._cluster.start_worker(self._worker_class, state.node, processors, 2 * _CALLS_AT_ONCE)
        worker = Worker(actor, state, threads)
        self._workers.append(worker)
        setup = replace(self._setup, engine=replace(engine, workers=threads))
        self._listen(worker, None, actor.prepare.remote(setup))

    def _require_workers(self, now: float) -> None:
        if any(worker.is_ready for worker in self._workers):
            self._worked_at = now
        elif now - self._worked_at > _NO_WORKER_S:
            has = counted(len(self._nodes), "node")
            raise ClusterError(
                f"Ray at {self._cluster.address}: no worker for {_NO_WORKER_S:.0f} seconds ({has} seen): "
                "start Ray on nodes with free processors; the same command goes on from there"
            )

    def _listen(self, worker: Worker, call: int | None, reference: Any) -> None:
        put = self._replies.put
        reference.future().add_done_callback(lambda future: put(_Reply(worker, call, future)))

    # Handing out

    def _hand_out(self) -> bool:
        """Give photos to workers that have room. Answers whether any photo is without an outcome."""
        waiting = [worker for worker in self._workers if self._has_room(worker)]
        while waiting:
            waiting.sort(key=lambda worker: worker.held_photos / worker.threads)
            waiting = [worker for worker in waiting if self._give(worker)]
        left = self._tasks_left or self._again or self._suspects
        return bool(left or any(worker.calls for worker in self._workers))

    def _has_room(self, worker: Worker) -> bool:
        options = self._options
        return (
            worker.is_ready
            and worker.held_photos < options.held_photos * worker.threads
            and worker.held_bytes < options.held_bytes
            and self._sent_bytes < self._most_sent_bytes
            and not worker.in_trial
        )

    def _give(self, worker: Worker) -> bool:
        """Call a worker with some photos, where there are some. Answers whether it has room for more."""
        if self._suspects and not worker.calls:
            self._call(worker, [self._suspects.popleft()], is_trial=True)
            return False
        count = max(1, self._options.held_photos * worker.threads // _CALLS_AT_ONCE)
        photos = [photo for _ in range(count) if (photo := self._next_photo())]
        if not photos:
            return False
        self._call(worker, photos)
        return self._has_room(worker) and not self._failed

    def _next_photo(self) -> PendingPhoto | None:
        if self._again:
            return self._again.popleft()
        photo = next(self._tasks, None)
        self._tasks_left = photo is not None
        return photo

    def _call(self, worker: Worker, photos: list[PendingPhoto], *, is_trial: bool = False) -> None:
        """Have a worker analyze photos. Those that do not fit into the bytes that it may hold come later."""
        sent: list[PhotoToAnalyze] = []
        called: list[PendingPhoto] = []
        sent_bytes = 0
        for number, photo in enumerate(photos):
            is_full = sent_bytes + worker.held_bytes >= self._options.held_bytes
            if is_full or sent_bytes + self._sent_bytes >= self._most_sent_bytes:
                self._again.extendleft(reversed(photos[number:]))
                break
            prepared = self._prepared(photo, worker.state)
            if prepared is not None:
                sent.append(prepared)
                called.append(photo)
                sent_bytes += len(prepared.task.content or b"")
        if called:
            self._call_count += 1
            self._sent_bytes += sent_bytes
            worker.add(self._call_count, Call(called, sent_bytes, is_trial))
            self._listen(worker, self._call_count, worker.actor.analyze.remote(sent))

    def _prepared(self, photo: PendingPhoto, state: NodeState) -> PhotoToAnalyze | None:
        """Return what a node needs of a photo; None: its file can't be read, and it has failed."""
        task = photo.task
        if not photo.is_sent and not (state.unseen and task.path.parent in state.unseen):
            view = view_of(task.path)
            if view is not None:
                return PhotoToAnalyze(task, view)
        try:
            content = read_photo_bytes(task.path, max_bytes=_SENT_FILE_BYTES)
        except ONE_PHOTO_FAILS as error:
            self._failed.append(failed_photo(task, error))
            return None
        photo.is_sent = True
        return PhotoToAnalyze(replace(task, content=content), None)

    def _failures(self) -> Iterator[Outcome]:
        """Photos that failed without a worker."""
        while self._failed:
            yield self._failed.popleft()

    # What comes back

    def _received(self) -> Iterator[Outcome]:
        """Wait for an answer, and take all that are there."""
        try:
            replies = [self._replies.get(timeout=_POLL_S)]
        except queue.Empty:
            return
        while not self._replies.empty():
            replies.append(self._replies.get())
        for reply in replies:
            yield from self._outcomes_of(reply)

    def _outcomes_of(self, reply: _Reply) -> Iterator[Outcome]:
        if reply.worker not in self._workers:
            return  # it was given up, and its photos are with others
        error = reply.future.exception()
        if error is not None:
            if not is_lost_worker(error):
                raise raised_there(error)
            self._give_up(reply.worker, error)
        elif reply.call is None:
            self._welcome(reply.worker, reply.future.result())
        else:
            call = reply.worker.take(reply.call)
            self._sent_bytes -= call.sent_bytes
            yield from self._answered(reply.worker, call, reply.future.result())

    def _welcome(self, worker: Worker, prepared: Installation | FacepipeError) -> None:
        """Use a worker that has its networks, where it gives the results that would be had here."""
        address = worker.state.node.address
        if isinstance(prepared, FacepipeError):
            self._refuse(worker.state, f"node {address}: {prepared}")
        elif different := prepared.differences(self._here):
            self._refuse(
                worker.state,
                f"node {address} has another installation: {different}; install the same there, results "
                "depend on it",
            )
        else:
            worker.is_ready, worker.state.deaths = True, 0
            _log.info("node %s: a worker is ready (%s)", address, counted(worker.threads, "thread"))

    def _refuse(self, state: NodeState, reason: str) -> None:
        """Go on without a node that came later; one that was there from the beginning is to be put right."""
        if state.is_first:
            raise ClusterError(reason)
        if state.is_used:
            _log.warning("%s; it is not used", reason)
        state.is_used = False

    def _answered(self, worker: Worker, call: Call, answer: Answer) -> Iterator[Outcome]:
        for stage, seconds in answer.seconds.items():
            self.seconds[stage] += seconds
        worker.state.note_unseen(call.photos, answer.outcomes)
        for photo, outcome in zip(call.photos, answer.outcomes, strict=True):
            if outcome is None or (_may_pass(outcome) and not photo.is_sent):
                photo.is_sent = True  # what the node has of it is not what is here
                self._again.append(photo)
            else:
                yield outcome

    def _give_up(self, worker: Worker, error: BaseException) -> None:
        """Give the photos of a worker that has gone to others, and find out whether one has killed it."""
        state = worker.state
        if not any(node.id == state.node.id for node in self._cluster.nodes()):
            self._leave(state)
            return
        self._take_back(worker, is_suspect=is_death(error))
        if worker.is_ready:
            _log.warning("node %s: a worker is lost (%s)", state.node.address, one_line(error, 80))
        else:
            self._count_death(state, error)

    def _leave(self, state: NodeState) -> None:
        """Give the photos of a node that has gone to others; once, since a node comes back as another."""
        if state.is_gone:
            return
        state.is_gone = True
        for worker in [worker for worker in self._workers if worker.state is state]:
            self._take_back(worker, is_suspect=False)
        _log.warning("node %s has gone; its photos go to others", state.node.address)

    def _take_back(self, worker: Worker, *, is_suspect: bool) -> None:
        """Forget a worker; its photos wait for others."""
        self._workers.remove(worker)
        self._sent_bytes -= worker.held_bytes
        self._cluster.stop_worker(worker.actor)
        for call in worker.calls.values():
            for photo in call.photos:
                self._put_back(photo, is_suspect=is_suspect, was_alone=call.is_trial)

    def _put_back(self, photo: PendingPhoto, *, is_suspect: bool, was_alone: bool) -> None:
        photo.tries += is_suspect
        if not photo.tries:
            self._again.appendleft(photo)
        elif was_alone and photo.tries >= _MOST_TRIES:
            self._failed.append(_killer(photo.task))
        else:
            self._suspects.append(photo)

    def _count_death(self, state: NodeState, error: BaseException) -> None:
        """Note that a worker died before it was ready."""
        state.deaths += 1
        if state.deaths >= _MOST_DEATHS:
            self._refuse(
                state,
                f"node {state.node.address}: workers die before they begin ({last_line(error)}); install "
                "facepipe there as it is here, in the Python that Ray runs on",
            )


def _may_pass(outcome: Outcome) -> bool:
    return isinstance(outcome, FailedPhoto) and outcome.is_temporary


def _killer(task: PhotoTask) -> FailedPhoto:
    return FailedPhoto(
        task,
        f"{printable(task.path)}: the process that analyzed it died, twice; it is passed over; export it "
        "again from where it came, or try again with --retry-failed",
    )
