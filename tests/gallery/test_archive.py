"""Galleries as one open file: exact there and back, and nothing in it is trusted."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_helpers import ENCODER, OTHER_ENCODER, person_vectors, template, templates
from safetensors.numpy import load, save

from facepipe.core.errors import GalleryError
from facepipe.gallery import EncoderIdentity, Gallery
from facepipe.gallery.archive import read_archive
from facepipe.gallery.gallery import import_archive


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    """Ada with three templates, 李雷 with two that know nothing but their vector."""
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(v, f"ada{i}") for i, v in enumerate(person_vectors(1, 3))])
        gallery.add("李雷", templates(person_vectors(2, 2)))
        yield gallery


@pytest.fixture
def rich_archive(gallery: Gallery, tmp_path: Path) -> Path:
    """The same with thresholds, crops and unknown faces."""
    crops = (b"\x89PNG a picture", b"RIFF another")
    gallery.add("Ada", [template(person_vectors(8, 1)[0], "cropped", crops[0])])
    gallery.remember_unknown([template(person_vectors(9, 1)[0], "stranger", crops[1])])
    gallery.remember_unknown(templates(person_vectors(10, 1)))
    gallery.set_threshold(0.91)
    gallery.set_person_threshold("Ada", 0.83)
    gallery.export_archive(tmp_path / "rich.zip")
    return tmp_path / "rich.zip"


@pytest.fixture
def archive(gallery: Gallery, tmp_path: Path) -> Path:
    gallery.export_archive(tmp_path / "people.zip")
    return tmp_path / "people.zip"


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.open(tmp_path / "empty", ENCODER, create=True) as gallery:
        yield gallery


def contents(gallery: Gallery) -> list[object]:
    """All that a gallery knows, except for its own ids."""
    people = gallery.people()
    unknown = gallery.unknown_faces()
    return [
        people,
        gallery.threshold_l2,
        [replace(t, id=0) for person in people for t in gallery.templates(person.name)],
        [gallery.vectors(person.name).tobytes() for person in people],
        [gallery.crop(t.id) for person in people for t in gallery.templates(person.name)],
        [(f.source, f.box_xyxy, f.quality, f.photo_sha256, f.added_at) for f in unknown],
        [(f.embedding.tobytes(), gallery.unknown_crop(f.id)) for f in unknown],
    ]


def test_round_trip_is_exact(gallery: Gallery, archive: Path, empty: Gallery, tmp_path: Path) -> None:
    assert empty.import_archive(archive) == 5
    assert contents(empty) == contents(gallery)
    empty.export_archive(tmp_path / "again.zip")
    with zipfile.ZipFile(archive) as first, zipfile.ZipFile(tmp_path / "again.zip") as second:
        assert first.namelist() == second.namelist() == ["people.json", "vectors.safetensors"]
        for name in first.namelist():
            assert first.read(name) == second.read(name)


def test_the_round_trip_keeps_thresholds_crops_and_unknown_faces(
    gallery: Gallery, rich_archive: Path, empty: Gallery, tmp_path: Path
) -> None:
    assert empty.import_archive(rich_archive) == 6
    assert contents(empty) == contents(gallery)
    empty.export_archive(tmp_path / "again.zip")
    with zipfile.ZipFile(rich_archive) as first, zipfile.ZipFile(tmp_path / "again.zip") as second:
        assert first.namelist() == second.namelist()
        assert sorted(first.namelist())[:2] == ["crops/3", "crops/6"]
        assert first.read("crops/3") == b"\x89PNG a picture"
        for name in first.namelist():
            assert first.read(name) == second.read(name)


def test_thresholds_that_somebody_has_are_not_replaced(rich_archive: Path, empty: Gallery) -> None:
    empty.add("Ada", templates(person_vectors(30, 1)))
    empty.set_person_threshold("Ada", 0.5)
    empty.import_archive(rich_archive)
    assert empty.threshold_l2 is None
    assert [p.threshold_l2 for p in empty.people()] == [0.5, None]


def test_merging_from_another_gallery_is_like_importing_it(
    gallery: Gallery, rich_archive: Path, empty: Gallery, tmp_path: Path
) -> None:
    assert empty.merge_from(gallery.path) == 6
    assert contents(empty) == contents(gallery)
    assert empty.merge_from(gallery.path) == 0
    with pytest.raises(GalleryError, match="no gallery"):
        empty.merge_from(tmp_path / "none")
    with (
        Gallery.open(tmp_path / "other", OTHER_ENCODER, create=True) as other,
        pytest.raises(GalleryError, match="square"),
    ):
        other.merge_from(gallery.path)


def test_a_bad_archive_makes_no_gallery(rich_archive: Path, tmp_path: Path) -> None:
    assert import_archive(tmp_path / "new", rich_archive, ENCODER) == 6
    rich_archive.write_bytes(b"no archive")
    with pytest.raises(GalleryError, match=r"rich\.zip"):
        import_archive(tmp_path / "newer", rich_archive, ENCODER)
    assert not (tmp_path / "newer").exists()


def test_the_format_is_open(archive: Path) -> None:
    """Readable with nothing of ours: as the module's docstring describes it."""
    with zipfile.ZipFile(archive) as z:
        document = json.loads(z.read("people.json"))
        embeddings = load(z.read("vectors.safetensors"))["embeddings"]
    assert document["encoder"]["fingerprint"] == ENCODER.fingerprint
    assert [p["name"] for p in document["people"]] == ["Ada", "李雷"]
    row = document["people"][1]["templates"][1]["row"]
    np.testing.assert_array_equal(embeddings[row], person_vectors(2, 2)[1])
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600


