"""The browser that tests share, and a window of it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from review_helpers import Review, Visitor, chromium, visit

_FAILED = pytest.StashKey[bool]()
_SCREENSHOTS = "FACEPIPE_SCREENSHOTS"
"""Environment variable: a folder that keeps pictures of the pages of failed tests."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note whether a test failed, for what its fixtures leave behind."""
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Closed before other modules: Playwright holds the event loop of this thread meanwhile."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def visitor(
    review: Review, browser: Browser, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Visitor]:
    """A window that is signed in to the page of the fixture `review`; nothing may go wrong in it."""
    with browser.new_context() as context:
        visitor = visit(context, review.base)
        visitor.page.goto(review.address)
        visitor.page.wait_for_url("**/review/people")
        yield visitor
        if request.node.stash.get(_FAILED, False):
            folder = Path(os.environ.get(_SCREENSHOTS, tmp_path))
            visitor.page.screenshot(path=folder / f"{request.node.name}.png", full_page=True)
        assert visitor.complaints == []
