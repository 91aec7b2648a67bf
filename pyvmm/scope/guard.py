# SPDX-License-Identifier: Apache-2.0
"""The checks that every request passes before anything else looks at it.

The page shows a guest's memory and can stop the guest, and every user and every browser tab of the
host reaches a port on loopback. So a request needs

- a `Host` that is this server's own address: a page of another site whose name an attacker lets
  resolve to 127.0.0.1 (DNS rebinding) has its own name there;
- the token in its path, which only the person who started the scope has seen;
- for a WebSocket, and wherever the browser sends one, an `Origin` that is this server: browsers let
  any page open a WebSocket to any address.

The token is compared in constant time. Answers forbid everything that the page does not need: it
loads scripts, styles and data from this server only, cannot be framed, and is not cached.
"""

from __future__ import annotations

import hmac
import json
from typing import Any

from tornado.web import HTTPError, RequestHandler

from pyvmm.scope.site import Site

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class GuardedHandler(RequestHandler):
    """A handler of `site` whose requests have passed the checks."""

    def initialize(self, site: Site) -> None:
        self.site = site

    def set_default_headers(self) -> None:
        """Replace the name of the server by the headers that protect the page."""
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Refuse a request that fails one of the checks."""
        headers = self.request.headers
        if headers.get_list("Host") not in [[host] for host in self.site.hosts]:
            raise HTTPError(421, reason="Another host is addressed")
        if "Origin" in headers and not self.is_own(headers["Origin"]):
            raise HTTPError(403, reason="The request comes from another site")
        token = self.path_kwargs.pop("token", "")
        if not hmac.compare_digest(token.encode(), self.site.token.encode()):
            raise HTTPError(404, reason="Not found")
        self.site.connections.authenticate(self.request)

    def is_own(self, origin: str) -> bool:
        """Return whether `origin` is this server."""
        return origin in [f"http://{host}" for host in self.site.hosts]

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer an error in JSON; nothing of the request is repeated."""
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"error": self._reason}))

    def log_exception(self, *exception: Any) -> None:
        """Log bugs only: refused requests do not fill the log."""
        if not isinstance(exception[1], HTTPError):
            super().log_exception(*exception)


class NotFound(GuardedHandler):
    """All other paths: not found, or refused like any other."""

    def prepare(self) -> None:
        """Refuse the request after the same checks."""
        super().prepare()
        raise HTTPError(404, reason="Not found")
