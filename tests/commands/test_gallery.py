"""The commands that care for a gallery: verify, repair, backup, forget, encrypt."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import facepipe
from gallery_helpers import bytes_in, person_vectors, template

from facepipe.gallery import EncoderIdentity, Gallery
from facepipe.gallery.storage.encryption import KEY_FILE_VARIABLE, KEY_VARIABLE
from facepipe.images.reading import photo_sha256
from facepipe.pipeline import card_identity
from facepipe.weights.registry import DEFAULT_ENCODER, load_card


@pytest.fixture(scope="module")
def encoder() -> EncoderIdentity:
    """The default encoder, so that commands open the gallery without more words."""
    return card_identity(load_card(DEFAULT_ENCODER).card)


@pytest.fixture
def folder(tmp_path: Path, encoder: EncoderIdentity, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gallery of Ada and Bob, in the folder the commands run in."""
    for variable in (KEY_VARIABLE, KEY_FILE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    with Gallery.open(tmp_path / "g", encoder, create=True) as gallery:
        gallery.add("Ada", [template(v, f"ada{i}") for i, v in enumerate(person_vectors(1, 3))])
        gallery.add("Bob", [template(v, f"bob{i}") for i, v in enumerate(person_vectors(2, 2))])
    return tmp_path / "g"


def names(folder: Path) -> list[str]:
    return [line.split()[1] for line in facepipe("gallery", "list", "--gallery", folder).lines]


def spoil(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "gallery.sqlite3")) as connection:
        connection.execute("UPDATE templates SET source = 'elsewhere' WHERE id = 2")
        connection.commit()


def test_restore(folder: Path) -> None:
    here = ("--gallery", folder)
    assert facepipe("gallery", "backup", "copy", *here).code == 0
    assert facepipe("gallery", "remove", "Ada", *here).code == 0
    done = facepipe("gallery", "restore", "copy", *here)
    assert done.code == 0
    (aside,) = folder.parent.glob("g.replaced-*")
    assert "holds 5 faces as copy does" in done.err
    assert str(aside) in done.err
    assert (names(folder), names(aside)) == (["Ada", "Bob"], ["Bob"])
    missing = facepipe("gallery", "restore", "nothing", *here)
    assert missing.code == 1
    assert "there is no such backup" in missing.err


def test_verify_and_repair(folder: Path) -> None:
    here = ("--gallery", folder)
    whole = facepipe("gallery", "verify", *here)
    assert (whole.code, whole.out, whole.err) == (0, "", f"facepipe: {folder} is whole\n")
    assert "nothing was done" in facepipe("gallery", "repair", *here).err
    spoil(folder)
    bad = facepipe("gallery", "verify", "--json", *here)
    assert bad.code == 1
    assert [json.loads(line)["code"] for line in bad.lines] == ["checksum"]
    assert "gallery repair" in bad.err
    mended = facepipe("gallery", "repair", *here)
    assert mended.code == 0
    assert mended.lines == ["checksum: templates 2: its checksum is not that of its bytes"]
    assert "with 4 faces" in mended.err
    assert "delete it" in mended.err
    (aside,) = folder.parent.glob("g.damaged-*")
    assert str(aside) in mended.err
    assert facepipe("gallery", "verify", *here).code == 0


def test_verify_says_when_there_is_no_gallery(folder: Path) -> None:
    said = facepipe("gallery", "verify", "--gallery", folder / "none")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert not (folder / "none").exists()


def test_verify_may_require_an_encoder(folder: Path) -> None:
    assert facepipe("gallery", "verify", "--encoder-weights", DEFAULT_ENCODER, "--gallery", folder).code == 0


def test_backup_and_merge_from(folder: Path) -> None:
    assert facepipe("gallery", "backup", "copy", "--gallery", folder).code == 0
    again = facepipe("gallery", "backup", "copy", "--gallery", folder)
    assert (again.code, "holds a gallery already" in again.err) == (1, True)
    facepipe("gallery", "remove", "Ada", "--gallery", folder)
    assert names(folder) == ["Bob"]
    said = facepipe("gallery", "merge-from", "copy", "--gallery", folder)
    assert said.err == f"facepipe: 3 new faces in {folder}\n"
    assert names(folder) == names(Path("copy")) == ["Ada", "Bob"]


def test_a_bad_archive_makes_no_gallery(folder: Path) -> None:
    Path("bad.zip").write_bytes(b"no archive")
    said = facepipe("gallery", "import", "bad.zip", "--gallery", "new")
    assert (said.code, "bad.zip" in said.err) == (1, True)
    assert not Path("new").exists()
    assert facepipe("gallery", "export", "good.zip", "--gallery", folder).code == 0
    assert facepipe("gallery", "import", "good.zip", "--gallery", "new").code == 0
    assert names(Path("new")) == ["Ada", "Bob"]


def test_forget_a_photo_by_its_path_or_its_bytes(folder: Path, encoder: EncoderIdentity) -> None:
    Path("copy of ada0.jpg").write_text("ada0")  # Whose hash is that of the photo enrolled as ada0.
    assert photo_sha256("copy of ada0.jpg") == template(person_vectors(1, 1)[0], "ada0").photo_sha256
    said = facepipe("gallery", "forget", "--photo", "copy of ada0.jpg", "--gallery", folder)
    assert said.err == "facepipe: erased 1 face of copy of ada0.jpg\n"
    assert "1 face of" in facepipe("gallery", "forget", "--photo", "photos/ada1.jpg", "--gallery", folder).err
    assert bytes_in(folder, [b"photos/ada0.jpg", b"photos/ada1.jpg"]) == []
    with Gallery.open(folder, encoder) as gallery:
        assert [t.source for t in gallery.templates("Ada")] == ["photos/ada2.jpg"]


