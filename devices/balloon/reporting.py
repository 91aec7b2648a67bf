# SPDX-License-Identifier: Apache-2.0
"""The reporting queue (VIRTIO 1.2, section 5.5.6.7): the driver reports its free pages.

A buffer's device-writable elements are free pages, which the driver does not touch before the
buffer is returned. Until then the device may discard them; the guest may use them at any time
afterwards and reads zeros. There is no deflate.

A driver that negotiated PAGE_POISON expects its free pages to hold `poison_val` all the time, and
the device MUST NOT change them to anything else (5.5.6.7.2). A discarded page holds 0, so with any
other value nothing is discarded; the report is still returned and counted.
"""

from __future__ import annotations

from collections.abc import Callable

from devices.balloon.page_queues import writable_pages
from devices.balloon.queue_handler import QueueHandler
from devices.errors import BadPayload
from devices.ports import GuestRam, Tracer
from devices.state import Fields, Payload, Restore
from pyvmm_native.ring import Chain, SplitQueue


class ReportingQueue(QueueHandler):
    """Discards reported pages; `poison_val` returns the pattern that the driver expects in them."""

    max_readable_bytes = 0

    def __init__(self, ram: GuestRam, poison_val: Callable[[], int], tracer: Tracer) -> None:
        self._ram = ram
        self._poison_val = poison_val
        self._tracer = tracer
        self.pages = 0
        """4 KiB pages reported since the device was created."""
        self.discarded_bytes = 0
        """Host memory discarded since the device was created, in bytes."""

    def serve(self, chain: Chain) -> int:
        """Discard the whole host pages of a report, unless the driver poisons its free pages."""
        pages = writable_pages(chain)
        if not pages:
            raise BadPayload("the report has no whole page")
        self.pages += pages.pages
        poison_val, discarded_bytes = self._poison_val(), 0
        if not poison_val:
            discarded_bytes = self._ram.discard(pages.whole(self._ram.host_page_pages))
            self.discarded_bytes += discarded_bytes
        self._tracer.event(
            "balloon.report",
            pages=pages.pages,
            poison_val=poison_val,
            discarded_bytes=discarded_bytes,
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
