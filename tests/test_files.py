"""Files that appear whole or not at all, whatever their names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facepipe.files import atomic_write_bytes, temporary_beside
from gallery.files import replaced


@settings(deadline=None, max_examples=30)
@given(
    name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
    .filter(lambda name: len(name.encode()) <= 255 and name not in (".", ".."))
    .flatmap(lambda name: st.sampled_from([name, name + "a" * (255 - len(name.encode()))]))
)
def test_a_file_may_have_any_name_that_the_file_system_takes(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("files")
    atomic_write_bytes(folder / name, b"one")
    assert (folder / name).read_bytes() == b"one"
    with replaced(folder / name, temporary_beside(folder / name)) as stream:
        stream.write(b"two")
    assert (folder / name).read_bytes() == b"two"
    assert [file.name for file in folder.iterdir()] == [name]


def test_temporary_names_are_of_one_length_and_never_the_same() -> None:
    names = {temporary_beside(Path("folder") / ("a" * length)).name for length in range(1, 256)}
    assert len(names) == 255
    assert {len(name) for name in names} == {len(next(iter(names)))}
    assert all(name.startswith(".") and name.endswith(".part") for name in names)
    assert temporary_beside(Path("video.mp4"), ".mp4").suffix == ".mp4"
