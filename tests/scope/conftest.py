# SPDX-License-Identifier: Apache-2.0
"""A browser for the tests of the scope's page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from bench.scope_page import chromium
from tests.scope.page_host import PageHost


class SharedBrowser:
    """Debian's Chromium, without a window, for consecutive tests of this directory.

    To start it takes as long as two tests. It ends before a test of another directory: while
    Playwright is started its thread has an event loop, and other tests in the same process call
    asyncio.run.
    """

    def __init__(self) -> None:
        self._started = ExitStack()
        self._browser: Browser | None = None

    def get(self) -> Browser:
        """Return the browser; start it if need be."""
        if self._browser is None:
            self._browser = self._started.enter_context(chromium())
        return self._browser

    def close(self) -> None:
        """End the browser."""
        self._browser = None
        self._started.close()


_shared = SharedBrowser()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """End the browser after the last test of this directory, when its fixtures have ended."""
    yield
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        _shared.close()


@pytest.fixture
def browser() -> Browser:
    """Return the browser, which has no pages."""
    found = _shared.get()
    assert found.contexts == [], "another test has left a page"
    return found


@pytest.fixture
def page_host(browser: Browser) -> Iterator[Callable[..., PageHost]]:
    """Yield a function that makes a `PageHost`; fail if one had problems that were not expected."""
    made: list[PageHost] = []

    def make(*args: Any, **options: Any) -> PageHost:
        made.append(PageHost(browser, *args, **options))
        return made[-1]

    yield make
    for host in made:
        host.close()
    assert [problem for host in made for problem in host.problems] == []
