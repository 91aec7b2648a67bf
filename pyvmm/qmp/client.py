# SPDX-License-Identifier: Apache-2.0
"""A small QMP client for the command line: one connection, one request at a time.

It works with pyvmm's server and with QEMU's. Every wait is bounded. A socket that is not a QMP
server's raises `UserError`; a server that closes the connection raises `ConnectionClosedError`, as
its meaning depends on the command.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyvmm.qmp import messages as qmp
from pyvmm.qmp.errors import NotQmpSocket, QmpServerUnresponsive
from pyvmm.qmp.json_stream import MAX_MESSAGE_BYTES, JsonStream
from pyvmm.qmp.messages import QmpError
from pyvmm.sockets.unix import connect_unix

_READ_BYTES = 1 << 16
MAX_REPLY_BYTES = 16 << 20
"""The largest replies have a chunk of events, or a part of the guest's memory, in base64."""


class ConnectionClosedError(Exception):
    """The server closed the connection."""


class QmpClient:
    """A negotiated connection to the QMP server at `path`; close it with `close` or `with`."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._messages = JsonStream(MAX_REPLY_BYTES, max_tokens=MAX_MESSAGE_BYTES)
        self._events: list[dict[str, Any]] = []
        self._socket = connect_unix(path, timeout_s)
        try:
            self._negotiate(path)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> QmpClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run `command` and return its value.

        Raises `QmpError` if the command fails, `TimeoutError` if the server does not reply in time,
        and `ConnectionClosedError`.
        """
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        with _closed_when_broken():
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(qmp.encode(request))
        deadline = time.monotonic() + self._timeout_s
        while True:
            message = self._receive(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise reported_error(message["error"])
            if "event" in message:
                self._events.append(message)

    def wait_for_event(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the oldest event not yet returned, or None if none comes within `timeout_s`."""
        if self._events:
            return self._events.pop(0)
        with contextlib.suppress(TimeoutError):
            return self._receive(time.monotonic() + timeout_s)
        return None

    def _negotiate(self, path: Path) -> None:
        try:
            greeting = self._receive(time.monotonic() + self._timeout_s)
            if "QMP" not in greeting:
                raise QmpError("no greeting")
            self.execute("qmp_capabilities")
        except TimeoutError:
            raise QmpServerUnresponsive(f"the control socket {path} is not answering") from None
        except (QmpError, ConnectionClosedError):
            raise NotQmpSocket(f"{path} is not a QMP socket") from None

    def _receive(self, deadline: float) -> dict[str, Any]:
        """Return the server's next message; raises `TimeoutError` at `deadline` (monotonic)."""
        while True:
            message = self._messages.next()
            if message is not None:
                return message
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError
            with _closed_when_broken():
                self._socket.settimeout(remaining_s)
                data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionClosedError
            self._messages.feed(data)


def reported_error(error: Any) -> QmpError:
    """Return the error that a reply reports; another program may have sent it."""
    if isinstance(error, dict) and isinstance(error.get("desc"), str):
        return QmpError(error["desc"], error.get("class", "GenericError"))
    return QmpError("the server reports an error without a description")


@contextlib.contextmanager
def _closed_when_broken() -> Iterator[None]:
    """Raise `ConnectionClosedError` for a connection that the other side has broken."""
    try:
        yield
    except (BrokenPipeError, ConnectionResetError):
        raise ConnectionClosedError from None
