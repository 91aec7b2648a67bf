# SPDX-License-Identifier: Apache-2.0
"""A bound on connections that other users of the host cannot use up.

A connection is a stranger until a request on it has shown the token. When all places are taken, the
stranger that has waited longest makes way for a new connection, so strangers never keep the person
out; with admitted connections only, the new one is closed.
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
        self._strangers: dict[IOStream, None] = {}
        self._admitted: dict[IOStream, None] = {}

    def add(self, stream: IOStream) -> bool:
        """Return whether the new connection may stay; closes another one if need be."""
        for streams in (self._strangers, self._admitted):
            for each in [each for each in streams if each.closed()]:
                del streams[each]
        if len(self._admitted) >= MAX_CONNECTIONS:
            return False
        if len(self._strangers) + len(self._admitted) >= MAX_CONNECTIONS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.close()
        self._strangers[stream] = None
        return True

    def admit(self, request: HTTPServerRequest) -> None:
        """Note that a request on the connection has passed the checks."""
        stream = getattr(request.connection, "stream", None)
        if stream in self._strangers:
            del self._strangers[stream]
            self._admitted[stream] = None


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
