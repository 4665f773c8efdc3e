"""Network namespaces of Linux: hosts with addresses of their own, on one machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


class NoNamespacesError(Exception):
    """No network namespace can be made here."""


def ip(*words: str) -> None:
    """Run `ip` of iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def new_namespaces(*names: str) -> Iterator[None]:
    """Make namespaces that reach nobody, not even each other; they are deleted at the end.

    Raises:
        NoNamespacesError: That is not allowed here, or there is no `ip`.
    """
    if shutil.which("ip") is None or os.geteuid() != 0:
        raise NoNamespacesError("network namespaces need root and iproute2")
    made: list[str] = []
    try:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                raise NoNamespacesError(f"no network namespace can be made here: {error.stderr}") from error
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
