# SPDX-License-Identifier: Apache-2.0
"""The page of the scope in a browser, with a `BoardGuest` in place of the server."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from urllib.parse import parse_qsl, urlparse

from playwright.sync_api import Browser, Page, Route, WebSocketRoute

from tests.scope.board_guest import BoardGuest, Json

ORIGIN = "http://scope.test/TOKEN/"


@contextmanager
def board_page(browser: Browser, guest: BoardGuest, view: str = "") -> Iterator[Page]:
    """Yield the page of `guest`, at `view`; an error of the page fails the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(f"{line.type}: {line.text}"))
    page.route("**/*", lambda route: _answer(route, guest))
    page.route_web_socket("**/api/live", lambda socket: _connect(socket, guest))
    page.goto(f"{ORIGIN}#{view}")
    page.wait_for_selector("html[data-ready]")
    try:
        yield page
    finally:
        page.close()
    assert errors == []


def _answer(route: Route, guest: BoardGuest) -> None:
    url = urlparse(route.request.url)
    path = url.path.removeprefix("/TOKEN/")
    if path == "api/chunks":
        route.fulfill(body=guest.take_chunk(), content_type="application/octet-stream")
    elif path.startswith("api/"):
        answer = guest.answer(path.removeprefix("api/"), dict(parse_qsl(url.query)))
        route.fulfill(json=answer)
    else:
        name = path.removeprefix("page/") or "index.html"
        file = files("pyvmm.scope.page").joinpath(name)
        route.fulfill(body=file.read_bytes(), content_type=mimetypes.guess_type(name)[0] or "")


def _connect(socket: WebSocketRoute, guest: BoardGuest) -> None:
    def send(message: bytes | Json) -> None:
        socket.send(message if isinstance(message, bytes) else json.dumps(message))

    guest.sent_to_page = send
    socket.on_message(lambda message: guest.messages.append(json.loads(message)))
