# SPDX-License-Identifier: Apache-2.0
"""A client of the scope's server that can lie, as no browser would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from pyvmm.scope.server import ScopeServer


class Response(NamedTuple):
    """The answer to a request: status, headers with names in lower case, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body."""
        return json.loads(self.body)


async def get(
    server: ScopeServer,
    path: str = "",
    *,
    token: str | None = None,
    headers: Mapping[str, str | None] | None = None,
    method: str = "GET",
) -> Response:
    """Request a path below the token; `headers` replace those of a browser, None leaves one out."""
    return parse(await get_bytes(server, path, token=token, headers=headers, method=method))


async def get_bytes(
    server: ScopeServer,
    path: str = "",
    *,
    token: str | None = None,
    headers: Mapping[str, str | None] | None = None,
    method: str = "GET",
) -> bytes:
    """Return all bytes of the answer that `get` returns."""
    sent = {"Host": f"127.0.0.1:{server.port}", "Connection": "close", **(headers or {})}
    target = f"/{server.token if token is None else token}/{path}"
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in sent.items() if value is not None]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return await reader.read()
    finally:
        writer.close()


def parse(data: bytes) -> Response:
    """Return the answer in `data`, all that a connection has received."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        parts = []
        while (size := int(body.partition(b"\r\n")[0] or b"0", 16)) > 0:
            body = body.partition(b"\r\n")[2]
            parts.append(body[:size])
            body = body[size + 2 :]
        body = b"".join(parts)
    return Response(int(status.split()[1]), headers, body)


async def open_socket(
    server: ScopeServer, *, origin: str | None = "own"
) -> WebSocketClientConnection:
    """Open the WebSocket of a live guest as a page does."""
    headers = {"Origin": f"http://127.0.0.1:{server.port}" if origin == "own" else origin or ""}
    if origin is None:
        headers = {}
    url = server.url.replace("http:", "ws:") + "api/live"
    return await websocket_connect(HTTPRequest(url, headers=headers))
