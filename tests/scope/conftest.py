# SPDX-License-Identifier: Apache-2.0
"""A browser for the tests of the scope's page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.scope.page_host import PageHost

ARGUMENTS = (
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield Debian's Chromium, without a window.

    Of a module, not of the session: while Playwright is started its thread has an event loop, and
    tests of other modules in the same process call asyncio.run.
    """
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=list(ARGUMENTS)
        )
        yield chromium
        chromium.close()


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
