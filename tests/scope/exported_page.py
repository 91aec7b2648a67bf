# SPDX-License-Identifier: Apache-2.0
"""An exported page in a browser, opened as a file, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page


@contextmanager
def exported_page(browser: Browser, path: Path, view: str = "") -> Iterator[Page]:
    """Yield the page in the file at `path`, at `view`, when all events are there.

    A message of the console, an uncaught error, or a request for anything but the file fails the
    test.
    """
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 800})
    page = context.new_page()
    address = path.as_uri()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url))
    try:
        page.goto(f"{address}#{view}")
        page.wait_for_selector("#state[data-state=complete]")
        yield page
    finally:
        context.close()
    assert [each for each in problems if each.partition("#")[0] not in (address, "data:,")] == []
