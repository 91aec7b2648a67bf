# SPDX-License-Identifier: Apache-2.0
"""The inflate and deflate queues: requests that name pages (VIRTIO 1.2, section 5.5.6).

A request becomes `PageRuns` through the dialect's decoder; every page of it must be RAM. Inflated
pages go back to the host before the buffer goes back to the driver. A deflate needs no work here:
a discarded page of anonymous memory comes back, zeroed, when the guest touches it. It is checked
and counted all the same.
"""

from __future__ import annotations

from devices.balloon.dialects import Dialect
from devices.errors import BadPayload
from devices.ports import GuestRam, Tracer
from devices.state import Fields, Payload, Restore
from pyvmm_native import PAGE_BYTES
from pyvmm_native.ring import Chain, SplitQueue
from pyvmm_native.runs import PageRuns


def decode_pages(dialect: Dialect, ram: GuestRam, payload: bytes) -> PageRuns:
    """Pages of a request, all of them RAM; one stray page makes the whole request bad."""
    runs = dialect.decode(payload)
    strays = runs.subtract(ram.pages)
    if strays:
        raise BadPayload(f"{strays.pages} of {runs.pages} pages are not RAM")
    return runs


def writable_pages(chain: Chain) -> PageRuns:
    """Pages that lie wholly inside one device-writable element of a buffer.

    On the free page queues a buffer is not room to write but the message: the driver lends free
    memory by putting it there. `SplitQueue.pop` has checked that all of it is RAM.
    """
    spans = (
        (-(-gpa // PAGE_BYTES), (gpa + length) // PAGE_BYTES)
        for gpa, length in chain.writable_segments
    )
    return PageRuns((start, end - start) for start, end in spans if start < end)


class InflateQueue:
    """Takes pages from the guest and gives them to the host."""

    def __init__(self, dialect: Dialect, ram: GuestRam, tracer: Tracer) -> None:
        self._dialect = dialect
        self._ram = ram
        self._tracer = tracer
        self.pages = 0
        """4 KiB pages named by good requests since the device was made."""
        self.discarded_bytes = 0

    def serve(self, chain: Chain) -> int:
        runs = decode_pages(self._dialect, self._ram, chain.readable)
        self.discarded_bytes += self._ram.discard(runs.whole(self._ram.host_page_pages))
        self.pages += runs.pages
        self._tracer.event("balloon.inflate", pages=runs.pages, runs=len(runs))
        return 0

    def reset(self) -> None:
        """Nothing is kept for the driver."""

    def save_state(self) -> Payload:
        """The counters."""
        return {"pages": self.pages, "discarded_bytes": self.discarded_bytes}

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """As `QueueHandler.check_state`."""
        pages, discarded_bytes = fields.counter("pages"), fields.counter("discarded_bytes")

        def restore() -> None:
            self.pages, self.discarded_bytes = pages, discarded_bytes

        return restore


class DeflateQueue:
    """Hears which pages the guest uses again."""

    def __init__(self, dialect: Dialect, ram: GuestRam, tracer: Tracer) -> None:
        self._dialect = dialect
        self._ram = ram
        self._tracer = tracer
        self.pages = 0
        """4 KiB pages named by good requests since the device was made."""

    def serve(self, chain: Chain) -> int:
        runs = decode_pages(self._dialect, self._ram, chain.readable)
        self.pages += runs.pages
        self._tracer.event("balloon.deflate", pages=runs.pages, runs=len(runs))
        return 0

    def reset(self) -> None:
        """Nothing is kept for the driver."""

    def save_state(self) -> Payload:
        """The counters."""
        return {"pages": self.pages}

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """As `QueueHandler.check_state`."""
        pages = fields.counter("pages")

        def restore() -> None:
            self.pages = pages

        return restore
