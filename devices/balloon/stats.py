# SPDX-License-Identifier: Apache-2.0
"""The statistics queue (VIRTIO 1.2, section 5.5.6.3): the device requests, the driver reports.

The roles of this queue are reversed. The driver puts one buffer with a report on the queue as soon
as it starts; the device keeps the buffer, and returning it is the request upon which the driver
fills it with a new report. So the device returns the buffer only to make a request, even if it
holds a bad payload: that is counted and traced as any bad payload, but kept. Otherwise a buggy
driver, and not only a hostile one, would send report after report. A second buffer, which a driver
must not have on the queue (5.5.6.3.1), is a bad payload and is returned: the device never keeps
more than one.

A report may be on its way when the next one is requested, and was then measured before the request.
That is why there are `issue` and `request`: `issue` returns the buffer if the device has it, and
any report will do; `request` registers a callback for a report measured after the call. Each report
completes the last request issued, so a callback waits for the report on the first request issued
after its own call. If callbacks remain when a report arrives, its buffer is returned at once as the
next request.

A report is an array of packed `struct virtio_balloon_stat { le16 tag; le64 val; }` in any order.
Unknown tags are kept by number and otherwise ignored (5.5.6.3.2); of a repeated tag the last value
counts. A tag that is not reported is absent, which is not the same as 0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from devices.balloon.dialects import CompleteBuffer
from devices.balloon.queue_handler import QueueHandler
from devices.balloon.stat_tags import STATISTICS
from devices.errors import BadPayload
from devices.listeners import Listeners
from devices.state import Fields, Payload, Restore
from devices.virtio.queue import check_in_flight, save_in_flight
from pyvmm_native.ring import Chain, SplitQueue

ENTRY = struct.Struct("<HQ")
MAX_STATS_BYTES = 4096
"""Longest report accepted: hundreds of entries, where drivers send about 16."""


class StatsReport(NamedTuple):
    """One report of the driver."""

    values: dict[int, int]
    """By tag, in the driver's order."""
    requests: int
    """Number of the request that the report completes; 0 if none has been issued."""

    @property
    def known(self) -> dict[str, int | None]:
        """Return every statistic that has a name; None for those that are absent."""
        return {each.name: self.values.get(tag) for tag, each in enumerate(STATISTICS)}

    @property
    def unknown(self) -> dict[int, int]:
        """Return the values of the tags without a name, by tag."""
        return {tag: value for tag, value in self.values.items() if tag >= len(STATISTICS)}


OnReport = Callable[[StatsReport | BadPayload], None]
"""Called with the report, or with the reason why it is invalid."""


class _Waiter(NamedTuple):
    request: int
    """Number of the first request whose report is for this waiter."""
    on_report: OnReport


def decode(payload: bytes) -> dict[int, int]:
    """Return the values by tag; raises BadPayload if `payload` is not an array of entries."""
    if len(payload) % ENTRY.size:
        raise BadPayload(f"{len(payload)} bytes are not an array of {ENTRY.size}-byte statistics")
    return dict(ENTRY.iter_unpack(payload))


class StatsQueue(QueueHandler):
    """Keeps the driver's buffer between reports."""

    max_readable_bytes = MAX_STATS_BYTES

    def __init__(self, complete: CompleteBuffer) -> None:
        self._complete = complete
        self._in_flight: Chain | None = None
        self._waiters: list[_Waiter] = []
        self.requests = 0
        """Requests issued since the device was created."""
        self.report_received: Listeners[StatsReport] = Listeners()
        """Called with every valid report, requested or not."""

    # Called by the machine.

    @property
    def awaited(self) -> bool:
        """Return whether a callback is registered for a report."""
        return bool(self._waiters)

    def request(self, on_report: OnReport) -> None:
        """Register `on_report`, called once, for a report measured after this call.

        `issue` must follow; the buffer may be with the driver, which then reports twice.
        """
        self._waiters.append(_Waiter(self.requests + 1, on_report))

    def cancel(self, on_report: OnReport) -> None:
        """Forget `on_report` if it has not been called yet."""
        self._waiters = [each for each in self._waiters if each.on_report is not on_report]

    def issue(self) -> bool:
        """Request a report; return False if the device does not have the buffer.

        It does not have it until the driver has started, and while an earlier request is
        outstanding.
        """
        if self._in_flight is None:
            return False
        chain, self._in_flight = self._in_flight, None
        self.requests += 1
        self._complete(chain, 0)
        return True

    # Called by the device.

    def serve(self, chain: Chain) -> int | None:
        """Take a report; the buffer is kept unless a waiter needs the next report."""
        if self._in_flight is not None:
            raise BadPayload("a statistics buffer is already in flight")
        report = StatsReport(decode(chain.readable), self.requests)
        self.report_received(report)
        self._respond(report)
        return self._keep(chain)

    def on_bad_payload(self, chain: Chain, error: BadPayload) -> int | None:
        """Keep the buffer of a bad report, to request the next one with."""
        if self._in_flight is not None:
            return 0
        self._respond(error)
        return self._keep(chain)

    def reset(self) -> None:
        """Drop the buffer. Waiters get the first report of the restarted driver."""
        self._in_flight = None

    def save_state(self) -> Payload:
        """Return the counter and the buffer in flight. Waiters belong to this process."""
        return {"requests": self.requests, "in_flight": save_in_flight(self._in_flight)}

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """As `QueueHandler.check_state`."""
        requests = fields.counter("requests")
        in_flight = next(iter(check_in_flight(fields, "in_flight", ring, at_most=1)), None)

        def restore() -> None:
            self.requests, self._in_flight = requests, in_flight
            self._waiters = []

        return restore

    def _respond(self, response: StatsReport | BadPayload) -> None:
        """Call the waiters for the last request issued."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.request <= self.requests:
                waiter.on_report(response)
            else:
                self._waiters.append(waiter)

    def _keep(self, chain: Chain) -> int | None:
        """Keep a buffer, or return it as the request that a waiter needs."""
        if self._waiters:
            self.requests += 1
            return 0
        self._in_flight = chain
        return None