def test_importing_twice_adds_nothing(gallery: Gallery, archive: Path, empty: Gallery) -> None:
    assert gallery.import_archive(archive) == 0
    assert [empty.import_archive(archive) for _ in range(2)] == [5, 0]


def test_people_of_one_name_become_one(archive: Path, empty: Gallery) -> None:
    empty.add("Ada", templates(person_vectors(9, 1)))
    empty.import_archive(archive)
    assert {p.name: p.template_count for p in empty.people()} == {"Ada": 4, "李雷": 2}
    assert [m.name for m in empty.match(person_vectors(1, 1))] == ["Ada"]


def test_an_empty_gallery_makes_the_trip(empty: Gallery, tmp_path: Path) -> None:
    empty.export_archive(tmp_path / "nobody.zip")
    assert empty.import_archive(tmp_path / "nobody.zip") == 0


def test_an_archive_of_another_encoder_is_refused(archive: Path, tmp_path: Path) -> None:
    longer = EncoderIdentity("round", ENCODER.fingerprint, 512, 1.0)
    for i, encoder in enumerate((OTHER_ENCODER, longer)):
        with (
            Gallery.open(tmp_path / f"other{i}", encoder, create=True) as gallery,
            pytest.raises(GalleryError, match=r"people\.zip.*vectors of round .*the gallery of"),
        ):
            gallery.import_archive(archive)


