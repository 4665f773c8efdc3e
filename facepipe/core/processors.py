"""The number of threads: processors, CPU quotas of control groups, and `$FACEPIPE_THREADS`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from facepipe.core.counting import counted
from facepipe.core.errors import UsageError

THREADS_VARIABLE = "FACEPIPE_THREADS"
MAX_THREADS = 1024
_ESCAPED = re.compile(r"\\([0-7]{3})")


def compute_threads() -> int:
    """Return the number of computing threads: `$FACEPIPE_THREADS`, else `granted_processors()`.

    Raises:
        UsageError: The variable is no number from 1 to 1024.
    """
    return asked_threads() or granted_processors()


def asked_threads() -> int | None:
    """`$FACEPIPE_THREADS`; None: unset or empty.

    Raises:
        UsageError: It is no number from 1 to 1024.
    """
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if not text:
        return None
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= number <= MAX_THREADS:
        raise UsageError(f"{THREADS_VARIABLE}: expected a number from 1 to {MAX_THREADS}, got {text!r}")
    return number


def granted_processors(root: Path = Path("/")) -> int:
    """Return the number of processors that this process may use: its affinity, within its CPU quota.

    A quota of one and a half processors counts as two: threads that exceed it wait a part of the time.

    Args:
        root: Folder that /proc and /sys are in.
    """
    quota = cpu_quota(root)
    return visible_processors() if quota is None else max(1, min(visible_processors(), math.ceil(quota)))


def describe_threads(root: Path = Path("/")) -> str:
    """Describe the number of computing threads and the reason for it.

    Raises:
        UsageError: See `compute_threads`.
    """
    quota = cpu_quota(root)
    reasons = [counted(visible_processors(), "processor")]
    reasons += [f"a CPU quota of {quota:.3g}"] if quota is not None else []
    reasons += [f"{THREADS_VARIABLE}={asked}"] if (asked := asked_threads()) else []
    threads = asked or granted_processors(root)
    return f"{counted(threads, 'thread')} {'computes' if threads == 1 else 'compute'} ({', '.join(reasons)})"


def visible_processors() -> int:
    """Return the number of processors in this process's affinity."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The processors' time that Linux control groups grant this process, in processors; None: without limit.

    The smallest quota of the process's group and those above it, as far as they can be seen from here,
    in versions 1 and 2.
    """
    quotas = [_quota(group) for group in _cpu_groups(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: Path) -> float | None:
    try:
        granted, period = _words(group / "cpu.max") or (
            _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        )
        share = int(granted) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or not there
        return None
    return share if share > 0 else None  # version 1 writes -1 for no limit


def _cpu_groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that bound this process's CPU time, each followed by those above it."""
    groups = _groups_of_process(root)
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, file_system = line.partition(" - ")
        fields, (kind, *options) = mount.split(" "), file_system.split(" ")
        version_1 = kind == "cgroup" and "cpu" in "".join(options[-1:]).split(",")
        group = groups.get("cpu" if version_1 else "") if version_1 or kind == "cgroup2" else None
        if group is None or len(fields) < 5:
            continue
        shown, mounted_at = (PurePosixPath(_unescaped(field)) for field in fields[3:5])
        below = group.relative_to(shown) if group.is_relative_to(shown) else PurePosixPath()
        below = PurePosixPath() if ".." in below.parts else below  # of a group outside of what is shown here
        folder = root.joinpath(*mounted_at.parts[1:])
        yield from (folder / above for above in (below, *below.parents))


def _groups_of_process(root: Path) -> dict[str, PurePosixPath]:
    """Paths of this process's control groups by controller; that of version 2 under ""."""
    groups: dict[str, PurePosixPath] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path:
            groups.update(dict.fromkeys(controllers.split(","), PurePosixPath(path)))
    return groups


def _unescaped(field: str) -> str:
    r"""A path of mountinfo, where a blank is \040."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), field)


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _lines(file: Path) -> list[str]:
    """Return the lines of a file of the kernel's; none where it can't be read, as on other systems."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return []
