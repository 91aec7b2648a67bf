# SPDX-License-Identifier: Apache-2.0
"""A QMP server that gives prepared answers, as another program's would."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GREETING = {"QMP": {"version": {}, "capabilities": ["oob"]}}
EVENT = {"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RTC_CHANGE"}


@contextmanager
def scripted_server(path: Path, *answers: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Serve a client at `path` for each of `answers`, one after the other.

    Each gets the greeting, then an event and an answer to each request, and is disconnected after
    the last answer. Yields the list of the commands requested so far.
    """
    requests: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(30)
        thread = threading.Thread(target=_serve, args=(listener, answers, requests))
        thread.start()
        try:
            yield requests
        finally:
            thread.join(30)
    path.unlink()


def _serve(
    listener: socket.socket, answers: Sequence[Sequence[dict[str, Any]]], requests: list[str]
) -> None:
    for answers_to_client in answers:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            connection.sendall(_line(GREETING))
            for answer in answers_to_client:
                requests.append(json.loads(connection.recv(4096))["execute"])
                connection.sendall(_line(EVENT) + _line(answer))


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\r\n"
