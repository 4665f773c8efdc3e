"""`facepipe review` in a process of its own, and a browser that opens it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from cli_helpers import facepipe
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright

from facepipe.core.faces import UInt8Array

_START_S = 60.0
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/\S+")
_CHROMIUM_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE: ViewportSize = {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium; the test is skipped where there is none."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("the tests of the page need Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(_CHROMIUM_OPTIONS))
        yield browser
        browser.close()


@dataclass(slots=True, eq=False)
class Review:
    """A running `facepipe review`.

    Attributes:
        out: The batch's folder.
        process: The command.
        address: Where it can be opened, once.
    """

    out: Path
    process: subprocess.Popen[str]
    address: str

    @property
    def base(self) -> str:
        """Address without a path."""
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}"

    def stop(self) -> tuple[int, str]:
        """End it as Ctrl-C does; returns its exit code and the rest of stderr."""
        self.process.send_signal(signal.SIGINT)
        _, rest = self.process.communicate(timeout=30)
        return self.process.returncode, rest


@contextmanager
def reviewing(out: Path, *options: object) -> Iterator[Review]:
    """Run the command on a batch."""
    words = [sys.executable, "-m", "facepipe.cli", "review", out, "--no-browser", *options]
    command = [str(word) for word in words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield Review(out, process, _address_of(process))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        if process.stderr is not None:
            process.stderr.close()


def _address_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    lines = []
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and (line := process.stderr.readline()):
        lines.append(line)
        if found := _ADDRESS.search(line):
            return found[0]
    raise AssertionError(f"the page did not start: {lines}")


@dataclass(slots=True, eq=False)
class Visitor:
    """A browser window with the page, and what went wrong in it.

    Attributes:
        page: Of Playwright.
        base: Address of the server.
        complaints: Messages of the console, of scripts, and requests to other servers.
    """

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        """Go to a page, and wait until its scripts have run."""
        self.page.goto(f"{self.base}/review/{path}")
        self.arrive()

    def arrive(self, title: str | None = None) -> None:
        """Wait until the scripts of a page have run, whose title begins so."""
        if title is not None:
            expect(self.page).to_have_title(re.compile(f"^{re.escape(title)}"))
        self.page.wait_for_load_state("load")

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            self.page.keyboard.press(key)

    def wait_until_saved(self) -> None:
        """Wait until no change waits any more."""
        expect(self.page.locator("#waiting")).not_to_contain_text("save")

    def wait_until_named(self) -> None:
        """Wait until the names that follow from changes have been found."""
        deadline = time.monotonic() + _START_S
        while self.page.request.get(f"{self.base}/review/state").json()["photos_left"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def visit(context: BrowserContext, base: str) -> Visitor:
    """Open a window that notes what goes wrong in it."""
    visitor = Visitor(context.new_page(), base)
    page, complaints = visitor.page, visitor.complaints
    page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((base, "data:", "blob:")) else complaints.append(request.url)
        ),
    )
    return visitor


def altered_copies(portrait: UInt8Array, count: int) -> Iterator[UInt8Array]:
    """Photos of one person that differ in size, light and side."""
    for number in range(count):
        photo = portrait[:, ::-1] if number % 2 else portrait
        side = 512 - 24 * number
        resized = Image.fromarray(np.ascontiguousarray(photo)).resize((side, side))
        yield np.clip(np.asarray(resized, np.float32) * (0.8 + 0.05 * number), 0, 255).astype(np.uint8)


def make_batch(photos: Path, out: Path, gallery: Path) -> None:
    """Work through a folder."""

    result = facepipe("batch", photos, "--out", out, "--gallery", gallery, "--quiet")
    assert result.code in (0, 3), result.err
