# SPDX-License-Identifier: Apache-2.0
"""The inflate and deflate queues: requests that name pages (VIRTIO 1.2, section 5.5.6).

The dialect's decoder turns a request into `PageRuns`; every page of it must be RAM. Inflated pages
are discarded before the buffer is returned to the driver. A deflate needs no work: a discarded page
of anonymous memory reads as zeros when the guest next touches it. The request is still checked and
counted.
"""

from __future__ import annotations

from devices.balloon.dialects import Dialect
from devices.balloon.queue_handler import QueueHandler
from devices.errors import BadPayload
from devices.ports import GuestRam, Tracer
from devices.state import Fields, Payload, Restore
from pyvmm_native import PAGE_BYTES
from pyvmm_native.ring import Chain, SplitQueue
from pyvmm_native.runs import PageRuns


def decode_pages(dialect: Dialect, ram: GuestRam, payload: bytes) -> PageRuns:
    """Return the pages of a request; raises BadPayload unless all of them are RAM."""
    runs = dialect.decode(payload)
    strays = runs.subtract(ram.pages)
    if strays:
        raise BadPayload(f"{strays.pages} of {runs.pages} pages are not RAM")
    return runs


def writable_pages(chain: Chain) -> PageRuns:
    """Return the pages that lie wholly inside one device-writable element of a buffer.

    On the free page queues the device-writable elements are the message: they are the driver's free
    memory. `SplitQueue.pop` has checked that all of it is RAM.
    """
    spans = (
        (-(-gpa // PAGE_BYTES), (gpa + length) // PAGE_BYTES)
        for gpa, length in chain.writable_segments
    )
    return PageRuns((start, end - start) for start, end in spans if start < end)


class InflateQueue(QueueHandler):
    """Discards the pages that the driver puts in the balloon."""

    def __init__(self, dialect: Dialect, ram: GuestRam, tracer: Tracer) -> None:
        self.max_readable_bytes = dialect.max_request_bytes
        self._dialect = dialect
        self._ram = ram
        self._tracer = tracer
        self.pages = 0
        """4 KiB pages of valid requests since the device was created."""
        self.discarded_bytes = 0
        """Host memory discarded since the device was created, in bytes."""

    def serve(self, chain: Chain) -> int:
        """Discard the whole host pages among the pages of a request."""
        runs = decode_pages(self._dialect, self._ram, chain.readable)
        discarded_bytes = self._ram.discard(runs.whole(self._ram.host_page_pages))
        self.discarded_bytes += discarded_bytes
        self.pages += runs.pages
        self._tracer.event(
            "balloon.inflate", pages=runs.pages, runs=len(runs), discarded_bytes=discarded_bytes
        )
        return 0

    def save_state(self) -> Payload:
        """Return the counters."""
        return {"pages": self.pages, "discarded_bytes": self.discarded_bytes}

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """As `QueueHandler.check_state`."""
        pages, discarded_bytes = fields.counter("pages"), fields.counter("discarded_bytes")

        def restore() -> None:
            self.pages, self.discarded_bytes = pages, discarded_bytes

        return restore


class DeflateQueue(QueueHandler):
    """Checks and counts the pages that the driver takes out of the balloon."""

    def __init__(self, dialect: Dialect, ram: GuestRam, tracer: Tracer) -> None:
        self.max_readable_bytes = dialect.max_request_bytes
        self._dialect = dialect
        self._ram = ram
        self._tracer = tracer
        self.pages = 0
        """4 KiB pages of valid requests since the device was created."""

    def serve(self, chain: Chain) -> int:
        """Check and count the pages of a request."""
        runs = decode_pages(self._dialect, self._ram, chain.readable)
        self.pages += runs.pages
        self._tracer.event("balloon.deflate", pages=runs.pages, runs=len(runs))
        return 0

    def save_state(self) -> Payload:
        """Return the counters."""
        return {"pages": self.pages}

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """As `QueueHandler.check_state`."""
        pages = fields.counter("pages")

        def restore() -> None:
            self.pages = pages

        return restore
