# SPDX-License-Identifier: Apache-2.0
"""The inflate and deflate queues: requests that name pages (VIRTIO 1.2, section 5.5.6).

`PageRequestReader` turns the requests that wait, in the dialect's format, into `PageRuns`; every
page must be RAM. Inflated pages are discarded before the buffers are returned to the driver. A
deflate needs no work: a discarded page of anonymous memory reads as zeros when the guest next
touches it. The requests are still checked and counted.

Where a page of the host is larger than 4 KiB, the host can free it only as a whole. A
`HostPageRecord` then knows which of its parts are in the balloon: it is discarded when the last of
them comes in. When the first of them leaves, the whole of it is still unused, and the RAM can back
it as before. Both hold only if the driver accepted MUST_TELL_HOST and so waits for the buffer of a
deflate (5.5.6.1, 5.5.6.2). Any other driver may use a page that is still in the record; then a host
page is discarded only if one request names the whole of it, and never backed again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from devices.balloon.dialects import Dialect
from devices.balloon.queue_handler import QueueHandler
from devices.errors import BadPayload
from devices.ports import GuestRam, Tracer
from devices.state import Fields, Payload, Restore
from pyvmm_native import PAGE_BYTES
from pyvmm_native.page_requests import PageRequestReader
from pyvmm_native.ring import Chain, SplitQueue
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from pyvmm_native.host_pages import HostPageRecord


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


def host_page_record(ram: GuestRam) -> HostPageRecord | None:
    """Return the record of the balloon's pages if pages of the host are larger than those."""
    if ram.host_page_pages == 1:
        return None
    # 1 module, for RAM in huge pages that cannot be split.
    from pyvmm_native.host_pages import HostPageRecord

    return HostPageRecord(ram.pages, ram.host_page_pages)


class PageQueue(QueueHandler):
    """A queue of requests that name pages.

    `record` is that of the balloon's pages where host pages are larger than 4 KiB.
    `must_tell_host` returns whether the driver accepted MUST_TELL_HOST.
    """

    def __init__(
        self,
        dialect: Dialect,
        ram: GuestRam,
        tracer: Tracer,
        record: HostPageRecord | None,
        must_tell_host: Callable[[], bool],
    ) -> None:
        self.max_readable_bytes = dialect.max_request_bytes
        self._dialect = dialect
        self._ram = ram
        self._tracer = tracer
        self._record = record
        self._must_tell_host = must_tell_host
        self.pages = 0
        """4 KiB pages of valid requests since the device was created."""
        self.shown: HostPageRecord | None = None
        """A record of the pages in the balloon that only a view of memory uses."""
        # In host pages, it matters which pages one request names.
        batch = {} if record is None else {"max_requests": 1}
        self.reader = PageRequestReader(dialect.name, ram.pages, **batch)
        """Takes the requests from the queue."""

    def serve(self, chain: Chain) -> int:
        """Serve a buffer that the reader did not decode; it tells why."""
        runs = decode_pages(self._dialect, self._ram, chain.readable)
        self.serve_pages(runs, runs.pages)
        return 0

    @abstractmethod
    def serve_pages(self, runs: PageRuns, pages: int) -> None:
        """Act on the pages of requests, which are RAM; those of each, summed up, are `pages`."""

    def save_state(self) -> Payload:
        """Return the counters."""
        return {"pages": self.pages}

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """As `QueueHandler.check_state`."""
        pages = fields.counter("pages")

        def restore() -> None:
            self.pages = pages

        return restore


class InflateQueue(PageQueue):
    """Discards the pages that the driver puts in the balloon."""

    discarded_bytes = 0
    """Host memory discarded since the device was created, in bytes."""

    def serve_pages(self, runs: PageRuns, pages: int) -> None:
        """Discard the pages of requests, or the host pages that they complete."""
        if self.shown is not None:
            self.shown.add(runs)
        whole = runs
        if self._record is not None:
            whole = self._record.add(runs)
            if not self._must_tell_host():
                whole = runs.whole(self._ram.host_page_pages)
        discarded_bytes = self._ram.discard(whole)
        self.discarded_bytes += discarded_bytes
        self.pages += pages
        if self._tracer.watched:
            self._tracer.event(
                "balloon.inflate", pages=pages, runs=len(runs), discarded_bytes=discarded_bytes
            )

    def save_state(self) -> Payload:
        """Return the counters."""
        return {**super().save_state(), "discarded_bytes": self.discarded_bytes}

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """As `QueueHandler.check_state`."""
        restore_pages = super().check_state(fields, ring)
        discarded_bytes = fields.counter("discarded_bytes")

        def restore() -> None:
            restore_pages()
            self.discarded_bytes = discarded_bytes

        return restore


class DeflateQueue(PageQueue):
    """Checks and counts the pages that the driver takes out of the balloon."""

    def serve_pages(self, runs: PageRuns, pages: int) -> None:
        """Count the pages of requests; restore the backing of unused host pages."""
        if self.shown is not None:
            self.shown.remove(runs)
        if self._record is not None:
            unused = self._record.remove(runs)
            if self._must_tell_host():
                self._ram.restore_backing(unused)
        self.pages += pages
        if self._tracer.watched:
            self._tracer.event("balloon.deflate", pages=pages, runs=len(runs))