def test_forget_a_photo_that_is_not_there(folder: Path) -> None:
    said = facepipe("gallery", "forget", "--photo", "photos/ada9.jpg", "--gallery", folder)
    assert (said.code, "photos/ada9.jpg: no face of this photo" in said.err) == (1, True)
    assert names(folder) == ["Ada", "Bob"]


def test_remove_and_audit_take_the_threshold_of_naming(tmp_path: Path, encoder: EncoderIdentity) -> None:
    """That of the gallery's size, which the encoder's card knows and the gallery does not."""
    distance_l2 = 1.105
    cosine = 1 - distance_l2**2 / 2
    first, second = np.zeros((2, 128), np.float32)
    first[0], second[0], second[1] = 1, cosine, np.sqrt(1 - cosine**2)
    with Gallery.open(tmp_path / "one", encoder, create=True) as gallery:
        gallery.add("Mata Hari", [template(first)])
        gallery.remember_unknown([template(second)])
        assert encoder.threshold_l2 is not None
        assert gallery.default_threshold_l2 is not None
        assert encoder.threshold_l2 < distance_l2 - 0.01 < distance_l2 + 0.01 < gallery.default_threshold_l2
    audited = facepipe("gallery", "audit", "--json", "--gallery", tmp_path / "one")
    assert json.loads(audited.out)["threshold_l2"] > distance_l2
    assert facepipe("gallery", "remove", "Mata Hari", "--gallery", tmp_path / "one").code == 0
    with Gallery.open(tmp_path / "one") as gallery:
        assert gallery.unknown_faces() == []


def test_an_audit_says_what_is_wrong_with_its_threshold(folder: Path) -> None:
    for wrong in ("nan", "-1", "inf", "3"):
        said = facepipe("gallery", "audit", "--threshold", wrong, "--gallery", folder)
        assert (said.code, "expected 0..2" in said.err) == (2, True)


def test_what_was_kept_and_is_no_picture_spoils_no_page(tmp_path: Path, encoder: EncoderIdentity) -> None:
    """An archive that was imported may hold any bytes."""
    first, second, *unknown = [template(v, f"{i}", b"no") for i, v in enumerate(person_vectors(1, 4))]
    with Gallery.open(tmp_path / "odd", encoder, create=True) as gallery:
        gallery.add("Ada", [first])
        gallery.add("Eve", [second])
        gallery.remember_unknown(unknown)
    page = tmp_path / "page.html"
    for command in (["gallery", "audit"], ["cluster"]):
        assert facepipe(*command, "--html", page, "--gallery", tmp_path / "odd").code == 0
        assert page.read_text().count("no picture") == 2


def test_thresholds(folder: Path) -> None:
    def thresholds() -> list[float | None]:
        with Gallery.open(folder) as gallery:
            return [gallery.threshold_l2, *(person.threshold_l2 for person in gallery.people())]

    here = ("--gallery", folder)
    assert facepipe("gallery", "threshold", "0.75", *here).code == 0
    assert facepipe("gallery", "threshold", "0.5", "--person", "Bob", *here).code == 0
    assert thresholds() == [0.75, None, 0.5]
    assert facepipe("gallery", "threshold", "--reset", *here).code == 0
    assert thresholds() == [None, None, 0.5]
    for wrong in ([], ["0.5", "--reset"], ["-1"], ["nan"], ["3"], ["7", "--person", "Bob"]):
        assert facepipe("gallery", "threshold", *wrong, *here).code == 2
    assert facepipe("gallery", "threshold", "0.5", "--person", "Eve", *here).code == 1
    assert thresholds() == [None, None, 0.5]


def test_encrypt_and_decrypt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason="needs the [encryption] extra")
    monkeypatch.setattr("facepipe.gallery.storage.encryption._SCRYPT_COST", 2)
    here = ("--gallery", folder)
    assert facepipe("gallery", "encrypt", *here).code == 2
    Path("key").write_text("correct horse\n")
    Path("wrong").write_text("incorrect horse\n")
    assert facepipe("gallery", "encrypt", "--key-file", "key", *here).code == 0
    assert bytes_in(folder, [b"Ada", b"photos/"]) == []
    for arguments, complaint in (([], "give its key"), (["--key-file", "wrong"], "not the gallery's key")):
        said = facepipe("gallery", "list", *arguments, *here)
        assert (said.code, said.out, complaint in said.err, said.err.count("\n")) == (1, "", True, 1)
    listed = facepipe("gallery", "list", "--key-file", "key", *here)
    assert [line.split()[1] for line in listed.lines] == ["Ada", "Bob"]
    assert facepipe("gallery", "list", *here).code == 1  # The key of one command is not that of the next.
    monkeypatch.setenv(KEY_VARIABLE, "incorrect horse")
    assert facepipe("gallery", "list", "--key-file", "key", *here).code == 0
    monkeypatch.setenv(KEY_VARIABLE, "correct horse")
    assert facepipe("gallery", "verify", *here).code == 0
    assert facepipe("gallery", "decrypt", *here).code == 0
    monkeypatch.delenv(KEY_VARIABLE)
    assert names(folder) == ["Ada", "Bob"]