@pytest.mark.parametrize(
    "target", ["missing/people.zip", "folder", ".", "g/people.zip", "g/gallery.sqlite3", "g/a/b.zip"]
)
def test_targets_that_are_refused(gallery: Gallery, tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(GalleryError, match="archive"):
        gallery.export_archive(tmp_path / target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "g"]
    assert [p.name for p in gallery.people()] == ["Ada", "李雷"]


def test_a_failed_export_keeps_the_old_archive(
    gallery: Gallery, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = archive.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(GalleryError, match="No space left"):
        gallery.export_archive(archive)
    assert archive.read_bytes() == before
    assert sorted(p.name for p in archive.parent.iterdir()) == ["g", "people.zip"]


# Harm

Document = Any  # JSON


def rewritten(
    archive: Path,
    change: Callable[[Document], object] = lambda document: None,
    vectors: Callable[[np.ndarray], np.ndarray] = lambda vectors: vectors,
    tensor_name: str = "embeddings",
) -> Path:
    """The archive with its JSON or vectors changed."""
    with zipfile.ZipFile(archive) as z:
        document = json.loads(z.read("people.json"))
        embeddings = load(z.read("vectors.safetensors"))["embeddings"]
    change(document)
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("people.json", json.dumps(document))
        z.writestr("vectors.safetensors", save({tensor_name: np.ascontiguousarray(vectors(embeddings))}))
    return archive


def _ada(document: Document) -> Document:
    return document["people"][0]


def _first(document: Document) -> Document:
    return _ada(document)["templates"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(format="zoo"), "not a facepipe gallery"),
        (lambda d: d.update(version=3), "version 3"),
        (lambda d: d.pop("encoder"), "missing required field `encoder`"),
        (lambda d: d["encoder"].update(threshold_l2=float("nan")), "malformed"),
        (lambda d: d["encoder"].update(dimensions="128"), "dimensions"),
        (lambda d: d.update(people={}), "people"),
        (lambda d: d.update(people=[1]), "people"),
        (lambda d: _ada(d).update(name=""), "name"),
        (lambda d: _ada(d).update(name="two\nlines"), "name"),
        (lambda d: _ada(d).update(name=7), "name"),
        (lambda d: _ada(d).update(name="李雷"), "twice"),
        (lambda d: _ada(d).update(templates=[]), "templates: expected `array` of length >= 1"),
        (lambda d: _ada(d)["templates"].pop(), "4 templates, but 5 vectors|larger"),
        (lambda d: _first(d).update(row=1), "rows"),
        (lambda d: _first(d).update(row=-1), "rows"),
        (lambda d: _first(d).update(row=10**30), "rows"),
        (lambda d: _first(d).update(row=True), "row"),
        (lambda d: _first(d).update(source=["a"]), "source"),
        (lambda d: _first(d).update(box_xyxy=[1, 2, 3]), "box_xyxy: expected `array` of length 4"),
        (lambda d: _first(d).update(box_xyxy=[1, 2, 3, float("inf")]), "malformed"),
        (lambda d: _first(d).update(box_xyxy=[10**400, 2, 3, 4]), "box_xyxy.*out of range"),
        (lambda d: _first(d).update(quality=float("nan")), "malformed"),
        (lambda d: _first(d).update(photo_sha256="../../etc/passwd"), "photo_sha256"),
        (lambda d: _first(d).update(added_at="soon"), "time"),
        (lambda d: _first(d).update(added_at=None), "added_at"),
        (lambda d: _first(d).pop("quality"), "quality"),
        (lambda d: _first(d).update(crop=True), "crops"),
        (lambda d: _first(d).update(crop="crops/1"), "crop"),
        (lambda d: _first(d).update(source="nul\0"), "source"),
        (lambda d: _first(d).update(source="x" * 5000), "source"),
        (lambda d: d.update(threshold_l2=-1), "threshold"),
        (lambda d: d.update(threshold_l2="1"), "threshold"),
        (lambda d: _ada(d).update(threshold_l2=float("inf")), "malformed"),
        (lambda d: d.update(unknown=[{"row": 0}]), r"unknown\[0\]: object missing required field `source`"),
        (lambda d: d.update(unknown=[_first(d)]), "vectors|rows"),
        (lambda d: d.update(unknown=7), "unknown"),
        (lambda d: d.update(version=0), "version 0"),
        (lambda d: d.update(version="2"), "version"),
        (lambda d: _ada(d).update(name="x" * 300), "name"),
    ],
)
def test_bad_json_is_refused_with_a_reason(
    archive: Path, empty: Gallery, change: Callable[[Document], object], reason: str
) -> None:
    with pytest.raises(GalleryError, match=reason) as caught:
        empty.import_archive(rewritten(archive, change))
    assert str(archive) in str(caught.value)
    assert empty.info().generation == 0


