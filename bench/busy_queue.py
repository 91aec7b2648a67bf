# SPDX-License-Identifier: Apache-2.0
"""Events of a busy queue without a VM: the recordings that the scope's page is measured with."""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm_native.events import Batch, EventBuffer

EVENTS_OF_A_REQUEST = 5
REQUESTS_OF_A_BATCH = 2000
_QUEUE_SIZE = 128
_RAM_PAGES = 1 << 16


def busy_queue(events: int) -> Iterator[Batch]:
    """Yield `events` events, to the next batch, as an inflate queue makes them."""
    buffer = EventBuffer()
    buffer.start()
    for first in range(0, -(-events // EVENTS_OF_A_REQUEST), REQUESTS_OF_A_BATCH):
        for number in range(first, first + REQUESTS_OF_A_BATCH):
            _request(buffer, number)
        batch = buffer.take()
        assert batch is not None
        yield batch


def _request(buffer: EventBuffer, number: int) -> None:
    place: dict[str, int | str] = {"device": "balloon", "queue": "inflate"}
    head, index = number % _QUEUE_SIZE, number % (1 << 16)
    gpa = number % _RAM_PAGES << 12
    buffer.event("balloon.notified", queue="inflate", caught=1, coalesced=0, own=0)
    buffer.event(
        "descriptor",
        **place, head=head, table_gpa=0, index=head, gpa=gpa, length=1024, flags=0, next=0,
    )  # fmt: skip
    buffer.event(
        "chain",
        **place, head=head, avail_index=index, elements=1, readable_bytes=1024, writable_bytes=0,
    )  # fmt: skip
    buffer.event("balloon.inflate", pages=256, runs=1, discarded_bytes=1 << 20)
    buffer.event("used", **place, head=head, used_index=(index + 1) % (1 << 16), length=0)
