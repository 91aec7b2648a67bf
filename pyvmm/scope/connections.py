# SPDX-License-Identifier: Apache-2.0
"""A bound on connections that other users of the host cannot use up.

A connection is authenticated once a request on it has shown the token. When there are
`MAX_CONNECTIONS`, the oldest one that is not is closed in favour of a new one, so other users
cannot lock the person out; if all are authenticated, the new one is closed.
"""

from __future__ import annotations

from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream

MAX_CONNECTIONS = 32
"""A browser has 6 for requests, and one for each WebSocket."""


class Connections:
    """The open connections of a server."""

    def __init__(self) -> None:
        self._unauthenticated: dict[IOStream, None] = {}
        self._authenticated: dict[IOStream, None] = {}

    def add(self, stream: IOStream) -> bool:
        """Return whether the new connection may stay; closes another one if need be."""
        for streams in (self._unauthenticated, self._authenticated):
            for each in [each for each in streams if each.closed()]:
                del streams[each]
        if len(self._authenticated) >= MAX_CONNECTIONS:
            return False
        if len(self._unauthenticated) + len(self._authenticated) >= MAX_CONNECTIONS:
            oldest = next(iter(self._unauthenticated))
            del self._unauthenticated[oldest]
            oldest.close()
        self._unauthenticated[stream] = None
        return True

    def authenticate(self, request: HTTPServerRequest) -> None:
        """Note that a request on the connection has passed the checks."""
        stream = getattr(request.connection, "stream", None)
        if stream in self._unauthenticated:
            del self._unauthenticated[stream]
            self._authenticated[stream] = None


class BoundedHttpServer(HTTPServer):
    """An HTTP server that has at most `MAX_CONNECTIONS` connections."""

    connections: Connections
    """Set it before the first connection: tornado's servers are configured, not constructed."""

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Serve a new connection, or close it."""
        if self.connections.add(stream):
            super().handle_stream(stream, address)
        else:
            stream.close()
