# SPDX-License-Identifier: Apache-2.0
"""Exercise of chapter 10: the host's side of the misc queue.

`UnusedPagesRequests` asks the driver which pages are unused, and collects the messages of its
response. A request can end without a response, when the host's time-out has passed. The class has a
bug: now and then a migration loses pages, always after a request that timed out. Find it and mend
it.
"""

from __future__ import annotations

import struct

from pyvmm_native.runs import PageRuns

REQUEST = struct.Struct("<H6xQ")
"""A request, in the driver's buffer: cmd, and param, which is the id of the request."""
HEADER = struct.Struct("<HHHHQQQ")
"""A message: cmd, page_shift, flag, reserved, req_id, start_pfn, bmap_len."""
GET_UNUSED_PAGES = 0
CONT, DONE = 0, 1
"""Flags: more messages follow; the last message."""


class UnusedPagesRequests:
    """Makes one request at a time."""

    def __init__(self) -> None:
        self.last_id = 0
        self.outstanding = False
        """A request has been made and has not ended."""
        self.pages = PageRuns()
        """The pages named so far in response to the outstanding request."""

    def request(self) -> bytes:
        """Begin a request; return the 16 bytes for the driver."""
        self.last_id += 1
        self.outstanding = True
        self.pages = PageRuns()
        return REQUEST.pack(GET_UNUSED_PAGES, self.last_id)

    def time_out(self) -> None:
        """End the outstanding request without a response."""
        self.outstanding = False

    def message(self, payload: bytes) -> PageRuns | None:
        """Take a message of the driver; return all pages when it completes the response."""
        _cmd, _page_shift, flag, _, _req_id, start_pfn, bmap_len = HEADER.unpack_from(payload)
        if not self.outstanding:
            return None
        bitmap = payload[HEADER.size : HEADER.size + bmap_len]
        self.pages = self.pages.union(PageRuns.from_bitmap(bitmap, start_pfn))
        if flag != DONE:
            return None
        self.outstanding = False
        return self.pages
