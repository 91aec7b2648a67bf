# SPDX-License-Identifier: Apache-2.0
"""The waits of `QmpClient`, on a connection whose other end is the test."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.qmp.messages import QmpError
from tests.pyvmm.qmp.scripted_server import GREETING

LATE_S = 0.1


class ServerSide:
    """A listener at `path`; `client` connects and leaves the other end in `connection`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(30)
        self.connection = socket.socket()

    def client(self, timeout_s: float) -> QmpClient:
        accepting = threading.Thread(target=self._accept)
        accepting.start()
        client = QmpClient(self._path, timeout_s)
        accepting.join(30)
        return client

    def _accept(self) -> None:
        self.connection.close()
        self.connection, _ = self._listener.accept()
        self.send(GREETING)
        self.connection.recv(4096)  # qmp_capabilities
        self.send({"return": {}})

    def send(self, message: dict[str, Any]) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\r\n")

    def send_later(self, *messages: dict[str, Any]) -> threading.Timer:
        def send() -> None:
            for message in messages:
                self.send(message)

        timer = threading.Timer(LATE_S, send)
        timer.start()
        return timer

    def close(self) -> None:
        self.connection.close()
        self._listener.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerSide]:
    server = ServerSide(tmp_path / "qmp")
    yield server
    server.close()


def event(name: str) -> dict[str, Any]:
    return {"event": name, "timestamp": {"seconds": 1, "microseconds": 0}}


def test_an_event_that_comes_within_the_timeout_is_returned(server: ServerSide) -> None:
    with server.client(30) as client:
        timer = server.send_later(event("STOP"))
        assert client.wait_for_event(30) == event("STOP")
        timer.join()


def test_waiting_for_an_event_ends_at_the_timeout(server: ServerSide) -> None:
    with server.client(30) as client:
        begin = time.monotonic()
        assert client.wait_for_event(LATE_S) is None
        assert time.monotonic() - begin >= LATE_S


def test_events_before_a_reply_are_kept_in_order(server: ServerSide) -> None:
    with server.client(30) as client:
        timer = server.send_later(event("STOP"), event("RESUME"), {"return": {"status": "running"}})
        assert client.execute("query-status") == {"status": "running"}
        assert [client.wait_for_event(0) for _ in range(3)] == [
            event("STOP"),
            event("RESUME"),
            None,
        ]
        timer.join()


def test_a_reply_that_does_not_come_in_time_raises_timeout_error(server: ServerSide) -> None:
    with server.client(0.2) as client:
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            client.execute("query-status")
        assert time.monotonic() - begin >= 0.2


def test_a_closed_connection_is_an_error_of_its_own(server: ServerSide) -> None:
    with server.client(30) as client:
        server.connection.close()
        with pytest.raises(ConnectionClosedError):
            client.wait_for_event(30)
        with pytest.raises(ConnectionClosedError):
            client.execute("query-status")


@pytest.mark.parametrize("error", [None, 1, "text", [], {}, {"desc": 1}, {"class": "GenericError"}])
def test_a_malformed_error_is_an_error_of_the_command(server: ServerSide, error: object) -> None:
    with server.client(30) as client:
        timer = server.send_later({"error": error})
        with pytest.raises(QmpError, match="the server reports an error without a description"):
            client.execute("query-status")
        timer.join()
