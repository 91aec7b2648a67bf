# SPDX-License-Identifier: Apache-2.0
"""Replies of a process that is not the pyvmm of here, to a client that watches its events."""

from __future__ import annotations

import base64
from typing import Any, cast

import pytest

from pyvmm.qmp.client import QmpClient
from pyvmm.scope.errors import EventsUnsupported
from pyvmm.scope.watched_events import watched_events
from pyvmm.trace.recording_format import encode_chunk
from pyvmm_native.events import EventBuffer


class Client:
    """A client that gets these replies."""

    def __init__(self, *replies: Any) -> None:
        self._replies = list(replies)

    def execute(self, command: str, **arguments: Any) -> Any:
        return self._replies.pop(0)


def chunk() -> bytes:
    buffer = EventBuffer()
    buffer.start()
    buffer.event("balloon.target", pages=5)
    batch = buffer.stop()
    assert batch is not None
    return encode_chunk(batch)


def in_base64(data: bytes) -> dict[str, str]:
    return {"chunk": base64.b64encode(data).decode()}


def first_event(*replies: Any) -> Any:
    return next(watched_events(cast("QmpClient", Client(*replies))))


def test_replies_without_events_are_skipped() -> None:
    event = first_event({"format": 1}, {"chunk": None}, in_base64(chunk()))
    assert (event.kind, event.fields) == ("target", {"pages": 5})


@pytest.mark.parametrize("reply", [None, [], "1", {}, {"format": 2}])
def test_another_format_is_refused(reply: Any) -> None:
    with pytest.raises(EventsUnsupported, match="have format"):
        first_event(reply)


@pytest.mark.parametrize(
    "reply",
    [None, [], "1", {}, {"chunk": 5}, {"chunk": "!"}, {"chunk": "\N{SNOWMAN}"}],
)
def test_a_reply_without_a_chunk_is_refused(reply: Any) -> None:
    with pytest.raises(EventsUnsupported, match="sends no events"):
        first_event({"format": 1}, reply)


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 100, chunk()[:50], chunk().replace(b"CHNK", b"OTHR")],
    ids=["empty", "no chunk", "half a header", "another magic"],  # the same in every process
)
def test_a_damaged_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(EventsUnsupported, match="damaged"):
        first_event({"format": 1}, in_base64(data))
