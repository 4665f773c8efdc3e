"""Messages of errors name the cure."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from facepipe.core.errors import unwritable


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "; make room there"),
        (errno.ENOENT, "; is its folder gone, or its disk?"),
        (errno.EROFS, "; check who may write there"),
        (errno.EIO, ""),
    ],
)
def test_what_can_not_be_written_is_told_with_its_cure(number: int, cure: str) -> None:
    reason = os.strerror(number)
    assert str(unwritable(Path("a/b"), OSError(number, reason))) == f"a/b: can't be written ({reason}){cure}"
