"""What the driver of a batch over a cluster knows of photos on their way, nodes and workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facepipe.batch.engine import Outcome
from facepipe.batch.models import PhotoTask
from facepipe.batch.ray_cluster import Node


@dataclass(slots=True, eq=False)
class PendingPhoto:
    """A photo without an outcome.

    Attributes:
        task: Which it is.
        tries: Workers that have died with it.
        is_sent: Its bytes are sent, whatever a node sees.
    """

    task: PhotoTask
    tries: int = 0
    is_sent: bool = False


@dataclass(slots=True, eq=False)
class Call:
    """Photos that a worker has.

    Attributes:
        photos: Which.
        sent_bytes: Of the files that were sent.
        is_trial: The photo is alone there, since a worker has died with it.
    """

    photos: list[PendingPhoto]
    sent_bytes: int
    is_trial: bool


@dataclass(slots=True, eq=False)
class NodeState:
    """What is known of a node.

    Attributes:
        node: Which it is.
        is_first: It was there when the work began.
        unseen: Folders with photos that it does not see as the driver does.
        deaths: Of workers without networks, one after the other.
        is_used: Whether it gets workers.
        is_gone: It has left the cluster.
    """

    node: Node
    is_first: bool
    unseen: set[Path] = field(default_factory=set)
    deaths: int = 0
    is_used: bool = True
    is_gone: bool = False

    def note_unseen(self, photos: Sequence[PendingPhoto], outcomes: Sequence[Outcome | None]) -> None:
        """Note the folders of which none of these photos was seen; those have no outcome."""
        if all(outcome is not None for outcome in outcomes):
            return
        pairs = [(photo.task.path.parent, outcome) for photo, outcome in zip(photos, outcomes, strict=True)]
        seen = {folder for folder, outcome in pairs if outcome is not None}
        self.unseen |= {folder for folder, _ in pairs} - seen


@dataclass(slots=True, eq=False)
class Worker:
    """A process on a node.

    Attributes:
        actor: To call it.
        state: Of its node.
        threads: That work there.
        is_ready: It has the networks.
        calls: That it has not answered, by number.
        held_photos: In these calls.
        held_bytes: Of files in these calls.
    """

    actor: Any
    state: NodeState
    threads: int
    is_ready: bool = False
    calls: dict[int, Call] = field(default_factory=dict)
    held_photos: int = 0
    held_bytes: int = 0

    def add(self, number: int, call: Call) -> None:
        """Note a call."""
        self.calls[number] = call
        self.held_photos += len(call.photos)
        self.held_bytes += call.sent_bytes

    def take(self, number: int) -> Call:
        """Forget a call that has ended."""
        call = self.calls.pop(number)
        self.held_photos -= len(call.photos)
        self.held_bytes -= call.sent_bytes
        return call

    @property
    def in_trial(self) -> bool:
        """Whether it has a photo that is tried alone."""
        return any(call.is_trial for call in self.calls.values())
