# SPDX-License-Identifier: Apache-2.0
"""The events of a running guest, decoded, over a connection to its control socket."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from pyvmm.qmp.client import QmpClient
from pyvmm.qmp.messages import QmpError
from pyvmm.scope.errors import EventsUnsupported, GuestNotWatched
from pyvmm.trace.recording_format import (
    VERSION,
    FormatError,
    chunk_is_intact,
    decode_chunk,
    decode_chunk_header,
)
from pyvmm.trace.stream import TraceEvent, events_of
from pyvmm_native.event_decoder import EventError

READ_WAIT_S = 1.0
"""Longest time for which the process of a guest waits for an event before it replies."""


def start_error(error: QmpError) -> GuestNotWatched | EventsUnsupported:
    """Return the error of a guest whose events cannot be watched, by the reply of its process."""
    if error.error_class == "CommandNotFound":
        return EventsUnsupported("the process of the guest has no events to watch")
    return GuestNotWatched(error.desc[:1].lower() + error.desc[1:])


def check_format(reply: Any) -> None:
    """Raise `EventsUnsupported` unless the reply to `x-trace-start` names the format of here."""
    version = reply.get("format") if isinstance(reply, dict) else None
    if version != VERSION:
        raise EventsUnsupported(
            f"the events of the guest have format {version}, this pyvmm reads {VERSION}"
        )


def chunk_of(reply: Any) -> bytes | None:
    """Return the chunk in a reply to `x-trace-read`. Raises `EventsUnsupported`."""
    try:
        chunk = reply["chunk"]
        return None if chunk is None else base64.b64decode(chunk, validate=True)
    except (TypeError, KeyError, ValueError) as error:
        raise EventsUnsupported("the process of the guest sends no events") from error


def watched_events(client: QmpClient) -> Iterator[TraceEvent]:
    """Yield the events of the guest behind `client` as they happen, until it ends.

    Raises `GuestNotWatched`, `EventsUnsupported`, and what `QmpClient.execute` raises.
    """
    try:
        check_format(client.execute("x-trace-start"))
    except QmpError as error:
        raise start_error(error) from error
    while True:
        reply = client.execute("x-trace-read", timeout=READ_WAIT_S)
        chunk = chunk_of(reply)
        if chunk is None:
            continue
        header = decode_chunk_header(chunk)
        if header is None or not chunk_is_intact(header, chunk):
            raise EventsUnsupported("the process of the guest sends events that are damaged")
        try:
            yield from events_of(decode_chunk(header, chunk))
        except (FormatError, EventError, OverflowError) as error:
            raise EventsUnsupported(f"the events of the guest are malformed: {error}") from error
