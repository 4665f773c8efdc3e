"""Back to a backup: by the command, and by hand with a log that was left beside the file."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, OTHER_ENCODER, bytes_in, person_vectors, start, template

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery
from facepipe.gallery.repair import verify
from facepipe.gallery.restore import restore
from facepipe.gallery.storage.sqlite.database import Database

FILE, LOG = "gallery.sqlite3", "gallery.sqlite3-wal"

LIVES = """
    import os, random, signal

    def live(folder, seed, changes):
        rng = random.Random(seed)
        with Gallery.open(folder, ENCODER, create=True) as gallery:
            for step in range(changes):
                change(gallery, rng, f"{seed}-{step}")
                yield

    def change(gallery, rng, label):
        names = [person.name for person in gallery.people()]
        act = rng.choice(["add", "add", "more", "rename", "threshold", "unknown", "remove", "merge"])
        vectors = person_vectors(rng.randrange(9**9), 3)
        new = [template(vector, f"{label}-{i}") for i, vector in enumerate(vectors)]
        if act == "add" or len(names) < 3:
            gallery.add(f"person {label}", new)
        elif act == "more":
            gallery.add(rng.choice(names), new)
        elif act == "rename":
            gallery.rename(rng.choice(names), f"renamed {label}")
        elif act == "threshold":
            gallery.set_threshold(rng.random())
        elif act == "unknown":
            gallery.remember_unknown(new)
        elif act == "remove":
            gallery.remove(rng.choice(names))
        else:
            gallery.merge(*rng.sample(names, 2))

    for line in sys.stdin:
        folder, seed, changes, end = line.split("|")
        child = os.fork()
        if not child:
            try:
                for done, _ in enumerate(live(folder, int(seed), int(changes)), start=1):
                    if done == int(changes) and end.strip() == "killed":
                        os.kill(os.getpid(), signal.SIGKILL)
                os._exit(0)
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Lives:
    """Processes that change a gallery, each forked of one that has all modules."""

    def __init__(self) -> None:
        self.parent = start(LIVES)

    def live(self, folder: Path, seed: int, changes: int, end: str) -> None:
        """Let a process change the gallery; one that is "killed" leaves its log."""
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.parent.stdin.write(f"{folder}|{seed}|{changes}|{end}\n")
        self.parent.stdin.flush()
        assert int(self.parent.stdout.readline()) == (-signal.SIGKILL if end == "killed" else 0)


@pytest.fixture
def tmp_path(memory_folder: Path) -> Path:
    """In memory: thousands of changes are synced here."""
    return memory_folder


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    lives = Lives()
    yield lives
    lives.parent.communicate()


def contents(folder: Path) -> list[object]:
    """All that a gallery holds."""
    with Gallery.open(folder, ENCODER) as gallery:
        people = gallery.people()
        return [
            people,
            gallery.threshold_l2,
            [gallery.templates(person.name) for person in people],
            [gallery.vectors(person.name).tobytes() for person in people],
            [(face.id, face.embedding.tobytes(), face.source) for face in gallery.unknown_faces()],
        ]


def aside_of(folder: Path, why: str) -> list[Path]:
    return sorted(folder.parent.glob(f"{folder.name}.{why}-*"))


