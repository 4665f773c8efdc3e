"""Archives made to harm: one line says why they are refused, soon and in little memory."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import facepipe
from gallery_helpers import ENCODER, person_vectors, template
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery
from facepipe.gallery.archive import read_archive

FACES = 5
ODD_TIME = "2025-01-01\ud80010:00"
Document = Any  # JSON


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two people, an unknown face, a crop."""
    folder = tmp_path_factory.mktemp("whole")
    vectors = person_vectors(1, FACES)
    with Gallery.open(folder / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(vectors[0], "a", b"\x89PNG a picture"), template(vectors[1], "b")])
        gallery.add("李雷", [template(vector, f"c{row}") for row, vector in enumerate(vectors[2:4])])
        gallery.remember_unknown([template(vectors[4], "d")])
        gallery.set_person_threshold("Ada", 0.8)
        gallery.export_archive(folder / "people.zip")
    return (folder / "people.zip").read_bytes()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("harmed") / "people.zip"


def members_of(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as whole:
        return {name: whole.read(name) for name in whole.namelist()}


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return stream.getvalue()


def with_document(archive: bytes, change: Callable[[Document], object]) -> bytes:
    members = members_of(archive)
    document = json.loads(members["people.json"])
    change(document)
    return packed(members | {"people.json": json.dumps(document).encode()})


def require_read_or_refused(file: Path, archive: bytes) -> None:
    """What is refused is refused in one line that names the file, and what is read can be stored."""
    file.write_bytes(archive)
    contents, told = None, f"{file}: "
    try:
        contents = read_archive(file, ENCODER)
    except GalleryError as error:
        told = str(error)
    assert told.startswith(f"{file}: ")
    assert "\n" not in told
    assert len(told) < len(str(file)) + 6000
    if contents is not None:
        with Gallery.open(file.parent / "g", ENCODER, create=True) as gallery:
            gallery.add_contents(contents)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places(value: Document) -> Iterator[tuple[Any, Any]]:
    """Every field and item of a document, as the object that it is in and its key."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, inner in items:
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(st.data())
def test_any_json_in_any_field(archive: bytes, file: Path, data: st.DataObject) -> None:
    def change(document: Document) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            holder, key = data.draw(st.sampled_from(list(places(document))))
            if data.draw(st.booleans()) and data.draw(st.booleans()):
                del holder[key]
            else:
                holder[key] = data.draw(anything)

    require_read_or_refused(file, with_document(archive, change))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_any_bytes_flipped(archive: bytes, file: Path, flips: list[tuple[int, int]]) -> None:
    harmed = bytearray(archive)
    for at, bits in flips:
        harmed[at % len(harmed)] ^= bits
    require_read_or_refused(file, bytes(harmed))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_members_missing_mixed_up_and_cut_off(archive: bytes, file: Path, data: st.DataObject) -> None:
    members = members_of(archive)
    for name in data.draw(st.lists(st.sampled_from(sorted(members)), min_size=1, max_size=2)):
        content = members.pop(name, b"")
        if data.draw(st.booleans()):
            members[name] = data.draw(st.sampled_from([content[:-1], content[9:], b"", *members.values()]))
    require_read_or_refused(file, packed(members))


def _huge_safetensors(archive: bytes) -> bytes:
    header = b'{"embeddings":{"dtype":"F32","shape":[1000000000,128],"data_offsets":[0,512000000000]}}'
    return packed(members_of(archive) | {"vectors.safetensors": len(header).to_bytes(8, "little") + header})


def _invisible_twins(archive: bytes) -> bytes:
    """Names that all look like one: each is to be given a number that nobody has."""
    count = 4000
    vectors = np.tile(person_vectors(1, 1), (count, 1))
    members = {"vectors.safetensors": save({"embeddings": np.ascontiguousarray(vectors, np.float32)})}
    document = json.loads(members_of(archive)["people.json"])
    face = document["unknown"][0] | {"crop": False}
    document["unknown"] = []
    document["people"] = [
        {"name": f"A{'​' * (row % 50)}{'⁠' * (row // 50)}", "templates": [face | {"row": row}]}
        for row in range(count)
    ]
    return packed(members | {"people.json": json.dumps(document).encode()})


def _of_values(text: bytes) -> Callable[[bytes], bytes]:
    return lambda archive: packed(
        members_of(archive) | {"people.json": b"[" + text * (60_000_000 // len(text))}
    )


HARM: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "lzma": (lambda archive: packed(members_of(archive), zipfile.ZIP_LZMA), "packed in a way"),
    "bzip2": (lambda archive: packed(members_of(archive), zipfile.ZIP_BZIP2), "packed in a way"),
    "empty lists": (_of_values(b"[],"), "larger"),
    "empty objects": (_of_values(b"{},"), "larger"),
    "numbers": (_of_values(b"1.5,"), "larger"),
    "signs beyond 16 bits": (_of_values('"😀",'.encode()), "larger"),
    "fewer lists": (
        lambda archive: packed(members_of(archive) | {"people.json": b"[" + b"[]," * 200_000 + b"1]"}),
        "lists more",
    ),
    "depth": (
        lambda archive: packed(members_of(archive) | {"people.json": b'{"a":' * 60_000}),
        "lists more|damaged",
    ),
    "huge tensor": (_huge_safetensors, "damaged"),
    "long name": (
        lambda archive: with_document(archive, lambda d: d["people"][0].update(name="A" + "\u200d" * 10**5)),
        "name: expected `str` of length",
    ),
    "names with numbers": (_invisible_twins, "too many names"),
    "time with a surrogate": (
        lambda archive: with_document(
            archive, lambda d: d["unknown"][0].update(added_at="2025-01-01\ud80010:00")
        ),
        "malformed",
    ),
    "encoder of many lines": (
        lambda archive: with_document(archive, lambda d: d["encoder"].update(fingerprint="x\n\x1b[2J" * 99)),
        r"x\\n\\x1b",
    ),
}


@pytest.mark.parametrize("kind", HARM)
def test_harm_is_refused_soon(kind: str, archive: bytes, file: Path) -> None:
    make, reason = HARM[kind]
    harmful = make(archive)
    assert len(harmful) < 3_000_000
    start = time.process_time()
    file.write_bytes(harmful)
    with pytest.raises(GalleryError, match=reason) as caught:
        read_archive(file, ENCODER)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 3


@pytest.mark.skipif(sys.platform != "linux", reason="measured by what Linux tells of processes")
def test_what_is_read_takes_memory_by_the_size_of_the_archive(archive: bytes, file: Path) -> None:
    """The worst that the limits let through, in a process of its own."""
    text = b'{"format":"facepipe gallery","version":2,"x":[' + b"[]," * 30_000
    text += b'"' + "😀".encode() * ((4 << 20) // 4 - 30_000) + b'"]}'
    file.write_bytes(packed(members_of(archive) | {"people.json": text}))
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom facepipe.core.errors import GalleryError\n"
        "from facepipe.gallery import EncoderIdentity\nfrom facepipe.gallery.archive import read_archive\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_archive(Path(sys.argv[1]), EncoderIdentity('a', 'b', 128, 1.0))\n"
        "except GalleryError as error:\n    print(error, file=sys.stderr)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert "missing required field `encoder`" in done.stderr
    assert int(done.stdout) < 100_000


def test_the_command_says_it_in_one_line(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "people.zip").write_bytes(packed(members_of(archive), zipfile.ZIP_LZMA))
    told = facepipe("gallery", "import", tmp_path / "people.zip", "--gallery", tmp_path / "new")
    assert told.code == 1
    assert "Traceback" not in told.err
    assert sum("people.zip" in line and "packed in a way" in line for line in told.err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "people.zip")
    with pytest.raises(GalleryError, match="not an ordinary file"):
        read_archive(tmp_path / "people.zip", ENCODER)
