# SPDX-License-Identifier: Apache-2.0
"""The page in a browser, without a server: requests are answered here.

`PageHost` answers the requests of a page of Chromium as the server of the scope does, with its
content security policy, and refuses all others. It collects what must never happen: messages of
the console, uncaught errors, violations of the policy, and requests that leave the origin.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, Route

from pyvmm.trace.kinds import KINDS

ORIGIN = "http://127.0.0.1:9"
ADDRESS = f"{ORIGIN}/TOKEN/"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {"js": "text/javascript", "css": "text/css", "html": "text/html"}


class PageHost:
    """A page of `browser` that shows `chunks`; `answers` are those of other parts of the API."""

    def __init__(
        self, browser: Browser, chunks: bytes = b"", answers: dict[str, Any] | None = None,
        **context: Any,
    ) -> None:  # fmt: skip
        self.problems: list[str] = []
        """Descriptions of all that must not happen."""
        self._answers: dict[str, Any] = {"source": source_document(), **(answers or {})}
        self._chunks = chunks
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.route("**/*", self._answer)

    def open(self, fragment: str = "") -> Page:
        """Load the page, and return it when all events are there."""
        self.page.goto(f"{ADDRESS}#{fragment}")
        self.page.wait_for_selector("#state[data-state=complete]")
        return self.page

    def modules(self, *names: str) -> Page:
        """Return a page in which the modules `names` are global variables, without the scope."""
        self.page.goto(f"{ORIGIN}/empty")
        for name in names:
            script = f"async () => {{ window.{name} = await import('/TOKEN/page/{name}.js'); }}"
            self.page.evaluate(script)
        return self.page

    def close(self) -> None:
        """Close the page."""
        self.context.close()

    def _answer(self, route: Route) -> None:
        url = urlsplit(route.request.url)
        if f"{url.scheme}://{url.netloc}" != ORIGIN:
            self.problems.append(f"a request to {route.request.url}")
            route.abort()
            return
        headers = {"content-security-policy": POLICY}
        path = url.path.removeprefix("/TOKEN/")
        if url.path == "/empty":
            route.fulfill(content_type="text/html", body="<!doctype html><title>test</title>")
        elif path == "api/chunks":
            route.fulfill(body=self._chunks, headers=headers)
        elif path.startswith("api/") and path[4:] in self._answers:
            route.fulfill(body=json.dumps(self._answers[path[4:]]), headers=headers)
        elif (name := path.removeprefix("page/") or "index.html").endswith(
            (".js", ".css", ".html")
        ):
            body = files("pyvmm.scope.page").joinpath(name).read_text("utf-8")
            route.fulfill(body=body, content_type=TYPES[name.rpartition(".")[2]], headers=headers)
        else:
            self.problems.append(f"a request for {url.path}")
            route.fulfill(status=404, body="{}")


def source_document(name: str = "boot.rec", notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the answer to `api/source` of a recording."""
    kinds = [{"name": k.name, "meaning": k.meaning, "fields": k.fields} for k in KINDS]
    return {
        "live": False, "name": name, "memory": None, "ram": [], "devices": [], "kinds": kinds,
        "start-ns": 0, "notes": list(notes),
    }  # fmt: skip
