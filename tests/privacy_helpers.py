"""What a process does to network and files: seen by strace where it may trace, else by Python's own hooks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from paths import ROOT

UNSET = {"ORT_DISABLE_TELEMETRY", "FACEPIPE_HOME", "CI"}
"""The first of all is for facepipe to set; the last switches OpenVINO's telemetry off."""
_MAKERS = "openat,open,creat,mkdirat,mkdir,mknodat,symlinkat,symlink,linkat,link,renameat,renameat2,rename"
_STRACE = (
    "strace",
    "-f",
    "-qq",
    "-y",
    "--seccomp-bpf",
    "-e",
    f"trace=%network,?{_MAKERS.replace(',', ',?')}",
)
_INTERNET = re.compile(r"\bAF_INET6?\b")
_LOOK_UP = re.compile(r'"(/etc/resolv\.conf|/etc/hosts|/etc/gai\.conf)"|AF_NETLINK')
_MADE = re.compile(rf"\b(?P<call>{_MAKERS.replace(',', '|')})\((?P<arguments>.*)\)\s+= (?!-1)")
_NAMED = re.compile(r'(?:(?:AT_FDCWD|\d+)<(?P<folder>[^>]*)>, )?"(?P<name>(?:[^"\\]|\\.)*)"')
_ALLOWED_DEVICES = ("/dev/null", "/dev/tty", "/dev/shm/", "/proc/")
_HOOK = """
import os, sys
_seen = open(os.environ["SEEN_BY_HOOK"], "a", buffering=1)
def _hook(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind"):
        if isinstance(arguments[1], tuple):  # paths are of sockets within the machine
            _seen.write(f"{event} {arguments[1]!r}\\n")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        _seen.write(f"{event} {arguments!r}\\n")
sys.addaudithook(_hook)
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a process did.

    Attributes:
        network: Calls that reach for the network, or look a host's name up.
        made: Files and folders that were made outside of the working folder, for however short a time.
        output: Of stdout and stderr together.
        code: Exit code.
    """

    network: list[str]
    made: list[str]
    output: str
    code: int


def watched(arguments: Sequence[str], place: Path) -> Seen:
    """Run Python in the folder `place/work`, with empty home and temporary folders beside it."""
    work, home, temporary = place / "work", place / "home", place / "tmp"
    for folder in (work, home, temporary, place / "hook"):
        folder.mkdir(exist_ok=True)
    (place / "hook" / "sitecustomize.py").write_text(_HOOK)
    by_hook = place / "seen_by_hook.txt"
    environment = {key: value for key, value in os.environ.items() if key not in UNSET and "XDG_" not in key}
    environment |= {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PYTHONPATH": f"{place / 'hook'}{os.pathsep}{ROOT}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "FACEPIPE_THREADS": "1",
        "SEEN_BY_HOOK": str(by_hook),
    }
    trace = place / "trace.txt"
    command = [*((*_STRACE, "-o", str(trace)) if can_trace() else ()), sys.executable, *arguments]
    done = subprocess.run(
        command,
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
    left = [str(path) for folder in (home, temporary) for path in folder.rglob("*")]
    return Seen(
        network=by_hook.read_text().splitlines() + [line for line in lines if _reaches_out(line)],
        made=sorted({*left, *(path for line in lines for path in _made(line, work) if path != str(by_hook))}),
        output=done.stdout,
        code=done.returncode,
    )


@cache
def can_trace() -> bool:
    """Whether strace is here and may look at other processes."""
    if shutil.which("strace") is None:
        return False
    done = subprocess.run([*_STRACE, "-o", os.devnull, "true"], capture_output=True, check=False)
    return done.returncode == 0


def _reaches_out(line: str) -> bool:
    return bool(_INTERNET.search(line) or _LOOK_UP.search(line))


def _made(line: str, work: Path) -> list[str]:
    """Paths outside of `work` that a successful call may have made."""
    found = _MADE.search(line)
    if found is None or (found["call"] in ("open", "openat") and "O_CREAT" not in line):
        return []
    paths = [
        os.path.normpath(Path(named["folder"] or work, named["name"]))
        for named in _NAMED.finditer(found["arguments"])
    ]
    return [
        path
        for path in paths[-1:]  # of a rename or a link the last one is new
        if not Path(path).is_relative_to(work) and not path.startswith(_ALLOWED_DEVICES)
    ]
