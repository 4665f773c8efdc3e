"""Nothing that was acknowledged is lost, and nothing is left halfway."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from library_helpers import analyze, face_of, make_batch, names_in

from facepipe.batch.decisions import Decision
from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE
from facepipe.gallery import Gallery
from facepipe.library.library import Library

PHOTOS = {f"p{number}": ["ada", f"stranger {number}"] for number in range(12)}
DECIDES = """
import json, sys, random
from pathlib import Path
from facepipe.library.library import Library

chance = random.Random(int(sys.argv[2]))
with Library.open(Path(sys.argv[1])) as library:
    ids = list(library.faces)
    for _ in range(500):
        id, name = chance.choice(ids), chance.choice(["Ada", "Bob", "Eve"])
        what = chance.choice(["confirm", "reject", "ignore", "reset"])
        if what in ("confirm", "reject"):
            getattr(library, what)([id], name)
        else:
            getattr(library, what)([id])
        decision = library.faces[id].decision
        verdict = decision and decision.verdict and decision.verdict.value
        print(json.dumps([id, verdict, decision and decision.name]), flush=True)
        library.name_again(2)
"""


def test_acknowledged_decisions_survive_sigkill(tmp_path: Path) -> None:
    out = make_batch(tmp_path, PHOTOS)
    decided: dict[str, list[str | None]] = {}
    for seed in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", DECIDES, str(out), str(seed)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(random.Random(seed).uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.wait()
        acknowledged = [json.loads(line) for line in lines if line.endswith("\n")]
        assert acknowledged
        decided |= {id: state for id, *state in acknowledged}
        unfinished = 1  # one more may be decided and not yet acknowledged
        with Library.open(out) as library:
            found = {id: state_of(library.faces[id].decision) for id in decided}
            unfinished -= sum(found[id] != state for id, state in decided.items())
            assert unfinished >= 0
            library.name_everything()
            for face in library.faces.values():
                if face.is_settled and face.decision is not None:
                    assert face.name == face.decision.name
            decided = found


def state_of(decision: Decision | None) -> list[str | None]:
    """Verdict and name, as the killed process prints them."""
    if decision is None:
        return [None, None]
    return [decision.verdict and decision.verdict.value, decision.name]


@pytest.mark.parametrize("taking_back", [False, True])
def test_a_killed_change_of_the_gallery_is_finished_at_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taking_back: bool
) -> None:
    out = make_batch(tmp_path, PHOTOS)
    with Library.open(out) as library:
        library.confirm([face_of(library, "p0")], "Ada")
        library.name_everything()
        if taking_back:
            library.rename("Ada", "Eve")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, Library.open(out) as library:
        patched.setattr(Gallery, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            library.undo() if taking_back else library.rename("Ada", "Eve")
    with Library.open(out) as library:
        library.name_everything()
        name = "Ada" if taking_back else "Eve"
        assert [person.name for person in library.gallery.people()] == [name]
        assert [person.name for person in library.people()] == [name]
        assert names_in(library)["p3"] == [name, None]


def test_a_damaged_job_gives_its_decisions_to_the_new_one(tmp_path: Path) -> None:
    out = make_batch(tmp_path, PHOTOS)
    with Library.open(out) as library:
        for number in range(6):
            library.confirm([face_of(library, f"p{number}")], "Ada")
        ids = [face_of(library, f"p{number}") for number in range(6)]
    with closing(sqlite3.connect(out / JOB_FILE)) as database:
        database.execute("UPDATE photos SET width = 7 WHERE id = 3")
        database.execute("UPDATE decisions SET name = 'Bob' WHERE face_id = ?", (ids[2],))
        database.commit()
    with Job(out, create=True, again=True) as job:
        assert job.photos() == []
        assert {stored.decision.face_id for stored in job.decisions} == set(ids) - {ids[2]}
        job.plan(sorted((tmp_path / "photos").iterdir()))
        analyze(job, PHOTOS)
    with Library.open(out, tmp_path / "gallery") as library:
        library.name_everything()
        assert sum(face.is_confirmed for face in library.faces.values()) == 5
        assert all(library.faces[id].name == "Ada" for id in ids)


def test_an_encrypted_library_holds_no_plain_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEPIPE_GALLERY_KEY", "correct horse battery staple")
    out = make_batch(tmp_path, PHOTOS, secret=os.environb[b"FACEPIPE_GALLERY_KEY"])
    with Library.open(out) as library:
        id = face_of(library, "p0")
        library.confirm([id], "Zebedee")
        library.reject([face_of(library, "p1")], "Quux")
        library.set_hidden("Zebedee", True)
        library.regroup()
        library.name_everything()
    with Library.open(out) as library:
        assert library.faces[id].name == "Zebedee"
        assert library.steps(1)[0].label == "Zebedee hidden"
    written = b"".join(file.read_bytes() for file in out.iterdir())
    for word in (b"Zebedee", b"Quux", id.encode(), os.fsencode(tmp_path)):
        assert word not in written
