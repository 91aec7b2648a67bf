# SPDX-License-Identifier: Apache-2.0
"""Messages that respond to requests of the host, whatever their dialect's wire format.

A dialect with a queue for such requests has a `ResponseFormat`, with which `devices.balloon.misc`
reads the driver's messages. Their pages are decoded only if the message belongs to a request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from devices.errors import BadPayload
from pyvmm_native.page_requests import decode
from pyvmm_native.runs import PageRuns


def pages_of(dialect: str, message: bytes, *, is_request: bool) -> PageRuns:
    """Return the pages that a message of `dialect` names, in 4 KiB frames; raises BadPayload.

    Other messages than requests, on the inflate and deflate queues, may have a command, a flag and
    an id, and name a page twice.
    """
    try:
        return decode(dialect, message, is_request)
    except ValueError as error:
        raise BadPayload(str(error)) from None


class Message(NamedTuple):
    """One message of a response, its header unchecked."""

    cmd: int
    """Command of the request."""
    flag: int
    id: int
    """Id of the request."""
    data_bytes: int
    """Bytes that name pages, as announced by the header; 0 if the message is a header alone."""
    decode: Callable[[], PageRuns]
    """Returns the pages that the message names, in 4 KiB frames; raises BadPayload."""


class ResponseFormat(NamedTuple):
    """The format of the messages in one dialect."""

    read: Callable[[bytes], Message]
    """Returns a message; raises BadPayload if its header is truncated."""
    max_bytes: int
    """Length of the longest valid message."""
    max_id: int
    """The largest id that a header can hold; the one after it is 1."""
