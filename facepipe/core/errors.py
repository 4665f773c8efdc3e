"""Every error facepipe raises on purpose; each class owns the exit code of the command that meets it."""

from __future__ import annotations

import errno
from pathlib import Path


def one_line(error: object, longest: int = 300) -> str:
    """Return the message of another package's error without line breaks, cut to a length."""
    text = " ".join(str(error).split())
    return text if len(text) <= longest else f"{text[:longest]} ..."


class FacepipeError(Exception):
    """Base of all errors. The message names what failed and what to do about it."""

    exit_code = 1


class UsageError(FacepipeError):
    """The request itself is wrong: an option out of range, a folder without photos."""

    exit_code = 2


class PhotoError(FacepipeError):
    """A photo can't be read. The message begins with the file's name."""


class OutputError(FacepipeError):
    """A result can't be written. The message begins with the file's name."""


class LandmarkError(FacepipeError):
    """Five landmarks do not determine a similarity transform (not finite, or all in one point)."""


class WeightsError(FacepipeError):
    """A weight file or its card is missing, damaged, unknown or of another layout."""


class GalleryError(FacepipeError):
    """A gallery can't be opened, read or changed."""


class DeviceError(FacepipeError):
    """The asked-for device or runtime is not available here."""


class ClusterError(FacepipeError):
    """A cluster can't be reached, or one of its nodes can't do the work."""


class DataError(FacepipeError):
    """A data set for training or evaluation is missing or malformed."""


_CURES = (
    ((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "; make room there"),
    ((errno.ENOENT, errno.ENOTDIR), "; is its folder gone, or its disk?"),
    ((errno.EACCES, errno.EPERM, errno.EROFS), "; check who may write there"),
)


def unwritable(file: Path, error: OSError) -> OutputError:
    """Return the error of a file that can't be written, with the cure where the system's reason names one."""
    cure = next((cure for numbers, cure in _CURES if error.errno in numbers), "")
    return OutputError(f"{file}: can't be written ({error.strerror or error}){cure}")


class MissingExtraError(FacepipeError):
    """The command needs an optional part of facepipe that is not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        from facepipe.core.installation import extra_command

        super().__init__(f"{purpose} needs the [{extra}] extra: {extra_command(extra)}")