def test_archives_of_earlier_versions_lose_nobody(
    archive: Path, empty: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    """They may hold thresholds beyond every distance, and names that differ in what can't be seen."""

    def as_then(document: Document) -> None:
        _ada(document).update(name="李\u200b雷", threshold_l2=7)
        document.update(threshold_l2=3.0)

    empty.import_archive(rewritten(archive, as_then))
    assert [(p.name, p.threshold_l2) for p in empty.people()] == [("李雷", None), ("李雷 (2)", None)]
    assert empty.threshold_l2 is None
    assert [record.args for record in caplog.records] == [(7.0,), (3.0,)]


def _with_nan(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.copy()
    vectors[4, 0] = np.nan
    return vectors


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda z: z.writestr("crops/4", b"nobody's"), "not those"),
        (lambda z: z.writestr("crops/03", b"odd"), "expected people"),
        (lambda z: z.writestr("crops/../../../etc/passwd", b"root"), "expected people"),
        (lambda z: z.writestr("crops/6", b"again"), "twice"),
        (lambda z: z.writestr("crops/4", bytes(10 << 20), zipfile.ZIP_DEFLATED), "larger than the archive"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_strange_crops_are_refused(
    rich_archive: Path, empty: Gallery, change: Callable[[zipfile.ZipFile], None], reason: str
) -> None:
    with zipfile.ZipFile(rich_archive, "a") as z:
        change(z)
    with pytest.raises(GalleryError, match=reason):
        empty.import_archive(rich_archive)
    assert empty.info().generation == 0


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (_with_nan, "length nan"),
        (lambda v: v * np.float32(np.inf), "length"),
        (lambda v: v * np.float32(1.1), "length 1.1"),
        (lambda v: v.astype(np.float64), "larger|float64"),
        (lambda v: v.astype(np.float16), "float16"),
        (lambda v: v[:4], "5 templates, but 4 vectors"),
        (lambda v: v[:, :64], "64"),
        (lambda v: v.ravel(), r"\(640,\)"),
        (lambda v: np.tile(v, (1000, 1)), "larger"),
    ],
)
def test_bad_vectors_are_refused_with_a_reason(
    archive: Path, empty: Gallery, vectors: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    with pytest.raises(GalleryError, match=reason), np.errstate(invalid="ignore"):
        empty.import_archive(rewritten(archive, vectors=vectors))
    assert empty.info().generation == 0


def test_a_tensor_of_another_name_is_refused(archive: Path, empty: Gallery) -> None:
    with pytest.raises(GalleryError, match="expected the tensor"):
        empty.import_archive(rewritten(archive, tensor_name="weights"))


@pytest.mark.parametrize(
    "name", ["../gallery.sqlite3", "/etc/cron.d/x", "..\\x", "people.json/../../x", "people.json"]
)
def test_strange_members_are_refused(archive: Path, empty: Gallery, name: str) -> None:
    with zipfile.ZipFile(archive, "a") as z:
        if name == "people.json":
            with pytest.warns(UserWarning, match="Duplicate"):
                z.writestr(name, "{}")
        else:
            z.writestr(name, "boo")
    before = {f: f.stat().st_mtime_ns for f in archive.parent.rglob("*.sqlite3")}
    with pytest.raises(GalleryError, match=r"expected people\.json and vectors\.safetensors"):
        empty.import_archive(archive)
    assert {f: f.stat().st_mtime_ns for f in archive.parent.rglob("*.sqlite3")} == before


def test_a_zip_bomb_is_not_unpacked(archive: Path, empty: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facepipe.gallery.archive.PEOPLE_BYTES_MAX", 1 << 20)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("people.json", b" " * (50 << 20))
        z.writestr("vectors.safetensors", b"")
    assert archive.stat().st_size < 100_000
    with pytest.raises(GalleryError, match=r"people\.json is larger"):
        empty.import_archive(archive)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"hello " * 99, id="text"),
        pytest.param(lambda data: data[: len(data) // 2], id="half"),
        pytest.param(lambda data: data[:100] + b"\xff" * 64 + data[164:], id="scribbled on"),
        pytest.param(lambda data: data[:2500] + b"\xff" * 64 + data[2564:], id="scribbled on vectors"),
    ],
)
def test_damaged_archives(archive: Path, empty: Gallery, data: Callable[[bytes], bytes]) -> None:
    archive.write_bytes(data(archive.read_bytes()))
    with pytest.raises(GalleryError, match=r"people\.zip"):
        empty.import_archive(archive)
    assert empty.info().generation == 0


@pytest.mark.parametrize(
    ("people", "vectors"),
    [
        (b"{" * 100_000, b""),
        (b"[" * 100_000, b""),
        (b"\xff\xfe", b""),
        (b"[]", b""),
        (b"null", b""),
        (b"1" * 10_000, b""),
    ],
)
def test_json_that_harms_parsers(archive: Path, empty: Gallery, people: bytes, vectors: bytes) -> None:
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("people.json", people)
        z.writestr("vectors.safetensors", vectors)
    with pytest.raises(GalleryError, match=r"people\.zip"):
        empty.import_archive(archive)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"{}"]
)
def test_damaged_safetensors(archive: Path, empty: Gallery, data: bytes) -> None:
    with zipfile.ZipFile(archive) as z:
        people = z.read("people.json")
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("people.json", people)
        z.writestr("vectors.safetensors", data)
    with pytest.raises(GalleryError, match=r"vectors\.safetensors"):
        empty.import_archive(archive)


def test_a_missing_archive(empty: Gallery, tmp_path: Path) -> None:
    for name in ("none.zip", "empty"):
        with pytest.raises(GalleryError, match=name):
            empty.import_archive(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "people.zip")
    with pytest.raises(GalleryError, match=r"people\.zip: can't be read \(not an ordinary file\)"):
        read_archive(tmp_path / "people.zip", ENCODER)
