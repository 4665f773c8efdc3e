"""Processes killed while they change a gallery by calls of the library, alone or in a crowd.

After each kill the gallery must open, verify, and hold exactly what was acknowledged; of the change that was
under way, all or nothing. What that is comes from a model of a few lines, not from another gallery.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from gallery_helpers import ENCODER, bytes_in, person_vectors, template

from attacks.cases import TIME_LIMIT_S, Attack, Case
from attacks.processes import Ended, kill_at_random, rehearse, start
from facepipe.gallery import Gallery
from facepipe.gallery.repair import verify

_KILLS, _CHANGES = 5, 5
"""Processes killed one after the other in a case, and changes that each is to make."""
_USUAL = 0.7
"""Share of the changes that are of the kind attacked; the others are of any kind."""
_GALLERY = ""
"""The gallery's own threshold stands under this name, which nobody may have."""
_CROWD_S = 1.5


@dataclass(frozen=True)
class Held:
    """What is known under a name: its photos, and its own threshold."""

    photos: frozenset[str] = frozenset()
    threshold_l2: float | None = None


People = dict[str, Held]


@dataclass(frozen=True)
class Change:
    """One call: what it does to a gallery, and what it makes of the people."""

    verb: str
    words: tuple[str, ...] = ()

    def applied(self, people: People) -> People:
        """The people after it."""
        after, words = dict(people), self.words
        if self.verb == "add":
            before = after.get(words[0], Held())
            after[words[0]] = Held(before.photos | set(words[1:]), before.threshold_l2)
        elif self.verb == "remove":
            del after[words[0]]
        elif self.verb == "rename":
            after[words[1]] = after.pop(words[0])
        elif self.verb == "merge":
            photos = after.pop(words[0]).photos
            after[words[1]] = Held(after[words[1]].photos | photos, after[words[1]].threshold_l2)
        elif self.verb == "threshold":
            after[words[0]] = Held(after.get(words[0], Held()).photos, float(words[1]))
        return after

    def make(self, gallery: Gallery) -> None:
        """Make it."""
        if self.verb == "add":
            faces = [template(person_vectors(int(photo), 1)[0], photo) for photo in self.words[1:]]
            gallery.add(self.words[0], faces)
        elif self.verb == "threshold":
            name, threshold_l2 = self.words
            if name == _GALLERY:
                gallery.set_threshold(float(threshold_l2))
            else:
                gallery.set_person_threshold(name, float(threshold_l2))
        elif self.verb == "index":
            gallery.match(person_vectors(1, 2))
            gallery.rebuild_index()
        else:
            getattr(gallery, self.verb)(*self.words)


VERBS = ("add", "remove", "rename", "merge", "threshold", "index")


def some_change(people: People, verb: str, dice: random.Random) -> Change:
    """A change of this kind, or an addition where there are too few people for it."""
    names = sorted(people.keys() - {_GALLERY})
    if verb == "threshold":
        return Change(verb, (dice.choice([*names, _GALLERY]), str(round(dice.uniform(0.1, 1.9), 3))))
    if verb == "index":
        return Change(verb)
    if verb == "add" or len(names) < 3:
        name = dice.choice(names) if names and dice.random() < 0.3 else f"person {dice.randrange(10**9)}"
        return Change("add", (name, *(str(dice.randrange(10**9)) for _ in range(dice.randint(1, 4)))))
    if verb == "rename":
        return Change(verb, (dice.choice(names), f"renamed {dice.randrange(10**9)}"))
    return Change(verb, tuple(dice.sample(names, 2 if verb == "merge" else 1)))


def stored(folder: Path) -> People:
    """What the gallery holds; fails where it holds a face twice, or other vectors than were given."""
    people: People = {}
    with Gallery.open(folder, ENCODER) as gallery:
        if gallery.threshold_l2 is not None:
            people[_GALLERY] = Held(threshold_l2=gallery.threshold_l2)
        for person in gallery.people():
            photos = [Path(t.source or "").stem for t in gallery.templates(person.name)]
            assert len(photos) == len(set(photos)), f"{person.name} has faces twice: {photos}"
            given = np.concatenate([person_vectors(int(photo), 1) for photo in photos])
            assert np.array_equal(gallery.vectors(person.name), given), f"other vectors of {person.name}"
            people[person.name] = Held(frozenset(photos), person.threshold_l2)
    return people


# One process


def _attack_on(verb: str) -> Callable[[Case], None]:
    def run(case: Case) -> None:
        folder, people = case.folder / "gallery", People()
        Gallery.open(folder, ENCODER, create=True).close()
        for first in (case.dice.randrange(10**8) * 10 for _ in range(4)):
            change = Change("add", (f"person {first}", str(first), str(first + 1)))
            with Gallery.open(folder, ENCODER) as gallery:
                change.make(gallery)
            people = change.applied(people)
        for _ in range(_KILLS):
            people = _killed_once(case, folder, people, verb)

    return run


