"""exiftool, run without settings of the user's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from facepipe.core.errors import OutputError, UsageError, one_line

_EXIFTOOL = "exiftool"
_LONGEST_S = 120


def require_exiftool() -> None:
    """Fail before the work where names can't be embedded.

    Raises:
        UsageError: exiftool is not installed.
    """
    if shutil.which(_EXIFTOOL) is None:
        raise UsageError(
            "to embed names, install exiftool (https://exiftool.org; Debian's libimage-exiftool-perl); "
            "--xmp writes sidecars without it"
        )


def run_exiftool(options: Sequence[str], folder: Path, photo: Path) -> bytes:
    """Run exiftool in a folder; returns what it printed.

    Args:
        options: With names of files in the folder.
        folder: Where it runs.
        photo: That it is done for, for messages.

    Raises:
        OutputError: It failed, or took too long.
    """
    try:
        done = subprocess.run(
            [_EXIFTOOL, "-config", "", "-q", "-q", *options],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OutputError(f"{photo}: names are not embedded: exiftool took over {_LONGEST_S} s") from error
    if done.returncode:
        reason = one_line(done.stderr.decode("utf-8", "replace"))
        raise OutputError(f"{photo}: names are not embedded: exiftool: {reason}")
    return done.stdout