# By hand


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("way", ["backup", "copy"])
def test_a_backup_copied_beside_a_left_log_is_the_backup(
    lives: Lives, tmp_path: Path, seed: int, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever happened before and after it, and wherever SQLite began the log anew."""
    folder, rng = tmp_path / "g", random.Random(seed)
    lives.live(folder, seed, rng.randint(1, 12), "closed")
    if rng.random() < 0.5:
        lives.live(folder, seed + 200, rng.randint(1, 6), "killed")
        if way == "copy":
            Gallery.open(folder).close()  # A copy of the file alone is all of it only without a log.
    if way == "backup":
        with Gallery.open(folder) as gallery:
            gallery.backup(tmp_path / "backup")
    else:
        (tmp_path / "backup").mkdir()
        shutil.copy(folder / FILE, tmp_path / "backup")
    held = contents(tmp_path / "backup")
    if rng.random() < 0.6:
        lives.live(folder, seed + 300, rng.randint(1, 12), "closed")
    lives.live(folder, seed + 400, rng.randint(1, 12), "killed")
    is_of_this_file = (folder / FILE).read_bytes() == (tmp_path / "backup" / FILE).read_bytes()
    latest = _copy(folder, tmp_path / "latest")
    was_log_left = (folder / LOG).stat().st_size > 0  # A removal empties it at its end.
    shutil.copy(tmp_path / "backup" / FILE, folder)
    caplog.clear()
    found = contents(folder)
    if way == "copy" and is_of_this_file:  # Nothing was restored: the file is as it was before.
        assert found == contents(latest)
    else:
        assert found == held
    if was_log_left and not (way == "copy" and is_of_this_file):
        (line,) = [message for message in caplog.messages if "belongs to another state" in message]
        (aside,) = aside_of(folder, "damaged")
        assert str(aside) in line
        assert [file.name for file in aside.iterdir()] == [LOG]
        assert stat.S_IMODE(aside.stat().st_mode) == 0o700
    assert {finding.code for finding in verify(folder, ENCODER)} <= {"index", "lost"}


def _copy(folder: Path, to: Path) -> Path:
    """A copy of file and log, without the log's index, which a killed process leaves out of date."""
    shutil.copytree(folder, to)
    (to / f"{FILE}-shm").unlink(missing_ok=True)
    return to


def test_a_log_of_another_gallery_is_not_replayed(lives: Lives, tmp_path: Path) -> None:
    """New galleries of one encoder have equal pages, but for their stamps."""
    for seed, name in enumerate(["a", "b"]):
        Gallery.open(tmp_path / name, ENCODER, create=True).close()
        lives.live(tmp_path / name, seed, 3, "killed")
    log_of_b = (tmp_path / "b" / LOG).read_bytes()
    held = contents(tmp_path / "a")
    (tmp_path / "a" / LOG).write_bytes(log_of_b)
    assert contents(tmp_path / "a") == held


def test_a_left_log_of_the_file_is_read(
    lives: Lives, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the folder was moved or copied to another place with it."""
    lives.live(tmp_path / "g", 1, 5, "killed")
    held = contents(_copy(tmp_path / "g", tmp_path / "moved"))
    assert len(held[0]) >= 3  # type: ignore[arg-type]
    assert contents(tmp_path / "g") == held
    assert caplog.messages == []


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root is refused by a mount alone")
def test_where_a_log_can_not_be_put_aside_the_gallery_is_refused(lives: Lives, tmp_path: Path) -> None:
    lives.live(tmp_path / "g", 1, 3, "closed")
    with Gallery.open(tmp_path / "g") as gallery:
        gallery.backup(tmp_path / "backup")
    lives.live(tmp_path / "g", 2, 3, "killed")
    shutil.copy(tmp_path / "backup" / FILE, tmp_path / "g")
    before = {file.name: file.read_bytes() for file in (tmp_path / "g").iterdir()}

    def fail(*_: object) -> Path:
        raise PermissionError(13, "Permission denied")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("facepipe.gallery.storage.sqlite.log_check.make_folder_aside", fail)
        with pytest.raises(GalleryError, match=r"belongs to another state.*move it"):
            Gallery.open(tmp_path / "g")
    assert {file.name: file.read_bytes() for file in (tmp_path / "g").iterdir()} == before


# By the command


@pytest.fixture
def folder(lives: Lives, tmp_path: Path) -> Path:
    """A gallery that has gone on after `tmp_path / "backup"` and "archive.zip" were made, with its log."""
    lives.live(tmp_path / "g", 1, 6, "closed")
    with Gallery.open(tmp_path / "g") as gallery:
        gallery.backup(tmp_path / "backup")
        gallery.export_archive(tmp_path / "archive.zip")
    lives.live(tmp_path / "g", 2, 6, "killed")
    return tmp_path / "g"


def vectors_by_name(folder: Path) -> dict[str, set[bytes]]:
    with Gallery.open(folder) as gallery:
        return {p.name: {row.tobytes() for row in gallery.vectors(p.name)} for p in gallery.people()}


@pytest.mark.parametrize("source", ["backup", f"backup/{FILE}", "archive.zip"])
def test_a_restored_gallery_is_the_backup_and_the_old_one_is_kept(
    folder: Path, tmp_path: Path, source: str
) -> None:
    latest = contents(_copy(folder, tmp_path / "latest"))
    backup_bytes = (tmp_path / "backup" / FILE).read_bytes()
    done = restore(folder, tmp_path / source, ENCODER)
    assert vectors_by_name(folder) == vectors_by_name(tmp_path / "backup")
    if source != "archive.zip":
        assert contents(folder) == contents(tmp_path / "backup")
    assert verify(folder, ENCODER) == ()
    assert done.templates == sum(len(vectors) for vectors in vectors_by_name(folder).values())
    assert done.aside == aside_of(folder, "replaced")[0]
    assert contents(done.aside) == latest
    assert stat.S_IMODE(done.aside.stat().st_mode) == 0o700
    assert (tmp_path / "backup" / FILE).read_bytes() == backup_bytes
    assert not aside_of(folder, "damaged")
    assert sorted(file.name for file in folder.iterdir()) == [FILE]


def test_where_there_was_no_gallery_there_is_one_then(folder: Path, tmp_path: Path) -> None:
    done = restore(tmp_path / "new" / "place", tmp_path / "backup", ENCODER)
    assert done.aside is None
    assert contents(tmp_path / "new" / "place") == contents(tmp_path / "backup")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["place"]
    assert stat.S_IMODE((tmp_path / "new" / "place").stat().st_mode) == 0o700


def test_a_damaged_gallery_is_restored_too(folder: Path, tmp_path: Path) -> None:
    (folder / FILE).write_bytes(b"rubbish" * 1000)
    done = restore(folder, tmp_path / "backup", ENCODER)
    assert contents(folder) == contents(tmp_path / "backup")
    assert done.aside is not None
    assert (done.aside / FILE).read_bytes() == b"rubbish" * 1000


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [("missing", "no such backup"), ("torn", "not whole|damaged"), ("row", "not whole"),
     ("text", "not a facepipe"), ("itself", "itself"), ("encoder", "holds vectors of"),
     ("empty folder", "no backup")],
)  # fmt: skip
def test_what_can_not_be_restored_changes_nothing(
    folder: Path, tmp_path: Path, harm: str, complaint: str
) -> None:
    file, encoder, backup = tmp_path / "backup" / FILE, ENCODER, tmp_path / "backup"
    if harm == "missing":
        shutil.rmtree(backup)
    elif harm == "torn":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif harm == "row":
        file.write_bytes(file.read_bytes().replace(b"photos/1-", b"photos/2-"))
    elif harm == "text":
        file.write_text("Dear diary, " * 500)
    elif harm == "itself":
        backup = folder
    elif harm == "encoder":
        backup, encoder = tmp_path / "archive.zip", OTHER_ENCODER
    else:
        file.unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(GalleryError, match=complaint):
        restore(folder, backup, encoder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not aside_of(folder, "replaced")


def test_a_gallery_in_use_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    code = """
    with Gallery.open(sys.argv[1]) as gallery:
        print(len(gallery.people()), flush=True)
        sys.stdin.read()
        print(len(gallery.people()), flush=True)
    """
    user = start(code, folder)
    assert user.stdout is not None
    count = user.stdout.readline()
    with pytest.raises(GalleryError, match="another process has the gallery open"):
        restore(folder, tmp_path / "backup", ENCODER)
    with Gallery.open(folder), pytest.raises(GalleryError, match="has the gallery open"):
        restore(folder, tmp_path / "backup", ENCODER)
    assert user.communicate("")[0] == count
    restore(folder, tmp_path / "backup", ENCODER)
    assert contents(folder) == contents(tmp_path / "backup")


@pytest.mark.parametrize(
    "moment", ["os.link", "os.replace", "pathlib.Path.unlink", "facepipe.gallery.restore.sync_folder"]
)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(folder: Path, tmp_path: Path, moment: str) -> None:
    """After every call of a kind in turn."""
    latest, held = contents(_copy(folder, tmp_path / "latest")), contents(tmp_path / "backup")
    code = """
    import importlib, os
    from facepipe.gallery.restore import restore
    folder, backup, moment, at = sys.argv[1:]
    module, name = moment.rsplit(".", 1)
    owner = __import__("pathlib").Path if module == "pathlib.Path" else importlib.import_module(module)
    real, calls = getattr(owner, name), []
    def killing(*arguments, **options):
        found = real(*arguments, **options)
        calls.append(found)
        if len(calls) == int(at):
            os.kill(os.getpid(), 9)
        return found
    setattr(owner, name, killing)
    restore(folder, backup, ENCODER)
    """
    killed = 0
    for at in range(1, 30):
        copy = _copy(folder, tmp_path / f"{at}" / "g")
        child = start(code, copy, tmp_path / "backup", moment, at)
        child.communicate()
        found = contents(copy)
        assert found in (latest, held), (moment, at)
        if child.returncode == 0:
            assert found == held
            break
        killed += 1
    assert 1 <= killed < 29


def test_a_backup_is_a_history_of_its_own(lives: Lives, tmp_path: Path) -> None:
    """Its stamp is on no page of the original, so no log of the original fits it."""
    lives.live(tmp_path / "g", 1, 3, "closed")
    with Gallery.open(tmp_path / "g") as gallery:
        gallery.backup(tmp_path / "backup")
    stamps = []
    for name in ("g", "backup"):
        database = Database(tmp_path / name / FILE)
        with database.reading() as sql:
            stamps.append(sql.execute("SELECT value FROM settings WHERE key = 'history'").fetchone()[0])
        database.close()
    assert bytes_in(tmp_path / "g", [stamps[1]]) == []
    assert stamps[1][16:32] == stamps[0][32:48]  # It followed on that of the original.


def test_the_template_of_a_photo_survives(folder: Path, tmp_path: Path) -> None:
    """A restored gallery is written to as any other."""
    restore(folder, tmp_path / "backup", ENCODER)
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("New", [template(person_vectors(77, 1)[0], "new")])
    with Gallery.open(folder, ENCODER) as gallery:
        assert gallery.match(person_vectors(77, 1))[0].name == "New"