def _killed_once(case: Case, folder: Path, people: People, verb: str) -> People:
    """Kill a process that changes the gallery; answers the people that are left."""
    changes, states = [], [people]
    for _ in range(_CHANGES):
        chosen = verb if case.dice.random() < _USUAL else case.dice.choice(VERBS)
        changes.append(some_change(states[-1], chosen, case.dice))
        states.append(changes[-1].applied(states[-1]))
    copy = folder.with_name("rehearsal")
    shutil.copytree(folder, copy)
    ended, rehearsal = rehearse(lambda: _make(copy, changes), TIME_LIMIT_S)
    shutil.rmtree(copy)
    case.require_plain(ended, (0,))
    ended = kill_at_random(lambda: _make(folder, changes), rehearsal, case.dice, TIME_LIMIT_S)
    case.require(ended.was_killed or ended.code == 0, f"exit code {ended.code}: {ended.err[-600:]}")
    done = ended.out.count("done")
    findings = verify(folder, ENCODER)
    case.require(not findings, f"not whole after a kill: {findings}")
    found = stored(folder)
    allowed = states[done : done + 2]
    case.require(found in allowed, f"after {ended.out}: {found}, expected one of {allowed}")
    names = {name for state in states[: done + 2] for name in state}
    gone = [name.encode() for name in names - found.keys() - {_GALLERY}]
    case.require(not (left := bytes_in(folder, gone)), f"names that were given up are left in {left}")
    if ended.was_killed:
        under_way = ended.out.count("begin") > done
        case.count("idle" if not under_way else "undone" if found == allowed[0] else "done")
    return found


def _make(folder: Path, changes: list[Change]) -> None:
    """Make the changes, writing what begins and what is done."""
    with Gallery.open(folder, ENCODER) as gallery:
        for number, change in enumerate(changes):
            os.write(1, f"begin {number}\n".encode())
            change.make(gallery)
            os.write(1, f"done {number}\n".encode())


# A crowd


def crowd(case: Case) -> None:
    """Let processes write and read one gallery at once, and kill one of the writers.

    No writer touches another's people, so that each is compared with what it told.
    """
    folder = case.folder / "gallery"
    Gallery.open(folder, ENCODER, create=True).close()
    deadline = time.monotonic() + _CROWD_S
    seeds = [case.dice.randrange(10**9) for _ in range(5)]
    writers = [start(partial(_write, folder, w, seeds[w], deadline)) for w in range(3)]
    readers = [start(partial(_read, folder, seeds[r], deadline)) for r in (3, 4)]
    killed = writers[0].kill_after(case.dice.uniform(0.1, _CROWD_S), TIME_LIMIT_S)
    ended = [process.wait(TIME_LIMIT_S) for process in [*writers[1:], *readers]]
    for other in ended:
        case.require_plain(other, (0,))
    findings = verify(folder, ENCODER)
    case.require(not findings, f"not whole after a crowd: {findings}")
    found = stored(folder)
    for number, writer in enumerate([killed, *ended[:2]]):
        mine = {name: held for name, held in found.items() if name.startswith(f"writer {number} ")}
        allowed = _told(writer, number, seeds[number])
        case.require(mine in allowed, f"writer {number} left {mine}, expected one of {allowed}")
    if killed.was_killed:
        case.count("in a crowd")


def _write(folder: Path, writer: int, seed: int, deadline: float) -> None:
    for change in _changes_of(writer, seed):
        if time.monotonic() > deadline:
            return
        with Gallery.open(folder, ENCODER) as gallery:
            change.make(gallery)
            os.write(1, b"done\n")


def _changes_of(writer: int, seed: int) -> Iterator[Change]:
    """Endlessly: additions and removals of people of this writer's own."""
    dice, mine = random.Random(seed), People()
    while True:
        first = dice.randrange(10**9)
        change = Change("add", (f"writer {writer} {dice.randrange(10**9)}", str(first), str(first + 1)))
        if len(mine) > 6:
            change = Change("remove", (dice.choice(sorted(mine)),))
        mine = change.applied(mine)
        yield change


def _told(writer: Ended, number: int, seed: int) -> list[People]:
    """What may be there of a writer: all that it told as done, or that and the change under way."""
    done, states = writer.out.count("done"), [People()]
    for change in itertools.islice(_changes_of(number, seed), done + writer.was_killed):
        states.append(change.applied(states[-1]))
    return states[done:]


def _read(folder: Path, seed: int, deadline: float) -> None:
    while time.monotonic() < deadline:
        with Gallery.open(folder, ENCODER) as gallery:
            people = gallery.people()
            assert all(person.template_count == 2 for person in people), people
            for answer in gallery.match(person_vectors(seed, 2), one_person_per_photo=False):
                assert not people or answer.distance_l2 is not None
        findings = verify(folder, ENCODER)
        assert not findings, findings


ATTACKS = [
    *(Attack("kills", f"gallery {verb}", _attack_on(verb)) for verb in VERBS),
    Attack("kills", "crowd", crowd),
]
