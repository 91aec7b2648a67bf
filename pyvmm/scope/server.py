# SPDX-License-Identifier: Apache-2.0
"""The server of the page: HTTP and WebSocket on 127.0.0.1, for one person with a browser.

    /TOKEN/             the page
    /TOKEN/page/FILE    its files
    /TOKEN/api/...      what it asks for (`handlers`, `live_socket`)

`guard` has the checks of each request and `connections` the bound on connections. Everything runs
on one event loop; a request that needs the guest waits for its control socket, and no request waits
for another browser.

Threads: event loop.
"""

from __future__ import annotations

import logging
import secrets

from tornado.netutil import bind_sockets
from tornado.routing import URLSpec
from tornado.web import Application

from pyvmm.scope import handlers
from pyvmm.scope.connections import BoundedHttpServer, Connections
from pyvmm.scope.errors import PortInUse
from pyvmm.scope.guard import NotFound
from pyvmm.scope.live_guest import LiveGuest
from pyvmm.scope.recorded_guest import RecordedGuest
from pyvmm.scope.site import Site

ADDRESS = "127.0.0.1"
REQUEST_TIMEOUT_S = 30.0
"""Longest time for which a connection may be idle, or send a request."""
MAX_HEADER_BYTES = 16 << 10
MAX_BODY_BYTES = 1 << 10
MAX_MESSAGE_BYTES = 4 << 10
"""Of a message of the page."""
_TOKEN_BYTES = 32


class ScopeServer:
    """Serves the page of `source` at `port`; 0 is any free one. Raises `PortInUse`."""

    def __init__(self, source: RecordedGuest | LiveGuest, port: int = 0) -> None:
        try:
            sockets = bind_sockets(port, ADDRESS)
        except OSError as error:
            raise PortInUse(f"port {port} cannot be used: {error.strerror}") from error
        self.port: int = sockets[0].getsockname()[1]
        self.token = secrets.token_urlsafe(_TOKEN_BYTES)
        hosts = (f"{ADDRESS}:{self.port}", f"localhost:{self.port}")
        self.site = Site(source, self.token, hosts, Connections())
        self._server = BoundedHttpServer(
            _application(self.site),
            idle_connection_timeout=REQUEST_TIMEOUT_S,
            body_timeout=REQUEST_TIMEOUT_S,
            max_header_size=MAX_HEADER_BYTES,
            max_body_size=MAX_BODY_BYTES,
            max_buffer_size=MAX_HEADER_BYTES,
        )
        self._server.connections = self.site.connections
        self._server.add_sockets(sockets)

    @property
    def url(self) -> str:
        """The address of the page, with its token."""
        return f"http://{ADDRESS}:{self.port}/{self.token}/"

    async def close(self) -> None:
        """Close all connections."""
        self._server.stop()
        await self._server.close_all_connections()


def _application(site: Site) -> Application:
    of_site = {"site": site}
    return Application(
        [
            URLSpec(rf"/(?P<token>[^/]*)/{path}", handler, of_site)
            for path, handler in handlers.PATHS.items()
        ],
        default_handler_class=NotFound,
        default_handler_args=of_site,
        log_function=_log_request,
        websocket_max_message_size=MAX_MESSAGE_BYTES,
        websocket_ping_interval=10.0,
    )


def _log_request(handler: object) -> None:
    """Log no requests: their paths hold the token."""


# Tornado warns of each malformed request, which any user of the host may send.
logging.getLogger("tornado.general").setLevel(logging.ERROR)
logging.getLogger("tornado.access").setLevel(logging.ERROR)
